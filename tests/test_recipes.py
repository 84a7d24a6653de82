"""recipes/: values of papers, whose every row makes a command that parses, and what the adapters' configs say."""

import csv
import functools
import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from helpers import read
from sweep_helpers import REPOSITORY, dry_run, train_all
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2Model,
    RobertaConfig,
    RobertaModel,
)

import parse_results
import run_glue
from glue_peft import recipe as recipes
from glue_peft.adapters import number_of_bases, projection_key, target_widths
from glue_peft.arguments import AdapterArguments
from glue_peft.grid import COLUMNS, read_grid, read_recipe
from glue_peft.tables.published import read_published

OWN = ("minilm", "tuned")  # this project's recipes; the others are papers'
RECIPES = sorted(path for path in (REPOSITORY / "recipes").glob("*.tsv") if path.stem not in OWN)
FIELDS = REPOSITORY / "glue_peft" / "tables" / "recipe_fields.tsv"
# What is no part of an adapter's function or training: PEFT's bookkeeping, and the head, which is trained in any case.
BOOKKEEPING = set(
    "task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode modules_to_save "
    "megatron_core qalora_group_size runtime_config".split()
)
SIX = ["sst2", "mrpc", "cola", "qnli", "rte", "stsb"]
sizes = {"FacebookAI/roberta-base": (768, 3072), "FacebookAI/roberta-large": (1024, 4096)}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    """Let commands name the recipes as train_all.sh does there."""
    monkeypatch.chdir(REPOSITORY)


@functools.cache
def architecture(name: str) -> torch.nn.Module:
    """Return a layer of the model's real width, without weights."""
    hidden, inner = sizes.get(name, (768, 3072))
    kind = DebertaV2Config if "deberta" in name else RobertaConfig
    heads = hidden // 64
    config = kind(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=1, num_attention_heads=heads)
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


def grid(recipe: Path, seeds: str = ""):
    """Return a recipe's runs."""
    return read_grid({"RECIPE": recipe.stem} | ({"SEEDS": seeds} if seeds else {}), [])


def parsed(run, tmp_path: Path):
    """Return the parsed flags of a run; an adapter to start from is made up."""
    flags = list(run.flags)
    if "--init_adapter_from" in flags:
        flags[flags.index("--init_adapter_from") + 1] = str(tmp_path)
        (tmp_path / "adapter_config.json").write_text("{}")  # an adapter that the grid itself makes
    parsed_arguments = run_glue.parse_arguments(flags)
    parsed_arguments[2].init_adapter_from = None
    return parsed_arguments


@functools.cache
def fields() -> list[dict[str, str]]:
    """Return the table of the configs' fields, one line a field."""
    rows = csv.DictReader(FIELDS.read_text(encoding="utf-8").splitlines(), delimiter="\t")
    return [row | {"field": field} for row in rows for field in row["fields"].split()]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_dry_run_prints_every_command_without_a_question_mark(recipe):
    """All rows and seeds, in one go; nothing is left unknown."""
    lines = dry_run(RECIPE=recipe.stem)
    assert [shlex.split(line)[1:] for line in lines] == [list(run.command[1:]) for run in grid(recipe)]
    assert len(lines) > 7 and not any("?" in line or "{" in line for line in lines)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_row_makes_a_run_that_parses_with_its_values(recipe, tmp_path):
    """And the config of its adapter is what the table of fields says, field by field."""
    seed = grid(recipe)[-1].seed
    rows = {
        (row["adapter"], row["model"], task): row
        for row in read_recipe(str(recipe))
        for task in row["tasks"].split(",")
    }
    runs = grid(recipe, seed)
    assert len(runs) == len(rows)
    known = {(row["adapter"], row["field"]): row for row in fields_of(recipe)}
    used = set()
    for run, (name, model_name, task) in zip(runs, rows, strict=True):
        row = rows[name, model_name, task]
        assert row["source"] and task == run.task
        model, data, adapter, training = parsed(run, tmp_path)
        devices, batch = recipes.devices_and_batch(row["batch"])
        assert (model.model_name_or_path, data.task_name) == (model_name, task)
        assert data.max_seq_length == int(row["length"])
        assert (training.gradient_accumulation_steps, training.per_device_train_batch_size) == (devices, batch)
        assert training.learning_rate == float(row["learning_rate"])
        assert training.num_train_epochs == int(row["epochs"])
        assert training.output_dir.split("/")[1].startswith(f"{row['adapter']}{row['rank']}")
        if task not in ("sst2", "mrpc") and recipe.stem.startswith("randlora"):
            continue  # one row serves all six
        config = run_glue.make_adapter_config(adapter, architecture(model_name), training.seed).to_dict()
        for field, value in config.items():
            if field not in BOOKKEEPING:
                assert (name, field) in known, f"{recipe.stem}: {name}: no source for {field} {value!r}"
                assert fits(known[name, field]["value"], value, row, adapter, int(seed)), (name, task, field, value)
                used.add((name, field))
    assert used == set(known)  # the table says nothing of fields that aren't there


