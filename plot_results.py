"""Plot GLUE results: each task's seeds with mean and interval, and the average score against the adapter's size.

    python plot_results.py finetuned_results scores.png
    python plot_results.py finetuned_results/lora4 finetuned_results/vera256 5 scores.png

reads the folders as parse_results.py does, with the same options, and writes a PNG, PDF or SVG. One panel a task: a
small mark for each seed, a large one for the mean, and a bar for its 95 % t interval. Each ROOT has a colour of Okabe
and Ito's palette, which colour-blind readers can tell apart, and a marker of its own, which greyscale leaves. Hollow
marks are the values that papers printed for the same method and model (--no_published leaves them out;
`parse_results.py --published` says whose they are and in what their protocol differs). The last panel has the average
over the tasks against the trained parameters without the head, on a logarithmic axis; a row without run.json has no
place in it.
What is missing, dropped or odd among the runs is printed to stderr.

    python plot_results.py --tuning finetuned_results/lora4 finetuned_results/vera256 tuning.png

draws the search of learning rates behind such rows (TUNE=1 bash train_all.sh), whether or not their final runs are
there: above the score of each seed against the rate, below the score that a search of 1, 2, ... rates would have
reached, with its 95 % interval.

Exit status: 0 if the figure was written, else 2. Needs matplotlib, and SciPy for the intervals.
"""

import argparse
import math
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glue_peft.errors import OneLineParser, UsageError, run_script
from glue_peft.run_folder import SEARCH, plural
from glue_peft.tables.costs import seed_costs
from glue_peft.tables.estimates import interval_half_width
from glue_peft.tables.figure_style import COLOURS, MARKERS, SUFFIXES, check_figure_file, plain, write_figure
from glue_peft.tables.health import coverage_lines, health_lines
from glue_peft.tables.protocol import data_limits, epochs_in_words, has_all_seeds
from glue_peft.tables.published import PublishedRow, published_of
from glue_peft.tables.results import (
    SEEDS_PATTERN,
    Results,
    Row,
    add_arguments,
    read_results,
    row_names,
    wanted_tasks,
)
from glue_peft.tables.search import read_searches, rows_of_searches
from glue_peft.tables.search_figure import draw_search
from glue_peft.tasks import METRICS, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COLUMNS = 4


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; what is read is checked by read_results."""
    parser = OneLineParser(
        prog="plot_results.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser)
    parser.add_argument("out", metavar="OUT", type=Path, help=f"the figure to write: {', '.join(SUFFIXES)}")
    parser.add_argument("--no_published", action="store_true", help="leave out the papers' values")
    parser.add_argument("--tuning", action="store_true", help="draw the search of learning rates behind the rows")
    args = parser.parse_intermixed_args(argv)
    defaults = vars(parser.parse_args(["ROOT", "OUT"]))
    for name in defaults:
        if args.tuning and getattr(args, name) != defaults[name] and name not in ("roots", "out", "tasks", "tuning"):
            parser.error(f"--tuning goes with --tasks alone, not with --{name}")
    return args


def styles(rows: list[Row]) -> Iterator[tuple[int, Row, dict[str, Any]]]:
    """Yield each row with its position and its colour and marker."""
    for index, row in enumerate(rows):
        yield index, row, {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def draw_mean(axes: "Axes", x: float, values: list[float], style: dict[str, Any]) -> None:
    """Draw the mean with its 95 % interval."""
    half = interval_half_width(values)
    axes.errorbar(
        x,
        100 * statistics.fmean(values),
        yerr=None if half is None else 100 * half,
        markersize=8,
        capsize=3,
        linestyle="none",
        markeredgecolor="black",
        zorder=3,
        **style,
    )


def draw_published(axes: "Axes", x: float, y: float, style: dict[str, Any]) -> None:
    """Draw one printed value."""
    axes.plot(x, y, markersize=6, markerfacecolor="none", markeredgewidth=1.5, linestyle="none", zorder=4, **style)


def has_score(theirs: PublishedRow, task: str, results: Results) -> bool:
    """Say whether a published row has the task's score in the metric that is drawn."""
    return task in theirs.scores and theirs.scores[task].metric == results.metrics[task]


def draw_task(axes: "Axes", task: str, results: Results, published: dict[str, list[PublishedRow]]) -> None:
    """Draw one task: of each row the seeds on the left, mean and interval in the middle, the papers' on the right."""
    for index, row, style in styles(results.rows):
        values = list(row.scores(task).values())
        if not values:
            continue
        spread = [index - 0.28 + 0.02 * (position % 3) for position in range(len(values))]  # equal scores stay visible
        axes.scatter(spread, [100 * value for value in values], s=14, alpha=0.7, linewidths=0, **style)
        draw_mean(axes, index, values, style)
        for theirs in published[row.name]:
            if has_score(theirs, task, results):
                draw_published(axes, index + 0.25, theirs.scores[task].value, style)
    axes.set_title(f"{title(task)} ({METRICS[results.metrics[task]]})", fontsize=9)
    axes.set_xlim(-0.6, len(results.rows) - 0.4)
    axes.set_xticks([])


