"""run_folder.py: whole files, locks, what counts as a run, and checkpoints that can be resumed from."""

import contextlib
import dataclasses
import fcntl
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import read
from safetensors.torch import save_file

import run_glue
from glue_peft import arguments, run_folder
from glue_peft.errors import UsageError

REPOSITORY = Path(run_folder.__file__).parent


def make_checkpoint(folder: Path, step: int) -> Path:
    """A checkpoint with the files that Trainer writes."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    save_file({"weight": torch.zeros(100)}, checkpoint / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.zeros(100)}, checkpoint / name)
    (checkpoint / "trainer_state.json").write_text("{}")
    return checkpoint


def test_files_are_written_whole_or_not_at_all(tmp_path):
    """Neither content that JSON has no form for nor an error in between harms what was there."""
    path = tmp_path / "results.json"
    run_folder.write_json(path, {"score": 0.5})
    with pytest.raises(TypeError):
        run_folder.write_json(path, {"score": object()})
    assert run_folder.read_json(path) == {"score": 0.5}
    with pytest.raises(RuntimeError), run_folder.atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert run_folder.read_json(path) == {"score": 0.5}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "3", "\udcff"])
def test_what_is_no_json_object_reads_as_none(tmp_path, content):
    """Missing, empty, broken, another type, not UTF-8."""
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
    assert run_folder.read_json(path) is None


def test_a_checkpoint_that_is_half_deleted_does_not_look_whole(tmp_path, monkeypatch):
    """A kill while it is deleted leaves none to resume from."""
    checkpoint = make_checkpoint(tmp_path, 1)
    assert run_folder.is_complete(checkpoint)
    monkeypatch.setattr(run_folder.shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_folder.delete_checkpoints(tmp_path)
    assert not run_folder.is_complete(checkpoint)


def test_the_latest_checkpoint_is_by_number_not_by_name(tmp_path):
    """100 comes after 9; a folder without a number is not one."""
    for step in (9, 10, 100):
        make_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    assert [path.name for path in run_folder.checkpoints(tmp_path)] == [
        "checkpoint-100",
        "checkpoint-10",
        "checkpoint-9",
    ]
    assert run_folder.last_complete_checkpoint(tmp_path) == (tmp_path / "checkpoint-100", [])


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
@pytest.mark.parametrize("kept", [0, 1], ids=["empty", "one byte short"])
def test_a_truncated_checkpoint_is_passed_over(tmp_path, name, kept):
    """Whichever of its files it is, the one before is taken."""
    previous, last = make_checkpoint(tmp_path, 1), make_checkpoint(tmp_path, 2)
    assert run_folder.is_complete(last)
    content = (last / name).read_bytes()
    (last / name).write_bytes(content[: kept * (len(content) - 1)])
    assert run_folder.last_complete_checkpoint(tmp_path) == (previous, [last])


def test_a_changed_byte_in_a_file_with_checksums_shows(tmp_path):
    """torch's zip files have them."""
    optimizer = make_checkpoint(tmp_path, 1) / "optimizer.pt"
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 255
    optimizer.write_bytes(content)
    assert not run_folder.is_complete(tmp_path / "checkpoint-1")


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
def test_a_checkpoint_without_a_file_is_not_whole(tmp_path, name):
    """Each of the files that resuming to the bit needs."""
    checkpoint = make_checkpoint(tmp_path, 1)
    (checkpoint / name).unlink()
    assert not run_folder.is_complete(checkpoint)
    assert run_folder.last_complete_checkpoint(tmp_path) == (None, [checkpoint])


def test_a_checkpoint_of_several_processes_needs_the_random_state_of_each(tmp_path):
    """Each process writes its own, and one may be killed before it has."""
    checkpoint = make_checkpoint(tmp_path, 1)
    run_folder.write_json(checkpoint / run_folder.PROGRESS_FILE, {"processes": 2})
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    assert not run_folder.is_complete(checkpoint)
    shutil.copy(checkpoint / "rng_state_0.pth", checkpoint / "rng_state_1.pth")
    assert run_folder.is_complete(checkpoint)


