"""Simulated paths against closed forms, brute force, SciPy and torch's SGD."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from lecture6 import sde
from lecture6.equilibrium import ou_covariance
from lecture6.sde import ornstein_uhlenbeck, sgd, simulate, svag

BLOCK = sde.BLOCK
H = np.array([[2.0, 0.6], [0.6, 0.5]])
ROOT = np.array([[1.0, 0.0], [0.7, 0.4]])  # C^½
REPEATS = 200


def pull(w):
    return -w


def double_well(w):
    return -4 * w * (w * w - 1)


def still(w):
    return np.zeros_like(w)


def square(w):
    return (w * w).sum(axis=1)


def covariance_deviation(w, exact):
    """The largest deviation of second moments about 0, in standard errors of a normal law."""
    found = w.T @ w / len(w)
    stderr = np.sqrt((np.outer(np.diag(exact), np.diag(exact)) + exact**2) / len(w))
    return np.abs((found - exact) / stderr).max()


def assert_uniform(p_values):
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


# Laws


@pytest.mark.parametrize("diffusion", [0.5, ROOT[:, 1], ROOT])
@pytest.mark.parametrize("h", [1.3, np.array([1.3, -0.4]), np.array([[1.0, 2.0], [-0.5, 0.0]])])
def test_ornstein_uhlenbeck_has_the_exact_law_at_any_step(h, diffusion):
    w0, time = np.array([1.0, -2.0]), 1.5
    square_h, g = (x if np.ndim(x) == 2 else np.diag(np.full(2, x)) for x in (h, diffusion))
    values, vectors = np.linalg.eig(square_h)

    def e(t):
        return np.real((vectors * np.exp(-values * t)) @ np.linalg.inv(vectors))

    exact = integrate.quad_vec(lambda t: e(t) @ g @ g.T @ e(t).T, 0, time)[0]
    for n_steps in (1, 3):
        w = ornstein_uhlenbeck(
            h, diffusion, w0, dt=time / n_steps, n_steps=n_steps, seed=0, n_walkers=100_000
        ).final
        stderr = np.sqrt(np.diag(exact) / len(w)) + 1e-12
        assert (np.abs(w.mean(axis=0) - e(time) @ w0) < 4.5 * stderr).all()
        if np.linalg.matrix_rank(exact) == 2:
            assert covariance_deviation(w - e(time) @ w0, exact) < 4.5
        else:
            np.testing.assert_allclose(np.cov(w.T), exact, rtol=0.02, atol=1e-12)


def test_ornstein_uhlenbeck_forgets_its_start_in_a_long_step():
    for h in (2000.0, np.array([[2000.0, 1.0], [0.0, 3.0]])):
        w = ornstein_uhlenbeck(
            h, 1.0, [5.0, 5.0], dt=10.0, n_steps=1, seed=0, n_walkers=100_000
        ).final
        assert w[:, 0].var() == pytest.approx(1 / 4000, rel=0.02)
        assert abs(w.mean()) < 0.005


def test_ornstein_uhlenbeck_is_where_the_methods_converge_to():
    exact = ornstein_uhlenbeck(0.7, 0.5, 1.0, dt=1e-3, n_steps=1000, seed=3, n_walkers=2000).final
    w = simulate(
        lambda w: -0.7 * w, 0.5, 1.0, dt=1e-3, n_steps=1000, seed=3, n_walkers=2000, method="heun"
    ).final
    # the exact noise of a step is not a function of dW alone: it differs by 0.5 h dt^1.5/√12
    assert np.abs(w - exact).std() < 2e-4


def p_values(simulator, variance):
    samples = (simulator(seed).final[:, 0] for seed in range(REPEATS))
    return [stats.kstest(x, "norm", args=(0, variance**0.5)).pvalue for x in samples]


def test_stationary_laws_are_exact_over_seeds():
    def exact(seed):
        return ornstein_uhlenbeck(2.0, 0.8, 0.0, dt=3.0, n_steps=4, seed=seed, n_walkers=500)

    def discrete(seed):
        return sgd(
            lambda w: 2.0 * w, 0.8, 0.0, lr=0.3, batch_size=4, n_steps=40, seed=seed, n_walkers=500
        )

    assert_uniform(p_values(exact, 0.8**2 / 4))
    variance = ou_covariance(2.0, 0.8**2, 0.3, 4).item()
    assert_uniform(p_values(discrete, variance))
    # and the test can fail: at η h = 0.6 the law of the SDE is not that of SGD
    wrong = p_values(discrete, ou_covariance(2.0, 0.8**2, 0.3, 4, discrete=False).item())
    assert stats.kstest(wrong, "uniform").pvalue < 1e-6


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_sgd_comes_to_the_covariance_of_the_discrete_equation(momentum):
    lr, batch_size = 0.6, 8
    exact = ou_covariance(H, ROOT @ ROOT.T, lr, batch_size, momentum=momentum)
    w = sgd(
        lambda w: w @ H, ROOT, np.zeros(2), lr=lr, batch_size=batch_size, n_steps=80, seed=1,
        momentum=momentum, n_walkers=1_000_000,
    ).final  # fmt: skip
    assert covariance_deviation(w, exact) < 4.5
    continuous = ou_covariance(H, ROOT @ ROOT.T, lr, batch_size, momentum=momentum, discrete=False)
    assert covariance_deviation(w, continuous) > 20


def test_a_double_well_comes_to_equation_25():
    temperature = 0.3
    edges = np.linspace(-2, 2, 41)
    paths = simulate(
        double_well, np.sqrt(2 * temperature), 0.0, dt=0.01, n_steps=1500, seed=0, method="heun",
        n_walkers=6 * BLOCK, histogram=edges, burn_in=500, every=50, dtype="float32",
    )  # fmt: skip
    assert paths.n_visits == 6 * BLOCK * 20

    def gibbs(w):
        return np.exp(-((w * w - 1) ** 2) / temperature)

    z = integrate.quad(gibbs, -4, 4)[0]
    exact = np.array([integrate.quad(gibbs, a, b)[0] for a, b in pairwise(edges)]) / z / 0.1
    np.testing.assert_allclose(paths.density, exact, atol=0.01)
    often = exact > 0.05
    deviation = (paths.density - exact)[often] / paths.density_stderr[often]
    assert np.median(np.abs(deviation)) < 1.5


def test_a_diffusion_that_depends_on_w_is_meant_as_itos():
    # E w is (1 + f dt)^n exactly, whatever the noise; Stratonovich's would grow by σ²/2 faster
    for method in ("euler", "milstein"):
        w = simulate(
            lambda w: 0.4 * w, lambda w: 0.6 * w, 1.0, dt=0.05, n_steps=20, seed=2, method=method,
            n_walkers=200_000,
        ).final  # fmt: skip
        assert abs(w.mean() - 1.02**20) < 4 * w.std() / len(w) ** 0.5


# SGD and SVAG


@pytest.mark.parametrize("noise", [0.7, ROOT[:, 0], ROOT, lambda w: 0.3 * w + 1])
def test_sgd_is_an_euler_step(noise):
    lr, batch_size = 0.2, 16
    w0 = np.random.default_rng(0).standard_normal((100, 2))
    options = {"n_steps": 30, "seed": 4, "snapshots": [0, 7, 30]}
    found = sgd(lambda w: w @ H, noise, w0, lr=lr, batch_size=batch_size, **options)
    factor = (lr / batch_size) ** 0.5
    diffusion = (lambda w: factor * noise(w)) if callable(noise) else factor * np.array(noise)
    same = simulate(lambda w: -w @ H, diffusion, w0, dt=lr, **options)
    np.testing.assert_allclose(found.final, same.final, atol=1e-13)
    np.testing.assert_allclose(found.snapshots, same.snapshots, atol=1e-13)
    np.testing.assert_allclose(found.times, [0, 1.4, 6.0])


def test_momentum_is_that_of_torch():
    w0 = np.array([[1.0, -2.0]])
    found = sgd(
        lambda w: w @ H, 0.0, w0, lr=0.1, batch_size=1, momentum=0.9, n_steps=25, seed=0
    ).final
    w = torch.tensor(w0, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    for _ in range(25):
        optimizer.zero_grad()
        (0.5 * w @ torch.from_numpy(H) * w).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(found, w.detach().numpy(), rtol=1e-12)


def test_svag_has_the_mean_and_the_variance_of_its_steps():
    options = {"lr": 0.4, "batch_size": 8, "n_walkers": 200_000, "seed": 0}
    slope = [1.0, -3.0]
    for l in (1, 2, 8):
        # l steps of rate η/l, each with l times the variance σ²/B, have that of one step of SGD
        w = svag(lambda w: np.zeros_like(w) + slope, ROOT, [0.0, 0.0], n_steps=1, l=l, **options)
        deviation = w.final + 0.4 * np.array(slope)
        exact = 0.4**2 / 8 * ROOT @ ROOT.T
        stderr = np.sqrt(np.diag(exact) / 200_000)
        assert (np.abs(deviation.mean(axis=0)) < 4 * stderr).all()
        assert covariance_deviation(deviation, exact) < 4.5


def test_svag_goes_from_sgd_to_the_sde():
    options = {"lr": 0.6, "batch_size": 4, "n_steps": 20, "n_walkers": 200_000, "seed": 5}
    h, sigma = 2.0, 0.5
    once = svag(lambda w: h * w, sigma, 0.0, l=1, **options).final
    np.testing.assert_array_equal(once, sgd(lambda w: h * w, sigma, 0.0, **options).final)
    for l in (1, 4, 16):
        w = svag(lambda w: h * w, sigma, 0.0, l=l, **options).final
        exact = ou_covariance(h, sigma**2, 0.6 / l, 4 / l)
        assert covariance_deviation(w, exact) < 4.5
    continuous = ou_covariance(h, sigma**2, 0.6, 4, discrete=False)
    assert exact.item() == pytest.approx(continuous.item(), rel=0.05)


def test_svag_records_at_steps_of_sgd():
    options = {"lr": 0.5, "batch_size": 2, "n_steps": 8, "seed": 0, "n_walkers": 100}
    edges = np.linspace(-3, 3, 7)
    found = svag(
        lambda w: w, 1.0, 1.0, l=3, snapshots=range(9), histogram=edges, burn_in=2, every=2,
        **options,
    )  # fmt: skip
    np.testing.assert_allclose(found.times, 0.5 * np.arange(9))
    counted = found.snapshots[4::2]
    np.testing.assert_array_equal(found.counts, np.histogram(counted, edges)[0])


# Brownian paths, threads, precision


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [2, 7, 64])
def test_refined_steps_see_the_same_brownian_path(k, dtype):
    n = 2 * BLOCK + 17
    options = {"seed": 1, "n_walkers": n, "dtype": dtype}
    fine = simulate(
        still, ROOT, [0.0, 1.0], dt=0.1 / k, n_steps=12 * k, snapshots=range(0, 12 * k + 1, k),
        **options,
    )  # fmt: skip
    for method, g in (("euler", ROOT), ("heun", ROOT), ("euler", None), ("milstein", None)):
        if g is None:
            coarse = simulate(
                still, np.ones_like, [0.0, 1.0], dt=0.1, n_steps=12, refine=k, method=method,
                snapshots=range(13), **options,
            )  # fmt: skip
            moved = (coarse.snapshots - [0, 1]) @ ROOT.T + [0, 1]
        else:
            moved = simulate(
                still, g, [0.0, 1.0], dt=0.1, n_steps=12, refine=k, method=method,
                snapshots=range(13), **options,
            ).snapshots  # fmt: skip
        tolerance = 1e-12 if dtype == "float64" else 2e-5
        np.testing.assert_allclose(moved, fine.snapshots, atol=tolerance)
    increments = np.diff(fine.snapshots[:, :, 0], axis=0)
    assert increments.std() == pytest.approx(0.1**0.5, rel=0.01)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_paths_do_not_depend_on_the_number_of_threads(dtype):
    w0 = np.random.default_rng(0).standard_normal((3 * BLOCK + 5, 1))
    runs = [
        simulate(
            double_well, 0.7, w0, dt=0.01, n_steps=50, seed=9, snapshots=[20], dtype=dtype,
            histogram=[-1, 0, 1], until=lambda w: w[:, 0] > 1.2, n_threads=n_threads,
        )
        for n_threads in (1, 2, 5, None)
    ]  # fmt: skip
    for run in runs[1:]:
        for name in ("snapshots", "final", "counts", "counts_stderr", "first_passage"):
            np.testing.assert_array_equal(getattr(run, name), getattr(runs[0], name))
    assert runs[0].final.dtype == dtype
    again = simulate(double_well, 0.7, w0, dt=0.01, n_steps=50, seed=10, dtype=dtype)
    assert np.isclose(again.final, runs[0].final, atol=1e-3).mean() < 0.01


def test_blocks_and_steps_have_independent_noise():
    paths = simulate(
        still, 1.0, 0.0, dt=1.0, n_steps=40, seed=0, n_walkers=2 * BLOCK, snapshots=range(41),
        dtype="float32",
    )  # fmt: skip
    z = np.diff(paths.snapshots[:, :, 0].astype(float), axis=0).reshape(-1, BLOCK)
    correlation = np.corrcoef(z) - np.eye(len(z))
    assert np.abs(correlation).max() < 5 / BLOCK**0.5
    assert np.abs(np.corrcoef(z[:, :-1].ravel(), z[:, 1:].ravel())[0, 1]) < 4 / z.size**0.5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_noise_is_normal(dtype):
    z = simulate(
        still, 1.0, 0.0, dt=1.0, n_steps=1, seed=0, n_walkers=2_000_000, dtype=dtype
    ).final[:, 0]
    assert stats.kstest(z[:500_000], "norm").pvalue > 1e-3
    for power, mean in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        x = z.astype(float) ** power
        assert abs(x.mean() - mean) < 4 * x.std() / len(z) ** 0.5
    for level in (3.0, 4.0):
        expected = 2 * len(z) * stats.norm.sf(level)
        assert abs((np.abs(z) > level).sum() - expected) < 4 * expected**0.5


def test_the_rarest_bits_give_finite_noise():
    rule = sde._Rule(still, 1.0, 1.0)
    for bits, largest in ((0, math.sqrt(64 * math.log(2))), (2**64 - 1, 0)):
        increments = sde._Increments(rule, np.zeros((5, 1)), 0, 0)
        numbers = np.full((2, 3), bits, np.uint64)
        increments.random = SimpleNamespace(integers=lambda *_, numbers=numbers, **__: numbers)
        noise = increments.draw(2)
        assert noise.shape == (2, 5, 1)
        assert np.abs(noise).max() == pytest.approx(largest, rel=1e-6, abs=1e-6)


# Recording


def test_snapshots_are_the_positions_at_their_steps():
    options = {"dt": 0.1, "seed": 2, "n_walkers": 300}
    paths = simulate(pull, 0.5, [1.0, 2.0], n_steps=100, snapshots=[0, 1, 37, 100], **options)
    np.testing.assert_allclose(paths.times, [0, 0.1, 3.7, 10])
    np.testing.assert_array_equal(paths.snapshots[0], np.tile([1.0, 2.0], (300, 1)))
    np.testing.assert_array_equal(paths.snapshots[3], paths.final)
    for i, step in ((1, 1), (2, 37)):
        shorter = simulate(pull, 0.5, [1.0, 2.0], n_steps=step, **options)
        np.testing.assert_array_equal(paths.snapshots[i], shorter.final)


@pytest.mark.parametrize(
    ("along", "project"),
    [
        (0, lambda w: w[..., 0]),
        (1, lambda w: w[..., 1]),
        (np.array([0.6, -0.8]), lambda w: w @ [0.6, -0.8]),
        (square, lambda w: (w * w).sum(axis=-1)),
    ],
)
def test_histograms_count_what_snapshots_show(along, project):
    edges = [-1.0, -0.3, 0.0, 0.1, 2.0]
    paths = simulate(
        pull, 0.8, [1.0, 0.0], dt=0.1, n_steps=50, seed=3, n_walkers=BLOCK, along=along,
        histogram=edges, burn_in=10, every=3, snapshots=range(51),
    )  # fmt: skip
    visits = project(paths.snapshots[13::3])
    np.testing.assert_array_equal(paths.counts, np.histogram(visits, edges)[0])
    assert paths.n_visits == visits.size
    inside = (paths.density * np.diff(edges)).sum()
    assert inside == pytest.approx(paths.counts.sum() / visits.size)
    groups = [np.histogram(v, edges)[0] for v in np.split(visits, 2 * sde.GROUPS, axis=1)]
    expected = np.std(groups, axis=0, ddof=1) * len(groups) ** 0.5  # of two blocks
    np.testing.assert_allclose(paths.counts_stderr, expected)


@pytest.mark.parametrize("n_walkers", [13, 200, BLOCK + 100])
def test_the_standard_error_of_a_density_is_its_spread(n_walkers):
    edges = np.linspace(-1, 1, 9)
    exact = np.diff(stats.norm.cdf(edges, scale=0.5)) / np.diff(edges)
    densities, stderrs = [], []
    for seed in range(REPEATS if n_walkers < 1000 else 30):
        paths = ornstein_uhlenbeck(
            2.0, 1.0, 0.0, dt=0.1, n_steps=60, seed=seed, n_walkers=n_walkers, histogram=edges,
            burn_in=30, every=3,
        )  # fmt: skip
        densities.append(paths.density - exact)
        stderrs.append(paths.density_stderr)
    assert 0.8 < np.square(densities).mean() / np.square(stderrs).mean() < 1.25


def test_a_single_walker_has_no_standard_error():
    paths = simulate(pull, 1.0, 0.0, dt=0.1, n_steps=5, seed=0, n_walkers=1, histogram=[-1, 1])
    assert np.isnan(paths.counts_stderr).all()


def test_ctrl_c_stops_the_threads():
    calls = []

    def drift(w):
        calls.append(1)
        if len(calls) == 500:
            os.kill(os.getpid(), signal.SIGINT)
        return -w

    with pytest.raises(KeyboardInterrupt):
        simulate(drift, 1.0, 0.0, dt=0.1, n_steps=10**6, seed=0, n_walkers=4 * BLOCK)
    made = len(calls)
    assert made < 10_000
    time.sleep(0.1)
    assert len(calls) == made


def test_first_passages_are_those_that_snapshots_show():
    paths = simulate(
        pull, 1.0, 0.0, dt=0.1, n_steps=40, seed=3, n_walkers=2 * BLOCK, snapshots=range(41),
        until=lambda w: np.abs(w[:, 0]) > 1,
    )  # fmt: skip
    passed = np.abs(paths.snapshots[:, :, 0]) > 1
    expected = np.where(passed.any(axis=0), passed.argmax(axis=0) * 0.1, np.nan)
    np.testing.assert_allclose(paths.first_passage, expected)
    assert 0.1 < np.isnan(expected).mean() < 0.9


def test_a_passage_ends_the_run_when_nothing_else_is_recorded():
    steps = []

    def drift(w):
        steps.append(len(w))
        return np.ones_like(w)

    options = {"dt": 0.125, "n_steps": 10_000, "seed": 0, "n_walkers": 100}
    options["until"] = lambda w: w[:, 0] >= 1
    paths = simulate(drift, 0.0, 0.0, **options)
    np.testing.assert_array_equal(paths.first_passage, np.ones(100))
    assert len(steps) < 10_000
    paths = simulate(drift, 0.0, 0.0, snapshots=[10_000], **options)
    np.testing.assert_array_equal(paths.snapshots, np.full((1, 100, 1), 1250))
    already = simulate(drift, 0.0, 2.0, **options)
    np.testing.assert_array_equal(already.first_passage, np.zeros(100))


PEAK = """
import numpy as np
from lecture6 import sde

