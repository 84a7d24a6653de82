"""Runs BERT's and RoBERTa's encoders without padding: same batches, same results, no arithmetic on padding tokens.

A batch of B rows padded to S tokens holds T <= B S real ones. Everything in an encoder layer but attention treats
each token by itself, so the real tokens are packed after the embeddings, [B, S, d] -> [1, T, d], and the layers run
on those. Attention needs rows: query, key and value are scattered into padded rectangles [rows, width, heads,
d / heads], one for each of at most four groups of rows of similar length, and the output of
scaled_dot_product_attention is gathered back. After the last layer the tokens return to their places in [B, S, d];
the padding positions of last_hidden_state are zeros (a classification head reads position 0 alone).

Without dropout the results are the library's up to rounding. With it the rates are the model's, attention's included;
only the random draws differ, since fewer numbers are drawn.

A call takes the library's padded path if hidden states or attention weights are asked for, if a row's position 0 is
masked (left padding, an empty row), if the mask is not one of [B, S], if less than a tenth of the batch is padding,
and under torch.compile. Masks with holes are packed like any other. PEFT's batches of mixed adapters (adapter_names)
need [B, S, d] in every layer and fail with an error.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ATTENTION_NAME = "unpadded_sdpa"

# With four groups instead of one a training step of MiniLM-L6 with LoRA on a CPU was 1.06 to 1.32 times faster at
# batch 64 and 1.02 to 1.20 times at 32 (eight: at most 4 % more). At batch 8 four were from 6 % slower to 6 % faster.
# On a GPU, not measured, every group would be further launches in every layer: there is one.
MAX_GROUPS = 4
MIN_GROUP_ROWS = 8

# Packing moves tokens about and keeps attention's gathered output for the backward pass. With 5 % padding it cost as
# much time and memory as it saved, with 11 % it took 5 to 10 % less of both.
MAX_REAL_SHARE = 0.9

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
    """Where the T real tokens of a batch [B, S] stand: once in the batch, once in attention's rectangles."""

    batch_shape: torch.Size  # B, S
    places: Tensor  # [T], indices into the flattened B * S
    slots: Tensor  # [T], indices into all rectangles, flattened, one after the other
    rectangles: list[tuple[int, int]]  # rows and width of each
    key_masks: list[Tensor | None]  # [rows, 1, 1, width] of each, true where a slot holds a token; None if all do


def plan_packing(mask: Tensor, lengths: Tensor, row_lengths: list[int]) -> Packing:
    """Plan the packing for a boolean mask [B, S] and its rows' lengths, given on the device and on the host."""
    rows = mask.shape[0]
    order = sorted(range(rows), key=row_lengths.__getitem__)
    group_size = max(MIN_GROUP_ROWS, -(-rows // MAX_GROUPS)) if mask.device.type == "cpu" else rows
    row_starts, rectangles, key_masks, end = [0] * rows, [], [], 0
    for group in (order[i : i + group_size] for i in range(0, rows, group_size)):
        shortest, width = row_lengths[group[0]], row_lengths[group[-1]]
        rectangles.append((len(group), width))
        group_lengths = lengths[torch.tensor(group, device=mask.device), None, None, None]
        key_masks.append(None if shortest == width else torch.arange(width, device=mask.device) < group_lengths)
        for row in group:
            row_starts[row] = end
            end += width
    # A stable sort puts the real tokens first, in their order; unlike nonzero() it does not ask the GPU for a size.
    places = mask.flatten().to(torch.uint8).sort(descending=True, stable=True).indices[: sum(row_lengths)]
    slots = torch.tensor(row_starts, device=mask.device)[:, None] + mask.cumsum(dim=1) - 1
    return Packing(mask.shape, places, slots.flatten()[places], rectangles, key_masks)


def scatter_tokens(tokens: Tensor, indices: Tensor, size: int) -> Tensor:
    """Put tokens [T, ...] at their indices into zeros [size, ...]."""
    scattered = tokens.new_zeros(size, *tokens.shape[1:])
    # index_copy would keep the tokens for the backward pass; this keeps the indices alone.
    return scattered.index_put_((indices,), tokens)


def takes_padded_path(encoder: nn.Module, hidden_states: Tensor, kwargs: dict[str, Any]) -> bool:
    """Tell whether a call of the encoder can't be packed, by all that can be seen without reading the mask."""
    mask, config = kwargs.get("attention_mask"), encoder.config
    recorded = ("output_hidden_states", "output_attentions")
    return (
        mask is None
        or mask.shape != hidden_states.shape[:2]
        or config._attn_implementation != ATTENTION_NAME
        or any(kwargs.get(flag, getattr(config, flag, False)) for flag in recorded)
        or torch.compiler.is_compiling()
    )


def pack_tokens(encoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Forward pre-hook of the encoder: hand the layers packed tokens and the packing, or leave the call as it is."""
    if takes_padded_path(encoder, args[0], kwargs):
        return None
    mask = kwargs["attention_mask"]
    lengths = mask.sum(dim=1)
    # The host waits here for a GPU, once a forward pass, as the library does to build its mask.
    *row_lengths, real_starts = torch.cat([lengths, mask[:, :1].sum(dim=0)]).tolist()
    if sum(row_lengths) == mask.numel():  # no padding: no mask either, as in the library
        return args, {**kwargs, "attention_mask": None}
    if real_starts < len(row_lengths) or sum(row_lengths) > MAX_REAL_SHARE * mask.numel():
        return None
    packing = plan_packing(mask, lengths, row_lengths)
    packed = args[0].flatten(0, 1).index_select(0, packing.places)[None]
    return (packed, *args[1:]), {**kwargs, "attention_mask": None, "packing": packing}


def unpack_tokens(encoder: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
    """Forward hook of the encoder: put the packed tokens back into their places in [B, S, d], zeros elsewhere."""
    packing = kwargs.get("packing")
    if packing is not None:
        flat = scatter_tokens(output.last_hidden_state[0], packing.places, packing.batch_shape.numel())
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
        if attention_mask is not None and attention_mask.dim() == 2:
            attention_mask = attention_mask[:, None, None, :]
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    sizes = [rows * width for rows, width in packing.rectangles]
    flat = [scatter_tokens(x[0].transpose(0, 1), packing.slots, sum(sizes)).split(sizes) for x in (query, key, value)]
    outputs = []
    for shape, key_mask, *parts in zip(packing.rectangles, packing.key_masks, *flat, strict=True):
        rectangle = (part.unflatten(0, shape).transpose(1, 2) for part in parts)
        output, _ = sdpa_attention_forward(module, *rectangle, key_mask, **kwargs)
        outputs.append(output.flatten(0, 1))
    return torch.cat(outputs).index_select(0, packing.slots)[None], None


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
