import math
import re
from dataclasses import asdict
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import differential_evolution
from synthetic import gaussian_classes
from torch import nn

from lecture6 import data, sharpness
from lecture6.curvature import rescale
from lecture6.models import local_seed, mlp
from lecture6.objective import FunctionObjective, NetworkObjective
from lecture6.sharpness import MEASURES, RandomSubspace, adaptive, average, sam, worst_case
from lecture6.toys import Powers, Quadratic
from lecture6.train import train

F64 = torch.float64
METHODS = ["lbfgsb", "ascent", "converged"]

FIGURE_6 = {
    "6a": FunctionObjective(lambda w: 100 * w[0] ** 2, 1),
    "6b": FunctionObjective(lambda w: w[0] ** 8, 1),
    "6c": FunctionObjective(lambda w: 100 * (w[0] ** 2 + w[1] ** 2), 2),
    "6d": FunctionObjective(lambda w: 100 * w[0] ** 2 + w[1] ** 8, 2),
}
TABLE_1 = [  # the identity rows
    ("6a", 1e-3, "1.0e-02"),
    ("6b", 1e-3, "1.0e-22"),
    ("6a", 5e-4, "2.5e-03"),
    ("6b", 5e-4, "3.9e-25"),
    ("6c", 1e-3, "2.0e-02"),
    ("6d", 1e-3, "1.0e-02"),
    ("6c", 5e-4, "5.0e-03"),
    ("6d", 5e-4, "2.5e-03"),
]


pytestmark = pytest.mark.usefixtures("one_thread")  # nets of 100 weights


def zeros(objective):
    return torch.zeros(objective.n_params, dtype=F64)


# ---- closed forms ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("figure", "epsilon", "printed"), TABLE_1)
def test_table_1_to_the_printed_digits(figure, epsilon, printed, method):
    f = FIGURE_6[figure]
    result = worst_case(f, zeros(f), epsilon=epsilon, method=method)
    assert f"{result.value:.1e}" == printed
    assert result.converged
    assert result.gap <= 0.01 * result.value
    assert result.maximizer.abs().tolist() == pytest.approx([epsilon] * f.n_params)
    assert f.value(zeros(f) + result.maximizer) == result.loss_max


@pytest.mark.parametrize("method", METHODS)
def test_the_lbfgsb_trap_from_every_start(method):
    """x⁸ is flat to an absolute tolerance, and its gradient at 0 is 0: Keskar's solver says 0."""
    f, exact = FIGURE_6["6b"], 100 * 1e-3**8
    for seed in range(40):
        result = worst_case(f, zeros(f), method=method, seed=seed)
        assert result.value == pytest.approx(exact, rel=1e-9)
        assert result.converged


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("c", "x", "epsilon"), [(100, 0.3, 1e-3), (2, -1.7, 0.1), (1, 5.0, 2.0)])
def test_away_from_the_minimum(c, x, epsilon, method):
    f = FunctionObjective(lambda w: c * w[0] ** 2, 1)
    exact = c * ((abs(x) + epsilon * (abs(x) + 1)) ** 2 - x**2) / (1 + c * x**2) * 100
    x = torch.tensor([x], dtype=F64)
    assert worst_case(f, x, epsilon=epsilon, method=method).value == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("p", [1, 2, 4, 6])
def test_a_given_matrix_at_the_minimum_of_a_quadratic(p):
    """φ of 100‖x‖² is 10⁴ ε² max over the corners s of ‖A s‖²."""
    a = np.random.default_rng(p).normal(size=(8, p))
    corners = np.array(list(product((-1, 1), repeat=p)))
    exact = 1e4 * 1e-6 * ((corners @ a.T) ** 2).sum(1).max()
    f = FunctionObjective(lambda w: 100 * (w @ w), 8)
    options = dict(subspace=torch.tensor(a), method="converged")
    results = [worst_case(f, zeros(f), **options, seed=seed) for seed in range(12)]
    assert max(r.value for r in results) == pytest.approx(exact, rel=1e-9)
    assert results[0].maximizer.shape == (p,)


def test_a_mixture_of_flat_and_sharp_along_a_matrix():  # 6d, general A: science of Table 1
    a, epsilon = np.array([[0.6, -0.3], [0.2, 0.9]]), 1.5
    exact = max(
        1e4 * epsilon**2 * (a[0] @ s) ** 2 + 100 * epsilon**8 * (a[1] @ s) ** 8
        for s in product((-1, 1), repeat=2)
    )
    f = FIGURE_6["6d"]
    result = worst_case(f, zeros(f), epsilon=epsilon, subspace=torch.tensor(a), method="converged")
    assert result.value == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("shape", [(5, 1), (5, 3), (5, 5)])
