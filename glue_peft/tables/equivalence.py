"""Is a result the published one? Equivalent, different, or not to be told from so few seeds: column by column.

    ours = estimate([79.2, 80.1, 79.7, 80.4, 79.0], "mean")
    theirs = printed(79.9, 0.5, n=5, statistic="mean", kind="population")
    judge({"rte": (ours, theirs)}, parse_margin("2sd"))["rte"].verdict

All numbers are in points. A column is *equivalent* where two one-sided t-tests (TOST, each at 0.05) show that the
difference is smaller than a margin declared before: its 90 % interval lies within the margin. It *differs* where
Welch's t-test, corrected by Holm over the columns, is below 0.05. Otherwise it is *inconclusive*. Where both hold it
is equivalent: the margin says which differences don't matter. That every column of a row is equivalent needs no
correction, as all the tests have to succeed.

A paper prints the population's deviation or the sample's and seldom says which. Where it isn't known (`?`), both are
tried: the verdict is what both give, and inconclusive where they differ.
"""

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from glue_peft.errors import UsageError
from glue_peft.tables.estimates import POWER, SIGNIFICANCE, Estimate, holm, t_quantile, welch, with_seeds

DEFAULT_MARGIN = "2sd"
KINDS = ("population", "sample")
MOST_SEEDS = 100  # that are tried when it is asked how many it would take
STEP = 0.1  # papers print one decimal
EQUIVALENT, DIFFERS, INCONCLUSIVE = "equivalent", "differs", "inconclusive"

Readings = Mapping[str, Estimate]  # a published number, by the kind of deviation that it is taken for


@dataclass(frozen=True)
class Margin:
    """Differences below this are said not to matter: in points, or in deviations of the published seeds."""

    size: float
    in_deviations: bool

    def points(self, theirs: Estimate) -> float:
        """Return it in points; a deviation is the population's, the smaller of the two kinds.

        With the sample's, the luck of five published seeds would let a true shift of three deviations pass in 10 % of
        cases (`python -m benchmarks.simulate_verdicts`).
        """
        if not self.in_deviations:
            return self.size
        return self.size * theirs.deviation * math.sqrt((theirs.n - 1) / theirs.n)

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.size:g} {'deviations of the published seeds' if self.in_deviations else 'points'}"


def parse_margin(text: str) -> Margin:
    """Return the margin of `1.5`, in points, or `2sd`, in published deviations; else raise UsageError."""
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)(sd)?", text.strip())
    if match is None or float(match[1]) == 0:
        raise UsageError(
            f"--margin must be a number of points above 0, such as 1.5, or of published deviations, such as "
            f"{DEFAULT_MARGIN}, not {text[:40]!r}"
        )
    return Margin(float(match[1]), match[2] is not None)


def printed(value: float, deviation: float | None, n: int, statistic: str, kind: str) -> Readings:
    """Return a printed `value ± deviation` of n seeds, in points, by each kind of deviation that it may be.

    `kind` is population, sample, or ? for either. Empty without a deviation, or with a single seed.
    """
    if deviation is None or n < 2:
        return {}
    to_sample = {"population": math.sqrt(n / (n - 1)), "sample": 1.0}
    kinds = KINDS if kind == "?" else (kind,)
    return {name: Estimate(value, deviation * to_sample[name], n, statistic, STEP) for name in kinds}


@dataclass(frozen=True)
class Judgement:
    """What is said of one column; numbers in points."""

    difference: float  # ours minus theirs
    low: float  # of the 90 % interval
    high: float
    margin: float
    p: float  # Welch's
    holm_p: float
    verdict: str
    tried: tuple[tuple[Estimate, Estimate, float], ...]  # ours, theirs and the margin, by each kind of deviation
    by_kind: Mapping[str, str] = field(default_factory=dict)  # the verdict by each kind, where they differ

    @property
    def needed(self) -> int | None:
        """Return how many seeds of ours let an exact reproduction be called equivalent in 80 % of cases."""
        needed = [seeds_needed(*of_kind) for of_kind in self.tried]
        known = [n for n in needed if n is not None]
        return max(known) if len(known) == len(needed) else None

    @property
    def in_words(self) -> str:
        """Return the verdict, with that of each kind of deviation where they differ."""
        kinds = ", ".join(f"{kind}'s deviation: {verdict}" for kind, verdict in self.by_kind.items())
        return f"{self.verdict} ({kinds})" if kinds else self.verdict


