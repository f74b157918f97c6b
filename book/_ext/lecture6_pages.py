"""What the book's pages collect: times of chapters, records of stored studies, citations."""

import json
import re
from datetime import date
from html import escape
from pathlib import Path

import nbformat
from docutils import nodes
from docutils.statemachine import StringList
from myst_nb.ext.execution_tables import METADATA_KEY
from myst_nb.sphinx_ import NbMetadataCollector
from pybtex.database import parse_file
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
CITED = re.compile(
    r"(?P<author>(?:al\.|\b[A-Z]\w+)(?:\*\*|'s)?\s)?\[\[\d+\]\]\(\S+?/abs/(?P<id>[\d.]+)\)"
)
ESTIMATE = re.compile(r"\btakes ([\w -]+?) on two CPU cores\b")
logger = logging.getLogger(__name__)


def cite(app, docname, content):
    """Turn a chapter's links to papers, “[[1]](https://arxiv.org/abs/…)”, into citations.

    A notebook has links, which work anywhere; the book, a bibliography. After the name of an author
    only the year is cited.
    """
    if not docname.startswith("notebooks/"):
        return
    entries = parse_file(ROOT / "book" / "references.bib").entries.items()
    keys = {entry.fields.get("eprint"): key for key, entry in entries}

    def citation(match):
        if match["id"] not in keys:
            logger.warning("references.bib has no entry with eprint %s", match["id"])
        role = f"{{cite:{'yearpar' if match['author'] else 'p'}}}"
        return f"{match['author'] or ''}{role}`{keys.get(match['id'])}`"

    notebook = json.loads(content[0])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = CITED.sub(citation, "".join(cell["source"]))
    content[0] = json.dumps(notebook)


def chapters():
    """Return the notebooks, one a chapter, in order."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def time_estimate(path):
    """Return what a chapter's introduction says of the time that it takes: "about a minute".

    Raises:
        ValueError: it says nothing, or says it twice.
    """
    first = next(c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
    found = ESTIMATE.findall(" ".join(first.source.split()))
    if len(found) != 1:
        raise ValueError(
            f"{path.name}: the introduction must say once that the chapter "
            f"“takes … on two CPU cores”, and does {len(found)} times"
        )
    return found[0]


class ChapterTimesNode(nodes.General, nodes.Element):
    """Where the table of times goes once every chapter has been executed."""


class ChapterTimes(SphinxDirective):
    """The ``chapter-times`` directive: what each chapter says that it takes, and what it took."""

    def run(self):
        # myst-nb writes a page with this mark again whenever a notebook was executed.
        NbMetadataCollector.set_doc_data(self.env, self.env.docname, METADATA_KEY, True)
        return [ChapterTimesNode()]


def table(head, rows):
    """Return the HTML of a table, in the theme's markup: one that is too wide scrolls."""

    def line(cells, tag):
        return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return (
        '<div class="pst-scrollable-table-container"><table class="table">'
        f"<thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table></div>"
    )


def fill_times(app, doctree, docname):
    """Put the table where the directive stands."""
    executed = NbMetadataCollector.get_doc_data(app.env)
    for place in list(doctree.findall(ChapterTimesNode)):
        rows = []
        for path in chapters():
            page = f"notebooks/{path.stem}"
            uri = app.builder.get_relative_uri(docname, page)
            title = escape(app.env.titles[page].astext())
            link = f'<a href="{uri}">{title}</a>'
            last = executed.get(page, {}).get("exec_data") or {}
            took, on = last.get("runtime"), last.get("mtime")
            took = f"{took:.0f} s" if took else "–"
            on = date.fromtimestamp(on).isoformat() if on else "–"
            on = f'<span class="text-nowrap">{on}</span>'
            rows.append([link, time_estimate(path), took, on])
        html = table(["Chapter", "Takes", "Took here", "On"], rows)
        place.replace_self(nodes.raw("", html, format="html"))


def records():
    """Return the files that say how each stored study was computed."""
    return sorted((ROOT / "lecture6" / "studies" / "results").glob("*.json"))


def shown_in(study):
    """Return the chapters that load a stored study."""
    call = re.compile(rf"results\.load\(\s*['\"]{study}['\"]")
    cells = {path: nbformat.read(path, as_version=4).cells for path in chapters()}
    return [path for path, found in cells.items() if any(call.search(c.source) for c in found)]


def plural(n, noun):
    """Return a number and what is counted: "1 thread", "2 threads"."""
    return f"{n} {noun}{'s' * (n != 1)}"


def described(record):
    """Return what a study's record says, as MyST text under a name each."""
    done, of = record["trials"]
    users = shown_in(record["study"])
    threads = " or ".join(plural(n, "thread") for n in record["threads"])
    data = [f"`{name}`, SHA-256 {digest[:12]}…" for name, digest in record["data"].items()]
    libraries = [f"{name} {' and '.join(seen)}" for name, seen in record["libraries"].items()]
    tables = [f"`{t['file']}`, SHA-256 {t['sha256'][:12]}…" for t in record["tables"].values()]
    return {
        "Shown in": ", ".join(f"[](../notebooks/{path.name})" for path in users) or "no chapter",
        "Profile": f"`{record['profile']}`",
        "Trials": f"{done:,} of {of:,}",
        "Time": f"{record['seconds'] / 3600:.1f} hours, summed over the trials",
        "Data": "; ".join(data) or "none",
        "Seeds": ", ".join(map(str, record["seeds"])) or "none",
        "Device": f"{', '.join(record['device'])}, {threads} a trial",
        "Date": " to ".join(dict.fromkeys(record["date"])),
        "Code": ", ".join(record["code"]),
        "Libraries": ", ".join(libraries),
        "Tables": "; ".join(tables),
        "Converted": record.get("converted", "no"),
        "Notes": record["notes"],
    }


class StoredStudies(SphinxDirective):
    """The ``stored-studies`` directive: the record of each stored study, a section for each."""

    def run(self):
        for path in [*records(), *chapters()]:
            self.env.note_dependency(str(path))
        return [self.section(json.loads(path.read_text("utf8"))) for path in records()]

    def section(self, record):
        """Return a section with a list of what a record says."""
        study, fields = record["study"], nodes.field_list()
        for name, text in described(record).items():
            body = nodes.field_body()
            source = self.get_source_info()[0]
            self.state.nested_parse(StringList([text], source=source), self.content_offset, body)
            fields += nodes.field("", nodes.field_name("", name), body)
        title = nodes.title("", "", nodes.Text("Study "), nodes.literal("", study))
        return nodes.section("", title, fields, ids=[f"study-{study}"])


def setup(app):
    """Register the directives."""
    app.add_node(ChapterTimesNode)
    app.add_directive("chapter-times", ChapterTimes)
    app.add_directive("stored-studies", StoredStudies)
    app.connect("source-read", cite)
    app.connect("doctree-resolved", fill_times)
    return {"version": "1", "env_version": 1, "parallel_read_safe": True}
