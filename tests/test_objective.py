import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from synthetic import gaussian_classes
from torch import nn
from torch.utils.checkpoint import checkpoint

from lecture6 import curvature, sharpness
from lecture6.models import flat_parameters, local_seed
from lecture6.objective import (
    FunctionObjective,
    NetworkObjective,
    NonDeterministicError,
    _graph_bytes,
)

F64 = torch.float64
N_SAMPLES = 50
DATA = gaussian_classes(N_SAMPLES, 10, shape=(5,), n_classes=3)
IMAGES = gaussian_classes(N_SAMPLES, 10, shape=(2, 6, 6), n_classes=3)


pytestmark = pytest.mark.usefixtures("one_thread")  # nets of 100 weights


def dense():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def normalised():
    norm = nn.BatchNorm1d(6, track_running_stats=False)
    return nn.Sequential(nn.Linear(5, 6), norm, nn.ReLU(), nn.Linear(6, 3))


def convolutional():
    conv, pool = nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(3, 2, padding=1)
    return nn.Sequential(conv, nn.ReLU(), pool, nn.Flatten(), nn.Linear(27, 3))


NETS = {"dense": (dense, DATA), "normalised": (normalised, DATA), "conv": (convolutional, IMAGES)}


def build(name, **options):
    make, data = NETS[name]
    with local_seed(0):
        model = make()
    return NetworkObjective(model, data.x_train, data.y_train, dtype=F64, **options), model


def direction(n, seed=1):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=F64)


def reference(model, data):
    """f as a plain function of the flat vector: weights are put into place by hand."""
    model = copy.deepcopy(model).double().eval()

    def f(w):
        parts, start = {}, 0
        for name, p in model.named_parameters():
            parts[name] = w[start : start + p.numel()].view_as(p)
            start += p.numel()
        logits = torch.func.functional_call(model, parts, data.x_train.double())
        return -logits.log_softmax(1)[torch.arange(N_SAMPLES), data.y_train].mean()

    return f


@pytest.mark.parametrize(
    ("f", "grad", "hessian"),
    [
        # f(w) = w₀³ + 2 w₀ w₁²
        (
            lambda w: w[0] ** 3 + 2 * w[0] * w[1] ** 2,
            lambda a, b: [3 * a**2 + 2 * b**2, 4 * a * b],
            lambda a, b: [[6 * a, 4 * b], [4 * b, 4 * a]],
        ),
        (
            lambda w: 100 * (w @ w),
            lambda a, b: [200 * a, 200 * b],
            lambda a, b: [[200, 0], [0, 200]],
        ),
        (lambda w: 3 * w[0] - w[1], lambda a, b: [3, -1], lambda a, b: [[0, 0], [0, 0]]),
    ],
    ids=["cubic", "quadratic", "linear"],
)
def test_function_objective_has_the_closed_form_derivatives(f, grad, hessian):
    objective, w, v = FunctionObjective(f, 2), torch.tensor([0.7, -1.3], dtype=F64), direction(2)
    a, b = w.tolist()
    assert objective.value(w) == pytest.approx(f(w).item(), rel=1e-15)
    torch.testing.assert_close(objective.grad(w), torch.tensor(grad(a, b), dtype=F64))
    torch.testing.assert_close(objective.hvp(w, v), torch.tensor(hessian(a, b), dtype=F64) @ v)
    value, gradient = objective.value_and_grad(w)
    assert value == objective.value(w)
    assert torch.equal(gradient, objective.grad(w))


@pytest.mark.parametrize("name", NETS)
def test_value_gradient_and_hvp_agree_with_the_full_float64_hessian(name):
    objective, model = build(name)
    f, w = reference(model, NETS[name][1]), objective.w
    v = direction(objective.n_params)
    assert objective.value(w) == pytest.approx(f(w).item(), rel=1e-12)
    gradient = torch.autograd.functional.jacobian(f, w)
    torch.testing.assert_close(objective.grad(w), gradient, rtol=1e-9, atol=1e-12)
    hessian = torch.autograd.functional.hessian(f, w)
    assert hessian.norm() > 0.1
    torch.testing.assert_close(objective.hvp(w, v), hessian @ v, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["dense", "conv"])
def test_gradient_and_hvp_are_differences_of_value_and_gradient(name):
    objective, _ = build(name)
    w, v, h = objective.w, direction(objective.n_params), 1e-5
    slope = (objective.value(w + h * v) - objective.value(w - h * v)) / (2 * h)
    assert (objective.grad(w) @ v).item() == pytest.approx(slope, rel=1e-6)
    change = (objective.grad(w + h * v) - objective.grad(w - h * v)) / (2 * h)
    torch.testing.assert_close(objective.hvp(w, v), change, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["dense", "conv"])
