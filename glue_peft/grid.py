"""The grid of train_all.sh: a recipe and the variables -> the runs, each with its folder and its command.

A recipe is a table in recipes/, or one given by path: a row for the values of a model, an adapter and one or several
tasks. In the columns `rank` and `flags` a - stands for none.
"""

import csv
import difflib
import itertools
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from glue_peft.errors import UsageError
from glue_peft.flags import ADAPTER_FLAGS, MAX_SEED, given_flags, without
from glue_peft.recipe import devices_and_batch, read_header
from glue_peft.run_folder import SEARCH
from glue_peft.tasks import TASKS

REPOSITORY = Path(__file__).parents[1]
COLUMNS = ("adapter", "model", "tasks", "rank", "learning_rate", "epochs", "batch", "length", "flags", "source")
SIZES = {"FacebookAI/roberta-base": "", "FacebookAI/roberta-large": "_large"}  # a model's part of a folder's name
INSTEAD = {  # flags that name the run, so that the grid sets them
    "model_name_or_path": "MODELS",
    "adapter_name": "ADAPTERS",
    "rank": "ADAPTERS, as in ADAPTERS=lora:8,",
    "adapter_config": "ADAPTERS, as in ADAPTERS=path/to/hra.json,",
    "task_name": "TASKS",
    "seed": "SEEDS",
    "output_dir": "RESULTS or TAG",
}
TUNING_VARIABLES = ("RATE_FACTORS", "LEARNING_RATES", "SEARCH_SEEDS", "SELECTION_FRACTION")
VARIABLES = (
    *"RECIPE MODELS ADAPTERS TASKS SEEDS RESULTS TAG PYTHON JOBS GPUS JOBS_PER_GPU MPS RETRIES DRY_RUN".split(),
    *("STATUS", "MISSING", "TUNE", *TUNING_VARIABLES),
)
NOT_EMPTY = "RECIPE MODELS ADAPTERS TASKS SEEDS RESULTS JOBS GPUS JOBS_PER_GPU RETRIES".split()
# Spellings of them that are mistakes, beside those in other cases; a name that a system may set is none.
MISSPELT = {
    "RECIPES": "RECIPE",
    "MODEL": "MODELS",
    "ADAPTER": "ADAPTERS",
    "TASK": "TASKS",
    "TASK_NAME": "TASKS",
    "DATASET": "TASKS",
    "DATASETS": "TASKS",
    "SEED": "SEEDS",
    "RESULT": "RESULTS",
    "TAGS": "TAG",
    "JOB": "JOBS",
    "GPU": "GPUS",
    "JOB_PER_GPU": "JOBS_PER_GPU",
    "JOBS_PER_GPUS": "JOBS_PER_GPU",
    "RETRY": "RETRIES",
    "DRYRUN": "DRY_RUN",
    "TUNING": "TUNE",
    "RATE_FACTOR": "RATE_FACTORS",
    "LEARNING_RATE": "LEARNING_RATES",
    "SEARCH_SEED": "SEARCH_SEEDS",
}
LONGEST_RANGE = 10_000
OWN_DATA = ("train_file", "dataset_name")  # flags that bind a name in TASKS to other data than GLUE's
# Flags of a recipe's row that are of its adapter alone: one from a file does without them.
OF_ONE_ADAPTER = (*ADAPTER_FLAGS, "adapter_config", "learning_rates")


@dataclass(frozen=True)
class Choice:
    """What a recipe's row has to run: its values for a model and an adapter, on some tasks."""

    row: dict[str, str]  # with the adapter that is run
    values_of: str  # the adapter whose row it is in the recipe
    model: str
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """A run of the grid: its folder, as the user spelled it, and the words of its command."""

    folder: str
    command: tuple[str, ...]  # the interpreter, run_glue.py, the flags
    is_search: bool = False  # of TUNE's learning rates: one that diverges has ended too

    @property
    def flags(self) -> list[str]:
        """Return the flags of run_glue.py."""
        return list(self.command[2:])

    @property
    def seed(self) -> str:
        """Return the seed, as the folder has it."""
        return self.folder.rsplit("/", 2)[1]

    @property
    def row(self) -> str:
        """Return the name of the folder of all its seeds and tasks."""
        return self.folder.rsplit("/", 3)[-3]

    @property
    def task(self) -> str:
        """Return the task, as the folder has it."""
        return self.folder.rsplit("/", 1)[1]


