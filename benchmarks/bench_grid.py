#!/usr/bin/env python
"""Time a slice of the grid's real work: the authors' way against ours, task by task, and the grid's mix.

    python -m benchmarks.bench_grid --dataset_path glue --tokenizer FOLDER      real lengths where the data are there
    python -m benchmarks.bench_grid                                             realistic lengths for every task
    python -m benchmarks.bench_grid --quick                                     under a minute, for CI

The authors' way pads every row to 128 tokens and runs PEFT's layers; ours pads to the longest of the batch and runs
fast_adapters.py and unpadded_encoder.py. Both get the same random batches of 64 rows, in turn, in one process, with
the model's dropout of 0.1. The grid's number weights each task by its training rows: authors' seconds / our seconds
for an epoch of all six. The last line is one JSON object.

Realistic lengths, used where a task's data are not given, are log-normal rows cut to 3..128 tokens. Their mean and
deviation were fitted to the share of real tokens that was measured on the real data at a length of 128: SST-2 10 %,
CoLA 9 %, STS-B 25 %, QNLI 39 %, MRPC 42 %, RTE 52 %.
"""

import argparse
import json
import math
import statistics
import warnings
from functools import partial
from pathlib import Path

import datasets
import torch
from accelerate.utils import send_to_device
from transformers import AutoTokenizer

from benchmarks.bench_adapters import ADAPTERS, add_adapter, build_model, describe_machine, seconds, training_step
from glue_peft import arguments
from glue_peft.data import load_local_glue
from glue_peft.fast_adapters import use_fast_adapters
from glue_peft.unpadded_encoder import plan_batches, use_unpadded_encoder

MAX_LENGTH = 128
# task: training rows, then mean and standard deviation of a row's tokens
TASKS = {
    "sst2": (67349, 13, 10),
    "mrpc": (3668, 54, 15),
    "cola": (8551, 11.5, 4),
    "qnli": (104743, 50, 22),
    "rte": (2490, 68, 40),
    "stsb": (5749, 32, 16),
}


def real_lengths(task: str, dataset_path: Path, tokenizer: object) -> list[int]:
    """Tokens of every training row of a task, cut to MAX_LENGTH."""
    rows = load_local_glue(dataset_path, task, None)["train"]
    texts = [list(rows[key]) for key in arguments.task_to_keys[task] if key is not None]
    return [len(ids) for ids in tokenizer(*texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]]


def realistic_lengths(task: str, count: int = 10_000) -> list[int]:
    """Log-normal lengths with the task's mean and deviation, cut to 3..MAX_LENGTH."""
    _, mean, deviation = TASKS[task]
    sigma = math.sqrt(math.log(1 + (deviation / mean) ** 2))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(count, generator=generator) * sigma + math.log(mean) - sigma**2 / 2
    return drawn.exp().round().clamp(3, MAX_LENGTH).long().tolist()


def make_batch(lengths: list[int], width: int | None = None) -> dict[str, torch.Tensor]:
    """Random tokens of these lengths, padded to a width or to the longest."""
    lengths_column = torch.tensor(lengths)[:, None]
    mask = torch.arange(width or max(lengths))[None] < lengths_column
    tokens = torch.randint(5, 1000, mask.shape, generator=torch.Generator().manual_seed(0)).where(mask, 1)
    return {"input_ids": tokens, "attention_mask": mask.long(), "labels": torch.zeros(len(lengths), dtype=torch.long)}


