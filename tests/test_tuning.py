"""tuning.py: which runs a tuned sweep consists of, with planted results of its search."""

import contextlib
import math
import os
import re
import shlex
import signal
import subprocess
import time
from decimal import Decimal
from pathlib import Path

import pytest
from helpers import assert_same_results
from sweep_helpers import (
    REPOSITORY,
    diverge,
    dry_run,
    end_search,
    end_searches,
    environment,
    rate_of,
    train_all,
    tuned,
)

import run_glue
from glue_peft import run_folder, tuning
from glue_peft.errors import UsageError
from glue_peft.grid import COLUMNS, Run, read_grid, read_recipe

BASE = "FacebookAI/roberta-base"


def best_at(**best: float):
    """Return scores that fall off on both sides of each adapter's best rate."""

    def score(run: Run) -> float:
        """Return the score of a run."""
        adapter = next(name for name in best if f"/{name}" in run.folder)
        return 0.9 - 0.1 * abs(math.log10(rate_of(run) / best[adapter]))

    return score


def rates(now: tuning.Tuning) -> dict[str, list[str]]:
    """Return the rates of the search's runs, by row."""
    found: dict[str, list[str]] = {}
    for run in now.search:
        row, _, rate = run.row.rpartition("_lr")
        found.setdefault(row, []).append(rate)
    return {row: list(dict.fromkeys(of_row)) for row, of_row in found.items()}


# The search


def test_the_search_has_each_adapter_s_own_rates_and_never_the_validation_set():
    """By default five factors and three seeds; without --do_eval, and without flags that ask for further files."""
    flags = ["--do_predict", "--max_predict_samples", "8", "--num_train_epochs", "2", "--do_eval", "True"]
    lines = dry_run(*flags, TUNE="1", TASKS="mrpc")
    assert len(lines) == 2 * 3 * 5 * 3
    found: dict[tuple, set[float]] = {}
    for line in lines:
        flags = shlex.split(line)[2:]
        model, data, adapter, training = run_glue.parse_arguments(flags)
        assert (training.do_train, training.do_eval, training.do_predict) == (True, False, False)
        assert (training.selection_fraction, training.eval_strategy, training.num_train_epochs) == (0.1, "epoch", 2)
        assert data.max_predict_samples is None
        key = adapter.adapter_name, model.model_name_or_path, training.seed
        found.setdefault(key, set()).add(training.learning_rate)
        row = f"{adapter.adapter_name}{adapter.rank}{'_large' * model.model_name_or_path.endswith('large')}"
        spelled = flags[flags.index("--learning_rate") + 1]
        assert training.output_dir == f"finetuned_results/search/{row}_lr{spelled}/{training.seed}/mrpc"
    assert {key[2] for key in found} == {101, 102, 103}
    for (adapter, *_), values in found.items():
        own = 1e-2 if adapter == "vera" else 1e-4
        assert sorted(values) == pytest.approx([own * factor for factor in (0.1, 0.3, 1, 3, 10)], rel=1e-15)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LEARNING_RATES": "3e-4,1e-3"}, {"lora4": ["3e-4", "1e-3"], "vera256": ["3e-4", "1e-3"]}),
        (
            {"LEARNING_RATES": "", "RATE_FACTORS": "2 0.5 1"},
            {"lora4": ["5e-5", "1e-4", "2e-4"], "vera256": ["5e-3", "1e-2", "2e-2"]},
        ),
        ({"LEARNING_RATES": "0.0012 10"}, {"lora4": ["1.2e-3", "1e1"], "vera256": ["1.2e-3", "1e1"]}),
    ],
)
def test_rates_are_for_all_or_multiples_of_each_adapter_s_own(tmp_path, variables, expected):
    """Ascending, and spelled in one way."""
    assert rates(tuned(tmp_path, **variables)) == expected


