"""Computes PEFT's RandLoRA, VeRA and LoRA linear layers in weight space: the same function in less time.

PEFT sends every token through the adapter's factors. Without adapter dropout the update dW can be formed once a call
instead, at a cost that does not depend on the number of tokens T (X [T, in], dY [T, out], W and dW [out, in]):

    Y = X (W + dW)^T + b          dL/dX = dY (W + dW)          dL/d(dW) = dY^T X = G

With s PEFT's scaling, r the rank, n the number of bases, R = r n columns (R = r in VeRA and LoRA), * elementwise:

    RandLoRA (arXiv 2502.00987)  dW = s sum_i B_i Lambda_i A Gamma_i = D S,  S = s lambda * A * gamma         [R, in]
                                 D [out, R] is all B_i side by side; where in > out, dW = S^T D^T with D [in, R]
    VeRA (arXiv 2310.11454)      dW = Lambda_b B Lambda_d A = S A,           S = lambda_b * B * lambda_d      [out, R]
    LoRA (arXiv 2106.09685)      dW = s B A

The gradient of S (of A, of B) is a product of three matrices, such as D^T dY^T X: T in out + R in out multiply-adds
through G, T R (in + out) through the thin side. Elementwise products and sums then give the trained vectors their own.

Only forward changes: a layer gets a subclass of its PEFT class. Parameters, buffers, state-dict keys, saving, loading
and merging stay PEFT's, and PEFT's own forward runs whatever is not exact here, or takes more multiply-adds. Under
autocast the products run in its dtype, and the result has the dtype of PEFT's. There are first derivatives only.
"""

from collections import Counter
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from peft.tuners import lora, randlora, vera
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

RECOMPUTE_FROM = 4  # tokens a column: forming the merged weight again is then under a tenth of the layer's step
FP16_PEAK = 1 / 64  # fp16 ends at 65504, and G sums over all tokens: the largest entry of dY is brought to this first

_casts = WeakTensorKeyDictionary()  # a shared random base -> (its identity, its copy in the compute dtype)
_kept = WeakKeyDictionary()  # a layer in evaluation -> (its tensors' identity, their values, the merged weight)


class FastAdapters(NamedTuple):
    """How many layers were converted, and how many were left to PEFT for which reason."""

    converted: int
    left: dict[str, int]


class Products(NamedTuple):
    """Which matrix products a call in weight space takes."""

    input_side: bool  # the frozen base multiplies X, not dY
    thin: bool  # gradients through the thin side, not G
    keep_merged: bool  # for backward


class _Call(NamedTuple):
    """How one call is computed."""

    layer: type  # gives _factors and _gradients
    adapter: str
    scaling: float
    compute_dtype: torch.dtype
    output_dtype: torch.dtype
    needs_grad: bool
    products: Products


