import itertools
import os
import textwrap

import ipywidgets
import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from lecture6.course import widgets

VALUES = [0.001, 0.5, 2.0, 30.0]


def figure_of(value):
    figure = go.Figure(go.Scatter(x=[0, 1, 2], y=[0, value, value**2]))
    figure.add_vline(value)
    return figure.update_layout(
        title={"text": f"φ at ε = {value:g}", "subtitle": {"text": "profile smoke"}},
        meta={"description": f"A curve for ε = {value:g}."},
    )


# Several controls: each moves a curve of its own, and one curve stands still.
CONTROLS = {"ε": VALUES, "rule": ["linear", "sqrt"], "n": [1, 2, 3]}
COMBINATIONS = list(itertools.product(*CONTROLS.values()))


def figure_of_three(epsilon, rule, n):
    figure = figure_of(epsilon)
    figure.add_scatter(x=[0, 1], y=[0, 1], name=rule)
    figure.add_bar(x=[0, 1], y=[n, n], marker={"color": "black"})
    figure.add_scatter(x=[0, 1], y=[5, 5])
    return figure.update_layout(
        title={"text": f"ε = {epsilon:g}, {rule}, n = {n}"}, meta={"description": "Four curves."}
    )


def counted(calls, function):
    """The function, noting its arguments."""
    return lambda *values: calls.append(values) or function(*values)


# ---- without a kernel -----------------------------------------------------------------------


def shown_after(explorer, names):
    """The figure that Plotly shows after the frames of these names, without its sliders."""
    frames = {frame.name: frame for frame in explorer.frames}
    figure = go.Figure(explorer.data, explorer.layout)
    for name in names:
        for i, trace in zip(frames[name].traces or (), frames[name].data, strict=True):
            figure.data[i].update(trace.to_plotly_json(), overwrite=True)
        figure.layout.update(frames[name].layout.to_plotly_json(), overwrite=True)
    figure.layout.sliders = figure.layout.height = None
    return figure


@pytest.mark.parametrize("start", [None, {}, {"ε": 2}, {"ε": 3}])
def test_static_has_a_frame_a_value_and_shows_the_one_at_start(start):
    figure = widgets.static(figure_of, {"ε": VALUES}, start=start)
    assert [frame.name for frame in figure.frames] == ["0.001", "0.5", "2", "30"]
    for frame, value in zip(figure.frames, VALUES, strict=True):
        expected = figure_of(value)
        assert shown_after(figure, [frame.name]).data == expected.data
        assert frame.layout.title == expected.layout.title
        assert frame.layout.shapes == expected.layout.shapes
    shown = figure_of(VALUES[(start or {}).get("ε", 0)])
    assert figure.data == shown.data
    assert figure.layout.title == shown.layout.title
    assert figure.layout.meta == shown.layout.meta


@pytest.mark.parametrize("start", [0, 3])
def test_the_sliders_steps_go_to_existing_frames(start):
    figure = widgets.static(figure_of, {"ε": VALUES}, start={"ε": start})
    (slider,) = figure.layout.sliders
    assert slider.active == start
    assert slider.currentvalue.prefix == "ε = "
    assert [step.label for step in slider.steps] == [frame.name for frame in figure.frames]
    for step, frame in zip(slider.steps, figure.frames, strict=True):
        names, options = step.args
        assert (step.method, list(names), options["mode"]) == ("animate", [frame.name], "immediate")


@pytest.mark.parametrize("start", [{}, {"rule": 1}, {"ε": 3, "n": 2}])
def test_several_controls_have_a_frame_for_each_combination(start):
    explorer = widgets.static(figure_of_three, CONTROLS, start=start)
    names = [f"{epsilon:g}, {rule}, {n}" for epsilon, rule, n in COMBINATIONS]
    assert [frame.name for frame in explorer.frames] == names
    at = [values[start.get(label, 0)] for label, values in CONTROLS.items()]
    assert shown_after(explorer, []) == figure_of_three(*at)
    for name, values in zip(names, COMBINATIONS, strict=True):
        assert shown_after(explorer, [name]) == figure_of_three(*values)


