"""From files to tokens: the splits of a task, what they say about it, and their tokenised rows.

GLUE comes from a local folder or the hub; other classification and regression data from the hub or CSV and JSON files.
"""

import glob
import hashlib
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import transformers
from datasets import DatasetDict, load_dataset
from sklearn.model_selection import train_test_split
from torch import nn

from glue_peft.arguments import DataTrainingArguments, GlueTrainingArguments, ModelArguments, task_to_keys
from glue_peft.errors import UsageError, first_line
from glue_peft.tasks import main_metric

logger = logging.getLogger("run_glue")


@dataclass(frozen=True)
class Task:
    """What the data say about the task: asked once, here."""

    name: str  # in messages and predict_results_<name>.txt
    metric: str | None  # configuration of metric.Glue; None: accuracy or mean squared error
    sentence_keys: tuple[str, str | None]
    label_list: tuple[str | int, ...]  # empty for regression
    is_regression: bool

    @property
    def num_labels(self) -> int:
        """Number of outputs of the head."""
        return 1 if self.is_regression else len(self.label_list)

    @property
    def main_metric(self) -> str:
        """The metric that stands for the task, and picks an epoch."""
        return main_metric(self.metric, self.is_regression)

    @property
    def greater_is_better(self) -> bool:
        """Whether more of the main metric is better."""
        return self.main_metric != "mse"


def load_raw_datasets(
    data_args: DataTrainingArguments, model_args: ModelArguments, training_args: GlueTrainingArguments
) -> DatasetDict:
    """Load the splits that the run needs, with at least one row each. Raises UsageError where one is missing."""
    with training_args.main_process_first(desc="loading the data"):
        raw_datasets = load_all_splits(data_args, model_args, training_args.do_predict)
    source = data_args.source
    for flag, kind in (("do_train", "train"), ("do_eval", "validation"), ("do_predict", "test")):
        if getattr(training_args, flag) and not splits(raw_datasets, kind):
            raise UsageError(f"--{flag} needs a {kind} split, but {source} has only: {', '.join(raw_datasets)}")
    used = [name for kind in ("train", "validation", "test") for name, _ in splits(raw_datasets, kind)]
    raw_datasets = DatasetDict({name: raw_datasets[name] for name in raw_datasets if name in used})
    for name, rows in raw_datasets.items():
        if len(rows) == 0:
            raise UsageError(f"the {name} split of {source} has no rows")
    return raw_datasets


def load_all_splits(data_args: DataTrainingArguments, model_args: ModelArguments, do_predict: bool) -> DatasetDict:
    """Load GLUE from a local folder or the hub, a data set of the hub, or CSV or JSON files."""
    # GLUE's diagnostic set AX has no training rows: MNLI's model predicts it.
    with_ax = data_args.task_name == "mnli" and do_predict
    cache_dir = model_args.cache_dir
    if data_args.dataset_path is not None:
        folder = Path(data_args.dataset_path)
        raw_datasets = load_local_glue(folder, data_args.task_name, cache_dir)
        if with_ax and (folder / "ax").is_dir():
            raw_datasets["test_ax"] = load_local_glue(folder, "ax", cache_dir)["test"]
        return raw_datasets
    if data_args.train_file is not None:
        files = zip(
            ("train", "validation", "test"),
            (data_args.train_file, data_args.validation_file, data_args.test_file),
            strict=True,
        )
        found = {split: Path(file) for split, file in files if file is not None}
        return DatasetDict({split: read_files(file.suffix[1:], [file], cache_dir) for split, file in found.items()})
    raw_datasets = load_hub_dataset(*hub_name(data_args), model_args)
    if with_ax:
        try:
            raw_datasets["test_ax"] = load_hub_dataset("nyu-mll/glue", "ax", model_args)["test"]
        except UsageError as error:
            logger.warning(f"AX is not predicted: {error}")
    return raw_datasets


