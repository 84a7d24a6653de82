"""Print tables of GLUE results: each task's mean and standard deviation over seeds, with the protocol beside them.

    python parse_results.py finetuned_results

finds every finetuned_results/<adapter>/<seed>/<task>/, as run_glue.py writes them, and prints a caption, a header, a
row for each adapter, and what a reader has to know about the runs. `finetuned_results/randlora64 5` in place of that
is one row with seeds 1 to 5. With two seeds of two tasks, and nothing there but eval_results.json, it prints for
example:

    mean ± sample std over 2 seeds, in percent; evaluated model, epoch unknown; MNLI starts unknown
    name              mrpc        cola         avg
    ----------  ----------  ----------  ----------
    randlora64  88.0 ± 1.4  61.4 ± 2.0  74.7 ± 1.7
    left out of table and average, as no seed has a usable result: sst2, qnli, rte, stsb
    health: nothing found in 4 runs
    health: not checked: arguments (no run.json: 4 runs), rows (no eval_samples: 4 runs), copies (no eval_loss: 4 runs)

A task's metric is accuracy, for CoLA Matthews' correlation, and for STS-B the mean of Pearson's and Spearman's
correlations (the combined score, as in the RandLoRA release) unless --metric or --stsb_metric say otherwise; MNLI's
column has the matched and the mismatched set, and counts as their mean. `avg` averages the tasks of each seed first.
The numbers are the last epoch's unless --epoch says otherwise; without run.json that is known only where Trainer's
trainer_state.json tells it. ± is the population's deviation from five seeds on, as the RandLoRA scripts print it, and
the sample's below. Where run.json is there, the row ends with what was
trained (the adapter's parameters, without and with the head), the saved file's size, training time of all tasks and
peak memory, each the mean over seeds.

A task that no seed has is left out, and a line says so. A file that only some seeds lack, or that can't be used
(broken JSON, no such metric, not a number, NaN, outside the metric's range, a link to a file that was counted), is an
error that names every such file. With --allow_missing a cell is computed from the seeds that are there and shows how
many they are, as in `88.0 ± 1.0 (n=4)`, and the average uses only the seeds that have every task in the table.

Each ROOT is a row's folder or holds such folders; the last word may be NSEEDS: how many seeds there are (5: seeds 1
to 5), a range (3-5; 101-101 is one seed) or a list (1,3). Without it they are all that any row has.

--format html is one page of everything, for a browser or a printer (parse_results.py ... --format html > page.html);
row is the RandLoRA authors' one-line form, latex a tabular for \\input (--caption, --document), markdown,
csv and json what they say; runs prints what stands in run.json of every run, a CSV line each, scores in percent.
Under a table stand no more notes than the table has lines; --verbose prints all. --names lora4="LoRA (r=4)" names a
row, in figures too.

Several ROOTs are compared, each with the first or all with each other (--all_pairs): all these comparisons are one
family in the correction for many tests. --published adds the papers' rows for the same model (of some methods:
--published lora,randlora) and says of each column whether ours is equivalent, differs, or can't be told (--margin).
--aggregate adds other sums of a row than avg.
Where learning rates were searched (TUNE=1 bash train_all.sh), the caption has the budget and the notes the grid and
the rate chosen for each cell; rows with unequal budgets get no verdict without --unequal_budgets.
--bootstrap N adds intervals that tell what other validation rows and other seeds would have given.

    python parse_results.py --status finetuned_results/lora4 finetuned_results/randlora64 5

prints how far a sweep is: how many seeds of each adapter and task are finished, running, failed and missing, why each
failed, and the time left as finished runs suggest. It only reads, and a ROOT that isn't there yet is all missing.

`--reproduce RECIPE ROOT` holds the runs of a paper's recipe against what the paper printed: equivalent, different or
inconclusive, cell by cell. ROOT is the folder above the adapters'; `--reproduce RECIPE --help` says more.

Exit status: 0 if a table was printed, 1 where its output can't be written, else 2. Needs Python's standard library,
SciPy for comparisons, NumPy for --bootstrap, and matplotlib for --format html.
"""

