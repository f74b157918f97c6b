"""The checks of the exercises: ``check("3.2", 0.7)`` says whether an answer is right.

A wrong answer is told by how much it is off, never what the right one is. Those are computed here,
in another way than in the notebook's solution wherever there is one. `ANSWERS` has an entry for
every exercise, named chapter.number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import nn

from . import curvature, equilibrium, noise, results, sharpness, toys
from .objective import FunctionObjective
from .studies import smith


@dataclass(frozen=True)
class Verdict:
    """What `check` says; prints as one line."""

    number: str
    right: bool | None  #: None: there is no answer yet
    error: float | None  #: of the worst entry, relative to the right one; None for yes and no
    words: str

    def __repr__(self) -> str:
        return f"Exercise {self.number}: {self.words}"


@dataclass(frozen=True)
class Answer:
    """What an exercise asks for: numbers, or yes and no, in the shape that the text names."""

    compute: Callable[[], Any]
    source: str  #: the equation or function that gives it
    tolerance: float = 0.01  #: relative


def check(number: str, value: Any) -> Verdict:
    """Whether ``value`` answers exercise ``number``, and if not, by how much it is off.

    ``value``: a number, or a list, array or tensor of the shape that the exercise asks for; for a
    question of yes and no, of booleans. ``...`` stands where there is no answer yet.

    Raises ValueError for an unknown number, another shape, NaN, or what is not a number (for yes
    and no: not a boolean).
    """
    if number not in ANSWERS:
        chapter = [known for known in ANSWERS if known.split(".")[0] == str(number).split(".")[0]]
        known = f"{(chapter or list(ANSWERS))[0]} to {(chapter or list(ANSWERS))[-1]}"
        raise ValueError(f"there is no exercise {number!r}; the numbers go from {known!r}")
    value = _without_tensors(value)
    if _lacks_an_entry(value):
        return Verdict(number, None, None, "no answer yet")
    answer = ANSWERS[number]
    right = np.asarray(answer.compute())
    given = _given(number, value, right)
    if right.dtype == bool:
        wrong = int((given != right).sum())
        words = "right" if not wrong else f"wrong: {wrong} of {right.size}"
        return Verdict(number, not wrong, None, words)
    errors = (given / right - 1).ravel()
    worst = int(np.abs(errors).argmax())
    error = float(errors[worst])
    allowed = f"({100 * answer.tolerance:g} % is allowed)"
    if abs(error) <= answer.tolerance:
        return Verdict(number, True, error, f"right {allowed}")
    which = f"number {worst + 1}" if right.size > 1 else "it"
    return Verdict(number, False, error, f"wrong: {which} {_by_how_much(error)} {allowed}")


def _without_tensors(value: Any) -> Any:
    """``value`` with a list or a number in the place of every tensor, on whatever device."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_without_tensors(entry) for entry in value]
    return value


def _lacks_an_entry(value: Any) -> bool:
    return value is ... or (isinstance(value, list) and any(map(_lacks_an_entry, value)))


def _given(number: str, value: Any, right: np.ndarray) -> np.ndarray:
    """The answer as an array like the right one."""
    kind = "yes or no (True or False)" if right.dtype == bool else "a number"
    if right.shape:
        kind = f"a list of shape {right.shape}, each entry {kind}"
    try:
        given = np.asarray(value)
    except ValueError:  # rows of different length
        given = np.empty(0, dtype=object)
    if given.dtype.kind not in ("b" if right.dtype == bool else "iuf"):
        raise ValueError(f"exercise {number} asks for {kind}; got {value!r}")
    if given.size == right.size == 1:
        given = given.reshape(right.shape)
    if given.shape != right.shape:
        raise ValueError(f"exercise {number} asks for {kind}; got {value!r}, shape {given.shape}")
    if np.isnan(given).any():
        raise ValueError(f"exercise {number} asks for {kind}; got {value!r}, which has a NaN")
    return given


def _by_how_much(error: float) -> str:
    if error <= -1:
        return "is zero" if error == -1 else "has the wrong sign"
    if error > 1:
        return f"is {1 + error:.3g} times too large"
    if error < -0.5:
        return f"is {1 / (1 + error):.3g} times too small"
    return f"is {100 * abs(error):.2g} % too {'large' if error > 0 else 'small'}"


# ---- the answers ----------------------------------------------------------------------------


def _updates_to_forget() -> int:
    """Updates until the start of a running mean weighs less than 1 %, as PyTorch does it."""
    norm, zeros = nn.BatchNorm1d(1), torch.zeros(2, 1)
    norm.running_mean.fill_(1)
    while norm.running_mean.item() >= 0.01:
        norm(zeros)
    return int(norm.num_batches_tracked)


def _second_order_limit() -> float:
    """The ηh at which (1 − ηh)⁸ − (1 − 8ηh) is 10 % less than C(8, 2)(ηh)²."""
    return brentq(lambda x: ((1 - x) ** 8 - (1 - 8 * x)) / (28 * x**2) - 0.9, 1e-3, 0.5)


def _nesterov_edge(m: float) -> float:
    """The ηh at which Nesterov's v ← m v + ηh w, w ← w − ηh w − m v turns unstable."""

    def radius(x: float) -> float:
        return np.abs(np.linalg.eigvals([[1 - x - m * x, -m * m], [x, m]])).max()

    return brentq(lambda x: radius(x) - 1, 0.5, 2.5)


