"""Models beyond BERT and RoBERTa, tiny ones: the layers adapted by default, and the fast paths on and off."""

import copy
from pathlib import Path

import make_tiny
import peft
import pytest
import torch
import transformers
from helpers import read
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

import run_glue
from glue_peft import adapters, data
from glue_peft.arguments import AdapterArguments
from glue_peft.errors import UsageError
from glue_peft.fast_adapters import use_fast_adapters
from glue_peft.unpadded_encoder import use_unpadded_encoder

ROWS, LENGTH, PAD = 12, 40, 1
BERT_LIKE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT_LIKE |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2}
DEBERTA = {**BERT_LIKE, "pooler_dropout": 0.0, "pooler_hidden_size": 32, "relative_attention": True}
DEBERTA |= {"position_biased_input": False, "pos_att_type": ["p2c", "c2p"], "position_buckets": 24}
DEBERTA |= {"norm_rel_ebd": "layer_norm", "share_att_key": True, "layer_norm_eps": 1e-7}
DECODER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER |= {"num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2}
SIZES = {
    "modernbert": {
        **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4},
        **{"initializer_range": 0.2, "local_attention": 8, "cls_token_id": 0, "sep_token_id": 2},
    },
    "deberta-v2": {**DEBERTA, "conv_kernel_size": 3, "conv_act": "gelu"},
    "deberta-v3": DEBERTA,
    "longformer": {**BERT_LIKE, "attention_window": [4, 8], "max_position_embeddings": 66},
    "distilbert": {
        **{"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "initializer_range": 0.2},
        **{"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0},
    },
    "albert": {**BERT_LIKE, "embedding_size": 16, "classifier_dropout_prob": 0.0},
    "qwen3": DECODER,
}
# What stands in their encoders, of the names that PEFT is given by default.
LAYERS = {
    "modernbert": "Wqkv Wo Wi",
    "deberta-v2": "query_proj key_proj value_proj output.dense intermediate.dense",
    "deberta-v3": "query_proj key_proj value_proj output.dense intermediate.dense",
    "longformer": "query key value query_global key_global value_global output.dense intermediate.dense",
    "distilbert": "q_lin k_lin v_lin out_lin lin1 lin2",
    "albert": "embedding_hidden_mapping_in query key value dense ffn ffn_output pooler",
    "qwen3": "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj",
}
ADAPTERS = {
    "lora": lambda **options: peft.LoraConfig(r=4, **options),
    "randlora": lambda **options: peft.RandLoraConfig(r=5, **options),
    "vera": lambda **options: peft.VeraConfig(r=24, **options),
}


def make_config(name: str, **options: object) -> transformers.PreTrainedConfig:
    """Return the tiny config of an architecture."""
    tokenizer = make_tiny.make_tokenizer("roberta")
    tokens = {"vocab_size": len(tokenizer), "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2}
    model_type = {"deberta-v3": "deberta-v2"}.get(name, name)
    return AutoConfig.for_model(model_type, **{**tokens, **SIZES.get(name, {}), **options})


def make_classifier(name: str) -> nn.Module:
    """Return a tiny random classifier in float64, in training mode."""
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(make_config(name)).double().train()


def adapt(model: nn.Module, adapter: str) -> peft.PeftModel:
    """Put an adapter on the default layers and draw what is trained at random, as much of it starts at zero."""
    targets, head = adapters.default_target_modules(model), adapters.head_modules(model)
    adapted = peft.get_peft_model(
        model, ADAPTERS[adapter](target_modules=targets, modules_to_save=head, task_type="SEQ_CLS")
    ).double()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.05 * torch.randn(parameter.shape))
    return adapted


def adapted_layers(model: nn.Module) -> set[str]:
    """Return the full names of the layers that PEFT adapts."""
    kinds = peft.tuners.tuners_utils.BaseTunerLayer
    return {
        name.removeprefix("base_model.model.") for name, layer in model.named_modules() if isinstance(layer, kinds)
    }


def make_batch() -> dict[str, Tensor]:
    """Return rows from one token to the full length, padded on the right, with labels."""
    lengths = torch.linspace(1, LENGTH, ROWS).long()
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    ids = torch.randint(5, 30, mask.shape, generator=torch.Generator().manual_seed(1))
    return {
        "input_ids": torch.where(mask.bool(), ids, PAD),
        "attention_mask": mask,
        "labels": torch.arange(ROWS) % 2,
    }


def step(model: nn.Module) -> dict[str, Tensor]:
    """Return logits, loss and all gradients of one step, and the logits in evaluation."""
    model.zero_grad()
    output = model.train()(**make_batch())
    output.loss.backward()
    values = {"logits": output.logits, "loss": output.loss}
    values |= {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        return values | {"evaluated": model.eval()(**make_batch()).logits}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Compare each tensor to 1e-10 of its largest entry, and see that there is something to compare.

    Longformer's head reads the first token, which the last layer's query, key and value of the others don't reach.
    """
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        largest = expected.abs().max()
        assert (ours[name] - expected).abs().max() <= 1e-10 * largest, name
        assert largest > 0 or "longformer.encoder.layer.1.attention.self." in name, name


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", SIZES)
def test_fast_paths_are_exact(name: str, adapter: str, left_to_peft: list) -> None:
    """Output and gradients in float64 with PEFT's own layers and the fast ones; none of these models is unpadded."""
    theirs = adapt(make_classifier(name), adapter)
    ours = copy.deepcopy(theirs)
    assert use_fast_adapters(ours) == (len(adapted_layers(theirs)), {})
    assert "has not been shown" in use_unpadded_encoder(ours)
    assert_same(step(ours), step(theirs))
    names = {layer: name for name, layer in ours.named_modules()}
    slow = {names[layer].split(".")[-1] for layer in left_to_peft if layer in names}
    assert slow <= {"pooler", "query_global"}  # one token a row, too few for weight space


@pytest.mark.parametrize("name", SIZES)
def test_runs_agree_with_fast_paths_on_and_off(name: str, run, tmp_path: Path) -> None:
    """An epoch through run_glue.py, without a flag for the layers: the same losses and scores both ways."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(make_config(name))
    if name == "qwen3":
        model.config.pad_token_id = None  # as in the published ones
    model.base_model.save_pretrained(tmp_path / "model")
    make_tiny.make_tokenizer("roberta").save_pretrained(tmp_path / "model")
    flags = {"model_name_or_path": tmp_path / "model", "adapter_name": "randlora", "rank": 5, "learning_rate": 1e-3}
    fast = read(run("fast", **flags) / "run.json")
    plain = read(run("plain", **flags, fast_adapters=False, unpad=False) / "run.json")
    assert fast["fast_adapters"]["converted"] > 0 == plain["fast_adapters"]["converted"]
    compared = [key for key in plain["metrics"] if not key.endswith(("runtime", "per_second", "total_flos"))]
    assert {"train_loss", "eval_loss", "eval_accuracy"} <= set(compared)
    for key in compared:
        assert fast["metrics"][key] == pytest.approx(plain["metrics"][key], rel=1e-6), key
    assert sorted(fast["adapter_config"]["target_modules"]) == sorted(LAYERS[name].split())


@pytest.mark.parametrize("name", LAYERS)
def test_default_layers_are_all_of_the_encoder_and_none_of_the_head(name: str) -> None:
    """PEFT, given the default names, adapts exactly the linear layers below the base model."""
    model = make_classifier(name)
    names = adapters.default_target_modules(model)
    assert names == LAYERS[name].split()
    linears = {layer: module for layer, module in model.base_model.named_modules() if isinstance(module, nn.Linear)}
    assert adapters.target_widths(model, names) == [min(layer.weight.shape) for layer in linears.values()]
    assert adapted_layers(adapt(model, "lora")) == {f"{model.base_model_prefix}.{layer}" for layer in linears}


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "camembert", "electra", "ernie"])
def test_bert_s_default_layers_are_the_protocol_s(name: str) -> None:
    """Of BERT, RoBERTa and their kin as in the runs of earlier versions: four names, with the pooler if any."""
    model = AutoModelForSequenceClassification.from_config(make_config(name, **BERT_LIKE, embedding_size=32)).double()
    assert adapters.default_target_modules(model) == ["query", "key", "value", "dense"]
    per_block = [f"attention.self.{part}" for part in ("query", "key", "value")]
    per_block += [f"{part}.dense" for part in ("attention.output", "intermediate", "output")]
    pooler = {"pooler.dense"} if name in ("bert", "ernie") else set()
    expected = {f"encoder.layer.{i}.{part}" for i in range(2) for part in per_block} | pooler
    assert adapted_layers(adapt(model, "lora")) == {f"{model.base_model_prefix}.{layer}" for layer in expected}


def test_a_name_is_as_long_as_it_must_be() -> None:
    """One that would fit a layer of the head as well, or a module that isn't linear, gets what stands before it."""
    model = AutoModelForSequenceClassification.from_config(make_config("bart", d_model=16, encoder_layers=1))
    names = adapters.default_target_modules(model)  # the head has an out_proj too
    assert {"self_attn.out_proj", "encoder_attn.out_proj", "q_proj", "fc1"} <= set(names) and "out_proj" not in names


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"rank": 17}, "--rank 17: RandLoRA allows 1 to 16"),
        ({"rank": 8, "paper_scaling": True}, r"--paper_scaling: .* have \[2, 4\] bases.*--target_modules"),
    ],
)
def test_rank_and_scaling_go_by_the_default_layers(flags: dict, message: str) -> None:
    """ALBERT's narrowest layer leads from its embeddings of 16 to 32; without it other ranks are allowed."""
    model = make_classifier("albert")
    arguments = AdapterArguments(adapter_name="randlora", **flags)
    with pytest.raises(UsageError, match=message):
        run_glue.make_adapter_config(arguments, model, seed=1)
    arguments.target_modules = ["query", "ffn"]
    assert run_glue.make_adapter_config(arguments, model, seed=1).target_modules == {"query", "ffn"}


