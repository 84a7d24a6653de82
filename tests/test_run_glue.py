"""run_glue.py end to end on tiny models: what a run trains and saves, what its fast paths change, how it ends."""

import inspect
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import peft
import pytest
import torch
from helpers import ADAPTERS, REPOSITORY, TORCHRUN, arguments, equal, logits, read, saved_weights
from transformers import AutoConfig, AutoModelForSequenceClassification

import run_glue
from glue_peft import run_folder

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


ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]


@pytest.mark.parametrize(
    ("adapter", "fast", "launcher"),
    [
        pytest.param("lora", True, TORCHRUN, marks=pytest.mark.slow),
        ("randlora", True, TORCHRUN),
        pytest.param("randlora", False, TORCHRUN, marks=pytest.mark.slow),
        pytest.param("vera", True, TORCHRUN, marks=pytest.mark.slow),
        pytest.param("randlora", True, ACCELERATE, marks=pytest.mark.slow),
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


# What is saved


@pytest.mark.parametrize("task", ["mrpc", "stsb", "mnli"])
@pytest.mark.parametrize("adapter", ["lora", "randlora", "vera"])
def test_reload_with_stock_peft_gives_identical_logits(run, tiny, adapter, task, monkeypatch):
    """README's lines, for two classes, three and a regression, with the labels' names."""
    models = []
    finish = run_glue.finish
    monkeypatch.setattr(
        run_glue, "finish", lambda trainer, *rest: models.append(trainer.model) or finish(trainer, *rest)
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


# The script


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


@pytest.mark.parametrize(
    ("flags", "status"),
    [
        pytest.param({"rank": 0}, 2, marks=pytest.mark.slow),
        ({"learning_rate": 1e30, "optim": "sgd"}, 1),
    ],
)
def test_exit_status_and_one_line_on_stderr(tiny, tmp_path, flags, status):
    """Of a real process: 2 for a mistake, 1 for a divergence."""
    command = arguments(tiny, tmp_path / "out", max_grad_norm=0, **flags)
    done = subprocess.run([sys.executable, REPOSITORY / "run_glue.py", *command], capture_output=True, text=True)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("run_glue.py: ")


def test_main_is_a_table_of_contents():
    """The house rule that keeps run_glue.py readable: the steps in order, each a function of its own."""
    assert len(inspect.getsource(run_glue.main).splitlines()) <= 60
