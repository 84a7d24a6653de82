"""Folders of results -> rows of runs, as the options of parse_results.py and plot_results.py ask for them.

A row is a folder with a folder <seed>/<task>/ in it for each run.
"""

import argparse
import os
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glue_peft.errors import UsageError
from glue_peft.run_folder import (
    COMMAND_FILE,
    FAILURE_FILE,
    JOB_LOG,
    OLD_FAILURE_FILE,
    OLD_JOB_LOG,
    RECORD_FILE,
    SEARCH,
    TUNED_RECIPE,
)
from glue_peft.tables.collapse import collapse, divergence
from glue_peft.tables.read import EPOCHS, Run, UnusableFileError, printable, read_run, reported_metric
from glue_peft.tasks import LOWER_IS_BETTER, METRICS, PAPER_TASKS, TASKS, main_metric

STSB_METRICS = TASKS["stsb"].metrics + ("combined_score",)
MOST_SEEDS = 9999
MOST_LEVELS = 3  # of folders above a row
SEEDS_PATTERN = "[0-9][0-9, -]*"
SIGNS_OF_A_RUN = (RECORD_FILE, "eval_results.json", COMMAND_FILE, FAILURE_FILE, OLD_FAILURE_FILE)


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
        return {seed: run.score for seed, run in self.used(task).items() if run.score is not None}

    def columns(self, task: str) -> list[list[float]]:
        """Return the scores behind a cell: one list, for MNLI one of the matched and one of the mismatched set."""
        return [list(values) for values in zip(*(run.parts for run in self.used(task).values()), strict=True)]

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
    def common_tasks(self) -> list[str]:
        """Return the tasks that every row has."""
        return [task for task in self.tasks if all(row.used(task) for row in self.rows)]

    @property
    def averaged_tasks(self) -> list[str]:
        """Return the tasks of the average: those that every row has, in a metric that is a share."""
        return [task for task in self.common_tasks if self.metrics[task] not in LOWER_IS_BETTER]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options on what is read; their values are checked by read_results."""
    parser.add_argument(
        "roots",
        metavar="ROOT",
        nargs="+",
        help="folder of one row, with ROOT/<seed>/<task>/ in it, or of several rows; after the last one may stand "
        "NSEEDS: how many seeds (5: 1 to 5), a range (3-5) or a list (1,3); without it they are all that are there",
    )
    parser.add_argument(
        "--tasks",
        help=f"tasks with commas between them, or `all` (default: {','.join(PAPER_TASKS)} and data of one's own; "
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
    add_names(parser)
    parser.add_argument("--epoch", choices=EPOCHS, default="last", help="whose scores (default: %(default)s)")
    parser.add_argument("--allow_missing", action="store_true", help="use the seeds that are there, and show how many")
    parser.add_argument("--drop_collapsed", action="store_true", help="leave out collapsed and diverged runs")


def add_names(parser: argparse.ArgumentParser) -> None:
    """Add the option on what rows are called."""
    parser.add_argument(
        "--names",
        metavar="ROW=NAME",
        action="append",
        default=[],
        help='what to call a row, such as lora4="LoRA (r=4)"; can be repeated',
    )


def renamed(names: list[str], changes: list[str]) -> list[str]:
    """Return the names with the changes of --names; raises UsageError for rows that aren't there, and equal names."""
    wanted = dict(zip(names, names, strict=True))
    for change in changes:
        name, is_change, new = change.partition("=")
        if not is_change or not new or name not in wanted:
            raise UsageError(f"--names {change}: must be ROW=NAME with ROW one of {', '.join(wanted)}")
        wanted[name] = printable(new)
    if len(set(wanted.values())) < len(wanted):
        raise UsageError(f"--names: two rows would be called the same: {', '.join(wanted.values())}")
    return list(wanted.values())


