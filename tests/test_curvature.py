"""Curvature against closed forms, float64 brute force, and three other libraries."""

import copy
import functools
import itertools
import math

import curvlinops
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hessian_eigenthings import algorithms
from hessian_eigenthings.operators import GGNOperator, HessianOperator
from pyhessian import hessian as PyHessian
from scipy import stats
from synthetic import gaussian_classes
from torch import nn

from lecture6 import curvature, models
from lecture6.noise import GradientCovariance
from lecture6.objective import FunctionObjective, NetworkObjective
from lecture6.toys import Powers, Quadratic

F64 = torch.float64
N_SAMPLES = 60
DATA = gaussian_classes(N_SAMPLES, 20, shape=(6,), n_classes=3)

pytestmark = pytest.mark.usefixtures("one_thread")


def dense(bias=True, act=nn.Tanh):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(6, 7, bias),
        act(),
        nn.Linear(7, 5, bias),
        act(),
        nn.Linear(5, 3, bias),
    )


def normalised():
    norm = nn.BatchNorm1d(7, track_running_stats=False)
    return nn.Sequential(nn.Linear(6, 7), norm, nn.ReLU(), nn.Linear(7, 3))


def build(make=dense, dtype=F64, **options):
    with models.local_seed(0):
        model = make()
    return NetworkObjective(model.double(), DATA.x_train, DATA.y_train, dtype=dtype, **options)


def brute_force(objective):
    """The full Hessian in float64, by torch's own function applied to the loss of the module."""
    model, x, y = objective.model, DATA.x_train.double(), DATA.y_train
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def loss(w):
        parts = w.split([shape.numel() for shape in shapes.values()])
        parameters = {n: p.view(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, parameters, (x,)), y)

    return torch.autograd.functional.hessian(loss, objective.w).numpy()


def brute_force_gauss_newton(objective):
    """Jᵀ ∇²ℓ J with the Jacobian of every logit written out."""
    model, x = objective.model, DATA.x_train.double()
    parameters = dict(model.named_parameters())
    total = 0
    for sample in x:
        logits = model(sample[None])[0]
        rows = [
            torch.autograd.grad(z, list(parameters.values()), retain_graph=True) for z in logits
        ]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        p = logits.detach().softmax(0)
        total = total + jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
    return (total / len(x)).numpy()


SPECTRUM = np.concatenate([np.linspace(-1, 1, 120), [3.0, 5.0, 5.5, 9.0]])
BOWL = Quadratic(SPECTRUM, seed=1)
ZERO = np.zeros(len(SPECTRUM))


# Eigenvalues


@pytest.mark.parametrize("end", ["largest", "smallest"])
def test_eigenvalues_of_a_known_spectrum(end):
    found = curvature.eigenvalues(BOWL, ZERO, 3, end=end, tolerance=1e-8)
    largest = [9.0, 5.5, 5.0]
    smallest = np.linspace(-1, 1, 120)[2::-1]
    exact = largest if end == "largest" else smallest
    np.testing.assert_allclose(found.values, exact, rtol=1e-7)
    assert found.converged
    vectors = found.vectors.numpy()
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(exact)), atol=1e-9)
    residuals = np.linalg.norm(vectors @ BOWL.h - found.values[:, None] * vectors, axis=1)
    np.testing.assert_allclose(residuals, found.residuals, atol=1e-9)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-5])
def test_the_error_estimate_covers_the_error(tolerance):
    for seed in range(50):
        found = curvature.eigenvalues(BOWL, ZERO, 3, tolerance=tolerance, seed=seed)
        error = np.abs(found.values - [9.0, 5.5, 5.0])
        assert found.converged
        assert (error <= found.errors + 1e-12).all()
        assert (error <= tolerance * found.values).all()


def test_a_single_vector_may_miss_an_eigenvalue(monkeypatch):
    """Why the block has two: this start is nearly orthogonal to the eigenvector of 5."""
    options = {"tolerance": 1e-3, "seed": 68}
    pair = curvature.eigenvalues(BOWL, ZERO, 3, **options)
    assert pair.values[2] == pytest.approx(5.0, rel=1e-3)
    monkeypatch.setattr(curvature, "BLOCK", 1)
    single = curvature.eigenvalues(BOWL, ZERO, 3, **options)
    assert single.converged
    assert single.values[2] == pytest.approx(3.0, abs=0.01)


@pytest.mark.parametrize("end", ["largest", "smallest"])
@pytest.mark.parametrize("copies", [3, 4, 10])
def test_equal_eigenvalues_are_found_or_it_is_not_converged(copies, end):
    """Two starts find two copies: that of a regression with several outputs has one for each."""
    sign = 1 if end == "largest" else -1
    spectrum = sign * np.r_[np.full(copies, 5.0), np.linspace(0.1, 2.0, 90)]
    for k, products in itertools.product((1, 2, 3, 5), (40, 200)):
        toy = Quadratic(spectrum, seed=k)
        found = curvature.eigenvalues(
            toy, np.zeros(toy.n_params), k, end=end, max_products=products
        )
        right = np.sort(spectrum)[::-1]
        right = right[:k] if end == "largest" else right[-k:]
        if found.converged:
            np.testing.assert_allclose(found.values, right, rtol=2e-3)
        assert found.converged or k > 2
        assert found.converged or products < len(spectrum)


