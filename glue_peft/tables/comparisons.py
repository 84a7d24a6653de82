"""Comparisons of rows: Welch's t-test, the paired one, an exact permutation test; one family for all that is printed.

The verdict rests on Welch's test. Pairing by seed would need scores that rise and fall together, and they hardly do:
over 30 pairs of our own runs the mean correlation was 0.12, while with five seeds pairing halves the degrees of
freedom (docs/statistics.md has the simulation).
"""

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from glue_peft.run_folder import plural
from glue_peft.tables.estimates import (
    NO_SPREAD,
    POWER,
    SIGNIFICANCE,
    Difference,
    Estimate,
    centre,
    estimate,
    holm,
    sample_deviation,
    t_quantile,
    welch,
    with_seeds,
)
from glue_peft.tables.results import Results, Row
from glue_peft.tasks import LOWER_IS_BETTER

if TYPE_CHECKING:
    import numpy as np

MOST_SPLITS = 20_000  # of all seeds into two rows: 8 against 8 have 12,870; of more, so many are drawn
MOST_SEEDS = 100  # that are tried when it is asked how many it would take


@dataclass(frozen=True)
class Comparison:
    """Second minus first, in one column; all but n, seeds_needed and p-values as fractions."""

    n: tuple[int, int]  # seeds of each
    difference: float  # of the means
    low: float | None = None  # Welch's 95 % interval; None where there is no spread
    high: float | None = None
    p: float | None = None  # Welch's t-test, two-sided
    paired_p: float | None = None  # the t-test of the seeds that both have
    permutation_p: float | None = None
    smallest_p: float | None = None  # that so many seeds can reach in the permutation test
    estimates: tuple[Estimate | None, Estimate | None] = (None, None)
    holm_p: float | None = None  # Welch's p and the permutation's, corrected over the family
    holm_permutation_p: float | None = None
    withheld: str = ""  # why there is no verdict, whatever the p-values
    lower_is_better: bool = False


@dataclass(frozen=True)
class Family:
    """All comparisons of an output, and what they are: one family in Holm's correction."""

    pairs: Mapping[tuple[int, int], Mapping[str, Comparison]]  # positions of two rows -> column -> comparison
    name: str

    @property
    def size(self) -> int:
        """Return how many comparisons there are."""
        return sum(map(len, self.pairs.values()))


def compare_rows(results: Results, all_pairs: bool, permute: bool = True) -> Family:
    """Compare each row with the first, or all pairs, in each task that both have, and last in avg.

    The average of a single task is that task, and no comparison of its own. Simulations do without permutation tests.
    """
    n_rows = len(results.rows)
    pairs = list(itertools.combinations(range(n_rows), 2)) if all_pairs else [(0, row) for row in range(1, n_rows)]
    columns = [columns_of(row, results) for row in results.rows]
    names = [*results.tasks, *(["avg"] if len(results.averaged_tasks) > 1 else [])]
    found = {
        (pair, name): comparison
        for pair in pairs
        for name in names
        if (comparison := compare(columns[pair[0]][name], columns[pair[1]][name], permute)) is not None
    }
    rows = f"all {len(pairs)} pairs of {n_rows} rows" if all_pairs else f"{plural(n_rows - 1, 'row')} with the first"
    what = plural(len(results.tasks), "task") + (" and avg" if "avg" in names else "")
    holm_ps = holm([comparison.p for comparison in found.values()])
    permutation_ps = holm([comparison.permutation_p for comparison in found.values()])
    by_pair: dict[tuple[int, int], dict[str, Comparison]] = {pair: {} for pair in pairs}
    for ((pair, name), comparison), p, permutation_p in zip(found.items(), holm_ps, permutation_ps, strict=True):
        lower = results.metrics.get(name) in LOWER_IS_BETTER
        by_pair[pair][name] = replace(comparison, holm_p=p, holm_permutation_p=permutation_p, lower_is_better=lower)
    together = "the one comparison" if len(found) == 1 else f"all {len(found)} comparisons"
    return Family(by_pair, f"{together} of this output ({rows}, in {what})")


