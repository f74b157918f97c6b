"""Running a grid of trials so that nothing finished is lost, and nothing is done twice.

The runner, not the worker, writes the files: workers of a cluster need no shared folder. Runners
that share a folder hold a lock on each trial they have in flight. Of several processes that
torchrun has started, that of rank 0 is the runner, and all of them share each trial.
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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from datetime import date, timedelta
from functools import lru_cache
from importlib import import_module, metadata
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from joblib.externals.loky import get_reusable_executor
from tqdm.auto import tqdm

from lecture6 import checks, data, parallel
from lecture6.provenance import code_version, device_name
from lecture6.studies.trials import Study, StudyError, Trial, TrialFiles, code_digest, tabulate

POLL = 2.0  # seconds between looks at what other runners have finished
_Submit = Callable[..., Future]  # as that of concurrent.futures.Executor
# a trial's function: module, name, digest; the code's version; the digests of images by their names
_Job = tuple[str, str, str, str, dict[str, str]]
DIED = "the worker process died, twice (killed, or short of memory?): run again, with fewer --jobs"


class Plan(NamedTuple):
    """What a run has to do; ``seconds`` is an estimate for one trial at a time."""

    folder: Path
    trials: list[Trial]
    finished: list[Trial]
    seconds: float


class Outcome(NamedTuple):
    """What a run did: how many trials it finished, and those that failed, by their errors."""

    finished: int
    failed: dict[str, list[Trial]]


def plan(
    study: Study, profile: str, *, folder: Path | None = None, replace: dict[str, str] | None = None
) -> Plan:
    """What is done, what is left to do, and how long that takes, corrected by what was measured."""
    return _plan(study.trials(profile, replace), TrialFiles(study, folder))


def _plan(trials: list[Trial], files: TrialFiles) -> Plan:
    finished: list[Trial] = []
    expected = took = left = 0.0
    for trial in trials:
        if saved := files.read(trial):
            finished.append(trial)
            expected += trial.cost
            took += saved["record"]["seconds"]
        else:
            left += trial.cost
    return Plan(files.folder, trials, finished, left * (took / expected if expected else 1.0))


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def run(
    study: Study,
    profile: str,
    *,
    jobs: int | None = None,
    folder: Path | None = None,
    replace: Mapping[str, str] | None = None,
    backend: str = "loky",
    scheduler: str | None = None,
) -> Outcome:
    """Run the trials of ``study`` that are not finished yet; call it again after an interruption.

    Arguments:
        jobs: trials at a time; default: one a GPU or worker of the cluster, else 1, in this process
        folder: where finished trials are kept; default: ``LECTURE6_STUDIES``, else a cache folder
        replace: data sets to use in the place of others, e.g. ``{"cifar10": "cifar10_jpeg"}``
        backend: "loky" (processes on this machine) or "dask" (the cluster at ``scheduler``, whose
            workers have the same lecture6 and the data)

    A trial that raises, or whose worker process dies twice, is reported in the Outcome, and the
    others go on. Raises ValueError for an impossible number of jobs, and StudyError for a folder
    that cannot be written, images that are not there and a cluster that cannot be reached.

    Under torchrun every process calls this, with the same lecture6 and the same images at the same
    path. A trial that raises in one process ends it with exit code 1.
    """
    if rank():
        with _torchrun() as (share, _):
            while share(_work).result():
                pass
        return Outcome(0, {})
    if jobs is not None:
        jobs = checks.whole("jobs", jobs, least=1)
    trials, files = study.trials(profile, replace), TrialFiles(study, folder)
    function = study.trial_of(profile)
    files.check_writable()
    folders = {t.parameters["images"] for t in trials if "images" in t.parameters}
    images = {name: _files_digest(name) for name in folders}
    if rank() is not None and "workers" not in inspect.signature(function).parameters:
        raise StudyError(
            f"a trial of {study.name} at profile {profile} cannot be shared by several processes: "
            "run the study without torchrun, with --jobs"
        )
    job = (function.__module__, function.__name__, code_digest(function), code_version(), images)
    form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
    with (
        _backend(backend, scheduler, jobs) as (submit, n_jobs),
        tqdm(total=len(trials), desc=f"{study.name} ({profile})", bar_format=form) as bar,
    ):

        def start(trial: Trial) -> Future:
            checkpoint = None if backend == "dask" else files.path(trial, ".checkpoint")
            return submit(_work, trial, job, checkpoint)

        return _run(trials, files, start, n_jobs, bar)


def _run(
    trials: list[Trial], files: TrialFiles, start: Callable[[Trial], Future], n_jobs: int, bar: tqdm
) -> Outcome:
    """Keep ``n_jobs`` trials in flight until each has failed, or is finished by any runner."""
    flying: dict[Future, Trial] = {}
    locks: dict[str, FileLock] = {}  # on those in flight, by their keys
    failed: dict[str, list[Trial]] = {}
    died: set[str] = set()
    n_finished = 0
    try:
        while todo := _left(trials, files, failed, n_jobs, bar):
            for trial in todo:
                if len(flying) == n_jobs:
                    break
                if trial.key in locks or not (lock := files.claim(trial)):
                    continue
                locks[trial.key] = lock
                try:
                    flying[start(trial)] = trial
                except BrokenExecutor:  # the next round has a new one
                    locks.pop(trial.key).release()
                    break
            if not flying:  # what is left is in another runner's hands
                time.sleep(POLL)
            for future in wait(flying, POLL, FIRST_COMPLETED).done:
                trial = flying.pop(future)
                content, error = _result(future)
                if content is not None:
                    files.write(trial, content)
                    n_finished += 1
                locks.pop(trial.key).release()
                if error == DIED and trial.key not in died:  # it has a second try
                    died.add(trial.key)
                elif error is not None:
                    failed.setdefault(error, []).append(trial)
    finally:
        for lock in locks.values():
            lock.release()
    return Outcome(n_finished, failed)


def _left(
    trials: list[Trial], files: TrialFiles, failed: dict[str, list], n_jobs: int, bar: tqdm
) -> list[Trial]:
    """What is neither finished nor failed; the bar shows how much that is."""
    keys = {trial.key for those in failed.values() for trial in those}
    todo = [t for t in trials if t.key not in keys and not files.path(t).exists()]
    if getattr(bar, "postfix", None) is None or bar.n != len(trials) - len(todo):
        bar.n = len(trials) - len(todo)
        bar.set_postfix_str(f"about {duration(_plan(trials, files).seconds / n_jobs)} left")
    bar.refresh()
    return todo


def _result(future: Future) -> tuple[str | None, str | None]:
    """What a trial has given, or its error."""
    try:
        return future.result()
    except BrokenExecutor:
        return None, DIED
    except Exception as lost:  # of the cluster: a worker that cannot import, or dies too often
        return None, f"{type(lost).__name__}: {lost}"


# ---- in the worker -----------------------------------------------------------------------------

# a trial seeds torch's generator, which a process has only once; and Python 3.11 cannot parse code
# in several threads
_one_at_a_time = Lock()


def _work(
    trial: Trial, job: _Job, checkpoint: Path | None = None, workers: parallel.Group | None = None
) -> tuple[str, None] | tuple[None, str]:
    """The rows of a trial and how they came about, as JSON; or else its error.

    The function is named and not sent, so that a worker that lacks it can say so.
    """
    (module, name, digest, code, known), parameters, sources = job, dict(trial.parameters), {}
    try:
        # torchrun's processes each have the GPU of their rank
        with _one_at_a_time, contextlib.nullcontext() if workers else _own_gpu():
            function = getattr(import_module(module), name)
            if code_digest(function) != digest:
                here = f"lecture6 {metadata.version('lecture6')} in {Path(__file__).parents[1]}"
                raise StudyError(f"the worker has other code than the runner: {here}")
            if images := parameters.get("images"):
                sources[images] = _files_digest(images)
                if sources[images] != known[images]:
                    raise StudyError(f"{images} has other files here: copy the runner's to here")
            started = time.monotonic()
            if "data" in parameters:
                loaded = parameters["data"] = _load(parameters["data"])
                sources[loaded.name] = loaded.checksum
            offered = {"checkpoint": checkpoint, "workers": workers}
            wanted = offered.keys() & inspect.signature(function).parameters.keys()
            rows = function(**parameters, **{name: offered[name] for name in wanted})
            if not isinstance(rows, Mapping):
                raise TypeError(f"a trial returns rows by kind, got a {type(rows).__name__}")
            if not all(isinstance(row, dict) for kind in rows.values() for row in kind):
                raise TypeError("a trial returns a dict for each row")
            record = {
                "data": sources,
                "seconds": round(time.monotonic() - started, 2),
                "date": date.today().isoformat(),
                "device": (f"{workers.size} × " if workers else "") + device_name(),
                "threads": torch.get_num_threads(),
                "code": code,
                "libraries": {name: metadata.version(name) for name in TrialFiles.LIBRARIES},
            }
        answer = {"key": trial.key, "parameters": trial.parameters, "record": record, "rows": rows}
        return json.dumps(answer, allow_nan=False), None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


_load = lru_cache(maxsize=1)(data.load)


@lru_cache
def _files_digest(name: str) -> str:
    """SHA-256 of the relative names and the sizes of all files of images "imagefolder:PATH".

    The bytes are not read, which would take as long as an epoch. Raises StudyError without images.
    """
    kind, _, path = name.partition(":")
    folder = Path(path).expanduser()
    if kind != "imagefolder" or not (folder / "train").is_dir():
        raise StudyError(
            f"the study reads images from a folder, and {name!r} is none that is there: name one "
            "with class folders in PATH/train and PATH/val by --data imagefolder:PATH"
        )
    files = [Path(where, f) for where, _, fs in os.walk(folder, followlinks=True) for f in fs]
    sizes = sorted((f.relative_to(folder).as_posix(), f.stat().st_size) for f in files)
    return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()


@contextlib.contextmanager
def _own_gpu() -> Iterator[None]:
    """Make a GPU that no other trial of this user has the current one; wait for one."""
    gpus = range(torch.cuda.device_count())
    # a container's user may have no home
    folder = Path(os.environ.get("HOME") or tempfile.gettempdir(), ".cache", "lecture6")
    while gpus:
        folder.mkdir(parents=True, exist_ok=True)
        for gpu in gpus:
            lock = FileLock(folder / f"gpu-{torch.cuda.get_device_properties(gpu).uuid}.lock")
            with contextlib.suppress(Timeout), lock.acquire(blocking=False), torch.cuda.device(gpu):
                yield
                return
        time.sleep(POLL)
    yield


# ---- where trials run --------------------------------------------------------------------------


def _backend(
    backend: str, scheduler: str | None, jobs: int | None
) -> contextlib.AbstractContextManager[tuple[_Submit, int]]:
    """How to start a trial, and how many are in flight at a time."""
    if rank() is not None:
        if backend != "loky" or scheduler or jobs not in (None, 1):
            raise StudyError(
                "torchrun's processes share one trial at a time: leave out --jobs and --backend"
            )
        return _torchrun()
    if backend == "loky" and not scheduler:
        jobs = jobs or max(1, torch.cuda.device_count())
        return contextlib.nullcontext((_here, 1)) if jobs == 1 else _processes(jobs)
    if backend == "dask" and scheduler:
        return _cluster(scheduler, jobs)
    raise StudyError(
        "backend must be 'loky' without a scheduler, or 'dask' with a scheduler's address; got "
        f"{backend!r} and {scheduler!r}"
    )


def _here(function: Callable[..., Any], *arguments: Any) -> Future:
    """Run a job in this process."""
    future: Future = Future()
    future.set_result(function(*arguments))
    return future


@contextlib.contextmanager
def _processes(jobs: int) -> Iterator[tuple[_Submit, int]]:
    """Worker processes of this machine, which share its cores."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    settings = {
        "max_workers": jobs,
        "timeout": 300,  # seconds that a worker without a trial stays
        "initializer": parallel.end_with,  # this process: not a trial later
        "initargs": (os.getpid(),),
        "env": {f"{name}_NUM_THREADS": threads for name in ("OMP", "MKL", "OPENBLAS")},
    }
    try:
        # asked for at every trial, since one whose worker died is broken
        yield lambda *job: get_reusable_executor(**settings).submit(*job), jobs
    except BaseException:
        get_reusable_executor(**settings).shutdown(kill_workers=True)
        raise


