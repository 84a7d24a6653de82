"""From files to tokens: the splits of a task, what they say about it, and their tokenised rows.

GLUE comes from a local folder or the hub; other classification and regression data from the hub or CSV and JSON files.
What kind of task the labels of these make is decided once, over all splits.
"""

import glob
import hashlib
import logging
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import transformers
from datasets import DatasetDict, load_dataset
from torch import nn

from glue_peft.arguments import DataTrainingArguments, GlueTrainingArguments, ModelArguments, task_to_keys
from glue_peft.errors import UsageError, first_line, is_disk_full
from glue_peft.grouped_split import draw
from glue_peft.record import DataDescription, Selection
from glue_peft.tasks import TASKS, main_metric
from glue_peft.text_files import faults_of_cache, read_text_file

logger = logging.getLogger("run_glue")


@dataclass(frozen=True)
class Task:
    """What the data say about the task: asked once, here."""

    name: str  # in predict_results_<name>.txt: the task's, else the predicted file's or the data set's
    metric: str | None  # configuration of metric.Glue; None: accuracy or mean squared error
    sentence_keys: tuple[str, str | None]
    label_list: tuple[str | int, ...]  # empty for regression
    is_regression: bool
    label_counts: dict[str, int]  # rows of each label in the first labelled split; empty for regression
    dropped_rows: dict[str, int]  # rows of each split that were left out, as they have no label
    selection: Selection | None = None  # how rows were held out of training, where they were

    @property
    def num_labels(self) -> int:
        """Number of outputs of the head."""
        return 1 if self.is_regression else len(self.label_list)

    def as_read(self) -> DataDescription:
        """Return what the data were read as, for the record."""
        read: DataDescription = {
            "text_columns": [key for key in self.sentence_keys if key is not None],
            "kind": "regression" if self.is_regression else "classification",
            "label_counts": self.label_counts,
            "dropped_rows": self.dropped_rows,
        }
        return read if self.selection is None else {**read, "selection": self.selection}

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
    """Load the splits that the run needs, with at least one row each. Raises UsageError where one is missing.

    A training that is scored on held-out rows alone does without the validation set, and doesn't read it.
    """
    held_out_alone = training_args.do_train and training_args.selection_fraction is not None
    unread = ("validation",) if held_out_alone and not training_args.do_eval else ()
    with training_args.main_process_first(desc="loading the data"):
        raw_datasets = load_all_splits(data_args, model_args, training_args.do_predict, unread)
    source = data_args.source
    for flag, kind in (("do_train", "train"), ("do_eval", "validation"), ("do_predict", "test")):
        if getattr(training_args, flag) and not splits(raw_datasets, kind):
            raise UsageError(f"--{flag} needs a {kind} split, but {source} has only: {', '.join(raw_datasets)}")
    used = [name for kind in ("train", "validation", "test") for name, _ in splits(raw_datasets, kind)]
    used = [name for name in used if not name.startswith(unread)]
    raw_datasets = DatasetDict({name: raw_datasets[name] for name in raw_datasets if name in used})
    for name, rows in raw_datasets.items():
        if len(rows) == 0:
            raise UsageError(f"the {name} split of {source} has no rows")
    return raw_datasets


def load_all_splits(
    data_args: DataTrainingArguments, model_args: ModelArguments, do_predict: bool, unread: tuple[str, ...]
) -> DatasetDict:
    """Load GLUE from a local folder or the hub, a data set of the hub, or CSV or JSON files.

    Files of splits whose names begin as in `unread` are not opened.
    """
    # GLUE's diagnostic set AX has no training rows: MNLI's model predicts it.
    with_ax = data_args.task_name == "mnli" and do_predict
    cache_dir = model_args.cache_dir
    if data_args.dataset_path is not None:
        folder = Path(data_args.dataset_path)
        raw_datasets = load_local_glue(folder, data_args.task_name, cache_dir, unread)
        if with_ax and (folder / "ax").is_dir():
            raw_datasets["test_ax"] = load_local_glue(folder, "ax", cache_dir)["test"]
        return raw_datasets
    if data_args.train_file is not None:
        files = zip(
            ("train", "validation", "test"),
            (data_args.train_file, data_args.validation_file, data_args.test_file),
            strict=True,
        )
        found = {split: Path(file) for split, file in files if file is not None and split not in unread}
        return DatasetDict({split: read_text_file(file, cache_dir) for split, file in found.items()})
    raw_datasets = load_hub_dataset(*hub_name(data_args), model_args)
    if with_ax:
        try:
            raw_datasets["test_ax"] = load_hub_dataset("nyu-mll/glue", "ax", model_args)["test"]
        except UsageError as error:
            logger.warning(f"AX is not predicted: {error}")
    return raw_datasets


