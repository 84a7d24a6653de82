"""NVIDIA's MPS for a sweep: runs that share a GPU compute on it at the same time, where otherwise they take turns.

MPS is a daemon, nvidia-cuda-mps-control, that needs no root; CUDA finds it by a folder in the environment. The sweep
starts one of its own and ends it when its runs have ended, so that nothing is left of it but where the sweep was
killed: the daemon then serves the runs that live on.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping

from glue_peft.grid import python_of

COMMAND = "nvidia-cuda-mps-control"
USE_THE_GPU = "import torch; torch.ones(1, device='cuda').item()"
LONGEST_CHECK = 300  # seconds: importing torch takes some, from a slow file system many
LONGEST_END = 30  # seconds: the daemon waits for its clients, which have ended

Slots = list[dict[str, str]]


@contextlib.contextmanager
def shared_gpus(settings: Mapping[str, str], slots: Slots, n_runs: int) -> Iterator[tuple[Slots, list[str]]]:
    """Run a daemon while the block lasts, if of n_runs several share a GPU; give the slots to be used, and a line.

    The line says whether MPS is on, and why not; there is none where no GPU is shared. The daemon has the sweep's GPUs
    alone and numbers them anew from 0, and so do the slots that are returned.
    """
    gpus = list(dict.fromkeys(slot["CUDA_VISIBLE_DEVICES"] for slot in slots if "CUDA_VISIBLE_DEVICES" in slot))
    reason = why_not(settings)
    if not gpus or min(len(slots), n_runs) <= len(gpus):
        yield slots, []
    elif reason:
        yield slots, [reason]
    else:
        with tempfile.TemporaryDirectory(prefix="train_all_mps_", ignore_cleanup_errors=True) as folder:
            places = {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
            for place in places.values():
                os.mkdir(place)
            try:
                problem = start(places, gpus, python_of(settings))
                if problem:
                    yield slots, [f"train_all.sh: MPS is off, as it doesn't work here: {problem}"]
                else:
                    numbers = [str(gpus.index(slot["CUDA_VISIBLE_DEVICES"])) for slot in slots]
                    own = [places | {"CUDA_VISIBLE_DEVICES": number} for number in numbers]
                    line = f"train_all.sh: MPS is on, in {folder}: the runs on a GPU compute at the same time"
                    yield [slot | more for slot, more in zip(slots, own, strict=True)], [line]
            finally:
                end(places)


def why_not(settings: Mapping[str, str]) -> str:
    """Return the line that says why the sweep starts no daemon; nothing where it may."""
    if settings.get("MPS") == "0":
        return "train_all.sh: MPS is off, by MPS=0: the runs on a GPU take turns"
    if settings.get("CUDA_MPS_PIPE_DIRECTORY"):
        return (
            f"train_all.sh: MPS is left to the daemon of CUDA_MPS_PIPE_DIRECTORY={settings['CUDA_MPS_PIPE_DIRECTORY']}"
        )
    if not shutil.which(COMMAND):
        return f"train_all.sh: MPS is off, as there is no {COMMAND}: the runs on a GPU take turns"
    return ""


def start(places: Mapping[str, str], gpus: list[str], python: str) -> str:
    """Start the daemon and compute something through it; return what went wrong, or nothing.

    A daemon that can't start its server, as in some containers, would leave the runs without a GPU.
    """
    commands = {  # and the GPUs that they see
        (COMMAND, "-d"): ",".join(gpus),
        (python, "-c", USE_THE_GPU): "0",
    }
    for command, visible in commands.items():
        environment = os.environ | places | {"CUDA_VISIBLE_DEVICES": visible}
        try:
            # In a session of its own Ctrl-C doesn't reach the daemon, which the runs need to save.
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                env=environment,
                timeout=LONGEST_CHECK,
                start_new_session=True,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{command[0]}: {error}"
        if done.returncode:
            said = f"{done.stdout}{done.stderr}".split("\n")
            last = next((line for line in reversed(said) if line.strip()), f"exit status {done.returncode}")
            return f"{command[0]}: {last.strip()}"
    return ""


def end(places: Mapping[str, str]) -> None:
    """End the daemon; where there is none, or it waits for a client that hangs, go on."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [COMMAND],
            input=b"quit\n",
            capture_output=True,
            env=os.environ | places,
            timeout=LONGEST_END,
            start_new_session=True,
        )
