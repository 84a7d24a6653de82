"""errors.py: each end of a script has its exit status and its last line."""

import pytest

from glue_peft.errors import DivergedError, StoppedBySignal, UsageError, run_script


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
