"""preflight.py: the commands of a grid are parsed and their files read before anything starts."""

import io
import json
from pathlib import Path

import pytest

from glue_peft import preflight
from glue_peft.grid import Run, read_grid
from glue_peft.sweep import bases_of

LORA = {"MODELS": "FacebookAI/roberta-base", "RECIPE": "lora"}


def answer(commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> list[str]:
    """The lines that the program prints for these commands."""
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{json.dumps(flags)}\n" for flags in commands)))
    status = preflight.main()
    lines = capsys.readouterr().out.splitlines()
    assert status == (2 if lines else 0)
    return lines


def commands_of(settings: dict[str, str], *flags: str) -> list[list[str]]:
    """The distinct commands of a grid."""
    runs = read_grid(settings, list(flags))
    return preflight.distinct_commands(runs, bases_of(runs))


def test_commands_differ_by_more_than_seed_and_folder():
    """36 of the protocol's 180; of each the highest seed, whose bounds the others keep."""
    commands = commands_of({})
    assert len(commands) == 36
    assert {flags[flags.index("--seed") + 1] for flags in commands} == {"5"}
    assert {flags[flags.index("--seed") + 1] for flags in commands_of({"SEEDS": "11,9"})} == {"11"}


def test_an_adapter_that_the_grid_makes_needn_t_be_there(monkeypatch, capsys, tmp_path):
    """One that no run of it makes must be, for every seed."""
    settings = LORA | {"RESULTS": str(tmp_path), "SEEDS": "1-2"}
    commands = commands_of(settings | {"TASKS": "mnli,rte"})
    assert len(commands) == 2 and answer(commands, monkeypatch, capsys) == []
    alone = commands_of(settings | {"TASKS": "rte"})
    assert len(alone) == 2
    (tmp_path / "lora8/1/mnli").mkdir(parents=True)
    (tmp_path / "lora8/1/mnli/adapter_config.json").write_text("{}")
    assert answer(alone, monkeypatch, capsys) == [f"--init_adapter_from {tmp_path}/lora8/2/mnli: no such folder"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_train_epoch", "3"], "--num_train_epoch"),
        (["--dataset_path", "glue", "stray"], "unknown argument 'stray'"),
        (["--dataset_config_name", "x"], "--dataset_config_name goes with --dataset_name"),
        (["--learning_rate", "fast"], "--learning_rate"),
        (["--adapter_dropout", "2"], "--adapter_dropout 2.0"),
        (["--optim", "adamw_bnb_8bit"], "--optim adamw_bnb_8bit: You need to install `bitsandbytes`"),
        (["--dataset_path", "no/such/folder"], "--dataset_path no/such/folder: no such folder"),
        (["--tokenizer_name", "/no/such/folder"], "--tokenizer_name /no/such/folder: no such folder"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_flag(flags, message, monkeypatch, capsys):
    """The first of all commands."""
    commands = commands_of({"ADAPTERS": "lora", "TASKS": "rte"}, *flags)
    (line,) = answer(commands, monkeypatch, capsys)
    assert message in line


def test_a_model_s_folder_has_to_be_there(monkeypatch, capsys, tmp_path):
    """And its data's; a model id of the hub may be downloaded later."""
    settings = {"MODELS": f"{tmp_path}/model", "ADAPTERS": "lora", "TASKS": "rte"}
    (line,) = answer(commands_of(settings), monkeypatch, capsys)
    assert line.startswith(f"--model_name_or_path {tmp_path}/model: no such folder")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "glue/mrpc").mkdir(parents=True)
    (line,) = answer(commands_of(settings, "--dataset_path", f"{tmp_path}/glue"), monkeypatch, capsys)
    assert line == f"--dataset_path {tmp_path}/glue: no folder rte in it; tasks there: mrpc"
    assert answer(commands_of(settings | {"MODELS": "some/model"}), monkeypatch, capsys) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "not a readable file with one JSON object"),
        ('{"peft_type": "LORRA"}', "peft_type"),
        ('{"peft_type": "LORA", "rang": 4}', "rang"),
        (None, "not a readable file"),
    ],
)
def test_an_adapter_s_file_is_read(content, message, tmp_path: Path, monkeypatch, capsys):
    """With PEFT's own names."""
    path = tmp_path / "own.json"
    if content is not None:
        path.write_text(content)
    settings = LORA | {"RECIPE": "fourierft", "TASKS": "rte", "SEEDS": "1"}
    (command,) = commands_of(settings | {"ADAPTERS": str(path)})
    (line,) = answer([command], monkeypatch, capsys)
    assert line.startswith(f"--adapter_config {path}: ") and message in line
    assert answer(commands_of(settings), monkeypatch, capsys) == []


def test_a_missing_package_is_one_line(monkeypatch, capsys):
    """With the interpreter that lacks it."""
    monkeypatch.setitem(__import__("sys").modules, "glue_peft.arguments", None)
    (line,) = answer(commands_of({"ADAPTERS": "lora", "TASKS": "rte"}), monkeypatch, capsys)
    assert "glue_peft.arguments" in line and "lacks a package" in line


def test_an_interpreter_that_dies_is_named(tmp_path):
    """With its last words; once the sweep is stopped, it is no mistake."""
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\necho first >&2\necho out of luck >&2\nexit 3\n")
    path.chmod(0o755)
    runs = [Run("r/lora4/1/rte", ("python", "run_glue.py", "--seed", "1"))]
    with pytest.raises(ValueError, match=f"{path} can't check the flags: out of luck"):
        preflight.check_commands(runs, {}, {"PYTHON": str(path)}, lambda: False)
    preflight.check_commands(runs, {}, {"PYTHON": str(path)}, lambda: True)
    preflight.check_commands([], {}, {"PYTHON": str(path)}, lambda: False)
