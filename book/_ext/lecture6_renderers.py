"""How a page shows figures and explorables: two plug-ins of myst-nb, and a directive.

myst-nb knows plug-ins by the entry points of what is installed, and a folder ``*.dist-info`` on the
path counts. The one beside this file names these two; in the package they would take over the
figures of every other book of the same environment.
"""

import hashlib
import json
import re
from html import escape
from pathlib import Path
from types import SimpleNamespace

import yaml
from docutils import nodes
from lecture6_plotly import KINDS
from sphinx.util.docutils import SphinxDirective

from lecture6.course import explorables

UNREAD = re.compile(r"^\s*//.*\n|^\s+| +// [^\"`\n]*$", re.MULTILINE)  # comments, indentation
# Spaces beside punctuation, and around operators that are not next to a sign.
SPACES = re.compile(r" ?([][{}(),;:?=<>&|!]) ?| ([-+*]) (?=[\w([])")


def script(content):
    """Return a script element that holds ``content`` as JSON."""
    # "<" is escaped so that no text in it can end the element.
    text = json.dumps(content).replace("<", "\\u003c")
    return f'<script type="application/json">{text}</script>'


def tightened(text):
    """Return a JavaScript module without comments, indentation and spaces that mean nothing.

    Spaces go on lines where all is code.
    """
    lines, in_template = [], False
    for line in UNREAD.sub("", text).split("\n"):
        is_code = not in_template and not re.search(r"[\"'`/]", line)
        lines.append(SPACES.sub(r"\1\2", line) if is_code else line)
        in_template ^= line.count("`") % 2 == 1
    return "\n".join(lines)


def write_modules(folder):
    """Write the modules of all explorables into a folder, each as a script holding its text.

    Pages share them; and a page that is opened as a file may load a script, but import no module.
    """
    for path in explorables.HERE.glob("*.js"):
        if "export default" in path.read_text("utf8"):
            content = json.dumps([path.stem, tightened(explorables.bundle(path.name))])
            (folder / path.name).write_text(f"lecture6Module(...{content});\n", "utf8")


def figure_html(figure, start):
    """Return a figure of the book: what Plotly draws, with its words, as `explorer.js` takes it.

    The title, which says what the figure shows, stands above it; what folds out below are the text
    of `layout.meta["description"]` and the subtitle, which run it shows. ``start`` holds what the
    module is started with.

    Raises:
        ValueError: the figure has no title or no text description, or is of a kind that the book's
            part of Plotly cannot draw.
    """
    if unknown := {trace.get("type", "scatter") for trace in figure["data"]} - KINDS:
        raise ValueError(f"book/_ext/lecture6_plotly.py does not keep {', '.join(unknown)}")
    layout = figure["layout"]
    heading = layout.get("title", {})
    title, description = heading.get("text"), layout.get("meta", {}).get("description")
    if not title or not description:
        raise ValueError(
            f"the figure {title!r} needs a title (its caption in the book) and a text "
            "description: set layout.title.text and layout.meta['description']"
        )
    run = heading.get("subtitle", {}).get("text", "")
    return (
        '<figure class="plotly-figure">'
        f'<figcaption><span class="title">{escape(title)}</span></figcaption>'
        f'<div class="plot" role="img" aria-label="{escape(title)}" '
        f'aria-busy="true" style="min-height: {layout.get("height", 450)}px"></div>'
        "<details><summary>About this figure</summary>"
        f'<p class="description">{escape(description)}</p>'
        f'<p class="subtitle">{escape(run)}</p></details>'
        f"{script({'module': 'explorer', 'start': start})}</figure>"
    )


def single_html(figure):
    """Return a figure of the book that has no controls."""
    figure = {key: figure[key] for key in ("data", "layout")}
    return figure_html(figure, {"controls": [], "at": [], "figure": figure})


class BookFigure:
    """Renders a Plotly output of a notebook as a figure of the book."""

    mime_priority_overrides = (("*", "application/vnd.plotly.v1+json", 1),)

    @staticmethod
    def handle_mime(renderer, data, inline):
        """Return the docutils nodes of one output, or None for a mime type that is not Plotly's."""
        if data.mime_type != "application/vnd.plotly.v1+json":
            return None
        return [nodes.raw("", single_html(data.content), format="html")]


class BookExplorable:
    """Renders the output of an explorable as a figure of the book.

    The page gets the name of the module and the start values; `book/_static/explorables.js` runs
    it.
    """

    mime_priority_overrides = (("*", explorables.MIME_TYPE, 1),)

    @staticmethod
    def handle_mime(renderer, data, inline):
        """Return the docutils nodes of one output, or None for another mime type."""
        if data.mime_type != explorables.MIME_TYPE:
            return None
        module, start = data.content["module"], dict(data.content["start"])
        figure, answer = start.pop("figure", None), ""
        if module == "explorer":  # a figure among the page's others
            return [nodes.raw("", figure_html(figure, start), format="html")]
        if figure:  # which `prediction.js` closes until the reader has guessed
            summary = "<summary>The answer</summary>"
            answer = f'<details class="answer" open>{summary}{single_html(figure)}</details>'
        html = (
            f'<figure class="explorable"><div>{escape(data.content["about"])}</div>'
            f"{script({'module': module, 'start': start})}</figure>{answer}"
        )
        return [nodes.raw("", html, format="html")]


class Explorable(SphinxDirective):
    """The ``explorable`` directive: a class of lecture6.course.explorables, and in YAML its start.

    It puts one on a page that is not a notebook.
    """

    required_arguments = 1
    has_content = True

    def run(self):
        start = yaml.safe_load("\n".join(self.content)) or {}
        widget = getattr(explorables, self.arguments[0])(**start)
        ((mime_type, content), _) = widget._repr_mimebundle_().items()
        output = SimpleNamespace(mime_type=mime_type, content=content)
        return BookExplorable.handle_mime(None, output, inline=False)


def setup(app):
    """Register the directive; a change in this file makes Sphinx read every page again."""
    app.add_directive("explorable", Explorable)
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return {"version": "1", "env_version": digest, "parallel_read_safe": True}
