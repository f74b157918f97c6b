"""Running a grid of trials so that nothing finished is lost, and nothing is done twice.

A study is a trial, which is a pure function of its parameters that returns rows of a tidy table,
and a grid of parameters for each profile. Every finished trial is one file, written atomically,
under a key made of its parameters and of all code in the package that the trial can reach. So a
killed run continues where it stopped, a change of code makes anew what depends on it, and a
comment changes nothing. The runner, not the worker, writes: workers of a cluster need no shared
folder. Runners that share a folder hold a lock on each trial they have in flight.

Where torchrun has started several processes, they share each trial: the one of rank 0 is the
runner, which plans, locks and writes, and tells the others what to compute with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import lru_cache
from importlib import import_module, metadata
from pathlib import Path
from threading import Lock, Thread

import pandas as pd
import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from joblib.externals.loky import get_reusable_executor
from tqdm.auto import tqdm

from lecture6 import data, parallel, provenance
from lecture6.studies.digest import StudyError, code_digest

LIBRARIES = ("torch", "numpy", "scipy", "pandas")  # what decides a trial's numbers
_DATA = ("data", "images")  # parameters that name a data set
POLL = 2.0  # seconds between looks at what other runners have finished
_NO_ROOM = (
    "Finished trials are safe: make room, or choose another folder with --folder or "
    "LECTURE6_STUDIES, and run the same command again"
)


@dataclass(frozen=True)
class Study:
    """A grid of trials.

    ``trial(**parameters)`` returns a list of rows, each a dict. It must be a top-level function of
    a module, and pure: the same parameters give the same rows. A parameter called ``data`` is the
    name of a data set (:func:`lecture6.data.load`); the trial is given the Dataset itself. One
    called ``images`` names a data set "imagefolder:PATH" that the trial reads itself.

    Two arguments of a trial are no parameters, but come from the runner. ``checkpoint`` is the path
    of a file of its own, in which it may keep what it continues from after an interruption; it is
    deleted when the trial has finished, and is None on a Dask cluster, whose workers may have no
    folder in common. ``workers`` is the :class:`lecture6.parallel.Group` of processes that share
    the trial (see the module), None for one.

    ``grids`` maps a profile to its list of parameters, most wanted trial first; parameters are
    numbers, strings, and lists of them. ``own_trials`` maps a profile to a trial in the place of
    ``trial``. ``cost(parameters)`` is the expected time of a trial in seconds, for the plan; times
    measured on the way correct it. ``notes`` says what is less than the paper's; it goes into the
    record of the results.
    """

    name: str
    about: str
    trial: Callable[..., list[dict]]
    grids: Mapping[str, Sequence[dict]]
    cost: Callable[[dict], float]
    notes: str = ""
    own_trials: Mapping[str, Callable[..., list[dict]]] = field(default_factory=dict)

    def trial_of(self, profile: str) -> Callable[..., list[dict]]:
        """The trial of a profile."""
        return self.own_trials.get(profile, self.trial)

    def data_sets(self, profile: str) -> list[str]:
        """The names of the data sets that the trials of a profile use, sorted.

        Raises StudyError for a profile that the study does not have.
        """
        if profile not in self.grids:
            raise StudyError(f"{self.name} has profiles {', '.join(self.grids)}, not {profile!r}")
        return sorted({str(p[kind]) for p in self.grids[profile] for kind in _DATA if kind in p})

    def trials(self, profile: str, replace: Mapping[str, str] | None = None) -> list[Trial]:
        """The trials of a profile; ``replace`` puts data sets in the place of others.

        Raises StudyError for a profile that the study does not have, and for a replaced data set
        that none of its trials uses.
        """
        replace, used = dict(replace or {}), self.data_sets(profile)
        code = _code(self.trial_of(profile))
        if unused := set(replace) - set(used):
            raise StudyError(
                f"no trial of {self.name} at profile {profile} uses {', '.join(unused)}; "
                f"they use {', '.join(used) or 'no data set'}"
            )
        trials = {}  # two equal trials are one
        for parameters in self.grids[profile]:
            cost = self.cost(parameters)
            names = {kind: parameters[kind] for kind in _DATA if kind in parameters}
            parameters = parameters | {k: replace.get(name, name) for k, name in names.items()}
            text = json.dumps([self.name, parameters, code], sort_keys=True, allow_nan=False)
            key = hashlib.sha256(text.encode()).hexdigest()[:20]
            trials[key] = Trial(key, parameters, cost)
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
        jobs: trials at a time. Default: one a GPU where there are GPUs, else 1, which runs in
            this process. On a cluster, trials in flight; default: one a worker.
        folder: where finished trials are kept; default: :func:`default_folder`
        replace: data sets to use in the place of others, e.g. ``{"cifar10": "cifar10_jpeg"}``
        backend: "loky" (processes on this machine) or "dask" (the cluster at ``scheduler``, whose
            workers have the same lecture6 and the data)

    A trial that raises, or whose worker process dies twice, is reported in the Outcome, and the
    others go on. Raises StudyError before anything is computed when the folder cannot be written,
    a folder of images is not there, or the cluster cannot be reached, and at once when a finished
    trial cannot be written; what was finished before stays.

    Under torchrun every process calls this. That of rank 0 does what is said above, and each trial
    with all of them. The others take part, on machines that have the same lecture6 and the same
    images at the same path, but need not share the folder; their Outcome is nothing. A trial that
    raises in one process ends it with exit code 1, for torchrun to end the others.
    """
    if rank() > 0:
        _follow()
        return Outcome(0, {})
    trials, function = study.trials(profile, replace), study.trial_of(profile)
    _check_writable((folder or default_folder()) / study.name)
    for name in {t.parameters["images"] for t in trials if "images" in t.parameters}:
        _image_folder(name)
    if jobs is not None and jobs < 1:
        raise StudyError(f"jobs must be at least 1, got {jobs}")
    if together() and "workers" not in inspect.signature(function).parameters:
        raise StudyError(
            f"a trial of {study.name} at profile {profile} cannot be shared by several processes: "
            "run the study without torchrun, with --jobs"
        )
    with (
        _backend(backend, scheduler, jobs) as (submit, n_jobs),
        tqdm(
            total=len(trials),
            desc=f"{study.name} ({profile})",
            disable=not progress,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        ) as bar,
    ):
        return _run(study, function, trials, folder, submit, n_jobs, bar, backend != "dask")


