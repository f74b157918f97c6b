"""`make gpu` on a machine without a GPU: all steps at tiny size, a real kill, a real wheel."""

import ast
import csv
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
import toy_study
from test_architecture import MODULES, imported, part
from torch import nn

from lecture6 import models
from lecture6.curvature import eigenvalues
from lecture6.objective import NetworkObjective
from lecture6.sharpness import worst_case
from lecture6.studies import STUDIES, Study, results

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


sys.path.append(str(ROOT / "benchmarks"))
import gpu  # noqa: E402
import gpu_steps  # noqa: E402


def make(*settings):
    """A process of `make gpu` with this Python, where the checkout has no .venv of its own."""
    command = ["make", "--no-print-directory", "-C", str(ROOT), "gpu", f"PYTHON={sys.executable}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *settings], env=ENVIRONMENT, start_new_session=True, **pipes)


def until(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


# ---- the whole ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which the tests leave alone")
def test_all_steps_after_a_kill(tmp_path):
    """SECONDS is 60 where nothing else runs; the machine may be busy."""
    out = tmp_path / "out"
    settings = ["SECONDS=500", "SMOKE=1", f"RESULTS={out}"]
    killed = make(*settings, "STUDIES=keskar")
    until(lambda: list(out.glob("keskar/*.json")) or killed.poll() is not None)
    os.killpg(killed.pid, 9)
    killed.wait()
    [first] = out.glob("keskar/*.json")
    before = first.stat()
    assert json.loads(first.read_bytes())["rows"]["history"]

    done = make(*settings)
    said, errors = done.communicate()
    assert done.returncode == 0, said + errors
    last = said.strip().splitlines()[-1]
    n = {name: len(study.trials("smoke")) for name, study in STUDIES.items()}
    assert re.search(r"tests: \d+ passed in", last), said
    assert f"keskar 2 of {n['keskar']};" in last
    assert all(f"{name} 1 of {n[name]}" in last for name in n if name != "keskar")
    assert "table: 5 of 5 benchmarks" in last
    assert (first.stat().st_mtime_ns, first.stat().st_ino) == (before.st_mtime_ns, before.st_ino)

    lines = list(csv.DictReader((out / "benchmarks.csv").open(encoding="utf8")))
    assert {"product", "replicas", "training", "curvature", "normals"} == {
        line["benchmark"] for line in lines
    }
    positive = [line for line in lines if line["setting"] != "an update of all replicas"]
    assert all(float(line["least"]) > 0 for line in positive if "updates" not in line["setting"])
    [command] = re.findall(r"^to store: lecture6 (collect keskar .*)", said, re.MULTILINE)
    collect = [sys.executable, "-m", "lecture6", *command.split(), "--to", str(tmp_path / "tables")]
    subprocess.run(collect, check=True, env=ENVIRONMENT, cwd=ROOT)
    record = results.load("keskar", folder=tmp_path / "tables").record
    assert record["trials"] == [2, n["keskar"]]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    done = make("SECONDS=60", f"RESULTS={tmp_path / 'out'}")
    said, errors = done.communicate()
    assert done.returncode != 0
    assert said == ""
    assert errors.splitlines()[0] == (
        "make gpu: torch finds no CUDA GPU here; SMOKE=1 goes through it on the CPU"
    )
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("of", ["hessian", "gauss_newton", "covariance"])
def test_curvature_on_a_gpu_is_that_of_the_processor(of, digits):
    found = [curvature_on(device, of, digits) for device in ("cpu", "cuda")]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


def curvature_on(device, of, digits):
    """In float64: loss, gradient, a product, the largest eigenvalues; of a net with batch norm."""
    x, y = digits.x_train[:60].double(), digits.y_train[:60]
    net = nn.Sequential(models.mlp(64, 16, 10), nn.BatchNorm1d(10)).double().eval().to(device)
    f = NetworkObjective(net, x, y, dtype=torch.float64)
    direction = torch.linspace(-1, 1, f.n_params, dtype=torch.float64)
    largest = eigenvalues(f, f.w, k=3, of=of, tolerance=1e-8).values
    product = f.product(f.w, of=of)(direction)
    return f.value(f.w), f.grad(f.w).cpu(), product.cpu(), torch.as_tensor(largest)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["ascent", "lbfgsb"])
def test_sharpness_on_a_gpu_is_that_of_the_processor(method, digits):
    x, y = digits.x_train[:60].double(), digits.y_train[:60]
    found = []
    for device in ("cpu", "cuda"):
        f = NetworkObjective(models.mlp(64, 16, 10).double().to(device), x, y, dtype=torch.float64)
        found.append(worst_case(f, f.w, epsilon=1e-3, method=method, seed=0).value)
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0] > 0


# ---- the time ----------------------------------------------------------------------------------

HANGS = """
import subprocess, sys, time
sys.path.insert(0, {benchmarks!r})
import gpu_steps
from pathlib import Path
session = gpu_steps.Session(9.0, True, Path("out"), time.monotonic())
session.process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
print(session.process.pid, flush=True)
session.watch()
session.trials["toy"] = "3 of 7"
while True:
    try:
        time.sleep(1000)
    except BaseException:
        pass
"""


@pytest.mark.slow
def test_it_ends_before_its_time_whatever_it_computes():
    code = HANGS.format(benchmarks=str(ROOT / "benchmarks"))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid, started = process.stdout.readline(), time.monotonic()
    last = process.stdout.read().rstrip()
    assert process.wait(timeout=9) == 0
    assert time.monotonic() - started < 9
    assert re.fullmatch(r"make gpu: .*; trials: toy 3 of 7; .* \d of 9 s; in out", last)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def never_ending():
    with gpu_steps.limit(0.05):
        while True:
            pass


