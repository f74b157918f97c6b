"""Where SGD comes to rest, in closed form or by quadrature: what simulations are tested against.

In mean-loss units a step is w ← w − η (∇ℓ(w) + ξ/√B), where C is the covariance of the noise ξ of
one sample's gradient. It is the Euler–Maruyama step, dt = η, of ::

    dw = −∇ℓ dt + √(η/B) C^½ dW

If C = σ² I, the density of w at rest is exp(−ℓ/T)/Z with T = η σ²/(2B): equation (25), where ℓ is
the mean loss (with the sum of equation (6) in its place, T is N times as large). "Continuous" below
means this SDE; "discrete" means the steps themselves, of which the SDE is the limit η → 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from lecture6.noise_scale import check_batch, covariance_factor
from lecture6.objective import FunctionObjective

Function = Callable[[np.ndarray], ArrayLike]
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(8)  # of one cell, [−1, 1]
TOLERANCE = 1e-4  # of the logarithm of an integral, between n_cells and half as many


# Quadratics: the covariance at rest


def _spectrum(matrix: ArrayLike, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of a symmetric positive definite matrix."""
    h = np.atleast_2d(np.asarray(matrix, dtype=float))
    if h.ndim != 2 or not np.isfinite(h).all() or h.shape != h.T.shape or not np.allclose(h, h.T):
        raise ValueError(f"{name} must be a finite symmetric matrix, got {h.tolist()}")
    values, vectors = np.linalg.eigh(h)
    if not values[0] > len(h) * np.finfo(float).eps * abs(values[-1]):
        raise ValueError(
            f"{name} must be positive definite, its smallest eigenvalue is {values[0]:.3g}: along "
            "its eigenvector the loss does not hold w; leave that direction out"
        )
    return values, vectors


def _check_stable(
    largest: float, lr: float, batch_size: float, momentum: float, discrete: bool
) -> None:
    if not (lr > 0 and batch_size > 0 and 0 <= momentum < 1):
        raise ValueError(
            f"needs lr > 0, batch_size > 0 and 0 ≤ momentum < 1: got {lr = }, {batch_size = }, "
            f"{momentum = }"
        )
    limit = 2 * (1 + momentum)
    if discrete and lr * largest >= limit:
        raise ValueError(
            f"no stationary law: lr · h_max = {lr * largest:.4g} reaches 2(1 + momentum) = "
            f"{limit:g}; lower lr = {lr:g} below {limit / largest:.4g}"
        )


def ou_covariance(
    h: ArrayLike,
    c: ArrayLike,
    lr: float,
    batch_size: float,
    *,
    momentum: float = 0.0,
    discrete: bool = True,
) -> np.ndarray:
    """Stationary covariance S, (d, d), of SGD on ½ wᵀHw with additive noise of covariance C/B.

    Arguments:
        h, c: H, symmetric positive definite, and C, symmetric: (d, d), or numbers for d = 1
        momentum: m of the heavy ball v ← m v + g, w ← w − η v
        discrete: the exact S = (I − ηH) S (I − ηH) + η² C/B of the steps, or that of the SDE,
            HS + SH = (η/B) C/(1 − m)

    In the eigenbasis of H, with e_i = η h_i, it is ::

        S_ij = (1 − m²) (η²/B) C_ij / ((1 − m)² ((1 + m)(e_i + e_j) − e_i e_j) + m (e_i − e_j)²)

    which solves the Lyapunov equation of (w_t, w_(t−1)), and whose limit e → 0 is the SDE's. For m
    near 1 an S_ij with h_i ≠ h_j is close to it only at rates far below those that S_ii needs.
    Raises ValueError where there is no stationary law: for an H that is not positive definite, and
    in discrete time for η h_max ≥ 2(1 + m).
    """
    values, q = _spectrum(h, "h")
    _check_stable(values[-1], lr, batch_size, momentum, discrete)
    c = np.atleast_2d(np.asarray(c, dtype=float))
    if c.shape != q.shape or not np.allclose(c, c.T):
        raise ValueError(f"c must be symmetric and of the shape of h, {q.shape}: got {c.tolist()}")
    noise, e = lr**2 / batch_size * (q.T @ c @ q), lr * values
    total = e[:, None] + e
    if not discrete:
        return q @ (noise / ((1 - momentum) * total)) @ q.T
    below = (1 - momentum) ** 2 * ((1 + momentum) * total - np.outer(e, e))
    below += momentum * (e[:, None] - e) ** 2
    return q @ ((1 - momentum**2) * noise / below) @ q.T