def test_residuals_are_reported_before_convergence():
    found = curvature.eigenvalues(BOWL, ZERO, 3, tolerance=1e-10, max_products=8)
    assert not found.converged
    assert found.n_products == 8
    v = found.vectors.numpy()
    residuals = np.linalg.norm(v @ BOWL.h - found.values[:, None] * v, axis=1)
    np.testing.assert_allclose(residuals, found.residuals, rtol=1e-6)
    assert residuals.max() > 1e-3


def test_two_products_are_not_enough_to_converge():
    found = curvature.eigenvalues(BOWL, ZERO, 1, max_products=2)
    assert not found.converged


@pytest.mark.parametrize("end", ["largest", "smallest"])
@pytest.mark.parametrize("max_products", [4, 5, 7])
def test_residuals_are_right_after_any_number_of_products(max_products, end):
    """Half a block would leave a direction out, to which the others are coupled."""
    found = curvature.eigenvalues(BOWL, ZERO, 3, end=end, max_products=max_products)
    v = found.vectors.numpy()
    residuals = np.linalg.norm(v @ BOWL.h - found.values[:, None] * v, axis=1)
    np.testing.assert_allclose(found.residuals, residuals, rtol=1e-6)
    assert found.n_products <= max_products


def test_all_eigenvalues_of_a_small_matrix():
    spectrum = [-3.0, 0.0, 0.5, 2.0, 7.0]
    found = curvature.eigenvalues(Quadratic(spectrum), np.zeros(5), 5)
    np.testing.assert_allclose(found.values, spectrum[::-1], atol=1e-12)
    assert not found.converged  # of the eigenvalue 0 no digit is known
    assert (np.abs(found.values - spectrum[::-1]) <= found.errors).all()
    assert found.errors.max() < 1e-14 * 7 * 5


def test_repeated_eigenvalues_need_a_block(monkeypatch):
    spectrum = [4.0, 4.0, *np.linspace(0, 1, 50)]
    bowl = Quadratic(spectrum)
    found = curvature.eigenvalues(bowl, np.zeros(52), 2, tolerance=1e-6)
    np.testing.assert_allclose(found.values, [4.0] * 2, rtol=1e-6)
    monkeypatch.setattr(curvature, "BLOCK", 1)
    single = curvature.eigenvalues(bowl, np.zeros(52), 2, max_products=12)
    assert single.values[1] < 1.1  # one vector sees one copy


@pytest.mark.parametrize("block", [1, 2])
def test_a_matrix_of_low_rank(block, monkeypatch):
    """The Krylov space ends after four steps: the search goes on from new directions."""
    spectrum = np.zeros(40)
    spectrum[:3] = 5.0, 2.0, -1.0
    bowl = Quadratic(spectrum)
    monkeypatch.setattr(curvature, "BLOCK", block)
    found = curvature.eigenvalues(bowl, np.zeros(40), 4, max_products=40, tolerance=1e-9)
    np.testing.assert_allclose(found.values, [5.0, 2.0, 0.0, 0.0], atol=1e-9)
    assert curvature.eigenvalues(bowl, np.zeros(40), 1, end="smallest").values == pytest.approx(
        [-1]
    )


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-12, 1e9, 1e200, 1e300])
def test_measures_at_any_scale(scale):
    bowl = Quadratic(scale * SPECTRUM, seed=1)
    found = curvature.eigenvalues(bowl, ZERO, 3)
    np.testing.assert_allclose(found.values / scale, [9.0, 5.5, 5.0], rtol=1e-3)
    assert (found.errors / scale < 1e-2).all()
    assert found.converged
    trace, one = curvature.trace(bowl, ZERO), curvature.trace(BOWL, ZERO)
    assert trace.value / scale == pytest.approx(one.value)
    assert trace.stderr / scale == pytest.approx(one.stderr)
    density = curvature.spectral_density(bowl, ZERO, n_vectors=3, n_steps=10)
    mean = curvature.spectral_density(BOWL, ZERO, n_vectors=3, n_steps=10).mean_of(lambda x: x)
    scaled = density.mean_of(lambda x: x)
    assert scaled.value / scale == pytest.approx(mean.value)
    assert scaled.stderr / scale == pytest.approx(mean.stderr)
    np.testing.assert_allclose(curvature.matrix(bowl, ZERO) / scale, BOWL.h, atol=1e-12)


def test_a_share_of_the_eigenvalues_is_the_mean_of_a_condition():
    density = curvature.spectral_density(BOWL, ZERO, n_vectors=40, n_steps=60)
    share = density.mean_of(lambda values: values > 2)
    assert share.stderr < 0.02
    assert abs(share.value - 4 / 124) < 3 * share.stderr


