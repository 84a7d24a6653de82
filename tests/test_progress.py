"""What a run prints while it trains."""

import os
import re
import sqlite3
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers import REPOSITORY, arguments

from glue_peft.arguments import parse_arguments
from glue_peft.progress import name_for_trackers


def test_a_run_prints_about_twenty_losses_and_each_evaluation_in_a_line(run, capfd, caplog):
    """Whatever its length; the score stands once at the end; no library's report, bar or colour code in a log."""
    place = r"step \d+/\d+, epoch \d\.\d\d: loss \d\.\d{4}"
    for rows in (128, 512):
        capfd.readouterr()
        run(str(rows), max_train_samples=rows, num_train_epochs=4, eval_strategy="epoch", learning_rate=5e-3)
        out, err = capfd.readouterr()
        lines = out.splitlines()
        losses = [line for line in lines if re.fullmatch(place + r", learning rate \d\.\d\de-\d\d", line)]
        evaluations = [line for line in lines if re.match(place + r"  accuracy [01]\.\d{4}", line)]
        assert 16 <= len(losses) <= 20
        assert len(evaluations) == 4
        assert sum(line.startswith("accuracy ") for line in lines) == 1
        assert "\x1b[" not in out + err
        assert "LOAD REPORT" not in out + err
        assert "|" not in err  # as bars have
    assert "drawn at random, as its file has none: classifier.dense, classifier.out_proj" in caplog.text


def test_the_rate_of_logging_does_not_change_what_is_trained(run):
    """Asking for the loss at each step trains the same weights as never asking."""
    folders = [run(str(steps), logging_steps=steps) for steps in (1, 500)]
    first, second = ((folder / "adapter_model.safetensors").read_bytes() for folder in folders)
    assert first == second


def test_a_step_that_is_logged_with_tokens_and_time_prints_its_loss(run, capfd):
    """With --include_num_input_tokens_seen Trainer adds the time since the start to every step's entry."""
    run("tokens", include_num_input_tokens_seen=True, logging_steps=1, max_steps=2)
    lines = capfd.readouterr().out.splitlines()
    assert sum(re.match(r"step [12]/2, .*: loss \d\.\d{4}", line) is not None for line in lines) == 2


def test_bars_are_for_terminals(tiny, tmp_path):
    """A log file gets none, unless they are asked for."""
    *_, args = parse_arguments(arguments(tiny, tmp_path))
    assert args.disable_tqdm
    *_, args = parse_arguments(arguments(tiny, tmp_path, disable_tqdm=False))
    assert not args.disable_tqdm


# Trackers


@pytest.mark.parametrize(
    ("folder", "name", "group"),
    [
        ("results/lora4/1/rte", "lora4/rte/1", "lora4/rte"),
        ("results/search/lora4_lr1e-4/101/rte", "lora4_lr1e-4/rte/101", "lora4_lr1e-4/rte"),
        ("/mine", "mine", "mine"),
    ],
)
def test_runs_are_grouped_by_adapter_and_task(folder, name, group, monkeypatch):
    """By the folders that a sweep makes; a name of the user's goes before."""
    monkeypatch.setattr(os, "environ", {})
    args = SimpleNamespace(output_dir=folder, run_name=None, report_to=["wandb"], project="glue")
    name_for_trackers(args)
    assert args.run_name == name
    assert os.environ == {"WANDB_RUN_GROUP": group, "WANDB_PROJECT": "glue"}
    args.run_name = "mine"
    name_for_trackers(args)
    assert args.run_name == "mine"


def tracked(tracker: str, tiny, tmp_path, **variables: str) -> str:
    """Train a little with --report_to in a process of its own, offline; return what it printed."""
    pytest.importorskip(tracker)
    flags = arguments(tiny, tmp_path / "lora4/1/mrpc", report_to=tracker, project="glue", logging_steps=1)
    environment = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), **variables}
    command = [sys.executable, str(REPOSITORY / "run_glue.py"), *flags]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_tensorboard_s_files_stand_in_the_run_s_folder(tiny, tmp_path):
    """So that `tensorboard --logdir` over a sweep's results names them by row, seed and task."""
    tracked("tensorboard", tiny, tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (tmp_path / "lora4/1/mrpc/runs").iterdir()
    curves = EventAccumulator(str(folder))
    curves.Reload()
    assert len(curves.Scalars("train/loss")) == 4 and len(curves.Scalars("eval/accuracy")) == 1


def test_trackio_has_the_run_by_its_name(tiny, tmp_path):
    """In a data base on this machine, with the curves."""
    tracked("trackio", tiny, tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    (path,) = (tmp_path / "trackio").glob("glue*.db")
    with sqlite3.connect(path) as base:
        rows = base.execute("SELECT run_name, metrics FROM metrics").fetchall()
    assert {name for name, _ in rows} == {"lora4/mrpc/1"}
    assert any("train/loss" in str(metrics) for _, metrics in rows)  # bytes, in this version


def test_wandb_writes_offline_what_can_be_uploaded_later(tiny, tmp_path):
    """With name, group and project."""
    tracked("wandb", tiny, tmp_path, WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert all(word in content for word in (b"lora4/mrpc/1", b"lora4/mrpc", b"glue", b"train/loss"))
