"""One family of errors, and the one way from an error to a script's last line and exit status."""

import argparse
import contextlib
import errno
import io
import os
import stat
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

# Errors of the system that mean a path that the user gave, and not a broken machine.
USERS_ERRNOS = {
    getattr(errno, name)
    for name in "EACCES EPERM EROFS ENOENT ENOTDIR EISDIR EEXIST ENAMETOOLONG ELOOP EINVAL ENXIO ENOTEMPTY".split()
}

# What a full disk and a lack of memory say, hidden in a RuntimeError or an Exception of a library's own.
FULL_DISK = (
    "No space left on device",
    "File too large",
    "Disk quota exceeded",
    "inline_container.cc",  # torch.save, which doesn't say why
)
NO_MEMORY = ("can't allocate memory", "CUDA out of memory")


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
    if isinstance(error, KeyError) and len(str(error).split()) == 1:
        return f"{error} is missing"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def is_disk_full(error: BaseException) -> bool:
    """Say whether an error means that the disk is full."""
    numbers = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    return getattr(error, "errno", None) in numbers or any(sign in str(error) for sign in FULL_DISK)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means a lack of memory; torch's own, whose module is not imported here, goes by name."""
    kinds = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return kinds or any(sign in str(error) for sign in NO_MEMORY)


@contextlib.contextmanager
def as_usage_error(where: str, hints: Mapping[str, str] | None = None) -> Iterator[None]:
    """Turn whatever a library raises about what the user gave into one line that begins with `where`.

    `hints` maps words of the library's message to what is added to the line. What the machine lacks, memory or disk
    space, is no mistake of the user's and stays what it is.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if is_out_of_memory(error) or is_disk_full(error):
            raise
        hint = "".join(text for word, text in (hints or {}).items() if word in str(error))
        raise UsageError(f"{where}: {first_line(error)}{hint}") from error


def fault_of_path(path: str | os.PathLike[str], wanted: str) -> str | None:
    """Say why a path is no `file`, or no `folder`; None where it is one."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return f"no such {wanted}"
    except (OSError, ValueError) as error:  # ValueError: a null byte in it
        return f"can't be read: {getattr(error, 'strerror', None) or first_line(error)}"
    is_what = "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "pipe, socket or device"
    return None if is_what == wanted else f"is a {is_what}, not a {wanted}"


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
        if error.filename is None:  # it may be stdout, which python flushes once more when it ends
            with contextlib.suppress(OSError, ValueError):  # stdout has no descriptor
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError) and script != "run_glue.py":
            return 0  # a reader like `head` has seen what it wanted; of a run the results are lost
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
