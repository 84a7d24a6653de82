"""parse_results.py on hand-made result trees, with the expected numbers worked out by hand."""

import contextlib
import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import parse_results

SCRIPT = Path(parse_results.__file__)
TASKS = ["sst2", "mrpc", "cola", "qnli", "rte", "stsb"]
KEYS = {task: "eval_accuracy" for task in TASKS} | {
    "cola": "eval_matthews_correlation",
    "stsb": "eval_combined_score",
}
# Two seeds of two tasks. mrpc: mean 88, deviations 1 and 1. cola: mean 61.4, deviations 1.4 and 1.4.
# The per-seed averages are 73.5 and 75.9: mean 74.7, deviations 1.2 and 1.2.
TWO_TASKS = {"mrpc": [0.87, 0.89], "cola": [0.600, 0.628]}


def write_tree(root: Path, scores: dict[str, list[float | None]]) -> Path:
    """Write one results file for each task and seed under `root`; None stands for a seed without a file."""
    for task, values in scores.items():
        for seed, value in enumerate(values, start=1):
            if value is not None:
                write_result(root, seed, task, json.dumps({KEYS.get(task, "eval_accuracy"): value, "epoch": 10.0}))
    return root


def write_result(root: Path, seed: int, task: str, content: str | bytes) -> Path:
    """Write one results file with any content and return its path."""
    path = root / str(seed) / task / "eval_results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parsed(capsys: pytest.CaptureFixture, *argv: object) -> tuple[int, list[str], list[str]]:
    """Run main and return its exit status, the lines on stdout and the lines on stderr."""
    status = parse_results.main([str(argument) for argument in argv])
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err.splitlines()


def test_full_table_by_hand(tmp_path, capsys):
    """All six tasks and three seeds give exactly the lines worked out by hand, in the paper's order."""
    # Deviations from the mean, points: sst2 -1 0 1, mrpc -2 1 1, cola 0 0 0, qnli -3 0 3, rte 6 -3 -3, stsb 0 2 -2.
    # Population std: sqrt of 2/3, 6/3, 0, 18/3, 54/3, 8/3 = 0.8, 1.4, 0.0, 2.4, 4.2, 1.6 (the sample's 1.0, 1.7, ...).
    # Each seed's scores sum to 480, so all three averages are 80.
    write_tree(
        tmp_path / "lora4",
        {
            "stsb": [0.880, 0.900, 0.860],
            "rte": [0.760, 0.670, 0.670],
            "qnli": [0.870, 0.900, 0.930],
            "cola": [0.600, 0.600, 0.600],
            "mrpc": [0.780, 0.810, 0.810],
            "sst2": [0.910, 0.920, 0.930],
        },
    )
    status, out, err = parsed(capsys, tmp_path / "lora4", 3)
    assert (status, err) == (0, [])
    assert out == [
        "mean ± population std over 3 seeds, in percent; last epoch as evaluated; STS-B: combined score",
        r"name | sst2 | mrpc | cola | qnli | rte | stsb | avg \\",
        r"lora4 | 92.0 ± 0.8 | 80.0 ± 1.4 | 60.0 ± 0.0 | 90.0 ± 2.4 | 70.0 ± 4.2 | 88.0 ± 1.6 | 80.0 ± 0.0 \\",
    ]


def test_average_is_over_seeds_not_over_deviations(tmp_path, capsys):
    """The average's deviation is that of the per-seed averages: 1.2 here, where both tasks move together."""
    status, out, _ = parsed(capsys, write_tree(tmp_path / "vera256", TWO_TASKS), 2)
    assert status == 0
    assert out[1:3] == [r"name | mrpc | cola | avg \\", r"vera256 | 88.0 ± 1.0 | 61.4 ± 1.4 | 74.7 ± 1.2 \\"]


def test_manual_shows_what_is_printed(tmp_path, capsys):
    """The example in the module docstring is the output for that tree, and --help shows the docstring."""
    _, out, _ = parsed(capsys, write_tree(tmp_path / "randlora64", TWO_TASKS), 2)
    example = [line[4:] for line in parse_results.__doc__.splitlines() if line.startswith("    ")]
    assert example[1:] == out
    with pytest.raises(SystemExit) as stop:
        parse_results.main(["--help"])
    assert stop.value.code == 0
    assert parse_results.__doc__.strip() in capsys.readouterr().out


