"""The studies: real processes, real kill -9, a real full disk, a real Dask cluster."""

import ast
import contextlib
import hashlib
import importlib
import inspect
import json
import linecache
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from threading import Event, Thread
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import toy_study
from filelock import FileLock
from synthetic import gaussian_classes
from toy_study import study as toy

from lecture6 import data, models
from lecture6.course import figures
from lecture6.curvature import equal_layer_norms
from lecture6.landscape import interpolate
from lecture6.objective import NetworkObjective
from lecture6.sharpness import RandomSubspace, adaptive, worst_case
from lecture6.studies import STUDIES, Study, StudyError, collect, plan, run, runner, tabulate
from lecture6.studies import keskar as keskar_study
from lecture6.studies import trials as study_trials
from lecture6.studies.results import Stored, concat, select
from lecture6.studies.trials import TrialFiles, code_digest
from lecture6.train import train

HERE = Path(__file__).parent
BUILD = keskar_study.build
COMMAND = [sys.executable, "-m", "lecture6"]
SMITH = ["smith", "--profile", "smoke"]  # twelve trials of a fraction of a second
SMOKE = [*COMMAND, "run", *SMITH]
# glibc keeps the memory of arrays that are freed: else a third of such a run is the kernel's work.
KEEP = {"MMAP_THRESHOLD": 2**25, "TRIM_THRESHOLD": 2**30, "TOP_PAD": 2**26}
ENVIRONMENT = os.environ | {f"MALLOC_{name}_": str(size) for name, size in KEEP.items()}


def ran(log):
    """The trials that were started, in order."""
    return [int(line.split()[0]) for line in Path(log).read_text().splitlines()]


def toy_runner(log, folder, n, seconds, jobs=2):
    """A process that runs the toy study with so many workers; 1 is the process itself."""
    code = (
        "from pathlib import Path; from lecture6.studies import run; from toy_study import study\n"
        f"print(run(study({str(log)!r}, n={n}, seconds={seconds}), 'smoke', jobs={jobs}, "
        f"folder=Path({str(folder)!r})).finished)"
    )
    paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
    )


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def finished(folder, name="toy"):
    return sorted((folder / name).glob("*.json"))


# --- keys ---------------------------------------------------------------------------------------

MODULE = '''"""Docstring."""
import math
from lecture6.models import f1
SCALE = 2
UNUSED = 1
try:
    A = 1
except ImportError:
    A = 0
if math:
    B = 1
class Helper(dict):
    def used(self):
        return math.pi
def helper(x):
    """Text."""
    return SCALE * x  # comment
def other():
    return UNUSED
def trial(*, i):
    h = Helper()
    return [{"y": helper(i) + h.used() + A + B, "f": str(f1)}]
'''


@pytest.fixture
def digest_of(tmp_path, monkeypatch):
    """The digest of ``trial`` in a module with the given source."""
    monkeypatch.syspath_prepend(tmp_path)

    def digest_of(source):
        (tmp_path / "changing.py").write_text(source)
        sys.modules.pop("changing", None)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        importlib.invalidate_caches()
        linecache.clearcache()
        study_trials._read_module.cache_clear()
        return code_digest(importlib.import_module("changing").trial)

    yield digest_of
    sys.modules.pop("changing", None)
    study_trials._read_module.cache_clear()


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("    A = 1", "    A = 2", False),
        ("B = 1", "B = 2", False),
        ("# comment", "# another one", True),
        ('"""Text."""', '"""Other text."""', True),
        ("UNUSED = 1", "UNUSED = 3", False),
        ("return UNUSED", "return 7", False),
        ("def other", "\n\ndef other", True),
        ("SCALE = 2", "SCALE = 3", False),
        ("SCALE * x", "SCALE + x", False),
        ("math.pi", "math.e", False),
        ("helper(i)", "helper(2 * i)", False),
    ],
)
def test_a_key_follows_the_code_that_matters(digest_of, old, new, same):
    before = digest_of(MODULE)
    assert old in MODULE
    assert (digest_of(MODULE.replace(old, new)) == before) == same


VERSIONS = (  # 3.12 has type parameters and other f-strings, 3.13 leaves out empty lists
    "class A: pass\ndef f(x, *y, **z): return {}\n",
    "s = f'{x:.{n}f} {\"a\" + b!r:>{w}}, ' f'{m}' ''\nf('')\nt = 'η\\n'\n",
    "try:\n    pass\nexcept* ValueError:\n    return_ = {**a, None: 1e400j}\n",
)


def test_every_version_of_python_makes_the_same_keys():
    """The digest that Python 3.11.7, 3.12.1 and 3.13.0 all give, whichever runs this."""
    trees = [study_trials._plain(ast.parse(text)) for text in VERSIONS]
    assert hashlib.sha256(repr(trees).encode()).hexdigest()[:16] == "cf73e9053c279dc3"
    different = ["f('')", "f()", "f(None)", "f", "f''", "x = f''", "x = f'{x}'", "return", "'None'"]
    different += ["return None", "{**a}", "{None: a}", "{}", "[]", "a[:]", "a[::None]", "None"]
    assert len({repr(study_trials._plain(ast.parse(text))) for text in different}) == 17


def test_code_is_followed_into_the_package_and_not_into_what_runs_it():
    found = set(study_trials._used_modules(keskar_study.__name__))
    names = (
        "data",
        "data.timit",
        "models",
        "train",
        "objective",
        "sharpness",
        "landscape",
        "studies.keskar",
    )
    assert found >= {f"lecture6.{name}" for name in names}
    machinery = {f"lecture6.studies{name}" for name in ("", ".runner", ".trials", ".goyal")}
    assert not found & machinery
    assert not found & {
        "lecture6.studies.results",
        "lecture6.course.figures",
        "lecture6.course.report",
    }


def test_a_module_without_a_source_is_refused(monkeypatch):
    made = ModuleType("made")
    exec("def trial(*, i):\n    return {}", made.__dict__)
    monkeypatch.setitem(sys.modules, "made", made)
    with pytest.raises(StudyError, match="source of module 'made' cannot be read"):
        code_digest(made.trial)


def test_two_trials_of_a_module_differ():
    assert code_digest(toy_study.drawing) != code_digest(toy_study.answering)


MODULES = {
    "__init__": "from .inner import far as near\nmissing = 0",
    "inner": "import spread.deep\ndef far():\n    return spread.deep.value()",
    "deep": "def value():\n    from spread import late\n    return late.LATE",
    "late": "LATE = 1",
    "unused": "",
    "optional": "try:\n    import spread.none\nexcept ImportError:\n    pass",
    "study": "from spread import near, optional\ndef trial(*, i):\n    return near()",
}


