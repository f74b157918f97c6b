"""The rendered book in a real browser that has no network, at the widths of a desk and a phone."""

import itertools
import json
import re
import runpy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import plotly.graph_objects as go
import pytest
from browsing import resize, served
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from sphinx_external_toc.parsing import parse_toc_yaml

from lecture6 import widgets
from lecture6.figures import BookFigure

ROOT = Path(__file__).parents[2]
HTML = ROOT / "_build" / "html"
PAGES = ["index", *parse_toc_yaml(ROOT / "_toc.yml"), "search"]
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]
CLAIMS = re.compile(r'<table[^>]*\bclass="[^"]*\bclaims\b.*?</table>', re.DOTALL)
WIDTHS = (1280, 390)
TIMEOUT = 30  # seconds for a page to be typeset, or a figure to be drawn

# Marks of the traces; a figure without traces is a drawing made of shapes.
MARKS = """
const marks = (plot) => {
  const selector = plot.data.length
    ? ".mlayer :is(path, image, text), .gl-container canvas"
    : ".shapelayer path";
  return [...plot.querySelectorAll(selector)].filter((mark) => {
    const box = mark.getBoundingClientRect();
    return box.width > 0 || box.height > 0;
  }).length;
};
return marks(arguments[0]);
"""
SHOWN = """
return JSON.stringify(arguments[0]._fullData.map(
  ({x, y, z, visible}) => [x, y, z].map((v) => Array.from(v ?? [])).concat([visible])));
"""
UNTYPESET = """
const prose = document.querySelector("main").cloneNode(true);
prose.querySelectorAll("pre, code, script, mjx-container").forEach((node) => node.remove());
return prose.textContent.match(/\\\\[([].{0,40}|\\$\\S.{0,40}/g) ?? [];
"""


@pytest.fixture(scope="module")
def address():
    """The address at which the book is served."""
    missing = [page for page in PAGES if not (HTML / f"{page}.html").exists()]
    if missing:
        pytest.fail(f"the book in {HTML} lacks {missing}: build it with `make book`", pytrace=False)
    with served(HTML) as address:
        yield address


@dataclass
class Visit:
    """A page that is open, typeset and drawn, and what the browser logged meanwhile."""

    browser: webdriver.Chrome
    page: str
    errors: list[str]
    requests: list[str]
    figures: list

    def script(self, code, *arguments):
        return self.browser.execute_script(code, *arguments)


def is_drawn(plot):
    return plot.get_attribute("aria-busy") == "false"


def drag(browser, slider):
    """Move a slider to the end of its rail that is further away."""
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", slider)
    grip = slider.find_element(By.CSS_SELECTOR, ".slider-grip-rect")
    rail = slider.find_element(By.CSS_SELECTOR, ".slider-rail-touch-rect").rect
    start = grip.rect["x"] + grip.rect["width"] / 2
    ends = (rail["x"], rail["x"] + rail["width"])
    step = round(max((end - start for end in ends), key=abs))
    ActionChains(browser).click_and_hold(grip).move_by_offset(step, 0).release().perform()


