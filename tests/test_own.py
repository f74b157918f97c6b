"""The page on own models and data is true: its code runs, and prints what the page says."""

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "book" / "own.md").read_text("utf8")
# What is run, in turn, and what stands below it as its output
BLOCKS = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", PAGE, re.M | re.S)
NUMBER = re.compile(r"(± )?(-?\d[\d,]*\.?\d*(?:e[+-]\d+)?)")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def test_the_code_of_the_page_prints_what_the_page_says():
    scope = {"__name__": "own"}
    assert sum(bool(shown) for _, shown in BLOCKS) >= 5
    for code, shown in BLOCKS:
        with redirect_stdout(StringIO()) as out:
            exec(compile(code, "own.md", "exec"), scope)
        printed = out.getvalue()
        assert NUMBER.sub("#", printed) == NUMBER.sub("#", shown), printed
        for (error, found), (_, said) in zip(
            NUMBER.findall(printed), NUMBER.findall(shown), strict=True
        ):
            found, said = (float(number.replace(",", "")) for number in (found, said))
            # the last digit may differ between processors, and an error has no more than one
            assert found == pytest.approx(said, rel=0.5 if error else 0.02), printed
