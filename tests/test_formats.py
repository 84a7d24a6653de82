"""tables/formats.py: lines for a terminal, Markdown with its marks escaped, few notes, numbers in their units."""

import re

import pytest
from helpers import FIVE, said, shifted, write_rows

import parse_results
from glue_peft.tables.formats import Table, as_text, cost_cell, p_text, percent, shortened


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("train_seconds", 36_061.6, "10:01:02"),
        ("train_seconds", 59.6, "0:01:00"),
        ("peak_bytes", 5.25e9, "5.25 GB"),
        ("stored_bytes", 40_000, "0.04 MB"),
        ("adapter_parameters", 101_376.0, "101,376"),
    ],
)
def test_units(name, value, text):
    """Hours, minutes and seconds; powers of ten."""
    assert cost_cell(name, value) == text


def test_percent_and_p():
    """A value that rounds to zero has no sign, and a p below 0.0001 no digits."""
    assert [percent(value) for value in (0.8765, -0.0002, -0.123, 1)] == ["87.6", "0.0", "-12.3", "100.0"]
    assert [p_text(p) for p in (None, 0.00009, 0.0001, 1)] == ["-", "<0.0001", "0.0001", "1.0000"]


@pytest.mark.parametrize("form", ["markdown", "latex"])
def test_bold_only_where_the_difference_holds_up(tmp_path, capsys, form):
    """mrpc differs clearly, rte's best is within the noise, and cola's is equal."""
    a = {"mrpc": FIVE, "rte": FIVE, "cola": FIVE}
    b = {"mrpc": shifted([0.04, 0.05, 0.06, 0.05, 0.05]), "rte": shifted([0.15, -0.14, 0.13, -0.12, 0.03])}
    write_rows(tmp_path / "a", a)
    write_rows(tmp_path / "b", b | {"cola": FIVE})
    _, out, _ = said(capsys, parse_results, tmp_path / "a", tmp_path / "b", 5, "--format", form)
    bold = {"markdown": r"\*\*(\d+\.\d)[^*]*\*\*", "latex": r"\\textbf\{(\d+\.\d)[^}]*\}"}[form]
    assert re.findall(bold, "\n".join(out)) == ["77.0"]


def test_markdown(tmp_path, capsys):
    """Caption, table with as many cells in each row, notes as a list; bars in a name are escaped."""
    write_rows(tmp_path / "a|b", {"rte": [0.5, 0.61]})
    _, out, _ = said(capsys, parse_results, tmp_path / "a|b", 2, "--format", "markdown")
    assert out[1] == "" and out[3].startswith("| --- | ---: |")
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in out[2:5]} == {9}
    assert out[4].startswith(r"| a\|b | 55.5 ± 7.8 | 55.5 ± 7.8 | 663,552 | ")
    assert out[6].startswith("- left out of table and average") and out[7].startswith("- health: ")


def table_of(n_rows: int, notes: list[str]) -> Table:
    """Return a table of some rows with these notes."""
    return Table("caption", ["name", "mrpc", "verdict"], [["lora4", "81.0 ± 2.5", "better"]] * n_rows, notes=notes)


def test_text_is_aligned(monkeypatch):
    """Words on the left, numbers on the right, a rule above published rows; nothing but spaces between columns."""
    monkeypatch.delenv("COLUMNS", raising=False)
    rows = [["lora4", "1", "81.0 ± 2.5", "a is better"], ["randlora32", "12,345", "9.7", "-"], ["VeRA", "-", "7", "-"]]
    table = Table("caption", ["name", "adapter", "avg", "verdict"], rows, rules=[2], notes=["note"])
    lines = [
        "caption",
        "name        adapter         avg  verdict",
        "----------  -------  ----------  -----------",
        "lora4             1  81.0 ± 2.5  a is better",
        "randlora32   12,345         9.7  -",
        "----------  -------  ----------  -----------",
        "VeRA              -           7  -",
        "note",
    ]
    assert as_text([table, table], []).splitlines() == [*lines, "", *lines]


def test_columns_beyond_the_terminals_width_go_on_below(monkeypatch):
    """Each block begins with the names; a column wider than the terminal stands in one of its own."""
    monkeypatch.setenv("COLUMNS", "24")
    table = Table("caption", ["name", "mrpc", "cola", "verdict"], [["lora4", "81.0 ± 2.5", "4.1", "x" * 30]])
    assert as_text([table], []).splitlines() == [
        "caption",
        "name         mrpc  cola",
        "-----  ----------  ----",
        "lora4  81.0 ± 2.5   4.1",
        "name   verdict",
        "-----  " + "-" * 30,
        "lora4  " + "x" * 30,
    ]


def test_notes_are_never_longer_than_the_table():
    """Of each kind the first, with a count; what is left out is announced."""
    collapsed = [f"health: collapsed, counted: {i}" for i in range(9)]
    tuned = ["tuned: a", "tuned: b"]
    assert shortened(table_of(1, ["a", "b", "c"])).notes == ["a", "b", "c"]
    assert shortened(table_of(9, collapsed + tuned)).notes == collapsed + tuned
    assert shortened(table_of(1, collapsed + ["health: failed: x"] + tuned)).notes == [
        "health: collapsed, counted: 0 and 8 more",
        "health: failed: x",
        "--verbose prints all 12 notes",
    ]
    assert len(shortened(table_of(1, list("abcdef"))).notes) == 3


def test_verbose_prints_what_is_left_out(tmp_path, capsys):
    """In text and Markdown; where everything is printed anyway it has no effect and is refused."""
    write_rows(tmp_path / "a", {"cola": [0.0, 0.0, 0.0, 0.5]})
    for form, mark in (("text", ""), ("markdown", "- ")):
        command = (tmp_path / "a", 4, "--format", form)
        brief, full = (said(capsys, parse_results, *command, *more)[1] for more in ([], ["--verbose"]))
        (folded,) = (line for line in brief if "collapsed, counted" in line)
        assert folded.startswith(mark) and folded.endswith(" and 2 more")
        assert sum("collapsed, counted" in line for line in full) == 3 and len(full) == len(brief) + 1
    assert said(capsys, parse_results, tmp_path / "a", 4, "--format", "json", "--verbose")[0] == 2
