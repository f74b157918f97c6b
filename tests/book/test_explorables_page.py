"""The explorables in a real browser, on a page that embeds them as the book does."""

import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from as_in_book import in_the_book, with_modules
from browsing import resize, violations
from scipy.optimize import brentq
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from lecture6 import toys
from lecture6.course import explorables
from lecture6.course.explorables import Box, Steps, Walkers
from lecture6.equilibrium import laplace, ou_covariance
from lecture6.schedules import warmup

TIMEOUT = 30  # seconds
SIZES = ("small", "large")
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<link rel="stylesheet" href="explorables.css">
<title>Explorables</title>
<style>[data-theme=dark] {{ color: white; background: black }} body {{ margin: 16px }}</style>
<main><h1>Explorables</h1>{}</main><div style="height: 3000px"></div>
<script src="explorables.js" defer></script>"""
START = """
const [module, start, done] = arguments;
class Model {
  listeners = [];
  get(name) { return start[name]; }
  set(name, value) {
    start[name] = value;
    for (const [event, listener] of this.listeners) if (event === `change:${name}`) listener();
  }
  on(...listener) { this.listeners.push(listener); }
  off(...gone) { this.listeners = this.listeners.filter((l) => `${l}` !== `${gone}`); }
  save_changes() {}
}
"""
FRAMES = """
const [seconds, done] = arguments, canvas = document.querySelector("canvas");
const { clearRect } = CanvasRenderingContext2D.prototype;
let frames = 0;
CanvasRenderingContext2D.prototype.clearRect = function (...rectangle) {
  frames += this.canvas === canvas;
  return clearRect.apply(this, rectangle);
};
setTimeout(() => {
  CanvasRenderingContext2D.prototype.clearRect = clearRect;
  done(frames / seconds);
}, 1000 * seconds);
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds what the book would: pages, and the files that they load."""
    folder = with_modules(tmp_path_factory.mktemp("explorables"))
    (folder / "modules").symlink_to(explorables.HERE)  # as they are, to import one by itself
    figures = {"walkers": in_the_book(Walkers), "box": in_the_book(Box)}
    figures["column"] = in_the_book(Box, subspace="column", epsilon=0.3, x=0.5, y=-0.3)
    figures |= {"steps": in_the_book(Steps), "compact": in_the_book(Walkers, compact=True)}
    for name, html in [*figures.items(), ("all", "".join(figures.values()))]:
        (folder / f"{name}.html").write_text(PAGE.format(html), "utf8")
    return folder


@pytest.fixture
def visit(browser, address):
    """Opens a page by its name; afterwards nothing may have gone wrong in the browser."""
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)  # what is left of the pages before

    def visit(name, *, width=1280, calm=False, base=address):
        resize(browser, width)
        motion = {"name": "prefers-reduced-motion", "value": "reduce" if calm else ""}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [motion]})
        browser.get(f"{base}/{name}.html")
        explorables = browser.find_elements(By.CSS_SELECTOR, "figure.explorable")
        WebDriverWait(browser, TIMEOUT).until(
            lambda _: all(state(browser, i) for i in range(len(explorables)))
        )

    yield visit
    assert [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    messages = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    urls = [message["request"]["url"] for message in sent]
    own = (address, "file://", "data:", f"blob:{address}", "blob:null")
    assert [url for url in urls if not url.startswith(own)] == []


def state(browser, i=0):
    texts = browser.find_elements(By.CSS_SELECTOR, "figure.explorable .state")
    return texts[i].text if i < len(texts) else ""


def module(browser, address, name, code, *arguments):
    """What ``code`` makes of the module's exports ``m`` and the ``arguments``."""
    script = (
        "const done = arguments[arguments.length - 1];"
        f"import('{address}/modules/{name}.js').then((m) => {{ {code} }})"
        ".then(done, (error) => done(String(error)))"
    )
    return browser.execute_async_script(script, *arguments)


# ---- the walkers' numbers --------------------------------------------------------------------

WELLS = [(0.1, 4.0, 0.2), (-0.3, 1.0, 0.5), (0.3, 9.0, 0.01), (0.0, 2.5, 1.6)]


def two_wells(depth, curvature):
    return toys.TwoWells(
        [np.eye(2), curvature * np.eye(2)], [[-1.0, 0.0], [1.0, 0.0]], (0.0, -depth)
    )


def gibbs(depth, curvature, temperature):
    """By quadrature: shares of the bins of w₁, whose edges are edges of cells, and of a well."""
    well = two_wells(depth, curvature)
    edge, n_cells = (10.5, 210) if temperature > 0.1 else (3.5, 140)
    nodes, weights = np.polynomial.legendre.leggauss(8)
    half, weights = edge / n_cells, np.tile(weights, n_cells)
    line = (np.linspace(-edge + half, edge - half, n_cells)[:, None] + half * nodes).ravel()
    points = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    mass = np.outer(weights, weights).ravel() * np.exp(-well.losses(points) / temperature)
    mass /= mass.sum()
    masses, _ = np.histogram(points[:, 0], np.linspace(-3.5, 3.5, 71), weights=mass)
    return masses, mass[well._weights(points)[0] < 0.5].sum()


