"""Running a grid of trials so that nothing finished is lost, and nothing is done twice.

A study is a trial, which is a pure function of its parameters that returns rows of a tidy table,
and a grid of parameters for each profile. Every finished trial is one file, written atomically,
under a key made of its parameters and of all code in the package that the trial can reach. So a
killed run continues where it stopped, a change of code makes anew what depends on it, and a
comment changes nothing. The runner, not the worker, writes: workers of a cluster need no shared
folder. Runners that share a folder hold a lock on each trial they have in flight.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from threading import Thread

import joblib
import pandas as pd
import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from lecture6 import data, report

LIBRARIES = ("torch", "numpy", "scipy", "pandas")  # what decides a trial's numbers
POLL = 2.0  # seconds between looks at trials that another runner has in flight


class StudyError(RuntimeError):
    """A study cannot be run, written or collected; the message says why and what to do."""


@dataclass(frozen=True)
class Study:
    """A grid of trials.

    ``trial(**parameters)`` returns a list of rows, each a dict. It must be a top-level function of
    a module, and pure: the same parameters give the same rows. A parameter called ``data`` is the
    name of a data set (:func:`lecture6.data.load`); the trial is given the Dataset itself.
    ``grids`` maps a profile to its list of parameters, most wanted trial first; parameters are
    numbers, strings, and lists of them. ``cost(parameters)`` is the expected time of a trial in
    seconds, for the plan; times measured on the way correct it.
    """

    name: str
    about: str
    trial: Callable[..., list[dict]]
    grids: Mapping[str, Sequence[dict]]
    cost: Callable[[dict], float]

    def trials(self, profile: str, replace: Mapping[str, str] | None = None) -> list[Trial]:
        """The trials of a profile; ``replace`` puts data sets in the place of others.

        Raises StudyError for a profile that the study does not have, and for a replaced data set
        that none of its trials uses.
        """
        if profile not in self.grids:
            raise StudyError(f"{self.name} has profiles {', '.join(self.grids)}, not {profile!r}")
        replace = dict(replace or {})
        code = [code_digest(self.trial), code_digest(data.load)]
        grid = self.grids[profile]
        if unused := set(replace) - {p.get("data") for p in grid}:
            raise StudyError(
                f"no trial of {self.name} at profile {profile} uses {', '.join(unused)}; "
                f"they use {', '.join(sorted({str(p.get('data')) for p in grid}))}"
            )
        trials = {}  # two equal trials are one
        for parameters in grid:
            if "data" in parameters:
                name = parameters["data"]
                parameters = parameters | {"data": replace.get(name, name)}
            text = json.dumps([self.name, parameters, code], sort_keys=True, allow_nan=False)
            key = hashlib.sha256(text.encode()).hexdigest()[:20]
            trials[key] = Trial(key, parameters, self.cost(parameters))
        return list(trials.values())


@dataclass(frozen=True)
class Trial:
    """One point of a grid: its key, its parameters, its expected seconds."""

    key: str
    parameters: dict
    cost: float

    def __str__(self) -> str:
        return ", ".join(f"{k} {v}" for k, v in self.parameters.items())


@dataclass(frozen=True)
class Plan:
    """What a run has to do: ``seconds`` is an estimate for one trial at a time."""

    trials: list[Trial]
    finished: list[Trial]
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What a run did: how many trials it finished, and those that failed, by their errors."""

    finished: int
    failed: dict[str, list[Trial]]


def code_digest(function: Callable) -> str:
    """SHA-256 of the code that ``function`` can reach in its own package and in lecture6.

    Comments, docstrings and layout do not count, nor does code that is never named.
    """
    code = [(*name, definition) for name, definition in reachable(function).items()]
    return hashlib.sha256(json.dumps(sorted(code)).encode()).hexdigest()


