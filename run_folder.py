"""A run's output folder: whole files, what counts as finished, and the checkpoint to resume from.

Imported by run_glue.py. Needs no torch, so that a sweep can ask about its runs in milliseconds.
"""

import contextlib
import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

RECORD_FILE = "run.json"  # written last of all, so it marks a finished run
LOCK_FILE = "run.lock"  # held with flock while a run works in the folder
FAILURE_FILE = "failure.txt"  # one line: why the last run ended without results
BASES_FILE = "random_bases.json"  # the hash of VeRA's and RandLoRA's random bases, beside every saved adapter
PROGRESS_FILE = "training_so_far.json"  # in a checkpoint: what Trainer would forget, see GlueTrainer._save_checkpoint
FAILURE_FILE = "failure.txt"  # one line: why a run ended without results
# What a run may write besides checkpoints, saved weights and predictions.
RUN_FILES = (
    RECORD_FILE,
    BASES_FILE,
    "all_results.json",
    "train_results.json",
    "eval_results.json",
    "trainer_state.json",
    "training_args.bin",
    "config.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "model.safetensors",
    "README.md",
)
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class UsageError(ValueError):
    """A user's mistake: one line that names the flag or file and the allowed values; exit status 2."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; on success flush it to disk and rename it to `path`, else leave nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    """Write `content` as JSON, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=4, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def read_json(path: Path) -> dict | None:
    """Return the JSON object in `path`, or None where the file is missing or holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def describe_environment(repository: Path) -> dict:
    """Versions of everything that computes, and the commit of this repository (None outside git)."""
    packages = (
        "torch",
        "transformers",
        "datasets",
        "evaluate",
        "peft",
        "accelerate",
        "numpy",
        "scipy",
        "scikit-learn",
    )
    git = ["git", "-C", str(repository)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False)
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "git_commit": commit.stdout.strip() + ("+changes" if changed.returncode == 1 else "") or None,
        "platform": platform.platform(),
    }


def is_finished(folder: Path) -> bool:
    """Whether a run in `folder` reached its end."""
    return read_json(folder / RECORD_FILE) is not None


def is_running(folder: Path) -> bool:
    """Whether a run works in `folder`: asked by taking its lock as a reader for a moment, without writing."""
    try:
        with open(folder / LOCK_FILE, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def failure(folder: Path) -> str | None:
    """Return why the last run in `folder` failed, None where it didn't."""
    path = folder / FAILURE_FILE
    try:
        if not path.is_file():
            return None
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline(1000).strip()
    except OSError:
        return None


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders in `folder`, the latest step first."""
    found = [
        (int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := CHECKPOINT.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def traces(folder: Path) -> list[str]:
    """Name what a run left in `folder`; empty where none has started."""
    return [name for name in RUN_FILES if (folder / name).exists()] + [path.name for path in checkpoints(folder)]


def delete_checkpoints(folder: Path) -> None:
    """Delete every checkpoint in `folder`."""
    for path in checkpoints(folder):
        shutil.rmtree(path)


def clear(folder: Path) -> None:
    """Delete what runs wrote into `folder`, and nothing else."""
    delete_checkpoints(folder)
    for name in RUN_FILES:
        (folder / name).unlink(missing_ok=True)
    for path in [*folder.glob("predict_results_*.txt"), *folder.glob(".*.tmp")]:
        path.unlink()


def is_whole(checkpoint: Path) -> bool:
    """Whether every file that Trainer needs to resume from `checkpoint` is there and can be read to its end.

    Trainer writes trainer_state.json last, so a killed run's checkpoint lacks it; a full disk or a broken copy
    truncates files, which safetensors' header and the checksums of torch's zip files show.
    """
    if read_json(checkpoint / "trainer_state.json") is None:
        return False
    weights = [*checkpoint.glob("*.safetensors")]
    if not weights or not (checkpoint / "optimizer.pt").exists() or not (checkpoint / "scheduler.pt").exists():
        return False
    try:
        for path in weights:
            check_safetensors_length(path)
        for path in [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:
                    return False
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return True


def check_safetensors_length(path: Path) -> None:
    """Raise ValueError unless the file is as long as its header says (8 bytes, the header, then the tensors)."""
    with open(path, "rb") as file:
        header_length = int.from_bytes(file.read(8), "little")
        if header_length > path.stat().st_size:
            raise ValueError(f"{path} is truncated")
        header = json.loads(file.read(header_length))
    end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    if path.stat().st_size != 8 + header_length + end:
        raise ValueError(f"{path} is truncated")


def last_whole_checkpoint(folder: Path) -> tuple[Path | None, list[Path]]:
    """Return the latest checkpoint that can be resumed from (or None), and the broken ones that are later."""
    broken = []
    for checkpoint in checkpoints(folder):
        if is_whole(checkpoint):
            return checkpoint, broken
        broken.append(checkpoint)
    return None, broken
