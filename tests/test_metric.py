"""metric.py: values worked out by hand, agreement with scikit-learn and SciPy, bad input, and what Trainer calls."""

import logging
import warnings

import numpy as np
import pytest
from helpers import read
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import EvalPrediction

from glue_peft.data import Task
from glue_peft.errors import DivergedError
from glue_peft.metric import Glue, make_compute_metrics

ACCURACY_ONLY = ["sst2", "mnli", "qnli", "rte", "wnli"]


def scores(task: str, predictions: object, references: object) -> dict[str, float]:
    """Compute the metric as a run does."""
    return Glue(task, keep_in_memory=True).compute(predictions=predictions, references=references)


@pytest.mark.parametrize("task", ["mrpc", "qqp"])
def test_accuracy_and_f1_by_hand(task):
    """Three of five right; two true positives, one false positive, one false negative: F1 = 4 / (4 + 1 + 1)."""
    result = scores(task, [1, 1, 0, 0, 1], [1, 0, 0, 1, 1])
    assert result == pytest.approx({"accuracy": 3 / 5, "f1": 2 / 3, "combined_score": 19 / 30}, abs=1e-12)


def test_matthews_by_hand():
    """TP 2, TN 1, FP 1, FN 1: (2 * 1 - 1 * 1) / sqrt(3 * 3 * 2 * 2) = 1 / 6."""
    assert scores("cola", [1, 1, 0, 0, 1], [1, 0, 0, 1, 1]) == pytest.approx(
        {"matthews_correlation": 1 / 6}, abs=1e-12
    )


def test_correlations_by_hand():
    """Sums of products 5.5, of squares 5 and 8.75; ranks differ by 0, 1, 1, 0: 1 - 6 * 2 / (4 * 15) = 0.8."""
    pearson = 5.5 / (5 * 8.75) ** 0.5
    result = scores("stsb", [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 5.0])
    expected = {"pearson": pearson, "spearmanr": 0.8, "combined_score": (pearson + 0.8) / 2}
    assert result == pytest.approx(expected, abs=1e-12)


def test_spearman_with_ties_by_hand():
    """Tied predictions share rank 1.5: (0.5 + 0 + 1) / sqrt(1.5 * 2) = 0.8660."""
    assert scores("stsb", [1.0, 1.0, 2.0], [0.1, 0.2, 9.0])["spearmanr"] == pytest.approx(3**0.5 / 2, abs=1e-12)


@pytest.mark.parametrize("task", ACCURACY_ONLY)
def test_accuracy_by_hand(task):
    """The other tasks have accuracy alone, over any number of classes."""
    assert scores(task, [0, 1, 2, 2], [0, 2, 2, 2]) == {"accuracy": 0.75}


@pytest.mark.parametrize("seed", range(5))
def test_classes_against_scikit_learn(seed):
    """Random vectors of several lengths and class shares give scikit-learn's own values."""
    random = np.random.default_rng(seed)
    references, predictions = (random.random((2, 50 + 100 * seed)) < [[0.7], [0.5]]).astype(int)
    accuracy, f1 = accuracy_score(references, predictions), f1_score(references, predictions)
    expected = {"accuracy": accuracy, "f1": f1, "combined_score": (accuracy + f1) / 2}
    assert scores("qqp", predictions, references) == pytest.approx(expected, abs=1e-12)
    matthews = matthews_corrcoef(references, predictions)
    assert scores("cola", predictions, references)["matthews_correlation"] == pytest.approx(matthews, abs=1e-12)
    labels, answers = random.integers(0, 3, (2, 200))
    assert scores("mnli", answers, labels) == {"accuracy": accuracy_score(labels, answers)}


@pytest.mark.parametrize("seed", range(5))
def test_correlations_against_scipy(seed):
    """Random similarities, rounded so that ties occur, give SciPy's own values."""
    random = np.random.default_rng(seed)
    references = np.round(random.uniform(0, 5, 300), 1)
    predictions = references + random.normal(0, 1 + seed, 300)
    pearson, spearman = pearsonr(predictions, references)[0], spearmanr(predictions, references)[0]
    expected = {"pearson": pearson, "spearmanr": spearman, "combined_score": (pearson + spearman) / 2}
    assert scores("stsb", predictions, references) == pytest.approx(expected, abs=1e-12)


def test_float32_values_far_from_zero_keep_their_digits():
    """Around 1e6 float32 has a spacing of 0.06: the scores must be those of the same values in float64, to 1e-6."""
    random = np.random.default_rng(0)
    references = 1e6 + random.normal(0, 1, 100_000)
    predictions = (references + random.normal(0, 1, 100_000)).astype(np.float32)
    x, y = predictions.astype(np.float64) - 1e6, references - 1e6
    x, y = x - x.mean(), y - y.mean()
    exact = (x @ y) / np.sqrt((x @ x) * (y @ y))
    result = scores("stsb", predictions, references)
    assert result["pearson"] == pytest.approx(exact, abs=1e-6)
    assert result["spearmanr"] == pytest.approx(spearmanr(x, y)[0], abs=1e-6)


@pytest.mark.parametrize(
    ("task", "predictions", "references", "named"),
    [
        ("stsb", [2.5, 2.5, 2.5], [1.0, 2.0, 3.0], "all predictions"),
        ("stsb", [1.0, 2.0, 3.0], [4.0, 4.0, 4.0], "all references"),
        ("stsb", [1.0], [2.0], "all predictions and all references"),
        ("cola", [1, 1, 1, 1], [0, 1, 1, 0], "all predictions"),
        ("cola", [0, 1], [1, 1], "all references"),
        ("cola", [1, 1], [1, 1], "all predictions and all references"),
    ],
)
def test_constant_side_gives_zero_and_one_warning(caplog, task, predictions, references, named):
    """A correlation with a constant side is 0.0, with one logged line and no warning of SciPy's or scikit-learn's."""
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        result = scores(task, predictions, references)
    assert set(result.values()) == {0.0}
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(messages) == 1
    assert task in messages[0] and named in messages[0]


