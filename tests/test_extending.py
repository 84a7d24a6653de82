"""How to add an adapter, a task and a model: each done once, as README's section says, on tiny models."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import make_tiny
import pytest
import torch
from helpers import REPOSITORY, arguments, logits, read
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertModel,
)

LEARNS = {"max_train_samples": None, "max_eval_samples": None, "num_train_epochs": 3}


def test_adding_an_adapter(run, tiny, tmp_path):
    """A PEFT method without a flag of its own, from its config file: trained, counted, saved, and used again."""
    config = {"peft_type": "HRA", "r": 8, "target_modules": ["query", "key", "value", "dense"]}
    (tmp_path / "hra.json").write_text(json.dumps(config))
    flags = {"adapter_name": None, "rank": None}
    folder = run("trained", adapter_config=tmp_path / "hra.json", learning_rate=1e-2, **flags, **LEARNS)
    record = read(folder / "run.json")
    assert record["metrics"]["eval_accuracy"] > 0.75
    assert record["adapter_config"]["peft_type"] == "HRA" and record["adapter_config"]["r"] == 8
    # Householder vectors, r of the input's width for each layer: per block five layers of width 48 and one of 96
    assert record["parameters"]["adapter"] == 2 * 8 * (5 * 48 + 96)
    again = run("again", adapter_path=folder, do_train=None, **flags, **LEARNS)
    assert read(again / "eval_results.json")["eval_loss"] == pytest.approx(record["metrics"]["eval_loss"], abs=1e-5)

    base = AutoModelForSequenceClassification.from_pretrained(
        tiny / "roberta", config=AutoConfig.from_pretrained(folder)
    )
    before = logits(base, tiny)
    assert not torch.allclose(logits(PeftModel.from_pretrained(base, folder), tiny), before, atol=0.1)


def write_rows(path: Path, rows: list[tuple[str, str, str]]) -> None:
    """A CSV file of messages with their replies."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("message", "reply", "label"), *rows])


def test_adding_a_task_from_files(run, tmp_path):
    """Own columns and label names; the metric is accuracy, and predictions carry the names."""
    rows = make_tiny.make_split("mrpc", 512, seed=0, labelled=True)
    names = ["off topic", "on topic"]
    triples = [(row["sentence1"], row["sentence2"], names[row["label"]]) for row in rows]
    files = {"train_file": triples[:384], "validation_file": triples[384:448], "test_file": triples[448:]}
    for name, part in files.items():
        write_rows(tmp_path / f"{name}.csv", part)
    paths = {name: tmp_path / f"{name}.csv" for name in files}
    columns = {"text_columns": ["message", "reply"]}
    folder = run(task_name=None, dataset_path=None, do_predict=True, **columns, **paths, **LEARNS)
    assert read(folder / "run.json")["metrics"]["eval_accuracy"] > 0.75
    assert read(folder / "config.json")["id2label"] == {"0": "off topic", "1": "on topic"}
    header, *lines = (folder / "predict_results_test_file.txt").read_text().splitlines()
    predictions = [line.split("\t")[1] for line in lines]
    assert header == "index\tprediction" and set(predictions) == set(names)
    right = sum(said == label for said, (_, _, label) in zip(predictions, files["test_file"], strict=True))
    assert right > 0.75 * len(predictions)


@pytest.mark.slow
def test_adding_a_task_by_name(tiny, tmp_path, monkeypatch):
    """One row in TASKS, which here a script adds before anything reads the table, and the data in GLUE's layout."""
    monkeypatch.setitem(make_tiny.SHAPES, "paws", (("first", "second"), ["different", "same"]))
    (tmp_path / "glue" / "paws").mkdir(parents=True)
    for seed, (split, rows) in enumerate({"train": 512, "validation": 128}.items()):
        data = make_tiny.make_split("paws", rows, seed, labelled=True)
        data.to_parquet(tmp_path / "glue" / "paws" / f"{split}-00000-of-00001.parquet")
    script = (
        "import sys\n"
        "from glue_peft.tasks import TASKS, GlueTask\n"
        "TASKS['paws'] = GlueTask('PAWS', ('first', 'second'), ('accuracy', 'f1'), 'f1', (), (), None)\n"
        "import run_glue\n"
        "run_glue.main(sys.argv[1:])\n"
    )
    flags = arguments(tiny, tmp_path / "out", task_name="paws", dataset_path=tmp_path / "glue", **LEARNS)
    subprocess.run([sys.executable, "-c", script, *flags], check=True, cwd=REPOSITORY)
    record = read(tmp_path / "out" / "run.json")
    assert record["metrics"]["eval_accuracy"] > 0.75 and record["metrics"]["eval_samples"] == 128
    assert record["scores"]["metric"] == "eval_f1" and record["metrics"]["eval_f1"] > 0.75
    assert set(read(tmp_path / "out" / "config.json")["label2id"]) == {"different", "same"}


def test_adding_a_model(run, tiny, tmp_path):
    """DistilBERT: another architecture, whose layers have their own names; what is not fast for it says so."""
    tokenizer = AutoTokenizer.from_pretrained(tiny / "bert")
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=48,
        hidden_dim=96,
        n_layers=2,
        n_heads=4,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    DistilBertModel(config).save_pretrained(tmp_path / "distilbert")
    tokenizer.save_pretrained(tmp_path / "distilbert")
    folder = run(model_name_or_path=tmp_path / "distilbert", adapter_name="randlora", rank=8, **LEARNS)
    record = read(folder / "run.json")
    assert record["metrics"]["eval_accuracy"] > 0.75
    assert record["fast_adapters"] == {"converted": 12, "left": {}}
    assert not record["unpadded_encoder"]["on"] and "DistilBert" in record["unpadded_encoder"]["reason"]
    layers = {"q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"}
    assert set(read(folder / "adapter_config.json")["target_modules"]) == layers
