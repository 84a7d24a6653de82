"""bootstrap.py: intervals over validation rows and seeds."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from helpers import AS_ROWS, results_of, said, write_answers

import parse_results
from glue_peft.tables.answers import read_answers
from glue_peft.tables.bootstrap import average_of, bootstrap_tables, draw_task, with_seeds

ROWS = 400


def write(root: Path, task: str, *seeds: np.ndarray) -> Path:
    """Write a run for each seed, right where it says so; every other label is 1."""
    labels = np.arange(len(seeds[0])) % 2
    for seed, is_right in enumerate(seeds, start=1):
        write_answers(root, seed, task, labels, np.where(is_right, labels, 1 - labels))
    return root


def right(generator: np.random.Generator, share: float = 0.75) -> np.ndarray:
    """Return which rows are right, a share of them exactly."""
    return generator.permutation(ROWS) < share * ROWS


def drawn_of(*argv: object, draws: int = 2000, seed: int = 0, task: str = "rte"):
    """Return what is drawn for each row of a table."""
    results = results_of(*argv, "--tasks", task)
    return draw_task(results, task, read_answers(results, False)[0][task], draws, seed)


def test_a_single_run_has_the_binomial_interval(tmp_path):
    """Three quarters of 400 rows: 75 ± 1.96 sqrt(0.75 x 0.25 / 400), or 4.2 points; and so have five equal seeds."""
    is_right = right(np.random.default_rng(0))
    for n in (1, 5):
        drawn = drawn_of(write(tmp_path / f"{n}", "rte", *[is_right] * n), n)[0]
        low, high = drawn.interval
        assert drawn.value == 0.75 and high - low == pytest.approx(2 * 1.96 * math.sqrt(0.75 * 0.25 / ROWS), rel=0.08)


def test_seeds_with_their_own_ways_are_counted_once():
    """Scores of seeds as on new rows each: the variance of their mean is p (1 - p) / (rows x seeds), and no more.

    Of seeds that are better or worse on all rows it is their variance over their number.
    """
    generator = np.random.default_rng(0)
    variances = []
    for _ in range(300):
        own_rows = generator.binomial(ROWS, 0.75, (2000, 5)) / ROWS
        scores = generator.binomial(ROWS, 0.75, 5) / ROWS
        on_rows = own_rows + scores - own_rows.mean(axis=0)
        variances.append(with_seeds(on_rows, scores, generator).var())
    expected = 0.75 * 0.25 / ROWS / 5
    assert 0.95 * expected < np.median(variances) < 1.25 * expected
    scores = np.array([0.70, 0.72, 0.74, 0.76, 0.78])
    same = np.tile(scores, (200_000, 1))
    t_variance = 4 / (4 - 2)
    assert with_seeds(same, scores, generator).var() == pytest.approx(scores.var(ddof=1) / 5 * t_variance, rel=0.05)


def test_differences_are_paired_over_rows(tmp_path):
    """A run that is right on eight rows more is better by two points on any rows; two equal runs never differ."""
    is_right = right(np.random.default_rng(0))
    better = is_right.copy()
    better[np.flatnonzero(~is_right)[:8]] = True
    roots = [write(tmp_path / name, "rte", runs) for name, runs in (("a", is_right), ("b", better), ("c", is_right))]
    (table, _), records = bootstrap_tables(results_of(*roots, 1, "--tasks", "rte"), [(0, 1), (0, 2)], 2000, 0, False)
    found = {record["name"]: (record["low"], record["high"]) for record in records if record["task"] == "rte"}
    low, high = found["b minus a"]
    width = 2 * 1.96 * math.sqrt(0.02 * 0.98 / ROWS) * 100
    assert 0 < low < 2 < high and high - low == pytest.approx(width, rel=0.12)
    assert found["c minus a"] == (0, 0)
    assert table.rows[-1] == ["c minus a", "0.0 (0.0 to 0.0, rows alone)", "0.0 (0.0 to 0.0, rows alone)"]


def test_draws_depend_on_the_seed_and_on_no_other_row_task_or_name(tmp_path):
    """The same command has the same numbers, and a row has the same in another table or under another name."""
    generator = np.random.default_rng(0)
    roots = [write(tmp_path / name, "rte", *(right(generator) for _ in range(3))) for name in "ab"]
    for root in roots:
        write(root, "mrpc", *(right(generator) for _ in range(3)))
    first, second = drawn_of(*roots, 3)[1], drawn_of(roots[1], 3)[0]
    assert np.array_equal(first.scores, second.scores)
    assert not np.array_equal(first.scores, drawn_of(roots[1], 3, seed=1)[0].scores)
    results = results_of(roots[1], 3, "--tasks", "mrpc,rte")
    again = draw_task(results, "rte", read_answers(results, False)[0]["rte"], 2000, 0)[0]
    assert np.array_equal(again.scores, first.scores)
    assert np.array_equal(drawn_of(*roots, 3, "--names", "b=LoRA")[1].scores, first.scores)


def test_many_rows_are_drawn_in_parts(tmp_path, monkeypatch):
    """QQP's 40,430 rows a thousand times would not fit into memory; the draws are the same."""
    root = write(tmp_path / "a", "rte", right(np.random.default_rng(0)))
    whole = drawn_of(root, 1)[0].scores
    monkeypatch.setattr("glue_peft.tables.bootstrap.CHUNK", 3 * ROWS)
    assert np.array_equal(drawn_of(root, 1)[0].scores, whole)


