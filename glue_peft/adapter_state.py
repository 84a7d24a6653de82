"""What an adapter is beyond the tensors that PEFT saves: what it stands on, and what its training goes on from.

Two files of ours stand beside PEFT's own. `fixed_tensors.json` has the hashes of what is neither trained nor saved:
the weights under the adapter, as the method's init may have changed them (PiSSA, OLoRA), and what is drawn or computed
again at every load. `trained_state.safetensors`, in checkpoints alone, has the trained tensors of methods of which
PEFT saves less (p-tuning's prompt encoder), or in another form (AdaLoRA's ranks).
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftConfig, PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import nn

from glue_peft import run_folder
from glue_peft.adalora import is_adalora
from glue_peft.errors import UsageError, as_usage_error

TORCHS_OWN = ("_parameters", "_buffers", "_modules")
# Of AdaLoRA's RankAllocator: its memory of every weight's importance.
ALLOCATOR = ("ipt", "exp_avg_ipt", "exp_avg_unc")
VELORAS_SWITCH = "lora_velora_initialized"

logger = logging.getLogger("run_glue")


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


def all_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return every tensor of a model by name: parameters, buffers, also those that no state_dict has, attributes."""
    found = {}
    for path, module in model.named_modules():
        for values in (module._parameters, module._buffers, own_attributes(module)):
            found.update({f"{path}.{key}": value for key, value in values.items() if torch.is_tensor(value)})
    return found


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """Return a module's plain attributes, those in dictionaries too, as PEFT's layers keep them for each adapter."""
    attributes = {key: value for key, value in vars(module).items() if key not in TORCHS_OWN}
    for key, value in list(attributes.items()):
        if isinstance(value, dict):
            attributes |= {f"{key}.{k}": v for k, v in value.items()}
    return attributes


def storage_of(tensor: torch.Tensor) -> tuple[int, torch.Size]:
    """Return what two tensors share when one is a view of all of the other."""
    return tensor.data_ptr(), tensor.shape


def saved_storages(model: PeftModel) -> set[tuple[int, torch.Size]]:
    """Return the storages of all that PEFT would save, without its question to the hub about embeddings."""
    saved = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    return {storage_of(tensor) for tensor in saved.values()}


