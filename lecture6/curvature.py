"""Curvature of an Objective: eigenvalues, trace, spectral density, log-determinant.

Every measure sees the matrix M (``of``: see :meth:`lecture6.objective.Objective.product`) through
products M v only, and says how far it can be trusted. *Lanczos* builds an orthonormal basis of the
Krylov space span{v, Mv, M²v, …} and the projection T of M on it, whose eigenvalues approach the
extreme ones of M. *Hutchinson* uses that E[vᵀ M v] = tr M for v with independent entries ±1. Where
the matrix is small enough for the budget, both are exact. All raise ValueError for impossible
settings, and where a product is not finite.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, pairwise

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import ndtr, stdtrit
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lecture6 import checks
from lecture6.objective import (
    Graph,
    NetworkObjective,
    Objective,
    PartProduct,
    Product,
    length,
    vector,
)
from lecture6.sample_gradients import SampleGradients

BLOCK = 2  # vectors that Lanczos iterates together
SMALL = 32  # up to so many dimensions Lanczos goes through all of them, and misses no eigenvalue
MOST_COLUMNS = 5000  # of a matrix that is formed: 200 MB in float64


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues with their eigenvectors, largest first, and how far to trust them.

    ``errors`` estimates ``|λ − exact|``: the residual r bounds the distance to the nearest
    eigenvalue, and r²/gap does so more closely when the rest of the spectrum is ``gap`` away
    (Kato–Temple); the rounding of the products is added. ``converged``: every error is below the
    tolerance. No residual shows an eigenvalue that the search has not met: one to which both random
    starts are nearly orthogonal. Of equal ones they find two: where there may be a third it is not
    converged, unless there were n_params products.
    """

    values: np.ndarray  #: (k,)
    vectors: Tensor = field(repr=False)  #: (k, n_params), orthonormal rows
    residuals: np.ndarray  #: (k,) ‖M v − λ v‖
    errors: np.ndarray  #: (k,)
    converged: bool
    n_products: int


@dataclass(frozen=True)
class Estimate:
    """A number estimated from random draws, or exactly, with its standard error."""

    value: float
    stderr: float  #: rounding included, which is all of it where the value is exact
    n_samples: int  #: independent ones

    @classmethod
    def mean(
        cls, samples: ArrayLike, groups: np.ndarray | None = None, *, rounding: float = 0.0
    ) -> Estimate:
        """The mean of ``samples`` (n,), independent ones or groups of them, numbered from 0, (n,).

        A single one is exact. ``rounding``: the standard error that is common to all of them.
        Three of ``stderr`` hold as often as three of a normal law: few draws, and skewed ones, make
        it larger, by Student's t and the skewness in it (Johnson 1978).
        """
        x = np.asarray(samples, dtype=float)
        checks.finite("an estimate", torch.from_numpy(x), "is the loss finite at w, and near it?")
        sums = x - x.mean() if groups is None else np.bincount(groups, x - x.mean())
        n, size, stderr = len(sums), length(sums), 0.0
        if n > 1 and size > 0:
            t = stdtrit(n - 1, ndtr(3))
            bars = t + (1 + 2 * t**2) / 6 * abs(((sums / size) ** 3).sum())
            stderr = size * math.sqrt(n / (n - 1)) / len(x) * bars / 3
        rounding = math.hypot(rounding, np.finfo(float).eps * np.abs(x).mean())
        return cls(float(x.mean()), math.hypot(stderr, rounding), n)


