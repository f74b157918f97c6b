"""The bench of chapter 0, one step of SGD, on the page that the book would have."""

import csv
import io
import re

import numpy as np
import pytest
import torch
from as_in_book import in_the_book, with_modules
from browsing import emulate, resize, violations
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from torch import nn

from lecture6 import curvature, data
from lecture6.course import explorables
from lecture6.course.explorables import OneStep
from lecture6.objective import FunctionObjective

TIMEOUT = 30  # seconds
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<link rel="stylesheet" href="explorables.css"><title>One step</title>
<style>[data-theme=dark] {{ color: white; background: black }} body {{ margin: 16px }}
main {{ max-width: 688px }}</style><main><h1>One step</h1>{}</main>
<script src="explorables.js" defer></script>"""


def samples(x, y):
    """Rows (x₁, x₂, s): the brightness on the left of a 3 or an 8, above and below the middle."""
    left = x[(y == 3) | (y == 8)][:, 0, :, 1:3].double()
    halves = torch.stack([left[:, 2:4].mean((1, 2)), left[:, 4:6].mean((1, 2))], dim=1)
    sign = (2.0 * (y[(y == 3) | (y == 8)] == 8) - 1)[:, None]
    return torch.cat([3 * (halves - 0.3), sign], dim=1)


DIGITS = data.load("digits")
TRAIN = samples(DIGITS.x_train, DIGITS.y_train)
TEST = samples(DIGITS.x_test, DIGITS.y_test)


def mean_loss(w, rows=TRAIN):
    return nn.functional.softplus(-rows[:, 2] * (rows[:, :2] @ w)).mean()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds what the book would: pages, and the files that they load."""
    folder = with_modules(tmp_path_factory.mktemp("onestep"))
    (folder / "modules").symlink_to(explorables.HERE)
    start = {"samples": TRAIN.tolist(), "test": TEST.tolist(), "provenance": "digits"}
    (folder / "bench.html").write_text(PAGE.format(in_the_book(OneStep, **start)), "utf8")
    return folder


