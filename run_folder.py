"""A run's output folder: its lock, whole files, what counts as finished, and the checkpoint to resume from.

Imported by run_glue.py and parse_results.py. Needs no torch, so that a sweep can ask about its runs in milliseconds.
train_all.sh asks it once at the start and once at the end:

    python run_folder.py plan FOLDER
        Of the lines of FOLDER/grid (a run's folder, a tab, its command) write those to be run to FOLDER/lines, and how
        the others stand to FOLDER/outcomes. Say on stderr what is unusual.
    python run_folder.py missing FOLDER
        Print the numbers of the lines to be run, as in 3,7-12.
    python run_folder.py summary FOLDER
        Print what FOLDER/outcomes comes to. Exit status: 1 if a run failed or was refused, 75 if one was stopped or
        is not in it.
"""

import contextlib
import fcntl
import json
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

RECORD_FILE = "run.json"  # written last of all, so it marks a finished run
BASES_FILE = "random_bases.json"  # the hash of VeRA's and RandLoRA's random bases, beside every saved adapter
STATE_FILE = "trainer_state.json"  # Trainer's; written last into a checkpoint, so it marks a whole one
PROGRESS_FILE = "training_so_far.json"  # in a checkpoint: what Trainer would forget, see GlueTrainer._save_checkpoint
FAILURE_FILE = "failure.txt"  # one line: why the last start ended without results
COMMAND_FILE = "command.json"  # the flags of the run that was started here
LOG_FILE = "run.log"  # what the run printed, kept by train_all.sh
LOCK_FILE = "run.lock"  # held by flock while a run works here; says who
IN_USE = "a run is working in it"
LOCK_PATIENCE = 0.5  # seconds: whoever asks is_running() holds a shared lock for an instant
LOG_TAIL = 65536  # bytes at the end of a log in which the reason of a failure is looked for
ATTEMPT = "== "  # begins the line that train_all.sh writes into a log at each start and end of a run
ATTEMPT_ENDED = "== ended"
# What a run may write besides checkpoints, saved weights and predictions.
RESULT_FILES = (RECORD_FILE, "all_results.json", "train_results.json", "eval_results.json")
RUN_FILES = (
    *RESULT_FILES,
    BASES_FILE,
    STATE_FILE,
    "training_args.bin",
    "config.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "model.safetensors",
    "README.md",
)
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# The metric that stands for a GLUE task: its results must have it, it picks an epoch, and it is reported. The first
# six, in this order, are the columns of the RandLoRA paper's table.
TASK_METRICS = {
    "sst2": "accuracy",
    "mrpc": "accuracy",
    "cola": "matthews_correlation",
    "qnli": "accuracy",
    "rte": "accuracy",
    "stsb": "combined_score",
    "mnli": "accuracy",
    "qqp": "accuracy",
    "wnli": "accuracy",
}
# Flags that can't move a score. The last one computes the same up to rounding, and a run may be resumed with either.
NEUTRAL_FLAGS = frozenset(
    "output_dir resume overwrite_output_dir resume_from_checkpoint overwrite_cache cache_dir token hub_token "
    "disable_tqdm log_level log_level_replica log_on_each_node logging_strategy logging_steps logging_first_step "
    "logging_nan_inf_filter report_to run_name project trackio_space_id save_total_limit ddp_timeout "
    "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
    "fast_adapters".split()
)
PATH_FLAGS = frozenset(
    "model_name_or_path config_name tokenizer_name dataset_path train_file validation_file test_file adapter_config "
    "adapter_path init_adapter_from".split()
)

logger = logging.getLogger("run_glue")


class UsageError(ValueError):
    """A user's mistake: one line that names the flag or file and the allowed values; exit status 2."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 run, 2 runs."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


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
    except (OSError, ValueError, RecursionError):
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
    for left in folder.glob(".*.tmp"):  # of whole_file(), by a run that was killed
        left.unlink(missing_ok=True)
    try:
        yield
    finally:
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
    """Whether an open file is the one that is at `path` now: the holder before us may have deleted it meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def holder_of(folder: Path) -> str:
    """Which process has the folder, in words."""
    try:
        process, host = (folder / LOCK_FILE).read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return "process unknown"
    return f"process {process} on {host}"


def is_running(folder: Path) -> bool:
    """Whether a run is working in `folder` now."""
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


def failure(folder: Path) -> str | None:
    """Return why the last run in `folder` failed, as it said itself; None where it said nothing."""
    path = folder / FAILURE_FILE
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


def was_stopped(folder: Path) -> bool:
    """Whether the last start of the run in `folder` ended because it was asked to, by its own word."""
    return any(
        line.startswith(("run_glue.py: stopped", "run_glue.py: interrupted")) for line in log_lines(folder)[-1:]
    )


def last_words(folder: Path) -> str:
    """Why the last start of the run in `folder` ended without results, as far as its files tell."""
    lines = log_lines(folder)
    return (
        failure(folder) or ([line for line in lines if "error:" in line.lower()] or lines or ["no word was left"])[-1]
    )