def test_one_seed(tmp_path, capsys):
    """One seed has a deviation of zero and a caption in the singular; seeds above NSEEDS are not read."""
    write_tree(tmp_path, {"mrpc": [0.875, 0.1]})
    status, out, _ = parsed(capsys, tmp_path, 1)
    assert status == 0
    assert "over 1 seed," in out[0]
    assert out[2].endswith(r" | 87.5 ± 0.0 | 87.5 ± 0.0 \\")


@pytest.mark.parametrize(
    ("metric", "value", "named"),
    [("pearson", "91.0", "Pearson"), ("spearmanr", "89.0", "Spearman"), ("combined_score", "90.0", "combined score")],
)
def test_stsb_metric(tmp_path, capsys, metric, value, named):
    """--stsb_metric picks the key that is read and the name in the caption."""
    results = {"eval_pearson": 0.91, "eval_spearmanr": 0.89, "eval_combined_score": 0.90, "eval_loss": 0.5}
    write_result(tmp_path / "a", 1, "stsb", json.dumps(results))
    status, out, _ = parsed(capsys, tmp_path / "a", 1, "--stsb_metric", metric)
    assert status == 0
    assert out[0].endswith(f"STS-B: {named}")
    assert out[2] == rf"a | {value} ± 0.0 | {value} ± 0.0 \\"


def test_mrpc_and_cola_report_the_protocols_metric(tmp_path, capsys):
    """MRPC reports accuracy, not F1 or the combined score, and CoLA Matthews' correlation."""
    mrpc = {"eval_accuracy": 0.70, "eval_f1": 0.80, "eval_combined_score": 0.75}
    write_result(tmp_path / "a", 1, "mrpc", json.dumps(mrpc))
    write_result(tmp_path / "a", 1, "cola", json.dumps({"eval_accuracy": 0.9, "eval_matthews_correlation": 0.5}))
    _, out, _ = parsed(capsys, tmp_path / "a", 1)
    assert out[2] == r"a | 70.0 ± 0.0 | 50.0 ± 0.0 | 60.0 ± 0.0 \\"


def test_negative_correlation_and_no_negative_zero(tmp_path, capsys):
    """CoLA may be negative; a mean that rounds to zero prints as 0.0."""
    _, out, _ = parsed(capsys, write_tree(tmp_path / "a", {"cola": [-0.123]}), 1)
    assert out[2] == r"a | -12.3 ± 0.0 | -12.3 ± 0.0 \\"
    _, out, _ = parsed(capsys, write_tree(tmp_path / "b", {"cola": [-0.0002]}), 1)
    assert out[2] == r"b | 0.0 ± 0.0 | 0.0 ± 0.0 \\"


def test_correlation_just_past_one(tmp_path, capsys):
    """A correlation that rounding carried past 1 is a perfect one, not an error."""
    status, out, _ = parsed(capsys, write_tree(tmp_path / "a", {"stsb": [1.0000000000000002]}), 1)
    assert status == 0
    assert out[2] == r"a | 100.0 ± 0.0 | 100.0 ± 0.0 \\"


def test_name_is_the_last_component(tmp_path, capsys, monkeypatch):
    """A trailing slash, `.` and a symbolic link leave the name of the folder that was asked for."""
    root = write_tree(tmp_path / "vera256_large", TWO_TASKS)
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(root)
    for argument, name in ((f"{root}/", "vera256_large"), (".", "vera256_large"), (tmp_path / "link", "link")):
        status, out, _ = parsed(capsys, argument, 2)
        assert status == 0
        assert out[2].startswith(f"{name} | ")


def test_tasks_outside_the_table_are_named(tmp_path, capsys):
    """MNLI, QQP and WNLI are named where they are there, tasks without any result where they are not."""
    write_tree(tmp_path, TWO_TASKS | {"mnli": [0.8], "wnli": [None, 0.5]})
    status, out, _ = parsed(capsys, tmp_path, 2)
    assert status == 0
    assert out[3:] == [
        "left out of table and average, as no seed has a usable result: sst2, qnli, rte, stsb",
        "there, but not part of this table: mnli, wnli",
    ]


