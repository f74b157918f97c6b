"""The scorecard: the claims of all chapters in one table, which a reader can count and filter."""

import os
import re
from collections import Counter
from html import escape

from bs4 import BeautifulSoup
from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from lecture6.course.verdicts import MARKS

CLAIMS = re.compile(r'<table[^>]*\bclass="(?:[^"]* )?claims[ "]')
LECTURE = re.compile(r"lecture|[(§]|Figure|Table")  # how a source starts that names no authors
logger = logging.getLogger(__name__)


class ScorecardNode(nodes.General, nodes.Element):
    """Where the claims of all chapters go once every page has been read."""


class Scorecard(SphinxDirective):
    """The ``scorecard`` directive: the claims of all chapters, in one table."""

    def run(self):
        self.env.scorecard_pages.add(self.env.docname)
        return [ScorecardNode()]


def init(app):
    """Give a fresh environment the two collections that are kept between builds."""
    if not hasattr(app.env, "claims"):
        app.env.claims = {}  # page -> HTML of its claims tables
        app.env.scorecard_pages = set()


def forget(app, env, docname):
    """Drop what a page contributed before it is read again or removed."""
    env.claims.pop(docname, None)
    env.scorecard_pages.discard(docname)


def collect(app, doctree):
    """Keep the claims tables of the page just read."""
    tables = [node.astext() for node in doctree.findall(nodes.raw) if CLAIMS.search(node.astext())]
    if tables:
        app.env.claims[app.env.docname] = tables


def outdated_scorecards(app, env):
    """Write the scorecard again in every build: any chapter may have changed its claims."""
    return sorted(env.scorecard_pages)


def whose(source):
    """Return who makes a claim: the authors of a paper, the lecture, or this course."""
    if LECTURE.match(source):
        return "the lecture"
    return re.split(r",| et al", source)[0] if source[0].isupper() else "this course"


def adopt(soup, row, chapter, uri):
    """Make a row of a chapter one of the scorecard: with a name to cite and a link to its cell."""
    there = f"{uri}#{row['id']}"  # the row in the chapter stands below the cell that computes it
    row["id"] = row["id"].replace("claim", f"ch{chapter}", 1)
    row["data-chapter"] = chapter
    row["data-verdict"] = row.select_one(".verdict span").string
    row["data-source"] = whose(row.select_one(".source").string)
    stem, claim = row.th.find_all("span", recursive=False)
    del stem["hidden"]
    claim.wrap(soup.new_tag("a", href=there))
    cite = {"class": "cite", "href": f"#{row['id']}", "aria-label": "Link to this claim"}
    claim.parent.insert_after(" ", soup.new_tag("a", attrs=cite, string="#"))
    computed = {
        "this page": f"live, {os.environ['LECTURE6_PROFILE']}",  # this page is another one here
        "stored study": "stored, full",
    }
    for words in row.find_all("span", string=list(computed)):
        words.string = computed[words.string]


def strip(verdicts):
    """Return a strip of the counts of the verdicts, and below it each with its mark and word."""
    given = {verdict: verdict.replace(" ", "-") for verdict in MARKS if verdict in verdicts}
    parts = (
        f'<div class="{name}" style="flex-grow: {verdicts[verdict]}"></div>'
        for verdict, name in given.items()
    )
    counts = (
        f'<li class="{name}"><b aria-hidden="true">{MARKS[verdict]}</b> {verdict}: '
        f"{verdicts[verdict]}</li>"
        for verdict, name in given.items()
    )
    return (
        f'<div class="verdicts" aria-hidden="true">{"".join(parts)}</div>'
        f'<ul class="verdicts">{"".join(counts)}</ul>'
    )


def choice(name, options):
    """Return a field of the form that filters: ``options`` is what it may be, and its words."""
    listed = (f'<option value="{escape(str(k))}">{escape(v)}</option>' for k, v in options.items())
    return (
        f'<label>{name.capitalize()} <select name="{name}"><option value="">all</option>'
        f"{''.join(listed)}</select></label>"
    )


def scorecard(claims, titles, uri):
    """Return the HTML: counts, a form that filters, which its script shows, and one table.

    Args:
        claims: the HTML of the tables of each page.
        titles: the title of each page.
        uri: a function that returns the address of a page.
    """
    soup = BeautifulSoup("".join(claims[min(claims)]), "html.parser")
    head, bodies, chapters = f"{soup.caption}{soup.thead}", [], {}
    verdicts, sources = Counter(), Counter()
    for page, tables in sorted(claims.items()):
        soup = BeautifulSoup("".join(tables), "html.parser")
        chapter, title = int(page.rpartition("/")[2][:2]), titles[page].astext()
        chapters[chapter] = title  # with its number
        for row in (rows := soup.select("tbody tr")):
            adopt(soup, row, chapter, uri(page))
            verdicts[row["data-verdict"]] += 1
            sources[row["data-source"]] += 1
        link = f'<a href="{uri(page)}#what-we-checked">{escape(chapters[chapter])}</a>'
        name = f'<tr><th colspan="4" scope="rowgroup">{link}</th></tr>'
        bodies.append(f"<tbody>{name}{''.join(map(str, rows))}</tbody>")
    fields = {
        "chapter": chapters,
        "verdict": {v: f"{v}, {verdicts[v]}" for v in MARKS if v in verdicts},
        "source": {s: f"{s}, {sources[s]}" for s in sorted(sources, key=str.lower)},
    }
    # The wrappers are those of a notebook's output: a wide table scrolls, by keys too.
    return (
        f"<p>{verdicts.total()} claims:</p>{strip(verdicts)}"
        f'<form class="claims" hidden>{"".join(choice(*field) for field in fields.items())}'
        '<button type="button">Show all</button> <output></output></form>'
        '<div class="cell_output"><div class="output text_html">'
        f'<table class="claims">{head}{"".join(bodies)}</table></div></div>'
    )


def fill_scorecard(app, doctree, docname):
    """Put the scorecard where the directive stands."""
    for place in list(doctree.findall(ScorecardNode)):
        if app.env.claims:
            html = scorecard(
                app.env.claims,
                app.env.titles,
                lambda page: app.builder.get_relative_uri(docname, page),
            )
            place.replace_self(nodes.raw("", html, format="html"))
        else:
            logger.warning(
                "the scorecard is empty: no page shows a table of claims", location=place
            )
            place.parent.remove(place)


def load_script(app, pagename, templatename, context, doctree):
    """Let the page with the scorecard load what filters it."""
    if pagename in app.env.scorecard_pages:
        app.add_js_file("scorecard.js", loading_method="defer")


def setup(app):
    """Register the directive."""
    app.add_node(ScorecardNode)
    app.add_directive("scorecard", Scorecard)
    app.connect("builder-inited", init)
    app.connect("env-purge-doc", forget)
    app.connect("doctree-read", collect)
    app.connect("env-updated", outdated_scorecards)
    app.connect("doctree-resolved", fill_scorecard)
    app.connect("html-page-context", load_script)
    return {"version": "1", "env_version": 1, "parallel_read_safe": False}
