"""CITATION.cff is a valid file of its format and names every paper whose numbers or methods the README reports."""

import csv
import re

import yaml
from helpers import REPOSITORY

from glue_peft.tables.published import PUBLISHED_FILE

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")

CITATION = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))


def test_required_fields():
    """Those of the Citation File Format 1.2.0, for the software and for each reference."""
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["title"] == README.splitlines()[0].removeprefix("# ")
    assert CITATION["message"] and CITATION["authors"]
    for reference in CITATION["references"]:
        assert {"type", "title", "authors", "year", "url"} <= set(reference)
        assert all({"given-names", "family-names"} <= set(author) for author in reference["authors"])


def test_papers_of_the_readme_are_cited():
    """Those that it links, and those whose rows `--published` prints."""
    cited = {reference["url"].rpartition("/")[2] for reference in CITATION["references"]}
    named = set(re.findall(r"arxiv\.org/abs/(\d{4}\.\d{5})", README))
    assert {"2502.00987", "2310.11454", "1804.07461"} <= named <= cited
    with open(PUBLISHED_FILE, encoding="utf-8", newline="") as file:
        assert {line["arxiv"] for line in csv.DictReader(file)} <= named
