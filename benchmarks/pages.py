"""When each chapter of the built book is there: its first paint, and its first figure.

`_build/html` is served on this machine, uncompressed, to a window as wide as a phone. It needs
Chromium and its driver.
"""

import json
import sys
import tempfile
from pathlib import Path

from selenium.webdriver.support.ui import WebDriverWait

sys.path.append(str(Path(__file__).parents[1] / "tests" / "book"))
from browsing import chromium, resize, served

BOOK = Path(__file__).parents[1] / "_build" / "html"
TIMEOUT = 60  # seconds
FIGURE = "figure.plotly-figure:not(details.answer *) .plot"  # an answer waits for a guess
# A figure is drawn when it comes near; when the first one is, the page itself notes.
WATCH = f"""
addEventListener("DOMContentLoaded", () => document.querySelector("{FIGURE}")?.scrollIntoView());
new MutationObserver((_, observer) => {{
  if (document.querySelector("{FIGURE}")?.ariaBusy !== "false") return;
  window.firstFigure = performance.now() / 1000;
  observer.disconnect();
}}).observe(document, {{subtree: true, childList: true, attributes: true}});
"""
READY = f"""
const paint = performance.getEntriesByName("first-contentful-paint")[0];
return document.readyState === "complete" && paint
  && (window.firstFigure || !document.querySelector("{FIGURE}"))
  && [paint.startTime / 1000, window.firstFigure ?? null];
"""


def measured(browser, address):
    """Return the bytes of a page, the seconds to its first paint and to its first figure."""
    browser.get("about:blank")
    browser.execute_cdp_cmd("Network.clearBrowserCache", {})
    browser.get_log("performance")
    browser.get(address)
    wait = WebDriverWait(browser, TIMEOUT, poll_frequency=0.1)
    paint, figure = wait.until(lambda _: browser.execute_script(READY), address)
    messages = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    moved = sum(
        message["params"]["encodedDataLength"]
        for message in messages
        if message["method"] == "Network.loadingFinished"
    )
    return moved, paint, figure


def main():
    pages = ["book/index.html", *(f"notebooks/{p.name}" for p in BOOK.glob("notebooks/*.html"))]
    print(f"{'page':26} {'MB':>5} {'first paint, s':>15} {'first figure, s':>16}")
    with (
        tempfile.TemporaryDirectory() as folder,
        chromium(Path(folder) / "profile") as browser,
        served(BOOK) as address,
    ):
        resize(browser, 390)
        browser.execute_cdp_cmd("Network.enable", {})
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
        for page in sorted(pages):
            moved, paint, figure = measured(browser, f"{address}/{page}")
            drawn = "none" if figure is None else f"{figure:.2f}"
            print(f"{Path(page).stem:26} {moved / 1e6:5.2f} {paint:15.2f} {drawn:>16}")


if __name__ == "__main__":
    main()