@pytest.fixture
def visit(browser, address):
    """Opens the bench, with nothing in its storage; nothing may go wrong in the browser."""
    browser.get(f"{address}/explorables.css")
    browser.execute_script("localStorage.clear()")
    browser.get_log("browser")

    def visit(*, width=1280, theme="light", calm=False, base=address, hash_="", skip=True):
        resize(browser, width)
        emulate(browser, theme=theme)
        if calm:
            motion = {"name": "prefers-reduced-motion", "value": "reduce"}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [motion]})
        browser.get("about:blank")
        browser.get(f"{base}/bench.html{hash_}")
        browser.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
        until(browser, lambda: one(browser, ".state").text)
        if skip:
            one(browser, ".skip").click()
            until(browser, lambda: button(browser, "Step").is_enabled())

    yield visit
    assert [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


def until(browser, condition):
    return WebDriverWait(browser, TIMEOUT, poll_frequency=0.05).until(lambda _: condition())


def one(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


def button(browser, text):
    return browser.find_element(By.XPATH, f"//button[normalize-space()='{text}']")


def press(browser, text, *keys):
    """Press a button by the keyboard."""
    browser.execute_script("arguments[0].focus()", button(browser, text))
    ActionChains(browser).send_keys(*(keys or [Keys.SPACE])).perform()


def slide(browser, name, *keys):
    browser.execute_script("arguments[0].focus()", one(browser, f"[name={name}]"))
    ActionChains(browser).send_keys(*keys).perform()


def rows(browser):
    """The table that is saved: a row an update."""
    text = browser.execute_async_script("""
    const done = arguments[0], { click } = HTMLAnchorElement.prototype;
    HTMLAnchorElement.prototype.click = function () {
      HTMLAnchorElement.prototype.click = click;
      fetch(this.href).then((file) => file.text()).then(done);
    };
    document.querySelector(".data").click();""")
    head, *found = csv.reader(io.StringIO(text))
    return [dict(zip(head, map(float, row), strict=True)) for row in found]


def weights(row):
    return torch.tensor([row["w1"], row["w2"]], dtype=torch.float64)


def module(browser, address, code, *arguments):
    """What ``code`` makes of the exports ``m`` of the module and of the ``arguments``."""
    script = (
        "const done = arguments[arguments.length - 1];"
        f"import('{address}/modules/onestep.js').then((m) => {{ {code} }})"
        ".then(done, (error) => done(String(error)))"
    )
    return browser.execute_async_script(script, *arguments)


# ---- the sentence ----------------------------------------------------------------------------


def test_a_loss_that_moves_by_less_than_is_shown_stays(visit, browser, address):
    visit()
    w = module(browser, address, "return m.minimum(arguments[0]);", TRAIN.tolist())
    start = {"w1": w[0], "w2": w[1], "batch_size": len(TRAIN), "lr": 0.1}
    kept = "&".join(f"onestep.{name}={value}" for name, value in start.items())
    visit(hash_=f"#{kept}", skip=False)  # it remembers that it was skipped
    until(browser, lambda: button(browser, "Step").is_enabled())
    press(browser, "Step")
    words = r"The training loss stays at ([\d.]+); the lowest is \1\."
    assert re.search(words, one(browser, ".state").text)


# ---- the numbers -----------------------------------------------------------------------------


@pytest.mark.usefixtures("visit")
def test_the_loss_and_the_gradients_are_those_of_autograd(browser, address):
    w = torch.tensor([-2.0, 1.5], dtype=torch.float64, requires_grad=True)
    code = """const [rows, w] = arguments;
    return [m.loss(rows, w), m.gradient(rows, w), rows.map((row) => m.gradientOf(row, w)),
      m.minimum(rows), m.accuracy(rows, w)];"""
    loss, gradient, each, lowest, accuracy = module(
        browser, address, code, TRAIN.tolist(), w.tolist()
    )
    (expected,) = torch.autograd.grad(mean_loss(w), w)
    assert loss == pytest.approx(mean_loss(w).item(), rel=1e-12)
    assert gradient == pytest.approx(expected.tolist(), rel=1e-10)
    for row, found in zip(TRAIN[:20], each, strict=False):
        (own,) = torch.autograd.grad(mean_loss(w, row[None]), w)
        assert found == pytest.approx(own.tolist(), rel=1e-10)
    assert np.mean(each, axis=0) == pytest.approx(expected.tolist(), rel=1e-10)
    at = torch.tensor(lowest, dtype=torch.float64, requires_grad=True)
    (flat,) = torch.autograd.grad(mean_loss(at), at)
    assert flat.abs().max() < 1e-12
    assert np.linalg.eigvalsh(curvature.matrix(FunctionObjective(mean_loss, n_params=2), at))[0] > 0
    right = (TRAIN[:, 2] * (TRAIN[:, :2] @ w)) > 0
    assert accuracy == pytest.approx(right.double().mean().item())


@pytest.mark.usefixtures("visit")
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_epoch_is_that_of_torch(browser, address, momentum):
    code = """const [rows, settings, size, seed] = arguments;
    const order = m.batchOf(rows.map((row, i) => [...row, i]), rows.length, seed);
    let state = { w: [-2, 1], v: [0, 0] };
    for (let i = 0; i < rows.length; i += size)
      state = m.step(state, m.gradient(order.slice(i, i + size), state.w), settings);
    return [order.map((row) => row[3]), state.w];"""
    settings = {"lr": 2, "momentum": momentum}
    order, found = module(browser, address, code, TRAIN.tolist(), settings, 8, 3)
    assert sorted(order) == list(range(len(TRAIN)))
    assert order != sorted(order)
    w = torch.tensor([-2.0, 1.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], **settings)
    for batch in torch.tensor(order).split(8):
        optimizer.zero_grad()
        mean_loss(w, TRAIN[batch]).backward()
        optimizer.step()
    assert found == pytest.approx(w.tolist(), rel=1e-9)


@pytest.mark.usefixtures("visit")
@pytest.mark.parametrize(
    ("point", "words"),
    [
        (None, "The step ends at (1.000, 0.000)"),
        ((0.95, 0.05), "That is it"),
        ((3.0, 0.1), "averaged, not added"),
        ((0.3, 0.0), "too short"),
        ((-1.0, 0.0), "uphill"),
        ((0.0, 3.9), "aimed at the minimum"),
        ((0.7, 0.9), "The step ends at (1.000, 0.000)"),
    ],
)
def test_a_likely_guess_has_its_sentence(browser, address, point, words):
    code = "return m.verdict(arguments[0], { x: 1, y: 0 }, [0, 0], [0, 4]);"
    made = point and {"x": point[0], "y": point[1]}
    assert words in module(browser, address, code, made)


# ---- the bench -------------------------------------------------------------------------------


def test_nothing_runs_before_the_reader_has_guessed(visit, browser):
    visit(skip=False)
    assert not button(browser, "Step").is_enabled()
    assert not button(browser, "Run").is_enabled()
    browser.execute_script("arguments[0].focus()", one(browser, ".lecture6-predict [role=slider]"))
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT * 6).perform()
    one(browser, ".commit").click()
    until(browser, lambda: button(browser, "Step").is_enabled())
    assert one(browser, ".said").text.startswith("Your point is ")
    press(browser, "Step")
    [before, after] = rows(browser)
    truth = re.search(r"The step ends at \((.*), (.*)\)", one(browser, ".said").text)
    if truth:
        found = [float(part.replace("−", "-")) for part in truth.groups()]
        assert found == pytest.approx([after["w1"], after["w2"]], abs=6e-4)
    assert [before["w1"], before["w2"]] == [-2, 1]
    button(browser, "Guess anew").click()
    until(browser, lambda: not button(browser, "Step").is_enabled())


def test_a_step_shows_equation_1_with_its_numbers(visit, browser):
    visit()
    slide(browser, "batch_size", Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    press(browser, "Step")
    before, after = rows(browser)
    text = one(browser, ".equation").text.replace("−", "-")
    assert text.startswith("ḡ = (1/2) [(")
    pairs = [
        [float(part) for part in found.split(", ")]
        for found in re.findall(r"\(([-\d.]+, [-\d.]+)\)", text)
    ]
    first, second, mean, start, again, end = map(np.array, pairs)
    assert (first + second) / 2 == pytest.approx(mean, abs=1.1e-3)
    assert mean == pytest.approx(again)
    assert start - 2 * mean == pytest.approx(end, abs=2e-3)
    assert end == pytest.approx([after["w1"], after["w2"]], abs=6e-4)
    for row in (before, after):
        assert row["training loss"] == pytest.approx(mean_loss(weights(row)).item(), rel=1e-9)
        assert row["test loss"] == pytest.approx(mean_loss(weights(row), TEST).item(), rel=1e-9)
    state = one(browser, ".state").text
    fell = after["training loss"] < before["training loss"]
    assert f"The training loss {'fell' if fell else 'rose'} from " in state
    slide(browser, "momentum", Keys.END)
    press(browser, "Step")
    assert "v ← mv + ḡ = 0.98 · " in one(browser, ".equation").text


def test_all_samples_make_a_step_without_noise(visit, browser):
    visit()
    slide(browser, "batch_size", Keys.END)
    for _ in range(3):
        press(browser, "Step")
    assert "there is no noise" in one(browser, ".state").text
    found = [row["training loss"] for row in rows(browser)]
    assert found == sorted(found, reverse=True)
    assert [row["epoch"] for row in rows(browser)] == [0, 0, 1, 2]


def test_single_samples_raise_the_loss_again_and_again_and_all_together_never(visit, browser):
    visit(calm=True)
    for _ in range(3):
        rises = {}
        for size, end in (("one", Keys.HOME), ("all", Keys.END)):
            slide(browser, "batch_size", end)
            press(browser, "Start again")
            press(browser, "Run")
            until(browser, lambda: one(browser, ".state").text.startswith("Update "))
            until(browser, lambda: button(browser, "Run").is_displayed())
            losses = [row["training loss"] for row in rows(browser)]
            assert len(losses) > 40
            rises[size] = np.mean(np.diff(losses) > 0)
        assert rises["one"] > 0.2
        assert rises["all"] == 0
        press(browser, "Other batches")


def test_the_start_is_moved_by_keys_and_kept_in_the_address(visit, browser):
    visit()
    press(browser, "Step")
    handle = one(browser, ".handle")
    browser.execute_script("arguments[0].focus()", handle)
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_UP).perform()
    until(browser, lambda: len(rows(browser)) == 1)
    [row] = rows(browser)
    assert (row["w1"], row["w2"]) != (-2, 1)
    kept = browser.execute_script("return location.hash")
    assert f"onestep.w1={row['w1']:g}" in kept
    visit(hash_=kept, skip=False)
    [again] = rows(browser)
    assert (again["w1"], again["w2"]) == (row["w1"], row["w2"])


def test_a_run_is_seen_and_paused(visit, browser):
    visit()
    press(browser, "Run")
    until(browser, lambda: len(rows(browser)) > 5)
    assert one(browser, ".state").get_attribute("aria-live") == "off"
    press(browser, "Pause")
    until(browser, lambda: one(browser, ".state").get_attribute("aria-live") == "polite")
    n = len(rows(browser))
    press(browser, "Start again")
    assert len(rows(browser)) == 1 < n


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(visit, browser, width, theme):
    visit(width=width, theme=theme, skip=False)
    assert violations(browser) == []
    button(browser, "Skip").click()
    until(browser, lambda: button(browser, "Step").is_enabled())
    press(browser, "Step")
    assert violations(browser) == []
    assert browser.execute_script("return document.scrollingElement.scrollWidth <= innerWidth")


def test_it_works_as_a_file(visit, browser, folder):
    visit(base=folder.as_uri())
    press(browser, "Step")
    assert len(rows(browser)) == 2