def test_code_is_followed_through_imports_of_every_form(tmp_path, monkeypatch):
    (tmp_path / "spread").mkdir()
    for name, source in MODULES.items():
        (tmp_path / "spread" / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    found = study_trials._used_modules("spread.study")
    own = {name for name in found if not name.startswith("lecture6")}
    assert own == {
        "spread",
        *(f"spread.{name}" for name in MODULES if name not in ("__init__", "unused")),
    }
    before = code_digest(importlib.import_module("spread.study").trial)
    (tmp_path / "spread" / "late.py").write_text("LATE = 2")
    study_trials._read_module.cache_clear()
    assert code_digest(importlib.import_module("spread.study").trial) != before


def test_a_function_of_a_script_is_refused():
    def trial():
        pass

    trial.__module__ = "__main__"
    with pytest.raises(StudyError, match="must be in a module that workers can import"):
        code_digest(trial)


def test_parameters_are_numbers_that_can_be_written_down(tmp_path):
    for value in (float("nan"), {1}, np.int64(3)):
        study = Study("toy", "", toy_study.drawing, {"smoke": [{"i": value}]})
        with pytest.raises(StudyError, match="parameters must be finite numbers, strings and"):
            study.trials("smoke")


def test_equal_trials_are_one_and_parameters_make_the_key(tmp_path):
    study = toy(tmp_path / "log", n=3)
    keys = [t.key for t in study.trials("smoke")]
    assert len(set(keys)) == 3
    twice = Study("toy", "", study.trial, {"smoke": study.grids["smoke"] * 2})
    assert [t.key for t in twice.trials("smoke")] == keys
    other = Study("toy2", "", study.trial, study.grids)
    assert not {t.key for t in other.trials("smoke")} & set(keys)


def test_a_function_without_a_place_is_refused():
    def trial(*, i):
        return {}

    study = Study("toy", "", trial, {"smoke": [{"i": 0}]})
    with pytest.raises(StudyError, match="at its top level"):
        study.trials("smoke")


# --- running ------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_rows_stand_in_the_order_of_the_grid(tmp_path, jobs):
    study = toy(tmp_path / "log", n=4)
    outcome = run(study, "smoke", jobs=jobs, folder=tmp_path)
    assert outcome == runner.Outcome(4, {})
    assert sorted(ran(tmp_path / "log")) == [0, 1, 2, 3]
    tables, record = collect(study, "smoke", folder=tmp_path)
    table = tables["runs"]
    assert table.columns[:3].to_list() == ["i", "sizes", "seed"]
    assert table["i"].to_list() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert table["sizes"].iloc[-1] == "3, 2"
    np.testing.assert_array_equal(
        table["value"], [10 * (i + k / 3) for i in range(4) for k in (0, 1)]
    )
    assert record["trials"] == [4, 4]
    assert record["seeds"] == [0, 1]
    assert record["libraries"]["torch"] == [metadata.version("torch")]
    assert record["device"] == [runner.device_name()]
    assert re.match(r"commit \w{7}|version", record["code"][0])
    assert record["seconds"] >= 0
    assert len(record["date"]) == 2


def test_only_what_is_missing_is_run(tmp_path):
    study = toy(tmp_path / "log", n=4)
    with pytest.raises(StudyError, match=r"0 of the 4 trials .* lecture6 run toy"):
        collect(study, "smoke", folder=tmp_path, partial=True)
    run(study, "smoke", folder=tmp_path)
    assert run(study, "smoke", folder=tmp_path).finished == 0
    lost = TrialFiles(study, tmp_path).path(study.trials("smoke")[2])
    lost.unlink()
    with pytest.raises(StudyError, match="3 of the 4"):
        collect(study, "smoke", folder=tmp_path)
    assert len(collect(study, "smoke", folder=tmp_path, partial=True)[0]["runs"]) == 6
    assert run(study, "smoke", folder=tmp_path).finished == 1
    assert ran(tmp_path / "log") == [0, 1, 2, 3, 2]


def test_a_trial_that_fails_stops_no_other_and_is_tried_again(tmp_path):
    study = toy(tmp_path / "log", n=3, fail_until=1)
    outcome = run(study, "smoke", folder=tmp_path)
    assert outcome.finished == 0
    [(error, trials)] = outcome.failed.items()
    assert error == "ArithmeticError: this trial fails at first"
    assert [t.parameters["i"] for t in trials] == [0, 1, 2]
    assert run(study, "smoke", folder=tmp_path).finished == 3


def test_the_plan_learns_from_what_was_measured(tmp_path):
    study = toy(tmp_path / "log", n=4, seconds=0.2)
    assert plan(study, "smoke", folder=tmp_path).seconds == 4  # 1 s a trial, as the study says
    run(study, "smoke", folder=tmp_path)
    for path in finished(tmp_path)[:2]:
        path.unlink()
    todo = plan(study, "smoke", folder=tmp_path)
    assert (len(todo.trials), len(todo.finished)) == (4, 2)
    took = [json.loads(path.read_text())["record"]["seconds"] for path in finished(tmp_path)]
    assert todo.seconds == pytest.approx(sum(took))  # two are left, and two were measured
    assert todo.seconds >= 0.4
    assert [runner.duration(s) for s in (0.2, 89, 720, 12600)] == ["1 s", "89 s", "12 min", "3.5 h"]


def test_data_sets_are_loaded_named_and_replaced(tmp_path):
    study = STUDIES["keskar"]
    smoke = study.trials("smoke", {"mnist5k": "digits"})
    assert {t.parameters["data"] for t in smoke} == {"digits"}
    assert not {t.key for t in smoke} & {t.key for t in study.trials("smoke")}
    with pytest.raises(StudyError, match=r"no trial .* uses cifar10; they use mnist5k"):
        study.trials("smoke", {"cifar10": "digits"})
    with pytest.raises(StudyError, match=r"unknown data set 'mnits'; the known names are digits"):
        study.trials("smoke", {"mnist5k": "mnits"})
    with pytest.raises(StudyError, match="profiles smoke, book, full, evidence, gpu, not 'tiny'"):
        study.trials("tiny")
    full = study.trials("full", {"mnist": "fashion_mnist"})
    assert [t.cost for t in full] == [t.cost for t in study.trials("full")]


def test_the_data_set_is_loaded_and_its_checksum_kept(tmp_path):
    study = Study("sized", "", sized, {"smoke": [{"data": "mnist5k", "i": 0}]})
    run(study, "smoke", folder=tmp_path, replace={"mnist5k": "digits"})
    with pytest.raises(StudyError, match="with the same --folder and --data"):
        collect(study, "smoke", folder=tmp_path)
    tables, record = collect(study, "smoke", folder=tmp_path, replace={"mnist5k": "digits"})
    digits = data.load("digits")
    assert tables["runs"]["n"].to_list() == [digits.n_train]
    assert record["data"] == {"digits": digits.checksum}
    study = Study("sized", "", sized, {"smoke": [{"data": "digits", "i": i} for i in (0, 1)]})
    run(study, "smoke", folder=tmp_path)
    path = TrialFiles(study, tmp_path).path(study.trials("smoke")[0])
    path.write_text(path.read_text().replace(digits.checksum, "0" * 64))
    with pytest.raises(StudyError, match="digits changed between trials"):
        collect(study, "smoke", folder=tmp_path)


def sized(*, data, i):
    return {"runs": [{"n": data.n_train}]}


def test_a_row_that_json_cannot_hold_fails_its_trial_alone(tmp_path):
    values = ["nan", "tensor", "number"]
    grid = [{"value": value} for value in values]
    study = Study("answering", "", toy_study.answering, {"smoke": grid})
    outcome = run(study, "smoke", folder=tmp_path)
    assert outcome.finished == 1
    failed = {t.parameters["value"]: error for error, [t] in outcome.failed.items()}
    assert failed["nan"].startswith("ValueError: Out of range float")
    assert failed["tensor"].startswith("TypeError: Object of type Tensor")


def test_a_trial_that_returns_no_rows_by_kind_says_so(tmp_path):
    study = Study("listing", "", listing, {"smoke": [{"i": 0}]})
    [error] = run(study, "smoke", folder=tmp_path).failed
    assert error == "TypeError: a trial returns rows by kind, got a list"


def several(*, seed):
    return {"runs": [{"seed": seed + 1}, {"seed": seed}]}


def test_the_record_has_the_seeds_of_trials_with_several(tmp_path):
    study = Study("several", "", several, {"smoke": [{"seed": 3}, {"seed": 7}]})
    run(study, "smoke", folder=tmp_path)
    tables, record = collect(study, "smoke", folder=tmp_path)
    assert record["seeds"] == [3, 4, 7, 8]
    assert tables["runs"]["seed"].to_list() == [4, 3, 8, 7]


def listing(*, i):
    return [{"i": i}]


@pytest.mark.parametrize("rows", [5, "ab", [5], [[{"i": 1}]], [{"i": 1}, None]])
def test_a_trial_that_returns_other_rows_fails_alone(tmp_path, rows):
    """Or else its file would be refused when it is read."""
    grid = {"smoke": [{"rows": rows, "i": i} for i in (0, 1)]}
    study = Study("giving", "", giving, grid)
    outcome = run(study, "smoke", folder=tmp_path)
    assert outcome.finished == 1
    [error] = outcome.failed
    assert re.match(
        "TypeError: (a trial returns a dict for each row|'int' object is not it)", error
    )
    assert collect(study, "smoke", folder=tmp_path, partial=True)[1]["trials"] == [1, 2]


def giving(*, rows, i):
    return {"runs": [{"i": i}] if i else rows}


def test_a_worker_with_other_code_is_refused(tmp_path):
    trial = toy(tmp_path / "log").trials("smoke")[0]
    answer, error = runner._work(trial, ("toy_study", "_without_sizes", "another digest", "", {}))
    assert answer is None
    assert "the worker has other code than the runner: lecture6" in error
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"jobs": 1.5}, "jobs must be a whole number, got 1.5"),
        ({"backend": "dask"}, "'dask' with a scheduler's address"),
        ({"backend": "threads"}, "got 'threads'"),
        ({"scheduler": "tcp://x:1"}, "must be 'loky' without a scheduler"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, options, message):
    with pytest.raises((StudyError, ValueError), match=message):
        run(toy(tmp_path / "log"), "smoke", folder=tmp_path, **options)
    assert not (tmp_path / "log").exists()


