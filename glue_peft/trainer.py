"""Trainer as a run needs it: stops when asked to, resumes to the bit, fails in one line, saves what a reload needs."""

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, SchedulerType, TrainOutput
from transformers.training_args import OptimizerNames

from glue_peft import adalora, adapter_state, run_folder
from glue_peft.adapters import head_parameters
from glue_peft.arguments import GlueTrainingArguments
from glue_peft.data import Task
from glue_peft.errors import (
    DivergedError,
    RunFailedError,
    StoppedBySignal,
    UsageError,
    as_usage_error,
    first_line,
    is_disk_full,
    is_out_of_memory,
)
from glue_peft.eval_predictions import EvalPredictions
from glue_peft.flag_effects import METRIC_SCHEDULERS
from glue_peft.learning_rates import parse_rates, patterns_of, split_groups
from glue_peft.metric import finite_logits
from glue_peft.progress import TRAINERS_OWN, Bars, LogLines
from glue_peft.record import Scores, choose_scores, ends_history, history_of, without_timings
from glue_peft.run_folder import Failure

# Trainer's private names in use here, to be looked at whenever transformers' version moves: _run_epoch, _save,
# _save_checkpoint, _load_from_checkpoint, _load_best_model and _maybe_log_save_evaluate are extended;
# _get_eval_sampler is replaced; _evaluate and _determine_best_metric are called; _tr_loss and _globalstep_last_logged
# are read and set. (arguments.py sets _n_gpu of TrainingArguments.)

# A scheduler's order, its warning some time before, and a closed terminal.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class StopOnSignal(TrainerCallback):
    """Stops the run when one of STOP_SIGNALS arrives, unless it was ignored at the start, as nohup makes SIGHUP.

    In training it stops after the step it is in, with a checkpoint and without an evaluation; elsewhere at once, as
    the last checkpoint is still there.
    """

    def __init__(self) -> None:
        """Take the signals over."""
        self.received: str | None = None
        self.in_training = False
        self.group: torch.distributed.ProcessGroup | None = None
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.receive)

    def receive(self, number: int, frame: Any) -> None:
        """Handle a signal."""
        self.received = signal.Signals(number).name
        if not self.in_training:
            raise StoppedBySignal(f"stopped by {self.received}: start it again with --resume")

    def on_train_begin(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        """End a step first, from here on; several processes get a way to agree after each that asks no GPU."""
        self.in_training = True
        if args.world_size > 1:
            self.group = torch.distributed.new_group(backend="gloo")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save, and don't evaluate, if the signal has come; an epoch's log line would be lost after this."""
        if self.is_asked(args):
            control.should_save, control.should_evaluate = True, False
            if args.logging_strategy == "epoch" and ends_epoch(state):
                control.should_log = True

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Stop, now that the checkpoint is complete: before Trainer would end as if the run had finished."""
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
        """Say whether this process, or any of several, got the signal: all have to end after the same step."""
        if args.world_size > 1:
            asked = torch.tensor(self.received is not None, dtype=torch.int32)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, self.group)
            if asked.item():
                self.received = self.received or "a signal to another process"
        return self.received is not None


class FirstStep(TrainerCallback):
    """Deletes the run that this one replaces, once this one has taken a step whose loss is a number."""

    def __init__(self, trainer: "GlueTrainer") -> None:
        """Keep the trainer, which Trainer doesn't hand to its callbacks."""
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        """Delete it; after the first step there is none."""
        folder = Path(args.output_dir)
        if args.should_save and (folder / run_folder.REPLACED).exists():
            self.trainer.read_loss_sum()
            run_folder.discard_replaced(folder)


def ends_epoch(state: TrainerState) -> bool:
    """Say whether Trainer ends an epoch after this step: a full one, or the one that the run ends in."""
    return float(state.epoch or 0).is_integer() or state.global_step >= state.max_steps


