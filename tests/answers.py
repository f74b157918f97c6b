"""The answers to the exercises, each computed in another way than in the notebook's solution.

Wherever there is another. `lecture6/course/answers.toml` must have the same.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import nn

from lecture6 import curvature, equilibrium, sharpness, toys
from lecture6.noise_scale import batch_size_for, covariance_factor, noise_scale
from lecture6.objective import FunctionObjective
from lecture6.studies import beyond, results, smith


def _bits(spectrum: Sequence[float]) -> float:
    """What a minimum costs to name: ½ h δ² = τ leaves an interval of length 2√(2τ/h)."""
    return sum(max(0.0, math.log2(10 / (2 * math.sqrt(0.02 / h)))) for h in spectrum)


def _updates_to_forget() -> int:
    """Updates until the start of a running mean weighs less than 1 %, as PyTorch does it."""
    norm, zeros = nn.BatchNorm1d(1), torch.zeros(2, 1)
    norm.running_mean.fill_(1)
    while norm.running_mean.item() >= 0.01:
        norm(zeros)
    return int(norm.num_batches_tracked)


def _nesterov_edge(m: float) -> float:
    """The ηh at which Nesterov's v ← m v + ηh w, w ← w − ηh w − m v turns unstable."""

    def excess(x: float) -> float:
        return np.abs(np.linalg.eigvals([[1 - x - m * x, -m * m], [x, m]])).max() - 1

    return brentq(excess, 0.5, 2.5)


def _epoch_power() -> float:
    """d log(variance at the end of a shuffled epoch)/d log(ηh), at small ηh."""
    at = (1e-4, 1.01e-4)
    low, high = (equilibrium.epoch_end_variance(x, 64, 4, sampling="epoch") for x in at)
    return math.log(high / low) / math.log(1.01)


def _peak(rate: float) -> float:
    """Smith & Le's optimal batch size at one rate, from the stored peaks at the others."""
    found = smith.optima(results.select(results.load("smith").tables, group="lr", momentum=0.0))
    return rate * float(np.exp(np.log(found.B_opt / found.lr).mean()))


def _modified_minimum() -> float:
    """Of the loss that shuffled epochs of two parabolas follow at η = 0.1, by its derivative."""

    def losses(w: torch.Tensor) -> torch.Tensor:
        return torch.stack([(w - 1) ** 2 / 2, 3 * (w + 1) ** 2 / 2])

    def loss(w: torch.Tensor) -> torch.Tensor:
        return beyond.modified_loss(lambda w: losses(w[0]), 0.1)(w[None])

    slope = torch.func.grad(loss)
    return brentq(lambda w: slope(torch.tensor(w, dtype=torch.float64)).item(), -1, 1)


def _equal_shares() -> list[float]:
    """Where two wells, one higher by 1, of curvatures 1 and 16 hold the same: by (26), exactly."""
    pair = toys.TwoWells((1.0, 16.0), (-1.0, 1.0), (1.0, 0.0))

    def excess(T: float) -> float:
        return float(equilibrium.Gibbs(pair.losses, T, -12, 6).cdf(pair.saddle)) - 0.5

    by_formula = brentq(lambda T: equilibrium.laplace((1.0, 0), (1.0, 16.0), T)[0] - 0.5, 0.1, 2.0)
    return [by_formula, brentq(excess, 0.1, 2.0)]


def _within_5_percent(momentum: float) -> float:
    """The η at which SGD's variance at rest is 5 % more than the equation's, for h = 20."""

    def excess(lr: float) -> float:
        sgd, sde = (
            equilibrium.ou_covariance(20.0, 1.0, lr, 1, momentum=momentum, discrete=discrete)[0, 0]
            for discrete in (True, False)
        )
        return sgd / sde - 1.05

    return brentq(excess, 1e-4, 0.05)


def _without_a_drift() -> float:
    """The stationary density where D = 1 over that where D = 4, without a drift."""
    density = equilibrium.multiplicative_density(lambda w: 0 * w, lambda w: 1 + w, 0.0, 3.0).pdf
    return float(density([0.0])[0] / density([3.0])[0])


