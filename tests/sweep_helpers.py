"""train_all.sh, called by several files of tests."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
OWN = (
    "RECIPE MODELS ADAPTERS TASKS SEEDS RESULTS TAG PYTHON DRY_RUN STATUS MISSING JOBS GPUS JOBS_PER_GPU MPS RETRIES "
    "CUDA_MPS_PIPE_DIRECTORY OMP_NUM_THREADS CUDA_VISIBLE_DEVICES PYTHONPATH"
).split()


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
