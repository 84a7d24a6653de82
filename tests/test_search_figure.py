"""tables/search_figure.py: what is drawn where."""

import math
from decimal import Decimal

import pytest
from matplotlib.text import Text

from glue_peft.tables.figure_style import Sheet
from glue_peft.tables.search import Trial
from glue_peft.tables.search_figure import draw_search

LORA = [
    Trial(Decimal("1e-4"), 101, 0.70),
    Trial(Decimal("1e-4"), 102, 0.72),
    Trial(Decimal("1e-3"), 101, 0.80),
    Trial(Decimal("1e-3"), 102, 0.84),
    Trial(Decimal("1e-2"), 101, 0.90),
    Trial(Decimal("1e-2"), 102, 0.68, "constant output"),
    Trial(Decimal("1e-1"), 101, None, "diverged"),
    Trial(Decimal("1e-1"), 102, None, "diverged"),
]
NONE = [Trial(Decimal("1e-5"), 101, 0.75), Trial(Decimal("3e-5"), 101, 0.85)]


@pytest.fixture
def panels():
    """Draw two methods on MRPC and one of them on CoLA; return the panels, of each task scores and budgets."""
    figure = draw_search({"lora4": {"mrpc": LORA}, "none": {"mrpc": NONE, "cola": NONE}}, ["mrpc", "cola"])
    return figure, figure.axes


def test_each_seed_the_means_collapses_and_the_choice_are_drawn(panels):
    """0.82 at 1e-3 is the best mean without a collapse; what has no score stands where the worst is, at 68."""
    axes = panels[1][0]
    marks = [(*points.get_offsets()[0], points.get_sizes()[0]) for points in axes.collections]
    places = [(round(2 * math.log10(x)) / 2, round(float(y), 6), size == 12) for x, y, size in marks]  # a little aside
    seen = sorted((x, y) for x, y, is_seed in places if is_seed)
    assert seen == [(-5, 75), (-4.5, 85), (-4, 70), (-4, 72), (-3, 80), (-3, 84), (-2, 90)]
    assert [(x, y) for x, y, is_seed in places if not is_seed] == [(-2, 68), (-1, 68), (-1, 68)]
    lines = {line.get_label(): line for line in axes.lines}
    curve, chosen, _, chosen_of_none = lines.values()
    assert list(curve.get_xdata()) == [1e-4, 1e-3, 1e-2] and list(curve.get_ydata()) == pytest.approx([71, 82, 79])
    assert (list(chosen.get_xdata()), list(chosen.get_ydata())) == ([1e-3], pytest.approx([82]))
    assert list(chosen_of_none.get_xdata()) == [3e-5] and axes.get_xscale() == "log"


def test_budgets_are_drawn_with_their_interval(panels):
    """Full fine-tuning has two rates: 80 with one of them, 85 with both."""
    axes = panels[1][1]
    lora, none = axes.lines
    assert list(lora.get_xdata()) == [1, 2, 3, 4] and list(none.get_ydata()) == pytest.approx([80, 85])
    band = axes.collections[1].get_paths()[0].vertices
    assert {(round(x), round(y, 6)) for x, y in band} == {(1, 75), (1, 85), (2, 85)}


def test_a_task_without_a_method_has_the_others_and_the_legend_has_all(panels):
    """In the same colours."""
    figure, axes = panels
    assert [panel.get_title() for panel in axes] == ["MRPC", "", "CoLA", ""]
    assert [line.get_color() for line in axes[3].lines] == [axes[1].lines[1].get_color()]
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels == ["lora4", "none", "collapsed or diverged", "rate chosen"]
    assert axes[2].get_ylabel() == "Matthews' correlation, %" and "search seeds 101, 102" in figure.get_suptitle()


def test_a_search_for_a_column(panels):
    """As wide as asked for, with the legend inside, and 7 points."""
    figure = draw_search({"lora4": {"mrpc": LORA}, "none": {"mrpc": NONE, "cola": NONE}}, ["mrpc"], Sheet(3.3, False))
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width == 3.3 * figure.dpi and not figure.get_suptitle()
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) == 7
    rates = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert "1e-3" in rates and not any("^" in rate for rate in rates)


def test_equal_scores_of_seeds_and_methods_are_seen():
    """Collapsed runs have the share of the most frequent class, all the same: no mark hides another one."""
    trials = [Trial(Decimal("1e-4"), seed, 0.684, "constant output") for seed in (101, 102, 103)]
    figure = draw_search({"lora4": {"mrpc": trials}, "vera8": {"mrpc": trials}}, ["mrpc"])
    places = [tuple(marks.get_offsets()[0]) for marks in figure.axes[0].collections]
    assert len(set(places)) == 6 and all(1e-4 / 1.3 < x < 1e-4 * 1.3 for x, _ in places)