@pytest.mark.parametrize("batch_size", [1, 7, 49])
def test_an_uneven_last_batch_changes_nothing(name, batch_size):
    whole, _ = build(name)
    cut, _ = build(name, batch_size=batch_size)
    assert len(cut._batches) == -(-N_SAMPLES // batch_size)
    w, v = whole.w, direction(whole.n_params)
    assert cut.value(w) == pytest.approx(whole.value(w), rel=1e-12)
    assert cut.evaluate(w) == pytest.approx(whole.evaluate(w), rel=1e-12)
    for ours, exact in ((cut.grad(w), whole.grad(w)), (cut.hvp(w, v), whole.hvp(w, v))):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NETS)
def test_value_and_accuracy_are_those_of_the_model(name):
    make, data = NETS[name]
    with local_seed(0):
        model = make()
    objective = NetworkObjective(model, data.x_train, data.y_train)
    assert objective.dtype == torch.float32
    with torch.no_grad():
        logits = model.eval()(data.x_train)
    loss, accuracy = objective.evaluate(objective.w)
    assert loss == pytest.approx(F.cross_entropy(logits, data.y_train).item(), rel=1e-6)
    assert accuracy == (logits.argmax(1) == data.y_train).double().mean().item()
    assert objective.value(objective.w) == loss


def test_batch_norm_uses_the_statistics_of_each_points_own_activations():
    objective, _ = build("normalised")
    scaled = objective.w.clone()
    scaled[:36] *= 1000  # weights and bias in front of the batch norm: it takes the scale out
    assert objective.value(scaled) == pytest.approx(objective.value(objective.w), rel=1e-3)
    half, _ = build("normalised", batch_size=25)  # other companions: another function
    assert abs(half.value(half.w) - objective.value(half.w)) > 1e-6


def test_running_statistics_are_neither_used_up_nor_updated():
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    objective = NetworkObjective(model, DATA.x_train, DATA.y_train, dtype=F64)
    first = objective.value_and_grad(objective.w)
    objective.hvp(objective.w, direction(objective.n_params))
    again = objective.value_and_grad(objective.w)
    assert first[0] == again[0]
    assert torch.equal(first[1], again[1])


@pytest.mark.parametrize("training", [True, False])
def test_the_model_given_is_not_touched(training):
    model = normalised().train(training)
    before = copy.deepcopy(model.state_dict())
    objective = NetworkObjective(model, DATA.x_train, DATA.y_train, dtype=F64)
    objective.hvp(objective.w + 1, objective.w)
    assert model.training is training
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in model.parameters())


def test_dropout_is_off():
    with local_seed(0):
        model = nn.Sequential(nn.Linear(5, 20), nn.Dropout(0.5), nn.Linear(20, 3)).train()
    objective = NetworkObjective(model, DATA.x_train, DATA.y_train)
    plain = nn.Sequential(model[0], model[2])
    with torch.no_grad():
        loss = F.cross_entropy(plain(DATA.x_train), DATA.y_train).item()
    assert objective.value(objective.w) == pytest.approx(loss, rel=1e-6)


def test_results_have_the_dtype_asked_for_and_points_may_have_any():
    objective, model = build("dense")
    assert objective.grad(objective.w.float()).dtype == F64
    single = NetworkObjective(model, DATA.x_train, DATA.y_train)
    assert single.grad(objective.w).dtype == torch.float32
    torch.testing.assert_close(single.w, flat_parameters(model), rtol=0, atol=0)
    # float64 all the way: the two differ by float32's rounding and not by nothing
    difference = abs(single.value(single.w) - objective.value(objective.w))
    assert 0 < difference < 1e-6


class Recorder(nn.Module):
    """A linear net that notes how many samples each pass sees."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(5, 3), []

    def forward(self, x):
        self.seen.append(len(x))
        return self.layer(x)


def test_memory_is_bounded_by_the_batch():
    """No more activations than one batch's are alive at once, whatever the number of samples."""
    peaks = []
    for n in (40, 400):
        data = gaussian_classes(n, 1, shape=(5,), n_classes=3)
        objective = NetworkObjective(Recorder(), data.x_train, data.y_train, batch_size=20)
        objective.model.seen.clear()
        alive, peak = 0, 0

        class Saved:
            def __init__(self, tensor):
                nonlocal alive, peak
                self.tensor, self.size = tensor, tensor.numel()
                alive += self.size
                peak = max(peak, alive)

            def __del__(self):
                nonlocal alive
                alive -= self.size

        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            objective.hvp(objective.w, objective.w)
        assert objective.model.seen == [20] * (n // 20)
        peaks.append(peak)
    assert 0 < peaks[1] == peaks[0]


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x):
        return self.layer(F.dropout(x, 0.5, training=True))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_random_network_is_refused_with_the_usual_causes(dtype):
    causes = "dropout .* training=True, batch norm .* running statistics, random augmentation"
    with pytest.raises(NonDeterministicError, match=causes):
        NetworkObjective(Noisy(), DATA.x_train, DATA.y_train, dtype=dtype)


