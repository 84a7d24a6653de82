#!/usr/bin/env python
"""Time training steps and evaluation batches of whole runs on a GPU, and count what they launch and wait for.

    python -m benchmarks.gpu_steps --out steps.json            RoBERTa-base and -large: at most 6 minutes on one card
    python -m benchmarks.gpu_steps --out steps.json --quick    a tiny model for an instant, on a CPU too: for CI

The runs are run_glue.py's own: its adapters, its fast paths, its Trainer, the recipe's ranks and batches of 64 rows,
on random weights, as time doesn't depend on them. Each task's batches have rows of its lengths (see bench_grid); those
of `full` have 128 tokens in every row, what the authors' script pads every task to. The GPU's work is in the times. Of
a run's last steps one is taken apart by torch.profiler (kernels launched, waits for the GPU), one is counted by
bench_operators, and in fp16 some have to do without waiting: torch raises an error at the first wait.
"""

import argparse
import contextlib
import functools
import gc
import json
import math
import random
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch.profiler import ProfilerActivity, profile
from transformers import RobertaConfig, TrainerCallback

from benchmarks.bench_adapters import seconds
from benchmarks.bench_grid import MAX_LENGTH, TASKS, realistic_lengths
from benchmarks.bench_operators import (
    BATCH,
    PRECISIONS,
    Counts,
    as_on_a_gpu,
    build_trainer,
    count_operators,
    make_rows,
    narrow_roberta,
)
from glue_peft.errors import first_line

LENGTHS = (*TASKS, "full")
SHARED = {"max_position_embeddings": 514, "type_vocab_size": 1}
SIZES = {  # the configs of FacebookAI/roberta-base and -large
    "base": RobertaConfig(**SHARED),
    "large": RobertaConfig(
        **SHARED, hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=24
    ),
    "tiny": narrow_roberta(2),
}
RANKS = {  # recipes/randlora.tsv
    "base": {"lora": 4, "randlora": 64, "vera": 256},
    "large": {"lora": 4, "randlora": 100, "vera": 256},
    "tiny": {"lora": 4, "randlora": 8, "vera": 16},
}
FROZEN, FULL = "frozen base", "full fine-tuning"
PEFT = ["--no_unpad", "--no_fast_adapters"]
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel")  # how CUDA's calls begin, as torch.profiler names them
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")
SYNCHRONISES = "called a synchronizing CUDA operation"  # torch's words in set_sync_debug_mode

Steps = Generator[None, None, Any]


def cases_of(size: str) -> dict[str, list[str]]:
    """Flags of run_glue.py by name: the two ends, and every adapter with PEFT's layers, padded, and with ours."""
    cases: dict[str, list[str]] = {FROZEN: [], FULL: []}
    for name, rank in RANKS[size].items():
        flags = ["--adapter_name", name, "--rank", str(rank)]
        cases |= {f"{name} r{rank}, PEFT": [*flags, *PEFT], f"{name} r{rank}, ours": flags}
    return cases


def choices_of(size: str) -> dict[str, list[str]]:
    """Flags, likewise, of what is decided by the size of a batch, decided one way and the other."""
    rank = RANKS[size]["randlora"]
    return dict.fromkeys(
        [f"randlora r{rank}, ours, padded", f"randlora r{rank}, ours, packed"],
        ["--adapter_name", "randlora", "--rank", str(rank)],
    )


class Effort(NamedTuple):
    """How long is measured."""

    warm_up: int  # steps, at least 1: a data loader is a batch ahead, so a task's first rows are still the last one's
    seconds: float  # of steps that are timed
    steps: int  # at least
    batches: int  # of an evaluation


