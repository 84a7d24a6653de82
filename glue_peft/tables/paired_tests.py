"""Several seeds in one number, and comparisons of rows paired by seed: t-test, exact permutation test, Holm.

SciPy is imported when two rows are compared, and not before; and of SciPy only scipy.special, which takes 0.2 s where
scipy.stats, whose ttest_rel gives the same numbers (tests/test_paired_tests.py), takes 0.7 s.
"""

import itertools
import math
import statistics
from dataclasses import dataclass, replace

from glue_peft.tables.results import Results, Row

SIGNIFICANCE = 0.05
MOST_PERMUTED = 20  # 2^20 sums take about a second
NO_SPREAD = 1e-12  # scores are fractions; below this a deviation is rounding


@dataclass(frozen=True)
class Comparison:
    """Second minus first, over the seeds that both have; all but n and p-values as fractions."""

    n: int
    difference: float
    low: float | None  # 95 % interval of the mean difference; None where the differences have no spread
    high: float | None
    p: float | None  # paired t-test, two-sided
    permutation_p: float | None
    smallest_p: float | None  # the smallest permutation p that n seeds can reach
    holm_p: float | None = None  # both p-values corrected over the tasks; those of avg stand alone
    holm_permutation_p: float | None = None


def centre(values: list[float], statistic: str) -> float:
    """Return the mean or the median."""
    return statistics.fmean(values) if statistic == "mean" else statistics.median(values)


def deviation(values: list[float], ddof: int) -> float | None:
    """Return the standard deviation about the mean, which divides by n - ddof; a single value has no sample's."""
    if ddof == 0:
        return statistics.pstdev(values)
    return statistics.stdev(values) if len(values) > 1 else None


def compare_rows(first: Row, second: Row, results: Results) -> dict[str, Comparison]:
    """Compare two rows in each task that both have, and last in avg; p-values are corrected over the tasks."""
    ours, theirs = columns_of(first, results), columns_of(second, results)
    compared = {column: compare(ours[column], theirs[column]) for column in ours}
    found = {column: comparison for column, comparison in compared.items() if comparison is not None}
    tasks = [column for column in found if column != "avg"]
    for family in (tasks, ["avg"] if "avg" in found else []):
        holm_ps = holm([found[column].p for column in family])
        holm_permutation_ps = holm([found[column].permutation_p for column in family])
        for column, p, permutation_p in zip(family, holm_ps, holm_permutation_ps, strict=True):
            found[column] = replace(found[column], holm_p=p, holm_permutation_p=permutation_p)
    return found


def columns_of(row: Row, results: Results) -> dict[str, dict[int, float]]:
    """Return each column's scores by seed, the average last."""
    return {task: row.scores(task) for task in results.tasks} | {"avg": row.seed_averages(results.averaged_tasks)}


def verdict(comparison: Comparison, first: str, second: str) -> str:
    """Say which row is better by the corrected p-values, or that none was shown to be."""
    if comparison.holm_p is None or comparison.holm_p >= SIGNIFICANCE:
        return "no difference shown"
    better = f"{second if comparison.difference > 0 else first} is better"
    permutation_p = comparison.holm_permutation_p
    confirmed = permutation_p is not None and permutation_p < SIGNIFICANCE
    return better if confirmed else f"{better}, by the t-test alone"


def best_cells(results: Results, statistic: str) -> set[tuple[int, int]]:
    """Return (row, column) of the best cells whose difference from the runner-up holds up.

    The family of Holm's correction is the best row against each other row, of every task: which row is the runner-up
    is read from the same scores. The average's family is the best row against the others.
    """
    families: dict[bool, list[tuple[int, int, bool, float | None]]] = {True: [], False: []}
    columns = [columns_of(row, results) for row in results.rows]
    for index, name in enumerate([*results.tasks, "avg"], start=1):
        values = {row: list(scores[name].values()) for row, scores in enumerate(columns) if scores[name]}
        if len(values) < 2:
            continue
        best, runner_up, *_ = sorted(values, key=lambda row: -centre(values[row], statistic))
        for other in values:
            found = compare(columns[other][name], columns[best][name]) if other != best else None
            if found is not None:
                p = found.p if found.difference > 0 else 1.0  # best by the median, and not by the mean
                families[name == "avg"].append((best, index, other == runner_up, p))
    bold = set()
    for family in families.values():
        for (row, index, is_runner_up, _), p in zip(family, holm([entry[-1] for entry in family]), strict=True):
            if is_runner_up and p is not None and p < SIGNIFICANCE:
                bold.add((row, index))
    return bold


def compare(first: dict[int, float], second: dict[int, float]) -> Comparison | None:
    """Compare the scores of the seeds that both have; None without such a seed.

    t = mean(d) / (s / sqrt(n)) with s the sample deviation of the n differences d, on n - 1 degrees of freedom. With
    one seed, or where all differences are equal, there is no spread to judge by: no interval and no t-test.
    """
    differences = [second[seed] - first[seed] for seed in sorted(first.keys() & second.keys())]
    n = len(differences)
    if n == 0:
        return None
    mean = statistics.fmean(differences)
    half = interval_half_width(differences)
    permutation_p, smallest_p = permutation_test(differences)
    if half is None:
        return Comparison(n, mean, None, None, None, permutation_p, smallest_p)
    from scipy.special import stdtr

    t = abs(mean) / (statistics.stdev(differences) / math.sqrt(n))
    p = float(2 * stdtr(n - 1, -t))
    return Comparison(n, mean, mean - half, mean + half, p, permutation_p, smallest_p)


def interval_half_width(values: list[float]) -> float | None:
    """Return half the width of the 95 % t interval of the mean, None without spread."""
    n = len(values)
    if n < 2 or statistics.stdev(values) < NO_SPREAD:
        return None
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / math.sqrt(n)


def permutation_test(differences: list[float]) -> tuple[float | None, float | None]:
    """Return the exact two-sided p of the sign-flip test and the smallest that so many seeds can reach, 2 / 2^n.

    Without a real difference each seed's sign is as likely as its opposite: p is the share of the 2^n sign patterns
    whose sum is at least as far from 0 as the one observed. None above 20 seeds, where the patterns are too many.
    """
    n = len(differences)
    if n > MOST_PERMUTED:
        return None, None
    observed = abs(math.fsum(differences)) - 1e-9 * math.fsum(map(abs, differences))  # equal sums may round apart
    sums = [0.0]
    for difference in differences:
        sums = list(itertools.chain((total + difference for total in sums), (total - difference for total in sums)))
    return sum(abs(total) >= observed for total in sums) / len(sums), 2 / 2**n


def holm(p_values: list[float | None]) -> list[float | None]:
    """Return Holm's step-down adjusted p-values, in the order given.

    None, a test that couldn't be made, stays None and counts as one of the family: what is left in it must not get
    easier to pass for that.
    """
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for position, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - position) * p))
        adjusted[index] = largest
    return adjusted
