"""Are a recipe's runs its paper's result? A table of its cells: ours, theirs, a verdict, and what is missing.

    python parse_results.py --reproduce fourierft fourierft_paper

reads the runs that `RECIPE=fourierft RESULTS=fourierft_paper bash train_all.sh` makes. Each run's record is compared
with the recipe's row: a cell with a run that differs from it is listed and gets no verdict. Of the others the table
has our value by the paper's statistic and epoch, the published one, and whether they are equivalent, differ, or can't
be told apart (tables/equivalence.py), Holm's correction being over the tasks of a model and adapter; and what choosing
the best epoch added to the last one. Where published_seeds.csv has the paper's own seeds, they stand for its mean and
deviation.

A model that the recipe doesn't have is recognised by its runs in ROOT, and has no published row. Needs SciPy.
"""

import argparse
import itertools
import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glue_peft import recipe as recipes
from glue_peft.errors import OneLineParser, UsageError
from glue_peft.flags import FlagKind, differences, given_flags, kind_of
from glue_peft.grid import Run, prefix, read_grid, read_recipe, recipe_of
from glue_peft.run_folder import RECORD_FILE, plural, read_json
from glue_peft.tables.collapse import collapse, divergence
from glue_peft.tables.equivalence import (
    DEFAULT_MARGIN,
    DIFFERS,
    EQUIVALENT,
    INCONCLUSIVE,
    Judgement,
    Margin,
    Readings,
    judge,
    parse_margin,
    printed,
)
from glue_peft.tables.estimates import centre, deviation, estimate
from glue_peft.tables.formats import FORMATS, SHORTENED, Table, shortened
from glue_peft.tables.published import PublishedRow, PublishedScore, read_published
from glue_peft.tables.published_seeds import PublishedRun, seeds_of
from glue_peft.tables.read import EPOCHS, part, printable, read_run
from glue_peft.tables.results import wanted_tasks
from glue_peft.tasks import METRICS, main_metric

GLOBAL_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")  # compared as their product
PATHS_COMPARED = ("adapter_config",)  # by content
MISSING = "missing"


@dataclass
class Cell:
    """One task of a model and adapter: the recipe's runs, and what of them is there."""

    model: str
    adapter: str
    task: str
    runs: list[Run]
    metric: str
    statistic: str
    epoch: str
    published: PublishedRow | None = None
    published_runs: list[PublishedRun] = field(default_factory=list)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)  # by epoch and seed, in percent
    missing: list[Run] = field(default_factory=list)
    deviating: dict[str, list[str]] = field(default_factory=dict)  # by folder: in what its run differs from the row
    faults: list[str] = field(default_factory=list)  # lines on runs that are unusable, collapsed or diverged
    judgement: Judgement | None = None

    @property
    def values(self) -> list[float]:
        """Return our scores of the recipe's epoch, in percent."""
        return list(self.scores.get(self.epoch, {}).values())

    @property
    def published_seeds(self) -> list[float]:
        """Return the published seeds' scores of the recipe's epoch, in percent."""
        return [score for run in self.published_runs if (score := run.score(self.epoch)) is not None]

    @property
    def published_score(self) -> PublishedScore | None:
        """Return the printed number."""
        return self.published.scores.get(self.task) if self.published else None

    @property
    def theirs(self) -> float | None:
        """Return the published value, in percent."""
        if self.published_seeds:
            return centre(self.published_seeds, self.statistic)
        return self.published_score.value if self.published_score else None

    @property
    def readings(self) -> Readings:
        """Return what is published as an estimate, by the kind of its deviation; empty without one."""
        if self.published_seeds:
            found = estimate(self.published_seeds, self.statistic)
            return {} if found is None else {"sample": found}
        row, score = self.published, self.published_score
        if row is None or score is None:
            return {}
        return printed(score.value, score.spread, row.n_seeds, row.statistic, row.deviation)

    @property
    def verdict(self) -> str:
        """Return the verdict, or why there is none."""
        if not self.values and self.missing:
            return MISSING
        if self.theirs is None:
            return "no published row"
        if self.deviating:
            return "no verdict: other settings"
        if not self.readings:
            return "no verdict: no spread published"
        if self.judgement is None:
            return "no verdict: one seed" if len(self.values) == 1 else "no verdict: no usable run"
        return self.judgement.in_words

    def gain(self, epoch: str, over: str = "last") -> float | None:
        """Return by how many points the statistic of one epoch is above another's, over the seeds that have both."""
        ours, others = self.scores.get(epoch, {}), self.scores.get(over, {})
        seeds = ours.keys() & others.keys()
        if not seeds:
            return None
        return centre([ours[s] for s in seeds], self.statistic) - centre([others[s] for s in seeds], self.statistic)


