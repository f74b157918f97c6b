"""Sharpness: Definition 2 of the lecture, and the measures that others put beside it.

Definition 2 is the (C_ε, A)-sharpness of Keskar et al. (arXiv:1609.04836, §2.2.2)::

    φ_{x,f}(ε, A) = 100 · (max_{z ∈ C_ε} f(x + A z) − f(x)) / (1 + f(x))    (2)
    C_ε = { z ∈ R^p : |z_i| ≤ ε (|(A⁺x)_i| + 1) }                           (3)

The function need not be concave, so a solver gives a lower bound; every result says how it was
found and whether the solver had converged. Four traps are avoided. (i) z = 0 is a stationary point
when x is a minimum, and L-BFGS-B started there returns φ = 0 at once: a search starts at the vertex
that the gradient at a random point of the box points at. (ii) L-BFGS-B stops on absolute tolerances
and takes x⁸ near 0 for flat: the search runs over u ∈ [−1, 1]^p, z = h·u, on f scaled to slopes of
order 1. (iii) A failed line search would lose the best point: the best of all points evaluated is
what is returned. (iv) A rise may drown in the rounding of two losses: every measure finds out how
much that is, and says so in ``stderr``.

The other measures change the set of perturbations. All of :data:`MEASURES` give a
:class:`SharpnessResult`. They raise ValueError for impossible settings, for losses and gradients
that are not finite, and where 1 + f(x), by which φ divides, is not positive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, minimize
from torch import Tensor

from lecture6 import checks
from lecture6.curvature import Estimate
from lecture6.objective import Objective, length, vector

KESKAR_ITERATIONS = 10  # of L-BFGS-B: Keskar et al., §2.2.2
TOLERANCE = 0.01  # of a search: the gap that it leaves, as a fraction of φ
KNOWN = 0.1  # of a φ that has converged the error is below this fraction of it
NEAR = 1e-3  # of the step to a point: so near to it are the points whose losses show its rounding
MEMORY_LIMIT = 2 << 30  # bytes of a random A that is kept
_ROWS = 1 << 15  # rows of A drawn from one seed


@dataclass(frozen=True)
class SharpnessResult:
    """The sharpness φ in per cent, and how far to trust it.

    ``gap`` bounds, to first order, what the search left behind: the largest further rise of the
    linearised loss within the box, in units of φ (the Frank–Wolfe gap); 0 where nothing searches.
    ``stderr`` is the standard error of φ at the point found, by rounding: of both losses, of
    x + A z, of SAM's direction. In :func:`average` that of the draws is in it. ``converged`` means
    that the gap is below the tolerance, a stationary point of the box (another one may be higher
    still), and that φ is known to a tenth: to three standard errors of rounding, and one of draws.
    """

    value: float  #: φ, per cent
    loss: float  #: f(x)
    loss_max: float  #: f(x + A z); of average: the mean over the perturbations
    epsilon: float
    n_evaluations: int  #: of f and its gradient; average: of f (beside a few for stderr)
    converged: bool
    method: str
    message: str
    maximizer: Tensor | None = None  #: (p,) z in the box; the loss is largest at x + A z
    gap: float = 0.0  #: per cent
    stderr: float = 0.0  #: per cent


@dataclass(frozen=True)
class _Matrix:
    """A matrix A (n, p) by its products."""

    p: int
    apply: Callable[[Tensor], Tensor]  # A z, (p,) -> (n,)
    transpose: Callable[[Tensor], Tensor]  # Aᵀ g, (n,) -> (p,)
    pinv: Callable[[Tensor], Tensor]  # A⁺ x, (n,) -> (p,)


def _identity(n: int) -> _Matrix:
    return _Matrix(n, Tensor.detach, Tensor.detach, Tensor.detach)


class RandomSubspace:
    """A (n, p) with independent N(0, 1) entries, as products, drawn row block by row block.

    Keskar et al. do not state the law of A; entries of order 1 are the reading that their Tables 3
    and 4 allow (unit columns would make φ a millionfold smaller). The blocks are kept when the
    matrix fits in 2 GiB and drawn again, the same, at every product when not.
    """

    def __init__(
        self, n: int, p: int, *, seed: int = 0, device: str | torch.device = "cpu"
    ) -> None:
        self.n, self.device = checks.whole("n", n, least=1), device
        self.p = checks.whole("p, the number of columns,", p, least=1, most=self.n)
        self.shape, self.seed = (self.n, self.p), checks.seed(seed)
        fits = 4 * self.n * self.p <= MEMORY_LIMIT
        self._kept = list(map(self._draw, range(0, self.n, _ROWS))) if fits else []
        gram = torch.zeros(self.p, self.p, dtype=torch.float64, device=device)
        for _, a in self.blocks():
            gram += a.T.double() @ a.double()
        self._gram_pinv = torch.linalg.pinv(gram, hermitian=True)

    def _draw(self, start: int) -> Tensor:
        rng = np.random.default_rng([self.seed, start])
        block = rng.standard_normal((min(_ROWS, self.n - start), self.p), dtype=np.float32)
        return torch.from_numpy(block).to(self.device)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Pairs (row slice, block of A in float32), in order."""
        starts = range(0, self.n, _ROWS)
        for start, block in zip(starts, self._kept or map(self._draw, starts), strict=True):
            yield slice(start, start + len(block)), block

    def apply(self, z: Tensor) -> Tensor:
        """A z, (p,) to (n,)."""
        out = z.new_empty(self.n)
        for rows, a in self.blocks():
            out[rows] = a.to(z.dtype) @ z
        return out

    def transpose(self, g: Tensor) -> Tensor:
        """Aᵀ g, (n,) to (p,)."""
        out = g.new_zeros(self.p)
        for rows, a in self.blocks():
            out += a.T.to(g.dtype) @ g[rows]
        return out

    def pinv(self, x: Tensor) -> Tensor:
        """A⁺ x, (n,) to (p,)."""
        return (self._gram_pinv @ self.transpose(x.double())).to(x.dtype)