def load_local_glue(folder: Path, task_name: str, cache_dir: str | None) -> DatasetDict:
    """Read FOLDER/<task>/<split>-*.parquet, all splits that are there."""
    if not (folder / task_name).is_dir():
        there = sorted(path.name for path in folder.iterdir() if path.name in task_to_keys) if folder.is_dir() else []
        raise UsageError(
            f"--dataset_path {folder}: no folder {task_name} in it; tasks there: {', '.join(there) or 'none'}"
        )
    found: dict[str, list[Path]] = {}
    for path in sorted((folder / task_name).glob("*.parquet")):
        found.setdefault(path.name.split("-")[0], []).append(path)
    if not found:
        raise UsageError(f"--dataset_path {folder}: no <split>-*.parquet in {folder / task_name}")
    return DatasetDict({split: read_files("parquet", files, cache_dir) for split, files in found.items()})


def read_files(builder: str, files: list[Path], cache_dir: str | None) -> datasets.Dataset:
    """Read local files of one split through the cache of `datasets`.

    The builder's name carries a hash of the content: the cache is then never stale, nor shared between two folders.
    """
    try:
        digest = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()
        return load_dataset(
            builder,
            name=f"sha256-{digest[:32]}",
            data_files=[glob.escape(str(file.resolve())) for file in files],
            split="train",
            cache_dir=cache_dir,
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(
            f"{files[0]}: not a readable {builder} file ({first_line(error.__cause__ or error)})"
        ) from error


def hub_name(data_args: DataTrainingArguments) -> tuple[str, str | None]:
    """Return name and configuration of the hub's data set."""
    if data_args.dataset_name is not None:
        return data_args.dataset_name, data_args.dataset_config_name
    return "nyu-mll/glue", data_args.task_name


def load_hub_dataset(path: str, name: str | None, model_args: ModelArguments) -> DatasetDict:
    """Load a data set from the hub or from what an earlier download left in the cache."""
    try:
        return load_dataset(path, name, cache_dir=model_args.cache_dir, token=model_args.token)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"the data set {path} ({name}) could not be loaded from the hub ({first_line(error)}); without a network "
            "give --dataset_path with a local copy of GLUE, or set HF_HUB_OFFLINE=1 to use what was downloaded before"
        ) from error


def splits(dataset_dict: DatasetDict, kind: str) -> list[tuple[str, str]]:
    """Name the splits of a kind and the suffix of their results: MNLI's mismatched sets as `_mm`, AX as `_ax`."""
    names = {kind: "", f"{kind}_matched": "", f"{kind}_mismatched": "_mm", f"{kind}_ax": "_ax"}
    return [(name, suffix) for name, suffix in names.items() if name in dataset_dict]


def describe_task(
    raw_datasets: DatasetDict, data_args: DataTrainingArguments, training_args: GlueTrainingArguments
) -> Task:
    """Find the text columns, the labels and the metric, and check that the data have them.

    Raises UsageError for a missing column, an empty cell, or a validation label that training never shows.
    """
    source = data_args.source
    labelled_splits = splits(raw_datasets, "train") + splits(raw_datasets, "validation")
    if not labelled_splits:
        raise UsageError(f"{source} has neither a train nor a validation split, which name the labels")
    labelled = raw_datasets[labelled_splits[0][0]]
    if "label" not in labelled.column_names:
        raise UsageError(f"{source}: no column `label`; its columns are {', '.join(labelled.column_names)}")
    if data_args.task_name is not None:
        sentence_keys = task_to_keys[data_args.task_name]
    else:
        sentence_keys = find_sentence_keys(labelled, source)
    is_regression = data_args.task_name == "stsb" or getattr(labelled.features["label"], "dtype", "").startswith(
        "float"
    )
    task = Task(
        name=data_args.task_name or Path(data_args.dataset_name or data_args.train_file).stem,
        metric=data_args.task_name,
        sentence_keys=sentence_keys,
        label_list=() if is_regression else list_labels(labelled, source),
        is_regression=is_regression,
    )
    check_columns(raw_datasets, task, source, training_args.do_predict)
    return task


def find_sentence_keys(rows: datasets.Dataset, source: str) -> tuple[str, str | None]:
    """Return the text columns of data that are not GLUE's, as Hugging Face's example finds them."""
    names = [name for name in rows.column_names if name not in ("label", "idx")]
    if not names:
        raise UsageError(f"{source}: no text column beside `label`")
    if "sentence1" in names and "sentence2" in names:
        return "sentence1", "sentence2"
    return names[0], names[1] if len(names) > 1 else None


