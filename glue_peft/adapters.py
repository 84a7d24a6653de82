"""What an adapter takes beside its choice, which is run_glue.py's: head, bases, hashes, counts, files and merging."""

import hashlib
import json
import logging
import math
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from glue_peft import run_folder
from glue_peft.arguments import AdapterArguments, ModelArguments
from glue_peft.errors import UsageError, first_line
from glue_peft.record import ParameterCounts

# PEFT methods that want a call after every step, which no run here makes.
STEPPED_METHODS = ("ADALORA", "ADAMSS")
# The names of all linear layers in BERT's and RoBERTa's encoders.
BERT_LAYERS = ("query", "key", "value", "dense")

logger = logging.getLogger("run_glue")


def head_modules(model: nn.Module) -> list[str]:
    """Name the parts outside the encoder that have parameters: the head, trained in full and never adapted."""
    parts = model.named_children()
    return [name for name, part in parts if name != model.base_model_prefix and any(True for _ in part.parameters())]


def head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained parameters of the head."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    modules = [plain.get_submodule(name) for name in head_modules(plain)]
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def hash_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """Hash names, shapes and float32 values by SHA-256, so that the stored precision doesn't matter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()


def random_bases(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the frozen random bases that VeRA and RandLoRA share between layers, by name; none for other models."""
    bases = {}
    for name in ("vera_A", "vera_B", "randlora_A", "randlora_B"):
        for adapter, tensor in getattr(getattr(model, "base_model", None), name, {}).items():
            bases[f"{name}.{adapter}"] = tensor
    return bases


def read_adapter_config(path: Path, common: dict[str, Any], merges: bool) -> PeftConfig:
    """Read a PEFT config file; `common` fills in what it leaves open. Raises UsageError for what PEFT can't use."""
    content = run_folder.read_json(path)
    methods = sorted(kind.value for kind in peft.PeftType)
    if content is None:
        raise UsageError(f"--adapter_config {path}: not a readable file with one JSON object")
    if str(content.get("peft_type")).upper() not in methods:
        raise UsageError(f"--adapter_config {path}: peft_type is {content.get('peft_type')!r}; allowed: {methods}")
    if content["peft_type"].upper() in STEPPED_METHODS:
        raise UsageError(
            f"--adapter_config {path}: {content['peft_type']} has to be told of every step; it isn't here"
        )
    if content.get("task_type", "SEQ_CLS") != "SEQ_CLS":
        raise UsageError(f"--adapter_config {path}: task_type is {content['task_type']!r}; allowed: 'SEQ_CLS'")
    # A saved adapter's file says that it is for inference, which would leave nothing to train.
    content = {**common, **content, "peft_type": content["peft_type"].upper(), "inference_mode": False}
    known = {item.name for item in fields(peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(content["peft_type"])])}
    unknown = sorted(set(content) - known - set(common))
    if unknown:
        raise UsageError(f"--adapter_config {path}: {content['peft_type']} has no setting {', '.join(unknown)}")
    try:
        config = PeftConfig.from_peft_type(**{name: value for name, value in content.items() if name in known})
    except (TypeError, ValueError) as error:
        raise UsageError(f"--adapter_config {path}: {first_line(error)}") from error
    if merges and config.is_prompt_learning:
        raise UsageError(f"--save_merged: {content['peft_type']} has no weights to merge")
    return config


def agree_with_saved(config: PeftConfig, adapter_args: AdapterArguments) -> None:
    """Take the saved adapter's random bases over into `config`; raises UsageError where the two differ otherwise."""
    folder = adapter_args.init_adapter_from
    try:
        saved = PeftConfig.from_pretrained(folder).to_dict()
    except (OSError, TypeError, ValueError) as error:
        raise UsageError(f"--init_adapter_from {folder}: {first_line(error)}") from error
    given = run_folder.read_json(Path(adapter_args.adapter_config)) if adapter_args.adapter_config else {}
    for name in ("projection_prng_key", "save_projection"):
        if name in saved and name not in given and getattr(adapter_args, name) in (None, False):
            setattr(config, name, saved[name])
    free = {"base_model_name_or_path", "inference_mode", "modules_to_save", "peft_version", "revision", "auto_mapping"}
    for name, value in json.loads(json.dumps(config.to_dict(), default=sorted)).items():
        theirs = json.loads(json.dumps(saved.get(name), default=sorted))
        if isinstance(value, list):
            value, theirs = sorted(value), sorted(theirs or [])
        if name not in free and not name.endswith("_dropout") and value != theirs:
            raise UsageError(f"--init_adapter_from {folder}: its {name} is {theirs}, the flags say {value}")


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the encoder's linear layers by their full names."""
    kinds, encoder = (nn.Linear, Conv1D), f"{model.base_model_prefix}."
    return {
        name: layer for name, layer in model.named_modules() if isinstance(layer, kinds) and name.startswith(encoder)
    }