_Space = _Matrix | RandomSubspace


@dataclass
class _Search:
    """f over the box in units u ∈ [−1, 1]^p; counts evaluations and remembers the best point."""

    objective: Objective
    x: Tensor
    space: _Space
    epsilon: float
    margin: float = 1.0
    n_evaluations: int = 0

    def __post_init__(self) -> None:
        self.epsilon = checks.real("epsilon", self.epsilon, above=0)
        # (3): ε (|(A⁺x)_i| + 1)
        self.half_width = self.epsilon * (self.space.pinv(self.x).abs() + self.margin)
        checks.finite("the box of x", self.half_width, "scale the subspace up, or epsilon down")
        self.base = _base(self.objective.value(self.x))
        self.forget()

    def forget(self) -> None:
        """Start afresh; what is remembered: a rise, the point u, the gap, and ∇f there."""
        self.best = -math.inf, torch.zeros_like(self.half_width), math.inf, self.x

    def stationary(self) -> bool:
        rise, _, gap, _ = self.best
        return rise > 0 and gap <= TOLERANCE * rise

    def result(self, method: str, message: str) -> SharpnessResult:
        rise, u, gap, slope = self.best
        error = _rounding(self.objective, self.x, self.base, self.point(u), rise, slope)
        if rise <= 0:
            message = f"no point evaluated in the box lies above f(x) = {self.base:g}; {message}"
        gap, n = 100 * (gap / (1 + self.base)), self.n_evaluations
        rest: Any = {"epsilon": self.epsilon, "n_evaluations": n, "maximizer": self.half_width * u}
        how = self.stationary(), method, message
        return _result(self.base, max(rise, 0.0), error, *how, gap=gap, **rest)

    def point(self, u: Tensor) -> Tensor:
        return self.x + self.space.apply(self.half_width * u)

    def evaluate(self, u: Tensor) -> tuple[float, Tensor]:
        """The rise above f(x) at u, and its gradient with respect to u."""
        value, slope = self.objective.value_and_grad(self.point(u))
        self.n_evaluations += 1
        rise = _finite(value, "inside the box of x", "; take a smaller epsilon") - self.base
        grad = self.half_width * self.space.transpose(slope)
        checks.finite("the gradient inside the box of x", grad, "is the loss smooth there?")
        if rise > self.best[0]:
            # max over the box of g·(v − u), a sum of what is not negative
            gap = grad.abs().addcmul_(grad, u, value=-1).sum().item()
            self.best = rise, u, gap, slope
        return rise, grad

    def best_of_starts(
        self, method: str, n_starts: int, n_iterations: int, seed: int
    ) -> SharpnessResult:
        """Searches by L-BFGS-B, unless ``method`` is "ascent", then by ascent, unless "lbfgsb"."""
        rng, rises, best = np.random.default_rng(seed), [], (self.best, "")
        for _ in range(n_starts):
            self.forget()
            u, message = torch.from_numpy(rng.uniform(-1.0, 1.0, self.space.p)).to(self.x), ""
            u = self.evaluate(u)[1].sign()  # a vertex, if no slope is 0
            if method != "ascent":
                message = self.lbfgsb(u, n_iterations)
                u = self.best[1]
            if method != "lbfgsb":
                message = self.sign_ascent(u, n_iterations)
            rises.append(self.best[0])
            best = max(best, (self.best, message), key=lambda each: each[0][0])
        self.best, message = best
        if n_starts > 1:
            high = self.best[0] - 0.01 * abs(self.best[0])
            agree = sum(rise >= high for rise in rises)
            message = f"{agree} of {n_starts} starts reach the highest point found; {message}"
        return self.result(method, message)

    def lbfgsb(self, start: Tensor, n_iterations: int) -> str:
        """L-BFGS-B from a vertex: from inside the box its first iteration sorts one breakpoint a
        coordinate, which takes longer than ten passes over the data when p is in the millions.
        """
        first = [self.evaluate(start)]  # SciPy begins there, too
        grad = first[0][1]
        # Slopes of order 1 per coordinate: the first quadratic model then spans the box, and the
        # stopping rules, which are absolute, see a loss of 1e-24 as they see one of order 1.
        scale = max(grad.abs().mean().item(), np.finfo(float).tiny)

        def descend(u: np.ndarray) -> tuple[float, np.ndarray]:
            here = torch.from_numpy(u.copy()).to(self.x)
            rise, grad = first.pop() if first else self.evaluate(here)
            return -rise / scale, (-grad / scale).cpu().double().numpy()

        result = minimize(
            descend,
            start.cpu().double().numpy(),
            jac=True,
            method="L-BFGS-B",
            bounds=Bounds(-1.0, 1.0),
            options={"maxiter": n_iterations, "ftol": 0.0, "gtol": 0.0},
        )
        after = f"stationary after {result.nit} iterations"
        return f"L-BFGS-B: {after if self.stationary() else result.message}"

    def sign_ascent(self, u: Tensor, n_iterations: int) -> str:
        """Projected ascent from ``u`` along sign(gradient); the step halves on failure."""
        rise, grad = self.evaluate(u)
        step = 2.0  # from any point to the vertex that the gradient points at
        n = 0
        while n < n_iterations and not self.stationary():
            trial = (u + step * grad.sign()).clamp_(-1.0, 1.0)
            new_rise, new_grad = self.evaluate(trial)
            if new_rise > rise:
                u, rise, grad = trial, new_rise, new_grad
            else:
                step /= 2
            n += 1
        how = "stationary" if self.stationary() else "not stationary"
        return f"sign ascent: {how} after {n} iterations"