@pytest.mark.parametrize(("depth", "curvature", "temperature"), WELLS)
def test_the_law_drawn_is_the_gibbs_law(visit, browser, address, depth, curvature, temperature):
    visit("steps")
    code = """
    const well = m.wells(arguments[0], arguments[1]), t = arguments[2], law = m.gibbs(well, t);
    return [Array.from(law.masses), law.right, m.laplace(well, t)];
    """
    code = code.replace("arguments", "a")
    drawn, right, approximate = module(
        browser, address, "double_well", f"const a = [{depth}, {curvature}, {temperature}]; {code}"
    )
    masses, share = gibbs(depth, curvature, temperature)
    np.testing.assert_allclose(drawn, masses, atol=2e-4)
    assert right == pytest.approx(share, abs=1e-3)
    hessians = [np.eye(2), curvature * np.eye(2)]
    expected = laplace([0.0, -depth], hessians, temperature)[1]
    assert approximate == pytest.approx(expected, abs=1e-12)


def test_a_step_without_noise_goes_down_the_gradient(visit, browser, address):
    visit("steps")
    points = np.random.default_rng(0).uniform(-2.5, 2.5, (50, 2))
    code = f"""
    const points = {points.tolist()}, well = m.wells(0.1, 4);
    const walkers = {{ x: points.map(([x]) => x), y: points.map(([, y]) => y) }};
    const losses = points.map(([x, y]) => m.loss(well, x, y));
    m.step(walkers, well, {{ lr: 0.1, batchSize: 1, anisotropy: 0 }}, () => 0);
    return [losses, walkers.x, walkers.y];
    """
    losses, x, y = module(browser, address, "double_well", code)
    toy = two_wells(0.1, 4.0)
    np.testing.assert_allclose(losses, toy.losses(points), atol=1e-12)
    np.testing.assert_allclose(
        np.transpose([x, y]), points - 0.1 * toy.gradients(points), atol=1e-12
    )


def test_the_noise_has_the_covariance_of_the_batch(visit, browser, address):
    visit("steps")
    code = """
    const walkers = m.start(200000), normal = m.normals(3);
    m.step(walkers, m.wells(0, 1), { lr: 0.05, batchSize: 16, anisotropy: 0.6 }, normal);
    const second = (values, mean) => values.reduce((s, v) => s + (v - mean) ** 2, 0) / 200000;
    const fourth = (values, mean) => values.reduce((s, v) => s + (v - mean) ** 4, 0) / 200000;
    const repeat = [m.normals(7), m.normals(7), m.normals(8)].map((n) => n());
    return [second(walkers.x, 1), second(walkers.y, 0), fourth(walkers.x, 1), repeat];
    """
    along, across, fourth, (first, same, other) = module(browser, address, "double_well", code)
    variance = 0.05**2 * 16**2 / 16
    error = 5 * math.sqrt(2 / 200_000)
    assert along == pytest.approx(1.6 * variance, rel=error)
    assert across == pytest.approx(0.4 * variance, rel=error)
    assert fourth == pytest.approx(3 * along**2, rel=5 * math.sqrt(96 / 200_000))
    assert first == same != other


@pytest.mark.parametrize(("anisotropy", "holds"), [(0.0, True), (0.8, False), (-0.8, False)])
def test_the_histogram_settles_on_the_gibbs_law(visit, browser, address, anisotropy, holds):
    depth, curvature, lr, batch = 0.05, 2.0, 0.0125, 8
    visit("steps")
    code = f"""
    const well = m.wells({depth}, {curvature}), walkers = m.start(2000), normal = m.normals(0);
    const noise = {{ lr: {lr}, batchSize: {batch}, anisotropy: {anisotropy} }};
    const mean = new Float64Array(m.BINS), samples = 50;
    for (let i = 0; i < 6000; i++) m.step(walkers, well, noise, normal);
    for (let j = 0; j < samples; j++) {{
      for (let i = 0; i < 80; i++) m.step(walkers, well, noise, normal);
      m.histogram(walkers, well).masses.forEach((mass, bin) => (mean[bin] += mass / samples));
    }}
    const law = m.gibbs(well, m.temperature({lr}, {batch})).masses;
    return [Array.from(mean), m.distance(mean, law)];
    """
    histogram, distance = module(browser, address, "double_well", code)
    masses, _ = gibbs(depth, curvature, lr * 16**2 / (2 * batch))
    apart = np.abs(np.array(histogram) - masses).sum() + abs(sum(histogram) - masses.sum())
    assert distance == pytest.approx(apart / 2, abs=2e-3)
    assert (distance < 0.025) if holds else (distance > 0.1)


