"""adapters.py: configurations and counts, config files, saved adapters and merging."""

import json
import math
import shutil

import peft
import pytest
import torch
from helpers import ADAPTERS, arguments, equal, logits, read, saved_weights
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import run_glue
from glue_peft import adapters, trials
from glue_peft.arguments import AdapterArguments
from glue_peft.errors import UsageError

# Flags and config files


def meta_model(size: str) -> torch.nn.Module:
    """RoBERTa-base or -large on the meta device."""
    wide = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    config = RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, **(wide if size == "large" else {})
    )
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize(
    ("adapter", "rank", "size", "count"),
    [
        ("lora", 4, "base", 663_552),
        ("lora", 4, "large", 1_769_472),
        ("randlora", 64, "base", 718_848),
        ("randlora", 100, "large", 1_780_416),
        ("vera", 256, "base", 101_376),
        ("vera", 256, "large", 258_048),
        ("vera", 1024, "base", 156_672),
    ],
)
def test_parameter_counts_of_the_papers(adapter, rank, size, count):
    """Adapter and head apart, on the real sizes."""
    model = meta_model(size)
    config = run_glue.make_adapter_config(AdapterArguments(adapter_name=adapter, rank=rank), model, seed=1)
    counts = adapters.count_parameters(peft.get_peft_model(model, config))
    assert counts["adapter"] == count
    assert counts["head"] == {"base": 592_130, "large": 1_051_650}[size]


def test_configurations_are_the_protocol_s():
    """And the flags that change them."""
    model = meta_model("base")
    make = lambda **flags: run_glue.make_adapter_config(AdapterArguments(**flags), model, seed=3)  # noqa: E731
    lora = make(adapter_name="lora", rank=4)
    assert (lora.lora_alpha, lora.lora_dropout) == (8, 0.0)
    assert lora.target_modules == {"query", "key", "value", "dense"}
    assert make(adapter_name="lora", rank=4, adapter_alpha=3.0, adapter_dropout=0.1).lora_alpha == 3.0
    randlora = make(adapter_name="randlora", rank=64)
    assert (randlora.randlora_alpha, randlora.projection_prng_key, randlora.save_projection) == (128, 63, False)
    vera = make(adapter_name="vera", rank=256)
    assert (vera.d_initial, vera.projection_prng_key) == (0.1, 63)
    assert make(adapter_name="vera", vera_d_initial=0.5, projection_prng_key=7).projection_prng_key == 7
    assert make(adapter_name="randlora", randlora_sparse=True).sparse
    assert make(adapter_name="randlora", randlora_very_sparse=True).very_sparse


def test_paper_scaling_divides_by_the_root_of_the_number_of_bases(run):
    """2 / sqrt(n) in place of 2."""
    folder = run(adapter_name="randlora", rank=5, paper_scaling=True)
    config = read(folder / "adapter_config.json")
    assert config["randlora_alpha"] / 5 == pytest.approx(2 / math.sqrt(math.ceil(48 / 5)))


def test_paper_scaling_needs_one_number_of_bases():
    """PEFT keeps one alpha for all layers."""
    assert adapters.number_of_bases([48, 48], 5) == 10
    with pytest.raises(UsageError, match=r"--paper_scaling: the adapted layers have \[10, 20\] bases"):
        adapters.number_of_bases([48, 96], 5)


def test_projection_keys_are_the_authors_and_never_shared():
    """Also where their formula leaves 64 bits."""
    assert [adapters.projection_key(seed) for seed in range(1, 6)] == [8, 23, 63, 171, 466]
    keys = [adapters.projection_key(seed) for seed in [*range(200), 2**32 - 1]]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)
    torch.Generator().manual_seed(adapters.projection_key(43))


@pytest.mark.parametrize(
    "content",
    [
        {"peft_type": "LORA", "r": 2, "use_dora": True, "target_modules": ["query", "value"]},
        {"peft_type": "IA3", "target_modules": ["key", "value", "dense"], "feedforward_modules": ["dense"]},
        {"peft_type": "FOURIERFT", "n_frequency": 20, "target_modules": ["query", "value"]},
    ],
    ids=lambda content: content["peft_type"],
)
def test_any_other_peft_method_from_its_config_file(run, tiny, tmp_path, content):
    """Trained, counted, saved, reloaded and merged."""
    (tmp_path / "adapter.json").write_text(json.dumps(content))
    folder = run(
        adapter_name=None, rank=None, adapter_config=tmp_path / "adapter.json", save_merged=tmp_path / "plain"
    )
    record = read(folder / "run.json")
    assert record["adapter_config"]["peft_type"] == content["peft_type"]
    assert 0 < record["parameters"]["adapter"] < record["parameters"]["total"] / 2
    config = AutoConfig.from_pretrained(folder)
    base = AutoModelForSequenceClassification.from_pretrained(tiny / "roberta", config=config)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    adapted = peft.PeftModel.from_pretrained(base, folder)
    torch.testing.assert_close(logits(adapted, tiny), logits(merged, tiny), rtol=0, atol=1e-5)


