"""docs/recipes.md, made from the recipes: `python -m glue_peft.tables.recipe_page > docs/recipes.md`."""

import csv
import os
import re
import sys
from pathlib import Path

from glue_peft.grid import REPOSITORY, range_of, read_recipe
from glue_peft.recipe import Header, devices_and_batch, read_header
from glue_peft.tables.published import PublishedRow, read_published
from glue_peft.tables.published_seeds import published_runs
from glue_peft.tables.reproduce import shown
from glue_peft.tasks import TASKS

FIELDS_FILE = Path(__file__).resolve().parent / "recipe_fields.tsv"
ORDER = "randlora randlora_paper lora lora_scripts vera fourierft vblora unilora unilora_peft adalora".split()
FOREWORD = """# Papers' recipes

A recipe runs a published GLUE experiment as it was run, with the paper's seeds ([how](sweeps.md#papers-recipes)):

```bash
RECIPE=fourierft RESULTS=fourierft bash train_all.sh
```

With `DRY_RUN=1` before it this only prints the commands. Afterwards `parse_results.py --reproduce` says of each score
whether it is [the paper's](tables.md#a-paper-reproduced). There is one section a recipe: what it runs, what is
uncertain or known to differ from the paper, what it costs, and the source of every value. Of RandLoRA only
`randlora_paper` may be called reproduced: [the protocol](protocol.md#differences-from-the-randlora-release) says what
separates the default grid from it. A batch such as 8x16 is 16 rows on each of 8 devices. Steps are optimizer steps
over all seeds.

No GLUE values were found in the text of PiSSA, HiRA, ABBA, GoRA, SVFT, RoSA and LoRA-One, and of LoRA-XS only the grid
that was searched: they have no recipe.

This page is written, from the files of `recipes/`, by

```bash
python -m glue_peft.tables.recipe_page > docs/recipes.md
```
"""


def main() -> int:
    """Print the page."""
    print("\n".join(page_lines()))
    return 0


def page_lines() -> list[str]:
    """Return the page's lines."""
    lines = FOREWORD.splitlines()
    paths = (REPOSITORY / "recipes").glob("*.tsv")
    names = [path.stem for path in paths if read_header(path).about]  # the others are this project's own
    for name in sorted(names, key=place):
        lines += ["", f"## {name}", "", *section(name)]
    return lines


def place(name: str) -> tuple[int, str]:
    """Return where a recipe stands on the page; one that isn't in ORDER comes last."""
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def section(name: str) -> list[str]:
    """Return what is said of a recipe: what it is, doubts, cost, commands, values, fields, published numbers."""
    path = REPOSITORY / "recipes" / f"{name}.tsv"
    header, rows = read_header(path), read_recipe(str(path))
    stated = {key: " (not stated by the paper)" if key in header.not_stated else "" for key in ("seeds", "epoch")}
    lines = [f"{sentence(header.about)}", ""]
    lines += [f"- Known to differ from the paper: {text}." for text in header.differs]
    lines += [f"- Uncertain: {text}." for text in header.uncertain]
    seeds = f"Seed{'s' * (n_seeds(header) > 1)} {header.seeds.replace(' ', ', ')}{stated['seeds']}"
    lines += [
        f"- {seeds}; {header.statistic} of the {header.epoch} epoch{stated['epoch']}.",
        f"- Cost: {cost(rows, header)}.",
        *["", "```bash"],
        f"RECIPE={name} RESULTS={name} bash train_all.sh",
        *[f"python parse_results.py --reproduce {name} {name}"] * bool(header.published or header.published_seeds),
        *["```", ""],
        *values_table(rows),
        *["", "<details><summary>Every field of the adapters' configs</summary>", ""],
        *fields_table(name),
        *["", "</details>"],
    ]
    return lines + published_lines(rows, header)


def sentence(text: str) -> str:
    """Return a text as a sentence."""
    return f"{text[:1].upper()}{text[1:]}."


def n_seeds(header: Header) -> int:
    """Return the number of a recipe's seeds."""
    return sum(len(range_of(item) or []) for item in header.seeds.split())


def cost(rows: list[dict[str, str]], header: Header) -> str:
    """Return a recipe's runs and optimizer steps."""
    seeds = n_seeds(header)
    steps: dict[str, int] = {}
    for row in rows:
        devices, batch = devices_and_batch(row["batch"])
        for task in row["tasks"].split(","):
            of_task = -(-TASKS[task].train_rows // (devices * batch)) * int(row["epochs"])
            steps[row["model"]] = steps.get(row["model"], 0) + of_task * seeds
    runs = sum(len(row["tasks"].split(",")) for row in rows) * seeds
    by_model = ", ".join(f"{count:,} steps of {shown(model)}" for model, count in steps.items())
    return f"{runs} runs, {by_model}"


def values_table(rows: list[dict[str, str]]) -> list[str]:
    """Return the rows' values, what they have in common in flags apart, and where each was read."""
    lines = table_lines(
        ["model", "adapter", "task", "rank", "rate", "epochs", "batch", "length", "other flags", "source"]
    )
    for row in rows:
        cells = [
            shown(row["model"]),
            row["adapter"],
            row["tasks"].replace(",", " "),
            row["rank"],
            row["learning_rate"],
        ]
        cells += [row["epochs"], row["batch"], row["length"], f"`{row['flags']}`", row["source"]]
        lines.append(f"| {' | '.join(map(escaped, cells))} |")
    return lines


def fields_table(name: str) -> list[str]:
    """Return every field of the recipe's configs with its value and source."""
    lines = table_lines(["adapter", "field", "value", "source"])
    with open(FIELDS_FILE, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if name in row["recipes"].split(","):
                fields = " ".join(f"`{field}`" for field in row["fields"].split())
                cells = [row["adapters"].replace(",", ", "), fields, row["value"], row["source"]]
                lines.append(f"| {' | '.join(map(escaped, cells))} |")
    return lines


def published_lines(rows: list[dict[str, str]], header: Header) -> list[str]:
    """Return the published numbers beside which the recipe's adapters stand."""
    lines: list[str] = []
    for model, adapter in dict.fromkeys((row["model"], row["adapter"]) for row in rows):
        for published in read_published(shown(model)):
            if (published.paper, published.method) == header.published.get(adapter):
                lines += published_row(published)
    for paper in dict.fromkeys(header.published_seeds.values()):
        runs = [run for run in published_runs() if run.paper == paper]
        source = ", ".join(dict.fromkeys(run.source for run in runs))
        lines.append(f"| {paper}: {len(runs)} runs, seed by seed | `published_seeds.csv` | {source} |")
    if not lines:
        return ["", "Published: nothing that was read."]
    return ["", *table_lines(["published", "scores", "where they were read"]), *lines]


def published_row(row: PublishedRow) -> list[str]:
    """Return a published row as one line: name, scores by task, protocol."""
    scores = [
        f"{task} {score.value:g}{'' if score.spread is None else f' ± {score.spread:g}'}"
        for task, score in row.scores.items()
    ]
    return [f"| {escaped(row.name)}, {row.model} | {', '.join(scores)} | {escaped(row.protocol)} |"]


def table_lines(names: list[str]) -> list[str]:
    """Return a Markdown table's head."""
    return [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]


def escaped(text: str) -> str:
    """Return a cell without what Markdown reads as its own."""
    return re.sub(r"([|*<>])", r"\\\1", text)


if __name__ == "__main__":
    os.chdir(REPOSITORY)
    sys.exit(main())
