#!/usr/bin/env python
"""Simulate the verdicts of parse_results.py where the truth is known: false alarms, power, equivalence.

    python -m benchmarks.simulate_verdicts                 all of it, three minutes
    python -m benchmarks.simulate_verdicts --repeats 200   the same, coarser

The functions are those that make the tables. Scores are drawn from normal laws with the deviations that the RandLoRA
paper prints for RoBERTa-base (Table 4), each seed by itself, and for avg averaged like the tables' own. Each share has
its standard error. Seeded: the same command prints the same numbers.

1. Families: at least one "is better" or bold cell where no row differs from another, of 2 to 6 rows and 3 to 6 tasks;
   in the last line one run in ten of every row collapses to 0.
2. Which test the verdict rests on: how often a difference in one task is shown by Welch's test and by the one paired
   by seed, in Holm's first step, when the seeds' scores in the two rows are correlated.
3. Published rows: at least one of seven columns "differs" where ours come from the paper's own law, its mean or median
   and its deviation printed with one decimal.
4. Margins: "equivalent" where the true shift is the margin: a number of points; a number of printed deviations; or
   that number of true deviations, which no paper prints; and why the margin goes by the population's deviation.
5. Exact reproductions that are called "equivalent" at the default margin.
6. Not simulated but computed, for planning: how many seeds a row show a difference of so many deviations in 80 % of
   cases, and how many a permutation test needs to confirm it.
"""

import argparse
import math
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from glue_peft.run_folder import plural
from glue_peft.tables.comparisons import (
    Comparison,
    best_cells,
    compare,
    compare_rows,
    permutation_seeds,
    seeds_needed,
)
from glue_peft.tables.equivalence import DEFAULT_MARGIN, KINDS, Judgement, judge, parse_margin, printed
from glue_peft.tables.estimates import SIGNIFICANCE, Estimate, centre, estimate
from glue_peft.tables.read import Run
from glue_peft.tables.results import Results, Row
from glue_peft.tasks import PAPER_TASKS, main_metric

# RoBERTa-base, RandLoRA r 64: mean and deviation in points.
PAPER = {
    "sst2": (92.2, 0.3),
    "mrpc": (88.0, 1.5),
    "cola": (59.4, 2.1),
    "qnli": (91.3, 0.4),
    "rte": (74.7, 1.9),
    "stsb": (90.3, 0.2),
}


COLLAPSING = 0.1


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000, help="draws of each case (default: %(default)s)")
    parser.add_argument("--parts", default="123456", help="which parts, as 135 (default: all)")
    return parser.parse_args()


def share(hits: int, repeats: int) -> str:
    """Return a share with its standard error."""
    part = hits / repeats
    return f"{part:.3f} ± {math.sqrt(max(part * (1 - part), 1 / repeats) / repeats):.3f}"


def draw(generator: np.random.Generator, tasks: list[str], n: int, collapsing: float) -> dict[str, dict[int, float]]:
    """Return n seeds' scores of each task as fractions, from the paper's law; a share of the runs collapses to 0."""
    drawn = {task: generator.normal(*PAPER[task], n) / 100 * (generator.random(n) >= collapsing) for task in tasks}
    return {task: dict(enumerate(map(float, scores), start=1)) for task, scores in drawn.items()}


def results_of(rows: list[dict[str, dict[int, float]]]) -> Results:
    """Return results as they are read from folders, of rows with the same tasks and seeds."""
    tasks = list(rows[0])
    made = [
        Row(
            f"row {index}",
            Path(),
            {task: {seed: Run(Path(), task, score) for seed, score in scores.items()} for task, scores in row.items()},
        )
        for index, row in enumerate(rows)
    ]
    seeds = list(rows[0][tasks[0]])
    return Results(made, tasks, [], {task: main_metric(task) for task in tasks}, "last", seeds, [], False)


def is_false_alarm(results: Results, all_pairs: bool) -> bool:
    """Say whether any verdict or bold cell claims a difference."""
    family = compare_rows(results, all_pairs, permute=False)
    ps = [comparison.holm_p for compared in family.pairs.values() for comparison in compared.values()]
    return any(p is not None and p < SIGNIFICANCE for p in ps) or bool(best_cells(results, "mean", family))