def test_the_widget_says_that_it_has_settled(visit, browser):
    visit("walkers", calm=True)
    more = browser.find_element(By.XPATH, "//button[text()='100 steps']")
    browser.execute_script("for (let i = 0; i < 100; i++) arguments[0].click()", more)
    assert "T = 0.256." in state(browser)
    _, share = gibbs(0.1, 4.0, 0.016 * 16**2 / (2 * 8))
    assert f"{100 * share:.0f} % by the Gibbs law" in state(browser)
    assert "After 10,500 steps" in state(browser)
    away = float(state(browser).split("histogram is ")[1].split(" %")[0])
    assert away < 4


# ---- the box's and the steps' ----------------------------------------------------------------


@pytest.mark.parametrize("name", toys.FIGURE_6)
def test_sharpness_is_that_of_definition_2(visit, browser, address, name):
    toy = toys.FIGURE_6[name]
    rng = np.random.default_rng(0)
    cases = []
    for epsilon in (1e-4, 5e-4, 1e-3, 0.3, 3.0):
        for x in (np.zeros(toy.n_params), rng.uniform(-1, 1, toy.n_params)):
            cases += [(x, epsilon, None), (x, epsilon, rng.standard_normal(toy.n_params))]
    given = [(x.tolist(), e, None if a is None else a.tolist()) for x, e, a in cases]
    code = f"return {json.dumps(given)}.map((c) => m.sharpness(m.FUNCTIONS['{name}'], ...c));"
    visit("steps")
    for (x, epsilon, a), found in zip(cases, module(browser, address, "box", code), strict=True):
        a = None if a is None else a[:, None]
        phi, loss = toy.sharpness(x, epsilon, a), toy.value(x)
        assert found["phi"] == pytest.approx(phi, rel=1e-9)
        for corner in found["highest"]:
            assert toy.value(corner) == pytest.approx(loss + phi / 100 * (1 + loss), rel=1e-9)


def test_the_ranking_flips_where_the_functions_are_equally_sharp(visit, browser, address):
    visit("steps")
    code = """const [a, b, c, d] = Object.values(m.FUNCTIONS);
    return [[a, b, [0]], [a, b, [0.5]], [c, d, [0, 0]], [c, d, [0.2, 0.4]]].map((given) =>
      m.crossings(...given, null));"""
    found = module(browser, address, "box", code)
    assert found[0] == found[2] == [pytest.approx(100 ** (1 / 6), rel=1e-9)]  # ε⁶ = 100
    cases = [([0.5], *list(toys.FIGURE_6.values())[:2])]
    cases += [([0.2, 0.4], *list(toys.FIGURE_6.values())[2:])]
    for (x, f, g), flips in zip(cases, found[1::2], strict=True):
        for epsilon in flips:
            assert f.sharpness(x, epsilon) == pytest.approx(g.sharpness(x, epsilon), rel=1e-6)
        steps = np.geomspace(1e-4, 3.16, 400)
        above = [f.sharpness(x, e) > g.sharpness(x, e) for e in steps]
        assert len(flips) == np.diff(np.array(above, int)).astype(bool).sum()


def test_the_box_says_where_the_ranking_flips(visit, browser):
    visit("box")
    assert "For 100(x² + y²) φ = 0.02 %; the two change places at ε = 2.15." in state(browser)


def test_a_column_has_its_angle_and_its_length(visit, browser, address):
    visit("steps")
    code = "return Object.values(m.FUNCTIONS).map((f) => m.columnOf(f, 30, 2));"
    one, other, *two = module(browser, address, "box", code)
    assert one == other == [2]
    for column in two:
        np.testing.assert_allclose(column, [math.sqrt(3), 1], rtol=1e-12)


@pytest.mark.parametrize(
    ("h", "lr", "k"), [(1.0, 0.05, 8), (0.3, 0.1, 64), (10, 0.2, 3), (2, 1, 1)]
)
def test_the_paths_are_those_of_equations_4_and_5(visit, browser, address, h, lr, k):
    visit("steps")
    code = f"""
    const small = m.path({h}, Array({k}).fill({lr})), large = m.path({h}, [{k} * {lr}]);
    return [small, large, m.secondOrder({h}, {lr}, {k})];
    """
    small, large, predicted = module(browser, address, "steps", code)
    toy, w = toys.Quadratic([h]), torch.ones(1, dtype=torch.float64)
    for step in small:
        assert step == pytest.approx(w.item(), rel=1e-12, abs=1e-12)
        w = w - lr * toy.grad(w)
    exact = (1 - lr * h) ** k - (1 - k * lr * h)
    assert small[-1] - large[-1] == pytest.approx(exact, rel=1e-12, abs=1e-12)
    assert predicted == pytest.approx(lr**2 * k * (k - 1) / 2 * h**2, rel=1e-12)
    third = k * (k - 1) * (k - 2) / 6 * (lr * h) ** 3
    if lr * h * k < 0.5:
        assert abs(exact - predicted) <= third


@pytest.mark.parametrize("steps", [0, 8, 50, 1000])
def test_the_warm_up_is_that_of_the_trainer(visit, browser, address, steps):
    visit("steps")
    times = [*range(0, 1001, 8)]
    code = f"return {times}.map((t) => m.largeRate(t, 0.05, 8, {steps}));"
    factor = warmup(steps, 1 / 8)
    found = module(browser, address, "steps", code)
    np.testing.assert_allclose(found, [8 * 0.05 * factor(t) for t in times], rtol=1e-12)


