"""The reference pages of the rendered book name everything public, and fit a phone."""

import importlib
import inspect
import pkgutil
import re
import runpy
from functools import cached_property
from pathlib import Path

import pytest
from browsing import THEMES, emulate, resize, violations

import lecture6

ROOT = Path(__file__).parents[2]
HTML = ROOT / "_build" / "html"
MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(lecture6.__path__, "lecture6.")
    if not name.rpartition(".")[2].startswith("_")
]

each_module = pytest.mark.parametrize("module", MODULES)


def page_of(module):
    page = HTML / "book/api" / f"{module.removeprefix('lecture6.')}.html"
    if not page.exists():
        pytest.fail(f"there is no {page}: build the book with `make book`", pytrace=False)
    return page


def public(module):
    """The functions and classes that a module defines, each followed by its methods."""
    for name, thing in vars(importlib.import_module(module)).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module:
            continue
        if inspect.isfunction(thing) or inspect.isclass(thing):
            yield f"{module}.{name}", thing
        if inspect.isclass(thing):
            for inner, method in vars(thing).items():
                if not inner.startswith("_") and (
                    inspect.isfunction(method) or isinstance(method, property | cached_property)
                ):
                    yield f"{module}.{name}.{inner}", getattr(thing, inner)


@each_module
def test_everything_public_is_on_the_page(module):
    html = page_of(module).read_text("utf8")
    anchors = set(re.findall(r'id="(lecture6\.[\w.]+)"', html))
    assert [name for name, _ in public(module) if name not in anchors] == []
    assert "system-message" not in html
    assert 'class="problematic"' not in html


@each_module
def test_every_module_function_and_class_says_what_it_is(module):
    assert inspect.getdoc(importlib.import_module(module))
    silent = [name for name, thing in public(module) if not inspect.getdoc(thing)]
    assert [name for name in silent if name.count(".") == module.count(".") + 1] == []


@each_module
def test_a_page_is_light_fits_and_is_accessible(browser, address, module):
    page = page_of(module)
    assert page.stat().st_size <= 1.5e6
    browser.get_log("browser")
    for width, theme in THEMES.items():
        resize(browser, width)
        emulate(browser, theme=theme)
        browser.get(f"{address}/book/api/{page.name}")
        assert browser.execute_script("return document.scrollingElement.scrollWidth <= innerWidth")
        assert violations(browser) == []
    assert [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


def test_the_list_of_modules_is_complete():
    html = (HTML / "book/api.html").read_text("utf8")
    links = [f'href="api/{module.removeprefix("lecture6.")}.html"' for module in MODULES]
    assert [link for link in links if link not in html] == []


def test_a_new_module_gets_a_page_and_an_old_one_loses_it(tmp_path, monkeypatch):
    extension = runpy.run_path(str(ROOT / "book/_ext/lecture6_api.py"))
    write, pages = extension["write_pages"], tmp_path / "api"
    for name, value in {"ROOT": tmp_path, "PAGES": pages}.items():
        monkeypatch.setitem(write.__globals__, name, value)
    (tmp_path / "lecture6/studies").mkdir(parents=True)
    for name in ("__init__", "__main__", "old", "studies/__init__", "studies/new", "_hidden"):
        (tmp_path / f"lecture6/{name}.py").write_text('"""A module."""\n')
    write(None, None)
    names = ["old.rst", "studies.new.rst", "studies.rst"]
    assert sorted(path.name for path in pages.iterdir()) == names
    assert ".. automodule:: lecture6.studies.new\n" in (pages / "studies.new.rst").read_text()
    (tmp_path / "lecture6/old.py").unlink()
    write(None, None)
    assert sorted(path.name for path in pages.iterdir()) == names[1:]