def reachable(function: Callable) -> dict[tuple[str, str], str]:
    """The definitions behind ``function``: (module, name) to syntax tree, as text.

    Every name in its body is followed to its definition at the top level of a module: functions,
    classes, constants; and so on from there, within its own package and lecture6. Raises StudyError
    for a function that is not at the top level of a module, and where there is no source to read.
    """
    packages = {"lecture6", function.__module__.partition(".")[0]}
    found: dict[tuple[str, str], str] = {}
    todo = [(function.__module__, function.__qualname__)]
    while todo:
        module, name = todo.pop()
        definitions, imports = _definitions(module)
        if (module, name) in found or name not in definitions:
            continue
        found[module, name] = ast.dump(definitions[name])
        for node in ast.walk(definitions[name]):
            if isinstance(node, ast.Name):
                target = (module, node.id) if node.id in definitions else imports.get(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                parent = imports.get(node.value.id)
                target = parent and (".".join(filter(None, parent)), node.attr)
            else:
                continue
            if target and target[0].partition(".")[0] in packages and target[0] in sys.modules:
                todo.append(target)
    if not found:
        raise StudyError(f"{function.__qualname__} must be a top-level function of its module")
    return found


@lru_cache
def _definitions(module: str) -> tuple[dict[str, ast.AST], dict[str, tuple[str, str]]]:
    """The top-level definitions of a module by name, and what each imported name stands for."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError) as error:
        raise StudyError(
            f"the source of module {module!r} cannot be read ({error}); define the trial in a file"
        ) from None
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [n for n in body if not _is_text(n)]
    definitions: dict[str, ast.AST] = {}
    imports: dict[str, tuple[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            definitions[node.name] = node
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imports |= {a.asname or a.name: (node.module, a.name) for a in node.names}
        elif isinstance(node, ast.Import):
            imports |= {a.asname or a.name: (a.name, "") for a in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in ast.walk(node):
                if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store):
                    definitions[target.id] = node
    return definitions, imports


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def default_folder() -> Path:
    """Where finished trials are kept: ``LECTURE6_STUDIES``, else ``~/.cache/lecture6/studies``."""
    return Path(os.environ.get("LECTURE6_STUDIES") or "~/.cache/lecture6/studies").expanduser()


def plan(
    study: Study,
    profile: str,
    *,
    folder: Path | None = None,
    replace: Mapping[str, str] | None = None,
) -> Plan:
    """What is done, what is left to do, and how long that takes, corrected by what was measured."""
    trials = study.trials(profile, replace)
    finished = [t for t in trials if _file(study, t, folder).exists()]
    return Plan(trials, finished, _seconds_left(study, trials, folder))


def _seconds_left(study: Study, trials: list[Trial], folder: Path | None) -> float:
    expected = took = left = 0.0
    for trial in trials:
        if saved := _read(_file(study, trial, folder)):
            expected += trial.cost
            took += saved["record"]["seconds"]
        else:
            left += trial.cost
    return left * (took / expected if expected else 1.0)


def run(
    study: Study,
    profile: str,
    *,
    jobs: int | None = None,
    folder: Path | None = None,
    replace: Mapping[str, str] | None = None,
    backend: str = "loky",
    scheduler: str | None = None,
    progress: bool = True,
) -> Outcome:
    """Run the trials of ``study`` that are not finished yet; call it again after an interruption.

    Arguments:
      jobs       trials at a time. Default: one a GPU where there are GPUs, else 1. On a cluster,
                 trials in flight; default: as many as it has threads.
      folder     where finished trials are kept; default: :func:`default_folder`
      replace    data sets to use in the place of others, e.g. ``{"cifar10": "cifar10_jpeg"}``
      backend    "loky" (processes on this machine) or "dask" (the cluster at ``scheduler``, whose
                 workers have lecture6 and the data)

    A trial that raises is reported in the Outcome, and the others go on. Raises StudyError before
    anything is computed when the folder cannot be written or the cluster not reached, and at once
    when a finished trial cannot be written; what was finished before stays.
    """
    trials = study.trials(profile, replace)
    _check_writable((folder or default_folder()) / study.name)
    if jobs is not None and jobs < 1:
        raise StudyError(f"jobs must be at least 1, got {jobs}")
    with _backend(backend, scheduler, jobs) as n_jobs:
        bar = tqdm(
            total=len(trials),
            desc=f"{study.name} ({profile})",
            disable=not progress,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )
        with bar:
            return _run(study, trials, folder, n_jobs, bar)


def _run(study: Study, trials: list[Trial], folder: Path | None, n_jobs: int, bar: tqdm) -> Outcome:
    failed: dict[str, list[Trial]] = {}
    locks: dict[str, FileLock] = {}
    finished = 0

    def left(trial: Trial) -> bool:
        tried = any(trial in trials for trials in failed.values())
        return not tried and not _file(study, trial, folder).exists()

    def claimed() -> Iterator:
        """Each trial that nobody has finished or has in flight, as a job, once it is locked."""
        for trial in trials:
            path = _file(study, trial, folder).with_suffix(".lock")
            # joblib asks for jobs from threads of its own; the main one releases
            lock = FileLock(path, blocking=False, thread_local=False)
            with contextlib.suppress(Timeout):
                if left(trial):
                    lock.acquire()
                    locks[trial.key] = lock
                    if left(trial):  # no other runner was faster
                        yield joblib.delayed(_work)(study.trial, trial, os.getpid())

    def report_progress() -> None:
        bar.n = sum(not left(t) for t in trials)
        seconds = _seconds_left(study, trials, folder) / n_jobs
        bar.set_postfix_str(f"about {spoken(seconds)} left")

    try:
        while any(left(trial) for trial in trials):
            report_progress()
            started = time.monotonic()
            parallel = joblib.Parallel(
                n_jobs=n_jobs, batch_size=1, pre_dispatch=n_jobs, return_as="generator_unordered"
            )
            for trial, answer in parallel(claimed()):
                if isinstance(answer, str):
                    failed.setdefault(answer, []).append(trial)
                else:
                    _write(_file(study, trial, folder), {"study": study.name, **answer})
                    finished += 1
                locks.pop(trial.key).release()
                report_progress()
            if time.monotonic() - started < POLL:  # what is left is in another runner's hands
                time.sleep(POLL)
        report_progress()
    finally:
        for lock in locks.values():
            lock.release()
    return Outcome(finished, failed)


def _work(function: Callable, trial: Trial, runner: int) -> tuple[Trial, dict | str]:
    """In the worker: the rows of a trial with the record of how they came about, or its error."""
    _end_with(runner)
    started = time.monotonic()
    try:
        parameters, record = dict(trial.parameters), {}
        if "data" in parameters:
            parameters["data"] = _load(parameters["data"])
            record["data"] = {parameters["data"].name: parameters["data"].checksum}
        with _own_gpu():
            rows = function(**parameters)
    except Exception as error:
        return trial, f"{type(error).__name__}: {error}"
    record |= {
        "seconds": round(time.monotonic() - started, 2),
        "date": date.today().isoformat(),
        "device": report.device_name(),
        "threads": torch.get_num_threads(),
        "code": report.code_version(),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
    }
    return trial, {"key": trial.key, "parameters": trial.parameters, "record": record, "rows": rows}


_load = lru_cache(maxsize=1)(data.load)


@lru_cache
def _end_with(runner: int) -> None:
    """Let a worker process end when the runner that started it is killed, not a trial later."""

    def watch() -> None:
        while os.getppid() == runner:
            time.sleep(1)
        os._exit(1)

    if os.getppid() == runner:
        Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _own_gpu() -> Iterator[None]:
    """Make a GPU that no other trial on this machine uses the current one; wait for one."""
    gpus = range(torch.cuda.device_count())
    while gpus:
        for gpu in gpus:
            lock = FileLock(Path(tempfile.gettempdir()) / f"lecture6-gpu-{gpu}.lock")
            with contextlib.suppress(Timeout), lock.acquire(blocking=False), torch.cuda.device(gpu):
                yield
                return
        time.sleep(POLL)
    yield


def collect(
    study: Study,
    profile: str,
    *,
    folder: Path | None = None,
    replace: Mapping[str, str] | None = None,
    partial: bool = False,
) -> tuple[pd.DataFrame, dict]:
    """The rows of all finished trials as one tidy table, and the record of how they came about.

    A row has its trial's parameters (lists as "256, 6000"), then its own columns. Trials stand in
    the order of the grid, whatever the order in which they ran. The record: study, profile, trials
    (finished and in all), data (name to SHA-256), seeds, device, libraries, code (commit), date
    (first, last), seconds (summed over the trials). Raises StudyError while trials are missing,
    unless ``partial``, and when there are none.
    """
    trials = study.trials(profile, replace)
    read = {t.key: _read(_file(study, t, folder)) for t in trials}
    found = [saved for t in trials if (saved := read[t.key])]
    if not found or (len(found) < len(trials) and not partial):
        raise StudyError(
            f"{len(found)} of the {len(trials)} trials of {study.name} at profile {profile} are "
            f"finished; run them first: lecture6 run {study.name} --profile {profile}"
        )
    table = pd.DataFrame(
        [
            {k: ", ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()}
            for saved in found
            for row in (saved["parameters"] | row for row in saved["rows"])
        ]
    )
    records = [saved["record"] for saved in found]

    def seen(what: str) -> list[str]:
        return sorted({r[what] for r in records})

    return table, {
        "study": study.name,
        "profile": profile,
        "trials": [len(found), len(trials)],
        "data": dict(sorted((k, v) for r in records for k, v in r.get("data", {}).items())),
        "seeds": sorted({p["seed"] for p in (s["parameters"] for s in found) if "seed" in p}),
        "device": seen("device"),
        "libraries": {n: sorted({r["libraries"][n] for r in records}) for n in LIBRARIES},
        "code": seen("code"),
        "date": [min(seen("date")), max(seen("date"))],
        "seconds": round(sum(r["seconds"] for r in records)),
    }


def spoken(seconds: float) -> str:
    """A duration as a person would say it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def _backend(backend: str, scheduler: str | None, jobs: int | None) -> Iterator[int]:
    """Choose where joblib runs the trials; gives how many are in flight at a time."""
    if backend == "loky":
        if scheduler:
            raise StudyError(f"a scheduler ({scheduler}) is for backend 'dask', not for 'loky'")
        with joblib.parallel_config("loky"):
            yield jobs or max(1, torch.cuda.device_count())
        return
    if backend != "dask" or not scheduler:
        raise StudyError(
            f"backend must be 'loky', or 'dask' with a scheduler's address; got {backend!r} "
            f"and {scheduler!r}"
        )
    try:
        from distributed import Client
    except ModuleNotFoundError:
        raise StudyError("backend 'dask' needs Dask: pip install distributed") from None
    try:
        client = Client(scheduler, timeout=10)
    except (OSError, ValueError) as error:
        raise StudyError(f"no Dask scheduler answers at {scheduler}: {error}") from None
    with client:
        n_threads = sum(client.nthreads().values())
        if not n_threads:
            raise StudyError(f"the Dask cluster at {scheduler} has no workers: start some first")
        with joblib.parallel_config("dask", client=client):
            yield jobs or n_threads


def _file(study: Study, trial: Trial, folder: Path | None) -> Path:
    return (folder or default_folder()) / study.name / f"{trial.key}.json"


def _read(path: Path) -> dict | None:
    """A finished trial, or None. Files appear whole or not at all, so a bad one was altered."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StudyError(
            f"{path} is damaged ({error}): delete it and run the study again"
        ) from None


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise StudyError(
            f"cannot write in {folder}: {error.strerror}; nothing was run. Choose another folder "
            "with --folder or LECTURE6_STUDIES"
        ) from None


def _write(path: Path, content: dict) -> None:
    """Write JSON so that the file appears whole or not at all, also when the power fails."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with open(partial, "w") as file:
            json.dump(content, file, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise StudyError(
            f"cannot write {path}: {error.strerror}. Finished trials are safe: make room, or "
            "choose another folder, and run the same command again"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
