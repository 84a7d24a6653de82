"""What rows cost: parameters, file, training time and memory, as run.json has them."""

import statistics
from collections.abc import Callable, Iterable
from typing import NamedTuple

from glue_peft.tables.read import Run, number, part, printable
from glue_peft.tables.results import Row


class Cost(NamedTuple):
    """One of the costs."""

    header: str
    over_tasks: Callable[[Iterable[float]], float]  # what a seed's tasks come to


# Parameters, file and memory are a seed's largest task's (heads differ by a few outputs), training the sum of all.
COSTS = {
    "adapter_parameters": Cost("adapter", max),
    "parameters_with_head": Cost("with head", max),
    "stored_bytes": Cost("stored", max),
    "train_seconds": Cost("training", sum),
    "peak_bytes": Cost("peak memory", max),
}


def seed_costs(row: Row, tasks: list[str]) -> dict[str, float | None]:
    """Return the row's costs, each the mean over the seeds that have it for all their tasks."""
    tasks = [task for task in tasks if row.used(task)]
    costs = {}
    for name, cost in COSTS.items():
        by_task = [{seed: run_cost(run, name) for seed, run in row.used(task).items()} for task in tasks]
        seeds = set.intersection(*map(set, by_task)) if by_task else set()
        of_seeds = [[of_task[seed] for of_task in by_task] for seed in sorted(seeds)]
        values = [
            cost.over_tasks(known)
            for of_seed in of_seeds
            if len(known := [value for value in of_seed if value is not None]) == len(tasks)
        ]
        costs[name] = statistics.fmean(values) if values else None
    return costs


def run_cost(run: Run, name: str) -> float | None:
    """Return one of the record's costs, None where it isn't there."""
    record = run.record or {}
    counts, memory = part(record, "parameters"), part(record, "peak_memory")
    adapter, head = number(counts.get("adapter")), number(counts.get("head"))
    value = {
        "adapter_parameters": adapter,
        "parameters_with_head": None if adapter is None or head is None else adapter + head,
        "stored_bytes": number(record.get("saved_bytes")),
        "train_seconds": number(part(record, "metrics").get("train_runtime")),
        "peak_bytes": number(memory.get("bytes")),
    }[name]
    return value if value is not None and value >= 0 else None


def memory_kinds(rows: list[Row], tasks: list[str]) -> list[str]:
    """Return how the runs' peak memory was measured."""
    kinds = (part(record, "peak_memory").get("kind") for row in rows for record in row.records(tasks))
    return sorted({printable(kind[:40]) for kind in kinds if isinstance(kind, str)})