def draw_sizes(axes: "Axes", results: Results, published: dict[str, list[PublishedRow]]) -> None:
    """Draw the average over the tasks against the trained parameters without the head."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    sizes = []
    for _, row, style in styles(results.rows):
        averages = list(row.seed_averages(results.averaged_tasks).values())
        size = seed_costs(row, results.common_tasks)["adapter_parameters"]
        if averages and size:
            draw_mean(axes, size, averages, style)
            sizes.append(size)
        for theirs in published[row.name]:
            average = theirs.comparable_average(results)
            if average is not None and theirs.parameters:
                draw_published(axes, 1e6 * theirs.parameters, average.value, style)
                sizes.append(1e6 * theirs.parameters)
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 2, max(sizes) * 2)
    decades = math.log10(max(sizes) / min(sizes))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_xlabel("adapter parameters, without the head", fontsize=8)
    axes.set_title("average by adapter parameters", fontsize=9)


def draw(results: Results, published: dict[str, list[PublishedRow]]) -> "Figure":
    """Return the figure: a panel a task, one for the sizes where any is known, and the legend below."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    has_sizes = any(
        seed_costs(row, results.common_tasks)["adapter_parameters"] and row.seed_averages(results.averaged_tasks)
        for row in results.rows
    )
    n_panels = len(results.tasks) + has_sizes
    columns = min(MOST_COLUMNS, n_panels)
    lines = math.ceil(n_panels / columns)
    figure = Figure(figsize=(max(5.0, 2.6 * columns), 2.4 * lines + 1.1), layout="constrained")
    panels = [figure.add_subplot(lines, columns, position + 1) for position in range(n_panels)]
    for axes, task in zip(panels, results.tasks, strict=False):
        draw_task(axes, task, results, published)
    if has_sizes:
        draw_sizes(panels[-1], results, published)
    for axes in panels:
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", linewidth=0.4, alpha=0.5)
        axes.set_axisbelow(True)
    handles = [
        Line2D([], [], linestyle="none", markeredgecolor="black", label=plain(row.name), **style)
        for _, row, style in styles(results.rows)
    ]
    theirs_of_all = [theirs for of_row in published.values() for theirs in of_row]
    if any(has_score(theirs, task, results) for theirs in theirs_of_all for task in results.tasks):
        label = "hollow: from papers, each by its own protocol"
        handles.append(Line2D([], [], linestyle="none", marker="o", markerfacecolor="none", color="gray", label=label))
    longest = 0.6 + 0.075 * max(
        len(str(handle.get_label())) for handle in handles
    )  # inches at 9 points, with its mark
    fitting = max(1, min(4, len(handles), int(figure.get_figwidth() / longest)))
    figure.set_figheight(figure.get_figheight() + 0.22 * (math.ceil(len(handles) / fitting) - 1))
    figure.legend(handles=handles, loc="outside lower center", ncols=fitting, fontsize=9, frameon=False)
    seeds = plural(results.n_seeds, "seed") if has_all_seeds(results) else f"up to {results.n_seeds} seeds"
    text = f"Percent; each seed, mean and 95 % interval over {seeds}; {epochs_in_words(results)}"
    text += "".join(f"; {limit}" for limit in data_limits(results.rows, results.tasks))
    if results.drop_collapsed:
        text += f"; collapsed and diverged runs dropped: {results.n_dropped}"
    figure.suptitle(text, fontsize=9)
    return figure


def tuning_figure(args: argparse.Namespace) -> "Figure":
    """Return the figure of the search behind the rows; raises UsageError where there is none."""
    *others, last = args.roots
    words = others if others and re.fullmatch(SEEDS_PATTERN, last) else args.roots
    folders = [folder for word in words for folder in rows_of_searches(Path(word))]
    roots = dict(zip(row_names([str(folder) for folder in folders]), folders, strict=True))
    searches = read_searches(roots, wanted_tasks(args.tasks))
    for name, root in roots.items():
        if not searches[name]:
            expected = f"{root.parent / SEARCH}/{root.name}_lr<rate>/<seed>/<task>"
            raise UsageError(f"--tuning: no finished run of a search of {root} (expected are folders {expected})")
    return draw_search(
        searches, [task for task in wanted_tasks(args.tasks) if any(task in of_row for of_row in searches.values())]
    )


def main(argv: list[str] | None = None) -> int:
    """Write the figure; raises UsageError."""
    args = parse_arguments(argv)
    check_figure_file(args.out)
    if args.tuning:
        write_figure(tuning_figure(args), args.out)
        return 0
    results = read_results(args)
    published = {row.name: [] if args.no_published else published_of(row, results.tasks) for row in results.rows}
    print("\n".join(coverage_lines(results) + health_lines(results)), file=sys.stderr)
    write_figure(draw(results, published), args.out)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main, "plot_results.py"))
