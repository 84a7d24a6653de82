"""One HTML page of all that a table's runs say: parse_results.py --format html.

The page is a single file without scripts: tables, figures as SVG, comparisons, health, protocol, costs, and each run's
command. It is as wide as a phone where it has to be, and prints.
"""

import html
import io
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from glue_peft.run_folder import plural
from glue_peft.tables.comparisons import Family, best_and_ties
from glue_peft.tables.costs import COSTS, run_cost, seed_costs
from glue_peft.tables.figure_style import Sheet
from glue_peft.tables.formats import Table, cost_cell, duration, percent
from glue_peft.tables.published import PublishedRow
from glue_peft.tables.read import Run, number, part, printable
from glue_peft.tables.results import Results, Row
from glue_peft.tables.score_figures import COST_AXES, draw_legend, draw_single, has_cost
from glue_peft.tables.search import Searches
from glue_peft.tables.search_figure import draw_search
from glue_peft.tasks import title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHEET = Sheet(3.4, titled=False)  # inches: 326 pixels, so that a phone shows a figure in its own size
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 90rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a;
       background: #fff; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.2rem; font-size: 1.25rem; border-bottom: 1px solid #bbb; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
nav a { display: inline-block; margin-right: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th.l, td.l { text-align: left; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; white-space: normal; min-width: 5rem;
  max-width: 38vw; }
thead th { border-bottom: 2px solid #333; } tr.rule td { border-top: 1px solid #333; }
.small, li { font-size: .9rem; }
ul { padding-left: 1.2rem; }
.figures { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; align-items: flex-end; }
figure { margin: 0; } figure svg { display: block; max-width: 100%; height: auto; }
details { margin: .15rem 0; } summary { cursor: pointer; }
pre { white-space: pre-wrap; background: #f5f5f5; padding: .6rem; font-size: .8rem; margin: .3rem 0; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; } nav { display: none; }
  table { font-size: 6.5pt; } th, td { padding: .1rem .25rem; } .wide { overflow: visible; }
  th:first-child, td:first-child { max-width: 8rem; }
  figure, tr { break-inside: avoid; } details::details-content { content-visibility: visible; }
}
"""


def page(
    results: Results,
    tables: Sequence[Table],
    family: Family,
    searches: Searches,
    published: Mapping[str, list[PublishedRow]],
    statistic: str,
) -> str:
    """Return the page; `tables` are those of the other formats, the scores first and then the comparisons."""
    scores, *others = tables
    health = [note.removeprefix("health: ") for note in scores.notes if note.startswith("health: ")]
    remarks = [note for note in scores.notes if not note.startswith(("health: ", "published: "))]
    protocols = [note for note in scores.notes if note.startswith("published: ")]
    sections = {
        "Scores": score_section(scores, results, family, statistic, remarks),
        "Figures": figures(results, published),
        "Comparisons": "".join(map(comparison, others)),
        "Tuning": tuning(searches, results.tasks),
        "Health": listed(health),
        "Protocol": listed([*scores.caption.split("; "), *protocols]),
        "Costs": table_html(cost_table(results, searches)),
        "Runs": "".join(runs_of(row, results) for row in results.rows),
    }
    sections = {name: text for name, text in sections.items() if text}
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    body = "".join(f'<h2 id="{name.lower()}">{name}</h2>\n{text}\n' for name, text in sections.items())
    names = " and ".join(filter(None, [", ".join(row.name for row in results.rows[:-1]), results.rows[-1].name]))
    heading = html.escape(f"{names} on {', '.join(map(title, results.tasks))}")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{heading}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{heading}</h1>\n<nav>{links}</nav>\n{body}</body>\n</html>\n"
    )


def score_section(table: Table, results: Results, family: Family, statistic: str, remarks: list[str]) -> str:
    """Return the scores, with the best of each column in bold, or several marked as ties."""
    best, ties = best_and_ties(results, statistic, family)
    explained = (
        "<b>Bold</b>: shown to be better than all other rows. =: a tie, the best value and those not shown to be "
        "worse. Other values are shown to be worse than the best, or were not compared with it."
    )
    return (
        f'<p class="small">{html.escape(table.caption)}</p>'
        + table_html(table, best, ties)
        + f'<p class="small">{explained}</p>' * bool(best or ties)
        + listed(remarks)
    )


def table_html(table: Table, bold: Iterable[tuple[int, int]] = (), ties: Iterable[tuple[int, int]] = ()) -> str:
    """Return a table in a box that scrolls by itself where it is too wide."""
    names = {"name": "", "avg": "average"}

    def cells(tag: str, texts: list[str]) -> str:
        """Return a row's cells, of texts that are HTML."""
        sides = (' class="l"' if side == "l" else "" for side in table.sides)
        return "".join(f"<{tag}{side}>{text}</{tag}>" for side, text in zip(sides, texts, strict=True))

    lines = []
    for i, row in enumerate(table.rows):
        first = title(row[0]) if table.header[0] == "task" else row[0]
        texts = [html.escape(text) for text in (first, *row[1:])]
        texts = [f"<b>{text}</b>" if (i, j) in bold else text for j, text in enumerate(texts)]
        texts = [f'{text} <span title="a tie">=</span>' if (i, j) in ties else text for j, text in enumerate(texts)]
        rule = ' class="rule"' * (i in table.rules)
        lines.append(f"<tr{rule}>{cells('td', texts)}</tr>")
    header = cells("th", [html.escape(names.get(name, title(name))) for name in table.header])
    return f'<div class="wide"><table><thead><tr>{header}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def listed(lines: list[str]) -> str:
    """Return a list; nothing without lines."""
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def comparison(table: Table) -> str:
    """Return a further table below what it is of."""
    name, explained, *_ = [*re.split(": (?=mean|median|difference)", table.caption, maxsplit=1), ""]
    return (
        f'<h3>{html.escape(name)}</h3><p class="small">{html.escape(explained)}</p>'
        + table_html(table)
        + listed(table.notes)
    )


def figures(results: Results, published: Mapping[str, list[PublishedRow]]) -> str:
    """Return a figure a task, one for each cost that is known, and the legend."""
    costs = [cost for cost in COST_AXES if has_cost(results, cost)]
    drawn = {f"{title(task)} of each row": draw_single(task, results, published, SHEET) for task in results.tasks}
    drawn |= {f"average and {COST_AXES[cost][0]}": draw_single(cost, results, published, SHEET) for cost in costs}
    return in_a_row(drawn | {"legend": draw_legend(results, published, SHEET)})


def tuning(searches: Searches, tasks: list[str]) -> str:
    """Return a figure of the search of learning rates for each task that has one."""
    searched = [task for task in tasks if any(task in of_row for of_row in searches.values())]
    return in_a_row(
        {f"search of learning rates on {title(task)}": draw_search(searches, [task], SHEET) for task in searched}
    )


def in_a_row(drawn: Mapping[str, "Figure"]) -> str:
    """Return figures side by side as far as there is room; nothing without any."""
    svgs = (f"<figure>{svg(figure, label)}</figure>" for label, figure in drawn.items())
    return f'<div class="figures">{"".join(svgs)}</div>' if drawn else ""


def svg(figure: "Figure", label: str) -> str:
    """Return a figure as an element of the page, whose ids begin with its label and meet no other figure's."""
    import matplotlib

    stream, start = io.StringIO(), re.sub(r"\W+", "-", label) + "-"
    with matplotlib.rc_context({"svg.hashsalt": "page", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{start}', text)
    text = re.sub(r'(url\(|xlink:href=")#', rf"\1#{start}", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


def cost_table(results: Results, searches: Searches) -> Table:
    """Return what each row has cost: of a seed as in the table, of all its runs, and its search's runs."""
    rows = []
    for row in results.rows:
        runs = [run for task in results.tasks for run in row.used(task).values()]
        costs = seed_costs(row, results.common_tasks)
        seconds = [value for run in runs if (value := run_cost(run, "train_seconds")) is not None]
        searched = sum(map(len, searches.get(row.name, {}).values()))
        cells = [row.name, *(cost_cell(name, costs[name]) for name in COSTS)]
        rows.append([*cells, str(len(runs)), duration(sum(seconds)) if seconds else "-", str(searched)])
    header = ["name", *(cost.header for cost in COSTS.values()), "runs", "training of all", "runs of the search"]
    return Table("", header, rows)


def runs_of(row: Row, results: Results) -> str:
    """Return each run of a row with its command, folded."""
    runs = [(task, seed, run) for task in results.tasks for seed, run in row.used(task).items()]
    folded = "".join(folded_run(task, seed, run, results.metrics[task]) for task, seed, run in runs)
    return f"<h3>{html.escape(row.name)}: {plural(len(runs), 'run')}</h3>{folded}"


def folded_run(task: str, seed: int, run: Run, metric: str) -> str:
    """Return a run's command, its folder, and what its record says of where it was made."""
    record = run.record or {}
    command, seconds = record.get("command"), number(record.get("seconds"))
    words = ["python", "run_glue.py", *map(str, command)] if isinstance(command, list) else []
    text = printable(shlex.join(words)) if words else "no run.json tells its command"
    versions = part(record, "versions")
    facts = {
        "folder": str(run.folder),
        "commit": record.get("git_commit"),
        "device": record.get("device"),
        "time": None if seconds is None else duration(seconds),
        **{name: versions.get(name) for name in ("torch", "transformers", "peft")},
    }
    said = "; ".join(f"{name} {printable(str(value))}" for name, value in facts.items() if value)
    score = "/".join(percent(value, metric) for value in run.parts)
    return (
        f"<details><summary>{html.escape(title(task))}, seed {seed}: {score}</summary>"
        f'<pre>{html.escape(text)}</pre><p class="small">{html.escape(said)}</p></details>'
    )
