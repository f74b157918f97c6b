"""Equilibria against Lyapunov equations, SciPy, enumeration of batches and transition matrices."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, linalg, stats

from lecture6 import equilibrium, toys
from lecture6.equilibrium import Gibbs
from lecture6.train import SAMPLING

LR, B = 0.1, 4


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def positive(d, seed):
    a = random(d, d + 2, seed=seed)
    return a @ a.T / d


H, C = positive(4, seed=1), positive(4, seed=2)
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


# Quadratics: the covariance at rest


@pytest.mark.parametrize("lr", [1e-4, 0.1, 0.4])
def test_covariance_solves_its_lyapunov_equation(lr):
    s = equilibrium.ou_covariance(H, C, lr, B)
    shrink = np.eye(4) - lr * H
    np.testing.assert_allclose(shrink @ s @ shrink + lr**2 * C / B, s, **CLOSE)
    np.testing.assert_allclose(s, linalg.solve_discrete_lyapunov(shrink, lr**2 * C / B), rtol=1e-8)
    for m in (0.0, 0.9):
        s = equilibrium.ou_covariance(H, C, lr, B, momentum=m, discrete=False)
        np.testing.assert_allclose(H @ s + s @ H, lr / B * C / (1 - m), **CLOSE)
        scipy = linalg.solve_continuous_lyapunov(H, lr / B * C / (1 - m))
        np.testing.assert_allclose(s, scipy, **CLOSE)


def test_covariance_in_the_eigenbasis():
    values, q = np.linalg.eigh(H)
    s = q.T @ equilibrium.ou_covariance(H, C, LR, B) @ q
    c = q.T @ C @ q
    for i, j in itertools.product(range(4), repeat=2):
        total = values[i] + values[j] - LR * values[i] * values[j]
        assert s[i, j] == pytest.approx(LR / B * c[i, j] / total, rel=1e-10)


@pytest.mark.parametrize("momentum", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("lr", [0.01, 0.1, 0.6])
def test_heavy_ball_solves_the_lyapunov_equation_of_two_steps(momentum, lr):
    """The state is (w, v) here, not the (w_t, w_(t−1)) of the derivation."""
    i = np.eye(4)
    step = np.block([[i - lr * H, -lr * momentum * i], [H, momentum * i]])
    noise = np.block([[lr**2 * C, -lr * C], [-lr * C, C]]) / B
    both = linalg.solve_discrete_lyapunov(step, noise)
    s = equilibrium.ou_covariance(H, C, lr, B, momentum=momentum)
    np.testing.assert_allclose(s, both[:4, :4], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("lr_h", [0.02, 1.0, 1.9])
def test_heavy_ball_in_one_dimension(momentum, lr_h):
    h, s2, m = 3.0, 0.7, momentum
    lr = lr_h / h
    found = equilibrium.ou_covariance(h, s2, lr, B, momentum=m)
    closed = lr * s2 / (B * h) * (1 + m) / ((1 - m) * (2 * (1 + m) - lr * h))
    assert found.item() == pytest.approx(closed, rel=1e-12)


def test_the_sde_is_the_limit_of_small_rates():
    for momentum in (0.0, 0.9):
        errors = []
        for lr in (1e-3, 1e-4):
            discrete, continuous = (
                equilibrium.ou_covariance(H, C, lr, B, momentum=momentum, discrete=exact)
                for exact in (True, False)
            )
            errors.append(abs(discrete / continuous - 1).max())
        assert errors[1] == pytest.approx(errors[0] / 10, rel=0.3)
    # and far from it at ηh = 1.2
    one, sde = (
        equilibrium.ou_covariance(1.0, 1.0, 1.2, 1, discrete=x).item() for x in (True, False)
    )
    assert one / sde == pytest.approx(2.5, rel=1e-12)


@pytest.mark.parametrize("k", [2, 8, 15])
def test_linear_scaling_breaks_as_the_rate_nears_its_limit(k):
    lr, h = 0.05, 2.0
    small = equilibrium.ou_covariance(h, 1.0, lr, B).item()
    large = equilibrium.ou_covariance(h, 1.0, k * lr, k * B).item()
    assert large / small == pytest.approx((2 - lr * h) / (2 - k * lr * h), rel=1e-12)


# Linear regression


X, Y = 0.6 * random(6, 2, seed=3) + 0.2, random(6, seed=4)


def all_batches(n, b, replacement):
    if replacement:
        return np.array(list(itertools.product(range(n), repeat=b)))
    return np.array(list(itertools.combinations(range(n), b)))


def enumerated_step(x, y, lr, b, replacement):
    """Every batch's shrinking matrix I − ηH_b and its step from the minimiser."""
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    index = all_batches(len(x), b, replacement)
    shrink = np.eye(x.shape[1]) - lr * np.einsum("kbi,kbj->kij", x[index], x[index]) / b
    jump = lr * np.einsum("kbi,kb->ki", x[index], y[index] - x[index] @ best) / b
    return shrink, jump


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("b", [1, 2, 3, 6])
@pytest.mark.parametrize("lr", [0.05, 0.3])
def test_regression_covariance_by_enumeration(replacement, b, lr):
    found = equilibrium.linear_regression_covariance(X, Y, lr, b, replacement=replacement)
    s = found.covariance
    shrink, jump = enumerated_step(X, Y, lr, b, replacement)
    after = np.einsum("kij,jl,kml->kim", shrink, s, shrink) + jump[:, :, None] * jump[:, None, :]
    np.testing.assert_allclose(after.mean(0), s, rtol=1e-10, atol=1e-15)
    step = np.mean([np.kron(a, a) for a in shrink], axis=0)
    assert found.spectral_radius == pytest.approx(abs(np.linalg.eigvals(step)).max(), rel=1e-10)
    assert np.linalg.eigvalsh(s)[0] >= -1e-15
    if b == 6 and not replacement:
        assert abs(s).max() < 1e-15  # the whole set: no noise
    elif b < 6:
        factor = 1 if replacement else (6 - b) / 5
        additive = equilibrium.ou_covariance(found.hessian, factor * found.noise, lr, b)
        assert np.trace(s) > np.trace(additive) * (1 + 0.1 * lr)


