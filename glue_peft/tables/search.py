"""What a search of learning rates (TUNE=1) found: its runs' scores on held-out rows, and the rate that they choose.

The runs of the row RESULTS/lora4 with the rate 3e-4 are in RESULTS/search/lora4_lr3e-4/<seed>/<task>.
"""

import itertools
import math
import random
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from glue_peft.run_folder import SEARCH
from glue_peft.tables.collapse import collapse
from glue_peft.tables.read import read_run, reported_metric
from glue_peft.tasks import LOWER_IS_BETTER

Searches = dict[str, dict[str, list["Trial"]]]  # by a row's name and task
RATE = r"[0-9.]+e-?[0-9]+"  # as rate_text() writes it
MOST_RESAMPLES = 256  # of the search's seeds; up to four seeds have no more


@dataclass(frozen=True)
class Trial:
    """A finished run of the search."""

    rate: Decimal
    seed: int
    score: float | None  # of the last epoch on held-out rows, a fraction (an mse: negative); None: the run diverged
    collapse: str | None = None  # why the run counts as one that learnt nothing


@dataclass(frozen=True)
class Chosen:
    """The rate that a search chose."""

    rate: Decimal
    mean: float | None  # over the seeds, without diverged ones
    collapsed: int  # how many of its runs collapsed or diverged; 0, unless there are some at every rate
    edge: str  # "lower" or "upper" where no rate was tried beyond it on that side, else ""


def rate_text(rate: Decimal) -> str:
    """Return a rate as it stands in folders and commands: 3e-4."""
    return format(rate.normalize(), "e").replace("e+", "e")


def rows_of_searches(root: Path) -> list[Path]:
    """Return the rows' folders whose search stands in a folder of results; another folder is a row itself."""
    pattern = re.compile(rf"(.+)_lr{RATE}")
    matches = map(pattern.fullmatch, sorted(path.name for path in (root / SEARCH).glob("*")))
    return [root / name for name in dict.fromkeys(match[1] for match in matches if match)] or [root]


def read_search(root: Path, task: str) -> list[Trial]:
    """Return the finished runs of the search behind a row's folder, by rate and seed."""
    found = []
    pattern = re.compile(re.escape(f"{root.name}_lr") + f"({RATE})")
    for folder in (root.parent / SEARCH).glob(f"*/*/{task}"):
        match, seed = pattern.fullmatch(folder.parent.parent.name), folder.parent.name
        trial = read_trial(folder, task, Decimal(match[1]), int(seed)) if match and seed.isdecimal() else None
        found += [trial] if trial else []
    return sorted(found, key=lambda trial: (trial.rate, trial.seed))


def read_searches(roots: Mapping[str, Path], tasks: Iterable[str]) -> Searches:
    """Return the searches behind rows' folders by name and task; empty ones are left out."""
    found = {name: {task: read_search(root, task) for task in tasks} for name, root in roots.items()}
    return {name: {task: trials for task, trials in of_row.items() if trials} for name, of_row in found.items()}


def read_trial(folder: Path, task: str, rate: Decimal, seed: int) -> Trial | None:
    """Return what a run of the search came to; None where it isn't finished."""
    metric = reported_metric(folder, task)
    run = read_run(folder, task, metric, "held_out")
    failure = None if run.fault is None else run.fault.failure
    if failure is not None and failure.kind == "diverged":
        return Trial(rate, seed, None, str(failure))
    if run.score is None:
        return None
    return Trial(rate, seed, -run.score if metric in LOWER_IS_BETTER else run.score, collapse(run))


def by_rate(trials: Iterable[Trial]) -> dict[Decimal, list[Trial]]:
    """Return the trials of each rate, the rates ascending."""
    found: dict[Decimal, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.rate):
        found.setdefault(trial.rate, []).append(trial)
    return found


def choose(trials: Iterable[Trial]) -> Chosen:
    """Return the rate with the best mean of those at which no run collapsed or diverged.

    Where there is none, of those with the fewest such runs. Of equal means the one nearest to the middle of the grid
    is taken, and then the lower one.
    """
    grid = list(by_rate(trials).items())

    def goodness(position: int) -> tuple[float, ...]:
        """Return what is compared of a rate, the more the better."""
        mean = mean_score(grid[position][1])
        off_centre = abs(position - (len(grid) - 1) / 2)
        return -n_collapsed(grid[position][1]), -math.inf if mean is None else mean, -off_centre, -position

    best = max(range(len(grid)), key=goodness)
    rate, of_rate = grid[best]
    edge = "" if len(grid) == 1 else {0: "lower", len(grid) - 1: "upper"}.get(best, "")
    return Chosen(rate, mean_score(of_rate), n_collapsed(of_rate), edge)


def mean_score(trials: Iterable[Trial]) -> float | None:
    """Return the mean score of the trials that have one."""
    scores = [trial.score for trial in trials if trial.score is not None]
    return statistics.fmean(scores) if scores else None


def n_collapsed(trials: Iterable[Trial]) -> int:
    """Count the trials that collapsed or diverged."""
    return sum(trial.collapse is not None for trial in trials)


def expected_best(trials: Iterable[Trial]) -> list[tuple[float, float, float]]:
    """Return for budgets of 1, 2, ... rates the score that a search would have reached: its mean and 95 % interval.

    A budget of k rates is a random k of the n in the grid, and reaches the mean score of the best of them. Of the
    rates in ascending order the i-th is the best with probability C(i - 1, k - 1) / C(n, k). The search's seeds, by
    which the held-out rows are drawn too, are drawn again with replacement, all draws or 256 of them, so that the
    interval covers both. A rate without any score counts as the worst score there is.
    """
    grid = [list(of_rate) for of_rate in by_rate(trials).values()]
    scores = [trial.score for of_rate in grid for trial in of_rate if trial.score is not None]
    worst = min(scores, default=0.0)
    ascending = []
    for seeds in resamples(sorted({trial.seed for of_rate in grid for trial in of_rate})):
        drawn = [[trial for seed in seeds for trial in of_rate if trial.seed == seed] for of_rate in grid]
        means = [(-n_collapsed(of_rate), mean_score(of_rate)) for of_rate in drawn]
        ascending.append([mean for _, mean in sorted((n, worst if mean is None else mean) for n, mean in means)])
    n = len(grid)
    curve = []
    for k in range(1, n + 1):
        weights = [math.comb(i, k - 1) / math.comb(n, k) for i in range(n)]
        reached = sorted(pair for means in ascending for pair in zip(means, weights, strict=True))
        total = math.fsum(weight for _, weight in reached)
        mean = math.fsum(score * weight for score, weight in reached) / total
        curve.append((mean, quantile(reached, 0.025 * total), quantile(reached, 0.975 * total)))
    return curve


def resamples(seeds: list[int]) -> list[tuple[int, ...]]:
    """Return every draw of as many seeds with replacement, or of many seeds some draws, always the same."""
    if len(seeds) ** len(seeds) <= MOST_RESAMPLES:
        return list(itertools.product(seeds, repeat=len(seeds)))
    generator = random.Random(0)
    return [tuple(generator.choices(seeds, k=len(seeds))) for _ in range(MOST_RESAMPLES)]


def quantile(ascending: list[tuple[float, float]], mass: float) -> float:
    """Return the first of some weighted values by which their weights reach `mass`."""
    reached = 0.0
    for value, weight in ascending:
        reached += weight
        if reached >= mass - 1e-12:
            return value
    return ascending[-1][0]
