"""The figures of a table: each task's seeds with mean and interval, and the average against what a row costs.

Hollow marks are what papers printed; a letter in each says which paper.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

from glue_peft.run_folder import plural
from glue_peft.tables.collapse import collapse
from glue_peft.tables.costs import seed_costs
from glue_peft.tables.estimates import interval_half_width
from glue_peft.tables.figure_style import COLOURS, MARKERS, Sheet, legend_below, plain
from glue_peft.tables.protocol import data_limits, epochs_in_words, has_all_seeds
from glue_peft.tables.published import PublishedRow
from glue_peft.tables.read import NEVER_NEGATIVE
from glue_peft.tables.results import Results, Row
from glue_peft.tasks import LOWER_IS_BETTER, METRICS, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Published = Mapping[str, list[PublishedRow]]  # by the name of our row
# What a row costs: the axis' label, and what a recorded value is divided by.
COST_AXES = {
    "adapter_parameters": ("adapter parameters", 1.0),
    "train_seconds": ("training, minutes", 60.0),
    "peak_bytes": ("peak memory, GB", 1e9),
}


def draw(results: Results, published: Published, sheet: Sheet | None = None) -> "Figure":
    """Return the figure: a panel a task, one for the parameters where any are known, and the legend below."""
    sheet = sheet or Sheet()
    panels = results.tasks + ["adapter_parameters"] * has_cost(results, "adapter_parameters")
    figure, axes_of = sheet.panels(len(panels))
    for axes, what in zip(axes_of, panels, strict=True):
        draw_panel(axes, what, results, published, sheet)
    handles = legend_handles(results, published)
    legend_below(figure, handles, sheet)
    if sheet.titled:
        seeds = plural(results.n_seeds, "seed") if has_all_seeds(results) else f"up to {results.n_seeds} seeds"
        text = f"Each seed, mean and 95 % interval over {seeds}; {epochs_in_words(results)}"
        text += "".join(f"; {limit}" for limit in data_limits(results.rows, results.tasks))
        if results.drop_collapsed:
            text += f"; collapsed and diverged runs dropped: {results.n_dropped}"
        sheet.title(figure, text)
    return figure


def draw_single(what: str, results: Results, published: Published, sheet: Sheet) -> "Figure":
    """Return a figure with one panel and no legend."""
    figure, (axes,) = sheet.panels(1)
    draw_panel(axes, what, results, published, sheet)
    return figure


def draw_legend(results: Results, published: Published, sheet: Sheet) -> "Figure":
    """Return the legend as a figure of its own."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(sheet.width or 5.0, 0.1), layout="constrained")
    legend_below(figure, legend_handles(results, published), sheet)
    return figure


def draw_panel(axes: "Axes", what: str, results: Results, published: Published, sheet: Sheet) -> None:
    """Draw a task, or the average against a cost."""
    if what in COST_AXES:
        draw_cost(axes, what, results, published, sheet)
    else:
        draw_task(axes, what, results, published, sheet)
    sheet.finish(axes)


