"""run_glue.py end to end on tiny models: what a run trains, saves, resumes and refuses."""

import contextlib
import dataclasses
import inspect
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import peft
import pytest
import torch
from conftest import arguments, read
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    RobertaConfig,
)

import run_glue
from glue_peft import run_folder
from glue_peft.errors import UsageError

REPOSITORY = Path(run_glue.__file__).parent
ADAPTERS = {
    "lora": {"rank": 4},
    "randlora": {"rank": 5},  # does not divide the width, and differs from the number of bases
    "vera": {"rank": 16, "learning_rate": 5e-2},
    "none": {"rank": None, "learning_rate": 1e-3},
}


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors that a run saved."""
    name = "adapter_model.safetensors" if (folder / "adapter_model.safetensors").exists() else "model.safetensors"
    return load_file(folder / name)


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors agree to the bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def logits(model: torch.nn.Module, tiny: Path, kind: str = "roberta") -> torch.Tensor:
    """Logits of a model on a few fixed sentences."""
    tokenizer = AutoTokenizer.from_pretrained(tiny / kind)
    batch = tokenizer(["a great film", "the dull old story of a man"], ["fresh", "stale city"], padding=True)
    with torch.no_grad():
        return model.eval()(**{name: torch.tensor(value) for name, value in batch.items()}).logits


# Training


@pytest.mark.parametrize("kind", ["roberta", "bert"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapter_learns_end_to_end(run, tiny, adapter, kind):
    """It learns, and leaves the files of Hugging Face's example, without a checkpoint or a temporary file."""
    folder = run(
        adapter_name=adapter,
        model_name_or_path=tiny / kind,
        max_train_samples=None,
        max_eval_samples=None,
        num_train_epochs=3,
        **ADAPTERS[adapter],
    )
    results = read(folder / "eval_results.json")
    assert results["eval_accuracy"] > 0.75
    assert results["eval_samples"] == 128
    record = read(folder / "run.json")
    assert record["metrics"]["eval_accuracy"] == results["eval_accuracy"]
    assert record["arguments"]["adapter_name"] == adapter
    assert {"train_results.json", "all_results.json", "trainer_state.json", "config.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert not run_folder.checkpoints(folder)
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("adapter", ["lora", "randlora", "vera"])
def test_only_adapter_and_head_change(tiny, tmp_path, adapter, monkeypatch):
    """Every kind of encoder layer is adapted, the head is trained in full and not adapted, nothing else moves."""
    before, models = {}, []
    load_model = run_glue.load_model

    def remember(*args):
        model, sha256 = load_model(*args)
        before.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        models.append(model)
        return model, sha256

    monkeypatch.setattr(run_glue, "load_model", remember)
    run_glue.main(arguments(tiny, tmp_path / "out", adapter_name=adapter, **ADAPTERS[adapter]))
    changed = {name for name, tensor in models[0].state_dict().items() if not torch.equal(tensor, before[name])}
    assert any("modules_to_save" in name for name in changed)
    assert all("modules_to_save" in name or f"{adapter}_" in name for name in changed)
    adapted = {name for name in changed if f"{adapter}_" in name}
    layers = {"query", "key", "value", "attention.output.dense", "intermediate.dense", "layer.1.output.dense"}
    assert all(any(layer in name for name in adapted) for layer in layers)
    assert not any("classifier" in name for name in adapted)


def test_same_seed_same_result_other_seed_other_bases(run):
    """To the bit."""
    first = run("first", adapter_name="randlora")
    again = run("again", adapter_name="randlora")
    other = run("other", adapter_name="randlora", seed=2)
    assert equal(saved_weights(first), saved_weights(again))
    assert read(first / "eval_results.json")["eval_loss"] == read(again / "eval_results.json")["eval_loss"]
    assert read(first / "random_bases.json")["sha256"] != read(other / "random_bases.json")["sha256"]


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


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]


@pytest.mark.parametrize(
    ("adapter", "fast", "launcher"),
    [
        ("lora", True, TORCHRUN),
        ("randlora", True, TORCHRUN),
        ("randlora", False, TORCHRUN),
        ("vera", True, TORCHRUN),
        ("randlora", True, ACCELERATE),
    ],
)
def test_two_processes_give_the_big_batch_and_one_record(
    run, tiny, tmp_path, without_dropout, adapter, fast, launcher
):
    """Two ranks of 8 rows each end where one process with 16 rows does, to float32's rounding."""
    flags = {
        "model_name_or_path": without_dropout / "roberta",
        "adapter_name": adapter,
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_grad_norm": 0,
        "max_steps": 2,
        "train_sampling_strategy": "sequential",
        **({} if fast else {"no_fast_adapters": True, "no_unpad": True}),
    }
    single = run("single", per_device_train_batch_size=16, **flags)
    command = arguments(tiny, tmp_path / "double", per_device_train_batch_size=8, **flags)
    done = subprocess.run(
        [*launcher, REPOSITORY / "run_glue.py", *command], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    left, right = saved_weights(single), saved_weights(tmp_path / "double")
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=1e-6)
    records = [read(folder / "run.json") for folder in (single, tmp_path / "double")]
    assert [record["processes"] for record in records] == [1, 2]
    losses = [[record["metrics"][f"{split}_loss"] for split in ("train", "eval")] for record in records]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    assert records[1]["metrics"]["eval_samples"] == 32


def test_defaults_are_the_protocol_s_and_flags_override_them(tiny, tmp_path):
    """AdamW's epsilon, decay, warm-up and schedule."""
    *_, args = run_glue.parse_arguments(arguments(tiny, tmp_path))
    assert (args.adam_epsilon, args.weight_decay, args.warmup_steps) == (1e-6, 0.0, 0.06)
    assert (args.lr_scheduler_type, args.report_to, args.save_strategy) == ("linear", [], "epoch")
    *_, args = run_glue.parse_arguments(
        arguments(tiny, tmp_path, adam_epsilon=1e-8, weight_decay=0.1, warmup_steps=7, lr_scheduler_type="cosine")
    )
    assert (args.adam_epsilon, args.weight_decay, args.warmup_steps) == (1e-8, 0.1, 7)
    assert args.lr_scheduler_type == "cosine"


def test_optimizer_and_schedule_follow_the_flags(run, monkeypatch):
    """In the optimizer that trained, not only in the arguments."""
    trainers = []
    make_trainer = run_glue.make_trainer
    monkeypatch.setattr(run_glue, "make_trainer", lambda *a: trainers.append(make_trainer(*a)) or trainers[-1])
    run(weight_decay=0.1, adam_epsilon=1e-3, logging_steps=1, num_train_epochs=5, warmup_steps=0.2)
    groups = trainers[0].optimizer.param_groups
    assert {group["eps"] for group in groups} == {1e-3}
    assert {group["weight_decay"] for group in groups} == {0.1, 0.0}
    rates = [entry["learning_rate"] for entry in trainers[0].state.log_history if "learning_rate" in entry]
    assert np.argmax(rates) == 4  # 20 steps, of them 4 warm up
    assert rates[-1] < 0.1 * max(rates)


def test_mixed_precision_on_a_machine_without_it_warns_once_and_is_recorded(run, caplog):
    """The run is a float32 run to the bit."""
    folder = run(fp16=True)
    assert read(folder / "run.json")["precision"] == "float32"
    assert sum("--fp16" in message for message in caplog.messages) == 1
    plain = run("plain")
    assert equal(saved_weights(folder), saved_weights(plain))


def test_bf16_on_a_cpu_when_asked_for(run):
    """With --use_cpu it is no accident."""
    assert read(run(bf16=True, use_cpu=True) / "run.json")["precision"] == "bf16"


def test_float16_checkpoint_trains_in_float32(run, tiny, tmp_path):
    """Whatever the file holds."""
    half = tmp_path / "half"
    shutil.copytree(tiny / "roberta", half)
    AutoModelForSequenceClassification.from_pretrained(tiny / "roberta").half().save_pretrained(half)
    assert AutoConfig.from_pretrained(half).dtype == torch.float16
    folder = run(model_name_or_path=half, adapter_name="none", rank=None, ignore_mismatched_sizes=True)
    assert {tensor.dtype for tensor in saved_weights(folder).values()} == {torch.float32}


