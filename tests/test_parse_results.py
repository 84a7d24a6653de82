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
from helpers import AS_ROWS, FIVE, call, metrics_of, said, shifted, write_result, write_rows, write_run, write_tree
from hypothesis import given, settings
from hypothesis import strategies as st

import parse_results
from glue_peft.tasks import PAPER_TASKS, main_metric

SCRIPT = Path(parse_results.__file__)
# Two seeds of two tasks. mrpc: mean 88, deviations 1 and 1. cola: mean 61.4, deviations 1.4 and 1.4.
# The per-seed averages are 73.5 and 75.9: mean 74.7, deviations 1.2 and 1.2. Below five seeds it is the sample's
# deviation that is printed, for two of them sqrt(2) times these: 1.4, 2.0, 1.7.
TWO_TASKS = {"mrpc": [0.87, 0.89], "cola": [0.600, 0.628]}


def parsed(capsys: pytest.CaptureFixture, *argv: object) -> tuple[int, list[str], list[str]]:
    """Call the script and return its exit status, the lines on stdout (rows in one-line form) and on stderr."""
    return said(capsys, parse_results, *argv, *(() if {"--format", "--status"} & set(argv) else AS_ROWS))


def test_full_table_by_hand(tmp_path, capsys):
    """All six tasks and three seeds give exactly the lines worked out by hand, in the paper's order."""
    # Deviations from the mean, points: sst2 -1 0 1, mrpc -2 1 1, cola 0 0 0, qnli -3 0 3, rte 6 -3 -3, stsb 0 2 -2.
    # Sample std: sqrt of 2/2, 6/2, 0, 18/2, 54/2, 8/2 = 1.0, 1.7, 0.0, 3.0, 5.2, 2.0 (the population's 0.8, 1.4, ...).
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
        "mean ± sample std over 3 seeds, in percent; evaluated model, epoch unknown; STS-B: combined score; "
        "MNLI starts unknown",
        r"name | sst2 | mrpc | cola | qnli | rte | stsb | avg \\",
        r"lora4 | 92.0 ± 1.0 | 80.0 ± 1.7 | 60.0 ± 0.0 | 90.0 ± 3.0 | 70.0 ± 5.2 | 88.0 ± 2.0 | 80.0 ± 0.0 \\",
        "health: nothing found in 18 runs",
        "health: not checked: arguments (no run.json: 18 runs), rows (no eval_samples: 18 runs), "
        "copies (no eval_loss: 18 runs)",
    ]


def test_average_is_over_seeds_not_over_deviations(tmp_path, capsys):
    """The average's deviation is that of the per-seed averages: 1.2 here, where both tasks move together."""
    status, out, _ = parsed(capsys, write_tree(tmp_path / "vera256", TWO_TASKS), 2, "--ddof", 0)
    assert status == 0
    assert out[1:3] == [r"name | mrpc | cola | avg \\", r"vera256 | 88.0 ± 1.0 | 61.4 ± 1.4 | 74.7 ± 1.2 \\"]


def test_manual_shows_what_is_printed(tmp_path, capsys):
    """The example in the module docstring is the output for that tree, and --help shows the docstring."""
    _, out, _ = said(capsys, parse_results, write_tree(tmp_path / "randlora64", TWO_TASKS), 2)
    example = [line[4:] for line in parse_results.__doc__.splitlines() if line.startswith("    ")]
    assert example[1:-1] == out
    with pytest.raises(SystemExit) as stop:
        parse_results.main(["--help"])
    assert stop.value.code == 0
    assert parse_results.__doc__.strip() in capsys.readouterr().out


def test_one_seed(tmp_path, capsys):
    """One seed has no deviation and a caption in the singular; seeds above NSEEDS are not read."""
    write_tree(tmp_path, {"mrpc": [0.875, 0.1]})
    status, out, _ = parsed(capsys, tmp_path, 1)
    assert status == 0
    assert out[0].startswith("mean over 1 seed,")
    assert out[2].endswith(r" | 87.5 | 87.5 \\")


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
    assert out[0].endswith(f"; STS-B: {named}; MNLI starts unknown")
    assert out[2] == rf"a | {value} | {value} \\"


def test_mrpc_and_cola_report_the_protocols_metric(tmp_path, capsys):
    """MRPC reports accuracy, not F1 or the combined score, and CoLA Matthews' correlation."""
    mrpc = {"eval_accuracy": 0.70, "eval_f1": 0.80, "eval_combined_score": 0.75}
    write_result(tmp_path / "a", 1, "mrpc", json.dumps(mrpc))
    write_result(tmp_path / "a", 1, "cola", json.dumps({"eval_accuracy": 0.9, "eval_matthews_correlation": 0.5}))
    _, out, _ = parsed(capsys, tmp_path / "a", 1)
    assert out[2] == r"a | 70.0 | 50.0 | 60.0 \\"


