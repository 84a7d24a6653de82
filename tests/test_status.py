"""parse_results.py --status: how far each run of a sweep is, why runs failed, and the time left."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from make_results import write_rows, write_run

import parse_results


def status(capsys: pytest.CaptureFixture, *argv: object) -> list[str]:
    """Return the lines that --status prints."""
    assert parse_results.main(["--status", *map(str, argv)]) == 0
    return capsys.readouterr().out.splitlines()


def counts(lines: list[str], name: str) -> list[str]:
    """Return the cells of one row of the table."""
    (line,) = [line for line in lines if line.partition(" | ")[0].strip() == name]
    return [text.strip() for text in line.split(" | ")[1:]]


def begin(root: Path, seed: int, task: str, **files: str) -> Path:
    """Make the folder of a run that has no result, with some files; `_` stands for the dot of a name."""
    folder = root / str(seed) / task
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def test_every_state_by_hand(tmp_path, capsys):
    """Five seeds of one task in every state, those of another finished; sums, folders, reasons and the time left."""
    root = tmp_path / "lora4"
    write_rows(root, {"mrpc": [0.8] * 5}, seconds=100.0)
    write_run(root, 1, "rte", 0.6, seconds=40.0)
    begin(root, 2, "rte", failure_txt="out of memory: take a smaller batch\n", command_json="{}")
    stopped = begin(
        root, 3, "rte", command_json="{}", run_log="run_glue.py: error: of yesterday\nstopped by SIGTERM\n"
    )
    for name in ("checkpoint-9", "checkpoint-10"):
        (stopped / name).mkdir()
    locked = begin(root, 4, "rte", command_json="{}", run_lock="7 host")
    with open(locked / "run.lock", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        lines = status(capsys, root, 5)
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
    assert counts(status(capsys, root, 5), "lora4")[1] == "1/0/2/2"  # no longer locked: it ended without a word


def test_a_run_stopped_before_its_first_checkpoint_is_no_failure(tmp_path, capsys):
    """It starts again from the beginning."""
    log = "loading\nrun_glue.py: stopped by SIGTERM: start it again with --resume\n== ended with exit status 75\n"
    folder = begin(tmp_path / "lora4", 1, "rte", run_log=log)
    lines = status(capsys, tmp_path / "lora4", 1)
    assert counts(lines, "lora4")[0] == "0/0/0/1"
    assert f"stopped: {folder}: to be resumed from the start" in lines


@pytest.mark.parametrize(
    ("log", "saved", "reason"),
    [
        ("loading\nrun_glue.py: error: --rank 0: too low\n", False, "run_glue.py: error: --rank 0: too low"),
        ("run_glue.py: error: other flags than before\n", True, "run_glue.py: error: other flags than before"),
        ("ValueError: odd\n  a note on it\n\n", False, "ValueError: odd"),
        ("step 1\rstep 2\rKilled\n\n", False, "Killed"),
        ("x" * 200_000 + "\nlast", False, "last"),
        ("bad \udcff\x1b[0m error: \x07", False, r"bad \ufffd\x1b[0m error: \x07"),
    ],
)  # fmt: skip
def test_reason_from_the_log(tmp_path, capsys, log, saved, reason):
    """Without failure.txt it is the last line with an error, else the last; a mistake in the flags is a failure."""
    folder = begin(tmp_path, 1, "rte")
    (folder / "run.log").write_bytes(log.encode("utf-8", "surrogateescape"))
    if saved:
        (folder / "checkpoint-1").mkdir()
    failed = [line for line in status(capsys, tmp_path, 1) if line.startswith("failed: ")]
    assert [line.replace("\ufffd", r"\ufffd") for line in failed] == [f"failed: {folder}: {reason}"]


def test_a_result_that_cannot_be_used_has_failed(tmp_path, capsys):
    """It isn't finished, and the file at fault is named; a folder with nothing in it is missing."""
    folder = write_run(tmp_path, 1, "rte", 0.6)
    (folder / "run.json").write_text("{")
    write_run(tmp_path, 2, "rte", 0.6, scores={"last": {"eval_loss": 1.0}})
    write_run(tmp_path, 3, "rte", 0.6, scores=None)
    (tmp_path / "3" / "rte" / "eval_results.json").unlink()
    begin(tmp_path, 4, "rte")
    lines = status(capsys, tmp_path, 4)
    assert counts(lines, "all") == ["0/0/3/1", "0/0/3/1"]
    failed = [line for line in lines if line.startswith("failed: ")]
    assert failed[0].startswith(f"failed: {folder}: run.json: not valid JSON")
    assert failed[1:] == [
        f"failed: {tmp_path}/2/rte: run.json: has no eval_accuracy",
        f"failed: {tmp_path}/3/rte: eval_results.json: missing",
    ]


def test_results_without_a_record_are_not_finished(tmp_path, capsys):
    """run.json is written last: until then a run may be killed."""
    folder = write_run(tmp_path, 1, "rte", 0.6)
    (folder / "run.json").unlink()
    assert counts(status(capsys, tmp_path, 1), "all") == ["0/0/0/1", "0/0/0/1"]