def test_the_box_comes_from_the_pseudo_inverse(shape):
    """A linear loss is largest at a corner, so the maximiser shows the box of equation (3)."""
    rng = np.random.default_rng(sum(shape))
    a, x, slope = rng.normal(size=shape), 3 * rng.normal(size=5), rng.normal(size=5)
    f = FunctionObjective(lambda w: 50 + torch.tensor(slope) @ w, 5)
    half_width = 0.1 * (np.abs(np.linalg.pinv(a) @ x) + 1)
    for method in METHODS:
        result = worst_case(f, x, epsilon=0.1, subspace=torch.tensor(a), method=method)
        np.testing.assert_allclose(result.maximizer, half_width * np.sign(a.T @ slope), rtol=1e-9)
        rise = half_width @ np.abs(a.T @ slope)
        assert result.value == pytest.approx(100 * rise / (51 + slope @ x), rel=1e-9)
        assert result.gap == pytest.approx(0, abs=1e-9)


def test_a_rank_deficient_matrix_has_a_box_too():
    a, x = np.array([[1.0, 2.0], [2.0, 4.0], [0.0, 0.0]]), np.array([1.0, -3.0, 2.0])
    f = FunctionObjective(lambda w: 10 + w.sum(), 3)
    result = worst_case(f, x, epsilon=0.1, subspace=torch.tensor(a), method="converged")
    np.testing.assert_allclose(result.maximizer, 0.1 * (np.abs(np.linalg.pinv(a) @ x) + 1))


def test_the_gap_is_what_the_linearised_loss_could_still_rise():
    """One step of ascent from a corner: at z the gap of f is max over the box of ∇f(z)·(v − z)."""
    peak = torch.tensor([0.2, -0.5], dtype=F64)
    f = FunctionObjective(lambda w: 10 - ((w - peak) ** 2).sum(), 2)
    result = worst_case(f, zeros(f), epsilon=1.0, method="ascent", n_iterations=2)
    z = result.maximizer
    gradient = -2 * (z - peak)
    gap = 100 / (1 + result.loss) * (gradient.abs().sum() - gradient @ z).item()
    assert gap > 0.1
    assert result.gap == pytest.approx(gap, rel=1e-9)
    assert not result.converged


# ---- random subspaces -----------------------------------------------------------------------

N_ROWS = 70_000  # more than two blocks


def dense(subspace):
    return torch.cat([block for _, block in subspace.blocks()]).double()


@pytest.fixture(params=[1 << 30, 0], ids=["kept", "drawn again"])
def subspace(request, monkeypatch):
    monkeypatch.setattr(sharpness, "MEMORY_LIMIT", request.param)
    return RandomSubspace(N_ROWS, 3, seed=4)


