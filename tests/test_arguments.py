"""arguments.py: defaults, a file of arguments, the manual, and flags that are refused."""

import dataclasses
import json
import math
import os
import re
import shutil

import pytest
from helpers import REPOSITORY, arguments, equal, saved_weights

import run_glue
from glue_peft.arguments import (
    OTHER_NAMES,
    RANGES,
    AdapterArguments,
    DataTrainingArguments,
    GlueTrainingArguments,
    ModelArguments,
    command_of,
    parse_arguments,
)
from glue_peft.errors import UsageError


def test_defaults_are_the_protocol_s_and_flags_override_them(tiny, tmp_path):
    """AdamW's epsilon, decay, warm-up and schedule."""
    *_, args = parse_arguments(arguments(tiny, tmp_path))
    assert (args.adam_epsilon, args.weight_decay, args.warmup_steps) == (1e-6, 0.0, 0.06)
    assert (args.lr_scheduler_type, args.report_to, args.save_strategy) == ("linear", [], "epoch")
    *_, args = parse_arguments(
        arguments(tiny, tmp_path, adam_epsilon=1e-8, weight_decay=0.1, warmup_steps=7, lr_scheduler_type="cosine")
    )
    assert (args.adam_epsilon, args.weight_decay, args.warmup_steps) == (1e-8, 0.1, 7)
    assert args.lr_scheduler_type == "cosine"


def test_one_json_file_instead_of_flags(tiny, tmp_path):
    """The same arguments either way."""
    argv = arguments(tiny, tmp_path / "flags")
    names = [token[2:] for token in argv if token.startswith("--")]
    values = {}
    for name in names:
        rest = argv[argv.index(f"--{name}") + 1 :]
        values[name] = rest[0] if rest and not rest[0].startswith("--") else True
    values |= {"rank": 4, "learning_rate": 0.005, "target_modules": ["query", "value"], "token": None}
    (tmp_path / "arguments.json").write_text(json.dumps(values))
    from_file = parse_arguments([str(tmp_path / "arguments.json")])
    from_flags = parse_arguments([*argv, "--target_modules", "query", "value"])
    for left, right in zip(from_file[:3], from_flags[:3], strict=True):
        assert left == right
    assert from_file[3].to_dict() == from_flags[3].to_dict()
    (tmp_path / "flags.json").write_text(json.dumps({"seed": 3, "target_modules": ["query", "value"], "token": "x"}))
    assert command_of([str(tmp_path / "flags.json")]) == ["--seed", "3", "--target_modules", "query", "value"]


def test_later_json_files_and_then_flags_win(tiny, tmp_path):
    """A shared file, one of this run's, and the command line; what is no file of JSON is named."""
    (tmp_path / "a.json").write_text(json.dumps({"seed": 1, "rank": 4, "fp16": True, "target_modules": ["query"]}))
    (tmp_path / "b.json").write_text(json.dumps({"rank": 8}))
    files = [str(tmp_path / name) for name in ("a.json", "b.json")]
    written = ["--seed", "1", "--rank", "8", "--fp16", "True", "--target_modules", "query"]
    assert command_of(files) == written
    assert command_of([*files, "--seed", "2", "--no_fp16"]) == [
        "--rank",
        "8",
        *written[-2:],
        "--seed",
        "2",
        "--no_fp16",
    ]
    *_, args = parse_arguments([files[0], *arguments(tiny, tmp_path / "out", rank=2, seed=3, fp16=False)])
    assert args.seed == 3
    with pytest.raises(UsageError, match="gone.json: not a readable file"):
        parse_arguments([files[0], str(tmp_path / "gone.json")])


@pytest.mark.parametrize(
    ("flags", "setting"),
    [
        ([], "auto"),
        (["--fast_adapters"], "auto"),
        (["--fast_adapters", "stacked"], "stacked"),
        (["--fast_adapters=off"], "off"),
        (["--no_fast_adapters"], "off"),
        (["--fast_adapters", "True"], "auto"),
        (["--fast_adapters=false"], "off"),
        ({"fast_adapters": True}, "auto"),
        ({"fast_adapters": False}, "off"),
        ({"fast_adapters": "stacked"}, "stacked"),
    ],
    ids=str,
)
def test_fast_adapters_are_read_as_they_were_written_before(tiny, tmp_path, flags, setting):
    """The flag was true or false, and is so in older argument files."""
    argv = arguments(tiny, tmp_path / "out")
    if isinstance(flags, dict):
        (tmp_path / "arguments.json").write_text(json.dumps(flags))
        argv = [str(tmp_path / "arguments.json"), *argv]
    else:
        argv += flags
    assert parse_arguments(argv)[2].fast_adapters == setting