def list_labels(rows: datasets.Dataset, source: str) -> tuple[str | int, ...]:
    """Return the labels in their order: the data set's own, or sorted."""
    if isinstance(rows.features["label"], datasets.ClassLabel):
        return tuple(rows.features["label"].names)
    try:
        return tuple(sorted(set(rows["label"]) - {None}))
    except TypeError as error:
        raise UsageError(f"{source}: `label` must hold whole numbers, floats or texts, one kind alone") from error


def check_columns(raw_datasets: DatasetDict, task: Task, source: str, do_predict: bool) -> None:
    """Raise UsageError where a split lacks a column, holds an empty cell, or has a label unknown to the head."""
    for split, rows in raw_datasets.items():
        labelled = not split.startswith("test")
        if not labelled and not do_predict:
            continue
        for column in [key for key in task.sentence_keys if key is not None] + ["label"] * labelled:
            if column not in rows.column_names:
                raise UsageError(
                    f"{source}: the {split} split has no column `{column}`, only {', '.join(rows.column_names)}"
                )
            if rows.data.column(column).null_count:
                raise UsageError(f"{source}: the {split} split has empty cells in its column `{column}`")
            if column != "label" and getattr(rows.features[column], "dtype", None) not in ("string", "large_string"):
                raise UsageError(f"{source}: the column `{column}` of the {split} split is not text")
        if labelled and not task.is_regression:
            known = set(label_positions(task, rows))
            unseen = sorted(set(rows.unique("label")) - known, key=str)
            if unseen:
                raise UsageError(f"{source}: the {split} split has labels unseen in training: {unseen[:5]}")
    if not task.is_regression and task.num_labels < 2:
        raise UsageError(f"{source}: `label` has a single value, {task.label_list}; classification needs two or more")


def hold_out(
    raw_datasets: DatasetDict, task: Task, data_args: DataTrainingArguments, training_args: GlueTrainingArguments
) -> DatasetDict:
    """Split `selection` off the training rows, where --selection_fraction asks for it.

    Stratified by label, for regression by the labels' deciles; drawn by the seed; both parts keep the rows' order.
    """
    if training_args.selection_fraction is None:
        return raw_datasets
    rows = first_rows(raw_datasets["train"], data_args.max_train_samples)
    strata = np.asarray(rows["label"])
    if task.is_regression:
        strata = np.digitize(strata, np.quantile(strata, np.linspace(0.1, 0.9, 9)))
    try:
        train, selection = train_test_split(
            np.arange(len(rows)),
            test_size=training_args.selection_fraction,
            random_state=training_args.seed,
            stratify=strata,
        )
    except ValueError as error:
        raise UsageError(
            f"--selection_fraction {training_args.selection_fraction}: {len(rows)} training rows can't be split so "
            f"({first_line(error)})"
        ) from error
    parts = {"train": rows.select(np.sort(train)), "selection": rows.select(np.sort(selection))}
    return DatasetDict(raw_datasets | parts)


def first_rows(rows: datasets.Dataset, most: int | None) -> datasets.Dataset:
    """Return the first `most` rows, or all where there is no limit."""
    return rows.select(range(min(len(rows), most or len(rows))))


def label_positions(task: Task, rows: datasets.Dataset) -> dict[str | int, int]:
    """Map what stands in the column `label` to the position in the task's list of labels."""
    if isinstance(rows.features["label"], datasets.ClassLabel):
        return {i: i for i in range(task.num_labels)}
    return {label: i for i, label in enumerate(task.label_list)}


def agree_on_padding(
    config: transformers.PreTrainedConfig,
    architecture: nn.Module,
    tokenizer: transformers.PreTrainedTokenizerBase,
) -> None:
    """Let the config name the tokenizer's padding token, by which a decoder's head finds each row's last real one.

    RoBERTa and its relatives keep their own: it says where their positions start.
    """
    embeddings = getattr(getattr(architecture.base_model, "embeddings", None), "position_embeddings", None)
    own, used = config.pad_token_id, tokenizer.pad_token_id
    if used is None or used == own or getattr(embeddings, "padding_idx", None) is not None:
        return
    if own is not None:
        logger.warning(f"the model's padding token {own} is not the tokenizer's: {used} is used")
    config.pad_token_id = used


