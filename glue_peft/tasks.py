"""GLUE's tasks, one row each: the only place that says what a task's columns, metrics, names and labels are."""

from dataclasses import dataclass
from typing import NamedTuple

TWO_WAY = {"entailment": "entailment", "not_entailment": "not_entailment"}
THREE_WAY = {"entailment": "entailment", "neutral": "neutral", "contradiction": "contradiction"}


class LeaderboardFile(NamedTuple):
    """One file of a submission to GLUE's leaderboard."""

    name: str
    predictions: str  # of predict_results_<predictions>.txt in the task's folder
    rows: int  # of the test set in nyu-mll/glue


@dataclass(frozen=True)
class GlueTask:
    """What is known of a GLUE task beside its rows."""

    title: str  # as papers spell it
    sentence_keys: tuple[str, str | None]  # the columns of its texts
    metrics: tuple[str, ...]
    main_metric: str  # its results must have it, it picks an epoch, and it is reported
    # The share of the most frequent label in the validation set (MNLI: matched, mismatched), counted in nyu-mll/glue.
    majority_shares: tuple[float, ...]
    leaderboard: tuple[LeaderboardFile, ...]
    # A label's name in nyu-mll/glue -> the leaderboard's spelling; None: a score.
    spellings: dict[str, str] | None
    train_rows: int = 0  # of nyu-mll/glue; 0 where it isn't known
    validation_rows: tuple[int, ...] = ()  # of the sets of majority_shares; empty where they aren't known
    scores: tuple[float, float] | None = None  # the least and the most of a score; None: the labels are classes


# The first six, in this order, are the columns of the RandLoRA paper's table (PAPER_TASKS).
TASKS = {
    "sst2": GlueTask(
        title="SST-2",
        sentence_keys=("sentence", None),
        metrics=("accuracy",),
        main_metric="accuracy",
        train_rows=67_349,
        majority_shares=(444 / 872,),
        validation_rows=(872,),
        leaderboard=(LeaderboardFile("SST-2.tsv", "sst2", 1821),),
        spellings={"negative": "0", "positive": "1"},
    ),
    "mrpc": GlueTask(
        title="MRPC",
        sentence_keys=("sentence1", "sentence2"),
        metrics=("accuracy", "f1"),
        main_metric="accuracy",
        train_rows=3_668,
        majority_shares=(279 / 408,),
        validation_rows=(408,),
        leaderboard=(LeaderboardFile("MRPC.tsv", "mrpc", 1725),),
        spellings={"not_equivalent": "0", "equivalent": "1"},
    ),
    "cola": GlueTask(
        title="CoLA",
        sentence_keys=("sentence", None),
        metrics=("matthews_correlation",),
        main_metric="matthews_correlation",
        train_rows=8_551,
        majority_shares=(721 / 1043,),
        validation_rows=(1043,),
        leaderboard=(LeaderboardFile("CoLA.tsv", "cola", 1063),),
        spellings={"unacceptable": "0", "acceptable": "1"},
    ),
    "qnli": GlueTask(
        title="QNLI",
        sentence_keys=("question", "sentence"),
        metrics=("accuracy",),
        main_metric="accuracy",
        train_rows=104_743,
        majority_shares=(2761 / 5463,),
        validation_rows=(5463,),
        leaderboard=(LeaderboardFile("QNLI.tsv", "qnli", 5463),),
        spellings=TWO_WAY,
    ),
    "rte": GlueTask(
        title="RTE",
        sentence_keys=("sentence1", "sentence2"),
        metrics=("accuracy",),
        main_metric="accuracy",
        train_rows=2_490,
        majority_shares=(146 / 277,),
        validation_rows=(277,),
        leaderboard=(LeaderboardFile("RTE.tsv", "rte", 3000),),
        spellings=TWO_WAY,
    ),
    "stsb": GlueTask(
        title="STS-B",
        sentence_keys=("sentence1", "sentence2"),
        metrics=("pearson", "spearmanr"),
        main_metric="combined_score",
        train_rows=5_749,
        majority_shares=(),
        validation_rows=(1500,),
        leaderboard=(LeaderboardFile("STS-B.tsv", "stsb", 1379),),
        spellings=None,
        scores=(0.0, 5.0),
    ),
    "mnli": GlueTask(
        title="MNLI",
        sentence_keys=("premise", "hypothesis"),
        metrics=("accuracy",),
        main_metric="accuracy",
        train_rows=392_702,
        majority_shares=(3479 / 9815, 3463 / 9832),
        validation_rows=(9815, 9832),
        leaderboard=(
            LeaderboardFile("MNLI-m.tsv", "mnli", 9796),
            LeaderboardFile("MNLI-mm.tsv", "mnli-mm", 9847),
            LeaderboardFile("AX.tsv", "ax", 1104),
        ),
        spellings=THREE_WAY,
    ),
    "qqp": GlueTask(
        title="QQP",
        sentence_keys=("question1", "question2"),
        metrics=("accuracy", "f1"),
        main_metric="accuracy",
        train_rows=363_846,
        majority_shares=(25545 / 40430,),
        validation_rows=(40_430,),
        leaderboard=(LeaderboardFile("QQP.tsv", "qqp", 390965),),
        spellings={"not_duplicate": "0", "duplicate": "1"},
    ),
    "wnli": GlueTask(
        title="WNLI",
        sentence_keys=("sentence1", "sentence2"),
        metrics=("accuracy",),
        main_metric="accuracy",
        train_rows=635,
        majority_shares=(40 / 71,),
        validation_rows=(71,),
        leaderboard=(LeaderboardFile("WNLI.tsv", "wnli", 146),),
        spellings={"not_entailment": "0", "entailment": "1"},
    ),
}
PAPER_TASKS = list(TASKS)[:6]
# What a metric's key in eval_results.json is called in words.
METRICS = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews_correlation": "Matthews' correlation",
    "pearson": "Pearson",
    "spearmanr": "Spearman",
    "combined_score": "combined score",
    "mse": "mean squared error",  # of numbers in data of one's own: the less the better, and in their unit squared
}
LOWER_IS_BETTER = ("mse",)


def main_metric(task: str | None, is_regression: bool = False) -> str:
    """Return the metric that stands for a task; for data that GLUE doesn't have, accuracy or mean squared error."""
    if task in TASKS:
        return TASKS[task].main_metric
    return "mse" if is_regression else "accuracy"


def title(task: str) -> str:
    """Return a task's name as papers spell it; a task of one's own goes by its name."""
    return TASKS[task].title if task in TASKS else task


def result_keys(task: str, metric: str) -> list[str]:
    """Return the keys in eval_results.json of a task's metric; MNLI has two validation sets."""
    return [f"eval_{metric}", f"eval_{metric}_mm"] if task == "mnli" else [f"eval_{metric}"]
