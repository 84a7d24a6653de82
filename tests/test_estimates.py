"""tables/estimates.py against SciPy, numerical integration and cases worked out by hand."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import special, stats

from glue_peft.tables.estimates import (
    Estimate,
    centre,
    deviation,
    estimate,
    holm,
    interval_half_width,
    median_to_mean,
    welch,
    with_seeds,
)

SCORES = st.lists(st.floats(0, 1), min_size=2, max_size=8)


@settings(max_examples=60, deadline=None)
@given(SCORES, SCORES)
def test_welch_is_scipys(first, second):
    """Difference, interval and p are those of scipy.stats.ttest_ind with unequal variances."""
    assume(min(statistics.stdev(first), statistics.stdev(second)) > 1e-6)
    found, expected = (
        welch(estimate(first, "mean"), estimate(second, "mean")),
        stats.ttest_ind(second, first, equal_var=False),
    )
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-12)
    for level in (0.9, 0.95):
        half = found.half_width(level)
        interval = (found.value - half, found.value + half)
        assert interval == pytest.approx(tuple(expected.confidence_interval(level)), rel=1e-9, abs=1e-12)


def test_welch_by_hand():
    """0, 2 against 3, 5, 4: variances 2 / 2 and 1 / 3; (4/3)^2 / (1 / 1 + (1/9) / 2) = 32 / 19 degrees of freedom."""
    found = welch(estimate([0, 2], "mean"), estimate([3, 5, 4], "mean"))
    assert (found.value, found.error, found.degrees) == pytest.approx((3, math.sqrt(4 / 3), 32 / 19))


def test_without_spread_there_is_no_test():
    """A single seed has no deviation, and two sides of equal scores no standard error; one such side is fine."""
    assert estimate([0.5], "mean") is None
    flat = estimate([0.5, 0.5], "mean")
    assert welch(flat, flat) is None
    assert welch(estimate([0.1, 0.2, 0.3], "mean"), flat).degrees == pytest.approx(2)


def test_the_centre():
    """Of 1, 2, 6 the mean is 3 and the median 2; the deviation is about the mean in both cases."""
    values = [1.0, 2.0, 6.0]
    assert (centre(values, "mean"), centre(values, "median")) == (3, 2)
    assert estimate(values, "median") == Estimate(2.0, pytest.approx(7**0.5), 3, "median")


def median_ratio(n: int) -> float:
    """Integrate the density of the median of n normal numbers: of one order statistic, or of the mean of two."""
    x = np.arange(-8, 8, 0.02)[:, None]
    if n % 2:
        weights = (special.ndtr(x) * special.ndtr(-x)) ** (n // 2) * np.exp(-(x**2) / 2)
    else:
        half_gap = np.arange(0.01, 8, 0.02)[None, :]
        tails = special.ndtr(x - half_gap) * special.ndtr(-x - half_gap)
        weights = tails ** (n // 2 - 1) * np.exp(-(x**2) - half_gap**2)
    return math.sqrt(n * (weights * x**2).sum() / weights.sum())


@pytest.mark.parametrize("n", range(1, 21))
def test_a_medians_standard_error(n):
    """The table is what integration gives."""
    assert median_to_mean(n) == pytest.approx(median_ratio(n), abs=2e-4)


def test_a_median_of_many_seeds():
    """It tends to sqrt(pi / 2), which is taken from 21 seeds on: more than the true 1.24."""
    assert median_to_mean(21) == pytest.approx(1.2533, abs=1e-4) and median_ratio(21) < 1.2533


def test_standard_errors_by_hand():
    """s^2 / n, of a median of five 1.1976^2 times that; printed with one decimal 0.1^2 / 12 more, in s^2 too."""
    assert Estimate(80, 2.0, 5).variance == pytest.approx(0.8)
    assert Estimate(80, 2.0, 5, "median").variance == pytest.approx(0.8 * 1.1976**2)
    assert Estimate(80, 2.0, 5, step=0.1).variance == pytest.approx((4 + 0.01 / 12) / 5 + 0.01 / 12)
    assert with_seeds(Estimate(80, 2.0, 5), 8).variance == pytest.approx(0.5)


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


def test_deviation_by_hand():
    """1, 2, 6: squares 4 + 1 + 9 over 3 or 2; one value has none."""
    values = [1.0, 2.0, 6.0]
    assert deviation(values, 0) == pytest.approx(math.sqrt(14 / 3)) and deviation(values, 1) == pytest.approx(7**0.5)
    assert (deviation([0.5], 0), deviation([0.5], 1)) == (None, None)


@settings(max_examples=60, deadline=None)
@given(SCORES)
def test_interval_of_a_mean_is_scipys(values):
    """Half the width of the 95 % t interval."""
    assume(statistics.stdev(values) > 1e-6)
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    assert interval_half_width(values) == pytest.approx((high - low) / 2)
    assert interval_half_width([0.5]) is None and interval_half_width([0.5, 0.5]) is None
