"""The rendered book in a real browser that has no network, at the widths of a desk and a phone."""

import functools
import http.server
import json
import re
import runpy
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from sphinx_external_toc.parsing import parse_toc_yaml

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


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    """The address at which the book is served, by a plain file server."""
    missing = [page for page in PAGES if not (HTML / f"{page}.html").exists()]
    if missing:
        pytest.fail(f"the book in {HTML} lacks {missing}: build it with `make book`", pytrace=False)
    handler = functools.partial(QuietHandler, directory=HTML)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(address, tmp_path_factory):
    """Headless Chromium that can look up no host."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("no browser: on Debian, `apt-get install chromium chromium-driver`")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


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


@pytest.fixture(
    scope="module",
    params=[(page, width) for page in PAGES for width in WIDTHS],
    ids=lambda param: f"{param[0]}-{param[1]}px",
)
def visit(request, browser, address):
    page, width = request.param
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
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
    local = re.compile(r"http://127\.0\.0\.1:|data:|blob:")
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
            visit.script("arguments[0].scrollIntoView({block: 'center'})", slider)
            before = visit.script(SHOWN, plot)
            grip = slider.find_element(By.CSS_SELECTOR, ".slider-grip-rect")
            rail = slider.find_element(By.CSS_SELECTOR, ".slider-rail-touch-rect").rect
            start = grip.rect["x"] + grip.rect["width"] / 2
            middle = rail["x"] + rail["width"] / 2
            step = round(rail["width"] / 2 * (0.8 if start <= middle else -0.8))
            drag = ActionChains(visit.browser).click_and_hold(grip)
            drag.move_by_offset(step, 0).release().perform()
            WebDriverWait(visit.browser, TIMEOUT).until(
                lambda _, plot=plot, before=before: visit.script(SHOWN, plot) != before,
                f"{visit.page}: a slider was moved and its figure did not change",
            )
    if visit.page in CHAPTERS:
        assert sliders, "a chapter without a figure that the reader can move"


def test_scorecard_holds_every_claim(address):
    scorecard = CLAIMS.findall((HTML / "book/scorecard.html").read_text("utf8"))
    chapters = [CLAIMS.findall((HTML / f"{page}.html").read_text("utf8")) for page in CHAPTERS]
    assert all(chapters), "a chapter without a table of claims"
    assert sorted(scorecard) == sorted(table for tables in chapters for table in tables)


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