def test_negative_correlation_and_no_negative_zero(tmp_path, capsys):
    """CoLA may be negative; a mean that rounds to zero prints as 0.0."""
    _, out, _ = parsed(capsys, write_tree(tmp_path / "a", {"cola": [-0.123]}), 1)
    assert out[2] == r"a | -12.3 | -12.3 \\"
    _, out, _ = parsed(capsys, write_tree(tmp_path / "b", {"cola": [-0.0002]}), 1)
    assert out[2] == r"b | 0.0 | 0.0 \\"


def test_correlation_just_past_one(tmp_path, capsys):
    """A correlation that rounding carried past 1 is a perfect one, not an error."""
    status, out, _ = parsed(capsys, write_tree(tmp_path / "a", {"stsb": [1.0000000000000002]}), 1)
    assert status == 0
    assert out[2] == r"a | 100.0 | 100.0 \\"


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
    assert out[3:5] == [
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

    status, out, err = parsed(capsys, tmp_path / "a", 3, "--allow_missing", "--ddof", 0)
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
    status, out, err = parsed(capsys, root, 3, "--allow_missing", "--ddof", 0)
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
    assert out[2] == r"a | 70.0 (n=1) | 80.0 (n=1) | - \\"
    assert out[3].startswith("avg covers 0 of 2 seeds")


def test_allow_missing_changes_nothing_on_a_complete_tree(tmp_path, capsys):
    """With all files there the flag leaves every line as it is."""
    root = write_tree(tmp_path / "a", TWO_TASKS)
    strict = parsed(capsys, root, 2)
    assert strict[0] == 0 and strict == parsed(capsys, root, 2, "--allow_missing")


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


@pytest.mark.parametrize(
    "text",
    ["0", "-1", "1.5", "five", "", "1e3", "²", "10000", "9" * 5000, "2-1", "1-", "-", "1,", "1,1", "1-3,2", "1-10000"],
)
def test_bad_seeds(tmp_path, capsys, text):
    """NSEEDS must be a count, a range or a list: one short line says so, exit status 2."""
    status, out, err = parsed(capsys, write_tree(tmp_path, TWO_TASKS), text)
    assert (status, out, len(err)) == (2, [], 1)
    assert "NSEEDS" in err[0] and "from 1 to 9999" in err[0] and len(err[0]) < 300


@pytest.mark.parametrize(
    ("text", "cells", "over"),
    [
        ("5", "62.0 ± 1.4 | 62.0 ± 1.4", "population std over 5 seeds, in"),  # 60 to 64: sqrt(10/5), not sqrt(10/4)
        ("1-4", "61.5 ± 1.3 | 61.5 ± 1.3", "sample std over 4 seeds, in"),  # 60 to 63: sqrt(5/3), not sqrt(5/4)
        ("2", "60.5 ± 0.7 | 60.5 ± 0.7", "over 2 seeds, in"),  # seeds 1 and 2: 60, 61
        ("3-5", "63.0 ± 1.0 | 63.0 ± 1.0", "over 3 seeds (3 to 5), in"),  # 62, 63, 64
        ("1,3", "61.0 ± 1.4 | 61.0 ± 1.4", "over 2 seeds (1, 3), in"),  # 60, 62
        ("1, 3", "61.0 ± 1.4 | 61.0 ± 1.4", "over 2 seeds (1, 3), in"),
        ("1 3-3", "61.0 ± 1.4 | 61.0 ± 1.4", "over 2 seeds (1, 3), in"),
        ("4-4", "63.0 | 63.0", "over 1 seed (4), in"),
        ("1-2", "60.5 ± 0.7 | 60.5 ± 0.7", "over 2 seeds, in"),
        ("1-2,5", "61.7 ± 2.1 | 61.7 ± 2.1", "over 3 seeds (1, 2, 5), in"),  # 60, 61, 64: sqrt(26/6)
    ],
)
def test_which_seeds(tmp_path, capsys, text, cells, over):
    """A count, a range, a list and both; the caption names the seeds where they are not the first ones."""
    write_tree(tmp_path / "a", {"rte": [0.60, 0.61, 0.62, 0.63, 0.64]})
    _, out, _ = parsed(capsys, tmp_path / "a", text)
    assert out[2] == rf"a | {cells} \\"
    assert over in out[0]


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
    assert "has no usable result" in err[0]
    assert f"  {tmp_path}/1/rte/eval_results.json: not valid JSON" in err[1]


@pytest.mark.parametrize(
    "argv", [[], ["only_root"], ["a", "1", "--stsb_metric", "f1"], ["a", "1", "--allow"], ["a", "1", "--ddof", "2"]]
)
def test_usage_errors(capsys, argv):
    """A wrong command line is one line, exit status 2."""
    status, out, err = parsed(capsys, *argv)
    assert (status, out, len(err)) == (2, [], 1) and err[0].startswith("parse_results.py: error: ")


@pytest.mark.parametrize("name", ["größe".encode(), b"odd\xff"])
def test_ascii_locale_and_odd_names(tmp_path, name):
    """The script writes UTF-8 whatever the locale, and the folder's name as it is, even if that is no UTF-8."""
    write_tree(Path(os.fsdecode(os.fsencode(tmp_path / "x")[:-1] + name)), TWO_TASKS)
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, str(SCRIPT), os.fsencode(tmp_path) + b"/" + name, "2", *AS_ROWS]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert done.stdout.splitlines()[2] == name + r" | 88.0 ± 1.4 | 61.4 ± 2.0 | 74.7 ± 1.7 \\".encode()


