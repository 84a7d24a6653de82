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

The flags may stand in JSON files, of which later ones win: python run_glue.py arguments.json --seed 2

A run leaves in --output_dir: the adapter with head, tokenizer and base config; train_results.json, eval_results.json,
all_results.json, trainer_state.json, predict_results_<task>.txt; and last, marking it as finished, run.json: the
arguments, versions, data and weight hashes, parameter counts, seconds, peak memory and metrics.
"""

import contextlib
import json
import logging
import math
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from datasets import DatasetDict
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedConfig,
    default_data_collator,
    set_seed,
)

from glue_peft import adapters, run_folder
from glue_peft import record as run_record
from glue_peft.adapter_state import check_checkpoint, check_fixed, hash_tensors, seed_of
from glue_peft.arguments import (
    AdapterArguments,
    DataTrainingArguments,
    GlueTrainingArguments,
    ModelArguments,
    command_of,
    parse_arguments,
)
from glue_peft.data import (
    Task,
    count_positions,
    describe_task,
    hash_rows,
    hold_out,
    load_raw_datasets,
    match_tokenizer,
    order_of_labels,
    splits,
    tokenize,
)
from glue_peft.errors import DivergedError, UsageError, as_usage_error, run_script
from glue_peft.eval_predictions import EvalPredictions
from glue_peft.fast_adapters import use_fast_adapters
from glue_peft.metric import check_best_metric, finite_logits, make_compute_metrics
from glue_peft.model_card import upload, write_card
from glue_peft.progress import name_for_trackers, quiet_libraries
from glue_peft.record import RunRecord
from glue_peft.resuming import clear_output_dir, extend, find_checkpoint, look_at
from glue_peft.trainer import GlueTrainer, StopOnSignal, end_processes, failure_noted, processes_and_precision
from glue_peft.unpadded_encoder import plan_batches, use_unpadded_encoder

REPOSITORY = Path(__file__).resolve().parent

logger = logging.getLogger("run_glue")


def main(argv: list[str] | None = None) -> int:
    """Run the script; the steps stand in the order of the functions below."""
    began = time.perf_counter()
    argv = sys.argv[1:] if argv is None else argv
    # See all possible arguments by passing --help
    model_args, data_args, adapter_args, training_args = parse_arguments(argv, __doc__)
    # Setup logging
    setup_logging(training_args)
    stop_on_signal = StopOnSignal()
    output_dir, command = Path(training_args.output_dir), command_of(argv)
    lock = run_folder.lock(output_dir) if training_args.should_save else contextlib.nullcontext()
    with lock, failure_noted(training_args):
        found = look_at(output_dir, training_args, command)
        if found == "finished":
            return 0
        earlier = extend(output_dir, command, model_args, adapter_args, training_args) if found == "extend" else None
        # Loading the dataset
        raw_datasets = load_raw_datasets(data_args, model_args, training_args)
        # Labels
        task, raw_datasets = describe_task(raw_datasets, data_args, training_args)
        check_best_metric(training_args, task)
        task, raw_datasets = hold_out(raw_datasets, task, data_args, training_args)
        # Load pretrained model and tokenizer: first what costs nothing and shows every mistake
        config, label_order = load_config(model_args, adapter_args, task)
        tokenizer = load_tokenizer(model_args)
        architecture = build_architecture(config, model_args)
        adapter_config = make_adapter_config(adapter_args, architecture, training_args.seed)
        match_tokenizer(tokenizer, config, architecture)
        # Preprocessing the raw_datasets
        limit = adapters.leave_room(count_positions(architecture), adapter_config, adapter_args)
        tokenized_datasets = tokenize(raw_datasets, task, label_order, tokenizer, limit, data_args, training_args)
        # Detecting last checkpoint
        checkpoint = find_checkpoint(output_dir, training_args, command)
        model, base_sha256 = load_model(model_args, adapter_args, config, adapter_config, training_args.seed)
        fast_paths = use_fast_paths(model, adapter_args, data_args)
        trainer = make_trainer(model, training_args, data_args, tokenizer, tokenized_datasets, task, stop_on_signal)
        check_fixed(model, checkpoint or adapter_args.adapter_path or adapter_args.init_adapter_from)
        check_checkpoint(model, checkpoint)
        trainer.rehearse()
        if adapter_args.save_merged and training_args.should_save:
            adapters.claim_merged_folder(Path(adapter_args.save_merged), output_dir)
        if earlier:
            trainer.recall_training()
        else:
            clear_output_dir(output_dir, training_args, checkpoint)
        arguments = asdict(model_args) | asdict(data_args) | asdict(adapter_args) | training_args.to_dict()
        record = describe_run(trainer, command, arguments, raw_datasets, task, base_sha256, fast_paths)
        # Training
        if training_args.do_train:
            train(trainer, checkpoint, record)
        # Evaluation
        if training_args.do_eval or "selection" in tokenized_datasets:
            evaluate_splits(trainer, tokenized_datasets, task, record)
        # Prediction
        if training_args.do_predict:
            predict_splits(trainer, tokenized_datasets, task, record)
        if adapter_args.save_merged and trainer.is_world_process_zero():
            adapters.save_merged(model, tokenizer, Path(adapter_args.save_merged))
        finish(trainer, record, began, earlier)
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
    quiet_libraries(level, training_args.disable_tqdm)
    name_for_trackers(training_args)
    # Log on each process the small summary
    logger.info(f"device: {training_args.device}, processes: {training_args.world_size}")


def load_config(
    model_args: ModelArguments, adapter_args: AdapterArguments, task: Task
) -> tuple[PreTrainedConfig, list[int] | None]:
    """Load the model's config with the task's labels, and the model's output for each label (None: regression)."""
    flag = "model_name_or_path" if model_args.config_name is None else "config_name"
    name, saved = getattr(model_args, flag), adapter_args.adapter_path
    if saved is not None and (Path(saved) / "config.json").is_file():
        flag, name = "adapter_path", saved
    with as_usage_error(f"--{flag} {name}"):
        config = AutoConfig.from_pretrained(name, **hub_arguments(model_args))
    names = [str(label) for label in task.label_list]
    own_order = order_of_labels(config.label2id, names)
    if saved == name and (config.num_labels != task.num_labels or not (task.is_regression or own_order)):
        raise UsageError(
            f"--adapter_path {saved}: trained for the labels {list(config.label2id)}, the data have {names}"
        )
    config.finetuning_task = task.metric
    adapters.set_head_dropout(config, model_args.classifier_dropout)
    if task.is_regression:
        config.num_labels, config.problem_type = 1, "regression"
        return config, None
    # Some models have set the order of the labels to use, so let's make sure we do use it
    label_order = own_order or list(range(task.num_labels))
    if own_order is None and config.label2id != PreTrainedConfig(num_labels=config.num_labels).label2id:
        logger.warning(f"the model's labels {list(config.label2id)} are not the data's: the data's {names} are used")
    config.num_labels = task.num_labels
    config.id2label = dict(zip(label_order, names, strict=True))
    config.label2id = {label: i for i, label in config.id2label.items()}
    config.problem_type = "single_label_classification"
    return config, label_order


