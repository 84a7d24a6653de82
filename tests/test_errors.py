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
