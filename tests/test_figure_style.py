"""tables/figure_style.py: colours that differ, names as they are, files that are complete or not there."""

import colorsys
import errno
import os

import pytest
from matplotlib.figure import Figure

from glue_peft.errors import UsageError
from glue_peft.tables.figure_style import COLOURS, LINES, MARKERS, SUFFIXES, check_figure_file, plain, write_figure


def lightness(colour: str) -> float:
    """Return a colour's lightness, from 0 to 1."""
    return colorsys.rgb_to_hls(*(int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)))[1]


def test_every_colour_meets_every_marker():
    """The numbers of colours and markers have no common divisor: 70 rows look different, and none is near white."""
    looks = {(COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]) for index in range(70)}
    assert len(looks) == 70 and len(set(LINES)) == len(LINES)
    assert max(map(lightness, COLOURS)) < 0.8


def test_plain_names():
    """No dollar starts a formula, and bytes that are no UTF-8 can be drawn."""
    assert plain("a$x$\udcff") == r"a\$x\$\udcff" and plain("größe") == "größe"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_figure_has_the_same_bytes(tmp_path, suffix):
    """Files carry neither date nor random ids."""
    contents = []
    for name in "ab":
        figure = Figure()
        figure.subplots().plot([1, 2], [3, 4])
        write_figure(figure, tmp_path / f"{name}{suffix}")
        contents.append((tmp_path / f"{name}{suffix}").read_bytes())
    assert contents[0] == contents[1] and len(contents[0]) > 1000


def test_a_file_that_cannot_be_written_is_not_begun(tmp_path, monkeypatch):
    """A full disk is one line, and an older figure stays."""

    def full(*_: object, **__: object) -> None:
        """Fail as on a full disk."""
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "a.png"
    out.write_bytes(b"older")
    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(UsageError, match=f"can't be written: {os.strerror(errno.ENOSPC)}"):
        write_figure(Figure(), out)
    assert out.read_bytes() == b"older" and list(tmp_path.iterdir()) == [out]


def test_wrong_files(tmp_path):
    """Suffix and folder are checked before anything is read."""
    (tmp_path / "folder.png").mkdir()
    for name in ("a.gif", "a", "folder.png", "none/a.png"):
        with pytest.raises(UsageError, match=r"OUT must be a file \.png, \.pdf, \.svg in an existing folder"):
            check_figure_file(tmp_path / name)
    check_figure_file(tmp_path / "a.svg")