def hub_arguments(model_args: ModelArguments) -> dict[str, Any]:
    """Return the keyword arguments of every from_pretrained call."""
    return {
        "cache_dir": model_args.cache_dir,
        "revision": model_args.model_revision,
        "token": model_args.token,
        "trust_remote_code": model_args.trust_remote_code,
    }


def load_tokenizer(model_args: ModelArguments) -> transformers.PreTrainedTokenizerBase:
    """Load the tokenizer."""
    flag = "model_name_or_path" if model_args.tokenizer_name is None else "tokenizer_name"
    name = getattr(model_args, flag)
    hints = {"backend tokenizer": " … the tokenizer's files are not there, or a package that they need"}
    with as_usage_error(f"--{flag} {name}, its tokenizer", hints):
        return AutoTokenizer.from_pretrained(name, use_fast=model_args.use_fast_tokenizer, **hub_arguments(model_args))


def build_architecture(config: PreTrainedConfig, model_args: ModelArguments) -> nn.Module:
    """Build the model on the meta device: its layers' names and sizes, without weights or memory."""
    where = f"--model_name_or_path {model_args.model_name_or_path}"
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING and not model_args.trust_remote_code:
        raise UsageError(f"{where}: transformers has no head for classifying texts on a {config.model_type!r} model")
    with as_usage_error(where), torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config, trust_remote_code=model_args.trust_remote_code)


