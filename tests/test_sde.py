"""Simulated paths against closed forms, brute force, SciPy and torch's SGD, and their orders."""

import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from lecture6 import sde
from lecture6.equilibrium import ou_covariance
from lecture6.sde import convergence_order, sgd, simulate

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


def p_values(simulator, variance):
    samples = (simulator(seed).final[:, 0] for seed in range(REPEATS))
    return [stats.kstest(x, "norm", args=(0, variance**0.5)).pvalue for x in samples]


def test_the_stationary_law_is_exact_over_seeds():
    def discrete(seed):
        return sgd(
            lambda w: 2.0 * w, 0.8, 0.0, lr=0.3, batch_size=4, n_steps=40, seed=seed, n_walkers=500
        )

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
        double_well, np.sqrt(2 * temperature), 0.0, dt=0.002, n_steps=5000, seed=0,
        n_walkers=2 * BLOCK, histogram=edges, burn_in=1500, every=175, dtype="float32",
    )  # fmt: skip

    def gibbs(w):
        return np.exp(-((w * w - 1) ** 2) / temperature)

    z = integrate.quad(gibbs, -4, 4)[0]
    exact = np.array([integrate.quad(gibbs, a, b)[0] for a, b in pairwise(edges)]) / z / 0.1
    np.testing.assert_allclose(paths.density, exact, atol=0.01)


def test_a_diffusion_that_depends_on_w_is_meant_as_itos():
    # E w is (1 + f dt)^n exactly, whatever the noise; Stratonovich's would grow by σ²/2 faster
    w = simulate(
        lambda w: 0.4 * w, lambda w: 0.6 * w, 1.0, dt=0.05, n_steps=20, seed=2, n_walkers=200_000
    ).final
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
        w = sgd(lambda w: 0 * w + slope, ROOT, [0.0, 0.0], n_steps=l, svag=l, **options)
        deviation = w.final + 0.4 * np.array(slope)
        exact = 0.4**2 / 8 * ROOT @ ROOT.T
        stderr = np.sqrt(np.diag(exact) / 200_000)
        assert (np.abs(deviation.mean(axis=0)) < 4 * stderr).all()
        assert covariance_deviation(deviation, exact) < 4.5


def test_svag_goes_from_sgd_to_the_sde():
    options = {"lr": 0.6, "batch_size": 4, "n_walkers": 200_000, "seed": 5}
    h, sigma = 2.0, 0.5
    for l in (1, 4, 16):
        w = sgd(lambda w: h * w, sigma, 0.0, n_steps=20 * l, svag=l, **options).final
        exact = ou_covariance(h, sigma**2, 0.6 / l, 4 / l)
        assert covariance_deviation(w, exact) < 4.5
    continuous = ou_covariance(h, sigma**2, 0.6, 4, discrete=False)
    assert exact.item() == pytest.approx(continuous.item(), rel=0.05)


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
    for g in (ROOT, np.ones_like):
        moved = simulate(
            still, g, [0.0, 1.0], dt=0.1, n_steps=12, refine=k, snapshots=range(13), **options
        ).snapshots
        if callable(g):
            moved = (moved - [0, 1]) @ ROOT.T + [0, 1]
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
        for name in ("snapshots", "final", "density", "first_passage"):
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


@pytest.mark.parametrize(
    ("dtype", "dt"), [("float32", 4e-8), ("float32", 1e-7), ("float64", 7e-17)]
)
def test_a_drift_smaller_than_the_last_place_of_w_is_not_lost_in_the_noise(dtype, dt):
    """−1.5 dt is about half a unit in the last place of 1.5; the noise, of some units, carries it.

    (Without noise it is lost: w + f dt is w.)
    """
    ulp = np.spacing(np.array(1.5, dtype))
    paths = simulate(
        pull, 4 * ulp / dt**0.5, 1.5, dt=dt, n_steps=4000, seed=0, n_walkers=2000,
        dtype=dtype,
    )  # fmt: skip
    moved = paths.final.astype(np.longdouble)[:, 0] - np.longdouble(1.5)
    stderr = moved.std() / len(moved) ** 0.5
    assert stderr < 0.05 * 6000 * dt
    assert abs(moved.mean() + 6000 * dt) < 4 * stderr


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


def test_histograms_count_what_snapshots_show():
    edges = [-1.0, -0.3, 0.0, 0.1, 2.0]
    paths = simulate(
        pull, 0.8, [1.0, 0.0], dt=0.1, n_steps=50, seed=3, n_walkers=BLOCK, histogram=edges,
        burn_in=10, every=3, snapshots=range(51),
    )  # fmt: skip
    visits = paths.snapshots[13::3, :, 0]
    counts = paths.density * np.diff(edges) * visits.size  # of all, also of those outside
    np.testing.assert_allclose(counts, np.histogram(visits, edges)[0], rtol=1e-12)
    assert counts.sum() < visits.size