def excess_loss(
    eigenvalues: ArrayLike,
    lr: float,
    batch_size: float,
    *,
    variances: ArrayLike | None = None,
    momentum: float = 0.0,
    discrete: bool = True,
) -> float:
    """E[ℓ − ℓ_min] = ½ tr(HS) at rest on a quadratic, S being that of :func:`ou_covariance`.

    Arguments:
        eigenvalues: h_i of H, (d,), positive
        variances: C_ii in the eigenbasis of H: (d,), or σ² of isotropic noise; default: the
            eigenvalues, which is C = H (Jastrzębski et al., 1711.04623v3)

    Continuous: (η/4B) Σ C_ii/(1 − m), so η tr H/(4B) for C = H, and dT/2, equipartition, for
    C = σ² I. Discrete, without momentum: (η/2B) Σ C_ii/(2 − η h_i). Raises ValueError where there
    is no stationary law.
    """
    h = np.atleast_1d(np.asarray(eigenvalues, dtype=float))
    if h.ndim != 1 or not (h > 0).all():
        raise ValueError(f"needs positive eigenvalues (d,), got {h.tolist()}")
    _check_stable(h.max(), lr, batch_size, momentum, discrete)
    c = h if variances is None else np.broadcast_to(np.asarray(variances, dtype=float), h.shape)
    shrink = (1 - momentum) * (2 - discrete * lr * h / (1 + momentum))
    return float(0.5 * lr / batch_size * (c / shrink).sum())


@dataclass(frozen=True)
class RegressionCovariance:
    """SGD at rest on a linear regression, with what the additive approximation would need."""

    covariance: np.ndarray  #: (d, d) of w about the minimiser, which is its mean
    spectral_radius: float  #: of the map S ↦ E[(I − ηH_b) S (I − ηH_b)]: below 1
    minimiser: np.ndarray  #: (d,)
    hessian: np.ndarray  #: (d, d)
    noise: np.ndarray  #: (d, d): covariance of the samples' gradients at the minimiser, C