def test_entries_are_standard_normal_and_come_from_the_seed(subspace):
    a = dense(subspace).numpy()
    assert a.shape == (N_ROWS, 3)
    assert stats.kstest(a.ravel(), "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(a.T) - np.eye(3)).max() < 0.02
    assert len(np.unique(a[:, 0])) > 0.99 * N_ROWS  # no block repeats another
    np.testing.assert_array_equal(a, dense(RandomSubspace(N_ROWS, 3, seed=4)))
    assert not np.array_equal(a, dense(RandomSubspace(N_ROWS, 3, seed=5)))


def test_products_are_those_of_the_dense_matrix(subspace):
    a = dense(subspace)
    rng = np.random.default_rng(0)
    z, g = torch.from_numpy(rng.normal(size=3)), torch.from_numpy(rng.normal(size=N_ROWS))
    torch.testing.assert_close(subspace.apply(z), a @ z)
    torch.testing.assert_close(subspace.transpose(g), a.T @ g)
    np.testing.assert_allclose(subspace.pinv(g), np.linalg.pinv(a.numpy()) @ g.numpy(), rtol=1e-9)


def test_memory_is_bounded_beyond_the_limit(monkeypatch):
    n, p = 300_000, 20
    monkeypatch.setattr(sharpness, "MEMORY_LIMIT", 4 * n * p - 1)
    small = RandomSubspace(n, p)
    largest, drawn = 0, 0
    for _, block in small.blocks():
        largest, drawn = max(largest, block.numel()), drawn + block.numel()
    assert drawn == n * p
    assert largest <= n * p / 9
    tensors = [v for v in vars(small).values() if isinstance(v, torch.Tensor)]
    assert sum(t.numel() for t in tensors) <= p * p
    first, again = (next(iter(small.blocks()))[1] for _ in range(2))
    assert torch.equal(first, again)
    assert first.data_ptr() != again.data_ptr()  # not kept


def test_a_search_takes_a_subspace_as_a_number_an_object_or_a_matrix():
    f, x = net(F64)
    results = [
        worst_case(f, x, subspace=a, seed=2)
        for a in (
            np.int64(3),
            RandomSubspace(f.n_params, 3, seed=2),
            dense(RandomSubspace(f.n_params, 3, seed=2)),
        )
    ]
    assert results[0].value == results[1].value > 0
    assert results[2].value == pytest.approx(results[0].value, rel=1e-6)
    assert worst_case(f, x, subspace=3, seed=3).value != results[0].value


def test_a_subspace_in_float64_serves_an_objective_in_float32():
    f, x = net(torch.float32)
    subspace = RandomSubspace(f.n_params, 3)
    result = worst_case(f, x, subspace=subspace, epsilon=0.05, method="ascent")
    exact = worst_case(*net(F64), subspace=subspace, epsilon=0.05, method="ascent")
    assert result.value == pytest.approx(exact.value, rel=1e-3)


# ---- a trained net against independent maximisation -----------------------------------------

DATA = gaussian_classes(60, 10, shape=(4,), n_classes=3, separation=2.0)


@cache
def trained():
    with local_seed(0):
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    options = {"batch_size": 60, "lr": 0.5, "epochs": 300, "evaluate_every": 300}
    return train(model, DATA, **options, device="cpu").model


def net(dtype):
    """A trained net of 67 parameters as an objective, and its weights."""
    f = NetworkObjective(trained(), DATA.x_train, DATA.y_train, dtype=dtype)
    return f, f.w


@pytest.mark.parametrize("p", [2, 4])
def test_a_trained_net_against_differential_evolution(p):
    f, x = net(F64)
    a = torch.from_numpy(np.random.default_rng(p).normal(size=(f.n_params, p)))
    half_width = 0.05 * (np.abs(np.linalg.pinv(a.numpy()) @ x.numpy()) + 1)

    def loss(z):
        return -f.value(x + a @ torch.from_numpy(z))

    bounds = list(zip(-half_width, half_width, strict=True))
    found = differential_evolution(loss, bounds, rng=0, maxiter=60, popsize=10)
    theirs = 100 * (-found.fun - f.value(x)) / (1 + f.value(x))
    results = {m: worst_case(f, x, epsilon=0.05, subspace=a, method=m) for m in METHODS}
    assert results["converged"].converged
    assert results["converged"].value >= theirs * (1 - 1e-6)
    for result in results.values():
        assert 0 < result.value <= results["converged"].value * (1 + 1e-6)
        assert (result.maximizer.abs().numpy() <= half_width * (1 + 1e-12)).all()
        at_maximum = f.value(x + a @ result.maximizer)
        assert at_maximum == pytest.approx(result.loss_max, rel=1e-12)
        assert result.value == pytest.approx(100 * (at_maximum - result.loss) / (1 + result.loss))


def test_a_trained_net_against_a_grid():
    f, x = net(F64)
    a = torch.from_numpy(np.random.default_rng(9).normal(size=(f.n_params, 2)))
    half_width = torch.from_numpy(0.05 * (np.abs(np.linalg.pinv(a.numpy()) @ x.numpy()) + 1))
    ticks = torch.linspace(-1, 1, 25, dtype=F64)
    losses = [f.value(x + a @ (half_width * u)) for u in torch.cartesian_prod(ticks, ticks)]
    grid = 100 * (max(losses) - f.value(x)) / (1 + f.value(x))
    ours = worst_case(f, x, epsilon=0.05, subspace=a, method="converged").value
    assert grid * (1 - 1e-12) <= ours <= grid * 1.05


@pytest.mark.parametrize("epsilon", [1e-3, 5e-4, 0.1])
def test_in_the_whole_space_more_effort_finds_no_less_and_other_code_little_more(epsilon):
    f, x = net(F64)
    quick, ascent = (worst_case(f, x, epsilon=epsilon, method=m) for m in ("lbfgsb", "ascent"))
    full = worst_case(f, x, epsilon=epsilon, method="converged")
    assert full.converged
    assert 0 < quick.value <= full.value * (1 + 1e-9)
    assert 0 < ascent.value <= full.value * (1 + 1e-9)
    assert full.n_evaluations > quick.n_evaluations
    # projected gradient ascent in fresh code, from other starts
    best, rng = 0.0, np.random.default_rng(1)
    half_width = epsilon * (x.abs() + 1)
    for _ in range(5):
        z = half_width * torch.from_numpy(np.sign(rng.normal(size=f.n_params)))
        for step in np.geomspace(2, 1e-3, 30):
            z = z + step * half_width * f.grad(x + z).sign()
            z = torch.minimum(torch.maximum(z, -half_width), half_width)
        best = max(best, f.value(x + z) - f.value(x))
    assert full.value >= 0.97 * 100 * best / (1 + f.value(x))  # each finds a local maximum


@pytest.mark.parametrize("method", METHODS)
def test_a_result_is_reproducible_and_counts_its_evaluations(method):
    f, x = net(F64)
    calls = 0
    plain = f.value_and_grad

    def counted(w):
        nonlocal calls
        calls += 1
        return plain(w)

    f.value_and_grad = counted
    state = torch.get_rng_state()
    first = worst_case(f, x, method=method, seed=7)
    assert first.n_evaluations == calls > 1
    again = asdict(worst_case(f, x, method=method, seed=7))
    assert torch.equal(again.pop("maximizer"), first.maximizer)
    assert all(again[key] == getattr(first, key) for key in again)
    assert torch.equal(torch.get_rng_state(), state)


def test_keskars_setting_stops_after_ten_iterations():
    """Ten iterations of L-BFGS-B: a few evaluations more, and no more when more are allowed."""
    ripples = FunctionObjective(lambda w: 100 * (1 - torch.cos(40 * w)).sum() + (w**4).sum(), 30)
    x = torch.linspace(-1, 1, 30, dtype=F64)
    ten = worst_case(ripples, x, epsilon=0.5)
    forty = worst_case(ripples, x, epsilon=0.5, n_iterations=40)
    assert 10 <= ten.n_evaluations < forty.n_evaluations
    assert ten.value <= forty.value


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 10.0])
def test_what_is_said_is_what_converged_says(epsilon, method):
    """SciPy reports its limit of iterations even where the point that it reached is stationary."""
    for n in (1, 10, 200):
        found = worst_case(*net(F64), epsilon=epsilon, method=method, n_iterations=n)
        assert found.converged == bool(re.search("(?<!not )stationary after", found.message))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("epsilon", [1e-3, 5e-4])
