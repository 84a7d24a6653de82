"""The README.md of a run's folder: a model card that says what was trained on what, how, and what came out."""

import json
import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from transformers import TrainingArguments

from glue_peft.errors import first_line
from glue_peft.record import RunRecord, without_timings
from glue_peft.run_folder import atomic_write
from glue_peft.tasks import TASKS

GLUE = "nyu-mll/glue"
# Numbers of an evaluation that are no scores.
NO_SCORES = ("eval_loss", "eval_majority_share", "eval_predicted_classes")

logger = logging.getLogger("run_glue")


def write_card(folder: Path, record: RunRecord) -> None:
    """Write the card from the run's record; asks no server for anything."""
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(f"---\n{card_data(folder, record).to_yaml()}\n---\n\n{text_of(record)}", encoding="utf-8")


def card_data(folder: Path, record: RunRecord) -> ModelCardData:
    """Return the card's head, which the hub reads: model, data set, license and the scores of the saved model."""
    arguments = record.arguments
    task = arguments.get("task_name")
    dataset = GLUE if task else arguments.get("dataset_name")
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=dataset or "own data",
            dataset_name=data_of(record),
            dataset_config=task or arguments.get("dataset_config_name"),
            dataset_split="validation_mismatched" if name.endswith("_mm") else "validation",
            metric_type=name.removesuffix("_mm").removeprefix("eval_"),
            metric_value=value,
        )
        for name, value in scores_of(record).items()
    ]
    return ModelCardData(
        base_model=arguments["model_name_or_path"],
        datasets=[dataset] if dataset else None,
        eval_results=results or None,
        library_name="peft" if record.adapter_config else "transformers",
        license=arguments.get("license"),
        model_name=folder.name,
        pipeline_tag="text-classification",
        tags=[str(record.adapter_config["peft_type"]).lower()] if record.adapter_config else None,
    )


def scores_of(record: RunRecord) -> dict[str, float]:
    """Return the validation scores of the saved model, as fractions, under the names of eval_results.json."""
    return {
        name: value
        for name, value in without_timings(record.metrics).items()
        if name.startswith("eval_") and name.removesuffix("_mm") not in NO_SCORES
    }


def data_of(record: RunRecord) -> str:
    """Name the data."""
    arguments = record.arguments
    if arguments.get("task_name"):
        return f"GLUE {TASKS[arguments['task_name']].title}"
    return str(arguments.get("dataset_name") or Path(str(arguments.get("train_file"))).name)


def text_of(record: RunRecord) -> str:
    """Return the card's text, in Markdown."""
    arguments, counts = record.arguments, record.parameters
    method = f"{record.adapter_config['peft_type']} adapter" if record.adapter_config else "Full fine-tuning"
    lines = [f"# {method} of {arguments['model_name_or_path']} on {data_of(record)}", ""]
    lines += (
        [f"| metric on the validation set | {epoch_in_words(record)} |", "| --- | --- |"] if record.metrics else []
    )
    lines += [f"| {name.removeprefix('eval_')} | {value:.4f} |" for name, value in scores_of(record).items()]
    rows = "".join(f", {count:,} {label}" for label, count in record.data["label_counts"].items())
    lines += [
        "",
        f"- Trained parameters: {counts['adapter']:,} outside the head, {counts['head']:,} in the head, of "
        f"{counts['total']:,} in the model.",
        f"- Training: seed {arguments['seed']}, learning rate {arguments['learning_rate']}, batch "
        f"{batch_of(record)}, {arguments['num_train_epochs']:g} epochs, {record.precision}, texts up to "
        f"{arguments['max_seq_length']} tokens.",
        f"- Data: {record.data['kind']} of {' and '.join(record.data['text_columns'])}{rows}.",
        f"- Code: commit {record.git_commit or 'unknown'}; "
        + ", ".join(f"{name} {number}{commit_of(record, name)}" for name, number in record.versions.items())
        + ".",
        "",
        "Made by",
        "",
        "```bash",
        f"python run_glue.py {shlex.join(record.command)}",
        "```",
        "",
    ]
    if record.adapter_config:
        content = {name: value for name, value in record.adapter_config.items() if value is not None}
        lines += ["The adapter's PEFT config:", "", "```json", json.dumps(content, indent=2), "```", ""]
    return "\n".join(lines)


def commit_of(record: RunRecord, package: str) -> str:
    """Return the commit of a package that is no release, as of a fork; its place is nobody else's business."""
    source = record.sources.get(package)
    if source is None:
        return ""
    return f" (commit {source['commit'] or 'unknown'}{', changed' if source['changed_files'] else ''})"


def batch_of(record: RunRecord) -> int:
    """Return the number of rows of an optimizer's step."""
    arguments = record.arguments
    return arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"] * record.processes


def epoch_in_words(record: RunRecord) -> str:
    """Say which epoch's model was saved, as far as the scores' protocol needs it."""
    scores: Mapping[str, Any] = record.scores or {}
    if record.arguments.get("load_best_model_at_end"):
        return "the best epoch"
    return f"epoch {scores['last']['epoch']:g}, the last" if "last" in scores else "as saved"


def upload(folder: Path, repo_id: str, args: TrainingArguments) -> None:
    """Upload a finished run to the hub: adapter, tokenizer, card, record. Where that fails, warn: nothing is lost."""
    try:
        HfApi(token=args.hub_token).upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message="End of training",
            ignore_patterns=["checkpoint-*", "training_args.bin"],
            revision=args.hub_revision,
        )
    except (HfHubHTTPError, OSError) as error:
        logger.warning(f"--push_to_hub: {first_line(error)}; the run is finished: hf upload {repo_id} {folder}")
