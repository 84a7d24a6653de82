"""tables/latex.py: what LaTeX takes as it stands."""

import re
import shutil
import subprocess

import pytest
from helpers import FIVE, said, shifted, write_rows

import parse_results
from glue_peft.tables.latex import escaped


def test_a_tabular_for_input(tmp_path, capsys):
    """Nothing but comments above it; tasks as papers spell them, the protocol and the comparisons as comments."""
    write_rows(tmp_path / "lora_4", {"stsb": [0.5, 0.61], "cola": [-0.1, 0.0]})
    write_rows(tmp_path / "b", {"stsb": [0.7, 0.8], "cola": [0.1, 0.2]})
    command = (tmp_path / "lora_4", tmp_path / "b", 2, "--format", "latex")
    _, out, _ = said(capsys, parse_results, *command)
    comments = [line for line in out if line.startswith("% ")]
    assert comments[0].startswith("% mean ± sample std over 2 seeds")
    assert sum("b minus lora_4" in line for line in comments) == 1
    assert out[: len(comments)] == comments
    lines = out[len(comments) :]
    assert lines[0] == r"\begin{tabular}{lrrrrrrrr}" and lines[-1] == r"\end{tabular}"
    assert lines[2].startswith("Method & CoLA & STS-B & Avg. & adapter & ")
    assert lines[4].startswith(r"lora\_4 & -5.0".replace("-5", "$-$5"))
    _, out, _ = said(capsys, parse_results, *command, "--caption", "Ours, 100 %")
    assert [line for line in out if not line.startswith("% ")] == [
        r"\begin{table}", r"\centering", r"\caption{Ours, 100 \%}", *lines, r"\end{table}",
    ]  # fmt: skip
    for flags in (["--caption", "x"], ["--document"]):
        status, _, err = said(capsys, parse_results, tmp_path / "b", 2, *flags)
        assert status == 2 and f"{flags[0]} goes with --format latex" in err[0]


def test_latex_is_a_document(tmp_path, capsys):
    """Preamble, balanced groups and environments, one cell count a row, and no character that LaTeX trips over."""
    for name in ("a_b&c%d#e$f{g}h~i^j\\k", "größe", "表", "[x]", "*×÷"):
        write_rows(tmp_path / name, {"rte": [0.5, 0.61], "cola": [-0.1, 0.0]})
    roots = sorted(tmp_path.iterdir())
    _, out, _ = said(capsys, parse_results, *roots, 2, "--format", "latex", "--document", "--published")
    text = "\n".join(out)
    assert text.startswith("\\documentclass{article}\n") and text.endswith("\\end{document}")
    assert "\\usepackage{booktabs,graphicx}" in text
    plain = re.sub(r"\\[\\{}$&#%_]", "", text)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    begun, ended = (re.findall(rf"\\{word}\{{(\w+)\}}", text) for word in ("begin", "end"))
    assert sorted(begun) == sorted(ended)
    tabulars = re.findall(r"\\begin\{tabular\}\{(lr*l?)\}\n\\toprule\n(.*?)\\bottomrule", text, flags=re.DOTALL)
    assert len(tabulars) == 1 + 4 + 5 * 3  # scores, comparisons with the first, and LoRA's three published rows
    for columns, body in tabulars:
        lines = [line for line in body.splitlines() if line != r"\midrule"]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(columns) - 1}
        assert all(line.endswith(r" \\") for line in lines)
    assert r"a\_b\&c\%d\#e\$f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k & " in text
    assert "größe & " in text and "U+8868 & " in text
    assert escaped('α=16, "Ω"') == r"$\alpha$=16, ''$\Omega$''"
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
    status, out, _ = said(capsys, parse_results, *roots, 3, "--format", "latex", "--document", "--published")
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
    _, out, _ = said(
        capsys, parse_results, tmp_path / "a", tmp_path / "b_lr2e-4", 5, "--format", "latex", "--document"
    )
    text = "\n".join(out)
    assert "2e$-$4" not in text and "$-$72.0" in text
