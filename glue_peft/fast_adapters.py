"""Computes PEFT's RandLoRA, VeRA and LoRA linear layers in weight space, all layers of one shape at once.

PEFT sends every token through each layer's factors. Without adapter dropout the update dW can be formed once a forward
pass instead, at a cost that does not depend on the number of tokens T (X [T, in], dY [T, out], W and dW [out, in]):

    Y = X (W + dW)^T + b          dL/dX = dY (W + dW)          dL/d(dW) = dY^T X = G

All layers of one shape share their random bases, so their updates are one product of stacked factors, [L, out, R] and
[L, R, in] for L layers, and one more gives all of their gradients. On a GPU the number of operators launched bounds a
step: with this an adapter costs about 20 a shape, whatever the number of layers, where PEFT's layers launch 20 each.
With s PEFT's scaling, r the rank, n the number of bases, R = r n columns (R = r in VeRA and LoRA), * elementwise:

    RandLoRA (arXiv 2502.00987)  dW = s sum_i B_i Lambda_i A Gamma_i = D S,  S = s lambda * A * gamma         [R, in]
                                 D [out, R] is all B_i side by side; where in > out, dW = S^T D^T with D [in, R]
    VeRA (arXiv 2310.11454)      dW = Lambda_b B Lambda_d A = S A,           S = lambda_b * B * lambda_d      [out, R]
    LoRA (arXiv 2106.09685)      dW = s B A

The gradients of dW's two factors come from G, as G right^T and left^T G (T in out + R in out multiply-adds each, few
operators), or through the thin side, as dY^T (X right^T) and (dY left)^T X (T R (in + out)). Elementwise products and
sums then give the trained tensors their own.

Only forward changes: a layer gets a subclass of its PEFT class, and the adapted model two hooks, at the beginning and
the end of its forward pass. Parameters, buffers, state-dict keys, saving, loading and merging stay PEFT's, and PEFT's
own forward runs whatever is not exact here, or on a CPU takes more multiply-adds. A layer that is called outside a
pass, as gradient checkpointing does in backward, is a stack of its own. A step holds the merged weights once, in the
dtype of the products, beside W. Under autocast the products run in its dtype, and so does the result, as a plain
linear layer's. There are first derivatives only. Nothing here waits for a GPU.

In evaluation the merged weights are kept until a tensor changes, by its version or its address. An edit in place
through `.data` moves neither: it counts from the next call of train() or eval() on.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft.tuners import lora, randlora, vera
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# One operator on a GPU in multiply-adds: 5 microseconds to launch it, and as long for a thin product's memory traffic,
# at 2e14 multiply-adds a second. Estimated for an H100, not measured.
LAUNCH = 2e9
# float16 ends at 65504 and is exact down to 6e-5. At the first loss scale of a GradScaler, 65536, sums over all tokens
# divided by this have room for a factor of 1000 on either side (test_gradients_of_a_model_at_the_scalers_scales).
FP16_UNIT = 16.0

Pair = tuple[Tensor, Tensor]
Bases = Sequence[Tensor]  # the random bases of all layers
Grad = Tensor | None  # None where nothing came back


class FastAdapters(NamedTuple):
    """How many layers were converted, and how many were left to PEFT for which reason."""

    converted: int
    left: dict[str, int]


class _Setting(NamedTuple):
    """What the layers of one stack have in common."""

    kind: type["_WeightSpace"]
    adapter: str
    shape: torch.Size  # of the weight: out, in
    columns: int  # R
    scaling: float
    device: torch.device
    weight_dtype: torch.dtype
    dtype: torch.dtype  # of the products
    has_bias: bool
    needs_grad: bool  # of the trained tensors
    training: bool  # the layers' mode
    shared: tuple[int, ...]  # identities of the random bases

    @property
    def sides(self) -> tuple[bool, bool]:
        """Say whether the left factor of dW is trained, and whether the right one is."""
        return self.kind.trained_sides(self.shape)

    @property
    def unit(self) -> float:
        """Return what the gradients of weights and factors, sums over all tokens, are kept divided by."""
        return FP16_UNIT if self.dtype == torch.float16 else 1.0


class _Merge(torch.autograd.Function):
    """The merged weights W + dW of a stack, and for the thin side the factors of dW, from its trained tensors."""

    @staticmethod
    def forward(ctx: Any, setting: _Setting, thin: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return L merged weights [out, in] and, for the thin side, L left factors [out, R] and L right ones [R, in].

        The tensors are the shared bases, L weights, and L of each of the two trained tensors.
        """
        shared = tensors[: len(setting.shared)]
        weights, *trained = _thirds(tensors[len(shared) :])
        trained = [torch.stack(part) for part in trained]
        factors = setting.kind.factors_of(setting, shared, *trained)
        left, right = (factor.expand(len(weights), -1, -1) for factor in factors)
        merged = torch.empty(len(weights), *setting.shape, dtype=setting.dtype, device=setting.device)
        torch._foreach_copy_(list(merged.unbind()), weights)
        torch.baddbmm(merged, left, right, out=merged)
        trains_left, trains_right = setting.sides
        ctx.setting, ctx.thin = setting, thin
        # Each factor is what the gradient of the other one takes.
        ctx.save_for_backward(left if trains_right else None, right if trains_left else None, *trained, *shared)
        ctx.set_materialize_grads(False)
        return (*merged.unbind(), *left.unbind(), *right.unbind()) if thin else merged.unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Grad) -> tuple[Grad, ...]:
        """Return the gradients of the trained tensors, from those of the merged weights or of the factors.

        A layer that was not called has none; in a graph of torch.compile, which fills in zeros, it has zeros.
        """
        left, right, first, second, *shared = ctx.saved_tensors
        parts = _thirds(grads)[1:] if ctx.thin else [grads]
        with torch.autocast(ctx.setting.device.type, enabled=False):
            if ctx.thin:
                grad_left, grad_right = (_stacked(part) for part in parts)
            else:
                full = _stacked(grads)
                grad_left = None if right is None else full @ right.mT
                grad_right = None if left is None else left.mT @ full
            both = ctx.setting.kind.gradients_of(ctx.setting, shared, first, second, grad_left, grad_right)
        called = [any(grad is not None for grad in of_layer) for of_layer in zip(*parts, strict=True)]
        own = [grad if is_called else None for part in both for grad, is_called in zip(part, called, strict=True)]
        return None, None, *(None for _ in (*shared, *called)), *own