def test_standard_library_only(tmp_path):
    """A fresh interpreter imports this repository's modules and no third-party package."""
    root = write_tree(tmp_path, TWO_TASKS)
    code = (
        "import sys, parse_results; parse_results.main(sys.argv[1:]);"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names))"
    )
    command = [sys.executable, "-S", "-c", code, str(root), "2"]
    done = subprocess.run(command, cwd=SCRIPT.parent, capture_output=True, check=True, text=True, encoding="utf-8")
    assert done.stdout.splitlines()[-1].split() == ["__main__", "glue_peft", "parse_results"]


GOOD = st.floats(0, 1)


BAD = st.sampled_from([content for name, (content, _) in BAD_CONTENTS.items() if name != "negative"])


CONTENTS = st.one_of(GOOD, GOOD, GOOD, st.none(), BAD, st.binary(max_size=20).map(lambda noise: b"\xff" + noise))


TREES = st.dictionaries(st.sampled_from(PAPER_TASKS), st.lists(CONTENTS, min_size=3, max_size=3), max_size=6)


def expected_cells(tree: dict[str, list]) -> list[tuple[float, float, int]]:
    """Work out mean, std (both in percent) and n of each column with NumPy; NaN stands for what can't be used.

    Of three seeds it is the sample's deviation; a single value prints none, here 0.
    """
    tasks = [task for task in PAPER_TASKS if any(isinstance(value, float) for value in tree.get(task, []))]
    table = np.array([[value if isinstance(value, float) else np.nan for value in tree[task]] for task in tasks])
    columns = [100 * row[~np.isnan(row)] for row in [*table, table.mean(axis=0)]]
    return [
        (column.mean(), column.std(ddof=len(column) > 1), len(column)) if len(column) else (0.0, 0.0, 0)
        for column in columns
    ]