@pytest.mark.parametrize("scale", [1e-300, 1e-20, 1.0, 1e300])
@pytest.mark.parametrize(
    "spectrum", [[5, 5, 5, 1, -0.2], [2, 2, 2, 2, 0.5], [3, 3, 1, 1, 1, 1, 0.5]]
)
def test_more_equal_eigenvalues_than_a_block_has_vectors(spectrum, scale):
    """The search runs out of directions one at a time: the one that is lost spoils no other."""
    for seed in range(10):
        bowl = Quadratic(scale * np.array(spectrum), seed=seed)
        found = curvature.eigenvalues(bowl, np.zeros(len(spectrum)), 3, seed=seed)
        np.testing.assert_allclose(found.values / scale, spectrum[:3], rtol=1e-12)
        assert found.converged
        torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(3, dtype=F64))


class Single(FunctionObjective):
    """½ Σ h_i w_i² in float32."""

    def __init__(self, h):
        super().__init__(lambda w: 0.5 * (torch.tensor(h).to(w) * w) @ w, len(h))
        self.dtype = torch.float32


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_eigenvalues_at_the_ends_of_float32(scale):
    f = Single((scale * SPECTRUM).tolist())
    found = curvature.eigenvalues(f, ZERO, 3)
    np.testing.assert_allclose(found.values / scale, [9.0, 5.5, 5.0], rtol=1e-3)
    assert found.converged


@pytest.mark.parametrize("small", [1e-5, 1e-9, 0.0])
@pytest.mark.parametrize("end", ["largest", "smallest"])
def test_an_eigenvalue_below_the_rounding_of_the_products_is_not_converged(small, end):
    """In float32 beside an eigenvalue of 1000."""
    h = [1000.0, small, small / 2] if end == "largest" else [1000.0, small, small / 2][::-1]
    found = curvature.eigenvalues(Single(h), np.ones(3), 3, end=end)
    assert not found.converged
    assert (np.abs(np.sort(found.values) - np.sort(h)) <= found.errors).all()
    assert curvature.eigenvalues(Single(h), np.ones(3), 1).converged


@pytest.mark.parametrize("end", ["largest", "smallest"])
def test_a_covariance_of_samples_that_are_alike_is_0_within_its_error(end):
    with models.local_seed(5):
        net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        x, y = 1e8 * torch.randn(4).expand(5, 4), torch.ones(5, dtype=torch.long)
    f = NetworkObjective(net, x.contiguous(), y)
    found = curvature.eigenvalues(f, f.w, 2, end=end, of="covariance")
    assert (np.abs(found.values) <= found.errors).all()
    assert not found.converged


@pytest.mark.parametrize("scale", [100, 1000])
@pytest.mark.parametrize("outlier", [0, 1, 4095])
def test_a_covariance_keeps_its_digits_beside_a_sample_of_large_gradient(outlier, scale):
    """The differences from that gradient would all be as large as it is."""
    with models.local_seed(1):
        net, x = nn.Linear(5, 3), 0.1 * torch.randn(4096, 5)
        y, v = torch.randint(3, (4096,)), torch.randn(18)
    x[outlier] *= scale
    y[outlier] = net(x[outlier]).argmin()  # a wrong one
    delta = F.softmax(net.double()(x.double()), 1).detach() - F.one_hot(y, 3)
    gradients = torch.cat([(delta[:, :, None] * x[:, None]).flatten(1), delta], 1)
    gradients -= gradients.mean(0)
    right = gradients.T @ (gradients @ v.double()) / len(x)
    f = NetworkObjective(net, x, y, dtype=torch.float32)
    off = f.product(f.w, of="covariance")(v).double() - right
    assert off.norm() < 5e-6 * right.norm()
    trace = gradients.square().sum().item() / len(x)
    assert GradientCovariance(f, f.w).trace().value == pytest.approx(trace, rel=2e-6)


@pytest.mark.parametrize("margin", [3.0, 8.0, 13.0])
def test_the_rounding_of_a_net_that_fits_is_stated(margin):
    """Of 1 − p few digits are left: no change of w's last digits does as much."""
    with models.local_seed(2):
        x, y = torch.randn(40, 4), torch.arange(40) % 3
        net = nn.Linear(4, 3)
    with torch.no_grad():
        x[:, :3] = 1.0 + 0.1 * x[:, :3]
        x[torch.arange(40), y] += 1.0
        net.weight[:, :3] = margin * torch.eye(3)
    z = x.double() @ net.weight.double().T + net.bias.double()
    p, inputs = z.softmax(1).detach(), torch.cat([x, torch.ones(40, 1)], 1).double()
    bend = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    right = torch.einsum("nab,ni,nj->aibj", bend, inputs, inputs).reshape(15, 15) / 40
    f = NetworkObjective(net, x, y)
    found = curvature.eigenvalues(f, f.w, 1)
    off = abs(found.values[0] - torch.linalg.eigvalsh(right)[-1].item())
    assert off <= 3 * found.errors[0] < 0.01 * found.values[0]
    delta = (p - F.one_hot(y, 3))[:, :, None] * inputs[:, None]
    spread = (delta - delta.mean(0)).square().sum().item() / 40
    trace = GradientCovariance(f, f.w).trace()
    assert abs(trace.value - spread) <= 3 * trace.stderr < 0.1 * spread


