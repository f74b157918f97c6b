"""A stated standard error covers: of 200 repeats, the truth is within three in 97 % or more.

That is so with as many draws as each estimator takes by default. The truth is a closed form, or
float64 on the same numbers. In float32, and where rounding hides what is measured, the error bars
must be as wide as that makes them.
"""

import functools
import math

import numpy as np
import pytest
import torch
from brute_force import Loss
from synthetic import gaussian_classes
from torch import nn
from torch.nn.functional import cross_entropy

from lecture6 import curvature, noise, sde, sharpness
from lecture6.models import local_seed
from lecture6.noise import GradientCovariance
from lecture6.objective import FunctionObjective, NetworkObjective

REPEATS = 200
F32, F64 = torch.float32, torch.float64
DATA = gaussian_classes(80, 10, shape=(4,), n_classes=3, separation=1.0)
each_precision = pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def covers(estimate, truth):
    """``estimate(seed)`` gives a value and its standard error."""
    found = np.array([estimate(seed) for seed in range(REPEATS)])
    assert np.isfinite(found).all()
    within = np.abs(found[:, 0] - truth) <= 3 * found[:, 1]
    assert within.sum() >= 0.97 * REPEATS, (within.sum(), truth, found[:5])


def number(estimate):
    return estimate.value, estimate.stderr


def quadratic(spectrum, dtype, *, above=0.0):
    """above + ½ wᵀHw with a dense H of this spectrum, and H as this precision has it."""
    n = len(spectrum)
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))[0]
    h = torch.from_numpy((q * spectrum) @ q.T).to(dtype)
    f = FunctionObjective(lambda w: above + 0.5 * w @ (h @ w), n)
    f.dtype = dtype
    return f, h.double().numpy()


def diagonal(spectrum, dtype):
    """½ Σ λ_i w_i², and the λ as this precision has them."""
    values = torch.tensor(spectrum, dtype=dtype)
    f = FunctionObjective(lambda w: 0.5 * (values * w**2).sum(), len(values))
    f.dtype = dtype
    return f, values.double().numpy()


@functools.cache
def network(dtype):
    """A small net on 80 samples, and its loss by brute force."""
    with local_seed(0):
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)
    x, y = DATA.x_train.to(dtype), DATA.y_train
    each = functools.partial(cross_entropy, reduction="none")
    objective = NetworkObjective(model, x, y)
    return objective, Loss(model, x, y, each, [torch.arange(len(y))])


# Sharpness


@each_precision
@pytest.mark.parametrize(
    ("above", "epsilon"), [(0.0, 1e-2), (1.0, 1e-3), (1.0, 1e-6), (3.0, 1e-8)], ids=str
)
def test_average_sharpness(dtype, above, epsilon):
    """Of a quadratic it is ½ ε² tr H, exactly; with 3 + f at 1e-8 it is all rounding."""
    f, h = quadratic(np.linspace(-0.5, 3.0, 20), dtype, above=above)
    x = torch.full((20,), 0.3, dtype=dtype)
    base = above + 0.5 * x.double().numpy() @ h @ x.double().numpy()
    truth = 100 / (1 + base) * 0.5 * epsilon**2 * np.trace(h)
    covers(lambda seed: number(sharpness.average(f, x, epsilon=epsilon, seed=seed)), truth)


# Curvature


@each_precision
@pytest.mark.parametrize(
    "spectrum",
    [np.linspace(-1, 5, 120), np.r_[1e4 * np.ones(60), -1e4 * np.ones(59), 0.1]],
    ids=["usual", "nearly cancels"],
)
def test_trace(dtype, spectrum):
    f, h = quadratic(spectrum, dtype)
    w = np.zeros(len(spectrum))
    covers(lambda seed: number(curvature.trace(f, w, seed=seed)), np.trace(h))


@each_precision
def test_trace_of_a_diagonal_matrix_is_rounding_alone(dtype):
    """Each draw of vᵀMv is the trace itself: draws that agree with each other prove nothing."""
    f, spectrum = diagonal([1e6, *[0.01] * 50, -1e6], dtype)
    truth = math.fsum(spectrum)
    covers(lambda seed: number(curvature.trace(f, np.zeros(52), seed=seed)), truth)


