"""Runs BERT's and RoBERTa's encoders without padding: same batches, same results, no arithmetic on padding tokens.

A batch of B rows padded to S tokens holds T <= B S real ones. Everything in an encoder layer but attention treats
each token by itself, so the real tokens are packed after the embeddings, [B, S, d] -> [1, T, d], and the layers run
on those. Attention needs rows: query, key and value are copied into padded rectangles [rows, width, heads,
d / heads], one for each group of rows of similar length, and the output of scaled_dot_product_attention is gathered
back. After the last layer the tokens return to their places in [B, S, d]; the padding positions of last_hidden_state
are zeros (a classification head reads position 0 alone).

Where the tokens stand is planned on the host, from the batch as it is collated (PackingCollator), so that nothing is
asked of a GPU. A batch that comes without a plan is planned from its mask on a CPU, and stays padded on a GPU.

Without dropout the results are the library's up to rounding. With it the rates are the model's, attention's included;
only the random draws differ, since fewer numbers are drawn.

A call takes the library's padded path if hidden states or attention weights are asked for, if a row's position 0 is
masked (left padding, an empty row), if the mask is not one of [B, S], if less than a tenth of the batch is padding, if
a GPU would be done sooner with the padded batch, and under torch.compile. Masks with holes are packed like any other.
PEFT's batches of mixed adapters (adapter_names) need [B, S, d] in every layer and fail with an error.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, TrainingArguments
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ATTENTION_NAME = "unpadded_sdpa"

# With four groups instead of one a training step of MiniLM-L6 with LoRA on a CPU was 1.06 to 1.32 times faster at
# batch 64 and 1.02 to 1.20 times at 32 (eight: at most 4 % more). At batch 8 four were from 6 % slower to 6 % faster.
# On a GPU every further group would be further launches in every layer: there is one.
MAX_GROUPS = 4
MIN_GROUP_ROWS = 8

# Packing moves tokens about and keeps attention's gathered output for the backward pass. With 5 % padding it cost as
# much time and memory as it saved, with 11 % it took 5 to 10 % less of both.
MAX_REAL_SHARE = 0.9


class Launches(NamedTuple):
    """What decides on a GPU, where a layer takes the longer of launching its operators and of computing them."""

    layer: (
        int  # operators of a layer with an adapter, forward and backward (benchmarks/bench_operators.py counts them)
    )
    packing: int  # those that packing adds
    multiply_adds: float  # that the GPU does in the time of one launch


# A launch takes about 5 microseconds. An H100 is taken to reach 400 TFLOP/s in half precision and 50 in float32; these
# are estimates, no measurements. A slower GPU would gain from packing smaller batches, too.
HALF_PRECISION, FLOAT32 = Launches(50, 7, 1e9), Launches(40, 7, 1.25e8)

# Each name below is shown equal to its padded self by test_unpadded_encoder.py, and is added together with its test.
SUPPORTED_CLASSES = {
    f"{name}ForSequenceClassification"
    for name in (
        *("Bert", "Camembert", "Data2VecText", "Electra", "Ernie"),
        *("Roberta", "RobertaPreLayerNorm", "XLMRoberta", "XLMRobertaXL"),
    )
}
# PEFT's methods that treat each token by itself. LILY, say, routes by the mean over the batch, padding included, and
# PREFIX_TUNING, whose mask is wider than the batch, would never be packed.
SUPPORTED_ADAPTERS = set(
    """
    ADALORA BEFT BOFT C3A DEFT DELORA FOURIERFT FROD GLORA GRALORA HIRA HRA IA3 LN_TUNING LOHA LOKR LORA MISS OFT OSF
    PEANUT PROMPT_TUNING PSOFT PVERA P_TUNING RANDLORA ROAD SHIRA SUPERTUNING TINYLORA TRAINABLE_TOKENS
    UNILORA VBLORA VERA WAVEFT
    """.split()
)


class Packing(NamedTuple):
    """Where the T real tokens of a batch [B, S] stand: in it, and in attention's rectangles of R slots in all."""

    batch_shape: torch.Size  # B, S
    places: Tensor  # [T], indices into the flattened B * S
    slots: Tensor  # [T], indices into all rectangles, flattened, one after the other
    tokens: Tensor  # [R], the token in each slot, 0 to T - 1; where it is padding any: nothing reads or changes it
    rectangles: list[tuple[int, int]]  # rows and width of each
    key_biases: list[Tensor | None]  # [rows, 1, 1, width] of each: 0 where a slot holds a token, else -inf; None: full


