"""What several test files share: flags of a short run, what a run left, and folders as runs leave them."""

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from glue_peft import eval_predictions, run_folder
from glue_peft.errors import UsageError, run_script
from glue_peft.tables.health import health_lines
from glue_peft.tables.results import Results, add_arguments, read_results
from glue_peft.tasks import main_metric, result_keys

REPOSITORY = Path(__file__).resolve().parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
# Flags with which each adapter learns the tiny tasks.
ADAPTERS = {
    "lora": {"rank": 4},
    "randlora": {"rank": 5},  # does not divide the width, and differs from the number of bases
    "vera": {"rank": 16, "learning_rate": 5e-2},
    "none": {"rank": None, "learning_rate": 1e-3},
}
TIMINGS = ("runtime", "per_second", "total_flos")


def arguments(tiny: Path, folder: Path, **flags: object) -> list[str]:
    """Return the flags of a short run: None leaves a flag out, True gives it alone, a list several values."""
    settings: dict[str, object] = {
        "model_name_or_path": tiny / "roberta",
        "dataset_path": tiny / "glue",
        "task_name": "mrpc",
        "do_train": True,
        "do_eval": True,
        "adapter_name": "lora",
        "rank": 4,
        "max_train_samples": 64,
        "max_eval_samples": 32,
        "per_device_train_batch_size": 16,
        "num_train_epochs": 1,
        "learning_rate": 5e-3,
        "seed": 1,
        "output_dir": folder,
        "disable_tqdm": "True",
    }
    settings.update(flags)
    argv = []
    for name, value in settings.items():
        if value is None:
            continue
        argv.append(f"--{name}")
        if value is not True:
            argv.extend(map(str, value if isinstance(value, list) else [value]))
    return argv


def read(path: Path) -> dict:
    """Return the JSON object in a file."""
    return json.loads(path.read_text(encoding="utf-8"))


# What a run left


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors that a run saved."""
    name = "adapter_model.safetensors" if (folder / "adapter_model.safetensors").exists() else "model.safetensors"
    return load_file(folder / name)


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Say whether two sets of tensors agree to the bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def without_timings(content: object) -> object:
    """Return a result without what depends on the clock."""
    if isinstance(content, dict):
        return {key: without_timings(value) for key, value in content.items() if not key.endswith(TIMINGS)}
    return [without_timings(item) for item in content] if isinstance(content, list) else content


def assert_same_results(left: Path, right: Path) -> None:
    """Compare weights and predictions to the bit, and every number in the result files."""
    assert equal(saved_weights(left), saved_weights(right))
    names = [sorted(path.name for path in folder.glob("*_results.json")) for folder in (left, right)]
    assert names[0] == names[1] and len(names[0]) == 3  # of training, of an evaluation, of both
    for name in names[0]:
        assert without_timings(read(left / name)) == without_timings(read(right / name)), name
    assert read(left / "run.json")["scores"] == read(right / "run.json")["scores"]
    for name in run_folder.PREDICTIONS_FILES.values():
        answers = [eval_predictions.load(folder / name) or {} for folder in (left, right)]
        assert answers[0].keys() == answers[1].keys()
        assert all(np.array_equal(answers[0][key], answers[1][key]) for key in answers[0]), name
    states = [(folder / "trainer_state.json").read_text().replace(str(folder), "") for folder in (left, right)]
    assert without_timings(json.loads(states[0])) == without_timings(json.loads(states[1]))


def logits(model: torch.nn.Module, tiny: Path, kind: str = "roberta") -> torch.Tensor:
    """Return a model's logits on a few fixed sentences."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny / kind)
    batch = tokenizer(["a great film", "the dull old story of a man"], ["fresh", "stale city"], padding=True)
    with torch.no_grad():
        return model.eval()(**{name: torch.tensor(value) for name, value in batch.items()}).logits


# How a run ends early


class Killed(Exception):
    """Stands for the end of the process in the middle of an epoch."""


@contextlib.contextmanager
def killed_at_step_5() -> Iterator[None]:
    """Raise Killed in the sixth step of any training inside."""
    from glue_peft.trainer import GlueTrainer

    training_step = GlueTrainer.training_step

    def die(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise Killed
        return training_step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GlueTrainer, "training_step", die)
        yield


# Folders without a run