def test_a_recipe_s_rate_may_be_a_list_and_the_recipe_a_path(tmp_path, monkeypatch):
    """Its own file may stand anywhere, with full fine-tuning too; without TUNE a list is refused."""
    header = "\t".join(COLUMNS)
    rows = ["lora\tmine\trte\t4\t1e-4 3e-4\t2\t8\t64\t-\tme", "none\tmine\trte\t-\t2e-5,5e-5,1e-4\t2\t8\t64\t-\tme"]
    (tmp_path / "own.tsv").write_text("\n".join([header, *rows]))
    chosen = {"RECIPE": str(tmp_path / "own.tsv"), "MODELS": "", "ADAPTERS": "", "TASKS": "", "LEARNING_RATES": ""}
    now = tuned(tmp_path / "results", **chosen)
    assert rates(now) == {"lora4_mine": ["1e-4", "3e-4"], "none_mine": ["2e-5", "5e-5", "1e-4"]}
    assert "the budgets differ on rte" in tuning.search_lines(now)[-1]
    assert tuning.search_lines(now)[-1].endswith("lora4_mine 2 rates, none_mine 3 rates")
    assert "--rank" not in now.search[-1].flags and now.search[-1].folder.endswith("/none_mine_lr1e-4/102/rte")
    with pytest.raises(UsageError, match="the row of lora, mine, rte has several learning rates, .* TUNE=1"):
        read_grid({"RECIPE": str(tmp_path / "own.tsv")}, [])


@pytest.mark.parametrize(
    ("variables", "flags", "message"),
    [
        ({}, ["--learning_rate", "1e-4"], "--learning_rate: with TUNE set LEARNING_RATES or RATE_FACTORS instead"),
        ({}, ["--selection_fraction=0.2"], "--selection_fraction: with TUNE set SELECTION_FRACTION instead"),
        ({"RATE_FACTORS": "1 3"}, [], "LEARNING_RATES and RATE_FACTORS: set one of them"),
        ({"LEARNING_RATES": "1e-4"}, [], "LEARNING_RATES: 1e-4 is not a list of 2 or more different numbers above 0"),
        ({"LEARNING_RATES": "1e-4 0.0001"}, [], "LEARNING_RATES: 1e-4 0.0001 is not a list"),
        ({"LEARNING_RATES": "1e-4 nan"}, [], "LEARNING_RATES: 1e-4 nan is not a list"),
        ({"LEARNING_RATES": "", "RATE_FACTORS": "1 -3"}, [], "RATE_FACTORS: 1 -3 is not a list"),
        ({"LEARNING_RATES": "", "RATE_FACTORS": "one"}, [], "RATE_FACTORS: one is not a list"),
        ({"SEARCH_SEEDS": "2-4"}, [], "SEARCH_SEEDS: 2 is one of SEEDS too"),
        ({"SEARCH_SEEDS": "x"}, [], "SEARCH_SEEDS: x is not a whole number"),
        ({"RECIPE": "lora", "ADAPTERS": "lora", "LEARNING_RATES": ""}, [], "TUNE: .*lora.tsv starts rte from a run"),
        ({"LEARNING_RATES": "", "ADAPTERS": "none"}, [], "ADAPTERS=none: the recipe has no full fine-tuning"),
        ({"ADAPTERS": "none:3", "RECIPE": "minilm"}, [], "ADAPTERS: none:3 is not <adapter>:<rank>"),
    ],
)
def test_what_contradicts_a_search_is_refused(tmp_path, variables, flags, message):
    """By one line with the name of the variable or flag."""
    with pytest.raises(UsageError, match=f"^{message}"):
        tuned(tmp_path, *flags, **variables)


@pytest.mark.parametrize("name", ["RATE_FACTORS", "LEARNING_RATES", "SEARCH_SEEDS", "SELECTION_FRACTION"])
def test_the_variables_of_a_search_need_tune(name):
    """None is ignored in silence."""
    with pytest.raises(UsageError, match=f"^{name}: goes with TUNE=1; one rate for all runs is --learning_rate$"):
        read_grid({name: "1 2"}, [])


def test_full_fine_tuning_takes_its_rates_from_the_environment(tmp_path):
    """The default recipe has none for it."""
    assert rates(tuned(tmp_path, ADAPTERS="none", LEARNING_RATES="1e-5 3e-5")) == {"none": ["1e-5", "3e-5"]}


# What follows from its results


