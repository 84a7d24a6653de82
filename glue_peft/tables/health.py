"""What a reader of a table has to know about its runs: missing, failed, collapsed, or made in another way."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from glue_peft.run_folder import RECORD_FILE, plural
from glue_peft.tables.collapse import collapse, divergence, evaluated_rows, majority_share
from glue_peft.tables.protocol import settings_of, shortened
from glue_peft.tables.read import Run, UnusableFileError, number, part, printable
from glue_peft.tables.results import Results, Row, is_there, own_tasks
from glue_peft.tasks import LOWER_IS_BETTER, TASKS

UNLIKELY_TWICE = ("eval_loss", "eval_runtime")
SAME_IN_ALL_TASKS = (
    *("base model", "adapter_name", "rank"),
    *("adapter_config.peft_type", "adapter_config.target_modules"),
)


def coverage_lines(results: Results) -> list[str]:
    """Say which tasks have no column, and where the average covers fewer seeds or tasks than the table."""
    lines = []
    if results.common_tasks != results.tasks:
        tasks = ", ".join(results.common_tasks) or "none"
        lines.append(f"avg, training and memory cover the tasks that every row has: {tasks}")
    errors = [task for task in results.tasks if results.metrics[task] in LOWER_IS_BETTER]
    if errors:
        lines.append(f"mean squared errors, the less the better, and no part of avg: {', '.join(errors)}")
    for row in results.rows if results.averaged_tasks else []:
        n = len(row.seed_averages(results.averaged_tasks))
        if n != results.n_seeds:
            name = "" if len(results.rows) == 1 else f"{row.name}: "
            lines.append(f"{name}avg covers {n} of {results.n_seeds} seeds, those with every task in the table")
    if results.empty_tasks:
        empty = ", ".join(results.empty_tasks)
        lines.append(f"left out of table and average, as no seed has a usable result: {empty}")
    others = [
        task
        for task in [*TASKS, *own_tasks([str(row.root) for row in results.rows], results.seeds)]
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
    lines = [faulty_line(run, run.fault) for run in runs if run.fault is not None]
    for kind, reason_of in (("diverged", divergence), ("collapsed", collapse)):
        for run in runs:
            reason = reason_of(run) if run.fault is None else None
            if reason is not None:
                counts = "dropped" if run.dropped else "counted"
                lines.append(f"{kind}, {counts}: {printable(str(run.folder))} ({reason})")
    lines += hopeless_lines(results)
    lines += repeated_lines(runs)
    for row in results.rows:
        lines += [f"differs from its row: {line}" for line in different_lines(row, results.tasks, results.epoch)]
        lines += [line for task in results.tasks for line in short_lines(row, task)]
    return (lines or [f"nothing found in {plural(len(runs), 'run')}"]) + unchecked_lines(runs)


def faulty_line(run: Run, fault: UnusableFileError) -> str:
    """Return a line on a run without a score: missing, diverged, failed, or with a file that can't be used."""
    folder, failure = printable(str(run.folder)), fault.failure
    if fault.is_missing:
        return f"missing: {folder}"
    if failure is not None and failure.kind == "diverged":
        return f"diverged: {folder} ({failure.message})"
    if failure is not None:
        return f"failed: {folder} ({failure})"
    return f"{'unusable' if divergence(run) is None else 'diverged'}: {folder} ({fault.reason})"


def hopeless_lines(results: Results) -> list[str]:
    """Return a line for each row and task of which all runs, two at least, collapsed or diverged."""
    return [
        f"no run of {row.name} on {task} learnt anything: its score there says that these settings fail, "
        "not how good the method is"
        for row in results.rows
        for task in results.tasks
        if len(used := row.used(task).values()) > 1 and all(collapse(run) or divergence(run) for run in used)
    ]


