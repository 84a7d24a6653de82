"""eval_predictions.py: the logits of every validation row, which give a run's scores again."""

import json

import numpy as np
import pytest
import torch
from datasets import load_dataset
from helpers import Killed, killed_at_step_5, read
from transformers import AutoModelForSequenceClassification, EvalPrediction

from glue_peft.data import Task
from glue_peft.errors import UsageError
from glue_peft.eval_predictions import EvalPredictions, load
from glue_peft.metric import make_compute_metrics

FILE = "eval_predictions.npz"


def rows_of(tiny, task: str, split: str = "validation") -> list[dict]:
    """Return a split of the tiny data."""
    path = str(tiny / "glue" / task / f"{split}-00000-of-00001.parquet")
    return list(load_dataset("parquet", data_files=path, split="train"))


def scores_of(task: str, arrays: dict[str, np.ndarray], kind: str) -> dict[str, float]:
    """Return the metrics of what is kept of one epoch."""
    is_regression = task == "stsb"
    described = Task(task, task, ("", None), () if is_regression else (0, 1), is_regression, {}, {})
    metrics = make_compute_metrics(described)(EvalPrediction(predictions=arrays[kind], label_ids=arrays["label"]))
    return {f"eval_{name}": value for name, value in metrics.items()}


@pytest.mark.parametrize(("task", "rate"), [("mrpc", 2e-2), ("stsb", 1e-1)])
def test_what_is_kept_gives_the_scores_of_each_epoch(run, tiny, task, rate):
    """Every row in order with its label, as float32: of the last, the best and the selected epoch."""
    flags = {"task_name": task, "max_train_samples": 200, "max_eval_samples": 100, "selection_fraction": 0.25}
    folder = run(num_train_epochs=6, learning_rate=rate, **flags)
    arrays, scores = load(folder / FILE), read(folder / "run.json")["scores"]
    assert np.array_equal(arrays["idx"], np.arange(100))
    assert np.array_equal(arrays["label"], np.float32([row["label"] for row in rows_of(tiny, task)[:100]]))
    for kind in ("last", "best", "selected"):
        assert (arrays[kind].dtype, arrays[kind].shape) == (np.float32, (100, 1 if task == "stsb" else 2))
        assert arrays[f"{kind}_epoch"] == scores[kind]["epoch"]
        expected = scores_of(task, arrays, kind)
        assert {name: scores[kind][name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert len({arrays[f"{kind}_epoch"].item() for kind in ("last", "best", "selected")}) > 1


@pytest.mark.parametrize("saves_best", [False, True])
def test_the_best_epoch_outlives_a_kill(run, saves_best):
    """The first epoch is the best, the run is killed in the second, and the resumed one has both to the bit."""
    flags = {
        "num_train_epochs": 3,
        "eval_strategy": "epoch",
        "learning_rate": 1e-9,
        "load_best_model_at_end": saves_best,
    }
    flags = {name: value for name, value in flags.items() if value is not False}
    whole = load(run("whole", **flags) / FILE)
    with killed_at_step_5(), pytest.raises(Killed):
        run("killed", **flags)
    resumed = load(run("killed", resume=True, **flags) / FILE)
    assert (whole["best_epoch"], whole["last_epoch"]) == (1, 3) and not np.array_equal(whole["best"], whole["last"])
    assert resumed.keys() == whole.keys() and all(np.array_equal(resumed[name], whole[name]) for name in whole)


def test_a_checkpoint_of_before_gives_what_can_be_known(run, tmp_path):
    """Without the file the best epoch's answers are gone: the last ones alone are written, and no wrong ones."""
    flags = {"num_train_epochs": 3, "eval_strategy": "epoch", "learning_rate": 1e-9}
    with killed_at_step_5(), pytest.raises(Killed):
        run(**flags)
    (tmp_path / "out" / "checkpoint-4" / FILE).unlink()
    folder = run(resume=True, **flags)
    assert load(folder / FILE).keys() == {"idx", "label", "last", "last_epoch"}
    assert read(folder / "run.json")["scores"]["best"]["epoch"] == 1


def test_only_what_is_evaluated_is_kept(run, tmp_path):
    """Not without --do_eval, nor with --no_save_eval_predictions; MNLI's two sets make two files."""
    folder = run("trained", do_eval=None)
    assert not list(folder.glob("*.npz"))
    assert not list(run("without", no_save_eval_predictions=True).glob("*.npz"))
    arrays = load(run("evaluated", do_train=None, adapter_path=folder, adapter_name=None, rank=None) / FILE)
    assert arrays.keys() == {"idx", "label", "last", "last_epoch"}
    added = load(run("trained", resume=True) / FILE)
    assert np.array_equal(added["last"], arrays["last"]) and np.array_equal(added["best"], arrays["last"])
    folder = run("mnli", task_name="mnli", num_train_epochs=2, eval_strategy="epoch")
    sets = [load(folder / name) for name in (FILE, "eval_predictions_mm.npz")]
    assert not np.array_equal(sets[0]["label"], sets[1]["label"]) and sets[0].keys() == sets[1].keys()
    scores = read(folder / "run.json")["scores"]["best"]
    for arrays, suffix in zip(sets, ("", "_mm"), strict=True):
        assert np.mean(arrays["best"].argmax(axis=1) == arrays["label"]) == scores[f"eval_accuracy{suffix}"]


def test_labels_and_columns_are_the_datas(run, tiny, tmp_path):
    """A model with another order of the labels answers the same, with the same F1, which is of one label alone."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny / "roberta")
    for name, order in (("plain", (0, 1)), ("swapped", (1, 0))):
        names = ["not_equivalent", "equivalent"]
        model.config.id2label = {i: names[label] for i, label in enumerate(order)}
        model.config.label2id = {names[label]: i for i, label in enumerate(order)}
        if name == "swapped":
            with torch.no_grad():
                head = model.classifier.out_proj
                head.weight.copy_(head.weight.flip(0))
                head.bias.copy_(head.bias.flip(0))
        model.save_pretrained(tmp_path / name)
        for path in (tiny / "roberta").glob("token*"):
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    flags = {"adapter_name": "none", "rank": None, "do_train": None}
    left, right = (
        load(run(f"{name} out", model_name_or_path=tmp_path / name, **flags) / FILE) for name in ("plain", "swapped")
    )
    assert np.array_equal(left["label"], right["label"]) and 0 < left["label"].mean() < 1
    assert np.allclose(left["last"], right["last"], atol=1e-6)
    scores = [read(tmp_path / f"{name} out" / "eval_results.json")["eval_f1"] for name in ("plain", "swapped")]
    assert scores[0] == scores[1]


def test_rows_keep_their_order_when_training_is_grouped_by_length(run):
    """Trainer would sort the rows of evaluations and predictions too."""
    trained = run("trained")
    flags = {"adapter_path": trained, "adapter_name": None, "rank": None, "do_train": None, "do_predict": True}
    plain, grouped = run("plain", **flags), run("grouped", train_sampling_strategy="group_by_length", **flags)
    answers = [load(folder / FILE) for folder in (plain, grouped)]
    assert np.array_equal(answers[0]["label"], answers[1]["label"])
    assert np.allclose(answers[0]["last"], answers[1]["last"], atol=1e-5)
    name = "predict_results_mrpc.txt"
    assert (plain / name).read_text() == (grouped / name).read_text()


def entry(epoch: float, score: float, selection: float | None = None) -> dict[str, float]:
    """Return an evaluation as the history has it."""
    return {"epoch": epoch, "eval_mse": score} | ({} if selection is None else {"selection_mse": selection})


def test_of_two_equals_the_earlier_is_the_best(tmp_path):
    """Another evaluation of the last epoch replaces it, and only epochs that have the run's scores are written."""
    kept = EvalPredictions("mse", greater_is_better=False, label_order=None)
    for epoch, score, selection in ((1, 0.5, 0.9), (2, 0.25, 0.8), (3, 0.25, 0.7), (4, 0.75, 0.7)):
        kept.add(entry(epoch, score, selection), {"": (np.full((3, 1), epoch), np.arange(3.0))})
    kept.add(entry(4, 0.75), {"": (np.full((3, 1), 5), np.arange(3.0))})
    kept.settle()
    kept.save(tmp_path)
    arrays = load(tmp_path / FILE)
    assert {kind: arrays[kind][0, 0] for kind in ("last", "best", "selected")} == {"last": 5, "best": 2, "selected": 3}
    kept.save(tmp_path, {"last": {"epoch": 4}, "best": {"epoch": 1}, "selected": {"epoch": 3}})
    assert load(tmp_path / FILE).keys() == {"idx", "label", "last", "last_epoch", "selected", "selected_epoch"}


def test_an_unreadable_file_is_named(tmp_path):
    """One line, and None where there is none."""
    assert load(tmp_path / FILE) is None
    for content in (b"", b"PK\x03\x04 cut", json.dumps({}).encode()):
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(UsageError, match=f"{FILE}: not a readable file of predictions"):
            load(tmp_path / FILE)
    for arrays in (
        {"last": np.zeros((3, 2))},
        {"label": np.zeros(3), "last": np.zeros((4, 2))},
        {"label": np.zeros(0)},
    ):
        np.savez(tmp_path / FILE, **arrays)
        with pytest.raises(UsageError, match=f"{FILE}: not a readable file of predictions"):
            load(tmp_path / FILE)