@pytest.mark.parametrize("replacement", [True, False])
def test_regression_covariance_by_simulation(replacement):
    """SGD itself; the additive-noise formula is off by far more than the error."""
    rng, walkers, lr, b = np.random.default_rng(5), 40_000, 0.3, 2
    w = np.zeros((walkers, 2))
    for _ in range(150):
        if replacement:
            index = rng.integers(0, 6, (walkers, b))
        else:
            index = rng.random((walkers, 6)).argsort(1)[:, :b]
        x, residual = X[index], np.einsum("kbi,ki->kb", X[index], w) - Y[index]
        w -= lr * np.einsum("kbi,kb->ki", x, residual) / b
    found = equilibrium.linear_regression_covariance(X, Y, lr, b, replacement=replacement)
    away = w - found.minimiser
    products = away[:, :, None] * away[:, None, :]
    stderr = products.std(0) / math.sqrt(walkers)
    assert (abs(products.mean(0) - found.covariance) < 4 * stderr).all()
    factor = 1 if replacement else 4 / 5
    additive = equilibrium.ou_covariance(found.hessian, factor * found.noise, lr, b)
    assert (abs(np.diag(found.covariance - additive)) > 8 * np.diag(stderr)).all()


def test_the_edge_of_stability_is_that_of_one_dimension():
    """The radius is (1 − ηa)² + η²κs² (Wu, Ma & E 2018); it reaches 1 between two batch sizes."""
    h = np.array([0.1, 0.3, 0.2, 6.0, 0.4, 0.3])
    x, y, lr = np.sqrt(h)[:, None], random(6, seed=6), 0.5
    radius = {
        b: (1 - lr * h.mean()) ** 2 + lr**2 * (6 - b) / (b * 5) * h.var() for b in range(1, 7)
    }
    least = min(b for b in radius if radius[b] <= 1)
    assert 1 < least < 6
    found = equilibrium.linear_regression_covariance(x, y, lr, least, replacement=False)
    assert found.spectral_radius == pytest.approx(radius[least], rel=1e-12)
    with pytest.raises(ValueError, match=rf"fold a step at lr = 0.5 and batch_size = {least - 1}"):
        equilibrium.linear_regression_covariance(x, y, lr, least - 1, replacement=False)


def test_without_residuals_there_is_nothing_left_to_fluctuate():
    found = equilibrium.linear_regression_covariance(X, X @ [1.0, -2.0], 0.1, 1, replacement=True)
    np.testing.assert_allclose(found.minimiser, [1, -2], rtol=1e-12)
    assert abs(found.covariance).max() < 1e-28


# Epochs and stability


def batches(n, b, sampling):
    return torch.from_numpy(all_batches(n, b, sampling == "with_replacement"))


def end_of_epoch(centres, lr_h, orders, b, w):
    """SGD itself on ½ h (w − c_i)² through each row of sample numbers."""
    for batch in orders.split(b, dim=1):
        w = w - lr_h * (w - centres[batch].mean(1))
    return w


