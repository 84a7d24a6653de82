#!/usr/bin/env python
"""Keep what tables and figures read of a sweep's runs, without weights, tokenizers and logs, to be committed.

    python -m benchmarks.keep_runs tuned results/runs

copies of every finished or failed run below TREE, searches included, run.json, eval_results.json, what it answered on
the validation rows and why it failed, and the rates that a search chose. The folders stay as they are, so that
parse_results.py and plot_results.py read OUT as they read TREE. JSON is written in one line.

Exit status: 0, 1 where a record names a path of this machine, 2 for a mistake in the call. Needs no torch.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from glue_peft.errors import OneLineParser, UsageError, run_script
from glue_peft.run_folder import FAILURE_FILE, PREDICTIONS_FILES, RECORD_FILE, TUNED_RECIPE, plural, read_json

KEPT = (RECORD_FILE, "eval_results.json", FAILURE_FILE, *PREDICTIONS_FILES.values())


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", metavar="TREE", type=Path, help="the RESULTS of a sweep")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write to; runs there are written over")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Copy the runs and say how many and how large they are; raises UsageError."""
    args = parse_arguments(argv)
    tree, out = args.tree.resolve(), args.out.resolve()
    # os.walk passes over a checkpoint that a run deletes at this moment.
    folders = sorted(Path(folder) for folder, _, names in os.walk(tree) if {RECORD_FILE, FAILURE_FILE} & {*names})
    if not folders or out == tree or tree in out.parents:
        raise UsageError(
            f"TREE must be a folder with runs in it, and OUT another one outside, not {args.tree} {args.out}"
        )
    written = [path for folder in folders for path in keep(folder, out / folder.relative_to(tree))]
    for recipe in tree.glob(TUNED_RECIPE):
        written.append(Path(shutil.copyfile(recipe, out / TUNED_RECIPE)))
    size = sum(path.stat().st_size for path in written) / 1e6
    print(f"{plural(len(folders), 'run')}, {size:.2f} MB in {args.out}")
    paths = sorted({text for path in written if path.name == RECORD_FILE for text in absolute_paths(read_json(path))})
    if paths:
        print(f"the records name paths of this machine: {', '.join(paths)}", file=sys.stderr)
    return 1 if paths else 0


def keep(folder: Path, out: Path) -> Iterator[Path]:
    """Copy what is kept of a run, in place of what was there, and yield the files."""
    out.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        (out / name).unlink(missing_ok=True)
        content = read_json(folder / name) if name.endswith(".json") else None
        if content is not None:
            (out / name).write_text(
                json.dumps(content, separators=(",", ":"), sort_keys=True) + "\n", encoding="utf-8"
            )
        elif (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
        if (out / name).is_file():
            yield out / name


def absolute_paths(value: object) -> Iterator[str]:
    """Yield the strings in a record that are absolute paths."""
    if isinstance(value, str) and value.startswith("/"):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from absolute_paths(inner)


if __name__ == "__main__":
    sys.exit(run_script(main, "keep_runs.py"))
