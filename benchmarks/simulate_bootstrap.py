#!/usr/bin/env python
"""Simulate how often the intervals of `parse_results.py --bootstrap` hold the truth, which here is known.

    python -m benchmarks.simulate_bootstrap                 all of it, some minutes
    python -m benchmarks.simulate_bootstrap --repeats 200   the same, coarser

The functions are those that make the tables. A run is right on a validation row where

    ease + b x (how easy the row is) + c x (how good the seed is) + (how this seed does with this row) > 0

and what is in brackets are standard normal numbers: some rows are easy for all seeds, some seeds are better on all
rows, and each seed has its own way with each row. The truth is what all rows and all seeds would give. Of each case
the lines have the true score, the deviation of one seed's true score, on which share of the rows two seeds agree, and
of the 95 % intervals the coverage with its standard error and the mean width in points; beside it the same of the
pigeonhole bootstrap, which draws rows and seeds with replacement. Seeded: the same command prints the same numbers.

1. One row of a table, on RTE's 277 validation rows.
2. The difference of two rows of a table that are equally good, on the same 277 validation rows, of which those that
   are easy for the one are easy for the other (correlation 0.95).
3. CoLA's Matthews' correlation, on 1,043 validation rows of which 69 % have label 1; label 0 is harder.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from glue_peft.tables.answers import Answers
from glue_peft.tables.bootstrap import Drawn, minus, score_rows, with_seeds
from glue_peft.tables.resampled import score_draws

DRAWS = 400
RTE_ROWS, COLA_ROWS, COLA_SHARE = 277, 1043, 721 / 1043
ALIKE = 0.95
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)  # of the mean over a standard normal number


@dataclass(frozen=True)
class Case:
    """How runs come to be right."""

    ease: float  # on rows of label 1
    of_rows: float  # b
    of_seeds: float  # c
    harder: float = 0.0  # rows of label 0

    def right(self, generator: np.random.Generator, labels: np.ndarray, rows: np.ndarray, n: int) -> np.ndarray:
        """Return which answers [rows, seeds] of n seeds are right; `rows` [rows] is how easy each row is."""
        ease = self.ease - self.harder * (labels == 0) + self.of_rows * rows
        luck = self.of_seeds * generator.standard_normal(n) + generator.standard_normal((len(rows), n))
        return ease[:, None] + luck > 0

    def true_scores(self, metric: str) -> tuple[float, float]:
        """Return the mean and the deviation over all seeds of a seed's score on all rows."""
        of_label = [
            np.array([normal_share((ease + self.of_seeds * seed) / math.hypot(1, self.of_rows)) for seed in NODES])
            for ease in (self.ease - self.harder, self.ease)
        ]
        share = COLA_SHARE if metric == "matthews_correlation" else 0.5
        right_0, right_1 = (1 - share) * of_label[0], share * of_label[1]
        if metric == "accuracy":
            scores = right_0 + right_1
        else:
            said = right_1 + 1 - share - right_0
            scores = (right_1 - share * said) / np.sqrt(share * (1 - share) * said * (1 - said))
        weights = WEIGHTS / WEIGHTS.sum()
        mean = float(weights @ scores)
        return mean, math.sqrt(max(0.0, float(weights @ (scores - mean) ** 2)))


RTE_CASES = [Case(1.2, 1.5, of_seeds) for of_seeds in (0.0, 0.05, 0.1, 0.2, 0.5)] + [Case(0.3, 0.7, 0.05)]
COLA_CASES = [Case(2.5, 1.5, of_seeds, harder=2.2) for of_seeds in (0.05, 0.2)]


def normal_share(z: float) -> float:
    """Return the share of a standard normal law below z."""
    return math.erfc(-z / math.sqrt(2)) / 2