def test_help_is_a_manual(capsys):
    """The module's docstring, then every flag with its default."""
    with pytest.raises(SystemExit) as stopped:
        run_glue.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert run_glue.__doc__.splitlines()[0] in text
    for fragment in ("--adapter_name {lora,randlora,vera,none}", "(default: 1e-06)", "(default: 0.06)", "--resume"):
        assert fragment in text
    classes = (ModelArguments, DataTrainingArguments, AdapterArguments)
    assert all(field.metadata["help"] for cls in classes for field in dataclasses.fields(cls))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"task_name": "mrcp"}, "--task_name mrcp: unknown task, allowed are cola, mnli"),
        ({"task_name": None, "dataset_path": None}, "exactly one of --task_name"),
        ({"adapter_name": "adalora"}, "--adapter_name.*'lora', 'randlora', 'vera', 'none'"),
        ({"rank": 0}, "--rank 0: must be at least 1"),
        ({"rank": "many"}, "--rank.*invalid int value"),
        ({"adapter_name": "randlora", "rank": 49}, "--rank 49: RandLoRA allows 1 to 48"),
        ({"adapter_name": "none"}, "--rank has no effect with none"),
        ({"adapter_name": "vera", "adapter_alpha": 3}, "--adapter_alpha has no effect with vera"),
        ({"adapter_dropout": 1.5}, "--adapter_dropout 1.5"),
        ({"adapter_config": "x.json"}, "give one of --adapter_config and --adapter_name"),
        ({"target_modules": ["query", "wrong"]}, "--target_modules.*wrong.*dense.*key.*query.*value"),
        ({"projection_prng_key": -1, "adapter_name": "vera"}, "--projection_prng_key -1: allowed are 0"),
        ({"seed": -1}, "--seed -1: allowed are 0 to 4294967295"),
        ({"seed": 2**32}, "--seed 4294967296: allowed are 0 to 4294967295"),
        ({"learning_rate": 0}, "--learning_rate 0.0: must be above 0"),
        ({"max_train_samples": 0}, "--max_train_samples 0"),
        ({"pad_to_multiple_of": 0}, "--pad_to_multiple_of 0: must be at least 1"),
        ({"pad_to_multiple_of": 8, "pad_to_max_length": True}, "--pad_to_multiple_of has no effect with --pad_to_max"),
        ({"pad_to_multiple_of": 48}, "--pad_to_multiple_of 48: .* 64 tokens would be padded to 96.* allow 64"),
        ({"eval_strategy": "epochs"}, "--eval_strategy.*invalid choice: 'epochs' .choose from 'no', 'steps', 'epoch'"),
        ({"optim": "adam"}, "--optim: invalid choice: 'adam'"),
        ({"do_train": None, "do_eval": None}, "at least one of --do_train"),
        ({"resume": True, "overwrite_output_dir": True}, "--resume and --overwrite_output_dir"),
        ({"wrong_flag": 1}, "unknown argument '--wrong_flag'"),
        ({"rank": 2, "seed": [1, 2]}, "unknown argument '2'; --seed before it takes no further value; `python"),
        ({"save_total_limit": 0}, "--save_total_limit 0"),
        ({"model_name_or_path": "no/such_model"}, "--model_name_or_path no/such_model"),
        ({"model_name_or_path": None}, "--model_name_or_path is required"),
        ({"dataset_path": "nowhere"}, "--dataset_path nowhere: no such folder"),
        ({"task_name": "wnli"}, "--dataset_path .*: no folder wnli in it; tasks there: cola, mnli, mrpc"),
        (
            {"adapter_path": "nowhere", "do_train": None, "adapter_name": None, "rank": None},
            "--adapter_path nowhere: no such folder",
        ),
        (
            {"model_name_or_path": "/no/such/model"},
            "--model_name_or_path /no/such/model: no such folder, ",
        ),
        ({"model_name_or_path": __file__}, f"--model_name_or_path {__file__}: is a file, not a folder"),
        ({"tokenizer_name": __file__}, f"--tokenizer_name {__file__}: is a file, not a folder"),
        ({"config_name": "/no/such/config"}, "--config_name /no/such/config: no such folder"),
        ({"config_name": REPOSITORY / "docs"}, "--config_name .*docs: .*model_type"),
        ({"tokenizer_name": REPOSITORY / "docs"}, "--tokenizer_name .*docs, its tokenizer: .*files are not there"),
        ({"output_dir": "a" * 300}, "--output_dir a*: can't be read: File name too long"),
        ({"model_revision": "v1"}, "--model_revision v1 has no effect on a folder"),
        ({"cache_dir": __file__}, f"--cache_dir {__file__}: can't be written"),
        ({"fsdp_config": "{"}, "--fsdp_config: its checkpoints"),
        ({"bf16_full_eval": True}, "--bf16_full_eval: the model itself would be rounded"),
        ({"adapter_path": "nowhere", "adapter_name": None, "rank": None}, "--adapter_path .*excludes --do_train"),
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size 0: must be at least 1"),
        ({"per_device_eval_batch_size": 10**12}, "--per_device_eval_batch_size 1000000000000: .*at most 2147483647"),
        ({"classifier_learning_rate": 0}, "--classifier_learning_rate 0.0: must be above 0"),
        ({"selection_fraction": 1}, "--selection_fraction 1.0: must be above 0 and below 1"),
        ({"selection_fraction": 0.001}, "--selection_fraction 0.001: 64 training rows can't be split so"),
        ({"selection_fraction": 0.1, "do_train": None}, "--selection_fraction has no effect without --do_train"),
        ({"selection_fraction": 0.1, "metric_for_best_model": "loss"}, "drop --metric_for_best_model"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "metric_for_best_model": "acc"},
            "--metric_for_best_model acc: allowed are loss, accuracy, f1, ",
        ),
        ({"load_best_model_at_end": True, "save_strategy": "no", "eval_strategy": "epoch"}, "load_best_model_at_end"),
        ({"task_name": None, "dataset_name": "own/data"}, "--dataset_path is a local copy of GLUE"),
        ({"validation_file": "x.csv"}, "--validation_file goes with --train_file, not with --task_name"),
        (
            {"task_name": None, "dataset_path": None, "train_file": "nowhere.csv", "validation_file": "nowhere.csv"},
            "--train_file nowhere.csv: no such file",
        ),
        (
            {"task_name": None, "dataset_path": None, "train_file": REPOSITORY / "x.csv", "validation_file": "x.csv"},
            "x.csv: no such file",
        ),
        (
            {"adapter_name": "randlora", "randlora_sparse": True, "randlora_very_sparse": True},
            "--randlora_sparse and --randlora_very_sparse contradict",
        ),
        ({"fast_adapters": "per_layer"}, "--fast_adapters per_layer: allowed are auto, stacked, off$"),
        ({"adapter_name": "none", "rank": None, "save_merged": "x"}, "--save_merged has no effect with"),
        ({"tokenizer_name": "no/such_tokenizer"}, "--tokenizer_name no/such_tokenizer"),
        ({"resume_from_checkpoint": "nowhere"}, "--resume_from_checkpoint nowhere: not a complete checkpoint"),
        ({"resume_from_checkpoint": "x", "do_train": None}, "--resume_from_checkpoint goes with --do_train"),
        ({"resume_from_checkpoint": "x", "resume": True}, "--resume_from_checkpoint goes without --resume"),
        ({"enable_jit_checkpoint": "True"}, "--enable_jit_checkpoint: a run that SIGTERM cuts short"),
        ({"auto_find_batch_size": "True"}, "--auto_find_batch_size: the batch size would not be"),
        ({"prediction_loss_only": "True"}, "--prediction_loss_only: no task's metric"),
        ({"dataloader_drop_last": "True"}, "--dataloader_drop_last: rows of the evaluation"),
        ({"save_only_model": "True"}, "--save_only_model: such a checkpoint can't be resumed"),
        ({"batch_eval_metrics": "True"}, "--batch_eval_metrics: a task's metric is of the entire set"),
        ({"save_merged": __file__}, "--save_merged .*: is a file or below one"),
        ({"save_merged": f"{__file__}/merged"}, "--save_merged .*: is a file or below one"),
        ({"save_merged": "a" * 300}, "--save_merged a*: can't be read: File name too long"),
        ({"save_merged": "/dev/null"}, "--save_merged /dev/null: is a pipe, socket or device, not a folder"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_flags_are_one_line_before_a_model_is_loaded(tiny, tmp_path, flags, message, monkeypatch):
    """It names the flag and what is allowed, and leaves no folder."""
    monkeypatch.setattr(run_glue, "load_model", lambda *args: pytest.fail("a model was loaded"))
    with pytest.raises(UsageError, match=message) as caught:
        run_glue.main(arguments(tiny, tmp_path / "out", **flags))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_a_run_reads_is_not_overwritten(run, tiny, tmp_path):
    """By --overwrite_output_dir or --save_merged: a model, an adapter, one of its checkpoints."""
    trained = run("trained", save_total_limit=1)
    before = saved_weights(trained)
    again = {"overwrite_output_dir": True, "adapter_name": None, "rank": None, "do_train": None}
    with pytest.raises(UsageError, match="--output_dir .*trained: holds --adapter_path"):
        run("trained", adapter_path=trained, **again)
    for source in (trained, trained / "checkpoint-4"):
        with pytest.raises(UsageError, match="--output_dir .*trained: holds --init_adapter_from"):
            run("trained", init_adapter_from=source, overwrite_output_dir=True)
    shutil.copytree(tiny / "roberta", tmp_path / "model")
    with pytest.raises(UsageError, match="--save_merged .*model: is --model_name_or_path itself"):
        run("other", model_name_or_path=tmp_path / "model", save_merged=tmp_path / "model")
    assert equal(before, saved_weights(trained))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--warmup_ratio", "0.1"], "--warmup_steps, which takes a share of all steps"),
        (["--evaluation_strategy", "epoch"], "--eval_strategy in its place"),
        (["--group_by_length"], "--train_sampling_strategy group_by_length"),
        (["--no_cuda"], "--use_cpu"),
        (["--lerning_rate", "1"], "is --learning_rate meant?"),
        (["stray"], "unknown argument 'stray'; --disable_tqdm before it takes no further value; `python"),
    ],
)
def test_unknown_flags_are_met_with_the_right_name(tiny, tmp_path, flags, message):
    """The new name of one that was renamed, else the nearest."""
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_arguments([*arguments(tiny, tmp_path), *flags])