@pytest.mark.parametrize("shape", [(40,), (1, 41), ()])
def test_a_vector_of_another_shape_is_refused(shape):
    objective, _ = build("dense")  # 57 parameters
    message = rf"expected a vector of shape \(57,\), got \({', '.join(map(str, shape))}"
    with pytest.raises(ValueError, match=message):
        objective.value(torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        objective.hvp(objective.w, torch.zeros(shape))


def test_impossible_sets_are_refused():
    with pytest.raises(
        ValueError, match=r"of the shape \(50,\), got torch.int64 of the shape \(49,\)"
    ):
        NetworkObjective(dense(), DATA.x_train, DATA.y_train[:49])
    with pytest.raises(ValueError, match="x must hold at least one sample"):
        NetworkObjective(dense(), DATA.x_train[:0], DATA.y_train[:0])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        NetworkObjective(dense(), DATA.x_train, DATA.y_train, batch_size=0)
    mixing = nn.Sequential(nn.BatchNorm1d(5, track_running_stats=False), dense())
    with pytest.raises(ValueError, match="no batch of 1 will do, change batch_size: Expected more"):
        NetworkObjective(mixing, DATA.x_train[:3], DATA.y_train[:3], batch_size=2)


@pytest.mark.parametrize("size", [1e20, 1e25, 3e38])
def test_a_product_beyond_its_precision_is_refused(size):
    f = FunctionObjective(lambda w: 1e19 * (w * w).sum(), 3)
    f.dtype = torch.float32
    with pytest.raises(ValueError, match="a product with the matrix has 3 of 3 values that are no"):
        f.hvp(torch.zeros(3), torch.full((3,), size))


def blocks(objective, of, **options):
    v = torch.stack([direction(objective.n_params, seed) for seed in range(3)])
    return objective.product(objective.w, of=of, **options)(v), v


PRODUCTS = [(n, of) for n in NETS for of in ("hessian", "gauss_newton")]
PRODUCTS += [(n, "covariance") for n in ("dense", "conv")]


@pytest.mark.parametrize(("name", "of"), PRODUCTS)
def test_products_do_not_depend_on_what_is_kept(name, of):
    objective, _ = build(name, batch_size=20)
    found, v = blocks(objective, of)
    for limit in (0, 1, 60_000):
        torch.testing.assert_close(blocks(objective, of, memory_limit=limit)[0], found)
    product = objective.product(objective.w, of=of)
    for row, image in zip(v, found, strict=True):
        torch.testing.assert_close(product(row), image)
    parts = sum(weight * part(v[0], True) for weight, part in product.parts())
    torch.testing.assert_close(parts, found[0])
    sizes = [17, 17, 16] if of in ("hessian", "gauss_newton") else [20, 20, 10]
    weights = [-1.0] * (of == "covariance") + [size / 50 for size in sizes]
    assert [weight for weight, _ in product.parts()] == pytest.approx(weights)


def passes(limit, n_products):
    data = gaussian_classes(100, 1, shape=(5,), n_classes=3)
    objective = NetworkObjective(Recorder(), data.x_train, data.y_train, batch_size=20, dtype=F64)
    objective.check_derivatives(2)
    objective.model.seen.clear()
    product = objective.product(objective.w, memory_limit=limit)
    for _ in range(n_products):
        product(direction(objective.n_params))
    return len(objective.model.seen)


def test_kept_graphs_need_one_pass_and_the_others_one_a_product():
    assert passes(0, 4) == 5 * 4
    assert passes(1 << 28, 4) == 5
    assert 5 < passes(4000, 4) < 5 * 4


def test_graph_bytes_counts_what_the_backward_pass_keeps():
    w = torch.ones(1000, dtype=F64, requires_grad=True)
    assert _graph_bytes(w * 2) == 2 * 8000 + 8  # both ends, and the number 2
    assert _graph_bytes(w.exp().sum()) == 2 * 8000 + 8
    # exp's result is kept twice, and counted once
    assert _graph_bytes((w.exp() * w).sum()) == 2 * 8000 + 8


def test_slices_say_where_each_parameter_lies():
    objective, model = build("dense")
    assert list(objective.slices) == [name for name, _ in model.named_parameters()]
    for name, p in model.named_parameters():
        torch.testing.assert_close(objective.w[objective.slices[name]], p.double().flatten())


def test_products_refuse_other_shapes_and_other_matrices():
    objective, _ = build("dense")
    product = objective.product(objective.w)
    for shape in ((56,), (2, 56), (1, 1, 57)):
        with pytest.raises(ValueError, match=r"expected vectors of shape \(57,\) or \(k, 57\)"):
            product(torch.zeros(shape))
    with pytest.raises(ValueError, match="got 'fisher'"):
        objective.product(objective.w, of="fisher")
    toy = FunctionObjective(lambda w: (w**2).sum(), 2)
    with pytest.raises(ValueError, match="for networks"):
        toy.product(torch.zeros(2), of="gauss_newton")


@pytest.mark.parametrize("name", ["dense", "conv"])
@pytest.mark.parametrize("batch_size", [2, 50])
def test_a_mini_batch_is_the_loss_of_its_samples(name, batch_size):
    objective, model = build(name, batch_size=batch_size)
    data, index = NETS[name][1], torch.tensor([4, 0, 49, 4])
    alone = NetworkObjective(model, data.x_train[index], data.y_train[index], dtype=F64)
    batch = objective.on(index)
    assert len(batch._batches) == (2 if batch_size == 2 else 1)
    assert batch.value(objective.w) == pytest.approx(alone.value(alone.w), rel=1e-12)
    torch.testing.assert_close(batch.grad(objective.w), alone.grad(alone.w))
    assert objective.n_samples == N_SAMPLES


@pytest.mark.parametrize("name", ["dense", "conv"])
@pytest.mark.parametrize("most", [None, 9, 50])
def test_gradients_of_the_samples_in_their_order(name, most):
    objective, _ = build(name, batch_size=20)
    found = list(objective.sample_gradients(objective.w, most=most))
    assert len(found) == {None: 3, 9: 6, 50: 1}[most]
    rows = [objective.on(torch.tensor([i])).grad(objective.w) for i in range(N_SAMPLES)]
    torch.testing.assert_close(torch.cat([g.matrix() for g in found]), torch.stack(rows))


def test_the_samples_of_a_piece_are_fewer_where_their_gradients_are_large(monkeypatch):
    objective, _ = build("conv", batch_size=20)
    monkeypatch.setattr("lecture6.objective.PIECE", 6 * objective.per_sample.loose - 1)
    found = list(objective.sample_gradients(objective.w))
    assert [len(g.matrix()) for g in found] == [5] * 10
    assert objective.per_sample.loose > 0


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_gradients_of_mixed_samples_are_refused(dtype):
    model, data = normalised(), NETS["normalised"][1]
    objective = NetworkObjective(model, data.x_train, data.y_train, dtype=dtype)
    with pytest.raises(ValueError, match=r'mixes the samples .* batch_norm="running"'):
        objective.product(objective.w, of="covariance")


# A loss of one's own


class Each(nn.Module):
    """Tokens (n, T) to logits (n, T, 3)."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.embedding(x).tanh().cumsum(1))


def line():
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0))


def random(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


WORDS = torch.randint(7, (20, 6), generator=torch.Generator().manual_seed(2))
X, LABELS = DATA.x_train[:20], DATA.y_train[:20]
OWN = {  # net, inputs, labels, loss
    "squares (n, k)": (dense, X, random(20, 3), F.mse_loss),
    "a module, float64 labels": (dense, X, random(20, 3).double(), nn.MSELoss()),
    "Huber (n,)": (line, X, random(20), F.huber_loss),
    "yes or no": (line, X, random(20) > 0, lambda z, y: F.softplus(torch.where(y, -z, z)).mean()),
    "tokens": (Each, WORDS, WORDS % 3, lambda z, y: F.cross_entropy(z.transpose(1, 2), y)),
    "probabilities": (dense, X, random(20, 3).softmax(1), F.cross_entropy),
    "not convex": (dense, X, random(20, 3).numpy(), lambda z, y: (z - y).square().tanh().mean()),
}


def own(name, dtype=F64, **options):
    make, x, y, loss = OWN[name]
    with local_seed(0):
        model = make()
    return NetworkObjective(model, x, y, loss=loss, dtype=dtype, **options)


def own_reference(name, f):
    """The loss of the whole set, and of its outputs, as plain functions."""
    _, x, y, loss = OWN[name]
    x, y = (t.double() if t.is_floating_point() else t for t in map(torch.as_tensor, (x, y)))

    def outputs(w):
        parts = dict(zip(f.shapes, w.split([s.numel() for s in f.shapes.values()]), strict=True))
        parts = {n: p.view(f.shapes[n]) for n, p in parts.items()}
        return torch.func.functional_call(f.model, parts, x)

    return outputs, lambda z, i=slice(None): loss(z[i], y[i])


@pytest.mark.parametrize("name", OWN)
def test_a_loss_of_ones_own_has_all_derivatives(name):
    f = own(name, batch_size=7)
    outputs, loss = own_reference(name, f)
    w, eye = f.w, torch.eye(f.n_params, dtype=F64)
    whole = lambda w: loss(outputs(w))  # noqa: E731
    assert f.value(w) == pytest.approx(whole(w).item(), rel=1e-12)
    assert f.evaluate(w) == pytest.approx((f.value(w), float("nan")), nan_ok=True)
    close = {"rtol": 1e-8, "atol": 1e-11}
    torch.testing.assert_close(f.grad(w), torch.autograd.functional.jacobian(whole, w), **close)
    hessian = torch.autograd.functional.hessian(whole, w)
    torch.testing.assert_close(f.product(w)(eye), hessian, **close)
    z = outputs(w).detach()
    j = torch.autograd.functional.jacobian(outputs, w).flatten(0, -2)
    inner = torch.autograd.functional.hessian(lambda z: loss(z), z).reshape(len(j), len(j))
    torch.testing.assert_close(f.product(w, of="gauss_newton")(eye), j.T @ inner @ j, **close)
    n = len(OWN[name][1])
    g = torch.stack([_gradient(lambda w, i=i: loss(outputs(w), [i]), w) for i in range(n)])
    torch.testing.assert_close(torch.cat([s.matrix() for s in f.sample_gradients(w)]), g, **close)
    covariance = f.product(w, of="covariance")(eye)
    torch.testing.assert_close(covariance, torch.cov(g.T, correction=0), **close)
    small = own(name, torch.float32)
    v = direction(f.n_params)
    torch.testing.assert_close(small.hvp(w, v).double(), hessian @ v, rtol=1e-3, atol=1e-5)


def _gradient(f, w):
    return torch.autograd.functional.jacobian(f, w)


def test_cross_entropy_given_is_the_default():
    f = NetworkObjective(dense(), X, DATA.y_train[:20], dtype=F64)
    g = NetworkObjective(f.model, X, DATA.y_train[:20], loss=F.cross_entropy, dtype=F64)
    v = direction(f.n_params)
    assert f.value(f.w) == g.value(f.w)
    for of in ("hessian", "gauss_newton", "covariance"):
        images = [each.product(f.w, of=of)(v) for each in (f, g)]
        torch.testing.assert_close(*images, rtol=1e-12, atol=1e-14)


WEIGHTED = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 1.0], dtype=F64))


@pytest.mark.parametrize(
    ("y", "loss", "message"),
    [
        (random(20, 3), nn.MSELoss(reduction="sum"), 'mean over samples: of 20 .*reduction="sum"'),
        (DATA.y_train[:20], WEIGHTED, "mean over samples.* class weights"),
        (WORDS[:, 0] % 4 - 1, nn.CrossEntropyLoss(ignore_index=-1), "mean over samples"),
        (random(20, 3), nn.MSELoss(reduction="none"), r"must make one number .*\(20, 3\)"),
        (random(20, 4), F.mse_loss, r"one number of outputs .* \(20, 3\) and y .* \(20, 4\)"),
        (random(20, 3), 3.0, "one number of outputs .*not callable"),
        (random(20, 3) * float("nan"), F.mse_loss, "y has 60 of 60 values that are not finite"),
        (random(20, 3), lambda z, y: (z - y).mean().sqrt() * 0 / 0, "mean over samples"),
        (random(19, 3), F.mse_loss, r"y must have 20 rows as x: got \(19, 3\)"),
        (random(20, 3).to_sparse(), F.mse_loss, r"x and y must not be sparse: call to_dense\(\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_what_is_no_mean_over_samples_is_refused(y, loss, message):
    with local_seed(0), pytest.raises(ValueError, match=message):
        NetworkObjective(dense(), X, y, loss=loss, dtype=F64)


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_outputs_that_are_spread_over_labels_are_refused():
    """(n, 1) − (n,) is (n, n): the classic trap of a regression."""
    with local_seed(0), pytest.raises(ValueError, match=r"outputs \(n, 1\) beside y \(n,\)"):
        NetworkObjective(nn.Linear(5, 1), X, random(20), loss=F.mse_loss)
    with pytest.raises(ValueError, match=r"one floating tensor \(n, ...\), got tuple"):
        NetworkObjective(nn.LSTM(5, 1), X, random(20), loss=F.mse_loss)


# Any network: a brute-force Hessian by differences of the gradient of the module itself


class Attention(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embedding, self.kind = nn.Embedding(7, 4), kind
        self.inside = {
            "fused": lambda: nn.Linear(4, 12),
            "heads": lambda: nn.MultiheadAttention(4, 2, batch_first=True),
            "encoder": lambda: nn.TransformerEncoderLayer(
                4, 2, 8, batch_first=True, activation="gelu"
            ),
            "padded": lambda: nn.TransformerEncoder(
                nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, activation="gelu"), 2
            ),
            "LSTM": lambda: nn.LSTM(4, 4, batch_first=True),
            "GRU": lambda: nn.GRU(4, 4, batch_first=True),
        }[kind]()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        z = self.embedding(x)
        if self.kind == "fused":
            z = F.scaled_dot_product_attention(*self.inside(z).chunk(3, -1), is_causal=True)
        elif self.kind == "heads":
            z = self.inside(z, z, z, need_weights=False)[0]
        elif self.kind == "padded":
            z = self.inside(z, src_key_padding_mask=x == 0)
        else:
            z = self.inside(z)
        return self.head((z[0] if isinstance(z, tuple) else z).mean(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.c(self.b(self.a(x).tanh()).tanh())


class CompiledInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.act = nn.Linear(5, 3), torch.compile(torch.tanh, backend="aot_eager")

    def forward(self, x):
        return self.act(self.layer(x))


def weight_norm():
    norm, spectral = nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm
    layers = [norm(nn.Linear(5, 4)), nn.Tanh(), spectral(nn.Linear(4, 4)), nn.Tanh()]
    return nn.Sequential(*layers, norm(nn.Linear(4, 3), dim=None))


def compiled():
    return torch.compile(dense(), backend="aot_eager")


TEXT = ["fused", "heads", "encoder", "padded", "LSTM", "GRU"]
ANY = {name: (lambda name=name: Attention(name), WORDS) for name in TEXT}
ANY |= {"weight norm": (weight_norm, X), "tied": (Tied, X)}
ANY |= {"compiled": (compiled, X), "compiled inside": (CompiledInside, X)}


@pytest.mark.parametrize("name", ANY)
def test_curvature_of_any_network(name):
    make, x = ANY[name]
    with local_seed(0):
        model = make().eval()
    f = NetworkObjective(model, x, WORDS[:, 1] % 3, dtype=F64, batch_size=8)
    assert f.n_params == sum(p.numel() for p in model.parameters())  # a tied weight is one
    plain = copy.deepcopy(getattr(model, "_orig_mod", model)).double()
    x = x.double() if x.is_floating_point() else x

    def gradient(w):
        nn.utils.vector_to_parameters(w, plain.parameters())
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            loss = F.cross_entropy(plain(x), WORDS[:, 1] % 3)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, plain.parameters())])

    w, v, h = f.w, direction(f.n_params), 1e-5
    torch.testing.assert_close(f.grad(w), gradient(w), rtol=1e-9, atol=1e-12)
    change = (gradient(w + h * v) - gradient(w - h * v)) / (2 * h)
    torch.testing.assert_close(f.hvp(w, v), change, rtol=1e-5, atol=1e-7)
    assert f.value(w) == pytest.approx(f.value_and_grad(w)[0], rel=1e-14)
    small = NetworkObjective(model, x, WORDS[:, 1] % 3, dtype=torch.float32)
    for of in ("hessian", "gauss_newton"):
        images = [each.product(each.w, of=of)(v).double() for each in (f, small)]
        torch.testing.assert_close(*images, rtol=1e-3, atol=1e-5)
    u = direction(f.n_params, seed=2)
    sides = [(u @ f.product(w, of="gauss_newton")(v)).item(), (v @ f.hvp(w, u)).item()]
    assert sides[0] == pytest.approx((v @ f.product(w, of="gauss_newton")(u)).item(), rel=1e-9)
    assert sides[1] == pytest.approx((u @ f.hvp(w, v)).item(), rel=1e-9)
    if name in ("LSTM", "GRU"):
        with pytest.raises(ValueError, match=r"torch.func.vmap does not take it, .* recurrent"):
            f.product(w, of="covariance")
    else:
        rows = torch.cat([g.matrix() for g in f.sample_gradients(w)])
        alone = [f.on(torch.tensor([i])).grad(w) for i in range(20)]
        torch.testing.assert_close(rows, torch.stack(alone), rtol=1e-9, atol=1e-12)


class Square(torch.autograd.Function):
    """x², whose backward pass has a derivative, or none, or is another function's."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


class SquareOnce(Square):
    backward = staticmethod(torch.autograd.function.once_differentiable(Square.backward))


class AnotherBackward(Square):
    backward = staticmethod(lambda ctx, g: ctx.saved_tensors[0] * g)


class Between(nn.Module):
    """Two layers, and a function of the first and of what it makes of the inputs."""

    def __init__(self, function, first=None):
        super().__init__()
        self.first, self.head = first or nn.Linear(5, 4), nn.Linear(4, 3)
        self.function = function

    def forward(self, x):
        return self.head(self.function(self.first, x))


def unrecorded(layer, x):
    with torch.no_grad():
        return layer(x).tanh()


def straight_through(layer, x):
    z = layer(x)
    return z + (z.sign() - z).detach()


RECOMPUTED = partial(checkpoint, use_reentrant=False)
NO_GRADIENT = {
    "recomputed": lambda layer, x: RECOMPUTED(lambda z: layer(z).tanh(), x),
    "detached": lambda layer, x: layer(x).tanh().detach() + 0 * layer(x),
    "unrecorded": unrecorded,
    "straight through": straight_through,
    "another backward": lambda layer, x: AnotherBackward.apply(layer(x)),
}


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("name", NO_GRADIENT)
def test_a_gradient_that_is_not_that_of_the_loss_is_refused(name, dtype):
    with local_seed(78):
        f = NetworkObjective(Between(NO_GRADIENT[name]), X, LABELS, dtype=dtype)
    assert math.isfinite(f.value(f.w))
    part = curvature.Restriction(f, f.w, slice(0, 5))
    with pytest.raises(ValueError, match=r"order 1 is not that of the loss"):
        part.grad(part.w)
    for derivative in (f.grad, f.value_and_grad, f.sample_gradients, partial(f.hvp, v=f.w)) * 2:
        with pytest.raises(ValueError, match=r"order 1 is not that of the loss"):
            derivative(f.w)


def test_a_second_derivative_that_is_not_that_of_the_loss_is_refused():
    f = NetworkObjective(Between(lambda layer, x: SquareOnce.apply(layer(x))), X, LABELS, dtype=F64)
    twice = NetworkObjective(f.model, X, LABELS, dtype=F64)
    twice.model.function = lambda layer, x: Square.apply(layer(x))
    torch.testing.assert_close(f.grad(f.w), twice.grad(f.w))
    for measure in (curvature.trace, curvature.eigenvalues, curvature.spectral_density):
        with pytest.raises(ValueError, match=r"order 2 .*\(once_differentiable\)"):
            measure(f, f.w)
    assert curvature.eigenvalues(twice, f.w).converged


def test_a_layer_that_torch_differentiates_once_has_a_gradient_and_no_curvature():
    net = Between(lambda layer, x: layer(x).tanh(), nn.EmbeddingBag(7, 4, mode="max"))
    f = NetworkObjective(net, WORDS, WORDS[:, 1] % 3, dtype=F64)
    v, h = direction(f.n_params), 1e-7
    slope = (f.value(f.w + h * v) - f.value(f.w - h * v)) / (2 * h)
    assert (f.grad(f.w) @ v).item() == pytest.approx(slope, rel=1e-5)
    with pytest.raises(ValueError, match=r"order 2 .*: .*bag"):
        f.hvp(f.w, v)


class Masked(nn.Module):
    """What it leaves out of a mean, and of its loss, is said by its embedding."""

    def __init__(self, **options):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4, **options), nn.Linear(4, 3)

    def forward(self, x):
        padding = self.embedding.padding_idx
        kept = (x != (-1 if padding is None else padding))[..., None]
        return self.head((self.embedding(x).tanh() * kept).sum(1) + self.embedding(x[:, 0]))


