"""metrics/glue: values worked out by hand, agreement with scikit-learn and SciPy, bad input, and parallel loading."""

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import evaluate
import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

import run_glue

METRIC = Path(__file__).resolve().parents[1] / "metrics" / "glue"
ACCURACY_ONLY = ["sst2", "mnli", "mnli_matched", "mnli_mismatched", "qnli", "rte", "wnli", "hans", "ax"]


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """Keep evaluate's caches out of the user's HF_HOME, and out of sys.path afterwards, where evaluate leaves them."""
    modules = tmp_path_factory.mktemp("modules")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", modules)
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path_factory.mktemp("metrics"))
        patch.setattr(sys, "path", [str(modules), *sys.path])
        run_glue.forget_evaluate_modules()
        yield
    run_glue.forget_evaluate_modules()


def scores(task: str, predictions: object, references: object) -> dict[str, float]:
    """Load the metric by its path, as run_glue.py does, and compute it."""
    metric = evaluate.load(str(METRIC), task, keep_in_memory=True)
    return metric.compute(predictions=predictions, references=references)


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
        ([0, 1, 1], [0, 1], "Mismatch in the number of predictions"),
    ],
)
def test_other_bad_input(predictions, references, message):
    """Fractions for classes, empty input and sides of different lengths are errors."""
    with pytest.raises(ValueError, match=message):
        scores("rte", predictions, references)


def test_unknown_configuration():
    """An unknown configuration is an error that lists the known ones."""
    with pytest.raises(ValueError, match="no configuration 'sst', only cola, stsb, .*wnli"):
        evaluate.load(str(METRIC), "sst")


def test_add_batch_gives_the_same_as_compute():
    """Collecting in batches, as `evaluate` allows, gives the same scores."""
    metric = evaluate.load(str(METRIC), "stsb", keep_in_memory=True)
    metric.add_batch(predictions=[1.0, 2.0], references=[1.0, 3.0])
    metric.add_batch(predictions=[3.0, 4.0], references=[2.0, 5.0])
    assert metric.compute() == scores("stsb", [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 5.0])


LOAD_AT_ONCE = """
import json, multiprocessing, socket, sys
def refuse(*args, **kwargs): raise AssertionError("the metric opened a network connection")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import evaluate
context = multiprocessing.get_context("fork")
barrier, answers = context.Barrier(4), context.Queue()
def load():
    barrier.wait()
    try:
        metric = evaluate.load(sys.argv[1], "mrpc", keep_in_memory=True)
        answers.put(metric.compute(predictions=[1, 1, 1, 0], references=[1, 1, 0, 0]))
    except BaseException as error:
        answers.put(repr(error))
processes = [context.Process(target=load) for _ in range(4)]
for process in processes: process.start()
print(json.dumps([answers.get(timeout=120) for _ in processes]))
"""


def test_four_processes_load_it_at_once_without_cache_or_network(tmp_path):
    """Four processes that load it in the same moment from an empty HF_HOME all succeed, and none uses the network."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOAD_AT_ONCE, str(METRIC)]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    expected = {"accuracy": 0.75, "f1": 0.8, "combined_score": 0.775}
    assert json.loads(done.stdout.splitlines()[-1]) == [pytest.approx(expected)] * 4


def test_load_metric_survives_a_broken_module_cache(tmp_path, monkeypatch):
    """A metric script cut short in evaluate's shared cache breaks evaluate.load, but not run_glue.load_metric."""
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])  # evaluate would leave it in sys.path for good
    folder = str(run_glue.REPOSITORY / "metrics" / "glue")
    run_glue.forget_evaluate_modules()
    evaluate.load(folder, "rte", keep_in_memory=True)
    (copy,) = tmp_path.glob("evaluate_modules/metrics/glue/*/glue.py")
    copy.write_text("")
    run_glue.forget_evaluate_modules()
    with pytest.raises(TypeError):
        evaluate.load(folder, "rte", keep_in_memory=True)
    metric = run_glue.load_metric("rte")
    assert metric.compute(predictions=[0, 1], references=[0, 0]) == {"accuracy": 0.5}
