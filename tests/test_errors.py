"""errors.py: each end of a script has its exit status and its last line."""

import os

import pytest
import torch

from glue_peft.errors import (
    DivergedError,
    StoppedBySignal,
    UsageError,
    as_usage_error,
    fault_of_path,
    first_line,
    run_script,
)


@pytest.mark.parametrize(
    ("outcome", "status", "line"),
    [
        (None, 0, ""),
        (UsageError("--rank 0: must be at least 1"), 2, "run_glue.py: error: --rank 0: must be at least 1\n"),
        (DivergedError("the loss is nan"), 1, "run_glue.py: error: diverged: the loss is nan; try a lower "),
        (StoppedBySignal("stopped by SIGTERM"), 75, "run_glue.py: stopped by SIGTERM\n"),
        (KeyboardInterrupt(), 130, "run_glue.py: interrupted: start it again with --resume\n"),
    ],
)
def test_every_end_has_its_exit_status_and_line(capsys, outcome, status, line):
    """Without a traceback."""

    def main() -> int:
        if outcome is not None:
            raise outcome
        return 0

    assert run_script(main, "run_glue.py") == status
    errors = capsys.readouterr().err
    assert errors.startswith(line) and errors.count("\n") == bool(line)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (PermissionError(13, "Permission denied", "x/y"), 2, "script.py: error: x/y: Permission denied"),
        (OSError(36, "File name too long", "x"), 2, "script.py: error: x: File name too long"),
        (OSError(5, "Input/output error", "x"), 1, "script.py: error: x: Input/output error"),
        (OSError("odd\nmore"), 1, "script.py: error: OSError: odd"),
    ],
)
def test_an_error_of_the_system_is_one_line(capsys, error, status, line):
    """Exit status 2 where it is about a path that was given, 1 where the machine is broken."""

    def fail() -> int:
        raise error

    assert run_script(fail, "script.py") == status
    assert capsys.readouterr().err.splitlines() == [line]


@pytest.mark.parametrize("error", [KeyError("x"), OSError(2, "No such file"), RuntimeError("mismatch")])
def test_what_a_library_raises_is_a_mistake_of_the_users(error):
    """With the hint that its words ask for."""
    with pytest.raises(UsageError, match="^--flag x: ") as caught, as_usage_error("--flag x", {"mismatch": "; HINT"}):
        raise error
    assert str(caught.value).endswith("; HINT") == (error.args == ("mismatch",))


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("can't allocate memory"), OSError(28, "No space")],
)
def test_what_the_machine_lacks_is_none(error):
    """Memory or disk space: such a run may be started again as it is."""
    with pytest.raises(type(error)) as caught, as_usage_error("--flag x"):
        raise error
    assert caught.value is error


def test_why_a_path_is_no_file_or_folder(tmp_path):
    """Each kind by its name."""
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert fault_of_path(tmp_path, "folder") is None and fault_of_path(tmp_path / "file", "file") is None
    for name, wanted, fault in (
        ("", "file", "is a folder, not a file"),
        ("file", "folder", "is a file, not a folder"),
        ("pipe", "file", "is a pipe, socket or device, not a file"),
        ("none", "file", "no such file"),
        ("file/below", "folder", "no such folder"),
        ("a" * 300, "file", "can't be read: File name too long"),
        ("loop", "file", "can't be read: Too many levels of symbolic links"),
        ("\0", "file", "can't be read: "),
    ):
        assert str(fault_of_path(tmp_path / name, wanted)).startswith(fault), name


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\nb"), "a"),
        (ValueError("because:\nb"), "because: b"),
        (KeyError("classifier.bias"), "'classifier.bias' is missing"),
        (KeyError("x not found in ['y']"), "\"x not found in ['y']\""),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_the_first_line_of_an_error_says_something(error, line):
    """A KeyError is only the name of what isn't there."""
    assert first_line(error) == line
