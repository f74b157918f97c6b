"""Toys against brute force, differences and Table 1; none of it through lecture6.sharpness."""

import itertools

import numpy as np
import pytest
import torch

from lecture6 import toys

TOYS = {
    **toys.FIGURE_6,
    "quadratic": toys.Quadratic([3.0, 0.5, 10.0], seed=3),
    "two parabolas": toys.TwoParabolas(),
}
WELLS = {
    "two wells": toys.TwoWells(),
    "two wells, 2-D": toys.TwoWells(
        [np.diag([2.0, 2.0]), [[11.0, -9.0], [-9.0, 11.0]]], [[-1, -1], [1, 1]], softness=0.2
    ),
}


def as_toy(wells):
    """Two wells as an Objective, from the formula in torch."""
    c, h, levels = map(torch.from_numpy, (wells.minimisers, wells.hessians, wells.levels))

    def loss(w):
        q = levels + torch.stack([0.5 * (w - c[j]) @ h[j] @ (w - c[j]) for j in (0, 1)])
        return -wells.softness * torch.logsumexp(-q / wells.softness, 0)

    toy = toys.Toy(loss, c.shape[1])
    toy.minimisers = wells.minimisers
    return toy


TOYS |= {name: as_toy(wells) for name, wells in WELLS.items()}
each_toy = pytest.mark.parametrize("name", TOYS)


def highest_by_grid(f, low, high):
    n = {1: 401, 2: 61, 3: 9}[len(low)]
    axes = [np.linspace(a, b, n) for a, b in zip(low, high, strict=True)]
    return max(f.value(np.array(w)) for w in itertools.product(*axes))


@each_toy
def test_gradient_vanishes_at_the_minimisers(name):
    f = TOYS[name]
    assert f.minimisers.shape[1] == f.n_params
    for w in f.minimisers:
        assert f.grad(w).abs().max() < 1e-12
        nearby = w + 0.01 * np.random.default_rng(0).standard_normal((20, f.n_params))
        assert all(f.value(v) >= f.value(w) for v in nearby)


@pytest.mark.parametrize("name", [name for name in TOYS if TOYS[name].convex])
@pytest.mark.parametrize("epsilon", [1e-3, 0.3])
def test_sharpness_is_the_largest_rise_in_the_box(name, epsilon):
    f = TOYS[name]
    points = [*f.minimisers, np.random.default_rng(1).uniform(-1, 1, f.n_params)]
    for x in points:
        half = epsilon * (np.abs(x) + 1)
        base = f.value(x)
        searched = 100 * (highest_by_grid(f, x - half, x + half) - base) / (1 + base)
        assert f.sharpness(x, epsilon) == pytest.approx(searched, rel=1e-3)
        assert f.sharpness(x, epsilon) >= searched * (1 - 1e-9)


@pytest.mark.parametrize("name", [name for name in TOYS if TOYS[name].convex])
def test_sharpness_with_a_matrix(name):
    f = TOYS[name]
    a = np.random.default_rng(2).standard_normal((f.n_params, 2))
    x = np.random.default_rng(3).uniform(-1, 1, f.n_params)
    half = 0.1 * (np.abs(np.linalg.pinv(a) @ x) + 1)
    z = np.stack(np.meshgrid(*(np.linspace(-h, h, 21) for h in half)), -1).reshape(-1, 2)
    searched = max(f.value(x + a @ step) for step in z)
    base = f.value(x)
    assert f.sharpness(x, 0.1, a) == pytest.approx(100 * (searched - base) / (1 + base), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "large", "small"),
    [
        ("100x²", "1.0e-02", "2.5e-03"),
        ("x⁸", "1.0e-22", "3.9e-25"),
        ("100(x² + y²)", "2.0e-02", "5.0e-03"),
        ("100x² + y⁸", "1.0e-02", "2.5e-03"),
    ],
)
def test_identity_rows_of_table_1(name, large, small):
    f = toys.FIGURE_6[name]
    assert f"{f.sharpness(f.minimisers[0], 1e-3):.1e}" == large
    assert f"{f.sharpness(f.minimisers[0], 5e-4):.1e}" == small


def test_the_curves_of_table_1_cross():
    flat, sharp = toys.FIGURE_6["100x² + y⁸"], toys.FIGURE_6["100(x² + y²)"]
    crossing = 100 ** (1 / 6)
    for epsilon, larger in ((0.99 * crossing, sharp), (1.01 * crossing, flat)):
        values = {f: f.sharpness([0.0, 0.0], epsilon) for f in (flat, sharp)}
        assert max(values, key=values.get) is larger