def read_grid(settings: Mapping[str, str], flags: list[str]) -> list[Run]:
    """Return the runs in the order of the recipe's rows, then of MODELS, ADAPTERS, SEEDS and TASKS.

    Raises UsageError where a value would be guessed, and where two runs would share a folder.
    """
    choices = read_choices(settings, flags)
    for name in TUNING_VARIABLES:
        if settings.get(name):
            raise UsageError(f"{name}: goes with TUNE=1; one rate for all runs is --learning_rate")
    seeds = seeds_of_list("SEEDS", settings.get("SEEDS") or read_header(recipe_of(settings)).seeds)
    return without_repeats(
        make_run(choice.row, choice.model, seed, task, settings, flags)
        for choice in choices
        for seed in seeds
        for task in choice.tasks
    )


def without_repeats(runs: Iterable[Run]) -> list[Run]:
    """Return the runs; raise UsageError where there is none, or two would share a folder."""
    found = list(runs)
    folders = [run.folder for run in found]
    twice = sorted(folder for folder in set(folders) if folders.count(folder) > 1)
    if twice:
        raise UsageError(f"two runs would share {twice[0]}: change MODELS, ADAPTERS, TASKS or SEEDS")
    if not found:
        raise UsageError("the grid has no line at all")
    return found


def read_choices(settings: Mapping[str, str], flags: list[str]) -> list[Choice]:
    """Return what is to be run of the recipe, in the order of its rows, then of MODELS and ADAPTERS.

    Raises UsageError where a value would be guessed.
    """
    check_numbers(settings)
    recipe = recipe_of(settings)
    rows = read_recipe(recipe)
    # What the recipe has, and what is wanted of it or beyond it.
    models, adapters, tasks = (distinct(rows, column) for column in ("model", "adapter", "tasks"))
    wanted = {
        name: items_of(settings[name]) if settings.get(name) else default
        for name, default in {"MODELS": models, "ADAPTERS": adapters, "TASKS": tasks}.items()
    }
    check_flags(settings, flags)
    has_rate = "learning_rate" in given_flags(flags) or bool(settings.get("LEARNING_RATES"))
    check_adapters(wanted["ADAPTERS"], adapters, recipe, has_rate)
    check_tasks(wanted["TASKS"], tasks, recipe, rows, flags)
    choices = []
    for row in rows:
        served = row["tasks"].split(",")
        tasks_of_row = [task for task in wanted["TASKS"] if task in served or serves(served[0], task, tasks)]
        for model, item in itertools.product(
            [model for model in wanted["MODELS"] if serves(row["model"], model, models)],
            [item for item in wanted["ADAPTERS"] if serves(row["adapter"], name_of(item), adapters)],
        ):
            if tasks_of_row:
                check_row(row, recipe, settings)
                choices.append(Choice(with_adapter(row, item), row["adapter"], model, tuple(tasks_of_row)))
    return choices


def recipe_of(settings: Mapping[str, str]) -> str:
    """Return the path of the recipe: RECIPE itself where it ends in .tsv, else the one of that name in recipes/."""
    recipe = settings.get("RECIPE") or "randlora"
    return recipe if recipe.endswith(".tsv") else f"{prefix()}recipes/{recipe}.tsv"


def prefix() -> str:
    """Return what stands before the names of this repository's files: nothing if it is the working directory."""
    return "" if os.path.samefile(REPOSITORY, os.curdir) else f"{REPOSITORY}/"


def read_recipe(path: str) -> list[dict[str, str]]:
    """Return a recipe's rows by column; raise UsageError where there is none, or a value is missing."""
    try:
        with open(path, encoding=sys.getfilesystemencoding(), errors="surrogateescape", newline="") as file:
            lines = [line for line in file if not line.startswith("#")]  # recipe.py reads those
            rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    except OSError:
        there = " ".join(sorted(found.stem for found in (REPOSITORY / "recipes").glob("*.tsv")))
        raise UsageError(f"RECIPE: no {path}; there are {there}, or a path that ends in .tsv") from None
    for row in rows:
        if None in row or not all(row.get(column) for column in COLUMNS):
            name = f"{row.get('adapter')}, {row.get('tasks')}"
            raise UsageError(f"{path}: the row of {name} needs {len(COLUMNS)} columns, none of them empty")
        try:
            words_of(row["flags"])
        except ValueError as error:
            name = f"{row['adapter']}, {row['model']}, {row['tasks']}"
            raise UsageError(f"{path}: the flags in the row of {name} can't be read: {error}") from None
    return rows


