"""The bench of the Hessian's spectrum and of Dinh's rescaling, in a real browser."""

import csv
import io
import json
import re

import numpy as np
import pytest
import torch
from as_in_book import in_the_book, with_modules
from browsing import emulate, resize, violations
from scipy.stats import norm
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from lecture6 import curvature, models
from lecture6.course.explorables import Spectrum, bundle

TIMEOUT = 120  # seconds
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>A page</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<link rel="stylesheet" href="explorables.css">
<style>[data-theme=dark], [data-theme=dark] .plot {{ color: white; background: #121212 !important }}
body {{ margin: 16px }}</style>
<main><h1>A page</h1>{}</main><script src="explorables.js" defer></script>"""
# Powers of ten as explorables write them, 5·10⁻⁶, as Python does: 5e-6.
RAISED = {ord("⁻"): "e-"} | {ord(raised): str(i) for i, raised in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
SMALL = {"epochs": 10, "width": 16}
PAGES = {
    "training": SMALL,
    "short": {"epochs": 3, "width": 8},
    "rescaled": SMALL | {"view": "rescaled", "alpha": 10.0},
}
COUNTED = """
window.drawn = 0;
const { clearRect } = CanvasRenderingContext2D.prototype;
CanvasRenderingContext2D.prototype.clearRect = function (...rectangle) {
  window.drawn += 1;
  return clearRect.apply(this, rectangle);
};
"""
CALL = """
const [name, code, given, done] = arguments;
import(`./bundles/${name}`).then((m) => done(Function("m", "given", code)(m, given)));
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds what the book would: pages, and the files that they load."""
    folder = with_modules(tmp_path_factory.mktemp("spectrum"))
    (folder / "bundles").mkdir()
    for name in ("spectrum.js", "rescaled.js"):
        (folder / "bundles" / name).write_text(bundle(name), "utf8")
    (folder / "empty.html").write_text(PAGE.format(""), "utf8")
    for name, start in PAGES.items():
        html = PAGE.format(in_the_book(Spectrum, **start))
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
    assert button(browser, 0).text == "Stop"
    until(browser, lambda: button(browser, 0).text == "Train")
    return said(browser)


def number(pattern, text):
    found = re.search(pattern, text)[1].rstrip(".").replace("−", "-").translate(RAISED)
    return float(re.sub(r"^10e", "1e", found.replace("·10e", "e")))


def table(browser):
    """The rows that the button saves."""
    script = "URL.createObjectURL = (blob) => { window.saved = blob.text(); return 'data:,'; }"
    browser.execute_script(script)
    browser.execute_script("document.querySelector('.data').click()")
    text = browser.execute_async_script("window.saved.then(arguments[0])")
    head, *rows = csv.reader(io.StringIO(text))
    assert {len(row) for row in rows} == {len(head)}
    return rows


def call(browser, name, code, **given):
    return browser.execute_async_script(CALL, name, code, given)


# ---- what is computed ------------------------------------------------------------------------


def test_outliers_end_at_the_widest_gap(visit, browser):
    visit("short")
    rng = np.random.default_rng(0)
    code = "return given.all.map(m.outliers);"
    rows = [np.sort(rng.lognormal(size=15))[::-1] for _ in range(20)]
    found = call(browser, "spectrum.js", code, all=[row.tolist() for row in rows])
    for row, each in zip(rows, found, strict=True):
        ratios = row[:-1] / row[1:]
        assert each["count"] == 1 + ratios.argmax()  # as chapter 2 has it
        assert [each["gap"], each["second"]] == pytest.approx(np.sort(ratios)[:-3:-1])
    negative, dead = call(browser, "spectrum.js", code, all=[[5, 4, 1, 0, -1], [0] * 15])
    assert (negative["count"], dead["count"]) == (2, 0)


def test_the_density_is_a_mixture_of_normal_laws(visit, browser):
    visit("short")
    rng = np.random.default_rng(0)
    nodes, weights = rng.standard_normal(30), rng.dirichlet(np.ones(30))
    code = "return given.grid.map((x) => m.density(given.nodes, given.weights, x, 0.1));"
    grid = np.linspace(-4, 4, 50)
    given = {"nodes": nodes.tolist(), "weights": weights.tolist(), "grid": grid.tolist()}
    mixture = norm.pdf(grid[:, None], nodes, 0.1) @ weights
    assert call(browser, "spectrum.js", code, **given) == pytest.approx(mixture, abs=1e-12)


def test_moments_are_whole_and_rise_to_the_last_epoch(visit, browser):
    visit("short")
    for epochs in (3, 5, 10, 20, 30, 50, 100):
        found = call(browser, "spectrum.js", "return m.moments(given.epochs);", epochs=epochs)
        assert (found[0], found[1], found[-1]) == (0, 1, epochs)
        assert found == sorted({round(epoch) for epoch in found})


def test_outputs_and_rescaling_are_those_of_the_package(visit, browser):
    visit("short")
    net = models.mlp(n_inputs=6, n_hidden=5, n_classes=3, bias=False, seed=0).double()
    x = torch.from_numpy(np.random.default_rng(0).random((7, 6)))
    code = """
    const { w, x, alpha } = given, widths = [6, 5, 3], moved = m.rescale(w, widths, alpha);
    return [[...m.logits(w, widths, x, 7)], moved, [...m.logits(moved, widths, x, 7)]];"""
    given = {"w": models.flat_parameters(net).tolist(), "x": x.flatten().tolist(), "alpha": 3}
    outputs, moved, same = call(browser, "rescaled.js", code, **given)
    assert outputs == pytest.approx(net(x).detach().flatten().numpy(), abs=1e-12)
    assert same == pytest.approx(outputs, abs=1e-12)
    package = models.flat_parameters(curvature.rescale(net, 3.0))
    assert moved == pytest.approx(package.numpy(), abs=1e-12)


# ---- the story -------------------------------------------------------------------------------


def test_outliers_are_about_as_many_as_classes(visit, browser):
    visit("training")
    assert not button(browser, 0).is_enabled()
    press(browser, one(browser, ".skip"))
    assert said(browser) == "Press Train."
    assert not button(browser, 1).is_enabled()  # another seed than what?
    sentence = trained(browser)
    rows = table(browser)
    last = {name: float(value) for epoch, name, value, _ in rows if epoch == "10"}
    leading = np.array([last[f"λ{i}"] for i in range(1, 16)])
    ratios = leading[:-1] / leading[1:]
    assert number(r"behind number (\d+),", sentence) == 1 + ratios.argmax()
    assert number(r"a factor of (\S+);", sentence) == pytest.approx(ratios.max(), rel=0.01)
    assert number(r"training loss is (\S+),", sentence) == pytest.approx(
        last["training loss"], rel=0.01
    )
    moments = call(browser, "spectrum.js", "return m.moments(10);")
    assert list(dict.fromkeys(epoch for epoch, *_ in rows)) == [f"{epoch}" for epoch in moments]
    for vector in (1, 2, 3):
        of = f"weight of vector {vector} at"
        assert sum(v for name, v in last.items() if name.startswith(of)) == pytest.approx(1)
    for seed in range(3):
        sentence = trained(browser, 1) if seed else sentence
        # They leave the bulk within a few epochs.
        at = {epoch: {} for epoch in ("0", "5")}
        for epoch, name, value, _ in table(browser):
            if epoch in at and re.fullmatch(r"λ\d+", name):
                at[epoch][name] = float(value)
        first, later = (np.divide(v[:-1], v[1:]) for v in (list(a.values()) for a in at.values()))
        assert len(first) == len(later) == 14
        assert first.max() < 1.5 < 2 < later.max()
        assert 8 <= 1 + later.argmax() <= 11
        assert number(r"eigenvalue is at most (\S+):", sentence) < -0.01
        assert "not positive definite" in sentence
    counts = re.search("With the seeds 0, 1, 2 it is (.*?)[.] ", sentence)[1].split(", ")
    assert len(counts) == 3
    assert all(8 <= int(count) <= 11 for count in counts)
    assert one(browser, ".said").text.startswith("The steep directions are about as many")
    assert "spectrum.seed=2" in browser.current_url


def test_the_line_goes_to_another_epoch(visit, browser):
    visit("short")
    press(browser, one(browser, ".skip"))
    assert trained(browser).startswith("After 3 epochs")
    line = one(browser, ".handle")
    line.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert said(browser).startswith("After 1 epoch ")
    line.send_keys(Keys.ARROW_RIGHT)
    assert said(browser).startswith("After 2 epochs")
    # Another net is asked for: nothing is shown of this one.
    one(browser, "input[name=lr]").send_keys(Keys.ARROW_RIGHT)
    assert said(browser) == "Press Train."
    assert not one(browser, ".handle").is_displayed()


def test_a_rescaled_net_is_the_same_function(visit, browser):
    visit("rescaled")
    handle = browser.find_elements(By.CSS_SELECTOR, "[role=slider]")[-1]
    handle.send_keys(Keys.PAGE_UP)
    press(browser, one(browser, ".commit"))
    for seed in range(3):
        sentence = trained(browser, min(seed, 1))
        factors = re.search("At α = 10: (.*?)[.] What", sentence)[1].split(", ")
        factors = {f.split(" × ")[0]: float(f.split(" × ")[1]) for f in factors}
        assert min(factors["λ₁"], factors["trace"]) > 10
        assert factors["φ at equal layer norms"] == factors["adaptive sharpness"] == 1
        assert number(r"× 1 is so to (\S+)[.] ", sentence) < 1e-3
        assert number(r"move by (\S+) at most", sentence) < 1e-4
        assert "None of the 360 test images changes class." in sentence
    assert re.fullmatch(
        r"Measured: × \S+ at α = 0.1 and × \S+ at α = 10, where your curve .*",
        one(browser, ".said").text,
    )
    # α by its slider, and by the end of the first bar
    one(browser, "input[name=alpha]").send_keys(*[Keys.ARROW_LEFT] * 10)
    until(browser, lambda: "compared with this net, at α = 1. Move α." in said(browser))
    one(browser, "input[name=alpha]").send_keys(Keys.HOME)
    until(browser, lambda: "At α = 0.1:" in said(browser))
    browser.find_elements(By.CSS_SELECTOR, ".handle")[0].send_keys(Keys.ARROW_RIGHT)
    until(browser, lambda: "At α = 0.13:" in said(browser))
    rows = {(alpha, name): float(factor) for alpha, name, *_, factor in table(browser) if factor}
    assert rows["0.1", "‖W₁‖"] == pytest.approx(0.1, rel=1e-5)
    assert rows["0.1", "‖W₂‖"] == pytest.approx(10, rel=1e-5)
    assert rows["0.13", "largest output"] == pytest.approx(1, rel=1e-5)


# ---- wherever it is read ---------------------------------------------------------------------


def test_it_stops_and_starts_again(visit, browser):
    visit("short")
    press(browser, one(browser, ".skip"))
    press(browser, button(browser, 0))
    press(browser, button(browser, 0))
    assert said(browser) == "Stopped."
    assert button(browser, 0).text == "Train"
    assert trained(browser).startswith("After 3 epochs")


def test_one_worker_is_started_however_soon_one_stops(visit, browser):
    """The second press of Train comes while the worker of the first is being opened."""
    visit("short")
    press(browser, one(browser, ".skip"))
    browser.execute_script(
        "window.started = 0; const Own = Worker;"
        "window.Worker = class extends Own {"
        "  constructor(...a) { super(...a); window.started += 1; } };"
        "for (let i = 0; i < 3; i++) document.querySelector('.controls .buttons button').click();"
    )
    until(browser, lambda: button(browser, 0).text == "Train" and "After 3 epochs" in said(browser))
    assert browser.execute_script("return window.started") == 1


def test_with_little_motion_only_the_end_is_drawn(visit, browser):
    visit("short", calm=True)
    press(browser, one(browser, ".skip"))
    until(browser, lambda: button(browser, 0).is_enabled())
    browser.execute_script(COUNTED)
    trained(browser)
    assert browser.execute_script("return window.drawn") <= 4  # at the start, and at the end


def test_from_a_file_where_workers_are_refused(visit, browser, folder):
    source = "window.Worker = class { constructor() { throw new Error('refused'); } };"
    command = "Page.addScriptToEvaluateOnNewDocument"
    added = browser.execute_cdp_cmd(command, {"source": source})
    try:
        visit("short", base=folder.as_uri())
        press(browser, one(browser, ".skip"))
        assert trained(browser).startswith("After 3 epochs")
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
@pytest.mark.parametrize("name", ["short", "rescaled"])
def test_it_is_accessible_and_fits(visit, browser, name, width, theme):
    visit(name, width=width, theme=theme)
    press(browser, one(browser, ".skip"))
    trained(browser)
    assert violations(browser) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
