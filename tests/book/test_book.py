"""The rendered book in a real browser that has no network, at the widths of a desk and a phone."""

import base64
import json
import operator
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from browsing import THEMES, emulate, resize, violations
from bs4 import BeautifulSoup
from figure_data import assert_same_data, figure_of, move
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from sphinx_external_toc.parsing import parse_toc_yaml

from lecture6.course.figures import BLUE, GREEN, ORANGE, PURPLE

ROOT = Path(__file__).parents[2]
HTML = ROOT / "_build" / "html"
CONTENTS = list(parse_toc_yaml(ROOT / "_toc.yml"))
PAGES = ["index", *CONTENTS, "search"]
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]
ALIVE = {
    "index": 1,  # how many explorables a page has
    "book/index": 1,
    "notebooks/00_one_step": 1,
    "notebooks/02_flatness": 3,
    "notebooks/03_batch_size": 3,
    "notebooks/04_linear_scaling": 3,
    "notebooks/05_noise_scale": 3,
    "notebooks/06_equilibrium": 2,
    "notebooks/07_beyond": 1,
}
WIDTHS = tuple(THEMES)
TIMEOUT = 30  # seconds for a page to be typeset, or a figure to be drawn
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
# Waits until the page is loaded, and then for its first figure.
READY = """
const done = arguments[0], plot = document.querySelector("figure.plotly-figure .plot");
const check = () => (plot && plot.ariaBusy !== "false" ? setTimeout(check, 5) : done());
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
plot.parentElement.querySelector(".data").click();
"""
# Skips the predictions, if all are there, so that every figure is seen.
SKIPPED = """
const all = (selector) => [...document.querySelectorAll(selector)];
if (all(".answer").length > all(".lecture6-predict").length) return false;
for (const skip of all(".lecture6-predict .skip:not([hidden])")) skip.click();
return true;
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
    ...all(".shapelayer path", "stroke")],
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
for (const node of all("main details:not(figure *, .hide)"))
  if (!node.open) wrong.push("something is folded");
for (const node of all("figure :is(.plot svg, canvas), main :is(table, pre, img, mjx-container)"))
  if (cut(node)) wrong.push(`cut off: ${node.outerHTML.slice(0, 100)}`);
for (const node of all("main pre"))
  if (node.scrollWidth > node.clientWidth) wrong.push(`cut off: ${node.textContent.slice(0, 80)}`);
for (const node of all(".plotly-figure .subtitle"))
  if (node.textContent && !shown(node)) wrong.push("which run a figure shows is not printed");
for (const node of all(".plotly-figure :is(summary, .description, button), .explorable .data"))
  if (shown(node)) wrong.push(`printed: ${node.textContent.slice(0, 80)}`);
return wrong;
"""
UNTYPESET = """
const prose = document.querySelector("main").cloneNode(true);
prose.querySelectorAll("pre, code, script, mjx-container").forEach((node) => node.remove());
return prose.textContent.match(/\\\\[([].{0,40}|\\$\\S.{0,40}/g) ?? [];
"""