def load_local_glue(folder: Path, task_name: str, cache_dir: str | None, unread: tuple[str, ...] = ()) -> DatasetDict:
    """Read FOLDER/<task>/<split>-*.parquet, all splits that are there but those whose names begin as in `unread`."""
    found: dict[str, list[Path]] = {}
    for path in sorted((folder / task_name).glob("*.parquet")):
        if not path.name.startswith(unread):
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
        with faults_of_cache(cache_dir):
            return load_dataset(
                builder,
                name=f"sha256-{digest[:32]}",
                data_files=[glob.escape(os.path.realpath(file)) for file in files],
                split="train",
                cache_dir=cache_dir,
            )
    except UsageError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if is_disk_full(error):
            raise
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
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if is_disk_full(error.__cause__ or error):
            raise
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
) -> tuple[Task, DatasetDict]:
    """Find the text columns, the labels and the metric; return them with the rows that have a label.

    Raises UsageError for a missing column, an empty cell, labels of mixed kinds, or a validation label that training
    never shows.
    """
    labelled = splits(raw_datasets, "train") + splits(raw_datasets, "validation")
    if not labelled:
        raise UsageError(f"{data_args.source} has neither a train nor a validation split, which name the labels")
    sources = {name: split_source(name, data_args) for name in raw_datasets}
    if data_args.label_column != "label":
        raw_datasets = name_label_column(raw_datasets, data_args, sources)
    labelled_rows = {name: raw_datasets[name] for name, _ in labelled}
    sentence_keys = text_columns(labelled_rows, data_args, sources)
    check_columns(raw_datasets, sentence_keys, sources, data_args.label_column, training_args.do_predict)
    kept = without_hidden(labelled_rows, sources, data_args.task_name)
    dropped = {name: len(labelled_rows[name]) - len(rows) for name, rows in kept.items()}
    is_regression, label_list = kind_of_labels(kept, sources, data_args.task_name)
    first = kept[labelled[0][0]]
    task = Task(
        name=data_args.task_name or Path(data_args.dataset_name or data_args.test_file or data_args.train_file).stem,
        metric=data_args.task_name,
        sentence_keys=sentence_keys,
        label_list=label_list,
        is_regression=is_regression,
        label_counts={} if is_regression else count_labels(first, label_list),
        dropped_rows={name: count for name, count in dropped.items() if count},
    )
    check_labels(kept, task, sources)
    if is_regression and training_args.label_smoothing_factor:
        raise UsageError(
            f"--label_smoothing_factor {training_args.label_smoothing_factor}: is for classes, the labels are scores"
        )
    logger.info(f"data: {data_args.source}: {described(task, {name: len(rows) for name, rows in kept.items()})}")
    return task, DatasetDict(raw_datasets | kept)


def split_source(split: str, data_args: DataTrainingArguments) -> str:
    """Return what a message calls a split: the file's own name, or the data set's with the split's."""
    file = getattr(data_args, f"{split}_file", None) if data_args.train_file is not None else None
    return file or f"{data_args.source}, {split} split"


