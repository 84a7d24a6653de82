"""tables/read.py: which file a score comes from, and what makes a run unusable."""

import json
import os

import pytest
from helpers import begin_run, fail_run, metrics_of, refusal, results_of, write_run

from glue_peft.run_folder import FAILURE_KINDS
from glue_peft.tables.collapse import collapse
from glue_peft.tables.read import read_run


def scores(task: str = "rte") -> dict:
    """Return `scores` of one run as run_glue.py writes it: the last epoch .70, the best .80, the selected .75."""
    entries = {name: metrics_of(task, value) for name, value in (("last", 0.7), ("best", 0.8), ("selected", 0.75))}
    return {"scores": {**entries, "history": list(entries.values())}}


@pytest.mark.parametrize(("epoch", "score"), [("last", 0.7), ("best", 0.8), ("selected", 0.75)])
def test_epochs_come_from_run_json(tmp_path, epoch, score):
    """With --load_best_model_at_end eval_results.json holds the best epoch: run.json's `scores` go before it."""
    folder = write_run(tmp_path, 1, "rte", 0.8, **scores(), arguments={"load_best_model_at_end": True})
    (results,) = results_of(tmp_path, 1, "--epoch", epoch).rows
    assert results.scores("rte") == {1: score}
    assert results.runs["rte"][1].source == folder / "run.json"


def test_last_epoch_without_scores(tmp_path):
    """Without `scores` eval_results.json is the last epoch's, unless the run loaded its best one."""
    folder = write_run(tmp_path, 1, "rte", 0.7, scores=None)
    (row,) = results_of(tmp_path, 1).rows
    assert row.scores("rte") == {1: 0.7}
    assert row.runs["rte"][1].source == folder / "eval_results.json"
    write_run(tmp_path, 1, "rte", 0.7, scores=None, arguments={"load_best_model_at_end": True})
    assert f"{folder}/run.json: has no scores, and eval_results.json is the best epoch's" in refusal(tmp_path, 1)


def test_the_last_epoch_is_not_called_the_best(tmp_path):
    """A run that was evaluated once, at its end, has no best epoch, even where run.json calls it so."""
    folder = write_run(tmp_path, 1, "rte", 0.7, arguments={"eval_strategy": "no"})
    assert results_of(tmp_path, 1).rows[0].scores("rte") == {1: 0.7}
    reason = "has the last epoch's scores alone (--eval_strategy epoch)"
    assert f"{folder}/run.json: {reason}" in refusal(tmp_path, 1, "--epoch", "best")


@pytest.mark.parametrize("epoch", ["best", "selected"])
def test_epochs_that_were_not_recorded(tmp_path, epoch):
    """Asking for them is an error that names run.json and the flag, also where there is no run.json."""
    flag = {"best": "--eval_strategy epoch", "selected": "--selection_fraction"}[epoch]
    folder = write_run(tmp_path, 1, "rte", 0.7, scores=None)
    expected = f"{folder}/run.json: has no scores of the {epoch} epoch ({flag})"
    assert refusal(tmp_path, 1, "--epoch", epoch).splitlines()[1].strip() == expected
    (folder / "run.json").unlink()
    message = refusal(tmp_path, 1, "--epoch", epoch)
    assert f"{folder}/run.json: is missing, so the run has no scores of the {epoch} epoch ({flag})" in message
    (folder / "eval_results.json").unlink()
    assert "has no usable result" in refusal(tmp_path, 1, "--epoch", epoch)


def test_scores_on_the_held_out_rows(tmp_path):
    """The last epoch's, of MNLI one; a run that held none out has none, and one without a record is not there."""
    last = {"epoch": 3.0, "selection_accuracy": 0.6, "selection_majority_share": 0.6, "eval_accuracy": 0.9}
    folder = write_run(tmp_path, 1, "rte", 0.9, scores={"last": last, "selected": last | {"selection_accuracy": 0.8}})
    write_run(tmp_path, 1, "mnli", 0.9, scores={"last": last})
    row = results_of(tmp_path, 1, "--epoch", "held_out", "--tasks", "rte,mnli").rows[0]
    assert row.scores("rte") == row.scores("mnli") == {1: 0.6}
    assert "not above the share of the most frequent class, 60.0 %" in str(collapse(row.runs["rte"][1]))
    write_run(tmp_path, 1, "rte", 0.9)
    expected = f"{folder}/run.json: has no scores on held-out rows (--selection_fraction)"
    assert expected in refusal(tmp_path, 1, "--epoch", "held_out", "--tasks", "rte")
    (folder / "run.json").unlink()
    assert results_of(tmp_path, 1, "--epoch", "held_out", "--tasks", "rte,mnli").empty_tasks == ["rte"]