def repeated_lines(runs: list[Run]) -> list[str]:
    """Return a line for each run that has another seed's score and loss (or time) to all digits: one file, copied."""
    first: dict[tuple[object, ...], Run] = {}
    lines = []
    for run in runs:
        name = next((name for name in UNLIKELY_TWICE if number(run.metrics.get(name)) is not None), None)
        if run.score is None or name is None:
            continue
        same = first.setdefault((run.folder.parents[1], run.task, run.score, name, run.metrics[name]), run)
        if same is not run:
            counts = "dropped" if run.dropped else "counted"
            folders = f"{printable(str(run.folder))} (score and {name} of {printable(str(same.folder))})"
            lines.append(f"repeated, {counts}: {folders}")
    return lines


def short_lines(row: Row, task: str) -> list[str]:
    """Return a line where runs without a record were evaluated on another number of rows than GLUE has."""
    rows = Counter(evaluated_rows(run) for run in row.used(task).values() if run.record is None).most_common(1)
    usual, whole = rows[0][0] if rows else None, TASKS[task].validation_rows if task in TASKS else ()
    if usual is None or not whole or usual == whole[0]:
        return []
    return [f"evaluated on {usual:.0f} rows, where GLUE's {task} has {whole[0]}: {printable(str(row.root))}"]


def unchecked_lines(runs: list[Run]) -> list[str]:
    """Say which checks had nothing to go by."""
    scored = [run for run in runs if run.score is not None]
    bare = [run for run in scored if run.record is None]
    no_share = sum(is_of_accuracy(run) and majority_share(run) is None for run in scored)
    no_loss = sum(not any(number(run.metrics.get(name)) is not None for name in UNLIKELY_TWICE) for run in bare)
    unchecked = {
        f"arguments (no {RECORD_FILE}: {{}})": len(bare),
        "epochs (no epoch: {})": sum("epoch" not in run.metrics for run in bare),
        "rows (no eval_samples: {})": sum(evaluated_rows(run) is None for run in bare),
        "copies (no eval_loss: {})": no_loss,
        "collapse (no eval_majority_share: {})": no_share,
    }
    said = [text.format(plural(count, "run")) for text, count in unchecked.items() if count]
    return [f"not checked: {', '.join(said)}"] if said else []


def is_of_accuracy(run: Run) -> bool:
    """Say whether a run has an accuracy, which collapse is judged by."""
    return "accuracy" in TASKS[run.task].metrics if run.task in TASKS else "eval_accuracy" in run.metrics


def different_lines(row: Row, tasks: list[str], epoch: str) -> list[str]:
    """Return a line for each run that was made in another way than most of its row: folder and arguments."""
    found: dict[Path, list[str]] = {}
    everything: dict[Path, dict[str, str]] = {}
    for task in tasks:
        measured = {run.folder: measured_values(run, epoch) for run in row.used(task).values()}
        collect_outliers(measured, lambda name: True, found)
        records = {run.folder: (seed, run.record) for seed, run in row.used(task).items() if run.record is not None}
        settings = {folder: settings_of(record) for folder, (_, record) in records.items()}
        collect_outliers(settings, lambda name: name not in SAME_IN_ALL_TASKS, found)
        everything |= settings
        for folder, (seed, record) in records.items():
            recorded = number(part(record, "arguments").get("seed"))
            if recorded is not None and recorded != seed:  # a copied folder is no second run
                found.setdefault(folder, []).append(f"its seed is {recorded:g}")
    collect_outliers(everything, lambda name: name in SAME_IN_ALL_TASKS, found)
    return [f"{printable(str(folder))}: {'; '.join(details)}" for folder, details in sorted(found.items())]


def measured_values(run: Run, epoch: str) -> dict[str, str]:
    """Return what the files say beside the score: the rows that gave it and, of a last epoch, how many there were."""
    epochs = number(run.metrics.get("epoch")) if epoch == "last" else None
    values = {"epoch": epochs, "eval_samples": evaluated_rows(run)}
    return {name: f"{value:g}" for name, value in values.items() if value is not None}


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
