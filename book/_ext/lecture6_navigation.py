"""How one finds one's way: numbers and minutes of chapters, terms and symbols at their first use.

The glossary and the table of notation are the only sources. In each chapter the first use of a term
or a symbol leads there, and what it means is on the page too, for `book/_static/navigation.js` to
show on hover and on focus.
"""

import re
from itertools import chain

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.transforms import SphinxTransform

GLOSSARY, NOTATION, ACCESS = "book/glossary", "book/notation", "book/accessibility"
WORDS_A_MINUTE = 150
FIGURE, CELL = 1, 0.5  # minutes to look at a figure, and to read the code of an open cell
SENTENCE = re.compile(r"[.?!](?=\s|$)")
FOLDED = "tag_hide-input"
EXERCISE = re.compile(r"\((\d+) minutes\)$")
# A figure up to where its number goes; a prediction's text follows its tag, too.
DRAWN = re.compile(
    r'<figure( class="plotly-figure"><figcaption>| class="explorable">(?!<div>A prediction:))'
)
CHAPTER = re.compile(r"ch\.\s(\d)")
# What stays as it is: headings, links, code, displayed mathematics and what figures say.
CLOSED = (nodes.title, nodes.reference, nodes.literal, nodes.raw, nodes.math_block, nodes.caption)


def chapter_number(docname):
    """Return the number of a chapter, or None for another page."""
    found = re.match(r"notebooks/0*(\d+)_", docname)
    return int(found[1]) if found else None


class NumberChapter(SphinxTransform):
    """Puts a chapter's number into its title, which the sidebar, the search and links repeat."""

    default_priority = 500

    def apply(self):
        number = chapter_number(self.env.docname)
        if number is None:
            return
        next(self.document.findall(nodes.title)).insert(0, nodes.Text(f"{number}\u2002"))
        for source in (GLOSSARY, NOTATION):
            self.env.note_dependency(self.env.doc2path(source))


def tables(document):
    """Return the tables of the notation: those of symbols, and last that of ambiguous letters."""
    return list(document.findall(nodes.table))


def rows(table):
    """Return the rows of a table below its head."""
    return list(table.next_node(nodes.tbody).findall(nodes.row))


def symbols(row):
    """Return the symbols of a row as they stand in the source."""
    return [math.astext() for math in row[0].findall(nodes.math)]


class NumberFigures(SphinxTransform):
    """Gives each figure of a chapter, drawn or computed in the page, a number and an address.

    A prediction has none: the figure with its answer has.
    """

    default_priority = 500

    def apply(self):
        chapter, count = chapter_number(self.env.docname), 0

        def numbered(found):
            nonlocal count
            count += 1
            name = f"figure-{chapter}-{count}"
            label = f'<a class="number" href="#{name}">Figure {chapter}.{count}</a> '
            return f'<figure id="{name}"{found[1]}{label}'

        if chapter is not None:
            for html in self.document.findall(nodes.raw):
                html[:] = [nodes.Text(DRAWN.sub(numbered, html.astext()))]


class NameSymbols(SphinxTransform):
    """Gives each row of the notation an address."""

    default_priority = 500

    def apply(self):
        if self.env.docname == NOTATION:
            for row in chain.from_iterable(map(rows, tables(self.document)[:-1])):
                name = nodes.make_id("symbol-" + "-".join(symbols(row)))
                taken = sum(other.startswith(name) for other in self.document.ids)
                row["ids"].append(f"{name}-{taken}" if taken else name)
                self.document.ids[row["ids"][0]] = row


def pattern(term):
    """Return an expression for a term and its plural in running text."""
    words = re.sub("['’]", "['’]", re.sub("[ -]", r"[\\s-]", term))
    if term[1:2].islower():  # the capital is the glossary's, not that of an acronym
        words = f"[{words[0]}{words[0].lower()}]{words[1:]}"
    for end, plural in {"um": "a", "y": "ies"}.items():
        if words.endswith(end):
            return rf"{words.removesuffix(end)}(?:{end}|{plural})"
    return rf"{words}(?:e?s)?"


def first_sentence(paragraph):
    """Return the text and the mathematics of a paragraph up to its first full stop."""
    sentence = nodes.inline()
    for child in paragraph:
        if isinstance(child, nodes.Text) and (end := SENTENCE.search(child)):
            sentence += nodes.Text(child[: end.end()])
            break
        sentence += child.deepcopy()
    return sentence


def glossary_terms(env):
    """Return the glossary: for each term its address, its entry's number and its meaning."""
    document = env.get_doctree(GLOSSARY)
    return {
        term.astext(): (term["ids"][0], i, first_sentence(item.next_node(nodes.paragraph)))
        for i, item in enumerate(document.findall(nodes.definition_list_item))
        for term in item.findall(nodes.term)
    }


def meaning(row):
    """Return what a row of the notation says of its symbols: “η: learning rate, in …”."""
    said = nodes.inline()
    for i, math in enumerate(row[0].findall(nodes.math)):
        said += [nodes.Text(", " if i else ""), math.deepcopy()]
    said += [nodes.Text(": "), *row[1].next_node(nodes.paragraph).deepcopy().children]
    if row[2].astext():
        said += [nodes.Text(", in "), *row[2].next_node(nodes.paragraph).deepcopy().children]
    said += nodes.Text(".")
    return said