_PARABOLA = FunctionObjective(lambda w: 100 * w[0] ** 2, n_params=1)
_PRODUCT = FunctionObjective(lambda w: 0.5 * (w[0] * w[1] - 1) ** 2, n_params=2)
ANSWERS: dict[str, Callable[[], Any]] = {
    # One step
    "0.1": lambda: 10 * math.ceil(285 / 8),
    "0.2": lambda: -0.1 * (0.5 * np.array([-1, -2]) + 0.5 * np.array([0.5, -1])) / 2,  # −s x/2
    "0.3": lambda: [8 * 9, 3.0],  # the deviation of a mean goes as 1/√B
    "0.4": lambda: [2 / 4, 2 * 1.9 / 4],  # 2(1 + m)/h: the edge of the heavy ball
    # Generalization
    "1.1": lambda: 100 * math.sqrt(0.1 * 0.9 / 10_000),  # a binomial's standard deviation
    "1.2": lambda: 100 * (1 - 0.5 * 9 / 10),  # data.Dataset.with_random_labels
    "1.3": lambda: [[True, True], [True, False]],  # found by training
    "1.4": lambda: (0.1 * 60_000 - math.log(20)) / math.log(2),  # Occam's bound, inverted
    # Flatness
    "2.1": lambda: [_bits(spectrum) for spectrum in ((1, 4, 16), (1e-9, 4, 16))],
    "2.2": lambda: [1e-4 * 110, 1e-4 * 200],  # Definition 2 at ε = 10⁻³
    "2.3": lambda: [25**0.25, 2 * math.sqrt(100 * 4)],  # the minimum of T₁/α² + α²T₂
    "2.4": lambda: np.linalg.eigvalsh(curvature.matrix(_PRODUCT, torch.tensor([3.0, 1 / 3])))[-1],
    # Batch size
    "3.1": lambda: 100 * math.ceil(60_000 / 256) / 10,  # the updates of train.train
    "3.2": lambda: sharpness.worst_case(_PARABOLA, [0.3], epsilon=1e-3).value,  # Definition 2
    "3.3": _updates_to_forget,
    "3.4": lambda: 100 * 20**2 / 10_000,  # E[(Σ|a_j·g|)²]/(Σ|g_i|)²
    # Linear scaling
    "4.1": lambda: 32,  # kn against k
    # the ηh at which (1 − ηh)⁸ − (1 − 8ηh) is 10 % less than C(8, 2)(ηh)²
    "4.2": lambda: brentq(lambda x: ((1 - x) ** 8 - (1 - 8 * x)) / (28 * x**2) - 0.9, 1e-3, 0.5),
    "4.3": lambda: 10 * _nesterov_edge(0.9) / 2,  # eigenvalues of the recursion
    "4.4": lambda: [True, False],  # found by training
    # Noise scale
    "5.1": lambda: (
        covariance_factor(6, 2, sampling="without_replacement")
        / covariance_factor(6, 2, sampling="with_replacement")
    ),
    "5.2": lambda: [batch_size_for(noise_scale(0.1, 64, 60_000), 0.1, 60_000, momentum=0.9), 0.01],
    "5.3": lambda: 12 / 0.1,  # the fourth cumulant of a mean
    "5.4": lambda: _peak(1.5),
    "5.5": _epoch_power,
    # Equilibrium
    "6.1": lambda: [_within_5_percent(m) for m in (0.0, 0.9)],
    "6.2": _equal_shares,
    "6.3": lambda: brentq(lambda T: equilibrium.kramers_time(1.0, -1.0, 1.0, T) - 1e4, 0.05, 1.0),
    "6.4": lambda: sum(h * equilibrium.ou_covariance(h, h, 0.05, 1).item() / 2 for h in (1, 30)),
    "6.5": _without_a_drift,
    # Beyond
    "7.1": lambda: 2 / 0.4,
    "7.2": lambda: 2 * (1 + 0.9) / 0.05,
    "7.3": lambda: math.ceil(math.log(1000) / math.log(1.1)),  # |1 − ηλ| = 1.1
    "7.4": lambda: [4 / 10, 4.0],  # of the mean of ten, and of one
    "7.5": _modified_minimum,
}
