#!/usr/bin/env python
"""Put what benchmarks/gpu.sh measured into one file, with what it makes of the grid, and print the lines for docs/.

    python -m benchmarks.gpu_report steps.json jobs.json            writes results/gpu_<card>.json
    python -m benchmarks.gpu_report steps.json jobs.json --quick    only prints

The grid is recipes/randlora.tsv's: a run of ten epochs for every model, adapter, task and seed, in fp16. Its GPU-hours
are those of the training steps alone; a run's start and its one evaluation come on top.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.bench_grid import TASKS
from benchmarks.bench_operators import BATCH
from benchmarks.gpu_jobs import EPOCHS
from benchmarks.gpu_steps import LENGTHS, RANKS

RESULTS = Path(__file__).resolve().parents[1] / "results"
SEEDS = 5
# Whose hours, and of which batches: the authors' script pads every row.
SIDES = {"the authors' way": ("PEFT", "full"), "PEFT, padded": ("PEFT", None), "ours": ("ours", None)}


def grid_hours(cases: dict[str, dict[str, Any]], size: str, side: str) -> float | None:
    """Hours of one size's share of the grid, one run after the other; None where a case wasn't measured."""
    kind, lengths = SIDES[side]
    names = [f"{adapter} r{rank}, {kind}" for adapter, rank in RANKS[size].items()]
    if not all(name in cases for name in names):
        return None
    seconds = sum(
        SEEDS * EPOCHS * -(-rows // BATCH) * cases[name]["step"][lengths or task]
        for name in names
        for task, (rows, *_) in TASKS.items()
    )
    return seconds / 3600


def steps_table(cases: dict[str, dict[str, Any]]) -> list[str]:
    """Times and counts of one size and precision, in Markdown."""
    columns = [*LENGTHS, "eval cola", "eval full", "peak MiB", "kernels", "operators", "waits"]
    lines = [f"| ms | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for name, found in cases.items():
        times = [found["step"][length] for length in LENGTHS] + [found["evaluation"][key] for key in ("cola", "full")]
        cells = [f"{1000 * seconds:.1f}" for seconds in times]
        cells += [f"{found.get('peak_MiB', 0):,.0f}", f"{found['kernels']:,}", f"{found['operators']:,}"]
        cells.append(str(max(found["waits"], found["counted_waits"])) + (" (error)" if "first_wait" in found else ""))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def jobs_table(jobs: dict[str, dict[str, Any]]) -> list[str]:
    """Runs an hour by runs at once, in Markdown."""
    lines = ["| runs at once | steps a second | runs an hour | start, s |", "| --- | ---: | ---: | ---: |"]
    for name, found in jobs.items():
        if "problem" in found:
            lines.append(f"| {name} | {found['problem']} | | |")
        else:
            numbers = f"{found['steps_a_second']:.2f} | {found['runs_an_hour']:.2f} | {found['start_seconds']:.0f}"
            lines.append(f"| {name} | {numbers} |")
    return lines


def hours_lines(steps: dict[str, Any], jobs: dict[str, Any]) -> dict[str, Any]:
    """GPU-hours of the grid by side, one run at a time and with the best number at once; None where one is missing."""
    results = steps["results"]
    hours: dict[str, Any] = {}
    for side in SIDES:
        by_size = {
            size: grid_hours(cases.get("fp16") or next(iter(cases.values())), size, side)
            for size, cases in results.items()
        }
        hours[side] = None if None in by_size.values() else sum(by_size.values())
    measured = {name: found["steps_a_second"] for name, found in jobs["jobs"].items() if "problem" not in found}
    best = max(measured, key=measured.__getitem__, default=None)
    if best is not None and "1" in measured and hours["ours"] is not None:
        hours[f"ours, at once: {best}"] = hours["ours"] * measured["1"] / measured[best]
    return hours


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", type=Path, help="what gpu_steps wrote")
    parser.add_argument("jobs", type=Path, help="what gpu_jobs wrote")
    parser.add_argument("--quick", action="store_true", help="write no file")
    return parser.parse_args()


def main() -> None:
    """Print the lines, and write the file."""
    args = parse_arguments()
    steps, jobs = (json.loads(path.read_text(encoding="utf-8")) for path in (args.steps, args.jobs))
    machine = ", ".join(f"{name} {steps[name]}" for name in ("card", "torch", "cuda", "transformers"))
    print(f"\n{machine}")
    for size, precisions in steps["results"].items():
        for precision, cases in precisions.items():
            print(f"\nRoBERTa-{size}, {precision}, a step of {BATCH} rows:\n")
            print("\n".join(steps_table(cases)))
    print("\n" + "\n".join(jobs_table(jobs["jobs"])))
    hours, n_runs = hours_lines(steps, jobs), SEEDS * len(TASKS) * 3 * len(steps["results"])
    print(f"\n| GPU-hours of {n_runs} runs' training steps | |\n| --- | ---: |")
    for side, found in hours.items():
        print(f"| {side} | {'not measured' if found is None else f'{found:.1f}'} |")
    if not args.quick:
        path = RESULTS / f"gpu_{re.sub('[^a-z0-9]+', '_', steps['card'].lower())}.json"
        path.write_text(json.dumps(steps | {"jobs": jobs["jobs"], "grid_hours": hours}) + "\n", encoding="utf-8")
        print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
