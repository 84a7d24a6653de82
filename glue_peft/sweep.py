"""The sweep behind train_all.sh, whose first lines are its manual: what is done with the runs of a grid.

From top to bottom: what the environment asks for (main), how each run stands (standing), the runs in turn or several
at once (Sweep). Its lines are in sweep_messages, what is checked before anything starts in preflight. A run is a
process in a session of its own that writes into its run.log by itself, so that it lives on when the sweep is killed.
One loop looks after all of them; the only thing that happens outside of it is that a signal is passed on. Needs no
torch.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import BinaryIO, NoReturn

from glue_peft import mps, preflight, run_folder, sweep_messages, tuning
from glue_peft.errors import UsageError, run_script
from glue_peft.flags import given_flags
from glue_peft.grid import Run, check_names, gpus_of, read_grid, root_of
from glue_peft.run_folder import ATTEMPT, ATTEMPT_ENDED, LOG_FILE, RECORD_FILE, Failure, checkpoints, last_words
from glue_peft.run_state import state
from glue_peft.sweep_messages import as_ranges
from glue_peft.tables.formats import duration

TO_RUN = ("open", "broken", "extend")  # of the states that standing() returns
STOPPED = (75, 129, 130, 138, 143)  # by its own word, or by SIGHUP, SIGINT, SIGUSR1 or SIGTERM before it could save
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
POLL = 0.02  # seconds between two looks at the runs
TIME = "%Y-%m-%d %H:%M:%S"


def main() -> int:
    """Do what the environment and the command line ask for, and return the exit status."""
    settings, flags = dict(os.environ), sys.argv[1:]
    check_names(settings)
    tuned = tuning.read_tuning(settings, flags) if settings.get("TUNE") else None
    runs = tuned.runs if tuned else read_grid(settings, flags)
    say_lines(sweep_messages.borrowed_values(settings, flags), 2)
    line = settings.get("SLURM_ARRAY_TASK_ID")
    if settings.get("DRY_RUN"):
        say_lines([shlex.join(run.command) for run in runs])
        return 0
    if settings.get("MISSING"):
        waiting, _ = plan(runs)
        say_lines([as_ranges([number for number, run in enumerate(runs, 1) if run in waiting])])
        return 0
    if settings.get("STATUS"):
        return show_status(runs, tuned, settings, flags)
    if tuned:
        tuning.write_recipe(tuned, settings, flags)
    if line:
        return run_line(runs, line, settings)
    sweep = Sweep(slots(settings), int(settings.get("RETRIES") or 1), root_of(settings))
    sweep.take_signals()
    sweep.carry_out(runs, tuned.final if tuned else [], settings)
    while tuned and not sweep.status:
        tuned = tuning.read_tuning(settings, flags)
        tuning.write_recipe(tuned, settings, flags)
        say_lines(tuning.search_lines(tuned))
        new, runs = tuned.runs[len(runs) :], tuned.runs
        if not new:
            break
        sweep.carry_out(new, [], settings)
    say_lines(sweep_messages.summary(sweep.outcomes, len(sweep.waiting)))
    say_lines(sweep_messages.closing([run for run in runs if not run.is_search], sweep.outcomes, settings))
    return sweep.status


def run_line(runs: list[Run], line: str, settings: Mapping[str, str]) -> int:
    """Become the run of a line of the grid, a task of a Slurm array; return the exit status where it isn't to be run.

    Only the run itself checks its flags: the other lines are not this task's business.
    """
    if not (line.isdecimal() and 1 <= int(line) <= len(runs)):
        raise UsageError(f"--array: the grid has the lines 1 to {len(runs)}, no {line}")
    waiting, outcomes = plan([runs[int(line) - 1]])
    if waiting:
        become(waiting[0], line, settings)
    say_lines(sweep_messages.summary(outcomes, 0))
    return exit_status(outcomes, 0)


def say(text: str | bytes, descriptor: int = 1) -> None:
    """Write to stdout or stderr; where nobody reads any more, as behind `| head`, nothing from then on."""
    try:
        with open(descriptor, "wb", closefd=False) as stream:
            stream.write(os.fsencode(text))  # folder names leave as the bytes they are
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def say_lines(lines: list[str], descriptor: int = 1) -> None:
    """Write lines to stdout or stderr."""
    say("".join(f"{line}\n" for line in lines), descriptor)


def show_status(runs: list[Run], tuned: tuning.Tuning | None, settings: Mapping[str, str], flags: list[str]) -> int:
    """Print how far the grid is; of a tuned one how far each phase is, and the array to be given to Slurm next."""
    from glue_peft.tables.status import status_lines

    for part in parts_of(runs) if tuned else [runs]:
        roots, seeds, tasks = zip(*(run.folder.rsplit("/", 2) for run in part), strict=True)
        seeds_in_order = [*map(int, dict.fromkeys(seeds))]
        say_lines(status_lines(list(dict.fromkeys(roots)), seeds_in_order, list(dict.fromkeys(tasks))))
    if tuned:
        waiting = {run.folder for run in plan(runs)[0]}
        numbers = [number for number, run in enumerate(runs, 1) if run.folder in waiting]
        say_lines([*tuning.search_lines(tuned), tuning.next_array(tuned, numbers, settings, flags)])
    return 0


def parts_of(runs: list[Run]) -> list[list[Run]]:
    """Divide a tuned grid by phase and rows, so that in each part every row has every seed and task."""
    by_task: dict[tuple[bool, str], list[Run]] = {}
    for run in runs:
        by_task.setdefault((run.is_search, run.task), []).append(run)
    parts: dict[tuple[bool, tuple[str, ...]], list[Run]] = {}
    for (is_search, _), of_task in by_task.items():
        parts.setdefault((is_search, tuple(dict.fromkeys(run.row for run in of_task))), []).extend(of_task)
    return list(parts.values())


# How the runs stand


def standing(run: Run) -> tuple[str, str]:
    """Return how a run stands, and why: finished, elsewhere, another one's (other), or to be run (open, broken)."""
    folder = Path(run.folder)
    try:
        if run_folder.is_running(folder):
            return "elsewhere", run_folder.holder_of(folder)
        found, reason = state(folder, run.flags)
        if run.is_search and found == "open" and run_folder.has_diverged(folder):
            return "finished", ""
        if found == "finished" and run_folder.checkpoints(folder) and "save_total_limit" not in given_flags(run.flags):
            return "open", ""  # it was killed at its very end: started once more, it deletes them
    except OSError as error:
        return "other", f"it can't be read: {error.strerror}"
    return found, reason


