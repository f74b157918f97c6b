"""Explorers in a browser: on a page as the book's, and in a frame as those of Colab."""

import itertools
import json
import re
from functools import partial
from pathlib import Path

import plotly
import pytest
from as_in_book import STATIC, html_of, in_the_book, with_modules
from browsing import emulate, resize, violations
from figure_data import assert_same_data, figure_of
from lecture6_renderers import BookFigure
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from lecture6.course import explorables, widgets
from lecture6.course.figures import go

ROOT = explorables.HERE.parents[2]
TIMEOUT = 30  # seconds
CONTROLS = {"learning rate η": [0.01, 0.03, 0.1, 1.0], "rule": ["linear", "sqrt"], "n": [2, 8, 32]}
LABELS = list(CONTROLS)
START = {"rule": 1, "n": 2}
MISSING = (0.01, "linear", 2)
PAGE = """<!doctype html><html lang="en"><title>A page</title><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<link rel="stylesheet" href="explorables.css"><link rel="stylesheet" href="book.css">
<style>body {{ margin: 16px; background: white; color: black }}
[data-theme=dark] body {{ background: black; color: white }}</style>
<main><h1>A page</h1>{}</main><script src="explorables.js"></script>"""
SHOWN = """
return arguments[0]._fullData.map(({x, y}) => [x, y].map((v) => Array.from(v)));
"""
BOXES = """
return [...arguments[0].querySelectorAll(".plot, form > *, .tools, figcaption")].map((part) => {
  const { top, bottom, left, right } = part.getBoundingClientRect();
  return [top, bottom, left, right].concat([part.localName]);
});
"""


def curves_of(lr, rule, n):
    """A curve for each control, that moves with it alone, and one that stands still."""
    if (lr, rule, n) == MISSING:
        return None
    figure = go.Figure()
    figure.add_scatter(x=[0, 4 / 3, 2], y=[0, lr, 2 * lr], name="η")
    figure.add_scatter(x=[0, 4 / 3, 2], y=[1, 1, len(rule) / 10], name="rule")
    figure.add_scatter(x=[0, 4 / 3, 2], y=[1, n / 10, 1], name="n")
    figure.add_scatter(x=[0, 4 / 3, 2], y=[2, 2, 2], name="none")
    figure.add_vline(n / 16)
    return figure.update_layout(
        title={"text": f"Rule “{rule}” with η = {lr:g} and n = {n}", "subtitle": {"text": "Run."}},
        meta={"description": f"Four curves, η = {lr:g}."},
        margin={"l": 60, "r": 60, "t": 120, "b": 60},
        xaxis_title="Updates",
        hovermode="x unified",
        yaxis={"title": "Error, %", "type": "log" if rule == "sqrt" else "linear", "range": [0, n]},
    )