class _Linear(torch.autograd.Function):
    """Y = X merged^T + b of one layer, with the gradient of the merged weight, or of the factors of its update."""

    @staticmethod
    def forward(ctx: Any, setting: _Setting, thin: bool, x: Tensor, bias: Tensor | None, *weights: Tensor) -> Tensor:
        """Return Y of all tokens, [T, out], from the merged weight and its update's factors."""
        ctx.setting, ctx.thin = setting, thin
        (merged, left, right), (trains_left, trains_right) = weights, setting.sides
        kept = x if setting.needs_grad else None
        if thin and not trains_right:  # X right^T [T, R] suffices
            kept, right = x @ right.T, None
        needed = (left if trains_right else None, right if trains_left else None) if thin else (None, None)
        ctx.save_for_backward(merged, kept, *needed)
        return F.linear(x, merged, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Grad, ...]:
        """Return the gradients of X, b, and the merged weight or the trained factors."""
        _, _, needs_x, needs_bias, needs_weight, *_ = ctx.needs_input_grad
        (trains_left, trains_right), unit = ctx.setting.sides, ctx.setting.unit
        merged, kept, left, right = ctx.saved_tensors
        grad_weight = grad_left = grad_right = None
        with torch.autocast(merged.device.type, enabled=False):
            grad_x = grad_y @ merged if needs_x else None
            grad_bias = grad_y.sum(0) if needs_bias else None
            if needs_weight and not ctx.thin:
                grad_weight = _divided(grad_y.T, kept, unit)
            elif needs_weight:
                if trains_left:
                    grad_left = _divided(grad_y.T, kept if right is None else kept @ right.T, unit)
                if trains_right:
                    grad_right = _divided((grad_y @ left).T, kept, unit)
        return None, None, grad_x, grad_bias, grad_weight, grad_left, grad_right


def _thirds(items: Sequence) -> list[Sequence]:
    """Return the three parts of what was put one after another, a third for each."""
    size = len(items) // 3
    return [items[start : start + size] for start in (0, size, 2 * size)]


def _stacked(grads: Sequence[Grad]) -> Grad:
    """Return a stack of gradients, zero where there is none; None without any."""
    some = next((grad for grad in grads if grad is not None), None)
    return None if some is None else torch.stack([torch.zeros_like(some) if grad is None else grad for grad in grads])


