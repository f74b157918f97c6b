"""Explorers: sliders, and one pure function from their values to a figure.

With a kernel the sliders are live; in the rendered book, where no kernel runs, the same function is
called for every combination of values beforehand and Plotly's own sliders show the results. Which
of the two is decided here, by the environment variable ``LECTURE6_STATIC`` that the book's build
sets, never in a notebook.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import ipywidgets
import plotly.graph_objects as go
from IPython.display import display

from lecture6 import checks

FigureOf = Callable[..., go.Figure]
Controls = Mapping[str, Sequence[float | str]]

_PAD = 60  # px between the plot and the first slider, for the x-axis and its title
_SLIDER = 85  # px from one slider to the next: its value, its rail and the names of its steps


class _Slider(NamedTuple):
    label: str
    options: dict[str, float | str]  #: the values by their names
    start: int  #: index of the value shown first


def explore(
    figure_of: FigureOf, controls: Controls, *, start: Mapping[str, int] | None = None
) -> go.Figure | ipywidgets.Widget:
    """A slider for each of ``controls`` above the figure of their values.

    ``controls`` maps the label of each slider to its values, numbers or words; ``figure_of`` is
    called with one value of each, by position. ``start`` maps labels to the index of the value
    shown first, 0 for a label that it leaves out. Returns an ipywidgets box, or in the book a
    Plotly figure with sliders (:func:`static`).

    Raises ValueError where there is no control, or one without values, with one that is neither a
    number nor a word, or where two values, or two of their combinations, have the same name
    (numbers show six digits, or as many as tell them apart), and where ``start`` names no control,
    or an index that its control does not have.
    """
    if os.environ.get("LECTURE6_STATIC"):
        return static(figure_of, controls, start=start)
    sliders = [
        ipywidgets.SelectionSlider(
            options=list(slider.options.items()),
            index=slider.start,
            description=slider.label,
            continuous_update=False,
        )
        for slider in _sliders(controls, start)
    ]
    output = ipywidgets.Output()

    def show(_=None) -> None:
        # Outside of `output`, which would swallow its errors.
        figure = figure_of(*(slider.value for slider in sliders))
        with output:
            output.clear_output(wait=True)
            display(figure)

    for slider in sliders:
        slider.observe(show, names="value")
    show()
    return ipywidgets.VBox([*sliders, output])


def static(
    figure_of: FigureOf, controls: Controls, *, start: Mapping[str, int] | None = None
) -> go.Figure:
    """The same explorer as one figure: a frame a combination of values, and a slider a control.

    A frame has the names of its values for its name, joined by ", ". The slider of a single
    control works wherever Plotly does. Plotly cannot combine several: their steps do nothing by
    themselves, and `book/_static/figures.js` shows the frame. Frames hold the curves, title,
    shapes and annotations; the rest of the layout, as the axes, stays that of the start. Every
    figure must set the same attributes of its curves: Plotly keeps what a frame does not set.

    Raises ValueError as :func:`explore`, and for figures of different numbers of curves (of a
    frame with fewer, Plotly would leave the last one's standing).
    """
    sliders = _sliders(controls, start)
    labels, figures = ", ".join(controls), {}
    for chosen in itertools.product(*(slider.options.items() for slider in sliders)):
        names, values = zip(*chosen, strict=True)
        figures[", ".join(names)] = figure_of(*values)
    counts = {len(figures[name].data): name for name in reversed(figures)}
    if len(counts) > 1:
        shows = " and ".join(f"{counts[n]} shows {n}" for n in (min(counts), max(counts)))
        raise ValueError(f"every value of {labels} must show as many curves, but {shows}")
    shown = figures[", ".join(list(slider.options)[slider.start] for slider in sliders)]
    moving = _moving(list(figures.values()))
    frames = [
        go.Frame(
            name=name,
            data=[{key: figure.data[i][key] for key in keys} for i, keys in moving.items()],
            traces=list(moving),
            layout={key: figure.layout[key] for key in ("shapes", "annotations", "title")},
        )
        for name, figure in figures.items()
    ]
    explorer = go.Figure(data=shown.data, layout=shown.layout, frames=frames)
    at_once = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}
    method = "animate" if len(sliders) == 1 else "skip"
    explorer.layout.sliders = [
        {
            "active": slider.start,
            "steps": [
                {"label": name, "method": method, "args": [[name], at_once]}
                for name in slider.options
            ],
            "currentvalue": {"prefix": f"{slider.label} = "},
            "pad": {"t": _PAD + position * _SLIDER},
        }
        for position, slider in enumerate(sliders)
    ]
    if len(sliders) > 1:  # the plot keeps its height; 450 is Plotly's own
        explorer.update_layout(height=(shown.layout.height or 450) + (len(sliders) - 1) * _SLIDER)
    return explorer


def _sliders(controls: Controls, start: Mapping[str, int] | None) -> list[_Slider]:
    """The controls, checked, with the names of their values and the index shown first of each."""
    start = dict(start or {})
    if unknown := [label for label in start if label not in controls]:
        raise ValueError(f"start names {unknown}, but the controls are {list(controls)}")
    sliders = []
    for label, values in controls.items():
        named = ({_name(label, value, n): value for value in values} for n in range(6, 18))
        options = next((found for found in named if len(found) == len(values)), {})
        if not options:
            raise ValueError(f"{label} needs values, no two of the same name, got {values}")
        first, most = start.get(label, 0), len(options) - 1
        index = checks.whole(f"start of {label}", first, least=0, most=most)
        sliders.append(_Slider(label, options, index))
    if not sliders:
        raise ValueError("there is no control: a figure alone needs no explorer")
    frames = [", ".join(names) for names in itertools.product(*(s.options for s in sliders))]
    if len(set(frames)) < len(frames):
        raise ValueError(f"two values of {', '.join(controls)} have the same name, with its commas")
    return sliders


def _name(label: str, value: float | str, n: int) -> str:
    """A word as it is, a number with n digits."""
    return str(value) if isinstance(value, str | bool) else f"{checks.real(label, value):.{n}g}"


def _moving(figures: Sequence[go.Figure]) -> dict[int, set[str]]:
    """By index of a curve, which of its attributes differ between any two of the figures.

    A frame that holds these, and no less, looks the same whichever was shown before it.
    """
    moving = {}
    data = [json.loads(figure.to_json())["data"] for figure in figures]
    for i, (first, *others) in enumerate(zip(*data, strict=True)):
        keys = {k for other in others for k in first | other if first.get(k) != other.get(k)}
        if keys:
            moving[i] = keys | {"type"}  # which says what the others mean
    return moving
