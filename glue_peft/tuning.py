"""TUNE=1: every method's learning rate is searched with the same effort, on rows held out of training.

Phase 1 trains each model, adapter and task with each rate of a grid and each search seed, and scores the last epoch on
the held-out rows alone; its folders are RESULTS/search/<row>_lr<rate>/<seed>/<task>.
"""

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

from glue_peft.errors import UsageError
from glue_peft.flags import FlagKind, given_flags, kind_of
from glue_peft.grid import Choice, Run, items_of, make_run, read_choices, root_of, seeds_of_list, without_repeats
from glue_peft.preflight import without

RATE_FACTORS = "0.1 0.3 1 3 10"
SEARCH_SEEDS = "101-103"
SELECTION_FRACTION = "0.1"


def search_runs(settings: Mapping[str, str], flags: list[str]) -> list[Run]:
    """Return the runs of phase 1: each model, adapter and task with each rate of its grid and each search seed."""
    check_tuning(settings, flags)
    seeds = seeds_of_list("SEARCH_SEEDS", settings.get("SEARCH_SEEDS") or SEARCH_SEEDS)
    return without_repeats(
        search_run(choice, rate_text(rate), seed, task, settings, flags)
        for choice in read_choices(settings, flags)
        for seed in seeds
        for task in choice.tasks
        for rate in rates_of(choice.row, settings)
    )


def check_tuning(settings: Mapping[str, str], flags: list[str]) -> None:
    """Refuse what contradicts a search; raises UsageError."""
    for name, instead in {
        "learning_rate": "LEARNING_RATES or RATE_FACTORS",
        "selection_fraction": "SELECTION_FRACTION",
    }.items():
        if name in given_flags(flags):
            raise UsageError(f"--{name}: set {instead} instead")
    if settings.get("LEARNING_RATES") and settings.get("RATE_FACTORS"):
        raise UsageError("LEARNING_RATES and RATE_FACTORS: set one of them")


def rates_of(row: dict[str, str], settings: Mapping[str, str]) -> list[Decimal]:
    """Return a row's grid, ascending: LEARNING_RATES, or the list in the row, or its one rate times RATE_FACTORS."""
    if settings.get("LEARNING_RATES"):
        return numbers_of("LEARNING_RATES", settings["LEARNING_RATES"])
    name = f"the learning rate of {row['adapter']}, {row['tasks']}"
    own = numbers_of(name, row["learning_rate"])
    if len(own) == 1:
        return [own[0] * factor for factor in numbers_of("RATE_FACTORS", settings.get("RATE_FACTORS") or RATE_FACTORS)]
    if settings.get("RATE_FACTORS"):
        raise UsageError(f"RATE_FACTORS: {name} is a list in the recipe already")
    return own


def numbers_of(name: str, text: str) -> list[Decimal]:
    """Return the positive numbers of a list, ascending; raises UsageError where one is none, or stands there twice."""
    try:
        numbers = sorted(Decimal(item) for item in items_of(text))
    except InvalidOperation:
        numbers = []
    if not numbers or len(set(numbers)) < len(numbers) or not all(n.is_finite() and n > 0 for n in numbers):
        raise UsageError(f"{name}: {text} is not a list of different numbers above 0, like 1e-4 3e-4 1e-3")
    return numbers


def rate_text(rate: Decimal) -> str:
    """Return a rate as it stands in folders and commands: 3e-4."""
    return format(rate.normalize(), "e").replace("e+", "e")


def search_run(choice: Choice, rate: str, seed: str, task: str, settings: Mapping[str, str], flags: list[str]) -> Run:
    """Return a run of the search: the final run's command with this rate, held-out rows, and no validation set.

    Flags that only ask for further files, such as --do_predict, are for the final runs.
    """
    if "{mnli}" in choice.row["flags"]:
        raise UsageError(f"TUNE: the recipe starts {task} from another run's adapter, whose rate is not known yet")
    place = {"RESULTS": f"{root_of(settings)}/search", "TAG": f"{settings.get('TAG', '')}_lr{rate}"}
    kept = without(flags, *(name for name in given_flags(flags) if kind_of(name) is FlagKind.OUTPUT))
    fraction = ["--selection_fraction", settings.get("SELECTION_FRACTION") or SELECTION_FRACTION]
    row = choice.row | {"learning_rate": rate}
    run = make_run(row, choice.model, choice.adapter, seed, task, {**settings, **place}, [*kept, *fraction])
    return Run(run.folder, tuple(word for word in run.command if word != "--do_eval"))
