"""Pack one seed's predictions into the zip that the GLUE leaderboard takes.

    python make_submission.py finetuned_results/randlora64 1 randlora64.zip

reads finetuned_results/randlora64/1/<task>/predict_results_<task>.txt, as `run_glue.py --do_predict` writes them, with
the labels' names, and writes CoLA.tsv, SST-2.tsv, MRPC.tsv, STS-B.tsv, QQP.tsv, MNLI-m.tsv, MNLI-mm.tsv, QNLI.tsv,
RTE.tsv, WNLI.tsv and AX.tsv with the leaderboard's own spellings. MNLI's folder has three of the files: those of the
mismatched and of the diagnostic set are predict_results_mnli-mm.txt and predict_results_ax.txt.

Every file must be there with all rows of its test set, in order, each with a label of its task: the leaderboard scores
whole submissions only. What is missing or wrong is named, and then there is no zip. STS-B's scores are clipped to
0..5. The same predictions give the same bytes.

Exit status: 0 if the zip was written, else 2. Needs nothing but Python's standard library.
"""

import argparse
import math
import os
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

from run_folder import whole_file

TWO_WAY = {"entailment": "entailment", "not_entailment": "not_entailment"}
THREE_WAY = {"entailment": "entailment", "neutral": "neutral", "contradiction": "contradiction"}


class LeaderboardFile(NamedTuple):
    """One file of the submission, and where its predictions come from."""

    name: str
    task: str  # the folder of the run that predicts it
    predictions: str  # predict_results_<predictions>.txt
    rows: int  # of the test set in nyu-mll/glue
    spellings: dict[str, str] | None  # name of the label in nyu-mll/glue -> the leaderboard's; None: a score


LEADERBOARD_FILES = (
    LeaderboardFile("CoLA.tsv", "cola", "cola", 1063, {"unacceptable": "0", "acceptable": "1"}),
    LeaderboardFile("SST-2.tsv", "sst2", "sst2", 1821, {"negative": "0", "positive": "1"}),
    LeaderboardFile("MRPC.tsv", "mrpc", "mrpc", 1725, {"not_equivalent": "0", "equivalent": "1"}),
    LeaderboardFile("STS-B.tsv", "stsb", "stsb", 1379, None),
    LeaderboardFile("QQP.tsv", "qqp", "qqp", 390965, {"not_duplicate": "0", "duplicate": "1"}),
    LeaderboardFile("MNLI-m.tsv", "mnli", "mnli", 9796, THREE_WAY),
    LeaderboardFile("MNLI-mm.tsv", "mnli", "mnli-mm", 9847, THREE_WAY),
    LeaderboardFile("QNLI.tsv", "qnli", "qnli", 5463, TWO_WAY),
    LeaderboardFile("RTE.tsv", "rte", "rte", 3000, TWO_WAY),
    LeaderboardFile("WNLI.tsv", "wnli", "wnli", 146, {"not_entailment": "0", "entailment": "1"}),
    LeaderboardFile("AX.tsv", "mnli", "ax", 1104, THREE_WAY),
)


class SubmissionError(ValueError):
    """A file that is missing or can't be submitted; the message is one line."""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; the values are checked by main."""
    parser = argparse.ArgumentParser(
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
    """Return the predictions of one file in order, as run_glue.py wrote them; raises SubmissionError."""
    if not os.path.lexists(path):
        raise SubmissionError("missing")
    if not path.is_file():
        raise SubmissionError("not a regular file")
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
    except (OSError, UnicodeDecodeError) as error:
        raise SubmissionError(f"can't be read ({error})") from None
    if header != "index\tprediction":
        raise SubmissionError("its first line is not `index<tab>prediction`")
    if len(lines) != rows:
        raise SubmissionError(f"{len(lines)} rows, but the test set has {rows}")
    predictions = []
    for number, line in enumerate(lines):
        index, tab, prediction = line.partition("\t")
        if index != str(number) or not tab:
            raise SubmissionError(f"row {number} is {line[:40]!r}, not `{number}<tab>prediction`")
        predictions.append(prediction)
    return predictions


def official_spelling(prediction: str, spellings: dict[str, str] | None) -> str:
    """Return a prediction as the leaderboard spells it; raises SubmissionError."""
    if spellings is not None:
        if prediction not in spellings:
            raise SubmissionError(f"label {prediction[:40]!r} is not one of {', '.join(spellings)}")
        return spellings[prediction]
    try:
        score = float(prediction)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise SubmissionError(f"{prediction[:40]!r} is not a score")
    return f"{min(max(score, 0.0), 5.0):.3f}"


def read_submission(folder: Path) -> dict[str, str]:
    """Return the content of every file of the submission; raises SubmissionError, which names each that fails."""
    contents, problems = {}, []
    for wanted in LEADERBOARD_FILES:
        path = Path(wanted.task) / f"predict_results_{wanted.predictions}.txt"
        try:
            predictions = read_predictions(folder / path, wanted.rows)
            lines = [f"{index}\t{official_spelling(item, wanted.spellings)}" for index, item in enumerate(predictions)]
        except SubmissionError as error:
            problems.append(f"{wanted.name}: {path}: {error}")
            continue
        contents[wanted.name] = "\n".join(["index\tprediction", *lines]) + "\n"
    if problems:
        raise SubmissionError(f"no zip was written, as {folder} is not complete: {'; '.join(problems)}")
    return contents


def write_zip(path: Path, contents: dict[str, str]) -> None:
    """Write the files at the top of the zip, whole or not at all, with a fixed date: equal files, equal bytes."""
    with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16  # left at 0, unzip would extract files that nobody may read
            archive.writestr(entry, content, compress_type=zipfile.ZIP_DEFLATED)


def fail(message: str) -> int:
    """Print an error to stderr and return the exit status for it."""
    print(f"make_submission.py: error: {message}", file=sys.stderr)
    return 2


def main(argv: list[str] | None = None) -> int:
    """Write the zip and return the exit status."""
    args = parse_arguments(argv)
    folder = args.root / args.seed
    if args.out.suffix != ".zip" or args.out.is_dir():
        return fail(f"OUT must be a file that ends in .zip, not {str(args.out)!r}")
    if not (args.seed.isascii() and args.seed.isdigit()):
        return fail(f"SEED must be a whole number, not {args.seed!r}")
    if not folder.is_dir():
        return fail(
            f"ROOT/SEED must be an existing folder with <task>/predict_results_<task>.txt, not {str(folder)!r}"
        )
    try:
        contents = read_submission(folder)
        write_zip(args.out, contents)
    except SubmissionError as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"OUT {str(args.out)!r} can't be written: {error.strerror}")
    print(
        f"{args.out}: {len(contents)} files, {sum(content.count(chr(10)) - 1 for content in contents.values()):,} rows"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
