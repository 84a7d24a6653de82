"""tables/comparisons.py against SciPy and cases worked out by hand."""

import math
import statistics

import numpy as np
import pytest
from helpers import FIVE, results_of, shifted, write_rows
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from glue_peft.tables.comparisons import (
    Comparison,
    best_cells,
    compare,
    compare_rows,
    paired_p,
    permutation_seeds,
    permutation_test,
    seeds_needed,
    smallest_shown,
    verdict,
)
from glue_peft.tables.estimates import estimate, welch

SCORES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8)


def by_seed(values: list[float]) -> dict[int, float]:
    """Return the scores of seeds 1, 2, …"""
    return dict(enumerate(values, start=1))


def test_paired_t_test_by_hand():
    """Differences 1, 2, 3 points: mean 2, s 1, t = 2 sqrt(3) on 2 degrees of freedom, whose p has a closed form."""
    t = 2 * math.sqrt(3)
    p = paired_p(by_seed([0.50, 0.60, 0.70]), by_seed([0.51, 0.62, 0.73]))
    assert p == pytest.approx(1 - t / math.sqrt(2 + t**2))


@settings(max_examples=60, deadline=None)
@given(SCORES)
def test_the_tests_are_scipys(pairs):
    """Welch's test, its interval and the paired test are those of scipy.stats."""
    first, second = zip(*pairs, strict=True)
    assume(min(map(statistics.stdev, (first, second, [b - a for a, b in pairs]))) > 1e-6)
    found, welch = compare(by_seed(first), by_seed(second)), stats.ttest_ind(second, first, equal_var=False)
    assert found.p == pytest.approx(welch.pvalue, rel=1e-9, abs=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(welch.confidence_interval()), rel=1e-9, abs=1e-12)
    assert found.paired_p == pytest.approx(stats.ttest_rel(second, first).pvalue, rel=1e-9, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 99), min_size=2, max_size=5), st.lists(st.integers(0, 99), min_size=2, max_size=4))
def test_permutation_test_is_scipys(first, second):
    """The exact p is scipy.stats.permutation_test's over all splits, also of rows with unequal numbers of seeds."""
    first, second = ([value / 100 for value in values] for values in (first, second))
    expected = stats.permutation_test(
        (first, second), lambda a, b: round(abs(statistics.fmean(a) - statistics.fmean(b)), 9), n_resamples=math.inf,
        alternative="greater", vectorized=False,
    )  # fmt: skip
    assert permutation_test(first, second)[0] == pytest.approx(expected.pvalue)


