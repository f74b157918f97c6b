"""Writes the cell for the answer after every exercise of the notebooks: `make exercises`.

An exercise is one markdown cell: a heading `### Exercise 3.2: Title ★★ (15 minutes)`, the
question, and a hidden solution whose code ends with `check("3.2", name)`. Number and name are those
of the cell for the answer.
"""

import re
from pathlib import Path

import nbformat

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
HEADING = re.compile(r"### Exercise (?P<number>\d+\.\d+): .+ (?P<stars>★+) \(\d+ minutes\)\n")
SOLUTION = re.compile(r"<details>\n<summary>Solution</summary>\n(.*)</details>", re.DOTALL)
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
CHECK = re.compile(r'^check\("(?P<number>[\d.]+)", (?P<name>\w+)\)$', re.MULTILINE)


def solution(cell):
    """The code of an exercise's solution, or None for a cell that is no exercise.

    Raises ValueError for an exercise without a solution that ends with its check.
    """
    if cell.cell_type != "markdown" or not cell.source.startswith("### Exercise"):
        return None
    heading, hidden = HEADING.match(cell.source), SOLUTION.search(cell.source)
    code = "".join(CODE.findall(hidden[1])) if hidden else ""
    checks = CHECK.findall(code)
    if not heading or checks != [(heading["number"], checks[0][1] if checks else "")]:
        first = cell.source.splitlines()[0]
        raise ValueError(f"{first!r} is not an exercise as {Path(__file__).name} describes them")
    return code


def with_answer_cells(notebook):
    """The notebook with one cell of code after every exercise, and none elsewhere."""
    old = [c for c in notebook.cells if "exercise" not in c.metadata.get("tags", [])]
    notebook = notebook.copy()
    notebook.cells = []
    for cell in old:
        notebook.cells.append(cell)
        if (code := solution(cell)) is not None:
            [(number, name)] = CHECK.findall(code)
            source = f'{name} = ...  # your answer\ncheck("{number}", {name})'
            answer = nbformat.v4.new_code_cell(source, metadata={"tags": ["exercise"]})
            answer.id = f"exercise-{number.replace('.', '-')}"
            notebook.cells.append(answer)
    return notebook


if __name__ == "__main__":
    for path in NOTEBOOKS:
        nbformat.write(with_answer_cells(nbformat.read(path, as_version=4)), path)
