"""grid.py: the runs of a recipe, by the dry run of train_all.sh."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from sweep_helpers import REPOSITORY, environment, train_all
from sweep_helpers import dry_run as dry_run_lines

import run_glue
from glue_peft import grid
from glue_peft.flags import ADAPTER_FLAGS, without


def dry_run(*flags: str, **variables: str) -> list[list[str]]:
    """Return the commands of the grid, each as a list of words."""
    return [shlex.split(line) for line in dry_run_lines(*flags, **variables)]


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
    assert [command[command.index("--output_dir") + 1] for command in commands] == [
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


def test_lists_have_spaces_or_commas_and_seeds_ranges():
    """In their order."""
    commands = dry_run(MODELS="FacebookAI/roberta-base", ADAPTERS="lora, vera:8", TASKS="rte,mrpc", SEEDS="7 1-2,0")
    assert [command[command.index("--output_dir") + 1] for command in commands] == [
        f"finetuned_results/{adapter}/{seed}/{task}"
        for adapter in ("lora4", "vera8")
        for seed in (7, 1, 2, 0)
        for task in ("rte", "mrpc")
    ]


def test_nothing_in_a_list_is_expanded(tmp_path):
    """Neither patterns nor commands: a value is its words."""
    (tmp_path / "a_model").mkdir()
    variables = environment(MODELS="* $(touch${IFS}x)", ADAPTERS="lora", TASKS="rte", SEEDS="1", DRY_RUN="1")
    command = ["bash", str(REPOSITORY / "train_all.sh")]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    models = [words[words.index("--model_name_or_path") + 1] for words in map(shlex.split, done.stdout.splitlines())]
    assert models == ["*", "$(touch${IFS}x)"] and os.listdir(tmp_path) == ["a_model"]


@pytest.mark.parametrize(
    ("text", "names"),
    [("0,1", "0 1"), ("0 1", "0 1"), ("0-2, 5", "0 1 2 5"), ("GPU-8f6c-1,MIG-a", "GPU-8f6c-1 MIG-a"), ("3", "3")],
)
def test_gpus_have_spaces_or_commas_and_ranges(text, names):
    """A GPU's long name is no range."""
    assert grid.gpus_of(text) == names.split()


