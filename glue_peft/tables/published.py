"""The papers' rows, and how ours compare with them.

published_glue.csv, beside this file, has one line for each number, as its paper prints it, and where it was read.
`statistic` says which kind of deviation that is where it is known: `mean±population std`, `median±sample std`, else
`median±std`. `layers` are the adapted layers and `mnli_start` says whether the task starts from an MNLI adapter; `?`
stands for what wasn't read, or isn't said.
"""

import csv
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glue_peft.errors import UsageError
from glue_peft.run_folder import plural
from glue_peft.tables.equivalence import Judgement, Margin, judge, printed, summary
from glue_peft.tables.estimates import centre, estimate
from glue_peft.tables.formats import Table, p_text
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
        std = "± std (which kind: ?)" if self.deviation == "?" else f"± {self.deviation} std"
        what = "one value" if self.statistic == "single" else f"{self.statistic} {std} of {self.n_seeds}"
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


def wanted_methods(text: str) -> list[str]:
    """Return the methods whose published rows --published asks for; all are an empty list. Raises UsageError."""
    with open(PUBLISHED_FILE, encoding="utf-8", newline="") as file:
        known = dict.fromkeys(line["method"].partition(" (")[0] for line in csv.DictReader(file))
    methods = [] if text == "all" else text.replace(",", " ").split()
    if text != "all" and (not methods or set(methods) - known.keys()):
        raise UsageError(f"--published {text}: allowed are `all` or some of {', '.join(known)}")
    return methods


def published_of_all(results: Results, methods: Collection[str] = ()) -> dict[str, list[PublishedRow]]:
    """Return the published rows, of some methods or of all, of every base model that our rows' records name."""
    models = dict.fromkeys(row_facts(row, results.tasks).get("model") for row in results.rows)
    return {model: chosen(read_published(model), methods) for model in models if model}


def chosen(rows: list[PublishedRow], methods: Collection[str]) -> list[PublishedRow]:
    """Return the rows of some methods; all where none are named."""
    return [row for row in rows if not methods or any(same_method(row, method) for method in methods)]


def same_method(row: PublishedRow, method: str) -> bool:
    """Say whether a published method is ours: `vera (all linear)` is VeRA, `vb-lora` PEFT's VBLORA."""
    return bool(method) and row.method.partition(" (")[0].replace("-", "") == method.replace("-", "")


def published_of(row: Row, tasks: list[str], methods: Collection[str] = ()) -> list[PublishedRow]:
    """Return the published rows of our row's model and method."""
    facts = row_facts(row, tasks)
    published = chosen(read_published(facts["model"]), methods) if facts else []
    return [theirs for theirs in published if same_method(theirs, facts["method"])]


def published_columns(
    row: Row, theirs: PublishedRow, results: Results
) -> dict[str, tuple[list[float], PublishedScore]]:
    """Return our seeds' scores in percent and the printed number of every column that both have, `avg` last."""
    columns = {}
    for task in [*results.tasks, "avg"]:
        average = task == "avg"
        scores = row.seed_averages(results.averaged_tasks) if average else row.scores(task)
        number = theirs.comparable_average(results) if average else theirs.scores.get(task)
        if number is not None and scores:
            columns[task] = [100 * value for value in scores.values()], number
    return columns


def judge_published(
    row: Row, theirs: PublishedRow, results: Results, statistic: str, margin: Margin
) -> dict[str, Judgement]:
    """Return the verdict on every column in which both have a spread."""
    pairs = {}
    for task, (values, score) in published_columns(row, theirs, results).items():
        ours = estimate(values, statistic)
        if ours is not None:
            readings = printed(score.value, score.spread, theirs.n_seeds, theirs.statistic, theirs.deviation)
            pairs[task] = ours, readings
    return judge(pairs, margin)