def make_adapter_config(adapter_args: AdapterArguments, architecture: nn.Module, seed: int) -> PeftConfig | None:
    """Build the PEFT config of --adapter_name or read that of --adapter_config; None where none is to be added."""
    name, path = adapter_args.adapter_name, adapter_args.adapter_config
    if adapter_args.adapter_path is not None or (name == "none" and not path):
        return None
    if path is not None:
        config = adapters.read_adapter_config(Path(path), architecture, adapter_args.save_merged is not None)
    else:
        common = {"task_type": "SEQ_CLS", "modules_to_save": adapters.head_modules(architecture)}
        config = choose_adapter_config(adapter_args, architecture, seed, common)
    if adapter_args.init_adapter_from is not None:
        adapters.agree_with_saved(config, adapter_args)
    return config


def choose_adapter_config(
    adapter_args: AdapterArguments, architecture: nn.Module, seed: int, common: dict[str, Any]
) -> PeftConfig:
    """Return the PEFT config that --adapter_name, --rank and their companions describe."""
    name, rank, dropout = adapter_args.adapter_name, adapter_args.rank, adapter_args.adapter_dropout
    adapter_args.target_modules = adapter_args.target_modules or adapters.default_target_modules(architecture)
    widths = adapters.target_widths(architecture, adapter_args.target_modules)
    common = {**common, "r": rank, "target_modules": adapter_args.target_modules}
    alpha = 2 * rank if adapter_args.adapter_alpha is None else adapter_args.adapter_alpha
    if name == "lora":
        return peft.LoraConfig(lora_alpha=alpha, lora_dropout=dropout, **common)
    key = adapter_args.projection_prng_key
    common["projection_prng_key"] = adapters.projection_key(seed) if key is None else key
    common["save_projection"] = adapter_args.save_projection
    if name == "vera":
        return peft.VeraConfig(vera_dropout=dropout, d_initial=adapter_args.vera_d_initial, **common)
    if rank > min(widths):
        raise UsageError(f"--rank {rank}: RandLoRA allows 1 to {min(widths)}, the smallest layer's width")
    if adapter_args.paper_scaling:
        alpha /= math.sqrt(adapters.number_of_bases(widths, rank))
    return peft.RandLoraConfig(
        randlora_alpha=alpha,
        randlora_dropout=dropout,
        sparse=adapter_args.randlora_sparse,
        very_sparse=adapter_args.randlora_very_sparse,
        **common,
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
    # Set seed before initializing model: the new head, and the adapter's start, depend on it alone
    set_seed(seed_of(adapter_args.adapter_path, seed))
    hints = {"mismatch": "; --ignore_mismatched_sizes draws a new head"}
    with as_usage_error(f"--model_name_or_path {model_args.model_name_or_path}", hints):
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            model_args.model_name_or_path,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
            output_loading_info=True,
            **hub_arguments(model_args),
        )
    base_sha256 = hash_tensors(model.base_model.state_dict())
    logger.info(adapters.drawn_in_words(loading))
    if adapter_args.adapter_path is not None or adapter_config is not None:
        adapters.check_encoder_is_complete(model, loading, model_args)
    if adapter_args.adapter_path is not None:
        model = adapters.load_saved(model, Path(adapter_args.adapter_path), base_sha256, adapter_args)
    elif adapter_config is not None:
        revision = None if model_args.model_revision == "main" else model_args.model_revision
        model = adapters.add_adapter(model, adapter_config, adapter_args, revision)
    if adapter_args.init_adapter_from is not None:
        adapters.start_from_saved(model, Path(adapter_args.init_adapter_from), base_sha256)
    return model, base_sha256


