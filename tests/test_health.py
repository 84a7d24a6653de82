"""seed_scores.py: which file a score comes from, what makes a run unusable, what a row cost, what is odd about it."""

import argparse
import json
import os
import shutil

import pytest
from make_results import metrics_of, write_rows, write_run

from glue_peft.tables import read
from glue_peft.tables.read import UsageError, health_lines, read_results, settings_of


def read(*argv: object) -> read.Results:
    """Read with the options of the command line."""
    parser = argparse.ArgumentParser()
    read.add_arguments(parser)
    return read_results(parser.parse_args([str(argument) for argument in argv]))


def error(*argv: object) -> str:
    """Return the message of the error that reading ends in."""
    with pytest.raises(UsageError) as caught:
        read(*argv)
    return str(caught.value)


def scores(task: str = "rte") -> dict:
    """Return `scores` of one run as run_glue.py writes it: the last epoch .70, the best .80, the selected .75."""
    entries = {name: metrics_of(task, value) for name, value in (("last", 0.7), ("best", 0.8), ("selected", 0.75))}
    return {"scores": {**entries, "history": list(entries.values())}}


@pytest.mark.parametrize(("epoch", "score"), [("last", 0.7), ("best", 0.8), ("selected", 0.75)])
def test_epochs_come_from_run_json(tmp_path, epoch, score):
    """With --load_best_model_at_end eval_results.json holds the best epoch: run.json's `scores` go before it."""
    folder = write_run(tmp_path, 1, "rte", 0.8, **scores(), arguments={"load_best_model_at_end": True})
    (results,) = read(tmp_path, 1, "--epoch", epoch).rows
    assert results.scores("rte") == {1: score}
    assert results.runs["rte"][1].source == folder / "run.json"


def test_last_epoch_without_scores(tmp_path):
    """Without `scores` eval_results.json is the last epoch's, unless the run loaded its best one."""
    folder = write_run(tmp_path, 1, "rte", 0.7, scores=None)
    (row,) = read(tmp_path, 1).rows
    assert row.scores("rte") == {1: 0.7}
    assert row.runs["rte"][1].source == folder / "eval_results.json"
    write_run(tmp_path, 1, "rte", 0.7, scores=None, arguments={"load_best_model_at_end": True})
    assert f"{folder}/run.json: has no scores, and eval_results.json is the best epoch's" in error(tmp_path, 1)


def test_the_last_epoch_is_not_called_the_best(tmp_path):
    """A run that was evaluated once, at its end, has no best epoch, even where run.json calls it so."""
    folder = write_run(tmp_path, 1, "rte", 0.7, arguments={"eval_strategy": "no"})
    assert read(tmp_path, 1).rows[0].scores("rte") == {1: 0.7}
    reason = "has the last epoch's scores alone (--eval_strategy epoch)"
    assert f"{folder}/run.json: {reason}" in error(tmp_path, 1, "--epoch", "best")


@pytest.mark.parametrize("epoch", ["best", "selected"])
def test_epochs_that_were_not_recorded(tmp_path, epoch):
    """Asking for them is an error that names run.json and the flag, also where there is no run.json."""
    flag = {"best": "--eval_strategy epoch", "selected": "--selection_fraction"}[epoch]
    folder = write_run(tmp_path, 1, "rte", 0.7, scores=None)
    expected = f"{folder}/run.json: has no scores of the {epoch} epoch ({flag})"
    assert error(tmp_path, 1, "--epoch", epoch).splitlines()[1].strip() == expected
    (folder / "run.json").unlink()
    message = error(tmp_path, 1, "--epoch", epoch)
    assert f"{folder}/run.json: is missing, so the run has no scores of the {epoch} epoch ({flag})" in message
    (folder / "eval_results.json").unlink()
    assert "has no usable result" in error(tmp_path, 1, "--epoch", epoch)


@pytest.mark.parametrize("wrong", [[], 7, "scores", {"last": 0.7}, {"last": None}, {"best": {}}])
def test_scores_of_the_wrong_type(tmp_path, wrong):
    """A `scores` that isn't an object of objects is an error, not the other file's number."""
    folder = write_run(tmp_path, 1, "rte", 0.7)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"scores": wrong}))
    assert f"{folder}/run.json: has no scores of the last epoch" in error(tmp_path, 1)