def measure_task(
    models: dict[str, torch.nn.Module], lengths: list[int], args: argparse.Namespace, device: torch.device
) -> dict[str, float]:
    """Time both sides on the same batches and return medians, the ratio with its spread, and the real share."""
    generator = torch.Generator().manual_seed(1)
    steps = {name: training_step(model, getattr(torch, args.dtype)) for name, model in models.items()}
    precision = {"torch_compile": False, "fp16": args.dtype == "float16", "bf16": args.dtype == "bfloat16"}
    collators = {
        "authors": partial(make_batch, width=MAX_LENGTH),
        "ours": plan_batches(models["ours"], make_batch, argparse.Namespace(device=device, **precision)),
    }
    times: dict[str, list[float]] = {name: [] for name in models}
    shares = []
    for repeat in range(args.repeats + 1):
        chosen = [lengths[i] for i in torch.randint(len(lengths), (args.batch,), generator=generator).tolist()]
        for name, step in steps.items():
            batch = send_to_device(collators[name](chosen), device)
            taken = seconds(partial(step, batch), device)
            if repeat > 0:  # the first is the warm-up
                times[name].append(taken)
        shares.append(sum(chosen) / (args.batch * MAX_LENGTH))
    ratios = [one / other for one, other in zip(times["authors"], times["ours"], strict=True)]
    return {
        "authors": statistics.median(times["authors"]),
        "ours": statistics.median(times["ours"]),
        # Of the sums, as an epoch would have it; the spread is that of single batches.
        "ratio": sum(times["authors"]) / sum(times["ours"]),
        "low": min(ratios),
        "high": max(ratios),
        "real_share": statistics.fmean(shares),
    }


def measure_adapter(flags: dict[str, object], args: argparse.Namespace) -> dict[str, object]:
    """Measure every task with one adapter, print a line each and the mix, and return them."""
    device = torch.device(args.device)
    models = {name: add_adapter(build_model(args.layers, args.hidden, 0.1), **flags) for name in ("authors", "ours")}
    use_fast_adapters(models["ours"])
    reason = use_unpadded_encoder(models["ours"])
    if reason is not None:
        raise SystemExit(f"unpadded_encoder.py refused the model: {reason}")
    models = {name: model.to(device).train() for name, model in models.items()}
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer) if args.tokenizer else None
    tasks = {}
    for task, (rows, *_) in TASKS.items():
        is_real = tokenizer is not None and args.dataset_path and (Path(args.dataset_path) / task).is_dir()
        lengths = real_lengths(task, Path(args.dataset_path), tokenizer) if is_real else realistic_lengths(task)
        row = measure_task(models, lengths, args, device)
        tasks[task] = row | {"lengths": "real" if is_real else "realistic", "rows": rows}
        spread, share = f"({row['low']:.2f} to {row['high']:.2f})", f"{row['real_share']:.0%} real tokens"
        times = f"authors {row['authors']:.4f} s, ours {row['ours']:.4f} s"
        print(
            f"  {task:5s} {row['ratio']:6.2f} {spread}  {times}, {share}, {tasks[task]['lengths']} lengths", flush=True
        )
    epoch = {side: sum(row["rows"] * row[side] for row in tasks.values()) for side in ("authors", "ours")}
    mix = epoch["authors"] / epoch["ours"]
    print(f"  grid  {mix:6.2f}")
    return {"tasks": tasks, "grid": mix}


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_path", help="local copy of GLUE, as for run_glue.py")
    parser.add_argument("--tokenizer", help="tokenizer that measures its rows")
    parser.add_argument("--adapters", nargs="+", choices=ADAPTERS, default=["randlora r64"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2, help="encoder layers (default: 2)")
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=7, help="batches a task and side (default: 7)")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="autocast type")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    args = parser.parse_args()
    if args.quick:
        args.batch, args.layers, args.hidden, args.repeats = 8, 1, 128, 2
    return args


def main() -> None:
    """Measure, print the lines and the JSON."""
    args = parse_arguments()
    warnings.filterwarnings("ignore", module="transformers|peft")
    datasets.disable_progress_bars()
    machine = describe_machine(args, torch.device(args.device))
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    results = {}
    for name in args.adapters:
        print(f"\n{name}: authors' way / ours (single batches' smallest to largest)")
        results[name] = measure_adapter(ADAPTERS[name], args)
    print(json.dumps(machine | {"adapters": results}))


if __name__ == "__main__":
    main()
