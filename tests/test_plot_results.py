"""plot_results.py: what is drawn where, and what is written."""

import errno
import itertools
import os
import struct
from pathlib import Path

import pytest
from helpers import call, write_rows, write_run
from matplotlib.text import Text
from sweep_helpers import end_search, tuned

import plot_results
from glue_peft.tables.figure_style import plain, sheet_of
from glue_peft.tables.published import published_of
from glue_peft.tables.results import read_results
from glue_peft.tables.score_figures import draw
from glue_peft.tasks import TASKS, GlueTask

SCORES = {"mrpc": [0.86, 0.88, 0.90], "stsb": [0.88, 0.89, 0.87]}


@pytest.fixture
def roots(tmp_path) -> list[Path]:
    """Write two rows, LoRA and VeRA."""
    lora = write_rows(tmp_path / "lora4", SCORES)
    vera = write_rows(
        tmp_path / "vera256",
        {task: [value - 0.01 for value in values] for task, values in SCORES.items()},
        arguments={"adapter_name": "vera", "rank": 256},
        parameters={"adapter": 101_376},
    )
    return [lora, vera]


def plotted(*argv: object):
    """Return the figure of these arguments, and its panels by title."""
    args = plot_results.parse_arguments([str(argument) for argument in argv])
    results = read_results(args)
    published = {row.name: published_of(row, results.tasks) for row in results.rows}
    figure = draw(results, published, sheet_of(args))
    return figure, {axes.get_title(): axes for axes in figure.axes}


def solid(axes) -> list[tuple[float, float]]:
    """Return the means: the filled markers, which error bars draw as lines."""
    return [
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in axes.lines
        if line.get_markersize() == 7 and line.get_markerfacecolor() != "none"
    ]


def hollow(axes) -> list[tuple[float, float]]:
    """Return the papers' values."""
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_markerfacecolor() == "none"]


def test_panels_show_seeds_means_and_intervals(roots, tmp_path):
    """Each task has a panel with all seeds, their means, and t intervals: 88 ± 4.303 x 2 / sqrt(3) for MRPC."""
    _, panels = plotted(*roots, 3, "a.png")
    assert list(panels) == ["MRPC", "STS-B", "average"]
    axes = panels["MRPC"]
    seeds = [y for points in axes.collections for x, y in points.get_offsets() if x < 0]
    assert seeds == pytest.approx([86, 88, 90])
    assert [panel.get_ylabel() for panel in panels.values()] == ["accuracy, %", "combined score, %", "average, %"]
    assert [y for _, y in solid(axes)] == pytest.approx([88, 87])
    bar = axes.containers[0].lines[2][0].get_segments()[0]
    assert bar[:, 1] == pytest.approx([88 - 4.3027 * 2 / 3**0.5, 88 + 4.3027 * 2 / 3**0.5], abs=1e-3)


def test_hollow_marks_are_of_the_metric_drawn(roots):
    """Papers print MRPC's accuracy: beside our F1 there is no mark of theirs, and no word of them in the legend."""
    for task, values in SCORES.items():
        for seed, value in enumerate(values, start=1):
            write_run(roots[0], seed, task, value, scores={"last": {"eval_f1": value, "eval_accuracy": value}})
    for metric, expected in (("accuracy", True), ("f1", False)):
        figure, panels = plotted(roots[0], "--tasks", "mrpc", "--metric", f"mrpc={metric}", 3, "a.png")
        axes = next(iter(panels.values()))
        labels = [text.get_text() for text in figure.legends[0].texts]
        assert bool(hollow(axes)) is expected and any("paper" in label for label in labels) is expected


def test_a_task_of_ones_own_is_drawn_by_its_name(tmp_path, monkeypatch):
    """A row in TASKS is all that a figure needs, as the docs say."""
    hans = GlueTask("HANS", ("premise", "hypothesis"), ("accuracy",), "accuracy", (0.5,), (), None)
    monkeypatch.setitem(TASKS, "hans", hans)
    _, panels = plotted(write_rows(tmp_path / "lora4", {"hans": [0.6, 0.7]}), 2, "--tasks", "hans", "a.png")
    assert [y for _, y in solid(panels["HANS"])] == pytest.approx([65])


