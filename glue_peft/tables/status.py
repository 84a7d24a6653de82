"""How far a sweep is: the state of every run, why runs failed, and the time left."""

import os
import statistics
from dataclasses import dataclass
from pathlib import Path

from glue_peft.errors import UsageError
from glue_peft.run_folder import (
    COMMAND_FILE,
    checkpoints,
    is_running,
    last_words,
    log_lines,
    plural,
    read_failure,
)
from glue_peft.tables.formats import duration
from glue_peft.tables.read import number, part, printable, read_run, reported_metric
from glue_peft.tables.results import distinct_roots, own_tasks, row_names, seeds_text
from glue_peft.tasks import PAPER_TASKS, TASKS

STATES = ("finished", "running", "failed", "missing")


@dataclass
class RunState:
    """How far one run is."""

    row: str
    task: str
    folder: Path
    state: str  # one of STATES
    detail: str = ""
    seconds: float | None = None  # of a finished run


def status_lines(roots: list[str], seeds: list[int], tasks: list[str] | None) -> list[str]:
    """Return the state of every run of every ROOT: a table, why runs failed, and the time left.

    Without `tasks` they are those that left a trace, else the paper's. Raises UsageError.
    """
    roots = distinct_roots(roots)
    for root in roots:
        if os.path.lexists(root) and not os.path.isdir(root):
            raise UsageError(f"ROOT must be a folder, or not be there yet, not {root!r}")
    there = [
        task
        for task in [*TASKS, *own_tasks(roots, seeds)]
        if any(os.path.isdir(os.path.join(root, str(seed), task)) for root in roots for seed in seeds)
    ]
    tasks = (there or PAPER_TASKS) if tasks is None else tasks
    runs = [
        state_of(name, task, Path(root) / str(seed) / task)
        for name, root in zip(row_names(roots), roots, strict=True)
        for task in tasks
        for seed in seeds
    ]
    lines = [f"{' / '.join(STATES)}, of {seeds_text(seeds)}", *status_table(runs)]
    lines += [f"failed: {printable(str(run.folder))}: {run.detail}" for run in runs if run.state == "failed"]
    stopped = [run for run in runs if run.state == "missing" and run.detail]
    lines += [f"stopped: {printable(str(run.folder))}: {run.detail}" for run in stopped]
    left_out = [task for task in there if task not in tasks]
    lines += [f"there, but not asked for: {', '.join(left_out)}"] if left_out else []
    return [*lines, time_left(runs)]


def status_table(runs: list[RunState]) -> list[str]:
    """Return a line for each row with the counts of each task, and the sums."""

    def counts(row: str | None, task: str | None) -> str:
        """Return how many runs are in each state; None stands for every row or task."""
        states = [run.state for run in runs if row in (None, run.row) and task in (None, run.task)]
        return "/".join(str(states.count(state)) for state in STATES)

    names = [*dict.fromkeys(run.row for run in runs), None]
    tasks = [*dict.fromkeys(run.task for run in runs), None]
    cells = [["name", *(task or "all" for task in tasks)]]
    cells += [[name or "all", *(counts(name, task) for task in tasks)] for name in names]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [" | ".join(map(str.ljust, line, widths)).rstrip() for line in cells]


def state_of(row: str, task: str, folder: Path) -> RunState:
    """Find out how far one run is.

    A run that was stopped on purpose, and one that was killed after it had saved, count as missing and will be
    resumed. One that ended otherwise without a result has failed.
    """
    if is_running(folder):
        return RunState(row, task, folder, "running")
    run, saved = read_run(folder, task, reported_metric(folder, task), "last"), checkpoints(folder)
    evaluated = part(run.record or {}, "arguments").get("do_eval") is not False
    if run.record is not None and (run.score is not None or not evaluated):
        return RunState(row, task, folder, "finished", seconds=number(run.record.get("seconds")))
    fault, failure = run.fault, run.fault.failure if run.fault is not None else None
    was_killed = bool(saved) and failure is not None and failure.kind == "killed"
    if fault is not None and (run.record is not None or not fault.is_missing) and not was_killed:
        detail = f"{fault.path.name}: {fault.reason}" if failure is None else str(failure)
        return RunState(row, task, folder, "failed", detail)
    if saved or read_failure(folder) is not None:  # which is a stop
        return RunState(row, task, folder, "missing", f"to be resumed from {saved[0].name if saved else 'the start'}")
    if log_lines(folder) or (folder / COMMAND_FILE).is_file():
        return RunState(row, task, folder, "failed", printable(last_words(folder)[:300]))
    return RunState(row, task, folder, "missing")


def time_left(runs: list[RunState]) -> str:
    """Estimate the time left: for each run without a result the median seconds of those most like it.

    These are the finished runs of its row and task, else those of its task, else all. What a running or stopped run
    has done already isn't known, so that the estimate is rather too long.
    """
    finished = [run for run in runs if run.seconds is not None and run.seconds >= 0]
    unfinished = [run for run in runs if run.state != "finished"]
    if not unfinished:
        return "time left: none, all runs are finished"
    if not finished:
        return "time left: not known, as no run is finished"
    total = 0.0
    for run in unfinished:
        of_task = [other for other in finished if other.task == run.task]
        alike = [other for other in of_task if other.row == run.row] or of_task or finished
        total += statistics.median(other.seconds or 0 for other in alike)
    left = plural(len(unfinished), "run")
    text = f"time left: about {duration(total)} (h:mm:ss) for {left} in a row"
    running = sum(run.state == "running" for run in runs)
    if running:
        text += f", {duration(total / running)} with {running} at once"
    return f"{text}; medians of {plural(len(finished), 'finished run')}"