def test_ctrl_c_stops_the_threads():
    calls = []

    def drift(w):
        calls.append(1)
        if len(calls) == 500:
            os.kill(os.getpid(), signal.SIGINT)
        return -w

    # a process that a shell started in the background ignores it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            simulate(drift, 1.0, 0.0, dt=0.1, n_steps=10**6, seed=0, n_walkers=4 * BLOCK)
    finally:
        signal.signal(signal.SIGINT, before)
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
        ({"w0": [[1.0, 2.0], [3.0]]}, "w0 must be real numbers"),
        ({"w0": np.zeros((0, 2))}, r"shape \(0, 2\)"),
        ({"n_walkers": 2.5}, "n_walkers must be a whole number, got 2.5"),
        ({"dtype": "float16"}, "dtype must be .* got 'float16'"),
        ({"dt": 0.0}, "dt must be a finite number and above 0, got 0"),
        ({"dt": np.inf}, "dt must be .* got inf"),
        ({"dt": np.nan}, "dt must be .* got nan"),
        ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
        ({"n_steps": 1.5}, "n_steps must be a whole number, got 1.5"),
        ({"n_steps": True}, "n_steps must be a whole number, got True"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**63}, "seed must be at least 0 and at most"),
        ({"n_threads": 0}, "n_threads must be at least 1"),
        ({"refine": 0}, "refine must be at least 1, got 0"),
        ({"refine": 1.5}, "refine must be a whole number, got 1.5"),
        ({"diffusion": np.ones(3)}, r"the diffusion must be a number, \(2,\), \(2, 2\)"),
        ({"diffusion": np.nan}, "the diffusion must be finite, got nan"),
        ({"diffusion": "1"}, "the diffusion must be real numbers"),
        ({"drift": lambda w: w[:, 0]}, r"drift must return the shape \(4, 2\) here, got \(4,\)"),
        ({"drift": lambda w: 0.0}, r"got \(\)"),
        ({"diffusion": lambda w: w[:1]}, r"diffusion must return .* got \(1, 2\)"),
        ({"until": lambda w: w > 0}, r"until must return the shape \(4,\) here, got \(4, 2\)"),
        ({"snapshots": [3, 2]}, r"increasing numbers of steps, got \[3, 2\]"),
        ({"snapshots": [21]}, "a snapshot must be at least 0 and at most 20, got 21"),
        ({"snapshots": [0.5]}, "a snapshot must be a whole number, got 0.5"),
        ({"histogram": [0, 0]}, "increasing edges"),
        ({"histogram": [0, np.nan]}, "histogram must be finite"),
        ({"histogram": 3.0}, "increasing edges"),
        ({"histogram": [0, 1], "burn_in": 20}, "burn_in = 20 and every = 1 leave none"),
        ({"histogram": [0, 1], "burn_in": -1}, "burn_in must be at least 0"),
        ({"histogram": [0, 1], "every": 0}, "every must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    options = {"drift": pull, "diffusion": 1.0, "w0": np.zeros((4, 2)), "dt": 0.1, "n_steps": 20}
    with pytest.raises(ValueError, match=message):
        simulate(**options | {"seed": 0} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"momentum": 1.0}, "momentum must be .* below 1, got 1"),
        ({"momentum": -0.5}, "momentum must be .* at least 0"),
        ({"lr": -0.1}, r"lr must be .* got -0\.1"),
        ({"lr": np.nan}, "lr must be .* got nan"),
        ({"batch_size": 0}, "batch_size must be .* above 0, got 0"),
        ({"svag": 1.5}, r"svag must be a whole number, got 1\.5"),
        ({"noise": np.ones(3)}, "the noise must be a number"),
    ],
)
def test_sgd_refuses_too(changes, message):
    options = {"gradient": pull, "noise": 1.0, "w0": 0.0, "lr": 0.1, "batch_size": 4}
    with pytest.raises(ValueError, match=message):
        sgd(**options | {"n_steps": 5, "seed": 0, "n_walkers": 3} | changes)


def test_an_unknown_name_is_refused():
    with pytest.raises(TypeError, match="snapshot"):
        simulate(pull, 1.0, 0.0, dt=0.1, n_steps=5, seed=0, n_walkers=3, snapshot=[1])


