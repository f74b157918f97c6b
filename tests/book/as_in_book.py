"""Widgets as a page of the book has them, without a build of the book."""

import json
from types import SimpleNamespace

import pytest
from lecture6_renderers import BookExplorable, write_modules

from lecture6.course import explorables

STATIC = explorables.HERE.parents[2] / "book" / "_static"


def html_of(plugin, mime_type, content):
    """What a plug-in of the book makes of the output of a cell."""
    output = SimpleNamespace(mime_type=mime_type, content=json.loads(json.dumps(content)))
    (node,) = plugin.handle_mime(None, output, inline=False)
    return node.astext()


def in_the_book(make, **start):
    """The HTML of the widget ``make(**start)`` in the book."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LECTURE6_STATIC", "1")
        content = make(**start)._repr_mimebundle_()[explorables.MIME_TYPE]
    return html_of(BookExplorable, explorables.MIME_TYPE, content)


def with_modules(folder):
    """``folder``, with the files that a page with explorables loads."""
    (folder / "explorables").mkdir()
    write_modules(folder / "explorables")
    for path in (STATIC / "explorables.js", explorables.HERE / "explorables.css"):
        (folder / path.name).symlink_to(path)
    return folder