class _MergedLinear(torch.autograd.Function):
    """Y = X (W + dW)^T + b, with gradients of X, b and the two trained tensors (after two frozen bases)."""

    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, weight: Tensor, bias: Tensor | None, *tensors: Tensor) -> Tensor:
        """Return Y of all tokens, [T, out]; keep X, or X D where that suffices, and perhaps the merged weight."""
        ctx.call, ctx.x_shape, ctx.x_dtype = call, x.shape, x.dtype
        merged = _merge(call, weight, tensors)
        rows = x.reshape(-1, x.shape[-1]).to(call.compute_dtype)
        kept = rows @ tensors[0] if call.products.thin and call.products.input_side else rows
        keeps_merged = call.products.keep_merged and ctx.needs_input_grad[1]
        ctx.save_for_backward(kept, weight, merged if keeps_merged else None, *tensors)
        return _linear(call, rows, merged, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients; W and the frozen bases get none."""
        call, needs, grad_x, grad_bias, grads = ctx.call, ctx.needs_input_grad, None, None, (None, None)
        kept, weight, merged, *tensors = ctx.saved_tensors
        grad_output = grad_output.reshape(-1, weight.shape[0])
        with torch.autocast(weight.device.type, enabled=False):
            grad_y = grad_output.to(call.compute_dtype)
            if needs[1]:
                merged = _merge(call, weight, tensors) if merged is None else merged
                grad_x = (grad_y @ merged).view(ctx.x_shape).to(ctx.x_dtype)
                del merged
            if needs[3]:
                grad_bias = grad_output.sum(0, dtype=weight.dtype)
            if needs[6] or needs[7]:
                if call.compute_dtype == torch.float16 and tensors[0] is not None:
                    unit = grad_output.abs().amax().float().clamp_min(1e-30) / FP16_PEAK
                    call, grad_y = call._replace(scaling=call.scaling * unit), (grad_output.float() / unit).half()
                grads = call.layer._gradients(call, kept, grad_y, *tensors)
        return None, grad_x, None, grad_bias, None, None, *grads


def _merge(call: _Call, weight: Tensor, tensors: tuple[Tensor | None, ...]) -> Tensor:
    """Return W + dW, the sum rounded once to the compute dtype."""
    left, right = call.layer._factors(call, *tensors)
    delta = left.to(call.compute_dtype) @ right.to(call.compute_dtype)
    return torch.add(weight, delta, out=delta)


def _linear(call: _Call, x: Tensor, merged: Tensor, bias: Tensor | None) -> Tensor:
    """Return X merged^T + b, computed in the compute dtype, in the dtype that PEFT's layer returns."""
    bias = None if bias is None else bias.to(call.compute_dtype)
    return F.linear(x.to(call.compute_dtype), merged, bias).to(call.output_dtype)


def _cast(base: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a shared random base in this dtype, cast once for all the layers that slice it.

    In training only an edit of a base through `.data` under autocast goes unseen, until the next train() or eval().
    """
    if torch.compiler.is_compiling():
        return base.to(dtype)  # a compiled graph can't look into the dictionary
    identity = (dtype, base.data_ptr(), base._version)
    if base.dtype != dtype and _casts.get(base, (None,))[0] != identity:
        _casts[base] = (identity, base.to(dtype))
    return base if base.dtype == dtype else _casts[base][1]


class _WeightSpace:
    """What the three layer classes share; stands before PEFT's class among their bases."""

    has_scaling = True  # in PEFT's layer
    returns_compute_dtype = False  # under autocast, as PEFT's layer; else the dtype of x
    always_thin = False  # gradients never go through G
    thin_on_input_side = False  # nor there
    peft_differentiates_base = False  # PEFT takes a further product, for the gradient of lambda * A * gamma

    @staticmethod
    def is_on_input_side(n_out: int, n_in: int) -> bool:
        """Say whether the frozen base multiplies X, not dY."""
        return False

    @classmethod
    def choose_products(
        cls, n_out: int, n_in: int, columns: int, tokens: int, needs_grad: bool, training: bool
    ) -> Products | None:
        """Return the cheapest products in weight space, or None where PEFT's path takes no more multiply-adds.

        Counted is what comes on top of the frozen layer's products. LoRA's second thin product is in both paths and
        left out of both.
        """
        input_side = cls.is_on_input_side(n_out, n_in)
        merge, thin_side, full = columns * n_in * n_out, tokens * columns * (n_in + n_out), tokens * n_in * n_out
        thin = thin_side <= full + merge or cls.always_thin or (cls.thin_on_input_side and input_side)
        # What a square layer keeps as merged weight PEFT keeps as S.
        keep = max(n_in, n_out) <= columns or tokens < RECOMPUTE_FROM * columns
        peft = 2 * thin_side + (tokens * columns * min(n_in, n_out) if cls.peft_differentiates_base else 0)
        ours = merge * (1 if keep else 2) + (thin_side if thin else full + merge)
        if not needs_grad:  # in evaluation the merged weight is kept, so it costs nothing
            ours, peft = merge * training, thin_side
        return Products(input_side, thin, keep) if ours < peft else None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return what PEFT's layer returns, through the merged weight where that is exact and cheaper."""
        planned = None if args or kwargs else self._plan(x)
        if planned is None:
            return super().forward(x, *args, **kwargs)
        call, tensors = planned
        weight, bias = self.base_layer.weight, self.base_layer.bias
        with torch.autocast(x.device.type, enabled=False):  # from here on every dtype is chosen by hand
            if call.needs_grad:
                # Autograd lets a model change a view in place if it was taken out here, as Longformer does.
                return _MergedLinear.apply(call, x, weight, bias, *tensors).view(*x.shape[:-1], -1)
            if self.training or torch.compiler.is_compiling():
                return _linear(call, x, _merge(call, weight, tensors), bias)
            return _linear(call, x, self._kept_weight(call, tensors), bias)

    def _plan(self, x: Tensor) -> tuple[_Call, tuple[Tensor | None, ...]] | None:
        """Return how to compute this call and from what, or None where PEFT's path is needed or is cheaper."""
        exact = self._exact_inputs(x)
        if exact is None:
            return None
        adapter, dtype, tensors = exact
        weight, bias = self.base_layer.weight, self.base_layer.bias
        needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, bias, *tensors))
        columns, tokens = self.r[adapter] * getattr(self, "num_bases", 1), x.numel() // weight.shape[1]
        products = self.choose_products(*weight.shape, columns, tokens, needs_grad, self.training)
        if products is None:
            return None
        scaling = self.scaling[adapter] if self.has_scaling else 1.0
        output_dtype = dtype if self.returns_compute_dtype else x.dtype
        return _Call(type(self), adapter, scaling, dtype, output_dtype, needs_grad, products), tensors

    def _exact_inputs(self, x: Tensor) -> tuple[str, torch.dtype, tuple[Tensor | None, ...]] | None:
        """Return the adapter, the compute dtype and the tensors, or None where weight space would not be exact."""
        adapters = [name for name in self.active_adapters if name in self.r]
        if len(adapters) != 1 or self.disable_adapters or self.merged or _obstacle(self, adapters[0]):
            return None
        adapter, weight = adapters[0], self.base_layer.weight
        autocast = torch.is_autocast_enabled(x.device.type) and torch.float64 not in (x.dtype, weight.dtype)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast else weight.dtype
        tensors = self._tensors(adapter, dtype)
        if any((t.dtype, t.device) != (weight.dtype, x.device) for t in (weight, *tensors[1:]) if t is not None):
            return None
        return None if x.dtype != weight.dtype and not autocast else (adapter, dtype, tensors)

    def _kept_weight(self, call: _Call, tensors: tuple[Tensor | None, ...]) -> Tensor:
        """Return the merged weight of the last call, formed again if any tensor has changed since.

        An edit through `.data` moves neither address nor version, so values are compared too: the trained tensors'
        own, and the product of W and of each frozen base with one vector (0.5 % of the layer's time at 2048 tokens).
        """
        weight = self.base_layer.weight.detach()
        *frozen, first, second = (t.detach() for t in self._tensors(call.adapter, weight.dtype) if t is not None)
        identity = (call[:4], [(t.data_ptr(), t.device, t._version) for t in (weight, *frozen, first, second)])
        probes = [t @ torch.linspace(1, 2, t.shape[-1], dtype=t.dtype, device=t.device) for t in (weight, *frozen)]
        values = torch.cat([t.flatten() for t in (*probes, first, second)])
        kept = _kept.get(self)
        if kept is None or kept[0] != identity or not torch.equal(kept[1], values):
            if kept is not None:  # a base may have been edited, and with it the cast that these tensors hold
                _casts.clear()
                tensors = self._tensors(call.adapter, call.compute_dtype)
            kept = _kept[self] = (identity, values, _merge(call, weight, tensors).detach())
        return kept[2]

    def train(self, mode: bool = True) -> nn.Module:
        """Set the mode as PEFT does, and drop the kept weight and, at a change of mode, the bases' casts."""
        _kept.pop(self, None)
        if mode != self.training:
            _casts.clear()
        return super().train(mode)