def test_the_legend_stays_inside_a_narrow_figure(tmp_path):
    """One task, five long names: they take as many lines as they need."""
    names = [f"randlora64_all-MiniLM-L6-v2_lr{i}e-3" for i in range(5)]
    rows = [write_rows(tmp_path / name, {"cola": [0.2, 0.3]}) for name in names]
    figure, _ = plotted(*rows, 2, "--tasks", "cola", "a.png")
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0


def test_sizes_are_on_a_log_axis(roots):
    """The last panel has the average of the tasks at the adapter's own parameters, without the head."""
    _, panels = plotted(*roots, 3, "a.png")
    axes = panels["average"]
    assert axes.get_xscale() == "log"
    assert solid(axes) == [pytest.approx((663_552, 88.0)), pytest.approx((101_376, 87.0))]


def test_published_values_of_the_same_method_are_hollow(roots):
    """LoRA's and VeRA's printed MRPC values stand in their own columns; --no_published leaves them out."""
    _, panels = plotted(*roots, 3, "a.png")
    points = hollow(panels["MRPC"])
    assert {y for x, y in points if x < 0.65} == {87.3, 89.7}
    assert {y for x, y in points if x > 0.65} == {88.4, 89.5, 88.7}
    assert hollow(panels["average"]) == []  # the papers' averages are over six tasks


def test_letters_say_which_paper(roots):
    """Each hollow mark has its paper's letter, and the legend the paper's name."""
    figure, panels = plotted(*roots, 3, "a.png")
    legend = dict(text.get_text().split(": ") for text in figure.legends[0].texts if ": " in text.get_text())
    letters = {text.xy[1]: text.get_text() for text in panels["MRPC"].texts}
    assert {y: legend[letter] for y, letter in letters.items()} == {
        87.3: "RandLoRA paper",
        89.7: "FourierFT paper",  # as LoRA's
        88.4: "RandLoRA paper",
        89.5: "VeRA paper",
        88.7: "VB-LoRA paper",
    }


def test_collapsed_runs_have_a_mark_of_their_own(roots):
    """An x, which the legend explains; without such runs there is none."""
    assert "collapsed run" not in [text.get_text() for text in plotted(*roots, 3, "a.png")[0].legends[0].texts]
    write_run(roots[0], 2, "mrpc", 0.68, scores={"last": {"eval_accuracy": 0.68, "eval_predicted_classes": 1}})
    figure, panels = plotted(*roots, 3, "a.png")
    marks = [points for points in panels["MRPC"].collections if points.get_offsets()[0][0] < 0]
    crosses = [float(points.get_offsets()[0][1]) for points in marks if points.get_sizes()[0] == 22]
    assert crosses == [68] and "collapsed run" in [text.get_text() for text in figure.legends[0].texts]


def test_intervals_end_where_the_metric_does(tmp_path):
    """Accuracy between 0 and 100, Matthews' correlation from -100, a mean squared error without an end above."""
    root = write_rows(tmp_path / "a", {"mrpc": [0.5, 0.9999], "rte": [0.01, 0.5], "cola": [-0.9, 0.9]})
    _, panels = plotted(root, "a.png")
    bars = {name: axes.containers[0].lines[2][0].get_segments()[0][:, 1] for name, axes in panels.items()}
    assert bars["MRPC"][1] == 100 and bars["RTE"][0] == 0 and list(bars["CoLA"]) == [-100, 100]


@pytest.mark.parametrize("width", [3.3, 6.8])
def test_figures_for_a_paper(roots, width):
    """As wide as asked for, no letter below 7 points, and everything inside; the title off."""
    figure, panels = plotted(*roots, 3, "a.png", "--width", width, "--names", "lora4=LoRA (r=4)", "--no_title")
    figure.draw_without_rendering()
    assert figure.get_figwidth() == width and figure.get_suptitle() == ""
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in texts) == 7
    legend = figure.legends[0]
    assert legend.texts[0].get_text() == "LoRA (r=4)"
    boxes = [legend.get_window_extent(), *(axes.get_tightbbox() for axes in figure.axes)]
    assert all(box.x0 >= -1 and box.x1 <= figure.bbox.width + 1 and box.y0 >= -1 for box in boxes)
    assert len({round(axes.get_position().x0, 2) for axes in panels.values()}) == (2 if width < 4 else 3)