def test_float32_gives_the_value_of_float64_and_not_0(epsilon, method):
    single, double = net(torch.float32), net(F64)
    exact = worst_case(*double, epsilon=epsilon, method="converged").value
    assert worst_case(*single, epsilon=epsilon, method=method).value == pytest.approx(
        exact, rel=0.05
    )


# ---- where there is no easy maximum ---------------------------------------------------------


@pytest.mark.parametrize("method", ["lbfgsb", "converged"])
def test_a_maximum_inside_the_box_is_found(method):
    peak = torch.tensor([0.3e-3, -0.4e-3, 0.0], dtype=F64)
    f = FunctionObjective(lambda w: 1 - 1e5 * ((w - peak) ** 2).sum(), 3)
    result = worst_case(f, zeros(f), method=method)
    assert result.loss_max == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(result.maximizer, peak, atol=1e-5)
    assert result.converged


@pytest.mark.parametrize("method", METHODS)
def test_what_a_search_finds_does_not_depend_on_the_unit_of_the_loss(method):
    """L-BFGS-B on its own stops at once on losses of 1e-24."""
    peak, widths = torch.linspace(-0.6, 0.6, 20), torch.logspace(0, 2, 20)
    rises = []
    for unit in (1e-24, 1e-6, 1.0, 1e12):
        f = FunctionObjective(lambda w, u=unit: u * (900 - (widths * (w - peak) ** 2).sum()), 20)
        result = worst_case(f, zeros(f), epsilon=0.5, method=method)
        rises.append((result.loss_max - result.loss) / unit)
    assert rises == pytest.approx([rises[0]] * 4, rel=1e-6)
    assert rises[0] > 1


def test_sign_ascent_closes_in_on_a_maximum_inside_the_box():
    f = FunctionObjective(lambda w: 1 - ((w - 0.3) ** 2).sum(), 3)
    result = worst_case(f, zeros(f), epsilon=1.0, method="ascent", n_iterations=60)
    np.testing.assert_allclose(result.maximizer, [0.3] * 3, atol=1e-3)
    assert result.converged


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "f", [lambda w: 0.5 + 0 * w.sum(), lambda w: 0.5 - w @ w], ids=["flat", "top"]
)
def test_nothing_above_x_is_never_a_silent_0(f, method):
    f = FunctionObjective(f, 2)
    result = worst_case(f, zeros(f), method=method)
    assert result.value == 0
    assert not result.converged
    assert result.message.startswith("no point evaluated in the box lies above f(x) = 0.5")
    assert result.loss_max == result.loss == 0.5


def test_starts_that_end_at_different_heights_are_told():
    two_hills = FunctionObjective(
        lambda w: 1 + w[0] ** 2 + 0.5 * w[0], 1
    )  # corners 2.5 and 1.5: the lower one is a stationary point of the box
    results = [
        worst_case(two_hills, [0.0], epsilon=1.0, method="converged", seed=s) for s in range(5)
    ]
    assert all(r.value == pytest.approx(100 * 1.5 / 2) for r in results)
    assert any(not r.message.startswith("4 of 4 starts") for r in results)
    assert all(" of 4 starts reach the highest point found" in r.message for r in results)


