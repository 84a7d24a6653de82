"""benchmarks/plot_benchmarks.py: the committed numbers are those of docs/benchmarks.md and stand in the figure."""

import json

import pytest
from helpers import REPOSITORY

from benchmarks import plot_benchmarks

RESULTS = REPOSITORY / "results"
FILES = [RESULTS / "bench_adapters.json", RESULTS / "bench_grid.json"]
ADAPTERS, GRID = (json.loads(path.read_text()) for path in FILES)
RANDLORA = GRID["adapters"]["randlora r64"]


def test_committed_numbers_are_those_of_the_report():
    """docs/benchmarks.md and the JSON files in results/ are of the same runs."""
    report = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    for row in [*ADAPTERS["training_step"].values(), *ADAPTERS["evaluation"].values()]:
        assert f"{row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})" in report
    for row in RANDLORA["tasks"].values():
        assert f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})" in report
    assert f"grid    {RANDLORA['grid']:.2f}" in report


def test_panels_show_the_ratios():
    """Both sides of every adapter at their ratios with whiskers, the two ends, and a bar a task and for the mix."""
    figure = plot_benchmarks.draw(ADAPTERS, GRID)
    step, evaluation, tasks = figure.axes
    for axes, rows in ((step, ADAPTERS["training_step"]), (evaluation, ADAPTERS["evaluation"])):
        names = [label.get_text() for label in axes.get_yticklabels()]
        assert names == ["lora r4", "randlora r64", "vera r256", "vera r1024"]
        for side, container in zip(("PEFT", "ours"), axes.containers, strict=True):
            chosen = [rows[f"{name}, {side}"] for name in names]
            points, _, (bars,) = container.lines
            assert list(points.get_xdata()) == [row["ratio"] for row in chosen]
            for segment, row in zip(bars.get_segments(), chosen, strict=True):
                assert list(segment[:, 0]) == pytest.approx([row["low"], row["high"]])
    ends = [line.get_xdata()[0] for line in step.lines if line.get_label() in plot_benchmarks.ENDS]
    assert ends == [ADAPTERS["training_step"][name]["ratio"] for name in ("frozen base", "full fine-tuning")]
    ratios = sorted((row["ratio"] for row in RANDLORA["tasks"].values()), reverse=True)
    assert [patch.get_width() for patch in tasks.patches] == [*ratios, RANDLORA["grid"]]
    assert [text.get_text() for text in tasks.texts] == [f"{ratio:.1f}" for ratio in [*ratios, RANDLORA["grid"]]]
    assert [label.get_text() for label in tasks.get_yticklabels()][-1] == "grid's mix"


def test_figure_is_written(tmp_path, capsys):
    """The same numbers give the same bytes."""
    for name in ("a.png", "b.png"):
        assert plot_benchmarks.main([*map(str, FILES), str(tmp_path / name)]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_numbers_that_are_not_there(tmp_path, capsys):
    """A line that lacks an adapter is named with it, and no figure is left."""
    content = json.loads(FILES[0].read_text())
    del content["training_step"]["frozen base"]
    (tmp_path / "bench.json").write_text(json.dumps(content))
    assert plot_benchmarks.main([str(tmp_path / "bench.json"), str(FILES[1]), str(tmp_path / "a.png")]) == 2
    assert "a benchmark's line without 'frozen base'" in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()


def test_wrong_files_are_named(tmp_path, capsys):
    """Each in one line."""
    adapters, grid = map(str, FILES)
    out = tmp_path / "a.png"
    for argv, named in (
        ([grid, grid, str(out)], "bench_grid.json: not the JSON line of bench_adapters.py"),
        ([adapters, str(tmp_path / "none.json"), str(out)], "none.json: not the JSON line of bench_grid.py"),
        ([adapters, grid, str(tmp_path / "a.jpg")], "OUT must be a file"),
    ):
        assert plot_benchmarks.main(argv) == 2
        said = capsys.readouterr().err
        assert named in said and len(said.splitlines()) == 1
    assert not out.exists()