def test_diverged_run_ends_without_results(tiny, tmp_path):
    """Neither scores nor a record."""
    with pytest.raises(run_glue.DivergedError, match="loss is (nan|inf)"):
        run_glue.main(arguments(tiny, tmp_path / "out", learning_rate=1e30, max_grad_norm=0, optim="sgd"))
    assert not (tmp_path / "out" / "eval_results.json").exists()
    assert not (tmp_path / "out" / "run.json").exists()


# Starting from a saved adapter


@pytest.mark.parametrize("adapter", ["lora", "randlora", "vera"])
def test_a_run_starts_from_a_saved_adapter_with_a_new_head(run, monkeypatch, adapter):
    """The bases come along from another seed; of the saved file only the head is left behind."""
    saved = run("mnli", task_name="mnli", adapter_name=adapter, seed=2, **ADAPTERS[adapter])
    starts = []
    load_model = run_glue.load_model

    def remember(*args):
        model, sha256 = load_model(*args)
        starts.append({name: t.clone() for name, t in peft.get_peft_model_state_dict(model).items()})
        return model, sha256

    monkeypatch.setattr(run_glue, "load_model", remember)
    folder = run("rte", task_name="rte", adapter_name=adapter, init_adapter_from=saved, **ADAPTERS[adapter])
    theirs = saved_weights(saved)
    for name, tensor in starts[0].items():
        if "classifier" not in name:
            assert torch.equal(tensor, theirs[name]), name
    assert starts[0]["base_model.model.classifier.out_proj.weight"].shape == (2, 48)
    if adapter != "lora":
        hashes = [read(path / "random_bases.json")["sha256"] for path in (saved, folder)]
        assert hashes[0] == hashes[1]
    assert read(folder / "run.json")["arguments"]["init_adapter_from"] == str(saved)


def test_a_start_that_does_not_fit_is_refused_by_name(run, tiny):
    """Another rank, method, layers, bases or model; a lost tensor; a broken file; no adapter at all."""
    saved = run("mnli", task_name="mnli", adapter_name="vera", **ADAPTERS["vera"])
    for flags, message in (
        ({"adapter_name": "vera", "rank": 8}, "its r is 16, the flags say 8"),
        ({"adapter_name": "lora"}, "its peft_type is VERA, the flags say LORA"),
        ({"adapter_name": "vera", "rank": 16, "target_modules": ["query"]}, "its target_modules is"),
        (
            {"adapter_name": "vera", "rank": 16, "projection_prng_key": 1},
            "its projection_prng_key is 8, the flags say 1",
        ),
        ({"adapter_name": "vera", "rank": 16, "model_name_or_path": tiny / "bert"}, "was trained on another model"),
        ({"adapter_name": "none", "rank": None}, "give --do_train and the adapter"),
        ({"do_train": None, "adapter_name": "vera"}, "give --do_train and the adapter"),
    ):
        with pytest.raises(UsageError, match=message):
            run("rte", task_name="rte", init_adapter_from=saved, **flags)
    weights = saved_weights(saved)
    lost = next(name for name in weights if "vera_lambda_b" in name)
    save_file({name: t for name, t in weights.items() if name != lost}, saved / "adapter_model.safetensors")
    with pytest.raises(UsageError, match="its weights are not those of this model's adapter"):
        run("rte", task_name="rte", init_adapter_from=saved, adapter_name="vera", rank=16)
    (saved / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="--init_adapter_from .*mnli: "):
        run("rte", task_name="rte", init_adapter_from=saved, adapter_name="vera", rank=16)
    save_file(weights, saved / "adapter_model.safetensors")
    (saved / "random_bases.json").write_text(json.dumps({"sha256": "0", "projection_prng_key": 8}))
    with pytest.raises(UsageError, match="draws other random bases from key 8"):
        run("rte", task_name="rte", init_adapter_from=saved, adapter_name="vera", rank=16)
    with pytest.raises(UsageError, match="no adapter_config.json in this folder"):
        run("rte", task_name="rte", init_adapter_from=saved.parent)


# Resuming


class Killed(Exception):
    """Stands for the end of the process in the middle of an epoch."""


@contextlib.contextmanager
def killed_at_step_5():
    """Raise Killed in the sixth step of any training inside."""
    training_step = run_glue.GlueTrainer.training_step

    def die(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise Killed
        return training_step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_glue.GlueTrainer, "training_step", die)
        yield


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_resume_in_mid_epoch_is_bit_identical(run, adapter):
    """Killed between two checkpoints, every adapter."""
    flags = {
        "adapter_name": adapter,
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        **ADAPTERS[adapter],
    }
    whole = run("whole", **flags)
    with killed_at_step_5(), pytest.raises(Killed):
        run("killed", **flags)
    resumed = run("killed", resume=True, **flags)
    assert equal(saved_weights(whole), saved_weights(resumed))
    results = [read(folder / "eval_results.json") for folder in (whole, resumed)]
    assert results[0]["eval_loss"] == results[1]["eval_loss"]
    assert not run_folder.checkpoints(resumed)


def test_resume_takes_the_last_whole_checkpoint(run, caplog):
    """Two are truncated, in different files: both are named, the third is taken."""
    flags = {"num_train_epochs": 3, "save_total_limit": 3}
    whole = run("whole", **flags)
    assert len(run_folder.checkpoints(whole)) == 3  # a limit that was asked for outlasts the run
    (whole / "run.json").unlink()
    last, previous, _ = run_folder.checkpoints(whole)
    optimizer = last / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-100])
    weights = previous / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    reference = saved_weights(whole)
    resumed = run("whole", resume=True, **flags)
    assert sum("is truncated" in message for message in caplog.messages) == 2
    assert any("Resuming from" in message and "checkpoint-4" in message for message in caplog.messages)
    assert equal(reference, saved_weights(resumed))


def test_a_named_checkpoint_is_resumed_from(run):
    """In another folder, with the history of scores."""
    flags = {"num_train_epochs": 3, "save_total_limit": 3}
    whole = run("whole", **flags)
    named = run_folder.checkpoints(whole)[1]
    other = run("other", resume_from_checkpoint=named, **flags)
    assert equal(saved_weights(whole), saved_weights(other))
    assert read(other / "run.json")["scores"]["last"] == read(whole / "run.json")["scores"]["last"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"learning_rate": 1e-5}, "--learning_rate 1e-05 .the folder has 0.005."),
        ({"adapter_name": "vera", "rank": 8}, "--rank 8 .the folder has 4."),
        ({"task_name": "cola"}, "--task_name cola .the folder has mrpc."),
        ({"weight_decay": 0.1}, "--weight_decay 0.1 .the folder has"),
    ],
)
def test_a_named_checkpoint_is_of_the_same_run(run, flags, named):
    """Its optimizer would keep the old rate, and its weights another adapter's: the record would be untrue."""
    checkpoint = run_folder.checkpoints(run("whole", save_total_limit=1))[0]
    with pytest.raises(UsageError, match=f"--resume_from_checkpoint .*checkpoint-4: is of another run: .*{named}"):
        run("other", resume_from_checkpoint=checkpoint, **flags)
    longer = run("longer", resume_from_checkpoint=checkpoint, num_train_epochs=2, eval_strategy="epoch")
    assert read(longer / "trainer_state.json")["global_step"] == 8


def test_a_named_checkpoint_is_no_way_into_another_runs_folder(run):
    """Its record would go on counting as finished; in the checkpoint's own folder it goes with the training."""
    flags = {"num_train_epochs": 2, "save_total_limit": 2}
    named = run_folder.checkpoints(run("whole", **flags))[1]
    run("other", seed=2)
    with pytest.raises(UsageError, match="--output_dir .*other holds a run already"):
        run("other", resume_from_checkpoint=named, **flags)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(run_glue, "train", lambda *_: {}["stop"])
        run("whole", resume_from_checkpoint=named, **flags)
    assert not {"run.json", "eval_results.json", "all_results.json"} & {path.name for path in named.parent.iterdir()}


