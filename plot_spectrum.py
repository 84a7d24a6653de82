"""Parameters or rank? Show what finished runs did to the weights: the singular values of every layer's update.

    python plot_spectrum.py finetuned_results/lora4/1/mrpc finetuned_results/randlora64/1/mrpc spectrum.png

loads each run's adapter on its base model, merges it, and compares every adapted layer's weight W before and after.
This works for any PEFT method that can merge; it is also right where a method's own "delta weight" is a rotation (OFT,
BOFT) or only a part of the update (DoRA). A run of full fine-tuning is compared with its pre-trained weights.

Of each update dW the figure shows the singular values relative to the layer's weight, s_i(dW) / s_1(W): 1 means that
the update stretches a direction as far as W stretches any. There is one panel a kind of layer and one line an adapter,
the median over its layers (all encoder blocks, and all runs given of that adapter), with a band from the smallest to
the largest, on logarithmic axes. A line ends, or falls out of the panel, at the update's rank. Its marker stands at
the effective rank of Roy and Vetterli (2007), exp(-sum p_i ln p_i) with p_i = s_i / sum s_j: r for r equal singular
values, 1 for a single one.

The table on stdout has the medians over the layers of each kind: s_1(dW) / s_1(W), the same in Frobenius norms
|dW| / |W|, the effective rank, the rank (singular values above 1e-6 of the largest) and the highest rank that the
layer's shape allows. Where a method's init changed the weight itself, as PiSSA's and OLoRA's do, W was rounded to
float32 on the way: singular values below four such roundings, 4 * 2^-24 |W|, are that noise and count as 0. The last
column is the number of intruder dimensions (arXiv 2410.21228) of all the layers: left singular vectors of the ten
largest singular values of the tuned weight whose largest |cos| with one of the pre-trained weight is below 0.5. Both
weights are whole, so that it is right where a method's init changes the weight under it.

Runs of one adapter (RESULTS/<adapter>/<seed>/<task>) share a line. VeRA's and RandLoRA's random bases are verified.
For a paper, --width is the column's width in inches: all letters have 7 points in it. --names and --no_title (here: no
remark under the panels) are those of plot_results.py.
The base model is the one that the run names, or --model_name_or_path where it has moved; its hash must be the run's.

Exit status: 0 if the figure was written, else 2.
"""

import argparse
import math
import os
import re
import statistics
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import transformers
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed

from glue_peft import run_folder
from glue_peft.adapter_state import check_fits, check_fixed, has_paper_bases, hash_tensors, read_weights, seed_of
from glue_peft.errors import OneLineParser, UsageError, first_line, run_script
from glue_peft.paper_bases import draw_paper_bases
from glue_peft.tables.figure_style import (
    COLOURS,
    LINES,
    MARKERS,
    WIDTH,
    Sheet,
    add_figure_arguments,
    check_figure_file,
    legend_below,
    plain,
    power,
    sheet_of,
    write_figure,
)
from glue_peft.tables.read import part
from glue_peft.tables.results import add_names, renamed, row_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEGLIGIBLE = 1e-6  # of the largest singular value; float32 carries a weight to 6e-8
LEADING, SIMILAR = 10, 0.5  # of arXiv 2410.21228: k and epsilon of its intruder dimensions
# Of W's Frobenius norm. PiSSA's and OLoRA's inits leave up to 0.3 roundings of 2^-24 in every direction, as measured
# on Gaussian and decaying spectra of 48 x 48 to 3072 x 768 at ranks 4 to 64.
ROUNDING = 4 * 2**-24
SHOWN = 1e-4  # of the vertical axis' upper end; further down a line only falls to its rank
ADAPTER_FILE, MODEL_FILE = "adapter_config.json", "model.safetensors"


