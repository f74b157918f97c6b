"""Losses that are known in closed form: what the measures are tested against.

A :class:`Toy` is an :class:`~lecture6.objective.Objective` in float64, with its minimisers, and, if
it is convex, its sharpness (Definition 2), neither of them computed by the code that they test. The
wells that walkers move in, :class:`TwoWells`, are functions of many points at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import expit

from lecture6 import checks
from lecture6.objective import FunctionObjective


def _numbers(name: str, values: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """``values`` as a new array of this shape; else ValueError."""
    array = checks.array(name, values).copy()
    if array.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, got {array.shape}")
    return array


class Toy(FunctionObjective):
    """A loss of a few parameters, with its minimisers."""

    minimisers: np.ndarray  #: (number of minima, n_params)
    convex = False

    def sharpness(self, x: ArrayLike, epsilon: float, a: ArrayLike | None = None) -> float:
        """φ of Definition 2 at x, per cent; A is the identity, or ``a`` of shape (n_params, p).

        A convex loss is largest in one of the 2^p corners of its box; they are enumerated. Raises
        ValueError for a loss that is not convex.
        """
        if not self.convex:
            raise ValueError(f"known for convex losses only: this {type(self).__name__} isn't")
        epsilon, x = checks.real("epsilon", epsilon, above=0), _numbers("x", x, (self.n_params,))
        a = np.eye(len(x)) if a is None else _numbers("a", a, (len(x), np.shape(a)[-1]))
        half = epsilon * (np.abs(np.linalg.lstsq(a, x, rcond=None)[0]) + 1)
        corners = x + (np.array(list(product((-1, 1), repeat=len(half)))) * half) @ a.T
        top = torch.vmap(self.function)(torch.from_numpy(corners)).max().item()
        base = self.value(torch.from_numpy(x))
        return 100 * (top - base) / (1 + base)


class Powers(Toy):
    """Σ_i c_i w_i^(k_i) with c_i > 0 and even k_i: minimum 0 at 0, convex.

    Raises ValueError for other coefficients and exponents.
    """

    convex = True

    def __init__(self, coefficients: Sequence[float], exponents: Sequence[int]) -> None:
        c, k = checks.array("coefficients", coefficients), np.array(exponents)
        if c.shape != k.shape or (c <= 0).any() or (k < 2).any() or (k % 2).any():
            raise ValueError(f"needs positive coefficients, as many even exponents: got {c}, {k}")
        self.minimisers = np.zeros((1, len(c)))
        terms = list(zip(c.tolist(), k.astype(int).tolist(), strict=True))
        super().__init__(lambda w: sum(c * w[i] ** k for i, (c, k) in enumerate(terms)), len(c))


#: The functions of Figure 6 of the lecture, by their formulas; and the rows of Table 1.
FIGURE_6 = {
    "100x²": Powers([100], [2]),
    "x⁸": Powers([1], [8]),
    "100(x² + y²)": Powers([100, 100], [2, 2]),
    "100x² + y⁸": Powers([100, 1], [2, 8]),
}


class Quadratic(Toy):
    """½ wᵀ H w, with H of any spectrum.

    Arguments:
        eigenvalues: (n_params,) of either sign
        seed: of the random orthogonal Q in H = Q diag(eigenvalues) Qᵀ

    ``h`` is H; ``minimisers`` is empty when an eigenvalue is negative: then 0 is a saddle.
    """

    def __init__(self, eigenvalues: ArrayLike, *, seed: int = 0) -> None:
        spectrum = checks.array("eigenvalues", eigenvalues)
        if spectrum.ndim != 1:
            raise ValueError(f"eigenvalues must be a list of them, got the shape {spectrum.shape}")
        n = len(spectrum)
        generator = np.random.default_rng(checks.seed(seed))
        q, r = np.linalg.qr(generator.standard_normal((n, n)))
        q = q * np.sign(np.diag(r))  # Haar: uniform over the orthogonal matrices
        self.h = (q * spectrum) @ q.T
        self.convex = bool((spectrum >= 0).all())
        self.minimisers = np.zeros((int(self.convex), n))
        h = torch.from_numpy(self.h)
        super().__init__(lambda w: 0.5 * w @ h @ w, n)


class TwoParabolas(Toy):
    """min_j ½ h_j (w − c_j)² in one dimension: Figure 1's flat and sharp minimum.

    A test loss that is this one shifted by δ lies ½ h_j δ² above the training loss at c_j, exactly,
    while the shift is smaller than the well.
    """

    def __init__(
        self, curvatures: Sequence[float] = (1.0, 25.0), centres: Sequence[float] = (-2.0, 2.0)
    ) -> None:
        self.curvatures = h = _numbers("curvatures", curvatures, (2,))
        self.centres = c = _numbers("centres", centres, (2,))
        self.minimisers = c[:, None]
        (h0, h1), (c0, c1) = h.tolist(), c.tolist()
        if not (h0 > 0 and h1 > 0 and c0 < c1):
            raise ValueError(f"needs positive curvatures and increasing centres, got {h} and {c}")
        super().__init__(
            lambda w: torch.minimum(0.5 * h0 * (w[0] - c0) ** 2, 0.5 * h1 * (w[0] - c1) ** 2), 1
        )


class TwoWells:
    """The soft minimum of two quadratic wells, each with a place, a width and a depth of its own.

    ℓ(w) = −s log Σ_j exp(−q_j(w)/s) with q_j(w) = level_j + ½ (w − c_j)ᵀ H_j (w − c_j). As s → 0 it
    is min_j q_j, which has a kink where the wells meet. Its ``minimisers`` are the centres, (2, d).

    Arguments:
        curvatures: H_j, (2, d, d); (2,) for one parameter
        centres: (2,) or (2, d)
        levels: ℓ at the minima, (2,)
        softness: s

    Raises ValueError for curvatures that are not positive, and for wells so near to each other that
    the minima are not at the centres: where at one centre the other well has a weight above 1e-9.
    """

    def __init__(
        self,
        curvatures: ArrayLike = (1.0, 16.0),
        centres: ArrayLike = (-1.0, 1.0),
        levels: ArrayLike = (0.5, 0.0),
        *,
        softness: float = 0.05,
    ) -> None:
        self.minimisers = checks.array("centres", centres).copy().reshape(2, -1)
        d = self.minimisers.shape[1]
        h = checks.array("curvatures", curvatures).copy().reshape(2, d, d)
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

    @property
    def saddle(self) -> float:
        """Of one parameter: the top between the two minima. Raises ValueError for more."""
        if self.minimisers.shape[1] > 1:
            raise ValueError("the top between two wells of more than one parameter is no point")
        low, high = sorted(self.minimisers[:, 0])
        # Between them ℓ' goes from + to − once; it is 0 at the ends.
        room = 1e-6 * (high - low)
        return brentq(lambda x: float(self.gradients([[x]])[0, 0]), low + room, high - room)