def test_checkpoints_that_a_kill_left_beside_the_record_are_deleted(run):
    """Between the record and its last work a run may be killed: the next start of it, by hand or sweep, tidies up."""
    folder = run(save_total_limit=1)
    record = read(folder / "run.json")
    command = [flag for flag in record["command"] if flag not in ("--save_total_limit", "1")]
    (folder / "run.json").write_text(json.dumps(record | {"command": command}))
    (folder.parent / "grid").write_text(f"{folder}\tpython run_glue.py {shlex.join(command)}\n")
    assert run_folder.plan(folder.parent) == [0]
    run(resume=True)
    assert not run_folder.checkpoints(folder) and run_folder.plan(folder.parent) == []


def test_a_run_is_not_resumed_with_another_batch_or_precision(run):
    """The launcher decides the number of processes, the machine the precision: both are no flags, but move a score."""
    with killed_at_step_5(), pytest.raises(Killed):
        run(num_train_epochs=2)
    checkpoint = run("finished").parent / "out" / "checkpoint-4"
    so_far = read(checkpoint / run_folder.PROGRESS_FILE)
    assert (so_far["processes"], so_far["precision"]) == (1, "float32")
    (checkpoint / run_folder.PROGRESS_FILE).write_text(json.dumps(so_far | {"precision": "fp16"}))
    for flags in ({"resume": True}, {"output": "other", "resume_from_checkpoint": checkpoint}):
        with pytest.raises(UsageError, match="checkpoint-4 is of a run with precision fp16, and this .* float32"):
            run(num_train_epochs=2, **flags)


def test_resume_with_nothing_whole_starts_afresh(run, caplog):
    """It says so."""
    reference = run("reference")
    broken = run("broken", save_total_limit=1)
    (broken / "run.json").unlink()
    (run_folder.checkpoints(broken)[0] / "trainer_state.json").unlink()
    resumed = run("broken", resume=True)
    assert any("is truncated" in message for message in caplog.messages)
    assert equal(saved_weights(reference), saved_weights(resumed))
    run("empty", resume=True)
    assert any("nothing to resume" in message for message in caplog.messages)


def test_resume_of_a_finished_run_does_nothing(run, caplog):
    """No file is touched."""
    folder = run()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    run(resume=True)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert any("finished run" in message for message in caplog.messages)


def test_folder_in_use_is_refused_or_overwritten(run, tiny):
    """Nothing is lost by accident, and never a user's own file."""
    folder = run(seed=1)
    (folder / "notes.md").write_text("mine")
    with pytest.raises(UsageError, match="--output_dir .*--resume.*--overwrite_output_dir"):
        run(seed=2)
    assert read(folder / "run.json")["arguments"]["seed"] == 1
    run(seed=2, overwrite_output_dir=True)
    assert read(folder / "run.json")["arguments"]["seed"] == 2
    assert (folder / "notes.md").read_text() == "mine"


def test_bad_input_loses_nothing(run):
    """An earlier run is deleted only when nothing can be refused any more."""
    folder = run()
    with pytest.raises(UsageError, match="--dataset_path"):
        run(overwrite_output_dir=True, dataset_path=folder)
    assert (folder / "run.json").exists()


# What is saved


@pytest.mark.parametrize("task", ["mrpc", "stsb", "mnli"])
@pytest.mark.parametrize("adapter", ["lora", "randlora", "vera"])
def test_reload_with_stock_peft_gives_identical_logits(run, tiny, adapter, task, monkeypatch):
    """README's lines, for two classes, three and a regression, with the labels' names."""
    models = []
    finish = run_glue.finish
    monkeypatch.setattr(
        run_glue, "finish", lambda trainer, record: models.append(trainer.model) or finish(trainer, record)
    )
    as_the_library = {"no_fast_adapters": True, "no_unpad": True}  # whose results are equal up to rounding only
    folder = run(adapter_name=adapter, task_name=task, **as_the_library, **ADAPTERS[adapter])
    config = AutoConfig.from_pretrained(folder)
    base = AutoModelForSequenceClassification.from_pretrained(tiny / "roberta", config=config, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, folder)
    assert torch.equal(logits(models[0], tiny), logits(model, tiny))
    assert config.num_labels == {"mrpc": 2, "stsb": 1, "mnli": 3}[task]
    if task == "mrpc":
        assert config.id2label == {0: "not_equivalent", 1: "equivalent"}


@pytest.mark.parametrize("kind", ["roberta", "bert"])
@pytest.mark.parametrize("adapter", ["lora", "randlora", "vera"])
def test_save_merged_needs_no_peft(run, tiny, tmp_path, adapter, kind):
    """The plain model's outputs are the adapted one's."""
    flags = {"adapter_name": adapter, "model_name_or_path": tiny / kind, **ADAPTERS[adapter]}
    folder = run(save_merged=tmp_path / "merged", **flags)
    config = AutoConfig.from_pretrained(folder)
    base = AutoModelForSequenceClassification.from_pretrained(tiny / kind, config=config)
    adapted = peft.PeftModel.from_pretrained(base, folder)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(adapted, tiny, kind), logits(merged, tiny, kind), rtol=0, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("a great film")["input_ids"]


def test_projections_are_saved_only_when_asked_for(run):
    """They are drawn again from the key otherwise."""
    without = saved_weights(run("without", adapter_name="randlora", rank=8))
    with_them = saved_weights(run("with", adapter_name="randlora", rank=8, save_projection=True))
    assert not any("randlora_A" in name for name in without)
    assert any("randlora_A" in name for name in with_them)


def test_other_random_bases_are_an_error_that_names_the_remedy(run, tiny, tmp_path):
    """The hash of what this machine draws is compared at every load."""
    folder = run(adapter_name="vera", rank=16)
    bases = read(folder / "random_bases.json")
    assert bases["projection_prng_key"] == 8
    evaluate = {"adapter_path": folder, "do_train": None, "adapter_name": None, "rank": None}
    run("same", **evaluate)
    (folder / "random_bases.json").write_text(json.dumps(bases | {"sha256": "0" * 64}))
    with pytest.raises(UsageError, match="--save_projection"):
        run("other", **evaluate)


def test_adapter_path_evaluates_and_predicts_without_training(run, tiny):
    """The run's own loss, label names in the predictions; other labels are refused."""
    folder = run()
    evaluated = run("evaluated", adapter_path=folder, do_train=None, do_predict=True, adapter_name=None, rank=None)
    assert read(evaluated / "eval_results.json")["eval_loss"] == read(folder / "eval_results.json")["eval_loss"]
    lines = (evaluated / "predict_results_mrpc.txt").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 1 + 64
    assert {line.split("\t")[1] for line in lines[1:]} <= {"equivalent", "not_equivalent"}
    with pytest.raises(UsageError, match="--adapter_path .*trained for the labels"):
        run("other", adapter_path=folder, task_name="mnli", do_train=None, adapter_name=None, rank=None)


def test_a_saved_adapter_is_not_scored_on_another_model(run, tiny, tmp_path):
    """The record beside it knows the weights that it was trained on, whatever their folder is called."""
    folder = run()
    shutil.copytree(tiny / "roberta", tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    name = next(name for name in weights if name.endswith("query.weight"))
    save_file(weights | {name: weights[name] + 1}, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    flags = {"do_train": None, "adapter_name": None, "rank": None, "adapter_path": folder}
    with pytest.raises(UsageError, match=f"--adapter_path {folder}: was trained on another model, {tiny}/roberta"):
        run("again", model_name_or_path=tmp_path / "other", **flags)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(UsageError, match=f"--adapter_path {folder}: "):
        run("again", model_name_or_path=None, **flags)


def test_an_adapter_needs_the_whole_pre_trained_model(run, tiny, tmp_path):
    """Weights that the file lacks would be drawn anew at every load; full fine-tuning trains and saves them."""
    shutil.copytree(tiny / "bert", tmp_path / "bert")
    weights = load_file(tmp_path / "bert" / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler." not in name}
    assert len(kept) == len(weights) - 2
    save_file(kept, tmp_path / "bert" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="--model_name_or_path .*: no weights for bert.pooler.dense.bias, "):
        run(model_name_or_path=tmp_path / "bert")
    run("full", model_name_or_path=tmp_path / "bert", adapter_name="none", rank=None)
    config = read(tiny / "bert" / "config.json")
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32}))
    save_file(weights, tmp_path / "bert" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="no weights for bert.embeddings.position_embeddings.weight"):
        run(model_name_or_path=tmp_path / "bert", ignore_mismatched_sizes=True, max_seq_length=32)