BAD_CONTENTS = {
    "empty": ("", "not valid JSON"),
    "truncated": ('{"eval_accuracy": 0.9', "not valid JSON"),
    "not UTF-8": (b'{"eval_accuracy": "\xff\xfe\xfa"}', "not valid JSON"),
    "nested": ("[" * 100_000, "not valid JSON: nested too deeply"),
    "list": ("[0.9]", "not a JSON object but list"),
    "number": ("0.9", "not a JSON object but float"),
    "other metric": ('{"eval_f1": 0.9}', "has no eval_accuracy"),
    "string": ('{"eval_accuracy": "0.9"}', "eval_accuracy is not a number but str"),
    "null": ('{"eval_accuracy": null}', "eval_accuracy is not a number but NoneType"),
    "bool": ('{"eval_accuracy": true}', "eval_accuracy is not a number but bool"),
    "NaN": ('{"eval_accuracy": NaN}', "eval_accuracy is nan, not between 0 and 1"),
    "infinite": ('{"eval_accuracy": -Infinity}', "eval_accuracy is -inf, not between 0 and 1"),
    "overflow": ('{"eval_accuracy": 1e999}', "eval_accuracy is inf, not between 0 and 1"),
    "huge": ('{"eval_accuracy": 1%s}' % ("0" * 400), "not between 0 and 1"),
    "huger": ('{"eval_accuracy": 1%s}' % ("0" * 5000), "not valid JSON"),
    "percent": ('{"eval_accuracy": 92.2}', "eval_accuracy is 92.2, not between 0 and 1"),
    "negative": ('{"eval_accuracy": -0.1}', "eval_accuracy is -0.1, not between 0 and 1"),
}


@pytest.mark.parametrize(("content", "reason"), BAD_CONTENTS.values(), ids=BAD_CONTENTS.keys())
def test_unreadable_file_is_an_error_and_can_be_ignored(tmp_path, capsys, content, reason):
    """A file that can't be used ends in one error line with its path; --allow_missing goes on without it."""
    write_tree(tmp_path / "a", {"rte": [0.6, 0.8, None], "mrpc": [0.7, 0.7, 0.7]})
    path = write_result(tmp_path / "a", 3, "rte", content)
    status, out, err = parsed(capsys, tmp_path / "a", 3)
    assert (status, out, len(err)) == (2, [], 2)
    assert "--allow_missing" in err[0]
    assert err[1].startswith(f"  {path}: ")
    assert reason in err[1]

    status, out, err = parsed(capsys, tmp_path / "a", 3, "--allow_missing")
    assert status == 0
    assert out[2] == r"a | 70.0 ± 0.0 | 70.0 ± 10.0 (n=2) | 70.0 ± 5.0 (n=2) \\"
    assert len(err) == 2
    assert "ignored" in err[0]
    assert err[1].startswith(f"  {path}: ")


def test_things_that_are_not_files(tmp_path, capsys):
    """A folder or a link to itself in the file's place can't be read, and a seed that is a file has no results."""
    root = write_tree(tmp_path / "a", {"rte": [0.6]})
    (root / "2" / "rte" / "eval_results.json").mkdir(parents=True)
    (root / "3").write_text("")
    (root / "4" / "rte").mkdir(parents=True)
    (root / "4" / "rte" / "eval_results.json").symlink_to("eval_results.json")
    status, _, err = parsed(capsys, root, 4)
    assert status == 2
    assert [line.rpartition(": ")[2] for line in err[1:]] == [
        "not a regular file",
        "missing",
        os.strerror(errno.ELOOP),
    ]


def test_named_pipe_is_not_waited_for(tmp_path):
    """A named pipe in the file's place is an error; reading it would wait for ever."""
    (tmp_path / "1" / "rte").mkdir(parents=True)
    os.mkfifo(tmp_path / "1" / "rte" / "eval_results.json")
    done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path), "1"], capture_output=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.endswith(b"/1/rte/eval_results.json: not a regular file\n")


def test_every_missing_file_is_named(tmp_path, capsys):
    """Missing and broken files of all listed tasks are named together; tasks no seed has are not among them."""
    root = write_tree(tmp_path / "a", {"mrpc": [0.7, None, 0.7], "cola": [0.5, 0.5, None], "rte": [0.6, 0.6, 0.6]})
    write_result(root, 1, "rte", "{")
    status, out, err = parsed(capsys, root, 3)
    assert (status, out) == (2, [])
    named = [line.strip().rpartition("/eval_results.json: ") for line in err[1:]]
    assert [path for path, _, _ in named] == [f"{root}/2/mrpc", f"{root}/3/cola", f"{root}/1/rte"]
    assert [reason for _, _, reason in named[:2]] == ["missing", "missing"]