def test_a_trial_has_a_gpu_to_itself(monkeypatch, tmp_path):
    taken, using = [], []

    @contextlib.contextmanager
    def use(gpu):
        using.append(gpu)
        taken.append(sorted(using))
        yield
        using.remove(gpu)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", use)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=i))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(runner, "POLL", 0.01)
    go_on = Event()

    def work():
        with runner._own_gpu():
            go_on.wait(60)

    threads = [Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(taken) == 2)
    time.sleep(0.1)
    assert taken[1] == [0, 1]  # and the third waits
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(taken) == 3
    assert not using


def test_a_profile_can_have_a_trial_of_its_own(tmp_path):
    grids = {"smoke": [{"value": "number"}], "sized": [{"data": "digits", "i": 0}]}
    study = Study("two", "", toy_study.answering, grids, own_trials={"sized": sized})
    alone = Study("two", "", toy_study.answering, grids)
    for profile, same in (("smoke", True), ("sized", False)):
        keys = [[t.key for t in s.trials(profile)] for s in (study, alone)]
        assert (keys[0] == keys[1]) == same
        assert run(study, profile, folder=tmp_path).finished == 1
    assert collect(study, "sized", folder=tmp_path)[0]["runs"]["n"].to_list() == [1437]
    assert collect(study, "smoke", folder=tmp_path)[0]["runs"]["result"].to_list() == [1.0]


def test_a_trial_can_keep_a_checkpoint_until_it_has_finished(tmp_path):
    study = Study("resumed", "", toy_study.resumed, {"smoke": [{"i": 0}]})
    outcome = run(study, "smoke", folder=tmp_path)
    assert list(outcome.failed) == ["ArithmeticError: no checkpoint at .checkpoint"]
    assert len(list(tmp_path.glob("resumed/*.checkpoint"))) == 1
    assert run(study, "smoke", jobs=2, folder=tmp_path).finished == 1
    assert collect(study, "smoke", folder=tmp_path)[0]["runs"]["found"].to_list() == ["kept"]
    assert list(tmp_path.glob("resumed/*.checkpoint")) == []


# --- several processes that torchrun starts -----------------------------------------------------


def torchrun(code, *, processes=2):
    """Run code by torchrun; it finds the modules of the tests."""
    paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    command = ["--standalone", "--nproc-per-node", processes, "--no-python", sys.executable]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *map(str, command), "-c", code],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


SHARED = """
from pathlib import Path
import toy_study
from lecture6.studies import Study, run
grid = [{{"i": i, "log": {log!r}}} for i in range(3)]
grid[{failing}]["fail_on"] = {fail_on}
study = Study("shared", "", toy_study.{trial}, {{"smoke": grid}})
outcome = run(study, "smoke", folder=Path({folder!r}))
print(f"finished {{outcome.finished}}\\n", end="", flush=True)
"""


def shared(tmp_path, failing=0, fail_on=None, trial="shared"):
    values = {"log": str(tmp_path / "log"), "folder": str(tmp_path), "trial": trial}
    return torchrun(SHARED.format(failing=failing, fail_on=fail_on, **values))


