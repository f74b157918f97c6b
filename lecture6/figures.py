"""One function a figure of the lecture: from a tidy table to a Plotly figure that describes itself.

Nothing is computed here beyond means over seeds. Every figure carries a text description in
``layout.meta["description"]``, which the book shows under it and reads to screen readers, and every
one of a run, as its subtitle, the line from :func:`lecture6.report.provenance` that says of which.
Colours are Okabe and Ito's, safe for colour-blind readers; dashes repeat what colour says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
_DASH = {"train": "solid", "test": "dash"}
_TEMPLATE = go.layout.Template(
    layout={
        "font": {"size": 13},
        "colorway": [BLUE, ORANGE, GREEN, PURPLE],
        "margin": {"l": 60, "r": 60, "t": 120, "b": 60},
        "height": 460,
        "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        "title": {"x": 0, "xref": "paper", "y": 0.98, "yanchor": "top", "font": {"size": 15}},
        "xaxis": {"showgrid": True, "zeroline": False, "automargin": True},
        "yaxis": {"showgrid": True, "zeroline": False, "automargin": True},
        "hovermode": "x unified",
    }
)


def _figure(title: str, description: str, provenance: str = "") -> go.Figure:
    figure = go.Figure(layout={"template": _TEMPLATE, "meta": {"description": description}})
    figure.update_layout(title_text=title)
    if provenance:
        figure.update_layout(title_subtitle={"text": provenance, "font": {"size": 10}})
    return figure


def _band(
    figure: go.Figure, table: pd.DataFrame, x: str, y: str, *, name: str, colour: str, **line
) -> None:
    """Mean over seeds as a line, lowest to highest seed as a band."""
    yaxis = line.pop("yaxis", "y")
    mode = line.pop("mode", "lines")
    stats = table.groupby(x)[y].agg(["mean", "min", "max"])
    xs = list(stats.index)
    figure.add_scatter(
        x=xs + xs[::-1],
        y=[*stats["max"], *stats["min"][::-1]],
        mode="lines",
        fill="toself",
        fillcolor=colour,
        opacity=0.15,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
        yaxis=yaxis,
    )
    figure.add_scatter(
        x=xs,
        y=stats["mean"],
        name=name,
        legendgroup=name,
        mode=mode,
        line={"color": colour, **line},
        yaxis=yaxis,
    )


def _right_axis(title: str, **more) -> dict:
    """A second y-axis, for curves with ``yaxis="y2"``."""
    axis = {"title": title, "overlaying": "y", "side": "right", "showgrid": False}
    return axis | {"automargin": True} | more


def _coloured(curves: Iterable, colours: Sequence) -> Iterator[tuple]:
    """Pairs (curve, colour); raises ValueError rather than leave a curve out."""
    curves = list(curves)
    if len(curves) > len(colours):
        raise ValueError(
            f"this figure shows at most {len(colours)} curves side by side, got {len(curves)}: "
            "leave some out, or draw two figures"
        )
    return zip(curves, colours, strict=False)


def _over(table: pd.DataFrame) -> str:
    """What a curve and its band are, in words; nothing where there is one run only."""
    n_seeds = table["seed"].nunique() if "seed" in table else 1
    return f", mean and range of {n_seeds} seeds" if n_seeds > 1 else ""


def _summary(table: pd.DataFrame, x: str, y: str, spec: str) -> str:
    """Where a curve starts and ends, in words: for the text descriptions."""
    means = table.groupby(x)[y].mean()
    x0, x1 = means.index[0], means.index[-1]
    return f"{means[x0]:{spec}} at {x0:g} to {means[x1]:{spec}} at {x1:g}"


def schematic(layers: pd.DataFrame, title: str) -> go.Figure:
    """Figures 2 and 3: a network drawn from :func:`lecture6.models.layer_table`.

    One bar a block (a layer with weights and what follows it up to the next one); its length is
    the number of values a sample has after it, on a logarithmic axis.
    """
    starts = layers["layer"].isin(["Input", "Linear", "Conv2d"]).cumsum()
    rows = []
    for number, block in layers.groupby(starts):
        names = [n.removesuffix("1d").removesuffix("2d") for n in block["layer"] if n != "Flatten"]
        shape = block["output"].iloc[-1]
        size = int(pd.Series(shape).prod())
        shown = "×".join(map(str, shape))
        parameters = int(block["parameters"].sum())
        text = f"{shown} · {parameters:,} parameters" if parameters else shown
        rows.append((f"{number}. {' + '.join(names)}", size, text))
    blocks = pd.DataFrame(rows, columns=["block", "size", "text"])
    total = int(layers["parameters"].sum())
    figure = _figure(
        f"{title}: {total:,} parameters",
        f"{title} as a stack of {len(blocks)} blocks from input to output: "
        + "; ".join(f"{b} gives {t}" for b, t in zip(blocks["block"], blocks["text"], strict=True))
        + f". In all {total:,} parameters.",
    )
    figure.add_bar(
        y=blocks["block"],
        x=blocks["size"],
        orientation="h",
        marker={"color": BLUE, "opacity": 0.35},
        hovertext=blocks["text"],
        hoverinfo="y+text",
    )
    for row in blocks.itertuples(index=False):  # annotations, unlike bar text, are never cut
        figure.add_annotation(
            x=0,
            xref="paper",
            xanchor="left",
            xshift=6,
            y=row.block,
            text=f"<b>{row.block}</b><br>{row.text}",
            align="left",
            showarrow=False,
            font={"size": 12},
        )
    figure.update_xaxes(
        type="log", dtick=1, title_text="Values per sample after the block", range=[0, 5.2]
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, showticklabels=False)
    return figure.update_layout(height=170 + 46 * len(blocks), hovermode="closest")


def accuracy(history: pd.DataFrame, *, title: str, provenance: str, x: str = "epoch") -> go.Figure:
    """Figure 4: accuracy against ``x`` ("epoch" or "update"), training solid, test dashed.

    ``history`` is :attr:`lecture6.train.Run.history` with two more columns: label (one curve a
    label) and seed. Bands reach from the lowest to the highest seed.
    """
    percent = history.assign(accuracy=100 * history["accuracy"])
    curves = [(key, rows) for key, rows in percent.groupby(["label", "split"], sort=False)]
    figure = _figure(
        title,
        f"Accuracy in per cent against {x}{_over(history)}. "
        + " ".join(
            f"{label}, {split}: from {_summary(rows, x, 'accuracy', '.1f')}."
            for (label, split), rows in curves
        ),
        provenance,
    )
    colours = dict(_coloured(percent["label"].unique(), (BLUE, ORANGE, GREEN, PURPLE)))
    for (label, split), rows in curves:
        _band(
            figure,
            rows,
            x,
            "accuracy",
            name=f"{label}, {split}",
            colour=colours[label],
            dash=_DASH[split],
        )
    names = {"epoch": "Epoch", "update": "Update (mini-batches seen)"}
    figure.update_xaxes(title_text=names[x])
    low = percent.loc[percent["epoch"] > 0, "accuracy"].min()
    figure.update_yaxes(title_text="Accuracy, %", range=[max(0.0, low - 5), 101])
    return figure


def interpolation(table: pd.DataFrame, *, title: str, provenance: str) -> go.Figure:
    """Figure 5: loss (left axis) and accuracy (right axis) along a path between two solutions.

    ``table`` comes from :func:`lecture6.landscape.interpolate`, with a column seed when there are
    several pairs. α = 0 is the small-batch solution, α = 1 the large-batch one.
    """
    percent = table.assign(accuracy=100 * table["accuracy"])
    if "seed" not in percent:
        percent["seed"] = 0
    n_pairs = percent["seed"].nunique()

    def at(alpha: float, split: str, column: str) -> float:
        rows = percent[(percent["split"] == split) & (percent["alpha"] == alpha)]
        return rows[column].mean()

    ends = sorted({percent["alpha"].min(), 0.0, 1.0, percent["alpha"].max()})
    splits = list(percent["split"].unique())
    figure = _figure(
        title,
        f"Cross-entropy and accuracy against the position α on the path, mean and range of "
        f"{n_pairs} pair{'s' * (n_pairs > 1)} of solutions. "
        + " ".join(
            f"{split} at α = {a:g}: loss {at(a, split, 'loss'):.2g}, accuracy "
            f"{at(a, split, 'accuracy'):.1f} per cent."
            for split in splits
            for a in ends
        ),
        provenance,
    )
    for split in splits:
        rows, dash = percent[percent["split"] == split], _DASH[split]
        _band(figure, rows, "alpha", "loss", name=f"loss, {split}", colour=BLUE, dash=dash)
        _band(
            figure,
            rows,
            "alpha",
            "accuracy",
            name=f"accuracy, {split}",
            colour=ORANGE,
            dash=dash,
            yaxis="y2",
        )
    for alpha, name in ((0, "small batch"), (1, "large batch")):
        figure.add_vline(alpha, line={"width": 1, "dash": "dot"})
        figure.add_annotation(
            x=alpha, y=0.55, yref="paper", xshift=9, text=name, textangle=-90, showarrow=False
        )
    figure.update_xaxes(title_text="Position α on the path")
    figure.update_yaxes(title_text="Cross-entropy", rangemode="tozero")
    return figure.update_layout(
        yaxis2=_right_axis("Accuracy, %", range=[0, 102], tickmode="linear", dtick=20)
    )


def batch_size(table: pd.DataFrame, *, title: str, provenance: str) -> go.Figure:
    """Figure 7: test accuracy (left axis) and sharpness (right axis, log) against batch size.

    ``table``: one row a run and ε, with columns batch_size, seed, accuracy (fraction), epsilon,
    sharpness (per cent, Definition 2).
    """
    percent = table.assign(accuracy=100 * table["accuracy"])
    by_epsilon = list(percent.groupby("epsilon", sort=False))
    figure = _figure(
        title,
        f"Test accuracy and sharpness against batch size{_over(table)}. "
        f"Accuracy in per cent goes from {_summary(percent, 'batch_size', 'accuracy', '.1f')}. "
        + " ".join(
            f"Sharpness at ε = {epsilon:g} goes from "
            f"{_summary(rows, 'batch_size', 'sharpness', '.3g')} per cent."
            for epsilon, rows in by_epsilon
        ),
        provenance,
    )
    _band(
        figure,
        by_epsilon[0][1],
        "batch_size",
        "accuracy",
        name="test accuracy",
        colour=BLUE,
        mode="lines+markers",
    )
    for (epsilon, rows), (colour, dash) in _coloured(
        by_epsilon, ((ORANGE, "dash"), (GREEN, "dot"))
    ):
        _band(
            figure,
            rows,
            "batch_size",
            "sharpness",
            name=f"sharpness, ε = {epsilon:g}",
            colour=colour,
            dash=dash,
            yaxis="y2",
            mode="lines+markers",
        )
    sizes = sorted(percent["batch_size"].unique())
    figure.update_xaxes(
        type="log",
        tickvals=sizes,
        ticktext=[f"{s:,}" for s in sizes],
        title_text="Batch size",
    )
    figure.update_yaxes(title_text="Test accuracy, %")
    return figure.update_layout(
        yaxis2=_right_axis("Sharpness φ, %", type="log", tickmode="linear", dtick="D2")
    )


def sharpness_box(curve: pd.DataFrame, boxes: pd.DataFrame, *, title: str) -> go.Figure:
    """Definition 2 in one dimension: the loss, and at each minimiser the box and its maximum.

    ``curve``: columns x, loss. ``boxes``: one row a minimiser, with columns name, x, half_width,
    x_max, loss_max, sharpness (per cent).
    """
    figure = _figure(
        title,
        "A one-dimensional loss with a flat and a sharp minimum and a shaded box around each. "
        + " ".join(
            f"{b.name}: box {b.x - b.half_width:.2f} to {b.x + b.half_width:.2f}, largest loss "
            f"{b.loss_max:.3g} at {b.x_max:.2f}, sharpness {b.sharpness:.3g} per cent."
            for b in boxes.itertuples(index=False)
        ),
    )
    figure.add_scatter(x=curve["x"], y=curve["loss"], mode="lines", name="loss f(x)")
    for box, colour in _coloured(boxes.itertuples(index=False), (GREEN, ORANGE)):
        figure.add_vrect(
            box.x - box.half_width,
            box.x + box.half_width,
            fillcolor=colour,
            opacity=0.18,
            line_width=0,
        )
        figure.add_scatter(
            x=[box.x_max],
            y=[box.loss_max],
            mode="markers",
            marker={"color": colour, "size": 11},
            name=f"{box.name}: φ = {box.sharpness:.3g} %",
        )
    figure.update_xaxes(title_text="Parameter x")
    figure.update_yaxes(title_text="Loss", range=[-0.05, 1.15])
    return figure.update_layout(hovermode="closest")


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

    ``table`` has the columns ``x`` and ``y``, label (one curve a label), and seed when there are
    several. ``log`` names the logarithmic axes: "", "x", "y" or "xy". ``xrange`` and ``yrange``
    are in the units of the data. ``marks`` are points (x, y, text) to point out.
    """
    by_label = list(table.groupby("label", sort=False))
    figure = _figure(
        title,
        f"{ylabel} against {xlabel}{_over(table)}. "
        + " ".join(f"{label}: from {_summary(rows, x, y, '.3g')}." for label, rows in by_label)
        + "".join(f" Marked: {text}, {b:.3g} at {a:.3g}." for a, b, text in marks),
        provenance,
    )
    styles = [(c, dash) for dash in ("solid", "dash") for c in (BLUE, ORANGE, GREEN, PURPLE)]
    for (label, rows), (colour, dash) in _coloured(by_label, styles):
        _band(figure, rows, x, y, name=label, colour=colour, dash=dash, mode=mode)
    for mark_x, mark_y, text in marks:
        figure.add_scatter(
            x=[mark_x],
            y=[mark_y],
            mode="markers",
            marker={"color": "black", "size": 9, "symbol": "diamond"},
            name=text,
        )
    for update, name, label, limits in (
        (figure.update_xaxes, x, xlabel, xrange),
        (figure.update_yaxes, y, ylabel, yrange),
    ):
        update(title_text=label, type="linear", range=limits)
        if ("x" if name == x else "y") in log:
            low, high = limits or (table[name].min(), table[name].max())
            # Plotly's own choice of ticks writes 1µ for 10⁻⁶, and a bare 2 and 5 between decades.
            ticks = 1 if high / low > 50 else "D2"
            update(type="log", dtick=ticks, exponentformat="power")
            update(range=[math.log10(v) for v in limits] if limits else None)
    return figure


