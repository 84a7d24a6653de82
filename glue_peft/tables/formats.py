"""Tables and numbers as text, Markdown, LaTeX, CSV and JSON."""

import csv
import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from glue_peft.tables import latex
from glue_peft.tasks import LOWER_IS_BETTER

OF_WORDS = ("name", "task", "model", "verdict")  # headers of columns that aren't numbers


@dataclass
class Table:
    """Text cells; `bold` holds (row, column), and a rule goes above each row in `rules`."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    bold: set[tuple[int, int]] = field(default_factory=set)
    rules: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def sides(self) -> list[str]:
        """Return each column's side, l or r: numbers stand on the right."""
        words = (*OF_WORDS, "adapter") if "model" in self.header else OF_WORDS  # elsewhere adapter is a size
        return ["l" if name in words else "r" for name in self.header]


def shortened(table: Table) -> Table:
    """Return the table with no more notes than it has lines, caption and header included.

    Of notes of one kind the first stays, with the number of the others; if these are too many still, the last ones go.
    """
    most = len(table.rows) + 2
    if len(table.notes) <= most:
        return table
    kinds: dict[str, list[str]] = {}
    for note in table.notes:
        words = 2 if note.startswith("health: ") else 1
        kinds.setdefault(": ".join(note.split(": ")[:words]), []).append(note)
    notes = [first + f" and {len(more)} more" * bool(more) for first, *more in kinds.values()]
    said = f"--verbose prints all {len(table.notes)} notes"
    return replace(table, notes=[*notes[: most - 1], said])


def percent(fraction: float, metric: str = "") -> str:
    """Return a fraction in percent with one decimal, and never as -0.0; a mean squared error has three."""
    decimals = 3 if metric in LOWER_IS_BETTER else 1
    return f"{round(100 * fraction, decimals) + 0.0:.{decimals}f}"


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
    """Return lines aligned for a terminal; columns that don't fit into one of its lines go on below them."""
    width = shutil.get_terminal_size((sys.maxsize, 0)).columns  # a file or a pipe has room for every line
    blocks = []
    for table in tables:
        widths = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]
        lines = [line for columns in fitting(widths, width) for line in aligned(table, widths, columns)]
        blocks.append("\n".join([table.caption, *lines, *table.notes]) + "\n")
    return "\n".join(blocks)


def fitting(widths: list[int], width: int) -> list[list[int]]:
    """Return the columns of each block that fits into lines of a width, the first column in all of them."""
    blocks: list[list[int]] = [[0]]
    for column in range(1, len(widths)):
        if len(blocks[-1]) > 1 and sum(widths[i] + 2 for i in [*blocks[-1], column]) - 2 > width:
            blocks.append([0])
        blocks[-1].append(column)
    return blocks


def aligned(table: Table, widths: list[int], columns: list[int]) -> list[str]:
    """Return some of a table's columns as lines, with a rule under the header and above published rows."""
    rule = "  ".join("-" * widths[i] for i in columns)
    lines = []
    for number, cells in enumerate([table.header, *table.rows]):
        sides = (cells[i].ljust(widths[i]) if table.sides[i] == "l" else cells[i].rjust(widths[i]) for i in columns)
        lines += [rule] * (number - 1 in [0, *table.rules]) + ["  ".join(sides).rstrip()]
    return lines


def as_rows(tables: list[Table], records: list[dict[str, Any]]) -> str:
    r"""Return the RandLoRA authors' one-line form: each row ends in \\, ready for LaTeX once bars are ampersands."""
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
        rule = ["---" if side == "l" else "---:" for side in table.sides]
        lines = [f"| {' | '.join(cells)} |" for cells in [[escaped(text) for text in table.header], rule, *rows]]
        notes = [f"- {escaped(note)}" for note in table.notes]
        blocks.append("\n".join([escaped(table.caption), "", *lines, *([""] if notes else []), *notes]) + "\n")
    return "\n".join(blocks)


def as_latex(tables: list[Table], records: list[dict[str, Any]], caption: str | None = None) -> str:
    r"""Return the first table for \input; its protocol and notes, and the other tables, are comments."""
    first, *others = tables
    comments = [first.caption, *first.notes, *(line for line in as_text(others, []).splitlines() if line)]
    return latex.fragment(first, comments, caption)


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


SHORTENED = ("text", "row", "markdown")  # without --verbose
FORMATS: dict[str, Callable[[list[Table], list[dict[str, Any]]], str]] = {
    "text": as_text,
    "row": as_rows,
    "markdown": as_markdown,
    "latex": as_latex,
    "csv": as_csv,
    "json": as_json,
    "runs": as_csv,
}
