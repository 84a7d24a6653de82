"""Pack one seed's predictions into the zip that the GLUE leaderboard takes.

    python make_submission.py finetuned_results/randlora64 1 randlora64.zip

reads finetuned_results/randlora64/1/<task>/predict_results_<task>.txt, as `run_glue.py --do_predict` writes them, with
the labels' names, and writes SST-2.tsv, MRPC.tsv, CoLA.tsv, QNLI.tsv, RTE.tsv, STS-B.tsv, MNLI-m.tsv, MNLI-mm.tsv,
AX.tsv, QQP.tsv and WNLI.tsv with the leaderboard's own spellings. MNLI's folder has three of the files: those of the
mismatched and of the diagnostic set are predict_results_mnli-mm.txt and predict_results_ax.txt.

Every file must be there with all rows of its test set, in order, each with a label of its task: the leaderboard takes
complete submissions only. What is missing or wrong is named, and then there is no zip. STS-B's scores are clipped to
0..5. The same predictions give the same bytes.

Exit status: 0 if the zip was written, else 2. Needs nothing but Python's standard library.
"""

import argparse
import math
import os
import sys
import zipfile
from pathlib import Path

from glue_peft.errors import OneLineParser, UsageError, run_script
from glue_peft.run_folder import atomic_write
from glue_peft.tasks import TASKS, GlueTask


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; the values are checked by main."""
    parser = OneLineParser(
        prog="make_submission.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder of one row, with ROOT/<seed>/<task>/ in it")
    parser.add_argument("seed", metavar="SEED", help="the seed whose predictions are submitted")
    parser.add_argument("out", metavar="OUT.zip", type=Path, help="the zip to write")
    return parser.parse_args(argv)


def read_predictions(path: Path, rows: int) -> list[str]:
    """Return the predictions of one file in order, as run_glue.py wrote them; raises UsageError."""
    if not os.path.lexists(path):
        raise UsageError("missing")
    if not path.is_file():
        raise UsageError("not a regular file")
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't be read ({error})") from None
    if header != "index\tprediction":
        raise UsageError("its first line is not `index<tab>prediction`")
    if len(lines) != rows:
        raise UsageError(f"{len(lines)} rows, but the test set has {rows}")
    predictions = []
    for number, line in enumerate(lines):
        index, tab, prediction = line.partition("\t")
        if index != str(number) or not tab:
            raise UsageError(f"row {number} is {line[:40]!r}, not `{number}<tab>prediction`")
        predictions.append(prediction)
    return predictions


def official_spelling(prediction: str, task: GlueTask) -> str:
    """Return a prediction as the leaderboard spells it; raises UsageError."""
    if task.spellings is not None:
        if prediction not in task.spellings:
            raise UsageError(f"label {prediction[:40]!r} is not one of {', '.join(task.spellings)}")
        return task.spellings[prediction]
    low, high = task.scores or (-math.inf, math.inf)
    try:
        score = float(prediction)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise UsageError(f"{prediction[:40]!r} is not a score")
    return f"{min(max(score, low), high):.3f}"


def read_submission(folder: Path) -> dict[str, str]:
    """Return the content of every file of the submission; raises UsageError, which names each that fails."""
    contents, problems = {}, []
    for name, wanted in [(name, file) for name, task in TASKS.items() for file in task.leaderboard]:
        path = Path(name) / f"predict_results_{wanted.predictions}.txt"
        try:
            predictions = read_predictions(folder / path, wanted.rows)
            lines = [f"{index}\t{official_spelling(item, TASKS[name])}" for index, item in enumerate(predictions)]
        except UsageError as error:
            problems.append(f"{wanted.name}: {path}: {error}")
            continue
        contents[wanted.name] = "\n".join(["index\tprediction", *lines]) + "\n"
    if problems:
        raise UsageError(f"no zip was written, as {folder} is not complete: {'; '.join(problems)}")
    return contents


def write_zip(path: Path, contents: dict[str, str]) -> None:
    """Write the files at the top of the zip, atomically and with a fixed date: equal files, equal bytes."""
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16  # left at 0, unzip would extract files that nobody may read
            archive.writestr(entry, content, compress_type=zipfile.ZIP_DEFLATED)


def main(argv: list[str] | None = None) -> int:
    """Write the zip; raises UsageError."""
    args = parse_arguments(argv)
    folder = args.root / args.seed
    if args.out.suffix != ".zip" or args.out.is_dir():
        raise UsageError(f"OUT must be a file that ends in .zip, not {str(args.out)!r}")
    if not (args.seed.isascii() and args.seed.isdigit()):
        raise UsageError(f"SEED must be a whole number, not {args.seed!r}")
    if not folder.is_dir():
        raise UsageError(
            f"ROOT/SEED must be an existing folder with <task>/predict_results_<task>.txt, not {str(folder)!r}"
        )
    contents = read_submission(folder)
    try:
        write_zip(args.out, contents)
    except OSError as error:
        raise UsageError(f"OUT {str(args.out)!r} can't be written: {error.strerror}") from error
    n_rows = sum(content.count("\n") - 1 for content in contents.values())
    print(f"{args.out}: {len(contents)} files, {n_rows:,} rows")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main, "make_submission.py"))
