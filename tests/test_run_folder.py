"""run_folder.py: whole files, what counts as a run, and checkpoints that can be resumed from."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import run_folder


def make_checkpoint(folder: Path, step: int) -> Path:
    """A checkpoint with the files that Trainer writes."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    save_file({"weight": torch.zeros(100)}, checkpoint / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.zeros(100)}, checkpoint / name)
    (checkpoint / "trainer_state.json").write_text("{}")
    return checkpoint


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    run_folder.write_json(path, {"score": 0.5})
    with pytest.raises(TypeError):
        run_folder.write_json(path, {"score": object()})
    assert run_folder.read_json(path) == {"score": 0.5}
    with pytest.raises(RuntimeError), run_folder.whole_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert run_folder.read_json(path) == {"score": 0.5}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "3", "\udcff"])
def test_what_is_no_json_object_reads_as_none(tmp_path, content):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
    assert run_folder.read_json(path) is None
    assert not run_folder.is_finished(tmp_path)


def test_the_latest_checkpoint_is_by_number_not_by_name(tmp_path):
    for step in (9, 10, 100):
        make_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    assert [path.name for path in run_folder.checkpoints(tmp_path)] == [
        "checkpoint-100",
        "checkpoint-10",
        "checkpoint-9",
    ]
    assert run_folder.last_whole_checkpoint(tmp_path) == (tmp_path / "checkpoint-100", [])


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
@pytest.mark.parametrize("kept", [0, 1], ids=["empty", "one byte short"])
def test_a_truncated_checkpoint_is_passed_over(tmp_path, name, kept):
    previous, last = make_checkpoint(tmp_path, 1), make_checkpoint(tmp_path, 2)
    assert run_folder.is_whole(last)
    content = (last / name).read_bytes()
    (last / name).write_bytes(content[: kept * (len(content) - 1)])
    assert run_folder.last_whole_checkpoint(tmp_path) == (previous, [last])


def test_a_changed_byte_in_a_file_with_checksums_shows(tmp_path):
    optimizer = make_checkpoint(tmp_path, 1) / "optimizer.pt"
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 255
    optimizer.write_bytes(content)
    assert not run_folder.is_whole(tmp_path / "checkpoint-1")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"])
def test_a_checkpoint_without_a_file_is_not_whole(tmp_path, name):
    checkpoint = make_checkpoint(tmp_path, 1)
    (checkpoint / name).unlink()
    assert not run_folder.is_whole(checkpoint)
    assert run_folder.last_whole_checkpoint(tmp_path) == (None, [checkpoint])


def test_clear_deletes_a_run_and_nothing_else(tmp_path):
    make_checkpoint(tmp_path, 3)
    for name in (*run_folder.RUN_FILES, "predict_results_mnli-mm.txt", ".run.json.1.tmp", "notes.md"):
        (tmp_path / name).write_text("{}")
    assert set(run_folder.traces(tmp_path)) == {*run_folder.RUN_FILES, "checkpoint-3"}
    run_folder.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]
    assert run_folder.traces(tmp_path) == []


def test_environment_names_versions_and_commit(tmp_path):
    environment = run_folder.describe_environment(tmp_path)
    assert environment["git_commit"] is None
    assert environment["versions"]["torch"] == torch.__version__
    json.dumps(environment)


def test_it_needs_no_torch():
    code = "import sys, run_folder; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(run_folder.__file__).parent).returncode == 0
