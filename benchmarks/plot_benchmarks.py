#!/usr/bin/env python
"""Draw the benchmarks: what PEFT's layers and ours cost, and what that makes of the grid's work.

    python -m benchmarks.plot_benchmarks results/bench_adapters.json results/bench_grid.json results/speed.png

The two JSON files are the last lines that bench_adapters.py and bench_grid.py print. The first panel has a training
step with each adapter, relative to PEFT's LoRA r 4, and as lines the two ends (frozen base and full fine-tuning); the
second an evaluation, relative to the plain model; the third a training step on each task's own lengths, the authors'
way / ours. Marks and bars are medians (the third panel: of the sums), whiskers reach from the smallest to the largest
ratio.

Exit status: 0 if the figure was written, else 2.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glue_peft.errors import UsageError
from glue_peft.run_folder import read_json
from glue_peft.tables.figure_style import COLOURS, WIDTH, check_figure_file, write_figure
from glue_peft.tasks import title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIDES = {  # how each side looks: they differ in colour, lightness, shape and height
    "PEFT": {"color": COLOURS[1], "marker": "s", "label": "PEFT's layers"},
    "ours": {"color": COLOURS[0], "marker": "o", "label": "ours"},
}
ENDS = {"frozen base": ":", "full fine-tuning": "--"}


def main(argv: list[str] | None = None) -> int:
    """Read both files, write the figure, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", metavar="ADAPTERS.json", type=Path, help="last line of bench_adapters.py")
    parser.add_argument("grid", metavar="GRID.json", type=Path, help="last line of bench_grid.py")
    parser.add_argument("out", metavar="OUT", type=Path, help="the figure to write: .png, .pdf or .svg")
    args = parser.parse_args(argv)
    try:
        check_figure_file(args.out)
        adapters = read_benchmark(args.adapters, ("training_step", "evaluation"), "bench_adapters.py")
        grid = read_benchmark(args.grid, ("adapters",), "bench_grid.py")
        try:
            figure = draw(adapters, grid)
        except (KeyError, TypeError, StopIteration) as error:
            raise UsageError(f"{args.adapters}, {args.grid}: a benchmark's line without {error}") from error
        write_figure(figure, args.out)
    except UsageError as error:
        print(f"plot_benchmarks.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def read_benchmark(path: Path, parts: tuple[str, ...], script: str) -> dict[str, Any]:
    """Return a benchmark's JSON object; raises UsageError where the file is not that script's."""
    content = read_json(path)
    if content is None or not all(isinstance(content.get(part), dict) for part in parts):
        raise UsageError(f"{path}: not the JSON line of {script}")
    return content


def draw(adapters: dict[str, Any], grid: dict[str, Any]) -> "Figure":
    """Return the figure: three panels side by side, and the legend above."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    step, evaluation, tasks = figure.subplots(1, 3)
    draw_sides(step, adapters["training_step"])
    step.set_title("time of a step / PEFT's lora r4", fontsize=9)
    for name, line in ENDS.items():
        step.axvline(adapters["training_step"][name]["ratio"], color="0.35", linestyle=line, label=name)
    draw_sides(evaluation, adapters["evaluation"])
    evaluation.set_title("evaluation time / plain model", fontsize=9)
    name, results = next(iter(grid["adapters"].items()))
    draw_tasks(tasks, results)
    tasks.set_title(f"{name}, times faster", fontsize=9)
    for axes in (step, evaluation, tasks):
        axes.set_xlim(left=0)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", linewidth=0.4, alpha=0.5)
        axes.set_axisbelow(True)
    figure.legend(*step.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9, frameon=False)
    figure.supxlabel(f"{machine(adapters)}; right: {machine(grid)}", fontsize=8)
    return figure


def draw_sides(axes: "Axes", rows: dict[str, dict[str, float]]) -> None:
    """Draw one line an adapter, PEFT's mark above and ours below it."""
    names = [name.removesuffix(", PEFT") for name in rows if name.endswith(", PEFT")]
    for offset, (side, look) in zip((-0.15, 0.15), SIDES.items(), strict=True):
        chosen = [rows[f"{name}, {side}"] for name in names]
        axes.errorbar(
            [row["ratio"] for row in chosen],
            [position + offset for position in range(len(names))],
            xerr=whiskers(chosen),
            linestyle="none",
            markersize=7,
            markeredgecolor="black",
            capsize=2,
            **look,
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def draw_tasks(axes: "Axes", results: dict[str, Any]) -> None:
    """Draw a bar a task, the fastest first, and one for the grid's mix of them."""
    tasks = sorted(results["tasks"].items(), key=lambda item: -item[1]["ratio"])
    rows = [row for _, row in tasks]
    axes.barh(range(len(rows)), [row["ratio"] for row in rows], xerr=whiskers(rows), color=COLOURS[3], capsize=2)
    axes.barh(len(rows), results["grid"], color=COLOURS[0])
    axes.set_yticks(range(len(rows) + 1), [title(name) for name, _ in tasks] + ["grid's mix"])
    axes.invert_yaxis()
    for position, ratio in enumerate([*(row["ratio"] for row in rows), results["grid"]]):
        colour = "white" if position == len(rows) else "black"
        axes.text(0.3, position, f"{ratio:.1f}", va="center", fontsize=8, color=colour)


def whiskers(rows: list[dict[str, float]]) -> list[list[float]]:
    """Distances from each ratio down to the smallest and up to the largest."""
    return [[row["ratio"] - row["low"] for row in rows], [row["high"] - row["ratio"] for row in rows]]


def machine(content: dict[str, Any]) -> str:
    """What the times were taken on, in a few words."""
    threads = f", {content['threads']} threads" if content["device"] == "cpu" else ""
    rows = f"{content['batch']} x {content['length']} tokens" if "length" in content else f"{content['batch']} rows"
    return f"{content['device']}, {content['dtype']}{threads}, {content['layers']} layers, batches of {rows}"


if __name__ == "__main__":
    sys.exit(main())
