"""train_all.sh and sweep.py: what is skipped or refused, in turn and several at once, signals, failures, Slurm.

The runs are those of a stand-in for the interpreter.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import read
from sweep_helpers import REPOSITORY, environment, train_all

import parse_results
from glue_peft import run_folder, sweep, sweep_messages
from glue_peft.grid import Run, read_grid
from glue_peft.tasks import PAPER_TASKS

STAND_IN = """#!PYTHON
import json, os, pathlib, signal, sys, time
sys.path.insert(0, "REPOSITORY")
script, *flags = sys.argv[1:]
if "glue_peft.preflight" in flags:
    with open(pathlib.Path(__file__).parent / "checked", "a") as checked:
        checked.write(sys.stdin.read() if not (pathlib.Path(__file__).parent / "checks").exists() else "")
    if (pathlib.Path(__file__).parent / "endless").exists():
        time.sleep(60)
    if not (pathlib.Path(__file__).parent / "checks").exists():
        sys.exit()  # torch takes seconds
if not script.endswith("run_glue.py"):
    if script == "-c" and "cuda" in flags[0]:
        sys.exit()  # here is no GPU
    os.execv(sys.executable, [sys.executable, script, *flags])
from glue_peft import run_folder
from glue_peft.errors import UsageError
from glue_peft.run_state import state
folder = pathlib.Path(flags[flags.index("--output_dir") + 1])
world = pathlib.Path(__file__).parent
SEEN = ("CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY", "OMP_NUM_THREADS")
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
def wait_for(done):
    for _ in range(3000):
        if done():
            return
        time.sleep(0.01)
    sys.exit("waited in vain")
with open(world / "starts", "a") as starts:
    starts.write(f"{folder}\\n")
wait_for(lambda: not (world / "late").exists())
try:
    with run_folder.lock(folder):
        if state(folder, flags)[0] == "finished":  # by another sweep, since this one looked
            sys.exit()
        seen = {name: os.environ.get(name) for name in SEEN}
        with open(world / "calls", "a") as calls:
            calls.write(json.dumps({"folder": str(folder), "pid": os.getpid(), **seen}) + "\\n")
        print("a line of the run", flush=True)
        base = folder
        if "--init_adapter_from" in flags:
            base = pathlib.Path(flags[flags.index("--init_adapter_from") + 1])
        if base != folder and not (base / "run.json").exists():
            sys.exit("error: nothing to start from")
        if (world / "kill").exists():
            number = int((world / "kill").read_text())
            (world / "kill").unlink()
            os.kill(os.getppid() if number else os.getpid(), signal.SIGKILL)
            time.sleep(0.3)
            print("alive", flush=True)
        together = int(os.environ.get("TOGETHER", 0))
        wait_for(lambda: len((world / "calls").read_text().splitlines()) >= together)
        if (world / "wait").exists():
            wait_for(lambda: asked)
            time.sleep(0.3)  # a checkpoint is written
            (folder / "saved").touch()
            sys.exit(75)
        status = world / f"status_{folder.name}"
        if status.exists():
            number, _, kind = status.read_text().partition(" ")
            if kind:
                run_folder.write_failure(folder, run_folder.Failure(kind, "as the run says"))
            sys.exit(int(number))
        accuracy = 0.5 if (world / "collapse").exists() else 0.9
        if "--selection_fraction" in flags:
            rate = float(flags[flags.index("--learning_rate") + 1])
            if rate == 1:
                run_folder.write_json(folder / "command.json", {"command": flags})
                run_folder.write_failure(folder, run_folder.Failure("diverged", "as the run says"))
                sys.exit(1)
            scores = {"last": {"selection_accuracy": 0.9 - 1e-2 * abs(rate - 1e-2), "selection_predicted_classes": 2}}
            run_folder.write_json(folder / "run.json", {"command": flags, "arguments": {}, "scores": scores})
            sys.exit()
        scores = {f"eval_{name}": accuracy for name in ("accuracy", "accuracy_mm", "f1")}
        run_folder.write_json(folder / "eval_results.json", scores)
        run_folder.write_json(folder / "command.json", {"command": flags})
        run_folder.write_json(folder / "run.json", {"command": flags, "arguments": {}})