def status(key):
    line = next(l for l in open("/proc/self/status") if l.startswith(key))
    return int(line.split()[1]) / 1024

def peak(n_walkers, n_steps, n_threads=None):
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    sde.simulate(lambda w: -w, 1.0, 0.0, dt=0.1, n_steps=n_steps, seed=0, n_walkers=n_walkers,
                 histogram=np.linspace(-2, 2, 50), every=5, n_threads=n_threads)
    return status("VmHWM") - before

peak(10_000, 5)
print(peak(1_000_000, 5), peak(1_000_000, 40))
# Threads may have their buffers at the same time, or not: what a step costs shows on one.
print(peak(1_000_000, 5, 1), peak(1_000_000, 40, 1))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="reads Linux's /proc")
def test_memory_is_that_of_the_walkers():
    out = subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True)
    *on_all_threads, few, many = map(float, out.stdout.split())
    assert max(on_all_threads) < 60  # MB; the million walkers have 8
    assert many < few + 5


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w0": np.zeros(3)}, r"w0 must be \(n, d\), or .* shape \(3,\) and n_walkers = None"),
        ({"w0": np.zeros((3, 2)), "n_walkers": 4}, "n_walkers = 4"),
        ({"w0": np.full((2, 2), np.nan)}, "w0 must be finite"),
        ({"w0": np.zeros((0, 2))}, r"shape \(0, 2\)"),
        ({"dtype": "float16"}, "dtype must be .* got 'float16'"),
        ({"dt": 0.0}, "dt > 0.* got 0.0"),
        ({"dt": np.inf}, "got inf"),
        ({"n_steps": 0}, "n_steps ≥ 1"),
        ({"n_threads": 0}, "n_threads ≥ 1"),
        ({"refine": 0}, "refine must be 1 or more, got 0"),
        ({"method": "rk4"}, "got 'rk4'"),
        ({"method": "milstein"}, "is 'euler'"),
        ({"method": "heun", "diffusion": np.ones_like}, "Stratonovich"),
        ({"diffusion": np.ones(3)}, r"finite number, \(2,\), \(2, 2\)"),
        ({"diffusion": np.nan}, "got nan"),
        ({"drift": lambda w: w[:, 0]}, r"drift must return the shape \(4, 2\) here, got \(4,\)"),
        ({"drift": lambda w: 0.0}, r"got \(\)"),
        ({"diffusion": lambda w: w[:1]}, r"diffusion must return .* got \(1, 2\)"),
        ({"until": lambda w: w > 0}, r"until must return the shape \(4,\) here, got \(4, 2\)"),
        ({"histogram": [0, 1], "along": pull}, r"along must return the shape \(4,\)"),
        ({"snapshots": [3, 2]}, "increasing steps from 0 to 20"),
        ({"snapshots": [21]}, r"got \[21\]"),
        ({"histogram": [0, 0]}, "increasing edges"),
        ({"histogram": [0, 1], "burn_in": 20}, "burn_in = 20 and every = 1 leave none"),
        ({"histogram": [0, 1], "every": 0}, "every = 0"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    options = {"drift": pull, "diffusion": 1.0, "w0": np.zeros((4, 2)), "dt": 0.1, "n_steps": 20}
    with pytest.raises(ValueError, match=message):
        simulate(**options | {"seed": 0} | changes)


def test_other_simulators_refuse_too():
    options = {"batch_size": 4, "n_steps": 5, "seed": 0, "n_walkers": 3}
    with pytest.raises(ValueError, match=r"momentum < 1.* momentum = 1\.0"):
        sgd(pull, 1.0, 0.0, lr=0.1, momentum=1.0, **options)
    with pytest.raises(ValueError, match=r"lr = -0\.1"):
        sgd(pull, 1.0, 0.0, lr=-0.1, **options)
    with pytest.raises(ValueError, match=r"whole number from 1, got 1\.5"):
        svag(pull, 1.0, 0.0, lr=0.1, l=1.5, **options)
    with pytest.raises(ValueError, match="constant H and diffusion"):
        ornstein_uhlenbeck(1.0, pull, 0.0, dt=0.1, n_steps=5, seed=0, n_walkers=3)


def test_a_drift_that_is_not_finite_names_its_step_and_position():
    def drift(w):
        with np.errstate(all="ignore"):
            return np.where(w > 0.35, np.nan, 1.0)

    message = r"the drift is \[nan\] at w = \[0\.4\], step 4: it must be finite"
    with pytest.raises(FloatingPointError, match=message):
        simulate(drift, 0.0, 0.0, dt=0.1, n_steps=100, seed=0, n_walkers=5)
    message = r"the noise is \[inf\] at w = \[0\.3.*\], step 3"
    with pytest.raises(FloatingPointError, match=message):
        sgd(
            lambda w: -np.ones_like(w), lambda w: np.where(w > 0.25, np.inf, 0.0), 0.0, lr=0.1,
            batch_size=1, n_steps=9, seed=0, n_walkers=5,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_unstable_step_says_so(momentum, dtype):
    # heavy ball is unstable from η h = 2 (1 + m)
    with pytest.raises(FloatingPointError, match=r"beyond bound = 1e\+08: lr = 5 is too large"):
        sgd(
            lambda w: w, 1.0, 1.0, lr=5.0, batch_size=1, n_steps=1000, seed=0, n_walkers=10,
            momentum=momentum, dtype=dtype,
        )  # fmt: skip
    with pytest.raises(FloatingPointError, match=r"dt = 0\.9 is too large for this drift"):
        simulate(double_well, 1.0, 3.0, dt=0.9, n_steps=1000, seed=0, n_walkers=10, dtype=dtype)
    with pytest.raises(FloatingPointError, match=r"w = \[1\.52.*\] at step 3, beyond bound = 1\.5"):
        simulate(lambda w: w, 0.0, 1.0, dt=0.15, n_steps=9, seed=0, n_walkers=2, bound=1.5)


def test_the_step_of_an_error_is_found_with_its_velocity():
    w, v, step = 1.0, 0.0, 0
    while abs(w) <= 1e8:
        v = 0.9 * v + w
        w, step = w - 5 * v, step + 1
    assert step > sde.DRAW / BLOCK  # not among the steps whose noise is drawn first
    with pytest.raises(FloatingPointError, match=re.escape(f"w = [{w:.8e}] at step {step}, ")):
        sgd(
            lambda w: w, 0.0, 1.0, lr=5.0, batch_size=1, n_steps=1000, seed=0, n_walkers=BLOCK,
            momentum=0.9,
        )  # fmt: skip


def test_errors_of_fields_are_raised_and_w_is_safe():
    def fails(w):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        simulate(fails, 1.0, 0.0, dt=0.1, n_steps=10, seed=0, n_walkers=3 * BLOCK)
    calls = []

    def changes(w):
        calls.append(1)
        if len(calls) > 1:
            w += 1
        return w

    with pytest.raises(ValueError, match="read-only"):
        simulate(changes, 1.0, 0.0, dt=0.1, n_steps=10, seed=0, n_walkers=3)