def default_target_modules(model: nn.Module) -> list[str]:
    """Name all linear layers of the encoder and none of the head, each by the shortest name that fits nothing else.

    Where they are those of BERT and RoBERTa, `dense` stands for all of that name, although RoBERTa's head has one too:
    PEFT leaves the head alone. Raises UsageError where there are none.
    """
    linears = linear_layers(model)
    if not linears:
        raise UsageError(f"--adapter_name: {type(model).__name__} has no linear layer in its encoder to adapt")
    if {name.split(".")[-1] for name in linears} == set(BERT_LAYERS):
        return list(BERT_LAYERS)
    others = {end for name, _ in model.named_modules() if name not in linears for end in ends_of(name)}
    return list(dict.fromkeys(next(end for end in ends_of(name) if end not in others) for name in linears))


def ends_of(name: str) -> list[str]:
    """Return the ends of a dotted name that PEFT would accept for it, the shortest first."""
    parts = name.split(".")
    return [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]


def target_widths(model: nn.Module, target_modules: list[str]) -> list[int]:
    """Return min(inputs, outputs) of each linear layer of the encoder that is named in `target_modules`."""
    linears = linear_layers(model)
    missing = [target for target in target_modules if not any(target in ends_of(name) for name in linears)]
    if missing:
        known = sorted({name.split(".")[-1] for name in linears})
        raise UsageError(
            f"--target_modules {' '.join(target_modules)}: {', '.join(missing)} not in "
            f"{type(model.base_model).__name__}; its linear layers are named {', '.join(known)}"
        )
    return [min(layer.weight.shape) for name, layer in linears.items() if {*target_modules} & {*ends_of(name)}]


def projection_key(seed: int) -> int:
    """Return the key of a seed's random bases: the authors' int(exp(seed) * 3.1415) while it stays below 2^64.

    That holds up to seed 43. From 44 on it is 2^32 + seed, a range that the formula never hits, so that no two seeds
    share their bases.
    """
    return int(math.exp(seed) * 3.1415) if seed <= 43 else 2**32 + seed


def number_of_bases(widths: list[int], rank: int) -> int:
    """Return n = ceil(min(in, out) / rank), the bases of a RandLoRA layer (arXiv 2502.00987, section 4).

    Raises UsageError where layers differ in n: PEFT keeps one alpha for all, so --paper_scaling can't be expressed.
    """
    counts = {math.ceil(width / rank) for width in widths}
    if len(counts) > 1:
        raise UsageError(
            f"--paper_scaling: the adapted layers have {sorted(counts)} bases; it needs one number for all, "
            "which --target_modules can give"
        )
    return counts.pop()


def check_encoder_is_complete(model: PreTrainedModel, loading: dict[str, Any], model_args: ModelArguments) -> None:
    """Raise UsageError where weights of the encoder were drawn, as its file lacks them: no reload would draw them."""
    names = {*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])}
    drawn = sorted(name for name in names if name.startswith(f"{model.base_model_prefix}."))
    if drawn:
        raise UsageError(
            f"--model_name_or_path {model_args.model_name_or_path}: no weights for {', '.join(drawn)} in it. An "
            "adapter would stand on random ones, which nobody could load again: save a complete model first"
        )


