"""TUNE=1: every method's learning rate is searched with the same effort, on rows held out of training.

Phase 1 trains each model, adapter and task (a cell) with each rate of a grid and each search seed, and scores the last
epoch on the held-out rows alone. Where the best rate of a cell is the grid's last one, one more on that side is tried
by every method on the same model and task, so that their budgets stay equal. Phase 2 trains the final seeds with the
rates chosen on all training rows. Which runs are known follows from those that are finished, so a sweep that was
killed anywhere goes on; the list only grows, so a Slurm array's numbers stay valid.
"""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path

from glue_peft.errors import UsageError
from glue_peft.flags import FlagKind, given_flags, kind_of, without
from glue_peft.grid import (
    COLUMNS,
    VARIABLES,
    Choice,
    Run,
    items_of,
    make_run,
    prefix,
    read_choices,
    read_recipe,
    recipe_of,
    root_of,
    seeds_of_list,
    without_repeats,
)
from glue_peft.recipe import COLUMNS_LINE
from glue_peft.run_folder import SEARCH, TUNED_RECIPE, atomic_write
from glue_peft.run_state import state
from glue_peft.sweep_messages import as_ranges
from glue_peft.tables.search import Chosen, Trial, choose, rate_text, read_trial
from glue_peft.tasks import TASKS

RATE_FACTORS = "0.1 0.3 1 3 10"
SEARCH_SEEDS = "101-103"
SEEDS = "1-8"
SELECTION_FRACTION = "0.1"
ITS_DATA = ("train_file", "validation_file")  # without them a name for data of one's own would mean nothing
MOST_ADDED = 2  # rates that a grid may get beyond its edges


@dataclass
class Cell:
    """A model, an adapter and a task, whose rate is searched."""

    choice: Choice
    task: str
    row: str  # the folder of its final runs, below the results' root
    base: Decimal
    factors: list[Decimal]  # ascending; times `base` they are the rates
    added: int = 0  # factors beyond the edges of the grid that was asked for
    trials: list[Trial] = field(default_factory=list)

    @property
    def group(self) -> tuple[str, str]:
        """Return the model and the task: the methods there are compared, and have the same budget."""
        return self.choice.model, self.task


@dataclass
class Tuning:
    """What is known of a tuned sweep by now."""

    cells: list[Cell]
    search: list[Run]
    final: list[Run]  # with each grid's first rate as long as the search isn't finished
    chosen: list[Chosen]  # of each cell; empty as long as the search isn't finished
    extensions: list[str]  # why grids were extended, a line each

    @property
    def runs(self) -> list[Run]:
        """Return the runs whose rates are known."""
        return [*self.search, *(self.final if self.chosen else [])]


def read_tuning(settings: Mapping[str, str], flags: list[str]) -> Tuning:
    """Return the runs of a tuned sweep as far as they are known; raises UsageError."""
    cells = read_cells(settings, flags)
    seeds, final_seeds = read_seeds(settings)
    search: list[Run] = []
    chosen: list[Chosen] = []
    extensions: list[str] = []
    wanted = [(cell, cell.factors) for cell in cells]
    while wanted:
        for cell, factors in wanted:
            tried = [(seed, cell.base * factor) for seed in seeds for factor in factors]
            runs = [search_run(cell, rate, seed, settings, flags) for seed, rate in tried]
            search += runs
            cell.trials += [
                trial for run, (_, rate) in zip(runs, tried, strict=True) if (trial := trial_of(run, rate))
            ]
        is_finished = sum(len(cell.trials) for cell in cells) == len(search)
        chosen = [choose(cell.trials) for cell in cells] if is_finished else []
        wanted = beyond_edges(cells, chosen, extensions) if is_finished else []
    rates = [found.rate for found in chosen] or [cell.base * cell.factors[0] for cell in cells]
    final = [
        final_run(cell.choice, cell.task, rate, seed, settings, flags)
        for cell, rate in zip(cells, rates, strict=True)
        for seed in final_seeds
    ]
    without_repeats([*search, *final])
    return Tuning(cells, search, final, chosen, extensions)


def read_cells(settings: Mapping[str, str], flags: list[str]) -> list[Cell]:
    """Return what is to be tuned; raises UsageError for what contradicts a search."""
    given = given_flags(flags)
    for name, instead in {
        "learning_rate": "LEARNING_RATES or RATE_FACTORS",
        "selection_fraction": "SELECTION_FRACTION",
    }.items():
        if name in given:
            raise UsageError(f"--{name}: with TUNE set {instead} instead")
    if settings.get("LEARNING_RATES") and settings.get("RATE_FACTORS"):
        raise UsageError("LEARNING_RATES and RATE_FACTORS: set one of them")
    cells = []
    for choice in read_choices(settings, flags):
        if "{mnli}" in choice.row["flags"]:
            raise UsageError(
                f"TUNE: {recipe_of(settings)} starts {choice.tasks[0]} from a run whose rate is not known yet"
            )
        base, factors = grid_of(choice.row, settings)
        for task in choice.tasks:
            row = final_run(choice, task, base, "1", settings, flags).row
            cells.append(Cell(choice, task, row, base, factors))
    return cells


