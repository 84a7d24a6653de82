"""run_state.py: finished, open, broken, or another run's."""

import pytest
from helpers import make_checkpoint, make_finished_run

from glue_peft import run_folder
from glue_peft.run_state import state

FLAGS = ["--task_name", "cola", "--do_eval", "--learning_rate", "1e-4", "--fp16", "--rank", "4", "--resume"]


def test_a_run_is_finished_only_with_its_results_and_its_arguments(tmp_path):
    """Another seed is another run; an empty folder is open."""
    folder = make_finished_run(tmp_path / "run", FLAGS)
    assert state(folder, FLAGS) == ("finished", "")
    assert state(folder, [*FLAGS, "--seed", "2"]) == ("other", "--seed 2 (the folder has none)")
    assert state(tmp_path / "none", FLAGS) == ("open", "")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("eval_results.json", "", ("broken", "eval_results.json is missing or not a JSON object")),
        ("eval_results.json", None, ("broken", "eval_results.json is missing or not a JSON object")),
        (
            "eval_results.json",
            '{"eval_accuracy": 1}',
            ("broken", "eval_results.json has no eval_matthews_correlation"),
        ),
        ("run.json", '{"arguments": {', ("broken", "run.json is not a JSON object")),
        ("run.json", None, ("open", "")),
    ],
)
def test_broken_results_are_run_again(tmp_path, name, content, expected):
    """Cut short, missing, without the score of the task."""
    folder = make_finished_run(tmp_path / "run", FLAGS)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    assert state(folder, FLAGS) == expected
    assert state(folder, [*FLAGS, "--rank", "8"])[0] == "other"  # broken or not, it isn't this run's


def test_what_was_added_to_a_run_is_no_difference_for_who_does_not_ask(tmp_path):
    """Predictions of so many rows; for who asks for predictions too, their number is one."""
    more = [*FLAGS, "--do_predict", "--max_predict_samples", "5"]
    folder = make_finished_run(tmp_path / "run", more)
    assert state(folder, FLAGS) == ("finished", "") == state(folder, more)
    assert state(folder, [*FLAGS, "--do_predict"]) == ("other", "no --max_predict_samples (the folder has 5)")


def test_a_record_that_names_no_arguments_is_left_alone(tmp_path):
    """It may be anybody's."""
    (tmp_path / "run.json").write_text("{}")
    assert state(tmp_path, FLAGS)[0] == "other"


def test_checkpoints_of_other_arguments_are_not_resumed(tmp_path):
    """command.json says whose they are."""
    make_checkpoint(tmp_path, 1)
    assert state(tmp_path, FLAGS) == ("open", "")  # from before there was a command.json
    run_folder.write_json(tmp_path / "command.json", {"command": FLAGS, "arguments": {}})
    assert state(tmp_path, FLAGS) == ("open", "")
    assert state(tmp_path, [*FLAGS, "--rank", "8"]) == ("other", "--rank 8 (the folder has 4)")


def test_only_a_log_or_a_failure_protects_nothing(tmp_path):
    """Such a folder is free for any run; the log stays."""
    for name in ("run.log", "run.lock", "failure.txt"):
        (tmp_path / name).write_text("x")
    run_folder.write_json(tmp_path / "command.json", {"command": ["--rank", "8"]})
    assert run_folder.files_of_a_run(tmp_path) == []
    assert state(tmp_path, FLAGS) == ("open", "")
    run_folder.clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.lock", "run.log"]


@pytest.mark.parametrize("record", [{}, {"date": "2031-01-01"}])
def test_a_record_that_says_nothing_is_no_end(tmp_path, record):
    """Although the flags beside it are the right ones: the run is made again."""
    flags = ["--seed", "1"]
    run_folder.write_json(tmp_path / "command.json", {"command": flags})
    run_folder.write_json(tmp_path / "run.json", record)
    assert state(tmp_path, flags) == ("broken", "run.json doesn't say by which arguments it was made")


def test_saved_weights_of_another_size_are_broken(tmp_path):
    """As a full disk or a broken copy leaves them; weights that somebody moved away are no fault."""
    flags = ["--seed", "1"]
    run_folder.write_json(tmp_path / "run.json", {"command": flags, "saved_bytes": 5})
    (tmp_path / "adapter_model.safetensors").write_bytes(b"12345")
    assert state(tmp_path, flags)[0] == "finished"
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert state(tmp_path, flags) == ("broken", "adapter_model.safetensors has 0 bytes, not the 5 of run.json")
    (tmp_path / "adapter_model.safetensors").unlink()
    assert state(tmp_path, flags)[0] == "finished"
