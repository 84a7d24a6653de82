"""run_folder.py: atomic writes, locks, checkpoints that can be resumed from, and why a run failed."""

import contextlib
import fcntl
import shutil
import subprocess
import sys
import threading

import pytest
from helpers import REPOSITORY, held, make_checkpoint

from glue_peft import run_folder
from glue_peft.errors import UsageError
from glue_peft.run_folder import Failure, is_ours, lock, set_aside, write_json
from glue_peft.run_state import state


def test_files_are_written_completely_or_not_at_all(tmp_path):
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


def test_a_checkpoint_that_is_half_deleted_does_not_look_complete(tmp_path, monkeypatch):
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
def test_a_checkpoint_without_a_file_is_not_complete(tmp_path, name):
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
    run_folder.delete_temporary_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]
    assert run_folder.files_of_a_run(tmp_path) == []


def test_it_needs_no_torch():
    """A sweep asks it in milliseconds."""
    code = "import sys, glue_peft.run_folder; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


# Ownership


def test_a_folder_has_one_owner_and_the_lock_dies_with_it(tmp_path):
    """The refusal names the owner; a kill leaves the file, and no lock."""
    with held(tmp_path / "run") as holder:
        assert run_folder.is_running(tmp_path / "run")
        assert run_folder.holder_of(tmp_path / "run").startswith(f"process {holder} on ")
        with pytest.raises(UsageError, match=f"run: .*process {holder} on "):
            with run_folder.lock(tmp_path / "run"):
                pass
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


# Failures


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("== start\nsteps\nrun_glue.py: error: --rank 0\nbye\n", "run_glue.py: error: --rank 0"),
        ("== start\nValueError: old\n== ended with exit status 1\n== start\n10%\r20%\n", "20%"),
        ("== start\nTypeError: x\nlast words\n== ended with exit status 1\n", "TypeError: x"),
        ("== start\nTypeError: x\nrun_glue.py: error: y: a run is working in it (process 1 on z)\n", "TypeError: x"),
        ("== start\n== ended with exit status 137\n", "it left no message"),
        ("", "it left no message"),
        (None, "it left no message"),
    ],
)
def test_the_last_words_of_a_failed_run(tmp_path, log, expected):
    """The last start's error, else its last line; not that another run holds the folder; failure.json above all."""
    if log is not None:
        (tmp_path / "run.log").write_text("error: long ago\n" * 10_000 + log if log else log)
    assert run_folder.last_words(tmp_path) == expected
    run_folder.write_failure(tmp_path, Failure("disk full", "x"))
    assert run_folder.last_words(tmp_path) == "disk full: x"


@pytest.mark.parametrize("kind", run_folder.FAILURE_KINDS)
def test_a_failure_reads_as_it_was_written(tmp_path, kind):
    """With its kind; in one line, which a plain error's message is by itself."""
    run_folder.write_failure(tmp_path, Failure(kind, "KeyError: x: y"))
    assert run_folder.read_failure(tmp_path) == Failure(kind, "KeyError: x: y")
    assert str(run_folder.read_failure(tmp_path)) == ("" if kind == "error" else f"{kind}: ") + "KeyError: x: y"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "diverged: the training loss is nan; try a lower --learning_rate",
            Failure("diverged", "the training loss"),
        ),
        ("out of memory: the same global batch", Failure("out of memory", "the same global batch")),
        ("KeyError: x", Failure("error", "KeyError: x")),
    ],
)
def test_a_failure_of_an_older_version_reads_too(tmp_path, line, expected):
    """failure.txt, one line, whose kind is before its first colon."""
    (tmp_path / "failure.txt").write_text(f"{line}\nmore\n")
    found = run_folder.read_failure(tmp_path)
    assert found.kind == expected.kind and found.message.startswith(expected.message) and "more" not in found.message


@pytest.mark.parametrize("content", [None, "", "{", '{"kind": 3}', '{"kind": "diverged"}'])
def test_a_broken_failure_is_none(tmp_path, content):
    """Nothing is told of it, and nothing breaks."""
    if content is not None:
        (tmp_path / "failure.json").write_text(content)
    assert run_folder.read_failure(tmp_path) is None


def test_an_unknown_kind_is_an_error(tmp_path):
    """As a later version might write one."""
    (tmp_path / "failure.json").write_text('{"kind": "melted", "message": "two\\nlines"}')
    assert run_folder.read_failure(tmp_path) == Failure("error", "two lines")


# A run that another one replaces is kept until that one has taken its first step


def content(folder):
    """Return every file below a folder with its bytes, the lock aside."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != run_folder.LOCK_FILE]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def finished(tmp_path):
    """Make the folder of a finished run, with a file of the user's own in it."""
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("run.json", "command.json", "eval_results.json"):
        write_json(folder / name, {"command": ["--seed", "1"], "arguments": {}})
    for name in ("adapter_model.safetensors", "predict_results_mrpc.txt", "my notes.txt", ".mine.7.tmp", "run.log"):
        (folder / name).write_text(name)
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "trainer_state.json").write_text("{}")
    return folder


def test_a_run_that_fails_before_its_first_step_leaves_the_old_one(finished):
    """As it was."""
    before = content(finished)
    with pytest.raises(ZeroDivisionError), lock(finished):
        set_aside(finished)
        assert not run_folder.files_of_a_run(finished)
        write_json(finished / "command.json", {"command": ["--seed", "2"]})
        raise ZeroDivisionError
    assert content(finished) == before


def test_after_the_first_step_the_old_one_is_gone_and_the_users_file_stays(finished):
    """Nothing of the new one is touched."""
    with lock(finished):
        set_aside(finished)
        write_json(finished / "command.json", {"command": ["--seed", "2"]})
        run_folder.discard_replaced(finished)
    assert sorted(content(finished)) == [".mine.7.tmp", "command.json", "my notes.txt", "run.log"]


@pytest.mark.parametrize("moment", range(40))
def test_a_kill_at_any_moment_loses_neither(finished, monkeypatch, moment):
    """Moving aside, writing, and bringing back are cut short after so many operations; the next start mends it."""
    before, left = content(finished), moment

    class Killed(BaseException):
        """As SIGKILL: nothing after it runs."""

    def counting(function):
        """Let a function of the file system end the process when its turn has come."""

        def called(*args, **kwargs):
            """Count, and call."""
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return function(*args, **kwargs)

        return called

    with monkeypatch.context() as patch:
        for name in ("rename", "mkdir", "rmdir", "unlink"):
            patch.setattr(run_folder.Path, name, counting(getattr(run_folder.Path, name)))
        patch.setattr(run_folder.shutil, "rmtree", counting(run_folder.shutil.rmtree))
        try:
            set_aside(finished)
            (finished / "command.json").write_text("the new run")
            run_folder.bring_back(finished)
        except Killed:
            pass
    with lock(finished):
        pass
    assert content(finished) == before


def test_what_no_record_names_is_not_ours(tmp_path):
    """Somebody's model: refused with --resume too, and never deleted."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("weights")
    assert not is_ours(tmp_path)
    assert state(tmp_path, ["--seed", "1"]) == ("other", "no record in it says that a run made its config.json")
    write_json(tmp_path / "command.json", {"command": ["--seed", "1"]})
    assert is_ours(tmp_path) and state(tmp_path, ["--seed", "1"])[0] == "open"
