"""README.md and docs/: commands are ones that the scripts accept, links lead somewhere, every flag is listed."""

import dataclasses
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY
from sweep_helpers import train_all
from transformers import TrainingArguments

import make_submission
import parse_results
import plot_results
import plot_spectrum
from glue_peft import arguments
from glue_peft.tables import reproduce
from glue_peft.tables.results import wanted_seeds
from glue_peft.tasks import TASKS

README = REPOSITORY / "README.md"
PAGES = [README, REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
TEXTS = {path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
# What each kind of command has in it, in the order in which they are looked for.
KINDS = (
    "parse_results.py",
    "plot_results.py",
    "plot_spectrum.py",
    "make_submission.py",
    "train_all.sh",
    "run_glue.py",
    "glue_peft.tables.recipe_page",
    "benchmarks.plot_benchmarks",
    "benchmarks/gpu.sh",
    "benchmarks.",
    "pytest",
    "make ",
    "conda ",
    "hf ",
)
# The flags of Hugging Face's example that are not TrainingArguments'; docs/flags.md lists what is not among them.
FLAGS_OF_THE_EXAMPLE = set(
    "task_name dataset_name dataset_config_name max_seq_length overwrite_cache pad_to_max_length max_train_samples "
    "max_eval_samples max_predict_samples train_file validation_file test_file model_name_or_path config_name "
    "tokenizer_name cache_dir use_fast_tokenizer model_revision token trust_remote_code "
    "ignore_mismatched_sizes".split()
)


def commands_of(text: str) -> list[str]:
    """Return the commands in a page's bash blocks, each on one line."""
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def kind_of(command: str) -> str | None:
    """Return the kind of a command."""
    return next((kind for kind in KINDS if kind in command), None)


COMMANDS = list(dict.fromkeys(command for text in TEXTS.values() for command in commands_of(text)))


def of_kind(kind: str) -> list[str]:
    """Return the commands of a kind; none would leave nothing tested."""
    found = [command for command in COMMANDS if kind_of(command) == kind]
    assert found, kind
    return found


def argv_of(command: str, script: str) -> list[str]:
    """Return the words behind a script's name, up to a pipe or a file."""
    words = shlex.split(command.partition(" | ")[0].partition(" > ")[0])
    return words[words.index(script) + 1 :]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Go to a folder that has what the commands read: files of one's own, and every task's data in `glue`."""
    for name in (
        "train.csv",
        "validation.csv",
        "dora.json",
        "hra.json",
        "finetuned_results/randlora64/1/sst2/adapter_config.json",
        *(f"glue/{task}/train.parquet" for task in TASKS),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    monkeypatch.chdir(tmp_path)
    trackers = ["tensorboard", "trackio", "wandb"]  # which tests/test_progress.py tries where they are installed
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: trackers)
    return tmp_path


def test_no_command_is_left_out():
    """Every one is of a kind that a test below reads, and every page has one."""
    assert [command for command in COMMANDS if kind_of(command) is None] == []
    assert [page for page, text in TEXTS.items() if not commands_of(text)] == []


@pytest.mark.parametrize("command", of_kind("run_glue.py"))
def test_runs_parse(command, place):
    """Flags, values and their combinations pass every check that comes before a model is loaded."""
    if "--help" in command:
        return  # HfArgumentParser ends the process; tests/test_arguments.py reads what it prints
    _, _, _, training_args = arguments.parse_arguments(argv_of(command, "run_glue.py"))
    assert training_args.do_train or training_args.do_eval


@pytest.mark.parametrize("command", of_kind("train_all.sh"))
def test_sweeps_print_runs_that_parse(command, place):
    """The grid of each is printed, and runs from all over it pass those checks."""
    words = shlex.split(command.partition(" | ")[0])
    assignments = words[: words.index("sbatch" if "sbatch" in words else "bash")]
    variables = dict(word.split("=", 1) for word in assignments) | {"DRY_RUN": "1", "PYTHON": sys.executable}
    done = train_all(*words[words.index("train_all.sh") + 1 :], **variables)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines
    for line in lines[:: max(1, len(lines) // 5)]:
        argv = shlex.split(line)[2:]
        if "--init_adapter_from" in argv:  # a folder that an earlier run of the grid makes
            folder = place / argv[argv.index("--init_adapter_from") + 1]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "adapter_config.json").write_text("{}")
            argv[argv.index("--init_adapter_from") + 1] = str(folder)
        arguments.parse_arguments(argv)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """Return a folder with the scripts that make tables and figures and the runs that are kept here, to write into."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(REPOSITORY / "results/runs", folder / "results/runs")
    for script in ("parse_results.py", "plot_results.py"):
        (folder / script).symlink_to(REPOSITORY / script)
    return folder


ON_KEPT_RUNS = [
    command for command in COMMANDS if re.match(r"python (parse|plot)_results.py .*\bresults/runs", command)
]


@pytest.mark.parametrize("command", ON_KEPT_RUNS)
def test_tables_and_figures_of_the_kept_runs_are_made(command, clone):
    """Every such command works in a fresh clone."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", command], cwd=clone, env=os.environ | {"PATH": path}, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command", [command for command in of_kind("parse_results.py") if command not in ON_KEPT_RUNS]
)
def test_tables_parse(command):
    """With a number of seeds, a range or a list; --reproduce with a recipe that is there."""
    argv = argv_of(command, "parse_results.py")
    if reproduce.is_asked_for(argv):
        assert (REPOSITORY / "recipes" / f"{reproduce.parse_arguments(argv).reproduce}.tsv").is_file()
    else:
        roots = parse_results.parse_arguments(argv).roots
        assert len(roots) == 1 or wanted_seeds(roots[-1])


@pytest.mark.parametrize("command", of_kind("plot_results.py"))
def test_plots_parse(command):
    """With a figure as the last argument."""
    assert plot_results.parse_arguments(argv_of(command, "plot_results.py")).out.suffix == ".png"


@pytest.mark.parametrize("command", of_kind("make_submission.py"))
def test_submissions_parse(command):
    """With a zip as the last argument."""
    assert make_submission.parse_arguments(argv_of(command, "make_submission.py")).out.suffix == ".zip"


@pytest.mark.parametrize("command", of_kind("plot_spectrum.py"))
def test_spectra_parse(command):
    """With runs and a figure."""
    args = plot_spectrum.parse_arguments(argv_of(command, "plot_spectrum.py"))
    assert args.run_folders and args.out.suffix == ".png"


@pytest.mark.parametrize("command", of_kind("glue_peft.tables.recipe_page"))
def test_the_recipes_page_is_what_its_command_writes(command):
    """From the recipes as they are now."""
    words, _, page = command.partition(" > ")
    done = subprocess.run([sys.executable, *shlex.split(words)[1:]], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (REPOSITORY / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("command", of_kind("benchmarks."))
def test_benchmarks_parse(command, monkeypatch):
    """Each is a module of benchmarks/ that takes these flags."""
    words = shlex.split(command.partition(" | ")[0])
    module = words[words.index("-m") + 1]
    monkeypatch.setattr(sys, "argv", words[words.index(module) :])
    assert importlib.import_module(module).parse_arguments()


@pytest.mark.parametrize("command", of_kind("benchmarks/gpu.sh"))
def test_the_gpu_s_script_hands_its_flags_on(command, monkeypatch):
    """Its first two modules take them."""
    words = shlex.split(command)
    assert words[:2] == ["bash", "benchmarks/gpu.sh"] and (REPOSITORY / words[1]).is_file()
    for name in ("gpu_steps", "gpu_jobs"):
        monkeypatch.setattr(sys, "argv", [name, *words[2:]])
        assert importlib.import_module(f"benchmarks.{name}").parse_arguments()


@pytest.mark.parametrize("command", of_kind("benchmarks.plot_benchmarks"))
def test_the_benchmarks_figure_is_drawn_from_committed_numbers(command, tmp_path):
    """It needs nothing that is not in the repository."""
    *words, _ = shlex.split(command)[1:]
    done = subprocess.run([sys.executable, *words, tmp_path / "speed.png"], cwd=REPOSITORY, capture_output=True)
    assert done.returncode == 0 and (tmp_path / "speed.png").stat().st_size > 10_000


@pytest.mark.parametrize("command", of_kind("make "))
def test_make_knows_its_targets(command):
    """Each has something to do."""
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout


@pytest.mark.parametrize("command", of_kind("pytest"))
def test_tests_are_there(command):
    """Each file that a command names is one of this folder's."""
    files = [word for word in shlex.split(command) if word.endswith(".py")]
    assert files and all((REPOSITORY / name).is_file() for name in files)


def test_quick_start():
    """Two commands and no more make the first steps."""
    block = commands_of(TEXTS["README.md"].partition("## Quick start")[2])
    assert block[:2] == ["make smoke", "make test"]


def test_readme_is_short():
    """What few readers need is in docs/, and linked from here."""
    assert README.stat().st_size <= 14_000
    linked = set(re.findall(r"\]\((docs/\w+\.md)", TEXTS["README.md"]))
    assert linked == {page for page in TEXTS if page.startswith("docs/")}


def own_flags() -> set[str]:
    """Return the flags that neither Hugging Face's example nor TrainingArguments has, as they are spelled."""
    theirs = FLAGS_OF_THE_EXAMPLE | {item.name for item in dataclasses.fields(TrainingArguments)}
    groups = (
        arguments.ModelArguments,
        arguments.DataTrainingArguments,
        arguments.AdapterArguments,
        arguments.GlueTrainingArguments,
    )
    own = [item for group in groups for item in dataclasses.fields(group) if item.name not in theirs]
    return {f"--no_{item.name}" if item.default is True else f"--{item.name}" for item in own}


def test_the_table_has_every_own_flag_and_no_other():
    """Looked for in the first column of docs/flags.md's table alone."""
    rows = re.findall(r"^\| (`--.*?) \| ", TEXTS["docs/flags.md"], flags=re.MULTILINE)
    listed = [flag for row in rows for flag in re.findall(r"`(--\w+)", row)]
    assert len(own_flags()) > 20
    assert sorted(listed) == sorted(own_flags())


@pytest.mark.parametrize("page", [page for page in TEXTS if page.startswith("docs/")])
def test_a_page_opens_with_what_it_is_for_and_one_command(page):
    """Before its first table or section: a sentence, and a block with a single command."""
    title, purpose, *rest = re.split(r"\n\n", TEXTS[page].partition("\n## ")[0].partition("\n| ")[0])
    assert title.startswith("# ") and purpose[0].isupper() and len(purpose) > 60
    first_block = next(part for part in rest if "```bash" in part)
    assert len(commands_of(first_block)) == 1


@pytest.mark.parametrize("page", TEXTS)
def test_files_that_pages_name_are_there(page):
    """Those in the folders of this repository, in backquotes."""
    for name in re.findall(r"`((?:glue_peft|recipes|tests|benchmarks|docs|results)/[\w./-]+)`", TEXTS[page]):
        assert (REPOSITORY / name).exists(), name


def anchors_of(text: str) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_to_files(page):
    """Relative ones, and to headings that are there."""
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.S | re.M))
    for link in links:
        path, _, anchor = link.partition("#")
        target = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target.read_text(encoding="utf-8")), link