def test_a_variable_that_is_nearly_one_of_ours_is_a_warning_where_ours_is_set():
    """One line; other variables of a system are none."""
    done = train_all(
        DRY_RUN="1", TASKS="rte", TASK="mrpc", SEEDS="1", TASK_ID="7", JOB_ID="8", MODELS_DIR="x", MODE="y", seed=""
    )
    assert done.returncode == 0 and {shlex.split(line)[5] for line in done.stdout.splitlines()} == {"rte"}
    assert done.stderr == "train_all.sh: TASK is ignored, TASKS is set\n"


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
        ({"ADAPTERS": "adalora"}, [], "ADAPTERS: no adalora .*allowed are randlora lora vera none, lora:8 for"),
        ({"SEEDS": "1 1"}, [], "two runs would share finetuned_results/lora4/1/cola"),
        ({"MODELS": "a/bert b/bert"}, [], "two runs would share .*_bert/1/"),
        ({"ADAPTERS": "lora:x"}, [], "ADAPTERS: lora:x is not <adapter>:<rank>"),
        ({"ADAPTERS": "none"}, [], "ADAPTERS=none: .*--learning_rate"),
        ({"TASKS": "mrcp"}, [], "TASKS: unknown task mrcp; allowed are cola mnli .* wnli, or one name with --train"),
        ({}, ["--train_file", "x.csv"], "--train_file: set TASKS to one name for these data, as in "),
        ({"TASKS": "a b"}, ["--dataset_name", "x"], "--dataset_name: set TASKS to one name for these data"),
        ({"TASKS": "my/data"}, ["--train_file", "x.csv"], "TASKS: my/data is no name for a folder"),
        ({"TASKS": "avg"}, ["--train_file", "x.csv"], "TASKS: avg has another meaning in tables"),
        ({"TASKS": "a", "RECIPE": "lora"}, ["--train_file", "x"], "TASKS: .*lora.tsv has no values for a; it has "),
        ({"SEEDS": "one"}, [], "SEEDS: one is not a whole number"),
        ({"SEEDS": "5-1"}, [], "SEEDS: 5-1 is not a range"),
        ({"SEEDS": "1-9999999999"}, [], "SEEDS: 1-9999999999 is not a range of at most 10000 seeds"),
        ({"SEEDS": "1-3,2"}, [], "two runs would share finetuned_results/lora4/2/cola"),
        ({"MODELS": " "}, [], "MODELS: is set, and empty"),
        ({"SEEDS": "01"}, [], "SEEDS: 01 is not a whole number"),  # parse_results.py reads the folder 1
        ({}, ["stray"], "unknown argument 'stray'; a flag of run_glue.py begins with --"),
        ({}, ["--rank", "8"], "--rank: set ADAPTERS, as in ADAPTERS=lora:8, instead"),
        ({}, ["--seed=8"], "--seed: set SEEDS instead"),
        ({}, ["--model-name-or-path", "x"], "--model_name_or_path: set MODELS instead"),
        ({}, ["--dataset_path", "a\tb"], "a tab or a line break in a flag"),
        ({"RESULTS": "a\nb"}, [], "a tab or a line break in a flag"),
        ({}, ["--output_dir", "x"], "--output_dir: set RESULTS or TAG instead"),
        ({"RECIPE": "qlora"}, [], "RECIPE: no .*recipes/qlora.tsv; there are .*lora lora_scripts .*, or a path"),
        ({"RECIPE": "lora", "TASKS": "wnli"}, [], "TASKS: .*lora.tsv has no values for wnli; it has mnli sst2"),
        ({"RECIPE": "lora", "ADAPTERS": "none"}, [], "ADAPTERS=none: only with RECIPE=randlora"),
        (
            {"RECIPE": "fourierft", "ADAPTERS": "fourierft:500", "MODELS": "FacebookAI/roberta-base"},
            [],
            "ADAPTERS: fourierft has its settings in a file",
        ),
        ({"ADAPTERS": "a/hra.json b/hra.json"}, [], "two runs would share finetuned_results/hra/1/"),
        ({"ADAPTERS": "my/search.json"}, [], "ADAPTERS: my/search.json: its runs' folder can't be called search"),
        ({"ADAPTERS": "..json"}, [], r"ADAPTERS: \.\.json: its runs' folder can't be called \.$"),
        ({"ADAPTERS": "hra.json:8"}, [], "ADAPTERS: no hra.json:8 .*, and a path like my/hra.json$"),
        ({}, ["--adapter_config", "hra.json"], "--adapter_config: set ADAPTERS, as in ADAPTERS=path/to/hra.json, "),
        ({"JOBS": "two"}, [], "JOBS: two is not a number of runs"),
        ({"JOBS_PER_GPU": "0"}, [], "JOBS_PER_GPU: 0 is not a number of runs"),
        ({"MPS": "2"}, [], "MPS: 2 is neither 0 nor 1"),
        ({"GPUS": "3-1"}, [], "GPUS: 3-1 is not a list like 0,1,2 or 0-3"),
        ({"GPUS": ","}, [], "GPUS: is set, and empty"),
        ({"SEEDS": "4294967296"}, [], "SEEDS: 4294967296 is above 4294967295"),
        ({"TAG": "/../x"}, [], "TAG: '/../x' has a slash, two dots, a tab or a line break"),
        ({"TAG": ".."}, [], "TAG: '..' has a slash"),
        ({"TAG": "a\tb"}, [], r"TAG: 'a\\tb' has a slash"),
        ({"TAG": "a\nb"}, [], r"TAG: 'a\\nb' has a slash"),
        ({"MODEL": "x"}, [], "MODEL: the variable is MODELS; rename it, or unset it"),
        ({"MODLES": "x"}, [], "MODLES: the variable is MODELS; rename it, or unset it"),
        ({"SEDS": "1"}, [], "SEDS: the variable is SEEDS; rename it, or unset it"),
        ({"ADAPTORS": "lora"}, [], "ADAPTORS: the variable is ADAPTERS; rename it, or unset it"),
        ({"TASKSS": "rte"}, [], "TASKSS: the variable is TASKS; rename it, or unset it"),
        ({"DATASETS": "rte"}, [], "DATASETS: the variable is TASKS; rename it, or unset it"),
        ({"SEEDS": ""}, [], "SEEDS: is set, and empty; unset it for its default"),
        ({"TASKS": " , "}, [], "TASKS: is set, and empty; unset it for its default"),
        ({"JOBS": ""}, [], "JOBS: is set, and empty; unset it for its default"),
        ({"adapters": "lora"}, [], "adapters: the variable is ADAPTERS"),
        ({"Task": "rte"}, [], "Task: the variable is TASKS"),
        ({"DRYRUN": "1"}, [], "DRYRUN: the variable is DRY_RUN"),
        ({"GPU": "0"}, [], "GPU: the variable is GPUS"),
        ({"JOB": "2"}, [], "JOB: the variable is JOBS"),
        ({"RESULT": "r"}, [], "RESULT: the variable is RESULTS"),
        ({"SLURM_ARRAY_TASK_ID": "a[$(touch /tmp/x)]"}, [], "--array: the grid has the lines 1 to 180, no a"),
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
    for name in ("train_all.sh", "run_glue.py"):
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copytree(REPOSITORY / "glue_peft", tmp_path / "glue_peft")
    (tmp_path / "recipes").mkdir()
    lines = (REPOSITORY / "recipes/lora.tsv").read_text().splitlines()
    rows = [line for line in lines if not line.startswith("#")][:3]
    (tmp_path / "recipes/own.tsv").write_text("\n".join(rows))
    command = ["bash", "train_all.sh"]
    variables = environment(RECIPE="own", SEEDS="1", DRY_RUN="1")
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert [shlex.split(line)[5] for line in done.stdout.splitlines()] == ["mnli", "sst2"]


