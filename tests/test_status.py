"""tables/status.py: how far each run of a sweep is, why runs failed, and the time left."""

import fcntl
import os
import subprocess
import sys

import pytest
from helpers import REPOSITORY, begin_run, fail_run, said, write_rows, write_run

import parse_results
from glue_peft.errors import UsageError
from glue_peft.tables.status import status_lines


def status(*argv: object, tasks: list[str] | None = None) -> list[str]:
    """Return the lines on some folders and as many seeds as the last argument says."""
    *roots, n_seeds = argv
    return status_lines([str(root) for root in roots], list(range(1, int(str(n_seeds)) + 1)), tasks)


def counts(lines: list[str], name: str) -> list[str]:
    """Return the cells of one row of the table."""
    (line,) = [line for line in lines if line.partition(" | ")[0].strip() == name]
    return [text.strip() for text in line.split(" | ")[1:]]


def test_every_state_by_hand(tmp_path):
    """Five seeds of one task in every state, those of another finished; sums, folders, reasons and the time left."""
    root = tmp_path / "lora4"
    write_rows(root, {"mrpc": [0.8] * 5}, seconds=100.0)
    write_run(root, 1, "rte", 0.6, seconds=40.0)
    fail_run(root, 2, "rte", "out of memory", "take a smaller batch")
    stopped = fail_run(root, 3, "rte", "stopped", "by SIGTERM")
    for name in ("checkpoint-9", "checkpoint-10"):
        (stopped / name).mkdir()
    locked = begin_run(root, 4, "rte", command_json="{}", run_lock="7 host")
    with open(locked / "run.lock", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        lines = status(root, 5)
    assert lines == [
        "finished / running / failed / missing, of seeds 1 to 5",
        "name  | mrpc    | rte     | all",
        "lora4 | 5/0/0/0 | 1/1/1/2 | 6/1/1/2",
        "all   | 5/0/0/0 | 1/1/1/2 | 6/1/1/2",
        f"failed: {root}/2/rte: out of memory: take a smaller batch",
        f"stopped: {root}/3/rte: to be resumed from checkpoint-10",
        # Four runs of RTE at 40 s each.
        "time left: about 0:02:40 (h:mm:ss) for 4 runs in a row, 0:02:40 with 1 at once; medians of 6 finished runs",
    ]
    assert counts(status(root, 5), "lora4")[1] == "1/0/2/2"  # no longer locked: it ended without a word


@pytest.mark.parametrize(
    ("kind", "saved", "line"),
    [
        ("diverged", True, "failed: {}: diverged: why"),
        ("out of memory", True, "failed: {}: out of memory: why"),
        ("disk full", True, "failed: {}: disk full: why"),
        ("usage", True, "failed: {}: usage: why"),
        ("error", True, "failed: {}: why"),
        ("no such kind", True, "failed: {}: why"),
        ("killed", False, "failed: {}: killed: why"),
        ("killed", True, "stopped: {}: to be resumed from checkpoint-7"),
        ("stopped", True, "stopped: {}: to be resumed from checkpoint-7"),
        ("stopped", False, "stopped: {}: to be resumed from the start"),
    ],
)
def test_every_kind_of_failure(tmp_path, kind, saved, line):
    """A stop, and a kill after a checkpoint, will be resumed; every other kind has failed, whatever the log says."""
    folder = fail_run(tmp_path, 1, "rte", kind, "why")
    (folder / "run.log").write_text("run_glue.py: stopped by SIGTERM\nrun_glue.py: error: odd\n")
    if saved:
        (folder / "checkpoint-7").mkdir()
    lines = status(tmp_path, 1)
    assert [line for line in lines if "/rte: " in line] == [line.format(folder)]
    assert counts(lines, "all")[0] == ("0/0/1/0" if line.startswith("failed") else "0/0/0/1")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("disk full: no space\nmore", "failed: {}: disk full: no space"),
        ("odd: stopped by itself", "failed: {}: odd: stopped by itself"),
    ],
)
def test_failure_txt_of_an_older_run(tmp_path, text, line):
    """It is read where there is no failure.json, or a broken one."""
    folder = begin_run(tmp_path, 1, "rte", failure_txt=text, failure_json="{")
    assert line.format(folder) in status(tmp_path, 1)