class Update(NamedTuple):
    """The update of one layer."""

    kind: str  # the layer's name within its encoder block
    spectrum: np.ndarray  # singular values of dW over the spectral norm of W, the largest first
    frobenius: float  # norm of dW over that of W
    intruders: int = 0  # intruder dimensions of the tuned weight

    @property
    def rank(self) -> int:
        """Return the number of singular values that are not negligible."""
        return int((self.spectrum > NEGLIGIBLE * self.spectrum[0]).sum())

    @property
    def effective_rank(self) -> float:
        """Return Roy and Vetterli's effective rank."""
        return effective_rank(self.spectrum)


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table and write the figure; raises UsageError."""
    args = parse_arguments(argv)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="transformers|peft")
    check_figure_file(args.out)
    sheet = sheet_of(args)
    for folder in args.run_folders:
        check_run_folder(folder)
    runs = labelled(args.run_folders)
    labels = list(dict.fromkeys(label for label, _ in runs))
    names = dict(zip(labels, renamed(labels, args.names), strict=True))
    adapters: dict[str, list[Update]] = {}
    for label, folder in runs:
        adapters.setdefault(names[label], []).extend(measure(folder, args.model_name_or_path))
    check_sizes(adapters)
    print("\n".join(table_lines(adapters)))
    write_figure(draw(adapters, sheet), args.out)
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; the values are checked by main."""
    parser = OneLineParser(
        prog="plot_spectrum.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run_folders", metavar="RUN_FOLDER", type=Path, nargs="+", help="--output_dir of a run")
    parser.add_argument("out", metavar="OUT", type=Path, help="the figure to write: .png, .pdf or .svg")
    parser.add_argument("--model_name_or_path", help="the base model, where it is not where the runs found it")
    add_names(parser)
    add_figure_arguments(parser)
    return parser.parse_args(argv)


def check_run_folder(folder: Path) -> None:
    """Raise UsageError for a folder that holds no saved model."""
    if not (folder / ADAPTER_FILE).is_file() and not (folder / MODEL_FILE).is_file():
        raise UsageError(f"RUN_FOLDER {folder}: neither {ADAPTER_FILE} nor {MODEL_FILE} in it")


def labelled(folders: list[Path]) -> list[tuple[str, Path]]:
    """Return each run once with the name of its adapter, with folders above it where two share a name.

    RESULTS/<adapter>/<seed>/<task> is a sweep's run; another folder is an adapter of its own.
    """
    runs = dict.fromkeys(Path(os.path.realpath(folder)) for folder in folders)
    rows = {run: run.parents[1] if run.parent.name.isdigit() else run for run in runs}
    distinct = list(dict.fromkeys(rows.values()))
    above = os.path.commonpath(distinct)
    names = dict(zip(distinct, row_names([str(row) for row in distinct]), strict=True))
    names = {row: os.path.relpath(row, above) if os.path.isabs(name) else name for row, name in names.items()}
    return [(names[row], run) for run, row in rows.items()]


def measure(folder: Path, model_name: str | None) -> list[Update]:
    """Return the updates of a run's layers. Raises UsageError where its method has none."""
    try:
        return [Update(*compare(*layer), intruders(*layer[1:3])) for layer in weight_updates(folder, model_name)]
    except UsageError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise UsageError(f"RUN_FOLDER {folder}: can't be loaded ({first_line(error)})") from error


def compare(name: str, before: Tensor, after: Tensor, is_rounded: bool) -> tuple[str, np.ndarray, float]:
    """Return a layer's kind, its update's singular values over the spectral norm of W, and the Frobenius ratio.

    `is_rounded` says that float32 has rounded all of the weight since, which hides what is smaller.
    """
    before, after = before.detach().double(), after.detach().double()
    norm = torch.linalg.matrix_norm(before)
    values = torch.linalg.svdvals(after - before)
    if is_rounded:
        values[values < ROUNDING * norm] = 0
    spectrum = values / torch.linalg.matrix_norm(before, 2)
    frobenius = torch.linalg.vector_norm(values) / norm
    return re.sub(r"^.*\.\d+\.", "", name), spectrum.numpy(), frobenius.item()


def intruders(before: Tensor, after: Tensor) -> int:
    """Count the intruder dimensions of a tuned weight (arXiv 2410.21228, algorithm 1).

    These are the left singular vectors u_j of its LEADING largest singular values with max_i |u_j . v_i| < SIMILAR,
    v_i being the left singular vectors of the pre-trained weight [outputs, inputs]: directions that it hardly has.
    """
    ours, theirs = (torch.linalg.svd(w.detach().double(), full_matrices=False).U for w in (after, before))
    return int(((ours[:, :LEADING].T @ theirs).abs().amax(dim=1) < SIMILAR).sum())


