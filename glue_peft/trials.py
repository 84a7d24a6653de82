"""What can only be tried: whether a method runs on a model, and whether it can be merged. Tried before training.

A trial works on a copy, moves no random state, and gives the adapter small random weights first: a new adapter mostly
changes nothing, and would show nothing.
"""

import copy

import peft
import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn

from glue_peft.errors import UsageError, as_usage_error

PADDING_ERROR = 1e-3  # of the logits; masking and rounding move them by 1e-6
NOISE = 0.02  # standard deviation of the weights that a trial gives an adapter
# Of the adapter's effect on the logits: merging float32 weights differs by 1e-4 of it or less, a wrong merge by 0.1.
MERGING_ERROR = 0.01


def check_runs(where: str, model: PeftModel) -> None:
    """Raise UsageError where the model can't run with the adapter, or the adapter gets no gradient."""
    method, kind = model.active_peft_config.peft_type.value, type(model.get_base_model()).__name__
    with torch.random.fork_rng(devices=[]):
        with as_usage_error(f"{where}: {method} doesn't run on {kind}"):
            trial = with_noise(model).train()
            trial(**one_row(model)).loss.backward()
            moved = moved_by_padding(model) if model.active_peft_config.is_prompt_learning else 0.0
    if not moved < PADDING_ERROR:
        raise UsageError(f"{where}: {method} on {kind} reads padding: it moves a row's logits by {moved:.2g}")
    gradients = [parameter.grad for parameter in adapter_parameters(trial) if parameter.grad is not None]
    if not any(gradient.any() for gradient in gradients):
        raise UsageError(f"{where}: {method} with these settings does nothing on {kind}: it gets no gradient")


def moved_by_padding(model: PeftModel) -> float:
    """Return by how much a row's logits depend on its padding.

    A decoder looks in the tokens for the last one that is no padding; behind a prompt it is given none, only vectors.
    """
    padding = model.get_base_model().config.pad_token_id
    if padding is None:
        return 0.0
    short = {"input_ids": one_row(model)["input_ids"][:, 1:], "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    padded = {
        "input_ids": nn.functional.pad(short["input_ids"], (0, 1), value=padding),
        "attention_mask": nn.functional.pad(short["attention_mask"], (0, 1)),
    }
    trial = with_noise(model).eval()
    with torch.no_grad():
        return (trial(**short).logits - trial(**padded).logits).abs().max().item()


def check_merges(model: PeftModel) -> None:
    """Raise UsageError where the adapter can't be merged into a plain model that computes the same."""
    method = model.active_peft_config.peft_type.value
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        row = one_row(model)
        trial = with_noise(model).eval()
        with as_usage_error(f"--save_merged: {method} can't be merged"):
            before = copy.deepcopy(model).eval()(**row).logits
            adapted = trial(**row).logits
            merged = merge(trial).eval()(**row).logits
    effect, off = (adapted - before).abs().max().item(), (merged - adapted).abs().max().item()
    if not off <= MERGING_ERROR * effect + 1e-5:
        raise UsageError(
            f"--save_merged: {method} can't be merged: the plain model's logits would be off by {off:.2g}"
        )


def merge(model: PeftModel) -> nn.Module:
    """Merge the adapter in place and return a plain model with the same tensors. Raises what PEFT raises.

    PEFT's merge_and_unload fails on RandLoRA and VeRA classifiers, so the layers are merged in place and the plain
    model's tensors are taken by name.
    """
    model.merge_adapter()
    tensors = peft.get_base_model_state_dict(model)
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            own = module.modules_to_save[model.active_adapter].state_dict()
            tensors |= {f"{name}.{key}": tensor for key, tensor in own.items()}
    plain = type(model.get_base_model())._from_config(model.config)  # its own class: it may be code from the hub
    plain.load_state_dict(tensors)  # strict: a tensor that PEFT names otherwise is an error, never a random weight
    return plain


def with_noise(model: PeftModel) -> PeftModel:
    """Return a copy whose adapter, not its head, has small random numbers added."""
    trial = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter_parameters(trial):
            parameter.add_(NOISE * torch.randn(parameter.shape, generator=generator))
    return trial


def adapter_parameters(model: PeftModel) -> list[nn.Parameter]:
    """Return the trained parameters outside the head and outside what else the config adds to it."""
    modules = [m for m in model.modules() if isinstance(m, ModulesToSaveWrapper)]
    others = {id(p) for module in modules for p in module.parameters()}
    return [p for p in model.parameters() if p.requires_grad and id(p) not in others]


def one_row(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return a row of four tokens with a label; the last one ends a text, where the model knows such a token."""
    config = model.get_base_model().config
    tokens = torch.arange(5, 9) % config.get_text_config().vocab_size
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int):
        tokens[-1] = end
    label = torch.zeros(1) if config.num_labels == 1 else torch.zeros(1, dtype=torch.long)
    return {"input_ids": tokens[None], "attention_mask": torch.ones(1, 4, dtype=torch.long), "labels": label}
