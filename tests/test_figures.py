import itertools
import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from torch import nn

from lecture6 import models
from lecture6.course import figures

PROVENANCE = "profile smoke · synthetic · seeds 0–2"
COMMON = {"title": "A title", "provenance": PROVENANCE}


def history(n_seeds=3, labels=("small", "large")):
    rng = np.random.default_rng(0)
    rows = [
        (label, seed, epoch, 10 * epoch, split, rng.uniform(0.2, 0.9))
        for label in labels
        for seed in range(n_seeds)
        for epoch in range(4)
        for split in ("train", "test")
    ]
    columns = ["label", "seed", "epoch", "update", "split", "accuracy"]
    return pd.DataFrame(rows, columns=columns)


def path(n_seeds=3):
    rng = np.random.default_rng(1)
    rows = [
        (seed, alpha, split, rng.uniform(0.1, 3), rng.uniform(0.2, 0.9))
        for seed in range(n_seeds)
        for split in ("train", "test")
        for alpha in (-1.0, 0.0, 0.5, 1.0, 2.0)
    ]
    return pd.DataFrame(rows, columns=["seed", "alpha", "split", "loss", "accuracy"])


def sizes(n_seeds=3, epsilons=(1e-3, 5e-4)):
    rng = np.random.default_rng(2)
    accuracies = {(s, b): rng.uniform(0.5, 0.9) for s in range(n_seeds) for b in (16, 64, 1000)}
    rows = [
        (batch, seed, accuracy, epsilon, rng.uniform(1, 100))
        for (seed, batch), accuracy in accuracies.items()
        for epsilon in epsilons
    ]
    columns = ["batch_size", "seed", "accuracy", "epsilon", "sharpness"]
    return pd.DataFrame(rows, columns=columns)


def net():
    dense = nn.Linear(784, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 10)
    return nn.Sequential(nn.Flatten(), *dense)


def lines(labels="abc"):
    rng = np.random.default_rng(3)
    rows = [(x, rng.uniform(1, 9), f"curve {c}", s) for c in labels for s in (0, 1) for x in (1, 5)]
    return pd.DataFrame(rows, columns=["x", "y", "label", "seed"])


def bowl():
    rows = [(x, y, 1 + x**2 + 10 * y**2) for x in (-1.0, 0.0, 2.0) for y in (-1.0, 0.0, 1.0)]
    return pd.DataFrame(rows, columns=["x", "y", "z"])


def density():
    x = np.linspace(-1, 6, 50)
    y = 1e4 * np.exp(-(x**2))
    return pd.DataFrame({"eigenvalue": x, "density": y, "low": 0.9 * y - 1, "high": 1.1 * y})


AXES = {"xlabel": "The x", "ylabel": "The y"}
FIGURES = {
    "schematic": lambda: figures.schematic(net(), (1, 28, 28), "A net"),
    "accuracy": lambda: figures.accuracy(history(), **COMMON),
    "accuracy by update": lambda: figures.accuracy(history(), **COMMON, x="update"),
    "interpolation": lambda: figures.interpolation(path(), **COMMON),
    "accuracy_and_sharpness": lambda: figures.accuracy_and_sharpness(sizes(), **COMMON),
    "curves": lambda: figures.curves(
        lines(), "x", "y", marks=[(1.0, 2.0, "here")], **AXES, **COMMON
    ),
    "contour": lambda: figures.contour(bowl(), "x", "y", "z", zlabel="z", **AXES, **COMMON),
    "spectrum": lambda: figures.spectrum(density(), [3.0, 5.0], **COMMON),
}


@pytest.fixture(scope="module")
def drawn():
    return {name: draw() for name, draw in FIGURES.items()}


def curves(figure):
    """The traces that the legend names."""
    return [t for t in figure.data if t.name and t.showlegend is not False]


def bands(figure):
    return {t.legendgroup: t for t in figure.data if t.fill == "toself"}


def description(figure):
    return figure.layout.meta["description"]


# ---- what holds for every figure ------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_describes_itself(drawn, name):
    figure = drawn[name]
    assert isinstance(figure, go.Figure)
    assert len(description(figure)) > 40
    assert description(figure).endswith(".")
    assert "nan" not in description(figure)
    assert figure.layout.title.text


