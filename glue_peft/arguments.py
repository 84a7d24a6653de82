"""The flags of run_glue.py: Hugging Face's names and meanings, this protocol's defaults, and what is refused at once.

Everything here is decided from the command line alone, before data or a model is read.
"""

import argparse
import json
import logging
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from glue_peft.errors import OneLineParser, UsageError
from glue_peft.flags import given_flags, without_secrets
from glue_peft.methods import read_saved_config
from glue_peft.run_folder import CHECKPOINT, read_json
from glue_peft.tasks import TASKS

MAX_SEED = 2**32 - 1  # numpy's limit

task_to_keys = {name: task.sentence_keys for name, task in sorted(TASKS.items())}  # Hugging Face's name
# Fields of TrainingArguments that would make a run's record untrue, and why.
UNUSABLE_FLAGS = {
    "enable_jit_checkpoint": "a run that SIGTERM cuts short would count as finished; without this it saves and stops",
    "auto_find_batch_size": "the batch size would not be the one that is recorded; out of memory names one that fits",
    "prediction_loss_only": "no task's metric could be computed",
    "batch_eval_metrics": "a task's metric is of the entire set, not of a batch",
    "dataloader_drop_last": "rows of the evaluation would be dropped too",
    "save_only_model": "such a checkpoint can't be resumed from",
}
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
    "projection_prng_key": ("randlora", "vera"),
    "save_projection": ("randlora", "vera"),
}

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
            "help": "CSV or JSON file with a `label` column (floats: regression) and one or two text columns "
            "(sentence1 and sentence2, or the first two that are not label)."
        },
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same for --do_eval."})
    test_file: str | None = field(default=None, metadata={"help": "The same for --do_predict; needs no labels."})
    max_seq_length: int = field(default=128, metadata={"help": "Truncate inputs longer than this number of tokens."})
    pad_to_max_length: bool = field(
        default=False, metadata={"help": "Pad every row to --max_seq_length, not to the longest of its batch."}
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
    target_modules: list[str] = field(
        default_factory=lambda: ["query", "key", "value", "dense"],
        metadata={"help": "Names of the linear layers to adapt: by default every one of BERT's or RoBERTa's encoder."},
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
    fast_adapters: bool = field(
        default=True, metadata={"help": "Compute RandLoRA, VeRA and LoRA layers in weight space: the same results."}
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
        default=False, metadata={"help": "Delete the run that --output_dir holds and start afresh."}
    )
    classifier_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the head. Default: --learning_rate."}
    )
    selection_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Hold out this share of the training rows, stratified by label and drawn by --seed, evaluate on "
            "it too, and report the validation score of the epoch that is best on it. Turns on --eval_strategy epoch."
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
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Unused: a loss that is NaN or infinite ends the run."}
    )

    def __post_init__(self) -> None:
        """Settle what the machine decides, before the parent's checks."""
        self.keep_checkpoints = self.save_total_limit is not None
        # Of the best and the last checkpoint Trainer would delete one at the end, before the run's record is written.
        if self.save_total_limit is None:
            self.save_total_limit = 2 if self.load_best_model_at_end else 1
        if self.greater_is_better is None and self.metric_for_best_model in ("mse", "eval_mse"):
            self.greater_is_better = False  # the parent knows it of losses alone
        # The parent would put the loss there.
        needs_metric = self.load_best_model_at_end or self.save_strategy == "best"
        self.follows_task_metric = self.metric_for_best_model is None and needs_metric
        if self.ddp_broadcast_buffers is None:
            self.ddp_broadcast_buffers = False  # the random bases are frozen, and the same in every process
        if self.selection_fraction is not None and self.eval_strategy == "no":
            self.eval_strategy = "epoch"
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.cuda.is_available():
            self.use_cpu = True  # otherwise each process would train alone, into the same folder
        for precision in ("fp16", "bf16"):
            if getattr(self, precision) and not supports_precision(precision, self.use_cpu):
                logger.warning(f"--{precision}: this machine has no device for it; training in float32.")
                setattr(self, precision, False)
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # there is nowhere to pin it for, and torch would warn at every loader
        if self.n_gpu > 1:
            logger.warning(f"{self.n_gpu} GPUs are visible and no launcher was used: training on the first.")
            self._n_gpu = 1