def test_planted_optima_are_found_and_trained_on_all_rows(tmp_path):
    """Each adapter's own, with every final seed; nothing final is known before the search has ended."""
    assert tuned(tmp_path).runs == tuned(tmp_path).search
    now = end_searches(tmp_path, best_at(lora4=1e-3, vera256=1.5e-3))
    assert [str(found.rate) for found in now.chosen] == ["0.001", "0.001"] and not now.extensions
    assert now.runs == [*now.search, *now.final] and len(now.search) == 12
    assert [(run.row, run.seed, rate_of(run)) for run in now.final] == [
        (row, seed, 1e-3) for row in ("lora4", "vera256") for seed in ("1", "2")
    ]
    for run in now.final:
        assert "--do_eval" in run.flags and "--selection_fraction" not in run.flags and not run.is_search
    # mean of 0.9 twice, and 0.9 - 0.1 log10(1.5) = 0.8824
    lines = tuning.search_lines(now)
    assert lines[0] == "search: 12 of 12 runs finished"
    assert lines[1].startswith(
        "search: lora4, rte: 1e-3: best mean without a collapse on held-out rows, 90.0; rates 1e-4"
    )
    assert "held-out rows, 88.2; rates 1e-4 1e-3 1e-2, seeds 101-102" in lines[2]


def test_models_and_tasks_have_rates_of_their_own(tmp_path):
    """A cell is a model, an adapter and a task."""
    best = {
        ("lora4", "rte"): 1e-3,
        ("lora4", "mrpc"): 3e-3,
        ("lora4_large", "rte"): 1e-2,
        ("lora4_large", "mrpc"): 3e-3,
    }

    def score(run: Run) -> float:
        """Return a score with another optimum in each cell."""
        rate = best[run.row.rpartition("_lr")[0], run.task]
        return 0.9 - 0.1 * abs(math.log10(rate_of(run) / rate))

    chosen = {"ADAPTERS": "lora", "MODELS": f"{BASE} {BASE[:-4]}large", "TASKS": "rte mrpc"}
    now = end_searches(tmp_path, score, LEARNING_RATES="3e-4 1e-3 3e-3 1e-2 3e-2", **chosen)
    assert {(run.row, run.task): rate_of(run) for run in now.final} == best


@pytest.mark.parametrize(
    ("best", "chosen", "grid", "runs"),
    [
        ({"lora4": 1e-1, "vera256": 1e-3}, ["1e-1", "1e-3"], "1e-4 1e-3 1e-2 1e-1 1e0", [12, 16, 20]),
        ({"lora4": 1e-5, "vera256": 1e-3}, ["1e-5", "1e-3"], "1e-6 1e-5 1e-4 1e-3 1e-2", [12, 16, 20]),
        ({"lora4": 1e-1, "vera256": 1e-5}, ["1e-1", "1e-5"], "1e-5 1e-4 1e-3 1e-2 1e-1", [12, 20]),
        ({"lora4": 1e3, "vera256": 1e-3}, ["1e0", "1e-3"], "1e-4 1e-3 1e-2 1e-1 1e0", [12, 16, 20]),
        ({"lora4": 1e-2, "vera256": 1e-3}, ["1e-2", "1e-3"], "1e-4 1e-3 1e-2 1e-1", [12, 16]),
    ],
)
def test_at_a_grid_s_edge_every_method_gets_one_more_rate_there(tmp_path, best, chosen, grid, runs):
    """At most two; then what is still at an edge is said to be. The list of runs only grows."""
    stages = [tuned(tmp_path).runs]
    while not (now := tuned(tmp_path)).chosen:
        for run in now.search:
            if not Path(run.folder).exists():
                end_search(run, best_at(**best)(run))
        stages.append(tuned(tmp_path).runs)
    assert [len([run for run in stage if run.is_search]) for stage in stages] == [*runs, runs[-1]]
    for before, after in zip(stages, stages[1:], strict=False):
        assert after[: len(before)] == before
    assert [tuning.rate_text(found.rate) for found in now.chosen] == chosen
    assert {row: sorted(of_row, key=float) for row, of_row in rates(now).items()} == dict.fromkeys(best, grid.split())
    at_edge = [chosen[0]] == grid.split()[-1:]
    assert ("at the grid's upper edge" in tuning.search_lines(now)[-2]) == at_edge
    assert any("every method gets one more rate" in line for line in tuning.search_lines(now))


@pytest.mark.parametrize(
    ("factors", "below", "above"),
    [
        ("0.1 0.3 1 3 10", "0.03", "30"),
        ("1 2 5 10", "0.5", "20"),
        ("1 1.1", "0.9", "1.2"),
        ("1e-4 3e-4", "0.00003", "0.0009"),
    ],
)
def test_the_next_factor_is_as_far_as_the_last_one(factors, below, above):
    """In few digits: 1 / 1.1 is 0.909, and 1.1 squared 1.21, which one digit would make the 1 that was tried."""
    numbers = [Decimal(number) for number in factors.split()]
    assert (tuning.next_factor(numbers, "lower"), tuning.next_factor(numbers, "upper")) == (
        Decimal(below),
        Decimal(above),
    )