def printed_cells(row: str) -> list[tuple[float, float, int]]:
    """Read mean, std and n of each column back from a printed row of three seeds."""
    cells = []
    for text in row.removesuffix(r" \\").split(" | ")[1:]:
        match = re.fullmatch(r"(\d+\.\d)(?: ± (\d+\.\d))?(?: \(n=([12])\))?", text)
        cells.append(
            (float(match[1]), float(match[2] or 0), int(match[3] or 3)) if match else (0.0, 0.0, text.count("-") - 1)
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
                content = (
                    content.replace("eval_accuracy", f"eval_{main_metric(task)}")
                    if isinstance(content, str)
                    else content
                )
                write_result(root, seed, task, content)
            if not isinstance(content, float) and any(other is not None for other in contents):
                at_fault.add(str(path))
    for flags in ([], ["--allow_missing"]):
        command = [str(root), "3", *flags, *AS_ROWS]
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            status = call(parse_results, *command)
        usable = any(isinstance(value, float) for contents in tree.values() for value in contents)
        assert status == (0 if usable and (flags or not at_fault) else 2)
        if status == 0:
            printed, expected = printed_cells(out.getvalue().splitlines()[2]), expected_cells(tree)
            assert len(printed) == len(expected)
            assert np.allclose(printed, expected, atol=0.05 + 1e-9, rtol=0)
        elif at_fault and not flags:
            assert {line.strip().partition(": ")[0] for line in err.getvalue().splitlines()[1:]} == at_fault


FOUR = {"mrpc": [0.80, 0.86, 0.90, 0.90], "rte": [0.60, 0.70, 0.70, 0.80]}


@pytest.mark.parametrize(
    ("flags", "row"),
    [
        # mrpc: mean 86.5, deviations -6.5 -.5 3.5 3.5: squares sum to 67, sqrt(67/4) = 4.09, sqrt(67/3) = 4.73.
        # rte: mean 70, deviations -10 0 0 10: sqrt(200/4) = 7.07, sqrt(200/3) = 8.16.
        # averages 70, 78, 80, 85: mean 78.25, squares 68.06 + .06 + 3.06 + 45.56 = 116.75: 5.40, 6.24; median 79.
        (["--ddof", "0"], "86.5 ± 4.1 | 70.0 ± 7.1 | 78.2 ± 5.4"),
        ([], "86.5 ± 4.7 | 70.0 ± 8.2 | 78.2 ± 6.2"),
        (["--statistic", "median", "--ddof", "0"], "88.0 ± 4.1 | 70.0 ± 7.1 | 79.0 ± 5.4"),
        (["--statistic", "median", "--ddof", "1"], "88.0 ± 4.7 | 70.0 ± 8.2 | 79.0 ± 6.2"),
    ],
)
def test_statistics_by_hand(tmp_path, capsys, flags, row):
    """Mean and median, population and sample deviation; the caption names what was taken."""
    root = write_tree(tmp_path / "a", FOUR)
    _, out, _ = parsed(capsys, root, 4, *flags)
    assert out[2] == rf"a | {row} \\"
    statistic, std = ("median" if "median" in flags else "mean"), ("population" if "0" in flags else "sample")
    assert out[0].startswith(f"{statistic} ± {std} std over 4 seeds, in percent; ")


@pytest.mark.parametrize("ddof", [0, 1])
def test_one_seed_has_no_deviation(tmp_path, capsys, ddof):
    """Whichever is asked for; one seed of five has none either, among population's deviations."""
    _, out, _ = parsed(capsys, write_tree(tmp_path / "a", {"rte": [0.7]}), 1, "--ddof", ddof)
    assert out[2] == r"a | 70.0 | 70.0 \\"
    write_tree(tmp_path / "a", {"mrpc": FIVE})
    _, out, _ = parsed(capsys, tmp_path / "a", 5, "--allow_missing")
    assert out[2] == r"a | 72.0 ± 1.4 | 70.0 (n=1) | 70.0 (n=1) \\"


def test_mnli_in_one_column(tmp_path, capsys):
    """Matched and mismatched share a cell, and count in the average as their mean."""
    root = tmp_path / "a"
    for seed, matched, mismatched in ((1, 0.84, 0.86), (2, 0.86, 0.92)):
        write_run(root, seed, "mnli", matched, mismatched)
        write_run(root, seed, "rte", 0.75)
    _, out, _ = parsed(capsys, root, 2, "--tasks", "mnli,rte")
    assert out[1].startswith("name | mnli | rte | avg | ")
    # Seeds: mnli 85 and 89, so averages 80 and 82.
    assert out[2].startswith("a | 85.0/89.0 ± 1.4/4.2 | 75.0 ± 0.0 | 81.0 ± 1.4 | ")


@pytest.mark.parametrize(
    ("flags", "score", "named"),
    [
        ([], "70.0", "; last epoch; "),
        (["--epoch", "best"], "80.0", "; best epoch, chosen on the reported set itself; "),
        (["--epoch", "selected"], "75.0", "; epoch selected on held-out training rows; "),
    ],
)
def test_epochs(tmp_path, capsys, flags, score, named):
    """Each choice prints its own score, and the caption says which."""
    scores = {"last": metrics_of("rte", 0.7), "best": metrics_of("rte", 0.8), "selected": metrics_of("rte", 0.75)}
    write_run(tmp_path / "a", 1, "rte", 0.8, scores=scores)
    _, out, _ = parsed(capsys, tmp_path / "a", 1, *flags)
    assert out[2].startswith(f"a | {score} | ")
    assert named in out[0]


def test_costs_end_the_row(tmp_path, capsys):
    """Parameters without and with the head, file, time and memory; a dash for a row that has no run.json."""
    write_rows(tmp_path / "a", {"rte": [0.6, 0.7], "mrpc": [0.8, 0.8]})
    write_tree(tmp_path / "b", {"rte": [0.6, 0.7], "mrpc": [0.8, 0.8]})
    _, out, _ = parsed(capsys, tmp_path / "a", tmp_path / "b", 2)
    assert out[1] == r"name | mrpc | rte | avg | adapter | with head | stored | training | peak memory \\"
    assert out[2].endswith(r" | 663,552 | 1,255,682 | 5.00 MB | 0:02:00 | 600.00 MB \\")
    assert out[3].endswith(r" | - | - | - | - | - \\")
    assert out[0].endswith("; no MNLI starts (unknown of 4 of 8 runs); peak memory: process")


def test_health_is_part_of_the_output(tmp_path, capsys):
    """A collapsed run is listed under the table with its folder."""
    write_rows(tmp_path / "a", {"cola": [0.5, 0.0]})
    _, out, _ = parsed(capsys, tmp_path / "a", 2)
    assert f"health: collapsed, counted: {tmp_path}/a/2/cola (eval_matthews_correlation is 0)" in out


def rows_of(out: list[str]) -> list[list[str]]:
    """Return the cells of every row that is printed, headers included."""
    return [line.removesuffix(r" \\").split(" | ") for line in out if line.endswith(r" \\")]


def tables_of(out: list[str]) -> list[list[list[str]]]:
    """Return the rows of every table that is printed, each without its header."""
    tables: list[list[list[str]]] = []
    for cells in rows_of(out):
        if cells[0] in ("name", "task"):
            tables.append([])
        else:
            tables[-1].append(cells)
    return tables


def test_comparison_by_hand(tmp_path, capsys):
    """The two tasks and avg are one family of three."""
    write_rows(tmp_path / "a", {"mrpc": FIVE, "rte": FIVE})
    better = {"mrpc": shifted([0.04, 0.05, 0.06, 0.05, 0.05]), "rte": shifted([0.01, -0.01, 0.02, -0.02, 0.01])}
    write_rows(tmp_path / "b", better)
    status, out, err = parsed(capsys, tmp_path / "a", tmp_path / "b", 5)
    assert (status, err) == (0, [])
    title = next(line for line in out if line.startswith("b minus a: "))
    assert "after Holm over all 3 comparisons of this output (1 row with the first, in 2 tasks and avg)" in title
    mrpc, rte, average = tables_of(out)[1]
    # mrpc: 74 76 78 78 79 against 70 to 74: variances 4 and 2.5, t = 5 / sqrt(1.3) = 4.385 on 1.3^2 / (0.8^2 / 4 +
    # 0.5^2 / 4) = 7.6 degrees of freedom, whose 97.5 % quantile is 2.327. Of the C(10, 5) = 252 splits only those that
    # exchange the two 74 are as far apart, and their opposites. The paired differences 4 5 6 5 5: s .7071, t 15.81.
    assert mrpc == [
        "mrpc", "5", "5.0", "2.3 to 7.7", "0.0026", "0.0079", "<0.0001", "0.0159 (at least 0.0079)", "b is better",
    ]  # fmt: skip
    # rte: 71 70 74 71 75: variances 4.7 and 2.5, half width 2.344 x 1.2.
    assert rte[:4] == ["rte", "5", "0.2", "-2.6 to 3.0"] and rte[-1] == "no difference shown"
    assert average[0] == "avg" and average[2] == "2.6"


def test_the_family_is_the_whole_output(tmp_path, capsys):
    """A difference between two rows is shown, until two more rows are compared along with them."""
    write_rows(tmp_path / "a", {"mrpc": FIVE, "rte": FIVE})
    for name, step in (("b", 0.04), ("c", 0.0), ("d", 0.0)):
        write_rows(tmp_path / name, {"mrpc": [value + step for value in FIVE], "rte": FIVE})
    two = tables_of(parsed(capsys, tmp_path / "a", tmp_path / "b", 5)[1])
    four = tables_of(parsed(capsys, *(tmp_path / name for name in "abcd"), 5)[1])
    assert two[1][0][4] == four[1][0][4] == "0.0039"  # t = 4 on 8 degrees of freedom
    assert two[1][0][5] == "0.0118" and two[1][0][-1] == "b is better"
    assert four[1][0][5] == "0.0355" and four[1][0][-1] == "b is better, by the t-test alone"
    assert four[1][0][7] == two[1][0][7]
    _, out, _ = parsed(capsys, *(tmp_path / name for name in "abcd"), 5, "--all_pairs")
    every = tables_of(out)
    assert "all 18 comparisons of this output (all 6 pairs of 4 rows, in 2 tasks and avg)" in "\n".join(out)
    assert len(every) == 7 and every[1][0][5] == "0.0711" and every[1][0][-1] == "no difference shown"


def test_a_permutation_test_confirms(tmp_path, capsys):
    """Five seeds that are all better reach 2 / C(10, 5): in a family of 3 that is enough, in one of 9 it isn't."""
    for name, step in (("a", 0), ("b", -0.1), ("c", -0.1), ("d", -0.1)):
        write_rows(tmp_path / name, {"mrpc": [value + step for value in FIVE], "rte": FIVE})
    for names, verdict in (("ab", "a is better"), ("abcd", "a is better, by the t-test alone")):
        _, out, _ = parsed(capsys, *(tmp_path / name for name in names), 5)
        assert tables_of(out)[1][0][-2:] == ["0.0079 (at least 0.0079)", verdict]


def test_power_lines(tmp_path, capsys):
    """Under every comparison stands what so many seeds could show, and how many it would take."""
    write_rows(tmp_path / "a", {"mrpc": FIVE, "rte": FIVE})
    write_rows(tmp_path / "b", {"mrpc": [value + 0.02 for value in FIVE], "rte": FIVE})
    _, out, _ = parsed(capsys, tmp_path / "a", tmp_path / "b", 5)
    # mrpc: t = 2, and 1 - 0.05 / 3 / 2 of t with 8 degrees of freedom is 3.016: shown from 3.0 points on.
    # The averages move half as far, with the same deviation: 1 point.
    assert [line for line in out if line.startswith("power: ")] == [
        "power: with these seeds, in a family of 3, the least difference that can be shown, in points: mrpc 3.0, "
        "rte 3.0, avg 3.0; one as large as seen is found in 80 % of cases with this many seeds a row: mrpc 15, "
        "rte over 100, avg 54",
        "power: for a permutation test to confirm a verdict in a family of 3 it takes at least 5 seeds a row (paired "
        "by seed, by flipping signs, 7)",
    ]


def test_comparison_without_spread(tmp_path, capsys):
    """Where no row has a spread, or there is one seed, no p is made up and no difference is claimed."""
    write_rows(tmp_path / "a", {"rte": [0.6, 0.6]})
    write_rows(tmp_path / "b", {"rte": [0.7, 0.7]})
    for n in (1, 2):
        _, out, _ = parsed(capsys, tmp_path / "a", tmp_path / "b", n)
        (rte,) = tables_of(out)[1]  # the average of one task is that task
        assert rte[2:7] == ["10.0", "-", "-", "-", "-"] and rte[-1] == "no difference shown"
        assert "no Welch test where a row has one seed, or neither any spread: rte" in out


def test_every_other_row_is_compared_with_the_first(tmp_path, capsys):
    """Three ROOTs give two comparisons, with --all_pairs three."""
    for name, step in (("a", 0), ("b", 0.01), ("c", 0.02)):
        write_rows(tmp_path / name, {"rte": [value + step for value in FIVE]})
    roots = [tmp_path / name for name in "abc"]
    for flags, expected in (
        ([], ["b minus a", "c minus a"]),
        (["--all_pairs"], ["b minus a", "c minus a", "c minus b"]),
    ):
        _, out, _ = parsed(capsys, *roots, 5, *flags)
        assert [line.partition(":")[0] for line in out if " minus " in line] == expected


def test_all_pairs_of_one_row(tmp_path, capsys):
    """There are none: the flag would have no effect."""
    write_rows(tmp_path / "a", {"rte": FIVE})
    status, _, err = parsed(capsys, tmp_path / "a", 5, "--all_pairs")
    assert status == 2 and err == ["parse_results.py: error: --all_pairs compares rows, and there is one ROOT"]


def test_missing_seeds_are_not_paired(tmp_path, capsys):
    """Welch's test takes the seeds of either row, the paired one those that both have."""
    write_tree(tmp_path / "a", {"rte": [0.6, None, 0.7, 0.8]})
    write_tree(tmp_path / "b", {"rte": [0.7, 0.9, 0.82, None, 0.9]})
    _, out, _ = parsed(capsys, tmp_path / "a", tmp_path / "b", 5, "--allow_missing")
    (rte,) = tables_of(out)[1]
    assert rte[:3] == ["rte", "3/4", "13.0"]
    assert rte[6] == "0.0577"  # of the differences 10 and 12: t = 11 on 1 degree of freedom, 1 - 2 / pi arctan 11


def test_rows_with_other_tasks(tmp_path, capsys):
    """With --allow_missing a cell is a dash, and the averages of all rows are over the same tasks."""
    write_tree(tmp_path / "a", {"rte": [0.6, 0.7], "mrpc": [0.9, 0.9]})
    write_tree(tmp_path / "b", {"rte": [0.7, 0.9]})
    _, out, _ = parsed(capsys, tmp_path / "a", tmp_path / "b", 2, "--allow_missing")
    assert out[2:4] == [r"a | 90.0 ± 0.0 | 65.0 ± 7.1 | 65.0 ± 7.1 \\", r"b | - | 80.0 ± 14.1 | 80.0 ± 14.1 \\"]
    assert "avg, training and memory cover the tasks that every row has: rte" in out


def test_options_between_the_roots_and_the_seeds(tmp_path, capsys):
    """The order of options and arguments doesn't matter."""
    for name in "ab":
        write_tree(tmp_path / name, TWO_TASKS)
    first = parsed(capsys, tmp_path / "a", tmp_path / "b", 2, "--ddof", 1)
    assert first[0] == 0
    assert parsed(capsys, tmp_path / "a", tmp_path / "b", "--ddof", 1, 2) == first


def test_scipy_only_for_comparisons(tmp_path):
    """One row loads neither SciPy nor NumPy, two rows load SciPy; torch never."""
    roots = [str(write_rows(tmp_path / name, {"rte": [0.5, 0.6 + step]})) for name, step in (("a", 0), ("b", 0.1))]
    code = (
        "import sys, parse_results; parse_results.main(sys.argv[1:]);"
        "print(*(name for name in ('numpy', 'scipy', 'torch') if name in sys.modules))"
    )
    found = []
    for argv in ([roots[0], "2"], [*roots, "2"]):
        command = [sys.executable, "-c", code, *argv]
        done = subprocess.run(command, cwd=SCRIPT.parent, capture_output=True, check=True, text=True, encoding="utf-8")
        found.append(done.stdout.splitlines()[-1])
    assert found == ["", "numpy scipy"]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=5,
)


