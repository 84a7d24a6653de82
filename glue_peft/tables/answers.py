"""What the runs of a table answered on each validation row: read, and how far runs answer alike."""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glue_peft.errors import UsageError
from glue_peft.eval_predictions import load
from glue_peft.run_folder import PREDICTIONS_FILES, plural
from glue_peft.tables.formats import Table, p_text, percent
from glue_peft.tables.read import Run, printable
from glue_peft.tables.resampled import pearson, score_draws
from glue_peft.tables.results import Results
from glue_peft.tasks import TASKS

SAME = 1e-4  # of a score: a correlation of float32 numbers is not the run's own to the last digit


@dataclass(frozen=True)
class Answers:
    """What runs answered on one validation set; MNLI has two."""

    labels: np.ndarray  # [rows]
    given: dict[tuple[int, int], np.ndarray]  # (position of the table's row, seed) -> [rows]: classes, or numbers

    def of_row(self, position: int) -> list[np.ndarray]:
        """Return what the seeds of one row of the table answered."""
        return [given for (row, _), given in self.given.items() if row == position]


def read_answers(results: Results, allow_missing: bool) -> tuple[dict[str, list[Answers]], list[str]]:
    """Return the answers of each task's runs on each of its sets, and a line on runs that have none.

    Raises UsageError for these unless `allow_missing`, and where runs were evaluated on different rows.
    """
    answers, faults = {}, []
    for task in results.tasks:
        runs = {
            (position, seed): run for position, row in enumerate(results.rows) for seed, run in row.used(task).items()
        }
        read = {key: read_run(run, task, results) for key, run in runs.items()}
        faults += [found for found in read.values() if isinstance(found, str)]
        usable = {key: found for key, found in read.items() if not isinstance(found, str)}
        for key, found in usable.items():
            first, expected = next(iter(usable.items()))
            if not all(map(np.array_equal, (labels for labels, _ in expected), (labels for labels, _ in found))):
                places = " and ".join(printable(str(runs[of].folder)) for of in (first, key))
                raise UsageError(f"--bootstrap: {places} were evaluated on different rows of {task}")
        sets = zip(*usable.values(), strict=True)
        answers[task] = [
            Answers(of_set[0][0], dict(zip(usable, (given for _, given in of_set), strict=True))) for of_set in sets
        ]
    if faults and not allow_missing:
        what = "--bootstrap needs what each run answered (--allow_missing does without such runs):"
        raise UsageError("\n".join([what, *(f"  {fault}" for fault in faults)]))
    return answers, [f"no part of these intervals, without usable answers: {plural(len(faults), 'run')}"] * bool(
        faults
    )


def read_run(run: Run, task: str, results: Results) -> list[tuple[np.ndarray, np.ndarray]] | str:
    """Return labels and answers of a run on each validation set, or why there are none."""
    found = []
    for file, score in zip(PREDICTIONS_FILES.values(), run.parts, strict=False):
        path = printable(str(run.folder / file))
        try:
            arrays = load(run.folder / file)
        except UsageError as error:
            return printable(str(error))
        if arrays is None:
            return f"{path}: missing"
        if results.epoch not in arrays:
            return f"{path}: has none of the {results.epoch} epoch"
        labels, logits = arrays["label"], arrays[results.epoch]
        given = logits[:, 0].astype(float) if is_regression(task, results) else logits.argmax(axis=1)
        own = score_draws(task, results.metrics[task], labels, given[:, None], np.ones((1, len(labels))))
        if abs(own.item() - score) > SAME:
            return f"{path}: gives the score {own.item():.4f}, and the run has {score:.4f}"
        found.append((labels, given))
    return found


def is_regression(task: str, results: Results) -> bool:
    """Say whether a task's answers are numbers."""
    return TASKS[task].spellings is None if task in TASKS else results.metrics[task] == "mse"


# How far runs answer alike


def agreement_table(results: Results, answers: Mapping[str, Sequence[Answers]]) -> tuple[Table, list[dict[str, Any]]]:
    """Return how far the seeds of each row answer alike, as a table and as numbers."""
    rows, records = [], []
    for position, row in enumerate(results.rows):
        cells = []
        for task in results.tasks:
            found = [agreement(of_set, position, is_regression(task, results)) for of_set in answers[task]]
            known = [of_set for of_set in found if of_set is not None]
            if not known:
                cells.append("-")
                continue
            all_right, alike = (statistics.fmean(values) for values in zip(*known, strict=True))
            line: dict[str, Any] = {"kind": "agreement", "name": row.name, "task": task}
            if is_regression(task, results):
                cells.append(f"{alike:.3f}")
                records.append(line | {"correlation": alike})
            else:
                cells.append(f"{percent(all_right)} / {percent(alike)}")
                records.append(line | {"all_right": 100 * all_right, "alike": 100 * alike})
        rows.append([row.name, *cells])
    title = (
        "agreement of the seeds: percent of the validation rows that all get right / on which two answer alike, mean "
        "over pairs; for STS-B the mean correlation of two seeds' answers"
    )
    return Table(title, ["name", *results.tasks], rows), records


def agreement(answers: Answers, position: int, is_regression: bool) -> tuple[float, float] | None:
    """Return the share of validation rows that all seeds of a table's row get right, and how far two of them agree.

    None with fewer than two seeds. Of regression nothing is right (NaN), and two agree as far as they correlate.
    """
    given = answers.of_row(position)
    pairs = list(itertools.combinations(given, 2))
    if not pairs:
        return None
    if is_regression:
        everything = np.ones((1, len(answers.labels)))
        return math.nan, statistics.fmean(pearson(a, b[:, None], everything).item() for a, b in pairs)
    all_right = np.all([values == answers.labels for values in given], axis=0).mean()
    return float(all_right), statistics.fmean(float(np.mean(a == b)) for a, b in pairs)


# Single runs


def mcnemar_lines(
    results: Results, pairs: Iterable[tuple[int, int]], answers: Mapping[str, Sequence[Answers]]
) -> list[str]:
    """Return a line for each task in which two rows of the table with one seed each are compared."""
    lines = []
    for pair in pairs:
        for task in results.tasks:
            given = [[of_set.of_row(position) for position in pair] for of_set in answers[task]]
            if is_regression(task, results) or not given or any(len(runs) != 1 for of_set in given for runs in of_set):
                continue
            right = [
                np.concatenate(
                    [runs[i][0] == of_set.labels for runs, of_set in zip(given, answers[task], strict=True)]
                )
                for i in (0, 1)
            ]
            alone = [int((right[i] & ~right[1 - i]).sum()) for i in (0, 1)]
            said = " and ".join(f"{n} in {results.rows[row].name} alone" for n, row in zip(alone, pair, strict=True))
            lines.append(
                f"McNemar's exact test of two single runs, {task}: right are {said}; p {p_text(mcnemar(*alone))}"
            )
    return lines


def mcnemar(first: int, second: int) -> float:
    """Return the two-sided p of McNemar's exact test, of how many rows the one run alone gets right, and the other.

    If neither is better each of these n rows is as likely to be the one's as the other's: p = 2 P(X <= min) with X
    binomial, of n and 1/2.
    """
    n = first + second
    below = sum(math.comb(n, k) for k in range(min(first, second) + 1))
    return float(min(1, 2 * below / 2**n))
