"""A run's output folder: its files' names, its lock, atomic writes, its checkpoints, and why it failed.

Needs no torch, so that a sweep or a table can ask about runs in milliseconds.
"""

import contextlib
import fcntl
import json
import logging
import os
import platform
import re
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glue_peft.errors import UsageError

RECORD_FILE = "run.json"  # written last of all, so it marks a finished run
BASES_FILE = "random_bases.json"  # the hash of VeRA's and RandLoRA's random bases, beside every saved adapter
FIXED_FILE = "fixed_tensors.json"  # the same for other methods: of all that is neither trained nor saved
TRAINED_FILE = "trained_state.safetensors"  # in a checkpoint: what PEFT's own file lacks to go on from
STATE_FILE = "trainer_state.json"  # Trainer's; written last into a checkpoint, so it marks a complete one
PROGRESS_FILE = "training_so_far.json"  # in a checkpoint: what Trainer would forget, see GlueTrainer._save_checkpoint
FAILURE_FILE = "failure.json"  # why the last start ended without results
OLD_FAILURE_FILE = "failure.txt"  # the same in one line, as it was written before there were kinds of failures
COMMAND_FILE = "command.json"  # the flags of the run that was started here
MERGED_FILE = "merged_from.json"  # in the folder of --save_merged: whose model it holds
LOG_FILE = "run.log"  # what the run printed, kept by a sweep
JOB_LOG = "joblog.tsv"  # below the root of a sweep's results
OLD_JOB_LOG = "joblog_old.tsv"  # GNU parallel's, of an earlier version of the sweep, with command lines
TUNED_RECIPE = "tuned.tsv"  # there too: the learning rates that TUNE=1 chose
SEARCH = "search"  # and the folder with the runs of its search
LOCK_FILE = "run.lock"  # held by flock while a run works here; says who
IN_USE = "a run is working in it"
LOCK_PATIENCE = 0.5  # seconds: whoever asks is_running() holds a shared lock for an instant
LOG_TAIL = 65536  # bytes at the end of a log in which the reason of a failure is looked for
ATTEMPT = "== "  # begins the line that a sweep writes into a log at each start and end of a run
ATTEMPT_ENDED = "== ended"
FAILURE_KINDS = ("diverged", "out of memory", "disk full", "usage", "stopped", "killed", "error")
# What it answered on the validation rows, by the suffix of the set; in a checkpoint: so far.
PREDICTIONS_FILES = {"": "eval_predictions.npz", "_mm": "eval_predictions_mm.npz"}
# What a run may write besides checkpoints, saved weights and predictions.
RESULT_FILES = (
    RECORD_FILE,
    "all_results.json",
    "train_results.json",
    "eval_results.json",
    "selection_results.json",  # of --selection_fraction without --do_eval
    *PREDICTIONS_FILES.values(),
)
RUN_FILES = (
    *RESULT_FILES,
    BASES_FILE,
    FIXED_FILE,
    STATE_FILE,
    "training_args.bin",
    "config.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "model.safetensors",
    "README.md",
)
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
TEMPORARY = re.compile(r"\.(.+)\.\d+\.tmp")  # of atomic_write()
CLAIM = re.compile(rf"\.{re.escape(MERGED_FILE)}\.\d+\.tmp")  # of the one in a merged model's folder
# Where the run that a new one replaces is kept until the new one has taken its first step. It is filled, and emptied
# again, under the second name, and deleted under the third: a kill at any moment loses nothing of it.
REPLACED, MOVING, DISCARDED = ".replaced_run", ".replaced_run.moving", ".replaced_run.discarded"

logger = logging.getLogger("run_glue")


def plural(number: int, noun: str) -> str:
    """Return a number with its noun: 1 run, 2 runs."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; on success flush it to disk and rename it to `path`, else leave nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=4, sort_keys=True, ensure_ascii=False) + "\n",
            encoding="utf-8",
            errors="backslashreplace",  # bytes of a path that are no UTF-8 become JSON's own escapes
        )


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in `path`, or None where the file is missing or holds none."""
    try:
        if not path.is_file():  # reading a named pipe would wait for ever
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a run's folder while the run works in it; the lock ends with the process, however that ends.

    Raises UsageError, which names the holder, where another process has it, and where the folder can't be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output_dir {folder}: is a file, not a folder")
    is_new = not folder.exists()
    path = folder / LOCK_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = acquire(path)
    except OSError as error:
        raise UsageError(f"--output_dir {folder}: can't be written: {error.strerror}") from error
    with contextlib.suppress(OSError):  # a full disk: the run will say so where it matters
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()} {platform.node()}\n".encode())
    try:
        delete_temporary_files(folder)
        bring_back(folder)  # a run was killed before its first step
        yield
    finally:
        bring_back(folder)
        with contextlib.suppress(OSError):
            path.unlink()  # while it is held, so that nobody else's is deleted
            if is_new:
                folder.rmdir()  # only where it is empty: a run that was refused leaves nothing
        os.close(descriptor)


