"""Trainer as a run needs it: it stops when asked to, resumes to the bit, fails in one line, saves what a reload needs.

Imported by run_glue.py.
"""

import contextlib
import errno
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from glue_peft import run_folder
from glue_peft.adapters import hash_tensors, head_parameters, random_bases
from glue_peft.arguments import GlueTrainingArguments
from glue_peft.errors import DivergedError, RunFailedError, StoppedBySignal, UsageError, first_line
from glue_peft.run_folder import Failure


@contextlib.contextmanager
def failure_noted(args: GlueTrainingArguments) -> Iterator[None]:
    """Turn a full disk and a lack of memory into one line, and leave any failure, or a stop, in failure.json."""
    try:
        yield
    except UsageError:
        raise
    except KeyboardInterrupt as stop:
        if args.should_save:
            run_folder.write_failure(Path(args.output_dir), Failure("stopped", first_line(stop)))
        raise
    except Exception as error:
        failed = error if isinstance(error, RunFailedError) else explain_failure(error, args)
        if args.should_save or isinstance(failed, RunFailedError):  # one process's loss alone may diverge
            # Where one of several processes has ended and said why, what the others meet is only its absence.
            folder = Path(args.output_dir)
            if args.world_size == 1 or failed is not None or run_folder.read_failure(folder) is None:
                plain = Failure("error", f"{type(error).__name__}: {first_line(error)}")
                run_folder.write_failure(folder, Failure(failed.kind, failed.message) if failed else plain)
        if failed is None or failed is error:
            raise
        raise failed from error


def explain_failure(error: Exception, args: GlueTrainingArguments) -> RunFailedError | None:
    """The line for what the machine lacks: memory or disk space; None for any other error."""
    text = str(error)
    # torch.save and safetensors hide the system's error in a RuntimeError and an Exception of their own.
    full = (
        "No space left on device",
        "File too large",
        "Disk quota exceeded",
        "inline_container.cc",  # torch.save, which doesn't say why
    )
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) or any(
        sign in text for sign in full
    ):
        return RunFailedError(
            "disk full", f"{first_line(error)}; make room in {args.output_dir} and start it again with --resume"
        )
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
        return RunFailedError("out of memory", less_memory(args))
    return None


def less_memory(args: GlueTrainingArguments) -> str:
    """Flags that need less memory for the same global batch."""
    batch = args.per_device_train_batch_size
    if batch == 1:
        return "--per_device_train_batch_size is 1 already: try --gradient_checkpointing or a shorter --max_seq_length"
    factor = next(number for number in range(2, batch + 1) if batch % number == 0)
    return (
        f"the same global batch needs less with --per_device_train_batch_size {batch // factor} "
        f"--gradient_accumulation_steps {factor * args.gradient_accumulation_steps} (evaluation: with "
        f"--per_device_eval_batch_size below {args.per_device_eval_batch_size})"
    )


def processes_and_precision(args: GlueTrainingArguments) -> dict[str, Any]:
    """What the machine and the launcher decide about the numbers: the global batch and the precision."""
    precision = {"no": "float32"}.get(args.mixed_precision, args.mixed_precision)
    return {"processes": args.world_size, "precision": precision}


