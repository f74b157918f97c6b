"""The noise of a network's mini-batch gradients: its covariance, its shape, and its scales.

F is F_pop of :mod:`lecture6.noise_scale`, which has the formulas; ψ is the fluctuation of a batch's
mean gradient. McCandlish et al. (1812.06162) call F and ḡ Σ and G, and so do their noise scales
below; H is the Hessian. All raise ValueError for impossible settings, for gradients that are not
finite, and for a network that mixes the samples of a batch. Standard errors count rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice, repeat
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from lecture6 import checks, curvature
from lecture6.curvature import Estimate
from lecture6.noise_scale import check_batch
from lecture6.objective import PIECE, NetworkObjective, Product, length, vector
from lecture6.sample_gradients import SampleGradients
from lecture6.train import sample_batches


def _square(v: Tensor) -> float:
    return v.double().square().sum().item()


def per_sample_gradients(objective: NetworkObjective, w: Tensor) -> Iterator[Tensor]:
    """The gradients of the samples in their order, in chunks of shape (n_chunk, n_params).

    A chunk is of a batch of the objective at most, and of 2²⁴ numbers or one sample.
    """
    most = max(1, min(objective.batch_size, PIECE // objective.n_params))
    # map lets go of each before the next is made
    return map(SampleGradients.matrix, objective.sample_gradients(w, most=most))


def project_gradients(objective: NetworkObjective, w: Tensor, directions: Tensor) -> Tensor:
    """g_i·u_j for the N samples and k ``directions`` u (k, n_params): shape (N, k).

    No gradient of a linear layer is formed, and memory does not grow with N but for the result.
    """
    u, d = torch.as_tensor(directions).to(objective.w), objective.n_params
    checks.finite("directions", u, "give finite ones")
    if u.dim() != 2 or u.shape[1] != d:
        raise ValueError(f"expected directions of shape (k, {d}), got {tuple(u.shape)}")

    def along(gradients: SampleGradients) -> Tensor:
        return torch.stack([gradients.dot(row) for row in u], dim=1)

    return torch.cat(list(map(along, objective.sample_gradients(w))))


@dataclass(frozen=True)
class GradientCovariance:
    """F(w) of a network on its samples: (1/N) Σ_i (g_i − ḡ)(g_i − ḡ)ᵀ."""

    objective: NetworkObjective
    w: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        checks.instance(NetworkObjective, self.objective, "an objective: NetworkObjective(…)")
        self.objective.check_separate(self.w)

    @cached_property
    def mean(self) -> Tensor:
        """ḡ, the gradient of the mean loss, (n_params,)."""
        g = self.objective.grad(self.w)
        return checks.finite("the gradient at w", g, "is the loss finite there?")

    @cached_property
    def _product(self) -> Product:
        return self.objective.product(self.w, of="covariance")

    def __matmul__(self, v: Tensor) -> Tensor:
        """F v for v (n_params,), or for a block (k, n_params) of k vectors."""
        return self._product(v)

    @cached_property
    def rounding(self) -> float:
        """How far rounding moves a sample's gradient, in rms over a few samples.

        As far as a weight's last digit does, and as far as float32 is from float64.
        """
        f, w = self.objective.few(), vector(self.objective, self.w)
        eps = torch.finfo(w.dtype).eps
        moved = w + eps * w * curvature.random_signs(np.random.default_rng(0), w)
        points = (f, w), (f, moved), (self.objective.few(exact=True), w)
        here, *others = (next(f.sample_gradients(w, most=f.n_samples)) for f, w in points)
        squares = sum(g.minus(here).squared_norms() for g in others)
        return math.sqrt((squares + eps**2 * here.squared_norms()).mean().item())

    def trace(self) -> Estimate:
        """tr F, exactly: the mean of ‖g_i − ḡ‖², with what rounding leaves open."""
        f, w = self.objective, vector(self.objective, self.w)
        central, total, sums = f.central_gradient(w), 0.0, torch.zeros_like(w)
        for each in f.sample_gradients(w):
            d = each.minus(central)
            total += d.squared_norms().sum().item() / f.n_samples
            sums += d.sum()
        value = max(total - _square(sums / f.n_samples), 0.0)
        stderr = _rounding(self, value) + float(np.finfo(float).eps) * total
        checks.finite("tr F", torch.tensor([value, stderr], dtype=torch.float64), "is w too large?")
        return Estimate(value, stderr, f.n_samples)

    def eigenvalues(self, k: int = 5, **options: Any) -> curvature.Eigenpairs:
        """The ``k`` largest; see :func:`lecture6.curvature.eigenvalues`."""
        return curvature.eigenvalues(self.objective, self.w, k, of="covariance", **options)

    def simple_noise_scale(self) -> Estimate:
        """B_simple = tr F/‖ḡ‖², exactly, over these samples (McCandlish et al., 1812.06162)."""
        squared, spread = _square(self.mean), self.trace()
        if not squared > self.rounding**2:
            raise ValueError(
                "the gradient is 0 at w, but for rounding, and B_simple = tr F/‖ḡ‖² not defined"
            )
        value, e = spread.value / squared, 2 * self.rounding / math.sqrt(squared)
        return Estimate(value, math.hypot(spread.stderr / squared, value * e), spread.n_samples)


Source = GradientCovariance | Tensor  # a network's, or gradients or projections of them (N, k)


def _n_train(source: Source) -> int:
    if not isinstance(source, Tensor):
        checks.instance(GradientCovariance, source, "GradientCovariance(f, w), or a tensor (N, k)")
        return source.objective.n_samples
    return len(checks.finite("the gradients", source, "is the loss finite at w?"))


def _batches(
    source: Source, batch_size: int, count: int, sampling: str, seed: int
) -> Iterator[Tensor]:
    """Indices of ``count`` random batches; the smaller last one of an epoch is left out."""
    n_train, batch_size = check_batch(_n_train(source), batch_size, sampling)
    generator = torch.Generator().manual_seed(checks.seed(seed))
    epoch = partial(sample_batches, n_train, batch_size, sampling=sampling, generator=generator)
    endless = (index for _ in repeat(None) for index in epoch() if len(index) == batch_size)
    return islice(endless, count)


def _gradient(source: Source, index: Tensor) -> Tensor:
    """The mean gradient of the samples ``index``."""
    if isinstance(source, Tensor):
        return source[index].double().mean(0)
    return source.objective.on(index).grad(source.w)


def _rounding(source: Source, square: float) -> float:
    """What rounding leaves open of the squared norm of a mean gradient, or of a fluctuation."""
    if isinstance(source, Tensor):
        e = float(np.finfo(float).eps) * source.double().norm(dim=1).max().item()
    else:
        e = source.rounding
    return 2 * math.sqrt(square) * e + e**2


def fluctuations(
    source: Source, batch_size: int, n_batches: int, *, sampling: str = "epoch", seed: int = 0
) -> Iterator[Tensor]:
    """ψ of ``n_batches`` random batches, one by one, (n_params,) or (k,) each.

    ``source``: a network's :class:`GradientCovariance`: the gradient of every batch is computed; or
    gradients or their projections, (N, k): rows are averaged, which is cheap.
    """
    n_batches = checks.whole("n_batches", n_batches, least=1)
    batches = _batches(source, batch_size, n_batches, sampling, seed)
    mean = source.double().mean(0) if isinstance(source, Tensor) else source.mean
    return (_gradient(source, index) - mean for index in batches)


def fluctuation_trace(
    source: Source, batch_size: int, *, n_batches: int = 200, sampling: str = "epoch", seed: int = 0
) -> Estimate:
    """tr Cov(ψ) from batches drawn as in training: the mean of ‖ψ‖², unbiased, as ψ has the mean 0.

    The arguments are those of :func:`fluctuations`. Batches of one epoch are correlated, so that
    epochs are the independent samples, of which it needs 2.
    """
    n_train, batch_size = check_batch(_n_train(source), batch_size, sampling)
    n_batches = checks.whole("n_batches", n_batches, least=1)
    per_group = n_train // batch_size if sampling == "epoch" else 1
    if n_batches <= per_group:
        raise ValueError(
            f"a standard error needs more than {per_group} batches, which are one independent "
            f"sample with {sampling!r} sampling: got n_batches = {n_batches}"
        )
    psi = fluctuations(source, batch_size, n_batches, sampling=sampling, seed=seed)
    squares = [_square(each) for each in psi]
    rounding = _rounding(source, float(np.mean(squares)))
    return Estimate.mean(squares, np.arange(n_batches) // per_group, rounding=rounding)


@dataclass(frozen=True)
class Normality:
    """How far k samples of n numbers are from a normal law; arrays are (k,) unless said.

    The standard error of the kurtosis holds for any law with enough moments; the p-value is for the
    hypothesis that the law is normal and the numbers independent: D'Agostino and Pearson's K².
    """

    excess_kurtosis: np.ndarray
    excess_kurtosis_stderr: np.ndarray
    normal_p: np.ndarray
    tail_index: np.ndarray  #: Hill's α of x, ``P(|x| > t) ~ t^−α``, from the √n largest
    tail_index_stderr: np.ndarray
    observed: np.ndarray  #: (n, k) standardised and sorted


def normality(samples: Tensor | np.ndarray) -> Normality:
    """Compare ``samples`` (n, k), k directions or one (n,), with the normal law.

    The tail index of a normal law has no limit: it grows as the tail shrinks. For "epoch" sampling
    draw "without_replacement", the law of one batch: the batches of one epoch are not independent.
    Raises ValueError for n < 20 and for samples without spread.
    """
    x = torch.as_tensor(samples).double().cpu().numpy()
    x = x[:, None] if x.ndim == 1 else x
    n, n_tail = len(x), math.isqrt(len(x))
    if n < 20:
        raise ValueError(f"needs 20 samples or more, got {n}")
    if not (np.isfinite(x).all() and (np.ptp(x, axis=0) > 0).all()):
        raise ValueError("the samples of each direction must be finite and differ from each other")
    x = x / np.abs(x).max(0)  # squares stay in range
    z = (x - x.mean(0)) / x.std(0)
    skewness, kurtosis = (z**3).mean(0), (z**4).mean(0)
    influence = z**4 - 4 * skewness * z - 2 * kurtosis * (z**2 - 1)  # of each on the kurtosis
    tail = np.sort(np.abs(x), axis=0)[n - n_tail - 1 :]
    with np.errstate(all="ignore"):  # ∞ where the largest are all equal
        alpha = 1 / np.log(tail[1:] / tail[0]).mean(0)
    return Normality(
        excess_kurtosis=kurtosis - 3,
        excess_kurtosis_stderr=influence.std(0, ddof=1) / math.sqrt(n),
        normal_p=stats.normaltest(x).pvalue,
        tail_index=alpha,
        tail_index_stderr=alpha / math.sqrt(n_tail),
        observed=np.sort(z, axis=0),
    )


def estimate_simple_noise_scale(
    source: Source, *, b_small: int, b_big: int, n_pairs: int = 100, seed: int = 0
) -> Estimate:
    """B_simple = tr Σ/‖G‖² from squared norms of gradients of small and big batches, by pairs.

    ‖G‖² ← (B ‖G_B‖² − b ‖G_b‖²)/(B − b) and tr Σ ← (‖G_b‖² − ‖G_B‖²)/(1/b − 1/B) are averaged over
    the pairs before the ratio is taken (McCandlish et al., App. A), whose standard error is by the
    delta method. Batches are drawn with replacement, which keeps both unbiased; the small one is
    the first part of the big one. ``source``: see :func:`fluctuations`. Raises ValueError when ‖G‖²
    is not positive beyond rounding.
    """
    b_big = checks.whole("b_big", b_big, least=2)
    b_small = checks.whole("b_small", b_small, least=1, most=b_big - 1)
    n_pairs = checks.whole("n_pairs", n_pairs, least=2)
    batches = _batches(source, b_big, n_pairs, "with_replacement", seed)
    pairs = ((_gradient(source, index[:b_small]), _gradient(source, index)) for index in batches)
    norms = torch.tensor([list(map(_square, pair)) for pair in pairs], dtype=torch.float64)
    small, big = checks.finite("the norms", norms, "is the loss finite at w?").numpy().T
    g = big - (small - big) * (b_small / (b_big - b_small))
    s = (small - big) / (1 / b_small - 1 / b_big)
    rounding = _rounding(source, float(big.mean()))
    if not g.mean() > rounding:
        raise ValueError(
            f"the estimate of ‖G‖² is {g.mean():.3g}, not positive: the noise hides the gradient; "
            f"take more than {len(g)} pairs, or big batches of more than {b_big}"
        )
    ratio = s.mean() / g.mean()
    rounding = (rounding + np.finfo(float).eps * big.mean()) / (1 / b_small - 1 / b_big)
    stderr = Estimate.mean(s - ratio * g, rounding=rounding).stderr / g.mean()
    return Estimate(float(ratio), float(stderr), len(g))


def critical_batch_size(
    covariance: GradientCovariance, *, n_products: int = 30, seed: int = 0
) -> Estimate:
    """B_noise = tr(HΣ)/(GᵀHG), the critical batch size (McCandlish et al., 1812.06162).

    By Hutchinson's estimate vᵀHΣv with random signs v, of which few leave the standard error itself
    uncertain; exactly, by a product of the Hessian with every sample's gradient, where
    ``n_products`` are N or more. Raises ValueError where GᵀHG is not positive.
    """
    n_products = checks.whole("n_products", n_products, least=2)
    checks.instance(GradientCovariance, covariance, "GradientCovariance(f, w)")
    f, g = covariance.objective, covariance.mean
    generator, hessian = np.random.default_rng(checks.seed(seed)), f.product(covariance.w)
    size = length(g)  # all is in units of it, so that nothing overflows
    unit = g / size
    along = hessian(unit)
    bottom = (unit.double() @ along.double()).item()
    # what rounding leaves open of Hv for a unit vector v, and of the bottom
    unit_error = curvature.product_rounding(f, covariance.w, "hessian", unit)
    unsure = 2 * covariance.rounding / size * length(along) + unit_error
    if not math.inf > bottom > unsure:
        raise ValueError(
            f"GᵀHG/‖G‖² = {bottom:.3g} is not positive beyond rounding: B_noise is defined where "
            "the loss curves up along the gradient; train on, or take simple_noise_scale()"
        )
    if n_products >= f.n_samples:
        centred = (chunk.sub_(g).div_(size) for chunk in per_sample_gradients(f, covariance.w))
        total = sum((c * hessian(c)).sum(dtype=torch.float64).item() for c in centred)
        samples = [total / f.n_samples / bottom]
    else:
        samples = []
        for _ in range(n_products):
            v = curvature.random_signs(generator, g)
            top = hessian(v).double() @ (covariance @ v).double() / size**2
            samples.append(top.item() / bottom)
    spread = covariance.trace()
    top_error = spread.stderr / size**2 * length(along) + spread.value / size**2 * unit_error
    rounding = math.hypot(top_error, unsure * float(np.mean(samples))) / bottom
    return Estimate.mean(samples, rounding=rounding)
