"""The rendered book in a real browser that has no network, at the widths of a desk and a phone."""

import base64
import csv
import io
import itertools
import json
import operator
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import pytest
from browsing import THEMES, emulate, resize, served, violations
from lecture6_renderers import BookFigure
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from sphinx_external_toc.parsing import parse_toc_yaml

from lecture6.course import widgets
from lecture6.course.figures import BLUE, GREEN, ORANGE, PURPLE

ROOT = Path(__file__).parents[2]
HTML = ROOT / "_build" / "html"
CONTENTS = list(parse_toc_yaml(ROOT / "_toc.yml"))
PAGES = ["index", *CONTENTS, "search"]
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]
ALIVE = {
    "index": 1,  # how many explorables a page has
    "book/index": 1,
    "notebooks/02_flatness": 1,
    "notebooks/04_linear_scaling": 1,
    "notebooks/06_equilibrium": 1,
}
CLAIMS = re.compile(r'<table[^>]*\bclass="[^"]*\bclaims\b.*?</table>', re.DOTALL)
WIDTHS = tuple(THEMES)
TIMEOUT = 30  # seconds for a page to be typeset, or a figure to be drawn
USABLE = 2  # seconds, from a server on this machine
WEIGHT = 1.5e6  # bytes of a page and its images
PAPER = 718  # px: A4 without Chromium's margins

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
# Whether a page is the one that another leads to at once, as the root of the book does.
ARRIVED = """
return document.readyState === "complete" && !document.querySelector("meta[http-equiv=refresh i]");
"""
# Seconds in which the page was loaded, and then its first figure drawn.
READY = """
const done = arguments[0], plot = document.querySelector("figure.plotly-figure .plot");
const { loadEventEnd } = performance.getEntriesByType("navigation")[0];
const start = performance.now();
const check = () => (plot && plot.ariaBusy !== "false"
  ? setTimeout(check, 5) : done((loadEventEnd + performance.now() - start) / 1000));
plot?.scrollIntoView({block: "center"});
(window.MathJax?.startup?.promise ?? Promise.resolve()).then(check);
"""
# Clicks a figure's button; returns the name of the file that it saves, and its text.
SAVED = """
const [plot, done] = arguments, { click } = HTMLAnchorElement.prototype;
HTMLAnchorElement.prototype.click = function () {
  HTMLAnchorElement.prototype.click = click;
  fetch(this.href).then((file) => file.text()).then((text) => done([this.download, text]));
};
plot.parentElement.querySelector("button").click();
"""
# The colours of what is written and drawn in the figures of a page, and of the page.
COLOURS = """
const visible = (node, kind) => {
  const { [kind]: colour, strokeWidth } = getComputedStyle(node);
  return colour !== "none" && (kind === "fill" || parseFloat(strokeWidth)) ? [colour] : [];
};
const all = (selector, kind) => [...new Set([
  ...document.querySelectorAll(`figure.plotly-figure .main-svg ${selector}`)
].flatMap((node) => visible(node, kind)))];
return {
  page: getComputedStyle(document.body).backgroundColor,
  text: all("text", "fill"),
  drawn: [...all(".js-line", "stroke"), ...all(".scatterlayer .point", "fill"),
    ...all(".shapelayer path", "stroke"), ...all(".slider-rail-rect", "stroke"),
    ...all(".slider-grip-rect", "stroke")],
};
"""
# Colour and dash of the lines of a figure; a line without a name is the edge of a band.
STYLES = """
return arguments[0]._fullData
  .filter(({mode, visible}) => visible === true && mode?.includes("lines"))
  .filter(({index}) => arguments[0].data[index].name)
  .filter(({line}) => line.width)
  .map(({line}) => [line.color, line.dash]);
"""
# The picture of an explorable, and its numbers.
PICTURE = """
const canvas = arguments[0].querySelector("canvas"), input = arguments[0].querySelector("input");
return input && [canvas.toDataURL(), arguments[0].querySelector(".controls").textContent];
"""
FOLD = "document.querySelectorAll('details').forEach((details) => { details.open = false; });"
# What is wrong with a page on paper.
PRINTED = """
const wrong = [];
const shown = (node) => node.checkVisibility() && node.getBoundingClientRect().width > 0;
const cut = (node) => node.getBoundingClientRect().right > innerWidth;
const all = (selector) => [...document.querySelectorAll(selector)];
const chrome = ".bd-sidebar-primary, .bd-sidebar-secondary, .bd-header-article, .prev-next-area";
if (document.documentElement.dataset.theme !== "light") wrong.push("the theme is not light");
for (const node of all(chrome)) if (shown(node)) wrong.push(`${node.className} is printed`);
for (const node of all("main details:not(figure *)"))
  if (!node.open) wrong.push("something is folded");
for (const node of all("figure :is(.plot svg, canvas), main :is(table, pre, img, mjx-container)"))
  if (cut(node)) wrong.push(`cut off: ${node.outerHTML.slice(0, 100)}`);
for (const node of all("main pre"))
  if (node.scrollWidth > node.clientWidth) wrong.push(`cut off: ${node.textContent.slice(0, 80)}`);
for (const node of all(".plotly-figure :is(details, button), .explorable .data"))
  if (shown(node)) wrong.push(`printed: ${node.textContent.slice(0, 80)}`);
return wrong;
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
    width: int
    ready: float  # seconds until it was loaded and the first figure drawn
    errors: list[str]
    requests: list[str]
    figures: list

    def script(self, code, *arguments):
        return self.browser.execute_script(code, *arguments)

    def result(self, code, *arguments):
        """What the script hands to its last argument, a function."""
        return self.browser.execute_async_script(code, *arguments)


def is_drawn(plot):
    return plot.get_attribute("aria-busy") == "false"


def values(array):
    """An array of a figure's JSON, which Plotly may have encoded."""
    if isinstance(array, list):
        return np.array(array)
    flat = np.frombuffer(base64.b64decode(array["bdata"]), array["dtype"])
    return flat.reshape([int(n) for n in array.get("shape", "-1").split(",")])


