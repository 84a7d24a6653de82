"""What a start of run_glue.py makes of the folder that it finds: refuse it, skip the run, resume it, or clear it."""

import logging
import os
from pathlib import Path
from typing import Any

from glue_peft import run_folder
from glue_peft.arguments import AdapterArguments, GlueTrainingArguments, ModelArguments
from glue_peft.errors import UsageError
from glue_peft.flags import additions, differences
from glue_peft.run_state import state
from glue_peft.trainer import processes_and_precision

# In what a run that is trained further may differ: the optimizer's settings would come from the checkpoint.
LENGTHENING_FLAGS = frozenset(
    "num_train_epochs max_steps do_eval do_predict max_predict_samples eval_strategy eval_steps save_strategy "
    "save_steps save_merged".split()
)

logger = logging.getLogger("run_glue")


def look_at(output_dir: Path, args: GlueTrainingArguments, command: list[str]) -> str:
    """Return what is to be done in --output_dir: nothing (finished), more (extend) or the run itself (open).

    Raises UsageError where --output_dir holds another run, or somebody's files.
    """
    left = run_folder.files_of_a_run(output_dir)
    if left and not run_folder.is_ours(output_dir):
        raise UsageError(
            f"--output_dir {output_dir} holds {left[0]}, and no record that says a run made it: give another folder"
        )
    named = args.resume_from_checkpoint and Path(os.path.realpath(args.resume_from_checkpoint)).parent == Path(
        os.path.realpath(output_dir)
    )
    if left and not (args.resume or args.overwrite_output_dir or named):
        raise UsageError(
            f"--output_dir {output_dir} holds a run already ({left[0]}): give --resume to continue it, "
            "--overwrite_output_dir to delete it, or another folder"
        )
    if not args.resume:
        return "open"
    found, reason = state(output_dir, command)
    if found == "finished":
        logger.info(f"{output_dir} holds a finished run: nothing to do")
        if args.should_save and not args.keep_checkpoints:
            run_folder.delete_checkpoints(output_dir)  # left where the run was killed at its very end
        return found
    if found == "extend":
        logger.info(f"{output_dir} holds a finished run: {reason} is added, from what it saved")
        return found
    if found == "other":
        raise UsageError(
            f"--output_dir {output_dir} holds another run: {reason}. Give another folder, or --overwrite_output_dir "
            "in place of --resume to delete it"
        )
    if found == "broken":
        logger.warning(f"{output_dir}: the results can't be used, as {reason}: it is run again")
    if not left:
        logger.info(f"--resume: nothing to resume in {output_dir}, starting afresh")
    return "open"


def extend(
    output_dir: Path,
    command: list[str],
    model_args: ModelArguments,
    adapter_args: AdapterArguments,
    args: GlueTrainingArguments,
) -> dict[str, Any]:
    """Let the arguments ask for what a finished run lacks, from what it saved, and nothing else; return its record."""
    record = run_folder.read_json(output_dir / run_folder.RECORD_FILE) or {}
    added = additions(record, command)
    args.do_train = False
    args.do_eval, args.do_predict = (getattr(args, name) and name in added for name in ("do_eval", "do_predict"))
    adapter_args.save_merged = adapter_args.save_merged if "save_merged" in added else None
    adapter_args.init_adapter_from = adapter_args.adapter_config = None
    if (output_dir / "adapter_config.json").exists():
        adapter_args.adapter_path = str(output_dir)
    else:
        model_args.model_name_or_path = str(output_dir)
    return record


def find_checkpoint(output_dir: Path, args: GlueTrainingArguments, command: list[str]) -> Path | None:
    """Return the checkpoint to resume from: the one that was named, or with --resume the last complete one.

    Raises UsageError where it is incomplete, or of another run, number of processes or precision.
    """
    if args.resume_from_checkpoint is not None:
        checkpoint = Path(args.resume_from_checkpoint)
        if not run_folder.is_complete(checkpoint):
            raise UsageError(f"--resume_from_checkpoint {checkpoint}: not a complete checkpoint of Trainer")
        started = run_folder.read_json(checkpoint.parent / run_folder.COMMAND_FILE)
        changed = differences(started, command, LENGTHENING_FLAGS) if started else []
        if changed:
            raise UsageError(f"--resume_from_checkpoint {checkpoint}: belongs to another run: {', '.join(changed)}")
        check_machine(checkpoint, args)
        return checkpoint
    if not (args.resume and args.do_train):
        return None
    checkpoint, broken = run_folder.last_complete_checkpoint(output_dir)
    for path in broken:
        logger.warning(f"{path} is truncated: it is not used, resuming from {checkpoint or 'the start'}")
    if checkpoint is not None:
        check_machine(checkpoint, args)
        logger.info(f"Resuming from {checkpoint}")
    return checkpoint


def check_machine(checkpoint: Path, args: GlueTrainingArguments) -> None:
    """Raise UsageError where a checkpoint is of another number of processes or another precision than this start."""
    so_far = run_folder.read_json(checkpoint / run_folder.PROGRESS_FILE) or {}
    for name, now in processes_and_precision(args).items():
        if so_far.get(name, now) != now:
            raise UsageError(
                f"{checkpoint} is of a run with {name} {so_far[name]}, and this start has {now}, which would train "
                "something else: resume it on a machine like that, or give --overwrite_output_dir to start afresh"
            )


def clear_output_dir(output_dir: Path, args: GlueTrainingArguments, checkpoint: Path | None) -> None:
    """Set aside what an earlier run left, unless it is resumed; called once nothing can be refused any more."""
    with args.main_process_first(desc="preparing the output folder"):
        if args.should_save and checkpoint is None and run_folder.written_by_runs(output_dir):
            run_folder.set_aside(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        if args.should_save:
            run_folder.clear_results(output_dir)  # also of a run that had ended, and is trained further
