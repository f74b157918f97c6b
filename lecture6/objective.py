"""A loss seen as a function of one flat parameter vector: what every measure works on.

A 1-D toy, a quadratic and a network on images are all Objectives, so that a measure is written
once and tested where its value is known in closed form.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lecture6 import checks
from lecture6.evaluation import EVALUATION_BATCH, evaluate, evaluation_batches
from lecture6.models import flat_parameters, unflatten
from lecture6.sample_gradients import SampleGradients, SamplePass


class NonDeterministicError(RuntimeError):
    """Two evaluations of the same loss at the same point differ."""


_PartProduct = Callable[[Tensor, bool], Tensor]  # see Product.parts
_Graph = Callable[[], tuple[Tensor | SampleGradients, _PartProduct]]
MEMORY_LIMIT = 1 << 28  # bytes of graphs kept between products with one Hessian


class Product:
    """v ↦ M v for the curvature matrix M = Σ_b weight_b · M_b of an objective at one point.

    Called with v of shape (n_params,), or with a block (k, n_params) of k vectors.
    """

    def __init__(
        self, like: Tensor, parts: Callable[[], Iterator[tuple[float, _PartProduct]]]
    ) -> None:
        self._like = like  # (n_params,): dtype and device of what comes back
        # The micro-batches one by one: their weights, and (v, more) ↦ M_b v for one vector v, with
        # more = False at the last one, after which the part's memory is given back.
        self.parts = parts

    def __call__(self, v: Tensor) -> Tensor:
        v = torch.as_tensor(v, dtype=self._like.dtype, device=self._like.device).detach()
        n = len(self._like)
        if v.dim() not in (1, 2) or v.shape[-1] != n:
            raise ValueError(f"expected vectors of shape ({n},) or (k, {n}), got {tuple(v.shape)}")
        rows = v.reshape(-1, n)
        out = torch.zeros_like(rows)
        for weight, part in self.parts():
            for j, row in enumerate(rows):
                out[j].add_(part(row, j + 1 < len(rows)), alpha=weight)
            del part  # or it would live on while the next one is made
        return out.view(v.shape)


class Objective(ABC):
    """A deterministic loss f(w) of a vector w of shape (n_params,).

    Vectors given may be of any floating dtype and device; they are converted to ``dtype`` and
    ``device``, and results come back in these.
    """

    n_params: int
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def _accumulate(self, w: Tensor, with_grad: bool) -> tuple[float, Tensor]:
        """f(w) and its gradient, or zeros in its place."""

    @abstractmethod
    def product(
        self, w: Tensor, *, of: str = "hessian", memory_limit: int = MEMORY_LIMIT
    ) -> Product:
        """v ↦ M v for the curvature matrix M of f at w, by double backpropagation.

        Arguments:
            of:
                - "hessian", and for networks
                - "gauss_newton": Jᵀ ∇²ℓ(z) J with J = ∂z/∂w the Jacobian of the logits,
                  positive semidefinite (Schraudolph 2002)
                - "gradients": the second moment (1/n) Σ_i g_i g_iᵀ of the gradients g_i of the n
                  samples, by :class:`~lecture6.sample_gradients.SampleGradients`
                - "covariance": the same about their mean, "gradients" − ∇f ∇fᵀ

            memory_limit: bytes. What does not depend on v is computed once and kept up to this
                limit; the samples beyond it are passed through the network at every call,
                so that memory does not grow with their number.
        """

    def vector(self, w: Tensor) -> Tensor:
        """``w`` as a detached vector of this objective's dtype and device.

        Raises ValueError for another shape, and for numbers that are not finite.
        """
        return checks.weights(w, self.n_params, dtype=self.dtype, device=self.device)

    def value(self, w: Tensor) -> float:
        """f(w)."""
        return self._accumulate(self.vector(w), False)[0]

    def grad(self, w: Tensor) -> Tensor:
        """∇f(w), shape (n_params,)."""
        return self._accumulate(self.vector(w), True)[1]

    def value_and_grad(self, w: Tensor) -> tuple[float, Tensor]:
        """f(w) and ∇f(w) from one forward and one backward pass."""
        return self._accumulate(self.vector(w), True)

    def hvp(self, w: Tensor, v: Tensor) -> Tensor:
        """The Hessian of f at w times v, shape (n_params,); for many v, see :meth:`product`."""
        return self.product(w, memory_limit=0)(self.vector(v))


class _SumObjective(Objective):
    """f(w) = Σ_b weight_b · f_b(w): one term in memory at a time."""

    def _terms(self) -> list[tuple[float, Callable[[Tensor], Tensor]]]:
        raise NotImplementedError

    def _accumulate(self, w: Tensor, with_grad: bool) -> tuple[float, Tensor]:
        total, out = 0.0, torch.zeros_like(w)
        for weight, term in self._terms():
            with torch.set_grad_enabled(with_grad):
                x = w.clone().requires_grad_(with_grad)
                value = term(x)
            total += weight * value.item()
            if with_grad:
                out.add_(torch.autograd.grad(value, x)[0], alpha=weight)
        return total, out

    def _graphs(self, of: str, w: Tensor) -> list[tuple[float, _Graph]]:
        """A weight and a function for each term of the matrix at w.

        The function returns what the products need, the last tensor of a graph or gradients, and
        the product.
        """
        if of == "hessian":
            return [(weight, partial(_hessian, term, w)) for weight, term in self._terms()]
        raise ValueError(
            "of must be 'hessian' (or, for networks, 'gauss_newton', 'gradients' or 'covariance'), "
            f"got {of!r}"
        )

    def product(
        self, w: Tensor, *, of: str = "hessian", memory_limit: int = MEMORY_LIMIT
    ) -> Product:
        w = self.vector(w)
        terms, kept = self._graphs(of, w), []
        while len(kept) < len(terms) and memory_limit > 0:
            root, part = terms[len(kept)][1]()
            memory_limit -= root.nbytes if isinstance(root, SampleGradients) else _graph_bytes(root)
            if memory_limit >= 0:
                kept.append(part)
        root = part = None  # or the graph that did not fit would live on

        def parts() -> Iterator[tuple[float, _PartProduct]]:
            for i, (weight, graph) in enumerate(terms):
                if i < len(kept):
                    yield weight, lambda v, more, part=kept[i]: part(v, True)
                else:
                    yield weight, graph()[1]

        return Product(w, parts)


def _hessian(term: Callable[[Tensor], Tensor], w: Tensor) -> tuple[Tensor, _PartProduct]:
    x = w.clone().requires_grad_()
    with torch.enable_grad():
        (g,) = torch.autograd.grad(term(x), x, create_graph=True)
        g = g + 0.0 * x  # where f is linear, g does not depend on x

    def product(v: Tensor, more: bool) -> Tensor:
        return torch.autograd.grad(g, x, v, retain_graph=more)[0]

    return g, product


def _gauss_newton(logits: Callable[[Tensor], Tensor], w: Tensor) -> tuple[Tensor, _PartProduct]:
    """For the mean cross-entropy of the softmax of ``logits``, (samples, classes)."""
    x = w.clone().requires_grad_()
    with torch.enable_grad():
        z = logits(x)
        u = torch.zeros_like(z, requires_grad=True)
        (g,) = torch.autograd.grad(z, x, u, create_graph=True)  # Jᵀu: linear in u
    p = z.detach().softmax(1)

    def product(v: Tensor, more: bool) -> Tensor:
        (jv,) = torch.autograd.grad(g, u, v, retain_graph=more)
        curved = p * (jv - (p * jv).sum(1, keepdim=True)) / len(p)  # ∇²ℓ(z) = diag(p) − p pᵀ
        return torch.autograd.grad(z, x, curved, retain_graph=more)[0]

    return g, product


def _graph_bytes(root: Tensor) -> int:
    """Memory that the graph behind ``root`` keeps for its backward pass, and its two ends."""
    nodes, visited, sizes = [root.grad_fn], set(), {root.data_ptr(): root.nbytes}
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        nodes.extend(parent for parent, _ in node.next_functions)
        for name in dir(node):
            if name.startswith("_saved_") or name == "variable":  # variable: of a leaf
                saved = getattr(node, name)
                for tensor in saved if isinstance(saved, tuple | list) else [saved]:
                    if isinstance(tensor, Tensor):
                        sizes[tensor.data_ptr()] = tensor.nbytes
    return sum(sizes.values())


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
        model: any module that makes logits (n, classes); a copy in eval mode is used (no
            dropout) and the original not touched
        x, y: samples (n, ...) and integer labels (n,), see :func:`lecture6.checks.samples`
        batch_size: samples in memory at a time. The set is cut into nearly equal batches, each
            weighted by its exact share, so that the cut does not change the value, unless
            the network mixes the samples of a batch.
        dtype: default: the model's; ``torch.float64`` for line searches and oracles

    Batch norm without running statistics (the default of :mod:`lecture6.models`) does mix them:
    then the cut is part of the definition, ``n_batches`` says into how many, and every point w is
    normalised by the statistics of its own activations.

    Raises ValueError for samples that the network does not fit and for weights that are not finite,
    :class:`NonDeterministicError` when two evaluations at the same weights differ.
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
        x, y = checks.samples(x, y)
        first = next(iter(checks.parameters(model).values()))
        self.dtype, self.device = dtype or first.dtype, first.device
        self.model = checks.as_dtype(copy.deepcopy(model), self.dtype).eval()
        checks.fits(self.model, x, y)
        #: (n_params,) the model's own weights
        self.w = checks.finite("the model", flat_parameters(self.model), "training diverged")
        self.n_params = len(self.w)
        self._set_samples(x, y, checks.whole("batch_size", batch_size, least=1))
        self.shapes = {name: p.shape for name, p in checks.parameters(self.model).items()}
        ends = np.cumsum([shape.numel() for shape in self.shapes.values()]).tolist()
        # where each parameter lies in w: name -> slice
        self.slices = dict(zip(self.shapes, map(slice, [0, *ends], ends), strict=True))
        self._probe()

    def _set_samples(self, x: Tensor, y: Tensor, batch_size: int) -> None:
        self.x, self.y, self.n_samples, self.batch_size = x, y, len(x), batch_size
        self._batches = evaluation_batches(x.to(self.device), y.to(self.device), batch_size)
        self.n_batches = len(self._batches)

    def on(self, index: Tensor) -> NetworkObjective:
        """The loss of the mini-batch of the samples with these numbers, (n,)."""
        batch = copy.copy(self)
        batch._set_samples(self.x[index], self.y[index], self.batch_size)
        return batch

    def _logits(self, w: Tensor, x: Tensor) -> Tensor:
        return functional_call(self.model, unflatten(w, self.shapes), (checks.cast(x, w),))

    def _terms(self) -> list[tuple[float, Callable[[Tensor], Tensor]]]:
        return [
            (len(x) / self.n_samples, lambda w, x=x, y=y: F.cross_entropy(self._logits(w, x), y))
            for x, y in self._batches
        ]

    def _graphs(self, of: str, w: Tensor) -> list[tuple[float, _Graph]]:
        if of == "gauss_newton":
            return [
                (len(x) / self.n_samples, partial(_gauss_newton, partial(self._logits, x=x), w))
                for x, _ in self._batches
            ]
        if of not in ("gradients", "covariance"):
            return super()._graphs(of, w)
        self.check_separate(w)

        def of_mean() -> tuple[Tensor, _PartProduct]:
            g = self.grad(w)
            return g, lambda v, more: g * (g @ v)

        def of_samples(x: Tensor, y: Tensor) -> tuple[SampleGradients, _PartProduct]:
            g = self.per_sample(w, x, y)
            return g, lambda v, more: g.combine(g.dot(v) / len(y))

        # The mean first, so that it is among what is kept.
        terms: list[tuple[float, _Graph]] = [(-1.0, of_mean)] if of == "covariance" else []
        return terms + [
            (len(y) / self.n_samples, partial(of_samples, x, y))
            for x, y in self.per_sample.pieces(self.x, self.y, self.batch_size)
        ]

    @cached_property
    def per_sample(self) -> SamplePass:
        """The pass that gives gradients sample by sample."""
        return SamplePass(self.model, self.slices, self.x, self.y)

    def check_separate(self, w: Tensor) -> None:
        """Raises ValueError for a network in which a sample's logits depend on its batch."""
        self.per_sample.check_separate(self.vector(w), self.x)

    def sample_gradients(self, w: Tensor, *, most: int | None = None) -> Iterator[SampleGradients]:
        """The gradients of the losses of the samples at w, in their order, some at a time.

        ``most``: this many; default: a batch, or fewer where they are large. Raises ValueError for
        a network that mixes the samples of a batch.
        """
        w = self.vector(w)
        self.check_separate(w)
        pieces = self.per_sample.pieces(self.x, self.y, most or self.batch_size)
        return (self.per_sample(w, x, y) for x, y in pieces)

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