def worst_case(
    objective: Objective,
    x: Tensor,
    *,
    epsilon: float = 1e-3,
    subspace: int | Tensor | RandomSubspace | None = None,
    method: str = "lbfgsb",
    n_iterations: int = KESKAR_ITERATIONS,
    seed: int = 0,
) -> SharpnessResult:
    """The sharpness φ of Definition 2 at ``x`` (n_params,), in per cent: the worst case.

    Arguments:
        epsilon: half-width ε of the box; Keskar et al. use 1e-3 and 5e-4
        subspace: A: None for the identity; an integer p for p random columns
            (:class:`RandomSubspace`; Keskar: p = 100); or a matrix (n_params, p)
        method: "lbfgsb", ``n_iterations`` of L-BFGS-B, Keskar's setting; "ascent", as many of
            projected sign-gradient ascent, which works in float32 and costs nothing beside its
            evaluations; "converged", both in turn, from 4 starts and with at least 100 iterations:
            the message says where they end at different heights
        seed: of the starts, and of the random columns

    L-BFGS-B needs more digits than float32 has near a minimum: give it an objective in float64.
    When no point of the box lies above f(x), ``value`` is 0, ``converged`` is False and ``message``
    says so.
    """
    checks.one_of("method", method, ("lbfgsb", "ascent", "converged"))
    n_iterations = checks.whole("n_iterations", n_iterations, least=1)
    seed, n_starts = checks.seed(seed), 1
    if method == "converged":
        n_starts, n_iterations = 4, max(n_iterations, 100)
    x = vector(objective, x)  # before a subspace is drawn: it names a w that is not finite
    space = _as_space(subspace, objective, seed)
    search = _Search(objective, x, space, epsilon)
    return search.best_of_starts(method, n_starts, n_iterations, seed)


