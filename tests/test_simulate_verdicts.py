"""benchmarks/simulate_verdicts.py in small: the verdicts err as rarely as the documentation says."""

import math
import sys

import numpy as np
import pytest

from benchmarks import simulate_verdicts
from benchmarks.simulate_verdicts import at_the_margin, draw, false_alarms, is_false_alarm, judged, results_of, shown


def at_most(limit: float, repeats: int) -> float:
    """Return how many hits a share at the limit has at most, but for one case in a hundred."""
    return repeats * limit + 2.33 * math.sqrt(repeats * limit * (1 - limit))


@pytest.mark.parametrize("all_pairs", [False, True])
@pytest.mark.parametrize(("n_rows", "n_tasks", "n"), [(2, 6, 8), (4, 3, 3), (6, 6, 5)])
def test_false_alarms(n_rows, n_tasks, n, all_pairs):
    """At least one verdict or bold cell where nothing differs: at most 0.06."""
    repeats = 200
    assert false_alarms(np.random.default_rng(0), n_rows, n_tasks, n, all_pairs, repeats) <= at_most(0.06, repeats)


def test_false_alarms_with_collapses():
    """Collapsed runs, as many in every row, make none either."""
    assert false_alarms(np.random.default_rng(0), 4, 6, 5, False, 200, collapsing=0.1) <= at_most(0.06, 200)


def test_a_planted_difference_is_an_alarm():
    """So the counts above aren't zero for nothing."""
    generator = np.random.default_rng(0)
    rows = [draw(generator, ["mrpc", "rte"], 5, 0.0) for _ in "ab"]
    rows[1]["rte"] = {seed: score + 0.1 for seed, score in rows[1]["rte"].items()}
    assert is_false_alarm(results_of(rows), all_pairs=False)


def test_welch_shows_more_than_pairing_at_the_correlation_of_seeds():
    """With five seeds and a correlation of 0.12 Welch's test shows a difference more often, at 0.6 the paired one."""
    for correlation, ahead in ((0.12, True), (0.6, False)):
        welch, paired = shown(np.random.default_rng(0), 5, 3.0, correlation, 21, 300)
        assert (welch > paired + 20) is ahead


@pytest.mark.parametrize("statistic", ["mean", "median"])
@pytest.mark.parametrize(("kind", "known"), [("population", True), ("sample", True), ("sample", False)])
def test_exact_reproductions(statistic, kind, known):
    """At most 0.06 differ in any of seven columns; of the columns about half are equivalent, of medians a third."""
    repeats, generator = 250, np.random.default_rng(0)
    draws = [judged(generator, 5, statistic, kind, known, "2sd") for _ in range(repeats)]
    verdicts = [[judgement.verdict for judgement in row.values()] for row in draws]
    assert sum("differs" in row for row in verdicts) <= at_most(0.06, repeats)
    equivalent = sum(row.count("equivalent") for row in verdicts) / (7 * repeats)
    assert equivalent == pytest.approx(0.52 if statistic == "mean" else 0.33, abs=0.05)


@pytest.mark.parametrize("shift", ["points", "printed", "true"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_shift_as_large_as_the_margin(size, shift):
    """It is called equivalent in at most 0.055, whatever is meant by the margin."""
    generator, repeats = np.random.default_rng(0), 500
    hits = sum(at_the_margin(generator, "mean", "sample", size, shift) for _ in range(repeats))
    assert hits <= at_most(0.055, repeats)


def test_why_a_margin_is_in_the_populations_deviation():
    """With the sample's, a true shift of three deviations would pass twice as often as promised."""
    generator = np.random.default_rng(0)
    hits = sum(at_the_margin(generator, "mean", "sample", 3, "sample") for _ in range(500))
    assert hits > at_most(0.055, 500)


def test_the_command_prints_every_part(monkeypatch, capsys):
    """Each share stands there with its error, and the numbers are the same again."""
    monkeypatch.setattr(sys, "argv", ["simulate_verdicts", "--repeats", "2"])
    simulate_verdicts.main()
    out = capsys.readouterr().out
    assert [line[0] for line in out.splitlines() if line[:1].isdigit() and line[1] == "."] == ["1", "2", "3", "4", "6"]
    assert out.count(" ± ") > 100
    simulate_verdicts.main()
    assert capsys.readouterr().out == out
