"""The rules of the house: what may import what, how large things are, that all has a caller.

None of them has a list of exceptions.
"""

import ast
import json
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from textwrap import dedent

import pytest
from callers import Callers, around, sources

ROOT = Path(__file__).parents[1]
# What shows the core, or runs it. All else in lecture6 is core.
COURSE = {"course", "report", "verdicts", "figures", "widgets", "explorables", "exercises"}
WINGS = COURSE | {"parallel", "studies", "results", "__main__"}
FOR_THE_PAGE = {"plotly", "ipywidgets", "anywidget", "IPython"}


def modules(root):
    return {source.module: source for source in sources(root) if source.module}


MODULES = modules(ROOT)


def part(module):
    """lecture6.studies.keskar belongs to "studies"."""
    return module.split(".")[1] if "." in module else ""


def imported(source, known):
    """What a module imports, anywhere in it: modules of ``known``, and the names of packages."""
    found = set()
    for path in source.imports.values():
        paths = around(path)
        found.add(next((p for p in paths if p in known), paths[-1]))
    return found - {source.module}


def circle(known):
    """The modules of a circle of imports, or []."""
    try:
        TopologicalSorter({m: imported(s, known) for m, s in known.items()}).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def lengths(folder):
    """Yield (lines, name) of each function in the Python files of a folder."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node.end_lineno - node.lineno + 1, f"{path.name}: {node.name}"


def complex_functions(*folders):
    """The functions of a cyclomatic complexity above 15, by ruff, in spite of any noqa."""
    command = "ruff check --isolated --no-cache --ignore-noqa --select C901 --output-format json"
    command = [sys.executable, "-m", *command.split(), "--config", "lint.mccabe.max-complexity=15"]
    done = subprocess.run([*command, *folders], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return [f"{Path(e['filename']).name}: {e['message']}" for e in json.loads(done.stdout)]


def written(root, files):
    """``root`` with these files in it, and with an entry point: lecture6.a:main."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(dedent(text))
    (root / "pyproject.toml").write_text('[project.scripts]\nit = "lecture6.a:main"\n')
    return root


# ---- imports -----------------------------------------------------------------------------------


def test_the_core_imports_no_wing():
    core = {m: s for m, s in MODULES.items() if part(m) not in WINGS}
    assert {"lecture6.models", "lecture6.train", "lecture6.sde"} <= set(core)
    found = {m: {part(i) for i in imported(s, MODULES)} & WINGS for m, s in core.items()}
    assert {m: wings for m, wings in found.items() if wings} == {}


def test_only_the_course_imports_what_draws_and_shows():
    found = {m: imported(s, MODULES) & FOR_THE_PAGE for m, s in MODULES.items()}
    assert set.union(*found.values()) >= {"plotly", "anywidget"}  # it is found where it is
    assert {m: names for m, names in found.items() if names and part(m) not in COURSE} == {}


def test_the_readme_has_a_line_for_each_room_which_imports_only_those_above():
    text = (ROOT / "README.md").read_text("utf8")
    core, wings = re.search(r"room by room(.*)\| \*\*wings\*\*(.*)", text, re.DOTALL).groups()
    row = re.compile(r"^\| `(\w+)/?` \|", re.MULTILINE)
    rooms = [name for name in row.findall(core) if name != "lecture6"]  # that is the table's head
    assert sorted(rooms + row.findall(wings)) == sorted({part(m) for m in MODULES} - {""})
    above = {""}
    for room in rooms:
        above.add(room)
        here = [source for module, source in MODULES.items() if part(module) == room]
        assert {part(i) for source in here for i in imported(source, MODULES)} <= above, room


def test_imports_make_no_circle(tmp_path):
    assert circle(MODULES) == []
    files = {
        "lecture6/a.py": "def f():\n    from lecture6.b import g",
        "lecture6/b.py": "from . import a, c",
        "lecture6/c.py": "import torch",
    }
    assert set(circle(modules(written(tmp_path, files)))) == {"lecture6.a", "lecture6.b"}


# ---- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["lecture6", "book"])
def test_no_function_is_longer_than_80_lines(folder):
    found = sorted(lengths(ROOT / folder), reverse=True)
    assert len(found) > 20
    assert [f"{name} has {n} lines" for n, name in found if n > 80] == []


