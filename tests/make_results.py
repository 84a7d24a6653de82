"""Writes runs as run_glue.py leaves them, with made-up scores, for the tests of what reads them."""

import json
from pathlib import Path
from typing import Any

KEYS = {"cola": ["eval_matthews_correlation"], "mnli": ["eval_accuracy", "eval_accuracy_mm"]} | {
    "stsb": ["eval_pearson", "eval_spearmanr", "eval_combined_score"]
}


def metrics_of(task: str, *values: float) -> dict[str, float]:
    """Return a task's metrics; a single value stands for all of them."""
    keys = KEYS.get(task, ["eval_accuracy"])
    return dict(zip(keys, values if len(values) == len(keys) else values * len(keys), strict=True))


def record_of(seed: int, task: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return a run.json of LoRA with rank 4 on RoBERTa-base."""
    return {
        "arguments": {
            "adapter_name": "lora", "rank": 4, "seed": seed, "task_name": task, "num_train_epochs": 10.0,
            "eval_strategy": "epoch",
        },
        "adapter_config": {"peft_type": "LORA", "r": 4, "target_modules": ["dense", "key", "query", "value"]},
        "base_model": {"name": "FacebookAI/roberta-base", "revision": None, "sha256": "5f63"},
        "data_sha256": {"train": f"{task} train", "validation": f"{task} validation"},
        "parameters": {"adapter": 663_552, "head": 592_130, "total": 125_000_000, "stored": 1_255_682},
        "saved_bytes": 5_000_000,
        "seconds": 70.0,
        "peak_memory": {"kind": "process", "bytes": 600_000_000},
        "metrics": metrics | {"train_runtime": 60.0, "eval_majority_share": 0.4321},
        "scores": {"last": metrics, "best": metrics, "history": [metrics, metrics]},
    }  # fmt: skip


def write_run(root: Path, seed: int, task: str, *values: float, **changes: Any) -> Path:
    """Write both result files of one run and return its folder.

    `changes` go into run.json: a dictionary is merged into the object that is there, anything else replaces it.
    """
    folder = root / str(seed) / task
    folder.mkdir(parents=True, exist_ok=True)
    metrics = metrics_of(task, *values)
    record = record_of(seed, task, metrics)
    for name, change in changes.items():
        both = isinstance(change, dict) and isinstance(record.get(name), dict)
        record[name] = record[name] | change if both else change
    (folder / "eval_results.json").write_text(json.dumps(metrics))
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def write_rows(root: Path, scores: dict[str, list[float]], **changes: Any) -> Path:
    """Write a run for each task and seed, and return the root."""
    for task, values in scores.items():
        for seed, value in enumerate(values, start=1):
            write_run(root, seed, task, value, **changes)
    return root
