"""The figure of a search of learning rates: score against rate, and what smaller budgets would have reached."""

from typing import TYPE_CHECKING, Any

from glue_peft.tables.figure_style import COLOURS, LINES, MARKERS, plain
from glue_peft.tables.search import Searches, Trial, by_rate, choose, expected_best, mean_score
from glue_peft.tasks import METRICS, main_metric, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HOLLOW: dict[str, Any] = {"markerfacecolor": "none"}


def draw_search(searches: Searches, tasks: list[str]) -> "Figure":
    """Return the figure: a column a task, the scores above and the budgets below, and the legend under both."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.0, 3.0 * len(tasks)), 5.4), layout="constrained")
    panels = figure.subplots(2, len(tasks), squeeze=False)
    for column, task in enumerate(tasks):
        scores, budgets = panels[:, column]
        for index, of_row in enumerate(searches.values()):
            if task in of_row:
                draw_rates(scores, of_row[task], style_of(index))
                draw_budgets(budgets, of_row[task], style_of(index))
        scores.set_xscale("log")
        scores.set_title(title(task), fontsize=9)
        scores.set_xlabel("learning rate", fontsize=8)
        budgets.set_xlabel("rates tried", fontsize=8)
        budgets.xaxis.get_major_locator().set_params(integer=True)
        scores.set_ylabel(METRICS[main_metric(task)], fontsize=8)
        budgets.set_ylabel("expected best", fontsize=8)
        for axes in (scores, budgets):
            axes.tick_params(labelsize=8)
            axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    seeds = sorted({trial.seed for of_row in searches.values() for trials in of_row.values() for trial in trials})
    figure.suptitle(
        f"Percent on rows held out of training, search seeds {', '.join(map(str, seeds))}. Above: each seed, and the "
        "line of the means; below: the best of so many rates, with its 95 % interval",
        fontsize=9,
        wrap=True,
    )
    figure.legend(handles=legend(searches), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def draw_rates(axes: "Axes", trials: list[Trial], style: dict[str, Any]) -> None:
    """Draw a method's scores against the rate; a run without a score is drawn where the worst one is."""
    grid, chosen = by_rate(trials), choose(trials)
    worst = min((trial.score for trial in trials if trial.score is not None), default=0.0)
    means = {float(rate): mean for rate, of_rate in grid.items() if (mean := mean_score(of_rate)) is not None}
    axes.plot([*means], [100 * mean for mean in means.values()], linewidth=1.2, **style | {"marker": "none"})
    for trial in trials:
        shape = {"marker": "x", "s": 36} if trial.collapse is not None else {"marker": style["marker"], "s": 14}
        score = worst if trial.score is None else trial.score
        axes.scatter(float(trial.rate), 100 * score, color=style["color"], **shape)
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
