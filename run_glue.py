#!/usr/bin/env python
# Copyright 2020 The HuggingFace Inc. team. All rights reserved.
# Copyright 2026 The authors of this repository.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software distributed under the License is distributed on
# an "AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the
# specific language governing permissions and limitations under the License.
#
# Derived from examples/pytorch/text-classification/run_glue.py of Hugging Face transformers: the argument names, the
# order of the steps, the log lines and the output files are that script's. The adapters and their protocol follow the
# GLUE scripts of RandLoRA (arXiv 2502.00987). Both were rewritten here.
"""Fine-tune and evaluate one (model, task, adapter, rank, seed) on GLUE.

The Hugging Face example of the same name, with LoRA, RandLoRA, VeRA or any other PEFT method on the encoder, GLUE and
its metrics read offline, runs that resume to the bit, and a record of everything that made the numbers.

One run of the protocol:

    python run_glue.py --model_name_or_path FacebookAI/roberta-base --task_name sst2 --do_train --do_eval \\
        --max_seq_length 128 --per_device_train_batch_size 64 --learning_rate 1e-4 --num_train_epochs 10 --fp16 \\
        --adapter_name randlora --rank 64 --seed 1 --output_dir finetuned_results/randlora64/1/sst2

A few minutes on a laptop, without a GPU:

    python run_glue.py --model_name_or_path FacebookAI/roberta-base --task_name rte --do_train --do_eval \\
        --max_train_samples 200 --num_train_epochs 1 --adapter_name lora --rank 4 --output_dir /tmp/rte

Instead of flags, one JSON file with the same names: python run_glue.py arguments.json

A run leaves in --output_dir: the adapter with head, tokenizer and base config; train_results.json, eval_results.json,
all_results.json, trainer_state.json, predict_results_<task>.txt; and last, marking it as finished, run.json: the
arguments, versions, data and weight hashes, parameter counts, seconds, peak memory and metrics.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import platform
import resource
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
import peft
import torch
import transformers
from datasets import DatasetDict
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedConfig,
    TrainerState,
    default_data_collator,
    set_seed,
)

from glue_peft import run_folder, run_state
from glue_peft.adapters import (
    agree_with_saved,
    check_base_model,
    check_random_bases,
    check_whole_encoder,
    count_parameters,
    hash_tensors,
    head_modules,
    number_of_bases,
    projection_key,
    read_adapter_config,
    save_merged,
    start_from_saved,
    target_widths,
)
from glue_peft.arguments import (
    AdapterArguments,
    DataTrainingArguments,
    GlueTrainingArguments,
    ModelArguments,
    parse_arguments,
    read_arguments_file,
)
from glue_peft.data import Task, describe_task, hold_out, load_raw_datasets, splits, tokenize
from glue_peft.errors import DivergedError, UsageError, first_line, run_script
from glue_peft.fast_adapters import use_fast_adapters
from glue_peft.flags import differences, without_secrets
from glue_peft.metric import Glue
from glue_peft.trainer import GlueTrainer, StopOnSignal, failure_noted, processes_and_precision
from glue_peft.unpadded_encoder import use_unpadded_encoder

STARTED = time.perf_counter()
REPOSITORY = Path(__file__).resolve().parent
# In what a run that is trained further may differ: the optimizer's settings would come from the checkpoint.
LENGTHENING_FLAGS = frozenset(
    "num_train_epochs max_steps do_eval do_predict max_predict_samples eval_strategy eval_steps save_strategy "
    "save_steps save_merged".split()
)

logger = logging.getLogger("run_glue")


def main(argv: list[str] | None = None) -> int:
    """Run the script; the steps stand in the order of the functions below."""
    argv = sys.argv[1:] if argv is None else argv
    model_args, data_args, adapter_args, training_args = parse_arguments(argv, __doc__)
    setup_logging(training_args)
    stop_on_signal = StopOnSignal()
    output_dir = Path(training_args.output_dir)
    command = command_of(argv)
    with held(training_args), failure_noted(training_args):
        if may_skip(output_dir, training_args, command):
            return 0
        raw_datasets = load_raw_datasets(data_args, model_args, training_args)
        task, raw_datasets = describe_task(raw_datasets, data_args, training_args)
        check_best_metric(training_args, task)
        raw_datasets = hold_out(raw_datasets, task, data_args, training_args)
        config, label_to_id = load_config(model_args, adapter_args, task)
        tokenizer = load_tokenizer(model_args)
        architecture = build_architecture(config, model_args)
        adapter_config = make_adapter_config(adapter_args, architecture, training_args.seed)
        limit = count_positions(architecture)
        tokenized_datasets = tokenize(raw_datasets, task, label_to_id, tokenizer, limit, data_args, training_args)

        checkpoint = find_checkpoint(output_dir, training_args, command)
        model, base_sha256 = load_model(model_args, adapter_args, config, adapter_config, training_args.seed)
        fast_paths = use_fast_paths(model, adapter_args, data_args)
        trainer = make_trainer(model, training_args, data_args, tokenizer, tokenized_datasets, task, stop_on_signal)
        check_random_bases(model, checkpoint or adapter_args.adapter_path or adapter_args.init_adapter_from)
        clear_output_dir(output_dir, training_args, checkpoint)
        record = describe_run(trainer, model_args, data_args, adapter_args, raw_datasets, base_sha256) | fast_paths
        note_command(record, command, training_args)
        if training_args.do_train:
            train(trainer, checkpoint, record)
        if training_args.do_eval:
            evaluate_splits(trainer, tokenized_datasets, task, record)
        if training_args.do_predict:
            predict_splits(trainer, tokenized_datasets, task, record)
        if adapter_args.save_merged and trainer.is_world_process_zero():
            save_merged(model, tokenizer, Path(adapter_args.save_merged))
        finish(trainer, record)
    return 0


def setup_logging(training_args: GlueTrainingArguments) -> None:
    """Log to stdout at the level of --log_level, on the main process of each node."""
    logging.basicConfig(
        format="%(asctime)s - %(levelname)s - %(name)s - %(message)s",
        datefmt="%m/%d/%Y %H:%M:%S",
        handlers=[logging.StreamHandler(sys.stdout)],
    )
    level = training_args.get_process_log_level()
    if training_args.log_level == "passive" and training_args.should_log:
        level = logging.INFO
    logger.setLevel(level)
    datasets.utils.logging.set_verbosity_warning()
    # Both would report every load to a server, and without a network wait for it.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = evaluate.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    transformers.utils.logging.set_verbosity(max(level, logging.WARNING))
    warnings.filterwarnings("ignore", message="Specified to not save")  # the bases' hash is saved and compared instead
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
    logger.info(f"device: {training_args.device}, processes: {training_args.world_size}")


def command_of(argv: list[str]) -> list[str]:
    """The flags as given, those of a JSON file written out, without access tokens."""
    if len(argv) == 1 and argv[0].endswith(".json"):
        argv = read_arguments_file(Path(argv[0]))
    return without_secrets(argv)


def held(args: GlueTrainingArguments) -> contextlib.AbstractContextManager[None]:
    """Hold --output_dir until the end of the run, in the process that writes."""
    return run_folder.lock(Path(args.output_dir)) if args.should_save else contextlib.nullcontext()


def may_skip(output_dir: Path, args: GlueTrainingArguments, command: list[str]) -> bool:
    """Whether the run is finished already. Raises UsageError where --output_dir holds another run."""
    left = run_folder.files_of_a_run(output_dir)
    named = args.resume_from_checkpoint and Path(args.resume_from_checkpoint).resolve().parent == output_dir.resolve()
    if left and not (args.resume or args.overwrite_output_dir or named):
        raise UsageError(
            f"--output_dir {output_dir} holds a run already ({left[0]}): give --resume to continue it, "
            "--overwrite_output_dir to delete it, or another folder"
        )
    if not args.resume:
        return False
    state, reason = run_state.state(output_dir, command)
    if state == "finished":
        logger.info(f"{output_dir} holds a finished run: nothing to do")
        if args.should_save and not args.keep_checkpoints:
            run_folder.delete_checkpoints(output_dir)  # left where the run was killed at its very end
        return True
    if state == "other":
        raise UsageError(
            f"--output_dir {output_dir} holds another run: {reason}. Give another folder, or --overwrite_output_dir "
            "in place of --resume to delete it"
        )
    if state == "broken":
        logger.warning(f"{output_dir}: the results can't be used, as {reason}: it is run again")
    if not left:
        logger.info(f"--resume: nothing to resume in {output_dir}, starting afresh")
    return False


def check_best_metric(args: GlueTrainingArguments, task: Task) -> None:
    """Raise UsageError where --metric_for_best_model names none of the task's metrics."""
    name = args.metric_for_best_model
    if name is None or args.follows_task_metric:
        return
    labels = np.arange(4) % max(task.num_labels, 2)
    logits = labels[:, None] + 0.0 if task.is_regression else np.eye(task.num_labels)[labels]
    allowed = ["loss", *make_compute_metrics(task)(EvalPrediction(predictions=logits, label_ids=labels))]
    if name.removeprefix("eval_").removeprefix("mm_" if task.name == "mnli" else "") not in allowed:
        raise UsageError(f"--metric_for_best_model {name}: allowed are {', '.join(allowed)}")


