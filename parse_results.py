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
    health: not checked: the arguments of 4 runs (no run.json) and whether 2 runs collapsed (no eval_majority_share)

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

Exit status: 0 if a table was printed, else 2. Needs Python's standard library, and SciPy where ROOTs are compared.
"""

import argparse
import csv
import io
import json
import os
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glue_peft.errors import OneLineParser, UsageError, run_script
from glue_peft.run_folder import (
    COMMAND_FILE,
    checkpoints,
    is_running,
    last_words,
    log_lines,
    plural,
    read_failure,
)
from glue_peft.tables.paired_tests import Comparison, best_cells, compare_rows, verdict
from glue_peft.tables.published import published_cells, published_notes, published_of_all, published_records
from glue_peft.tables.read import (
    EPOCHS,
    MISSING,
    Results,
    Row,
    adapter_starts,
    add_arguments,
    coverage_lines,
    data_limits,
    distinct_roots,
    health_lines,
    memory_kinds,
    number,
    part,
    printable,
    read_results,
    read_run,
    row_differences,
    row_names,
    run_cost,
    seed_costs,
    seeds_text,
    wanted_seeds,
    wanted_tasks,
)
from glue_peft.tasks import METRICS, PAPER_TASKS, TASKS, main_metric

STATES = ("finished", "running", "failed", "missing")
COST_HEADERS = {
    "adapter_parameters": "adapter",
    "parameters_with_head": "with head",
    "stored_bytes": "stored",
    "train_seconds": "training",
    "peak_bytes": "peak memory",
}
LATEX_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "±": r"$\pm$", "<": "$<$", ">": "$>$", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "×": r"$\times$", "÷": r"$\div$", "[": "{[}", "*": "{*}",  # \\ would read a [ or *
}  # fmt: skip


@dataclass
class Table:
    """Text cells; `bold` holds (row, column), and a rule goes above each row in `rules`."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    bold: set[tuple[int, int]] = field(default_factory=set)
    rules: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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


def percent(fraction: float) -> str:
    """Return a fraction in percent with one decimal, and never as -0.0."""
    return f"{round(100 * fraction, 1) + 0.0:.1f}"


def centre(values: list[float], args: argparse.Namespace) -> float:
    """Return the mean or the median."""
    return statistics.fmean(values) if args.statistic == "mean" else statistics.median(values)


def deviation(values: list[float], args: argparse.Namespace) -> float | None:
    """Return the standard deviation about the mean; a single value has no sample's."""
    if args.ddof == 0:
        return statistics.pstdev(values)
    return statistics.stdev(values) if len(values) > 1 else None


def cell(columns: list[list[float]], n_seeds: int, args: argparse.Namespace) -> str:
    """Return `mean ± std`, for MNLI `m/mm ± m/mm`, with n where it isn't the full number of seeds."""
    if not columns or not columns[0]:
        return "-"
    deviations = [deviation(values, args) for values in columns]
    text = "/".join(percent(centre(values, args)) for values in columns)
    text += " ± " + "/".join("-" if std is None else percent(std) for std in deviations)
    return text if len(columns[0]) == n_seeds else f"{text} (n={len(columns[0])})"


def task_columns(row: Row, task: str) -> list[list[float]]:
    """Return the scores behind one cell: one list, for MNLI one of the matched and one of the mismatched set."""
    return [list(values) for values in zip(*(run.parts for run in row.used(task).values()), strict=True)]


def cost_cell(name: str, value: float | None) -> str:
    """Return one of the costs in its unit."""
    if value is None:
        return "-"
    if name == "train_seconds":
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    if name.endswith("_bytes"):
        return f"{value / 1e6:,.2f} MB" if value < 1e9 else f"{value / 1e9:,.2f} GB"
    return f"{value:,.0f}"


