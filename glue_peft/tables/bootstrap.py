"""What other validation rows and other seeds would have given: intervals over both.

All runs of a table share one validation set, and a deviation over seeds knows nothing of that set's own error: of
RTE's 277 rows it is 2.5 points. What each run answered on each row is in eval_predictions.npz.

An interval is the middle 95 % of draws. A draw has two parts:

1. As many validation rows as there are, with replacement, and the same for every run. The mean score on them of a
   table row's n seeds shows what other validation rows do, to all seeds alike and to each in its own way.
2. What other seeds do: sqrt(v / n) times a number from Student's t distribution with n - 1 degrees of freedom, where v
   is the sample variance of the seeds' scores, less what part 1 has of it already (over draws, the variance of the
   seeds' distances from their mean), and at least 0.

Drawing n seeds with replacement in part 2 instead counts each seed's own way with rows three times (A. B. Owen, The
pigeonhole bootstrap, Annals of Applied Statistics 1, 2007), and gives too little for five seeds that differ by much.
`python -m benchmarks.simulate_bootstrap` has the coverage of both.
"""

import math
import statistics
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glue_peft.tables.answers import Answers, agreement_table, mcnemar_lines, read_answers
from glue_peft.tables.formats import Table, percent
from glue_peft.tables.resampled import score_draws
from glue_peft.tables.results import Results
from glue_peft.tasks import TASKS

LEVEL = 0.95
CHUNK = 4_000_000  # drawn validation rows in memory at once


@dataclass(frozen=True)
class Drawn:
    """A score, or a difference of two, as it is and on each draw; fractions."""

    value: float
    scores: np.ndarray  # [draws]
    seeds: tuple[int, ...]

    @property
    def interval(self) -> tuple[float, float]:
        """Return the middle 95 % of the draws."""
        low, high = np.quantile(self.scores, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)


def bootstrap_tables(
    results: Results, pairs: Iterable[tuple[int, int]], draws: int, seed: int, allow_missing: bool
) -> tuple[list[Table], list[dict[str, Any]]]:
    """Return the tables of intervals and of agreement, and their numbers, of all rows and of pairs by position."""
    answers, notes = read_answers(results, allow_missing)
    of_row: list[dict[str, Drawn]] = [{} for _ in results.rows]
    for task in results.tasks:
        for position, drawn in draw_task(results, task, answers[task], draws, seed).items():
            of_row[position][task] = drawn
    for drawn_of in of_row:
        average = average_of([drawn_of.get(task) for task in results.averaged_tasks])
        drawn_of |= {} if average is None else {"avg": average}
    pairs, names = list(pairs), [row.name for row in results.rows]
    found, columns = dict(zip(names, of_row, strict=True)), [*results.tasks, "avg"]
    for first, second in pairs:
        both = [column for column in columns if column in of_row[first] and column in of_row[second]]
        differences = {column: minus(of_row[first][column], of_row[second][column]) for column in both}
        found[f"{names[second]} minus {names[first]}"] = differences
    title = (
        f"with other validation rows and other seeds: mean, and 95 % interval of the two-level bootstrap ({draws:,} "
        f"draws, --bootstrap_seed {seed}); differences on the same validation rows; not corrected for many comparisons"
    )
    cells = [[name, *(cell(drawn.get(column)) for column in columns)] for name, drawn in found.items()]
    table = Table(title, ["name", *columns], cells, rules=[len(names)] if pairs else [])
    table.notes = notes + mcnemar_lines(results, pairs, answers)
    agreement, records = agreement_table(results, answers)
    return [table, agreement], [*interval_records(found, draws, seed), *records]