def test_do_eval_alone_evaluates_a_fully_fine_tuned_model(run):
    """From the folder that a run saved."""
    folder = run(adapter_name="none", rank=None)
    again = run("again", model_name_or_path=folder, adapter_name="none", rank=None, do_train=None)
    assert read(again / "eval_results.json")["eval_loss"] == read(folder / "eval_results.json")["eval_loss"]


def test_a_fine_tuned_model_keeps_its_order_of_labels(run, tiny, tmp_path):
    """Its outputs 0 and 1 mean the opposite of the data's 0 and 1; scores and predicted names must not flip."""
    trained = run(adapter_name="none", rank=None, max_train_samples=None, num_train_epochs=3, learning_rate=1e-3)
    swapped = AutoModelForSequenceClassification.from_pretrained(trained)
    with torch.no_grad():
        head = swapped.classifier.out_proj
        head.weight.copy_(head.weight.flip(0))
        head.bias.copy_(head.bias.flip(0))
    swapped.config.id2label = {0: "equivalent", 1: "not_equivalent"}
    swapped.config.label2id = {"equivalent": 0, "not_equivalent": 1}
    swapped.save_pretrained(tmp_path / "swapped")
    shutil.copy(trained / "tokenizer.json", tmp_path / "swapped")
    shutil.copy(trained / "tokenizer_config.json", tmp_path / "swapped")
    flags = {"adapter_name": "none", "rank": None, "do_train": None, "do_predict": True}
    left = run("left", model_name_or_path=trained, **flags)
    right = run("right", model_name_or_path=tmp_path / "swapped", **flags)
    assert (
        read(left / "eval_results.json")["eval_accuracy"] == read(right / "eval_results.json")["eval_accuracy"] > 0.75
    )
    name = "predict_results_mrpc.txt"
    assert (left / name).read_text() == (right / name).read_text()


def test_record_holds_what_made_the_numbers_and_no_token(run):
    """And counts that add up to the saved tensors."""
    folder = run(token="hf_secret", hub_token="hf_other_secret", adapter_name="randlora", rank=8)
    record = read(folder / "run.json")
    assert "secret" not in json.dumps(record)
    assert {
        "arguments",
        "adapter_config",
        "base_model",
        "data_sha256",
        "parameters",
        "precision",
        "device",
        "seconds",
    } <= (record.keys())
    assert record["versions"]["torch"] == torch.__version__
    assert len(record["base_model"]["sha256"]) == 64
    assert record["saved_bytes"] == (folder / "adapter_model.safetensors").stat().st_size
    assert record["peak_memory"]["bytes"] > 0
    counts, weights = record["parameters"], saved_weights(folder)
    assert counts["stored"] == sum(tensor.numel() for tensor in weights.values())
    assert counts["adapter"] + counts["head"] == counts["stored"]
    assert counts["head"] == sum(tensor.numel() for name, tensor in weights.items() if "classifier" in name)


# The fast paths