def published_comparison(row: Row, theirs: PublishedRow, results: Results, statistic: str, margin: Margin) -> Table:
    """Return the table of verdicts of one row against a published one."""
    columns = published_columns(row, theirs, results)
    judged = judge_published(row, theirs, results, statistic, margin)
    rows = []
    for task, (values, score) in columns.items():
        difference = f"{round(centre(values, statistic) - score.value, 1) + 0.0:+.1f}"  # never -0.0
        found = judged.get(task)
        if found is None:
            why = "no spread printed" if score.spread is None else "one seed of ours"
            rows.append([task, str(len(values)), difference, "-", "-", "-", "-", f"no verdict: {why}"])
            continue
        interval = f"{round(found.low, 1) + 0.0:.1f} to {round(found.high, 1) + 0.0:.1f}"
        cells = [f"{found.margin:.1f}", p_text(found.p), p_text(found.holm_p), found.in_words]
        rows.append([task, str(len(values)), difference, interval, *cells])
    title = (
        f"{row.name} against {theirs.name}: {statistic} of ours minus {theirs.statistic} of theirs in points with "
        f"Welch's 90 % interval; equivalent: the interval lies within the margin, {margin}; differs: Welch's p below "
        f"0.05 after Holm over the {plural(len(judged), 'column')} of this table"
    )
    header = ["task", "n", "difference", "90 % interval", "margin", "Welch p", "Holm p", "verdict"]
    table = Table(title, header, rows)
    if judged:
        table.notes.append(summary(judged, max(len(values) for values, _ in columns.values())))
    if judged and theirs.deviation == "?":
        table.notes.append(
            "theirs may be the population's or the sample's deviation: both were tried, a verdict is what both say, "
            "and interval, margin and p are those of the population's"
        )
    differences = protocol_differences(row, theirs, results, statistic)
    said = f"protocol differs: {', '.join(differences)}" if differences else "no difference found in protocol"
    table.notes.append(f"{said}; learning rate, epochs, batch, length and alpha are not compared")
    return table


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


def published_cells(theirs: PublishedRow, results: Results, width: int, aggregates: int) -> list[str]:
    """Return a published row as it is printed in its paper; dashes fill the columns of aggregates and of costs."""
    scores = [*map(theirs.scores.get, results.tasks), theirs.average(results.averaged_tasks)]
    cells = [
        "-" if score is None else f"{score.value:.1f}{'' if score.spread is None else f' ± {score.spread:.1f}'}"
        for score in scores
    ]
    costs = [f"{theirs.parameters:g} M"] if theirs.parameters is not None else []
    return ([f"{theirs.name}, {theirs.model}", *cells, *["-"] * aggregates, *costs] + ["-"] * width)[:width]


def published_notes(results: Results, methods: Collection[str] = ()) -> list[str]:
    """Return the protocol of every published row, and which rows of ours have none of their method beside them."""
    notes = [
        f"{theirs.name}, {model}: {theirs.protocol}"
        for model, published in published_of_all(results, methods).items()
        for theirs in published
    ]
    for row in results.rows:
        facts = row_facts(row, results.tasks)
        if not facts:
            notes.append(f"nothing beside {row.name}, as no run.json says what it is")
        elif not published_of(row, results.tasks, methods):
            what = f"{facts['method'] or 'this method'} on {facts['model'] or 'this model'}"
            notes.append(f"nothing beside {row.name}, as there is no row of {what}")
    return [f"published: {note}" for note in notes]


def published_records(results: Results, methods: Collection[str] = ()) -> list[dict[str, Any]]:
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
            "deviation": None if score.spread is None else theirs.deviation,
            "statistic": theirs.statistic,
            "epoch": theirs.epoch,
            "mnli_start": {"yes": True, "no": False}.get(score.mnli_start),
            "adapter_parameters": None if theirs.parameters is None else round(1e6 * theirs.parameters),
        }
        for published in published_of_all(results, methods).values()
        for theirs in published
        for task, score in theirs.scores.items()
        if task in results.tasks or score is theirs.average(results.averaged_tasks)
    ]


def judgement_records(
    row: Row, theirs: PublishedRow, results: Results, statistic: str, margin: Margin
) -> list[dict[str, Any]]:
    """Return the verdicts on one row of ours against a published one, in points, for CSV and JSON."""
    return [
        {
            "kind": "against published",
            "name": f"{row.name} against {theirs.name}",
            "task": task,
            "value": found.difference,
            "low": found.low,
            "high": found.high,
            "margin": found.margin,
            "p": found.p,
            "holm_p": found.holm_p,
            "seeds_needed": found.needed,
            "verdict": found.verdict,
        }
        for task, found in judge_published(row, theirs, results, statistic, margin).items()
    ]