def test_broken_run_json_is_named(tmp_path):
    """A run.json that can't be read is the run's fault, whatever eval_results.json says."""
    folder = write_run(tmp_path, 1, "rte", 0.7)
    (folder / "run.json").write_text('{"arguments": {')
    assert f"{folder}/run.json: not valid JSON" in error(tmp_path, 1)


def test_another_tasks_record(tmp_path):
    """A folder that was copied from another task is refused."""
    folder = write_run(tmp_path, 1, "rte", 0.7, arguments={"task_name": "MRPC"})
    assert f"{folder}/run.json: belongs to task MRPC" in error(tmp_path, 1)


def test_a_result_counts_once(tmp_path):
    """A link to another seed, to its file, or the same ROOT twice would count a run twice."""
    write_run(tmp_path / "a", 1, "rte", 0.7)
    (tmp_path / "a" / "2").symlink_to("1")
    message = error(tmp_path / "a", 2)
    assert f"{tmp_path}/a/2/rte/run.json: is the same file as {tmp_path}/a/1/rte/run.json" in message
    (tmp_path / "a" / "2").unlink()
    shutil.copytree(tmp_path / "a" / "1", tmp_path / "a" / "2")
    assert read(tmp_path / "a", 2).rows[0].scores("rte") == {1: 0.7, 2: 0.7}
    for name in ("eval_results.json", "run.json"):
        (tmp_path / "a" / "2" / "rte" / name).unlink()
    os.link(tmp_path / "a" / "1" / "rte" / "eval_results.json", tmp_path / "a" / "2" / "rte" / "eval_results.json")
    (tmp_path / "a" / "1" / "rte" / "run.json").unlink()
    assert "2/rte/eval_results.json: is the same file as" in error(tmp_path / "a", 2)
    (tmp_path / "b").symlink_to("a")
    assert "is the same file as" in error(tmp_path / "a", tmp_path / "b", 1)


def test_a_metric_of_no_task_of_the_table_is_refused(tmp_path):
    """It would have no effect."""
    write_run(tmp_path / "a", 1, "rte", 0.7)
    message = error(tmp_path / "a", 1, "--tasks", "rte", "--metric", "mrpc=f1")
    assert message == "--metric mrpc=f1: mrpc is not one of the table's tasks, rte"
    assert "stsb is not one of" in error(tmp_path / "a", 1, "--tasks", "rte", "--stsb_metric", "pearson")


def test_dropped_runs_of_a_task_without_a_column_are_listed(tmp_path):
    """Where all runs of a task collapsed or are broken, their folders and reasons are there all the same."""
    write_run(tmp_path, 1, "rte", 0.7)
    write_run(tmp_path, 1, "cola", 0.0)
    (write_run(tmp_path, 1, "mrpc", 0.5) / "run.json").write_text("{")
    lines = health(tmp_path, 1, "--drop_collapsed", "--allow_missing")
    assert f"collapsed, dropped: {tmp_path}/1/cola (eval_matthews_correlation is 0)" in lines
    assert any(line.startswith(f"unusable: {tmp_path}/1/mrpc (not valid JSON") for line in lines)


def test_a_root_given_again_and_a_job_log_are_left_out(tmp_path):
    """`x/b x/*` has each folder once, b first; a sweep's log among them is no row."""
    for name in "ab":
        write_run(tmp_path / name, 1, "rte", 0.7)
    (tmp_path / "joblog.tsv").write_text("Seq\n")
    results = read(tmp_path / "b", *sorted(tmp_path.iterdir()), f"{tmp_path}/a/", 1)
    assert [row.name for row in results.rows] == ["b", "a"]
    assert error(tmp_path / "joblog.tsv", 1) == f"ROOT: no folder of results, only {tmp_path}/joblog.tsv"


