import base64
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient
from setuptools import find_packages

from lecture6 import toys
from lecture6.course import explorables
from lecture6.course.explorables import (
    MIME_TYPE,
    BestBatch,
    Box,
    Edge,
    Keskar,
    NoiseScale,
    OneStep,
    Scaling,
    Spectrum,
    Steps,
    Valley,
    Walkers,
)

ROOT = Path(__file__).parents[1]
KINDS = [Walkers, Valley, Box, Steps, OneStep, Keskar, Spectrum, Scaling, BestBatch, Edge]


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
    return explorables.bundle(f"{kind.__name__.lower()}.js")


# ---- the modules -----------------------------------------------------------------------------


def test_a_module_is_one_file_that_loads_nothing(kind):
    text = re.sub(r"^\s*//.*\n", "", source(kind), flags=re.MULTILINE)
    assert not re.search(r"\bimport\b|\brequire\b|https?:|\bfetch\b|url\(", text)
    assert text.count("export function stage") == 0 < text.count("function stage")
    assert text.endswith("export default { render };\n")


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    """A function that bundles main.js of these files, and returns what Node makes of it."""
    monkeypatch.setattr(explorables, "HERE", tmp_path)
    explorables.bundle.cache_clear()

    def bundled(main, **files):
        for name, text in {"main_js": main, **files}.items():
            (tmp_path / name.replace("_", ".")).write_text(text, "utf8")
        text = explorables.bundle("main.js")
        (tmp_path / "bundle.mjs").write_text(text, "utf8")
        show = (
            f"import('{tmp_path}/bundle.mjs').then((m) => console.log(JSON.stringify(m.default)))"
        )
        node = shutil.which("node")
        if not node:
            pytest.skip("no Node.js")
        done = subprocess.run([node, "-e", show], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    yield bundled
    explorables.bundle.cache_clear()


COUNT = """
let n = 0;
export const next = () => (n += 1);
export function twice(x) {
  return 2 * x;
}
export class Box {
  side = 3;
}
"""


def test_each_module_has_its_scope_and_is_there_once(bundled):
    main = """
import { next as following, Box } from "./count.js";
import {
  third,
} from "./third.js";
import * as all from "./count.js";
const next = "mine", n = "mine too";
export default [following(), third(), following(), new Box().side, all.twice(4), next, n];
"""
    third = """
import { next, twice } from "./count.js";
const n = 10;
export const third = () => twice(next()) + n;
"""
    assert bundled(main, count_js=COUNT, third_js=third) == [1, 14, 3, 3, 8, "mine", "mine too"]


def test_a_module_may_be_a_function_and_a_file_or_data_a_string(bundled, monkeypatch, tmp_path):
    (tmp_path / "kernel.wasm").write_bytes(bytes(range(256)))
    lab = SimpleNamespace(packed=lambda name: f"<{name}>")
    monkeypatch.setitem(sys.modules, "lecture6.course.explorables.lab", lab)
    main = """
import engine from "./engine.js?function";
import bytes from "./kernel.wasm?base64";
import digits from "dataset:digits";
const text = encodeURIComponent(`export default (${engine})().x;`);
const elsewhere = await import(`data:text/javascript,${text}`);
export default [engine().x, elsewhere.default, bytes, digits];
"""
    engine = 'import { twice } from "./count.js";\nexport const x = `</script>${twice(21)}`;\n'
    here, elsewhere, kernel, digits = bundled(main, count_js=COUNT, engine_js=engine)
    assert here == elsewhere == "</script>42"
    assert base64.b64decode(kernel) == bytes(range(256))
    assert digits == "<digits>"


@pytest.mark.parametrize(
    ("main", "message"),
    [
        ('import { a } from "./none.js";', r'main.js imports "./none.js", but there is no file'),
        ('import a from "./none.wasm?base64";', "but there is no file"),
        ('import a from "./none.js?function";', "but there is no file"),
        ('import { next, a } from "./count.js";', r"\['a'\], not exported by count.js"),
        (
            'import { main } from "./main.js";',
            "main.js imports main.js, .* a circle",
        ),
    ],
)
def test_an_import_that_cannot_be_is_refused(bundled, main, message):
    with pytest.raises(ValueError, match=message):
        bundled(f"{main}\nexport default 1;\n", count_js=COUNT)


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
        (Steps, {"curvature": [(0, 1.0)]}),
        (Steps, {"curvature": [1.0, 2.0]}),
        (Steps, {"curvature": [(0, 1.0), (0, 2.0)]}),
        (Steps, {"curvature": [(0, 1.0), (10, 31.0)]}),
        (Scaling, {"k": 1}),
        (Scaling, {"rule": "square"}),
        (OneStep, {"momentum": 1.0}),
        (OneStep, {"w1": 7.5}),
        (Edge, {"batch_size": 501}),
        (Walkers, {"lr": float("nan")}),
        (Walkers, {"batch_size": 8.5}),
        (Walkers, {"n_walkers": True}),
        (Walkers, {"seed": -1}),
        (Walkers, {"seed": 2**32}),  # would be the walkers of seed 0
        (Walkers, {"learning_rate": 0.05}),
        (Box, {"length": float("inf")}),
        (Box, {"length": 4.5}),
        (OneStep, {"batch_size": 0}),
        (NoiseScale, {"g_star": 0.0}),
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


@pytest.mark.usefixtures("live")
def test_the_curvature_of_the_steps_is_what_was_measured():
    measured = pd.Series([2, 3.5], index=[0, 500])
    assert Steps(curvature=[*measured.items()]).curvature == [[0, 2], [500, 3.5]]


def test_the_functions_of_the_box_are_those_of_figure_6():
    assert Box().traits()["function"].values == tuple(toys.FIGURE_6)


# ---- in the book -----------------------------------------------------------------------------


@pytest.mark.usefixtures("static")
def test_in_the_book_the_output_is_the_name_of_the_module_and_the_start(kind):
    widget = kind()
    assert widget.comm is None
    data = widget._repr_mimebundle_()
    assert set(data) == {MIME_TYPE, "text/plain"}
    content = json.loads(json.dumps(data[MIME_TYPE]))
    assert content["module"] == widget.module == kind.__name__.lower()
    assert content["start"] == widget.trait_values(start=True)
    first = inspect.getdoc(kind).splitlines()[0]
    assert data["text/plain"] == f"An explorable: {first} It needs JavaScript."


@pytest.mark.slow
def test_a_notebook_executed_for_the_book_needs_no_widget_manager():
    source = "from lecture6.course import explorables\nexplorables.Steps(k=4)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    client = NotebookClient(notebook, timeout=120, kernel_name="python3")
    client.execute(env={**os.environ, "LECTURE6_STATIC": "1"})
    (output,) = notebook.cells[0].outputs
    assert output.data[MIME_TYPE]["start"]["k"] == 4
    assert "widgets" not in notebook.metadata
    assert client.widget_state == {}
