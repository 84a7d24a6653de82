"""resuming.py: what a start finds in its folder: nothing, checkpoints, a finished run, or another one."""

import contextlib
import json
import os

import pytest
from helpers import ADAPTERS, Killed, equal, killed_at_step_5, read, saved_weights

import run_glue
from glue_peft import run_folder
from glue_peft.errors import UsageError

# From a checkpoint


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_resume_in_mid_epoch_is_bit_identical(run, adapter):
    """Killed between two checkpoints, every adapter."""
    flags = {
        "adapter_name": adapter,
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        **ADAPTERS[adapter],
    }
    whole = run("whole", **flags)
    with killed_at_step_5(), pytest.raises(Killed):
        run("killed", **flags)
    resumed = run("killed", resume=True, **flags)
    assert equal(saved_weights(whole), saved_weights(resumed))
    results = [read(folder / "eval_results.json") for folder in (whole, resumed)]
    assert results[0]["eval_loss"] == results[1]["eval_loss"]
    assert not run_folder.checkpoints(resumed)


def test_resume_takes_the_last_complete_checkpoint(run, caplog):
    """Two are truncated, in different files: both are named, the third is taken."""
    flags = {"num_train_epochs": 3, "save_total_limit": 3}
    whole = run("whole", **flags)
    assert len(run_folder.checkpoints(whole)) == 3  # a limit that was asked for outlasts the run
    (whole / "run.json").unlink()
    last, previous, _ = run_folder.checkpoints(whole)
    optimizer = last / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-100])
    weights = previous / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    reference = saved_weights(whole)
    resumed = run("whole", resume=True, **flags)
    assert sum("is truncated" in message for message in caplog.messages) == 2
    assert any("Resuming from" in message and "checkpoint-4" in message for message in caplog.messages)
    assert equal(reference, saved_weights(resumed))


def test_a_named_checkpoint_is_resumed_from(run):
    """In another folder, with the history of scores."""
    flags = {"num_train_epochs": 3, "save_total_limit": 3}
    whole = run("whole", **flags)
    named = run_folder.checkpoints(whole)[1]
    other = run("other", resume_from_checkpoint=named, **flags)
    assert equal(saved_weights(whole), saved_weights(other))
    assert read(other / "run.json")["scores"]["last"] == read(whole / "run.json")["scores"]["last"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"learning_rate": 1e-5}, "--learning_rate 1e-05 .the folder has 0.005."),
        pytest.param({"adapter_name": "vera", "rank": 8}, "--rank 8 .the folder has 4.", marks=pytest.mark.slow),
        pytest.param({"task_name": "cola"}, "--task_name cola .the folder has mrpc.", marks=pytest.mark.slow),
        pytest.param({"weight_decay": 0.1}, "--weight_decay 0.1 .the folder has", marks=pytest.mark.slow),
    ],
)
def test_a_named_checkpoint_is_of_the_same_run(run, flags, named):
    """Its optimizer would keep the old rate, and its weights another adapter's: the record would be untrue."""
    checkpoint = run_folder.checkpoints(run("whole", save_total_limit=1))[0]
    with pytest.raises(UsageError, match=f"checkpoint .*checkpoint-4: belongs to another run: .*{named}"):
        run("other", resume_from_checkpoint=checkpoint, **flags)
    longer = run("longer", resume_from_checkpoint=checkpoint, num_train_epochs=2, eval_strategy="epoch")
    assert read(longer / "trainer_state.json")["global_step"] == 8


def test_a_named_checkpoint_is_no_way_into_another_runs_folder(run):
    """Its record would go on counting as finished; in the checkpoint's own folder it goes with the training."""
    flags = {"num_train_epochs": 2, "save_total_limit": 2}
    named = run_folder.checkpoints(run("whole", **flags))[1]
    run("other", seed=2)
    with pytest.raises(UsageError, match="--output_dir .*other holds a run already"):
        run("other", resume_from_checkpoint=named, **flags)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(run_glue, "train", lambda *_: {}["stop"])
        run("whole", resume_from_checkpoint=named, **flags)
    assert not {"run.json", "eval_results.json", "all_results.json"} & {path.name for path in named.parent.iterdir()}