def adaptive(
    objective: Objective, x: Tensor, *, epsilon: float = 1e-3, seed: int = 0
) -> SharpnessResult:
    """Adaptive sharpness: the largest rise where every weight moves by at most a fraction ε of it.

    The box ``|δ_i| ≤ ε |x_i|`` shrinks and stretches with the weights, so a rescaling of the net
    that keeps its function (:func:`lecture6.curvature.rescale`) keeps this sharpness. Kwon et al.
    (ASAM, 2102.11600) with p = ∞; 20 iterations of projected sign ascent, after the evaluation of
    Andriushchenko et al. (2302.07011). A lower bound, like every search.
    """
    x = vector(objective, x)
    search = _Search(objective, x, _identity(len(x)), epsilon, margin=0.0)
    return search.best_of_starts("ascent", 1, 20, checks.seed(seed))


def average(
    objective: Objective, x: Tensor, *, epsilon: float = 1e-2, n_samples: int = 30, seed: int = 0
) -> SharpnessResult:
    """Average-case sharpness: the mean rise under noise N(0, ε²) on every weight, ≈ ½ ε² tr H.

    The quantity that PAC-Bayes bounds contain (Neyshabur et al., 1706.08947). ``value`` is a mean
    over ``n_samples`` pairs of perturbations ±δ, in which the slope at x cancels, negative where
    the loss falls on average. ``stderr`` is that of the draws and of f(x), which all pairs share.
    """
    epsilon = checks.real("epsilon", epsilon, above=0)
    n = checks.whole("n_samples", n_samples, least=2)
    rng, x = np.random.default_rng(checks.seed(seed)), vector(objective, x)
    base, eps = _base(objective.value(x)), torch.finfo(objective.dtype).eps

    def differences(size: float | Tensor, n: int) -> np.ndarray:
        """f(x ± δ) − f(x) of n draws of δ, (n, 2)."""
        steps = (size * torch.from_numpy(rng.standard_normal(len(x))).to(x) for _ in range(n))
        pairs = [[objective.value(x + sign * step) for sign in (1, -1)] for step in steps]
        return np.array([[_finite(value, "near x") - base for value in pair] for pair in pairs])

    each = differences(epsilon, n)
    rises, rise = each.mean(1), float(each.mean())
    near = differences(NEAR * epsilon + 2 * eps * x.abs(), 3).mean(1)  # by rounding of f(x) alone
    steps = 2 * min(np.diff(np.unique(rises)), default=0.0)  # of losses that come in steps
    last_place = max(steps, eps * (abs(base) + np.abs(each).mean() or 1.0))
    error, draws = math.hypot(*near / 3**0.5, last_place), Estimate.mean(rises).stderr
    how = True, "average", f"mean of {n} pairs of perturbations"
    return _result(base, rise, error, *how, draws=draws, epsilon=epsilon, n_evaluations=2 * n)


def sam(
    objective: Objective, x: Tensor, *, epsilon: float = 0.05, seed: int = 0
) -> SharpnessResult:
    """The rise along SAM's step: f(x + ε g/‖g‖) − f(x) with the gradient g at x.

    Foret et al. (2010.01412), whose ρ = 0.05 is the default ε. To first order ε ‖g‖: where g is 0,
    ``value`` is 0, ``converged`` False. Where g is mostly rounding, so is its direction; ``stderr``
    has what the loss changes with it. ``seed`` is not used: nothing is random.
    """
    epsilon, x = checks.real("epsilon", epsilon, above=0), vector(objective, x)
    base, g = objective.value_and_grad(x)
    base = _base(base)
    checks.finite("the gradient at x", g, "SAM steps along it; take another x")
    norm = checks.real("the norm of the gradient at x", length(g))
    step = epsilon * g.double().div(norm or 1.0).to(g)
    top, slope = objective.value_and_grad(x + step)
    rise = _finite(top, "at the end of the step") - base
    error = _rounding(objective, x, base, x + step, rise, slope)
    again = objective.grad(x + torch.finfo(x.dtype).eps * x)  # as good an x as x itself
    turn = min(1.0, length(again - g) / (norm or 1.0))
    error = math.hypot(error, epsilon * turn * length(slope))
    message = f"one step along the gradient, of norm {norm:.3g}"
    if norm == 0:
        message = "the gradient at x is 0: SAM has no direction to step in"
    how = norm > 0, "sam", message
    return _result(base, rise, error, *how, epsilon=epsilon, n_evaluations=2, maximizer=step)


