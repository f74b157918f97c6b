"""The front page of the built book: what is seen of it at once, and where it leads."""

from pathlib import Path

import pytest
from browsing import emulate
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

HTML = Path(__file__).parents[2] / "_build" / "html"
SCREENS = {"a desk": (1280, 800, "light"), "a phone": (390, 844, "dark")}
EDGES = """
return Object.fromEntries(Object.entries(arguments[0]).map(([name, selector]) => {
  const { bottom, width } = document.querySelector(selector).getBoundingClientRect();
  return [name, { bottom, width }];
}));
"""
PARTS = {
    "challenge": ".hero strong",
    "buttons": ".hero .buttons",
    "charts": ".hero canvas",
    "text": ".hero ~ section > p",
}


def visit(browser, address, screen):
    width, height, theme = SCREENS[screen]
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    emulate(browser, theme=theme)
    browser.get(f"{address}/book/index.html")
    WebDriverWait(browser, 60).until(
        lambda _: browser.find_elements(By.CSS_SELECTOR, ".hero .buttons"), "nothing can be moved"
    )
    return height


@pytest.mark.parametrize("screen", SCREENS)
def test_the_challenge_and_what_it_asks_for_are_seen_at_once(browser, address, screen):
    height = visit(browser, address, screen)
    edges = browser.execute_script(EDGES, PARTS)
    assert all(edges[name]["bottom"] <= height for name in ("challenge", "buttons", "charts"))
    if screen == "a desk":
        assert edges["charts"]["width"] > 1.25 * edges["text"]["width"]


def test_there_are_three_ways_in(browser, address):
    visit(browser, address, "a desk")
    cards = browser.find_elements(By.CSS_SELECTOR, ".ways .sd-card")
    links = [card.find_element(By.CSS_SELECTOR, "a") for card in cards]
    assert [card.text.split()[0] for card in cards] == ["Read", "Run", "Teach"]
    targets = [link.get_attribute("href").removeprefix(address) for link in links]
    assert all((HTML / target.removeprefix("/")).exists() for target in targets)
    assert len(set(targets)) == 3