def test_numbers_of_numpy_and_torch_are_taken():
    plain = {"dt": 0.5, "n_steps": 4, "seed": 3, "n_walkers": 5, "refine": 2, "snapshots": [0, 4]}
    other = {
        "dt": np.float32(0.5), "n_steps": np.int64(4), "seed": np.uint8(3), "n_walkers": 5.0,
        "refine": torch.tensor(2), "snapshots": np.array([0, 4]),
    }  # fmt: skip
    paths = [simulate(pull, 1, 0, **options) for options in (plain, other)]
    np.testing.assert_array_equal(paths[0].snapshots, paths[1].snapshots)


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


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_unstable_step_of_sgd_says_so(momentum):
    # heavy ball is unstable from η h = 2 (1 + m)
    with pytest.raises(FloatingPointError, match=r"beyond 1e\+08: lower it, lr = 5 is too large"):
        sgd(
            lambda w: w, 1.0, 1.0, lr=5.0, batch_size=1, n_steps=1000, seed=0, n_walkers=10,
            momentum=momentum,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_unstable_step_says_so(dtype):
    with pytest.raises(FloatingPointError, match=r"dt = 0\.9 is too large for this drift"):
        simulate(double_well, 1.0, 3.0, dt=0.9, n_steps=1000, seed=0, n_walkers=10, dtype=dtype)
    with pytest.raises(FloatingPointError, match=r"w = \[1\.10.*e\+08\] at step 2, beyond 1e\+08"):
        simulate(lambda w: w, 0.0, 1e8 / 1.3, dt=0.2, n_steps=9, seed=0, n_walkers=2)


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


# The orders of the method

GBM = {"drift": lambda w: 0.5 * w, "diffusion": lambda w: 0.5 * w, "w0": 1.0}
WELL = {"drift": double_well, "diffusion": 0.3, "w0": 0.3}
PLANE = {"drift": lambda w: -w @ H, "diffusion": ROOT, "w0": [1.0, -1.0]}


@pytest.mark.parametrize(("equation", "order"), [(GBM, 0.5), (WELL, 1), (PLANE, 1)])
def test_strong_orders(equation, order):
    found = convergence_order(
        **equation, time=0.25 if equation is WELL else 1.0, n_steps=(8, 16, 32), seed=0,
        n_walkers=20_000,
    )  # fmt: skip
    assert found.stderr < 0.05
    assert abs(found.value - order) < 0.05


def test_the_order_is_that_against_the_exact_solution():
    """exp((a − b²/2) t + b W)."""
    counts, n_walkers = (8, 16, 32), 20_000
    options = {"seed": 1, "n_walkers": n_walkers}
    errors = []
    for n in counts:
        steps = {"dt": 1 / n, "n_steps": n, "refine": 64 * 32 // n}
        w = simulate(GBM["drift"], GBM["diffusion"], 1.0, **steps, **options).final
        brownian = simulate(still, 1.0, 0.0, **steps, **options).final
        errors.append(np.abs(w - np.exp(0.5 - 0.125 + 0.5 * brownian)).mean())
    exact = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    found = convergence_order(**GBM, time=1.0, n_steps=counts, **options)
    assert abs(found.value - exact) < 0.003
    assert abs(exact - 0.5) < 0.04


def test_the_weak_order():
    """E w² of dw = −w dt + dW/10 from 1, whose steps have the factor a: a²ⁿ + variance."""
    errors = []
    for n in (4, 8):
        w = simulate(pull, 0.1, 1.0, dt=1 / n, n_steps=n, seed=0, n_walkers=1_000_000).final
        exact = np.exp(-2) + 0.01 * (1 - np.exp(-2)) / 2
        errors.append(abs(np.square(w).mean() - exact))
    assert abs(np.log2(errors[0] / errors[1]) - 1) < 0.25


def test_the_standard_error_of_an_order_is_its_spread_over_seeds():
    options = {**GBM, "time": 1.0, "n_steps": (4, 8), "n_walkers": 500}
    found = [convergence_order(**options, seed=seed) for seed in range(REPEATS)]
    ratio = np.std([each.value for each in found]) / np.mean([each.stderr for each in found])
    assert 0.85 < ratio < 1.15  # three standard errors of a standard deviation of 200


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_walkers": 1}, "1 walkers too few"),
        ({"drift": still}, "steps too short: .* is all noise"),
        ({"n_steps": (3, 8)}, r"n_steps must be two or more that divide 512, got \[3, 8\]"),
        ({"n_steps": (8,)}, "two or more"),
        ({"n_steps": (8, 8)}, "two or more"),
        ({"n_steps": (4, 8.5)}, "each of n_steps must be a whole number, got 8.5"),
        ({"time": np.nan}, "time must be a finite number"),
    ],
)
def test_orders_that_are_refused(changes, message):
    options = {"drift": pull, "diffusion": 1.0, "w0": 0.0, "time": 1.0, "n_steps": (4, 8)}
    with pytest.raises(ValueError, match=message):
        convergence_order(**options | {"seed": 0, "n_walkers": 3} | changes)


@pytest.mark.parametrize("w0", [0.0, 1.0, 1e6])
def test_errors_that_are_rounding_have_no_order(w0):
    """Without a drift the steps are exact."""
    options = {"diffusion": 1.0, "w0": w0, "time": 1.0, "n_steps": (4, 8, 16)}
    with pytest.raises(ValueError, match=r"steps too short: .* is all noise"):
        convergence_order(still, **options, seed=0, n_walkers=2000)
