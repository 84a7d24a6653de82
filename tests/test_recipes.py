"""recipes/: values of the papers, of which every row makes commands that parse or is refused by name."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
from helpers import read
from sweep_helpers import REPOSITORY, dry_run, train_all

import run_glue

RECIPES = sorted((REPOSITORY / "recipes").glob("*.tsv"))


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
        chosen |= {"DRY_RUN": "1", "TASKS": row["tasks"].replace(",", " "), "SEEDS": "3"}
        rates = row["learning_rate"].split()
        if len(rates) > 1:
            refused = train_all(cwd=tmp_path, **chosen)
            assert (
                refused.returncode == 2 and "several learning rates, to be chosen among with TUNE=1" in refused.stderr
            )
            chosen |= {"TUNE": "1", "SEARCH_SEEDS": "101"}
        done = train_all(cwd=tmp_path, **chosen)
        if "?" in [*row.values(), *row["flags"].split()]:
            assert done.returncode == 2 and done.stdout == ""
            assert re.search(
                rf"{recipe}: the row of {row['adapter']}, {row['model']}, {row['tasks']} has a \? for .*epochs.*"
                "--classifier_learning_rate",
                done.stderr,
            )
            continue
        lines = done.stdout.splitlines()
        assert len(lines) == len(row["tasks"].split(",")) * len(rates)
        for line in lines:
            flags = shlex.split(line)[2:]
            if "--init_adapter_from" in flags:
                start = Path(flags[flags.index("--init_adapter_from") + 1])
                start.mkdir(parents=True, exist_ok=True)
                (start / "adapter_config.json").write_text("{}")
            model, data, adapter, training = run_glue.parse_arguments(flags)
            assert data.max_seq_length == int(row["length"])
            assert training.per_device_train_batch_size == int(row["batch"])
            assert training.learning_rate in map(float, rates)
            assert training.num_train_epochs == int(row["epochs"])
            assert training.output_dir.split("/")[-3].startswith(f"{row['adapter']}{row['rank'].replace('-', '_')}")
            if adapter.adapter_config:
                assert read(Path(adapter.adapter_config))["n_frequency"] == int(row["rank"])
            elif row["adapter"] == "none":
                assert (adapter.adapter_name, row["rank"]) == ("none", "-") and "--rank" not in flags
            else:
                assert (adapter.adapter_name, adapter.rank) == (row["adapter"], int(row["rank"]))


def test_a_paper_s_recipe_has_a_row_for_each_model_and_task():
    """And no two."""
    assert [path.stem for path in RECIPES] == ["fourierft", "lora", "minilm", "randlora", "tuned", "vera"]
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


def test_the_grids_of_the_tuned_recipe_are_of_equal_budget():
    """As many rates for each method and the same factors, each of 2 to 3.4, in the protocol of the default grid."""
    protocol = {(row["adapter"], row["model"]): row for row in rows(REPOSITORY / "recipes/randlora.tsv")}
    factors = set()
    for row in rows(REPOSITORY / "recipes/tuned.tsv"):
        rates = [float(rate) for rate in row["learning_rate"].split()]
        factors.add(tuple(round(rate / rates[0], 9) for rate in rates))
        assert all(2 <= second / first <= 3.4 for first, second in itertools.pairwise(rates))
        same = protocol.get((row["adapter"], row["model"]), row | {"rank": "-", "epochs": "10", "batch": "64"})
        for name in ("tasks", "rank", "epochs", "batch", "length", "flags"):
            assert row[name] == same[name]
    assert len(factors) == 1


def test_lora_s_recipe_starts_three_tasks_from_the_same_seed_s_mnli_run():
    """MRPC, RTE and STS-B, as the paper did."""
    commands = [shlex.split(line) for line in dry_run(RECIPE="lora", TAG="_paper")]
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
