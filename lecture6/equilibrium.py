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
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from lecture6 import checks
from lecture6.noise_scale import check_batch, covariance_factor

Function = Callable[[np.ndarray], ArrayLike]
Values = Callable[[np.ndarray], np.ndarray]
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(8)  # of one cell, [−1, 1]
CELLS = 1000  # of a way in one dimension
TOLERANCE = 1e-4  # of the logarithm of an integral, between so many cells and half as many


# Quadratics: the covariance at rest


def _spectrum(matrix: ArrayLike, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of a symmetric positive definite matrix."""
    h = np.atleast_2d(checks.array(name, matrix))
    if h.ndim != 2 or h.shape != h.T.shape or not np.allclose(h, h.T, atol=1e-8 * np.ptp(h)):
        raise ValueError(f"{name} must be a symmetric matrix, got {h.tolist()}")
    values, vectors = np.linalg.eigh(h)
    if not values[0] > len(h) * np.finfo(float).eps * abs(values[-1]):
        raise ValueError(
            f"{name} must be positive definite, its smallest eigenvalue is {values[0]:.3g}: along "
            "its eigenvector the loss does not hold w; leave that direction out"
        )
    return values, vectors


def _check_stable(largest: float, lr: float, momentum: float = 0.0) -> None:
    limit = 2 * (1 + momentum)
    if lr * largest >= limit:
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
        h, c: H, symmetric positive definite, and C, positive semidefinite: (d, d); or numbers
        momentum: m of the heavy ball v ← m v + g, w ← w − η v
        discrete: the exact S = (I − ηH) S (I − ηH) + η² C/B of the steps, or that of the SDE,
            HS + SH = (η/B) C/(1 − m)

    In the eigenbasis of H, with e_i = η h_i, it is ::

        S_ij = (1 − m²) (η²/B) C_ij / ((1 − m)² ((1 + m)(e_i + e_j) − e_i e_j) + m (e_i − e_j)²)

    which solves the Lyapunov equation of (w_t, w_(t−1)), and whose limit e → 0 is the SDE's.
    Raises ValueError where there is no stationary law: for an H that is not positive definite, and
    in discrete time for η h_max ≥ 2(1 + m).
    """
    values, q = _spectrum(h, "h")
    lr, batch_size = checks.real("lr", lr, above=0), checks.real("batch_size", batch_size, above=0)
    momentum = checks.real("momentum", momentum, least=0, below=1)
    if checks.flag("discrete", discrete):
        _check_stable(values[-1], lr, momentum)
    c = np.atleast_2d(checks.array("c", c))
    if c.shape != q.shape or not np.allclose(c, c.T, atol=1e-8 * np.ptp(c)):
        raise ValueError(f"c must be symmetric and of the shape of h, {q.shape}: got {c.tolist()}")
    if (lowest := np.linalg.eigvalsh(c)[0]) < -1e-8 * np.abs(c).max():
        raise ValueError(f"c must be positive semidefinite, its smallest eigenvalue is {lowest:g}")
    noise, h = lr / batch_size * (q.T @ c @ q) / (1 - momentum), values[:, None]
    if not discrete:
        return q @ (noise / (h + values)) @ q.T
    # The formula over η (1 − m)², and no difference of large numbers in it
    room, apart = 1 + momentum - lr * values / 2, (h - values) / (1 - momentum)
    below = h * room + values * room[:, None] + momentum * lr * apart * apart
    return q @ ((1 + momentum) * noise / below) @ q.T


@dataclass(frozen=True)
class RegressionCovariance:
    """Of SGD at rest on a linear regression, with what the additive approximation would need."""

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

    of d² equations. Raises ValueError unless its spectral radius is below 1: else w is unstable.
    """
    x, y = checks.array("x", x), checks.array("y", y)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ValueError(f"needs x (N, d) and y (N,), got {x.shape} and {y.shape}")
    n, d = x.shape
    lr = checks.real("lr", lr, above=0)
    drawn = checks.flag("replacement", replacement)
    sampling = "with_replacement" if drawn else "without_replacement"
    kappa = covariance_factor(n, batch_size, sampling=sampling)
    h = x.T @ x / n
    _check_stable(_spectrum(h, "the Hessian xᵀx/N")[0][-1], lr)
    minimiser = np.linalg.lstsq(x, y, rcond=None)[0]
    gradients = x * (x @ minimiser - y)[:, None]
    c = gradients.T @ gradients / n
    squares = (x[:, :, None] * x[:, None, :]).reshape(n, d * d)  # x_i ⊗ x_i: H_i ⊗ H_i = its square
    # The map is 1 − η·decay; written so, small ηh keep their digits
    decay = np.kron(h, np.eye(d)) + np.kron(np.eye(d), h)
    decay -= lr * ((1 - kappa) * np.kron(h, h) + kappa * (squares.T @ squares / n))
    rates = lr * np.linalg.eigvalsh(decay)
    radius = float(np.abs(1 - rates).max())
    if rates[0] <= 0 or rates[-1] >= 2:
        raise ValueError(
            f"no stationary covariance: the mean square of w grows {radius:.6g}-fold a step at "
            f"lr = {lr:g} and batch_size = {batch_size}; lower lr or raise batch_size"
        )
    s = np.linalg.solve(decay, lr * kappa * c.ravel()).reshape(d, d)
    return RegressionCovariance((s + s.T) / 2, radius, minimiser, h, c)


# Epochs


def epoch_end_variance(lr_h: float, n_train: int, batch_size: int, *, sampling: str) -> float:
    """Stationary variance of w at the end of an epoch of SGD on the losses ½ h (w − c_i)².

    In units of that of the c_i, (1/N) Σ (c_i − c̄)²; ``lr_h`` is η h, between 0 and 2. K = N/B
    steps give w ← a^K w + η h Σ_k p_k c̄_k with a = 1 − η h, p_k = a^(K−1−k) and the means c̄_k of
    the batches. Independent ones leave Var(c̄) η h/(2 − η h). Those of an epoch have Cov(c̄_j, c̄_k) =
    (K δ_jk − 1)/(N − 1), whose sum sees only how the p_k differ: it leaves
    K/(N − 1) · Σ (p_k − p̄)²/Σ p_k² · η h/(2 − η h).

    Raises ValueError for an unstable rate and for B that does not divide N.
    """
    lr_h = checks.real("lr_h", lr_h, above=0, below=2)
    n_train, batch_size = check_batch(n_train, batch_size, sampling)
    if n_train % batch_size:
        raise ValueError(f"batch_size must divide n_train, got {batch_size = } and {n_train = }")
    each = covariance_factor(n_train, batch_size, sampling=sampling)
    if sampling == "epoch":
        steps = np.arange(k := n_train // batch_size)
        # p − 1, whose differences are exact where those of p drown
        less = np.expm1(steps * np.log1p(-lr_h)) if lr_h < 1 else (1 - lr_h) ** steps - 1
        spread = ((less - less.mean()) ** 2).sum() / ((1 + less) ** 2).sum()
        each = k / (n_train - 1) * float(spread)
    return each * lr_h / (2 - lr_h)


# Any loss of one parameter: the density at rest, by quadrature


def temperature(lr: float, batch_size: float, sigma: float) -> float:
    """T = η σ²/(2B) of noise with covariance σ² I; with momentum m it is 1/(1 − m) times that."""
    lr, batch_size = checks.real("lr", lr, above=0), checks.real("batch_size", batch_size, above=0)
    sigma = checks.real("sigma", sigma, least=0)
    return checks.real("the temperature", lr * sigma / (2 * batch_size) * sigma)


def _log_density(loss: Function, temperature: float) -> Values:
    """−loss/temperature, elementwise; ``loss`` is a function of points (n, 1)."""

    def values(w: np.ndarray) -> np.ndarray:
        out = np.asarray(loss(w.reshape(-1, 1)), dtype=float)
        if out.size != w.size or not np.isfinite(out).all():
            raise ValueError(
                f"the loss of points {(w.size, 1)} must be {w.size} finite numbers, got shape "
                f"{out.shape} with {np.count_nonzero(~np.isfinite(out))} that are not finite"
            )
        return -out.reshape(w.shape) / temperature

    return values


def _nodes(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights of Gauss–Legendre between each ``low`` and ``high``: both (..., 8)."""
    half = (high - low)[..., None] / 2
    return low[..., None] + half * (1 + NODES), np.abs(half) * NODE_WEIGHTS


def _log_integral(log_f: Values, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """log |∫ f| between each ``low`` and ``high``, for f as large or small as it may be."""
    points, weights = _nodes(low, high)
    return logsumexp(log_f(points), b=weights, axis=-1)


def _check_converged(what: str, fine: float, coarse: float, remedy: str) -> None:
    if np.spacing(abs(fine)) > TOLERANCE:
        raise ValueError(f"ℓ/T drowns in its rounding in {what}: subtract a constant from the loss")
    if not abs(fine - coarse) < TOLERANCE:
        raise ValueError(
            f"the quadrature of {what} has not converged: its logarithm is {coarse:.8g}, and "
            f"{fine:.8g} with twice as many cells; {remedy}"
        )


class Gibbs:
    """The density exp(−ℓ(w)/T)/Z of one parameter between two walls: equation (25) for SGD.

    Outside it is 0: set ``low`` and ``high`` so far apart that this does not matter. ``loss`` is a
    function of points (n, 1), with n values: :meth:`lecture6.toys.TwoWells.losses`, say. Raises
    ValueError for a loss that is not finite, and where the wells are too narrow for the quadrature.
    """

    def __init__(self, loss: Function, temperature: float, low: float, high: float) -> None:
        temperature = checks.real("temperature", temperature, above=0)
        self.low = checks.real("low", low)
        self.high = checks.real("high", high, above=self.low)
        self._log_density = _log_density(loss, temperature)
        self._edges = edges = np.linspace(self.low, self.high, CELLS + 1)
        masses = _log_integral(self._log_density, edges[:-1], edges[1:])
        coarse = _log_integral(self._log_density, edges[:-1:2], edges[2::2])
        self.log_partition = float(logsumexp(masses))  #: log Z
        _check_converged("Z", self.log_partition, float(logsumexp(coarse)), "narrow the box")
        self._below = np.append(0.0, np.exp(masses - self.log_partition).cumsum())
        self._below /= self._below[-1]  # log Z is rounded, by much where ℓ/T is large

    def pdf(self, w: ArrayLike) -> np.ndarray:
        """The density at each of ``w``, of any shape."""
        w = checks.array("w", w)
        inside = np.clip(w, self.low, self.high)
        density = np.exp(self._log_density(inside) - self.log_partition)
        return np.where(w == inside, density, 0.0)

    def cdf(self, w: ArrayLike) -> np.ndarray:
        """P(below w), to rounding, for each of ``w``, of any shape."""
        inside = np.clip(checks.array("w", w), self.low, self.high)
        cell = np.digitize(inside, self._edges[1:-1])
        part = _log_integral(self._log_density, self._edges[cell], inside)
        return self._below[cell] + np.exp(part - self.log_partition)


def multiplicative_density(
    gradient: Function, diffusion: Function, low: float, high: float
) -> Gibbs:
    """The stationary density p ∝ (1/D) exp(−∫ ℓ'/D) of dw = −ℓ'(w) dt + √(2 D(w)) dW, 1-D.

    The equation is Itô's, which is what SGD, with D = η σ²(w)/(2B), approaches as η → 0: its noise
    is drawn at the w that the step starts from. (Stratonovich's has 1/√D in place of 1/D.)

    ``gradient`` ℓ' and ``diffusion`` D > 0 are functions of arrays, elementwise. The result is a
    :class:`Gibbs` of the loss log D + ∫ ℓ'/D at temperature 1. Raises ValueError as that does, and
    for D ≤ 0.
    """
    low = checks.real("low", low)
    high = checks.real("high", high, above=low)

    def positive_diffusion(w: np.ndarray) -> np.ndarray:
        d = np.broadcast_to(np.asarray(diffusion(w), dtype=float), w.shape)
        if not (d > 0).all():
            raise ValueError(f"needs D > 0 between low and high, got {d.min():.3g}")
        return d

    def integral(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # of ℓ'/D, each a ≤ b
        points, weights = _nodes(a, b)
        return (weights * np.asarray(gradient(points)) / positive_diffusion(points)).sum(-1)

    edges = np.linspace(low, high, CELLS + 1)
    up_to = np.append(0.0, integral(edges[:-1], edges[1:]).cumsum())
    coarse = integral(edges[:-1:2], edges[2::2]).sum()
    _check_converged("exp(∫ ℓ'/D)", float(up_to[-1]), float(coarse), "narrow the box")

    def potential(w: np.ndarray) -> np.ndarray:
        z = w[:, 0]
        cell = np.digitize(z, edges[1:-1])
        return np.log(positive_diffusion(z)) + up_to[cell] + integral(edges[cell], z)

    return Gibbs(potential, 1.0, low, high)


# Wells: how much of the density each holds, and how long w stays


def laplace(
    losses: ArrayLike,
    hessians: Sequence[ArrayLike],
    temperature: float,
    *,
    as_printed: bool = False,
) -> np.ndarray:
    """Shares of the wells by Laplace's method, (n_wells,): equation (26), corrected.

    P(A) ∝ exp(−ℓ_A/T)/√det H_A: what the Gibbs density gives as T → 0.

    Arguments:
        losses: ℓ_A at each minimum (mean losses)
        hessians: H_A, (d, d) each, or numbers for d = 1
        as_printed: with the lecture's exponent, −ℓ_A/((η/B) σ²), which has lost a factor 2

    Raises ValueError for a Hessian that is not positive definite.
    """
    temperature = checks.real("temperature", temperature, above=0)
    levels = checks.array("losses", losses)
    if levels.shape != (len(hessians),) or levels.size == 0:
        raise ValueError(
            f"needs ℓ and H of each well, got losses {levels.shape}, {len(hessians)} Hessians"
        )
    spectra = [_spectrum(h, f"the Hessian of well {a}")[0] for a, h in enumerate(hessians)]
    log_det = np.array([np.log(values).sum() for values in spectra])
    exponent = (levels.min() - levels) / temperature / (2 if as_printed else 1) - log_det / 2
    return np.exp(exponent - logsumexp(exponent))


def _time(log_time: float) -> float:
    if log_time > math.log(np.finfo(float).max):
        raise ValueError(f"the time is e^{log_time:.0f}, too long for a float: raise temperature")
    return math.exp(log_time)


def escape_time(
    loss: Function, temperature: float, start: float, end: float, *, wall: float
) -> float:
    """Exact mean time until w, from ``start``, first reaches ``end``: dw = −ℓ' dt + √(2T) dW, 1-D.

    For start < end, and mirrored otherwise, it is ::

        (1/T) ∫_start^end e^(ℓ(y)/T) ∫_wall^y e^(−ℓ(z)/T) dz dy

    ``wall`` reflects; it lies on the other side of the start, far enough up the loss not to matter.
    Time is η times the number of steps; ``loss`` is as for :class:`Gibbs`. Raises ValueError for
    points in another order, and where the quadrature is too coarse.
    """
    temperature = checks.real("temperature", temperature, above=0)
    wall = checks.real("wall", wall)
    start, end = checks.real("start", start), checks.real("end", end)
    if not (wall <= start < end or wall >= start > end):
        raise ValueError(f"needs start between wall and end, got {wall = }, {start = }, {end = }")
    log_density = _log_density(loss, temperature)

    def log_time(n: int) -> float:
        inside, path = np.linspace(wall, start, n + 1), np.linspace(start, end, n + 1)
        edges = np.append(inside, path[1:])
        mass = np.logaddexp.accumulate(_log_integral(log_density, edges[:-1], edges[1:]))
        y, weights = _nodes(path[:-1], path[1:])
        low = np.broadcast_to(path[:-1, None], y.shape)
        behind = np.logaddexp(mass[n - 1 : -1, None], _log_integral(log_density, low, y))
        return float(logsumexp(behind - log_density(y), b=weights))

    fine = log_time(CELLS)
    level = log_density(np.array(start)).item()  # has cancelled in the time, its rounding not
    _check_converged("the escape time", level, level, "")
    _check_converged("the escape time", fine, log_time(CELLS // 2), "bring the wall nearer")
    return _time(fine - math.log(temperature))


def kramers_time(
    curvature_well: float, curvature_saddle: float, barrier: float, temperature: float
) -> float:
    """Kramers' mean time from a minimum a over the saddle b: ``2π/√(ℓ''(a)|ℓ''(b)|) e^(Δℓ/T)``.

    The limit T → 0 of :func:`escape_time` to a point well beyond the saddle. (To the saddle itself
    it takes half as long: from there w falls back every other time.) The error of the ratio is of
    order T/Δℓ, so both barriers of the saddle must be high.

    Arguments: ℓ''(a) > 0, ℓ''(b) < 0, and the barrier Δℓ = ℓ(b) − ℓ(a) > 0.
    """
    well = checks.real("curvature_well", curvature_well, above=0)
    saddle = checks.real("curvature_saddle", curvature_saddle, below=0)
    temperature = checks.real("temperature", temperature, above=0)
    log_rate = (math.log(well) + math.log(-saddle)) / 2 - math.log(2 * math.pi)
    return _time(checks.real("barrier", barrier, above=0) / temperature - log_rate)
