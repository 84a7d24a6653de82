"""What a sweep says beside its runs' output: what will run and where, the time left, how it ended, what comes next."""

import contextlib
import os
import shlex
import shutil
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

from glue_peft.flags import given_flags
from glue_peft.grid import Run, prefix, python_of, read_choices, recipe_of, root_of
from glue_peft.recipe import read_header
from glue_peft.run_folder import plural
from glue_peft.tables.collapse import collapse, divergence
from glue_peft.tables.formats import duration
from glue_peft.tables.read import read_run, reported_metric
from glue_peft.tasks import PAPER_TASKS

# What a finished run leaves, in bytes: tokenizer 4 MB, head 2 to 4 MB, adapter 1 to 8 MB, records, for RoBERTa-base
# and -large. Full fine-tuning leaves the model's weights in its place.
ADAPTER_RUN = 15e6
FULL_RUN = {"FacebookAI/roberta-base": 0.5e9, "FacebookAI/roberta-large": 1.43e9}


def opening(
    runs: list[Run],
    waiting: list[Run],
    outcomes: list[tuple[str, str, str]],
    n_slots: int,
    may_share_gpus: bool,  # each run has one for itself
    root: str,
) -> list[str]:
    """Return what a sweep will run and where, how much is finished, at how many a time and on how much disk."""
    flags = [given_flags(run.flags) for run in runs]
    models = distinct(str(given["model_name_or_path"]) for given in flags)
    adapters = distinct(adapter_name(given) for given in flags)
    seeds, tasks = as_ranges(sorted({int(run.seed) for run in runs})), distinct(run.task for run in runs)
    finished = [folder for outcome, folder, _ in outcomes if outcome == "finished"]
    at_a_time = "one at a time" if n_slots == 1 else f"{n_slots} at a time"
    if may_share_gpus:
        at_a_time += " (several may share a GPU: JOBS_PER_GPU=4)"
    return [
        f"train_all.sh: {plural(len(runs), 'run')} into {root}: models {models}; adapters {adapters}; tasks {tasks}; "
        f"seeds {seeds}",
        f"train_all.sh: {len(finished)} finished, {len(waiting)} to run"
        + (f", {at_a_time}; {disk_text(waiting, finished, root)}" if waiting else ""),
    ]


def borrowed_values(settings: Mapping[str, str], flags: list[str]) -> list[str]:
    """Say of each adapter that the recipe lacks whose row it takes, and with which learning rate."""
    given = given_flags(flags)
    rates: dict[tuple[str, str], list[str]] = {}
    for choice in read_choices(settings, flags):
        if choice.row["adapter"] != choice.values_of:
            rates.setdefault((choice.row["adapter"], choice.values_of), []).append(choice.row["learning_rate"])
    lines = []
    for (adapter, lender), of_rows in rates.items():
        if "learning_rate" in given:
            rate = f"but for the learning rate, {given['learning_rate']}"
        elif settings.get("TUNE"):
            own = f"{'' if ' ' in of_rows[0] else 'multiples of '}{distinct(of_rows)}"
            rate = f"its learning rate searched: {settings.get('LEARNING_RATES') or own}"
        else:
            rate = f"also its learning rate, {distinct(of_rows)}; --learning_rate or TUNE=1 for another one"
        lines.append(f"train_all.sh: {adapter} takes the row of {lender} in {recipe_of(settings)}, {rate}")
    return lines


def distinct(values: Iterable[str]) -> str:
    """Return the different values in their order, with spaces between them."""
    return " ".join(dict.fromkeys(values))


def adapter_name(flags: Mapping[str, object]) -> str:
    """Return how a run's adapter is called in ADAPTERS, or its file's name."""
    if "adapter_config" in flags:
        return Path(str(flags["adapter_config"])).name
    return f"{flags['adapter_name']}:{flags['rank']}" if "rank" in flags else str(flags["adapter_name"])


def disk_text(waiting: list[Run], finished: list[str], root: str) -> str:
    """Say about how much disk the runs will take, by what it was taken from, and how much is free."""
    if finished:
        needed = statistics.median(map(size_of_folder, finished)) * len(waiting)
        source = f"as the {plural(len(finished), 'finished run')}"
    else:
        needed = sum(map(expected_size, waiting))
        source = "by the adapters' and models' usual sizes"
    place = Path(root).absolute()
    free = shutil.disk_usage(next(path for path in (place, *place.parents) if os.path.isdir(path))).free
    are = "only " if free < needed else ""
    return f"about {in_bytes(needed)} of disk ({source}), {are}{in_bytes(free)} free"


