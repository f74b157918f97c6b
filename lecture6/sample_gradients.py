"""The gradients g_i of the losses of single samples, without the products that fill them.

A linear layer with input a and gradient δ of the loss at its output has the gradients δ aᵀ for its
weight and δ for its bias: n (n_in + n_out) numbers stand for n · n_in · n_out (Goodfellow,
1510.01799). Keep the factors, never the product: g·V = δᵀ(V a), and Σ_i c_i g_i is one product of
matrices. Of other parameters (convolutions, norms) the gradients are kept as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from itertools import accumulate, product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from lecture6.checks import Loss, cast, one_function, parameters
from lecture6.models import flat_parameters, unflatten

TRIED = 16  # samples on which a network is tried out


@dataclass(frozen=True)
class SampleGradients:
    """The gradients g_i of n samples, a matrix (n, n_params) that is not formed."""

    #: Where the weight and the bias of each dense layer lie in w, and its a and δ, (n, ...) each;
    #: a may be one row for all. A layer may come twice: the two add up.
    layers: list[tuple[slice, slice | None, Tensor, Tensor]]
    rest: list[tuple[slice, Tensor]]  #: the gradients of other parameters, (n, numel)
    n_params: int

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        tensors = [part for *_, a, delta in self.layers for part in (a, delta)]
        return sum(part.nbytes for part in tensors + [g for _, g in self.rest])

    def dot(self, v: Tensor) -> Tensor:
        """g_i·v for v (n_params,): shape (n,)."""
        parts = []
        for weight, bias, a, delta in self.layers:
            out = F.linear(a, v[weight].view(delta.shape[1], -1), None if bias is None else v[bias])
            parts.append(torch.linalg.vecdot(delta, out))
        return reduce(torch.add, parts + [g @ v[where] for where, g in self.rest])

    def combine(self, c: Tensor) -> Tensor:
        """Σ_i c_i g_i for c (n,): shape (n_params,)."""
        out = c.new_zeros(self.n_params)
        for weight, bias, a, delta in self.layers:
            scaled = delta * c[:, None]
            total = scaled.sum(0)
            left = scaled if len(a) == len(delta) else total[None]
            out[weight].view(delta.shape[1], -1).addmm_(left.T, a)
            if bias is not None:
                out[bias] += total
        for where, g in self.rest:
            torch.mv(g.T, c, out=out[where])
        return out

    def squared_norms(self) -> Tensor:
        """‖g_i‖², (n,), in float64."""
        parts = [g.double().square().sum(1) for _, g in self.rest]
        exact = [(w, bias, a.double(), delta.double()) for w, bias, a, delta in self.layers]
        for (here, bias, a, delta), (there, other_bias, b, other) in product(exact, exact):
            if here == there:
                inside = torch.linalg.vecdot(a, b) + (None not in (bias, other_bias))
                parts.append(torch.linalg.vecdot(delta, other) * inside)
        return reduce(torch.add, parts).clamp(min=0)

    def minus(self, others: SampleGradients) -> SampleGradients:
        """The differences from the gradients of as many other samples, or from that of one.

        Formed before any product, δ aᵀ − δ′ a′ᵀ = δ (a − a′)ᵀ + (δ − δ′) a′ᵀ: gradients that agree
        in most of their digits keep those in which they differ. The two change places where δ a′ᵀ
        would be larger than both and cancel.
        """

        def larger(v: Tensor, than: Tensor) -> Tensor:
            return v.abs().amax(1, keepdim=True) > 10 * than.abs().amax(1, keepdim=True)

        layers = []
        for mine, (*_, b, other) in zip(self.layers, others.layers, strict=True):
            weight, bias, a, delta = mine
            near, change, swap = a - b, delta - other, larger(delta, other) & larger(b, a)
            if swap.any():
                delta, b = torch.where(swap, other, delta), torch.where(swap, a, b)
            layers += [(weight, None, near, delta), (weight, bias, b, change)]
        rest = zip(self.rest, others.rest, strict=True)
        return SampleGradients(layers, [(s, g - h) for (s, g), (_, h) in rest], self.n_params)

    def sum(self) -> Tensor:
        """Σ_i g_i, (n_params,)."""
        some = self.layers[0][-1] if self.layers else self.rest[0][-1]
        return self.combine(some.new_ones(len(some)))

    def has_mean(self, g: Tensor) -> bool:
        """Whether g (n_params,) is the mean of the g_i, but for rounding."""
        norms = self.squared_norms()
        off = (self.sum() / len(norms) - g).double().norm()
        return bool(off <= 10 * torch.finfo(g.dtype).eps ** 0.5 * norms.mean().sqrt())

    def matrix(self) -> Tensor:
        """The g_i themselves, (n, n_params)."""
        some = self.layers[0][-1] if self.layers else self.rest[0][-1]
        out = some.new_zeros(len(some), self.n_params)
        for weight, bias, a, delta in self.layers:
            out[:, weight].view(*delta.shape, -1).addcmul_(delta[:, :, None], a[:, None])
            if bias is not None:
                out[:, bias] += delta
        for where, g in self.rest:
            out[:, where] = g
        return out


class _Plain(TorchFunctionMode):
    """Plain operations, where torch differentiates another function: an embedding leaves out its
    padding, or divides by frequencies; weight norm's second derivative is wrong (2.15).
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch._weight_norm:
            v, g, *dim = args
            return v * (g / torch.norm_except_dim(v, 2, *dim))
        if func is F.embedding:
            kwargs = (kwargs or {}) | dict(padding_idx=None, scale_grad_by_freq=False, sparse=False)
        return func(*args, **(kwargs or {}))


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """A context that records gradients which have gradients: of fused attention torch has none."""
    attention = sdpa_kernel(SDPBackend.MATH)
    with torch.inference_mode(False), torch.enable_grad(), attention:
        yield


