"""train_all.sh: the grid's commands, what is skipped or refused, the engines, signals and failures."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import read

import run_glue
from glue_peft import run_folder

REPOSITORY = Path(run_glue.__file__).parent
OWN = (
    "RECIPE MODELS ADAPTERS TASKS SEEDS RESULTS TAG PYTHON DRY_RUN STATUS MISSING JOBS GPUS JOBS_PER_GPU RETRIES "
    "OMP_NUM_THREADS CUDA_VISIBLE_DEVICES"
).split()
RECIPES = sorted((REPOSITORY / "recipes").glob("*.tsv"))


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without what steers a sweep, and with `variables`."""
    steers = [name for name in os.environ if name in OWN or (name.startswith("SLURM") and name != "SLURM_CONF")]
    kept = {name: value for name, value in os.environ.items() if name not in steers}
    return kept | variables


def train_all(*flags: str, cwd: Path = REPOSITORY, **variables: str) -> subprocess.CompletedProcess:
    """Run the script with environment variables and extra flags."""
    command = ["bash", str(REPOSITORY / "train_all.sh"), *flags]
    return subprocess.run(command, cwd=cwd, env=environment(**variables), capture_output=True, text=True)


def dry_run(*flags: str, **variables: str) -> list[list[str]]:
    """The commands of the grid, each as a list of words."""
    done = train_all(*flags, DRY_RUN="1", **variables)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_the_grid_is_the_protocol_s_180_runs():
    """Each with its rank, rate, epochs, batch and a folder of its own."""
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
    """A model that the recipe lacks, spaces in names, a tag; flags come last, and so override."""
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
    """The recipe has none."""
    (command,) = dry_run(
        "--learning_rate", "2e-5", ADAPTERS="none", TASKS="rte", SEEDS="1", MODELS="FacebookAI/roberta-base"
    )
    _, _, adapter, training = run_glue.parse_arguments(command[2:])
    assert (adapter.adapter_name, training.learning_rate) == ("none", 2e-5)
    assert training.output_dir == "finetuned_results/none/1/rte"


@pytest.mark.parametrize(
    ("variables", "flags", "message"),
    [
        ({"ADAPTERS": "adalora"}, [], "ADAPTERS: no adalora .*allowed are randlora lora vera, as in lora:8"),
        ({"SEEDS": "1 1"}, [], "two runs would share finetuned_results/lora4/1/cola"),
        ({"MODELS": "a/bert b/bert"}, [], "two runs would share .*_bert/1/"),
        ({"ADAPTERS": "lora:x"}, [], "ADAPTERS: lora:x is not <adapter>:<rank>"),
        ({"ADAPTERS": "none"}, [], "ADAPTERS=none: .*--learning_rate"),
        ({"TASKS": "mrcp"}, [], "TASKS: unknown task mrcp; allowed are cola mnli"),
        ({"SEEDS": "one"}, [], "SEEDS: one is not a whole number"),
        ({"SEEDS": "01"}, [], "SEEDS: 01 is not a whole number"),  # parse_results.py reads the folder 1
        ({}, ["--rank", "8"], "--rank: set ADAPTERS instead"),
        ({}, ["--seed=8"], "--seed: set SEEDS instead"),
        ({}, ["--model-name-or-path", "x"], "--model_name_or_path: set MODELS instead"),
        ({}, ["--dataset_path", "a\tb"], "a tab or a line break in a flag"),
        ({"RESULTS": "a\nb"}, [], "a tab or a line break in a flag"),
        ({}, ["--output_dir", "x"], "--output_dir: set RESULTS or TAG instead"),
        ({"RECIPE": "qlora"}, [], "RECIPE: no .*recipes/qlora.tsv; there are .*recipes/lora.tsv"),
        ({"RECIPE": "lora", "TASKS": "wnli"}, [], "TASKS: .*lora.tsv has no values for wnli; it has mnli sst2"),
        ({"RECIPE": "lora", "ADAPTERS": "none"}, [], "ADAPTERS=none: only with RECIPE=randlora"),
        (
            {"RECIPE": "fourierft", "ADAPTERS": "fourierft:500", "MODELS": "FacebookAI/roberta-base"},
            [],
            "ADAPTERS: fourierft has its settings in a file",
        ),
        ({"JOBS": "two"}, [], "JOBS: two is not a number of runs"),
        ({"JOBS_PER_GPU": "0"}, [], "JOBS_PER_GPU: 0 is not a number of runs"),
        ({"GPUS": "0 1"}, [], "GPUS: 0 1 is not a list like 0,1,2"),
        ({"RETRIES": "-1"}, [], "RETRIES: -1 is not a whole number"),
        (
            {"MODELS": "FacebookAI/roberta-base", "SLURM_ARRAY_TASK_ID": "91"},
            [],
            "the grid has the lines 1 to 90, no 91",
        ),
        ({"SLURM_ARRAY_TASK_ID": "0"}, [], "--array: the grid has the lines 1 to 180, no 0"),
    ],
)
def test_bad_variables_are_one_line(variables, flags, message):
    """What is wrong and what is allowed, before anything starts."""
    done = train_all(*flags, **variables)
    assert done.returncode == 2
    assert re.search(f"^train_all.sh: error: .*{message}", done.stderr)
    assert len(done.stderr.splitlines()) == 1


