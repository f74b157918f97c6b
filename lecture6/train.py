"""Equation (1) of the lecture, as a training loop.

``w ← w − η · (1/n) Σ_{x∈B} ∇ℓ(x; w)``, where the mini-batch B is a random subset of n samples.
All data stay in memory, so that a step is arithmetic and nothing else: no loader processes.
"""

from __future__ import annotations

import copy
import ctypes
import hashlib
import math
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Protocol

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from lecture6.data import Dataset
from lecture6.models import flat_parameters, local_seed

Schedule = Callable[[float], float]  # epoch (a fraction) -> factor on the learning rate
# Samples evaluated at a time. It matters for a net with batch norm: these are the samples that are
# normalised together. Keskar's released code takes 5,000; 1,000 keeps C1's gradients below 4 GB.
EVALUATION_BATCH = 1000


class DivergenceError(ArithmeticError):
    """The loss became infinite or NaN during training."""


@dataclass(frozen=True)
class Run:
    """A finished training run.

    ``history`` is tidy: one row an evaluated epoch and split, with columns epoch, update, split
    ("train" or "test"), loss (mean cross-entropy), accuracy (fraction), lr, and distance
    (‖w − w₀‖, Euclidean). Epoch 0 is the initial network.
    """

    model: nn.Module  #: trained copy, in eval mode
    w0: Tensor  #: (n_params,) before the first update
    w: Tensor  #: (n_params,) after the last
    history: pd.DataFrame
    n_updates: int
    precision: str  #: "float32" or "bfloat16": what the forward and backward passes used
    stopped: str  #: why training ended
    seconds: float = math.nan  #: of wall-clock time in updates, evaluations excluded

    def final(self, split: str, column: str = "accuracy") -> float:
        """The last value of a column of the history, e.g. ``run.final("test")``."""
        rows = self.history[self.history.split == split]
        return float(rows[column].iloc[-1])


class Workers(Protocol):
    """What :func:`train` asks of a group of workers; :class:`lecture6.parallel.Group` is one."""

    rank: int  #: of this worker, from 0
    size: int  #: k, the number of workers
    device: torch.device

    def wrap(self, model: nn.Module) -> nn.Module: ...
    def sum(self, tensor: Tensor) -> Tensor: ...
    def mean_buffers(self, model: nn.Module) -> None: ...
    def beat(self) -> None: ...


def step_decay(epochs: tuple[float, ...], factor: float = 0.1) -> Schedule:
    """Multiply the learning rate by ``factor`` at each of ``epochs``."""
    return lambda epoch: factor ** sum(epoch >= e for e in epochs)


def warmup(epochs: float, start: float = 0.1, *, kind: str = "gradual") -> Schedule:
    """Begin with the factor ``start`` and reach 1 after ``epochs`` (Goyal et al., §2.2).

    ``kind``: "gradual" rises linearly, "constant" stays at ``start`` and jumps. For a mini-batch k
    times as large with the rate scaled by k, ``start`` is 1/k. Raises ValueError for another kind.
    """
    if kind == "gradual":
        return lambda epoch: min(1.0, start + (1.0 - start) * epoch / epochs)
    if kind == "constant":
        return lambda epoch: start if epoch < epochs else 1.0
    raise ValueError(f"kind must be 'gradual' or 'constant', got {kind!r}")


def compose(*schedules: Schedule) -> Schedule:
    """The product of schedules: ``compose(warmup(5), step_decay((30, 60, 80)))``."""
    return lambda epoch: math.prod(schedule(epoch) for schedule in schedules)


def goyal_schedule(
    epochs: float, k: float, *, rule: str = "linear", kind: str = "gradual"
) -> Schedule:
    """Goyal et al.'s schedule (§5.1) for a mini-batch k times the base, in ``epochs``, not 90.

    The factor on the scaled rate: over the first 5 of 90 epochs up from the base rate's ("gradual"
    or "constant", see :func:`warmup`; "none" starts at 1), then 1, and a tenth of it after 30, 60
    and 80. Raises ValueError for another ``rule`` or ``kind``.
    """
    decay = step_decay(tuple(epochs * e / 90 for e in (30, 60, 80)))
    start = 1 / scale_lr(1.0, k, rule=rule)
    if kind == "none" or start == 1.0:
        return decay
    return compose(warmup(epochs * 5 / 90, start, kind=kind), decay)