def test_a_trace_whose_draws_agree_is_as_good_as_their_rounding():
    """Every draw of a diagonal matrix is its trace: what is uncertain is the sum in float32."""
    h = [1e6, *[0.01] * 50, -1e6]
    found = curvature.trace(Single(h), np.ones(52))
    assert abs(found.value - 0.5) <= 3 * found.stderr
    assert 1e-3 < found.stderr < 1


@pytest.mark.parametrize("make", [dense, normalised])
@pytest.mark.parametrize("end", ["largest", "smallest"])
def test_eigenvalues_of_a_network(make, end):
    objective = build(make)
    exact = np.linalg.eigvalsh(brute_force(objective))
    exact = exact[::-1][:4] if end == "largest" else exact[:4][::-1]
    found = curvature.eigenvalues(objective, objective.w, 4, end=end, tolerance=1e-6)
    np.testing.assert_allclose(found.values, exact, rtol=1e-5)


def test_float32_agrees_with_float64():
    small, exact = build(dtype=torch.float32), build()
    found = curvature.eigenvalues(small, small.w, 3)
    np.testing.assert_allclose(
        found.values, curvature.eigenvalues(exact, exact.w, 3).values, rtol=2e-3
    )


# Matrices, products, restrictions


@pytest.mark.parametrize("make", [dense, normalised])
def test_the_matrix_is_the_full_hessian(make):
    objective = build(make)
    np.testing.assert_allclose(
        curvature.matrix(objective, objective.w), brute_force(objective), atol=1e-10
    )


@pytest.mark.parametrize("batch_size", [7, 60])
def test_gauss_newton_is_jacobian_times_loss_hessian(batch_size):
    objective = build(batch_size=batch_size)
    found = curvature.matrix(objective, objective.w, of="gauss_newton")
    np.testing.assert_allclose(found, brute_force_gauss_newton(objective), atol=1e-10)
    assert np.linalg.eigvalsh(found).min() > -1e-12


def test_gauss_newton_has_the_trace_of_the_hessian_of_a_relu_net():
    """Between two kinks the logits are linear in every single weight (science: no BN)."""
    objective = build(lambda: dense(act=nn.ReLU))
    hessian = curvature.matrix(objective, objective.w)
    gauss_newton = curvature.matrix(objective, objective.w, of="gauss_newton")
    np.testing.assert_allclose(np.diag(hessian), np.diag(gauss_newton), atol=1e-12)
    assert np.abs(hessian - gauss_newton).max() > 1e-3


@pytest.mark.parametrize("of", ["hessian", "gauss_newton"])
def test_restriction_is_the_diagonal_block(of):
    objective = build(batch_size=25)
    full = curvature.matrix(objective, objective.w, of=of)
    for where in (*objective.slices.values(), torch.tensor([3, 50, 7])):
        block = curvature.Restriction(objective, objective.w, where)
        assert block.value(block.w) == objective.value(objective.w)
        torch.testing.assert_close(block.grad(block.w), objective.grad(objective.w)[where])
        found = curvature.matrix(block, block.w, of=of)
        np.testing.assert_allclose(found, full[where][:, where], atol=1e-12)
    moved = block.w + 0.1
    whole = objective.w.clone()
    whole[where] += 0.1
    assert block.value(moved) == pytest.approx(objective.value(whole), abs=1e-12)


# Traces, densities, determinants


def test_trace_is_exact_when_the_budget_allows_it():
    objective = build()
    exact = np.trace(brute_force(objective))
    found = curvature.trace(objective, objective.w, n_products=objective.n_params)
    assert found.value == pytest.approx(exact)
    assert 0 < found.stderr < 1e-13 * exact  # rounding alone


def test_hutchinson_is_exact_for_a_diagonal_matrix():
    h = torch.from_numpy(SPECTRUM)
    bowl = FunctionObjective(lambda w: 0.5 * (h * w**2).sum(), len(h))
    found = curvature.trace(bowl, ZERO, n_products=5)
    assert found.value == pytest.approx(SPECTRUM.sum())
    assert found.stderr == pytest.approx(0, abs=1e-10)


NETWORK = build(batch_size=30)
EXACT = brute_force(NETWORK)
EIGENVALUES = np.linalg.eigvalsh(EXACT)
DELTA = 1.5 - EIGENVALUES.min()


def bell(values):
    return np.exp(-0.5 * ((values - 0.2) / 0.5) ** 2) / (0.5 * math.sqrt(2 * math.pi))