EMBEDDINGS = [{"padding_idx": 0}, {"scale_grad_by_freq": True}, {"sparse": True}]


@pytest.mark.parametrize("options", EMBEDDINGS, ids=lambda options: next(iter(options)))
def test_an_embedding_has_the_gradients_of_its_outputs(options):
    """The row of what is padding, too: as a function of all weights the loss depends on it."""
    labels = WORDS[:, 1] % 3
    with local_seed(0):
        model = Masked(**options)
    f = NetworkObjective(model, WORDS, labels, dtype=F64)
    w = f.w + 0.1 * direction(f.n_params, seed=3)
    plain = copy.deepcopy(model).double()
    nn.utils.vector_to_parameters(w, plain.parameters())
    assert f.value(w) == pytest.approx(F.cross_entropy(plain(WORDS), labels).item(), rel=1e-14)
    slopes = torch.empty_like(w)
    for i, v in enumerate(torch.eye(f.n_params, dtype=F64)):
        slopes[i] = (f.value(w + 1e-5 * v) - f.value(w - 1e-5 * v)) / 2e-5
    torch.testing.assert_close(f.grad(w), slopes, rtol=1e-6, atol=1e-9)
    v = direction(f.n_params)
    change = (f.grad(w + 1e-5 * v) - f.grad(w - 1e-5 * v)) / 2e-5
    torch.testing.assert_close(f.hvp(w, v), change, rtol=1e-6, atol=1e-8)
    rows = torch.cat([g.matrix() for g in f.sample_gradients(w)])
    torch.testing.assert_close(rows.mean(0), f.grad(w), rtol=1e-9, atol=1e-12)
    assert all(getattr(model.embedding, name) == value for name, value in options.items())


