"""tables/equivalence.py: the three verdicts, by hand and against simulations."""

import math

import numpy as np
import pytest
from scipy import stats

from glue_peft.errors import UsageError
from glue_peft.tables.equivalence import Margin, judge, parse_margin, printed, seeds_needed, summary
from glue_peft.tables.estimates import Estimate, estimate

OURS = [79.0, 79.5, 80.0, 80.5, 81.0]  # mean 80, s^2 = 0.625


def verdict(ours: list[float], value: float, spread: float, margin: str, kind: str = "sample") -> str:
    """Return the verdict on one column against a printed mean of five seeds."""
    theirs = printed(value, spread, 5, "mean", kind)
    return judge({"rte": (estimate(ours, "mean"), theirs)}, parse_margin(margin))["rte"].in_words


def test_numbers_by_hand():
    """Ours 0.625 / 5, theirs 1 / 5 and the rounding: the interval and p are those of the t distribution."""
    theirs = printed(79.0, 1.0, 5, "mean", "sample")
    found = judge({"rte": (estimate(OURS, "mean"), theirs)}, parse_margin("3"))["rte"]
    a, b = 0.625 / 5, (1 + 0.01 / 12) / 5 + 0.01 / 12
    degrees, error = (a + b) ** 2 / (a**2 / 4 + b**2 / 4), math.sqrt(a + b)
    half = stats.t.ppf(0.95, degrees) * error
    assert (found.difference, found.low, found.high) == pytest.approx((1, 1 - half, 1 + half))
    assert found.p == found.holm_p == pytest.approx(2 * stats.t.sf(1 / error, degrees))
    assert found.margin == 3


def test_the_three_verdicts():
    """The half-width is 1.06: within a margin of 2.2 a difference of 1 is equivalent, within 2 it is open."""
    assert verdict(OURS, 79.0, 1.0, "2.2") == "equivalent"
    assert verdict(OURS, 79.0, 1.0, "2.0") == "inconclusive"
    assert verdict(OURS, 76.0, 1.0, "2.0") == "differs"
    assert verdict(OURS, 76.0, 1.0, "9") == "equivalent"  # a difference that was said not to matter


def test_holm_counts_the_columns():
    """A p of 0.03 differs alone, and with a second column, whose p is large, it doesn't."""
    ours, far, near = (
        estimate(OURS, "mean"),
        printed(78.5, 1.0, 5, "mean", "sample"),
        printed(80, 1, 5, "mean", "sample"),
    )
    alone = judge({"rte": (ours, far)}, Margin(0.1, False))["rte"]
    both = judge({"rte": (ours, far), "mrpc": (ours, near), "cola": (ours, {})}, Margin(0.1, False))
    assert alone.verdict == "differs" and 0.025 < alone.p < 0.05
    assert list(both) == ["rte", "mrpc"]  # a column without a printed spread gets no verdict and doesn't count
    assert both["rte"].verdict == "inconclusive" and both["rte"].holm_p == pytest.approx(2 * alone.p)


def test_the_kind_of_a_printed_deviation():
    """Of five seeds a population's 1.0 is a sample's sqrt(5/4); ? is both, and the margin is in the population's."""
    population, sample = printed(79.0, 1.0, 5, "mean", "?").values()
    assert (population.deviation, sample.deviation) == pytest.approx((math.sqrt(5 / 4), 1))
    assert Margin(2, True).points(population) == pytest.approx(2)
    assert Margin(2, True).points(sample) == pytest.approx(2 * math.sqrt(4 / 5))
    assert Margin(2, False).points(sample) == 2
    assert printed(79.0, None, 5, "mean", "?") == printed(79.0, 0.5, 1, "single", "?") == {}


def test_kinds_that_disagree_are_inconclusive():
    """A difference of 1.4 is shown if theirs is a sample's deviation, and not if it is the population's."""
    said = {kind: verdict(OURS, 78.6, 1.0, "0.1", kind) for kind in ("population", "sample", "?")}
    assert (said["population"], said["sample"]) == ("inconclusive", "differs")
    assert said["?"] == "inconclusive (population's deviation: inconclusive, sample's deviation: differs)"


@pytest.mark.parametrize("text", ["", "0", "-1", "1e3", "2 sd s", "sd", "nan", "0sd", "1" * 9])
def test_margins_that_are_refused(text):
    """One line names the flag and what is allowed."""
    with pytest.raises(UsageError, match="--margin must be a number of points above 0, such as 1.5, or"):
        parse_margin(text)


def test_margins():
    """Points, or published deviations."""
    assert (parse_margin("1.5"), parse_margin("2sd")) == (Margin(1.5, False), Margin(2.0, True))
    assert (str(parse_margin("1.5")), str(parse_margin("2sd"))) == (
        "1.5 points",
        "2 deviations of the published seeds",
    )


def test_seeds_needed_is_what_a_simulation_finds():
    """With so many seeds of ours an exact reproduction is called equivalent in 80 % of cases, with half in fewer."""
    theirs, margin, generator = Estimate(80.0, 1.0, 40), 1.0, np.random.default_rng(0)
    needed = seeds_needed(Estimate(80.0, 1.0, 5), theirs, margin)
    shares = []
    for n in (needed, needed // 2):
        published = 80 + generator.standard_normal((2000, 40))
        ours = 80 + generator.standard_normal((2000, n))
        pairs = [
            (estimate(list(a), "mean"), {"sample": estimate(list(b), "mean")})
            for a, b in zip(ours, published, strict=True)
        ]
        found = [judge({"rte": pair}, Margin(margin, False))["rte"].verdict for pair in pairs]
        shares.append(found.count("equivalent") / len(found))
    assert 0.77 < shares[0] < 0.86 and shares[1] < 0.6
    assert seeds_needed(Estimate(80.0, 1.0, 5), Estimate(80.0, 1.0, 5), margin) is None


def test_the_summary():
    """Of each verdict how many, and what it would take for those that are open."""
    columns = {"rte": OURS, "mrpc": [value + 9 for value in OURS], "cola": [79.0, 80.0, 81.0, 82.0, 83.0]}
    theirs = printed(79.9, 1.2, 5, "mean", "population")
    judged = judge({name: (estimate(of, "mean"), theirs) for name, of in columns.items()}, parse_margin("2sd"))
    needed = judged["cola"].needed
    assert needed is not None and summary(judged, 5) == (
        "of 3 columns 1 equivalent, 1 differs, 1 inconclusive; an exact reproduction would be called equivalent in "
        f"80 % of cases with this many seeds of ours (here 5): cola {needed}"
    )
    few = judge({"cola": (estimate(columns["cola"], "mean"), theirs)}, parse_margin("1"))
    assert summary(few, 5).endswith("; not with 100 either: cola, as the published seeds are few for this margin")