class StopOnSignal(TrainerCallback):
    """Stops the run when SIGTERM, or SIGUSR1 as a scheduler's warning, arrives.

    In training it stops after the step it is in, with a checkpoint and without an evaluation; elsewhere at once, as
    the last checkpoint is still there.
    """

    def __init__(self) -> None:
        """Take the signals over."""
        self.received: str | None = None
        self.in_training = False
        self.trainer: GlueTrainer | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self.receive)

    def receive(self, number: int, frame: Any) -> None:
        """Handle a signal."""
        self.received = signal.Signals(number).name
        if not self.in_training:
            raise StoppedBySignal(f"stopped by {self.received}: start it again with --resume")

    def on_train_begin(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        """From here on a step is ended first. What an earlier signal left undone is done now."""
        self.in_training = True
        self.trainer.go_on_counting()
        self.trainer.find_best_checkpoint()
        self.trainer.make_up_for_evaluation()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save, and don't evaluate, if the signal has come; an epoch's log line would be lost after this."""
        if self.is_asked(args):
            control.should_save, control.should_evaluate = True, False
            if args.logging_strategy == "epoch" and GlueTrainer.ends_epoch(state):
                control.should_log = True

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Stop, now that the checkpoint is whole: before Trainer would end as if the run had finished."""
        if self.is_asked(args):
            self.stop(state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Stop for a signal that came after the last checkpoint; from here on stop at once again."""
        if self.received:
            self.stop(state)
        self.in_training = False

    def stop(self, state: TrainerState) -> None:
        """Raise StoppedBySignal."""
        raise StoppedBySignal(
            f"stopped by {self.received} after step {state.global_step} of {state.max_steps}: start it again with "
            "--resume"
        )

    def is_asked(self, args: TrainingArguments) -> bool:
        """Whether this process, or any of several, got the signal: all of them have to end after the same step."""
        if args.world_size > 1:
            asked = torch.tensor(self.received is not None, dtype=torch.int32, device=args.device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            if asked.item():
                self.received = self.received or "a signal to another process"
        return self.received is not None


class GlueTrainer(Trainer):
    """Trainer that ends at a loss that is no number, and saves what a reload with stock PEFT needs.

    `further_evaluations` maps the prefix of metrics to the rows that are evaluated beside the validation set.
    """

    further_evaluations: dict[str, datasets.Dataset]
    began = 0.0
    seconds_before = 0.0  # in training, before it was resumed
    loss_sum = 0.0  # of all steps, those before it was resumed included
    unlogged = (0.0, 0)  # when it was resumed: the sum of the losses since the last log line, and of how many steps

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's optimizer, with the head's parameters in groups of their own if they have their own rate."""
        optimizer = super().create_optimizer(model)
        rate = self.args.classifier_learning_rate
        if rate is not None and not any(group.get("is_head") for group in optimizer.param_groups):
            head = {id(parameter) for parameter in head_parameters(self.model)}
            for group in list(optimizer.param_groups):
                in_head = [parameter for parameter in group["params"] if id(parameter) in head]
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in head]
                if in_head:
                    optimizer.add_param_group({**group, "params": in_head, "lr": rate, "is_head": True})
        return optimizer

    def evaluate(
        self,
        eval_dataset: datasets.Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate; in training (no rows given) on the further sets too, and without moving the random state.

        A data loader draws a number whenever it starts: without the fork, looking at a run would change it.
        """
        if eval_dataset is not None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        with torch.random.fork_rng(devices=[]):
            metrics = super().evaluate(None, ignore_keys, metric_key_prefix)
            for prefix, rows in self.further_evaluations.items():
                metrics |= super().evaluate(rows, ignore_keys, prefix)
        return metrics

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass; raises DivergedError."""
        loss = super().training_step(*args, **kwargs)
        value = loss.item()  # on a GPU the one wait of a step
        if not math.isfinite(value):
            raise DivergedError(f"the training loss is {value} at step {self.state.global_step + 1}")
        self.loss_sum += value
        return loss

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train an epoch; Trainer itself would go on for a step where it resumes after the last one in mid-epoch."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    @staticmethod
    def ends_epoch(state: TrainerState) -> bool:
        """Whether Trainer ends an epoch after this step: a whole one, or the one that the run ends in."""
        return float(state.epoch or 0).is_integer() or state.global_step >= state.max_steps

    def go_on_counting(self) -> None:
        """Let the next log line's mean loss count from the last log line, as if the run had not been stopped."""
        loss, steps = self.unlogged
        self._tr_loss += loss
        self._globalstep_last_logged -= steps

    def find_best_checkpoint(self) -> None:
        """Point to the best checkpoint where it is now: the folder may have been moved since it was saved.

        Raises UsageError where it is gone; Trainer would keep the last one without a word.
        """
        state = self.state
        if not (self.args.load_best_model_at_end and state.best_global_step):
            return
        here = Path(self.args.output_dir) / f"checkpoint-{state.best_global_step}"
        if here.is_dir():
            state.best_model_checkpoint = str(here)
        elif state.best_model_checkpoint is None:
            raise UsageError(f"--load_best_model_at_end: the best checkpoint, {here}, is not there any more")

    def make_up_for_evaluation(self) -> None:
        """Evaluate where a signal came in the last step before an evaluation: on resuming, before the next step."""
        state, strategy = self.state, self.args.eval_strategy
        due = False  # by the rules of transformers' DefaultFlowCallback
        if strategy == "epoch":
            due = self.ends_epoch(state) and self.args.eval_delay <= (state.epoch or 0)
        elif strategy == "steps":
            at_end = state.global_step >= state.max_steps
            due = (at_end or state.global_step % state.eval_steps == 0) and self.args.eval_delay <= state.global_step
        done = any(entry["step"] == state.global_step and "eval_loss" in entry for entry in state.log_history)
        if state.global_step and due and not done:
            metrics = self._evaluate(trial=None, ignore_keys_for_eval=None)
            if self._determine_best_metric(metrics, trial=None):
                state.best_model_checkpoint = str(Path(self.args.output_dir) / f"checkpoint-{state.global_step}")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save with the checkpoint the sums of losses and the seconds, which Trainer counts from its last start."""
        so_far = {
            "loss_sum": self.mean_over_processes(self.loss_sum),
            "unlogged_loss": self.mean_over_processes(self._tr_loss.item()),
            "unlogged_steps": self.state.global_step - self._globalstep_last_logged,
            "seconds": self.seconds_before + time.time() - self.began,
            **processes_and_precision(self.args),
        }
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            run_folder.write_json(folder / run_folder.PROGRESS_FILE, so_far)
        super()._save_checkpoint(model, trial)

    def mean_over_processes(self, value: float) -> float:
        """The mean of what each process has."""
        if self.args.world_size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.args.device)
        return self.accelerator.reduce(tensor, reduction="mean").item()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save the adapter with the base model's config, which keeps the labels, and the hash of its random bases."""
        super()._save(output_dir, state_dict)
        if not self.args.should_save or not isinstance(self.model, PeftModel):
            return
        folder = Path(output_dir or self.args.output_dir)
        self.model.get_base_model().config.save_pretrained(folder)
        bases = random_bases(self.model)
        if bases:
            key = self.model.active_peft_config.projection_prng_key
            run_folder.write_json(
                folder / run_folder.BASES_FILE, {"sha256": hash_tensors(bases), "projection_prng_key": key}
            )
