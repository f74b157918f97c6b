"""The noise of mini-batch gradients: its covariance, its shape, and the scales made of it.

With g_i = ∇ℓ(x_i, y_i; w), the gradient of sample i of N, and ḡ their mean, the covariance of the
gradients, the lecture's F(w), is one of ::

    F_pop = (1/N)     Σ_i (g_i − ḡ)(g_i − ḡ)ᵀ     unbiased=False
    F_u   = 1/(N − 1) Σ_i (g_i − ḡ)(g_i − ḡ)ᵀ     unbiased=True

and the fluctuation of a batch is ψ = ∇ℓ̂ − ∇ℓ (equation 11). ``units`` are "mean" (losses are means
over samples, as in training) or "sum" (equations 6–7: ψ is N times as large). ``sampling`` is
that of :func:`lecture6.train.sample_batches`. McCandlish et al. (1812.06162) call F and ḡ Σ and G,
and so do their noise scales below; H is the Hessian.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from lecture6 import curvature
from lecture6.objective import MEMORY_LIMIT, NetworkObjective, Product, _graph_bytes
from lecture6.sample_gradients import SampleGradients
from lecture6.train import sample_batches

SAMPLINGS = ("with_replacement", "without_replacement", "epoch")


@dataclass(frozen=True)
class NoiseEstimate:
    """A number, or an array of them, with its standard error (0 where it is exact)."""

    value: float | np.ndarray
    stderr: float | np.ndarray
    n_samples: int  #: independent ones that the standard error comes from


def _square(v: Tensor) -> float:
    return v.double().square().sum().item()


# Gradients sample by sample


def per_sample_gradients(
    objective: NetworkObjective, w: Tensor, *, memory_limit: int = MEMORY_LIMIT
) -> Iterator[Tensor]:
    """The gradients of the samples in their order, in chunks of shape (n_chunk, n_params).

    ``memory_limit`` (bytes) holds a chunk, the one before it, which the caller may not have let go
    of, and what torch needs on the way. Raises ValueError where one sample does not fit, and for a
    network that mixes the samples of a batch.
    """
    w = objective.vector(w)
    point = w.clone().requires_grad_()
    two, three = (
        _graph_bytes(objective._logits(point, objective.x[[0] * n].to(w))) for n in (2, 3)
    )
    # The two chunks; what goes into them in one piece; the activations, their gradients, and what
    # the convolutions unfold.
    need = 2 * w.nbytes + 2 * objective.per_sample.loose * w.itemsize + 3 * (three - two)
    if need > memory_limit:
        raise ValueError(
            f"the gradient of one sample needs {need:,} bytes for {objective.n_params:,} "
            f"parameters, more than memory_limit = {memory_limit:,}: raise the limit, or use "
            'products (of="gradients"), which form none'
        )
    # map lets go of each before the next is made
    yield from map(SampleGradients.matrix, objective.sample_gradients(w, most=memory_limit // need))


def project_gradients(objective: NetworkObjective, w: Tensor, directions: Tensor) -> Tensor:
    """g_i·u_j for the N samples and k ``directions`` u (k, n_params): shape (N, k).

    No gradient of a linear layer is formed, and memory does not grow with N but for the result.
    Raises ValueError for other shapes, and for a network that mixes the samples of a batch.
    """
    u, d = torch.as_tensor(directions).to(objective.w), objective.n_params
    if u.dim() != 2 or u.shape[1] != d:
        raise ValueError(f"expected directions of shape (k, {d}), got {tuple(u.shape)}")

    def along(gradients: SampleGradients) -> Tensor:
        return torch.stack([gradients.dot(row) for row in u], dim=1)

    return torch.cat(list(map(along, objective.sample_gradients(w))))


def random_directions(objective: NetworkObjective, k: int, *, seed: int = 0) -> Tensor:
    """``k`` random unit vectors, (k, n_params), uniform on the sphere."""
    rows = np.random.default_rng(seed).standard_normal((k, objective.n_params))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return torch.from_numpy(rows).to(objective.w)


@dataclass(frozen=True)
class GradientCovariance:
    """F(w) of a network on its samples: F_pop, or F_u with ``unbiased=True``.

    ``memory_limit`` (bytes) bounds what each method keeps, but for ``eigenvalues``, which has the
    default. Raises ValueError for a network that mixes the samples of a batch.
    """

    objective: NetworkObjective
    w: Tensor = field(repr=False)
    unbiased: bool = False
    memory_limit: int = MEMORY_LIMIT

    def __post_init__(self) -> None:
        if self.unbiased and self.n_train < 2:
            raise ValueError("F_u divides by N − 1: needs at least 2 samples, got 1")
        self.objective.check_separate(self.w)

    @property
    def n_train(self) -> int:
        """N, the number of samples."""
        return self.objective.n_samples

    @cached_property
    def mean(self) -> Tensor:
        """ḡ, the gradient of the mean loss, (n_params,)."""
        return self.objective.grad(self.w)

    @property
    def _scale(self) -> float:  # F over F_pop
        return self.n_train / (self.n_train - 1) if self.unbiased else 1.0

    @cached_property
    def _product(self) -> Product:
        return self.objective.product(self.w, of="covariance", memory_limit=self.memory_limit)

    def __matmul__(self, v: Tensor) -> Tensor:
        """F v for v (n_params,), or for a block (k, n_params) of k vectors."""
        return self._product(v).mul_(self._scale)

    def _centred(self, memory_limit: int) -> Iterator[Tensor]:
        chunks = per_sample_gradients(self.objective, self.w, memory_limit=memory_limit)
        return map(lambda g: g.sub_(self.mean), chunks)

    def matrix(self) -> Tensor:
        """F itself, (n_params, n_params). Raises ValueError where it exceeds the memory limit."""
        d = len(self.mean)
        size = self.mean.nbytes * d
        if size > self.memory_limit:
            raise ValueError(
                f"a matrix of {d:,}² numbers takes {size:,} bytes, more than memory_limit = "
                f"{self.memory_limit:,}: use products (covariance @ v), or raise the limit"
            )
        out = self.mean.new_zeros(d, d)
        for chunk in self._centred(self.memory_limit - size):
            out.addmm_(chunk.T, chunk, alpha=self._scale / self.n_train)
        return out

    def trace(self) -> float:
        """tr F, exactly: the mean of ‖g_i‖², less ‖ḡ‖²."""
        norms = map(SampleGradients.squared_norms, self.objective.sample_gradients(self.w))
        mean = sum(part.sum(dtype=torch.float64).item() for part in norms) / self.n_train
        return self._scale * (mean - _square(self.mean))

    def eigenvalues(self, k: int = 5, **options) -> curvature.Eigenpairs:
        """The ``k`` largest with their residuals; options: :func:`lecture6.curvature.eigenvalues`.

        The eigenvalues of F_u are those of F_pop times N/(N − 1), their tolerance is relative.
        """
        found = curvature.eigenvalues(self.objective, self.w, k, of="covariance", **options)
        scaled = ("values", "residuals", "errors")
        return replace(found, **{name: self._scale * getattr(found, name) for name in scaled})

    def simple_noise_scale(self) -> NoiseEstimate:
        """B_simple = tr F/‖ḡ‖², exactly, over these samples (McCandlish et al., 1812.06162)."""
        squared = _square(self.mean)
        if squared == 0:
            raise ValueError("the gradient is 0 at w, and B_simple = tr F/‖ḡ‖² not defined there")
        return NoiseEstimate(self.trace() / squared, 0.0, self.n_train)


# The fluctuation of a batch

Source = GradientCovariance | Tensor  # a network's, or gradients or projections of them (N, k)


def check_batch(n_train: int, batch_size: int, sampling: str) -> None:
    """Raises ValueError for a batch size or a sampling that cannot be."""
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling must be one of {', '.join(SAMPLINGS)}, got {sampling!r}")
    most = math.inf if sampling == "with_replacement" else n_train
    if n_train < 2 or not 1 <= batch_size <= most:
        raise ValueError(
            "needs n_train ≥ 2 and a batch_size of at least 1, and without replacement of at most "
            f"n_train: got batch_size = {batch_size}, n_train = {n_train}"
        )


def _unit(n_train: int, units: str, unbiased: bool = False) -> float:
    """The factor on c in Cov(ψ) = c F that ``units`` and F_u bring."""
    if units not in ("mean", "sum"):
        raise ValueError(f"units must be 'mean' or 'sum', got {units!r}")
    c = 1.0 if units == "mean" else float(n_train) ** 2
    return c * (n_train - 1) / n_train if unbiased else c


def covariance_factor(
    n_train: int, batch_size: int, *, sampling: str, units: str = "mean", unbiased: bool = False
) -> float:
    """c in Cov(ψ) = c F, exactly; ``unbiased`` says which F is meant.

    In units "sum": with replacement N²/B for F_pop, without N(N/B − 1) for F_u, equation (14) (the
    lecture's text has it with replacement). A batch of an "epoch" taken alone is one drawn without
    replacement. Raises ValueError for impossible settings.
    """
    check_batch(n_train, batch_size, sampling)
    c = _unit(n_train, units, unbiased) / batch_size
    return c if sampling == "with_replacement" else c * (n_train - batch_size) / (n_train - 1)


def cross_covariance_factor(
    n_train: int,
    *,
    sampling: str,
    same_epoch: bool = True,
    units: str = "mean",
    unbiased: bool = False,
) -> float:
    """c in E[ψ ψ'ᵀ] = c F for two different batches at the same w, whatever their sizes.

    −1/(N − 1) for F_pop (units "mean") in one "epoch", whose batches exclude each other; 0 in
    different epochs, and where every batch is drawn anew. Raises ValueError as the others do.
    """
    check_batch(n_train, 1, sampling)
    together = sampling == "epoch" and same_epoch
    return -_unit(n_train, units, unbiased) / (n_train - 1) if together else 0.0


def _indices(n_train: int, batch_size: int, sampling: str, seed: int) -> Iterator[Tensor]:
    """Indices of batches without end; the smaller last one of an epoch is left out."""
    check_batch(n_train, batch_size, sampling)
    generator = torch.Generator().manual_seed(seed)
    while True:
        for index in sample_batches(n_train, batch_size, sampling=sampling, generator=generator):
            if len(index) == batch_size:
                yield index


def _batch_gradients(source: Source) -> tuple[int, Callable, Tensor]:
    """N, the function of a batch's indices that gives its mean gradient, and ḡ."""
    if isinstance(source, Tensor):
        return len(source), lambda index: source[index].mean(0), source.mean(0)
    return source.n_train, lambda i: source.objective.on(i).grad(source.w), source.mean


def fluctuations(
    source: Source,
    batch_size: int,
    n_batches: int,
    *,
    sampling: str = "epoch",
    units: str = "mean",
    seed: int = 0,
) -> Iterator[Tensor]:
    """ψ of ``n_batches`` random batches, one by one, (n_params,) or (k,) each.

    Arguments:
        source: a network's :class:`GradientCovariance`: the gradient of every batch is computed; or
            gradients or their projections, (N, k): rows are averaged, which is cheap

    Raises ValueError for impossible settings.
    """
    n_train, gradient, mean = _batch_gradients(source)
    unit = _unit(n_train, units) ** 0.5
    for index in islice(_indices(n_train, batch_size, sampling, seed), n_batches):
        yield unit * (gradient(index) - mean)


@dataclass(frozen=True)
class FluctuationMoments:
    """Second moments of ψ estimated from random batches; its mean is 0 and not estimated.

    ``n_samples`` counts batches; for "epoch" sampling epochs, within which they are correlated.
    """

    trace: NoiseEstimate  #: of Cov(ψ)
    covariance: NoiseEstimate | None  #: (k, k) U Cov(ψ) Uᵀ, quadratic forms on its diagonal


def fluctuation_moments(
    source: Source,
    batch_size: int,
    *,
    directions: Tensor | None = None,
    n_batches: int = 200,
    sampling: str = "epoch",
    units: str = "mean",
    seed: int = 0,
) -> FluctuationMoments:
    """The covariance of ψ from batches drawn as in training, unbiased, with standard errors.

    The arguments are those of :func:`fluctuations`, and one more.

    Arguments:
        directions: U, (k, n_params); None: the identity for gradients or projections, and of a
            network the trace alone, without a covariance

    Raises ValueError for fewer than 2 batches, or 2 epochs with "epoch" sampling.
    """
    n_train = _batch_gradients(source)[0]
    check_batch(n_train, batch_size, sampling)
    per_group = n_train // batch_size if sampling == "epoch" else 1
    groups = np.arange(n_batches) // per_group
    if n_batches <= per_group:
        raise ValueError(
            f"a standard error needs more than {per_group} batches, which are one independent "
            f"sample with {sampling!r} sampling: got n_batches = {n_batches}"
        )
    psi = fluctuations(source, batch_size, n_batches, sampling=sampling, units=units, seed=seed)
    norms, rows = [], []
    for each in psi:
        norms.append(_square(each))
        if directions is not None:
            each = torch.as_tensor(directions).to(each) @ each
        if directions is not None or isinstance(source, Tensor):
            rows.append(each.double().cpu().numpy()[:, None])
    outer = np.array([row * row.T for row in rows])
    return FluctuationMoments(
        trace=_grouped_mean(np.array(norms), groups),
        covariance=_grouped_mean(outer, groups) if rows else None,
    )


def _grouped_mean(samples: np.ndarray, groups: np.ndarray) -> NoiseEstimate:
    """The mean over axis 0, with the standard error for samples correlated within groups."""
    n, n_groups = len(samples), groups[-1] + 1
    mean = samples.mean(0)
    sums = np.zeros((n_groups, *samples.shape[1:]))
    np.add.at(sums, groups, samples - mean)
    stderr = np.sqrt((sums**2).sum(0) * n_groups / (n_groups - 1)) / n
    return NoiseEstimate(mean[()], stderr[()], int(n_groups))


@dataclass(frozen=True)
class Normality:
    """How far k samples of n numbers are from a normal law; arrays are (k,) unless said.

    Standard errors hold for any law with enough moments; p-values are for the hypothesis that the
    law is normal: D'Agostino's test of the skewness, Anscombe and Glynn's of the kurtosis, and
    D'Agostino and Pearson's K² of both together, for independent numbers.
    """

    skewness: np.ndarray
    skewness_stderr: np.ndarray
    skewness_p: np.ndarray
    excess_kurtosis: np.ndarray
    excess_kurtosis_stderr: np.ndarray
    excess_kurtosis_p: np.ndarray
    normal_p: np.ndarray
    tail_index: np.ndarray  #: Hill's α of x, ``P(|x| > t) ~ t^−α``
    tail_index_stderr: np.ndarray  #: α/√n_tail
    n_tail: int  #: order statistics that the tail index is from
    theoretical: np.ndarray  #: (n,) quantiles of the normal law at (i − ½)/n
    observed: np.ndarray  #: (n, k) standardised and sorted
    n_samples: int


def normality(samples: Tensor | np.ndarray, *, n_tail: int | None = None) -> Normality:
    """Compare ``samples`` (n, k), k directions or one (n,), with the normal law.

    ``n_tail``: default √n. The tail index of a normal law has no limit: it grows as the tail
    shrinks. For "epoch" sampling draw "without_replacement", the law of one batch: the batches of
    one epoch are not independent. Raises ValueError for n < 20 and for samples without spread.
    """
    x = torch.as_tensor(samples).double().cpu().numpy()
    x = x[:, None] if x.ndim == 1 else x
    n = len(x)
    n_tail = math.isqrt(n) if n_tail is None else n_tail
    if n < 20 or not 1 <= n_tail < n:
        raise ValueError(f"needs 20 samples or more and 1 ≤ n_tail < n: got {n}, n_tail = {n_tail}")
    if not (np.isfinite(x).all() and (np.ptp(x, axis=0) > 0).all()):
        raise ValueError("the samples of each direction must be finite and differ from each other")
    z = (x - x.mean(0)) / x.std(0)
    skewness, kurtosis = (z**3).mean(0), (z**4).mean(0)
    influence = z**3 - 3 * z - 1.5 * skewness * (z**2 - 1)  # of each number on the skewness
    influence4 = z**4 - 4 * skewness * z - 2 * kurtosis * (z**2 - 1)
    tail = np.sort(np.abs(x), axis=0)[n - n_tail - 1 :]
    with np.errstate(all="ignore"):  # ∞ where the largest are all equal
        alpha = 1 / np.log(tail[1:] / tail[0]).mean(0)
    return Normality(
        skewness=skewness,
        skewness_stderr=influence.std(0, ddof=1) / math.sqrt(n),
        skewness_p=stats.skewtest(x).pvalue,
        excess_kurtosis=kurtosis - 3,
        excess_kurtosis_stderr=influence4.std(0, ddof=1) / math.sqrt(n),
        excess_kurtosis_p=stats.kurtosistest(x).pvalue,
        normal_p=stats.normaltest(x).pvalue,
        tail_index=alpha,
        tail_index_stderr=alpha / math.sqrt(n_tail),
        n_tail=n_tail,
        theoretical=stats.norm.ppf((np.arange(n) + 0.5) / n),
        observed=np.sort(z, axis=0),
        n_samples=n,
    )


# Noise scales


def noise_scale(
    lr: float, batch_size: float, n_train: int, *, momentum: float = 0.0, replacement: bool = False
) -> float:
    """g of equation (24), in units of the learning rate.

    η (N/B − 1)/(1 − m) without replacement, with F_u; with it, η N/B/(1 − m) with F_pop, which the
    lecture has as the approximation for B ≪ N. Momentum m: Smith & Le (1710.06451). Raises
    ValueError for impossible settings.
    """
    _check_rates(lr, n_train, momentum)
    if not (batch_size > 0 and (replacement or batch_size <= n_train)):
        raise ValueError(
            "batch_size must be positive, and without replacement at most n_train: got "
            f"{batch_size}, n_train = {n_train}"
        )
    return lr * (n_train / batch_size - (not replacement)) / (1 - momentum)


def batch_size_for(
    noise_scale: float, lr: float, n_train: int, *, momentum: float = 0.0, replacement: bool = False
) -> float:
    """The batch size (not rounded) at which :func:`noise_scale` has this value.

    Raises ValueError for impossible settings, and where the batch would be less than one sample.
    """
    _check_rates(lr, n_train, momentum)
    if not noise_scale >= 0 or (replacement and noise_scale == 0):
        raise ValueError(f"noise_scale must be positive (0: no replacement), got {noise_scale}")
    batch_size = n_train / (noise_scale * (1 - momentum) / lr + (not replacement))
    if batch_size < 1 - 1e-9:
        raise ValueError(
            f"a noise scale of {noise_scale:g} needs {batch_size:.2g} samples in a batch: raise "
            f"lr = {lr:g} or n_train = {n_train}"
        )
    return batch_size


def _check_rates(lr: float, n_train: int, momentum: float) -> None:
    if not (lr > 0 and n_train >= 1 and 0 <= momentum < 1):
        raise ValueError(
            f"needs lr > 0, n_train ≥ 1, 0 ≤ momentum < 1: got {lr = }, {n_train = }, {momentum = }"
        )


@dataclass(frozen=True)
class SimpleNoiseScale:
    """B_simple = tr Σ/‖G‖² from pairs of batches, with the unbiased parts that it is a ratio of."""

    noise_scale: NoiseEstimate  #: samples; standard error by the delta method
    trace: NoiseEstimate  #: tr Σ
    squared_gradient: NoiseEstimate  #: ‖G‖²


def two_batch_noise_scale(
    small: np.ndarray, big: np.ndarray, b_small: int, b_big: int
) -> SimpleNoiseScale:
    """B_simple from squared norms of the gradients of small and big batches, (n,) each, by pairs.

    ‖G‖² ← (B ‖G_B‖² − b ‖G_b‖²)/(B − b) and tr Σ ← (‖G_b‖² − ‖G_B‖²)/(1/b − 1/B) are unbiased;
    each is averaged over the pairs before the ratio is taken (McCandlish et al., 1812.06162,
    App. A). Raises ValueError for impossible settings, and when ‖G‖² is not found to be positive.
    """
    small, big = np.asarray(small, dtype=float), np.asarray(big, dtype=float)
    n = len(small)
    if n < 2 or small.shape != big.shape or not 1 <= b_small < b_big:
        raise ValueError(
            f"needs 2 pairs of batches or more, with 1 ≤ b_small < b_big: got {n} and {len(big)} "
            f"norms, {b_small} and {b_big}"
        )
    g = (b_big * big - b_small * small) / (b_big - b_small)
    s = (small - big) / (1 / b_small - 1 / b_big)
    if not g.mean() > 0:
        raise ValueError(
            f"the estimate of ‖G‖² is {g.mean():.3g}, not positive: the noise hides the gradient; "
            f"take more than {n} pairs, or big batches of more than {b_big}"
        )
    ratio, groups = s.mean() / g.mean(), np.arange(n)
    spread = _grouped_mean(s - ratio * g, groups).stderr / g.mean()
    return SimpleNoiseScale(
        noise_scale=NoiseEstimate(float(ratio), float(spread), n),
        trace=_grouped_mean(s, groups),
        squared_gradient=_grouped_mean(g, groups),
    )


def estimate_simple_noise_scale(
    source: Source, *, b_small: int, b_big: int, n_pairs: int = 100, seed: int = 0
) -> SimpleNoiseScale:
    """:func:`two_batch_noise_scale` on batches drawn with replacement, which keeps it unbiased.

    The small batch is the first part of the big one. ``source``: see :func:`fluctuations`.
    """
    n_train, gradient, _ = _batch_gradients(source)
    batches = islice(_indices(n_train, b_big, "with_replacement", seed), n_pairs)
    norms = [[_square(gradient(i)) for i in (index[:b_small], index)] for index in batches]
    return two_batch_noise_scale(*np.array(norms).T, b_small, b_big)


def critical_batch_size(
    covariance: GradientCovariance, *, n_products: int = 30, seed: int = 0
) -> NoiseEstimate:
    """B_noise = tr(HΣ)/(GᵀHG), the critical batch size (McCandlish et al., 1812.06162).

    By Hutchinson's estimate vᵀHΣv with random signs v, of which few leave the standard error itself
    uncertain; exactly, by a product of the Hessian with every sample's gradient, where
    ``n_products`` are N or more. Raises ValueError for fewer than 2, and where GᵀHG is not
    positive, since the loss then falls along G at any rate.
    """
    if n_products < 2:
        raise ValueError(f"a standard error needs at least 2 products, got {n_products}")
    n, g = covariance.n_train, covariance.mean
    hessian = covariance.objective.product(covariance.w, memory_limit=covariance.memory_limit)
    bottom = (g @ hessian(g)).item()
    if not bottom > 0:
        raise ValueError(
            f"GᵀHG = {bottom:.3g} is not positive: B_noise is defined where the loss curves up "
            "along the gradient; train on, or take simple_noise_scale()"
        )
    if n_products >= n:
        centred = covariance._centred(covariance.memory_limit)
        total = sum((c * hessian(c)).sum(dtype=torch.float64).item() for c in centred)
        return NoiseEstimate(covariance._scale * total / n / bottom, 0.0, n)
    generator, samples = np.random.default_rng(seed), []
    for _ in range(n_products):
        v = torch.from_numpy(2 * generator.integers(0, 2, len(g), dtype=np.int8) - 1).to(g)
        samples.append((hessian(v) @ (covariance @ v)).item() / bottom)
    return _grouped_mean(np.array(samples), np.arange(n_products))


# One update, and many


@dataclass(frozen=True)
class UpdateMoments:
    """Mean (n_params,) and covariance (n_params, n_params) of one update of SGD."""

    mean: Tensor
    covariance: Tensor


def update_moments(
    gradients: Tensor, lr: float, batch_size: int, *, sampling: str = "epoch"
) -> UpdateMoments:
    """Those that equations (18)–(23) give: −(η/N) ∇ℓ and (η/N) g F.

    ``gradients`` (N, n_params) are those of the samples. With g of :func:`noise_scale` and the F
    that belongs to it, they are exactly those of the update.
    """
    n_train = len(gradients)
    check_batch(n_train, batch_size, sampling)
    replacement = sampling == "with_replacement"
    centred = gradients - gradients.mean(0)
    f = centred.T @ centred / (n_train - (not replacement))
    g = noise_scale(lr, batch_size, n_train, replacement=replacement)
    return UpdateMoments(-lr / n_train * gradients.sum(0), lr / n_train * g * f)


def simulate_updates(
    gradients: Tensor,
    lr: float,
    batch_size: int,
    n_updates: int,
    *,
    sampling: str = "epoch",
    seed: int = 0,
) -> Tensor:
    """``n_updates`` updates −η (mean gradient of a random batch), all from the same w: (n, d).

    Those of one "epoch" are correlated: see :func:`cross_covariance_factor`.
    """
    noise = fluctuations(gradients, batch_size, n_updates, sampling=sampling, seed=seed)
    return -lr * (gradients.mean(0) + torch.stack(list(noise)))