def fields_of(recipe: Path) -> list[dict[str, str]]:
    """Return the lines of the table for a recipe, one an adapter and field."""
    found = [
        row | {"adapter": adapter}
        for row in fields()
        if recipe.stem in row["recipes"].split(",")
        for adapter in row["adapters"].split(",")
    ]
    assert len({(row["adapter"], row["field"]) for row in found}) == len(found)
    assert all(row["source"] for row in found)
    return found


def fits(text: str, value, row: dict[str, str], adapter: AdapterArguments, seed: int) -> bool:
    """Say whether a field of a built config is what the table says."""
    rank = int(row["rank"])
    if text in ("by task", "the run's steps"):  # in a test of its own; set by the training
        return True
    if text == "by seed":
        return value in (seed, projection_key(seed))
    if text.startswith("2 x rank"):
        n = number_of_bases(target_widths(architecture(row["model"]), adapter.target_modules), rank)
        return value == 2 * rank / (n**0.5 if "sqrt" in text else 1)
    if text in ("row", "off"):
        return value == rank if text == "row" else not value
    if isinstance(value, (list, set)):
        return sorted(value) == sorted(text.split())
    return text == (str(value).lower() if isinstance(value, (bool, str)) else f"{value:g}")


def test_there_are_these_recipes_and_no_row_twice():
    """Each has a row for each model and task of its paper."""
    assert [path.stem for path in RECIPES] == (
        "adalora fourierft lora lora_scripts randlora randlora_paper unilora unilora_peft vblora vera".split()
    )
    for recipe in RECIPES:
        served = [
            (row["adapter"], row["model"], task)
            for row in read_recipe(str(recipe))
            for task in row["tasks"].split(",")
        ]
        assert len(served) == len(set(served))
        for adapter, model in {(adapter, model) for adapter, model, _ in served}:
            assert {task for *others, task in served if others == [adapter, model]} >= set(SIX)


