"""tables/published_seeds.py: published runs, fed to the tables as if they were ours."""

import json
import statistics
from collections import Counter

import pytest
from helpers import metrics_of, write_run

import parse_results
from glue_peft.tables.published_seeds import published_runs, seeds_of

RATES = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2]
# Of Uni-LoRA's runs, worked out from the repository's files by others: the last epoch (median over the seeds of each
# rate, then over the rates), and the best epoch (median over the seeds, the largest of the rates) with its rate.
EXPECTED = [
    ("roberta-base", "cola", 59.81, 64.92, 2e-2),
    ("roberta-large", "cola", 64.18, 69.19, 5e-3),
    ("roberta-base", "rte", 77.62, 82.31, 5e-3),
    ("roberta-large", "rte", 84.84, 87.00, 1e-3),
    ("roberta-base", "mrpc", 88.48, 90.07, 1e-4),
    ("roberta-large", "mrpc", 88.97, 90.69, 2e-4),
    ("roberta-base", "stsb", 90.14, 90.89, 1e-3),
    ("roberta-large", "sst2", 95.76, 96.33, 1e-3),
]


def test_there_are_432_runs_of_eight_rates():
    """Five seeds each, four of RoBERTa-base's MRPC; no complete log of three cells; and where they were read."""
    runs = published_runs()
    assert len(runs) == 432 and all(run.source for run in runs)
    counts = Counter((run.model, run.task, run.head_learning_rate) for run in runs)
    assert len(counts) == 11 * 8 and sorted({rate for *_, rate in counts}) == RATES
    assert {cell for cell, count in counts.items() if count != 5} == {("roberta-base", "mrpc", rate) for rate in RATES}
    without = {(run.model, run.task) for run in runs} - {(run.model, run.task) for run in runs if run.last is not None}
    assert without == {("roberta-base", "sst2"), ("roberta-base", "qnli"), ("roberta-large", "qnli")}
    assert all(run.last is None or run.last <= run.best + 1e-6 for run in runs)


@pytest.mark.parametrize(("model", "task", "last", "best", "best_rate"), EXPECTED)
def test_as_if_they_were_ours(tmp_path, capsys, model, task, last, best, best_rate):
    """parse_results.py's medians over the seeds: of all eight rates the median, and of the best epochs the best."""
    medians = {"last": {}, "best": {}}
    for rate in RATES:
        runs = seeds_of("Uni-LoRA", model, task, rate)
        for run in runs:
            scores = {
                epoch: metrics_of(task, run.score(epoch) / 100) for epoch in medians if run.score(epoch) is not None
            }
            write_run(tmp_path / f"{rate:g}", run.seed, task, run.best / 100, scores=scores | {"history": []})
        for epoch, of_rates in medians.items():
            argv = [str(tmp_path / f"{rate:g}"), f"0-{len(runs) - 1}", "--tasks", task, "--epoch", epoch]
            argv += ["--statistic", "median", "--format", "json"]
            argv += ["--stsb_metric", "pearson"] if task == "stsb" else []
            assert parse_results.main(argv) == 0
            numbers = json.loads(capsys.readouterr().out)["numbers"]
            (of_rates[rate],) = [n["value"] for n in numbers if n["kind"] == "ours" and n["task"] == task]
    assert round(statistics.median(medians["last"].values()), 2) == last
    assert max(medians["best"], key=medians["best"].get) == best_rate
    assert round(medians["best"][best_rate], 2) == best
