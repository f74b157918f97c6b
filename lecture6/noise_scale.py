"""How noisy SGD is, by formulas: the covariance of a batch's gradient, and the scales made of it.

With g_i = ∇ℓ(x_i, y_i; w), the gradient of sample i of N, and ḡ their mean, the covariance of the
gradients, the lecture's F(w), is one of ::

    F_pop = (1/N)     Σ_i (g_i − ḡ)(g_i − ḡ)ᵀ
    F_u   = 1/(N − 1) Σ_i (g_i − ḡ)(g_i − ḡ)ᵀ

and the fluctuation of a batch is ψ = ∇ℓ̂ − ∇ℓ (equation 11). ``sampling`` is that of
:func:`lecture6.train.sample_batches`. All raise ValueError for impossible settings.
:mod:`lecture6.noise` estimates all this for a network.
"""

from __future__ import annotations

from typing import Any

from lecture6 import checks
from lecture6.train import SAMPLING


def check_batch(n_train: Any, batch_size: Any, sampling: str) -> tuple[int, int]:
    """``n_train`` and ``batch_size``; ValueError for ones, or a ``sampling``, that cannot be."""
    checks.one_of("sampling", sampling, SAMPLING)
    n_train = checks.whole("n_train", n_train, least=2)
    bounds = {} if sampling == "with_replacement" else {"most": n_train}
    return n_train, checks.whole("batch_size", batch_size, least=1, **bounds)


def covariance_factor(
    n_train: int, batch_size: int, *, sampling: str, units: str = "mean"
) -> float:
    """c in Cov(ψ) = c F_pop, exactly: 1/B with replacement, and without (N − B)/(B (N − 1)).

    ``units``: "mean" of losses that are means over samples, as in training; "sum" of equations 6
    and 7, where ψ is N times as large: then c F_pop without replacement is N(N/B − 1) F_u, equation
    (14) (the lecture's text has it with replacement). A batch of an "epoch" taken alone is one
    drawn without replacement.
    """
    n_train, batch_size = check_batch(n_train, batch_size, sampling)
    as_mean = checks.one_of("units", units, ("mean", "sum")) == "mean"
    c = (1 if as_mean else n_train**2) / batch_size
    return c if sampling == "with_replacement" else c * (n_train - batch_size) / (n_train - 1)


def noise_scale(
    lr: float, batch_size: float, n_train: int, *, momentum: float = 0.0, replacement: bool = False
) -> float:
    """g of equation (24), in units of the learning rate.

    η (N/B − 1)/(1 − m) without replacement, with F_u; with it, η N/B/(1 − m) with F_pop, which the
    lecture has as the approximation for B ≪ N. Momentum m: Smith & Le (1710.06451).
    """
    lr, n_train = checks.real("lr", lr, above=0), checks.whole("n_train", n_train, least=1)
    momentum = checks.real("momentum", momentum, least=0, below=1)
    bounds = {} if checks.flag("replacement", replacement) else {"most": n_train}
    batch_size = checks.real("batch_size", batch_size, above=0, **bounds)
    return lr * (n_train / batch_size - (not replacement)) / (1 - momentum)


def batch_size_for(
    g: float, lr: float, n_train: int, *, momentum: float = 0.0, replacement: bool = False
) -> float:
    """The batch size (not rounded, at least 1) at which :func:`noise_scale` is ``g``."""
    lr, n_train = checks.real("lr", lr, above=0), checks.whole("n_train", n_train, least=1)
    momentum = checks.real("momentum", momentum, least=0, below=1)
    least = "above" if checks.flag("replacement", replacement) else "least"
    g = checks.real("g", g, **{least: 0})
    batch_size = n_train / (g * (1 - momentum) / lr + (not replacement))
    if batch_size < 1 - 1e-9:
        needed = f"a noise scale of {g:g} needs {batch_size:.2g} samples in a batch"
        raise ValueError(f"{needed}: raise lr = {lr:g} or n_train = {n_train}")
    return batch_size