def grid_of(row: dict[str, str], settings: Mapping[str, str]) -> tuple[Decimal, list[Decimal]]:
    """Return base and factors of a row's grid: 1 and LEARNING_RATES or its list, or its one rate and RATE_FACTORS."""
    if settings.get("LEARNING_RATES"):
        return Decimal(1), numbers_of("LEARNING_RATES", settings["LEARNING_RATES"], least=2)
    name = f"the learning rate of {row['adapter']}, {row['tasks']}"
    own = numbers_of(name, row["learning_rate"], least=1)
    if len(own) == 1:
        return own[0], numbers_of("RATE_FACTORS", settings.get("RATE_FACTORS") or RATE_FACTORS, least=2)
    if settings.get("RATE_FACTORS"):
        raise UsageError(f"RATE_FACTORS: {name} is a list in the recipe already")
    return Decimal(1), own


def numbers_of(name: str, text: str, least: int) -> list[Decimal]:
    """Return the numbers of a list, ascending; raises UsageError unless they are different, above 0 and `least`."""
    try:
        numbers = sorted(Decimal(item) for item in items_of(text))
    except InvalidOperation:
        numbers = []
    if len(numbers) < least or len({*numbers}) < len(numbers) or not all(n.is_finite() and n > 0 for n in numbers):
        raise UsageError(f"{name}: {text} is not a list of {least} or more different numbers above 0, like 1e-4 3e-4")
    return numbers


