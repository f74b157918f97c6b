import os
import textwrap

import ipywidgets
import nbformat
import plotly.graph_objects as go
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from lecture6 import widgets

VALUES = [0.001, 0.5, 2.0, 30.0]


def figure_of(value):
    figure = go.Figure(go.Scatter(x=[0, 1, 2], y=[0, value, value**2]))
    figure.add_vline(value)
    return figure.update_layout(
        title={"text": f"φ at ε = {value:g}", "subtitle": {"text": "profile smoke"}},
        meta={"description": f"A curve for ε = {value:g}."},
    )


def explore(**options):
    return widgets.explore(options.pop("figure_of", figure_of), VALUES, label="ε", **options)


# ---- without a kernel -----------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 2, 3])
def test_static_has_a_frame_a_value_and_shows_the_one_at_start(start):
    figure = widgets.static(figure_of, VALUES, label="ε", start=start)
    assert [frame.name for frame in figure.frames] == ["0.001", "0.5", "2", "30"]
    for frame, value in zip(figure.frames, VALUES, strict=True):
        expected = figure_of(value)
        assert frame.data == expected.data
        assert frame.layout.title == expected.layout.title
        assert frame.layout.shapes == expected.layout.shapes
    shown = figure_of(VALUES[start])
    assert figure.data == shown.data
    assert figure.layout.title == shown.layout.title
    assert figure.layout.meta == shown.layout.meta


@pytest.mark.parametrize("start", [0, 3])
def test_the_sliders_steps_go_to_existing_frames(start):
    figure = widgets.static(figure_of, VALUES, label="ε", start=start)
    (slider,) = figure.layout.sliders
    assert slider.active == start
    assert slider.currentvalue.prefix == "ε = "
    assert [step.label for step in slider.steps] == [frame.name for frame in figure.frames]
    for step, frame in zip(slider.steps, figure.frames, strict=True):
        names, options = step.args
        assert (step.method, list(names), options["mode"]) == ("animate", [frame.name], "immediate")


def test_static_calls_the_function_once_a_value_and_lets_it_raise():
    calls = []
    widgets.static(lambda v: calls.append(v) or figure_of(v), VALUES, label="ε")
    assert calls == VALUES
    with pytest.raises(ZeroDivisionError):
        widgets.static(lambda v: figure_of(1 / (v - 2)), VALUES, label="ε")


def test_a_value_may_be_a_word(monkeypatch):
    def of_rule(rule):
        return figure_of({"linear": 1.0, "sqrt": 2.0}[rule])

    figure = widgets.static(of_rule, ["linear", "sqrt"], label="rule", start=1)
    assert [frame.name for frame in figure.frames] == ["linear", "sqrt"]
    assert figure.layout.title == figure_of(2.0).layout.title
    monkeypatch.delenv("LECTURE6_STATIC", raising=False)
    slider, _ = parts(widgets.explore(of_rule, ["linear", "sqrt"], label="rule"))
    assert slider.options == (("linear", "linear"), ("sqrt", "sqrt"))


def test_frames_of_different_numbers_of_curves_are_refused():
    def growing(value):
        return go.Figure([go.Scatter(x=[0], y=[0])] * int(value))

    with pytest.raises(
        ValueError, match=r"every value of n must show as many curves, got \[1, 3\]"
    ):
        widgets.static(growing, [1, 3], label="n")


def test_the_environment_decides_which_explorer_it_is(monkeypatch):
    monkeypatch.setenv("LECTURE6_STATIC", "1")
    assert explore(start=1) == widgets.static(figure_of, VALUES, label="ε", start=1)
    monkeypatch.delenv("LECTURE6_STATIC")
    assert isinstance(explore(), ipywidgets.Widget)


def parts(explorer):
    slider, output = explorer.children
    assert isinstance(slider, ipywidgets.SelectionSlider)
    assert isinstance(output, ipywidgets.Output)
    return slider, output


@pytest.fixture
def live(monkeypatch):
    monkeypatch.delenv("LECTURE6_STATIC", raising=False)


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize("start", [0, 2])
def test_the_live_slider_calls_the_function_for_each_value(start):
    calls = []
    slider, _ = parts(explore(figure_of=lambda v: calls.append(v) or figure_of(v), start=start))
    assert (slider.value, slider.description) == (VALUES[start], "ε")
    assert calls == [VALUES[start]]
    others = [value for value in VALUES if value != VALUES[start]]
    for value in others:
        slider.value = value
    assert calls == [VALUES[start], *others]


@pytest.mark.usefixtures("live")
def test_an_error_in_the_function_is_raised():
    with pytest.raises(ZeroDivisionError):
        explore(figure_of=lambda v: 1 / 0)
    slider, _ = parts(explore(figure_of=lambda v: figure_of(1 / (v - 2))))
    with pytest.raises(ZeroDivisionError):
        slider.value = 2.0


# ---- in a kernel, where Output behaves differently -------------------------------------------

SETUP = """
import plotly.graph_objects as go
from lecture6.widgets import explore

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
        SETUP, 'box = explore(figure_of, [1.0, 3.0], label="ε")', "box.children[0].value = 3.0; box"
    )
    (output,) = [w for w in client.widget_state.values() if w["_model_name"] == "OutputModel"]
    (shown,) = output["outputs"]
    (trace,) = shown["data"]["application/vnd.plotly.v1+json"]["data"]
    assert trace["y"] == [3.0, 1.0]


@pytest.mark.parametrize(
    "cell",
    [
        'explore(figure_of, [2.0, 3.0], label="ε")',
        'explore(figure_of, [1.0, 2.0], label="ε").children[0].value = 2.0',
    ],
    ids=["at the start", "when moved"],
)
def test_in_a_kernel_an_error_in_the_function_fails_the_cell(cell):
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run_cells(SETUP, cell)