def test_frames_may_follow_each_other_in_any_order_and_hold_only_what_differs():
    explorer = widgets.static(figure_of_three, CONTROLS)
    order = ["30, sqrt, 3", "0.5, linear, 3", "0.5, sqrt, 1", "0.001, linear, 2"]
    assert shown_after(explorer, order) == figure_of_three(0.001, "linear", 2)
    for frame in explorer.frames:
        assert frame.traces == (0, 1, 2)
        held = [set(trace.to_plotly_json()) for trace in frame.data]
        assert held == [{"type", "y"}, {"type", "name"}, {"type", "y"}]


def test_an_attribute_that_some_figures_leave_out_is_held_by_those_that_set_it():
    def dashed(n):
        return go.Figure(go.Scatter(y=[1, 2], line={"dash": "dot"} if n == 2 else None))

    for values in ([1, 2], [2, 1]):
        explorer = widgets.static(dashed, {"n": values}, start={"n": values.index(1)})
        assert shown_after(explorer, ["2"]) == dashed(2)


@pytest.mark.parametrize("start", [{}, {"ε": 2, "rule": 1, "n": 1}])
def test_several_sliders_have_a_step_a_value_and_leave_the_frame_to_the_page(start):
    explorer = widgets.static(figure_of_three, CONTROLS, start=start)
    frames = {frame.name for frame in explorer.frames}
    sliders = explorer.layout.sliders
    assert [slider.active for slider in sliders] == [start.get(label, 0) for label in CONTROLS]
    assert [slider.currentvalue.prefix for slider in sliders] == ["ε = ", "rule = ", "n = "]
    labels = [[step.label for step in slider.steps] for slider in sliders]
    assert labels == [["0.001", "0.5", "2", "30"], ["linear", "sqrt"], ["1", "2", "3"]]
    assert {", ".join(combination) for combination in itertools.product(*labels)} == frames
    assert {step.method for slider in sliders for step in slider.steps} == {"skip"}


@pytest.mark.parametrize("height", [None, 600])
def test_several_sliders_make_the_figure_higher_instead_of_the_plot_lower(height):
    def figure(*_):
        return go.Figure(go.Scatter(y=[1]), layout={"height": height})

    one = widgets.static(figure, {"a": [1, 2]})
    assert one.layout.height == height
    three = widgets.static(figure, {"a": [1, 2], "b": [1, 2], "c": [1, 2]})
    tops = [slider.pad.t for slider in three.layout.sliders]
    assert tops[0] == one.layout.sliders[0].pad.t
    gap = tops[1] - tops[0]
    assert tops[2] - tops[1] == gap
    assert three.layout.height == (height or 450) + 2 * gap


@pytest.mark.parametrize(
    ("function", "controls"),
    [(figure_of, {"ε": VALUES}), (figure_of_three, CONTROLS)],
    ids=["one", "several"],
)
def test_static_calls_the_function_once_a_combination_and_lets_it_raise(function, controls):
    calls = []
    widgets.static(counted(calls, function), controls)
    assert calls == list(itertools.product(*controls.values()))
    with pytest.raises(ZeroDivisionError):
        widgets.static(lambda v, *rest: function(1 / (v - 2), *rest), controls)


def test_a_value_may_be_a_word(monkeypatch):
    def of_rule(rule):
        return figure_of({"linear": 1.0, "sqrt": 2.0}[rule])

    controls = {"rule": ["linear", "sqrt"]}
    figure = widgets.static(of_rule, controls, start={"rule": 1})
    assert [frame.name for frame in figure.frames] == ["linear", "sqrt"]
    assert figure.layout.title == figure_of(2.0).layout.title
    monkeypatch.delenv("LECTURE6_STATIC", raising=False)
    (slider,), _ = parts(widgets.explore(of_rule, controls))
    assert slider.options == (("linear", "linear"), ("sqrt", "sqrt"))


def test_frames_of_different_numbers_of_curves_are_refused():
    def growing(n, rule="sqrt"):
        return go.Figure([go.Scatter(x=[0], y=[0])] * (n if rule == "sqrt" else 1))

    with pytest.raises(
        ValueError, match=r"every value of n must .* as many curves, but 1 shows 1 and 3 shows 3"
    ):
        widgets.static(growing, {"n": [1, 3]})
    with pytest.raises(ValueError, match=r"of n, rule must .* 1, linear shows 1 and 3, sqrt shows"):
        widgets.static(growing, {"n": [1, 2, 3], "rule": ["linear", "sqrt"]})