def test_a_run_is_not_resumed_with_another_batch_or_precision(run):
    """The launcher decides the number of processes, the machine the precision: both are no flags, but move a score."""
    with killed_at_step_5(), pytest.raises(Killed):
        run(num_train_epochs=2)
    checkpoint = run("finished").parent / "out" / "checkpoint-4"
    so_far = read(checkpoint / run_folder.PROGRESS_FILE)
    assert (so_far["processes"], so_far["precision"]) == (1, "float32")
    (checkpoint / run_folder.PROGRESS_FILE).write_text(json.dumps(so_far | {"precision": "fp16"}))
    for flags in ({"resume": True}, {"output": "other", "resume_from_checkpoint": checkpoint}):
        with pytest.raises(UsageError, match="checkpoint-4 is of a run with precision fp16, and this .* float32"):
            run(num_train_epochs=2, **flags)


def test_resume_without_a_complete_checkpoint_starts_afresh(run, caplog):
    """It says so."""
    reference = run("reference")
    broken = run("broken", save_total_limit=1)
    (broken / "run.json").unlink()
    (run_folder.checkpoints(broken)[0] / "trainer_state.json").unlink()
    resumed = run("broken", resume=True)
    assert any("is truncated" in message for message in caplog.messages)
    assert equal(saved_weights(reference), saved_weights(resumed))
    run("empty", resume=True)
    assert any("nothing to resume" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"no_fast_adapters": True}, {"fast_adapters": "stacked"}),
        pytest.param({"fast_adapters": "stacked"}, {"fast_adapters": "off"}, marks=pytest.mark.slow),
        ({"fast_adapters": "True"}, {"fast_adapters": "False"}),  # as it was written before
    ],
    ids=str,
)
def test_a_run_can_be_resumed_on_the_other_path(run, without_dropout, first, then):
    """From PEFT's layers to ours and back."""
    flags = {"adapter_name": "randlora", "model_name_or_path": without_dropout / "roberta", "num_train_epochs": 2}
    whole = run("whole", **flags)
    with killed_at_step_5(), pytest.raises(Killed):
        run("killed", **flags, **first)
    resumed = run("killed", resume=True, **flags, **then)
    losses = [read(folder / "eval_results.json")["eval_loss"] for folder in (whole, resumed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# In a folder that is in use


def test_resume_of_a_finished_run_does_nothing(run, caplog):
    """No file is touched."""
    folder = run()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    run(resume=True)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert any("finished run" in message for message in caplog.messages)


def test_checkpoints_that_a_kill_left_beside_the_record_are_deleted(run):
    """Between the record and its last work a run may be killed: the next start of it, by hand or sweep, tidies up."""
    folder = run(save_total_limit=1)
    record = read(folder / "run.json")
    command = [flag for flag in record["command"] if flag not in ("--save_total_limit", "1")]
    (folder / "run.json").write_text(json.dumps(record | {"command": command}))
    assert run_folder.checkpoints(folder)
    run(resume=True)
    assert not run_folder.checkpoints(folder) and read(folder / "run.json")["command"] == command


def test_folder_in_use_is_refused_or_overwritten(run, tiny):
    """Nothing is lost by accident, and never a user's own file."""
    folder = run(seed=1)
    (folder / "notes.md").write_text("mine")
    with pytest.raises(UsageError, match="--output_dir .*--resume.*--overwrite_output_dir"):
        run(seed=2)
    assert read(folder / "run.json")["arguments"]["seed"] == 1
    run(seed=2, overwrite_output_dir=True)
    assert read(folder / "run.json")["arguments"]["seed"] == 2
    assert (folder / "notes.md").read_text() == "mine"


def test_bad_input_loses_nothing(run):
    """An earlier run is deleted only when nothing can be refused any more."""
    folder = run()
    with pytest.raises(UsageError, match="--dataset_path"):
        run(overwrite_output_dir=True, dataset_path=folder)
    assert (folder / "run.json").exists()


def test_a_run_notes_its_command_and_holds_its_folder(run, tmp_path, monkeypatch):
    """From before it trains to its end; tokens stay out."""
    seen = []

    def note(*_: object) -> None:
        seen.append((run_folder.is_running(tmp_path / "out"), read(tmp_path / "out/command.json")))
        raise KeyError

    with monkeypatch.context() as patch, contextlib.suppress(KeyError):
        patch.setattr(run_glue, "train", note)
        run(token="hf_secret", rank=8)
    assert [held for held, _ in seen] == [True]
    assert not run_folder.is_running(tmp_path / "out")
    command = seen[0][1]["command"]
    assert command[command.index("--rank") + 1] == "8" and "hf_secret" not in command
    assert seen[0][1]["arguments"]["rank"] == 8
    with pytest.raises(UsageError, match="a run is working in it"), run_folder.lock(tmp_path / "out"):
        run(rank=8)


def test_resume_decides_as_a_sweep_does(run, caplog):
    """Other arguments are refused by name, broken results are made again."""
    folder = run()
    record = read(folder / "run.json")
    assert record["command"] == read(folder / "command.json")["command"]
    with pytest.raises(UsageError, match=r"another run: --learning_rate 0.1 \(the folder has 0.005\)"):
        run(resume=True, learning_rate=0.1)
    assert read(folder / "run.json") == record
    (folder / "eval_results.json").write_text("")
    run(resume=True)
    assert any("it is run again" in message for message in caplog.messages)
    assert read(folder / "eval_results.json")["eval_loss"] == record["metrics"]["eval_loss"]


def test_checkpoints_are_not_resumed_with_other_flags(run, tmp_path, monkeypatch):
    """Only --overwrite_output_dir gives them up."""
    folder = run(save_total_limit=1)
    (folder / "run.json").unlink()
    with pytest.raises(UsageError, match="--rank 8"):
        run(resume=True, rank=8, save_total_limit=1)
    assert run_folder.checkpoints(folder)
    run(overwrite_output_dir=True, rank=8)
    assert read(folder / "run.json")["arguments"]["rank"] == 8


# More asked of a finished run


@pytest.mark.parametrize("adapter", ["randlora", "none"])
def test_predictions_and_a_merged_model_come_from_what_was_saved(run, tmp_path, monkeypatch, adapter):
    """Without training, and equal to those of a run that was asked at once; the record tells of both."""
    flags = {"adapter_name": adapter, **ADAPTERS[adapter]}
    more = {"do_predict": True} | ({"save_merged": tmp_path / "merged"} if adapter != "none" else {})
    at_once = run("at_once", **flags, do_predict=True)
    finished = run("finished", **flags)
    weights, earlier = saved_weights(finished), read(finished / "run.json")
    with monkeypatch.context() as patch:
        patch.setattr(run_glue, "train", lambda *_: pytest.fail("it was trained again"))
        run("finished", **flags, **more, resume=True)
    predictions = "predict_results_mrpc.txt"
    assert (finished / predictions).read_text() == (at_once / predictions).read_text()
    assert equal(weights, saved_weights(finished))
    record = read(finished / "run.json")
    assert record["metrics"] == earlier["metrics"] | {"predict_samples": record["metrics"]["predict_samples"]}
    assert record["scores"] == earlier["scores"] and record["arguments"]["do_predict"] is True
    assert record["base_model"] == earlier["base_model"] and record["parameters"] == earlier["parameters"]
    assert (tmp_path / "merged" / "model.safetensors").exists() == (adapter != "none")
    run("finished", **flags, **more, resume=True)  # and now it is finished with them
    run("finished", **flags, resume=True)  # a run that did more than is asked for is finished too


def test_an_evaluation_can_be_added(run):
    """Its scores are those of a run that was evaluated at once."""
    at_once, finished = run("at_once"), run("finished", do_eval=None)
    assert not (finished / "eval_results.json").exists()
    run("finished", resume=True)
    results = [read(folder / "eval_results.json") for folder in (at_once, finished)]
    assert [result["eval_accuracy"] for result in results][0] == results[1]["eval_accuracy"]
    assert results[0]["eval_loss"] == results[1]["eval_loss"]
    assert read(finished / "run.json")["scores"]["last"]["eval_loss"] == results[1]["eval_loss"]
    assert "eval_model_preparation_time" not in results[1]


def test_a_merged_model_never_goes_where_somebody_elses_files_are(run, tmp_path):
    """Another run's included; one's own may be saved again."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model.safetensors").write_text("weights")
    with pytest.raises(UsageError, match="--save_merged .*theirs: holds files that no run with this --output_dir"):
        run(save_merged=tmp_path / "theirs")
    run("first", save_merged=tmp_path / "merged")
    with pytest.raises(UsageError, match="--save_merged"):
        run("second", save_merged=tmp_path / "merged")
    run("first", save_merged=tmp_path / "merged", overwrite_output_dir=True)


def test_a_merged_model_s_folder_that_a_kill_left_half_claimed(run, tmp_path):
    """Its temporary file is nobody's, and goes; whatever else is there is somebody's."""
    merged = tmp_path / "merged"
    merged.mkdir()
    (merged / ".merged_from.json.123.tmp").write_text("{")
    run(save_merged=merged, max_steps=1)
    assert (merged / "model.safetensors").exists() and not list(merged.glob(".*"))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / ".notes.123.tmp").write_text("{")
    with pytest.raises(UsageError, match="holds files that no run"):
        run("other", save_merged=tmp_path / "theirs")


def test_evaluations_during_the_training_cannot_be_added(run):
    """The refusal says so, and of what the run did it quotes the word."""
    run(max_steps=2)
    message = r"--eval_strategy epoch \(the folder has 'no'\); a finished run can't be evaluated at its earlier epochs"
    with pytest.raises(UsageError, match=message):
        run(max_steps=2, resume=True, eval_strategy="epoch")


# What is in a folder already


def test_a_run_that_cannot_start_leaves_the_one_that_it_was_to_replace(run):
    """A package that an optimizer needs, a scheduler without its arguments, a loss that labels don't allow."""
    folder = run()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for flags, message in (
        ({"optim": "adamw_bnb_8bit"}, "--optim adamw_bnb_8bit: "),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": '{"foo": 1}'}, "--lr_scheduler_type polynomial, "),
        ({"task_name": "stsb", "label_smoothing_factor": 0.1}, "--label_smoothing_factor 0.1: is for classes"),
        ({"optim": "sgd", "optim_args": "momentum=-1"}, "--optim_args momentum=-1: Invalid momentum value: -1"),
    ):
        with pytest.raises(UsageError, match=message):
            run(overwrite_output_dir=True, **flags)
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_new_run_that_dies_before_its_first_step_leaves_the_old_one(run, monkeypatch):
    """And one that dies after it doesn't."""
    folder = run()
    before = (folder / "run.json").read_bytes()

    def die(*_, **__):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(run_glue.GlueTrainer, "training_step", die)
        with pytest.raises(ZeroDivisionError):
            run(overwrite_output_dir=True, seed=2)
    assert (folder / "run.json").read_bytes() == before and run_folder.read_failure(folder) is None
    with killed_at_step_5(), pytest.raises(Killed):
        run(overwrite_output_dir=True, seed=2, num_train_epochs=2)
    assert not (folder / "run.json").exists() and not (folder / run_folder.REPLACED).exists()


def test_somebody_elses_model_is_neither_resumed_nor_overwritten(run, tmp_path):
    """Whatever flag is given, and the refusal advises neither."""
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text(name)
    for flags in ({}, {"resume": True}, {"overwrite_output_dir": True}):
        with pytest.raises(UsageError, match="no record that says a run made it: give another folder"):
            run(**flags)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_a_merged_model_that_cannot_be_written_costs_nothing(run, tmp_path):
    """It is tried before the old run is set aside; a path that tokenizers can't be saved to is refused by flag."""
    folder = run()
    before = (folder / "run.json").read_bytes()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--save_merged .*: can't be written: "):
        run(overwrite_output_dir=True, save_merged="/proc/nowhere/merged")
    for flag in ("output_dir", "save_merged"):
        with pytest.raises(UsageError, match=f"--{flag} .*: the path is not UTF-8"):
            run(overwrite_output_dir=True, **{flag: os.fsdecode(bytes(tmp_path) + b"/\xff")})
    assert (folder / "run.json").read_bytes() == before