except UsageError as error:
    print(f"run_glue.py: error: {error}", file=sys.stderr, flush=True)
    wait_for(lambda: not (world / "slow").exists())
    sys.exit(2)
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with an interpreter in place of python: it leaves what a run leaves, or does what files there ask for.

    status_TASK: the exit status of the task's runs, and the kind of failure that they leave; wait: run until SIGTERM,
    then save and exit with 75; late: go on when this is gone; slow: end a refused run when this is gone; kill: the
    first run kills the sweep (1) or itself (0); checks: the flags are really checked, else noted in the
    file checked; endless: that takes for ever; collapse: learn nothing.
    """
    path = tmp_path / "stand in"
    path.write_text(STAND_IN.replace("PYTHON", sys.executable, 1).replace("REPOSITORY", str(REPOSITORY)))
    path.chmod(0o755)
    return tmp_path


def settings(world: Path, **variables: str | None) -> dict[str, str | None]:
    """Two tasks and two seeds, done by the stand-in."""
    grid = {"ADAPTERS": "lora", "MODELS": "FacebookAI/roberta-base", "SEEDS": "1 2", "TASKS": "mrpc rte"}
    return grid | {"PYTHON": str(world / "stand in"), "RESULTS": str(world / "results")} | variables


def calls(world: Path) -> list[dict]:
    """What the stand-in was called for."""
    path = world / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def folders(world: Path) -> list[str]:
    """<seed>/<task> of each call."""
    return ["/".join(call["folder"].split("/")[-2:]) for call in calls(world)]


ENGINES = pytest.mark.parametrize("jobs", [{}, {"JOBS": "2"}], ids=["in turn", "at once"])


@ENGINES
def test_a_failed_run_does_not_stop_the_rest_and_finished_ones_are_skipped(world, jobs):
    """It is tried once more, logged, named, and done by the next sweep."""
    (world / "status_mrpc").write_text("3")
    first = train_all(**settings(world, **jobs))
    assert first.returncode == 1
    lines = first.stdout.splitlines()[-4:-1]
    assert lines[0] == "train_all.sh: 2 done, 0 skipped as finished, 2 failed"
    assert sorted(lines[1:]) == [
        f"failed: {world}/results/lora4/{seed}/mrpc (exit status 3): a line of the run" for seed in (1, 2)
    ]
    assert sorted(folders(world)) == ["1/mrpc", "1/mrpc", "1/rte", "2/mrpc", "2/mrpc", "2/rte"]  # one retry each
    log = (world / "results/lora4/1/mrpc/run.log").read_text().splitlines()
    assert [line for line in log if not line.startswith("== 20")] == [
        "a line of the run",
        "== ended with exit status 3",
    ] * 2
    assert run_folder.read_failure(world / "results/lora4/1/mrpc") == run_folder.Failure("error", "a line of the run")
    assert ("a line of the run" in first.stdout.splitlines()) == (not jobs)  # in turn, stdout has what the logs have
    (world / "status_mrpc").unlink()
    (world / "calls").unlink()
    second = train_all(**settings(world, **jobs))
    assert second.returncode == 0
    assert "2 done, 2 skipped as finished, 0 failed" in second.stdout
    assert sorted(folders(world)) == ["1/mrpc", "2/mrpc"]


@pytest.mark.parametrize(
    ("status", "retries", "n_calls", "expected", "line"),
    [
        ("2", "5", 1, 1, "failed: {} (exit status 2)"),
        ("75", "5", 1, 75, "stopped, to be resumed by the next sweep: {}"),
        ("1", "0", 1, 1, "failed: {} (exit status 1)"),
        ("137", "2", 3, 1, "failed: {} (exit status 137)"),
        ("130", "2", 1, 130, "stopped, to be resumed by the next sweep: {}"),
        ("143", "2", 1, 75, "stopped, to be resumed by the next sweep: {}"),
        ("129", "2", 1, 75, "stopped, to be resumed by the next sweep: {}"),
        ("138", "2", 1, 75, "stopped, to be resumed by the next sweep: {}"),
        ("0", "2", 1, 1, "failed: {} (exit status 0 without a run.json): a line of the run"),
        ("1 out of memory", "2", 3, 1, "failed: {} (exit status 1): out of memory: as the run says"),
        ("1 diverged", "2", 1, 1, "failed: {} (exit status 1): diverged: as the run says"),  # it would again
    ],
)
def test_only_failures_are_tried_again(world, status, retries, n_calls, expected, line):
    """Not a mistake, not what was stopped; a kill is."""
    (world / "status_mrpc").write_text(status)
    done = train_all(**settings(world, SEEDS="1", RETRIES=retries))
    assert done.returncode == expected
    assert folders(world) == ["1/mrpc"] * n_calls + ["1/rte"] * (status != "130")  # Ctrl-C ends the sweep
    assert line.format(world / "results/lora4/1/mrpc") in done.stdout


@pytest.mark.parametrize(
    ("status", "kind"),
    [("2", "usage"), ("3", "error"), ("137", "killed"), ("143", "stopped"), ("1 disk full", "disk full")],
)
def test_a_run_that_ends_badly_leaves_its_failure(world, status, kind):
    """The sweep's where the run couldn't, of the last start alone; the next start takes it away."""
    folder = world / "results/lora4/1/mrpc"
    folder.mkdir(parents=True)
    (folder / "failure.txt").write_text("diverged: long ago\n")
    (world / "status_mrpc").write_text(status)
    train_all(**settings(world, SEEDS="1", TASKS="mrpc"))
    said = "as the run says" if " " in status else "a line of the run"
    assert run_folder.read_failure(folder) == run_folder.Failure(kind, said)
    (world / "status_mrpc").unlink()
    assert train_all(**settings(world, SEEDS="1", TASKS="mrpc")).returncode == 0
    assert run_folder.read_failure(folder) is None


def test_a_run_killed_by_a_signal_is_started_again(world):
    """With a message that says so, and a log whose lines are complete."""
    (world / "kill").write_text("0")
    done = train_all(**settings(world, SEEDS="1", TASKS="mrpc"))
    assert done.returncode == 0 and folders(world) == ["1/mrpc"] * 2
    assert "== ended with exit status 137" in (world / "results/lora4/1/mrpc/run.log").read_text().splitlines()


def test_no_failure_is_written_into_another_run_s_folder(tmp_path):
    """Neither where it has other arguments, nor while another process works there."""
    run = Run(str(tmp_path), ("python", "run_glue.py", "--rank", "4"))
    run_folder.write_json(tmp_path / "run.json", {"command": ["--rank", "8"], "arguments": {}})
    sweep.note_failure(run, 2)
    (tmp_path / "run.json").unlink()
    with run_folder.lock(tmp_path):
        sweep.note_failure(run, 2)
    assert run_folder.read_failure(tmp_path) is None
    sweep.note_failure(run, 2)
    assert run_folder.read_failure(tmp_path).kind == "usage"


def test_a_run_of_other_arguments_is_named_and_neither_skipped_nor_overwritten(world):
    """Broken results of the same arguments are made again."""
    assert train_all(**settings(world)).returncode == 0
    (world / "results/lora4/1/rte/eval_results.json").write_text("")  # as a full disk leaves it
    shutil.rmtree(world / "results/lora4/2/rte")
    kept = (world / "results/lora4/1/mrpc/run.json").read_text()
    (world / "calls").unlink()
    other = train_all("--num_train_epochs", "3", **settings(world))
    assert other.returncode == 1
    assert folders(world) == ["2/rte"]
    assert (world / "results/lora4/1/mrpc/run.json").read_text() == kept
    refused = [line for line in other.stdout.splitlines() if line.startswith("refused: ")]
    assert len(refused) == 3 and all("--num_train_epochs 3 (the folder has 10)" in line for line in refused)
    again = train_all(**settings(world, SEEDS="1"))
    assert again.returncode == 0
    assert "1/rte is run again: eval_results.json is missing or not a JSON object" in again.stderr
    assert folders(world)[1:] == ["1/rte"]


def test_results_dated_in_the_future_are_made_again_all_the_same(world):
    """The clocks of two machines differ; nothing is compared with them."""
    assert train_all(**settings(world)).returncode == 0
    folder = world / "results/lora4/1/rte"
    (folder / "eval_results.json").write_text("")
    for name in ("run.json", "eval_results.json"):
        os.utime(folder / name, (time.time() + 86400,) * 2)
    (world / "calls").unlink()
    again = train_all(**settings(world))
    assert again.returncode == 0 and folders(world) == ["1/rte"]
    assert "1 done, 3 skipped as finished, 0 failed" in again.stdout


@pytest.mark.parametrize(("flags", "expected"), [([], ["1/rte"]), (["--save_total_limit", "1"], [])])
def test_a_finished_run_with_checkpoints_is_started_once_more(world, flags, expected):
    """It was killed while it deleted them; unless they are to be kept."""
    assert train_all(*flags, **settings(world)).returncode == 0
    (world / "results/lora4/1/rte/checkpoint-3").mkdir()
    (world / "calls").unlink()
    (world / "calls").touch()
    assert train_all(*flags, **settings(world)).returncode == 0
    starts = (world / "starts").read_text().splitlines()
    assert ["/".join(folder.split("/")[-2:]) for folder in starts[4:]] == expected


@ENGINES
def test_a_killed_sweep_leaves_its_runs_alive(world, jobs):
    """They write into their logs themselves, and the next sweep does the rest."""
    (world / "kill").write_text("1")
    done = train_all(**settings(world, **jobs))
    assert done.returncode == -signal.SIGKILL
    record = Path(calls(world)[0]["folder"]) / "run.json"
    for _ in range(3000):
        if record.exists():
            break
        time.sleep(0.01)
    assert "alive" in record.with_name("run.log").read_text()
    while any(run_folder.is_running(Path(call["folder"])) for call in calls(world)):
        time.sleep(0.01)
    again = train_all(**settings(world, **jobs))
    assert again.returncode == 0
    assert sorted(folders(world)) == ["1/mrpc", "1/rte", "2/mrpc", "2/rte"]


def test_runs_at_once_share_the_machine(world):
    """One GPU each, the cores divided."""
    done = train_all(**settings(world, JOBS="2", GPUS="3,5", TOGETHER="2"))
    assert done.returncode == 0, done.stdout
    assert sorted(folders(world)) == ["1/mrpc", "1/rte", "2/mrpc", "2/rte"]
    assert {call["CUDA_VISIBLE_DEVICES"] for call in calls(world)[:2]} == {"3", "5"}  # the first two run together
    assert {call["OMP_NUM_THREADS"] for call in calls(world)} == {str(max(1, len(os.sched_getaffinity(0)) // 2))}


def two_gpus(world: Path) -> str:
    """Put a stand-in for nvidia-smi there that lists two, and return the PATH on which it is the first."""
    (world / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: A (UUID: GPU-1)'\necho 'GPU 1: A (UUID: GPU-2)'\n")
    (world / "nvidia-smi").chmod(0o755)
    return f"{world}:{os.environ['PATH']}"


def test_jobs_per_gpu_packs_several_on_each_of_all_gpus(world):
    """As many as nvidia-smi lists; a number of threads that was given stays."""
    with_gpus = {"PATH": two_gpus(world), "CUDA_VISIBLE_DEVICES": None, "MPS": "0"}
    done = train_all(**settings(world, JOBS_PER_GPU="2", TOGETHER="4", OMP_NUM_THREADS="7", **with_gpus))
    assert done.returncode == 0, done.stdout
    assert sorted(call["CUDA_VISIBLE_DEVICES"] for call in calls(world)) == ["0", "0", "1", "1"]
    assert {call["OMP_NUM_THREADS"] for call in calls(world)} == {"7"}


@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGINT], ids=["to its end", "SIGTERM", "SIGINT"])
def test_runs_that_share_a_gpu_do_so_through_a_daemon_of_the_sweep(world, number):
    """NVIDIA's MPS, if only by a stand-in: on while the runs are at work, and gone at the end, whatever ended them."""
    daemon = world / "nvidia-cuda-mps-control"
    daemon.write_text(
        '#!/bin/sh\ncd "$(dirname "$0")"\nsaid="start $CUDA_VISIBLE_DEVICES"\n'
        '[ "$1" = -d ] || { read -r said && said="$said $(find results -name saved | wc -l)"; }\n'
        'echo "$said $CUDA_MPS_PIPE_DIRECTORY" >>daemon\n'
    )
    daemon.chmod(0o755)
    if number is not None:
        (world / "wait").touch()
    sweep = start(world, GPUS="5", JOBS_PER_GPU="2", PATH=f"{world}:{os.environ['PATH']}")
    if number is not None:
        wait_for_calls(world, 2)
        sweep.send_signal(number)
    output, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == {None: 0, signal.SIGTERM: 75, signal.SIGINT: 130}[number], output
    pipes = {call["CUDA_MPS_PIPE_DIRECTORY"] for call in calls(world)}
    assert len(pipes) == 1 and {call["CUDA_VISIBLE_DEVICES"] for call in calls(world)} == {"0"}
    (pipe,) = pipes
    saved = 0 if number is None else 2  # before the daemon ended
    assert (world / "daemon").read_text() == f"start 5 {pipe}\nquit {saved} {pipe}\n"
    assert output.count("train_all.sh: MPS is on, in ") == 1 and not os.path.exists(pipe)


