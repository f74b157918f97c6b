"""What Chromium gives a screen reader of a chapter: its accessibility tree, in its order."""

import re
from pathlib import Path

import pytest
from browsing import emulate, resize
from bs4 import BeautifulSoup
from pdf import DRAWN
from sphinx_external_toc.parsing import parse_toc_yaml

ROOT = Path(__file__).parents[2]
HTML = ROOT / "_build" / "html"
CHAPTERS = [page for page in parse_toc_yaml(ROOT / "_toc.yml") if page.startswith("notebooks/")]
FOCUSED = {"button", "link", "slider", "checkbox", "radio", "textbox", "combobox"}
UNSAID = re.compile(r"\\[(\[]|\$\S|[━╌┅●○◆◇■▬▲✚]")  # LaTeX's source, and marks of a legend


class Node:
    """What the tree says of one thing, and of what is in it."""

    def __init__(self, identifier, tree):
        known = tree[identifier]
        self.role = "" if known["ignored"] else known["role"]["value"]
        self.name = str(known.get("name", {}).get("value", "")).strip()
        self.inside = [Node(i, tree) for i in known.get("childIds", ()) if i in tree]

    def all(self, *roles):
        """The nodes of these roles, in the order in which they are read."""
        found = [self] if self.role in roles else []
        return found + [node for inner in self.inside for node in inner.all(*roles)]

    def text(self):
        return "".join(node.name for node in self.all("StaticText"))


@pytest.fixture(scope="module", params=CHAPTERS)
def chapter(request, browser, address):
    """A chapter as it is read, and the HTML of its text."""
    resize(browser, 1280)
    emulate(browser, theme="light")
    browser.set_script_timeout(300)
    browser.get(f"{address}/{request.param}.html")
    browser.execute_async_script(DRAWN)
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    root = Node(nodes[0]["nodeId"], {node["nodeId"]: node for node in nodes})
    html = BeautifulSoup((HTML / f"{request.param}.html").read_text("utf8"), "html.parser")
    return root, html.select_one("article.bd-article")


def test_all_that_takes_the_focus_has_a_name(chapter):
    root, _ = chapter
    assert root.all("slider"), "a chapter without a slider"
    assert [node.role for node in root.all(*FOCUSED) if not node.name] == []


def test_every_figure_is_a_picture_with_a_name_and_words(chapter):
    root, html = chapter
    figures = root.all("figure")
    assert len(figures) >= len(html.select("figure.plotly-figure"))
    for figure in figures:
        pictures, captions = figure.all("image"), figure.all("Figcaption")
        assert [picture.role for picture in pictures if not picture.name] == []
        if captions:
            assert captions[0].text()
            assert pictures[0].name in captions[0].text()
            summaries = [node.name for node in figure.all("DisclosureTriangle")]
            assert "About this figure" in summaries
        else:
            assert figure.all("paragraph")[0].text()
        assert figure.all("SvgRoot", "graphics-symbol") == [], "the ticks of an axis are read"


def test_the_text_is_words_in_the_order_of_the_page(chapter):
    root, html = chapter
    (article,) = root.all("article")
    read = [node.name for node in article.all("heading")]
    for link in html.select(".headerlink"):
        link.decompose()
    written = [heading.get_text().strip() for heading in html.select("h1, h2, h3")]
    assert [heading for heading in read if "\\" not in heading] == read
    plain = [heading for heading in written if "\\" not in heading]
    assert [heading for heading in read if heading in plain] == plain
    paragraphs = [node.text() for node in article.all("paragraph")]
    assert len(paragraphs) > 30
    assert [text for text in paragraphs if UNSAID.search(text)] == []