def test_allow_missing_uses_complete_seeds_for_the_average(tmp_path, capsys):
    """Each short cell shows its n; the average takes the seeds that have every task, and a line says how many."""
    root = write_tree(tmp_path / "a", {"mrpc": [0.70, 0.80, None], "rte": [0.60, 0.80, 0.90]})
    status, out, err = parsed(capsys, root, 3, "--allow_missing")
    assert (status, err) == (0, [])
    # rte: mean 76.67, deviations -16.67, 3.33, 13.33 -> sqrt(466.7 / 3) = 12.47. Averages of seeds 1 and 2: 65, 80.
    assert out[0].startswith("mean ± population std over up to 3 seeds,")
    assert out[2] == r"a | 75.0 ± 5.0 (n=2) | 76.7 ± 12.5 | 72.5 ± 7.5 (n=2) \\"
    assert out[3] == "avg covers 2 of 3 seeds, those with every task in the table"


def test_allow_missing_without_a_complete_seed(tmp_path, capsys):
    """Where no seed has every task the average is a dash."""
    root = write_tree(tmp_path / "a", {"mrpc": [0.70, None], "rte": [None, 0.80]})
    status, out, _ = parsed(capsys, root, 2, "--allow_missing")
    assert status == 0
    assert out[2] == r"a | 70.0 ± 0.0 (n=1) | 80.0 ± 0.0 (n=1) | - \\"
    assert out[3].startswith("avg covers 0 of 2 seeds")


def test_allow_missing_changes_nothing_on_a_whole_tree(tmp_path, capsys):
    """With all files there the flag leaves every line as it is."""
    root = write_tree(tmp_path / "a", TWO_TASKS)
    assert parsed(capsys, root, 2) == parsed(capsys, root, 2, "--allow_missing")


def test_task_with_nothing_but_broken_files(tmp_path, capsys):
    """Such a task is an error, not a task that no seed has; with --allow_missing it is left out and named."""
    root = write_tree(tmp_path / "a", {"mrpc": [0.7, 0.7]})
    write_result(root, 1, "rte", "")
    status, _, err = parsed(capsys, root, 2)
    assert (status, len(err)) == (2, 3)
    status, out, _ = parsed(capsys, root, 2, "--allow_missing")
    assert status == 0
    assert out[2] == r"a | 70.0 ± 0.0 | 70.0 ± 0.0 \\"
    assert out[3].endswith(": sst2, cola, qnli, rte, stsb")


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "five", "", "1e3", "²", "10000", "9" * 5000])
def test_bad_seed_count(tmp_path, capsys, text):
    """NSEEDS must be a positive whole number: one line says so, exit status 2."""
    status, out, err = parsed(capsys, write_tree(tmp_path, TWO_TASKS), text)
    assert (status, out, len(err)) == (2, [], 1)
    assert "NSEEDS" in err[0] and "from 1 to 9999" in err[0]


def test_bad_root(tmp_path, capsys):
    """ROOT must be a folder, with results: one line names it, exit status 2."""
    file = tmp_path / "file"
    file.write_text("")
    empty = tmp_path / "empty"
    empty.mkdir()
    for root, reason in (
        (file, "must be an existing folder"),
        (tmp_path / "none", "must be an existing folder"),
        ("a" * 5000, "must be an existing folder"),
        ("a\0b", "must be an existing folder"),
        (empty, "has no usable result of seeds 1 to 2"),
        (write_tree(tmp_path / "mnli", {"mnli": [0.8, 0.8]}), "has no usable result of seeds 1 to 2"),
    ):
        status, out, err = parsed(capsys, root, 2)
        assert (status, out, len(err)) == (2, [], 1)
        assert "ROOT" in err[0] and reason in err[0]


def test_only_broken_files(tmp_path, capsys):
    """If --allow_missing leaves nothing, that is an error and no table."""
    write_result(tmp_path, 1, "rte", "{")
    status, out, err = parsed(capsys, tmp_path, 1, "--allow_missing")
    assert (status, out) == (2, [])
    assert "has no usable result" in err[-1]


@pytest.mark.parametrize(
    "argv", [[], ["only_root"], ["a", "b", "c"], ["a", "1", "--stsb_metric", "f1"], ["a", "1", "--allow"]]
)
def test_usage_errors(argv):
    """argparse ends a wrong command line with exit status 2."""
    with pytest.raises(SystemExit) as stop:
        parse_results.main(argv)
    assert stop.value.code == 2