@pytest.mark.parametrize(("n", "b"), [(6, 1), (6, 2), (6, 3), (4, 2)])
@pytest.mark.parametrize("lr_h", [0.02, 0.5, 1.0, 1.7])
def test_variance_at_the_end_of_an_epoch_by_enumeration(n, b, lr_h):
    """Var(w) is stationary: a^2K Var(w) + the variance over all orders, from w = 0."""
    centres = torch.from_numpy(random(n, seed=3))
    variance = centres.var(correction=0).item()
    for sampling in SAMPLING:
        if sampling == "epoch":
            orders = torch.tensor(list(itertools.permutations(range(n))))
            steps = n // b
        else:
            orders, steps = batches(n, b, sampling), 1
        end = end_of_epoch(centres, lr_h, orders, b, torch.zeros(len(orders), dtype=torch.float64))
        expected = end.var(correction=0).item() / (1 - (1 - lr_h) ** (2 * steps))
        found = variance * equilibrium.epoch_end_variance(lr_h, n, b, sampling=sampling)
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_variance_at_the_end_of_an_epoch_by_simulation():
    generator = torch.Generator().manual_seed(0)
    centres, runs, lr_h = torch.from_numpy(random(12, seed=4)), 20_000, 0.4
    w = torch.zeros(runs, dtype=torch.float64)
    for _ in range(12):
        orders = torch.rand(runs, 12, generator=generator).argsort(1)
        w = end_of_epoch(centres, lr_h, orders, 3, w)
    variance = centres.var(correction=0).item()
    found = variance * equilibrium.epoch_end_variance(lr_h, 12, 3, sampling="epoch")
    squares = (w - centres.mean()) ** 2
    assert abs(squares.mean().item() - found) < 3 * squares.std().item() / math.sqrt(runs)


def test_shuffled_epochs_end_far_nearer_together():
    """The check numbers of the derivation, N = 64 and B = 4, to their printed digits."""
    for lr_h, ratio, digits in ((0.5, 0.83, 2), (0.1, 0.19, 2), (0.02, 0.009, 3)):
        shuffled, drawn = (
            equilibrium.epoch_end_variance(lr_h, 64, 4, sampling=s)
            for s in ("epoch", "with_replacement")
        )
        assert round(shuffled / drawn, digits) == ratio


@pytest.mark.parametrize("lr_h", [1e-4, 1e-10, 1e-17])
def test_variance_at_the_end_of_a_quiet_epoch_keeps_its_digits(lr_h):
    """Its first term in η h, K/(N − 1) · (ηh)² (K² − 1)/12 · ηh/2; the next is smaller by K ηh."""
    found = equilibrium.epoch_end_variance(lr_h, 64, 4, sampling="epoch")
    assert found == pytest.approx(16 / 63 * 255 / 12 / 2 * lr_h**3, rel=16 * lr_h + 1e-12)


# The Gibbs density


def moments(gibbs):
    """Mean and variance, by a sum over a fine grid."""
    w = np.linspace(gibbs.low, gibbs.high, 400_001)
    p = gibbs.pdf(w) * (w[1] - w[0])
    return p @ w, p @ (w - p @ w) ** 2


