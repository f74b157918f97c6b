"""Code on the pages of the chapters: what is folded, and the switch that opens it."""

from pathlib import Path

import pytest
from browsing import THEMES, emulate, resize, violations
from selenium.webdriver.common.keys import Keys

HTML = Path(__file__).parents[2] / "_build" / "html"
PAGES = ("notebooks/00_one_step", "notebooks/06_equilibrium")
NO_STORAGE = """
Object.defineProperty(window, "localStorage", {get() { throw new Error("SecurityError"); }});
"""
CODE = """
const all = (selector) => [...document.querySelectorAll(`main ${selector}`)];
const shown = (node) => node.checkVisibility() && node.getBoundingClientRect().height > 0;
const code = all("div.cell_input pre");
return {
  label: document.querySelector(".code-switch").textContent,
  folds: all("details.hide").length,
  summaries: all("details.hide > summary").filter(shown).map((summary) => summary.innerText.trim()),
  folded: code.filter((pre) => pre.closest("details:not([open])")).length,
  open: code.filter(shown).length,
  for_machines: code.filter((pre) => /NBVAL|@title|pip install/.test(pre.textContent)).length,
  unreachable: code.filter((pre) => pre.scrollWidth > pre.clientWidth && pre.tabIndex < 0).length,
};
"""


@pytest.fixture(params=THEMES, ids=lambda width: f"{width}px")
def opened(request, browser, address):
    """A function that opens a page and returns what it shows of its code."""
    resize(browser, request.param)
    emulate(browser, theme=THEMES[request.param])
    browser.get(f"{address}/{PAGES[0]}.html")
    browser.execute_script("localStorage.clear()")

    def visit(page, root=address):
        browser.get(f"{root}/{page}.html")
        return browser.execute_script(CODE)

    return visit


def press(browser):
    """Press the switch by key; return what the page shows of its code."""
    browser.execute_script("document.querySelector('.code-switch').focus()")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    return browser.execute_script(CODE)


@pytest.mark.parametrize("page", PAGES)
def test_code_is_folded_at_first(opened, browser, page):
    code = opened(page)
    exercises = browser.execute_script("return document.querySelectorAll('.tag_exercise').length")
    assert code["label"] == "Show all code"
    assert 0 < code["open"] - exercises <= 6
    assert code["folds"] >= 5
    assert set(code["summaries"]) == {"Show code"}
    assert code["folded"] >= code["folds"]
    assert code["for_machines"] == 0


def test_the_switch_opens_all_code_and_every_page_remembers_it(opened, browser):
    for page in PAGES:
        before = opened(page)
        code = press(browser)
        assert code["label"] == "Hide code"
        assert set(code["summaries"]) == {"Hide code"}
        assert code["folded"] == 0
        assert code["open"] == before["open"] + before["folded"]
        for other in PAGES:
            assert opened(other)["folded"] == 0
        assert press(browser)["label"] == "Show all code"
        assert all(opened(other)["folded"] for other in PAGES)


def test_what_is_opened_is_accessible(opened, browser):
    opened(PAGES[0])
    press(browser)
    assert violations(browser) == []
    assert browser.execute_script(CODE)["unreachable"] == 0
    assert browser.execute_script("return document.scrollingElement.scrollWidth <= innerWidth")


def test_the_switch_works_without_storage_and_as_a_file(opened, browser):
    command = "Page.addScriptToEvaluateOnNewDocument"
    script = browser.execute_cdp_cmd(command, {"source": NO_STORAGE})
    try:
        assert opened(PAGES[0], HTML.as_uri())["folded"]
        assert press(browser)["folded"] == 0
        assert press(browser)["folded"]
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


def test_one_piece_of_code_opens_by_itself(opened, browser):
    before = opened(PAGES[0])
    browser.execute_script("document.querySelector('details.hide summary').focus()")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    code = browser.execute_script(CODE)
    assert sorted(set(code["summaries"])) == ["Hide code", "Show code"]
    assert code["open"] > before["open"]


def test_folded_code_is_not_printed_and_open_code_is(opened, browser):
    theme = THEMES[browser.execute_script("return innerWidth")]
    code = opened(PAGES[0])
    for expected in (code["open"], code["open"] + code["folded"]):
        emulate(browser, theme=theme, media="print")
        browser.execute_script("dispatchEvent(new Event('beforeprint'))")
        printed = browser.execute_script(CODE)
        browser.execute_script("dispatchEvent(new Event('afterprint'))")
        emulate(browser, theme=theme)
        assert printed["open"] == expected
        assert printed["summaries"] == []
        press(browser)