def test_time_left_by_hand(tmp_path, capsys):
    """A row's own median of the task, else the task's median over the rows, else the median of all."""
    for seed, seconds in ((1, 10.0), (2, 20.0), (3, 90.0)):
        write_run(tmp_path / "a", seed, "rte", 0.6, seconds=seconds)
    write_run(tmp_path / "b", 1, "mrpc", 0.6, seconds=1000.0)
    # a: rte lacks 1 at 20; mrpc 4 at 1000. b: mrpc 3 at 1000; rte 4 at 20. Both: cola 8 at the median of
    # 10, 20, 90, 1000, 55. In all 20 + 4000 + 3000 + 80 + 440 = 7540 s.
    lines = status(capsys, tmp_path / "a", tmp_path / "b", 4, "--tasks", "mrpc,cola,rte")
    assert lines[-1] == "time left: about 2:05:40 (h:mm:ss) for 20 runs in a row; medians of 4 finished runs"
    assert counts(lines, "a") == ["0/0/0/4", "0/0/0/4", "3/0/0/1", "3/0/0/9"]
    assert counts(lines, "all") == ["1/0/0/7", "0/0/0/8", "3/0/0/5", "4/0/0/20"]


def test_time_left_with_two_running(tmp_path, capsys):
    """Divided by the number of runs that work at the moment."""
    write_run(tmp_path, 1, "rte", 0.6, seconds=60.0)
    folders = [begin(tmp_path, seed, "rte", run_lock="") for seed in (2, 3)]
    with open(folders[0] / "run.lock", "rb") as one, open(folders[1] / "run.lock", "rb") as two:
        for file in (one, two):
            fcntl.flock(file, fcntl.LOCK_EX)
        lines = status(capsys, tmp_path, 4)
    assert " 0:03:00 (h:mm:ss) for 3 runs in a row, 0:01:30 with 2 at once; " in lines[-1]


def test_time_left_is_known_or_not(tmp_path, capsys):
    """Without a finished run, or its seconds, nothing can be estimated; with all of them nothing is left."""
    assert status(capsys, tmp_path, 1)[-1] == "time left: not known, as no run is finished"
    write_run(tmp_path, 1, "rte", 0.6, seconds="long")
    assert status(capsys, tmp_path, 2)[-1] == "time left: not known, as no run is finished"
    assert status(capsys, tmp_path, 1)[-1] == "time left: none, all runs are finished"


def test_which_tasks(tmp_path, capsys):
    """Those that left a trace in any ROOT, else the paper's six; a line says what --tasks leaves out."""
    first, second = tmp_path / "a", tmp_path / "b"
    assert status(capsys, first, 1)[1].split(" | ")[1:-1] == [
        "sst2   ",
        "mrpc   ",
        "cola   ",
        "qnli   ",
        "rte    ",
        "stsb   ",
    ]
    begin(second, 1, "wnli")
    write_run(first, 1, "mnli", 0.8)
    lines = status(capsys, first, second, 1)
    assert [text.strip() for text in lines[1].split(" | ")] == ["name", "mnli", "wnli", "all"]
    assert not any("not asked for" in line for line in lines)
    lines = status(capsys, first, second, 1, "--tasks", "rte")
    assert "there, but not asked for: mnli, wnli" in lines
    assert counts(lines, "all") == ["0/0/0/2", "0/0/0/2"]


def test_roots_and_rows(tmp_path, capsys):
    """A ROOT may not be there yet, be given twice (it counts once) or be called `all`; a file is refused."""
    write_run(tmp_path / "all", 1, "rte", 0.6)
    lines = status(capsys, tmp_path / "all", tmp_path / "none", tmp_path / "all", 1)
    assert [line.split(" | ")[0].strip() for line in lines[1:5]] == ["name", "all", "none", "all"]
    assert [line.split(" | ")[-1] for line in lines[2:5]] == ["1/0/0/0", "0/0/0/1", "1/0/0/1"]
    (tmp_path / "file").write_text("")
    assert parse_results.main(["--status", str(tmp_path / "file"), "1"]) == 2
    assert "ROOT must be a folder" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--epoch", "best"], ["--published"], ["--format", "json"], ["--metric", "mrpc=f1"]])
def test_options_without_effect_are_refused(tmp_path, capsys, more):
    """Only --tasks goes with --status."""
    with pytest.raises(SystemExit) as stop:
        parse_results.main(["--status", str(tmp_path), "1", *more])
    assert stop.value.code == 2
    assert f"not with {more[0]}" in capsys.readouterr().err


def test_a_run_without_evaluation_is_finished(tmp_path, capsys):
    """Without --do_eval there is no score, and nothing has failed."""
    folder = write_run(tmp_path / "a", 1, "rte", 0.6, arguments={"do_eval": False}, scores=None)
    (folder / "eval_results.json").unlink()
    assert counts(status(capsys, tmp_path / "a", f"{tmp_path}/a/", 1), "a")[0] == "1/0/0/0"


def test_it_only_reads(tmp_path, capsys):
    """Nothing is written, and no lock is kept."""
    write_run(tmp_path, 1, "rte", 0.6)
    folder = begin(tmp_path, 2, "rte", run_lock="", failure_txt="x", run_log="y")
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    for path in (folder, folder / "run.lock"):
        os.chmod(path, 0o555 if path.is_dir() else 0o444)
    status(capsys, tmp_path, 2)
    os.chmod(folder, 0o755)
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))} == before
    with open(folder / "run.lock", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # was released


def test_neither_scipy_nor_torch(tmp_path):
    """The state of a sweep is asked for often: nothing but the standard library is loaded."""
    code = (
        "import sys, parse_results; parse_results.main(sys.argv[1:]);"
        "print(*(name for name in ('numpy', 'scipy', 'torch') if name in sys.modules))"
    )
    command = [sys.executable, "-c", code, "--status", str(tmp_path), "1"]
    done = subprocess.run(command, cwd=Path(parse_results.__file__).parent, capture_output=True, check=True, text=True)
    assert done.stdout.splitlines()[-1] == ""
