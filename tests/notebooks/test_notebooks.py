"""The notebooks: kept tidy, and run by papermill as in Colab, with every exercise solved.

nbval runs beside these tests (see the Makefile).
"""

import json
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import nbformat
import papermill
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Seconds a cell. On a busy machine papermill may see the reply of a cell that shows a widget only
# when this is over (jupyter/nbclient, issue 312), which costs time and is no failure.
TIMEOUT = 120

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def repository():
    return runpy.run_path(str(ROOT / "book" / "repository.py"))


@each_notebook
def test_cells_are_tidy(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "REPOSITORY = " in code[0].source, "the first code cell must be the install cell"
    parameters = [c for c in code if "parameters" in c.metadata.get("tags", [])]
    assert len(parameters) == 1
    assert "profile = " in parameters[0].source
    for cell in code:
        lines = cell.source.splitlines()
        assert len(lines) <= 25, f"a cell of {len(lines)} lines (25 at most): {lines[0]}"
        if "# NBVAL_CHECK_OUTPUT" not in cell.source:
            assert not cell.outputs, f"outputs are kept only on checked cells: {lines[0]}"
        else:
            assert cell.outputs, f"nothing to compare with: {lines[1]}"
            assert cell.execution_count, f"nbval fails a cell without a count: {lines[1]}"


@pytest.mark.full
@each_notebook
def test_runs_at_full_size(path, tmp_path):
    papermill.execute_notebook(
        path,
        tmp_path / path.name,
        parameters={"profile": "full"},
        kernel_name="python3",
        cwd=path.parent,
        progress_bar=False,
    )


def test_one_repository_address(repository):
    found = repository["addresses"]()
    assert all(len(addresses) == 1 for addresses in found.values()), found
    different = {address for (address,) in found.values()}
    assert len(different) == 1, f"set it with `make repository URL=...`: {found}"


def test_set_repository_address(repository, tmp_path):
    (tmp_path / "notebooks").mkdir()
    for path in [ROOT / "_config.yml", *NOTEBOOKS]:
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    url = "https://github.com/owner/name"
    repository["set_address"](url, "published", tmp_path)
    found = repository["addresses"](tmp_path)
    assert list(found.values()) == [[url]] * (1 + len(NOTEBOOKS))
    assert "\n  branch: published\n" in (tmp_path / "_config.yml").read_text("utf8")
    for path in found:
        if path.suffix == ".ipynb":
            nbformat.validate(nbformat.read(path, as_version=4))
    for bad in ["", "owner/name", "https://example.org/owner/name", url + '"']:
        with pytest.raises(ValueError, match="is not of the form"):
            repository["set_address"](bad, root=tmp_path)
    with pytest.raises(ValueError, match="is not the name of a branch"):
        repository["set_address"](url, "--force", tmp_path)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A git repository of the working tree as it is: what a clone of it would hold."""
    folder = tmp_path_factory.mktemp("checkout") / "repository"
    settings = ("safe.directory=*", "user.name=test", "user.email=test@localhost")
    git = ["git", *(word for setting in settings for word in ("-c", setting)), "-C"]
    listed = subprocess.run(
        [*git, ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in listed.rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for command in (["init", "-q"], ["add", "--all"], ["commit", "-q", "-m", "the working tree"]):
        subprocess.run([*git, folder, *command], check=True)
    return folder


@pytest.fixture
def colab(tmp_path):
    """A Python that, like Colab's, has every package of this one but not lecture6."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "lecture6" not in entry.name:
            (packages / entry.name).symlink_to(entry)
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    [site] = environment.glob("lib/python*/site-packages")
    (site / "colab.pth").write_text(f"{packages}\n")
    kernel = tmp_path / "jupyter" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "colab", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    return python


def installed(python, package):
    """Return the version and the real folder of a package, or what the import says."""
    code = f"import {package} as p; from pathlib import Path\n"
    code += "print(getattr(p, '__version__', ''), Path(p.__file__).resolve().parent)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd="/")
    return (done.stdout or done.stderr.splitlines()[-1]).strip()


def solutions(notebook):
    """Cells that solve every exercise, and fail where the solution is not right."""
    exercises = runpy.run_path(str(ROOT / "book" / "exercises.py"))
    codes = filter(None, map(exercises["solution"], notebook.cells))
    asserted = r"verdict = \g<0>\nassert verdict.right, verdict"
    return [nbformat.v4.new_code_cell(exercises["CHECK"].sub(asserted, code)) for code in codes]


@each_notebook
def test_runs_as_in_colab(path, checkout, colab, tmp_path):
    assert installed(colab, "lecture6") == "ModuleNotFoundError: No module named 'lecture6'"
    torch = installed(colab, "torch")
    notebook = nbformat.read(path, as_version=4)
    install = next(cell for cell in notebook.cells if cell.cell_type == "code")
    before = next(line for line in install.source.splitlines() if line.startswith("REPOSITORY ="))
    install.source = install.source.replace(before, f'REPOSITORY = "file://{checkout}"')
    notebook.cells += solutions(notebook)
    work = tmp_path / "content"
    work.mkdir()
    nbformat.write(notebook, work / path.name)
    command = "papermill {0} out.ipynb -k colab -p profile smoke --execution-timeout {1}"
    subprocess.run(
        [sys.executable, "-m", *command.format(path.name, TIMEOUT).split()],
        check=True,
        cwd=work,
        env=os.environ | {"JUPYTER_PATH": str(tmp_path / "jupyter")},
    )
    assert str(colab.parents[1]) in installed(colab, "lecture6")
    assert installed(colab, "torch") == torch
