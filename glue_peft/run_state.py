"""Is the run in a folder finished, open, broken, or another one? The one decision of --resume and of every sweep."""

import os
from pathlib import Path
from typing import Any

from glue_peft.flags import ADDABLE, GOES_WITH_ADDABLE, additions, differences, flags_of, given_flags
from glue_peft.run_folder import COMMAND_FILE, RECORD_FILE, files_of_a_run, is_ours, read_json
from glue_peft.tasks import TASKS, main_metric, result_keys


def state(folder: Path, flags: list[str]) -> tuple[str, str]:
    """Return how a run with these flags stands in `folder`, and why: the one decision of a sweep and of --resume.

    `finished`: nothing to do. `open`: to be started or resumed. `broken`: its results can't be used, so it is run
    again. `extend`: finished, but asked for more that needs no training, as --do_predict. `other`: the folder holds a
    run of other arguments, or somebody's files, and is neither skipped nor overwritten.
    """
    if not files_of_a_run(folder):
        return "open", ""
    ended = (folder / RECORD_FILE).exists()
    record = read_json(folder / RECORD_FILE)
    known = next((found for found in (record, read_json(folder / COMMAND_FILE)) if any(flags_of(found))), None)
    if known is None:
        if not is_ours(folder):
            return "other", f"no record in it says that a run made its {files_of_a_run(folder)[0]}"
        # Checkpoints from before there was a command.json are resumed, as they always were.
        return ("other", f"{RECORD_FILE} doesn't say by which arguments it was made") if ended else ("open", "")
    changed = differences(known, flags, {*ADDABLE, *GOES_WITH_ADDABLE})
    added, asked = additions(known, flags), given_flags(flags)
    if not added:
        free = {*ADDABLE} | (set() if asked.get("do_predict") else {"max_predict_samples", "test_file"})
        changed += [line for line in differences(known, flags, free) if line not in changed]
    if changed:
        during = ended and any(line.startswith("--eval_strategy ") for line in changed)
        return "other", ", ".join(changed) + "; a finished run can't be evaluated at its earlier epochs" * during
    if not ended:
        return "open", ""
    fault = fault_of_results(folder, record, asked | dict.fromkeys(added, None))
    if fault:
        return "broken", fault
    return ("extend", " ".join(f"--{name}" for name in added)) if added else ("finished", "")


def fault_of_results(folder: Path, record: dict[str, Any] | None, flags: dict[str, object]) -> str | None:
    """Say what is wrong with the results of a run that has ended; None where nothing is."""
    if record is None:
        return f"{RECORD_FILE} is not a JSON object"
    if not any(flags_of(record)):
        return f"{RECORD_FILE} doesn't say by which arguments it was made"
    for name in ("adapter_model.safetensors", "model.safetensors"):
        size = os.path.getsize(folder / name) if (folder / name).exists() else None
        if None not in (size, record.get("saved_bytes")) and size != record["saved_bytes"]:
            return f"{name} has {size} bytes, not the {record['saved_bytes']} of {RECORD_FILE}"
    if not flags.get("do_eval"):
        return None
    results = read_json(folder / "eval_results.json")
    if results is None:
        return "eval_results.json is missing or not a JSON object"
    task = str(flags.get("task_name")).lower()
    for key in result_keys(task, main_metric(task)) if task in TASKS else ():
        if not isinstance(results.get(key), int | float):
            return f"eval_results.json has no {key}"
    return None