@pytest.mark.slow
def test_processes_of_torchrun_share_each_trial(tmp_path):
    """But the first, which a process alone has finished."""
    grid = {"smoke": [{"i": 0, "log": str(tmp_path / "log"), "fail_on": None}]}
    assert run(Study("shared", "", toy_study.shared, grid), "smoke", folder=tmp_path).finished
    done = shared(tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["finished 0", "finished 2"]
    kept = [json.loads(path.read_text()) for path in finished(tmp_path, "shared")]
    kept = {trial["parameters"]["i"]: trial for trial in kept}
    rows = {i: trial["rows"]["runs"] for i, trial in kept.items()}
    assert rows.pop(0) == [{"ranks": 0, "size": 1}]
    assert rows == {i: [{"ranks": 1, "size": 2}] for i in (1, 2)}
    assert kept[1]["record"]["device"] == f"2 × {runner.device_name()}"
    for r in (0, 1):
        assert Path(f"{tmp_path}/log-{r}").read_text() == "1\n2\n"


@pytest.mark.slow
@pytest.mark.parametrize("fail_on", [0, 1])
def test_a_trial_that_fails_in_one_process_ends_the_job_and_keeps_the_others(tmp_path, fail_on):
    done = shared(tmp_path, failing=1, fail_on=fail_on)
    assert done.returncode != 0
    assert f"rank {fail_on}: i 1, log {tmp_path}/log, fail_on {fail_on} failed" in done.stderr
    assert "ArithmeticError: this process fails" in done.stderr
    assert "finished" not in done.stdout
    [kept] = finished(tmp_path, "shared")
    assert json.loads(kept.read_text())["parameters"]["i"] == 0


@pytest.mark.slow
def test_what_is_refused_ends_the_processes_of_torchrun(tmp_path):
    """Those too that wait for the one that refuses it."""
    done = shared(tmp_path, trial="resumed")
    assert done.returncode != 0
    assert "cannot be shared by several processes: run the study without" in done.stderr
    assert finished(tmp_path, "shared") == []
    assert list(tmp_path.glob("log*")) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 2}, "torchrun's processes share one trial at a time: leave out --jobs"),
        ({"backend": "dask", "scheduler": "tcp://x:1"}, "leave out --jobs and --backend"),
    ],
)
def test_what_processes_of_torchrun_cannot_do_is_refused(tmp_path, monkeypatch, options, message):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    study = Study("shared", "", toy_study.shared, {"smoke": [{"i": 0, "log": "log"}]})
    with pytest.raises(StudyError, match=message):
        run(study, "smoke", folder=tmp_path, **options)
    assert finished(tmp_path, "shared") == []


# --- interruptions ------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_runners_share_a_folder_and_do_nothing_twice(tmp_path):
    """Of one the workers do the trials, of the other it does them itself."""
    options = {"n": 12, "seconds": 0.3}
    runners = [toy_runner(tmp_path / "log", tmp_path, **options, jobs=jobs) for jobs in (2, 1)]
    done = [int(p.communicate(timeout=300)[0]) for p in runners]
    assert sum(done) == 12
    assert min(done) > 0, "one of them came too late to share"
    assert sorted(ran(tmp_path / "log")) == list(range(12))


@pytest.mark.slow
def test_a_trial_whose_worker_dies_is_tried_again_and_then_given_up(tmp_path):
    log = tmp_path / "log"
    study = toy(log, n=3)
    study.grids["smoke"][1]["kill_until"] = 1
    assert run(study, "smoke", jobs=2, folder=tmp_path).finished == 3
    assert ran(log).count(1) == 2
    study = toy(log, n=3)
    study.grids["smoke"][1] |= {"i": 3, "kill_until": 9}
    outcome = run(study, "smoke", jobs=2, folder=tmp_path / "2")
    [(error, trials)] = outcome.failed.items()
    assert error.startswith("the worker process died, twice")
    assert 3 in [t.parameters["i"] for t in trials]
    assert outcome.finished >= 1  # one beside it may have been hit both times
    assert ran(log).count(3) == 2


@pytest.mark.slow
def test_ctrl_c_in_a_notebook_lets_the_same_process_go_on(tmp_path):
    study = toy(tmp_path / "log", n=2, interrupt_until=1)
    with pytest.raises(KeyboardInterrupt) as kept:  # as a notebook keeps the last traceback
        run(study, "smoke", folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(study, "smoke", folder=tmp_path)
    assert run(study, "smoke", folder=tmp_path).finished == 1
    assert kept.traceback


@pytest.mark.slow
def test_a_killed_runner_takes_its_workers_along_and_frees_its_trials(tmp_path):
    log = tmp_path / "log"
    first = toy_runner(log, tmp_path, n=4, seconds=60)
    until(lambda: log.exists() and len(ran(log)) == 2)
    workers = {int(line.split()[1]) for line in log.read_text().splitlines()}
    first.kill()
    first.communicate()

    def gone(pid):
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().split()[2] == "Z"

    until(lambda: all(gone(pid) for pid in workers), 20)
    log.unlink()
    study = toy(log, n=4, seconds=60)
    path = TrialFiles(study, tmp_path).path(study.trials("smoke")[0], ".lock")
    assert path.exists()
    with FileLock(path, blocking=False):
        pass  # nobody holds it


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The smoke study of Smith, in one go: what is collected, and the seconds."""
    folder, start = tmp_path_factory.mktemp("uninterrupted"), time.monotonic()
    command = [*SMOKE, "--jobs", "2", "--folder", folder]
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    return collected(folder), time.monotonic() - start


def collected(folder):
    """The collected tables' bytes, and the record without times and dates."""
    command = [*COMMAND, "collect", *SMITH, "--folder", folder, "--to", folder / "to"]
    subprocess.run(command, check=True, capture_output=True)
    record = json.loads((folder / "to" / "smith.json").read_text())
    tables = {path.name: path.read_bytes() for path in (folder / "to").glob("*.parquet")}
    assert len(tables) == 2
    return tables, record | {"seconds": 0, "date": 0}


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path, uninterrupted):
    """Kills at random moments; a study that was over before the last kill starts again.

    Every third at any moment, from the first import on; the others once a trial has finished. Half
    of the runners have workers, and half do the trials themselves.
    """
    expected, seconds = uninterrupted
    rng, kills, kept, rounds = random.Random(0), 0, [0], 0
    while kills < 20:
        folder, jobs = tmp_path / str(rounds), str(1 + kills // 2 % 2)
        process = subprocess.Popen(
            [*SMOKE, "--jobs", jobs, "--folder", folder],
            env=ENVIRONMENT,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if kills % 3 == 2:
            moment = rng.uniform(0.0, 0.5) * seconds
        else:
            while process.poll() is None and len(finished(folder, "smith")) == kept[-1]:
                time.sleep(0.05)
            moment = rng.uniform(0.0, 0.3)
        try:
            assert process.wait(timeout=moment) == 0
            assert collected(folder) == expected
            rounds += 1
            kept.append(0)
            continue
        except subprocess.TimeoutExpired:
            kills += 1
        if kills % 2:
            process.kill()  # the runner alone
        else:
            os.killpg(process.pid, signal.SIGKILL)  # runner and workers: a power failure
        process.wait()
        now = len(finished(folder, "smith"))
        assert now >= kept[-1], "a finished trial was lost"
        kept.append(now)
    assert len(set(kept)) > 3, "the kills did not fall into the study"
    command = [*SMOKE, "--jobs", "2", "--folder", tmp_path / str(rounds)]
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    assert collected(tmp_path / str(rounds)) == expected


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path, small_disk):
    study = toy(tmp_path / "log", n=40)
    with pytest.raises(StudyError, match=r"No space left on device.*Finished trials are safe"):
        run(study, "smoke", folder=small_disk)
    kept = finished(small_disk)
    assert 0 < len(kept) < 40
    for path in kept:
        assert json.loads(path.read_text())["rows"]
    assert not list(small_disk.glob("**/*.partial"))
    shutil.copytree(small_disk / "toy", tmp_path / "roomy" / "toy")
    assert run(study, "smoke", folder=tmp_path / "roomy").finished == 40 - len(kept)
    assert len(collect(study, "smoke", folder=tmp_path / "roomy")[0]["runs"]) == 80


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match=r"cannot write in .*Nothing was run.*--folder"):
        run(toy(tmp_path / "log"), "smoke", folder=tmp_path / "file")
    assert not (tmp_path / "log").exists()