def _divided(left: Tensor, right: Tensor, unit: float) -> Tensor:
    """Return left right / unit, divided before it is rounded."""
    return torch.addmm(right.new_empty(()), left, right, beta=0, alpha=1 / unit)


class _Stack:
    """The layers of one setting, and their merged weights: in a forward pass, or in evaluation in several."""

    def __init__(self, setting: _Setting, layers: list["_WeightSpace"], in_pass: bool) -> None:
        """Take the layers; a stack that is not `in_pass` serves a single call."""
        self.setting, self.layers, self.is_open = setting, layers, in_pass
        # Merged weights without a graph, which no optimizer is about to change, are kept for the next passes.
        self.is_kept = in_pass and not (setting.needs_grad or setting.training or torch.compiler.is_compiling())
        self.tensors = self.collect() if self.is_kept else []  # held, so that no other tensor gets their identity
        self.versions = _versions(self.tensors)
        self.thin = False  # gradients through the thin side, not G
        self.parts: list[Sequence[Tensor | None]] | None = None  # biases, merged weights, factors; empty: PEFT's path

    def __reduce__(self) -> tuple:
        """Leave a layer's copies and pickles without a stack."""
        return type(None), ()

    def collect(self) -> list[Tensor | None]:
        """Return all tensors that the merged weights and cast biases depend on."""
        adapter = self.setting.adapter
        return [*self.layers[0].shared(adapter), *(tensor for layer in self.layers for tensor in layer.own(adapter))]

    def is_current(self, setting: _Setting, layers: list["_WeightSpace"]) -> bool:
        """Say whether what was formed in an earlier pass is what a pass of these layers would form."""
        is_same = self.is_kept and (self.setting, self.layers) == (setting, layers)
        return is_same and self.versions == _versions(self.collect())

    def is_merged(self, tokens: int) -> bool:
        """Say whether the calls go through merged weights, and form them; the tokens of the first call decide."""
        if self.parts is None:
            setting, layer = self.setting, self.layers[0]
            launch = LAUNCH if layer.as_on_gpu or setting.device.type != "cpu" else 0
            path = layer.choose_path(setting.shape, setting.columns, tokens, setting.needs_grad, self.is_kept, launch)
            self.thin = path == "thin" and setting.needs_grad
            self.parts = [] if path is None else self.form()
        return bool(self.parts)

    def form(self) -> list[Sequence[Tensor | None]]:
        """Return the layers' biases, cast where they need it, merged weights, and for the thin side their factors."""
        setting, layers = self.setting, self.layers
        weights, biases, first, second = zip(*(layer.own(setting.adapter) for layer in layers), strict=True)
        undisturbed = contextlib.nullcontext if torch.compiler.is_compiling() else _undisturbed
        with undisturbed(), torch.set_grad_enabled(setting.needs_grad):
            shared = layers[0].shared(setting.adapter)
            outputs = _Merge.apply(setting, self.thin, *shared, *weights, *first, *second)
            if setting.has_bias and setting.dtype != setting.weight_dtype:
                biases = torch.stack([bias.detach() for bias in biases]).to(setting.dtype).unbind()
        return [biases, *(_thirds(outputs) if self.thin else (outputs, *[[None] * len(layers)] * 2))]

    def linear(self, index: int, x: Tensor) -> Tensor:
        """Return Y of the layer at this index."""
        setting, bias = self.setting, self.layers[index].base_layer.bias
        cast_bias, *weights = (part[index] for part in self.parts)
        bias = bias.to(setting.dtype) if bias is not None and bias.requires_grad else cast_bias
        rows = x.reshape(-1, x.shape[-1]).to(setting.dtype)
        y = _Linear.apply(setting, self.thin, rows, bias, *weights)
        # Autograd lets a model change a view in place if it was taken out here, as Longformer does.
        return y.view(*x.shape[:-1], y.shape[-1])


def _compute_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype of the products: autocast's, where it is on and the weight is not float64."""
    kind = weight.device.type
    is_autocast = weight.dtype != torch.float64 and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if is_autocast else weight.dtype


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Form what outlives inference mode, and the checkpointed block in which a stack's first call happens to be."""
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    with torch.inference_mode(False), hooks:
        yield


