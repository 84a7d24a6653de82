"""tables/paired_tests.py against SciPy and cases worked out by hand."""

import math
import statistics

import pytest
from helpers import FIVE, results_of, shifted, write_rows
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from glue_peft.tables.paired_tests import (
    Comparison,
    best_cells,
    centre,
    compare,
    deviation,
    holm,
    interval_half_width,
    permutation_test,
    verdict,
)

SCORES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8)


def by_seed(values: list[float]) -> dict[int, float]:
    """Return the scores of seeds 1, 2, …"""
    return dict(enumerate(values, start=1))


def test_t_test_by_hand():
    """Differences 1, 2, 3 points: mean 2, s 1, t = 2 sqrt(3) on 2 degrees of freedom, whose p has a closed form."""
    found = compare(by_seed([0.50, 0.60, 0.70]), by_seed([0.51, 0.62, 0.73]))
    t = 2 * math.sqrt(3)
    assert found.n == 3
    assert found.difference == pytest.approx(0.02)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t**2))
    # The 97.5 % quantile of t on 2 degrees of freedom is 4.3027.
    assert (found.low, found.high) == pytest.approx((0.02 - 0.043027 / 3**0.5, 0.02 + 0.043027 / 3**0.5), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(SCORES)
def test_t_test_is_scipys(pairs):
    """Difference, interval and p are those of scipy.stats.ttest_rel."""
    first, second = zip(*pairs, strict=True)
    differences = [b - a for a, b in pairs]
    assume(statistics.stdev(differences) > 1e-6)
    found, expected = compare(by_seed(first), by_seed(second)), stats.ttest_rel(second, first)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()), rel=1e-9, abs=1e-12)
    assert interval_half_width(differences) == pytest.approx((found.high - found.low) / 2)


@settings(max_examples=60, deadline=None)
@given(SCORES)
def test_permutation_test_is_scipys(pairs):
    """The exact p is scipy.stats.permutation_test's over all sign flips."""
    differences = [round(b - a, 3) for a, b in pairs]
    expected = stats.permutation_test(
        (differences,), lambda d: abs(math.fsum(d)), permutation_type="samples", n_resamples=math.inf,
        alternative="greater", vectorized=False,
    )  # fmt: skip
    p, smallest = permutation_test(differences)
    assert p == pytest.approx(expected.pvalue)
    assert smallest == 2 / 2 ** len(differences)


def test_centre_and_deviation_by_hand():
    """1, 2, 6: mean 3, median 2, squares 4 + 1 + 9 over 3 or 2; one value has no sample's deviation."""
    values = [1.0, 2.0, 6.0]
    assert (centre(values, "mean"), centre(values, "median")) == (3, 2)
    assert deviation(values, 0) == pytest.approx(math.sqrt(14 / 3)) and deviation(values, 1) == pytest.approx(7**0.5)
    assert (deviation([0.5], 0), deviation([0.5], 1)) == (0, None)


def test_verdicts_go_by_corrected_p_values():
    """Of p 0.03 with 0.06 after Holm nothing is said; the permutation test confirms by its corrected p too."""
    for holm_p, holm_permutation_p, said in (
        (0.06, 0.01, "no difference shown"),
        (None, 0.01, "no difference shown"),
        (0.03, 0.06, "b is better, by the t-test alone"),
        (0.03, None, "b is better, by the t-test alone"),
        (0.03, 0.03, "b is better"),
    ):
        found = Comparison(5, 0.1, 0.05, 0.15, 0.03, 0.03, 0.0625, holm_p, holm_permutation_p)
        assert verdict(found, "a", "b") == said


def test_permutation_test_by_hand():
    """1, 2, 4: no other pattern but all signs flipped reaches 7. 1, -1: every pattern reaches 0."""
    assert permutation_test([1.0, 2.0, 4.0]) == (0.25, 0.25)
    assert permutation_test([1.0, -1.0]) == (1.0, 0.5)
    assert permutation_test([0.1, 0.2, -0.3]) == (1.0, 0.25)  # 0.1 + 0.2 - 0.3 is 6e-17 in floating point
    assert permutation_test([0.01] * 5) == (0.0625, 0.0625)
    assert permutation_test([0.1] * 21) == (None, None)


def test_without_spread_there_is_no_t_test():
    """One seed, or differences all equal: no interval and no p, whatever the rounding of the differences."""
    for first, second in (([0.5], [0.6]), ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]), ([0.5, 0.5], [0.5, 0.5])):
        found = compare(by_seed(first), by_seed(second))
        assert (found.low, found.high, found.p) == (None, None, None)
        assert found.difference == pytest.approx(second[0] - first[0])
        assert interval_half_width([b - a for a, b in zip(first, second, strict=True)]) is None


