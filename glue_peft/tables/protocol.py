"""How rows were made, as run.json says: model, method, starts, share of the data, settings; and a table's caption."""

import json
import os
from typing import Any

from glue_peft.flags import FlagKind, kind_of
from glue_peft.run_folder import plural
from glue_peft.tables.costs import memory_kinds
from glue_peft.tables.read import EPOCHS, number, part, printable
from glue_peft.tables.results import Results, Row, seeds_text
from glue_peft.tasks import METRICS, main_metric, title

# Settings of a saved adapter's config that say where it came from, not what it computes.
ADAPTER_ORIGIN = ("base_model_name_or_path", "peft_version", "inference_mode", "auto_mapping", "revision")
OF_A_SEED = ("proj_seed",)  # a random part that each seed of a row draws by itself, as projection_prng_key
# What may differ between two runs of a row without a word. Models, data and adapter files are compared by content.
UNCOMPARED_KINDS = (FlagKind.NEUTRAL, FlagKind.OUTPUT, FlagKind.NAMES_RUN, FlagKind.HASHED_PATH)
# How a comparison names the method; the flags say the same, or nothing (--rank of full fine-tuning).
METHOD_SETTINGS = {
    "adapter_config.peft_type": "method",
    "adapter_config.r": "rank",
    "adapter_config.target_modules": "layers",
}
METHOD_FLAGS = ("adapter_name", "rank", "adapter_alpha")
DATA_LIMITS = ("selection_fraction", "max_train_samples", "max_eval_samples")


def row_facts(row: Row, tasks: list[str]) -> dict[str, Any]:
    """Return what the first record says of the row's model, method, rank and layers; empty without a record."""
    record = next(row.records(tasks), None)
    return {} if record is None else facts_of(record)


def facts_of(record: dict[str, Any]) -> dict[str, Any]:
    """Return a run's model, method, rank and layers."""
    arguments, adapter = part(record, "arguments"), part(record, "adapter_config")
    method = arguments.get("adapter_name")
    if arguments.get("adapter_config") or not isinstance(method, str):
        method = str(adapter.get("peft_type", "")).lower()
    layers = adapter.get("target_modules")
    return {
        "model": printable(os.path.basename(str(part(record, "base_model").get("name", "")).rstrip("/"))),
        "method": "full" if method == "none" else printable(method),
        "rank": number(adapter.get("r")),
        "layers": sorted(map(str, layers)) if isinstance(layers, list) else [],
    }


def data_limits(rows: list[Row], tasks: list[str]) -> list[str]:
    """Return the flags by which runs left out a part of the data, with their values, as `selection_fraction 0.1`."""
    arguments = [part(record, "arguments") for row in rows for record in row.records(tasks)]
    found = {name: {number(of_run.get(name)) for of_run in arguments} for name in DATA_LIMITS}
    return [
        f"{name} {' or '.join(sorted(str(value).lower() for value in values))}"
        for name, values in found.items()
        if values - {None}
    ]


def adapter_starts(row: Row, tasks: list[str]) -> list[str]:
    """Return the tasks of which a run started from a saved adapter."""
    return [
        task
        for task in tasks
        if any(part(record, "arguments").get("init_adapter_from") for record in row.records([task]))
    ]


def settings_of(record: dict[str, Any]) -> dict[str, str]:
    """Return what made the run's numbers, each value as JSON."""
    arguments, adapter, base = (part(record, name) for name in ("arguments", "adapter_config", "base_model"))
    # With --selection_fraction each seed trains on other rows, as it should.
    compared = ("validation",) if arguments.get("selection_fraction") else ("train", "validation")
    values = {f"{split} data": part(record, "data_sha256").get(split) for split in compared}
    values["base model"] = base.get("sha256") or base.get("name")
    values |= {name: record.get(name) for name in ("precision", "processes")}
    values = {name: value for name, value in values.items() if value is not None}
    # The layers are compared as the adapter has them; as a flag, earlier versions recorded them without one too.
    values |= {name: value for name, value in arguments.items() if is_compared(name) and name != "target_modules"}
    values |= {f"adapter_config.{name}": value for name, value in adapter.items() if is_compared(name)}
    values["starts from an adapter"] = bool(arguments.get("init_adapter_from"))
    try:
        return {name: json.dumps(value, sort_keys=True) for name, value in values.items()}
    except RecursionError:
        return {}


