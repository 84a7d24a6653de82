#!/usr/bin/env python
"""Time what a sweep costs: the same runs in turn and two at a time, and what it adds to a run.

    python -m benchmarks.bench_sweep            12 tiny runs, three times in turn and three times with JOBS=2
    python -m benchmarks.bench_sweep --quick    2 runs once, for CI

First real runs, on random models and data made on the spot, each with one thread, so that the two ways differ in
nothing else. Then train_all.sh with a stand-in for the interpreter, which does nothing but leave what marks a run as
finished: of this sweep's time, what the same commands take when a shell runs them as a plain list is taken off; the
rest is the cost of everything but run_glue.py, given per run as wall time and as processor time. With JOBS=2 the list
takes half as long, by assumption. Last the sweep that finds everything finished.

All are run alternately; each line has the median and the smallest and largest value. The last line is one JSON object.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
FLAGS = (
    "--dataset_path tiny/glue --num_train_epochs 2 --per_device_train_batch_size 16 --learning_rate 5e-3 "
    "--max_train_samples 128 --log_level error --disable_tqdm True"
).split()
STAND_IN = """#!/bin/sh
case $1 in *run_glue.py) shift ;; *) exec PYTHON "$@" ;; esac
flags=$(printf ', "%s"' "$@")
while [ "$1" != --output_dir ]; do shift; done
mkdir -p "$2"
echo '{"eval_accuracy": 0.5, "eval_matthews_correlation": 0.5, "eval_combined_score": 0.5}' >"$2/eval_results.json"
echo "{\\"command\\": [${flags#, }]}" >"$2/run.json"
"""


def surroundings(world: Path) -> dict[str, str]:
    """The environment without what steers a sweep, and with an own cache."""
    steering = "RECIPE TAG DRY_RUN STATUS MISSING JOBS GPUS JOBS_PER_GPU RETRIES MODELS ADAPTERS TASKS SEEDS".split()
    kept = {k: v for k, v in os.environ.items() if k not in steering and not k.startswith("SLURM")}
    own = {"RESULTS": "results", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(world / "cache")}
    return kept | own


def measure(command: list[str], world: Path, **variables: str) -> tuple[float, float]:
    """Seconds of wall and of processor time of a command that has to succeed."""
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(command, cwd=world, env=surroundings(world) | variables, capture_output=True, text=True)
    seconds, after = time.perf_counter() - start, os.times()
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}\nexit status {done.returncode}: {command}")
    children = (after.children_user + after.children_system) - (before.children_user + before.children_system)
    return seconds, children


def alternate(ways: dict[str, Callable[[], float | dict]], repeats: int) -> dict[str, list]:
    """What each way returned, in turn, `repeats` times."""
    found: dict[str, list] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            found[name].append(way())
    return found


def spread(values: list[float], unit: str, digits: int = 1) -> str:
    """The median and the smallest and largest value."""
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return f"{statistics.median(values):7.{digits}f} {unit} ({low} to {high})"


def real_runs(world: Path, args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds that the same runs take in turn and two at a time."""
    make = [sys.executable, str(REPOSITORY / "tests" / "make_tiny.py"), str(world / "tiny")]
    subprocess.run(make, check=True, capture_output=True)
    grid = {"MODELS": "tiny/roberta", "ADAPTERS": "lora:4", "TASKS": "mrpc", "PYTHON": sys.executable}
    grid["SEEDS"] = " ".join(map(str, range(1, args.runs + 1)))
    command = ["bash", str(REPOSITORY / "train_all.sh"), *FLAGS]

    def sweep(**variables: str) -> float:
        """Seconds of one whole sweep."""
        shutil.rmtree(world / "results", ignore_errors=True)
        return measure(command, world, **grid, **variables)[0]

    measure(command, world, **(grid | {"SEEDS": "1"}))  # from here on files and cache are warm
    return alternate({"in turn": sweep, "JOBS=2": lambda: sweep(JOBS="2")}, args.repeats)


def cost_of_the_sweep(world: Path, args: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Wall and processor seconds with the stand-in: a plain list of the commands, the sweep both ways, and nothing."""
    stand_in = world / "stand_in"
    stand_in.write_text(STAND_IN.replace("PYTHON", sys.executable))
    stand_in.chmod(0o755)
    sweep = ["bash", str(REPOSITORY / "train_all.sh")]
    grid = {"PYTHON": str(stand_in), "SEEDS": args.seeds}
    environment = surroundings(world) | grid | {"DRY_RUN": "1"}
    lines = subprocess.run(sweep, env=environment, capture_output=True, text=True, check=True).stdout
    (world / "lines.sh").write_text(lines)

    def afresh(command: list[str], **variables: str) -> tuple[float, float]:
        """Time of a command on an empty root."""
        shutil.rmtree(world / "results", ignore_errors=True)
        return measure(command, world, **grid, **variables)

    ways = {
        "list": lambda: afresh(["bash", "lines.sh"]),
        "in turn": lambda: afresh(sweep),
        "finished": lambda: measure(sweep, world, **grid),
        "JOBS=2": lambda: afresh(sweep, JOBS="2"),
    }
    return alternate(ways, args.repeats + 2) | {"runs": len(lines.splitlines())}


def print_costs(costs: dict, runs: int) -> dict[str, list[float]]:
    """Print the milliseconds that the sweep adds to a run, and return them."""
    added: dict[str, list[float]] = {}
    for name, share in (("in turn", 1), ("JOBS=2", 0.5)):
        pairs = list(zip(costs[name], costs["list"], strict=True))
        added[f"{name}, wall"] = [1000 * (sweep[0] - share * plain[0]) / runs for sweep, plain in pairs]
        added[f"{name}, processor"] = [1000 * (sweep[1] - plain[1]) / runs for sweep, plain in pairs]
    added["everything finished, wall"] = [1000 * seconds / runs for seconds, _ in costs["finished"]]
    for name, values in added.items():
        print(f"  {name:26s} {spread(values, 'ms')}")
    return added


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=12, help="real runs (default: 12)")
    parser.add_argument("--repeats", type=int, default=3, help="of each way (default: 3)")
    parser.add_argument("--quick", action="store_true", help="2 real runs and a fifth of the stand-in's, once")
    args = parser.parse_args()
    args.seeds = "1" if args.quick else "1 2 3 4 5"
    if args.quick:
        args.runs, args.repeats = 2, 1
    return args


def main() -> None:
    """Measure, print the lines and the JSON."""
    args = parse_arguments()
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, one thread a run, {args.repeats} repeats: median (smallest to largest)")
    with tempfile.TemporaryDirectory() as folder:
        costs = cost_of_the_sweep(Path(folder), args)
        runs = costs.pop("runs")
        print(f"\nWhat the sweep adds to each of {runs} runs")
        added = print_costs(costs, runs)
        shutil.rmtree(Path(folder) / "results")
        print(f"\n{args.runs} real runs")
        seconds = real_runs(Path(folder), args)
    for name, values in seconds.items():
        print(f"  {name:26s} {spread(values, 's')}")
    ratios = [one / two for one, two in zip(*seconds.values(), strict=True)]
    print(f"  {'in turn / JOBS=2':26s} {spread(ratios, ' ', 2)}")
    print(json.dumps({"cores": cores, "runs": args.runs, "seconds": seconds, "added_ms": added}))


if __name__ == "__main__":
    main()