def test_links_to_different_results_are_fine(tmp_path):
    """A tree of links reads as the files behind them."""
    write_run(tmp_path / "real", 1, "rte", 0.7)
    write_run(tmp_path / "real", 2, "rte", 0.8)
    (tmp_path / "links").mkdir()
    for seed in ("1", "2"):
        (tmp_path / "links" / seed).symlink_to(tmp_path / "real" / seed)
    assert read(tmp_path / "links", 2).rows[0].scores("rte") == {1: 0.7, 2: 0.8}


def test_huge_file_is_not_read(tmp_path):
    """A file far larger than any result is named with its size; a sparse one stands for it here."""
    folder = write_run(tmp_path, 1, "rte", 0.7)
    os.truncate(folder / "run.json", 2**33)
    assert f"{folder}/run.json: too large to be a result: {2**33} bytes" in error(tmp_path, 1)


def test_mnli_is_the_mean_of_both_sets(tmp_path):
    """Both sets are needed; the score that counts is their mean."""
    folder = write_run(tmp_path, 1, "mnli", 0.84, 0.86)
    (row,) = read(tmp_path, 1, "--tasks", "mnli").rows
    assert row.runs["mnli"][1].parts == (0.84, 0.86)
    assert row.scores("mnli") == {1: pytest.approx(0.85)}
    write_run(tmp_path, 1, "mnli", 0.84, 0.86, scores=None)
    (folder / "eval_results.json").write_text('{"eval_accuracy": 0.84}')
    assert "has no eval_accuracy_mm" in error(tmp_path, 1, "--tasks", "mnli")


def test_tasks(tmp_path):
    """--tasks gives the columns in its order, of all nine; unknown and repeated ones are refused."""
    for task in ("wnli", "rte", "qqp"):
        write_run(tmp_path, 1, task, 0.6)
    assert read(tmp_path, 1).tasks == ["rte"]
    assert read(tmp_path, 1, "--tasks", "wnli,rte").tasks == ["wnli", "rte"]
    results = read(tmp_path, 1, "--tasks", "all")
    assert results.tasks == ["rte", "qqp", "wnli"]
    assert results.empty_tasks == ["sst2", "mrpc", "cola", "qnli", "stsb", "mnli"]
    for text in ("ax", "rte,rte", "", ",", "RTE"):
        assert "--tasks" in error(tmp_path, 1, "--tasks", text) and "wnli" in error(tmp_path, 1, "--tasks", text)


def test_metrics(tmp_path):
    """--metric picks another key of a task, with or without eval_; both STS-B options must agree."""
    folder = write_run(tmp_path, 1, "mrpc", 0.7, scores={"last": {"eval_accuracy": 0.7, "eval_f1": 0.8}})
    write_run(tmp_path, 1, "stsb", 0.91, 0.89, 0.90)
    for text in ("mrpc=f1", "mrpc=eval_f1"):
        assert read(tmp_path, 1, "--metric", text).rows[0].scores("mrpc") == {1: 0.8}
    assert f"{folder}/run.json: has no eval_pearson" in error(tmp_path, 1, "--metric", "mrpc=pearson")
    both = ["--stsb_metric", "pearson", "--metric", "stsb=spearmanr"]
    assert read(tmp_path, 1, *both[2:]).rows[0].scores("stsb") == {1: 0.89}
    assert "stsb=spearmanr is asked for as well" in error(tmp_path, 1, *both)
    for text in ("mrpc", "mrpc=loss", "ax=accuracy", "=f1"):
        assert f"--metric {text}: must be TASK=KEY" in error(tmp_path, 1, "--metric", text)


def test_f1_is_never_negative(tmp_path):
    """The range goes by the metric."""
    write_run(tmp_path, 1, "mrpc", 0.7, scores={"last": {"eval_f1": -0.1, "eval_pearson": -0.1}})
    assert "eval_f1 is -0.1, not between 0 and 1" in error(tmp_path, 1, "--metric", "mrpc=f1")
    assert read(tmp_path, 1, "--metric", "mrpc=pearson").rows[0].scores("mrpc") == {1: -0.1}


