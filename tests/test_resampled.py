"""resampled.py: the scores of many draws at once are the metric's own on the rows of each draw, written out."""

import numpy as np
import pytest

from glue_peft.metric import task_scores
from glue_peft.tables.resampled import score_draws

METRICS = {
    "sst2": ("accuracy",),
    "mnli": ("accuracy",),
    "cola": ("matthews_correlation",),
    "mrpc": ("accuracy", "f1", "combined_score"),
    "stsb": ("pearson", "spearmanr", "combined_score"),
}


def answers_of(task: str, generator: np.random.Generator, rows: int, runs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels [rows] and what runs answered, two thirds of it right, or near the label; with ties."""
    if task == "stsb":
        labels = np.round(generator.uniform(0, 5, rows), 1)
        return labels, np.round(labels[:, None] + generator.normal(0, 2, (rows, runs)), 1)
    classes = 3 if task == "mnli" else 2
    labels = generator.integers(classes, size=rows)
    wrong = generator.random((rows, runs)) < 1 / 3
    return labels, np.where(wrong, (labels[:, None] + 1) % classes, labels[:, None])


@pytest.mark.parametrize(("task", "rows"), [(task, rows) for task in METRICS for rows in (4, 60)])
def test_each_draw_has_the_metrics_own_score(task, rows):
    """Of four rows many draws have one label alone, and correlations of 0; one run always answers the same."""
    generator = np.random.default_rng(rows)
    labels, given = answers_of(task, generator, rows, 4)
    given[:, 3] = 1
    drawn = generator.integers(rows, size=(12, rows))
    counts = np.stack([np.bincount(of_draw, minlength=rows) for of_draw in drawn]).astype(float)
    found = {name: score_draws(task, name, labels, given, counts) for name in METRICS[task]}
    for draw, of_draw in enumerate(drawn):
        for run, answers in enumerate(given[of_draw].T):
            expected = task_scores(task, answers, labels[of_draw])
            expected["combined_score"] = sum(expected.values()) / len(expected)
            for name, scores in found.items():
                assert scores[draw, run] == pytest.approx(expected[name], abs=1e-9)


def test_answers_that_differ_in_the_last_digits_are_told_apart():
    """A run that says nearly the same everywhere has the correlation of what is left of it, as in the run's score."""
    generator = np.random.default_rng(0)
    labels = generator.uniform(0, 5, 200)
    given = 2.5 + 1e-6 * (labels + generator.normal(0, 1, 200))
    found = score_draws("stsb", "pearson", labels, given[:, None], np.ones((1, 200)))
    assert found.item() == pytest.approx(np.corrcoef(labels, given)[0, 1], abs=1e-6)
