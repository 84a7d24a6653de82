"""What the figures share: colours and markers that everybody can tell apart, and how their files are written.

Needs no torch, and matplotlib only when a figure is written.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from glue_peft.errors import UsageError
from glue_peft.run_folder import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design" (2008), without yellow, which is too light for marks on white. Dark and light
# ones alternate, so that neighbours differ in greyscale too. Seven colours and ten markers repeat together after 70.
COLOURS = ("#0072B2", "#E69F00", "#000000", "#56B4E9", "#D55E00", "#009E73", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
LINES = ("-", "--", "-.", ":")
SUFFIXES = (".png", ".pdf", ".svg")
WIDTH = 9.0  # inches; at README's 900 pixels a point of text is then 1.4 pixels


def plain(name: str) -> str:
    """Return a name that matplotlib prints as it is: no formulas, and bytes that are no UTF-8 as escapes."""
    return name.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def check_figure_file(out: Path) -> None:
    """Raise UsageError for a path that no figure can be written to."""
    if out.suffix not in SUFFIXES or out.is_dir() or not out.absolute().parent.is_dir():
        raise UsageError(f"OUT must be a file {', '.join(SUFFIXES)} in an existing folder, not {str(out)!r}")


def write_figure(figure: "Figure", out: Path) -> None:
    """Write the figure atomically; the same content gives the same bytes. Raises UsageError."""
    import matplotlib

    dates = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    try:
        with matplotlib.rc_context({"svg.hashsalt": "figure"}), atomic_write(out) as temporary:
            figure.savefig(temporary, format=out.suffix[1:], dpi=160, metadata=dates.get(out.suffix))
    except OSError as error:
        raise UsageError(f"OUT {str(out)!r} can't be written: {error.strerror}") from error
