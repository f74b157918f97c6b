"""Predictions, and the figures of chapter 3 that move, in a real browser."""

import json

import numpy as np
import plotly
import plotly.graph_objects as go
import pytest
from as_in_book import in_the_book, with_modules
from browsing import THEMES, emulate, resize, violations
from scipy.stats import spearmanr
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from lecture6.course import explorables
from lecture6.course.explorables import Linked, Scrubber
from lecture6.course.widgets import Predict
from lecture6.studies import results

TIMEOUT = 30  # seconds
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>A page</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<link rel="stylesheet" href="explorables.css">
<style>[data-theme=dark] {{ color: white; background: #121212 }} body {{ margin: 16px }}</style>
<main><h1>A page</h1>{}</main><script src="explorables.js" defer></script>"""
AXES = {
    "x": {"label": "Batch size B", "low": 8, "high": 512, "log": True, "at": [8, 64, 512]},
    "y": {"label": "Test accuracy, %", "low": 80, "high": 100},
}
TRUTH = [(8, 98.5), (64, 97), (512, 92)]
OF_A_POINT = {"low": "Too low.", "near": "Near.", "high": "Too high."}
OF_A_CURVE = {shape: f"It {shape}." for shape in ("rises", "falls", "peaks", "dips", "flat")}
MADE = """
const [options, done] = arguments;
import("./modules/predict.js").then(({ predict }) => {
  window.events = [];
  const says = (made, truth) => JSON.stringify([made, truth]);
  window.guess = predict(document.querySelector("main"), { ...options, says,
    onReady: (made) => events.push(made), onReset: () => events.push("reset") });
}).then(done, (error) => done(`${error}`));
"""


def figure():
    layout = {"title": {"text": "Accuracy"}, "meta": {"description": "A curve."}, "height": 300}
    return go.Figure(go.Scatter(x=[8, 64, 512], y=[98.5, 97, 92]), layout)


def choice():
    options = {"small": "B = 8", "large": "B = 512", "same": "about the same"}
    says = {"small": "The other way round.", "large": "So it is.", "same": "Not at all."}
    question = "Which net is <sharper>?"
    return Predict(question=question, options=options, truth="large", says=says, figure=figure())


def point():
    more = {"axes": AXES, "truth": TRUTH[-1], "says": OF_A_POINT, "figure": figure()}
    return Predict(question="How well does B = 512 test?", **more)


def curve():
    more = {"axes": AXES, "truth": TRUTH, "says": OF_A_CURVE, "figure": figure()}
    return Predict(question="Draw the test accuracy.", knots=[8, 64, 512], **more)


def pairs():
    """The stored pairs of F2 on speech."""
    return results.select(results.load("keskar").tables, net="F2", data="timit", group="pair")


def scrubber():
    return Scrubber(pairs()["path"], title="Figure 5", provenance="stored")


def linked():
    nets = [["one", [[8, 98, 0.01, 3, 1], [64, 97, 0.1, 8, 2], [512, 90, 0.4, 5, 3]]]]
    nets += [["two", [[8, 50, 2, 30, 1], [128, 60, 1, 20, 2], [512, 55, 3, 40, 3]]]]
    more = {"net": "one", "epsilon": 1e-3, "batch_size": 64}
    return Linked(nets=nets, epsilons=[1e-3, 5e-4], title="Figure 7", provenance="stored", **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds what the book would: pages, and the files that they load."""
    folder = with_modules(tmp_path_factory.mktemp("predict"))
    (folder / "plotly.min.js").write_text(plotly.offline.get_plotlyjs(), "utf8")
    (folder / "modules").symlink_to(explorables.HERE)
    pages = {make.__name__: in_the_book(make) for make in (choice, point, curve, scrubber, linked)}
    pages |= {"moved": pages["scrubber"] + pages["linked"]}
    asked = "".join(pages[name] for name in ("choice", "point", "curve"))
    pages |= {"all": asked, "empty": ""}
    pages["frame"] = '<iframe sandbox="allow-scripts" src="all.html" title="A frame"></iframe>'
    for name, html in pages.items():
        (folder / f"{name}.html").write_text(PAGE.format(html), "utf8")
    return folder


@pytest.fixture
def visit(browser, address):
    """Opens a page, with nothing in its storage; no error may come, and nothing leave the page."""
    browser.get(f"{address}/explorables.css")
    browser.execute_script("localStorage.clear()")
    for log in ("browser", "performance"):
        browser.get_log(log)  # what is left of the pages before

    def visit(name, *, width=1280, theme="light", base=address):
        resize(browser, width)
        emulate(browser, theme=theme)
        browser.get(f"{base}/{name}.html")
        browser.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
        shown = len(all_of(browser, "figure.explorable"))
        alive = "figure.explorable > div > div .state, .commit"
        until(browser, lambda: len(all_of(browser, alive)) == shown)

    yield visit
    assert [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    messages = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    urls = [message["request"]["url"] for message in sent]
    own = (address, "file://", "data:", f"blob:{address}", "blob:null")
    assert [url for url in urls if not url.startswith(own)] == []


def until(browser, condition):
    WebDriverWait(browser, TIMEOUT).until(lambda _: condition())


def all_of(browser, selector):
    return browser.find_elements(By.CSS_SELECTOR, selector)


def one(browser, selector):
    (found,) = all_of(browser, selector)
    return found


def said(browser):
    return one(browser, ".said").text


def is_answered(browser):
    return browser.execute_script("return document.querySelector('.answer').open")


def keys(browser, *pressed):
    """Keys for whatever has the focus."""
    for key in pressed:
        browser.switch_to.active_element.send_keys(key)


def has_focus(browser, element):
    return browser.switch_to.active_element == element


# ---- before a figure -------------------------------------------------------------------------


def test_a_choice_is_made_by_keyboard_alone(visit, browser):
    visit("choice")
    commit = one(browser, ".commit")
    assert not is_answered(browser)
    assert not commit.is_enabled()
    assert one(browser, "fieldset").accessible_name.endswith("Which net is <sharper>?")
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    keys(browser, Keys.SPACE, Keys.TAB)
    assert has_focus(browser, commit)
    keys(browser, Keys.ENTER)
    assert said(browser) == "No: B = 512. The other way round."
    assert one(browser, ".said").get_attribute("aria-live") == "polite"
    marks = [mark.text for mark in all_of(browser, "label b")]
    assert marks == ["your guess", "✓ correct", ""]
    until(browser, lambda: one(browser, ".plot").get_attribute("aria-busy") == "false")
    assert one(browser, ".plot .scatterlayer").is_displayed()
    assert has_focus(browser, one(browser, ".anew"))


def test_a_guess_is_remembered_and_made_anew(visit, browser):
    visit("choice")
    all_of(browser, "input")[1].click()
    one(browser, ".commit").click()
    assert said(browser) == "Right. So it is."
    visit("choice")
    assert said(browser) == "This is your guess of an earlier visit. Right. So it is."
    until(browser, lambda: is_answered(browser))
    one(browser, ".anew").click()
    assert not is_answered(browser)
    assert said(browser) == ""
    assert has_focus(browser, all_of(browser, "input")[0])
    visit("choice")
    assert not is_answered(browser)


def test_who_skips_sees_the_answer(visit, browser):
    for name, sentence in (("choice", "It is: B = 512. So it is."), ("curve", "")):
        visit(name)
        one(browser, ".skip").click()
        assert is_answered(browser)
        assert said(browser) == sentence
        visit(name)
        assert said(browser) == f"You skipped this on an earlier visit. {sentence}".strip()
    assert all_of(browser, ".lines path") != []  # the truth
    handles = all_of(browser, "[role=slider]")
    assert [handle.is_displayed() for handle in handles] == [False] * 3


@pytest.mark.parametrize(
    ("pressed", "guess", "sentence"),
    [
        ([Keys.ARROW_UP], 90.4, "Too high."),
        ([Keys.ARROW_DOWN, Keys.ARROW_UP, Keys.PAGE_UP, Keys.ARROW_DOWN], 91.6, "Near."),
        ([Keys.PAGE_DOWN, Keys.ARROW_LEFT], 87.6, "Too low."),
    ],
)
def test_a_point_is_moved_by_keys(visit, browser, pressed, guess, sentence):
    visit("point")
    handle = one(browser, "[role=slider]")
    assert handle.get_attribute("aria-valuetext") == "Test accuracy, %: 90; Batch size B: 512"
    handle.send_keys(*pressed)
    assert float(handle.get_attribute("aria-valuenow")) == pytest.approx(guess)
    one(browser, ".commit").click()
    # B = 512 tests 92 %; within a twentieth of the axis, one point, it is near
    near = "Near." if abs(guess - 92) <= 1 else "Too low."
    assert said(browser) == f"Your guess: {guess}. Measured: 92. {near}"
    assert is_answered(browser)
    handle.send_keys(Keys.ARROW_UP)
    assert float(handle.get_attribute("aria-valuenow")) == pytest.approx(guess)


def test_a_point_is_dragged(visit, browser):
    visit("point", width=390)
    handle = one(browser, "[role=slider]")
    ActionChains(browser, duration=50).drag_and_drop_by_offset(handle, 30, -38).perform()
    assert float(handle.get_attribute("aria-valuenow")) == pytest.approx(94, abs=0.3)
    ActionChains(browser, duration=50).drag_and_drop_by_offset(handle, 0, -95).perform()
    assert float(handle.get_attribute("aria-valuenow")) == 100
    one(browser, ".commit").click()
    assert said(browser) == "Your guess: 100. Measured: 92. Too high."


def test_a_curve_is_drawn(visit, browser):
    visit("curve")
    left, _, right = handles = all_of(browser, "[role=slider]")
    start = left.rect["y"]
    chain = ActionChains(browser, duration=50).move_to_element(left).move_by_offset(0, 60)
    chain.click_and_hold().move_to_element(right).release().perform()
    heights = [float(handle.get_attribute("aria-valuenow")) for handle in handles]
    assert left.rect["y"] - start == pytest.approx(60, abs=2)
    assert heights[1] == pytest.approx((heights[0] + heights[2]) / 2, abs=0.2)
    for handle, key in zip(handles, (Keys.PAGE_UP, Keys.ARROW_UP, Keys.ARROW_LEFT), strict=True):
        before = float(handle.get_attribute("aria-valuenow"))
        handle.send_keys(key)
        moved = {Keys.PAGE_UP: 2, Keys.ARROW_UP: 0.4, Keys.ARROW_LEFT: -0.4}[key]
        assert float(handle.get_attribute("aria-valuenow")) == pytest.approx(before + moved)
    heights = [float(handle.get_attribute("aria-valuenow")) for handle in handles]
    off = sum(abs(y - truth) for y, (_, truth) in zip(heights, TRUTH, strict=True)) / 3
    one(browser, ".commit").click()
    words = f"Your curve is off by {off:.2g} points on average. It rises."
    assert said(browser).startswith(words)
    names = [text.text for text in all_of(browser, ".lines text")]
    assert names == ["your guess", "measured"]


@pytest.mark.parametrize("name", ["point", "curve"])
def test_a_finger_moves_a_point_and_does_not_scroll_the_page(visit, browser, name):
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        visit(name, width=390)
        browser.execute_script("document.body.style.paddingBottom = '2000px'")
        handle = all_of(browser, "[role=slider]")[-1]
        box = handle.rect
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        touches = [("touchStart", 0), *(("touchMove", 6 * i) for i in range(1, 9)), ("touchEnd", 0)]
        for kind, up in touches:
            points = [] if kind == "touchEnd" else [{"x": x, "y": y - up}]
            event = {"type": kind, "touchPoints": points}
            browser.execute_cdp_cmd("Input.dispatchTouchEvent", event)
        assert float(handle.get_attribute("aria-valuenow")) == pytest.approx(95, abs=0.3)
        assert browser.execute_script("return scrollY") == 0
    finally:
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


@pytest.mark.parametrize(
    ("heights", "shape"),
    [
        ([90, 91, 90.5], "flat"),
        ([82, 90, 99], "rises"),
        ([99, 90, 82], "falls"),
        ([85, 95, 84], "peaks"),
        ([95, 85, 99], "dips"),
        ([82, 84, 83], "flat"),
    ],
)
def test_the_shape_of_a_curve(visit, browser, heights, shape):
    visit("empty")
    points = [[x, y] for (x, _), y in zip(TRUTH, heights, strict=True)]
    code = """const [points, axis, done] = arguments;
    import("./modules/prediction.js").then((m) => done(m.shapeOf(points, axis)));"""
    assert browser.execute_async_script(code, points, AXES["y"]) == shape


# ---- in a bench ------------------------------------------------------------------------------


def test_a_bench_reveals_the_truth_when_it_has_it(visit, browser):
    visit("empty")
    options = {
        "id": "a",
        "question": "Which?",
        "kind": "choice",
        "options": [["a", "A"], ["b", "B"]],
    }
    seen = "return [guess.ready, guess.made, guess.revealed, events]"
    assert browser.execute_async_script(MADE, options) is None
    assert browser.execute_script(seen) == [False, None, False, []]
    all_of(browser, "input")[1].click()
    one(browser, ".commit").click()
    assert browser.execute_script(seen) == [True, "b", False, ["b"]]
    assert said(browser) == "Committed."
    browser.execute_script("guess.reveal('a')")
    assert said(browser) == '["b","a"]'
    visit("empty")
    assert browser.execute_async_script(MADE, options) is None
    assert browser.execute_script(seen) == [True, "b", True, ["b"]]
    browser.execute_script("guess.reset()")
    assert browser.execute_script(seen) == [False, None, False, ["b", "reset"]]
    visit("empty")
    assert browser.execute_async_script(MADE, options | {"options": [["c", "C"]]}) is None
    assert browser.execute_script(seen) == [False, None, False, []]


def test_a_guess_that_is_no_longer_among_the_options_is_forgotten(visit, browser):
    visit("empty")
    options = {"id": "a", "question": "Which?", "kind": "choice", "options": [["a", "A"]]}
    browser.execute_async_script(MADE, options)
    one(browser, "input").click()
    one(browser, ".commit").click()
    visit("empty")
    browser.execute_async_script(MADE, options | {"options": [["c", "C"]]})
    assert browser.execute_script("return guess.ready") is False


def test_two_predictions_of_a_page_do_not_disturb_each_other(visit, browser):
    visit("empty")
    options = {"question": "Which?", "kind": "choice", "options": [["a", "A"], ["b", "B"]]}
    for name, module in (("one", "predict.js"), ("two", "predict.js?again")):  # of two modules
        made = MADE.replace("predict.js", module)
        assert browser.execute_async_script(made, options | {"id": name}) is None
    radios = all_of(browser, "input")
    for radio in (radios[0], radios[3]):
        radio.click()
    assert [radio.is_selected() for radio in radios] == [True, False, False, True]
    radios[3].send_keys(Keys.ENTER)  # sends no form
    assert len(all_of(browser, ".commit")) == 2


def test_the_names_of_points_stand_at_them(visit, browser):
    visit("empty")
    options = {"id": "p", "question": "Where?", "kind": "point", "axes": AXES}
    options["start"] = {"x": 8, "y": 90}
    browser.execute_async_script(MADE, options)
    one(browser, "[role=slider]").send_keys(Keys.ARROW_UP)
    one(browser, ".commit").click()
    browser.execute_script("guess.reveal({ x: 512, y: 90 })")
    guess, truth = (text.rect for text in all_of(browser, ".lines text"))
    assert truth["x"] > guess["x"] + guess["width"]


def test_the_names_of_curves_stand_apart_where_both_are_seen(visit, browser):
    visit("empty")
    options = {"id": "c", "question": "Draw.", "kind": "curve", "axes": AXES, "knots": [8, 64, 512]}
    browser.execute_async_script(MADE, options | {"start": {"y": 90}})
    all_of(browser, "[role=slider]")[0].send_keys(Keys.ARROW_UP)
    one(browser, ".commit").click()
    browser.execute_script("guess.reveal([[8, 85], [64, 83], [512, 1000]])")
    guess, truth = (text.rect for text in all_of(browser, ".lines text"))
    assert truth["y"] - guess["y"] > 40


def test_a_point_may_move_both_ways(visit, browser):
    visit("empty")
    options = {"id": "p", "question": "Where?", "kind": "point", "axes": AXES}
    browser.execute_async_script(MADE, options | {"start": {"x": 64, "y": 90}})
    handle = one(browser, "[role=slider]")
    handle.send_keys(Keys.ARROW_RIGHT * 2, Keys.ARROW_UP)
    one(browser, ".commit").click()
    ((made,),) = [browser.execute_script("return events")]
    assert made == pytest.approx({"x": 64 * 64 ** (2 / 50), "y": 90.4})


# ---- Figures 5 and 7 -------------------------------------------------------------------------


def state(browser):
    return one(browser, ".state").text.replace("−", "-")


def press(browser, selector, *pressed):
    one(browser, selector).send_keys(*pressed)


def test_a_position_on_the_path_is_read_off(visit, browser):
    visit("scrubber")
    means = pairs()["path"].groupby(["path", "alpha", "split"])[["loss", "accuracy"]].mean()

    def expected(path, alpha):
        train, test = (means.loc[path, alpha, split] for split in ("train", "test"))
        lowest = means.loc[path].xs("train", level="split").loss.idxmin()
        return (
            f"loss {train.loss:.3g} in training, {test.loss:.3g} in the test; accuracy "
            f"{100 * train.accuracy:.3g} and {100 * test.accuracy:.3g} %. The training loss is "
            f"lowest at α = {lowest:.3g}."
        )

    assert state(browser) == f"At α = 0, at the small batch's net: {expected('linear', 0)}"
    press(browser, "[name=alpha]", Keys.END)
    assert state(browser) == f"At α = 2: {expected('linear', 2)}"
    press(browser, "[name=alpha]", Keys.HOME)
    all_of(browser, "[name=path]")[0].send_keys(Keys.ARROW_RIGHT)
    assert state(browser) == f"At α = -1: {expected('sincos', -1)}"
    picture = "return document.querySelector('canvas').toDataURL()"
    linear = browser.execute_script(picture)
    all_of(browser, "[name=logarithmic]")[0].send_keys(Keys.ARROW_RIGHT)
    until(browser, lambda: browser.execute_script(picture) != linear)
    press(browser, ".handle", *[Keys.ARROW_RIGHT] * 12)
    assert not state(browser).startswith("At α = -1:")


def test_a_batch_size_is_seen_in_every_chart(visit, browser):
    visit("linked")
    assert state(browser) == (
        "Batch size 64: test accuracy 97 %, φ = 8 % at ε = 0.001, training loss 0.1. Over these 3 "
        "batch sizes the rank correlation of φ with the test accuracy is -0.5, with the training "
        "loss 0.5."
    )
    press(browser, ".handle", Keys.ARROW_RIGHT)
    assert state(browser).startswith("Batch size 512: test accuracy 90 %, φ = 5 %")
    press(browser, ".handle", Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert state(browser).startswith("Batch size 64:")
    all_of(browser, "[name=epsilon]")[0].send_keys(Keys.ARROW_RIGHT)
    assert "φ = 2 % at ε = 0.0005" in state(browser)
    all_of(browser, "[name=net]")[0].send_keys(Keys.ARROW_RIGHT)
    assert state(browser).startswith("Batch size 128: test accuracy 60 %, φ = 2 %")
    press(browser, "[name=batch_size]", Keys.HOME)
    assert state(browser).startswith("Batch size 8: test accuracy 50 %")
    handle = one(browser, ".handle")
    ActionChains(browser, duration=50).drag_and_drop_by_offset(handle, 2000 // 8, 0).perform()
    assert not state(browser).startswith("Batch size 8:")


def test_the_rank_correlation(visit, browser):
    visit("empty")
    a, b = np.random.default_rng(0).standard_normal((2, 9))
    code = """const [a, b, done] = arguments;
    import("./modules/linked.js").then((m) => done(m.rankCorrelation(a, b)));"""
    found = browser.execute_async_script(code, a.tolist(), b.tolist())
    assert found == pytest.approx(spearmanr(a, b).statistic)


# ---- the page --------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["all", "moved"])
@pytest.mark.parametrize(("width", "theme"), THEMES.items())
def test_the_page_is_accessible_and_fits(visit, browser, width, theme, page):
    visit(page, width=width, theme=theme)
    assert violations(browser) == []
    for skip in all_of(browser, ".skip"):
        skip.click()
    assert violations(browser) == []
    assert browser.execute_script("return document.scrollingElement.scrollWidth <= innerWidth")
    for part in all_of(browser, ".lecture6-predict button"):
        assert not part.is_displayed() or part.rect["height"] >= 24


def test_without_javascript_the_figure_and_its_words_are_there(visit, browser, address):
    visit("empty")
    disable = "Emulation.setScriptExecutionDisabled"
    browser.execute_cdp_cmd(disable, {"value": True})
    try:
        browser.get(f"{address}/choice.html")
        words = one(browser, "figcaption").text
    finally:
        browser.execute_cdp_cmd(disable, {"value": False})
    assert words == "Accuracy"
    assert "Which net is <sharper>?" in one(browser, "figure.explorable").text


def test_a_page_that_is_opened_as_a_file_is_alive(visit, browser, folder):
    visit("choice", base=folder.as_uri())
    all_of(browser, "input")[1].click()
    one(browser, ".commit").click()
    assert said(browser) == "Right. So it is."


def test_a_frame_without_storage_is_alive(visit, browser):
    visit("frame")
    browser.switch_to.frame(one(browser, "iframe"))
    until(browser, lambda: len(all_of(browser, ".commit")) == 3)
    with pytest.raises(Exception, match="sandboxed"):
        browser.execute_script("return localStorage")
    all_of(browser, "input")[1].click()
    all_of(browser, ".commit")[0].click()
    assert all_of(browser, ".said")[0].text == "Right. So it is."


def test_with_a_kernel_the_figure_is_drawn_by_the_kernels_plotly(visit, browser):
    visit("empty")
    widget = choice()
    traits = {name: widget.trait_values()[name] for name in widget.traits(sync=True, start=True)}
    code = """
    const [traits, done] = arguments, asked = [], listeners = [];
    const el = document.querySelector("main");
    const model = { get: (name) => traits[name], off() {}, save_changes() {},
      on: (event, listener) => event === "msg:custom" && listeners.push(listener),
      async send(message) {
        asked.push([message, el.querySelector(".answer").open]);
        const text = await (await fetch("plotly.min.js")).blob();
        const packed = text.stream().pipeThrough(new CompressionStream("gzip"));
        const bytes = new Uint8Array(await new Response(packed).arrayBuffer());
        const plotly = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
        for (const listener of listeners) listener({ plotly });
      } };
    import("./modules/prediction.js").then(({ default: { render } }) => {
      render({ model, el });
      setTimeout(() => el.querySelector(".skip").click(), 300);
      const wait = () => (el.querySelector(".plot").ariaBusy === "false"
        ? done([asked, el.querySelectorAll(".scatterlayer .js-line").length])
        : setTimeout(wait, 50));
      wait();
    });
    """
    assert browser.execute_async_script(code, traits) == [[[{"ask": "plotly"}, True]], 1]
