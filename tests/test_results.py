"""tables/results.py: which runs are read, of which seeds, tasks and folders."""

import os
import shutil

from helpers import refusal, results_of, write_rows, write_run

from glue_peft.tables.results import row_names


def test_a_result_counts_once(tmp_path):
    """A link to another seed, to its file, or the same ROOT twice would count a run twice."""
    write_run(tmp_path / "a", 1, "rte", 0.7)
    (tmp_path / "a" / "2").symlink_to("1")
    message = refusal(tmp_path / "a", 2)
    assert f"{tmp_path}/a/2/rte/run.json: is the same file as {tmp_path}/a/1/rte/run.json" in message
    (tmp_path / "a" / "2").unlink()
    shutil.copytree(tmp_path / "a" / "1", tmp_path / "a" / "2")
    assert results_of(tmp_path / "a", 2).rows[0].scores("rte") == {1: 0.7, 2: 0.7}
    for name in ("eval_results.json", "run.json"):
        (tmp_path / "a" / "2" / "rte" / name).unlink()
    os.link(tmp_path / "a" / "1" / "rte" / "eval_results.json", tmp_path / "a" / "2" / "rte" / "eval_results.json")
    (tmp_path / "a" / "1" / "rte" / "run.json").unlink()
    assert "2/rte/eval_results.json: is the same file as" in refusal(tmp_path / "a", 2)
    (tmp_path / "b").symlink_to("a")
    assert "is the same file as" in refusal(tmp_path / "a", tmp_path / "b", 1)


def test_a_metric_of_no_task_of_the_table_is_refused(tmp_path):
    """It would have no effect."""
    write_run(tmp_path / "a", 1, "rte", 0.7)
    message = refusal(tmp_path / "a", 1, "--tasks", "rte", "--metric", "mrpc=f1")
    assert message == "--metric mrpc=f1: mrpc is not one of the table's tasks, rte"
    assert "stsb is not one of" in refusal(tmp_path / "a", 1, "--tasks", "rte", "--stsb_metric", "pearson")


def test_a_root_given_again_and_a_job_log_are_left_out(tmp_path):
    """`x/b x/*` has each folder once, b first; a sweep's log among them is no row."""
    for name in "ab":
        write_run(tmp_path / name, 1, "rte", 0.7)
    for name in ("joblog.tsv", "joblog_old.tsv"):
        (tmp_path / name).write_text("run\n")
    results = results_of(tmp_path / "b", *sorted(tmp_path.iterdir()), f"{tmp_path}/a/", 1)
    assert [row.name for row in results.rows] == ["b", "a"]
    assert refusal(tmp_path / "joblog.tsv", 1) == f"ROOT: no folder of results, only {tmp_path}/joblog.tsv"


def test_rows_and_seeds_are_found(tmp_path):
    """In a folder of results, however deep, lora8 before lora16; not searches, hidden folders and links."""
    for name in ("lora16", "lora8", "older/lora4", "search/lora8_lr1e-3", ".cache/lora2"):
        write_rows(tmp_path / "all" / name, {"rte": [0.7, 0.8]})
    write_run(tmp_path / "all" / "lora8", 5, "rte", 0.7)
    (tmp_path / "all" / "lora8" / "7").mkdir()  # without a run in it
    (tmp_path / "all" / "joblog.tsv").write_text("")
    (tmp_path / "all" / "link").symlink_to("lora8")
    results = results_of(tmp_path / "all", "--allow_missing")
    assert [row.name for row in results.rows] == ["lora8", "lora16", "lora4"]
    assert results.seeds == [1, 2, 5]
    assert results_of(tmp_path / "all" / "lora16").seeds == [1, 2]
    both = results_of(tmp_path / "all" / "older", tmp_path / "all", 2)
    assert [row.name for row in both.rows] == ["lora4", "lora8", "lora16"] and both.seeds == [1, 2]


def test_the_last_word_is_the_seeds_where_it_can_be(tmp_path, monkeypatch):
    """Also where a folder of that name stands in the current one; a folder that isn't there is said to be none."""
    write_rows(tmp_path / "lora4", {"rte": [0.7, 0.8]})
    monkeypatch.chdir(tmp_path / "lora4")
    assert results_of(".", "1").seeds == [1]
    assert "not 'lora5', and there is no folder of that name" in refusal(".", "lora5")
    for nothing in ("1", tmp_path / "lora4" / "1" / "rte", "none"):
        assert refusal(nothing) == (
            f"ROOT must be an existing folder that holds <seed>/<task>/eval_results.json, or folders that do, "
            f"not {str(nothing)!r}"
        )


