"""trainer.py: runs that are stopped by a signal, that fail, that are watched while they train."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import REPOSITORY, TORCHRUN, arguments, assert_same_results, equal, read, saved_weights
from transformers import Trainer

import run_glue
from glue_peft import run_folder
from glue_peft.arguments import parse_arguments
from glue_peft.errors import DivergedError, RunFailedError, StoppedBySignal, UsageError, run_script
from glue_peft.eval_predictions import load
from glue_peft.run_folder import Failure, read_failure
from glue_peft.trainer import STOP_SIGNALS, GlueTrainer, end_processes, explain_failure, less_memory


@pytest.fixture
def signal_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make a training send its own process a signal within the given step, once."""

    def arrange(step: int, number: int = signal.SIGTERM) -> None:
        training_step = GlueTrainer.training_step
        sent = []

        def signalled(self, *args, **kwargs):
            if self.state.global_step == step - 1 and not sent:
                sent.append(os.kill(os.getpid(), number))
            return training_step(self, *args, **kwargs)

        monkeypatch.setattr(GlueTrainer, "training_step", signalled)

    return arrange


# Stopped by a signal


@pytest.mark.parametrize("step", [6, 8, 12], ids=["within an epoch", "an epoch's last step", "the last step"])
@pytest.mark.parametrize("best", [False, True], ids=["last epoch", "best epoch"])
def test_a_stopped_run_ends_after_its_step_and_resumes_to_the_bit(run, signal_at, monkeypatch, step, best):
    """With a checkpoint and without results; then weights, scores and logs are those of a whole run."""
    flags = {"num_train_epochs": 3, "eval_strategy": "epoch", "load_best_model_at_end": True if best else None}
    flags |= {"logging_strategy": "epoch"} if best else {"logging_steps": 5}
    whole = run("whole", **flags)
    evaluations = []
    evaluate = GlueTrainer.evaluate
    monkeypatch.setattr(
        GlueTrainer,
        "evaluate",
        lambda self, *a, **k: evaluations.append(self.state.global_step) or evaluate(self, *a, **k),
    )
    signal_at(step)
    with pytest.raises(StoppedBySignal, match=f"stopped by SIGTERM after step {step} of 12: .*--resume"):
        run("stopped", **flags)
    stopped = whole.parent / "stopped"
    assert step not in evaluations
    assert run_folder.checkpoints(stopped)[0].name == f"checkpoint-{step}"
    assert not (stopped / "eval_results.json").exists() and not (stopped / "run.json").exists()
    stop = read_failure(stopped)
    assert stop.kind == "stopped" and stop.message.startswith(f"stopped by SIGTERM after step {step} of 12: ")
    run("stopped", resume=True, **flags)
    assert_same_results(whole, stopped)
    assert not run_folder.checkpoints(stopped) and read_failure(stopped) is None


def test_the_best_checkpoint_is_found_in_a_folder_that_was_moved(run, signal_at):
    """Its path is in Trainer's state; where it is gone the run ends in one line, and doesn't keep the last epoch."""
    flags = {"num_train_epochs": 3, "eval_strategy": "epoch", "load_best_model_at_end": True}
    flags |= {"metric_for_best_model": "loss", "greater_is_better": "True"}  # the first epoch's is the highest
    whole = run("whole", **flags)
    assert read(whole / "trainer_state.json")["best_global_step"] == 4
    signal_at(10)
    with pytest.raises(StoppedBySignal):
        run("stopped", **flags)
    moved = (whole.parent / "stopped").rename(whole.parent / "moved")
    copy = shutil.copytree(moved, whole.parent / "copy")
    assert_same_results(whole, run("moved", resume=True, **flags))
    shutil.rmtree(copy / "checkpoint-4")
    with pytest.raises(
        UsageError, match="--load_best_model_at_end: the best checkpoint, .*checkpoint-4, is not there"
    ):
        run("copy", resume=True, **flags)