def columns_of(row: Row, results: Results) -> dict[str, dict[int, float]]:
    """Return each column's scores by seed, the average last."""
    return {task: row.scores(task) for task in results.tasks} | {"avg": row.seed_averages(results.averaged_tasks)}


def compare(first: Mapping[int, float], second: Mapping[int, float], permute: bool = True) -> Comparison | None:
    """Compare the scores by seed of two rows in one column; None where either has none.

    With one seed, or where neither row has any spread, there is nothing to judge by: no interval and no Welch test.
    """
    if not first or not second:
        return None
    ours, theirs = list(first.values()), list(second.values())
    permutation_p, smallest_p = permutation_test(ours, theirs) if permute else (None, None)
    estimates = estimate(ours, "mean"), estimate(theirs, "mean")
    difference = None if estimates[0] is None or estimates[1] is None else welch(estimates[0], estimates[1])
    value = statistics.fmean(theirs) - statistics.fmean(ours)
    half = None if difference is None else difference.half_width(0.95)
    return Comparison(
        n=(len(ours), len(theirs)),
        difference=value,
        low=None if half is None else value - half,
        high=None if half is None else value + half,
        p=None if difference is None else difference.p,
        paired_p=paired_p(first, second),
        permutation_p=permutation_p,
        smallest_p=smallest_p,
        estimates=estimates,
    )


def paired_p(first: Mapping[int, float], second: Mapping[int, float]) -> float | None:
    """Return the two-sided p of the paired t-test; None with fewer than two common seeds, or equal differences.

    t = mean(d) / (s / sqrt(n)) with s the sample deviation of the n differences d, on n - 1 degrees of freedom.
    """
    differences = [second[seed] - first[seed] for seed in sorted(first.keys() & second.keys())]
    n = len(differences)
    if n < 2 or (deviation := sample_deviation(differences)) < NO_SPREAD:
        return None
    from scipy.special import stdtr

    t = abs(statistics.fmean(differences)) / (deviation / math.sqrt(n))
    return float(2 * stdtr(n - 1, -t))