def chapter_symbols(env, number):
    """Return the symbols that mean one thing in a chapter: for each its address and its meaning.

    That is where the row of the symbol says that the chapter defines it, and in the chapters
    after it if no other row and not the table of letters has another meaning.
    """
    *known, letters = tables(env.get_doctree(NOTATION))
    known = list(chain.from_iterable(map(rows, known)))
    ambiguous = set(chain.from_iterable(map(symbols, rows(letters))))
    found = {}
    for symbol in set(chain.from_iterable(map(symbols, known))):
        having = [row for row in known if symbol in symbols(row)]
        defined = [int(n) for row in having for n in CHAPTER.findall(row[4].astext())]
        here = [row for row in having if str(number) in CHAPTER.findall(row[4].astext())]
        if len(having) == 1 and symbol not in ambiguous and min(defined, default=0) <= number:
            here = having
        if len(here) == 1:
            found[symbol] = (here[0]["ids"][0], meaning(here[0]))
    return found


def prose(document):
    """Return the pieces of running text of a chapter: its words, and its inline mathematics."""

    def is_open(node):
        while node := node.parent:
            if isinstance(node, CLOSED) or "cell" in node.get("classes", ()):
                return False
        return True

    pieces = [*document.findall(lambda node: isinstance(node, (nodes.Text, nodes.math)))]
    return [p for p in pieces if not isinstance(p.parent, nodes.math) and is_open(p)]


def linked(text, words, entries, uri, tips):
    """Return the nodes of a text in which the first use of each entry leads to the glossary."""
    parts, end = [], 0
    for match in words.finditer(text):
        name, i, said = entries[match.lastindex - 1]
        if i in tips:
            continue
        tips[i] = (name, said)
        link = nodes.reference("", match[0], refuri=f"{uri}#{name}", internal=True)
        link["classes"].append("term")
        parts += [nodes.Text(text[end : match.start()]), link]
        end = match.end()
    return [*parts, nodes.Text(text[end:])]


def link_terms(app, doctree, docname):
    """Let the first use of each term and symbol in a chapter lead to what it means."""
    number = chapter_number(docname)
    if number is None or not {GLOSSARY, NOTATION} <= app.env.found_docs:
        return  # a part of the book may be built without them
    terms = sorted(glossary_terms(app.env).items(), key=lambda item: -len(item[0]))
    words = "|".join(f"({pattern(term)})" for term, _ in terms)
    words = re.compile(rf"(?<![\w-])(?:{words})(?![\w-])")
    entries, known = [entry for _, entry in terms], chapter_symbols(app.env, number)
    to_glossary, to_notation = (
        app.builder.get_relative_uri(docname, page) for page in (GLOSSARY, NOTATION)
    )
    tips = {}  # entry or address -> address, meaning
    for piece in prose(doctree):
        if isinstance(piece, nodes.Text):
            parts = linked(piece, words, entries, to_glossary, tips)
            # Texts that read alike are equal: the place of this one is found by what it is.
            at = next(i for i, child in enumerate(piece.parent.children) if child is piece)
            piece.parent[at : at + 1] = parts
        elif piece.astext() in known and known[piece.astext()][0] not in tips:
            name, said = known[piece.astext()]
            tips[name] = (name, said)
            link = nodes.reference("", "", refuri=f"{to_notation}#{name}", internal=True)
            link["classes"].append("term")
            piece.replace_self(link)  # which becomes its parent below
            link += piece
    doctree["tips"] = dict(tips.values())


def reading_time(document):
    """Return the minutes to read a chapter: its words, its figures and its open cells."""
    pieces = prose(document)
    words = sum(len(p.split()) if isinstance(p, nodes.Text) else 1 for p in pieces)
    figures = sum(node.astext().count("<figure") for node in document.findall(nodes.raw))
    cells = sum(
        "cell_input" in node["classes"] and FOLDED not in node.parent["classes"]
        for node in document.findall(nodes.container)
    )
    return words / WORDS_A_MINUTE + FIGURE * figures + CELL * cells


def show_minutes(app, doctree, docname):
    """Say at the top of a chapter how long it takes to read, and how long it ran."""
    if chapter_number(docname) is None:
        return
    title = next(doctree.findall(nodes.title))
    minutes = 5 * max(1, round(reading_time(doctree) / 5))
    says = f"About {minutes} minutes to read"
    exercises = [EXERCISE.search(t.astext()) for t in doctree.findall(nodes.title)]
    if total := sum(int(found[1]) for found in exercises if found):
        says += f", and {total} for the exercises"
    executed = NbMetadataCollector.get_doc_data(app.env).get(docname, {}).get("exec_data") or {}
    if executed.get("runtime"):
        says += f". Executed in {executed['runtime']:.0f} s when this page was built"
    line = nodes.paragraph("", f"{says}.", classes=["minutes"])
    title.parent.insert(title.parent.index(title) + 1, line)


def finish_page(app, pagename, templatename, context, doctree):
    """Put the meanings of a chapter's terms on its page, and a link into every page's footer."""
    if ACCESS in app.env.found_docs:
        link = f'<a href="{context["pathto"](ACCESS)}">Accessibility</a>'
        context["theme_extra_footer"] += f" {link}"
    if not doctree or "tips" not in doctree:
        return
    tips = (
        f'<div class="term-tip" id="tip-{name}" role="tooltip" hidden>'
        f"{app.builder.render_partial(said)['fragment']}</div>"
        for name, said in doctree["tips"].items()
    )
    context["body"] += "".join(tips)


def setup(app):
    """Register the transforms and what is done with a page that is complete."""
    app.add_transform(NumberChapter)
    app.add_transform(NameSymbols)
    app.add_transform(NumberFigures)
    app.connect("doctree-resolved", show_minutes)  # of words that are no links yet
    app.connect("doctree-resolved", link_terms)
    app.connect("html-page-context", finish_page)
    app.add_js_file("navigation.js", loading_method="defer")
    return {"version": "1", "env_version": 1, "parallel_read_safe": True}
