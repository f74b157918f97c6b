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

from lecture6.objective import FunctionObjective

MAX_DIM = 16  # of a box whose corners are enumerated: 2^16


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
        raise NotImplementedError

    def sharpness(self, x: ArrayLike, epsilon: float, a: ArrayLike | None = None) -> float:
        """φ of Definition 2 at x, per cent; A is the identity, or ``a`` of shape (n_params, p).

        With a matrix the corners of its box are enumerated, which is exact for a convex loss.
        Raises ValueError for p > 16, and for a loss that is not convex.
        """
        x = np.asarray(x, dtype=float)
        if a is None:
            half = epsilon * (np.abs(x) + 1)
            top = self.highest(x - half, x + half)
        else:
            top = max(self.value(x + step) for step in self._corners(x, epsilon, np.asarray(a)))
        base = self.value(x)
        return 100 * (top - base) / (1 + base)

    def _corners(self, x: np.ndarray, epsilon: float, a: np.ndarray) -> np.ndarray:
        if not self.convex:
            raise ValueError("with a matrix A the sharpness is known for convex losses only")
        if a.shape[1] > MAX_DIM:
            raise ValueError(f"2^p corners: p may be up to {MAX_DIM}, got p = {a.shape[1]}")
        half = epsilon * (np.abs(np.linalg.lstsq(a, x, rcond=None)[0]) + 1)
        return (np.array(list(product((-1, 1), repeat=a.shape[1]))) * half) @ a.T


class Powers(Toy):
    """Σ_i c_i w_i^(k_i) with c_i > 0 and even k_i: minimum 0 at 0, convex.

    Raises ValueError for other coefficients and exponents.
    """

    def __init__(self, coefficients: Sequence[float], exponents: Sequence[int]) -> None:
        c, k = np.array(coefficients, dtype=float), np.array(exponents)
        if c.shape != k.shape or (c <= 0).any() or (k < 2).any() or (k % 2).any():
            raise ValueError(
                "needs as many positive coefficients as even exponents, got "
                f"{list(coefficients)} and {list(exponents)}"
            )
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
        self.eigenvalues = np.asarray(eigenvalues, dtype=float)  # in the order of Q's columns
        n = len(self.eigenvalues)
        q = np.eye(n)
        if seed is not None:
            q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
            q = q * np.sign(np.diag(r))  # Haar: uniform over the orthogonal matrices
        self.eigenvectors = q
        self.h = (q * self.eigenvalues) @ q.T
        self.centre = np.zeros(n) if minimiser is None else np.asarray(minimiser, dtype=float)
        self.convex = bool((self.eigenvalues >= 0).all())
        self.minimisers = self.centre[None, :] if self.convex else np.empty((0, n))
        h, centre = torch.from_numpy(self.h), torch.from_numpy(self.centre)
        super().__init__(lambda w: 0.5 * (w - centre) @ h @ (w - centre), n)

    def hessian(self, w: ArrayLike) -> np.ndarray:
        return self.h

    def highest(self, low: np.ndarray, high: np.ndarray) -> float:
        if not self.convex or len(low) > MAX_DIM:
            raise ValueError(f"known for convex quadratics of at most {MAX_DIM} parameters only")
        corners = np.array(list(product(*zip(low, high, strict=True)))) - self.centre
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
        (h0, h1), (c0, c1) = curvatures, centres
        if not (h0 > 0 and h1 > 0 and c0 < c1):
            raise ValueError(
                f"needs positive curvatures and increasing centres, got {curvatures}, {centres}"
            )
        self.curvatures, self.centres = np.array(curvatures), np.array(centres)
        self.minimisers = self.centres[:, None]
        root = math.sqrt(h1 / h0)
        self.edge = (c0 + root * c1) / (1 + root)  # where the parabolas cross between the minima
        super().__init__(
            lambda w: torch.minimum(0.5 * h0 * (w[0] - c0) ** 2, 0.5 * h1 * (w[0] - c1) ** 2), 1
        )

    def _well(self, w: ArrayLike) -> int:
        heights = self.curvatures * (np.asarray(w, dtype=float).item() - self.centres) ** 2
        return int(heights.argmin())

    def hessian(self, w: ArrayLike) -> np.ndarray:
        return np.array([[self.curvatures[self._well(w)]]])

    def highest(self, low: np.ndarray, high: np.ndarray) -> float:
        candidates = [low.item(), high.item()]
        if low.item() < self.edge < high.item():
            candidates.append(self.edge)
        return max(self.value([w]) for w in candidates)

    def gap(self, well: int, shift: float) -> float:
        """Test loss minus training loss at minimum ``well`` when the test loss is shifted."""
        return 0.5 * float(self.curvatures[well]) * shift**2

    def bits(self, well: int, *, tolerance: float, width: float) -> float:
        """Bits that place w within the well, out of a prior interval of ``width``.

        The loss stays below ``tolerance`` on an interval of length 2 √(2·tolerance/h), so
        log2(width / that) bits say where it lies (after Hochreiter & Schmidhuber 1997).
        """
        length = 2 * math.sqrt(2 * tolerance / float(self.curvatures[well]))
        return math.log2(width / length)


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
        if not (left < saddle < right and scale > 0 and all(h > 0 for h in across)):
            raise ValueError(
                "needs left < saddle < right, a positive scale and positive curvatures across, got "
                f"{left}, {saddle}, {right}, {scale} and {tuple(across)}"
            )
        self.saddle, self.across = saddle, np.array(across, dtype=float)
        slope = scale * np.polynomial.Polynomial.fromroots([left, saddle, right])
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
        inside = [w for w in (self.saddle,) if low[0] < w < high[0]]
        along = max(self.profile(w) for w in (low[0], high[0], *inside))
        farthest = np.maximum(np.abs(low[1:]), np.abs(high[1:]))
        return float(along + 0.5 * self.across @ farthest**2)


