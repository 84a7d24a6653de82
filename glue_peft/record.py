"""run.json: everything that made a run's numbers, and the numbers.

Needs no torch: what it takes to count or hash is handed in.
"""

import json
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from glue_peft.flags import ADDABLE, GOES_WITH_ADDABLE
from glue_peft.run_folder import COMMAND_FILE, RECORD_FILE, write_json
from glue_peft.tables.collapse import sign_of_collapse
from glue_peft.tables.read import on_held_out_rows

# Everything that computes.
PACKAGES = ("torch", "transformers", "datasets", "evaluate", "peft", "accelerate", "numpy", "scipy", "scikit-learn")


class BaseModel(TypedDict):
    """The pre-trained model."""

    name: str | None
    revision: str | None  # the commit on the hub; None for a folder
    sha256: str  # of its encoder's weights


class Selection(TypedDict):
    """How the rows of --selection_fraction were drawn; three or more words make a text that can nest."""

    rows: int  # held out
    nested_rows: int  # of all training rows, those with such a text that another row has or contains
    groups: int | None  # of all training rows, most of them a single row; None: drawn one by one
    largest_group: int | None  # its rows
    rows_in_large_groups: int | None  # too large to be held out
    cut_links: int | None  # not followed, as large groups would have held most of the rows
    contained_rows: int  # held-out rows with such a text that a training row contains
    comparable_rows: int  # held-out rows with such a text


class DataDescription(TypedDict):
    """What the data were read as."""

    text_columns: list[str]
    kind: str  # "classification" or "regression"
    label_counts: dict[str, int]  # rows of each label in the first labelled split, by name
    dropped_rows: dict[str, int]  # rows of each split that were left out, as their label is hidden
    selection: NotRequired[Selection]


class ParameterCounts(TypedDict):
    """Numbers of parameters."""

    adapter: int  # trained outside the head, as papers count
    head: int
    total: int
    stored: int  # in the saved files


class ConvertedLayers(TypedDict):
    """How many of the adapter's layers take the fast path, and how many don't for which reason."""

    converted: int
    left: dict[str, int]


class UnpaddedEncoder(TypedDict):
    """Whether the encoder runs without padding, and why not."""

    on: bool
    reason: str | None


class PeakMemory(TypedDict):
    """The most memory that was in use at once."""

    kind: str  # "cuda allocated" or "process"
    bytes: int


class Scores(TypedDict):
    """The metrics after each epoch (or evaluation): all of them, the last, the best and the selected one.

    Without --do_eval they are those on the rows of --selection_fraction, and there is no best one.
    """

    metric: str  # by which the best and the selected one are chosen
    history: list[dict[str, float]]
    last: dict[str, float]
    best: NotRequired[dict[str, float]]  # on the validation set itself
    selected: NotRequired[dict[str, float]]  # on the rows of --selection_fraction


class Source(TypedDict):
    """Where code came from that is no release: a clone in use, as an editable install is, or pip install git+URL."""

    place: str  # the package's folder, or the URL
    commit: str | None
    changed_files: list[str]  # beside that commit, and new ones, in the package's folder


class Environment(TypedDict):
    """The software, and the machine's system."""

    versions: dict[str, str]
    sources: dict[str, Source]  # of packages that are no releases; of a fork of PEFT, say
    git_commit: str | None
    platform: str


@dataclass(kw_only=True)
class RunRecord:
    """What run.json holds. The first part is known when the run starts, the second when it ends."""

    command: list[str]  # the flags as given
    arguments: dict[str, Any]  # the flags as resolved, without access tokens
    adapter_config: dict[str, Any] | None  # PEFT's
    adapter_config_file: dict[str, Any] | None  # what --adapter_config holds
    base_model: BaseModel
    data: DataDescription
    data_sha256: dict[str, str]  # of each split
    parameters: ParameterCounts
    fast_adapters: ConvertedLayers
    unpadded_encoder: UnpaddedEncoder
    device: str
    processes: int
    precision: str
    threads: int
    versions: dict[str, str]
    sources: dict[str, Source]
    git_commit: str | None
    platform: str

    metrics: dict[str, float] = field(default_factory=dict)  # as in all_results.json, and how many rows were predicted
    scores: Scores | None = None  # only where a run both trains and evaluates
    saved_bytes: int | None = None  # the size of the saved weights
    seconds: float | None = None  # since the script's start, and in training before it was resumed
    peak_memory: PeakMemory | None = None

    def write_command(self, folder: Path) -> None:
        """Write command.json, which tells from the start whose checkpoints these are."""
        names = ("command", "arguments", "adapter_config_file")
        write_json(folder / COMMAND_FILE, {name: getattr(self, name) for name in names})

    def write(self, folder: Path, earlier: Mapping[str, Any] | None = None) -> None:
        """Write run.json, which marks the run as finished; what was added to an earlier one goes into its record."""
        content = {name: value for name, value in vars(self).items() if name != "scores" or value is not None}
        if earlier:
            added = {name: self.arguments[name] for name in (*ADDABLE, *GOES_WITH_ADDABLE) if self.arguments.get(name)}
            content = {
                **earlier,
                "command": self.command,
                "arguments": earlier.get("arguments", {}) | added,
                "metrics": earlier.get("metrics", {}) | self.metrics,
            } | ({"scores": self.scores} if self.scores is not None else {})
        write_json(folder / RECORD_FILE, content)

    def parameters_in_words(self) -> str:
        """Return the numbers of parameters in a line."""
        counts = self.parameters
        return (
            f"parameters: {counts['adapter']:,} in the adapter (as papers count), {counts['head']:,} in the head, "
            f"{counts['total']:,} in the model, {counts['stored']:,} stored"
        )

    def scores_in_words(self) -> str:
        """Return the scores in a line, and in another one whether they show that nothing was learnt."""
        scores = "  ".join(
            f"{name.removeprefix('eval_')} {value:.4f}"
            for name, value in without_timings(self.metrics).items()
            if name.startswith(("eval_", "selection_")) and "_loss" not in name and isinstance(value, float)
        )
        metrics = self.metrics if self.arguments.get("do_eval") else on_held_out_rows(self.metrics)
        sign = sign_of_collapse(metrics, lambda suffix: metrics.get(f"eval_majority_share{suffix}"))
        warning = f"This run looks as if it had learnt nothing: {sign}. The tables list it as collapsed."
        return scores + f"\n{warning}" * (sign is not None)


