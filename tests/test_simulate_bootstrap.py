"""benchmarks/simulate_bootstrap.py in small: the intervals hold the truth as often as the documentation says."""

import math
import sys

import numpy as np
import pytest

from benchmarks import simulate_bootstrap
from benchmarks.simulate_bootstrap import COLA_SHARE, RTE_CASES, Case, coverage


@pytest.mark.parametrize("metric", ["accuracy", "matthews_correlation"])
def test_the_truth_is_what_many_rows_and_seeds_give(metric):
    """Mean and deviation of 300 seeds on 10,000 rows; label 0 is harder."""
    generator, case = np.random.default_rng(0), Case(1.2, 1.5, 0.3, harder=0.7)
    share = 0.5 if metric == "accuracy" else COLA_SHARE
    labels = (generator.random(10_000) < share).astype(int)
    is_right = case.right(generator, labels, generator.standard_normal(10_000), 300)
    given = np.where(is_right, labels[:, None], 1 - labels[:, None])
    scores = [
        np.mean(labels == answers) if metric == "accuracy" else np.corrcoef(labels, answers)[0, 1]
        for answers in given.T
    ]
    mean, deviation = case.true_scores(metric)
    assert mean == pytest.approx(np.mean(scores), abs=0.015) and deviation == pytest.approx(np.std(scores), rel=0.15)


@pytest.mark.parametrize(("n", "n_rows", "task"), [(5, 1, "rte"), (8, 1, "rte"), (5, 2, "rte"), (5, 1, "cola")])
def test_coverage(n, n_rows, task):
    """At least 0.93, but for one case in a hundred."""
    repeats = 100
    found = coverage(np.random.default_rng(0), Case(1.2, 1.5, 0.1), n, n_rows, task, repeats)
    assert found["ours"][0] >= repeats * 0.93 - 2.33 * math.sqrt(repeats * 0.93 * 0.07)


def test_drawing_rows_and_seeds_is_too_wide_in_pairs_and_too_narrow_for_few_seeds_that_differ():
    """So the simulation tells methods apart."""
    generator = np.random.default_rng(0)
    alike, apart = RTE_CASES[1], RTE_CASES[4]
    found = coverage(generator, alike, 8, 2, "rte", 40)
    assert found["pigeonhole"][1] > 1.15 * found["ours"][1]
    found = coverage(generator, apart, 5, 1, "rte", 150)
    assert found["pigeonhole"][0] < found["ours"][0] and found["pigeonhole"][0] <= 0.93 * 150


def test_the_output(capsys, monkeypatch):
    """A line for each case, and the same numbers each time."""
    monkeypatch.setattr(simulate_bootstrap, "COLA_CASES", simulate_bootstrap.COLA_CASES[:1])
    monkeypatch.setattr(sys, "argv", ["simulate_bootstrap", "--repeats", "2", "--parts", "3"])
    outputs = []
    for _ in range(2):
        simulate_bootstrap.main()
        outputs.append(capsys.readouterr().out.splitlines())
    assert outputs[0] == outputs[1] and len(outputs[0]) == 5
    assert [line.split(" | ")[0] for line in outputs[0][2:4]] == ["5", "8"]