class GlueArgumentParser(OneLineParser, HfArgumentParser):
    """HfArgumentParser whose errors are one line, without three screens of usage."""


class ManualFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the manual and shows every flag's default."""


def parse_arguments(
    argv: list[str], manual: str | None = None
) -> tuple[ModelArguments, DataTrainingArguments, AdapterArguments, GlueTrainingArguments]:
    """Parse and check the flags, or the one JSON file that holds them; --help starts with `manual`.

    Raises UsageError, naming the flag and its allowed values.
    """
    parser = GlueArgumentParser(
        (ModelArguments, DataTrainingArguments, AdapterArguments, GlueTrainingArguments),
        description=manual,
        formatter_class=ManualFormatter,
        allow_abbrev=False,
    )
    if len(argv) == 1 and argv[0].endswith(".json"):
        argv = read_arguments_file(Path(argv[0]))
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    except UsageError:
        raise
    except ValueError as error:  # what TrainingArguments itself refuses
        raise UsageError(" ".join(str(error).split())) from error
    if unknown:
        raise UsageError(f"unknown argument {unknown[0]!r}; `python run_glue.py --help` lists the flags")
    model_args, data_args, adapter_args, training_args = parsed
    given = set(given_flags(argv))
    check_training_arguments(training_args, given)
    check_data_arguments(data_args, training_args)
    check_adapter_arguments(adapter_args, training_args, given)
    find_model(model_args, adapter_args, given)
    check_folders(model_args, adapter_args, training_args)
    return model_args, data_args, adapter_args, training_args


def read_arguments_file(path: Path) -> list[str]:
    """Return the flags that a JSON file of arguments stands for, so that both are parsed and checked alike."""
    content = read_json(path)
    if content is None:
        raise UsageError(f"{path}: not a readable file with one JSON object of arguments")
    argv = []
    for name, value in content.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        argv += [f"--{name}", *map(str, values)]
    return argv


def command_of(argv: list[str]) -> list[str]:
    """Return the flags as given, those of a JSON file written out, without access tokens."""
    if len(argv) == 1 and argv[0].endswith(".json"):
        argv = read_arguments_file(Path(argv[0]))
    return without_secrets(argv)


def supports_precision(precision: str, use_cpu: bool) -> bool:
    """Say whether this machine can train in `fp16` or `bf16`; a CPU only in bf16, and only when it is asked for."""
    if use_cpu or not torch.accelerator.is_available():
        return precision == "bf16" and use_cpu
    return precision == "fp16" or not torch.cuda.is_available() or torch.cuda.is_bf16_supported()


def check_training_arguments(args: GlueTrainingArguments, given: set[str]) -> None:
    """Raise UsageError for training flags that no run could use."""
    if not (args.do_train or args.do_eval or args.do_predict):
        raise UsageError("nothing to do: give at least one of --do_train, --do_eval, --do_predict")
    for name, reason in UNUSABLE_FLAGS.items():
        if getattr(args, name):
            raise UsageError(f"--{name}: {reason}")
    if args.resume_from_checkpoint is not None:
        for name, wanted in (("do_train", True), ("resume", False), ("overwrite_output_dir", False)):
            if getattr(args, name) is not wanted:
                raise UsageError(f"--resume_from_checkpoint goes {'with' if wanted else 'without'} --{name}")
    if args.resume and args.overwrite_output_dir:
        raise UsageError("--resume and --overwrite_output_dir contradict each other: give one of them")
    for name in ("seed", "data_seed"):
        if getattr(args, name) is not None and not 0 <= getattr(args, name) <= MAX_SEED:
            raise UsageError(f"--{name} {getattr(args, name)}: allowed are 0 to {MAX_SEED}")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} {getattr(args, name)}: must be at least 1")
    for name in ("learning_rate", "num_train_epochs"):
        if not (math.isfinite(getattr(args, name)) and getattr(args, name) > 0):
            raise UsageError(f"--{name} {getattr(args, name)}: must be above 0")
    if args.classifier_learning_rate is not None and not 0 < args.classifier_learning_rate < math.inf:
        raise UsageError(f"--classifier_learning_rate {args.classifier_learning_rate}: must be above 0")
    if args.save_total_limit < 1:
        raise UsageError(f"--save_total_limit {args.save_total_limit}: must be at least 1")
    if args.selection_fraction is not None:
        if not 0 < args.selection_fraction < 1:
            raise UsageError(f"--selection_fraction {args.selection_fraction}: must be above 0 and below 1")
        if not args.do_train:
            raise UsageError("--selection_fraction has no effect without --do_train")
        if "metric_for_best_model" in given:
            raise UsageError("--selection_fraction picks the epoch by the task's metric: drop --metric_for_best_model")


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
    for name in ("max_train_samples", "max_eval_samples", "max_predict_samples", "max_seq_length"):
        if getattr(data_args, name) is not None and getattr(data_args, name) < 1:
            raise UsageError(f"--{name} {getattr(data_args, name)}: must be at least 1")
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
        if path is not None and not Path(path).is_file():
            raise UsageError(f"--{name} {path}: no such file")


