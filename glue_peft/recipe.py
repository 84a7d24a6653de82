"""What a recipe says of itself: the lines `# key: value` above its table.

They say which seeds a sweep runs, by which statistic and of which epoch its table is printed, and which published rows
its adapters stand beside. `(not stated)` behind a value says that the paper is silent, and that the value is ours.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from glue_peft.errors import UsageError
from glue_peft.tables.read import EPOCHS

SINGLE = {"about": "", "seeds": "1-5", "statistic": "mean", "epoch": "last"}  # with what holds where they aren't there
SEVERAL = ("published", "published_seeds", "differs", "uncertain")
ALLOWED = {"statistic": ("mean", "median"), "epoch": tuple(EPOCHS)}
NOT_STATED = "(not stated)"
# The line that says what the table's columns are, the same in every recipe.
COLUMNS_LINE = (
    "# columns: adapter (begins the folder's name; a method, or any name where the flags have --adapter_config); "
    "model; tasks (with commas); rank (ends the folder's name; - for none); learning_rate (several, with spaces, "
    "for TUNE=1); epochs; batch (rows a step; 8x16: 16 on each of 8 devices); length (tokens); flags (further "
    "ones of run_glue.py, - for none; {recipes} is this folder, {seed} the seed, {mnli} the same seed's MNLI "
    "run); source (of these values)"
)


@dataclass(frozen=True)
class Header:
    """The lines above a recipe's table."""

    about: str
    seeds: str  # as in SEEDS
    statistic: str
    epoch: str
    not_stated: tuple[str, ...]  # of these three, those on which the paper is silent
    published: dict[str, tuple[str, str]]  # adapter -> paper and method of published_glue.csv
    published_seeds: dict[str, str]  # adapter -> paper of published_seeds.csv
    differs: tuple[str, ...]  # in what the runs are known to differ from the paper's
    uncertain: tuple[str, ...]


def read_header(path: Path | str) -> Header:
    """Read a recipe's header; one without any has the defaults. Raises UsageError for what it can't say."""
    single, several = dict(SINGLE), {key: [] for key in SEVERAL}
    not_stated = []
    for line in header_lines(path):
        key, _, value = (part.strip() for part in line[1:].partition(":"))
        if key == "columns":  # for people
            continue
        if key in SEVERAL:
            several[key].append(value)
            continue
        if key not in SINGLE:
            keys = ", ".join([*SINGLE, *SEVERAL, "columns"])
            raise UsageError(f"{path}: {line!r}: allowed is `# key: value` with key one of {keys}")
        single[key] = value.removesuffix(NOT_STATED).strip()
        not_stated += [key] if value.endswith(NOT_STATED) else []
        if single[key] not in ALLOWED.get(key, (single[key],)):
            raise UsageError(f"{path}: {key} is {single[key]}; allowed: {', '.join(ALLOWED[key])}")
    rows = [[part.strip() for part in value.split(":")] for value in several["published"]]
    seeds = [[part.strip() for part in value.split(":")] for value in several["published_seeds"]]
    if any(len(row) != 3 for row in rows) or any(len(row) != 2 for row in seeds):
        raise UsageError(f"{path}: `published` is ADAPTER: PAPER: METHOD, `published_seeds` ADAPTER: PAPER")
    return Header(
        **single,
        not_stated=tuple(not_stated),
        published={adapter: (paper, method) for adapter, paper, method in rows},
        published_seeds=dict(seeds),
        differs=tuple(several["differs"]),
        uncertain=tuple(several["uncertain"]),
    )


def header_lines(path: Path | str) -> list[str]:
    """Return the lines that begin with #."""
    text = Path(path).read_bytes().decode(sys.getfilesystemencoding(), "surrogateescape")
    return [line for line in text.splitlines() if line.startswith("#")]


def devices_and_batch(text: str) -> tuple[int, int]:
    """Return how many devices a paper's step is spread over, and the rows of each: 1, 64 for 64; 8, 16 for 8x16."""
    devices, times, batch = text.rpartition("x")
    if not (batch.isdecimal() and (devices.isdecimal() if times else not devices)):
        raise UsageError(f"batch: {text} is not a number of rows, or of devices and rows as in 8x16")
    return int(devices or 1), int(batch)
