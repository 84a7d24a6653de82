"""tables/search.py: the scores of a search, the rate they choose, and what smaller budgets would have reached."""

import itertools
import statistics
from decimal import Decimal
from pathlib import Path

import pytest
from sweep_helpers import diverge, end_search, tuned

from glue_peft.run_folder import write_json
from glue_peft.tables.search import Trial, choose, expected_best, quantile, read_search, read_searches, resamples

# Uni-LoRA's published runs (github.com/zh37908/Uni-LoRA, folder results_glue): for each rate of the head the score of
# the last epoch, seeds 0 to 4, from logs that are complete. RTE: right answers of 277; CoLA: Matthews' correlation in
# percent.
BASE_RTE = {
    "1e-4": [208, 208, 216, 211, 209],  # sum 1052
    "2e-4": [210, 210, 210, 218, 214],  # 1062
    "5e-4": [214, 219, 216, 212, 228],  # 1089
    "1e-3": [216, 217, 220, 217, 222],  # 1092
    "2e-3": [220, 216, 213, 212, 211],  # 1072
    "5e-3": [211, 215, 202, 222, 214],  # 1064
    "1e-2": [221, 225, 211, 207, 219],  # 1083
    "2e-2": [220, 220, 221, 207, 221],  # 1089
}
LARGE_RTE = {
    "1e-4": [235, 240, 229, 238, 237],  # 1179
    "2e-4": [229, 234, 239, 235, 234],  # 1171
    "5e-4": [229, 231, 237, 239, 235],  # 1171
    "1e-3": [231, 240, 235, 238, 230],  # 1174
    "2e-3": [231, 236, 233, 234, 231],  # 1165
    "5e-3": [231, 229, 240, 240, 235],  # 1175
    "1e-2": [236, 234, 240, 237, 229],  # 1176
    "2e-2": [201, 226, 137, 207, 211],  # 137 is below the share of the more frequent class, 146
}
LARGE_COLA = {
    "1e-4": [64.55, 63.56, 64.81, 62.84, 62.57],  # 318.33
    "2e-4": [64.55, 62.57, 66.02, 66.02, 66.57],  # 325.73
    "5e-4": [64.30, 64.55, 62.32, 66.03, 63.56],  # 320.76
    "1e-3": [65.53, 64.06, 60.82, 63.07, 64.06],  # 317.54
    "2e-3": [63.81, 63.81, 60.82, 63.31, 64.58],  # 316.33
    "5e-3": [64.56, 65.78, 63.56, 66.76, 65.32],  # 325.98
    "1e-2": [65.55, 64.32, 64.61, 65.31, 65.78],  # 325.57
    "2e-2": [66.77, 65.04, 63.81, 60.82, 62.32],  # 318.76
}


def trials(scores: dict[str, list[float | None]], collapsed: str = "") -> list[Trial]:
    """Return the trials of each rate, seeds from 0; those at rates in `collapsed`, or without a score, collapsed."""
    return [
        Trial(Decimal(rate), seed, score, "it did" if score is None or rate in collapsed.split() else None)
        for rate, of_rate in scores.items()
        for seed, score in enumerate(of_rate)
    ]


@pytest.mark.parametrize(
    ("scores", "whole", "rate", "mean", "edge"),
    [
        (BASE_RTE, 277, "1e-3", 1092 / 5 / 277, ""),
        (LARGE_RTE, 277, "1e-4", 1179 / 5 / 277, "lower"),
        (LARGE_COLA, 100, "5e-3", 3.2598 / 5, ""),
    ],
    ids=["base RTE", "large RTE", "large CoLA"],
)
def test_the_rates_that_published_runs_choose(tmp_path, scores, whole, rate, mean, edge):
    """By the sums beside the numbers. What large RTE needs is one more rate below 1e-4."""
    task = "cola" if whole == 100 else "rte"
    now = tuned(tmp_path, ADAPTERS="lora", TASKS=task, LEARNING_RATES=" ".join(scores), SEARCH_SEEDS="100-104")
    for run in now.search:
        score = scores[run.row.rpartition("_lr")[2]][int(run.seed) - 100] / whole
        end_search(run, score, share=146 / 277)
    found = read_search(tmp_path / "lora4", task)
    assert len(found) == 40 and sum(trial.collapse is not None for trial in found) == (scores is LARGE_RTE)
    chosen = choose(found)
    assert (chosen.rate, chosen.edge, chosen.collapsed) == (Decimal(rate), edge, 0)
    assert chosen.mean == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "collapsed", "rate", "edge"),
    [
        ({"1": [0.5], "2": [0.6], "4": [0.6]}, "", "2", ""),
        ({"1": [0.6], "2": [0.6], "4": [0.5]}, "", "2", ""),
        ({"1": [0.5], "2": [0.6], "4": [0.6], "8": [0.5]}, "", "2", ""),
        ({"1": [0.5, None], "2": [0.3, 0.3], "4": [0.2, 0.9]}, "4", "2", ""),
        ({"1": [0.1, 0.2], "2": [None, None]}, "", "1", "lower"),
        ({"1": [None, None], "2": [None, 0.1], "4": [None, 0.2]}, "", "4", "upper"),
        ({"1": [0.7]}, "", "1", ""),
    ],
)
def test_the_choice_by_hand(scores, collapsed, rate, edge):
    """Equal means: nearest to the middle, then the lower one. Rates with a collapse are out unless all have one."""
    chosen = choose(trials(scores, collapsed))
    assert (chosen.rate, chosen.edge) == (Decimal(rate), edge)
    assert choose(reversed(trials(scores, collapsed))) == chosen