def load_config(
    model_args: ModelArguments, adapter_args: AdapterArguments, task: Task
) -> tuple[PreTrainedConfig, dict[str | int, int] | None]:
    """Load the model's config with the task's labels, and the map from the data's labels to the model's.

    A model that was fine-tuned on the same label names keeps its own order of them.
    """
    name = model_args.config_name or model_args.model_name_or_path
    saved = adapter_args.adapter_path
    if saved is not None and (Path(saved) / "config.json").is_file():
        name = saved
    try:
        config = AutoConfig.from_pretrained(name, **hub_arguments(model_args))
    except (OSError, ValueError) as error:
        raise UsageError(f"--model_name_or_path {name}: {first_line(error)}") from error
    names = [str(label) for label in task.label_list]
    own_names = {str(label).lower(): int(i) for label, i in config.label2id.items()}
    if saved == name and (
        config.num_labels != task.num_labels
        or not (task.is_regression or set(own_names) == set(map(str.lower, names)))
    ):
        raise UsageError(
            f"--adapter_path {saved}: trained for the labels {list(config.label2id)}, the data have {names}"
        )
    config.finetuning_task = task.metric
    if task.is_regression:
        config.num_labels = 1
        config.problem_type = "regression"
        return config, None
    order = {i: i for i in range(task.num_labels)}
    if own_names.keys() == {label.lower() for label in names}:
        order = {i: own_names[label.lower()] for i, label in enumerate(names)}
    elif config.label2id != PreTrainedConfig(num_labels=config.num_labels).label2id:
        logger.warning(f"the model's labels {list(config.label2id)} are not the data's: the data's {names} are used")
    config.num_labels = task.num_labels
    config.id2label = {order[i]: label for i, label in enumerate(names)}
    config.label2id = {label: i for i, label in config.id2label.items()}
    config.problem_type = "single_label_classification"
    return config, order