def caption(results: Results, args: argparse.Namespace) -> str:
    """Return the protocol behind the numbers."""
    whole = all(
        len(scores) == results.n_seeds
        for row in results.rows
        for scores in [row.seed_averages(results.averaged_tasks), *map(row.scores, results.tasks)]
    )
    runs = [run for row in results.rows for task in results.tasks for run in row.used(task).values()]
    from_record = all(run.source is not None and run.source.name == "run.json" for run in runs)
    usual = results.seeds == list(range(1, results.n_seeds + 1))
    seeds = plural(results.n_seeds, "seed") + ("" if usual else f" ({seeds_text(results.seeds).partition(' ')[2]})")
    others = [
        f"{'STS-B' if task == 'stsb' else task}: {METRICS[key]}"
        for task, key in results.metrics.items()
        if task in results.tasks and (task == "stsb" or key != main_metric(task))
    ]
    parts = [
        f"{args.statistic} ± {('population', 'sample')[args.ddof]} std over {'' if whole else 'up to '}{seeds}, "
        "in percent",
        EPOCHS[results.epoch] + ("" if from_record else " as evaluated"),
        *others,
        *data_limits(results.rows, results.tasks),
        mnli_starts(results),
    ]
    if results.drop_collapsed:
        parts.append(f"collapsed and diverged runs dropped (--drop_collapsed): {results.n_dropped}")
    kinds = memory_kinds(results.rows, results.tasks)
    return "; ".join(parts + ([f"peak memory: {', '.join(kinds)}"] if kinds else []))


def mnli_starts(results: Results) -> str:
    """Say which tasks of which rows started from a saved adapter."""
    runs = [run for row in results.rows for task in results.tasks for run in row.used(task).values()]
    unknown = sum(run.record is None for run in runs)
    found = []
    for row in results.rows:
        tasks = adapter_starts(row, results.tasks)
        if tasks:
            found.append(", ".join(tasks) if len(results.rows) == 1 else f"{row.name} ({', '.join(tasks)})")
    if unknown == len(runs):
        return "MNLI starts unknown"
    known = f"started from an adapter: {', '.join(found)}" if found else "no MNLI starts"
    return known + (f" (unknown of {unknown} of {plural(len(runs), 'run')})" if unknown else "")


def score_table(results: Results, args: argparse.Namespace) -> Table:
    """Return the table of all rows, with the notes under it."""
    costs = {row.name: seed_costs(row, results.averaged_tasks) for row in results.rows}
    shown = [name for name in COST_HEADERS if any(costs[row.name][name] is not None for row in results.rows)]
    rows = []
    for row in results.rows:
        cells = [cell(task_columns(row, task), results.n_seeds, args) for task in results.tasks]
        averages = list(row.seed_averages(results.averaged_tasks).values())
        costs_of_row = [cost_cell(name, costs[row.name][name]) for name in shown]
        rows.append([row.name, *cells, cell([averages], results.n_seeds, args), *costs_of_row])
    header = ["name", *results.tasks, "avg", *(COST_HEADERS[name] for name in shown)]
    bold = best_cells(results, lambda values: centre(values, args))
    table = Table(caption(results, args), header, rows, bold)
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
        interval = "-" if comparison.low is None else f"{percent(comparison.low)} to {percent(comparison.high)}"
        permutation = "-"
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


