"""What the pages never load is taken out of the built book."""

import re
import shutil
from pathlib import Path

# Of the theme and of MathJax; what stays of the latter is one bundle and what its menu may ask for.
UNUSED = (
    "locales",
    "scripts/*.map",
    "styles/*.map",
    "vendor/fontawesome/webfonts/*.ttf",
    "mathjax/*-svg*.js",
    "mathjax/*-full*.js",
    "mathjax/*mml-*.js",
    "mathjax/core.js",
    "mathjax/latest.js",
    "mathjax/loader.js",
    "mathjax/node-main.js",
    "mathjax/startup.js",
    "mathjax/adaptors",
    "mathjax/input/asciimath*",
    "mathjax/input/mml*",
    "mathjax/input/tex*.js",
    "mathjax/output/chtml.js",
    "mathjax/output/svg*",
    "mathjax/sre/mathmaps/[!be]*.json",  # speech in other languages than the book's
    "mathjax/sre/mathmaps/es.json",
)
ICON_NAME = re.compile(r"\bfa-([a-z0-9-]+)")
# "name":[width,height,["alias",…],"code point","path"]
ICON = re.compile(
    r'(?:"(?P<quoted>[\w-]+)"|(?P<bare>\w+)):'
    r'\[\d+,\d+,\[(?P<aliases>[^\]]*)\],"[0-9a-f]+",(?:"[^"]*"|\[[^\]]*\])\],?'
)


def only_icons(script, names):
    """Return Font Awesome's script with no other icons than those named."""

    def kept(icon):
        known = {icon["quoted"] or icon["bare"], *re.findall(r'"([^"]+)"', icon["aliases"])}
        return icon[0] if known & names else ""

    return ICON.sub(kept, script)


def lighten(app, exception):
    """Remove what no page loads, and the two thousand icons that no page shows."""
    if exception or app.builder.name != "html":
        return
    static = Path(app.outdir) / "_static"
    for path in {path for pattern in UNUSED for path in static.glob(pattern)}:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    icons = static / "scripts" / "fontawesome.js"
    users = [*Path(app.outdir).rglob("*.html"), *(static / "scripts").glob("*theme.js")]
    names = {name for path in users for name in ICON_NAME.findall(path.read_text("utf8"))}
    icons.write_text(only_icons(icons.read_text("utf8"), names), "utf8")


def setup(app):
    """Register what is done once the book is written."""
    app.connect("build-finished", lighten)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