def plan_packing(mask: Tensor, groups: int = MAX_GROUPS, least_slots: int = 0) -> dict[str, Any]:
    """Plan on the host how a batch with this boolean mask [B, S], on the CPU, is run: packed, padded or as it is.

    The result travels through data loaders as a part of the batch. `path` is "packed", "padded" or, for a batch
    without padding, "full"; `shape` [B, S]. A packed one has `rectangles`, the rows and width of each and whether it
    is full, and `indices` [2 T + R], Packing's three index tensors. Fewer than `least_slots` B * S stay padded.
    """
    shape, row_lengths = list(mask.shape), mask.sum(dim=1).tolist()
    rows, width, tokens = *shape, sum(row_lengths)
    if tokens == rows * width:
        return {"path": "full", "shape": shape}
    if not mask[:, 0].all() or rows * width < least_slots or tokens > MAX_REAL_SHARE * rows * width:
        return {"path": "padded", "shape": shape}
    order, size = range(rows), rows
    if groups > 1:
        order = sorted(order, key=row_lengths.__getitem__)
        size = max(MIN_GROUP_ROWS, -(-rows // groups))
    row_starts, rectangles, end = [0] * rows, [], 0
    for group in (order[i : i + size] for i in range(0, rows, size)):
        if groups > 1:  # a single rectangle keeps the batch's width, which may be a multiple of 8 for the GPU's sake
            width = row_lengths[group[-1]]
        rectangles.append([len(group), width, all(row_lengths[row] == width for row in group)])
        for row in group:
            row_starts[row] = end
            end += width
    places = mask.flatten().nonzero().flatten()
    slots = (torch.tensor(row_starts)[:, None] + mask.cumsum(dim=1) - 1).flatten()[places]
    in_slots = torch.zeros(end, dtype=torch.long).index_copy_(0, slots, torch.arange(tokens))
    return {
        "path": "packed",
        "shape": shape,
        "rectangles": rectangles,
        "indices": torch.cat([places, slots, in_slots]),
    }


def follow_plan(plan: dict[str, Any], dtype: torch.dtype) -> Packing:
    """Return a plan's packing, on the device that its indices are on, for attention in this dtype."""
    sizes = [rows * width for rows, width, _ in plan["rectangles"]]
    count = (len(plan["indices"]) - sum(sizes)) // 2
    places, slots, tokens = plan["indices"].split([count, count, sum(sizes)])
    biases = slots.new_full((sum(sizes),), -torch.inf, dtype=dtype).index_fill_(0, slots, 0.0).split(sizes)
    key_biases = [
        None if full else bias.view(rows, 1, 1, width)
        for bias, (rows, width, full) in zip(biases, plan["rectangles"], strict=True)
    ]
    rectangles = [(rows, width) for rows, width, _ in plan["rectangles"]]
    return Packing(torch.Size(plan["shape"]), places, slots, tokens, rectangles, key_biases)


def least_slots_on_a_gpu(encoder: nn.Module, launches: Launches) -> int:
    """Return from how many slots B * S on the padded batch keeps a GPU busy for longer than a packed one is launched.

    A training step takes three products with each of a layer's weights; an evaluation a third of that and of the
    launches. Adapters change both about alike (formed for all layers at once, they cost a layer nothing).
    """
    layer = encoder.layer[0]
    weights = sum(module.weight.numel() for module in layer.modules() if type(module) is nn.Linear)
    return round((launches.layer + launches.packing) * launches.multiply_adds / (3 * weights))


@dataclass
class PackingCollator:
    """Collates rows and plans on the host, where their lengths are known, how the encoder runs them."""

    collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]]
    groups: int = MAX_GROUPS
    least_slots: int = 0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch with its plan as `packing`, which the model hands down to its encoder."""
        batch = dict(self.collate(rows))  # a plain dictionary, whose inner tensors accelerate moves too
        return batch | {"packing": plan_packing(batch["attention_mask"].bool(), self.groups, self.least_slots)}


def plan_batches(
    model: nn.Module, collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]], args: TrainingArguments
) -> Callable[[list[dict[str, Any]]], Mapping[str, Any]]:
    """Return a collator that plans for the device of these arguments; the given one where the model isn't unpadded.

    Neither where the model is compiled: every new number of tokens would be a graph of its own.
    """
    encoder = next((m for m in model.modules() if pack_tokens in m._forward_pre_hooks.values()), None)
    if encoder is None or args.torch_compile:
        return collate
    if args.device.type == "cpu":
        return PackingCollator(collate)
    launches = HALF_PRECISION if args.fp16 or args.bf16 else FLOAT32
    return PackingCollator(collate, 1, least_slots_on_a_gpu(encoder, launches))


class _Gather(torch.autograd.Function):
    """tokens[indices], where no index comes twice: the gradient is copied back, not added up."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, indices: Tensor) -> Tensor:
        """Return [T, ...] of [N, ...]."""
        ctx.size = tokens.shape[0]
        ctx.save_for_backward(indices)
        return tokens.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Put the gradient into zeros [N, ...]."""
        return scatter_tokens(grad, *ctx.saved_tensors, ctx.size), None


class _Spread(torch.autograd.Function):
    """Query, key and value of the tokens, [T, heads, d / heads] each, in all slots, [3, R, heads, d / heads].

    A padding slot holds some token's values, but no query finds its key (its bias is -inf), and nobody asks for its
    query's output. So its gradients are zeros, and the tokens' are those of their own slots.
    """

    @staticmethod
    def forward(ctx: Any, packing: Packing, *query_key_value: Tensor) -> Tensor:
        """Return the slots."""
        ctx.slots = packing.slots
        together = torch.stack([x.flatten(1) for x in query_key_value])
        return together.index_select(1, packing.tokens).unflatten(2, query_key_value[0].shape[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        """Gather the gradients of the tokens' own slots."""
        return None, *grad.flatten(2).index_select(1, ctx.slots).unflatten(2, grad.shape[2:]).unbind()