def test_the_average_has_each_tasks_own_draws(tmp_path):
    """Its variance is that of two independent tasks' mean; without a seed of one there is none."""
    generator = np.random.default_rng(0)
    root = tmp_path / "a"
    write(root, "rte", right(generator), right(generator))
    write(root, "mrpc", right(generator), right(generator))
    tasks = [drawn_of(root, 2, task=task)[0] for task in ("rte", "mrpc")]
    average = average_of(tasks)
    assert average.scores.var() == pytest.approx(sum(task.scores.var() for task in tasks) / 4, rel=0.15)
    assert average_of([tasks[0], None]) is None
    assert average_of([tasks[0], drawn_of(root, 1, task="mrpc")[0]]) is None


def test_mnli_draws_both_sets(tmp_path):
    """Each by itself: the interval of the mean is narrower than one set's by sqrt(2)."""
    labels, generator = np.arange(ROWS) % 3, np.random.default_rng(0)
    given = [np.where(right(generator), labels, (labels + 1) % 3) for _ in range(2)]
    write_answers(tmp_path / "a", 1, "mnli", labels, *given)
    low, high = drawn_of(tmp_path / "a", 1, task="mnli")[0].interval
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.75 * 0.25 / ROWS / 2), rel=0.08)


# parse_results.py


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    """Two rows of three seeds on two tasks."""
    generator = np.random.default_rng(0)
    found = []
    for name in ("lora4", "vera16"):
        for task in ("rte", "mrpc"):
            write(tmp_path / name, task, *(right(generator, 0.7 + 0.02 * i) for i in range(3)))
        found.append(tmp_path / name)
    return found


def test_the_tables_stand_below_the_others(capsys, roots):
    """Rows, then differences; agreement; nothing of it without --bootstrap."""
    command = (*roots, 3, "--tasks", "rte,mrpc", *AS_ROWS)
    status, lines, _ = said(capsys, parse_results, *command, "--bootstrap", 200)
    assert status == 0
    plain = said(capsys, parse_results, *command)[1]
    assert lines[: len(plain)] == plain
    title, header, *rest = lines[len(plain) + 1 :]
    assert "two-level bootstrap (200 draws, --bootstrap_seed 0)" in title and header == r"name | rte | mrpc | avg \\"
    assert [line.partition(" |")[0] for line in rest[:3]] == ["lora4", "vera16", "vera16 minus lora4"]
    assert rest[0].startswith("lora4 | 72.0 (") and rest[4].startswith("agreement of the seeds")
    assert said(capsys, parse_results, *command, "--bootstrap", 200)[1] == lines
    assert said(capsys, parse_results, *command, "--bootstrap", 200, "--bootstrap_seed", 1)[1] != lines


