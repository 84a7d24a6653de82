"""Paths that are no use, given to every script wherever it takes one: one line that names it, and no waiting."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import arguments, read, write_rows

import make_submission
import parse_results
import plot_results
import plot_spectrum
import run_glue
from glue_peft.errors import run_script

PATHS = ("missing", "too long", "a loop", "a pipe", "not UTF-8", "not allowed", "a file", "a folder")
RUN_GLUE_FLAGS = (
    "train_file",
    "dataset_path",
    "adapter_config",
    "adapter_path",
    "init_adapter_from",
    "model_name_or_path",
    "output_dir",
    "save_merged",
    "resume_from_checkpoint",
)
NOBODY = 65534


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Make a path of a kind, as an ordinary user finds it: root, who may do anything, gives that up meanwhile."""
    tmp_path.chmod(0o777)

    def make(kind: str) -> str:
        """Return the path."""
        path = tmp_path / "place.json"
        if kind == "too long":
            path = tmp_path / ("a" * 300 + ".json")
        elif kind == "a loop":
            path.symlink_to(path)
        elif kind == "a pipe":
            os.mkfifo(path)
        elif kind == "not UTF-8":
            path = tmp_path / os.fsdecode(b"\xff.json")
        elif kind == "not allowed":
            (tmp_path / "closed").mkdir(mode=0o000)
            path = tmp_path / "closed" / "place.json"
        elif kind == "a file":
            path.write_text("null")
        elif kind == "a folder":
            path.mkdir()
        return str(path)

    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(60)  # reading a pipe would wait for ever
    yield make
    signal.alarm(0)


@pytest.fixture
def as_a_user(tmp_path: Path) -> Iterator[None]:
    """Give root's rights up for the time of a test."""
    above = [path for path in tmp_path.parents if path.name.startswith(("pytest-", "popen-"))]
    for path in above:
        path.chmod(path.stat().st_mode | 0o111)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    yield
    if is_root:
        os.seteuid(0)


def end_of(main: Callable[[list[str]], int], argv: list[str], capsysbinary: pytest.CaptureFixture) -> int:
    """Call a script and return its exit status, which is not 0, after the one line that it must have printed."""
    capsysbinary.readouterr()
    status = run_script(lambda: main(argv), "script.py")
    said = capsysbinary.readouterr().err.decode(errors="surrogateescape")
    lines = [line for line in said.splitlines() if line.startswith("script.py: error: ")]
    assert "Traceback" not in said and len(lines) == 1, said[-2000:]
    return status


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("flag", RUN_GLUE_FLAGS)
def test_run_glue(tiny, tmp_path, place, as_a_user, capsysbinary, flag, kind):
    """Each flag that takes a path."""
    usable = {("output_dir", "missing"), ("output_dir", "a folder")}
    usable |= {("save_merged", kind) for _, kind in usable}
    if (flag, kind) in usable:
        pytest.skip("this is a good folder")
    flags = {"max_steps": 1, flag: place(kind)}
    if flag == "train_file":
        flags |= {"task_name": None, "dataset_path": None, "validation_file": flags[flag]}
    if flag in ("adapter_config", "adapter_path"):
        flags |= {"adapter_name": None, "rank": None, "do_train": True if flag == "adapter_config" else None}
    assert end_of(run_glue.main, arguments(tiny, tmp_path / "out", **flags), capsysbinary) == 2


def test_a_merged_model_that_could_not_be_saved_is_refused_before_a_model_is_loaded(
    tiny, tmp_path, place, as_a_user, capsysbinary, monkeypatch
):
    """A folder of somebody else's, which this user may read, and one that would have to be made in it."""
    monkeypatch.setattr(run_glue, "load_model", None)
    closed = Path(place("a folder"))
    closed.chmod(0o555)
    for folder in (closed, closed / "new" / "merged"):
        flags = arguments(tiny, tmp_path / "out", max_steps=1, save_merged=str(folder))
        assert end_of(run_glue.main, flags, capsysbinary) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", []),
        ("config.json", {"hidden_size": "x"}),
        ("config.json", {"num_attention_heads": 0}),
        ("config.json", {"hidden_act": "unknown"}),
        ("config.json", {"id2label": ["a", "b"]}),
        ("tokenizer.json", {}),
        ("tokenizer_config.json", []),
    ],
)
def test_files_of_a_model_that_are_none(tiny, tmp_path, capsysbinary, name, content):
    """JSON, but not what the library expects there; an object is merged into the one that is there."""
    shutil.copytree(tiny / "roberta", tmp_path / "model")
    path = tmp_path / "model" / name
    path.write_text(json.dumps({**read(path), **content} if content else content))
    argv = arguments(tiny, tmp_path / "out", model_name_or_path=tmp_path / "model", max_steps=1)
    assert end_of(run_glue.main, argv, capsysbinary) == 2


@pytest.mark.parametrize("kind", PATHS)
def test_argument_files(place, as_a_user, capsysbinary, kind):
    """The one JSON file in place of flags."""
    assert end_of(run_glue.main, [place(kind)], capsysbinary) == 2


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize(
    ("main", "before", "after"),
    [
        (parse_results.main, [], ["2"]),
        (plot_results.main, [], ["2", "out.png"]),
        (plot_spectrum.main, [], ["out.png"]),
        (make_submission.main, [], ["1", "out.zip"]),
    ],
    ids=["parse_results", "plot_results", "plot_spectrum", "make_submission"],
)
def test_scripts_that_read_results(tmp_path, place, as_a_user, capsysbinary, monkeypatch, main, before, after, kind):
    """Where a folder of results should be."""
    monkeypatch.chdir(tmp_path)
    assert end_of(main, [*before, place(kind), *after], capsysbinary) == 2


@pytest.mark.parametrize("kind", [kind for kind in PATHS if kind != "missing"])
def test_a_figure_that_cannot_be_written(tmp_path, place, capsysbinary, as_a_user, kind):
    """By its name already, or by the folder that it would be in."""
    os.seteuid(os.getuid())
    root = write_rows(tmp_path / "lora4", {"mrpc": [0.8, 0.7]})
    if os.getuid() == 0:
        os.seteuid(NOBODY)
    assert end_of(plot_results.main, [str(root), "2", place(kind)], capsysbinary) == 2