@pytest.mark.parametrize("kind", ["roberta", "bert"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_fast_paths_change_the_time_alone(run, without_dropout, adapter, kind):
    """Without dropout a short training in float32 gives the same losses with and without them.

    Each step rounds differently in the last of 24 bits and AdamW carries that on: 1e-3 is far above what eight steps
    make of it, and far below what one wrong gradient would.
    """
    flags = {
        "adapter_name": adapter,
        "model_name_or_path": without_dropout / kind,
        "logging_steps": 1,
        "num_train_epochs": 2,
        "adam_epsilon": 1e-3,  # so that rounding of a gradient near 0 can't turn its step's sign
        **ADAPTERS[adapter],
    }
    with_them = run("with", **flags)
    without = run("without", no_fast_adapters=True, no_unpad=True, **flags)
    losses = [
        [entry["loss"] for entry in read(folder / "trainer_state.json")["log_history"] if "loss" in entry]
        for folder in (with_them, without)
    ]
    assert len(losses[0]) == 8
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    records = [read(folder / "run.json") for folder in (with_them, without)]
    assert records[0]["metrics"]["eval_loss"] == pytest.approx(records[1]["metrics"]["eval_loss"], rel=1e-3)
    converted = 0 if adapter == "none" else 12 + (kind == "bert")  # BERT's pooler is a target too
    assert records[0]["fast_adapters"] == {"converted": converted, "left": {}}
    assert records[0]["unpadded_encoder"] == {"on": True, "reason": None}
    assert records[1]["fast_adapters"] == {"converted": 0, "left": {}}
    assert records[1]["unpadded_encoder"] == {"on": False, "reason": "--no_unpad"}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("adapter", ["randlora", "none"])
def test_gradient_checkpointing_gives_the_same_weights(run, without_dropout, adapter, reentrant):
    """With the fast adapters too, in both ways that torch has."""
    flags = {"adapter_name": adapter, "model_name_or_path": without_dropout / "roberta", **ADAPTERS[adapter]}
    kept = json.dumps({"use_reentrant": reentrant})
    recomputed = run("recomputed", gradient_checkpointing=True, gradient_checkpointing_kwargs=kept, **flags)
    reference = run("reference", **flags)
    left, right = saved_weights(recomputed), saved_weights(reference)
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-3, atol=1e-5)


def test_torch_compile_works_with_the_fast_adapters(run, without_dropout):
    """With the backend that only traces; no compiler is needed."""
    flags = {"adapter_name": "randlora", "model_name_or_path": without_dropout / "roberta", "max_steps": 2}
    compiled = run("compiled", torch_compile=True, torch_compile_backend="eager", **flags)
    reference = run("reference", **flags)
    losses = [read(folder / "eval_results.json")["eval_loss"] for folder in (compiled, reference)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_layers_left_to_peft_are_recorded_with_the_reason(run):
    """Adapter dropout, and padding that was asked for."""
    record = read(run(adapter_dropout=0.1, pad_to_max_length=True) / "run.json")
    assert record["fast_adapters"] == {"converted": 0, "left": {"adapter dropout": 12}}
    assert record["unpadded_encoder"] == {"on": False, "reason": "--pad_to_max_length"}


@pytest.mark.parametrize("first", [True, False])
def test_a_run_can_be_resumed_on_the_other_path(run, without_dropout, first):
    """From PEFT's layers to ours and back."""
    off = {"no_fast_adapters": True}
    flags = {"adapter_name": "randlora", "model_name_or_path": without_dropout / "roberta", "num_train_epochs": 2}
    whole = run("whole", **flags)
    with killed_at_step_5(), pytest.raises(Killed):
        run("killed", **flags, **(off if first else {}))
    resumed = run("killed", resume=True, **flags, **({} if first else off))
    losses = [read(folder / "eval_results.json")["eval_loss"] for folder in (whole, resumed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# Data


def test_mnli_has_two_validation_sets_two_test_sets_and_ax(run):
    """With metrics and predictions of each."""
    folder = run(task_name="mnli", do_predict=True, max_predict_samples=10)
    results = read(folder / "eval_results.json")
    assert {"eval_accuracy", "eval_accuracy_mm", "eval_loss", "eval_loss_mm"} <= results.keys()
    assert results["eval_loss"] != results["eval_loss_mm"]
    for name in ("predict_results_mnli.txt", "predict_results_mnli-mm.txt", "predict_results_ax.txt"):
        assert len((folder / name).read_text().splitlines()) == 11


def test_stsb_is_regression_with_three_scores(run):
    """It learns, and predicts numbers."""
    folder = run(task_name="stsb", do_predict=True, max_train_samples=None, max_eval_samples=None, num_train_epochs=4)
    results = read(folder / "eval_results.json")
    assert results["eval_pearson"] > 0.3
    mean = (results["eval_pearson"] + results["eval_spearmanr"]) / 2
    assert results["eval_combined_score"] == pytest.approx(mean)
    float((folder / "predict_results_stsb.txt").read_text().splitlines()[1].split("\t")[1])


@pytest.mark.parametrize("suffix", ["csv", "json"])
@pytest.mark.parametrize("labels", [["bad", "good"], [0, 1], [0.25, 1.5]])
def test_own_files_for_classification_and_regression(run, tmp_path, suffix, labels):
    """Names, whole numbers and floats as labels, from CSV and JSON, learnt to the end."""
    for name in ("train", "validation", "test"):
        rows = [
            {"text": f"a {word} film", "label": label} for word, label in zip(["dull", "great"], labels, strict=True)
        ] * 8
        if name == "test":
            rows = [{"text": row["text"]} for row in rows]
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "json":
            path.write_text("\n".join(map(json.dumps, rows)))
        else:
            path.write_text("\n".join([",".join(rows[0])] + [",".join(map(str, row.values())) for row in rows]))
    files = {f"{name}_file": tmp_path / f"{name}.{suffix}" for name in ("train", "validation", "test")}
    folder = run(task_name=None, dataset_path=None, do_predict=True, num_train_epochs=10, **files)
    results = read(folder / "eval_results.json")
    predictions = [line.split("\t")[1] for line in (folder / "predict_results_train.txt").read_text().splitlines()[1:]]
    if isinstance(labels[0], float):
        assert results["eval_mse"] < 0.4  # the variance of the labels
        assert float(predictions[0]) < float(predictions[1])
    else:
        assert results["eval_accuracy"] == 1.0
        assert predictions == [str(label) for label in labels] * 8


def test_file_names_are_no_patterns_and_unused_splits_no_matter(run, tiny, tmp_path):
    """As a browser names a second download; a split without labels, as IMDb's `unsupervised`, is left alone."""
    folder = tmp_path / "data[1]"
    folder.mkdir()
    for name in ("train", "validation"):
        (folder / f"{name}(*).csv").write_text("text,label\n" + "a dull film,bad\na great film,good\n" * 8)
    files = {f"{name}_file": folder / f"{name}(*).csv" for name in ("train", "validation")}
    assert read(run("files", task_name=None, dataset_path=None, **files) / "eval_results.json")["eval_samples"] == 16

    shutil.copytree(tiny / "glue" / "mrpc", tmp_path / "own")
    rows = datasets.load_dataset("parquet", data_files=str(tiny / "glue/mrpc/test-*"), split="train")
    rows.to_parquet(tmp_path / "own" / "unsupervised-00000-of-00001.parquet")  # its labels are -1
    hub = run("hub", task_name=None, dataset_path=None, dataset_name=tmp_path / "own")
    assert set(read(hub / "run.json")["data_sha256"]) == {"train", "validation", "test"}


@pytest.mark.parametrize(
    ("task", "metric", "greater"),
    [("mrpc", "f1", True), ("stsb", "eval_spearmanr", True), ("mnli", "mm_accuracy", True), (None, "mse", False)],
)
def test_the_best_epoch_by_another_metric(run, tmp_path, task, metric, greater):
    """Any of the task's; the less the better for a squared error."""
    files = {}
    if task is None:
        for name in ("train", "validation"):
            (tmp_path / f"{name}.csv").write_text("text,label\n" + "a dull film,0.5\na great film,1.5\n" * 16)
            files[f"{name}_file"] = tmp_path / f"{name}.csv"
        files["dataset_path"] = None
    flags = {"load_best_model_at_end": True, "eval_strategy": "epoch", "metric_for_best_model": metric}
    folder = run(task_name=task, num_train_epochs=3, save_total_limit=2, **files, **flags)
    state, key = read(folder / "trainer_state.json"), f"eval_{metric.removeprefix('eval_')}"
    values = [entry[key] for entry in state["log_history"] if key in entry]
    assert state["best_metric"] == (max if greater else min)(values) and len(values) == 3


def test_labels_of_a_test_file_are_not_looked_at(run, tmp_path):
    """They may be empty or anything, for a regression too."""
    for name, labels in (("train", "0.5 1.5"), ("validation", "0.5 1.5"), ("test", "? -")):
        lines = [f"a film,{label}" for label in labels.split()] * 8
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *lines]))
    files = {f"{name}_file": tmp_path / f"{name}.csv" for name in ("train", "validation", "test")}
    folder = run(task_name=None, dataset_path=None, do_predict=True, **files)
    assert len((folder / "predict_results_train.txt").read_text().splitlines()) == 17


def test_what_a_run_reads_is_not_overwritten(run, tiny, tmp_path):
    """By --overwrite_output_dir or --save_merged: a model, an adapter, one of its checkpoints."""
    trained = run("trained", save_total_limit=1)
    before = saved_weights(trained)
    again = {"overwrite_output_dir": True, "adapter_name": None, "rank": None, "do_train": None}
    with pytest.raises(UsageError, match="--output_dir .*trained: holds --adapter_path"):
        run("trained", adapter_path=trained, **again)
    for source in (trained, trained / "checkpoint-4"):
        with pytest.raises(UsageError, match="--output_dir .*trained: holds --init_adapter_from"):
            run("trained", init_adapter_from=source, overwrite_output_dir=True)
    shutil.copytree(tiny / "roberta", tmp_path / "model")
    with pytest.raises(UsageError, match="--save_merged .*model: is --model_name_or_path itself"):
        run("other", model_name_or_path=tmp_path / "model", save_merged=tmp_path / "model")
    assert equal(before, saved_weights(trained))


def test_the_config_file_of_a_saved_adapter_is_one(run):
    """PEFT saves it for inference; given as --adapter_config it is trained."""
    first = run("first")
    second = run("second", adapter_name=None, rank=None, adapter_config=first / "adapter_config.json")
    assert equal(saved_weights(first), saved_weights(second))


def test_a_data_set_by_name(run, tiny):
    """A folder stands for a data set of the hub, which load_dataset treats alike."""
    folder = run(task_name=None, dataset_path=None, dataset_name=tiny / "glue" / "mrpc", do_predict=True)
    assert 0 <= read(folder / "eval_results.json")["eval_accuracy"] <= 1
    predictions = (folder / "predict_results_mrpc.txt").read_text()
    assert "equivalent" in predictions


def test_nothing_local_reaches_for_the_network(tiny, tmp_path):
    """With HF_HUB_OFFLINE unset, a run on local files makes no connection, not even one whose failure is ignored."""
    script = (
        "import socket, sys\n"
        "def refuse(*args):\n"
        f"    open({str(tmp_path / 'calls')!r}, 'a').write(repr(args))\n"
        "    raise OSError('no network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import run_glue\n"
        "run_glue.main(sys.argv[1:])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "HF_HOME": str(tmp_path / "home")}
    command = arguments(tiny, tmp_path / "out", max_steps=1)
    subprocess.run([sys.executable, "-c", script, *command], check=True, capture_output=True, env=environment)
    assert (tmp_path / "out" / "run.json").exists()
    assert not (tmp_path / "calls").exists()


def test_local_data_are_never_stale_nor_mixed_up(run, tiny, tmp_path):
    """Two folders of one name and the same modification times, then one of them rewritten in place."""
    first, second = tmp_path / "a" / "glue", tmp_path / "b" / "glue"
    for folder, task in ((first, "mrpc"), (second, "rte")):
        shutil.copytree(tiny / "glue" / task, folder / "mrpc")
    records = [read(run(str(i), dataset_path=folder) / "run.json") for i, folder in enumerate((first, second))]
    assert records[0]["data_sha256"]["train"] != records[1]["data_sha256"]["train"]
    old = (first / "mrpc" / "train-00000-of-00001.parquet").stat()
    shutil.copy(second / "mrpc" / "train-00000-of-00001.parquet", first / "mrpc")
    os.utime(first / "mrpc" / "train-00000-of-00001.parquet", ns=(old.st_atime_ns, old.st_mtime_ns))
    rewritten = read(run("2", dataset_path=first) / "run.json")
    assert rewritten["data_sha256"]["train"] == records[1]["data_sha256"]["train"]


def test_tokenised_data_are_found_again_by_the_next_process(tiny, tmp_path):
    """Another seed of the same task adds nothing to the cache."""
    cache = tmp_path / "home"
    counts = []
    for seed in (1, 2):
        command = arguments(tiny, tmp_path / f"out{seed}", seed=seed, cache_dir=cache, max_steps=1)
        subprocess.run([sys.executable, REPOSITORY / "run_glue.py", *command], check=True, capture_output=True)
        counts.append(len(list(cache.rglob("cache-*.arrow"))))
    assert counts[0] == counts[1] > 0


def test_padding_is_to_the_longest_of_the_batch_unless_asked_for(run, monkeypatch):
    """And to multiples of 8 in reduced precision."""
    widths = []
    training_step = run_glue.GlueTrainer.training_step

    def watch(self, model, inputs, *args):
        widths.append(inputs["input_ids"].shape[1])
        return training_step(self, model, inputs, *args)

    monkeypatch.setattr(run_glue.GlueTrainer, "training_step", watch)
    run("dynamic", per_device_train_batch_size=2)
    assert len(set(widths)) > 1
    widths.clear()
    run("fixed", per_device_train_batch_size=2, pad_to_max_length=True, max_seq_length=40)
    assert set(widths) == {40}
    widths.clear()
    run("reduced", per_device_train_batch_size=2, bf16=True, use_cpu=True)
    assert all(width % 8 == 0 for width in widths)


def test_too_long_a_max_seq_length_is_clipped_with_a_warning(run, caplog):
    """To the model's positions."""
    run(max_seq_length=10_000, pad_to_max_length=True)
    assert any("--max_seq_length 10000 is above the model's 64" in message for message in caplog.messages)


def test_one_json_file_instead_of_flags(tiny, tmp_path):
    """The same arguments either way."""
    argv = arguments(tiny, tmp_path / "flags")
    names = [token[2:] for token in argv if token.startswith("--")]
    values = {}
    for name in names:
        rest = argv[argv.index(f"--{name}") + 1 :]
        values[name] = rest[0] if rest and not rest[0].startswith("--") else True
    values |= {"rank": 4, "learning_rate": 0.005, "target_modules": ["query", "value"], "token": None}
    (tmp_path / "arguments.json").write_text(json.dumps(values))
    from_file = run_glue.parse_arguments([str(tmp_path / "arguments.json")])
    from_flags = run_glue.parse_arguments([*argv, "--target_modules", "query", "value"])
    for left, right in zip(from_file[:3], from_flags[:3], strict=True):
        assert left == right
    assert from_file[3].to_dict() == from_flags[3].to_dict()


# Adapters


def meta_model(size: str) -> torch.nn.Module:
    """RoBERTa-base or -large on the meta device."""
    wide = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    config = RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, **(wide if size == "large" else {})
    )
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize(
    ("adapter", "rank", "size", "count"),
    [
        ("lora", 4, "base", 663_552),
        ("lora", 4, "large", 1_769_472),
        ("randlora", 64, "base", 718_848),
        ("randlora", 100, "large", 1_780_416),
        ("vera", 256, "base", 101_376),
        ("vera", 256, "large", 258_048),
        ("vera", 1024, "base", 156_672),
    ],
)
def test_parameter_counts_of_the_papers(adapter, rank, size, count):
    """Adapter and head apart, on the real sizes."""
    model = meta_model(size)
    config = run_glue.make_adapter_config(run_glue.AdapterArguments(adapter_name=adapter, rank=rank), model, seed=1)
    counts = run_glue.count_parameters(peft.get_peft_model(model, config))
    assert counts["adapter"] == count
    assert counts["head"] == {"base": 592_130, "large": 1_051_650}[size]


def test_configurations_are_the_protocol_s():
    """And the flags that change them."""
    model = meta_model("base")
    make = lambda **flags: run_glue.make_adapter_config(run_glue.AdapterArguments(**flags), model, seed=3)  # noqa: E731
    lora = make(adapter_name="lora", rank=4)
    assert (lora.lora_alpha, lora.lora_dropout) == (8, 0.0)
    assert lora.target_modules == {"query", "key", "value", "dense"}
    assert make(adapter_name="lora", rank=4, adapter_alpha=3.0, adapter_dropout=0.1).lora_alpha == 3.0
    randlora = make(adapter_name="randlora", rank=64)
    assert (randlora.randlora_alpha, randlora.projection_prng_key, randlora.save_projection) == (128, 63, False)
    vera = make(adapter_name="vera", rank=256)
    assert (vera.d_initial, vera.projection_prng_key) == (0.1, 63)
    assert make(adapter_name="vera", vera_d_initial=0.5, projection_prng_key=7).projection_prng_key == 7
    assert make(adapter_name="randlora", randlora_sparse=True).sparse
    assert make(adapter_name="randlora", randlora_very_sparse=True).very_sparse


def test_paper_scaling_divides_by_the_root_of_the_number_of_bases(run):
    """2 / sqrt(n) in place of 2."""
    folder = run(adapter_name="randlora", rank=5, paper_scaling=True)
    config = read(folder / "adapter_config.json")
    assert config["randlora_alpha"] / 5 == pytest.approx(2 / math.sqrt(math.ceil(48 / 5)))


def test_projection_keys_are_the_authors_and_never_shared():
    """Also where their formula leaves 64 bits."""
    assert [run_glue.projection_key(seed) for seed in range(1, 6)] == [8, 23, 63, 171, 466]
    keys = [run_glue.projection_key(seed) for seed in [*range(200), 2**32 - 1]]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)
    torch.Generator().manual_seed(run_glue.projection_key(43))


