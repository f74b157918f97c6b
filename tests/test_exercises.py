"""The exercises: their answers, their checks, and the cells of the notebooks that call them."""

import re
import runpy
from itertools import pairwise
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from answers import ANSWERS as COMPUTED

from lecture6.course.exercises import ANSWERS, TOLERANCES, check

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SCRIPT = runpy.run_path(str(ROOT / "book" / "exercises.py"))

each_answer = pytest.mark.parametrize("number", ANSWERS)
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def right_answer(number):
    return np.asarray(ANSWERS[number])


# ---- the answers ----------------------------------------------------------------------------


def test_the_answers_are_those_of_the_exercises():
    assert list(ANSWERS) == list(COMPUTED)


@each_answer
def test_an_answer_is_what_is_computed(number):
    right, computed = right_answer(number), np.asarray(COMPUTED[number]())
    assert right.shape == computed.shape
    assert (right.dtype == bool) == (computed.dtype == bool)
    np.testing.assert_allclose(computed, right, rtol=1e-3 * TOLERANCES.get(number, 0.01))


# ---- the check ------------------------------------------------------------------------------


@each_answer
def test_the_right_answer_is_right(number):
    right = right_answer(number)
    for value in (right, right.tolist(), torch.as_tensor(right)):
        assert check(number, value).right is True


@each_answer
def test_an_answer_is_wrong_by_as_much_as_it_is_off(number):
    right, tolerance = right_answer(number), TOLERANCES.get(number, 0.01)
    for entry in np.ndindex(right.shape):
        given = right.copy()
        if right.dtype == bool:
            given[entry] = not given[entry]
            assert check(number, given).words == f"wrong: 1 of {right.size}"
            continue
        given = given.astype(float)
        given[entry] *= 1 + 0.9 * tolerance
        assert check(number, given).right is True
        given[entry] = right[entry] * (1 - 1.1 * tolerance)
        verdict = check(number, given)
        assert verdict.right is False
        assert f"{110 * tolerance:.2g} % too small" in verdict.words
        assert (f"number {entry[0] + 1} is" if entry else "wrong: it is") in verdict.words


@pytest.mark.parametrize(
    ("number", "value"),
    [
        ("1.1", ...),
        ("6.1", [...]),
        ("6.1", (0.0, ...)),
        ("1.3", [[True, ...], [True, False]]),
        ("6.1", np.array([0.3, ...])),
    ],
)
def test_no_answer_is_neither_right_nor_wrong(number, value):
    verdict = check(number, value)
    assert verdict.right is None
    assert str(verdict) == f"Exercise {number}: no answer yet"


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1.5, "is 50 % too large"),
        (0.75, "is 25 % too small"),
        (32, "is 32 times too large"),
        (0.1, "is 10 times too small"),
        (-1, "has the wrong sign"),
        (0, "is zero"),
        (np.inf, "is inf times too large"),
    ],
)
def test_a_wrong_answer_is_told_how_much_not_what(factor, words):
    verdict = check("1.1", 0.3 * factor)
    assert str(verdict) == f"Exercise 1.1: wrong: it {words} (1 % is allowed)"


@pytest.mark.parametrize(
    ("number", "value"),
    [
        ("4.1", 32),
        ("4.1", np.float32(32)),
        ("4.1", [32]),
        ("4.1", torch.tensor([32])),
        ("4.1", torch.tensor(32, dtype=torch.bfloat16)),
        ("4.1", torch.tensor(32.0, requires_grad=True)),
        ("2.2", (0.011, 0.02)),
        ("2.2", [torch.tensor(0.011, requires_grad=True), np.float64(0.02)]),
        ("4.4", [np.True_, torch.tensor(False)]),
        ("4.4", (True, False)),
        ("1.3", [np.array([True, True]), np.array([True, False])]),
    ],
)
def test_a_number_may_come_in_any_form(number, value):
    assert check(number, value).right


@pytest.mark.parametrize(
    ("number", "value"),
    [
        ("0.1", 285 / 8 * 10),  # not whole updates
        ("0.2", [0.025, 0.15]),  # the sum of the gradients, not their mean
        ("0.3", [24, 1]),  # as if the noise went as 1/B
        ("0.4", [0.5, 0.05]),  # as if momentum made every step ten times as long
        ("1.4", (0.1 * 60_000) / np.log(2)),  # without ln(1/δ)
        ("2.1", [18.43, 3.48]),  # the formula's own number where it is wrong
        ("2.2", [0.01, 0.02]),  # half of the largest
        ("3.1", 100 * 60_000 / 256 / 10),  # not whole updates
        ("3.3", np.log(0.01) / np.log(0.9)),  # the same
        ("4.3", 7),  # as the chapter rounds it
        ("6.2", [0.7213, 0.7213]),  # by (26) twice
        ("7.1", 20),  # as if the rate did not matter
        ("7.2", 2 / (0.05 * 10)),  # the effective rate in the place of η
        ("7.3", 3 / 0.05),  # as if it grew linearly
        ("7.4", [0.4, 0.4]),  # the training loss twice
    ],
)
def test_the_answer_of_a_likely_mistake_is_wrong(number, value):
    assert check(number, value).right is False


