"""tables/published.py, and the authors' averages from their own rows."""

import csv
import json

import pytest
from helpers import AS_ROWS, results_of, write_rows

import parse_results
from glue_peft.errors import UsageError
from glue_peft.tables.equivalence import parse_margin
from glue_peft.tables.published import (
    PUBLISHED_FILE,
    published_comparison,
    published_of,
    read_published,
    same_method,
)
from glue_peft.tasks import METRICS, PAPER_TASKS

MODELS = ("roberta-base", "roberta-large", "deberta-v3-base")


ROWS = [row for model in MODELS for row in read_published(model)]


RANDLORA = [row for row in ROWS if row.paper == "RandLoRA"]


def test_every_line_of_the_file_is_read():
    """200 numbers; what the file says of protocol is among the words that the code knows, and each has a source."""
    lines = list(csv.DictReader(PUBLISHED_FILE.read_text(encoding="utf-8").splitlines()))
    assert len(lines) == sum(len(row.scores) for row in ROWS) == 200
    more = ({"avg"}, {"mnli", "qqp"}, {"mnli", "qqp", "avg"})
    assert all(
        {*row.scores} - {*PAPER_TASKS} in ({}.keys(), *more) and {*row.scores} >= {*PAPER_TASKS} for row in ROWS
    )
    assert all(line["source"] for line in lines)
    assert {row.statistic for row in ROWS} == {"mean", "median", "single"}
    assert {row.deviation for row in ROWS} <= {"population", "sample", "?"}
    assert {row.deviation for row in RANDLORA} == {"population"}  # its scripts call numpy.std
    assert {row.epoch for row in ROWS} == {"last", "best", "?"}
    assert {score.metric for row in ROWS for task, score in row.scores.items() if task != "avg"} <= set(METRICS)
    assert {score.mnli_start for row in ROWS for score in row.scores.values()} == {"yes", "no", "?", ""}
    assert all(row.protocol.startswith(f"arXiv {row.arxiv}, Table ") for row in ROWS)


@pytest.mark.parametrize(
    ("paper", "model", "method", "starts"),
    [
        ("VeRA", "roberta-base", "vera", ""),  # its section 4.1: no start from MNLI
        ("FourierFT", "roberta-large", "fourierft", ""),  # its code
        ("VB-LoRA", "roberta-base", "vb-lora (all linear)", ""),  # its scripts
        ("LoRA", "roberta-base", "lora", "mrpc rte stsb"),  # its section 5.1
        ("LoRA", "roberta-large", "full", "mrpc rte stsb"),  # the RoBERTa paper's numbers
        ("AdaLoRA", "deberta-v3-base", "adalora", ""),  # its scripts
    ],
)
def test_which_tasks_start_from_mnli(paper, model, method, starts):
    """As the paper or its code says."""
    row = next(row for row in ROWS if (row.paper, row.model, row.method) == (paper, model, method))
    assert [task for task in PAPER_TASKS if row.scores[task].mnli_start == "yes"] == starts.split()
    assert {score.mnli_start for task, score in row.scores.items() if task != "avg"} <= {"yes", "no"}


@pytest.mark.parametrize(
    ("paper", "model", "method", "rank", "mnli", "qqp"),
    [
        ("LoRA", "roberta-base", "lora", "8", (87.5, 0.3), (90.8, 0.1)),
        ("LoRA", "roberta-large", "lora", "8", (90.6, 0.2), (91.6, 0.1)),
        ("LoRA", "roberta-large", "lora (no MNLI start)", "8", (90.6, 0.2), (91.6, 0.2)),
        ("AdaLoRA", "deberta-v3-base", "adalora", "1", (90.68, None), (91.78, None)),
        ("AdaLoRA", "deberta-v3-base", "lora", "2", (90.34, None), (91.61, None)),
    ],
)
def test_mnli_and_qqp(paper, model, method, rank, mnli, qqp):
    """LoRA's Table 2; AdaLoRA's Table 1, MNLI the mean of its two sets."""
    row = next(row for row in ROWS if (row.paper, row.model, row.method, row.rank) == (paper, model, method, rank))
    assert [(row.scores[task].value, row.scores[task].spread) for task in ("mnli", "qqp")] == [mnli, qqp]


@pytest.mark.parametrize("row", RANDLORA, ids=lambda row: f"{row.model} {row.method}")
def test_the_authors_averages(tmp_path, capsys, row):
    """A row of the RandLoRA paper fed as one seed gives the average that is printed there, to 0.1."""
    root = write_rows(tmp_path / "a", {task: [row.scores[task].value / 100] for task in PAPER_TASKS})
    assert parse_results.main([str(root), "1", "--stsb_metric", "pearson", *AS_ROWS]) == 0
    cells = capsys.readouterr().out.splitlines()[2].split(" | ")
    assert [float(cell.split(" ± ")[0]) for cell in cells[1:7]] == [row.scores[task].value for task in PAPER_TASKS]
    # In floating point 82.5 - 82.4 is just above 0.1.
    assert abs(float(cells[7].split(" ± ")[0]) - row.scores["avg"].value) < 0.1 + 1e-9