class Measure(TrainerCallback):
    """Goes through a training, and then an evaluation, as generators that go on for a step at every yield."""

    def __init__(self, device: torch.device, effort: Effort, error_at_waits: bool) -> None:
        self.device, self.effort, self.error_at_waits = device, effort, error_at_waits
        self.lengths = LENGTHS[0]  # of the rows of the next batch
        self.counts = Counts()
        self.found: dict[str, Any] = {"step": {}, "evaluation": {}}
        self.training, self.evaluating = self.train(), self.evaluate()
        self.rows = {name: rows_of(name) for name in LENGTHS}
        self.random = random.Random(0)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Begin to measure."""
        next(self.training)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Go on measuring, and stop the training when all is measured."""
        control.should_training_stop = next(self.training, "ended") == "ended"

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        """Go on measuring the evaluation."""
        next(self.evaluating, None)

    def around(self, collate: Callable[[list], Any]) -> Callable[[list], Any]:
        """Hand a collator rows of the wanted lengths, and don't count what it does on the host."""

        def collated(_: list) -> Any:
            """Collate rows of the wanted lengths uncounted."""
            self.counts.paused = True
            batch = collate(self.random.choices(self.rows[self.lengths], k=BATCH))
            self.counts.paused = False
            return batch

        return collated

    def train(self) -> Steps:
        """Time steps of all lengths, then take one step apart, count one, and see whether others wait."""
        for self.lengths in LENGTHS:
            self.found["step"][self.lengths] = yield from self.seconds_of_one(self.effort.steps, self.effort.seconds)
        self.lengths = "cola"
        for _ in range(self.effort.warm_up):
            yield
        self.synchronise()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            yield
        called = [event.name for event in profiled.events()]
        self.found["kernels"] = sum(name.startswith(LAUNCHES) for name in called)
        self.found["waits"] = sum(name.startswith(WAITS) for name in called)
        with count_operators(self.counts):
            yield
        self.found |= {"operators": self.counts.operators.total(), "counted_waits": self.counts.waits.total()}
        if self.error_at_waits:
            torch.cuda.set_sync_debug_mode("error")
            for _ in range(5):
                yield
            torch.cuda.set_sync_debug_mode("default")

    def evaluate(self) -> Steps:
        """Time batches of all lengths; measure_case gives it as many."""
        for self.lengths in LENGTHS:
            self.found["evaluation"][self.lengths] = yield from self.seconds_of_one(self.effort.batches)

    def seconds_of_one(self, at_least: int, seconds: float = 0.0) -> Steps:
        """Return the seconds of a step, after a warm-up, over so many steps or, if that is longer, so many seconds."""
        for _ in range(self.effort.warm_up):
            yield
        self.synchronise()
        began, steps = time.perf_counter(), 0
        while steps < at_least or time.perf_counter() - began < seconds:
            yield
            steps += 1
        self.synchronise()
        return (time.perf_counter() - began) / steps

    def synchronise(self) -> None:
        """Wait until the GPU has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def rows_of(lengths: str) -> list[dict[str, Any]]:
    """A thousand tokenised rows of a task's lengths, or of the greatest length, with random tokens."""
    drawn = random.Random(0)
    found = [MAX_LENGTH] * 1000 if lengths == "full" else realistic_lengths(lengths, 1000)
    return [
        {"input_ids": drawn.choices(range(5, 100), k=n), "attention_mask": [1] * n, "labels": drawn.randrange(2)}
        for n in found
    ]


def measure_card(device: torch.device) -> dict[str, float]:
    """Return what the defaults on a GPU are estimated from: microseconds of a launch, and the speed of a product."""
    small, size = torch.ones(8, device=device), 8192 if device.type == "cuda" else 256

    def seconds_of(function: Callable[[], Any], times: int) -> float:
        """Of one call, after a warm-up."""
        function()
        return seconds(lambda: [function() for _ in range(times)], device) / times

    found = {"launch_us": 1e6 * seconds_of(lambda: small.add_(1), 2000)}
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        matrix = torch.ones(size, size, dtype=dtype, device=device)
        speed = 2 * size**3 / seconds_of(functools.partial(torch.mm, matrix, matrix), 10)
        found[f"{str(dtype).removeprefix('torch.')}_tflops"] = speed / 1e12
    return found