@pytest.mark.parametrize(
    ("recipe", "adapter", "size", "columns", "values"),
    [
        (
            *("lora", "lora", "base", "batch epochs learning_rate length"),
            "sst2 16/60/5e-4/512 mrpc 16/30/4e-4/512 cola 32/80/4e-4/512 qnli 32/25/4e-4/512 rte 32/80/5e-4/512 "
            "stsb 16/40/4e-4/512 mnli 16/30/5e-4/512 qqp 16/25/5e-4/512",
        ),
        (
            *("lora", "lora", "large", "batch epochs learning_rate length"),
            "sst2 4/10/4e-4/128 mrpc 4/20/3e-4/512 cola 4/20/2e-4/128 qnli 4/10/2e-4/512 rte 8/20/4e-4/512 "
            "stsb 8/30/2e-4/512 mnli 4/10/3e-4/128 qqp 4/20/3e-4/512",
        ),
        (
            *("lora_scripts", "lora", "base", "batch epochs learning_rate"),
            "sst2 8x16/60/5e-4 mrpc 8x16/30/4e-4 cola 2x32/80/4e-4 qnli 8x32/25/4e-4 rte 8x32/80/5e-4 "
            "stsb 8x16/40/4e-4 mnli 8x16/30/5e-4 qqp 8x16/25/5e-4",
        ),
        (
            *("lora_scripts", "lora", "large", "batch epochs learning_rate length"),
            "sst2 8x8/10/4e-4/512 mrpc 8x4/20/3e-4/512 cola 8x4/20/3e-4/128 qnli 8x4/10/2e-4/512 "
            "rte 8x8/20/4e-4/512 stsb 8x4/10/3e-4/128 mnli 8x4/10/3e-4/128 qqp 8x4/20/3e-4/512",
        ),
        (
            *("vera", "vera", "base", "rank batch length epochs learning_rate classifier_learning_rate"),
            "sst2 1024/64/512/60/4e-3/4e-3 mrpc 1024/64/512/30/1e-2/4e-3 cola 1024/64/512/80/1e-2/1e-2 "
            "qnli 1024/64/512/25/1e-2/4e-3 rte 1024/64/512/160/4e-3/1e-2 stsb 1024/64/512/80/1e-2/1e-2",
        ),
        (
            *("vera", "vera", "large", "rank batch length epochs learning_rate classifier_learning_rate"),
            "sst2 256/4x32/128/10/1e-2/6e-3 mrpc 256/4x32/128/40/3e-2/3e-3 cola 256/4x32/128/40/1e-2/6e-3 "
            "qnli 256/4x32/128/20/1e-2/2e-4 rte 256/4x32/128/40/2e-2/2e-3 stsb 256/4x32/128/20/2e-2/2e-3",
        ),
        (
            *("fourierft", "fourierft", "base", "epochs learning_rate classifier_learning_rate scaling batch length"),
            "sst2 40/5e-2/6e-3/140/32/512 mrpc 30/5e-2/6e-3/151/32/512 cola 100/1.2e-1/8e-3/49/32/512 "
            "qnli 40/1e-1/1e-3/29/32/512 rte 90/9e-2/1.1e-2/110/32/512 stsb 60/9e-2/9e-3/84/32/512",
        ),
        (
            *("fourierft", "fourierft", "large", "epochs learning_rate classifier_learning_rate scaling batch length"),
            "sst2 10/4.3e-2/1e-3/99/32/128 mrpc 30/6e-2/1e-3/120/32/512 cola 80/4.3e-2/1.1e-2/120/128/256 "
            "qnli 30/6e-2/5e-3/69/32/512 rte 60/8e-2/5e-3/90/32/512 stsb 30/7e-2/1e-3/121/32/512",
        ),
        *(
            (
                *("vblora", adapter, size, "length epochs learning_rate learning_rates weight_decay"),
                " ".join(
                    f"{task} {length}/{epochs}/{head}/vblora_vector_bank=1e-3+vblora_logits=1e-2/0.1"
                    for task, epochs, head in zip(SIX, all_epochs.split("/"), heads.split("/"), strict=True)
                ),
            )
            for adapter in ("vblora_qv", "vblora_all")
            for size, length, all_epochs, heads in (
                ("base", 512, "60/60/80/25/160/80", "4e-3/4e-3/2e-2/1e-2/2e-2/2e-2"),
                ("large", 128, "20/40/40/20/40/40", "3e-3/6e-3/3e-3/2e-3/2e-3/6e-3"),
            )
        ),
        (
            *("unilora", "unilora_qv", "base", "length epochs learning_rate learning_rates weight_decay"),
            "sst2 512/60/1e-4/unilora_theta_d=5e-3/0.1 mrpc 512/60/2e-2/unilora_theta_d=5e-3/0.1 "
            "cola 512/80/5e-3/unilora_theta_d=5e-3/0.1 qnli 512/25/2e-4/unilora_theta_d=5e-3/0.1 "
            "rte 512/160/5e-4/unilora_theta_d=5e-3/0.1 stsb 512/80/2e-4/unilora_theta_d=5e-3/0.1",
        ),
        (
            *("unilora", "unilora_qv", "large", "length epochs learning_rate learning_rates"),
            "sst2 128/20/2e-4/unilora_theta_d=1e-3 mrpc 128/40/2e-3/unilora_theta_d=5e-3 "
            "cola 128/40/2e-2/unilora_theta_d=5e-3 qnli 128/20/5e-3/unilora_theta_d=5e-3 "
            "rte 128/40/5e-3/unilora_theta_d=5e-3 stsb 128/40/2e-4/unilora_theta_d=5e-3",
        ),
        (
            *("unilora_peft", "unilora_all", "base", "epochs learning_rate weight_decay max_grad_norm"),
            "sst2 60/5e-4/0.01/0 mrpc 30/1e-3/0.01/0 cola 80/2e-2/0.01/0 qnli 25/1e-3/0.01/0 rte 160/1e-2/0.01/0 "
            "stsb 80/2e-4/0.01/0",
        ),
        (
            *("unilora_peft", "unilora_all", "large", "length epochs learning_rate"),
            "sst2 128/20/1e-3 mrpc 128/40/2e-4 cola 128/40/5e-3 qnli 128/20/5e-4 rte 128/40/5e-3 stsb 128/40/2e-4",
        ),
        (
            *("adalora", "adalora", "deberta", "learning_rate epochs length classifier_dropout warmup_steps"),
            "cola 8e-4/25/64/0.1/100 mnli 5e-4/7/256/0.15/1000 mrpc 1e-3/30/320/0/0.1 qnli 5e-4/5/512/0.1/500 "
            "qqp 8e-4/5/320/0.15/2000 rte 1.2e-3/50/320/0.2/200 sst2 8e-4/24/128/0/1000 stsb 2.2e-3/25/128/0.2/100",
        ),
        (
            *("adalora", "adalora", "deberta", "init_r tinit tfinal deltaT lora_alpha orth_reg_weight weight_decay"),
            "cola 3/800/3500/10/32/0.1/0 mnli 3/8000/50000/100/16/0.1/0 mrpc 2/600/1800/1/32/0.1/0.01 "
            "qnli 2/2000/8000/100/32/0.1/0.01 qqp 2/8000/25000/100/16/0.1/0.01 rte 2/600/1800/1/32/0.3/0.01 "
            "sst2 2/6000/22000/100/16/0.1/0.01 stsb 2/800/2000/10/32/0.3/0.1",
        ),
    ],
)
def test_a_recipe_has_the_values_of_its_paper(recipe, adapter, size, columns, values):
    """Tables and scripts as each row's source names them, typed here a second time."""
    found = {}
    for row in read_recipe(f"recipes/{recipe}.tsv"):
        if row["adapter"] == adapter and size in row["model"]:
            flags = re.findall(r"--(\w+)((?: [^-]\S*)*)", row["flags"])
            cells = row | {name: value.strip().replace(" ", "+") for name, value in flags}
            if "adapter_config" in cells:
                cells |= read(REPOSITORY / cells["adapter_config"].format(recipes="recipes", seed=1))
            found[row["tasks"]] = "/".join(shown(cells[column]) for column in columns.split())
    words = values.split()
    assert found == dict(zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize("name", OWN)
def test_this_project_s_recipes_make_runs_that_parse(name):
    """With each rate of each row."""
    rates = {}
    for line in dry_run(RECIPE=name, TUNE="1", TASKS="mrpc", SEARCH_SEEDS="101", SEEDS="1"):
        model, _, adapter, training = run_glue.parse_arguments(shlex.split(line)[2:])
        rates.setdefault((adapter.adapter_name, model.model_name_or_path), []).append(training.learning_rate)
    for row in read_recipe(f"recipes/{name}.tsv"):
        wanted = [float(rate) for rate in row["learning_rate"].split()]
        found = rates[row["adapter"], row["model"]]
        assert set(wanted) <= set(found) and row["source"]
    assert len(rates) == len(read_recipe(f"recipes/{name}.tsv"))


def test_the_grids_of_the_tuned_recipe_are_of_equal_budget():
    """As many rates for each method and the same factors, each of 2 to 3.4, in the protocol of the default grid."""
    protocol = {(row["adapter"], row["model"]): row for row in read_recipe("recipes/randlora.tsv")}
    factors = set()
    for row in read_recipe("recipes/tuned.tsv"):
        rates = [float(rate) for rate in row["learning_rate"].split()]
        factors.add(tuple(round(rate / rates[0], 9) for rate in rates))
        assert all(2 <= second / first <= 3.4 for first, second in itertools.pairwise(rates))
        same = protocol.get((row["adapter"], row["model"]), row | {"rank": "-", "epochs": "10", "batch": "64"})
        for name in ("tasks", "rank", "epochs", "batch", "length", "flags"):
            assert row[name] == same[name]
    assert len(factors) == 1


def shown(value: object) -> str:
    """Return a cell, or a setting of a config file, as it is typed above."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_lora_s_recipes_start_three_tasks_from_the_same_seed_s_mnli_run():
    """MRPC, RTE and STS-B, as the paper did."""
    for recipe in ("lora", "lora_scripts"):
        runs = read_grid({"RECIPE": recipe, "TAG": "_paper"}, [])
        assert len(runs) == 2 * 8 * 5
        position = {run.folder: index for index, run in enumerate(runs)}
        for index, run in enumerate(runs):
            start = (
                run.flags[run.flags.index("--init_adapter_from") + 1] if "--init_adapter_from" in run.flags else None
            )
            expected = f"{run.folder.rsplit('/', 1)[0]}/mnli"
            assert start == (expected if run.task in ("mrpc", "rte", "stsb") else None)
            assert position[expected] <= index


def test_a_recipe_says_what_its_columns_are():
    """In the line above them, column by column in their order; the same words in each."""
    named = re.sub(r" \([^)]*\)", "", recipes.COLUMNS_LINE).removeprefix("# columns: ").split("; ")
    assert tuple(named) == COLUMNS
    for path in (REPOSITORY / "recipes").glob("*.tsv"):
        above, _, _ = path.read_text(encoding="utf-8").partition("\n" + "\t".join(COLUMNS) + "\n")
        assert above.splitlines()[-1] == recipes.COLUMNS_LINE, path


def test_seeds_statistic_and_epoch_are_the_recipe_s():
    """And what it stands beside is in the published table, for each of its models and tasks."""
    headers = {path.stem: recipes.read_header(path) for path in RECIPES}
    assert [
        run.seed for run in read_grid({"RECIPE": "fourierft", "TASKS": "rte", "MODELS": "FacebookAI/roberta-base"}, [])
    ] == [*("0", "11111", "22222", "33333", "44444")]
    assert {name: (header.statistic, header.epoch) for name, header in headers.items()} == {
        "adalora": ("mean", "best"), "randlora": ("mean", "last"), "randlora_paper": ("mean", "last"),
        **dict.fromkeys("fourierft lora lora_scripts unilora unilora_peft vblora vera".split(), ("median", "best")),
    }  # fmt: skip
    assert {name for name, header in headers.items() if "seeds" in header.not_stated} == set(
        "lora lora_scripts unilora vblora vera".split()
    )
    for name, header in headers.items():
        adapters = {row["adapter"] for row in read_recipe(f"recipes/{name}.tsv")}
        assert set(header.published) | set(header.published_seeds) <= adapters and header.about
        for row in read_recipe(f"recipes/{name}.tsv"):
            paper, method = header.published.get(row["adapter"], (None, None))
            published = [
                r for r in read_published(row["model"].split("/")[1]) if (r.paper, r.method) == (paper, method)
            ]
            assert len(published) == (paper is not None)
            for theirs in published:
                assert set(row["tasks"].split(",")) <= set(theirs.scores)
                assert theirs.statistic == header.statistic
                assert theirs.epoch == ("?" if "epoch" in header.not_stated else header.epoch)


def test_configs_of_seeds_differ_in_the_seed_alone():
    """Uni-LoRA's projection is drawn from it."""
    for kind, seeds in (("qv", range(1, 6)), ("all", range(5))):
        contents = [json.loads((REPOSITORY / f"recipes/unilora/{kind}_{seed}.json").read_text()) for seed in seeds]
        assert [content.pop("proj_seed") for content in contents] == list(seeds)
        assert all(content == contents[0] for content in contents)


def wide_model(tiny: Path, folder: Path, kind: type, model: type) -> Path:
    """Save a model of two layers with random weights, wide enough for every recipe's adapter, and long enough."""
    tokenizer = AutoTokenizer.from_pretrained(tiny / "roberta")
    config = kind(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=514,
        pad_token_id=tokenizer.pad_token_id,
        type_vocab_size=0 if kind is DebertaV2Config else 1,
    )
    model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_two_steps_of_every_recipe_from_the_sweep_to_the_verdict(recipe, tiny, tmp_path, capsys):
    """On tiny models of its architecture: train_all.sh trains MRPC, and --reproduce says what is there and missing."""
    kind = (DebertaV2Config, DebertaV2Model) if recipe.stem == "adalora" else (RobertaConfig, RobertaModel)
    model = wide_model(tiny, tmp_path / "wide", *kind)
    flags = ["--max_steps", "2", "--dataset_path", str(tiny / "glue"), "--max_eval_samples", "32"]
    where = {"RECIPE": recipe.stem, "MODELS": str(model), "RESULTS": str(tmp_path / "runs")}
    if recipe.stem == "adalora":  # its phases are longer than this run
        config = read(REPOSITORY / "recipes/adalora/mrpc.json") | {"tinit": 0, "tfinal": 0}
        (tmp_path / "adalora").mkdir()
        (tmp_path / "adalora/mrpc.json").write_text(json.dumps(config))
        where["RECIPE"] = str(shutil.copy(recipe, tmp_path))
    tasks = "mnli mrpc" if recipe.stem.startswith("lora") else "mrpc"
    seed = grid(recipe)[0].seed
    done = train_all(*flags, TASKS=tasks, SEEDS=seed, **where)
    assert done.returncode == 0, done.stdout + done.stderr
    line = done.stdout.splitlines()[-1]
    assert line.startswith("against the paper: " if read_published_of(recipe) else "the table: ")
    wanted = ["--reproduce", recipe.stem, where["RESULTS"], "--tasks", "mrpc", "--format", "row", "--verbose"]
    assert parse_results.main(wanted) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("wide | ")]
    adapters = {row["adapter"] for row in read_recipe(f"recipes/{recipe.stem}.tsv")}
    assert {row[1] for row in rows} == adapters and {(row[3], row[8]) for row in rows} == {("1", "no published row")}
    assert all(" | 0 | - | " in line for line in lines if re.match(r"(roberta|deberta)-", line))
    assert sum("--max_steps (the folder has 2)" in line for line in lines) == len(adapters)
    assert sum(line.startswith(f"in all: {recipe.stem}, ") for line in lines) == 1


def read_published_of(recipe: Path) -> bool:
    """Say whether anything is published beside a recipe's adapters."""
    header = recipes.read_header(recipe)
    return bool(header.published or header.published_seeds)