def test_there_are_six_such_rows():
    """Three methods on two models, so that the test above has something to test."""
    assert len(RANDLORA) == 6


@pytest.mark.parametrize(
    ("published", "ours", "same"),
    [
        ("lora", "lora", True),
        ("lora (no MNLI start)", "lora", True),
        ("vera (all linear)", "vera", True),
        ("vb-lora (query,value)", "vblora", True),
        ("randlora", "lora", False),
        ("lora", "", False),
    ],
)
def test_methods(published, ours, same):
    """PEFT's and the papers' spellings meet; a suffix in brackets is a variant."""
    row = next(row for row in ROWS if row.method == published)
    assert same_method(row, ours) is same


def randlora(tmp_path, values: dict[str, list[float]], **changes):
    """Return our RandLoRA row of rank 64 on RoBERTa-base, and the paper's."""
    row_is = {"arguments": {"adapter_name": "randlora"}, "adapter_config": {"peft_type": "RANDLORA", "r": 64}}
    root = write_rows(tmp_path / "randlora64", values, **(row_is | changes))
    results = results_of(root, len(next(iter(values.values()))), "--stsb_metric", "pearson")
    (theirs,) = published_of(results.rows[0], results.tasks)
    return results, theirs


def verdicts(row, theirs, results, statistic="mean", margin="2sd") -> dict[str, list[str]]:
    """Return the cells of each column's verdict, by column."""
    table = published_comparison(row, theirs, results, statistic, parse_margin(margin))
    return {task: cells for task, *cells in table.rows}


def notes(row, theirs, results, statistic="mean") -> str:
    """Return what stands under the verdicts, as one text."""
    return "\n".join(published_comparison(row, theirs, results, statistic, parse_margin("2sd")).notes)


def test_a_verdict_by_hand(tmp_path):
    """88.0 ± 1.5 of 5, a population's, for MRPC, and ours 1 above it, ± 1 of 3; of one column Holm changes nothing."""
    results, theirs = randlora(tmp_path, {"mrpc": [(89 + step) / 100 for step in (-1, 0, 1)]})
    # Squared standard errors 1 / 3 and (1.5^2 x 5 / 4) / 5 + rounding, 0.1^2 / 12 x (1 + 1 / 5) = 0.5635: together
    # 0.947^2, on 0.8968^2 / (0.3333^2 / 2 + 0.5635^2 / 4) = 5.96 degrees of freedom, whose 95 % quantile is 1.946.
    (cells,) = verdicts(results.rows[0], theirs, results).values()
    assert cells[:4] == ["3", "+1.0", "-0.8 to 2.8", "3.0"]
    assert float(cells[4]) == float(cells[5]) == pytest.approx(0.3320, abs=2e-3)
    assert cells[6] == "equivalent"
    (cells,) = verdicts(results.rows[0], theirs, results, margin="2.5").values()
    assert (cells[3], cells[6]) == ("2.5", "inconclusive")
    assert "seeds 3 (theirs 5)" in notes(results.rows[0], theirs, results)


def test_the_same_protocol(tmp_path):
    """Last epoch, mean of five, rank 64 on every linear and Pearson: no difference is named, and all are judged."""
    theirs = next(row for row in RANDLORA if row.method == "randlora" and row.model == "roberta-base")
    steps = (-0.004, -0.002, 0, 0.002, 0.004)
    scores = {task: [theirs.scores[task].value / 100 + step for step in steps] for task in PAPER_TASKS}
    results, found = randlora(tmp_path, scores)
    assert found == theirs
    said = verdicts(results.rows[0], found, results)
    assert [(task, cells[1]) for task, cells in said.items()] == [
        *((task, "+0.0") for task in PAPER_TASKS), ("avg", "+0.1"),
    ]  # fmt: skip
    assert said["cola"][3] == "4.2" and said["cola"][6] == "equivalent"
    assert notes(results.rows[0], found, results).splitlines() == [
        "of 7 columns 7 equivalent, 0 differs, 0 inconclusive",
        "no difference found in protocol; learning rate, epochs, batch, length and alpha are not compared",
    ]