def weight_updates(folder: Path, model_name: str | None) -> Iterator[tuple[str, Tensor, Tensor, bool]]:
    """Yield each layer's name in the encoder, its weight before and after training, and whether all of it was rounded.

    It was where the method's init has changed the pre-trained weight itself.
    """
    model = load_base(folder, model_name)
    prefix = f"{model.base_model_prefix}."
    if not (folder / ADAPTER_FILE).is_file():
        with safe_open(folder / MODEL_FILE, framework="pt") as saved:
            for name, layer in model.base_model.named_modules():
                if isinstance(layer, nn.Linear):
                    yield name, layer.weight, saved.get_tensor(f"{prefix}{name}.weight"), False
        return
    # The pre-trained weights, before a method's init changes them, as PiSSA's and OLoRA's do.
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.ndim == 2}
    model = load_adapter(model, folder)
    method = model.active_peft_config.peft_type.value
    model.double()  # merged in float32, a small update would drown in the weight's rounding
    modules = model.get_base_model().named_modules()
    layers = {name.removesuffix(".token_adapter"): layer for name, layer in modules if is_adapted(layer)}
    if not layers:
        raise UsageError(f"RUN_FOLDER {folder}: {method} has no weight updates of linear layers")
    if not all(f"{name}.weight" in weights for name in layers):
        raise UsageError(f"RUN_FOLDER {folder}: {method} makes layers that the pre-trained model doesn't have")
    for name, layer in layers.items():
        before = weights[f"{name}.weight"]
        is_rounded = not torch.equal(layer.get_base_layer().weight.float(), before)
        try:
            layer.merge()
        except NotImplementedError as error:
            raise UsageError(f"RUN_FOLDER {folder}: {method} can't be merged, so it has no weight update") from error
        yield name.removeprefix(prefix), before, layer.get_base_layer().weight, is_rounded


def load_adapter(model: nn.Module, folder: Path) -> PeftModel:
    """Load a run's adapter on its base model. Raises UsageError unless all of it fits."""
    where = f"RUN_FOLDER {folder}"
    weights = read_weights(where, folder)
    loaded = PeftModel.from_pretrained(model, folder)
    check_fits(where, weights, get_peft_model_state_dict(loaded), with_values=True)
    if has_paper_bases(folder):
        draw_paper_bases(loaded)
    check_fixed(loaded, folder)
    return loaded


def is_adapted(module: nn.Module) -> bool:
    """Say whether PEFT put an adapter on this module's weight matrix."""
    return isinstance(module, BaseTunerLayer) and getattr(module.get_base_layer(), "weight", torch.empty(0)).ndim == 2


def load_base(folder: Path, model_name: str | None) -> nn.Module:
    """Load the pre-trained model of a run in float32, and check that its encoder is the run's."""
    record = run_folder.read_json(folder / run_folder.RECORD_FILE) or {}
    adapter_config = run_folder.read_json(folder / ADAPTER_FILE) or {}
    base = part(record, "base_model")
    name = model_name or adapter_config.get("base_model_name_or_path") or base.get("name")
    if name is None:
        raise UsageError(f"RUN_FOLDER {folder}: doesn't name its pre-trained model; give --model_name_or_path")
    # A part that the pre-trained model lacks, as RoBERTa's pooler, is drawn as in the run.
    set_seed(seed_of(folder, part(record, "arguments").get("seed", 0)))
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UsageError(f"RUN_FOLDER {folder}: no usable config.json in it ({first_line(error)})") from error
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            name, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"RUN_FOLDER {folder}: its base model {name} can't be loaded ({first_line(error)}); where it has moved, "
            "give --model_name_or_path"
        ) from error
    if "sha256" in base and hash_tensors(model.base_model.state_dict()) != base["sha256"]:
        raise UsageError(f"RUN_FOLDER {folder}: {name} has other weights than the model that the run started from")
    return model.eval()


def effective_rank(spectrum: np.ndarray) -> float:
    """Return exp(-sum p_i ln p_i), p_i = s_i / sum s_j (Roy and Vetterli, 2007); 0 for an update of zeros."""
    shares = spectrum[spectrum > 0] / max(spectrum.sum(), np.finfo(float).tiny)
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def check_sizes(adapters: dict[str, list[Update]]) -> None:
    """Raise UsageError where one adapter's runs have layers of different sizes, whose lines can't be averaged."""
    for label, updates in adapters.items():
        for kind in kinds_of({label: updates}):
            if len({len(update.spectrum) for update in updates if update.kind == kind}) > 1:
                raise UsageError(f"the runs of {label} have layers {kind} of different sizes: give one model's runs")


def kinds_of(adapters: dict[str, list[Update]]) -> list[str]:
    """Return the kinds of layers in the order of the model."""
    return list(dict.fromkeys(update.kind for updates in adapters.values() for update in updates))