def hub_arguments(model_args: ModelArguments) -> dict[str, Any]:
    """Keyword arguments of every from_pretrained call."""
    return {
        "cache_dir": model_args.cache_dir,
        "revision": model_args.model_revision,
        "token": model_args.token,
        "trust_remote_code": model_args.trust_remote_code,
    }


def load_tokenizer(model_args: ModelArguments) -> transformers.PreTrainedTokenizerBase:
    """Load the tokenizer."""
    name = model_args.tokenizer_name or model_args.model_name_or_path
    try:
        return AutoTokenizer.from_pretrained(name, use_fast=model_args.use_fast_tokenizer, **hub_arguments(model_args))
    except (OSError, ValueError) as error:
        raise UsageError(f"--tokenizer_name {name}: {first_line(error)}") from error


def build_architecture(config: PreTrainedConfig, model_args: ModelArguments) -> nn.Module:
    """The model on the meta device: its layers' names and sizes, without weights or memory."""
    try:
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(
                config, trust_remote_code=model_args.trust_remote_code
            )
    except ValueError as error:
        raise UsageError(f"--model_name_or_path {model_args.model_name_or_path}: {first_line(error)}") from error


def make_adapter_config(adapter_args: AdapterArguments, architecture: nn.Module, seed: int) -> PeftConfig | None:
    """Build the PEFT config of --adapter_name or read that of --adapter_config; None where none is to be added."""
    config = choose_adapter_config(adapter_args, architecture, seed)
    if adapter_args.init_adapter_from is not None:
        agree_with_saved(config, adapter_args)
    return config


