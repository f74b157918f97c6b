"""Explorers: one slider, one pure function from its value to a figure.

With a kernel the slider is live and the function is called for each value; in the rendered book,
where no kernel runs, the same function is called for every value beforehand and Plotly's own slider
shows the results. Which of the two is decided here, by the environment variable
``LECTURE6_STATIC`` that the book's build sets, never in a notebook.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import ipywidgets
import plotly.graph_objects as go
from IPython.display import display

FigureOf = Callable[[float | str], go.Figure]


def explore(
    figure_of: FigureOf, values: Sequence[float | str], *, label: str, start: int = 0
) -> go.Figure | ipywidgets.Widget:
    """A slider over ``values`` that shows ``figure_of(value)``; ``label`` names the quantity.

    ``start`` is the index of the value shown first. Returns an ipywidgets box, or in the book a
    Plotly figure with a slider (:func:`static`).
    """
    if os.environ.get("LECTURE6_STATIC"):
        return static(figure_of, values, label=label, start=start)
    slider = ipywidgets.SelectionSlider(
        options=list(zip(map(_name, values), values, strict=True)),
        index=start,
        description=label,
        continuous_update=False,
    )
    output = ipywidgets.Output()

    def show(_=None) -> None:
        figure = figure_of(slider.value)  # outside of `output`, which would swallow its errors
        with output:
            output.clear_output(wait=True)
            display(figure)

    slider.observe(show, names="value")
    show()
    return ipywidgets.VBox([slider, output])


def static(
    figure_of: FigureOf, values: Sequence[float | str], *, label: str, start: int = 0
) -> go.Figure:
    """The same explorer as one figure: a frame a value and Plotly's slider over the frames.

    Raises ValueError when the figures have different numbers of curves: of a frame with fewer,
    Plotly would leave the last one's standing.
    """
    figures = [figure_of(value) for value in values]
    if len(sizes := sorted({len(figure.data) for figure in figures})) > 1:
        raise ValueError(f"every value of {label} must show as many curves, got {sizes}")
    shown = figures[start]
    names = [_name(value) for value in values]
    frames = [
        go.Frame(
            name=name,
            data=figure.data,
            layout={key: figure.layout[key] for key in ("shapes", "annotations", "title")},
        )
        for name, figure in zip(names, figures, strict=True)
    ]
    steps = [
        {
            "label": name,
            "method": "animate",
            "args": [[name], {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}],
        }
        for name in names
    ]
    explorer = go.Figure(data=shown.data, layout=shown.layout, frames=frames)
    slider = {"active": start, "steps": steps, "currentvalue": {"prefix": f"{label} = "}}
    explorer.update_layout(sliders=[slider | {"pad": {"t": 60}}])
    return explorer


def _name(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
