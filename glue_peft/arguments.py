"""The flags of run_glue.py: Hugging Face's names and meanings, this protocol's defaults, and what is refused at once.

Everything here is decided from the command line alone, before data or a model is read.
"""

import argparse
import difflib
import itertools
import json
import logging
import math
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import huggingface_hub
import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import HubStrategy, SaveStrategy

from glue_peft.errors import OneLineParser, UsageError, fault_of_path, first_line, is_disk_full, is_out_of_memory
from glue_peft.flag_effects import METRIC_SCHEDULERS, check_effects, read_json_flags
from glue_peft.flags import ADAPTER_FLAGS, MAX_SEED, given_flags, without_secrets
from glue_peft.learning_rates import parse_rates
from glue_peft.methods import read_saved_config
from glue_peft.run_folder import CHECKPOINT, CLAIM, MERGED_FILE, read_json
from glue_peft.tasks import TASKS

MAX_BATCH = 2**31 - 1  # what a 32-bit index reaches

task_to_keys = {name: task.sentence_keys for name, task in sorted(TASKS.items())}  # Hugging Face's name
# Fields of TrainingArguments that would make a run's record untrue, and why.
UNUSABLE_FLAGS = {
    "enable_jit_checkpoint": "a run that SIGTERM cuts short would count as finished; without this it saves and stops",
    "auto_find_batch_size": "the batch size would not be the one that is recorded; out of memory names one that fits",
    "prediction_loss_only": "no task's metric could be computed",
    "batch_eval_metrics": "a task's metric is of the entire set, not of a batch",
    "dataloader_drop_last": "rows of the evaluation would be dropped too",
    "save_only_model": "such a checkpoint can't be resumed from",
    "fp16_full_eval": "the model itself would be rounded, and saved so",
    "bf16_full_eval": "the model itself would be rounded, and saved so",
    "label_names": "the labels are in the column `labels`",
    "include_for_metrics": "the metrics need predictions and labels alone",
    "deepspeed": "its checkpoints were never resumed here",
    "fsdp": "its checkpoints were never resumed here",
    "fsdp_config": "its checkpoints were never resumed here",
}
# The least and the most that a number may be; an open end of the range is in brackets that look outwards.
RANGES = {
    "seed": (0, MAX_SEED, "[]"),
    "data_seed": (0, MAX_SEED, "[]"),
    "per_device_train_batch_size": (1, MAX_BATCH, "[]"),
    "per_device_eval_batch_size": (1, MAX_BATCH, "[]"),
    "gradient_accumulation_steps": (1, MAX_BATCH, "[]"),
    "learning_rate": (0, math.inf, "]["),
    "classifier_learning_rate": (0, math.inf, "]["),
    "classifier_dropout": (0, 1, "[["),
    "num_train_epochs": (0, math.inf, "]["),
    "warmup_steps": (0, math.inf, "[["),
    "weight_decay": (0, math.inf, "[["),
    "adam_beta1": (0, 1, "[["),
    "adam_beta2": (0, 1, "[["),
    "adam_epsilon": (0, math.inf, "]["),
    "max_grad_norm": (0, math.inf, "[["),
    "label_smoothing_factor": (0, 1, "[["),
    "logging_steps": (0, math.inf, "]["),
    "save_steps": (0, math.inf, "]["),
    "eval_steps": (0, math.inf, "]["),
    "eval_delay": (0, math.inf, "[["),
    "eval_accumulation_steps": (1, MAX_BATCH, "[]"),
    "save_total_limit": (1, MAX_BATCH, "[]"),
    "selection_fraction": (0, 1, "]["),
    "max_train_samples": (1, math.inf, "[["),
    "max_eval_samples": (1, math.inf, "[["),
    "max_predict_samples": (1, math.inf, "[["),
    "max_seq_length": (1, MAX_BATCH, "[]"),
    "pad_to_multiple_of": (1, MAX_BATCH, "[]"),
    "rank": (1, MAX_BATCH, "[]"),
    "adapter_alpha": (0, math.inf, "]["),
    "adapter_dropout": (0, 1, "[["),
    "vera_d_initial": (-math.inf, math.inf, "]["),
    "projection_prng_key": (0, 2**64 - 1, "[]"),
    "dataloader_num_workers": (0, MAX_BATCH, "[]"),
    "dataloader_prefetch_factor": (1, MAX_BATCH, "[]"),
    "ddp_timeout": (1, MAX_BATCH, "[]"),
    "neftune_noise_alpha": (0, math.inf, "]["),
}
# Flags of older versions of transformers, and what they are called now.
RENAMED_FLAGS = {
    "warmup_ratio": "--warmup_steps, which takes a share of all steps below 1 as in --warmup_steps 0.06",
    "evaluation_strategy": "--eval_strategy",
    "evaluate_during_training": "--eval_strategy epoch",
    "group_by_length": "--train_sampling_strategy group_by_length",
    "no_cuda": "--use_cpu",
    "use_auth_token": "--token",
    "per_gpu_train_batch_size": "--per_device_train_batch_size",
    "per_gpu_eval_batch_size": "--per_device_eval_batch_size",
    "push_to_hub_model_id": "--hub_model_id",
    "push_to_hub_token": "--hub_token",
    "fp16_backend": "nothing: autocast alone is left",
    "half_precision_backend": "nothing: autocast alone is left",
    "save_safetensors": "nothing: weights are always saved as safetensors",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
    "use_mps_device": "nothing: the device is found by itself",
    "tpu_num_cores": "nothing: a launcher's affair",
}
# What other programs call the same.
OTHER_NAMES = {
    "rank": "r lora_r lora_rank lora_dim randlora_r vera_r adapter_rank",
    "adapter_alpha": "alpha lora_alpha randlora_alpha",
    "adapter_dropout": "dropout lora_dropout randlora_dropout vera_dropout",
    "target_modules": "lora_target_modules lora_target target",
    "adapter_name": "adapter adapter_type method peft_method peft_type use_lora",
    "adapter_config": "peft_config lora_config",
    "adapter_path": "lora_path peft_path lora_weights",
    "vera_d_initial": "d_initial",
    "projection_prng_key": "prng_key",
    "classifier_learning_rate": "classifier_lr head_lr cls_lr cls_learning_rate head_learning_rate",
    "learning_rate": "lr",
    "num_train_epochs": "epochs num_epochs n_epochs train_epochs",
    "per_device_train_batch_size": "batch_size bs train_batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "gradient_accumulation_steps": "grad_accum accumulation_steps grad_acc_steps",
    "max_seq_length": "max_length max_len max_seq_len max_sequence_length seq_len",
    "model_name_or_path": "model model_name model_path base_model pretrained_model_name_or_path",
    "task_name": "task glue_task",
    "dataset_path": "data_dir data_path glue_dir dataset_dir",
    "text_columns": "text_column_name text_column_names text_column",
    "label_column": "label_column_name",
    "max_predict_samples": "max_test_samples",
    "lr_scheduler_type": "scheduler lr_scheduler scheduler_type",
    "optim": "optimizer",
    "weight_decay": "wd",
    "warmup_steps": "warmup warmup_proportion",
    "save_merged": "merge merge_adapter merged_output_dir",
    "output_dir": "output out_dir output_folder",
    "seed": "random_seed",
}
# --fast_adapters was true or false before, and is so in older records and argument files.
FAST_ADAPTERS = {"auto": "auto", "stacked": "stacked", "off": "off", "true": "auto", "false": "off"}

