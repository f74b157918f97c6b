"""What each chapter of the built book moves, and when it is there, over a slow connection.

The folder of a book, `_build/html` if none is named, is served by `book/serve.py`; Chromium's own
emulation slows the network and the processor. Bytes are those of the network, compressed. It needs
Chromium and its driver.
"""

import argparse
import json
import sys
import tempfile
import threading
from pathlib import Path

from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / folder) for folder in ("tests/book", "book")]
from browsing import chromium, resize  # noqa: E402
from serve import server  # noqa: E402

NETWORK = {"offline": False, "latency": 150, "downloadThroughput": 200_000}  # 1.6 Mbit/s
SLOWER = 6
TIMEOUT = 240
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
    wait = WebDriverWait(browser, TIMEOUT, poll_frequency=0.5)
    paint, figure = wait.until(lambda _: browser.execute_script(READY), address)
    messages = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    moved = sum(
        message["params"]["encodedDataLength"]
        for message in messages
        if message["method"] == "Network.loadingFinished"
    )
    return moved, paint, figure


def main():
    """Print a line for each chapter, and the size of the whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "_build" / "html")
    folder = parser.parse_args().folder
    pages = [folder / "book" / "index.html", *sorted((folder / "notebooks").glob("*.html"))]
    files = [path for path in folder.rglob("*") if path.is_file()]
    print(f"site: {sum(path.stat().st_size for path in files) / 1e6:.1f} MB, {len(files)} files")
    print(f"{'page':24} {'MB':>5} {'first paint, s':>15} {'first figure, s':>16}")
    with (
        tempfile.TemporaryDirectory() as profile,
        chromium(profile) as browser,
        server(folder) as at,
    ):
        threading.Thread(target=at.serve_forever, daemon=True).start()
        resize(browser, 390)
        browser.execute_cdp_cmd("Network.enable", {})
        browser.execute_cdp_cmd(
            "Network.emulateNetworkConditions", {**NETWORK, "uploadThroughput": -1}
        )
        browser.execute_cdp_cmd("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
        for page in pages:
            address = f"http://127.0.0.1:{at.server_port}/{page.relative_to(folder)}"
            moved, paint, figure = measured(browser, address)
            drawn = "none" if figure is None else f"{figure:.1f}"
            print(f"{page.stem:24} {moved / 1e6:5.2f} {paint:15.1f} {drawn:>16}", flush=True)
        at.shutdown()


if __name__ == "__main__":
    main()