def size_of_folder(folder: str) -> int:
    """Return the bytes of a folder's files."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # gone by now
                size += os.lstat(os.path.join(parent, name)).st_size
    return size


def expected_size(run: Run) -> float:
    """Return about how many bytes a run will leave; a model that isn't known and isn't here counts as RoBERTa-base."""
    flags = given_flags(run.flags)
    if flags.get("adapter_name") != "none" and "save_merged" not in flags:
        return ADAPTER_RUN
    model = str(flags["model_name_or_path"])
    here = size_of_folder(model)  # a model's folder may hold its weights in several formats
    return ADAPTER_RUN + (here or FULL_RUN.get(model, FULL_RUN["FacebookAI/roberta-base"]))


def in_bytes(number: float) -> str:
    """Return a number of bytes as one reads it: 150 MB, 2.7 GB."""
    return f"{number / 1e6:.0f} MB" if number < 1e9 else f"{number / 1e9:.1f} GB"


def time_left(seconds: list[float], n_left: int, n_slots: int) -> str:
    """Return the time left: the median of a sweep's whole runs, times what is left, over the runs at a time."""
    if not seconds or not n_left:
        return ""
    return f", about {duration(statistics.median(seconds) * n_left / min(n_slots, n_left))} left"


def summary(outcomes: list[tuple[str, str, str]], n_waiting: int) -> list[str]:
    """Return how a sweep ended: counts, and each run that needs somebody's attention with its reason."""
    found = [outcome for outcome, _, _ in outcomes]
    done, finished, failed = (found.count(outcome) for outcome in ("done", "finished", "failed"))
    diverged = found.count("diverged")
    lines = [f"train_all.sh: {done} done, {finished} skipped as finished, {failed} failed"]
    lines[0] += f", {diverged} diverged in the search" * (diverged > 0)
    forms = {
        "stopped": "stopped, to be resumed by the next sweep: {0}",
        "elsewhere": "left to another sweep: {0}",
        "other": "refused: {0} holds another run: {1}; TAG=_new or RESULTS gives this one a folder of its own",
        "failed": "failed: {0} {1}",
    }
    for outcome, form in forms.items():
        lines += [form.format(folder, detail) for other, folder, detail in outcomes if other == outcome]
    if n_waiting:
        were = "was" if n_waiting == 1 else "were"
        lines.append(f"{plural(n_waiting, 'run')} {were} not started: start the sweep again")
    return lines


def closing(runs: list[Run], outcomes: list[tuple[str, str, str]], settings: Mapping[str, str]) -> list[str]:
    """Return which of these runs, if they are of this sweep, learnt nothing, and the command for their table."""
    tasks = {run.folder: run.task for run in runs}
    lines = []
    for outcome, folder, _ in outcomes:
        if outcome == "done" and folder in tasks:
            metric = reported_metric(Path(folder), tasks[folder])
            run = read_run(Path(folder), tasks[folder], metric, "last")
            lines += [f"diverged: {folder} ({reason})" for reason in [divergence(run)] if reason]
            lines += [f"collapsed: {folder} ({reason})" for reason in [collapse(run)] if reason]
    if any(outcome in ("done", "finished") and folder in tasks for outcome, folder, _ in outcomes):
        lines.append(f"the table: {table_command(runs, settings)}")
        lines += against_the_paper(settings)
    return lines


def table_command(runs: list[Run], settings: Mapping[str, str]) -> str:
    """Return the command that prints the table of a grid."""
    roots = dict.fromkeys(run.folder.rsplit("/", 2)[0] for run in runs)
    tasks = list(dict.fromkeys(run.task for run in runs))
    seeds = as_ranges(sorted({int(run.seed) for run in runs}))
    if seeds.isdecimal():
        seeds = f"{seeds}-{seeds}"  # a number alone would be how many
    header = read_header(recipe_of(settings))
    command = [python_of(settings), f"{prefix()}parse_results.py", *roots, seeds]
    command += ["--tasks", ",".join(tasks)] if set(tasks) != set(PAPER_TASKS) else []
    command += ["--statistic", header.statistic] if header.statistic != "mean" else []
    return shlex.join(command + (["--epoch", header.epoch] if header.epoch != "last" else []))


def against_the_paper(settings: Mapping[str, str]) -> list[str]:
    """Return the command that holds a recipe against its paper; nothing for the grid, or without published rows."""
    header = read_header(recipe_of(settings))
    is_a_paper_s = bool(header.published or header.published_seeds) and not settings.get("TUNE")
    if not settings.get("RECIPE") or not is_a_paper_s:
        return []
    command = [
        python_of(settings),
        f"{prefix()}parse_results.py",
        "--reproduce",
        settings["RECIPE"],
        root_of(settings),
    ]
    return [f"against the paper: {shlex.join(command)}"]


def as_ranges(numbers: list[int]) -> str:
    """Return ascending numbers as Slurm's --array takes them: 1-3,7."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