@pytest.mark.parametrize("static", ["", "1"], ids=["live", "static"])
@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ({"a": [2, 2.0]}, "a needs values, no two of the same name, got"),
        ({"a": ["2", 2]}, "a needs values, no two of the same name, got"),
        ({"a": [0.1, 0.1, 0.2]}, "a needs values, no two of the same name, got"),
        ({"a": [2**53, 2**53 + 1]}, "a needs values, no two of the same name, got"),
        ({"a": ["x", "x, y"], "b": ["z", "y, z"]}, "two values of a, b have the same name"),
        ({"a": []}, "a needs values"),
        ({"a": [1, None]}, "a must be a number, got None"),
        ({"a": [1, float("nan")]}, "a must be a finite number, got nan"),
        ({}, "there is no control"),
    ],
)
def test_controls_that_cannot_be_shown_are_refused(monkeypatch, static, controls, message):
    monkeypatch.setenv("LECTURE6_STATIC", static)
    with pytest.raises(ValueError, match=message):
        widgets.explore(lambda *_: figure_of(1.0), controls)


CLOSE = {
    "millions": ([10**6, 10**6 + 1], ["1000000", "1000001"]),
    "rates": ([0.1, 0.1000001], ["0.1", "0.1000001"]),
    "small": ([1e-9, 1.0000001e-9, 2e-9], ["1e-09", "1.0000001e-09", "2e-09"]),
    "neighbours": ([1.0, 1.0 + 2**-52], ["1", "1.0000000000000002"]),
    "of numpy": (np.array([123456.6, 123456.7]), ["123456.6", "123456.7"]),
    "six digits": ([0.123456, 1e6, 0.5], ["0.123456", "1e+06", "0.5"]),
    "beside a word": (["1e+06", 10**6, 10**6 + 1], ["1e+06", "1000000", "1000001"]),
}


@pytest.mark.parametrize("static", ["", "1"], ids=["live", "static"])
@pytest.mark.parametrize("name", CLOSE)
def test_numbers_have_as_many_digits_as_tell_them_apart(monkeypatch, static, name):
    """Finding B10."""
    monkeypatch.setenv("LECTURE6_STATIC", static)
    values, names = CLOSE[name]
    found = widgets.explore(lambda _: figure_of(1.0), {"n": values})
    if static:
        assert [frame.name for frame in found.frames] == names
        assert [step.label for step in found.layout.sliders[0].steps] == names
    else:
        assert found.children[0].options == tuple(zip(names, values, strict=True))


@pytest.mark.parametrize("static", ["", "1"], ids=["live", "static"])
def test_values_may_be_of_numpy_or_yes_and_no(monkeypatch, static):
    monkeypatch.setenv("LECTURE6_STATIC", static)
    calls, controls = [], {"n": np.array([1, 2]), "nesterov": (False, True)}
    found = widgets.explore(
        counted(calls, lambda n, _: figure_of(n)), controls, start={"n": np.int64(1)}
    )
    names = ["1, False", "1, True", "2, False", "2, True"]
    assert ([f.name for f in found.frames] == names) if static else (calls == [(2, False)])


@pytest.mark.parametrize("static", ["", "1"], ids=["live", "static"])
@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"n": 0}, r"start names \['n'\], but the controls are \['ε', 'rule'\]"),
        ({"ε": 4}, "start of ε must be at least 0 and at most 3, got 4"),
        ({"rule": -1}, "start of rule must be at least 0 and at most 1, got -1"),
        ({"ε": 0.5}, "start of ε must be a whole number, got 0.5"),
    ],
)
def test_a_start_that_does_not_exist_is_refused(monkeypatch, static, start, message):
    monkeypatch.setenv("LECTURE6_STATIC", static)
    with pytest.raises(ValueError, match=message):
        widgets.explore(
            lambda epsilon, rule: figure_of(epsilon),
            {"ε": VALUES, "rule": ["linear", "sqrt"]},
            start=start,
        )


def test_the_environment_decides_which_explorer_it_is(monkeypatch):
    monkeypatch.setenv("LECTURE6_STATIC", "1")
    for function, controls in ((figure_of, {"ε": VALUES}), (figure_of_three, CONTROLS)):
        expected = widgets.static(function, controls, start={"ε": 1})
        assert widgets.explore(function, controls, start={"ε": 1}) == expected
    monkeypatch.delenv("LECTURE6_STATIC")
    assert isinstance(widgets.explore(figure_of, {"ε": VALUES}), ipywidgets.Widget)


# ---- with live sliders ------------------------------------------------------------------------