def choose_adapter_config(adapter_args: AdapterArguments, architecture: nn.Module, seed: int) -> PeftConfig | None:
    """The PEFT config that the flags describe."""
    if adapter_args.adapter_path is not None or (
        adapter_args.adapter_name == "none" and not adapter_args.adapter_config
    ):
        return None
    common = {"task_type": "SEQ_CLS", "modules_to_save": head_modules(architecture)}
    if adapter_args.adapter_config is not None:
        return read_adapter_config(Path(adapter_args.adapter_config), common, adapter_args.save_merged is not None)
    widths = target_widths(architecture.base_model, adapter_args.target_modules)
    common["target_modules"] = adapter_args.target_modules
    alpha = 2 * adapter_args.rank if adapter_args.adapter_alpha is None else adapter_args.adapter_alpha
    if adapter_args.adapter_name == "lora":
        return peft.LoraConfig(
            r=adapter_args.rank, lora_alpha=alpha, lora_dropout=adapter_args.adapter_dropout, **common
        )
    common["projection_prng_key"] = adapter_args.projection_prng_key
    if common["projection_prng_key"] is None:
        common["projection_prng_key"] = projection_key(seed)
    common["save_projection"] = adapter_args.save_projection
    if adapter_args.adapter_name == "vera":
        return peft.VeraConfig(
            r=adapter_args.rank,
            vera_dropout=adapter_args.adapter_dropout,
            d_initial=adapter_args.vera_d_initial,
            **common,
        )
    if adapter_args.rank > min(widths):
        raise UsageError(f"--rank {adapter_args.rank}: RandLoRA allows 1 to {min(widths)}, the smallest layer's width")
    if adapter_args.paper_scaling:
        alpha /= math.sqrt(number_of_bases(widths, adapter_args.rank))
    return peft.RandLoraConfig(
        r=adapter_args.rank,
        randlora_alpha=alpha,
        randlora_dropout=adapter_args.adapter_dropout,
        sparse=adapter_args.randlora_sparse,
        very_sparse=adapter_args.randlora_very_sparse,
        **common,
    )


def count_positions(architecture: nn.Module) -> int:
    """The most tokens a row may have; RoBERTa's position embeddings start behind its padding index."""
    embeddings = getattr(getattr(architecture.base_model, "embeddings", None), "position_embeddings", None)
    if not isinstance(embeddings, nn.Embedding):
        positions = getattr(architecture.config, "max_position_embeddings", None)
        return positions if positions and positions > 0 else sys.maxsize
    return embeddings.num_embeddings - (0 if embeddings.padding_idx is None else embeddings.padding_idx + 1)


def find_checkpoint(output_dir: Path, args: GlueTrainingArguments, command: list[str]) -> Path | None:
    """Return the checkpoint to resume from: the one that was named, or with --resume the last whole one."""
    if args.resume_from_checkpoint is not None:
        checkpoint = Path(args.resume_from_checkpoint)
        if not run_folder.is_complete(checkpoint):
            raise UsageError(f"--resume_from_checkpoint {checkpoint}: not a whole checkpoint of Trainer")
        started = run_folder.read_json(checkpoint.parent / run_folder.COMMAND_FILE)
        changed = differences(started, command, LENGTHENING_FLAGS) if started else []
        if changed:
            raise UsageError(f"--resume_from_checkpoint {checkpoint}: is of another run: {', '.join(changed)}")
        check_machine(checkpoint, args)
        return checkpoint
    if not (args.resume and args.do_train):
        return None
    checkpoint, broken = run_folder.last_complete_checkpoint(output_dir)
    for path in broken:
        logger.warning(f"{path} is truncated: it is not used, resuming from {checkpoint or 'the start'}")
    if checkpoint is not None:
        check_machine(checkpoint, args)
        logger.info(f"Resuming from {checkpoint}")
    return checkpoint


def check_machine(checkpoint: Path, args: GlueTrainingArguments) -> None:
    """Raise UsageError where a checkpoint is of another number of processes or another precision than this start."""
    so_far = run_folder.read_json(checkpoint / run_folder.PROGRESS_FILE) or {}
    for name, now in processes_and_precision(args).items():
        if so_far.get(name, now) != now:
            raise UsageError(
                f"{checkpoint} is of a run with {name} {so_far[name]}, and this start has {now}, which would train "
                "something else: resume it on a machine like that, or give --overwrite_output_dir to start afresh"
            )


