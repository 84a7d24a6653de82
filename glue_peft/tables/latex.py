r"""Tables as LaTeX: a tabular for \input, or a whole document."""

import re
from typing import TYPE_CHECKING

from glue_peft.tasks import title

if TYPE_CHECKING:
    from glue_peft.tables.formats import Table

ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "±": r"$\pm$", "<": "$<$", ">": "$>$", "|": r"\textbar{}",
    '"': "''", "×": r"$\times$", "÷": r"$\div$", "[": "{[}", "*": "{*}",  # \\ would read a [ or *
}  # fmt: skip


COMMANDS = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi "
    "omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
)
GREEK = {
    letter: rf"$\{command}$"
    for letter, command in zip("αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ", COMMANDS.split(), strict=True)
}


def escaped(text: str) -> str:
    """Escape what LaTeX reads as its own; letters that its standard fonts may lack become their code points.

    Greek letters, as in alpha = 16, become mathematical ones.
    """
    chars = (
        ESCAPES.get(char)
        or GREEK.get(char)
        or (char if char.isascii() or "À" <= char <= "ÿ" else f"U+{ord(char):04X}")
        for char in text.replace("--", "-\0-")
    )
    return "".join(chars).replace("\0", "{}")  # two hyphens would become a dash


def spelled(table: "Table") -> tuple[list[str], list[list[str]]]:
    """Return header and rows with tasks as papers spell them."""
    names = {"name": "Method", "avg": "Avg.", "task": "Task"}
    header = [names.get(name, title(name)) for name in table.header]
    if table.header[0] != "task":
        return header, table.rows
    return header, [[names.get(task, title(task)), *cells] for task, *cells in table.rows]


def tabular(table: "Table") -> list[str]:
    """Return the lines of a table's tabular, which needs booktabs."""
    header, rows = spelled(table)
    lines = [rf"\begin{{tabular}}{{{''.join(table.sides)}}}", r"\toprule"]
    lines += [" & ".join(map(escaped, header)) + r" \\", r"\midrule"]
    for i, cells in enumerate(rows):
        texts = [re.sub(r"^-(?=\d)|(?<=to )-(?=\d)|(?<=/)-(?=\d)", "$-$", escaped(text)) for text in cells]
        texts = [rf"\textbf{{{text}}}" if (i, j) in table.bold else text for j, text in enumerate(texts)]
        lines += [r"\midrule"] * (i in table.rules) + [" & ".join(texts) + r" \\"]
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def fragment(table: "Table", comments: list[str], caption: str | None = None) -> str:
    r"""Return a table for \input, in a table environment if it has a caption, below lines of comments."""
    lines = tabular(table)
    if caption is not None:
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{escaped(caption)}}}", *lines, r"\end{table}"]
    return "\n".join([*(f"% {line}" for line in comments), *lines]) + "\n"


def document(tables: list["Table"], caption: str | None = None) -> str:
    """Return a LaTeX document that needs booktabs and graphicx, each table as wide as the page."""
    lines = [
        r"\documentclass{article}",
        r"\usepackage[T1]{fontenc}",
        r"\usepackage{booktabs,graphicx}",
        r"\begin{document}",
    ]
    for number, table in enumerate(tables):
        text = caption if caption is not None and number == 0 else table.caption
        lines += [r"\begin{table}[!ht]", r"\centering", rf"\caption{{{escaped(text)}}}"]
        lines += [r"\resizebox{\textwidth}{!}{%", *tabular(table), "}", r"\end{table}"]
        lines += [rf"\noindent {escaped(note)}\par" for note in table.notes]
    return "\n".join([*lines, r"\end{document}"]) + "\n"
