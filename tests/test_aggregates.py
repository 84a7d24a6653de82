"""tables/aggregates.py: other sums of a row than the average, by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import AS_ROWS, fail_run, results_of, said, write_rows, write_run
from scipy import stats

import parse_results
from glue_peft.errors import UsageError
from glue_peft.tables.aggregates import (
    collapsed_runs,
    interquartile_mean,
    mean_ranks,
    wanted_aggregates,
    without_cola,
)


def two_rows(tmp_path, **more):
    """Write two rows of three tasks and two seeds, and return their folders."""
    first = write_rows(tmp_path / "a", {"mrpc": [0.8, 0.9], "cola": [0.5, 0.7], "rte": [0.6, 0.8]})
    second = write_rows(tmp_path / "b", {"mrpc": [0.7, 0.8], "cola": [0.6, 0.8], "rte": [0.7, 0.7]} | more)
    return first, second


def test_the_average_without_cola(tmp_path):
    """Of seed 1 the mean of 80 and 60, of seed 2 of 90 and 80."""
    results = results_of(*two_rows(tmp_path), 2)
    assert without_cola(results.rows[0], results) == pytest.approx([0.7, 0.85])


def test_mean_ranks(tmp_path):
    """Means 85 60 70 against 75 70 70: ranks 1 2 1.5 and 2 1 1.5, as equal rows share one."""
    assert mean_ranks(results_of(*two_rows(tmp_path), 2), "mean") == pytest.approx([1.5, 1.5])
    third = write_rows(tmp_path / "c", {"mrpc": [0.9, 0.9], "cola": [0.1, 0.1], "rte": [0.9, 0.9]})
    ranks = mean_ranks(results_of(*two_rows(tmp_path), third, 2), "mean")
    assert ranks == pytest.approx([(2 + 2 + 2.5) / 3, (3 + 1 + 2.5) / 3, (1 + 3 + 1) / 3])


def test_interquartile_mean(tmp_path):
    """It is SciPy's mean without a quarter at either end; the interval holds still and covers the value."""
    results = results_of(*two_rows(tmp_path), 2)
    found = interquartile_mean(results.rows[0], results)
    assert found.value == pytest.approx((0.6 + 0.7 + 0.8 + 0.8) / 4)
    assert found.value == pytest.approx(stats.trim_mean([0.8, 0.9, 0.5, 0.7, 0.6, 0.8], 0.25))
    assert found.low < found.value < found.high and found == interquartile_mean(results.rows[0], results)
    # Each task is drawn from by itself: where its seeds are equal nothing varies, however far apart the tasks are.
    flat = results_of(write_rows(tmp_path / "flat", {"mrpc": [0.9] * 3, "cola": [0.5] * 3}), 3)
    assert [round(value, 9) for value in vars(interquartile_mean(flat.rows[0], flat)).values()] == [0.7] * 3


def test_the_interval_covers():
    """Of 200 rows of four tasks and eight seeds the 95 % intervals hold the true value in 85 to 99 %."""
    generator, hits = np.random.default_rng(0), 0
    tasks = ["mrpc", "rte", "qnli", "sst2"]
    for drawn in generator.normal(0.8, 0.02, (200, 4, 8)):
        by_task = {task: dict(enumerate(values)) for task, values in zip(tasks, drawn, strict=True)}
        found = interquartile_mean(SimpleNamespace(scores=by_task.get), SimpleNamespace(averaged_tasks=tasks))
        hits += found.low <= 0.8 <= found.high
    assert 170 <= hits <= 198


def test_collapsed_runs(tmp_path):
    """Of five runs one has collapsed and one diverged; both stay in the count where they are dropped."""
    write_rows(tmp_path / "a", {"cola": [0.5, 0.0, 0.6], "rte": [0.7, 0.7]})
    fail_run(tmp_path / "a", 3, "rte", "diverged", "the loss is nan")
    for flags in (["--allow_missing"], ["--allow_missing", "--drop_collapsed"]):
        results = results_of(tmp_path / "a", 3, *flags)
        assert collapsed_runs(results.rows[0], results) == (2, 6)


def test_columns_and_records(tmp_path, capsys):
    """The columns stand behind avg, and their numbers among the records."""
    roots = two_rows(tmp_path)
    _, out, _ = said(capsys, parse_results, *roots, 2, "--aggregate", "all", "--published", *AS_ROWS)
    assert out[1].startswith(
        "name | mrpc | cola | rte | avg | avg without CoLA | mean rank | IQM [95 %] | collapsed | "
    )
    assert out[2].startswith("a | 85.0 ± 7.1 | 60.0 ± 14.1 | 70.0 ± 14.1 | 71.7 ± 11.8 | 77.5 ± 10.6 | 1.5 | 72.5 [")
    assert "] | 0 of 6 | " in out[2]
    lengths = {len(line.split(" | ")) for line in out[1:] if line.endswith(r"M | - | - | - | - \\")}
    assert lengths == {len(out[1].split(" | "))}
    _, out, _ = said(capsys, parse_results, *roots, 2, "--aggregate", "rank,without_cola", "--format", "json")
    numbers = json.loads("\n".join(out))["numbers"]
    found = [(n["name"], n["task"], n["value"]) for n in numbers if n["task"] in ("rank", "without_cola")]
    assert found == [
        ("a", "rank", 1.5), ("a", "without_cola", pytest.approx(77.5)),
        ("b", "rank", 1.5), ("b", "without_cola", pytest.approx(72.5)),
    ]  # fmt: skip


def test_names_that_are_refused(tmp_path):
    """Unknown and repeated ones, and what has no meaning for this table; `all` leaves that out."""
    results = results_of(*two_rows(tmp_path), 2)
    for text in ("mean", "rank,rank", "", ","):
        with pytest.raises(UsageError, match="--aggregate .*: allowed are `all` or some of without_cola, rank, iqm"):
            wanted_aggregates(text, results)
    write_run(tmp_path / "c", 1, "rte", 0.7)
    one = results_of(tmp_path / "c", 1)
    assert wanted_aggregates("all", one) == ["iqm", "collapse"] and wanted_aggregates(None, one) == []
    for name, why in (("rank", "there is one row"), ("without_cola", "avg is not over CoLA and another task")):
        with pytest.raises(UsageError, match=f"--aggregate {name}: {why}"):
            wanted_aggregates(name, one)