def distinct(rows: list[dict[str, str]], column: str) -> list[str]:
    """Return the different values of a column, in their order."""
    return list(dict.fromkeys(value for row in rows for value in row[column].split(",")))


def serves(value: str, item: str, known: list[str]) -> bool:
    """Say whether a row with this value is for an item; one that the recipe doesn't know gets its first value's."""
    return item == value or (item not in known and [value] == known[:1])


def name_of(adapter: str) -> str:
    """Return an item of ADAPTERS without its rank; the path of a PEFT config file is one whole."""
    return adapter if is_file(adapter) else adapter.partition(":")[0]


def is_file(adapter: str) -> bool:
    """Say whether an item of ADAPTERS is the path of a PEFT config file, and no method's name."""
    return adapter.endswith(".json")


def with_adapter(row: dict[str, str], adapter: str) -> dict[str, str]:
    """Return a recipe's row with an adapter as ADAPTERS has it: its own, with another rank, none, or a file's."""
    if is_file(adapter):
        own = without(words_of(row["flags"]), *OF_ONE_ADAPTER)
        return row | {
            "adapter": Path(adapter).stem,
            "rank": "-",
            "flags": shlex.join([*own, "--adapter_config", adapter]),
        }
    name, colon, rank = adapter.partition(":")
    if colon and "--adapter_config" in row["flags"]:
        raise UsageError(f"ADAPTERS: {name} has its settings in a file, not as a rank")
    return row | {"adapter": name, "rank": "-" if name == "none" else rank or row["rank"]}


def words_of(flags: str) -> list[str]:
    """Return the words of a recipe's column `flags`."""
    return [] if flags == "-" else shlex.split(flags)


def items_of(text: str) -> list[str]:
    """Return the items of a list, which has spaces or commas between them."""
    return text.replace(",", " ").split()


def check_names(settings: Mapping[str, str]) -> None:
    """Warn of variables that are nearly a sweep's; raise UsageError where the one that was meant isn't set.

    One that is set to nothing, as by SEEDS=$UNSET, would mean all there is: it is refused too.
    """
    for name in NOT_EMPTY:
        if settings.get(name) is not None and not items_of(settings[name]):
            raise UsageError(f"{name}: is set, and empty; unset it for its default")
    for name in sorted(settings):
        meant = meant_by(name.upper())
        if not settings[name] or name == meant or meant not in VARIABLES:
            continue
        if not settings.get(meant):
            raise UsageError(f"{name}: the variable is {meant}; rename it, or unset it")
        print(f"train_all.sh: {name} is ignored, {meant} is set", file=sys.stderr)


def meant_by(name: str) -> str:
    """Return the variable that a name is, or is a misspelling of; the name itself where it is neither."""
    if name in MISSPELT or name in VARIABLES:
        return MISSPELT.get(name, name)
    # Short names are too near to others', and PYTHON3 is none.
    long = [known for known in VARIABLES if len(known) > 4 and known != "PYTHON"]
    return next(iter(difflib.get_close_matches(name, long, n=1, cutoff=0.82)), name)


def check_numbers(settings: Mapping[str, str]) -> None:
    """Refuse values that are no numbers or lists; raise UsageError."""
    for name in ("JOBS", "JOBS_PER_GPU"):
        if not re.fullmatch("[1-9][0-9]*", settings.get(name) or "1"):
            raise UsageError(f"{name}: {settings[name]} is not a number of runs")
    if not re.fullmatch("[0-9]+", settings.get("RETRIES") or "1"):
        raise UsageError(f"RETRIES: {settings['RETRIES']} is not a whole number")
    if (settings.get("MPS") or "1") not in ("0", "1"):
        raise UsageError(f"MPS: {settings['MPS']} is neither 0 nor 1")
    gpus_of(settings.get("GPUS") or "0")