def test_no_function_is_more_complex_than_15(tmp_path):
    assert complex_functions(ROOT / "lecture6", ROOT / "book") == []
    branches = "".join(f"    if x > {i}: x += 1\n" for i in range(15))
    (tmp_path / "a.py").write_text(f"def f(x):  # noqa: C901\n{branches}")
    assert complex_functions(tmp_path) == ["a.py: `f` is too complex (16 > 15)"]


@pytest.mark.parametrize(("what", "most"), [("core", 5_200), ("package", 9_200)])
def test_it_is_small(what, most):
    lines = {
        m: s.code.count("\n")
        for m, s in MODULES.items()
        if what == "package" or part(m) not in WINGS
    }
    total = sum(lines.values())
    assert total <= most, f"{total:,} lines of Python, the largest: {largest(lines)}"


def largest(lines):
    return ", ".join(f"{m} {n}" for m, n in sorted(lines.items(), key=lambda x: -x[1])[:5])


# ---- callers -----------------------------------------------------------------------------------


def test_everything_has_a_caller_outside_the_tests():
    assert list(Callers(ROOT).unused()) == []


def unused(root, files):
    """As ``Callers.unused``, without the places and the name of the package."""
    found = Callers(written(root, files)).unused()
    return [line.partition(": ")[2].replace("lecture6.", "") for line in found]


def test_what_has_no_caller_is_found(tmp_path):
    files = {
        "lecture6/a.py": """
            from dataclasses import dataclass
            def main(): helper(1)
            def helper(x, idle=0, *, seed=0): pass
            def of_tests(): of_itself()
            def of_itself(): of_itself()
            class Lonely:
                def again(self) -> "Lonely": return Lonely()
            @dataclass
            class Result:
                read: int
                unread: int
            def result() -> Result: return Result(read=1, unread=2)
            class Stack(list):
                def __init__(self, given=1, idle=2): super().__init__()
                def append(self, x, extra=0): pass
                def push(self, x): self.append(x)
        """,
        "benchmarks/b.py": """
            import numpy as a
            from torch import of_tests, of_itself
            from lecture6.a import Stack, result
            a.again = of_tests() + of_itself + a.helper(1, idle=2)
            result().read + Stack(3)
        """,
        "tests/test_a.py": "from lecture6.a import of_tests\nof_tests()",
    }
    assert unused(tmp_path, files) == [
        "option a.helper(idle=)",
        "a.of_tests",
        "a.Lonely",
        "a.Lonely.again",
        "field a.Result.unread",
        "option a.Stack.__init__(idle=)",
        "a.Stack.push",
    ]


def test_what_has_a_caller_is_not_reported(tmp_path):
    notebook = [
        {"cell_type": "code", "source": ["%time\n", "from lecture6 import a\n", "a.in_a_cell()"]},
        {"cell_type": "markdown", "source": "Answer:\n\n```python\na.of_an_answer()\n```\n"},
    ]
    files = {
        "lecture6/inner/__init__.py": "from .deep import passed_on",
        "lecture6/inner/deep.py": "def passed_on(): pass",
        "lecture6/a.py": """
            from dataclasses import dataclass
            import click
            from . import inner
            main = click.Group()
            @main.command("it")
            def command(rows): inner.passed_on()
            def by_place(x, option=0): pass
            def by_name(*, option=0): pass
            def by_mapping(*, option=0): pass
            def passing_on(**options): deeper(**options)
            def deeper(*, option=0): pass
            def in_a_table(option=0): pass
            def in_a_cell(): pass
            def of_an_answer(): pass
            def on_a_page(): pass
            def by_getattr(option=0): pass
            TABLE = {"it": in_a_table}
            class Base:
                def __init__(self, option=0, other=0): pass
                @classmethod
                def make(cls): return cls(option=1)
            class Heir(Base):
                def __init__(self): super().__init__(other=1)
            class Stack(list):
                def append(self, x, extra=0): pass
            @dataclass
            class Row:
                column: int
        """,
        "benchmarks/b.py": """
            from lecture6 import a
            from lecture6.a import by_name as alias
            a.by_place(1, 2)
            alias(option=1)
            a.by_mapping(**{"option": 1})
            getattr(a, "by_getattr")()
            a.Heir.make() + a.Stack()
            table(a.Row(1))["column"]
        """,
        "benchmarks/c.py": "from lecture6.a import passing_on\npassing_on(option=1)",
        "book/page.md": "A page:\n\n```python\nimport lecture6.a\nlecture6.a.on_a_page()\n```\n",
        "notebooks/1.ipynb": json.dumps({"cells": notebook}),
    }
    assert unused(tmp_path, files) == []