@pytest.mark.parametrize(("lr", "h", "k"), [(0.05, 1.0, 8), (0.3, 4.0, 1), (0.01, 0.5, 64)])
def test_the_spread_settles_at_that_of_sgd(visit, browser, address, lr, h, k):
    visit("steps")
    code = f"return m.squares(Array(20000).fill([{k * lr}, {h}]), {0.01 / k}).at(-1);"
    covariance = ou_covariance(h, 0.01, k * lr, k)
    found = module(browser, address, "steps", code)
    assert found == pytest.approx(covariance.item(), rel=1e-9)


def test_the_spread_is_that_of_walkers(visit, browser, address):
    visit("steps")
    rng = np.random.default_rng(0)
    rates, h = rng.uniform(0.01, 0.3, 40), rng.uniform(0.1, 8, 40)
    pairs = np.stack([rates, h], 1).tolist()
    found = module(browser, address, "steps", f"return m.squares({pairs}, 0.01);")
    w = np.ones(400_000)
    for i, (rate, curvature) in enumerate(pairs):
        assert (w**2).mean() == pytest.approx(found[i], rel=0.02)
        w -= rate * (curvature * w + 0.1 * rng.standard_normal(w.size))


@pytest.mark.parametrize("k", [2, 3, 8, 64])
def test_the_rule_holds_up_to_the_border_of_the_map(visit, browser, address, k):
    visit("steps")
    x = module(browser, address, "steps", f"return m.reach({k}, 0.1);")
    border = brentq(lambda x: (1 - x) ** k - (1 - k * x) - 0.1, 0, 1)
    assert x == pytest.approx(border, rel=1e-9)


# ---- running and resting ---------------------------------------------------------------------


def frames_per_second(browser, seconds=1.0):
    return browser.execute_async_script(FRAMES, seconds)


def test_two_thousand_walkers_move_fast_enough(visit, browser, record_property):
    visit("walkers")
    assert Walkers().n_walkers == 2000
    rate = frames_per_second(browser, 3.0)
    record_property("frames_per_second", rate)
    print(f"{rate:.0f} frames/s with 2,000 walkers")
    assert rate >= 20  # on a laptop at least 30; a CI machine is slow and has no GPU