class FastRandLora(_WeightSpace, randlora.Linear):
    """PEFT's RandLoRA layer."""

    thin_on_input_side = True  # so that X D [T, R] is kept, as PEFT does, and not X [T, in], the larger one
    peft_differentiates_base = True

    @staticmethod
    def is_on_input_side(n_out: int, n_in: int) -> bool:
        """Say whether the frozen base multiplies X, not dY."""
        return n_in > n_out

    def _tensors(self, adapter: str, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
        """Return D [max(in, out), R] in this dtype, A [r, 1, min(in, out)], lambda [r, n] and gamma [n, min(in, out)].

        PEFT flattens B base-major but A rank-major: column k of D meets rank k // n and basis k % n of lambda A gamma.
        """
        small, large = sorted((self.in_features, self.out_features))
        dense = _cast(self.randlora_B[adapter], dtype)[:large, : self.num_bases].flatten(1)
        base = self.randlora_A[adapter][:, : self.num_bases, :small]
        return dense, base, self.randlora_lambda[adapter], self.randlora_gamma[adapter]

    @staticmethod
    def _factors(call: _Call, dense: Tensor, base: Tensor, lambda_: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of dW, [out, R] and [R, in]."""
        scaled = ((call.scaling * lambda_).unsqueeze(-1) * base).mul_(gamma).flatten(0, 1)
        return (scaled.T, dense.T) if call.products.input_side else (dense, scaled)

    @staticmethod
    def _gradients(call: _Call, kept: Tensor, grad_y: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of lambda and gamma from that of lambda * A * gamma, [R, min(in, out)]."""
        dense, base, lambda_, gamma = tensors
        if call.products.thin:
            grad_s = kept.T @ grad_y if call.products.input_side else (grad_y @ dense).T @ kept
        else:
            grad_s = dense.T @ (kept.T @ grad_y if call.products.input_side else grad_y.T @ kept)
        grad_s = grad_s.to(base.dtype).view(*lambda_.shape, -1).mul_(base)
        grad_lambda = torch.einsum("rnj,nj->rn", grad_s, call.scaling * gamma)
        return grad_lambda, torch.einsum("rnj,rn->nj", grad_s, call.scaling * lambda_)


class FastVera(_WeightSpace, vera.Linear):
    """PEFT's VeRA layer."""

    has_scaling = False

    @staticmethod
    def is_on_input_side(n_out: int, n_in: int) -> bool:
        """Say whether the frozen base multiplies X, not dY."""
        return True

    def _tensors(self, adapter: str, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
        """Return D = A^T [in, R] in this dtype, B [out, R], lambda_b [out] and lambda_d [R], sliced as PEFT does."""
        dense = _cast(self.vera_A[adapter], dtype)[:, : self.in_features].T
        base = self.vera_B[adapter][: self.out_features]
        return dense, base, self.vera_lambda_b[adapter], self.vera_lambda_d[adapter]

    @staticmethod
    def _factors(call: _Call, dense: Tensor, base: Tensor, *trained: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of dW, [out, R] and [R, in]."""
        lambda_b, lambda_d = trained
        return (lambda_b.unsqueeze(-1) * base).mul_(lambda_d), dense.T

    @staticmethod
    def _gradients(call: _Call, kept: Tensor, grad_y: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of lambda_b and lambda_d from that of S, [out, R]."""
        dense, base, lambda_b, lambda_d = tensors
        grad_s = grad_y.T @ kept if call.products.thin else (grad_y.T @ kept) @ dense
        grad_s = grad_s.to(base.dtype).mul_(base)
        return grad_s @ (call.scaling * lambda_d), (call.scaling * lambda_b) @ grad_s


class FastLora(_WeightSpace, lora.Linear):
    """PEFT's LoRA layer: a step is 1.1 to 1.2 times faster on a CPU at rank 4."""

    returns_compute_dtype = True
    always_thin = True

    def _tensors(self, adapter: str, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
        """Return two absent frozen bases, B [out, r] and A [r, in]."""
        return None, None, self.lora_B[adapter].weight, self.lora_A[adapter].weight

    @staticmethod
    def _factors(call: _Call, _dense: None, _base: None, lora_b: Tensor, lora_a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of dW, [out, R] and [R, in]."""
        return call.scaling * lora_b, lora_a

    @staticmethod
    def _gradients(call: _Call, kept: Tensor, grad_y: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of B and A, always through the thin side."""
        lora_b, lora_a = tensors[2:]
        grad_b = call.scaling * (grad_y.T @ (kept @ lora_a.T.to(kept.dtype))).to(lora_b.dtype)
        return grad_b, ((grad_y @ (call.scaling * lora_b).to(kept.dtype)).T @ kept).to(lora_a.dtype)


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


def use_fast_adapters(model: nn.Module) -> FastAdapters:
    """Convert a model's PEFT layers in place; may be called again, after another adapter was added for instance."""
    converted, left = 0, Counter()
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            adapters = sorted(layer._get_available_adapters())
            reasons = [_obstacle(layer, adapter) for adapter in adapters] or ["no adapter"]
            if all(reasons):
                left[reasons[0]] += 1
            else:
                layer.__class__ = _FAST.get(type(layer), type(layer))
                converted += 1
    return FastAdapters(converted, dict(left))
