"""What the page of errata derives, computed: by quadrature, enumeration, simulation, other code."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from lecture6 import curvature, data, equilibrium, models, sde
from lecture6.objective import FunctionObjective, NetworkObjective
from lecture6.studies import goyal, keskar, results
from lecture6.train import train

T = 0.4
PAGE = (Path(__file__).parents[1] / "book" / "errata.md").read_text("utf8")


# E15: (25) needs a loss that confines


def over_shell(f, d, low, high):
    """The integral of f, of points (n, d), over radii from ``low`` to ``high`` in d = 1 or 2."""
    x, weights = np.polynomial.legendre.leggauss(80)
    r, weights = (low + high + (high - low) * x) / 2, weights * (high - low) / 2
    if d == 1:
        directions, angle = np.array([[1.0], [-1.0]]), 1.0
    else:
        t, angle = np.linspace(0, 2 * math.pi, 4000, endpoint=False, retstep=True)
        directions = np.stack([np.cos(t), np.sin(t)], 1)
    rings = f((r[:, None, None] * directions).reshape(-1, d)).reshape(len(r), -1).sum(1) * angle
    return (weights * r ** (d - 1) * rings).sum()


@pytest.mark.parametrize(("n1", "n2"), [(1, 1), (2, 1), (1, 2), (2, 2), (2, 3)])
def test_shells_of_rescaled_weights_are_a_geometric_series(n1, n2):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((3, n1)), rng.standard_normal((3, n2))

    def over_w2(w1):  # of exp(−ℓ/T), ℓ = ½ mean |x w1 w2 − y|²: a Gaussian integral
        r = w1 @ x.T
        a, b, c = (r**2).sum(1) / (3 * T), r @ y / (3 * T), (y**2).sum(0) / (3 * T)
        columns = np.exp(b**2 / (2 * a[:, None]) - c / 2)
        return np.prod(np.sqrt(2 * math.pi / a)[:, None] * columns, axis=1)

    found = [over_shell(over_w2, n1, 2.0**k, 2.0 ** (k + 1)) for k in range(-2, 3)]
    assert found[0] > 0
    np.testing.assert_allclose(found, found[2] * 2.0 ** ((n1 - n2) * np.arange(-2, 3)), rtol=1e-6)


POINTS = np.array([[1.0, 0.3], [0.2, 1.0], [-0.5, -1.0], [-1.0, 0.1]])
SEPARABLE, MIXED = np.array([1, 1, -1, -1]), np.array([1, -1, -1, 1])


def normalization(labels, radius, decay=0.0):
    """The integral of exp(−ℓ/T) over a disc, ℓ the logistic loss plus weight decay."""

    def density(w):
        losses = np.logaddexp(0, -labels * (w @ POINTS.T)).mean(1)
        return np.exp(-(losses + decay / 2 * (w**2).sum(1)) / T)

    edges = [r for r in (0, 2, 5, 10, 20, 50, 100, 200) if r < radius] + [radius]
    return sum(over_shell(density, 2, *edge) for edge in itertools.pairwise(edges))


def test_separable_data_have_no_normalization_and_others_do():
    grown = normalization(SEPARABLE, 400) / normalization(SEPARABLE, 200)
    assert grown == pytest.approx(4, rel=0.01)  # as the area of the cone
    assert normalization(MIXED, 400) / normalization(MIXED, 200) == pytest.approx(1, rel=1e-6)


def test_weight_decay_confines():
    decayed = [normalization(SEPARABLE, radius, decay=0.1) for radius in (200, 400)]
    assert decayed[1] / decayed[0] == pytest.approx(1, rel=1e-6)
    assert decayed[1] < 2 * math.pi * T / 0.1


def test_isotropic_noise_never_rests_along_a_flat_line():
    lr, b, sigma, n = 0.1, 4, 3.0, 20_000

    def gradient(w):  # of ½ w₁²
        return w * [1.0, 0.0]

    for updates in (100, 400, 1600):
        options = dict(lr=lr, batch_size=b, n_steps=updates, seed=updates, n_walkers=n)
        across, along = sde.sgd(gradient, sigma, [0.0, 0.0], **options).final.var(0)
        se = math.sqrt(2 / n)
        assert along == pytest.approx(updates * lr**2 * sigma**2 / b, rel=5 * se)
        at_rest = equilibrium.ou_covariance(1.0, sigma**2, lr, b)[0, 0]
        assert across == pytest.approx(at_rest, rel=5 * se)


# E16: a line through two nets can be redrawn without a change of either


def test_rescaling_one_end_sharpens_the_other_end_of_the_line():
    digits = data.load("digits").subset(200)
    nets = [
        train(models.mlp(64, 8, bias=False, seed=i), digits, batch_size=20, lr=0.1, epochs=10).model
        for i in (0, 1)
    ]
    f = NetworkObjective(nets[0], digits.x_train, digits.y_train, dtype=torch.float64)
    other = nets[1].double()
    logits, found = other(digits.x_test.double()), []
    for alpha in (1.0, 64.0, 256.0):
        copy = curvature.rescale(other, alpha)
        torch.testing.assert_close(copy(digits.x_test.double()), logits)
        along = models.flat_parameters(copy) - f.w
        found.append((along @ f.hvp(f.w, along)).item())
    assert found[1] > 100 * abs(found[0])
    assert found[2] / found[1] == pytest.approx(16, rel=0.1)


def test_f2_is_flatter_with_small_batches_and_tests_better_with_large_ones():
    stored = results.load("keskar").tables
    pairs = results.select(stored, net="F2", data="timit", group="pair")
    path = pairs["path"].query("path == 'linear' and split == 'train'")
    loss = path.pivot_table("loss", "seed", "alpha")
    assert (loss[-0.5] < loss[1.5]).all()
    tested = keskar.final(pairs)
    assert (tested.iloc[:, 0] < tested.iloc[:, 1]).all()


# E17: bits, of a code from before the data and of one from after


def test_the_bound_by_bits_needs_the_code_before_the_data():
    bits, n, delta, rng = 12, 40, 0.05, np.random.default_rng(0)
    rules = rng.integers(0, 2, (2**bits, n))  # of 12 bits each; they err on half of what is new

    def bound(length):
        return math.sqrt((length * math.log(2) + math.log(1 / delta)) / (2 * n))

    gaps = [0.5 - (rules != rng.integers(0, 2, n)).mean(1).min() for _ in range(200)]
    assert np.mean(np.array(gaps) > bound(bits)) <= delta
    assert np.mean(np.array(gaps) > bound(1)) > 0.9  # a bit for the best of them


# I23: a complexity belongs to a class


def test_a_class_that_fits_all_signs_has_complexity_one_and_a_bounded_one_less():
    rng, n = np.random.default_rng(0), 6
    x = rng.standard_normal((n, n))
    signs = np.array(list(itertools.product([-1, 1], repeat=n)))
    fitted = np.sign(x @ np.linalg.solve(x, signs.T)).T
    assert (fitted == signs).all()  # so that the supremum is 1 for each of them
    cap = np.sqrt((x**2).sum()) / n
    ball = rng.standard_normal((2000, n))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    for m in (0.01, 0.1, 1.0):
        sup = m / n * np.linalg.norm(signs @ x, axis=1)
        assert ((signs @ x @ (m * ball).T).max(1) / n <= sup).all()
        assert 0.5 * m * cap < sup.mean() <= m * cap


# I24: Adam, PyTorch's own


@pytest.mark.parametrize("average", [0.0, 0.9])  # β₁
def test_the_noise_of_adams_steps_does_not_know_the_batch_and_the_drift_does(average):
    generator, lr, mean, found = torch.Generator().manual_seed(0), 1e-3, 0.02, {}
    for b in (1, 16):
        w = torch.zeros(2000, dtype=torch.float64, requires_grad=True)
        adam = torch.optim.Adam([w], lr=lr, betas=(average, 0.99))
        for step in range(1000):
            if step == 500:
                start = w.detach().clone()
            noise = torch.randn(w.shape, generator=generator, dtype=w.dtype)
            w.grad = mean + noise / b**0.5
            adam.step()
        moved = (w.detach() - start) / lr
        found[b] = moved.var().item() / 500, -moved.mean().item() / 500
    assert found[1][0] == pytest.approx(1, rel=0.15)
    assert found[16][0] == pytest.approx(1, rel=0.15)
    assert found[1][1] == pytest.approx(mean, rel=0.2)
    assert found[16][1] / found[1][1] == pytest.approx(4, rel=0.2)


# I25: how far the linear rule goes


@pytest.mark.parametrize("k", [2, 8, 39])
def test_the_rule_multiplies_the_variance_at_rest(k):
    h, lr, b = 5.0, 0.01, 3
    before, after = (equilibrium.ou_covariance(h, 2.0, j * lr, j * b)[0, 0] for j in (1, k))
    assert after / before == pytest.approx((2 - lr * h) / (2 - k * lr * h), rel=1e-12)
    with pytest.raises(ValueError, match="no stationary law"):
        equilibrium.ou_covariance(h, 2.0, 40 * lr, 40 * b)


def test_the_page_quotes_goyals_errors():
    (entry,) = re.findall(r"^### I25: .*?(?=^\(i26\))", PAGE, re.MULTILINE | re.DOTALL)
    error = goyal.PAPER.set_index("batch_size").error
    for size in (256, 8192, 16384, 65536):
        assert re.search(rf"{error[size]:.2f} %\s+at {size:,}\b", entry), size


# I26: ψ is the gradient of a fluctuation


def test_the_loss_need_not_fluctuate_where_the_gradient_does():
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    losses = 0.5 * (w - torch.tensor([1.0, -1.0])) ** 2
    fluctuations = 2 / 1 * losses - losses.sum()  # N = 2 and B = 1, either batch
    assert fluctuations.tolist() == [0, 0]
    psi = [torch.autograd.grad(part, w, retain_graph=True)[0].item() for part in fluctuations]
    assert psi == [-2, 2]


# I27: at rest with C = H


@pytest.mark.parametrize("eigenvalues", [[0.1, 1.0, 30.0], [2.0, 2.0, 2.0]])
def test_noise_like_the_hessians_spreads_alike_in_all_directions(eigenvalues):
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    h, lr, b = q @ np.diag(eigenvalues) @ q.T, 0.02, 4
    s = equilibrium.ou_covariance(h, h, lr, b, discrete=False)
    np.testing.assert_allclose(s, lr / (2 * b) * np.eye(3), atol=1e-15)
    assert 0.5 * np.trace(h @ s) == pytest.approx(lr * np.trace(h) / (4 * b))
    law, w = stats.multivariate_normal(cov=s), np.array([0.03, -0.01, 0.02])
    assert law.logpdf(w) - law.logpdf(0 * w) == pytest.approx(-b / lr * w @ w)
    sharp = equilibrium.ou_covariance(h, np.eye(3), lr, b, discrete=False)  # (25)
    np.testing.assert_allclose(sharp, lr / (2 * b) * np.linalg.inv(h), rtol=1e-9, atol=1e-12)


# I28: the noise of (17) over one update, F(w) = w²


@pytest.mark.parametrize(("h", "g_time"), [(0.0, 0.5), (0.0, 1.0), (4.0, 0.5)])
def test_the_covariance_of_the_noise_has_f_under_the_integral(h, g_time):
    time, w0, n = 0.1, 2.0, 50_000
    g = g_time / time
    paths = sde.simulate(  # w, and the integral of w
        lambda w: np.stack([-h * w[:, 0], w[:, 0]], 1),
        lambda w: np.stack([math.sqrt(g) * w[:, 0], 0 * w[:, 0]], 1),
        [w0, 0.0],
        dt=time / 200,
        n_steps=200,
        n_walkers=n,
        seed=0,
    )
    noise = paths.final[:, 0] - w0 + h * paths.final[:, 1]
    found, stderr = (noise**2).mean(), (noise**2).std() / math.sqrt(n)
    rate = g - 2 * h
    exact = g * w0**2 * math.expm1(rate * time) / rate
    frozen = g * w0**2 * time  # (23)
    assert abs(found - exact) < 4 * stderr + 0.005 * exact
    assert abs(found - frozen) > 8 * stderr
    if (h, g_time) == (0, 1):
        assert f"$e - 1 = {exact / frozen:.2f}$" in PAGE


def test_itos_first_order_is_that_of_the_closed_form():
    f = FunctionObjective(lambda w: w[0] ** 2, n_params=1)  # F, at a point
    h, g, w = 3.0, 5.0, torch.tensor([1.7], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    drift = -h * w.item() * f.grad(w).item() + g / 2 * f.value(w) * f.hvp(w, one).item()
    assert float(drift) == pytest.approx((g - 2 * h) * w.item() ** 2)
