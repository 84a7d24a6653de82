"""flags.py: what a flag means, and in which flags two runs differ."""

import dataclasses
import subprocess
import sys

import pytest
from helpers import REPOSITORY

from glue_peft.arguments import AdapterArguments, DataTrainingArguments, GlueTrainingArguments, ModelArguments
from glue_peft.flags import FLAG_KINDS, NEUTRAL_PREFIXES, FlagKind, differences, kind_of, without_secrets
from glue_peft.run_folder import read_json, write_json

FLAGS = ["--task_name", "cola", "--do_eval", "--learning_rate", "1e-4", "--fp16", "--rank", "4", "--resume"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (FLAGS, []),
        (["--rank=4", "--fp16", "True", "--learning-rate", "0.0001", "--do_eval", "--task_name=cola"], []),
        ([*FLAGS, "--rank", "8"], ["--rank 8 (the folder has 4)"]),
        ([*FLAGS, "--dataloader_num_workers", "2", "--disable_tqdm", "True", "--no_fast_adapters"], []),
        ([*FLAGS, "--no_unpad"], ["--unpad False (the folder has True)"]),  # other dropout masks
        ([*FLAGS, "--num_train_epochs", "10"], []),
        ([*FLAGS, "--num_train_epochs", "3"], ["--num_train_epochs 3 (the folder has 10.0)"]),
        ([*FLAGS, "--target_modules", "query", "value"], []),
        ([*FLAGS, "--target_modules", "query"], ["--target_modules query (the folder has query value)"]),
        ([*FLAGS, "--pad_to_max_length"], ["--pad_to_max_length True (the folder has False)"]),
        ([*FLAGS, "--no_trained"], []),
        ([*FLAGS, "--unheard_of", "1"], ["--unheard_of 1 (the folder has none)"]),
        ([flag for flag in FLAGS if flag != "--fp16"], ["no --fp16 (the folder has True)"]),
    ],
)
def test_differences_are_named_flag_by_flag(flags, expected):
    """However a flag is spelled; a default that is written out is no difference, nor a flag that moves no score."""
    arguments = {
        "num_train_epochs": 10.0,
        "target_modules": ["query", "value"],
        "pad_to_max_length": False,
        "trained": False,
        "unpad": True,
        "fp16": False,  # as resolved on a machine without a GPU: not what was asked for
    }
    assert differences({"command": FLAGS, "arguments": arguments}, flags) == expected


def test_a_record_without_its_command_is_compared_by_its_arguments():
    """As records from before there was a command in them."""
    record = {"arguments": {"rank": 4, "learning_rate": 1e-4, "seed": 1}}
    assert differences(record, ["--rank", "4", "--learning_rate", "1e-4"]) == []
    assert differences(record, ["--rank", "4", "--seed", "2"]) == ["--seed 2 (the folder has 1)"]


def test_every_flag_in_the_table_exists():
    """A flag that transformers renames would silently become one that moves the scores."""
    kinds = (ModelArguments, DataTrainingArguments, AdapterArguments, GlueTrainingArguments)
    known = {item.name for kind in kinds for item in dataclasses.fields(kind)} | {"local_rank"}  # of a launcher
    listed = [name for names in FLAG_KINDS.values() for name in names.split()]
    assert set(listed) <= known and len(set(listed)) == len(listed)
    for prefix in NEUTRAL_PREFIXES:
        assert any(name.startswith(prefix) for name in known), prefix


@pytest.mark.parametrize(
    ("flag", "kind"),
    [
        ("output_dir", FlagKind.NEUTRAL),
        ("fast_adapters", FlagKind.NEUTRAL),
        ("logging_steps", FlagKind.NEUTRAL),  # by its prefix
        ("save_steps", FlagKind.NEUTRAL),
        ("save_merged", FlagKind.OUTPUT),  # in spite of its prefix
        ("seed", FlagKind.NAMES_RUN),
        ("model_name_or_path", FlagKind.HASHED_PATH),
        ("tokenizer_name", FlagKind.PATH),
        ("learning_rate", FlagKind.MOVES_SCORES),
        ("unpad", FlagKind.MOVES_SCORES),  # other dropout masks
        ("unheard_of", FlagKind.MOVES_SCORES),
    ],
)
def test_what_a_flag_means(flag, kind):
    """What isn't known to be harmless moves the scores."""
    assert kind_of(flag) is kind


def test_it_needs_no_torch():
    """A sweep asks in milliseconds."""
    code = "import sys, glue_peft.flags; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_access_tokens_stay_out_of_a_command():
    """However they are written."""
    assert without_secrets(["--token", "hf_x", "--rank", "4", "--hub-token=hf_y", "--fp16"]) == [
        "--rank",
        "4",
        "--fp16",
    ]


def test_a_path_may_be_spelled_in_two_ways(tmp_path, monkeypatch):
    """Relative or absolute, or through a link; another file is a difference."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glue").mkdir()
    (tmp_path / "link").symlink_to("glue")
    for spelled in ("glue", "./glue/", str(tmp_path / "glue"), "link"):
        assert differences({"command": ["--dataset_path", "glue"]}, ["--dataset_path", spelled]) == []
    assert differences({"command": ["--dataset_path", "glue"]}, ["--dataset_path", "other"]) == [
        "--dataset_path other (the folder has glue)"
    ]


def test_an_adapter_config_is_compared_by_its_content(tmp_path):
    """A copy is the same; the same file with another value is not."""
    for name, rank in (("a.json", 4), ("b.json", 4), ("c.json", 8)):
        write_json(tmp_path / name, {"peft_type": "LORA", "r": rank})
    record = {"command": ["--adapter_config", str(tmp_path / "a.json")]}
    record["adapter_config_file"] = read_json(tmp_path / "a.json")
    for name, differs in (("a.json", False), ("b.json", False), ("c.json", True)):
        found = differences(record, ["--adapter_config", str(tmp_path / name)])
        assert bool(found) is differs
    write_json(tmp_path / "a.json", {"peft_type": "LORA", "r": 16})
    (found,) = differences(record, record["command"])
    assert found.startswith("--adapter_config ") and "the folder has another content of" in found