@pytest.mark.parametrize("sizes", [(101_376, 220_000), (10_000, 90_000_000)])
def test_words_of_a_narrow_axis_keep_apart(tmp_path, sizes):
    """Of two panels side by side in a paper's column, within a decade and over several."""
    rows = [write_rows(tmp_path / f"lora{size}", SCORES, parameters={"adapter": size}) for size in sizes]
    figure, panels = plotted(*rows, 3, "a.png", "--width", 3.3)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in panels["average"].get_xticklabels() if label.get_text()]
    assert len(boxes) >= 2 and all(left.x1 + 2 < right.x0 for left, right in itertools.pairwise(boxes))


def test_a_long_name_stays_in_the_legend(roots):
    """It is wrapped, its mark beside it."""
    figure, _ = plotted(*roots, 3, "a.png", "--width", 3.3, "--names", f"lora4={'a long name ' * 8}end")
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert figure.legends[0].texts[0].get_text().count("\n") >= 1 and box.x0 >= 0 and box.x1 <= figure.bbox.width


def test_a_title_is_wrapped(roots):
    """It stays inside a narrow figure."""
    figure, _ = plotted(*roots, 3, "a.png", "--width", 2)
    figure.draw_without_rendering()
    box = figure._suptitle.get_window_extent()
    assert "\n" in figure.get_suptitle() and box.x0 >= 0 and box.x1 <= figure.bbox.width


def test_published_averages_are_over_the_six_tasks(tmp_path):
    """With the papers' six tasks their averages stand at the parameters that they print."""
    tasks = ("sst2", "mrpc", "cola", "qnli", "rte", "stsb")
    root = write_rows(tmp_path / "lora4", {task: [0.8, 0.81] for task in tasks})
    assert hollow(plotted(root, 2, "a.png")[1]["average"]) == []  # of STS-B's combined score
    _, panels = plotted(root, 2, "--stsb_metric", "pearson", "a.png")
    assert set(hollow(panels["average"])) == {(700_000, 82.4), (300_000, 85.2)}


def test_a_row_without_a_task_leaves_its_place_empty(roots):
    """With --allow_missing the other rows stay in their columns."""
    for path in roots[0].glob("*/mrpc/*"):
        path.unlink()
    _, panels = plotted(*roots, 3, "a.png", "--allow_missing")
    assert solid(panels["MRPC"]) == [pytest.approx((1, 87))]


def test_each_row_has_its_own_colour_and_marker(tmp_path):
    """Seven rows in a row differ in both; the legend names them all."""
    roots = [write_rows(tmp_path / f"row{index}", {"rte": [0.5 + index / 100, 0.6]}) for index in range(7)]
    figure, panels = plotted(*roots, 2, "a.png")
    styles = {(line.get_color(), line.get_marker()) for line in panels["RTE"].lines if line.get_label()}
    marks = {marker for _, marker in styles if marker not in ("None", "_", "")}
    assert len({colour for colour, _ in styles}) == 7 and len(marks) == 7
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:7] == [f"row{index}" for index in range(7)]


def test_no_panel_of_sizes_without_run_json(roots):
    """A tree of eval_results.json alone has the tasks' panels and nothing else."""
    for path in roots[0].glob("*/*/run.json"):
        path.unlink()
    _, panels = plotted(roots[0], 3, "a.png")
    assert list(panels) == ["MRPC", "STS-B"]


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG\r\n"), ("pdf", b"%PDF-"), ("svg", b"<?xml")])
def test_files(roots, tmp_path, capsys, suffix, start):
    """Each format is written, the same bytes every time, and notes about the runs go to stderr."""
    contents = []
    for name in ("a", "b"):
        out = tmp_path / f"{name}.{suffix}"
        assert plot_results.main([*map(str, roots), "3", str(out), "--no_published"]) == 0
        contents.append(out.read_bytes())
    assert contents[0] == contents[1]
    assert contents[0].startswith(start)
    assert "nothing found in 12 runs" in capsys.readouterr().err
    if suffix == "png":
        width, height = struct.unpack(">II", contents[0][16:24])
        assert width > 800 and height > 400
    if suffix == "svg":
        assert b"NaN" not in contents[0]


def test_names_are_no_formulas(tmp_path):
    """Dollars and bytes that are no UTF-8 are drawn as they are."""
    root = write_rows(tmp_path / "a$x^2$_\udcff", {"rte": [0.5, 0.6]})
    out = tmp_path / "a.svg"
    assert plot_results.main([str(root), "2", str(out)]) == 0
    assert plain("a$x$\udcff") == r"a\$x\$\udcff"


