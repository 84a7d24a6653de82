"""eval_predictions.npz: what a run answered on every validation row, for statistics over rows.

    arrays = load(folder / "eval_predictions.npz")  # None where there is none
    arrays["idx"], arrays["label"]  # [rows]
    arrays["last"], arrays["last_epoch"]  # float32 [rows, outputs], and a number; the same of "best" and "selected"

Row i of each array is row idx[i] of the split, counted from 0 after rows without a label were left out. Labels and
the outputs' columns are in the order of the task's labels, whatever the model's. Needs no torch, as tables read it.
"""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glue_peft.errors import UsageError, first_line
from glue_peft.record import Scores, history_of
from glue_peft.run_folder import PREDICTIONS_FILES, STATE_FILE, atomic_write, read_json

KINDS = ("last", "best", "selected")  # of an epoch, as in the scores of run.json


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of every validation set."""

    entry: dict[str, float]  # epoch and metrics, as in the history in run.json
    logits: dict[str, np.ndarray]  # suffix of the set ("", "_mm") -> [rows, outputs], float32


class EvalPredictions:
    """The logits that a run keeps: of its last evaluation and, once that is settled, of the best and the selected one.

    Which one is the best is decided as record.choose_scores does.
    """

    def __init__(self, metric: str, greater_is_better: bool, label_order: Sequence[int] | None) -> None:
        """Begin with none. label_order[i] is the model's output for the task's label i; None for regression."""
        self.keys = {"best": f"eval_{metric}", "selected": f"selection_{metric}"}
        self.sign = 1 if greater_is_better else -1
        self.label_order = label_order
        self.labels: dict[str, np.ndarray] = {}  # suffix of the set -> [rows]
        self.kept: dict[str, Evaluation] = {}

    def add(self, entry: dict[str, float], outputs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Take in an evaluation: its entry of the history; for each suffix logits [rows, outputs] and labels [rows].

        Another one of the same epoch, as the final evaluation may be, takes its place.
        """
        last, logits = self.kept.get("last"), {}
        for suffix, (values, labels) in outputs.items():
            values, self.labels[suffix] = in_order(self.label_order, values, labels)
            logits[suffix] = values.astype(np.float32)
        if last is not None and last.entry["epoch"] == entry["epoch"]:
            entry = last.entry | entry
        else:
            self.settle()
        self.kept["last"] = Evaluation(entry, logits)

    def settle(self) -> None:
        """Let the last evaluation be the best or the selected one if it is better than those before."""
        last = self.kept.get("last")
        for kind, key in self.keys.items():
            if last is not None and key in last.entry:
                best = self.kept.get(kind, last)
                if best is last or self.sign * last.entry[key] > self.sign * best.entry[key]:
                    self.kept[kind] = last

    def save(self, folder: Path, scores: Scores | None = None) -> None:
        """Write the files; those of a finished run hold the epochs that have its scores."""
        for suffix, labels in self.labels.items():
            arrays = {"idx": np.arange(len(labels)), "label": labels}
            for kind, evaluation in self.kept.items():
                epoch = evaluation.entry["epoch"]
                if scores is None or scores.get(kind, {}).get("epoch") == epoch:
                    arrays |= {kind: evaluation.logits[suffix], f"{kind}_epoch": np.float64(epoch)}
            with atomic_write(folder / PREDICTIONS_FILES[suffix]) as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, **arrays)

    def recall(self, checkpoint: Path) -> None:
        """Go on from what save() wrote into a complete checkpoint; one of an earlier version has nothing."""
        state = read_json(checkpoint / STATE_FILE) or {}
        by_epoch = {entry["epoch"]: entry for entry in history_of(state.get("log_history", []))}
        found = {suffix: load(checkpoint / name) for suffix, name in PREDICTIONS_FILES.items()}
        stored = {suffix: arrays for suffix, arrays in found.items() if arrays is not None}
        self.labels = {suffix: arrays["label"] for suffix, arrays in stored.items()}
        for kind in KINDS:
            logits = {suffix: arrays[kind] for suffix, arrays in stored.items() if kind in arrays}
            if logits:
                self.kept[kind] = Evaluation(by_epoch[float(stored[""][f"{kind}_epoch"])], logits)


def in_order(
    label_order: Sequence[int] | None, logits: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return a model's logits [rows, outputs] and its labels [rows] in the order of the task's labels.

    label_order[i] is the model's output for the task's label i; None, for regression, leaves both as they are.
    """
    if label_order is None:
        return logits, labels
    return logits[:, label_order], np.argsort(label_order)[labels]


def load(path: Path) -> dict[str, np.ndarray] | None:
    """Return the arrays in a file, or None where there is none. Raises UsageError where it can't be read."""
    if not path.is_file():
        return None
    try:
        with np.load(path) as file:
            arrays = dict(file)
        rows = arrays["label"].shape
        sizes = [arrays[kind].shape for kind in KINDS if kind in arrays]
        if len(rows) != 1 or not rows[0] or any(len(size) != 2 or size[:1] != rows for size in sizes):
            raise ValueError(f"labels {list(rows)} and logits {list(map(list, sizes))} don't fit together")
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{path}: not a readable file of predictions ({first_line(error)})") from error
    return arrays
