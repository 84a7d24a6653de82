"""Runs whose numbers say that they learnt nothing, or diverged."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from glue_peft.tables.read import Run, number, part, printable
from glue_peft.tasks import METRICS, TASKS

EQUAL_UP_TO_ROUNDING = 1e-6  # predictions, or a correlation and 0; scores of STS-B are 0 to 5
# Files that others wrote may hold four decimals; of GLUE's validation sets only QQP's has rows that count for less.
FOUR_DECIMALS = 5e-5


def majority_share(run: Run, suffix: str = "") -> float | None:
    """Return the share of the validation set's most frequent class, of MNLI's mismatched set with suffix `_mm`.

    Where run_glue.py recorded none, it is that of GLUE's own validation set, if the run was evaluated on all of it and
    is judged by its accuracy.
    """
    key = f"eval_majority_share{suffix}"
    recorded = number(run.metrics.get(key, part(run.record or {}, "metrics").get(key)))
    if recorded is not None or run.task not in TASKS or "accuracy" not in TASKS[run.task].metrics:
        return recorded
    if is_part_of_glue(run):
        return None
    return dict(zip(("", "_mm"), TASKS[run.task].majority_shares, strict=False)).get(suffix)


def is_part_of_glue(run: Run) -> bool:
    """Say whether the run was evaluated on fewer rows than GLUE's validation set has, as far as its files tell."""
    rows = evaluated_rows(run)
    is_short = rows is not None and TASKS[run.task].validation_rows[:1] > (rows,)
    return is_short or part(run.record or {}, "arguments").get("max_eval_samples") is not None


def evaluated_rows(run: Run) -> float | None:
    """Return how many validation rows gave the score, for MNLI the matched ones."""
    return number((part(run.record or {}, "metrics") | run.metrics).get("eval_samples"))


def collapse(run: Run) -> str | None:
    """Say why a run looks as if it had learnt nothing; None where it doesn't."""
    return sign_of_collapse(run.metrics, lambda suffix: majority_share(run, suffix))


def sign_of_collapse(metrics: Mapping[str, Any], share_of: Callable[[str], float | None]) -> str | None:
    """Say which metric shows that nothing was learnt; `share_of` gives a validation set's majority share by suffix."""
    for suffix in ("", "_mm"):
        if number(metrics.get(f"eval_predicted_classes{suffix}")) == 1:
            return f"constant output: eval_predicted_classes{suffix} is 1"
        accuracy, share = number(metrics.get(f"eval_accuracy{suffix}")), share_of(suffix)
        if accuracy is not None and share is not None and accuracy <= share + FOUR_DECIMALS:
            most_frequent = f"the share of the most frequent class, {100 * share:.1f} %"
            return f"eval_accuracy{suffix}, {100 * accuracy:.1f} %, is not above {most_frequent}"
    std = number(metrics.get("eval_prediction_std"))
    if std is not None and std < EQUAL_UP_TO_ROUNDING:
        return f"constant output: eval_prediction_std is {std:.2g}"
    for key in ("eval_matthews_correlation", "eval_pearson", "eval_spearmanr"):
        score = number(metrics.get(key))
        if score is not None and abs(score) < EQUAL_UP_TO_ROUNDING:
            return f"{key} is 0"
    return None


def divergence(run: Run) -> str | None:
    """Name a loss or a score that is NaN or infinite; None where there is none."""
    for name, value in (part(run.record or {}, "metrics") | run.metrics).items():
        is_score = name.removeprefix("eval_").removesuffix("_mm") in METRICS
        if (is_score or "loss" in name) and isinstance(value, float) and not math.isfinite(value):
            return f"{printable(name[:40])} is {value}"
    return None
