"""train_all.sh, called by several files of tests."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from glue_peft import run_folder
from glue_peft.flags import given_flags
from glue_peft.grid import VARIABLES, Run
from glue_peft.tasks import main_metric
from glue_peft.tuning import Tuning, read_tuning

REPOSITORY = Path(__file__).resolve().parents[1]
OWN = (*VARIABLES, "CUDA_MPS_PIPE_DIRECTORY", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTHONPATH")


def environment(**variables: str | None) -> dict[str, str]:
    """Return this process's environment without what steers a sweep, its `python` first, and with `variables`.

    No GPU is seen, so that all machines show the same; CUDA_VISIBLE_DEVICES=None leaves that to nvidia-smi.
    """
    steers = [name for name in os.environ if name in OWN or (name.startswith("SLURM") and name != "SLURM_CONF")]
    kept = {name: value for name, value in os.environ.items() if name not in steers}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    wanted = kept | {"PATH": path, "CUDA_VISIBLE_DEVICES": ""} | variables
    return {name: value for name, value in wanted.items() if value is not None}


def train_all(
    *flags: str, cwd: Path = REPOSITORY, shell: str = "bash", **variables: str | None
) -> subprocess.CompletedProcess[str]:
    """Run the script with environment variables and extra flags."""
    command = [shell, str(REPOSITORY / "train_all.sh"), *flags]
    return subprocess.run(command, cwd=cwd, env=environment(**variables), capture_output=True, text=True)


def dry_run(*flags: str, **variables: str) -> list[str]:
    """Return the lines of the dry run."""
    done = train_all(*flags, DRY_RUN="1", **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# Runs of a search, as TUNE=1 makes them


def tuned(root: Path, *flags: str, **variables: str) -> Tuning:
    """Return what is known of a small tuned sweep into `root`, with rates of 1e-4 to 1e-2 for LoRA and VeRA on RTE."""
    grid = {"MODELS": "FacebookAI/roberta-base", "ADAPTERS": "lora vera", "TASKS": "rte", "SEEDS": "1-2"}
    grid |= {"LEARNING_RATES": "1e-4 1e-3 1e-2", "SEARCH_SEEDS": "101-102", "RESULTS": str(root), "TUNE": "1"}
    return read_tuning({name: value for name, value in (grid | variables).items() if value}, list(flags))


def rate_of(run: Run) -> float:
    """Return the learning rate of a run's command."""
    return float(str(given_flags(run.flags)["learning_rate"]))


def end_search(run: Run, score: float, classes: int = 2, share: float = 0.5) -> None:
    """Leave what a finished run of a search leaves, with a score on held-out rows, `share` of them of one class."""
    folder = Path(run.folder)
    folder.mkdir(parents=True)
    metric = f"selection_{main_metric(run.task)}"
    last = {"epoch": 2.0, metric: score, "selection_predicted_classes": classes, "selection_majority_share": share}
    record = {"command": run.flags, "arguments": {"do_eval": False}, "scores": {"metric": metric, "last": last}}
    for name in (run_folder.COMMAND_FILE, run_folder.RECORD_FILE):
        run_folder.write_json(folder / name, record)


def diverge(run: Run) -> None:
    """Leave what a run leaves whose loss was no number."""
    folder = Path(run.folder)
    folder.mkdir(parents=True)
    run_folder.write_json(folder / run_folder.COMMAND_FILE, {"command": run.flags, "arguments": {}})
    run_folder.write_failure(folder, run_folder.Failure("diverged", "the training loss is nan at step 3"))


def end_searches(root: Path, score_of: Callable[[Run], float | None], *flags: str, **variables: str) -> Tuning:
    """End every run of a search, those of extended grids too; a score of None stands for a run that diverges.

    A negative score is that of a constant output.
    """
    while not (now := tuned(root, *flags, **variables)).chosen:
        for run in now.search:
            if not Path(run.folder).exists():
                score = score_of(run)
                if score is None:
                    diverge(run)
                else:
                    end_search(run, abs(score), classes=1 + (score > 0))
    return now
