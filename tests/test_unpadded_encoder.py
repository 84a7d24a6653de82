"""Twin tests of unpadded_encoder.py: the library's padded model and the packed one, same weights, same batch."""

import copy
import os
import pickle
from types import SimpleNamespace

import peft
import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from glue_peft import unpadded_encoder
from glue_peft.unpadded_encoder import (
    ATTENTION_NAME,
    SUPPORTED_ADAPTERS,
    SUPPORTED_CLASSES,
    PackingCollator,
    follow_plan,
    plan_batches,
    plan_packing,
    use_unpadded_encoder,
)

PAD = 1
WIDTH = 14
# Two rectangles of eight rows and one of four: very different lengths, rows of one token, a full row, equal lengths.
LENGTHS = [1, 14, 2, 7, 1, 5, 9, 3, 3, 12, 4, 4, 6, 2, 8, 1, 10, 3, 2, 11]
ADAPTER_OPTIONS = {
    "ADALORA": {"total_step": 10},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 10},
    "IA3": {"feedforward_modules": []},
    "OFT": {"r": 0, "oft_block_size": 4},
    "PROMPT_TUNING": {"num_virtual_tokens": 2},
    "P_TUNING": {"num_virtual_tokens": 2},
    "ROAD": {"group_size": 8},
    "TRAINABLE_TOKENS": {"token_indices": [5, 6], "target_modules": ["word_embeddings"]},
    "VBLORA": {"vector_length": 8, "num_vectors": 20},
    "WAVEFT": {"n_frequency": 10},
}
LORA_VARIANTS = {
    "rank-stabilised": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "bias": {"lora_bias": True},
    "block-diagonal": {"use_bdlora": {"target_modules_bd_a": ["dense"], "nblocks": 2, "match_strict": False}},
    "KaSA": {"kasa_config": {}},
    "MiCA": {"init_lora_weights": "mica"},
    "patterns": {"rank_pattern": {"query": 4}, "alpha_pattern": {"value": 3}},
}


def build_model(name: str = "Bert", dropout: float = 0.0, dtype: torch.dtype = torch.float64, **options) -> nn.Module:
    """Build a tiny random classifier whose weights are large enough for attention to tell tokens apart."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    limits = {"vocab_size": 40, "max_position_embeddings": 40, "pad_token_id": PAD, "initializer_range": 0.4}
    config = getattr(transformers, f"{name}Config")(**sizes, **rates, **limits, **options)
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForSequenceClassification")(config).to(dtype)


def build_batch(lengths: list[int] = LENGTHS, width: int = WIDTH) -> dict[str, Tensor]:
    """Build a right-padded batch with labels."""
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 40, mask.shape, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(len(lengths)) % 2
    return {"input_ids": torch.where(mask, ids, PAD), "attention_mask": mask.long(), "labels": labels}


def planned(batch: dict[str, Tensor], groups: int = 1, least_slots: int = 0) -> dict[str, object]:
    """Return a batch with the plan that a GPU's collator would give it: a single rectangle."""
    return {**batch, "packing": plan_packing(batch["attention_mask"].bool(), groups, least_slots)}


def find_encoder(model: nn.Module) -> nn.Module:
    """Return the encoder of a plain or a PEFT model."""
    return next(m for m in model.modules() if isinstance(m, PreTrainedModel)).base_model.encoder


def convert(model: nn.Module) -> nn.Module:
    """Return an unpadded copy of the model."""
    twin = copy.deepcopy(model)
    assert use_unpadded_encoder(twin) is None
    return twin


def run_step(model: nn.Module, batch: dict[str, Tensor], seed: int = 0) -> tuple[Tensor, dict[str, Tensor], tuple]:
    """Return the logits, the loss with all parameters' gradients, and the shape that the first layer worked on."""
    shapes = []
    handle = find_encoder(model).layer[0].register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape[:2]))
    model.zero_grad()
    torch.manual_seed(seed)
    output = model(**batch)
    output.loss.backward()
    handle.remove()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output.logits.detach(), {"loss": output.loss.detach(), **gradients}, tuple(shapes[0])


def assert_twins(model: nn.Module, twin: nn.Module, batch: dict[str, Tensor], packed: bool = True) -> None:
    """Compare logits, loss and every gradient to 1e-10, and check that the twin took the expected path."""
    assert_equal_steps(run_step(model, batch), run_step(twin, batch), batch, packed)


