"""The scorecard, made of three chapters' claims, and its filters in a browser."""

import re

import lecture6_scorecard
import pytest
from browsing import resize
from bs4 import BeautifulSoup
from conftest import ROOT
from docutils import nodes
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from lecture6.course.verdicts import Claim, claims_table, interval

PAGES = ["notebooks/00_one", "notebooks/03_two", "notebooks/06_ten"]
TITLES = {page: nodes.title("", f"{int(page[10:12])} Noise & {page[-3:]}") for page in PAGES}


def claims(n):
    found = interval([1, 1.1, 1.2])
    return [
        Claim("Large is sharper", "Keskar, Table 3", "167 times", found, run="stored study"),
        Claim("… by far", "Keskar, §2", "–", found, than=n),
        Claim("Noise is white", "(17)", "0", bool(n), varies="exact"),
        Claim("Rates may be large", "asked here", "–", None),
    ]


TABLES = {page: [claims_table(claims(n)).data] for n, page in enumerate(PAGES)}
SHOWN = """
return [...document.querySelectorAll("table.claims tr[id]")].filter((row) => row.checkVisibility())
  .map(({id}) => id);
"""


@pytest.fixture(scope="module")
def html():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LECTURE6_PROFILE", "book")
        return lecture6_scorecard.scorecard(TABLES, TITLES, lambda page: f"../{page}.html")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, html):
    folder = tmp_path_factory.mktemp("scorecard")
    for name in ("book.css", "scorecard.js"):
        (folder / name).write_text((ROOT / "book/_static" / name).read_text("utf8"), "utf8")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += '<link rel="stylesheet" href="book.css"><script defer src="scorecard.js"></script>'
    page = f'<!doctype html><head>{head}</head><main class="bd-article">{html}</main>'
    (folder / "scorecard.html").write_text(page, "utf8")
    return folder


@pytest.fixture(params=["http", "file"])
def open_page(request, browser, address, folder):
    """A function that opens the scorecard, from a server or from a file."""
    where = address if request.param == "http" else folder.as_uri()

    def go(rest="", width=1280):
        resize(browser, width)
        browser.get("about:blank")
        browser.get(f"{where}/scorecard.html{rest}")
        return browser

    return go


def choose(browser, name, text):
    Select(browser.find_element(By.NAME, name)).select_by_visible_text(text)


def test_without_a_script_all_claims_are_there_and_no_filter(html):
    page = BeautifulSoup(html, "html.parser")
    assert page.form.has_attr("hidden")
    assert page.p.string == "12 claims:"
    assert not page.select("tr[hidden], tbody[hidden]")
    assert len(page.select("tr[id]")) == 12
    assert len(page.select("table")) == 1
    counts = [" ".join(li.get_text().split()) for li in page.select("ul.verdicts li")]
    assert counts == ["✓ holds: 6", "✗ does not hold: 2", "? cannot tell: 4"]


def test_a_claim_can_be_cited_and_leads_to_the_row_below_its_cell(html):
    page = BeautifulSoup(html, "html.parser")
    names = [row["id"] for row in page.select("tr[id]")]
    assert len(set(names)) == 12
    assert names[4:6] == ["ch3-large-is-sharper", "ch3-large-is-sharper-by-far"]
    for row in page.select("tr[id]"):
        claim, cite = row.select("th a")
        chapter, _, name = claim["href"].removeprefix("../").partition(".html#")
        assert f'id="{name}"' in TABLES[chapter][0]
        assert cite["href"] == f"#{row['id']}"
        assert cite["aria-label"]
    by_far = page.select("tr[id]")[5]
    assert by_far.th.get_text().startswith("Large is sharper … by far #")
    assert not by_far.select("[hidden]"), "a row that stands alone says what it goes on from"


def test_the_scorecard_says_where_a_claim_was_computed(html):
    computed = re.findall(r"<i>Computed</i> <span>(.*?)</span>", html)
    assert computed == ["stored, full", "live, book", "live, book", "live, book"] * 3


@pytest.mark.parametrize(
    ("source", "whose"),
    [
        ("Keskar, Table 3", "Keskar"),
        ("Zhu et al.", "Zhu"),
        ("Smith & Le, Fig. 7", "Smith & Le"),
        ("(9), (10)", "the lecture"),
        ("§3.3", "the lecture"),
        ("Figure 10a", "the lecture"),
        ("lecture, equations", "the lecture"),
        ("asked here", "this course"),
        ("our (26)", "this course"),
    ],
)
def test_whose_claim_it_is(source, whose):
    assert lecture6_scorecard.whose(source) == whose


def test_filters_show_what_is_chosen_and_the_address_keeps_it(open_page):
    browser = open_page()
    assert len(browser.execute_script(SHOWN)) == 12
    choose(browser, "chapter", "3 Noise & two")
    choose(browser, "source", "Keskar, 6")
    assert browser.execute_script(SHOWN) == ["ch3-large-is-sharper", "ch3-large-is-sharper-by-far"]
    assert browser.find_element(By.TAG_NAME, "output").text == "2 of 12 claims"
    heads = browser.find_elements(By.CSS_SELECTOR, "[scope=rowgroup]")
    assert [head.is_displayed() for head in heads] == [False, True, False]
    address = browser.current_url
    browser = open_page(f"?{address.partition('?')[2]}")
    assert len(browser.execute_script(SHOWN)) == 2
    browser.find_element(By.CSS_SELECTOR, "form button").click()
    assert len(browser.execute_script(SHOWN)) == 12
    assert "?" not in browser.current_url


def test_filters_work_by_keys(open_page):
    browser = open_page()
    field = browser.find_element(By.NAME, "verdict")
    field.send_keys("d")  # as in "does not hold"
    assert browser.execute_script(SHOWN) == ["ch0-noise-is-white", "ch6-large-is-sharper-by-far"]


def test_a_claim_that_is_linked_to_is_shown_whatever_is_chosen(open_page):
    browser = open_page("?verdict=cannot+tell&chapter=6#ch3-noise-is-white")
    assert browser.execute_script(SHOWN) == ["ch3-noise-is-white", "ch6-rates-may-be-large"]
    row = open_page("#ch6-rates-may-be-large").find_element(By.ID, "ch6-rates-may-be-large")
    top, height = browser.execute_script(
        "return [arguments[0].getBoundingClientRect().top, innerHeight]", row
    )
    assert 0 < top < height


def test_an_address_that_asks_for_what_there_is_not_shows_all(open_page):
    assert len(open_page("?verdict=perhaps&other=1").execute_script(SHOWN)) == 12


def test_on_a_phone_a_row_is_a_card_with_verdict_and_claim_first(open_page):
    browser = open_page(width=390)
    assert browser.execute_script("return document.scrollingElement.scrollWidth <= innerWidth")
    row = browser.find_element(By.ID, "ch3-large-is-sharper-by-far")
    tops = [cell.rect["y"] for cell in row.find_elements(By.XPATH, "*")]
    assert tops == sorted(set(tops)), "one below another"
    assert row.text.split("\n")[0] == "? cannot tell"
    assert "by far" in row.text.split("\n")[1]
