"""The checks of the exercises: ``check("3.2", 0.7)`` says whether an answer is right.

Of a wrong answer it says by how much it is off, never what the right one is. Those are computed
here, in another way than in the notebook's solution wherever there is one. `ANSWERS` computes the
answer to every exercise, chapter.number, in the shape that the text names: numbers, or yes and no.
`TOLERANCES` are relative; where there is none, it is 1 %.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import nn

from lecture6 import curvature, equilibrium, sharpness, toys
from lecture6.noise_scale import batch_size_for, covariance_factor, noise_scale
from lecture6.objective import FunctionObjective
from lecture6.studies import results, smith


@dataclass(frozen=True)
class Feedback:
    """What `check` says; prints as one line."""

    number: str
    right: bool | None  #: None: there is no answer yet, or none to this question
    words: str

    def __repr__(self) -> str:
        return f"Exercise {self.number}: {self.words}"


def check(number: str | float, value: Any) -> Feedback:
    """Whether ``value`` answers exercise ``number``, and if not, by how much it is off.

    ``value``: a number, or a list, array or tensor of the shape that the exercise asks for; for a
    question of yes and no, of booleans. ``...`` stands where there is no answer yet. Nothing is
    raised: of an unknown number, and of what cannot be an answer (another shape, NaN, a word, 1 and
    0 for yes and no), it says so.
    """
    number, value = str(number).strip(), _plain(value)
    if number not in ANSWERS:
        chapter = [known for known in ANSWERS if known.split(".")[0] == number.split(".")[0]]
        first, *_, last = chapter or ANSWERS
        return Feedback(number, None, f"there is none; the numbers go from {first} to {last}")
    if _lacks_an_entry(value):
        return Feedback(number, None, "no answer yet")
    right, tolerance = np.asarray(ANSWERS[number]()), TOLERANCES.get(number, 0.01)
    given = _given(value, right)
    if isinstance(given, str):
        return Feedback(number, None, given)
    if right.dtype == bool:
        wrong = int((given != right).sum())
        return Feedback(number, not wrong, f"wrong: {wrong} of {right.size}" if wrong else "right")
    errors = (given / right - 1).ravel()
    worst = int(np.abs(errors).argmax())
    allowed = f"({100 * tolerance:g} % is allowed)"
    if abs(errors[worst]) <= tolerance:
        return Feedback(number, True, f"right {allowed}")
    which = f"number {worst + 1}" if right.size > 1 else "it"
    return Feedback(number, False, f"wrong: {which} {_by_how_much(errors[worst])} {allowed}")


def _plain(value: Any) -> Any:
    """``value`` with lists and numbers of Python for tensors, on whatever device, and arrays."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return value.tolist()
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _lacks_an_entry(value: Any) -> bool:
    return value is ... or (isinstance(value, list) and any(map(_lacks_an_entry, value)))


def _given(value: Any, right: np.ndarray) -> np.ndarray | str:
    """The answer as an array like the right one; in words, what is asked for, if it is none."""
    kind = "yes or no, True or False" if right.dtype == bool else "a number"
    kind = f"a list of the shape {right.shape}, each entry {kind}" if right.shape else kind
    asked = f"asks for {kind}; got {' '.join(reprlib.repr(value).split())}"
    try:
        given = np.asarray(value)
    except ValueError:  # rows of different length
        return asked
    if given.dtype.kind not in ("b" if right.dtype == bool else "iuf"):
        return asked
    if given.size == right.size == 1:
        given = given.reshape(right.shape)
    if given.shape != right.shape:
        return f"{asked}, shape {given.shape}"
    return f"{asked}, which has a NaN" if np.isnan(given).any() else given


def _by_how_much(error: float) -> str:
    if error <= -1:
        return "is zero" if error == -1 else "has the wrong sign"
    if error > 1:
        return f"is {1 + error:.3g} times too large"
    if error < -0.5:
        return f"is {1 / (1 + error):.3g} times too small"
    return f"is {100 * abs(error):.2g} % too {'large' if error > 0 else 'small'}"


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
TOLERANCES = {"1.4": 1e-4, "3.1": 1e-3, "3.3": 1e-3, "3.4": 0.2, "4.2": 0.1, "5.4": 0.25}
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
}