def styles(rows: list[Row]) -> Iterator[tuple[int, Row, dict[str, Any]]]:
    """Yield each row with its position and its colour and marker."""
    for index, row in enumerate(rows):
        yield index, row, {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def draw_task(axes: "Axes", task: str, results: Results, published: Published, sheet: Sheet) -> None:
    """Draw one task: of each row the seeds on the left, mean and interval in the middle, the papers' on the right."""
    metric, letters = results.metrics[task], letters_of(results, published)
    for index, row, style in styles(results.rows):
        runs = list(row.used(task).values())
        for position, run in enumerate(runs):
            x = index - 0.28 + 0.02 * (position % 3)  # equal scores stay visible
            shape = {"marker": "x", "s": 22} if collapse(run) else {"s": 12, "linewidths": 0}
            axes.scatter(x, 100 * (run.score or 0.0), alpha=0.7, **style | shape)
        if runs:
            draw_mean(axes, index, list(row.scores(task).values()), style, range_of(metric))
        theirs = [of_paper for of_paper in published[row.name] if has_score(of_paper, task, results)]
        for position, of_paper in enumerate(theirs):
            x = index + 0.22 + 0.36 * position / max(1, len(theirs) - 1)
            draw_published(axes, x, of_paper.scores[task].value, letters[of_paper.paper], style, sheet)
    axes.set_title(title(task), fontsize=sheet.heading)
    axes.set_ylabel(METRICS[metric] + ", %" * (metric not in LOWER_IS_BETTER), fontsize=sheet.text)
    axes.set_xlim(-0.5, len(results.rows) - 0.2)
    axes.margins(y=0.08)
    axes.set_xticks([])


def draw_mean(axes: "Axes", x: float, values: list[float], style: dict[str, Any], limits: tuple[float, float]) -> None:
    """Draw the mean with its 95 % interval, cut where the metric's range ends."""
    mean, half = statistics.fmean(values), interval_half_width(values)
    lengths = None if half is None else [[min(half, mean - limits[0])], [min(half, limits[1] - mean)]]
    axes.errorbar(
        x,
        100 * mean,
        yerr=None if lengths is None else [[100 * max(0.0, length[0])] for length in lengths],
        markersize=7,
        capsize=2.5,
        linestyle="none",
        markeredgecolor="black",
        zorder=3,
        **style,
    )


def range_of(metric: str) -> tuple[float, float]:
    """Return the least and the most that a metric can be, as tables hold it."""
    return 0.0 if metric in NEVER_NEGATIVE else -1.0, math.inf if metric in LOWER_IS_BETTER else 1.0


def draw_published(axes: "Axes", x: float, y: float, letter: str, style: dict[str, Any], sheet: Sheet) -> None:
    """Draw one printed value, with its paper's letter in the mark."""
    axes.plot(x, y, markersize=8.5, markerfacecolor="none", markeredgewidth=0.8, linestyle="none", zorder=4, **style)
    axes.annotate(letter, (x, y), ha="center", va="center", fontsize=sheet.text)


def has_score(theirs: PublishedRow, task: str, results: Results) -> bool:
    """Say whether a published row has the task's score in the metric that is drawn."""
    return task in theirs.scores and theirs.scores[task].metric == results.metrics[task]


def letters_of(results: Results, published: Published) -> dict[str, str]:
    """Return the letter of each paper that has a mark in some panel."""
    papers = dict.fromkeys(
        theirs.paper
        for of_row in published.values()
        for theirs in of_row
        if any(has_score(theirs, task, results) for task in results.tasks)
    )
    return dict(zip(papers, ascii_lowercase, strict=False))


def has_cost(results: Results, cost: str) -> bool:
    """Say whether any row with an average has this cost."""
    return any(
        seed_costs(row, results.common_tasks)[cost] and row.seed_averages(results.averaged_tasks)
        for row in results.rows
    )


def draw_cost(axes: "Axes", cost: str, results: Results, published: Published, sheet: Sheet) -> None:
    """Draw the average over the tasks against a cost, parameters (without the head) on a logarithmic axis."""
    from matplotlib.ticker import EngFormatter

    label, unit = COST_AXES[cost]
    letters, drawn = letters_of(results, published), list[float]()
    metrics = {results.metrics[task] for task in results.averaged_tasks}
    limits = range_of(metrics.pop()) if len(metrics) == 1 else (-1.0, 1.0)
    for _, row, style in styles(results.rows):
        averages = list(row.seed_averages(results.averaged_tasks).values())
        x = seed_costs(row, results.common_tasks)[cost]
        if averages and x:
            draw_mean(axes, x / unit, averages, style, limits)
            drawn.append(x / unit)
        for theirs in published[row.name] if cost == "adapter_parameters" else []:
            average = theirs.comparable_average(results)
            if average is not None and theirs.parameters:
                size = 1e6 * theirs.parameters
                draw_published(axes, size, average.value, letters[theirs.paper], style, sheet)
                drawn.append(size)
    if cost == "adapter_parameters":
        sheet.logarithmic(axes, min(drawn) / 2, max(drawn) * 2, EngFormatter(sep=" "))
    else:
        axes.set_xlim(0, 1.15 * max(drawn))
    axes.set_xlabel(label, fontsize=sheet.text)
    axes.set_ylabel("average, %", fontsize=sheet.text)
    axes.set_title("average", fontsize=sheet.heading)


def legend_handles(results: Results, published: Published) -> list[Any]:
    """Return the legend's entries: the rows, collapsed runs where there are some, and the papers' letters."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="none", markeredgecolor="black", label=plain(row.name), **style)
        for _, row, style in styles(results.rows)
    ]
    if any(collapse(run) for run in used_runs(results)):
        handles.append(Line2D([], [], linestyle="none", marker="x", color="gray", label="collapsed run"))
    hollow: dict[str, Any] = {"linestyle": "none", "marker": "o", "markerfacecolor": "none", "color": "gray"}
    for paper, letter in letters_of(results, published).items():
        handles.append(Line2D([], [], label=f"{letter}: {plain(paper)} paper", **hollow))
    return handles


def used_runs(results: Results) -> Iterable[Any]:
    """Yield the runs that are drawn."""
    return (run for row in results.rows for task in results.tasks for run in row.used(task).values())