def _versions(tensors: list[Tensor | None]) -> list[tuple[int, ...] | None]:
    """Return what an edit of a tensor changes, but one in place through `.data`; no value is looked at."""
    return [t if t is None else (id(t), t.data_ptr(), t._version) for t in tensors]


class _WeightSpace:
    """What the three layer classes share; stands before PEFT's class among their bases."""

    TRAINED: tuple[str, str]  # where PEFT's layer has its trained tensors, ...
    SHARED: tuple[str, ...] = ()  # ... and the random bases of all layers
    peft_differentiates_base = False  # PEFT takes a further product, for the gradient of lambda * A * gamma
    as_on_gpu = False  # count operators, as on a GPU, on a CPU too
    stack: _Stack | None = None  # of a pass that goes on or, in evaluation, of the last one
    index = 0  # in the stack

    @classmethod
    def choose_path(
        cls, shape: torch.Size, columns: int, tokens: int, needs_grad: bool, is_kept: bool, launch: float
    ) -> str | None:
        """Return where the gradients come from, "full" (G) or "thin"; None where PEFT's path takes no more.

        Counted are multiply-adds on top of the frozen layer's products, and an operator is `launch` of them.
        """
        (n_out, n_in), sides = shape, sum(cls.trained_sides(shape))
        merge, thin_side, frozen = columns * n_in * n_out, tokens * columns * (n_in + n_out), tokens * n_in * n_out
        full, thin = frozen + sides * merge, sides * thin_side + (2 * sides - 1) * launch
        ours, peft = merge + min(full, thin), (1 + sides) * thin_side
        if cls.peft_differentiates_base:
            peft += tokens * columns * min(shape)
        if not needs_grad:
            ours, peft = 0 if is_kept else merge, thin_side
        if peft <= ours and not launch:  # PEFT's layer launches some 20 operators, a stack's layer 3
            return None
        keeps_less = cls.trained_sides(shape) == (True, False) and columns < n_in  # X right^T [T, R], not X [T, in]
        return "thin" if thin <= full or (keeps_less and not launch) else "full"

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return what PEFT's layer returns, through the merged weight where that is exact and cheaper."""
        y = None if args or kwargs else self.in_weight_space(x)
        return super().forward(x, *args, **kwargs) if y is None else y

    def in_weight_space(self, x: Tensor) -> Tensor | None:
        """Return Y through the merged weight, or None where PEFT's path is needed or is cheaper."""
        stack, index, weight = self.stack, self.index, self.base_layer.weight
        if stack is None or not stack.is_open or stack.setting.dtype != _compute_dtype(weight):
            setting = self.setting()
            if setting is None:
                return None
            stack, index = _Stack(setting, [self], in_pass=False), 0
        is_autocast = stack.setting.dtype != weight.dtype and x.dtype != torch.float64
        if x.device != weight.device or not (x.dtype == weight.dtype or is_autocast):
            return None
        return stack.linear(index, x) if stack.is_merged(x.numel() // weight.shape[1]) else None

    def setting(self) -> _Setting | None:
        """Return what this layer has in common with the others of its stack, or None where PEFT's path is needed."""
        adapters = [name for name in self.active_adapters if name in self.r]
        if len(adapters) != 1 or self.disable_adapters or self.merged or _obstacle(self, adapters[0]):
            return None
        adapter = adapters[0]
        (weight, bias, *trained), shared = self.own(adapter), self.shared(adapter)
        if any((t.dtype, t.device) != (weight.dtype, weight.device) for t in (*trained, *shared)):
            return None
        return _Setting(
            kind=type(self),
            adapter=adapter,
            shape=weight.shape,
            columns=self.r[adapter] * getattr(self, "num_bases", 1),
            scaling=getattr(self, "scaling", {}).get(adapter, 1.0),  # VeRA has none
            device=weight.device,
            weight_dtype=weight.dtype,
            dtype=_compute_dtype(weight),
            has_bias=bias is not None,
            needs_grad=torch.is_grad_enabled() and any(t.requires_grad for t in trained),
            training=self.training,
            shared=tuple(id(t) for t in shared),
        )

    def own(self, adapter: str) -> tuple[Tensor | None, ...]:
        """Return the layer's own tensors: W, b, and the two trained ones."""
        trained = (getattr(self, name)[adapter] for name in self.TRAINED)
        return self.base_layer.weight, self.base_layer.bias, *(getattr(part, "weight", part) for part in trained)

    def shared(self, adapter: str) -> tuple[Tensor, ...]:
        """Return the random bases of all layers."""
        return tuple(getattr(self, name)[adapter] for name in self.SHARED)

    def train(self, mode: bool = True) -> nn.Module:
        """Set the mode as PEFT does, and forget the merged weights."""
        self.stack = None
        return super().train(mode)


class FastRandLora(_WeightSpace, randlora.Linear):
    """PEFT's RandLoRA layer: lambda [r, n], gamma [n, small], A [r, 1, >= small] and B [>= large, >= n, r]."""

    TRAINED, SHARED = ("randlora_lambda", "randlora_gamma"), ("randlora_A", "randlora_B")
    peft_differentiates_base = True

    @staticmethod
    def trained_sides(shape: torch.Size) -> tuple[bool, bool]:
        """Say whether the left factor of dW is trained, and whether the right one is: D is the other one."""
        return shape[1] > shape[0], shape[1] <= shape[0]

    @staticmethod
    def factors_of(setting: _Setting, shared: Bases, lambda_: Tensor, gamma: Tensor) -> Pair:
        """Return the factors of dW, [L or 1, out, R] and [L or 1, R, in].

        PEFT flattens B base-major but A rank-major: column k of D meets rank k // n and basis k % n of lambda A gamma.
        """
        base, dense = shared[0][..., : min(setting.shape)], shared[1][: max(setting.shape), : lambda_.shape[2]]
        scaled = ((setting.scaling * lambda_).unsqueeze(-1) * base).mul_(gamma.unsqueeze(1))
        scaled, dense = scaled.flatten(1, 2).to(setting.dtype), dense.to(setting.dtype).flatten(1).unsqueeze(0)
        return (scaled.mT, dense.mT) if setting.sides[0] else (dense, scaled)

    @staticmethod
    def gradients_of(setting: _Setting, shared: Bases, lambda_: Tensor, gamma: Tensor, *grads: Grad) -> Pair:
        """Return the gradients of lambda [L, r, n] and gamma [L, n, small] from that of S / (s unit)."""
        base = shared[0][..., : min(setting.shape)] * (setting.scaling * setting.unit)
        grad = grads[1] if grads[0] is None else grads[0].mT
        grad = grad.to(base.dtype).unflatten(1, lambda_.shape[1:]).mul_(base)
        return (grad * gamma.unsqueeze(1)).sum(-1), (grad * lambda_.unsqueeze(-1)).sum(1)


class FastVera(_WeightSpace, vera.Linear):
    """PEFT's VeRA layer: lambda_b [out], lambda_d [R], A [R, >= in] and B [>= out, R]."""

    TRAINED, SHARED = ("vera_lambda_b", "vera_lambda_d"), ("vera_A", "vera_B")

    @staticmethod
    def trained_sides(shape: torch.Size) -> tuple[bool, bool]:
        """Say whether the left factor of dW is trained, and whether the right one is."""
        return True, False

    @staticmethod
    def factors_of(setting: _Setting, shared: Bases, lambda_b: Tensor, lambda_d: Tensor) -> Pair:
        """Return the factors of dW, [L, out, R] and [1, R, in]."""
        dense, base = shared[0][:, : setting.shape[1]], shared[1][: setting.shape[0]]
        scaled = (lambda_b.unsqueeze(-1) * base).mul_(lambda_d.unsqueeze(1))
        return scaled.to(setting.dtype), dense.to(setting.dtype).unsqueeze(0)

    @staticmethod
    def gradients_of(setting: _Setting, shared: Bases, lambda_b: Tensor, lambda_d: Tensor, *grads: Grad) -> Pair:
        """Return the gradients of lambda_b [L, out] and lambda_d [L, R] from that of S / unit."""
        base = shared[1][: setting.shape[0]] * setting.unit
        grad = grads[0].to(base.dtype).mul_(base)
        return (grad @ lambda_d.unsqueeze(-1)).squeeze(-1), (lambda_b.unsqueeze(1) @ grad).squeeze(1)


class FastLora(_WeightSpace, lora.Linear):
    """PEFT's LoRA layer: B [out, r] and A [r, in]."""

    TRAINED = ("lora_B", "lora_A")

    @staticmethod
    def trained_sides(shape: torch.Size) -> tuple[bool, bool]:
        """Say whether the left factor of dW is trained, and whether the right one is."""
        return True, True

    @staticmethod
    def factors_of(setting: _Setting, _shared: Bases, lora_b: Tensor, lora_a: Tensor) -> Pair:
        """Return the factors of dW, [L, out, r] and [L, r, in]."""
        return (setting.scaling * lora_b).to(setting.dtype), lora_a.to(setting.dtype)

    @staticmethod
    def gradients_of(setting: _Setting, _shared: Bases, lora_b: Tensor, lora_a: Tensor, *grads: Grad) -> Pair:
        """Return the gradients of B and A from those of s B / unit and A / unit."""
        grad_b, grad_a = (grad.to(lora_b.dtype) for grad in grads)
        return grad_b * (setting.scaling * setting.unit), grad_a * setting.unit


_FAST = {randlora.Linear: FastRandLora, vera.Linear: FastVera, lora.Linear: FastLora}


def _obstacle(layer: BaseTunerLayer, adapter: str) -> str | None:
    """Say why PEFT's own path must compute this adapter of this layer, or return None."""
    if type(layer) not in (*_FAST, *_FAST.values()):
        return "no fast path for this kind of layer"
    base = layer.base_layer
    if type(base) is not nn.Linear or type(base.weight) is not nn.Parameter or layer.fan_in_fan_out:
        return "base layer is not a plain nn.Linear"
    if base.weight.dtype not in (torch.float32, torch.float64):
        return "base weight in reduced precision"
    hooks = base._forward_hooks, base._forward_pre_hooks, base._backward_hooks, base._backward_pre_hooks
    if base.weight.requires_grad or any(hooks):
        return "base weight is trained, or base layer has hooks"
    dropout = next(getattr(layer, name) for name in layer.other_param_names if name.endswith("_dropout"))
    if not isinstance(dropout[adapter], nn.Identity):
        return "adapter dropout"
    is_variant = isinstance(layer, lora.Linear) and (adapter in layer.lora_variant or layer.lora_bias[adapter])
    return "LoRA variant or bias" if is_variant else None


def begin_pass(model: nn.Module, _inputs: tuple) -> None:
    """Forward pre-hook: stack the layers by their setting, or find the stacks kept in evaluation."""
    layers_of: dict[_Setting, list[_WeightSpace]] = {}
    for layer in model.fast_layers:
        setting = layer.setting()
        if setting is None:
            layer.stack = None
        else:
            layers_of.setdefault(setting, []).append(layer)
    for setting, layers in layers_of.items():
        stack = None if torch.compiler.is_compiling() else layers[0].stack
        if stack is None or not stack.is_current(setting, layers):
            stack = _Stack(setting, layers, in_pass=True)
        stack.is_open = True
        for index, layer in enumerate(layers):
            layer.stack, layer.index = stack, index


def end_pass(model: nn.Module, _inputs: tuple, _output: Any) -> None:
    """Forward hook: forget the stacks, but for those of evaluation, which wait for the next pass."""
    for layer in model.fast_layers:
        if layer.stack is not None and layer.stack.is_kept:
            layer.stack.is_open = False
        else:
            layer.stack = None


def use_fast_adapters(model: nn.Module, as_on_gpu: bool = False) -> FastAdapters:
    """Convert a model's PEFT layers in place; may be called again, after another adapter was added for instance.

    With `as_on_gpu` the path is chosen by the number of operators on a CPU too.
    """
    converted, left = 0, Counter()
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            adapters = sorted(layer._get_available_adapters())
            reasons = [_obstacle(layer, adapter) for adapter in adapters] or ["no adapter"]
            if all(reasons):
                left[reasons[0]] += 1
            else:
                layer.__class__ = _FAST.get(type(layer), type(layer))
                layer.as_on_gpu, layer.stack = as_on_gpu, None
                converted += 1
    # A tuner's forward, and PEFT's for a model of no particular task, call the model in it.
    for adapted in [module.model for module in model.modules() if isinstance(module, BaseTuner)] or [model]:
        adapted.fast_layers = [layer for layer in adapted.modules() if isinstance(layer, _WeightSpace)]
        if begin_pass not in adapted._forward_pre_hooks.values():
            adapted.register_forward_pre_hook(begin_pass)
            adapted.register_forward_hook(end_pass, always_call=True)
    return FastAdapters(converted, dict(left))