@functools.cache  # the same 200 densities are asked for four things
def density_of(objective, seed):
    w = ZERO if objective is BOWL else objective.w
    return curvature.spectral_density(objective, w, n_vectors=12, n_steps=5, seed=seed)


def log_det(objective, seed, delta):
    found = curvature.log_determinant(density_of(objective, seed), delta)
    return found.value, found.stderr


def mean_of(objective, seed, function):
    found = density_of(objective, seed).mean_of(function)
    return found.value, found.stderr


def one_trace(objective, w, seed):
    found = curvature.trace(objective, w, n_products=12, seed=seed)
    return found.value, found.stderr


def grouped_mean(seed):
    """Of 20 pairs of numbers that share half of their variance."""
    rng = np.random.default_rng(seed)
    x = 3 + rng.standard_normal((20, 2)) + rng.standard_normal((20, 1))
    found = curvature.Estimate.mean(x.ravel(), np.arange(40) // 2)
    assert found.n_samples == 20
    return found.value, found.stderr


@pytest.mark.parametrize("size", [1.0, 1e-200, 1e200])
def test_few_or_skewed_draws_make_an_error_larger(size):
    """By Student's t at the level of three standard errors, and Johnson's term for skewness."""

    def stderr(*draws):
        return curvature.Estimate.mean(np.array(draws) * size).stderr / size

    level = stats.norm.cdf(3)
    assert stderr(0, 2) == pytest.approx(stats.t.ppf(level, 1) / 3)
    t = stats.t.ppf(level, 3)
    assert stderr(-3, -1, 1, 3) == pytest.approx((5 / 3) ** 0.5 * t / 3)
    skewed = np.array([0, 0, 0, 4.0])
    johnson = t + stats.skew(skewed) * (1 + 2 * t**2) / (6 * 4**0.5)
    assert stderr(*skewed) == pytest.approx(stats.sem(skewed) * johnson / 3)
    assert stderr(5) == pytest.approx(0, abs=1e-14)


ESTIMATES = {  # name: (seed -> value and standard error, truth)
    "hutchinson, quadratic": (
        lambda seed: one_trace(BOWL, ZERO, seed),
        SPECTRUM.sum(),
    ),
    "hutchinson, micro-batches": (
        lambda seed: one_trace(NETWORK, NETWORK.w, seed),
        np.trace(EXACT),
    ),
    "groups": (grouped_mean, 3.0),
    "mean of the density": (
        lambda seed: mean_of(NETWORK, seed, lambda x: x),
        EIGENVALUES.mean(),
    ),
    "second moment": (
        lambda seed: mean_of(NETWORK, seed, np.square),
        np.square(EIGENVALUES).mean(),
    ),
    "log det": (
        lambda seed: log_det(NETWORK, seed, DELTA),
        np.log(EIGENVALUES + DELTA).sum(),
    ),
    "log det, quadratic": (
        lambda seed: log_det(BOWL, seed, 2.5),
        np.log(SPECTRUM + 2.5).sum(),
    ),
    "density": (
        lambda seed: [x.item() for x in density_of(NETWORK, seed).density(np.array([0.2]), 0.5)],
        bell(EIGENVALUES).mean(),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATES)
def test_estimates_lie_within_three_of_their_standard_errors(name):
    """In at least 97 % of 200 repeats, and not because the errors are far too large."""
    estimate, truth = ESTIMATES[name]
    scores = []
    for seed in range(200):
        value, stderr = estimate(seed)
        assert stderr > 0
        scores.append((value - truth) / stderr)
    assert np.mean(np.abs(scores) <= 3) >= 0.97
    assert np.mean(np.abs(scores) <= 0.3) <= 0.45  # 24 % of a normal variable
    assert abs(np.mean(scores)) < 0.3  # unbiased


def test_micro_batches_have_random_vectors_of_their_own():
    """The same samples in more batches: the errors average out."""
    errors = {}
    for batch_size in (10, 60):
        objective = build(batch_size=batch_size)
        found = [curvature.trace(objective, objective.w, seed=seed) for seed in range(40)]
        errors[batch_size] = np.std([f.value for f in found])
    assert errors[10] < 0.8 * errors[60]


def test_density_of_a_small_problem_is_the_spectrum():
    objective = build()
    density = curvature.spectral_density(objective, objective.w, n_vectors=2, n_steps=200)
    np.testing.assert_allclose(density.nodes[0], np.linalg.eigvalsh(EXACT), atol=1e-10)
    assert density.weights.sum() == pytest.approx(1)
    grid = np.linspace(-3, 3, 2001)
    curve, stderr = density.density(grid, 0.1)
    assert np.trapezoid(curve, grid) == pytest.approx(1, abs=1e-3)
    assert (stderr <= 1e-15 * curve).all()
    exact = curvature.log_determinant(density, DELTA)
    assert exact.value == pytest.approx(np.linalg.slogdet(EXACT + DELTA * np.eye(len(EXACT)))[1])
    assert 0 < exact.stderr < 1e-11


def test_lanczos_quadrature_is_exact_for_low_moments():
    """m nodes give the moments up to 2m − 1 of each random vector's own measure."""
    density = curvature.spectral_density(BOWL, ZERO, n_vectors=3, n_steps=4, seed=2)
    rng = np.random.default_rng(2)
    for nodes, weights in zip(density.nodes, density.weights, strict=True):
        v = rng.standard_normal(len(ZERO))
        for power in range(8):
            exact = v @ np.linalg.matrix_power(BOWL.h, power) @ v / (v @ v)
            assert weights @ nodes**power == pytest.approx(exact, rel=1e-8, abs=1e-8)


# Dinh et al.


def relu_net():
    return dense(bias=False, act=nn.ReLU)


@pytest.mark.parametrize("alpha", [0.05, 3.0, 40.0])
def test_rescaling_keeps_the_function_and_transforms_the_hessian(alpha):
    objective = build(relu_net)
    net = objective.model
    scaled = curvature.rescale(net, alpha)
    x = DATA.x_test.double()
    with torch.no_grad():
        torch.testing.assert_close(scaled(x), net(x), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(scaled.float()(x.float()), net(x).float(), rtol=1e-5, atol=1e-6)
    other = NetworkObjective(curvature.rescale(net, alpha), DATA.x_train, DATA.y_train, dtype=F64)
    before, after = brute_force(objective), brute_force(other)
    first, second, _ = objective.slices.values()
    d = np.ones(objective.n_params)
    d[first], d[second] = 1 / alpha, alpha
    np.testing.assert_allclose(after, d[:, None] * before * d, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(other.grad(other.w), objective.grad(objective.w) * torch.tensor(d))
    for where, factor in ((first, alpha**-2), (second, alpha**2)):
        traces = [np.trace(h[where, where]) for h in (after, before)]
        assert traces[0] == pytest.approx(factor * traces[1], rel=1e-8)
    shift = np.eye(len(d))  # of full rank: det(D (H + I) D) = det(D)² det(H + I)
    log_dets = [np.linalg.slogdet(m)[1] for m in (after + shift * d**2, before + shift)]
    n1, n2 = first.stop - first.start, second.stop - second.start
    assert log_dets[0] - log_dets[1] == pytest.approx(2 * (n2 - n1) * math.log(alpha), rel=1e-8)


def test_rescaling_makes_the_leading_eigenvalue_as_large_as_one_likes():
    objective = build(relu_net)
    top = []
    for alpha in (1.0, 30.0, 300.0):
        other = NetworkObjective(
            curvature.rescale(objective.model, alpha), DATA.x_train, DATA.y_train, dtype=F64
        )
        top.append(curvature.eigenvalues(other, other.w, 1).values[0])
    assert top[1] > 100 * top[0]
    assert top[2] == pytest.approx(100 * top[1], rel=0.05)


# Equal layer norms


def f1_with_running_statistics():
    return models.f1(36, 3, batch_norm="running")


NORMALISED = {
    "f1": (lambda: models.f1(36, 3), (36,), 5),
    "f1, running": (f1_with_running_statistics, (36,), 5),
    "f2": (lambda: models.f2(36, 3), (36,), 7),
    "c1": (lambda: models.c1(stride=2), (3, 32, 32), 4),
    "vgg11": (models.vgg11, (3, 32, 32), 8),
    "resnet": (lambda: models.resnet(8), (3, 16, 16), 7),
}


@pytest.mark.parametrize("length", [1.0, 1e-4, 1e6])
@pytest.mark.parametrize("name", NORMALISED)
def test_equal_layer_norms_keep_the_function(name, length):
    """Also where ε is far above the variance, as with the weights of a net that decayed."""
    make, shape, n_layers = NORMALISED[name]
    with models.local_seed(0):
        net, x = make(), torch.randn(16, *shape)
        for norm in net.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(norm.weight, 0.5, 1.5)  # a zero gain would hide the block
                if norm.track_running_stats:
                    norm.running_mean.normal_(std=length)
                    norm.running_var.uniform_(0.5 * length**2, 1.5 * length**2)
        for layer in net.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.shape[0] > 3:
                for p in layer.parameters():
                    p.data *= length
    before = [p.clone() for p in net.parameters()]
    equal = curvature.equal_layer_norms(net)
    assert all(map(torch.equal, net.parameters(), before))
    layers = [m for m in equal.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    lengths = [m.weight.double().norm().item() / math.sqrt(len(m.weight)) for m in layers]
    assert sum(abs(each - 1) < 1e-5 for each in lengths) == n_layers
    for mode in ("eval", "train"):
        with torch.no_grad(), models.local_seed(1):
            z = getattr(copy.deepcopy(net), mode)()(x)
        with torch.no_grad(), models.local_seed(1):
            found = getattr(copy.deepcopy(equal), mode)()(x)
        torch.testing.assert_close(found, z, rtol=1e-5, atol=1e-5 * z.abs().max().item())
    again = curvature.equal_layer_norms(equal)
    torch.testing.assert_close(models.flat_parameters(again), models.flat_parameters(equal))


def test_at_equal_layer_norms_lengths_that_change_no_prediction_change_no_sharpness():
    with models.local_seed(0):
        net = normalised()
    longer = copy.deepcopy(net)
    longer[0].weight.data *= 3
    longer[0].bias.data *= 3
    tops = {}
    for name, each in {"net": net, "longer": longer}.items():
        for kind, model in {"as is": each, "equal": curvature.equal_layer_norms(each)}.items():
            f = NetworkObjective(model, DATA.x_train, DATA.y_train, dtype=F64)
            tops[name, kind] = curvature.eigenvalues(f, f.w, 1, tolerance=1e-9).values[0]
    assert abs(tops["longer", "as is"] / tops["net", "as is"] - 1) > 0.05
    assert tops["longer", "equal"] == pytest.approx(tops["net", "equal"], rel=1e-5)


def shared():
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.BatchNorm1d(6), layer, nn.BatchNorm1d(6))


class Outside(nn.Module):
    """A batch norm whose place only the forward pass knows."""

    def __init__(self):
        super().__init__()
        self.first = normalised()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.first(x))


def zeros():
    net = normalised()
    nn.init.zeros_(net[0].weight)
    return net


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (models.mlp, "build the net so, or compare nets without batch norm as they are"),
        (lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm1d(6)), "directly after a plain Linear"),
        (lambda: nn.Sequential(normalised(), nn.BatchNorm1d(3)), "directly after a plain Linear"),
        (Outside, "in an nn.Sequential"),
        (shared, "used once"),
        (
            lambda: nn.Sequential(
                nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), nn.BatchNorm1d(6)
            ),
            "a plain Linear or Conv2d",
        ),
        (zeros, r"the weight of Linear\(.* has the norm 0"),
    ],
)
def test_nets_whose_layer_norms_cannot_be_made_equal(make, message):
    with pytest.raises(ValueError, match=message):
        curvature.equal_layer_norms(make())


