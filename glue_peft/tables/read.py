"""The scores in result folders, run by run: what was measured, how the run was made, and what is wrong with it.

Imported by parse_results.py and plot_results.py; needs no package beyond Python's standard library. A result folder is
ROOT/<seed>/<task>/ with the eval_results.json and run.json that run_glue.py writes.
"""

import argparse
import json
import math
import os
import re
import stat
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glue_peft.errors import UsageError
from glue_peft.flags import FlagKind, kind_of
from glue_peft.run_folder import FAILURE_FILE, RECORD_FILE, plural, read_failure
from glue_peft.tasks import METRICS, PAPER_TASKS, TASKS, main_metric, result_keys

STSB_METRICS = ("pearson", "spearmanr", "combined_score")
NEVER_NEGATIVE = ("accuracy", "f1")
EPOCHS = {
    "last": "last epoch",
    "best": "best epoch, chosen on the reported set itself",
    "selected": "epoch selected on held-out training rows",
}
SCORES_ARE_WRITTEN_WITH = {"last": "", "best": " (--eval_strategy epoch)", "selected": " (--selection_fraction)"}
MOST_SEEDS = 9999
MOST_BYTES = 2**26  # far above any record, and read in a second
MISSING = "missing"
JOB_LOG = "joblog.tsv"  # of train_all.sh with JOBS, beside the adapters' folders
# Settings of a saved adapter's config that say where it came from, not what it computes.
ADAPTER_ORIGIN = ("base_model_name_or_path", "peft_version", "inference_mode", "auto_mapping", "revision")
# What may differ between two runs of a row without a word. Models, data and adapter files are compared by content.
UNCOMPARED_KINDS = (FlagKind.NEUTRAL, FlagKind.OUTPUT, FlagKind.NAMES_RUN, FlagKind.HASHED_PATH)
# How a comparison names the method; the flags say the same, or nothing (--rank of full fine-tuning).
METHOD_SETTINGS = {
    "adapter_config.peft_type": "method",
    "adapter_config.r": "rank",
    "adapter_config.target_modules": "layers",
}
METHOD_FLAGS = ("adapter_name", "rank", "adapter_alpha", "target_modules")
DATA_LIMITS = ("selection_fraction", "max_train_samples", "max_eval_samples")
SAME_IN_ALL_TASKS = ("base model", "adapter_name", "rank", "target_modules", "adapter_config.peft_type")


class UnusableFileError(Exception):
    """A file of a run that can't give its score, and why; `kind` is that of a run's own failure, if it noted one."""

    def __init__(self, path: Path, reason: str, kind: str | None = None) -> None:
        """Keep them apart, as they are printed apart."""
        super().__init__(path, reason)
        self.path, self.reason, self.kind = path, reason, kind


@dataclass
class Run:
    """One seed of one task."""

    folder: Path
    score: float | None = None  # a fraction; of MNLI the mean of the two
    parts: tuple[float, ...] = ()  # MNLI: matched and mismatched
    metrics: dict[str, Any] = field(default_factory=dict)  # of the epoch asked for
    record: dict[str, Any] | None = None  # run.json
    source: Path | None = None  # the file with the score
    fault: UnusableFileError | None = None  # why there is no score
    dropped: bool = False  # by --drop_collapsed