def check_flags(settings: Mapping[str, str], flags: list[str]) -> None:
    """Refuse a stray word, flags that would mix up folders, and what would break the lines of the dry run."""
    if flags and not flags[0].startswith("-"):  # behind our own last flag it would pass for that one's value
        raise UsageError(f"unknown argument {flags[0]!r}; a flag of run_glue.py begins with --")
    for name in given_flags(flags):
        if name in INSTEAD:
            raise UsageError(f"--{name}: set {INSTEAD[name]} instead")
    if re.search(r"[\t\r\n]", "".join([*flags, root_of(settings), settings.get("PYTHON", "")])):
        raise UsageError("a tab or a line break in a flag, RESULTS or PYTHON")
    tag = settings.get("TAG", "")
    if re.search(r"[\t\r\n/]|\.\.", tag):  # it is a part of a folder's name
        raise UsageError(f"TAG: {tag!r} has a slash, two dots, a tab or a line break")


def check_adapters(wanted: list[str], known: list[str], recipe: str, has_rate: bool) -> None:
    """Refuse adapters without values in the recipe, and ranks that are none; `has_rate`: the recipe's isn't used."""
    for item in wanted:
        if is_file(item):
            if not re.fullmatch(r"[^.{}][^{}]*", Path(item).stem) or Path(item).stem == SEARCH:
                raise UsageError(f"ADAPTERS: {item}: its runs' folder can't be called {Path(item).stem}")
            continue
        name, colon, rank = item.partition(":")
        if name not in known and item != "none":
            none = ["none"] if Path(recipe).stem == "randlora" else []
            allowed = f"{' '.join([*known, *none])}, lora:8 for another rank, and a path like my/hra.json"
            raise UsageError(f"ADAPTERS: no {item} in {recipe}; allowed are {allowed}")
        if colon and (name == "none" or not re.fullmatch("[1-9][0-9]*", rank)):
            raise UsageError(f"ADAPTERS: {item} is not <adapter>:<rank>")
        if name in known:
            continue
        if Path(recipe).stem != "randlora":
            raise UsageError("ADAPTERS=none: only with RECIPE=randlora, or a recipe with rows for it")
        if not has_rate:
            raise UsageError(
                "ADAPTERS=none: the recipe has no full fine-tuning, give --learning_rate or LEARNING_RATES"
            )


def check_tasks(
    wanted: list[str], known: list[str], recipe: str, rows: list[dict[str, str]], flags: list[str]
) -> None:
    """Refuse tasks that are neither GLUE's nor bound to files, and those for which the recipe has no values."""
    binding = next((f"--{name}" for name in given_flags(flags) if name in OWN_DATA), "")
    bound = {task for row in rows if own_data(words_of(row["flags"])) for task in row["tasks"].split(",")}
    for task in wanted:
        if binding and (task in TASKS or len(wanted) > 1):
            raise UsageError(f"{binding}: set TASKS to one name for these data, as in TASKS=messages, not GLUE's")
        if task in bound and task in TASKS:
            raise UsageError(f"{recipe}: the row of {task} has data of its own; give them a name that isn't GLUE's")
        if task not in TASKS and not (binding or task in bound):
            glue = " ".join(sorted(TASKS))
            raise UsageError(f"TASKS: unknown task {task}; allowed are {glue}, or one name with --train_file FILE")
        if not re.fullmatch(r"[A-Za-z_][\w.-]*", task):
            raise UsageError(f"TASKS: {task} is no name for a folder: letters, digits, _, - and dots")
        if task in ("all", "avg", "name", "task"):
            raise UsageError(f"TASKS: {task} has another meaning in tables; take another name for these data")
        if task not in known and "," not in rows[0]["tasks"]:
            raise UsageError(f"TASKS: {recipe} has no values for {task}; it has {' '.join(known)}")


def own_data(flags: list[str]) -> bool:
    """Say whether flags name data of one's own."""
    return any(name in OWN_DATA for name in given_flags(flags))