class TwoWells(Toy):
    """The soft minimum of two quadratic wells, each with a place, a width and a depth of its own.

    ℓ(w) = −s log Σ_j exp(−q_j(w)/s) with q_j(w) = level_j + ½ (w − c_j)ᵀ H_j (w − c_j). As s → 0 it
    is min_j q_j, which has a kink where the wells meet.

    Arguments:
        curvatures: (2,) for one parameter; (2, d) along the axes; or H_j, (2, d, d)
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
        self.minimisers = np.asarray(centres, dtype=float).reshape(2, -1)
        d = self.minimisers.shape[1]
        h = np.asarray(curvatures, dtype=float)
        if h.ndim < 3:
            h = h.reshape(2, d)[:, :, None] * np.eye(d)
        self.hessians, self.levels, self.softness = h, np.asarray(levels, dtype=float), softness
        if not (softness > 0 and (np.linalg.eigvalsh(h) > 0).all()):
            raise ValueError(
                f"needs positive curvatures and softness, got {curvatures} and {softness}"
            )
        weight = self._weights(self.minimisers)[0]
        if max(1 - weight[0], weight[1]) > 1e-9:
            raise ValueError(
                f"the wells run into each other: lower softness = {softness}, or set the centres "
                f"{centres} farther apart"
            )
        c, h_torch = torch.from_numpy(self.minimisers), torch.from_numpy(h)
        levels_torch = torch.from_numpy(self.levels)

        def loss(w: Tensor) -> Tensor:
            q = levels_torch + 0.5 * torch.einsum("ji,jik,jk->j", w - c, h_torch, w - c)
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

    def highest(self, low: np.ndarray, high: np.ndarray) -> float:
        raise ValueError("the highest loss in a box is not known for TwoWells: take TwoParabolas")

    @property
    def saddle(self) -> float:
        """Of one parameter: the top between the two minima. Raises ValueError for more."""
        if self.n_params > 1:
            raise ValueError(f"the top between two wells of {self.n_params} parameters is no point")
        low, high = sorted(self.minimisers[:, 0])
        # Between them ℓ' goes from + to − once; it is 0 at the ends.
        room = 1e-6 * (high - low)
        return brentq(lambda x: float(self.gradients([[x]])[0, 0]), low + room, high - room)

    @property
    def barriers(self) -> np.ndarray:
        """Of one parameter: height of the saddle above each minimum, (2,)."""
        return float(self.losses([[self.saddle]])[0]) - self.levels
