"""benchmarks/keep_runs.py: a small copy of a sweep's runs, of which every table and figure is the same."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import call, fail_run, said, write_answers
from sweep_helpers import diverge, end_search, rate_of, tuned

import parse_results
import plot_results
from benchmarks import keep_runs


@pytest.fixture
def trees(tmp_path, monkeypatch):
    """Write a tuned sweep with all that runs leave, and keep it; return both folders as seen from above them."""
    monkeypatch.chdir(tmp_path)
    generator, labels = np.random.default_rng(0), np.arange(40) % 2
    for name in ("lora4", "vera256"):
        for seed in (1, 2, 3):
            given = np.where(generator.random(40) < 0.8, labels, 1 - labels)
            folder = write_answers(Path("tuned") / name, seed, "rte", labels, given)
            (folder / "adapter_model.safetensors").write_bytes(bytes(100_000))
            (folder / "trainer_state.json").write_text("{}")
    fail_run(tmp_path / "tuned" / "vera256", 4, "rte", "out of memory", "no memory")
    sweep = tuned(Path("tuned"))
    for run in sweep.search:
        diverge(run) if rate_of(run) > 5e-3 else end_search(run, 0.6 + rate_of(run))
    (tmp_path / "tuned" / "tuned.tsv").write_text("adapter\n")
    (tmp_path / "tuned" / "joblog.tsv").write_text("run\n")
    return "tuned", "kept"


def test_every_table_and_figure_is_the_same(trees, tmp_path, capsys):
    """Rows, comparisons, intervals, the list of runs, the state, the page, scores and searches."""
    assert said(capsys, keep_runs, *trees)[0] == 0
    outputs = []
    for tree in trees:
        lines = []
        forms = ["--format", "runs"], ["--format", "html"]
        for flags in ([], ["--bootstrap", 200], ["--published"], *forms, ["--status"]):
            status, out, err = said(capsys, parse_results, tree, *([] if "--status" in flags else ["1-3"]), *flags)
            assert (status, err) == (0, []) or "runs" in flags
            lines += [line.replace(f"{tree}/", "") for line in [*out, *err]]
        for flags in (["1-3"], ["--tuning"]):
            assert call(plot_results, tree, *flags, f"{tree}.svg") == 0
            lines += (tmp_path / f"{tree}.svg").read_text().splitlines()
        outputs.append(lines)
    assert any("tuned: vera256" in line for line in outputs[0]) and any("out of memory" in line for line in outputs[0])
    assert outputs[0] == outputs[1]


def test_nothing_large_is_kept(trees, tmp_path, capsys):
    """Neither weights nor logs; twice the same gives the same, a failed run finished since then is finished."""
    _, out, _ = said(capsys, keep_runs, *trees)
    assert out[0].startswith("19 runs, 0.0") and out[0].endswith(" MB in kept")
    names = {path.name for path in (tmp_path / "kept").rglob("*") if path.is_file()}
    assert names == {"run.json", "eval_results.json", "eval_predictions.npz", "failure.json", "tuned.tsv"}
    failed = tmp_path / "tuned" / "vera256" / "4" / "rte"
    (failed / "failure.json").unlink()
    shutil.copy(failed.parents[1] / "1" / "rte" / "run.json", failed)
    said(capsys, keep_runs, *trees)
    assert [path.name for path in (tmp_path / "kept" / "vera256" / "4" / "rte").iterdir()] == ["run.json"]


def test_paths_of_this_machine_are_named(trees, tmp_path, capsys):
    """Nobody wants them in a repository."""
    path = tmp_path / "tuned" / "lora4" / "1" / "rte" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"command": ["--dataset_path", "/home/me/glue"]}))
    status, _, err = said(capsys, keep_runs, *trees)
    assert status == 1 and err == ["the records name paths of this machine: /home/me/glue"]


@pytest.mark.parametrize("argv", [["none", "kept"], ["tuned", "tuned"], ["tuned", "tuned/kept"]])
def test_a_folder_without_runs_and_one_inside_itself_are_refused(trees, capsys, argv):
    """In one line, with nothing written."""
    status, _, err = said(capsys, keep_runs, *argv)
    assert status == 2 and "TREE must be a folder with runs in it, and OUT another one outside" in err[0]
