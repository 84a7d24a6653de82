"""Print tables of GLUE results: each task's mean and standard deviation over seeds, with the protocol beside them.

    python parse_results.py finetuned_results/randlora64 5

reads finetuned_results/randlora64/<seed>/<task>/ of seeds 1 to 5, as run_glue.py writes them, and prints a caption,
a header, a row, and what a reader has to know about the runs (--format latex makes a document of it). With two seeds
of two tasks, and nothing there but eval_results.json, it prints for example:

    mean ± population std over 2 seeds, in percent; last epoch as evaluated; MNLI starts unknown
    name | mrpc | cola | avg \\\\
    randlora64 | 88.0 ± 1.0 | 61.4 ± 1.4 | 74.7 ± 1.2 \\\\
    left out of table and average, as no seed has a usable result: sst2, qnli, rte, stsb
    health: nothing found in 4 runs
    health: not checked: the arguments of 4 runs (no run.json)

A task's metric is accuracy, for CoLA Matthews' correlation, and for STS-B the mean of Pearson's and Spearman's
correlations (the combined score, as in the RandLoRA release) unless --metric or --stsb_metric say otherwise; MNLI's
column has the matched and the mismatched set, and counts as their mean. `avg` averages the tasks of each seed first.
The numbers are the last epoch's unless --epoch says otherwise. Where run.json is there, the row ends with what was
trained (the adapter's parameters, without and with the head), the saved file's size, training time of all tasks and
peak memory, each the mean over seeds.

A task that no seed has is left out, and a line says so. A file that only some seeds lack, or that can't be used
(broken JSON, no such metric, not a number, NaN, outside the metric's range, a link to a file that was counted), is an
error that names every such file. With --allow_missing a cell is computed from the seeds that are there and shows how
many they are, as in `88.0 ± 1.0 (n=4)`, and the average uses only the seeds that have every task in the table.

NSEEDS is how many seeds there are (5: seeds 1 to 5), a range (3-5; 101-101 is one seed) or a list (1,3).

--format runs prints what stands in run.json of every run, a CSV line each, scores in percent.

Several ROOTs are compared: each with the first, paired by seed. --published adds the papers' rows for the same model.

    python parse_results.py --status finetuned_results/lora4 finetuned_results/randlora64 5

prints how far a sweep is: how many seeds of each adapter and task are finished, running, failed and missing, why each
failed, and the time left as finished runs suggest. It only reads, and a ROOT that isn't there yet is all missing.

Exit status: 0 if a table was printed, 1 where its output can't be written, else 2. Needs Python's standard library,
and SciPy where ROOTs are compared.
"""

import argparse
import sys
from typing import Any

from glue_peft.errors import OneLineParser, run_script
from glue_peft.run_folder import plural
from glue_peft.tables.costs import COSTS, seed_costs
from glue_peft.tables.formats import FORMATS, Table, cost_cell, p_text, percent
from glue_peft.tables.health import coverage_lines, health_lines
from glue_peft.tables.paired_tests import Comparison, best_cells, centre, compare_rows, deviation, verdict
from glue_peft.tables.protocol import caption, row_differences
from glue_peft.tables.published import published_cells, published_notes, published_of_all, published_records
from glue_peft.tables.records import comparison_records, run_records, score_records
from glue_peft.tables.results import Results, Row, add_arguments, read_results, wanted_seeds, wanted_tasks
from glue_peft.tables.status import status_lines


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; the values of ROOT and NSEEDS are checked by read_results."""
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
        default=0,
        help="the standard deviation divides by n - ddof: 0 for the population's (default), 1 for the sample's",
    )
    parser.add_argument("--published", action="store_true", help="add the papers' rows for the same model")
    parser.add_argument(
        "--format", choices=FORMATS, default="text", help="runs: a CSV line a run (default: %(default)s)"
    )
    args = parser.parse_intermixed_args(argv)
    defaults = vars(parser.parse_args(["ROOT", "1"]))
    changed = [name for name in defaults if getattr(args, name) != defaults[name]]
    for name in changed:
        if args.status and name not in ("roots", "n_seeds", "tasks", "status"):
            parser.error(f"--status goes with --tasks alone, not with --{name}")
        if args.format == "runs" and name in ("statistic", "ddof", "published"):
            parser.error(f"--format runs lists each run by itself: --{name} has no effect on it")
    return args


def cell(columns: list[list[float]], n_seeds: int, args: argparse.Namespace) -> str:
    """Return `mean ± std`, for MNLI `m/mm ± m/mm`, with n where it isn't the full number of seeds."""
    if not columns or not columns[0]:
        return "-"
    deviations = [deviation(values, args.ddof) for values in columns]
    text = "/".join(percent(centre(values, args.statistic)) for values in columns)
    text += " ± " + "/".join("-" if std is None else percent(std) for std in deviations)
    return text if len(columns[0]) == n_seeds else f"{text} (n={len(columns[0])})"


