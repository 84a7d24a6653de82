"""PEFT's methods and their settings: which of them a run here can train as they are meant, and names that must fit.

Everything here is decided from the config file and the model's architecture, before weights are read.
"""

import copy
import importlib.util
import math
import re
import typing
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union

import peft
from peft import PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers.pytorch_utils import Conv1D

from glue_peft.errors import UsageError, as_usage_error
from glue_peft.run_folder import read_json

# What a method lacks here. Everything else is tried: docs/methods.md has what each method does, from the tests.
UNUSABLE_METHODS = {
    "ADAMSS": "its call after every step, which moves its budget between subspaces, is not made",
    "ADAPTION_PROMPT": "it has no modules_to_save, so the new head would be neither trained nor saved",
    "CPT": "it is for causal language models",
    "MULTITASK_PROMPT_TUNING": "it wants a task's number with every row",
    "POLY": "it wants a task's number with every row",
    "SHADOW": "it wraps the blocks of decoders, and adds a loss of its own to the task's, which evaluations would "
    "report",
    "TRAINABLE_TOKENS": "it has no modules_to_save, so the new head would be neither trained nor saved; LORA with "
    "trainable_token_indices trains tokens and head",
    "XLORA": "it routes between adapters that were trained before",
}
# Settings that PEFT takes without a word, and that do nothing, or less than they say, unless somebody does more.
UNUSABLE_SETTINGS = {
    "alora_invocation_tokens": "the adapter only acts behind these tokens, which no task's rows contain",
    "arrow_config": "it routes between adapters that were trained before",
    "corda_config": "CorDA's covariances are not collected from the data",
    "ensure_weight_tying": "a classifier has no output layer that could share the embeddings' weights",
    "eva_config": "EVA's pass over the data is not made",
    "kasa_config": "KaSA's two losses are not added to the task's",
    "lora_ga_config": "LoRA-GA's gradients on the data are not taken",
    "megatron_config": "the models here have none of Megatron's layers",
    "monteclora_config": "MonteCLoRA's variational loss is not added to the task's",
    "runtime_config": "it is for models that are partly kept off the GPU",
    "sample_at_inference": "every evaluation would give another score",
    "save_only_topk_weights": "what is saved can't be trained further, and is only nearly what was trained",
    "use_qalora": "it is for models quantised by GPTQ; on others it is plain LoRA",
}
UNUSABLE_INITS = {
    "corda": UNUSABLE_SETTINGS["corda_config"],
    "eva": UNUSABLE_SETTINGS["eva_config"],
    "lora_ga": UNUSABLE_SETTINGS["lora_ga_config"],
}
# AdaLoRA's config has all of LoRA's settings, but its layers read none of these.
NOT_ADALORAS = (
    "alpha_pattern",
    "layer_replication",
    "lora_bias",
    "target_parameters",
    "use_bdlora",
    "use_rslora",
    "velora_config",
)
FACTORS = ("alpha", "lora_alpha", "psoft_alpha", "randlora_alpha")  # by which methods multiply their update
# PEFT writes both into every classifier's adapter, whatever its head is called.
PEFTS_HEADS = ("classifier", "score")