def test_correlations_lie_between_minus_one_and_one(tmp_path):
    """What is further out is no correlation."""
    write_run(tmp_path, 1, "cola", -1.0)
    assert read(tmp_path, 1).rows[0].scores("cola") == {1: -1.0}
    for score in (-1.01, 1.01):
        write_run(tmp_path, 1, "cola", score)
        assert f"eval_matthews_correlation is {score}, not between -1 and 1" in error(tmp_path, 1)


def test_rows_need_the_same_tasks(tmp_path):
    """What one ROOT has and the other lacks is missing; with --allow_missing the average leaves it out."""
    first = write_rows(tmp_path / "a", {"rte": [0.6], "mrpc": [0.8]})
    second = write_rows(tmp_path / "b", {"rte": [0.7]})
    assert f"{second}/1/mrpc/eval_results.json: missing" in error(first, second, 1)
    results = read(first, second, 1, "--allow_missing")
    assert results.tasks == ["mrpc", "rte"]
    assert results.averaged_tasks == ["rte"]


def test_names_of_rows(tmp_path):
    """Equal folder names become paths; control characters can't break a line."""
    paths = [str(tmp_path / "x" / "lora4"), str(tmp_path / "y" / "lora4"), str(tmp_path / "vera\n1")]
    assert read.row_names(paths) == [*paths[:2], r"vera\n1"]


def test_drop_collapsed(tmp_path):
    """Dropped runs leave scores and averages; what is left of a row without them must not be empty."""
    write_run(tmp_path, 1, "cola", 0.6)
    write_run(tmp_path, 2, "cola", 0.0)
    assert read(tmp_path, 2).rows[0].scores("cola") == {1: 0.6, 2: 0.0}
    assert read(tmp_path, 2, "--drop_collapsed").rows[0].scores("cola") == {1: 0.6}
    write_run(tmp_path, 1, "cola", 0.0)
    assert "has no usable result" in error(tmp_path, 2, "--drop_collapsed")


def test_costs_by_hand(tmp_path):
    """Parameters, file and memory are a seed's largest, training time its sum; then the mean over seeds."""
    sizes = {"rte": (100, 10, 4000, 60.0, 7e8), "stsb": (100, 8, 3990, 40.0, 9e8)}
    for seed, factor in ((1, 1), (2, 3)):
        for task, (adapter, head, stored, seconds, peak) in sizes.items():
            write_run(
                tmp_path, seed, task, 0.5,
                parameters={"adapter": adapter, "head": head}, saved_bytes=stored,
                metrics={"train_runtime": seconds * factor}, peak_memory={"kind": "process", "bytes": peak},
            )  # fmt: skip
    results = read(tmp_path, 2)
    assert read.seed_costs(results.rows[0], results.tasks) == {
        "adapter_parameters": 100,
        "parameters_with_head": 110,
        "stored_bytes": 4000,
        "train_seconds": 200,  # the mean of 100 and 300
        "peak_bytes": 9e8,
    }


@pytest.mark.parametrize("wrong", [None, "5", True, [5], {}, float("nan"), float("inf"), 10**400, -1])
def test_costs_of_the_wrong_type_are_unknown(tmp_path, wrong):
    """A cost that is no sane number is unknown: its seed doesn't count, and without another seed there is none."""
    changes = {
        "parameters": {"adapter": wrong, "head": wrong},
        "saved_bytes": wrong,
        "peak_memory": {"bytes": wrong},
        "metrics": {"train_runtime": wrong},
    }
    write_run(tmp_path, 1, "rte", 0.5, **changes)
    write_run(tmp_path, 2, "rte", 0.5)
    (row,) = read(tmp_path, 1).rows
    assert set(read.seed_costs(row, ["rte"]).values()) == {None}
    (row,) = read(tmp_path, 2).rows
    assert read.seed_costs(row, ["rte"])["stored_bytes"] == 5_000_000


def test_kinds_of_memory(tmp_path):
    """Each is named once; what is no text, or would break a line, is left out or escaped."""
    for seed, kind in enumerate(["process", "process", [], None, 7, "a\nb"], start=1):
        write_run(tmp_path, seed, "rte", 0.5, peak_memory={"kind": kind})
    results = read(tmp_path, 6)
    assert read.memory_kinds(results.rows, ["rte"]) == [r"a\nb", "process"]


