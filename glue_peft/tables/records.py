"""The numbers behind the tables, one record each with its protocol, for CSV and JSON."""

from collections.abc import Mapping
from typing import Any

from glue_peft.tables.comparisons import Comparison, seeds_needed, smallest_shown, verdict
from glue_peft.tables.costs import COSTS, run_cost, seed_costs
from glue_peft.tables.estimates import centre, deviation
from glue_peft.tables.protocol import adapter_starts, facts_of
from glue_peft.tables.read import EPOCHS, number, part, printable, read_run
from glue_peft.tables.results import Results, Row

MEASURED = ("loss", "accuracy", "f1", "pearson", "spearmanr", "predicted_classes")  # beside the score, as fractions


def score_records(results: Results, statistic: str, ddof: int) -> list[dict[str, Any]]:
    """Return every number of the score table with its protocol, in percent and unrounded, for CSV and JSON."""
    records = []
    for row in results.rows:
        averages = list(row.seed_averages(results.averaged_tasks).values())
        columns = {task: list(row.scores(task).values()) for task in results.tasks} | {"avg": averages}
        if "mnli" in results.tasks and row.used("mnli") and results.epoch != "held_out":
            columns["mnli-m"], columns["mnli-mm"] = row.columns("mnli")
        starts, costs = adapter_starts(row, results.tasks), seed_costs(row, results.common_tasks)
        for name, values in columns.items():
            task = name.partition("-")[0]
            std = deviation(values, ddof) if values else None
            records.append(
                {
                    "kind": "ours",
                    "name": row.name,
                    "task": name,
                    "metric": results.metrics.get(task, f"mean of {len(results.averaged_tasks)} tasks"),
                    "n": len(values),
                    "value": 100 * centre(values, statistic) if values else None,
                    "std": None if std is None else 100 * std,
                    "statistic": statistic,
                    "ddof": ddof,
                    "epoch": results.epoch,
                    "mnli_start": task in starts,
                }
                | costs
            )
    return records


def comparison_records(first: Row, second: Row, compared: Mapping[str, Comparison], size: int) -> list[dict[str, Any]]:
    """Return the comparison of two rows, in a family of `size`, differences in points, for CSV and JSON."""

    def points(fraction: float | None) -> float | None:
        """Return a fraction in percent."""
        return None if fraction is None else 100 * fraction

    return [
        {
            "kind": "comparison",
            "name": f"{second.name} minus {first.name}",
            "task": task,
            "n": min(comparison.n),
            "value": points(comparison.difference),
            "low": points(comparison.low),
            "high": points(comparison.high),
            "p": comparison.p,
            "holm_p": comparison.holm_p,
            "paired_p": comparison.paired_p,
            "permutation_p": comparison.permutation_p,
            "smallest_permutation_p": comparison.smallest_p,
            "holm_permutation_p": comparison.holm_permutation_p,
            "family": size,
            "smallest_shown": points(smallest_shown(comparison, size)),
            "seeds_needed": seeds_needed(comparison, size),
            "verdict": verdict(comparison, first.name, second.name),
        }
        for task, comparison in compared.items()
    ]


def run_records(results: Results) -> list[dict[str, Any]]:
    """Return one line a run: how it was made, what it scored (in percent), what its last epoch measured, its cost."""
    records = []
    for row in results.rows:
        for task in results.tasks:
            for seed, run in row.used(task).items():
                record = run.record or {}
                arguments, scores = part(record, "arguments"), part(record, "scores")
                metric = results.metrics[task]
                line = {"name": row.name, "folder": printable(str(run.folder)), "task": task, "seed": seed}
                facts = facts_of(record)
                line |= {name: facts[name] for name in ("model", "method", "rank")}
                line |= {"layers": " ".join(facts["layers"]), "metric": metric}
                for epoch in EPOCHS:
                    score = read_run(run.folder, task, metric, epoch).score
                    line[epoch] = None if score is None else 100 * score
                    chosen = part(scores, "last" if epoch == "held_out" else epoch)
                    line[f"{epoch}_epoch"] = None if score is None else number(chosen.get("epoch"))
                held_out = number(part(scores, "selected").get(f"selection_{metric}"))
                last = read_run(run.folder, task, metric, "last").metrics
                line |= {name: last.get(f"eval_{name}") for name in MEASURED}
                line["selection_rows_score"] = None if held_out is None else 100 * held_out
                for name in ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "selection_fraction"):
                    line[name] = arguments.get(name)
                line |= {name: run_cost(run, name) for name in COSTS}
                line |= {name: record.get(name) for name in ("device", "precision", "threads", "git_commit")}
                line["model_sha256"] = part(record, "base_model").get("sha256")
                line |= {f"{name}_sha256": part(record, "data_sha256").get(name) for name in ("train", "validation")}
                records.append(line)
    return records