def assert_follows_plans(model: nn.Module, twin: nn.Module, batch: dict[str, Tensor]) -> None:
    """Compare in the same way with the twin on a single rectangle, and padded, as the batch's plan says."""
    expected = run_step(model, batch)
    assert_equal_steps(expected, run_step(twin, planned(batch)), batch)
    assert_equal_steps(expected, run_step(twin, planned(batch, least_slots=10**6)), batch, packed=False)


def assert_equal_steps(
    padded: tuple, other: tuple, batch: dict[str, Tensor], packed: bool = True, virtual: int = 0, limit: float = 1e-10
) -> None:
    """Compare two results of run_step, the second packed (with `virtual` tokens of the adapter a row) or not."""
    rows, tokens = batch["attention_mask"].shape[0], int(batch["attention_mask"].sum())
    (logits, values, padded_shape), (twin_logits, twin_values, shape) = padded, other
    assert padded_shape[0] == rows
    assert shape == ((1, tokens + virtual * rows) if packed else padded_shape)
    assert values.keys() == twin_values.keys() and len(values) > 1
    torch.testing.assert_close(twin_logits, logits, rtol=limit, atol=limit / 100, equal_nan=True)
    torch.testing.assert_close(twin_values, values, rtol=limit, atol=limit / 100, equal_nan=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", sorted(name.removesuffix("ForSequenceClassification") for name in SUPPORTED_CLASSES))
def test_every_supported_model_equals_its_padded_self(name: str, training: bool) -> None:
    """Logits, loss and all gradients agree in float64, in several rectangles and in a single one, planned or not."""
    model = build_model(name).train(training)
    twin = convert(model)
    assert_twins(model, twin, build_batch())
    assert_follows_plans(model, twin, build_batch())
    assert_twins(model, twin, build_batch([3, 1, 9], width=12))


def relative_error(values: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Return the norm of the error over all tensors, relative to the norm of all of them."""
    assert values.keys() == exact.keys()
    errors, norms = ([t.norm() for t in ts] for ts in ([values[k] - exact[k] for k in exact], exact.values()))
    return float(torch.stack(errors).norm() / torch.stack(norms).norm())


def add_adapter(model: nn.Module, peft_type: str, **settings: object) -> PeftModel:
    """Put an adapter of PEFT on the model and move its parameters away from their start, where many add nothing."""
    config_class = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]
    known = config_class.__dataclass_fields__
    options = {"target_modules": ["query", "value", "dense"], "r": 2} | ADAPTER_OPTIONS.get(peft_type, {}) | settings
    config = config_class(task_type="SEQ_CLS", **{key: value for key, value in options.items() if key in known})
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return adapted


@pytest.mark.parametrize("name", ["Bert", "Roberta"])
@pytest.mark.parametrize("peft_type", sorted(SUPPORTED_ADAPTERS))
def test_every_supported_adapter_equals_its_padded_self(
    peft_type: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a batch of twenty rows, packed into three rectangles: logits, loss and every gradient, in training."""
    if peft_type == "PVERA":  # it draws noise for every token, of which packing leaves fewer: here it is all ones
        monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    # Several methods can be started in float32 alone, and C3A goes through it. A copy would lose OSF's hooks.
    model = add_adapter(build_model(name, dtype=torch.float32), peft_type).double().train()
    padded = run_step(model, build_batch())
    assert use_unpadded_encoder(model) is None
    virtual = ADAPTER_OPTIONS.get(peft_type, {}).get("num_virtual_tokens", 0)
    limit = 1e-5 if peft_type == "C3A" else 1e-10
    assert_equal_steps(padded, run_step(model, build_batch()), build_batch(), virtual=virtual, limit=limit)
    assert_equal_steps(padded, run_step(model, planned(build_batch())), build_batch(), virtual=virtual, limit=limit)


@pytest.mark.parametrize("variant", LORA_VARIANTS)
def test_variants_of_lora_equal_their_padded_selves(variant: str) -> None:
    """They change the update, for each token alone."""
    model = add_adapter(build_model("Roberta", dtype=torch.float32), "LORA", **LORA_VARIANTS[variant]).double().train()
    assert_twins(model, convert(model), build_batch())


@pytest.mark.parametrize("peft_type", ["LORA", "RANDLORA", "VERA"])
def test_the_grid_s_adapters_are_exact(peft_type: str) -> None:
    """The three adapters of the grid agree in float64, before and after merging, and with the adapter disabled."""
    model = add_adapter(build_model("Roberta"), peft_type).double()
    twin = convert(model)
    assert_twins(model, twin, build_batch())
    with model.disable_adapter(), twin.disable_adapter(), torch.no_grad():
        expected, got = model(**build_batch()).logits, twin(**build_batch()).logits
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    model.merge_adapter()
    twin.merge_adapter()
    assert_twins(model, twin, build_batch())


def test_padding_tokens_change_nothing_and_receive_nothing() -> None:
    """Other ids under the padding leave results and gradients as they were; padding embeddings get a zero gradient."""
    twin, batch = convert(build_model("Roberta").train()), build_batch()
    padding = batch["attention_mask"] == 0
    logits, values, shape = run_step(twin, batch)
    assert shape[0] == 1
    other = {**batch, "input_ids": torch.where(padding, 7, batch["input_ids"])}
    other_logits, other_values, _ = run_step(twin, other)
    assert torch.equal(logits, other_logits)
    assert all(torch.equal(values[name], other_values[name]) for name in values)

    embeddings = twin.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    inputs = {"attention_mask": batch["attention_mask"], "labels": batch["labels"]}
    twin(inputs_embeds=embeddings, **inputs).loss.backward()
    assert embeddings.grad[padding].abs().max() == 0 < embeddings.grad[~padding].abs().min()


def test_last_hidden_state_is_the_padded_one_with_zeros_at_the_padding() -> None:
    """Real positions agree; padding positions are zeros."""
    model, batch = build_model().eval(), build_batch()
    twin = convert(model)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    expected, got = (m.base_model(**inputs).last_hidden_state for m in (model, twin))
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(got[real], expected[real], rtol=1e-10, atol=1e-12)
    assert got.shape == expected.shape and got[~real].abs().max() == 0 < expected[~real].abs().min()


@pytest.mark.parametrize("lengths", [[6], [1], [1, 1, 1], [5, 5, 5], [4] * 30])
def test_single_rows_single_tokens_and_equal_rows(lengths: list[int]) -> None:
    """Batches of one row, of one token a row, and of equal rows that are padded alike."""
    model = build_model().train()
    assert_twins(model, convert(model), build_batch(lengths))


def test_masks_with_holes_are_packed() -> None:
    """A mask may have holes anywhere but at a row's start, and may be boolean or floating point."""
    model, batch = build_model("Roberta").train(), build_batch()
    twin = convert(model)
    batch["attention_mask"][1, 3:6] = batch["attention_mask"][6, 1] = 0
    assert_twins(model, twin, batch)
    for dtype in (torch.bool, torch.float32):
        assert_twins(model, twin, {**batch, "attention_mask": batch["attention_mask"].to(dtype)})


def test_batches_that_stay_padded() -> None:
    """Left padding, an empty row, no padding, hardly any, no mask, and a mask [B, 1, 1, S] give the padded results."""
    model = build_model().train()
    twin = convert(model)
    batch = build_batch()
    assert_twins(
        model, twin, {key: value if key == "labels" else value.flip(1) for key, value in batch.items()}, False
    )
    assert_twins(model, twin, build_batch([WIDTH, WIDTH]), packed=False)
    assert_twins(model, twin, build_batch([WIDTH, WIDTH - 1]), packed=False)
    empty = build_batch([3, 0, 5])
    with torch.no_grad():
        torch.testing.assert_close(twin(**empty).logits, model(**empty).logits, rtol=1e-10, atol=1e-12, equal_nan=True)
    four_dimensional = batch["attention_mask"][:, None, None, :].bool()
    expected, _, _ = run_step(model, batch)
    got, _, shape = run_step(twin, {**batch, "attention_mask": four_dimensional})
    assert shape == batch["input_ids"].shape
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    del batch["attention_mask"]
    torch.testing.assert_close(twin(**batch).logits, model(**batch).logits, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("through_config", [True, False])
def test_hidden_states_and_attentions_fall_back(through_config: bool) -> None:
    """Recorded outputs have the padded shapes and values, and the next call is packed again."""
    model, batch = build_model().eval(), build_batch()
    twin = convert(model)
    if through_config:
        model.config.output_hidden_states = twin.config.output_hidden_states = True
        expected, got = model(**batch), twin(**batch)
        model.config.output_hidden_states = twin.config.output_hidden_states = False
    else:
        expected, got = (m(**batch, output_hidden_states=True, output_attentions=True) for m in (model, twin))
        assert got.attentions == expected.attentions  # scaled_dot_product_attention has none to give
    assert len(got.hidden_states) == 3
    torch.testing.assert_close(got.hidden_states, expected.hidden_states, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-10, atol=1e-12)
    assert_twins(model, twin, batch)


def test_attentions_after_switching_to_eager() -> None:
    """set_attn_implementation("eager") after the conversion gives the library's attention weights."""
    model, batch = build_model().eval(), build_batch()
    twin = convert(model)
    for m in (model, twin):
        m.set_attn_implementation("eager")
    expected, got = (m(**batch, output_attentions=True).attentions for m in (model, twin))
    assert len(got) == 2 and got[0].shape == (len(LENGTHS), 2, WIDTH, WIDTH)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_another_attention_set_later_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attention that takes the mask [B, S], as flash attention does, gets [B, S, d] and no packing."""
    calls = []

    def attend(module: nn.Module, query: Tensor, *args, **kwargs) -> tuple[Tensor, None]:
        calls.append((query.shape[0], query.shape[2], "packing" in kwargs))
        return unpadded_encoder.unpadded_attention(module, query, *args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, "other", attend)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "other", unpadded_encoder.keep_padding_mask)
    model = build_model().eval()
    twin = convert(model)
    twin.set_attn_implementation("other")
    assert_twins(model, twin, build_batch(), packed=False)
    assert calls == [(len(LENGTHS), WIDTH, False)] * 2
    assert "'other'" in use_unpadded_encoder(twin)


def test_a_batch_without_padding_runs_without_a_mask() -> None:
    """As in the library, attention gets no mask (and with it a faster kernel) where there is no padding."""
    twin, masks = convert(build_model()), []
    layer = find_encoder(twin).layer[0]
    layer.register_forward_pre_hook(lambda _, args: masks.append(args[1]))
    twin(**build_batch([WIDTH, WIDTH]))
    twin(**build_batch([WIDTH, WIDTH - 1]))
    assert masks[0] is None and masks[1].shape == (2, 1, 1, WIDTH)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "DistilBert", "dim": 16, "hidden_dim": 24, "n_heads": 2, "n_layers": 1}, "DistilBertForSeq"),
        ({"name": "DebertaV2"}, "DebertaV2ForSeq"),
        ({"name": "MegatronBert"}, "MegatronBertForSeq"),
        ({"attn_implementation": "eager"}, "'eager'"),
        ({"is_decoder": True}, "is_decoder"),
        ({"chunk_size_feed_forward": 2}, "chunk_size_feed_forward"),
    ],
)
def test_other_models_are_left_alone_with_a_reason(options: dict, reason: str) -> None:
    """A model that is not known to be equal keeps its attention and gets no hook."""
    model = build_model(**options)
    attention = model.config._attn_implementation
    told = use_unpadded_encoder(model)
    assert reason in told and "\n" not in told
    assert model.config._attn_implementation == attention != ATTENTION_NAME
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_what_is_no_classifier_of_transformers_or_has_an_unknown_adapter_is_left_alone() -> None:
    """A plain module, a subclass with a head of its own, and an adapter that mixes tokens are refused by name."""
    assert "no model of transformers" in use_unpadded_encoder(nn.Linear(2, 2))

    class MeanPooledForSequenceClassification(transformers.BertForSequenceClassification):
        pass

    assert "MeanPooled" in use_unpadded_encoder(MeanPooledForSequenceClassification(build_model().config))
    velora = {"velora_config": {"num_groups": 2, "scale": 1.0, "init_type": "batch_average_once"}}
    for peft_type, told, settings in (
        ("LILY", "LILY", {}),  # routes by a mean over all tokens, padding included
        ("LORA", "VELORA", velora),  # starts from such a mean
        ("PREFIX_TUNING", "PREFIX_TUNING", {"num_virtual_tokens": 2}),  # its mask is wider than the batch
    ):
        adapted = add_adapter(build_model(dtype=torch.float32, use_cache=False), peft_type, **settings)
        assert told in use_unpadded_encoder(adapted)
        assert adapted.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(use_reentrant: bool) -> None:
    """Both kinds of checkpointing give the padded gradients, with LoRA and in full fine-tuning."""
    for model in (build_model("Roberta"), add_adapter(build_model("Roberta"), "LORA").double()):
        model.train().enable_input_require_grads()
        twin = convert(model)
        twin.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        assert find_encoder(twin).layer[0].gradient_checkpointing
        assert_twins(model, twin, build_batch())
        assert_follows_plans(model, twin, build_batch())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_as_near_to_float64_as_the_padded_model(dtype: torch.dtype) -> None:
    """Under autocast the logits' and gradients' errors are at most 1.5 times the padded model's, planned or not."""
    reference, batch = build_model(dtype=torch.float64), build_batch()
    _, exact, _ = run_step(reference, batch)
    model = copy.deepcopy(reference).float()
    twin, padded = convert(model), planned(batch, least_slots=10**6)
    errors, shapes = [], []
    for m, given in ((model, batch), (twin, batch), (twin, planned(batch)), (twin, padded)):
        with torch.autocast("cpu", dtype=dtype):
            _, values, shape = run_step(m, given)
        assert all(value.isfinite().all() for value in values.values())
        errors.append(relative_error(values, exact))
        shapes.append(shape[0])
    assert shapes == [len(LENGTHS), 1, 1, len(LENGTHS)]
    assert all(0 < error < 1.5 * errors[0] for error in errors[1:])


def test_attention_dropout_has_the_config_s_rate() -> None:
    """In a row of one token attention's output is the value, dropped at the rate or scaled up, and whole without."""
    rows, heads, rate = 4000, 2, 0.3
    mask = torch.zeros(rows, 2, dtype=torch.bool)
    mask[:, 0] = True
    packing = follow_plan(plan_packing(mask), torch.float64)
    module, ones = nn.Module(), torch.ones(1, heads, rows, 8, dtype=torch.float64)
    module.is_causal = False
    torch.manual_seed(0)
    output, _ = unpadded_encoder.unpadded_attention(module, ones, ones, ones, None, packing, dropout=rate)
    assert output.shape == (1, rows, heads, 8)
    kept = output[..., 0] > 0
    torch.testing.assert_close(output[kept], torch.full_like(output[kept], 1 / (1 - rate)))
    standard_error = (rate * (1 - rate) / kept.numel()) ** 0.5
    assert abs(kept.double().mean() - (1 - rate)) < 4 * standard_error
    whole, _ = unpadded_encoder.unpadded_attention(module, ones, ones, ones, None, packing, dropout=0.0)
    assert torch.equal(whole, ones.transpose(1, 2))


def test_dropout_draws_differ_and_their_mean_does_not() -> None:
    """A seed repeats itself, and the mean logits over 3000 draws agree within four standard errors."""
    model = build_model(dropout=0.1, dtype=torch.float32).train()
    twin, draws = convert(model), 3000
    batch = build_batch([5, WIDTH] * draws)
    with torch.no_grad():
        torch.manual_seed(0)
        padded = model(**batch).logits.view(draws, 2, 2)
        packed, again = (torch.manual_seed(1) and twin(**batch).logits.view(draws, 2, 2) for _ in range(2))
        whole = model.eval()(**build_batch([5, WIDTH])).logits
        torch.testing.assert_close(twin.eval()(**build_batch([5, WIDTH])).logits, whole)
        assert not torch.equal(packed[0], whole)
    assert torch.equal(packed, again)
    difference = (padded.mean(dim=0) - packed.mean(dim=0)).abs()
    assert (difference < 4 * ((padded.var(dim=0) + packed.var(dim=0)) / draws).sqrt()).all()
    torch.testing.assert_close(packed.std(dim=0), padded.std(dim=0), rtol=0.1, atol=0)


def count_saved_bytes(model: nn.Module, batch: dict[str, Tensor]) -> int:
    """Count the bytes of storage that one forward pass keeps for the backward pass."""
    storages = {}

    def record(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # held, so no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        model(**batch)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("lengths", [LENGTHS, [14, 12, 13, 12, 11, 13, 12, 13]])  # 39 % and 89 % real tokens
def test_less_is_kept_for_backward(lengths: list[int], dropout: float) -> None:
    """The packed model keeps less for the backward pass than the padded one, near the limit of packing too."""
    model = add_adapter(build_model(dropout=dropout, dtype=torch.float32), "LORA").train()
    batch = build_batch(lengths)
    twin = convert(model)
    assert run_step(twin, batch)[2][0] == 1
    assert count_saved_bytes(twin, batch) < count_saved_bytes(model, batch)


def test_a_plan_says_where_tokens_stand() -> None:
    """By hand, for rows of 2, 1 and 3 tokens: in one rectangle in the batch's order, in groups by length."""
    mask = build_batch([2, 1, 3], width=4)["attention_mask"].bool()
    in_order, by_length = plan_packing(mask, groups=1), plan_packing(mask, groups=2)
    assert in_order["rectangles"] == [[3, 4, False]] and by_length["rectangles"] == [[3, 3, False]]
    places = [0, 1, 4, 8, 9, 10]
    assert in_order["indices"].tolist() == [*places, *places, 0, 1, 0, 0, 2, 0, 0, 0, 3, 4, 5, 0]
    assert by_length["indices"].tolist() == [*places, 3, 4, 0, 6, 7, 8, 2, 0, 0, 0, 1, 0, 3, 4, 5]
    packing = follow_plan(by_length, torch.float64)
    assert packing.batch_shape == (3, 4)
    assert packing.key_biases[0].view(3, 3).exp().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_a_plan_is_packed_padded_or_full() -> None:
    """Padded where little is padding, where a row begins with it, or where there are fewer slots than are worth it."""
    mask = build_batch([2, 1, 3], width=4)["attention_mask"].bool()
    assert plan_packing(mask, least_slots=12)["path"] == "packed"
    assert plan_packing(mask, least_slots=13)["path"] == "padded"
    assert plan_packing(mask.flip(1))["path"] == "padded"
    assert plan_packing(build_batch([10, 9], width=10)["attention_mask"].bool())["path"] == "padded"
    assert plan_packing(torch.ones(2, 3, dtype=torch.bool), least_slots=13)["path"] == "full"


def test_batches_are_planned_for_their_device() -> None:
    """On a GPU one rectangle, from as many slots on as keep it busy for longer than the launches; compiled: none."""
    encoder = find_encoder(build_model())  # a layer has 4 * 16 * 16 + 2 * 16 * 24 = 1792 weights
    launches = unpadded_encoder.Launches(layer=8, packing=4, multiply_adds=3 * 1792 * 5)
    assert unpadded_encoder.least_slots_on_a_gpu(encoder, launches) == 12 * 5
    args = SimpleNamespace(torch_compile=False, fp16=False, bf16=True, device=torch.device("cpu"))
    twin = convert(build_model())
    assert plan_batches(build_model(), default_data_collator, args) is default_data_collator
    assert plan_batches(twin, default_data_collator, args) == PackingCollator(default_data_collator)
    args.device = torch.device("cuda")
    half = plan_batches(twin, default_data_collator, args)
    args.bf16 = False
    full = plan_batches(add_adapter(twin, "LORA"), default_data_collator, args)
    assert half.groups == full.groups == 1 and half.least_slots > 4 * full.least_slots > 0
    args.torch_compile = True
    assert plan_batches(twin, default_data_collator, args) is default_data_collator


def test_a_plan_without_padding_takes_no_mask() -> None:
    """The encoder's layers get none, as where the mask itself shows it."""
    twin, masks = convert(build_model()), []
    find_encoder(twin).layer[0].register_forward_pre_hook(lambda _, args: masks.append(args[1]))
    batch = build_batch([WIDTH, WIDTH])
    torch.testing.assert_close(twin(**planned(batch)).logits, build_model()(**batch).logits, rtol=1e-10, atol=1e-12)
    assert masks == [None]


def test_the_plan_is_made_once_a_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers share one packing, and recomputing them under checkpointing makes no other."""
    packings = []
    monkeypatch.setattr(
        unpadded_encoder, "follow_plan", lambda *args: packings.append(follow_plan(*args)) or packings[-1]
    )
    twin = convert(build_model().train())
    twin.gradient_checkpointing_enable()
    run_step(twin, build_batch())
    assert len(packings) == 1
    assert packings[0].rectangles == [(8, 3), (8, 9), (4, 14)]
    assert packings[0].slots.unique().numel() == sum(LENGTHS)


def test_copies_pickles_and_checkpoints(tmp_path) -> None:
    """Copies and pickles stay unpadded; state dict and saved config are those of the padded model."""
    model, batch = build_model("Roberta").eval(), build_batch()
    twin = convert(model)
    assert use_unpadded_encoder(twin) is None
    encoder = find_encoder(twin)
    assert len(encoder._forward_pre_hooks) == len(encoder._forward_hooks) == 1
    for copied in (copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))):
        assert_twins(model, copied, batch)
        assert use_unpadded_encoder(copied) is None and len(find_encoder(copied)._forward_pre_hooks) == 1
    assert twin.state_dict().keys() == model.state_dict().keys()
    twin.save_pretrained(tmp_path)
    assert ATTENTION_NAME not in (tmp_path / "config.json").read_text()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64)
    assert loaded.config._attn_implementation == "sdpa"
    assert_twins(loaded.eval(), twin, batch)
    # A new model that shares the converted model's config has our attention, but no hooks: it runs padded.
    shared = type(model)(twin.config).to(torch.float64).eval()
    shared.load_state_dict(model.state_dict())
    assert shared.config._attn_implementation == ATTENTION_NAME
    assert_twins(model, shared, batch, packed=False)


def test_torch_compile_takes_the_padded_path() -> None:
    """A compiled model gives the padded results in one graph, which packing would break by reading the lengths."""
    model, batch = build_model().eval(), build_batch()
    compiled = torch.compile(convert(model), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("peft_type", [None, pytest.param("LORA", marks=pytest.mark.slow)])
def test_a_planned_batch_breaks_no_graph(peft_type: str | None) -> None:
    """Packed, by a plan for one rectangle or several, a compiled model is one graph with the padded results."""
    model = build_model("Roberta").eval()
    model = model if peft_type is None else add_adapter(model, peft_type).double()
    twin = convert(model)
    for groups in (1, 4):
        batch = planned(build_batch(), groups)
        torch._dynamo.reset()
        explained = torch._dynamo.explain(twin)(**batch)
        assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons
        compiled = torch.compile(twin, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(**batch).logits, model(**build_batch()).logits, rtol=1e-10, atol=1e-12)


def train(model: nn.Module, folder, collate=default_data_collator) -> list[Tensor]:
    """Train for four steps of two accumulated batches with Trainer and return what is trainable, and eval logits."""
    batch = build_batch(LENGTHS[:16])
    rows = [{key: value[i] for key, value in batch.items()} for i in range(16)]
    schedule = {"max_steps": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    files = {"output_dir": str(folder), "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    trainer = Trainer(
        model, TrainingArguments(**schedule, **files, learning_rate=1e-2, use_cpu=True, seed=3), collate, rows
    )
    trainer.train()
    return [*(p.detach() for p in model.parameters() if p.requires_grad), torch.tensor(trainer.predict(rows)[0])]


def test_trainer_reaches_the_same_weights(tmp_path) -> None:
    """Four accumulated AdamW steps end at the padded run's weights in float64, planned or not, and have moved them."""
    model = add_adapter(build_model("Roberta"), "LORA").double()
    start = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    twin, planned_twin = convert(model), convert(model)
    expected, got = train(model, tmp_path), train(twin, tmp_path)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)
    got = train(planned_twin, tmp_path, PackingCollator(default_data_collator, groups=1))
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(start, got, strict=False))


def run_rank(rank: int, folder: str, queue: torch.multiprocessing.SimpleQueue) -> None:
    """Run one of two DDP ranks on its half of the batch and send back the shared gradient."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    half = planned({key: value[rank::2] for key, value in build_batch().items()})
    model = nn.parallel.DistributedDataParallel(convert(build_model().train()))
    _, values, shape = run_step(model, half)
    del values["loss"]
    queue.put((shape, {name: value.numpy() for name, value in values.items()}))
    torch.distributed.barrier()
    os._exit(0)  # DDP's Reducer would join gloo's threads while it holds the GIL, now and then for ever


def test_two_ranks_share_the_padded_gradient(tmp_path) -> None:
    """DDP over two processes, each packing its half, gives the whole batch's gradient."""
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    ranks = [context.Process(target=run_rank, args=(rank, str(tmp_path), queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    results = [queue.get() for _ in ranks]
    for process in ranks:
        process.join(timeout=60)
        assert process.exitcode == 0
    _, expected, _ = run_step(build_model().train(), build_batch())
    for shape, gradients in results:
        assert shape[0] == 1 and len(gradients) == len(expected) - 1
        for name, gradient in gradients.items():
            wanted = expected[name.removeprefix("module.")]
            torch.testing.assert_close(torch.from_numpy(gradient), wanted, rtol=1e-10, atol=1e-12)
