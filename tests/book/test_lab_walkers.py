"""The benches of chapter 6, walkers in two wells and in a valley, on the page of the book."""

import csv
import io

import numpy as np
import pytest
from as_in_book import in_the_book, with_modules
from browsing import emulate, resize, violations
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from lecture6 import equilibrium, toys
from lecture6.course import explorables
from lecture6.course.explorables import Valley, Walkers

TIMEOUT = 30  # seconds
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<link rel="stylesheet" href="explorables.css"><title>Walkers</title>
<style>[data-theme=dark] {{ color: white; background: black }} body {{ margin: 16px }}
main {{ max-width: 688px }}</style><main><h1>Walkers</h1>{}</main>
<script src="explorables.js" defer></script>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds what the book would: pages, and the files that they load."""
    folder = with_modules(tmp_path_factory.mktemp("walkers"))
    (folder / "modules").symlink_to(explorables.HERE)
    pages = {"walkers": in_the_book(Walkers), "valley": in_the_book(Valley, lr=0.02)}
    pages |= {"compact": in_the_book(Walkers, compact=True), "empty": ""}
    for name, html in pages.items():
        (folder / f"{name}.html").write_text(PAGE.format(html), "utf8")
    return folder


@pytest.fixture
def visit(browser, address):
    """Opens a page, with nothing in its storage; nothing may go wrong in the browser."""
    browser.get(f"{address}/empty.html")
    browser.execute_script("localStorage.clear()")
    browser.get_log("browser")

    def visit(name, *, width=1280, theme="light", calm=True, base=address):
        resize(browser, width)
        emulate(browser, theme=theme)
        motion = {"name": "prefers-reduced-motion", "value": "reduce" if calm else ""}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [motion]})
        browser.get("about:blank")
        browser.get(f"{base}/{name}.html")
        browser.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
        until(browser, lambda: said(browser))

    yield visit
    assert [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


def until(browser, condition):
    return WebDriverWait(browser, TIMEOUT, poll_frequency=0.05).until(lambda _: condition())


def one(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


def said(browser):
    return one(browser, ".state").text


def button(browser, text):
    return browser.find_element(By.XPATH, f"//button[normalize-space()='{text}']")


def keys(browser, element, *pressed):
    browser.execute_script("arguments[0].focus()", element)
    ActionChains(browser).send_keys(*pressed).perform()


def press(browser, text):
    keys(browser, button(browser, text), Keys.SPACE)


def choose(browser, text):
    keys(browser, browser.find_element(By.XPATH, f"//label[span='{text}']/input"), Keys.SPACE)


def handle(browser, label):
    return one(browser, f"[aria-label='{label}: drag, or arrow keys']")


def value(browser, name):
    return float(one(browser, f"[name={name}]").get_attribute("aria-valuetext").replace("−", "-"))


def table(browser):
    """The table that is saved."""
    text = browser.execute_async_script("""
    const done = arguments[0], { click } = HTMLAnchorElement.prototype;
    HTMLAnchorElement.prototype.click = function () {
      HTMLAnchorElement.prototype.click = click;
      fetch(this.href).then((file) => file.text()).then(done);
    };
    document.querySelector(".data").click();""")
    return list(csv.DictReader(io.StringIO(text)))


def shares(browser):
    """The times, and the shares of the left well in per cent."""
    rows = [row for row in table(browser) if row["chart"].startswith("left well")]
    return np.array([[row["w₁, or time"], row["walkers (%)"]] for row in rows], dtype=float)


def module(browser, address, name, code):
    """What ``code`` makes of the exports ``m`` of a module."""
    script = (
        f"import('{address}/modules/{name}.js').then((m) => {{ {code} }})"
        ".then(arguments[0], (error) => arguments[0](String(error)))"
    )
    return browser.execute_async_script(script)


# ---- two wells: the numbers ------------------------------------------------------------------

WELLS = [(0.1, 4.0, 0.256), (0.0, 1.0, 0.2), (-0.2, 9.0, 0.128)]


def two_wells(depth, h):
    return toys.TwoWells([np.eye(2), h * np.eye(2)], [[-1.0, 0.0], [1.0, 0.0]], (0.0, -depth))


@pytest.mark.parametrize(("depth", "h", "temperature"), WELLS)
@pytest.mark.usefixtures("visit")
def test_the_two_times_are_those_of_the_package(browser, address, depth, h, temperature):
    code = f"""const well = m.wells({depth}, {h}), t = {temperature};
    const {{ leftRight, rightLeft }} = m.gibbs(well, t), k = m.kramers(well, t);
    return [leftRight, rightLeft, k.leftRight, k.rightLeft];"""
    found = module(browser, address, "double_well", code)
    well, x, y = two_wells(depth, h), np.linspace(-5, 5, 2001), np.linspace(-3, 3, 601)
    points = np.stack(np.broadcast_arrays(x[:, None], y), -1).reshape(-1, 2)
    density = np.exp(-well.losses(points) / temperature).reshape(len(x), -1).sum(1)
    free_energy = CubicSpline(x, -temperature * np.log(density))  # of w₁
    for start, time in ((-1.0, found[0]), (1.0, found[1])):
        wall = 4.9 * start
        exact = equilibrium.escape_time(
            lambda w: free_energy(w[:, 0]), temperature, start, -start, wall=wall
        )
        assert time == pytest.approx(exact, rel=2e-3)

    slope = lambda x: well.gradients([[x, 0.0]])[0, 0]  # noqa: E731
    top = brentq(slope, -0.9, 0.95)
    along = (slope(top + 1e-6) - slope(top - 1e-6)) / 2e-6
    across = well.gradients([[top, 1e-6]])[0, 1] / 1e-6
    height = well.losses([[top, 0.0]])[0]
    for own, level, time in ((1.0, 0.0, found[2]), (h, -depth, found[3])):
        line = equilibrium.kramers_time(own, along, height - level, temperature)
        assert time == pytest.approx(line * np.sqrt(across / own), rel=1e-5)


@pytest.mark.usefixtures("visit")
def test_walkers_hop_at_the_two_rates_and_kramers_are_twice_too_fast(browser, address):
    code = """const lr = 0.016, batchSize = 8, well = m.wells(0.1, 4), t = m.temperature(lr, 8);
    const walkers = m.start(4000), normal = m.normals(1);
    const laws = [m.gibbs(well, t), m.kramers(well, t)];
    return [laws, [8, 16, 32, 64].map((time, i) => {
      for (let j = 0; j < (i ? time / 2 : 8) / lr; j++)
        m.step(walkers, well, { lr, batchSize, anisotropy: 0 }, normal);
      return [1 - m.histogram(walkers, well).right, ...laws.map((l) => m.twoRates(l, 0, time))];
    })];"""
    (exact, kramers), shares = module(browser, address, "double_well", code)
    measured, two_rates, too_fast = np.transpose(shares)
    np.testing.assert_allclose(measured, two_rates, atol=0.04)
    assert too_fast[0] > measured[0] + 0.15
    for way in ("leftRight", "rightLeft"):
        assert exact[way] > 2 * kramers[way]


@pytest.mark.usefixtures("visit")
def test_what_follows_a_locked_ratio_keeps_it_and_stays_in_reach(browser, address):
    cases = [[lr, b] for lr in (0.005, 0.016, 0.1) for b in (4, 7, 8, 128)]
    traits = Walkers().traits()
    ranges = {name: [traits[name].min, traits[name].max] for name in ("lr", "batch_size")}
    code = f"""const ranges = {ranges};
    return {cases}.map(([lr, b]) => [["lr", 0.005], ["lr", lr * 1.26], ["lr", 0.1],
      ["batch_size", 4], ["batch_size", 96]].map((moved) => m.inStep(...moved, lr / b, ranges)));"""
    for (lr, b), found in zip(cases, module(browser, address, "double_well", code), strict=True):
        for pair in found:
            assert pair["lr"] / pair["batch_size"] == pytest.approx(lr / b, rel=1e-9)
            assert pair["batch_size"] == int(pair["batch_size"])
            Walkers(**pair)  # takes both


# ---- two wells: the bench --------------------------------------------------------------------


def test_a_lock_keeps_the_ratio(visit, browser):
    visit("walkers")
    choose(browser, "keeps η/B")
    keys(browser, one(browser, "[name=lr]"), Keys.ARROW_RIGHT)
    assert (value(browser, "lr"), value(browser, "batch_size")) == (0.02, 10)
    assert "T = 0.256." in said(browser)
    assert "1.25 times what they were, and T is the same" in said(browser)
    keys(browser, one(browser, "[name=batch_size]"), Keys.HOME)
    assert (value(browser, "lr"), value(browser, "batch_size")) == (0.008, 4)
    choose(browser, "changes η/B")
    keys(browser, one(browser, "[name=lr]"), Keys.ARROW_RIGHT)
    assert value(browser, "batch_size") == 4
    assert "T = 0.256." not in said(browser)


def test_walkers_are_dropped_by_keys_and_by_a_click(visit, browser):
    visit("walkers")
    place = handle(browser, "Where walkers are dropped")
    assert shares(browser)[0].tolist() == [0, 0]
    keys(browser, place, *[Keys.ARROW_LEFT] * 12)
    assert "After 0 steps" in said(browser)
    assert shares(browser)[0].tolist() == [0, 100]
    press(browser, "100 steps")
    assert 50 < shares(browser)[-1][1] < 100
    assert "#walkers.x=" in browser.current_url
    ActionChains(browser).move_to_element_with_offset(place, 150, 20).click().perform()
    assert "After 0 steps" in said(browser)
    assert shares(browser)[0].tolist() == [0, 0]
    browser.refresh()
    until(browser, lambda: said(browser))
    assert shares(browser)[0].tolist() == [0, 0]


def test_the_right_well_is_dragged(visit, browser):
    visit("walkers")
    bottom = handle(browser, "Depth of the right well")
    keys(browser, bottom, Keys.ARROW_UP)
    assert value(browser, "depth") < 0
    keys(browser, bottom, *[Keys.ARROW_DOWN] * 3)
    assert value(browser, "depth") == 0.3
    side = handle(browser, "Width of the right well")
    keys(browser, side, Keys.ARROW_LEFT)
    assert value(browser, "curvature") > 5
    ActionChains(browser).drag_and_drop_by_offset(side, 90, 0).perform()
    assert value(browser, "curvature") < 3


def test_the_share_is_recorded_from_the_start_and_compared_from_each_change(visit, browser):
    visit("walkers")
    for _ in range(15):
        button(browser, "100 steps").click()
    rows = [row for row in table(browser) if row["chart"].startswith("left well")]
    assert float(rows[0]["w₁, or time"]) == 0
    assert float(rows[-1]["w₁, or time"]) == pytest.approx(2000 * 0.016)
    found, law = (float(rows[-1][name]) for name in ("walkers (%)", "Gibbs law (%)"))
    assert abs(found - law) < 5
    keys(browser, one(browser, "[name=depth]"), Keys.END)
    rows = [row for row in table(browser) if row["chart"].startswith("left well")]
    assert rows[0]["Gibbs law (%)"] == rows[0]["Kramers (%)"] == ""
    assert float(rows[-1]["Gibbs law (%)"]) == float(rows[-1]["walkers (%)"])


@pytest.mark.parametrize("width", [1280, 390])
def test_the_challenge_is_in_sight_and_is_met(visit, browser, width):
    visit("compact", width=width)
    double = button(browser, "B × 2")
    assert double.rect["y"] < one(browser, "canvas").rect["y"] < 350
    press(browser, "B × 2")
    assert value(browser, "batch_size") == 16
    assert "T = 0.128." in said(browser)
    assert "only their ratio" not in said(browser)
    press(browser, "η × 2")
    assert "T = 0.256." in said(browser)
    assert "η and B are 2 times what they were" in said(browser)
    for _ in range(4):
        press(browser, "η ÷ 2")
    assert value(browser, "lr") == 0.005


# ---- the valley: the derivation --------------------------------------------------------------


def simulate(lr, isotropic, n=2000, length=8.0):
    """w of ``n`` walkers after ``length``/η² steps from (3, ⅓), and Σ η² r² (w₁² − w₂²)."""
    rng = np.random.default_rng(0)
    w, summed = np.tile([[3.0], [1 / 3]], n), 0.0
    size = np.sqrt((w[:, 0] ** 2).sum() / 8)  # of ±size in each: the same total variance
    for _ in range(round(length / lr**2)):
        r = w[0] * w[1] - 1
        if isotropic:
            summed = summed + lr**2 * r**2 * (w[0] ** 2 - w[1] ** 2)
            w = w - lr * (r * w[::-1] + size * rng.choice([-1.0, 1.0], (2, n)))
        else:
            w = w - lr * (r - rng.choice([-0.5, 0.5], n)) * w[::-1]
    return w, summed


@pytest.mark.parametrize("lr", [0.02, 0.04])
def test_label_noise_drifts_to_the_flat_end_as_derived(lr):
    (w, _), first = simulate(lr, isotropic=False), 9 - 1 / 9
    difference = (w[0] ** 2 - w[1] ** 2).mean()
    limit = first * np.exp(-0.25 * 8)
    assert difference < limit  # steps of some length are faster
    # With E (r − ξ)² = ξ² · 2/(2 − ηλ) on the way, λ² = D² + 4:
    d, n = first, 2000
    for _ in range(n):
        d -= d * 0.25 * 2 / (2 - lr * np.hypot(d, 2)) * 8 / n
    assert difference == pytest.approx(d, rel=0.01)
    assert abs(d / limit - 1) < 5 * lr  # and so one curve of η²t in the limit


def test_isotropic_noise_does_not_drift_and_its_mean_curvature_rises():
    w, lost = simulate(0.02, isotropic=True)
    difference, curvature = w[0] ** 2 - w[1] ** 2, (w**2).sum(0)
    stderr = np.sqrt(len(curvature))
    # The noise adds as much to w₁² as to w₂². A step loses η²r² of the difference, of order η³.
    kept = difference + lost
    assert abs(kept.mean() - (9 - 1 / 9)) < 3 * kept.std() / stderr
    assert 0 < lost.mean() < 0.25 * (9 - 1 / 9)
    assert curvature.mean() - (9 + 1 / 9) > 4 * curvature.std() / stderr


@pytest.mark.usefixtures("visit")
def test_a_step_of_the_page_is_the_step_derived(browser, address):
    code = """return ["label", "isotropic"].map((kind) => {
      const walkers = m.walkersOf(kind, 3);
      const state = () => Array.from(walkers.x, (x, i) => [x, walkers.y[i]]);
      for (let i = 0; i < 50; i++) m.step(walkers, 0.02);
      const before = state();
      m.step(walkers, 0.02);
      return [before, state(), [m.predicted(0), m.predicted(8)]];
    });"""
    label, isotropic = module(browser, address, "valley", code)
    predicted = np.sqrt(4 + (9 - 1 / 9) ** 2 * np.exp([0.0, -4.0]))
    np.testing.assert_allclose(label[2], predicted, rtol=1e-12)
    for kind, (before, after, _) in (("label", label), ("isotropic", isotropic)):
        before, after = np.transpose(before), np.transpose(after)
        r = before[0] * before[1] - 1
        noise = (before - after) / 0.02 - r * before[::-1]
        if kind == "label":
            xi = -noise / before[::-1]
            np.testing.assert_allclose(np.abs(xi), 0.5, rtol=1e-9)
            np.testing.assert_allclose(xi[0], xi[1], rtol=1e-9)
            signs, (d, after_d) = xi[:1], (w[0] ** 2 - w[1] ** 2 for w in (before, after))
            np.testing.assert_allclose(after_d, d * (1 - 0.02**2 * (r - xi[0]) ** 2), rtol=1e-9)
        else:
            np.testing.assert_allclose(noise**2, (9 + 1 / 9) / 8, rtol=1e-9)
            signs = noise
            assert abs(np.sign(noise[0] * noise[1]).mean()) < 5 / np.sqrt(600)
        assert (np.abs(np.sign(signs).mean(1)) < 5 / np.sqrt(600)).all()


@pytest.mark.usefixtures("visit")
def test_the_story_holds_for_three_seeds(browser, address):
    code = """return [0, 1, 2].map((seed) => {
      const ends = Object.fromEntries(["label", "isotropic"].map((kind) => {
        const walkers = m.walkersOf(kind, seed);
        for (let i = 0; i < 20000; i++) m.step(walkers, 0.02);
        return [kind, m.summary(walkers)];
      }));
      return [m.fallen(ends), ends.label, ends.isotropic];
    });"""
    for fallen, label, isotropic in module(browser, address, "valley", code):
        assert fallen == "label"
        assert 2 < label["mean"] < np.sqrt(4 + (9 - 1 / 9) ** 2 * np.exp(-4))  # a bit faster
        assert isotropic["mean"] > 9.11 + 2 * isotropic["error"]
        assert isotropic["flatter"] > 0.5  # most of its walkers, as the text says
        assert isotropic["median"] < 9


# ---- the valley: the bench -------------------------------------------------------------------


def run(browser):
    press(browser, "Run")
    until(browser, lambda: "After 20,000 updates" in said(browser))


def test_a_prediction_comes_before_the_run_and_is_answered(visit, browser):
    visit("valley")
    assert not button(browser, "Run").is_enabled()
    assert "Commit to a prediction" in said(browser)
    keys(browser, one(browser, "[value=both]"), Keys.SPACE)
    press(browser, "Commit")
    until(browser, lambda: button(browser, "Run").is_enabled())
    run(browser)
    answer = one(browser, ".said").text
    assert "Label noise ends at 2.2" in answer
    assert "What counts is the direction of the noise" in answer
    assert one(browser, "label.right").text.startswith("label noise")
    rows = table(browser)
    assert {row["noise"] for row in rows} == {"label", "isotropic"}
    assert float(rows[-1]["η² · updates"]) == pytest.approx(8)
    choose(browser, "label noise")
    assert {row["noise"] for row in table(browser)} == {"label"}
    keys(browser, one(browser, "[name=lr]"), Keys.ARROW_LEFT)
    assert value(browser, "lr") == 0.014
    press(browser, "Another seed")
    assert browser.current_url.endswith("#valley.noise=label&valley.lr=0.014&valley.seed=1")
    assert said(browser).startswith("The curvature is 9.11 at the start")
    browser.refresh()
    until(browser, lambda: said(browser))
    assert "This is your guess of an earlier visit" in one(browser, ".said").text
    press(browser, "Another seed")
    assert browser.current_url.endswith("&valley.seed=2")


def test_a_run_is_seen_while_it_goes_and_can_be_paused(visit, browser):
    visit("valley", calm=False)
    press(browser, "Skip")
    press(browser, "Run")
    until(browser, lambda: "updates, η²t = " in said(browser))
    assert one(browser, ".state").get_attribute("aria-live") == "off"
    press(browser, "Pause")
    until(browser, lambda: one(browser, ".state").get_attribute("aria-live") == "polite")
    assert 2 < len(table(browser)) < 300
    press(browser, "Start again")
    assert len(table(browser)) == 2


# ---- the pages -------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
@pytest.mark.parametrize("name", ["walkers", "compact", "valley"])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(visit, browser, name, width, theme):
    visit(name, width=width, theme=theme)
    assert violations(browser) == []
    if name == "valley":
        press(browser, "Skip")
        until(browser, lambda: button(browser, "Run").is_enabled())
        run(browser)
        assert violations(browser) == []
    assert browser.execute_script("return document.scrollingElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("name", ["walkers", "valley"])
def test_it_works_as_a_file(visit, browser, folder, name):
    visit(name, base=folder.as_uri())
    if name == "valley":
        press(browser, "Skip")
        until(browser, lambda: button(browser, "Run").is_enabled())
        run(browser)
    else:
        press(browser, "100 steps")
        assert "After 600 steps" in said(browser)
