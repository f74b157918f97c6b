import copy

import pytest
import torch
import torch.nn.functional as F
from synthetic import gaussian_classes
from torch import nn

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
