"""Print one row of GLUE results: the mean and standard deviation of each task over the seeds of a sweep.

    python parse_results.py finetuned_results/randlora64 5

reads finetuned_results/randlora64/<seed>/<task>/eval_results.json of seeds 1 to 5, as run_glue.py writes them, and
prints a caption, a header and a row that pastes into LaTeX. With two seeds of two tasks it prints, for example:

    mean ± population std over 2 seeds, in percent; last epoch as evaluated; STS-B: combined score
    name | mrpc | cola | avg \\\\
    randlora64 | 88.0 ± 1.0 | 61.4 ± 1.4 | 74.7 ± 1.2 \\\\
    left out of table and average, as no seed has a usable result: sst2, qnli, rte, stsb

A task's metric is accuracy, for CoLA Matthews' correlation, and for STS-B the mean of Pearson's and Spearman's
correlations (the combined score, as in the RandLoRA release) unless --stsb_metric says otherwise. The standard
deviation is the population's (divisor n). `avg` averages the tasks of each seed first; its mean and deviation are
those of these per-seed averages. "As evaluated": eval_results.json is taken as it stands, and belongs to the last
epoch unless the run itself chose another.

A task that no seed has is left out, and a line says so. A file that only some seeds lack, or that can't be used
(broken JSON, no such metric, not a number, NaN, outside the metric's range), is an error that names every such file.
With --allow_missing a cell is computed from the seeds that are there and shows how many they are, as in
`88.0 ± 1.0 (n=4)`, and the average uses only the seeds that have every task in the table.

Exit status: 0 if a row was printed, else 2. Needs nothing but Python's standard library.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

# The column order of the RandLoRA paper's GLUE table, and what it reports of each task.
TASK_METRICS = {
    "sst2": "eval_accuracy",
    "mrpc": "eval_accuracy",
    "cola": "eval_matthews_correlation",
    "qnli": "eval_accuracy",
    "rte": "eval_accuracy",
    "stsb": "eval_combined_score",
}
OTHER_TASKS = ("mnli", "qqp", "wnli")
STSB_METRICS = {"pearson": "Pearson", "spearmanr": "Spearman", "combined_score": "combined score"}
MOST_SEEDS = 9999
MISSING = "missing"

Scores = dict[str, dict[int, float]]  # task, seed -> fraction
Problems = dict[str, dict[int, str]]  # task, seed -> why there is no score


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; the values of ROOT and NSEEDS are checked by main."""
    parser = argparse.ArgumentParser(
        prog="parse_results.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("root", metavar="ROOT", help="folder of one table row, with ROOT/<seed>/<task>/ in it")
    parser.add_argument("n_seeds", metavar="NSEEDS", help="number of seeds: 1 to NSEEDS are read")
    parser.add_argument(
        "--stsb_metric",
        choices=STSB_METRICS,
        default="combined_score",
        help="what to report of STS-B (default: %(default)s, the mean of the other two)",
    )
    parser.add_argument("--allow_missing", action="store_true", help="use the seeds that are there, and show how many")
    return parser.parse_args(argv)


def seed_count(text: str) -> int:
    """Return NSEEDS as a number, or raise ValueError with the allowed values."""
    is_short_number = text.isascii() and text.isdigit() and len(text) <= len(str(MOST_SEEDS))
    if not is_short_number or int(text) < 1:
        raise ValueError(f"NSEEDS must be a whole number from 1 to {MOST_SEEDS}, not {text!r}")
    return int(text)


def result_file(root: Path, seed: int, task: str) -> Path:
    """Return where run_glue.py leaves the scores of one run."""
    return root / str(seed) / task / "eval_results.json"


def read_score(path: Path, metric: str) -> float:
    """Return `metric` of one results file, or raise ValueError (an OSError where it can't be read) with the reason."""
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")  # reading a named pipe would wait for ever
    try:
        results = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None
    except ValueError as error:  # broken JSON, broken UTF-8, a number of thousands of digits
        raise ValueError(f"not valid JSON: {error}") from None
    if not isinstance(results, dict):
        raise ValueError(f"not a JSON object but {type(results).__name__}")
    if metric not in results:
        raise ValueError(f"has no {metric}")
    score = results[metric]
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise ValueError(f"{metric} is not a number but {type(score).__name__}")
    lowest = 0 if metric == "eval_accuracy" else -1
    # Rounding can carry a correlation just past 1. NaN fails this test, and huge integers need no conversion for it.
    if not lowest <= score <= 1 + 1e-6:
        raise ValueError(f"{metric} is {str(score)[:20]}, not between {lowest} and 1")
    return float(score)


def read_results(root: Path, n_seeds: int, metrics: dict[str, str]) -> tuple[Scores, Problems]:
    """Read every task of every seed; what has no usable score has a problem instead."""
    scores: Scores = {task: {} for task in metrics}
    problems: Problems = {task: {} for task in metrics}
    for task, metric in metrics.items():
        for seed in range(1, n_seeds + 1):
            try:
                scores[task][seed] = read_score(result_file(root, seed, task), metric)
            except (FileNotFoundError, NotADirectoryError):
                problems[task][seed] = MISSING
            except OSError as error:
                problems[task][seed] = f"can't be read: {error.strerror}"
            except ValueError as error:
                problems[task][seed] = str(error)
    return scores, problems


def unusable_files(root: Path, problems: Problems, tasks: list[str], and_missing: bool) -> list[str]:
    """Return one line for each file of `tasks` that can't be used and, where asked for, each that is missing."""
    return [
        f"  {result_file(root, seed, task)}: {reason}"
        for task in tasks
        for seed, reason in problems[task].items()
        if and_missing or reason != MISSING
    ]


def seed_averages(scores: Scores, tasks: list[str]) -> list[float]:
    """Return the average over `tasks` of each seed that has them all."""
    complete = set.intersection(*(set(scores[task]) for task in tasks))
    return [statistics.fmean(scores[task][seed] for task in tasks) for seed in sorted(complete)]


def percent(fraction: float) -> str:
    """Return a fraction in percent with one decimal, and never as -0.0."""
    return f"{round(100 * fraction, 1) + 0.0:.1f}"


def cell(values: list[float], n_seeds: int) -> str:
    """Return `mean ± population std`, with n where it isn't the full number of seeds."""
    if not values:
        return "-"
    text = f"{percent(statistics.fmean(values))} ± {percent(statistics.pstdev(values))}"
    return text if len(values) == n_seeds else f"{text} (n={len(values)})"


def table_lines(name: str, scores: Scores, tasks: list[str], n_seeds: int, stsb_metric: str) -> list[str]:
    """Return caption, header and row, and a line on the average where it doesn't cover all seeds."""
    averages = seed_averages(scores, tasks)
    up_to = "" if len(averages) == n_seeds else "up to "
    cells = [cell(list(scores[task].values()), n_seeds) for task in tasks] + [cell(averages, n_seeds)]
    lines = [
        f"mean ± population std over {up_to}{n_seeds} seed{'s' * (n_seeds > 1)}, in percent; last epoch as evaluated; "
        f"STS-B: {STSB_METRICS[stsb_metric]}",
        " | ".join(["name", *tasks, "avg"]) + r" \\",
        " | ".join([name, *cells]) + r" \\",
    ]
    if up_to:
        lines.append(f"avg covers {len(averages)} of {n_seeds} seeds, those with every task in the table")
    return lines


def left_out_lines(root: Path, n_seeds: int, tasks: list[str]) -> list[str]:
    """Return the lines on what has no column: tasks without results, and MNLI, QQP and WNLI where they are there."""
    empty = [task for task in TASK_METRICS if task not in tasks]
    seeds = range(1, n_seeds + 1)
    others = [task for task in OTHER_TASKS if any(os.path.isdir(root / str(seed) / task) for seed in seeds)]
    lines = []
    if empty:
        lines.append(f"left out of table and average, as no seed has a usable result: {', '.join(empty)}")
    if others:
        lines.append(f"there, but not part of this table: {', '.join(others)}")
    return lines


def fail(message: str) -> int:
    """Print an error to stderr and return the exit status for it."""
    print(f"parse_results.py: error: {message}", file=sys.stderr)
    return 2


def main(argv: list[str] | None = None) -> int:
    """Print the row of one sweep folder and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a C locale can't encode ±; folder names leave as the bytes they are
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    args = parse_arguments(argv)
    try:
        n_seeds = seed_count(args.n_seeds)
    except ValueError as error:
        return fail(str(error))
    if not os.path.isdir(args.root):
        return fail(f"ROOT must be an existing folder that holds <seed>/<task>/eval_results.json, not {args.root!r}")

    root = Path(args.root)
    scores, problems = read_results(root, n_seeds, TASK_METRICS | {"stsb": f"eval_{args.stsb_metric}"})
    tasks = [task for task in TASK_METRICS if scores[task] or set(problems[task].values()) != {MISSING}]
    unusable = unusable_files(root, problems, tasks, and_missing=not args.allow_missing)
    if unusable and not args.allow_missing:
        return fail("\n".join(["missing or unreadable (--allow_missing does without them):", *unusable]))
    if unusable:
        print("\n".join(["parse_results.py: ignored, as unreadable:", *unusable]), file=sys.stderr)
    tasks = [task for task in tasks if scores[task]]
    if not tasks:
        return fail(
            f"ROOT {args.root!r} has no usable result of seeds 1 to {n_seeds}; expected are files "
            f"<seed>/<task>/eval_results.json with <task> one of {', '.join(TASK_METRICS)}"
        )
    name = os.path.basename(os.path.abspath(args.root)) or args.root
    lines = table_lines(name, scores, tasks, n_seeds, args.stsb_metric) + left_out_lines(root, n_seeds, tasks)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
