"""What makes figures and explorables of a notebook's outputs."""

import json
import re
import shutil
import subprocess
from html import escape
from importlib.metadata import entry_points
from types import SimpleNamespace

import lecture6_renderers
import plotly.graph_objects as go
import pytest
from as_in_book import html_of
from lecture6_renderers import BookExplorable, BookFigure, tightened, write_modules
from myst_nb.core.render import MIME_RENDER_ENTRY_GROUP, load_mime_renders

from lecture6.course import explorables
from lecture6.course.explorables import MIME_TYPE, Box, Steps, Walkers

PLOTLY = "application/vnd.plotly.v1+json"


def held(html):
    assert html.count("</script") == 1
    (text,) = re.findall(r'<script type="application/json">(.*)</script>', html)
    return json.loads(text)


def figure(title="f < g", description="A curve.", subtitle=None):
    layout = {"title": {"text": title, "subtitle": {"text": subtitle}}}
    figure = go.Figure(go.Scatter(y=[1, 2], name="</script><b>"), layout)
    return figure.update_layout(meta={"description": description}, height=300)


def test_myst_nb_finds_both():
    assert {BookFigure, BookExplorable} <= set(load_mime_renders())


def test_the_package_brings_none():
    found = entry_points(group=MIME_RENDER_ENTRY_GROUP)
    assert {entry.dist.name for entry in found} <= {"lecture6-book", "myst-nb"}


@pytest.mark.parametrize("plugin", [BookFigure, BookExplorable])
def test_other_outputs_are_left_to_others(plugin):
    output = SimpleNamespace(mime_type="text/html", content="<p>")
    assert plugin.handle_mime(None, output, inline=False) is None


def test_a_figure_is_on_the_page_with_its_words():
    drawn = figure(subtitle="profile <smoke>").to_plotly_json()
    start = {"controls": [], "at": [], "figure": {key: drawn[key] for key in ("data", "layout")}}
    html = html_of(BookFigure, PLOTLY, figure(subtitle="profile <smoke>").to_plotly_json())
    assert held(html) == {"module": "explorer", "start": start}
    assert '<span class="title">f &lt; g</span>' in html
    words = ("f &lt; g", 'class="plot"', "<summary>", "A curve.", "&lt;smoke&gt;", "</details>")
    places = [html.index(word) for word in words]
    assert places == sorted(places)
    assert "min-height: 300px" in html


@pytest.mark.parametrize("lacks", [{"title": ""}, {"description": None}])
def test_a_figure_without_its_words_is_refused(lacks):
    with pytest.raises(ValueError, match=r"needs a title .* and a text description"):
        html_of(BookFigure, PLOTLY, figure(**lacks).to_plotly_json())


def test_a_figure_that_the_part_of_plotly_cannot_draw_is_refused():
    with pytest.raises(ValueError, match="does not keep pie"):
        html_of(BookFigure, PLOTLY, figure().add_trace(go.Pie(values=[1])).to_plotly_json())


@pytest.mark.parametrize("kind", [Walkers, Box, Steps])
def test_the_page_gets_the_name_of_a_module_and_a_script_its_text(monkeypatch, tmp_path, kind):
    monkeypatch.setenv("LECTURE6_STATIC", "1")
    widget = kind()
    content = widget._repr_mimebundle_()[MIME_TYPE]
    html = html_of(BookExplorable, MIME_TYPE, content)
    assert held(html) == {"module": widget.module, "start": content["start"]}
    assert f"<div>{escape(widget.about)}</div>" in html
    write_modules(tmp_path)
    call = (tmp_path / f"{widget.module}.js").read_text("utf8")
    name, text = json.loads(call.removeprefix("lecture6Module(...").removesuffix(");\n"))
    whole = explorables.bundle(f"{widget.module}.js")
    assert (name, text) == (widget.module, tightened(whole))
    assert len(text) < 0.85 * len(whole)


SPACED = """
const i = 3, list = [1, 2]; // a comment
function* both({ first = "a  =  b", ...rest }) {
  yield first + " + " + rest.second; // here
  yield `two
   lines  =  and ${list.map((x) => `{ ${x} }`).join(", ")}
 three ; three`;
  yield [i - -i, i + +i, i * -i, i > -1 ? i : -i, /a = {2} b/.test("a =   b"), "x // y"];
}
console.log(JSON.stringify([...both({ second: "c , d" })]));
"""


def test_only_spaces_that_mean_nothing_are_left_out():
    text = tightened(SPACED)
    assert "const i=3,list=[1,2];" in text
    assert "comment" not in text
    node = shutil.which("node")
    if not node:
        pytest.skip("no Node.js")
    done = subprocess.run([node, "-e", text], capture_output=True, text=True, check=True)
    lines = "two\nlines  =  and { 1 }, { 2 }\nthree ; three"
    assert json.loads(done.stdout) == ["a  =  b + c , d", lines, [6, 6, -9, 3, True, "x // y"]]


def test_a_change_of_the_renderers_is_a_change_of_every_page(monkeypatch, tmp_path):
    app = SimpleNamespace(add_directive=lambda *_: None)
    before = lecture6_renderers.setup(app)["env_version"]
    assert lecture6_renderers.setup(app)["env_version"] == before
    (tmp_path / "changed.py").write_text("x = 1")
    monkeypatch.setattr(lecture6_renderers, "__file__", str(tmp_path / "changed.py"))
    assert lecture6_renderers.setup(app)["env_version"] != before