def permutation_test(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Return the two-sided p of the unpaired permutation test and the smallest that so many seeds can reach.

    Without a real difference each way of splitting all scores into rows of these sizes is as likely as another: p is
    the share of splits whose means are at least as far apart. Above MOST_SPLITS, so many are drawn with a fixed seed,
    and the one observed counts among them.
    """
    import numpy as np

    scores, n, m = np.array([*first, *second]), len(first), len(second)
    # The difference of the means is sum(second) (1 / n + 1 / m) - sum(all) / n.
    sums = scores[splits(n, m)].sum(axis=1)
    differences = np.abs(sums * (1 / n + 1 / m) - scores.sum() / n)
    observed = abs(statistics.fmean(second) - statistics.fmean(first))
    as_far = int((differences >= observed - 1e-9 * max(1e-3, observed)).sum())  # equal sums may round apart
    if math.comb(n + m, n) > MOST_SPLITS:
        return (as_far + 1) / (MOST_SPLITS + 1), 1 / (MOST_SPLITS + 1)
    return as_far / len(differences), (2 if n == m else 1) / len(differences)


@lru_cache(maxsize=8)
def splits(n: int, m: int) -> "np.ndarray":
    """Return which m of n + m scores go to the second row: all ways, or MOST_SPLITS drawn ones; one a line."""
    import numpy as np

    if math.comb(n + m, m) <= MOST_SPLITS:
        return np.array(list(itertools.combinations(range(n + m), m)))
    order = np.random.default_rng(0).random((MOST_SPLITS, n + m)).argsort(axis=1)
    return order[:, :m]


def verdict(comparison: Comparison, first: str, second: str) -> str:
    """Say which row is better by the corrected p-values, or that none was shown to be."""
    if comparison.withheld:
        return f"no verdict: {comparison.withheld}"
    if comparison.holm_p is None or comparison.holm_p >= SIGNIFICANCE:
        return "no difference shown"
    better = f"{second if (comparison.difference > 0) != comparison.lower_is_better else first} is better"
    permutation_p = comparison.holm_permutation_p
    confirmed = permutation_p is not None and permutation_p < SIGNIFICANCE
    return better if confirmed else f"{better}, by the t-test alone"


def best_cells(results: Results, statistic: str, family: Family) -> set[tuple[int, int]]:
    """Return (row, column) of the best cells that the family's verdicts show to be better than the runner-up.

    Where neither of a column's two best rows is the first, they are compared with all pairs alone.
    """
    columns = ranked_columns(results, statistic)
    return {(best, index) for index, column, (best, second, *_) in columns if is_better(family, column, best, second)}


def best_and_ties(
    results: Results, statistic: str, family: Family
) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """Return (row, column) of the values shown to be better than all others of their column, and of ties.

    A tie is the best value with those that a comparison doesn't show to be worse. A row that wasn't compared with the
    best one is none: nothing is known of it.
    """
    shown, ties = set(), set()
    for index, column, (best, *others) in ranked_columns(results, statistic):
        better = [is_better(family, column, best, other) for other in others]
        if tied := [other for other, known in zip(others, better, strict=True) if known is False]:
            ties |= {(row, index) for row in (best, *tied)}
        elif all(better):
            shown.add((best, index))
    return shown, ties


def ranked_columns(results: Results, statistic: str) -> Iterator[tuple[int, str, list[int]]]:
    """Yield each column that two rows have: its position (from 1), its comparisons' name, and the rows, best first."""
    columns = [columns_of(row, results) for row in results.rows]
    for index, name in enumerate([*results.tasks, "avg"], start=1):
        values = {row: list(scores[name].values()) for row, scores in enumerate(columns) if scores[name]}
        sign = 1 if results.metrics.get(name) in LOWER_IS_BETTER else -1
        ranked = sorted(values, key=lambda row: sign * centre(values[row], statistic))
        # The average of one task is that task.
        column = results.averaged_tasks[0] if name == "avg" and len(results.averaged_tasks) == 1 else name
        if len(ranked) > 1:
            yield index, column, ranked


def is_better(family: Family, column: str, one: int, other: int) -> bool | None:
    """Say whether a comparison of the family shows one row's mean to be the better; None where none was made."""
    first, second = sorted((one, other))
    comparison = family.pairs.get((first, second), {}).get(column)
    if comparison is None or comparison.withheld or comparison.holm_p is None:
        return None
    is_second = (comparison.difference > 0) != comparison.lower_is_better
    return comparison.holm_p < SIGNIFICANCE and is_second == (one == second)


def smallest_shown(comparison: Comparison, size: int) -> float | None:
    """Return the difference from which on Welch's test shows one, in the first step of Holm over the family."""
    difference = welch_with_seeds(comparison)
    return None if difference is None else difference.half_width(1 - SIGNIFICANCE / size)


def seeds_needed(comparison: Comparison, size: int) -> int | None:
    """Return how many seeds a row would show a difference like the one seen in 80 % of cases; None above 100.

    |difference| >= (t_(1 - 0.025 / size) + t_0.8) x standard error, with the deviations seen, in Holm's first step.
    """
    for n in range(2, MOST_SEEDS + 1):
        difference = welch_with_seeds(comparison, n)
        if difference is None:
            return None
        quantiles = (t_quantile(difference.degrees, level) for level in (1 - SIGNIFICANCE / size / 2, POWER))
        if sum(quantiles) * difference.error <= abs(comparison.difference):
            return n
    return None


def welch_with_seeds(comparison: Comparison, n: int | None = None) -> Difference | None:
    """Return Welch's comparison again, as it would be with n seeds a row; None where there is no spread."""
    first, second = comparison.estimates
    if first is None or second is None:
        return None
    return welch(*(of if n is None else with_seeds(of, n) for of in (first, second)))


def permutation_seeds(size: int, paired: bool = False) -> int:
    """Return with how many seeds a row a permutation test can fall below 0.05 after Holm over the family.

    The smallest p of n seeds a row is 2 / C(2n, n), of flipping the signs of n paired differences 2 / 2^n.
    """
    return next(n for n in itertools.count(2) if 2 * size / (2**n if paired else math.comb(2 * n, n)) < SIGNIFICANCE)