def test_permutation_test_by_hand():
    """1 2 against 3 4: of the six splits two are as far apart. Ties count, whatever their rounding."""
    assert permutation_test([0.1, 0.2], [0.3, 0.4]) == (pytest.approx(2 / 6), pytest.approx(2 / 6))
    assert permutation_test([0.1], [0.3, 0.4]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert permutation_test([0.3, 0.3], [0.1 + 0.2, 0.3]) == (1, pytest.approx(1 / 3))  # 0.1 + 0.2 is above 0.3
    assert permutation_test(FIVE, [value + 1 for value in FIVE]) == (pytest.approx(2 / 252), pytest.approx(2 / 252))


def test_permutation_test_of_many_seeds():
    """From 9 seeds a row on 20,000 splits are drawn, the same in every call, and the one observed counts as one."""
    far = [value / 10 for value in range(9)], [2 + value / 10 for value in range(9)]
    p, smallest = permutation_test(*far)  # of 48,620 splits two are as far apart
    assert smallest == 1 / 20_001 and p in [count / 20_001 for count in (1, 2, 3)]
    near = [value / 10 for value in range(9)], [0.2 + value / 10 for value in range(9)]
    p, _ = permutation_test(*near)
    assert p == permutation_test(*near)[0]
    # Drawn or not, p is that of all 48,620 splits within three standard errors.
    exact = stats.permutation_test(
        near, lambda a, b, axis: abs(a.mean(axis) - b.mean(axis)) + 1e-9, n_resamples=50_000, alternative="greater"
    ).pvalue
    assert p == pytest.approx(exact, abs=3 * math.sqrt(exact * (1 - exact) / 20_000))


def test_verdicts_go_by_corrected_p_values():
    """Of p 0.03 with 0.06 after Holm nothing is said; the permutation test confirms by its corrected p too."""
    for holm_p, holm_permutation_p, said in (
        (0.06, 0.01, "no difference shown"),
        (None, 0.01, "no difference shown"),
        (0.03, 0.06, "b is better, by the t-test alone"),
        (0.03, 0.03, "b is better"),
    ):
        found = Comparison((5, 5), 0.1, holm_p=holm_p, holm_permutation_p=holm_permutation_p)
        assert verdict(found, "a", "b") == said


def test_without_spread_there_is_no_t_test():
    """One seed on a side, or no spread on either: no interval and no p; a spread on one side is enough."""
    for first, second in (([0.5], [0.6]), ([0.5], [0.6, 0.7]), ([0.4, 0.4], [0.5, 0.5])):
        found = compare(by_seed(first), by_seed(second))
        assert (found.low, found.high, found.p, found.paired_p) == (None,) * 4
        assert found.difference == pytest.approx(statistics.fmean(second) - first[0])
        assert (smallest_shown(found, 3), seeds_needed(found, 3)) == (None, None)
    equal = compare(by_seed([0.1, 0.2, 0.3]), by_seed([0.4, 0.5, 0.6]))
    assert equal.paired_p is None and equal.p < 0.05
    assert compare({}, {1: 0.5}) is None


def test_only_common_seeds_are_paired():
    """Of seeds 2 and 4 the differences are -0.1 and 0.1; Welch's test takes all of either row."""
    found = compare({1: 0.5, 2: 0.9, 4: 0.1}, {2: 0.8, 3: 0.0, 4: 0.2})
    assert found.n == (3, 3) and found.paired_p == pytest.approx(1)
    assert found.difference == pytest.approx(1 / 3 - 0.5)


def test_the_smallest_difference_shown():
    """Exactly there Welch's p times the family's size is 0.05, whatever the family."""
    for size in (1, 6, 30):
        first, second = by_seed(FIVE), by_seed(shifted([0.01, 0.03, 0.0, 0.02, 0.01]))
        shown = smallest_shown(compare(first, second), size)
        step = shown - compare(first, second).difference
        moved = compare(first, {seed: value + step for seed, value in second.items()})
        assert moved.difference == pytest.approx(shown) and size * moved.p == pytest.approx(0.05)


def test_seeds_needed_are_what_a_simulation_finds():
    """With so many seeds a difference of one deviation in a family of 6 is shown in 80 % of cases."""
    generator, scale = np.random.default_rng(0), statistics.stdev(FIVE)
    found = compare(by_seed(FIVE), by_seed([value + scale for value in FIVE]))
    n = seeds_needed(found, 6)
    rows = [[estimate(list(generator.normal(mean, 1, n)), "mean") for mean in (0, 1)] for _ in range(2000)]
    share = sum(6 * welch(*pair).p < 0.05 for pair in rows) / len(rows)
    assert share == pytest.approx(0.8, abs=0.03)  # three and a half standard errors


def test_seeds_for_a_permutation_test():
    """2 / 2^n <= 0.05 / m takes 8 to 12 seeds for m = 6 to 90; 2 / C(2n, n) reaches 0.0079 with five a row."""
    assert [permutation_seeds(m, paired=True) for m in (6, 12, 18, 30, 90)] == [8, 9, 10, 11, 12]
    assert [permutation_seeds(m) for m in (1, 6, 7, 12, 30, 90)] == [4, 5, 6, 6, 7, 8]


# Best cells: (row, column), of the columns in the table's order with the name's as 0.


def best_of(*argv: object, statistic: str = "mean", all_pairs: bool = False) -> set[tuple[int, int]]:
    """Return the best cells of a table."""
    results = results_of(*argv)
    return best_cells(results, statistic, compare_rows(results, all_pairs))


def test_bold_goes_by_the_familys_p(tmp_path):
    """t = 2.5 on 8 degrees of freedom, p = 0.037, is bold; beside a third row, in a family of two, it isn't."""
    for name, step in (("a", 0), ("b", 0.025), ("c", -0.01)):
        write_rows(tmp_path / name, {"rte": [value + step for value in FIVE]})
    assert best_of(tmp_path / "a", tmp_path / "b", 5) == {(1, 1), (1, 2)}
    assert best_of(*(tmp_path / name for name in "abc"), 5) == set()


def test_bold_needs_a_comparison_with_the_runner_up(tmp_path):
    """Where neither of the two best rows is the first, only all pairs tell; then both must be shown to be apart."""
    for name, step in (("a", 0), ("b", 0.1), ("c", 0.05), ("d", 0.06)):
        write_rows(tmp_path / name, {"rte": [value + step for value in FIVE]})
    three, four = [[tmp_path / name for name in names] for names in ("abc", "acd")]
    assert best_of(*three, 5) == set() and best_of(*reversed(three), 5) == {(1, 1), (1, 2)}
    assert best_of(*three, 5, all_pairs=True) == {(1, 1), (1, 2)}
    assert best_of(*four, 5, all_pairs=True) == set()


def test_bold_median_with_the_lower_mean(tmp_path):
    """The higher median isn't bold where the means, which are tested, differ the other way."""
    write_rows(tmp_path / "a", {"rte": [0.5 + 0.001 * step for step in range(9)]})
    write_rows(tmp_path / "b", {"rte": [0.51] * 5 + [0.2] * 4})
    assert best_of(tmp_path / "a", tmp_path / "b", 9, statistic="median") == set()
    assert best_of(tmp_path / "a", tmp_path / "b", 9) == {(0, 1), (0, 2)}


def test_the_average_of_several_tasks_is_in_the_family(tmp_path):
    """Two rows and two tasks make three comparisons; of one task the average is the same comparison."""
    for name in "ab":
        write_rows(tmp_path / name, {"rte": FIVE, "mrpc": FIVE})
    argv = [tmp_path / "a", tmp_path / "b", 5]
    assert compare_rows(results_of(*argv), all_pairs=False).size == 3
    assert compare_rows(results_of(*argv, "--tasks", "rte"), all_pairs=False).size == 1


def test_holm_runs_over_all_pairs_and_columns(tmp_path):
    """Each corrected p is at least the p, and the smallest is multiplied by the family's size."""
    for name, steps in (("a", [0] * 5), ("b", [0.02, 0.01, 0.03, 0.02, 0.04]), ("c", [0.0, 0.01, 0.0, 0.02, 0.01])):
        write_rows(tmp_path / name, {"rte": shifted(steps), "mrpc": shifted(steps[::-1])})
    family = compare_rows(results_of(*(tmp_path / name for name in "abc"), 5), all_pairs=True)
    found = [comparison for compared in family.pairs.values() for comparison in compared.values()]
    assert len(found) == family.size == 9 and list(family.pairs) == [(0, 1), (0, 2), (1, 2)]
    smallest = min(found, key=lambda comparison: comparison.p)
    assert smallest.holm_p == pytest.approx(9 * smallest.p)
    assert all(comparison.p <= comparison.holm_p <= 9 * comparison.p + 1e-12 for comparison in found)
