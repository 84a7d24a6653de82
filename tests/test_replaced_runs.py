"""A run that another one replaces is kept until that one has taken its first step, whatever happens."""

import pytest

from glue_peft import run_folder
from glue_peft.run_folder import is_ours, lock, set_aside, write_json
from glue_peft.run_state import state


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