def main(argv: list[str]) -> str:
    """Return the text that `--reproduce RECIPE ROOT` prints; raises UsageError."""
    args = parse_arguments(argv)
    settings = {"RECIPE": args.reproduce, "RESULTS": args.root.rstrip("/") or "/"}
    header = recipes.read_header(checked_recipe(settings))
    margin = parse_margin(args.margin)
    tasks = None if args.tasks is None else wanted_tasks(args.tasks)
    cells = read_cells(settings, header, tasks)
    for _, row in itertools.groupby(cells, lambda cell: (cell.model, cell.adapter)):
        judge_row(list(row), margin)
    table = table_of(cells, settings, header, f"margin {margin}")
    if args.format in SHORTENED and not args.verbose:
        table = shortened(table)
    return FORMATS[args.format]([table], [record_of(cell, args.reproduce) for cell in cells])


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser(
        prog="parse_results.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--reproduce", metavar="RECIPE", required=True, help="one of recipes/")
    parser.add_argument("root", metavar="ROOT", help="the RESULTS of the sweep: the folder above the adapters'")
    parser.add_argument("--tasks", help="only these, with commas between them (default: all of the recipe)")
    parser.add_argument(
        "--margin",
        default=DEFAULT_MARGIN,
        help="differences below this don't matter: points (1.5) or published deviations (2sd; default: %(default)s)",
    )
    parser.add_argument("--verbose", action="store_true", help="print all notes, however many")
    formats = [name for name in FORMATS if name != "runs"]
    parser.add_argument("--format", choices=formats, default="text", help="default: %(default)s")
    return parser.parse_args(argv)


def checked_recipe(settings: dict[str, str]) -> str:
    """Return the recipe's path; raises UsageError where there is none, or ROOT is no folder."""
    path = recipe_of(settings)
    read_recipe(path)
    if not os.path.isdir(settings["RESULTS"]):
        raise UsageError(f"ROOT must be the folder of a sweep's results, not {settings['RESULTS']!r}")
    return path


# What is there


def read_cells(settings: dict[str, str], header: recipes.Header, tasks: list[str] | None) -> list[Cell]:
    """Return every cell of the recipe, and of other models with runs in ROOT, with what is there of it."""
    rows = read_recipe(recipe_of(settings))
    known = list(dict.fromkeys(row["model"] for row in rows))
    others = [model for model in models_in(Path(settings["RESULTS"])) if model not in known]
    cells = []
    for model in [*known, *others]:
        own = [row for row in rows if row["model"] == (model if model in known else known[0])]
        for adapter in dict.fromkeys(row["adapter"] for row in own):
            served = [task for row in own if row["adapter"] == adapter for task in row["tasks"].split(",")]
            wanted = " ".join(task for task in served if tasks is None or task in tasks)
            runs = read_grid(settings | {"MODELS": model, "ADAPTERS": adapter, "TASKS": wanted}, []) if wanted else []
            if model in known or any(os.path.isdir(run.folder) for run in runs):
                cells += [
                    cell_of(model, adapter, task, runs, rows, header)
                    for task in dict.fromkeys(run.task for run in runs)
                ]
    if not cells:
        raise UsageError(f"--tasks: the recipe {settings['RECIPE']} has none of these")
    for cell in cells:
        read_cell(cell)
    return cells


