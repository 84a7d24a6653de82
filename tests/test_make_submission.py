"""make_submission.py on made-up predictions of the real sizes, and on what run_glue.py itself predicts."""

import dataclasses
import zipfile
from pathlib import Path

import pytest
from helpers import said

import make_submission
from glue_peft.tasks import TASKS

# What the leaderboard takes, written out here again: file -> folder, name of the predictions, rows, and for each label
# name of nyu-mll/glue, in its order, the leaderboard's spelling. STS-B has scores.
EXPECTED = {
    "CoLA.tsv": ("cola", "cola", 1063, ["unacceptable 0", "acceptable 1"]),
    "SST-2.tsv": ("sst2", "sst2", 1821, ["negative 0", "positive 1"]),
    "MRPC.tsv": ("mrpc", "mrpc", 1725, ["not_equivalent 0", "equivalent 1"]),
    "STS-B.tsv": ("stsb", "stsb", 1379, ["-0.731 0.000", "2.500 2.500", "5.180 5.000"]),
    "QQP.tsv": ("qqp", "qqp", 390965, ["not_duplicate 0", "duplicate 1"]),
    "MNLI-m.tsv": ("mnli", "mnli", 9796, ["entailment entailment", "neutral neutral", "contradiction contradiction"]),
    "MNLI-mm.tsv": ("mnli", "mnli-mm", 9847, ["neutral neutral", "contradiction contradiction"]),
    "QNLI.tsv": ("qnli", "qnli", 5463, ["entailment entailment", "not_entailment not_entailment"]),
    "RTE.tsv": ("rte", "rte", 3000, ["not_entailment not_entailment", "entailment entailment"]),
    "WNLI.tsv": ("wnli", "wnli", 146, ["not_entailment 0", "entailment 1"]),
    "AX.tsv": ("mnli", "ax", 1104, ["contradiction contradiction", "entailment entailment"]),
}


@pytest.fixture
def three_rows(monkeypatch):
    """Let every test set have three rows, so that a test needs no 400,000."""
    for name, task in TASKS.items():
        files = tuple(wanted._replace(rows=3) for wanted in task.leaderboard)
        monkeypatch.setitem(TASKS, name, dataclasses.replace(task, leaderboard=files))


def prediction_file(root: Path, task: str, name: str | None = None) -> Path:
    """Return where run_glue.py leaves the predictions of seed 1."""
    return root / "1" / task / f"predict_results_{name or task}.txt"


def write_predictions(root: Path, rows: int | None = None) -> Path:
    """Write a file of seed 1 for each test set, its labels in turn; the real number of rows, or this one."""
    for task, name, real_rows, pairs in EXPECTED.values():
        labels = [pair.split()[0] for pair in pairs]
        items = [f"{index}\t{labels[index % len(labels)]}" for index in range(rows or real_rows)]
        path = prediction_file(root, task, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["index\tprediction", *items]) + "\n")
    return root


def submit(capsys, *argv: object) -> tuple[int, str]:
    """Call the script and return its exit status and what it printed."""
    status, out, err = said(capsys, make_submission, *argv)
    return status, "".join(f"{line}\n" for line in out + err)


def read_zip(path: Path) -> dict[str, list[str]]:
    """Return the lines of every file of a zip."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode().splitlines() for name in archive.namelist()}


def test_complete_submission(tmp_path, capsys):
    """Eleven files with official names and labels, the test sets' sizes, indices from 0."""
    write_predictions(tmp_path / "lora4")
    status, said = submit(capsys, tmp_path / "lora4", 1, tmp_path / "lora4.zip")
    rows = sum(rows for _, _, rows, _ in EXPECTED.values())
    assert status == 0 and f"11 files, {rows:,} rows" in said
    files = read_zip(tmp_path / "lora4.zip")
    assert files.keys() == EXPECTED.keys()
    for name, (_, _, rows, pairs) in EXPECTED.items():
        labels = [pair.split()[1] for pair in pairs]
        assert files[name] == ["index\tprediction", *(f"{i}\t{labels[i % len(labels)]}" for i in range(rows))], name


def test_what_run_glue_predicts_is_taken(tmp_path, run, monkeypatch):
    """The names of files and labels are those that a real --do_predict leaves."""
    tasks = ("cola", "rte", "stsb", "mnli")
    for task in tasks:
        run(f"root/1/{task}", task_name=task, do_eval=None, do_predict=True, max_steps=1)
    for name, task in TASKS.items():
        files = [wanted._replace(rows=64) for wanted in task.leaderboard if name in tasks]
        files = [wanted for wanted in files if prediction_file(tmp_path / "root", name, wanted.predictions).exists()]
        monkeypatch.setitem(TASKS, name, dataclasses.replace(task, leaderboard=tuple(files)))
    contents = make_submission.read_submission(tmp_path / "root" / "1")
    assert {"CoLA.tsv", "RTE.tsv", "STS-B.tsv", "MNLI-m.tsv", "MNLI-mm.tsv"} <= contents.keys()
    assert all(content.count("\n") == 65 for content in contents.values())
    assert {line.split("\t")[1] for line in contents["CoLA.tsv"].splitlines()[1:]} <= {"0", "1"}


def test_matched_and_mismatched_are_not_mixed_up(tmp_path, capsys, three_rows):
    """MNLI's three files come from their own predictions."""
    write_predictions(tmp_path, rows=3)
    for name, label in (("mnli", "neutral"), ("mnli-mm", "entailment"), ("ax", "contradiction")):
        text = "".join(f"{index}\t{label}\n" for index in range(3))
        prediction_file(tmp_path, "mnli", name).write_text(f"index\tprediction\n{text}")
    assert submit(capsys, tmp_path, 1, tmp_path / "a.zip")[0] == 0
    files = read_zip(tmp_path / "a.zip")
    assert [files[name][1] for name in ("MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv")] == [
        "0\tneutral",
        "0\tentailment",
        "0\tcontradiction",
    ]