def test_an_encoder_without_linear_layers_is_refused() -> None:
    """I-BERT's layers are of its own kind, which PEFT has no adapter for."""
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("ibert"))
    with pytest.raises(UsageError, match="IBertForSequenceClassification has no linear layer"):
        adapters.default_target_modules(model)


@pytest.mark.parametrize("own", [None, 7])
def test_a_decoder_pads_with_the_tokenizer_s_token(own: int | None, caplog: pytest.LogCaptureFixture) -> None:
    """Its head reads the last token that is not padding, so that a row's logits don't depend on its batch."""
    tokenizer, config = make_tiny.make_tokenizer("roberta"), make_config("qwen3", pad_token_id=own)
    with torch.device("meta"):
        architecture = AutoModelForSequenceClassification.from_config(config)
    data.agree_on_padding(config, architecture, tokenizer)
    assert config.pad_token_id == tokenizer.pad_token_id == PAD
    assert ("7 is not the tokenizer's: 1 is used" in caplog.text) == (own is not None)
    model = AutoModelForSequenceClassification.from_config(config).double().eval()
    batch = make_batch()
    del batch["labels"]
    with torch.no_grad():
        together = model(**batch).logits
        alone = [model(input_ids=row[mask.bool()][None]).logits for row, mask in zip(*batch.values(), strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-10, atol=1e-12)


def test_roberta_keeps_its_padding_token() -> None:
    """Its positions start behind it."""
    tokenizer, config = make_tiny.make_tokenizer("roberta"), make_config("roberta", **BERT_LIKE, pad_token_id=3)
    architecture = AutoModelForSequenceClassification.from_config(config)
    data.agree_on_padding(config, architecture, tokenizer)
    assert config.pad_token_id == 3


def test_gpt2_s_layers_are_linear_too(run, tmp_path: Path) -> None:
    """Its Conv1D is adapted and merged by PEFT itself; the decoder is evaluated again to the same scores."""
    config = make_config("gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=64, pad_token_id=None)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "model")
    make_tiny.make_tokenizer("roberta").save_pretrained(tmp_path / "model")
    folder = run(model_name_or_path=tmp_path / "model", save_merged=tmp_path / "merged")
    record = read(folder / "run.json")
    assert set(record["adapter_config"]["target_modules"]) == {"c_attn", "c_proj", "c_fc"}
    assert record["fast_adapters"] == {"converted": 0, "left": {"base layer is not a plain nn.Linear": 8}}
    flags = {"do_train": None, "adapter_name": None, "rank": None}
    again = read(run("again", model_name_or_path=None, adapter_path=folder, **flags) / "run.json")
    merged = read(run("merged_again", model_name_or_path=tmp_path / "merged", **flags) / "run.json")
    for other in (again, merged):
        assert other["metrics"]["eval_loss"] == pytest.approx(record["metrics"]["eval_loss"], rel=1e-5)