@pytest.mark.parametrize(
    "content",
    [
        {"peft_type": "LORA", "r": 2, "use_dora": True, "target_modules": ["query", "value"]},
        {"peft_type": "IA3", "target_modules": ["key", "value", "dense"], "feedforward_modules": ["dense"]},
        {"peft_type": "FOURIERFT", "n_frequency": 20, "target_modules": ["query", "value"]},
    ],
    ids=lambda content: content["peft_type"],
)
def test_any_other_peft_method_from_its_config_file(run, tiny, tmp_path, content):
    """Trained, counted, saved, reloaded and merged."""
    (tmp_path / "adapter.json").write_text(json.dumps(content))
    folder = run(
        adapter_name=None, rank=None, adapter_config=tmp_path / "adapter.json", save_merged=tmp_path / "plain"
    )
    record = read(folder / "run.json")
    assert record["adapter_config"]["peft_type"] == content["peft_type"]
    assert 0 < record["parameters"]["adapter"] < record["parameters"]["total"] / 2
    config = AutoConfig.from_pretrained(folder)
    base = AutoModelForSequenceClassification.from_pretrained(tiny / "roberta", config=config)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    adapted = peft.PeftModel.from_pretrained(base, folder)
    torch.testing.assert_close(logits(adapted, tiny), logits(merged, tiny), rtol=0, atol=1e-5)


