#!/usr/bin/env python
"""Measure what several runs at once on one GPU get done, with and without NVIDIA's MPS.

    python -m benchmarks.gpu_jobs --out jobs.json            1, 2, 4 and 8 runs, RoBERTa-base: at most 4 minutes
    python -m benchmarks.gpu_jobs --out jobs.json --quick    1 and 2 tiny runs for an instant, on a CPU too: for CI

Each run is a process of its own, as in a sweep, and MPS is the sweep's (glue_peft/mps.py): RandLoRA in fp16 through
run_glue.py's Trainer, on random weights. Its batches are the grid's mix: each has rows of one task's lengths, and each
task comes as often as in the grid. Once all runs have made some steps, all are timed over the same seconds. The runs
an hour are RoBERTa-base's half of the grid, of ten epochs each, without their start, whose seconds stand beside them:
until all were warm, with torch's import and the making of the model.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.bench_grid import TASKS
from benchmarks.bench_operators import BATCH, PRECISIONS, build_trainer, make_rows
from benchmarks.gpu_steps import SIZES, cases_of, describe_machine, rows_of
from glue_peft import mps

EPOCHS = 10  # recipes/randlora.tsv
STEPS_A_RUN = sum(EPOCHS * -(-rows // BATCH) for rows, *_ in TASKS.values()) / len(TASKS)
WARM_UP = 5  # steps
PATIENCE = 180  # seconds until all runs have made these


class CountUntil(TrainerCallback):
    """Says when the run is warm, waits until all are, and counts the steps until the given time."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.began = self.until = 0.0
        self.steps = -1

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Wait for the other runs after the warm-up, then count steps until the time is over."""
        if state.global_step < WARM_UP:
            return
        if state.global_step == WARM_UP:
            synchronise()
            (self.folder / f"warm_{self.name}").touch()
            while not (self.folder / "until").exists():
                time.sleep(0.01)
            self.until = float((self.folder / "until").read_text())
            self.began = time.time()
        self.steps += 1
        if time.time() >= self.until:
            synchronise()
            control.should_training_stop = True
            found = {"steps": self.steps, "seconds": time.time() - self.began}
            (self.folder / f"found_{self.name}").write_text(json.dumps(found))


def synchronise() -> None:
    """Wait until the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def mixed_batches(collate: Callable[[list], Any], seed: int) -> Callable[[list], Any]:
    """Hand a collator batches of one task each, as often as a task has them."""
    rows, drawn = {task: rows_of(task) for task in TASKS}, random.Random(seed)
    shares = [training_rows for training_rows, *_ in TASKS.values()]

    def collated(_: list) -> Any:
        """Return a batch of one task, drawn by the tasks' sizes."""
        (task,) = drawn.choices(list(TASKS), shares)
        return collate(drawn.choices(rows[task], k=BATCH))

    return collated


def work(folder: Path, name: str, size: str) -> None:
    """Be one of the runs."""
    warnings.filterwarnings("ignore", module="transformers|peft")
    case = next(case for case in cases_of(size) if case.startswith("randlora") and case.endswith("ours"))
    precision = "fp16" if torch.cuda.is_available() else "bf16"
    with tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(None):
        flags = [*cases_of(size)[case], *PRECISIONS[precision], "--max_steps", "1000000"]
        trainer = build_trainer(flags, SIZES[size], output)
        trainer.train_dataset = make_rows(200)
        trainer.data_collator = mixed_batches(trainer.data_collator, seed=int(name))
        trainer.add_callback(CountUntil(folder, name))
        trainer.train()


def measure(n_runs: int, with_mps: bool, args: argparse.Namespace) -> dict[str, Any]:
    """Run as many at once; return the steps a second of all together and a start's seconds, or what went wrong."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    slot = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // n_runs))}
    slots = [slot | ({"CUDA_VISIBLE_DEVICES": gpu} if torch.cuda.is_available() else {})] * n_runs
    settings = {"PYTHON": sys.executable, "MPS": "1" if with_mps else "0"}
    with tempfile.TemporaryDirectory() as folder, mps.shared_gpus(settings, slots, n_runs) as (own, lines):
        if with_mps and not any("MPS is on" in line for line in lines):
            return {"problem": "".join(lines).removeprefix("train_all.sh: ") or "no GPU is shared here"}
        command = [sys.executable, "-m", "benchmarks.gpu_jobs", "--size", args.size, "--folder", folder, "--work"]
        began = time.time()
        runs = [
            subprocess.Popen([*command, str(number)], env=os.environ | variables)
            for number, variables in enumerate(own)
        ]
        try:
            while len(list(Path(folder).glob("warm_*"))) < n_runs:
                if time.time() > began + PATIENCE or any(run.poll() is not None for run in runs):
                    return {"problem": "not all runs got warm: out of memory?"}
                time.sleep(0.01)
            start = time.time() - began
            until = Path(folder) / "until_"
            until.write_text(str(time.time() + args.seconds))
            until.rename(until.with_name("until"))
            for run in runs:
                run.wait(timeout=PATIENCE)
            found = [json.loads(path.read_text()) for path in Path(folder).glob("found_*")]
        finally:
            for run in runs:
                run.kill()
    if len(found) < n_runs:
        return {"problem": "a run failed"}
    return {"steps_a_second": sum(one["steps"] / one["seconds"] for one in found), "start_seconds": start}


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file of the JSON (default: the last line)")
    parser.add_argument("--quick", action="store_true", help="a tiny model, as few steps as can be")
    parser.add_argument("--size", choices=SIZES, default="base", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", metavar="NUMBER", help=argparse.SUPPRESS)  # be one of the runs, in --folder
    args = parser.parse_args()
    args.jobs, args.seconds = ([1, 2], 0.5) if args.quick else ([1, 2, 4, 8], 10)
    args.size = "tiny" if args.quick else args.size
    return args


def main() -> None:
    """Measure, print a line each, and write the JSON."""
    args = parse_arguments()
    if args.work is not None:
        work(args.folder, args.work, args.size)
        return
    machine = describe_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print(
        f"{machine['card']}: runs at once on it, RandLoRA, {args.size}; a run is {STEPS_A_RUN:,.0f} steps", flush=True
    )
    results: dict[str, Any] = {}
    for with_mps in (False, True):
        for n_runs in args.jobs[with_mps:]:  # one run alone needs no MPS
            name = f"{n_runs}{', MPS' if with_mps else ''}"
            found = results[name] = measure(n_runs, with_mps, args)
            if "problem" in found:
                print(f"  {name:8s} {found['problem']}", flush=True)
                continue
            found["runs_an_hour"] = found["steps_a_second"] * 3600 / STEPS_A_RUN
            speed = f"{found['steps_a_second']:7.2f} steps a second, {found['runs_an_hour']:6.2f} runs an hour"
            print(f"  {name:8s} {speed}, {found['start_seconds']:.0f} s of start", flush=True)
    text = json.dumps(machine | {"steps_a_run": STEPS_A_RUN, "jobs": results})
    print(text) if args.out is None else args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
