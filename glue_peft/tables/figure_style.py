"""What the figures share: colours and markers that everybody can tell apart, and how their files are written.

Needs no torch, and matplotlib only when a figure is written.
"""

import argparse
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glue_peft.errors import UsageError
from glue_peft.run_folder import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Formatter

# Okabe and Ito, "Color Universal Design" (2008), without yellow, which is too light for marks on white. Dark and light
# ones alternate, so that neighbours differ in greyscale too. Seven colours and ten markers repeat together after 70.
COLOURS = ("#0072B2", "#E69F00", "#000000", "#56B4E9", "#D55E00", "#009E73", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
LINES = ("-", "--", "-.", ":")
SUFFIXES = (".png", ".pdf", ".svg")
WIDTH = 9.0  # inches; at README's 900 pixels a point of text is then 1.4 pixels
LEAST_WIDTH, MOST_WIDTH = 1.5, 30.0  # inches
LETTER = 0.6 / 72  # mean width of a letter in inches, for a size of one point


@dataclass(frozen=True)
class Sheet:
    """How large a figure is: its width in inches as a paper prints it, or as large as its panels need."""

    width: float | None = None
    titled: bool = True

    @property
    def text(self) -> int:
        """Return the size of labels in points; no text is smaller."""
        return 7 if self.width else 8

    @property
    def heading(self) -> int:
        """Return the size of titles and legends in points."""
        return 7 if self.width else 9

    def columns(self, n_panels: int) -> int:
        """Return how many panels stand side by side."""
        return min(n_panels, 4, int(self.width / 1.5) or 1) if self.width else min(n_panels, 4)

    def panels(self, n_panels: int) -> tuple["Figure", list["Axes"]]:
        """Return a figure with so many panels."""
        from matplotlib.figure import Figure

        columns = self.columns(n_panels)
        lines = math.ceil(n_panels / columns)
        width = self.width or max(5.0, 2.6 * columns)
        height = 0.75 * width / columns + 0.45 if self.width else 2.4
        figure = Figure(figsize=(width, min(height, 2.4) * lines + 0.5), layout="constrained")
        return figure, [figure.add_subplot(lines, columns, number + 1) for number in range(n_panels)]

    def finish(self, axes: "Axes") -> None:
        """Give a panel its ticks' size and its grid."""
        axes.tick_params(labelsize=self.text)
        axes.xaxis.get_offset_text().set_fontsize(self.text)
        axes.yaxis.get_offset_text().set_fontsize(self.text)
        axes.grid(axis="y", linewidth=0.4, alpha=0.5)
        axes.set_axisbelow(True)

    def logarithmic(
        self, axes: "Axes", low: float, high: float, words: "Formatter | Callable[[float, float], str]"
    ) -> None:
        """Give the horizontal axis a logarithmic scale from low to high, with as many ticks as have room for words."""
        from matplotlib.ticker import FixedLocator, NullLocator

        axes.set_xscale("log")
        axes.set_xlim(low, high)
        subplot, figure = axes.get_subplotspec(), axes.get_figure(root=True)
        columns = subplot.get_gridspec().ncols if subplot else 1
        inches = (figure.get_figwidth() if figure else WIDTH) / columns - 0.6  # without the vertical axis' words
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1,) if math.log10(high / low) > 2 else (1, 2, 5)
        ticks = [tick for decade in decades for step in steps if low <= (tick := step * 10.0**decade) <= high]
        apart = (high / low) ** (5 * LETTER * self.text / max(inches, 0.1))  # five letters
        shown: list[float] = []
        for tick in ticks:
            shown += [tick] if not shown or tick >= shown[-1] * apart else []
        axes.xaxis.set_major_locator(FixedLocator(shown))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(words)

    def title(self, figure: "Figure", text: str) -> None:
        """Give a figure its title, in as many lines as it needs."""
        text = self.wrapped(text, figure.get_figwidth())
        figure.suptitle(text, fontsize=self.heading)
        figure.set_figheight(figure.get_figheight() + (text.count("\n") + 1) * 1.3 * self.heading / 72)

    def wrapped(self, text: str, width: float) -> str:
        """Return a text of the titles' size in lines of no more than some inches."""
        return textwrap.fill(text, int(width / LETTER / self.heading))


def add_figure_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options on a figure's size and title."""
    parser.add_argument(
        "--width", type=float, metavar="INCHES", help="as a paper prints it; letters have 7 points then, and no less"
    )
    parser.add_argument("--no_title", action="store_true", help="leave out the title, for a paper's caption to say it")


def sheet_of(args: argparse.Namespace) -> Sheet:
    """Return the sheet that the options ask for; raises UsageError."""
    if args.width is not None and not LEAST_WIDTH <= args.width <= MOST_WIDTH:
        raise UsageError(f"--width {args.width:g}: allowed are {LEAST_WIDTH:g} to {MOST_WIDTH:g} inches")
    return Sheet(args.width, not args.no_title)


def legend_below(figure: "Figure", handles: list[Any], sheet: Sheet, below: bool = True) -> None:
    """Draw the legend under the panels, or above them, in as many columns as the figure's width has room for."""
    mark = 4 / 72 * sheet.heading
    for handle in handles:
        handle.set_label(sheet.wrapped(str(handle.get_label()), figure.get_figwidth() - 2 * mark))
    longest = max(len(line) for handle in handles for line in str(handle.get_label()).split("\n"))
    fitting = max(1, min(4, len(handles), int(figure.get_figwidth() / (sheet.heading * LETTER * longest + mark))))
    lines = sum(str(handle.get_label()).count("\n") + 1 for handle in handles) / fitting
    figure.set_figheight(figure.get_figheight() + math.ceil(lines) * 1.6 * sheet.heading / 72)
    figure.legend(
        handles=handles,
        loc="outside lower center" if below else "outside upper center",
        ncols=fitting,
        fontsize=sheet.heading,
        frameon=False,
        handletextpad=0.4,
        columnspacing=1.2,
        borderpad=0.2,
    )


def power(value: float, _: float = 0) -> str:
    """Return a number of one digit as 1e-4: in 10^-4 the exponent is smaller than text may be."""
    digit, exponent = f"{value:.0e}".split("e")
    return digit if int(exponent) == 0 else f"{digit}e{int(exponent)}"


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
