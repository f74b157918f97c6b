"""Synchronous data-parallel SGD: k workers, n samples each, one update of equation (5).

Each worker has a copy of the network and takes its n samples of every mini-batch of kn. PyTorch's
DistributedDataParallel averages the gradients, so that all copies make the same step; the loop is
that of :func:`lecture6.train.train`. A worker is a process, with a GPU of its own where there are
enough (nccl), else on the CPU (gloo). Processes are started here (:func:`train_parallel`,
:func:`launch`), or by torchrun (:func:`from_torchrun`).
"""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from inspect import signature
from pathlib import Path
from threading import Thread
from typing import Any

import cloudpickle
import joblib
import numpy as np
import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lecture6.checks import whole
from lecture6.data import Dataset
from lecture6.team import Team
from lecture6.train import DivergenceError, Recipe, Run, train

POLL = 0.02  # seconds between the parent's looks at its workers
START = 60.0  # seconds that a worker may take to import torch on a busy machine
ONE_PROCESS = "LECTURE6_ONE_PROCESS"  #: environment variable: start no workers


class WorkerError(RuntimeError):
    """A worker died, raised or hangs; the message names its rank."""


@dataclass
class Group(Team):
    """The workers that train together, as one of them sees it."""

    beats: np.ndarray | None = None  #: (size,) int64, read by the parent; None under torchrun

    def wrap(self, model: nn.Module, x: Tensor) -> DistributedDataParallel:
        """``model`` with rank 0's weights, whose backward() averages gradients over the workers.

        Buffers stay each worker's own, as does what batch norm normalises by.
        """
        trial = copy.deepcopy(model)
        with torch.enable_grad(), torch.random.fork_rng():
            trial(x).sum().backward()
        unused = any(p.requires_grad and p.grad is None for p in trial.parameters())
        device = next(model.parameters()).device
        # torch 2.15 renames the option
        known = signature(DistributedDataParallel).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        return DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            find_unused_parameters=unused,
            **{buffers: False},
        )

    def exchange(self, net: nn.Module, last: bool) -> AbstractContextManager:
        return nullcontext() if last else net.no_sync()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the workers, in a new tensor that each of them gets."""
        tensor = tensor.clone()
        self.beat()
        dist.all_reduce(tensor)
        return tensor

    def mean_buffers(self, model: nn.Module) -> None:
        """Average the floating-point buffers of ``model`` over the workers, in place.

        The update of running statistics is linear: the mean of the workers' running averages is
        the running average of their mean statistics.
        """
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(self.sum(buffer) / self.size)

    def beat(self) -> None:
        """Count progress; the parent takes a worker for hung whose count stands still."""
        if self.beats is not None:
            self.beats[self.rank] += 1


def _join(rank: int, size: int, local_rank: int, local_size: int, **rendezvous: Any) -> Group:
    gpus = torch.cuda.device_count() >= local_size
    if gpus:
        torch.cuda.set_device(local_rank)
    # gloo beside nccl: what is summed on the CPU stays there. Who waits for whom, and for how long,
    # is for the parent to judge, or for torchrun
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=size, **rendezvous)
    return Group(torch.device("cuda", local_rank) if gpus else torch.device("cpu"), rank, size)


@contextmanager
def from_torchrun() -> Iterator[Group]:
    """The group of a script that torchrun started: ``with from_torchrun() as group: …``.

    Raises RuntimeError when torchrun did not start the script.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if missing := [name for name in names if name not in os.environ]:
        raise RuntimeError(
            f"torchrun sets {', '.join(missing)}, and here nothing did: start the script with "
            "'torchrun --standalone --nproc-per-node 2 script.py', or call train_parallel"
        )
    group = _join(*(int(os.environ[name]) for name in names))
    try:
        yield group
    finally:
        dist.destroy_process_group()


def unavailable() -> str | None:
    """Why several processes cannot train together here; None if they can."""
    if os.environ.get(ONE_PROCESS):
        return f"the environment variable {ONE_PROCESS} is set"
    if sys.platform in ("win32", "emscripten"):
        return f"workers cannot be started on {sys.platform}"
    if not (dist.is_available() and dist.is_gloo_available()):
        return "this build of torch has no torch.distributed with gloo"
    return None


