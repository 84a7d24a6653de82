"""tables/formats.py: LaTeX that compiles, Markdown with its marks escaped, numbers in their units."""

import re
import shutil
import subprocess

import pytest
from helpers import FIVE, said, shifted, write_rows

import parse_results
from glue_peft.tables.formats import cost_cell, p_text, percent


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


def test_latex_is_a_document(tmp_path, capsys):
    """Preamble, balanced groups and environments, one cell count a row, and no character that LaTeX trips over."""
    for name in ("a_b&c%d#e$f{g}h~i^j\\k", "größe", "表", "[x]", "*×÷"):
        write_rows(tmp_path / name, {"rte": [0.5, 0.61], "cola": [-0.1, 0.0]})
    roots = sorted(tmp_path.iterdir())
    _, out, _ = said(capsys, parse_results, *roots, 2, "--format", "latex", "--published")
    text = "\n".join(out)
    assert text.startswith("\\documentclass{article}\n") and text.endswith("\\end{document}")
    assert "\\usepackage{booktabs,graphicx}" in text
    plain = re.sub(r"\\[\\{}$&#%_]", "", text)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    begun, ended = (re.findall(rf"\\{word}\{{(\w+)\}}", text) for word in ("begin", "end"))
    assert sorted(begun) == sorted(ended)
    tabulars = re.findall(r"\\begin\{tabular\}\{(l?r*)\}\n\\toprule\n(.*?)\\bottomrule", text, flags=re.DOTALL)
    assert len(tabulars) == 1 + 4 + 5 * 3  # scores, comparisons with the first, and LoRA's three published rows
    for columns, body in tabulars:
        lines = [line for line in body.splitlines() if line != r"\midrule"]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(columns) - 1}
        assert all(line.endswith(r" \\") for line in lines)
    assert r"a\_b\&c\%d\#e\$f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k & " in text
    assert "größe & " in text and "U+8868 & " in text
    assert not re.search(r"\\\\\s*[\[*]", text)  # a line's end takes these as its own argument
    assert "$-$5.0 $\\pm$ 7.1" in text
    assert not re.search(r"(?<!\\)[#%_~^]", re.sub(r"(?m)%$", "", text))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(tmp_path, capsys):
    """pdflatex makes a page of it as it stands, whatever the rows are called, without an error or a cut line."""
    names = ("lora4", "a_b&c%d#e$f{g}h~i^j\\k", "größe ×÷|<>\"'`", "表", "[x]", "*y", "--z", "\udcff")
    for name in names:
        write_rows(tmp_path / "rows" / name, {"rte": [0.5, 0.61, 0.62], "cola": [-0.1, 0.0, 0.1]})
    roots = [tmp_path / "rows" / name for name in names]
    status, out, _ = said(capsys, parse_results, *roots, 3, "--format", "latex", "--published")
    assert status == 0
    (tmp_path / "a.tex").write_text("\n".join(out), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    assert (tmp_path / "a.pdf").stat().st_size > 10_000
    assert "Missing character" not in (tmp_path / "a.log").read_text(errors="replace")


def test_latex_minus_signs_in_numbers_alone(tmp_path, capsys):
    """A verdict has the row's name as it is."""
    write_rows(tmp_path / "a", {"cola": [-value for value in FIVE]})
    write_rows(tmp_path / "b_lr2e-4", {"cola": shifted([0.04, 0.05, 0.06, 0.05, 0.05])})
    _, out, _ = said(capsys, parse_results, tmp_path / "a", tmp_path / "b_lr2e-4", 5, "--format", "latex")
    text = "\n".join(out)
    assert "2e$-$4" not in text and "$-$72.0" in text


def test_markdown(tmp_path, capsys):
    """Caption, table with as many cells in each row, notes as a list; bars in a name are escaped."""
    write_rows(tmp_path / "a|b", {"rte": [0.5, 0.61]})
    _, out, _ = said(capsys, parse_results, tmp_path / "a|b", 2, "--format", "markdown")
    assert out[1] == "" and out[3].startswith("| --- | ---: |")
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in out[2:5]} == {9}
    assert out[4].startswith(r"| a\|b | 55.5 ± 7.8 | 55.5 ± 7.8 | 663,552 | ")
    assert out[6].startswith("- left out of table and average") and out[7].startswith("- health: ")