def tokenize(
    raw_datasets: DatasetDict,
    task: Task,
    label_order: list[int] | None,
    tokenizer: transformers.PreTrainedTokenizerBase,
    max_positions: int,
    data_args: DataTrainingArguments,
    training_args: GlueTrainingArguments,
) -> DatasetDict:
    """Tokenise the splits that the run uses; `datasets` caches the result for the next seed and adapter.

    label_order[i] is the model's output for the task's label i; None for regression.
    """
    settings = tokenizer_settings(tokenizer, max_positions, data_args)
    tokenized = {}
    wanted = {
        "train": (training_args.do_train, data_args.max_train_samples),
        "selection": (training_args.do_train, None),
        "validation": (training_args.do_eval, data_args.max_eval_samples),
        "test": (training_args.do_predict, data_args.max_predict_samples),
    }
    with training_args.main_process_first(desc="dataset map pre-processing"):
        for kind, (needed, most) in wanted.items():
            for name, _ in splits(raw_datasets, kind) if needed else ():
                rows = first_rows(raw_datasets[name], most)
                if kind == "test" and "label" in rows.column_names:
                    rows = rows.remove_columns("label")  # GLUE's are all -1, others' may be empty: not needed
                positions = label_positions(task, rows) if "label" in rows.column_names else {}
                outputs = {label: label_order[i] for label, i in positions.items()} if label_order else {}
                tokenized[name] = rows.map(
                    make_preprocess_function(task, tokenizer, settings, outputs),
                    batched=True,
                    remove_columns=rows.column_names,
                    load_from_cache_file=not data_args.overwrite_cache,
                    desc=f"Running tokenizer on {name}",
                )
    return DatasetDict(tokenized)


def tokenizer_settings(
    tokenizer: transformers.PreTrainedTokenizerBase, max_positions: int, data_args: DataTrainingArguments
) -> dict[str, Any]:
    """Return the arguments of every call of the tokenizer."""
    limit = min(tokenizer.model_max_length, max_positions)
    if data_args.max_seq_length > limit:
        logger.warning(f"--max_seq_length {data_args.max_seq_length} is above the model's {limit}: using {limit}")
    # Padding strategy: here to the same length for every row, or by the data collator to the longest of a batch
    padding = "max_length" if data_args.pad_to_max_length else False
    settings = {"max_length": min(data_args.max_seq_length, limit), "truncation": True, "padding": padding}
    # A fast tokenizer keeps the settings of its last call, and they enter the fingerprint under which `map` caches:
    # without this call the first process to tokenise and the next ones would look under different names.
    tokenizer("", **settings)
    return settings


def count_positions(architecture: nn.Module) -> int:
    """Return the most tokens a row may have; RoBERTa's position embeddings start behind its padding index."""
    embeddings = getattr(getattr(architecture.base_model, "embeddings", None), "position_embeddings", None)
    if not isinstance(embeddings, nn.Embedding):
        positions = getattr(architecture.config, "max_position_embeddings", None)
        return positions if positions and positions > 0 else sys.maxsize
    return embeddings.num_embeddings - (0 if embeddings.padding_idx is None else embeddings.padding_idx + 1)


def make_preprocess_function(
    task: Task,
    tokenizer: transformers.PreTrainedTokenizerBase,
    settings: dict[str, Any],
    outputs: dict[str | int, int],
) -> Callable[[dict[str, list]], dict[str, list]]:
    """Return the function that `map` applies: texts to tokens, labels to the model's outputs (-1: GLUE's none)."""

    def preprocess_function(examples: dict[str, list]) -> dict[str, list]:
        """Tokenise one batch of rows."""
        result = tokenizer(*(examples[key] for key in task.sentence_keys if key is not None), **settings)
        if "label" in examples:
            labels = examples["label"]
            result["labels"] = [float(x) if task.is_regression else outputs.get(x, -1) for x in labels]
        return result

    return preprocess_function


def hash_rows(rows: datasets.Dataset) -> str:
    """Hash a split's content by SHA-256, whatever file, chunks or version of `datasets` it came through."""
    frame = rows.with_format(None).to_pandas()
    return hashlib.sha256(pd.util.hash_pandas_object(frame.astype(str), index=False).values.tobytes()).hexdigest()