def load_model(
    model_args: ModelArguments,
    adapter_args: AdapterArguments,
    config: PreTrainedConfig,
    adapter_config: PeftConfig | None,
    seed: int,
) -> tuple[nn.Module, str]:
    """Load the pre-trained model in float32, whatever its file holds, with its adapter; and hash its encoder.

    A float16 checkpoint kept in float16 would train in it; mixed precision is autocast's part.
    """
    set_seed(seed)  # the new head, and the adapter's start, depend on the seed alone
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            model_args.model_name_or_path,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
            output_loading_info=True,
            **hub_arguments(model_args),
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        hint = "; --ignore_mismatched_sizes draws a new head" if "mismatch" in str(error) else ""
        raise UsageError(f"--model_name_or_path {model_args.model_name_or_path}: {first_line(error)}{hint}") from error
    base_sha256 = hash_tensors(model.base_model.state_dict())
    if adapter_args.adapter_path is not None or adapter_config is not None:
        drawn = {*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])}
        check_whole_encoder(model, drawn, model_args)
    if adapter_args.adapter_path is not None:
        check_base_model("adapter_path", Path(adapter_args.adapter_path), base_sha256)
        try:
            model = PeftModel.from_pretrained(model, adapter_args.adapter_path)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UsageError(f"--adapter_path {adapter_args.adapter_path}: {first_line(error)}") from error
    elif adapter_config is not None:
        try:
            revision = None if model_args.model_revision == "main" else model_args.model_revision
            model = get_peft_model(model, adapter_config, revision=revision)
        except (ValueError, TypeError) as error:
            raise UsageError(f"--adapter_config {adapter_args.adapter_config}: {first_line(error)}") from error
    if adapter_args.init_adapter_from is not None:
        start_from_saved(model, Path(adapter_args.init_adapter_from), base_sha256)
    return model, base_sha256


def use_fast_paths(
    model: nn.Module, adapter_args: AdapterArguments, data_args: DataTrainingArguments
) -> dict[str, dict[str, Any]]:
    """Switch on what computes the same in less time, and return for the record what was and what was not, and why."""
    adapters: dict[str, Any] = {"converted": 0, "left": {}}
    if adapter_args.fast_adapters and isinstance(model, PeftModel):
        adapters = use_fast_adapters(model)._asdict()
        left = "".join(f", {count} left ({reason})" for reason, count in adapters["left"].items())
        logger.info(f"fast adapters: {adapters['converted']} layers converted{left}")
    padded = "--no_unpad" if not data_args.unpad else "--pad_to_max_length" if data_args.pad_to_max_length else None
    padded = padded or use_unpadded_encoder(model)
    logger.info(f"unpadded encoder: {'on' if padded is None else f'off, as {padded}'}")
    return {"fast_adapters": adapters, "unpadded_encoder": {"on": padded is None, "reason": padded}}


def make_trainer(
    model: nn.Module,
    training_args: GlueTrainingArguments,
    data_args: DataTrainingArguments,
    tokenizer: transformers.PreTrainedTokenizerBase,
    tokenized_datasets: DatasetDict,
    task: Task,
    stop_on_signal: StopOnSignal,
) -> GlueTrainer:
    """Build the Trainer. Which epoch is the best is decided by the task's metric, unless a flag names another."""
    if data_args.pad_to_max_length:
        data_collator = default_data_collator
    else:
        data_collator = DataCollatorWithPadding(
            tokenizer, pad_to_multiple_of=8 if training_args.fp16 or training_args.bf16 else None
        )
    evaluated = splits(tokenized_datasets, "validation")
    if training_args.follows_task_metric:
        held_out = "selection_" if "selection" in tokenized_datasets else ""
        training_args.metric_for_best_model = f"eval_{held_out}{task.main_metric}"
        training_args.greater_is_better = task.greater_is_better
    trainer = GlueTrainer(
        model=model,
        args=training_args,
        train_dataset=tokenized_datasets.get("train"),
        eval_dataset=tokenized_datasets[evaluated[0][0]] if evaluated else None,
        compute_metrics=make_compute_metrics(task),
        processing_class=tokenizer,
        data_collator=data_collator,
        callbacks=[stop_on_signal],
    )
    # Trainer takes RoBERTa's forward for one that divides the loss by the number of items in the whole batch. It does
    # not, so with gradient accumulation g or N processes loss and gradients would come out g or N times too large.
    trainer.model_accepts_loss_kwargs = False
    stop_on_signal.trainer = trainer
    trainer.further_evaluations = {f"eval{suffix}": tokenized_datasets[name] for name, suffix in evaluated[1:]}
    if "selection" in tokenized_datasets:
        trainer.further_evaluations["eval_selection"] = tokenized_datasets["selection"]
    return trainer


