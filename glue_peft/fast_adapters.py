"""Computes PEFT's RandLoRA, VeRA and LoRA linear layers in weight space, all layers of one shape at once.

PEFT sends every token through each layer's factors. Without adapter dropout the update dW can be formed once a forward
pass instead, at a cost that does not depend on the number of tokens T (X [T, in], dY [T, out], W and dW [out, in]):

    Y = X (W + dW)^T + b          dL/dX = dY (W + dW)          dL/d(dW) = dY^T X = G

All layers of one shape share their random bases, so their updates are one product of stacked factors, [L, out, R] and
[L, R, in] for L layers, and one more gives all of their gradients. On a GPU the number of operators launched bounds a
step: with this an adapter costs about 20 a shape, whatever the number of layers, where PEFT's layers launch 20 each.
With s PEFT's scaling, r the rank, n the number of bases, R = r n columns (R = r in VeRA and LoRA), * elementwise:

    RandLoRA (arXiv 2502.00987)  dW = s sum_i B_i Lambda_i A Gamma_i = s D S,  S = lambda * A * gamma          [R, in]
                                 D [out, R] is all B_i side by side; where in > out, dW = s S^T D^T with D [in, R]
    VeRA (arXiv 2310.11454)      dW = Lambda_b B Lambda_d A = S A,             S = lambda_b * B * lambda_d     [out, R]
    LoRA (arXiv 2106.09685)      dW = s B A

The gradients of the trained factors come from G, G right^T and left^T G (T in out + R in out multiply-adds each, in
few operators), or through the thin side, dY^T (X right^T) and (dY left)^T X (T R (in + out)). Elementwise products and
sums then give the trained tensors their own.

Only forward changes: a layer gets a subclass of its PEFT class, and the tuner that holds the layers two hooks, which
begin and end a forward pass. Parameters, buffers, state-dict keys, saving, loading and merging stay PEFT's, and PEFT's
own forward runs whatever is not exact here, or on a CPU takes more multiply-adds. A layer that is called outside a
forward pass of its tuner is a stack of its own. Memory: the merged weights and their gradients, once each, in the
dtype of the products, for as long as a step needs them. Under autocast the products run in its dtype, and so does the
result, as a plain linear layer's. There are first derivatives only. Nothing here waits for a GPU.
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
# float16 ends at 65504 and is exact down to 6e-5. At the first loss scale of a GradScaler, 65536, sums divided by this
# have room for a factor of 1000 on either side (test_fp16_at_the_first_loss_scale).
FP16_UNIT = 16.0


class FastAdapters(NamedTuple):
    """How many layers were converted, and how many were left to PEFT for which reason."""

    converted: int
    left: dict[str, int]


class _Setting(NamedTuple):
    """What the layers of one stack have in common."""

    kind: type["_WeightSpace"]  # gives factors_of and gradients_of
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
    bases: tuple[int, ...]  # identities of the shared random bases


class _Gradients:
    """Memory for the gradients of a stack's merged weights, [L, out, in]: each layer's backward fills its place."""

    def __init__(self, layers: int) -> None:
        """Know the number of layers; memory is taken when the first gradient comes."""
        self.layers = layers
        self.stack: Tensor | None = None
        self.free: set[int] = set()

    def place(self, index: int, weight: Tensor) -> Tensor:
        """Return the place of a layer's gradient, or new memory if it is filled: a layer may be called twice."""
        if self.stack is None and not torch.compiler.is_compiling():  # a compiled graph has no side effects
            self.stack, self.free = weight.new_empty(self.layers, *weight.shape), set(range(self.layers))
        if index not in self.free:
            return torch.empty_like(weight)
        self.free.remove(index)
        return self.stack[index]

    def take(self, grads: Sequence[Tensor | None]) -> Tensor:
        """Return the gradients as one stack, zero where there is none."""
        if self.stack is None:
            return _stacked(grads)
        stack, self.stack = self.stack, None
        places = zip(grads, stack.unbind(), strict=True)
        is_filled = all(grad is not None and grad.data_ptr() == place.data_ptr() for grad, place in places)
        return stack if is_filled else _stacked(grads)