RECORD_KEYS = st.sampled_from(
    ["arguments", "adapter_config", "base_model", "data_sha256", "parameters", "saved_bytes", "peak_memory", "metrics"]
)


INNER_KEYS = st.sampled_from(
    ["task_name", "rank", "seed", "init_adapter_from", "adapter_name", "peft_type", "r", "target_modules", "name"]
    + ["load_best_model_at_end"]
    + ["sha256", "train", "adapter", "head", "bytes", "kind", "train_runtime", "eval_majority_share", "eval_loss"]
)


RECORDS = st.dictionaries(RECORD_KEYS, JSON_VALUES | st.dictionaries(INNER_KEYS, JSON_VALUES, max_size=4), max_size=4)


KINDS = st.sampled_from(
    ["good"] * 6
    + ["missing", "truncated", "bytes", "folder", "loop", "dangling", "link", "no record", "broken record"]
    + ["scored", "badly scored", "failed", "failed long ago"]
)


def write_odd_run(root: Path, seed: int, kind: str, score: float, record: dict, noise: bytes) -> bool:
    """Write a run of RTE in one of many ways, and return whether its score can be used."""
    folder = root / str(seed) / "rte"
    path = folder / "eval_results.json"
    if kind == "link":
        folder.parent.mkdir(exist_ok=True)
        folder.symlink_to(root / "1" / "rte")
        return False
    if kind == "missing":
        return False
    text = json.dumps({"eval_accuracy": score})
    folder.mkdir(parents=True)
    if kind in ("failed", "failed long ago"):
        name, content = "failure.json", json.dumps({"kind": noise.decode("latin-1"), "message": "diverged"}).encode()
        if kind == "failed long ago":
            name, content = "failure.txt", noise
        (folder / name).write_bytes(content)
    if kind in ("scored", "badly scored"):  # what run.json says of the last epoch goes before eval_results.json
        record = record | {"scores": {"last": json.loads(text) if kind == "scored" else [score]}}
        text = json.dumps({"eval_accuracy": score / 2})
    if kind not in ("no record", "broken record", "failed", "failed long ago"):
        (folder / "run.json").write_text(json.dumps(record))
    if kind == "broken record":
        (folder / "run.json").write_bytes(noise + b"{")
    if kind == "folder":
        path.mkdir()
    elif kind in ("loop", "dangling"):
        path.symlink_to({"loop": path.name, "dangling": "nowhere"}[kind])
    else:
        content = {"truncated": text[:-3].encode(), "bytes": b"\xff" + noise}.get(kind, text.encode())
        path.write_bytes(content)
    task = record["arguments"].get("task_name") if isinstance(record.get("arguments"), dict) else None
    another = isinstance(task, str) and task.lower() != "rte" and kind != "no record"
    loads_best = isinstance(record.get("arguments"), dict) and record["arguments"].get("load_best_model_at_end")
    if kind == "good" and loads_best:
        return False
    return kind in ("good", "no record", "scored") and not another


