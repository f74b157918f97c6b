"""The loss along paths between two solutions (Figure 5), and on planes around one."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy.special import cosdg, sindg
from torch import Tensor

from lecture6 import checks
from lecture6.objective import NetworkObjective, vector

Splits = Mapping[str, NetworkObjective]  # the network on each set: "train", "test"
KESKAR_ALPHAS = np.linspace(-1.0, 2.0, 25)  #: the released code of Keskar et al.


def _check(objectives: Splits) -> None:
    given = [*objectives.values()] if isinstance(objectives, Mapping) else []
    if not given or not all(isinstance(each, NetworkObjective) for each in given):
        raise ValueError("objectives must name a split or more: {'train': NetworkObjective(...)}")


def weights_on_path(alpha: float, path: str) -> tuple[float, float]:
    """Weights (a, b) of the point a·w_small + b·w_large: exactly (1, 0) at α = 0, (0, 1) at 1.

    "linear": (1 − α, α); "sincos": (cos(απ/2), sin(απ/2)), Keskar et al., Appendix D.
    """
    alpha = checks.real("alpha", alpha)
    if checks.one_of("path", path, ("linear", "sincos")) == "linear":
        return 1.0 - alpha, alpha
    return float(cosdg(90.0 * alpha)), float(sindg(90.0 * alpha))  # in degrees cos(90) is 0


def interpolate(
    objectives: Splits,
    w_small: Tensor,
    w_large: Tensor,
    *,
    alphas: ArrayLike = KESKAR_ALPHAS,
    path: str = "linear",
) -> pd.DataFrame:
    """Loss and accuracy along a path from ``w_small`` (α = 0) to ``w_large`` (α = 1).

    Returns a tidy table: path, alpha, split, loss, accuracy (fraction). Source: Goodfellow et al.
    (1412.6544); Keskar et al., Figures 3 and 7.
    """
    _check(objectives)
    rows, alphas = [], np.atleast_1d(checks.array("alphas", alphas))
    if not alphas.size:
        raise ValueError("alphas is empty: give one position at least")
    for split, objective in objectives.items():
        small, large = vector(objective, w_small), vector(objective, w_large)
        for alpha in alphas:
            a, b = weights_on_path(alpha, path)
            rows.append((path, alpha, split, *objective.evaluate(a * small + b * large)))
    return pd.DataFrame(rows, columns=["path", "alpha", "split", "loss", "accuracy"])


def filter_normalised(objective: NetworkObjective, w: Tensor, *, seed: int = 0) -> Tensor:
    """A random direction (n_params,) in which every filter is as long as that filter of ``w``.

    A filter is what feeds one unit: a row of a dense layer's weights, one output channel of a
    convolution's; biases and batch norm's parameters stay fixed (Li et al., 1712.09913, §4).
    """
    w, generator = vector(objective, w), np.random.default_rng(checks.seed(seed))
    direction = torch.zeros_like(w)
    for name, where in objective.slices.items():
        if len(shape := objective.shapes[name]) > 1:
            filters = w[where].view(shape[0], -1)
            drawn = torch.from_numpy(generator.standard_normal(filters.shape)).to(w)
            drawn /= drawn.norm(dim=1, keepdim=True)
            largest = filters.abs().amax(dim=1, keepdim=True)  # no square over- or underflows
            lengths = (filters / largest.where(largest > 0, 1)).norm(dim=1, keepdim=True)
            direction[where] = (drawn * lengths * largest).view(-1)
    return direction


def plane(
    objectives: Splits, w: Tensor, *, span: float = 1.0, n: int = 21, seed: int = 0
) -> pd.DataFrame:
    """Loss and accuracy on an n × n grid of the plane w + x d₁ + y d₂, −span ≤ x, y ≤ span.

    d₁ and d₂ are :func:`filter_normalised`. Returns a tidy table: x, y, split, loss, accuracy.
    """
    span, n = checks.real("span", span, above=0), checks.whole("n", n, least=2)
    _check(objectives)
    first = next(iter(objectives.values()))
    w, seed = vector(first, w), checks.seed(seed)
    d1, d2 = (filter_normalised(first, w, seed=s) for s in (2 * seed, 2 * seed + 1))
    grid = np.linspace(-span, span, n).tolist()
    rows = [
        (x, y, split, *objective.evaluate(w + x * d1 + y * d2))
        for y, x in product(grid, grid)
        for split, objective in objectives.items()
    ]
    return pd.DataFrame(rows, columns=["x", "y", "split", "loss", "accuracy"])
