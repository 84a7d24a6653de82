"""record.py: what run.json holds, and the scores in it."""

import importlib
import json
import subprocess
import sys
import time

import pytest
import torch
from helpers import REPOSITORY, arguments, read, saved_weights

import run_glue
from glue_peft.record import choose_scores, describe_environment, history_of


def test_record_holds_what_made_the_numbers_and_no_token(run):
    """And counts that add up to the saved tensors."""
    folder = run(token="hf_secret", hub_token="hf_other_secret", adapter_name="randlora", rank=8)
    record = read(folder / "run.json")
    assert "secret" not in json.dumps(record)
    assert {
        "arguments",
        "adapter_config",
        "base_model",
        "data_sha256",
        "parameters",
        "precision",
        "device",
        "seconds",
    } <= (record.keys())
    assert record["versions"]["torch"] == torch.__version__
    assert len(record["base_model"]["sha256"]) == 64
    assert record["saved_bytes"] == (folder / "adapter_model.safetensors").stat().st_size
    assert record["peak_memory"]["bytes"] > 0
    counts, weights = record["parameters"], saved_weights(folder)
    assert counts["stored"] == sum(tensor.numel() for tensor in weights.values())
    assert counts["adapter"] + counts["head"] == counts["stored"]
    assert counts["head"] == sum(tensor.numel() for name, tensor in weights.items() if "classifier" in name)


def test_record_has_the_keys_that_tables_and_older_records_have(run):
    """Also of a run that only trains, which has no scores, and of one that only evaluates."""
    keys = set(
        "adapter_config adapter_config_file arguments base_model command data data_sha256 device fast_adapters "
        "git_commit metrics parameters peak_memory platform precision processes saved_bytes scores seconds threads "
        "sources unpadded_encoder versions".split()
    )
    folder = run(eval_strategy="epoch", selection_fraction=0.25)
    record = read(folder / "run.json")
    assert record.keys() == keys
    assert record["scores"].keys() == {"metric", "history", "last", "best", "selected"}
    assert record["peak_memory"].keys() == {"kind", "bytes"}
    assert record["parameters"].keys() == {"adapter", "head", "total", "stored"}
    assert record["base_model"].keys() == {"name", "revision", "sha256"}
    assert read(folder / "command.json") == {
        name: record[name] for name in ("command", "arguments", "adapter_config_file")
    }
    assert read(run("trained", do_eval=None) / "run.json").keys() == keys - {"scores"}
    evaluated = run("evaluated", do_train=None, adapter_path=folder, adapter_name=None, rank=None)
    assert read(evaluated / "run.json").keys() == keys - {"scores"}


def test_seconds_count_from_the_start_of_main(tiny, tmp_path):
    """A second run in one process doesn't count the first one's time."""
    elapsed = []
    for name in ("first", "second"):
        began = time.perf_counter()
        run_glue.main(arguments(tiny, tmp_path / name, max_steps=1))
        elapsed.append(time.perf_counter() - began)
        seconds = read(tmp_path / name / "run.json")["seconds"]
        assert 0.5 * elapsed[-1] < seconds < elapsed[-1]


def test_environment_names_versions_and_commit(tmp_path):
    """None for a folder that is no repository."""
    environment = describe_environment(tmp_path)
    assert environment["git_commit"] is None
    assert environment["versions"]["torch"] == torch.__version__
    json.dumps(environment)


