"""tables/page.py: what the page says, and that a browser shows it, on a phone too."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers import FIVE, said, shifted, write_rows, write_run
from sweep_helpers import end_search, tuned

import parse_results

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "br", "hr", "img", "link"}


class Reader(HTMLParser):
    """Notes ids, links and tags of a page, and whether every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.open += [tag] * (tag not in VOID)
        self.handle_startendtag(tag, attributes)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            self.ids += [value] * (name == "id")
            self.links += [value] * (name in ("href", "xlink:href", "src"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(capsys, *argv: object) -> str:
    """Return the page of a command line."""
    status, out, err = said(capsys, parse_results, *argv, "--format", "html")
    assert (status, err) == (0, [])
    return "\n".join(out)


@pytest.fixture
def rows(tmp_path) -> Path:
    """Two rows, one named as HTML's own, one clearly better on MRPC; a search, and a collapsed run."""
    for name, steps in (("a<b>&c", [0.0] * 5), ("vera256", [0.04, 0.05, 0.06, 0.05, 0.05])):
        mrpc, command = shifted(steps), ["--task_name", "mrpc", "--text_columns", "<script>alert(1)</script>"]
        write_rows(tmp_path / "rows" / name, {"mrpc": mrpc, "cola": FIVE}, command=command, git_commit="abc1234")
    write_run(tmp_path / "rows" / "vera256", 2, "cola", 0.0)
    for run in tuned(tmp_path / "rows", TASKS="mrpc", ADAPTERS="vera").search:
        end_search(run, 0.6)
    return tmp_path / "rows"


def test_everything_is_on_the_page(rows, capsys):
    """Well formed, without a script or anything from elsewhere; each section, figure and command is there."""
    text = page_of(capsys, rows)
    reader = Reader()
    reader.feed(text)
    assert reader.open == [] and len(set(reader.ids)) == len(reader.ids)
    assert "script" not in reader.tags and {link[0] for link in reader.links} == {"#"}
    assert {link[1:] for link in reader.links} <= set(reader.ids)
    assert re.findall("<h2[^>]*>(.*?)</h2>", text) == [
        "Scores", "Figures", "Comparisons", "Tuning", "Health", "Protocol", "Costs", "Runs",
    ]  # fmt: skip
    labels = re.findall('aria-label="(.*?)"', text)
    assert labels == [
        "MRPC of each row", "CoLA of each row", "average and adapter parameters", "average and training, minutes",
        "average and peak memory, GB", "legend", "search of learning rates on MRPC",
    ]  # fmt: skip
    assert text.count("<details>") == 20 and "commit abc1234" in text
    assert "MRPC, seed 1: 70.0</summary><pre>python run_glue.py --task_name mrpc --text_columns" in text
    assert "<li>collapsed, counted: " in text and "a&lt;b&gt;&amp;c" in text


def test_ties_are_shown_as_ties(rows, capsys):
    """The better row of MRPC is bold, as the others are shown to be worse; on CoLA nothing is shown."""
    cells = re.findall("<td[^>]*>(.*?)</td>", page_of(capsys, rows, "--unequal_budgets").partition("</table>")[0])
    found = {cell for cell in cells if "<b>" in cell or "a tie" in cell}
    assert "<b>77.0 ± 1.8</b>" in found and '72.0 ± 1.4 <span title="a tie">=</span>' in found
    assert not any(cell.startswith("72.0") and "<b>" in cell for cell in cells)
    assert "a tie" not in page_of(capsys, rows / "vera256")  # one row has nothing to tie with


def test_a_row_that_was_not_compared_with_the_best_is_no_tie(tmp_path, capsys):
    """Each row is compared with the first, or with --all_pairs with every one."""
    for name, step in (("a", 0.0), ("b", 0.2), ("c", -0.1)):
        write_rows(tmp_path / name, {"mrpc": shifted([step] * 5), "cola": FIVE})
    text = page_of(capsys, tmp_path).partition("</table>")[0]
    assert "<b>92.0" not in text and text.count("a tie") == 3  # CoLA, alike in all rows
    text = page_of(capsys, tmp_path, "--all_pairs").partition("</table>")[0]
    assert "<b>92.0" in text and text.count("a tie") == 3


def test_a_page_without_records_has_what_is_known(tmp_path, capsys):
    """No commands, costs or sizes; nothing fails for it."""
    root = write_rows(tmp_path / "a", {"rte": [0.6, 0.7]})
    for path in root.glob("*/*/run.json"):
        path.unlink()
    text = page_of(capsys, root)
    assert text.count("no run.json tells its command") == 2 and text.count("<svg") == 2


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_the_page(rows, tmp_path, capsys, width):
    """No console message; every figure has a size and lines in it; nothing is wider than the window."""
    measure = """
      const page = document.querySelector("iframe").contentDocument, wide = [];
      const room = page.documentElement.clientWidth;
      for (const element of page.body.querySelectorAll("*:not(svg *):not(.wide *)"))
        if (element.getBoundingClientRect().right > room + 0.5) wide.push(element.tagName);
      const figures = [...page.querySelectorAll("svg")].map(svg => {
        const box = svg.getBoundingClientRect(), inner = svg.querySelector("g").getBBox();
        return [box.width, box.height, inner.width, inner.height, svg.querySelectorAll("path").length]; });
      document.body.innerHTML = "<pre>" + JSON.stringify({figures, wide, page: page.documentElement.scrollWidth, room,
        details: page.querySelectorAll("details").length}) + "</pre>";
    """
    text = html.escape(page_of(capsys, rows, "--published"), quote=True)
    (tmp_path / "frame.html").write_text(
        f'<!DOCTYPE html><body style="margin:0"><iframe style="border:0;width:{width}px;height:900px" srcdoc="{text}">'
        f"</iframe><script>onload = () => {{{measure}}}</script></body>",
        encoding="utf-8",
    )
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "CONSOLE" not in done.stderr, done.stderr
    found = json.loads(html.unescape(re.search("<pre>(.*?)</pre>", done.stdout, flags=re.DOTALL)[1]))
    assert width - 20 < found["room"] == found["page"] <= width and found["wide"] == [] and found["details"] == 20
    assert len(found["figures"]) == 7
    for shown_width, height, *inner, paths in found["figures"]:
        assert 200 < shown_width <= width and height > 30 and min(inner) > 20 and paths > 3