def values_at(at):
    return [options[i] for options, i in zip(CONTROLS.values(), at, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the pages, and the files that they load."""
    folder = with_modules(tmp_path_factory.mktemp("explorers"))
    plotly_js = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    for path in (STATIC / "book.css", plotly_js):
        (folder / path.name).symlink_to(path)
    figure = in_the_book(partial(widgets.explore, curves_of, CONTROLS), start=START)
    plain = json.loads(curves_of(1.0, "linear", 8).to_json())
    other = html_of(BookFigure, "application/vnd.plotly.v1+json", plain)
    (folder / "index.html").write_text(PAGE.format(figure + other), "utf8")
    (folder / "colab.html").write_text(frame_page(), "utf8")
    (folder / "closing.html").write_text(frame_page("true"), "utf8")
    return folder


@pytest.fixture
def visit(browser, address):
    """Opens the page, and returns its figures; afterwards nothing may have gone wrong."""
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)  # what is left of the pages before

    def visit(page="index.html", *, width=1280, theme="light", base=address):
        resize(browser, width)
        emulate(browser, theme=theme)
        browser.get("about:blank")
        browser.get(f"{base}/{page}")
        return [ready(browser, f) for f in browser.find_elements(By.CSS_SELECTOR, "figure")]

    yield visit
    assert [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    messages = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    urls = [message["request"]["url"] for message in sent]
    own = (address, "file://", "data:", "blob:", "about:")
    assert [url for url in urls if not url.startswith(own)] == []


def ready(browser, figure):
    plot = figure.find_element(By.CSS_SELECTOR, ".plot")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    WebDriverWait(browser, TIMEOUT).until(
        lambda _: plot.get_attribute("aria-busy") == "false", "it is not drawn"
    )
    return figure


def title(figure):
    return figure.find_element(By.CSS_SELECTOR, ".title").text


def expect(browser, figure, at):
    """The figure of the values at these indices is shown, with its words."""
    expected = curves_of(*values_at(at))
    curves = [[list(curve.x), list(curve.y)] for curve in expected.data]
    plot = figure.find_element(By.CSS_SELECTOR, ".plot")
    WebDriverWait(browser, TIMEOUT).until(
        lambda _: browser.execute_script(SHOWN, plot) == curves,
        f"the figure does not show the values at {at}",
    )
    layout = browser.execute_script("return arguments[0].layout", plot)
    assert [line["x0"] for line in layout["shapes"]] == [line.x0 for line in expected.layout.shapes]
    assert layout["yaxis"]["type"] == expected.layout.yaxis.type
    assert layout["yaxis"]["range"] == list(expected.layout.yaxis.range)
    assert title(figure) == expected.layout.title.text
    words = figure.find_element(By.CSS_SELECTOR, "details p").get_attribute("textContent")
    assert words == expected.layout.meta["description"]


def inputs(figure):
    """The slider, and the pressed button of each of the others."""
    slider = figure.find_element(By.CSS_SELECTOR, "input[type=range]")
    return [slider, *figure.find_elements(By.CSS_SELECTOR, "input:checked")]


@pytest.mark.parametrize("width", [1280, 390])
def test_each_state_is_a_whole_figure_chosen_by_the_keys_alone(visit, browser, width):
    figure, _ = visit(width=width)
    at = [START.get(label, 0) for label in LABELS]
    expect(browser, figure, at)
    plot = figure.find_element(By.CSS_SELECTOR, ".plot")
    browser.execute_script("arguments[0].tabIndex = -1; arguments[0].focus()", plot)
    stops = []
    for _ in range(3):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        stops.append(browser.switch_to.active_element.accessible_name)
    assert stops == [LABELS[0], "sqrt", "32"]
    for key, i, to in (
        (Keys.ARROW_RIGHT, 0, 1),
        (Keys.END, 0, 3),
        (Keys.ARROW_LEFT, 1, 0),
        (Keys.ARROW_RIGHT, 2, 0),
        (Keys.ARROW_LEFT, 0, 2),
        (Keys.ARROW_RIGHT, 2, 1),
        (Keys.ARROW_RIGHT, 1, 1),
    ):
        inputs(figure)[i].send_keys(key)
        at[i] = to
        expect(browser, figure, at)
    output = figure.find_element(By.TAG_NAME, "output")
    assert output.text == inputs(figure)[0].get_attribute("aria-valuetext") == "0.1"


def test_a_slider_that_is_faster_than_the_drawing_ends_where_it_ends(visit, browser):
    figure, _ = visit()
    browser.execute_script(
        "for (const value of [1, 2, 3, 0, 1, 3, 2]) {"
        "  arguments[0].value = value; arguments[0].dispatchEvent(new Event('input'));"
        "}",
        inputs(figure)[0],
    )
    expect(browser, figure, [2, 1, 2])


def test_a_state_that_was_not_measured_is_said_to_be_so(visit, browser):
    figure, _ = visit("index.html#explorer.at=1,0,0")
    expect(browser, figure, [1, 0, 0])
    plot = figure.find_element(By.CSS_SELECTOR, ".plot")
    saves = figure.find_element(By.CSS_SELECTOR, ".data")
    assert saves.is_displayed()
    inputs(figure)[0].send_keys(Keys.ARROW_LEFT)
    assert title(figure) == "Not measured: learning rate η = 0.01, rule = linear, n = 2"
    assert "unmeasured" in plot.get_attribute("class")
    assert not saves.is_displayed()
    inputs(figure)[2].send_keys(Keys.ARROW_RIGHT)
    expect(browser, figure, [0, 0, 1])
    assert "unmeasured" not in plot.get_attribute("class")
    greyed = figure.find_elements(By.CSS_SELECTOR, "label.unmeasured")
    assert [(label.text, label.get_attribute("title")) for label in greyed] == [
        ("2", "not measured")
    ]


def test_what_is_chosen_is_kept_in_the_address(visit, browser):
    figure, _ = visit()
    assert "#" not in browser.current_url
    inputs(figure)[0].send_keys(Keys.END)
    inputs(figure)[1].send_keys(Keys.ARROW_LEFT)
    assert browser.current_url.endswith("#explorer.at=3,0,2")
    browser.refresh()
    figure, _ = (ready(browser, f) for f in browser.find_elements(By.CSS_SELECTOR, "figure"))
    expect(browser, figure, [3, 0, 2])
    inputs(figure)[0].send_keys(Keys.HOME)
    inputs(figure)[1].send_keys(Keys.ARROW_LEFT)
    assert "#" not in browser.current_url  # as at the start


@pytest.mark.parametrize("at", ["9,0,0", "0,0", "a,b,c", "", "0.5,0,0", "-1,0,0"])
def test_an_address_that_says_nothing_that_can_be_chosen_changes_nothing(visit, browser, at):
    figure, _ = visit(f"index.html#explorer.at={at}")
    expect(browser, figure, [0, 1, 2])


def test_it_works_from_a_file(visit, browser, folder):
    figure, _ = visit(base=folder.as_uri())
    inputs(figure)[0].send_keys(Keys.END)
    expect(browser, figure, [3, 1, 2])


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark"), (320, "dark")])
def test_it_is_accessible_and_nothing_overlaps(visit, browser, width, theme):
    figure, _ = visit(width=width)
    browser.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
    plot = figure.find_element(By.CSS_SELECTOR, ".plot")
    ink = {"light": "rgb(0, 0, 0)", "dark": "rgb(255, 255, 255)"}[theme]
    WebDriverWait(browser, TIMEOUT).until(
        lambda _: browser.execute_script("return arguments[0].layout.font?.color", plot) == ink
    )
    assert violations(browser) == []
    assert browser.execute_script("return document.scrollingElement.scrollWidth <= innerWidth")
    browser.execute_script("scrollTo(0, 0)")  # further down, the chart of a phone covers others
    boxes = browser.execute_script(BOXES, figure)
    assert len(boxes) == 1 + len(CONTROLS) + 2
    assert all(left >= 0 and right <= width for _, _, left, right, _ in boxes)
    for one, two in itertools.combinations(boxes, 2):
        apart = one[1] <= two[0] + 1 or two[1] <= one[0] + 1
        assert apart or one[3] <= two[2] + 1 or two[3] <= one[2] + 1, (one, two)


def test_on_a_phone_the_chart_stays_in_view(visit, browser):
    figure, _ = visit(width=390)
    slider = inputs(figure)[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'end'})", slider)
    plot = figure.find_element(By.CSS_SELECTOR, ".plot")
    browser.execute_script("scrollBy(0, 250)")
    top = browser.execute_script("return arguments[0].getBoundingClientRect().top", plot)
    assert top == pytest.approx(0, abs=1)


def test_a_zoom_is_reset(visit, browser):
    figure, _ = visit()
    reset = figure.find_element(By.CSS_SELECTOR, ".reset")
    assert not reset.is_displayed()
    plot = figure.find_element(By.CSS_SELECTOR, ".plot")
    area = plot.find_element(By.CSS_SELECTOR, ".nsewdrag")
    ActionChains(browser).move_to_element(area).click_and_hold().move_by_offset(
        120, 90
    ).release().perform()
    WebDriverWait(browser, TIMEOUT).until(lambda _: reset.is_displayed(), "it cannot be reset")
    ranges = "return arguments[0].layout.yaxis.range"
    assert browser.execute_script(ranges, plot) != [0, 32]
    reset.send_keys(Keys.ENTER)
    expect(browser, figure, [0, 1, 2])
    assert not reset.is_displayed()


def test_the_label_of_a_point_names_the_axis_and_the_unit(visit, browser):
    figure, _ = visit()
    plot = figure.find_element(By.CSS_SELECTOR, ".plot")
    browser.execute_script("Plotly.Fx.hover(arguments[0], {xval: 4 / 3, yval: 1})", plot)
    lines = (
        "return [...arguments[0].querySelectorAll('.hoverlayer text')].map((t) => t.textContent)"
    )
    WebDriverWait(browser, TIMEOUT).until(lambda _: browser.execute_script(lines, plot), "no label")
    first, *others = browser.execute_script(lines, plot)
    assert first == "Updates: 1.333"
    assert others == ["η : 0.01 %", "rule : 1 %", "n : 3.2 %", "none : 2 %"]


def test_the_data_that_are_shown_are_saved(visit, browser, tmp_path):
    figure, other = visit()
    options = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", options)
    inputs(figure)[0].send_keys(Keys.END)
    expect(browser, figure, [3, 1, 2])
    for shown, data in ((figure, curves_of(1.0, "sqrt", 32)), (other, None)):
        data = data or curves_of(1.0, "linear", 8)
        button = shown.find_element(By.CSS_SELECTOR, ".data")
        browser.execute_script("arguments[0].click()", button)
        name = "-".join(["index", *re.findall(r"[^\W_]+", title(shown))])
        file = tmp_path / f"{name}.csv"
        WebDriverWait(browser, TIMEOUT).until(lambda _, file=file: file.exists(), "no file")
        assert_same_data(file.read_text("utf8"), json.loads(data.to_json()), title(shown))
    plot = other.find_element(By.CSS_SELECTOR, ".plot")
    assert figure_of(plot)["data"] == json.loads(data.to_json())["data"]


# ---- in Jupyter and Colab --------------------------------------------------------------------

# Colab shows each output in a frame of another origin; this one may run scripts, and no more. The
# front end is as anywidget's: the module is imported from a Blob, the style is an element. The
# kernel's answers were made beforehand.
FRAME = """<!doctype html><html lang="en"><meta charset="utf-8"><style>{css}</style>
<body style="background: {ground}; color: {ink}"><div id="output"></div>
<script type="application/json">{content}</script><script type="module">
const {{ esm, state, answers, plotly }} = JSON.parse(document.querySelector("script").textContent);
const listeners = [];
window.closing = {closing};
const emit = (name, ...values) =>
  listeners.filter(([event]) => event === name).forEach(([, act]) => act(...values));
const model = {{
  get: (name) => state[name],
  set(name, value) {{
    state[name] = value;
    emit(`change:${{name}}`);
  }},
  on: (...listener) => listeners.push(listener),
  off: (name, act) => listeners.splice(0, Infinity, ...listeners.filter((l) => l[1] !== act)),
  save_changes() {{
    setTimeout(() => this.set("figure", answers[state.at.join()]), 50);
  }},
  send({{ ask }}, i) {{
    window.asked = (window.asked ?? 0) + 1;
    // The figure that asks first, be it which it may, is closed before the answer comes.
    if (window.closing && window.asked === 1) return setTimeout(() => window.ends[i](), 50);
    if (ask === "plotly") setTimeout(() => emit("msg:custom", {{ plotly }}, []), 50);
  }},
}};
const address = URL.createObjectURL(new Blob([esm], {{ type: "text/javascript" }}));
const {{ default: widget }} = await import(address);
URL.revokeObjectURL(address);
for (let i = 0; i < 2; i++) {{
  const el = document.createElement("div");
  document.querySelector("#output").append(el);
  const own = {{ __proto__: model, send: (message) => model.send(message, i) }};
  (window.ends ??= []).push(widget.render({{ model: own, el }}));
}}
</script>"""


def frame_page(closing="false"):
    """A page with a frame, in which is an explorer as a kernel would have it, two times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LECTURE6_STATIC", raising=False)
        explorer = widgets.explore(curves_of, CONTROLS, start=START)
        state = {name: explorer.get_state()[name] for name in ("controls", "at", "figure")}
        answers = {}
        for at in itertools.product(*(range(len(options)) for options in CONTROLS.values())):
            explorer.at = list(at)
            answers[",".join(map(str, at))] = explorer.figure
    content = {"esm": explorer._esm, "state": state, "answers": answers}
    content |= {"plotly": widgets._plotly()}
    css = (explorables.HERE / "explorables.css").read_text("utf8")
    text = json.dumps(content).replace("<", "\\u003c")
    html = FRAME.format(css=css, content=text, ground="#111", ink="#eee", closing=closing)
    quoted = html.replace("&", "&amp;").replace('"', "&quot;")
    return (
        '<!doctype html><html lang="en"><title>A notebook</title><link rel="icon" href="data:,">'
        '<iframe title="output" sandbox="allow-scripts" style="width: 700px; height: 1500px" '
        f'srcdoc="{quoted}"></iframe>'
    )


def test_in_a_frame_the_kernel_is_asked_for_plotly_and_for_figures(visit, browser):
    visit("colab.html")
    browser.switch_to.frame(browser.find_element(By.TAG_NAME, "iframe"))
    wait = WebDriverWait(browser, TIMEOUT)
    figure, other = wait.until(
        lambda _: browser.find_elements(By.CSS_SELECTOR, "figure:has([aria-busy=false])"),
        "no figure is drawn",
    )[:2]
    ready(browser, other)
    expect(browser, figure, [0, 1, 2])
    assert browser.execute_script("return window.asked") == 1
    slider, rule, _ = inputs(figure)
    slider.send_keys(Keys.END)
    for each in (figure, other):
        expect(browser, each, [3, 1, 2])
    rule.send_keys(Keys.ARROW_LEFT)
    expect(browser, figure, [3, 0, 2])
    browser.execute_script(
        "document.querySelector('input[value=\"0\"][name=n]').click();"
        "arguments[0].value = 0;"
        "for (const event of ['input', 'change']) arguments[0].dispatchEvent(new Event(event));",
        slider,
    )
    wait.until(lambda _: title(figure).startswith("Not measured: learning rate η = 0.01"))
    plot = figure.find_element(By.CSS_SELECTOR, ".plot")
    assert browser.execute_script("return arguments[0].layout.font.color", plot) == (
        "rgb(238, 238, 238)"
    )
    for i, each in enumerate((figure, other)):  # one of them has asked for Plotly
        browser.execute_script("window.ends[arguments[0]]()", i)
        assert not browser.execute_script("return arguments[0].querySelector('.main-svg')", each)
    browser.switch_to.default_content()


def test_a_figure_that_waits_for_plotly_asks_again_where_the_one_that_asked_is_closed(
    visit, browser
):
    visit("closing.html")
    browser.switch_to.frame(browser.find_element(By.TAG_NAME, "iframe"))
    wait, drawn = WebDriverWait(browser, TIMEOUT), "figure:has([aria-busy=false])"
    (figure,) = wait.until(
        lambda _: browser.find_elements(By.CSS_SELECTOR, drawn), "no figure is drawn"
    )
    expect(browser, figure, [0, 1, 2])
    assert browser.execute_script("return window.asked") == 2
    browser.switch_to.default_content()
