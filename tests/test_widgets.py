import base64
import gzip
import itertools
import json
import os
import textwrap

import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from plotly.offline import get_plotlyjs

from lecture6.course import widgets
from lecture6.course.explorables import MIME_TYPE

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


def plain(figure):
    return json.loads(figure.to_json())


@pytest.fixture
def live(monkeypatch):
    monkeypatch.delenv("LECTURE6_STATIC", raising=False)


@pytest.fixture
def static(monkeypatch):
    monkeypatch.setenv("LECTURE6_STATIC", "1")


@pytest.fixture(params=["", "1"], ids=["live", "static"])
def either(monkeypatch, request):
    monkeypatch.setenv("LECTURE6_STATIC", request.param)


# ---- the controls ---------------------------------------------------------------------------


@pytest.mark.usefixtures("either")
def test_words_and_up_to_three_numbers_are_buttons_and_more_numbers_a_slider():
    controls = {**CONTROLS, "words": ["a", "b", "c", "d"], "nesterov": (False, True)}
    found = widgets.explore(lambda *_: figure_of(1.0), controls)
    assert found.controls == [
        {"label": "ε", "names": ["0.001", "0.5", "2", "30"], "buttons": False},
        {"label": "rule", "names": ["linear", "sqrt"], "buttons": True},
        {"label": "n", "names": ["1", "2", "3"], "buttons": True},
        {"label": "words", "names": ["a", "b", "c", "d"], "buttons": True},
        {"label": "nesterov", "names": ["False", "True"], "buttons": True},
    ]
    assert found.at == [0] * 5


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ({"a": [2, 2.0]}, "a needs values, no two of the same name, got"),
        ({"a": ["2", 2]}, "a needs values, no two of the same name, got"),
        ({"a": [0.1, 0.1, 0.2]}, "a needs values, no two of the same name, got"),
        ({"a": [2**53, 2**53 + 1]}, "a needs values, no two of the same name, got"),
        ({"a": []}, "a needs values"),
        ({"a": [1, None]}, "a must be a number, got None"),
        ({"a": [1, float("nan")]}, "a must be a finite number, got nan"),
        ({}, "there is no control"),
    ],
)
def test_controls_that_cannot_be_shown_are_refused(controls, message):
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


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("name", CLOSE)
def test_numbers_have_as_many_digits_as_tell_them_apart(name):
    """Finding B10."""
    values, names = CLOSE[name]
    found = widgets.explore(lambda _: figure_of(1.0), {"n": values})
    assert found.controls[0]["names"] == names


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"n": 0}, r"start names \['n'\], but the controls are \['ε', 'rule'\]"),
        ({"ε": 4}, "start of ε must be at least 0 and at most 3, got 4"),
        ({"rule": -1}, "start of rule must be at least 0 and at most 1, got -1"),
        ({"ε": 0.5}, "start of ε must be a whole number, got 0.5"),
        ({"ε": 2}, "nothing was measured at the start: let start choose other values"),
    ],
)
def test_a_start_that_does_not_exist_is_refused(start, message):
    with pytest.raises(ValueError, match=message):
        widgets.explore(
            lambda epsilon, rule: None if epsilon == 2 else figure_of(epsilon),
            {"ε": VALUES, "rule": ["linear", "sqrt"]},
            start=start,
        )


@pytest.mark.usefixtures("either")
def test_a_start_may_be_a_number_of_numpy():
    calls = []
    found = widgets.explore(
        counted(calls, figure_of), {"n": np.array([1, 2])}, start={"n": np.int64(1)}
    )
    assert found.at == [1]
    assert found.figure == plain(figure_of(2))


@pytest.mark.usefixtures("either")
def test_an_error_in_the_function_is_raised():
    with pytest.raises(ZeroDivisionError):
        widgets.explore(lambda v: 1 / 0, {"ε": VALUES})


# ---- in the book, without a kernel ----------------------------------------------------------


def state(explorer, number):
    """The figure that the page makes of a state, as `built` in explorer.js does."""
    content = json.loads(json.dumps(explorer._repr_mimebundle_()[MIME_TYPE]["start"]))
    parts, found = content["parts"], content["states"][number]

    def whole(i):
        return {name: parts[j] for name, j in parts[i].items()}

    return found and {
        "data": [whole(i) for i in found["data"]],
        "layout": whole(found["layout"]),
    }


@pytest.mark.usefixtures("static")
@pytest.mark.parametrize("start", [{}, {"rule": 1}, {"ε": 3, "n": 2}])
def test_the_book_has_a_whole_figure_for_each_combination(start):
    calls = []
    explorer = widgets.explore(counted(calls, figure_of_three), CONTROLS, start=start)
    assert calls == COMBINATIONS
    assert explorer.comm is None
    at = [start.get(label, 0) for label in CONTROLS]
    assert explorer.at == at
    values = [options[i] for options, i in zip(CONTROLS.values(), at, strict=True)]
    assert explorer.figure == plain(figure_of_three(*values))
    for number, values in enumerate(COMBINATIONS):
        assert state(explorer, number) == plain(figure_of_three(*values))