def test_a_run_that_noted_nothing_is_resumed_from_its_checkpoint(tmp_path):
    """A run that was killed, with the sweep that would have said so, goes on; nothing is read out of its log."""
    folder = begin_run(tmp_path, 1, "rte", run_log="run_glue.py: error: other flags\n", failure_json="{")
    (folder / "checkpoint-3").mkdir()
    assert f"stopped: {folder}: to be resumed from checkpoint-3" in status(tmp_path, 1)


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("loading\nrun_glue.py: error: --rank 0: too low\n", "run_glue.py: error: --rank 0: too low"),
        ("ValueError: odd\n  a note on it\n\n", "ValueError: odd"),
        ("step 1\rstep 2\rKilled\n\n", "Killed"),
        ("x" * 200_000 + "\nlast", "last"),
        ("bad \udcff\x1b[0m error: \x07", r"bad \ufffd\x1b[0m error: \x07"),
    ],
)
def test_reason_from_the_log(tmp_path, log, reason):
    """Without failure.json and checkpoint it is the last line with an error, else the last."""
    folder = begin_run(tmp_path, 1, "rte")
    (folder / "run.log").write_bytes(log.encode("utf-8", "surrogateescape"))
    failed = [line for line in status(tmp_path, 1) if line.startswith("failed: ")]
    assert [line.replace("\ufffd", r"\ufffd") for line in failed] == [f"failed: {folder}: {reason}"]


def test_a_result_that_cannot_be_used_has_failed(tmp_path):
    """It isn't finished, and the file at fault is named; a folder with nothing in it is missing."""
    folder = write_run(tmp_path, 1, "rte", 0.6)
    (folder / "run.json").write_text("{")
    write_run(tmp_path, 2, "rte", 0.6, scores={"last": {"eval_loss": 1.0}})
    write_run(tmp_path, 3, "rte", 0.6, scores=None)
    (tmp_path / "3" / "rte" / "eval_results.json").unlink()
    begin_run(tmp_path, 4, "rte")
    lines = status(tmp_path, 4)
    assert counts(lines, "all") == ["0/0/3/1", "0/0/3/1"]
    failed = [line for line in lines if line.startswith("failed: ")]
    assert failed[0].startswith(f"failed: {folder}: run.json: not valid JSON")
    assert failed[1:] == [
        f"failed: {tmp_path}/2/rte: run.json: has no eval_accuracy",
        f"failed: {tmp_path}/3/rte: eval_results.json: missing",
    ]


def test_results_without_a_record_are_not_finished(tmp_path):
    """run.json is written last: until then a run may be killed."""
    folder = write_run(tmp_path, 1, "rte", 0.6)
    (folder / "run.json").unlink()
    assert counts(status(tmp_path, 1), "all") == ["0/0/0/1", "0/0/0/1"]


def test_time_left_by_hand(tmp_path):
    """A row's own median of the task, else the task's median over the rows, else the median of all."""
    for seed, seconds in ((1, 10.0), (2, 20.0), (3, 90.0)):
        write_run(tmp_path / "a", seed, "rte", 0.6, seconds=seconds)
    write_run(tmp_path / "b", 1, "mrpc", 0.6, seconds=1000.0)
    # a: rte lacks 1 at 20; mrpc 4 at 1000. b: mrpc 3 at 1000; rte 4 at 20. Both: cola 8 at the median of
    # 10, 20, 90, 1000, 55. In all 20 + 4000 + 3000 + 80 + 440 = 7540 s.
    lines = status(tmp_path / "a", tmp_path / "b", 4, tasks=["mrpc", "cola", "rte"])
    assert lines[-1] == "time left: about 2:05:40 (h:mm:ss) for 20 runs in a row; medians of 4 finished runs"
    assert counts(lines, "a") == ["0/0/0/4", "0/0/0/4", "3/0/0/1", "3/0/0/9"]
    assert counts(lines, "all") == ["1/0/0/7", "0/0/0/8", "3/0/0/5", "4/0/0/20"]


def test_time_left_with_two_running(tmp_path):
    """Divided by the number of runs that work at the moment."""
    write_run(tmp_path, 1, "rte", 0.6, seconds=60.0)
    folders = [begin_run(tmp_path, seed, "rte", run_lock="") for seed in (2, 3)]
    with open(folders[0] / "run.lock", "rb") as one, open(folders[1] / "run.lock", "rb") as two:
        for file in (one, two):
            fcntl.flock(file, fcntl.LOCK_EX)
        lines = status(tmp_path, 4)
    assert " 0:03:00 (h:mm:ss) for 3 runs in a row, 0:01:30 with 2 at once; " in lines[-1]