@each_precision
@pytest.mark.parametrize("of", ["hessian", "covariance"])
def test_trace_for_a_network(dtype, of):
    objective, loss = network(dtype)
    truth = np.trace(getattr(loss, of))

    def trace(seed):
        return number(curvature.trace(objective, objective.w, of=of, seed=seed))

    covers(trace, truth)


@each_precision
def test_means_over_the_spectral_density(dtype):
    """Of λ², most of which is two eigenvalues, ten vectors have a skewed law."""
    f, spectrum = diagonal([*np.linspace(-1, 1, 550), 8.0, 18.0], dtype)
    delta, w = 3.0, np.zeros(552)

    @functools.cache
    def density(seed):
        return curvature.spectral_density(f, w, seed=seed)

    def squares(seed):
        return number(density(seed).mean_of(np.square))

    def determinant(seed):
        return number(curvature.log_determinant(density(seed), delta))

    covers(squares, (spectrum**2).mean())
    covers(determinant, np.log(spectrum + delta).sum())


# Noise


@each_precision
def test_critical_batch_size(dtype):
    objective, loss = network(dtype)
    g, h = loss.grad, loss.hessian
    truth = np.trace(h @ loss.covariance) / (g @ h @ g)
    covariance = GradientCovariance(objective, objective.w)

    def estimate(seed):
        return number(noise.critical_batch_size(covariance, seed=seed))

    covers(estimate, truth)


def gradients(spread, dtype):
    """Of 60 samples, (60, 5): rows that differ by ``spread`` from their mean, and their F."""
    rows = 1 + spread * np.random.default_rng(1).standard_normal((60, 5)) ** 3
    rows = torch.from_numpy(rows).to(dtype)
    return rows, np.cov(rows.double().numpy().T, ddof=0)


SPREADS = pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-6, 1e-7], ids=str)


@each_precision
@SPREADS
@pytest.mark.parametrize("sampling", ["with_replacement", "without_replacement", "epoch"])
def test_fluctuation_trace(dtype, spread, sampling):
    rows, covariance = gradients(spread, dtype)
    c = 1 / 6 if sampling == "with_replacement" else (60 - 6) / (6 * (60 - 1))

    def estimate(seed):
        return number(noise.fluctuation_trace(rows, 6, sampling=sampling, seed=seed))

    covers(estimate, c * np.trace(covariance))


@each_precision
@SPREADS
@pytest.mark.parametrize("b_big", [100, 200])
def test_simple_noise_scale(dtype, spread, b_big):
    """A ratio, uncertain by a quarter where the spread is 1."""
    rows, covariance = gradients(spread, dtype)
    truth = np.trace(covariance) / (rows.double().mean(0) ** 2).sum().item()

    def estimate(seed):
        options = {"b_small": 5, "b_big": b_big, "seed": seed}
        return number(noise.estimate_simple_noise_scale(rows, **options))

    covers(estimate, truth)


# Walkers


def test_the_order_of_convergence_of_euler():
    """On dw = −w dt + dW all is linear in the noise: the errors are normal, and known."""
    time, counts = 1.0, [4, 8, 16]
    finest = 64 * max(counts)

    def weights(n, decay, gain):
        """Of the finest increments, in the position at the end of n steps."""
        return gain * np.repeat(decay ** np.arange(n - 1, -1, -1), finest // n)

    h = time / finest
    exact = weights(finest, 1 - h, 1.0)
    steps = [time / n - h for n in counts]
    errors = [np.linalg.norm(weights(n, 1 - time / n, 1.0) - exact) for n in counts]
    truth = np.polyfit(np.log(steps), np.log(errors), 1)[0]

    def estimate(seed):
        order = sde.convergence_order(
            lambda w: -w,
            1.0,
            0.0,
            time=time,
            n_steps=counts,
            seed=seed,
            n_walkers=300,
        )
        return number(order)

    covers(estimate, truth)