@dataclass
class Visit:
    """A page that is open, typeset and drawn, and what the browser logged meanwhile."""

    browser: webdriver.Chrome
    page: str
    width: int
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
    browser.get(f"{address}/{page}.html")
    wait.until(lambda _: browser.execute_script(ARRIVED), "it leads nowhere")
    browser.execute_async_script(READY)
    wait.until(lambda _: browser.execute_script(SKIPPED), f"{page}: a prediction is not there")
    figures = browser.find_elements(By.CSS_SELECTOR, "figure.plotly-figure .plot")
    for plot in figures:
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
        wait.until(lambda _, plot=plot: is_drawn(plot), f"{page}: a figure is not drawn")
    messages = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    return Visit(
        browser=browser,
        page=page,
        width=width,
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
        figure = figure_of(plot)
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
        assert {colour for colour, _ in styles if not on_the_ramp(colour)} <= {GREEN, PURPLE}


def on_the_ramp(colour):
    """Whether a colour is blue, orange, or on the straight line between the two."""
    found = re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour)
    if not found:
        return colour in (BLUE, ORANGE)
    ends = [[int(end[i : i + 2], 16) for i in (1, 3, 5)] for end in (BLUE, ORANGE)]
    blue, orange, at = np.array([*ends, found.groups()], dtype=float)
    part = (at - blue) @ (orange - blue) / ((orange - blue) @ (orange - blue))
    return np.abs(blue + part * (orange - blue) - at).max() <= 1


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
    found = visit.browser.find_elements(By.CSS_SELECTOR, "figure.explorable:has(canvas)")
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
        # What asks for a prediction draws when it is run: tests/book/test_lab_*.py look at that.
        asks = figure.find_elements(By.CLASS_NAME, "lecture6-predict")

        def changed(_, figure=figure, before=before, asks=asks):
            picture, label = map(operator.ne, visit.script(PICTURE, figure), before)
            return label and (picture or asks)

        wait.until(changed, "a slider does not change both its label and the picture")


def test_every_control_changes_its_figure(visit):
    controls = 0
    for plot in visit.figures:
        for control in plot.find_elements(By.XPATH, "../form/*"):
            controls += 1
            visit.script("arguments[0].scrollIntoView({block: 'center'})", control)
            before = visit.script(SHOWN, plot)
            move(control)
            WebDriverWait(visit.browser, TIMEOUT).until(
                lambda _, plot=plot, before=before: visit.script(SHOWN, plot) != before,
                f"{visit.page}: a control was moved and its figure did not change",
            )
    if visit.page in CHAPTERS and visit.page not in ALIVE:
        assert controls, "a chapter without a figure that the reader can move"


def test_scorecard_holds_every_claim(address):
    def claims(page):
        """What the rows say, but for where it was computed: the scorecard has its own words."""
        html = BeautifulSoup((HTML / f"{page}.html").read_text("utf8"), "html.parser")
        rows = html.select("table.claims tr[id]")
        texts = [row.get_text(" ", strip=True).replace(" # ", " ") for row in rows]
        return [re.sub(r"Computed .*?(?=Holm|$)", "", text) for text in texts]

    chapters = [claims(page) for page in CHAPTERS]
    assert all(chapters), "a chapter without a table of claims"
    assert claims("book/scorecard") == [row for rows in chapters for row in rows]
    scorecard = (HTML / "book/scorecard.html").read_text("utf8")
    assert scorecard.count('<table class="claims"') == 1
    assert "this page</span>" not in scorecard
    assert f"<p>{sum(map(len, chapters))} claims:</p>" in scorecard


def test_every_claim_leads_to_its_row_in_the_chapter():
    scorecard = (HTML / "book/scorecard.html").read_text("utf8")
    links = re.findall(r'href="\.\./(notebooks/\w+)\.html#(claim-[^"]+)"', scorecard)
    pages = {page: (HTML / f"{page}.html").read_text("utf8") for page in CHAPTERS}
    assert {page for page, _ in links} == set(CHAPTERS)
    assert [link for link in links if f'<tr id="{link[1]}"' not in pages[link[0]]] == []


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


def test_search_finds_a_claim_by_its_words(browser, address):
    resize(browser, WIDTHS[0])
    browser.get(f"{address}/search.html?q=adaptive+sharpness+survives")
    result = '#search-results li a[href*="book/scorecard.html"]'
    WebDriverWait(browser, TIMEOUT).until(
        lambda _: browser.find_elements(By.CSS_SELECTOR, result), "the scorecard is not found"
    )


def test_no_page_loads_from_another_host(address):
    outside = re.compile(
        r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^\"]*"
        r"|(?:@import\s*|url\()[\"']?(?:https?:)?//[^\"')]*"
    )
    files = [*HTML.rglob("*.html"), *HTML.rglob("*.css")]
    found = {str(f.relative_to(HTML)): outside.findall(f.read_text("utf8")) for f in files}
    assert {name: urls for name, urls in found.items() if urls} == {}