def test_quadratic_has_its_spectrum():
    wanted = np.array([-2.0, 0.0, 1.0, 7.0])
    f = toys.Quadratic(wanted, seed=5)
    np.testing.assert_allclose(np.linalg.eigvalsh(f.h), wanted, atol=1e-12)
    assert len(f.minimisers) == 0
    assert np.abs(f.h - toys.Quadratic(wanted, seed=6).h).max() > 0.1


@pytest.mark.parametrize("shift", [-0.4, 0.0, 0.3])
def test_a_shift_costs_half_h_delta_squared(shift):
    f = toys.TwoParabolas((1.0, 25.0), (-2.0, 2.0))
    for well, centre in enumerate(f.centres):
        exact = 0.5 * f.curvatures[well] * shift**2
        assert f.value([centre - shift]) == pytest.approx(exact, abs=1e-12)


def test_two_wells_have_the_places_widths_and_depths_asked_for():
    wells = toys.TwoWells((1.0, 16.0), (-1.0, 1.0), (0.5, 0.0))
    f = as_toy(wells)
    for w, level, h in zip(f.minimisers, (0.5, 0.0), (1.0, 16.0), strict=True):
        assert f.value(w) == pytest.approx(level, abs=1e-9)
        assert f.hvp(w, np.ones(1)).item() == pytest.approx(h)
    assert f.grad([wells.saddle]).abs().max() < 1e-9
    assert f.hvp([wells.saddle], np.ones(1)).item() < 0
    hard = toys.TwoParabolas((1.0, 16.0), (-1.0, 1.0))
    sharp = toys.TwoWells((1.0, 16.0), (-1.0, 1.0), (0.0, 0.0), softness=1e-3)
    for w in (-2.0, -0.3, 0.4, 0.9):  # away from the kink of the hard minimum
        assert sharp.losses([[w]])[0] == pytest.approx(hard.value([w]), abs=1e-9)


@pytest.mark.parametrize("name", WELLS)
def test_two_wells_take_many_points_at_once(name):
    wells, f = WELLS[name], TOYS[name]
    points = np.random.default_rng(0).normal(size=(30, f.n_params))
    np.testing.assert_allclose(wells.losses(points), [f.value(w) for w in points], rtol=1e-12)
    exact = np.array([f.grad(w).numpy() for w in points])
    np.testing.assert_allclose(wells.gradients(points), exact, rtol=1e-9, atol=1e-12)
    assert np.isfinite(wells.gradients(1e3 * points)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: toys.TwoWells((1.0, -1.0)), "positive curvatures"),
        (lambda: toys.TwoWells(softness=0.0), "softness must be .* above 0, got 0"),
        (lambda: toys.TwoWells(softness=2.0), "run into each other"),
        (lambda: WELLS["two wells, 2-D"].saddle, "no point"),
        (lambda: toys.Powers([1], [3]), "even exponents"),
        (lambda: toys.Powers([-1], [2]), "positive coefficients"),
        (lambda: toys.Powers([1, 1], [2]), "as many"),
        (lambda: toys.TwoParabolas((0, 1)), "positive curvatures"),
        (lambda: toys.TwoParabolas(centres=(2, -2)), "increasing centres"),
        (lambda: toys.Powers([np.nan], [2]), "coefficients must be finite, got"),
        (lambda: toys.Powers([1], [2.5]), "even exponents"),
        (lambda: toys.Quadratic([1.0], seed=-1), "seed must be at least 0"),
        (lambda: toys.Quadratic([1.0]).sharpness([np.nan], 0.1), "x must be finite"),
        (lambda: toys.Quadratic([1.0]).sharpness([0.0, 1.0], 0.1), r"x .* \(1,\), got \(2,\)"),
        (lambda: toys.Quadratic([1.0]).sharpness([0.0], np.nan), "epsilon must be .* got nan"),
        (lambda: toys.Quadratic([1.0]).sharpness([0.0], 0.1, np.ones((2, 1))), r"a must have"),
        (lambda: toys.TwoWells(levels=(0.5,)), r"levels must have the shape \(2,\), got \(1,\)"),
        (lambda: toys.Quadratic([-1.0, 1.0]).sharpness([0.0, 0.0], 0.1), "this Quadratic isn't"),
        (lambda: toys.TwoParabolas().sharpness([1.0], 0.1), "convex losses only: this TwoPara"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_toys_are_objectives_in_float64():
    for f in TOYS.values():
        assert f.dtype == torch.float64
        assert f.grad(np.ones(f.n_params)).shape == (f.n_params,)