def test_every_shell_and_locale_reads_the_commands_alike():
    """Quotes, dollars and letters that a C locale lacks: in a flag and in RESULTS, for bash and for Python."""
    value = 'it\'s $HOME/données ("a" \\ b)'
    done = train_all("--dataset_path", value, DRY_RUN="1", SEEDS="1", TASKS="rte", RESULTS="l'été", LC_ALL="C")
    for line in done.stdout.splitlines():
        words = shlex.split(line)
        assert words[-1] == value and words[words.index("--output_dir") + 1].startswith("l'été/")
        printed = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True)
        assert printed.stdout.splitlines() == words
    assert len(done.stdout.splitlines()) == 6


def test_the_last_line_of_a_recipe_may_have_no_end(tmp_path):
    """As an editor may leave it."""
    for name in ("train_all.sh", "one_run.sh", "run_glue.py"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / "recipes").mkdir()
    rows = (REPOSITORY / "recipes/lora.tsv").read_text().splitlines()[:3]
    (tmp_path / "recipes/own.tsv").write_text("\n".join(rows))
    command = ["bash", "train_all.sh"]
    variables = environment(RECIPE="own", SEEDS="1", DRY_RUN="1")
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert [shlex.split(line)[5] for line in done.stdout.splitlines()] == ["mnli", "sst2"]


def test_a_rank_is_for_its_own_adapter_alone():
    """The next adapter of the list has the recipe's rank again."""
    commands = dry_run(ADAPTERS="lora:8 lora", TASKS="rte", SEEDS="1", MODELS="FacebookAI/roberta-base")
    folders = [command[command.index("--output_dir") + 1] for command in commands]
    assert folders == ["finetuned_results/lora8/1/rte", "finetuned_results/lora4/1/rte"]


def test_commands_are_whole_in_any_folder(tmp_path):
    """Called from elsewhere, the lines still find the script."""
    done = train_all(DRY_RUN="1", cwd=tmp_path)
    assert Path(shlex.split(done.stdout.splitlines()[0])[1]).is_file()


# Recipes


