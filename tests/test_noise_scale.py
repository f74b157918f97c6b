"""The formulas of noise against enumeration over all batches."""

import itertools

import numpy as np
import pytest
import torch

from lecture6.noise_scale import batch_size_for, covariance_factor, noise_scale

SAMPLINGS = ["with_replacement", "without_replacement", "epoch"]
# gradients of 6 samples, skewed
SMALL = torch.from_numpy(np.random.default_rng(1).standard_normal((6, 3))) ** 3 + 0.4


def all_batches(n, b, sampling):
    if sampling == "with_replacement":
        return list(itertools.product(range(n), repeat=b))
    return list(itertools.combinations(range(n), b))


def psi_of_all(gradients, b, sampling):
    index = torch.tensor(all_batches(len(gradients), b, sampling))
    return gradients[index].mean(1) - gradients.mean(0)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("b", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("units", ["mean", "sum"])
def test_covariance_of_the_fluctuation_by_enumeration(sampling, b, units):
    psi = psi_of_all(SMALL, b, sampling) * (6 if units == "sum" else 1)
    factor = covariance_factor(6, b, sampling=sampling, units=units)
    f = torch.cov(SMALL.T, correction=0)
    torch.testing.assert_close(psi.T @ psi / len(psi), factor * f, atol=1e-12, rtol=1e-12)
    assert psi.mean(0).abs().max() < 1e-12
    if units == "sum":  # with F_u equation (14), and what the lecture's text says
        expected = 36 / b if sampling == "with_replacement" else 6 * (6 / b - 1) * 6 / 5
        assert factor == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("b", [1, 2, 3, 4])  # 4: batches of 4 and 2 samples
def test_a_batch_of_an_epoch_alone_is_one_drawn_without_replacement(b):
    orders = torch.tensor(list(itertools.permutations(range(6))))
    psi = SMALL[orders[:, :b]].mean(1) - SMALL.mean(0)
    expected = covariance_factor(6, b, sampling="epoch") * torch.cov(SMALL.T, correction=0)
    torch.testing.assert_close(psi.T @ psi / 720, expected, atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("b", [1, 2, 4])
def test_the_covariance_of_one_update_is_that_of_the_sde(sampling, b):
    """Equation (23): (η/N) g F, with the F that belongs to g."""
    lr, replacement = 0.7, sampling == "with_replacement"
    psi = psi_of_all(SMALL, b, sampling)
    f = torch.cov(SMALL.T, correction=int(not replacement))
    exact = lr / 6 * noise_scale(lr, b, 6, replacement=replacement) * f
    torch.testing.assert_close(lr**2 * psi.T @ psi / len(psi), exact)


def test_noise_scale_is_equation_24():
    assert noise_scale(0.1, 32, 1024) == pytest.approx(0.1 * 31)
    assert noise_scale(0.1, 32, 1024, replacement=True) == pytest.approx(0.1 * 32)
    assert noise_scale(0.1, 32, 1024, momentum=0.9) == pytest.approx(31)
    assert noise_scale(0.1, 1024, 1024) == 0
    for options in ({}, {"momentum": 0.9}, {"replacement": True}):
        g = noise_scale(0.3, 17, 1000, **options)
        assert batch_size_for(g, 0.3, 1000, **options) == pytest.approx(17)
    assert noise_scale(np.float32(0.5), np.int64(10), np.float64(20)) == 0.5


LR = {"lr": 0.1, "n_train": 100}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: covariance_factor(6, 7, sampling="epoch"), "batch_size .* at most 6, got 7"),
        (lambda: covariance_factor(6, 0, sampling="with_replacement"), "batch_size .* got 0"),
        (lambda: covariance_factor(6, 1.5, sampling="epoch"), "batch_size .* got 1.5"),
        (lambda: covariance_factor(1, 1, sampling="epoch"), "n_train must be at least 2, got 1"),
        (lambda: covariance_factor(6, 2, sampling="shuffle"), "got 'shuffle'"),
        (lambda: covariance_factor(6, 2, sampling="epoch", units="total"), "got 'total'"),
        (lambda: noise_scale(0.1, 101, 100), "batch_size .* at most 100, got 101"),
        (lambda: noise_scale(0.1, np.nan, 100), "batch_size .* got nan"),
        (lambda: noise_scale(-0.1, 10, 100), "lr .* got -0.1"),
        (lambda: noise_scale(0.1, 10, 100, momentum=1.0), "momentum .* below 1, got 1"),
        (lambda: batch_size_for(-1.0, **LR), "g must be .* at least 0, got -1"),
        (lambda: batch_size_for(0.0, **LR, replacement=True), "g must be .* above 0, got 0"),
        (lambda: batch_size_for(50.0, **LR), r"needs 0.2 samples .* raise lr = 0.1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
