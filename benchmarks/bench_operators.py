#!/usr/bin/env python
"""Count what a training step and an evaluation batch launch: the figure that a small batch's time on a GPU follows.

    python -m benchmarks.bench_operators              12 layers, batch 64, float32 and bf16, about a minute
    python -m benchmarks.bench_operators --quick      2 layers, for CI

The runs are run_glue.py's: its adapters, its fast paths, its GlueTrainer, on a narrow RoBERTa with random weights and
rows of CoLA's lengths. Counted are the operators that reach a device from the end of one step to the end of the next
(batch, forward, backward, clipping, optimizer), and those of an evaluation batch up to its loss and logits. Views and
empty tensors launch nothing and are left out, as is what the data collator does on the host. A wait is an operator
whose result the host needs before it can go on, so that a GPU's queue runs dry. Counts are exact and the same on every
machine, except that a CPU takes four operators for a dropout where a GPU takes two; the model has no attention
dropout, which a CPU would take another attention for. The last line is one JSON object.
"""

import argparse
import contextlib
import itertools
import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import torch
import transformers
from tokenizers import Tokenizer, models
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSequenceClassification, RobertaConfig, TrainerCallback

import run_glue
from benchmarks.bench_grid import realistic_lengths
from glue_peft import adapters, arguments
from glue_peft.data import Task
from glue_peft.trainer import GlueTrainer
from glue_peft.unpadded_encoder import PackingCollator

BATCH = 64
ADAPTERS = {
    "lora r4": ["--adapter_name", "lora", "--rank", "4"],
    "randlora r8": ["--adapter_name", "randlora", "--rank", "8"],
    "vera r32": ["--adapter_name", "vera", "--rank", "32"],
}
FROZEN = "frozen base, padded"
# name: flags of run_glue.py. Without --no_unpad its last word decides what a GPU decides by the size of the batch, and
# our layers take a GPU's path on every machine.
CASES = {
    FROZEN: [],
    "full fine-tuning, as transformers has it": ["--no_unpad"],
    "full fine-tuning, padded": [],
    "full fine-tuning, packed": [],
    **{
        f"{name}, {how}": [*adapter, *flags]
        for name, adapter in ADAPTERS.items()
        for how, flags in {
            "PEFT, padded": ["--no_unpad", "--no_fast_adapters"],
            "ours, padded": ["--fast_adapters", "stacked"],
            "ours, packed": ["--fast_adapters", "stacked"],
        }.items()
    },
}
PRECISIONS = {"float32": [], "bf16": ["--bf16"], "fp16": ["--fp16"]}

# Operators of which the host reads the result, or the size of the result.
WAITING_OPERATORS = {
    "_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "repeat_interleave",
    "unique_consecutive", "unique_dim", "_unique", "_unique2",
}  # fmt: skip
# What reads a tensor on the host without any operator, where it is there already.
WAITING_METHODS = {"__array__", "cpu", "numpy", "tolist"}


class Counts:
    """Operators by name, and those of them, and further calls, that wait."""

    def __init__(self) -> None:
        """Start from nothing."""
        self.operators: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.paused = False

    def as_numbers(self) -> dict[str, int]:
        """Both totals."""
        return {"operators": self.operators.total(), "waits": self.waits.total()}


class _Operators(TorchDispatchMode):
    """Counts what is dispatched below autograd and autocast."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if not self.counts.paused and launches(operator):
            name = operator.overloadpacket.__name__
            self.counts.operators[name] += 1
            by_mask = name.startswith("index") and any(is_mask(index) for index in flatten(args[1:2]))
            if name in WAITING_OPERATORS or by_mask:
                self.counts.waits[name] += 1
        return operator(*args, **(kwargs or {}))


class _Reads(TorchFunctionMode):
    """Counts the calls that read a tensor on the host."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in WAITING_METHODS and not self.counts.paused:
            self.counts.waits[name] += 1
        return function(*args, **(kwargs or {}))


def flatten(value: Any) -> Iterator[Any]:
    """All that lists and tuples hold."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from flatten(item)
    else:
        yield value


def is_mask(index: Any) -> bool:
    """Say whether an index is a mask, whose true entries have to be counted first."""
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


def launches(operator: torch._ops.OpOverload) -> bool:
    """Say whether an operator launches anything: it is no view, makes no empty tensor and is no profiler's mark."""
    name = operator.overloadpacket.__name__
    if operator.namespace == "profiler" or name == "_unsafe_view" or "empty" in name:
        return False
    returned = [output.alias_info for output in operator._schema.returns]
    return not any(alias is not None and not alias.is_write for alias in returned)


@contextlib.contextmanager
def count_operators(counts: Counts) -> Iterator[Counts]:
    """Count all that is launched inside, autograd's threads included."""
    with _Reads(counts), _Operators(counts):
        yield counts


class CountStep(TrainerCallback):
    """Counts the second step of a training."""

    def __init__(self) -> None:
        self.counts, self.open = Counts(), contextlib.ExitStack()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin after the first, end after the second."""
        if state.global_step == 1:
            self.open.enter_context(count_operators(self.counts))
        elif state.global_step == 2:
            self.open.close()

    def around(self, collate: Callable[[list], Any]) -> Callable[[list], Any]:
        """Wrap a collator, which works on the host, so that it isn't counted."""

        def collated(rows: list) -> Any:
            """Collate rows uncounted."""
            self.counts.paused = True
            batch = collate(rows)
            self.counts.paused = False
            return batch

        return collated


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A tokenizer that can pad, which is all that is asked of it here."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 1}, unk_token="<pad>")), pad_token="<pad>"
    )