@settings(max_examples=150, deadline=None)
@given(
    runs=st.lists(st.tuples(KINDS, st.floats(0, 1), RECORDS, st.binary(max_size=9)), min_size=1, max_size=4),
    name=st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=9),
    form=st.sampled_from(["text", "row", "markdown", "latex", "csv", "json"]),
)
def test_any_files_give_a_right_mean_or_one_clear_error(tmp_path_factory, runs, name, form):
    """Odd records, names, links and formats: the right mean over what is usable, or an error that names every file."""
    root = tmp_path_factory.mktemp("tree") / ("x" + name)
    (root / "1").mkdir(parents=True)
    (root / "extra").mkdir()
    (root / "1" / "notes.txt").write_text("extra")
    usable = [write_odd_run(root, seed, *run) for seed, run in enumerate(runs, start=1)]
    good = [run[1] for run, is_good in zip(runs, usable, strict=True) if is_good]
    flags = ["--published", "--format", form]
    for more in ([], ["--allow_missing"]):
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            status = call(parse_results, root, len(runs), *flags, *more)
        assert status == (0 if good and (more or all(usable)) else 2)
        if status == 0 and form == "json":
            value = next(n for n in json.loads(out.getvalue())["numbers"] if n["task"] == "rte")
            assert value["value"] == pytest.approx(100 * np.mean(good)) and value["n"] == len(good)
            std = None if len(good) == 1 else pytest.approx(100 * np.std(good, ddof=1), abs=1e-9)
            assert value["std"] == std
        elif status == 0 and form == "row":
            row = next(line for line in out.getvalue().splitlines()[1:] if re.search(r" \| \d", line))
            printed = re.findall(r" \| (\d+\.\d)(?: ± (\d+\.\d))?", row)[0]
            expected = (100 * np.mean(good), 100 * np.std(good, ddof=1) if len(good) > 1 else 0)
            assert (float(printed[0]), float(printed[1] or 0)) == pytest.approx(expected, abs=0.051)
        elif status == 2 and any(usable):
            named = re.findall(r"^  .*?/(\d)/rte/\w+\.(?:json|txt): ", err.getvalue(), flags=re.MULTILINE)
            assert named == [str(seed) for seed, is_good in enumerate(usable, start=1) if not is_good]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert parse_results.main(["--status", str(root), str(len(runs)), "--tasks", "rte"]) == 0
    finished = [is_good and run[0] != "no record" for run, is_good in zip(runs, usable, strict=True)]
    finished = sum(finished[0] if run[0] == "link" else done for run, done in zip(runs, finished, strict=True))
    sums = next(line for line in out.getvalue().splitlines() if line.startswith("all "))
    assert re.search(rf" {finished}/0/\d/\d$", sums)