def test_clear_deletes_a_run_and_nothing_else(tmp_path):
    """A user's own file stays."""
    make_checkpoint(tmp_path, 3)
    for name in (*run_folder.RUN_FILES, "predict_results_mnli-mm.txt", ".run.json.1.tmp", "notes.md"):
        (tmp_path / name).write_text("{}")
    assert set(run_folder.files_of_a_run(tmp_path)) == {*run_folder.RUN_FILES, "checkpoint-3"}
    run_folder.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]
    assert run_folder.files_of_a_run(tmp_path) == []


def test_environment_names_versions_and_commit(tmp_path):
    """None for a folder that is no repository."""
    environment = run_folder.describe_environment(tmp_path)
    assert environment["git_commit"] is None
    assert environment["versions"]["torch"] == torch.__version__
    json.dumps(environment)


def test_it_needs_no_torch():
    """A sweep asks it in milliseconds."""
    code = "import sys, run_folder; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


# Ownership


def hold(folder: Path) -> subprocess.Popen:
    """Another process that holds a run's folder until it is killed."""
    code = (
        "import sys, time, pathlib, run_folder\n"
        "with run_folder.lock(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_has_one_owner_and_the_lock_dies_with_it(tmp_path):
    """The refusal names the owner; a kill leaves the file, and no lock."""
    process = hold(tmp_path / "run")
    try:
        assert run_folder.is_running(tmp_path / "run")
        with pytest.raises(UsageError, match=f"run: .*process {process.pid} on "):
            with run_folder.lock(tmp_path / "run"):
                pass
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "run/run.lock").exists()  # left behind by the kill, and in nobody's way
    assert not run_folder.is_running(tmp_path / "run")
    with run_folder.lock(tmp_path / "run"):
        assert run_folder.is_running(tmp_path / "run")
    assert not (tmp_path / "run/run.lock").exists()


def test_a_lock_whose_file_was_deleted_meanwhile_is_taken_on_the_new_file(tmp_path, monkeypatch):
    """Else two runs would hold two files of one name."""
    path, flock = tmp_path / "run.lock", fcntl.flock

    def flock_after_the_holder_left(*arguments: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", flock_after_the_holder_left)
    with run_folder.lock(tmp_path):
        assert run_folder.is_running(tmp_path)


def test_asking_does_not_refuse_a_run_that_starts(tmp_path):
    """Whoever asks holds a shared lock for an instant, which a start waits out."""
    with open(tmp_path / "run.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        timer = threading.Timer(0.1, lambda: fcntl.flock(file, fcntl.LOCK_UN))
        timer.start()
        with run_folder.lock(tmp_path):
            assert run_folder.is_running(tmp_path)
        timer.join()


def test_what_can_t_be_a_folder_is_one_line(tmp_path):
    """A file, and a path below one."""
    (tmp_path / "file").write_text("")
    for folder, message in (("file", "is a file, not a folder"), ("file/below", "can't be written: Not a directory")):
        with pytest.raises(UsageError, match=f"--output_dir .*{message}"):
            with run_folder.lock(tmp_path / folder):
                pass


def test_a_refused_run_leaves_no_folder_and_a_killed_one_s_temporary_files_go(tmp_path):
    """What is found later is what a run meant to leave."""
    with contextlib.suppress(KeyError), run_folder.lock(tmp_path / "new"):
        raise KeyError
    assert not (tmp_path / "new").exists()
    (tmp_path / ".run.json.1.tmp").touch()
    with run_folder.lock(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]


# Comparison

FLAGS = ["--task_name", "cola", "--do_eval", "--learning_rate", "1e-4", "--fp16", "--rank", "4", "--resume"]


def finish(folder: Path, flags: list[str], **arguments: object) -> Path:
    """What a finished run leaves, as far as a sweep looks at it."""
    folder.mkdir(parents=True)
    for name in ("command.json", "run.json"):
        run_folder.write_json(folder / name, {"command": flags, "arguments": arguments})
    run_folder.write_json(folder / "eval_results.json", {"eval_matthews_correlation": 0.5})
    return folder


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (FLAGS, []),
        (["--rank=4", "--fp16", "True", "--learning-rate", "0.0001", "--do_eval", "--task_name=cola"], []),
        ([*FLAGS, "--rank", "8"], ["--rank 8 (the folder has 4)"]),
        ([*FLAGS, "--dataloader_num_workers", "2", "--disable_tqdm", "True", "--no_fast_adapters"], []),
        ([*FLAGS, "--no_unpad"], ["--unpad False (the folder has True)"]),  # other dropout masks
        ([*FLAGS, "--num_train_epochs", "10"], []),
        ([*FLAGS, "--num_train_epochs", "3"], ["--num_train_epochs 3 (the folder has 10.0)"]),
        ([*FLAGS, "--target_modules", "query", "value"], []),
        ([*FLAGS, "--target_modules", "query"], ["--target_modules query (the folder has query value)"]),
        ([*FLAGS, "--pad_to_max_length"], ["--pad_to_max_length True (the folder has False)"]),
        ([*FLAGS, "--no_trained"], []),
        ([*FLAGS, "--unheard_of", "1"], ["--unheard_of 1 (the folder has none)"]),
        ([flag for flag in FLAGS if flag != "--fp16"], ["no --fp16 (the folder has True)"]),
    ],
)
def test_differences_are_named_flag_by_flag(flags, expected):
    """However a flag is spelled; a default that is written out is no difference, nor a flag that moves no score."""
    arguments = {
        "num_train_epochs": 10.0,
        "target_modules": ["query", "value"],
        "pad_to_max_length": False,
        "trained": False,
        "unpad": True,
        "fp16": False,  # as resolved on a machine without a GPU: not what was asked for
    }
    assert run_folder.differences({"command": FLAGS, "arguments": arguments}, flags) == expected