def test_no_positive_at_all_gives_f1_zero_without_warning():
    """F1 without any positive is 0, and scikit-learn's warning about it stays away."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scores("mrpc", [0, 0], [0, 0]) == {"accuracy": 1.0, "f1": 0.0, "combined_score": 0.5}


@pytest.mark.parametrize("task", ["stsb", "cola", "mrpc", "rte"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["predictions", "references"])
def test_values_that_are_not_finite_are_an_error(task, bad, side):
    """NaN and infinity raise an error that names the side, the value and its place."""
    good, broken = [1.0, 0.0, 1.0, 0.0], [0.0, 1.0, bad, bad]
    sides = {"predictions": good, "references": good} | {side: broken}
    with pytest.raises(ValueError, match=f"{task}: 2 of 4 {side} are NaN or infinite, first {bad} at 2"):
        scores(task, **sides)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([0.0, 0.5], [0, 1], "1 of 2 predictions are not class numbers"),
        ([], [], "there are no predictions to score"),
    ],
)
def test_other_bad_input(predictions, references, message):
    """Fractions for classes and empty input are errors."""
    with pytest.raises(ValueError, match=message):
        scores("rte", predictions, references)


def test_unknown_configuration():
    """An unknown configuration is an error that lists the known ones."""
    with pytest.raises(ValueError, match="no configuration 'sst', only sst2, mrpc, .*, wnli"):
        Glue("sst")


@pytest.mark.parametrize("task", ["mrpc", "stsb", "cola", "mnli"])
@pytest.mark.parametrize("keep_in_memory", [True, False])
def test_all_ways_of_evaluate_give_the_same(task, keep_in_memory):
    """evaluate.Metric's own interface: at once, in batches, one by one, as arrays or lists, in memory or a file."""
    random = np.random.default_rng(1)
    references = random.uniform(0, 5, 64) if task == "stsb" else random.integers(0, 3 if task == "mnli" else 2, 64)
    predictions = np.where(random.random(64) < 0.7, references, np.roll(references, 1))
    expected = scores(task, predictions, references)
    assert {round(value, 6) for value in expected.values()} & {0.0, 1.0} == set()
    metric = Glue(task, keep_in_memory=keep_in_memory)
    assert metric.compute(predictions=predictions.tolist(), references=references.tolist()) == expected
    for rows in (slice(0, 10), slice(10, 64)):
        metric.add_batch(predictions=predictions[rows], references=references[rows])
    assert metric.compute() == expected
    for prediction, reference in zip(predictions, references, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute() == expected


@pytest.mark.parametrize("task", ["mrpc", "stsb", "cola", "mnli"])
@pytest.mark.parametrize("lengths", [(3, 2), (2, 3), (3, 1), (1, 3), (0, 3)])
def test_sides_of_unequal_length_are_refused(task, lengths):
    """Also where NumPy would broadcast the shorter one."""
    sides = [np.arange(length) % 2 for length in lengths]
    with pytest.raises(ValueError, match="Mismatch in the number of predictions|there are no predictions"):
        scores(task, *sides)


# What Trainer calls


def test_outputs_that_are_no_numbers_are_a_divergence():
    """A metric would hide them."""
    task = Task("own", None, ("text", None), ("no", "yes"), False, {}, {})
    compute_metrics = make_compute_metrics(task)
    logits = np.array([[0.0, 1.0], [2.0, 1.0]])
    metrics = compute_metrics(EvalPrediction(predictions=logits, label_ids=np.array([1, 1])))
    assert metrics == {"accuracy": 0.5, "majority_share": 1.0, "predicted_classes": 2}
    with pytest.raises(DivergedError, match="outputs are not finite"):
        compute_metrics(EvalPrediction(predictions=logits * np.nan, label_ids=np.array([1, 1])))


def test_signs_of_collapse_are_in_the_results(run):
    """The most frequent class's share, the number of predicted classes, the outputs' deviation."""
    folder = run(learning_rate=1e-9)
    results = read(folder / "eval_results.json")
    assert 0.5 <= results["eval_majority_share"] < 1
    assert results["eval_predicted_classes"] in (1, 2)
    assert read(run("stsb", task_name="stsb") / "eval_results.json")["eval_prediction_std"] > 0


@pytest.mark.parametrize(
    ("task", "metric", "greater"),
    [("mrpc", "f1", True), ("stsb", "eval_spearmanr", True), ("mnli", "mm_accuracy", True), (None, "mse", False)],
)
def test_the_best_epoch_by_another_metric(run, tmp_path, task, metric, greater):
    """Any of the task's; the less the better for a squared error."""
    files = {}
    if task is None:
        for name in ("train", "validation"):
            (tmp_path / f"{name}.csv").write_text("text,label\n" + "a dull film,0.5\na great film,1.5\n" * 16)
            files[f"{name}_file"] = tmp_path / f"{name}.csv"
        files["dataset_path"] = None
    flags = {"load_best_model_at_end": True, "eval_strategy": "epoch", "metric_for_best_model": metric}
    folder = run(task_name=task, num_train_epochs=3, save_total_limit=2, **files, **flags)
    state, key = read(folder / "trainer_state.json"), f"eval_{metric.removeprefix('eval_')}"
    values = [entry[key] for entry in state["log_history"] if key in entry]
    assert state["best_metric"] == (max if greater else min)(values) and len(values) == 3