def acquire(path: Path) -> int:
    """Open and lock a lock file, and return its descriptor."""
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_file_of(descriptor, path):
                return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = holder_of(path.parent)
                os.close(descriptor)
                raise UsageError(f"--output_dir {path.parent}: {IN_USE} ({holder})") from None
            time.sleep(0.02)
        except OSError as error:
            logger.warning(f"{path}: no locks on this file system ({error.strerror}); nothing keeps others out")
            return descriptor
        os.close(descriptor)


def is_file_of(descriptor: int, path: Path) -> bool:
    """Say whether an open file is the one at `path` now: the holder before us may have deleted it meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def holder_of(folder: Path) -> str:
    """Return in words which process has the folder."""
    try:
        process, host = (folder / LOCK_FILE).read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return "process unknown"
    return f"process {process} on {host}"


def is_running(folder: Path) -> bool:
    """Say whether a run is working in `folder` now."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks on this file system
        return False
    finally:
        os.close(descriptor)
    return False


@dataclass(frozen=True)
class Failure:
    """Why the last start of a run ended without results."""

    kind: str  # one of FAILURE_KINDS
    message: str

    def __str__(self) -> str:
        """Return one line; a plain error's message says what it is by itself."""
        return self.message if self.kind == "error" else f"{self.kind}: {self.message}"


def write_failure(folder: Path, failure: Failure) -> None:
    """Note why a run ended without results; where even that can't be written, the run's last line has to do."""
    with contextlib.suppress(OSError):
        write_json(folder / FAILURE_FILE, asdict(failure))


def read_failure(folder: Path) -> Failure | None:
    """Return why the last run in `folder` failed, as it was noted; None where nothing was."""
    noted = read_json(folder / FAILURE_FILE) or {}
    kind, message = noted.get("kind"), noted.get("message")
    if isinstance(kind, str) and isinstance(message, str):
        return Failure(kind if kind in FAILURE_KINDS else "error", " ".join(message.split())[:1000])
    line = read_old_failure(folder)
    if line is None:
        return None
    kind, _, message = line.partition(": ")
    return Failure(kind, message) if kind in FAILURE_KINDS else Failure("error", line)


def has_diverged(folder: Path) -> bool:
    """Say whether the last run in `folder` ended by a loss that is no number."""
    failure = read_failure(folder)
    return failure is not None and failure.kind == "diverged"


def read_old_failure(folder: Path) -> str | None:
    """Return the line of failure.txt, as runs left it before there were kinds of failures."""
    path = folder / OLD_FAILURE_FILE
    try:
        if not path.is_file():  # reading a named pipe would wait for ever
            return None
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline(1000).strip()
    except OSError:
        return None


def log_lines(folder: Path) -> list[str]:
    """Return the last lines, without empty ones, that the last start of the run in `folder` left in its log."""
    path = folder / LOG_FILE
    try:
        if not path.is_file():
            return []
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL))
            text = file.read(LOG_TAIL).decode(errors="replace")
    except OSError:
        return []
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]  # a progress bar ends in \r
    starts = [number for number, line in enumerate(lines) if line.startswith(ATTEMPT) and ATTEMPT_ENDED not in line]
    lines = lines[starts[-1] + 1 :] if starts else lines
    # Another sweep that tried the folder meanwhile has left its refusal.
    return [line for line in lines if not line.startswith(ATTEMPT) and IN_USE not in line]


