"""bench_operators.py: what it counts, and its counts as upper limits: operators a step, and no wait.

Counted through GlueTrainer as run_glue.py builds it; exact, and the same on every machine.
"""

import functools
import random
from pathlib import Path

import datasets
import pytest
import torch
from torch._dynamo.utils import counters

from benchmarks.bench_operators import (
    BATCH,
    CASES,
    Counts,
    build_trainer,
    count_case,
    count_operators,
    narrow_roberta,
)

# Operators of a training step under bf16 autocast, 12 layers. Padded, full fine-tuning as transformers has it takes
# 1,088; RandLoRA with PEFT's layers 2,517.
LIMITS = {
    "full fine-tuning, padded": 1_088,
    "full fine-tuning, packed": 1_150,
    "lora r4, ours, padded": 900,
    "lora r4, ours, packed": 1_000,
    "randlora r8, ours, padded": 900,
    "randlora r8, ours, packed": 1_000,
    "vera r32, ours, padded": 900,
    "vera r32, ours, packed": 1_000,
}
count_once = functools.cache(count_case)


def one_more_layer(case: str, part: str = "step") -> float:
    """Return the operators that a layer adds, on the mean of ten."""
    most, least = (count_once(case, "bf16", layers)[part].operators.total() for layers in (12, 2))
    return (most - least) / 10


@pytest.mark.parametrize("case", LIMITS)
def test_a_step_launches_no_more_than_its_limit_and_waits_for_nothing(case: str) -> None:
    """Nor does a forward pass wait, of the trained model in evaluation."""
    counts = count_once(case, "bf16", 12)
    assert 0 < counts["step"].operators.total() <= LIMITS[case]
    assert not counts["step"].waits and not counts["evaluation"].waits


def test_a_layer_of_an_adapted_model_launches_no_more_than_one_of_full_fine_tuning() -> None:
    """Packed as well: what the adapter costs does not grow with the number of layers."""
    for how in ("padded", "packed"):
        for adapter in ("lora r4", "randlora r8", "vera r32"):
            assert one_more_layer(f"{adapter}, ours, {how}") <= one_more_layer(f"full fine-tuning, {how}")


def test_packing_adds_at_most_twelve_operators_a_layer() -> None:
    """Forward and backward together, and in an evaluation's forward alone."""
    for case in ("full fine-tuning", "randlora r8, ours"):
        for part in ("step", "evaluation"):
            assert 0 < one_more_layer(f"{case}, packed", part) - one_more_layer(f"{case}, padded", part) <= 12


def test_the_wait_of_the_library_is_seen() -> None:
    """transformers asks whether there is any padding: what the limits above say of ours is no blindness."""
    counts = count_case("full fine-tuning, as transformers has it", layers=1)
    assert [counts[part].waits.total() for part in ("step", "evaluation")] == [1, 1]


def test_what_is_counted() -> None:
    """Operators below autograd, without views and empty tensors; waits of operators, masks and the host's reads."""
    tensor = torch.ones(2, 3, requires_grad=True)
    with count_operators(Counts()) as counts:
        torch.empty_like(tensor)
        tensor.view(6).exp().sum().backward()
    # Forward exp and sum; backward the first gradient, and that of exp, which is a product.
    assert counts.operators == {"exp": 1, "sum": 1, "ones_like": 1, "mul": 1} and not counts.waits
    values = tensor.detach()
    with count_operators(Counts()) as counts:
        values.sum().item()
        bool(values.sum() > 1)
        values.tolist()
        values.cpu().numpy()
        values[values > 2]
        values[torch.tensor([1])]
        values.nonzero()
        torch.equal(values, values)
        counts.paused = True
        values.sum().item()
    assert counts.waits == {
        "_local_scalar_dense": 2, "tolist": 1, "cpu": 1, "numpy": 1, "index": 1, "nonzero": 1, "equal": 1
    }  # fmt: skip
    assert counts.operators["sum"] == 2


def make_rows(widths: list[int], rows: int) -> datasets.Dataset:
    """Make batches of these widths, the last one of them with fewer rows."""
    rng = random.Random(0)
    lengths = [rng.randint(2, width) for width in widths for _ in range(BATCH - 1)]
    for batch, width in enumerate(widths):
        lengths.insert(batch * BATCH, width)
    columns = {"input_ids": [[5] * n for n in lengths], "attention_mask": [[1] * n for n in lengths]}
    return datasets.Dataset.from_dict(columns | {"labels": [n % 2 for n in lengths]}).select(range(rows))


@pytest.mark.parametrize(
    "case", [pytest.param("full fine-tuning, padded", marks=pytest.mark.slow), "randlora r8, ours, padded"]
)
def test_a_compiled_run_has_few_graphs(case: str, tmp_path: Path) -> None:
    """Of batches of four widths, the last one smaller, with evaluations: at most four, none of them broken."""
    flags = ["--torch_compile", "--torch_compile_backend", "eager", "--pad_to_multiple_of", "32", "--max_steps", "6"]
    flags += ["--train_sampling_strategy", "sequential", "--eval_strategy", "epoch"]
    trainer = build_trainer([*CASES[case], *flags], narrow_roberta(layers=1), str(tmp_path))
    trainer.train_dataset = make_rows([20, 60, 90, 128, 40, 70], rows=6 * BATCH - 30)
    trainer.eval_dataset = make_rows([100, 30], rows=2 * BATCH - 10)
    torch._dynamo.reset()
    counters.clear()
    trainer.train()
    trainer.evaluate(trainer.eval_dataset)
    assert 0 < counters["stats"]["unique_graphs"] <= 4
    assert not counters["graph_break"]