class FlatNetwork:
    """``model``, in eval mode, with its parameters as one vector w (n_params,)."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.shapes = {name: p.shape for name, p in parameters(model).items()}
        ends = list(accumulate(shape.numel() for shape in self.shapes.values()))
        #: where each parameter lies in w
        self.slices = dict(zip(self.shapes, map(slice, [0, *ends], ends), strict=True))

    def logits(self, w: Tensor, x: Tensor) -> Tensor:
        """The outputs of the network, logits (n, classes) as a rule, for inputs x (n, ...) at w."""
        with one_function(self.model), _Plain():
            return functional_call(self.model, unflatten(w, self.shapes), (cast(x, w),))


class SamplePass(FlatNetwork):
    """(w, x, y) ↦ the :class:`SampleGradients` of the samples x (n, ...), y (n,) at w.

    ``model`` must not mix the samples of a batch. It is tried on some of ``x`` and ``y``: what is
    found of its layers is checked against their summed gradient. ``loss``: see
    :class:`lecture6.objective.NetworkObjective`.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss = F.cross_entropy
    ) -> None:
        super().__init__(model)
        self.loss = loss
        w = flat_parameters(model).requires_grad_()
        x, y = x[:TRIED], cast(y[:TRIED], w)
        calls = defaultdict(list)

        def note(name: str, _: nn.Module, args: tuple, output: Tensor) -> None:
            calls[name].append(output.shape)

        found = {name: m for name, m in model.named_modules() if type(m) is nn.Linear}
        with twice_differentiable(), _hooks(found, note):
            (exact,) = torch.autograd.grad(loss(self.logits(w, x), y), w)
        # The linear layers that see each sample once and share their weights with nothing.
        self.layers = {
            name: layer
            for name, layer in found.items()
            if f"{name}.weight" in self.slices and calls[name] == [(len(x), layer.out_features)]
        }
        # What no hook shows, such as a weight used a second time elsewhere, the sum does.
        if not self(w.detach(), x, y).has_mean(exact):
            self.layers = {}

    def __call__(self, w: Tensor, x: Tensor, y: Tensor) -> SampleGradients:
        weights = unflatten(w, self.shapes)
        free = {name: weights[name] for name in self._free}
        # Added to what the layers give: the gradient of a shift is that of the output.
        shifts = {name: w.new_zeros(1, layer.out_features) for name, layer in self.layers.items()}

        def loss(free: dict, shifts: dict, x: Tensor, y: Tensor) -> tuple[Tensor, dict]:
            inputs = {}

            def shift(name: str, _: nn.Module, args: tuple, output: Tensor) -> Tensor:
                inputs[name] = args[0]
                return output + shifts[name]

            with _hooks(self.layers, shift):
                z = functional_call(self.model, weights | free, (cast(x[None], w),))
            return self.loss(z, y[None]), inputs

        gradient = vmap(grad(loss, argnums=(0, 1), has_aux=True), in_dims=(None, None, 0, 0))
        with twice_differentiable(), one_function(self.model), _Plain():
            (rest, deltas), inputs = gradient(free, shifts, x.to(w.device), cast(y, w))
        places = [(self.slices[f"{n}.weight"], self.slices.get(f"{n}.bias")) for n in self.layers]
        factors = [(inputs[n].flatten(1), deltas[n].flatten(1)) for n in self.layers]
        return SampleGradients(
            layers=[place + factor for place, factor in zip(places, factors, strict=True)],
            rest=[(self.slices[name], g.reshape(len(g), -1)) for name, g in rest.items()],
            n_params=len(w),
        )

    @property
    def _free(self) -> list[str]:
        inside = {f"{name}.{part}" for name in self.layers for part in ("weight", "bias")}
        return [name for name in self.shapes if name not in inside]

    @property
    def loose(self) -> int:
        """The parameters outside of the linear layers, of which whole gradients are kept."""
        return sum(self.shapes[name].numel() for name in self._free)


def _hooks(layers: Mapping[str, nn.Module], hook: Callable) -> ExitStack:
    """A context in which ``hook(name, layer, inputs, output)`` is called after each layer."""
    hooks = ExitStack()
    for name, layer in layers.items():
        hooks.enter_context(layer.register_forward_hook(partial(hook, name)))
    return hooks