def test_a_row_s_search_is_its_own(tmp_path):
    """Not that of another tag or adapter, another task, nor what is no run; one that diverged has no score."""
    for tag in ("", "_x"):
        for run in tuned(tmp_path, TAG=tag, TASKS="rte mrpc").search:
            end_search(run, 0.6) if "lr1e-2" not in run.folder or run.seed == "102" else diverge(run)
    (tmp_path / "search/lora4_lr1e-4/103/rte").mkdir(parents=True)
    (tmp_path / "search/lora4_lrx/101/rte").mkdir(parents=True)
    write_json(tmp_path / "search/lora4_lr1e-4/102/rte/run.json", {"scores": {"last": {"eval_accuracy": 0.5}}})
    found = read_search(tmp_path / "lora4", "rte")
    assert [(str(trial.rate), trial.seed) for trial in found] == [
        ("0.0001", 101), ("0.001", 101), ("0.001", 102), ("0.01", 101), ("0.01", 102),
    ]  # fmt: skip
    assert [trial.score for trial in found] == [0.6, 0.6, 0.6, None, 0.6]
    assert found[3].collapse == "diverged: the training loss is nan at step 3"
    roots = {name: tmp_path / name for name in ("lora4_x", "none")}
    searches = read_searches(roots, ["rte", "cola"])
    assert len(searches["lora4_x"]["rte"]) == 6 and searches["lora4_x"].keys() == {"rte"} and searches["none"] == {}


def test_a_constant_output_on_the_held_out_rows_is_a_collapse(tmp_path):
    """As is an accuracy that the most frequent class has."""
    runs = tuned(tmp_path, ADAPTERS="lora").search
    for run, (score, classes) in zip(runs, [(0.7, 1), (0.5, 2), (0.51, 2)], strict=False):
        end_search(run, score, classes)
    reasons = {trial.score: trial.collapse for trial in read_search(tmp_path / "lora4", "rte")}
    assert "constant output" in reasons[0.7] and "most frequent class" in reasons[0.5] and reasons[0.51] is None


# Smaller budgets


@pytest.mark.parametrize(
    ("scores", "collapsed", "expected"),
    [
        # Each rate with 1/3; of two rates the best is 0.4 in two of three pairs.
        ({"1": [0.1], "2": [0.4], "4": [0.2]}, "", [(0.7 / 3, 0.1, 0.4), (1 / 3, 0.2, 0.4), (0.4, 0.4, 0.4)]),
        # Two seeds: both the first, both the second, and twice one of each.
        ({"1": [0.2, 0.4]}, "", [(0.3, 0.2, 0.4)]),
        # A collapsed rate is taken where there is no other, one without a score counts as the worst there is.
        ({"1": [0.9], "2": [0.5]}, "1", [(0.7, 0.5, 0.9), (0.5, 0.5, 0.5)]),
        ({"1": [None], "2": [0.5], "4": [0.3]}, "", [(1.1 / 3, 0.3, 0.5), (1.3 / 3, 0.3, 0.5), (0.5, 0.5, 0.5)]),
        ({"1": [None]}, "", [(0.0, 0.0, 0.0)]),
    ],
)
def test_the_expected_best_by_hand(scores, collapsed, expected):
    """Mean and 95 % interval of budgets of one rate, two, all."""
    for found, wanted in zip(expected_best(trials(scores, collapsed)), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-12)


def test_the_expected_best_is_that_of_every_choice_of_rates_and_seeds():
    """Counted one by one, with the choice that the sweep itself makes."""
    scores = {"1": [0.3, 0.5, 0.1], "2": [0.6, 0.2, 0.7], "4": [0.8, None, 0.7], "8": [0.4, 0.45, 0.5]}
    for k, (mean, low, high) in enumerate(expected_best(trials(scores)), start=1):
        reached = []
        for seeds in itertools.product(range(3), repeat=3):
            for rates in itertools.combinations(scores, k):
                drawn = {rate: [scores[rate][seed] for seed in seeds] for rate in rates}
                best = choose(trials(drawn)).mean
                reached.append(0.1 if best is None else best)
        assert mean == pytest.approx(statistics.fmean(reached), abs=1e-12)
        ordered = sorted(reached)
        assert low == pytest.approx(ordered[int(0.025 * len(ordered))], abs=1e-12)
        assert high == pytest.approx(ordered[int(0.975 * len(ordered) - 1e-9)], abs=1e-12)


def test_many_seeds_are_drawn_a_fixed_number_of_times():
    """Four have 256 draws in all; five are drawn by chance, always alike."""
    assert len(resamples([1, 2, 3, 4])) == 256 == len(set(resamples([1, 2, 3, 4])))
    draws = resamples([1, 2, 3, 4, 5])
    assert len(draws) == 256 and draws == resamples([1, 2, 3, 4, 5]) and {*map(len, draws)} == {5}
    assert quantile([(1.0, 0.5), (2.0, 0.5)], 0.5) == 1.0 and quantile([(1.0, 0.5), (2.0, 0.5)], 1.1) == 2.0


def test_what_is_no_folder_of_a_search_is_no_search(tmp_path):
    """Nothing there at all."""
    assert read_search(Path(tmp_path / "lora4"), "rte") == []
