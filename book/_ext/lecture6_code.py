"""How much of a chapter's code is on its page: what is folded has one place a figure, and a switch.

The roles of the cells are in their tags, which myst-nb knows (CONTRIBUTING.md says which).
"""

import hashlib
import re
from pathlib import Path

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode

FOR_TOOLS = re.compile(r"^# (NBVAL_CHECK_OUTPUT|@title .*)\n", re.MULTILINE)


def part(cell, name):
    """The source or the output of a cell, or None."""
    return next((p for p in cell if p.get("nb_element") == f"cell_code_{name}"), None)


def gather(app, doctree):
    """Drop the comments for tools; fold a cell without output together with the one after it."""
    cells = [c for c in doctree.findall(nodes.container) if c.get("nb_element") == "cell_code"]
    for cell in cells:
        source = part(cell, "source") or ()
        for code in source:
            code.rawsource = FOR_TOOLS.sub("", code.astext())
            code[:] = [nodes.Text(code.rawsource)]
        after = cell.next_node(descend=False, siblings=True)
        both = [c.get("hide_mode") for c in (cell, after) if isinstance(c, nodes.container)]
        if both == ["input", "input"] and not part(cell, "output"):
            part(after, "source")[:0] = source.children
            cell.parent.remove(cell)


def open_fold(self, node):
    """Write the start of a fold. myst-nb's own has a name that is not the text one sees."""
    self.body.append(
        '<details class="hide"><summary><span class="collapsed">Show code</span>'
        '<span class="expanded">Hide code</span></summary>\n'
    )


def close_fold(self, node):
    """Write the end of a fold."""
    self.body.append("</details>\n")


def add_switch(app, pagename, templatename, context, doctree):
    """Let a page with folded code load the switch that opens all of it."""
    if '<details class="hide">' in context.get("body", ""):
        app.add_js_file("code.js", loading_method="defer")


def setup(app):
    """Register the extension; a change in this file makes Sphinx read every page again."""
    app.setup_extension("myst_nb")
    app.add_node(HideCodeCellNode, override=True, html=(open_fold, close_fold))
    app.connect("doctree-read", gather)
    app.connect("html-page-context", add_switch)
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return {"version": "1", "env_version": digest, "parallel_read_safe": True}
