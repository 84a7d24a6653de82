"""What train_all.sh asks about its runs, once at the start and once at the end.

python -m glue_peft.sweep plan FOLDER
    Of the lines of FOLDER/grid (a run's folder, a tab, its command) write those to be run to FOLDER/lines, and how
    the others stand to FOLDER/outcomes. Say on stderr what is unusual.
python -m glue_peft.sweep missing FOLDER
    Print the numbers of the lines to be run, as in 3,7-12.
python -m glue_peft.sweep summary FOLDER
    Print what FOLDER/outcomes comes to. Exit status: 1 if a run failed or was refused, 75 if one was stopped or
    is not in it.
"""

import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from glue_peft.flags import given_flags
from glue_peft.run_folder import checkpoints, holder_of, is_running, last_words, plural
from glue_peft.run_state import state


def read_grid(lines: Iterable[str]) -> Iterator[tuple[Path, list[str]]]:
    """Each run's folder and flags from the grid's lines."""
    for line in lines:
        folder, _, command = line.rstrip("\n").partition("\t")
        words = shlex.split(command)
        script = [word.rpartition("/")[2] for word in words].index("run_glue.py")
        yield Path(folder), words[script + 1 :]


def plan(work: Path) -> list[int]:
    """Write down which lines of the grid are to be run, and how the others stand; return the indices of the former."""
    lines = (work / "grid").read_text(encoding="utf-8", errors="surrogateescape").splitlines(keepends=True)
    wanted, outcomes = [], []
    for index, (folder, flags) in enumerate(read_grid(lines)):
        try:
            found, reason = ("elsewhere", holder_of(folder)) if is_running(folder) else state(folder, flags)
            if found == "finished" and checkpoints(folder) and "save_total_limit" not in given_flags(flags):
                found = "open"  # it was killed at its very end: started once more, it deletes them
        except OSError as error:
            found, reason = "other", f"it can't be read: {error.strerror}"
        if found in ("open", "broken"):
            wanted.append(index)
        else:
            outcomes.append(f"{found}\t{folder}\t{reason}\n")
        if found == "broken":
            print(f"train_all.sh: {folder} is run again: {reason}", file=sys.stderr)
        elif found == "elsewhere":
            print(f"train_all.sh: {folder} is being worked on: {reason}", file=sys.stderr)
        elif found == "other":
            print(f"train_all.sh: {folder} holds another run and is left alone: {reason}", file=sys.stderr)
    for name, content in (("lines", [lines[index] for index in wanted]), ("outcomes", outcomes)):
        (work / name).write_text("".join(content), encoding="utf-8", errors="surrogateescape")
    return wanted


def summary(work: Path) -> int:
    """Print how a sweep ended, from lines of outcome, folder and exit status or reason; return its exit status.

    A run has no such line where it was not started, or where the shell around it, or GNU parallel, was killed.
    """
    folders: dict[str, dict[str, str]] = {}
    grid = (work / "lines").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    wanted = {line.partition("\t")[0] for line in grid}
    for line in (work / "outcomes").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        outcome, folder, detail = line.split("\t", 2)
        folders.setdefault(outcome, {})[folder] = detail
        wanted.discard(folder)
    done, finished, failed = (len(folders.get(outcome, ())) for outcome in ("done", "finished", "failed"))
    print(f"train_all.sh: {done} done, {finished} skipped as finished, {failed} failed")
    for folder in folders.get("stopped", ()):
        print(f"stopped, to be resumed by the next sweep: {folder}")
    for folder in folders.get("elsewhere", ()):
        print(f"left to another sweep: {folder}")
    for folder, reason in folders.get("other", {}).items():
        print(f"refused: {folder} holds another run: {reason}")
    for folder, status in folders.get("failed", {}).items():
        print(f"failed: {folder} (exit status {status}): {last_words(Path(folder))}")
    if wanted:
        were = "was" if len(wanted) == 1 else "were"
        print(f"{plural(len(wanted), 'run')} {were} not started, or the end was not seen: start the sweep again")
    return 1 if folders.keys() & {"failed", "other"} else 75 if "stopped" in folders or wanted else 0


def as_ranges(numbers: list[int]) -> str:
    """Ascending numbers as Slurm's --array takes them: 1-3,7."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def main(argv: list[str]) -> int:
    """Answer a question of train_all.sh."""
    question, work = argv
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="surrogateescape")  # folder names leave as the bytes they are
    if question == "summary":
        return summary(Path(work))
    wanted = plan(Path(work))
    if question == "missing":
        print(as_ranges([index + 1 for index in wanted]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