def models_in(root: Path) -> list[str]:
    """Return the models of the runs below a sweep's root, as their records spell them; those that a list can hold."""
    records = (read_json(path) for path in sorted(root.glob(f"*/*/*/{RECORD_FILE}")))
    names = (part(record or {}, "arguments").get("model_name_or_path") for record in records)
    return [name for name in dict.fromkeys(names) if isinstance(name, str) and name and not set(name) & set(" ,\t\n")]


def cell_of(
    model: str, adapter: str, task: str, runs: list[Run], rows: list[dict[str, str]], header: recipes.Header
) -> Cell:
    """Return a cell with what is published of it, before any run is read."""
    paper, method = header.published.get(adapter, ("", ""))
    name = shown(model)
    published = next((row for row in read_published(name) if (row.paper, row.method) == (paper, method)), None)
    if published is not None and task not in published.scores:
        published = None
    own = [run for run in runs if run.task == task]
    seeds = seeds_of(header.published_seeds.get(adapter, ""), name, task, head_rate(own[0]))
    metric = metric_of(task, paper, method, rows, seeds)
    return Cell(model, adapter, task, own, metric, header.statistic, header.epoch, published, seeds)


def metric_of(task: str, paper: str, method: str, rows: list[dict[str, str]], seeds: list[PublishedRun]) -> str:
    """Return the metric that the paper reports of a task, on any of the recipe's models; else the task's own."""
    if seeds:
        return seeds[0].metric
    for model in dict.fromkeys(row["model"] for row in rows):
        for row in read_published(shown(model)):
            if (row.paper, row.method) == (paper, method) and task in row.scores:
                return row.scores[task].metric
    return main_metric(task)


def head_rate(run: Run) -> float:
    """Return the learning rate of a run's head."""
    flags = given_flags(run.flags)
    return float(str(flags.get("classifier_learning_rate", flags["learning_rate"])))


def read_cell(cell: Cell) -> None:
    """Read the runs of a cell: scores of every epoch, what is missing, and in what runs differ from the recipe."""
    for run in cell.runs:
        folder = Path(run.folder)
        found = read_run(folder, cell.task, cell.metric, cell.epoch)
        name = printable(run.folder)
        if found.fault is not None and not found.fault.is_missing:
            cell.faults.append(f"unusable: {name} ({found.fault.reason})")
        if found.fault is not None:
            cell.missing += [run] if found.record is None else []
            continue
        differs = deviations_of(found.record, run)
        if differs:
            cell.deviating[name] = differs
        for kind, reason in (("diverged", divergence(found)), ("collapsed", collapse(found))):
            cell.faults += [f"{kind}, counted: {name} ({reason})"] if reason else []
        for epoch in EPOCHS:
            score = read_run(folder, cell.task, cell.metric, epoch).score
            if score is not None:
                cell.scores.setdefault(epoch, {})[run.seed] = 100 * score


def deviations_of(record: dict[str, Any] | None, run: Run) -> list[str]:
    """Return in what a run's record differs from the recipe's row, flag by flag, precision and global batch."""
    if record is None:
        return [f"no {RECORD_FILE} says how it was made"]
    wanted, arguments = given_flags(run.flags), part(record, "arguments")
    names = {*wanted, *given_flags(list(map(str, record.get("command") or [])))}
    compared = (FlagKind.MOVES_SCORES, FlagKind.NAMES_RUN)
    free = {name for name in names if kind_of(name) not in compared and name not in PATHS_COMPARED}
    found = differences(record, run.flags, free | {*GLOBAL_BATCH})
    processes = record.get("processes") or 1
    batches = [
        int(str(of.get(GLOBAL_BATCH[0]) or 1)) * int(str(of.get(GLOBAL_BATCH[1]) or 1)) for of in (arguments, wanted)
    ]
    if batches[0] * processes != batches[1]:
        found.append(f"{batches[1]} rows a step (the folder has {batches[0] * processes})")
    if "fp16" in wanted and record.get("precision") != "fp16":
        found.append(f"--fp16 (the folder has {record.get('precision')})")
    if bool(arguments.get("init_adapter_from")) != ("init_adapter_from" in wanted):
        found.append(f"{'an' if 'init_adapter_from' in wanted else 'no'} adapter to start from (the folder otherwise)")
    return found


