"""The loss along paths between two solutions (Figure 5)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import cosdg, sindg
from torch import Tensor

from lecture6.objective import NetworkObjective

KESKAR_ALPHAS = np.linspace(-1.0, 2.0, 25)  # the released code of Keskar et al.


def weights_on_path(alpha: float, path: str) -> tuple[float, float]:
    """Weights (a, b) of the point a·w_small + b·w_large at position α.

    "linear": (1 − α, α); "sincos": (cos(απ/2), sin(απ/2)), Keskar et al., Appendix D. Both give
    exactly (1, 0) at α = 0 and (0, 1) at α = 1. Raises ValueError for another path.
    """
    if path == "linear":
        return 1.0 - alpha, alpha
    if path == "sincos":  # in degrees, where cos(90) is 0 and not 6e-17
        return float(cosdg(90.0 * alpha)), float(sindg(90.0 * alpha))
    raise ValueError(f"path must be 'linear' or 'sincos', got {path!r}")


def interpolate(
    objectives: Mapping[str, NetworkObjective],
    w_small: Tensor,
    w_large: Tensor,
    *,
    alphas: ArrayLike = KESKAR_ALPHAS,
    path: str = "linear",
) -> pd.DataFrame:
    """Loss and accuracy along a path from ``w_small`` (α = 0) to ``w_large`` (α = 1).

    ``objectives`` maps a split's name ("train", "test") to the network on that set; the vectors
    have shape (n_params,). Returns a tidy table: path, alpha, split, loss, accuracy (fraction).
    Source: Goodfellow et al. (1412.6544); Keskar et al., Figures 3 and 7.
    """
    rows = []
    for split, objective in objectives.items():
        small, large = objective.vector(w_small), objective.vector(w_large)
        for alpha in np.asarray(alphas, dtype=float):
            a, b = weights_on_path(alpha, path)
            rows.append((path, alpha, split, *objective.evaluate(a * small + b * large)))
    return pd.DataFrame(rows, columns=["path", "alpha", "split", "loss", "accuracy"])
