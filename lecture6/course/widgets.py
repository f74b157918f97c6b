"""Explorers: controls, and one pure function from their values to a figure.

With a kernel the function is called for the values chosen; in the rendered book, where no kernel
runs, it is called for every combination beforehand. Which of the two is decided here, by the
environment variable ``LECTURE6_STATIC`` that the book's build sets, never in a notebook.
"""

from __future__ import annotations

import base64
import functools
import gzip
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from traitlets import Dict, List, Unicode, Union

from lecture6 import checks
from lecture6.course.explorables import Explorable

_FEW = 3  # numbers that are buttons, as words are; of more, a slider


class Explorer(Explorable):
    """A figure, and controls that choose its values.

    `explorer.js` says what its traits are.
    """

    controls = List().tag(sync=True, start=True)
    at = List().tag(sync=True, start=True)
    figure = Dict(allow_none=True).tag(sync=True, start=True)
    states = List().tag(start=True)
    parts = List().tag(start=True)


class Predict(Explorer):
    """A question, and the figure that answers it once the reader has guessed, or skipped.

    What is asked for is a choice, if there are ``options``, a curve, if there are ``knots``, or the
    height of a point. ``axes`` are the chart of the latter two: ``{"x": {"label": "Batch size",
    "low": 16, "high": 512, "log": True, "at": [16, 512]}, "y": …}``, where ``at``, the ticks, and
    ``log`` may be left out. ``knots`` are where the curve is drawn. ``truth`` is a key of
    ``options``, a point (x, y), or the points of a curve. ``says`` has one sentence for each key;
    for a point that is "low", "near" or "high"; or for a curve that "rises", "falls", "peaks",
    "dips" or is "flat". ``figure`` has a title and a description.

    Raises ValueError where ``truth`` or ``says`` has a key that ``options`` has not.
    """

    module = "prediction"
    question = Unicode().tag(sync=True, start=True)
    options = List().tag(sync=True, start=True)  # in their order, which saving a dict may lose
    axes = Dict().tag(sync=True, start=True)
    knots = List().tag(sync=True, start=True)
    truth = Union([Unicode(), List()]).tag(sync=True, start=True)
    says = Dict().tag(sync=True, start=True)

    def __init__(self, *, question: str, figure: go.Figure, **answers) -> None:
        answers = json.loads(json.dumps(answers, default=float))  # plain, without NumPy's numbers
        if options := answers.get("options"):
            answers["options"] = [*options.items()]
            for key in [answers["truth"], *answers["says"]]:
                checks.one_of("truth, or what `says` has a sentence for", key, options)
        super().__init__(question=question, figure=json.loads(figure.to_json()), **answers)
        self.on_msg(_answer)

    @property
    def about(self) -> str:
        """What stands for it where there is no JavaScript."""
        return f"A prediction: {self.question} The figure below has the answer."


def explore(
    figure_of: Callable[..., go.Figure | None],
    controls: Mapping[str, Sequence[float | str]],
    *,
    start: Mapping[str, int] | None = None,
) -> Explorer:
    """A figure, and for each of ``controls`` a slider or buttons that choose its value.

    ``controls`` maps the label of each to its values: of numbers there is a slider, of words, or of
    three values at most, there are buttons. ``figure_of`` is called with one value of each, by
    position, and may return None where nothing was measured. ``start`` maps labels to the index of
    the value shown first, 0 for a label that it leaves out.

    Raises ValueError where there is no control, or one without values, with one that is neither a
    number nor a word, or where two values have the same name (numbers show six digits, or as many
    as tell them apart), and where ``start`` names no control, an index that its control does not
    have, or values for which nothing was measured.
    """
    named = {label: _named(label, values) for label, values in controls.items()}
    if not named:
        raise ValueError("there is no control: a figure alone needs no explorer")
    start = start or {}
    if unknown := [label for label in start if label not in controls]:
        raise ValueError(f"start names {unknown}, but the controls are {list(controls)}")
    shown, at, values = [], [], [list(names.values()) for names in named.values()]
    for (label, names), options in zip(named.items(), values, strict=True):
        first, most = start.get(label, 0), len(options) - 1
        at.append(checks.whole(f"start of {label}", first, least=0, most=most))
        buttons = most < _FEW or any(isinstance(value, str | bool) for value in options)
        shown.append({"label": label, "names": list(names), "buttons": buttons})

    def figure_at(at: Sequence[int]) -> dict[str, Any] | None:
        figure = figure_of(*(options[i] for options, i in zip(values, at, strict=True)))
        return None if figure is None else json.loads(figure.to_json())

    def show(_=None) -> None:
        try:
            explorer.figure = figure_at(explorer.at)
        except Exception as error:
            explorer.figure = {"error": f"{type(error).__name__}: {error}"}
            raise

    explorer = Explorer(controls=shown, at=at)
    if os.environ.get("LECTURE6_STATIC"):
        spots = list(itertools.product(*(range(len(options)) for options in values)))
        figures = [figure_at(spot) for spot in spots]
        explorer.figure = figures[spots.index(tuple(at))]
        explorer.states, explorer.parts = _packed(figures)
    else:
        show()
        explorer.observe(show, names="at")
        explorer.on_msg(_answer)
    if explorer.figure is None:
        raise ValueError("nothing was measured at the start: let start choose other values")
    return explorer


def _named(label: str, values: Sequence[float | str]) -> dict[str, float | str]:
    """The values of a control by their names: words as they are, numbers with enough digits."""

    def name(value: float | str, digits: int) -> str:
        is_word = isinstance(value, str | bool)
        return str(value) if is_word else f"{checks.real(label, value):.{digits}g}"

    for digits in range(6, 18):
        named = {name(value, digits): value for value in values}
        if len(named) == len(values) > 0:
            return named
    raise ValueError(f"{label} needs values, no two of the same name, got {values}")


def _packed(figures: Sequence[dict[str, Any] | None]) -> tuple[list, list]:
    """The figures as numbers of parts that they share, and the parts.

    A part is what a curve or the layout sets of one attribute, or what it has in all: the numbers
    of its attributes.
    """
    numbers: dict[str, int] = {}

    def number(part: Any) -> int:
        return numbers.setdefault(json.dumps(part), len(numbers))

    def whole(attributes: dict[str, Any]) -> int:
        return number({name: number(value) for name, value in attributes.items()})

    states = [
        figure
        and {"data": [whole(curve) for curve in figure["data"]], "layout": whole(figure["layout"])}
        for figure in figures
    ]
    return states, [json.loads(part) for part in numbers]


@functools.cache
def _plotly() -> str:
    return base64.b64encode(gzip.compress(get_plotlyjs().encode())).decode()


def _answer(explorer: Explorer, content: Any, _buffers: Any) -> None:
    """Send Plotly's own JavaScript to a page that asks, as no other host may be needed.

    It is compressed, since Jupyter may cut off more than 3 MB in three seconds, and in a message,
    since traits are saved with the notebook.
    """
    if content == {"ask": "plotly"}:
        explorer.send({"plotly": _plotly()})