def make_rows(batches: int) -> datasets.Dataset:
    """Tokenised rows of CoLA's lengths."""
    lengths = realistic_lengths("cola", batches * BATCH)
    return datasets.Dataset.from_dict(
        {
            "input_ids": [[5] * length for length in lengths],
            "attention_mask": [[1] * length for length in lengths],
            "labels": [row % 2 for row in range(len(lengths))],
        }
    )


def narrow_roberta(layers: int) -> RobertaConfig:
    """A model whose width doesn't change what is counted."""
    return RobertaConfig(
        vocab_size=100,
        max_position_embeddings=130,
        type_vocab_size=1,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=2,
        num_hidden_layers=layers,
        attention_probs_dropout_prob=0.0,
    )


def build_trainer(flags: list[str], config: RobertaConfig, folder: str, frozen: bool = False) -> GlueTrainer:
    """What run_glue.py builds for these flags, on a model with random weights; `frozen` leaves it the embeddings."""
    argv = "--model_name_or_path random --task_name cola --do_train --do_eval --max_steps 2 --save_strategy no "
    argv += f"--logging_strategy no --disable_tqdm True --per_device_train_batch_size {BATCH} --output_dir {folder}"
    device = [] if torch.cuda.is_available() else ["--use_cpu"]
    _, data_args, adapter_args, training_args = arguments.parse_arguments([*argv.split(), *flags, *device])
    torch.manual_seed(0)
    config.problem_type, labels = "single_label_classification", ("unacceptable", "acceptable")
    config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
    model = AutoModelForSequenceClassification.from_config(config)
    if frozen:  # the gradient still comes down to the first layer, as it does with an adapter there
        model.base_model.requires_grad_(False).embeddings.word_embeddings.requires_grad_(True)
    adapter_config = run_glue.make_adapter_config(adapter_args, model, seed=1)
    if adapter_config is not None:
        model = adapters.add_adapter(model, adapter_config, adapter_args, revision=None)
    run_glue.use_fast_paths(model, adapter_args, data_args)
    task = Task("cola", None, ("sentence", None), labels, False, {}, {})
    tokenized = datasets.DatasetDict(train=make_rows(3), validation=make_rows(2))
    return run_glue.make_trainer(
        model, training_args, data_args, make_tokenizer(), tokenized, task, stop_on_signal=TrainerCallback()
    )


def as_on_a_gpu(collate: Callable[[list], Any], case: str) -> Callable[[list], Any]:
    """Let a collator that plans batches plan a GPU's single rectangle, or leave all padded, as the case says."""
    if isinstance(collate, PackingCollator):
        collate.groups, collate.least_slots = 1, 0 if case.endswith("packed") else sys.maxsize
    return collate


def count_case(case: str, precision: str = "float32", layers: int = 12) -> dict[str, Counts]:
    """Train two steps, then evaluate two batches; return the counts of the second "step" and "evaluation" batch."""
    step, evaluation = CountStep(), Counts()
    with tempfile.TemporaryDirectory() as folder:
        flags = [*CASES[case], *PRECISIONS[precision]]
        trainer = build_trainer(flags, narrow_roberta(layers), folder, frozen=case == FROZEN)
        trainer.data_collator = step.around(as_on_a_gpu(trainer.data_collator, case))
        trainer.add_callback(step)
        trainer.train()
        for batch in itertools.islice(trainer.get_eval_dataloader(), 2):
            trainer.model.eval()
            evaluation = Counts()
            with count_operators(evaluation):
                trainer.prediction_step(trainer.model, batch, prediction_loss_only=False)
    return {"step": step.counts, "evaluation": evaluation}


def measure(case: str, precision: str, layers: int) -> dict[str, Any]:
    """Count a case; `one_more_layer` is what the last of the layers adds to a step."""
    counts = count_case(case, precision, layers)
    without = count_case(case, precision, layers - 1)
    further = counts["step"].operators.total() - without["step"].operators.total()
    return {name: part.as_numbers() for name, part in counts.items()} | {"one_more_layer": further}


def print_head(precisions: list[str]) -> None:
    """Print the head of a Markdown table."""
    names = [f"{name}, {precision}" for precision in precisions for name in ("step", "one more layer", "evaluation")]
    print("| | " + " | ".join([*names, "waits: step, evaluation"]) + " |")
    print("| --- |" + " ---: |" * (len(names) + 1))


def print_row(case: str, rows: list[dict[str, Any]]) -> None:
    """Print a case's counts in all precisions as a row of it."""
    cells = [
        f"{number:,}"
        for row in rows
        for number in (row["step"]["operators"], row["one_more_layer"], row["evaluation"]["operators"])
    ]
    waits = [max(row[part]["waits"] for row in rows) for part in ("step", "evaluation")]
    print("| " + " | ".join([case, *cells, f"{waits[0]}, {waits[1]}"]) + " |", flush=True)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="encoder layers, at least 2 (default: 12)")
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=PRECISIONS,
        default=["float32", "bf16"],
        help="fp16 needs a GPU (default: float32 bf16)",
    )
    parser.add_argument("--quick", action="store_true", help="2 layers")
    args = parser.parse_args()
    args.layers = 2 if args.quick else args.layers
    return args


def main() -> None:
    """Count, print a Markdown table and the JSON."""
    args = parse_arguments()
    warnings.simplefilter("ignore")
    print_head(args.precisions)
    results: dict[str, dict[str, Any]] = {precision: {} for precision in args.precisions}
    for case in CASES:
        for precision in args.precisions:
            with contextlib.redirect_stdout(None):  # Trainer prints what it logs
                results[precision][case] = measure(case, precision, args.layers)
        print_row(case, [results[precision][case] for precision in args.precisions])
    print(json.dumps({"layers": args.layers, "batch": BATCH, "torch": torch.__version__, "counts": results}))


if __name__ == "__main__":
    main()