def test_a_better_mean_with_a_collapse_in_it_is_not_chosen(tmp_path):
    """Here 1e-2 is better with one seed, and has a constant output with the other one; 1e-1 diverges."""

    def score(run: Run) -> float | None:
        """Return a score, negative for a constant output."""
        if "vera" in run.folder:
            return best_at(vera=1e-3)(run)
        return {1e-4: 0.6, 1e-3: 0.7, 1e-2: 0.95 if run.seed == "101" else -0.94}.get(rate_of(run))

    now = end_searches(tmp_path, score, LEARNING_RATES="1e-4 1e-3 1e-2 1e-1")
    assert [tuning.rate_text(found.rate) for found in now.chosen] == ["1e-3", "1e-3"] and now.chosen[0].collapsed == 0
    assert len(now.search) == 16 and now.chosen[0].mean == pytest.approx(0.7)


def test_where_every_rate_has_a_collapse_the_fewest_count_and_it_is_said(tmp_path):
    """And the extended grid has not helped."""

    def score(run: Run) -> float | None:
        """One of two seeds collapses at 1e-3, both at the others."""
        return 0.6 if rate_of(run) == 1e-3 and run.seed == "102" else -0.5

    now = end_searches(tmp_path, score, ADAPTERS="lora")
    assert tuning.rate_text(now.chosen[0].rate) == "1e-3" and now.chosen[0].collapsed == 1
    assert "1 of its runs collapsed or diverged, as some did at every rate" in tuning.search_lines(now)[1]
    nothing = end_searches(tmp_path / "nothing", lambda run: None, ADAPTERS="lora")
    assert tuning.rate_text(nothing.chosen[0].rate) == "1e-3"  # the middle: all are equal
    assert "none has a score" in tuning.search_lines(nothing)[1]


def test_a_search_s_run_of_other_flags_or_without_a_score_is_not_finished(tmp_path):
    """Neither one of another number of epochs, nor one that failed; one that diverged is."""
    runs = tuned(tmp_path).search
    for run in runs[:-3]:
        end_search(run, 0.6)
    other = tuned(tmp_path, "--num_train_epochs", "3").search[-3]
    end_search(other, 0.6)
    diverge(runs[-2])
    now = tuned(tmp_path)
    assert sum(len(cell.trials) for cell in now.cells) == len(runs) - 2 and now.runs == now.search
    diverge(runs[-1])
    assert tuned(tmp_path).runs == now.runs


# What it writes


def test_the_chosen_rates_are_a_recipe_that_gives_the_final_runs(tmp_path, monkeypatch):
    """With its origin, the flags that move a score, and beside it what other sweeps chose."""
    monkeypatch.chdir(tmp_path)
    flags = [
        "--num_train_epochs",
        "3",
        "--dataset_path",
        "my data",
        "--do_predict",
        "--lr_scheduler_kwargs",
        '{"a": 1}',
    ]
    more = {"ADAPTERS": "lora:8 none", "RESULTS": "out"}
    tuning.write_recipe(tuned(Path("out"), *flags, **more), {"RESULTS": "out"}, flags)
    assert not Path("out").exists()  # nothing is chosen yet
    for task in ("rte", "mrpc"):
        now = end_searches(Path("out"), best_at(lora8=1e-3, none=1e-4 * 10), *flags, TASKS=task, **more)
        tuning.write_recipe(now, {"RESULTS": "out"}, flags)
    written = read_recipe("out/tuned.tsv")
    assert [(row["adapter"], row["tasks"], row["rank"], row["learning_rate"]) for row in written] == [
        (adapter, task, rank, "1e-3") for task in ("rte", "mrpc") for adapter, rank in (("none", "-"), ("lora", "8"))
    ]
    assert "seeds 101-102" in written[0]["source"] and '"a": 1' in written[0]["flags"]
    given = ["--dataset_path", "my data", "--do_predict"]
    settings = {"RECIPE": "out/tuned.tsv", "RESULTS": "out", "SEEDS": "1-2", "TASKS": "mrpc"}
    again = {run.folder: sorted(run.flags) for run in read_grid(settings, given)}
    assert {run.folder: sorted({*run.flags}) for run in now.final} == {
        folder: sorted({*words}) for folder, words in again.items()
    }
    before = Path("out/tuned.tsv").stat().st_mtime_ns
    tuning.write_recipe(now, {"RESULTS": "out"}, flags)
    assert Path("out/tuned.tsv").stat().st_mtime_ns == before