def read_results(args: argparse.Namespace) -> Results:
    """Read all that the options ask for; raises UsageError, which names every file at fault."""
    roots, seeds = wanted_rows(args.roots)
    own = own_tasks(roots, seeds)
    wanted = wanted_tasks(args.tasks, own)
    metrics = wanted_metrics(args.metric, args.stsb_metric, wanted, own)
    rows = read_rows(roots, seeds, wanted, metrics, args.epoch)
    for row, name in zip(rows, renamed([row.name for row in rows], args.names), strict=True):
        row.name = name
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
    if args.tasks is None and set(tasks) <= set(own):  # nobody expects GLUE's tasks beside data of one's own
        empty = [task for task in empty if any(is_there(row, task) for row in rows)]
    return Results(rows, tasks, empty, metrics, args.epoch, seeds, unusable, args.drop_collapsed)


def wanted_rows(words: list[str]) -> tuple[list[str], list[int]]:
    """Return the rows' folders and the seeds that ROOT... [NSEEDS] asks for; raises UsageError.

    The last word is NSEEDS if it looks like that, or is no folder. Without it the seeds are those that are there.
    """
    *others, last = words
    has_seeds = bool(others) and (re.fullmatch(SEEDS_PATTERN, last) is not None or not os.path.isdir(last))
    seeds = wanted_seeds(last) if has_seeds else []
    roots = [row for root in distinct_roots(others if has_seeds else words) for row in rows_in(root)]
    if not has_seeds:
        seeds = sorted({int(seed) for root in roots for seed in seeds_in(root)})
    if not seeds:
        raise UsageError(
            f"ROOT must be an existing folder that holds <seed>/<task>/eval_results.json, or folders that do, "
            f"not {last!r}"
        )
    return distinct_roots(roots), seeds


def rows_in(root: str, levels: int = MOST_LEVELS) -> list[str]:
    """Return the folders of rows in a folder, in the order of their names; a row, or a folder without any, is itself.

    Folders of searches and hidden ones are left out, and links aren't followed.
    """
    found = []
    if os.path.isdir(root) and not seeds_in(root) and levels:
        children = [entry for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)]
        for child in sorted(children, key=lambda entry: in_numbers(entry.name)):
            path = os.path.join(root, child.name)
            if not child.name.startswith(".") and not is_a_sweep_s(path):
                below = rows_in(path, levels - 1)
                found += below if below != [path] or seeds_in(path) else []
    return found or [root]


def in_numbers(name: str) -> list[tuple[int, str]]:
    """Return what sorts names by the numbers in them: lora8 before lora16."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"([0-9]+)", name)]


def seeds_in(root: str) -> list[str]:
    """Return the folders of seeds in a row's folder: whole numbers, with a run's folder in them."""
    if not os.path.isdir(root):
        return []
    return [
        entry.name
        for entry in os.scandir(root)
        if re.fullmatch("0|[1-9][0-9]{0,9}", entry.name)
        and entry.is_dir()
        and any(os.path.lexists(os.path.join(run, name)) for run in os.scandir(entry) for name in SIGNS_OF_A_RUN)
    ]


def distinct_roots(roots: list[str]) -> list[str]:
    """Return the folders without repeats, so that `x/lora4 x/*` compares all with lora4, and without a sweep's own."""
    kept = [root for root in roots if not is_a_sweep_s(root)]
    if not kept:
        raise UsageError(f"ROOT: no folder of results, only {roots[0]}")
    first = {os.path.abspath(root): root for root in reversed(kept)}
    return [root for root in dict.fromkeys(kept) if root in first.values()]


def is_a_sweep_s(root: str) -> bool:
    """Say whether a path is a file of a sweep, or its folder of searches, beside the rows that `*` stands for."""
    name = os.path.basename(root)
    if not os.path.isdir(root):
        return name in (JOB_LOG, OLD_JOB_LOG, TUNED_RECIPE)
    return name == SEARCH and not any(child.isdecimal() for child in os.listdir(root))