def read_seeds(settings: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the seeds of the search and the final ones; raises UsageError where one is both."""
    search, final = (
        seeds_of_list(name, settings.get(name) or default)
        for name, default in (("SEARCH_SEEDS", SEARCH_SEEDS), ("SEEDS", SEEDS))
    )
    both = [seed for seed in search if seed in final]
    if both:
        raise UsageError(f"SEARCH_SEEDS: {both[0]} is one of SEEDS too, and a search needs seeds of its own")
    return search, final


def search_run(cell: Cell, rate: Decimal, seed: str, settings: Mapping[str, str], flags: list[str]) -> Run:
    """Return a run of the search: the final run's command with this rate, held-out rows, and no validation set.

    Flags that only ask for further files, such as --do_predict, are for the final runs.
    """
    place = {"RESULTS": f"{root_of(settings)}/{SEARCH}", "TAG": f"{settings.get('TAG', '')}_lr{rate_text(rate)}"}
    kept = without(flags, *(name for name in given_flags(flags) if kind_of(name) is FlagKind.OUTPUT))
    fraction = ["--selection_fraction", settings.get("SELECTION_FRACTION") or SELECTION_FRACTION]
    run = final_run(cell.choice, cell.task, rate, seed, {**settings, **place}, [*kept, *fraction])
    return Run(run.folder, (*run.command[:2], *without(run.flags, "do_eval")), is_search=True)


def final_run(
    choice: Choice, task: str, rate: Decimal, seed: str, settings: Mapping[str, str], flags: list[str]
) -> Run:
    """Return the run of a model, adapter and task with a rate, on all training rows."""
    row = choice.row | {"learning_rate": rate_text(rate)}
    return make_run(row, choice.model, seed, task, settings, flags)


def trial_of(run: Run, rate: Decimal) -> Trial | None:
    """Return what a run of the search came to; None where it isn't finished, or its folder holds another run."""
    trial = read_trial(Path(run.folder), run.task, rate, int(run.seed))
    if trial is None:
        return None
    found, _ = state(Path(run.folder), run.flags)
    return trial if found == ("open" if trial.score is None else "finished") else None


def beyond_edges(cells: list[Cell], chosen: list[Chosen], extensions: list[str]) -> list[tuple[Cell, list[Decimal]]]:
    """Extend the grids at whose edge a method is best, those of all methods alike; return each cell's new factors.

    Why is added to `extensions`.
    """
    edges: dict[tuple[str, str], dict[str, list[str]]] = {}
    for cell, found in zip(cells, chosen, strict=True):
        if found.edge:
            edges.setdefault(cell.group, {}).setdefault(found.edge, []).append(cell.row)
    new = []
    for group, rows in edges.items():
        members = [cell for cell in cells if cell.group == group]
        for side in sorted(rows)[: MOST_ADDED - members[0].added]:
            best = " and ".join(rows[side])
            extensions.append(
                f"search: {best}: best at the {side} edge on {group[1]}, so every method gets one more rate"
            )
            for cell in members:
                factor = next_factor(cell.factors, side)
                new.append((cell, [factor]))
                cell.factors = sorted([*cell.factors, factor])
                cell.added += 1
    return new


def next_factor(factors: list[Decimal], side: str) -> Decimal:
    """Return the next factor beyond an edge, as far from it as its neighbour, with as few digits as that allows."""
    last, before = (factors[-1], factors[-2]) if side == "upper" else (factors[0], factors[1])
    exact = last * last / before
    for digits in (1, 2, 3):
        rounded = Decimal(f"{exact:.{digits - 1}e}")
        if abs(rounded / exact - 1) < Decimal("0.15"):
            return rounded
    return exact


# What is said and written about it


def search_lines(tuning: Tuning) -> list[str]:
    """Return how far the search is, which grids were extended, and each cell's chosen rate."""
    lines = [f"search: {sum(len(cell.trials) for cell in tuning.cells)} of {len(tuning.search)} runs finished"]
    lines += tuning.extensions
    for cell, found in zip(tuning.cells, tuning.chosen, strict=False):
        lines.append(f"search: {cell.row}, {cell.task}: {rate_text(found.rate)}: {origin(cell, found)}")
    for group in dict.fromkeys(cell.group for cell in tuning.cells):
        rates = {cell.row: len(cell.factors) for cell in tuning.cells if cell.group == group}
        if len({*rates.values()}) > 1:
            counts = ", ".join(f"{row} {count} rates" for row, count in rates.items())
            lines.append(f"search: the budgets differ on {group[1]}, and the tables will say so: {counts}")
    return lines


def next_array(tuning: Tuning, numbers: list[int], settings: Mapping[str, str], flags: list[str]) -> str:
    """Return the command that gives Slurm the runs of these numbers, as many as are known and not finished."""
    if numbers:
        chosen = [f"{name}={settings[name]}" for name in VARIABLES if settings.get(name) and name != "STATUS"]
        command = [*chosen, "sbatch", f"--array={as_ranges(numbers)}", f"{prefix()}train_all.sh", *flags]
        return f"next: {shlex.join(command)}"
    return "next: nothing, all is finished or at work" + (
        "" if tuning.chosen else "; ask again when the search has ended"
    )


def origin(cell: Cell, found: Chosen) -> str:
    """Say how a rate was chosen."""
    rates = " ".join(rate_text(cell.base * factor) for factor in cell.factors)
    seeds = as_ranges(sorted({trial.seed for trial in cell.trials}))
    mean = (
        "none has a score"
        if found.mean is None
        else f"best mean without a collapse on held-out rows, {100 * found.mean:.1f}"
        if found.mean >= 0 or cell.task in TASKS
        else f"least mean squared error on held-out rows, {-100 * found.mean:.4g}"
    )
    text = f"{mean}; rates {rates}, seeds {seeds}"
    if found.collapsed:
        text += f"; {found.collapsed} of its runs collapsed or diverged, as some did at every rate"
    return text + (f"; at the grid's {found.edge} edge" if found.edge else "")


def write_recipe(tuning: Tuning, settings: Mapping[str, str], flags: list[str]) -> None:
    """Write the rates chosen, if they are, as a recipe with the flags given, beside those of other sweeps here."""
    if not tuning.chosen:
        return
    path = Path(root_of(settings)) / TUNED_RECIPE
    rows = {key_of(row): row for row in (read_recipe(str(path)) if path.exists() else [])}
    free = [name for name in given_flags(flags) if kind_of(name) is not FlagKind.MOVES_SCORES and name not in ITS_DATA]
    moving = [*without(flags, *free)]
    place = os.path.dirname(recipe_of(settings)) or "."
    for cell, found in zip(tuning.cells, tuning.chosen, strict=True):
        row = cell.choice.row
        words = [word.replace("{recipes}", place) for word in shlex.split(row["flags"]) if word != "-"]
        changed = {
            "model": cell.choice.model,
            "tasks": cell.task,
            "learning_rate": rate_text(found.rate),
            "flags": shlex.join([*words, *moving]) or "-",
            "source": origin(cell, found),
        }
        rows[key_of(row | changed)] = row | changed
    lines = ["\t".join(row[name] for name in COLUMNS) for row in rows.values()]
    text = "\n".join([COLUMNS_LINE, "\t".join(COLUMNS), *lines, ""])
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def key_of(row: Mapping[str, str]) -> tuple[str, ...]:
    """Return what tells the rows of the written recipe apart."""
    return tuple(row[name] for name in ("adapter", "model", "tasks", "rank"))
