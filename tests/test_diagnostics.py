"""Orders of convergence against theory, distances against SciPy and brute force."""

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from lecture6.diagnostics import convergence_order, distance

REPEATS = 200


def pull(w):
    return -w


def double_well(w):
    return -4 * w * (w * w - 1)


# The orders of the methods

H = np.array([[2.0, 0.6], [0.6, 0.5]])
ROOT = np.array([[1.0, 0.0], [0.7, 0.4]])
GBM = {"drift": lambda w: 0.5 * w, "diffusion": lambda w: 0.5 * w, "w0": 1.0}
WELL = {"drift": double_well, "diffusion": 0.3, "w0": 0.3}
OU = {"drift": pull, "diffusion": 0.1, "w0": 1.0}
PLANE = {"drift": lambda w: -w @ H, "diffusion": ROOT, "w0": [1.0, -1.0]}


def first(w):
    return w[:, 0]


def square(w):
    return (w * w).sum(axis=1)


@pytest.mark.parametrize(
    ("equation", "method", "test", "order"),
    [
        (GBM, "euler", None, 0.5),
        (GBM, "milstein", None, 1.0),
        (GBM, "euler", first, 1.0),
        (GBM, "milstein", square, 1.0),
        (WELL, "euler", None, 1.0),
        (WELL, "heun", None, 1.0),
        (OU, "euler", first, 1.0),
        (OU, "heun", first, 2.0),
        (PLANE, "heun", square, 2.0),
        (WELL, "heun", square, 2.0),
    ],
)
def test_orders_of_convergence(equation, method, test, order):
    found = convergence_order(
        **equation, time=0.25 if equation is WELL else 1.0, n_steps=(8, 16, 32), method=method,
        seed=0, test=test, n_walkers=200_000 if order == 2 else 20_000,
    )  # fmt: skip
    assert found.stderr < 0.05
    assert abs(found.slope - order) < 0.1
    assert (np.diff(found.errors) < 0).all()


def test_the_standard_error_of_an_order_is_its_spread_over_seeds():
    options = {**GBM, "time": 1.0, "n_steps": (4, 8), "method": "euler", "n_walkers": 500}
    found = [convergence_order(**options, seed=seed) for seed in range(REPEATS)]
    ratio = np.std([each.slope for each in found]) / np.mean([each.stderr for each in found])
    assert 0.85 < ratio < 1.15  # three standard errors of a standard deviation of 200


def test_an_order_that_noise_hides_is_refused():
    with pytest.raises(ValueError, match="lost in Monte-Carlo noise"):
        convergence_order(
            pull, 1.0, 0.0, time=1.0, n_steps=(16, 32), method="heun", seed=0, test=first,
            n_walkers=100,
        )  # fmt: skip


def test_numbers_of_steps_that_have_no_common_path_are_refused():
    with pytest.raises(ValueError, match="divide 16 times the largest"):
        convergence_order(
            pull, 1.0, 0.0, time=1.0, n_steps=(3, 8), method="euler", seed=0, n_walkers=3
        )


# Distances between samples


def test_distance_in_one_dimension_is_kolmogorovs():
    a, b = np.random.default_rng(0).standard_normal((2, 300))
    found, expected = distance(a, b[:200] + 0.1), stats.ks_2samp(a, b[:200] + 0.1)
    assert (found.value, found.p_value) == (expected.statistic, expected.pvalue)
    assert distance(a[:, None], b[:200, None] + 0.1) == found


def test_energy_distance():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((40, 3)), rng.standard_normal((60, 3)) + 0.2
    brute = 2 * cdist(a, b).mean() - cdist(a, a).mean() - cdist(b, b).mean()
    assert distance(a, b).value == pytest.approx(brute, rel=1e-12)
    flat = [np.stack([x[:, 0], np.zeros(len(x))], axis=1) for x in (a, b)]
    assert distance(*flat).value == pytest.approx(
        stats.energy_distance(a[:, 0], b[:, 0]) ** 2, rel=1e-10
    )
    assert distance(a, b + 1).p_value == 1 / 1000
    assert distance(a, a).p_value == 1


def test_p_values_of_equal_laws_are_uniform():
    rng = np.random.default_rng(1)
    p_values = [
        distance(*rng.standard_normal((2, 30, 2)), n_permutations=199, seed=seed).p_value
        for seed in range(REPEATS)
    ]
    spread = np.array(p_values) - rng.uniform(0, 1 / 200, REPEATS)  # they are k/200
    assert stats.kstest(spread, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((5, 2)), np.zeros((5, 3)), r"\(5, 2\) and \(5, 3\)"),
        (np.zeros(1), np.zeros(5), "n, m ≥ 2"),
        (np.array([0, np.inf]), np.zeros(5), "must be finite"),
        (np.zeros((3000, 2)), np.zeros((3000, 2)), "take 4000 points at most"),
    ],
)
def test_distances_that_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        distance(a, b)