def rows(recipe: Path) -> list[dict[str, str]]:
    """A recipe's rows by column name."""
    header, *lines = recipe.read_text(encoding="utf-8").splitlines()
    return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_row_of_a_recipe_makes_commands_that_parse_or_is_refused_by_name(recipe, tmp_path, monkeypatch):
    """With the values of the row; a ? is never guessed."""
    monkeypatch.chdir(tmp_path)
    for row in rows(recipe):
        assert row["source"]
        chosen = {"RECIPE": recipe.stem, "MODELS": row["model"], "ADAPTERS": row["adapter"]}
        done = train_all(DRY_RUN="1", TASKS=row["tasks"].replace(",", " "), SEEDS="3", cwd=tmp_path, **chosen)
        if "?" in [*row.values(), *row["flags"].split()]:
            assert done.returncode == 2 and done.stdout == ""
            assert re.search(
                rf"{recipe}: the row of {row['adapter']}, {row['model']}, {row['tasks']} has a \? for .*epochs.*"
                "--classifier_learning_rate",
                done.stderr,
            )
            continue
        lines = done.stdout.splitlines()
        assert len(lines) == len(row["tasks"].split(","))
        for line in lines:
            flags = shlex.split(line)[2:]
            if "--init_adapter_from" in flags:
                start = Path(flags[flags.index("--init_adapter_from") + 1])
                start.mkdir(parents=True, exist_ok=True)
                (start / "adapter_config.json").write_text("{}")
            model, data, adapter, training = run_glue.parse_arguments(flags)
            assert data.max_seq_length == int(row["length"])
            assert training.per_device_train_batch_size == int(row["batch"])
            assert training.learning_rate == float(row["learning_rate"])
            assert training.num_train_epochs == int(row["epochs"])
            assert training.output_dir.split("/")[1].startswith(f"{row['adapter']}{row['rank']}")
            if adapter.adapter_config:
                assert read(Path(adapter.adapter_config))["n_frequency"] == int(row["rank"])
            else:
                assert (adapter.adapter_name, adapter.rank) == (row["adapter"], int(row["rank"]))


def test_a_paper_s_recipe_has_a_row_for_each_model_and_task():
    """And no two."""
    assert [path.stem for path in RECIPES] == ["fourierft", "lora", "randlora", "vera"]
    for recipe in RECIPES:
        served = [(row["adapter"], row["model"], task) for row in rows(recipe) for task in row["tasks"].split(",")]
        assert len(served) == len(set(served))
        for adapter, model in {(adapter, model) for adapter, model, _ in served}:
            tasks = {task for *others, task in served if others == [adapter, model]}
            assert tasks >= {"sst2", "mrpc", "cola", "qnli", "rte", "stsb"}


@pytest.mark.parametrize(
    ("recipe", "model", "columns", "values"),
    [
        (
            "lora",
            "base",
            ("batch", "epochs", "learning_rate"),
            "sst2 16/60/5e-4 mrpc 16/30/4e-4 cola 32/80/4e-4 qnli 32/25/4e-4 rte 32/80/5e-4 stsb 16/40/4e-4 "
            "mnli 16/30/5e-4 qqp 16/25/5e-4",
        ),
        (
            "lora",
            "large",
            ("batch", "epochs", "learning_rate", "length"),
            "sst2 4/10/4e-4/128 mrpc 4/20/3e-4/512 cola 4/20/2e-4/128 qnli 4/10/2e-4/512 rte 8/20/4e-4/512 "
            "stsb 8/30/2e-4/512 mnli 4/10/3e-4/128 qqp 4/20/3e-4/512",
        ),
        (
            "vera",
            "base",
            ("rank", "epochs", "learning_rate"),
            "sst2 1024/60/4e-3 mrpc 1024/30/1e-2 cola 1024/80/1e-2 qnli 1024/25/1e-2 rte 1024/160/4e-3 "
            "stsb 1024/80/1e-2",
        ),
        (
            "fourierft",
            "base",
            ("epochs", "learning_rate"),
            "sst2 40/5e-2 mrpc 30/5e-2 cola 100/1.2e-1 qnli 40/1e-1 rte 90/9e-2 stsb 60/9e-2",
        ),
    ],
)
def test_a_recipe_has_the_values_of_its_paper(recipe, model, columns, values):
    """LoRA's and FourierFT's Table 9 (QNLI's rate: the published logs'), VeRA's replication."""
    found = {
        row["tasks"]: "/".join(row[column] for column in columns)
        for row in rows(REPOSITORY / "recipes" / f"{recipe}.tsv")
        if row["model"] == f"FacebookAI/roberta-{model}"
    }
    words = values.split()
    assert found == dict(zip(words[::2], words[1::2], strict=True))


def test_lora_s_recipe_starts_three_tasks_from_the_same_seed_s_mnli_run():
    """MRPC, RTE and STS-B, as the paper did."""
    commands = dry_run(RECIPE="lora", TAG="_paper")
    assert len(commands) == 2 * 8 * 5
    position = {}
    for index, command in enumerate(commands):
        _, task, seed, model = (
            command[command.index(flag) + 1] for flag in ("--rank", "--task_name", "--seed", "--model_name_or_path")
        )
        position[task, seed, model] = index
        expected = f"finetuned_results/lora8{'_large' if model.endswith('large') else ''}_paper/{seed}/mnli"
        start = command[command.index("--init_adapter_from") + 1] if "--init_adapter_from" in command else None
        assert start == (expected if task in ("mrpc", "rte", "stsb") else None)
        assert position["mnli", seed, model] <= index