def linear_regression_covariance(
    x: ArrayLike, y: ArrayLike, lr: float, batch_size: int, *, replacement: bool
) -> RegressionCovariance:
    """Exact stationary covariance of SGD on (1/N) Σ ½ (x_i·w − y_i)², ``x`` (N, d), ``y`` (N,).

    The noise depends on w: a batch has its own Hessian H_b. With κ = 1/B, or (N − B)/(B(N − 1))
    without ``replacement`` (batches independent of each other), S solves the linear system ::

        S = (I − ηH) S (I − ηH) + η² κ (E[H_i S H_i] − H S H + C)

    of d² equations; its spectral radius below 1 is mean-square stability, and raises ValueError
    otherwise. Where the residuals are 0, so are C and S.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ValueError(f"needs x (N, d) and y (N,), got {x.shape} and {y.shape}")
    n, d = x.shape
    sampling = "with_replacement" if replacement else "without_replacement"
    kappa = covariance_factor(n, batch_size, sampling=sampling)
    h = x.T @ x / n
    _check_stable(_spectrum(h, "the Hessian xᵀx/N")[0][-1], lr, batch_size, 0.0, True)
    minimiser = np.linalg.lstsq(x, y, rcond=None)[0]
    gradients = x * (x @ minimiser - y)[:, None]
    c = gradients.T @ gradients / n
    squares = (x[:, :, None] * x[:, None, :]).reshape(n, d * d)  # x_i ⊗ x_i: H_i ⊗ H_i = its square
    shrink = np.eye(d) - lr * h
    step = np.kron(shrink, shrink) + lr**2 * kappa * (squares.T @ squares / n - np.kron(h, h))
    radius = float(np.abs(np.linalg.eigvalsh(step)).max())
    if radius >= 1:
        raise ValueError(
            f"no stationary covariance: the mean square of w grows {radius:.6g}-fold a step at "
            f"lr = {lr:g} and batch_size = {batch_size}; lower lr or raise batch_size"
        )
    s = np.linalg.solve(np.eye(d * d) - step, lr**2 * kappa * c.ravel()).reshape(d, d)
    return RegressionCovariance((s + s.T) / 2, radius, minimiser, h, c)


# Epochs and stability


def epoch_end_variance(
    lr_h: float, n_train: int, batch_size: int, *, sampling: str, variance: float = 1.0
) -> float:
    """Stationary variance of w at the end of an epoch of SGD on the losses ½ h (w − c_i)².

    Arguments:
        lr_h: η h, between 0 and 2
        variance: of the c_i, (1/N) Σ (c_i − c̄)²

    K = N/B steps give w ← a^K w + η h Σ_k p_k c̄_k with a = 1 − η h and p_k = a^(K−1−k), where c̄_k
    is the mean of batch k. Independent batches leave Var(c̄) η h/(2 − η h). Those of an epoch have
    Cov(c̄_j, c̄_k) = variance (K δ_jk − 1)/(N − 1), whose sum sees only how the p_k differ:
    variance · K/(N − 1) · Σ (p_k − p̄)²/Σ p_k² · η h/(2 − η h).

    Raises ValueError for an unstable rate and for B that does not divide N.
    """
    check_batch(n_train, batch_size, sampling)
    if not 0 < lr_h < 2 or n_train % batch_size:
        raise ValueError(
            "needs 0 < lr_h < 2 and a batch_size that divides n_train: got "
            f"lr_h = {lr_h}, batch_size = {batch_size}, n_train = {n_train}"
        )
    each = covariance_factor(n_train, batch_size, sampling=sampling)
    if sampling == "epoch":
        k = n_train // batch_size
        p = (1 - lr_h) ** np.arange(k)
        each = k / (n_train - 1) * float(((p - p.mean()) ** 2).sum() / (p**2).sum())
    return variance * each * lr_h / (2 - lr_h)


def smallest_stable_batch(
    lr: float, curvature: float, spread: float, n_train: int, *, replacement: bool = False
) -> int:
    """The smallest batch at which E[w²] does not grow for losses ½ h_i w² (Wu, Ma & E 2018).

    ``curvature`` a and ``spread`` s are the mean and the standard deviation (dividing by N) of the
    h_i: (1 − η a)² + η² s² (N − B)/(B (N − 1)) ≤ 1; with replacement the second term is
    η² s²/B. Raises ValueError where no batch is stable.
    """
    room = lr * curvature * (2 - lr * curvature)  # 1 − (1 − ηa)²
    noise = (lr * spread) ** 2
    if not (lr > 0 and n_train >= 2 and spread >= 0 and room >= 0 and curvature >= 0):
        raise ValueError(
            "needs lr > 0, n_train ≥ 2, spread ≥ 0 and 0 ≤ lr · curvature ≤ 2 (beyond it no batch "
            f"is stable): got {lr = }, {n_train = }, {spread = }, {curvature = }"
        )
    if noise == 0:
        return 1
    if replacement and room == 0:
        raise ValueError(
            f"at lr · curvature = {lr * curvature:g} no batch is stable with replacement: lower lr"
        )
    least = noise / room if replacement else n_train * noise / (noise + room * (n_train - 1))
    return max(1, math.ceil(least * (1 - 1e-12)))  # a batch on the edge counts as stable


# Any loss of one or two parameters: the density at rest, by quadrature


def temperature(lr: float, batch_size: float, sigma: float, *, momentum: float = 0.0) -> float:
    """T = η σ²/(2B (1 − m)) of noise with covariance σ² I: equation (25) is exp(−ℓ/T)/Z."""
    _check_stable(0.0, lr, batch_size, momentum, discrete=False)
    return lr * sigma**2 / (2 * batch_size * (1 - momentum))


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"needs a positive temperature, got {temperature}")


def _vectorised(loss: Function | FunctionObjective, d: int) -> Function:
    """The loss as a function of arrays (..., d), with values (...)."""
    is_toy = isinstance(loss, FunctionObjective)
    if is_toy and loss.n_params != d:
        raise ValueError(f"expected a loss of {d} parameters, got one of {loss.n_params}")

    def values(w: np.ndarray) -> np.ndarray:
        rows = w.reshape(-1, d)
        out = torch.vmap(loss.function)(torch.from_numpy(rows)) if is_toy else loss(rows)
        out = np.asarray(out, dtype=float)
        if out.size != len(rows) or not np.isfinite(out).all():
            raise ValueError(
                f"the loss of points {rows.shape} must be {len(rows)} finite numbers, got shape "
                f"{out.shape} with {np.count_nonzero(~np.isfinite(out))} that are not finite"
            )
        return out.reshape(w.shape[:-1])

    return values


def _nodes(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights of Gauss–Legendre between each ``low`` and ``high``: both (..., 8)."""
    half = (high - low)[..., None] / 2
    return low[..., None] + half * (1 + NODES), np.abs(half) * NODE_WEIGHTS