def test_a_record_without_its_command_is_compared_by_its_arguments():
    """As records from before there was a command in them."""
    record = {"arguments": {"rank": 4, "learning_rate": 1e-4, "seed": 1}}
    assert run_folder.differences(record, ["--rank", "4", "--learning_rate", "1e-4"]) == []
    assert run_folder.differences(record, ["--rank", "4", "--seed", "2"]) == ["--seed 2 (the folder has 1)"]


def test_neutral_flags_exist():
    """A flag that transformers renames would become a difference."""
    known = {
        item.name
        for kind in (
            arguments.ModelArguments,
            arguments.DataTrainingArguments,
            arguments.AdapterArguments,
            arguments.GlueTrainingArguments,
        )
        for item in dataclasses.fields(kind)
    }
    assert run_folder.NEUTRAL_FLAGS <= known


def test_access_tokens_stay_out_of_a_command():
    """However they are written."""
    assert run_folder.without_secrets(["--token", "hf_x", "--rank", "4", "--hub-token=hf_y", "--fp16"]) == [
        "--rank",
        "4",
        "--fp16",
    ]


def test_a_run_is_finished_only_with_its_results_and_its_arguments(tmp_path):
    """Another seed is another run; an empty folder is open."""
    folder = finish(tmp_path / "run", FLAGS)
    assert run_folder.state(folder, FLAGS) == ("finished", "")
    assert run_folder.state(folder, [*FLAGS, "--seed", "2"]) == ("other", "--seed 2 (the folder has none)")
    assert run_folder.state(tmp_path / "none", FLAGS) == ("open", "")


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
    folder = finish(tmp_path / "run", FLAGS)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    assert run_folder.state(folder, FLAGS) == expected
    assert run_folder.state(folder, [*FLAGS, "--rank", "8"])[0] == "other"  # broken or not, it isn't this run's


def test_a_record_that_names_no_arguments_is_left_alone(tmp_path):
    """It may be anybody's."""
    (tmp_path / "run.json").write_text("{}")
    assert run_folder.state(tmp_path, FLAGS)[0] == "other"