@contextlib.contextmanager
def _cluster(scheduler: str, jobs: int | None) -> Iterator[tuple[_Submit, int]]:
    """The workers of a Dask cluster."""
    try:
        from distributed import Client

        client = Client(scheduler, timeout=10)
    except ModuleNotFoundError:
        raise StudyError("backend 'dask' needs Dask: pip install distributed") from None
    except (OSError, ValueError) as error:
        raise StudyError(f"no Dask scheduler answers at {scheduler}: {error}") from None
    with client:
        n_workers = len(client.nthreads())
        if not n_workers:
            raise StudyError(f"the Dask cluster at {scheduler} has no workers: start some first")
        yield client.get_executor().submit, jobs or n_workers


def rank() -> int | None:
    """Of this process among several that torchrun started; None when it is alone."""
    return int(os.environ["RANK"]) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


@contextlib.contextmanager
def _torchrun() -> Iterator[tuple[_Submit, int]]:
    """All processes that torchrun has started, which do each job of rank 0 together.

    The others ask for it, without one of their own: they get its answer, too, and None at the end.
    An error in a job is the end of the process.
    """
    with parallel.from_torchrun() as group:
        # it stays open however long a trial takes, or another runner
        channel = dist.new_group(backend="gloo", timeout=timedelta(days=365))

        def share(*job: Any) -> tuple[str, None] | None:
            sent = [job]
            dist.broadcast_object_list(sent, group=channel)
            if not sent[0]:
                return None
            answer, error = _work(*sent[0], workers=group)
            if answer is None:
                words = f"rank {group.rank}: {sent[0][0]} failed: {error}"
                print(words, file=sys.stderr, flush=True)
                # not sys.exit: taking leave of the others would wait for them, and they for this
                os._exit(1)
            return answer, None

        try:
            yield lambda _, *job: _here(share, *job), 1
        except StudyError:  # in the process of rank 0, where alone there is more to do
            share()
            raise
        if not group.rank:
            share()