@pytest.mark.parametrize("number", [1.1, np.float64(1.1), " 1.1 "])
def test_the_number_of_an_exercise_may_be_a_number(number):
    assert str(check(number, 0.3)) == "Exercise 1.1: right (1 % is allowed)"


@pytest.mark.parametrize(
    ("number", "known"),
    [
        ("1.9", "1.1 to 1.4"),
        (4, "4.1 to 4.4"),
        ("9.1", "0.1 to 7.5"),
        ("", "0.1 to 7.5"),
        (None, "0.1 to 7.5"),
        ([1.1], "0.1 to 7.5"),
    ],
)
def test_of_an_unknown_number_it_says_which_there_are(number, known):
    found = check(number, 1.0)
    assert found.right is None
    assert str(found) == f"Exercise {number}: there is none; the numbers go from {known}"


NO_NUMBER = [None, "0.3", True, b"0.3", {}, 1j, 10**400, object(), [None], np.datetime64("now")]


@pytest.mark.parametrize("value", NO_NUMBER, ids=lambda value: type(value).__name__)
def test_of_what_is_no_number_it_says_so(value):
    found = check("1.1", value)
    assert found.right is None
    assert str(found).startswith("Exercise 1.1: asks for a number; got ")
    assert len(str(found)) < 100


@pytest.mark.parametrize(
    ("number", "value", "words"),
    [
        ("1.1", np.nan, "asks for a number; got nan, which has a NaN"),
        ("1.1", [], "asks for a number; got [], shape (0,)"),
        ("1.1", [0.3, 0.3], "asks for a number; got [0.3, 0.3], shape (2,)"),
        ("6.1", 0.3, "asks for a list of the shape (2,), each entry a number; got 0.3, shape ()"),
        ("6.1", [0.3, [0.3]], "asks for a list of the shape (2,), each entry a number; got [0.3, "),
        ("6.1", [0.3, None], "asks for a list of the shape (2,), each entry a number; got [0.3, "),
        ("6.1", range(1000), "each entry a number; got range(0, 1000), shape (1000,)"),
        ("6.1", list(range(1000)), "got [0, 1, 2, 3, 4, 5, ...], shape (1000,)"),
        ("4.4", [1, 0], "each entry yes or no, True or False; got [1, 0]"),
        ("4.4", np.array([1, 0]), "each entry yes or no, True or False; got [1, 0]"),
        ("4.4", True, "asks for a list of the shape (2,), each entry yes or no"),
    ],
)
def test_of_what_cannot_be_an_answer_it_says_what_is_asked_for(number, value, words):
    found = check(number, value)
    assert found.right is None
    assert words in str(found)


def test_every_tolerance_is_of_an_exercise():
    assert set(TOLERANCES) <= set(ANSWERS)


# ---- the notebooks --------------------------------------------------------------------------


def headings(notebook):
    return [
        SCRIPT["HEADING"].match(cell.source) for cell in notebook.cells if SCRIPT["solution"](cell)
    ]


def test_every_answer_has_its_exercise():
    notebooks = [nbformat.read(path, as_version=4) for path in NOTEBOOKS]
    assert [found["number"] for each in notebooks for found in headings(each)] == list(ANSWERS)


@each_notebook
def test_a_chapter_has_four_exercises_the_easy_ones_first(path):
    found = headings(nbformat.read(path, as_version=4))
    assert len(found) >= 4
    assert all(match["number"].startswith(f"{int(path.name[:2])}.") for match in found)
    stars = [len(match["stars"]) for match in found]
    assert all(a <= b <= 3 for a, b in pairwise(stars))
    assert len(set(stars)) > 1


@each_notebook
def test_the_cells_for_answers_are_those_of_the_script(path):
    notebook = nbformat.read(path, as_version=4)
    assert SCRIPT["with_answer_cells"](notebook) == notebook


def cell(text):
    return nbformat.v4.new_markdown_cell(text)


EXERCISE = """### Exercise 3.2: Title ★★ (15 minutes)

What?

<details>
<summary>Solution</summary>

```python
x = 1
check("3.2", x)
```

</details>
"""


def test_an_exercise_gets_one_cell_for_its_answer():
    notebook = nbformat.v4.new_notebook(cells=[cell("text"), cell(EXERCISE), cell("more")])
    once = SCRIPT["with_answer_cells"](notebook)
    assert [c.cell_type for c in once.cells] == ["markdown", "markdown", "code", "markdown"]
    assert once.cells[2].source == 'x = ...  # your answer\ncheck("3.2", x)'
    assert SCRIPT["with_answer_cells"](once) == once
    without = nbformat.v4.new_notebook(cells=[cell("text"), once.cells[2], cell("more")])
    assert len(SCRIPT["with_answer_cells"](without).cells) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('check("3.2", x)', ""),
        ('check("3.2", x)', 'check("3.3", x)'),
        ('check("3.2", x)', 'check("3.2", x)\ncheck("3.2", x)'),
        ("<details>", ""),
        (" ★★", ""),
        (" (15 minutes)", ""),
    ],
)
def test_an_exercise_of_another_form_is_refused(old, new):
    assert old in EXERCISE
    with pytest.raises(ValueError, match=r"### Exercise 3.2.* is not an exercise"):
        SCRIPT["solution"](cell(re.sub(re.escape(old), new, EXERCISE)))