def use_fast_paths(
    model: nn.Module, adapter_args: AdapterArguments, data_args: DataTrainingArguments
) -> tuple[run_record.ConvertedLayers, run_record.UnpaddedEncoder]:
    """Switch on what computes the same in less time; return for the record what was and what was not, and why."""
    layers: run_record.ConvertedLayers = {"converted": 0, "left": {}}
    if adapter_args.fast_adapters != "off" and isinstance(model, PeftModel):
        as_on_gpu = adapter_args.fast_adapters == "stacked"
        layers["converted"], layers["left"] = use_fast_adapters(model, as_on_gpu)
        left = "".join(f", {count} left ({reason})" for reason, count in layers["left"].items())
        logger.info(f"fast adapters: {layers['converted']} layers converted{left}")
    padded = "--no_unpad" if not data_args.unpad else "--pad_to_max_length" if data_args.pad_to_max_length else None
    padded = padded or use_unpadded_encoder(model)
    logger.info(f"unpadded encoder: {'on' if padded is None else f'off, as {padded}'}")
    return layers, {"on": padded is None, "reason": padded}


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
    # Data collator: rows of the same length already, or padded to the longest of a batch
    data_collator = default_data_collator
    if not data_args.pad_to_max_length:
        multiple = data_args.pad_to_multiple_of or (8 if training_args.fp16 or training_args.bf16 else None)
        padding = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=multiple)
        data_collator = plan_batches(model, padding, training_args)
    evaluated = [*splits(tokenized_datasets, "validation"), ("selection", "_selection")]
    evaluations = {f"eval{end}": tokenized_datasets[name] for name, end in evaluated if name in tokenized_datasets}
    if training_args.follows_task_metric:
        held_out = "selection_" if "selection" in tokenized_datasets else ""
        training_args.metric_for_best_model = f"eval_{held_out}{task.main_metric}"
        training_args.greater_is_better = task.greater_is_better
    order = None if task.is_regression else [model.config.label2id[str(label)] for label in task.label_list]
    kept = EvalPredictions(task.main_metric, task.greater_is_better, order)
    # Initialize our Trainer
    return GlueTrainer(
        model=model,
        args=training_args,
        train_dataset=tokenized_datasets.get("train"),
        evaluations=evaluations,
        eval_predictions=kept if training_args.save_eval_predictions else None,
        # Get the metric function
        compute_metrics=make_compute_metrics(task, order),
        processing_class=tokenizer,
        data_collator=data_collator,
        callbacks=[stop_on_signal],
    )


def describe_run(
    trainer: GlueTrainer,
    command: list[str],
    arguments: dict[str, Any],
    raw_datasets: DatasetDict,
    task: Task,
    base_sha256: str,
    fast_paths: tuple[run_record.ConvertedLayers, run_record.UnpaddedEncoder],
) -> RunRecord:
    """Start the run's record: everything that makes its numbers, without any token; and write command.json."""
    model, args, path = trainer.model, trainer.args, arguments["adapter_config"]
    revision = getattr(model.config, "_commit_hash", None)
    adapter_config = model.active_peft_config.to_dict() if isinstance(model, PeftModel) else None
    record = RunRecord(
        command=command,
        arguments={name: value for name, value in arguments.items() if not name.endswith("token")},
        adapter_config=json.loads(json.dumps(adapter_config, default=sorted)),
        adapter_config_file=run_folder.read_json(Path(path)) if path else None,
        base_model={"name": arguments["model_name_or_path"], "revision": revision, "sha256": base_sha256},
        data=task.as_read(),
        data_sha256={name: hash_rows(rows) for name, rows in raw_datasets.items()},
        parameters=adapters.count_parameters(model),
        fast_adapters=fast_paths[0],
        unpadded_encoder=fast_paths[1],
        device=torch.cuda.get_device_name() if args.device.type == "cuda" else platform.processor() or "cpu",
        threads=torch.get_num_threads(),
        **processes_and_precision(args),
        **run_record.describe_environment(REPOSITORY),
    )
    logger.info(record.parameters_in_words())
    if args.should_save:
        record.write_command(Path(args.output_dir))
    return record