def _code(function: Callable) -> list[str]:
    """What a trial's numbers depend on: the trial itself, and the loading of its data."""
    return [code_digest(function), code_digest(data.load)]


_Submit = Callable[..., Future]  # as that of concurrent.futures.Executor


def _run(
    study: Study,
    function: Callable[..., list[dict]],
    trials: list[Trial],
    folder: Path | None,
    submit: _Submit,
    n_jobs: int,
    bar: tqdm,
    checkpoints: bool,
) -> Outcome:
    where = (function.__module__, function.__name__)
    job = (where, _code(function), provenance.code_version())
    flying: dict[Future, tuple[Trial, FileLock]] = {}
    failed: dict[str, list[Trial]] = {}
    tried: set[str] = set()
    deaths: Counter[str] = Counter()
    finished = 0

    def left() -> list[Trial]:
        return [t for t in trials if t.key not in tried and not _file(study, t, folder).exists()]

    def show_progress() -> None:
        bar.n = len(trials) - len(left())
        seconds = _seconds_left(study, trials, folder) / n_jobs
        bar.set_postfix_str(f"about {spoken(seconds)} left")

    show_progress()
    try:
        while todo := left():
            in_flight = {trial.key for trial, _ in flying.values()}
            for trial in todo:
                if len(flying) == n_jobs:
                    break
                if trial.key in in_flight or not (lock := _claim(_file(study, trial, folder))):
                    continue
                checkpoint = _checkpoint(study, trial, folder) if checkpoints else None
                try:
                    flying[submit(_work, trial, *job, checkpoint)] = trial, lock
                except BaseException as error:
                    lock.release()
                    if isinstance(error, BrokenExecutor):  # the next round has a new one
                        break
                    raise
            if not flying:  # what is left is in another runner's hands
                time.sleep(POLL)
                show_progress()
            for future in wait(flying, POLL, FIRST_COMPLETED).done:
                trial, lock = flying.pop(future)
                try:
                    error = _answer(future, _file(study, trial, folder))
                    if error is None:
                        _checkpoint(study, trial, folder).unlink(missing_ok=True)
                finally:
                    lock.release()
                if error is None:
                    finished += 1
                elif error != _DIED or deaths[trial.key]:
                    tried.add(trial.key)
                    failed.setdefault(error, []).append(trial)
                else:
                    deaths[trial.key] += 1
                show_progress()
            bar.refresh()
    finally:
        for _, lock in flying.values():
            lock.release()
    return Outcome(finished, failed)