def false_alarms(
    generator: np.random.Generator,
    n_rows: int,
    n_tasks: int,
    n: int,
    all_pairs: bool,
    repeats: int,
    collapsing: float = 0.0,
) -> int:
    """Count the outputs with at least one false alarm."""
    tasks = PAPER_TASKS[:n_tasks]
    draws = (results_of([draw(generator, tasks, n, collapsing) for _ in range(n_rows)]) for _ in range(repeats))
    return sum(is_false_alarm(results, all_pairs) for results in draws)


def shown(
    generator: np.random.Generator, n: int, difference: float, correlation: float, size: int, repeats: int
) -> tuple[int, int]:
    """Count how often a difference in deviations is shown by Welch's test and by the paired one."""
    welch = paired = 0
    for _ in range(repeats):
        common = math.sqrt(correlation) * generator.standard_normal(n)
        first, second = (common + math.sqrt(1 - correlation) * generator.standard_normal(n) for _ in "ab")
        found = compare(dict(enumerate(first)), dict(enumerate(second + difference)), permute=False)
        if found is not None and found.p is not None and found.paired_p is not None:
            welch += size * found.p < SIGNIFICANCE
            paired += size * found.paired_p < SIGNIFICANCE
    return welch, paired


def print_value(values: list[float], statistic: str, kind: str) -> tuple[float, float]:
    """Return a paper's value and deviation of its seeds, printed with one decimal."""
    spread = float(np.std(values, ddof=KINDS.index(kind)))
    return round(centre(values, statistic), 1), round(spread, 1)


def judged(
    generator: np.random.Generator, n: int, statistic: str, kind: str, known: bool, margin: str
) -> dict[str, Judgement]:
    """Draw a paper of five seeds and n of ours from one law, and return the verdicts on its seven columns."""
    papers, ours = ({task: list(generator.normal(*law, k)) for task, law in PAPER.items()} for k in (5, n))
    columns = {}
    for task in [*PAPER, "avg"]:
        theirs, mine = (
            [statistics.fmean(seeds) for seeds in zip(*of.values(), strict=True)] if task == "avg" else of[task]
            for of in (papers, ours)
        )
        value, spread = print_value(theirs, statistic, kind)
        found = estimate(mine, statistic)
        assert found is not None
        columns[task] = (found, printed(value, spread, 5, statistic, kind if known else "?"))
    return judge(columns, parse_margin(margin))


def at_the_margin(generator: np.random.Generator, statistic: str, kind: str, size: int, shift: str) -> bool:
    """Say whether one column is called equivalent whose true shift is as large as the margin.

    `shift` is what both are: so many true deviations, in points; so many printed ones; so many true ones where the
    margin is in printed ones; and the same with the margin taken from the sample's deviation, as it is not done.
    """
    unit = 10.0  # one true deviation, large enough that one decimal is hardly rounded
    theirs = list(generator.normal(0, unit, 5))
    value, spread = print_value(theirs, statistic, kind)
    points = {"points": size * unit, "sample": size * statistics.stdev(theirs)}
    margin = parse_margin(f"{points[shift]:.6f}" if shift in points else f"{size}sd")
    readings = printed(value, spread, 5, statistic, kind)
    limit = margin.points(next(iter(readings.values())))
    truth = limit if shift in ("points", "printed") else size * unit
    ours = estimate(list(generator.normal(truth, unit, 5)), statistic)
    assert ours is not None
    return judge({"task": (ours, readings)}, margin)["task"].verdict == "equivalent"


def family_lines(generator: np.random.Generator, repeats: int) -> Iterator[str]:
    """Yield part 1."""
    yield '1. at least one "is better" or bold cell, no difference; at most 0.06'
    yield "rows | tasks | with the first: n = 3 | n = 5 | n = 8 | all pairs: n = 3 | n = 5 | n = 8"
    for n_rows in (2, 3, 4, 6):
        for n_tasks in (3, 6):
            cases = [(n, all_pairs) for all_pairs in (False, True) for n in (3, 5, 8)]
            counts = [false_alarms(generator, n_rows, n_tasks, n, pairs, repeats) for n, pairs in cases]
            yield " | ".join([f"{n_rows} | {n_tasks}", *(share(count, repeats) for count in counts)])
    counts = [false_alarms(generator, 4, 6, n, pairs, repeats, COLLAPSING) for n, pairs in cases]
    yield " | ".join(["4, one run in ten collapsed | 6", *(share(count, repeats) for count in counts)])


