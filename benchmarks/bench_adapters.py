#!/usr/bin/env python
"""Time a training step and an evaluation of every adapter: PEFT's layers against fast_adapters.py.

    python -m benchmarks.bench_adapters                       RoBERTa-base layers, 64 full rows of 128 tokens
    python -m benchmarks.bench_adapters --batch 16 --layers 4
    python -m benchmarks.bench_adapters --quick               under a minute, for CI: shows that it runs

All sides alternate in one process, so that a drift of the machine meets them all; each figure is the median over the
repeats of the ratio to the reference of the same repeat, with the smallest and largest ratio behind it. The model has
RoBERTa-base's layers with random weights (time doesn't depend on them) and no dropout; a step is forward, backward,
AdamW. The frozen base and full fine-tuning are the two ends. The last line is one JSON object.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification, RobertaConfig

from glue_peft.arguments import AdapterArguments
from glue_peft.fast_adapters import use_fast_adapters
from run_glue import make_adapter_config

# name, adapter flags; each is measured with PEFT's layers and with ours
ADAPTERS = {
    "lora r4": {"adapter_name": "lora", "rank": 4},
    "randlora r64": {"adapter_name": "randlora", "rank": 64},
    "vera r256": {"adapter_name": "vera", "rank": 256},
    "vera r1024": {"adapter_name": "vera", "rank": 1024},
}
STEP_REFERENCE = "lora r4, PEFT"
EVALUATION_REFERENCE = "plain model"


def build_model(layers: int, hidden: int, dropout: float = 0.0) -> nn.Module:
    """RoBERTa-base's layers (hidden 768) with random weights, always the same ones; a small vocabulary."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=1000,
        max_position_embeddings=514,
        type_vocab_size=1,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=hidden // 64,
        num_hidden_layers=layers,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return AutoModelForSequenceClassification.from_config(config)


def add_adapter(model: nn.Module, **flags: object) -> nn.Module:
    """Add run_glue.py's adapter for these flags."""
    config = make_adapter_config(AdapterArguments(**flags), model, seed=1)
    return get_peft_model(model, config)


def build_sides(layers: int, hidden: int, device: torch.device) -> dict[str, nn.Module]:
    """All models by name: the two ends, and every adapter twice."""
    frozen, plain = build_model(layers, hidden), build_model(layers, hidden)
    for parameter in frozen.base_model.parameters():
        parameter.requires_grad_(False)
    # The gradient has to come down to the first layer, as it does with an adapter there. Trainable embeddings ask a
    # little more than that: the first layer's input gradient and their own step.
    frozen.base_model.embeddings.word_embeddings.weight.requires_grad_(True)
    sides = {"frozen base": frozen, EVALUATION_REFERENCE: plain}
    for name, flags in ADAPTERS.items():
        for kind in ("PEFT", "ours"):
            model = add_adapter(build_model(layers, hidden), **flags)
            if kind == "ours":
                use_fast_adapters(model)
            sides[f"{name}, {kind}"] = model
    return {name: model.to(device) for name, model in sides.items()}


def training_step(model: nn.Module, precision: torch.dtype) -> Callable[[dict[str, torch.Tensor]], None]:
    """A function that runs one step on a batch: forward, backward, AdamW."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)

    def step(batch: dict[str, torch.Tensor]) -> None:
        """One step on one batch."""
        device_type = batch["input_ids"].device.type
        with torch.autocast(device_type, dtype=precision, enabled=precision != torch.float32):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def evaluation(model: nn.Module, precision: torch.dtype) -> Callable[[dict[str, torch.Tensor]], None]:
    """A function that runs one forward pass on a batch, without gradients."""

    def evaluate(batch: dict[str, torch.Tensor]) -> None:
        """One forward pass."""
        device_type = batch["input_ids"].device.type
        with torch.no_grad(), torch.autocast(device_type, dtype=precision, enabled=precision != torch.float32):
            model(**batch)

    return evaluate


def seconds(function: Callable[[], None], device: torch.device) -> float:
    """Wall time of one call, the GPU's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def alternate(functions: dict[str, Callable[[], None]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Time all functions in turn, `repeats` times, after one warm-up each."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(seconds(function, device))
    return times


