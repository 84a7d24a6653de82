"""Plot GLUE results: each task's seeds with mean and interval, and the average score against the adapter's size.

    python plot_results.py finetuned_results scores.png
    python plot_results.py finetuned_results/lora4 finetuned_results/vera256 5 scores.png

reads the folders as parse_results.py does, with the options below, and writes a PNG, PDF or SVG. One panel a task: a
small mark for each seed, an x for one that collapsed, a large mark for the mean, and a bar for its 95 % t interval,
cut where the metric's range ends. Each row has a colour of Okabe and Ito's palette, which colour-blind readers can
tell apart, and a marker of its own, which greyscale leaves. Hollow marks with a letter are the values that papers
printed for the same method and model (--no_published leaves them out; `parse_results.py --published` says in what
their protocol differs). The last panel has the average over the tasks against the trained parameters without the
head, on a logarithmic axis; a row without run.json has no place in it. What is missing, dropped or odd among the runs
is printed to stderr.

For a paper, --width is the column's width in inches: all letters have 7 points in it. --no_title leaves the title to
the caption, and --names lora4="LoRA (r=4)" names rows as the text does.

    python plot_results.py --tuning finetuned_results/lora4 finetuned_results/vera256 tuning.png

draws the search of learning rates behind such rows (TUNE=1 bash train_all.sh), whether or not their final runs are
there: above the score of each seed against the rate, below the score that a search of 1, 2, ... rates would have
reached, with its 95 % interval.

Exit status: 0 if the figure was written, else 2. Needs matplotlib, and SciPy for the intervals.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from glue_peft.errors import OneLineParser, UsageError, run_script
from glue_peft.run_folder import SEARCH
from glue_peft.tables.figure_style import (
    SUFFIXES,
    Sheet,
    add_figure_arguments,
    check_figure_file,
    sheet_of,
    write_figure,
)
from glue_peft.tables.health import coverage_lines, health_lines
from glue_peft.tables.published import published_of
from glue_peft.tables.results import (
    SEEDS_PATTERN,
    add_arguments,
    own_tasks,
    read_results,
    renamed,
    row_names,
    seeds_in,
    wanted_tasks,
)
from glue_peft.tables.score_figures import draw
from glue_peft.tables.search import read_searches, rows_of_searches
from glue_peft.tables.search_figure import draw_search

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FOR_TUNING = ("roots", "out", "tuning", "tasks", "names", "width", "no_title")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; what is read is checked by read_results."""
    parser = OneLineParser(
        prog="plot_results.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser)
    parser.add_argument("out", metavar="OUT", type=Path, help=f"the figure to write: {', '.join(SUFFIXES)}")
    add_figure_arguments(parser)
    parser.add_argument("--no_published", action="store_true", help="leave out the papers' values")
    parser.add_argument("--tuning", action="store_true", help="draw the search of learning rates behind the rows")
    args = parser.parse_intermixed_args(argv)
    defaults = vars(parser.parse_args(["ROOT", "OUT"]))
    for name in defaults.keys() - set(FOR_TUNING) if args.tuning else ():
        if getattr(args, name) != defaults[name]:
            parser.error(f"--tuning goes with --tasks, --names, --width and --no_title alone, not with --{name}")
    return args


def tuning_figure(args: argparse.Namespace, sheet: Sheet) -> "Figure":
    """Return the figure of the search behind the rows; raises UsageError where there is none."""
    *others, last = args.roots
    words = others if others and re.fullmatch(SEEDS_PATTERN, last) else args.roots
    folders = [folder for word in words for folder in rows_of_searches(Path(word))]
    names = renamed(row_names([str(folder) for folder in folders]), args.names)
    roots = dict(zip(names, folders, strict=True))
    searched = [str(path) for folder in folders for path in (folder.parent / SEARCH).glob("*")]
    wanted = wanted_tasks(args.tasks, own_tasks(searched, {int(seed) for path in searched for seed in seeds_in(path)}))
    searches = read_searches(roots, wanted)
    for name, root in roots.items():
        if not searches[name]:
            expected = f"{root.parent / SEARCH}/{root.name}_lr<rate>/<seed>/<task>"
            raise UsageError(f"--tuning: no finished run of a search of {root} (expected are folders {expected})")
    tasks = [task for task in wanted if any(task in of_row for of_row in searches.values())]
    return draw_search(searches, tasks, sheet)


def main(argv: list[str] | None = None) -> int:
    """Write the figure; raises UsageError."""
    args = parse_arguments(argv)
    check_figure_file(args.out)
    sheet = sheet_of(args)
    if args.tuning:
        write_figure(tuning_figure(args, sheet), args.out)
        return 0
    results = read_results(args)
    published = {row.name: [] if args.no_published else published_of(row, results.tasks) for row in results.rows}
    print("\n".join(coverage_lines(results) + health_lines(results)), file=sys.stderr)
    write_figure(draw(results, published, sheet), args.out)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main, "plot_results.py"))
