#!/usr/bin/env python
"""Check in a minute that runs do on this machine's GPU what they do on a CPU; say what doesn't work.

    python -m benchmarks.check_gpu                    exit status 0 if all is well, 1 if not, 2 without a GPU
    python -m benchmarks.check_gpu --device cpu       the same in bf16 on a CPU: for CI

For every adapter run_glue.py trains a tiny model without dropout in fp16, on data made on the spot, and evaluates it:

- trains      the losses and the last gradient are numbers, and the record says GPU and fp16
- waits       neither a step nor a forward pass in evaluation waits for the GPU, whose queue would run dry
- resumes     a run that SIGTERM stopped ends, when it is resumed, with the loss of one that ran through
- as PEFT     the losses are those of PEFT's layers on padded rows
"""

import argparse
import contextlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

import run_glue
from benchmarks.bench_operators import Counts, count_operators
from benchmarks.gpu_steps import SYNCHRONISES
from glue_peft.errors import StoppedBySignal, first_line
from glue_peft.trainer import GlueTrainer

REPOSITORY = Path(__file__).resolve().parents[1]
ADAPTERS = {  # with rates at which a rounding stays one
    "lora": ["--rank", "4", "--learning_rate", "5e-3"],
    "randlora": ["--rank", "8", "--learning_rate", "5e-3"],
    "vera": ["--rank", "16", "--learning_rate", "5e-2"],
    "none": ["--learning_rate", "1e-4"],
}
STEPS, STOP_AFTER = 8, 4
SAME_LOSS = 1e-3  # relative, of two runs with the same layers: some of a GPU's sums have no fixed order
SAME_FUNCTION = 0.02  # relative, in half precision


class Waits(TrainerCallback):
    """Counts the waits for the GPU in a training's third step, and in an evaluation's last forward pass.

    On a GPU torch warns of them; on a CPU the operators are counted that would wait.
    """

    def __init__(self, device: str, stop_after: int | None) -> None:
        self.device, self.stop_after = device, stop_after
        self.found: dict[str, list[str]] = {}
        self.counts = Counts()
        self.counting = contextlib.ExitStack()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the third step's waits, and stop the run where that is to be tried."""
        if state.global_step == 2:
            self.counting.enter_context(self.waiting("a step"))
        elif state.global_step == 3:
            self.counting.close()
        if state.global_step == self.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    def watch(self, trainer: GlueTrainer) -> None:
        """Count in this trainer; not what its collator does, which works on the host."""
        collate, predict = trainer.data_collator, trainer.prediction_step

        def collate_uncounted(rows: list) -> Any:
            """Collate rows uncounted."""
            self.counts.paused = True
            batch = collate(rows)
            self.counts.paused = False
            return batch

        def predict_counted(*args: Any, **kwargs: Any) -> Any:
            """Predict a batch, and count its waits."""
            with self.waiting("a forward pass"):
                return predict(*args, **kwargs)

        trainer.data_collator, trainer.prediction_step = collate_uncounted, predict_counted
        trainer.add_callback(self)

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Note where the host waits inside, once a wait."""
        if self.device == "cpu":
            self.counts = Counts()
            with count_operators(self.counts):
                yield
            self.found[what] = counted(self.counts.waits)
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            yield
            torch.cuda.set_sync_debug_mode("default")
        waits = [warning for warning in caught if SYNCHRONISES in str(warning.message)]
        self.found[what] = counted(Counter(f"{Path(it.filename).name}:{it.lineno}" for it in waits))


def counted(waits: Counter[str]) -> list[str]:
    """Return each place where the host waited, with how often."""
    return [f"{times} x {place}" for place, times in waits.items()]


def run(world: Path, folder: Path, device: str, *flags: str, stop_after: int | None = None) -> dict[str, list[str]]:
    """Call run_glue.py in this process, and return where a step and a forward pass waited."""
    waits, make_trainer = Waits(device, stop_after), run_glue.make_trainer

    def make_watched_trainer(*arguments: Any, **keywords: Any) -> Any:
        """Make run_glue.py's, and watch it."""
        trainer = make_trainer(*arguments, **keywords)
        waits.watch(trainer)
        return trainer

    precision = ["--bf16", "--use_cpu"] if device == "cpu" else ["--fp16"]
    argv = f"--model_name_or_path {world}/roberta --dataset_path {world}/glue --task_name mrpc --do_train --do_eval "
    argv += f"--max_steps {STEPS} --logging_steps {STEPS} --per_device_train_batch_size 16 --seed 1 "
    argv += "--max_eval_samples 128 --log_level error --disable_tqdm True --save_strategy no"
    run_glue.make_trainer = make_watched_trainer
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run_glue.main([*argv.split(), *precision, *flags, "--output_dir", str(folder)])
    finally:
        run_glue.make_trainer = make_trainer
    return waits.found