def test_the_config_file_of_a_saved_adapter_is_one(run):
    """PEFT saves it for inference; given as --adapter_config it is trained."""
    first = run("first")
    second = run("second", adapter_name=None, rank=None, adapter_config=first / "adapter_config.json")
    assert equal(saved_weights(first), saved_weights(second))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a readable file"),
        ('{"r": 4}', "peft_type is None; allowed"),
        ('{"peft_type": "LORA", "ranc": 4}', "LORA has no setting ranc"),
        ('{"peft_type": "LORA", "target_modules": ["wrong"]}', "target_modules: 'wrong' fits nothing in"),
        ('{"peft_type": "LORA", "r": 0}', "r is 0; it must be at least 1"),
        ('{"peft_type": "adamss"}', "ADAMSS can't be used here: its call after every step"),
        ('{"peft_type": "LORA", "task_type": "CAUSAL_LM"}', "task_type is 'CAUSAL_LM'; allowed: 'SEQ_CLS'"),
    ],
)
def test_bad_adapter_config_files(tiny, tmp_path, content, message):
    """No JSON, no method, an unknown setting, layers that are not there, a rank of none."""
    (tmp_path / "adapter.json").write_text(content)
    flags = {"adapter_name": None, "rank": None, "adapter_config": tmp_path / "adapter.json"}
    with pytest.raises(UsageError, match=f"--adapter_config .*{message}"):
        run_glue.main(arguments(tiny, tmp_path / "out", **flags))


