"""A loss seen as a function of one flat parameter vector: what every measure works on.

A 1-D toy, a quadratic and a network on images are all Objectives, so that a measure is written
once and tested where its value is known in closed form.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, cached_property, partial, reduce
from itertools import zip_longest

import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg.blas import dnrm2  # never over- or underflows on the way
from torch import Tensor, nn

from lecture6 import checks
from lecture6.evaluation import EVALUATION_BATCH, Batches, evaluate, evaluation_batches
from lecture6.models import flat_parameters
from lecture6.sample_gradients import (
    TRIED,
    FlatNetwork,
    SampleGradients,
    SamplePass,
    twice_differentiable,
)

MEMORY_LIMIT = 1 << 28  # bytes of graphs kept between products with one Hessian
PIECE = 1 << 24  # numbers in the gradients outside of linear layers that are made at once

NO_SINGLE = (
    "the network gives no gradients of single samples. Usual causes: it mixes the samples of a "
    'batch, as batch norm by batch statistics does: build the model with batch_norm="running" or '
    "without; or torch.func.vmap does not take it, as it takes no recurrent layers"
)

NO_DERIVATIVE = (
    "torch's derivative of order {} is not that of the loss. Usual causes in a model: activation "
    "checkpointing (take a smaller batch_size), detach, no_grad, a straight-through estimator, an "
    "autograd.Function of another derivative, or one or a layer that has none (once_differentiable)"
)

PartProduct = Callable[[Tensor, bool], Tensor]  # see Product
#: Makes what the products with one term need, the last tensor of a graph or gradients, and them.
Graph = Callable[[], tuple[Tensor | SampleGradients, PartProduct]]


class NonDeterministicError(RuntimeError):
    """Two evaluations of the same loss at the same point differ."""


def length(v: Tensor | np.ndarray) -> float:
    """The Euclidean norm ‖v‖ of a vector (n,) of any scale."""
    return float(dnrm2(np.asarray(v.cpu() if isinstance(v, Tensor) else v, dtype=float)))


class Product:
    """v ↦ M v for the curvature matrix M = Σ_b weight_b · M_b of an objective at one point.

    Called with v of shape (n_params,), or with a block (k, n_params) of k vectors. ``parts`` yields
    the terms one by one: weight_b, and (v, more) ↦ M_b v for one vector v, with more = False at the
    last one, after which the part's memory is given back. Raises ValueError where M v is not
    finite.
    """

    def __init__(
        self, like: Tensor, parts: Callable[[], Iterator[tuple[float, PartProduct]]]
    ) -> None:
        self._like = like  # (n_params,): dtype and device of what comes back
        self.parts = parts

    def __call__(self, v: Tensor) -> Tensor:
        v = torch.as_tensor(v, dtype=self._like.dtype, device=self._like.device).detach()
        n = len(self._like)
        if v.dim() not in (1, 2) or v.shape[-1] != n:
            raise ValueError(f"expected vectors of shape ({n},) or (k, {n}), got {tuple(v.shape)}")
        rows = checks.finite("the vectors", v.reshape(-1, n), "a product with them is not")
        out = torch.zeros_like(rows)
        for weight, part in self.parts():
            for j, row in enumerate(rows):
                out[j].add_(part(row, j + 1 < len(rows)), alpha=weight)
            del part  # or it would live on while the next one is made
        checks.finite("a product with the matrix", out, "is the loss finite at w, and near it?")
        return out.view(v.shape)


class Objective(ABC):
    """A deterministic loss f(w) = Σ_b weight_b · f_b(w) of a vector w of shape (n_params,).

    The b of the sum are the batches of a network's data, of which one is in memory at a time; any
    other function is one term. Vectors given may be of any floating dtype and device; they are
    converted to ``dtype`` and ``device``, and results come back in these.
    """

    n_params: int
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def _terms(self) -> list[tuple[float, Callable[[Tensor], Tensor]]]:
        """The weights and the f_b."""

    def _graphs(self, of: str, w: Tensor) -> list[tuple[float, Graph]]:
        """A weight and a graph for each term of the matrix at w."""
        if of == "hessian":
            return [(weight, partial(_hessian, term, w)) for weight, term in self._terms()]
        raise ValueError(
            f"of must be 'hessian' (or, for networks, 'gauss_newton' or 'covariance'), got {of!r}"
        )

    def few(self, *, exact: bool = False) -> Objective:
        """The loss on a few of the samples, where it has samples: to see what rounding does.

        ``exact``: in float64, unless the network, its loss or the device knows float32 only.
        """
        return self

    def check_derivatives(self, order: int) -> None:
        """Raises ValueError where the derivatives up to ``order``, 1 or 2, are not those of f."""
        return  # a function's are taken as they come

    def value(self, w: Tensor) -> float:
        """f(w)."""
        w = vector(self, w)
        with torch.no_grad():
            return sum(weight * term(w).item() for weight, term in self._terms())

    def grad(self, w: Tensor) -> Tensor:
        """∇f(w), (n_params,)."""
        return self.value_and_grad(w)[1]

    def value_and_grad(self, w: Tensor) -> tuple[float, Tensor]:
        """f(w) and ∇f(w) from one forward and one backward pass."""
        w = vector(self, w)
        self.check_derivatives(1)
        with torch.inference_mode(False), torch.enable_grad():
            x, total, out = w.clone().requires_grad_(), 0.0, torch.zeros_like(w)
            for weight, term in self._terms():
                value = term(x)
                total += weight * value.item()
                out.add_(torch.autograd.grad(value, x)[0], alpha=weight)
        return total, out

    def hvp(self, w: Tensor, v: Tensor) -> Tensor:
        """The Hessian of f at w times v, (n_params,); for many v, see :meth:`product`."""
        return self.product(w, memory_limit=0)(vector(self, v))

    def product(
        self, w: Tensor, *, of: str = "hessian", memory_limit: int = MEMORY_LIMIT
    ) -> Product:
        """v ↦ M v for the curvature matrix M of f at w: the derivative of ∇f along v.

        Arguments:
            of:
                - "hessian", and for networks
                - "gauss_newton": Jᵀ ∇²ℓ(z) J with J = ∂z/∂w the Jacobian of the outputs,
                  positive semidefinite where ℓ is convex in them (Schraudolph 2002)
                - "covariance": (1/n) Σ_i g_i g_iᵀ − ∇f ∇fᵀ of the gradients g_i of the n samples

            memory_limit: bytes. What does not depend on v is computed once and kept up to this
                limit; the samples beyond it are passed through the network at every call.
        """
        w = vector(self, w)
        self.check_derivatives(1 if of == "covariance" else 2)
        terms = self._graphs(of, w)
        kept = _kept([graph for _, graph in terms], memory_limit)

        def parts() -> Iterator[tuple[float, PartProduct]]:
            for (weight, graph), part in zip_longest(terms, kept):
                yield weight, part or graph()[1]

        return Product(w, parts)


def vector(objective: Objective, w: Tensor) -> Tensor:
    """``w`` in the dtype and on the device of an objective, which every measure asks for first.

    Raises ValueError for what is no objective, and as :func:`lecture6.checks.weights`.
    """
    checks.instance(Objective, objective, "an objective, such as NetworkObjective(net, x, y)")
    return checks.weights(w, objective.n_params, dtype=objective.dtype, device=objective.device)


def _kept(graphs: list[Graph], memory_limit: int) -> list[PartProduct]:
    """The products with the first terms, as many as fit, which keep their memory."""
    kept: list[PartProduct] = []
    while len(kept) < len(graphs) and memory_limit > 0:
        root, part = graphs[len(kept)]()
        memory_limit -= root.nbytes if isinstance(root, SampleGradients) else _graph_bytes(root)
        if memory_limit >= 0:
            kept.append(lambda v, more, part=part: part(v, True))  # type: ignore[misc]
    return kept


def _hessian(term: Callable[[Tensor], Tensor], w: Tensor) -> tuple[Tensor, PartProduct]:
    with twice_differentiable():
        x = w.clone().requires_grad_()
        g = _slope(term(x), x)

    def product(v: Tensor, more: bool) -> Tensor:
        return torch.autograd.grad(g, x, v, retain_graph=more)[0]

    return g, product


def _slope(value: Tensor, x: Tensor) -> Tensor:
    """∂value/∂x with its graph."""
    (g,) = torch.autograd.grad(value, x, create_graph=True)
    return g + 0.0 * x  # where value is linear, g does not depend on x


def _gauss_newton(
    outputs: Callable[[Tensor], Tensor], loss: checks.Loss, y: Tensor, w: Tensor
) -> tuple[Tensor, PartProduct]:
    with twice_differentiable():
        x = w.clone().requires_grad_()
        z = outputs(x)
        u = torch.zeros_like(z, requires_grad=True)
        (g,) = torch.autograd.grad(z, x, u, create_graph=True)  # Jᵀu: linear in u
        out = z.detach().requires_grad_()
        slope = _slope(loss(out, y), out)

    def product(v: Tensor, more: bool) -> Tensor:
        (jv,) = torch.autograd.grad(g, u, v, retain_graph=more)
        (curved,) = torch.autograd.grad(slope, out, jv, retain_graph=more)
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


class FunctionObjective(Objective):
    """A scalar torch function of a vector as an Objective, in float64: the toys.

    Example: ``FunctionObjective(lambda w: 100 * w[0] ** 2, n_params=1)``, Figure 6a.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], n_params: int) -> None:
        self.function, self.n_params = function, n_params
        self.dtype, self.device = torch.float64, torch.device("cpu")

    def _terms(self) -> list[tuple[float, Callable[[Tensor], Tensor]]]:
        return [(1.0, self.function)]


