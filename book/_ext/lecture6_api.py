"""The reference: a page for each module of the package, made from its docstrings by autodoc."""

import ast
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "book" / "api"  # written before each build; git ignores them
SECTIONS = [("Traits", "params_style")]  # beside Google's own
GOOGLE = Config(napoleon_custom_sections=SECTIONS)


def modules():
    """Return the public modules and packages in ``lecture6``: "studies.keskar", and its file."""
    found = {}
    for path in (ROOT / "lecture6").rglob("*.py"):
        parts = path.relative_to(ROOT / "lecture6").with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        if not name.rpartition(".")[2].startswith("_"):
            found[name] = path
    return dict(sorted(found.items()))


def write_pages(app, config):
    """Write the page of each module, and remove those of modules that are gone."""
    PAGES.mkdir(exist_ok=True)
    wanted = {PAGES / f"{name}.rst": name for name in modules()}
    for path in set(PAGES.iterdir()) - set(wanted):
        path.unlink()
    for path, name in wanted.items():
        text = f"{name}\n{'=' * len(name)}\n\n.. automodule:: lecture6.{name}\n"
        if not path.exists() or path.read_text("utf8") != text:  # else Sphinx would read it again
            path.write_text(text, "utf8")


def read_docstring(app, what, name, obj, options, lines):
    """Turn the sections of a docstring into reStructuredText."""
    # As attributes' docstrings, napoleon would take "N: the number" for a type and a text.
    lines[:] = GoogleDocstring(list(lines), GOOGLE, app, "object", name, obj, options).lines()


class Modules(SphinxDirective):
    """The ``modules`` directive: all modules, each with the first line of its docstring."""

    def run(self):
        lines = []
        for name, path in modules().items():
            about = ast.get_docstring(ast.parse(path.read_text("utf8"))) or ""
            first, *_ = about.splitlines() or [""]
            lines += [f"[`{name}`](api/{name}.rst)", f": {first}", ""]
        found = nodes.container()
        source = self.get_source_info()[0]
        self.state.nested_parse(StringList(lines, source=source), self.content_offset, found)
        return found.children


def load_style(app, pagename, templatename, context, doctree):
    """Let the reference pages load the style that breaks long names."""
    if pagename.startswith("book/api"):
        app.add_css_file("api.css")


def setup(app):
    """Register all; the pages must be there before Sphinx reads the table of contents."""
    app.setup_extension("sphinx.ext.autodoc")
    app.add_directive("modules", Modules)
    app.connect("config-inited", write_pages)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("html-page-context", load_style)
    return {"version": "1", "env_version": 1, "parallel_read_safe": True}
