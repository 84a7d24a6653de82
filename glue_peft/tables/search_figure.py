"""The figure of a search of learning rates: score against rate, and what smaller budgets would have reached."""

import math
from typing import TYPE_CHECKING, Any

from glue_peft.tables.figure_style import COLOURS, LINES, MARKERS, Sheet, legend_below, plain, power
from glue_peft.tables.search import Searches, Trial, by_rate, choose, expected_best, mean_score
from glue_peft.tasks import METRICS, main_metric, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HOLLOW: dict[str, Any] = {"markerfacecolor": "none"}


def draw_search(searches: Searches, tasks: list[str], sheet: Sheet | None = None) -> "Figure":
    """Return the figure: of each task the scores above and the budgets below, and the legend under all."""
    from matplotlib.figure import Figure

    sheet = sheet or Sheet()
    columns = sheet.columns(len(tasks))
    lines = math.ceil(len(tasks) / columns)
    width = sheet.width or max(5.0, 3.0 * columns)
    height = min(2.4, 0.75 * width / columns + 0.4)
    figure = Figure(figsize=(width, 2 * height * lines), layout="constrained")
    for number, task in enumerate(tasks):
        place = 2 * columns * (number // columns) + number % columns + 1
        pair = [figure.add_subplot(2 * lines, columns, place + below) for below in (0, columns)]
        draw_task(pair[0], pair[1], task, searches, sheet)
    legend_below(figure, legend(searches), sheet)
    if sheet.titled:
        seeds = sorted({trial.seed for of_row in searches.values() for trials in of_row.values() for trial in trials})
        text = f"On rows held out of training, search seeds {', '.join(map(str, seeds))}. Above: each seed, a little "
        text += (
            "aside of its rate, and the line of the means; below: the best of that many rates, with its 95 % interval"
        )
        sheet.title(figure, text)
    return figure


def draw_task(scores: "Axes", budgets: "Axes", task: str, searches: Searches, sheet: Sheet) -> None:
    """Draw the two panels of a task."""
    from matplotlib.ticker import MaxNLocator

    searched = [(style_of(index), of_row[task]) for index, of_row in enumerate(searches.values()) if task in of_row]
    for place, (style, trials) in enumerate(searched):
        draw_rates(scores, trials, style, (place + 0.5) / len(searched) - 0.5)
        draw_budgets(budgets, trials, style)
    rates = [float(trial.rate) for _, trials in searched for trial in trials]
    sheet.logarithmic(scores, min(rates) / 2, max(rates) * 2, power)
    scores.set_title(title(task), fontsize=sheet.heading)
    scores.set_xlabel("learning rate", fontsize=sheet.text)
    budgets.set_xlabel("rates tried", fontsize=sheet.text)
    budgets.xaxis.set_major_locator(MaxNLocator(integer=True))
    scores.set_ylabel(f"{METRICS[main_metric(task)]}, %", fontsize=sheet.text)
    budgets.set_ylabel("expected best, %", fontsize=sheet.text)
    sheet.finish(scores)
    sheet.finish(budgets)


def draw_rates(axes: "Axes", trials: list[Trial], style: dict[str, Any], aside: float) -> None:
    """Draw a method's scores against the rate, each seed moved a little to the side, as equal ones would hide others.

    `aside` is the method's place among the others, from -0.5 to 0.5. A run without a score is drawn where the worst
    one is.
    """
    grid, chosen = by_rate(trials), choose(trials)
    worst = min((trial.score for trial in trials if trial.score is not None), default=0.0)
    means = {float(rate): mean for rate, of_rate in grid.items() if (mean := mean_score(of_rate)) is not None}
    axes.plot([*means], [100 * mean for mean in means.values()], linewidth=1.2, **style | {"marker": "none"})
    seeds = sorted({trial.seed for trial in trials})
    for trial in trials:
        shape = {"marker": "x", "s": 20} if trial.collapse is not None else {"marker": style["marker"], "s": 12}
        score = worst if trial.score is None else trial.score
        moved = 10 ** (0.2 * aside + 0.02 * (seeds.index(trial.seed) - (len(seeds) - 1) / 2))
        axes.scatter(float(trial.rate) * moved, 100 * score, color=style["color"], linewidths=0.8, **shape)
    if chosen.mean is not None:
        axes.plot(float(chosen.rate), 100 * chosen.mean, markersize=13, **HOLLOW, **style | {"marker": "o"})


def draw_budgets(axes: "Axes", trials: list[Trial], style: dict[str, Any]) -> None:
    """Draw the score that budgets of 1, 2, ... rates would have reached, with its interval."""
    mean, low, high = ([100 * value for value in values] for values in zip(*expected_best(trials), strict=True))
    budgets = range(1, len(mean) + 1)
    axes.plot(budgets, mean, linewidth=1.2, markersize=4, **style)
    axes.fill_between(budgets, low, high, color=style["color"], alpha=0.15, linewidth=0)


def legend(searches: Searches) -> list[Any]:
    """Return the legend's entries: the rows, and what the marks mean."""
    from matplotlib.lines import Line2D

    names = [Line2D([], [], label=plain(name), **style_of(index)) for index, name in enumerate(searches)]
    collapsed = Line2D([], [], color="gray", linestyle="none", marker="x", label="collapsed or diverged")
    chosen = Line2D([], [], color="gray", linestyle="none", marker="o", markersize=13, label="rate chosen", **HOLLOW)
    return [*names, collapsed, chosen]


def style_of(index: int) -> dict[str, Any]:
    """Return a row's colour, line and marker."""
    of_row = {"color": COLOURS, "linestyle": LINES, "marker": MARKERS}
    return {name: values[index % len(values)] for name, values in of_row.items()}