def test_a_damaged_trial_is_named(tmp_path):
    study = toy(tmp_path / "log", n=2)
    run(study, "smoke", folder=tmp_path)
    path = finished(tmp_path)[0]
    path.write_text(path.read_text()[:50])
    with pytest.raises(StudyError, match=rf"{path.name} is damaged .* delete it"):
        collect(study, "smoke", folder=tmp_path)


def without(key):
    """A change of a trial file: it lacks a key, of its record where that has it."""
    return lambda saved: (saved if key in saved else saved["record"]).pop(key)


def with_value(place, key, value):
    def change(saved):
        at = saved
        for name in place:
            at = at[name]
        at[key] = value

    return change


ALTERED = {
    **{f"no {key}": without(key) for key in ("key", "parameters", "record", "rows")},
    **{f"no {key}": without(key) for key in ("data", "seconds", "date", "device", "threads")},
    **{f"no {key}": without(key) for key in ("code", "libraries")},
    "no torch": lambda saved: saved["record"]["libraries"].pop("torch"),
    "a record that is a list": with_value([], "record", [1]),
    "seconds in words": with_value(["record"], "seconds", "3"),
    "seconds yes": with_value(["record"], "seconds", True),
    "seconds NaN": with_value(["record"], "seconds", float("nan")),
    "seconds below 0": with_value(["record"], "seconds", -1.0),
    "threads None": with_value(["record"], "threads", None),
    "a device in a list": with_value(["record"], "device", ["CPU"]),
    "a date as a number": with_value(["record"], "date", 20261127),
    "data 3": with_value(["record"], "data", 3),
    "a checksum in a list": with_value(["record", "data"], "digits", [1]),
    "rows 5": with_value([], "rows", 5),
    "rows in a list": with_value([], "rows", [{"value": 1.0}]),
    "rows of numbers": with_value(["rows"], "runs", [5]),
    "rows of one number": with_value(["rows"], "runs", 5),
    "rows in words": with_value(["rows"], "runs", "ab"),
    "parameters 3": with_value([], "parameters", 3),
    "another parameter": with_value(["parameters"], "seed", 9),
    "the key of another trial": with_value([], "key", "0" * 20),
    "key None": with_value([], "key", None),
}
OTHER_JSON = ["null", "[1]", "{}", "5", '"text"', "true", "[[]]", "[" * 99, "", " ", "NaN"]
OTHER_JSON += [f"{100_000 * '['}{100_000 * ']'}"]


def assert_all_name_it(study, path, folder):
    for function in (plan, run, collect):
        with pytest.raises(StudyError) as caught:
            function(study, "smoke", folder=folder)
        message = str(caught.value)
        assert message.startswith(f"{path} is damaged or cannot be read (")
        assert message.endswith("delete it and run the study again")


@pytest.mark.parametrize("content", OTHER_JSON, ids=lambda content: content[:9])
def test_valid_json_that_is_no_trial_is_named_by_all(content, tmp_path):
    """Finding B11."""
    study = toy(tmp_path / "log", n=2)
    run(study, "smoke", folder=tmp_path)
    path = finished(tmp_path)[1]
    path.write_text(content)
    assert_all_name_it(study, path, tmp_path)
    path.unlink()
    assert run(study, "smoke", folder=tmp_path).finished == 1


@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_trial_is_named_by_all(name, tmp_path):
    """Finding B11: plan, run and collect agree on whether a trial is finished."""
    study = toy(tmp_path / "log", n=2)
    run(study, "smoke", folder=tmp_path)
    path = finished(tmp_path)[0]
    saved = json.loads(path.read_text())
    ALTERED[name](saved)
    path.write_text(json.dumps(saved))
    assert_all_name_it(study, path, tmp_path)


def test_the_file_of_another_trial_is_named(tmp_path):
    study = toy(tmp_path / "log", n=2)
    run(study, "smoke", folder=tmp_path)
    one, other = finished(tmp_path)
    shutil.copyfile(one, other)
    assert_all_name_it(study, other, tmp_path)


def test_a_tilde_in_a_folder_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert TrialFiles(toy(tmp_path / "log"), "~/kept").folder == tmp_path / "kept" / "toy"


# --- a cluster ----------------------------------------------------------------------------------


@contextlib.contextmanager
def cluster_of(n_workers, n_threads):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=n_workers, threads_per_worker=n_threads, processes=True, dashboard_address=None
    ) as cluster:
        yield cluster