def parts(explorer):
    *sliders, output = explorer.children
    assert all(isinstance(slider, ipywidgets.SelectionSlider) for slider in sliders)
    assert isinstance(output, ipywidgets.Output)
    return sliders, output


@pytest.fixture
def live(monkeypatch):
    monkeypatch.delenv("LECTURE6_STATIC", raising=False)


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize("start", [0, 2])
def test_the_live_slider_calls_the_function_for_each_value(start):
    calls = []
    explorer = widgets.explore(counted(calls, figure_of), {"ε": VALUES}, start={"ε": start})
    (slider,), _ = parts(explorer)
    assert (slider.value, slider.description) == (VALUES[start], "ε")
    assert calls == [(VALUES[start],)]
    others = [value for value in VALUES if value != VALUES[start]]
    for value in others:
        slider.value = value
    assert calls == [(VALUES[start],), *((value,) for value in others)]


@pytest.mark.usefixtures("live")
def test_each_of_several_live_sliders_calls_the_function_with_the_values_of_all():
    calls = []
    explorer = widgets.explore(counted(calls, figure_of_three), CONTROLS, start={"ε": 1, "n": 1})
    sliders, _ = parts(explorer)
    assert [slider.description for slider in sliders] == list(CONTROLS)
    assert not any(slider.continuous_update for slider in sliders)
    expected = [0.5, "linear", 2]
    assert calls == [tuple(expected)]
    for i, (slider, values) in enumerate(zip(sliders, CONTROLS.values(), strict=True)):
        for value in (values[0], values[-1]):
            expected[i] = slider.value = value
            assert calls[-1] == tuple(expected)


@pytest.mark.usefixtures("live")
def test_the_function_may_take_the_least_default_and_greatest_value_of_every_control():
    calls = []
    explorer = widgets.explore(counted(calls, figure_of_three), CONTROLS, start={"ε": 1, "n": 1})
    sliders, _ = parts(explorer)
    defaults = calls[0]
    chosen = [
        (v[0], default, v[-1]) for v, default in zip(CONTROLS.values(), defaults, strict=True)
    ]
    for values in itertools.product(*chosen):
        for slider, value in zip(sliders, values, strict=True):
            slider.value = value
        assert calls[-1] == values


@pytest.mark.usefixtures("live")
def test_an_error_in_the_function_is_raised():
    with pytest.raises(ZeroDivisionError):
        widgets.explore(lambda v: 1 / 0, {"ε": VALUES})
    (slider,), _ = parts(widgets.explore(lambda v: figure_of(1 / (v - 2)), {"ε": VALUES}))
    with pytest.raises(ZeroDivisionError):
        slider.value = 2.0
    (_, slider), _ = parts(
        widgets.explore(lambda a, b: figure_of(1 / (b - a)), {"a": [1.0, 2.0], "b": [3.0, 1.0]})
    )
    with pytest.raises(ZeroDivisionError):
        slider.value = 1.0


# ---- in a kernel, where Output behaves differently -------------------------------------------

SETUP = """
import plotly.graph_objects as go
from lecture6.course.widgets import explore

def figure_of(value):
    return go.Figure(go.Scatter(y=[value, 1 / (value - 2)]))
"""


def run_cells(*sources):
    cells = [nbformat.v4.new_code_cell(textwrap.dedent(source)) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(notebook, timeout=120, kernel_name="python3")
    client.execute(env={**os.environ, "LECTURE6_STATIC": ""})
    return client


def test_in_a_kernel_the_output_holds_the_figure_of_the_sliders_value():
    client = run_cells(
        SETUP, 'box = explore(figure_of, {"ε": [1.0, 3.0]})', "box.children[0].value = 3.0; box"
    )
    (output,) = [w for w in client.widget_state.values() if w["_model_name"] == "OutputModel"]
    (shown,) = output["outputs"]
    (trace,) = shown["data"]["application/vnd.plotly.v1+json"]["data"]
    assert trace["y"] == [3.0, 1.0]


@pytest.mark.parametrize(
    "cell",
    [
        'explore(figure_of, {"ε": [2.0, 3.0]})',
        'explore(figure_of, {"ε": [1.0, 2.0]}).children[0].value = 2.0',
    ],
    ids=["at the start", "when moved"],
)
def test_in_a_kernel_an_error_in_the_function_fails_the_cell(cell):
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run_cells(SETUP, cell)