def test_a_loss_of_ones_own_is_compared_with_its_derivatives_too():
    def detached(z, y):
        return (z * z.detach()).mean()

    f = NetworkObjective(dense(), X, LABELS, loss=detached, dtype=F64)
    with pytest.raises(ValueError, match=r"order 1 is not that of the loss"):
        f.grad(f.w)


def test_a_kink_between_the_ends_of_a_difference_is_no_wrong_derivative():
    """A unit that is zero at the weights themselves, and many kinks everywhere."""
    with local_seed(0):
        model = nn.Sequential(nn.Linear(5, 3000), nn.ReLU(), nn.Linear(3000, 3))
    model[0].weight.data[0] = model[0].bias.data[0] = 0.0
    f = NetworkObjective(model, X, LABELS, dtype=F64)
    f.check_derivatives(2)


def test_a_model_that_cannot_be_copied_is_one_clear_error():
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(5, 3)))
    model(X)
    with pytest.raises(ValueError, match=r"cannot be copied.*nn.utils.parametrizations"):
        NetworkObjective(model, X, LABELS)


@pytest.mark.parametrize("jitted", [torch.jit.script, lambda net: torch.jit.trace(net, X)])
def test_a_jitted_model_is_one_clear_error(jitted):
    with pytest.raises(ValueError, match="give the module before it"):
        NetworkObjective(jitted(dense()), X, LABELS)