def make_compute_metrics(task: Task) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the function that turns predictions and labels into the task's metrics."""
    if task.metric is not None:
        # keep_in_memory does without a cache file, where parallel runs would meet.
        metric = Glue(task.metric, keep_in_memory=True)

    def compute_metrics(p: EvalPrediction) -> dict[str, float]:
        """Metrics of one evaluation; raises DivergedError where the logits are no numbers."""
        logits = p.predictions[0] if isinstance(p.predictions, tuple) else p.predictions
        if not np.isfinite(logits).all():
            raise DivergedError("the model's outputs are not finite numbers")
        preds = logits[:, 0] if task.is_regression else logits.argmax(axis=1)
        return scores(preds, p.label_ids) | signs_of_collapse(preds, p.label_ids, task)

    def scores(preds: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The GLUE task's metrics; of other data accuracy or the mean squared error."""
        if task.metric is not None:
            return metric.compute(predictions=preds, references=labels)
        if task.is_regression:
            return {"mse": float(((preds - labels) ** 2).mean())}
        return {"accuracy": float((preds == labels).mean())}

    return compute_metrics


def signs_of_collapse(preds: np.ndarray, labels: np.ndarray, task: Task) -> dict[str, float]:
    """What a table needs to tell a collapsed run: a constant output, or the score of the most frequent label."""
    if task.is_regression:
        return {"prediction_std": float(preds.std())}
    return {
        "majority_share": float(np.bincount(labels).max() / len(labels)),
        "predicted_classes": len(np.unique(preds)),
    }


def clear_output_dir(output_dir: Path, args: GlueTrainingArguments, checkpoint: Path | None) -> None:
    """Delete what an earlier run left, unless it is resumed: now that nothing can be refused any more."""
    with args.main_process_first(desc="preparing the output folder"):
        if args.should_save and checkpoint is None:
            run_folder.clear(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        if args.should_save:
            run_folder.clear_results(output_dir)  # also of a run that had ended, and is trained further


def describe_run(
    trainer: GlueTrainer,
    model_args: ModelArguments,
    data_args: DataTrainingArguments,
    adapter_args: AdapterArguments,
    raw_datasets: DatasetDict,
    base_sha256: str,
) -> dict[str, Any]:
    """Start the run's record: everything that makes its numbers, without any token."""
    model = trainer.model
    arguments = asdict(model_args) | asdict(data_args) | asdict(adapter_args) | trainer.args.to_dict()
    record = {
        "arguments": {name: value for name, value in arguments.items() if not name.endswith("token")},
        "adapter_config": json.loads(json.dumps(model.active_peft_config.to_dict(), default=sorted))
        if isinstance(model, PeftModel)
        else None,
        "base_model": {
            "name": model_args.model_name_or_path,
            "revision": getattr(model.config, "_commit_hash", None),
            "sha256": base_sha256,
        },
        "data_sha256": {name: hash_rows(rows) for name, rows in raw_datasets.items()},
        "parameters": count_parameters(model),
        "device": torch.cuda.get_device_name()
        if trainer.args.device.type == "cuda"
        else platform.processor() or "cpu",
        **processes_and_precision(trainer.args),
        "threads": torch.get_num_threads(),
        **run_folder.describe_environment(REPOSITORY),
        "metrics": {},
    }
    counts = record["parameters"]
    logger.info(
        f"parameters: {counts['adapter']:,} in the adapter (as papers count), {counts['head']:,} in the head, "
        f"{counts['total']:,} in the model, {counts['stored']:,} stored"
    )
    return record


def note_command(record: dict[str, Any], command: list[str], args: GlueTrainingArguments) -> None:
    """Put the command into the record, and beside it from the start, to tell later whose checkpoints these are."""
    path = record["arguments"]["adapter_config"]
    record["command"] = command
    record["adapter_config_file"] = run_folder.read_json(Path(path)) if path else None
    if args.should_save:
        started = {name: record[name] for name in ("command", "arguments", "adapter_config_file")}
        run_folder.write_json(Path(args.output_dir) / run_folder.COMMAND_FILE, started)


def hash_rows(rows: datasets.Dataset) -> str:
    """SHA-256 of a split's content, whatever file, chunks or version of `datasets` it came through."""
    import pandas as pd

    frame = rows.with_format(None).to_pandas()
    return hashlib.sha256(pd.util.hash_pandas_object(frame.astype(str), index=False).values.tobytes()).hexdigest()


def train(trainer: GlueTrainer, checkpoint: Path | None, record: dict[str, Any]) -> None:
    """Train, from a checkpoint if there is one, and save the model."""
    before = run_folder.read_json(checkpoint / run_folder.PROGRESS_FILE) if checkpoint else None
    if before is not None:
        trainer.loss_sum, trainer.seconds_before = before["loss_sum"], before["seconds"]
        trainer.unlogged = before.get("unlogged_loss", 0.0), before.get("unlogged_steps", 0)
    trainer.began = time.time()
    train_result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_model()  # saves the tokenizer too
    metrics = train_result.metrics | {"train_samples": len(trainer.train_dataset)}
    record["scores"] = {"history": evaluations_of(trainer.state)}
    # Trainer reports the time and the mean loss since the last start, and of this process's rows.
    metrics["train_runtime"] += trainer.seconds_before
    metrics["train_loss"] = trainer.mean_over_processes(trainer.loss_sum) / trainer.state.global_step
    trainer.state.log_history[-1] |= {name: metrics[name] for name in ("train_runtime", "train_loss")}
    trainer.log_metrics("train", metrics)
    save_metrics(trainer, "train", metrics, record)
    if trainer.is_world_process_zero():
        with run_folder.atomic_write(Path(trainer.args.output_dir) / "trainer_state.json") as temporary:
            trainer.state.save_to_json(str(temporary))


def evaluations_of(state: TrainerState) -> list[dict[str, float]]:
    """The evaluations during training, one dict an epoch (or step), in the names of the final results."""
    by_step: dict[int, dict[str, float]] = {}
    for entry in state.log_history:
        metrics = {}
        for name, value in entry.items():
            if name.startswith("eval_selection_"):
                name = name.removeprefix("eval_")
            elif name.startswith("eval_mm_"):
                name = f"eval_{name.removeprefix('eval_mm_')}_mm"
            if name.startswith(("eval_", "selection_")):
                metrics[name] = value
        if metrics:
            by_step.setdefault(entry["step"], {"epoch": entry["epoch"]}).update(without_timings(metrics))
    return list(by_step.values())


def without_timings(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that say how good, not how fast."""
    timings = ("runtime", "samples_per_second", "steps_per_second", "samples")
    return {name: value for name, value in metrics.items() if not name.removesuffix("_mm").endswith(timings)}


def choose_scores(
    history: list[dict[str, float]], final: dict[str, float], epoch: float, task: Task, saves_best: bool
) -> dict[str, Any]:
    """Return the scores of the last, the best and the selected epoch, and all of them.

    The best is chosen on the validation set itself, the selected on the rows of --selection_fraction; the earlier of
    two equals. `final` is the saved model's evaluation: the last epoch's, unless the best one was saved.
    """
    if not saves_best:
        if history and history[-1]["epoch"] == epoch:
            final = history.pop() | final
        history = [*history, {"epoch": epoch, **final}]

    def best_by(key: str) -> dict[str, float]:
        """The first entry with the best value of a metric."""
        return max(history, key=lambda entry: entry[key] if task.greater_is_better else -entry[key])

    scores = {"metric": f"eval_{task.main_metric}", "history": history, "last": history[-1]}
    scores["best"] = best_by(f"eval_{task.main_metric}")
    if all(f"selection_{task.main_metric}" in entry for entry in history):
        scores["selected"] = best_by(f"selection_{task.main_metric}")
    return scores


def save_metrics(trainer: GlueTrainer, split: str, metrics: dict[str, float], record: dict[str, Any]) -> None:
    """Write <split>_results.json and all_results.json, whole or not at all."""
    record["metrics"].update(metrics)
    if trainer.is_world_process_zero():
        output_dir = Path(trainer.args.output_dir)
        run_folder.write_json(output_dir / f"{split}_results.json", metrics)
        run_folder.write_json(output_dir / "all_results.json", record["metrics"])


def evaluate_splits(trainer: GlueTrainer, tokenized_datasets: DatasetDict, task: Task, record: dict[str, Any]) -> None:
    """Evaluate on every validation split; MNLI's mismatched one adds the suffix _mm to its metrics."""
    logger.info("*** Evaluate ***")
    combined = {}
    for name, suffix in splits(tokenized_datasets, "validation"):
        metrics = trainer.evaluate(eval_dataset=tokenized_datasets[name])
        metrics["eval_samples"] = len(tokenized_datasets[name])
        if not math.isfinite(metrics["eval_loss"]):
            raise DivergedError(f"the evaluation loss is {metrics['eval_loss']}")
        metrics = {f"{key}{suffix}": value for key, value in metrics.items()}
        trainer.log_metrics("eval", metrics)
        combined.update(metrics)
    save_metrics(trainer, "eval", combined, record)
    if "scores" in record:
        # Without any evaluation in training, as with a long --eval_delay, there was no best one to load.
        epoch, saves_best = trainer.state.epoch, trainer.args.load_best_model_at_end and record["scores"]["history"]
        final = {name: value for name, value in without_timings(combined).items() if name.startswith("eval_")}
        record["scores"] = choose_scores(record["scores"]["history"], final, epoch, task, saves_best)


def predict_splits(trainer: GlueTrainer, tokenized_datasets: DatasetDict, task: Task, record: dict[str, Any]) -> None:
    """Write predict_results_<task>.txt for every test split: index and label name, or a number for regression."""
    logger.info("*** Predict ***")
    for name, suffix in splits(tokenized_datasets, "test"):
        rows = tokenized_datasets[name]
        outputs = trainer.predict(rows, metric_key_prefix="predict").predictions
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        if not np.isfinite(logits).all():
            raise DivergedError("the model's outputs are not finite numbers")
        if task.is_regression:
            predictions = [f"{value:3.3f}" for value in logits[:, 0]]
        else:
            predictions = [trainer.model.config.id2label[i] for i in logits.argmax(axis=1)]
        record["metrics"][f"predict_samples{suffix}"] = len(rows)
        if trainer.is_world_process_zero():
            lines = ["index\tprediction", *(f"{index}\t{item}" for index, item in enumerate(predictions))]
            task_name = "ax" if suffix == "_ax" else f"{task.name}{suffix.replace('_', '-')}"
            path = Path(trainer.args.output_dir) / f"predict_results_{task_name}.txt"
            with run_folder.atomic_write(path) as temporary:
                temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def finish(trainer: GlueTrainer, record: dict[str, Any]) -> None:
    """Write the record, which marks the run as finished, delete the checkpoints, and say where everything is."""
    if not trainer.is_world_process_zero():
        return
    output_dir = Path(trainer.args.output_dir)
    saved = [
        path for name in ("adapter_model.safetensors", "model.safetensors") if (path := output_dir / name).exists()
    ]
    record["saved_bytes"] = saved[0].stat().st_size if saved else None
    record["seconds"] = round(trainer.seconds_before + time.perf_counter() - STARTED, 3)
    if trainer.args.device.type == "cuda":
        record["peak_memory"] = {"kind": "cuda allocated", "bytes": torch.cuda.max_memory_allocated()}
    else:
        unit = 1 if sys.platform == "darwin" else 1024  # bytes, as getrusage(2) says
        record["peak_memory"] = {"kind": "process", "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    run_folder.write_json(output_dir / run_folder.RECORD_FILE, record)
    if not trainer.args.keep_checkpoints:
        run_folder.delete_checkpoints(output_dir)
    scores = {
        name.removeprefix("eval_"): value
        for name, value in record["metrics"].items()
        if name.startswith("eval_")
        and not name.startswith(("eval_runtime", "eval_samples", "eval_steps", "eval_loss"))
    }
    print(f"\nDone in {record['seconds']:.0f} s. Results, record and model: {output_dir}")
    print("  ".join(f"{name} {value:.4f}" for name, value in scores.items() if isinstance(value, float)))


def end_processes(status: int) -> int:
    """End this one of several processes now, else return its exit status.

    DistributedDataParallel's end joins gloo's threads while it holds the GIL, and now and then waits for ever.
    """
    if torch.distributed.is_initialized():
        if status == 0:
            torch.distributed.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(end_processes(run_script(main, "run_glue.py")))