def measure_case(size: str, name: str, flags: list[str], precision: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate a case, and return what was found."""
    is_fp16_on_gpu = precision == "fp16" and args.device.type == "cuda"
    measure = Measure(args.device, args.effort, error_at_waits=is_fp16_on_gpu)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):  # Trainer prints what it logs
        flags = [*flags, *PRECISIONS[precision], "--max_steps", "1000000"]
        trainer = build_trainer(flags, SIZES[size], folder, frozen=name == FROZEN)
        if name in choices_of(size):
            as_on_a_gpu(trainer.data_collator, name)
        batches = len(LENGTHS) * (args.effort.warm_up + args.effort.batches)
        trainer.train_dataset, trainer.eval_dataset = make_rows(300), make_rows(batches)
        trainer.data_collator = measure.around(trainer.data_collator)
        trainer.add_callback(measure)
        if args.device.type == "cuda":
            gc.collect()  # the model before
            torch.cuda.reset_peak_memory_stats()
        try:
            trainer.train()
        except RuntimeError as error:
            if SYNCHRONISES not in str(error):
                raise
            frame = traceback.extract_tb(error.__traceback__)[-1]
            measure.found["first_wait"] = f"{Path(frame.filename).name}:{frame.lineno} {frame.line}"
        finally:
            if is_fp16_on_gpu:
                torch.cuda.set_sync_debug_mode("default")
        if args.device.type == "cuda":
            measure.found["peak_MiB"] = torch.cuda.max_memory_allocated() / 2**20
        next(measure.evaluating)
        trainer.evaluate(trainer.eval_dataset)
    return measure.found


def print_row(name: str, found: dict[str, Any]) -> None:
    """Print a case's times and counts."""
    times = "".join(f"{1000 * found['step'][length]:8.1f}" for length in LENGTHS)
    evaluation = " ".join(f"{1000 * found['evaluation'][length]:6.1f}" for length in ("cola", "full"))
    counts = f"{found['kernels']:6d} {found['operators']:6d} {found['waits']:3d} {found['counted_waits']:3d}"
    print(f"  {name:28s}{times} |{evaluation} |{found.get('peak_MiB', 0):7.0f} |{counts}", flush=True)
    if "first_wait" in found:
        print(f"    waits for the GPU at {found['first_wait']}", flush=True)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The card and the versions."""
    card = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "transformers": transformers.__version__}
    return {"card": card, "threads": torch.get_num_threads(), **versions}


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file of the JSON (default: the last line)")
    parser.add_argument("--minutes", type=float, default=6, help="after these the cases that are left are left out")
    parser.add_argument("--quick", action="store_true", help="a tiny model, as few steps as can be")
    args = parser.parse_args()
    args.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args.minutes = math.inf if args.quick else args.minutes
    args.sizes, args.effort = (
        (["tiny"], Effort(1, 0.0, 1, 1)) if args.quick else (["base", "large"], Effort(3, 0.3, 5, 10))
    )
    has_bf16 = args.device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    args.precisions = ["fp16"] * (args.device.type == "cuda") + ["bf16"] * has_bf16
    return args


def measure_all(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Print a line a case, and return what was found by size, precision and case, and what was left out and why."""
    began, results, left_out = time.perf_counter(), {}, []
    for precision in args.precisions:
        for size in args.sizes:
            print(f"\n{size}, {precision}: ms a step of {' '.join(LENGTHS)} | ms an evaluation batch of cola, full |")
            print("  peak MiB | of one step: kernels, operators dispatched, waits seen by the profiler, and counted")
            cases = cases_of(size) | (choices_of(size) if precision == args.precisions[0] else {})
            rows = results.setdefault(size, {}).setdefault(precision, {})
            for name, flags in cases.items():
                reason = f"after {args.minutes:g} minutes"
                if time.perf_counter() - began < 60 * args.minutes:
                    try:
                        rows[name] = measure_case(size, name, flags, precision, args)
                        print_row(name, rows[name])
                        continue
                    except RuntimeError as error:  # out of memory, mostly; the other cases can still be measured
                        reason = f"{type(error).__name__}: {first_line(error)}"
                left_out.append(f"{size}, {precision}, {name}: {reason}")
                print(f"  {name:28s}left out {reason}", flush=True)
    return results, left_out


def main() -> None:
    """Measure, and write the JSON."""
    args = parse_arguments()
    warnings.filterwarnings("ignore", module="transformers|peft|torch.profiler")
    machine = describe_machine(args.device) | measure_card(args.device)
    print(
        ", ".join(
            f"{name} {round(value, 1) if isinstance(value, float) else value}" for name, value in machine.items()
        )
    )
    results, left_out = measure_all(args)
    text = json.dumps(machine | {"results": results, "left_out": left_out})
    print(text) if args.out is None else args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