def pigeonhole(on_rows: np.ndarray, scores: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw seeds with replacement beside the rows, in place of with_seeds()."""
    chosen = generator.integers(len(scores), size=on_rows.shape)
    means: np.ndarray = np.take_along_axis(on_rows, chosen, axis=1).mean(axis=1)
    return means


METHODS = {"ours": with_seeds, "pigeonhole": pigeonhole}


def intervals(
    generator: np.random.Generator, task: str, metric: str, labels: np.ndarray, rows: list[np.ndarray]
) -> dict[str, tuple[float, float]]:
    """Return each method's interval for a row of a table, or for second minus first; answers are [rows, seeds]."""
    given = np.concatenate(rows, axis=1)
    answers = Answers(labels, {(0, seed): of_seed for seed, of_seed in enumerate(given.T)})
    on_draws = score_rows(task, metric, answers, generator, DRAWS)
    as_it_is = score_draws(task, metric, labels, given, np.ones((1, len(labels))))[0]
    found = {}
    for name, method in METHODS.items():
        drawn = [
            Drawn(float(scores.mean()), method(of_row, scores, generator), tuple(range(len(scores))))
            for of_row, scores in zip(
                np.split(on_draws, len(rows), axis=1), np.split(as_it_is, len(rows)), strict=True
            )
        ]
        found[name] = (drawn[0] if len(drawn) == 1 else minus(*drawn)).interval
    return found


def coverage(
    generator: np.random.Generator, case: Case, n: int, n_rows: int, task: str, repeats: int
) -> dict[str, tuple[int, float]]:
    """Count how often each method's interval of `n_rows` rows with n seeds has the truth; with its mean width."""
    metric, size, share = (
        ("accuracy", RTE_ROWS, 0.5) if task == "rte" else ("matthews_correlation", COLA_ROWS, COLA_SHARE)
    )
    truth = case.true_scores(metric)[0] if n_rows == 1 else 0.0
    hits, widths = dict.fromkeys(METHODS, 0), dict.fromkeys(METHODS, 0.0)
    for _ in range(repeats):
        labels = (generator.random(size) < share).astype(int)
        common = generator.standard_normal(size)
        rows = []
        for _ in range(n_rows):
            easy = math.sqrt(ALIKE) * common + math.sqrt(1 - ALIKE) * generator.standard_normal(size)
            is_right = case.right(generator, labels, easy, n)
            rows.append(np.where(is_right, labels[:, None], 1 - labels[:, None]))
        for name, (low, high) in intervals(generator, task, metric, labels, rows).items():
            hits[name] += low <= truth <= high
            widths[name] += (high - low) / repeats
    return {name: (hits[name], widths[name]) for name in METHODS}


def agreement_of(case: Case, generator: np.random.Generator, share: float) -> float:
    """Return on which share of the rows two seeds of a case agree, from many rows of which a share has label 1."""
    labels = (np.arange(1000) < 1000 * share).astype(int)
    pairs = (case.right(generator, labels, generator.standard_normal(1000), 2) for _ in range(200))
    return float(np.mean([(right[:, 0] == right[:, 1]).mean() for right in pairs]))


def lines(part: str, repeats: int) -> Iterator[str]:
    """Yield one part."""
    generator = np.random.default_rng(int(part))
    task, n_rows, cases = {"1": ("rte", 1, RTE_CASES), "2": ("rte", 2, RTE_CASES), "3": ("cola", 1, COLA_CASES)}[part]
    yield {"1": "1. one row, 277 validation rows", "2": "2. two rows, the same 277", "3": "3. Matthews, 1,043"}[part]
    yield "seeds | score | seeds' deviation | agreement | coverage | width | pigeonhole: coverage | width"
    metric, share = ("accuracy", 0.5) if task == "rte" else ("matthews_correlation", COLA_SHARE)
    for n in (5, 8):
        for case in cases:
            mean, deviation = case.true_scores(metric)
            cells = [
                str(n),
                f"{100 * mean:.1f}",
                f"{100 * deviation:.1f}",
                f"{agreement_of(case, generator, share):.2f}",
            ]
            for hits, width in coverage(generator, case, n, n_rows, task, repeats).values():
                part_of = hits / repeats
                error = math.sqrt(max(part_of * (1 - part_of), 1 / repeats) / repeats)
                cells += [f"{part_of:.3f} ± {error:.3f}", f"{100 * width:.1f}"]
            yield " | ".join(cells)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000, help="draws of each case (default: %(default)s)")
    parser.add_argument("--parts", default="123", help="which parts, as 13 (default: all)")
    return parser.parse_args()


def main() -> None:
    """Print the parts that are asked for."""
    args = parse_arguments()
    for part in "123":
        if part in args.parts:
            print("\n".join([*lines(part, args.repeats), ""]), flush=True)


if __name__ == "__main__":
    main()