def is_compared(name: str) -> bool:
    """Say whether an argument, or a setting of an adapter's config, can move a score."""
    return name not in ADAPTER_ORIGIN and name not in OF_A_SEED and kind_of(name) not in UNCOMPARED_KINDS


def row_differences(first: Row, second: Row, tasks: list[str]) -> list[str]:
    """Return in what the runs of two rows differ, seed by seed, as `rank 4 / 64`: a comparison is of all of it."""
    found: dict[str, dict[str, None]] = {}
    for task in tasks:
        ours, theirs = first.used(task), second.used(task)
        for seed in ours.keys() & theirs.keys():
            records = ours[seed].record, theirs[seed].record
            if records[0] is None or records[1] is None:
                continue
            settings = settings_of(records[0]), settings_of(records[1])
            changed = {name for name, _ in settings[0].items() ^ settings[1].items()} - set(METHOD_FLAGS)
            if "adapter_config.peft_type" in changed:  # then the other settings have other names
                changed = {name for name in changed if not name.startswith("adapter_config.")} | (
                    changed & METHOD_SETTINGS.keys()
                )
            for name in sorted(changed):
                values = [shortened(printable(of_run.get(name, "none"))) for of_run in settings]
                shown = METHOD_SETTINGS.get(name, name.removeprefix("adapter_config."))
                found.setdefault(shown, {})[" / ".join(values)] = None
    return [f"{name} {' or '.join(pairs)}" for name, pairs in found.items()]


def shortened(text: str) -> str:
    """Return at most 40 characters; hashes are told apart by fewer."""
    return text if len(text) <= 40 else f"{text[:37]}..."


def caption(results: Results, statistic: str, ddof: int) -> str:
    """Return the protocol behind a table's numbers; one seed has no deviation."""
    std = f" ± {('population', 'sample')[ddof]} std" if results.n_seeds > 1 else ""
    usual = results.seeds == list(range(1, results.n_seeds + 1))
    seeds = plural(results.n_seeds, "seed") + ("" if usual else f" ({seeds_text(results.seeds).partition(' ')[2]})")
    others = [
        f"{title(task) if task == 'stsb' else task}: {METRICS[key]}"
        for task, key in results.metrics.items()
        if task in results.tasks and (task == "stsb" or key != main_metric(task))
    ]
    parts = [
        f"{statistic}{std} over {'' if has_all_seeds(results) else 'up to '}{seeds}, in percent",
        epochs_in_words(results),
        *others,
        *data_limits(results.rows, results.tasks),
        mnli_starts(results),
    ]
    if results.drop_collapsed:
        parts.append(f"collapsed and diverged runs dropped (--drop_collapsed): {results.n_dropped}")
    kinds = memory_kinds(results.rows, results.tasks)
    return "; ".join(parts + ([f"peak memory: {', '.join(kinds)}"] if kinds else []))


def has_all_seeds(results: Results) -> bool:
    """Say whether every row has every seed of every task."""
    return all(len(scores) == results.n_seeds for row in results.rows for scores in map(row.scores, results.tasks))


def epochs_in_words(results: Results) -> str:
    """Return whose scores these are, as far as that is known."""
    runs = [run for row in results.rows for task in results.tasks for run in row.used(task).values()]
    unknown = sum(not run.epoch_known for run in runs)
    if unknown == len(runs):
        return "evaluated model, epoch unknown"
    known = EPOCHS[results.epoch]
    return known + (f" (evaluated model, epoch unknown: {unknown} of {plural(len(runs), 'run')})" if unknown else "")


def mnli_starts(results: Results) -> str:
    """Say which tasks of which rows started from a saved adapter."""
    runs = [run for row in results.rows for task in results.tasks for run in row.used(task).values()]
    unknown = sum(run.record is None for run in runs)
    found = []
    for row in results.rows:
        tasks = adapter_starts(row, results.tasks)
        if tasks:
            found.append(", ".join(tasks) if len(results.rows) == 1 else f"{row.name} ({', '.join(tasks)})")
    if unknown == len(runs):
        return "MNLI starts unknown"
    known = f"started from an adapter: {', '.join(found)}" if found else "no MNLI starts"
    return known + (f" (unknown of {unknown} of {plural(len(runs), 'run')})" if unknown else "")
