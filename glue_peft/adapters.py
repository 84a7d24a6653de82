"""What an adapter takes beside its choice, which is run_glue.py's: head, bases, hashes, counts, files and merging."""

import copy
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import peft
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from glue_peft import adalora, adapter_state, methods, run_folder, trials
from glue_peft.arguments import AdapterArguments, ModelArguments
from glue_peft.errors import UsageError, as_usage_error
from glue_peft.paper_bases import draw_paper_bases
from glue_peft.record import ParameterCounts

# The names of all linear layers in BERT's and RoBERTa's encoders.
BERT_LAYERS = ("query", "key", "value", "dense")
# What configs call the dropout in front of the head, in the order in which they are looked for.
HEAD_DROPOUTS = ("classifier_dropout", "seq_classif_dropout", "classifier_dropout_prob", "cls_dropout")
LEAST_TOKENS = 4  # of a row: a pair of one word each, with what separates them

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


def set_head_dropout(config: PreTrainedConfig, rate: float | None) -> None:
    """Set the dropout in front of the head; None leaves the model's own. Raises UsageError where it has none."""
    if rate is None:
        return
    own = [name for name in HEAD_DROPOUTS if hasattr(config, name)]
    own += ["cls_dropout"] if config.model_type.startswith("deberta") else []  # not in its config by itself
    if not own:
        raise UsageError(f"--classifier_dropout: {config.model_type} has no dropout of its own in front of the head")
    setattr(config, own[0], rate)


def read_config_file(path: Path) -> dict[str, Any]:
    """Read what a PEFT config file holds. Raises UsageError for what PEFT can't use, or would not do as it says."""
    content = run_folder.read_json(path)
    if content is None:
        raise UsageError(f"--adapter_config {path}: not a readable file with one JSON object")
    methods.check_settings(f"--adapter_config {path}", content)
    return content


def read_adapter_config(path: Path, model: nn.Module, merges: bool) -> PeftConfig:
    """Read a PEFT config file. Raises UsageError, also for names that fit nothing in `model`.

    The head is trained and saved in any case, whatever the file's modules_to_save says, and what that names too.
    """
    where, content = f"--adapter_config {path}", read_config_file(path)
    method = content["peft_type"].upper()
    saved = [*head_modules(model), *(content.get("modules_to_save") or [])]
    # A saved adapter's file says that it is for inference, which would leave nothing to train.
    content |= {"peft_type": method, "task_type": "SEQ_CLS", "inference_mode": False}
    content["modules_to_save"] = list(dict.fromkeys(saved))
    if method == "ADALORA":  # what a file that PEFT saved says of the training that made it
        content |= {"total_step": adalora.UNKNOWN_STEPS, "rank_pattern": None}
    config = methods.build_config(where, content)
    methods.check_names(where, config, model)
    if merges and config.is_prompt_learning:
        raise UsageError(f"--save_merged: {method} has no weights to merge")
    return config


def leave_room(positions: int, config: PeftConfig | None, adapter_args: AdapterArguments) -> int:
    """Return how many positions the adapter's prompt, that of --adapter_path too, leaves for a row's tokens.

    Raises UsageError where it leaves too few.
    """
    folder = adapter_args.adapter_path
    where = f"--adapter_config {adapter_args.adapter_config}" if folder is None else f"--adapter_path {folder}"
    if folder is not None:
        config = methods.read_saved_config(where, folder)
    prompt = methods.virtual_tokens(config)
    if prompt and positions - prompt < LEAST_TOKENS:
        raise UsageError(f"{where}: num_virtual_tokens is {prompt}, and the model has {positions} positions in all")
    return positions - prompt


def agree_with_saved(config: PeftConfig, adapter_args: AdapterArguments) -> None:
    """Take the saved adapter's random bases over into `config`; raises UsageError where the two differ otherwise."""
    folder = adapter_args.init_adapter_from
    saved = methods.read_saved_config(f"--init_adapter_from {folder}", folder).to_dict()
    if config.peft_type == peft.PeftType.ADALORA:
        raise UsageError(f"--init_adapter_from {folder}: AdaLoRA starts with all ranks, a saved one has those it kept")
    given = run_folder.read_json(Path(adapter_args.adapter_config)) if adapter_args.adapter_config else {}
    for name in ("projection_prng_key", "save_projection"):
        if name in saved and name not in given and getattr(adapter_args, name) in (None, False):
            setattr(config, name, saved[name])
    has_paper_bases = adapter_state.has_paper_bases(folder)
    if adapter_args.paper_bases and not has_paper_bases:
        raise UsageError(f"--init_adapter_from {folder}: its random bases are PEFT's, not those of --paper_bases")
    adapter_args.paper_bases = has_paper_bases
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


def drawn_weights(loading: dict[str, Any]) -> list[str]:
    """Name the weights that were drawn at random, as the model's file lacks them or has them in another shape."""
    return sorted({*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])})


