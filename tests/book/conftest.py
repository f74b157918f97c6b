"""The fixtures that the tests of pages share."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from browsing import chromium, served
from sphinx_external_toc.parsing import parse_toc_yaml

ROOT = Path(__file__).parents[2]
HTML = ROOT / "_build" / "html"
sys.path[:0] = [str(ROOT / "book" / "_ext"), str(ROOT / "book")]  # as Sphinx has it; `pdf`, `serve`
TOC = "format: jb-book\nroot: book/index\nchapters:\n"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium that has no network."""
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(scope="module")
def folder():
    """The built book; a module may have a folder of its own."""
    pages = parse_toc_yaml(ROOT / "_toc.yml")
    missing = [page for page in pages if not (HTML / f"{page}.html").exists()]
    if missing:
        pytest.fail(f"the book in {HTML} lacks {missing}: build it with `make book`", pytrace=False)
    return HTML


@pytest.fixture(scope="module")
def address(folder):
    """Where a server has what is in ``folder``."""
    with served(folder) as address:
        yield address


@pytest.fixture
def small_book(tmp_path):
    """A function that writes a book like this one, of other notebooks, and returns its folder."""

    def write(notebooks):
        root = tmp_path / "small_book"
        for name in ("lecture6", "book/_ext", "book/_static", "book/_extra"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, root / name, ignore=ignored)
        for name in ("_config.yml", "requirements.lock", "book/references.bib"):
            shutil.copy(ROOT / name, root / name)
        (root / "book/index.md").write_text("# Contents\n")
        (root / "notebooks").mkdir()
        for name, cells in notebooks.items():
            title = nbformat.v4.new_markdown_cell(f"# {name}")
            notebook = nbformat.v4.new_notebook(cells=[title, *cells])
            nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")
        entries = (f"  - file: notebooks/{name}\n" for name in notebooks)
        (root / "_toc.yml").write_text(TOC + "".join(entries))
        return root

    return write


@pytest.fixture(scope="session")
def build():
    """A function that builds the book in a folder, and returns the completed process."""

    def run(root):
        command = [Path(sys.executable).with_name("jupyter-book"), "build", str(root)]
        return subprocess.run(command, capture_output=True, text=True, cwd=root)

    return run