# The sweep, with a stand-in for the interpreter

STAND_IN = """#!PYTHON
import json, os, pathlib, signal, sys, time
sys.path.insert(0, "REPOSITORY")
script, *flags = sys.argv[1:]
if not script.endswith("run_glue.py"):
    if script.endswith("parse_results.py"):
        sys.exit(print(json.dumps(flags)))
    os.execv(sys.executable, [sys.executable, script, *flags])
from glue_peft import run_folder
folder = pathlib.Path(flags[flags.index("--output_dir") + 1])
world = pathlib.Path(__file__).parent
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
        if run_folder.state(folder, flags)[0] == "finished":  # by another sweep, since this one looked
            sys.exit()
        seen = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
        with open(world / "calls", "a") as calls:
            calls.write(json.dumps({"folder": str(folder), "pid": os.getpid(), **seen}) + "\\n")
        print("a line of the run", flush=True)
        if "--init_adapter_from" in flags and not (
            pathlib.Path(flags[flags.index("--init_adapter_from") + 1]) / "run.json"
        ).exists():
            sys.exit(3)
        if (world / "kill").exists():
            (world / "kill").unlink()
            os.kill(os.getppid(), signal.SIGKILL)
        together = int(os.environ.get("TOGETHER", 0))
        wait_for(lambda: len((world / "calls").read_text().splitlines()) >= together)
        if (world / "wait").exists():
            wait_for(lambda: asked)
            time.sleep(0.3)  # a checkpoint is written
            (folder / "saved").touch()
            sys.exit(75)
        status = world / f"status_{folder.name}"
        if status.exists():
            sys.exit(int(status.read_text()))
        run_folder.write_json(folder / "eval_results.json", {"eval_accuracy": 0.5})
        run_folder.write_json(folder / "command.json", {"command": flags})
        run_folder.write_json(folder / "run.json", {"command": flags, "arguments": {}})
except run_folder.UsageError as error:
    print(f"run_glue.py: error: {error}", file=sys.stderr, flush=True)
    wait_for(lambda: not (world / "slow").exists())
    sys.exit(2)
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with an interpreter in place of python: it leaves what a run leaves, or does what files there ask for.

    status_TASK: the exit status of the task's runs; wait: run until SIGTERM, then save and exit with 75; late: go on
    when this is gone; slow: end a refused run when this is gone; kill: the first run kills the shell around it.
    """
    path = tmp_path / "stand in"
    path.write_text(STAND_IN.replace("PYTHON", sys.executable, 1).replace("REPOSITORY", str(REPOSITORY)))
    path.chmod(0o755)
    return tmp_path


def settings(world: Path, **variables: str) -> dict[str, str]:
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


NEEDS_PARALLEL = pytest.mark.skipif(shutil.which("parallel") is None, reason="needs GNU parallel, as CI has it")
ENGINES = pytest.mark.parametrize(
    "jobs", [{}, pytest.param({"JOBS": "2"}, marks=NEEDS_PARALLEL)], ids=["in turn", "parallel"]
)


@ENGINES
def test_a_failed_run_does_not_stop_the_rest_and_finished_ones_are_skipped(world, jobs):
    """It is tried once more, logged, named, and done by the next sweep."""
    (world / "status_mrpc").write_text("3")
    first = train_all(**settings(world, **jobs))
    assert first.returncode == 1
    lines = first.stdout.splitlines()[-3:]
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
    ],
)
def test_only_failures_are_tried_again(world, status, retries, n_calls, expected, line):
    """Not a mistake, not what was stopped; a kill is."""
    (world / "status_mrpc").write_text(status)
    done = train_all(**settings(world, SEEDS="1", RETRIES=retries))
    assert done.returncode == expected
    assert folders(world) == ["1/mrpc"] * n_calls + ["1/rte"] * (status != "130")  # Ctrl-C ends the sweep
    assert line.format(world / "results/lora4/1/mrpc") in done.stdout


