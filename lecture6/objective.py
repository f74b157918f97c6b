"""A loss seen as a function of one flat parameter vector: what every measure works on.

A 1-D toy, a quadratic and a network on images are all Objectives, so that a measure is written
once and tested where its value is known in closed form.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lecture6.models import flat_parameters
from lecture6.train import EVALUATION_BATCH, evaluate, evaluation_batches


class NonDeterministicError(RuntimeError):
    """Two evaluations of the same loss at the same point differ."""


class Objective(ABC):
    """A deterministic loss f(w) of a vector w of shape (n_params,).

    Vectors given may be of any floating dtype and device; they are converted to ``dtype`` and
    ``device``, and results come back in these.
    """

    n_params: int
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def _accumulate(self, w: Tensor, order: int, v: Tensor | None = None) -> tuple[float, Tensor]:
        """f(w), with its gradient if order is 1, or its Hessian times v if order is 2."""

    def vector(self, w: Tensor) -> Tensor:
        """``w`` as a detached vector of this objective's dtype and device; checks its shape."""
        w = torch.as_tensor(w, dtype=self.dtype, device=self.device).detach()
        if w.shape != (self.n_params,):
            raise ValueError(f"expected a vector of shape ({self.n_params},), got {tuple(w.shape)}")
        return w

    def value(self, w: Tensor) -> float:
        """f(w)."""
        return self._accumulate(self.vector(w), 0)[0]

    def grad(self, w: Tensor) -> Tensor:
        """∇f(w), shape (n_params,)."""
        return self._accumulate(self.vector(w), 1)[1]

    def value_and_grad(self, w: Tensor) -> tuple[float, Tensor]:
        """f(w) and ∇f(w) from one forward and one backward pass."""
        return self._accumulate(self.vector(w), 1)

    def hvp(self, w: Tensor, v: Tensor) -> Tensor:
        """The Hessian of f at w times v, shape (n_params,), by double backpropagation."""
        return self._accumulate(self.vector(w), 2, self.vector(v))[1]


class _SumObjective(Objective):
    """f(w) = Σ_b weight_b · f_b(w): one term in memory at a time."""

    def _terms(self) -> list[tuple[float, Callable[[Tensor], Tensor]]]:
        raise NotImplementedError

    def _accumulate(self, w: Tensor, order: int, v: Tensor | None = None) -> tuple[float, Tensor]:
        total, out = 0.0, torch.zeros_like(w)
        for weight, term in self._terms():
            with torch.set_grad_enabled(order > 0):
                x = w.clone().requires_grad_(order > 0)
                value = term(x)
            total += weight * value.item()
            if order == 0:
                continue
            (g,) = torch.autograd.grad(value, x, create_graph=order == 2)
            if order == 2:
                # 0·Σx: where f is linear, g does not depend on x
                (g,) = torch.autograd.grad(g @ v + 0.0 * x.sum(), x)
            out.add_(g, alpha=weight)
        return total, out


class FunctionObjective(_SumObjective):
    """A scalar torch function of a vector as an Objective, in float64: the toys.

    Example: ``FunctionObjective(lambda w: 100 * w[0] ** 2, n_params=1)``, Figure 6a.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], n_params: int) -> None:
        self.function, self.n_params = function, n_params
        self.dtype, self.device = torch.float64, torch.device("cpu")

    def _terms(self) -> list[tuple[float, Callable[[Tensor], Tensor]]]:
        return [(1.0, self.function)]


class NetworkObjective(_SumObjective):
    """The mean cross-entropy of a network on a fixed set of samples, as a function of its weights.

    Arguments:
      model       any module; a copy in eval mode is used (no dropout) and the original not touched
      x, y        samples (n, ...) and integer labels (n,)
      batch_size  samples in memory at a time. The set is cut into nearly equal batches, each
                  weighted by its exact share, so that the cut does not change the value, unless
                  the network mixes the samples of a batch.
      dtype       default: the model's; ``torch.float64`` for line searches and oracles

    Batch norm without running statistics (the default of :mod:`lecture6.models`) does mix them:
    then the cut is part of the definition, ``n_batches`` says into how many, and every point w is
    normalised by the statistics of its own activations.

    Raises :class:`NonDeterministicError` when two evaluations at the same weights differ.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        batch_size: int = EVALUATION_BATCH,
        dtype: torch.dtype | None = None,
    ) -> None:
        if len(x) != len(y) or len(x) == 0:
            raise ValueError(f"x and y must have the same positive length, got {len(x)}, {len(y)}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        first = next(model.parameters())
        self.dtype, self.device = dtype or first.dtype, first.device
        self.model = copy.deepcopy(model).to(self.dtype).eval()
        self.w = flat_parameters(self.model)  # (n_params,) the model's own weights
        self.n_params = len(self.w)
        self.n_samples = len(x)
        self._batches = evaluation_batches(x.to(self.device), y.to(self.device), batch_size)
        self.n_batches = len(self._batches)
        named = dict(self.model.named_parameters())
        self._names, self._shapes = list(named), [p.shape for p in named.values()]
        self._sizes = [p.numel() for p in named.values()]
        self._probe()

    def _logits(self, w: Tensor, x: Tensor) -> Tensor:
        parts = zip(self._names, w.split(self._sizes), self._shapes, strict=True)
        parameters = {name: part.view(shape) for name, part, shape in parts}
        return functional_call(self.model, parameters, (x.to(self.dtype),))

    def _terms(self) -> list[tuple[float, Callable[[Tensor], Tensor]]]:
        return [
            (len(x) / self.n_samples, lambda w, x=x, y=y: F.cross_entropy(self._logits(w, x), y))
            for x, y in self._batches
        ]

    def evaluate(self, w: Tensor) -> tuple[float, float]:
        """Mean loss and accuracy (fraction) at w, from one pass."""
        w = self.vector(w)
        return evaluate(lambda x: self._logits(w, x), self._batches)

    def _probe(self) -> None:
        """Compare two passes over the first batch; tolerance: a GPU's order of summation."""
        x = self._batches[0][0]
        with torch.no_grad():
            first, second = self._logits(self.w, x), self._logits(self.w, x)
        tolerance = 1e-10 if self.dtype == torch.float64 else 1e-5
        if not torch.allclose(first, second, rtol=tolerance, atol=tolerance, equal_nan=True):
            raise NonDeterministicError(
                "two evaluations of the network at the same weights differ by up to "
                f"{(first - second).abs().max().item():.2g}, although it is in eval mode. Usual "
                "causes: dropout applied by a function with training=True, batch norm that goes on "
                "updating running statistics, random augmentation inside the model. Remove the "
                "randomness, or fix its seed inside the forward pass."
            )
