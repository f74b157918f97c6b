"""The gradients g_i of the losses of single samples, without the products that fill them.

A linear layer with input a and gradient δ of the loss at its output has the gradients δ aᵀ for its
weight and δ for its bias: n (n_in + n_out) numbers stand for n · n_in · n_out (Goodfellow,
1510.01799). Keep the factors, never the product: g·V = δᵀ(V a), and Σ_i c_i g_i is one product of
matrices. Of other parameters (convolutions, norms) the gradients are kept as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lecture6.checks import cast, parameters
from lecture6.models import flat_parameters, unflatten

TRIED = 16  # samples on which a network is tried out
PIECE = 1 << 24  # numbers in the gradients outside of linear layers that are made at once


@dataclass(frozen=True)
class SampleGradients:
    """The gradients g_i of n samples, a matrix (n, n_params) that is not formed."""

    #: Where the weight and the bias of each dense layer lie in w, and its a and δ.
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
        total = 0.0
        for weight, bias, a, delta in self.layers:
            out = F.linear(a, v[weight].view(delta.shape[1], -1), None if bias is None else v[bias])
            total = total + torch.linalg.vecdot(delta, out)
        for where, g in self.rest:
            total = total + g @ v[where]
        return total

    def combine(self, c: Tensor) -> Tensor:
        """Σ_i c_i g_i for c (n,): shape (n_params,)."""
        out = c.new_empty(self.n_params)
        for weight, bias, a, delta in self.layers:
            scaled = delta * c[:, None]
            torch.mm(scaled.T, a, out=out[weight].view(delta.shape[1], -1))
            if bias is not None:
                out[bias] = scaled.sum(0)
        for where, g in self.rest:
            torch.mv(g.T, c, out=out[where])
        return out

    def squared_norms(self) -> Tensor:
        """‖g_i‖², (n,)."""
        total = 0.0
        for _, bias, a, delta in self.layers:
            total = total + (a.square().sum(1) + (bias is not None)) * delta.square().sum(1)
        for _, g in self.rest:
            total = total + g.square().sum(1)
        return total

    def matrix(self) -> Tensor:
        """The g_i themselves, (n, n_params)."""
        some = (self.layers or self.rest)[0][-1]
        out = some.new_empty(len(some), self.n_params)
        for weight, bias, a, delta in self.layers:
            shaped = out[:, weight].view(*delta.shape, -1)
            torch.mul(delta[:, :, None], a[:, None], out=shaped)
            if bias is not None:
                out[:, bias] = delta
        for where, g in self.rest:
            out[:, where] = g
        return out


class SamplePass:
    """(w, x, y) ↦ the :class:`SampleGradients` of the samples x (n, ...), y (n,) at w.

    Arguments:
        model: in eval mode
        slices: where each of its parameters lies in w
        x, y: some samples to try it on; what it finds is checked against their summed gradient
    """

    def __init__(self, model: nn.Module, slices: dict[str, slice], x: Tensor, y: Tensor) -> None:
        self.model, self.slices = model, slices
        self.shapes = {name: p.shape for name, p in parameters(model).items()}
        w = flat_parameters(model)
        x, y = x[:TRIED].to(w.device), y[:TRIED].to(w.device)
        self.check_separate(w, x)
        # The linear layers that see each sample once and share their weights with nothing.
        calls: dict[str, list[torch.Size]] = {}
        found = {name: m for name, m in model.named_modules() if type(m) is nn.Linear}

        def note(name: str, _: nn.Module, args: tuple, output: Tensor) -> None:
            calls.setdefault(name, []).append(output.shape)

        with torch.no_grad(), _hooks(found, note):
            self._logits(w, x)
        self.layers = {
            name: layer
            for name, layer in found.items()
            if f"{name}.weight" in slices and calls.get(name) == [(len(x), layer.out_features)]
        }
        # What no hook shows, such as a weight used a second time elsewhere, the sum does.
        point = w.clone().requires_grad_()
        total = F.cross_entropy(self._logits(point, x), y, reduction="sum")
        (exact,) = torch.autograd.grad(total, point)
        ours = self(w, x, y).combine(w.new_ones(len(y)))
        if not (ours - exact).norm() <= _tolerance(w) * exact.norm():
            self.layers = {}

    def _logits(self, w: Tensor, x: Tensor) -> Tensor:
        return functional_call(
            self.model, unflatten(w, self.shapes), (cast(x, w.dtype).to(w.device),)
        )

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
            return F.cross_entropy(z, y[None]), inputs

        gradient = vmap(grad(loss, argnums=(0, 1), has_aux=True), in_dims=(None, None, 0, 0))
        (rest, deltas), inputs = gradient(free, shifts, x.to(w.device), y.to(w.device))
        return SampleGradients(
            layers=[
                (
                    self.slices[f"{name}.weight"],
                    self.slices.get(f"{name}.bias"),
                    inputs[name].flatten(1),
                    deltas[name].flatten(1),
                )
                for name in self.layers
            ],
            rest=[(self.slices[name], g.flatten(1)) for name, g in rest.items()],
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

    def pieces(self, x: Tensor, y: Tensor, most: int) -> Iterator[tuple[Tensor, Tensor]]:
        """x and y cut into parts of ``most`` samples, or fewer where their gradients are large."""
        size = max(1, min(most, PIECE // max(1, self.loose)))
        return zip(x.split(size), y.split(size), strict=True)

    def check_separate(self, w: Tensor, x: Tensor) -> None:
        """Raises ValueError for a network in which a sample's logits depend on its batch."""
        with torch.no_grad():
            # beside a copy of itself, since batch norm refuses a single sample
            alone, among = (self._logits(w, x[:TRIED][i])[0] for i in ([0, 0], slice(None)))
        difference = (alone - among).abs().max().item()
        if not difference <= _tolerance(w) * among.abs().max().item():
            raise ValueError(
                "the network mixes the samples of a batch, so that no sample has a gradient of its "
                f"own: the logits of one change by {difference:.2g} with its companions. The usual "
                'cause is batch norm by batch statistics: build the model with batch_norm="running"'
                " or without batch norm"
            )


def _tolerance(w: Tensor) -> float:
    return 10 * torch.finfo(w.dtype).eps ** 0.5


def _hooks(layers: dict[str, nn.Module], hook: Callable) -> ExitStack:
    """A context in which ``hook(name, layer, inputs, output)`` is called after each layer."""
    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(partial(hook, name)))
        return hooks.pop_all()