def draw_task(results: Results, task: str, answers: Sequence[Answers], draws: int, seed: int) -> dict[int, Drawn]:
    """Return the score of each of the table's rows, by position, on draws of a task's validation rows and of seeds.

    The draws depend on the row's own answers alone, not on its name or on the table's other rows and tasks.
    """
    if not answers:
        return {}
    number = list(TASKS).index(task) if task in TASKS else zlib.crc32(task.encode(errors="surrogateescape"))
    keys = list(answers[0].given)
    of_sets = [
        score_rows(task, results.metrics[task], of_set, np.random.default_rng([seed, number, which]), draws)
        for which, of_set in enumerate(answers)
    ]
    on_rows = np.mean(of_sets, axis=0)
    found = {}
    for position, row in enumerate(results.rows):
        columns = [column for column, (of_row, _) in enumerate(keys) if of_row == position]
        if columns:
            seeds = tuple(keys[column][1] for column in columns)
            scores = np.array([row.scores(task)[of_seed] for of_seed in seeds])
            given = b"".join(values.tobytes() for of_set in answers for values in of_set.of_row(position))
            generator = np.random.default_rng([seed, number, zlib.crc32(given)])
            found[position] = Drawn(float(scores.mean()), with_seeds(on_rows[:, columns], scores, generator), seeds)
    return found


def score_rows(task: str, metric: str, answers: Answers, generator: np.random.Generator, draws: int) -> np.ndarray:
    """Return the scores [draws, runs] of all runs on drawn validation rows, the same ones for each run."""
    rows, given = len(answers.labels), np.stack(list(answers.given.values()), axis=1)
    at_once = max(1, CHUNK // rows)
    scores = []
    for begin in range(0, draws, at_once):
        n = min(at_once, draws - begin)
        drawn = generator.integers(rows, size=(n, rows)) + rows * np.arange(n)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=n * rows).reshape(n, rows).astype(float)
        scores.append(score_draws(task, metric, answers.labels, given, counts))
    return np.concatenate(scores)


def with_seeds(on_rows: np.ndarray, scores: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the mean score [draws] of seeds on drawn rows, [draws, seeds], with what other seeds do on top.

    `scores` are the seeds' on the validation set as it is. A single seed says nothing of others.
    """
    means: np.ndarray = on_rows.mean(axis=1)
    n = len(scores)
    if n == 1:
        return means
    distances = on_rows - means[:, None] - (scores - scores.mean())
    own = max(0.0, scores.var(ddof=1) - np.mean(distances**2) * n / (n - 1))
    return means + math.sqrt(own / n) * generator.standard_t(n - 1, size=len(means))


def average_of(tasks: Sequence[Drawn | None]) -> Drawn | None:
    """Return the average over tasks, each with draws of its own; None where one lacks a seed that another has."""
    known = [task for task in tasks if task is not None]
    if not known or len(known) < len(tasks) or any(task.seeds != known[0].seeds for task in known):
        return None
    scores = np.mean([task.scores for task in known], axis=0)
    return Drawn(statistics.fmean(task.value for task in known), scores, known[0].seeds)


def minus(first: Drawn, second: Drawn) -> Drawn:
    """Return second minus first, on the same validation rows."""
    fewer = min(first.seeds, second.seeds, key=len)
    return Drawn(second.value - first.value, second.scores - first.scores, fewer)


def cell(drawn: Drawn | None) -> str:
    """Return a score and its interval in percent; with a single seed the interval is over validation rows alone."""
    if drawn is None:
        return "-"
    low, high = map(percent, drawn.interval)
    return f"{percent(drawn.value)} ({low} to {high}{', rows alone' * (len(drawn.seeds) == 1)})"


def interval_records(found: Mapping[str, Mapping[str, Drawn]], draws: int, seed: int) -> list[dict[str, Any]]:
    """Return the intervals in percent, for CSV and JSON."""
    return [
        {
            "kind": "bootstrap",
            "name": name,
            "task": column,
            "n": len(drawn.seeds),
            "value": 100 * drawn.value,
            "low": 100 * drawn.interval[0],
            "high": 100 * drawn.interval[1],
            "draws": draws,
            "bootstrap_seed": seed,
        }
        for name, of_name in found.items()
        for column, drawn in of_name.items()
    ]