def test_differences_in_protocol(tmp_path):
    """Each is named, ours first, and one seed has no spread to judge by."""
    results, theirs = randlora(
        tmp_path,
        {"mrpc": [0.88], "stsb": [0.90]},
        arguments={"adapter_name": "randlora", "init_adapter_from": "mnli"},
        adapter_config={"peft_type": "RANDLORA", "r": 32, "target_modules": ["query", "value"]},
    )
    results = results_of(results.rows[0].root, 1, "--epoch", "best")
    said = verdicts(results.rows[0], theirs, results, "median")
    assert [cells[-1] for cells in said.values()] == ["no verdict: one seed of ours"] * 2
    assert notes(results.rows[0], theirs, results, "median") == (
        "protocol differs: rank 32 (theirs 64), layers query value (theirs dense "
        "key query value), statistic median (theirs mean), epoch best (theirs last), seeds 1 (theirs 5), STS-B "
        "combined score (theirs Pearson), mrpc starts from an adapter (theirs otherwise), stsb starts from an "
        "adapter (theirs otherwise); learning rate, epochs, batch, length and alpha are not compared"
    )


def test_a_deviation_of_unknown_kind(tmp_path):
    """LoRA's paper doesn't say which it prints: both are tried, and that is said; the average has none."""
    root = write_rows(tmp_path / "lora8", {task: [0.90, 0.91, 0.92] for task in PAPER_TASKS})
    results = results_of(root, 3, "--stsb_metric", "pearson")
    fourierft = next(row for row in ROWS if row.paper == "FourierFT" and row.model == "roberta-base")
    said = verdicts(results.rows[0], fourierft, results, "median")
    assert said["avg"][-1] == "no verdict: no spread printed" and set(said["avg"][2:6]) == {"-"}
    assert said["cola"][-1] == "differs"
    assert "both were tried, a verdict is what both say" in notes(results.rows[0], fourierft, results, "median")
    assert fourierft.protocol.startswith("arXiv 2405.03003, Table 2: median ± std (which kind: ?) of 5, best epoch")
    assert RANDLORA[0].protocol.startswith("arXiv 2502.00987, Table 4: mean ± population std of 5, last epoch")


def test_a_part_of_the_data_and_variants_of_a_method_are_named(tmp_path):
    """Runs on a few rows, or of DoRA, which PEFT calls LORA, are not the paper's."""
    adapter = {"peft_type": "LORA", "r": 8, "use_dora": True, "init_lora_weights": "pissa"}
    arguments = {"adapter_config": "dora.json", "max_train_samples": 100, "selection_fraction": 0.1}
    root = write_rows(tmp_path / "dora8", {"mrpc": [0.88, 0.89]}, arguments=arguments, adapter_config=adapter)
    results = results_of(root, 2)
    lora = next(row for row in ROWS if row.paper == "LoRA" and row.model == "roberta-base" and row.method == "lora")
    said = notes(results.rows[0], lora, results)
    assert ", selection_fraction 0.1, max_train_samples 100, use_dora, pissa; learning rate" in said


def test_an_average_of_other_metrics_is_not_compared(tmp_path):
    """Ours has STS-B's combined score where the paper has Pearson, or MRPC's F1."""
    for flags, compared in (((), False), (("--stsb_metric", "pearson"), True)):
        root = write_rows(tmp_path / "lora4", {task: [0.8, 0.81] for task in PAPER_TASKS})
        results = results_of(root, 2, *flags)
        assert ("avg" in verdicts(results.rows[0], RANDLORA[0], results)) is compared


def test_starts_that_are_not_known(tmp_path):
    """Where it isn't said whether a paper starts from MNLI, an MNLI start of ours is named and none isn't."""
    for start, said in ((None, False), ("x/mnli", True)):
        root = write_rows(tmp_path / "lora", {"mrpc": [0.7, 0.8]}, arguments={"init_adapter_from": start})
        results = results_of(root, 2)
        theirs = next(row for row in ROWS if row.paper == "FourierFT" and row.method == "lora (no MNLI start)")
        text = notes(results.rows[0], theirs, results)
        assert ("mrpc starts from an adapter (theirs isn't known)" in text) is said


def test_the_average_is_compared_over_the_same_tasks(tmp_path):
    """The papers' averages are over six tasks: another set's is left alone."""
    results, theirs = randlora(tmp_path, {"mrpc": [0.88, 0.89]})
    assert theirs.average(["mrpc"]) is None
    assert theirs.average(list(reversed(PAPER_TASKS))).value == 82.6
    assert "avg" not in verdicts(results.rows[0], theirs, results)