def scale_lr(lr: float, k: float, *, rule: str = "linear") -> float:
    """The learning rate for mini-batches k times as large as those that ``lr`` is for.

    ``rule``: "linear", k·lr (Goyal et al., §2.1; the lecture prints kn, which is n/lr times as
    much); "sqrt", √k·lr (Hoffer et al.; Malladi et al., 2205.10287, for Adam); "none", lr. Raises
    ValueError for another rule, and for a k that is not positive.
    """
    if not (math.isfinite(k) and k > 0):
        raise ValueError(f"k must be a positive finite ratio of batch sizes, got {k}")
    factors = {"linear": k, "sqrt": math.sqrt(k), "none": 1.0}
    if rule not in factors:
        raise ValueError(f"rule must be one of {', '.join(factors)}, got {rule!r}")
    return lr * factors[rule]


def sample_batches(
    n_train: int, batch_size: int, *, sampling: str = "epoch", generator: torch.Generator
) -> Iterator[Tensor]:
    """Index tensors of the mini-batches of one epoch, ceil(n_train / batch_size) of them.

    ``sampling``: "epoch" shuffles once and visits every sample once, so that the last batch is
    smaller when batch_size does not divide n_train (what Keskar, Goyal and PyTorch do);
    "without_replacement" draws every batch anew, each a random subset (equation (1) as written);
    "with_replacement" draws every sample anew (the theory of §5.1).
    """
    if sampling == "epoch":
        yield from torch.randperm(n_train, generator=generator).split(batch_size)
        return
    for _ in range(math.ceil(n_train / batch_size)):
        if sampling == "with_replacement":
            yield torch.randint(n_train, (batch_size,), generator=generator)
        else:
            yield torch.randperm(n_train, generator=generator)[:batch_size]