class NetworkObjective(FlatNetwork, Objective):
    """The mean loss of a network on a fixed set of samples, as a function of its weights.

    w is made of all real floating parameters in the model's order, tied ones once, frozen ones too
    (without them: :class:`lecture6.curvature.Restriction` to ``trainable``).

    Arguments:
        model: any module that makes logits (n, classes); a copy in eval mode is used (no
            dropout, no hooks on parameters) and the original not touched
        x, y: samples (n, ...) and integer labels (n,), see :func:`lecture6.checks.samples`
        loss: default: the mean cross-entropy. Or ``loss(outputs, y)``, the mean over samples of
            the losses of each, one number: then outputs are a tensor (n, ...), and y (n, ...) is
            whatever the loss takes. So ``torch.nn.functional.mse_loss`` and
            ``lambda z, y: F.cross_entropy(z.transpose(1, 2), y)`` for tokens (n, T) will do
        batch_size: samples in memory at a time. The set is cut into nearly equal batches, each
            weighted by its exact share, so that the cut does not change the value. With batch
            norm by batch statistics (the default of :mod:`lecture6.models`) it does: then the cut
            is part of the definition, and every point w is normalised by its own activations.
        dtype: default: the model's; ``torch.float64`` for line searches and oracles

    Raises ValueError for samples that the network does not fit, for weights that are not finite
    and for a loss that is no mean over samples, :class:`NonDeterministicError` when two evaluations
    at the same weights differ.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        loss: checks.Loss | None = None,
        batch_size: int = EVALUATION_BATCH,
        dtype: torch.dtype | None = None,
    ) -> None:
        x, y = checks.samples(x, y, classes=loss is None)
        first = next(iter(checks.parameters(model).values()))
        self.dtype, self.device = dtype or first.dtype, first.device
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {self.dtype}")
        with torch.inference_mode(False):
            super().__init__(checks.as_dtype(_copied(model), self.dtype).eval())
        self._right: set[int] = set()  # the orders of derivatives that were checked
        checks.fits(self.model, x, y, classes=loss is None)
        self.loss, self.classes = loss or F.cross_entropy, loss is None
        #: (n_params,) the model's own weights
        self.w = checks.finite("the model", flat_parameters(self.model), "training diverged")
        self.n_params = len(self.w)
        named = checks.parameters(self.model).values()
        free = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in named])
        #: the numbers of the parameters in w that are not frozen
        self.trainable = free.nonzero()[:, 0]
        self.batch_size = checks.whole("batch_size", batch_size, least=1)
        self._set_samples(x, y)
        x, y = self._batches[0]
        with torch.no_grad():
            try:
                self.logits(self.w, self._batches[-1][0])  # the smallest
            except ValueError as error:  # of batch norm, for one sample
                k = len(self._batches[-1][1])
                raise ValueError(f"no batch of {k} will do, change batch_size: {error}") from error
            once, again = self.logits(self.w, x), self.logits(self.w, x)
        close = 1e-10 if self.dtype == torch.float64 else 1e-5  # a GPU's order of summation
        if not torch.allclose(once, again, rtol=close, atol=close, equal_nan=True):
            raise NonDeterministicError(
                "two evaluations of the network at the same weights differ by up to "
                f"{(once - again).abs().max().item():.2g}, although it is in eval mode. Usual "
                "causes: dropout applied by a function with training=True, batch norm that goes on "
                "updating running statistics, random augmentation inside the model. Remove the "
                "randomness, or fix its seed inside the forward pass."
            )
        if loss is not None:
            checks.mean_over_samples(loss, once, y)

    def _set_samples(self, x: Tensor, y: Tensor) -> None:
        with torch.inference_mode(False):  # what was made in it can enter no graph
            x, y = (t.clone() if t.is_inference() else t for t in (x, checks.cast(y, self.w)))
        self.x, self.y, self.n_samples = x, y, len(x)
        self._batches = evaluation_batches(x.to(self.device), y, self.batch_size)

    def few(self, *, exact: bool = False) -> NetworkObjective:
        few = self.on(torch.linspace(0, self.n_samples - 1, min(TRIED, self.n_samples)).long())
        if exact and self.dtype != torch.float64:
            data, loss = (self.model, few.x, few.y), None if self.classes else self.loss
            with suppress(RuntimeError, TypeError, ValueError):
                found = NetworkObjective(
                    *data, loss=loss, batch_size=self.batch_size, dtype=torch.float64
                )
                found._right = {1, 2}  # or it would be checked on these samples itself
                found.grad(found.w)
                return found
        return few

    def check_derivatives(self, order: int) -> None:
        """Raises ValueError where the derivatives up to ``order``, 1 or 2, are not those of f.

        They are compared once, in a copy in float64, on a few of the samples and at other weights
        than its own, with differences of the loss and of the gradient.
        """
        if order in self._right:
            return
        if order > 1:
            self.check_derivatives(order - 1)
        few, message = self.few(exact=True), NO_DERIVATIVE.format(order)
        few = few.on(torch.arange(min(4, few.n_samples)))
        few._right = {1, 2}
        try:
            # Two of three: a difference may have come across a kink, or agree by chance.
            first, second = (_is_derivative(few, order, seed) for seed in range(2))
            right = first if first == second else _is_derivative(few, order, 2)
        except RuntimeError as error:
            raise ValueError(f"{message}: {error}") from error
        if not right:
            raise ValueError(message)
        self._right.add(order)

    def on(self, index: Tensor) -> NetworkObjective:
        """The loss of the mini-batch of the samples with these numbers, (n,)."""
        if len(index) == 0:
            raise ValueError("a mini-batch needs one sample at least, got none")
        batch = copy.copy(self)
        batch._set_samples(self.x[index], self.y[index])
        return batch

    def _loss(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.logits(w, x), y)

    def _terms(self) -> list[tuple[float, Callable[[Tensor], Tensor]]]:
        n = self.n_samples
        return [(len(y) / n, partial(self._loss, x=x, y=y)) for x, y in self._batches]

    def _graphs(self, of: str, w: Tensor) -> list[tuple[float, Graph]]:
        n = self.n_samples
        if of == "gauss_newton":
            passes = [(y, partial(self.logits, x=x)) for x, y in self._batches]
            return [(len(y) / n, partial(_gauss_newton, z, self.loss, y, w)) for y, z in passes]
        if of != "covariance":
            return super()._graphs(of, w)

        pieces = self._pieces(w, self.batch_size)
        central = self.central_gradient(w)

        @cache
        def mean() -> Tensor:
            parts = (self.per_sample(w, x, y).minus(central).sum() for x, y in pieces)
            return reduce(torch.add, parts) / n

        def of_mean() -> tuple[Tensor, PartProduct]:
            return mean(), lambda v, more: mean() * (mean() @ v)

        def of_samples(x: Tensor, y: Tensor) -> tuple[SampleGradients, PartProduct]:
            d = self.per_sample(w, x, y).minus(central)
            return d, lambda v, more: d.combine(d.dot(v) / len(y))

        # The mean first, so that it is among what is kept.
        terms: list[tuple[float, Graph]] = [(-1.0, of_mean)]
        return terms + [(len(y) / n, partial(of_samples, x, y)) for x, y in pieces]

    @cached_property
    def per_sample(self) -> SamplePass:
        """The pass that gives gradients sample by sample; ValueError where there is none."""
        try:
            with torch.inference_mode(False):
                return SamplePass(self.model, self.x, self.y, self.loss)
        except (RuntimeError, ValueError) as error:  # ValueError: of batch norm, for one sample
            raise ValueError(f"{NO_SINGLE}: {error}") from error

    def check_separate(self, w: Tensor) -> None:
        """Raises ValueError unless the gradients of single samples have that of all as their mean.

        Outputs do not show it: those of a last layer of zeros do not depend on the batch.
        """
        some = torch.arange(min(TRIED, self.n_samples))
        g = self.on(some).grad(w)
        checks.finite("the gradient at w", g, "w is too large for the samples, or no smooth point")
        if not self.per_sample(vector(self, w), self.x[some], self.y[some]).has_mean(g):
            raise ValueError(NO_SINGLE)

    def _pieces(self, w: Tensor, most: int) -> Batches:
        """The samples, ``most`` at a time, or fewer where their gradients are large."""
        self.check_separate(w)
        size = max(1, min(most, PIECE // max(1, self.per_sample.loose)))
        return list(zip(self.x.split(size), self.y.split(size), strict=True))

    def central_gradient(self, w: Tensor) -> SampleGradients:
        """The gradient of one sample, of a few the one nearest to their mean.

        A covariance is computed of the differences from it: gradients may be nearly equal, and what
        is squared is to be small where the covariance is.
        """
        few = self.few()
        g = next(few.sample_gradients(w))
        squares = g.squared_norms()
        i = int((squares - 2 * g.dot(g.sum() / len(squares))).argmin())
        return self.per_sample(w, few.x[i : i + 1], few.y[i : i + 1])

    def sample_gradients(self, w: Tensor, *, most: int | None = None) -> Iterator[SampleGradients]:
        """The gradients of the losses of the samples at w, in their order, ``most`` at a time.

        Default: a batch; fewer where they are large. Raises ValueError as :meth:`check_separate`.
        """
        w = vector(self, w)
        most = self.batch_size if most is None else checks.whole("most", most, least=1)
        return (self.per_sample(w, x, y) for x, y in self._pieces(w, most))

    def evaluate(self, w: Tensor) -> tuple[float, float]:
        """Mean loss and accuracy (fraction) at w, from one pass; with a loss of one's own NaN."""
        if not self.classes:
            return self.value(w), math.nan
        return evaluate(partial(self.logits, vector(self, w)), self._batches)


