"""How the notebooks are executed for the book: side by side, and again when something changed."""

import os
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
WAIT = """\
import os, time
from pathlib import Path
Path("{mine}.started").touch()
end = time.monotonic() + 60
while not Path("{other}.started").exists():
    assert time.monotonic() < end, "the other notebook does not run"
    time.sleep(0.1)
print(os.environ["OMP_NUM_THREADS"], "thread")
"""


def code(source):
    return nbformat.v4.new_code_cell(source)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core executes one notebook at a time")
def test_notebooks_are_executed_side_by_side(small_book, build, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    root = small_book({a: [code(WAIT.format(mine=a, other=b))] for a, b in ("ab", "ba")})
    done = build(root)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in "ab":
        assert "1 thread" in (root / f"_build/html/notebooks/{name}.html").read_text("utf8")
    assert "executing 2 notebooks" in done.stdout
    said = re.findall(r"^([ab]): \d+ s, (\d) of 2$", done.stdout, re.MULTILINE)
    assert sorted(name for name, _ in said) == ["a", "b"]
    assert [place for _, place in said] == ["1", "2"]
    assert "IPKernelApp" not in done.stdout + done.stderr


def test_a_notebook_that_fails_is_reported(small_book, build):
    root = small_book({"good": [code("1 + 1")], "bad": [code("1 / 0")]})
    done = build(root)
    assert "bad.ipynb: WARNING: Executing notebook failed: CellExecutionError" in done.stderr
    assert "ZeroDivisionError" in done.stderr


@pytest.fixture
def extension(tmp_path, monkeypatch):
    """The book's Sphinx extension over a small tree of its own."""
    extension = runpy.run_path(str(ROOT / "book/_ext/lecture6_book.py"))
    (tmp_path / "lecture6").mkdir()
    (tmp_path / "lecture6" / "a.py").write_text("x = 1\n")
    (tmp_path / "requirements.lock").write_text("plotly==7.1.0\n")
    monkeypatch.setenv("LECTURE6_PROFILE", "book")
    monkeypatch.setitem(extension["fingerprint"].__globals__, "ROOT", tmp_path)
    return extension


@pytest.mark.parametrize(
    "name", ["lecture6/a.py", "lecture6/b.py", "lecture6/stored.csv", "requirements.lock"]
)
def test_a_change_in_the_package_or_the_lock_executes_again(extension, tmp_path, name):
    before = extension["fingerprint"]()
    assert extension["fingerprint"]() == before
    (tmp_path / name).write_text("y = 2\n")
    assert extension["fingerprint"]() != before


def test_another_profile_executes_again(extension, monkeypatch):
    before = extension["fingerprint"]()
    monkeypatch.setenv("LECTURE6_PROFILE", "smoke")
    assert extension["fingerprint"]() != before


@pytest.mark.parametrize(("profile", "seconds"), [("book", 600), ("full", -1)])
def test_a_cell_at_profile_full_may_take_hours(extension, tmp_path, monkeypatch, profile, seconds):
    monkeypatch.setenv("LECTURE6_PROFILE", profile)
    config = SimpleNamespace(
        nb_execution_timeout=600, html_static_path=[], html_theme_options={"repository_url": ""}
    )
    extension["configure"](SimpleNamespace(outdir=tmp_path / "html"), config)
    assert config.nb_execution_timeout == seconds