def test_an_adapter_from_a_file_is_tuned_like_any_other(tmp_path, monkeypatch):
    """Around the first row's rate, in folders of the file's name; the recipe written names the file."""
    monkeypatch.chdir(tmp_path)
    variables = {"ADAPTERS": "lora my/hra.json", "RESULTS": "out", "LEARNING_RATES": "", "RATE_FACTORS": "1 3 10"}
    now = end_searches(Path("out"), best_at(lora4=3e-4, hra=3e-4), **variables)
    assert {run.row for run in now.search} == {
        f"{row}_lr{rate}" for row in ("lora4", "hra") for rate in ("1e-4", "3e-4", "1e-3")
    }
    tuning.write_recipe(now, {"RESULTS": "out"}, [])
    written = {row["adapter"]: row for row in read_recipe("out/tuned.tsv")}
    assert written["hra"]["flags"] == "--fp16 --adapter_config my/hra.json" and written["hra"]["rank"] == "-"
    again = read_grid({"RECIPE": "out/tuned.tsv", "RESULTS": "out", "SEEDS": "1-2"}, [])
    assert {run.folder: {*run.flags} for run in again} == {run.folder: {*run.flags} for run in now.final}
    assert {run.row for run in again} == {"lora4", "hra"}


def test_data_of_one_s_own_are_tuned_by_the_metric_of_their_kind(tmp_path, monkeypatch):
    """Scores by the least mean squared error; the recipe written names the files, so that it can be run by itself."""
    monkeypatch.chdir(tmp_path)
    flags = ["--train_file", "a.csv", "--validation_file", "b.csv", "--test_file", "c.csv"]
    variables = {"ADAPTERS": "lora", "TASKS": "mails", "RESULTS": "out"}
    for run in tuned(Path("out"), *flags, **variables).search:
        assert "--task_name" not in run.flags
        error = 1.5 + abs(math.log10(rate_of(run) / 1e-3))
        record = {"command": run.flags, "arguments": {"do_eval": False}, "data": {"kind": "regression"}}
        record["scores"] = {"metric": "selection_mse", "last": {"epoch": 2.0, "selection_mse": error}}
        for name in (run_folder.COMMAND_FILE, run_folder.RECORD_FILE):
            Path(run.folder).mkdir(parents=True, exist_ok=True)
            run_folder.write_json(Path(run.folder) / name, record)
    now = tuned(Path("out"), *flags, **variables)
    assert [float(found.rate) for found in now.chosen] == [1e-3]
    assert "1e-3: least mean squared error on held-out rows, 1.5; rates" in "\n".join(tuning.search_lines(now))
    tuning.write_recipe(now, {"RESULTS": "out"}, flags)
    (row,) = read_recipe("out/tuned.tsv")
    assert row["flags"] == "--fp16 --train_file a.csv --validation_file b.csv"
    again = read_grid({"RECIPE": "out/tuned.tsv", "RESULTS": "out", "SEEDS": "1-2"}, ["--test_file", "c.csv"])
    assert {run.folder: {*run.flags} for run in again} == {run.folder: {*run.flags} for run in now.final}


def test_status_names_the_next_array(tmp_path):
    """The search's runs, then those of the extended grid, then the final ones."""
    chosen = {"MODELS": BASE, "ADAPTERS": "lora vera", "TASKS": "rte", "SEEDS": "1-2", "SEARCH_SEEDS": "101-102"}
    chosen |= {"LEARNING_RATES": "1e-4 1e-3 1e-2", "RESULTS": str(tmp_path), "TUNE": "1"}

    def status() -> list[str]:
        """Return the lines of STATUS=1."""
        done = train_all("--num_train_epochs", "3", STATUS="1", **chosen)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    rest = f"RESULTS={tmp_path} TUNE=1 'LEARNING_RATES=1e-4 1e-3 1e-2' SEARCH_SEEDS=101-102 sbatch --array={{}}"
    assert rest.format("1-12") in status()[-1] and status()[-1].endswith(" --num_train_epochs 3")
    for run in tuned(tmp_path, "--num_train_epochs", "3").search[:5]:
        end_search(run, best_at(lora4=1e-2, vera256=1e-3)(run))
    lines = status()
    assert rest.format("6-12") in lines[-1] and lines[-2] == "search: 5 of 12 runs finished"
    end_searches(tmp_path, best_at(lora4=1e-2, vera256=1e-3), "--num_train_epochs", "3")
    lines = status()
    assert rest.format("17-20") in lines[-1] and re.match("finished / running / .* of seeds 101 to 102", lines[0])
    assert any(re.match("finished / running / .* of seeds 1 to 2", line) for line in lines)
    assert train_all("--num_train_epochs", "3", MISSING="1", **chosen).stdout == "17-20\n"


