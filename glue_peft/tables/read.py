"""One run's folder -> its score and how it was made, or why it has none.

A run's folder has the eval_results.json and run.json that run_glue.py writes. Needs Python's standard library alone.
"""

import json
import os
import re
import stat
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glue_peft.run_folder import FAILURE_FILE, OLD_FAILURE_FILE, RECORD_FILE, Failure, read_failure, read_json
from glue_peft.tasks import METRICS, TASKS, main_metric, result_keys

NEVER_NEGATIVE = ("accuracy", "f1", "mse")
EPOCHS = {
    "last": "last epoch",
    "best": "best epoch, chosen on the reported set itself",
    "selected": "epoch selected on held-out training rows",
    "held_out": "last epoch, on the held-out training rows themselves",
}
SCORES_ARE_WRITTEN_WITH = {"last": "", "best": " (--eval_strategy epoch)", "selected": " (--selection_fraction)"}
MOST_BYTES = 2**26  # far above any record, and read in a second
MISSING = "missing"
STATE_FILE = "trainer_state.json"


class UnusableFileError(Exception):
    """A file that can't give a run's score, and why; `failure` is what the run itself noted."""

    def __init__(self, path: Path, reason: str, failure: Failure | None = None) -> None:
        """Keep them apart, as they are printed apart."""
        super().__init__(path, reason)
        self.path, self.reason, self.failure = path, reason, failure

    @property
    def is_missing(self) -> bool:
        """Say whether there is no file, rather than a useless one."""
        return self.reason == MISSING


@dataclass
class Run:
    """One seed of one task."""

    folder: Path
    task: str
    score: float | None = None  # a fraction (an mse: a hundredth of it); of MNLI the mean of the two
    parts: tuple[float, ...] = ()  # MNLI: matched and mismatched
    metrics: dict[str, Any] = field(default_factory=dict)  # of the epoch asked for
    record: dict[str, Any] | None = None  # run.json
    source: Path | None = None  # the file with the score
    epoch_known: bool = True  # whether the score is known to be that of the epoch asked for
    fault: UnusableFileError | None = None  # why there is no score
    dropped: bool = False  # by --drop_collapsed


def read_run(folder: Path, task: str, metric: str, epoch: str) -> Run:
    """Read one run; what can't be used leaves a fault in place of the score."""
    run = Run(folder, task)
    try:
        run.record = read_record(folder, task)
        failure = read_failure(folder) if run.record is None else None
        if failure is not None and failure.kind != "stopped":
            raise failed(folder, Failure(failure.kind, printable(failure.message)))
        run.metrics, run.source, run.epoch_known = read_metrics(folder, run.record, epoch)
        keys = result_keys(task, metric)[: 1 if epoch == "held_out" else None]  # MNLI's are of one kind there
        run.parts = tuple(take_score(run.source, run.metrics, key, metric) for key in keys)
        run.score = statistics.fmean(run.parts)
    except UnusableFileError as error:
        run.fault = error
    return run


def reported_metric(folder: Path, task: str) -> str:
    """Return what a run reports: a GLUE task's metric, or of data of one's own what its record names."""
    if task in TASKS:
        return main_metric(task)
    record = read_json(folder / RECORD_FILE) or {}
    named = str(part(record, "scores").get("metric")).removeprefix("eval_").removeprefix("selection_")
    is_regression = "eval_mse" in part(record, "metrics")
    return named if named in METRICS else main_metric(None, is_regression)


def failed(folder: Path, failure: Failure) -> UnusableFileError:
    """Return the fault of a run that has said itself why it has no results."""
    name = FAILURE_FILE if (folder / FAILURE_FILE).exists() else OLD_FAILURE_FILE
    reason = str(failure) if failure.kind == "diverged" else f"failed: {failure}"
    return UnusableFileError(folder / name, reason, failure)


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
        if error.is_missing:
            return None
        raise
    named = part(record, "arguments").get("task_name")
    if isinstance(named, str) and named.lower() != task:
        raise UnusableFileError(path, f"belongs to task {printable(named[:40])}")
    return record