def summarise(times: list[float], reference: list[float]) -> dict[str, float]:
    """Median time, and median, smallest and largest ratio to the reference of the same repeat."""
    ratios = [one / other for one, other in zip(times, reference, strict=True)]
    return {
        "seconds": statistics.median(times),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
    }


def saved_bytes(model: nn.Module, batch: dict[str, torch.Tensor]) -> int:
    """Bytes that one forward pass keeps for backward, parameters and buffers excluded, each storage once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        """Count a tensor's storage as it is saved."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch).loss
    total = sum(kept.values())
    del loss
    return total


def peak_bytes(step: Callable[[], None], device: torch.device) -> int | None:
    """Peak CUDA memory of one step above what was allocated before it; None on a CPU."""
    if device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def describe_machine(args: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """What a ratio depends on besides the code."""
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    } | {name: value for name, value in vars(args).items() if name not in ("device", "dtype", "quick")}


def print_table(title: str, rows: dict[str, dict[str, float]], reference: str) -> None:
    """Print one line a side."""
    print(f"\n{title}, relative to {reference}: median ratio (smallest to largest), median seconds")
    for name, row in rows.items():
        extra = f"  {row['saved_MiB']:7.0f} MiB saved" if "saved_MiB" in row else ""
        extra += f"  {row['peak_MiB']:7.0f} MiB peak" if row.get("peak_MiB") is not None else ""
        print(
            f"  {name:20s} {row['ratio']:6.3f} ({row['low']:.3f} to {row['high']:.3f})  {row['seconds']:8.4f} s{extra}"
        )


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="rows a batch (default: 64)")
    parser.add_argument("--length", type=int, default=128, help="tokens a row, none of them padding (default: 128)")
    parser.add_argument("--layers", type=int, default=2, help="encoder layers (default: 2)")
    parser.add_argument("--hidden", type=int, default=768, help="width; 1024 is RoBERTa-large's (default: 768)")
    parser.add_argument("--repeats", type=int, default=7, help="repeats of every side (default: 7)")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="autocast type")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    args = parser.parse_args()
    if args.quick:
        args.batch, args.length, args.layers, args.hidden, args.repeats = 4, 32, 1, 128, 3
    return args


def main() -> None:
    """Measure, print the tables and the JSON."""
    args = parse_arguments()
    warnings.filterwarnings("ignore", module="transformers|peft")
    device, precision = torch.device(args.device), getattr(torch, args.dtype)
    machine = describe_machine(args, device)
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    sides = build_sides(args.layers, args.hidden, device)
    batch = {
        "input_ids": torch.randint(5, 1000, (args.batch, args.length), device=device),
        "attention_mask": torch.ones(args.batch, args.length, dtype=torch.long, device=device),
        "labels": torch.zeros(args.batch, dtype=torch.long, device=device),
    }
    steps = {name: partial(training_step(model.train(), precision), batch) for name, model in sides.items()}
    times = alternate(steps, args.repeats, device)
    training = {name: summarise(times[name], times[STEP_REFERENCE]) for name in steps}
    for name, model in sides.items():
        training[name]["saved_MiB"] = saved_bytes(model, batch) / 2**20
        peak = peak_bytes(steps[name], device)
        training[name]["peak_MiB"] = None if peak is None else peak / 2**20
    training["full fine-tuning"] = training.pop(EVALUATION_REFERENCE)
    print_table("Training step", training, STEP_REFERENCE)
    evaluations = {
        name: partial(evaluation(model.eval(), precision), batch)
        for name, model in sides.items()
        if name != "frozen base"
    }
    times = alternate(evaluations, args.repeats, device)
    evaluated = {name: summarise(times[name], times[EVALUATION_REFERENCE]) for name in evaluations}
    print_table("Evaluation", evaluated, EVALUATION_REFERENCE)
    print(json.dumps(machine | {"training_step": training, "evaluation": evaluated}))


if __name__ == "__main__":
    main()