def test_status_counts_no_run_that_is_none_of_the_search(tmp_path):
    """MRPC's grid was extended, RTE's wasn't: two tables of the search, one of the final runs."""

    def score(run: Run) -> float:
        """Return a score that is best at the edge on MRPC alone."""
        return best_at(lora4=1e-2 if run.task == "mrpc" else 1e-3)(run)

    end_searches(tmp_path, score, ADAPTERS="lora", TASKS="rte mrpc")
    chosen = {"MODELS": BASE, "ADAPTERS": "lora", "TASKS": "rte mrpc", "SEEDS": "1-2", "SEARCH_SEEDS": "101-102"}
    done = train_all(STATUS="1", TUNE="1", LEARNING_RATES="1e-4 1e-3 1e-2", RESULTS=str(tmp_path), **chosen)
    totals = [line.split(" | ")[1:] for line in done.stdout.splitlines() if re.match("all +\\|", line)]
    assert totals == [["6/0/0/0", "6/0/0/0"], ["8/0/0/0", "8/0/0/0"], ["0/0/0/2", "0/0/0/2", "0/0/0/4"]]


@pytest.mark.slow
def test_a_tuned_sweep_of_real_runs_that_is_killed_five_times_is_the_undisturbed_one(tiny, tmp_path):
    """Three adapters from one command: the same grid, extended or not, the same rates, the same weights to the bit.

    Three times the sweep and its runs are killed, twice they are asked to stop: three times in the search, twice in
    what follows from it.
    """
    chosen = {"ADAPTERS": "lora:4 randlora:8 vera:16", "MODELS": str(tiny / "roberta"), "TASKS": "mrpc", "JOBS": "2"}
    chosen |= {"TUNE": "1", "LEARNING_RATES": "1e-3 1e-2 1e-1", "SEARCH_SEEDS": "101", "SEEDS": "1", "RETRIES": "0"}
    command = ["bash", str(REPOSITORY / "train_all.sh"), "--dataset_path", str(tiny / "glue")]
    command += ["--num_train_epochs", "3", "--per_device_train_batch_size", "16", "--disable_tqdm", "True"]
    roots = [tmp_path / "whole", tmp_path / "killed"]
    assert train_all(*command[2:], RESULTS=str(roots[0]), **chosen).returncode == 0
    n_runs = len([*roots[0].rglob("run.json")])
    signals = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)
    for n_finished, number in zip((1, 3, 7, n_runs - 3, n_runs - 2), signals, strict=True):
        with open(tmp_path / "output", "w") as output:
            variables = environment(RESULTS=str(roots[1]), **chosen)
            sweep = subprocess.Popen(command, env=variables, cwd=REPOSITORY, stdout=output, stderr=output)
        # Not "**", which would step into checkpoints just as the runs delete them.
        while sum(len([*roots[1].glob(f"{place}*/*/*/run.json")]) for place in ("", "search/")) < n_finished:
            assert sweep.poll() is None, (tmp_path / "output").read_text()
            time.sleep(0.02)
        runs = Path(f"/proc/{sweep.pid}/task/{sweep.pid}/children").read_text().split()
        sweep.send_signal(number)
        for run in runs if number == signal.SIGKILL else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(run), number)
        status = sweep.wait(timeout=120)
        assert status == (-signal.SIGKILL if number == signal.SIGKILL else 75), (tmp_path / "output").read_text()
    assert train_all(*command[2:], RESULTS=str(roots[1]), **chosen).returncode == 0
    recipes = [(root / "tuned.tsv").read_text() for root in roots]
    assert recipes[0] == recipes[1] and len(recipes[0].splitlines()) == 5  # two of them above the rows
    folders = [sorted(path.parent.relative_to(root) for path in root.rglob("run.json")) for root in roots]
    assert folders[0] == folders[1] and len(folders[0]) == n_runs
    for folder in folders[0]:
        assert_same_results(roots[0] / folder, roots[1] / folder)