def test_density_of_a_parabola_is_gaussian():
    h, t, centre = 3.0, 0.2, 0.4
    gibbs = Gibbs(lambda w: h / 2 * (w[:, 0] - centre) ** 2, t, -4, 5)
    exact = stats.norm(centre, math.sqrt(t / h))
    w = np.linspace(-5, 6, 301)
    inside = (w > -4) & (w < 5)
    np.testing.assert_allclose(gibbs.pdf(w)[inside], exact.pdf(w)[inside], **CLOSE)
    assert (gibbs.pdf(w)[~inside] == 0).all()
    np.testing.assert_allclose(gibbs.cdf(w), exact.cdf(w), **CLOSE)
    assert gibbs.log_partition == pytest.approx(math.log(2 * math.pi * t / h) / 2, rel=1e-10)
    assert moments(gibbs) == pytest.approx([centre, t / h], rel=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_its_variance_is_that_of_the_sde(momentum):
    h, sigma = 3.0, 0.6
    t = equilibrium.temperature(LR, B, sigma) / (1 - momentum)
    gibbs = Gibbs(lambda w: h / 2 * w**2, t, -3, 3)
    s = equilibrium.ou_covariance(h, sigma**2, LR, B, momentum=momentum, discrete=False)
    assert moments(gibbs)[1] == pytest.approx(s.item(), rel=1e-8)


class DoubleWell:
    """ℓ'(w) = 4 (w − left)(w − saddle)(w − right); ℓ is 0 at the lower minimum."""

    def __init__(self, left, saddle, right):
        self.ends, self.saddle = np.array([left, right]), saddle
        self.profile = (4 * np.polynomial.Polynomial.fromroots([left, saddle, right])).integ()
        self.profile -= self.profile(self.ends).min()
        self.barriers = self.profile(saddle) - self.profile(self.ends)
        self.curvature = self.profile.deriv(2)

    def __call__(self, w):
        return self.profile(w)


WELL = DoubleWell(-1.5, 0.2, 1.0)


@pytest.mark.parametrize("t", [0.05, 0.5, 5.0])
def test_density_of_a_double_well_by_quad(t):
    def integral(f, high=4.0):
        points = [p for p in (-1.5, 0.2, 1.0) if p < high]
        options = {"points": points, "epsabs": 0, "epsrel": 1e-12, "limit": 200}
        return integrate.quad(lambda w: f(w) * math.exp(-WELL.profile(w) / t), -4, high, **options)

    gibbs, (z, _) = Gibbs(WELL, t, -4, 4), integral(lambda w: 1)
    assert gibbs.log_partition == pytest.approx(math.log(z), rel=1e-10, abs=1e-10)
    mean = integral(lambda w: w)[0] / z
    assert moments(gibbs) == pytest.approx([mean, integral(lambda w: (w - mean) ** 2)[0] / z])
    for w in (-1.7, -1.0, 0.2, 0.9001):
        below = integral(lambda w: 1, high=w)[0] / z
        assert gibbs.cdf(w) == pytest.approx(below, rel=1e-9)


def test_a_box_that_cuts_the_density_keeps_it_normalised():
    flat = Gibbs(lambda w: 0 * w, 1.0, -2, 3)
    w = np.linspace(-2, 3, 11)
    np.testing.assert_allclose(flat.cdf(w), (w + 2) / 5, **CLOSE)
    np.testing.assert_allclose(flat.pdf(w), 0.2, **CLOSE)
    slope = Gibbs(lambda w: 3 * w, 1.0, 0, 2)
    np.testing.assert_allclose(slope.cdf(w), stats.truncexpon(6, scale=1 / 3).cdf(w), **CLOSE)


def test_numbers_and_arrays_of_any_shape():
    wells = toys.TwoWells()
    gibbs, w = Gibbs(wells.losses, 0.5, -12, 6), np.linspace(-3, 2, 12).reshape(3, 4)
    for function in (gibbs.pdf, gibbs.cdf):
        one_by_one = [[function(each) for each in row] for row in w]
        np.testing.assert_array_equal(function(w), one_by_one)
    exact = -wells.losses([[0.3]])[0] / 0.5 - gibbs.log_partition
    assert np.log(gibbs.pdf(0.3)) == pytest.approx(exact, rel=1e-12)


def test_cold_and_high_densities_do_not_overflow():
    t = 1e-4
    gibbs = Gibbs(lambda w: 1e3 + WELL.profile(w), t, -3, 3)
    level, h = 1e3 + WELL.profile(-1.5), WELL.curvature(-1.5)
    log_z = -level / t + math.log(2 * math.pi * t / h) / 2
    assert gibbs.log_partition == pytest.approx(log_z, rel=1e-12)
    assert moments(gibbs)[1] == pytest.approx(t / h, rel=0.01)


# State-dependent noise


def test_constant_diffusion_gives_the_gibbs_density():
    slope = WELL.profile.deriv()
    found = equilibrium.multiplicative_density(slope, lambda w: 0.3, -3, 3)
    exact, w = Gibbs(WELL, 0.3, -3, 3), np.linspace(-3, 3, 101)
    np.testing.assert_allclose(found.pdf(w), exact.pdf(w), **CLOSE)
    np.testing.assert_allclose(found.cdf(w), exact.cdf(w), **CLOSE)


def test_noise_that_grows_with_w_gives_students_t():
    """ℓ = ½hw² and D = a(1 + w²): p ∝ (1 + w²)^−(1 + h/2a), with ν = 1 + h/a Student's for √ν w."""
    h, a = 2.0, 0.5
    nu = 1 + h / a
    found = equilibrium.multiplicative_density(lambda w: h * w, lambda w: a * (1 + w**2), -12, 12)
    w = np.linspace(-6, 6, 101)
    exact = stats.t(nu, scale=1 / math.sqrt(nu))
    inside = exact.cdf(12) - exact.cdf(-12)
    np.testing.assert_allclose(found.pdf(w), exact.pdf(w) / inside, rtol=1e-9)
    np.testing.assert_allclose(found.cdf(w), (exact.cdf(w) - exact.cdf(-12)) / inside, rtol=1e-9)


def slope(w):
    return w**3 - w + 0.2


def diffusion(w):
    return 0.3 + 0.2 * np.tanh(2 * w)


def test_no_probability_flows():
    """Itô's Fokker–Planck equation at rest: ℓ'p + (Dp)' = 0."""
    found = equilibrium.multiplicative_density(slope, diffusion, -4, 4)
    w, step = np.linspace(-2, 2, 41), 1e-4
    flow = [diffusion(v) * found.pdf(v) for v in (w + step, w - step)]
    derivative = (flow[0] - flow[1]) / (2 * step)
    np.testing.assert_allclose(derivative, -slope(w) * found.pdf(w), atol=1e-6)


def test_the_steps_of_sgd_approach_itos_density():
    """The stationary vector of w ← w − dt ℓ' + √(2D dt) ξ; its error is of order dt."""
    w, width = np.linspace(-3, 3, 601, retstep=True)
    ito = equilibrium.multiplicative_density(slope, diffusion, -3, 3)
    stratonovich = ito.pdf(w) * np.sqrt(diffusion(w))
    stratonovich /= stratonovich.sum() * width
    found = []
    for dt in (0.02, 0.01):
        step = stats.norm.pdf(w[:, None], w - dt * slope(w), np.sqrt(2 * dt * diffusion(w)))
        step /= step.sum(0)
        for _ in range(16):  # 2^16 steps
            step = step @ step
        found.append(step[:, 300] / width)
    errors = [np.abs(density - ito.pdf(w)).sum() for density in found]
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.1)
    limit = 2 * found[1] - found[0]  # what is left of order dt²
    assert np.abs(limit - ito.pdf(w)).sum() < 0.02 * np.abs(limit - stratonovich).sum()