def test_a_run_that_diverged_is_not_tried_again(world):
    """It would again."""
    (world / "status_mrpc").write_text("1")
    folder = world / "results/lora4/1/mrpc"
    folder.mkdir(parents=True)
    (folder / "failure.txt").write_text("diverged: the training loss is nan at step 3\n")
    done = train_all(**settings(world, SEEDS="1", RETRIES="3"))
    assert folders(world) == ["1/mrpc", "1/rte"]
    assert f"failed: {folder} (exit status 1): diverged: the training loss is nan at step 3" in done.stdout


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


@NEEDS_PARALLEL
def test_a_run_whose_end_was_not_seen_is_not_counted_as_finished(world):
    """The shell around it was killed."""
    (world / "kill").touch()
    done = train_all(**settings(world, JOBS="1"))
    assert done.returncode == 75
    assert "3 done, 0 skipped as finished, 0 failed" in done.stdout
    assert "1 run was not started, or the end was not seen: start the sweep again" in done.stdout
    assert train_all(**settings(world, JOBS="1")).returncode == 0


@NEEDS_PARALLEL
def test_parallel_runs_share_the_machine(world):
    """One GPU each, the cores divided, a log of all."""
    done = train_all(**settings(world, JOBS="2", GPUS="3,5", TOGETHER="2"))
    assert done.returncode == 0, done.stdout
    assert sorted(folders(world)) == ["1/mrpc", "1/rte", "2/mrpc", "2/rte"]
    assert {call["CUDA_VISIBLE_DEVICES"] for call in calls(world)[:2]} == {"3", "5"}  # the first two run together
    assert {call["OMP_NUM_THREADS"] for call in calls(world)} == {str(max(1, len(os.sched_getaffinity(0)) // 2))}
    log = (world / "results/joblog.tsv").read_text().splitlines()
    assert log[0].startswith("Seq\tHost") and len(log) == 5


@NEEDS_PARALLEL
def test_jobs_per_gpu_packs_several_on_each_of_all_gpus(world):
    """As many as nvidia-smi lists; a number of threads that was given stays."""
    (world / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: A (UUID: GPU-1)'\necho 'GPU 1: A (UUID: GPU-2)'\n")
    (world / "nvidia-smi").chmod(0o755)
    path = f"{world}:{os.environ['PATH']}"
    done = train_all(**settings(world, JOBS_PER_GPU="2", TOGETHER="4", PATH=path, OMP_NUM_THREADS="7"))
    assert done.returncode == 0, done.stdout
    assert sorted(call["CUDA_VISIBLE_DEVICES"] for call in calls(world)) == ["0", "0", "1", "1"]
    assert {call["OMP_NUM_THREADS"] for call in calls(world)} == {"7"}


def test_without_gpus_or_gnu_parallel_one_line_says_so(world):
    """moreutils' parallel is another program."""
    for name, version in (("nvidia-smi", "GNU parallel"), ("parallel", "moreutils")):
        for program, content in (("nvidia-smi", "#!/bin/sh\nexit 9\n"), ("parallel", f"#!/bin/sh\necho {version}\n")):
            (world / program).write_text(content)
            (world / program).chmod(0o755)
        done = train_all(**settings(world, JOBS_PER_GPU="2", PATH=f"{world}:{os.environ['PATH']}"))
        assert done.returncode == 2 and calls(world) == []
        assert len(done.stderr.splitlines()) == 1
        expected = {"nvidia-smi": "there is no GPU here, set JOBS", "parallel": "need GNU parallel"}
        assert expected[name] in done.stderr


@NEEDS_PARALLEL
def test_what_starts_from_another_run_waits_for_it(world):
    """MNLI first."""
    done = train_all(**settings(world, RECIPE="lora", TASKS="rte mrpc mnli", JOBS="6"))
    assert done.returncode == 0, done.stdout
    assert {name.split("/")[1] for name in folders(world)[:2]} == {"mnli"} and len(folders(world)) == 6


@NEEDS_PARALLEL
def test_dry_run_lines_are_whole_for_gnu_parallel(world):
    """Two spaces in an argument arrive."""
    command = f"bash {shlex.quote(str(REPOSITORY / 'train_all.sh'))} --note 'two  words' | parallel --jobs 2"
    done = subprocess.run(["bash", "-c", command], env=environment(**settings(world, DRY_RUN="1")), cwd=world)
    assert done.returncode == 0
    assert sorted(folders(world)) == ["1/mrpc", "1/rte", "2/mrpc", "2/rte"]
    recorded = read(world / "results/lora4/1/rte/run.json")["command"]
    assert recorded[-2:] == ["--note", "two  words"]


def start(world: Path, **variables: str) -> subprocess.Popen:
    """A sweep in the background."""
    return subprocess.Popen(
        ["bash", str(REPOSITORY / "train_all.sh")],
        env=environment(**settings(world, **variables)),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests run behind a `&`
    )


def wait_for_calls(world: Path, number: int) -> None:
    """Wait until so many runs have been started."""
    for _ in range(3000):
        if len(calls(world)) >= number:
            return
        time.sleep(0.01)
    raise AssertionError(f"{len(calls(world))} runs were started")


@ENGINES
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_lets_the_runs_save_and_starts_no_other(world, jobs, number, status):
    """SIGTERM and Ctrl-C; the next sweep ends the work."""
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


@NEEDS_PARALLEL
def test_a_signal_to_gnu_parallel_itself_is_not_taken_for_the_end(world):
    """Its runs are stopped, the others not started: both are said."""
    (world / "wait").touch()
    sweep = start(world, JOBS="2")
    wait_for_calls(world, 2)
    (child,) = Path(f"/proc/{sweep.pid}/task/{sweep.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGTERM)
    output, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 1, output
    assert "GNU parallel failed, or somebody stopped it" in output
    assert output.count("stopped, to be resumed by the next sweep") == 2
    assert "2 runs were not started" in output


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
        run_folder.write_json(folder / "run.json", {})
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


def test_status_asks_parse_results_for_every_row_of_the_grid(world):
    """A single seed as a range, or it would mean as many."""
    done = train_all(**settings(world, STATUS="1", ADAPTERS="lora vera:8"))
    roots = [f"{world}/results/{name}" for name in ("lora4", "vera8")]
    assert json.loads(done.stdout) == ["--status", *roots, "1,2", "--tasks", "mrpc,rte"]
    assert json.loads(train_all(**settings(world, STATUS="1", SEEDS="7")).stdout)[2] == "7-7"
    assert calls(world) == []


# Slurm, by what it sets


def slurm(world: Path, line: int, script: Path = REPOSITORY / "train_all.sh", **variables: str) -> subprocess.Popen:
    """Task `line` of an array job; Slurm runs a copy of the script from a folder of its own."""
    own = {"SLURM_ARRAY_TASK_ID": str(line), "SLURM_JOB_ID": "9", "SLURM_CPUS_PER_TASK": "3"}
    return subprocess.Popen(
        ["bash", str(script)],
        env=environment(**settings(world, **own, **variables)),
        cwd=REPOSITORY,
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
    assert "a line of the run" in (world / "results/lora4/2/mrpc/run.log").read_text()
    (world / "wait").unlink()
    assert slurm(world, 3).wait() == 0  # requeued
    assert folders(world) == ["2/mrpc"] * 2
    assert slurm(world, 3).wait() == 0  # and again, when it is finished
    assert folders(world) == ["2/mrpc"] * 2
    assert train_all(**settings(world, MISSING="1")).stdout == "1-2,4\n"


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
    for name in ("run_glue.py", "one_run.sh", "recipes/randlora.tsv"):
        (other / name).write_text("")
    copy = world / "slurm_script"
    shutil.copy(REPOSITORY / "train_all.sh", copy)
    (world / "scontrol").write_text(f"#!/bin/sh\necho '   Command={REPOSITORY}/train_all.sh'\n")
    (world / "scontrol").chmod(0o755)
    task = slurm(world, 1, copy, SLURM_SUBMIT_DIR=str(other), PATH=f"{world}:{os.environ['PATH']}")
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


@NEEDS_PARALLEL
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