# Other libraries


def loss_of(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def as_curvlinops(objective, kind):
    return kind(
        objective.model,
        nn.CrossEntropyLoss(),
        list(objective.model.parameters()),
        [(DATA.x_train.double(), DATA.y_train)],
        check_deterministic=False,
    )


def test_products_agree_with_curvlinops_and_hessian_eigenthings():
    objective = build(batch_size=25)
    batches = [(DATA.x_train.double(), DATA.y_train)]
    v = torch.randn(objective.n_params, generator=torch.Generator().manual_seed(3), dtype=F64)
    for of, theirs, operator in (
        ("hessian", curvlinops.HessianLinearOperator, HessianOperator),
        ("gauss_newton", curvlinops.GGNLinearOperator, None),
    ):
        ours = objective.product(objective.w, of=of)(v)
        torch.testing.assert_close(ours, as_curvlinops(objective, theirs) @ v)
        if operator:
            torch.testing.assert_close(ours, operator(objective.model, batches, loss_of).matvec(v))
    assert GGNOperator  # its loss is given in another form; curvlinops covers the product


def test_eigenvalues_agree_with_the_libraries():
    objective = build()
    batches = [(DATA.x_train.double(), DATA.y_train)]
    ours = curvature.eigenvalues(objective, objective.w, 3, tolerance=1e-8).values
    operator = HessianOperator(objective.model, batches, loss_of)
    theirs = algorithms.lanczos(
        operator, k=3, max_iter=60, which="LA", seed=0, reorthogonalize=True
    )
    np.testing.assert_allclose(ours, theirs.eigenvalues.numpy(), rtol=1e-6)
    with models.local_seed(0):
        pyhessian = PyHessian(
            build().model.float(),
            nn.CrossEntropyLoss(),
            data=(DATA.x_train, DATA.y_train),
            cuda=False,
        )
        power, _ = pyhessian.eigenvalues(maxIter=2000, tol=1e-7, top_n=1)
    assert ours[0] == pytest.approx(power[0], rel=1e-3)


def test_traces_agree_with_the_libraries():
    objective = build(batch_size=20)
    ours = curvature.trace(objective, objective.w, n_products=100)
    with models.local_seed(0):
        pyhessian = PyHessian(
            build().model.float(),
            nn.CrossEntropyLoss(),
            data=(DATA.x_train, DATA.y_train),
            cuda=False,
        )
        samples = pyhessian.trace(maxIter=400, tol=0.0)
        linear = as_curvlinops(objective, curvlinops.HessianLinearOperator)
        meyer = curvlinops.hutchpp_trace(linear, num_matvecs=99).item()
    theirs = np.mean(samples)
    spread = math.hypot(ours.stderr, np.std(samples) / 20)
    assert abs(ours.value - theirs) < 4 * spread
    assert abs(ours.value - meyer) < 5 * ours.stderr


# Bad input and seeds


def test_seeds_are_local():
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    results = [
        (
            curvature.eigenvalues(BOWL, ZERO, 2, seed=4, max_products=6).values,
            curvature.trace(BOWL, ZERO, seed=4).value,
            curvature.spectral_density(BOWL, ZERO, n_steps=5, seed=4).nodes,
        )
        for _ in range(2)
    ]
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)
    assert curvature.trace(BOWL, ZERO, seed=5).value != results[0][1]