def test_a_path_may_be_spelled_in_two_ways(tmp_path, monkeypatch):
    """Relative or absolute, or through a link; another file is a difference."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glue").mkdir()
    (tmp_path / "link").symlink_to("glue")
    for spelled in ("glue", "./glue/", str(tmp_path / "glue"), "link"):
        assert run_folder.differences({"command": ["--dataset_path", "glue"]}, ["--dataset_path", spelled]) == []
    assert run_folder.differences({"command": ["--dataset_path", "glue"]}, ["--dataset_path", "other"]) == [
        "--dataset_path other (the folder has glue)"
    ]


def test_an_adapter_config_is_compared_by_its_content(tmp_path):
    """A copy is the same; the same file with another value is not."""
    for name, rank in (("a.json", 4), ("b.json", 4), ("c.json", 8)):
        run_folder.write_json(tmp_path / name, {"peft_type": "LORA", "r": rank})
    record = {"command": ["--adapter_config", str(tmp_path / "a.json")]}
    record["adapter_config_file"] = run_folder.read_json(tmp_path / "a.json")
    for name, differs in (("a.json", False), ("b.json", False), ("c.json", True)):
        found = run_folder.differences(record, ["--adapter_config", str(tmp_path / name)])
        assert bool(found) is differs
    run_folder.write_json(tmp_path / "a.json", {"peft_type": "LORA", "r": 16})
    (found,) = run_folder.differences(record, record["command"])
    assert found.startswith("--adapter_config ") and "the folder has another content of" in found


def test_checkpoints_of_other_arguments_are_not_resumed(tmp_path):
    """command.json says whose they are."""
    make_checkpoint(tmp_path, 1)
    assert run_folder.state(tmp_path, FLAGS) == ("open", "")  # from before there was a command.json
    run_folder.write_json(tmp_path / "command.json", {"command": FLAGS, "arguments": {}})
    assert run_folder.state(tmp_path, FLAGS) == ("open", "")
    assert run_folder.state(tmp_path, [*FLAGS, "--rank", "8"]) == ("other", "--rank 8 (the folder has 4)")


def test_only_a_log_or_a_failure_protects_nothing(tmp_path):
    """Such a folder is free for any run; the log stays."""
    for name in ("run.log", "run.lock", "failure.txt"):
        (tmp_path / name).write_text("x")
    run_folder.write_json(tmp_path / "command.json", {"command": ["--rank", "8"]})
    assert run_folder.files_of_a_run(tmp_path) == []
    assert run_folder.state(tmp_path, FLAGS) == ("open", "")
    run_folder.clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.lock", "run.log"]


# Failures


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("== start\nsteps\nrun_glue.py: error: --rank 0\nbye\n", "run_glue.py: error: --rank 0"),
        ("== start\nValueError: old\n== ended with exit status 1\n== start\n10%\r20%\n", "20%"),
        ("== start\nTypeError: x\nlast words\n== ended with exit status 1\n", "TypeError: x"),
        ("== start\nTypeError: x\nrun_glue.py: error: y: a run is working in it (process 1 on z)\n", "TypeError: x"),
        ("== start\n== ended with exit status 137\n", "no word was left"),
        ("", "no word was left"),
        (None, "no word was left"),
    ],
)
def test_the_last_words_of_a_failed_run(tmp_path, log, expected):
    """An error of the last start before other lines, not that another run holds the folder; failure.txt before all."""
    if log is not None:
        (tmp_path / "run.log").write_text("error: long ago\n" * 10_000 + log if log else log)
    assert run_folder.last_words(tmp_path) == expected
    assert run_folder.failure(tmp_path) is None
    (tmp_path / "failure.txt").write_text("disk full: x\n")
    assert run_folder.last_words(tmp_path) == run_folder.failure(tmp_path) == "disk full: x"


# In run_glue.py


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
    (tmp_path / "flags.json").write_text(json.dumps({"seed": 3, "target_modules": ["query", "value"], "token": "x"}))
    assert run_glue.command_of([str(tmp_path / "flags.json")]) == ["--seed", "3", "--target_modules", "query", "value"]


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
