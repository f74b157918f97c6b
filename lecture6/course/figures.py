"""One function a figure of the lecture: from a tidy table to a Plotly figure that describes itself.

Nothing is computed here beyond means and ranges over seeds. Every figure carries a text description
in ``layout.meta["description"]``, which the book shows under it and reads to screen readers, and
every one of a run, as its subtitle, the line that says of which. Colours are Okabe and Ito's, safe
for colour-blind readers. Every function raises ValueError for a table that is empty or lacks a
column, and for more curves than colours.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.colors import sample_colorscale
from torch import nn

from lecture6 import checks
from lecture6.models import count_parameters

_TEMPLATE = go.layout.Template(json.loads(Path(__file__).with_name("template.json").read_text()))
BLUE, ORANGE, GREEN, PURPLE = _COLOURS = _TEMPLATE.layout.colorway
_DASH = {"train": "solid", "test": "dash"}
_BAND = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}


def _figure(title: str, description: str, provenance: str = "") -> go.Figure:
    """An empty figure with its title, the start of its description, and which run it shows."""
    heading: dict[str, Any] = {"text": title}
    if provenance:
        heading["subtitle"] = {"text": provenance, "font": {"size": 10}}
    meta = {"description": description}
    return go.Figure(layout={"template": _TEMPLATE, "meta": meta, "title": heading})


def _describe(figure: go.Figure, sentence: str) -> None:
    figure.layout.meta["description"] += f" {sentence}"


def _band(
    figure: go.Figure, rows: pd.DataFrame, x: str, y: str, name: str, colour: str, **look: Any
) -> None:
    """Mean over seeds as a line, lowest to highest seed as a band."""
    stats = rows.groupby(x)[y].agg(["mean", "min", "max"])
    there, edge = list(stats.index), [*stats["max"], *stats["min"][::-1]]
    same = {"legendgroup": name, "yaxis": look.get("yaxis", "y")}
    fill = {"fill": "toself", "fillcolor": colour, "opacity": 0.15, "showlegend": False}
    figure.add_scatter(x=there + there[::-1], y=edge, **_BAND, **fill, **same)
    same |= {"mode": look.get("mode", "lines"), "line": {"color": colour, "dash": look.get("dash")}}
    figure.add_scatter(x=there, y=stats["mean"], name=name, **same)


def _two_panels(figure: go.Figure, above: dict, below: dict) -> go.Figure:
    """The figure with a panel for each y-axis, over one x-axis: ``below`` has ``yaxis="y2"``."""
    axes = {"yaxis": {"domain": [0.54, 1]} | above, "yaxis2": {"domain": [0, 0.46]} | below}
    return figure.update_layout(**axes, xaxis_anchor="y2", height=560)


def _checked(table: pd.DataFrame, *columns: str, finite: bool = False) -> pd.DataFrame:
    """``table``, which has rows and these columns; with ``finite``, of finite numbers only."""
    if lacks := [column for column in columns if column not in table]:
        raise ValueError(f"a column is missing: {lacks} of {', '.join(columns)}")
    if table.empty:
        raise ValueError("the table has no rows: there is nothing to show")
    for column in columns if finite else ():
        if not np.isfinite(table[column].to_numpy(dtype=float)).all():
            raise ValueError(f"{column} has values that are not finite: leave their rows out")
    for split in table["split"].unique() if "split" in columns else ():
        checks.one_of("split", split, _DASH)
    return table.reset_index(drop=True)


def _coloured(curves: Iterable, colours: Sequence) -> Iterator[tuple]:
    """Pairs (curve, colour); raises ValueError rather than leave a curve out."""
    curves = list(curves)
    if len(curves) > len(colours):
        most = f"this figure shows at most {len(colours)} curves side by side"
        raise ValueError(f"{most}, got {len(curves)}: leave some out, or draw two figures")
    return zip(curves, colours, strict=False)


def _looks(labels: Sequence[str]) -> list[tuple[str, str]]:
    """Colours and dashes: of three or more that differ by a number ("η = 0.1") a ramp, else hues.

    The ramp has the lightness of its ends, so that it stands out from a white and from a dark page.
    """
    parts = [re.fullmatch(r"(.+ = )[\d.,]+", label) for label in labels]
    stem, n = Counter(part and part[1] for part in parts).most_common(1)[0]
    if stem is None or n < 3:
        return [(colour, dash) for dash in ("solid", "dash") for colour in _COLOURS]
    ramp = iter(sample_colorscale([[0, BLUE], [1, ORANGE]], np.linspace(0, 1, n)))
    others = cycle([(GREEN, "dash"), (PURPLE, "dash")])
    return [
        (next(ramp), "solid") if part and part[1] == stem else next(others) for part in parts[:8]
    ]


def _over(table: pd.DataFrame) -> str:
    """What a curve and its band are, in words; nothing where there is one run only."""
    n_seeds = table["seed"].nunique() if "seed" in table else 1
    return f", mean and range of {n_seeds} seeds" if n_seeds > 1 else ""


def _course(rows: pd.DataFrame, x: str, y: str, spec: str) -> str:
    """Where a curve starts and ends, in words; gaps are left out."""
    means = rows.groupby(x)[y].mean()
    means = means[np.isfinite(means)]
    if means.empty:
        return "nowhere finite"
    x0, x1 = means.index[0], means.index[-1]
    return f"from {means[x0]:{spec}} at {x0:g} to {means[x1]:{spec}} at {x1:g}"


def _blocks(model: nn.Sequential, input_shape: tuple[int, ...]) -> list[tuple]:
    """Of a forward pass, each layer with weights and what follows it: names, shape, parameters."""
    model = copy.deepcopy(model).eval()  # neither running statistics nor generators move
    x, blocks = torch.zeros(2, *input_shape), [(["Input"], input_shape, 0)]
    with torch.no_grad():
        for layer in model:
            x, size = layer(x), sum(p.numel() for p in layer.parameters())
            name = type(layer).__name__.removesuffix("1d").removesuffix("2d")
            begins = isinstance(layer, nn.Linear | nn.Conv2d)
            names, _, n = ([], (), 0) if begins else blocks.pop()
            names = names if name == "Flatten" else [*names, name]
            blocks.append((names, tuple(x.shape[1:]), n + size))
    return blocks


def schematic(model: nn.Sequential, input_shape: tuple[int, ...], title: str) -> go.Figure:
    """Figures 2 and 3: a network, read off what its layers do to a sample of ``input_shape``.

    One bar a block (a layer with weights and what follows it up to the next one); its length is
    the number of values a sample has after it, on a logarithmic axis.
    """
    rows = []
    for number, (names, shape, n) in enumerate(_blocks(model, input_shape), 1):
        text = "×".join(map(str, shape)) + (f" · {n:,} parameters" if n else "")
        rows.append((f"{number}. {' + '.join(names)}", math.prod(shape), text))
    names, lengths, texts = zip(*rows, strict=True)
    total = f"{count_parameters(model):,} parameters"
    gives = "; ".join(f"{name} gives {text}" for name, _, text in rows)
    what = f"{title} as a stack of {len(rows)} blocks from input to output"
    figure = _figure(f"{title}: {total}", f"{what}: {gives}. In all {total}.")
    bar = {"orientation": "h", "marker": {"color": BLUE, "opacity": 0.35}, "hoverinfo": "y+text"}
    figure.add_bar(y=names, x=lengths, hovertext=texts, **bar)
    place = {"x": 0, "xref": "paper", "xanchor": "left", "xshift": 6, "align": "left"}
    for name, _, text in rows:  # annotations, unlike bar text, are never cut
        words = {"text": f"<b>{name}</b><br>{text}", "showarrow": False, "font": {"size": 12}}
        figure.add_annotation(y=name, **words, **place)
    x = {"title": "Values per sample after the block", "type": "log", "dtick": 1, "range": [0, 5.2]}
    y = {"autorange": "reversed", "showgrid": False, "showticklabels": False}
    height = 170 + 46 * len(rows)
    return figure.update_layout(xaxis=x, yaxis=y, height=height, hovermode="closest")


def accuracy(history: pd.DataFrame, *, title: str, provenance: str, x: str = "epoch") -> go.Figure:
    """Figure 4: accuracy against ``x`` ("epoch" or "update"), training solid, test dashed.

    ``history`` is :attr:`lecture6.train.Run.history` with two more columns: label (one curve a
    label) and seed. Bands reach from the lowest to the highest seed.
    """
    names = {"epoch": "Epoch", "update": "Update (mini-batches seen)"}
    checks.one_of("x", x, names)
    percent = _checked(_checked(history, x), "label", "split", "epoch", "accuracy")
    percent = percent.assign(accuracy=100 * percent["accuracy"])
    colours = dict(_coloured(percent["label"].unique(), _COLOURS))
    figure = _figure(title, f"Accuracy in per cent against {x}{_over(history)}.", provenance)
    for (label, split), rows in percent.groupby(["label", "split"], sort=False):
        name = f"{label}, {split}"
        _band(figure, rows, x, "accuracy", name, colours[label], dash=_DASH[split])
        _describe(figure, f"{name}: {_course(rows, x, 'accuracy', '.1f')}.")
    low = percent.loc[percent["epoch"] > 0, "accuracy"].min()
    axis = {"title": "Accuracy, %", "range": [max(0.0, low - 5), 101]}
    return figure.update_layout(xaxis_title=names[x], yaxis=axis)


def interpolation(table: pd.DataFrame, *, title: str, provenance: str) -> go.Figure:
    """Figure 5: loss, and below it accuracy, along a path between two solutions.

    ``table`` comes from :func:`lecture6.landscape.interpolate`, with a column seed when there are
    several pairs. α = 0 is the small-batch solution, α = 1 the large-batch one.
    """
    percent = _checked(_checked(table, "split"), "alpha", "loss", "accuracy", finite=True)
    percent = percent.assign(accuracy=100 * percent["accuracy"])
    what = f"Cross-entropy and accuracy against the position α on the path{_over(table)}."
    figure = _figure(title, what, provenance)
    for split, rows in percent.groupby("split", sort=False):
        for y, colour, yaxis in (("loss", BLUE, "y"), ("accuracy", ORANGE, "y2")):
            name, dash = f"{y}, {split}", _DASH[split]
            _band(figure, rows, "alpha", y, name, colour, dash=dash, yaxis=yaxis)
        means = rows.groupby("alpha")[["loss", "accuracy"]].mean()
        for a in sorted({means.index[0], 0.0, 1.0, means.index[-1]} & {*means.index}):
            loss, percents = means.loc[a]
            what = f"{split} at α = {a:g}: loss {loss:.2g}, accuracy {percents:.1f} per cent."
            _describe(figure, what)
    whole = {"type": "line", "y0": 0, "y1": 1, "yref": "paper", "line": {"width": 1, "dash": "dot"}}
    place = {"y": 0.9, "yref": "paper", "xshift": 9, "textangle": -90, "showarrow": False}
    for alpha, name in ((0, "small batch"), (1, "large batch")):
        figure.add_shape(x0=alpha, x1=alpha, **whole)
        figure.add_annotation(x=alpha, text=name, **place)
    figure.update_layout(xaxis_title="Position α on the path")
    loss = {"title": "Cross-entropy", "rangemode": "tozero"}
    return _two_panels(figure, loss, {"title": "Accuracy, %", "range": [0, 102], "dtick": 20})


def accuracy_and_sharpness(table: pd.DataFrame, *, title: str, provenance: str) -> go.Figure:
    """Figure 7: test accuracy, and below it sharpness, against batch size.

    ``table``: one row a run and ε, with columns batch_size, seed, accuracy (fraction), epsilon,
    sharpness (per cent, Definition 2). At most two ε.
    """
    x = "batch_size"
    percent = _checked(_checked(table, "seed", "accuracy", "sharpness"), x, "epsilon", finite=True)
    percent = percent.assign(accuracy=100 * percent["accuracy"])
    what = f"Test accuracy and sharpness against batch size{_over(table)}."
    what += f" Accuracy in per cent goes {_course(percent, x, 'accuracy', '.1f')}."
    figure = _figure(title, what, provenance)
    by_epsilon = list(percent.groupby("epsilon", sort=False))
    look = {"mode": "lines+markers"}
    _band(figure, by_epsilon[0][1], x, "accuracy", "test accuracy", BLUE, **look)
    styles = ((ORANGE, "dash"), (GREEN, "dot"))
    for (epsilon, rows), (colour, look["dash"]) in _coloured(by_epsilon, styles):
        name, course = f"ε = {epsilon:g}", _course(rows, x, "sharpness", ".3g")
        _band(figure, rows, x, "sharpness", f"sharpness, {name}", colour, yaxis="y2", **look)
        _describe(figure, f"Sharpness at {name} goes {course} per cent.")
    sizes = sorted(percent[x].unique())
    axis = {"tickvals": sizes, "ticktext": [f"{size:,}" for size in sizes], "title": "Batch size"}
    figure.update_layout(xaxis=axis | {"type": "log"})
    phi = {"title": "Sharpness φ, %", "type": "log", "dtick": "D2"}
    return _two_panels(figure, {"title": "Test accuracy, %"}, phi)


def curves(
    table: pd.DataFrame,
    x: str,
    y: str,
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    provenance: str = "",
    log: str = "",
    xrange: tuple[float, float] | None = None,
    yrange: tuple[float, float] | None = None,
    marks: Sequence[tuple[float, float, str]] = (),
    mode: str = "lines",
) -> go.Figure:
    """Any quantity against another: one curve a label, its mean and range over seeds.

    ``table`` has the columns ``x`` and ``y``, label (one curve a label, at most eight; if three or
    more differ by a number alone, as "η = 0.1" does, their colours are a ramp), and seed when there
    are several. ``log`` names the logarithmic axes: "", "x", "y" or "xy". ``xrange`` and ``yrange``
    are in the units of the data. ``marks`` are points (x, y, text) to point out.
    A logarithmic axis needs a positive value, or a positive range: else ValueError.
    """
    checks.one_of("log", log, ("", "x", "y", "xy"))
    by_label = _checked(table, x, y, "label").groupby("label", sort=False)
    looks = _looks([str(label) for label, _ in by_label])
    figure = _figure(title, f"{ylabel} against {xlabel}{_over(table)}.", provenance)
    for (label, rows), (colour, dash) in _coloured(by_label, looks):
        _band(figure, rows, x, y, label, colour, dash=dash, mode=mode)
        _describe(figure, f"{label}: {_course(rows, x, y, '.3g')}.")
    for (at, height, text), symbol in zip(marks, cycle(("diamond", "square", "star"))):
        mark = {"color": "black", "size": 9, "symbol": symbol}
        _describe(figure, f"Marked: {text}, {height:.3g} at {at:.3g}.")
        figure.add_scatter(x=[at], y=[height], mode="markers", marker=mark, name=text)
    figure.update_xaxes(title_text=xlabel, **_scale(table[x], xrange, "x" in log, "xrange"))
    return figure.update_yaxes(title_text=ylabel, **_scale(table[y], yrange, "y" in log, "yrange"))


def _scale(values: pd.Series, limits: tuple[float, float] | None, log: bool, name: str) -> dict:
    """An axis: linear or logarithmic, and its range."""
    if not log:
        return {"type": "linear", "range": limits}
    if limits is None:
        positive = values[values > 0]
        if positive.empty:
            raise ValueError(f"{values.name} has no positive value for a logarithmic axis")
        low, high = positive.min(), positive.max()
    else:
        low, high = (checks.real(f"{name} of a logarithm", limit, above=0) for limit in limits)
    # Plotly's own choice of ticks writes 1µ for 10⁻⁶, and a bare 2 and 5 between decades.
    ticks = {"dtick": 1 if high / low > 50 else "D2", "exponentformat": "power"}
    return {"type": "log", "range": limits and [math.log10(low), math.log10(high)], **ticks}


def contour(
    table: pd.DataFrame,
    x: str,
    y: str,
    z: str,
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    zlabel: str,
    provenance: str = "",
) -> go.Figure:
    """A quantity over two others that form a grid, on a logarithmic scale of colours.

    ``table``: columns ``x``, ``y``, ``z`` (positive), one row a point of the grid; else ValueError.
    """
    table = _checked(table, x, y, z, finite=True)
    grid = table.pivot_table(index=y, columns=x, values=z)
    if grid.isna().any(axis=None) or table[z].min() <= 0:
        raise ValueError(f"a contour needs a positive {z} at every point of a grid of {x} and {y}")
    (x0, x1), (y0, y1) = ((table[name].min(), table[name].max()) for name in (x, y))
    lowest = table.loc[table[z].idxmin()]
    what = (
        f"{zlabel} over {xlabel} (from {x0:.3g} to {x1:.3g}) and {ylabel} (from {y0:.3g} to "
        f"{y1:.3g}), as filled contours: from {lowest[z]:.3g} at ({lowest[x]:.3g}, "
        f"{lowest[y]:.3g}) to {table[z].max():.3g}."
    )
    figure = _figure(title, what, provenance)
    exponents = np.log10(grid.to_numpy())
    ticks = np.linspace(exponents.min(), exponents.max(), 6)
    bar = {"title": zlabel, "tickvals": ticks, "ticktext": [f"{10**t:.2g}" for t in ticks]}
    look = {"colorscale": "Cividis", "colorbar": bar, "ncontours": 16, "line": {"width": 0.5}}
    look["hovertemplate"] = "(%{x:.3g}, %{y:.3g}): %{customdata:.3g}<extra></extra>"
    look["customdata"] = grid.to_numpy()
    figure.add_contour(x=grid.columns, y=grid.index, z=exponents, **look)
    figure.update_xaxes(title_text=xlabel, constrain="domain")
    figure.update_yaxes(title_text=ylabel, scaleanchor="x", constrain="domain")  # circles are round
    return figure.update_layout(hovermode="closest")


def spectrum(
    density: pd.DataFrame, outliers: Sequence[float], *, title: str, provenance: str
) -> go.Figure:
    """The density of a Hessian's eigenvalues, with the leading ones marked.

    ``density``: columns eigenvalue, density (of eigenvalues, so that it integrates to their
    number), low, high (a band around it). ``outliers``: one leading eigenvalue or more.
    """
    density = _checked(density, "eigenvalue", "density", "low", "high", finite=True)
    outliers = [checks.real("a leading eigenvalue", value) for value in np.ravel(outliers)]
    if not outliers:
        raise ValueError("outliers must hold one leading eigenvalue or more, got none")
    at, top = density["eigenvalue"], density["density"].max()
    what = (
        "Number of eigenvalues of the Hessian per unit of eigenvalue, on a logarithmic axis, from "
        f"{at.min():.3g} to {at.max():.3g}; it is highest, {top:.3g}, at "
        f"{at[density['density'].idxmax()]:.3g}. Marked are {len(outliers)} leading eigenvalues, "
        f"from {min(outliers):.3g} to {max(outliers):.3g}."
    )
    figure = _figure(title, what, provenance)
    # below this there is no place on a logarithmic axis
    high, low, mean = (density[name].clip(lower=top * 1e-9) for name in ("high", "low", "density"))
    edge = _BAND | {"line": {"width": 0, "color": BLUE}, "fillcolor": "rgba(0, 114, 178, 0.2)"}
    figure.add_scatter(x=at, y=high, showlegend=False, **edge)
    band = {"name": "± 2 standard errors", "showlegend": True, "fill": "tonexty"}
    figure.add_scatter(x=at, y=low, **band, **edge)
    figure.add_scatter(x=at, y=mean, mode="lines", name="density", line={"color": BLUE})
    mark = {"color": ORANGE, "symbol": "line-ns-open", "size": 16, "line": {"width": 2}}
    shown = {"mode": "markers", "name": "leading eigenvalues", "marker": mark}
    figure.add_scatter(x=outliers, y=[1.0] * len(outliers), **shown)
    axis = {"title": "Eigenvalues per unit of λ", "type": "log", "exponentformat": "power"}
    return figure.update_layout(xaxis_title="Eigenvalue of the Hessian, λ", yaxis=axis)
