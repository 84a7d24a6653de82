"""The check of a GPU, on a CPU."""

import json
import sys
import warnings

import pytest
import torch

from benchmarks import check_gpu


def test_without_a_gpu_it_is_one_line(monkeypatch, capsys):
    """And the exit status is not 0."""
    monkeypatch.setattr(sys, "argv", ["check_gpu"])
    assert check_gpu.main() == 2
    assert capsys.readouterr().err == "check_gpu: torch finds no GPU here; --device cpu runs the same on a CPU\n"


def test_waits_are_counted_and_named():
    """What the host reads inside, and nothing else."""
    waits = check_gpu.Waits("cpu", stop_after=None)
    numbers = torch.arange(3)
    with waits.waiting("here"):
        numbers[0].item(), numbers[1].item(), (numbers + 1).tolist()
    with waits.waiting("there"):
        numbers + 1
    assert waits.found == {"here": ["2 x _local_scalar_dense", "1 x tolist"], "there": []}


def test_on_a_gpu_torch_s_warnings_are_the_waits(monkeypatch):
    """Each is counted, also where the same line waits twice, and named by file and line; other warnings are none."""
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    waits = check_gpu.Waits("cuda", stop_after=None)
    with waits.waiting("a step"):
        for _ in range(2):
            warnings.warn_explicit(
                "called a synchronizing CUDA operation (Triggered ...)", UserWarning, "/x/model.py", 7
            )
        warnings.warn("something else", stacklevel=1)
    assert waits.found == {"a step": ["2 x model.py:7"]} and modes == ["warn", "default"]


def results(folder, **losses):
    """A folder with a run's losses."""
    folder.mkdir()
    (folder / "all_results.json").write_text(json.dumps({"train_loss": 0.5, "eval_loss": 0.25} | losses))
    return folder


def test_losses_agree_within_the_tolerance(tmp_path):
    """In training and in evaluation."""
    one, close = results(tmp_path / "one"), results(tmp_path / "close", train_loss=0.5004)
    far = results(tmp_path / "far", eval_loss=0.26)
    assert check_gpu.differ(one, close, 1e-3) == ""
    assert check_gpu.differ(one, far, 1e-3) == "a loss of 0.50000 and of 0.50000; a loss of 0.25000 and of 0.26000"


def test_a_gradient_that_is_no_number_is_named(tmp_path):
    """As where the scaler skips every step."""
    folder = results(tmp_path / "run")
    (folder / "run.json").write_text(json.dumps({"precision": "bfloat16", "device": "cpu"}))
    (folder / "trainer_state.json").write_text('{"log_history": [{"grad_norm": Infinity, "step": 8}, {}]}')
    assert check_gpu.check_record(folder, "cpu") == "grad_norm is inf"


def test_an_error_ends_an_adapters_checks_and_no_other_s(monkeypatch, tmp_path):
    """Its first line is what is wrong."""

    def run(world, folder, *_, **__):
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with ...")

    monkeypatch.setattr(check_gpu, "run", run)
    problem = "RuntimeError: CUDA error: no kernel image is available"
    assert list(check_gpu.check_all(tmp_path, "cpu")) == [(name, "", problem) for name in check_gpu.ADAPTERS]


@pytest.mark.slow
def test_all_is_well_on_a_cpu(monkeypatch, capsys):
    """Every adapter trains, doesn't wait, resumes and computes what PEFT's layers do."""
    monkeypatch.setattr(sys, "argv", ["check_gpu", "--device", "cpu"])
    status = check_gpu.main()
    lines = capsys.readouterr().out.splitlines()
    assert status == 0, lines
    assert sum(line.endswith(" ok") for line in lines) == 4 * len(check_gpu.ADAPTERS)