def test_what_takes_too_long_is_stopped():
    with pytest.raises(gpu_steps.TimeLimitError, match="stopped after 0 s"):
        never_ending()
    with gpu_steps.limit(0.05):
        pass
    time.sleep(0.1)


@pytest.fixture
def session(tmp_path):
    return gpu_steps.Session(100.0, False, tmp_path / "out")


def toy(tmp_path, *grid, **more):
    trials = [{"log": str(tmp_path / "log"), "i": i, **p} for i, p in enumerate(grid)]
    return Study("toy", "nothing", toy_study.trial, {"gpu": trials}, **more)


def test_trials_that_fit_run_in_the_order_of_the_grid(session, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_steps, "TRIAL_SECONDS", 1.0)
    grid = [{"seconds": 60}, {}, {}, {}, {"fail_until": 1}, {}]
    # 0 is stopped after 1 s, ten times what was expected: so 1, which would have fitted, does not
    costs = [0.1, 0.2, 2.0, 0.01, 0.01, 0.01]
    study = toy(tmp_path, *grid, costs={"gpu": costs})
    monkeypatch.setitem(STUDIES, "toy", study)
    gpu_steps.run_study(session, "toy", "gpu", set(), 0.0)
    ran = (tmp_path / "log").read_text().splitlines()
    assert [line.split()[0] for line in ran] == ["0", "3", "4", "5"]
    assert session.trials["toy"] == (
        "2 of 6 (1 stopped, they took too long, 2 too long for the time left, 1 failed)"
    )
    assert session.failed
    monkeypatch.setattr(gpu_steps, "TRIAL_SECONDS", 100.0)
    gpu_steps.run_study(session, "toy", "gpu", set(), 99.0)  # no time for any of them
    assert session.trials["toy"] == "2 of 6 (4 too long for the time left)"


def test_a_trial_without_its_data_is_left_out(session, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LECTURE6_DATA", str(tmp_path))
    assert gpu_steps.readable({"digits", "cifar10_jpeg"}) == {"digits"}
    said = capsys.readouterr().out
    assert "data: cifar10_jpeg is missing, its trials are left out: " in said
    assert said.endswith("data: digits\n")
    monkeypatch.setitem(STUDIES, "toy", toy(tmp_path, {"data": "cifar10_jpeg"}, {}))
    gpu_steps.run_study(session, "toy", "gpu", {"digits"}, 0.0)
    assert session.trials["toy"] == "1 of 2 (1 lack data)"
    assert not session.failed


@pytest.mark.parametrize("name", STUDIES)
def test_alone_a_trial_keeps_its_key(name):
    study = STUDIES[name]
    for profile in study.grids:
        swap = gpu_steps.jpeg(study, profile)
        for trial in study.trials(profile, swap)[:5]:
            [found] = gpu_steps.alone(study, profile, trial).trials(profile)
            assert found == trial
            assert found.parameters.get("data") != "cifar10"
    assert set(gpu.STUDIES) == set(STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_each_trial_of_profile_gpu_is_expected_to_end_in_time(name):
    assert max(STUDIES[name].costs["gpu"]) < gpu_steps.TRIAL_SECONDS


# ---- a bare machine ----------------------------------------------------------------------------


def test_all_that_is_imported_is_known_to_be_needed():
    """click is of the command; the others are of built-in data, of a cluster and of a download."""
    elsewhere = {"torch", "click", "sklearn", "mlxtend", "distributed", "torchvision", "lecture6"}
    used = {m: s for m, s in MODULES.items() if part(m) not in {"course", "__main__"}}
    found = {name.split(".")[0] for s in used.values() for name in imported(s, MODULES)}
    marked = [
        p for p in (ROOT / "tests").glob("test_*.py") if "\n@pytest.mark.gpu" in p.read_text()
    ]
    own = {p.stem for folder in ("tests", "benchmarks") for p in (ROOT / folder).glob("*.py")}
    for file in [*marked, ROOT / "tests/conftest.py"]:
        for node in ast.walk(ast.parse(file.read_text("utf8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    assert found - sys.stdlib_module_names - elsewhere - own <= set(gpu.NEEDED)
    assert {"pandas", "filelock", "scipy", "pytest"} <= found  # it is found where it is


def test_what_is_missing_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "NEEDED", gpu.NEEDED | {"no_such": "no-such", "nor_this": "nor"})
    monkeypatch.setattr(gpu, "WHEELS", tmp_path)
    assert gpu.missing() == ["no-such", "nor"]
    with pytest.raises(SystemExit) as caught:
        gpu.prepare(60.0, 0.0)
    assert str(caught.value) == (
        f"make gpu: {sys.executable} lacks no-such nor: where there is a network, "
        'make wheels WHEELS="no-such nor", and bring the folder wheels/ here'
    )
    monkeypatch.undo()
    assert gpu.missing() == []
    gpu.prepare(60.0, 0.0)


WHEEL = {
    "no_such.py": "value = 7\n",
    "no_such-1.0.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: no-such\nVersion: 1.0\nRequires-Dist: torch\n"
    ),
    "no_such-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
    "no_such-1.0.dist-info/RECORD": "",
}


@pytest.mark.slow
def test_wheels_are_installed_beside_what_is_there(tmp_path):
    """No network, nothing of the outer environment is installed again, and torch stays its own."""
    with zipfile.ZipFile(tmp_path / "no_such-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in WHEEL.items():
            wheel.writestr(name, text)
    python = gpu.install(["no-such"], tmp_path, tmp_path / "environment")
    code = "import no_such, importlib.util as u; print(no_such.value, u.find_spec('torch').origin)"
    found = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found == f"7 {torch.__file__}\n"
    with pytest.raises(subprocess.CalledProcessError):
        gpu.install(["nor-this"], tmp_path, tmp_path / "environment")
