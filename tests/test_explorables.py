import json
import os
import re
import tomllib
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from setuptools import find_packages

from lecture6 import toys
from lecture6.course import explorables
from lecture6.course.explorables import MIME_TYPE, Box, Steps, Walkers

ROOT = Path(__file__).parents[1]
KINDS = [Walkers, Box, Steps]
SHARED = re.compile(r"^// ---- the same in all three modules.*^// ---- here that ends", re.M | re.S)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def static(monkeypatch):
    monkeypatch.setenv("LECTURE6_STATIC", "1")


@pytest.fixture
def live(monkeypatch):
    monkeypatch.delenv("LECTURE6_STATIC", raising=False)


def source(kind):
    return (explorables.HERE / f"{kind.module}.js").read_text("utf8")


# ---- the modules -----------------------------------------------------------------------------


def test_a_module_is_one_file_that_loads_nothing(kind):
    text = source(kind)
    assert not re.search(r"\bimport\b|\brequire\b|https?:|\bfetch\b|url\(", text)
    assert text.endswith("export default { render };\n")


def test_what_the_modules_share_is_the_same_in_each():
    shared = {SHARED.search(source(kind)).group() for kind in KINDS}
    assert len(shared) == 1


def test_the_modules_are_packaged():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))
    tools = project["tool"]["setuptools"]
    assert "lecture6.course.explorables" in find_packages(ROOT, **tools["packages"]["find"])
    globs = tools["package-data"]["lecture6.course.explorables"]
    packaged = {path for glob in globs for path in explorables.HERE.glob(glob)}
    here = {path for path in explorables.HERE.iterdir() if path.suffix not in ("", ".py")}
    assert packaged == here


# ---- with a kernel ---------------------------------------------------------------------------


@pytest.mark.usefixtures("live")
def test_the_widget_holds_its_module_and_its_start_values(kind):
    widget = kind()
    state = widget.get_state()
    assert state["_esm"] == source(kind)
    assert ".lecture6-explorable" in state["_css"]
    assert widget.trait_values(start=True).items() <= state.items()
    data, _ = widget._repr_mimebundle_()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == widget.model_id


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize(
    ("kind", "start"),
    [
        (Walkers, {"lr": 0.2}),
        (Walkers, {"batch_size": 3}),
        (Walkers, {"curvature": 0.5}),
        (Box, {"epsilon": 0.0}),
        (Box, {"subspace": "random"}),
        (Box, {"function": "x²"}),
        (Steps, {"k": 65}),
        (Steps, {"warmup": -1}),
        (Walkers, {"lr": float("nan")}),
        (Walkers, {"batch_size": 8.5}),
        (Walkers, {"n_walkers": True}),
        (Walkers, {"seed": -1}),
        (Walkers, {"seed": 2**32}),  # would be the walkers of seed 0
        (Walkers, {"learning_rate": 0.05}),
        (Box, {"length": float("inf")}),
        (Box, {"function": None}),
    ],
)
def test_a_start_that_no_control_can_show_is_refused(kind, start):
    (name,) = start
    with pytest.raises(ValueError, match=name):
        kind(**start)


@pytest.mark.usefixtures("live")
def test_a_start_may_be_a_number_of_numpy():
    walkers = Walkers(lr=np.float32(0.05), batch_size=np.int64(8))
    assert (walkers.lr, walkers.batch_size) == (pytest.approx(0.05), 8)
    assert (type(walkers.lr), type(walkers.batch_size)) == (float, int)


def test_the_functions_of_the_box_are_those_of_figure_6():
    assert Box.function.values == list(toys.FIGURE_6)


# ---- in the book -----------------------------------------------------------------------------


@pytest.mark.usefixtures("static")
def test_in_the_book_the_output_is_the_name_of_the_module_and_the_start(kind):
    widget = kind()
    assert widget.comm is None
    data = widget._repr_mimebundle_()
    assert set(data) == {MIME_TYPE, "text/plain"}
    content = json.loads(json.dumps(data[MIME_TYPE]))
    assert content["module"] == kind.module
    assert content["start"] == widget.trait_values(start=True)
    assert "It needs JavaScript." in data["text/plain"]


def test_a_notebook_executed_for_the_book_needs_no_widget_manager():
    source = "from lecture6.course import explorables\nexplorables.Steps(k=4)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    client = NotebookClient(notebook, timeout=120, kernel_name="python3")
    client.execute(env={**os.environ, "LECTURE6_STATIC": "1"})
    (output,) = notebook.cells[0].outputs
    assert output.data[MIME_TYPE]["start"]["k"] == 4
    assert "widgets" not in notebook.metadata
    assert client.widget_state == {}