def _copied(model: nn.Module) -> nn.Module:
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("torch.jit's modules have no parameters apart: give the module before it")
    parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    try:
        return copy.deepcopy(next(model.children()) if parallel else model)
    except RuntimeError as error:
        what = "the model cannot be copied; take weight_norm of nn.utils.parametrizations"
        raise ValueError(f"{what}: {error}") from error


def _is_derivative(f: NetworkObjective, order: int, seed: int) -> bool:
    """Whether ∇f·v is the slope of f along a random v, or the Hessian times v that of ∇f."""
    rng, scale = torch.Generator().manual_seed(seed), f.w.abs()
    scale += scale.mean() or 1.0
    x, v = (scale * torch.randn(f.n_params, generator=rng).to(scale) for _ in range(2))
    h, most = (1e-8, 1e-3) if f.dtype == torch.float64 else (1e-3, 0.1)
    w = f.w + 0.1 * x
    (up, g_up), (down, g_down) = (Objective.value_and_grad(f, w + t * v) for t in (h, -h))
    found, there, size = (g_up + g_down) @ v / 2, v.new_tensor(up - down), max(abs(up), abs(down))
    if order > 1:
        found, there, size = f.hvp(w, v), g_up - g_down, length(g_up)
    there, noise = there / (2 * h), 100 * torch.finfo(f.dtype).eps * size / h
    # what is not finite is said elsewhere
    return not length(found - there) > most * max(length(found), length(there)) + noise
