"""What a sweep checks before it starts anything: every command that differs in more than its seed.

It is a program of its own, `python -m glue_peft.preflight`, as reading the flags of run_glue.py takes torch, which the
sweep does without, and the runs' own interpreter. Commands come on stdin, a JSON list of flags a line; the first
mistake is the one line on stdout, with exit status 2.
"""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from glue_peft.errors import UsageError, first_line
from glue_peft.flags import without
from glue_peft.grid import Run, python_of

PATIENCE = 0.1  # seconds between two looks at whether the sweep was stopped


def check_commands(
    runs: list[Run], bases: Mapping[str, str], settings: Mapping[str, str], is_stopped: Callable[[], bool]
) -> None:
    """Let the runs' interpreter check their commands; raises UsageError for the first mistake.

    `bases` has the runs that start from an adapter that the grid itself makes (sweep.bases_of). Once `is_stopped()`
    the check is given up.
    """
    if not runs:
        return
    python = python_of(settings)
    command = [python, "-P", "-m", "glue_peft.preflight"]
    lines: str | None = "".join(f"{json.dumps(flags)}\n" for flags in distinct_commands(runs, bases))
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
    ) as process:
        while True:
            try:
                out, err = process.communicate(lines, timeout=PATIENCE)
                break
            except subprocess.TimeoutExpired:
                lines = None  # they are on their way
                if is_stopped():
                    process.kill()
    if process.returncode and not is_stopped():
        said = (out if process.returncode == 2 else err).strip().splitlines() or [f"exit status {process.returncode}"]
        raise UsageError(said[-1] if process.returncode == 2 else f"{python} can't check the flags: {said[-1]}")


def distinct_commands(runs: list[Run], bases: Mapping[str, str]) -> list[list[str]]:
    """Return the flags of the runs that differ in more than seed and folder, each with its highest seed.

    An adapter to start from that the grid will make is left out, as it needn't be there yet.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for run in sorted(runs, key=lambda run: int(run.seed)):
        flags = list(without(run.flags, "init_adapter_from")) if run.folder in bases else run.flags
        found[tuple(without(flags, "seed", "output_dir"))] = flags
    return list(found.values())


def check(flags: list[str]) -> None:
    """Parse a command and read its adapter's file, as the run itself will; raises UsageError."""
    from glue_peft.adapters import read_config_file
    from glue_peft.arguments import parse_arguments

    _, _, adapter_args, _ = parse_arguments(flags)
    if adapter_args.adapter_config is not None:
        read_config_file(Path(adapter_args.adapter_config))


def main() -> int:
    """Check the commands on stdin; print the first mistake, and return 2 if there is one."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # bytes of a path that are no UTF-8 leave as they came
        sys.stdout.reconfigure(errors="surrogateescape")
    commands = [json.loads(line) for line in sys.stdin]
    try:
        for flags in commands:
            check(flags)
    except UsageError as error:
        print(" ".join(str(error).split()))
        return 2
    except ImportError as error:
        print(
            f"{first_line(error)}: {sys.executable} lacks a package, or it can't be loaded; set PYTHON or install it"
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