def test_time_left_is_known_or_not(tmp_path):
    """Without a finished run, or its seconds, nothing can be estimated; with all of them nothing is left."""
    assert status(tmp_path, 1)[-1] == "time left: not known, as no run is finished"
    write_run(tmp_path, 1, "rte", 0.6, seconds="long")
    assert status(tmp_path, 2)[-1] == "time left: not known, as no run is finished"
    assert status(tmp_path, 1)[-1] == "time left: none, all runs are finished"


def test_which_tasks(tmp_path):
    """Those that left a trace in any ROOT, else the paper's six; a line says what --tasks leaves out."""
    first, second = tmp_path / "a", tmp_path / "b"
    assert status(first, 1)[1].split(" | ")[1:-1] == [
        "sst2   ",
        "mrpc   ",
        "cola   ",
        "qnli   ",
        "rte    ",
        "stsb   ",
    ]
    begin_run(second, 1, "wnli")
    write_run(first, 1, "mnli", 0.8)
    lines = status(first, second, 1)
    assert [text.strip() for text in lines[1].split(" | ")] == ["name", "mnli", "wnli", "all"]
    assert not any("not asked for" in line for line in lines)
    lines = status(first, second, 1, tasks=["rte"])
    assert "there, but not asked for: mnli, wnli" in lines
    assert counts(lines, "all") == ["0/0/0/2", "0/0/0/2"]


def test_roots_and_rows(tmp_path):
    """A ROOT may not be there yet, be given twice (it counts once) or be called `all`; a file is refused."""
    write_run(tmp_path / "all", 1, "rte", 0.6)
    lines = status(tmp_path / "all", tmp_path / "none", tmp_path / "all", 1)
    assert [line.split(" | ")[0].strip() for line in lines[1:5]] == ["name", "all", "none", "all"]
    assert [line.split(" | ")[-1] for line in lines[2:5]] == ["1/0/0/0", "0/0/0/1", "1/0/0/1"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="ROOT must be a folder"):
        status(tmp_path / "file", 1)


def test_a_run_without_evaluation_is_finished(tmp_path):
    """Without --do_eval there is no score, and nothing has failed."""
    folder = write_run(tmp_path / "a", 1, "rte", 0.6, arguments={"do_eval": False}, scores=None)
    (folder / "eval_results.json").unlink()
    assert counts(status(tmp_path / "a", f"{tmp_path}/a/", 1), "a")[0] == "1/0/0/0"


def test_it_only_reads(tmp_path):
    """Nothing is written, and no lock is kept."""
    write_run(tmp_path, 1, "rte", 0.6)
    folder = begin_run(tmp_path, 2, "rte", run_lock="", failure_json="{}", run_log="y")
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    for path in (folder, folder / "run.lock"):
        os.chmod(path, 0o555 if path.is_dir() else 0o444)
    status(tmp_path, 2)
    os.chmod(folder, 0o755)
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))} == before
    with open(folder / "run.lock", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # was released


def test_the_state_of_a_sweep_is_one_command_away(tmp_path, capsys):
    """parse_results.py --status prints the same lines, with --tasks the same tasks."""
    write_run(tmp_path, 2, "rte", 0.6)
    for tasks, more in ((None, []), (["mrpc", "rte"], ["--tasks", "mrpc,rte"])):
        expected = status_lines([str(tmp_path)], [2, 4], tasks)
        assert said(capsys, parse_results, "--status", tmp_path, "2,4", *more) == (0, expected, [])
    exit_status, _, errors = said(capsys, parse_results, "--status", tmp_path, 1, "--tasks", "ax")
    assert exit_status == 2 and "--tasks ax: allowed are" in errors[0]


def test_neither_scipy_nor_torch(tmp_path):
    """The state of a sweep is asked for often: nothing but the standard library is loaded."""
    code = (
        "import sys, parse_results; parse_results.main(sys.argv[1:]);"
        "print(*(name for name in ('numpy', 'scipy', 'torch') if name in sys.modules))"
    )
    command = [sys.executable, "-c", code, "--status", str(tmp_path), "1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True, text=True)
    assert done.stdout.splitlines()[-1] == ""