import argparse
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from glue_peft.errors import OneLineParser, UsageError, run_script
from glue_peft.tables import latex, reproduce
from glue_peft.tables.aggregates import AGGREGATES, aggregate_cells, aggregate_records, wanted_aggregates
from glue_peft.tables.budgets import marked_rows, tuning_caption, tuning_notes, withhold_verdicts
from glue_peft.tables.comparisons import (
    Comparison,
    Family,
    best_cells,
    compare_rows,
    permutation_seeds,
    seeds_needed,
    smallest_shown,
    verdict,
)
from glue_peft.tables.costs import COSTS, seed_costs
from glue_peft.tables.equivalence import DEFAULT_MARGIN, parse_margin
from glue_peft.tables.estimates import centre, deviation
from glue_peft.tables.formats import FORMATS, SHORTENED, Table, as_latex, cost_cell, p_text, percent, shortened
from glue_peft.tables.health import coverage_lines, health_lines
from glue_peft.tables.protocol import caption, row_differences
from glue_peft.tables.published import (
    judgement_records,
    published_cells,
    published_comparison,
    published_notes,
    published_of,
    published_of_all,
    published_records,
    wanted_methods,
)
from glue_peft.tables.records import comparison_records, run_records, score_records
from glue_peft.tables.results import (
    SEEDS_PATTERN,
    Results,
    Row,
    add_arguments,
    read_results,
    wanted_rows,
    wanted_tasks,
)
from glue_peft.tables.search import Searches, read_searches
from glue_peft.tables.status import status_lines

# What has no effect on a list of runs.
NOT_FOR_RUNS = ("statistic", "ddof", "published", "all_pairs", "aggregate", "margin", "unequal_budgets", "bootstrap")
SEEDS_FOR_A_POPULATION = 5  # below, the population's deviation is much too small, and 0 for one seed


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; the words ROOT... [NSEEDS] are checked by read_results."""
    parser = OneLineParser(
        prog="parse_results.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser)
    parser.add_argument("--status", action="store_true", help="print how far the runs are, not their scores")
    parser.add_argument("--statistic", choices=("mean", "median"), default="mean", help="default: %(default)s")
    parser.add_argument(
        "--ddof",
        type=int,
        choices=(0, 1),
        help="the standard deviation divides by n - ddof: 0 for the population's, 1 for the sample's (default: the "
        "population's from five seeds on, the sample's below)",
    )
    parser.add_argument(
        "--all_pairs", action="store_true", help="compare all rows with each other, not with the first"
    )
    parser.add_argument(
        "--unequal_budgets",
        action="store_true",
        help="give verdicts between rows for whose learning rates unequal numbers of runs were spent",
    )
    parser.add_argument(
        "--aggregate",
        metavar="NAMES",
        help=f"further columns, with commas between them, or `all`: {', '.join(AGGREGATES)}",
    )
    add_published_arguments(parser)
    add_bootstrap_arguments(parser)
    add_format_arguments(parser)
    args = parser.parse_intermixed_args(with_all_published(sys.argv[1:] if argv is None else argv))
    refuse_without_effect(args, parser)
    args.margin = parse_margin(args.margin)
    args.published = None if args.published is None else wanted_methods(args.published)
    return args


def add_published_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options on the papers' rows."""
    parser.add_argument(
        "--published",
        metavar="METHODS",
        help="add the papers' rows for the same model, of all methods or of some, with commas between them",
    )
    parser.add_argument(
        "--margin",
        metavar="M",
        default=DEFAULT_MARGIN,
        help="with --published: differences below it don't matter; in points, such as 1.5, or in deviations of the "
        "published seeds, such as 2sd (default: %(default)s)",
    )