def name_label_column(
    raw_datasets: DatasetDict, data_args: DataTrainingArguments, sources: dict[str, str]
) -> DatasetDict:
    """Call --label_column `label`, as everything after this does; another column of that name is left out."""
    named = {}
    for split, rows in raw_datasets.items():
        if data_args.label_column in rows.column_names:
            rows = rows.remove_columns("label") if "label" in rows.column_names else rows
            rows = rows.rename_column(data_args.label_column, "label")
        elif not split.startswith("test"):
            raise UsageError(
                f"--label_column {data_args.label_column}: not in {sources[split]}; its columns are "
                f"{', '.join(rows.column_names)}"
            )
        named[split] = rows
    return DatasetDict(named)


def text_columns(
    labelled: dict[str, datasets.Dataset], data_args: DataTrainingArguments, sources: dict[str, str]
) -> tuple[str, str | None]:
    """Return the columns with the texts: GLUE's, those of --text_columns, a pair by its names, or the only one.

    Columns named idx or id are left out, and so are those that hold nothing but numbers. Two texts without the names
    of a pair may be an id or a source beside the text: they are refused, never guessed.
    """
    if data_args.task_name is not None:
        return task_to_keys[data_args.task_name]
    split, rows = next(iter(labelled.items()))
    if data_args.text_columns is not None:
        first, *second = data_args.text_columns
        return first, second[0] if second else None
    if "label" not in rows.column_names:
        raise UsageError(
            f"{sources[split]}: no column `label`, only {', '.join(rows.column_names)}; --label_column names another"
        )
    pairs = pairs_by_name(rows.column_names)
    if len(pairs) == 1:
        return pairs[0]
    found = [name for name in rows.column_names if name not in ("label", "idx", "id") and holds_texts(rows, name)]
    if len(found) != 1:
        what = f"{len(found)} columns with texts, {', '.join(found)}" if found else "no column with texts"
        raise UsageError(
            f"{sources[split]}: {what}, beside `{data_args.label_column}`; name one or two with --text_columns (there "
            f"are {', '.join(data_args.label_column if name == 'label' else name for name in rows.column_names)})"
        )
    return found[0], None


def pairs_by_name(names: list[str]) -> list[tuple[str, str]]:
    """Return the columns that are pairs by their names: those of a GLUE task, x1 and x2, x_a and x_b."""
    pairs = [(first, second) for first, second in task_to_keys.values() if second is not None]
    for name in names:
        pairs += [(name, name[:-1] + then) for end, then in ("12", "ab", "AB") if name[1:].endswith(end)]
    return [pair for pair in dict.fromkeys(pairs) if {*pair} <= {*names}]


def holds_texts(rows: datasets.Dataset, column: str) -> bool:
    """Say whether a column is of texts, and not of numbers alone."""
    if getattr(rows.features[column], "dtype", None) not in ("string", "large_string"):
        return False
    return any(value is not None and number_in(value) is None for value in rows[column])


def number_in(text: str) -> float | None:
    """Return the number that a text writes, NaN and infinity included, or None where it writes none."""
    try:
        return float(text)
    except ValueError:
        return None


def check_columns(
    raw_datasets: DatasetDict,
    sentence_keys: tuple[str, str | None],
    sources: dict[str, str],
    label_column: str,
    do_predict: bool,
) -> None:
    """Raise UsageError where a split lacks a column or has an empty cell, or where a text column isn't one.

    `label_column` is what the user's data call `label`.
    """
    for split, rows in raw_datasets.items():
        is_labelled = not split.startswith("test")
        if not is_labelled and not do_predict:
            continue
        for column in [key for key in sentence_keys if key is not None] + ["label"] * is_labelled:
            if column not in rows.column_names:
                raise UsageError(f"{sources[split]}: no column `{column}`, only {', '.join(rows.column_names)}")
            if column != "label" and getattr(rows.features[column], "dtype", None) not in ("string", "large_string"):
                raise UsageError(f"{sources[split]}: the column `{column}` is not text")
            empty = {value for value in rows.unique(column) if value is None or is_blank(value, column == "label")}
            if empty:
                row = next(number for number, value in enumerate(rows[column], start=1) if value in empty)
                shown = label_column if column == "label" else column
                raise UsageError(f"{sources[split]}: row {row} has an empty cell in the column `{shown}`")


