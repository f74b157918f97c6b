"""The pages beside the chapters are complete, and their links lead somewhere. No book is needed."""

import html
import importlib
import inspect
import json
import re
import runpy
from functools import cache
from pathlib import Path

import nbformat
import pytest
from markdown_it.renderer import RendererHTML
from markdown_it.tree import SyntaxTreeNode
from myst_parser.config.main import MdParserConfig
from myst_parser.mdit_to_docutils.base import compute_unique_slug
from myst_parser.parsers.mdit import create_md_parser
from pybtex.database import parse_file
from sphinx_external_toc.parsing import parse_toc_yaml

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "book"
PAGES = sorted(BOOK.glob("*.md"))
TOC = list(parse_toc_yaml(ROOT / "_toc.yml"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TIMES = {"less than a minute", "about a minute", "a minute and a half"}  # a chapter has 90 s
PARSER = create_md_parser(MdParserConfig(enable_extensions={"dollarmath"}), RendererHTML)
LINK = re.compile(r"\[[^][]*\]\(([^()\s]+)\)")
TARGET = re.compile(r"^\(([\w-]+)\)=$", re.MULTILINE)

each_chapter = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def extension():
    return runpy.run_path(str(BOOK / "_ext/lecture6_pages.py"))


def text_of(name):
    return (BOOK / name).read_text("utf8")


@cache
def sections(path):
    """What follows each heading of a page or chapter up to the next, with the code, by anchor."""
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, as_version=4).cells
    else:
        cells = [nbformat.v4.new_markdown_cell(path.read_text("utf8"))]
    found, anchor = {}, None
    for cell in cells:
        starts = {}
        if cell.cell_type == "markdown":
            for node in SyntaxTreeNode(PARSER.parse(cell.source)).walk():
                if node.type == "heading" and node.tag in ("h1", "h2", "h3"):
                    starts[node.map[0]] = compute_unique_slug(node, [*found, *starts.values()])
        for number, line in enumerate(cell.source.splitlines()):
            anchor = starts.get(number, anchor)
            found[anchor] = f"{found.get(anchor, '')}{line}\n"
    return found


def rows(text):
    """The rows of all Markdown tables in a text, without their heads, cell by cell."""
    tables = re.findall(r"^\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    lines = html.unescape("".join(tables)).replace("\xa0", " ").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def ends(text):
    """Where the links of a page in ``book`` lead: pairs of a file and an anchor, or ""."""
    for target in LINK.findall(text):
        name, _, anchor = target.partition("#")
        if not target.startswith("http"):
            yield (BOOK / name).resolve() if name else None, anchor


def broken(text):
    """The links of a page in ``book`` that lead nowhere."""
    targets = {name for page in PAGES for name in TARGET.findall(page.read_text("utf8"))}
    return [
        (path, anchor)
        for path, anchor in ends(text)
        if (anchor not in targets if path is None else not path.is_file())
        or (path and anchor and anchor not in sections(path))
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page):
    assert broken(page.read_text("utf8")) == []


def test_a_link_that_leads_nowhere_is_found():
    chapter = f"../notebooks/{NOTEBOOKS[0].name}"
    bad = ["no-page.md", "map.md#no-section", "#no-target", f"{chapter}#no-section"]
    assert len(broken(" ".join(f"[]({target})" for target in bad))) == len(bad)
    assert broken(f"[]({chapter}#exercises) [](map.md) [](#e1)") == []


def test_every_page_and_chapter_is_in_the_contents():
    files = {str(path.relative_to(ROOT).with_suffix("")) for path in [*PAGES, *NOTEBOOKS]}
    assert set(TOC) | {"book/index"} == files


def test_the_front_page_has_something_to_move():
    assert "```{explorable} Walkers" in text_of("index.md")


@each_chapter
def test_the_front_page_leads_to_each_chapter(path):
    chapters = text_of("index.md").partition("## The chapters")[2]
    assert chapters.count(f":link: ../notebooks/{path.stem}\n") == 1


# ---- citations -------------------------------------------------------------------------------

PAPERS = {e.fields.get("eprint") for e in parse_file(BOOK / "references.bib").entries.values()}
NUMBERED_LINK = re.compile(r"\[\[\d+\]\]\(https://arxiv\.org/abs/[\d.]+\)")


@each_chapter
def test_a_chapter_refers_only_to_papers_of_the_bibliography(path):
    referred = re.findall(r"arxiv\.org/abs/([\d.]+)", path.read_text("utf8"))
    assert referred
    assert sorted(set(referred) - PAPERS) == []


@pytest.mark.parametrize(
    ("before", "paper", "cited"),
    [
        ("Keskar et al.\n", "1609.04836", "{cite:yearpar}`keskar2016`"),
        ("**Hoffer et al.** ", "1705.08741", "{cite:yearpar}`hoffer2017`"),
        ("Zhu et al.'s ", "1803.00195", "{cite:yearpar}`zhu2018`"),
        ("Smith & Le ", "1710.06451", "{cite:yearpar}`smith2017bayesian`"),
        ("its output ", "1703.04933", "{cite:p}`dinh2017`"),
        ("(ASAM, ", "2102.11600", "{cite:p}`kwon2021`"),
    ],
)
def test_a_link_to_a_paper_becomes_a_citation(extension, before, paper, cited):
    link = f"[[1]](https://arxiv.org/abs/{paper})"
    cell = nbformat.v4.new_markdown_cell(f"{before}{link}: more")
    content = [nbformat.writes(nbformat.v4.new_notebook(cells=[cell]))]
    extension["cite"](None, "notebooks/07_new", content)
    (cell,) = json.loads(content[0])["cells"]
    assert cell["source"] == f"{before}{cited}: more"
    page = [link]
    extension["cite"](None, "book/index", page)
    assert page == [link], "a page of prose is as it was"


@each_chapter
def test_citations_lead_to_the_bibliography(path):
    built = ROOT / f"_build/html/notebooks/{path.stem}.html"
    if not built.exists():
        pytest.skip("the book is not built")
    links = len(NUMBERED_LINK.findall(path.read_text("utf8")))
    assert links
    cited = re.findall(r'href="\.\./book/bibliography\.html#[\w-]+"', built.read_text("utf8"))
    assert len(cited) == links


# ---- the map ---------------------------------------------------------------------------------

STATEMENTS = ["Remark 1", "Definition 2", "Linear scaling rule", "Four cautions"]
NUMBERED = [*(f"Figure {n}" for n in range(1, 12)), "Table 1", *(f"({n})" for n in range(1, 27))]
SECTIONS = ["§1", "§2", "§3", "§3.1", "§3.2", "§3.3", "§4", "§5.1", "§5.2", "§5.3"]
HOMES = {row[0]: row[-1] for row in rows(text_of("map.md"))}


def test_the_map_has_everything_in_the_lecture():
    items = [row[0] for row in rows(text_of("map.md"))]
    assert sorted(items) == sorted(SECTIONS + STATEMENTS + NUMBERED)


@pytest.mark.parametrize("item", SECTIONS + STATEMENTS + NUMBERED)
def test_an_item_has_a_home_that_speaks_of_it(item):
    homes = [sections(path)[anchor] for path, anchor in ends(HOMES[item]) if path]
    assert homes, "no chapter treats it"
    if item not in SECTIONS:
        number = item.strip("()")
        named = rf"\\tag\{{{number}\}}|{re.escape(item)}(?!\d)"
        assert any(re.search(named, home, re.IGNORECASE) for home in homes)


# ---- the errata ------------------------------------------------------------------------------

ERRATA = [f"E{n}" for n in range(1, 18)] + [f"I{n}" for n in range(1, 29)]
ENTRY = re.compile(r"^\(([ei]\d+)\)=\n### (.*?)(?=^\([ei]\d+\)=|^## |\Z)", re.MULTILINE | re.DOTALL)
ENTRIES = dict(ENTRY.findall(text_of("errata.md")))


def test_the_errata_are_complete():
    assert [name.upper() for name in ENTRIES] == ERRATA


@pytest.mark.parametrize("name", ERRATA)
def test_an_erratum_says_what_is_printed_what_is_right_and_why(name):
    entry = ENTRIES[name.lower()]
    assert entry.startswith(f"{name}: ")
    right = "Correct" if name.startswith("E") else "Better"
    assert re.findall(r"^(\w+)\n: \S", entry, re.MULTILINE) == ["Printed", right, "Why"]


@each_chapter
def test_a_chapter_refers_to_errata_that_exist(path):
    linked = re.findall(r"\(\.\./book/errata\.md#([\w-]+)\)", path.read_text("utf8"))
    assert linked
    assert broken(" ".join(f"[](errata.md#{anchor})" for anchor in linked)) == []


# ---- notation and glossary -------------------------------------------------------------------

NOTATION = [row for row in rows(text_of("notation.md")) if len(row) == 5]
NAMES = sorted({name for row in NOTATION for name in re.findall(r"`([^`]+)`", row[3])})


def test_every_symbol_is_defined_somewhere_and_has_a_name():
    assert NOTATION
    for symbol, meaning, _, code, defined in NOTATION:
        assert symbol.startswith("$"), symbol
        assert meaning, symbol
        assert "`" in code, symbol
        assert LINK.search(defined) or re.search(r"\(\d+\)|§|Definition", defined), symbol


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_the_notation_is_one_in_the_package(name):
    dotted, argument = re.fullmatch(r"([\w.]+)(?:\((\w+)\))?", name).groups()
    module, *inner = re.fullmatch(r"((?:studies\.)?\w+)\.(.+)", dotted).groups()
    thing = importlib.import_module(f"lecture6.{module}")
    *owners, last = inner[0].split(".")
    for owner in owners:
        thing = getattr(thing, owner)
    known = hasattr(thing, last) or last in inspect.get_annotations(thing)
    assert known, f"lecture6.{module} has no {inner[0]}"
    if argument:
        assert argument in inspect.signature(getattr(thing, last)).parameters


def test_a_term_takes_two_sentences_and_leads_to_a_chapter():
    body = text_of("glossary.md").partition(":sorted:\n\n")[2].partition("\n```")[0]
    for entry in body.split("\n\n"):
        terms = [line for line in entry.splitlines() if not line.startswith("  ")]
        definition = " ".join(line.strip() for line in entry.splitlines() if line not in terms)
        assert terms, entry
        assert LINK.search(definition), terms
        plain = LINK.sub("", re.sub(r"\$[^$]*\$", "", definition)).replace("et al.", "")
        assert len(re.findall(r"[.?!](?=\s|$)", plain)) <= 2, terms


# ---- times and stored studies ----------------------------------------------------------------


@each_chapter
def test_a_chapter_says_how_long_it_takes(extension, path):
    assert extension["time_estimate"](path) in TIMES


@pytest.mark.parametrize("says", ["It is short.", "It takes a minute on two CPU cores. " * 2])
def test_a_chapter_that_does_not_say_it_once_is_refused(extension, tmp_path, says):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(says)])
    nbformat.write(notebook, tmp_path / "07_new.ipynb")
    with pytest.raises(ValueError, match=r"07_new.ipynb: the introduction must say once"):
        extension["time_estimate"](tmp_path / "07_new.ipynb")