def judge_row(cells: list[Cell], margin: Margin) -> None:
    """Give the cells of a model and adapter their verdicts, corrected over its tasks."""
    columns = {}
    for cell in cells:
        ours = estimate(cell.values, cell.statistic)
        if ours is not None and cell.readings and not cell.deviating:
            columns[cell.task] = ours, cell.readings
    for task, judgement in judge(columns, margin).items():
        next(cell for cell in cells if cell.task == task).judgement = judgement


# What is printed


def table_of(cells: list[Cell], settings: dict[str, str], header: recipes.Header, margin: str) -> Table:
    """Return the table of all cells, and below it a line on all of it, what differs, and what is missing."""
    names = "model|adapter|task|n|ours|published|difference|90 % interval|verdict|best - last".split("|")
    with_selected = any(cell.scores.get("selected") for cell in cells)
    names += ["selected - last"] if with_selected else []
    rows = [row_of(cell, with_selected) for cell in cells]
    table = Table(caption_of(cells, settings, header, margin), names, rows)
    table.rules = [i for i in range(1, len(cells)) if row_name(cells[i]) != row_name(cells[i - 1])]
    table.notes = [summary_of(cells, settings["RECIPE"])]  # first, as it must not be cut off
    table.notes += [f"known to differ from the paper: {text}" for text in header.differs]
    sources = dict.fromkeys(run.source for cell in cells for run in cell.published_runs)
    table.notes += [f"published seed by seed: {source}" for source in sources]
    for cell in cells:
        table.notes += cell.faults
        table.notes += [
            f"differs from the recipe: {folder}: {'; '.join(texts)}" for folder, texts in cell.deviating.items()
        ]
    table.notes += missing_lines(cells, settings)
    return table


def row_name(cell: Cell) -> tuple[str, str]:
    """Return what a row of the grid is called: model and adapter."""
    return cell.model, cell.adapter


def row_of(cell: Cell, with_selected: bool) -> list[str]:
    """Return a cell's line of the table."""
    ddof = 0 if cell.published is not None and cell.published.deviation == "population" else 1
    spread = deviation(cell.values, ddof) if cell.values else None
    ours = "-" if not cell.values else points(centre(cell.values, cell.statistic)) + plus_minus(spread)
    theirs, score = cell.theirs, cell.published_score
    published = points(theirs) + plus_minus(score.spread if score else None)
    published += f" ({plural(len(cell.published_seeds), 'seed')})" if cell.published_seeds else ""
    known = theirs is not None and bool(cell.values)
    difference = f"{points(centre(cell.values, cell.statistic) - (theirs or 0), '+')}" if known else "-"
    judged = cell.judgement
    interval = f"{points(judged.low)} to {points(judged.high)}" if judged else "-"
    cells = [
        shown(cell.model),
        cell.adapter,
        cell.task,
        str(len(cell.values)),
        ours,
        published,
        difference,
        interval,
        cell.verdict,
    ]
    cells.append(points(cell.gain("best"), "+"))
    return cells + ([points(cell.gain("selected"), "+")] if with_selected else [])


def shown(model: str) -> str:
    """Return a model's name without its folder or owner."""
    return os.path.basename(model.rstrip("/"))


def points(value: float | None, sign: str = "") -> str:
    """Return a number of points with one decimal, never as -0.0; a dash for none."""
    return "-" if value is None else f"{round(value, 1) + 0.0:{sign}.1f}"


def plus_minus(spread: float | None) -> str:
    """Return ` ± 0.3`, or nothing without a deviation."""
    return "" if spread is None else f" ± {points(spread)}"