def _log_integral(log_f: Function, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """log |∫ f| between each ``low`` and ``high``, for f as large or small as it may be."""
    points, weights = _nodes(low, high)
    return logsumexp(log_f(points[..., None]), b=weights, axis=-1)


def _check_converged(what: str, n_cells: int, fine: float, coarse: float) -> None:
    if not abs(fine - coarse) < TOLERANCE:
        raise ValueError(
            f"the quadrature of {what} has not converged: its logarithm is {coarse:.8g} with "
            f"{n_cells // 2} cells and {fine:.8g} with {n_cells}; raise n_cells or narrow the box"
        )


def _check_cells(n_cells: int) -> None:
    if n_cells < 2:
        raise ValueError(f"needs n_cells ≥ 2, got {n_cells}")


class Gibbs:
    """The density exp(−ℓ(w)/T)/Z in a box of one or two dimensions: equation (25) for SGD.

    Outside the box it is 0, as with reflecting walls: take a box so wide that this does not matter.

    Arguments:
        loss: a toy of :mod:`lecture6.toys`, or a function of arrays (n, d) with values (n,)
        low, high: corners of the box: (d,), or numbers for d = 1
        n_cells: on each side of the box, with 8 Gauss–Legendre points each; default 1000, or 64 in
            two dimensions

    ``points`` (n, d) have the probabilities ``weights`` (n,) and the losses ``losses`` (n,);
    ``log_partition`` is log Z. Raises ValueError for other dimensions, a temperature that is not
    positive, a loss that is not finite, and cells too wide for the wells.
    """

    def __init__(
        self,
        loss: Function | FunctionObjective,
        temperature: float,
        low: ArrayLike,
        high: ArrayLike,
        *,
        n_cells: int | None = None,
    ) -> None:
        _check_temperature(temperature)
        self.low, self.high = (np.atleast_1d(np.asarray(a, dtype=float)) for a in (low, high))
        d = len(self.low)
        if d not in (1, 2) or self.high.shape != (d,) or not (self.low < self.high).all():
            raise ValueError(
                "needs a box of 1 or 2 dimensions with low < high, got "
                f"{self.low.tolist()} and {self.high.tolist()}"
            )
        self.temperature, self._loss = temperature, _vectorised(loss, d)
        n = (1000 if d == 1 else 64) if n_cells is None else n_cells
        _check_cells(n)
        _, _, coarse = self._quadrature(n // 2)
        self.points, self.losses, log_mass = self._quadrature(n)
        self.log_partition = float(logsumexp(log_mass))
        _check_converged("Z", n, self.log_partition, float(logsumexp(coarse)))
        self.weights = np.exp(log_mass - self.log_partition)
        self.weights /= self.weights.sum()  # log Z is rounded, by much where ℓ/T is large
        if d == 1:
            self._edges = np.linspace(self.low[0], self.high[0], n + 1)
            self._below = np.append(0.0, self.weights.reshape(n, -1).sum(1).cumsum())

    def _quadrature(self, n_cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points (n, d), their losses, and the logarithms of what they contribute to Z."""
        edges = np.linspace(self.low, self.high, n_cells + 1).T
        points, weights = (
            np.stack(np.meshgrid(*a.reshape(len(a), -1), indexing="ij"), -1).reshape(-1, len(a))
            for a in _nodes(edges[:, :-1], edges[:, 1:])
        )
        losses = self._loss(points)
        return points, losses, np.log(weights).sum(1) - losses / self.temperature

    def pdf(self, w: ArrayLike) -> np.ndarray:
        """The density at ``w`` (n, d), or (n,) for d = 1: shape (n,)."""
        w = np.asarray(w, dtype=float).reshape(-1, len(self.low))
        inside = ((w >= self.low) & (w <= self.high)).all(1)
        out = np.zeros(len(w))
        out[inside] = np.exp(-self._loss(w[inside]) / self.temperature - self.log_partition)
        return out

    def cdf(self, w: ArrayLike) -> np.ndarray:
        """P(below w), to rounding, in one dimension: ``w`` (n,) or (n, 1), result (n,)."""
        if len(self.low) != 1:
            raise ValueError("cdf is for one dimension; use probability(region)")
        w = np.clip(np.asarray(w, dtype=float).reshape(-1), self.low, self.high)
        cell = np.clip(np.searchsorted(self._edges, w, side="right") - 1, 0, len(self._edges) - 2)
        part = _log_integral(lambda z: -self._loss(z) / self.temperature, self._edges[cell], w)
        return self._below[cell] + np.exp(part - self.log_partition)

    def probability(self, region: Callable[[np.ndarray], ArrayLike]) -> float:
        """P(region), given as a function of points (n, d) with truth values (n,).

        A point is in or out with its weight: where the density at the region's border is not small,
        the error is that density times the distance between points.
        """
        return float(self.weights[np.reshape(region(self.points), -1)].sum())

    @property
    def mean(self) -> np.ndarray:
        """E[w], (d,)."""
        return self.weights @ self.points

    @property
    def covariance(self) -> np.ndarray:
        """Cov(w), (d, d)."""
        centred = self.points - self.mean
        return (self.weights * centred.T) @ centred

    @property
    def expected_loss(self) -> float:
        """E[ℓ(w)]: about ℓ_min + dT/2 in a single well at a low temperature."""
        return float(self.weights @ self.losses)


def multiplicative_density(
    gradient: Function,
    diffusion: Function,
    low: float,
    high: float,
    *,
    n_cells: int = 1000,
) -> Gibbs:
    """The stationary density p ∝ (1/D) exp(−∫ ℓ'/D) of dw = −ℓ'(w) dt + √(2 D(w)) dW, 1-D.

    The equation is Itô's, which is what SGD approaches as η → 0, since its noise is drawn at the w
    that the step starts from; for SGD D = η σ²(w)/(2B). (Stratonovich's equation has 1/√D in place
    of 1/D.) p need not peak where ℓ is least: w stays where D is small.

    ``gradient`` ℓ' and ``diffusion`` D > 0 are functions of arrays, elementwise. The result is that
    of :class:`Gibbs` between reflecting walls at ``low`` and ``high``; its "loss" is
    log D + ∫ ℓ'/D, at temperature 1. Raises ValueError as Gibbs does, and for D ≤ 0.
    """
    _check_cells(n_cells)
    if not low < high:
        raise ValueError(f"needs low < high, got {low} and {high}")

    def positive_diffusion(w: np.ndarray) -> np.ndarray:
        d = np.broadcast_to(np.asarray(diffusion(w), dtype=float), w.shape)
        if not (d > 0).all():
            raise ValueError(f"needs D > 0 between low and high, got {d.min():.3g}")
        return d

    def integral(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # of ℓ'/D, each a ≤ b
        points, weights = _nodes(a, b)
        return (weights * np.asarray(gradient(points)) / positive_diffusion(points)).sum(-1)

    edges = np.linspace(low, high, n_cells + 1)
    up_to = np.append(0.0, integral(edges[:-1], edges[1:]).cumsum())
    coarse = np.linspace(low, high, n_cells // 2 + 1)
    total = integral(coarse[:-1], coarse[1:]).sum()
    _check_converged("exp(∫ ℓ'/D)", n_cells, float(up_to[-1]), float(total))

    def potential(w: np.ndarray) -> np.ndarray:
        z = w[:, 0]
        cell = np.clip(np.searchsorted(edges, z, side="right") - 1, 0, n_cells - 1)
        return np.log(positive_diffusion(z)) + up_to[cell] + integral(edges[cell], z)

    return Gibbs(potential, 1.0, low, high, n_cells=n_cells)


# Wells: how much of the density each holds, and how long w stays


def laplace(
    losses: ArrayLike,
    hessians: Sequence[ArrayLike],
    temperature: float,
    *,
    as_printed: bool = False,
) -> np.ndarray:
    """Probabilities of the wells, (n_wells,), by Laplace's method: equation (26), corrected.

    P(A) ∝ exp(−ℓ_A/T)/√det H_A with T = η σ²/(2B): what the Gibbs density gives as T → 0.

    Arguments:
        losses: ℓ_A at each minimum (mean losses)
        hessians: H_A, (d, d) each, or numbers for d = 1
        as_printed: with the lecture's exponent, −ℓ_A/((η/B) σ²), which has lost a factor 2

    Raises ValueError for a Hessian that is not positive definite: with a zero eigenvalue (26) is
    infinite.
    """
    _check_temperature(temperature)
    levels = np.asarray(losses, dtype=float)
    if levels.shape != (len(hessians),):
        raise ValueError(
            f"needs the loss and the Hessian of each well, got losses {levels.shape} and "
            f"{len(hessians)} Hessians"
        )
    spectra = [_spectrum(h, f"the Hessian of well {a}")[0] for a, h in enumerate(hessians)]
    log_det = np.array([np.log(values).sum() for values in spectra])
    exponent = -levels / temperature / (2 if as_printed else 1) - log_det / 2
    return np.exp(exponent - logsumexp(exponent))


def _time(log_time: float) -> float:
    if log_time > math.log(np.finfo(float).max):
        raise ValueError(f"the time is e^{log_time:.0f}, too long for a float: raise temperature")
    return math.exp(log_time)


def escape_time(
    loss: Function | FunctionObjective,
    temperature: float,
    start: float,
    end: float,
    *,
    wall: float,
    n_cells: int = 1000,
) -> float:
    """Exact mean time until w, from ``start``, first reaches ``end``: dw = −ℓ' dt + √(2T) dW, 1-D.

    For start < end, and mirrored for start > end, it is ::

        (1/T) ∫_start^end e^(ℓ(y)/T) ∫_wall^y e^(−ℓ(z)/T) dz dy

    ``wall`` reflects; it lies on the other side of the start, far enough up the loss not to matter.
    Time is η times the number of steps. ``loss`` as for :class:`Gibbs`, of one parameter;
    ``n_cells`` between wall and start, and as many between start and end. Raises ValueError for
    points in another order, and where the quadrature is too coarse.
    """
    _check_temperature(temperature)
    _check_cells(n_cells)
    if not (wall <= start < end or wall >= start > end):
        raise ValueError(
            f"start must lie between wall and end: got {wall = }, {start = }, {end = }"
        )
    values = _vectorised(loss, 1)

    def log_density(w: np.ndarray) -> np.ndarray:
        return -values(w) / temperature

    def log_time(n: int) -> float:
        inside, path = np.linspace(wall, start, n + 1), np.linspace(start, end, n + 1)
        edges = np.append(inside, path[1:])
        mass = np.logaddexp.accumulate(_log_integral(log_density, edges[:-1], edges[1:]))
        y, weights = _nodes(path[:-1], path[1:])
        low = np.broadcast_to(path[:-1, None], y.shape)
        behind = np.logaddexp(mass[n - 1 : -1, None], _log_integral(log_density, low, y))
        return float(logsumexp(behind - log_density(y[..., None]), b=weights))

    fine = log_time(n_cells)
    _check_converged("the escape time", n_cells, fine, log_time(n_cells // 2))
    return _time(fine - math.log(temperature))


def kramers_time(
    curvature_well: float, curvature_saddle: float, barrier: float, temperature: float
) -> float:
    """Kramers' mean time from a minimum a over the saddle b: ``2π/√(ℓ''(a)|ℓ''(b)|) e^(Δℓ/T)``.

    To the next well: the limit T → 0 of :func:`escape_time` to a point well beyond the saddle. (To
    the saddle itself it takes half as long: from there w falls back every other time.) The error of
    the ratio is of order T/Δℓ, so both barriers of the saddle must be high. The rate is 1/time.

    Arguments: ℓ''(a) > 0, ℓ''(b) < 0, and the barrier Δℓ = ℓ(b) − ℓ(a) > 0.
    """
    _check_temperature(temperature)
    if not (curvature_well > 0 > curvature_saddle and barrier > 0):
        raise ValueError(
            "needs curvature_well > 0, curvature_saddle < 0 and barrier > 0, got "
            f"{curvature_well}, {curvature_saddle} and {barrier}"
        )
    prefactor = 2 * math.pi / math.sqrt(-curvature_well * curvature_saddle)
    return _time(math.log(prefactor) + barrier / temperature)


def occupation(t: ArrayLike, rate_ab: float, rate_ba: float) -> np.ndarray:
    """P(in well A at time ``t``) when w starts in A and hops at the rates of A → B and B → A.

    It relaxes as e^(−(rate_ab + rate_ba) t) to rate_ba/(rate_ab + rate_ba), the share of A in the
    Gibbs density when the rates are those of :func:`kramers_time` (1/time).
    """
    total = rate_ab + rate_ba
    if not (rate_ab >= 0 and rate_ba >= 0 and total > 0):
        raise ValueError(f"needs rates ≥ 0, not both 0: got {rate_ab} and {rate_ba}")
    return (rate_ba + rate_ab * np.exp(-total * np.asarray(t, dtype=float))) / total