@pytest.mark.usefixtures("static")
def test_what_figures_share_is_on_the_page_once():
    explorer = widgets.explore(figure_of_three, CONTROLS)
    assert len({json.dumps(part) for part in explorer.parts}) == len(explorer.parts)
    held = len(json.dumps([explorer.states, explorer.parts]))
    figures = [plain(figure_of_three(*values)) for values in COMBINATIONS]
    assert held < 0.2 * len(json.dumps(figures))


@pytest.mark.usefixtures("static")
def test_figures_may_differ_in_what_they_set_and_in_the_number_of_curves():
    def growing(n):
        curves = [go.Scatter(y=[1, 2], line={"dash": "dot"} if n == 2 else None)] * n
        return go.Figure(curves).update_layout(yaxis_type="log" if n == 3 else None)

    explorer = widgets.explore(growing, {"n": [1, 2, 3]})
    for number, n in enumerate([1, 2, 3]):
        assert state(explorer, number) == plain(growing(n))


@pytest.mark.usefixtures("static")
def test_a_state_that_was_not_measured_has_no_figure():
    explorer = widgets.explore(lambda n: figure_of(n) if n < 3 else None, {"n": [1, 2, 3]})
    assert [state(explorer, number) is None for number in range(3)] == [False, False, True]


# ---- with a kernel --------------------------------------------------------------------------


@pytest.mark.usefixtures("live")
def test_the_function_is_called_for_what_is_chosen():
    calls = []
    explorer = widgets.explore(counted(calls, figure_of_three), CONTROLS, start={"ε": 1, "n": 1})
    assert explorer.figure == plain(figure_of_three(0.5, "linear", 2))
    chosen = [(3, 0, 1), (3, 1, 2), (0, 1, 0)]
    for at in chosen:
        explorer.set_state({"at": list(at)})  # as the page does
        values = [options[i] for options, i in zip(CONTROLS.values(), at, strict=True)]
        assert calls[-1] == tuple(values)
        assert explorer.figure == plain(figure_of_three(*values))
    assert len(calls) == 1 + len(chosen)
    assert explorer.states == explorer.parts == []


@pytest.mark.usefixtures("live")
def test_where_nothing_was_measured_there_is_no_figure():
    explorer = widgets.explore(lambda n: figure_of(n) if n < 3 else None, {"n": [1, 2, 3]})
    explorer.at = [2]
    assert explorer.figure is None
    explorer.at = [1]
    assert explorer.figure == plain(figure_of(2))


@pytest.mark.usefixtures("live")
def test_an_error_later_is_raised_and_said_on_the_page():
    explorer = widgets.explore(lambda v: figure_of(1 / (v - 2)), {"ε": VALUES})
    with pytest.raises(ZeroDivisionError):
        explorer.at = [2]
    assert explorer.figure == {"error": "ZeroDivisionError: float division by zero"}
    explorer.at = [3]
    assert explorer.figure == plain(figure_of(1 / 28))


@pytest.mark.usefixtures("live")
def test_a_page_that_asks_gets_plotly_in_a_message_and_the_notebook_does_not(monkeypatch):
    sent = []
    explorer = widgets.explore(figure_of, {"ε": VALUES})
    monkeypatch.setattr(explorer, "send", sent.append)
    explorer._handle_custom_msg({"ask": "something else"}, [])
    assert sent == []
    explorer._handle_custom_msg({"ask": "plotly"}, [])
    ((_, text),) = sent[0].items()
    assert gzip.decompress(base64.b64decode(text)).decode() == get_plotlyjs()
    # Jupyter Server's iopub_data_rate_limit, over its window of three seconds
    assert len(json.dumps(sent[0])) < 3e6
    assert len(json.dumps(explorer.get_state())) < 1e5


# ---- in a kernel ----------------------------------------------------------------------------

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


@pytest.mark.slow
def test_in_a_kernel_the_widget_holds_the_figure_of_the_value():
    client = run_cells(SETUP, 'box = explore(figure_of, {"ε": [1.0, 3.0]})', "box.at = [1]; box")
    (found,) = [w for w in client.widget_state.values() if w["_model_module"] == "anywidget"]
    assert found["figure"]["data"][0]["y"] == [3.0, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell",
    ['explore(figure_of, {"ε": [2.0, 3.0]})', 'explore(figure_of, {"ε": [1.0, 2.0]}).at = [1]'],
    ids=["at the start", "when moved"],
)
def test_in_a_kernel_an_error_in_the_function_fails_the_cell(cell):
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run_cells(SETUP, cell)
