"""The mean or median of a few seeds with its standard error, Welch's comparison of two of them, Holm's correction.

Of SciPy only scipy.special is imported, and only when two are compared: that takes 0.2 s where scipy.stats, whose
ttest_ind(equal_var=False) gives the same numbers (tests/test_estimates.py), takes 0.7 s.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

SIGNIFICANCE = 0.05
POWER = 0.8  # with which a number of seeds is said to show something
NO_SPREAD = 1e-12  # scores are fractions or percent; below this a deviation is rounding
# Standard deviation of the median of n normal numbers over that of their mean, n = 1 to 20, by numerical integration
# over the order statistics (tests/test_estimates.py does it again); it tends to sqrt(pi / 2) from below.
MEDIAN_TO_MEAN = (
    *(1.0, 1.0, 1.1602, 1.0922, 1.1976, 1.1351, 1.2137, 1.1599, 1.2227, 1.1761),
    *(1.2283, 1.1875, 1.2322, 1.1960, 1.2351, 1.2025, 1.2373, 1.2077, 1.2390, 1.2119),
)


@dataclass(frozen=True)
class Estimate:
    """The mean or median of n seeds, in any unit."""

    value: float
    deviation: float  # the sample's, about the mean
    n: int
    statistic: str = "mean"
    step: float = 0.0  # to which a printed value and deviation were rounded

    @property
    def variance(self) -> float:
        """Return the squared standard error of the value.

        That of a mean is s^2 / n, of a median larger by the square of MEDIAN_TO_MEAN. Rounding to a step adds the
        variance of a uniform number of that width, step^2 / 12, to the value and to s^2. Without it, exact
        reproductions of rows that print deviations of 0.1 were called different in 6 to 9 % of cases (eight seeds).
        """
        rounding = self.step**2 / 12
        factor = median_to_mean(self.n) if self.statistic == "median" else 1.0
        return factor**2 * (self.deviation**2 + rounding) / self.n + rounding


@dataclass(frozen=True)
class Difference:
    """Second minus first, with its standard error on Welch's degrees of freedom."""

    value: float
    error: float
    degrees: float

    @property
    def p(self) -> float:
        """Return the two-sided p-value of Welch's t-test."""
        from scipy.special import stdtr

        return float(2 * stdtr(self.degrees, -abs(self.value) / self.error))

    def half_width(self, level: float) -> float:
        """Return half the width of the t interval of a level such as 0.95."""
        return t_quantile(self.degrees, (1 + level) / 2) * self.error


def estimate(values: Sequence[float], statistic: str) -> Estimate | None:
    """Return the mean or median of some seeds; None where there are fewer than two, which have no deviation."""
    if len(values) < 2:
        return None
    return Estimate(centre(values, statistic), sample_deviation(values), len(values), statistic)


def sample_deviation(values: Sequence[float]) -> float:
    """Return what statistics.stdev does, which computes in fractions and takes 20 times as long."""
    mean = statistics.fmean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def centre(values: Sequence[float], statistic: str) -> float:
    """Return the mean or the median."""
    return statistics.fmean(values) if statistic == "mean" else statistics.median(values)


def deviation(values: Sequence[float], ddof: int) -> float | None:
    """Return the standard deviation about the mean, which divides by n - ddof; a single value has none."""
    if len(values) < 2:
        return None
    return statistics.stdev(values) if ddof else statistics.pstdev(values)


def interval_half_width(values: Sequence[float]) -> float | None:
    """Return half the width of the 95 % t interval of the mean, None without spread."""
    n = len(values)
    if n < 2 or sample_deviation(values) < NO_SPREAD:
        return None
    return t_quantile(n - 1, 0.975) * sample_deviation(values) / math.sqrt(n)


def median_to_mean(n: int) -> float:
    """Return how much larger a median's standard error is than a mean's, for n seeds of normal scores."""
    return MEDIAN_TO_MEAN[n - 1] if n <= len(MEDIAN_TO_MEAN) else math.sqrt(math.pi / 2)


def welch(first: Estimate, second: Estimate) -> Difference | None:
    """Return second minus first; None where neither has any spread.

    The degrees of freedom are Welch's and Satterthwaite's, (a + b)^2 / (a^2 / (n - 1) + b^2 / (m - 1)), with a and b
    the two squared standard errors.
    """
    parts = ((first.variance, first.n), (second.variance, second.n))
    total = sum(variance for variance, _ in parts)
    if math.sqrt(total) < NO_SPREAD:
        return None
    degrees = total**2 / sum(variance**2 / (n - 1) for variance, n in parts)
    return Difference(second.value - first.value, math.sqrt(total), degrees)


def with_seeds(of: Estimate, n: int) -> Estimate:
    """Return what the estimate would be with n seeds of the same deviation."""
    return replace(of, n=n)


def t_quantile(degrees: float, probability: float) -> float:
    """Return the quantile of Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
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
