"""train_all.sh: the grid's commands, what narrows it, what is skipped, and what happens to failures."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

import run_glue

REPOSITORY = Path(run_glue.__file__).parent


def train_all(*flags: str, cwd: Path = REPOSITORY, **variables: str) -> subprocess.CompletedProcess:
    """Run the script with environment variables and extra flags."""
    own = ("MODELS", "ADAPTERS", "TASKS", "SEEDS", "RESULTS", "TAG", "PYTHON", "DRY_RUN")
    environment = {name: value for name, value in os.environ.items() if name not in own} | variables
    command = ["bash", str(REPOSITORY / "train_all.sh"), *flags]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def dry_run(*flags: str, **variables: str) -> list[list[str]]:
    """The commands of the grid, each as a list of words."""
    done = train_all(*flags, DRY_RUN="1", **variables)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_the_grid_is_the_protocol_s_180_runs():
    commands = dry_run()
    assert len(commands) == 180
    ranks = {
        ("randlora", "base"): 64,
        ("randlora", "large"): 100,
        ("lora", "base"): 4,
        ("lora", "large"): 4,
        ("vera", "base"): 256,
        ("vera", "large"): 256,
    }
    runs = set()
    for command in commands:
        assert command[0] == "python" and Path(command[1]).name == "run_glue.py"
        model, data, adapter, training = run_glue.parse_arguments(command[2:])
        size = model.model_name_or_path.removeprefix("FacebookAI/roberta-")
        assert adapter.rank == ranks[adapter.adapter_name, size]
        assert training.learning_rate == (1e-2 if adapter.adapter_name == "vera" else 1e-4)
        assert (training.num_train_epochs, training.per_device_train_batch_size) == (10, 64)
        assert (data.max_seq_length, training.do_train, training.do_eval) == (128, True, True)
        assert "--fp16" in command
        folder = f"{adapter.adapter_name}{adapter.rank}{'_large' if size == 'large' else ''}"
        assert training.output_dir == f"finetuned_results/{folder}/{training.seed}/{data.task_name}"
        runs.add((size, adapter.adapter_name, training.seed, data.task_name, training.output_dir))
    assert len(runs) == len({run[-1] for run in runs}) == 180
    assert {run[2] for run in runs} == {1, 2, 3, 4, 5}
    assert {run[3] for run in runs} == {"sst2", "mrpc", "cola", "qnli", "rte", "stsb"}


def test_variables_and_flags_narrow_and_extend_the_grid():
    commands = dry_run(
        "--dataset_path",
        "my data",
        MODELS="models/MiniLM FacebookAI/roberta-large",
        ADAPTERS="lora:8 vera",
        TASKS="stsb mnli",
        SEEDS="7",
        RESULTS="out put",
        TAG="_x",
    )
    assert [run_glue.parse_arguments(command[2:])[3].output_dir for command in commands] == [
        "out put/lora8_MiniLM_x/7/stsb",
        "out put/lora8_MiniLM_x/7/mnli",
        "out put/vera256_MiniLM_x/7/stsb",
        "out put/vera256_MiniLM_x/7/mnli",
        "out put/lora8_large_x/7/stsb",
        "out put/lora8_large_x/7/mnli",
        "out put/vera256_large_x/7/stsb",
        "out put/vera256_large_x/7/mnli",
    ]
    assert all(command[-2:] == ["--dataset_path", "my data"] for command in commands)


def test_full_fine_tuning_takes_its_learning_rate_from_the_flags():
    (command,) = dry_run(
        "--learning_rate", "2e-5", ADAPTERS="none", TASKS="rte", SEEDS="1", MODELS="FacebookAI/roberta-base"
    )
    _, _, adapter, training = run_glue.parse_arguments(command[2:])
    assert (adapter.adapter_name, training.learning_rate) == ("none", 2e-5)
    assert training.output_dir == "finetuned_results/none/1/rte"


@pytest.mark.parametrize(
    ("variables", "flags", "message"),
    [
        ({"ADAPTERS": "adalora"}, [], "ADAPTERS: no adalora .*allowed are randlora lora vera none"),
        ({"ADAPTERS": "lora:x"}, [], "ADAPTERS: lora:x is not <adapter>:<rank>"),
        ({"ADAPTERS": "none"}, [], "ADAPTERS=none: .*--learning_rate"),
        ({"TASKS": "mrcp"}, [], "TASKS: unknown task mrcp; allowed are cola mnli"),
        ({"SEEDS": "one"}, [], "SEEDS: one is not a whole number"),
        ({}, ["--rank", "8"], "--rank: set ADAPTERS instead"),
        ({}, ["--seed=8"], "--seed: set SEEDS instead"),
        ({}, ["--output_dir", "x"], "--output_dir: set RESULTS or TAG instead"),
    ],
)
def test_bad_variables_are_one_line(variables, flags, message):
    import re

    done = train_all(*flags, **variables)
    assert done.returncode == 2
    assert re.search(f"^train_all.sh: error: .*{message}", done.stderr)
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    """An interpreter in place of python: leaves a run.json, but fails for the task mrpc until `mended` exists."""
    path = tmp_path / "stand in"
    path.write_text(
        "#!/bin/bash\n"
        "while [ $# -gt 0 ]; do case $1 in --output_dir) folder=$2 ;; esac; shift; done\n"
        'mkdir -p "$folder" && echo run >>"$folder/calls"\n'
        f'[[ $folder != */mrpc || -e "{tmp_path}/mended" ]] || exit 3\n'
        'echo "{}" >"$folder/run.json"\n'
    )
    path.chmod(0o755)
    return str(path)


def test_a_failed_run_does_not_stop_the_rest_and_finished_ones_are_skipped(tmp_path, stand_in):
    grid = {"ADAPTERS": "lora", "MODELS": "FacebookAI/roberta-base", "SEEDS": "1 2", "TASKS": "mrpc rte"}
    settings = grid | {"PYTHON": stand_in, "RESULTS": str(tmp_path / "results")}
    first = train_all(**settings)
    assert first.returncode == 1
    assert first.stdout.splitlines()[-3:] == [
        "train_all.sh: 2 runs done, 0 skipped because they were finished, 2 failed",
        f"failed: {tmp_path}/results/lora4/1/mrpc (exit status 3)",
        f"failed: {tmp_path}/results/lora4/2/mrpc (exit status 3)",
    ]
    (tmp_path / "mended").touch()
    second = train_all(**settings)
    assert second.returncode == 0
    assert "2 runs done, 2 skipped because they were finished, 0 failed" in second.stdout
    calls = {
        path.parent.name: path.read_text().count("run") for path in (tmp_path / "results/lora4/1").glob("*/calls")
    }
    assert calls == {"mrpc": 2, "rte": 1}


def test_commands_are_whole_in_any_folder(tmp_path):
    done = train_all(DRY_RUN="1", cwd=tmp_path)
    assert Path(shlex.split(done.stdout.splitlines()[0])[1]).is_file()