def test_a_recipe_given_by_path_names_files_beside_it(tmp_path):
    """{recipes} is its own folder; a - stands for no flags, and quotes keep a value's spaces."""
    header = "\t".join(grid.COLUMNS)
    row = "fourierft\tmine\trte\t1000\t1e-2\t3\t8\t64\t--adapter_config {recipes}/own.json\tme"
    quoted = "lora\tmine\trte\t4\t1e-2\t3\t8\t64\t--lr_scheduler_kwargs '{\"a\": 1}'\tme"
    plain = "none\tmine\trte\t-\t1e-5\t3\t8\t64\t-\tme"
    (tmp_path / "own.tsv").write_text("\n".join([header, row, quoted, plain]))
    commands = dry_run(RECIPE=str(tmp_path / "own.tsv"), SEEDS="1")
    assert commands[0][commands[0].index("--adapter_config") + 1] == f"{tmp_path}/own.json"
    assert commands[1][commands[1].index("--lr_scheduler_kwargs") + 1] == '{"a": 1}'
    assert "-" not in commands[2] and commands[2][-2:] == ["finetuned_results/none_mine/1/rte", "--resume"]


def test_an_adapter_from_a_file_is_a_row_beside_the_recipe_s():
    """Its folder is the file's name; it takes the first adapter's row, without what is of that adapter alone."""
    variables = {"ADAPTERS": "lora my/hra.json", "TASKS": "rte", "SEEDS": "1", "MODELS": "FacebookAI/roberta-base"}
    done = train_all(DRY_RUN="1", **variables)
    hra, lora = (shlex.split(line) for line in done.stdout.splitlines())  # in the order of the recipe's rows
    assert hra[-4:] == ["1", "--output_dir", "finetuned_results/hra/1/rte", "--resume"] and "--rank" in lora
    method = hra.index("--adapter_config")
    assert hra[method + 1] == "my/hra.json" and not {"--rank", "--adapter_name"} & {*hra}
    shared = lora.index("--adapter_name")
    assert hra[:method] == lora[:shared] and "--fp16" in hra
    assert done.stderr == (
        "train_all.sh: hra takes the row of randlora in recipes/randlora.tsv, also its learning rate, 1e-4; "
        "--learning_rate or TUNE=1 for another one\n"
    )
    given = train_all("--learning_rate", "3e-3", DRY_RUN="1", **variables)
    assert given.stderr.endswith("recipes/randlora.tsv, but for the learning rate, 0.003\n")


@pytest.mark.parametrize("recipe", ["lora", "vera", "fourierft", "unilora", "adalora", "vblora", "randlora_paper"])
def test_an_adapter_from_a_file_goes_with_every_recipe(recipe, tmp_path):
    """What no adapter from a file may have (alpha, rates by its parameters' names) is left out, all else stays."""
    (tmp_path / "hra.json").write_text('{"peft_type": "HRA"}')
    variables = {"RECIPE": recipe, "MODELS": "FacebookAI/roberta-base", "TASKS": "rte", "SEEDS": "1"}
    (command,) = dry_run(**variables, ADAPTERS=f"{tmp_path}/hra.json", RESULTS=str(tmp_path))
    its_own = {"--adapter_name", "--learning_rates", "--init_adapter_from", *map("--{}".format, ADAPTER_FLAGS)}
    first = dry_run(**variables, RESULTS=str(tmp_path))[0]
    words = {word for word in first if word.startswith("--")} - its_own - {"--adapter_config"}
    assert words == {word for word in command if word.startswith("--")} - {"--init_adapter_from", "--adapter_config"}
    flags = [*without(command[2:], "init_adapter_from", "fp16")]
    _, _, adapter, training = run_glue.parse_arguments(flags)
    assert adapter.adapter_config == f"{tmp_path}/hra.json"
    assert training.learning_rate == float(first[first.index("--learning_rate") + 1])