@pytest.mark.parametrize("name", FIGURES)
def test_every_axis_has_a_title(drawn, name):
    layout = drawn[name].layout
    assert layout.xaxis.title.text
    used = {trace.yaxis or "y" for trace in drawn[name].data}
    if layout.yaxis.showticklabels is not False:
        for axis in used:
            assert layout[axis.replace("y", "yaxis")].title.text


@pytest.mark.parametrize("name", FIGURES)
def test_no_figure_uses_mathjax(drawn, name):
    assert "$" not in drawn[name].to_json()


@pytest.mark.parametrize("name", ["accuracy", "accuracy_and_sharpness", "curves", "contour"])
def test_the_subtitle_says_which_run_it_was(drawn, name):
    assert drawn[name].layout.title.subtitle.text == PROVENANCE
    assert drawn[name].layout.title.text == "A title"


@pytest.mark.parametrize("name", ["accuracy", "interpolation", "accuracy_and_sharpness", "curves"])
def test_one_legend_entry_a_curve_each_with_a_look_of_its_own(drawn, name):
    shown = curves(drawn[name])
    names = [t.name for t in shown]
    assert len(names) == len(set(names)) >= 3
    looks = {(t.line.color, t.line.dash, t.marker.color) for t in shown}
    assert len(looks) == len(shown)


@pytest.mark.parametrize("name", ["accuracy", "interpolation", "accuracy_and_sharpness"])
def test_every_curve_has_the_mean_of_its_seeds_and_their_range_as_a_band(drawn, name):
    figure = drawn[name]
    found = bands(figure)
    assert set(found) == {t.name for t in curves(figure)}
    for line in curves(figure):
        band = found[line.name]
        n = len(line.x)
        assert list(band.x[:n]) == list(line.x) == list(band.x[: -n - 1 : -1])
        highest, lowest = np.array(band.y[:n]), np.array(band.y[n:])[::-1]
        assert (lowest < line.y).all()
        assert (line.y < highest).all()
        assert (band.yaxis or "y") == (line.yaxis or "y")
        assert band.showlegend is False
        assert band.opacity < 0.5


def test_figures_keep_no_state(drawn):
    for name, draw in FIGURES.items():
        assert draw().to_json() == drawn[name].to_json()


# ---- colours --------------------------------------------------------------------------------

# From linear RGB to what is seen without one of the three kinds of cones: Machado, Oliveira and
# Fernandes, "A physiologically-based model for simulation of color vision deficiency", 2009.
SEEN = {
    "all cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour, seen):
    """CIE L*a*b* of a colour like "#0072B2", where distance is difference to the eye."""
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(srgb > 0.04045, ((srgb + 0.055) / 1.055) ** 2.4, srgb / 12.92)
    t = XYZ @ np.clip(np.array(seen) @ linear, 0, 1) / XYZ.sum(axis=1)
    x, y, z = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def least_difference(colours, seen):
    pairs = itertools.combinations([lab(colour, seen) for colour in colours], 2)
    return min(np.linalg.norm(a - b) for a, b in pairs)


@pytest.mark.parametrize("seen", SEEN)
def test_colours_are_told_apart_with_any_kind_of_eyes(seen):
    palette = (figures.BLUE, figures.ORANGE, figures.GREEN, figures.PURPLE)
    assert least_difference(palette, SEEN[seen]) > 15  # a difference of 2.3 is just noticed


def test_red_and_green_would_not_be_told_apart():
    red, green = "#EF553B", "#7F9F00"
    assert least_difference((red, green), SEEN["all cones"]) > 15
    assert least_difference((red, green), SEEN["deuteranopia"]) < 15


# ---- numbers --------------------------------------------------------------------------------


def line(figure, name):
    (found,) = [t for t in curves(figure) if t.name == name]
    return found


@pytest.mark.parametrize("x", ["epoch", "update"])
def test_accuracy_shows_and_says_the_tables_means(x):
    table = history()
    figure = figures.accuracy(table, **COMMON, x=x)
    assert "3 seeds" in description(figure)
    for label in ("small", "large"):
        for split in ("train", "test"):
            rows = table[(table["label"] == label) & (table["split"] == split)]
            means = 100 * rows.groupby(x)["accuracy"].mean()
            shown = line(figure, f"{label}, {split}")
            np.testing.assert_allclose(shown.y, means)
            assert list(shown.x) == list(means.index)
            assert shown.line.dash == {"train": "solid", "test": "dash"}[split]
            band = bands(figure)[shown.name]
            assert max(band.y) == pytest.approx(100 * rows["accuracy"].max())
            assert min(band.y) == pytest.approx(100 * rows["accuracy"].min())
            said = f"{label}, {split}: from {means.iloc[0]:.1f} at 0 to {means.iloc[-1]:.1f}"
            assert said in description(figure)


def test_curves_that_differ_by_a_number_have_the_colours_of_a_ramp():
    labels = ["k = 1", "k = 4", "k = 1,600", "limit = 2"]
    shown = looks_of(labels)
    channels = np.array([re.findall(r"\d+", shown[label][0]) for label in labels[:3]], dtype=int)
    ends = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (figures.BLUE, figures.ORANGE)]
    np.testing.assert_allclose(channels, [ends[0], np.mean(ends, 0), ends[1]], atol=1)
    assert [shown[label][1] for label in labels] == ["solid", "solid", "solid", "dash"]
    assert shown["limit = 2"][0] not in {colour for colour, _ in list(shown.values())[:3]}


