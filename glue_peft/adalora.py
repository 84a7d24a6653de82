"""AdaLoRA, which has to be told of every step: its schedule, its call, and what of its ranks is saved.

PEFT's AdaLoRA sets the unimportant singular values (lora_E) to zero now and then, saves only those that its last call
kept, and in between lets them grow again. What is saved here are those that are not zero, so that it is the model.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from peft import PeftModel
from peft.tuners.adalora import AdaLoraModel
from peft.tuners.adalora.layer import AdaLoraLayer
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from glue_peft.errors import UsageError

UNKNOWN_STEPS = 2**31  # PEFT's config wants a number of steps before there is one


def is_adalora(model: nn.Module) -> bool:
    """Say whether the model's adapter is AdaLoRA's."""
    return isinstance(model, PeftModel) and isinstance(model.base_model, AdaLoraModel)


class AllocateRanks(TrainerCallback):
    """Makes PEFT's call after every step, with the gradients still there; at the end drops the ranks it gave up."""

    def __init__(self, model: PeftModel, steps: int) -> None:
        """Set the schedule's length. Raises UsageError where it leaves no step to reduce the ranks in."""
        self.model, config = model, model.active_peft_config
        config.total_step = steps
        if config.tinit >= steps - config.tfinal:
            raise UsageError(
                f"--adapter_config: AdaLoRA's tinit {config.tinit} and tfinal {config.tfinal} leave none of the run's "
                f"{steps} steps to reduce the ranks in"
            )

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Move the ranks; the steps count from 1, so that the last one is total_step."""
        self.model.base_model.update_and_allocate(state.global_step + 1)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Shrink the matrices to the ranks that are left: what is evaluated from now on is what is saved."""
        config = self.model.active_peft_config
        config.rank_pattern = ranks_in_use(self.model)
        self.model.base_model.resize_modules_by_rank_pattern(config.rank_pattern, self.model.active_adapter)


def ranks_in_use(model: PeftModel) -> dict[str, list[bool]]:
    """Return for every layer, by the name of its lora_E, which of its singular values are not zero."""
    named = model.get_base_model().named_parameters()
    values = {name: p for name, p in named if f"lora_E.{model.active_adapter}" in name}
    return {name: (p.detach() != 0).view(-1).tolist() for name, p in values.items()}


@contextlib.contextmanager
def saving(model: PeftModel) -> Iterator[None]:
    """Let PEFT save the ranks that are in use, and keep its own record of ranks as it is."""
    config = model.active_peft_config
    kept, in_use = config.rank_pattern, ranks_in_use(model)
    if all(len(ranks) == config.init_r for ranks in in_use.values()):  # else they are shrunk, and the record is right
        config.rank_pattern = in_use
    try:
        yield
    finally:
        config.rank_pattern = kept


@contextlib.contextmanager
def as_saved(model: PeftModel) -> Iterator[None]:
    """Evaluate what is saved, so that the same scores come from the file, to the bit: only the ranks in use.

    The products of fewer columns are rounded otherwise. The orthogonal regularisation is left out: the loss of an
    evaluation is the task's.
    """
    config, adapter, whole = model.active_peft_config, model.active_adapter, []
    weight, config.orth_reg_weight = config.orth_reg_weight, 0.0
    for layer in (module for module in model.modules() if isinstance(module, AdaLoraLayer)):
        if adapter in layer.lora_E:
            a, e, b = (part[adapter] for part in (layer.lora_A, layer.lora_E, layer.lora_B))
            in_use = (e.detach() != 0).view(-1)
            whole += [(p, p.data) for p in (a, e, b)]
            a.data, e.data, b.data = a.data[in_use], e.data[in_use], b.data[:, in_use].contiguous()
    try:
        yield
    finally:
        config.orth_reg_weight = weight
        for parameter, data in whole:
            parameter.data = data


def make_usable(model: PeftModel) -> None:
    """Name the adapter in a loaded model, whose forward with labels looks for what only training sets (PEFT 0.21)."""
    model.base_model.trainable_adapter_name = model.active_adapter