def p_text(p: float | None) -> str:
    """Return a p-value with as many digits as are worth reading."""
    if p is None:
        return "-"
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def score_records(results: Results, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return every number of the score table with its protocol, in percent and unrounded, for CSV and JSON."""
    records = []
    for row in results.rows:
        averages = list(row.seed_averages(results.averaged_tasks).values())
        columns = {task: list(row.scores(task).values()) for task in results.tasks} | {"avg": averages}
        if "mnli" in results.tasks and row.used("mnli"):
            columns["mnli-m"], columns["mnli-mm"] = task_columns(row, "mnli")
        starts, costs = adapter_starts(row, results.tasks), seed_costs(row, results.averaged_tasks)
        for name, values in columns.items():
            task = name.partition("-")[0]
            std = deviation(values, args) if values else None
            records.append(
                {
                    "kind": "ours",
                    "name": row.name,
                    "task": name,
                    "metric": results.metrics.get(task, f"mean of {len(results.averaged_tasks)} tasks"),
                    "n": len(values),
                    "value": 100 * centre(values, args) if values else None,
                    "std": None if std is None else 100 * std,
                    "statistic": args.statistic,
                    "ddof": args.ddof,
                    "epoch": results.epoch,
                    "mnli_start": task in starts,
                }
                | costs
            )
    return records


def comparison_records(first: Row, second: Row, compared: dict[str, Comparison]) -> list[dict[str, Any]]:
    """Return the comparison of two rows, differences in points, for CSV and JSON."""
    return [
        {
            "kind": "comparison",
            "name": f"{second.name} minus {first.name}",
            "task": task,
            "n": comparison.n,
            "value": 100 * comparison.difference,
            "low": None if comparison.low is None else 100 * comparison.low,
            "high": None if comparison.high is None else 100 * comparison.high,
            "p": comparison.p,
            "holm_p": comparison.holm_p if task != "avg" else None,
            "permutation_p": comparison.permutation_p,
            "smallest_permutation_p": comparison.smallest_p,
            "holm_permutation_p": comparison.holm_permutation_p if task != "avg" else None,
            "verdict": verdict(comparison, first.name, second.name),
        }
        for task, comparison in compared.items()
    ]


def run_records(results: Results) -> list[dict[str, Any]]:
    """Return one line a run: how it was made, what it scored (in percent) and what it cost."""
    records = []
    for row in results.rows:
        for task in results.tasks:
            for seed, run in row.used(task).items():
                record = run.record or {}
                arguments, scores = part(record, "arguments"), part(record, "scores")
                metric = results.metrics[task]
                line = {"name": row.name, "task": task, "seed": seed, "metric": metric}
                for epoch in EPOCHS:
                    score = read_run(run.folder, task, metric, epoch).score
                    line[epoch] = None if score is None else 100 * score
                    line[f"{epoch}_epoch"] = None if score is None else number(part(scores, epoch).get("epoch"))
                held_out = number(part(scores, "selected").get(f"selection_{metric}"))
                line["selection_rows_score"] = None if held_out is None else 100 * held_out
                for name in ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "selection_fraction"):
                    line[name] = arguments.get(name)
                line |= {name: run_cost(run, name) for name in COST_HEADERS}
                line |= {name: record.get(name) for name in ("device", "precision", "threads", "git_commit")}
                records.append(line)
    return records


def as_text(tables: list[Table], records: list[dict[str, Any]]) -> str:
    r"""Return plain lines; each row ends in \\, ready for LaTeX once the bars are ampersands."""
    blocks = []
    for table in tables:
        rows = [" | ".join(cells) + r" \\" for cells in [table.header, *table.rows]]
        blocks.append("\n".join([table.caption, *rows, *table.notes]) + "\n")
    return "\n".join(blocks)


def as_markdown(tables: list[Table], records: list[dict[str, Any]]) -> str:
    """Return pipe tables with the caption above and the notes below."""

    def escaped(text: str) -> str:
        """Return the text without Markdown's marks."""
        return re.sub(r"([\\|*_`<>\[\]#])", r"\\\1", text)

    blocks = []
    for table in tables:
        rows = [
            [f"**{escaped(text)}**" if (i, j) in table.bold else escaped(text) for j, text in enumerate(cells)]
            for i, cells in enumerate(table.rows)
        ]
        rule = ["---"] + ["---:"] * (len(table.header) - 1)
        lines = [f"| {' | '.join(cells)} |" for cells in [[escaped(text) for text in table.header], rule, *rows]]
        notes = [f"- {escaped(note)}" for note in table.notes]
        blocks.append("\n".join([escaped(table.caption), "", *lines, *([""] if notes else []), *notes]) + "\n")
    return "\n".join(blocks)


def as_latex(tables: list[Table], records: list[dict[str, Any]]) -> str:
    """Return a whole LaTeX document that needs booktabs and graphicx, each table as wide as the page."""
    lines = [
        r"\documentclass{article}",
        r"\usepackage[T1]{fontenc}",
        r"\usepackage{booktabs,graphicx}",
        r"\begin{document}",
    ]
    for table in tables:
        lines += [
            r"\begin{table}[!ht]",
            r"\centering",
            rf"\caption{{{latex(table.caption)}}}",
            r"\resizebox{\textwidth}{!}{%",
        ]
        lines += [rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}", r"\toprule"]
        lines += [" & ".join(map(latex, table.header)) + r" \\", r"\midrule"]
        for i, cells in enumerate(table.rows):
            texts = [re.sub(r"^-(?=\d)|(?<=to )-(?=\d)|(?<=/)-(?=\d)", "$-$", latex(text)) for text in cells]
            texts = [rf"\textbf{{{text}}}" if (i, j) in table.bold else text for j, text in enumerate(texts)]
            lines += [r"\midrule"] * (i in table.rules) + [" & ".join(texts) + r" \\"]
        lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table}"]
        lines += [rf"\noindent {latex(note)}\par" for note in table.notes]
    return "\n".join([*lines, r"\end{document}"]) + "\n"


