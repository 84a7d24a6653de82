"""tables/collapse.py: runs that learnt nothing or diverged, and those that only look odd."""

import json

import pytest
from helpers import health, metrics_of, write_result, write_run

MAJORITY = "is not above the share of the most frequent class"


@pytest.mark.parametrize(
    ("task", "metrics", "reason"),
    [
        ("cola", {"eval_matthews_correlation": 0.0}, "eval_matthews_correlation is 0"),
        ("stsb", metrics_of("stsb", 0.0), "eval_pearson is 0"),
        ("stsb", metrics_of("stsb", 0.1) | {"eval_prediction_std": 0.0}, "constant output: eval_prediction_std is 0"),
        (
            "stsb",
            metrics_of("stsb", 0.1) | {"eval_prediction_std": 2e-7},
            "constant output: eval_prediction_std is 2e-07",
        ),
        ("stsb", metrics_of("stsb", 1e-17), "eval_pearson is 0"),
        ("rte", {"eval_accuracy": 0.5271}, f"eval_accuracy, 52.7 %, {MAJORITY}, 52.7 %"),
        ("rte", {"eval_accuracy": 0.4729}, f"eval_accuracy, 47.3 %, {MAJORITY}, 52.7 %"),
        ("rte", {"eval_accuracy": 0.6, "eval_majority_share": 0.6}, f"eval_accuracy, 60.0 %, {MAJORITY}, 60.0 %"),
        ("rte", {"eval_accuracy": 0.6, "eval_predicted_classes": 1}, "constant output: eval_predicted_classes is 1"),
        ("mnli", metrics_of("mnli", 0.5271, 0.8), f"eval_accuracy, 52.7 %, {MAJORITY}, 52.7 %"),
        ("mnli", metrics_of("mnli", 0.8, 0.3522), f"eval_accuracy_mm, 35.2 %, {MAJORITY}, 35.2 %"),
        (
            "mnli",
            metrics_of("mnli", 0.8, 0.8) | {"eval_predicted_classes_mm": 1},
            "constant output: eval_predicted_classes_mm is 1",
        ),
    ],
)
def test_collapsed(tmp_path, task, metrics, reason):
    """A run that has learnt nothing is listed as counted, or as dropped with --drop_collapsed."""
    shares = {"eval_majority_share": 0.5271, "eval_majority_share_mm": 0.3522}
    write_run(tmp_path, 1, task, 0.61, metrics=shares)
    write_run(tmp_path, 2, task, 0.61, metrics=shares, scores={"last": metrics})
    argv = (tmp_path, 2, "--tasks", task)
    assert health(*argv) == [f"collapsed, counted: {tmp_path}/2/{task} ({reason})"]
    assert health(*argv, "--drop_collapsed") == [f"collapsed, dropped: {tmp_path}/2/{task} ({reason})"]


def test_a_row_that_never_learnt_is_no_measure_of_its_method(tmp_path):
    """A line says so where all seeds of a task collapsed, and none where one of them is a result."""
    for seed, correlation in ((1, 0.0), (2, 0.0), (3, 0.2)):
        write_run(tmp_path / "hra", seed, "cola", correlation)
    expected = "no run of hra on cola learnt anything: its score there says that these settings fail, "
    assert health(tmp_path / "hra", 2)[2:] == [expected + "not how good the method is"]
    assert len(health(tmp_path / "hra", 3)) == 2
    assert len(health(tmp_path / "hra", "1,3")) == 1


def test_not_collapsed(tmp_path):
    """One row more than the majority's share, a small correlation, and outputs that vary are results."""
    write_run(
        tmp_path, 1, "rte", 0.5, scores={"last": {"eval_accuracy": 147 / 277, "eval_predicted_classes": 2}},
        metrics={"eval_majority_share": 146 / 277},
    )  # fmt: skip
    write_run(tmp_path, 1, "mnli", 0.65, 0.66, metrics={"eval_majority_share": 0.35, "eval_majority_share_mm": 0.34})
    write_run(tmp_path, 1, "cola", 1e-4)
    write_run(tmp_path, 1, "stsb", 0.1, scores={"last": metrics_of("stsb", 0.1) | {"eval_prediction_std": 1e-3}})
    assert health(tmp_path, 1, "--tasks", "rte,mnli,cola,stsb") == ["nothing found in 4 runs"]


def test_collapse_is_judged_by_the_epoch_that_is_reported(tmp_path):
    """A run that collapsed at its end but not before is a result at its best epoch."""
    write_run(tmp_path, 1, "cola", 0.6, scores={"last": {"eval_matthews_correlation": 0.0}})
    assert len(health(tmp_path, 1)) == 1 and "eval_matthews_correlation is 0" in health(tmp_path, 1)[0]
    assert health(tmp_path, 1, "--epoch", "best") == ["nothing found in 1 run"]


@pytest.mark.parametrize(
    ("task", "accuracies", "lines"),
    [
        ("mrpc", [279 / 408], ["eval_accuracy, 68.4 %"]),
        ("mrpc", [0.6838], ["eval_accuracy, 68.4 %"]),
        ("rte", [0.5271], ["eval_accuracy, 52.7 %"]),  # 146 / 277 is 0.52708
        ("rte", [147 / 277], []),
        ("mrpc", [280 / 408], []),
        ("wnli", [31 / 71], ["eval_accuracy, 43.7 %"]),  # below the share is no better
        ("mnli", [3479 / 9815, 0.8], ["eval_accuracy, 35.4 %"]),
        ("mnli", [0.8, 3463 / 9832], ["eval_accuracy_mm, 35.2 %"]),
        ("mnli", [3480 / 9815, 3464 / 9832], []),
    ],
)
def test_without_a_record_the_share_is_that_of_glue(tmp_path, task, accuracies, lines):
    """eval_results.json alone shows a collapse too; one row more than the most frequent class is a result."""
    (write_run(tmp_path, 1, task, *accuracies) / "run.json").unlink()
    found = [line for line in health(tmp_path, 1, "--tasks", task) if line.startswith("collapsed, counted: ")]
    assert [line.partition("(")[2].partition(" %")[0] + " %" for line in found] == lines


def test_on_a_part_of_the_validation_set_the_share_is_not_known(tmp_path):
    """GLUE's share is not that of the first rows: what wasn't checked is said."""
    folder = write_run(tmp_path, 1, "rte", 0.5, arguments={"max_eval_samples": 32})
    record = json.loads((folder / "run.json").read_text())
    del record["metrics"]["eval_majority_share"]
    (folder / "run.json").write_text(json.dumps(record))
    assert health(tmp_path, 1) == [
        "nothing found in 1 run",
        "not checked: collapse (no eval_majority_share: 1 run)",
    ]


def test_correlations_need_no_share(tmp_path):
    """A constant output of CoLA or STS-B has the correlation 0; with another one any accuracy of CoLA is a result."""
    write_result(tmp_path, 1, "cola", json.dumps({"eval_matthews_correlation": 0.3, "eval_accuracy": 721 / 1043}))
    write_result(tmp_path, 1, "stsb", json.dumps(metrics_of("stsb", 0.0)))
    lines = health(tmp_path, 1)
    assert lines[0] == f"collapsed, counted: {tmp_path}/1/stsb (eval_pearson is 0)" and len(lines) == 2