def caption_of(cells: list[Cell], settings: dict[str, str], header: recipes.Header, margin: str) -> str:
    """Return what the numbers are: statistic, seeds, epoch, which of them the paper doesn't state, the margin."""
    runs = {run.seed for cell in cells for run in cell.runs}
    seeds = ", ".join(sorted(runs, key=int))
    said = [f"the paper doesn't state {' and '.join(header.not_stated)}: ours"] if header.not_stated else []
    metrics = sorted({cell.metric for cell in cells if cell.task == "stsb"})
    parts = [
        f"{settings['RECIPE']}: {header.statistic} over seeds {seeds}",
        *said,
        EPOCHS[header.epoch],
        *(f"STS-B: {METRICS[metric]}" for metric in metrics),
        f"in percent; equivalent: the 90 % interval of the difference lies within the {margin}; differs: Welch's p "
        "below 0.05 after Holm over the tasks of a model and adapter",
    ]
    return "; ".join(parts)


def missing_lines(cells: list[Cell], settings: dict[str, str]) -> list[str]:
    """Return a line for the missing runs of each model and adapter with the same seeds, with the command for them."""
    lines = []
    for (model, adapter), group in itertools.groupby(cells, row_name):
        of_row = list(group)
        by_seeds: dict[tuple[str, ...], list[str]] = {}
        for cell in of_row:
            if cell.missing:
                by_seeds.setdefault(tuple(run.seed for run in cell.missing), []).append(cell.task)
        for seeds, tasks in by_seeds.items():
            variables = settings | {"MODELS": model, "ADAPTERS": adapter, "TASKS": ",".join(tasks)}
            if len(seeds) < max(len(cell.runs) for cell in of_row):
                variables["SEEDS"] = ",".join(seeds)
            words = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
            count = plural(len(seeds) * len(tasks), "run")
            lines.append(f"missing: {count} of {adapter} on {shown(model)}: {words} bash {prefix()}train_all.sh")
    return lines


def summary_of(cells: list[Cell], recipe: str) -> str:
    """Return one line on all cells."""
    verdicts = [cell.judgement.verdict if cell.judgement else cell.verdict for cell in cells]
    counts = [f"{verdicts.count(word)} {word}" for word in (EQUIVALENT, DIFFERS, INCONCLUSIVE)]
    counts += [
        f"{verdicts.count(word)} {word}"
        for word in dict.fromkeys(verdicts)
        if word not in (EQUIVALENT, DIFFERS, INCONCLUSIVE)
    ]
    runs, missing = sum(len(cell.runs) for cell in cells), sum(len(cell.missing) for cell in cells)
    left = f"{missing} of {plural(runs, 'run')} missing"
    return f"in all: {recipe}, {plural(len(cells), 'cell')}: {', '.join(counts)}; {left}"


def record_of(cell: Cell, recipe: str) -> dict[str, Any]:
    """Return a cell's numbers, in percent and points, for CSV and JSON."""
    judged = cell.judgement
    return {
        "kind": "reproduction",
        "recipe": recipe,
        "model": cell.model,
        "adapter": cell.adapter,
        "task": cell.task,
        "metric": cell.metric,
        "statistic": cell.statistic,
        "epoch": cell.epoch,
        "n": len(cell.values),
        "missing": len(cell.missing),
        "value": centre(cell.values, cell.statistic) if cell.values else None,
        "std": deviation(cell.values, 1) if cell.values else None,
        "published": cell.theirs,
        "low": judged.low if judged else None,
        "high": judged.high if judged else None,
        "margin": judged.margin if judged else None,
        "p": judged.p if judged else None,
        "holm_p": judged.holm_p if judged else None,
        "verdict": judged.verdict if judged else cell.verdict,
        "best_minus_last": cell.gain("best"),
        "selected_minus_last": cell.gain("selected"),
    }


def is_asked_for(argv: Iterable[str]) -> bool:
    """Say whether a command line of parse_results.py asks for this table."""
    return any(word.partition("=")[0] == "--reproduce" for word in argv)