@pytest.fixture(
    scope="module",
    params=[(page, width) for page in PAGES for width in WIDTHS],
    ids=lambda param: f"{param[0]}-{param[1]}px",
)
def visit(request, browser, address):
    page, width = request.param
    resize(browser, width)
    for log in ("browser", "performance"):
        browser.get_log(log)  # what is left of the page before
    browser.get(f"{address}/{page}.html")
    wait = WebDriverWait(browser, TIMEOUT)
    browser.execute_async_script(
        "const done = arguments[0];"
        "(window.MathJax?.startup?.promise ?? Promise.resolve()).then(() => done())"
    )
    figures = browser.find_elements(By.CSS_SELECTOR, "figure.plotly-figure .plot")
    for plot in figures:
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
        wait.until(lambda _, plot=plot: is_drawn(plot), f"{page}: a figure is not drawn")
    messages = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    return Visit(
        browser=browser,
        page=page,
        errors=[e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"],
        requests=[
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ],
        figures=figures,
    )


def test_no_console_error(visit):
    assert visit.errors == []


def test_no_request_leaves_this_machine(visit):
    # chrome: is the browser's own start page, some of whose parts may come late
    local = re.compile(r"http://127\.0\.0\.1:|data:|blob:|chrome:|chrome-untrusted:")
    assert any("127.0.0.1" in url for url in visit.requests)
    assert [url for url in visit.requests if not local.match(url)] == []


def test_every_equation_is_typeset(visit):
    counts = "return [...document.querySelectorAll('.math')].map((m) => {0})"
    typeset = visit.script(counts.format("m.querySelectorAll('mjx-container').length"))
    assert all(typeset), f"{typeset.count(0)} of {len(typeset)} equations are not typeset"
    assert not visit.browser.find_elements(By.CSS_SELECTOR, "mjx-merror, [data-mjx-error]")
    assert visit.script(UNTYPESET) == []
    if visit.page in CHAPTERS:
        assert typeset, "a chapter without equations"


def test_nothing_is_wider_than_the_screen(visit):
    assert visit.script("return document.scrollingElement.scrollWidth <= innerWidth")


def test_every_figure_has_marks_and_words(visit):
    for plot in visit.figures:
        assert visit.script(MARKS, plot) > 0
        figure = plot.find_element(By.XPATH, "..")
        for part in ("figcaption", "details p"):
            assert figure.find_element(By.CSS_SELECTOR, part).get_attribute("textContent").strip()
    if visit.page in CHAPTERS:
        assert visit.figures, "a chapter without figures"


def test_every_slider_changes_its_figure(visit):
    sliders = 0
    for plot in visit.figures:
        for slider in plot.find_elements(By.CSS_SELECTOR, ".slider-group"):
            sliders += 1
            before = visit.script(SHOWN, plot)
            drag(visit.browser, slider)
            WebDriverWait(visit.browser, TIMEOUT).until(
                lambda _, plot=plot, before=before: visit.script(SHOWN, plot) != before,
                f"{visit.page}: a slider was moved and its figure did not change",
            )
    if visit.page in CHAPTERS:
        assert sliders, "a chapter without a figure that the reader can move"


# ---- an explorer of several sliders, on a page of its own ------------------------------------

CONTROLS = {"learning rate η": [0.01, 0.1, 1.0], "rule": ["linear", "sqrt"], "n": [2, 8, 32]}
START = {"rule": 1, "n": 2}
LAYOUT = """
const svg = arguments[0].querySelector(".main-svg").getBoundingClientRect();
const selectors = [".nsewdrag", ".xtitle", ".slider-group"];
const parts = selectors.flatMap((selector) => [...arguments[0].querySelectorAll(selector)]);
return parts.map((part) => {
  const { top, bottom, left, right } = part.getBoundingClientRect();
  return [top - svg.top, bottom - svg.top, left - svg.left, svg.right - right];
}).concat([[svg.height, svg.height, 0, 0]]);
"""


def curves_of(lr, rule, n):
    """A curve for each control, that moves with it alone, and one that stands still."""
    figure = go.Figure()
    figure.add_scatter(x=[0, 1, 2], y=[0, lr, 2 * lr], name="η")
    figure.add_scatter(x=[0, 1, 2], y=[1, 1, len(rule) / 10], name="rule")
    figure.add_scatter(x=[0, 1, 2], y=[1, n / 10, 1], name="n")
    figure.add_scatter(x=[0, 1, 2], y=[2, 2, 2], name="none")
    figure.add_vline(n / 16)
    return figure.update_layout(
        title_text=f"Rule “{rule}” with η = {lr:g} and n = {n}",
        meta={"description": "Four curves."},
        margin={"l": 60, "r": 60, "t": 120, "b": 60},
        xaxis_title="Updates",
        yaxis={"title": "Loss", "range": [0, 4]},
    )


@pytest.fixture(scope="module", params=WIDTHS)
def explorer(request, browser, address, tmp_path_factory):
    """The plot of an explorer of several sliders, drawn by the book's own script."""
    figure = widgets.static(curves_of, CONTROLS, start=START)
    output = SimpleNamespace(
        mime_type="application/vnd.plotly.v1+json", content=json.loads(figure.to_json())
    )
    (node,) = BookFigure.handle_mime(None, output, inline=False)
    page = tmp_path_factory.mktemp("explorer")
    (page / "_static").symlink_to(HTML / "_static")
    (page / "index.html").write_text(
        '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">'
        '<meta name="viewport" content="width=device-width">'
        '<link rel="stylesheet" href="_static/book.css">'
        f'{node.astext()}<script src="_static/figures.js"></script>'
    )
    resize(browser, request.param)
    browser.get_log("browser")
    with served(page) as own:
        browser.get(own)
        plot = browser.find_element(By.CSS_SELECTOR, ".plot")
        WebDriverWait(browser, TIMEOUT).until(lambda _: is_drawn(plot), "it is not drawn")
        yield plot


def test_several_sliders_show_the_figure_of_all_their_values(browser, explorer):
    sliders = explorer.find_elements(By.CSS_SELECTOR, ".slider-group")
    assert len(sliders) == len(CONTROLS)
    at = [START.get(label, 0) for label in CONTROLS]
    last = [len(values) - 1 for values in CONTROLS.values()]

    def expect():
        figure = curves_of(*(v[i] for v, i in zip(CONTROLS.values(), at, strict=True)))
        curves = [[list(c.x), list(c.y), [], True] for c in figure.data]
        WebDriverWait(browser, TIMEOUT).until(
            lambda _: json.loads(browser.execute_script(SHOWN, explorer)) == curves,
            f"the figure does not show the values at {at}",
        )
        lines = browser.execute_script("return arguments[0].layout.shapes", explorer)
        assert [line["x0"] for line in lines] == [line.x0 for line in figure.layout.shapes]
        caption = explorer.find_element(By.XPATH, "..//figcaption/*[@class='title']")
        assert caption.text == figure.layout.title.text

    expect()
    for moved in (0, 1, 2, 0, 2, 1, 0, 1):
        drag(browser, sliders[moved])
        at[moved] = 0 if at[moved] else last[moved]
        expect()
    # A finger that is faster than the screen: each move replaces the one before.
    browser.execute_script(
        "for (let i = 0; i < 9; i++)"
        "  arguments[0].emit('plotly_sliderchange', {step: {method: 'skip'}})",
        explorer,
    )
    expect()
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


def test_several_sliders_overlap_nothing(browser, explorer):
    boxes = browser.execute_script(LAYOUT, explorer)
    assert len(boxes) == 2 + len(CONTROLS) + 1
    assert all(left >= 0 and right >= 0 for _, _, left, right in boxes)
    for (_, bottom, *_), (top, *_) in itertools.pairwise(boxes):
        assert bottom <= top


def test_scorecard_holds_every_claim(address):
    def claims(page):
        """All but what the scorecard says in its own words: where a claim was computed."""
        tables = CLAIMS.findall((HTML / f"{page}.html").read_text("utf8"))
        rows = [re.findall(r"<td>(.*?)</td>", row) for row in "".join(tables).split("</tr>")]
        return [cells[:-2] + cells[-1:] for cells in rows if cells]

    chapters = [claims(page) for page in CHAPTERS]
    assert all(chapters), "a chapter without a table of claims"
    assert claims("book/scorecard") == [row for rows in chapters for row in rows]
    scorecard = (HTML / "book/scorecard.html").read_text("utf8")
    assert len(CLAIMS.findall(scorecard)) == 1
    assert "this page</td>" not in scorecard
    assert f"<p>{sum(map(len, chapters))} claims: " in scorecard


def test_no_page_loads_from_another_host(address):
    outside = re.compile(
        r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^\"]*"
        r"|(?:@import\s*|url\()[\"']?(?:https?:)?//[^\"')]*"
    )
    files = [*HTML.rglob("*.html"), *HTML.rglob("*.css")]
    found = {str(f.relative_to(HTML)): outside.findall(f.read_text("utf8")) for f in files}
    assert {name: urls for name, urls in found.items() if urls} == {}


@pytest.fixture
def extension(tmp_path, monkeypatch):
    """The book's Sphinx extension over a small tree of its own."""
    extension = runpy.run_path(str(ROOT / "book/_ext/lecture6_book.py"))
    (tmp_path / "lecture6").mkdir()
    (tmp_path / "lecture6" / "a.py").write_text("x = 1\n")
    (tmp_path / "requirements.lock").write_text("plotly==7.1.0\n")
    monkeypatch.setenv("LECTURE6_PROFILE", "book")
    monkeypatch.setitem(extension["fingerprint"].__globals__, "ROOT", tmp_path)
    return extension


@pytest.mark.parametrize(
    "name", ["lecture6/a.py", "lecture6/b.py", "lecture6/stored.csv", "requirements.lock"]
)
def test_a_change_in_the_package_or_the_lock_executes_again(extension, tmp_path, name):
    before = extension["fingerprint"]()
    assert extension["fingerprint"]() == before
    (tmp_path / name).write_text("y = 2\n")
    assert extension["fingerprint"]() != before


def test_another_profile_executes_again(extension, monkeypatch):
    before = extension["fingerprint"]()
    monkeypatch.setenv("LECTURE6_PROFILE", "smoke")
    assert extension["fingerprint"]() != before
