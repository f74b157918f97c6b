"""The notebooks: kept tidy, and run as in Colab.

One execution of each serves all that is asked of it. The notebook's first cell installs lecture6,
papermill sets the profile, the solutions of the exercises follow at the end, and nbval runs all
cells and compares the outputs that are checked.
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
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TIMEOUT = 300  # seconds a cell, on a busy machine
# Of Colab: no lecture6 but the one that is installed.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

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


def install_cell(notebook):
    return next(cell for cell in notebook.cells if cell.cell_type == "code")


def test_every_notebook_installs_alike():
    """So that it is enough if one of them does it."""
    sources = {install_cell(nbformat.read(path, as_version=4)).source for path in NOTEBOOKS}
    assert len(sources) == 1


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """A Python that, like Colab's, has every package of this one but not lecture6.

    The first notebook that is run installs it. At the end torch is still the one that was there.
    """
    folder = tmp_path_factory.mktemp("colab")
    packages = folder / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "lecture6" not in entry.name:
            (packages / entry.name).symlink_to(entry)
    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    [site] = environment.glob("lib/python*/site-packages")
    (site / "colab.pth").write_text(f"{packages}\n")
    kernel = folder / "kernels" / "colab"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "colab", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    assert origin(python, "lecture6") is None
    torch = origin(python, "torch")
    yield python
    assert origin(python, "torch") == torch


def origin(python, package):
    """The real path of the file that an import of the package would run, or None."""
    code = f"import importlib.util as u; s = u.find_spec({package!r}); print(s.origin if s else '')"
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, cwd="/", env=ENVIRONMENT, check=True
    )
    return Path(done.stdout.strip()).resolve() if done.stdout.strip() else None


def solutions(notebook):
    """Cells that solve every exercise, and fail where the solution is not right."""
    exercises = runpy.run_path(str(ROOT / "book" / "exercises.py"))
    codes = filter(None, map(exercises["solution"], notebook.cells))
    asserted = r"verdict = \g<0>\nassert verdict.right, verdict"
    return [nbformat.v4.new_code_cell(exercises["CHECK"].sub(asserted, code)) for code in codes]


@each_notebook
def test_runs_as_in_colab(path, checkout, colab, tmp_path):
    notebook = parameterize_notebook(load_notebook_node(str(path)), {"profile": "smoke"})
    install = install_cell(notebook)
    before = next(line for line in install.source.splitlines() if line.startswith("REPOSITORY ="))
    install.source = install.source.replace(before, f'REPOSITORY = "file://{checkout}"')
    notebook.cells += solutions(notebook)
    nbformat.write(notebook, tmp_path / path.name)
    options = ["--nbval-lax", "--nbval-kernel-name=colab", f"--nbval-cell-timeout={TIMEOUT}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, path.name],
        cwd=tmp_path,
        env=ENVIRONMENT | {"JUPYTER_PATH": str(colab.parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-9000:] + done.stderr
    assert colab.parents[1] in origin(colab, "lecture6").parents