def plan(runs: list[Run]) -> tuple[list[Run], list[tuple[str, str, str]]]:
    """Return the runs to be started, and of the others outcome, folder and reason; say what is unusual."""
    unusual = {
        "broken": "is run again",
        "elsewhere": "is being worked on",
        "other": "holds another run and is left alone",
    }
    waiting, outcomes = [], []
    for run in runs:
        found, reason = standing(run)
        if found in TO_RUN:
            waiting.append(run)
        else:
            outcomes.append((found, run.folder, reason))
        if found in unusual:
            say(f"train_all.sh: {run.folder} {unusual[found]}: {reason}\n", 2)
    return waiting, outcomes


def exit_status(outcomes: list[tuple[str, str, str]], n_waiting: int) -> int:
    """Return a sweep's exit status: 1 for a failure, 75 for what was stopped or not started."""
    found = [outcome for outcome, _, _ in outcomes]
    return 1 if "failed" in found or "other" in found else 75 if "stopped" in found or n_waiting else 0


# The runs


def slots(settings: Mapping[str, str]) -> list[dict[str, str]]:
    """Return, for each run at a time, the variables of its environment that say its GPU and threads.

    In turn, where none of JOBS, GPUS and JOBS_PER_GPU is given, a run has the whole machine: one slot without any.
    """
    if not any(settings.get(name) for name in ("JOBS", "GPUS", "JOBS_PER_GPU")):
        return [{}]
    gpus = visible_gpus(settings)
    if not gpus and not settings.get("JOBS"):
        raise UsageError("JOBS_PER_GPU: there is no GPU here, set JOBS")
    jobs = int(settings.get("JOBS") or len(gpus) * int(settings.get("JOBS_PER_GPU") or 1))
    own = {"OMP_NUM_THREADS": settings.get("OMP_NUM_THREADS") or str(max(1, cores(settings) // jobs))}
    return [own | ({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}) for slot in range(jobs)]


def visible_gpus(settings: Mapping[str, str]) -> list[str]:
    """Return the names of the GPUs to be used: those that were given, else all that nvidia-smi lists."""
    if settings.get("GPUS"):
        return gpus_of(settings["GPUS"])
    if "CUDA_VISIBLE_DEVICES" in settings:
        return [name for name in settings["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(number) for number in range(len(re.findall("^GPU", listed, re.M)))]


def cores(settings: Mapping[str, str]) -> int:
    """Return the number of cores: what Slurm gave may be less than the machine has."""
    return int(settings.get("SLURM_CPUS_ON_NODE") or len(os.sched_getaffinity(0)))


def open_log(run: Run) -> BinaryIO | None:
    """Make a run's folder, without the last start's failure, and open its log; None where that can't be."""
    folder = Path(run.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log = open(folder / LOG_FILE, "a+b", buffering=0)
    except OSError:
        return None  # the run itself will say what is wrong with its folder
    for name in (run_folder.FAILURE_FILE, run_folder.OLD_FAILURE_FILE):
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    return log


def become(run: Run, line: str, settings: Mapping[str, str]) -> NoReturn:
    """Replace this process by the run of a line of the grid, so that Slurm's signals reach it."""
    say(f"line {line} of the grid; its output goes to {run.folder}/{LOG_FILE}\n")
    log = open_log(run)
    note(log, f"{ATTEMPT}{time.strftime(TIME)} {run.folder}")
    if log is not None:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    threads = settings.get("OMP_NUM_THREADS") or settings.get("SLURM_CPUS_PER_TASK") or str(cores(settings))
    os.execvpe(run.command[0], run.command, os.environ | {"OMP_NUM_THREADS": threads})


@dataclass
class Attempt:
    """One start of a run."""

    run: Run
    slot: int
    number: int  # of the runs that were started, from 1
    retries: int  # that are left after this one
    began: float  # seconds since the epoch
    is_whole: bool  # from the first step on, so that its time is that of a run
    log: BinaryIO | None
    shown: int  # bytes of the log that need not be copied to stdout (any more)
    process: subprocess.Popen[bytes]


def note(log: BinaryIO | None, line: str) -> None:
    """Write a line into a run's log, or where it has none to stdout."""
    if log is None:
        say(f"{line}\n")
        return
    size = os.fstat(log.fileno()).st_size
    is_within_a_line = size > 0 and os.pread(log.fileno(), 1, size - 1) != b"\n"  # the run was killed there
    with contextlib.suppress(OSError):  # a full disk
        log.write(os.fsencode("\n" * is_within_a_line + f"{line}\n"))


@dataclass
class Sweep:
    """The runs, in turn or several at once."""

    slots: list[dict[str, str]]  # for each run at a time, what its environment has beside the sweep's
    retries: int
    root: str  # of the results
    waiting: list[Run] = field(default_factory=list)
    outcomes: list[tuple[str, str, str]] = field(default_factory=list)  # outcome, folder, reason
    active: list[Attempt] = field(default_factory=list)
    n_runs: int = 0  # that were waiting at first
    n_begun: int = 0
    seconds: list[float] = field(default_factory=list)  # of each run that is done, but for resumed ones
    stopping: int = 0  # once a signal has come: the exit status

    @property
    def is_in_turn(self) -> bool:
        """Say whether one run after the other has the machine, and stdout, for itself."""
        return not self.slots[0]

    def take_signals(self) -> None:
        """From here on a signal stops the runs; one that was ignored, as by nohup, stays ignored."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.stop)

    def stop(self, number: int, _: FrameType | None) -> None:
        """On a signal, let each run save a checkpoint and end, and start no other."""
        self.stopping = 130 if number == signal.SIGINT else 75
        for attempt in list(self.active):
            attempt.process.terminate()

    @property
    def status(self) -> int:
        """Return the exit status, as far as the sweep has come."""
        return self.stopping or exit_status(self.outcomes, len(self.waiting))

    def carry_out(self, runs: list[Run], later: list[Run], settings: Mapping[str, str]) -> None:
        """Say what will be run, check its commands and those of `later`, and run it."""
        self.waiting, outcomes = plan(runs)
        self.outcomes += outcomes
        self.n_runs, self.n_begun = len(self.waiting), 0
        may_share = 0 < len(visible_gpus(settings)) >= len(self.slots)
        say_lines(sweep_messages.opening(runs, self.waiting, outcomes, len(self.slots), may_share, self.root))
        finished = {folder for outcome, folder, _ in outcomes if outcome == "finished"}
        unfinished = [run for run in [*runs, *later] if run.folder not in finished]
        preflight.check_commands(unfinished, bases_of(runs), settings, lambda: self.stopping != 0)
        own = self.slots
        with mps.shared_gpus(settings, own, self.n_runs) as (self.slots, lines):
            say_lines(lines)
            self.run_all()
        self.slots = own

    def run_all(self) -> None:
        """Start the waiting runs as slots get free, until all have ended."""
        bases = bases_of(self.waiting)
        while self.active or (self.waiting and not self.stopping):
            while len(self.active) < len(self.slots) and not self.stopping and (run := self.next_run(bases)):
                self.waiting.remove(run)
                self.begin(run)
            for attempt in list(self.active):
                self.show(attempt)
            ended = [attempt for attempt in self.active if attempt.process.poll() is not None]
            for attempt in ended:
                self.end(attempt)
            if not ended:
                time.sleep(POLL)

    def next_run(self, bases: dict[str, str]) -> Run | None:
        """Return the first run that needn't wait for another one's adapter; None where there is none now."""
        unended = {run.folder for run in self.waiting} | {attempt.run.folder for attempt in self.active}
        return next((run for run in self.waiting if bases.get(run.folder) not in unended), None)

    def begin(self, run: Run) -> None:
        """Start a run in a free slot, unless another sweep has it by now, or has finished it."""
        found, reason = standing(run)
        self.n_begun += 1
        if found in TO_RUN:
            free = set(range(len(self.slots))) - {attempt.slot for attempt in self.active}
            self.start(run, min(free), self.n_begun, self.retries)
        else:
            self.outcomes.append(("other" if found == "other" else "elsewhere", run.folder, reason))

    def start(self, run: Run, slot: int, number: int, retries: int) -> None:
        """Start a run's process."""
        say(f"[{number}/{self.n_runs}] {'started' if retries == self.retries else 'started again'}: {run.folder}\n")
        log = open_log(run)
        shown = os.fstat(log.fileno()).st_size if log else 0
        began, is_whole = time.time(), not checkpoints(Path(run.folder))
        note(log, f"{ATTEMPT}{time.strftime(TIME, time.localtime(began))} {run.folder}")
        process = subprocess.Popen(
            run.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | self.slots[slot],
            start_new_session=True,  # Ctrl-C and a closed terminal reach the sweep alone, which asks the run to save
        )
        self.active.append(Attempt(run, slot, number, retries, began, is_whole, log, shown, process))
        if self.stopping:  # a signal came before there was a process
            process.terminate()

    def show(self, attempt: Attempt) -> None:
        """Copy what is new in the log of a run that has stdout for itself."""
        while self.is_in_turn and attempt.log and (new := os.pread(attempt.log.fileno(), 65536, attempt.shown)):
            attempt.shown += len(new)
            say(new)

    def end(self, attempt: Attempt) -> None:
        """Note how a run ended, and start it again if it failed and that may help."""
        run, code = attempt.run, attempt.process.returncode
        status = code if code >= 0 else 128 - code
        note(attempt.log, f"{ATTEMPT_ENDED} with exit status {status}")
        self.show(attempt)
        if attempt.log:
            attempt.log.close()
        self.active.remove(attempt)
        log_job(Path(self.root), run, attempt.began, status)
        outcome, detail = outcome_of(run, status), ""
        if outcome in ("failed", "stopped"):
            detail = f"(exit status {status}{what_lacks(run) if status == 0 else ''}): {last_words(Path(run.folder))}"
            failure = note_failure(run, status)
            outcome = "diverged" if run.is_search and failure.kind == "diverged" else outcome
            may_help = outcome == "failed" and status not in (0, 2) and failure.kind != "diverged"
            if may_help and attempt.retries and not self.stopping:
                self.start(run, attempt.slot, attempt.number, attempt.retries - 1)
                return
        if status == 130 and self.is_in_turn and not self.stopping:
            self.stopping = 130  # somebody interrupted the run: that was meant for the sweep
        self.outcomes.append((outcome, run.folder, detail))
        seconds = time.time() - attempt.began
        self.seconds += [seconds] if outcome == "done" and attempt.is_whole else []
        left = sweep_messages.time_left(self.seconds, len(self.waiting) + len(self.active), len(self.slots))
        say(f"[{attempt.number}/{self.n_runs}] {outcome}: {run.folder} ({duration(seconds)}{left})\n")


def bases_of(runs: list[Run]) -> dict[str, str]:
    """Return, for the folder of each run that starts from the adapter of another one of them, that one's folder."""
    folders = {os.path.realpath(run.folder): run.folder for run in runs}
    bases = {}
    for run in runs:
        base = given_flags(run.flags).get("init_adapter_from")
        folder = folders.get(os.path.realpath(str(base))) if base else None
        if folder and folder != run.folder:
            bases[run.folder] = folder
    return bases


def outcome_of(run: Run, status: int) -> str:
    """Return what a run's exit status comes to."""
    if status == 0:
        return "failed" if what_lacks(run) else "done"
    if status in STOPPED:
        return "stopped"
    if status == 2 and standing(run)[0] in ("elsewhere", "finished"):
        return "elsewhere"  # another sweep's run has the folder, or had it
    return "failed"


def what_lacks(run: Run) -> str:
    """Return why a run isn't finished though its exit status is 0; nothing where it is."""
    folder = Path(run.folder)
    found, reason = state(folder, run.flags)
    if found == "finished":
        return ""
    return f", but {reason}" if (folder / RECORD_FILE).exists() else f" without a {RECORD_FILE}"


def note_failure(run: Run, status: int) -> Failure:
    """Return why a run ended without results, and note it in its folder where the run itself couldn't."""
    folder = Path(run.folder)
    failure = run_folder.read_failure(folder)
    if failure is None:
        killed = "killed" if 128 < status <= 128 + 64 else "error"
        kind = "usage" if status == 2 else "stopped" if status in STOPPED else killed
        failure = Failure(kind, last_words(folder))
        if standing(run)[0] in TO_RUN:
            run_folder.write_failure(folder, failure)
    return failure


def log_job(root: Path, run: Run, began: float, status: int) -> None:
    """Add a line to the log of all runs, in one piece, as several sweeps may write there."""
    path = root / run_folder.JOB_LOG
    started = time.strftime(TIME, time.localtime(began))
    line = os.fsencode(f"{run.folder}\t{started}\t{time.time() - began:.1f}\t{status}\n")
    with contextlib.suppress(OSError):
        if path.exists() and path.read_bytes().startswith(b"Seq\t"):
            path.replace(root / run_folder.OLD_JOB_LOG)
        with contextlib.suppress(FileExistsError), open(path, "xb", buffering=0) as file:
            file.write(b"run\tstart\tseconds\texit_status\n")
        with open(path, "ab", buffering=0) as file:
            file.write(line)


if __name__ == "__main__":
    sys.exit(run_script(main, "train_all.sh"))