def write_foreign(root, evaluated: int | None, best: str | None, **more) -> None:
    """Write what Hugging Face's example leaves after three epochs: the results, and Trainer's state with its log.

    `evaluated` is the epoch that eval_results.json has the loss of, `best` the noted checkpoint.
    """
    folder = begin_run(root, 1, "rte")
    losses = {1: 0.61, 2: 0.55, 3: 0.58}
    results = metrics_of("rte", 0.7) | {"eval_loss": losses.get(evaluated, 0.5), "epoch": 3.0}
    log = [{"step": 100 * epoch, "epoch": epoch, "eval_loss": loss} for epoch, loss in losses.items()]
    state = {"best_model_checkpoint": best, "global_step": 300, "log_history": [{"loss": 0.6, "step": 50}, *log]}
    (folder / "eval_results.json").write_text(json.dumps(results))
    (folder / "trainer_state.json").write_text(json.dumps(state | more))


@pytest.mark.parametrize(
    ("evaluated", "best", "last_known", "best_known"),
    [
        (3, None, True, False),  # no best checkpoint was noted, so none was loaded
        (2, "out/checkpoint-200", False, True),
        (3, "out/checkpoint-200", True, False),  # noted, as --metric_for_best_model does, and not loaded
        (3, "out/checkpoint-300/", True, True),  # the last epoch is the best
        (None, "out/checkpoint-200", None, False),  # a loss that the log doesn't have
        (1, "out/checkpoint-200", None, False),  # neither
        (2, "out", None, False),
    ],
)
def test_which_model_was_evaluated_without_run_json(tmp_path, evaluated, best, last_known, best_known):
    """trainer_state.json tells whether the best model was loaded; where it doesn't, the epoch isn't known."""
    write_foreign(tmp_path, evaluated, best)
    if last_known is False:
        message = refusal(tmp_path, 1)
        assert "eval_results.json: is the best epoch's, as trainer_state.json says (--epoch best)" in message
    else:
        assert results_of(tmp_path, 1).rows[0].runs["rte"][1].epoch_known is bool(last_known)
    if best_known:
        assert results_of(tmp_path, 1, "--epoch", "best").rows[0].runs["rte"][1].epoch_known
    else:
        assert "has no scores of the best epoch" in refusal(tmp_path, 1, "--epoch", "best")
    assert "has no scores of the selected epoch" in refusal(tmp_path, 1, "--epoch", "selected")


@pytest.mark.parametrize(
    "more",
    [
        {"log_history": None, "best_model_checkpoint": None},
        {"log_history": [7, {"eval_loss": "x"}, {"eval_loss": 0.55}]},
        {"global_step": "x", "best_model_checkpoint": 7},
        {"best_model_checkpoint": ["checkpoint-200"]},
    ],
)
def test_an_odd_trainer_state_tells_nothing(tmp_path, more):
    """Nor one that can't be read; the score counts all the same."""
    write_foreign(tmp_path, 2, "out/checkpoint-200", **more)
    run = results_of(tmp_path, 1).rows[0].runs["rte"][1]
    assert (run.score, run.epoch_known) == (0.7, False)
    (run.folder / "trainer_state.json").write_text("{")
    assert not results_of(tmp_path, 1).rows[0].runs["rte"][1].epoch_known


def test_an_evaluation_without_training(tmp_path):
    """A record of --do_eval alone has no epoch either."""
    for trains in (True, False):
        write_run(tmp_path, 1, "rte", 0.7, scores=None, arguments={"do_train": trains})
        assert results_of(tmp_path, 1).rows[0].runs["rte"][1].epoch_known is trains


@pytest.mark.parametrize("wrong", [[], 7, "scores", {"last": 0.7}, {"last": None}, {"best": {}}])
def test_scores_of_the_wrong_type(tmp_path, wrong):
    """A `scores` that isn't an object of objects is an error, not the other file's number."""
    folder = write_run(tmp_path, 1, "rte", 0.7)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"scores": wrong}))
    assert f"{folder}/run.json: has no scores of the last epoch" in refusal(tmp_path, 1)


def test_broken_run_json_is_named(tmp_path):
    """A run.json that can't be read is the run's fault, whatever eval_results.json says."""
    folder = write_run(tmp_path, 1, "rte", 0.7)
    (folder / "run.json").write_text('{"arguments": {')
    assert f"{folder}/run.json: not valid JSON" in refusal(tmp_path, 1)


def test_another_tasks_record(tmp_path):
    """A folder that was copied from another task is refused."""
    folder = write_run(tmp_path, 1, "rte", 0.7, arguments={"task_name": "MRPC"})
    assert f"{folder}/run.json: belongs to task MRPC" in refusal(tmp_path, 1)