def test_walkers_rest_out_of_view_and_in_a_hidden_tab(visit, browser):
    visit("walkers")
    assert frames_per_second(browser) > 5
    browser.execute_script("scrollTo(0, document.body.scrollHeight)")
    assert frames_per_second(browser, 0.3) <= 4  # while the browser finds out
    assert frames_per_second(browser) == 0
    browser.execute_script("scrollTo(0, 0)")
    assert frames_per_second(browser) > 5
    hide = (
        "Object.defineProperty(document, 'hidden', {value: arguments[0], configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    browser.execute_script(hide, True)
    assert frames_per_second(browser) == 0
    browser.execute_script(hide, False)
    assert frames_per_second(browser) > 5


def test_the_text_is_read_out_only_at_rest(visit, browser):
    visit("walkers")
    text = browser.find_element(By.CSS_SELECTOR, ".state")
    assert text.get_attribute("aria-live") == "off"
    button = browser.find_element(By.XPATH, "//button[text()='Pause']")
    button.click()
    assert button.text == "Play"
    assert text.get_attribute("aria-live") == "polite"
    assert frames_per_second(browser) == 0


def test_reduced_motion_starts_at_rest_with_something_to_see(visit, browser):
    visit("walkers", calm=True)
    assert "After 500 steps" in state(browser)
    browser.execute_async_script("setTimeout(arguments[0], 300)")
    assert frames_per_second(browser) == 0
    browser.find_element(By.XPATH, "//button[text()='100 steps']").click()
    assert "After 600 steps" in state(browser)
    play = browser.find_element(By.XPATH, "//button[text()='Play']")
    play.click()
    assert frames_per_second(browser) > 5
    assert play.text == "Pause"
    play.click()
    browser.find_element(By.XPATH, "//button[text()='Start again']").click()
    assert "After 0 steps" in state(browser)


def test_the_first_histogram_is_not_in_the_mean_of_the_next(visit, browser, address):
    visit("walkers", calm=True)
    code = """
    const well = m.wells(0.1, 4), walkers = m.start(2000), normal = m.normals(0);
    const noise = { lr: 0.016, batchSize: 8, anisotropy: 0 };
    for (let i = 0; i < 500; i++) m.step(walkers, well, noise, normal);
    return m.histogram(walkers, well).right;
    """
    right = module(browser, address, "double_well", code)
    assert f"In the right well: {100 * right:.0f} % of the walkers" in state(browser)


def test_the_first_bar_is_seen_whole_from_the_bottom_to_the_top(visit, browser):
    visit("walkers", calm=True)
    browser.find_element(By.XPATH, "//button[text()='Start again']").click()  # all in one bin
    rows = """
    const canvas = document.querySelector("figure.explorable canvas");
    const { width, height } = canvas, pen = canvas.getContext("2d"), found = new Set();
    const { data } = pen.getImageData(0, 0, width, height);
    for (let i = 0; i < width * height; i++)
      if (data[4 * i] === 213 && data[4 * i + 1] === 94 && data[4 * i + 2] === 0)
        found.add(Math.floor(i / width));
    return [...found].filter((row) => row > height - 223 - 130 - 1 && row < height - 223);
    """
    assert len(browser.execute_script(rows)) > 120  # of 130; the law's curve hides some


@pytest.mark.parametrize("kind", [Walkers, Box, Steps])
def test_the_end_of_a_view_is_the_end_of_its_work(visit, browser, address, kind, monkeypatch):
    visit("steps")
    monkeypatch.setenv("LECTURE6_STATIC", "1")
    widget = kind()
    start = widget.trait_values(start=True)
    code = f"""
    import("{address}/modules/" + module + ".js").then(async (m) => {{
      const model = new Model(), el = document.createElement("div");
      document.body.prepend(el);
      const end = m.default.render({{ model, el }}), listeners = model.listeners.length;
      await new Promise((resolve) => setTimeout(resolve, 300));
      const before = el.querySelector("canvas").toDataURL();
      end();
      await new Promise((resolve) => setTimeout(resolve, 300));
      const at = el.querySelector("canvas").toDataURL();
      document.documentElement.dataset.theme = "dark";
      model.set("lr", 0.03);
      await new Promise((resolve) => setTimeout(resolve, 300));
      done([listeners, model.listeners.length, el.querySelector("canvas").toDataURL() === at]);
    }});
    """
    listeners, left, rests = browser.execute_async_script(START + code, widget.module, start)
    assert listeners > 3
    assert left == 0
    assert rests


# ---- the data --------------------------------------------------------------------------------


@pytest.fixture
def saved(browser, tmp_path):
    """A function that saves the data of the explorable on the page: the headings, the rows."""
    options = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", options)

    def save(title):
        browser.find_element(By.CSS_SELECTOR, "figure.explorable .data").click()
        file = tmp_path / f"{title.replace(' ', '-')}.csv"
        WebDriverWait(browser, TIMEOUT).until(lambda _: file.exists(), f"no {file.name}")
        head, *rows = csv.reader(io.StringIO(file.read_text("utf8")))
        assert {len(row) for row in rows} == {len(head)}
        return head, rows

    return save


def test_the_histogram_and_the_law_are_saved(visit, browser, saved):
    visit("walkers", calm=True)
    head, rows = saved("SGD in a double well")
    assert head == ["chart", "w₁, or time", "walkers (%)", "Gibbs law (%)", "Kramers (%)"]
    bins = [row[1:4] for row in rows if row[0].startswith("bin")]
    middles, walkers, law = np.array(bins, dtype=float).T
    masses, _ = gibbs(0.1, 4.0, 0.016 * 16**2 / (2 * 8))
    np.testing.assert_allclose(middles, np.arange(-3.45, 3.5, 0.1), atol=1e-9)
    np.testing.assert_allclose(law, 100 * masses, atol=0.2)
    apart = np.abs(walkers - law).sum() / 2
    said = float(state(browser).split("histogram is ")[1].split(" %")[0])
    assert apart == pytest.approx(said, abs=0.5)


@pytest.mark.parametrize("name", ["box", "column"])
def test_the_points_of_the_box_are_saved(visit, browser, saved, name):
    visit(name, calm=True)
    head, rows = saved("The box of the sharpness φ")
    assert head == ["point", "x", "f"] if len(head) == 3 else ["point", "x", "y", "f"]
    points = {}
    for kind, *numbers in rows:
        points.setdefault(kind, []).append([float(number) for number in numbers])
    [[*_, base]] = points["x"]
    top = max(f for *_, f in points["end or corner of the box"])
    assert {f for *_, f in points["highest"]} == {top}
    phi = float(state(browser).split("φ = ")[1].split(" %")[0])
    assert 100 * (top - base) / (1 + base) == pytest.approx(phi, rel=5e-3)


def test_the_steps_are_saved(visit, browser, saved):
    visit("steps")
    head, rows = saved("k small steps against one large step")
    assert head[2:] == ["rate of the large step", *(f"rms of w by {s} steps" for s in SIZES)]
    (k, lr), noise = (Steps().trait_values(start=True)[name] for name in ("k", "lr")), 0.1**2
    small = large = 1.0
    for t, (i, h, rate, *found) in enumerate(rows):
        assert (int(i), float(h)) == (t, 1)
        assert float(found[0]) == pytest.approx(math.sqrt(small), rel=1e-9)
        assert bool(rate) == bool(found[1]) == (t % k == 0)
        if rate:
            assert float(rate) == pytest.approx(k * lr)
            assert float(found[1]) == pytest.approx(math.sqrt(large), rel=1e-9)
            large = (1 - k * lr) ** 2 * large + (k * lr) ** 2 * noise / k
        small = (1 - lr) ** 2 * small + lr**2 * noise


def test_the_curvature_and_the_map_are_dragged(visit, browser):
    visit("steps", calm=True)
    *curvature, reader = browser.find_elements(By.CSS_SELECTOR, ".handle")
    assert len(curvature) == 6
    for _ in range(6):
        curvature[1].send_keys(Keys.ARROW_UP)
    high = float(state(browser).split("h = ")[1].split(":")[0])
    assert high > 3
    assert "steps.curvature=0,1,100," in browser.current_url
    values = [browser.find_element(By.NAME, name) for name in ("lr", "k")]
    before = [float(v.get_attribute("value")) for v in values]
    reader.send_keys(Keys.ARROW_UP, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    after = [float(v.get_attribute("value")) for v in values]
    assert after[0] > before[0]
    assert after[1] > before[1]
    drag = ActionChains(browser).drag_and_drop_by_offset(reader, -60, 40)
    drag.perform()
    assert float(values[0].get_attribute("value")) < after[0]
    assert float(values[1].get_attribute("value")) < after[1]
    address = browser.current_url
    browser.refresh()
    WebDriverWait(browser, TIMEOUT).until(lambda _: state(browser), "it is not alive")
    assert browser.current_url == address
    assert state(browser).startswith(f"At the highest curvature, h = {high:g}")


def test_a_warm_up_helps_where_the_curvature_is_high_early(visit, browser):
    visit("steps", calm=True)

    def reached():
        words = state(browser).split("small steps and ")[1].split(" with")[0]
        return float(words.replace(",", ""))

    assert reached() == 1
    browser.find_element(By.XPATH, "//button[text()='High early']").click()
    assert "kηh = 2.88: the large step grows" in state(browser)
    assert reached() > 1000
    for _ in range(8):  # of 50 small steps
        browser.find_element(By.NAME, "warmup").send_keys(Keys.ARROW_RIGHT)
    assert reached() == 1
    assert "without the warm-up it would be" in state(browser)


# ---- controls --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["walkers", "compact", "box", "column", "steps"])
def test_every_control_has_a_name_and_is_moved_by_keys(visit, browser, name):
    visit(name, calm=True)
    traits = {"walkers": Walkers, "compact": Walkers, "steps": Steps}.get(name, Box)().traits()
    moved = set()
    for slider in browser.find_elements(By.CSS_SELECTOR, "input[type=range]"):
        if not slider.is_displayed():
            continue
        trait = traits[slider.get_attribute("name")]
        moved.add(trait.name)
        assert slider.accessible_name.strip()
        output = slider.find_element(By.XPATH, "../following-sibling::output")
        before = state(browser), output.text
        up = slider.get_attribute("value") != slider.get_attribute("max")
        slider.send_keys(Keys.ARROW_RIGHT if up else Keys.ARROW_LEFT)
        assert output.text != before[1]
        assert output.text == slider.get_attribute("aria-valuetext")
        assert state(browser) != before[0], f"{trait.name} moves nothing"
        for key, end in ((Keys.END, trait.max), (Keys.HOME, trait.min)):
            slider.send_keys(key)
            shown = float(output.text.replace("−", "-").replace(",", ""))
            assert shown == pytest.approx(end)
        slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert (
        moved
        == {
            "walkers": {"lr", "batch_size", "anisotropy", "depth", "curvature"},
            "compact": {"lr", "batch_size"},
            "box": {"epsilon", "x", "y"},
            "column": {"epsilon", "x", "y", "angle", "length"},
            "steps": {"lr", "k", "warmup"},
        }[name]
    )
    for button in browser.find_elements(By.CSS_SELECTOR, "button"):
        assert button.accessible_name or not button.is_displayed()
    canvas = browser.find_element(By.CSS_SELECTOR, "canvas")
    assert canvas.aria_role in ("img", "image")
    assert len(canvas.accessible_name) > 50


def choose(browser, text):
    browser.find_element(By.XPATH, f"//label[span='{text}']").click()


def test_the_function_and_the_matrix_are_chosen(visit, browser):
    visit("box")
    table_1 = {"100x²": "0.01", "x⁸": "10⁻²²", "100(x² + y²)": "0.02", "100x² + y⁸": "0.01"}
    for name, phi in table_1.items():  # at ε = 10⁻³, identity
        choose(browser, name)
        assert state(browser).startswith(f"φ = {phi} %.")
        shown = [row.is_displayed() for row in browser.find_elements(By.NAME, "y")]
        assert shown == ["y" in name]
    choose(browser, "one column a")
    assert "With A = (0.866, 0.5)" in state(browser)
    random = browser.find_element(By.XPATH, "//button[text()='Random a']")
    seen = set()
    for _ in range(5):
        random.click()
        seen.add(state(browser))
    assert len(seen) == 5
    choose(browser, "x⁸")
    random.click()
    assert not browser.find_element(By.NAME, "angle").is_displayed()
    browser.execute_script("Math.random = () => 0")  # a = 0: shorter than the slider can show
    random.click()
    length = browser.find_element(By.NAME, "length")
    assert length.get_attribute("aria-valuetext") == "0.1"


def test_the_position_and_the_column_are_dragged(visit, browser):
    visit("column", calm=True)
    place, end = browser.find_elements(By.CSS_SELECTOR, ".handle")
    values = {name: browser.find_element(By.NAME, name) for name in ("x", "y", "angle")}

    def shown():
        return [float(v.get_attribute("aria-valuetext").replace("−", "-")) for v in values.values()]

    def drag(handle, dx, dy):
        chain = ActionChains(browser, duration=50).click_and_hold(handle)
        chain.move_by_offset(dx, dy).release().perform()
        browser.execute_async_script("setTimeout(arguments[0], 100)")  # the handles move along

    assert shown() == [0.5, -0.3, 30]
    drag(end, 0, -40)
    x, y, angle = shown()
    assert (x, y) == (0.5, -0.3)
    assert angle > 35
    drag(place, -60, -30)
    x, y, _ = shown()
    assert x < 0.4
    assert y > -0.25
    for _ in range(2):  # after the first the view is wider
        drag(place, *(10 - round(place.rect[side]) for side in ("x", "y")))
    assert shown()[:2] == [-1, 1]


def test_what_is_dragged_is_moved_by_the_arrow_keys_too(visit, browser):
    visit("column", calm=True)
    place, end = browser.find_elements(By.CSS_SELECTOR, ".handle")
    assert place.accessible_name == "position x: drag, or arrow keys"
    values = [browser.find_element(By.NAME, name) for name in ("x", "y", "angle")]

    def shown():
        return [float(v.get_attribute("aria-valuetext").replace("−", "-")) for v in values]

    place.send_keys(Keys.ARROW_LEFT, Keys.ARROW_UP)
    x, y, angle = shown()
    assert x < 0.5
    assert y > -0.3
    assert angle == 30
    place.send_keys(Keys.SHIFT, Keys.ARROW_LEFT)
    assert 0 < x - shown()[0] < 0.5 - x
    end.send_keys(Keys.ARROW_UP, Keys.ARROW_UP)
    assert shown()[2] > 30


# ---- the address -----------------------------------------------------------------------------


def test_what_differs_from_the_start_is_kept_in_the_address(visit, browser):
    visit("all", calm=True)
    base = browser.current_url
    box, column = (f for f in browser.find_elements(By.XPATH, "//form[.//*[@name='function']]"))
    box.find_element(By.XPATH, ".//label[span='x⁸']").click()
    column.find_element(By.NAME, "epsilon").send_keys(Keys.HOME)
    slider = browser.find_element(By.NAME, "warmup")
    slider.send_keys(Keys.ARROW_RIGHT)
    address = browser.current_url
    assert address.startswith(f"{base}#box.function=x")
    assert address.endswith("&box-2.epsilon=0.0001&steps.warmup=50")
    browser.refresh()
    WebDriverWait(browser, TIMEOUT).until(lambda _: state(browser, 4), "it is not alive")
    assert "At x = 0 f is" in state(browser, 1)
    assert browser.execute_script("return scrollY") > 100  # at the first that was changed
    assert browser.find_element(By.NAME, "warmup").get_attribute("value") == "1"
    browser.find_element(By.NAME, "warmup").send_keys(Keys.ARROW_LEFT)
    assert browser.current_url == address.removesuffix("&steps.warmup=50")


@pytest.mark.parametrize(
    "part",
    [
        "box.epsilon=5",
        "box.epsilon=NaN",
        "box.epsilon=",
        "box.function=x",
        "box.module=1",
        "a.b",
        "steps.k=8.5",
        "steps.curvature=0,1,100,2",
        "steps.curvature=0,1,100,1,200,1,400,1,700,1,1000,99",
    ],
)
def test_an_address_may_not_set_what_no_control_can_show(visit, browser, address, part):
    page = part.split(".")[0].replace("a", "box")
    visit(page)
    expected = state(browser)
    browser.get("about:blank")
    browser.get(f"{address}/{page}.html#{part}")
    WebDriverWait(browser, TIMEOUT).until(lambda _: state(browser), "it is not alive")
    assert state(browser) == expected


def touch(browser, x, y, dx, dy):
    for kind, points in (
        ("touchStart", [(x, y)]),
        *(("touchMove", [(x + dx * i / 8, y + dy * i / 8)]) for i in range(1, 9)),
        ("touchEnd", []),
    ):
        points = [{"x": u, "y": v} for u, v in points]
        event = {"type": kind, "touchPoints": points}
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", event)


def test_a_finger_moves_a_slider_and_the_position(visit, browser):
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        visit("column", width=390, calm=True)
        for selector, dx, dy in (("input[name=epsilon]", -60, 0), (".handle", -30, -40)):
            part = browser.find_element(By.CSS_SELECTOR, selector)
            browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", part)
            box = browser.execute_script(
                "const b = arguments[0].getBoundingClientRect();"
                "return [b.x, b.y, b.width, b.height]", part
            )  # fmt: skip
            share = 0.5
            if part.tag_name == "input":
                share = int(part.get_attribute("value")) / int(part.get_attribute("max"))
            before, scrolled = state(browser), browser.execute_script("return scrollY")
            touch(browser, box[0] + box[2] * share, box[1] + box[3] / 2, dx, dy)
            WebDriverWait(browser, TIMEOUT).until(
                lambda _, before=before: state(browser) != before, f"{selector} does not move"
            )
            assert browser.execute_script("return scrollY") == scrolled
    finally:
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


# ---- the page --------------------------------------------------------------------------------


def test_numbers_are_written_for_a_reader(visit, browser, address):
    visit("steps")
    code = "return values.map(([value, digits]) => m.number(value, digits));"
    values = [0, 1e-4, 0.012346, -1234.5, 12345, 999_999, 1.2e6, 1e-22, -5e-6, 60_000]
    given = [[value, 6 if value == 60_000 else 3] for value in values]
    found = module(browser, address, "shared", f"const values = {given}; {code}")
    expected = "0 0.0001 0.0123 −1,230 12,300 10⁶ 1.2·10⁶ 10⁻²² −5·10⁻⁶ 60,000"
    assert found == expected.split()


@pytest.mark.parametrize("name", ["compact", "steps"])
def test_on_a_phone_a_chart_stays_in_view_beside_its_last_control(visit, browser, name):
    """All of one that has room, of another the lower part."""
    visit(name, width=390, calm=True)
    script = """
    const canvas = document.querySelector("canvas"), all = document.querySelectorAll("input");
    const place = (node) => node.getBoundingClientRect(), [first, last] = [all[0], [...all].at(-1)];
    scrollBy(0, place(last).top - 0.35 * innerHeight);
    const { top, bottom, height } = place(canvas);
    first.scrollIntoView({ block: "start" });
    return [top, bottom, height, innerHeight, place(first).top - place(canvas).bottom];
    """
    top, bottom, tall, room, gap = browser.execute_script(script)
    assert (tall < 0.62 * room) == (name == "compact")
    assert bottom == pytest.approx(tall if name == "compact" else 0.45 * room, abs=1)
    assert (top >= 0) == (name == "compact")
    assert gap >= 0  # the control is not behind it


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_nothing_is_wider_than_the_screen(visit, browser, width):
    visit("all", width=width)
    assert browser.execute_script("return document.scrollingElement.scrollWidth <= innerWidth")
    for canvas in browser.find_elements(By.TAG_NAME, "canvas"):
        assert 0 < canvas.rect["x"] + canvas.rect["width"] <= width


def test_an_explorable_follows_the_theme_of_its_page(visit, browser):
    visit("box")
    pixels = "return document.querySelector('canvas').toDataURL()"
    light = browser.execute_script(pixels)
    # Before the next frame, as printing needs it.
    at_once = f"Promise.resolve().then(() => {{ {pixels} }}).then(arguments[0])"
    dark = browser.execute_async_script(
        f"document.documentElement.dataset.theme = 'dark'; {at_once}"
    )
    assert dark != light
    assert light == browser.execute_async_script(
        f"delete document.documentElement.dataset.theme; {at_once}"
    )


def test_blue_is_lighter_in_the_dark(visit, browser):
    visit("steps")
    shown = "return getComputedStyle(document.querySelector('.legend b')).color"
    assert browser.execute_script(shown) == "rgb(0, 114, 178)"
    browser.execute_script("document.documentElement.dataset.theme = 'dark'")
    assert (
        browser.execute_async_script(
            f"requestAnimationFrame(() => arguments[0]((() => {{ {shown} }})()))"
        )
        == "rgb(86, 180, 233)"
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_serious_violation(visit, browser, theme):
    visit("all", calm=True)
    browser.execute_script(f"document.documentElement.dataset.theme = '{theme}'")
    assert violations(browser) == []


def test_a_page_that_is_opened_as_a_file_is_alive(visit, browser, folder):
    visit("all", base=folder.as_uri())
    texts = [state(browser, i) for i in range(5)]
    assert [text.split()[0] for text in texts] == ["T", "φ", "φ", "At", "T"]


def test_every_choice_of_a_slider_is_drawn_without_an_error(visit, browser):
    visit("all", calm=True)
    for form in browser.find_elements(By.XPATH, "//form[.//*[@name='function']]"):
        for choice in form.find_elements(By.NAME, "function"):
            browser.execute_script("arguments[0].click()", choice)
            browser.execute_async_script("""
            const done = arguments[0];
            for (const slider of document.querySelectorAll("input[type=range]"))
              for (const value of [slider.max, 0, slider.max >> 1]) {
                slider.value = value;
                slider.dispatchEvent(new Event("input"));
              }
            requestAnimationFrame(() => requestAnimationFrame(() => done()));
            """)
            for text in browser.find_elements(By.CSS_SELECTOR, ".state"):
                assert "NaN" not in text.text
                assert "Infinity" not in text.text