def test_a_data_parallel_model_is_the_model_inside():
    with local_seed(0):
        model = dense()
    f, g = (NetworkObjective(net, X, LABELS) for net in (nn.DataParallel(model), model))
    assert torch.equal(f.grad(f.w), g.grad(g.w))
    assert list(f.shapes) == list(g.shapes)


def test_a_part_that_is_called_module_is_a_part():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.scale = dense(), nn.Parameter(torch.tensor(3.0))

        def forward(self, x):
            return self.scale * self.module(x)

    f = NetworkObjective(Holder(), X, LABELS)
    assert f.n_params == 1 + sum(p.numel() for p in dense().parameters())


def test_the_settings_of_torch_are_as_they_were():
    f = NetworkObjective(Attention("encoder"), WORDS, WORDS[:, 1] % 3)
    f.hvp(f.w, f.w)
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cudnn.enabled


# What mixes samples, and what is frozen


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("gain", [0.0, 1e-12])
@pytest.mark.parametrize("kind", ["conv", "dense", "residual"])
def test_a_head_of_zeros_does_not_hide_that_samples_are_mixed(kind, gain, dtype):
    """Its outputs do not depend on the batch, and its gradient does."""
    with local_seed(0):
        if kind == "conv":
            first = nn.Conv2d(2, 3, 3, padding=1)
            norm = nn.BatchNorm2d(3, track_running_stats=False)
            net, data = nn.Sequential(first, norm, nn.ReLU(), nn.Flatten()), IMAGES
            head = nn.Linear(108, 3)
        elif kind == "dense":
            norm = nn.BatchNorm1d(6, track_running_stats=False)
            net, data = nn.Sequential(nn.Linear(5, 6), norm, nn.Tanh()), DATA
            head = nn.Linear(6, 3)
        else:
            norm = nn.BatchNorm2d(2, track_running_stats=False)
            net, data = nn.Sequential(Residual(norm), nn.Flatten()), IMAGES
            head = nn.Linear(72, 3)
    if kind != "residual":
        head.weight.data *= gain
    else:
        norm.weight.data *= gain
    model = nn.Sequential(net, head)
    f = NetworkObjective(model, data.x_train, data.y_train, dtype=dtype)
    with pytest.raises(ValueError, match=r'mixes the samples .* batch_norm="running"'):
        list(f.sample_gradients(f.w))


