"""Keskar's experiment in a real browser: its five steps, over three seeds, and its controls."""

import csv
import io

import pytest
from as_in_book import in_the_book, with_modules
from browsing import THEMES, emulate, resize, violations
from scipy import stats
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from lecture6.course.explorables import Keskar

TIMEOUT = 60  # seconds
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>A page</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<link rel="stylesheet" href="explorables.css">
<style>[data-theme=dark] {{ color: white; background: #121212 }} body {{ margin: 16px }}</style>
<script>{}</script><main><h1>A page</h1>{}</main><script src="explorables.js" defer></script>"""
REFUSED = 'window.Worker = class { constructor() { throw new Error("refused"); } };'
QUICK = {"epochs": 5, "small": 64, "large": 512}
SKIP = "for (const skip of document.querySelectorAll('.skip')) skip.click();"
RESTS = """
const done = arguments[0], said = () => document.querySelector(".state").textContent, now = said();
setTimeout(() => done(now === said()), 500);
"""
SAVED = """
const done = arguments[0], kept = URL.createObjectURL;
URL.createObjectURL = (blob) => {
  blob.text().then(done);
  return kept(blob);
};
document.querySelector(".data").click();
URL.createObjectURL = kept;
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds what the book would: pages, and the files that they load."""
    folder = with_modules(tmp_path_factory.mktemp("keskar"))
    pages = {"bench": ({}, ""), "quick": (QUICK, ""), "refused": (QUICK, REFUSED)}
    for name, (start, script) in pages.items():
        html = PAGE.format(script, in_the_book(Keskar, **start))
        (folder / f"{name}.html").write_text(html, "utf8")
    return folder


@pytest.fixture
def visit(browser, address):
    """Opens a page, with nothing in its storage; no error may come."""
    browser.set_script_timeout(TIMEOUT)
    browser.get_log("browser")  # what is left of the pages before

    def visit(name, *, width=1280, theme="light", base=address, hash="", kept=False):
        resize(browser, width)
        emulate(browser, theme=theme)
        browser.get("about:blank")
        browser.get(f"{base}/{name}.html{hash}")
        if not kept:
            browser.execute_script("localStorage.clear(); location.reload()")
        browser.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
        until(browser, lambda: state(browser))

    yield visit
    assert [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


def until(browser, condition):
    WebDriverWait(browser, TIMEOUT, 0.05).until(lambda _: condition())


def state(browser):
    return browser.execute_script("return document.querySelector('.state')?.textContent")


def control(browser, name):
    return browser.find_element(By.CSS_SELECTOR, f"input[name={name}]")


def button(browser, text):
    (found,) = (b for b in browser.find_elements(By.TAG_NAME, "button") if b.text.endswith(text))
    return found


def press(browser, text):
    """Runs what a button starts, by keyboard, to its end."""
    button(browser, text).send_keys(Keys.ENTER)
    until(browser, lambda: not button(browser, "Stop").is_enabled())


def table(browser):
    """Large against small, by the name of what is measured: a number, and its interval."""
    found = {}
    for row in browser.find_elements(By.CSS_SELECTOR, ".measures tbody tr"):
        name, *_, gap = (cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td"))
        cells = gap.replace("−", "-").replace("× ", "").replace("[", "").replace("]", "")
        found[name.split(",")[0]] = [float(x) for x in cells.replace(",", "").split()]
    return found


def drawn(browser):
    script = "return document.querySelector('.lecture6-explorable canvas').toDataURL()"
    return browser.execute_script(script)


# ---- the story -------------------------------------------------------------------------------


def test_the_five_steps_tell_the_story(visit, browser):
    """Over 20 seeds the loss ratios of step 1 were 56 to 128, the gaps −7.8 to −5 points."""
    visit("bench")
    browser.execute_script(SKIP)
    for seed in range(3):
        if seed:
            control(browser, "seed").send_keys(Keys.ARROW_RIGHT)
        gaps = []
        for step in ("picture", "longer step", "times longer", "Equal training loss"):
            press(browser, step)
            gaps.append({name: value for name, (value,) in table(browser).items()})
            assert ("equally far" in state(browser)) == (step == "Equal training loss")
        first, longer_step, longer, equal = gaps
        accuracy, loss, sharpness = "Test accuracy", "Training loss", "λ_max of the Hessian"
        assert first[accuracy] < -3
        assert first[loss] > 30
        assert first[sharpness] > 3
        assert first["Sharpness φ"] > 1.3
        for remedy in (longer_step, longer):
            assert remedy[loss] < first[loss] / 2
            assert abs(remedy[accuracy]) < 0.6 * abs(first[accuracy])
        assert abs(longer[accuracy]) <= 1.2
        assert first["Updates"] == pytest.approx(1 / 60, abs=5e-4)  # as the sentence has it
        assert longer["Epochs"] == 10
        assert 0.8 < equal[loss] < 1.25
        assert abs(equal[accuracy]) <= 1
        assert 1.1 < equal[sharpness] < first[sharpness] / 2
        assert equal["Sharpness φ"] < 1.3


def test_five_seeds_give_intervals(visit, browser):
    visit("bench")
    browser.execute_script(SKIP)
    press(browser, "5. Five seeds")
    for name, (value, low, high) in table(browser).items():
        assert low <= value <= high, name
    assert table(browser)["Test accuracy"][1] <= 0 <= table(browser)["Test accuracy"][2]
    assert "see no difference in test accuracy" in state(browser)
    rows = list(csv.DictReader(io.StringIO(browser.execute_async_script(SAVED))))
    found = {(row["batch"], row["epoch, seed or α"]): float(row["value"]) for row in rows
             if row["what"] == "end: accuracy"}  # fmt: skip
    gaps = [found["large", f"seed {i}"] - found["small", f"seed {i}"] for i in range(5)]
    t = stats.ttest_1samp(gaps, 0).confidence_interval()
    assert table(browser)["Test accuracy"][1:] == pytest.approx([t.low, t.high], rel=0.05)


def test_the_step_of_the_scaling_rule_does_not_train(visit, browser):
    visit("bench", hash="#keskar.factor=64")
    browser.execute_script(SKIP)
    press(browser, "Run")
    assert "diverged" in state(browser) or table(browser)["Test accuracy"][0] < -50


# ---- predictions -----------------------------------------------------------------------------


def test_nothing_runs_before_a_guess(visit, browser):
    visit("quick")
    steps = browser.find_elements(By.CSS_SELECTOR, "[aria-label='Five steps'] button")
    assert not any(b.is_enabled() for b in [*steps, button(browser, "Run")])
    asked = browser.find_elements(By.CSS_SELECTOR, ".lecture6-predict")
    assert [section.is_displayed() for section in asked] == [True, False]
    asked[0].find_elements(By.TAG_NAME, "input")[1].send_keys(Keys.SPACE)
    asked[0].find_element(By.CSS_SELECTOR, ".commit").send_keys(Keys.ENTER)
    press(browser, "Run")
    assert "your guess" in asked[0].text
    said = browser.find_element(By.CSS_SELECTOR, ".said").text
    assert said.startswith("Right. " if "✓ correct, your guess" in asked[0].text else "No. ")
    press(browser, "4. Equal training loss")  # asks first
    assert [section.is_displayed() for section in asked] == [False, True]
    assert not button(browser, "Run").is_enabled()
    assert "guess" in state(browser)
    asked[1].find_element(By.CSS_SELECTOR, ".skip").send_keys(Keys.ENTER)
    until(browser, lambda: button(browser, "Run").is_enabled())


# ---- controls --------------------------------------------------------------------------------


def test_each_control_moves_by_keyboard_and_is_kept_in_the_address(visit, browser):
    visit("quick")
    browser.execute_script(SKIP)
    names = ("small", "large", "lr", "factor", "epochs", "loss", "epsilon", "seed")
    for name in names:
        before = control(browser, name).get_attribute("aria-valuetext")
        control(browser, name).send_keys(Keys.ARROW_RIGHT)
        assert control(browser, name).get_attribute("aria-valuetext") != before
        assert f"keskar.{name}=" in browser.current_url
    control(browser, "rule").send_keys(Keys.ARROW_RIGHT)
    control(browser, "optimizer").send_keys(Keys.ARROW_RIGHT)
    for part in ("rule=longer", "optimizer=adam", "lr=0.002"):
        assert f"keskar.{part}" in browser.current_url
    kept = browser.current_url.partition("#")[2]
    visit("quick", hash=f"#{kept}", kept=True)
    assert browser.current_url.endswith(kept)
    assert control(browser, "factor").get_attribute("aria-valuetext") == "2 η"


def test_alpha_moves_along_the_line(visit, browser):
    visit("quick")
    browser.execute_script(SKIP)
    press(browser, "Run")
    said, picture = state(browser), drawn(browser)
    handle = browser.find_element(By.CSS_SELECTOR, ".handle")
    handle.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert "At α = 0.5" in said
    assert "At α = 0.6 " in state(browser)
    until(browser, lambda: drawn(browser) != picture)
    assert "keskar.alpha=0.6" in browser.current_url


def test_a_change_forgets_what_was_found_and_stop_stops(visit, browser):
    visit("quick", hash="#keskar.rule=updates&keskar.epochs=100&keskar.small=8")
    browser.execute_script(SKIP)
    button(browser, "Run").send_keys(Keys.ENTER)
    until(browser, lambda: "Seed 0" in state(browser))
    press(browser, "Stop")
    assert state(browser).startswith("Stopped by you.")
    assert table(browser)
    control(browser, "lr").send_keys(Keys.ARROW_LEFT)
    assert not browser.find_element(By.CSS_SELECTOR, ".measures").is_displayed()


def test_out_of_view_it_rests(visit, browser):
    visit("quick", hash="#keskar.rule=updates&keskar.epochs=100&keskar.small=8")
    browser.execute_script(SKIP + "document.body.style.paddingBottom = '5000px'")
    button(browser, "Run").send_keys(Keys.ENTER)
    until(browser, lambda: "Seed 0" in state(browser))
    browser.execute_script("scrollTo(0, document.body.scrollHeight)")
    until(browser, lambda: browser.execute_async_script(RESTS))
    assert "Seed 0" in state(browser)
    browser.execute_script("scrollTo(0, 0)")
    until(browser, lambda: not browser.execute_async_script(RESTS))
    press(browser, "Stop")


# ---- pages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", THEMES)
def test_a_page_is_accessible_and_fits(visit, browser, width):
    visit("quick", width=width, theme=THEMES[width])
    browser.execute_script(SKIP)
    press(browser, "Run")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert violations(browser) == []


def test_with_reduced_motion_only_the_end_is_shown(visit, browser):
    visit("quick", hash="#keskar.epochs=100")
    motion = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", motion)
    browser.execute_script(SKIP)
    button(browser, "Run").send_keys(Keys.ENTER)
    said = set()
    until(browser, lambda: said.add(state(browser)) or table(browser))
    assert not any(words.startswith("Seed") for words in said)
    assert "Training loss" in state(browser)


@pytest.mark.parametrize("name", ["quick", "refused"])
def test_it_works_from_a_file_and_where_workers_are_refused(visit, browser, folder, name):
    visit(name, base=folder.as_uri())
    browser.execute_script(SKIP)
    press(browser, "Run")
    assert "The large batch tests" in state(browser)