def read(folder: Path, name: str) -> dict[str, Any]:
    """Return a file of a run's folder."""
    return json.loads((folder / name).read_text(encoding="utf-8"))


def losses_of(folder: Path) -> tuple[float, float]:
    """Return a run's mean loss in training, and that of its evaluation."""
    scores = read(folder, "all_results.json")
    return scores["train_loss"], scores["eval_loss"]


def differ(one: Path, other: Path, tolerance: float) -> str:
    """Return how the losses of two runs differ; nothing where they agree."""
    pairs = list(zip(losses_of(one), losses_of(other), strict=True))
    close = all(math.isclose(left, right, rel_tol=tolerance) for left, right in pairs)
    return "" if close else "; ".join(f"a loss of {left:.5f} and of {right:.5f}" for left, right in pairs)


def check_record(folder: Path, device: str) -> str:
    """Return what is wrong with a run; nothing where it is well."""
    record, last = read(folder, "run.json"), read(folder, "trainer_state.json")["log_history"][0]
    numbers = {"training loss": losses_of(folder)[0], "evaluation loss": losses_of(folder)[1], **last}
    odd = [f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value)]
    if device == "cuda" and (record["precision"], record["device"]) != ("fp16", torch.cuda.get_device_name()):
        odd.append(f"it ran in {record['precision']} on {record['device']}")
    return "; ".join(odd)


def check_adapter(name: str, world: Path, device: str) -> Iterator[tuple[str, str]]:
    """Give each check of an adapter, and what is wrong; nothing where it is well."""
    flags, folder = ["--adapter_name", name, *ADAPTERS[name]], world / name
    waits = run(world, folder / "through", device, *flags)
    yield "trains", check_record(folder / "through", device)
    yield "waits", "; ".join(f"{what}: {', '.join(places)}" for what, places in waits.items() if places)
    try:
        run(world, folder / "stopped", device, *flags, stop_after=STOP_AFTER)
        yield "resumes", "SIGTERM did not stop it"
    except StoppedBySignal:
        run(world, folder / "stopped", device, *flags, "--resume")
        yield "resumes", differ(folder / "stopped", folder / "through", SAME_LOSS)
    run(world, folder / "peft", device, *flags, "--no_fast_adapters", "--no_unpad")
    yield "as PEFT", differ(folder / "through", folder / "peft", SAME_FUNCTION)


def check_all(world: Path, device: str) -> Iterator[tuple[str, str, str]]:
    """Give adapter, check and what is wrong; an error ends the adapter's checks."""
    for name in ADAPTERS:
        try:
            for check, problem in check_adapter(name, world, device):
                yield name, check, problem
        except Exception as error:  # whatever a GPU makes the libraries meet: that is what is looked for here
            yield name, "", f"{type(error).__name__}: {first_line(error)}"


def make_world(world: Path) -> None:
    """Make the data and a tiny RoBERTa without dropout, and keep what is cached here."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(world / "cache")}
    command = [sys.executable, str(REPOSITORY / "tests" / "make_tiny.py"), str(world)]
    subprocess.run(command, check=True, capture_output=True)
    config = read(world, "roberta/config.json") | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (world / "roberta/config.json").write_text(json.dumps(config), encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    return parser.parse_args()


def main() -> int:
    """Check every adapter, print a line a check, and return the exit status."""
    args = parse_arguments()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("check_gpu: torch finds no GPU here; --device cpu runs the same on a CPU", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore", module="transformers|peft")
    began, failed = time.perf_counter(), 0
    print(f"{torch.cuda.get_device_name() if args.device == 'cuda' else 'cpu'}, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        make_world(Path(folder))
        for name, check, problem in check_all(Path(folder), args.device):
            failed += bool(problem)
            print(f"  {name:9s} {check:8s} {f'FAILED: {problem}' if problem else 'ok'}", flush=True)
    print(f"{f'{failed} checks failed' if failed else 'all is well'}, {time.perf_counter() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
