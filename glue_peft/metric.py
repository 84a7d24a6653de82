"""GLUE's metrics as an `evaluate.Metric`, used directly: nothing is downloaded, and no script is copied to a cache.

    metric = Glue("mrpc", keep_in_memory=True)
    metric.compute(predictions=[1, 1, 1, 0], references=[1, 1, 0, 0])
    # {'accuracy': 0.75, 'f1': 0.8, 'combined_score': 0.775}

(keep_in_memory spares `evaluate` its cache file, which parallel runs would share.)

The keys are those of the hub's metric: a task's metrics in tasks.TASKS, and where it has two also their mean,
`combined_score`. F1 is that of class 1.

A correlation is undefined where one side is constant (SciPy gives NaN). Here it is 0.0, with a warning: a model that
always answers the same has learned nothing. NaN and infinite values are an error, never a score.
"""

import logging
from collections.abc import Callable

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef
from transformers import EvalPrediction

from glue_peft.arguments import GlueTrainingArguments
from glue_peft.data import Task
from glue_peft.errors import DivergedError, UsageError
from glue_peft.eval_predictions import in_order
from glue_peft.tasks import TASKS

logger = logging.getLogger("run_glue")

CORRELATIONS = ("matthews_correlation", "pearson", "spearmanr")
SCORE_OF: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda predictions, references: np.mean(predictions == references),
    "f1": lambda predictions, references: f1_score(references, predictions, zero_division=0.0),
    "matthews_correlation": lambda predictions, references: matthews_corrcoef(references, predictions),
    "pearson": lambda predictions, references: pearsonr(predictions, references).statistic,
    "spearmanr": lambda predictions, references: spearmanr(predictions, references).statistic,
}

DESCRIPTION = "The metrics of GLUE, the General Language Understanding Evaluation benchmark; one configuration a task."
INPUTS = """
    predictions: one class number an example; for stsb one similarity an example.
    references: the true class numbers; for stsb the true similarities.
"""
CITATION = """@inproceedings{wang2019glue,
  title = {{GLUE}: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding},
  author = {Wang, Alex and Singh, Amanpreet and Michael, Julian and Hill, Felix and Levy, Omer and Bowman, Samuel R.},
  booktitle = {International Conference on Learning Representations},
  year = {2019}
}"""


def checked(task: str, name: str, values: list[float]) -> np.ndarray:
    """Return `values` as an array, int64 for classes, or raise ValueError with what is wrong with them."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError(f"{task}: there are no {name} to score")
    are_classes = TASKS[task].scores is None
    wrong, kind = ~np.isfinite(array), "NaN or infinite"
    if are_classes and not wrong.any():
        wrong, kind = array != np.rint(array), "not class numbers (0, 1, ...)"
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(f"{task}: {wrong.sum()} of {array.size} {name} are {kind}, first {array[first]} at {first}")
    return array.astype(np.int64) if are_classes else array


def has_constant_side(task: str, predictions: np.ndarray, references: np.ndarray) -> bool:
    """Say whether either side has one value only, which leaves a correlation undefined, and warn if so."""
    sides = {"predictions": predictions, "references": references}
    constant = [name for name, values in sides.items() if values.min() == values.max()]
    if constant:
        logger.warning(f"{task}: all {' and all '.join(constant)} are equal, so its correlation is reported as 0")
    return bool(constant)


def task_scores(task: str, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Return the scores of `task` under the hub's names, without `combined_score`."""
    names = TASKS[task].metrics
    if set(names) & set(CORRELATIONS) and has_constant_side(task, predictions, references):
        return dict.fromkeys(names, 0.0)
    return {name: float(SCORE_OF[name](predictions, references)) for name in names}


class Glue(evaluate.Metric):
    """GLUE's metrics, one configuration a task."""

    def _info(self) -> evaluate.MetricInfo:
        """Describe the metric to `evaluate`; an unknown configuration is an error."""
        if self.config_name not in TASKS:
            raise ValueError(f"GLUE's metric has no configuration {self.config_name!r}, only {', '.join(TASKS)}")
        # float64 for classes too: evaluate writes 2.5 into an int64 column as 2. No format="numpy": datasets would
        # return float64 columns as float32.
        value = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        """Return the configuration's scores, with their mean as combined_score where there are two."""
        task = self.config_name
        scores = task_scores(task, checked(task, "predictions", predictions), checked(task, "references", references))
        if len(scores) > 1:
            scores["combined_score"] = sum(scores.values()) / len(scores)
        return scores


def signs_of_collapse(predictions: np.ndarray, labels: np.ndarray, is_regression: bool) -> dict[str, float]:
    """Return what tells a collapsed run: a constant output's deviation of 0, or the most frequent label's score."""
    if is_regression:
        return {"prediction_std": float(predictions.std())}
    return {
        "majority_share": float(np.bincount(labels).max() / len(labels)),
        "predicted_classes": len(np.unique(predictions)),
    }


def make_compute_metrics(
    task: Task, label_order: list[int] | None = None
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the function that turns predictions and labels into the task's metrics.

    label_order[i] is the model's output for the task's label i, where the two differ: F1 is of one label alone.
    """
    # keep_in_memory does without a cache file, where parallel runs would meet.
    metric = Glue(task.metric, keep_in_memory=True) if task.metric is not None else None

    def compute_metrics(p: EvalPrediction) -> dict[str, float]:
        """Return the metrics of one evaluation; raises DivergedError where the logits are no numbers."""
        logits, labels = in_order(label_order, finite_logits(p.predictions), p.label_ids)
        preds = logits[:, 0] if task.is_regression else logits.argmax(axis=1)
        if metric is not None:
            result = metric.compute(predictions=preds, references=labels)
        elif task.is_regression:
            result = {"mse": float(((preds - labels) ** 2).mean())}
        else:
            result = {"accuracy": float((preds == labels).mean())}
        return result | signs_of_collapse(preds, labels, task.is_regression)

    return compute_metrics


def finite_logits(predictions: np.ndarray | tuple[np.ndarray, ...]) -> np.ndarray:
    """Return the logits among a model's outputs; raises DivergedError where they are no numbers."""
    logits = predictions[0] if isinstance(predictions, tuple) else predictions
    if not np.isfinite(logits).all():
        raise DivergedError("the model's outputs are not finite numbers")
    return logits


def check_best_metric(args: GlueTrainingArguments, task: Task) -> None:
    """Raise UsageError where --metric_for_best_model names none of the task's metrics."""
    name = args.metric_for_best_model
    if name is None or args.follows_task_metric:
        return
    labels = np.arange(4) % max(task.num_labels, 2)
    logits = labels[:, None] + 0.0 if task.is_regression else np.eye(task.num_labels)[labels]
    allowed = ["loss", *make_compute_metrics(task)(EvalPrediction(predictions=logits, label_ids=labels))]
    if name.removeprefix("eval_").removeprefix("mm_" if task.metric == "mnli" else "") not in allowed:
        raise UsageError(f"--metric_for_best_model {name}: allowed are {', '.join(allowed)}")