@dataclass(frozen=True)
class SpectralDensity:
    """The eigenvalues of M as a distribution: from each random vector a few weighted nodes.

    They are those of Gauss quadrature for the density (Golub & Welsch): m of them give its first
    2m − 1 moments exactly, in the mean over the random vectors.
    """

    nodes: np.ndarray  #: (vectors, m)
    weights: np.ndarray  #: (vectors, m), each row sums to 1
    n_params: int
    rounding: float = 0.0  #: of a node

    def mean_of(self, function: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        """(1/n) Σ_i function(λ_i) over all n = ``n_params`` eigenvalues.

        The variance of uᵀ A u over random directions u is 2/(n + 2) times that of A's eigenvalues:
        where the draws differ less, by chance, the standard error is from it.
        """
        here, beside = (1.0 * function(at) for at in (self.nodes, self.nodes + self.rounding))
        rounding = float((self.weights * np.abs(beside - here)).sum(1).mean())
        found = Estimate.mean((self.weights * here).sum(1), rounding=rounding)
        if found.n_samples > 1:  # else it is the spectrum itself
            apart = length((np.sqrt(self.weights) * (here - found.value)).ravel())
            error = apart * math.sqrt(2 / (self.n_params + 2)) / found.n_samples
            found = replace(found, stderr=max(found.stderr, error))
        return found

    def density(self, grid: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
        """Density on ``grid`` (g,) under a Gaussian of standard deviation ``width``.

        Returns the mean over the random vectors and its standard error, (g,) each. The density
        integrates to 1: ``n_params`` times it is a number of eigenvalues.
        """
        width = checks.real("width", width, above=0)
        distance = (np.asarray(grid)[:, None, None] - self.nodes) / width  # (g, vectors, m)
        bells = np.exp(-0.5 * distance**2) / (width * math.sqrt(2 * math.pi))
        curves = [Estimate.mean(values) for values in (self.weights * bells).sum(2)]
        return np.array([c.value for c in curves]), np.array([c.stderr for c in curves])


def eigenvalues(
    objective: Objective,
    w: Tensor,
    k: int = 5,
    *,
    end: str = "largest",
    of: str = "hessian",
    tolerance: float = 1e-3,
    max_products: int = 200,
    seed: int = 0,
) -> Eigenpairs:
    """The ``k`` leading eigenvalues of M at ``w`` by Lanczos with full reorthogonalisation.

    Arguments:
        end: "largest", or "smallest": the most negative
        tolerance: of the error of each eigenvalue, relative to it
        max_products: gives up there, with ``converged`` False; one vector of memory for each. They
            come in pairs

    Source: Lanczos (1950); Golub & Underwood (1977).
    """
    checks.one_of("end", end, ("largest", "smallest"))
    w, generator = vector(objective, w), np.random.default_rng(checks.seed(seed))
    n = objective.n_params
    k = checks.whole("k", k, least=1, most=n)
    tolerance = checks.real("tolerance", tolerance, least=0)
    limit = checks.whole("max_products", max_products, least=min(k + k % BLOCK, n))
    # Of half a block the residual would be unknown: what it leaves out is coupled to the rest.
    limit = n if limit >= n else limit - limit % BLOCK
    start = torch.from_numpy(generator.standard_normal((BLOCK, n))).to(w)
    for space in _krylov(objective.product(w, of=of), start, limit, generator):
        basis, t, coupling, unit = space
        size = len(t)
        if size < k:
            continue
        values, vectors = np.linalg.eigh(t)
        residuals = np.linalg.norm(coupling @ vectors[-coupling.shape[1] :], axis=0)
        descending = np.arange(size)[::-1]
        chosen = descending[:k] if end == "largest" else descending[-k:]
        # Neighbours may be as much nearer as they are uncertain; of none, nothing is known.
        apart = np.abs(values - values[chosen, None]) - residuals
        apart[np.arange(k), chosen] = np.inf if size > 1 else 0.0
        r = residuals[chosen]
        errors = r * (r / np.maximum(np.maximum(apart.min(1), r), np.finfo(float).tiny))
        met = errors <= tolerance * np.abs(values[chosen])
        v, e = (x[:: 1 if end == "largest" else -1] for x in (values[chosen], errors))
        equal = np.abs(np.diff(v[:-1])) <= e[:-2] + e[1:-1]  # and another one after them
        repeated = size < n and equal.any()
        # An invariant space (no coupling) may lack copies of repeated eigenvalues: look outside it.
        if size == limit or (met.all() and not repeated and coupling.any() and n > SMALL):
            break
    found = torch.from_numpy(np.ascontiguousarray(vectors[:, chosen].T)).to(basis) @ basis
    floor = torch.finfo(basis.dtype).eps * np.abs(values).max() * unit
    errors = errors * unit + product_rounding(objective, w, of, found.sum(0)) + floor
    leading = values[chosen] * unit
    converged = bool((errors <= tolerance * np.abs(leading)).all() and not repeated)
    return Eigenpairs(leading, found, r * unit, errors, converged, size)


def trace(
    objective: Objective, w: Tensor, *, n_products: int = 30, of: str = "hessian", seed: int = 0
) -> Estimate:
    """tr M at ``w`` from ``n_products`` passes over the data, with its standard error.

    The mean of vᵀ M v over random v with entries ±1 (Hutchinson 1989). Every micro-batch has random
    vectors of its own: the errors of the batches average out, so that smaller batches (the
    ``batch_size`` of :class:`~lecture6.objective.NetworkObjective`) give a smaller error for the
    same work. With n_params passes or more, of at most 5,000, the trace is exact.
    """
    n_products = checks.whole("n_products", n_products, least=2)
    generator = np.random.default_rng(checks.seed(seed))
    w, parts = vector(objective, w), []
    terms = objective.product(w, of=of).parts()
    if objective.n_params <= min(n_products, MOST_COLUMNS):
        parts, terms = [Estimate.mean([np.trace(matrix(objective, w, of=of))])], iter(())
    for weight, part in terms:
        samples = []
        for i in range(n_products):
            v = random_signs(generator, w)
            image = part(v, i + 1 < n_products)
            samples.append(weight * (v.double() @ image.double()).item())
        del part
        parts.append(Estimate.mean(samples))
    rounding = product_rounding(objective, w, of, random_signs(generator, w))
    value, stderr = sum(p.value for p in parts), math.hypot(*(p.stderr for p in parts), rounding)
    return Estimate(value, stderr, sum(p.n_samples for p in parts))


def product_rounding(objective: Objective, w: Tensor, of: str, v: Tensor) -> float:
    """How far rounding moves M v, in norm, found on a few of the samples.

    As far as a change of the last digits of w does, for which what is computed is exact at best
    (Higham 2002, §1.5). It is worse where probabilities near 1 are subtracted from 1: what float64
    makes of the same w and v shows that of float32. Of samples that are all alike the covariance is
    0 for other w too, but not for gradients that are rounded.
    """
    f = objective.few()
    w, eps = vector(f, w), torch.finfo(f.dtype).eps
    moved = w + eps * w * random_signs(np.random.default_rng(1), w)
    here, there = (f.product(point, of=of)(v) for point in (w, moved))
    exact, own = objective.few(exact=True).product(w, of=of)(v), 0.0
    if isinstance(f, NetworkObjective) and of == "covariance":
        own = eps**2 * next(f.sample_gradients(w)).squared_norms().mean().item() * length(v)
    return length(there - here) + length(exact - here) + eps * length(here) + own


def random_signs(generator: np.random.Generator, like: Tensor) -> Tensor:
    """A vector of independent ±1, of the shape (n,), dtype and device of ``like``."""
    drawn = 2 * generator.integers(0, 2, len(like), dtype=np.int8) - 1
    return torch.from_numpy(drawn).to(like)


def spectral_density(
    objective: Objective,
    w: Tensor,
    *,
    n_vectors: int = 10,
    n_steps: int = 50,
    of: str = "hessian",
    seed: int = 0,
) -> SpectralDensity:
    """The density of M's eigenvalues at ``w`` by stochastic Lanczos quadrature.

    ``n_steps`` of Lanczos from each of ``n_vectors`` random vectors (Ubaru, Chen & Saad 2017;
    Ghorbani et al., 1901.10159). With n_vectors · n_steps ≥ n_params the eigenvalues are computed
    themselves: one row of nodes, weights 1/n_params.
    """
    n_vectors = checks.whole("n_vectors", n_vectors, least=2)
    n_steps = checks.whole("n_steps", n_steps, least=1)
    w, generator = vector(objective, w), np.random.default_rng(checks.seed(seed))
    n = objective.n_params
    product, rows = objective.product(w, of=of), []
    small = n <= min(n_vectors * n_steps, MOST_COLUMNS)
    if small:
        rows = [(np.linalg.eigvalsh(matrix(objective, w, of=of)), np.full(n, 1 / n))]
    for _ in range(0 if small else n_vectors):
        start = torch.from_numpy(generator.standard_normal((1, n))).to(w)
        *_, (_, t, _, unit) = _krylov(product, start, min(n_steps, n), generator)
        nodes, vectors = np.linalg.eigh(t)
        rows.append((nodes * unit, vectors[0] ** 2))
    nodes, weights = map(np.stack, zip(*rows, strict=True))
    unit_vector = random_signs(generator, w) / math.sqrt(n)
    eps = torch.finfo(objective.dtype).eps
    rounding = product_rounding(objective, w, of, unit_vector) + eps * float(np.abs(nodes).max())
    return SpectralDensity(nodes, weights, n, rounding)


def log_determinant(density: SpectralDensity, delta: float) -> Estimate:
    """log det(M + δ I) from the spectral density: n times the mean of log(λ + δ).

    Raises ValueError when M + δ I is not positive definite, with the δ that would make it so.
    """
    delta = checks.real("delta", delta)
    lowest = density.nodes.min() - density.rounding
    if not lowest + delta > 0:
        raise ValueError(
            f"M + δI is not positive definite: an eigenvalue may lie at {lowest:.3g} or below, and "
            f"delta is {delta:g}; take delta above {max(-lowest, 0.0):.3g}"
        )
    return density.mean_of(lambda nodes: density.n_params * np.log(nodes + delta))


class Restriction(Objective):
    """The loss as a function of some of the parameters, the others held at ``w``.

    ``indices``: a slice or an index tensor of the flat vector; for a layer, one of the objective's
    ``slices``; ``trainable`` for what is not frozen. Its Hessian is the diagonal block of M.
    """

    def __init__(self, objective: Objective, w: Tensor, indices: slice | Tensor) -> None:
        self.objective, self.indices = objective, indices
        self.full = vector(objective, w).clone()
        self.w = self.full[indices].clone()  # (n_params,) of the part
        self.n_params = len(self.w)
        self.dtype, self.device = objective.dtype, objective.device
        named = torch.arange(objective.n_params, device=self.device)[indices].unique()
        if not 0 < self.n_params == len(named):
            raise ValueError(f"the indices must name parameters, each of them once: got {indices}")

    def few(self, *, exact: bool = False) -> Restriction:
        return Restriction(self.objective.few(exact=exact), self.full, self.indices)

    def _embedded(self, part: Tensor, full: Tensor) -> Tensor:
        full = full.clone()
        full[..., self.indices] = part
        return full

    def check_derivatives(self, order: int) -> None:
        self.objective.check_derivatives(order)

    def _terms(self) -> list[tuple[float, Callable[[Tensor], Tensor]]]:
        return [(weight, partial(self._moved, term)) for weight, term in self.objective._terms()]

    def _moved(self, term: Callable[[Tensor], Tensor], part: Tensor) -> Tensor:
        return term(self._embedded(part, self.full))

    def _graphs(self, of: str, w: Tensor) -> list[tuple[float, Graph]]:
        zeros = torch.zeros_like(self.full)

        def restricted(graph: Graph) -> tuple[Tensor | SampleGradients, PartProduct]:
            root, part = graph()
            return root, lambda v, more: part(self._embedded(v, zeros), more)[self.indices]

        graphs = self.objective._graphs(of, self._embedded(w, self.full))
        return [(weight, partial(restricted, graph)) for weight, graph in graphs]


def matrix(objective: Objective, w: Tensor, *, of: str = "hessian") -> np.ndarray:
    """M itself at ``w``, (n_params, n_params), column by column: for small problems.

    Raises ValueError above 5,000 parameters (200 MB in float64).
    """
    w, n = vector(objective, w), objective.n_params
    if n > MOST_COLUMNS:
        raise ValueError(f"a matrix of {n}² numbers is too large: take a Restriction, or products")
    product, parts = objective.product(w, of=of), torch.eye(n, dtype=objective.dtype).split(64)
    full = np.concatenate([product(part).double().cpu().numpy() for part in parts])
    return full / 2 + full.T / 2


def rescale(model: nn.Sequential, alpha: float) -> nn.Sequential:
    """A copy of a bias-free ReLU net with its first two layers scaled by α and 1/α.

    The function is unchanged, since ReLU(α z) = α ReLU(z), and the Hessian becomes D H D with
    D = diag(1/α, α) on the two layers and 1 elsewhere (Dinh et al., 1703.04933). Raises ValueError
    for α not positive, and for a net without two layers or with biases or anything but Flatten,
    Linear and ReLU.
    """
    alpha = checks.real("alpha", alpha, above=0)
    odd = [type(m).__name__ for m in model if not isinstance(m, nn.Flatten | nn.Linear | nn.ReLU)]
    if odd or any(m.bias is not None for m in model if isinstance(m, nn.Linear)):
        raise ValueError(
            "rescaling keeps the function of bias-free ReLU nets only; this one has "
            f"{', '.join(odd) or 'biases'}: build it with lecture6.models.mlp(bias=False)"
        )
    scaled = copy.deepcopy(model)
    layers = [m for m in scaled if isinstance(m, nn.Linear)]
    if len(layers) < 2:
        raise ValueError(f"rescaling needs two layers with weights, this net has {len(layers)}")
    with torch.no_grad():
        layers[0].weight.mul_(alpha)
        layers[1].weight.div_(alpha)
    return scaled


def equal_layer_norms(model: nn.Module) -> nn.Module:
    """A copy of a net with batch norm, each layer before one with the weight norm √(output units).

    Batch norm makes (z − m)/√(v + ε) of a layer's output z with mean m and variance v. A factor s
    on the layer's weight and bias, and on running statistics, makes s z, s m and s² v of them, and
    cancels with s² ε for ε: the function is unchanged. What depends on the length of w, as the box
    (3) does, is then compared between nets at equal lengths (Li et al., 1712.09913, §3).

    Raises ValueError unless every batch norm stands directly after a Linear or Conv2d of its own in
    an ``nn.Sequential``, as in :mod:`lecture6.models`, with a weight that is not 0.
    """
    scaled = copy.deepcopy(model)
    orders = [pairwise(m) for m in scaled.modules() if type(m) is nn.Sequential]
    pairs = [
        (layer, norm)
        for layer, norm in chain(*orders)
        if isinstance(layer, nn.Linear | nn.Conv2d) and isinstance(norm, _BatchNorm)
    ]
    norms = {m for m in scaled.modules() if isinstance(m, _BatchNorm)}
    uses = Counter(id(p) for _, p in scaled.named_parameters(remove_duplicate=False))
    plain = all(type(a) in (nn.Linear, nn.Conv2d) and uses[id(a.weight)] == 1 for a, _ in pairs)
    if not (plain and 0 < len(pairs) == len(norms)):
        raise ValueError(
            "layer norms can be made equal where every batch norm stands directly after a plain "
            "Linear or Conv2d, used once, in an nn.Sequential: build the net so, or compare nets "
            "without batch norm as they are"
        )
    for layer, norm in pairs:
        length = layer.weight.double().norm().item()
        if not 0 < length < math.inf:
            raise ValueError(f"the weight of {layer} has the norm {length:g}, not a length to set")
        s = math.sqrt(len(layer.weight)) / length
        with torch.no_grad():
            for part in (layer.weight, layer.bias, norm.running_mean, norm.running_var):
                if part is not None:
                    part.mul_(s * s if part is norm.running_var else s)
        norm.eps *= s * s
    return scaled


def _krylov(
    product: Product, start: Tensor, size: int, generator: np.random.Generator
) -> Iterator[tuple[Tensor, np.ndarray, np.ndarray, float]]:
    """Orthonormal basis of the Krylov space of ``start`` (b, n), a block longer at every step.

    Yields the basis Q (m, n), T = Q M Qᵀ (m, m) in float64, and the coupling C (b', b): the part
    of M Qᵀ outside of Q has norm ‖C y‖ for the combination of the last b rows with weights y. T and
    C are in units of the number that comes last.
    """
    block, n = torch.linalg.qr(start.T).Q.T, start.shape[1]
    basis = start.new_empty(size, n)
    t, unit, largest = np.zeros((size, size)), 0.0, 0.0
    for m in range(0, size, len(start)):
        block = block[: size - m]
        end = m + len(block)
        basis[m:end] = block
        known = basis[:end]
        image = product(block)
        if unit == 0:  # a power of 2 next to M: in units of it no norm over- or underflows
            unit = math.ldexp(1.0, max(-1022, math.frexp(image.abs().max().item())[1] - 1))
        image = image / unit
        largest = max(largest, image.norm(dim=1).max().item())
        first = image @ known.T
        image = image - first @ known
        again = image @ known.T  # twice is enough (Kahan, Parlett)
        image = image - again @ known
        inner = (first + again).double().cpu().numpy()
        t[m:end, :end] = inner
        t[:end, m:end] = inner.T
        t[m:end, m:end] = (inner[:, m:] + inner[:, m:].T) / 2
        q, r = torch.linalg.qr(image.T)
        u, s, v = torch.linalg.svd(r)  # a direction that is lost to rounding then spoils no other
        block, coupling = (q @ u).T, (s[:, None] * v).double().cpu().numpy()
        lost = s.cpu().numpy() <= 10 * torch.finfo(start.dtype).eps * largest
        if lost.any():
            # The space is invariant under M: go on from directions outside it, not from rounding.
            coupling[lost] = 0.0
            for i in np.flatnonzero(lost):
                v = torch.from_numpy(generator.standard_normal(n)).to(start)
                others = torch.cat([known, block[:i]])  # what is lost comes last
                for _ in range(2):
                    v = v - others.T @ (others @ v)
                block[i] = v / v.norm()
        # A short row has as much of the known ones as rounding of the longest: once more.
        block = torch.linalg.qr((block - block @ known.T @ known).T).Q.T
        yield known, t[:end, :end], coupling if end < n else np.zeros_like(coupling), unit