def describe_environment(repository: Path) -> Environment:
    """Return the versions of everything that computes, and the repository's commit (None outside git)."""
    commit = "".join(git(repository, "rev-parse", "HEAD"))
    changes = "+changes" if git(repository, "diff", "--name-only", "HEAD") else ""
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "sources": installed_from_git() | imported_from_clones(repository),
        "git_commit": commit + changes or None,
        "platform": platform.platform(),
    }


def git(folder: Path, *words: str) -> list[str]:
    """Return the lines that git prints in a folder; none outside of a repository, and where there is no git."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    except OSError:
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def installed_from_git() -> dict[str, Source]:
    """Return the packages that pip installed from a version control system, by the direct_url.json that it leaves."""
    found: dict[str, Source] = {}
    for package in distributions():
        direct = json.loads(package.read_text("direct_url.json") or "{}")
        if "vcs_info" in direct:
            commit = direct["vcs_info"]["commit_id"]
            found[package.name] = {"place": direct["url"], "commit": commit, "changed_files": []}
    return found


def imported_from_clones(repository: Path) -> dict[str, Source]:
    """Return the packages in use whose code lies neither among the installed ones nor on top of this repository."""
    found: dict[str, Source] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if "." in name or name in sys.stdlib_module_names or not file or Path(file).name != "__init__.py":
            continue
        folder = Path(file).resolve().parent
        if {"site-packages", "dist-packages"} & {*folder.parts} or folder.parent == repository.resolve():
            continue
        new = git(folder, "ls-files", "--others", "--exclude-standard")
        found[name] = {
            "place": str(folder),
            "commit": next(iter(git(folder, "rev-parse", "HEAD")), None),
            "changed_files": sorted(git(folder, "diff", "--name-only", "--relative", "HEAD") + new),
        }
    return found


def peak_memory_of_process() -> PeakMemory:
    """Return the most memory that this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes, as getrusage(2) says
    return {"kind": "process", "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def history_of(log_history: Iterable[dict[str, float]]) -> list[dict[str, float]]:
    """Return the evaluations in Trainer's log, one dict an epoch (or step), in the names of the final results."""
    by_step: dict[float, dict[str, float]] = {}
    for entry in log_history:
        metrics = {}
        for name, value in entry.items():
            if name.startswith("eval_selection_"):
                name = name.removeprefix("eval_")
            elif name.startswith("eval_mm_"):
                name = f"eval_{name.removeprefix('eval_mm_')}_mm"
            if name.startswith(("eval_", "selection_")):
                metrics[name] = value
        if metrics:
            by_step.setdefault(entry["step"], {"epoch": entry["epoch"]}).update(without_timings(metrics))
    return list(by_step.values())


def without_timings(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics that say how good, not how fast."""
    timings = ("runtime", "samples_per_second", "steps_per_second", "samples")
    return {name: value for name, value in metrics.items() if not name.removesuffix("_mm").endswith(timings)}


def ends_history(history: list[dict[str, float]], final: Mapping[str, float], saves_best: bool) -> bool:
    """Say whether the saved model is the last epoch's, and not the best one's, and its results end the history.

    Without any evaluation in training, as with a long --eval_delay, there was no best model to save.
    """
    names = {name for name in final if name.startswith(("eval_", "selection_"))}
    return not (saves_best and any(names & entry.keys() for entry in history))


def choose_scores(
    history: list[dict[str, float]],
    final: dict[str, float],
    epoch: float,
    main_metric: str,
    greater_is_better: bool,
    saves_best: bool,
) -> Scores:
    """Return the scores of the last, the best and the selected epoch, and all of them; of two equals the earlier.

    `final` are the saved model's results, which end the history unless the best epoch's model was saved.
    """
    kinds = ("eval_", "selection_")
    final = {name: value for name, value in without_timings(final).items() if name.startswith(kinds)}
    validated, held_out = (f"{kind}{main_metric}" for kind in kinds)
    if ends_history(history, final, saves_best):
        if history and history[-1]["epoch"] == epoch:
            *history, last = history
            final = last | final
        history = [*history, {"epoch": epoch, **final}]

    def best_by(key: str) -> dict[str, float]:
        """Return the first entry with the best value of a metric."""
        known = [entry for entry in history if key in entry]
        return max(known, key=lambda entry: entry[key] if greater_is_better else -entry[key])

    metric = validated if validated in history[-1] else held_out
    scores: Scores = {"metric": metric, "history": history, "last": history[-1]}
    if metric == validated:
        scores["best"] = best_by(validated)
    if all(held_out in entry for entry in history):
        scores["selected"] = best_by(held_out)
    return scores