def check_adapter_arguments(
    adapter_args: AdapterArguments, training_args: GlueTrainingArguments, given: set[str]
) -> None:
    """Raise UsageError for adapter flags that contradict each other or would have no effect."""
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
    if adapter_args.rank < 1:
        raise UsageError(f"--rank {adapter_args.rank}: must be at least 1")
    if not 0 <= adapter_args.adapter_dropout < 1:
        raise UsageError(f"--adapter_dropout {adapter_args.adapter_dropout}: must be at least 0 and below 1")
    key = adapter_args.projection_prng_key
    if key is not None and not 0 <= key < 2**64:
        raise UsageError(f"--projection_prng_key {key}: allowed are 0 to {2**64 - 1}")
    if adapter_args.randlora_sparse and adapter_args.randlora_very_sparse:
        raise UsageError("--randlora_sparse and --randlora_very_sparse contradict each other: give one of them")
    if adapter_args.save_merged is not None:
        if adapter == "none":
            raise UsageError("--save_merged has no effect with --adapter_name none: the saved model is plain already")
        merged = Path(adapter_args.save_merged).resolve()
        if merged == Path(training_args.output_dir).resolve():
            raise UsageError("--save_merged: needs a folder of its own, not --output_dir")
        if any(path.is_file() for path in (merged, *merged.parents)):
            raise UsageError(f"--save_merged {adapter_args.save_merged}: is a file or below one, not a folder")


def find_model(model_args: ModelArguments, adapter_args: AdapterArguments, given: set[str]) -> None:
    """Take the model over from --adapter_path where no flag names it. Raises UsageError where neither does."""
    if model_args.model_name_or_path is not None:
        return
    if adapter_args.adapter_path is None:
        raise UsageError("--model_name_or_path is required: a folder or a model id of the Hugging Face hub")
    saved = read_saved_config(f"--adapter_path {adapter_args.adapter_path}", adapter_args.adapter_path)
    if not isinstance(saved.base_model_name_or_path, str):
        raise UsageError(f"--adapter_path {adapter_args.adapter_path} names no model: give --model_name_or_path")
    model_args.model_name_or_path = saved.base_model_name_or_path
    if saved.revision and "model_revision" not in given:
        model_args.model_revision = saved.revision


def check_folders(
    model_args: ModelArguments, adapter_args: AdapterArguments, training_args: GlueTrainingArguments
) -> None:
    """Raise UsageError where the run would delete or overwrite what it reads."""
    output, merged = Path(training_args.output_dir).resolve(), adapter_args.save_merged
    for args, names in (
        (model_args, ("model_name_or_path", "config_name", "tokenizer_name")),
        (adapter_args, ("adapter_path", "init_adapter_from")),
    ):
        for name in names:
            source = getattr(args, name)
            if source is None or not Path(source).exists():
                continue
            folder = Path(source).resolve()
            is_checkpoint = folder.parent == output and CHECKPOINT.fullmatch(folder.name)
            if folder == output or is_checkpoint:
                raise UsageError(
                    f"--output_dir {training_args.output_dir}: holds --{name} {source}; give another folder"
                )
            if merged is not None and Path(merged).resolve() == folder:
                raise UsageError(f"--save_merged {merged}: is --{name} itself; give another folder")


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
        if folder is not None and not (Path(folder) / "adapter_config.json").is_file():
            raise UsageError(f"--{name} {folder}: no adapter_config.json in this folder")