@pytest.mark.parametrize("step", [4, 6], ids=["an evaluation's step", "the last step"])
@pytest.mark.parametrize(("strategy", "do_eval"), [("steps", True), ("epoch", True), ("epoch", None)])
def test_a_run_that_ends_in_mid_epoch_resumes_to_the_bit(run, signal_at, step, strategy, do_eval):
    """The last step lies between two evaluations and two epochs: it is evaluated, and no step more is taken."""
    flags = {"max_steps": 6, "num_train_epochs": None, "eval_strategy": strategy, "logging_strategy": strategy}
    flags |= {"do_eval": do_eval}  # without it the held-out rows are all that is evaluated
    flags |= {"selection_fraction": 0.25, "per_device_train_batch_size": 12, "save_strategy": "steps"}
    flags |= {"eval_steps": 4 if strategy == "steps" else None, "save_steps": 100}
    whole = run("whole", **flags)
    signal_at(step)
    with pytest.raises(StoppedBySignal, match=f"after step {step} of 6"):
        run("stopped", **flags)
    assert_same_results(whole, run("stopped", resume=True, **flags))
    assert [entry["epoch"] for entry in read(whole / "run.json")["scores"]["history"]] == [1.0, 1.5]


def test_a_resumed_run_makes_up_for_no_evaluation_that_was_delayed(run, signal_at):
    """--eval_delay leaves epoch 1 without an evaluation, whether the run is stopped there or not."""
    flags = {"num_train_epochs": 2, "eval_strategy": "epoch", "eval_delay": 2}
    whole = run("whole", **flags)
    signal_at(4)
    with pytest.raises(StoppedBySignal):
        run("stopped", **flags)
    assert_same_results(whole, run("stopped", resume=True, **flags))


@pytest.fixture
def signal_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make the next evaluation during a training send its own process a signal, once."""
    prediction_step = GlueTrainer.prediction_step

    def arrange() -> None:
        sent = []

        def signalled(self, *args, **kwargs):
            if self.is_in_train and not sent:
                sent.append(os.kill(os.getpid(), signal.SIGUSR1))
            return prediction_step(self, *args, **kwargs)

        monkeypatch.setattr(GlueTrainer, "prediction_step", signalled)

    return arrange


@pytest.mark.slow
def test_a_signal_during_an_evaluation_stops_after_its_checkpoint(run, signal_in_evaluation):
    """The evaluation that has begun is ended first."""
    flags = {"num_train_epochs": 2, "eval_strategy": "epoch"}
    whole = run("whole", **flags)
    signal_in_evaluation()
    with pytest.raises(StoppedBySignal, match="SIGUSR1 after step 4 of 8"):
        run("stopped", **flags)
    assert_same_results(whole, run("stopped", resume=True, **flags))


@pytest.mark.slow
def test_a_signal_in_the_evaluation_that_a_resumed_run_makes_up_for(run, signal_at, signal_in_evaluation):
    """Stopped in the very last step, and again in the evaluation after it: the third start ends the run."""
    flags = {"num_train_epochs": 2, "eval_strategy": "epoch"}
    whole = run("whole", **flags)
    signal_at(8)
    with pytest.raises(StoppedBySignal, match="SIGTERM after step 8 of 8"):
        run("stopped", **flags)
    signal_in_evaluation()
    with pytest.raises(StoppedBySignal, match="SIGUSR1 after step 8 of 8"):
        run("stopped", resume=True, **flags)
    assert_same_results(whole, run("stopped", resume=True, **flags))


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_each_signal_saves_and_stops(run, signal_at, tmp_path, number, request):
    """A scheduler's order and warning, and a closed terminal."""
    before = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored, and stays so
    request.addfinalizer(lambda: signal.signal(number, before))
    signal_at(2, number)
    with pytest.raises(StoppedBySignal, match=f"stopped by {number.name} after step 2 of 4: "):
        run()
    assert run_folder.last_complete_checkpoint(tmp_path / "out")[0].name == "checkpoint-2"


