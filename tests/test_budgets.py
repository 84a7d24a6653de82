"""tables/budgets.py: what a table says of the search behind its rows, and verdicts between unequal budgets."""

import json
from decimal import Decimal
from pathlib import Path

import pytest
from helpers import AS_ROWS, FIVE, results_of, said, shifted, write_rows
from sweep_helpers import end_searches, rate_of

import parse_results
from glue_peft.grid import Run
from glue_peft.tables.budgets import Budget, budget_of, marked_rows, tuning_caption, tuning_notes, withhold_verdicts
from glue_peft.tables.comparisons import best_cells, compare_rows
from glue_peft.tables.search import Trial, read_searches

TABLE = {"rte": FIVE, "mrpc": FIVE}
CASES = [
    ("1e-4 1e-3 1e-2", "1e-6 1e-5 1e-4", True),  # the same factors
    ("1e-4 3e-4 1e-3", "1e-3 3.3e-3 1e-2", True),  # up to rounding
    ("1e-4 1e-3 1e-2", "1e-4 1e-3", False),
    ("1e-4 1e-3 1e-2", "1e-4 2e-4 4e-4", False),
]


def score_by_rate(run: Run) -> float:
    """Return a score with its best rate at 1e-3 for LoRA and 1e-2 for VeRA."""
    best = 1e-2 if "vera" in run.folder else 1e-3
    return 0.7 if rate_of(run) == best else 0.6


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    """Write the final runs of LoRA and of VeRA, which is better by 30 points everywhere."""
    better = {task: shifted([0.2, 0.21, 0.2, 0.21, 0.2]) for task in TABLE}
    rows = (("lora4", TABLE, 1e-3), ("vera256", better, 1e-2))
    return [write_rows(tmp_path / name, scores, arguments={"learning_rate": rate}) for name, scores, rate in rows]


def searches_of(results):
    """Return the searches behind a table's rows."""
    return read_searches({row.name: row.root for row in results.rows}, results.tasks)


def budget(rates: str, seeds: tuple[int, ...] = (101, 102, 103)) -> Budget:
    """Return the budget of a complete grid."""
    return budget_of([Trial(Decimal(rate), seed, 0.5) for rate in rates.split() for seed in seeds])


@pytest.mark.parametrize(("first", "second", "expected"), CASES)
def test_equal_budgets_have_as_many_rates_and_the_same_factors(first, second, expected):
    """Whatever the values."""
    assert budget(first).equals(budget(second)) is expected is budget(second).equals(budget(first))


def test_equal_budgets_have_as_many_seeds_and_runs():
    """And say in words what they are."""
    assert not budget("1 2").equals(budget("1 2", (101, 102))) and budget("1 2").equals(budget("1 2", (1, 2, 3)))
    broken = Budget(budget("1 2").rates, budget("1 2").seeds, 5)
    assert not budget("1 2").equals(broken)
    assert (str(budget("1 2")), str(broken)) == ("2 rates x 3 seeds", "2 rates x 3 seeds (5 runs)")
    assert str(budget_of([])) == "no search" and budget_of([]).equals(budget_of([]))


def test_without_a_search_a_table_is_as_ever(roots):
    """Nothing in the caption, no note, no mark, every verdict."""
    results = results_of(*roots, 5)
    family = compare_rows(results, False)
    assert searches_of(results) == {"lora4": {}, "vera256": {}}
    assert tuning_caption(results, searches_of(results)) is None and tuning_notes(results, {}, False) == []
    assert withhold_verdicts(family, results, searches_of(results)) == family and not marked_rows(results, {})


def test_a_table_prints_budget_grid_seeds_criterion_and_the_chosen_rates(roots, tmp_path, capsys):
    """Here VeRA's is at the grid's edge even after two more rates on that side for both methods."""

    def score(run: Run) -> float:
        """Return a score that rises with VeRA's rate for ever."""
        return 0.6 + rate_of(run) / 100 if "vera" in run.folder else score_by_rate(run)

    end_searches(tmp_path, score, TASKS="rte mrpc")
    status, lines, _ = said(capsys, parse_results, *roots, 5, "--tasks", "rte,mrpc", *AS_ROWS)
    assert status == 0
    assert lines[0].endswith(
        "; learning rates searched: 5 rates x 2 seeds a row and task, last epoch on held-out training rows, best mean "
        "without a collapse"
    )
    assert lines[5:7] == [
        "tuned: lora4, rates 1e-4 1e-3 1e-2 1e-1 1e0, seeds 101 to 102: rte 1e-3 (70.0); mrpc 1e-3 (70.0)",
        "tuned: vera256, rates 1e-4 1e-3 1e-2 1e-1 1e0, seeds 101 to 102: rte 1e0 (61.0, the grid's upper edge, but "
        "trained with 0.01); mrpc 1e0 (61.0, the grid's upper edge, but trained with 0.01)",
    ]
    assert sum("vera256 is better" in line for line in lines) == 3 and not any("*" in line for line in lines)