@pytest.mark.parametrize("name", RANGES)
def test_numbers_outside_their_range_are_refused_by_flag(tiny, tmp_path, name):
    """Every number's least and most, a step beyond, and what is no number."""
    low, high, brackets = RANGES[name]
    wrong = [low - 1] * (low > -math.inf) + [low] * (brackets[0] == "]" and low > -math.inf)
    wrong += [high + 1] * (high < math.inf) + [high] * (brackets[1] == "[" and high < math.inf)
    is_float = isinstance(getattr(GlueTrainingArguments, name, None), float) or name.endswith(("rate", "alpha"))
    wrong += ["nan", "inf"] * is_float
    for value in wrong:
        with pytest.raises(UsageError, match=f"--{name} "):
            parse_arguments([*arguments(tiny, tmp_path, eval_strategy="steps"), f"--{name}={value}"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"report_to": "mlflow"}, "--report_to mlflow: is not installed, or unknown; allowed here are none, all"),
        ({"push_to_hub": True}, "--push_to_hub: HF_HUB_OFFLINE is set"),
        ({"fp16_full_eval": True}, "--fp16_full_eval: the model itself would be rounded"),
        ({"max_steps": 0}, "--max_steps 0: must be at least 1"),
        ({"label_names": "x"}, "--label_names: the labels are in the column"),
        ({"no_eval_do_concat_batches": True}, "--no_eval_do_concat_batches: a task's metric"),
        ({"dataset_config_name": "x"}, "--dataset_config_name goes with --dataset_name, not with --task_name"),
        ({"text_columns": "a"}, "--text_columns and --label_column are for --train_file and --dataset_name"),
        ({"do_train": None}, "lora without --do_train would evaluate an untrained adapter"),
    ],
)
def test_flags_that_would_break_or_mislead_are_refused(tiny, tmp_path, flags, message):
    """At the start."""
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_arguments(arguments(tiny, tmp_path, **flags))


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_said(tiny, tmp_path, kind):
    """And not that there is none."""
    path = tmp_path / "train.csv"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    flags = {"task_name": None, "dataset_path": None, "train_file": path, "validation_file": path}
    with pytest.raises(UsageError, match=f"--train_file {path}: is a {kind}"):
        parse_arguments(arguments(tiny, tmp_path, **flags))