def scatter_tokens(tokens: Tensor, indices: Tensor, size: int) -> Tensor:
    """Put tokens [T, ...] at their indices into zeros [size, ...]."""
    scattered = tokens.new_zeros(size, *tokens.shape[1:])
    # index_copy would keep the tokens for the backward pass; this keeps the indices alone.
    return scattered.index_put_((indices,), tokens)


def stays_as_called(encoder: nn.Module, hidden_states: Tensor, kwargs: dict[str, Any]) -> bool:
    """Tell whether a call of the encoder is left to the library, by all that can be seen without reading the mask."""
    mask, config = kwargs.get("attention_mask"), encoder.config
    recorded = ("output_hidden_states", "output_attentions")
    return (
        mask is None
        or mask.shape != hidden_states.shape[:2]
        or config._attn_implementation != ATTENTION_NAME
        or any(kwargs.get(flag, getattr(config, flag, False)) for flag in recorded)
    )


def pack_tokens(encoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Forward pre-hook of the encoder: hand the layers packed tokens and the packing, or the mask as it is added."""
    hidden_states, mask, plan = args[0], kwargs.get("attention_mask"), kwargs.pop("packing", None)
    if stays_as_called(encoder, hidden_states, kwargs):
        return args, kwargs
    if plan is None or plan["shape"] != list(mask.shape):  # an adapter's virtual tokens come after the collator
        on_host = mask.device.type == "cpu" and not torch.compiler.is_compiling()
        plan = plan_packing(mask) if on_host else {"path": "padded"}
    if plan["path"] == "full":  # no mask either, as in the library
        return args, {**kwargs, "attention_mask": None}
    device, dtype = hidden_states.device.type, hidden_states.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    if plan["path"] == "padded":  # once for all layers; scaled_dot_product_attention would do it in each
        bias = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
        return args, {**kwargs, "attention_mask": bias[:, None, None, :]}
    packing = follow_plan(plan, dtype)
    packed = _Gather.apply(hidden_states.flatten(0, 1), packing.places)[None]
    return (packed, *args[1:]), {**kwargs, "attention_mask": None, "packing": packing}


def unpack_tokens(encoder: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
    """Forward hook of the encoder: put the packed tokens back into their places in [B, S, d], zeros elsewhere."""
    packing = kwargs.get("packing")
    if packing is not None:
        flat = scatter_tokens(output.last_hidden_state.squeeze(0), packing.places, packing.batch_shape.numel())
        output.last_hidden_state = flat.unflatten(0, packing.batch_shape)


def unpadded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention of packed tokens [1, heads, T, d / heads], or of the padded batch without packing.

    Returns [1, T, heads, d / heads] (padded: [B, S, heads, d / heads]) and None for the weights.
    """
    if packing is None:
        if attention_mask is not None and attention_mask.dim() == 2:  # of a model without the encoder's hooks
            attention_mask = attention_mask[:, None, None, :]
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    slots = _Spread.apply(packing, *(x.squeeze(0).transpose(0, 1) for x in (query, key, value)))
    sizes, outputs = [rows * width for rows, width in packing.rectangles], []
    parts = slots.split(sizes, dim=1) if len(sizes) > 1 else [slots]  # split's gradient is a copy
    for shape, bias, part in zip(packing.rectangles, packing.key_biases, parts, strict=True):
        rectangle = (x.transpose(1, 2) for x in part.unflatten(1, shape).unbind())
        output, _ = sdpa_attention_forward(module, *rectangle, bias, **kwargs)
        outputs.append(output.flatten(0, 1))
    together = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return _Gather.apply(together, packing.slots)[None], None


def keep_padding_mask(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Hand the encoder the batch's own mask [B, S], not its expansion to [B, 1, S, S]."""
    return attention_mask


AttentionInterface.register(ATTENTION_NAME, unpadded_attention)
AttentionMaskInterface.register(ATTENTION_NAME, keep_padding_mask)


def reason_to_stay_padded(model: nn.Module, classifier: PreTrainedModel | None) -> str | None:
    """Say in one line why this model can't run unpadded, or None if it can."""
    if classifier is None:
        return "it holds no model of transformers"
    name, config = type(classifier).__name__, classifier.config
    if name not in SUPPORTED_CLASSES or not type(classifier).__module__.startswith("transformers.models."):
        return f"{name} has not been shown to give the same results unpadded"
    adapters = [adapter for m in model.modules() for adapter in getattr(m, "peft_config", {}).values()]
    # VeLoRA, a setting of LORA, starts from a mean over the batch, padding included.
    names = {"VELORA" if getattr(it, "velora_config", None) else it.peft_type.value for it in adapters}
    unknown = names - SUPPORTED_ADAPTERS
    if unknown:
        return f"PEFT's {', '.join(sorted(unknown))} has not been shown to give the same results unpadded"
    if config._attn_implementation not in ("sdpa", ATTENTION_NAME):
        return f"its attention is {config._attn_implementation!r}, not 'sdpa'"
    if config.is_decoder:
        return "it is a decoder (config.is_decoder)"
    if config.chunk_size_feed_forward:
        return "it cuts rows into chunks (config.chunk_size_feed_forward)"
    return None


def use_unpadded_encoder(model: nn.Module) -> str | None:
    """Make a sequence classification model, plain or PEFT's, run its encoder unpadded, in place.

    Returns None if it does, else the reason why the model was left as it is. A second call changes nothing. State dict
    and saved config are untouched; the hooks survive deepcopy and pickle.
    """
    classifier = next((m for m in model.modules() if isinstance(m, PreTrainedModel)), None)
    reason = reason_to_stay_padded(model, classifier)
    if reason is not None:
        return reason
    encoder = classifier.base_model.encoder
    classifier.set_attn_implementation(ATTENTION_NAME)
    if pack_tokens not in encoder._forward_pre_hooks.values():
        encoder.register_forward_pre_hook(pack_tokens, with_kwargs=True)
        encoder.register_forward_hook(unpack_tokens, with_kwargs=True)
    return None
