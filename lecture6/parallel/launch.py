"""Processes that work together on one function: started, watched, and ended."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import cloudpickle
import joblib
import psutil
import torch
import torch.distributed as dist
from torch import nn

from lecture6.checkpoints import write_atomically
from lecture6.checks import real, whole
from lecture6.data import Dataset
from lecture6.parallel.group import ONE_PROCESS, Group, join, unavailable
from lecture6.train import DivergenceError, Recipe, Run, train

POLL = 0.02  # seconds between the parent's looks at its workers


class WorkerError(RuntimeError):
    """A worker died, raised, or waited in vain for another; the message names its rank."""


def train_parallel(
    model: nn.Module, data: Dataset, *, workers: int, timeout: float = 60.0, **options: Any
) -> Run:
    """:func:`lecture6.train.train` with its options, by ``workers`` processes.

    ``batch_size`` is that of the whole mini-batch, kn; each of the k workers takes n of it, and
    batch norm normalises these n by themselves. The weights are, up to rounding, those of one
    process with ``micro_batch=n``, and without batch norm those of one process with kn; dropout is
    drawn by each worker for itself. The Run is on the CPU. Where processes cannot be started, one
    does it all, and a UserWarning says why. ``timeout``: see :func:`launch`.

    Raises ValueError for the option ``micro_batch``, :class:`WorkerError` as :func:`launch`, and
    what train() raises.
    """
    if options.pop("micro_batch", None):
        raise ValueError(
            "train_parallel takes no micro_batch: leave it out, or call "
            "train(..., group=group) in a script that torchrun starts"
        )
    recipe = Recipe(**{k: v for k, v in options.items() if k not in ("device", "checkpoint")})
    recipe.check_trainable(model, data.x_train, whole("workers", workers, least=1))
    reason = unavailable()
    if reason is None:
        try:
            return launch(_train, model, data, options, workers=workers, timeout=timeout)[0]
        except OSError as error:
            reason = f"the workers cannot be started ({error})"
    warnings.warn(f"training in one process: {reason}", UserWarning, stacklevel=2)
    return _train(None, model, data, options | {"micro_batch": recipe.batch_size // workers})


def _train(group: Group | None, model: nn.Module, data: Dataset, options: dict) -> Any:
    run = train(model, data, group=group, **options)
    if group is not None and group.rank > 0:
        return None
    return replace(run, model=run.model.cpu(), w0=run.w0.cpu(), w=run.w.cpu())


def launch(
    function: Callable, *args: Any, workers: int, timeout: float = 60.0, threads: int | None = None
) -> list[Any]:
    """Call ``function(group, *args)`` in ``workers`` processes; their results, by rank.

    Function, arguments and results are pickled by cloudpickle, so that a function of a notebook
    will do; tensors come to the workers as a file mapped into memory. ``threads``: of torch, a
    worker; default: the cores divided by ``workers``. ``timeout``: seconds that a worker waits for
    the others at an exchange. What workers write to stderr is shown when one dies. No worker
    outlives the call, nor its caller.

    Raises :class:`WorkerError`, naming the rank, when a worker dies, raises, or waits for longer
    than ``timeout``; its ValueError or DivergenceError as such, with a note; OSError when processes
    cannot be started; ValueError for arguments out of range.
    """
    workers, timeout = whole("workers", workers, least=1), real("timeout", timeout, above=0)
    if threads is None:
        threads = max(1, joblib.cpu_count() // workers)
    n_threads = str(whole("threads", threads, least=1))
    env = os.environ | {
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), n_threads),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # to import what the caller can
    }
    # all workers are on this machine: their sockets listen to it alone
    if loopback := {"lo", "lo0"} & psutil.net_if_addrs().keys():
        env["GLOO_SOCKET_IFNAME"] = loopback.pop()
    with ExitStack() as stack:
        temporary = TemporaryDirectory(prefix="lecture6-", ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(temporary))
        torch.save((function, args), folder / "job", pickle_module=cloudpickle)
        processes = []
        for rank in range(workers):
            command = [sys.executable, "-m", "lecture6.parallel", str(folder)]
            command += map(str, (rank, workers, os.getpid(), timeout))
            stderr = stack.enter_context(open(folder / f"stderr-{rank}", "wb"))
            process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stderr=stderr)
            stack.callback(process.wait)  # after the kill
            stack.callback(process.kill)
            processes.append(process)
        return _watch(folder, processes)


def _watch(folder: Path, processes: list[subprocess.Popen]) -> list[Any]:
    """The workers' results, when all are there. Raises as soon as something is wrong."""
    size = len(processes)
    answers: dict[int, tuple[float, Exception | None, Any]] = {}
    while waiting := [rank for rank in range(size) if rank not in answers]:
        time.sleep(POLL)
        for rank in waiting:
            if (answer := folder / f"answer-{rank}").exists():
                answers[rank] = pickle.loads(answer.read_bytes())
        # A worker that dies takes others with it, whose connections break: processes are looked at
        # after the answers, so that the dead one is found and named. Who has answered lives on.
        for rank in waiting:
            code = processes[rank].poll()
            if code is not None and not (folder / f"answer-{rank}").exists():
                how = f"ended with exit code {code} and without a result"
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else how
                stderr = (folder / f"stderr-{rank}").read_text(errors="replace")
                last = "\n".join([". Its last words:", *stderr.splitlines()[-20:]])
                raise WorkerError(
                    f"worker {rank} of {size} {how}; set {ONE_PROCESS}=1 to train in one process"
                    f"{last if stderr else ''}"
                )
        # of several errors the first, which may have caused the others
        for _, error, _ in sorted(answers.values(), key=lambda answer: answer[0]):
            if error is not None:
                raise error
    return [answers[rank][2] for rank in range(size)]


def work(folder: Path, rank: int, size: int, parent: int, timeout: float) -> None:
    """In a worker: do the job, write (time, error or None, result), and wait for the end."""
    end_with(parent, lambda: shutil.rmtree(folder, ignore_errors=True))
    try:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # MKL takes it for a hint
        store = dist.FileStore(str(folder / "store"), size)
        limit = timedelta(seconds=timeout)
        group = join(rank, size, rank, size, store=store, timeout=limit)
        job = torch.load(folder / "job", map_location="cpu", mmap=True, weights_only=False)
        answer = cloudpickle.dumps((time.time(), None, job[0](group, *job[1])))
    except Exception as raised:
        text = f"worker {rank} of {size} raised {type(raised).__name__}: {raised}"
        if "Timed out" in text:  # so says gloo
            text += f"; another worker hangs, or give a longer timeout than {timeout:g}"
        error: Exception = WorkerError(text)
        if isinstance(raised, ValueError | DivergenceError):
            with suppress(Exception):  # where it cannot be pickled, or be built anew
                error = pickle.loads(cloudpickle.dumps(raised))
        error.add_note(f"raised in worker {rank} of {size}:\n{traceback.format_exc()}")
        answer = cloudpickle.dumps((time.time(), error, None))
    write_atomically(folder / f"answer-{rank}", answer)
    # The others' connections to this worker must not break while they are at the last exchange:
    # the parent ends all when it has all answers
    while True:
        time.sleep(60)


def end_with(parent: int, first: Callable[[], Any] = lambda: None) -> None:
    """Let this process end, after calling ``first``, when ``parent`` that started it is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        first()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