# ---- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be a finite number and above 0, got 0"),
        ({"epsilon": -1e-3}, "epsilon must be .* above 0, got -0.001"),
        ({"epsilon": float("nan")}, "epsilon must be .* above 0, got nan"),
        ({"epsilon": float("inf")}, "epsilon must be .* above 0, got inf"),
        ({"method": "newton"}, "method must be .*, got 'newton'"),
        ({"n_iterations": 0}, "n_iterations must be at least 1, got 0"),
        ({"n_iterations": 1.5}, "n_iterations must be a whole number, got 1.5"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"subspace": 0}, "subspace must be at least 1 and at most 20, got 0"),
        ({"subspace": 21}, "subspace must be at least 1 and at most 20, got 21"),
        ({"subspace": 2.5}, "subspace must be a whole number, got 2.5"),
        ({"subspace": True}, "subspace must be a whole number, got True"),
        ({"subspace": torch.full((20, 2), torch.inf)}, "subspace has 40 of 40 .* not finite"),
        ({"subspace": torch.zeros(20, 2)}, "no entry but 0: it gives no direction"),
        ({"subspace": torch.ones(19, 2)}, r"subspace must have shape \(20, p\), got \(19, 2\)"),
        ({"subspace": torch.ones(20)}, r"subspace must have shape \(20, p\), got \(20,\)"),
        ({"subspace": torch.ones(20, 0)}, r"subspace must have shape \(20, p\), got \(20, 0\)"),
        ({"subspace": RandomSubspace(9, 2)}, r"subspace must have shape \(20, p\), got \(9, 2\)"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    f = FunctionObjective(lambda w: w @ w, 20)
    with pytest.raises(ValueError, match=message):
        worst_case(f, zeros(f), **options)


def test_a_point_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"expected a vector of shape \(2,\), got \(3,\)"):
        worst_case(FIGURE_6["6c"], torch.zeros(3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_at_x_is_refused(bad):
    f = FunctionObjective(lambda w: bad + w.sum(), 2)
    with pytest.raises(ValueError, match=f"the loss at x is {bad}; sharpness needs a finite loss"):
        worst_case(f, zeros(f))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_inside_the_box_is_refused(bad, method):
    """The maximum over the box does not exist: the best finite point is not it."""
    f = FunctionObjective(lambda w: torch.where(w.abs() > 0.2, bad, w**2).sum(), 1)
    with pytest.raises(
        ValueError, match=f"the loss inside the box of x is {bad}; .* smaller epsilon"
    ):
        worst_case(f, [0.0], epsilon=1.0, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_that_is_not_finite_is_not_a_box_too_large(method):
    f = FunctionObjective(lambda w: w.square().sum() + (0 * w).sqrt().sum(), 2)
    with pytest.raises(ValueError, match="the gradient inside the box of x has 2 of 2 values"):
        worst_case(f, [1.0, 1.0], method=method)


# ---- the measures beside Definition 2 -------------------------------------------------------


X = np.array([0.5, -0.2, 0.1])
BOWL = Quadratic([1.0, 4.0, 9.0], seed=2)


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_has_the_same_signature(name):
    result = MEASURES[name](BOWL, X, epsilon=0.01, seed=1)
    assert result.epsilon == 0.01
    assert result.value > 0
    assert result.loss == BOWL.value(X)
    assert result.value == pytest.approx(100 * (result.loss_max - result.loss) / (1 + result.loss))
    assert asdict(MEASURES[name](BOWL, X, epsilon=0.01, seed=1))["value"] == result.value


@pytest.mark.parametrize("epsilon", [1e-3, 0.1])
def test_adaptive_sharpness_is_the_best_corner_of_its_box(epsilon):
    corners = [X * (1 + epsilon * np.array(s)) for s in product((-1, 1), repeat=3)]
    highest = max(BOWL.value(c) for c in corners)
    exact = 100 * (highest - BOWL.value(X)) / (1 + BOWL.value(X))
    result = adaptive(BOWL, X, epsilon=epsilon)
    assert result.value == pytest.approx(exact)
    assert result.converged
    assert (np.abs(result.maximizer.numpy()) <= epsilon * np.abs(X) + 1e-12).all()


def test_adaptive_sharpness_at_0_says_that_its_box_is_a_point():
    result = adaptive(Powers([100], [2]), [0.0])
    assert result.value == 0
    assert not result.converged
    assert "no point evaluated in the box lies above" in result.message


def relu_net():
    with local_seed(0):
        return nn.Sequential(
            nn.Linear(6, 20, bias=False), nn.ReLU(), nn.Linear(20, 3, bias=False)
        ).double()


def test_only_adaptive_sharpness_survives_rescaling():
    data = gaussian_classes(40, 5, shape=(6,), n_classes=3)
    values = {}
    for alpha in (1.0, 20.0):
        f = NetworkObjective(rescale(relu_net(), alpha), data.x_train, data.y_train)
        for name, measure in MEASURES.items():
            values[name, alpha] = measure(f, f.w).value
    for name in MEASURES:
        ratio = values[name, 20.0] / values[name, 1.0]
        if name == "adaptive":
            assert ratio == pytest.approx(1, abs=1e-9)
        else:
            assert ratio > 3 or ratio < 1 / 3


def test_average_sharpness_is_half_epsilon_squared_trace():
    """Exactly so in the mean, on a quadratic at its minimum; tested with its error bars."""
    spectrum = np.linspace(0, 3, 40)
    bowl = Quadratic(spectrum)
    exact = 100 * 0.5 * 0.1**2 * spectrum.sum()
    scores = []
    for seed in range(200):
        result = average(bowl, np.zeros(40), epsilon=0.1, seed=seed)
        scores.append((result.value - exact) / result.stderr)
    assert np.mean(np.abs(scores) <= 3) >= 0.97
    assert np.mean(np.abs(scores) <= 0.3) <= 0.45
    assert abs(np.mean(scores)) < 0.3


def test_average_sharpness_may_be_negative_and_says_how_well_it_is_known():
    hill = FunctionObjective(lambda w: 5 - (w**2).sum(), 2)
    result = average(hill, [0.0, 0.0], epsilon=0.1, n_samples=500)
    assert result.value < 0
    assert result.converged
    assert result.maximizer is None
    assert result.n_evaluations == 1000
    slope = FunctionObjective(lambda w: w.sum(), 2)
    assert average(slope, [0.0, 0.0]).value == pytest.approx(0, abs=1e-12)  # pairs cancel it
    wave = FunctionObjective(lambda w: torch.cos(40 * w[0]) + w[0] ** 2, 1)
    assert not average(wave, [0.02], epsilon=0.05, n_samples=4).converged


def test_sam_is_one_step_along_the_gradient():
    g = BOWL.h @ X
    step = 0.05 * g / np.linalg.norm(g)
    base = BOWL.value(X)
    result = sam(BOWL, X)
    assert result.value == pytest.approx(100 * (BOWL.value(X + step) - base) / (1 + base))
    np.testing.assert_allclose(result.maximizer.numpy(), step)


def test_sam_at_a_minimum_says_that_it_has_no_direction():
    result = sam(BOWL, np.zeros(3))
    assert result.value == 0
    assert not result.converged
    assert "no direction" in result.message


def test_sam_does_not_take_a_gradient_that_is_not_finite_for_0():
    f = FunctionObjective(lambda w: 1 + w.square().sum().sqrt(), 2)
    with pytest.raises(ValueError, match="the gradient at x has 2 of 2 values"):
        sam(f, [0.0, 0.0])


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_refuses_bad_input(name):
    measure = MEASURES[name]
    for epsilon in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"epsilon must be .* above 0, got {epsilon:g}"):
            measure(BOWL, X, epsilon=epsilon)
    with pytest.raises(ValueError, match="the loss at x is nan"):
        measure(FunctionObjective(lambda w: w.log().sum(), 1), [-1.0])


def test_average_needs_two_samples():
    with pytest.raises(ValueError, match="n_samples must be at least 2, got 1"):
        average(BOWL, X, n_samples=1)


# ---- rounding: what float64, closed forms and exact arithmetic say --------------------------


def digits_net(dtype):
    images = data.load("digits").subset(400)
    return NetworkObjective(mlp(64, 32, 10, seed=0), images.x_train, images.y_train, dtype=dtype)


def digits_trace():
    """tr H of the net above: z is linear in every single weight, so E_n Σ_w Var_p(∂z/∂w) is it."""
    f = digits_net(F64)
    x = f.x.double().flatten(1)
    w1, b1, w2, b2 = (p.detach() for p in f.model.parameters())
    a = (x @ w1.T + b1).relu()
    p = (a @ w2.T + b2).softmax(1)
    outer = (1 + a.square().sum(1)) * (1 - p.square().sum(1))
    spread = p @ w2.square() - (p @ w2).square()  # (n, hidden)
    inner = (1 + x.square().sum(1)) * (spread * (a > 0)).sum(1)
    return (outer + inner).mean().item()


def test_an_average_that_drowns_in_rounding_says_so():
    exact = 0.5e-12 * digits_trace()
    single, double = digits_net(torch.float32), digits_net(F64)
    good = average(double, double.w, epsilon=1e-6, n_samples=300)
    scale = 100 / (1 + good.loss)
    assert good.converged
    assert abs(good.value - scale * exact) < 3 * good.stderr < 0.2 * good.value
    for epsilon in (1e-6, 1e-8):
        bad = average(single, single.w, epsilon=epsilon, n_samples=300)
        assert not bad.converged
        assert abs(bad.value - scale * exact * (epsilon / 1e-6) ** 2) < 3 * bad.stderr
        assert "a larger epsilon or float64" in bad.message


@pytest.mark.parametrize("name", MEASURES)
def test_float32_at_a_tiny_epsilon_has_not_converged_and_its_error_is_in_stderr(name):
    single, double = digits_net(torch.float32), digits_net(F64)
    for epsilon in (1e-8, 1e-12):
        found, exact = (MEASURES[name](f, f.w, epsilon=epsilon) for f in (single, double))
        assert not found.converged
        assert abs(found.value - exact.value) < 3 * math.hypot(found.stderr, exact.stderr)


def rounded_away(w):
    """Σ w², in which 1e8 comes and goes."""
    return ((w + 1e4) ** 2 - 1e8 - 2e4 * w).sum()


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(
    ("f", "x", "epsilon"),
    [
        (lambda w: 1e6 + (w**2).sum(), 0.0, 1e-6),  # ulp 1.2e-10
        (rounded_away, 1 / 3, 1e-9),
        (lambda w: ((w - 1) ** 2).sum(), 1.0, 1e-17),  # x + z is x
        (lambda w: ((w - 1) ** 2).sum() + 1e-3, 1.0, 1e-10),
    ],
)
def test_what_rounding_hides_has_not_converged(name, f, x, epsilon):
    f = FunctionObjective(f, 3)
    result = MEASURES[name](f, [x] * 3, epsilon=epsilon)
    half = epsilon * (abs(x) + (name != "adaptive"))
    exact = {"average": 3 * epsilon**2, "SAM": epsilon**2}.get(name, 3 * half**2)
    if x == 1 / 3:
        exact += 2 * x * {"average": 0, "SAM": epsilon * math.sqrt(3)}.get(name, 3 * half)
    assert not result.converged
    if x > 0 or name in ("Definition 2", "average"):  # at 0 adaptive has no box, SAM no direction
        assert abs(result.value - 100 * exact / (1 + result.loss)) <= 3 * result.stderr


@pytest.mark.parametrize("level", [1.0, 8.0, 64.0])
@pytest.mark.parametrize("measure", [worst_case, adaptive, sam])
def test_a_rise_of_ten_units_in_the_last_place_has_not_converged(measure, level):
    """Off by a fifth at times, which is two standard errors: neither is below a tenth of it."""
    f = FunctionObjective(lambda w: level + w.sum() ** 2, 3)
    x, unit = torch.full((3,), 0.1, dtype=F64), level * torch.finfo(F64).eps
    results = [measure(f, x, epsilon=rises * unit) for rises in (10, 20, 1e4)]
    for result in results:
        assert not result.converged or 3 * result.stderr < 0.1 * result.value
    assert not results[0].converged
    assert results[-1].converged


@pytest.mark.parametrize("digits", [4, 7, 11])
def test_an_average_of_losses_in_steps_knows_no_more_than_a_step(digits):
    """Rounded up to so many decimals, by a bias that all draws share: 0 at x, a step around it."""
    unit = 10.0**-digits
    f = FunctionObjective(lambda w: unit * torch.round(0.49 + (w @ w) / unit), 4)
    result = average(f, zeros(f), epsilon=0.1 * unit**0.5)
    exact = 100 * 4 * 0.01 * unit
    assert not result.converged
    assert abs(result.value - exact) < 3 * result.stderr


def test_where_nothing_is_rounded_the_error_is_small():
    for f, x in ((FIGURE_6["6a"], [0.3]), (FIGURE_6["6b"], [0.3]), (BOWL, X), net(F64)):
        for measure in (worst_case, adaptive, sam):
            result = measure(f, x)
            assert 0 < result.stderr <= 1e-4 * result.value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "epsilon"), [(F64, 1e-2), (F64, 1e-9), (torch.float32, 1e-3), (torch.float32, 3e-5)]
)
def test_the_error_of_an_average_covers_it_where_rounding_is_small_and_where_not(dtype, epsilon):
    """Three standard errors in 97 % of 200 repeats, each with other draws and another rounding."""
    (f, w), (double, _) = net(dtype), net(F64)
    trace = torch.func.hessian(double._terms()[0][1])(w.double()).trace().item()
    exact = 100 * 0.5 * epsilon**2 * trace / (1 + double.value(w))
    generator, scores, hidden = torch.Generator().manual_seed(0), [], 0
    for seed in range(200):
        x = w + 1e-4 * torch.randn(len(w), generator=generator).to(w)
        result = average(f, x, epsilon=epsilon, seed=seed)
        scores.append(abs(result.value - exact) / result.stderr)
        hidden += not result.converged
    assert np.mean(np.array(scores) <= 3) >= 0.97
    if epsilon in (1e-9, 3e-5):
        assert hidden > 150