def drawn_in_words(loading: dict[str, Any]) -> str:
    """Return in a line which layers were drawn at random: the head, where it is new, and nothing else."""
    drawn = drawn_weights(loading)
    if not drawn:
        return "model: all weights are the file's"
    new = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in drawn))
    return f"model: drawn at random, as its file has none: {new}"


def check_encoder_is_complete(model: PreTrainedModel, loading: dict[str, Any], model_args: ModelArguments) -> None:
    """Raise UsageError where weights of the encoder were drawn, as its file lacks them: no reload would draw them."""
    drawn = [name for name in drawn_weights(loading) if name.startswith(f"{model.base_model_prefix}.")]
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


def add_adapter(
    model: PreTrainedModel, config: PeftConfig, adapter_args: AdapterArguments, revision: str | None
) -> PeftModel:
    """Add a new adapter, and try what isn't sure to work. Raises UsageError for a method that can't train this model.

    `revision` is that of the model on the hub, for the adapter's config.
    """
    path = adapter_args.adapter_config
    where = f"--adapter_config {path}" if path else f"--adapter_name {adapter_args.adapter_name}"
    plain_config = copy.deepcopy(model.config)
    with as_usage_error(where):  # PEFT raises what it comes to: NotImplementedError, KeyError, ImportError ...
        adapted = get_peft_model(model, config, revision=revision)
    adapted.plain_config = plain_config  # layer_replication changes the model's own
    if adapter_args.paper_bases:
        draw_paper_bases(adapted)
    check_head(where, adapted)
    if path is not None:
        trials.check_runs(where, adapted)
    if adapter_args.save_merged is not None:
        trials.check_merges(adapted)
    return adapted


def check_head(where: str, model: PeftModel) -> None:
    """Raise UsageError unless every parameter of the head is trained, and is in what will be saved."""
    plain = model.get_base_model()
    saved = adapter_state.saved_storages(model)
    for module in head_modules(plain):
        for name, parameter in plain.get_submodule(module).named_parameters():
            if "original_module." in name:  # the copy that a disabled adapter would use
                continue
            if not parameter.requires_grad or adapter_state.storage_of(parameter) not in saved:
                raise UsageError(
                    f"{where}: {model.active_peft_config.peft_type.value} would not train and save {module}.{name}, "
                    "a part of the new head"
                )


def load_saved(model: PreTrainedModel, folder: Path, base_sha256: str, adapter_args: AdapterArguments) -> PeftModel:
    """Load a saved adapter with its head, to evaluate or predict with. Raises UsageError unless it fits exactly."""
    where = f"--adapter_path {folder}"
    check_base_model("adapter_path", folder, base_sha256)
    weights = adapter_state.read_weights(where, folder)
    with as_usage_error(where):  # as in add_adapter; the file may be anybody's
        loaded = PeftModel.from_pretrained(model, str(folder))
    if loaded.active_peft_config.peft_type == peft.PeftType.ADALORA:
        adalora.make_usable(loaded)
    if adapter_state.has_paper_bases(folder):
        draw_paper_bases(loaded)
    adapter_state.check_fits(where, weights, peft.get_peft_model_state_dict(loaded), with_values=True)
    if adapter_args.save_merged is not None:
        trials.check_merges(loaded)
    return loaded


def start_from_saved(model: PeftModel, folder: Path, base_sha256: str) -> None:
    """Load a saved adapter's weights without its head. Raises UsageError unless it fits, tensor by tensor."""
    where = f"--init_adapter_from {folder}"
    check_base_model("init_adapter_from", folder, base_sha256)
    weights = adapter_state.read_weights(where, folder)
    head = tuple(f"base_model.model.{name}." for name in head_modules(model.get_base_model()))
    if model.active_peft_config.is_prompt_learning:
        head = tuple(f"base_model.{name}." for name in head_modules(model.get_base_model()))
    wanted = peft.get_peft_model_state_dict(model)
    new_head = {name: tensor.clone() for name, tensor in wanted.items() if name.startswith(head)}
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(head)} | new_head
    adapter_state.check_fits(where, weights, wanted)
    with as_usage_error(where):
        peft.set_peft_model_state_dict(model, weights)
    adapter_state.check_fits(where, weights, peft.get_peft_model_state_dict(model), with_values=True)
    logger.info(f"Starting from the adapter in {folder}, with a new head")


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


def claim_merged_folder(folder: Path, output_dir: Path) -> None:
    """Make the folder of --save_merged and say whose it is; raises UsageError where it can't be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if run_folder.CLAIM.fullmatch(path.name):  # of a run that was killed here
                path.unlink(missing_ok=True)
        run_folder.write_json(folder / run_folder.MERGED_FILE, {"output_dir": os.path.realpath(output_dir)})
    except OSError as error:
        raise UsageError(f"--save_merged {folder}: can't be written: {error.strerror}") from error


def save_merged(model: PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a plain model whose weights contain the adapter's update, with its tokenizer; `model` stays merged."""
    plain = trials.merge(model)
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    logger.info(f"Saved the merged model to {folder}")