@dataclass
class Row:
    """One ROOT: all its runs."""

    name: str
    root: Path
    runs: dict[str, dict[int, Run]]  # task, seed

    def used(self, task: str) -> dict[int, Run]:
        """Return the runs whose scores count."""
        return {seed: run for seed, run in self.runs[task].items() if run.score is not None and not run.dropped}

    def scores(self, task: str) -> dict[int, float]:
        """Return the score of each seed, as a fraction."""
        return {seed: run.score for seed, run in self.used(task).items()}

    def seed_averages(self, tasks: list[str]) -> dict[int, float]:
        """Return the average over `tasks` of each seed that has them all."""
        scores = [self.scores(task) for task in tasks]
        complete = set.intersection(*map(set, scores)) if scores else set()
        return {seed: statistics.fmean(of_task[seed] for of_task in scores) for seed in sorted(complete)}

    def records(self, tasks: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Yield the run.json of every run that counts and has one."""
        return (run.record for task in tasks for run in self.used(task).values() if run.record is not None)


@dataclass
class Results:
    """Everything that was read, and the choices it was read with."""

    rows: list[Row]
    tasks: list[str]
    empty_tasks: list[str]  # asked for, but no seed of any row has them
    metrics: dict[str, str]
    epoch: str
    seeds: list[int]
    ignored: list[str]  # files that can't be used and that --allow_missing did without, a line each
    drop_collapsed: bool

    @property
    def n_seeds(self) -> int:
        """Return how many seeds were asked for."""
        return len(self.seeds)

    @property
    def n_dropped(self) -> int:
        """Return how many runs --drop_collapsed left out."""
        return sum(run.dropped for row in self.rows for runs in row.runs.values() for run in runs.values())

    @property
    def averaged_tasks(self) -> list[str]:
        """Return the tasks that every row has: averages over different tasks can't be compared."""
        return [task for task in self.tasks if all(row.used(task) for row in self.rows)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options on what is read; their values are checked by read_results."""
    parser.add_argument("roots", metavar="ROOT", nargs="+", help="folder of one row, with ROOT/<seed>/<task>/ in it")
    parser.add_argument("n_seeds", metavar="NSEEDS", help="how many seeds (5: 1 to 5), a range (3-5) or a list (1,3)")
    parser.add_argument(
        "--tasks",
        help=f"tasks with commas between them, or `all` (default: {','.join(PAPER_TASKS)}; "
        f"there are also {', '.join(task for task in TASKS if task not in PAPER_TASKS)})",
    )
    parser.add_argument(
        "--metric",
        metavar="TASK=KEY",
        action="append",
        default=[],
        help=f"what to report of a task, such as mrpc=f1; can be repeated; KEY is one of {', '.join(METRICS)}",
    )
    parser.add_argument(
        "--stsb_metric",
        choices=STSB_METRICS,
        help="what to report of STS-B (default: combined_score, the mean of the other two)",
    )
    parser.add_argument("--epoch", choices=EPOCHS, default="last", help="whose scores (default: %(default)s)")
    parser.add_argument("--allow_missing", action="store_true", help="use the seeds that are there, and show how many")
    parser.add_argument("--drop_collapsed", action="store_true", help="leave out collapsed and diverged runs")


def read_results(args: argparse.Namespace) -> Results:
    """Read all that the options ask for; raises UsageError, which names every file at fault."""
    seeds, roots = wanted_seeds(args.n_seeds), distinct_roots(args.roots)
    wanted = wanted_tasks(args.tasks)
    metrics = wanted_metrics(args.metric, args.stsb_metric, wanted)
    rows = read_rows(roots, seeds, wanted, metrics, args.epoch)
    tasks = [task for task in wanted if any(is_there(row, task) for row in rows)]
    unusable = unusable_lines(rows, tasks, and_missing=not args.allow_missing)
    if unusable and not args.allow_missing:
        raise UsageError("\n".join(["missing or unreadable (--allow_missing does without them):", *unusable]))
    if args.drop_collapsed:
        drop_collapsed(rows)
    tasks = [task for task in tasks if any(row.used(task) for row in rows)]
    for row, root in zip(rows, roots, strict=True):
        if not any(row.used(task) for task in tasks):
            message = (
                f"ROOT {root!r} has no usable result of {seeds_text(seeds)}; expected are files "
                f"<seed>/<task>/eval_results.json with <task> one of {', '.join(wanted)}"
            )
            raise UsageError("\n".join([message, *unusable_lines([row], wanted, and_missing=False)]))
    empty = [task for task in wanted if task not in tasks]
    return Results(rows, tasks, empty, metrics, args.epoch, seeds, unusable, args.drop_collapsed)


def distinct_roots(roots: list[str]) -> list[str]:
    """Return the folders without repeats, so that `x/lora4 x/*` compares all with lora4, and without a sweep's log."""
    kept = [root for root in roots if os.path.basename(root) != JOB_LOG or os.path.isdir(root)]
    if not kept:
        raise UsageError(f"ROOT: no folder of results, only {roots[0]}")
    first = {os.path.abspath(root): root for root in reversed(kept)}
    return [root for root in dict.fromkeys(kept) if root in first.values()]


def wanted_seeds(text: str) -> list[int]:
    """Return the seeds of NSEEDS: `5` is 1 to 5, `3-5` a range, `1,3` a list; else raise UsageError."""
    seeds: list[int] = []
    for part_of_list in [f"1-{text}"] if text.isalnum() else text.split(","):
        match = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", part_of_list)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < first + MOST_SEEDS:
            seeds = []
            break
        seeds += range(first, last + 1)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(
            f"NSEEDS must be a number of seeds from 1 to {MOST_SEEDS}, a range such as 3-5 or a list such as 1,3 with "
            f"no seed twice, not {text[:40]!r}"
        )
    return seeds


def seeds_text(seeds: list[int]) -> str:
    """Return `seeds 1 to 5` for consecutive seeds, else all of them."""
    consecutive = len(seeds) > 1 and seeds == list(range(seeds[0], seeds[-1] + 1))
    listed = f"{seeds[0]} to {seeds[-1]}" if consecutive else ", ".join(map(str, seeds))
    return f"seed{'s' * (len(seeds) > 1)} {listed}"


def wanted_tasks(text: str | None) -> list[str]:
    """Return the tasks that --tasks names, in its order."""
    if text is None:
        return PAPER_TASKS
    tasks = list(TASKS) if text == "all" else text.replace(",", " ").split()
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks or len(set(tasks)) < len(tasks):
        raise UsageError(f"--tasks {text}: allowed are `all` or some of {', '.join(TASKS)}, each once")
    return tasks


def wanted_metrics(changes: list[str], stsb_metric: str | None, tasks: list[str]) -> dict[str, str]:
    """Return the metric of each task, with the changes of --metric and --stsb_metric, which must be of `tasks`."""
    metrics = {task: main_metric(task) for task in TASKS}
    if stsb_metric is not None:
        changes = [*changes, f"stsb={stsb_metric}"]
    changed: dict[str, str] = {}
    for change in changes:
        task, _, key = change.partition("=")
        key = key.removeprefix("eval_")
        if task not in metrics or key not in METRICS:
            raise UsageError(
                f"--metric {change}: must be TASK=KEY with TASK one of {', '.join(metrics)} and KEY one of "
                f"{', '.join(METRICS)}"
            )
        if task not in tasks:
            raise UsageError(f"--metric {change}: {task} is not one of the table's tasks, {', '.join(tasks)}")
        if changed.setdefault(task, key) != key:
            raise UsageError(f"--metric {change}: {task}={changed[task]} is asked for as well")
    return metrics | changed


def row_names(roots: list[str]) -> list[str]:
    """Return each folder's name, or its path as given where two names are equal."""
    names = [os.path.basename(os.path.abspath(root)) or root for root in roots]
    return [printable(name if names.count(name) == 1 else root) for name, root in zip(names, roots, strict=True)]


def printable(text: str) -> str:
    """Escape what would break a line; bytes of a name that are no UTF-8 leave as they came (surrogateescape)."""
    return "".join(
        char if char.isprintable() or "\udc80" <= char <= "\udcff" else char.encode("unicode_escape").decode()
        for char in text
    )


def read_rows(roots: list[str], seeds: list[int], tasks: list[str], metrics: dict[str, str], epoch: str) -> list[Row]:
    """Read every task and seed of every ROOT; raises UsageError where one is no folder."""
    for root in roots:
        if not os.path.isdir(root):
            raise UsageError(
                f"ROOT must be an existing folder that holds <seed>/<task>/eval_results.json, not {root!r}"
            )
    rows = []
    for name, root in zip(row_names(roots), map(Path, roots), strict=True):
        runs = {
            task: {seed: read_run(root / str(seed) / task, task, metrics[task], epoch) for seed in seeds}
            for task in tasks
        }
        rows.append(Row(name, root, runs))
    refuse_repeated_files(rows)
    return rows


def read_run(folder: Path, task: str, metric: str, epoch: str) -> Run:
    """Read one run; what can't be used leaves a fault in place of the score."""
    run = Run(folder)
    try:
        run.record = read_record(folder, task)
        failure = read_failure(folder) if run.record is None else None
        if failure is not None and failure.kind != "stopped":
            reason = failure.message if failure.kind == "diverged" else str(failure)
            raise UnusableFileError(folder / FAILURE_FILE, printable(reason), failure.kind)
        run.metrics, run.source = read_metrics(folder, run.record, epoch)
        run.parts = tuple(take_score(run.source, run.metrics, key, metric) for key in result_keys(task, metric))
        run.score = statistics.fmean(run.parts)
    except UnusableFileError as error:
        run.fault = error
    return run


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or raise UnusableFileError."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UnusableFileError(path, "not a regular file")  # reading a named pipe would wait for ever
        if status.st_size > MOST_BYTES:
            raise UnusableFileError(path, f"too large to be a result: {status.st_size} bytes")
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UnusableFileError(path, MISSING) from None
    except OSError as error:
        raise UnusableFileError(path, f"can't be read: {error.strerror}") from None
    except RecursionError:
        raise UnusableFileError(path, "not valid JSON: nested too deeply") from None
    except ValueError as error:  # broken JSON, broken UTF-8, a number of thousands of digits
        raise UnusableFileError(path, f"not valid JSON: {printable(str(error))}") from None
    if not isinstance(content, dict):
        raise UnusableFileError(path, f"not a JSON object but {type(content).__name__}")
    return content


def read_record(folder: Path, task: str) -> dict[str, Any] | None:
    """Return run.json, None where there is none; raises UnusableFileError, also where it is another task's."""
    path = folder / RECORD_FILE
    try:
        record = read_object(path)
    except UnusableFileError as error:
        if error.reason == MISSING:
            return None
        raise
    named = part(record, "arguments").get("task_name")
    if isinstance(named, str) and named.lower() != task:
        raise UnusableFileError(path, f"belongs to task {printable(named[:40])}")
    return record


def read_metrics(folder: Path, record: dict[str, Any] | None, epoch: str) -> tuple[dict[str, Any], Path]:
    """Return the metrics of the epoch asked for and the file that they stand in; raises UnusableFileError.

    run.json's `scores` has them all. Without it eval_results.json gives the last epoch's, unless the run itself
    loaded another one.
    """
    results_path, record_path = folder / "eval_results.json", folder / RECORD_FILE
    if record is not None and record.get("scores") is not None:
        scores = record["scores"]
        chosen = scores.get(epoch) if isinstance(scores, dict) else None
        if not isinstance(chosen, dict):
            raise UnusableFileError(record_path, f"has no scores of the {epoch} epoch{SCORES_ARE_WRITTEN_WITH[epoch]}")
        if epoch == "best" and part(record, "arguments").get("eval_strategy") in (None, "no"):
            raise UnusableFileError(record_path, "has the last epoch's scores alone (--eval_strategy epoch)")
        return chosen, record_path
    if epoch == "last":
        if record is not None and part(record, "arguments").get("load_best_model_at_end"):
            raise UnusableFileError(record_path, "has no scores, and eval_results.json is the best epoch's")
        return read_object(results_path), results_path
    if record is None and not os.path.lexists(results_path):
        raise UnusableFileError(results_path, MISSING)
    reason = f"has no scores of the {epoch} epoch{SCORES_ARE_WRITTEN_WITH[epoch]}"
    raise UnusableFileError(record_path, reason if record is not None else f"is missing, so the run {reason}")


def take_score(path: Path, metrics: dict[str, Any], key: str, metric: str) -> float:
    """Return one score, or raise UnusableFileError where it is no number in the metric's range."""
    if key not in metrics:
        raise UnusableFileError(path, f"has no {key}")
    score = metrics[key]
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise UnusableFileError(path, f"{key} is not a number but {type(score).__name__}")
    lowest = 0 if metric in NEVER_NEGATIVE else -1
    # Rounding can carry a correlation just past 1. NaN fails this test, and huge integers need no conversion for it.
    if not lowest <= score <= 1 + 1e-6:
        raise UnusableFileError(path, f"{key} is {str(score)[:20]}, not between {lowest} and 1")
    return float(score)


def part(record: dict[str, Any], name: str) -> dict[str, Any]:
    """Return one of the record's objects, empty where it isn't there."""
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def number(value: object) -> float | None:
    """Return a value if it is a number of a sane size, else None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and -1e18 < value < 1e18 else None


def refuse_repeated_files(rows: list[Row]) -> None:
    """Take the score of runs whose file was counted already, through a link or a folder given twice."""
    seen: dict[tuple[int, int], Path] = {}
    for run in (run for row in rows for runs in row.runs.values() for run in runs.values()):
        if run.score is None or run.source is None:
            continue
        status = os.stat(run.source)
        first = seen.setdefault((status.st_dev, status.st_ino), run.source)
        if first is not run.source:
            run.score, run.fault = None, UnusableFileError(run.source, f"is the same file as {printable(str(first))}")


def is_there(row: Row, task: str) -> bool:
    """Whether any seed has left anything of the task."""
    return any(run.fault is None or run.fault.reason != MISSING for run in row.runs[task].values())


def unusable_lines(rows: list[Row], tasks: list[str], and_missing: bool) -> list[str]:
    """Return one line for each file of `tasks` that can't be used and, where asked for, each that is missing."""
    return [
        f"  {printable(str(run.fault.path))}: {run.fault.reason}"
        for row in rows
        for task in tasks
        for run in row.runs[task].values()
        if run.fault is not None and (and_missing or run.fault.reason != MISSING)
    ]


def drop_collapsed(rows: list[Row]) -> None:
    """Mark collapsed and diverged runs, whose scores then no longer count."""
    for row in rows:
        for task in row.runs:
            for run in row.used(task).values():
                run.dropped = (collapse(run) or divergence(run)) is not None


def majority_share(run: Run, suffix: str = "") -> float | None:
    """Return the share of the validation set's most frequent class, as run_glue.py recorded it."""
    key = f"eval_majority_share{suffix}"
    return number(run.metrics.get(key, part(run.record or {}, "metrics").get(key)))


def collapse(run: Run) -> str | None:
    """Say why a run looks as if it had learnt nothing, or return None."""
    for suffix in ("", "_mm"):
        if number(run.metrics.get(f"eval_predicted_classes{suffix}")) == 1:
            return f"constant output: eval_predicted_classes{suffix} is 1"
        accuracy, share = number(run.metrics.get(f"eval_accuracy{suffix}")), majority_share(run, suffix)
        # GLUE's largest validation set has 40,430 rows: two different counts are at least 2e-5 apart.
        if accuracy is not None and share is not None and accuracy <= share + 1e-6:
            most_frequent = f"the share of the most frequent class, {100 * share:.1f} %"
            return f"eval_accuracy{suffix}, {100 * accuracy:.1f} %, is not above {most_frequent}"
    if number(run.metrics.get("eval_prediction_std")) == 0:
        return "constant output: eval_prediction_std is 0"
    for key in ("eval_matthews_correlation", "eval_pearson", "eval_spearmanr"):
        if number(run.metrics.get(key)) == 0:
            return f"{key} is 0"
    return None


def divergence(run: Run) -> str | None:
    """Name a loss that is NaN or infinite, or return None."""
    for name, value in (part(run.record or {}, "metrics") | run.metrics).items():
        if "loss" in name and isinstance(value, float) and not math.isfinite(value):
            return f"{printable(name[:40])} is {value}"
    return None


def row_facts(row: Row, tasks: list[str]) -> dict[str, Any]:
    """Return what the first record says of the row's model, method, rank and layers; empty without a record."""
    record = next(row.records(tasks), None)
    if record is None:
        return {}
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


def seed_costs(row: Row, tasks: list[str]) -> dict[str, float | None]:
    """Return the row's costs, each the mean over the seeds that have it for all their tasks.

    Parameters, file and memory: a seed's largest task (heads differ by a few outputs). Training: the sum of its tasks.
    """
    tasks = [task for task in tasks if row.used(task)]
    costs = {}
    for name, over_tasks in (
        ("adapter_parameters", max),
        ("parameters_with_head", max),
        ("stored_bytes", max),
        ("train_seconds", sum),
        ("peak_bytes", max),
    ):
        by_task = [{seed: run_cost(run, name) for seed, run in row.used(task).items()} for task in tasks]
        seeds = set.intersection(*map(set, by_task)) if by_task else set()
        values = [[of_task[seed] for of_task in by_task] for seed in sorted(seeds)]
        whole = [over_tasks(of_seed) for of_seed in values if None not in of_seed]
        costs[name] = statistics.fmean(whole) if whole else None
    return costs


def run_cost(run: Run, name: str) -> float | None:
    """Return one of the record's costs, None where it isn't there."""
    record = run.record or {}
    counts, memory = part(record, "parameters"), part(record, "peak_memory")
    adapter, head = number(counts.get("adapter")), number(counts.get("head"))
    value = {
        "adapter_parameters": adapter,
        "parameters_with_head": None if adapter is None or head is None else adapter + head,
        "stored_bytes": number(record.get("saved_bytes")),
        "train_seconds": number(part(record, "metrics").get("train_runtime")),
        "peak_bytes": number(memory.get("bytes")),
    }[name]
    return value if value is not None and value >= 0 else None


def memory_kinds(rows: list[Row], tasks: list[str]) -> list[str]:
    """Return how the runs' peak memory was measured."""
    kinds = (part(record, "peak_memory").get("kind") for row in rows for record in row.records(tasks))
    return sorted({printable(kind[:40]) for kind in kinds if isinstance(kind, str)})


def coverage_lines(results: Results) -> list[str]:
    """Say which tasks have no column, and where the average covers fewer seeds or tasks than the table."""
    lines = []
    if results.averaged_tasks != results.tasks:
        tasks = ", ".join(results.averaged_tasks) or "none"
        lines.append(f"avg, training and memory cover the tasks that every row has: {tasks}")
    for row in results.rows:
        n = len(row.seed_averages(results.averaged_tasks))
        if n != results.n_seeds:
            name = "" if len(results.rows) == 1 else f"{row.name}: "
            lines.append(f"{name}avg covers {n} of {results.n_seeds} seeds, those with every task in the table")
    if results.empty_tasks:
        empty = ", ".join(results.empty_tasks)
        lines.append(f"left out of table and average, as no seed has a usable result: {empty}")
    others = [
        task
        for task in TASKS
        if task not in results.tasks + results.empty_tasks
        and any((row.root / str(seed) / task).is_dir() for row in results.rows for seed in results.seeds)
    ]
    if others:
        lines.append(f"there, but not part of this table: {', '.join(others)}")
    return lines


def health_lines(results: Results) -> list[str]:
    """Return one line for everything about the runs that a reader of the table has to know, with its folder."""
    # A task whose runs are all broken or dropped has no column, but still a reason.
    tasks = [
        *results.tasks,
        *(task for task in results.empty_tasks if any(is_there(row, task) for row in results.rows)),
    ]
    runs = [run for row in results.rows for task in tasks for run in row.runs[task].values()]
    lines = [faulty_line(run) for run in runs if run.fault is not None]
    for kind, reason_of in (("diverged", divergence), ("collapsed", collapse)):
        for run in runs:
            reason = reason_of(run) if run.fault is None else None
            if reason is not None:
                counts = "dropped" if run.dropped else "counted"
                lines.append(f"{kind}, {counts}: {printable(str(run.folder))} ({reason})")
    for row in results.rows:
        lines += [f"differs from its row: {line}" for line in different_lines(row, results.tasks)]
    return (lines or [f"nothing found in {plural(len(runs), 'run')}"]) + unchecked_lines(runs)


def faulty_line(run: Run) -> str:
    """Return a line on a run without a score: missing, diverged, failed, or with a file that can't be used."""
    folder, reason = printable(str(run.folder)), run.fault.reason
    if reason == MISSING:
        return f"missing: {folder}"
    if run.fault.kind is not None:
        return f"{'diverged' if run.fault.kind == 'diverged' else 'failed'}: {folder} ({reason})"
    return f"{'unusable' if divergence(run) is None else 'diverged'}: {folder} ({reason})"


def unchecked_lines(runs: list[Run]) -> list[str]:
    """Say which checks had nothing to go by."""
    scored = [run for run in runs if run.score is not None]
    no_record = sum(run.record is None for run in scored)
    no_share = sum(
        number(run.metrics.get("eval_accuracy")) is not None and majority_share(run) is None for run in scored
    )
    arguments = [f"the arguments of {plural(no_record, 'run')} (no {RECORD_FILE})"] if no_record else []
    shares = [f"whether {plural(no_share, 'run')} collapsed (no eval_majority_share)"] if no_share else []
    return [f"not checked: {' and '.join(arguments + shares)}"] if arguments or shares else []


def different_lines(row: Row, tasks: list[str]) -> list[str]:
    """Return a line for each run that was made in another way than most of its row: folder and arguments."""
    found: dict[Path, list[str]] = {}
    everything: dict[Path, dict[str, str]] = {}
    for task in tasks:
        runs = {seed: run for seed, run in row.used(task).items() if run.record is not None}
        settings = {run.folder: settings_of(run.record) for run in runs.values()}
        collect_outliers(settings, lambda name: name not in SAME_IN_ALL_TASKS, found)
        everything |= settings
        for seed, run in runs.items():
            recorded = number(part(run.record, "arguments").get("seed"))
            if recorded is not None and recorded != seed:  # a copied folder is no second run
                found.setdefault(run.folder, []).append(f"its seed is {recorded:g}")
    collect_outliers(everything, lambda name: name in SAME_IN_ALL_TASKS, found)
    return [f"{printable(str(folder))}: {'; '.join(details)}" for folder, details in sorted(found.items())]


def row_differences(first: Row, second: Row, tasks: list[str]) -> list[str]:
    """Return in what the runs of two rows differ, seed by seed, as `rank 4 / 64`: a comparison is of all of it."""
    found: dict[str, dict[str, None]] = {}
    for task in tasks:
        ours, theirs = first.used(task), second.used(task)
        for seed in ours.keys() & theirs.keys():
            if ours[seed].record is None or theirs[seed].record is None:
                continue
            settings = settings_of(ours[seed].record), settings_of(theirs[seed].record)
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


def settings_of(record: dict[str, Any]) -> dict[str, str]:
    """Return what made the run's numbers, each value as JSON."""
    arguments, adapter, base = (part(record, name) for name in ("arguments", "adapter_config", "base_model"))
    # With --selection_fraction each seed trains on other rows, as it should.
    compared = ("validation",) if arguments.get("selection_fraction") else ("train", "validation")
    values = {f"{split} data": part(record, "data_sha256").get(split) for split in compared}
    values["base model"] = base.get("sha256") or base.get("name")
    values |= {name: record.get(name) for name in ("precision", "processes")}
    values = {name: value for name, value in values.items() if value is not None}
    values |= {name: value for name, value in arguments.items() if is_compared(name)}
    values |= {f"adapter_config.{name}": value for name, value in adapter.items() if is_compared(name)}
    values["starts from an adapter"] = bool(arguments.get("init_adapter_from"))
    try:
        return {name: json.dumps(value, sort_keys=True) for name, value in values.items()}
    except RecursionError:
        return {}


def is_compared(name: str) -> bool:
    """Say whether an argument, or a setting of an adapter's config, can move a score."""
    return name not in ADAPTER_ORIGIN and kind_of(name) not in UNCOMPARED_KINDS


def collect_outliers(
    settings: dict[Path, dict[str, str]], concerns: Callable[[str], bool], found: dict[Path, list[str]]
) -> None:
    """Add to `found` every value that differs from the most frequent one (at a tie, from the first)."""
    for name in sorted({name for values in settings.values() for name in values if concerns(name)}):
        values = {folder: of_run[name] for folder, of_run in settings.items() if name in of_run}
        usual = Counter(values.values()).most_common(1)[0][0]
        for folder, value in values.items():
            if value != usual:
                detail = f"{printable(name[:60])} {shortened(value)}, not {shortened(usual)}"
                found.setdefault(folder, []).append(detail)


def shortened(text: str) -> str:
    """Return at most 40 characters; hashes are told apart by fewer."""
    return text if len(text) <= 40 else f"{text[:37]}..."