# Health: every run that a reader has to know about is listed with its folder, and no other.


def health(*argv: object) -> list[str]:
    """Return what is said about the runs."""
    return health_lines(read(*argv))


def test_nothing_to_report(tmp_path):
    """A whole row with records is one line."""
    assert health(write_rows(tmp_path, {"rte": [0.6, 0.7], "cola": [0.5, 0.6]}), 2) == ["nothing found in 4 runs"]


def test_missing_and_unusable(tmp_path):
    """With --allow_missing each is listed, the broken one with its reason."""
    write_rows(tmp_path, {"rte": [0.6, 0.7], "mrpc": [0.8]})
    (tmp_path / "2" / "rte" / "run.json").write_text("")
    lines = health(tmp_path, 2, "--allow_missing")
    assert lines[0] == f"missing: {tmp_path}/2/mrpc"
    assert lines[1].startswith(f"unusable: {tmp_path}/2/rte (not valid JSON")


def test_what_was_not_checked_is_said(tmp_path):
    """Without run.json the arguments, without the majority's share the collapse of an accuracy isn't known."""
    write_rows(tmp_path, {"rte": [0.6, 0.7], "cola": [0.5, 0.6]})
    (tmp_path / "1" / "cola" / "run.json").unlink()
    (tmp_path / "2" / "rte" / "run.json").unlink()
    assert health(tmp_path, 2)[1:] == [
        "not checked: the arguments of 2 runs (no run.json) and whether 1 run collapsed (no eval_majority_share)"
    ]


MAJORITY = "is not above the share of the most frequent class"


@pytest.mark.parametrize(
    ("task", "metrics", "reason"),
    [
        ("cola", {"eval_matthews_correlation": 0.0}, "eval_matthews_correlation is 0"),
        ("stsb", metrics_of("stsb", 0.0), "eval_pearson is 0"),
        ("stsb", metrics_of("stsb", 0.1) | {"eval_prediction_std": 0.0}, "constant output: eval_prediction_std is 0"),
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


def test_diverged_and_failed(tmp_path):
    """A loss that is no number, and the line that run_glue.py leaves in place of results."""
    write_run(tmp_path, 1, "rte", 0.6)
    write_run(tmp_path, 2, "rte", 0.6, metrics={"train_loss": float("nan")})
    for seed, line in ((3, "diverged: the training loss is nan at step 7"), (4, "out of memory: take less")):
        (tmp_path / str(seed) / "rte").mkdir(parents=True)
        (tmp_path / str(seed) / "rte" / "failure.txt").write_text(f"{line}\nmore\n")
    assert f"{tmp_path}/4/rte/failure.txt: failed: out of memory: take less" in error(tmp_path, 4)
    lines = health(tmp_path, 4, "--allow_missing")
    assert lines == [
        f"diverged: {tmp_path}/3/rte (the training loss is nan at step 7)",
        f"failed: {tmp_path}/4/rte (out of memory: take less)",
        f"diverged, counted: {tmp_path}/2/rte (train_loss is nan)",
    ]
    assert "diverged, dropped" in health(tmp_path, 4, "--allow_missing", "--drop_collapsed")[2]


def test_a_failed_run_without_its_record_does_not_count(tmp_path):
    """eval_results.json alone may be of a run that failed afterwards; run.json is written last and goes before."""
    folder = write_run(tmp_path, 1, "rte", 0.6)
    (folder / "failure.txt").write_text("disk full: no space left")
    assert read(tmp_path, 1).rows[0].scores("rte") == {1: 0.6}
    (folder / "run.json").unlink()
    assert "failure.txt: failed: disk full" in error(tmp_path, 1)


def test_a_mark_that_is_no_file(tmp_path):
    """A folder in the mark's place says nothing: the run is missing."""
    write_run(tmp_path, 1, "rte", 0.6)
    (tmp_path / "2" / "rte" / "failure.txt").mkdir(parents=True)
    assert health(tmp_path, 2, "--allow_missing") == [f"missing: {tmp_path}/2/rte"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"arguments": {"rank": 8}}, "rank 8, not 4"),
        ({"arguments": {"num_train_epochs": 3.0}}, "num_train_epochs 3.0, not 10.0"),
        ({"base_model": {"sha256": "0"}}, 'base model "0", not "5f63"'),
        ({"data_sha256": {"train": "other"}}, 'train data "other", not "rte train"'),
        ({"adapter_config": {"lora_alpha": 1}}, None),  # the others don't record it
        ({"adapter_config": {"r": 8}}, "adapter_config.r 8, not 4"),
        ({"arguments": {"init_adapter_from": "x/3/mnli"}}, "starts from an adapter true, not false"),
        ({"arguments": {"seed": 1}}, "its seed is 1"),
        ({"precision": "fp16"}, 'precision "fp16", not "float32"'),
        ({"arguments": {"output_dir": "elsewhere", "logging_steps": 7, "dataset_path": "b"}}, None),
    ],
)
def test_runs_made_in_another_way(tmp_path, changes, reason):
    """The odd one out is listed with what differs; what only names a run may differ."""
    write_rows(tmp_path, {"rte": [0.6, 0.61, 0.62, 0.63]})
    write_run(tmp_path, 3, "rte", 0.62, **changes)
    expected = "nothing found in 4 runs"
    if reason is not None:
        expected = f"differs from its row: {tmp_path}/3/rte: {reason}"
    assert health(tmp_path, 4) == [expected]


