"""tables/costs.py: what rows cost, worked out by hand, and what is unknown."""

import pytest
from helpers import results_of, write_run

from glue_peft.tables.costs import memory_kinds, seed_costs


def test_costs_by_hand(tmp_path):
    """Parameters, file and memory are a seed's largest, training time its sum; then the mean over seeds."""
    sizes = {"rte": (100, 10, 4000, 60.0, 7e8), "stsb": (100, 8, 3990, 40.0, 9e8)}
    for seed, factor in ((1, 1), (2, 3)):
        for task, (adapter, head, stored, seconds, peak) in sizes.items():
            write_run(
                tmp_path, seed, task, 0.5,
                parameters={"adapter": adapter, "head": head}, saved_bytes=stored,
                metrics={"train_runtime": seconds * factor}, peak_memory={"kind": "process", "bytes": peak},
            )  # fmt: skip
    results = results_of(tmp_path, 2)
    assert seed_costs(results.rows[0], results.tasks) == {
        "adapter_parameters": 100,
        "parameters_with_head": 110,
        "stored_bytes": 4000,
        "train_seconds": 200,  # the mean of 100 and 300
        "peak_bytes": 9e8,
    }


@pytest.mark.parametrize("wrong", [None, "5", True, [5], {}, float("nan"), float("inf"), 10**400, -1])
def test_costs_of_the_wrong_type_are_unknown(tmp_path, wrong):
    """A cost that is no sane number is unknown: its seed doesn't count, and without another seed there is none."""
    changes = {
        "parameters": {"adapter": wrong, "head": wrong},
        "saved_bytes": wrong,
        "peak_memory": {"bytes": wrong},
        "metrics": {"train_runtime": wrong},
    }
    write_run(tmp_path, 1, "rte", 0.5, **changes)
    write_run(tmp_path, 2, "rte", 0.5)
    (row,) = results_of(tmp_path, 1).rows
    assert set(seed_costs(row, ["rte"]).values()) == {None}
    (row,) = results_of(tmp_path, 2).rows
    assert seed_costs(row, ["rte"])["stored_bytes"] == 5_000_000


def test_kinds_of_memory(tmp_path):
    """Each is named once; what is no text, or would break a line, is left out or escaped."""
    for seed, kind in enumerate(["process", "process", [], None, 7, "a\nb"], start=1):
        write_run(tmp_path, seed, "rte", 0.5, peak_memory={"kind": kind})
    results = results_of(tmp_path, 6)
    assert memory_kinds(results.rows, ["rte"]) == [r"a\nb", "process"]