@pytest.mark.parametrize("name", ["running.md", "computed.md"])
def test_a_page_of_times_has_no_time_of_its_own(name):
    assert "```{chapter-times}" in text_of(name)
    assert not re.search(r"\d+ (s|seconds|minutes|hours)\b", text_of(name))


STUDIES = sorted((ROOT / "lecture6" / "studies" / "results").glob("*.json"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_stored_study_is_on_the_page_with_its_whole_record(extension, path):
    assert "```{stored-studies}" in text_of("computed.md")
    assert extension["records"]() == STUDIES
    record = json.loads(path.read_text("utf8"))
    shown = extension["described"](record)
    done, of = record["trials"]
    said = [record["notes"], record["profile"], f"{done:,} of {of:,}"]
    said += [table["file"] for table in record["tables"].values()]
    said += [record[key] for key in ("converted",) if key in record]
    said += [*record["device"], *record["code"], *record["date"], *record["data"]]
    said += [version for versions in record["libraries"].values() for version in versions]
    text = "\n".join(shown.values())
    assert [part for part in said if part not in text] == []
    assert shown["Seeds"] == ", ".join(map(str, record["seeds"]))
    assert extension["shown_in"](path.stem), "no chapter shows it"
    built = ROOT / "_build/html/book/computed.html"
    if built.exists():
        assert f'id="study-{path.stem}"' in built.read_text("utf8")
