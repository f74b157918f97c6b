"""The checks of the exercises: ``check("3.2", 0.7)`` says whether an answer is right.

Of a wrong answer it says by how much it is off, never what the right one is. ``answers.toml`` has
the answer to every exercise, chapter.number, in the shape that the text names: numbers, or yes and
no.
"""

from __future__ import annotations

import reprlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

_KEY = tomllib.loads(Path(__file__).with_name("answers.toml").read_text("utf8"))
ANSWERS, TOLERANCES = _KEY["answers"], _KEY["tolerances"]  #: by the number of the exercise


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
    right, tolerance = np.asarray(ANSWERS[number]), TOLERANCES.get(number, 0.01)
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
