"""Flags of Trainer that would have no effect, lack a package, or hold what nobody can use: seen before data are read.

Trainer itself ignores the first, and finds the others when the training starts, or never.
"""

import copy
import json
import logging
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames
from transformers.utils import is_liger_kernel_available

from glue_peft.errors import UsageError, as_usage_error
from glue_peft.methods import fits_type, in_words
from glue_peft.run_folder import read_json

# Schedulers that watch the metric of --metric_for_best_model.
METRIC_SCHEDULERS = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
CONSTANT_SCHEDULERS = (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP)
# Of torch.utils.checkpoint.checkpoint and of transformers' call of it, what JSON can write.
CHECKPOINTING = {
    "use_reentrant": bool,
    "preserve_rng_state": bool,
    "determinism_check": str,
    "debug": bool,
    "early_stop": bool,
    "every_n_layers": int,
    "offload": bool,
}
# The settings of each flag that is a JSON object; None: whichever the scheduler takes.
JSON_FLAGS: dict[str, dict[str, Any] | None] = {
    "accelerator_config": typing.get_type_hints(AcceleratorConfig),
    "activation_checkpointing_kwargs": CHECKPOINTING,
    "gradient_checkpointing_kwargs": CHECKPOINTING,
    "lr_scheduler_kwargs": None,
}
WATCHING = "--load_best_model_at_end, --save_strategy best or a --lr_scheduler_type that watches a metric"

logger = logging.getLogger("run_glue")


def has_warmup(args: TrainingArguments) -> bool:
    """Say whether the learning rate's schedule begins with a warm-up."""
    return args.lr_scheduler_type not in (SchedulerType.CONSTANT, *METRIC_SCHEDULERS)


def watches_metric(args: TrainingArguments) -> bool:
    """Say whether anything in a run asks which of two evaluations is the better one."""
    is_asked = args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST
    return is_asked or args.lr_scheduler_type in METRIC_SCHEDULERS


# When a flag has an effect, and what it needs for that.
NEEDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "metric_for_best_model": (watches_metric, WATCHING),
    "greater_is_better": (
        lambda args: watches_metric(args) and not args.follows_task_metric,
        f"--metric_for_best_model, and {WATCHING}; the task's own metric has its direction",
    ),
    "eval_steps": (lambda args: args.eval_strategy == "steps", "--eval_strategy steps"),
    "eval_delay": (lambda args: args.eval_strategy != "no", "--eval_strategy epoch or steps"),
    "save_steps": (lambda args: args.save_strategy == "steps", "--save_strategy steps"),
    "logging_steps": (lambda args: args.logging_strategy == "steps", "--logging_strategy steps"),
    "lr_scheduler_kwargs": (
        lambda args: args.lr_scheduler_type not in CONSTANT_SCHEDULERS,
        "a --lr_scheduler_type that isn't constant",
    ),
    "warmup_steps": (
        lambda args: args.warmup_steps == 0 or has_warmup(args),
        "a --lr_scheduler_type with a warm-up, as constant_with_warmup",
    ),
    "optim_target_modules": (
        lambda args: args.optim.startswith(("galore", "apollo")),
        "--optim galore_... or apollo_...",
    ),
    "gradient_checkpointing_kwargs": (lambda args: args.activation_checkpointing, "--gradient_checkpointing"),
    "activation_checkpointing_kwargs": (lambda args: args.activation_checkpointing, "--activation_checkpointing"),
    "liger_kernel_config": (lambda args: args.use_liger_kernel, "--use_liger_kernel"),
}


def read_json_flags(args: TrainingArguments) -> None:
    """Check the flags that are JSON objects, or name a file with one; raises UsageError."""
    for name, settings in JSON_FLAGS.items():
        text = getattr(args, name)
        if not isinstance(text, str):
            continue
        setattr(args, name, text.strip())
        try:
            content = json.loads(text)
        except ValueError:
            content = read_json(Path(text)) if name == "accelerator_config" else None
        if not isinstance(content, dict):
            or_file = ", nor the name of a file with one" if name == "accelerator_config" else ""
            raise UsageError(f"--{name} {text}: is not a JSON object{or_file}")
        for key, value in content.items() if settings is not None else ():
            if key not in settings:
                raise UsageError(f"--{name}: no setting {key}; allowed are {', '.join(settings)}")
            if not fits_type(value, settings[key]):
                raise UsageError(f"--{name}: {key} is {value!r}; allowed: {in_words(settings[key])}")
        if content.get("split_batches"):
            raise UsageError(f"--{name}: split_batches: the batch size would not be the one that is recorded")