def is_blank(value: object, strictly: bool) -> bool:
    """Say whether a cell holds nothing, or, `strictly`, nothing but blanks."""
    return value == "" or (strictly and isinstance(value, str) and not value.strip())


def without_hidden(
    labelled: dict[str, datasets.Dataset], sources: dict[str, str], task_name: str | None
) -> dict[str, datasets.Dataset]:
    """Return the rows whose label isn't -1, GLUE's mark of a hidden one. Raises UsageError where a split has no other.

    It is a label like others beside a single one (1 and -1), and beside numbers that aren't classes' (-2, 0.5).
    """
    distinct = {str(label) for rows in labelled.values() for label in rows.unique("label")}
    others = distinct - {"-1"}
    named = any(isinstance(rows.features["label"], datasets.ClassLabel) for rows in labelled.values())
    is_numbered = all(label.isascii() and label.isdigit() for label in others)
    is_worded = all(number_in(label) is None for label in others)
    is_one_of_two = len(others) == 1 and task_name is None and not named
    if "-1" not in distinct or is_one_of_two or not (is_numbered or is_worded):
        return labelled
    kept = {}
    for split, rows in labelled.items():
        indices = [index for index, label in enumerate(rows["label"]) if str(label) != "-1"]
        where, hidden = sources[split], len(rows) - len(indices)
        if not indices:
            raise UsageError(f"{where}: every label is -1, the mark of a hidden one: nothing to train or evaluate on")
        if hidden:
            logger.warning(f"{where}: {hidden} of {len(rows)} rows left out, as their label is -1 (hidden)")
        kept[split] = rows.select(indices) if hidden else rows
    return kept


def kind_of_labels(
    labelled: dict[str, datasets.Dataset], sources: dict[str, str], task_name: str | None
) -> tuple[bool, tuple[str | int, ...]]:
    """Say whether the labels are scores to be regressed, and list the labels where they are classes.

    Texts are scores where all of them, in every file, write numbers and some one isn't a whole one. Raises UsageError
    for labels of mixed kinds.
    """
    rows = next(iter(labelled.values()))
    feature = rows.features["label"]
    dtype = getattr(feature, "dtype", "")
    if isinstance(feature, datasets.ClassLabel):
        is_regression, label_list = False, tuple(feature.names)
    elif dtype in ("string", "large_string"):
        is_regression, label_list = kind_of_texts(labelled, sources)
    elif dtype.startswith(("int", "uint", "bool")):
        is_regression, label_list = False, tuple(sorted(rows.unique("label")))
    elif dtype.startswith(("float", "double")):
        is_regression, label_list = True, ()
    else:
        raise UsageError(f"{next(iter(sources.values()))}: labels must be whole numbers, floats or texts")
    if task_name is not None and TASKS[task_name].scores is not None:
        if isinstance(feature, datasets.ClassLabel):
            raise UsageError(f"--task_name {task_name}: its labels are scores, but the data's are classes")
        return True, ()
    if task_name is not None:
        if is_regression:
            raise UsageError(f"--task_name {task_name}: its labels are classes, but the data's are {dtype}")
        check_names_of_labels(feature, label_list, task_name)
    if not is_regression and len(label_list) < 2:
        where, only = next(iter(sources.values())), ", ".join(map(str, label_list))
        raise UsageError(f"{where}: all labels are {only}; classification needs two")
    return is_regression, label_list


def check_names_of_labels(feature: Any, label_list: tuple[str | int, ...], task_name: str) -> None:
    """Raise UsageError where a GLUE task's data have other labels than GLUE's, or the same in another order."""
    names = list(TASKS[task_name].spellings or label_list)
    if isinstance(feature, datasets.ClassLabel):
        is_glues = list(label_list) == names
    else:
        is_glues = set(label_list) <= {*names, *range(len(names)), *map(str, range(len(names)))}
    if not is_glues:
        raise UsageError(f"--task_name {task_name}: its labels are {', '.join(names)}, the data's {list(label_list)}")