def noise_scale(
    table: pd.DataFrame, *, batch_size: int, predicted: float, title: str, provenance: str
) -> go.Figure:
    """Equation (24): the noise scale g (left axis) and what was measured (right axis) against B.

    ``table``: columns batch_size, g, and gain, points of test accuracy over the largest batch (NaN
    where it was not measured).
    ``batch_size`` is marked on the curve of g, ``predicted``, a batch size, by a line.
    """
    table = table.sort_values("batch_size")
    known = table.dropna(subset=["gain"])
    chosen = table.loc[(table["batch_size"] - batch_size).abs().idxmin()]
    if known.empty:
        found = "The test accuracy was not measured here."
    else:
        best = known.loc[known["gain"].idxmax()]
        found = (
            f"The test accuracy measured is highest at B = {best['batch_size']:g}, "
            f"{best['gain']:.2f} points above that of the largest batch."
        )
    figure = _figure(
        title,
        f"The noise scale g against the batch size B: from "
        f"{_summary(table, 'batch_size', 'g', '.3g')}; {chosen['g']:.3g} at B = "
        f"{chosen['batch_size']:g}. The predicted optimum is B = {predicted:.3g}. {found}",
        provenance,
    )
    g = table[table["g"] > 0]  # at B = N there is no noise, and no place for it on the axis
    figure.add_scatter(x=g["batch_size"], y=g["g"], mode="lines", name="g", line_color=BLUE)
    figure.add_scatter(
        x=[chosen["batch_size"]],
        y=[chosen["g"] if chosen["g"] > 0 else None],
        mode="markers",
        name="g at B",
        marker={"color": BLUE, "size": 12, "symbol": "diamond"},
    )
    figure.add_scatter(
        x=[predicted] * 2,
        y=[g["g"].min(), g["g"].max()],
        mode="lines",
        name="predicted optimum",
        line={"color": GREEN, "dash": "dash"},
    )
    figure.add_scatter(
        x=known["batch_size"],
        y=known["gain"],
        mode="lines+markers",
        name="gain in test accuracy",
        line={"color": ORANGE},
        yaxis="y2",
    )
    figure.update_xaxes(title_text="Batch size B", type="log", dtick=1)
    figure.update_yaxes(title_text="Noise scale g", type="log", dtick=1, exponentformat="power")
    return figure.update_layout(
        yaxis2=_right_axis(
            "Gain in test accuracy, points", range=[-1.5, 1], tickmode="linear", dtick=0.5
        )
    )


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

    ``table``: columns ``x``, ``y``, ``z`` (positive), one row a point of the grid.
    """
    grid = table.pivot_table(index=y, columns=x, values=z)
    lowest = table.loc[table[z].idxmin()]
    figure = _figure(
        title,
        f"{zlabel} over {xlabel} (from {table[x].min():.3g} to {table[x].max():.3g}) and {ylabel} "
        f"(from {table[y].min():.3g} to {table[y].max():.3g}), as filled contours: from "
        f"{lowest[z]:.3g} at ({lowest[x]:.3g}, {lowest[y]:.3g}) to {table[z].max():.3g}.",
        provenance,
    )
    exponents = np.log10(grid.to_numpy())
    ticks = np.linspace(exponents.min(), exponents.max(), 6)
    figure.add_contour(
        x=grid.columns,
        y=grid.index,
        z=exponents,
        customdata=grid.to_numpy(),
        hovertemplate="(%{x:.3g}, %{y:.3g}): %{customdata:.3g}<extra></extra>",
        colorscale="Cividis",
        ncontours=16,
        line={"width": 0.5},
        colorbar={
            "title": zlabel,
            "tickvals": ticks,
            "ticktext": [f"{10**t:.2g}" for t in ticks],
        },
    )
    figure.update_xaxes(title_text=xlabel, constrain="domain")
    figure.update_yaxes(title_text=ylabel, scaleanchor="x", constrain="domain")  # circles are round
    return figure.update_layout(hovermode="closest")


def spectrum(
    density: pd.DataFrame, outliers: Sequence[float], *, title: str, provenance: str
) -> go.Figure:
    """The density of a Hessian's eigenvalues, with the leading ones marked.

    ``density``: columns eigenvalue, density (of eigenvalues, so that it integrates to their
    number), low, high (a band around it).
    """
    figure = _figure(
        title,
        "Number of eigenvalues of the Hessian per unit of eigenvalue, on a logarithmic axis, from "
        f"{density['eigenvalue'].min():.3g} to {density['eigenvalue'].max():.3g}; it is highest, "
        f"{density['density'].max():.3g}, at "
        f"{density.loc[density['density'].idxmax(), 'eigenvalue']:.3g}. Marked are "
        f"{len(outliers)} leading eigenvalues, from {min(outliers):.3g} to {max(outliers):.3g}.",
        provenance,
    )
    floor = density["density"].max() * 1e-9
    for column, name in (("high", None), ("low", "± 2 standard errors")):
        figure.add_scatter(
            x=density["eigenvalue"],
            y=density[column].clip(lower=floor),
            mode="lines",
            line={"width": 0, "color": BLUE},
            fill="tonexty" if name else None,
            fillcolor="rgba(0, 114, 178, 0.2)",
            hoverinfo="skip",
            showlegend=bool(name),
            name=name,
        )
    figure.add_scatter(
        x=density["eigenvalue"],
        y=density["density"].clip(lower=floor),
        mode="lines",
        name="density",
        line={"color": BLUE},
    )
    figure.add_scatter(
        x=list(outliers),
        y=[1.0] * len(outliers),
        mode="markers",
        name="leading eigenvalues",
        marker={"color": ORANGE, "symbol": "line-ns-open", "size": 16, "line": {"width": 2}},
    )
    figure.update_xaxes(title_text="Eigenvalue of the Hessian, λ")
    figure.update_yaxes(title_text="Eigenvalues per unit of λ", type="log", exponentformat="power")
    return figure