@pytest.mark.parametrize("flags", [["--published"], ["--ddof", "1"], ["--statistic", "median"]])
def test_options_without_effect_on_the_list_of_runs(tmp_path, capsys, flags):
    """They are refused by name."""
    status, _, err = parsed(capsys, tmp_path, 1, "--format", "runs", *flags)
    assert status == 2 and flags[0] in err[0]


def test_rows_without_a_common_task(tmp_path, capsys):
    """There is nothing to average or to compare, and the table says so."""
    write_rows(tmp_path / "a", {"rte": [0.6]})
    write_rows(tmp_path / "b", {"mrpc": [0.7]})
    status, out, _ = parsed(capsys, tmp_path / "a", tmp_path / "b", 1, "--allow_missing")
    assert status == 0 and rows_of(out)[1:3] == [["a", "-", "60.0", "-"], ["b", "70.0", "-", "-"]]
    assert "avg, training and memory cover the tasks that every row has: none" in out


def test_costs_cover_the_tasks_that_every_row_has(tmp_path, capsys):
    """A row with a task more isn't slower for it."""
    write_rows(tmp_path / "a", {"rte": [0.6], "mrpc": [0.9]})
    write_rows(tmp_path / "b", {"rte": [0.7]})
    _, out, _ = parsed(capsys, tmp_path / "a", tmp_path / "b", 1, "--allow_missing")
    assert [row[-2] for row in rows_of(out)[1:3]] == ["0:01:00", "0:01:00"]


