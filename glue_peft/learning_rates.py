"""Learning rates by name: --learning_rates "lora_B=1.6e-3 head=4e-3", and the head's --classifier_learning_rate.

A pattern is a regular expression that is looked for in the names of the trained parameters, `head` stands for the
head, and what no pattern fits has --learning_rate.
"""

import logging
import math
import re
from collections.abc import Mapping

import torch
from torch import nn

from glue_peft.errors import UsageError

HEAD = "head"

logger = logging.getLogger("run_glue")


def parse_rates(words: list[str] | None, head_rate: float | None) -> dict[str, float]:
    """Return the rate of each pattern, --classifier_learning_rate as the head's; raises UsageError."""
    rates: dict[str, float] = {}
    for word in " ".join(words or []).split():
        pattern, equals, value = word.rpartition("=")
        where = f"--learning_rates {word}"
        try:
            rate = float(value) if equals and pattern else math.nan
            re.compile(pattern)
        except (ValueError, re.error) as error:
            raise UsageError(f"{where}: must be PATTERN=RATE, as in lora_B=1e-3 ({error})") from error
        if not 0 < rate < math.inf:
            raise UsageError(f"{where}: must be PATTERN=RATE, as in lora_B=1e-3, with a rate above 0")
        if pattern in rates:
            raise UsageError(f"{where}: {pattern} has a rate already, {rates[pattern]:g}")
        rates[pattern] = rate
    if words is not None and not rates:
        raise UsageError("--learning_rates: needs PATTERN=RATE, as in lora_B=1e-3")
    if head_rate is not None and HEAD in rates:
        raise UsageError("--classifier_learning_rate and head=RATE of --learning_rates: give one of them")
    return rates | ({HEAD: head_rate} if head_rate is not None else {})


def patterns_of(model: nn.Module, head: list[nn.Parameter], rates: Mapping[str, float]) -> dict[int, str]:
    """Return by id the pattern of each trained parameter that one fits.

    Raises UsageError where a pattern fits no trained parameter, or two fit the same.
    """
    in_head = {id(parameter) for parameter in head}
    found: dict[int, str] = {}
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    for pattern in rates:
        fits = [
            (name, parameter)
            for name, parameter in trained
            if (id(parameter) in in_head if pattern == HEAD else re.search(pattern, name))
        ]
        if not fits:
            names = ", ".join(sorted({shortened(name) for name, _ in trained}))
            raise UsageError(f"--learning_rates: {pattern!r} fits no trained parameter; they are named {names}")
        for name, parameter in fits:
            other = found.setdefault(id(parameter), pattern)
            if other != pattern:
                raise UsageError(f"--learning_rates: {other!r} and {pattern!r} both fit {name}")
        logger.info(f"learning rate {rates[pattern]:g} for {pattern}: {sum(p.numel() for _, p in fits):,} parameters")
    return found


def shortened(name: str) -> str:
    """Return the end of a parameter's name: what stands behind the number of its layer, without PEFT's `default`."""
    return re.sub(r"^.*\.\d+\.|^base_model\.(model\.)?", "", name.removesuffix(".default"))


def split_groups(optimizer: torch.optim.Optimizer, patterns: Mapping[int, str], rates: Mapping[str, float]) -> None:
    """Move the parameters of each pattern into groups of their own, with its rate; do it once."""
    if any("pattern" in group for group in optimizer.param_groups):
        return
    for group in list(optimizer.param_groups):
        by_pattern: dict[str | None, list[nn.Parameter]] = {None: []}
        for parameter in group["params"]:
            by_pattern.setdefault(patterns.get(id(parameter)), []).append(parameter)
        group["params"] = by_pattern.pop(None)
        for pattern, parameters in by_pattern.items():
            assert pattern is not None
            optimizer.add_param_group({**group, "params": parameters, "lr": rates[pattern], "pattern": pattern})