def check_settings(where: str, content: dict[str, Any]) -> None:
    """Raise UsageError for what PEFT can't use, or would not do as it says, in a config's content.

    `where` begins the message: the flag and the file.
    """
    methods = sorted(kind.value for kind in peft.PeftType)
    method = str(content.get("peft_type")).upper()
    if method not in methods:
        raise UsageError(f"{where}: peft_type is {content.get('peft_type')!r}; allowed: {methods}")
    if method in UNUSABLE_METHODS:
        raise UsageError(f"{where}: {method} can't be used here: {UNUSABLE_METHODS[method]}")
    if content.get("task_type") not in (None, "SEQ_CLS"):
        raise UsageError(f"{where}: task_type is {content['task_type']!r}; allowed: 'SEQ_CLS'")
    for name, reason in UNUSABLE_SETTINGS.items():
        if content.get(name) not in (None, False):
            raise UsageError(f"{where}: {name} can't be used here: {reason}")
    init = content.get("init_lora_weights")
    if isinstance(init, str) and init in UNUSABLE_INITS:
        raise UsageError(f"{where}: init_lora_weights {init!r} can't be used here: {UNUSABLE_INITS[init]}")
    check_types(where, method, content)
    check_numbers(where, content)
    check_sizes(where, method, content)
    check_loftq(where, content.get("loftq_config"), init)
    if content.get("layers_pattern") and content.get("layers_to_transform") in (None, []):
        raise UsageError(f"{where}: layers_pattern has no effect without layers_to_transform")
    if content.get("random_loc_seed", 0) is None:
        raise UsageError(
            f"{where}: random_loc_seed is None; it must be a number, from which every load draws the same"
        )
    tokens = content.get("num_virtual_tokens", 1)
    if tokens is None or tokens < 1:
        raise UsageError(f"{where}: num_virtual_tokens is {tokens}; it must be at least 1")
    if method == "ADALORA":
        check_adalora(where, content)