def score_table(results: Results, args: argparse.Namespace) -> Table:
    """Return the table of all rows, with the notes under it."""
    costs = {row.name: seed_costs(row, results.averaged_tasks) for row in results.rows}
    shown = [name for name in COSTS if any(costs[row.name][name] is not None for row in results.rows)]
    rows = []
    for row in results.rows:
        cells = [cell(row.columns(task), results.n_seeds, args) for task in results.tasks]
        averages = list(row.seed_averages(results.averaged_tasks).values())
        costs_of_row = [cost_cell(name, costs[row.name][name]) for name in shown]
        rows.append([row.name, *cells, cell([averages], results.n_seeds, args), *costs_of_row])
    header = ["name", *results.tasks, "avg", *(COSTS[name].header for name in shown)]
    bold = best_cells(results, args.statistic)
    table = Table(caption(results, args.statistic, args.ddof), header, rows, bold)
    table.notes = coverage_lines(results) + [f"health: {line}" for line in health_lines(results)]
    if args.published:
        for published in published_of_all(results).values():
            table.rules.append(len(table.rows))
            table.rows += [published_cells(theirs, results, len(header)) for theirs in published]
        table.notes += published_notes(results, args.statistic)
    return table


def comparison_table(first: Row, second: Row, compared: dict[str, Comparison], differences: list[str]) -> Table:
    """Return the paired comparison of two rows."""
    rows = []
    for task, comparison in compared.items():
        interval, permutation = "-", "-"
        if comparison.low is not None and comparison.high is not None:
            interval = f"{percent(comparison.low)} to {percent(comparison.high)}"
        if comparison.permutation_p is not None:
            permutation = f"{p_text(comparison.permutation_p)} (at least {p_text(comparison.smallest_p)})"
        ps = [p_text(comparison.p), p_text(comparison.holm_p) if task != "avg" else "-", permutation]
        difference = percent(comparison.difference)
        said = verdict(comparison, first.name, second.name)
        rows.append([task, str(comparison.n), difference, interval, *ps, said])
    title = (
        f"{second.name} minus {first.name}, paired by seed: mean difference in points with its 95 % interval, paired "
        f"t-test, the same after Holm over {plural(len(compared.keys() - {'avg'}), 'task')}, exact sign-flip "
        "permutation test with the smallest value that so many seeds can reach"
    )
    header = ["task", "n", "difference", "95 % interval", "t-test p", "Holm p", "permutation p", "verdict"]
    table = Table(title, header, rows)
    table.notes.append(f"the runs differ in: {', '.join(differences) or 'nothing that was recorded'}")
    if any(row[4] == "-" for row in rows):
        table.notes.append("no t-test where there is one seed, or where every seed differs by the same amount")
    return table


def main(argv: list[str] | None = None) -> int:
    """Print the tables of one or more result folders; raises UsageError."""
    args = parse_arguments(argv)
    if args.status:
        tasks = None if args.tasks is None else wanted_tasks(args.tasks)
        text = "\n".join(status_lines(args.roots, wanted_seeds(args.n_seeds), tasks)) + "\n"
    else:
        results = read_results(args)
        if results.ignored:
            print("\n".join(["parse_results.py: ignored, as unreadable:", *results.ignored]), file=sys.stderr)
        text = FORMATS[args.format](*tables_and_records(results, args))
    print(text, end="")
    return 0


def tables_and_records(results: Results, args: argparse.Namespace) -> tuple[list[Table], list[dict[str, Any]]]:
    """Return the score table and one for each comparison, and their numbers or, with --format runs, every run's."""
    tables = [score_table(results, args)]
    if args.format == "runs":
        return tables, run_records(results)
    records = score_records(results, args.statistic, args.ddof)
    records += published_records(results) if args.published else []
    first, *others = results.rows
    for second in others:
        compared = compare_rows(first, second, results)
        tables.append(comparison_table(first, second, compared, row_differences(first, second, results.tasks)))
        records += comparison_records(first, second, compared)
    return tables, records


if __name__ == "__main__":
    sys.exit(run_script(main, "parse_results.py"))
