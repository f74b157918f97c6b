"""Estimates of noise against enumeration over all batches, closed forms and brute force."""

import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from synthetic import gaussian_classes
from torch import nn

from lecture6 import curvature, models, noise
from lecture6.noise import GradientCovariance
from lecture6.noise_scale import covariance_factor
from lecture6.objective import NetworkObjective

F64 = torch.float64
N = 50
SAMPLINGS = ["with_replacement", "without_replacement", "epoch"]
DATA = gaussian_classes(N, 10, shape=(5,), n_classes=3)
IMAGES = gaussian_classes(N, 10, shape=(2, 6, 6), n_classes=3)

pytestmark = pytest.mark.usefixtures("one_thread")


def dense():
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def convolutional():
    conv, pool = nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(3, 2, padding=1)
    norm = nn.BatchNorm2d(3).eval()
    return nn.Sequential(conv, norm, nn.ReLU(), pool, nn.Flatten(), nn.Linear(27, 3))


def build(make=dense, data=DATA, dtype=F64, **options):
    with models.local_seed(0):
        model = make()
    return NetworkObjective(model, data.x_train, data.y_train, dtype=dtype, **options)


NETS = {"dense": (dense, DATA), "conv": (convolutional, IMAGES)}


def brute_force(objective, data):
    """One sample at a time through torch.autograd on the module itself."""
    parameters = list(objective.model.parameters())
    rows = []
    for x, y in zip(data.x_train.to(objective.dtype), data.y_train, strict=True):
        loss = F.cross_entropy(objective.model(x[None]), y[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    return torch.stack(rows)


NETWORK = build(batch_size=20)
GRADIENTS = brute_force(NETWORK, DATA)
COVARIANCE = GradientCovariance(NETWORK, NETWORK.w)
EXACT = torch.cov(GRADIENTS.T, correction=0)


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


SMALL = random(6, 3, seed=1) ** 3 + 0.4  # gradients of 6 samples, skewed


# Gradients sample by sample, and products without them


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("piece", [1 << 24, 1000, 1])
def test_per_sample_gradients_are_those_of_single_samples_in_their_order(name, piece, monkeypatch):
    make, data = NETS[name]
    objective = build(make, data, batch_size=7)
    monkeypatch.setattr(noise, "PIECE", piece)
    chunks = list(noise.per_sample_gradients(objective, objective.w))
    most = max(1, min(7, piece // objective.n_params))
    assert max(map(len, chunks)) == most
    torch.testing.assert_close(torch.cat(chunks), brute_force(objective, data), atol=1e-12, rtol=0)
    directions = random(4, objective.n_params)
    torch.testing.assert_close(
        noise.project_gradients(objective, objective.w, directions),
        torch.cat(chunks) @ directions.T,
        atol=1e-12,
        rtol=1e-10,
    )


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("batch_size", [7, 50])
@pytest.mark.parametrize("limit", [0, 1 << 28])
def test_products_are_sums_over_samples(name, batch_size, limit):
    make, data = NETS[name]
    objective = build(make, data, batch_size=batch_size)
    g, v = brute_force(objective, data), random(3, objective.n_params)
    centred = g - g.mean(0)
    product = objective.product(objective.w, of="covariance", memory_limit=limit)
    torch.testing.assert_close(product(v), v @ centred.T @ centred / N, atol=1e-10, rtol=1e-10)
    covariance = GradientCovariance(objective, objective.w)
    exact = torch.cov(g.T, correction=0)
    torch.testing.assert_close(covariance @ v, v @ exact, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(covariance @ v[0], exact @ v[0], atol=1e-10, rtol=1e-10)
    assert covariance.trace().value == pytest.approx(exact.trace().item(), rel=1e-10)
    torch.testing.assert_close(covariance.mean, g.mean(0), atol=1e-12, rtol=1e-10)


def test_eigenpairs_of_the_covariance():
    found = COVARIANCE.eigenvalues(3, tolerance=1e-9)
    assert found.converged
    expected = np.linalg.eigvalsh(EXACT.numpy())[::-1][:3]
    np.testing.assert_allclose(found.values, expected, rtol=1e-8)
    values = torch.from_numpy(found.values)[:, None]
    residuals = (found.vectors @ EXACT - values * found.vectors).norm(dim=1)
    np.testing.assert_allclose(residuals, found.residuals, atol=1e-10)


def test_curvature_measures_take_the_new_matrices():
    found = curvature.matrix(NETWORK, NETWORK.w, of="covariance")
    np.testing.assert_allclose(found, EXACT, atol=1e-12)
    estimate = curvature.trace(NETWORK, NETWORK.w, of="covariance", n_products=30)
    assert abs(estimate.value - EXACT.trace().item()) < 3 * estimate.stderr


PEAK = """
import torch
from lecture6 import models, noise, objective
from lecture6.objective import NetworkObjective

def status(key):
    line = next(l for l in open("/proc/self/status") if l.startswith(key))
    return int(line.split()[1]) / 1024

torch.set_num_threads(1)
noise.PIECE = objective.PIECE = 2 << 20
for make, shape in (
    (models.mlp, (784,)),
    (lambda: models.c1(stride=2, batch_norm="running"), (3, 32, 32)),
):
    for n in (20, 20, 60):  # first, what torch sets up once
        f = NetworkObjective(make(), torch.randn(n, *shape), torch.arange(n) % 10, batch_size=10)
        f.check_derivatives(1)  # once, in a copy in float64
        open("/proc/self/clear_refs", "w").write("5")
        before = status("VmRSS")
        largest = max(c.nbytes for c in noise.per_sample_gradients(f, f.w))
        print(status("VmHWM") - before, largest / 2**20)
    for n in (20, 20, 120):
        f = NetworkObjective(make(), torch.randn(n, *shape), torch.arange(n) % 10, batch_size=10)
        f.check_derivatives(1)  # once, in a copy in float64
        open("/proc/self/clear_refs", "w").write("5")
        before = status("VmRSS")
        f.product(f.w, of="covariance", memory_limit=0)(f.w)
        noise.project_gradients(f, f.w, f.w[None])
        noise.GradientCovariance(f, f.w).trace()
        print(status("VmHWM") - before, 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="reads Linux's /proc")
def test_peak_memory_keeps_to_the_limit_whatever_the_number_of_samples():
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back at once
    run = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, env=env
    )
    rows = np.array([line.split() for line in run.stdout.splitlines()], dtype=float)
    for few, many in (rows[4:6, 0], rows[10:12, 0]):
        assert many < few + 4  # without gradients of single samples
    for few, many in (rows[1:3], rows[7:9]):
        assert 4 < max(few[1], many[1]) <= 8  # MiB, two of them at once
        assert max(few[0], many[0]) < 40
        assert many[0] < few[0] + 4


# The fluctuation: estimates


def scores_of(estimate, exact):
    return (np.asarray(estimate.value) - np.asarray(exact)) / np.asarray(estimate.stderr)


def assert_calibrated(scores):
    """Within 3 standard errors in at least 97 % of the repeats, and errors not far too large."""
    scores = np.array(scores)
    assert np.mean(np.abs(scores) <= 3) >= 0.97
    assert np.mean(np.abs(scores) <= 0.3) <= 0.45  # 24 % of a normal variable
    assert abs(scores.mean()) < 0.3


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_trace_from_random_batches_is_calibrated(sampling):
    gradients = random(20, 3, seed=2) + 1
    exact = torch.cov(gradients.T, correction=0).trace() * covariance_factor(
        20, 4, sampling=sampling
    )
    scores = []
    for seed in range(200):
        found = noise.fluctuation_trace(gradients, 4, n_batches=150, sampling=sampling, seed=seed)
        assert found.n_samples == (30 if sampling == "epoch" else 150)
        scores.append(scores_of(found, exact))
    assert_calibrated(scores)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_trace_of_a_network_by_its_own_batches(sampling):
    options = {"n_batches": 200, "sampling": sampling, "seed": 3}
    found = noise.fluctuation_trace(COVARIANCE, 22, **options)
    exact = EXACT.trace() * covariance_factor(N, 22, sampling=sampling)
    assert abs(scores_of(found, exact)) < 3
    # the same batches, through the gradients of the samples
    again = noise.fluctuation_trace(GRADIENTS, 22, **options)
    assert (found.value, found.stderr) == pytest.approx((again.value, again.stderr), rel=1e-9)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_fluctuations_of_random_batches_have_their_exact_covariance(sampling):
    """Also between the batches of an epoch: −F/(N − 1) in the mean over pairs of them."""
    psi = torch.stack(list(noise.fluctuations(SMALL, 2, 12_000, sampling=sampling, seed=9)))
    f = torch.cov(SMALL.T, correction=0)
    found, exact = psi.T @ psi / 12_000, covariance_factor(6, 2, sampling=sampling) * f
    assert ((found - exact).norm() / exact.norm()).item() < 0.05
    across = psi[::3].T @ psi[1::3] / 4000
    exact = -f / 5 if sampling == "epoch" else 0 * f
    assert ((across - exact).norm() / f.norm()).item() < 0.02


def test_the_fluctuations_of_an_epoch_sum_to_zero():
    psi = torch.stack(list(noise.fluctuations(SMALL, 2, 9, sampling="epoch", seed=1)))
    assert psi.view(3, 3, 3).sum(1).abs().max() < 1e-12
    assert psi.abs().max() > 0.1


# Its shape


def all_psi(b, sampling):
    draw = {"with_replacement": lambda n, b: itertools.product(n, repeat=b)}
    index = list(draw.get(sampling, itertools.combinations)(range(6), b))
    return (SMALL[torch.tensor(index)].mean(1) - SMALL.mean(0)).numpy()


@pytest.mark.parametrize("b", [1, 2, 3, 4])
def test_the_kurtosis_with_replacement_is_that_of_a_sum(b):
    found = stats.kurtosis(all_psi(b, "with_replacement"))
    np.testing.assert_allclose(found, stats.kurtosis(SMALL) / b, rtol=1e-11)


def test_the_kurtosis_found_is_that_of_all_batches():
    """The kurtosis of many draws, within its standard errors of the enumeration."""
    for sampling in ("with_replacement", "without_replacement"):
        exact = stats.kurtosis(all_psi(2, sampling))
        scores = []
        for seed in range(200):
            psi = list(noise.fluctuations(SMALL, 2, 300, sampling=sampling, seed=seed))
            found = noise.normality(torch.stack(psi))
            scores.append((found.excess_kurtosis - exact) / found.excess_kurtosis_stderr)
        assert_calibrated(scores)


def test_the_shape_along_directions_of_a_network():
    projections = noise.project_gradients(NETWORK, NETWORK.w, random(4, NETWORK.n_params, seed=1))
    psi = noise.fluctuations(projections, 5, 2000, sampling="with_replacement", seed=2)
    found = noise.normality(torch.stack(list(psi)))
    error = abs(found.excess_kurtosis - stats.kurtosis(projections) / 5)
    assert (error < 3.5 * found.excess_kurtosis_stderr).all()
    assert found.observed.shape == (2000, 4)


def test_p_values_are_uniform_for_normal_samples():
    found = noise.normality(random(1000, 200, seed=5))
    assert stats.kstest(found.normal_p, "uniform").pvalue > 0.01
    assert found.observed.shape == (1000, 200)
    quantiles = stats.norm.ppf((np.arange(len(found.observed)) + 0.5) / len(found.observed))
    assert np.abs(found.observed.mean(1) - quantiles).max() < 0.1


def test_heavy_tails_are_found():
    rng = np.random.default_rng(6)
    samples = np.stack([rng.standard_t(3, 4000), rng.standard_cauchy(4000)], axis=1)
    found = noise.normality(samples)
    assert (found.normal_p < 1e-10).all()
    np.testing.assert_allclose(found.tail_index / found.tail_index_stderr, math.sqrt(63))
    assert found.tail_index[0] > found.tail_index[1]
    assert abs(found.tail_index[1] - 1) < 3 * found.tail_index_stderr[1]


@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_the_tail_index_of_a_pareto_law(alpha):
    scores = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x = (rng.pareto(alpha, 10_000) + 1) * rng.choice([-1, 1], 10_000)
        found = noise.normality(x)
        scores.append((found.tail_index[0] - alpha) / found.tail_index_stderr[0])
    assert_calibrated(scores)


# Noise scales


def test_simple_noise_scale_is_exact_over_the_set():
    g = GRADIENTS.mean(0)
    exact = (EXACT.trace() / (g @ g)).item()
    assert COVARIANCE.simple_noise_scale().value == pytest.approx(exact, rel=1e-12)


def test_two_batch_estimates_are_unbiased_over_all_batches(monkeypatch):
    """Over every pair, a batch of 4 and its first 2, both parts of the ratio are exact."""
    every = torch.tensor(list(itertools.product(range(6), repeat=4)))
    monkeypatch.setattr(noise, "_batches", lambda *_: every)
    found = noise.estimate_simple_noise_scale(SMALL, b_small=2, b_big=4)
    trace, square = torch.cov(SMALL.T, correction=0).trace(), SMALL.mean(0).square().sum()
    assert found.value == pytest.approx((trace / square).item(), rel=1e-12)
    assert found.n_samples == 6**4


def test_a_gradient_that_the_noise_hides_has_no_noise_scale(monkeypatch):
    monkeypatch.setattr(noise, "_batches", lambda *_: torch.tensor([[0, 1, 0, 1]] * 2))
    opposite = torch.tensor([[1.0], [-1.0]])
    with pytest.raises(ValueError, match=r"not positive: the noise .* take more than 2 pairs"):
        noise.estimate_simple_noise_scale(opposite, b_small=1, b_big=4)


def test_two_batch_estimates_are_calibrated():
    gradients = random(30, 3, seed=7) + 1
    exact = torch.cov(gradients.T, correction=0).trace() / gradients.mean(0).square().sum()
    scores = [
        scores_of(
            noise.estimate_simple_noise_scale(
                gradients, b_small=4, b_big=16, n_pairs=150, seed=seed
            ),
            exact,
        )
        for seed in range(200)
    ]
    assert_calibrated(scores)


def test_two_batch_estimate_of_a_network():
    found = noise.estimate_simple_noise_scale(COVARIANCE, b_small=5, b_big=60, n_pairs=60)
    assert abs(scores_of(found, COVARIANCE.simple_noise_scale().value)) < 3
    assert found.n_samples == 60


@pytest.mark.parametrize("n_products", [30, 10**6])
@pytest.mark.parametrize("scale", [1e-20, 1e12])
def test_critical_batch_size_does_not_depend_on_the_scale_of_the_loss(scale, n_products):
    """GᵀHG of 1e36 times the usual overflows in float32, of 1e-60 it underflows."""

    def found(scale):
        f = build(dtype=torch.float32, loss=lambda z, y: scale * F.cross_entropy(z, y))
        return noise.critical_batch_size(GradientCovariance(f, f.w), n_products=n_products)

    assert found(scale).value == pytest.approx(found(1.0).value, rel=1e-3)


@pytest.mark.slow
def test_critical_batch_size_against_the_full_matrices():
    whole = build()  # in one batch, for speed
    covariance = GradientCovariance(whole, whole.w)
    h, g = torch.from_numpy(curvature.matrix(whole, whole.w)), GRADIENTS.mean(0)
    exact = (h @ EXACT).trace().item() / (g @ h @ g).item()
    for each in (covariance, COVARIANCE):
        found = noise.critical_batch_size(each, n_products=N)
        assert found.value == pytest.approx(exact, rel=1e-10)
        assert 0 < found.stderr < 1e-12 * abs(found.value)
    scores = [
        scores_of(noise.critical_batch_size(covariance, n_products=N - 1, seed=seed), exact)
        for seed in range(200)
    ]
    assert_calibrated(scores)


# Samples that are nearly equal: what is squared is what they differ in


def nearly_equal(apart, make=dense, data=DATA, dtype=torch.float32, n=64):
    """The objective of n samples ``apart`` from each other, and the same in float64."""
    shift = random(n, *data.x_train.shape[1:], seed=4)
    x = (data.x_train[:1].double() + apart * shift).to(dtype)
    with models.local_seed(0):
        model = make()
    y = data.y_train[:1].expand(n)
    f, exact = (NetworkObjective(model, x, y, dtype=d, batch_size=20) for d in (dtype, F64))
    g = brute_force(exact, type(data)(**vars(data) | {"x_train": x, "y_train": y}))
    return f, torch.cov((g - g[0]).T, correction=0), g.mean(0)


@pytest.mark.parametrize("apart", [0, 1e-9, 1e-6, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", NETS)
def test_the_covariance_of_nearly_equal_samples(name, dtype, apart):
    f, exact, g = nearly_equal(apart, *NETS[name], dtype=dtype)
    covariance, trace = GradientCovariance(f, f.w), exact.trace().item()
    found = covariance.trace()
    assert found.value >= 0
    assert abs(found.value - trace) <= 3 * found.stderr
    assert found.stderr <= 100 * torch.finfo(dtype).eps * (trace * (g @ g)) ** 0.5 + 1e-12
    scale = covariance.simple_noise_scale()
    assert abs(scale.value - trace / (g @ g)) <= 3 * scale.stderr
    assert scale.value >= 0
    floor = 3 * found.stderr
    v = random(f.n_params)
    v /= v.norm()
    assert ((covariance @ v).double() - exact @ v).norm() <= floor + 1e-4 * trace
    top, right = covariance.eigenvalues(1), np.linalg.eigvalsh(exact)[-1]
    assert abs(top.values[0] - right) <= max(top.errors[0], floor)
    if trace < 3 * found.stderr:
        assert not top.converged or top.values[0] == 0
    options = {"b_small": 2, "b_big": 32, "n_pairs": 50}
    pairs = noise.estimate_simple_noise_scale(covariance, **options)
    assert abs(pairs.value - trace / (g @ g)) <= 4 * pairs.stderr
    batches = noise.fluctuation_trace(covariance, 8, n_batches=40)
    c = covariance_factor(64, 8, sampling="epoch")
    assert abs(batches.value - c * trace) <= 4 * batches.stderr


def test_inputs_a_millionth_apart_in_double_keep_their_digits():
    f, exact, g = nearly_equal(1e-6, dtype=F64)
    found = GradientCovariance(f, f.w)
    assert found.trace().value == pytest.approx(exact.trace().item(), rel=1e-6)
    assert 0 < found.trace().value < 1e-10
    np.testing.assert_allclose(
        curvature.matrix(f, f.w, of="covariance"), exact, atol=1e-6 * exact.max()
    )
    scale = found.simple_noise_scale().value
    assert scale == pytest.approx((exact.trace() / (g @ g)).item(), rel=1e-6)
    top = found.eigenvalues(1)
    assert top.converged
    assert top.values[0] == pytest.approx(np.linalg.eigvalsh(exact)[-1], rel=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_noise_at_any_scale(scale, dtype):
    """A loss times a number: F and its trace are times its square, the noise scales the same."""
    nets = []
    for factor in (1.0, scale):
        with models.local_seed(0):
            loss = lambda z, y, factor=factor: factor * F.cross_entropy(z, y)  # noqa: E731
            net = dense()
        nets.append(NetworkObjective(net, DATA.x_train, DATA.y_train, loss=loss, dtype=dtype))
    one, other = (GradientCovariance(f, f.w) for f in nets)
    close = {"rel": 1e-4}
    assert other.trace().value == pytest.approx(one.trace().value * scale**2, **close)
    assert other.simple_noise_scale().value == pytest.approx(
        one.simple_noise_scale().value, **close
    )
    if dtype == F64:  # the covariance itself is 1e-60 or 1e60
        found = [c.eigenvalues(2).values for c in (one, other)]
        np.testing.assert_allclose(found[1], found[0] * scale**2, rtol=1e-4)
        critical = [noise.critical_batch_size(c).value for c in (one, other)]
        assert critical[1] == pytest.approx(critical[0], rel=1e-4)
    hessians = [curvature.eigenvalues(f, f.w, 2) for f in nets]
    np.testing.assert_allclose(hessians[1].values, hessians[0].values * scale, rtol=1e-3)
    assert hessians[1].converged == hessians[0].converged


# Bad input and seeds


def normalised():
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    return nn.Sequential(nn.Linear(5, 4), norm, nn.ReLU(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    "call",
    [
        lambda f: next(noise.per_sample_gradients(f, f.w)),
        lambda f: noise.project_gradients(f, f.w, f.w[None]),
        lambda f: f.product(f.w, of="covariance"),
        lambda f: GradientCovariance(f, f.w) @ f.w,
        lambda f: GradientCovariance(f, f.w).trace(),
        lambda f: list(noise.fluctuations(GradientCovariance(f, f.w), 4, 2)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_networks_that_mix_samples_are_refused(call, dtype):
    objective = build(normalised, dtype=dtype)
    with pytest.raises(ValueError, match=r'mixes .* build the model with batch_norm="running"'):
        call(objective)


def test_running_statistics_are_accepted():
    objective = build(convolutional, IMAGES, dtype=torch.float32)
    (chunk,) = noise.per_sample_gradients(objective, objective.w)
    torch.testing.assert_close(chunk.mean(0), objective.grad(objective.w), atol=1e-6, rtol=1e-4)


ONE = NetworkObjective(nn.Linear(5, 2), DATA.x_train[:1], DATA.y_train[:1] * 0)
FLAT = torch.tensor([100.0] * 5 + [-100.0] * 5 + [500.0, -500.0])  # the loss and its slope are 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: noise.project_gradients(NETWORK, NETWORK.w, NETWORK.w), r"\(k, 39\), got \(39,\)"),
        (lambda: noise.fluctuations(SMALL, 7, 2), "batch_size must be .* at most 6, got 7"),
        (lambda: noise.fluctuations(SMALL, 2, 1.5), "n_batches must be a whole number, got 1.5"),
        (lambda: noise.fluctuations(SMALL, 2, 2, seed=2**63), "seed must be at least 0 and at"),
        (lambda: noise.fluctuations(SMALL, 2, 2, sampling="shuffle"), "got 'shuffle'"),
        (
            lambda: noise.fluctuation_trace(SMALL, 2, n_batches=3),
            r"more than 3 batches, .* 'epoch'.*n_batches = 3",
        ),
        (lambda: noise.fluctuation_trace(SMALL * np.nan, 2), "the gradients has 18 of 18 values"),
        (
            lambda: noise.project_gradients(NETWORK, NETWORK.w, NETWORK.w[None] * np.nan),
            "directions has 39 of 39 values that are not finite",
        ),
        (lambda: noise.normality(np.ones(30)), "differ from each other"),
        (lambda: noise.normality(np.arange(5.0)), "needs 20 samples or more, got 5"),
        (
            lambda: noise.estimate_simple_noise_scale(SMALL, b_small=4, b_big=4),
            "b_small must be at least 1 and at most 3, got 4",
        ),
        (
            lambda: noise.estimate_simple_noise_scale(SMALL * np.nan, b_small=1, b_big=4),
            "the gradients has 18 of 18 values that are not finite",
        ),
        (lambda: noise.critical_batch_size(COVARIANCE, n_products=1), "at least 2, got 1"),
        (lambda: GradientCovariance(ONE, FLAT).simple_noise_scale(), "the gradient is 0 at w"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_gradient_along_which_the_loss_is_concave_has_no_critical_batch():
    objective = build()
    for seed in range(40):
        w = 3 * random(objective.n_params, seed=seed)
        g = objective.grad(w)
        if g @ objective.hvp(w, g) < 0:
            break
    with pytest.raises(ValueError, match="is not positive beyond rounding: B_noise"):
        noise.critical_batch_size(GradientCovariance(objective, w))


def test_seeds_are_local():
    state = torch.get_rng_state()
    for call in (
        lambda seed: torch.stack(list(noise.fluctuations(SMALL, 2, 6, seed=seed))),
        lambda seed: torch.tensor(noise.critical_batch_size(COVARIANCE, seed=seed).value),
    ):
        first, again, other = call(4), call(4), call(5)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
