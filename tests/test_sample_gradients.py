"""Factored gradients against autograd on one sample at a time, in float64."""

import pytest
import torch
import torch.nn.functional as F
from synthetic import gaussian_classes
from torch import nn

from lecture6.models import flat_parameters, local_seed
from lecture6.sample_gradients import SampleGradients, SamplePass

F64 = torch.float64
DATA = gaussian_classes(50, 10, shape=(5,), n_classes=3)
IMAGES = gaussian_classes(50, 10, shape=(2, 6, 6), n_classes=3)

pytestmark = pytest.mark.usefixtures("one_thread")


def dense():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def convolutional():
    conv, pool = nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(3, 2, padding=1)
    norm = nn.BatchNorm2d(3)  # by running statistics
    return nn.Sequential(conv, norm, nn.ReLU(), pool, nn.Flatten(), nn.Linear(27, 3))


class Odd(nn.Module):
    """The third layer is called twice, the fourth sees three tokens a sample, one is not used."""

    def __init__(self, tied=False, again=False):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(5, 5) for _ in range(4))
        self.last, self.unused = nn.Linear(5, 3, bias=False), nn.Linear(2, 2)
        self.again = again
        if tied:
            self.b.weight = self.a.weight

    def forward(self, x):
        x = self.b(self.a(x).tanh()).tanh()
        if self.again:
            x = F.linear(x, self.b.weight).tanh()
        x = self.c(self.c(x).tanh())
        return self.last(self.d(torch.stack([x, x**2, -x], dim=1)).sum(1))


def build(make, data, dtype=F64):
    with local_seed(0):
        model = make().to(dtype).eval()
    return SamplePass(model, data.x_train, data.y_train), flat_parameters(model)


def random(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize(
    ("make", "data", "factored"),
    [
        (dense, DATA, ["0", "2"]),
        (convolutional, IMAGES, ["5"]),
        (Odd, DATA, ["a", "b", "last"]),
        (lambda: Odd(tied=True), DATA, []),  # these two are found out by the sum of the gradients
        (lambda: Odd(again=True), DATA, []),
    ],
    ids=["dense", "conv", "odd", "tied", "again"],
)
def test_sample_gradients_are_those_of_single_samples(make, data, factored):
    gradients, w = build(make, data)
    x, y = data.x_train[:9].double(), data.y_train[:9]
    parameters, rows = list(gradients.model.parameters()), []
    for i in range(9):
        loss = F.cross_entropy(gradients.model(x[i : i + 1]), y[i : i + 1])
        grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in grads]))
    g, found = torch.stack(rows), gradients(w, x, y)
    torch.testing.assert_close(found.matrix(), g, rtol=1e-10, atol=1e-13)
    v, c = random(len(w)), random(9)
    torch.testing.assert_close(found.dot(v), g @ v, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.combine(c), c @ g, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.squared_norms(), g.square().sum(1), rtol=1e-10, atol=0)
    assert list(gradients.layers) == factored
    starts = [gradients.slices[f"{name}.weight"].start for name in factored]
    assert [weight.start for weight, *_ in found.layers] == starts
    inside = [f"{name}.{part}" for name in factored for part in ("weight", "bias")]
    sizes = {name: p.numel() for name, p in gradients.model.named_parameters()}
    assert gradients.loose == sum(n for name, n in sizes.items() if name not in inside)
    assert found.nbytes < g.nbytes or not factored


def test_gradients_hold_at_other_weights_and_keep_no_graph():
    gradients, w = build(dense, DATA)
    model, w = dense().double(), w + random(len(w))
    nn.utils.vector_to_parameters(w, model.parameters())
    F.cross_entropy(model(DATA.x_train.double()), DATA.y_train).backward()
    exact = torch.cat([p.grad.flatten() for p in model.parameters()])
    found = gradients(w, DATA.x_train, DATA.y_train)
    torch.testing.assert_close(found.combine(random(50) * 0 + 1 / 50), exact)
    assert not any(t.requires_grad for layer in found.layers for t in layer[2:])


@pytest.mark.parametrize("size", [1.0, 1e20, 1e47])
@pytest.mark.parametrize("others", [[3], [3, 0, 3, 1]], ids=["one", "as many"])
def test_differences_keep_the_digits_of_factors_of_any_size(size, others):
    """Where a is large δ is 0 here: the products of one's δ and the other's a would cancel."""
    a = torch.tensor([[size, 1.0], [0.0, 0.0], [0.0, 2.0], [size, 0.0]], dtype=F64)
    delta = torch.tensor([[0.0], [1.0], [3.0], [0.0]], dtype=F64)

    def gradients(rows):
        return SampleGradients([(slice(0, 2), slice(2, 3), a[rows], delta[rows])], [], 3)

    mine = gradients([0, 1, 2, 3])
    exact, found = mine.matrix() - gradients(others).matrix(), mine.minus(gradients(others))
    torch.testing.assert_close(found.matrix(), exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.squared_norms(), exact.square().sum(1), rtol=1e-12, atol=0)