# Wells


def test_laplace_is_the_gibbs_density_as_t_goes_to_0():
    f = DoubleWell(-1.0, 0.1, 1.0)
    levels, hessians = f(f.ends), f.curvature(f.ends)
    errors = []
    for part in (20, 40, 80):
        t = f.barriers.min() / part
        sides = [Gibbs(f, t, low, low + 2.1) for low in (-2, f.saddle)]
        exact = math.exp(sides[0].log_partition - sides[1].log_partition)
        found = equilibrium.laplace(levels, hessians, t)
        assert found.sum() == pytest.approx(1, rel=1e-12)
        errors.append(found[0] / found[1] / exact - 1)
    assert abs(errors[-1]) < 0.002
    assert errors[1:] == pytest.approx([errors[0] / 2, errors[1] / 2], rel=0.2)


def test_laplace_by_hand_and_as_printed():
    hessians, t = [np.diag([4.0, 9.0]), np.eye(2), positive(2, seed=10)], 0.2
    levels = np.array([0.3, 0.5, 0.4])
    det = np.array([36, 1, np.linalg.det(hessians[2])])
    for as_printed, power in ((False, 1 / t), (True, 1 / (2 * t))):
        p = np.exp(-levels * power) / np.sqrt(det)
        found = equilibrium.laplace(levels, hessians, t, as_printed=as_printed)
        np.testing.assert_allclose(found, p / p.sum(), rtol=1e-12)
    shifted = equilibrium.laplace(levels + 1e4, hessians, t)
    np.testing.assert_allclose(shifted, equilibrium.laplace(levels, hessians, t), rtol=1e-8)
    equal = [
        equilibrium.laplace([1.0, 1.0], [4.0, 1.0], 0.1, as_printed=printed)
        for printed in (False, True)
    ]
    np.testing.assert_allclose(equal, [[1 / 3, 2 / 3]] * 2, rtol=1e-12)


# Escape


def test_escape_from_flat_and_sloping_ground():
    """T τ'' − ℓ' τ' = −1, τ' = 0 at the wall and τ = 0 at the end, solved by hand."""
    t, wall, start, end, v = 0.3, -1.0, 0.5, 2.0, 0.4
    flat = equilibrium.escape_time(lambda w: 0 * w, t, start, end, wall=wall)
    assert flat == pytest.approx(((end - wall) ** 2 - (start - wall) ** 2) / (2 * t), rel=1e-12)
    for v in (0.4, -0.4):
        found = equilibrium.escape_time(lambda w, v=v: -v * w, t, start, end, wall=wall)
        tails = math.exp(-v * (end - wall) / t) - math.exp(-v * (start - wall) / t)
        assert found == pytest.approx((end - start) / v + t / v**2 * tails, rel=1e-10)
    at_wall = equilibrium.escape_time(lambda w: 0 * w, t, wall, end, wall=wall)
    assert at_wall == pytest.approx((end - wall) ** 2 / (2 * t), rel=1e-12)


@pytest.mark.parametrize("t", [0.2, 0.5, 2.0])
def test_escape_time_by_quad(t):
    options = {"epsabs": 0, "epsrel": 1e-9, "limit": 200}

    def inner(y):
        density = lambda z: math.exp((WELL.profile(y) - WELL.profile(z)) / t)  # noqa: E731
        return integrate.quad(density, -4, y, points=[-1.5], **options)[0]

    exact = integrate.quad(inner, -1.4, 1.0, points=[0.2], **options)[0] / t
    found = equilibrium.escape_time(WELL, t, -1.4, 1.0, wall=-4)
    assert found == pytest.approx(exact, rel=1e-7)
    mirrored = DoubleWell(-1.0, -0.2, 1.5)
    assert equilibrium.escape_time(mirrored, t, 1.4, -1.0, wall=4) == pytest.approx(found, rel=1e-9)


def kramers(f, well, t):
    h, saddle = f.curvature(f.ends[well]), f.curvature(f.saddle)
    return equilibrium.kramers_time(h, saddle, f.barriers[well], t)