def test_the_numbers_are_in_csv_and_json(capsys, roots):
    """A record for each interval and each agreement."""
    command = (*roots, 3, "--tasks", "rte,mrpc", "--bootstrap", 200, "--format")
    lines = list(csv.DictReader(io.StringIO("\n".join(said(capsys, parse_results, *command, "csv")[1]))))
    kinds = [line["kind"] for line in lines]
    assert (kinds.count("bootstrap"), kinds.count("agreement")) == (9, 4)
    (line,) = (
        line for line in lines if line["kind"] == "bootstrap" and line["name"] == "lora4" and line["task"] == "avg"
    )
    assert float(line["value"]) == pytest.approx(72) and float(line["low"]) < 72 < float(line["high"])
    assert (line["draws"], line["bootstrap_seed"], line["n"]) == ("200", "0", "3")
    text = "\n".join(said(capsys, parse_results, *command, "json")[1])
    assert sum(number["kind"] == "bootstrap" for number in json.loads(text)["numbers"]) == 9


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--bootstrap", 99], "--bootstrap 99: allowed are 100 to 100000"),
        (["--bootstrap", "many"], "--bootstrap"),
        (["--bootstrap", 100, "--bootstrap_seed", -1], "--bootstrap_seed -1: allowed are 0 to 4294967295"),
        (["--bootstrap_seed", 3], "--bootstrap_seed is for the draws of --bootstrap"),
        (["--bootstrap", 100, "--statistic", "median"], "--bootstrap is of means"),
        (["--bootstrap", 100, "--format", "runs"], "--format runs lists each run by itself: --bootstrap"),
        (["--bootstrap", 100, "--status"], "--status goes with --tasks alone, not with --bootstrap"),
    ],
)
def test_what_is_refused(capsys, roots, flags, wanted):
    """In one line."""
    status, lines, errors = said(capsys, parse_results, *roots, 3, "--tasks", "rte,mrpc", *flags)
    assert (status, lines) == (2, []) and wanted in errors[-1]


def test_runs_without_answers_are_named(capsys, roots):
    """Or left out, with a line, where --allow_missing says so."""
    path = roots[0] / "2" / "rte" / "eval_predictions.npz"
    path.unlink()
    command = (*roots, 3, "--tasks", "rte,mrpc", "--bootstrap", 100)
    status, _, errors = said(capsys, parse_results, *command)
    assert status == 2 and errors[-1] == f"  {path}: missing"
    status, lines, _ = said(capsys, parse_results, *command, "--allow_missing")
    assert status == 0 and "no part of these intervals, without usable answers: 1 run" in lines


@pytest.mark.parametrize("metric", ["accuracy", "mse"])
def test_intervals_of_data_of_ones_own(tmp_path, capsys, metric):
    """As of GLUE's: right answers of classes, squared errors of numbers, whose mean is the run's own."""
    labels, given = np.arange(40) % 2, np.arange(40) % 2
    given[:10] = 1 - given[:10]  # a quarter is wrong, or off by 1
    for seed in (1, 2):
        folder = write_answers(tmp_path / "a", seed, "stsb" if metric == "mse" else "rte", labels, given)
        value = 0.75 if metric == "accuracy" else 0.25
        record = json.loads((folder / "run.json").read_text())
        record["arguments"]["task_name"] = None
        record["scores"] = {"metric": f"eval_{metric}", "last": {f"eval_{metric}": value}}
        (folder / "run.json").write_text(json.dumps(record))
        folder.rename(folder.with_name("own"))
    status, lines, err = said(capsys, parse_results, tmp_path, "--bootstrap", 200, "--format", "json")
    assert (status, err) == (0, [])
    (found,) = (n for n in json.loads("\n".join(lines))["numbers"] if n["kind"] == "bootstrap" and n["task"] == "own")
    expected = 75 if metric == "accuracy" else 0.25
    assert found["value"] == pytest.approx(expected) and found["low"] < expected < found["high"]