def kind_of_texts(
    labelled: dict[str, datasets.Dataset], sources: dict[str, str]
) -> tuple[bool, tuple[str | int, ...]]:
    """Do what kind_of_labels says for labels that were read as texts.

    Raises UsageError too for labels that are one and the same in two spellings: `pos` and `pos `, 1 and 1.0.
    """
    texts = {split: rows.unique("label") for split, rows in labelled.items()}
    values = {text: number_in(text) for of_split in texts.values() for text in of_split}
    is_whole = {text: re.fullmatch(r"-?[0-9]+", text) is not None for text in values}
    scores = [text for text, value in values.items() if value is not None and math.isfinite(value)]
    others = [text for text in values if text not in scores]
    if scores and others and None not in values.values():
        raise UsageError(f"{place_of(others[0], labelled, sources)}: the label {others[0]!r} is not a finite number")
    if all(is_whole[text] for text in scores):  # classes, maybe numbered
        check_spellings(values, labelled, sources)
        in_training = next(iter(texts.values()))
        canonical = all(is_whole[text] and text == str(int(text)) for text in in_training)
        return False, tuple(sorted(in_training, key=int if canonical else str))
    score = next(text for text in scores if not is_whole[text])
    if not others:
        check_decimals(values, is_whole, score, labelled, sources)
        return True, ()
    places = {text: place_of(text, labelled, sources) for text in (others[0], score)}
    raise UsageError(
        f"{places[others[0]]}: the label {others[0]!r} is not a number, but {score!r} ({places[score]}) is a score: "
        "labels are either all scores or all classes"
    )


def check_spellings(
    values: dict[str, float | None], labelled: dict[str, datasets.Dataset], sources: dict[str, str]
) -> None:
    """Raise UsageError for two classes that differ in blanks alone, or are one number; `values` has each's number."""
    seen: dict[str | float, str] = {}
    for text, value in values.items():
        same = seen.setdefault(" ".join(text.split()) if value is None else value, text)
        if same != text:
            what = "in blanks alone" if value is None else "in spelling alone: both are one number"
            raise UsageError(f"{place_of(text, labelled, sources)}: the label {text!r} differs from {same!r} {what}")


def check_decimals(
    values: dict[str, float | None],
    is_whole: dict[str, bool],
    score: str,
    labelled: dict[str, datasets.Dataset],
    sources: dict[str, str],
) -> None:
    """Raise UsageError where the only sign of scores is a decimal point behind whole numbers, in some of them alone.

    Where it stands in all of them they are scores, and a warning says so: it may be what another program made of
    classes. `score` is the first label with a decimal point.
    """
    if not all(value is not None and value.is_integer() for value in values.values()):
        return
    place = place_of(score, labelled, sources)
    if any(is_whole.values()):
        whole = next(text for text in values if is_whole[text])
        raise UsageError(
            f"{place}: the label {score!r} has a decimal point, {whole!r} ({place_of(whole, labelled, sources)}) has "
            "none, and all are whole numbers: write all of them with one for scores, or without for classes"
        )
    logger.warning(f"{place}: labels like {score!r} are read as scores; written without the decimal point, as classes")


def place_of(label: str, labelled: dict[str, datasets.Dataset], sources: dict[str, str]) -> str:
    """Return the file and row in which a label stands first."""
    split = next(name for name, rows in labelled.items() if label in rows.unique("label"))
    return f"{sources[split]}: row {labelled[split]['label'].index(label) + 1}"


