"""What chapter 7 computes: where a minimum stops being stable under SGD, and what SGD follows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike

from lecture6 import checks
from lecture6.noise_scale import covariance_factor


def stability_edge(jacobian: ArrayLike, batch_size: int, *, replacement: bool) -> float:
    """η* of a minimum that fits every sample: above it the mean square of SGD's distance grows.

    There the loss is (1/N) Σ ½ r_i² with all r_i = 0, and ``jacobian`` (N, d) is that of the r_i,
    of rows j_i. To first order a batch multiplies the distance by I − ηH_b, H_b the mean of its
    j_i j_iᵀ. The mean of H_b ⊗ H_b is Q = (1 − κ) H ⊗ H + κ E[H_i ⊗ H_i], with κ as in
    :func:`lecture6.equilibrium.linear_regression_covariance`. So the second moment obeys ::

        S ← S − η (HS + SH) + η² Q(S)

    a symmetric map that keeps positive matrices positive: its largest eigenvalue is its spectral
    radius, and below 1 where η Q < H ⊗ I + I ⊗ H (Mulayoff & Michaeli 2024). η* is the largest
    such η, on the span of the rows. Raises ValueError for a Jacobian that is 0.
    """
    x = checks.array("jacobian", jacobian)
    if x.ndim != 2:
        raise ValueError(f"jacobian must be (N, d), got {x.shape}")
    sampling = "with" if checks.flag("replacement", replacement) else "without"
    kappa = covariance_factor(n := len(x), batch_size, sampling=f"{sampling}_replacement")
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    rank = np.count_nonzero(s > max(x.shape) * np.finfo(float).eps * s[0])
    if not rank:
        raise ValueError("the jacobian is 0: every rate is stable")
    rows, h = u[:, :rank] * s[:rank], s[:rank] ** 2 / n  # in the eigenbasis of H
    decay = np.add.outer(h, h).ravel()
    squares = (rows[:, :, None] * rows[:, None, :]).reshape(n, -1) / np.sqrt(decay)
    relative = kappa / n * (squares.T @ squares)
    relative[np.diag_indices_from(relative)] += (1 - kappa) * np.outer(h, h).ravel() / decay
    return float(1 / np.linalg.eigvalsh(relative)[-1])


def modified_loss(batch_losses: Callable, lr: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """The loss C + (η/4m) Σ ‖∇C_j‖² whose flow the mean of shuffled epochs follows.

    ``batch_losses``: the mean losses C_j of an epoch's m batches, (m,), as a function of w; C is
    their mean. Over all orders of the batches the mean of w after an epoch is that of the flow
    after the time mη, up to O(η³) (Smith et al. 2021). With one "batch", the whole set, it is
    what gradient descent follows, and the mean of SGD whose batches are drawn anew.
    """
    lr = checks.real("lr", lr, above=0)

    def loss(w: torch.Tensor) -> torch.Tensor:
        slopes = torch.func.jacrev(batch_losses)(w)
        return batch_losses(w).mean() + lr / 4 * slopes.square().sum(1).mean()

    return loss