class Residual(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), norm

    def forward(self, x):
        return x + self.norm(self.conv(x))


def test_what_is_not_frozen_is_named():
    model = dense()
    model[0].requires_grad_(False)
    f = NetworkObjective(model, X, DATA.y_train[:20], dtype=F64)
    assert f.trainable.tolist() == list(range(36, 57))
    assert (
        NetworkObjective(model[0].requires_grad_(False), X, DATA.y_train[:20]).trainable.numel()
        == 0
    )


@pytest.mark.parametrize("frozen", [["0.weight", "0.bias"], ["2.bias"], ["0.bias", "2.weight"]])
def test_curvature_of_what_is_not_frozen_is_that_of_its_block(frozen):
    with local_seed(0):
        model = dense()
    for name, p in model.named_parameters():
        p.requires_grad_(name not in frozen)
    f = NetworkObjective(model, X, LABELS, dtype=F64)
    free = np.concatenate(
        [np.full(p.numel(), p.requires_grad) for p in model.parameters()]
    ).nonzero()[0]
    assert f.trainable.tolist() == free.tolist()
    block = curvature.matrix(f, f.w)[np.ix_(free, free)]
    part = curvature.Restriction(f, f.w, f.trainable)
    top, x = curvature.eigenvalues(part, part.w, 2), part.w
    np.testing.assert_allclose(top.values, np.linalg.eigvalsh(block)[:-3:-1], rtol=1e-3)
    trace = curvature.trace(part, x, n_products=20)
    assert abs(trace.value - np.trace(block)) < 4 * trace.stderr
    found, whole = (sharpness.worst_case(g, w, epsilon=1e-2) for g, w in ((part, x), (f, f.w)))
    moved = torch.zeros_like(f.w)
    moved[f.trainable] = found.maximizer
    assert f.value(f.w + moved) == pytest.approx(found.loss_max, rel=1e-12)
    assert found.value < whole.value


@pytest.mark.parametrize("inside", ["both", "data", "call"])
def test_inference_mode_changes_nothing(inside):
    model, y = dense(), DATA.y_train[:20]
    expected = NetworkObjective(model, X, y, dtype=F64)
    v = direction(expected.n_params)
    with torch.inference_mode(inside != "call"):
        x = X.clone()
        f = NetworkObjective(model, x, y, dtype=F64)
    with torch.inference_mode(inside != "data"):
        found = f.grad(f.w), f.hvp(f.w, v), f.product(f.w, of="covariance")(v)
    exact = expected.grad(f.w), expected.hvp(f.w, v), expected.product(f.w, of="covariance")(v)
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs)