def fixed_tensors(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return what the adapter stands on: neither trained, nor saved, nor the pre-trained model's own untouched parts.

    The weights under the adapter are among them, as a method's init may have changed them.
    """
    if model.active_peft_config.is_prompt_learning:
        return {}
    saved = saved_storages(model)
    own = {name for name, _ in model.get_base_model().named_parameters()}
    own |= {name for name, _ in model.get_base_model().named_buffers()}
    plain = {f"base_model.model.{name}" for name in own if not is_adapters(model, name)}
    return {
        name: tensor
        for name, tensor in all_tensors(model).items()
        if name not in plain
        and not tensor.requires_grad
        and tensor.numel()
        and storage_of(tensor) not in saved
        and ".original_module." not in name
        and ".ranknum." not in name  # AdaLoRA's divisor, set from the config; 0 where a layer has no rank left
    }


def is_adapters(model: PeftModel, name: str) -> bool:
    """Say whether a parameter of the model with an adapter belongs to the adapter, or to a layer under it."""
    module, parts = model.get_base_model(), name.split(".")
    for part in parts[:-1]:
        if isinstance(module, BaseTunerLayer):
            return True
        module = getattr(module, part)
    return isinstance(module, BaseTunerLayer)


def describe_fixed(model: nn.Module, seed: int) -> dict[str, Any] | None:
    """Return what fixed_tensors.json is to hold; None where random_bases.json holds it, or the base's hash is all."""
    if not isinstance(model, PeftModel) or random_bases(model) or is_plain_lora(model.active_peft_config):
        return None
    hashes = {name: hash_tensors({name: tensor}) for name, tensor in fixed_tensors(model).items()}
    return {"seed": seed, "sha256": hashes} if hashes else None


def is_plain_lora(config: PeftConfig) -> bool:
    """Say whether an adapter is LoRA as --adapter_name makes it, which stands on the pre-trained weights alone."""
    return config.peft_type == PeftType.LORA and not any(
        value not in (None, False, True, [], {})
        for name, value in vars(config).items()
        if name in ("init_lora_weights", "layer_replication", "trainable_token_indices") or name.endswith("_config")
        if name != "runtime_config"
    )


def seed_of(folder: Path | str | None, seed: int) -> int:
    """Return the seed from which a saved adapter's fixed tensors were drawn; `seed` where it is not known."""
    saved = (run_folder.read_json(Path(folder) / run_folder.FIXED_FILE) or {}) if folder is not None else {}
    return saved["seed"] if isinstance(saved.get("seed"), int) else seed


def check_fixed(model: nn.Module, folder: Path | str | None) -> None:
    """Raise UsageError where the adapter in a folder was trained on other fixed tensors than the model has here."""
    if folder is None or not isinstance(model, PeftModel):
        return
    if random_bases(model):
        check_random_bases(model, Path(folder))
        return
    fixed = fixed_tensors(model)
    saved = (run_folder.read_json(Path(folder) / run_folder.FIXED_FILE) or {}).get("sha256")
    if not isinstance(saved, dict):
        if any(".base_layer." not in name for name in fixed):
            logger.warning(f"{folder} has no {run_folder.FIXED_FILE}: what its adapter stands on can't be verified")
        return
    for name in sorted(saved.keys() | fixed.keys()):
        if name not in fixed or saved.get(name) != hash_tensors({name: fixed[name]}):
            method = model.active_peft_config.peft_type.value
            raise UsageError(
                f"{folder}: {name} is not what the adapter was trained on: {method} draws or computes it at every "
                "start, here otherwise than there, and with it the adapter would be wrong. Load it with the seed, the "
                "versions and the kind of machine that trained it"
            )


def check_random_bases(model: nn.Module, folder: Path) -> None:
    """Raise UsageError where the adapter in a folder was trained on other random bases than this machine drew.

    PEFT draws them from the key in bfloat16 or float16, as the machine offers, and does not check.
    """
    if model.active_peft_config.save_projection:
        return  # the bases themselves come with the adapter
    saved = run_folder.read_json(folder / run_folder.BASES_FILE)
    if saved is None:
        logger.warning(f"{folder} has no {run_folder.BASES_FILE}: its random bases can't be verified")
    elif saved["sha256"] != hash_tensors(random_bases(model)):
        raise UsageError(
            f"{folder}: this machine draws other random bases from key {saved['projection_prng_key']} than the one "
            "that trained the adapter, and with them it would be wrong. Train with --save_projection, or load it on a "
            "machine of the same kind"
        )


def has_paper_bases(folder: Path | str) -> bool:
    """Say whether the saved adapter in a folder was trained with --paper_bases."""
    return (run_folder.read_json(Path(folder) / run_folder.BASES_FILE) or {}).get("paper_bases") is True


def save_fixed(model: PeftModel, folder: Path, description: dict[str, Any] | None) -> None:
    """Write beside a saved adapter the hashes of what it stands on."""
    bases = random_bases(model)
    if bases:
        content = {"sha256": hash_tensors(bases), "projection_prng_key": model.active_peft_config.projection_prng_key}
        content |= {"paper_bases": True} if getattr(model, "paper_bases", False) else {}
        run_folder.write_json(folder / run_folder.BASES_FILE, content)
    if description is not None:
        run_folder.write_json(folder / run_folder.FIXED_FILE, description)


# What a checkpoint holds


def read_weights(where: str, folder: Path | str) -> dict[str, torch.Tensor]:
    """Read a saved adapter's tensors. Raises UsageError for a file that holds none, whatever is in it."""
    with as_usage_error(f"{where}: its weights can't be read"):  # a pickle's reader meets whatever is in the file
        weights = peft.load_peft_weights(str(folder), device="cpu")
    if not isinstance(weights, dict) or not all(torch.is_tensor(tensor) for tensor in weights.values()):
        raise UsageError(f"{where}: its weights are not tensors by name")
    return weights


def check_fits(
    where: str, weights: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], with_values: bool = False
) -> None:
    """Raise UsageError, naming the first tensor that is missing, of no use, of another shape, or of another value."""
    for name in sorted(weights.keys() | wanted.keys()):
        if name not in weights:
            raise UsageError(f"{where}: its weights lack {name}")
        if name not in wanted:
            raise UsageError(f"{where}: its weights hold {name}, which this model's adapter doesn't have")
        if weights[name].shape != wanted[name].shape:
            shapes = f"{tuple(weights[name].shape)}, this model's {tuple(wanted[name].shape)}"
            raise UsageError(f"{where}: the shape of its {name} is {shapes}")
        if with_values and not torch.equal(weights[name], wanted[name].cpu().to(weights[name].dtype)):
            raise UsageError(f"{where}: PEFT does not load {name} as it was saved")


