"""NVIDIA's MPS daemon, with a stand-in for it and for the interpreter that tries it."""

import os
from pathlib import Path

import pytest

from glue_peft.mps import COMMAND, shared_gpus

DAEMON = """#!/bin/sh
cd "$(dirname "$0")"
[ -d "$CUDA_MPS_PIPE_DIRECTORY" ] && [ -d "$CUDA_MPS_LOG_DIRECTORY" ] || exit 1
if [ "$1" = -d ]; then
    said="start $CUDA_VISIBLE_DEVICES"
else
    read -r said
fi
echo "$said ${CUDA_MPS_PIPE_DIRECTORY%/*}" >>calls
[ ! -e "no $1" ] || { echo "one line" && echo "no luck" >&2 && exit 3; }
"""
PYTHON = """#!/bin/sh
cd "$(dirname "$0")"
echo "try $CUDA_VISIBLE_DEVICES ${CUDA_MPS_PIPE_DIRECTORY%/*}" >>calls
[ ! -e "no GPU" ] || { echo "Traceback" && echo "error 805" && exit 1; }
"""
SHARED = [{"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": gpu} for gpu in ("3", "1", "3", "1")]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, first on the PATH, with both stand-ins; each notes its calls, and fails where a file `no ...` is."""
    for name, text in {COMMAND: DAEMON, "python": PYTHON}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def calls(world: Path) -> list[str]:
    """What the stand-ins were called for, one line a call."""
    return (world / "calls").read_text().splitlines() if (world / "calls").exists() else []


def test_a_daemon_serves_the_runs_and_ends_with_them(world):
    """It sees the sweep's GPUs alone, and the runs see them by their numbers in it; its folder goes with it."""
    with shared_gpus({}, SHARED, 9) as (slots, [line]):
        folder = slots[0]["CUDA_MPS_PIPE_DIRECTORY"].removesuffix("/pipe")
        assert calls(world) == [f"start 3,1 {folder}", f"try 0 {folder}"]
        assert line == f"train_all.sh: MPS is on, in {folder}: the runs on a GPU compute at the same time"
        assert os.path.isdir(slots[0]["CUDA_MPS_LOG_DIRECTORY"])
        assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0", "1", "0", "1"]
        assert all(slot["OMP_NUM_THREADS"] == "2" for slot in slots)
        assert {slot["CUDA_MPS_PIPE_DIRECTORY"] for slot in slots} == {f"{folder}/pipe"}
    assert calls(world)[2:] == [f"quit {folder}"] and not os.path.exists(folder)


def test_it_ends_too_where_the_sweep_fails(world):
    """An error passes, the daemon does not stay."""
    with pytest.raises(ZeroDivisionError), shared_gpus({}, SHARED, 9):
        raise ZeroDivisionError
    assert [call.split()[0] for call in calls(world)] == ["start", "try", "quit"]


@pytest.mark.parametrize(
    ("slots", "n_runs"),
    [([{}], 9), ([{"OMP_NUM_THREADS": "1"}] * 4, 9), (SHARED[:2], 9), (SHARED, 2), (SHARED, 0)],
    ids=["in turn", "no GPU", "one run a GPU", "fewer runs", "nothing to run"],
)
def test_where_no_gpu_is_shared_there_is_none_and_no_line(world, slots, n_runs):
    """The runs are started as ever."""
    with shared_gpus({}, slots, n_runs) as found:
        assert found == (slots, []) and calls(world) == []


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"MPS": "0"}, "MPS is off, by MPS=0: the runs on a GPU take turns"),
        ({"CUDA_MPS_PIPE_DIRECTORY": "/own"}, "MPS is left to the daemon of CUDA_MPS_PIPE_DIRECTORY=/own"),
        ({"MPS": "1"}, f"MPS is off, as there is no {COMMAND}: the runs on a GPU take turns"),
    ],
    ids=["forbidden", "the user's own", "not installed"],
)
def test_the_line_says_why_there_is_none(world, monkeypatch, settings, reason):
    """Nothing is started."""
    if settings.get("MPS") == "1":
        monkeypatch.setenv("PATH", "/nowhere")
    with shared_gpus(settings, SHARED, 9) as found:
        assert found == (SHARED, [f"train_all.sh: {reason}"]) and calls(world) == []


@pytest.mark.parametrize(
    ("fails", "problem", "called"),
    [("no -d", f"{COMMAND}: no luck", ["start", "quit"]), ("no GPU", "python: error 805", ["start", "try", "quit"])],
)
def test_a_daemon_that_does_not_work_is_not_used(world, fails, problem, called):
    """The runs would see no GPU: it is tried first."""
    (world / fails).touch()
    with shared_gpus({}, SHARED, 9) as (slots, lines):
        assert slots == SHARED
        assert lines == [f"train_all.sh: MPS is off, as it doesn't work here: {problem}"]
    assert [call.split()[0] for call in calls(world)] == called


def test_an_interpreter_that_is_not_there_is_a_line_too(world):
    """No error of the sweep's own."""
    with shared_gpus({"PYTHON": "/no/python"}, SHARED, 9) as (_, [line]):
        assert line.startswith("train_all.sh: MPS is off, as it doesn't work here: /no/python: [Errno 2]")