def judge(columns: Mapping[str, tuple[Estimate, Readings]], margin: Margin) -> dict[str, Judgement]:
    """Return the verdict on each column, given ours and what is published, both in points.

    A column without readings gets none and is no part of Holm's family. The published number may be seeds' own values:
    `{"sample": estimate(values, statistic)}`. Where two kinds are tried, the numbers are those of the first.
    """
    kinds = list(dict.fromkeys(kind for _, readings in columns.values() for kind in readings))
    # A column whose kind is known is the same under both.
    by_kind = [
        judge_by_one_kind(
            {
                column: (ours, readings.get(kind) or next(iter(readings.values())))
                for column, (ours, readings) in columns.items()
                if readings
            },
            margin,
        )
        for kind in kinds
    ]
    judged = {}
    for column in by_kind[0] if by_kind else []:
        verdicts = {kind: of_kind[column].verdict for kind, of_kind in zip(kinds, by_kind, strict=True)}
        tried = tuple(itertools.chain.from_iterable(of_kind[column].tried for of_kind in by_kind))
        judged[column] = replace(by_kind[0][column], tried=tried)
        if len(set(verdicts.values())) > 1:
            judged[column] = replace(judged[column], verdict=INCONCLUSIVE, by_kind=verdicts)
    return judged


def judge_by_one_kind(columns: Mapping[str, tuple[Estimate, Estimate]], margin: Margin) -> dict[str, Judgement]:
    """Return the verdict on each column, the published deviations taken for one kind."""
    differences = {column: welch(theirs, ours) for column, (ours, theirs) in columns.items()}
    found = {column: difference for column, difference in differences.items() if difference is not None}
    judged = {}
    for (column, difference), holm_p in zip(found.items(), holm([d.p for d in found.values()]), strict=True):
        ours, theirs = columns[column]
        half, limit = difference.half_width(1 - 2 * SIGNIFICANCE), margin.points(theirs)
        verdict = DIFFERS if holm_p is not None and holm_p < SIGNIFICANCE else INCONCLUSIVE
        if abs(difference.value) + half < limit:
            verdict = EQUIVALENT
        low, high = difference.value - half, difference.value + half
        numbers = (difference.value, low, high, limit, difference.p, holm_p or 0.0)
        judged[column] = Judgement(*numbers, verdict, ((ours, theirs, limit),))
    return judged


def seeds_needed(ours: Estimate, theirs: Estimate, margin: float) -> int | None:
    """Return how many seeds of ours let an exact reproduction be called equivalent in 80 % of cases.

    With no true difference both one-sided tests succeed with probability 0.8 if each fails with 0.1, which takes
    margin >= (t_0.95 + t_0.9) x standard error. None where 100 don't do: mostly the published seeds are too few then.
    """
    for n in range(2, MOST_SEEDS + 1):
        difference = welch(theirs, with_seeds(ours, n))
        if difference is None:
            return n
        quantiles = (t_quantile(difference.degrees, level) for level in (1 - SIGNIFICANCE, (1 + POWER) / 2))
        if sum(quantiles) * difference.error <= margin:
            return n
    return None


def summary(judged: Mapping[str, Judgement], n: int) -> str:
    """Return a line on all columns: how many of each verdict, and how many seeds it would take to confirm the rest."""
    counts = {word: sum(j.verdict == word for j in judged.values()) for word in (EQUIVALENT, DIFFERS, INCONCLUSIVE)}
    text = f"of {len(judged)} columns " + ", ".join(f"{count} {word}" for word, count in counts.items())
    open_ = {column: j.needed for column, j in judged.items() if j.verdict == INCONCLUSIVE}
    known = [f"{column} {needed}" for column, needed in open_.items() if needed is not None]
    never = [column for column, needed in open_.items() if needed is None]
    if known:
        text += (
            f"; an exact reproduction would be called equivalent in {POWER:.0%} of cases with this many seeds of ours "
            f"(here {n}): {', '.join(known)}"
        )
    if never:
        text += f"; not with {MOST_SEEDS} either: {', '.join(never)}, as the published seeds are few for this margin"
    return text.replace("%", " %")
