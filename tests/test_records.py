"""tables/records.py: every number with its protocol in CSV and JSON, and every run in a line."""

import csv
import json
import statistics

import pytest
from helpers import FIVE, said, shifted, write_rows, write_run

import parse_results


def test_json_and_csv_have_every_number_with_its_protocol(tmp_path, capsys):
    """Both hold the same unrounded records; CSV's caption and notes go to stderr."""
    write_rows(tmp_path / "a", {"rte": FIVE, "stsb": FIVE})
    write_rows(tmp_path / "b", {"rte": shifted([0.04, 0.05, 0.06, 0.05, 0.05]), "stsb": FIVE})
    argv = [tmp_path / "a", tmp_path / "b", 5, "--ddof", "1", "--statistic", "median", "--format"]
    status, out, err = said(capsys, parse_results, *argv, "json")
    content = json.loads("\n".join(out))
    assert (status, err) == (0, [])
    assert content["captions"][0].startswith("median ± sample std over 5 seeds")
    assert any(note.startswith("health: ") for note in content["notes"])
    records = {(record["name"], record["task"]): record for record in content["numbers"]}
    assert len(records) == len(content["numbers"]) == 9
    ours = records["a", "rte"]
    assert ours["value"] == pytest.approx(72) and ours["std"] == pytest.approx(100 * statistics.stdev(FIVE))
    fields = ("kind", "n", "statistic", "ddof", "epoch", "metric", "mnli_start", "adapter_parameters")
    assert [ours[name] for name in fields] == ["ours", 5, "median", 1, "last", "accuracy", False, 663_552]
    assert records["a", "stsb"]["metric"] == "combined_score"
    compared = records["b minus a", "rte"]
    assert compared["value"] == pytest.approx(5) and compared["permutation_p"] == pytest.approx(4 / 252)
    assert compared["holm_p"] == pytest.approx(3 * compared["p"]) and compared["family"] == 3
    assert compared["holm_permutation_p"] == pytest.approx(12 / 252)
    assert compared["smallest_permutation_p"] == pytest.approx(2 / 252)
    assert 0 < compared["smallest_shown"] < 5 and compared["seeds_needed"] <= 5
    assert compared["paired_p"] < compared["p"] and compared["verdict"] == "b is better"
    status, out, err = said(capsys, parse_results, *argv, "csv")
    rows = list(csv.DictReader(out))
    assert status == 0 and err[0] == content["captions"][0]
    assert [row["task"] for row in rows] == [record["task"] for record in content["numbers"]]
    assert float(rows[0]["value"]) == content["numbers"][0]["value"]


def test_mnlis_sets_in_json(tmp_path, capsys):
    """MNLI has three records: the mean that counts, and each set."""
    write_run(tmp_path / "a", 1, "mnli", 0.84, 0.86)
    _, out, _ = said(capsys, parse_results, tmp_path / "a", 1, "--tasks", "mnli", "--format", "json")
    found = {record["task"]: record["value"] for record in json.loads("\n".join(out))["numbers"]}
    assert found == {
        "mnli": pytest.approx(85),
        "mnli-m": pytest.approx(84),
        "mnli-mm": pytest.approx(86),
        "avg": pytest.approx(85),
    }


def test_runs_are_listed_one_a_line(tmp_path, capsys):
    """Last, best and selected epoch side by side, whatever --epoch asks for; what wasn't measured stays empty."""
    entry = {"epoch": 3.0, "eval_accuracy": 0.875}
    last = {"epoch": 10.0, "eval_accuracy": 0.75, "eval_loss": 0.5, "eval_predicted_classes": 2}
    scores = {"last": last, "best": entry}
    scores["selected"] = entry | {"selection_accuracy": 0.625}
    write_run(tmp_path / "lora4", 1, "mrpc", 0.75, scores=scores)
    write_run(tmp_path / "lora4", 2, "mrpc", 0.5, scores=None, device="cpu")
    _, out, _ = said(capsys, parse_results, tmp_path / "lora4", 2, "--tasks", "mrpc", "--format", "runs")
    first, second = csv.DictReader(out)
    found = [first[name] for name in ("task", "seed", "last", "last_epoch", "best", "best_epoch", "selected")]
    assert found == ["mrpc", "1", "75.0", "10.0", "87.5", "3.0", "87.5"]
    assert (first["selection_rows_score"], second["selection_rows_score"]) == ("62.5", "")
    assert (first["adapter_parameters"], first["train_seconds"], first["device"]) == ("663552", "60.0", "")
    assert (second["last"], second["best"], second["device"]) == ("50.0", "", "cpu")
    assert [first[name] for name in ("model", "method", "rank", "layers")] == [
        "roberta-base", "lora", "4", "dense key query value",
    ]  # fmt: skip
    assert first["folder"] == f"{tmp_path}/lora4/1/mrpc"
    assert (first["accuracy"], first["loss"], first["f1"], first["predicted_classes"]) == ("0.75", "0.5", "", "2")
    assert [first[f"{name}_sha256"] for name in ("model", "train", "validation")] == [
        "5f63", "mrpc train", "mrpc validation",
    ]  # fmt: skip


def test_listed_runs_of_mnli_and_of_one_evaluation(tmp_path, capsys):
    """MNLI's score is the mean of both sets; a run that was evaluated once has no best epoch."""
    write_run(tmp_path / "lora4", 1, "mnli", 0.84, 0.90)
    write_run(tmp_path / "lora4", 2, "mnli", 0.60, 0.70, arguments={"eval_strategy": "no"})
    argv = [tmp_path / "lora4", tmp_path / "lora4" / ".." / "lora4", 2, "--tasks", "mnli", "--format", "runs"]
    status, out, err = said(capsys, parse_results, *argv)
    first, second = csv.DictReader(out)
    assert status == 0 and not any("paired by seed" in line for line in err)
    assert [float(first[name]) for name in ("last", "best")] == pytest.approx([87, 87])
    assert (float(second["last"]), second["best"], second["best_epoch"]) == (pytest.approx(65), "", "")