def curves_of_json(data, caption):
    """Pairs of a curve's name in the CSV and, by axis, its values."""
    for trace, after in zip(data, [*data[1:], {}], strict=True):
        x, y, name = values(trace["x"]), values(trace["y"]), trace.get("name")
        axes, fill = [trace.get("xaxis", "x"), trace.get("yaxis", "y")], trace.get("fill")
        if "z" in trace:
            grid = [np.tile(x, len(y)), np.repeat(y, len(x)), values(trace["customdata"]).ravel()]
            yield caption, dict(zip([*axes, "z"], grid, strict=True))
            continue
        parts = {name or caption: slice(None)}
        if fill == "toself" and not name:  # there along the upper edge, back along the lower
            upper, lower = slice(len(x) // 2), slice(None, len(x) // 2 - 1, -1)
            band = {"upper": upper, "lower": lower} if (y[upper] != y[lower]).any() else {}
            parts = {f"{trace['legendgroup']}: {edge} edge": part for edge, part in band.items()}
        elif fill == "tonexty":
            parts = {f"{name}: lower edge": slice(None)}
        elif after.get("fill") == "tonexty":
            parts = {f"{after['name']}: upper edge": slice(None)}
        for label, part in parts.items():
            yield label, dict(zip(axes, (x[part], y[part]), strict=True))


def assert_same_data(text, figure, caption):
    """The CSV has the curves of the figure's JSON, and the titles of its axes as headings."""
    head, *rows = csv.reader(io.StringIO(text))
    curves = list(curves_of_json(figure["data"], caption))
    axes = sorted({axis for _, curve in curves for axis in curve})
    described = [
        figure["layout"].get(f"{axis[0]}axis{axis[1:]}", {}) for axis in axes if axis != "z"
    ]
    described += [trace["colorbar"] for trace in figure["data"] if "z" in trace]
    titles = [part.get("title", {}).get("text") for part in described]
    assert head == ["curve", *(t or axis for t, axis in zip(titles, axes, strict=True))]
    for name, curve in curves:
        length = len(next(iter(curve.values())))
        part, rows = rows[:length], rows[length:]
        assert {row[0] for row in part} == {name}
        for column, axis in enumerate(axes, 1):
            cells = [row[column] for row in part]
            want = curve.get(axis, np.full(length, ""))
            if want.dtype.kind in "fi":
                cells = [float(cell or "nan") for cell in cells]
            np.testing.assert_array_equal(cells, want)
    assert rows == []


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
    emulate(browser, theme=THEMES[width])
    for log in ("browser", "performance"):
        browser.get_log(log)  # what is left of the page before
    wait = WebDriverWait(browser, TIMEOUT, poll_frequency=0.05)
    for _ in range(3):  # another process may have had the machine
        browser.get(f"{address}/{page}.html")
        wait.until(lambda _: browser.execute_script(ARRIVED), "it leads nowhere")
        ready = browser.execute_async_script(READY)
        if ready < USABLE:
            break
    figures = browser.find_elements(By.CSS_SELECTOR, "figure.plotly-figure .plot")
    for plot in figures:
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
        wait.until(lambda _, plot=plot: is_drawn(plot), f"{page}: a figure is not drawn")
    messages = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    return Visit(
        browser=browser,
        page=page,
        width=width,
        ready=ready,
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


def test_it_is_soon_usable(visit):
    assert visit.ready < USABLE


def test_axe_finds_no_serious_violation(visit):
    assert violations(visit.browser) == []


def test_previous_and_next_lead_along_the_contents(visit, address):
    path = visit.script("return location.pathname").removeprefix("/").removesuffix(".html")
    if path in CONTENTS:
        before, after = CONTENTS[: CONTENTS.index(path)], CONTENTS[CONTENTS.index(path) + 1 :]
        reference = sorted(f"book/api/{page.stem}" for page in (HTML / "book/api").glob("*.html"))
        # These pages come behind the one that lists them, which the contents name alone.
        if path == "book/api":
            after = reference
        elif before[-1:] == ["book/api"]:
            before = reference
        neighbours = {"left-prev": before[-1:], "right-next": after[:1]}
        for name, pages in neighbours.items():
            links = visit.browser.find_elements(By.CLASS_NAME, name)
            assert all(link.is_displayed() for link in links)
            hrefs = [link.get_attribute("href") for link in links]
            assert hrefs == [f"{address}/{page}.html" for page in pages]


def test_the_data_of_every_figure_can_be_saved(visit):
    for plot in visit.figures:
        figure = json.loads(visit.script("return arguments[0].nextSibling.textContent", plot))
        caption = plot.find_element(By.XPATH, "..//figcaption/*[@class='title']").text
        if figure["data"]:
            name, text = visit.result(SAVED, plot)
            assert name.startswith(visit.page.split("/")[-1].replace("_", "-"))
            assert_same_data(text, figure, caption)


def luminance(colour):
    """The relative luminance of a CSS colour, as WCAG defines it."""
    channels = np.array([int(n) for n in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(channels > 0.04045, ((channels + 0.055) / 1.055) ** 2.4, channels / 12.92)
    return linear @ [0.2126, 0.7152, 0.0722]


def faint(colours):
    """The colours that stand out from the page by less than WCAG asks of text, and of graphics."""
    page = luminance(colours["page"])
    for kind, least in (("text", 4.5), ("drawn", 3)):
        for colour in colours[kind]:
            low, high = sorted([page, luminance(colour)])
            if (high + 0.05) / (low + 0.05) < least:
                yield kind, colour


def test_figures_are_readable_in_the_theme(visit):
    assert visit.script("return document.documentElement.dataset.theme") == THEMES[visit.width]
    colours = visit.script(COLOURS)
    assert bool(colours["text"]) == bool(visit.figures)
    assert list(faint(colours)) == []


def test_curves_differ_by_more_than_an_unsafe_colour(visit):
    for plot in visit.figures:
        styles = [tuple(style) for style in visit.script(STYLES, plot)]
        assert len(set(styles)) == len(styles), "two lines of the same colour and dash"
        assert {colour for colour, _ in styles} <= {BLUE, ORANGE, GREEN, PURPLE}


def test_a_page_of_a_dark_screen_can_be_printed(visit):
    if THEMES[visit.width] != "dark":
        return
    pdf = base64.b64decode(visit.browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert re.search(rb"/Type */Page\b", pdf)
    # Once more, to look at it: nothing runs in the page while it is printed.
    resize(visit.browser, PAPER)
    emulate(visit.browser, theme="dark", media="print")
    visit.script(FOLD + "dispatchEvent(new Event('beforeprint'))")
    wrong = [*visit.script(PRINTED), *faint(visit.script(COLOURS))]
    drawn = [visit.script(MARKS, plot) for plot in visit.figures]
    visit.script("dispatchEvent(new Event('afterprint'))")
    resize(visit.browser, visit.width)
    emulate(visit.browser, theme="dark")
    assert wrong == []
    assert all(drawn)
    assert visit.script("return document.documentElement.dataset.theme") == "dark"
    assert list(faint(visit.script(COLOURS))) == []
    assert not visit.script("return document.querySelector('details[open]')")


def test_every_explorable_is_alive(visit):
    found = visit.browser.find_elements(By.CSS_SELECTOR, "figure.explorable")
    assert len(found) == ALIVE.get(visit.page, 0)
    wait = WebDriverWait(visit.browser, TIMEOUT)
    for figure in found:
        visit.script("arguments[0].scrollIntoView({block: 'center'})", figure)
        wait.until(lambda _, figure=figure: visit.script(PICTURE, figure), "it has no controls")
        assert figure.find_element(By.CLASS_NAME, "title").text
        assert figure.find_element(By.CLASS_NAME, "data").is_displayed()
        assert figure.find_element(By.CSS_SELECTOR, "canvas").get_attribute("aria-label")
        before = visit.script(PICTURE, figure)
        figure.find_element(By.CSS_SELECTOR, "input[type=range]").send_keys(Keys.ARROW_RIGHT)

        def changed(_, figure=figure, before=before):
            return all(map(operator.ne, visit.script(PICTURE, figure), before))

        wait.until(changed, "a slider does not change both its label and the picture")


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
    """The plot of an explorer of several sliders, drawn by the book's own script from a file."""
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
    browser.get((page / "index.html").as_uri())
    plot = browser.find_element(By.CSS_SELECTOR, ".plot")
    WebDriverWait(browser, TIMEOUT).until(lambda _: is_drawn(plot), "it is not drawn")
    return plot


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


def test_the_data_that_are_shown_are_saved(browser, explorer, tmp_path):
    options = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", options)
    drag(browser, explorer.find_element(By.CSS_SELECTOR, ".slider-group"))
    caption = explorer.find_element(By.XPATH, "..//figcaption/*[@class='title']").text
    explorer.find_element(By.XPATH, "../button").click()
    name = "-".join(["index", *re.findall(r"[^\W_]+", caption)])
    file = tmp_path / f"{name}.csv"
    WebDriverWait(browser, TIMEOUT).until(lambda _: file.exists(), f"no {file.name}")
    shown = browser.execute_script(
        "return {data: arguments[0].data, layout: arguments[0].layout}", explorer
    )
    assert_same_data(file.read_text("utf8"), shown, caption)


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
        return [cells[:-3] + cells[-2:] for cells in rows if cells]

    chapters = [claims(page) for page in CHAPTERS]
    assert all(chapters), "a chapter without a table of claims"
    assert claims("book/scorecard") == [row for rows in chapters for row in rows]
    scorecard = (HTML / "book/scorecard.html").read_text("utf8")
    assert len(CLAIMS.findall(scorecard)) == 1
    assert "this page</td>" not in scorecard
    assert f"<p>{sum(map(len, chapters))} claims. " in scorecard


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_light(address, page):
    file = HTML / f"{page}.html"
    images = re.findall(r"<img[^>]*\bsrc=\"([^\":?]+)\"", file.read_text("utf8"))
    weights = [path.stat().st_size for path in {file, *(file.parent / image for image in images)}]
    assert sum(weights) <= WEIGHT


def test_search_finds_a_word_and_leads_to_it(browser, address):
    resize(browser, WIDTHS[0])
    browser.get(f"{address}/search.html")
    fields = browser.find_elements(By.CSS_SELECTOR, "input[name=q]")
    next(field for field in fields if field.is_displayed()).send_keys("Kramers", Keys.ENTER)
    result = WebDriverWait(browser, TIMEOUT).until(
        lambda _: browser.find_elements(By.CSS_SELECTOR, "#search-results li a"), "nothing is found"
    )[0]
    result.click()
    WebDriverWait(browser, TIMEOUT).until(
        lambda _: (
            "kramers" in browser.find_element(By.TAG_NAME, "main").text.lower()
            and "search.html" not in browser.current_url
        ),
        "the result leads elsewhere",
    )


def test_no_page_loads_from_another_host(address):
    outside = re.compile(
        r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^\"]*"
        r"|(?:@import\s*|url\()[\"']?(?:https?:)?//[^\"')]*"
    )
    files = [*HTML.rglob("*.html"), *HTML.rglob("*.css")]
    found = {str(f.relative_to(HTML)): outside.findall(f.read_text("utf8")) for f in files}
    assert {name: urls for name, urls in found.items() if urls} == {}