@pytest.mark.parametrize("well", [0, 1])
def test_kramers_time_is_the_limit_of_the_exact_one(well):
    """Their ratio by its first order in T; that of half the way, the saddle, in √T."""
    ends, errors, halves = WELL.ends, [], []
    wall = 4.0 if well else -4.0
    for part in (40, 80, 160):
        t = WELL.barriers[well] / part
        exact = equilibrium.escape_time(WELL, t, ends[well], ends[1 - well], wall=wall)
        errors.append(exact / kramers(WELL, well, t) - 1)
        half = equilibrium.escape_time(WELL, t, ends[well], WELL.saddle, wall=wall)
        halves.append(half / exact - 0.5)
    assert abs(errors[-1]) < 0.01
    assert errors[-1] == pytest.approx(errors[-2] / 2, rel=0.1)
    assert abs(halves[-1]) < 0.02
    assert halves[1:] == pytest.approx(np.array(halves[:-1]) / math.sqrt(2), rel=0.1)


def test_rates_and_laplace_agree_on_the_shares():
    t = 0.3
    rates = [1 / kramers(WELL, well, t) for well in (0, 1)]
    share = rates[1] / sum(rates)
    exact = equilibrium.laplace(WELL(WELL.ends), WELL.curvature(WELL.ends), t)[0]
    assert share == pytest.approx(exact, rel=1e-12)


def test_two_rates_of_escape_describe_a_diffusion_between_wells():
    """The whole master equation on a fine grid, started at rest in well A."""
    f = DoubleWell(-1.0, 0.1, 1.0)
    t = f.barriers.min() / 6
    w, width = np.linspace(-1.9, 1.9, 400, retstep=True)
    level = f.profile(w)
    up = t / width**2 * np.exp(-(level[1:] - level[:-1]) / (2 * t))  # k → k + 1
    down = t / width**2 * np.exp((level[1:] - level[:-1]) / (2 * t))
    generator = np.diag(down, 1) + np.diag(up, -1)
    generator -= np.diag(generator.sum(0))
    in_a = w < f.saddle
    start = np.where(in_a, np.exp(-level / t), 0)
    start /= start.sum()
    ab = 1 / equilibrium.escape_time(f, t, -1.0, 1.0, wall=-4)
    ba = 1 / equilibrium.escape_time(f, t, 1.0, -1.0, wall=4)
    for time in np.array([0.1, 1.0, 10.0]) / (ab + ba):
        exact = (linalg.expm(time * generator) @ start)[in_a].sum()
        two_rates = (ba + ab * math.exp(-(ab + ba) * time)) / (ab + ba)
        assert two_rates == pytest.approx(exact, abs=0.01)


# The last digits, by exact arithmetic


def two_step_covariance(h, c, lr, b, m):
    """S_ij by the Lyapunov equation of (w, v), of 700 digits: P = A_i P A_jᵀ + n nᵀ c_ij/B."""
    out, pairs = np.empty((2, 2)), list(itertools.product(range(2), repeat=2))
    with mpmath.workdps(700):
        lr, m = mpmath.mpf(lr), mpmath.mpf(m)
        n, a = (-lr, 1), [((1 - lr * each, -lr * m), (each, m)) for each in h]
        for i, j in pairs:
            rows = [[(k == l) - a[i][k[0]][l[0]] * a[j][k[1]][l[1]] for l in pairs] for k in pairs]
            right = [n[k] * n[l] * mpmath.mpf(c[i][j]) / b for k, l in pairs]
            out[i, j] = float(mpmath.lu_solve(mpmath.matrix(rows), mpmath.matrix(right))[0])
    return out


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1 - 1e-9])
@pytest.mark.parametrize("lr", [1e-300, 1e-17, 1e-9, 0.1, 2 / 3 * (1 - 1e-6)])
def test_covariance_keeps_its_digits(lr, momentum):
    h, c = [1.0, 3.0], [[2.0, 0.5], [0.5, 1.0]]
    exact = two_step_covariance(h, c, lr, B, momentum)
    found = equilibrium.ou_covariance(np.diag(h), c, lr, B, momentum=momentum)
    np.testing.assert_allclose(found, exact, rtol=1e-9 if lr > 0.5 else 1e-13)


@pytest.mark.parametrize("scale", [1e-200, 1e-10, 1e200])
def test_covariance_at_every_scale_of_the_loss(scale):
    found = equilibrium.ou_covariance(scale * H, scale * C, LR / scale, B)
    np.testing.assert_allclose(found, equilibrium.ou_covariance(H, C, LR, B) / scale, rtol=1e-10)
    askew = scale * np.array([[2.0, 1.0], [0.0, 2.0]])
    with pytest.raises(ValueError, match="h must be a symmetric matrix"):
        equilibrium.ou_covariance(askew, np.eye(2), 1, B)
    with pytest.raises(ValueError, match="c must be symmetric"):
        equilibrium.ou_covariance(np.eye(2), askew, 1, B)