def evaluation_batches(x: Tensor, y: Tensor, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Cut the samples into n nearly equal batches of at most ``batch_size``: every n-th sample.

    Batch norm normalises the samples of a batch together, so a batch must be a fair sample of the
    set. A run of consecutive ones is not, where a set has an order (an utterance of TIMIT, a class
    of an image folder).
    """
    n = math.ceil(len(x) / batch_size)
    # convolutions run up to twice as fast on channels_last
    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    return [(x[i::n].contiguous(memory_format=layout), y[i::n]) for i in range(n)]


def evaluate(
    logits: Callable[[Tensor], Tensor],
    batches: list[tuple[Tensor, Tensor]],
    group: Workers | None = None,
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (fraction), each batch weighted by its exact share.

    The workers of a ``group`` divide the batches among them, and each has the result.
    """
    n_samples = sum(len(y) for _, y in batches)
    loss, correct = 0.0, 0
    with torch.no_grad():
        for x, y in batches[group.rank :: group.size] if group else batches:
            z = logits(x)
            loss += len(y) / n_samples * F.cross_entropy(z, y).item()
            correct += (z.argmax(1) == y).sum().item()
            if group:
                group.beat()
    if group:
        loss, correct = group.sum(torch.tensor([loss, correct], dtype=torch.float64)).tolist()
    return loss, correct / n_samples


def train(
    model: nn.Module,
    data: Dataset,
    *,
    batch_size: int,
    lr: float,
    epochs: int,
    optimizer: str = "sgd",
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    sampling: str = "epoch",
    schedule: Schedule | None = None,
    patience: int | None = None,
    evaluate_every: int = 1,
    micro_batch: int | None = None,
    seed: int = 0,
    bf16: bool = False,
    device: str | torch.device | None = None,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = False,
    group: Workers | None = None,
) -> Run:
    """Train a copy of ``model`` on ``data`` by mini-batch SGD, equation (1), or Adam.

    Arguments:
        optimizer: "sgd" or "adam" (Keskar et al.; lr 1e-3 in their released code)
        sampling: see :func:`sample_batches`
        schedule: factor on ``lr`` as a function of the epoch: :func:`step_decay`, :func:`warmup`
        patience: stop when the training loss has not improved for this many evaluations: "until
            the loss function ceased to improve" (Keskar et al., §2.1); None: run all epochs
        evaluate_every: epochs between evaluations on the whole training and test sets
        micro_batch: samples in memory at a time: every mini-batch, also the smaller last one, is
            taken in ceil(batch_size / micro_batch) nearly equal parts whose gradients are
            accumulated (Goyal et al., §5.1), each normalised by itself where there is batch
            norm, whose running statistics move by the mean over the parts. With
            ``micro_batch=n`` one process does what k workers do
        seed: of the mini-batches and of dropout; the initial weights are the model's
        bf16: forward and backward passes in bfloat16 where the processor has it;
            ``Run.precision`` says what was used. Evaluations are always float32.
        device: default: the GPU when there is one; of a ``group``, the worker's own
        checkpoint: file to continue from and to save to after each evaluation, atomically
        group: the k workers of which this process is one, all called with the same arguments
            (:mod:`lecture6.parallel`). ``batch_size`` is kn: all draw the same batches, and
            each takes its n samples (Goyal et al., §3, remark 4). Dropout differs from
            worker to worker (it is seeded by seed + rank). Worker 0 writes the checkpoint,
            which all must be able to read

    The same arguments give bit-identical results on the same machine, also when the run was
    interrupted and resumed.

    Raises ValueError for impossible settings, :class:`DivergenceError` when the loss stops being
    finite (the message names the update and the learning rate).
    """
    check_settings(
        model,
        data,
        batch_size,
        lr,
        epochs,
        optimizer,
        momentum,
        nesterov,
        sampling,
        evaluate_every,
        micro_batch,
        group.size if group else 1,
    )
    if patience is not None and patience < 1:
        raise ValueError(f"patience must be at least 1 evaluation, or None, got {patience}")
    default = group.device if group else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device or default)
    rank, size = (group.rank, group.size) if group else (0, 1)
    n_parts = _n_parts(batch_size, size, micro_batch)  # of a worker's share of a mini-batch
    bf16 = bf16 and has_bf16(device)
    model = copy.deepcopy(model).to(device)
    x_train, y_train = data.x_train.to(device), data.y_train.to(device)
    if x_train.dim() == 4:
        x_train = x_train.contiguous(memory_format=torch.channels_last)
    sets = {
        "train": evaluation_batches(x_train, y_train, EVALUATION_BATCH),
        "test": evaluation_batches(
            data.x_test.to(device), data.y_test.to(device), EVALUATION_BATCH
        ),
    }
    net = group.wrap(model) if group else model  # wrapped, backward() averages over the workers
    w0 = flat_parameters(model)
    if optimizer == "sgd":
        opt = torch.optim.SGD(
            model.parameters(),
            lr=lr,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
        )
    else:
        opt = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    generator = torch.Generator().manual_seed(seed)
    rows: list[tuple] = []
    updates_per_epoch = math.ceil(data.n_train / batch_size)
    start, best, since_best, seconds = 0, math.inf, 0, 0.0

    def check_finite(loss: float, update: int, factor: float) -> None:
        if not math.isfinite(loss):
            raise DivergenceError(
                f"the loss became {loss} at update {update} with lr {lr * factor:g} and batch "
                f"size {batch_size}: use a smaller learning rate or a warm-up"
            )

    def record(epoch: int, factor: float) -> float:
        distance = (flat_parameters(model) - w0).norm().item()
        if group:
            group.mean_buffers(model)
        model.eval()
        update = epoch * updates_per_epoch
        for split, batches in sets.items():
            loss, accuracy = evaluate(model, batches, group)
            check_finite(loss, update, factor)
            rows.append((epoch, update, split, loss, accuracy, lr * factor, distance))
        return rows[-2][3]

    settings = {
        "data": [data.name, _digest(data.x_train, data.y_train) if checkpoint else None],
        "batch_size": batch_size,
        "lr": lr,
        "optimizer": [optimizer, momentum, nesterov, weight_decay],
        "sampling": sampling,
        "schedule": [schedule(float(epoch)) for epoch in range(100)] if schedule else None,
        "seed": seed,
        "bf16": bf16,
        "evaluate_every": evaluate_every,
        "micro_batch": micro_batch,
        "workers": size,
        "initial weights": _digest(w0),
    }

    def of_all_workers(state: Tensor) -> Tensor:
        """(size, len(state)): row r is that of worker r."""
        states = torch.zeros(size, len(state), dtype=state.dtype)
        states[rank] = state
        return group.sum(states) if group else states

    def snapshot(epoch: int) -> dict:
        cuda_rng = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return {
            "settings": settings,
            "model": model.state_dict(),
            "optimizer": opt.state_dict(),
            "generator": generator.get_state(),
            "rng": of_all_workers(torch.get_rng_state()),
            "cuda_rng": None if cuda_rng is None else of_all_workers(cuda_rng),
            "rows": rows,
            "progress": [epoch, best, since_best, seconds],
        }

    deterministic = torch.backends.cudnn.flags(deterministic=True, benchmark=False)
    with local_seed(seed + rank), deterministic, _kept_memory():
        if checkpoint is not None and Path(checkpoint).exists():
            state = load_checkpoint(checkpoint, settings)
            model.load_state_dict(state["model"])
            opt.load_state_dict(state["optimizer"])
            generator.set_state(state["generator"])
            # of a view, set_rng_state would read past the end: it takes no offset
            torch.set_rng_state(state["rng"][rank].clone())
            if device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda_rng"][rank].clone(), device)
            rows = state["rows"]
            start, best, since_best, seconds = state["progress"]
            if start > epochs:
                raise ValueError(
                    f"{checkpoint} already holds {start} epochs, more than the {epochs} asked for; "
                    "ask for at least as many, or use another checkpoint file"
                )
        else:
            best = record(0, schedule(0.0) if schedule else 1.0)

        stopped = "all epochs done"
        hidden = rank > 0 or not progress
        bar = tqdm(total=epochs, initial=start, unit="epoch", disable=hidden, leave=False)
        for epoch in range(start, epochs):
            if patience is not None and since_best >= patience:
                stopped = f"training loss ceased to improve for {patience} evaluations"
                break
            model.train()
            started = perf_counter()
            batches = sample_batches(
                data.n_train, batch_size, sampling=sampling, generator=generator
            )
            for i, batch in enumerate(batches):
                factor = schedule(epoch + i / updates_per_epoch) if schedule else 1.0
                for parameters in opt.param_groups:
                    parameters["lr"] = lr * factor
                share = batch.tensor_split(size)[rank].to(device)  # without workers, all of it
                parts = [part for part in share.tensor_split(n_parts) if len(part)]
                opt.zero_grad()
                for part in _with_buffers_of_their_own(model, parts):
                    # workers exchange gradients once an update, with the last part
                    with net.no_sync() if group and part is not parts[-1] else nullcontext():
                        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                            loss = F.cross_entropy(net(x_train[part]), y_train[part])
                        # the sum over parts of the mean over workers is (1/n) Σ ℓ(x; w)
                        loss = size * len(part) / len(batch) * loss
                        check_finite(loss.item(), epoch * updates_per_epoch + i, factor)
                        if group:
                            group.beat()
                        loss.backward()
                opt.step()  # w ← w − η ∇
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds += perf_counter() - started
            bar.update()
            if (epoch + 1) % evaluate_every and epoch + 1 < epochs:
                continue
            train_loss = record(epoch + 1, factor)
            best, since_best = (train_loss, 0) if train_loss < best else (best, since_best + 1)
            bar.set_postfix(loss=f"{train_loss:.4f}")
            if checkpoint is not None:
                state = snapshot(epoch + 1)
                if rank == 0:
                    save_checkpoint(checkpoint, state)
        bar.close()

    columns = ["epoch", "update", "split", "loss", "accuracy", "lr", "distance"]
    history = pd.DataFrame(rows, columns=columns)
    return Run(
        model=model.eval(),
        w0=w0,
        w=flat_parameters(model),
        history=history,
        n_updates=int(history["update"].iloc[-1]),
        precision="bfloat16" if bf16 else "float32",
        stopped=stopped,
        seconds=seconds,
    )