def kink(w):
    """The gradient is NaN at 0, the loss is not."""
    return w.square().sum().sqrt()


KINK = FunctionObjective(kink, 60)
AT_0 = np.zeros(60)


def test_numbers_of_numpy_are_numbers():
    plain = curvature.eigenvalues(BOWL, ZERO, 3, max_products=20, seed=2)
    options = {"max_products": np.int64(20), "seed": np.uint64(2)}
    scalars = curvature.eigenvalues(BOWL, ZERO, np.arange(4)[3], **options)
    np.testing.assert_array_equal(plain.values, scalars.values)
    trace = curvature.trace(BOWL, ZERO, n_products=np.float64(5), seed=np.int32(2))
    assert trace == curvature.trace(BOWL, ZERO, n_products=5, seed=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: curvature.eigenvalues(BOWL, ZERO, 0), "k must be at least 1 .* got 0"),
        (lambda: curvature.eigenvalues(BOWL, ZERO, 200), "k must be .* at most 124, got 200"),
        (lambda: curvature.eigenvalues(BOWL, ZERO, 2, end="top"), "got 'top'"),
        (lambda: curvature.eigenvalues(BOWL, ZERO, 5, max_products=5), "at least 6, got 5"),
        (lambda: curvature.eigenvalues(BOWL, ZERO, 1.5), "k must be a whole number, got 1.5"),
        (lambda: curvature.eigenvalues(BOWL, ZERO, True), "k must be a whole number, got True"),
        (lambda: curvature.eigenvalues(BOWL, ZERO, 1, tolerance=np.nan), "tolerance .* got nan"),
        (lambda: curvature.eigenvalues(BOWL, ZERO, 1, seed=-1), "seed must be at least 0"),
        (lambda: curvature.eigenvalues(KINK, AT_0, 1), "is the loss finite at w"),
        (lambda: curvature.trace(KINK, AT_0), "30 of 30 values .* is the loss finite at w"),
        (lambda: curvature.trace(KINK, AT_0, n_products=60), "is the loss finite at w"),
        (lambda: curvature.spectral_density(KINK, AT_0), "is the loss finite at w"),
        (lambda: curvature.spectral_density(KINK, AT_0, n_steps=3), "is the loss finite at w"),
        (lambda: curvature.matrix(KINK, AT_0), "is the loss finite at w"),
        (lambda: curvature.eigenvalues(BOWL, ZERO, 2, of="fisher"), "got 'fisher'"),
        (lambda: curvature.eigenvalues(BOWL, ZERO, 2, of="gauss_newton"), "for networks"),
        (lambda: curvature.eigenvalues(BOWL, np.zeros(3)), r"shape \(124,\)"),
        (lambda: curvature.trace(BOWL, ZERO, n_products=1), "n_products must be at least 2, got 1"),
        (lambda: curvature.trace(BOWL, ZERO, n_products=2.5), "n_products .* got 2.5"),
        (
            lambda: curvature.spectral_density(BOWL, ZERO, n_vectors=1),
            "n_vectors must be at least 2",
        ),
        (lambda: curvature.spectral_density(BOWL, ZERO, n_steps=0), "n_steps must be at least 1"),
        (
            lambda: curvature.spectral_density(BOWL, ZERO).density([0.0], 0.0),
            "width must be a finite number and above 0, got 0",
        ),
        (
            lambda: curvature.log_determinant(curvature.spectral_density(BOWL, ZERO), np.nan),
            "delta must be a finite number, got nan",
        ),
        (
            lambda: curvature.log_determinant(curvature.spectral_density(BOWL, ZERO), 0.1),
            "take delta above 1",
        ),
        (
            lambda: curvature.Restriction(BOWL, ZERO, slice(0, 0)),
            "name parameters, each of them once",
        ),
        (lambda: curvature.Restriction(BOWL, ZERO, torch.tensor([1, 2, 1])), "each of them once"),
        (
            lambda: curvature.matrix(Powers([1] * 5001, [2] * 5001), np.zeros(5001)),
            "too large",
        ),
        (lambda: curvature.rescale(models.mlp(), 2.0), r"biases: build it with .*bias=False"),
        (lambda: curvature.rescale(models.f1(), 2.0), "BatchNorm1d"),
        (lambda: curvature.rescale(models.mlp(bias=False), 0.0), "alpha .* above 0, got 0"),
        (
            lambda: curvature.rescale(nn.Sequential(nn.Linear(2, 2, bias=False)), 2.0),
            "two layers with weights, this net has 1",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