def test_rows_that_nobody_asks_for_are_a_warning(tiny, tmp_path, caplog):
    """A limit or a test file without --do_predict is harmless, but may have been forgotten."""
    parse_arguments(arguments(tiny, tmp_path, max_predict_samples=3))
    assert "--max_predict_samples has no effect without --do_predict" in caplog.messages
    caplog.clear()
    parse_arguments(arguments(tiny, tmp_path, max_predict_samples=3, do_predict=True))
    assert not any("has no effect" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("--lora_r", "is --rank meant"),
        ("--lora_alpha", "is --adapter_alpha meant"),
        ("--lr", "is --learning_rate meant"),
        ("--batch-size", "is --per_device_train_batch_size meant"),
        ("--num_train_epoch", "is --num_train_epochs meant"),
        ("--warmup_ratio", "transformers 5 has --warmup_steps"),
        ("--foo", None),
        ("r", None),
    ],
)
def test_a_flag_of_another_name_gets_a_hint(tiny, tmp_path, word, hint):
    """Of other programs and older versions, or a misspelt one; none where nothing is alike."""
    with pytest.raises(UsageError, match="unknown argument") as caught:
        parse_arguments([*arguments(tiny, tmp_path), word])
    assert hint in str(caught.value) if hint else "meant" not in str(caught.value)


def test_hints_lead_to_flags(tiny, tmp_path):
    """Every one that is named exists, and no other name is a flag itself."""
    flags = {name for args in parse_arguments(arguments(tiny, tmp_path)) for name in vars(args)}
    assert set(OTHER_NAMES) <= flags
    assert not flags & {name for names in OTHER_NAMES.values() for name in names.split()}