def test_a_fork_in_use_is_recorded_with_its_commit_and_changes(tmp_path, monkeypatch):
    """As `pip install -e` leaves it on Python's path; and one that pip installed from git, by what pip notes."""
    package = tmp_path / "clone/src/forked_method"
    package.mkdir(parents=True)
    for name in ("__init__.py", "layer.py"):
        (package / name).write_text("")
    (tmp_path / "clone/notes.md").write_text("")
    git = ["git", "-C", str(tmp_path / "clone"), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "as published"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    noted = {"url": "https://example.org/p.git", "vcs_info": {"vcs": "git", "commit_id": "5eed"}}
    installed = tmp_path / "site-packages/p-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: p\nVersion: 1.0\n")
    (installed / "direct_url.json").write_text(json.dumps(noted))
    monkeypatch.syspath_prepend(tmp_path / "clone/src")
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    monkeypatch.setitem(sys.modules, "forked_method", importlib.import_module("forked_method"))
    expected = {"place": str(package), "commit": commit, "changed_files": []}
    sources = describe_environment(REPOSITORY)["sources"]
    assert sources["forked_method"] == expected and "glue_peft" not in sources and "peft" not in sources
    assert sources["p"] == {"place": "https://example.org/p.git", "commit": "5eed", "changed_files": []}
    (package / "layer.py").write_text("changed")
    (package / "new.py").write_text("")
    (tmp_path / "clone/notes.md").write_text("no code of the package")
    sources = describe_environment(REPOSITORY)["sources"]
    assert sources["forked_method"] == {**expected, "changed_files": ["layer.py", "new.py"]}


def test_without_git_there_is_no_commit(monkeypatch):
    """A container may lack it: no reason to lose a run."""
    monkeypatch.setenv("PATH", "")
    assert describe_environment(REPOSITORY)["git_commit"] is None


def test_it_needs_no_torch():
    """What reads records asks for milliseconds."""
    code = "import sys, glue_peft.record; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_layers_left_to_peft_are_recorded_with_the_reason(run):
    """Adapter dropout, and padding that was asked for."""
    record = read(run(adapter_dropout=0.1, pad_to_max_length=True) / "run.json")
    assert record["fast_adapters"] == {"converted": 0, "left": {"adapter dropout": 12}}
    assert record["unpadded_encoder"] == {"on": False, "reason": "--pad_to_max_length"}


# Scores


def test_history_has_one_entry_a_step_in_the_names_of_the_results():
    """Further sets join their step, MNLI's mismatched one by its suffix; timings and training losses are left out."""
    log = [
        {"step": 4, "epoch": 1.0, "loss": 0.7},
        {"step": 4, "epoch": 1.0, "eval_accuracy": 0.5, "eval_runtime": 3.0, "eval_samples_per_second": 9.0},
        {"step": 4, "epoch": 1.0, "eval_mm_accuracy": 0.4, "eval_mm_runtime": 3.0},
        {"step": 4, "epoch": 1.0, "eval_selection_accuracy": 0.3},
        {"step": 8, "epoch": 2.0, "eval_accuracy": 0.6, "eval_steps_per_second": 9.0},
        {"step": 8, "epoch": 2.0, "train_runtime": 9.0},
    ]
    assert history_of(log) == [
        {"epoch": 1.0, "eval_accuracy": 0.5, "eval_accuracy_mm": 0.4, "selection_accuracy": 0.3},
        {"epoch": 2.0, "eval_accuracy": 0.6},
    ]


@pytest.mark.parametrize(("greater", "best", "selected"), [(True, 2.0, 1.0), (False, 1.0, 2.0)])
def test_last_best_and_selected_by_hand(greater, best, selected):
    """The best by the validation set, the selected by the held-out rows; of two equals the earlier one."""
    values = {1.0: (0.5, 0.9), 2.0: (0.8, 0.2), 3.0: (0.8, 0.9)}
    history = [{"epoch": epoch, "eval_m": v, "selection_m": s} for epoch, (v, s) in values.items()]
    final = {"eval_m": 0.8, "eval_runtime": 1.0, "eval_loss": 0.1, "predict_samples": 3}
    scores = choose_scores(history, final, 3.0, "m", greater, saves_best=False)
    assert scores["metric"] == "eval_m"
    assert scores["last"] == {"epoch": 3.0, "eval_m": 0.8, "selection_m": 0.9, "eval_loss": 0.1}
    assert [entry["epoch"] for entry in scores["history"]] == [1.0, 2.0, 3.0]
    assert (scores["best"]["epoch"], scores["selected"]["epoch"]) == (best, selected)
    saved = choose_scores(history, {"eval_m": 0.5}, 3.0, "m", greater, saves_best=True)
    assert saved["history"] == history and saved["last"] == history[-1]  # the results are another epoch's
    alone = choose_scores([], {"eval_m": 0.5}, 3.0, "m", greater, saves_best=True)
    assert alone["best"] == alone["last"] == {"epoch": 3.0, "eval_m": 0.5} and "selected" not in alone


