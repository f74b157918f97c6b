"""The bench of the edge of stability, in a real browser."""

import csv
import io
import json
import re

import numpy as np
import pytest
from as_in_book import in_the_book, with_modules
from browsing import emulate, resize, violations
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from torch import nn
from torch.nn import functional as F

from lecture6 import curvature, data
from lecture6.course.explorables import Edge, bundle
from lecture6.models import local_seed
from lecture6.objective import NetworkObjective

TIMEOUT = 120  # seconds
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>A page</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<link rel="stylesheet" href="explorables.css">
<style>[data-theme=dark], [data-theme=dark] .plot {{ color: white; background: #121212 !important }}
body {{ margin: 16px }}</style>
<main><h1>A page</h1>{}</main><script src="explorables.js" defer></script>"""
PAGES = {"edge": {}, "short": {"updates": 200, "lr": 0.6}}
PAGES |= {f"seed {seed}": {"seed": seed} for seed in (1, 2)}
CALL = """
const [code, given, done] = arguments;
import("./edge.bundle.js").then((m) => done(Function("m", "given", code)(m, given)));
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds what the book would: pages, and the files that they load."""
    folder = with_modules(tmp_path_factory.mktemp("edge"))
    (folder / "edge.bundle.js").write_text(bundle("edge.js"), "utf8")
    (folder / "empty.html").write_text(PAGE.format(""), "utf8")
    for name, start in PAGES.items():
        html = PAGE.format(in_the_book(Edge, **start))
        (folder / f"{name}.html").write_text(html, "utf8")
    return folder


@pytest.fixture
def visit(browser, address):
    """Opens a page, with nothing in its storage; no error may come, and nothing leave the page."""
    browser.set_script_timeout(TIMEOUT)
    browser.get(f"{address}/empty.html")
    browser.execute_script("localStorage.clear()")
    for log in ("browser", "performance"):
        browser.get_log(log)  # what is left of the pages before

    def visit(name, *, width=1280, theme="light", calm=False, base=address):
        resize(browser, width)
        emulate(browser, theme=theme)
        if calm:
            motion = {"name": "prefers-reduced-motion", "value": "reduce"}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [motion]})
        browser.get(f"{base}/{name}.html")
        browser.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
        until(browser, lambda: said(browser))

    yield visit
    assert [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    messages = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    own = (address, "file://", "data:", f"blob:{address}", "blob:null")
    assert [url for m in sent if not (url := m["request"]["url"]).startswith(own)] == []


def until(browser, condition):
    WebDriverWait(browser, TIMEOUT, 0.1).until(lambda _: condition())


def one(browser, selector):
    (found,) = browser.find_elements(By.CSS_SELECTOR, selector)
    return found


def said(browser):
    return "".join(e.text for e in browser.find_elements(By.CSS_SELECTOR, ".state"))


def button(browser, i):
    return browser.find_elements(By.CSS_SELECTOR, ".controls .buttons button")[i]


def press(browser, element):
    """By keyboard."""
    browser.execute_script("arguments[0].focus()", element)
    browser.switch_to.active_element.send_keys(Keys.ENTER)


def trained(browser, which=0):
    """What is said when the net has been trained."""
    press(browser, button(browser, which))
    assert said(browser) == "The net is training, and is measured."
    until(browser, lambda: button(browser, 0).text == "Train")
    return said(browser)


def number(pattern, text):
    return float(re.search(pattern, text)[1].rstrip(".").replace("−", "-"))


def choose(browser, name, which):
    inputs = browser.find_elements(By.CSS_SELECTOR, f"input[name={name}]")
    browser.execute_script("arguments[0].focus()", inputs[0])
    for _ in range(which):
        browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)


def table(browser):
    """The rows that the button saves, as {run: array of numbers}."""
    script = "URL.createObjectURL = (blob) => { window.saved = blob.text(); return 'data:,'; }"
    browser.execute_script(script)
    browser.execute_script("document.querySelector('.data').click()")
    text = browser.execute_async_script("window.saved.then(arguments[0])")
    _, *rows = csv.reader(io.StringIO(text))
    runs = {}
    for name, *values in rows:
        runs.setdefault(name, []).append([float(value) for value in values])
    return {name: np.array(values) for name, values in runs.items()}


def test_the_level_is_a_median_of_the_last_third(visit, browser):
    visit("edge")
    rng = np.random.default_rng(0)
    for n in (30, 31, 40):
        values = rng.standard_normal(n)
        rows = [{"at": i, "value": value} for i, value in enumerate(values)]
        last = values[np.arange(n) >= 2 / 3 * (n - 1)]
        found = browser.execute_async_script(CALL, "return m.level(given);", rows)
        assert found == pytest.approx(np.median(last))


def test_gradient_descent_stays_at_the_edge_and_small_batches_below(visit, browser):
    visit("edge")
    assert not button(browser, 0).is_enabled()
    browser.find_elements(By.CSS_SELECTOR, "[role=slider]")[-1].send_keys(Keys.PAGE_UP)
    press(browser, one(browser, ".commit"))
    sentence = trained(browser)
    (rows,) = table(browser).values()
    last = rows[rows[:, 0] >= 400]
    median = np.median(last[:, 1])
    assert number(r"median of λ_max is (\S+),", sentence) == pytest.approx(median, rel=0.01)
    assert rows[0, 1] < 0.7 * 5 < 0.9 * 5 < median < 1.2 * 5  # 2/η = 5
    assert rows[-1, 3] < rows[0, 3]
    assert re.search(r"Measured: .*The edge 2/η is 5[.]", one(browser, ".said").text)
    slider = one(browser, "input[name=batch_size]")
    slider.send_keys(*[Keys.ARROW_LEFT] * 4)
    small = trained(browser)
    assert small.startswith("SGD with B = 32:")
    assert number(r"median of λ_max is (\S+),", small) < 0.9 * median
    assert " below the edge 2/η = 5 " in small
    assert list(table(browser)) == ["η = 0.4", "η = 0.4, B = 32"]
    choose(browser, "axis", 1)
    press(browser, button(browser, 2))  # Clear
    assert said(browser) == "Press Train."
    assert "edge.batch_size=32" in browser.current_url


@pytest.mark.parametrize("seed", [1, 2])
def test_so_it_is_from_other_weights(visit, browser, seed):
    visit(f"seed {seed}")
    press(browser, one(browser, ".skip"))
    large = number(r"median of λ_max is (\S+),", trained(browser))
    one(browser, "input[name=batch_size]").send_keys(*[Keys.ARROW_LEFT] * 5)
    small = trained(browser)
    assert small.startswith("SGD with B = 16:")
    assert number(r"median of λ_max is (\S+),", small) < 0.9 * 5 < 0.95 * 5 < large < 1.2 * 5


def half_squared_error(outputs, unit):
    return (outputs - unit).square().sum(1).mean() / 2


def test_images_and_first_eigenvalue_are_like_the_packages(visit, browser):
    visit("short")
    code = """
    const x = [...Array(given.n * given.inputs).keys()].map((i) => given.x[i]);
    const part = { x: Float32Array.from(x) };
    m.centred({ train: part, test: { x: new Float32Array(0) }, inputs: given.inputs, white: 16 });
    return [...part.x];"""
    images = data.load("digits").x_train[:500].flatten(1)
    given = {"n": 500, "inputs": 64, "x": images.flatten().tolist()}
    found = browser.execute_async_script(CALL, code, given)
    x = (images - images.mean(0)) * 16 / 6
    assert found == pytest.approx(x.flatten().numpy(), abs=1e-5)
    # torch's Linear has the lab's law of initial weights, so λ_max is alike over seeds.
    press(browser, one(browser, ".skip"))
    trained(browser)
    (rows,) = table(browser).values()
    tops, unit = [], F.one_hot(data.load("digits").y_train[:500].long(), 10).float()
    for seed in range(4):
        with local_seed(seed):
            parts = (nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
        f = NetworkObjective(nn.Sequential(*parts), x, unit, loss=half_squared_error)
        tops.append(curvature.eigenvalues(f, f.w, 1).values[0])
    assert min(tops) / 1.5 < rows[0, 1] < max(tops) * 1.5


def test_flow_goes_past_the_edge_and_a_run_stops(visit, browser):
    visit("short", calm=True)
    press(browser, one(browser, ".skip"))
    press(browser, button(browser, 0))
    press(browser, button(browser, 0))
    assert said(browser) == "Stopped."
    descent = number(r"median of λ_max is (\S+),", trained(browser))
    flow = number(r"median of λ_max is (\S+),", trained(browser, 1))
    edge = 2 / 0.6
    assert descent < 1.2 * edge < 1.3 * edge < flow


def test_from_a_file_where_workers_are_refused(visit, browser, folder):
    source = "window.Worker = class { constructor() { throw new Error('refused'); } };"
    command = "Page.addScriptToEvaluateOnNewDocument"
    added = browser.execute_cdp_cmd(command, {"source": source})
    try:
        visit("short", base=folder.as_uri())
        press(browser, one(browser, ".skip"))
        assert trained(browser).startswith("Gradient descent:")
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_it_is_accessible_and_fits(visit, browser, width, theme):
    visit("short", width=width, theme=theme)
    press(browser, one(browser, ".skip"))
    trained(browser)
    choose(browser, "net", 2)
    choose(browser, "axis", 1)
    trained(browser)
    assert violations(browser) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