# Bad input


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"task_name": "mrcp"}, "--task_name mrcp: unknown task, allowed are cola, mnli"),
        ({"task_name": None, "dataset_path": None}, "exactly one of --task_name"),
        ({"adapter_name": "adalora"}, "--adapter_name.*'lora', 'randlora', 'vera', 'none'"),
        ({"rank": 0}, "--rank 0: must be at least 1"),
        ({"rank": "many"}, "--rank.*invalid int value"),
        ({"adapter_name": "randlora", "rank": 49}, "--rank 49: RandLoRA allows 1 to 48"),
        ({"adapter_name": "none"}, "--rank has no effect with none"),
        ({"adapter_name": "vera", "adapter_alpha": 3}, "--adapter_alpha has no effect with vera"),
        ({"adapter_dropout": 1.5}, "--adapter_dropout 1.5"),
        ({"adapter_config": "x.json"}, "give one of --adapter_config and --adapter_name"),
        ({"target_modules": ["query", "wrong"]}, "--target_modules.*wrong.*dense.*key.*query.*value"),
        ({"projection_prng_key": -1, "adapter_name": "vera"}, "--projection_prng_key -1: allowed are 0"),
        ({"seed": -1}, "--seed -1: allowed are 0 to 4294967295"),
        ({"seed": 2**32}, "--seed 4294967296: allowed are 0 to 4294967295"),
        ({"learning_rate": 0}, "--learning_rate 0.0: must be above 0"),
        ({"max_train_samples": 0}, "--max_train_samples 0"),
        ({"eval_strategy": "epochs"}, "--eval_strategy.*invalid choice: 'epochs' .choose from 'no', 'steps', 'epoch'"),
        ({"optim": "adam"}, "--optim: invalid choice: 'adam'"),
        ({"do_train": None, "do_eval": None}, "at least one of --do_train"),
        ({"resume": True, "overwrite_output_dir": True}, "--resume and --overwrite_output_dir"),
        ({"wrong_flag": 1}, "unknown argument '--wrong_flag'"),
        ({"save_total_limit": 0}, "--save_total_limit 0"),
        ({"model_name_or_path": "no/such_model"}, "--model_name_or_path no/such_model"),
        ({"model_name_or_path": None}, "--model_name_or_path is required"),
        ({"dataset_path": "nowhere"}, "--dataset_path nowhere: no folder mrpc in it"),
        ({"task_name": "wnli"}, "--dataset_path .*: no folder wnli in it; tasks there: cola, mnli, mrpc"),
        ({"adapter_path": "nowhere", "do_train": None, "adapter_name": None, "rank": None}, "--adapter_path nowhere"),
        ({"adapter_path": "nowhere", "adapter_name": None, "rank": None}, "--adapter_path .*excludes --do_train"),
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size 0: must be at least 1"),
        ({"classifier_learning_rate": 0}, "--classifier_learning_rate 0.0: must be above 0"),
        ({"selection_fraction": 1}, "--selection_fraction 1.0: must be above 0 and below 1"),
        ({"selection_fraction": 0.001}, "--selection_fraction 0.001: 64 training rows can't be split so"),
        ({"selection_fraction": 0.1, "do_train": None}, "--selection_fraction has no effect without --do_train"),
        ({"selection_fraction": 0.1, "metric_for_best_model": "loss"}, "drop --metric_for_best_model"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "metric_for_best_model": "acc"},
            "--metric_for_best_model acc: allowed are loss, accuracy, f1, ",
        ),
        ({"load_best_model_at_end": True, "save_strategy": "no", "eval_strategy": "epoch"}, "load_best_model_at_end"),
        ({"task_name": None, "dataset_name": "own/data"}, "--dataset_path is a local copy of GLUE"),
        ({"validation_file": "x.csv"}, "--validation_file goes with --train_file, not with --task_name"),
        (
            {"task_name": None, "dataset_path": None, "train_file": "nowhere.csv", "validation_file": "nowhere.csv"},
            "--train_file nowhere.csv: no such file",
        ),
        (
            {"adapter_name": "randlora", "randlora_sparse": True, "randlora_very_sparse": True},
            "--randlora_sparse and --randlora_very_sparse contradict",
        ),
        ({"adapter_name": "none", "rank": None, "save_merged": "x"}, "--save_merged has no effect with"),
        ({"tokenizer_name": "no/such_tokenizer"}, "--tokenizer_name no/such_tokenizer"),
        ({"resume_from_checkpoint": "nowhere"}, "--resume_from_checkpoint nowhere: not a whole checkpoint"),
        ({"resume_from_checkpoint": "x", "do_train": None}, "--resume_from_checkpoint goes with --do_train"),
        ({"resume_from_checkpoint": "x", "resume": True}, "--resume_from_checkpoint goes without --resume"),
        ({"enable_jit_checkpoint": "True"}, "--enable_jit_checkpoint: a run that SIGTERM cuts short"),
        ({"auto_find_batch_size": "True"}, "--auto_find_batch_size: the batch size would not be"),
        ({"prediction_loss_only": "True"}, "--prediction_loss_only: no task's metric"),
        ({"dataloader_drop_last": "True"}, "--dataloader_drop_last: rows of the evaluation"),
        ({"save_only_model": "True"}, "--save_only_model: such a checkpoint can't be resumed"),
        ({"batch_eval_metrics": "True"}, "--batch_eval_metrics: a task's metric is of the whole set"),
        ({"save_merged": __file__}, "--save_merged .*: is a file or below one"),
        ({"save_merged": f"{__file__}/merged"}, "--save_merged .*: is a file or below one"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_flags_are_one_line_before_a_model_is_loaded(tiny, tmp_path, flags, message, monkeypatch):
    """It names the flag and what is allowed, and leaves no folder."""
    monkeypatch.setattr(run_glue, "load_model", lambda *args: pytest.fail("a model was loaded"))
    with pytest.raises(UsageError, match=message) as caught:
        run_glue.main(arguments(tiny, tmp_path / "out", **flags))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train": "sentence,label\na film,0\nb,1\n"}, "--validation_file is needed for --do_eval"),
        ({"train": None, "validation": "x"}, "exactly one of --task_name"),
        ({"train.txt": "sentence,label\n"}, "train.txt: must be a .csv or a .json file"),
        ({"train": "sentence\na\n", "validation": "sentence\na\n"}, "no column `label`"),
        ({"train": "label\n0\n1\n", "validation": "label\n0\n"}, "no text column"),
        ({"train": "s,label\na,0\nb,1\n", "validation": "s,label\na,2\n"}, "labels unseen in training: .2."),
        ({"train": "s,label\na,0\nb,0\n", "validation": "s,label\na,0\n"}, "a single value"),
        ({"train": "s,label\na,x\nb,\n", "validation": "s,label\na,x\n"}, "empty cells in its column `label`"),
        ({"train": "s,label\na,x\n,y\n", "validation": "s,label\na,x\n"}, "empty cells in its column `s`"),
        ({"train": "s,label\n1,x\n2,y\n", "validation": "s,label\n1,x\n"}, "`s` of the train split is not text"),
        ({"train.json": "{broken", "validation.json": "{}"}, "train.json: not a readable json file"),
        (
            {"train.json": '{"s": "a", "label": ["x"]}', "validation.json": '{"s": "a", "label": ["x"]}'},
            "one kind alone",
        ),
    ],
)
def test_bad_files_are_one_line(tiny, tmp_path, files, message):
    """It names the file, and what is wrong in it."""
    flags = {"task_name": None, "dataset_path": None}
    for name, content in files.items():
        path = tmp_path / (name if "." in name else f"{name}.csv")
        if content is not None:
            path.write_text(content)
            flags[f"{path.stem}_file"] = path
    with pytest.raises(UsageError, match=message) as caught:
        run_glue.main(arguments(tiny, tmp_path / "out", **flags))
    assert "\n" not in str(caught.value)


