"""The papers' rows, and how ours compare with them.

published_glue.csv, beside this file, has one line for each number, as its paper prints it, and where it was read.
`layers` are the adapted layers and `mnli_start` says whether the task starts from an MNLI adapter; `?` stands for what
wasn't read, or isn't said.
"""

import csv
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glue_peft.tables.paired_tests import centre
from glue_peft.tables.protocol import adapter_starts, data_limits, row_facts
from glue_peft.tables.read import part, printable
from glue_peft.tables.results import Results, Row
from glue_peft.tasks import METRICS, PAPER_TASKS

DEVIATIONS = {"population std": "population", "sample std": "sample"}
PUBLISHED_FILE = Path(__file__).resolve().parent / "published_glue.csv"


@dataclass(frozen=True)
class PublishedScore:
    """One printed number, in percent."""

    value: float
    spread: float | None
    metric: str
    mnli_start: str  # yes, no, ? or empty (the average)


@dataclass(frozen=True)
class PublishedRow:
    """One row of a paper's table, with its protocol."""

    paper: str
    arxiv: str
    table: str
    model: str
    method: str
    rank: str
    parameters: float | None  # in millions, as printed
    statistic: str  # mean, median, or single
    deviation: str  # the kind that is printed: population, sample, or ? where that isn't known
    n_seeds: int
    epoch: str
    layers: str
    scores: dict[str, PublishedScore]

    @property
    def name(self) -> str:
        """Return what the row is called in a table."""
        return f"{self.paper}: {self.method}{f' r {self.rank}' if self.rank else ''}"

    @property
    def protocol(self) -> str:
        """Return the protocol in a few words."""
        layers = {"all": "", "query value": "; query and value"}.get(self.layers, "; every encoder linear")
        what = "one value" if self.statistic == "single" else f"{self.statistic} of {self.n_seeds}"
        epoch = "epoch not said" if self.epoch == "?" else f"{self.epoch} epoch"
        stsb = f"; STS-B: {METRICS[self.scores['stsb'].metric]}" if "stsb" in self.scores else ""
        starts = [task for task, score in self.scores.items() if score.mnli_start == "yes"]
        return (
            f"arXiv {self.arxiv}, {self.table}: {what}, {epoch}{layers}{stsb}"
            f"{'; MNLI starts: ' + ', '.join(starts) if starts else ''}"
        )

    def average(self, tasks: list[str]) -> PublishedScore | None:
        """Return the printed average where it is over the same tasks."""
        return self.scores.get("avg") if sorted(tasks) == sorted(PAPER_TASKS) else None

    def comparable_average(self, results: Results) -> PublishedScore | None:
        """Return the printed average where ours is over the same tasks in the same metrics."""
        printed = {task: score.metric for task, score in self.scores.items()}
        same = all(printed.get(task) == results.metrics[task] for task in results.averaged_tasks)
        return self.average(results.averaged_tasks) if same else None


