"""The edge of SGD against the enumeration of batches, what epochs follow against all orders."""

import itertools

import numpy as np
import pytest
import torch
from scipy import integrate
from test_equilibrium import enumerated_step, random

from lecture6.studies import beyond


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("b", [1, 2, 5, 6])
@pytest.mark.parametrize("d", [2, 9])  # parameters, of 6 samples
def test_the_edge_of_sgd_by_enumeration(d, b, replacement):
    x = random(6, d, seed=7)
    edge = beyond.stability_edge(x, b, replacement=replacement)
    onto = np.linalg.svd(x, full_matrices=False)[2]  # no step leaves the span of the samples

    def radius(lr):
        shrink, _ = enumerated_step(x @ onto.T, np.zeros(6), lr, b, replacement)
        return abs(np.linalg.eigvals(np.mean([np.kron(a, a) for a in shrink], axis=0))).max()

    assert radius(edge) == pytest.approx(1, abs=1e-9)
    assert radius(0.99 * edge) < 1 < radius(1.01 * edge)
    if b == 6 and not replacement:
        assert edge == pytest.approx(2 / np.linalg.eigvalsh(x @ x.T / 6)[-1], rel=1e-12)


def test_the_edge_of_one_direction_and_of_separate_ones():
    h = np.array([0.1, 0.3, 0.2, 6.0, 0.4, 0.3])
    for b in range(1, 7):  # (1 − ηa)² + η²κs² = 1 (Wu, Ma & E 2018)
        kappa = (6 - b) / (b * 5)
        expected = 2 * h.mean() / (h.mean() ** 2 + kappa * h.var())
        found = beyond.stability_edge(np.sqrt(h)[:, None], b, replacement=False)
        assert found == pytest.approx(expected, rel=1e-12)
    for b in range(1, 7):  # each sample has a parameter of its own, of curvature h_i/6
        kappa = 1 / b
        expected = 2 / (h.max() / 6 * (1 + 5 * kappa))
        found = beyond.stability_edge(np.diag(np.sqrt(h)), b, replacement=True)
        assert found == pytest.approx(expected, rel=1e-12)


def test_beyond_the_edge_of_sgd_the_linearised_steps_grow():
    rng, x, walkers = np.random.default_rng(0), random(6, 3, seed=8), 20_000
    edge = beyond.stability_edge(x, 4, replacement=False)
    for factor in (0.9, 1.1):
        w = rng.standard_normal((walkers, 3))
        for _ in range(12):
            index = rng.random((walkers, 6)).argsort(1)[:, :4]
            pull = np.einsum("kbi,kbj,kj->ki", x[index], x[index], w) / 4
            before, w = w, w - factor * edge * pull
        grown = (w**2).sum() / (before**2).sum()
        assert (grown > 1) == (factor > 1)


def after_an_epoch(slopes, w, lr, orders):
    """The mean over all ``orders`` of the batches; ``slopes``: their gradients, (m, d), at w."""
    ends = []
    for order in orders:
        end = w
        for batch in order:
            end = end - lr * slopes(end)[batch]
        ends.append(end)
    return torch.stack(ends).mean(0)


def flow(loss, w, time):
    def fall(_, w):
        return -torch.func.grad(loss)(torch.from_numpy(w)).numpy()

    end = integrate.solve_ivp(fall, (0, time), w.numpy(), method="DOP853", rtol=1e-11, atol=1e-13)
    return torch.from_numpy(end.y[:, -1])


def test_shuffled_epochs_follow_the_modified_loss():
    """Over all orders: the error is of third order, and that of any other loss of second."""
    a, w = torch.from_numpy(random(3, 2, seed=9)), torch.tensor([0.3, -0.2], dtype=torch.float64)

    def losses(w):
        return torch.tanh(a @ w - 1) + (a @ w) ** 4 / 4

    def whole(w):
        return losses(w).mean()[None]

    slopes = torch.func.jacrev(losses)
    shuffled = list(itertools.permutations(range(3)))
    anew = list(itertools.product(range(3), repeat=3))
    order = {}
    for lr in (0.002, 0.001):
        flows = [
            flow(lambda w: losses(w).mean(), w, 3 * lr),
            flow(beyond.modified_loss(whole, lr), w, 3 * lr),
            flow(beyond.modified_loss(losses, lr), w, 3 * lr),
        ]
        for name, orders in (("shuffled", shuffled), ("anew", anew)):
            end = after_an_epoch(slopes, w, lr, orders)
            error = np.array([(end - at).norm().item() for at in flows])
            order[name] = np.log2(order.get(name, error) / error) if lr < 0.002 else error
    assert order["shuffled"] == pytest.approx([2, 2, 3], abs=0.15)
    assert order["anew"] == pytest.approx([2, 3, 2], abs=0.15)


def test_modified_loss_of_parabolas():
    h, c = np.array([1.0, 3.0]), np.array([-1.0, 2.0])
    w = torch.tensor([0.7], dtype=torch.float64)

    def losses(w):
        return torch.from_numpy(h) * (w - torch.from_numpy(c)) ** 2 / 2

    expected = (h * (0.7 - c) ** 2 / 2 + 0.1 / 4 * (h * (0.7 - c)) ** 2).mean()
    found = beyond.modified_loss(losses, 0.1)(w)
    assert found.item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: beyond.stability_edge(np.zeros((3, 2)), 1, replacement=True),
            "the jacobian is 0: every rate is stable",
        ),
        (
            lambda: beyond.stability_edge(np.ones(3), 1, replacement=True),
            r"jacobian must be \(N, d\), got \(3,\)",
        ),
        (lambda: beyond.modified_loss(torch.sum, 0), "lr must be .* above 0, got 0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
