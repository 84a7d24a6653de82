"""Runs whose numbers say that they learnt nothing, or diverged."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from glue_peft.tables.read import Run, number, part, printable
from glue_peft.tasks import TASKS


def majority_share(run: Run, suffix: str = "") -> float | None:
    """Return the share of the validation set's most frequent class, of MNLI's mismatched set with suffix `_mm`.

    Where run_glue.py recorded none, it is that of GLUE's own validation set, if the run was evaluated on all of it and
    is judged by its accuracy.
    """
    key = f"eval_majority_share{suffix}"
    recorded = number(run.metrics.get(key, part(run.record or {}, "metrics").get(key)))
    is_part = part(run.record or {}, "arguments").get("max_eval_samples") is not None
    if recorded is not None or is_part or "accuracy" not in TASKS[run.task].metrics:
        return recorded
    return dict(zip(("", "_mm"), TASKS[run.task].majority_shares, strict=False)).get(suffix)


def collapse(run: Run) -> str | None:
    """Say why a run looks as if it had learnt nothing; None where it doesn't."""
    return sign_of_collapse(run.metrics, lambda suffix: majority_share(run, suffix))


def sign_of_collapse(metrics: Mapping[str, Any], share_of: Callable[[str], float | None]) -> str | None:
    """Say which metric shows that nothing was learnt; `share_of` gives a validation set's majority share by suffix."""
    for suffix in ("", "_mm"):
        if number(metrics.get(f"eval_predicted_classes{suffix}")) == 1:
            return f"constant output: eval_predicted_classes{suffix} is 1"
        accuracy, share = number(metrics.get(f"eval_accuracy{suffix}")), share_of(suffix)
        # GLUE's largest validation set has 40,430 rows: two different counts are at least 2e-5 apart.
        if accuracy is not None and share is not None and accuracy <= share + 1e-6:
            most_frequent = f"the share of the most frequent class, {100 * share:.1f} %"
            return f"eval_accuracy{suffix}, {100 * accuracy:.1f} %, is not above {most_frequent}"
    if number(metrics.get("eval_prediction_std")) == 0:
        return "constant output: eval_prediction_std is 0"
    for key in ("eval_matthews_correlation", "eval_pearson", "eval_spearmanr"):
        if number(metrics.get(key)) == 0:
            return f"{key} is 0"
    return None


def on_held_out_rows(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of the rows of --selection_fraction under the names that a validation set's have."""
    prefix = "selection_"
    return {f"eval_{name.removeprefix(prefix)}": value for name, value in metrics.items() if name.startswith(prefix)}


def divergence(run: Run) -> str | None:
    """Name a loss that is NaN or infinite; None where there is none."""
    for name, value in (part(run.record or {}, "metrics") | run.metrics).items():
        if "loss" in name and isinstance(value, float) and not math.isfinite(value):
            return f"{printable(name[:40])} is {value}"
    return None