@pytest.mark.parametrize("lr", [1e-300, 1e-17, 1e-12, 1e-8])
@pytest.mark.parametrize("replacement", [True, False])
def test_regression_covariance_of_small_rates_keeps_its_digits(lr, replacement):
    """Its limit is that of the SDE, HS + SH = η κ C; the next term is smaller by η."""
    found = equilibrium.linear_regression_covariance(X, Y, lr, 2, replacement=replacement)
    kappa = 1 / 2 if replacement else 4 / (2 * 5)
    exact = linalg.solve_continuous_lyapunov(found.hessian, kappa * found.noise)
    np.testing.assert_allclose(found.covariance / lr, exact, rtol=1e-11 + 10 * lr)


@pytest.mark.parametrize("lr_h", [1e-100, 1e-17, 1e-9, 0.3, 1 - 1e-10, 1, 1 + 1e-10, 1.7, 2 - 1e-9])
@pytest.mark.parametrize(("n", "b"), [(64, 4), (1000, 1), (6, 3)])
def test_variance_at_the_end_of_an_epoch_keeps_its_digits(lr_h, n, b):
    with mpmath.workdps(400):
        e, k = mpmath.mpf(lr_h), n // b
        p = [(1 - e) ** j for j in range(k)]
        mean, each = sum(p) / k, e / (2 - e)
        spread = sum((q - mean) ** 2 for q in p) / sum(q * q for q in p)
        exact = {
            "epoch": float(mpmath.mpf(k) / (n - 1) * spread * each),
            "with_replacement": float(each / b),
            "without_replacement": float(each * (n - b) / (b * (n - 1))),
        }
    for sampling in SAMPLING:
        found = equilibrium.epoch_end_variance(lr_h, n, b, sampling=sampling)
        assert found == pytest.approx(exact[sampling], rel=1e-12, abs=0)


def test_temperature_at_every_scale():
    for lr, sigma, exact in ((1e-300, 1e200, 5e99), (1e200, 1e-200, 5e-201), (1e-3, 0, 0)):
        assert equilibrium.temperature(lr, 1, sigma) == pytest.approx(exact, rel=1e-14, abs=0)
    with pytest.raises(ValueError, match="the temperature must be a finite number"):
        equilibrium.temperature(1.0, 1, 1e200)


def test_shares_and_times_of_wells_keep_their_digits():
    """Levels of 1e9 at T = 1e-6; curvatures whose product no float64 holds."""
    levels, t = np.array([1e9, 1e9 + 2**-20, 1e9 + 2**-19]), 1e-6
    p = np.exp(-np.array([0, 2**-20, 2**-19]) / t)
    np.testing.assert_allclose(equilibrium.laplace(levels, [1.0] * 3, t), p / p.sum(), rtol=1e-13)
    assert p[2] > 0.1
    for scale in (1e-200, 1e200):
        found = equilibrium.kramers_time(scale, -scale, scale, scale)
        assert found == pytest.approx(2 * math.pi * math.e / scale, rel=1e-12)