def check_numbers(where: str, content: dict[str, Any]) -> None:
    """Raise UsageError for a number, at any depth, that is not finite, and for a dropout that is no probability."""
    for name, value in content.items():
        if isinstance(value, list):
            check_numbers(where, {f"{name}[{i}]": item for i, item in enumerate(value)})
        elif isinstance(value, dict):
            check_numbers(where, value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{where}: {name} is {value}; it must be finite")
        elif name.endswith("dropout") and isinstance(value, int | float) and not 0 <= value < 1:
            raise UsageError(f"{where}: {name} is {value}; it must be at least 0 and below 1")


def check_sizes(where: str, method: str, content: dict[str, Any]) -> None:
    """Raise UsageError for a rank below 1 or a factor alpha of 0 or less, which leave nothing to train."""
    settings = dict(content) if method != "OFT" else content | {"r": None}  # its 0: oft_block_size says it
    for name in ("rank_pattern", "alpha_pattern"):
        settings |= {f"{name}: {key}": value for key, value in (content.get(name) or {}).items()}
    for name, value in settings.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if (name == "r" or name.startswith("rank_pattern")) and value < 1:
            raise UsageError(f"{where}: {name} is {value}; it must be at least 1")
        if (
            name in ("alpha", "lora_alpha", "randlora_alpha", "psoft_alpha") or "alpha_pattern" in name
        ) and value <= 0:
            raise UsageError(f"{where}: {name} is {value}; it must be above 0")


def check_loftq(where: str, settings: dict[str, Any] | None, init: object) -> None:
    """Raise UsageError where LoftQ's settings are not complete, or have no effect."""
    if settings and init != "loftq":
        raise UsageError(f"{where}: loftq_config has no effect without init_lora_weights 'loftq'")
    if init != "loftq":
        return
    wanted = [item.name for item in fields(peft.LoftQConfig)]
    if not settings or set(wanted) - set(settings):
        raise UsageError(f"{where}: init_lora_weights 'loftq' needs a loftq_config with {' and '.join(wanted)}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(f"{where}: init_lora_weights 'loftq' needs the package bitsandbytes, which isn't installed")


def check_adalora(where: str, content: dict[str, Any]) -> None:
    """Raise UsageError for settings that AdaLoRA would ignore, or die of in mid-training."""
    ignored = [name for name in NOT_ADALORAS if content.get(name)]
    if isinstance(content.get("init_lora_weights"), str):
        ignored.append("init_lora_weights")
    if ignored:
        raise UsageError(f"{where}: {ignored[0]} has no effect with ADALORA")
    start, target = content.get("init_r", 12), content.get("target_r", 8)
    if not 0 < target < start:
        raise UsageError(f"{where}: target_r is {target}; it must be at least 1 and below init_r, {start}")
    if content.get("r", 8) != 8:  # PEFT's default, which its own files have
        raise UsageError(f"{where}: r has no effect with ADALORA, which goes from init_r to target_r")


def check_types(where: str, method: str, content: dict[str, Any]) -> None:
    """Raise UsageError for unknown settings and for values of another type than PEFT's own annotations say."""
    check_fields(where, method, content, peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(method)])


def check_fields(where: str, whose: str, content: dict[str, Any], kind: type) -> None:
    """Do what check_types says for one dataclass of PEFT, and for those inside it; `whose` settings they are."""
    known = {item.name: item for item in fields(kind)}
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise UsageError(f"{where}: {whose} has no setting {', '.join(unknown)}")
    hints = typing.get_type_hints(kind)
    for name, value in content.items():
        free = (value is None and known[name].default is None) or name == "peft_type"
        hint = float if hints[name] is int and name.endswith("alpha") else hints[name]  # PEFT's own are used as float
        if not free and not fits_type(value, hint):
            raise UsageError(f"{where}: {name} is {value!r}; allowed: {in_words(hint)}")
        inner = [choice for choice in (hint, *typing.get_args(hint)) if is_dataclass(choice)]
        if inner and isinstance(value, dict):
            check_fields(where, name, value, inner[0])


def fits_type(value: Any, hint: Any) -> bool:
    """Say whether a value from JSON can stand where PEFT's annotation is `hint`; True for hints not known here."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, UnionType):
        return any(fits_type(value, choice) for choice in choices)
    if origin is Literal:  # "pissa_niter_[number of iters]" stands for pissa_niter_4
        starts = [choice.split("[")[0] for choice in choices if isinstance(choice, str) and "[" in choice]
        return value in choices or (isinstance(value, str) and any(value.startswith(start) for start in starts))
    if origin in (list, tuple, set):
        items = [choice for choice in choices if choice is not Ellipsis]
        return isinstance(value, list) and all(any(fits_type(v, item) for item in items) for v in value)
    if origin is dict or is_dataclass(hint):
        return isinstance(value, dict)
    if hint in (bool, str, dict, list, NoneType):
        return isinstance(value, hint)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return value in [member.value for member in hint]
    return True


def in_words(hint: Any) -> str:
    """Return a type annotation as one reads it."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(in_words(choice) for choice in choices)
    if origin is Literal:
        return ", ".join(repr(choice) for choice in choices)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return ", ".join(repr(member.value) for member in hint)
    if origin in (list, tuple, set):
        return f"a list of {' or '.join(in_words(choice) for choice in choices)}"
    if origin is dict or is_dataclass(hint) or hint is dict:
        return "an object"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", NoneType: "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def build_config(where: str, content: dict[str, Any]) -> PeftConfig:
    """Build PEFT's config. Raises UsageError for whatever PEFT doesn't like about it."""
    with as_usage_error(where):  # PEFT raises what it comes to: NotImplementedError, KeyError, ImportError ...
        return PeftConfig.from_peft_type(**content)


def read_saved_config(where: str, folder: Path | str) -> PeftConfig:
    """Read the PEFT config of a saved adapter. Raises UsageError where it can't be read."""
    path = Path(folder) / "adapter_config.json"
    content = read_json(path)
    if content is None or not isinstance(content.get("peft_type"), str):
        raise UsageError(f"{where}: {path} is not the config of an adapter")
    with as_usage_error(f"{where}: {path}"):  # a file with any content, read by code that expects PEFT's own
        return PeftConfig.from_pretrained(str(folder))


def virtual_tokens(config: PeftConfig | None) -> int:
    """Return how many of the model's positions the method itself takes."""
    return getattr(config, "num_virtual_tokens", None) or 0


def check_names(where: str, config: PeftConfig, model: nn.Module) -> None:
    """Raise UsageError for the first name, layer number or token in a config that fits nothing in `model`."""
    names = [name for name, _ in model.named_modules() if name]
    extra = [name for name in getattr(config, "modules_to_save", None) or [] if name not in PEFTS_HEADS]
    for name in extra:  # PEFT's rule for these: the end of the path, with or without a dot before it
        require(where, "modules_to_save", name, any(module.endswith(name) for module in names), model)
    targets = getattr(config, "target_modules", None)
    if isinstance(targets, (list, set)):
        everywhere = {"layers_to_transform": None, "layers_pattern": None}
        for name in sorted(targets):
            found = targeted(config, names, target_modules={name}, **everywhere)
            require(where, "target_modules", name, found, model)
        patterns = getattr(config, "layers_pattern", None) or []
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            require(where, "layers_pattern", pattern, targeted(config, names, layers_pattern=[pattern]), model)
        check_layers(where, config, names, model)
        for name in sorted(targets):
            require(where, "target_modules", name, targeted(config, names, target_modules={name}), model)
    adapted = targeted(config, names) if isinstance(targets, (list, set)) and targets else names
    for setting, patterns in vars(config).items():
        if setting.endswith("_pattern") and isinstance(patterns, dict):
            for pattern in patterns:
                found = any(re.fullmatch(rf"(.*\.)?({pattern})", name) for name in adapted)
                require(where, setting, pattern, found, model)
    inner = getattr(config, "feedforward_modules", None) or []
    for name in [inner] if isinstance(inner, str) else sorted(inner):  # IA3's rule: a regex, or the ends of names
        fits = [re.fullmatch(name, n) if isinstance(inner, str) else n.endswith(name) for n in adapted]
        require(where, "feedforward_modules", name, any(fits), model)
    parameters = [name for name, _ in model.named_parameters()]
    for name in getattr(config, "target_parameters", None) or []:
        require(where, "target_parameters", name, any(p == name or p.endswith(f".{name}") for p in parameters), model)
    if getattr(config, "fan_in_fan_out", False) and not any(isinstance(layer, Conv1D) for layer in model.modules()):
        raise UsageError(f"{where}: fan_in_fan_out has no effect on {type(model).__name__}: it is for GPT-2's Conv1D")
    check_tokens(where, config, model)


def require(where: str, setting: str, name: object, found: object, model: nn.Module) -> None:
    """Raise UsageError unless something was found for the name in a setting."""
    if found:
        return
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    layers = {
        path.split(".")[-1]
        for path, layer in model.named_modules()
        if path.startswith(prefix) and isinstance(layer, nn.Linear)
    }
    raise UsageError(
        f"{where}: {setting}: {name!r} fits nothing in {type(model).__name__}; the linear layers of its encoder are "
        f"named {', '.join(sorted(layers))}"
    )


def targeted(config: PeftConfig, names: Iterable[str], **changes: Any) -> list[str]:
    """Return the modules that PEFT would adapt, if the config had these settings."""
    changed = copy.copy(config)
    for name, value in changes.items():
        setattr(changed, name, value)
    return [name for name in names if check_target_module_exists(changed, name)]


def check_layers(where: str, config: PeftConfig, names: list[str], model: nn.Module) -> None:
    """Raise UsageError for numbers of layers and names to exclude that fit none of the targeted modules."""
    numbers = getattr(config, "layers_to_transform", None)
    for number in [numbers] if isinstance(numbers, int) else numbers or []:
        found = targeted(config, names, layers_to_transform=[number])
        require(where, "layers_to_transform", number, found, model)
    excluded = getattr(config, "exclude_modules", None)
    if isinstance(excluded, (list, set)):
        without = targeted(config, names, exclude_modules=None)
        for name in sorted(excluded):
            require(where, "exclude_modules", name, any(n == name or n.endswith(f".{name}") for n in without), model)


def check_tokens(where: str, config: PeftConfig, model: nn.Module) -> None:
    """Raise UsageError for tokens to train that the vocabulary, or embeddings that the model does not have."""
    tokens = getattr(config, "trainable_token_indices", None)
    if not tokens:
        return
    embeddings = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Embedding)}
    if not isinstance(tokens, dict):
        tokens, embeddings = {"": tokens}, {"": model.get_input_embeddings()}
    for name, numbers in tokens.items():
        found = [layer for path, layer in embeddings.items() if path.endswith(name)]
        require(where, "trainable_token_indices", name, found, model)
        for number in numbers:
            rows = found[0].num_embeddings
            if not (isinstance(number, int) and 0 <= number < rows):
                raise UsageError(f"{where}: trainable_token_indices: {number}; allowed are 0 to {rows - 1}")
