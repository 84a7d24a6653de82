"""tasks.py: the table of GLUE's tasks, against facts written out here again."""

import pytest
from helpers import REPOSITORY

from glue_peft.tasks import METRICS, PAPER_TASKS, TASKS, main_metric, result_keys, title

# Columns, main metric, and how many rows of the validation set have the most frequent label, counted in nyu-mll/glue.
FACTS = {
    "SST-2": (("sentence", None), "accuracy", [(444, 872)]),
    "MRPC": (("sentence1", "sentence2"), "accuracy", [(279, 408)]),
    "CoLA": (("sentence", None), "matthews_correlation", [(721, 1043)]),
    "QNLI": (("question", "sentence"), "accuracy", [(2761, 5463)]),
    "RTE": (("sentence1", "sentence2"), "accuracy", [(146, 277)]),
    "STS-B": (("sentence1", "sentence2"), "combined_score", []),
    "MNLI": (("premise", "hypothesis"), "accuracy", [(3479, 9815), (3463, 9832)]),
    "QQP": (("question1", "question2"), "accuracy", [(25545, 40430)]),
    "WNLI": (("sentence1", "sentence2"), "accuracy", [(40, 71)]),
}


def test_facts():
    """Title, columns, main metric and majority shares of all nine."""
    assert FACTS == {
        task.title: (task.sentence_keys, task.main_metric, FACTS[task.title][2]) for task in TASKS.values()
    }
    for task in TASKS.values():
        assert task.majority_shares == tuple(most / rows for most, rows in FACTS[task.title][2])
        assert task.validation_rows == (tuple(rows for _, rows in FACTS[task.title][2]) or (1500,))  # STS-B's
        n_labels = len(task.spellings or ())
        assert all(1 / n_labels <= share < 1 for share in task.majority_shares)


def test_the_papers_columns():
    """The RandLoRA paper's six, in its order."""
    assert PAPER_TASKS == ["sst2", "mrpc", "cola", "qnli", "rte", "stsb"]


def test_leaderboard_files():
    """Eleven files, each of a test set of its own; a task with labels spells each in a way of its own."""
    files = [file for task in TASKS.values() for file in task.leaderboard]
    assert len(files) == len({file.name for file in files}) == len({file.predictions for file in files}) == 11
    assert sum(file.rows for file in files) == 426_309
    for name, task in TASKS.items():
        assert task.leaderboard[0].predictions == name
        assert task.spellings is None or len(set(task.spellings.values())) == len(task.spellings)


@pytest.mark.parametrize("task", TASKS)
def test_metrics_have_words(task):
    """What can be reported has a name in a caption, and the keys that stand in eval_results.json."""
    assert {*TASKS[task].metrics, main_metric(task)} <= METRICS.keys()
    suffixes = ("", "_mm") if task == "mnli" else ("",)
    assert result_keys(task, "accuracy") == [f"eval_accuracy{suffix}" for suffix in suffixes]


def test_other_data():
    """What GLUE doesn't have is judged by accuracy or squared error, and goes by its own name."""
    assert main_metric("own") == main_metric(None) == "accuracy"
    assert main_metric("own", is_regression=True) == main_metric(None, is_regression=True) == "mse"
    assert main_metric("stsb", is_regression=True) == "combined_score"
    assert (title("own"), title("rte")) == ("own", "RTE")


def test_the_tables_have_no_list_of_tasks_of_their_own():
    """A task is added in one place."""
    paths = [*(REPOSITORY / "glue_peft" / "tables").glob("*.py"), REPOSITORY / "make_submission.py"]
    assert paths and not [path.name for path in paths if '"wnli"' in path.read_text() or '"qnli"' in path.read_text()]