def given_flags(argv: list[str]) -> dict[str, object]:
    """The value of each flag on a command line, the last one if it stands there twice, in a form to be compared."""
    given: dict[str, list[str]] = {}
    name = None
    for token in argv:
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            name = name.replace("-", "_")
            given[name] = [value] if equals else []
        elif name is not None:
            given[name].append(token)
    flags = {}
    for name, values in given.items():
        if name.startswith("no_") and not values:  # how argparse spells a flag whose default is true
            flags[name[3:]] = False
        else:
            flags[name] = comparable(values) if values else True
    return flags


def comparable(value: object) -> object:
    """A flag's value, written or recorded, as a number, truth value, list or text: 1e-4 is 0.0001, True is true."""
    if isinstance(value, list | tuple):
        return comparable(value[0]) if len(value) == 1 else [comparable(item) for item in value]
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(value)
    if value.startswith(("{", "[")):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value.rstrip("/") or value


def without_secrets(argv: list[str]) -> list[str]:
    """A command line without access tokens."""
    kept, secret = [], False
    for token in argv:
        if token.startswith("--"):
            secret = token.partition("=")[0].endswith("token")
        if not secret:
            kept.append(token)
    return kept


def flags_of(record: dict | None) -> tuple[dict[str, object], dict[str, object]]:
    """The flags that a record's run was given, and the resolved arguments; empty where the record hasn't them."""
    command, arguments = ((record or {}).get(name) for name in ("command", "arguments"))
    is_command = isinstance(command, list) and all(isinstance(token, str) for token in command)
    return given_flags(command) if is_command else {}, arguments if isinstance(arguments, dict) else {}


def differences(record: dict, flags: list[str], free: frozenset[str] = frozenset()) -> list[str]:
    """In what the run of a record (run.json or command.json) differs from one with these flags, except the free ones.

    What only `flags` has is compared with the record's resolved arguments; what only the record's run was given
    counts as a difference, as the default is not known here.
    """
    had, resolved = flags_of(record)
    wanted = given_flags(flags)
    found = []
    for name in [name for name in wanted | had if name not in NEUTRAL_FLAGS | free]:
        old = had[name] if name in had else comparable(resolved.get(name))
        if name not in wanted:
            found.append(f"no --{name} (the folder has {shown(old)})")
        elif name == "adapter_config" and name in had and record.get("adapter_config_file") is not None:
            if read_json(Path(str(wanted[name]))) != record["adapter_config_file"]:
                found.append(f"--{name} {shown(wanted[name])} (the folder has another content of {shown(old)})")
        elif not is_same(name, wanted[name], old):
            known = name in had or name in resolved
            found.append(f"--{name} {shown(wanted[name])} (the folder has {shown(old) if known else 'none'})")
    return found


def is_same(name: str, value: object, old: object) -> bool:
    """Whether two values of a flag mean the same; a path may be spelled in several ways."""
    paths = name in PATH_FLAGS and isinstance(value, str) and isinstance(old, str)
    return value == old or (paths and os.path.realpath(value) == os.path.realpath(old))