def test_the_first_lines_say_that_several_runs_may_share_a_gpu(world):
    """Where each has one for itself."""
    with_gpus = {"PATH": two_gpus(world), "CUDA_VISIBLE_DEVICES": None, "MPS": "0"}
    hint = "at a time (several may share a GPU: JOBS_PER_GPU=4);"
    assert f"one {hint}" in train_all(**settings(world, SEEDS="1", **with_gpus)).stdout
    assert f"2 {hint}" in train_all(**settings(world, SEEDS="2", JOBS="2", **with_gpus)).stdout
    shared = train_all(**settings(world, SEEDS="3", JOBS_PER_GPU="2", **with_gpus)).stdout
    assert "4 at a time; " in shared and "MPS" not in shared  # its two runs have two GPUs
    assert "one at a time; " in train_all(**settings(world, SEEDS="4")).stdout  # without any


def test_without_gpus_one_line_says_so(world):
    """Where nvidia-smi finds none."""
    (world / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (world / "nvidia-smi").chmod(0o755)
    path = f"{world}:{os.environ['PATH']}"
    done = train_all(**settings(world, JOBS_PER_GPU="2", PATH=path, CUDA_VISIBLE_DEVICES=None))
    assert done.returncode == 2 and calls(world) == []
    assert done.stderr == "train_all.sh: error: JOBS_PER_GPU: there is no GPU here, set JOBS\n"


@ENGINES
def test_every_start_has_a_line_in_the_log_of_all(world, jobs):
    """Run, start, seconds and exit status, but no command, which may hold an access token; an old log is kept."""
    (world / "results").mkdir()
    (world / "results/joblog.tsv").write_text("Seq\tHost\tStarttime\n1\t:\t1764.5\n")
    (world / "status_mrpc").write_text("3")
    train_all("--hub_token", "hf_secret", **settings(world, SEEDS="1", **jobs))
    log = (world / "results/joblog.tsv").read_text()
    header, *lines = log.splitlines()
    assert header == "run\tstart\tseconds\texit_status"
    found = sorted((folder.split("/")[-1], status) for folder, _, _, status in (line.split("\t") for line in lines))
    assert found == [("mrpc", "3"), ("mrpc", "3"), ("rte", "0")]
    assert all(float(line.split("\t")[2]) >= 0 and line.split("\t")[1].startswith("20") for line in lines)
    assert "hf_secret" not in log
    assert (world / "results/joblog_old.tsv").read_text().startswith("Seq")


def test_what_starts_from_another_run_waits_for_it(world):
    """MNLI first."""
    done = train_all(**settings(world, RECIPE="lora", TASKS="rte mrpc mnli", JOBS="6"))
    assert done.returncode == 0, done.stdout
    assert {name.split("/")[1] for name in folders(world)[:2]} == {"mnli"} and len(folders(world)) == 6


@ENGINES
def test_the_run_that_others_start_from_comes_first(world, jobs):
    """Wherever it stands in the grid; if it fails they are started all the same, and say what is missing."""
    flags = ("--init_adapter_from", f"{world}/results/lora4/2/rte/")
    assert train_all(*flags, **settings(world, **jobs)).returncode == 0
    assert folders(world)[0] == "2/rte" and sorted(folders(world)[1:]) == ["1/mrpc", "1/rte", "2/mrpc"]
    shutil.rmtree(world / "results")
    (world / "status_rte").write_text("3")
    done = train_all(*flags, **settings(world, RETRIES="0", **jobs))
    assert done.returncode == 1 and folders(world)[4] == "2/rte" and len(folders(world)) == 8
    assert done.stdout.count("(exit status 1): error: nothing to start from") == 3


@pytest.mark.skipif(shutil.which("parallel") is None, reason="needs GNU parallel, as CI has it")
def test_dry_run_lines_are_complete_for_gnu_parallel(world):
    """Two spaces in an argument arrive."""
    command = f"bash {shlex.quote(str(REPOSITORY / 'train_all.sh'))} --note 'two  words' | parallel --jobs 2"
    done = subprocess.run(["bash", "-c", command], env=environment(**settings(world, DRY_RUN="1")), cwd=world)
    assert done.returncode == 0
    assert sorted(folders(world)) == ["1/mrpc", "1/rte", "2/mrpc", "2/rte"]
    recorded = read(world / "results/lora4/1/rte/run.json")["command"]
    assert recorded[-2:] == ["--note", "two  words"]


def interruptible() -> None:
    """Let Ctrl-C and a hang-up through, which are ignored where the tests run behind a `&` or under nohup."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def start(world: Path, before: Callable[[], None] = interruptible, **variables: str) -> subprocess.Popen:
    """Start a sweep in the background, and before it something in its process."""
    return subprocess.Popen(
        ["bash", str(REPOSITORY / "train_all.sh")],
        env=environment(**settings(world, **variables)),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=before,
    )


def wait_for_calls(world: Path, number: int) -> None:
    """Wait until so many runs have been started."""
    for _ in range(3000):
        if len(calls(world)) >= number:
            return
        time.sleep(0.01)
    raise AssertionError(f"{len(calls(world))} runs were started")


@ENGINES
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGHUP, 75), (signal.SIGUSR1, 75)],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else "",
)
def test_a_signal_lets_the_runs_save_and_starts_no_other(world, jobs, number, status):
    """As do Ctrl-C, a closed terminal and Slurm's warning; the next sweep ends the work."""
    (world / "wait").touch()
    sweep = start(world, **jobs)
    running = int(jobs.get("JOBS", 1))
    wait_for_calls(world, running)
    sweep.send_signal(number)
    output, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == status, output
    assert len(calls(world)) == running
    assert len([*(world / "results").glob("lora4/*/*/saved")]) == running
    assert output.count("stopped, to be resumed by the next sweep") == running
    (world / "wait").unlink()
    assert train_all(**settings(world, **jobs)).returncode == 0
    assert len([*(world / "results").glob("lora4/*/*/run.json")]) == 4


def test_runs_that_were_not_started_are_counted(world):
    """The sweep was stopped before."""
    (world / "wait").touch()
    sweep = start(world, JOBS="2")
    wait_for_calls(world, 2)
    sweep.terminate()
    output, _ = sweep.communicate(timeout=60)
    assert "2 runs were not started: start the sweep again" in output


@ENGINES
def test_a_signal_that_was_ignored_stays_ignored(world, jobs):
    """SIGHUP under nohup, SIGINT in the background of a script; SIGTERM still stops the sweep."""

    def ignore() -> None:
        """As nohup and `&` do."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    (world / "wait").touch()
    sweep = start(world, before=ignore, **jobs)
    running = int(jobs.get("JOBS", 1))
    wait_for_calls(world, running)
    for number in (signal.SIGHUP, signal.SIGINT):
        sweep.send_signal(number)
    time.sleep(0.2)
    assert sweep.poll() is None and not [*(world / "results").glob("lora4/*/*/saved")]
    sweep.terminate()
    output, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 75, output
    assert len([*(world / "results").glob("lora4/*/*/saved")]) == running


@ENGINES
def test_a_reader_that_leaves_does_not_end_the_sweep(world, jobs):
    """`| head -n 1`."""
    sweep = start(world, **jobs)
    sweep.stdout.readline()
    sweep.stdout.close()
    assert sweep.wait(timeout=60) == 0
    assert len([*(world / "results").glob("lora4/*/*/run.json")]) == 4


@ENGINES
def test_two_sweeps_share_the_work(world, jobs):
    """Every run is done once."""
    sweeps = [start(world, SEEDS="1 2 3 4", **jobs) for _ in range(2)]
    outputs = [sweep.communicate()[0] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0], outputs
    assert len([*(world / "results").glob("lora4/*/*/run.json")]) == 8
    assert "failed: " not in "".join(outputs)
    assert len(calls(world)) == 8


def test_a_folder_that_another_run_takes_meanwhile_is_left_to_it(world):
    """Before the interpreter is started, of which there is no start, and after, which is no failure."""
    (world / "late").touch()
    sweep = start(world, SEEDS="1")
    while not (world / "starts").exists():
        time.sleep(0.01)
    with run_folder.lock(world / "results/lora4/1/mrpc"), run_folder.lock(world / "results/lora4/1/rte"):
        (world / "late").unlink()
        output, _ = sweep.communicate()
    assert sweep.returncode == 0, output
    assert calls(world) == []
    assert (world / "starts").read_text().splitlines() == [f"{world}/results/lora4/1/mrpc"]
    for task in ("mrpc", "rte"):
        assert f"left to another sweep: {world}/results/lora4/1/{task}" in output


def test_a_refused_run_is_no_failure_if_the_other_finishes_before_it_has_ended(world):
    """It was left to the other."""
    folder = world / "results/lora4/1/mrpc"
    for name in ("late", "slow"):
        (world / name).touch()
    sweep = start(world, SEEDS="1", TASKS="mrpc")
    while not (world / "starts").exists():
        time.sleep(0.01)
    with run_folder.lock(folder):
        (world / "late").unlink()
        while run_folder.IN_USE not in (folder / "run.log").read_text():
            time.sleep(0.01)
        flags = shlex.split(train_all(**settings(world, SEEDS="1", TASKS="mrpc", DRY_RUN="1")).stdout)[2:]
        run_folder.write_json(folder / "eval_results.json", {"eval_accuracy": 0.5})
        run_folder.write_json(folder / "run.json", {"command": flags, "arguments": {}})
    (world / "slow").unlink()
    output, _ = sweep.communicate()
    assert sweep.returncode == 0, output
    assert f"left to another sweep: {folder}" in output


def test_a_folder_that_can_t_be_written_is_one_failed_run(world):
    """The others are done."""
    (world / "results/lora4/1").mkdir(parents=True)
    (world / "results/lora4/1/rte").write_text("a file")
    done = train_all(**settings(world))
    assert done.returncode == 1
    assert "3 done, 0 skipped as finished, 1 failed" in done.stdout
    assert f"failed: {world}/results/lora4/1/rte (exit status 2)" in done.stdout
    assert "rte: is a file, not a folder" in done.stdout


def test_status_is_of_every_row_of_the_grid(world):
    """Of its seeds and tasks; nothing is started."""
    assert train_all(**settings(world, ADAPTERS="lora vera:8", TASKS="rte", SEEDS="7")).returncode == 0
    n_calls = len(calls(world))
    done = train_all(**settings(world, STATUS="1", ADAPTERS="lora vera:8", SEEDS="7"))
    assert done.returncode == 0, done.stderr
    header, names, *rows = done.stdout.splitlines()
    assert header == "finished / running / failed / missing, of seed 7"
    assert [line.split()[0] for line in (names, *rows[:3])] == ["name", "lora4", "vera8", "all"]
    assert names.split()[2:5:2] == ["mrpc", "rte"]
    assert rows[2].split()[2:5:2] == ["0/0/0/2", "2/0/0/0"]
    assert len(calls(world)) == n_calls


# Before anything starts, and what is said


def checked(world: Path) -> list[list[str]]:
    """The commands that were checked before a start."""
    path = world / "checked"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_mistyped_flag_starts_nothing(world):
    """One line that names it, by the interpreter of the runs."""
    (world / "checks").touch()
    done = train_all("--num_train_epoch", "3", **settings(world))
    assert done.returncode == 2
    assert re.fullmatch("train_all.sh: error: unknown argument .*--num_train_epoch.*\n", done.stderr)
    assert not (world / "starts").exists() and not (world / "results").exists()


@ENGINES
def test_every_distinct_command_is_checked_once_unless_all_are_finished(world, jobs):
    """Seeds aside; not by what only prints, and not when there is nothing left to start."""
    for variable in ("DRY_RUN", "MISSING", "STATUS"):
        train_all(**settings(world, **{variable: "1"}))
    assert checked(world) == []
    assert train_all(**settings(world, **jobs)).returncode == 0
    tasks = [flags[flags.index("--task_name") + 1] for flags in checked(world)]
    assert tasks == ["mrpc", "rte"]
    (world / "checked").unlink()
    assert train_all(**settings(world, **jobs)).returncode == 0
    assert not (world / "checked").exists()


def test_a_signal_ends_the_check(world):
    """Nothing has started."""
    (world / "endless").touch()
    sweep = start(world)
    while not (world / "checked").exists():
        time.sleep(0.01)
    sweep.terminate()
    output, _ = sweep.communicate(timeout=30)
    assert sweep.returncode == 75, output
    assert not (world / "starts").exists() and "4 runs were not started" in output


@pytest.mark.parametrize("python", ["nosuchpython", "false"])
def test_an_interpreter_that_is_none_is_one_line(world, python):
    """Missing, or too old."""
    done = train_all(**settings(world, PYTHON=python))
    assert done.returncode == 2
    assert done.stderr == f"train_all.sh: error: PYTHON: {python} is not a Python of version 3.11 or later\n"


@ENGINES
def test_the_first_lines_say_what_will_run_and_the_last_what_comes_next(world, jobs):
    """Models, adapters, tasks, seeds, where, what is finished, the disk; the number of each run; the table."""
    train_all(**settings(world, SEEDS="1", TASKS="mrpc"))
    (world / "collapse").touch()
    done = train_all(**settings(world, **jobs))
    first, second, *others = done.stdout.splitlines()
    assert first == (
        f"train_all.sh: 4 runs into {world}/results: models FacebookAI/roberta-base; adapters lora:4; tasks mrpc rte; "
        "seeds 1-2"
    )
    at_a_time = "2 at a time" if jobs else "one at a time"
    start = rf"train_all.sh: 1 finished, 3 to run, {at_a_time}; about 0 MB of disk \(as the 1 finished run\), "
    assert re.fullmatch(start + r"(only )?[0-9.]+ [MG]B free", second)
    assert others[0] == f"[1/3] started: {world}/results/lora4/1/rte"
    ends = [line for line in others if re.match(r"\[[123]/3\] done: ", line)]
    assert len(ends) == 3 and all(re.search(r"\(0:00:\d\d(, about 0:00:\d\d left)?\)$", line) for line in ends)
    assert "left" in ends[0] and "left" not in ends[-1]
    *_, last = others
    assert "collapsed: " not in last and sum(line.startswith("collapsed: ") for line in others) == 3
    word = shlex.quote(str(world / "stand in"))
    assert last == f"the table: {word} parse_results.py {world}/results/lora4 1-2 --tasks mrpc,rte"
    table = subprocess.run(
        [sys.executable, *shlex.split(last)[3:]], cwd=REPOSITORY, env=environment(), capture_output=True, text=True
    )
    assert table.returncode == 0, table.stderr


def test_a_resumed_run_is_no_measure_of_the_time_left(world):
    """It took less than a run takes: nothing is said before a whole one has ended."""
    train_all(**settings(world, SEEDS="1", TASKS="mrpc"))
    folder = world / "results/lora4/1/mrpc"
    (folder / "checkpoint-3").mkdir()
    (folder / "run.json").unlink()
    ends = [line for line in train_all(**settings(world)).stdout.splitlines() if re.match(r"\[./4\] done: ", line)]
    assert ["left" in line for line in ends] == [False, True, True, False]


def test_an_adapter_from_a_file_is_swept_like_any_other(world):
    """Said once before the runs; a second sweep skips them; a line of the grid for Slurm; the table's command."""
    grid = settings(world, ADAPTERS="lora x/hra.json", SEEDS="1", TASKS="rte")
    assert train_all(MISSING="1", **grid).stdout == "1-2\n"
    line = train_all(SLURM_ARRAY_TASK_ID="1", **grid)
    assert line.returncode == 0 and f"line 1 of the grid; its output goes to {world}/results/hra/1/rte" in line.stdout
    first = train_all(**grid)
    assert "adapters hra.json lora:4;" in first.stdout and first.stderr.count("hra takes the row of randlora") == 1
    assert f"parse_results.py {world}/results/hra {world}/results/lora4 1-1" in first.stdout
    assert "0 done, 2 skipped as finished, 0 failed" in train_all(**grid).stdout
    status = train_all(STATUS="1", **grid).stdout
    assert re.search(r"^hra +\| 1/0/0/0", status, re.M) and "all runs are finished" in status


def test_data_of_one_s_own_are_swept_like_a_task(world):
    """What is finished is skipped, also by their status; other files in the same folder are another run's."""
    grid = settings(world, TASKS="messages", ADAPTERS="lora")
    files = ["--train_file", "a.csv", "--validation_file", "b.csv"]
    first = train_all(*files, **grid)
    assert first.returncode == 0 and folders(world) == ["1/messages", "2/messages"]
    assert "--tasks messages" in first.stdout.splitlines()[-1]
    status = train_all(*files, STATUS="1", **grid).stdout.splitlines()
    assert status[1].split() == ["name", "|", "messages", "|", "all"] and "| 2/0/0/0" in status[2]
    assert "0 done, 2 skipped as finished" in train_all(*files, **grid).stdout
    other = train_all("--train_file", "c.csv", *files[2:], **grid)
    assert other.returncode == 1 and "--train_file c.csv (the folder has a.csv)" in other.stdout


def test_the_table_s_seeds_are_never_how_many():
    """Seed 7 alone is 7-7; the paper's tasks need no option."""
    runs = [Run(f"r/lora4/7/{task}", ("python", "run_glue.py")) for task in PAPER_TASKS]
    assert sweep_messages.table_command(runs, {}) == "python parse_results.py r/lora4 7-7"


def test_the_table_of_a_paper_s_recipe_is_its_paper_s():
    """Its seeds, statistic and epoch, without a flag of the user's; and the command that holds both together."""
    settings = {"RECIPE": "fourierft", "RESULTS": "r", "MODELS": "FacebookAI/roberta-base"}
    runs = read_grid(settings, [])
    words = shlex.split(sweep_messages.table_command(runs, settings))
    assert words[1].endswith("parse_results.py")
    assert words[2:] == ["r/fourierft1000", "0,11111,22222,33333,44444", "--statistic", "median", "--epoch", "best"]
    assert parse_results.parse_arguments(words[2:]).statistic == "median"
    (line,) = sweep_messages.against_the_paper(settings)
    assert line.endswith("parse_results.py --reproduce fourierft r")
    assert sweep_messages.against_the_paper({}) == [] == sweep_messages.against_the_paper({"RECIPE": "unilora"})


def test_the_time_left_is_the_median_times_what_is_left_over_the_slots():
    """Nothing before a run has ended, nor after the last."""
    assert sweep_messages.time_left([], 4, 1) == "" == sweep_messages.time_left([60.0], 0, 1)
    assert sweep_messages.time_left([60.0, 3600.0, 120.0], 6, 2) == ", about 0:06:00 left"
    assert sweep_messages.time_left([60.0], 1, 8) == ", about 0:01:00 left"


def test_the_disk_that_a_grid_takes(tmp_path):
    """An adapter's run by its usual size, full fine-tuning by its model, and where runs are finished by theirs."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_bytes(bytes(3_000_000))

    def run(model: Path | str, adapter: str) -> Run:
        """A run of a grid."""
        return Run("r/a/1/rte", ("python", "x", "--model_name_or_path", str(model), "--adapter_name", adapter))

    assert sweep_messages.expected_size(run("FacebookAI/roberta-large", "lora")) == 15e6
    assert sweep_messages.expected_size(run("FacebookAI/roberta-large", "none")) == pytest.approx(1.445e9)
    assert sweep_messages.expected_size(run(tmp_path / "model", "none")) == 18e6
    text = sweep_messages.disk_text([run("m", "lora")] * 100, [str(tmp_path)], str(tmp_path / "new/results"))
    assert text.startswith("about 300 MB of disk (as the 1 finished run), ")


def test_a_run_that_ends_well_without_usable_results_has_failed(tmp_path):
    """A run.json alone is not enough."""
    flags = ("--task_name", "rte", "--do_eval")
    run = Run(str(tmp_path), ("python", "run_glue.py", *flags))
    assert sweep.outcome_of(run, 0) == "failed" and sweep.what_lacks(run) == " without a run.json"
    run_folder.write_json(tmp_path / "run.json", {"command": list(flags), "arguments": {}})
    assert sweep.outcome_of(run, 0) == "failed"
    assert sweep.what_lacks(run) == ", but eval_results.json is missing or not a JSON object"
    run_folder.write_json(tmp_path / "eval_results.json", {"eval_accuracy": 0.5})
    os.utime(tmp_path / "run.json", (time.time() + 86400,) * 2)  # another machine's clock
    assert sweep.outcome_of(run, 0) == "done"


# The questions of a sweep


def test_a_plan_says_what_is_unusual_and_runs_the_rest(tmp_path, capfd):
    """New and broken runs are planned; finished ones are silent, others and held ones are named."""
    flags = ["--rank", "4", "--task_name", "rte", "--do_eval"]
    for name, command in (("finished", flags), ("other", [*flags, "--rank", "8"]), ("broken", flags)):
        (tmp_path / name).mkdir()
        run_folder.write_json(tmp_path / name / "run.json", {"command": command, "arguments": {}})
        run_folder.write_json(tmp_path / name / "eval_results.json", {"eval_accuracy": 0.5})
    (tmp_path / "broken/eval_results.json").write_text("")
    names = ("new", "finished", "other", "broken", "my runs/held")
    new, finished, other, broken, held = runs = [
        Run(f"{tmp_path}/{name}", ("python", "run_glue.py", *flags)) for name in names
    ]
    with run_folder.lock(tmp_path / "my runs/held"):
        waiting, outcomes = sweep.plan(runs)
        holder = run_folder.holder_of(tmp_path / "my runs/held")
    assert waiting == [new, broken]
    reason = "--rank 4 (the folder has 8)"
    assert outcomes == [
        ("finished", finished.folder, ""),
        ("other", other.folder, reason),
        ("elsewhere", held.folder, holder),
    ]
    assert capfd.readouterr().err.splitlines() == [
        f"train_all.sh: {other.folder} holds another run and is left alone: {reason}",
        f"train_all.sh: {broken.folder} is run again: eval_results.json is missing or not a JSON object",
        f"train_all.sh: {held.folder} is being worked on: {holder}",
    ]
    assert sweep.plan(runs)[0] == [new, broken, held]  # the holder is gone


def test_ranges_are_slurm_s():
    """As --array takes them."""
    assert sweep.as_ranges([1, 2, 3, 7, 9, 10]) == "1-3,7,9-10"
    assert sweep.as_ranges([]) == ""


@pytest.mark.parametrize(
    ("outcomes", "n_waiting", "status"),
    [
        ([("done", "a", ""), ("finished", "b", "")], 0, 0),
        ([("done", "a", ""), ("elsewhere", "b", "process 3 on x")], 0, 0),
        ([("done", "a", ""), ("stopped", "b", "")], 0, 75),
        ([("failed", "a", "(exit status 1): x"), ("stopped", "b", "")], 0, 1),
        ([("other", "a", "--rank 4 (the folder has 8)")], 0, 1),
        ([], 1, 75),
    ],
)
def test_the_summary_counts_and_names_what_is_left(outcomes, n_waiting, status):
    """And its exit status: 1 for a failure, 75 for what was stopped or not started."""
    assert sweep.exit_status(outcomes, n_waiting) == status
    first, *named = sweep_messages.summary(outcomes, n_waiting)
    counts = [sum(outcome == kind for outcome, *_ in outcomes) for kind in ("done", "finished", "failed")]
    assert first == f"train_all.sh: {counts[0]} done, {counts[1]} skipped as finished, {counts[2]} failed"
    assert len(named) == sum(outcome not in ("done", "finished") for outcome, *_ in outcomes) + n_waiting


# The script


def test_the_script_is_posix_sh_with_a_manual(world):
    """Under dash as under bash; `--help`, wherever it stands, starts nothing."""
    lines = {
        shell: train_all(shell=shell, **settings(world, DRY_RUN="1")).stdout
        for shell in ("bash", "sh", "dash")
        if shutil.which(shell)
    }
    assert len(lines["sh"].splitlines()) == 4 and len(set(lines.values())) == 1
    for flags in (["--help"], ["-h"], ["--rank", "8", "--help"]):
        done = train_all(*flags, shell="sh", **settings(world))
        assert done.returncode == 0 and done.stdout.startswith("Train the grid of a recipe.")
        assert "RETRIES" in done.stdout and "set -" not in done.stdout and "#" not in done.stdout
    assert not (world / "starts").exists()
    assert len((REPOSITORY / "train_all.sh").read_text().splitlines()) <= 90


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck, as CI has it")
def test_the_script_passes_shellcheck():
    """As POSIX sh."""
    done = subprocess.run(["shellcheck", "-s", "sh", str(REPOSITORY / "train_all.sh")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_modules_of_the_folder_of_the_call_are_not_taken(tmp_path):
    """Neither for Python's own nor for the package's."""
    (tmp_path / "glue_peft").mkdir()
    for name in ("csv.py", "glue_peft/__init__.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong one')")
    done = train_all(cwd=tmp_path, DRY_RUN="1", SEEDS="1", TASKS="rte")
    assert done.returncode == 0, done.stderr


# Tuned sweeps

TUNED = {"TUNE": "1", "LEARNING_RATES": "1e-3 1e-2 1e-1", "SEARCH_SEEDS": "101-102", "TASKS": "mrpc"}


@ENGINES
def test_a_tuned_sweep_searches_and_then_trains_with_what_it_found(world, jobs):
    """From one command: 3 rates x 2 seeds x 2 adapters, then 2 final seeds of each; all is checked at first."""
    tuned = settings(world, ADAPTERS="lora vera", **TUNED, **jobs)
    done = train_all("--do_predict", **tuned)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    searched = [call["folder"] for call in calls(world)][:12]
    assert all("/search/" in folder for folder in searched) and len(calls(world)) == 16
    commands = checked(world)
    assert len(commands) == 3 * 2 + 2 + 2  # those of the search and, with any rate, the final ones; then with the rate
    assert sum("--do_eval" in command for command in commands) == 4
    assert "train_all.sh: 16 done, 0 skipped as finished, 0 failed" in lines
    assert lines.count("search: 12 of 12 runs finished") == 2
    assert any(line.startswith("search: vera256, mrpc: 1e-2: best mean") for line in lines)
    for row in ("lora4", "vera256"):
        command = read(world / f"results/{row}/2/mrpc/run.json")["command"]
        assert command[command.index("--learning_rate") + 1] == "1e-2" and "--do_predict" in command
    assert lines[-1].endswith(f"{world}/results/lora4 {world}/results/vera256 1-2 --tasks mrpc")
    assert [line.split("\t")[4] for line in (world / "results/tuned.tsv").read_text().splitlines()[1:]] == [
        "learning_rate",
        "1e-2",
        "1e-2",
    ]
    again = train_all("--do_predict", **tuned)
    assert again.returncode == 0 and len(calls(world)) == 16
    assert "train_all.sh: 0 done, 16 skipped as finished, 0 failed" in again.stdout


def test_a_run_of_the_search_that_diverges_is_a_result(world):
    """It is no failure, isn't tried again, and its rate isn't chosen; a final run that diverges is a failure."""
    tuned = settings(world, **TUNED | {"LEARNING_RATES": "1e-3 1e-2 1"})
    done = train_all(**tuned)
    assert done.returncode == 0, done.stdout
    assert f"diverged: {world}/results/search/lora4_lr1e0/101/mrpc" in done.stdout
    assert "train_all.sh: 6 done, 0 skipped as finished, 0 failed, 2 diverged in the search" in done.stdout
    assert len(calls(world)) == 8
    again = train_all(**tuned)
    assert again.returncode == 0 and "0 done, 8 skipped as finished, 0 failed" in again.stdout
    (world / "results/lora4/1/mrpc/run.json").unlink()
    (world / "status_mrpc").write_text("1 diverged")
    assert train_all(**tuned).returncode == 1


def test_a_search_with_a_failed_run_chooses_nothing(world):
    """The next sweep does what is missing."""
    (world / "status_mrpc").write_text("1 error")
    done = train_all(**settings(world, RETRIES="0", **TUNED))
    assert done.returncode == 1 and not (world / "results/tuned.tsv").exists()
    assert len(calls(world)) == 6 and "search: " not in done.stdout
    (world / "status_mrpc").unlink()
    assert train_all(**settings(world, **TUNED)).returncode == 0
    assert (world / "results/lora4/2/mrpc/run.json").exists()


def test_a_tuned_sweep_killed_and_stopped_again_and_again_ends_as_an_undisturbed_one(world):
    """Killed three times and stopped once in the search, then once each in the final runs."""
    assert train_all(**settings(world, RESULTS=str(world / "whole"), **TUNED)).returncode == 0
    (world / "calls").unlink()

    def kill() -> None:
        """Let the next run kill its sweep, and wait until the run itself has ended."""
        (world / "kill").write_text("1")
        assert train_all(**settings(world, **TUNED)).returncode == -signal.SIGKILL
        while not (Path(calls(world)[-1]["folder"]) / "run.json").exists():
            time.sleep(0.01)

    def stop() -> None:
        """Send the sweep a signal while a run works."""
        (world / "wait").touch()
        n_before = len(calls(world))
        sweep = start(world, **TUNED)
        wait_for_calls(world, n_before + 1)
        sweep.send_signal(signal.SIGTERM)
        assert sweep.wait(timeout=60) == 75
        (world / "wait").unlink()

    for _ in range(3):
        kill()
    stop()
    for line in (4, 5, 6):
        assert slurm(world, line, **TUNED).wait() == 0
    kill()
    stop()
    assert folders(world) == [*["101/mrpc"] * 3, *["102/mrpc"] * 4, "1/mrpc", "2/mrpc"]
    assert train_all(**settings(world, **TUNED)).returncode == 0
    found = [
        sorted(p.relative_to(root) for p in root.glob("**/run.json")) for root in (world / "whole", world / "results")
    ]
    assert found[0] == found[1] and len(found[0]) == 8
    assert (world / "whole/tuned.tsv").read_text() == (world / "results/tuned.tsv").read_text()


def test_a_slurm_task_of_a_tuned_sweep_runs_its_line(world):
    """The search's lines first; the final ones have their numbers once it has ended, and keep them."""
    task = slurm(world, 7, **TUNED)
    output, _ = task.communicate()
    assert task.returncode == 2 and "--array: the grid has the lines 1 to 6, no 7" in output
    for line in range(1, 7):
        assert slurm(world, line, **TUNED).wait() == 0
    assert train_all(**settings(world, MISSING="1", **TUNED)).stdout == "7-8\n"
    assert slurm(world, 6, **TUNED).wait() == 0 and len(calls(world)) == 6  # requeued
    assert slurm(world, 7, **TUNED).wait() == 0
    assert (world / "results/lora4/1/mrpc/run.json").exists() and (world / "results/tuned.tsv").exists()


# Slurm, by what it sets


def slurm(
    world: Path,
    line: int,
    script: Path = REPOSITORY / "train_all.sh",
    cwd: Path = REPOSITORY,
    **variables: str,
) -> subprocess.Popen:
    """Start task `line` of an array job; Slurm runs a copy of the script from a folder of its own."""
    own = {"SLURM_ARRAY_TASK_ID": str(line), "SLURM_JOB_ID": "9", "SLURM_CPUS_PER_TASK": "3"}
    return subprocess.Popen(
        ["bash", str(script)],
        env=environment(**settings(world, **own, **variables)),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_slurm_task_runs_its_line_in_place_of_the_script(world):
    """The signal reaches the run itself; requeued it resumes, and when finished it does nothing."""
    (world / "wait").touch()
    task = slurm(world, 3)
    wait_for_calls(world, 1)
    task.send_signal(signal.SIGTERM)
    task.communicate()
    assert task.returncode == 75
    (call,) = calls(world)
    assert call["pid"] == task.pid and call["folder"] == f"{world}/results/lora4/2/mrpc"
    assert call["OMP_NUM_THREADS"] == "3"
    assert not (world / "checked").exists()  # a task's own line is checked by its run
    assert "a line of the run" in (world / "results/lora4/2/mrpc/run.log").read_text()
    (world / "wait").unlink()
    assert slurm(world, 3).wait() == 0  # requeued
    assert folders(world) == ["2/mrpc"] * 2
    assert slurm(world, 3).wait() == 0  # and again, when it is finished
    assert folders(world) == ["2/mrpc"] * 2
    assert train_all(**settings(world, MISSING="1")).stdout == "1-2,4\n"


def test_a_slurm_task_begins_a_line_of_its_own_in_the_log_of_a_killed_run(world):
    """Where the last start was killed within a progress bar: what that one said is not taken for this one's."""
    folder = world / "results/lora4/1/mrpc"
    folder.mkdir(parents=True)
    (folder / "run.log").write_text("== 2026-11-25 22:09:32 x\nerror: of the first start\n 20%|##    | 256/1280")
    assert slurm(world, 1).wait() == 0
    assert " 256/1280\n== 20" in (folder / "run.log").read_text()
    assert not any("first start" in line for line in run_folder.log_lines(folder))


def test_a_slurm_task_of_other_arguments_fails(world):
    """And names the difference."""
    train_all("--num_train_epochs", "3", **settings(world, SEEDS="1", TASKS="mrpc"))
    task = slurm(world, 1)
    output, _ = task.communicate()
    assert task.returncode == 1
    assert "--num_train_epochs 10 (the folder has 3)" in output
    assert len(calls(world)) == 1


@pytest.mark.parametrize(
    "shown", ["{}/train_all.sh a b", "../my code/train_all.sh a b", "train_all.sh", "(null)", None]
)
def test_slurm_s_copy_of_the_script_finds_the_repository(world, shown):
    """By what scontrol shows as the script, as it was given to sbatch; without that, in the folder of submission."""
    copy = world / "spool" / "slurm_script"
    copy.parent.mkdir()
    shutil.copy(REPOSITORY / "train_all.sh", copy)
    (world / "my code").symlink_to(REPOSITORY)
    answer = f"echo 'JobId=9'\necho '   Command={shown.format(REPOSITORY)}'" if shown else "exit 1"
    (world / "scontrol").write_text(f"#!/bin/sh\n{answer}\n")
    (world / "scontrol").chmod(0o755)
    by_path = shown is not None and "/" in shown
    variables = {"SLURM_SUBMIT_DIR": str(world / "spool" if by_path else REPOSITORY)}
    task = slurm(world, 1, copy, PATH=f"{world}:{os.environ['PATH']}", **variables)
    output, _ = task.communicate()
    assert task.returncode == 0, output
    assert folders(world) == ["1/mrpc"]


def test_slurm_s_copy_takes_the_script_that_was_named_not_one_in_the_folder_of_submission(world):
    """Another checkout may lie there."""
    other = world / "other"
    (other / "recipes").mkdir(parents=True)
    (other / "glue_peft").mkdir()
    for name in ("run_glue.py", "glue_peft/__init__.py", "glue_peft/sweep.py", "recipes/randlora.tsv"):
        (other / name).write_text("")
    copy = world / "slurm_script"
    shutil.copy(REPOSITORY / "train_all.sh", copy)
    (world / "scontrol").write_text(f"#!/bin/sh\necho '   Command={REPOSITORY}/train_all.sh'\n")
    (world / "scontrol").chmod(0o755)
    task = slurm(world, 1, copy, cwd=other, SLURM_SUBMIT_DIR=str(other), PATH=f"{world}:{os.environ['PATH']}")
    output, _ = task.communicate()
    assert task.returncode == 0, output
    assert folders(world) == ["1/mrpc"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_sweep_inside_one_slurm_job_stops_on_its_warning(world, number):
    """SIGUSR1 as SIGTERM."""
    (world / "wait").touch()
    sweep = start(world, SLURM_JOB_ID="9")
    wait_for_calls(world, 1)
    sweep.send_signal(number)
    output, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 75, output
    assert len(calls(world)) == 1 and (world / "results/lora4/1/mrpc/saved").exists()


def test_threads_are_of_the_cores_that_slurm_gave(world):
    """Not of those that the machine has."""
    done = train_all(**settings(world, JOBS="2", SEEDS="1", SLURM_JOB_ID="9", SLURM_CPUS_ON_NODE="10"))
    assert done.returncode == 0, done.stdout
    assert {call["OMP_NUM_THREADS"] for call in calls(world)} == {"5"}
    shutil.rmtree(world / "results")
    done = train_all(**settings(world, SLURM_ARRAY_TASK_ID="1", SLURM_CPUS_ON_NODE="6"))
    assert done.returncode == 0, done.stderr
    assert calls(world)[-1]["OMP_NUM_THREADS"] == "6"


# Slurm itself, where there is one


def has_slurm() -> bool:
    """Whether jobs can be submitted here: sbatch is installed and the controller answers."""
    if not (shutil.which("sbatch") and shutil.which("sinfo")):
        return False
    try:
        done = subprocess.run(["sinfo", "--noheader", "--states=idle,mixed"], capture_output=True, timeout=2)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and bool(done.stdout.strip())


@pytest.mark.skipif(not has_slurm(), reason="no Slurm answers here; the tests above set its variables instead")
def test_a_real_slurm_runs_requeues_and_finishes_what_is_missing(world):
    """With sbatch, scontrol and a controller that answers."""
    (world / "stand-in").symlink_to(
        world / "stand in"
    )  # proctrack/linuxproc finds no process with a space in its name
    variables = settings(world, PYTHON=str(world / "stand-in"))

    def answer(*command: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(
            command, cwd=world, env=environment(**variables), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    submit = ["sbatch", "--parsable", "--ntasks=1", f"--output={world}/slurm-%A_%a.out"]
    script = str(REPOSITORY / "train_all.sh")
    (world / "wait").touch()
    job = answer(*submit, "--requeue", "--array=3", script)
    try:
        wait_for_calls(world, 1)
        answer("scontrol", "requeue", f"{job}_3")  # as a preemption: SIGTERM, and the task is queued again
        for _ in range(3000):
            if (world / "results/lora4/2/mrpc/saved").exists():
                break
            time.sleep(0.01)
        assert (world / "results/lora4/2/mrpc/saved").exists()
        (world / "wait").unlink()
        wanted = train_all(**settings(world, MISSING="1")).stdout.strip()
        assert wanted == "1-4"
        answer(*submit, "--wait", f"--array={wanted}", script)  # its exit status is the tasks' highest
        assert len([*(world / "results").glob("lora4/*/*/run.json")]) == 4
        assert folders(world).count("2/mrpc") == 2
        assert train_all(**settings(world, MISSING="1")).stdout.strip() == ""
    finally:
        subprocess.run(["scancel", job], check=False)
