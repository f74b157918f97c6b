"""The best batch size, the noise scale, and the collapse of curves, in a real browser."""

import itertools
import re

import numpy as np
import pytest
from as_in_book import in_the_book, with_modules
from browsing import emulate, resize, violations
from scipy import stats
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from lecture6.course.explorables import BestBatch, Collapse, NoiseScale, bundle
from lecture6.noise_scale import noise_scale

TIMEOUT = 60  # seconds
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>A page</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<link rel="stylesheet" href="explorables.css">
<style>[data-theme=dark], [data-theme=dark] .plot {{ color: white; background: #121212 !important }}
body {{ margin: 16px }}</style>
<main><h1>A page</h1>{}</main><script src="explorables.js" defer></script>"""
CALL = """
const [name, code, given, done] = arguments;
import(`./bundles/${name}`).then((m) => done(Function("m", "given", code)(m, given)));
"""
# Every state of the four controls, drawn on a page of its own: what is seen of the batch size.
STATES = """
const [start, done] = arguments, shown = [];
const host = document.querySelector("main").appendChild(document.createElement("div"));
const values = structuredClone(start), heard = {};
const model = { get: (name) => values[name], save_changes() {}, off() {},
  on: (event, act) => (heard[event] ??= []).push(act),
  set(name, value) { values[name] = value; heard[`change:${name}`]?.forEach((act) => act()); } };
const frames = [];
window.requestAnimationFrame = (act) => { frames.push(act); return frames.length; };
window.cancelAnimationFrame = () => { frames.length = 0; };
const { fill, stroke, rect } = CanvasRenderingContext2D.prototype;
let panels = [], marks = [], texts = [], path = [];
const patched = CanvasRenderingContext2D.prototype, { lineTo, beginPath, fillText } = patched;
patched.rect = function (...at) { panels.push(at); return rect.apply(this, at); };
patched.beginPath = function () { path = []; return beginPath.apply(this); };
patched.lineTo = function (...at) { path.push(at); return lineTo.apply(this, at); };
patched.fillText = function (...text) { texts.push(text[0]); return fillText.apply(this, text); };
const keep = () => path.length === 4 && marks.push([path[0][0] - 7, path[0][1]]);
patched.fill = function () { keep(); return fill.apply(this); };
patched.stroke = function () { keep(); return stroke.apply(this); };
import("./bundles/noisescale.js").then(({ default: { render } }) => {
  render({ model, el: host });
  const ranges = [...host.querySelectorAll("input[type=range]")];
  const radios = [...host.querySelectorAll("input[type=radio]")];
  const visit = (i, act) => {
    if (i === ranges.length) return act();
    for (let at = 0; at <= ranges[i].max; at++) {
      ranges[i].value = at;
      ranges[i].dispatchEvent(new Event("input"));
      visit(i + 1, act);
    }
  };
  for (const radio of radios) {
    radio.click();
    visit(0, () => {
      [panels, marks, texts] = [[], [], []];
      frames.splice(0).at(-1)();
      shown.push([["lr", "batch_size", "n_train", "momentum"].map((name) => values[name]), panels,
        marks, texts.includes("not measured"), host.querySelector(".state").textContent]);
    });
  }
  done(shown);
});
"""


def curve(lr, momentum, n, peak):
    """A curve whose gain is a parabola in log B, 0 at the largest batch; four seeds' peaks."""
    sizes = [2.0**k for k in range(3, 10)]
    gains = [0.5 - 0.1 * np.log2(b / peak) ** 2 for b in sizes]
    points = [
        [b, y - gains[-1], y - gains[-1] - 0.1, y - gains[-1] + 0.1]
        for b, y in zip(sizes, gains, strict=True)
    ]
    peaks = [float(peak * factor) for factor in (0.9, 1.0, 1.1, 1.05)]
    peaks.append(None)
    return {"lr": lr, "momentum": momentum, "n_train": n, "points": points, "peaks": peaks}


CURVES = [curve(lr, 0.0, 1000, 25 * lr) for lr in (0.5, 1.0, 2.0)]
CURVES += [curve(lr, 0.9, 1000, 250 * lr) for lr in (0.05, 0.1, 0.2)]
CURVES += [curve(1.0, 0.0, n, 25 * (n / 1000) ** 0.3) for n in (2000, 16_000, 60_000)]
COMMON = {"curves": CURVES, "provenance": "made for a test"}
MAKE = {"collapse": Collapse, "scale": lambda **start: NoiseScale(g_star=40.0, **start)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds what the book would: pages, and the files that they load."""
    folder = with_modules(tmp_path_factory.mktemp("batch"))
    (folder / "bundles").mkdir()
    for name in ("collapse.js", "noisescale.js", "bestbatch.js"):
        (folder / "bundles" / name).write_text(bundle(name), "utf8")
    (folder / "empty.html").write_text(PAGE.format(""), "utf8")
    for name, make in MAKE.items():
        html = PAGE.format(in_the_book(make, **COMMON))
        (folder / f"{name}.html").write_text(html, "utf8")
    for name, start in (("best", {"samples": 200, "updates": 50}), ("first", {})):
        html = PAGE.format(in_the_book(BestBatch, **start))
        (folder / f"{name}.html").write_text(html, "utf8")
    return folder


@pytest.fixture
def visit(browser, address):
    """Opens a page; no error may come."""
    browser.set_script_timeout(TIMEOUT)
    browser.get_log("browser")  # what is left of the pages before

    def visit(name, *, width=1280, theme="light", calm=False):
        resize(browser, width)
        emulate(browser, theme=theme)
        browser.get(f"{address}/empty.html")
        browser.execute_script("localStorage.clear()")
        if calm:
            motion = {"name": "prefers-reduced-motion", "value": "reduce"}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [motion]})
        browser.get(f"{address}/{name}.html")
        browser.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
        if "empty" not in name:
            WebDriverWait(browser, TIMEOUT, 0.1).until(lambda _: said(browser))

    yield visit
    assert [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


def said(browser):
    return "".join(e.text for e in browser.find_elements(By.CSS_SELECTOR, ".state"))


def press(browser, text):
    """The button of this text, by keyboard."""
    buttons = browser.find_elements(By.CSS_SELECTOR, ".buttons button")
    button = next(b for b in buttons if b.text == text)
    browser.execute_script("arguments[0].focus()", button)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    return said(browser)


def number(pattern, text):
    return float(re.search(pattern, text)[1].rstrip(".").replace("−", "-"))


def far(curve, lr, momentum, n):
    """How far a curve is from these settings, in sizes of factors."""
    pairs = [(curve["lr"], lr), (1 - curve["momentum"], 1 - momentum), (curve["n_train"], n)]
    return sum(abs(np.log(a / b)) for a, b in pairs)


def call(browser, name, code, **given):
    return browser.execute_async_script(CALL, name, code, given)


# ---- what is computed ------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["all", "rates", "sizes"])
def test_the_best_fit_is_least_squares(visit, browser, which):
    visit("empty")
    rng = np.random.default_rng(0)
    chosen = {"all": CURVES, "rates": CURVES[:6], "sizes": CURVES[6:]}[which]
    pairs = [[c, float(np.exp(rng.standard_normal()) * c["peaks"][1])] for c in chosen]
    given = [0.3, -0.2, 0.1]
    code = "return m.bestFit(given.pairs, given.given);"
    found = call(browser, "collapse.js", code, pairs=pairs, given=given)
    x = np.log([[c["lr"], 1 - c["momentum"], c["n_train"]] for c in chosen])
    x, y = x - x.mean(0), -np.log([peak for _, peak in pairs])
    free = np.flatnonzero(np.ptp(x, axis=0) > 0)
    expected = np.array(given)
    expected[free] = np.linalg.lstsq(x[:, free], y - y.mean(), rcond=None)[0]
    assert found["free"] == free.tolist()
    assert found["exponents"] == pytest.approx(expected, abs=1e-9)


def test_the_spread_is_the_deviation_of_logarithms(visit, browser):
    visit("empty")
    pairs, exponents = [[c, c["peaks"][2]] for c in CURVES], [-0.5, 0.7, 0.2]
    code = "return m.spread(given.pairs, given.exponents);"
    found = call(browser, "collapse.js", code, pairs=pairs, exponents=exponents)
    at = [
        np.log(b) + np.log([c["lr"], 1 - c["momentum"], c["n_train"]]) @ exponents for c, b in pairs
    ]
    assert found["deviation"] == pytest.approx(np.exp(np.std(at)))
    assert found["range"] == pytest.approx(np.exp(np.ptp(at)))


def test_g_and_the_gain_between_points(visit, browser):
    visit("empty")
    settings = list(itertools.product((0.01, 1.0), (1, 7, 512), (1000, 60_000), (0.0, 0.9)))
    code = "return given.settings.map((each) => m.noiseScale(...each));"
    found = call(browser, "noisescale.js", code, settings=settings)
    expected = [noise_scale(lr, b, n, momentum=m) for lr, b, n, m in settings]
    assert found == pytest.approx(expected)
    points, sizes = CURVES[0]["points"], [4, 8, 11, 100, 512, 600]
    code = "return given.sizes.map((size) => m.gainAt(given.points, size));"
    found = call(browser, "noisescale.js", code, points=points, sizes=sizes)
    known = np.array(points)
    expected = np.interp(np.log(sizes[1:5]), np.log(known[:, 0]), known[:, 1])
    assert (found[0], found[-1]) == (None, None)
    assert found[1:5] == pytest.approx(expected)


# ---- what is seen ----------------------------------------------------------------------------


def test_in_every_state_the_choice_is_on_its_axes_and_something_is_said(visit, browser):
    visit("empty", width=1280)
    start = {"lr": 1.0, "batch_size": 32, "n_train": 1000, "momentum": 0.0, "g_star": 40.0}
    found = browser.execute_async_script(STATES, start | COMMON)
    settings = [tuple(state) for state, *_ in found]
    assert len(settings) == len(set(settings)) > 5000
    measured = {(c["lr"], c["n_train"], c["momentum"]) for c in CURVES}
    drawn = set()
    for (lr, size, n, momentum), panels, marks, words, sentence in found:
        assert len(panels) == len(marks) == 2
        for (x, y), (left, top, width, height) in zip(marks, panels, strict=True):
            assert left <= x <= left + width
            assert top <= y <= top + height
        known = (lr, n, momentum) in measured
        assert words == (not known or not 8 <= size <= 512)
        assert known != ("Not measured: " in sentence)
        if not known:
            near = min(CURVES, key=lambda c: far(c, lr, momentum, n))
            rate, m, number = (near[name] for name in ("lr", "momentum", "n_train"))
            assert f"the nearest that was: η = {rate:g}, m = {m:g}, N = {number:,}." in sentence
        drawn |= {(lr, n, momentum)} if known else set()
    assert drawn == measured


def test_the_nearest_measured_curve_is_one_button_away(visit, browser):
    visit("scale")
    assert "Measured, it is 32; at B = 32" in said(browser)
    rate = browser.find_element(By.CSS_SELECTOR, "input[name=lr]")
    rate.send_keys(Keys.ARROW_LEFT)
    assert "Not measured: η = 0.79" in said(browser)
    assert number(r"= ([\d.]+)\. With", said(browser)) == pytest.approx(
        noise_scale(0.79, 32, 1000), rel=1e-2
    )
    assert "at B = 32 the gain is" in press(browser, "The nearest that was measured")


def test_theory_collapses_the_rates_and_the_best_fit_all(visit, browser):
    visit("collapse")

    def deviation():
        return number(r"is a factor of ([\d.]+)", said(browser))

    apart = deviation()
    assert "Theory" in press(browser, "Theory")
    assert deviation() == 1 < 1.5 < apart
    browser.find_element(By.CSS_SELECTOR, "input[name=which][value='0']").send_keys(Keys.SPACE)
    assert deviation() > 1.5  # N is not what the theory says
    text = press(browser, "Best fit")
    assert deviation() == pytest.approx(1, abs=0.01)
    assert number(r"of N ([−\d.]+) ±", text) == pytest.approx(-0.3, abs=0.01)
    slider = browser.find_element(By.CSS_SELECTOR, "input[name=size]")
    slider.send_keys(*[Keys.ARROW_LEFT] * 10)
    assert deviation() > 1.5
    assert "Best fit" not in said(browser)


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
@pytest.mark.parametrize("name", [*MAKE, "best"])
def test_axe_and_a_phone(visit, browser, name, width, theme):
    visit(name, width=width, theme=theme)
    assert violations(browser) == []
    script = "return document.documentElement.scrollWidth <= innerWidth"
    assert browser.execute_script(script)


# ---- the bench -------------------------------------------------------------------------------


def test_the_best_size_is_the_mean_of_the_seeds_and_no_finer_than_the_grid(visit, browser):
    visit("empty")
    rng = np.random.default_rng(0)
    table = rng.integers(0, 4, (5, 6)) / 4  # ties, too
    rows = [
        {"seed": i, "size": 2**k, "test": float(table[i, k])}
        for i, k in itertools.product(range(5), range(6))
    ]
    code = "const best = m.bestSizes(given.rows); return [best, m.bestInterval(best)];"
    best, (centre, low, high) = call(browser, "bestbatch.js", code, rows=rows)
    expected = [2 ** np.flatnonzero(row == row.max()).mean() for row in table]
    assert best == pytest.approx(expected)
    logs = np.log(expected)
    half = stats.t.ppf(0.975, 4) * stats.sem(logs)
    assert half > np.log(2) / 2
    assert [centre, low, high] == pytest.approx(
        np.exp([logs.mean(), logs.mean() - half, logs.mean() + half]), rel=1e-3
    )
    code = "return m.bestInterval([8, 8, 8]);"
    assert call(browser, "bestbatch.js", code) == pytest.approx([8, 8 / 2**0.5, 8 * 2**0.5])


def trained(browser, words):
    """What is said when all nets have been trained."""
    press(browser, words)
    go = browser.find_elements(By.CSS_SELECTOR, ".controls .buttons button")[0]
    WebDriverWait(browser, TIMEOUT, 0.1).until(lambda _: go.text == "Train")
    return said(browser)


def test_at_the_start_there_is_a_peak_and_it_moves_with_the_rate(visit, browser):
    """Over ten seeds it was at 12 [8, 18], and 2.3 [1.4, 3.9] times as large at twice the rate."""
    visit("first")
    first, second = browser.find_elements(By.CSS_SELECTOR, ".lecture6-predict")
    first.find_element(By.CSS_SELECTOR, ".skip").send_keys(Keys.ENTER)
    text = trained(browser, "Train")
    low, high = re.search(r"size is [\d.]+ \(([\d.]+) to ([\d.]+)\)", text).groups()
    assert 6 < float(low) < float(high) < 46
    assert "8 to 32 ✓ correct" in first.text
    second.find_element(By.CSS_SELECTOR, ".skip").send_keys(Keys.ENTER)
    trained(browser, "Double η")
    assert "to larger batches ✓ correct" in second.text


@pytest.mark.parametrize("calm", [False, True])
def test_a_prediction_a_training_another_seed_and_a_doubled_rate(visit, browser, calm):
    visit("best", calm=calm, width=390 if calm else 1280)
    assert "Make a prediction" in said(browser)
    first, second = browser.find_elements(By.CSS_SELECTOR, ".skip")
    assert not second.is_displayed()  # one question at a time
    first.send_keys(Keys.ENTER)
    text = trained(browser, "Train")
    second.send_keys(Keys.ENTER)
    assert text.startswith("η = 0.4: the best batch size is ")
    assert "over 8 seeds" in text
    size = number(r"best batch size is ([\d.]+)", text)
    g = number(r"\(1 − m\) = ([\d.]+)", text)
    assert g == pytest.approx(noise_scale(0.4, size, 200), rel=2e-2)
    assert trained(browser, "Train") == text  # the same seeds, the same nets
    if calm:
        return
    assert "over 9 seeds" in trained(browser, "Again with another seed")
    text = trained(browser, "Double η")
    assert text.startswith("η = 0.8: ")
    assert "With η doubled it is " in text
    assert len(browser.find_elements(By.CSS_SELECTOR, ".said")) == 2
    assert violations(browser) == []
    browser.find_element(By.CSS_SELECTOR, "input[name=lr]").send_keys(Keys.ARROW_RIGHT)
    assert said(browser) == "Press Train."