def has_own_state(model: nn.Module) -> bool:
    """Say whether a checkpoint needs a file of ours, as what PEFT saves is less than what is trained."""
    if not isinstance(model, PeftModel):
        return False
    if is_adalora(model):
        return True
    saved = saved_storages(model)
    left_out = any(p.requires_grad and storage_of(p) not in saved for p in model.parameters())
    return left_out or bool(generators(model)) or bool(switches(model))


def generators(model: nn.Module) -> dict[str, torch.Generator]:
    """Return the random generators that a method keeps in its layers (PVeRA), by name."""
    found = {}
    for path, module in model.named_modules():
        values = own_attributes(module)
        found |= {f"{path}.{key}": value for key, value in values.items() if isinstance(value, torch.Generator)}
    return found


def switches(model: nn.Module) -> dict[str, dict[str, bool]]:
    """Return VeLoRA's notes, by layer, of whether the first batch has set an adapter's projection."""
    return {path: m.lora_velora_initialized for path, m in model.named_modules() if hasattr(m, VELORAS_SWITCH)}


def trained_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return all that training changes: parameters, buffers, generators, switches, AdaLoRA's memory and ranks."""
    saved = saved_storages(model)
    state = {f"parameter.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
    state |= {f"buffer.{name}": b.detach() for name, b in model.named_buffers() if storage_of(b) in saved}
    for path, values in switches(model).items():
        state |= {f"switch.{path}.{adapter}": torch.tensor(value) for adapter, value in values.items()}
    state |= {f"generator.{name}": generator.get_state() for name, generator in generators(model).items()}
    if is_adalora(model):
        for kind in ALLOCATOR:
            for name, tensor in getattr(model.base_model.rankallocator, kind).items():
                state[f"{kind}.{name}"] = tensor
        for name, kept in (model.active_peft_config.rank_pattern or {}).items():
            state[f"rank.{name}"] = torch.tensor(kept)
    return state


def save_trained_state(model: PeftModel, folder: Path) -> None:
    """Write trained_state.safetensors, where the model needs it."""
    if has_own_state(model):
        tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in trained_state(model).items()}
        with run_folder.atomic_write(folder / run_folder.TRAINED_FILE) as temporary:
            save_file(tensors, temporary)


def load_trained_state(model: PeftModel, folder: Path) -> None:
    """Load trained_state.safetensors. Raises UsageError where it is missing or doesn't fit."""
    state = read_trained_state(model, folder)
    tensors, states = dict(model.named_parameters()) | dict(model.named_buffers()), generators(model)
    if is_adalora(model):
        allocator, device = model.base_model.rankallocator, next(model.parameters()).device
        for kind in ALLOCATOR:
            memory = {name: tensor.to(device) for name, tensor in group(state, kind).items()}
            setattr(allocator, kind, memory)
        ranks = {name: kept.tolist() for name, kept in group(state, "rank").items()}
        model.active_peft_config.rank_pattern = ranks or None
    with torch.no_grad():
        for name, tensor in (group(state, "parameter") | group(state, "buffer")).items():
            tensors[name].copy_(tensor)
    for name, tensor in group(state, "switch").items():
        path, _, adapter = name.rpartition(".")
        switches(model)[path][adapter] = bool(tensor)
    for name, tensor in group(state, "generator").items():
        states[name].set_state(tensor)


def read_trained_state(model: PeftModel, folder: Path) -> dict[str, torch.Tensor]:
    """Read trained_state.safetensors. Raises UsageError where it is missing or doesn't fit the model."""
    path = folder / run_folder.TRAINED_FILE
    method = model.active_peft_config.peft_type.value
    with as_usage_error(f"{path}: {method} can't be resumed without it"):  # missing, as in older versions, or broken
        state = load_file(path)
    wanted = trained_state(model)
    for kind in ("parameter", "buffer"):
        check_fits(str(path), group(state, kind), group(wanted, kind))
    return state


def group(state: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """Return one kind of tensors of a trained state, by their names in the model."""
    return {name.removeprefix(f"{kind}."): tensor for name, tensor in state.items() if name.startswith(f"{kind}.")}


def check_checkpoint(model: nn.Module, checkpoint: Path | None) -> None:
    """Raise UsageError where a checkpoint doesn't fit the model's adapter, tensor by tensor."""
    if checkpoint is None or not isinstance(model, PeftModel):
        return
    if has_own_state(model):
        read_trained_state(model, checkpoint)
    else:
        where = f"checkpoint {checkpoint}"
        check_fits(where, read_weights(where, checkpoint), peft.get_peft_model_state_dict(model))
