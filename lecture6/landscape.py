"""The loss along paths between two solutions (Figure 5), and on planes around one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy.special import cosdg, sindg
from torch import Tensor

from lecture6.objective import NetworkObjective

KESKAR_ALPHAS = np.linspace(-1.0, 2.0, 25)  #: the released code of Keskar et al.


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


def filter_normalised(objective: NetworkObjective, w: Tensor, *, seed: int = 0) -> Tensor:
    """A random direction (n_params,) in which every filter is as long as that filter of ``w``.

    A filter is what feeds one unit: a row of a dense layer's weights, one output channel of a
    convolution's. Biases and batch norm's parameters stay fixed (direction 0). A step along such a
    direction is a fraction of each filter, so that nets with differently scaled weights can be
    compared. Source: Li et al., 1712.09913, §4.
    """
    w = objective.vector(w)
    generator = np.random.default_rng(seed)
    direction = torch.zeros_like(w)
    for name, where in objective.slices.items():
        shape = objective.shapes[name]
        if len(shape) > 1:
            filters = w[where].view(shape[0], -1)
            drawn = torch.from_numpy(generator.standard_normal(filters.shape)).to(w)
            lengths = filters.norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True)
            direction[where] = (drawn * lengths).view(-1)
    return direction


def plane(
    objectives: Mapping[str, NetworkObjective],
    w: Tensor,
    *,
    span: float = 1.0,
    n: int = 21,
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
) -> pd.DataFrame:
    """Loss and accuracy on an n × n grid of the plane w + x d₁ + y d₂, −span ≤ x, y ≤ span.

    The directions d₁, d₂ are :func:`filter_normalised`, drawn from ``seed``; ``objectives`` maps a
    split's name to the network on that set. ``checkpoint``: a file to continue from, and to save
    to after each row of the grid, atomically. Returns a tidy table: x, y, split, loss, accuracy
    (fraction). Raises ValueError for impossible settings, and for a checkpoint of another plane.
    """
    if not (np.isfinite(span) and span > 0) or n < 2:
        raise ValueError(f"span must be positive and n at least 2, got {span} and {n}")
    if not objectives:
        raise ValueError("objectives is empty: name at least one split, e.g. {'train': ...}")
    first = next(iter(objectives.values()))
    w = first.vector(w)
    d1, d2 = (filter_normalised(first, w, seed=s) for s in (2 * seed, 2 * seed + 1))
    grid = np.linspace(-span, span, n)
    settings = {
        "span": span,
        "n": n,
        "seed": seed,
        "sets": {split: [o.n_samples, o.value(w)] for split, o in objectives.items()},
        "w": hashlib.sha256(w.cpu().numpy()).hexdigest(),
    }
    rows: list[tuple] = []
    if checkpoint is not None and Path(checkpoint).exists():
        rows = load_checkpoint(checkpoint, settings)["rows"]
    for y in grid[len(rows) // (n * len(objectives)) :]:
        for x in grid:
            point = w + x * d1 + y * d2
            for split, objective in objectives.items():
                rows.append((float(x), float(y), split, *objective.evaluate(point)))
        if checkpoint is not None:
            save_checkpoint(checkpoint, {"settings": settings, "rows": rows})
    return pd.DataFrame(rows, columns=["x", "y", "split", "loss", "accuracy"])