def check_base_model(flag: str, folder: Path, base_sha256: str) -> None:
    """Raise UsageError where the record beside a saved adapter says that it was trained on another model."""
    base = (run_folder.read_json(folder / run_folder.RECORD_FILE) or {}).get("base_model") or {}
    if base.get("sha256", base_sha256) != base_sha256:
        raise UsageError(f"--{flag} {folder}: was trained on another model, {base.get('name')}")


def load_saved(model: PreTrainedModel, folder: Path, base_sha256: str) -> PeftModel:
    """Load a saved adapter with its head, to evaluate or predict with. Raises UsageError where that fails."""
    check_base_model("adapter_path", folder, base_sha256)
    try:
        return PeftModel.from_pretrained(model, str(folder))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"--adapter_path {folder}: {first_line(error)}") from error


def start_from_saved(model: PeftModel, folder: Path, base_sha256: str) -> None:
    """Load a saved adapter's weights without its head. Raises UsageError unless it fits, tensor by tensor."""
    check_base_model("init_adapter_from", folder, base_sha256)
    try:
        weights = peft.load_peft_weights(str(folder), device="cpu")
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"--init_adapter_from {folder}: {first_line(error)}") from error
    head = tuple(f"base_model.model.{name}." for name in head_modules(model.get_base_model()))
    wanted = peft.get_peft_model_state_dict(model)
    new_head = {name: tensor for name, tensor in wanted.items() if name.startswith(head)}
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(head)} | new_head
    if {name: tensor.shape for name, tensor in weights.items()} != {name: t.shape for name, t in wanted.items()}:
        raise UsageError(f"--init_adapter_from {folder}: its weights are not those of this model's adapter")
    peft.set_peft_model_state_dict(model, weights)
    logger.info(f"Starting from the adapter in {folder}, with a new head")


def check_random_bases(model: nn.Module, folder: Path | str | None) -> None:
    """Raise UsageError where the adapter in a folder was trained on other random bases than this machine drew.

    PEFT draws them from the key in bfloat16 or float16, as the machine offers, and does not check.
    """
    if folder is None or not random_bases(model) or model.active_peft_config.save_projection:
        return  # nothing to load, nothing random, or the bases themselves come with the adapter
    saved = run_folder.read_json(Path(folder) / run_folder.BASES_FILE)
    if saved is None:
        logger.warning(f"{folder} has no {run_folder.BASES_FILE}: its random bases can't be verified")
    elif saved["sha256"] != hash_tensors(random_bases(model)):
        raise UsageError(
            f"{folder}: this machine draws other random bases from key {saved['projection_prng_key']} than the one "
            "that trained the adapter, and with them it would be wrong. Train with --save_projection, or load it on a "
            "machine of the same kind"
        )


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Count parameters as the papers do (`adapter`: what is trained outside the head), and as they are stored."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    in_head = sum(p.numel() for p in head_parameters(model))
    saved = peft.get_peft_model_state_dict(model) if isinstance(model, PeftModel) else model.state_dict()
    return {
        "adapter": trained - in_head,
        "head": in_head,
        "total": sum(p.numel() for p in model.parameters()),
        "stored": sum(tensor.numel() for tensor in saved.values()),
    }


def save_merged(model: PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path, output_dir: Path) -> None:
    """Save a plain model whose weights contain the adapter's update, with its tokenizer.

    PEFT's merge_and_unload fails on RandLoRA and VeRA classifiers, so the layers are merged in place and the plain
    model's tensors are taken by name.
    """
    model.merge_adapter()
    merged = model.get_base_model().state_dict()
    plain = AutoModelForSequenceClassification.from_config(model.config)
    wanted = plain.state_dict()
    tensors = {}
    for name, tensor in merged.items():
        name = name.replace(".base_layer.", ".").replace(f".modules_to_save.{model.active_adapter}.", ".")
        if name in wanted and ".original_module." not in name:
            tensors[name] = tensor
    plain.load_state_dict(tensors)  # strict: a tensor that PEFT names otherwise is an error, never a random weight
    model.unmerge_adapter()
    folder.mkdir(parents=True, exist_ok=True)
    # First, so that a run that is killed here may save it again.
    run_folder.write_json(folder / run_folder.MERGED_FILE, {"output_dir": os.path.realpath(output_dir)})
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    logger.info(f"Saved the merged model to {folder}")