def _n_parts(batch_size: int, workers: int, micro_batch: int | None) -> int:
    """Parts in which each worker takes its share of a mini-batch."""
    n = batch_size // workers
    return math.ceil(n / (micro_batch or n))


def _with_buffers_of_their_own(model: nn.Module, parts: list[Tensor]) -> Iterator[Tensor]:
    """Yield ``parts``, each with the model's buffers as before the first; they end as the mean.

    The running statistics of batch norm become what workers, each with one part, would average.
    """
    buffers = list(model.buffers())
    if len(parts) == 1 or not buffers:
        yield from parts
        return
    before, after = [b.clone() for b in buffers], []
    for part in parts:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        yield part
        after.append([b.clone() for b in buffers])
    for buffer, *values in zip(buffers, *after, strict=True):
        if buffer.is_floating_point():  # a counter has counted one update
            buffer.copy_(torch.stack(values).mean(0))


@contextmanager
def _kept_memory() -> Iterator[None]:
    """Keep freed blocks in the process while training (glibc; elsewhere this does nothing).

    glibc hands large blocks back to the kernel when they are freed, and every step of a
    convolutional net gets them again page by page: a third of C1's time at batch size 256.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        yield
        return
    trim_threshold, mmap_max = -1, -4  # from malloc.h
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(mmap_max, 65536)  # the defaults
        libc.mallopt(trim_threshold, 128 * 1024)
        libc.malloc_trim(0)


def check_settings(
    model: nn.Module,
    data: Dataset,
    batch_size: int,
    lr: float,
    epochs: int,
    optimizer: str,
    momentum: float,
    nesterov: bool,
    sampling: str,
    evaluate_every: int,
    micro_batch: int | None = None,
    workers: int = 1,
) -> None:
    """Raise ValueError, naming the value and the remedy, for settings that cannot be trained."""
    if not 1 <= batch_size <= data.n_train:
        raise ValueError(
            f"batch_size must lie between 1 and the {data.n_train} training samples of "
            f"{data.name!r}, got {batch_size}"
        )
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr must be a positive finite number, got {lr}")
    if epochs < 1 or evaluate_every < 1:
        raise ValueError(
            f"epochs and evaluate_every must be at least 1, got {epochs} and {evaluate_every}"
        )
    if optimizer not in ("sgd", "adam"):
        raise ValueError(f"optimizer must be 'sgd' or 'adam', got {optimizer!r}")
    if optimizer == "adam" and (momentum or nesterov):
        raise ValueError(
            f"momentum {momentum} and nesterov {nesterov} are for optimizer='sgd'; Adam has its "
            "own moments"
        )
    if nesterov and not momentum:
        raise ValueError("nesterov=True looks ahead along the momentum: give a momentum above 0")
    if sampling not in ("epoch", "with_replacement", "without_replacement"):
        raise ValueError(
            "sampling must be 'epoch', 'with_replacement' or 'without_replacement', "
            f"got {sampling!r}"
        )
    if micro_batch is not None and micro_batch < 1:
        raise ValueError(f"micro_batch must be at least 1 sample, or None, got {micro_batch}")
    check_workers(data.n_train, batch_size, workers, sampling)
    last = (data.n_train % batch_size if sampling == "epoch" else 0) or batch_size
    smallest = max(1, last // workers // _n_parts(batch_size, workers, micro_batch))
    normalised = any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in model.modules())
    if smallest == 1 and normalised:
        raise ValueError(
            f"batch_size {batch_size} gives a batch of 1 sample of the {data.n_train}, which batch "
            "norm cannot normalise; choose another batch size, or another micro_batch"
        )


def check_workers(n_train: int, batch_size: int, workers: int, sampling: str) -> None:
    """Raise ValueError unless every mini-batch has samples for each of ``workers``."""
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if batch_size % workers:
        raise ValueError(
            f"batch_size {batch_size} cannot be divided among {workers} workers; choose a multiple "
            f"of {workers}, such as {workers * math.ceil(batch_size / workers)}"
        )
    last = n_train % batch_size if sampling == "epoch" else 0
    if 0 < last < workers:
        raise ValueError(
            f"batch_size {batch_size} leaves a last batch of {last} of the {n_train} samples for "
            f"{workers} workers; choose another batch_size, or fewer workers"
        )


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()


def has_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 arithmetic of its own."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def save_checkpoint(path: str | os.PathLike, state: dict) -> None:
    """Save ``state`` atomically: beside the target first, then renamed.

    A killed run leaves the last whole checkpoint.
    """
    partial = Path(f"{path}.{os.getpid()}.partial")
    try:
        torch.save(state, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: str | os.PathLike, settings: dict) -> dict:
    """The state saved at ``path``, whose "settings" must equal ``settings``.

    Raises ValueError for a file that cannot be read, and for other settings (it names them).
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved = state["settings"]
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.PickleError) as error:
        raise ValueError(
            f"{path} is not a readable checkpoint of lecture6 ({type(error).__name__}); "
            "delete it to start afresh"
        ) from error
    differ = [
        f"{key}: {saved.get(key)} there, {value} here"
        for key, value in settings.items()
        if saved.get(key) != value
    ]
    if differ:
        raise ValueError(
            f"{path} belongs to another run ({'; '.join(differ)}); use another checkpoint file, "
            "or delete it to start afresh"
        )
    return state
