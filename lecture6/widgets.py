"""Explorers: sliders, and one pure function from their values to a figure.

With a kernel the sliders are live and the function is called for each combination of values that
the reader chooses; in the rendered book, where no kernel runs, the same function is called for
every combination beforehand and Plotly's own sliders show the results. Which of the two is decided
here, by the environment variable ``LECTURE6_STATIC`` that the book's build sets, never in a
notebook.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import ipywidgets
import plotly.graph_objects as go
from IPython.display import display

FigureOf = Callable[..., go.Figure]
Controls = Mapping[str, Sequence[float | str]]

_PAD = 60  # px between the plot and the first slider, for the x-axis and its title
_SLIDER = 85  # px from one slider to the next: its value, its rail and the names of its steps


def explore(
    figure_of: FigureOf, controls: Controls, *, start: Mapping[str, int] | None = None
) -> go.Figure | ipywidgets.Widget:
    """A slider for each of ``controls`` above the figure of their values.

    ``controls`` maps the label of each slider to its values, numbers or words; ``figure_of`` is
    called with one value of each, by position. ``start`` maps labels to the index of the value
    shown first, 0 for a label that it leaves out. Returns an ipywidgets box, or in the book a
    Plotly figure with sliders (:func:`static`).

    Raises:
        ValueError: ``start`` names no control, or an index that its control does not have.
    """
    if os.environ.get("LECTURE6_STATIC"):
        return static(figure_of, controls, start=start)
    sliders = [
        ipywidgets.SelectionSlider(
            options=list(zip(map(_name, values), values, strict=True)),
            index=index,
            description=label,
            continuous_update=False,
        )
        for (label, values), index in zip(controls.items(), _starts(controls, start), strict=True)
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

    Raises:
        ValueError: ``start`` names no control, or an index that its control does not have; two
            frames would have the same name; or the figures have different numbers of curves (of
            a frame with fewer, Plotly would leave the last one's standing).
    """
    starts = _starts(controls, start)
    combinations = list(itertools.product(*controls.values()))
    figures = {_join(values): figure_of(*values) for values in combinations}
    labels = ", ".join(controls)
    if len(figures) < len(combinations):
        raise ValueError(f"two values of {labels} have the same name: {list(figures)}")
    counts = {name: len(figure.data) for name, figure in figures.items()}
    fewest, most = min(counts, key=counts.get), max(counts, key=counts.get)
    if counts[fewest] < counts[most]:
        raise ValueError(
            f"every value of {labels} must show as many curves, but "
            f"{fewest} shows {counts[fewest]} and {most} shows {counts[most]}"
        )
    shown = figures[_join(v[i] for v, i in zip(controls.values(), starts, strict=True))]
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
    sliders = [
        {
            "active": index,
            "steps": [_step(_name(value), alone=len(controls) == 1) for value in values],
            "currentvalue": {"prefix": f"{label} = "},
            "pad": {"t": _PAD + position * _SLIDER},
        }
        for position, ((label, values), index) in enumerate(
            zip(controls.items(), starts, strict=True)
        )
    ]
    explorer.update_layout(sliders=sliders)
    if len(sliders) > 1:  # the plot keeps its height; 450 is Plotly's own
        explorer.update_layout(height=(shown.layout.height or 450) + (len(sliders) - 1) * _SLIDER)
    return explorer


def _starts(controls: Controls, start: Mapping[str, int] | None) -> list[int]:
    """The index shown first of each control."""
    start = start or {}
    if unknown := [label for label in start if label not in controls]:
        raise ValueError(f"start names {unknown}, but the controls are {list(controls)}")
    starts = {label: start.get(label, 0) for label in controls}
    for label, index in starts.items():
        if index not in range(len(controls[label])):
            raise ValueError(
                f"start of {label} must be an index of its {len(controls[label])} values, "
                f"got {index}"
            )
    return list(starts.values())


def _moving(figures: Sequence[go.Figure]) -> dict[int, set[str]]:
    """By index of a curve, which of its attributes differ between any two of the figures.

    A frame that holds these, and no less, looks the same whichever was shown before it.
    """
    moving = {}
    for i, (first, *others) in enumerate(
        zip(*(json.loads(figure.to_json())["data"] for figure in figures), strict=True)
    ):
        keys = {k for other in others for k in first | other if first.get(k) != other.get(k)}
        if keys:
            moving[i] = keys | {"type"}  # which says what the others mean
    return moving


def _step(name: str, *, alone: bool) -> dict:
    if not alone:
        return {"label": name, "method": "skip"}
    options = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}
    return {"label": name, "method": "animate", "args": [[name], options]}


def _join(values: Iterable[float | str]) -> str:
    return ", ".join(map(_name, values))


def _name(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
