"""Losses whose every measure is known in closed form: what the measures are tested against.

Each toy is an :class:`~lecture6.objective.Objective` in float64, with its minimisers, its Hessian
and its sharpness (Definition 2) beside it, none of them computed by the code that they test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor

from lecture6 import checks
from lecture6.objective import FunctionObjective

MAX_DIM = 16  # of a box whose corners are enumerated: 2^16


def _numbers(name: str, values: ArrayLike, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """``values`` as a new array of finite floats, of ``shape`` if it is given; else ValueError."""
    array = np.array(values, dtype=float)
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, got {array.shape}")
    return checks.finite(name, torch.from_numpy(array), "give finite numbers").numpy()


def _corners(p: int) -> np.ndarray:
    """The corners of the box [−1, 1]^p, (2^p, p); ValueError for p > 16."""
    if p > MAX_DIM:
        raise ValueError(f"the box has 2^p corners: p may be up to {MAX_DIM}, got p = {p}")
    return np.array(list(product((-1, 1), repeat=p)))


class Toy(FunctionObjective):
    """A loss of a few parameters with closed forms.

    ``minimisers`` has shape (number of minima, n_params).
    """

    minimisers: np.ndarray
    convex = True

    def hessian(self, w: ArrayLike) -> np.ndarray:
        """The Hessian at w, (n_params, n_params)."""
        raise NotImplementedError

    def highest(self, low: np.ndarray, high: np.ndarray) -> float:
        """The largest loss in the box low ≤ w ≤ high (both (n_params,))."""
        raise ValueError(f"the highest loss in a box is not known for {type(self).__name__}")

    def sharpness(self, x: ArrayLike, epsilon: float, a: ArrayLike | None = None) -> float:
        """φ of Definition 2 at x, per cent; A is the identity, or ``a`` of shape (n_params, p).

        With a matrix the corners of its box are enumerated, which is exact for a convex loss.
        Raises ValueError for p > 16, and for a loss that is not convex.
        """
        epsilon, x = checks.real("epsilon", epsilon, above=0), _numbers("x", x, (self.n_params,))
        base = self.value(torch.from_numpy(x))
        if a is None:
            half = epsilon * (np.abs(x) + 1)
            top = self.highest(x - half, x + half)
        else:
            if not self.convex:
                raise ValueError("with a matrix A the sharpness is known for convex losses only")
            matrix = _numbers("a", a, (len(x), np.shape(a)[-1]))
            half = epsilon * (np.abs(np.linalg.lstsq(matrix, x, rcond=None)[0]) + 1)
            steps = (_corners(len(half)) * half) @ matrix.T
            top = max(self.value(torch.from_numpy(x + step)) for step in steps)
        return 100 * (top - base) / (1 + base)


class Powers(Toy):
    """Σ_i c_i w_i^(k_i) with c_i > 0 and even k_i: minimum 0 at 0, convex.

    Raises ValueError for other coefficients and exponents.
    """

    def __init__(self, coefficients: Sequence[float], exponents: Sequence[int]) -> None:
        c, k = _numbers("coefficients", coefficients), np.array(exponents)
        if c.shape != k.shape or (c <= 0).any() or (k < 2).any() or (k % 2).any():
            raise ValueError(f"needs positive coefficients, as many even exponents: got {c}, {k}")
        self.c, self.k = c, k
        self.minimisers = np.zeros((1, len(c)))
        terms = [(i, ci, int(ki)) for i, (ci, ki) in enumerate(zip(c, k, strict=True))]
        super().__init__(lambda w: sum(ci * w[i] ** ki for i, ci, ki in terms), len(c))

    def hessian(self, w: ArrayLike) -> np.ndarray:
        return np.diag(self.c * self.k * (self.k - 1) * np.asarray(w, dtype=float) ** (self.k - 2))

    def highest(self, low: np.ndarray, high: np.ndarray) -> float:
        return float(self.c @ np.maximum(np.abs(low), np.abs(high)) ** self.k)


#: The functions of Figure 6 of the lecture, by their formulas; and the rows of Table 1.
FIGURE_6 = {
    "100x²": Powers([100], [2]),
    "x⁸": Powers([1], [8]),
    "100(x² + y²)": Powers([100, 100], [2, 2]),
    "100x² + y⁸": Powers([100, 1], [2, 8]),
}


class Quadratic(Toy):
    """½ (w − w*)ᵀ H (w − w*), with H of any spectrum.

    Arguments:
        eigenvalues: (n_params,) of either sign
        minimiser: w*, (n_params,); default 0
        seed: H = Q diag(eigenvalues) Qᵀ with a random orthogonal Q; None: Q = I

    ``minimisers`` is empty when an eigenvalue is negative: the loss has a saddle there.
    """

    def __init__(
        self, eigenvalues: ArrayLike, *, minimiser: ArrayLike | None = None, seed: int | None = 0
    ) -> None:
        spectrum = _numbers("eigenvalues", eigenvalues)
        n = len(spectrum)
        q = np.eye(n)
        if seed is not None:
            generator = np.random.default_rng(checks.seed(seed))
            q, r = np.linalg.qr(generator.standard_normal((n, n)))
            q = q * np.sign(np.diag(r))  # Haar: uniform over the orthogonal matrices
        self.h = (q * spectrum) @ q.T
        self.centre = _numbers("minimiser", np.zeros(n) if minimiser is None else minimiser, (n,))
        self.convex = bool((spectrum >= 0).all())
        self.minimisers = self.centre[None, :] if self.convex else np.empty((0, n))
        h, centre = torch.from_numpy(self.h), torch.from_numpy(self.centre)
        super().__init__(lambda w: 0.5 * (w - centre) @ h @ (w - centre), n)

    def hessian(self, w: ArrayLike) -> np.ndarray:
        return self.h

    def highest(self, low: np.ndarray, high: np.ndarray) -> float:
        if not self.convex:
            raise ValueError("the highest loss in a box is known for convex quadratics only")
        corners = np.where(_corners(len(low)) > 0, high, low) - self.centre
        return float(0.5 * np.einsum("ki,ij,kj->k", corners, self.h, corners).max())


class TwoParabolas(Toy):
    """min_j ½ h_j (w − c_j)² in one dimension: Figure 1's flat and sharp minimum.

    A test loss that is this one shifted by δ lies ½ h_j δ² above the training loss at c_j, exactly,
    while the shift is smaller than the well.
    """

    convex = False

    def __init__(
        self, curvatures: Sequence[float] = (1.0, 25.0), centres: Sequence[float] = (-2.0, 2.0)
    ) -> None:
        self.curvatures = h = _numbers("curvatures", curvatures, (2,))
        self.centres = c = _numbers("centres", centres, (2,))
        self.minimisers = c[:, None]
        (h0, h1), (c0, c1) = h.tolist(), c.tolist()
        if not (h0 > 0 and h1 > 0 and c0 < c1):
            raise ValueError(f"needs positive curvatures and increasing centres, got {h} and {c}")
        root = math.sqrt(h1 / h0)
        self.edge = (c0 + root * c1) / (1 + root)  # where the parabolas cross between the minima
        super().__init__(
            lambda w: torch.minimum(0.5 * h0 * (w[0] - c0) ** 2, 0.5 * h1 * (w[0] - c1) ** 2), 1
        )

    def hessian(self, w: ArrayLike) -> np.ndarray:
        heights = self.curvatures * (np.asarray(w, dtype=float).item() - self.centres) ** 2
        return self.curvatures[[heights.argmin()]][:, None]

    def highest(self, low: np.ndarray, high: np.ndarray) -> float:
        candidates = np.clip([low, [self.edge], high], low, high)
        return max(map(self.value, torch.from_numpy(candidates)))

    def bits(self, well: int, *, tolerance: float, width: float) -> float:
        """Bits that place w within the well, out of a prior interval of ``width``.

        The loss stays below ``tolerance`` on an interval of length 2 √(2·tolerance/h), so
        log2(width / that) bits say where it lies (after Hochreiter & Schmidhuber 1997).
        """
        h = float(self.curvatures[checks.whole("well", well, least=0, most=1)])
        length = 2 * math.sqrt(2 * checks.real("tolerance", tolerance, above=0) / h)
        return math.log2(checks.real("width", width, above=0) / length)


class DoubleWell(Toy):
    """A smooth double well: a quartic in w_0, with parabolas across it in the other dimensions.

    ℓ'(w_0) = scale · (w_0 − left)(w_0 − saddle)(w_0 − right), plus ½ Σ_i h_i w_i² for i ≥ 1. The
    loss is 0 at the lower minimum. Curvatures along w_0: scale (saddle − left)(right − left) and
    scale (right − saddle)(right − left) at the minima, −scale (saddle − left)(right − saddle) at
    the saddle.

    Arguments:
        left, saddle, right: of w_0, increasing. The minima are equally deep when the saddle lies in
            the middle; nearer to one minimum it makes that one higher and flatter.
        across: (h_1, …), positive; () for a loss of one parameter
    """

    convex = False

    def __init__(
        self,
        left: float = -1.0,
        saddle: float = 0.0,
        right: float = 1.0,
        *,
        scale: float = 4.0,
        across: Sequence[float] = (),
    ) -> None:
        left, saddle, right = _numbers("left, saddle, right", [left, saddle, right]).tolist()
        self.saddle, self.across = saddle, _numbers("across", across)
        if not (left < saddle < right and (self.across > 0).all()):
            raise ValueError(
                "needs left < saddle < right and positive curvatures across, got "
                f"{left}, {saddle}, {right} and {self.across.tolist()}"
            )
        slope = np.polynomial.Polynomial.fromroots([left, saddle, right])
        slope *= checks.real("scale", scale, above=0)
        self.profile = slope.integ()
        self.profile -= min(self.profile(left), self.profile(right))
        self.minimisers = np.zeros((2, 1 + len(self.across)))
        self.minimisers[:, 0] = left, right
        powers, h = self.profile.coef.tolist(), torch.from_numpy(self.across)

        def loss(w: Tensor) -> Tensor:
            along = sum(c * w[0] ** power for power, c in enumerate(powers))
            return along + 0.5 * (h * w[1:] ** 2).sum()

        super().__init__(loss, 1 + len(self.across))

    @property
    def barriers(self) -> np.ndarray:
        """Height of the saddle above each minimum, (2,)."""
        return self.profile(self.saddle) - self.profile(self.minimisers[:, 0])

    def hessian(self, w: ArrayLike) -> np.ndarray:
        along = self.profile.deriv(2)(np.asarray(w, dtype=float)[0])
        return np.diag([along, *self.across])

    def highest(self, low: np.ndarray, high: np.ndarray) -> float:
        along = self.profile(np.clip([low[0], self.saddle, high[0]], low[0], high[0])).max()
        farthest = np.maximum(np.abs(low[1:]), np.abs(high[1:]))
        return float(along + 0.5 * self.across @ farthest**2)


class TwoWells(Toy):
    """The soft minimum of two quadratic wells, each with a place, a width and a depth of its own.

    ℓ(w) = −s log Σ_j exp(−q_j(w)/s) with q_j(w) = level_j + ½ (w − c_j)ᵀ H_j (w − c_j). As s → 0 it
    is min_j q_j, which has a kink where the wells meet.

    Arguments:
        curvatures: H_j, (2, d, d); (2,) for one parameter
        centres: (2,) or (2, d)
        levels: ℓ at the minima, (2,)
        softness: s

    Raises ValueError for curvatures that are not positive, and for wells so near to each other that
    the minima are not at the centres: where at one centre the other well has a weight above 1e-9.
    """

    convex = False

    def __init__(
        self,
        curvatures: ArrayLike = (1.0, 16.0),
        centres: ArrayLike = (-1.0, 1.0),
        levels: ArrayLike = (0.5, 0.0),
        *,
        softness: float = 0.05,
    ) -> None:
        self.minimisers = _numbers("centres", centres).reshape(2, -1)
        d = self.minimisers.shape[1]
        h = _numbers("curvatures", curvatures).reshape(2, d, d)
        self.hessians, self.levels = h, _numbers("levels", levels, (2,))
        self.softness = softness = checks.real("softness", softness, above=0)
        if not (np.linalg.eigvalsh(h) > 0).all():
            raise ValueError(f"needs positive curvatures, got {h.tolist()}")
        weight = self._weights(self.minimisers)[0]
        if max(1 - weight[0], weight[1]) > 1e-9:
            raise ValueError(
                f"the wells run into each other: lower softness = {softness:g}, or set the "
                f"centres {self.minimisers.tolist()} farther apart"
            )
        c, hessians, levels = map(torch.from_numpy, (self.minimisers, h, self.levels))

        def loss(w: Tensor) -> Tensor:
            q = levels + 0.5 * torch.einsum("ji,jik,jk->j", w - c, hessians, w - c)
            return -softness * torch.logsumexp(-q / softness, 0)

        super().__init__(loss, d)

    def _weights(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The weight of well 0, (n,), each q_j, (2, n), and each ∇q_j, (2, n, d)."""
        away = w - self.minimisers[:, None]
        slopes = away @ self.hessians
        q = self.levels[:, None] + 0.5 * (away * slopes).sum(-1)
        return expit((q[1] - q[0]) / self.softness), q, slopes

    def losses(self, w: ArrayLike) -> np.ndarray:
        """ℓ at many points, (n, d) to (n,)."""
        _, q, _ = self._weights(np.asarray(w, dtype=float))
        return -self.softness * np.logaddexp(*(-q / self.softness))

    def gradients(self, w: ArrayLike) -> np.ndarray:
        """∇ℓ at many points, (n, d) to (n, d)."""
        p, _, slopes = self._weights(np.asarray(w))
        return slopes[1] + p[:, None] * (slopes[0] - slopes[1])

    def hessian(self, w: ArrayLike) -> np.ndarray:
        p, _, slopes = self._weights(np.asarray(w, dtype=float)[None])
        apart = slopes[0, 0] - slopes[1, 0]
        mean = p[0] * self.hessians[0] + (1 - p[0]) * self.hessians[1]
        return mean - p[0] * (1 - p[0]) / self.softness * np.outer(apart, apart)

    @property
    def saddle(self) -> float:
        """Of one parameter: the top between the two minima. Raises ValueError for more."""
        if self.n_params > 1:
            raise ValueError(f"the top between two wells of {self.n_params} parameters is no point")
        low, high = sorted(self.minimisers[:, 0])
        # Between them ℓ' goes from + to − once; it is 0 at the ends.
        room = 1e-6 * (high - low)
        return brentq(lambda x: float(self.gradients([[x]])[0, 0]), low + room, high - room)