@pytest.mark.parametrize(
    ("model_type", "sizes", "named", "targets"),
    [
        (
            "distilbert",
            {"dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2},
            "query not in DistilBert.*k_lin, lin1, lin2, out_lin, q_lin, v_lin",
            ["q_lin", "v_lin"],
        ),
        (
            "deberta-v2",
            {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
            "query not in DebertaV2.*dense, key_proj, query_proj, value_proj",
            ["query_proj", "value_proj"],
        ),
    ],
)
def test_an_architecture_without_the_target_layers_gets_its_linear_layers_named(
    tiny, tmp_path, model_type, sizes, named, targets
):
    """Where --target_modules names one that it lacks, although the others fit."""
    folder = tmp_path / "model"
    tokenizer = AutoTokenizer.from_pretrained(tiny / "bert")
    AutoModel.from_config(AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(UsageError, match=f"--target_modules .*{named}"):
        run_glue.main(arguments(tiny, tmp_path / "out", model_name_or_path=folder, target_modules=[*targets, "query"]))
    run_glue.main(arguments(tiny, tmp_path / "out", model_name_or_path=folder, target_modules=targets))
    trained = saved_weights(tmp_path / "out")
    assert any("classifier" in name for name in trained)  # the head is everything outside the encoder


# Saved adapters


@pytest.mark.parametrize("adapter", ["lora", "randlora", "vera"])
def test_a_run_starts_from_a_saved_adapter_with_a_new_head(run, monkeypatch, adapter):
    """The bases come along from another seed; of the saved file only the head is left behind."""
    saved = run("mnli", task_name="mnli", adapter_name=adapter, seed=2, **ADAPTERS[adapter])
    starts = []
    load_model = run_glue.load_model

    def remember(*args):
        model, sha256 = load_model(*args)
        starts.append({name: t.clone() for name, t in peft.get_peft_model_state_dict(model).items()})
        return model, sha256

    monkeypatch.setattr(run_glue, "load_model", remember)
    folder = run("rte", task_name="rte", adapter_name=adapter, init_adapter_from=saved, **ADAPTERS[adapter])
    theirs = saved_weights(saved)
    for name, tensor in starts[0].items():
        if "classifier" not in name:
            assert torch.equal(tensor, theirs[name]), name
    assert starts[0]["base_model.model.classifier.out_proj.weight"].shape == (2, 48)
    if adapter != "lora":
        hashes = [read(path / "random_bases.json")["sha256"] for path in (saved, folder)]
        assert hashes[0] == hashes[1]
    assert read(folder / "run.json")["arguments"]["init_adapter_from"] == str(saved)


def test_a_start_that_does_not_fit_is_refused_by_name(run, tiny):
    """Another rank, method, layers, bases or model; a lost tensor; a broken file; no adapter at all."""
    saved = run("mnli", task_name="mnli", adapter_name="vera", **ADAPTERS["vera"])
    for flags, message in (
        ({"adapter_name": "vera", "rank": 8}, "its r is 16, the flags say 8"),
        ({"adapter_name": "lora"}, "its peft_type is VERA, the flags say LORA"),
        ({"adapter_name": "vera", "rank": 16, "target_modules": ["query"]}, "its target_modules is"),
        (
            {"adapter_name": "vera", "rank": 16, "projection_prng_key": 1},
            "its projection_prng_key is 8, the flags say 1",
        ),
        ({"adapter_name": "vera", "rank": 16, "model_name_or_path": tiny / "bert"}, "was trained on another model"),
        ({"adapter_name": "none", "rank": None}, "give --do_train and the adapter"),
        ({"do_train": None, "adapter_name": "vera"}, "give --do_train and the adapter"),
    ):
        with pytest.raises(UsageError, match=message):
            run("rte", task_name="rte", init_adapter_from=saved, **flags)
    weights = saved_weights(saved)
    lost = next(name for name in weights if "vera_lambda_b" in name)
    save_file({name: t for name, t in weights.items() if name != lost}, saved / "adapter_model.safetensors")
    with pytest.raises(UsageError, match="its weights lack .*vera_lambda_b"):
        run("rte", task_name="rte", init_adapter_from=saved, adapter_name="vera", rank=16)
    (saved / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="--init_adapter_from .*mnli: "):
        run("rte", task_name="rte", init_adapter_from=saved, adapter_name="vera", rank=16)
    save_file(weights, saved / "adapter_model.safetensors")
    (saved / "random_bases.json").write_text(json.dumps({"sha256": "0", "projection_prng_key": 8}))
    with pytest.raises(UsageError, match="draws other random bases from key 8"):
        run("rte", task_name="rte", init_adapter_from=saved, adapter_name="vera", rank=16)
    with pytest.raises(UsageError, match="no adapter_config.json in this folder"):
        run("rte", task_name="rte", init_adapter_from=saved.parent)


def test_adapter_path_evaluates_and_predicts_without_training(run, tiny):
    """The run's own loss, label names in the predictions; other labels are refused."""
    folder = run()
    evaluated = run("evaluated", adapter_path=folder, do_train=None, do_predict=True, adapter_name=None, rank=None)
    assert read(evaluated / "eval_results.json")["eval_loss"] == read(folder / "eval_results.json")["eval_loss"]
    lines = (evaluated / "predict_results_mrpc.txt").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 1 + 64
    assert {line.split("\t")[1] for line in lines[1:]} <= {"equivalent", "not_equivalent"}
    with pytest.raises(UsageError, match="--adapter_path .*trained for the labels"):
        run("other", adapter_path=folder, task_name="mnli", do_train=None, adapter_name=None, rank=None)


def test_a_saved_adapter_is_not_scored_on_another_model(run, tiny, tmp_path):
    """The record beside it knows the weights that it was trained on, whatever their folder is called."""
    folder = run()
    shutil.copytree(tiny / "roberta", tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    name = next(name for name in weights if name.endswith("query.weight"))
    save_file(weights | {name: weights[name] + 1}, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    flags = {"do_train": None, "adapter_name": None, "rank": None, "adapter_path": folder}
    with pytest.raises(UsageError, match=f"--adapter_path {folder}: was trained on another model, {tiny}/roberta"):
        run("again", model_name_or_path=tmp_path / "other", **flags)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(UsageError, match=f"--adapter_path {folder}: "):
        run("again", model_name_or_path=None, **flags)


def test_an_adapter_needs_the_whole_pre_trained_model(run, tiny, tmp_path):
    """Weights that the file lacks would be drawn anew at every load; full fine-tuning trains and saves them."""
    shutil.copytree(tiny / "bert", tmp_path / "bert")
    weights = load_file(tmp_path / "bert" / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler." not in name}
    assert len(kept) == len(weights) - 2
    save_file(kept, tmp_path / "bert" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="--model_name_or_path .*: no weights for bert.pooler.dense.bias, "):
        run(model_name_or_path=tmp_path / "bert")
    run("full", model_name_or_path=tmp_path / "bert", adapter_name="none", rank=None)
    config = read(tiny / "bert" / "config.json")
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32}))
    save_file(weights, tmp_path / "bert" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="no weights for bert.embeddings.position_embeddings.weight"):
        run(model_name_or_path=tmp_path / "bert", ignore_mismatched_sizes=True, max_seq_length=32)


def test_broken_weights_are_one_line(run, tiny, tmp_path):
    """Of the adapter and of the model."""
    saved = run("saved")
    (saved / "adapter_model.safetensors").write_bytes(b"")
    flags = {"do_train": None, "adapter_name": None, "rank": None}
    with pytest.raises(UsageError, match="--adapter_path .*saved: "):
        run("again", adapter_path=saved, **flags)
    shutil.copytree(tiny / "roberta", tmp_path / "roberta")
    weights = tmp_path / "roberta" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UsageError, match="--model_name_or_path .*roberta: "):
        run_glue.main(arguments(tiny, tmp_path / "out", model_name_or_path=tmp_path / "roberta"))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (BertConfig(), "classifier_dropout"),
        (DistilBertConfig(), "seq_classif_dropout"),
        (AlbertConfig(), "classifier_dropout_prob"),
        (DebertaV2Config(), "cls_dropout"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_the_head_s_dropout_is_the_flag_s(config, name):
    """Under the name that each model's config has for it; the built model has it in front of its head."""
    adapters.set_head_dropout(config, 0.25)
    assert getattr(config, name) == 0.25
    config.num_hidden_layers = 1
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    assert model.dropout.p == 0.25


def test_a_head_without_dropout_is_refused_and_the_model_s_own_is_the_default():
    """GPT-2's head has none."""
    with pytest.raises(UsageError, match="--classifier_dropout: gpt2 has no dropout of its own"):
        adapters.set_head_dropout(GPT2Config(), 0.1)
    config = BertConfig(classifier_dropout=0.3)
    adapters.set_head_dropout(config, None)
    assert config.classifier_dropout == 0.3


def test_projections_are_saved_only_when_asked_for(run):
    """They are drawn again from the key otherwise."""
    without = saved_weights(run("without", adapter_name="randlora", rank=8))
    with_them = saved_weights(run("with", adapter_name="randlora", rank=8, save_projection=True))
    assert not any("randlora_A" in name for name in without)
    assert any("randlora_A" in name for name in with_them)


def test_other_random_bases_are_an_error_that_names_the_remedy(run, tiny, tmp_path):
    """The hash of what this machine draws is compared at every load."""
    folder = run(adapter_name="vera", rank=16)
    bases = read(folder / "random_bases.json")
    assert bases["projection_prng_key"] == 8
    evaluate = {"adapter_path": folder, "do_train": None, "adapter_name": None, "rank": None}
    run("same", **evaluate)
    (folder / "random_bases.json").write_text(json.dumps(bases | {"sha256": "0" * 64}))
    with pytest.raises(UsageError, match="--save_projection"):
        run("other", **evaluate)


# Merging


@pytest.mark.parametrize("kind", ["roberta", "bert"])
@pytest.mark.parametrize("adapter", ["lora", "randlora", "vera"])
def test_save_merged_needs_no_peft(run, tiny, tmp_path, adapter, kind):
    """The plain model's outputs are the adapted one's."""
    flags = {"adapter_name": adapter, "model_name_or_path": tiny / kind, **ADAPTERS[adapter]}
    folder = run(save_merged=tmp_path / "merged", **flags)
    config = AutoConfig.from_pretrained(folder)
    base = AutoModelForSequenceClassification.from_pretrained(tiny / kind, config=config)
    adapted = peft.PeftModel.from_pretrained(base, folder)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(adapted, tiny, kind), logits(merged, tiny, kind), rtol=0, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("a great film")["input_ids"]


def test_a_model_of_its_own_class_is_merged_into_one_of_that():
    """As one whose code comes with a hub repository, which transformers alone could not build."""

    class OwnConfig(RobertaConfig):
        """Not one of transformers' own."""

        model_type = "own"

    class Own(RobertaForSequenceClassification):
        """The same."""

        config_class = OwnConfig

    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Own(OwnConfig(**sizes, intermediate_size=16))
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    torch.nn.init.ones_(adapted.base_model.model.roberta.encoder.layer[0].attention.self.query.lora_B.default.weight)
    row = {"input_ids": torch.arange(5, 9)[None]}
    before = adapted.eval()(**row).logits
    merged = trials.merge(adapted)
    assert type(merged) is Own
    torch.testing.assert_close(merged.eval()(**row).logits, before)


def test_what_can_t_be_merged_is_refused(tiny, tmp_path):
    """Before a model is loaded, not after the training."""
    (tmp_path / "adapter.json").write_text('{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}')
    flags = {"adapter_name": None, "rank": None, "adapter_config": tmp_path / "adapter.json"}
    with pytest.raises(UsageError, match="--save_merged: PROMPT_TUNING has no weights to merge"):
        run_glue.main(arguments(tiny, tmp_path / "out", save_merged=tmp_path / "merged", **flags))
    with pytest.raises(UsageError, match="--save_merged: needs a folder of its own"):
        run_glue.main(arguments(tiny, tmp_path / "out", save_merged=tmp_path / "out"))