def test_all_nine_tasks_and_one_seed(tmp_path):
    """Nine panels of one seed each have means without intervals."""
    for task in ("sst2", "mrpc", "cola", "qnli", "rte", "stsb", "mnli", "qqp", "wnli"):
        write_run(tmp_path / "a", 1, task, 0.5)
    figure, _ = plotted(tmp_path / "a", 1, "a.png", "--tasks", "all")
    assert len(figure.axes) == 10
    assert not any(container.has_yerr for axes in figure.axes for container in axes.containers)


def test_the_title_says_what_was_dropped(roots):
    """A collapsed run that isn't drawn is counted in the title, with the epoch and the number of seeds."""
    write_run(roots[0], 2, "mrpc", 0.68, scores={"last": {"eval_accuracy": 0.68, "eval_predicted_classes": 1}})
    figure, panels = plotted(roots[0], 3, "a.png", "--drop_collapsed")
    title = figure.get_suptitle()
    assert title.endswith("up to 3 seeds; last epoch; collapsed and diverged runs dropped: 1")
    assert solid(panels["MRPC"]) == [pytest.approx((0, 88))]
    assert sum(x < 0 for points in panels["MRPC"].collections for x, _ in points.get_offsets()) == 2
    complete = plotted(roots[0], 3, "a.png")[0].get_suptitle()
    assert "dropped" not in complete and complete.endswith("over 3 seeds; last epoch")


def test_a_figure_that_cannot_be_written(roots, tmp_path, capsys, monkeypatch):
    """A full disk is one line, and leaves nothing behind."""

    def full(*_: object, **__: object) -> None:
        """Fail as on a full disk."""
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    folder = tmp_path / "out"
    folder.mkdir()
    assert call(plot_results, roots[0], 3, folder / "a.png") == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"can't be written: {os.strerror(errno.ENOSPC)}")
    assert list(folder.iterdir()) == []


def test_errors(roots, tmp_path, capsys):
    """A wrong suffix, a folder that isn't there and missing results end in an error, without a file."""
    for argv, named in (
        ([roots[0], 3, tmp_path / "a.gif"], ".png, .pdf, .svg"),
        ([roots[0], 3, tmp_path / "none" / "a.png"], "existing folder"),
        ([tmp_path / "none", 3, tmp_path / "a.png"], "ROOT"),
        ([roots[0], 4, tmp_path / "a.png"], "4/mrpc/eval_results.json: missing"),
        ([roots[0], "x", tmp_path / "a.png"], "NSEEDS"),
        ([roots[0], 3, tmp_path / "a.png", "--width", 1], "--width 1: allowed are 1.5 to 30 inches"),
    ):
        assert call(plot_results, *argv) == 2
        assert named in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()


# The search behind the rows


def test_the_tuning_figure_is_of_the_search_whether_or_not_there_are_final_runs(tmp_path, capsys):
    """Of the tasks that have one; a row without a search, and flags without an effect, are refused."""
    for run in tuned(tmp_path, TASKS="rte mrpc").search:
        end_search(run, 0.6)
    rows = [tmp_path / "lora4", tmp_path / "vera256"]
    assert call(plot_results, "--tuning", *rows, 8, tmp_path / "tuning.svg") == 0
    assert all(f"<!-- {name} -->" in (tmp_path / "tuning.svg").read_text() for name in ("MRPC", "RTE", "vera256"))
    assert call(plot_results, "--tuning", tmp_path, tmp_path / "found.svg") == 0
    assert (tmp_path / "found.svg").read_text() == (tmp_path / "tuning.svg").read_text()
    assert call(plot_results, "--tuning", *rows, 8, tmp_path / "rte.svg", "--tasks", "rte") == 0
    assert "<!-- MRPC -->" not in (tmp_path / "rte.svg").read_text()
    for wrong, message in (
        ([tmp_path / "lora8"], f"--tuning: no finished run of a search of {tmp_path}/lora8 (expected are folders "),
        ([rows[0], "--epoch", "best"], "--no_title alone, not with --epoch"),
        ([rows[0], "--no_published"], "--no_title alone, not with --no_published"),
    ):
        capsys.readouterr()
        assert call(plot_results, "--tuning", *wrong, 8, tmp_path / "no.svg") == 2
        assert message in capsys.readouterr().err