def table_lines(adapters: dict[str, list[Update]]) -> list[str]:
    """Return the table: the medians over the layers of a kind, and over all of an adapter's."""
    header = ("layer", "adapter", "layers", "spectral", "Frobenius", "effective rank", "rank", "of", "intruders")
    rows = [header]
    for kind in [*kinds_of(adapters), "all"]:
        for label, updates in adapters.items():
            chosen = [update for update in updates if kind in ("all", update.kind)]
            if chosen:
                values = [
                    statistics.median(update.spectrum[0] for update in chosen),
                    statistics.median(update.frobenius for update in chosen),
                    statistics.median(update.effective_rank for update in chosen),
                    statistics.median(update.rank for update in chosen),
                    statistics.median(len(update.spectrum) for update in chosen),
                ]
                formats = (".4f", ".4f", ".1f", ".0f", ".0f")
                cells = [format(value, spec) for value, spec in zip(values, formats, strict=True)]
                rows.append((kind, label, str(len(chosen)), *cells, str(sum(update.intruders for update in chosen))))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    sides = (str.ljust, str.ljust, *[str.rjust] * (len(header) - 2))
    lines = ["  ".join(side(*cell) for side, *cell in zip(sides, row, widths, strict=True)) for row in rows]
    intruding = f"intruders: of each layer's {LEADING} leading singular vectors after training, summed over the layers"
    return [f"medians over the layers; spectral: s_1(dW) / s_1(W), Frobenius: |dW| / |W|; {intruding}", *lines]


def draw(adapters: dict[str, list[Update]], sheet: Sheet | None = None) -> "Figure":
    """Return the figure: a panel a kind of layer, and the legend above."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    sheet = sheet or Sheet()
    kinds = kinds_of(adapters)
    columns = min(len(kinds), 4 if len(kinds) > 6 else 3, sheet.columns(len(kinds)))
    lines = math.ceil(len(kinds) / columns)
    width = sheet.width or WIDTH
    figure = Figure(figsize=(width, min(2.3, 0.8 * width / columns) * lines + 0.7), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, kind in zip(panels, kinds, strict=False):
        for index, updates in enumerate(adapters.values()):
            draw_line(axes, [update for update in updates if update.kind == kind], style(index))
        axes.set(xscale="log", yscale="log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter(power)
        axes.xaxis.set_minor_formatter("")
        axes.yaxis.set_minor_formatter("")
        axes.set_title(plain(kind), fontsize=sheet.heading)
        axes.tick_params(labelsize=sheet.text)
        axes.grid(linewidth=0.4, alpha=0.5)
    panels[0].set_ylim(bottom=panels[0].get_ylim()[1] * SHOWN)
    for position in range(len(kinds), len(panels)):
        panels[position].remove()
        panels[position - columns].tick_params(labelbottom=True)
    handles = [Line2D([], [], label=plain(label), **style(index)) for index, label in enumerate(adapters)]
    legend_below(figure, handles, sheet, below=False)
    mark = "; the marker stands at the effective rank" if sheet.titled else ""
    figure.supxlabel(sheet.wrapped(f"i, counted from the largest singular value{mark}", width), fontsize=sheet.heading)
    figure.supylabel(r"$s_i$(update) / $s_1$(weight)", fontsize=sheet.heading)
    return figure


def style(index: int) -> dict[str, Any]:
    """Return colour, line and marker of an adapter."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": LINES[index % len(LINES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markeredgecolor": "black",
        "markersize": 7,
    }


def draw_line(axes: "Axes", updates: list[Update], look: dict[str, Any]) -> None:
    """Draw the median spectrum of some layers as far as its rank, the range behind it, and the effective rank."""
    if not updates or not any(update.rank for update in updates):
        return
    spectra = np.stack([update.spectrum for update in updates])
    median = np.median(spectra, axis=0)
    rank = int((median > NEGLIGIBLE * median[0]).sum())
    if rank == 0:  # most of the layers have no update
        return
    positions, median, spectra = np.arange(1, rank + 1), median[:rank], spectra[:, :rank]
    floor = NEGLIGIBLE * median[0]
    axes.fill_between(
        positions, spectra.min(0).clip(floor), spectra.max(0), color=look["color"], alpha=0.2, linewidth=0
    )
    axes.plot(positions, median, color=look["color"], linestyle=look["linestyle"], linewidth=1.6)
    at = max(1.0, min(statistics.median(update.effective_rank for update in updates), rank))
    height = math.exp(np.interp(math.log(at), np.log(positions), np.log(median)))  # on the line, as it is drawn
    axes.plot(at, height, zorder=3, **look)


if __name__ == "__main__":
    sys.exit(run_script(main, "plot_spectrum.py"))