def with_all_published(argv: list[str]) -> list[str]:
    """Return the words with a value for each --published that has none, or it would take a ROOT or NSEEDS for one."""
    words = []
    for word, following in zip(argv, [*argv[1:], "-"], strict=True):
        is_alone = following.startswith("-") or os.path.isdir(following) or re.fullmatch(SEEDS_PATTERN, following)
        words.append("--published=all" if word == "--published" and is_alone else word)
    return words


def add_format_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options on how the tables are written."""
    parser.add_argument(
        "--format",
        choices=[*FORMATS, "html"],
        default="text",
        help="row: the RandLoRA authors' one-line form; runs: a line a run (default: %(default)s)",
    )
    parser.add_argument("--verbose", action="store_true", help="print all notes under a table, however many")
    parser.add_argument("--caption", metavar="TEXT", help="with --format latex: a table environment with this caption")
    parser.add_argument("--document", action="store_true", help="with --format latex: a whole document, all tables")


def refuse_without_effect(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Raise UsageError for options that would do nothing beside the others."""
    defaults = vars(parser.parse_args(["ROOT", "1"]))
    changed = [name for name in defaults if getattr(args, name) != defaults[name]]
    for name in changed:
        if args.status and name not in ("roots", "tasks", "status"):
            parser.error(f"--status goes with --tasks alone, not with --{name}")
        if args.format == "runs" and name in NOT_FOR_RUNS:
            parser.error(f"--format runs lists each run by itself: --{name} has no effect on it")
        if name == "margin" and args.published is None:
            parser.error("--margin is for the verdicts on published rows (--published)")
        if name in ("caption", "document") and args.format != "latex":
            parser.error(f"--{name} goes with --format latex")
        if name == "verbose" and args.format not in SHORTENED:
            parser.error(f"--verbose: --format {args.format} has all notes anyway")
    check_bootstrap(args, parser)


def add_bootstrap_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options on intervals."""
    parser.add_argument(
        "--bootstrap",
        metavar="N",
        type=int,
        help="add 95 %% intervals over validation rows and seeds, from N draws, and how far seeds answer alike",
    )
    parser.add_argument("--bootstrap_seed", metavar="S", type=int, help="seed of these draws (default: 0)")


def check_bootstrap(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse values out of range, and what has no effect."""
    if args.bootstrap is None:
        if args.bootstrap_seed is not None:
            parser.error("--bootstrap_seed is for the draws of --bootstrap")
        return
    args.bootstrap_seed = args.bootstrap_seed or 0
    for name, low, high in (("bootstrap", 100, 100_000), ("bootstrap_seed", 0, 2**32 - 1)):
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} {getattr(args, name)}: allowed are {low} to {high}")
    if args.statistic == "median":
        parser.error("--bootstrap is of means: it goes without --statistic median")


def cell(columns: list[list[float]], n_seeds: int, args: argparse.Namespace, metric: str = "") -> str:
    """Return `mean ± std`, for MNLI `m/mm ± m/mm`, with n where it isn't the full number of seeds.

    A single seed has no deviation, and gets no ±.
    """
    if not columns or not columns[0]:
        return "-"
    text = "/".join(percent(centre(values, args.statistic), metric) for values in columns)
    deviations = [std for values in columns if (std := deviation(values, args.ddof)) is not None]
    text += " ± " * bool(deviations) + "/".join(percent(std, metric) for std in deviations)
    return text if len(columns[0]) == n_seeds else f"{text} (n={len(columns[0])})"


