"""Numbers, minutes, terms and keys of the rendered book, in a browser that has no network."""

import importlib
import itertools
import re
from pathlib import Path

import pytest
from browsing import emulate, resize
from bs4 import BeautifulSoup
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from sphinx_external_toc.parsing import parse_toc_yaml

ROOT = Path(__file__).parents[2]
HTML = ROOT / "_build" / "html"
PAGES = list(parse_toc_yaml(ROOT / "_toc.yml"))
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]
TIMEOUT = 60  # seconds for a page to be typeset


@pytest.fixture
def visit(browser, address):
    """A function that opens a page of the book, typeset, at the width of a desk."""

    def open_page(page):
        resize(browser, 1280)
        emulate(browser, theme="light")
        browser.get(f"{address}/{page}.html")
        typeset = (
            "return !document.querySelector('.math') || !!document.querySelector('mjx-container')"
        )
        WebDriverWait(browser, TIMEOUT).until(lambda _: browser.execute_script(typeset))

    return open_page


def page_of(name):
    return (HTML / f"{name}.html").read_text("utf8")


@pytest.mark.parametrize(
    ("term", "text"),
    [
        ("Epoch", "epochs"),
        ("Mini-batch", "Mini-batches"),
        ("Flat minimum", "flat minima"),
        ("Rademacher complexity", "Rademacher complexities"),
        ("SAM", "SAM"),
        ("Kramers' formula", "Kramers’ formula"),
    ],
)
def test_a_term_is_known_in_its_inflections(term, text):
    pattern = importlib.import_module("lecture6_navigation").pattern(term)
    assert re.fullmatch(pattern, text)


def test_an_acronym_is_no_common_word():
    assert not re.fullmatch(importlib.import_module("lecture6_navigation").pattern("SAM"), "sam")


@pytest.mark.parametrize("page", CHAPTERS)
def test_a_chapter_has_its_number_its_minutes_and_each_term_once(address, page):
    html, number = page_of(page), int(page.partition("/")[2][:2])
    assert f"<title>{number} " in html
    assert f"<h1>{number}\u2002" in html
    numbers = re.findall(r'href="(?:#|\d\d_\w+\.html)">\s*(\d)\u2002', html)
    assert sorted({*numbers}) == [str(n) for n in range(len(CHAPTERS))]  # in the sidebar
    assert re.search(r'class="minutes">About \d+ minutes to read, and \d+ for the exercises', html)
    links = re.findall(r'<a class="term reference internal" href="([^"]+)#([^"]+)"', html)
    assert len(links) == len(set(links)) >= 5
    for file, name in links:
        assert f'id="{name}"' in page_of(f"notebooks/{file.removesuffix('.html')}")
        assert f'id="tip-{name}" role="tooltip" hidden>' in html


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_one_heading_of_the_first_level_and_skips_none(address, page):
    article = page_of(page).partition("<article")[2].partition("</article>")[0]
    levels = [int(level) for level in re.findall(r"<h([1-6])[ >]", article)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize("page", ["book/index", *PAGES])
def test_every_footer_leads_to_the_accessibility_page(address, page):
    link = re.search(
        r'extra_footer">.*?<a href="([^"]*)">Accessibility</a>', page_of(page), re.DOTALL
    )
    target = (HTML / f"{page}.html").parent / link[1] if link[1] != "#" else HTML / f"{page}.html"
    assert target.exists()


def test_a_term_is_shown_on_focus_and_on_hover_and_escape_closes_it(visit, browser):
    visit("notebooks/05_noise_scale")
    browser.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
    link, other = browser.find_elements(By.CSS_SELECTOR, "a.term")[:2]
    tip = browser.find_element(By.ID, link.get_attribute("aria-describedby"))
    assert not tip.is_displayed()
    browser.execute_script("arguments[0].focus({focusVisible: true})", link)
    assert "gradients make one step" in tip.text
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert not tip.is_displayed()
    ActionChains(browser).move_to_element(other).perform()
    shown = browser.find_element(By.ID, other.get_attribute("aria-describedby"))
    assert shown.is_displayed()
    ActionChains(browser).move_to_element(shown).perform()
    assert shown.is_displayed()


def test_a_key_goes_from_figure_to_figure(visit, browser):
    visit("notebooks/03_batch_size")
    minutes = browser.find_element(By.CLASS_NAME, "minutes").get_attribute("textContent")
    assert "Page Down goes to the next figure" in minutes
    figures = """return [...document.querySelectorAll('main article figure')]
      .filter((node) => node.checkVisibility()).indexOf(document.activeElement)"""
    for key, at in [("PAGE_DOWN", 0), ("PAGE_DOWN", 1), ("PAGE_DOWN", 2), ("PAGE_UP", 1)]:
        press = ActionChains(browser).key_down(Keys.ALT).send_keys(getattr(Keys, key))
        press.key_up(Keys.ALT).perform()
        assert browser.execute_script(figures) == at


@pytest.mark.parametrize("width", [1280, 390])
def test_only_an_equation_that_scrolls_is_a_stop_of_the_tab_key(visit, browser, width):
    visit("notebooks/00_one_step")
    resize(browser, width)
    count = "return [...document.querySelectorAll('mjx-container{}')].filter((e) => {}).length"
    stops = count.format("", "e.tabIndex === 0")
    wide = count.format("[display=true]", "e.scrollWidth > e.clientWidth")
    assert (browser.execute_script(wide) > 0) == (width == 390)
    until = WebDriverWait(browser, 10).until
    until(lambda _: browser.execute_script(stops) == browser.execute_script(wide))


@pytest.mark.parametrize(
    ("words", "page"),
    [("Whose statistics", "3\u2002"), ("capacity bound", "1\u2002")],
    ids=["an exercise", "a section"],
)
def test_the_search_shows_chapters_with_their_numbers(browser, address, words, page):
    browser.get(f"{address}/search.html?q={words.replace(' ', '+')}")
    WebDriverWait(browser, TIMEOUT).until(
        lambda _: any(
            link.get_attribute("textContent").startswith(page)
            for link in browser.find_elements(By.CSS_SELECTOR, "#search-results li a")
        )
    )


@pytest.mark.parametrize("page", CHAPTERS)
def test_figures_have_numbers_that_can_be_cited(address, page):
    chapter = int(page.split("/")[1][:2])
    soup = BeautifulSoup(page_of(page), "html.parser")
    figures = soup.select("main figure:is(.plotly-figure, .explorable)")
    figures = [f for f in figures if '"module": "prediction"' not in f.script.string]
    assert len(figures) > 2
    for k, figure in enumerate(figures, 1):
        [number] = figure.select("a.number")
        assert number.string == f"Figure {chapter}.{k}"
        assert number["href"] == f"#{figure['id']}" == f"#figure-{chapter}-{k}"


def test_the_title_stands_above_the_figure_and_its_run_folds_out(visit, browser):
    visit(CHAPTERS[1])
    figure = browser.find_element(By.CSS_SELECTOR, "figure.plotly-figure")
    caption, plot, run = (
        figure.find_element(By.CSS_SELECTOR, part) for part in ("figcaption", ".plot", ".subtitle")
    )
    assert caption.rect["y"] + caption.rect["height"] <= plot.rect["y"]
    assert not run.is_displayed()
    figure.find_element(By.TAG_NAME, "summary").click()
    assert "profile" in run.text