def test_only_common_seeds_are_paired():
    """A seed that one side lacks is left out, and without a common one there is no comparison."""
    found = compare({1: 0.5, 2: 0.9, 4: 0.1}, {2: 0.8, 3: 0.0, 4: 0.2})
    assert found.n == 2
    assert found.difference == pytest.approx(0.0, abs=1e-12)
    assert compare({1: 0.5}, {2: 0.5}) is None


def test_holm_by_hand():
    """0.01 x 3, then the larger of that and 0.03 x 2, then of that and 0.04; a p that is missing counts as a test."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.01, None, 0.02]) == pytest.approx([0.03, None, 0.04])
    assert holm([None]) == [None]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_its_definition(ps):
    """Adjusted p of rank k: the maximum over ranks j <= k of (m - j + 1) p_(j), at most 1."""
    ranked = sorted(ps)
    for p, adjusted in zip(ps, holm(ps), strict=True):
        last = max(index for index, other in enumerate(ranked) if other == p)
        candidates = [min(1.0, (len(ps) - index) * ranked[index]) for index in range(last + 1)]
        assert adjusted == pytest.approx(max(candidates))


# Best cells: (row, column), of the columns in the table's order with the name's as 0.


def best_of(*argv: object, statistic: str = "mean") -> set[tuple[int, int]]:
    """Return the best cells of a table."""
    return best_cells(results_of(*argv), statistic)


def test_bold_family_counts_every_other_row(tmp_path):
    """p of 0.03 for one pair is bold; beside a third row that was as likely to be the runner-up it isn't any more."""
    steps = [0.01, 0.02, 0.03, 0.05, 0.005]  # t = 2.86 on 4 degrees of freedom: p = 0.046
    write_rows(tmp_path / "a", {"rte": FIVE})
    write_rows(tmp_path / "b", {"rte": shifted(steps)})
    write_rows(tmp_path / "c", {"rte": shifted([-0.01, 0.02, -0.02, 0.01, -0.03])})
    assert best_of(tmp_path / "a", tmp_path / "b", 5) == {(1, 1), (1, 2)}
    assert best_of(tmp_path / "a", tmp_path / "b", tmp_path / "c", 5) == set()


def test_bold_family_keeps_rows_that_the_mean_puts_first(tmp_path):
    """By the median b is best of rte, by the mean a: no bold there, and mrpc's p still counts two tests."""
    steps = [0.01, 0.02, 0.03, 0.05, 0.005]  # p = 0.046
    write_rows(tmp_path / "a", {"mrpc": FIVE, "rte": FIVE})
    write_rows(tmp_path / "b", {"mrpc": shifted(steps), "rte": shifted([0.01, 0.01, 0.01, -0.3, -0.3])})
    argv = [tmp_path / "a", tmp_path / "b", 5]
    assert best_of(*argv, statistic="median") == set()
    assert best_of(*argv, "--tasks", "mrpc", statistic="median") == {(1, 1), (1, 2)}


def test_bold_needs_the_runner_up(tmp_path):
    """Clearly above the third row but not above the second isn't bold."""
    write_rows(tmp_path / "a", {"rte": FIVE})
    write_rows(tmp_path / "b", {"rte": shifted([0.02, -0.01, 0.01, -0.02, 0.01])})
    write_rows(tmp_path / "c", {"rte": shifted([-0.30, -0.31, -0.29, -0.30, -0.31])})
    assert best_of(*(tmp_path / name for name in "abc"), 5) == set()
    assert best_of(tmp_path / "b", tmp_path / "c", 5) == {(0, 1), (0, 2)}


def test_bold_median_with_the_lower_mean(tmp_path):
    """The higher median isn't bold where the means, which the t-test compares, differ the other way."""
    first = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    steps = [-0.05, -0.06, -0.05, -0.04, 0.01, -0.05, -0.06, -0.05, -0.04]
    write_rows(tmp_path / "a", {"rte": first})
    write_rows(tmp_path / "b", {"rte": [value + step for value, step in zip(first, steps, strict=True)]})
    assert best_of(tmp_path / "a", tmp_path / "b", 9, statistic="median") == set()
    assert best_of(tmp_path / "a", tmp_path / "b", 9) == {(0, 1), (0, 2)}