class _Call(NamedTuple):
    """How a stack is computed in one forward pass, and its backward pass."""

    setting: _Setting
    thin: bool  # gradients through the thin side, not G
    gradients: _Gradients

    @property
    def unit(self) -> float:
        """Return what sums over all tokens are kept divided by: the gradients of a weight or a factor."""
        return FP16_UNIT if self.setting.dtype == torch.float16 else 1.0

    def product(self, left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        """Return left right / unit, divided before it is rounded."""
        ignored = right.new_empty(()) if out is None else out
        return torch.addmm(ignored, left, right, beta=0, alpha=1 / self.unit, out=out)


class _Merge(torch.autograd.Function):
    """The merged weights W + dW of a stack, from its trained tensors; for the thin side both factors too."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """Return L merged weights [out, in]; for the thin side then L left factors [out, R], L right ones [R, in].

        The tensors are the frozen bases, L weights, and L of each of the two trained tensors.
        """
        dense, base, *tensors = tensors
        setting, layers = call.setting, len(tensors) // 3
        weights, *trained = (tensors[start : start + layers] for start in range(0, len(tensors), layers))
        first, second = (torch.stack(part) for part in trained)
        factors = setting.kind.factors_of(setting, dense, base, first, second)
        left, right = (factor.expand(layers, -1, -1) for factor in factors)
        merged = torch.empty(layers, *setting.shape, dtype=setting.dtype, device=setting.device)
        torch._foreach_copy_(list(merged.unbind()), weights)
        torch.baddbmm(merged, left, right, out=merged)
        trains_left, trains_right = setting.kind.trained_sides(setting.shape)
        # Each factor is what the gradient of the other one takes.
        needed = (left if trains_right else None, right if trains_left else None) if not call.thin else (None, None)
        ctx.call, ctx.layers = call, layers
        ctx.save_for_backward(base, first, second, *needed)
        ctx.set_materialize_grads(False)
        if not call.thin:
            return merged.unbind()
        parts = ((merged.unbind(), False), (left.unbind(), trains_left), (right.unbind(), trains_right))
        ctx.mark_non_differentiable(*(output for part, is_trained in parts if not is_trained for output in part))
        return tuple(output for part, _ in parts for output in part)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of the trained tensors; a layer that was not called has none."""
        call, setting, layers = ctx.call, ctx.call.setting, ctx.layers
        base, first, second, left, right = ctx.saved_tensors
        parts = [grads[start : start + layers] for start in range(0, len(grads), layers)]
        with torch.autocast(setting.device.type, enabled=False):
            if call.thin:
                grad_left, grad_right = (_stacked(part) for part in parts[1:])
            else:
                full = call.gradients.take(parts[0])
                grad_left = None if right is None else full @ right.mT
                grad_right = None if left is None else left.mT @ full
            both = setting.kind.gradients_of(call, base, first, second, grad_left, grad_right)
        called = [any(grad is not None for grad in of_layer) for of_layer in zip(*parts, strict=True)]
        own = [grad if is_called else None for part in both for grad, is_called in zip(part, called, strict=True)]
        return None, None, None, *(None for _ in called), *own


def _stacked(grads: Sequence[Tensor | None]) -> Tensor | None:
    """Return a new stack of gradients, zero where there is none; None without any."""
    some = next((grad for grad in grads if grad is not None), None)
    return None if some is None else torch.stack([torch.zeros_like(some) if grad is None else grad for grad in grads])


class _Linear(torch.autograd.Function):
    """Y = X merged^T + b of one layer, with the gradient of the merged weight, or of the trained factors."""

    @staticmethod
    def forward(
        ctx: Any,
        call: _Call,
        index: int,
        x: Tensor,
        bias: Tensor | None,
        cast_bias: Tensor | None,
        merged: Tensor,
        left: Tensor | None,
        right: Tensor | None,
    ) -> Tensor:
        """Return Y of all tokens, [T, out]; `cast_bias` is b in the dtype of the products, where it has another."""
        ctx.call, ctx.index, ctx.x_shape, ctx.x_dtype = call, index, x.shape, x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        rows = x.reshape(-1, x.shape[-1]).to(merged.dtype)
        _, _, _, _, _, _, needs_left, needs_right = ctx.needs_input_grad
        if needs_left and not needs_right:  # X right^T [T, R] suffices, and is less to keep
            kept, left, right = rows @ right.T, None, None
        else:
            kept, left, right = rows, left if needs_right else None, right if needs_left else None
        ctx.save_for_backward(kept, merged, left, right)
        return F.linear(rows, merged, bias if cast_bias is None else cast_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients; the merged weight's is put into its place in the stack of them."""
        call, grad_x, grad_bias, grad_merged, grad_left, grad_right = ctx.call, None, None, None, None, None
        kept, merged, left, right = ctx.saved_tensors
        _, _, needs_x, needs_bias, _, needs_merged, needs_left, needs_right = ctx.needs_input_grad
        if needs_x:
            grad_x = (grad_y @ merged).view(ctx.x_shape).to(ctx.x_dtype)
        if needs_bias:
            grad_bias = grad_y.sum(0, dtype=ctx.bias_dtype)
        if needs_merged:
            grad_merged = call.product(grad_y.T, kept, call.gradients.place(ctx.index, merged))
        if needs_left:
            grad_left = call.product(grad_y.T, kept if right is None else kept @ right.T)
        if needs_right:
            grad_right = call.product((grad_y @ left).T, kept)
        return None, None, grad_x, grad_bias, None, grad_merged, grad_left, grad_right


class _Stack:
    """The layers of one setting, and their merged weights in a forward pass of their tuner; in evaluation in several.

    A layer that is called otherwise is a stack of its own for that call.
    """

    def __init__(self, setting: _Setting, layers: list["_WeightSpace"], is_open: bool) -> None:
        """Take the layers; `is_open` while their tuner's forward pass goes on."""
        self.setting, self.layers, self.is_open = setting, layers, is_open
        # Merged weights without a graph, which no optimizer is about to change, are kept for the next passes.
        self.is_kept = is_open and not (setting.needs_grad or setting.training or torch.compiler.is_compiling())
        self.tensors = self.collect() if self.is_kept else []  # held, so that their addresses aren't used again
        self.versions = _versions(self.tensors)
        self.call: _Call | None = None
        self.parts: list[Sequence[Tensor]] | None = None  # biases, merged weights, factors; empty: PEFT's path

    def __reduce__(self) -> tuple:
        """Leave a layer's copies and pickles without a stack."""
        return type(None), ()

    def collect(self) -> list[Tensor]:
        """Return all tensors that the merged weights depend on."""
        adapter = self.setting.adapter
        return [*self.layers[0].shared(adapter), *(tensor for layer in self.layers for tensor in layer.own(adapter))]

    def is_current(self, setting: _Setting, layers: list["_WeightSpace"]) -> bool:
        """Say whether the merged weights, formed in an earlier pass, are those of a pass of these layers."""
        return (
            self.is_kept
            and (self.setting, self.layers) == (setting, layers)
            and self.versions == _versions(self.collect())
        )

    def serves(self, layer: "_WeightSpace") -> bool:
        """Say whether a call of the layer belongs to this pass; in backward a checkpointed block is computed again."""
        return (
            (self.is_open or _in_backward())
            and self.layers[layer.index] is layer
            and self.setting.dtype == _compute_dtype(layer.base_layer.weight)
        )

    def merge(self, tokens: int) -> bool:
        """Say whether the pass goes through merged weights, and form them; the tokens of its first call decide."""
        if self.parts is None:
            setting, layer = self.setting, self.layers[0]
            launch = LAUNCH if layer.as_on_gpu or setting.device.type != "cpu" else 0
            path = layer.choose_path(setting.shape, setting.columns, tokens, setting.needs_grad, self.is_kept, launch)
            self.parts = [] if path is None else self.form(path == "thin" and setting.needs_grad)
        return bool(self.parts)

    def form(self, thin: bool) -> list[Sequence[Tensor]]:
        """Return biases and merged weights and, for the thin side, left and right factors of the layers."""
        setting, layers = self.setting, self.layers
        self.call = _Call(setting, thin, _Gradients(len(layers)))
        weights, biases, first, second = zip(*(layer.own(setting.adapter) for layer in layers), strict=True)
        frozen = layers[0].frozen(setting.adapter, setting.dtype)
        cast_biases: Sequence[Tensor | None] = [None] * len(layers)
        if setting.has_bias and setting.dtype != setting.weight_dtype:
            cast_biases = torch.stack([bias.detach() for bias in biases]).to(setting.dtype).unbind()
        undisturbed = contextlib.nullcontext if torch.compiler.is_compiling() else _undisturbed
        with undisturbed(), torch.set_grad_enabled(setting.needs_grad):
            outputs = _Merge.apply(self.call, *frozen, *weights, *first, *second)
        return [cast_biases, *(outputs[start : start + len(layers)] for start in range(0, len(outputs), len(layers)))]

    def linear(self, index: int, x: Tensor) -> Tensor:
        """Return Y of the layer at this index."""
        cast_bias, merged, *factors = (part[index] for part in self.parts)
        left, right = factors or (None, None)
        y = _Linear.apply(self.call, index, x, self.layers[index].base_layer.bias, cast_bias, merged, left, right)
        # Autograd lets a model change a view in place if it was taken out here, as Longformer does.
        return y.view(*x.shape[:-1], y.shape[-1])


def _compute_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype of the products: autocast's, where it is on and the weight is not float64."""
    kind = weight.device.type
    is_autocast = weight.dtype != torch.float64 and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if is_autocast else weight.dtype


def _in_backward() -> bool:
    """Say whether autograd is in a backward pass."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


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

    peft_differentiates_base = False  # PEFT takes a further product, for the gradient of lambda * A * gamma
    keeps_thin_side = False  # on a CPU, where only the left factor is trained: X right^T, as PEFT does, and not X
    as_on_gpu = False  # count operators, as on a GPU, on a CPU too
    stack: _Stack | None = None  # of the tuner's last forward pass
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
        is_kept_thin = cls.keeps_thin_side and not launch and cls.trained_sides(shape) == (True, False)
        return "thin" if thin <= full or is_kept_thin else "full"

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return what PEFT's layer returns, through the merged weight where that is exact and cheaper."""
        y = None if args or kwargs else self.in_weight_space(x)
        return super().forward(x, *args, **kwargs) if y is None else y

    def in_weight_space(self, x: Tensor) -> Tensor | None:
        """Return Y through the merged weight, or None where PEFT's path is needed or is cheaper."""
        stack, index, weight = self.stack, self.index, self.base_layer.weight
        if stack is None or not stack.serves(self):
            setting = self.setting()
            if setting is None:
                return None
            stack, index = _Stack(setting, [self], is_open=False), 0
        is_autocast = stack.setting.dtype != weight.dtype and x.dtype != torch.float64
        if x.device != weight.device or not (x.dtype == weight.dtype or is_autocast):
            return None
        if not stack.merge(x.numel() // weight.shape[1]):
            return None
        if stack.setting.needs_grad and not torch.is_grad_enabled():
            self.stack = None  # reentrant checkpointing: what it computes again needs a graph of its own
        return stack.linear(index, x)

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
            bases=tuple(id(t) for t in shared),
        )

    def own(self, adapter: str) -> tuple[Tensor | None, ...]:
        """Return the layer's own tensors: W, b, and the two trained ones."""
        return self.base_layer.weight, self.base_layer.bias, *self.trained(adapter)

    def train(self, mode: bool = True) -> nn.Module:
        """Set the mode as PEFT does, and forget the merged weights."""
        self.stack = None
        return super().train(mode)


class FastRandLora(_WeightSpace, randlora.Linear):
    """PEFT's RandLoRA layer."""

    peft_differentiates_base = True
    keeps_thin_side = True

    @staticmethod
    def trained_sides(shape: torch.Size) -> tuple[bool, bool]:
        """Say whether the left factor of dW is trained, and whether the right one is: D is the other one."""
        return shape[1] > shape[0], shape[1] <= shape[0]

    def trained(self, adapter: str) -> tuple[Tensor, Tensor]:
        """Return lambda [r, n] and gamma [n, min(in, out)]."""
        return self.randlora_lambda[adapter], self.randlora_gamma[adapter]

    def shared(self, adapter: str) -> tuple[Tensor, ...]:
        """Return the random bases of all layers."""
        return self.randlora_A[adapter], self.randlora_B[adapter]

    def frozen(self, adapter: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return D [max(in, out), R] in this dtype, and A [r, 1, min(in, out)].

        PEFT flattens B base-major but A rank-major: column k of D meets rank k // n and basis k % n of lambda A gamma.
        """
        small, large = sorted((self.in_features, self.out_features))
        dense = self.randlora_B[adapter][:large, : self.num_bases].to(dtype).flatten(1)
        return dense, self.randlora_A[adapter][:, : self.num_bases, :small]

    @staticmethod
    def factors_of(
        setting: _Setting, dense: Tensor, base: Tensor, lambda_: Tensor, gamma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the factors of dW, [L or 1, out, R] and [L or 1, R, in]."""
        scaled = (
            ((setting.scaling * lambda_).unsqueeze(-1) * base).mul_(gamma.unsqueeze(1)).flatten(1, 2).to(dense.dtype)
        )
        dense = dense.unsqueeze(0)
        return (scaled.mT, dense.mT) if setting.kind.trained_sides(setting.shape)[0] else (dense, scaled)

    @staticmethod
    def gradients_of(
        call: _Call,
        base: Tensor,
        lambda_: Tensor,
        gamma: Tensor,
        grad_left: Tensor | None,
        grad_right: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of lambda [L, r, n] and gamma [L, n, small] from that of S / unit."""
        grad = grad_right if grad_left is None else grad_left.mT
        grad = grad.to(base.dtype).unflatten(1, lambda_.shape[1:]).mul_(base * (call.setting.scaling * call.unit))
        return (grad * gamma.unsqueeze(1)).sum(-1), (grad * lambda_.unsqueeze(-1)).sum(1)


class FastVera(_WeightSpace, vera.Linear):
    """PEFT's VeRA layer."""

    @staticmethod
    def trained_sides(shape: torch.Size) -> tuple[bool, bool]:
        """Say whether the left factor of dW is trained, and whether the right one is."""
        return True, False

    def trained(self, adapter: str) -> tuple[Tensor, Tensor]:
        """Return lambda_b [out] and lambda_d [R]."""
        return self.vera_lambda_b[adapter], self.vera_lambda_d[adapter]

    def shared(self, adapter: str) -> tuple[Tensor, ...]:
        """Return the random bases of all layers."""
        return self.vera_A[adapter], self.vera_B[adapter]

    def frozen(self, adapter: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return A [R, in] in this dtype, and B [out, R], sliced as PEFT does."""
        return self.vera_A[adapter][:, : self.in_features].to(dtype), self.vera_B[adapter][: self.out_features]

    @staticmethod
    def factors_of(
        setting: _Setting, dense: Tensor, base: Tensor, lambda_b: Tensor, lambda_d: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the factors of dW, [L, out, R] and [1, R, in]."""
        scaled = (lambda_b.unsqueeze(-1) * base).mul_(lambda_d.unsqueeze(1)).to(dense.dtype)
        return scaled, dense.unsqueeze(0)

    @staticmethod
    def gradients_of(
        call: _Call, base: Tensor, lambda_b: Tensor, lambda_d: Tensor, grad_left: Tensor, _grad_right: None
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of lambda_b [L, out] and lambda_d [L, R] from that of S / unit."""
        grad = grad_left.to(base.dtype).mul_(base * call.unit)
        return (grad @ lambda_d.unsqueeze(-1)).squeeze(-1), (lambda_b.unsqueeze(1) @ grad).squeeze(1)


class FastLora(_WeightSpace, lora.Linear):
    """PEFT's LoRA layer."""

    @staticmethod
    def trained_sides(shape: torch.Size) -> tuple[bool, bool]:
        """Say whether the left factor of dW is trained, and whether the right one is."""
        return True, True

    def trained(self, adapter: str) -> tuple[Tensor, Tensor]:
        """Return B [out, r] and A [r, in]."""
        return self.lora_B[adapter].weight, self.lora_A[adapter].weight

    def shared(self, adapter: str) -> tuple[Tensor, ...]:
        """Return nothing: LoRA has no random bases."""
        return ()

    def frozen(self, adapter: str, dtype: torch.dtype) -> tuple[None, None]:
        """Return two absent bases."""
        return None, None

    @staticmethod
    def factors_of(
        setting: _Setting, _dense: None, _base: None, lora_b: Tensor, lora_a: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the factors of dW, [L, out, r] and [L, r, in]."""
        return (setting.scaling * lora_b).to(setting.dtype), lora_a.to(setting.dtype)

    @staticmethod
    def gradients_of(
        call: _Call, _base: None, lora_b: Tensor, lora_a: Tensor, grad_left: Tensor, grad_right: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of B and A from those of s B / unit and A / unit."""
        grad_b, grad_a = grad_left.to(lora_b.dtype), grad_right.to(lora_a.dtype)
        return grad_b * (call.setting.scaling * call.unit), grad_a * call.unit


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


def begin_pass(root: nn.Module, _inputs: tuple) -> None:
    """Forward pre-hook of the model: stack the layers by their setting, or find the stacks kept in evaluation."""
    settings: dict[_Setting, list[_WeightSpace]] = {}
    for layer in root.fast_layers:
        setting = layer.setting()
        if setting is None:
            layer.stack = None
        else:
            settings.setdefault(setting, []).append(layer)
    for setting, layers in settings.items():
        stack = None if torch.compiler.is_compiling() else layers[0].stack
        if stack is None or not stack.is_current(setting, layers):
            stack = _Stack(setting, layers, is_open=True)
        stack.is_open = True
        for index, layer in enumerate(layers):
            layer.stack, layer.index = stack, index


def end_pass(root: nn.Module, _inputs: tuple, _output: Any) -> None:
    """Forward hook of the model: from here on only a backward pass may call a layer of a stack again."""
    for layer in root.fast_layers:
        if torch.compiler.is_compiling():
            layer.stack = None  # what outlives a compiled graph would be one of its outputs
        elif layer.stack is not None:
            layer.stack.is_open = False


def use_fast_adapters(model: nn.Module, as_on_gpu: bool = False) -> FastAdapters:
    """Convert a model's PEFT layers in place; may be called again, after another adapter was added for instance.

    With `as_on_gpu` the path is chosen by the number of operators on a CPU too, which is for tests and counts.
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
                layer.as_on_gpu, layer.stack, layer.index = as_on_gpu, None, 0
                converted += 1
    tuners = [module for module in model.modules() if isinstance(module, BaseTuner)]
    # PEFT calls the tuner or, for a model of no particular task, the model in it.
    for root in [root for tuner in tuners for root in (tuner, tuner.model)] or [model]:
        root.fast_layers = [layer for layer in root.modules() if isinstance(layer, _WeightSpace)]
        if begin_pass not in root._forward_pre_hooks.values():
            root.register_forward_pre_hook(begin_pass)
            root.register_forward_hook(end_pass, always_call=True)
    return FastAdapters(converted, dict(left))