@pytest.mark.parametrize(
    "labels", [["k = 1", "k = 4"], ["a", "b", "c"], ["k = 1", "n = 2", "B = 3"]]
)
def test_other_curves_have_hues(labels):
    shown = looks_of(labels)
    assert [colour for colour, _ in shown.values()] == list(figures._COLOURS[: len(labels)])


def looks_of(labels):
    """The colour and the dash of each curve of a figure that has these."""
    table = pd.DataFrame({"x": 1, "y": 2, "label": labels})
    figure = figures.curves(table, "x", "y", xlabel="x", ylabel="y", title="Looks")
    return {curve.name: (curve.line.color, curve.line.dash) for curve in figure.data if curve.name}


def assert_two_panels(figure):
    """Over one x-axis, which stands at the lower; they share no height."""
    above, below = figure.layout.yaxis.domain, figure.layout.yaxis2.domain
    assert 0 == below[0] < below[1] < above[0] < above[1] == 1
    assert figure.layout.xaxis.anchor == "y2"
    assert {curve.xaxis or "x" for curve in figure.data} == {"x"}


def test_interpolation_shows_and_says_the_tables_means():
    table = path()
    figure = figures.interpolation(table, **COMMON)
    assert "mean and range of 3 seeds" in description(figure)
    for split in ("train", "test"):
        means = table[table["split"] == split].groupby("alpha")[["loss", "accuracy"]].mean()
        loss, accuracy = (line(figure, f"{what}, {split}") for what in ("loss", "accuracy"))
        np.testing.assert_allclose(loss.y, means["loss"])
        np.testing.assert_allclose(accuracy.y, 100 * means["accuracy"])
        assert (loss.yaxis or "y", accuracy.yaxis) == ("y", "y2")
        for alpha in (-1, 0, 1, 2):
            said = (
                f"{split} at α = {alpha}: loss {means['loss'][alpha]:.2g}, "
                f"accuracy {100 * means['accuracy'][alpha]:.1f} per cent"
            )
            assert said in description(figure)
    assert [(s.x0, s.x1, s.y0, s.y1, s.yref) for s in figure.layout.shapes] == [
        (alpha, alpha, 0, 1, "paper") for alpha in (0, 1)
    ]
    assert_two_panels(figure)
    assert [a.text for a in figure.layout.annotations] == ["small batch", "large batch"]


def test_interpolation_of_one_pair_needs_no_seeds():
    table = path(1).drop(columns="seed")
    before = table.copy()
    figure = figures.interpolation(table, **COMMON)
    assert "seeds" not in description(figure)
    assert table.equals(before)


def test_accuracy_and_sharpness_shows_and_says_the_tables_means():
    table = sizes()
    figure = figures.accuracy_and_sharpness(table, **COMMON)
    accuracy = 100 * table.groupby("batch_size")["accuracy"].mean()
    np.testing.assert_allclose(line(figure, "test accuracy").y, accuracy)
    assert f"{accuracy[16]:.1f} at 16 to {accuracy[1000]:.1f} at 1000" in description(figure)
    for epsilon, name in ((1e-3, "0.001"), (5e-4, "0.0005")):
        means = table[table["epsilon"] == epsilon].groupby("batch_size")["sharpness"].mean()
        shown = line(figure, f"sharpness, ε = {name}")
        np.testing.assert_allclose(shown.y, means)
        assert shown.yaxis == "y2"
        said = f"ε = {name} goes from {means[16]:.3g} at 16 to {means[1000]:.3g} at 1000"
        assert said in description(figure)
    assert list(figure.layout.xaxis.ticktext) == ["16", "64", "1,000"]
    assert_two_panels(figure)


