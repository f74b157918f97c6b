"""The whole book on paper, as `make pdf` writes it."""

import re
import unicodedata
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from pypdf import PdfReader
from sphinx_external_toc.parsing import parse_toc_yaml

ROOT = Path(__file__).parents[2]
HTML, PDF = ROOT / "_build" / "html", ROOT / "_build" / "sgd.pdf"
PAGES = [page for page in parse_toc_yaml(ROOT / "_toc.yml") if page != "book/index"]
LEAST = 100  # characters of a page that is not nearly empty, some of them in its figures
LOW = 550  # points above the foot of A4 to which text comes that fills a third of a page


@pytest.fixture(scope="module")
def pdf():
    """The PDF of the book, which takes minutes to print."""
    if not PDF.exists() or PDF.stat().st_mtime < (HTML / "index.html").stat().st_mtime:
        pytest.skip("this book has not been printed: `make pdf`")
    return PdfReader(PDF)


def words(text):
    """The text with one space between words, and without ligatures."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def titles():
    """The title of each page, in the order of the contents."""
    for page in PAGES:
        soup = BeautifulSoup((HTML / f"{page}.html").read_text("utf8"), "html.parser")
        yield soup.select_one("article h1").get_text().removesuffix("#")


def test_it_has_all_pages_and_their_numbers_in_the_contents(pdf):
    numbers = {
        item.title: pdf.get_destination_page_number(item) + 1
        for item in pdf.outline
        if not isinstance(item, list)
    }
    assert [title for title in titles() if title not in numbers] == []
    assert sorted(numbers.values()) == list(numbers.values())
    texts = [words(page.extract_text()) for page in pdf.pages]
    assert "Towards Understanding SGD" in texts[0]
    first = numbers[next(titles())]
    contents = " ".join(texts[1 : first - 1])
    for title, number in numbers.items():
        assert f"{words(title)} {number} " in f"{contents} "
        assert words(title) in texts[number - 1]
    assert [text.split()[0] for text in texts[1:]] == [str(n) for n in range(2, len(texts) + 1)]


def test_its_links_lead_somewhere(pdf):
    links = [link.get_object() for page in pdf.pages for link in page.get("/Annots", ())]
    inside = {link["/Dest"] for link in links if "/Dest" in link}
    assert len(inside) > 100
    assert inside <= set(pdf.named_destinations)
    outside = {link["/A"]["/URI"] for link in links if "/URI" in link.get("/A", ())}
    assert [address for address in outside if not re.match("https?://(?!127)", address)] == []


def test_no_page_is_nearly_empty(pdf):
    starts = {pdf.get_destination_page_number(item) for item in pdf.outline if "/Page" in item}
    for number, page in enumerate(pdf.pages):
        heights = []

        def seen(text, transform, matrix, font, size, heights=heights):
            if text.strip():
                heights.append(matrix[5] * transform[3] + transform[5])

        text = page.extract_text(visitor_text=seen)
        assert len(words(text)) >= LEAST, f"page {number + 1}"
        ends = number + 1 in starts or number + 1 == len(pdf.pages)
        above_the_number = sorted(heights)[1]
        assert number == 0 or ends or above_the_number < LOW, f"page {number + 1} is empty"