def test_missing_column_and_unreadable_parquet_name_the_folder(tiny, tmp_path):
    """Of a local copy of GLUE."""
    shutil.copytree(tiny / "glue" / "cola", tmp_path / "glue" / "mrpc")
    with pytest.raises(UsageError, match="no column `sentence1`, only sentence, label, idx"):
        run_glue.main(arguments(tiny, tmp_path / "out", dataset_path=tmp_path / "glue"))
    (tmp_path / "glue" / "mrpc" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(UsageError, match="train-00000-of-00001.parquet: not a readable parquet file"):
        run_glue.main(arguments(tiny, tmp_path / "out", dataset_path=tmp_path / "glue"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a readable file"),
        ('{"r": 4}', "peft_type is None; allowed"),
        ('{"peft_type": "LORA", "ranc": 4}', "LORA has no setting ranc"),
        ('{"peft_type": "LORA", "target_modules": ["wrong"]}', "No modules were targeted"),
        ('{"peft_type": "LORA", "r": 0}', "`r` should be a positive integer"),
        ('{"peft_type": "adalora", "total_step": 8}', "adalora has to be told of every step"),
        ('{"peft_type": "LORA", "task_type": "CAUSAL_LM"}', "task_type is 'CAUSAL_LM'; allowed: 'SEQ_CLS'"),
    ],
)
def test_bad_adapter_config_files(tiny, tmp_path, content, message):
    """No JSON, no method, an unknown setting, layers that are not there, and what PEFT itself refuses."""
    (tmp_path / "adapter.json").write_text(content)
    flags = {"adapter_name": None, "rank": None, "adapter_config": tmp_path / "adapter.json"}
    with pytest.raises(UsageError, match=f"--adapter_config .*{message}"):
        run_glue.main(arguments(tiny, tmp_path / "out", **flags))


def test_what_can_t_be_merged_is_refused(tiny, tmp_path):
    """Before a model is loaded, not after the training."""
    (tmp_path / "adapter.json").write_text('{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}')
    flags = {"adapter_name": None, "rank": None, "adapter_config": tmp_path / "adapter.json"}
    with pytest.raises(UsageError, match="--save_merged: PROMPT_TUNING has no weights to merge"):
        run_glue.main(arguments(tiny, tmp_path / "out", save_merged=tmp_path / "merged", **flags))
    with pytest.raises(UsageError, match="--save_merged: needs a folder of its own"):
        run_glue.main(arguments(tiny, tmp_path / "out", save_merged=tmp_path / "out"))


def test_paper_scaling_needs_one_number_of_bases():
    """PEFT keeps one alpha for all layers."""
    assert run_glue.number_of_bases([48, 48], 5) == 10
    with pytest.raises(UsageError, match=r"--paper_scaling: the adapted layers have \[10, 20\] bases"):
        run_glue.number_of_bases([48, 96], 5)


def test_broken_weights_are_one_line(run, tiny, tmp_path):
    """Of the adapter and of the model."""
    saved = run("saved")
    (saved / "adapter_model.safetensors").write_bytes(b"")
    flags = {"do_train": None, "adapter_name": None, "rank": None}
    with pytest.raises(UsageError, match="--adapter_path .*saved: "):
        run("again", adapter_path=saved, **flags)
    shutil.copytree(tiny / "roberta", tmp_path / "roberta")
    weights = tmp_path / "roberta" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UsageError, match="--model_name_or_path .*roberta: "):
        run_glue.main(arguments(tiny, tmp_path / "out", model_name_or_path=tmp_path / "roberta"))


def test_outputs_that_are_no_numbers_are_a_divergence():
    """A metric would hide them."""
    task = run_glue.Task("own", None, ("text", None), ("no", "yes"), is_regression=False)
    compute_metrics = run_glue.make_compute_metrics(task)
    logits = np.array([[0.0, 1.0], [2.0, 1.0]])
    metrics = compute_metrics(EvalPrediction(predictions=logits, label_ids=np.array([1, 1])))
    assert metrics == {"accuracy": 0.5, "majority_share": 1.0, "predicted_classes": 2}
    with pytest.raises(run_glue.DivergedError, match="outputs are not finite"):
        compute_metrics(EvalPrediction(predictions=logits * np.nan, label_ids=np.array([1, 1])))


@pytest.mark.parametrize(
    ("outcome", "status", "line"),
    [
        (None, 0, ""),
        (UsageError("--rank 0: must be at least 1"), 2, "run_glue.py: error: --rank 0: must be at least 1\n"),
        (run_glue.DivergedError("the loss is nan"), 1, "run_glue.py: error: diverged: the loss is nan; try a lower "),
        (run_glue.StoppedBySignal("stopped by SIGTERM"), 75, "run_glue.py: stopped by SIGTERM\n"),
        (KeyboardInterrupt(), 130, "run_glue.py: interrupted: start it again with --resume\n"),
    ],
)
def test_every_end_has_its_exit_status_and_line(monkeypatch, capsys, outcome, status, line):
    """Without a traceback."""

    def main() -> int:
        if outcome is not None:
            raise outcome
        return 0

    monkeypatch.setattr(run_glue, "main", main)
    assert run_glue.run_as_script() == status
    errors = capsys.readouterr().err
    assert errors.startswith(line) and errors.count("\n") == bool(line)


@pytest.mark.parametrize(("outcome", "status"), [(None, 0), (UsageError("no"), 2), (KeyError("odd"), 1)])
def test_a_process_of_several_leaves_without_a_teardown_that_may_hang(monkeypatch, capsys, outcome, status):
    """Whatever ends it, what it had to say is printed first; only a success waits for the others."""
    left = []
    monkeypatch.setattr(run_glue, "main", lambda: 0 if outcome is None else (_ for _ in ()).throw(outcome))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: left.append("waited"))
    monkeypatch.setattr(os, "_exit", left.append)
    run_glue.run_as_script()
    assert left == (["waited", 0] if outcome is None else [status])
    errors = capsys.readouterr().err
    assert ("Traceback" in errors) is (status == 1) and bool(errors) is bool(status)


@pytest.mark.parametrize(
    ("model_type", "sizes", "named", "targets"),
    [
        (
            "distilbert",
            {"dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2},
            "query, key, value, dense not in DistilBert.*k_lin, lin1, lin2, out_lin, q_lin, v_lin",
            ["q_lin", "v_lin"],
        ),
        (
            "deberta-v2",
            {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
            "query, key, value not in DebertaV2.*dense, key_proj, query_proj, value_proj",
            ["query_proj", "value_proj"],
        ),
    ],
)
def test_an_architecture_without_the_target_layers_gets_its_linear_layers_named(
    tiny, tmp_path, model_type, sizes, named, targets
):
    """So that --target_modules can be given; also where one of the default names fits, as DeBERTa's dense."""
    folder = tmp_path / "model"
    AutoModel.from_config(AutoConfig.for_model(model_type, vocab_size=60, **sizes)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny / "bert").save_pretrained(folder)
    with pytest.raises(UsageError, match=f"--target_modules .*{named}"):
        run_glue.main(arguments(tiny, tmp_path / "out", model_name_or_path=folder))
    run_glue.main(arguments(tiny, tmp_path / "out", model_name_or_path=folder, target_modules=targets))
    trained = saved_weights(tmp_path / "out")
    assert any("classifier" in name for name in trained)  # the head is everything outside the encoder


def test_hub_out_of_reach_names_the_ways_to_work_offline(tiny, tmp_path):
    """--dataset_path, or what was downloaded before."""
    with pytest.raises(UsageError, match="nyu-mll/glue .*--dataset_path.*HF_HUB_OFFLINE"):
        run_glue.main(arguments(tiny, tmp_path / "out", dataset_path=None))


@pytest.mark.parametrize(("flags", "status"), [({"rank": 0}, 2), ({"learning_rate": 1e30, "optim": "sgd"}, 1)])
def test_exit_status_and_one_line_on_stderr(tiny, tmp_path, flags, status):
    """Of a real process: 2 for a mistake, 1 for a divergence."""
    command = arguments(tiny, tmp_path / "out", max_grad_norm=0, **flags)
    done = subprocess.run([sys.executable, REPOSITORY / "run_glue.py", *command], capture_output=True, text=True)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("run_glue.py: ")


def test_help_is_a_manual(capsys):
    """The module's docstring, then every flag with its default."""
    with pytest.raises(SystemExit) as stopped:
        run_glue.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert run_glue.__doc__.splitlines()[0] in text
    for fragment in ("--adapter_name {lora,randlora,vera,none}", "(default: 1e-06)", "(default: 0.06)", "--resume"):
        assert fragment in text
    classes = (run_glue.ModelArguments, run_glue.DataTrainingArguments, run_glue.AdapterArguments)
    assert all(field.metadata["help"] for cls in classes for field in dataclasses.fields(cls))


def test_main_is_a_table_of_contents():
    """The house rule that keeps run_glue.py readable: the steps in order, each a function of its own."""
    assert len(inspect.getsource(run_glue.main).splitlines()) <= 60