def check_labels(labelled: dict[str, datasets.Dataset], task: Task, sources: dict[str, str]) -> None:
    """Raise UsageError for a score that is no number, or none of the task's, and for a label unseen in training."""
    low, high = (TASKS[task.metric].scores if task.metric else None) or (-math.inf, math.inf)
    for split, rows in labelled.items():
        if task.is_regression:
            numbers = {value: number_in(str(value)) for value in rows.unique("label")}
            wrong = [value for value, x in numbers.items() if x is None or not (math.isfinite(x) and low <= x <= high)]
        else:
            wrong = sorted(set(rows.unique("label")) - set(label_positions(task, rows)), key=str)
        if wrong:
            row = rows["label"].index(wrong[0]) + 1 if wrong[0] == wrong[0] else None  # NaN equals nothing
            row = row or next(number for number, value in enumerate(rows["label"], start=1) if value != value)
            what = f"is unseen in training, which has {', '.join(map(str, task.label_list[:10]))}"
            if task.is_regression:
                what = "is not a number" if math.isinf(high) else f"is not a score from {low:g} to {high:g}"
            raise UsageError(f"{sources[split]}: row {row}: the label {wrong[0]!r} {what}")


def count_labels(rows: datasets.Dataset, label_list: tuple[str | int, ...]) -> dict[str, int]:
    """Count the rows of each label, by name."""
    counts = Counter(rows["label"])
    is_class = isinstance(rows.features["label"], datasets.ClassLabel)
    return {str(label): counts[i if is_class else label] for i, label in enumerate(label_list)}


def described(task: Task, rows: dict[str, int]) -> str:
    """Return in one line what the data were read as."""
    texts = " and ".join(key for key in task.sentence_keys if key is not None)
    labels = [f"{name} ({count})" for name, count in task.label_counts.items()]
    labels = [*labels[:10], f"and {len(labels) - 10} more"] if len(labels) > 10 else labels
    kind = "regression" if task.is_regression else f"classification, labels {', '.join(labels)}"
    return f"texts from {texts}; {kind}; rows: {', '.join(f'{name} {count}' for name, count in rows.items())}"


def hold_out(
    raw_datasets: DatasetDict, task: Task, data_args: DataTrainingArguments, training_args: GlueTrainingArguments
) -> tuple[Task, DatasetDict]:
    """Split `selection` off the training rows, where --selection_fraction asks for it; the task knows how.

    Stratified by label, for regression by the labels' deciles; drawn by the seed, rows with the same texts together;
    both parts keep the rows' order.
    """
    if training_args.selection_fraction is None:
        return task, raw_datasets
    rows = first_rows(raw_datasets["train"], data_args.max_train_samples)
    strata = np.asarray(rows["label"])
    if task.is_regression:
        strata = strata.astype(float)
        strata = np.digitize(strata, np.quantile(strata, np.linspace(0.1, 0.9, 9)))
    texts = list(zip(*(rows[key] for key in task.sentence_keys if key is not None), strict=True))
    try:
        train, held_out, found = draw(texts, strata, training_args.selection_fraction, training_args.seed)
    except ValueError as error:
        raise UsageError(
            f"--selection_fraction {training_args.selection_fraction}: {len(rows)} training rows can't be split so "
            f"({first_line(error)})"
        ) from error
    logger.info(f"selection: {selection_in_words(found, len(rows))}")
    parts = {"train": rows.select(train), "selection": rows.select(held_out)}
    return replace(task, selection=found), DatasetDict(raw_datasets | parts)


def selection_in_words(found: Selection, rows: int) -> str:
    """Return in one line how rows were held out, and how many of them a training row contains."""
    how = f"{found['rows']:,} of {rows:,} training rows held out, "
    if found["groups"] is None:
        how += "drawn one by one"
    else:
        how += f"in whole groups of rows that repeat or contain one another ({found['groups']:,} groups)"
    if found["rows_in_large_groups"]:
        how += f"; {found['rows_in_large_groups']:,} rows stay in training, in groups too large to be held out"
    if found["cut_links"]:
        how += f"; {found['cut_links']:,} links between rows cut, as the groups would have held most rows"
    share = found["contained_rows"] / max(1, found["comparable_rows"])
    return f"{how}; {share:.1%} of the {found['comparable_rows']:,} with three or more words lie in a training row"


