"""What one sees while a run trains: loss and rate about twenty times, and each evaluation, a line each."""

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import evaluate
import transformers
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from glue_peft.record import without_timings

LOAD_REPORT = "LOAD REPORT"  # in transformers' table of the weights that a file lacked, which comes with colour codes
# Trainer's own two, in whose place a run has these.
TRAINERS_OWN = (PrinterCallback, ProgressCallback)


def quiet_libraries(level: int, without_bars: bool) -> None:
    """Let the libraries print warnings alone, or what is above `level`; nothing that the run says itself in a line."""
    datasets.utils.logging.set_verbosity_warning()
    # Both would report every load to a server, and without a network wait for it.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = evaluate.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    transformers.utils.logging.set_verbosity(max(level, logging.WARNING))
    logging.getLogger("transformers.modeling_utils").addFilter(is_no_load_report)
    warnings.filterwarnings("ignore", message="Specified to not save")  # the bases' hash is saved and compared instead
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
    if without_bars:
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()


def name_for_trackers(args: TrainingArguments) -> None:
    """Give a run of --report_to a name by which the seeds of an adapter and task stand together, such as lora4/rte/1.

    --run_name goes before it. Weights & Biases takes its group, lora4/rte, and --project from the environment alone.
    """
    *_, row, seed, task = ["", "", *Path(args.output_dir).absolute().parts]
    group = f"{row}/{task}" if seed.isdecimal() else task
    args.run_name = args.run_name or (f"{group}/{seed}" if seed.isdecimal() else group)
    if "wandb" in args.report_to:
        os.environ.setdefault("WANDB_RUN_GROUP", group)
        os.environ.setdefault("WANDB_PROJECT", args.project)


def is_no_load_report(record: logging.LogRecord) -> bool:
    """Say whether a line of the log may be printed: the run names the drawn weights itself."""
    return LOAD_REPORT not in record.getMessage()


class Bars(ProgressCallback):
    """Trainer's progress bars alone, for a terminal."""

    def on_log(self, *_: Any, **__: Any) -> None:
        """Leave the lines to LogLines."""


class LogLines(TrainerCallback):
    """Prints a line for each entry of Trainer's log; the results after the training are printed when the run ends."""

    def __init__(self) -> None:
        """Wait for the training to begin."""
        self.in_training = False

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Print from here on."""
        self.in_training = True

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Print no more."""
        self.in_training = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Print an entry, on the first process, above the bar if there is one."""
        if self.in_training and state.is_world_process_zero and logs:
            tqdm.write(in_words(logs, state.global_step, state.max_steps))


def in_words(logs: Mapping[str, Any], step: int, steps: int) -> str:
    """Return an entry of Trainer's log as a line: a step's loss and rate, an evaluation's metrics, or the end."""
    if "train_loss" in logs:  # a step's entry may have a train_runtime too
        return f"trained: {step} steps in {logs['train_runtime']:.0f} s, mean loss {logs['train_loss']:.4f}"
    place = f"step {step}/{steps}, epoch {logs['epoch']:.2f}"
    if "loss" in logs:
        return f"{place}: loss {logs['loss']:.4f}, learning rate {logs['learning_rate']:.2e}"
    return f"{place}: {scores_in_words(logs)}"


def scores_in_words(metrics: Mapping[str, Any]) -> str:
    """Return an evaluation's metrics; those of another set than the validation set begin with its name."""
    shown = [
        f"{name.removeprefix('eval_')} {value:.4f}"
        for name, value in without_timings(dict(metrics)).items()
        if isinstance(value, float) and name != "epoch" and "majority_share" not in name
    ]
    return "  ".join(shown)
