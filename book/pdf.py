"""The whole book as one PDF, printed by headless Chromium: `python book/pdf.py HTML PDF`.

HTML is the folder of the rendered book. Its pages are put one after another into one, whose links
lead to places in it, and which comes with a title page and numbered contents.
"""

import base64
import shutil
import sys
import tempfile
from html import escape
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

from bs4 import BeautifulSoup
from pypdf import PdfReader, PdfWriter
from selenium import webdriver

STYLE = Path(__file__).with_suffix(".css")
START = "book/index"  # its text is on the title page
REFERENCE = "book/api"  # it has no chapters: one module follows another
REFERRING = {"for", "aria-labelledby", "aria-describedby", "aria-controls"}
UNPRINTED = ".headerlink, .term-tip, .hero, .sd-container-fluid"
SCRIPTS = ("window.MathJax", "mathjax", "explorables.js", "paper.js")
TIMEOUT = 1200  # seconds for all figures to be drawn, and for the book to be printed
# Draws one figure after another, skips the predictions, and waits for the equations.
DRAWN = """
const done = arguments[0], pause = () => new Promise((go) => setTimeout(go, 20));
(async () => {
  await MathJax.startup.promise;
  for (const figure of document.querySelectorAll("figure:is(.plotly-figure, .explorable)")) {
    const part = figure.matches(".explorable") ? "canvas, .lecture6-predict" : "[aria-busy=false]";
    figure.scrollIntoView();
    while (figure.checkVisibility() && !figure.querySelector(part)) await pause();
    for (const skip of figure.querySelectorAll(".lecture6-predict .skip")) skip.click();
  }
  done();
})();
"""
# Writes the numbers of the pages into the contents, which have room for them.
NUMBERED = """
for (const line of document.querySelectorAll(".pages li"))
  line.lastChild.textContent = arguments[0][decodeURIComponent(line.firstChild.hash.slice(1))];
"""


def pages(html):
    """Return the pages by their names, in the order of the contents."""

    def read(name):
        return BeautifulSoup((html / f"{name}.html").read_text("utf8"), "html.parser")

    start = read(START)
    links = [link["href"] for link in start.select(".bd-links a.reference.internal")]
    names = [urljoin(START, link).removesuffix(".html") for link in links if link != "#"]
    return {START: start} | {name: read(name) for name in names}


def place(name, identifier=""):
    """Return the id in the whole of a page, or of what has an id on it."""
    return f"{name}:{identifier}" if identifier else name


def article(soups, name, html):
    """Return what a page says, with the ids and the links of the whole."""
    part = soups[name].select_one("article.bd-article")
    for node in part.select(UNPRINTED):
        node.decompose()
    for node in part.find_all(True):
        for key in REFERRING & set(node.attrs):
            node[key] = " ".join(place(name, word) for word in node[key].split())
        if "src" in node.attrs:
            node["src"] = urljoin(f"{html.as_uri()}/{name}", node["src"])
        if "href" not in node.attrs:
            continue
        address, fragment = urldefrag(urljoin(f"{name}.html", node["href"]))
        target = address.removesuffix(".html")
        if target in soups:
            node["href"] = f"#{place(target, unquote(fragment))}"
        elif ":" not in address:
            del node["href"]  # a file beside the pages
    for node in part.select("[id]"):
        node["id"] = place(name, node["id"])
    part.h1["id"] = name  # not the section: its heading may be on the page after
    part["class"] += ["follows"] * name.startswith(f"{REFERENCE}/")
    return part


def headings(parts):
    """Return what the contents have: level, place and text of each heading down to sections."""
    found = []
    for part in parts[1:]:
        for heading in part.select("h1, h2"):
            level = "page" if heading.name == "h1" else "part"
            if level == "page" or not part.h1["id"].startswith(REFERENCE):
                heading["id"] = heading.get("id", f"{heading.parent['id']}:title")
                found.append((level, heading["id"], heading.get_text()))
    return found


def whole(soups, html):
    """Return the HTML of the whole, and its headings; the contents have no numbers yet."""
    head = soups[list(soups)[1]].head
    loaded = head.select("link[rel=stylesheet]")
    loaded += [node for node in head("script") if any(name in str(node) for name in SCRIPTS)]
    for node in loaded:
        for key in {"href", "src"} & set(node.attrs):
            node[key] = urljoin(f"{html.as_uri()}/book/", node[key])
    parts = [article(soups, name, html) for name in soups]
    there = {node["id"] for part in parts for node in part.select("[id]")}
    for link in (link for part in parts for link in part.select("a[href^='#']")):
        if link["href"][1:] not in there:  # as the state of an explorable
            link["href"] = link["href"].partition(":")[0]
    found = headings(parts)
    lines = (
        f'<li class="{level}"><a href="#{at}">{escape(text)}</a><span></span></li>'
        for level, at, text in found
    )
    title, *rest = map(str, parts)
    text = (
        '<!doctype html><html lang="en" data-theme="light"><meta charset="utf-8">'
        f"<title>{soups[START].h1.get_text()}</title>{''.join(map(str, loaded))}"
        f"<style>{STYLE.read_text('utf8')}</style><main class='bd-content'>{title}"
        f"<nav class='pages'><h1>Contents</h1><ol>{''.join(lines)}</ol></nav>{''.join(rest)}"
        "</main></html>"
    )
    return text, found


def chromium():
    """Return headless Chromium that waits as long as a book takes."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
    for argument in ("--headless", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_script_timeout(TIMEOUT)
    driver.command_executor.client_config.timeout = TIMEOUT
    return driver


def printed(driver, pdf):
    """Print the page that is open into a file, and return the numbers of its places."""
    wanted = {"preferCSSPageSize": True, "printBackground": True}
    pdf.write_bytes(base64.b64decode(driver.execute_cdp_cmd("Page.printToPDF", wanted)["data"]))
    reader = PdfReader(pdf)
    return {
        unquote(name.removeprefix("/")): reader.get_destination_page_number(to) + 1
        for name, to in reader.named_destinations.items()
    }


def outline(pdf, found, numbers):
    """Write the headings into a PDF: Chromium's own outline has some of them twice in a line."""
    writer, page = PdfWriter(clone_from=pdf), None
    for level, at, text in found:
        above = page if level == "part" else None
        item = writer.add_outline_item(title=text, page_number=numbers[at] - 1, parent=above)
        page = item if level == "page" else page
    writer.write(pdf)


def write(html, pdf):
    """Print the book, and then once more with the numbers of its pages in the contents."""
    text, found = whole(pages(html), html)
    driver = chromium()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "whole.html"
        page.write_text(text, "utf8")
        try:
            driver.get(page.as_uri())
            driver.execute_async_script(DRAWN)
            driver.execute_script(NUMBERED, printed(driver, pdf))
            numbers = printed(driver, pdf)
        finally:
            driver.quit()
    outline(pdf, found, numbers)


if __name__ == "__main__":
    write(*(Path(argument).resolve() for argument in sys.argv[1:]))