@pytest.mark.parametrize("name", ["größe".encode(), b"odd\xff"])
def test_ascii_locale_and_odd_names(tmp_path, name):
    """The script writes UTF-8 whatever the locale, and the folder's name as it is, even if that is no UTF-8."""
    write_tree(Path(os.fsdecode(os.fsencode(tmp_path / "x")[:-1] + name)), TWO_TASKS)
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, str(SCRIPT), os.fsencode(tmp_path) + b"/" + name, "2"]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert done.stdout.splitlines()[2] == name + r" | 88.0 ± 1.0 | 61.4 ± 1.4 | 74.7 ± 1.2 \\".encode()


def test_standard_library_only(tmp_path):
    """A whole run in a fresh interpreter imports no third-party package."""
    root = write_tree(tmp_path, TWO_TASKS)
    code = (
        "import sys, parse_results; parse_results.main(sys.argv[1:]);"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names))"
    )
    command = [sys.executable, "-S", "-c", code, str(root), "2"]
    done = subprocess.run(command, cwd=SCRIPT.parent, capture_output=True, check=True, text=True, encoding="utf-8")
    assert done.stdout.splitlines()[-1].split() == ["__main__", "parse_results"]


GOOD = st.floats(0, 1)
BAD = st.sampled_from([content for name, (content, _) in BAD_CONTENTS.items() if name != "negative"])
CONTENTS = st.one_of(GOOD, GOOD, GOOD, st.none(), BAD, st.binary(max_size=20).map(lambda noise: b"\xff" + noise))
TREES = st.dictionaries(st.sampled_from(TASKS), st.lists(CONTENTS, min_size=3, max_size=3), max_size=6)


def expected_cells(tree: dict[str, list]) -> list[tuple[float, float, int]]:
    """Work out mean, std (both in percent) and n of each column with NumPy; NaN stands for what can't be used."""
    tasks = [task for task in TASKS if any(isinstance(value, float) for value in tree.get(task, []))]
    table = np.array([[value if isinstance(value, float) else np.nan for value in tree[task]] for task in tasks])
    columns = [100 * row[~np.isnan(row)] for row in [*table, table.mean(axis=0)]]
    return [(column.mean(), column.std(), len(column)) if len(column) else (0.0, 0.0, 0) for column in columns]


def printed_cells(row: str) -> list[tuple[float, float, int]]:
    """Read mean, std and n of each column back from a printed row of three seeds."""
    cells = []
    for text in row.removesuffix(r" \\").split(" | ")[1:]:
        match = re.fullmatch(r"(\d+\.\d) ± (\d+\.\d)(?: \(n=([12])\))?", text)
        cells.append(
            (float(match[1]), float(match[2]), int(match[3] or 3)) if match else (0.0, 0.0, text.count("-") - 1)
        )
    return cells


@settings(max_examples=150, deadline=None)
@given(tree=TREES)
def test_any_tree_gives_a_right_row_or_a_full_error(tmp_path_factory, tree):
    """Random missing, broken and good files: the right row, or an error with a line for each file at fault."""
    root = tmp_path_factory.mktemp("tree") / "a"
    root.mkdir()
    at_fault = set()
    for task, contents in tree.items():
        for seed, content in enumerate(contents, start=1):
            path = root / str(seed) / task / "eval_results.json"
            if isinstance(content, float):
                write_tree(root, {task: [None] * (seed - 1) + [content]})
            elif content is not None:
                content = content.replace("eval_accuracy", KEYS[task]) if isinstance(content, str) else content
                write_result(root, seed, task, content)
            if not isinstance(content, float) and any(other is not None for other in contents):
                at_fault.add(str(path))
    for flags in ([], ["--allow_missing"]):
        command = [str(root), "3", *flags]
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            status = parse_results.main(command)
        usable = any(isinstance(value, float) for contents in tree.values() for value in contents)
        assert status == (0 if usable and (flags or not at_fault) else 2)
        if status == 0:
            printed, expected = printed_cells(out.getvalue().splitlines()[2]), expected_cells(tree)
            assert len(printed) == len(expected)
            assert np.allclose(printed, expected, atol=0.05 + 1e-9, rtol=0)
        elif at_fault and not flags:
            assert {line.strip().partition(": ")[0] for line in err.getvalue().splitlines()[1:]} == at_fault
