"""What the search behind each row of a table has cost and chosen: the caption, the notes, and verdicts withheld."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal

from glue_peft.run_folder import plural
from glue_peft.tables.comparisons import Comparison, Family
from glue_peft.tables.read import number, part
from glue_peft.tables.results import Results, Row, seeds_text
from glue_peft.tables.search import Searches, Trial, by_rate, choose, rate_text

SAME_FACTOR = 1.25  # rounded rates, such as 1, 3, 10 and 1, 3.3, 10, are the same grid; 2 and 3 are not


@dataclass(frozen=True)
class Budget:
    """What was tried for a row and a task."""

    rates: tuple[Decimal, ...]  # ascending
    seeds: tuple[int, ...]
    n_runs: int

    def __str__(self) -> str:
        """Return `5 rates x 3 seeds`, or what else the runs make."""
        if not self.rates:
            return "no search"
        text = f"{plural(len(self.rates), 'rate')} x {plural(len(self.seeds), 'seed')}"
        return text if self.n_runs == len(self.rates) * len(self.seeds) else f"{text} ({plural(self.n_runs, 'run')})"

    def equals(self, other: "Budget") -> bool:
        """Say whether two budgets are equal: as many rates, seeds and runs, and the same factors between the rates."""
        counts = [(len(budget.rates), len(budget.seeds), budget.n_runs) for budget in (self, other)]
        factors = [[math.log(rate / budget.rates[0]) for rate in budget.rates] for budget in (self, other)]
        pairs = zip(*factors, strict=False)
        return counts[0] == counts[1] and all(abs(one - two) < math.log(SAME_FACTOR) for one, two in pairs)


def budget_of(trials: list[Trial]) -> Budget:
    """Return what some trials make."""
    return Budget(tuple(by_rate(trials)), tuple(sorted({trial.seed for trial in trials})), len(trials))


def budgets_of(results: Results, searches: Searches) -> dict[str, dict[str, Budget]]:
    """Return the budgets by row and task; empty where no row has a search."""
    if not any(searches.values()):
        return {}
    return {
        row.name: {task: budget_of(searches[row.name].get(task, [])) for task in results.tasks} for row in results.rows
    }


def unequal_tasks(budgets: Mapping[str, Mapping[str, Budget]], first: str, second: str) -> list[str]:
    """Return the tasks on which two rows had unequal budgets."""
    if not budgets:
        return []
    return [task for task, budget in budgets[first].items() if not budget.equals(budgets[second][task])]


def marked_rows(results: Results, searches: Searches) -> set[str]:
    """Return the rows whose budget on some task is not that of most rows there."""
    budgets = budgets_of(results, searches)
    marked = set()
    for task in results.tasks if budgets else []:
        of_task = {name: of_row[task] for name, of_row in budgets.items()}
        alike = {name: sum(budget.equals(other) for other in of_task.values()) for name, budget in of_task.items()}
        usual = of_task[max(alike, key=lambda name: alike[name])]
        marked |= {name for name, budget in of_task.items() if not budget.equals(usual)}
    return marked


def withhold_verdicts(family: Family, results: Results, searches: Searches) -> Family:
    """Take the verdicts between rows whose budgets were unequal, on the task or on one of the average's tasks."""
    budgets = budgets_of(results, searches)

    def withheld(pair: tuple[int, int], column: str, comparison: Comparison) -> Comparison:
        """Return a comparison with the reason why it gets no verdict, if there is one."""
        unequal = unequal_tasks(budgets, *(results.rows[position].name for position in pair))
        concerned = set(unequal) & set(results.averaged_tasks if column == "avg" else [column])
        return replace(comparison, withheld="budgets differ") if concerned else comparison

    pairs = {
        pair: {column: withheld(pair, column, comparison) for column, comparison in columns.items()}
        for pair, columns in family.pairs.items()
    }
    return replace(family, pairs=pairs)


# What a table says of it


def tuning_caption(results: Results, searches: Searches) -> str | None:
    """Return the part of a table's caption on how learning rates were chosen; None where they weren't searched."""
    found = {str(budget): None for of_row in budgets_of(results, searches).values() for budget in of_row.values()}
    if not found:
        return None
    return (
        f"learning rates searched: {' or '.join(found)} a row and task, last epoch on held-out training rows, best "
        "mean without a collapse"
    )


def tuning_notes(results: Results, searches: Searches, unequal_budgets: bool) -> list[str]:
    """Return each row's grid and chosen rates, a line a row and grid, and where budgets were unequal."""
    budgets = budgets_of(results, searches)
    lines = []
    for row in results.rows if budgets else []:
        grids: dict[tuple[tuple[Decimal, ...], tuple[int, ...]], list[str]] = {}
        for task, trials in searches[row.name].items():
            budget = budgets[row.name][task]
            grids.setdefault((budget.rates, budget.seeds), []).append(chosen_text(row, task, trials))
        for (rates, seeds), chosen in grids.items():
            grid = f"rates {' '.join(map(rate_text, rates))}, {seeds_text(list(seeds))}"
            lines.append(f"tuned: {row.name}, {grid}: {'; '.join(chosen)}")
    for task in results.tasks if budgets else []:
        of_task = {name: of_row[task] for name, of_row in budgets.items()}
        first, *others = of_task.values()
        if not all(first.equals(other) for other in others):
            texts = ", ".join(f"{name} {budget}" for name, budget in of_task.items())
            verdicts = "" if unequal_budgets else ": no verdict between them (--unequal_budgets gives one)"
            lines.append(f"* unequal budgets on {task}: {texts}{verdicts}")
    return lines


def chosen_text(row: Row, task: str, trials: list[Trial]) -> str:
    """Return the rate chosen for a row and task, with what has to be known of it."""
    chosen = choose(trials)
    mean = "no score" if chosen.mean is None else f"{100 * chosen.mean:.1f}"
    remarks = [f"the grid's {chosen.edge} edge"] if chosen.edge else []
    if chosen.collapsed:
        remarks.append(f"{chosen.collapsed} collapsed, as some did at every rate")
    used = {number(part(record, "arguments").get("learning_rate")) for record in row.records([task])} - {None}
    if used - {float(chosen.rate)}:
        remarks.append(f"but trained with {' or '.join(f'{rate:g}' for rate in sorted(filter(None, used)))}")
    return f"{task} {rate_text(chosen.rate)} ({', '.join([mean, *remarks])})"