@pytest.mark.parametrize(
    ("make", "shape"), [(models.f1, (1, 28, 28)), (models.f2, (360,)), (models.c1, (3, 32, 32))]
)
def test_a_schematic_is_read_off_the_network(make, shape):
    model = make()
    blocks = figures._blocks(model, shape)
    assert sum(n for *_, n in blocks) == models.count_parameters(model)
    weights = [layer for layer in model if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert [names[0] for names, *_ in blocks] == [
        "Input",
        *(type(layer).__name__.removesuffix("2d") for layer in weights),
    ]
    with torch.no_grad():
        out = model.eval()(torch.zeros(2, *shape))
    assert np.prod(blocks[0][1]) == np.prod(shape)  # a Flatten belongs to the input's block
    assert blocks[-1][1] == tuple(out.shape[1:])


def test_a_schematic_leaves_the_model_and_the_callers_generator_alone():
    model = models.c1(batch_norm="running")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    figures.schematic(model, (3, 32, 32), "C1")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_schematic_draws_a_bar_a_block_with_its_shape_and_parameters():
    figure = figures.schematic(net(), (1, 28, 28), "A net")
    (bar,) = figure.data
    assert list(bar.y) == ["1. Input", "2. Linear + BatchNorm + ReLU", "3. Linear"]
    assert list(bar.x) == [784, 512, 10]
    assert "408,074 parameters" in figure.layout.title.text
    for text in ("784", "512 · 402,944 parameters", "10 · 5,130 parameters"):
        assert any(text in a.text for a in figure.layout.annotations)
        assert text in description(figure)


# ---- nothing is left out in silence ---------------------------------------------------------


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.accuracy(history(labels="abcde"), **COMMON),
        lambda: figures.accuracy_and_sharpness(sizes(epsilons=(1e-3, 5e-4, 1e-4)), **COMMON),
        lambda: figures.curves(lines("abcdefghi"), "x", "y", **AXES, **COMMON),
    ],
    ids=["five labels", "three epsilons", "nine curves"],
)
def test_more_curves_than_there_are_colours_are_refused(draw):
    with pytest.raises(ValueError, match=r"at most \d .*, got \d"):
        draw()


def test_curves_show_and_say_means_marks_and_ranges():
    figure = figures.curves(
        lines(),
        "x",
        "y",
        log="x",
        xrange=(0.1, 100),
        yrange=(0, 9),
        marks=[(2, 3, "here"), (4, 5, "there")],
        **AXES,
        **COMMON,
    )
    shown = {t.name: t for t in curves(figure)}
    for label, rows in lines().groupby("label"):
        assert list(shown[label].y) == list(rows.groupby("x").y.mean())
        assert f"{label}: from {rows[rows.x == 1].y.mean():.3g} at 1" in description(figure)
    assert (list(shown["here"].x), list(shown["here"].y)) == ([2], [3])
    assert shown["here"].marker.symbol != shown["there"].marker.symbol
    assert "Marked: here, 3 at 2." in description(figure)
    assert "mean and range of 2 seeds" in description(figure)
    assert list(figure.layout.xaxis.range) == [-1, 2]  # decades
    assert list(figure.layout.yaxis.range) == [0, 9]
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "linear")


def test_contour_shows_the_values_on_a_scale_of_decades(drawn):
    (trace,) = drawn["contour"].data
    assert list(trace.x) == [-1, 0, 2]
    assert trace.z[2][0] == pytest.approx(np.log10(12.0))  # x = -1, y = 1
    assert trace.customdata[1][2] == 5.0  # x = 2, y = 0
    assert trace.colorbar.ticktext[0] == "1"
    assert "from 1 at (0, 0) to 15" in description(drawn["contour"])


def test_spectrum_marks_the_outliers_and_keeps_its_logarithm_finite(drawn):
    figure = drawn["spectrum"]
    marks = next(t for t in figure.data if t.name == "leading eigenvalues")
    assert list(marks.x) == [3.0, 5.0]
    assert figure.layout.yaxis.type == "log"
    assert all((np.array(t.y) > 0).all() for t in figure.data)
    assert "2 leading eigenvalues, from 3 to 5" in description(figure)