_DIED = "the worker process died, twice (killed, or short of memory?): run again, with fewer --jobs"


def _answer(future: Future, path: Path) -> str | None:
    """Keep the result of a trial; its error, if it has none."""
    try:
        content, error = future.result()
    except BrokenExecutor:
        return _DIED
    except Exception as lost:  # of the cluster: a worker that cannot import, or dies too often
        return f"{type(lost).__name__}: {lost}"
    if error is None:
        _write(path, content)
    return error


def _claim(path: Path) -> FileLock | None:
    """A lock on a trial that nobody has finished or has in flight, else None."""
    lock = FileLock(path.with_suffix(".lock"), blocking=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    except OSError as error:
        raise StudyError(f"cannot write in {path.parent}: {error.strerror}. {_NO_ROOM}") from None
    if path.exists():  # another runner was faster
        lock.release()
        return None
    return lock


# a trial seeds torch's generator, which a process has only once; and Python 3.11 cannot parse code
# in several threads
_one_at_a_time = Lock()


def _work(
    trial: Trial,
    where: tuple[str, str],
    digests: list[str],
    code: str,
    checkpoint: Path | None = None,
    runner: int | None = None,
    workers: parallel.Group | None = None,
) -> tuple[str, None] | tuple[None, str]:
    """In the worker: the rows of a trial and how they came about, as JSON; or else its error.

    The function is named by ``where`` and not sent, so that a worker that lacks it can say so.
    """
    if runner is not None:
        _end_with(runner)
    try:
        # torchrun's processes each have the GPU of their rank
        with _one_at_a_time, contextlib.nullcontext() if workers else _own_gpu():
            function = getattr(import_module(where[0]), where[1])
            if _code(function) != digests:
                here = f"lecture6 {metadata.version('lecture6')} in {Path(__file__).parents[1]}"
                raise StudyError(f"the worker has other code than the runner: {here}")
            started = time.monotonic()
            parameters, record = dict(trial.parameters), {}
            offered = {"checkpoint": checkpoint, "workers": workers}
            wanted = offered.keys() & inspect.signature(function).parameters.keys()
            if "data" in parameters:
                parameters["data"] = _load(parameters["data"])
                record["data"] = {parameters["data"].name: parameters["data"].checksum}
            rows = function(**parameters, **{name: offered[name] for name in wanted})
            seconds = round(time.monotonic() - started, 2)
            if "images" in parameters:
                record["data"] = {parameters["images"]: _files_digest(parameters["images"])}
            record |= {
                "seconds": seconds,
                "date": date.today().isoformat(),
                "device": (f"{workers.size} × " if workers else "") + provenance.device_name(),
                "threads": torch.get_num_threads(),
                "code": code,
                "libraries": {name: metadata.version(name) for name in LIBRARIES},
            }
        answer = {"key": trial.key, "parameters": trial.parameters, "record": record, "rows": rows}
        return json.dumps(answer, allow_nan=False), None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


_load = lru_cache(maxsize=1)(data.load)


def _image_folder(name: str) -> Path:
    """The folder of the data set ``imagefolder:PATH``; StudyError when it is not there."""
    kind, _, path = name.partition(":")
    folder = Path(path).expanduser()
    if kind != "imagefolder" or not (folder / "train").is_dir():
        raise StudyError(
            f"the study reads images from a folder, and {name!r} is none that is there: name one "
            "with class folders in PATH/train and PATH/val by --data imagefolder:PATH"
        )
    return folder


@lru_cache
def _files_digest(name: str) -> str:
    """SHA-256 of a folder of images: of the relative name and the size of every file in it.

    The bytes are not read, which would take as long as an epoch.
    """
    folder = _image_folder(name)
    files = [Path(where, f) for where, _, fs in os.walk(folder, followlinks=True) for f in fs]
    sizes = sorted((f.relative_to(folder).as_posix(), f.stat().st_size) for f in files)
    return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()


@lru_cache
def _end_with(runner: int) -> None:
    """Let a worker process end when the runner that started it is killed, not a trial later."""

    def watch() -> None:
        while os.getppid() == runner:
            time.sleep(1)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _own_gpu() -> Iterator[None]:
    """Make a GPU that no other trial of this user has the current one; wait for one."""
    gpus = range(torch.cuda.device_count())
    folder = Path("~/.cache/lecture6").expanduser()
    while gpus:
        folder.mkdir(parents=True, exist_ok=True)
        for gpu in gpus:
            lock = FileLock(folder / f"gpu-{torch.cuda.get_device_properties(gpu).uuid}.lock")
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
    (finished and in all), data (name to SHA-256), seeds, device, threads, libraries, code
    (commit), date (first, last), seconds (summed over the trials). Raises StudyError while trials
    are missing, unless ``partial``, when there are none, and when a data set changed on the way.
    """
    trials = study.trials(profile, replace)
    read = {t.key: _read(_file(study, t, folder)) for t in trials}
    found = [saved for t in trials if (saved := read[t.key])]
    if not found or (len(found) < len(trials) and not partial):
        raise StudyError(
            f"{len(found)} of the {len(trials)} trials of {study.name} at profile {profile} are "
            f"finished; run them first: lecture6 run {study.name} --profile {profile}, with the "
            "same --folder and --data"
        )
    table = pd.DataFrame(
        [
            {k: ", ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()}
            for saved in found
            for row in (saved["parameters"] | row for row in saved["rows"])
        ]
    )
    records = [saved["record"] for saved in found]

    def seen(what: str) -> list:
        return sorted({r[what] for r in records})

    checksums = {pair for r in records for pair in r.get("data", {}).items()}
    if changed := [n for n, k in Counter(name for name, _ in checksums).items() if k > 1]:
        raise StudyError(
            f"{', '.join(changed)} changed between trials: delete the trials in "
            f"{(folder or default_folder()) / study.name} and run the study again"
        )

    return table, {
        "study": study.name,
        "profile": profile,
        "notes": study.notes,
        "trials": [len(found), len(trials)],
        "data": dict(sorted(checksums)),
        "seeds": sorted({p["seed"] for p in (s["parameters"] for s in found) if "seed" in p}),
        "device": seen("device"),
        "threads": seen("threads"),
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
def _backend(
    backend: str, scheduler: str | None, jobs: int | None
) -> Iterator[tuple[_Submit, int]]:
    """How to start a trial, and how many are in flight at a time."""
    if together():
        if backend != "loky" or scheduler or jobs not in (None, 1):
            raise StudyError(
                "torchrun's processes share one trial at a time: leave out --jobs and --backend, "
                f"got {jobs} and {backend!r}"
            )
        with _leading() as submit:
            yield submit, 1
        return
    if backend == "loky":
        if scheduler:
            raise StudyError(f"a scheduler ({scheduler}) is for backend 'dask', not for 'loky'")
        jobs = jobs or max(1, torch.cuda.device_count())
        if jobs == 1:
            yield _here, 1
            return
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        settings = {
            "max_workers": jobs,
            "timeout": 300,  # seconds that a worker without a trial stays
            "env": {f"{name}_NUM_THREADS": threads for name in ("OMP", "MKL", "OPENBLAS")},
        }
        try:
            # asked for at every trial, since one whose worker died is broken
            yield lambda *job: get_reusable_executor(**settings).submit(*job, os.getpid()), jobs
        except BaseException:
            get_reusable_executor(**settings).shutdown(kill_workers=True)
            raise
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
        n_workers = len(client.nthreads())
        if not n_workers:
            raise StudyError(f"the Dask cluster at {scheduler} has no workers: start some first")
        try:
            client.run(exec, f"import {__name__}")
        except Exception as error:
            raise StudyError(f"a worker at {scheduler} cannot import lecture6: {error}") from None
        yield client.get_executor().submit, jobs or n_workers


def _here(function: Callable, *arguments) -> Future:
    """Run a job in this process."""
    future = Future()
    future.set_result(function(*arguments))
    return future


def together() -> bool:
    """Whether torchrun has started several processes, of which this is one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """Of this process among those that torchrun started; 0 when it is alone."""
    return int(os.environ["RANK"]) if together() else 0


@contextlib.contextmanager
def _channel() -> Iterator[tuple[parallel.Group, Callable[[tuple | None], tuple | None]]]:
    """The group of torchrun's processes, and a function by which rank 0 tells the others a job."""
    with parallel.from_torchrun() as group:
        # it stays open however long a trial takes, or another runner
        channel = dist.new_group(backend="gloo", timeout=timedelta(days=365))

        def tell(job: tuple | None = None) -> tuple | None:
            told = [job]
            dist.broadcast_object_list(told, group=channel)
            return told[0]

        yield group, tell


@contextlib.contextmanager
def _leading() -> Iterator[_Submit]:
    """In the process of rank 0: run jobs in all processes, and let the others go at the end."""
    with _channel() as (group, tell):
        try:
            yield lambda function, *job: _here(_share, group, tell(job))
        except StudyError:
            tell(None)
            raise
        tell(None)


def _follow() -> None:
    """In another process: take part in each job that rank 0 tells, until it tells None."""
    with _channel() as (group, tell):
        while job := tell():
            _share(group, job)


def _share(group: parallel.Group, job: tuple) -> tuple[str, None]:
    """This process's part of a job; an error is the end of the process."""
    answer, error = _work(*job, workers=group)
    if error is not None:
        print(f"rank {group.rank}: {job[0]} failed: {error}", file=sys.stderr, flush=True)
        # not sys.exit: taking leave of the others would wait for them, and they for this process
        os._exit(1)
    return answer, None


def _checkpoint(study: Study, trial: Trial, folder: Path | None) -> Path:
    return _file(study, trial, folder).with_suffix(".checkpoint")


def _file(study: Study, trial: Trial, folder: Path | None) -> Path:
    return (folder or default_folder()) / study.name / f"{trial.key}.json"


def _read(path: Path) -> dict | None:
    """A finished trial, or None. Files appear whole or not at all, so a bad one was altered."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StudyError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
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


def _write(path: Path, content: str) -> None:
    """Write a file so that it appears whole or not at all, also when the power fails."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with open(partial, "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        if os.name == "posix":  # the new name, too
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    except OSError as error:
        raise StudyError(f"cannot write {path}: {error.strerror}. {_NO_ROOM}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