def test_a_signal_outside_training_stops_at_once_and_loses_nothing(run, monkeypatch):
    """While the model is loaded, and in the final evaluation."""
    flags = {"num_train_epochs": 2}
    whole = run("whole", **flags)
    load_model = run_glue.load_model
    monkeypatch.setattr(run_glue, "load_model", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StoppedBySignal):
        run("stopped", **flags)
    monkeypatch.setattr(run_glue, "load_model", load_model)
    with monkeypatch.context() as patch:
        patch.setattr(run_glue, "evaluate_splits", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(StoppedBySignal):
            run("stopped", resume=True, **flags)
    assert_same_results(whole, run("stopped", resume=True, **flags))


def wait_for_checkpoint(folder: Path, process: subprocess.Popen) -> None:
    """Return once the run in a folder has saved a checkpoint."""
    while not run_folder.checkpoints(folder):
        assert process.poll() is None
        time.sleep(0.1)


def test_exit_status_of_a_stopped_process_is_75(tiny, tmp_path):
    """Of a real process, with one line and a whole checkpoint."""
    command = [sys.executable, REPOSITORY / "run_glue.py", *arguments(tiny, tmp_path / "out", num_train_epochs=2000)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(tmp_path / "out", process)
    process.terminate()
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 75
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("run_glue.py: stopped by SIGTERM after step ")
    assert run_folder.last_complete_checkpoint(tmp_path / "out")[0] is not None


@pytest.mark.slow
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(tiny, tmp_path):
    """As nohup does for SIGHUP; the others still stop the run."""
    command = [sys.executable, REPOSITORY / "run_glue.py", *arguments(tiny, tmp_path / "out", num_train_epochs=2000)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    wait_for_checkpoint(tmp_path / "out", process)
    process.send_signal(signal.SIGHUP)
    first = run_folder.checkpoints(tmp_path / "out")[0]
    while run_folder.checkpoints(tmp_path / "out")[:1] in ([], [first]):  # it goes on
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 75 and "stopped by SIGTERM after step " in errors and "SIGHUP" not in errors


@pytest.mark.slow
def test_two_processes_stop_together_when_one_is_asked_to(tiny, tmp_path):
    """The second rank gets the signal; both end after the same step, and the resumed run equals a whole one."""
    script = tmp_path / "signalled.py"
    script.write_text(
        "import os, signal, sys\n"
        "import run_glue\n"
        "from glue_peft.errors import run_script\n"
        "from glue_peft.trainer import GlueTrainer, end_processes\n"
        "training_step = GlueTrainer.training_step\n"
        "def signalled(self, *args, **kwargs):\n"
        "    if self.state.global_step == 4 and os.environ['RANK'] == '1':\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return training_step(self, *args, **kwargs)\n"
        "GlueTrainer.training_step = signalled\n"
        "sys.exit(end_processes(run_script(run_glue.main, 'run_glue.py')))\n"
    )
    flags = {"per_device_train_batch_size": 8, "num_train_epochs": 2}
    stopped = subprocess.run(
        [*TORCHRUN, script, *arguments(tiny, tmp_path / "out", **flags)],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert stopped.returncode != 0
    assert "stopped by SIGTERM after step 5 of 8" in stopped.stderr
    assert run_folder.checkpoints(tmp_path / "out")[0].name == "checkpoint-5"
    for folder, extra in (("out", {"resume": True}), ("whole", {})):
        command = [*TORCHRUN, REPOSITORY / "run_glue.py", *arguments(tiny, tmp_path / folder, **flags, **extra)]
        subprocess.run(command, check=True, capture_output=True, timeout=240)
    assert_same_results(tmp_path / "whole", tmp_path / "out")


# Failures


def test_lack_of_memory_names_a_batch_that_keeps_the_global_one(run, monkeypatch):
    """A smaller batch with more accumulation steps, in one line."""

    def exhausted(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(GlueTrainer, "compute_loss", exhausted)
    wanted = "--per_device_train_batch_size 8 --gradient_accumulation_steps 6"
    with pytest.raises(RunFailedError, match=f"^out of memory: .*{wanted}"):
        run(per_device_train_batch_size=16, gradient_accumulation_steps=3)


@pytest.mark.parametrize(
    ("batch", "accumulation", "wanted"),
    [(64, 1, "size 32 --gradient_accumulation_steps 2"), (9, 2, "size 3 --gradient_accumulation_steps 6"),
     (7, 1, "size 1 --gradient_accumulation_steps 7"), (1, 8, "--gradient_checkpointing")],
)  # fmt: skip
def test_less_memory_for_the_same_global_batch(tiny, tmp_path, batch, accumulation, wanted):
    """The largest divisor; at a batch of 1 there is only something else to try."""
    flags = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    *_, args = parse_arguments(arguments(tiny, tmp_path, **flags))
    assert wanted in less_memory(args)


def test_other_errors_are_not_explained_away(tiny, tmp_path):
    """A bug of ours keeps its traceback, and a CPU out of memory is recognised."""
    *_, args = parse_arguments(arguments(tiny, tmp_path))
    assert explain_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), args) is None
    cpu = RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried")
    assert str(explain_failure(cpu, args)).startswith("out of memory")


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line_and_the_run_resumes_when_there_is_room(tiny, tmp_path, run):
    """A limit on the size of files stands for the disk: the weights fit, the optimizer's state does not."""
    flags = {"num_train_epochs": 2, "adapter_name": "none", "rank": None}
    whole = run("whole", **flags)
    limit = int((whole / "model.safetensors").stat().st_size * 1.5)
    command = [sys.executable, REPOSITORY / "run_glue.py", *arguments(tiny, tmp_path / "full", **flags)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("run_glue.py: error: disk full: ")
    assert "Traceback" not in done.stderr
    assert read(tmp_path / "full" / run_folder.FAILURE_FILE)["kind"] == "disk full"
    assert not (tmp_path / "full" / "run.json").exists()
    resumed = run("full", resume=True, **flags)
    assert_same_results(whole, resumed)
    assert not (resumed / run_folder.FAILURE_FILE).exists()


def test_a_failure_leaves_its_line_beside_the_run(run, tmp_path, monkeypatch):
    """failure.json says why, until the next start."""
    with pytest.raises(DivergedError):
        run("diverged", learning_rate=1e30, max_grad_norm=0, optim="sgd")
    noted = read(tmp_path / "diverged" / run_folder.FAILURE_FILE)
    assert noted.keys() == {"kind", "message"}
    assert noted["kind"] == "diverged" and noted["message"].startswith("the training loss is ")

    def broken(*args, **kwargs):
        raise TypeError("training_step() got something\nelse")

    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(GlueTrainer, "training_step", broken)
        run("broken")
    assert read_failure(tmp_path / "broken") == Failure("error", "TypeError: training_step() got something")


# Evaluations during training, and the optimizer


def test_evaluations_during_training_do_not_change_it(run):
    """Every epoch looked at or not: the same weights and the same last scores."""
    flags = {"num_train_epochs": 3, "max_train_samples": 60}
    unseen = run("unseen", **flags)
    watched = run("watched", eval_strategy="epoch", **flags)
    assert equal(saved_weights(unseen), saved_weights(watched))
    scores = read(watched / "run.json")["scores"]
    assert [entry["epoch"] for entry in scores["history"]] == [1.0, 2.0, 3.0]
    assert scores["last"] == read(unseen / "run.json")["scores"]["last"]


def test_the_head_has_its_own_rate_through_resumes(run, signal_at, monkeypatch):
    """In groups of its own, with the weight decay of each parameter as before."""
    trainers = []
    make_trainer = run_glue.make_trainer
    monkeypatch.setattr(run_glue, "make_trainer", lambda *a: trainers.append(make_trainer(*a)) or trainers[-1])
    flags = {"classifier_learning_rate": 1e-2, "learning_rate": 1e-3, "weight_decay": 0.1, "num_train_epochs": 2}
    whole = run("whole", lr_scheduler_type="constant", **flags)
    names = {id(parameter): name for name, parameter in trainers[0].model.named_parameters()}
    groups = [(group["lr"], group["weight_decay"], [names[id(p)] for p in group["params"]])
              for group in trainers[0].optimizer.param_groups]  # fmt: skip
    assert sum(len(params) for *_, params in groups) == sum(p.requires_grad for p in trainers[0].model.parameters())
    for rate, _, params in groups:
        assert all(("classifier" in name) == (rate == 1e-2) for name in params)
        assert rate in (1e-2, 1e-3)
    assert {decay for rate, decay, params in groups if rate == 1e-2 and params} == {0.1, 0.0}
    signal_at(3)
    with pytest.raises(StoppedBySignal):
        run("stopped", lr_scheduler_type="constant", **flags)
    assert_same_results(whole, run("stopped", resume=True, lr_scheduler_type="constant", **flags))


def test_gradient_accumulation_gives_the_big_batch(run, without_dropout):
    """Trainer would scale loss and gradients by the accumulation steps; AdamW hides it, plain SGD does not."""
    flags = {
        "model_name_or_path": without_dropout / "roberta",
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_grad_norm": 0,
        "max_steps": 2,
        "max_train_samples": 32,
        "logging_steps": 1,
        "train_sampling_strategy": "sequential",
    }
    big = run("big", per_device_train_batch_size=16, **flags)
    accumulated = run("accumulated", per_device_train_batch_size=4, gradient_accumulation_steps=4, **flags)
    left, right = saved_weights(big), saved_weights(accumulated)
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=1e-6)
    losses = [
        [entry["loss"] for entry in read(folder / "trainer_state.json")["log_history"] if "loss" in entry]
        for folder in (big, accumulated)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_diverged_run_ends_without_results(tiny, tmp_path):
    """Neither scores nor a record."""
    with pytest.raises(DivergedError, match="loss is (nan|inf)"):
        run_glue.main(arguments(tiny, tmp_path / "out", learning_rate=1e30, max_grad_norm=0, optim="sgd"))
    assert not (tmp_path / "out" / "eval_results.json").exists()
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.fixture
def loss_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float], None]:
    """Give the loss of one step another value; what the step does to the weights stays as it is."""

    def arrange(step: int, value: float) -> None:
        training_step = Trainer.training_step
        monkeypatch.setattr(
            Trainer,
            "training_step",
            lambda self, *args: training_step(self, *args) * (value if self.state.global_step == step - 1 else 1.0),
        )

    return arrange


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("seen", ["logging", "evaluating", "saving", "the end"])
def test_a_loss_that_was_no_number_is_seen_before_anything_is_made_of_it(run, tmp_path, loss_at, seen, value):
    """In step 6 of 12, with nobody waiting for it: nothing is logged, evaluated or saved after it, nor finished."""
    flags = {"num_train_epochs": 3, "save_strategy": "no", "logging_strategy": "no", "logging_nan_inf_filter": "True"}
    flags |= {
        "logging": {"logging_strategy": "steps", "logging_steps": 3},
        "evaluating": {"eval_strategy": "epoch"},
        "saving": {"save_strategy": "steps", "save_steps": 3},
        "the end": {},
    }[seen]
    steps = {"logging": 6, "evaluating": 8, "saving": 6, "the end": 12}
    loss_at(6, value)
    with pytest.raises(
        DivergedError, match=f"^diverged: the training loss is {value} at step {steps[seen]} or before"
    ):
        run(**flags)
    assert read_failure(tmp_path / "out").kind == "diverged"
    assert [path.name for path in run_folder.checkpoints(tmp_path / "out")] == ["checkpoint-3"] * (seen == "saving")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert not left & {"adapter_model.safetensors", "run.json", "train_results.json", "eval_results.json"}


def test_a_run_whose_first_loss_is_no_number_leaves_the_one_that_it_would_replace(run, tmp_path, loss_at):
    """The old one is deleted after a step whose loss is a number, not after any step."""
    old = saved_weights(run())
    loss_at(1, float("nan"))
    with pytest.raises(DivergedError, match="at step 1 or before"):
        run(overwrite_output_dir=True, seed=2, save_strategy="no")
    assert equal(saved_weights(tmp_path / "out"), old) and (tmp_path / "out" / "run.json").exists()


@pytest.mark.parametrize(("outcome", "status"), [(None, 0), (UsageError("no"), 2), (KeyError("odd"), 1)])
def test_a_process_of_several_leaves_without_a_teardown_that_may_hang(monkeypatch, capsys, outcome, status):
    """Whatever ends it, what it had to say is printed first; only a success waits for the others."""
    left = []

    def main() -> int:
        if outcome is not None:
            raise outcome
        return 0

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: left.append("waited"))
    monkeypatch.setattr(os, "_exit", left.append)
    end_processes(run_script(main, "run_glue.py"))
    assert left == (["waited", 0] if outcome is None else [status])
    errors = capsys.readouterr().err
    assert ("Traceback" in errors) is (status == 1) and bool(errors) is bool(status)


# What Trainer alone would do otherwise


@pytest.mark.parametrize("scheduler", ["reduce_lr_on_plateau", "greedy"])
@pytest.mark.parametrize(("flags", "mode"), [({}, "max"), ({"metric_for_best_model": "loss"}, "min")])
def test_a_scheduler_that_watches_a_metric_knows_which_way_is_better(run, monkeypatch, scheduler, flags, mode):
    """The task's own metric unless a flag names another."""
    seen = []
    create = GlueTrainer.create_scheduler
    monkeypatch.setattr(
        GlueTrainer, "create_scheduler", lambda self, *a, **k: seen.append(create(self, *a, **k)) or seen[-1]
    )
    folder = run(lr_scheduler_type=scheduler, eval_strategy="epoch", **flags)
    assert [scheduler.mode for scheduler in seen] == [mode] * len(seen) and seen
    watched = read(folder / "run.json")["arguments"]["metric_for_best_model"]
    assert watched.removeprefix("eval_") == ("accuracy" if mode == "max" else "loss")


def test_the_rate_is_halved_where_the_metric_has_not_risen(run):
    """In a run: after each epoch, by the rule of reduce_lr_on_plateau, which is worked out here."""
    flags = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": '{"factor": 0.5, "patience": 0}'}
    folder = run(eval_strategy="epoch", logging_strategy="epoch", num_train_epochs=6, max_train_samples=256, **flags)
    log = read(folder / "trainer_state.json")["log_history"]
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    accuracies = [entry["eval_accuracy"] for entry in log if "eval_accuracy" in entry]
    assert len(rates) == len(accuracies) == 6
    rate, best, expected, n_rises = 5e-3, 0.0, [], 0
    for accuracy in accuracies:
        expected.append(rate)  # an epoch's log line comes before its evaluation
        is_better = accuracy > best * (1 + 1e-4)  # torch's threshold
        rate, best, n_rises = (rate, accuracy, n_rises + 1) if is_better else (rate / 2, best, n_rises)
    assert rates == pytest.approx(expected) and 2 <= n_rises < 6


def test_no_token_is_on_disk(run, tmp_path):
    """In no file below the folders of a run, pickles and checkpoints included."""
    secrets = {"token": "hf_Secret1", "hub_token": "hf_Secret2"}
    folder = run(save_total_limit=2, save_merged=tmp_path / "merged", do_predict=True, **secrets)
    files = [path for place in (folder, tmp_path / "merged") for path in place.rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in files)
    assert [str(path) for path in files if b"hf_Secret" in path.read_bytes()] == []


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mrpc", "stsb"])
def test_the_evaluation_loss_of_two_processes_is_the_mean_over_the_rows(run, tiny, tmp_path, task):
    """33 rows in batches of 8 a process: some rows only fill the last batch up, and none counts twice."""
    flags = {"task_name": task, "max_eval_samples": 33, "per_device_eval_batch_size": 8, "do_train": None}
    trained = run("trained", task_name=task)
    flags |= {"adapter_name": None, "rank": None, "adapter_path": trained}
    alone = run("alone", **flags)
    command = [*TORCHRUN, str(REPOSITORY / "run_glue.py"), *arguments(tiny, tmp_path / "two", **flags), "--use_cpu"]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    results = [read(folder / "eval_results.json") for folder in (alone, tmp_path / "two")]
    assert results[0]["eval_loss"] == pytest.approx(results[1]["eval_loss"], abs=1e-6)
    assert not any("preparation" in name for result in results for name in result)
    answers = [load(folder / "eval_predictions.npz") for folder in (alone, tmp_path / "two")]
    assert np.array_equal(answers[0]["label"], answers[1]["label"])
    assert np.allclose(answers[0]["last"], answers[1]["last"], atol=1e-5)
