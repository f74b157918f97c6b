"""The bench of the linear scaling rule, in a real browser."""

import csv
import io
import json
import math
import re

import numpy as np
import pytest
from as_in_book import in_the_book, with_modules
from browsing import emulate, resize, violations
from scipy import stats
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from lecture6.course.explorables import Scaling, bundle
from lecture6.schedules import scale_lr, warmup

TIMEOUT = 120  # seconds
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>A page</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<link rel="stylesheet" href="explorables.css">
<style>[data-theme=dark], [data-theme=dark] .plot {{ color: white; background: #121212 !important }}
body {{ margin: 16px }}</style>
<main><h1>A page</h1>{}</main><script src="explorables.js" defer></script>"""
PAGES = {
    "plain": {"lr": 0.1, "epochs": 10},
    "short": {"epochs": 5},
    "late": {"lr": 0.1, "k": 16, "warmup": 5},
    "early": {"lr": 0.1, "k": 16},
    "wild": {"lr": 0.5, "k": 64, "epochs": 5},
}
KS = [1, 2, 4, 8, 16, 32, 64, 128]
MARGIN = 1.5
COUNTED = """
window.drawn = 0;
const { clearRect } = CanvasRenderingContext2D.prototype;
CanvasRenderingContext2D.prototype.clearRect = function (...rectangle) {
  window.drawn += 1;
  return clearRect.apply(this, rectangle);
};
"""
CALL = """
const [code, given, done] = arguments;
import("./bundles/scaling.js").then((m) => done(Function("m", "given", code)(m, given)));
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds what the book would: pages, and the files that they load."""
    folder = with_modules(tmp_path_factory.mktemp("scaling"))
    (folder / "bundles").mkdir()
    (folder / "bundles" / "scaling.js").write_text(bundle("scaling.js"), "utf8")
    (folder / "empty.html").write_text(PAGE.format(""), "utf8")
    for name, start in PAGES.items():
        html = PAGE.format(in_the_book(Scaling, **start))
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

    def visit(name, *, width=1280, theme="light", calm=False, base=address, skip=True):
        resize(browser, width)
        emulate(browser, theme=theme)
        if calm:
            motion = {"name": "prefers-reduced-motion", "value": "reduce"}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [motion]})
        browser.get(f"{base}/{name}.html")
        browser.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
        until(browser, lambda: said(browser))
        if skip and (buttons := browser.find_elements(By.CSS_SELECTOR, ".skip:not([hidden])")):
            press(browser, buttons[0])

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


def buttons(browser):
    return browser.find_elements(By.CSS_SELECTOR, ".controls .buttons button")


def press(browser, element):
    """By keyboard."""
    browser.execute_script("arguments[0].focus()", element)
    browser.switch_to.active_element.send_keys(Keys.ENTER)


def run(browser, which):
    """What is said when the nets are trained: 0, two; 1, all k; 2, all k over five seeds."""
    press(browser, buttons(browser)[which])
    until(browser, lambda: buttons(browser)[which].is_enabled())
    return said(browser)


def number(pattern, text):
    return float(re.search(pattern, text)[1].rstrip(".,").replace("−", "-"))


def table(browser):
    """The rows that the button saves."""
    script = "URL.createObjectURL = (blob) => { window.saved = blob.text(); return 'data:,'; }"
    browser.execute_script(script)
    browser.execute_script("document.querySelector('.data').click()")
    text = browser.execute_async_script("window.saved.then(arguments[0])")
    head, *rows = csv.reader(io.StringIO(text))
    assert head == ["seed", "k", "epoch", "what", "value"]
    assert {len(row) for row in rows} == {len(head)}
    return rows


def course(rows, what, k, seed=0):
    """The values of one net, by epoch."""
    wanted = (f"{seed}", f"{k}", what)
    return {int(e): float(v) for s, of, e, w, v in rows if (s, of, w) == wanted}


def call(browser, code, **given):
    return browser.execute_async_script(CALL, code, given)


# ---- what is computed ------------------------------------------------------------------------


def test_the_rates_are_those_of_the_package(visit, browser):
    visit("short")
    for rule in ("linear", "sqrt", "none"):
        full = scale_lr(0.05, 8, rule=rule)
        assert call(browser, f"return m.scaled('{rule}', 0.05, 8);") == pytest.approx(full)
        for epochs in (0, 1, 5):
            factor = warmup(epochs, 0.05 / full)
            code = f"return [0, 0.5, 1, 3, 5, 6].map((e) => m.rateAt(e, 0.05, {full}, {epochs}));"
            expected = [full * factor(epoch) for epoch in (0, 0.5, 1, 3, 5, 6)]
            assert call(browser, code) == pytest.approx(expected)


def test_a_k_is_judged_by_its_interval(visit, browser):
    visit("short")
    rng = np.random.default_rng(0)
    centres = np.log([1, 0.9, 1.2, 1.6, 40])
    runs = 0.05 * np.exp(centres + 0.15 * rng.standard_normal((5, 5)) * [0, 1, 1, 1, 1])
    code = (
        "const found = m.judged(given.runs, [1, 2, 4, 8, 16]); return [found, m.lastHeld(found)];"
    )
    found, held = call(browser, code, runs=runs.tolist())
    ratios = np.log(runs / runs[:, :1])
    for i, each in enumerate(found[1:], start=1):
        mean, error = ratios[:, i].mean(), stats.sem(ratios[:, i])
        low, high = np.exp(stats.t.interval(0.95, 4, mean, error))
        assert [each[n] for n in ("value", "low", "high")] == pytest.approx(
            [math.exp(mean), low, high], rel=1e-3
        )
        verdict = "holds" if high <= MARGIN else "breaks" if low > MARGIN else "open"
        assert each["verdict"] == verdict
    assert [each["verdict"] for each in found] == ["holds", "holds", "holds", "open", "breaks"]
    assert held["k"] == 4
    # A net that fails breaks the rule; one that fails at k = 1 leaves nothing to compare with.
    code = "return given.all.map((runs) => m.lastHeld(m.judged(runs, [1, 2, 4]))?.k ?? 0);"
    runs = [[[1, 1, None]], [[1, None, 1]], [[None, 1, 1]], [[1, 1, 1]]]
    code = (
        f"given.all.forEach((r) => r.forEach((l) => l.forEach((x, i) => l[i] = x ?? NaN)));{code}"
    )
    assert call(browser, code, all=runs) == [2, 1, 0, 4]


def test_a_net_is_lost_from_its_last_good_row_on(visit, browser):
    visit("short")
    code = """return given.all.map((losses) =>
      m.lost(losses.map((trainLoss, i) => ({ trainLoss, update: 10 * i }))));"""
    losses = [[2.4, 1, 0.5], [2.4, 1, 2.4, 2.3], [2.4, 30, 2.4], [2.4, 2.4, 1]]
    assert call(browser, code, all=losses) == [0, 20, 10, 0]


# ---- the story -------------------------------------------------------------------------------


def loss_at_end(rows, k, seed):
    return [*course(rows, "training loss", k, seed).values()][-1]


def broken(rows, seed):
    """The first k whose loss is beyond the margin."""
    ends = [loss_at_end(rows, k, seed) for k in KS]
    return next(k for k, loss in zip(KS, ends, strict=True) if loss > MARGIN * ends[0])


def test_the_rule_ends_beyond_the_edge_and_not_far_from_it(visit, browser):
    visit("plain", skip=False)
    assert said(browser) == "Make a prediction or skip it, then train the nets."
    assert not any(b.is_enabled() for b in buttons(browser))
    first = one(browser, ".guess label:first-of-type input")  # k = 2 is already too much
    first.send_keys(Keys.SPACE)
    press(browser, one(browser, ".commit"))
    sentence = run(browser, 2)
    rows = table(browser)
    highs = [max(course(rows, "λ_max", 1, seed).values()) for seed in range(5)]
    edge = number(r"kηλ_max = 2 at k = (\S+)", sentence)
    assert edge == pytest.approx(2 / (0.1 * stats.gmean(highs)), rel=0.01)
    held = int(number(r"holds up to k = (\d+):", sentence))
    for seed in range(3):
        assert edge / 2 < broken(rows, seed) <= 8 * edge  # the text says so
    assert 2 <= held <= 16
    assert one(browser, ".said").text == "No. The rule holds for a while, and then it breaks."
    # The sentence is what the rows say.
    ends = np.log([[loss_at_end(rows, k, seed) for k in (1, held)] for seed in range(5)])
    gap = ends[:, 1] - ends[:, 0]
    assert number(rf"k = {held}: there the loss is (\S+)", sentence) == pytest.approx(
        math.exp(gap.mean()), rel=0.01
    )
    # At the same rate the large batch falls behind from the first doublings on.
    browser.find_element(By.XPATH, "//label[span='η']/input").send_keys(Keys.SPACE)
    assert said(browser).startswith("Train a small and a large batch")
    assert "scaling.rule=none" in browser.current_url
    assert number(r"the rate η holds (?:at no k > |up to k = )(\d+)", run(browser, 1)) <= 2


def test_half_the_rate_has_its_edge_at_twice_the_k(visit, browser):
    visit("plain")
    edges = []
    for _ in range(2):
        edges.append(number(r"kηλ_max = 2 at k = (\S+)", run(browser, 1)))
        for _ in range(3):  # of ten a decade
            one(browser, "input[name=lr]").send_keys(Keys.ARROW_RIGHT)
    assert 1.5 < edges[0] / edges[1] < 2.7


def test_seeds_decide_more_than_a_warm_up(visit, browser):
    ends = {}
    for name in ("early", "late"):
        visit(name)
        losses = []
        for seed in range(3):
            run(browser, 0)
            large, small = (course(table(browser), "training loss", k, seed) for k in (16, 1))
            losses.append(large[20])
            assert large[20] > small[20]
            one(browser, "input[name=seed]").send_keys(Keys.ARROW_RIGHT)
        ends[name] = losses
    early, late = ends["early"], ends["late"]  # the text says that they overlap
    assert max(min(early), min(late)) < min(max(early), max(late))


def test_two_nets_side_by_side(visit, browser):
    visit("short")
    sentence = run(browser, 0)
    rows = table(browser)
    small, large = (course(rows, "training loss", k) for k in (1, 8))
    assert [*small] == [*large] == [*range(6)]
    assert small[0] == large[0]
    assert course(rows, "distance from k = 1", 8)[0] == 0
    assert number(r"training loss is (\S+) with", sentence) == pytest.approx(small[5], rel=0.01)
    assert number(r"and (\S+) with B = 64", sentence) == pytest.approx(large[5], rel=0.01)
    ratio = number(r"kη = 0.4, (\S+) times", sentence)
    assert ratio == pytest.approx(large[5] / small[5], rel=0.01)
    assert f"{'beyond' if ratio > MARGIN else 'within'} the margin of 1.5" in sentence
    products = [0.4 * value for value in course(rows, "λ_max", 1).values()]
    assert number(r"λ_max is at most (\S+),", sentence) == pytest.approx(max(products), rel=0.01)
    # The same seed gives the same nets, and another k forgets them.
    assert run(browser, 0) == sentence
    one(browser, "input[name=k]").send_keys(Keys.ARROW_RIGHT)
    assert said(browser).startswith("Train a small and a large batch")


def test_what_does_not_train_is_marked(visit, browser):
    visit("wild")
    sentence = run(browser, 0)
    assert re.search(r"The net with B = 512 at kη = 32 .* (from|at) update \d+", sentence)


# ---- wherever it is read ---------------------------------------------------------------------


def test_it_stops_and_starts_again(visit, browser):
    visit("plain")
    press(browser, buttons(browser)[2])
    until(browser, lambda: "epoch" in said(browser))
    press(browser, buttons(browser)[3])
    assert said(browser).startswith("Train a small and a large batch")
    assert [b.is_enabled() for b in buttons(browser)] == [True, True, True, False]
    assert run(browser, 0).startswith("After 10 epochs")


@pytest.mark.parametrize("name", ["k", "lr", "warmup", "epochs", "seed"])
def test_every_slider_is_moved_by_keys(visit, browser, name):
    visit("short")
    slider = one(browser, f"input[name={name}]")
    assert slider.accessible_name.strip()
    trait = Scaling().traits()[name]
    for key, end in ((Keys.END, trait.max), (Keys.HOME, trait.min)):
        slider.send_keys(key)
        assert float(slider.get_attribute("aria-valuetext")) == end


def test_with_little_motion_only_the_end_is_drawn(visit, browser):
    visit("short", calm=True)
    until(browser, lambda: buttons(browser)[0].is_enabled())
    browser.execute_script(COUNTED)
    run(browser, 0)
    assert browser.execute_script("return window.drawn") <= 4  # at the start, and at the end


def test_from_a_file_where_workers_are_refused(visit, browser, folder):
    source = "window.Worker = class { constructor() { throw new Error('refused'); } };"
    command = "Page.addScriptToEvaluateOnNewDocument"
    added = browser.execute_cdp_cmd(command, {"source": source})
    try:
        visit("short", base=folder.as_uri())
        assert run(browser, 0).startswith("After 5 epochs")
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_it_is_accessible_and_fits(visit, browser, width, theme):
    visit("short", width=width, theme=theme)
    run(browser, 0)
    run(browser, 1)
    assert violations(browser) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