def read_metrics(folder: Path, record: dict[str, Any] | None, epoch: str) -> tuple[dict[str, Any], Path, bool]:
    """Return metrics, the file that they stand in, and whether the epoch asked for is known to be theirs.

    run.json's `scores` has every epoch's. Without it eval_results.json has those of the model that was evaluated: the
    last epoch's, unless the run loaded the best one, which Trainer's own trainer_state.json may tell. Raises
    UnusableFileError, also where they are known to be another epoch's.
    """
    results_path, record_path = folder / "eval_results.json", folder / RECORD_FILE
    if epoch == "held_out":
        last = part(part(record or {}, "scores"), "last")
        if not on_held_out_rows(last):
            reason = "has no scores on held-out rows (--selection_fraction)" if record is not None else MISSING
            raise UnusableFileError(record_path, reason)
        return {"epoch": last.get("epoch"), **on_held_out_rows(last)}, record_path, True
    if record is not None and record.get("scores") is not None:
        scores = record["scores"]
        chosen = scores.get(epoch) if isinstance(scores, dict) else None
        if not isinstance(chosen, dict):
            raise UnusableFileError(record_path, f"has no scores of the {epoch} epoch{SCORES_ARE_WRITTEN_WITH[epoch]}")
        if epoch == "best" and part(record, "arguments").get("eval_strategy") in (None, "no"):
            raise UnusableFileError(record_path, "has the last epoch's scores alone (--eval_strategy epoch)")
        return chosen, record_path, True
    if epoch == "last" and record is not None:
        arguments = part(record, "arguments")
        if arguments.get("load_best_model_at_end"):
            raise UnusableFileError(record_path, "has no scores, and eval_results.json is the best epoch's")
        return read_object(results_path), results_path, arguments.get("do_train") is not False
    if record is None and epoch != "selected":
        metrics = read_object(results_path)
        evaluated = evaluated_epochs(read_trainer_state(folder), metrics)
        if epoch in evaluated or (not evaluated and epoch == "last"):
            return metrics, results_path, epoch in evaluated
        if "best" in evaluated:
            raise UnusableFileError(results_path, f"is the best epoch's, as {STATE_FILE} says (--epoch best)")
    if record is None and not os.path.lexists(results_path):
        raise UnusableFileError(results_path, MISSING)
    reason = f"has no scores of the {epoch} epoch{SCORES_ARE_WRITTEN_WITH[epoch]}"
    raise UnusableFileError(record_path, reason if record is not None else f"is missing, so the run {reason}")


def on_held_out_rows(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of the rows of --selection_fraction under the names that a validation set's have."""
    prefix = "selection_"
    return {f"eval_{name.removeprefix(prefix)}": value for name, value in metrics.items() if name.startswith(prefix)}


def read_trainer_state(folder: Path) -> dict[str, Any] | None:
    """Return Trainer's trainer_state.json, None where there is none that can be read."""
    try:
        return read_object(folder / STATE_FILE)
    except UnusableFileError:
        return None


def evaluated_epochs(state: dict[str, Any] | None, metrics: dict[str, Any]) -> set[str]:
    """Return which epoch's model was evaluated after training, `last` or `best` or both; empty where it isn't known.

    Trainer notes a best checkpoint where it loads it at the end (--load_best_model_at_end), and elsewhere too. Which
    model was evaluated is then told by the loss, which the log has for every evaluation in training.
    """
    if state is None or not isinstance(state.get("log_history"), list):
        return set()
    checkpoint = state.get("best_model_checkpoint")
    if checkpoint is None:
        return {"last"}
    evaluations = [entry for entry in state["log_history"] if isinstance(entry, dict) and "eval_loss" in entry]
    loss, last = number(metrics.get("eval_loss")), number(state.get("global_step"))
    steps = {number(entry.get("step")) for entry in evaluations if loss is not None and entry["eval_loss"] == loss}
    match = re.search(r"-(\d{1,18})/?$", str(checkpoint))
    best = float(match[1]) if match else None
    return {name for name, step in (("last", last), ("best", best)) if step is not None and step in steps}


def take_score(path: Path, metrics: dict[str, Any], key: str, metric: str) -> float:
    """Return one score, or raise UnusableFileError where it is no number in the metric's range."""
    if key not in metrics:
        raise UnusableFileError(path, f"has no {key}")
    score = metrics[key]
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise UnusableFileError(path, f"{key} is not a number but {type(score).__name__}")
    lowest = 0 if metric in NEVER_NEGATIVE else -1
    # Rounding can carry a correlation just past 1. NaN fails this test, and huge integers need no conversion for it.
    highest = 1e12 if metric == "mse" else 1
    if not lowest <= score <= highest + 1e-6:
        raise UnusableFileError(path, f"{key} is {str(score)[:20]}, not between {lowest} and {highest:g}")
    return score / 100 if metric == "mse" else float(score)  # tables print all scores times 100


def part(record: dict[str, Any], name: str) -> dict[str, Any]:
    """Return one of the record's objects, empty where it isn't there."""
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def number(value: object) -> float | None:
    """Return a value if it is a number of a sane size, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if -1e18 < value < 1e18 else None


def printable(text: str) -> str:
    """Escape what would break a line; bytes of a name that are no UTF-8 leave as they came (surrogateescape)."""
    return "".join(
        char if char.isprintable() or "\udc80" <= char <= "\udcff" else char.encode("unicode_escape").decode()
        for char in text
    )