@pytest.mark.slow
@pytest.mark.parametrize("measure", [worst_case, adaptive, sam])
@pytest.mark.parametrize(
    ("dtype", "epsilon"), [(F64, 1e-13), (torch.float32, 1e-3), (torch.float32, 1e-7)]
)
def test_the_error_of_a_rise_covers_it(measure, dtype, epsilon):
    """At the point found: against float64, and in float64 against long double."""
    f, centre = net(dtype)
    generator, scores = torch.Generator().manual_seed(1), []
    for _ in range(200):
        x = centre + 0.05 * torch.randn(len(centre), generator=generator).to(centre)
        result = measure(f, x, epsilon=epsilon)
        base, top = (long_double_loss(x, z) for z in (0, result.maximizer))
        exact = float(100 * (top - base) / (1 + base))
        scores.append(abs(result.value - exact) / result.stderr)
    assert np.mean(np.array(scores) <= 3) >= 0.97


def long_double_loss(x, z):
    """The mean cross-entropy of the net of 67 weights at x + z, with 64 bits of mantissa."""
    w = x.double().numpy().astype(np.longdouble)
    w = w + (0 if isinstance(z, int) else z.double().numpy().astype(np.longdouble))
    w1, b1, w2, b2 = np.split(w, [32, 40, 64])
    inputs = DATA.x_train.double().numpy().astype(np.longdouble)
    z = np.tanh(inputs @ w1.reshape(8, 4).T + b1) @ w2.reshape(3, 8).T + b2
    z = z - z.max(1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    return -log_p[np.arange(len(z)), DATA.y_train.numpy()].mean()


def test_what_the_error_costs():
    """With the default settings no point is evaluated twice, and three losses are for the error."""
    f, x = net(F64)
    seen, plain = [], {"value": f.value, "value_and_grad": f.value_and_grad}
    for name, function in plain.items():
        setattr(f, name, lambda w, function=function: seen.append(w.clone()) or function(w))
    result = worst_case(f, x)
    assert len(torch.stack(seen).unique(dim=0)) == len(seen)
    assert len(seen) == 1 + result.n_evaluations + 3


# ---- losses and gradients of every size ------------------------------------------------------


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("level", [-1.0, -3.0, -1e300])
def test_a_loss_at_or_below_minus_1_is_refused(name, level):
    f = FunctionObjective(lambda w: level + (w**2).sum(), 2)
    with pytest.raises(ValueError, match=r"divides by 1 \+ f\(x\), which must be positive"):
        MEASURES[name](f, [0.0, 0.0])


@pytest.mark.parametrize("name", ["Definition 2", "SAM"])
@pytest.mark.parametrize("above", [1e-15, 3e-15, 1e-14])
def test_a_loss_that_hardly_differs_from_minus_1_has_a_sharpness_of_few_digits(name, above):
    """1 + f(x) is known to a unit in the last place of f(x), 10 % of it or more."""
    f = FunctionObjective(lambda w: -1 + above + (w**2).sum(), 2)
    x = [1e-9, 0.0]
    found = MEASURES[name](f, x)
    half = 1e-3 * (1 + 1e-9) if name == "Definition 2" else 0.05 / math.sqrt(2)
    right = 100 * 2 * half**2 / above
    assert abs(found.value - right) < found.stderr
    assert not found.converged


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("unit", [1e-200, 1e-30, 1e30, 1e200])
def test_measures_of_tiny_and_huge_losses(name, unit):
    """1e200 Σ w has a rise, and slopes whose squares no float64 holds."""
    x, measure = np.array([0.5, -0.25, 1.0]), MEASURES[name]
    slope = FunctionObjective(lambda w: unit * (w + 3).sum(), 3)
    base, half = unit * 10.25, 1e-3 * (np.abs(x) + (name != "adaptive"))
    rise = unit * {"SAM": 1e-3 * math.sqrt(3), "average": 0}.get(name, half.sum())
    found = measure(slope, x, epsilon=1e-3)
    assert found.value == pytest.approx(100 * rise / (1 + base), rel=1e-9, abs=4 * found.stderr)
    assert found.converged == (name != "average")
    bowl = FunctionObjective(lambda w: unit * (w**2).sum(), 3)
    small, plain = (measure(g, x, epsilon=1e-3) for g in (bowl, BOWL_OF_1))
    rises = [(r.loss_max - r.loss, r.stderr * (1 + r.loss)) for r in (small, plain)]
    assert rises[0] == pytest.approx([unit * part for part in rises[1]], rel=1e-2, abs=0)
    assert small.converged == plain.converged


BOWL_OF_1 = FunctionObjective(lambda w: (w**2).sum(), 3)


def test_a_gradient_whose_norm_underflows_has_a_direction():
    """2e-23 in float32: its square is 0."""
    model = nn.Linear(2, 2, bias=False)
    f = NetworkObjective(model, torch.tensor([[1e-22, 2e-22]]), torch.tensor([0]))
    result = sam(f, torch.zeros(4), epsilon=0.05)
    g = torch.tensor([-1.0, -2.0, 1.0, 2.0])
    np.testing.assert_allclose(result.maximizer, 0.05 * g / g.norm(), rtol=1e-6)
    assert not result.converged  # the rise of 1e-24 drowns in log 2
    huge = FunctionObjective(lambda w: 1e170 * (w @ w), 2)
    step = sam(huge, [3e-10, 4e-10]).maximizer
    np.testing.assert_allclose(step, [0.03, 0.04], rtol=1e-12)


def test_a_direction_that_is_rounding_has_not_converged():
    """Next to a minimum that no float64 hits: with other last places, another gradient."""
    f = FunctionObjective(lambda w: ((w - 0.1) ** 2 * torch.tensor([1.0, 100.0, 1e4])).sum(), 3)
    x = torch.full((3,), 0.1, dtype=F64) + torch.tensor([3e-17, 1.4e-17, 1.5e-17], dtype=F64)
    result = sam(f, x)
    assert not result.converged
    assert sam(f, x + 1e-6).converged


@pytest.mark.parametrize("name", MEASURES)
def test_a_diverged_w_is_named_before_anything_else(name):
    options = {"subspace": 3} if name == "Definition 2" else {}
    with pytest.raises(ValueError, match=r"w has 1 of 3 values that are not .*diverged"):
        MEASURES[name](BOWL, [1.0, np.nan, 0.0], **options)


def test_a_box_that_overflows_is_refused():
    with pytest.raises(ValueError, match="the box of x has 1 of 1 values that are not finite"):
        worst_case(BOWL, X, subspace=torch.full((3, 1), 1e-320, dtype=F64), epsilon=1e20)