def test_rows_are_called_as_asked(tmp_path):
    """--names changes some; a row that isn't there, no name, and one name for two are refused."""
    for name in ("lora4", "vera256"):
        write_run(tmp_path / name, 1, "rte", 0.7)
    results = results_of(tmp_path, "--names", "lora4=LoRA (r=4)", "--names", "vera256=a=b")
    assert [row.name for row in results.rows] == ["LoRA (r=4)", "a=b"]
    for wrong in ("lora8=x", "lora4", "lora4="):
        message = f"--names {wrong}: must be ROW=NAME with ROW one of lora4, vera256"
        assert refusal(tmp_path, "--names", wrong) == message
    assert refusal(tmp_path, "--names", "lora4=vera256").startswith("--names: two rows would be called the same")


def test_links_to_different_results_are_fine(tmp_path):
    """A tree of links reads as the files behind them."""
    write_run(tmp_path / "real", 1, "rte", 0.7)
    write_run(tmp_path / "real", 2, "rte", 0.8)
    (tmp_path / "links").mkdir()
    for seed in ("1", "2"):
        (tmp_path / "links" / seed).symlink_to(tmp_path / "real" / seed)
    assert results_of(tmp_path / "links", 2).rows[0].scores("rte") == {1: 0.7, 2: 0.8}


def test_tasks(tmp_path):
    """--tasks gives the columns in its order, of all nine; unknown and repeated ones are refused."""
    for task in ("wnli", "rte", "qqp"):
        write_run(tmp_path, 1, task, 0.6)
    assert results_of(tmp_path, 1).tasks == ["rte"]
    assert results_of(tmp_path, 1, "--tasks", "wnli,rte").tasks == ["wnli", "rte"]
    results = results_of(tmp_path, 1, "--tasks", "all")
    assert results.tasks == ["rte", "qqp", "wnli"]
    assert results.empty_tasks == ["sst2", "mrpc", "cola", "qnli", "stsb", "mnli"]
    for text in ("ax", "rte,rte", "", ",", "RTE"):
        assert "--tasks" in refusal(tmp_path, 1, "--tasks", text) and "wnli" in refusal(tmp_path, 1, "--tasks", text)


def test_metrics(tmp_path):
    """--metric picks another key of a task, with or without eval_; both STS-B options must agree."""
    folder = write_run(tmp_path, 1, "mrpc", 0.7, scores={"last": {"eval_accuracy": 0.7, "eval_f1": 0.8}})
    write_run(tmp_path, 1, "stsb", 0.91, 0.89, 0.90)
    for text in ("mrpc=f1", "mrpc=eval_f1"):
        assert results_of(tmp_path, 1, "--metric", text).rows[0].scores("mrpc") == {1: 0.8}
    assert f"{folder}/run.json: has no eval_pearson" in refusal(tmp_path, 1, "--metric", "mrpc=pearson")
    both = ["--stsb_metric", "pearson", "--metric", "stsb=spearmanr"]
    assert results_of(tmp_path, 1, *both[2:]).rows[0].scores("stsb") == {1: 0.89}
    assert "stsb=spearmanr is asked for as well" in refusal(tmp_path, 1, *both)
    for text in ("mrpc", "mrpc=loss", "ax=accuracy", "=f1"):
        assert f"--metric {text}: must be TASK=KEY" in refusal(tmp_path, 1, "--metric", text)


def test_rows_need_the_same_tasks(tmp_path):
    """What one ROOT has and the other lacks is missing; with --allow_missing the average leaves it out."""
    first = write_rows(tmp_path / "a", {"rte": [0.6], "mrpc": [0.8]})
    second = write_rows(tmp_path / "b", {"rte": [0.7]})
    assert f"{second}/1/mrpc/eval_results.json: missing" in refusal(first, second, 1)
    results = results_of(first, second, 1, "--allow_missing")
    assert results.tasks == ["mrpc", "rte"]
    assert results.averaged_tasks == ["rte"]


def test_names_of_rows(tmp_path):
    """Equal folder names become paths; control characters can't break a line."""
    paths = [str(tmp_path / "x" / "lora4"), str(tmp_path / "y" / "lora4"), str(tmp_path / "vera\n1")]
    assert row_names(paths) == [*paths[:2], r"vera\n1"]


def test_drop_collapsed(tmp_path):
    """Dropped runs leave scores and averages; what is left of a row without them must not be empty."""
    write_run(tmp_path, 1, "cola", 0.6)
    write_run(tmp_path, 2, "cola", 0.0)
    assert results_of(tmp_path, 2).rows[0].scores("cola") == {1: 0.6, 2: 0.0}
    assert results_of(tmp_path, 2, "--drop_collapsed").rows[0].scores("cola") == {1: 0.6}
    write_run(tmp_path, 1, "cola", 0.0)
    assert "has no usable result" in refusal(tmp_path, 2, "--drop_collapsed")
