"""Columns on request that sum up a row in other ways than `avg`: --aggregate."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from glue_peft.errors import UsageError
from glue_peft.tables.collapse import collapse, divergence
from glue_peft.tables.estimates import centre
from glue_peft.tables.formats import percent
from glue_peft.tables.results import Results, Row

AGGREGATES = {
    "without_cola": "avg without CoLA",
    "rank": "mean rank",
    "iqm": "IQM [95 %]",
    "collapse": "collapsed",
}
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; all three as fractions."""

    value: float
    low: float
    high: float


def wanted_aggregates(text: str | None, results: Results) -> list[str]:
    """Return what --aggregate names, with `all` those that have a meaning here; raises UsageError."""
    reasons = {}
    if "cola" not in results.averaged_tasks or len(results.averaged_tasks) < 2:
        reasons["without_cola"] = "avg is not over CoLA and another task"
    if len(results.rows) < 2:
        reasons["rank"] = "there is one row"
    if text == "all":
        return [name for name in AGGREGATES if name not in reasons]
    names = [] if text is None else text.replace(",", " ").split()
    if text is not None and (not names or set(names) - AGGREGATES.keys() or len(set(names)) < len(names)):
        raise UsageError(f"--aggregate {text}: allowed are `all` or some of {', '.join(AGGREGATES)}, each once")
    for name in names:
        if name in reasons:
            raise UsageError(f"--aggregate {name}: {reasons[name]}")
    return names


def without_cola(row: Row, results: Results) -> list[float]:
    """Return each seed's average over the tasks of `avg` without CoLA, where a collapsed run loses 60 points."""
    return list(row.seed_averages([task for task in results.averaged_tasks if task != "cola"]).values())


def mean_ranks(results: Results, statistic: str) -> list[float]:
    """Return each row's rank (1: best) by the mean or median, on average over the tasks; equal rows share a rank."""
    ranks: list[list[float]] = [[] for _ in results.rows]
    for task in results.averaged_tasks:
        values = [centre(list(row.scores(task).values()), statistic) for row in results.rows]
        for of_row, value in zip(ranks, values, strict=True):
            above, equal = sum(other > value for other in values), values.count(value)
            of_row.append(above + (equal + 1) / 2)
    return [statistics.fmean(of_row) for of_row in ranks]


def interquartile_mean(row: Row, results: Results) -> Interval | None:
    """Return the mean of the middle half of all scores of a row, with a bootstrap interval stratified by task.

    As in Agarwal et al. (NeurIPS 2021, arXiv 2108.13264): a quarter of the scores is cut off at either end, rounded
    down, and each task's seeds are drawn again with replacement; the interval is that of the percentiles.
    """
    import numpy as np

    scores = [np.array(list(row.scores(task).values())) for task in results.averaged_tasks]
    if not scores:
        return None
    generator = np.random.default_rng(0)
    drawn = [of_task[generator.integers(len(of_task), size=(RESAMPLES, len(of_task)))] for of_task in scores]
    once, resampled = np.concatenate(scores)[None, :], np.concatenate(drawn, axis=1)
    cut = once.shape[1] // 4
    (value,), values = (np.sort(of, axis=1)[:, cut : of.shape[1] - cut].mean(axis=1) for of in (once, resampled))
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


def collapsed_runs(row: Row, results: Results) -> tuple[int, int]:
    """Return how many of a row's runs collapsed or diverged, dropped or not, and how many there are."""
    runs = [run for task in results.tasks for run in row.runs[task].values()]
    failures = [run.fault.failure for run in runs if run.fault is not None and run.fault.failure is not None]
    diverged = sum(failure.kind == "diverged" for failure in failures)
    scored = [run for run in runs if run.score is not None]
    return diverged + sum((collapse(run) or divergence(run)) is not None for run in scored), diverged + len(scored)


def aggregate_cells(
    results: Results, names: list[str], statistic: str, cell: Callable[[list[float]], str]
) -> list[list[str]]:
    """Return each row's cells of the aggregates; `cell` writes a column of one score a seed."""
    ranks = mean_ranks(results, statistic) if "rank" in names else []
    rows = []
    for position, row in enumerate(results.rows):
        cells = []
        for name in names:
            if name == "without_cola":
                cells.append(cell(without_cola(row, results)))
            elif name == "rank":
                cells.append(f"{ranks[position]:.1f}")
            elif name == "iqm":
                found = interquartile_mean(row, results)
                cells.append(f"{percent(found.value)} [{percent(found.low)}, {percent(found.high)}]" if found else "-")
            else:
                cells.append("{} of {}".format(*collapsed_runs(row, results)))
        rows.append(cells)
    return rows


def aggregate_records(results: Results, names: list[str], statistic: str) -> list[dict[str, Any]]:
    """Return the aggregates' numbers for CSV and JSON, scores in percent."""
    ranks = mean_ranks(results, statistic) if "rank" in names else []
    records: list[dict[str, Any]] = []
    for position, row in enumerate(results.rows):
        for name in names:
            record: dict[str, Any] = {"kind": "ours", "name": row.name, "task": name, "metric": AGGREGATES[name]}
            if name == "without_cola":
                values = without_cola(row, results)
                record |= {"n": len(values), "value": 100 * centre(values, statistic) if values else None}
            elif name == "rank":
                record |= {"value": ranks[position]}
            elif name == "iqm":
                found = interquartile_mean(row, results)
                record |= {} if found is None else {key: 100 * value for key, value in vars(found).items()}
            else:
                count, n = collapsed_runs(row, results)
                record |= {"n": n, "value": count}
            records.append(record)
    return records