def wanted_seeds(text: str) -> list[int]:
    """Return the seeds of NSEEDS: `5` is 1 to 5, `3-5` a range, `1,3` a list; else raise UsageError."""
    seeds: list[int] = []
    for part_of_list in [f"1-{text}"] if text.isalnum() else re.split(" *, *| +", text.strip()):
        match = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", part_of_list)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < first + MOST_SEEDS:
            seeds = []
            break
        seeds += range(first, last + 1)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(
            f"NSEEDS must be a number of seeds from 1 to {MOST_SEEDS}, a range such as 3-5 or a list such as 1,3 with "
            f"no seed twice, not {text[:40]!r}, and there is no folder of that name"
        )
    return seeds


def seeds_text(seeds: list[int]) -> str:
    """Return `seeds 1 to 5` for consecutive seeds, else all of them."""
    consecutive = len(seeds) > 1 and seeds == list(range(seeds[0], seeds[-1] + 1))
    listed = f"{seeds[0]} to {seeds[-1]}" if consecutive else ", ".join(map(str, seeds))
    return f"seed{'s' * (len(seeds) > 1)} {listed}"


def own_tasks(roots: Iterable[str], seeds: Iterable[int]) -> dict[str, str]:
    """Return the tasks beside GLUE's, data of one's own, that have runs, with the metric that a record names."""
    found: dict[str, str] = {}
    for folder in (os.path.join(root, str(seed)) for root in roots for seed in seeds):
        for entry in os.scandir(folder) if os.path.isdir(folder) else []:
            if entry.name not in TASKS and os.path.lexists(os.path.join(entry.path, RECORD_FILE)):
                found.setdefault(entry.name, reported_metric(Path(entry.path), entry.name))
    return dict(sorted(found.items()))


def wanted_tasks(text: str | None, own: Iterable[str] = ()) -> list[str]:
    """Return the tasks that --tasks names, in its order; without it the paper's, and data of one's own."""
    if text is None:
        return [*PAPER_TASKS, *own]
    allowed = [*TASKS, *own]
    tasks = allowed if text == "all" else text.replace(",", " ").split()
    unknown = [task for task in tasks if task not in allowed]
    if unknown or not tasks or len(set(tasks)) < len(tasks):
        raise UsageError(f"--tasks {text}: allowed are `all` or some of {', '.join(allowed)}, each once")
    return tasks


def wanted_metrics(
    changes: list[str], stsb_metric: str | None, tasks: list[str], own: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the metric of each task, with the changes of --metric and --stsb_metric, which must be of `tasks`."""
    metrics = {task: main_metric(task) for task in TASKS} | dict(own or {})
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


def read_rows(roots: list[str], seeds: list[int], tasks: list[str], metrics: dict[str, str], epoch: str) -> list[Row]:
    """Read every task and seed of every ROOT; raises UsageError where one is no folder."""
    for root in roots:
        if not os.path.isdir(root):
            raise UsageError(
                f"ROOT must be an existing folder that holds <seed>/<task>/eval_results.json, not {root!r}"
            )
    rows = []
    for name, folder in zip(row_names(roots), map(Path, roots), strict=True):
        runs = {
            task: {seed: read_run(folder / str(seed) / task, task, metrics[task], epoch) for seed in seeds}
            for task in tasks
        }
        rows.append(Row(name, folder, runs))
    refuse_repeated_files(rows)
    return rows


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
    """Say whether any seed has left anything of the task."""
    return any(run.fault is None or not run.fault.is_missing for run in row.runs[task].values())


def unusable_lines(rows: list[Row], tasks: list[str], and_missing: bool) -> list[str]:
    """Return one line for each file of `tasks` that can't be used and, where asked for, each that is missing."""
    return [
        f"  {printable(str(run.fault.path))}: {run.fault.reason}"
        for row in rows
        for task in tasks
        for run in row.runs[task].values()
        if run.fault is not None and (and_missing or not run.fault.is_missing)
    ]


def drop_collapsed(rows: list[Row]) -> None:
    """Mark collapsed and diverged runs, whose scores then no longer count."""
    for row in rows:
        for task in row.runs:
            for run in row.used(task).values():
                run.dropped = (collapse(run) or divergence(run)) is not None