#: The measures that one table compares, by their names.
MEASURES = {"Definition 2": worst_case, "adaptive": adaptive, "average": average, "SAM": sam}


def _rounding(
    objective: Objective, x: Tensor, base: float, y: Tensor, rise: float, slope: Tensor
) -> float:
    """The standard error by rounding of ``rise`` = f(y) − f(x), given the gradient at y.

    By rounding the losses at points next to x differ, and next to y from its tangent. To that come
    half a unit in the last place of each coordinate of y, and one in each loss.
    """
    eps, rng = torch.finfo(y.dtype).eps, np.random.default_rng(0)
    off = []
    for point, back in ((x, 0.0), (y, NEAR), (y, NEAR / 2)):
        last = 2 * eps * torch.from_numpy(rng.standard_normal(len(y))).to(y)
        near = point + back * (x - y) + last * point
        value = _finite(objective.value(near), "next to the point found", "; take another epsilon")
        off.append(value - base - (rise + (slope @ (near - y)).item() if back else 0.0))
    moved = eps / 2 * (slope * y).abs_().sum().item()
    last_place = eps * (max(abs(base), abs(base + rise)) or 1.0)  # a loss of 0 may be of any size
    return math.hypot(1.5 * math.hypot(*off), moved, last_place)  # 1.5, since they are few


def _result(
    base: float,
    rise: float,
    rounding: float,
    found: bool,
    method: str,
    message: str,
    *,
    draws: float = 0.0,
    **rest: Any,
) -> SharpnessResult:
    """φ of a rise above the loss ``base``, with the errors of both; ``found``: no better."""
    scale, error = 1 + base, math.hypot(rounding, draws)
    of_base = abs(rise) / scale  # what an error of 1 + f(x) is in that of the rise
    known = math.hypot(3 * rounding * (1 + of_base), draws) < KNOWN * abs(rise)
    if not known:
        remedy = "more n_samples" if draws > 3 * rounding else "a larger epsilon or float64"
        message += f"; the rise is {rise:.2g} ± {error:.2g}: take {remedy}"
    value = checks.real("the sharpness", 100 * (rise / scale))
    stderr = 100 * (error / scale) * (1 + of_base)
    how: Any = {"converged": found and known, "method": method, "message": message}
    return SharpnessResult(value, base, base + rise, stderr=stderr, **how, **rest)


def _base(loss: float) -> float:
    if 1 + _finite(loss, "at x") <= 0:
        raise ValueError(f"φ divides by 1 + f(x), which must be positive: f(x) is {loss:g}")
    return loss


def _finite(loss: float, where: str, remedy: str = "") -> float:
    if not math.isfinite(loss):
        raise ValueError(f"the loss {where} is {loss}; sharpness needs a finite loss{remedy}")
    return loss


def _as_space(
    subspace: int | Tensor | RandomSubspace | None, objective: Objective, seed: int
) -> _Space:
    n = objective.n_params
    if subspace is None:
        return _identity(n)
    if isinstance(subspace, int | float | np.generic):
        p = checks.whole("subspace", subspace, least=1, most=n)
        return RandomSubspace(n, p, seed=seed, device=objective.device)
    if isinstance(subspace, str):
        raise ValueError(f"subspace must be None, a number or a matrix, got {subspace!r}")
    if not isinstance(subspace, RandomSubspace):
        subspace = torch.as_tensor(subspace, dtype=objective.dtype, device=objective.device)
    shape = tuple(subspace.shape)
    if len(shape) != 2 or shape[0] != n or shape[1] < 1:
        raise ValueError(f"subspace must have shape ({n}, p), got {shape}")
    if isinstance(subspace, RandomSubspace):
        return subspace
    a = checks.finite("subspace", subspace, "give a matrix of finite numbers")
    if not a.any():
        raise ValueError("subspace has no entry but 0: it gives no direction to search along")
    return _Matrix(shape[1], a.mv, a.T.mv, lambda x: torch.linalg.pinv(a) @ x)
