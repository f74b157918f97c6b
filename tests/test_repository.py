"""What surrounds the course: versions, workflows, licences, and the notes for contributors."""

import re
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

import lecture6

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ROLES = ("exercise", "hide-input", "remove-input", "remove-cell")
SHOWS = re.compile(r"^(\w+\.)?(print|curves|explore|Predict)\((?!line)", re.MULTILINE)
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf8"), re.MULTILINE))

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def text_of(name):
    return (ROOT / name).read_text("utf8")


def test_one_version_everywhere():
    version = tomllib.loads(text_of("pyproject.toml"))["project"]["version"]
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert lecture6.__version__ == citation["version"] == version
    assert f"\n## {version}, {citation['date-released']}\n" in text_of("CHANGELOG.md")


@each_notebook
def test_outputs_that_are_checked_are_those_that_are_kept(path):
    """The comment is nbval's, the tag is nbstripout's (.pre-commit-config.yaml)."""
    for cell in nbformat.read(path, as_version=4).cells:
        checked = "# NBVAL_CHECK_OUTPUT" in cell.source
        assert ("keep_output" in cell.metadata.get("tags", [])) == checked, cell.source


@each_notebook
def test_a_page_shows_the_code_that_teaches(path):
    """The role of each code cell is in its tags; one without a role is open."""
    code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    shown = []
    for cell in code:
        tags = set(cell.metadata.get("tags", []))
        role = tags - {"parameters", "keep_output"}
        assert role in (set(), *({name} for name in ROLES)), tags
        assert (role == {"exercise"}) == ("\ncheck(" in cell.source), cell.source
        assert ("claims_table(" in cell.source) <= (role == {"remove-input"}), cell.source
        if role == {"remove-cell"}:  # nothing that a reader needs is lost with it
            assert not SHOWS.search(cell.source), cell.source
        elif not role:
            lines = [x for x in cell.source.splitlines() if x != "# NBVAL_CHECK_OUTPUT"]
            assert len(lines) <= 12, cell.source
            assert max(map(len, lines)) <= 80, cell.source
            shown.append(cell)
    assert 0 < len(shown) <= 6
    assert all(cell.metadata.tags[-1] == "remove-cell" for cell in code[:3])  # install, set, import
    assert len(code[0].source.splitlines()) <= 6


def test_no_figure_widget():
    """Plotly's own figure widget breaks in Colab."""
    sources = [*(ROOT / "lecture6").rglob("*.py"), *NOTEBOOKS]
    assert [path.name for path in sources if "FigureWidget" in path.read_text("utf8")] == []


# ---- workflows -------------------------------------------------------------------------------


def test_there_are_four_workflows():
    assert {path.stem for path in WORKFLOWS} == {"tests", "publish", "weekly", "colab"}


@each_workflow
def test_a_workflow_may_little_and_ends(path):
    workflow = yaml.safe_load(path.read_text("utf8"))
    assert workflow["permissions"] in ({}, {"contents": "read"})
    assert "concurrency" in workflow
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 120
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/none@v0"))


@each_workflow
def test_what_a_workflow_runs_is_there(path):
    jobs = yaml.safe_load(path.read_text("utf8"))["jobs"].values()
    commands = "\n".join(step.get("run", "") for job in jobs for step in job["steps"])
    targets = re.findall(r"^make ([\w-]+)", commands, re.MULTILINE)
    scripts = re.findall(r"(?<![\w.])\.ci/\w+", commands)
    assert targets or scripts
    assert set(targets) <= TARGETS
    assert all((ROOT / script).is_file() for script in scripts)


# ---- what is written for people --------------------------------------------------------------


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_what_people_are_told_is_there(name):
    text = text_of(name)
    targets = re.findall(r"^    make ([\w-]+)|`make ([\w-]+)", text, re.MULTILINE)
    assert {one or other for one, other in targets} <= TARGETS
    files = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    files += re.findall(r"`((?:book|lecture6|notebooks|tests|benchmarks|\.github)/[\w./]*)`", text)
    invented = {"notebooks/08_name.ipynb", "lecture6/studies/name.py", "tests/test_name.py"}
    assert [f for f in files if f not in invented and not (ROOT / f).exists()] == []


def test_both_licences_are_named_where_people_look():
    for name in ("README.md", "CONTRIBUTING.md", "_config.yml"):
        assert "MIT" in text_of(name), name
        assert "CC BY 4.0" in text_of(name), name
    assert text_of("LICENSE").startswith("MIT License\n")
    assert text_of("LICENSE-text").startswith("Attribution 4.0 International\n")