@pytest.mark.parametrize("out", ["closed pipe", "full disk"])
def test_an_output_that_takes_nothing(tmp_path, out):
    """A reader that has left ends it quietly; a full disk is one line."""
    write_run(tmp_path / "lora4", 1, "mrpc", 0.75)
    command = [sys.executable, parse_results.__file__, str(tmp_path / "lora4"), "1", "--tasks", "mrpc"]
    if out == "full disk":
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        expected = (1, "parse_results.py: error: OSError: No space left on device\n")
    else:
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
        os.close(writer)
        expected = (0, "")
    assert (done.returncode, done.stderr) == expected


@pytest.mark.parametrize("more", [["--epoch", "best"], ["--published"], ["--format", "json"], ["--metric", "mrpc=f1"]])
def test_options_without_effect_on_the_status_are_refused(tmp_path, capsys, more):
    """Only --tasks goes with --status."""
    status, _, err = parsed(capsys, "--status", tmp_path, 1, *more)
    assert status == 2 and f"not with {more[0]}" in err[0]


def write_own(root: Path, seed: int, task: str, metric: str, value: float) -> None:
    """Write what a run on data of one's own leaves: its record names no task, and its metric."""
    scores = {"metric": f"eval_{metric}", "last": {f"eval_{metric}": value}}
    metrics = {f"eval_{metric}": value, "train_runtime": 60.0}
    write_run(root, seed, task, 0.5, arguments={"task_name": None}, scores=scores, metrics=metrics)


def test_glue_is_not_missed_where_all_data_are_ones_own(tmp_path, capsys):
    """Its tasks are named where one was run, or asked for."""
    write_own(tmp_path / "a", 1, "messages", "accuracy", 0.9)
    missed = "left out of table and average, as no seed has a usable result: "
    assert not any(line.startswith(missed) for line in parsed(capsys, tmp_path)[1])
    assert f"{missed}rte" in parsed(capsys, tmp_path, "--tasks", "messages,rte")[1]
    (tmp_path / "a/1/rte").mkdir()
    (tmp_path / "a/1/rte/eval_results.json").write_text("{}")
    assert f"{missed}rte" in parsed(capsys, tmp_path, "--allow_missing")[1]


def test_data_of_ones_own_is_a_column(tmp_path, capsys):
    """By the folder's name and with the metric of its record; of a mean squared error less is better."""
    for seed, value in enumerate(FIVE, start=1):
        for name, step in (("a", 0.0), ("b", 0.2)):
            write_run(tmp_path / name, seed, "mrpc", value)
            write_own(tmp_path / name, seed, "messages", "accuracy", value - step)
            write_own(tmp_path / name, seed, "prices", "mse", 12 * (value - step))
    status, out, err = parsed(capsys, tmp_path)
    assert (status, err) == (0, [])
    assert out[1].startswith("name | mrpc | messages | prices | avg | adapter")
    # prices: 12 times 0.70 to 0.74; the average is over the shares alone.
    assert out[2].startswith("a | 72.0 ± 1.4 | 72.0 ± 1.4 | 8.640 ± 0.170 | 72.0 ± 1.4 | 663,552 | ")
    assert out[3].startswith("b | 72.0 ± 1.4 | 52.0 ± 1.4 | 6.240 ± 0.170 | 62.0 ± 1.4 | 663,552 | ")
    assert "mean squared errors, the less the better, and no part of avg: prices" in out
    verdicts = {cells[0]: (cells[2], cells[-1]) for cells in tables_of(out)[1]}
    assert verdicts["messages"] == ("-20.0", "a is better") and verdicts["prices"] == ("-2.400", "b is better")
    _, out, _ = said(capsys, parse_results, tmp_path, "--format", "markdown", "--tasks", "prices")
    assert "| b | **6.240 ± 0.170** | - |" in "\n".join(out)
    assert "over 5 seeds" in out[0] and not any("avg covers" in line for line in out)
    _, out, _ = parsed(capsys, tmp_path, "--tasks", "mrpc,messages", "--metric", "messages=accuracy")
    assert out[1].startswith("name | mrpc | messages | avg | ") and "there, but not part of this table: prices" in out
    status, _, err = parsed(capsys, tmp_path, "--tasks", "letters")
    assert status == 2 and "wnli, messages, prices, each once" in err[0]
    _, out, _ = parsed(capsys, "--status", tmp_path / "a", "5")
    assert out[1].split(" | ") == ["name", "mrpc   ", "messages", "prices ", "all"] and "finished" in out[-1]
