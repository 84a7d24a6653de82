"""Every command in README.md is one that the scripts accept."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from sweep_helpers import train_all

import make_submission
import parse_results
import plot_results
import plot_spectrum
import run_glue
from glue_peft.tables.read import wanted_seeds

REPOSITORY = Path(run_glue.__file__).parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.strip()]


TABLES = ("parse_results.py", "plot_results.py", "plot_spectrum.py", "make_submission.py", "benchmarks/")


def of_kind(fragment: str) -> list[str]:
    """The commands that contain a fragment; none would leave nothing tested."""
    found = [command for command in COMMANDS if fragment in command]
    assert found
    return found


@pytest.mark.parametrize("command", of_kind(" run_glue.py "))
def test_runs_parse(command, tmp_path, monkeypatch):
    """Flags, values and their combinations pass every check that comes before a model is loaded."""
    for name in (
        "train.csv",
        "validation.csv",
        "dora.json",
        "hra.json",
        "finetuned_results/randlora64/1/sst2/adapter_config.json",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    _, _, _, training_args = run_glue.parse_arguments(words[words.index("run_glue.py") + 1 :])
    assert training_args.do_train or training_args.do_eval


@pytest.mark.parametrize("command", of_kind("train_all.sh"))
def test_sweeps_print_runs_that_parse(command, tmp_path):
    """The grid of each is printed, and runs from all over it pass those checks."""
    words = shlex.split(command.partition(" | ")[0])
    script = words.index("train_all.sh")
    assignments = words[: words.index("sbatch" if "sbatch" in words else "bash")]
    variables = dict(word.split("=", 1) for word in assignments) | {"DRY_RUN": "1"}
    done = train_all(*words[script + 1 :], **variables)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines
    for line in lines[:: max(1, len(lines) // 5)]:
        argv = shlex.split(line)[2:]
        if "--init_adapter_from" in argv:  # a folder that an earlier run of the grid makes
            folder = tmp_path / argv[argv.index("--init_adapter_from") + 1]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "adapter_config.json").write_text("{}")
            argv[argv.index("--init_adapter_from") + 1] = str(folder)
        run_glue.parse_arguments(argv)


@pytest.mark.parametrize("command", of_kind("python parse_results.py"))
def test_tables_parse(command):
    """With a number of seeds, a range or a list."""
    assert wanted_seeds(parse_results.parse_arguments(shlex.split(command)[2:]).n_seeds)


@pytest.mark.parametrize("command", of_kind("python plot_results.py"))
def test_plots_parse(command):
    """With a figure as the last argument."""
    assert plot_results.parse_arguments(shlex.split(command)[2:]).out.suffix == ".png"


@pytest.mark.parametrize("command", of_kind("python make_submission.py"))
def test_submissions_parse(command):
    """With a zip as the last argument."""
    assert make_submission.parse_arguments(shlex.split(command)[2:]).out.suffix == ".zip"


@pytest.mark.parametrize("command", of_kind("python plot_spectrum.py"))
def test_spectra_parse(command):
    """With runs and a figure."""
    args = plot_spectrum.parse_arguments(shlex.split(command)[2:])
    assert args.run_folders and args.out.suffix == ".png"


@pytest.mark.parametrize("command", of_kind("python benchmarks/plot_benchmarks.py"))
def test_the_benchmarks_figure_is_drawn_from_committed_numbers(command, tmp_path):
    """It needs nothing that is not in the repository."""
    *files, _ = shlex.split(command)[1:]
    done = subprocess.run([sys.executable, *files, tmp_path / "speed.png"], cwd=REPOSITORY, capture_output=True)
    assert done.returncode == 0 and (tmp_path / "speed.png").stat().st_size > 10_000


@pytest.mark.parametrize("command", of_kind("make "))
def test_make_knows_its_targets(command):
    """Each has something to do."""
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout


def test_no_command_is_left_out():
    """Every command of README is of a kind that a test above reads."""
    kinds = (" run_glue.py ", "train_all.sh", "make ", "conda ")
    kinds += tuple(f"python {name}" for name in TABLES)
    assert [command for command in COMMANDS if not any(kind in command for kind in kinds)] == []


def test_environment_file_reads_the_one_place_for_versions():
    """requirements.txt, where each package has one exact version."""
    assert "name: randlora_glue" in (REPOSITORY / "env.yml").read_text()
    assert "- -r requirements.txt" in (REPOSITORY / "env.yml").read_text()
    pins = (REPOSITORY / "requirements.txt").read_text().split()
    assert all(re.fullmatch(r"[a-z-]+==[\d.]+", pin) for pin in pins)


def test_every_own_flag_is_described():
    """The adapters' flags, which Hugging Face's example doesn't have."""
    for name in run_glue.AdapterArguments.__dataclass_fields__:
        if not name.startswith("_"):
            assert f"--{name}" in README or f"--no_{name}" in README