def make_checkpoint(folder: Path, step: int) -> Path:
    """Write a checkpoint with the files that Trainer writes."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    save_file({"weight": torch.zeros(100)}, checkpoint / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.zeros(100)}, checkpoint / name)
    (checkpoint / "trainer_state.json").write_text("{}")
    return checkpoint


def make_finished_run(folder: Path, flags: list[str], **arguments: object) -> Path:
    """Write what a finished run of CoLA leaves, as far as a sweep looks at it."""
    folder.mkdir(parents=True)
    for name in (run_folder.COMMAND_FILE, run_folder.RECORD_FILE):
        run_folder.write_json(folder / name, {"command": flags, "arguments": arguments})
    run_folder.write_json(folder / "eval_results.json", {"eval_matthews_correlation": 0.5})
    return folder


@contextlib.contextmanager
def held(folder: Path) -> Iterator[int]:
    """Let another process hold a run's folder, killed at the end, and give its id."""
    code = (
        "import sys, time, pathlib\n"
        "from glue_peft import run_folder\n"
        "with run_folder.lock(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process.pid
    finally:
        process.kill()
        process.wait()


# Scripts, and results for the tables


def call(script: ModuleType, *argv: object) -> int:
    """Call a script's main as its last lines do, and return the exit status."""
    return run_script(lambda: script.main([str(argument) for argument in argv]), f"{script.__name__}.py")


def said(capsys: pytest.CaptureFixture, script: ModuleType, *argv: object) -> tuple[int, list[str], list[str]]:
    """Call a script's main and return its exit status, the lines on stdout and the lines on stderr."""
    capsys.readouterr()  # what came before
    status = call(script, *argv)
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err.splitlines()


AS_ROWS = ("--format", "row", "--verbose")  # what a test reads cell by cell


def results_of(*argv: object) -> Results:
    """Return the results that the options of a table's command line ask for."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return read_results(parser.parse_args([str(argument) for argument in argv]))


def refusal(*argv: object) -> str:
    """Return the message of the error in which such a command line ends."""
    with pytest.raises(UsageError) as caught:
        results_of(*argv)
    return str(caught.value)


def health(*argv: object) -> list[str]:
    """Return what is said about the runs of a table's command line."""
    return health_lines(results_of(*argv))


def metrics_of(task: str, *values: float) -> dict[str, float]:
    """Return a task's metrics, MNLI's of both sets; a single value stands for all of them."""
    wanted = ("pearson", "spearmanr", "combined_score") if task == "stsb" else (main_metric(task),)
    keys = [key for metric in wanted for key in result_keys(task, metric)]
    return dict(zip(keys, values if len(values) == len(keys) else values * len(keys), strict=True))


def record_of(seed: int, task: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return a run.json of LoRA with rank 4 on RoBERTa-base."""
    return {
        "arguments": {
            "adapter_name": "lora", "rank": 4, "seed": seed, "task_name": task, "num_train_epochs": 10.0,
            "eval_strategy": "epoch",
        },
        "adapter_config": {"peft_type": "LORA", "r": 4, "target_modules": ["dense", "key", "query", "value"]},
        "base_model": {"name": "FacebookAI/roberta-base", "revision": None, "sha256": "5f63"},
        "data_sha256": {"train": f"{task} train", "validation": f"{task} validation"},
        "parameters": {"adapter": 663_552, "head": 592_130, "total": 125_000_000, "stored": 1_255_682},
        "saved_bytes": 5_000_000,
        "precision": "float32",
        "seconds": 70.0,
        "peak_memory": {"kind": "process", "bytes": 600_000_000},
        "metrics": metrics | {"train_runtime": 60.0, "eval_majority_share": 0.4321},
        "scores": {"last": metrics, "best": metrics, "history": [metrics, metrics]},
    }  # fmt: skip


def write_run(root: Path, seed: int, task: str, *values: float, **changes: Any) -> Path:
    """Write both result files of a run as run_glue.py leaves them, with made-up scores, and return its folder.

    `changes` go into run.json: a dictionary is merged into the object that is there, anything else replaces it.
    """
    folder = root / str(seed) / task
    folder.mkdir(parents=True, exist_ok=True)
    metrics = metrics_of(task, *values)
    record = record_of(seed, task, metrics)
    for name, change in changes.items():
        both = isinstance(change, dict) and isinstance(record.get(name), dict)
        record[name] = record[name] | change if both else change
    (folder / "eval_results.json").write_text(json.dumps(metrics))
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def write_answers(
    root: Path, seed: int, task: str, labels: Sequence[float], *given: Sequence[float], **changes: Any
) -> Path:
    """Write a run with eval_predictions.npz: `given` are its answers, classes or numbers; of MNLI's two sets two."""
    from glue_peft.metric import task_scores

    logits = [
        np.float32(answers)[:, None] if task == "stsb" else np.eye(3, dtype=np.float32)[answers] for answers in given
    ]
    scores = [task_scores(task, np.asarray(answers), np.asarray(labels)) for answers in given]
    sets = zip(("", "_mm"), scores, strict=False)
    metrics = {f"eval_{name}{end}": value for end, of_set in sets for name, value in of_set.items()}
    if len(scores[0]) > 1:
        metrics["eval_combined_score"] = sum(scores[0].values()) / len(scores[0])
    folder = write_run(
        root, seed, task, 0.5, scores={"last": metrics, "best": metrics, "history": [metrics]}, **changes
    )
    for name, arrays in zip(run_folder.PREDICTIONS_FILES.values(), logits, strict=False):
        np.savez(folder / name, idx=np.arange(len(labels)), label=np.asarray(labels), last=arrays, last_epoch=1.0)
    return folder


def write_rows(root: Path, scores: dict[str, list[float]], **changes: Any) -> Path:
    """Write a run for each task and seed, and return the root."""
    for task, values in scores.items():
        for seed, value in enumerate(values, start=1):
            write_run(root, seed, task, value, **changes)
    return root


def write_result(root: Path, seed: int, task: str, content: str | bytes) -> Path:
    """Write an eval_results.json with any content, and no run.json, and return its path."""
    path = root / str(seed) / task / "eval_results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_tree(root: Path, scores: dict[str, list[float | None]]) -> Path:
    """Write an eval_results.json for each task and seed, and no run.json; None stands for a seed without a file."""
    for task, values in scores.items():
        for seed, value in enumerate(values, start=1):
            if value is not None:
                write_result(root, seed, task, json.dumps({f"eval_{main_metric(task)}": value, "epoch": 10.0}))
    return root


def begin_run(root: Path, seed: int, task: str, **files: str) -> Path:
    """Make the folder of a run that has no result, with some files; `_` stands for the dot of a name."""
    folder = root / str(seed) / task
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def fail_run(root: Path, seed: int, task: str, kind: str, message: str) -> Path:
    """Make the folder of a run that noted why it has no result."""
    return begin_run(root, seed, task, failure_json=json.dumps({"kind": kind, "message": message}))


FIVE = [0.700, 0.710, 0.720, 0.730, 0.740]  # scores of five seeds


def shifted(by: list[float]) -> list[float]:
    """Return FIVE with one step added to each."""
    return [value + step for value, step in zip(FIVE, by, strict=True)]