logger = logging.getLogger("run_glue")


@dataclass
class ModelArguments:
    """Which pre-trained model to fine-tune, and how to load it."""

    _argument_group_name: ClassVar[str] = "Model"
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Pre-trained model: a folder, or a model id of the Hugging Face hub."}
    )
    config_name: str | None = field(default=None, metadata={"help": "Config, if not the model's own."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, if not the model's own."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloaded models and data are kept."})
    use_fast_tokenizer: bool = field(default=True, metadata={"help": "Use the tokenizers library where it can."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the hub."})
    token: str | None = field(
        default=None, metadata={"help": "Access token of the hub (default: the one from `hf auth login`)."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run model code that comes with a hub repository. Only for code you read."}
    )
    classifier_dropout: float | None = field(
        default=None, metadata={"help": "Dropout in front of the head. Default: the model's own."}
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Draw a new head where the saved one has another number of labels."}
    )


@dataclass
class DataTrainingArguments:
    """Which data to train and evaluate on, and how to prepare them."""

    _argument_group_name: ClassVar[str] = "Data"
    task_name: str | None = field(default=None, metadata={"help": "GLUE task: " + ", ".join(task_to_keys) + "."})
    dataset_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder with a local copy of nyu-mll/glue in the hub's layout, FOLDER/<task>/<split>-*.parquet. "
            "With it no network is needed."
        },
    )
    dataset_name: str | None = field(default=None, metadata={"help": "A data set of the hub, instead of a GLUE task."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of --dataset_name."})
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "CSV or JSON file, read as text, with a column of labels (numbers that are not all whole: "
            "regression) and one or two columns of texts."
        },
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same for --do_eval."})
    test_file: str | None = field(default=None, metadata={"help": "The same for --do_predict; needs no labels."})
    text_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "One or two columns with the texts, of --train_file or --dataset_name. Default: sentence1 and "
            "sentence2, else the only ones that hold texts."
        },
    )
    label_column: str = field(
        default="label", metadata={"help": "Column with the labels, of --train_file or --dataset_name."}
    )
    max_seq_length: int = field(default=128, metadata={"help": "Truncate inputs longer than this number of tokens."})
    pad_to_max_length: bool = field(
        default=False, metadata={"help": "Pad every row to --max_seq_length, not to the longest of its batch."}
    )
    pad_to_multiple_of: int | None = field(
        default=None,
        metadata={
            "help": "Pad a batch to a multiple of so many tokens. Default: 8 with --fp16 or --bf16, else 1. 32 leaves "
            "--torch_compile few shapes."
        },
    )
    unpad: bool = field(
        default=True,
        metadata={"help": "Run BERT's and RoBERTa's encoders on real tokens alone: the same results."},
    )
    overwrite_cache: bool = field(default=False, metadata={"help": "Tokenise again instead of using the cache."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only the first N training rows."})
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Use only the first N rows of each validation set."}
    )
    max_predict_samples: int | None = field(
        default=None, metadata={"help": "Use only the first N rows of each test set."}
    )

    @property
    def source(self) -> str:
        """Where the data come from, for messages."""
        return self.dataset_path or self.task_name or self.dataset_name or self.train_file


@dataclass
class AdapterArguments:
    """Which parameter-efficient method adapts the encoder."""

    _argument_group_name: ClassVar[str] = "Adapter"
    adapter_name: Literal["lora", "randlora", "vera", "none"] = field(
        default="none", metadata={"help": "lora, randlora, vera, or none: full fine-tuning."}
    )
    rank: int = field(default=16, metadata={"help": "Rank of the update (RandLoRA: of each of its bases)."})
    target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the linear layers to adapt. Default: all of the encoder, none of the head (BERT's and "
            "RoBERTa's: query key value dense)."
        },
    )
    adapter_alpha: float | None = field(
        default=None, metadata={"help": "alpha of LoRA and RandLoRA, which scale by alpha / rank. Default: 2 x rank."}
    )
    adapter_dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's input."})
    vera_d_initial: float = field(default=0.1, metadata={"help": "Initial value of VeRA's d vectors."})
    randlora_sparse: bool = field(default=False, metadata={"help": "RandLoRA: ternary bases, two thirds zero."})
    randlora_very_sparse: bool = field(
        default=False, metadata={"help": "RandLoRA: ternary bases, 1 - 2/sqrt(d) zero."}
    )
    paper_scaling: bool = field(
        default=False,
        metadata={
            "help": "RandLoRA: scale by alpha / (rank sqrt(n)), n bases, as the authors' code, not alpha / rank."
        },
    )
    paper_bases: bool = field(
        default=False,
        metadata={"help": "RandLoRA: draw the random bases in float32, as the authors' code, not as PEFT does."},
    )
    projection_prng_key: int | None = field(
        default=None,
        metadata={
            "help": "Key from which RandLoRA and VeRA draw their random bases. Default: int(exp(seed) * 3.1415), the "
            "authors' formula, up to seed 43, where it reaches 2^64; from seed 44 on 2^32 + seed."
        },
    )
    save_projection: bool = field(
        default=False, metadata={"help": "Save the random bases themselves (up to gigabytes), not only their hash."}
    )
    fast_adapters: str = field(
        default="auto",
        metadata={
            "nargs": "?",
            "const": "auto",
            "help": "Compute RandLoRA, VeRA and LoRA layers in weight space, all layers of a shape at once, with the "
            "same results: auto (where it takes less on this device), stacked (always, as on a GPU), off (never).",
        },
    )
    adapter_config: str | None = field(
        default=None,
        metadata={"help": "JSON file with the PEFT config of any other method, in place of --adapter_name."},
    )
    adapter_path: str | None = field(
        default=None, metadata={"help": "Folder of a saved adapter to evaluate or predict with, without training."}
    )
    init_adapter_from: str | None = field(
        default=None,
        metadata={
            "help": "Folder of a saved adapter to start from, with a new head. The adapter's flags must agree with "
            "it; VeRA's and RandLoRA's random bases come along."
        },
    )
    save_merged: str | None = field(
        default=None, metadata={"help": "Folder for a plain model with the adapter merged in, to load without PEFT."}
    )


@dataclass
class GlueTrainingArguments(TrainingArguments):
    """TrainingArguments with the protocol's defaults, and what a run does with an output folder that is in use."""

    _argument_group_name: ClassVar[str] = "Training (transformers.TrainingArguments)"
    resume: bool = field(
        default=False,
        metadata={"help": "Continue from the last complete checkpoint in --output_dir; a finished run is left alone."},
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start afresh in place of the run that --output_dir holds."}
    )
    classifier_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the head. Default: --learning_rate."}
    )
    learning_rates: list[str] | None = field(
        default=None,
        metadata={
            "help": "Learning rates by name: PATTERN=RATE for the trained parameters whose names a regular expression "
            "fits, head=RATE for the head, as in lora_B=1.6e-3 head=4e-3. Default: --learning_rate."
        },
    )
    selection_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Hold out this share of the training rows, stratified by label and drawn by --seed (rows that "
            "repeat or contain one another's texts together), evaluate on it too, and report the validation score of "
            "the epoch that is best on it. Turns on --eval_strategy epoch. Without --do_eval the validation set is "
            "not read."
        },
    )
    save_eval_predictions: bool = field(
        default=True,
        metadata={
            "help": "Write eval_predictions.npz: the logits of every validation row, of the last, the best and the "
            "selected epoch."
        },
    )
    adam_epsilon: float = field(default=1e-6, metadata={"help": "AdamW's epsilon."})
    warmup_steps: float = field(
        default=0.06, metadata={"help": "Steps of linear warm-up; below 1, the share of all steps."}
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "The batch size per device for evaluation."})
    save_strategy: SaveStrategy | str = field(
        default="epoch", metadata={"help": "When to save a checkpoint: 'no', 'epoch', 'steps' or 'best'."}
    )
    save_total_limit: int | None = field(
        default=None,
        metadata={
            "help": "How many checkpoints are kept, after the run too. Unless given: the last one (and the best "
            "one with --load_best_model_at_end) while the run goes on, none once it is finished."
        },
    )
    disable_tqdm: bool | None = field(
        default=None, metadata={"help": "No progress bars. Default: bars on a terminal, none in a file."}
    )
    logging_steps: float = field(
        default=0.05,
        metadata={"help": "Log loss and learning rate every so many steps; below 1, a share of all steps."},
    )
    license: str | None = field(
        default=None,
        metadata={"help": "License for the model card: an identifier of the hub, such as mit."},
    )
    hub_strategy: HubStrategy | str = field(
        default="end", metadata={"help": "With --push_to_hub a run is uploaded when it is finished: 'end'."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Always off: a loss that is NaN or infinite ends the run."}
    )

    def __post_init__(self) -> None:
        """Settle what the machine decides, before the parent's checks."""
        for name, reason in UNUSABLE_FLAGS.items():
            if getattr(self, name):
                raise UsageError(f"--{name}: {reason}")
        check_ranges(self)  # the parent's messages don't name the flag
        read_json_flags(self)
        self.keep_checkpoints = self.save_total_limit is not None
        # Of the best and the last checkpoint Trainer would delete one at the end, before the run's record is written.
        if self.save_total_limit is None:
            self.save_total_limit = 2 if self.load_best_model_at_end else 1
        if self.greater_is_better is None and self.metric_for_best_model in ("mse", "eval_mse"):
            self.greater_is_better = False  # the parent knows it of losses alone
        # The parent would put the loss there.
        needs_metric = self.load_best_model_at_end or self.save_strategy == "best"
        self.follows_task_metric = self.metric_for_best_model is None and (
            needs_metric or self.lr_scheduler_type in METRIC_SCHEDULERS
        )
        self.logging_nan_inf_filter = False  # it would ask a GPU for every step's loss, and hide an evaluation's
        if self.ddp_broadcast_buffers is None:
            self.ddp_broadcast_buffers = False  # the random bases are frozen, and the same in every process
        if self.selection_fraction is not None and self.eval_strategy == "no":
            self.eval_strategy = "epoch"
        do_eval = self.do_eval
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.cuda.is_available():
            self.use_cpu = True  # otherwise each process would train alone, into the same folder
        for precision in ("fp16", "bf16"):
            if getattr(self, precision) and not supports_precision(precision, self.use_cpu):
                logger.warning(f"--{precision}: this machine has no device for it; training in float32.")
                setattr(self, precision, False)
        if self.disable_tqdm is None:
            self.disable_tqdm = not sys.stderr.isatty()
        super().__post_init__()
        if self.selection_fraction is not None:
            self.do_eval = do_eval  # the parent sets it with --eval_strategy: here the held-out rows can do
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # there is nowhere to pin it for, and torch would warn at every loader
        if self.n_gpu > 1:
            logger.warning(f"{self.n_gpu} GPUs are visible and no launcher was used: training on the first.")
            self._n_gpu = 1

    def __getstate__(self) -> dict[str, Any]:
        """Leave access tokens out of what is pickled: Trainer saves this beside every model, as training_args.bin."""
        return {name: None if name.endswith("token") else value for name, value in vars(self).items()}


class GlueArgumentParser(OneLineParser, HfArgumentParser):
    """HfArgumentParser whose errors are one line, without three screens of usage."""


class ManualFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the manual and shows every flag's default."""


def parse_arguments(
    argv: list[str], manual: str | None = None
) -> tuple[ModelArguments, DataTrainingArguments, AdapterArguments, GlueTrainingArguments]:
    """Parse and check the flags and the JSON files of flags before them; --help starts with `manual`.

    Raises UsageError, naming the flag and its allowed values.
    """
    parser = GlueArgumentParser(
        (ModelArguments, DataTrainingArguments, AdapterArguments, GlueTrainingArguments),
        description=manual,
        formatter_class=ManualFormatter,
        allow_abbrev=False,
    )
    off = {"action": "store_const", "const": "off", "default": argparse.SUPPRESS}
    parser.add_argument("--no_fast_adapters", dest="fast_adapters", help="The same as --fast_adapters off.", **off)
    argv = written_out(argv)
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    except UsageError:
        raise
    except Exception as error:  # what TrainingArguments itself refuses, in whichever way
        if is_out_of_memory(error) or is_disk_full(error):
            raise
        raise UsageError(" ".join(str(error).split()) or type(error).__name__) from error
    if unknown:
        raise UsageError(unknown_argument(unknown[0], argv, parser))
    model_args, data_args, adapter_args, training_args = parsed
    given = set(given_flags(argv))
    for args in parsed:
        check_ranges(args)
    check_training_arguments(training_args, given)
    check_effects(training_args, given)
    check_data_arguments(data_args, training_args)
    warn_of_unused_rows(data_args, training_args)
    check_adapter_arguments(adapter_args, training_args, given)
    find_model(model_args, adapter_args, given)
    check_folders(model_args, adapter_args, training_args)
    return model_args, data_args, adapter_args, training_args


def unknown_argument(word: str, argv: list[str], parser: argparse.ArgumentParser) -> str:
    """Return what to say of a word that is no flag: its new name, the flag that it resembles or that it follows."""
    name = word.lstrip("-").partition("=")[0].replace("-", "_")
    if name in RENAMED_FLAGS:
        return f"unknown argument {word!r}: transformers 5 has {RENAMED_FLAGS[name]} in its place"
    hint = ""
    if word.startswith("-"):
        flags = [flag.lstrip("-") for action in parser._actions for flag in action.option_strings]
        alike = [flag for flag, others in OTHER_NAMES.items() if name in others.split()]
        alike = alike or difflib.get_close_matches(name, flags, n=1, cutoff=0.75)
        hint = f"is --{alike[0]} meant? " if alike else ""
    else:
        values = [at for at, found in enumerate(argv) if found == word and not argv[max(at - 1, 0)].startswith("--")]
        before = [flag for flag in argv[: (values or [0])[0]] if flag.startswith("--")]
        hint = f"{before[-1].partition('=')[0]} before it takes no further value; " if before else ""
    return f"unknown argument {word!r}; {hint}`python run_glue.py --help` lists the flags"


def written_out(argv: list[str]) -> list[str]:
    """Return a command line with the JSON files of arguments at its start as flags: all are parsed and checked alike.

    Of several files the later one wins, and a flag on the command line over all of them. Raises UsageError.
    """
    files = list(itertools.takewhile(lambda word: word.endswith(".json") and not word.startswith("-"), argv))
    content: dict[str, Any] = {}
    for file in files:
        read = read_json(Path(file))
        if read is None:
            raise UsageError(f"{file}: not a readable file with one JSON object of arguments")
        content |= read
    given = given_flags(argv[len(files) :])
    written = []
    for name, value in content.items():
        if value is None or name in given:
            continue
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        written += [f"--{name}", *map(str, values)]
    return written + argv[len(files) :]


def command_of(argv: list[str]) -> list[str]:
    """Return the flags as given, those of JSON files written out, without access tokens."""
    return without_secrets(written_out(argv))


def supports_precision(precision: str, use_cpu: bool) -> bool:
    """Say whether this machine can train in `fp16` or `bf16`; a CPU only in bf16, and only when it is asked for."""
    if use_cpu or not torch.accelerator.is_available():
        return precision == "bf16" and use_cpu
    return precision == "fp16" or not torch.cuda.is_available() or torch.cuda.is_bf16_supported()


def check_training_arguments(args: GlueTrainingArguments, given: set[str]) -> None:
    """Raise UsageError for training flags that no run could use."""
    if not (args.do_train or args.do_eval or args.do_predict):
        raise UsageError("nothing to do: give at least one of --do_train, --do_eval, --do_predict")
    parse_rates(args.learning_rates, args.classifier_learning_rate)
    if args.resume_from_checkpoint is not None:
        for name, wanted in (("do_train", True), ("resume", False), ("overwrite_output_dir", False)):
            if getattr(args, name) is not wanted:
                raise UsageError(f"--resume_from_checkpoint goes {'with' if wanted else 'without'} --{name}")
    if args.resume and args.overwrite_output_dir:
        raise UsageError("--resume and --overwrite_output_dir contradict each other: give one of them")
    if not args.eval_do_concat_batches:
        raise UsageError("--no_eval_do_concat_batches: a task's metric is of the entire set, not of a batch")
    if args.max_steps != -1 and args.max_steps < 1:
        raise UsageError(f"--max_steps {args.max_steps}: must be at least 1, or -1 for --num_train_epochs")
    check_integrations(args)
    if args.selection_fraction is not None:
        if not args.do_train:
            raise UsageError("--selection_fraction has no effect without --do_train")
        if "metric_for_best_model" in given:
            raise UsageError("--selection_fraction picks the epoch by the task's metric: drop --metric_for_best_model")


def check_ranges(args: object) -> None:
    """Raise UsageError for a number that is outside its flag's range, or no number."""
    for name, (low, high, brackets) in RANGES.items():
        value = getattr(args, name, None)
        if (
            value is None
            or (low < value < high)
            or (value == low and brackets[0] == "[")
            or (value == high and brackets[1] == "]")
        ):
            continue
        if brackets == "[]" and high != MAX_BATCH:
            raise UsageError(f"--{name} {value}: allowed are {low} to {high}")
        least = [] if low == -math.inf else [f"{'at least' if brackets[0] == '[' else 'above'} {low}"]
        most = (
            []
            if high == MAX_BATCH and not value > high
            else ["finite"]
            if high == math.inf
            else [f"{'at most' if brackets[1] == ']' else 'below'} {high}"]
        )
        raise UsageError(f"--{name} {value}: must be {' and '.join(least + most)}")


def check_integrations(args: GlueTrainingArguments) -> None:
    """Raise UsageError where --report_to names a tracker that isn't installed, or --push_to_hub has no network."""
    there = get_available_reporting_integrations()
    for tracker in args.report_to:
        if tracker not in there:
            allowed = ", ".join(["none", "all", *there])
            raise UsageError(f"--report_to {tracker}: is not installed, or unknown; allowed here are {allowed}")
    if args.hub_strategy != HubStrategy.END:
        raise UsageError(
            f"--hub_strategy {HubStrategy(args.hub_strategy).value}: allowed is end, as checkpoints stay here"
        )
    if args.push_to_hub and huggingface_hub.constants.HF_HUB_OFFLINE:
        raise UsageError("--push_to_hub: HF_HUB_OFFLINE is set, so nothing can be uploaded")


def check_data_arguments(data_args: DataTrainingArguments, training_args: GlueTrainingArguments) -> None:
    """Raise UsageError for data flags that contradict each other or name files that are not there."""
    if data_args.task_name is not None:
        data_args.task_name = data_args.task_name.lower()
        if data_args.task_name not in task_to_keys:
            raise UsageError(f"--task_name {data_args.task_name}: unknown task, allowed are {', '.join(task_to_keys)}")
    sources = [name for name in ("task_name", "dataset_name", "train_file") if getattr(data_args, name) is not None]
    if len(sources) != 1:
        raise UsageError(
            "give exactly one of --task_name (a GLUE task), --dataset_name (a hub data set) and --train_file (CSV or "
            "JSON; it names the labels, so --do_eval and --do_predict need it too)"
        )
    if data_args.dataset_path is not None and data_args.task_name is None:
        raise UsageError("--dataset_path is a local copy of GLUE: it needs --task_name")
    if data_args.dataset_path is not None:
        check_dataset_path(data_args.dataset_path, data_args.task_name)
    if data_args.dataset_config_name is not None and data_args.dataset_name is None:
        raise UsageError(f"--dataset_config_name goes with --dataset_name, not with --{sources[0]}")
    if data_args.task_name is not None and (data_args.text_columns or data_args.label_column != "label"):
        raise UsageError("--text_columns and --label_column are for --train_file and --dataset_name: GLUE's are known")
    if data_args.pad_to_max_length and data_args.pad_to_multiple_of is not None:
        raise UsageError("--pad_to_multiple_of has no effect with --pad_to_max_length: give one of them")
    columns = data_args.text_columns
    if columns is not None and not (
        1 <= len(set(columns)) == len(columns) <= 2 and data_args.label_column not in columns
    ):
        raise UsageError(f"--text_columns {' '.join(columns)}: allowed are one or two columns beside the label's")
    if data_args.train_file is None:
        for name in ("validation_file", "test_file"):
            if getattr(data_args, name) is not None:
                raise UsageError(f"--{name} goes with --train_file, not with --{sources[0]}")
        return
    wanted = {"train_file": True, "validation_file": training_args.do_eval, "test_file": training_args.do_predict}
    for name, needed in wanted.items():
        path = getattr(data_args, name)
        if path is None and needed:
            raise UsageError(f"--{name} is needed for --do_{'eval' if name == 'validation_file' else 'predict'}")
        if path is not None and Path(path).suffix not in (".csv", ".json"):
            raise UsageError(f"--{name} {path}: must be a .csv or a .json file")
        fault = fault_of_path(path, "file") if path is not None else None
        if fault is not None:
            raise UsageError(f"--{name} {path}: {fault}")


def check_dataset_path(folder: str, task_name: str) -> None:
    """Raise UsageError where a local copy of GLUE lacks the task."""
    fault = fault_of_path(folder, "folder")
    if fault is not None:
        raise UsageError(f"--dataset_path {folder}: {fault}")
    there = [name for name in sorted(os.listdir(folder)) if name in task_to_keys]
    if task_name not in there:
        raise UsageError(
            f"--dataset_path {folder}: no folder {task_name} in it; tasks there: {', '.join(there) or 'none'}"
        )


def warn_of_unused_rows(data_args: DataTrainingArguments, training_args: GlueTrainingArguments) -> None:
    """Say which limits and files belong to what the run isn't asked for: harmless, but maybe forgotten."""
    for step, names in (
        ("do_train", ("max_train_samples",)),
        ("do_eval", ("max_eval_samples",)),
        ("do_predict", ("max_predict_samples", "test_file")),
    ):
        for name in names:
            if getattr(data_args, name) is not None and not getattr(training_args, step):
                logger.warning(f"--{name} has no effect without --{step}")


def check_adapter_arguments(
    adapter_args: AdapterArguments, training_args: GlueTrainingArguments, given: set[str]
) -> None:
    """Raise UsageError for adapter flags that contradict each other or would have no effect."""
    setting = FAST_ADAPTERS.get(adapter_args.fast_adapters.lower())
    if setting is None:
        raise UsageError(f"--fast_adapters {adapter_args.fast_adapters}: allowed are auto, stacked, off")
    adapter_args.fast_adapters = setting
    ways = given & {"adapter_name", "adapter_config", "adapter_path"}
    if len(ways) > 1:
        raise UsageError(f"give one of {' and '.join(f'--{way}' for way in sorted(ways))}")
    adapter = next(iter(ways), "adapter_name")
    adapter = adapter_args.adapter_name if adapter == "adapter_name" else f"--{adapter}"
    for name, adapters in ADAPTER_FLAGS.items():
        if name in given and adapter not in adapters:
            raise UsageError(
                f"--{name} has no effect with {adapter}: it is for --adapter_name {' or '.join(adapters)}"
            )
    check_saved_adapters(adapter_args, adapter, training_args.do_train)
    if not training_args.do_train and adapter not in ("none", "--adapter_path"):
        raise UsageError(
            f"{adapter} without --do_train would evaluate an untrained adapter: give --do_train, or a saved one's "
            "folder as --adapter_path"
        )
    for name in ("randlora_sparse", "randlora_very_sparse", "save_projection"):
        if adapter_args.paper_bases and getattr(adapter_args, name):
            raise UsageError(
                f"--paper_bases excludes --{name}: they are dense, and PEFT would round saved ones when it loads them"
            )
    if adapter_args.randlora_sparse and adapter_args.randlora_very_sparse:
        raise UsageError("--randlora_sparse and --randlora_very_sparse contradict each other: give one of them")
    if adapter_args.save_merged is not None:
        if adapter == "none":
            raise UsageError("--save_merged has no effect with --adapter_name none: the saved model is plain already")
        merged = Path(os.path.realpath(adapter_args.save_merged))
        if merged == Path(os.path.realpath(training_args.output_dir)):
            raise UsageError("--save_merged: needs a folder of its own, not --output_dir")
        if any(os.path.isfile(path) for path in (merged, *merged.parents)):
            raise UsageError(f"--save_merged {adapter_args.save_merged}: is a file or below one, not a folder")


def find_model(model_args: ModelArguments, adapter_args: AdapterArguments, given: set[str]) -> None:
    """Take the model over from --adapter_path where no flag names it. Raises UsageError where none could be loaded."""
    if model_args.model_name_or_path is None:
        if adapter_args.adapter_path is None:
            raise UsageError("--model_name_or_path is required: a folder or a model id of the Hugging Face hub")
        saved = read_saved_config(f"--adapter_path {adapter_args.adapter_path}", adapter_args.adapter_path)
        if not isinstance(saved.base_model_name_or_path, str):
            raise UsageError(f"--adapter_path {adapter_args.adapter_path} names no model: give --model_name_or_path")
        model_args.model_name_or_path = saved.base_model_name_or_path
        if saved.revision and "model_revision" not in given:
            model_args.model_revision = saved.revision
    sources = {name: getattr(model_args, name) for name in ("model_name_or_path", "config_name", "tokenizer_name")}
    for name, source in sources.items():
        if source is not None:
            check_source(f"--{name} {source}", source, name == "config_name")
    if "model_revision" in given and model_args.model_revision != "main":
        if all(source is None or os.path.exists(source) for source in sources.values()):
            raise UsageError(
                f"--model_revision {model_args.model_revision} has no effect on a folder: it is for models of the hub"
            )


def check_source(where: str, source: str, may_be_file: bool) -> None:
    """Raise UsageError unless a model's source is a folder with files, or could be a model id of the hub.

    A config may also be a file of its own.
    """
    fault = fault_of_path(source, "folder")
    if fault == "no such folder":
        try:
            huggingface_hub.utils.validate_repo_id(source)
        except huggingface_hub.errors.HFValidationError:
            raise UsageError(f"{where}: no such folder, and no model id of the Hugging Face hub") from None
    elif fault is not None and not (may_be_file and fault_of_path(source, "file") is None):
        raise UsageError(f"{where}: {fault}")
    elif fault is None and not os.listdir(source):
        raise UsageError(f"{where}: the folder is empty")


def is_utf8(text: str) -> bool:
    """Say whether a text can be written in UTF-8, as a path with other bytes in it can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def may_hold_merged(folder: Path, output_dir: Path) -> bool:
    """Say whether a merged model may be saved in a folder: an empty one, or one that this run's model is in.

    What a run that was killed while it claimed the folder has left there is nobody's.
    """
    if not os.path.isdir(folder) or not [name for name in os.listdir(folder) if not CLAIM.fullmatch(name)]:
        return True
    owner = (read_json(folder / MERGED_FILE) or {}).get("output_dir")
    return isinstance(owner, str) and os.path.realpath(owner) == os.path.realpath(output_dir)


def check_folders(
    model_args: ModelArguments, adapter_args: AdapterArguments, training_args: GlueTrainingArguments
) -> None:
    """Raise UsageError where the run would delete or overwrite what it reads."""
    if model_args.cache_dir is not None:
        try:
            os.makedirs(model_args.cache_dir, exist_ok=True)
            with tempfile.TemporaryFile(dir=model_args.cache_dir):
                pass
        except (OSError, ValueError) as error:
            raise UsageError(f"--cache_dir {model_args.cache_dir}: can't be written: {first_line(error)}") from error
    output, merged = Path(os.path.realpath(training_args.output_dir)), adapter_args.save_merged
    for name, folder in (("output_dir", training_args.output_dir), ("save_merged", merged or "")):
        if not is_utf8(folder):
            raise UsageError(f"--{name} {folder}: the path is not UTF-8, and tokenizers can't be saved to it")
        fault = fault_of_path(folder, "folder") if folder else None
        if fault not in (None, "no such folder"):
            raise UsageError(f"--{name} {folder}: {fault}")
    for args, names in (
        (model_args, ("model_name_or_path", "config_name", "tokenizer_name")),
        (adapter_args, ("adapter_path", "init_adapter_from")),
    ):
        for name in names:
            source = getattr(args, name)
            if source is None or not Path(source).exists():
                continue
            folder = Path(os.path.realpath(source))
            is_checkpoint = folder.parent == output and CHECKPOINT.fullmatch(folder.name)
            if folder == output or is_checkpoint:
                raise UsageError(
                    f"--output_dir {training_args.output_dir}: holds --{name} {source}; give another folder"
                )
            if merged is not None and Path(os.path.realpath(merged)) == folder:
                raise UsageError(f"--save_merged {merged}: is --{name} itself; give another folder")
    if merged is not None:
        path = Path(merged).absolute()
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        if not os.access(there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise UsageError(f"--save_merged {merged}: can't be written: no permission to write in {there}")
        if not may_hold_merged(path, Path(training_args.output_dir)):
            raise UsageError(f"--save_merged {merged}: holds files that no run with this --output_dir left there")


def check_saved_adapters(adapter_args: AdapterArguments, adapter: str, do_train: bool) -> None:
    """Raise UsageError for a folder to load an adapter from that holds none, or that the run would not use."""
    if adapter_args.adapter_path is not None and do_train:
        raise UsageError("--adapter_path evaluates or predicts with a saved adapter: it excludes --do_train")
    if adapter_args.init_adapter_from is not None and (
        adapter == "none" or adapter_args.adapter_path is not None or not do_train
    ):
        raise UsageError("--init_adapter_from starts the training of an adapter: give --do_train and the adapter")
    for name in ("adapter_path", "init_adapter_from"):
        folder = getattr(adapter_args, name)
        fault = fault_of_path(folder, "folder") if folder is not None else None
        if fault is None and folder is not None and not (Path(folder) / "adapter_config.json").is_file():
            fault = "no adapter_config.json in this folder"
        if fault is not None:
            raise UsageError(f"--{name} {folder}: {fault}")