def test_a_task_is_a_name_for_files_where_flags_give_them(tmp_path):
    """The folder's name; the command has the files in place of a task, and the first task's values."""
    (tmp_path / "train.csv").write_text("text,label\na,0\n")
    files = ["--train_file", f"{tmp_path}/train.csv", "--validation_file", f"{tmp_path}/train.csv"]
    commands = dry_run(*files, ADAPTERS="lora", TASKS="messages", SEEDS="1-2", MODELS="FacebookAI/roberta-base")
    assert [command[command.index("--output_dir") + 1] for command in commands] == [
        f"finetuned_results/lora4/{seed}/messages" for seed in (1, 2)
    ]
    for command in commands:
        _, data, _, training = run_glue.parse_arguments(command[2:])
        assert (data.task_name, data.train_file) == (None, f"{tmp_path}/train.csv") and training.num_train_epochs == 10


def test_a_recipe_may_bind_tasks_to_data(tmp_path):
    """Each row to its own; beside GLUE's."""
    rows = [
        "\t".join(("lora", "m", task, "4", "1e-3", "3", "32", "64", flags, "me"))
        for task, flags in (("rte", "-"), ("mails", "--train_file mails.csv"), ("imdb", "--dataset_name a/imdb"))
    ]
    (tmp_path / "own.tsv").write_text("\n".join(["\t".join(grid.COLUMNS), *rows]))
    rte, mails, imdb = dry_run(RECIPE=str(tmp_path / "own.tsv"), SEEDS="1")
    assert "--task_name" in rte and not {"--task_name"} & {*mails, *imdb}
    assert "mails.csv" in mails and "a/imdb" in imdb and imdb[-2] == "finetuned_results/lora4_m/1/imdb"
    (tmp_path / "own.tsv").write_text("\n".join(["\t".join(grid.COLUMNS), rows[1].replace("mails\t", "rte\t")]))
    done = train_all(RECIPE=str(tmp_path / "own.tsv"), SEEDS="1")
    assert "own.tsv: the row of rte has data of its own; give them a name that isn't GLUE's" in done.stderr


def test_a_rank_is_for_its_own_adapter_alone():
    """The next adapter of the list has the recipe's rank again."""
    commands = dry_run(ADAPTERS="lora:8 lora", TASKS="rte", SEEDS="1", MODELS="FacebookAI/roberta-base")
    folders = [command[command.index("--output_dir") + 1] for command in commands]
    assert folders == ["finetuned_results/lora8/1/rte", "finetuned_results/lora4/1/rte"]


def test_commands_are_complete_in_any_folder(tmp_path):
    """Called from elsewhere, by whichever path, the lines name the script by an absolute one."""
    (tmp_path / "my code").symlink_to(REPOSITORY)
    script, variables = "../my code/train_all.sh", environment(DRY_RUN="1", RECIPE="fourierft", TASKS="rte", SEEDS="0")
    (tmp_path / "in").mkdir()
    variables["MODELS"] = "FacebookAI/roberta-base"
    done = subprocess.run(["bash", script], cwd=tmp_path / "in", env=variables, capture_output=True, text=True)
    words = shlex.split(done.stdout)
    assert words[1] == f"{tmp_path}/my code/run_glue.py" and Path(words[1]).is_file()
    assert words[words.index("--adapter_config") + 1] == f"{tmp_path}/my code/recipes/fourierft/base_rte.json"
    assert shlex.split(dry_run_lines(RECIPE="fourierft", MODELS=variables["MODELS"])[0])[1] == "run_glue.py"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("randlora\tm\tmrpc\t4\n", "the row of randlora, mrpc needs 10 columns, none of them empty"),
        ("randlora\tm\tmrpc\t4\t1\t1\t1\t\t--fp16\tme\n", "the row of randlora, mrpc needs 10 columns"),
        ("randlora\tm\tmrpc\t4\t1\t1\t1\t1\t--fp16\tme\tagain\n", "the row of randlora, mrpc needs 10 columns"),
        (
            "lora\tm\tmrpc\t4\t?\t1\t?\t1\t--classifier_learning_rate ? --fp16\tme\n",
            "own.tsv: the row of lora, m, mrpc has a ? for learning_rate batch --classifier_learning_rate; narrow",
        ),
        ("lora\tm\tmrpc\t4\t1\t1\t8*16\t1\t--fp16\tme\n", "batch: 8*16 is not a number of rows, or of devices"),
        (
            "randlora\tm\tmrpc\t4\t1\t1\t1\t1\t--fp16 '\tme\n",
            "the flags in the row of randlora, m, mrpc can't be read",
        ),
        ("", "the grid has no line at all"),
    ],
)
def test_a_recipe_of_another_shape_is_refused_by_its_row(content, message, tmp_path, monkeypatch):
    """Nothing moves into the next column."""
    lines = (REPOSITORY / "recipes/lora.tsv").read_text().splitlines()
    header = next(line for line in lines if not line.startswith("#"))
    (tmp_path / "own.tsv").write_text(f"{header}\n{content}")
    done = train_all(RECIPE=os.path.relpath(tmp_path / "own", REPOSITORY / "recipes"), DRY_RUN="1")
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