def test_scores_on_held_out_rows_alone_by_hand():
    """There is no best epoch, as there is no validation set; a score on that can be added."""
    history = [{"epoch": 1.0, "selection_m": 0.9}, {"epoch": 2.0, "selection_m": 0.8}]
    final = {"selection_m": 0.8, "selection_loss": 0.1, "selection_runtime": 1.0, "selection_samples": 9}
    scores = choose_scores(history, final, 2.0, "m", True, saves_best=False)
    assert scores["metric"] == "selection_m" and "best" not in scores
    assert scores["last"] == {"epoch": 2.0, "selection_m": 0.8, "selection_loss": 0.1}
    assert scores["selected"] == history[0]
    for saves_best, n_entries in ((False, 2), (True, 3)):  # with the best model saved, it isn't the last epoch's
        epoch = 1.0 if saves_best else 2.0
        added = choose_scores(history, {"eval_m": 0.7}, epoch, "m", True, saves_best)
        assert added["best"] == added["last"] and added["last"]["eval_m"] == 0.7
        assert added["metric"] == "eval_m" and len(added["history"]) == n_entries


def test_a_validation_score_can_be_added_to_a_run_scored_on_held_out_rows(run):
    """It is that of a run which had both from the start."""
    flags = {"selection_fraction": 0.25, "eval_strategy": "epoch", "num_train_epochs": 2}
    both = read(run("both", **flags) / "run.json")
    run("added", do_eval=None, **flags)
    record = read(run("added", resume=True, **flags) / "run.json")
    assert record["scores"]["last"] == both["scores"]["last"] and record["arguments"]["do_eval"] is True
    assert record["scores"]["metric"] == "eval_accuracy"


def test_last_and_best_epoch_are_told_apart_and_results_belong_to_the_saved_model(run):
    """The record has both, whichever was saved."""
    flags = {"num_train_epochs": 4, "eval_strategy": "epoch", "learning_rate": 3e-2, "lr_scheduler_type": "constant"}
    last, best = run("last", **flags), run("best", load_best_model_at_end=True, **flags)
    scores = [read(folder / "run.json")["scores"] for folder in (last, best)]
    assert scores[0] == scores[1]
    history = [entry["eval_accuracy"] for entry in scores[0]["history"]]
    assert scores[0]["best"]["eval_accuracy"] == max(history) > history[-1]  # else this test would show nothing
    assert scores[0]["best"]["epoch"] == 1.0 + history.index(max(history))
    assert read(last / "eval_results.json")["eval_accuracy"] == history[-1]
    assert read(best / "eval_results.json")["eval_accuracy"] == max(history)


def test_mnli_s_history_has_both_sets(run):
    """Matched and mismatched in every epoch."""
    folder = run(task_name="mnli", eval_strategy="epoch", num_train_epochs=2, max_eval_samples=50)
    scores = read(folder / "run.json")["scores"]
    assert [{"eval_accuracy", "eval_accuracy_mm"} <= entry.keys() for entry in scores["history"]] == [True, True]
    results = read(folder / "eval_results.json")
    assert all(scores["last"][key] == results[key] for key in ("eval_accuracy", "eval_accuracy_mm", "eval_loss_mm"))


def test_without_any_evaluation_in_training_the_last_epoch_is_saved(run):
    """--eval_delay beyond the end: there is no best epoch to load, and the scores are the last one's."""
    folder = run(load_best_model_at_end=True, eval_strategy="epoch", eval_delay=5)
    scores = read(folder / "run.json")["scores"]
    assert scores["last"] == scores["best"] == scores["history"][0] and len(scores["history"]) == 1
