"""The buttons of a chapter: for Colab and Binder once the address of the repository is set."""

import html
import re
import runpy
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
URL = "https://github.com/owner/name"


@pytest.fixture
def pages(small_book, build):
    """A function that builds the chapters, of their install cells alone: the HTML by chapter."""

    def html_of(*address):
        cells = {}
        for path in NOTEBOOKS:
            notebook = nbformat.read(path, as_version=4)
            install = next(cell for cell in notebook.cells if "REPOSITORY = " in cell.source)
            del install.metadata["tags"]  # it is off the page
            cells[path.stem] = [install]
        root = small_book(cells)
        if address:
            set_address = runpy.run_path(str(ROOT / "book/repository.py"))["set_address"]
            set_address(*address, root=root)
        config = (root / "_config.yml").read_text("utf8")
        (root / "_config.yml").write_text(
            config.replace("execute_notebooks: cache", "execute_notebooks: off"), "utf8"
        )
        done = build(root)
        assert done.returncode == 0, done.stderr[-3000:]
        built = root / "_build/html/notebooks"
        return {p.name: (built / f"{p.stem}.html").read_text("utf8") for p in NOTEBOOKS}

    return html_of


def buttons(page):
    """Where the links of a page to Colab, to Binder and to GitHub lead."""
    links = [html.unescape(link) for link in re.findall(r'href="([^"]*)"', page)]
    return [link for link in links if re.search("colab|binder|github", link)]


def test_a_chapter_has_buttons_that_lead_to_its_notebook(pages):
    for name, page in pages(URL, "published").items():
        assert f'REPOSITORY = "{URL}"' in html.unescape(re.sub(r"<[^>]*>", "", page))
        assert sorted(buttons(page)) == [
            f"https://colab.research.google.com/github/owner/name/blob/published/notebooks/{name}",
            f"https://mybinder.org/v2/gh/owner/name/published?urlpath=lab/tree/notebooks/{name}",
        ]


def test_without_an_address_there_is_no_dead_button(pages):
    config = (ROOT / "_config.yml").read_text("utf8")
    if '\n  url: ""\n' not in config:
        pytest.skip("this copy has an address")
    for page in pages().values():
        assert buttons(page) == []
        assert "footer" in page
        assert "CC BY 4.0" in page
