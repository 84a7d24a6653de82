"""answers.py: what runs answered, how far they agree, and McNemar's test."""

import numpy as np
import pytest
from helpers import results_of, write_answers, write_run
from scipy.stats import binomtest

from glue_peft.errors import UsageError
from glue_peft.tables.answers import agreement_table, mcnemar, mcnemar_lines, read_answers

LABELS = [0, 1, 1, 0]


def test_agreement_by_hand(tmp_path):
    """Three seeds, right on all four rows, on three, and on two; they agree on three, two and three rows of four."""
    for seed, given in enumerate(([0, 1, 1, 0], [0, 1, 1, 1], [0, 1, 0, 1]), start=1):
        write_answers(tmp_path / "lora4", seed, "rte", LABELS, given)
        write_answers(tmp_path / "lora4", seed, "stsb", [0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0 * seed])
        write_answers(tmp_path / "lora4", seed, "mnli", LABELS, given, [0, 1, 1, 0])
    results = results_of(tmp_path / "lora4", 3, "--tasks", "rte,stsb,mnli")
    answers, notes = read_answers(results, allow_missing=False)
    table, records = agreement_table(results, answers)
    correlation = np.mean([np.corrcoef([0, 1, 2, 3 * a], [0, 1, 2, 3 * b])[0, 1] for a, b in ((1, 2), (1, 3), (2, 3))])
    assert table.rows == [["lora4", "50.0 / 66.7", f"{correlation:.3f}", "75.0 / 83.3"]] and notes == []
    assert [record.get("all_right") for record in records] == [50, None, 75]
    assert records[1]["correlation"] == pytest.approx(correlation)


def test_one_seed_agrees_with_nobody(tmp_path):
    """Which is no agreement of 100 %."""
    write_answers(tmp_path / "lora4", 1, "rte", LABELS, LABELS)
    results = results_of(tmp_path / "lora4", 1, "--tasks", "rte")
    assert agreement_table(results, read_answers(results, False)[0])[0].rows == [["lora4", "-"]]


@pytest.mark.parametrize("counts", [(0, 0), (0, 1), (0, 6), (3, 12), (20, 20), (40, 22)])
def test_mcnemar_is_the_exact_binomial_test(counts):
    """As SciPy has it."""
    expected = binomtest(counts[0], sum(counts)).pvalue if sum(counts) else 1.0
    assert mcnemar(*counts) == pytest.approx(expected) == pytest.approx(mcnemar(*counts[::-1]))


def test_mcnemar_compares_single_runs_alone(tmp_path):
    """Six rows right in the second alone, none in the first; of two seeds, and of STS-B, there is no such line."""
    labels = [1] * 8
    write_answers(tmp_path / "lora4", 1, "rte", labels, [0] * 6 + [1] * 2)
    write_answers(tmp_path / "vera16", 1, "rte", labels, [1] * 8)
    for root in ("lora4", "vera16"):
        write_answers(tmp_path / root, 1, "stsb", [0.0, 1.0, 2.0], [0.0, 1.0, 2.5])
        for seed in (1, 2):
            write_answers(tmp_path / f"two {root}", seed, "rte", labels, [1] * 7 + [0])
    results = results_of(tmp_path / "lora4", tmp_path / "vera16", 1, "--tasks", "rte,stsb")
    lines = mcnemar_lines(results, [(0, 1)], read_answers(results, False)[0])
    said = "right are 0 in lora4 alone and 6 in vera16 alone; p 0.0312"
    assert lines == [f"McNemar's exact test of two single runs, rte: {said}"]
    results = results_of(tmp_path / "two lora4", tmp_path / "two vera16", 2, "--tasks", "rte")
    assert mcnemar_lines(results, [(0, 1)], read_answers(results, False)[0]) == []


def test_what_cannot_be_used_is_named(tmp_path):
    """Each file with its reason; --allow_missing does without them and counts them."""
    root = tmp_path / "lora4"
    for seed in range(1, 6):
        folder = write_answers(root, seed, "rte", LABELS, [0, 1, 1, 1])
    write_run(root, 2, "rte", 0.25)
    np.savez(root / "3" / "rte" / "eval_predictions.npz", label=LABELS, best=np.eye(2)[LABELS])
    (root / "4" / "rte" / "eval_predictions.npz").unlink()
    (folder / "eval_predictions.npz").write_bytes(b"PK")
    results = results_of(root, 5, "--tasks", "rte")
    with pytest.raises(UsageError) as caught:
        read_answers(results, allow_missing=False)
    path = f"{root}/{{}}/rte/eval_predictions.npz"
    assert str(caught.value).splitlines()[1:-1] == [
        f"  {path.format(2)}: gives the score 0.7500, and the run has 0.2500",
        f"  {path.format(3)}: has none of the last epoch",
        f"  {path.format(4)}: missing",
    ]
    assert str(caught.value).splitlines()[-1].startswith(f"  {path.format(5)}: not a readable file of predictions")
    answers, notes = read_answers(results, allow_missing=True)
    assert list(answers["rte"][0].given) == [(0, 1)]
    assert notes == ["no part of these intervals, without usable answers: 4 runs"]


def test_runs_on_different_rows_are_refused(tmp_path):
    """Also with --allow_missing: such runs can't be paired over rows."""
    write_answers(tmp_path / "lora4", 1, "rte", LABELS, LABELS)
    write_answers(tmp_path / "vera16", 1, "rte", [*LABELS, 1], [*LABELS, 1])
    results = results_of(tmp_path / "lora4", tmp_path / "vera16", 1, "--tasks", "rte")
    with pytest.raises(UsageError, match="lora4/1/rte and .*vera16/1/rte were evaluated on different rows of rte"):
        read_answers(results, allow_missing=True)
