"""What benchmarks/gpu.sh prints and writes, from numbers that can be worked out by hand."""

import json
import sys

import pytest

from benchmarks import gpu_report
from benchmarks.gpu_jobs import STEPS_A_RUN
from benchmarks.gpu_steps import LENGTHS, cases_of


def case(milliseconds, **others):
    """A case whose steps all take as long, full rows twice as long."""
    step = dict.fromkeys(LENGTHS, milliseconds / 1000) | {"full": milliseconds / 500}
    counts = {"kernels": 900, "operators": 1000, "waits": 0, "counted_waits": 0}
    return {"step": step, "evaluation": dict.fromkeys(LENGTHS, 0.001)} | counts | others


@pytest.fixture
def measured(tmp_path):
    """Files as both measurements leave them: 20 ms a step with PEFT's layers, 10 with ours, 1.5 times with 2 runs."""
    sizes = {
        size: {"fp16": {name: case(20 if name.endswith("PEFT") else 10) for name in cases_of(size)}}
        for size in ("base", "large")
    }
    sizes["base"]["fp16"]["lora r4, ours"] = case(10, first_wait="x.py:1 y.item()", counted_waits=2, peak_MiB=1234.5)
    machine = {"card": "NVIDIA H100 80GB HBM3", "torch": "2.13", "cuda": "13.0", "transformers": "5.23", "threads": 8}
    jobs = {
        "1": {"steps_a_second": 20.0, "runs_an_hour": 14.35, "start_seconds": 12.0},
        "2": {"problem": "not all runs got warm: out of memory?"},
        "2, MPS": {"steps_a_second": 30.0, "runs_an_hour": 21.5, "start_seconds": 15.0},
    }
    paths = [tmp_path / "steps.json", tmp_path / "jobs.json"]
    paths[0].write_text(json.dumps(machine | {"results": sizes, "left_out": []}))
    paths[1].write_text(json.dumps(machine | {"jobs": jobs}))
    return paths


def test_the_grid_s_hours_and_the_lines_for_the_docs(measured, monkeypatch, capsys, tmp_path):
    """An epoch has 1053 + 58 + 134 + 1637 + 39 + 90 steps; 2 models, 3 adapters and 5 seeds have ten of them each."""
    monkeypatch.setattr(gpu_report, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu_report", *map(str, measured)])
    gpu_report.main()
    hours = 2 * 3 * 5 * 10 * 3011 * 0.010 / 3600
    written = json.loads((tmp_path / "gpu_nvidia_h100_80gb_hbm3.json").read_text())
    expected = {"the authors' way": 4 * hours, "PEFT, padded": 2 * hours, "ours": hours}
    assert written["grid_hours"] == pytest.approx(expected | {"ours, at once: 2, MPS": hours / 1.5})
    assert pytest.approx(3011 * 10 / 6) == STEPS_A_RUN
    lines = capsys.readouterr().out.splitlines()
    assert f"| ours | {hours:.1f} |" in lines and f"| the authors' way | {4 * hours:.1f} |" in lines
    assert "| 2 | not all runs got warm: out of memory? | | |" in lines and "| 2, MPS | 30.00 | 21.50 | 15 |" in lines
    row = "| lora r4, ours |" + " 10.0 |" * 6 + " 20.0 | 1.0 | 1.0 | 1,234 | 900 | 1,000 | 2 (error) |"
    assert row in lines and sum(line.startswith("| lora r4, PEFT | 20.0 | 20.0") for line in lines) == 2


def test_what_was_left_out_is_no_number(measured, monkeypatch, capsys):
    """A case that wasn't reached in time: no hours; --quick writes nothing."""
    steps = json.loads(measured[0].read_text())
    del steps["results"]["large"]["fp16"]["vera r256, ours"]
    measured[0].write_text(json.dumps(steps))
    monkeypatch.setattr(sys, "argv", ["gpu_report", *map(str, measured), "--quick"])
    gpu_report.main()
    output = capsys.readouterr().out
    assert "| ours | not measured |" in output and "ours, at once" not in output and "written" not in output