def test_rows_of_unequal_budgets_are_marked_and_get_no_verdict(roots, tmp_path, capsys):
    """On the task in question and the average; --unequal_budgets gives them all the same."""
    end_searches(tmp_path, score_by_rate, TASKS="rte mrpc", ADAPTERS="lora")
    end_searches(tmp_path, score_by_rate, TASKS="rte", ADAPTERS="vera", LEARNING_RATES="1e-3 1e-2 1e-1")
    end_searches(tmp_path, score_by_rate, TASKS="mrpc", ADAPTERS="vera", LEARNING_RATES="1e-3 1e-2 1e-1 1e0")
    argv = [*roots, 5, "--tasks", "rte,mrpc"]
    _, lines, _ = said(capsys, parse_results, *argv, *AS_ROWS)
    assert lines[2].startswith("lora4 | ") and lines[3].startswith("vera256 * | ")
    assert (
        "* unequal budgets on mrpc: lora4 3 rates x 2 seeds, vera256 4 rates x 2 seeds: no verdict between them "
        "(--unequal_budgets gives one)"
    ) in lines
    assert "3 rates x 2 seeds or 4 rates x 2 seeds a row and task" in lines[0]
    verdicts = {line.split(" | ")[0]: line.split(" | ")[-1] for line in lines if line.split(" | ")[1:2] == ["5"]}
    assert verdicts["rte"].startswith("vera256 is better") and verdicts.keys() == {"rte", "mrpc", "avg"}
    assert verdicts["mrpc"] == verdicts["avg"] == "no verdict: budgets differ \\\\"
    results = results_of(*argv)
    family = withhold_verdicts(compare_rows(results, False), results, searches_of(results))
    assert best_cells(results, "mean", family) == {(1, 1)}  # no bold either
    _, lines, _ = said(capsys, parse_results, *argv, "--unequal_budgets", *AS_ROWS)
    assert sum("vera256 is better" in line for line in lines) == 3 and any("* unequal" in line for line in lines)
    assert not any("no verdict" in line for line in lines)
    _, text, _ = said(capsys, parse_results, *argv, "--format", "json")
    records = json.loads("\n".join(text))["numbers"]
    assert [r["verdict"] for r in records if r["kind"] == "comparison"][1:] == ["no verdict: budgets differ"] * 2


def test_a_row_without_a_search_beside_one_with_it_is_unequal(roots, tmp_path):
    """It had no rate to choose; of two different rows the first is the usual one."""
    end_searches(tmp_path, score_by_rate, TASKS="rte mrpc", ADAPTERS="lora")
    results = results_of(*roots, 5, "--tasks", "rte,mrpc")
    searches = searches_of(results)
    assert marked_rows(results, searches) == {"vera256"}
    notes = tuning_notes(results, searches, unequal_budgets=True)
    assert notes[-1] == "* unequal budgets on mrpc: lora4 3 rates x 2 seeds, vera256 no search"


def test_collapses_at_every_rate_are_said_beside_the_choice(roots, tmp_path):
    """As in the sweep."""
    end_searches(tmp_path, lambda run: None if run.seed == "101" else 0.6, TASKS="rte", ADAPTERS="lora")
    results = results_of(roots[0], 5, "--tasks", "rte")
    (line,) = tuning_notes(results, searches_of(results), False)
    assert line.endswith("rte 1e-3 (60.0, 1 collapsed, as some did at every rate)")


def test_the_runs_of_a_search_can_be_listed_and_are_no_rows_by_accident(roots, tmp_path, capsys):
    """--epoch held_out reads them; the folder, and the file of the rates, are not taken for rows behind a `*`."""
    end_searches(tmp_path, score_by_rate, TASKS="rte", ADAPTERS="lora")
    (tmp_path / "tuned.tsv").write_text("adapter\n")
    status, lines, _ = said(capsys, parse_results, *sorted(tmp_path.iterdir()), 5, "--tasks", "rte", *AS_ROWS)
    assert status == 0 and [line.split(" | ")[0] for line in lines[2:4]] == ["lora4", "vera256 *"]
    runs = sorted((tmp_path / "search").iterdir())
    status, lines, _ = said(capsys, parse_results, *runs, "101-102", "--epoch", "held_out", "--format", "runs")
    header, *rows = [line.split(",") for line in lines]
    assert [row[header.index("held_out")] for row in rows] == ["60.0"] * 2 + ["70.0"] * 2 + ["60.0"] * 2
    status, _, errors = said(capsys, parse_results, *runs, "101-102")
    assert status == 2 and any("has no eval_accuracy" in line for line in errors)
