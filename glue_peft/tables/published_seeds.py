"""Published scores seed by seed, where a repository has them.

published_seeds.csv, beside this file, has one line a run, in percent: the best epoch's score (`best_epoch` counts from
1) and that of the last one, which is empty where the run's log ends before its last epoch, or there is none.
"""

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

SEEDS_FILE = Path(__file__).resolve().parent / "published_seeds.csv"


@dataclass(frozen=True)
class PublishedRun:
    """One published run; scores in percent."""

    paper: str
    model: str
    task: str
    metric: str
    head_learning_rate: float
    seed: int
    best: float
    last: float | None
    source: str

    def score(self, epoch: str) -> float | None:
        """Return the score of an epoch, `best` or `last`; None where it isn't known."""
        return {"best": self.best, "last": self.last}.get(epoch)


@functools.cache
def published_runs(path: Path = SEEDS_FILE) -> tuple[PublishedRun, ...]:
    """Return every run of the file."""
    with open(path, encoding="utf-8", newline="") as file:
        return tuple(
            PublishedRun(
                paper=line["paper"],
                model=line["model"],
                task=line["task"],
                metric=line["metric"],
                head_learning_rate=float(line["head_learning_rate"]),
                seed=int(line["seed"]),
                best=float(line["best"]),
                last=float(line["last"]) if line["last"] else None,
                source=line["source"],
            )
            for line in csv.DictReader(file)
        )


def seeds_of(paper: str, model: str, task: str, head_rate: float) -> list[PublishedRun]:
    """Return a paper's runs of one cell, those of one learning rate of the head."""
    wanted = (paper, model.lower(), task, head_rate)
    return [run for run in published_runs() if (run.paper, run.model, run.task, run.head_learning_rate) == wanted]