def test_a_density_of_losses_that_are_rounding_is_refused():
    """At 1e6 losses differ by 1e-10: as steps for T = 1e-9, and not seen for T = 1e-3."""

    def high(w):
        return 1e6 + w[:, 0] ** 2 / 2

    gibbs = Gibbs(high, 1e-3, -1, 1)
    exact = stats.norm(0, math.sqrt(1e-3))
    np.testing.assert_allclose(gibbs.pdf([0.0, 0.05]), exact.pdf([0.0, 0.05]), rtol=1e-5)
    for t in (1e-7, 1e-9, 1e-12):
        box = 20 * math.sqrt(t)
        with pytest.raises(ValueError, match=r"ℓ/T drowns in its rounding in Z: subtract a const"):
            Gibbs(high, t, -box, box)
        with pytest.raises(ValueError, match="drowns in its rounding in the escape time"):
            equilibrium.escape_time(high, t, 0, box / 20, wall=-box)
    low = equilibrium.escape_time(lambda w: high(w) - 1e6, 1e-3, 0, 0.05, wall=-1)
    assert equilibrium.escape_time(high, 1e-3, 0, 0.05, wall=-1) == pytest.approx(low, rel=1e-5)


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: equilibrium.ou_covariance(np.diag([1.0, 5.0]), np.eye(2), 0.4, B),
            r"lr · h_max = 2 reaches 2\(1 \+ momentum\) = 2; lower lr = 0.4 below 0.4$",
        ),
        (
            lambda: equilibrium.ou_covariance(5.0, 1.0, 0.8, B, momentum=0.9),
            "= 3.8; lower lr = 0.8 below 0.76$",
        ),
        (lambda: equilibrium.ou_covariance(np.diag([1.0, 0.0]), np.eye(2), LR, B), "eigenvalue is"),
        (lambda: equilibrium.ou_covariance([[1, 2], [0, 1]], np.eye(2), LR, B), "symmetric"),
        (lambda: equilibrium.ou_covariance(H, np.eye(3), LR, B), r"of the shape of h, \(4, 4\)"),
        (
            lambda: equilibrium.ou_covariance(H, C, LR, B, momentum=1.0),
            "momentum .* below 1, got 1",
        ),
        (lambda: equilibrium.ou_covariance(H, C, -LR, B), "lr must be .* got -0.1"),
        (lambda: equilibrium.ou_covariance(H, C, np.nan, B), "lr must be .* got nan"),
        (lambda: equilibrium.ou_covariance(H * np.nan, C, LR, B), "h must be finite"),
        (lambda: equilibrium.ou_covariance(H, C * np.nan, LR, B), "c must be finite"),
        (lambda: equilibrium.temperature(LR, 0, 1.0), "batch_size must be .* above 0, got 0"),
        (lambda: equilibrium.temperature(LR, B, np.nan), "sigma must be .* got nan"),
        (
            lambda: equilibrium.linear_regression_covariance(X, Y[:5], LR, 2, replacement=True),
            r"got \(6, 2\) and \(5,\)",
        ),
        (
            lambda: equilibrium.linear_regression_covariance(X, Y, LR, 7, replacement=False),
            "batch_size must be .* at most 6, got 7",
        ),
        (
            lambda: equilibrium.linear_regression_covariance(X, Y, LR, 1.5, replacement=True),
            "batch_size must be a whole number, got 1.5",
        ),
        (
            lambda: equilibrium.linear_regression_covariance(
                X, Y * np.nan, LR, 2, replacement=True
            ),
            "y must be finite",
        ),
        (
            lambda: equilibrium.linear_regression_covariance(
                np.ones((6, 2)), Y, LR, 2, replacement=True
            ),
            "the Hessian xᵀx/N must be positive definite",
        ),
        (lambda: equilibrium.epoch_end_variance(2.0, 6, 2, sampling="epoch"), "lr_h .* below 2"),
        (lambda: equilibrium.epoch_end_variance(0.1, 6, 1.5, sampling="epoch"), "batch_size must"),
        (lambda: equilibrium.epoch_end_variance(0.1, 6, 4, sampling="epoch"), "batch_size = 4"),
        (lambda: Gibbs(WELL, 0.0, -3, 3), "temperature must be .* got 0"),
        (lambda: Gibbs(WELL, 1.0, np.nan, 3), "low must be a finite"),
        (lambda: Gibbs(WELL, 1.0, -3, 3).pdf([np.nan]), "w must be finite"),
        (lambda: Gibbs(WELL, 1.0, 3, -3), "high must be .* above 3"),
        (lambda: Gibbs(WELL, 1e-6, -3, 3), "of Z has not converged.*narrow the box"),
        (lambda: Gibbs(lambda w: w.sum(), 1.0, 0, 1), r"got shape \(\)"),
        (lambda: Gibbs(lambda w: w / (w > 0.5), 1.0, 0, 1), "that are not finite"),
        (lambda: equilibrium.multiplicative_density(slope, slope, -1, 1), "needs D > 0"),
        (
            lambda: equilibrium.multiplicative_density(slope, diffusion, 1, -1),
            "high .* above 1.0, got -1",
        ),
        (lambda: equilibrium.laplace([0, 1], [1.0], 0.1), r"losses \(2,\), 1 Hessians"),
        (
            lambda: equilibrium.laplace([0, 1], [1.0, 0.0], 0.1),
            "Hessian of well 1 must be positive",
        ),
        (lambda: equilibrium.laplace([0, 1], [1.0, -2.0], 0.1), "smallest eigenvalue is -2"),
        (
            lambda: equilibrium.escape_time(WELL, 0.1, -1.5, 1, wall=4),
            "wall = 4.0, start = -1.5, end = 1.0",
        ),
        (lambda: equilibrium.escape_time(WELL, 0.1, 1, 1, wall=0), "start between wall and end"),
        (
            lambda: equilibrium.escape_time(WELL, 1.0, -1.5, 1, wall=-1e4),
            "the escape time has not converged.* bring the wall nearer",
        ),
        (lambda: equilibrium.escape_time(WELL, 1.0, -1.5, 1, wall=np.nan), "wall must be"),
        (lambda: equilibrium.escape_time(WELL, 0.005, -1.5, 1, wall=-4), "the time is e.* raise"),
        (lambda: equilibrium.kramers_time(1.0, -1.0, 1.0, 1e-4), "the time is e"),
        (
            lambda: equilibrium.kramers_time(1.0, 1.0, 1.0, 0.1),
            "curvature_saddle must be .* below 0",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=message):
        call()