def train_parallel(
    model: nn.Module,
    data: Dataset,
    *,
    workers: int,
    batch_size: int,
    lr: float,
    epochs: int,
    timeout: float = 60.0,
    **options: Any,
) -> Run:
    """:func:`lecture6.train.train` by ``workers`` processes; the Run is rank 0's, on the CPU.

    ``batch_size`` is that of the whole mini-batch, kn; each of the k workers takes n of it, and
    batch norm normalises these n by themselves. The weights are, up to rounding, those of one
    process with ``micro_batch=n``, and without batch norm those of one process with kn; dropout is
    drawn by each worker for itself. Where processes cannot be started, one does it all, and a
    UserWarning says why. ``timeout``: seconds without progress after which workers are taken for
    hung. The other options are those of ``train``.

    Raises ValueError for settings that leave a worker without a sample and for the options
    ``micro_batch``, ``progress`` and ``group``, which train() has for other uses;
    :class:`WorkerError` when a worker dies or hangs, and what train() raises.
    """
    for name in ("micro_batch", "progress", "group"):
        if options.pop(name, None):
            raise ValueError(
                f"train_parallel takes no {name}: leave it out, or call "
                "train(..., group=group) in a script that torchrun starts"
            )
    options |= {"batch_size": batch_size, "lr": lr, "epochs": epochs}
    names = {f.name for f in fields(Recipe)}
    recipe = Recipe(**{k: v for k, v in options.items() if k in names})
    recipe.check_fit(model, data.n_train, whole("workers", workers, least=1))
    reason = unavailable()
    if reason is None:
        try:
            return launch(_train, model, data, options, workers=workers, timeout=timeout)[0]
        except OSError as error:
            reason = f"the workers cannot be started ({error})"
    warnings.warn(f"training in one process: {reason}", UserWarning, stacklevel=2)
    return _on_cpu(train(model, data, micro_batch=batch_size // workers, **options))


def _train(group: Group, model: nn.Module, data: Dataset, options: dict) -> Run | None:
    run = train(model, data, group=group, **options)
    return _on_cpu(run) if group.rank == 0 else None


def _on_cpu(run: Run) -> Run:
    return replace(run, model=run.model.cpu(), w0=run.w0.cpu(), w=run.w.cpu())


def launch(
    function: Callable[..., Any],
    *arguments: Any,
    workers: int,
    timeout: float = 60.0,
    threads: int | None = None,
) -> list:
    """Call ``function(group, *arguments)`` in ``workers`` processes; their results, by rank.

    Function, arguments and results are pickled by cloudpickle, so that a function of a notebook
    will do; tensors come to the workers as a file mapped into memory. ``threads``: of torch, a
    worker; default: the cores divided by ``workers``. A function that computes for longer than
    ``timeout`` seconds between two exchanges calls ``group.beat()`` now and then. What workers
    write to stderr is shown when one fails.

    Raises :class:`WorkerError` naming the rank when a worker dies, raises, or makes no progress for
    ``timeout`` seconds; ValueError and DivergenceError of a worker are raised as such, with a note.
    OSError when the processes cannot be started. No worker outlives the call, nor its caller.
    """
    if workers < 1 or not timeout > 0 or (threads is not None and threads < 1):
        raise ValueError(
            f"workers and threads must be at least 1 and timeout above 0 seconds, got "
            f"{workers}, {threads} and {timeout}"
        )
    n_threads = str(threads or max(1, joblib.cpu_count() // workers))
    environment = os.environ | {
        "OMP_NUM_THREADS": n_threads,
        "MKL_NUM_THREADS": n_threads,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # to import what the caller can
    }
    # all workers are on this machine: their sockets listen to it alone
    if loopback := {"lo", "lo0"} & psutil.net_if_addrs().keys():
        environment["GLOO_SOCKET_IFNAME"] = loopback.pop()
    processes: list[subprocess.Popen] = []
    with tempfile.TemporaryDirectory(prefix="lecture6-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        torch.save((function, arguments), folder / "job", pickle_module=cloudpickle)
        beats = np.memmap(folder / "beats", np.int64, "w+", shape=workers)
        command = [sys.executable, "-m", "lecture6.parallel", name]
        try:
            for rank in range(workers):
                with open(folder / f"stderr-{rank}", "wb") as stderr:
                    processes.append(
                        subprocess.Popen(
                            [*command, str(rank), str(workers), str(os.getpid())],
                            env=environment,
                            stdin=subprocess.DEVNULL,
                            stderr=stderr,
                        )
                    )
            return _watch(folder, processes, beats, timeout)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()


def _watch(
    folder: Path, processes: list[subprocess.Popen], beats: np.ndarray, timeout: float
) -> list:
    """The workers' results, when all are there. Raises as soon as something is wrong."""
    size = len(processes)
    results: dict[int, Any] = {}
    seen, moved = beats.copy(), time.monotonic()
    while True:
        time.sleep(POLL)
        failed = []
        for rank in set(range(size)) - set(results):
            if (answer := folder / f"answer-{rank}").exists():
                with open(answer, "rb") as file:
                    written, error, *told = pickle.load(file)
                    if error is None:
                        results[rank] = pickle.load(file)
                    else:
                        failed.append((written, rank, error, *told))
        # A worker that dies takes others with it, whose connections break: they are looked at after
        # these have told, so that the dead one is found and named. Whoever has answered lives on.
        for rank, process in enumerate(processes):
            if process.poll() is not None and not (folder / f"answer-{rank}").exists():
                raise WorkerError(
                    f"worker {rank} of {size} {_ending(process.returncode)}; set {ONE_PROCESS}=1 "
                    f"to train in one process{_last_words(folder / f'stderr-{rank}')}"
                )
        if failed:
            _reraise(size, *min(failed)[1:])
        if len(results) == size:
            return [results[rank] for rank in range(size)]
        if (beats != seen).any():
            seen, moved = beats.copy(), time.monotonic()
        limit = timeout if seen.all() else max(timeout, START)
        if time.monotonic() - moved > limit:
            hung = _hung(processes, seen, [rank for rank in range(size) if rank not in results])
            raise WorkerError(
                f"worker {' and '.join(map(str, hung))} of {size} made no progress for {limit:g} "
                f"seconds; give a longer timeout than {timeout:g} if an update takes that long, or "
                f"call group.beat() more often{_last_words(folder / f'stderr-{hung[0]}')}"
            )


def _ending(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code} and without a result"


def _last_words(stderr: Path) -> str:
    lines = stderr.read_text(errors="replace").splitlines()[-20:]
    return "\n".join([". Its last words:", *lines]) if lines else ""


def _reraise(size: int, rank: int, error: str, pickled: bytes | None, trace: str) -> None:
    """Raise what worker ``rank`` raised, or a WorkerError that tells it."""
    try:
        exception = pickle.loads(pickled)
    except Exception:  # of a class that cannot be pickled, or not be built from its arguments
        exception = None
    if not isinstance(exception, ValueError | DivergenceError):
        exception = WorkerError(f"worker {rank} of {size} raised {error}")
    exception.add_note(f"raised in worker {rank} of {size}:\n{trace}")
    raise exception


def _hung(processes: list[subprocess.Popen], beats: np.ndarray, waiting: list[int]) -> list[int]:
    """The ranks to blame: the stopped ones, else those that got least far before the exchange."""
    status = {rank: psutil.Process(processes[rank].pid).status() for rank in waiting}
    stopped = [rank for rank in waiting if status[rank] == psutil.STATUS_STOPPED]
    return stopped or [r for r in waiting if beats[r] == min(beats[rank] for rank in waiting)]


def _work(folder: Path, rank: int, size: int, parent: int) -> None:
    """In a worker: do the job, write the answer, and wait for the end."""
    _end_with(parent, folder)
    try:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # MKL takes it for a hint
        beats = np.memmap(folder / "beats", np.int64, "r+", shape=size)
        store = dist.FileStore(str(folder / "store"), size)
        group = _join(rank, size, rank, size, store=store, timeout=timedelta(days=1))
        group.beats = beats
        function, arguments = torch.load(
            folder / "job", map_location="cpu", mmap=True, weights_only=False
        )
        beats[rank] = 1  # until all have started, the parent is patient
        result = function(group, *arguments)
        answer = pickle.dumps((time.time(), None)) + cloudpickle.dumps(result)
    except Exception as error:
        try:
            pickled = cloudpickle.dumps(error)
        except Exception:
            pickled = None
        told = f"{type(error).__name__}: {error}", pickled, traceback.format_exc()
        answer = pickle.dumps((time.time(), *told))
    (folder / f"partial-{rank}").write_bytes(answer)
    os.replace(folder / f"partial-{rank}", folder / f"answer-{rank}")
    # The others' connections to this worker must not break while they are at the last exchange:
    # the parent ends all when it has all answers
    while True:
        time.sleep(60)


def _end_with(parent: int, folder: Path) -> None:
    """Let the worker end, and the folder with it, when its parent has been killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    from lecture6 import parallel  # the module that pickles name, not __main__

    parallel._work(Path(sys.argv[1]), *map(int, sys.argv[2:]))
