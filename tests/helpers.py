"""What several test files share: flags of a short run, what a run left, and folders as runs leave them."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glue_peft import run_folder

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
    """Compare weights to the bit, and every number in the result files."""
    assert equal(saved_weights(left), saved_weights(right))
    for name in ("train_results.json", "eval_results.json", "all_results.json"):
        assert without_timings(read(left / name)) == without_timings(read(right / name)), name
    assert read(left / "run.json")["scores"] == read(right / "run.json")["scores"]
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