def score_table(results: Results, family: Family, searches: Searches, args: argparse.Namespace) -> Table:
    """Return the table of all rows, with the notes under it; bold go by the verdicts of `family`."""
    marked = marked_rows(results, searches)
    costs = {row.name: seed_costs(row, results.common_tasks) for row in results.rows}
    shown = [name for name in COSTS if any(costs[row.name][name] is not None for row in results.rows)]
    aggregates = wanted_aggregates(args.aggregate, results)
    more = aggregate_cells(results, aggregates, args.statistic, lambda values: cell([values], results.n_seeds, args))
    rows = []
    for row, aggregates_of_row in zip(results.rows, more, strict=True):
        cells = [cell(row.columns(task), results.n_seeds, args, results.metrics[task]) for task in results.tasks]
        averages = list(row.seed_averages(results.averaged_tasks).values())
        costs_of_row = [cost_cell(name, costs[row.name][name]) for name in shown]
        name = row.name + " *" * (row.name in marked)
        rows.append([name, *cells, cell([averages], results.n_seeds, args), *aggregates_of_row, *costs_of_row])
    names = [AGGREGATES[name] for name in aggregates]
    header = ["name", *results.tasks, "avg", *names, *(COSTS[name].header for name in shown)]
    bold = best_cells(results, args.statistic, family)
    captions = [caption(results, args.statistic, args.ddof), tuning_caption(results, searches)]
    table = Table("; ".join(filter(None, captions)), header, rows, bold)
    table.notes = coverage_lines(results) + [f"health: {line}" for line in health_lines(results)]
    table.notes += tuning_notes(results, searches, args.unequal_budgets)
    if args.published is not None:
        for published in published_of_all(results, args.published).values():
            table.rules += [len(table.rows)] * bool(published)
            table.rows += [published_cells(theirs, results, len(header), len(names)) for theirs in published]
        table.notes += published_notes(results, args.published)
    return table


def comparison_table(first: Row, second: Row, family: Family, pair: tuple[int, int], differences: list[str]) -> Table:
    """Return the comparison of two rows, one of those in `family`."""
    rows = []
    for task, comparison in family.pairs[pair].items():
        metric = metric_of(comparison)
        interval, permutation = "-", f"{p_text(comparison.permutation_p)} (at least {p_text(comparison.smallest_p)})"
        if comparison.low is not None and comparison.high is not None:
            interval = f"{percent(comparison.low, metric)} to {percent(comparison.high, metric)}"
        n = "/".join(str(n) for n in dict.fromkeys(comparison.n))
        ps = [p_text(comparison.p), p_text(comparison.holm_p), p_text(comparison.paired_p), permutation]
        said = verdict(comparison, first.name, second.name)
        rows.append([task, n, percent(comparison.difference, metric), interval, *ps, said])
    title = (
        f"{second.name} minus {first.name}: difference of the means in points, its 95 % interval, Welch's t-test, the "
        f"same after Holm over {family.name}, on which the verdict rests; t-test paired by seed; unpaired permutation "
        "test with the smallest p that so many seeds can reach"
    )
    header = ["task", "n", "difference", "95 % interval", "Welch p", "Holm p", "paired p", "permutation p", "verdict"]
    table = Table(title, header, rows)
    table.notes += power_lines(family.pairs[pair], family.size)
    table.notes.append(f"the runs differ in: {', '.join(differences) or 'nothing that was recorded'}")
    return table


def metric_of(comparison: Comparison) -> str:
    """Return the metric by which the numbers of a comparison are printed."""
    return "mse" if comparison.lower_is_better else ""


def power_lines(compared: Mapping[str, Comparison], size: int) -> list[str]:
    """Say what so many seeds could show in a family of `size` comparisons, and how many it would take."""
    shown = {task: smallest_shown(comparison, size) for task, comparison in compared.items()}
    needed = {task: seeds_needed(comparison, size) or "over 100" for task, comparison in compared.items()}
    known = [task for task, difference in shown.items() if difference is not None]
    without = [task for task in compared if task not in known]
    lines = []
    if known:
        points = ", ".join(f"{task} {percent(shown[task] or 0, metric_of(compared[task]))}" for task in known)
        seeds = ", ".join(f"{task} {needed[task]}" for task in known)
        lines.append(
            f"power: with these seeds, in a family of {size}, the least difference that can be shown, in points: "
            f"{points}; one as large as seen is found in 80 % of cases with this many seeds a row: {seeds}"
        )
    lines.append(
        f"power: for a permutation test to confirm a verdict in a family of {size} it takes at least "
        f"{permutation_seeds(size)} seeds a row (paired by seed, by flipping signs, {permutation_seeds(size, True)})"
    )
    if without:
        lines.append(f"no Welch test where a row has one seed, or neither any spread: {', '.join(without)}")
    return lines if compared else []


