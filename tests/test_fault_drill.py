"""fault_drill.py: that its comparison sees what is wrong, and that its killer knows its own processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import fault_drill


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    """The results of two sweeps that differ only in times and logs."""
    for name, seconds in (("one", 3.5), ("other", 4.5)):
        folder = tmp_path / name / "lora4" / "1" / "mrpc"
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        metrics = {"eval_accuracy": 0.5, "eval_runtime": seconds, "eval_samples_per_second_mm": seconds}
        (folder / "run.json").write_text(json.dumps({"metrics": metrics, "seconds": seconds}))
        targets = ["query", "key"] if name == "one" else ["key", "query"]
        (folder / "adapter_config.json").write_text(json.dumps({"target_modules": targets}))
        (folder / "run.log").write_text(f"{seconds}")
    return tmp_path / "one", tmp_path / "other"


def test_times_and_logs_are_no_difference(roots):
    """Nor is the order of a set, which JSON doesn't have."""
    assert fault_drill.differences(*roots) == []


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("adapter_model.safetensors", b"weightt", "lora4/1/mrpc/adapter_model.safetensors differs"),
        ("run.json", b'{"metrics": {"eval_accuracy": 0.25}}', "lora4/1/mrpc/run.json differs"),
        ("run.json", b"", "lora4/1/mrpc/run.json differs"),
        ("run.json", None, "lora4/1/mrpc/run.json is missing"),
        ("run.lock", b"", "lora4/1/mrpc/run.lock should not be there"),
        (".run.json.7.tmp", b"", "lora4/1/mrpc/.run.json.7.tmp should not be there"),
    ],
)
def test_everything_else_is_one(roots, name, content, expected):
    """A score, a weight, a missing file: each is named."""
    path = roots[0] / "lora4/1/mrpc" / name
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    assert fault_drill.differences(*roots) == [expected]


def test_a_checkpoint_left_behind_is_a_difference(roots):
    """A finished run has none."""
    (roots[0] / "lora4/1/mrpc/checkpoint-3").mkdir()
    assert fault_drill.differences(*roots) == ["lora4/1/mrpc/checkpoint-3 should not be there"]


def test_the_killer_signals_its_own_processes_only(tmp_path):
    """Another process of the same command stays alive."""
    sleep = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    own, foreign = (
        subprocess.Popen(sleep, stdout=subprocess.PIPE, env=os.environ | mark)
        for mark in ({fault_drill.MARK: str(tmp_path)}, {fault_drill.MARK: f"{tmp_path}/other"})
    )
    try:
        for process in (own, foreign):
            process.stdout.readline()
        assert [process.pid for process in fault_drill.processes(tmp_path)] == [own.pid]
        assert not fault_drill.send(foreign.pid, signal.SIGKILL, tmp_path)
        assert fault_drill.send(own.pid, signal.SIGTERM, tmp_path)
        assert own.wait() == -signal.SIGTERM and foreign.poll() is None
    finally:
        for process in (own, foreign):
            process.kill()
            process.communicate()


def test_the_killer_knows_which_process_works_in_which_folder(tmp_path):
    """By its command line."""
    (tmp_path / "run_glue.py").write_text("import time; print(flush=True); time.sleep(60)")
    command = [sys.executable, str(tmp_path / "run_glue.py"), "--seed", "1", "--output_dir", "results/lora4/1/mrpc"]
    mark = {fault_drill.MARK: str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | mark) as process:
        process.stdout.readline()
        (found,) = fault_drill.processes(tmp_path)
        process.kill()
    assert (found.pid, found.folder) == (process.pid, tmp_path / "results/lora4/1/mrpc")