def test_huge_file_is_not_read(tmp_path):
    """A file far larger than any result is named with its size; a sparse one stands for it here."""
    folder = write_run(tmp_path, 1, "rte", 0.7)
    os.truncate(folder / "run.json", 2**33)
    assert f"{folder}/run.json: too large to be a result: {2**33} bytes" in refusal(tmp_path, 1)


def test_mnli_is_the_mean_of_both_sets(tmp_path):
    """Both sets are needed; the score that counts is their mean."""
    folder = write_run(tmp_path, 1, "mnli", 0.84, 0.86)
    (row,) = results_of(tmp_path, 1, "--tasks", "mnli").rows
    assert row.runs["mnli"][1].parts == (0.84, 0.86)
    assert row.scores("mnli") == {1: pytest.approx(0.85)}
    write_run(tmp_path, 1, "mnli", 0.84, 0.86, scores=None)
    (folder / "eval_results.json").write_text('{"eval_accuracy": 0.84}')
    assert "has no eval_accuracy_mm" in refusal(tmp_path, 1, "--tasks", "mnli")


def test_f1_is_never_negative(tmp_path):
    """The range goes by the metric."""
    write_run(tmp_path, 1, "mrpc", 0.7, scores={"last": {"eval_f1": -0.1, "eval_pearson": -0.1}})
    assert "eval_f1 is -0.1, not between 0 and 1" in refusal(tmp_path, 1, "--metric", "mrpc=f1")
    assert results_of(tmp_path, 1, "--metric", "mrpc=pearson").rows[0].scores("mrpc") == {1: -0.1}


def test_correlations_lie_between_minus_one_and_one(tmp_path):
    """What is further out is no correlation."""
    write_run(tmp_path, 1, "cola", -1.0)
    assert results_of(tmp_path, 1).rows[0].scores("cola") == {1: -1.0}
    for score in (-1.01, 1.01):
        write_run(tmp_path, 1, "cola", score)
        assert f"eval_matthews_correlation is {score}, not between -1 and 1" in refusal(tmp_path, 1)


def test_a_failed_run_without_its_record_does_not_count(tmp_path):
    """eval_results.json alone may be of a run that failed afterwards; run.json is written last and goes before."""
    folder = write_run(tmp_path, 1, "rte", 0.6)
    (folder / "failure.json").write_text(json.dumps({"kind": "disk full", "message": "no space left"}))
    assert results_of(tmp_path, 1).rows[0].scores("rte") == {1: 0.6}
    (folder / "run.json").unlink()
    assert "failure.json: failed: disk full: no space left" in refusal(tmp_path, 1)


@pytest.mark.parametrize("kind", [*FAILURE_KINDS, "no such kind"])
def test_kinds_of_failures(tmp_path, kind):
    """Each is the run's fault, in one printable line; a run that was stopped is missing, whatever its message says."""
    folder = fail_run(tmp_path, 1, "rte", kind, "diverged: stopped\nby \x1b[0m")
    fault = read_run(folder, "rte", "accuracy", "last").fault
    if kind == "stopped":
        assert fault.is_missing and fault.failure is None
        return
    known = kind if kind in FAILURE_KINDS else "error"
    assert (fault.path.name, fault.failure.kind) == ("failure.json", known)
    prefix = {"diverged": "diverged: ", "error": "failed: "}.get(known, f"failed: {known}: ")
    assert fault.reason == prefix + r"diverged: stopped by \x1b[0m"


@pytest.mark.parametrize(
    ("line", "kind", "reason"),
    [
        ("out of memory: take less\nmore\n", "out of memory", "failed: out of memory: take less"),
        ("diverged: the loss is nan", "diverged", "diverged: the loss is nan"),
        ("odd: a word of its own", "error", "failed: odd: a word of its own"),
        ("", "error", "failed: "),
    ],
)
def test_failure_txt_of_an_older_run(tmp_path, line, kind, reason):
    """Its first word was the kind."""
    fault = read_run(begin_run(tmp_path, 1, "rte", failure_txt=line), "rte", "accuracy", "last").fault
    assert (fault.path.name, fault.failure.kind, fault.reason) == ("failure.txt", kind, reason)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": "usage"}', '{"kind": 7, "message": "x"}', None])
def test_a_failure_that_cannot_be_read(tmp_path, content):
    """Broken JSON, or a folder or named pipe in the file's place, says nothing: the run is missing."""
    folder = begin_run(tmp_path, 1, "rte", **({} if content is None else {"failure_json": content}))
    if content is None:
        (folder / "failure.txt").mkdir()
        os.mkfifo(folder / "failure.json")
    assert read_run(folder, "rte", "accuracy", "last").fault.is_missing