def last_words(folder: Path) -> str:
    """Return why the last start of the run in `folder` ended without results, as far as its files tell."""
    failure = read_failure(folder)
    if failure is not None:
        return str(failure)
    lines = log_lines(folder)
    return ([line for line in lines if "error:" in line.lower()] or lines or ["it left no message"])[-1]


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders in `folder`, the latest step first."""
    found = [
        (int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := CHECKPOINT.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def files_of_a_run(folder: Path) -> list[str]:
    """Name what a run left in `folder` that is worth something; a lock, a log or a failure alone is not."""
    return [name for name in RUN_FILES if (folder / name).exists()] + [path.name for path in checkpoints(folder)]


def is_ours(folder: Path) -> bool:
    """Say whether a run of this repository made what is in `folder`: by its records, never by the names of files.

    A record of its flags says so, or a complete checkpoint, as runs of older versions left no flags before their end.
    """
    has_record = any(read_json(folder / name) is not None for name in (COMMAND_FILE, RECORD_FILE))
    return has_record or last_complete_checkpoint(folder)[0] is not None


def delete_checkpoints(folder: Path) -> None:
    """Delete every checkpoint in `folder`."""
    for path in checkpoints(folder):
        (path / STATE_FILE).unlink(missing_ok=True)  # first, so that a kill leaves none that looks complete
        shutil.rmtree(path)


def written_by_runs(folder: Path) -> list[Path]:
    """Return every file and folder in `folder` that says something of the run there, its results and checkpoints."""
    names = (*RUN_FILES, COMMAND_FILE, FAILURE_FILE, OLD_FAILURE_FILE)
    files = [folder / name for name in names if (folder / name).exists()]
    return [*checkpoints(folder), *files, *folder.glob("predict_results_*.txt")]


def clear(folder: Path) -> None:
    """Delete what a run wrote into `folder`, and nothing else; the log and the lock stay."""
    delete_checkpoints(folder)
    for path in written_by_runs(folder):
        path.unlink()


def delete_temporary_files(folder: Path) -> None:
    """Delete what atomic_write() left there in a run that was killed."""
    names = {*RUN_FILES, COMMAND_FILE, FAILURE_FILE}
    for path in folder.glob(".*.tmp"):
        match = TEMPORARY.fullmatch(path.name)
        if match and (match[1] in names or match[1].startswith("predict_results_")):
            path.unlink(missing_ok=True)


def set_aside(folder: Path) -> None:
    """Move what a run left in `folder` out of the way of the one that replaces it."""
    moving = folder / MOVING
    moving.mkdir()
    for path in written_by_runs(folder):
        path.rename(moving / path.name)
    moving.rename(folder / REPLACED)


def bring_back(folder: Path) -> None:
    """Undo set_aside(): the run that was to replace the old one has ended before its first step."""
    if (folder / DISCARDED).exists():
        shutil.rmtree(folder / DISCARDED)
    if (folder / REPLACED).exists():
        clear(folder)
        (folder / REPLACED).rename(folder / MOVING)
    if (folder / MOVING).exists():
        for path in (folder / MOVING).iterdir():
            path.rename(folder / path.name)
        (folder / MOVING).rmdir()


def discard_replaced(folder: Path) -> None:
    """Delete the old run that set_aside() kept."""
    if (folder / REPLACED).exists():
        (folder / REPLACED).rename(folder / DISCARDED)
        shutil.rmtree(folder / DISCARDED)


def clear_results(folder: Path) -> None:
    """Delete what says how a run in `folder` ended."""
    for name in (*RESULT_FILES, FAILURE_FILE, OLD_FAILURE_FILE):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("predict_results_*.txt"):
        path.unlink()


def is_complete(checkpoint: Path) -> bool:
    """Say whether every file that Trainer needs to resume from `checkpoint` is there and can be read to its end.

    Trainer writes trainer_state.json last, so a killed run's checkpoint lacks it; a full disk or a broken copy
    truncates files, which safetensors' header and the checksums of torch's zip files show.
    """
    from safetensors import SafetensorError, safe_open  # tables, which ask for no checkpoint, do without the package

    if read_json(checkpoint / STATE_FILE) is None:
        return False
    weights = [*checkpoint.glob("*.safetensors")]
    # One random state a process; checkpoints of an older version don't say how many there were.
    processes = (read_json(checkpoint / PROGRESS_FILE) or {}).get("processes")
    random_states = [f"rng_state_{rank}.pth" for rank in range(processes or 0)]
    if processes in (None, 1):
        random_states = [path.name for path in checkpoint.glob("rng_state*.pth")] or ["rng_state.pth"]
    wanted = ["optimizer.pt", "scheduler.pt", *random_states]
    if not weights or not all((checkpoint / name).exists() for name in wanted):
        return False
    try:
        for path in weights:
            with safe_open(path, "numpy"):
                pass
        for path in [path for ending in ("pt", "pth", "npz") for path in checkpoint.glob(f"*.{ending}")]:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:
                    return False
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile):
        return False
    return True


def last_complete_checkpoint(folder: Path) -> tuple[Path | None, list[Path]]:
    """Return the latest checkpoint that can be resumed from (or None), and the broken ones that are later."""
    broken: list[Path] = []
    for checkpoint in checkpoints(folder):
        if is_complete(checkpoint):
            return checkpoint, broken
        broken.append(checkpoint)
    return None, broken