def main(argv: list[str] | None = None) -> int:
    """Print the tables of one or more result folders; raises UsageError."""
    argv = sys.argv[1:] if argv is None else argv
    if reproduce.is_asked_for(argv):
        print(reproduce.main(argv), end="")
        return 0
    args = parse_arguments(argv)
    if args.status:
        tasks = None if args.tasks is None else wanted_tasks(args.tasks)
        text = "\n".join(status_lines(*wanted_rows(args.roots), tasks)) + "\n"
    else:
        results = read_results(args)
        if args.ddof is None:
            args.ddof = 0 if results.n_seeds >= SEEDS_FOR_A_POPULATION else 1
        if results.ignored:
            print("\n".join(["parse_results.py: ignored, as unreadable:", *results.ignored]), file=sys.stderr)
        text = written(results, args)
    print(text, end="")
    return 0


def written(results: Results, args: argparse.Namespace) -> str:
    """Return the tables in the form that --format asks for."""
    if args.all_pairs and len(results.rows) < 2:
        raise UsageError("--all_pairs compares rows, and there is one ROOT")
    if args.format == "runs":
        return FORMATS["runs"]([score_table(results, Family({}, ""), {}, args)], run_records(results))
    family = compare_rows(results, args.all_pairs)
    searches = read_searches({row.name: row.root for row in results.rows}, results.tasks)
    if not args.unequal_budgets:
        family = withhold_verdicts(family, results, searches)
    tables, records = tables_and_records(results, family, searches, args)
    if args.format == "html":
        from glue_peft.tables.page import page  # needs matplotlib

        published = {row.name: published_of(row, results.tasks, args.published or ()) for row in results.rows}
        return page(results, tables, family, searches, published, args.statistic)
    if args.document:
        return latex.document(tables, args.caption)
    if args.format == "latex":
        return as_latex(tables, records, args.caption)
    if args.format in SHORTENED and not args.verbose:
        tables = [shortened(table) for table in tables]
    return FORMATS[args.format](tables, records)


def tables_and_records(
    results: Results, family: Family, searches: Searches, args: argparse.Namespace
) -> tuple[list[Table], list[dict[str, Any]]]:
    """Return the score table and one for each comparison, and their numbers."""
    tables = [score_table(results, family, searches, args)]
    records = score_records(results, args.statistic, args.ddof)
    records += aggregate_records(results, wanted_aggregates(args.aggregate, results), args.statistic)
    if args.published is not None:
        records += published_records(results, args.published)
        for row in results.rows:
            for theirs in published_of(row, results.tasks, args.published):
                tables.append(published_comparison(row, theirs, results, args.statistic, args.margin))
                records += judgement_records(row, theirs, results, args.statistic, args.margin)
    for pair, compared in family.pairs.items():
        first, second = (results.rows[position] for position in pair)
        differences = row_differences(first, second, results.tasks)
        tables.append(comparison_table(first, second, family, pair, differences))
        records += comparison_records(first, second, compared, family.size)
    if args.bootstrap is not None:
        from glue_peft.tables.bootstrap import bootstrap_tables  # needs NumPy

        of_rows = bootstrap_tables(results, family.pairs, args.bootstrap, args.bootstrap_seed, args.allow_missing)
        tables, records = tables + of_rows[0], records + of_rows[1]
    return tables, records


if __name__ == "__main__":
    sys.exit(run_script(main, "parse_results.py"))