def seeds_of_list(variable: str, text: str) -> list[str]:
    """Return the seeds of a variable, SEEDS or SEARCH_SEEDS: numbers such as 7, and ranges as in 1-5."""
    seeds = []
    for item in items_of(text):
        numbers = range_of(item)
        if numbers is None:
            raise UsageError(f"{variable}: {item} is not a whole number or a range like 1-5")
        if not numbers:
            raise UsageError(f"{variable}: {item} is not a range of at most {LONGEST_RANGE} seeds like 1-5")
        if int(numbers[-1]) > MAX_SEED:
            raise UsageError(f"{variable}: {item} is above {MAX_SEED}")
        seeds += numbers
    return seeds


def gpus_of(text: str) -> list[str]:
    """Return the names of GPUS: numbers, ranges of them as in 0-3, or what else nvidia-smi calls them."""
    found = [(item, range_of(item)) for item in items_of(text)]
    if not found or any(numbers == [] for _, numbers in found):
        raise UsageError(f"GPUS: {text} is not a list like 0,1,2 or 0-3")
    return [name for item, numbers in found for name in numbers or [item]]


def range_of(item: str) -> list[str] | None:
    """Return the whole numbers of `7` or `1-5`: none where it descends or is too long, None where it is neither."""
    match = re.fullmatch("(0|[1-9][0-9]{0,15})(?:-(0|[1-9][0-9]{0,15}))?", item)
    if not match:
        return None
    first, last = int(match[1]), int(match[2] or match[1])
    return [str(number) for number in range(first, last + 1)] if last < first + LONGEST_RANGE else []


def check_row(row: dict[str, str], recipe: str, settings: Mapping[str, str]) -> None:
    """Refuse a row of the recipe with a ?, as a guess would pass for the paper's; and without TUNE a list of rates."""
    name = f"{row['adapter']}, {row['model']}, {row['tasks']}"
    unknown = [name for name in COLUMNS[:8] if row[name] == "?"]
    unknown += [name for name, value in itertools.pairwise(words_of(row["flags"])) if value == "?"]
    if len(items_of(row["learning_rate"])) > 1 and not settings.get("TUNE"):
        raise UsageError(f"{recipe}: the row of {name} has several learning rates, to be chosen among with TUNE=1")
    if unknown:
        raise UsageError(
            f"{recipe}: the row of {name} has a ? for {' '.join(unknown)}; narrow ADAPTERS, MODELS or TASKS"
        )


def make_run(
    row: dict[str, str], model: str, seed: str, task: str, settings: Mapping[str, str], flags: list[str]
) -> Run:
    """Return the run of a recipe's row, with its adapter as it is to be run, for one model, seed and task."""
    own, name, rank = words_of(row["flags"]), row["adapter"], row["rank"].removeprefix("-")
    method = [] if "--adapter_config" in own else ["--adapter_name", name]
    method += ["--rank", rank] if method and rank else []
    size = SIZES.get(model, f"_{os.path.basename(model.rstrip('/'))}")
    parent = f"{root_of(settings)}/{name}{rank}{size}{settings.get('TAG', '')}/{seed}"
    command = [python_of(settings), f"{prefix()}run_glue.py"]
    command += ["--model_name_or_path", model, *([] if own_data([*own, *flags]) else ["--task_name", task])]
    command += ["--do_train", "--do_eval"]
    devices, batch = devices_and_batch(row["batch"])
    command += ["--max_seq_length", row["length"], "--per_device_train_batch_size", str(batch)]
    command += ["--gradient_accumulation_steps", str(devices)] if devices > 1 else []
    command += ["--learning_rate", row["learning_rate"], "--num_train_epochs", row["epochs"], *own]
    command += [*method, "--seed", seed, "--output_dir", f"{parent}/{task}", "--resume", *flags]
    recipes = os.path.dirname(recipe_of(settings)) or "."
    places = {"{mnli}": f"{parent}/mnli", "{recipes}": recipes, "{seed}": seed}
    for mark, place in places.items():
        command = [word.replace(mark, place) for word in command]
    return Run(f"{parent}/{task}", tuple(command))


def root_of(settings: Mapping[str, str]) -> str:
    """Return the root of the results."""
    return settings.get("RESULTS") or "finetuned_results"


def python_of(settings: Mapping[str, str]) -> str:
    """Return the interpreter of the runs."""
    return settings.get("PYTHON") or "python"
