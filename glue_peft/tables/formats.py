"""Tables and numbers as text, Markdown, LaTeX, CSV and JSON."""

import csv
import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LATEX_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "±": r"$\pm$", "<": "$<$", ">": "$>$", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "×": r"$\times$", "÷": r"$\div$", "[": "{[}", "*": "{*}",  # \\ would read a [ or *
}  # fmt: skip


@dataclass
class Table:
    """Text cells; `bold` holds (row, column), and a rule goes above each row in `rules`."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    bold: set[tuple[int, int]] = field(default_factory=set)
    rules: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def percent(fraction: float) -> str:
    """Return a fraction in percent with one decimal, and never as -0.0."""
    return f"{round(100 * fraction, 1) + 0.0:.1f}"


def p_text(p: float | None) -> str:
    """Return a p-value with as many digits as are worth reading."""
    if p is None:
        return "-"
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def duration(seconds: float) -> str:
    """Return hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def cost_cell(name: str, value: float | None) -> str:
    """Return one of costs.COSTS in its unit."""
    if value is None:
        return "-"
    if name == "train_seconds":
        return duration(value)
    if name.endswith("_bytes"):
        return f"{value / 1e6:,.2f} MB" if value < 1e9 else f"{value / 1e9:,.2f} GB"
    return f"{value:,.0f}"


def as_text(tables: list[Table], records: list[dict[str, Any]]) -> str:
    r"""Return plain lines; each row ends in \\, ready for LaTeX once the bars are ampersands."""
    blocks = []
    for table in tables:
        rows = [" | ".join(cells) + r" \\" for cells in [table.header, *table.rows]]
        blocks.append("\n".join([table.caption, *rows, *table.notes]) + "\n")
    return "\n".join(blocks)


def as_markdown(tables: list[Table], records: list[dict[str, Any]]) -> str:
    """Return pipe tables with the caption above and the notes below."""

    def escaped(text: str) -> str:
        """Return the text without Markdown's marks."""
        return re.sub(r"([\\|*_`<>\[\]#])", r"\\\1", text)

    blocks = []
    for table in tables:
        rows = [
            [f"**{escaped(text)}**" if (i, j) in table.bold else escaped(text) for j, text in enumerate(cells)]
            for i, cells in enumerate(table.rows)
        ]
        rule = ["---"] + ["---:"] * (len(table.header) - 1)
        lines = [f"| {' | '.join(cells)} |" for cells in [[escaped(text) for text in table.header], rule, *rows]]
        notes = [f"- {escaped(note)}" for note in table.notes]
        blocks.append("\n".join([escaped(table.caption), "", *lines, *([""] if notes else []), *notes]) + "\n")
    return "\n".join(blocks)


def as_latex(tables: list[Table], records: list[dict[str, Any]]) -> str:
    """Return a LaTeX document that needs booktabs and graphicx, each table as wide as the page."""
    lines = [
        r"\documentclass{article}",
        r"\usepackage[T1]{fontenc}",
        r"\usepackage{booktabs,graphicx}",
        r"\begin{document}",
    ]
    for table in tables:
        lines += [
            r"\begin{table}[!ht]",
            r"\centering",
            rf"\caption{{{latex(table.caption)}}}",
            r"\resizebox{\textwidth}{!}{%",
        ]
        lines += [rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}", r"\toprule"]
        lines += [" & ".join(map(latex, table.header)) + r" \\", r"\midrule"]
        for i, cells in enumerate(table.rows):
            texts = [re.sub(r"^-(?=\d)|(?<=to )-(?=\d)|(?<=/)-(?=\d)", "$-$", latex(text)) for text in cells]
            texts = [rf"\textbf{{{text}}}" if (i, j) in table.bold else text for j, text in enumerate(texts)]
            lines += [r"\midrule"] * (i in table.rules) + [" & ".join(texts) + r" \\"]
        lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table}"]
        lines += [rf"\noindent {latex(note)}\par" for note in table.notes]
    return "\n".join([*lines, r"\end{document}"]) + "\n"


def latex(text: str) -> str:
    """Escape what LaTeX reads as its own; letters that its standard fonts may lack become their code points."""
    escaped = (
        LATEX_ESCAPES.get(char) or (char if char.isascii() or "À" <= char <= "ÿ" else f"U+{ord(char):04X}")
        for char in text.replace("--", "-\0-")
    )
    return "".join(escaped).replace("\0", "{}")  # two hyphens would become a dash


def as_csv(tables: list[Table], records: list[dict[str, Any]]) -> str:
    """Return one line a number with its protocol; captions and notes go to stderr, as CSV has no place for them."""
    for table in tables:
        print("\n".join([table.caption, *table.notes]), file=sys.stderr)
    stream = io.StringIO()
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(stream, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


def as_json(tables: list[Table], records: list[dict[str, Any]]) -> str:
    """Return one object: the captions, the notes under the tables, and a record for each number."""
    notes = [note for table in tables for note in table.notes]
    captions = [table.caption for table in tables]
    return json.dumps({"captions": captions, "notes": notes, "numbers": records}, indent=2, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[list[Table], list[dict[str, Any]]], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "latex": as_latex,
    "csv": as_csv,
    "json": as_json,
    "runs": as_csv,
}