# ---- what came of it ---------------------------------------------------------------------------


def collect(
    study: Study,
    profile: str,
    *,
    folder: Path | None = None,
    replace: Mapping[str, str] | None = None,
    partial: bool = False,
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The tables of all finished trials by kind, in the order of the grid, and their record.

    The record: study, profile, notes, trials (finished and in all), data (name to SHA-256), seeds,
    device, threads, libraries, code (commit), date (first, last), seconds (summed). Raises
    StudyError while trials are missing, unless ``partial``, and when a data set changed on the way.
    """
    trials, files = study.trials(profile, replace), TrialFiles(study, folder)
    found = [saved for trial in trials if (saved := files.read(trial))]
    if not found or (len(found) < len(trials) and not partial):
        raise StudyError(
            f"{len(found)} of the {len(trials)} trials of {study.name} at profile {profile} are "
            f"finished; run them first: lecture6 run {study.name} --profile {profile}, with the "
            "same --folder and --data"
        )
    records = [saved["record"] for saved in found]
    dates = [record["date"] for record in records]
    checksums = {pair for r in records for pair in r["data"].items()}
    data_sets = dict(sorted(checksums))
    if changed := [name for name, checksum in checksums if data_sets[name] != checksum]:
        raise StudyError(
            f"{changed[0]} changed between trials: delete the trials in {files.folder} and run the "
            "study again"
        )
    runs = ((s["parameters"] | row) for s in found for row in s["rows"].get("runs", []))
    seeds = {run.get("seed") for run in runs}  # a row's own, where a trial has several
    return tabulate((saved["parameters"], saved["rows"]) for saved in found), {
        "study": study.name,
        "profile": profile,
        "notes": study.notes,
        "trials": [len(found), len(trials)],
        "data": data_sets,
        "seeds": sorted(seeds - {None}),
        **{what: sorted({r[what] for r in records}) for what in ("device", "threads", "code")},
        "libraries": {
            name: sorted({r["libraries"][name] for r in records}) for name in TrialFiles.LIBRARIES
        },
        "date": [min(dates), max(dates)],
        "seconds": round(sum(r["seconds"] for r in records)),
    }