def power_lines(generator: np.random.Generator, repeats: int) -> Iterator[str]:
    """Yield part 2."""
    yield "2. a difference of so many deviations is shown in a family of 21: Welch / paired by seed"
    yield "n | difference | correlation 0 | 0.12 | 0.3 | 0.6"
    for n, difference in ((3, 5.0), (5, 3.0), (8, 2.0)):
        cells = []
        for correlation in (0.0, 0.12, 0.3, 0.6):
            counts = shown(generator, n, difference, correlation, 21, repeats)
            cells.append(" / ".join(share(count, repeats) for count in counts))
        yield " | ".join([f"{n} | {difference:g}", *cells])


def published_lines(generator: np.random.Generator, repeats: int) -> Iterator[str]:
    """Yield parts 3 and 5, which take the same draws."""
    yield f'3. and 5. exact reproductions, margin {DEFAULT_MARGIN}: "differs" in any of seven columns (at most 0.06),'
    yield '   "equivalent" per column, and in all seven'
    yield "statistic | n | printed deviation | differs in any | equivalent, of a column | of all seven"
    for statistic in ("mean", "median"):
        for n in (5, 8):
            for kind, known in ((KINDS[0], True), (KINDS[1], True), (KINDS[0], False), (KINDS[1], False)):
                differs = columns = rows = 0
                for _ in range(repeats):
                    verdicts = [
                        j.verdict for j in judged(generator, n, statistic, kind, known, DEFAULT_MARGIN).values()
                    ]
                    differs += "differs" in verdicts
                    columns += verdicts.count("equivalent")
                    rows += verdicts.count("equivalent") == len(verdicts)
                name = kind if known else f"{kind}, not known"
                cells = [share(differs, repeats), f"{columns / repeats / 7:.3f}", share(rows, repeats)]
                yield " | ".join([statistic, str(n), name, *cells])


def margin_lines(generator: np.random.Generator, repeats: int) -> Iterator[str]:
    """Yield part 4."""
    yield '4. "equivalent" where the true shift is the margin, n = 5; at most 0.055'
    yield (
        "statistic | printed deviation | size | in points | in printed deviations | margin printed, shift true | "
        "the same by the sample's"
    )
    for statistic in ("mean", "median"):
        for kind in KINDS:
            for size in (1, 2, 3):
                cells = []
                for shift in ("points", "printed", "true", "sample"):
                    hits = sum(at_the_margin(generator, statistic, kind, size, shift) for _ in range(repeats))
                    cells.append(share(hits, repeats))
                yield " | ".join([statistic, kind, f"{size}", *cells])


def planning_lines(generator: np.random.Generator, repeats: int) -> Iterator[str]:
    """Yield part 6."""
    yield "6. seeds a row that show a difference of so many deviations in 80 % of cases; and for a permutation test"
    differences = (1.0, 1.5, 2.0, 3.0)
    header = [f"{difference:g} deviations" for difference in differences]
    yield " | ".join(["comparisons", *header, "permutation test", "sign flips, paired"])
    unit = Estimate(0.0, 1.0, 5)
    for rows, tasks in ((2, 1), (2, 6), (3, 6), (4, 3), (4, 6), (6, 6)):
        size = (rows - 1) * (tasks + (tasks > 1))
        found = [Comparison((5, 5), difference, estimates=(unit, unit)) for difference in differences]
        cells = [str(seeds_needed(comparison, size)) for comparison in found]
        least = [str(permutation_seeds(size, paired)) for paired in (False, True)]
        yield " | ".join([f"{size} ({rows} rows, {plural(tasks, 'task')})", *cells, *least])


def main() -> None:
    """Print the parts that are asked for."""
    args = parse_arguments()
    parts = {"1": family_lines, "2": power_lines, "3": published_lines, "4": margin_lines, "6": planning_lines}
    for name, lines in parts.items():
        if name in args.parts or (name == "3" and "5" in args.parts):
            for line in lines(np.random.default_rng(int(name)), args.repeats):
                print(line, flush=True)
            print()


if __name__ == "__main__":
    main()