def test_same_predictions_same_bytes(tmp_path, capsys, three_rows, monkeypatch):
    """The zip depends neither on the clock nor on the time of day of its files, and what it holds can be read."""
    write_predictions(tmp_path, rows=3)
    assert submit(capsys, tmp_path, 1, tmp_path / "a.zip")[0] == 0
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert submit(capsys, tmp_path, 1, tmp_path / "b.zip")[0] == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        for entry in archive.infolist():
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            assert entry.external_attr >> 16 == 0o644


def test_every_missing_task_is_named_and_there_is_no_zip(tmp_path, capsys, three_rows):
    """Missing files are listed together, in one line; an older zip stays as it was."""
    write_predictions(tmp_path, rows=3)
    prediction_file(tmp_path, "qqp").unlink()
    prediction_file(tmp_path, "mnli", "ax").unlink()
    out = tmp_path / "a.zip"
    status, said = submit(capsys, tmp_path, 1, out)
    assert status == 2 and not out.exists()
    assert said == (
        f"make_submission.py: error: no zip was written, as {tmp_path / '1'} is not complete: "
        "AX.tsv: mnli/predict_results_ax.txt: missing; QQP.tsv: qqp/predict_results_qqp.txt: missing\n"
    )
    out.write_bytes(b"older")
    assert submit(capsys, tmp_path, 1, out)[0] == 2
    assert out.read_bytes() == b"older"


def test_a_zip_that_cannot_be_finished_is_not_begun(tmp_path, capsys, three_rows, monkeypatch):
    """A full disk leaves the older zip and no half-written file."""

    def full(*args, **kwargs):
        """Fail as on a full disk."""
        raise OSError(28, "No space left on device")

    write_predictions(tmp_path, rows=3)
    out = tmp_path / "a.zip"
    out.write_bytes(b"older")
    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    status, said = submit(capsys, tmp_path, 1, out)
    assert status == 2 and "No space left on device" in said
    assert out.read_bytes() == b"older"
    assert {path.name for path in tmp_path.iterdir()} == {"1", "a.zip"}


@pytest.mark.parametrize(
    ("task", "content", "reason"),
    [
        ("rte", "index\tprediction\n0\tentailment\n1\tentailment\n", "2 rows, but the test set has 3"),
        ("rte", "index\tprediction\n" + "".join(f"{i}\tentailment\n" for i in range(4)), "4 rows, but"),
        ("rte", "0\tentailment\n1\tentailment\n2\tentailment\n", "its first line is not"),
        ("rte", "", "its first line is not"),
        ("rte", "index\tprediction\n0\tentailment\n2\tentailment\n1\tentailment\n", "row 1 is '2\\tentailment'"),
        ("rte", "index\tprediction\n0\tentailment\n1\n2\tentailment\n", "row 1 is '1'"),
        ("rte", "index\tprediction\n0\tentailment\n1\tneutral\n2\tentailment\n", "label 'neutral' is not one of"),
        ("rte", "index\tprediction\n0\t0\n1\t1\n2\t0\n", "label '0' is not one of entailment, not_entailment"),
        ("stsb", "index\tprediction\n0\t1.0\n1\tnan\n2\t1.0\n", "'nan' is not a score"),
        ("stsb", "index\tprediction\n0\t1.0\n1\tinf\n2\t1.0\n", "'inf' is not a score"),
        ("stsb", "index\tprediction\n0\t1.0\n1\t\n2\t1.0\n", "'' is not a score"),
        ("cola", b"index\tprediction\n0\t\xff\n", "can't be read"),
    ],
)
def test_wrong_predictions(tmp_path, capsys, three_rows, task, content, reason):
    """A file that the leaderboard would refuse is named with the reason, in one line."""
    write_predictions(tmp_path, rows=3)
    prediction_file(tmp_path, task).write_bytes(content if isinstance(content, bytes) else content.encode())
    status, said = submit(capsys, tmp_path, 1, tmp_path / "a.zip")
    assert status == 2 and not (tmp_path / "a.zip").exists()
    assert len(said.splitlines()) == 1
    assert f"{task}/predict_results_{task}.txt: {reason}" in said


def test_things_that_are_no_files(tmp_path, capsys, three_rows):
    """A folder in a file's place is named, not a traceback."""
    write_predictions(tmp_path, rows=3)
    prediction_file(tmp_path, "rte").unlink()
    prediction_file(tmp_path, "rte").mkdir()
    status, said = submit(capsys, tmp_path, 1, tmp_path / "a.zip")
    assert status == 2 and "RTE.tsv" in said and "not a regular file" in said


def test_bad_arguments(tmp_path, capsys, three_rows):
    """Seed, folder and zip are checked before anything is read, and leave one line."""
    write_predictions(tmp_path, rows=3)
    for argv, named in (
        ([tmp_path, 2, tmp_path / "a.zip"], "ROOT/SEED"),
        ([tmp_path, "../1", tmp_path / "a.zip"], "SEED must be a whole number"),
        ([tmp_path, 1, tmp_path / "a.tar"], "ends in .zip"),
        ([tmp_path, 1, tmp_path / "none" / "a.zip"], "can't be written"),
    ):
        status, said = submit(capsys, *argv)
        assert (status, len(said.splitlines())) == (2, 1)
        assert named in said
    status, said = submit(capsys)
    assert (status, len(said.splitlines())) == (2, 1) and "ROOT" in said