def latex(text: str) -> str:
    """Escape what LaTeX reads as its own; letters that its standard fonts may lack become their code points."""
    escaped = (
        LATEX_ESCAPES.get(char) or (char if char.isascii() or "À" <= char <= "ÿ" else f"U+{ord(char):04X}")
        for char in text.replace("--", "-\0-")
    )
    return "".join(escaped).replace("\0", "{}")  # two hyphens would become a dash


def as_csv(tables: list[Table], records: list[dict[str, Any]]) -> str:
    """Return one line a number with its protocol; captions and notes go to stderr, as CSV has no place for them."""
    for table in tables:
        print("\n".join([table.caption, *table.notes]), file=sys.stderr)
    stream = io.StringIO()
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(stream, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


def as_json(tables: list[Table], records: list[dict[str, Any]]) -> str:
    """Return one object: the captions, the notes under the tables, and a record for each number."""
    notes = [note for table in tables for note in table.notes]
    captions = [table.caption for table in tables]
    return json.dumps({"captions": captions, "notes": notes, "numbers": records}, indent=2, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[list[Table], list[dict[str, Any]]], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "latex": as_latex,
    "csv": as_csv,
    "json": as_json,
    "runs": as_csv,
}


@dataclass
class RunState:
    """How far one run is."""

    row: str
    task: str
    folder: Path
    state: str  # one of STATES
    detail: str = ""
    seconds: float | None = None  # of a finished run


def status_lines(args: argparse.Namespace) -> list[str]:
    """Return the state of every run of every ROOT: a table, why runs failed, and the time left."""
    seeds, roots = wanted_seeds(args.n_seeds), distinct_roots(args.roots)
    for root in roots:
        if os.path.lexists(root) and not os.path.isdir(root):
            raise UsageError(f"ROOT must be a folder, or not be there yet, not {root!r}")
    there = [
        task
        for task in TASKS
        if any(os.path.isdir(os.path.join(root, str(seed), task)) for root in roots for seed in seeds)
    ]
    tasks = (there or PAPER_TASKS) if args.tasks is None else wanted_tasks(args.tasks)
    runs = [
        run_state(name, task, Path(root) / str(seed) / task)
        for name, root in zip(row_names(roots), roots, strict=True)
        for task in tasks
        for seed in seeds
    ]
    lines = [f"{' / '.join(STATES)}, of {seeds_text(seeds)}", *status_table(runs)]
    lines += [f"failed: {printable(str(run.folder))}: {run.detail}" for run in runs if run.state == "failed"]
    stopped = [run for run in runs if run.state == "missing" and run.detail]
    lines += [f"stopped: {printable(str(run.folder))}: {run.detail}" for run in stopped]
    left_out = [task for task in there if task not in tasks]
    lines += [f"there, but not asked for: {', '.join(left_out)}"] if left_out else []
    return [*lines, time_left(runs)]


def status_table(runs: list[RunState]) -> list[str]:
    """Return a line for each row with the counts of each task, and the sums."""

    def counts(row: str | None, task: str | None) -> str:
        """Return how many runs are in each state; None stands for every row or task."""
        states = [run.state for run in runs if row in (None, run.row) and task in (None, run.task)]
        return "/".join(str(states.count(state)) for state in STATES)

    names = [*dict.fromkeys(run.row for run in runs), None]
    tasks = [*dict.fromkeys(run.task for run in runs), None]
    cells = [["name", *(task or "all" for task in tasks)]]
    cells += [[name or "all", *(counts(name, task) for task in tasks)] for name in names]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [" | ".join(map(str.ljust, line, widths)).rstrip() for line in cells]


def run_state(row: str, task: str, folder: Path) -> RunState:
    """Find out how far one run is.

    A run that was stopped on purpose, and one that was killed after it had saved, count as missing and will be
    resumed. One that ended otherwise without a checkpoint has failed.
    """
    if is_running(folder):
        return RunState(row, task, folder, "running")
    run, failure, saved = read_run(folder, task, main_metric(task), "last"), read_failure(folder), checkpoints(folder)
    evaluated = part(run.record or {}, "arguments").get("do_eval") is not False
    if run.record is not None and (run.score is not None or not evaluated):
        return RunState(row, task, folder, "finished", seconds=number(run.record.get("seconds")))
    was_killed = saved and failure is not None and failure.kind == "killed"
    if run.fault is not None and (run.record is not None or run.fault.reason != MISSING) and not was_killed:
        name = "" if run.fault.kind is not None else f"{run.fault.path.name}: "
        return RunState(row, task, folder, "failed", name + run.fault.reason)
    if saved or failure is not None:  # which is a stop
        return RunState(row, task, folder, "missing", f"to be resumed from {saved[0].name if saved else 'the start'}")
    if log_lines(folder) or (folder / COMMAND_FILE).is_file():
        return RunState(row, task, folder, "failed", printable(last_words(folder)[:300]))
    return RunState(row, task, folder, "missing")


def time_left(runs: list[RunState]) -> str:
    """Estimate the time left: for each run without a result the median seconds of those most like it.

    These are the finished runs of its row and task, else those of its task, else all. What a running or stopped run
    has done already isn't known, so that the estimate is rather too long.
    """
    finished = [run for run in runs if run.seconds is not None and run.seconds >= 0]
    unfinished = [run for run in runs if run.state != "finished"]
    if not unfinished:
        return "time left: none, all runs are finished"
    if not finished:
        return "time left: not known, as no run is finished"
    total = 0.0
    for run in unfinished:
        of_task = [other for other in finished if other.task == run.task]
        alike = [other for other in of_task if other.row == run.row] or of_task or finished
        total += statistics.median(other.seconds for other in alike)
    left = plural(len(unfinished), "run")
    text = f"time left: about {cost_cell('train_seconds', total)} (h:mm:ss) for {left} in a row"
    running = sum(run.state == "running" for run in runs)
    if running:
        text += f", {cost_cell('train_seconds', total / running)} with {running} at once"
    return f"{text}; medians of {plural(len(finished), 'finished run')}"


def main(argv: list[str] | None = None) -> int:
    """Print the tables of one or more result folders; raises UsageError."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a C locale can't encode ±; folder names leave as the bytes they are
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    args = parse_arguments(argv)
    if args.status:
        text = "\n".join(status_lines(args)) + "\n"
    else:
        results = read_results(args)
        if results.ignored:
            print("\n".join(["parse_results.py: ignored, as unreadable:", *results.ignored]), file=sys.stderr)
        text = FORMATS[args.format](*tables_and_records(results, args))
    write(text)
    return 0


def tables_and_records(results: Results, args: argparse.Namespace) -> tuple[list[Table], list[dict[str, Any]]]:
    """Return the score table and one for each comparison, and their numbers or, with --format runs, every run's."""
    tables = [score_table(results, args)]
    if args.format == "runs":
        return tables, run_records(results)
    records = score_records(results, args) + (published_records(results) if args.published else [])
    first, *others = results.rows
    for second in others:
        compared = compare_rows(first, second, results)
        tables.append(comparison_table(first, second, compared, row_differences(first, second, results.tasks)))
        records += comparison_records(first, second, compared)
    return tables, records


def write(text: str) -> None:
    """Print the output; raises UsageError where it can't be written, but not where a reader like `head` left."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # python flushes once more when it ends
        raise UsageError(f"the output can't be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(run_script(main, "parse_results.py"))
