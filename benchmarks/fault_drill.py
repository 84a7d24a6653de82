#!/usr/bin/env python
"""Break a sweep on purpose and compare what it leaves, to the bit, with an undisturbed sweep's.

    python -m benchmarks.fault_drill            80 signals over 30 tiny runs, then the planted faults
    python -m benchmarks.fault_drill --quick    the same in small, for CI

Models and data are random, made on the spot (tests/make_tiny.py). Wants Linux (/proc) and one thread a run. A sweep
under JOBS=2 is run undisturbed, then another over the same grid while a killer sends SIGKILL, SIGTERM, or SIGTERM and
soon after SIGKILL, to its runs, and SIGKILL, SIGTERM or SIGHUP to train_all.sh itself, and starts the sweep again
whenever it has ended, until everything is finished. A sixth of the moments are drawn uniformly from a run's typical
duration, most of which is imports for runs as short as these; the others a little after a run was seen to begin
loading, training, saving, evaluating, or what follows its training. The draws follow --seed; where in a run a moment
falls depends on the machine, too.

Compared are all files below the root of the results, which must be the same ones: weights and everything else that is
not JSON byte by byte, JSON value by value. Left out is what can't be equal:
- run.log and joblog.tsv, which tell what happened;
- times: the keys seconds, *_runtime and *_per_second; and the key peak_memory;
- in adapter_config.json, the order of target_modules, a set that PEFT writes in whatever order it has.
Process ids are in no other file; paths are equal, since all sweeps use the same relative ones.

It prints a markdown table and ends with exit status 1 if anything differs from what should be.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from glue_peft import run_folder

REPOSITORY = Path(__file__).resolve().parents[1]
MARK = "FAULT_DRILL"  # in the environment of every process of a sweep: the killer touches no other
FLAGS = (
    "--dataset_path ../tiny/glue --do_predict --num_train_epochs 4 --per_device_train_batch_size 16 --learning_rate "
    "5e-3 --max_train_samples 216 --eval_strategy epoch --logging_strategy epoch --selection_fraction 0.1 "
    "--disable_tqdm True"
).split()
BEST_EPOCH = ["--load_best_model_at_end", "True", "--gradient_accumulation_steps", "2"]
NOT_COMPARED = ("run.log", "joblog.tsv")
# How long at most after the beginning of what a run does it is hit, in seconds.
DELAYS = {"loading": 1.0, "training": 1.5, "saving": 0.03, "evaluating": 0.1, "past its training": 0.5}
BOOT = time.time() - float(Path("/proc/uptime").read_text().split()[0])
TICK = 0.004  # seconds between two looks at the processes
PATIENCE = 3600  # seconds until a sweep counts as stuck


@dataclass
class Grid:
    """What a sweep trains, and in which folder of the drill's own."""

    place: Path
    adapters: str
    tasks: str
    seeds: str
    flags: list[str] = field(default_factory=list)

    @property
    def results(self) -> Path:
        """The root of the results."""
        return self.place / "results"

    def folders(self) -> list[Path]:
        """The folder of each run."""
        names = [f"{item.replace(':', '')}_roberta" for item in self.adapters.split()]
        return [self.results / a / s / t for a in names for s in self.seeds.split() for t in self.tasks.split()]

    def at(self, name: str, **changes: str) -> "Grid":
        """The same, or a part of it, in another folder."""
        values = {"adapters": self.adapters, "tasks": self.tasks, "seeds": self.seeds, "flags": self.flags} | changes
        return Grid(self.place.with_name(name), **values)

    def start(
        self,
        *flags: str,
        limit: int = resource.RLIM_INFINITY,
        ignored: tuple[signal.Signals, ...] = (),
        prefix: tuple[str, ...] = (),
        stdout: int | IO = subprocess.PIPE,
    ) -> subprocess.Popen:
        """Start a sweep by a command before it, with a limit to its files' bytes and with signals that are ignored."""

        def prepare() -> None:
            """Set what the sweep inherits, whatever this process has inherited itself."""
            for number in (signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        (self.place / "tmp").mkdir(parents=True, exist_ok=True)
        own = {"MODELS": "../tiny/roberta", "ADAPTERS": self.adapters, "TASKS": self.tasks, "SEEDS": self.seeds}
        own |= {"RESULTS": "results", "PYTHON": sys.executable, "JOBS": "2", "OMP_NUM_THREADS": "1"}
        own |= {"HF_HOME": str(self.place / "cache"), "HF_HUB_OFFLINE": "1", "TMPDIR": str(self.place / "tmp")}
        # Unbuffered, so that run.log shows at once which phase a run is in.
        own |= {MARK: str(self.place), "PYTHONUNBUFFERED": "1"}
        steering = ("RECIPE", "TAG", "DRY_RUN", "STATUS", "MISSING", "GPUS", "JOBS_PER_GPU", "RETRIES")
        kept = {k: v for k, v in os.environ.items() if k not in steering and not k.startswith("SLURM")}
        return subprocess.Popen(
            [*prefix, "bash", str(REPOSITORY / "train_all.sh"), *FLAGS, *self.flags, *flags],
            cwd=self.place,
            env=kept | own,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=prepare,
        )

    def sweep(self, *flags: str, **how: object) -> tuple[int, str]:
        """Run a sweep to its end and return its exit status and what it printed."""
        process = self.start(*flags, **how)
        output, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, output

    def unfinished(self) -> list[Path]:
        """The folders without a result."""
        return [folder for folder in self.folders() if run_folder.read_json(folder / run_folder.RECORD_FILE) is None]


# The comparison


def without_times(value: object) -> object:
    """A JSON value without the keys that tell how long or how much memory something took."""
    if isinstance(value, list):
        return [without_times(item) for item in value]
    if not isinstance(value, dict):
        return value
    left_out = [
        k
        for k in value
        if k in ("seconds", "peak_memory") or k.removesuffix("_mm").endswith(("_runtime", "_per_second"))
    ]
    return {key: without_times(item) for key, item in value.items() if key not in left_out}


def content(path: Path) -> object:
    """What of a file has to be equal."""
    if path.suffix != ".json":
        return path.read_bytes()
    try:
        value = without_times(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:
        return path.read_bytes()
    if path.name == "adapter_config.json":
        value["target_modules"] = sorted(value["target_modules"])
    return value


def entries(root: Path) -> dict[str, Path]:
    """Every file and folder below `root` that is compared, by its relative name."""
    found = sorted(root.rglob("*"))
    return {str(path.relative_to(root)): path for path in found if path.name not in NOT_COMPARED}


def differences(root: Path, expected: Path, part: str = "") -> list[str]:
    """In what the results below root/part differ from those below expected/part."""
    found, wanted = entries(root / part), entries(expected / part)
    lines = [f"{part}/{name} is missing" for name in wanted if name not in found]
    lines += [f"{part}/{name} should not be there" for name in found if name not in wanted]
    for name in wanted.keys() & found.keys():
        if wanted[name].is_file() and content(found[name]) != content(wanted[name]):
            lines.append(f"{part}/{name} differs")
    return sorted(line.removeprefix("/") for line in lines)


def done_twice(grid: Grid) -> list[str]:
    """The runs that were brought to their end more than once, by their logs."""
    logs = [(folder / "run.log").read_text(errors="replace") for folder in grid.folders()]
    return [str(f) for f, log in zip(grid.folders(), logs, strict=True) if log.count("\nDone in ") > 1]


# The processes


@dataclass
class Process:
    """A process of a sweep."""

    pid: int
    started: float  # seconds since the epoch
    folder: Path | None  # of a run


def describe_process(pid: int, place: Path) -> Process | None:
    """Return what a process is, if it belongs to a sweep of this place and still lives."""
    try:
        proc = Path("/proc", str(pid))
        if f"{MARK}={place}".encode() not in (proc / "environ").read_bytes().split(b"\0"):
            return None
        words = (proc / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        ticks = (proc / "stat").read_text().rpartition(")")[2].split()[19]  # from the machine's start to this one's
    except (OSError, IndexError):
        return None
    started = BOOT + int(ticks) / os.sysconf("SC_CLK_TCK")
    is_run = len(words) > 1 and words[1].endswith("/run_glue.py")
    return Process(pid, started, place / words[words.index("--output_dir") + 1] if is_run else None)


def processes(place: Path) -> list[Process]:
    """The living processes of a place's sweeps."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [process for pid in pids if (process := describe_process(pid, place)) is not None]


def send(pid: int, number: int, place: Path) -> bool:
    """Send a signal to a process of a place's sweeps; False where it is none (any more)."""
    try:
        handle = os.pidfd_open(pid)  # from here on nobody else can get its number
    except OSError:
        return False
    try:
        if describe_process(pid, place) is None:
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def phase(run: Process) -> str:
    """What a run is doing, as its files tell."""

    def is_new(name: str) -> bool:
        """Whether this process has written the file."""
        try:
            return (run.folder / name).stat().st_mtime >= run.started
        except OSError:
            return False

    if run_folder.holder_of(run.folder).split()[1] != str(run.pid):
        return "importing"
    if not is_new("command.json"):
        return "loading"
    if is_new("train_results.json"):
        return "past its training"
    if any(not (path / "trainer_state.json").exists() for path in run_folder.checkpoints(run.folder)):
        return "saving"
    last = (run_folder.log_lines(run.folder) or [""])[-1]
    return "evaluating" if last.startswith("step ") else "training"  # a line at the end of an epoch, as FLAGS say


# The killer


@dataclass
class Killer:
    """Draws when which process gets which signal, sends it and notes it."""

    grid: Grid
    rng: random.Random
    typical: float  # seconds of an undisturbed run
    left: int
    fates: dict[tuple[int, float], tuple[object, str]] = field(default_factory=dict)
    followers: list[tuple[float, int]] = field(default_factory=list)
    events: dict[str, list[tuple[Path | None, int]]] = field(default_factory=lambda: defaultdict(list))
    lies: list[str] = field(default_factory=list)  # what sweeps said that wasn't so
    next_blow: float = 0.0  # when the sweep itself is hit

    def draw_fate(self) -> tuple[object, str]:
        """When a run is hit (its age in seconds, or after the beginning of a phase) and by what."""
        aim = self.rng.choice([*DELAYS, self.rng.uniform(0, self.typical)])
        return aim, self.rng.choice(["SIGKILL", "SIGTERM", "SIGTERM, then SIGKILL"])

    def tick(self, sweep: subprocess.Popen | None) -> None:
        """Look at the processes once, and send what is due."""
        now, place = time.time(), self.grid.place
        for due, pid in [follower for follower in self.followers if follower[0] <= now]:
            send(pid, signal.SIGKILL, place)
            self.followers.remove((due, pid))
        alive = processes(place) if self.left else []
        for run in [process for process in alive if process.folder]:
            known = (run.pid, run.started)
            aim, name = self.fates.setdefault(known, self.draw_fate())
            doing = phase(run)
            if aim == doing:
                aim = now - run.started + self.rng.uniform(0, DELAYS[doing])
                self.fates[known] = (aim, name)
            if isinstance(aim, float) and now - run.started >= aim:
                self.fates[known] = ("nothing more", "")
                self.strike(run, name, f"a run, {doing}")
        if sweep is not None and self.left and now >= self.next_blow:
            target = next((process for process in alive if process.pid == sweep.pid), None)
            if target and self.next_blow:
                self.strike(target, self.rng.choice(["SIGKILL", "SIGTERM", "SIGHUP"]), "train_all.sh")
            self.next_blow = now + self.rng.uniform(0.1, 2) * self.typical

    def strike(self, process: Process, name: str, what: str) -> None:
        """Send a signal, if any is left to be sent, and note it with the length that the run's log has."""
        log = process.folder and process.folder / "run.log"
        position = log.stat().st_size if log and log.exists() else 0
        if self.left and send(process.pid, signal.Signals[name.split(",")[0]], self.grid.place):
            self.left -= 1
            self.events[f"{name} to {what}"].append((process.folder, position))
            if "then" in name:
                self.followers.append((time.time() + self.rng.uniform(0, 0.5), process.pid))

    def drive(self) -> Counter[int]:
        """Start the sweep until everything is finished and no process is left; return its exit statuses."""
        statuses: Counter[int] = Counter()
        while self.grid.unfinished() or not statuses[0]:
            deadline = time.monotonic() + PATIENCE
            # Not through a pipe, which what a killed sweep leaves running would keep open.
            said = self.grid.place / "tmp" / f"said_{statuses.total()}"
            said.parent.mkdir(parents=True, exist_ok=True)
            with open(said, "w") as stdout:
                sweep = self.grid.start(stdout=stdout)
            while sweep.poll() is None and time.monotonic() < deadline:
                self.tick(sweep)
                time.sleep(TICK)
            statuses[sweep.poll()] += 1
            if sweep.poll() == 0 and self.grid.unfinished() and "left to another sweep" not in said.read_text():
                self.lies.append(f"exit status 0, but {self.grid.unfinished()} were not finished")
            if time.monotonic() > deadline:
                raise SystemExit(f"stuck: {self.grid.unfinished()} of {self.grid.place}")
            while not self.grid.unfinished() and processes(self.grid.place):
                time.sleep(0.05)  # what the killed sweeps left running
        return statuses


def what_followed(folder: Path | None, position: int) -> list[str]:
    """How a run that was hit ended and went on, by what its log says from then on."""
    if folder is None:
        return []
    log = (folder / "run.log").read_bytes()[position:].decode(errors="replace")
    ended = re.search(r"^== (?:ended with exit status (\d+)|20)", log, re.M)
    said = f"exit status {ended[1]}" if ended and ended[1] else "its sweep was gone"
    names = {"Resuming from": "resumed", "starting afresh": "started afresh", "a finished run": "had finished"}
    names |= {"resuming from the start": "started afresh"}
    went_on = re.search("|".join(names), log[ended.end() :]) if ended else None
    return [said, names[went_on[0]] if went_on else "no further start"]


def drill(grid: Grid, expected: Grid, kills: int, typical: float, seed: int, part: str = "") -> Iterator[tuple]:
    """Disturb a sweep until it is finished; yield the table's rows. `part` is the only subfolder that it fills."""
    killer = Killer(grid, random.Random(seed), typical, kills)
    statuses = killer.drive()
    wrong = differences(grid.results, expected.results, part)
    for event, hits in sorted(killer.events.items()):
        counts = Counter(word for hit in hits for word in what_followed(*hit))
        happened = ", ".join(f"{count} {word}" for word, count in counts.most_common())
        hit_folders = {str(folder.relative_to(grid.results)) for folder, _ in hits if folder}
        spoilt = [line for line in wrong if any(line.startswith(name) for name in hit_folders)]
        yield event, len(hits), happened or "the sweep was started again", spoilt
    status, output = grid.sweep()
    count = len(grid.folders())
    yield (
        f"the {count} runs of {grid.place.name} after {kills - killer.left} signals",
        sum(statuses.values()),
        "sweeps: "
        + ", ".join(
            f"{n} {'killed' if key < 0 else f'with exit status {key}'}" for key, n in sorted(statuses.items())
        ),
        wrong
        + killer.lies
        + done_twice(grid)
        # A few runs may end before the moments drawn for them, of many not half of them.
        + ([f"{killer.left} signals were not sent"] if 2 * killer.left > kills else [])
        + ([] if status == 0 and f"0 done, {count} skipped" in output else [output]),
    )


# The planted faults


def expect(said: str, *words: str) -> list[str]:
    """The words that a sweep should have said and didn't."""
    return [f"not said: {word}" for word in words if word not in said]


def halve(path: Path) -> None:
    """Truncate a file to half its length."""
    os.truncate(path, path.stat().st_size // 2)


def stop_with_checkpoints(grid: Grid) -> list[str]:
    """Stop each run of a sweep by SIGTERM once it has a complete checkpoint; return what is wrong."""
    sweep = grid.start()
    asked: set[Path | None] = {None}
    while sweep.poll() is None:
        for run in processes(grid.place):
            if run.folder not in asked and run_folder.last_complete_checkpoint(run.folder)[0]:
                send(run.pid, signal.SIGTERM, grid.place)
                asked.add(run.folder)
        time.sleep(TICK)
    output, _ = sweep.communicate()
    if not all(run_folder.last_complete_checkpoint(folder)[0] for folder in grid.folders()):
        raise SystemExit(f"no checkpoint to be truncated: {output}")
    return [] if sweep.returncode == 75 else [f"exit status {sweep.returncode}: {output}"]


def plant(grid: Grid, undisturbed: Grid) -> Iterator[tuple]:
    """Four faults in the four runs of one sweep, which has to deal with each by itself."""
    stopped = grid.at(grid.place.name, seeds=grid.seeds.split()[0])
    yield "SIGTERM to a run with a checkpoint", 2, "exit status 75, of the sweep too", stop_with_checkpoints(stopped)
    alone, newer, empty, closed = grid.folders()
    halve(run_folder.checkpoints(alone)[0] / "adapter_model.safetensors")
    older = run_folder.checkpoints(newer)[0]
    later = older.with_name(f"checkpoint-{int(older.name.split('-')[1]) + 1}")
    shutil.copytree(older, later)
    halve(later / "optimizer.pt")
    shutil.copytree(undisturbed.results / empty.relative_to(grid.results), empty)
    (empty / "eval_results.json").write_text("")
    closed.mkdir()
    closed.chmod(0o555)
    # Nothing is read-only to root, unless it gives that right up.
    prefix = ("setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override") if not os.getuid() else ()
    status, output = grid.sweep(prefix=prefix)
    left = [str(path) for path in closed.iterdir()]
    closed.chmod(0o755)
    again, said = grid.sweep()
    empty_name = empty.relative_to(grid.place)
    rows = [
        (alone, "the only checkpoint's weights truncated", "started afresh", "is not used, resuming from the start"),
        (
            newer,
            "the latest checkpoint's optimizer truncated",
            "resumed from the one before",
            f"Resuming from {older.relative_to(grid.place)}",
        ),
        (empty, "an empty eval_results.json", "run again", f"{empty_name} is run again: eval_results.json"),
    ]
    for folder, event, happened, words in rows:
        log = output + (folder / "run.log").read_text(errors="replace")
        part = str(folder.relative_to(grid.results))
        yield event, 1, happened, expect(log, words) + differences(grid.results, undisturbed.results, part)
    wrong = expect(output, "can't be written", "3 done, 0 skipped") + left + [output] * (status != 1)
    wrong += expect(said, "1 done, 3 skipped") + [said] * (again != 0)
    happened = "one failed run, the others done; done by the next sweep, when it could be written again"
    yield "a read-only output folder", 1, happened, wrong + differences(grid.results, undisturbed.results)


def other_arguments(grid: Grid, undisturbed: Grid) -> Iterator[tuple]:
    """A sweep of other arguments over finished runs."""
    shutil.copytree(undisturbed.results, grid.results)
    status, output = grid.sweep("--num_train_epochs", "9")
    words = [f"refused: {folder.relative_to(grid.place)} holds another run" for folder in grid.folders()]
    wrong = expect(output, "--num_train_epochs 9 (the folder has 4)", *words) + [output] * (status != 1)
    happened = "refused, with the difference named; nothing touched"
    yield "a sweep of other arguments", len(words), happened, wrong + differences(grid.results, undisturbed.results)


def two_sweeps(grid: Grid, undisturbed: Grid) -> Iterator[tuple]:
    """Two sweeps at once over one root."""
    sweeps = [grid.start(), grid.start()]
    outputs = [sweep.communicate(timeout=PATIENCE)[0] for sweep in sweeps]
    done = [int(re.search(r"(\d+) done", output)[1]) for output in outputs]
    wrong = [output for sweep, output in zip(sweeps, outputs, strict=True) if sweep.returncode]
    wrong += done_twice(grid) + differences(grid.results, undisturbed.results)
    happened = f"the {len(grid.folders())} runs were shared, {done[0]} and {done[1]}, none done twice"
    yield "two sweeps at once over one root", 1, happened, wrong


def ignored_signals(grid: Grid, undisturbed: Grid, part: str) -> Iterator[tuple]:
    """A sweep that was started as by nohup in the background of a script; `part` is the subfolder that it fills."""
    sweep = grid.start(ignored=(signal.SIGINT, signal.SIGHUP))
    while sweep.poll() is None and not any(process.folder for process in processes(grid.place)):
        time.sleep(TICK)
    for number in (signal.SIGINT, signal.SIGHUP):
        send(sweep.pid, number, grid.place)
    output, _ = sweep.communicate(timeout=PATIENCE)
    wrong = differences(grid.results, undisturbed.results, part) + [output] * (sweep.returncode != 0)
    wrong += expect(output, f"{len(grid.folders())} done, 0 skipped")
    yield "SIGINT and SIGHUP to train_all.sh, started with both ignored", 2, "it went on to its end", wrong


def full_disk(grid: Grid, event: str, sweep: Callable[[], tuple[int, str]]) -> tuple:
    """A sweep that runs out of disk, and the next one, after there was room again."""
    status, output = sweep()
    wrong = expect(output, "disk full") + [output] * (status != 1)
    for folder in grid.folders():
        wrong += [f"{path} is not complete" for path in folder.glob("*.json") if run_folder.read_json(path) is None]
        wrong += [f"{path} was left" for path in [*folder.glob("run.json"), *folder.glob(".*.tmp")]]
    return event, len(grid.folders()), "one line says so, no result; done by the next sweep", wrong


def small_disks(grid: Grid, undisturbed: Grid) -> Iterator[tuple]:
    """A limit on the size of files, and a small disk where root may mount one."""
    shutil.copytree(undisturbed.place / "cache", grid.place / "cache")  # else the data's cache is what doesn't fit
    row = full_disk(grid, "no file above 30 kB (EFBIG)", lambda: grid.sweep(limit=30_000))
    status, output = grid.sweep()
    wrong = differences(grid.results, undisturbed.results) + [output] * (status != 0)
    yield *row[:3], row[3] + wrong
    shutil.rmtree(grid.results)
    grid.results.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(grid.results)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        yield "a full disk (a tmpfs of 120 kB)", 0, "not tried: mounting is not allowed here", []
        return
    try:
        row = full_disk(grid, "a full disk (a tmpfs of 120 kB, ENOSPC)", grid.sweep)
        subprocess.run(["mount", "-o", "remount,size=64m", str(grid.results)], check=True)
        status, output = grid.sweep()
        wrong = differences(grid.results, undisturbed.results) + [output] * (status != 0)
        yield *row[:3], row[3] + wrong
    finally:
        subprocess.run(["umount", str(grid.results)], check=True)


# The whole


def undisturbed_sweep(grid: Grid) -> float:
    """Run a sweep that nobody disturbs, and return a run's median duration in seconds."""
    status, output = grid.sweep()
    if status or grid.unfinished():
        raise SystemExit(f"the undisturbed sweep failed:\n{output}")
    lines = (grid.results / "joblog.tsv").read_text().splitlines()[1:]
    return statistics.median(float(line.split("\t")[2]) for line in lines)


def make_tiny(world: Path) -> None:
    """Make the models and data."""
    command = [sys.executable, str(REPOSITORY / "tests" / "make_tiny.py"), str(world / "tiny")]
    subprocess.run(command, check=True, capture_output=True)


def all_rows(world: Path, args: argparse.Namespace) -> Iterator[tuple]:
    """Every part of the drill, as rows of the table."""
    make_tiny(world)
    small = Grid(world / "undisturbed_small", "lora:4", "mrpc stsb", "1 2")
    whole = small if args.quick else Grid(world / "undisturbed", "lora:4 randlora:8 vera:16", "mrpc stsb", "1 2 3 4")
    typical = undisturbed_sweep(whole)
    yield f"an undisturbed sweep of {len(whole.folders())} runs", 1, f"a run took {typical:.1f} s (median)", []
    if args.quick:
        one_seed = whole.at("disturbed", seeds="1")
        yield from drill(one_seed, whole, args.kills, typical, args.seed, "lora4_roberta/1")
    else:
        yield from drill(whole.at("disturbed"), whole, args.kills, typical, args.seed)
        best = whole.at("best_epoch_undisturbed", seeds="5", flags=BEST_EPOCH)
        typical = undisturbed_sweep(best)
        yield from drill(best.at("best_epoch"), best, args.kills // 4, typical, args.seed)
        undisturbed_sweep(small)
    yield from plant(small.at("planted"), small)
    yield from other_arguments(small.at("other_arguments"), small)
    yield from ignored_signals(small.at("ignored_signals", seeds="1"), small, "lora4_roberta/1")
    if not args.quick:
        yield from two_sweeps(small.at("two_sweeps"), small)
        yield from small_disks(small.at("small_disk"), small)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, help="signals to the first grid (default: 64, quick: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the killer's draws (default: 0)")
    parser.add_argument("--quick", action="store_true", help="few runs, no full disk and no two sweeps at once")
    parser.add_argument("--keep", help="keep all files in this folder, which must not exist")
    args = parser.parse_args()
    args.kills = args.kills or (4 if args.quick else 64)
    return args


def main() -> int:
    """Run the drill, print the table, and return the exit status."""
    args = parse_arguments()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left running
    world = Path(args.keep or tempfile.mkdtemp()).resolve()
    world.mkdir(parents=True, exist_ok=args.keep is None)
    wrong = []
    print(f"{len(os.sched_getaffinity(0))} cores, 1 thread a run, JOBS=2, --kills {args.kills} --seed {args.seed}\n")
    print("| event | times | what happened | result |\n| --- | --- | --- | --- |", flush=True)
    try:
        for event, times, happened, faults in all_rows(world, args):
            print(f"| {event} | {times} | {happened} | {'DIFFERS' if faults else 'as it should be'} |", flush=True)
            wrong += [f"{event}: {fault}" for fault in faults]
    finally:
        for place in [path for path in world.iterdir() if path.is_dir()]:
            for process in processes(place):
                send(process.pid, signal.SIGKILL, place)
        if args.keep is None:
            shutil.rmtree(world, ignore_errors=True)
    print(f"\n{time.monotonic() - began:.0f} s", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