def check_effects(args: TrainingArguments, given: set[str]) -> None:
    """Raise UsageError for a flag that was given, with another value than its default, and would have no effect."""
    defaults = {item.name: None if item.default is MISSING else item.default for item in fields(args)}
    changed = [name for name in defaults if name in given and getattr(args, name) != defaults[name]]
    for name in changed:
        has_effect, needed = NEEDS.get(name, (lambda _: True, ""))
        if not has_effect(args):
            raise UsageError(f"--{name} has no effect without {needed}")
    if args.do_train:
        check_optimizer(args, changed)
        check_scheduler(args)
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise UsageError("--use_liger_kernel: needs the package liger-kernel, which isn't installed")
    if args.torch_compile:
        check_compiler(args)


def check_optimizer(args: TrainingArguments, changed: list[str]) -> None:
    """Raise UsageError where --optim lacks a package, or doesn't know what it was given."""
    optimizer = f"--optim {OptimizerNames(args.optim).value}"
    with as_usage_error(optimizer):
        settings = optimizer_settings(args, optim_args=None)
    for name in ("adam_beta1", "adam_beta2", "adam_epsilon"):
        other = {name: getattr(args, name) + 0.001}
        if name in changed and optimizer_settings(args, optim_args=None, **other) == settings:
            raise UsageError(f"--{name} has no effect with {optimizer}")
    if not args.optim_args:
        return
    for item in args.optim_args.replace(" ", "").split(","):
        name, equals, _ = item.partition("=")
        if not (name and equals):
            raise UsageError(f"--optim_args {args.optim_args}: is not a list like momentum=0.9,nesterov=true")
        try:
            is_read = optimizer_settings(args, optim_args=f"{name}=?") != settings
        except Exception:  # whatever Trainer meets where it reads a number or a word: so it has read it
            is_read = True
        if not is_read:
            raise UsageError(f"--optim_args {args.optim_args}: {name} has no effect with {optimizer}")
    with as_usage_error(f"--optim_args {args.optim_args}"):
        kind, keywords = stand_in_optimizer(args)
        if not {"params", "model", "optimizer_dict"} & keywords.keys():  # those that read the model see the real one
            kind([torch.zeros(1, requires_grad=True)], **keywords)


def optimizer_settings(args: TrainingArguments, **changes: Any) -> str:
    """Return in text what Trainer makes of the optimizer's flags, for a stand-in model; raises what it raises."""
    return repr(stand_in_optimizer(args, **changes))


def stand_in_optimizer(args: TrainingArguments, **changes: Any) -> tuple[Any, dict[str, Any]]:
    """Return the class and the keyword arguments that Trainer would take for a stand-in model."""
    probe = copy.copy(args)
    for name, value in changes.items():
        setattr(probe, name, value)
    if probe.optim_target_modules:
        probe.optim_target_modules = "all-linear"
    model = nn.Sequential(nn.Linear(2, 2, device="meta"))  # on meta: it draws no random number
    return Trainer.get_optimizer_cls_and_kwargs(probe, model)


def check_scheduler(args: TrainingArguments) -> None:
    """Raise UsageError where --lr_scheduler_kwargs lacks what the scheduler needs, or has what it doesn't know."""
    kind, settings = SchedulerType(args.lr_scheduler_type), args.lr_scheduler_kwargs
    shown = f", --lr_scheduler_kwargs {json.dumps(settings)}" if settings else ""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    with as_usage_error(f"--lr_scheduler_type {kind.value}{shown}"):
        get_scheduler(kind, optimizer, num_warmup_steps=1, num_training_steps=4, scheduler_specific_kwargs=settings)


def check_compiler(args: TrainingArguments) -> None:
    """Raise UsageError for a backend or a mode of torch.compile that torch, or accelerate, doesn't know."""
    from accelerate.utils import DynamoBackend
    from torch._inductor import list_mode_options

    known = {kind.value.lower() for kind in DynamoBackend}
    backends = sorted(known & set(torch.compiler.list_backends(exclude_tags=())))
    for name, allowed in (("backend", backends), ("mode", sorted(list_mode_options()))):
        value = getattr(args, f"torch_compile_{name}")
        if value is not None and value not in allowed:
            raise UsageError(f"--torch_compile_{name} {value}: allowed are {', '.join(allowed)}")