def shown(value: object) -> str:
    """A flag's value as one would write it."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def state(folder: Path, flags: list[str]) -> tuple[str, str]:
    """How a run with these flags stands in `folder`, and why: the one decision of a sweep and of --resume.

    `finished`: nothing to do. `open`: to be started or resumed. `broken`: its results can't be used, so it is run
    again. `other`: the folder holds a run of other arguments, which is neither skipped nor overwritten.
    """
    if not traces(folder):
        return "open", ""
    ended = (folder / RECORD_FILE).exists()
    record = read_json(folder / RECORD_FILE)
    known = next((found for found in (record, read_json(folder / COMMAND_FILE)) if any(flags_of(found))), None)
    if known is None:
        # Checkpoints from before there was a command.json are resumed, as they always were.
        return ("other", f"{RECORD_FILE} doesn't say by which arguments it was made") if ended else ("open", "")
    changed = differences(known, flags)
    if changed:
        return "other", ", ".join(changed)
    fault = fault_of_results(folder, record, given_flags(flags)) if ended else None
    return ("broken", fault) if fault else ("finished" if ended else "open", "")


def fault_of_results(folder: Path, record: dict | None, flags: dict[str, object]) -> str | None:
    """What is wrong with the results of a run that has ended; None where nothing is."""
    if record is None:
        return f"{RECORD_FILE} is not a JSON object"
    if not flags.get("do_eval"):
        return None
    results = read_json(folder / "eval_results.json")
    if results is None:
        return "eval_results.json is missing or not a JSON object"
    task = str(flags.get("task_name")).lower()
    for key in result_keys(task, TASK_METRICS[task]) if task in TASK_METRICS else ():
        if not isinstance(results.get(key), int | float):
            return f"eval_results.json has no {key}"
    return None


def result_keys(task: str, metric: str) -> list[str]:
    """The keys in eval_results.json of a task's metric; MNLI has two validation sets."""
    return [f"eval_{metric}", f"eval_{metric}_mm"] if task == "mnli" else [f"eval_{metric}"]


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders in `folder`, the latest step first."""
    found = [
        (int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := CHECKPOINT.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def traces(folder: Path) -> list[str]:
    """Name what a run left in `folder` that is worth something; a lock, a log or a failure alone is not."""
    return [name for name in RUN_FILES if (folder / name).exists()] + [path.name for path in checkpoints(folder)]


def delete_checkpoints(folder: Path) -> None:
    """Delete every checkpoint in `folder`."""
    for path in checkpoints(folder):
        (path / STATE_FILE).unlink(missing_ok=True)  # first, so that a kill leaves none that looks whole
        shutil.rmtree(path)


def clear(folder: Path) -> None:
    """Delete what runs wrote into `folder`, and nothing else; the log and the lock stay."""
    delete_checkpoints(folder)
    clear_results(folder)
    for name in (*RUN_FILES, COMMAND_FILE):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob(".*.tmp"):
        path.unlink()


def clear_results(folder: Path) -> None:
    """Delete what says how a run in `folder` ended."""
    for name in (*RESULT_FILES, FAILURE_FILE):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("predict_results_*.txt"):
        path.unlink()


def is_whole(checkpoint: Path) -> bool:
    """Whether every file that Trainer needs to resume from `checkpoint` is there and can be read to its end.

    Trainer writes trainer_state.json last, so a killed run's checkpoint lacks it; a full disk or a broken copy
    truncates files, which safetensors' header and the checksums of torch's zip files show.
    """
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


def read_grid(lines: Iterable[str]) -> Iterator[tuple[Path, list[str]]]:
    """Each run's folder and flags from the grid's lines."""
    for line in lines:
        folder, _, command = line.rstrip("\n").partition("\t")
        words = shlex.split(command)
        script = [word.rpartition("/")[2] for word in words].index("run_glue.py")
        yield Path(folder), words[script + 1 :]


def plan(work: Path) -> list[int]:
    """Write down which lines of the grid are to be run, and how the others stand; return the indices of the former."""
    lines = (work / "grid").read_text(encoding="utf-8", errors="surrogateescape").splitlines(keepends=True)
    wanted, outcomes = [], []
    for index, (folder, flags) in enumerate(read_grid(lines)):
        try:
            found, reason = ("elsewhere", holder_of(folder)) if is_running(folder) else state(folder, flags)
            if found == "finished" and checkpoints(folder) and "save_total_limit" not in given_flags(flags):
                found = "open"  # it was killed at its very end: started once more, it deletes them
        except OSError as error:
            found, reason = "other", f"it can't be read: {error.strerror}"
        if found in ("open", "broken"):
            wanted.append(index)
        else:
            outcomes.append(f"{found}\t{folder}\t{reason}\n")
        if found == "broken":
            print(f"train_all.sh: {folder} is run again: {reason}", file=sys.stderr)
        elif found == "elsewhere":
            print(f"train_all.sh: {folder} is being worked on: {reason}", file=sys.stderr)
        elif found == "other":
            print(f"train_all.sh: {folder} holds another run and is left alone: {reason}", file=sys.stderr)
    for name, content in (("lines", [lines[index] for index in wanted]), ("outcomes", outcomes)):
        (work / name).write_text("".join(content), encoding="utf-8", errors="surrogateescape")
    return wanted


def summary(work: Path) -> int:
    """Print how a sweep ended, from lines of outcome, folder and exit status or reason; return its exit status.

    A run has no such line where it was not started, or where the shell around it, or GNU parallel, was killed.
    """
    folders: dict[str, dict[str, str]] = {}
    grid = (work / "lines").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    wanted = {line.partition("\t")[0] for line in grid}
    for line in (work / "outcomes").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        outcome, folder, detail = line.split("\t", 2)
        folders.setdefault(outcome, {})[folder] = detail
        wanted.discard(folder)
    done, finished, failed = (len(folders.get(outcome, ())) for outcome in ("done", "finished", "failed"))
    print(f"train_all.sh: {done} done, {finished} skipped as finished, {failed} failed")
    for folder in folders.get("stopped", ()):
        print(f"stopped, to be resumed by the next sweep: {folder}")
    for folder in folders.get("elsewhere", ()):
        print(f"left to another sweep: {folder}")
    for folder, reason in folders.get("other", {}).items():
        print(f"refused: {folder} holds another run: {reason}")
    for folder, status in folders.get("failed", {}).items():
        print(f"failed: {folder} (exit status {status}): {last_words(Path(folder))}")
    if wanted:
        were = "was" if len(wanted) == 1 else "were"
        print(f"{counted(len(wanted), 'run')} {were} not started, or the end was not seen: start the sweep again")
    return 1 if folders.keys() & {"failed", "other"} else 75 if "stopped" in folders or wanted else 0


def as_ranges(numbers: list[int]) -> str:
    """Ascending numbers as Slurm's --array takes them: 1-3,7."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def main(argv: list[str]) -> int:
    """Answer a question of train_all.sh."""
    question, work = argv
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="surrogateescape")  # folder names leave as the bytes they are
    if question == "summary":
        return summary(Path(work))
    wanted = plan(Path(work))
    if question == "missing":
        print(as_ranges([index + 1 for index in wanted]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