def train(trainer: GlueTrainer, checkpoint: Path | None, record: RunRecord) -> None:
    """Train, from a checkpoint if there is one, and save the model."""
    train_result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(_internal_call=True)  # saves the tokenizer too, and uploads nothing yet
    record.parameters["stored"] = adapters.count_parameters(trainer.model)["stored"]  # AdaLoRA keeps some ranks alone
    metrics = train_result.metrics | {"train_samples": len(trainer.train_dataset)}
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    record.metrics.update(metrics)


def evaluate_splits(trainer: GlueTrainer, tokenized_datasets: DatasetDict, task: Task, record: RunRecord) -> None:
    """Evaluate on every validation split, without --do_eval on the held-out rows; MNLI's mismatched one adds _mm."""
    logger.info("*** Evaluate ***")
    # Loop to handle MNLI double evaluation (matched, mis-matched)
    combined, outputs, evaluated = {}, {}, splits(tokenized_datasets, "validation")
    prefix = "eval" if evaluated else "selection"
    for name, suffix in evaluated or [("selection", "")]:
        metrics = trainer.evaluate(tokenized_datasets[name], metric_key_prefix=prefix)
        outputs[suffix] = trainer.outputs[prefix]
        metrics[f"{prefix}_samples"] = len(tokenized_datasets[name])
        if not math.isfinite(metrics[f"{prefix}_loss"]):
            raise DivergedError(f"the evaluation loss is {metrics[f'{prefix}_loss']}")
        metrics = {f"{key}{suffix}": value for key, value in metrics.items()}
        combined.update(metrics)
    trainer.save_metrics(prefix, combined)
    record.metrics.update(combined)
    record.scores = trainer.conclude(combined, outputs if evaluated else {}, task)


def predict_splits(trainer: GlueTrainer, tokenized_datasets: DatasetDict, task: Task, record: RunRecord) -> None:
    """Write predict_results_<task>.txt for every test split: index and label name, or a number for regression."""
    logger.info("*** Predict ***")
    for name, suffix in splits(tokenized_datasets, "test"):
        rows = tokenized_datasets[name]
        logits = finite_logits(trainer.predict(rows, metric_key_prefix="predict").predictions)
        if task.is_regression:
            predictions = [f"{value:3.3f}" for value in logits[:, 0]]
        else:
            predictions = [trainer.model.config.id2label[i] for i in logits.argmax(axis=1)]
        record.metrics[f"predict_samples{suffix}"] = len(rows)
        if trainer.is_world_process_zero():
            lines = ["index\tprediction", *(f"{index}\t{item}" for index, item in enumerate(predictions))]
            task_name = "ax" if suffix == "_ax" else f"{task.name}{suffix.replace('_', '-')}"
            path = Path(trainer.args.output_dir) / f"predict_results_{task_name}.txt"
            with run_folder.atomic_write(path) as temporary:
                temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def finish(trainer: GlueTrainer, record: RunRecord, began: float, earlier: dict[str, Any] | None) -> None:
    """Write the record, which marks the run as finished, delete the checkpoints, and say where everything is."""
    if not trainer.is_world_process_zero():
        return
    output_dir = Path(trainer.args.output_dir)
    weights = [output_dir / name for name in ("adapter_model.safetensors", "model.safetensors")]
    record.saved_bytes = next((path.stat().st_size for path in weights if path.exists()), None)
    record.seconds = round(trainer.seconds_before + time.perf_counter() - began, 3)
    if trainer.args.device.type == "cuda":
        record.peak_memory = {"kind": "cuda allocated", "bytes": torch.cuda.max_memory_allocated()}
    else:
        record.peak_memory = run_record.peak_memory_of_process()
    record.write(output_dir, earlier)
    run_folder.discard_replaced(output_dir)  # where nothing was trained
    if not trainer.args.keep_checkpoints:
        run_folder.delete_checkpoints(output_dir)
    write_card(output_dir, record)
    if trainer.args.push_to_hub:
        upload(output_dir, trainer.hub_model_id, trainer.args)
    print(f"\nDone in {record.seconds:.0f} s. Results, record and model: {output_dir}\n{record.scores_in_words()}")


if __name__ == "__main__":
    sys.exit(end_processes(run_script(main, "run_glue.py")))
