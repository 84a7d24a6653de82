"""What each flag of run_glue.py means to a run's identity and to its scores: asked by --resume, sweeps and tables.

Needs no torch: a sweep asks about its runs in milliseconds.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from glue_peft.run_folder import read_json

MAX_SEED = 2**32 - 1  # numpy's limit


class FlagKind(Enum):
    """What another value of a flag makes of a run."""

    NEUTRAL = "the same run: how it is logged, cached, resumed or computed"
    OUTPUT = "the same scores, but further files"
    NAMES_RUN = "another run of the same row of a table"
    HASHED_PATH = "a path; what it leads to is in the record, by hash or in full"
    PATH = "a path; compared by what it leads to"
    MOVES_SCORES = "another way of training or evaluating"


# Every flag that isn't here, nor begins with one of the prefixes, moves the scores.
FLAG_KINDS = {
    FlagKind.NEUTRAL: (
        "output_dir resume overwrite_output_dir resume_from_checkpoint overwrite_cache cache_dir token disable_tqdm "
        "report_to run_name project local_rank fast_adapters"
    ),
    FlagKind.OUTPUT: "do_predict max_predict_samples save_merged save_projection push_to_hub license",
    FlagKind.NAMES_RUN: "task_name seed data_seed projection_prng_key model_revision",
    FlagKind.HASHED_PATH: (
        "model_name_or_path dataset_path train_file validation_file test_file adapter_config adapter_path "
        "init_adapter_from"
    ),
    FlagKind.PATH: "config_name tokenizer_name",
}
NEUTRAL_PREFIXES = ("save_", "log_", "logging_", "hub_", "dataloader_", "ddp_", "trackio_")
_KIND_OF = {name: kind for kind, names in FLAG_KINDS.items() for name in names.split()}
# What a finished run can be asked for in addition, from what it saved; with the flags that say on which rows.
ADDABLE = ("do_eval", "do_predict", "save_merged")
GOES_WITH_ADDABLE = ("max_eval_samples", "max_predict_samples", "validation_file", "test_file")
PATH_KINDS = (FlagKind.HASHED_PATH, FlagKind.PATH)
# Flags that mean something for some adapters only; given with another one they are refused, not ignored.
ADAPTER_FLAGS = {
    "rank": ("lora", "randlora", "vera"),
    "target_modules": ("lora", "randlora", "vera"),
    "adapter_dropout": ("lora", "randlora", "vera"),
    "adapter_alpha": ("lora", "randlora"),
    "vera_d_initial": ("vera",),
    "randlora_sparse": ("randlora",),
    "randlora_very_sparse": ("randlora",),
    "paper_scaling": ("randlora",),
    "paper_bases": ("randlora",),
    "projection_prng_key": ("randlora", "vera"),
    "save_projection": ("randlora", "vera"),
}


def kind_of(flag: str) -> FlagKind:
    """Return what a flag (without its dashes) means."""
    default = FlagKind.NEUTRAL if flag.startswith(NEUTRAL_PREFIXES) else FlagKind.MOVES_SCORES
    return _KIND_OF.get(flag, default)


def given_flags(argv: list[str]) -> dict[str, object]:
    """Return the value of each flag on a command line, the last one if it stands there twice, to be compared."""
    given: dict[str, list[str]] = {}
    name = None
    for token in argv:
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            name = name.replace("-", "_")
            given[name] = [value] if equals else []
        elif name is not None:
            given[name].append(token)
    flags: dict[str, object] = {}
    for name, values in given.items():
        if name.startswith("no_") and not values:  # how argparse spells a flag whose default is true
            flags[name[3:]] = False
        else:
            flags[name] = comparable(values) if values else True
    return flags


def without(flags: list[str], *names: str) -> Iterator[str]:
    """Yield the words of a command but those of some flags."""
    is_left_out = False
    for word in flags:
        if word.startswith("--"):
            is_left_out = word[2:].partition("=")[0].replace("-", "_") in names
        if not is_left_out:
            yield word


def comparable(value: object) -> object:
    """Return a flag's value, written or recorded, as a number, truth value, list or text: 1e-4 is 0.0001."""
    if isinstance(value, list | tuple):
        return comparable(value[0]) if len(value) == 1 else [comparable(item) for item in value]
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(value)
    if value.startswith(("{", "[")):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value.rstrip("/") or value


def without_secrets(argv: list[str]) -> list[str]:
    """Return a command line without access tokens."""
    kept, secret = [], False
    for token in argv:
        if token.startswith("--"):
            secret = token.partition("=")[0].endswith("token")
        if not secret:
            kept.append(token)
    return kept


def flags_of(record: Mapping[str, Any] | None) -> tuple[dict[str, object], dict[str, object]]:
    """Return the flags that a record's run was given, and its resolved arguments; empty where they aren't there."""
    command, arguments = ((record or {}).get(name) for name in ("command", "arguments"))
    if not isinstance(command, list) or not all(isinstance(token, str) for token in command):
        command = []
    return given_flags(command), arguments if isinstance(arguments, dict) else {}


def differences(
    record: Mapping[str, Any], flags: list[str], free: frozenset[str] | set[str] = frozenset()
) -> list[str]:
    """Return in what the run of a record (run.json, command.json) differs from one with these flags, `free` aside.

    What only `flags` has is compared with the record's resolved arguments; what only the record's run was given
    counts as a difference, as the default is not known here. An adapter's config file counts by its content.
    """
    had, resolved = flags_of(record)
    wanted = given_flags(flags)
    found = []
    for name in [name for name in wanted | had if kind_of(name) is not FlagKind.NEUTRAL and name not in free]:
        old = had[name] if name in had else comparable(resolved.get(name))
        if name not in wanted:
            found.append(f"no --{name} (the folder has {shown(old)})")
        elif name == "adapter_config" and name in had and record.get("adapter_config_file") is not None:
            if read_json(Path(str(wanted[name]))) != record["adapter_config_file"]:
                found.append(f"--{name} {shown(wanted[name])} (the folder has another content of {shown(old)})")
        elif not is_same(name, wanted[name], old):
            known = name in had or name in resolved
            found.append(f"--{name} {shown(wanted[name])} (the folder has {shown(old) if known else 'none'})")
    return found


def additions(record: Mapping[str, Any], flags: list[str]) -> list[str]:
    """Return what these flags ask for and the run of a record did not do, and could still do from what it saved."""
    had, resolved = flags_of(record)
    wanted = given_flags(flags)
    done = {name: had.get(name, comparable(resolved.get(name))) for name in ADDABLE}
    return [name for name in ADDABLE if wanted.get(name) and not is_same(name, wanted[name], done[name])]


def is_same(name: str, value: object, old: object) -> bool:
    """Say whether two values of a flag mean the same; a path may be spelled in several ways."""
    paths = (kind_of(name) in PATH_KINDS or name == "save_merged") and isinstance(value, str) and isinstance(old, str)
    return value == old or (paths and os.path.realpath(str(value)) == os.path.realpath(str(old)))


def shown(value: object) -> str:
    """Return a flag's value as one would write it; a word that a sentence could hold, in quotes."""
    if value in ("no", "none", "all", ""):
        return repr(value)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