def read_published(model: str, path: Path = PUBLISHED_FILE) -> list[PublishedRow]:
    """Return the rows of one model, in the file's order."""
    rows: dict[tuple[str, ...], PublishedRow] = {}
    with open(path, encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            if line["model"] != model.lower():
                continue
            identity = {name: line[name] for name in ("paper", "arxiv", "table", "model", "method", "rank")}
            row = rows.setdefault(
                tuple(identity.values()),
                PublishedRow(
                    **identity,
                    parameters=float(line["trainable_params_millions"]) if line["trainable_params_millions"] else None,
                    statistic=line["statistic"].partition("±")[0],
                    deviation=DEVIATIONS.get(line["statistic"].partition("±")[2], "?"),
                    n_seeds=int(line["n_seeds"]),
                    epoch=line["epoch"],
                    layers=line["layers"],
                    scores={},
                ),
            )
            spread = float(line["spread"]) if line["spread"] else None
            row.scores[line["task"]] = PublishedScore(float(line["value"]), spread, line["metric"], line["mnli_start"])
    return list(rows.values())


def published_of_all(results: Results) -> dict[str, list[PublishedRow]]:
    """Return the published rows of every base model that our rows' records name."""
    models = dict.fromkeys(row_facts(row, results.tasks).get("model") for row in results.rows)
    return {model: read_published(model) for model in models if model}


def same_method(row: PublishedRow, method: str) -> bool:
    """Say whether a published method is ours: `vera (all linear)` is VeRA, `vb-lora` PEFT's VBLORA."""
    return bool(method) and row.method.partition(" (")[0].replace("-", "") == method.replace("-", "")


def published_of(row: Row, tasks: list[str]) -> list[PublishedRow]:
    """Return the published rows of our row's model and method."""
    facts = row_facts(row, tasks)
    published = read_published(facts["model"]) if facts else []
    return [theirs for theirs in published if same_method(theirs, facts["method"])]


def compare_with_published(row: Row, theirs: PublishedRow, results: Results, statistic: str) -> str:
    """Say for each task whether ours lies within two combined standard errors, and in what the protocols differ."""
    within: list[str] = []
    outside: list[str] = []
    open_: list[str] = []
    for task in [*results.tasks, "avg"]:
        average = task == "avg"
        scores = row.seed_averages(results.averaged_tasks) if average else row.scores(task)
        printed = theirs.comparable_average(results) if average else theirs.scores.get(task)
        values = [100 * value for value in scores.values()]
        if printed is None or not values:
            continue
        ours = centre(values, statistic)
        if printed.spread is None or len(values) < 2:
            open_.append(task)
            continue
        # Var(ours - theirs) = s^2 / n + s'^2 / n'. The papers don't say which divisor their s' has.
        error = math.sqrt(statistics.variance(values) / len(values) + printed.spread**2 / theirs.n_seeds)
        text = f"{task} ({round(ours - printed.value, 1) + 0.0:+.1f})"  # never -0.0
        (within if abs(ours - printed.value) <= 2 * error else outside).append(text)
    parts = [f"within 2 combined standard errors: {', '.join(within) or 'none'}"] if within or outside else []
    parts += [f"outside: {', '.join(outside)}"] if outside else []
    parts += [f"no spread to judge by: {', '.join(open_)}"] if open_ else []
    if (within or outside) and "median" in (statistic, theirs.statistic):
        parts.append("a median's standard error, about 1.25 times a mean's, was taken for a mean's")
    differences = protocol_differences(row, theirs, results, statistic)
    parts.append(f"protocol differs: {', '.join(differences)}" if differences else "no difference found in protocol")
    parts.append("learning rate, epochs, batch, length and alpha are not compared")
    return f"{row.name} against {theirs.name}: {'; '.join(parts)}"


def protocol_differences(row: Row, theirs: PublishedRow, results: Results, statistic: str) -> list[str]:
    """Return in what our protocol differs from a published row's, ours first."""
    facts, n = row_facts(row, results.tasks), max(len(row.scores(task)) for task in results.tasks)
    pairs = [
        ("rank", f"{facts['rank']:.0f}" if facts["rank"] is not None else "", theirs.rank),
        ("layers", " ".join(facts["layers"]), " ".join(sorted(theirs.layers.split()))),
        ("statistic", statistic, theirs.statistic),
        ("epoch", results.epoch, theirs.epoch),
        ("seeds", str(n), str(theirs.n_seeds) if theirs.statistic != "single" else ""),
        *(
            ("STS-B" if task == "stsb" else task, METRICS[results.metrics[task]], METRICS[theirs.scores[task].metric])
            for task in results.tasks
            if task in theirs.scores
        ),
    ]
    differences = [
        f"{what} {ours} (theirs {other})" for what, ours, other in pairs if ours and other and ours != other
    ]
    starts = adapter_starts(row, results.tasks)
    for task in results.tasks:
        printed = theirs.scores.get(task)
        if printed is not None and printed.mnli_start in ("yes", "no"):
            if (task in starts) != (printed.mnli_start == "yes"):
                differences.append(f"{task} starts from {'an' if task in starts else 'no'} adapter (theirs otherwise)")
        elif printed is not None and printed.mnli_start == "?" and task in starts:
            differences.append(f"{task} starts from an adapter (theirs isn't known)")
    return differences + data_limits([row], results.tasks) + variants(row, results.tasks)


def variants(row: Row, tasks: list[str]) -> list[str]:
    """Return the settings that make another method of PEFT's LoRA or RandLoRA, as `use_dora`."""
    configs = [part(record, "adapter_config") for record in row.records(tasks)]
    starts = {config["init_lora_weights"] for config in configs if isinstance(config.get("init_lora_weights"), str)}
    flags = ("use_dora", "use_rslora", "sparse", "very_sparse")
    return [name for name in flags if any(config.get(name) for config in configs)] + sorted(map(printable, starts))


def published_cells(theirs: PublishedRow, results: Results, width: int) -> list[str]:
    """Return a published row as it is printed in its paper, filled up with dashes."""
    scores = [*map(theirs.scores.get, results.tasks), theirs.average(results.averaged_tasks)]
    cells = [
        "-" if score is None else f"{score.value:.1f}{'' if score.spread is None else f' ± {score.spread:.1f}'}"
        for score in scores
    ]
    costs = [f"{theirs.parameters:g} M"] if theirs.parameters is not None else []
    return ([f"{theirs.name}, {theirs.model}", *cells, *costs] + ["-"] * width)[:width]


def published_notes(results: Results, statistic: str) -> list[str]:
    """Return the protocol of every published row, and how each row of ours compares with those of its own method."""
    notes = [
        f"{theirs.name}, {model}: {theirs.protocol}"
        for model, published in published_of_all(results).items()
        for theirs in published
    ]
    for row in results.rows:
        facts = row_facts(row, results.tasks)
        same = published_of(row, results.tasks)
        notes += [compare_with_published(row, theirs, results, statistic) for theirs in same]
        if not facts:
            notes.append(f"nothing beside {row.name}, as no run.json says what it is")
        elif not same:
            what = f"{facts['method'] or 'this method'} on {facts['model'] or 'this model'}"
            notes.append(f"nothing beside {row.name}, as there is no row of {what}")
    return [f"published: {note}" for note in notes]


def published_records(results: Results) -> list[dict[str, Any]]:
    """Return the published numbers of our models, for CSV and JSON."""
    return [
        {
            "kind": "published",
            "name": theirs.name,
            "task": task,
            "metric": score.metric,
            "n": 1 if theirs.statistic == "single" else theirs.n_seeds,
            "value": score.value,
            "std": score.spread,
            "statistic": theirs.statistic,
            "epoch": theirs.epoch,
            "mnli_start": {"yes": True, "no": False}.get(score.mnli_start),
            "adapter_parameters": None if theirs.parameters is None else round(1e6 * theirs.parameters),
        }
        for published in published_of_all(results).values()
        for theirs in published
        for task, score in theirs.scores.items()
        if task in results.tasks or score is theirs.average(results.averaged_tasks)
    ]