class ResumeRepairs(TrainerCallback):
    """Restores what Trainer loses between two starts of a training, before the first step."""

    def __init__(self, trainer: "GlueTrainer") -> None:
        """Keep the trainer, which Trainer doesn't hand to its callbacks."""
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Repair Trainer's counts, then its best checkpoint, then a missing evaluation."""
        self.go_on_counting()
        self.find_best_checkpoint(args, state)
        self.make_up_for_evaluation(args, state)

    def go_on_counting(self) -> None:
        """Let the next log line's mean loss count from the last log line, as if the run had not been stopped."""
        loss, steps = self.trainer.unlogged
        self.trainer._tr_loss += loss
        self.trainer._globalstep_last_logged -= steps

    def find_best_checkpoint(self, args: TrainingArguments, state: TrainerState) -> None:
        """Point to the best checkpoint where it is now: the folder may have been moved since it was saved.

        Raises UsageError where it is gone; Trainer would keep the last one without a word.
        """
        if not (args.load_best_model_at_end and state.best_global_step):
            return
        here = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
        if here.is_dir():
            state.best_model_checkpoint = str(here)
        elif state.best_model_checkpoint is None:
            raise UsageError(f"--load_best_model_at_end: the best checkpoint, {here}, is not there any more")

    def make_up_for_evaluation(self, args: TrainingArguments, state: TrainerState) -> None:
        """Evaluate where a signal came in the last step before an evaluation: on resuming, before the next step."""
        due = False  # by the rules of transformers' DefaultFlowCallback
        if args.eval_strategy == "epoch":
            due = ends_epoch(state) and args.eval_delay <= (state.epoch or 0)
        elif args.eval_strategy == "steps":
            at_end = state.global_step >= state.max_steps
            due = (at_end or state.global_step % state.eval_steps == 0) and args.eval_delay <= state.global_step
        loss = f"{next(iter(self.trainer.evaluations), 'eval')}_loss"
        done = any(entry["step"] == state.global_step and loss in entry for entry in state.log_history)
        if state.global_step and due and not done:
            metrics = self.trainer._evaluate(trial=None, ignore_keys_for_eval=None)
            if self.trainer._determine_best_metric(metrics, trial=None):
                state.best_model_checkpoint = str(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class GlueTrainer(Trainer):
    """Trainer that ends at a loss that is no number, counts across resumes, and saves what stock PEFT reloads."""

    def __init__(
        self,
        *args: Any,
        evaluations: dict[str, datasets.Dataset],
        eval_predictions: EvalPredictions | None,
        callbacks: list[TrainerCallback],
        **kwargs: Any,
    ) -> None:
        """Build it; `evaluations` maps prefixes of metrics to the rows that are evaluated during the training.

        `eval_predictions`, where given, gets what the model answers on the validation sets.
        """
        kwargs["eval_dataset"] = next(iter(evaluations.values()), None)
        super().__init__(*args, callbacks=[*callbacks, LogLines(), ResumeRepairs(self), FirstStep(self)], **kwargs)
        for callback in TRAINERS_OWN:
            self.remove_callback(callback)
        if not self.args.disable_tqdm:
            self.add_callback(Bars())
        # Trainer takes RoBERTa's forward for one that divides the loss by the number of items in all of a step's
        # batches. It does not, so with gradient accumulation g or N processes loss and gradients would come out g or N
        # times too large.
        self.model_accepts_loss_kwargs = False
        # A copy from pinned memory needn't be waited for.
        self.accelerator.dataloader_config.non_blocking = self.args.dataloader_pin_memory
        self.evaluations = evaluations
        self.eval_predictions = eval_predictions
        self.outputs: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # prefix -> logits and labels of the latest one
        self.history: list[dict[str, float]] = []  # the evaluations during the training
        self.began = 0.0  # time.time() at the start of the training
        self.seconds_before = 0.0  # in training, before it was resumed
        # Of all steps, those before it was resumed included; on the device, so that no step waits for its loss.
        exact = torch.float32 if self.args.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        self.loss_sum = torch.zeros((), dtype=exact, device=self.args.device)
        # When it was resumed: the sum of the losses since the last log line, and of how many steps.
        self.unlogged: tuple[float, int] = (0.0, 0)
        self.fixed = adapter_state.describe_fixed(self.model, self.args.seed)
        self.rates = parse_rates(self.args.learning_rates, self.args.classifier_learning_rate)
        self.patterns = patterns_of(self.model, head_parameters(self.model), self.rates) if self.args.do_train else {}
        if adalora.is_adalora(self.model) and self.args.do_train:
            steps = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
            self.add_callback(adalora.AllocateRanks(self.model, steps))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create Trainer's optimizer, with groups of their own for parameters that have a rate of their own."""
        optimizer = super().create_optimizer(model)
        if self.rates:
            split_groups(optimizer, self.patterns, self.rates)
        return optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> torch.optim.lr_scheduler.LRScheduler:
        """Create Trainer's scheduler; one that watches a metric is told whether more of it is better."""
        if self.args.lr_scheduler_type in METRIC_SCHEDULERS:
            mode = "max" if self.args.greater_is_better else "min"
            self.args.lr_scheduler_kwargs = {"mode": mode} | (self.args.lr_scheduler_kwargs or {})
        return super().create_scheduler(*args, **kwargs)

    def rehearse(self) -> None:
        """Build what Trainer builds when the training starts, and send one row through the model; then forget it.

        Raises UsageError: a package that an optimizer needs, arguments that a scheduler lacks, a loss that the labels
        don't allow, all show before anything of an earlier run is touched.
        """
        args = self.args
        rows = self.train_dataset if args.do_train else self.eval_dataset
        smoothing = f" with --label_smoothing_factor {args.label_smoothing_factor}" * bool(args.label_smoothing_factor)
        try:
            with torch.random.fork_rng():
                if args.do_train:
                    optimizer, scheduler = OptimizerNames(args.optim), SchedulerType(args.lr_scheduler_type)
                    kinds = f"--optim {optimizer.value} and --lr_scheduler_type {scheduler.value}"
                    with as_usage_error(f"the training can't start with {kinds}"):
                        self.create_optimizer_and_scheduler(num_training_steps=1)
                    if args.activation_checkpointing and not self.model.supports_gradient_checkpointing:
                        raise UsageError(f"--gradient_checkpointing: {type(self.model).__name__} doesn't support it")
                if rows is not None:
                    with as_usage_error(f"the loss of a row can't be computed{smoothing}"):
                        batch = self._prepare_inputs(self.data_collator([rows[0]]))
                        with torch.no_grad(), self.compute_loss_context_manager():
                            self.compute_loss(self.model.to(args.device), batch)
        finally:
            self.optimizer = self.lr_scheduler = None

    def train(self, resume_from_checkpoint: Path | None = None, **kwargs: Any) -> TrainOutput:
        """Train; report time and mean loss since the first start, and of all processes, unlike Trainer.

        Raises DivergedError.
        """
        progress = resume_from_checkpoint and run_folder.read_json(resume_from_checkpoint / run_folder.PROGRESS_FILE)
        if progress:
            self.loss_sum.fill_(progress["loss_sum"])
            self.seconds_before = progress["seconds"]
            self.unlogged = progress.get("unlogged_loss", 0.0), progress.get("unlogged_steps", 0)
        if resume_from_checkpoint and self.eval_predictions is not None:
            self.eval_predictions.recall(resume_from_checkpoint)
        self.began = time.time()
        result = super().train(str(resume_from_checkpoint) if resume_from_checkpoint else None, **kwargs)
        loss = self.mean_over_processes(self.read_loss_sum()) / self.state.global_step
        corrected = {"train_runtime": result.metrics["train_runtime"] + self.seconds_before, "train_loss": loss}
        self.state.log_history[-1] |= corrected
        self.history = history_of(self.state.log_history)
        return TrainOutput(result.global_step, loss, result.metrics | corrected)

    def recall_training(self) -> None:
        """Know of the finished training in the output folder what its evaluations were: more is asked of it now."""
        path = Path(self.args.output_dir) / run_folder.STATE_FILE
        if path.exists():
            self.state = TrainerState.load_from_json(str(path))
            self.history = history_of(self.state.log_history)

    def evaluate(
        self,
        eval_dataset: datasets.Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate; in training (no rows given) on every set, and without moving the random state.

        A data loader draws a number whenever it starts: without the fork, looking at a run would change it.
        """
        as_saved = adalora.as_saved if adalora.is_adalora(self.model) else contextlib.nullcontext
        with as_saved(self.model):
            if eval_dataset is None:
                return self.evaluate_in_training(ignore_keys)
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            metrics.pop(f"{metric_key_prefix}_model_preparation_time", None)  # where nothing was trained
            return metrics

    def evaluate_in_training(self, ignore_keys: list[str] | None) -> dict[str, float]:
        """Evaluate on every set without moving the random state."""
        with torch.random.fork_rng(devices=[]):
            metrics: dict[str, float] = {}
            for prefix, rows in self.evaluations.items():
                metrics |= super().evaluate(rows, ignore_keys, prefix)
        suffixes = [prefix.removeprefix("eval") for prefix in self.evaluations if prefix != "eval_selection"]
        if self.eval_predictions is not None and suffixes:
            (entry,) = history_of([metrics | {"step": self.state.global_step}])
            self.eval_predictions.add(entry, {suffix: self.outputs[f"eval{suffix}"] for suffix in suffixes})
        return metrics

    def conclude(
        self, final: dict[str, float], outputs: dict[str, tuple[np.ndarray, np.ndarray]], task: Task
    ) -> Scores | None:
        """Return the scores of a run that trained, and write what it answered on the validation sets.

        Of the saved model `final` are the metrics, and `outputs` logits and labels of each validation set, by suffix.
        """
        scores, epoch, saves_best = None, self.state.epoch or 0.0, self.args.load_best_model_at_end
        if self.state.global_step:  # trained in this start, or an earlier one
            scores = choose_scores(self.history, final, epoch, task.main_metric, task.greater_is_better, saves_best)
        if self.eval_predictions is not None and outputs:
            if ends_history(self.history, final, saves_best):
                self.eval_predictions.add({"epoch": epoch, **without_timings(final)}, outputs)
            self.eval_predictions.settle()
            if self.args.should_save:
                self.eval_predictions.save(Path(self.args.output_dir), scores or {"last": {"epoch": epoch}})
        return scores

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Run Trainer's loop; with several processes, let the loss be the mean over the rows, each once.

        Trainer then averages batches' means, those with rows that only fill the last batch up among them.
        """
        output = super().evaluation_loop(*args, **kwargs)
        if output.label_ids is not None:
            self.outputs[kwargs["metric_key_prefix"]] = finite_logits(output.predictions), output.label_ids
        names = [name for name in output.metrics if name.endswith("_loss")]
        if self.args.world_size > 1 and names and output.label_ids is not None:
            logits, labels = torch.as_tensor(finite_logits(output.predictions)), torch.as_tensor(output.label_ids)
            output.metrics[names[0]] = self.loss_of(logits, labels).item()
        return output

    def loss_of(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of logits [rows, outputs] against labels [rows], as compute_loss does."""
        if self.model.config.problem_type == "regression":
            return nn.functional.mse_loss(logits.squeeze(-1).double(), labels.double())
        smoothing = self.args.label_smoothing_factor
        return nn.functional.cross_entropy(logits.double(), labels.long(), label_smoothing=smoothing)

    def _get_eval_sampler(self, eval_dataset: datasets.Dataset) -> torch.utils.data.Sampler | None:
        """Return Trainer's sampler for evaluations, which keeps the rows' order.

        With --train_sampling_strategy group_by_length Trainer would sort them by length, and its predictions too.
        """
        return torch.utils.data.SequentialSampler(eval_dataset) if self.args.world_size == 1 else None

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run one forward and backward pass, and add its loss up."""
        loss = super().training_step(*args, **kwargs)
        self.loss_sum += loss
        return loss

    def read_loss_sum(self) -> float:
        """Return the sum of all steps' losses. Raises DivergedError where one of them was no number.

        A sum that is NaN or infinite stays so. A GPU is waited for here, and so only where Trainer does that anyway.
        """
        value = self.loss_sum.item()
        if not math.isfinite(value):
            raise DivergedError(f"the training loss is {value} at step {self.state.global_step} or before")
        return value

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log, evaluate and save as Trainer does, but nothing of a training that has diverged."""
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self.read_loss_sum()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train an epoch; Trainer itself would go on for a step where it resumes after the last one in mid-epoch."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def mean_over_processes(self, value: float) -> float:
        """Return the mean of what each process has."""
        if self.args.world_size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.args.device)
        return self.accelerator.reduce(tensor, reduction="mean").item()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save with the checkpoint the sums of losses and the seconds, which Trainer counts from its last start."""
        so_far = {
            "loss_sum": self.mean_over_processes(self.read_loss_sum()),
            "unlogged_loss": self.mean_over_processes(self._tr_loss.item()),
            "unlogged_steps": self.state.global_step - self._globalstep_last_logged,
            "seconds": self.seconds_before + time.time() - self.began,
            **processes_and_precision(self.args),
        }
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            run_folder.write_json(folder / run_folder.PROGRESS_FILE, so_far)
            if self.eval_predictions is not None:
                self.eval_predictions.save(folder)
            if isinstance(self.model, PeftModel):
                adapter_state.save_trained_state(self.model, folder)
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load a checkpoint's weights: from our file where PEFT's is less than what is trained."""
        if adapter_state.has_own_state(self.model):
            adapter_state.load_trained_state(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """Load the best checkpoint's weights in the same way."""
        if adapter_state.has_own_state(self.model):
            adapter_state.load_trained_state(self.model, Path(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save the adapter with the base model's config, which keeps the labels, and hashes of what it stands on."""
        if not isinstance(self.model, PeftModel):
            super()._save(output_dir, state_dict)
            return
        # What PEFT computes to save, a prompt encoder's output, it computes as an evaluation does: without dropout.
        was_training = self.model.training
        in_use = adalora.saving if adalora.is_adalora(self.model) else contextlib.nullcontext
        self.model.eval()
        with in_use(self.model), torch.no_grad():
            super()._save(output_dir, state_dict)
        self.model.train(was_training)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            getattr(self.model, "plain_config", self.model.config).save_pretrained(folder)
            adapter_state.save_fixed(self.model, folder, self.fixed)

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """Write <split>_results.json, and add the metrics to all_results.json; each atomically, unlike Trainer."""
        if not self.is_world_process_zero():
            return
        output_dir = Path(self.args.output_dir)
        run_folder.write_json(output_dir / f"{split}_results.json", metrics)
        if combined:
            together = (run_folder.read_json(output_dir / "all_results.json") or {}) | metrics
            run_folder.write_json(output_dir / "all_results.json", together)

    def save_state(self) -> None:
        """Write trainer_state.json atomically, unlike Trainer."""
        if self.is_world_process_zero():
            with run_folder.atomic_write(Path(self.args.output_dir) / run_folder.STATE_FILE) as temporary:
                self.state.save_to_json(str(temporary))


def processes_and_precision(args: GlueTrainingArguments) -> dict[str, Any]:
    """Return what the launcher and the machine decide, and moves a score: the number of processes, the precision."""
    precision = {"no": "float32"}.get(args.mixed_precision, args.mixed_precision)
    return {"processes": args.world_size, "precision": precision}


@contextlib.contextmanager
def failure_noted(args: GlueTrainingArguments) -> Iterator[None]:
    """Turn a full disk and a lack of memory into one line, and leave any failure, or a stop, in failure.json."""
    folder = Path(args.output_dir)
    try:
        yield
    except UsageError:
        raise
    except KeyboardInterrupt as stop:
        if args.should_save:
            run_folder.write_failure(folder, Failure("stopped", first_line(stop)))
        raise
    except Exception as error:
        failed = error if isinstance(error, RunFailedError) else explain_failure(error, args)
        if failed is not None:  # noted by any of several processes: the loss of one alone may diverge
            run_folder.write_failure(folder, Failure(failed.kind, failed.message))
        # Where another process has failed and noted why, this one's error is only that the other one is gone.
        elif args.should_save and (args.world_size == 1 or run_folder.read_failure(folder) is None):
            run_folder.write_failure(folder, Failure("error", f"{type(error).__name__}: {first_line(error)}"))
        if failed is None or failed is error:
            raise
        raise failed from error


def explain_failure(error: Exception, args: GlueTrainingArguments) -> RunFailedError | None:
    """Return the line for a lack of memory or of disk space; None for any other error."""
    if is_disk_full(error):
        return RunFailedError(
            "disk full", f"{first_line(error)}; make room in {args.output_dir} and start it again with --resume"
        )
    if is_out_of_memory(error):
        return RunFailedError("out of memory", less_memory(args))
    return None


def less_memory(args: GlueTrainingArguments) -> str:
    """Name flags that need less memory for the same global batch."""
    batch = args.per_device_train_batch_size
    if batch == 1:
        return "--per_device_train_batch_size is 1 already: try --gradient_checkpointing or a shorter --max_seq_length"
    factor = next(number for number in range(2, batch + 1) if batch % number == 0)
    return (
        f"the same global batch needs less with --per_device_train_batch_size {batch // factor} "
        f"--gradient_accumulation_steps {factor * args.gradient_accumulation_steps} (evaluation: with "
        f"--per_device_eval_batch_size below {args.per_device_eval_batch_size})"
    )


def end_processes(status: int) -> int:
    """End this one of several processes now, else return its exit status.

    DistributedDataParallel's end joins gloo's threads while it holds the GIL, and now and then waits for ever.
    """
    if torch.distributed.is_initialized():
        if status == 0:
            torch.distributed.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
