"""One family of errors, and the one way from an error to a script's last line and exit status."""

import argparse
import errno
import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

# Errors of the system that mean a path that the user gave, and not a broken machine.
USERS_ERRNOS = {
    getattr(errno, name)
    for name in "EACCES EPERM EROFS ENOENT ENOTDIR EISDIR EEXIST ENAMETOOLONG ELOOP EINVAL ENXIO ENOTEMPTY".split()
}


class UsageError(ValueError):
    """A user's mistake: one line that names the flag or file and the allowed values; exit status 2."""


class RunFailedError(RuntimeError):
    """A run that can't be finished: one line that says what to do, exit status 1, no results.

    `kind` is one of run_folder.FAILURE_KINDS: what a sweep, the status and the tables decide by.
    """

    def __init__(self, kind: str, message: str) -> None:
        """Keep both apart; the error's text is `kind: message`."""
        super().__init__(f"{kind}: {message}")
        self.kind, self.message = kind, message


class DivergedError(RunFailedError):
    """A loss or an output that is NaN or infinite."""

    def __init__(self, what: str) -> None:
        """Say what is not a number, and what helps."""
        super().__init__("diverged", f"{what}; try a lower --learning_rate")


class StoppedBySignal(KeyboardInterrupt):
    """The run was asked to stop, and can be resumed: exit status 75 (EX_TEMPFAIL of sysexits.h).

    A KeyboardInterrupt, so that libraries clean up after themselves and don't take it for an error of theirs.
    """


class OneLineParser(argparse.ArgumentParser):
    """ArgumentParser whose errors are one line, without the usage of every flag."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(message)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, with the next one where it only announces that; or its name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def run_script(main: Callable[[], int], script: str) -> int:
    """Call a script's main and return the exit status; what a user can mend ends with one line, no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a C locale can't encode ±; names of files leave as they came
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        status = main()
        sys.stdout.flush()
        return status
    except OSError as error:
        status = 2 if error.errno in USERS_ERRNOS else 1
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # python flushes once more when it ends
        line = f"error: {error.filename or type(error).__name__}: {error.strerror or first_line(error)}"
    except ImportError as error:  # a package that a flag needs, unless it is a module of our own
        if (error.name or "").startswith("glue_peft"):
            traceback.print_exc()
        status, line = 2, f"error: {first_line(error)}"
    except UsageError as error:
        status, line = 2, f"error: {error}"
    except RunFailedError as error:
        status, line = 1, f"error: {error}"
    except StoppedBySignal as error:
        status, line = 75, str(error)
    except KeyboardInterrupt:
        status, line = 130, "interrupted" + ": start it again with --resume" * (script == "run_glue.py")
    except Exception as error:
        traceback.print_exc()
        status, line = 1, f"error: {type(error).__name__}"
    print(f"{script}: {line}", file=sys.stderr)
    return status