def first_rows(rows: datasets.Dataset, most: int | None) -> datasets.Dataset:
    """Return the first `most` rows, or all where there is no limit."""
    return rows.select(range(min(len(rows), most or len(rows))))


def label_positions(task: Task, rows: datasets.Dataset) -> dict[str | int, int]:
    """Map what stands in the column `label` to the position in the task's list of labels."""
    if isinstance(rows.features["label"], datasets.ClassLabel):
        return {i: i for i in range(task.num_labels)}
    return {label: i for i, label in enumerate(task.label_list)}


def order_of_labels(label2id: dict[str, int], names: list[str]) -> list[int] | None:
    """Return a model's output for each of the data's labels by name; None unless each has one, and one of its own.

    Upper and lower case are told apart only where that is needed.
    """
    for spelled in (str, str.lower):
        outputs = {spelled(str(name)): output for name, output in label2id.items()}
        order = [outputs.get(spelled(name)) for name in names]
        if len(outputs) == len(names) and {*order} == {*range(len(names))}:
            return order
    return None


def match_tokenizer(
    tokenizer: transformers.PreTrainedTokenizerBase,
    config: transformers.PreTrainedConfig,
    architecture: nn.Module,
) -> None:
    """Let model and tokenizer agree on the padding token; raise UsageError where they don't belong together."""
    check_tokenizer(tokenizer, architecture.get_input_embeddings().weight.shape[0])
    agree_on_padding(config, architecture, tokenizer)


def check_tokenizer(tokenizer: transformers.PreTrainedTokenizerBase, embedded: int) -> None:
    """Raise UsageError where the tokenizer is not the model's, or can't pad.

    `embedded` is how many tokens the model has embeddings for. It may be rounded up from the tokenizer's number, by
    0.4 % in DeBERTa's case; a folder without tokenizer files gives a tokenizer of a handful of tokens.
    """
    known, name = len(tokenizer), tokenizer.name_or_path
    if not 0.9 * embedded <= known <= embedded:
        raise UsageError(
            f"{name}: the tokenizer there has {known:,} tokens, the model {embedded:,} embeddings; they don't belong "
            "together, or the folder lacks the tokenizer's files: --tokenizer_name says where the model's are"
        )
    if tokenizer.pad_token_id is None:
        raise UsageError(
            f"{name}: the tokenizer there has no padding token, which a batch needs; give another as --tokenizer_name"
        )


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
    settings = tokenizer_settings(tokenizer, max_positions, task, data_args)
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
    tokenizer: transformers.PreTrainedTokenizerBase, max_positions: int, task: Task, data_args: DataTrainingArguments
) -> dict[str, Any]:
    """Return the arguments of every call of the tokenizer. Raises UsageError where they leave no room for a text."""
    limit = min(tokenizer.model_max_length, max_positions)
    texts = sum(key is not None for key in task.sentence_keys)
    least = tokenizer.num_special_tokens_to_add(pair=texts == 2) + texts
    if min(data_args.max_seq_length, limit) < least:
        ours = "" if limit >= least else f", and model, adapter and tokenizer together allow {limit}"
        raise UsageError(
            f"--max_seq_length {data_args.max_seq_length}: needed are {least} or more, as the tokenizer adds "
            f"{least - texts} tokens of its own{ours}"
        )
    if data_args.max_seq_length > limit:
        logger.warning(f"--max_seq_length {data_args.max_seq_length} is above the model's {limit}: using {limit}")
    longest, multiple = min(data_args.max_seq_length, limit), data_args.pad_to_multiple_of or 1
    if -(-longest // multiple) * multiple > max_positions:
        raise UsageError(
            f"--pad_to_multiple_of {multiple}: rows of up to {longest} tokens would be padded to "
            f"{-(-longest // multiple) * multiple}, and model and adapter together allow {max_positions}"
        )
    # Padding strategy: here to the same length for every row, or by the data collator to the longest of a batch
    padding = "max_length" if data_args.pad_to_max_length else False
    settings = {"max_length": longest, "truncation": True, "padding": padding}
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