@pytest.mark.slow
def test_a_cluster_gives_the_same_table_though_a_worker_is_killed(tmp_path, uninterrupted):
    with cluster_of(2, 1) as cluster:
        command = [*SMOKE, "--folder", tmp_path, *["--backend", "dask", "--scheduler"]]
        process = subprocess.Popen(
            [*command, cluster.scheduler_address], stderr=subprocess.PIPE, text=True
        )
        until(lambda: finished(tmp_path, "smith") or process.poll() is not None, 120)
        assert process.poll() is None, "the study was over before the worker was killed"
        os.kill(cluster.workers[0].pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert collected(tmp_path) == uninterrupted[0]


@pytest.fixture(scope="module")
def one_worker():
    """The options of a run on a cluster of one worker, which has four threads."""
    with cluster_of(1, 4) as cluster:
        yield {"backend": "dask", "scheduler": cluster.scheduler_address}


@pytest.mark.slow
def test_a_worker_with_many_threads_runs_one_trial_at_a_time(tmp_path, one_worker):
    grid = {"smoke": [{"i": i} for i in range(8)]}
    study = Study("drawing", "", toy_study.drawing, grid)
    assert run(study, "smoke", folder=tmp_path, **one_worker, jobs=4).finished == 8
    tables, _ = collect(study, "smoke", folder=tmp_path)
    alone = [toy_study.drawing(i=i)["runs"][0] for i in range(8)]
    assert tables["runs"]["value"].to_list() == [row["value"] for row in alone]


@pytest.mark.slow
def test_a_cluster_does_the_work_and_one_that_cannot_says_so(tmp_path, monkeypatch, one_worker):
    log, options = tmp_path / "log", one_worker | {"folder": tmp_path}
    assert run(toy(log, n=2), "smoke", **options).finished == 2
    assert str(os.getpid()) not in log.read_text().split()

    (tmp_path / "only_here.py").write_text("def trial(*, i):\n    return {'runs': [{'i': i}]}\n")
    monkeypatch.syspath_prepend(tmp_path)
    trial = importlib.import_module("only_here").trial
    study = Study("here", "", trial, {"smoke": [{"i": 0}, {"i": 1}]})
    outcome = run(study, "smoke", **options)
    [(error, trials)] = outcome.failed.items()
    assert "No module named 'only_here'" in error
    assert len(trials) == 2


@pytest.mark.slow
def test_a_cluster_that_is_not_there(tmp_path):
    with pytest.raises(StudyError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1"):
        run(
            toy(tmp_path / "log"),
            "smoke",
            folder=tmp_path,
            backend="dask",
            scheduler="tcp://127.0.0.1:1",
        )


# --- Keskar's study -----------------------------------------------------------------------------


def small_net(net, images, seed):
    return models.mlp(64, 12, seed=seed)


@pytest.fixture(scope="module")
def pair(one_thread):
    """A pair of small nets on digits: its parameters and its rows."""
    images = data.load("digits").subset(60, 50)
    parameters = dict(
        net="F1", group="pair", seed=3, batch_sizes=[10, 30], lr=1e-3, epochs=2, evaluations=2
    )
    parameters |= {"n_sharpness": 40, "n_columns": 3, "lbfgsb": True, "bf16": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keskar_study, "build", small_net)
        yield images, parameters, keskar_study.trial(data=images, **parameters)


def test_the_nets_are_the_papers():
    images = SimpleNamespace(input_shape=(1, 28, 28), n_classes=10)
    sound = SimpleNamespace(input_shape=(360,), n_classes=1973)
    colour = SimpleNamespace(input_shape=(3, 32, 32), n_classes=10)
    for net, inputs, expected in (
        ("F1", images, models.f1(784, 10)),
        ("F2", sound, models.f2(360, 1973)),
        ("C1", colour, models.c1(10)),
        ("C1, stride 2", colour, models.c1(10, stride=2)),
    ):
        built = keskar_study.build(net, inputs, seed=0)
        assert str(built) == str(expected)
        assert torch.equal(models.flat_parameters(built), models.flat_parameters(expected))


def chosen(rows, **where):
    """The only row with these values."""
    [row] = [r for r in rows if all(r[k] == v for k, v in where.items())]
    return row


def test_a_trial_is_pure(pair):
    images, parameters, rows = pair
    assert keskar_study.trial(data=images, **parameters) == rows
    assert keskar_study.trial(data=images, **parameters | {"seed": 4}) != rows


def test_a_trial_reports_what_training_and_sharpness_give(pair):
    images, _, rows = pair
    part = images.subset(40)
    runs = {}
    for size in (10, 30):
        net = small_net("", images, seed=3)
        options = {"lr": 1e-3, "optimizer": "adam", "seed": 3, "epochs": 2}
        runs[size] = train(net, images, batch_size=size, **options)
        here = {"batch_size": size}
        for h in runs[size].history.itertuples():
            row = chosen(rows["history"], split=h.split, epoch=h.epoch, **here)
            assert (row["loss"], row["accuracy"], row["distance"]) == (
                h.loss,
                h.accuracy,
                h.distance,
            )
        assert chosen(rows["runs"], **here)["n_updates"] == runs[size].n_updates
        f = NetworkObjective(runs[size].model, part.x_train, part.y_train)
        columns = RandomSubspace(f.n_params, 3, seed=3)
        for space, subspace in (("full space", None), ("p = 3", columns)):
            for epsilon in (1e-3, 5e-4):
                phi = worst_case(
                    f,
                    f.w,
                    epsilon=epsilon,
                    subspace=subspace,
                    method="ascent",
                    n_iterations=10,
                    seed=3,
                )
                where = {"space": space, "epsilon": epsilon, **here}
                row = chosen(rows["sharpness"], solver="ascent", **where)
                assert (row["value"], row["gap"]) == (phi.value, phi.gap)
                searched = chosen(rows["sharpness"], solver="lbfgsb", **where)
                assert 0 < searched["value"] < 3 * phi.value
    sets = {"train": NetworkObjective(runs[10].model, part.x_train, part.y_train)}
    line = interpolate(sets, runs[10].w, runs[30].w)
    found = pd.DataFrame(rows["path"]).query("path == 'linear' and split == 'train'")
    pd.testing.assert_frame_equal(found[line.columns], line)
    assert len(rows["path"]) == 2 * 2 * 25  # paths, splits, positions


@pytest.fixture
def tables(pair):
    """What collect would make of the pair, and of another seed of half its losses and values."""
    _, parameters, rows = pair
    tables = tabulate([(parameters, rows)])
    halved = ("loss", "accuracy", "value")
    other = {
        kind: t.assign(seed=4, **{c: t[c] / 2 for c in halved if c in t})
        for kind, t in tables.items()
    }
    return concat(tables, other)


def test_the_tables_give_the_figures_what_they_want(tables):
    pairs = select(tables, net="F1", group="pair")
    last = keskar_study.final(pairs)
    assert last.index.to_list() == [3, 4]
    assert last.columns.to_list() == [10, 30]
    h = tables["history"].query("seed == 3 and batch_size == 30 and split == 'test' and epoch == 2")
    assert last.loc[3, 30] == h.accuracy.item()
    np.testing.assert_array_equal(last.loc[4], last.loc[3] / 2)

    history = keskar_study.figure_4(pairs["history"])
    assert sorted(history.epoch.unique()) == [0, 1, 2]
    assert set(history.label) == {"batch 10", "batch 30"}
    figure = figures.accuracy(history, title="t", provenance="p")
    shown = [t for t in figure.data if t.name == "batch 30, test"][-1]
    assert shown.y[-1] == pytest.approx(100 * last[30].mean())

    path = pairs["path"].query("path == 'linear'")
    assert len(path) == 2 * 2 * 25  # seeds, splits, positions
    figures.interpolation(path, title="t", provenance="p")

    gap = keskar_study.sharpness(pairs, "p = 3", 1e-3, solver="lbfgsb", column="gap")
    s = tables["sharpness"].query("space == 'p = 3' and epsilon == 1e-3 and solver == 'lbfgsb'")
    assert gap.loc[3, 10] == s.query("seed == 3 and batch_size == 10").gap.item()
    with pytest.raises(ValueError, match="several runs have this accuracy: select one group"):
        keskar_study.final(concat(tables, tables))


def test_a_sweep_has_the_seeds_that_have_every_batch_size(tables):
    grid = {
        kind: t.query("batch_size == 30 and seed == 3").assign(group="grid", batch_size=20)
        for kind, t in tables.items()
        if kind != "path"
    }
    both = concat(grid, tables)
    swept = keskar_study.sweep(
        {k: t.assign(data="digits") for k, t in both.items()}, "F1", "digits"
    )
    assert set(swept["runs"].seed) == {3}
    by_size = keskar_study.figure_7(swept)
    assert by_size.batch_size.to_list() == [10, 20, 30] * 2
    at = (by_size.epsilon == 5e-4) & (by_size.batch_size == 20)
    assert by_size[at].accuracy.item() == keskar_study.final(swept).loc[3, 20]
    phi = keskar_study.sharpness(swept, "full space", 5e-4)
    assert by_size[at].sharpness.item() == phi.loc[3, 20]
    figures.accuracy_and_sharpness(by_size, title="t", provenance="p")


def test_the_caption_says_what_was_run(tables):
    record = {"profile": "full", "device": ["CPU"], "date": ["2026-11-23", "2026-11-24"]}
    stored = Stored(tables, record | {"code": ["commit 1234567"]})
    assert keskar_study.caption(stored, tables["runs"].assign(data="timit:183")) == (
        "stored, profile full · F1 on timit:183, 36,420 training samples (40 of them for "
        "sharpness and paths) · 2 epochs · seeds 3, 4 · "
        "CPU · 2026-11-24 · commit 1234567"
    )


def test_a_run_is_measured_on_the_way_and_ends_when_it_fits(pair):
    """Each moment is what a run of that many epochs is, and each measure the package's own."""
    images, parameters, _ = pair
    point = parameters | {"batch_sizes": [10], "lbfgsb": False, "n_columns": 0, "lr": 1e-2}
    point |= {"epochs": 30, "evaluations": 30}
    settings = {"batch_size": 10, "lr": 1e-2, "optimizer": "adam", "seed": 3}
    whole = train(small_net("", images, 3), images, epochs=30, **settings)
    found = whole.history[whole.history.split == "train"]
    losses = [found.loss.iloc[6] + 1e-6, found.loss.iloc[12]]
    first = [int(found.epoch[found.loss <= level].iloc[0]) for level in losses]
    enough = found.accuracy.iloc[20]
    end = int(found.epoch[found.accuracy >= enough].iloc[0])
    assert 4 < first[0] < end < 30
    more = {"measure_at": [4], "losses": losses, "enough": enough}
    rows = keskar_study.trial(data=images, **point | more)
    last = pd.DataFrame(rows["history"]).query("last")
    assert last.epoch.to_list() == [end, end]
    moments = {"epoch 4": 4, "end": end}
    moments |= {f"loss {x:g}": e for x, e in zip(losses, first, strict=True) if e <= end}
    assert {r["at"] for r in rows["sharpness"]} == set(moments)
    part = images.subset(40)
    for at, epoch in moments.items():
        run = train(small_net("", images, 3), images, epochs=epoch, **settings)
        f = NetworkObjective(run.model, part.x_train, part.y_train)
        phi = worst_case(f, f.w, epsilon=1e-3, method="ascent", n_iterations=10, seed=3)
        row = chosen(rows["sharpness"], at=at, epsilon=1e-3)
        assert (row["value"], row["loss"]) == (phi.value, phi.loss)
    tables = tabulate([(point, rows)])
    assert keskar_study.final(tables).loc[3, 10] == last.accuracy.iloc[1]
    assert keskar_study.sharpness(tables, "full space", 1e-3).loc[3, 10] == phi_at_end(rows)


def phi_at_end(rows):
    return chosen(rows["sharpness"], at="end", epsilon=1e-3)["value"]


def test_a_run_whose_loss_ceases_to_improve_ends(pair):
    images, parameters, _ = pair
    point = parameters | {"batch_sizes": [10], "n_sharpness": 0, "epochs": 40, "evaluations": 40}
    rows = keskar_study.trial(data=images, **point | {"lr": 3.0, "patience": 2, "enough": 1.0})
    loss = [r["loss"] for r in rows["history"] if r["split"] == "train"]
    best = loss.index(min(loss))
    assert len(loss) - 1 == best + 2 < 40
    assert [r["last"] for r in rows["history"]] == [False] * 2 * (best + 2) + [True, True]


@pytest.mark.slow
def test_what_the_length_of_layers_cannot_change(one_thread, monkeypatch):
    images = data.load("digits").subset(60, 50)
    monkeypatch.setattr(keskar_study, "build", lambda net, images, seed: models.f1(64, seed=seed))
    point = dict(net="F1", group="pair", seed=3, batch_sizes=[20], lr=1e-3, epochs=1)
    point |= {"n_sharpness": 40, "n_columns": 0, "invariant": True, "bf16": False}
    rows = keskar_study.trial(data=images, **point)
    settings = {"batch_size": 20, "lr": 1e-3, "optimizer": "adam", "seed": 3, "epochs": 1}
    net = train(keskar_study.build("F1", images, 3), images, **settings).model
    part = images.subset(40)
    for weights, model in (("as trained", net), ("equal norms", equal_layer_norms(net))):
        f = NetworkObjective(model, part.x_train, part.y_train)
        phi = worst_case(f, f.w, epsilon=5e-4, method="ascent", n_iterations=10, seed=3)
        row = chosen(rows["sharpness"], weights=weights, solver="ascent", epsilon=5e-4)
        assert (row["value"], row["loss"]) == (phi.value, phi.loss)
        for epsilon in keskar_study.ADAPTIVE_EPSILONS:
            row = chosen(rows["sharpness"], solver="adaptive", epsilon=epsilon)
            found = adaptive(f, f.w, epsilon=epsilon, seed=3).value
            # the length changes nothing, but for the signs that a search takes of rounded slopes
            assert row["value"] == pytest.approx(found, rel=0.1)
    assert len(rows["sharpness"]) == 2 * 2 + 3
    assert keskar_study.sharpness(tabulate([(point, rows)]), "full space", 5e-4).notna().all().all()


def test_what_is_not_asked_for_is_left_out(pair):
    images, parameters, _ = pair
    rows = keskar_study.trial(data=images, **parameters | {"n_sharpness": 0, "n_train": 30})
    assert set(rows) == {"history", "runs"}
    assert chosen(rows["runs"], batch_size=10)["n_updates"] == 6


def test_the_full_grid_is_the_papers():
    grid = pd.DataFrame([t.parameters for t in STUDIES["keskar"].trials("full")])
    grid["n"] = grid["data"].map(keskar_study.TRAIN_SIZES)
    pairs = grid[grid.group == "pair"]
    seeds = pairs.groupby(["net", "data"]).seed.nunique()
    assert seeds["F1", "mnist"] >= 5
    assert seeds["F2", "timit"] >= 5
    assert seeds["F2", "timit:183"] >= 5
    assert seeds["C1, stride 2", "cifar10"] >= 3
    assert seeds["C1", "cifar10"] >= 3
    assert all(sizes == [256, n // 10] for sizes, n in zip(pairs.batch_sizes, pairs.n, strict=True))
    assert set(grid[grid.group != "tuned rate"].lr) == {1e-3}
    for net, name in (("F2", "timit"), ("C1, stride 2", "cifar10")):
        here = grid[(grid.net == net) & (grid["data"] == name) & grid.group.isin(["pair", "grid"])]
        assert len({size for sizes in here.batch_sizes for size in sizes}) >= 7
        assert len(set(here.epochs)) == 1
    for net in ("F1", "F2"):
        here = grid[grid.net == net]
        assert here[here.group == "tuned rate"].lr.nunique() >= 4
        updates = here[(here.group == "equal updates") & (here["data"] != "timit:183")].iloc[0]
        small = -(-updates.n // 256) * here[here.group == "pair"].epochs.iloc[0]
        assert updates.epochs * -(-updates.n // (updates.n // 10)) == pytest.approx(small, rel=0.01)


# --- grids --------------------------------------------------------------------------------------

SETTLED = ("evidence", "gpu")  # what book/plan.md says how it will be judged
PLAN = (HERE.parent / "book" / "plan.md").read_text("utf8")


def test_a_grid_is_read_from_blocks_with_axes_and_cases():
    block = {"lr": 0.1, "axes": {"seed": [0, 1]}}
    block["cases"] = [{"k": 1}, {"lr": 0.2, "axes": {"k": [2, 3], "sizes": [[4, 5]]}}]
    found = list(study_trials._expanded(block, {"n": 7}))
    own = [
        {"lr": 0.1, "k": 1},
        {"lr": 0.2, "k": 2, "sizes": [4, 5]},
        {"lr": 0.2, "k": 3, "sizes": [4, 5]},
    ]
    assert found == [{"n": 7, "seed": seed} | p for seed in (0, 1) for p in own]


def test_the_plan_says_what_the_grids_hold():
    runs = re.findall(r"^\| (R\d) \| `(\w+)` \| (.*?) \| (.*?) \| (\d+) \|$", PLAN, re.MULTILINE)
    assert [run for run, *_ in runs] == [f"R{i}" for i in range(1, 7)]
    seen = dict.fromkeys((study for _, study, *_ in runs), 0)
    for _, study, groups, replicates, n_trials in runs:
        grid = pd.DataFrame(STUDIES[study].grids["evidence"])
        own = grid[grid["group"].isin(re.findall("`(.*?)`", groups))]
        assert len(own) == int(n_trials)
        *subsets, seeds = map(int, re.findall(r"\d+", replicates))
        assert own["seed"].nunique() * own.get("replicas", pd.Series(1)).max() == seeds
        assert [own["subset"].nunique() for _ in subsets] == subsets
        seen[study] += len(own)
    assert seen == {name: len(study.grids["evidence"]) for name, study in STUDIES.items()}


def test_every_claim_of_the_plan_has_what_a_verdict_needs():
    """An effect with its unit and direction; a margin where it says "the same" or "no worse"."""
    for number in range(1, 7):
        section = PLAN.partition(f"\n## R{number}: ")[2].partition("\n## ")[0]
        lines = [line.strip("|").split("|") for line in section.splitlines() if line[:1] == "|"]
        head, _, *claims = [[cell.strip() for cell in line] for line in lines]
        assert head[1:3] == ["Effect and direction", "Margin"]
        assert len(claims) >= 4
        for claim, effect, margin, pairing, unknown in claims:
            assert claim
            assert unknown
            equal = "the same" in effect or "no worse" in effect
            assert equal != bool(re.search(r": (above|below|more than) \d", effect)), effect
            assert equal == (margin != "–") == bool(re.search(r"\d", margin)), effect
            assert pairing in ("seed", "subset", "each run")


def test_the_settled_grids_go_on_anywhere_and_decide_what_they_say():
    for name, study in STUDIES.items():
        for profile in SETTLED:
            grid = study.grids[profile]
            # Keskar's trial, written first, trains in bfloat16 where nothing is said
            assert all(p.get("bf16", name == "keskar") is False for p in grid)
            assert len(study.trials(profile)) == len(grid)  # none twice
            for p in grid:
                inspect.signature(study.trial_of(profile)).bind(**p)
    keskar = pd.DataFrame(STUDIES["keskar"].grids["evidence"])
    sweep = keskar[keskar.group == "sweep"]
    for (size,), epochs in zip(sweep.batch_sizes, sweep.epochs, strict=True):
        per_epoch = -(-36_420 // size)
        equal = [e for e in (epochs, 15) if e * per_epoch == pytest.approx(30 * 143, rel=0.01)]
        assert len(equal) == 1  # one of its moments is at as many updates as batch 256 makes
    ratio = pd.DataFrame(STUDIES["jastrzebski"].grids["evidence"]).query("group == 'ratio'")
    assert (ratio.lr / ratio.batch_size).round(9).nunique() == 4
    smith = pd.DataFrame(STUDIES["smith"].grids["evidence"])
    time = smith.updates * smith.lr / (1 - smith.momentum)
    assert time[smith.group == "lr"].round(6).unique().tolist() == [3000]
    for _, curve in smith.groupby(["n_train", "lr", "momentum", "group"]):
        near = np.sort(curve.batch_size.unique())[:-2]
        assert (near[1:] / near[:-1]).max() < 1.26  # 2^(1/4), and whole numbers


def test_every_trial_has_a_cost_and_one_for_a_gpu_takes_at_most_four_minutes_there():
    for study in STUDIES.values():
        assert {name: len(costs) for name, costs in study.costs.items()} == {
            name: len(grid) for name, grid in study.grids.items()
        }
        assert min(map(min, study.costs.values())) > 0
        assert max(study.costs["gpu"]) <= 240


TINY = {"epochs": 2, "evaluations": 2, "n_sharpness": 10, "updates": 4, "n_train": 24}
TINY |= {"batch_size": 8, "k": 2, "n": 4, "n_curvature": 10, "hidden": 12, "measure_at": [1]}
SHAPES = {"F2": (360,), "F1": (1, 8, 8), None: (1, 8, 8), "256-256-256": (1, 8, 8)}


def kinds():
    """One trial of each kind in the grids of profiles evidence and gpu."""
    found = {}
    for name, study in STUDIES.items():
        for profile in SETTLED:
            for p in study.grids[profile]:
                key = (
                    name,
                    p["group"],
                    p.get("net"),
                    len(p.get("batch_sizes", [])),
                    "n_train" in p,
                )
                found.setdefault(key, p)
    slow = {"VGG-11", "C1", "C1, stride 2"}
    marks = {True: [pytest.mark.slow], False: []}
    return [
        pytest.param(key[0], p, id=" ".join(map(str, key)), marks=marks[key[2] in slow])
        for key, p in found.items()
    ]


@pytest.mark.parametrize(("name", "point"), kinds())
def test_every_kind_of_trial_runs(one_thread, monkeypatch, name, point):
    monkeypatch.setattr(keskar_study, "build", BUILD)  # and not a test's small net
    monkeypatch.setattr(models, "N_HIDDEN", 12)  # of F1 and F2
    p = {key: TINY.get(key, value) for key, value in point.items() if key != "data"}
    if name == "keskar":
        p |= {"batch_sizes": [6, 12][: len(p["batch_sizes"])], "n_columns": p.get("n_columns", 2)}
    images = gaussian_classes(30, 20, shape=SHAPES.get(p.get("net"), (3, 32, 32)), n_classes=3)
    rows = STUDIES[name].trial(data=images, **p)
    json.dumps(rows, allow_nan=False)
    more = {"keskar": {"sharpness"}, "jastrzebski": {"curvature"}}.get(name, set())
    paths = {"path"} if len(p.get("batch_sizes", [])) == 2 else set()
    assert set(rows) == {"history", "runs"} | more | paths
    assert len(rows["runs"]) == p.get("replicas", len(p.get("batch_sizes", [0])))
    assert not any(row.get("diverged") for row in rows["runs"])


@pytest.mark.parametrize("name", ["mnist", "timit", "timit:183", "cifar10_jpeg"])
def test_the_sizes_in_the_grid_are_those_of_the_data(name, data_root):
    size = keskar_study.TRAIN_SIZES[name.removesuffix("_jpeg")]
    assert data.load(name, root=data_root, download=False).n_train == size