def test_held_out_rows_go_by_the_seed(tmp_path):
    """With --selection_fraction the training rows differ between seeds by design; a run without it is another one."""
    for seed in (1, 2, 3):
        write_run(
            tmp_path, seed, "rte", 0.6, arguments={"selection_fraction": 0.1}, data_sha256={"train": f"rows of {seed}"}
        )
    assert health(tmp_path, 3) == ["nothing found in 3 runs"]
    for other, text in ((None, "null"), (0.2, "0.2")):
        write_run(tmp_path, 3, "rte", 0.6, arguments={"selection_fraction": other})
        (line,) = health(tmp_path, 3)
        assert line.endswith(f"3/rte: selection_fraction {text}, not 0.1")


def test_tasks_may_differ_in_epochs_but_not_in_rank(tmp_path):
    """Recipes train each task in its own way; the row's adapter and model are one."""
    write_rows(tmp_path, {"rte": [0.6, 0.6], "mrpc": [0.8, 0.8]})
    write_rows(tmp_path, {"cola": [0.5, 0.5]}, arguments={"num_train_epochs": 80.0, "learning_rate": 4e-4})
    assert health(tmp_path, 2) == ["nothing found in 6 runs"]
    write_rows(tmp_path, {"cola": [0.5, 0.5]}, arguments={"rank": 8})
    assert health(tmp_path, 2) == [f"differs from its row: {tmp_path}/{seed}/cola: rank 8, not 4" for seed in (1, 2)]


def test_odd_values_are_compared_and_shortened(tmp_path):
    """Arguments of any JSON type are compared; a long value is cut, and names can't break the line."""
    write_rows(tmp_path, {"rte": [0.6, 0.6]})
    write_run(tmp_path, 3, "rte", 0.6, arguments={"rank": {"a": ["x" * 500]}})
    (line,) = health(tmp_path, 3)
    assert line == f'differs from its row: {tmp_path}/3/rte: rank {{"a": ["{"x" * 29}..., not 4'
    write_rows(tmp_path, {"rte": [0.6, 0.6, 0.6]}, arguments={"odd\nname": 1})
    write_run(tmp_path, 3, "rte", 0.6, arguments={"odd\nname": 2})
    assert health(tmp_path, 3) == [rf"differs from its row: {tmp_path}/3/rte: odd\nname 2, not 1"]


def test_deeply_nested_arguments_are_no_traceback():
    """What can be read but not written again, as it is nested too deeply, is not compared."""
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert settings_of({"arguments": {"rank": 4, "deep": deep}}) == {}
    assert settings_of({"arguments": {"rank": 4}})["rank"] == "4"