def test_published_rows_beside_ours(tmp_path, capsys):
    """--published prints the papers' rows of the same model as they stand, and our method against each of its own."""
    theirs = [row for row in ROWS if row.model == "roberta-base"]
    root = write_rows(tmp_path / "lora4", {"mrpc": [0.87, 0.88], "rte": [0.70, 0.72]})
    assert parse_results.main([str(root), "2", "--published", *AS_ROWS]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.removesuffix(r" \\").split(" | ") for line in lines if line.endswith(r"\\")]
    rows = rows[: 2 + len(theirs)]
    assert {len(cells) for cells in rows} == {len(rows[0])}
    assert ["LoRA: lora r 8, roberta-base", "89.7 ± 0.7", "86.6 ± 0.7", "-", "0.3 M"] == rows[6][:5]
    assert ["LoRA: full, roberta-base", "90.2", "78.7", "-", "125 M"] == rows[5][:5]
    against = [line.partition(":")[0] for line in lines if line.startswith("lora4 against ")]
    assert against == ["lora4 against RandLoRA", "lora4 against LoRA", "lora4 against FourierFT"]


def test_published_numbers_in_json(tmp_path, capsys):
    """The papers' numbers keep their own statistic, epoch and n."""
    root = write_rows(tmp_path / "lora4", {"mrpc": [0.87, 0.88]})
    assert parse_results.main([str(root), "2", "--published", "--format", "json"]) == 0
    numbers = json.loads(capsys.readouterr().out)["numbers"]
    (lora,) = [n for n in numbers if n["kind"] == "published" and n["name"] == "LoRA: lora r 8"]
    assert lora == {
        "kind": "published", "name": "LoRA: lora r 8", "task": "mrpc", "metric": "accuracy", "n": 5, "value": 89.7,
        "std": 0.7, "deviation": "?", "statistic": "median", "epoch": "best", "mnli_start": True,
        "adapter_parameters": 300_000,
    }  # fmt: skip


def test_verdicts_in_json(tmp_path, capsys):
    """Each is a record with its interval, margin and p-values."""
    row_is = {"arguments": {"adapter_name": "randlora"}, "adapter_config": {"peft_type": "RANDLORA", "r": 64}}
    root = write_rows(tmp_path / "randlora64", {"mrpc": [0.88, 0.89, 0.90]}, **row_is)
    assert parse_results.main([str(root), "3", "--published", "--margin", "2.5", "--format", "json"]) == 0
    numbers = json.loads(capsys.readouterr().out)["numbers"]
    (found,) = [number for number in numbers if number["kind"] == "against published"]
    assert (found["name"], found["task"]) == ("randlora64 against RandLoRA: randlora r 64", "mrpc")
    assert found["low"] < found["value"] < found["high"] and found["value"] == pytest.approx(1)
    assert (found["margin"], found["verdict"]) == (2.5, "inconclusive") and found["p"] == found["holm_p"]
    assert found["seeds_needed"] is None or found["seeds_needed"] > 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"base_model": {"name": "models/MiniLM"}},
            "published: nothing beside a, as there is no row of lora on MiniLM",
        ),
        ({"adapter_config": {"peft_type": "BOFT"}, "arguments": {"adapter_config": "boft.json"}}, "no row of boft on"),
        (
            {"arguments": {"adapter_name": "none"}, "adapter_config": None},
            "no verdict: no spread printed",
        ),
    ],
)
def test_rows_without_a_counterpart(tmp_path, capsys, changes, said):
    """Another model, another method and full fine-tuning each say what there is beside them."""
    root = write_rows(tmp_path / "a", {"mrpc": [0.87, 0.88]}, **changes)
    assert parse_results.main([str(root), "2", "--published"]) == 0
    assert said in capsys.readouterr().out


def test_without_run_json_the_model_is_unknown(tmp_path, capsys):
    """Nothing is guessed from the folder's name."""
    root = write_rows(tmp_path / "lora4", {"mrpc": [0.87]})
    (root / "1" / "mrpc" / "run.json").unlink()
    assert parse_results.main([str(root), "1", "--published", *AS_ROWS]) == 0
    out = capsys.readouterr().out
    assert "published: nothing beside lora4, as no run.json says what it is" in out and "arXiv" not in out


def test_published_rows_of_some_methods(tmp_path, capsys):
    """Named after --published, or all of them where a folder or nothing follows."""
    root = write_rows(tmp_path / "lora4", {"mrpc": [0.87, 0.88]})
    found = {}
    for methods in ([], ["all"], ["randlora,vera"], ["vb-lora"]):
        assert parse_results.main([str(root), "2", "--published", *methods, "--format", "json"]) == 0
        numbers = json.loads(capsys.readouterr().out)["numbers"]
        found[" ".join(methods)] = {n["name"].partition(": ")[2] for n in numbers if n["kind"] == "published"}
    assert found[""] == found["all"] > found["randlora,vera"] | found["vb-lora"]
    assert {name.split()[0] for name in found["randlora,vera"]} == {"randlora", "vera"}
    for argv in (["--published", root, "2"], [root, "--published", "2"]):
        assert parse_results.main([*map(str, argv), "--format", "json"]) == 0
        assert "LoRA: lora r 8" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--published dora: allowed are `all` or some of .*randlora"):
        parse_results.main([str(root), "2", "--published", "dora"])