# ---- what cannot be shown ---------------------------------------------------------------------

TABLES = {
    "accuracy": (history, lambda t: figures.accuracy(t, **COMMON)),
    "interpolation": (path, lambda t: figures.interpolation(t, **COMMON)),
    "accuracy_and_sharpness": (sizes, lambda t: figures.accuracy_and_sharpness(t, **COMMON)),
    "curves": (lines, lambda t: figures.curves(t, "x", "y", **AXES, **COMMON)),
    "contour": (
        bowl,
        lambda t: figures.contour(t, "x", "y", "z", zlabel="z", **AXES, **COMMON),
    ),
    "spectrum": (density, lambda t: figures.spectrum(t, [1.0], **COMMON)),
}
each_table = pytest.mark.parametrize("name", TABLES)


@each_table
def test_a_table_without_rows_or_a_column_is_refused(name):
    table, draw = TABLES[name]
    with pytest.raises(ValueError, match="no rows"):
        draw(table().iloc[:0])
    for column in set(table().columns) - {"seed", "update"}:
        with pytest.raises(ValueError, match=f"a column is missing: \\['{column}'\\]"):
            draw(table().drop(columns=column))


GAPS = {
    "accuracy": ["accuracy"],
    "accuracy_and_sharpness": ["accuracy", "sharpness"],
    "curves": ["y"],
}


@each_table
@pytest.mark.parametrize("rows", [0, slice(None)], ids=["one value", "all values"])
def test_a_value_that_is_not_finite_is_a_gap_or_refused(name, rows):
    table, draw = TABLES[name]
    for column in table().select_dtypes("float"):
        holed = table()
        holed.loc[rows, column] = np.nan
        if holed[column].isna().all() and column == "gain":
            continue  # nothing was measured: refused, see above
        if column in GAPS.get(name, []):
            assert "nan" not in description(draw(holed))
        else:
            with pytest.raises(ValueError, match=f"{column} has values that are not finite"):
                draw(holed)


@each_table
def test_the_index_of_a_table_means_nothing(name):
    table, draw = TABLES[name]
    shuffled = table().set_index(np.zeros(len(table()), dtype=int))
    assert draw(shuffled).to_json() == draw(table()).to_json()


def test_a_curve_without_a_finite_value_is_said_to_have_none():
    holed = lines("ab").assign(y=lambda t: t["y"].where(t["label"] == "curve a"))
    figure = figures.curves(holed, "x", "y", **AXES, **COMMON)
    assert description(figure).endswith("curve b: nowhere finite.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log": "z"}, "log must be .* got 'z'"),
        ({"log": "x", "xrange": (0, 1)}, "xrange of a logarithm must be .* above 0, got 0"),
        ({"log": "y", "yrange": (1, np.nan)}, "yrange of a logarithm must be .*, got nan"),
    ],
)
def test_an_axis_that_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        figures.curves(lines(), "x", "y", **options, **AXES, **COMMON)


def test_a_logarithmic_axis_needs_a_positive_value():
    axes = {"log": "y", **AXES, **COMMON}
    with pytest.raises(ValueError, match="y has no positive value"):
        figures.curves(lines().assign(y=0.0), "x", "y", **axes)
    assert figures.curves(lines().assign(y=lambda t: t.x - 1), "x", "y", **axes)


def test_a_contour_needs_a_positive_value_at_every_point():
    labels = {"zlabel": "z", **AXES, **COMMON}
    for table in (bowl().iloc[1:], bowl().assign(z=lambda t: t.z - 1)):
        with pytest.raises(ValueError, match="a positive z at every point of a grid of x and y"):
            figures.contour(table, "x", "y", "z", **labels)


@pytest.mark.parametrize("outliers", [[], [np.nan], ["top"]])
def test_a_spectrum_has_leading_eigenvalues(outliers):
    with pytest.raises(ValueError, match=r"leading eigenvalue.*, got"):
        figures.spectrum(density(), outliers, **COMMON)


def test_accuracy_goes_by_epoch_or_update_and_splits_are_two():
    with pytest.raises(ValueError, match="x must be 'epoch' or 'update', got 'step'"):
        figures.accuracy(history(), **COMMON, x="step")
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'valid'"):
        figures.accuracy(history().replace("test", "valid"), **COMMON)