def _epoch_power() -> float:
    """d log(variance at the end of a shuffled epoch)/d log(ηh), at small ηh."""
    variances = [
        equilibrium.epoch_end_variance(x, 64, 4, sampling="epoch") for x in (1e-4, 1.01e-4)
    ]
    return math.log(variances[1] / variances[0]) / math.log(1.01)


def _peak(rate: float) -> float:
    """Smith & Le's optimal batch size at one rate, from the stored peaks at the others."""
    found = smith.optima(results.select(results.load("smith").tables, group="lr", momentum=0.0))
    return rate * float(np.exp(np.log(found.B_opt / found.lr).mean()))


def _equal_shares(h: float) -> list[float]:
    """Where two wells, one higher by 1, of curvatures h and 16 hold the same: by (26), exactly."""
    pair = toys.TwoWells((h, 16.0), (-1.0, 1.0), (1.0, 0.0))

    def excess(T: float) -> float:
        law = equilibrium.Gibbs(pair.losses, T, -12, 6)
        return law.probability(lambda w: w[:, 0] < pair.saddle) - 0.5

    return [
        brentq(lambda T: equilibrium.laplace((1.0, 0), (h, 16.0), T)[0] - 0.5, 0.1, 2.0),
        brentq(excess, 0.1, 2.0),
    ]


def _product_curvature() -> float:
    """λ_max of ½(w₁w₂ − 1)² at (3, ⅓)."""
    f = FunctionObjective(lambda w: 0.5 * (w[0] * w[1] - 1) ** 2, n_params=2)
    return float(np.linalg.eigvalsh(curvature.matrix(f, torch.tensor([3.0, 1 / 3])))[-1])


def _away() -> float:
    """Definition 2 for 100 x² at x = 0.3."""
    parabola = FunctionObjective(lambda w: 100 * w[0] ** 2, n_params=1)
    return sharpness.keskar(parabola, [0.3], epsilon=1e-3).value


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


ANSWERS = {
    # Generalization
    "1.1": Answer(lambda: 100 * math.sqrt(0.1 * 0.9 / 10_000), "a binomial's standard deviation"),
    "1.2": Answer(lambda: 100 * (1 - 0.5 * 9 / 10), "data.Dataset.with_random_labels"),
    "1.3": Answer(lambda: [[True, True], [True, False]], "found by training"),
    "1.4": Answer(
        lambda: (0.1 * 60_000 - math.log(20)) / math.log(2),
        "Occam's bound, inverted",
        tolerance=1e-4,
    ),
    # Flatness
    "2.1": Answer(
        lambda: [
            sum(max(0.0, math.log2(10 / (2 * math.sqrt(0.02 / h)))) for h in spectrum)
            for spectrum in ((1, 4, 16), (1e-9, 4, 16))
        ],
        "½ h δ² = τ: an interval of length 2√(2τ/h)",
    ),
    "2.2": Answer(lambda: [1e-4 * 110, 1e-4 * 200], "Definition 2 at ε = 10⁻³"),
    "2.3": Answer(lambda: [25**0.25, 2 * math.sqrt(100 * 4)], "the minimum of T₁/α² + α²T₂"),
    "2.4": Answer(_product_curvature, "curvature.matrix"),
    # Batch size
    "3.1": Answer(
        lambda: 100 * math.ceil(60_000 / 256) / 10, "train.sample_batches", tolerance=1e-3
    ),
    "3.2": Answer(_away, "sharpness.keskar"),
    "3.3": Answer(_updates_to_forget, "torch.nn.BatchNorm1d", tolerance=1e-3),
    "3.4": Answer(lambda: 100 * 20**2 / 10_000, "E[(Σ|a_j·g|)²]/(Σ|g_i|)²", tolerance=0.2),
    # Linear scaling
    "4.1": Answer(lambda: 32, "kn against k"),
    "4.2": Answer(_second_order_limit, "the exact gap", tolerance=0.1),
    "4.3": Answer(lambda: 10 * _nesterov_edge(0.9) / 2, "eigenvalues of the recursion"),
    "4.4": Answer(lambda: [True, False], "found by training"),
    # Noise scale
    "5.1": Answer(
        lambda: (
            noise.covariance_factor(6, 2, sampling="without_replacement")
            / noise.covariance_factor(6, 2, sampling="with_replacement")
        ),
        "noise.covariance_factor",
    ),
    "5.2": Answer(
        lambda: [
            noise.batch_size_for(noise.noise_scale(0.1, 64, 60_000), 0.1, 60_000, momentum=0.9),
            0.01,
        ],
        "noise.batch_size_for",
    ),
    "5.3": Answer(lambda: 12 / 0.1, "the fourth cumulant of a mean"),
    "5.4": Answer(lambda: _peak(1.5), "studies.smith.optima", tolerance=0.25),
    "5.5": Answer(_epoch_power, "equilibrium.epoch_end_variance"),
    # Equilibrium
    "6.1": Answer(lambda: [_within_5_percent(m) for m in (0.0, 0.9)], "equilibrium.ou_covariance"),
    "6.2": Answer(lambda: _equal_shares(1.0), "equilibrium.laplace and Gibbs"),
    "6.3": Answer(
        lambda: brentq(lambda T: equilibrium.kramers_time(1.0, -1.0, 1.0, T) - 1e4, 0.05, 1.0),
        "equilibrium.kramers_time",
    ),
    "6.4": Answer(lambda: equilibrium.excess_loss([1.0, 30.0], 0.05, 1), "equilibrium.excess_loss"),
    "6.5": Answer(_without_a_drift, "equilibrium.multiplicative_density"),
}
