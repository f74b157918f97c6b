"""Equation (1) of the lecture, as a training loop.

``w ← w − η · (1/n) Σ_{x∈B} ∇ℓ(x; w)``, where the mini-batch B is a random subset of n samples.
Read :func:`train` first, then :func:`gradient`; a :class:`Recipe` says what is trained, and how.
All data stay in memory: there are no loader processes.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lecture6 import checks
from lecture6.checkpoints import Checkpoint, digest
from lecture6.data import Dataset
from lecture6.device import choose, for_training, has_bf16, kept_memory
from lecture6.evaluation import evaluate, prepared
from lecture6.models import flat_parameters, local_seed
from lecture6.schedules import Schedule, factors
from lecture6.team import Team

SAMPLING = ("epoch", "with_replacement", "without_replacement")
LARGEST = 1e30  # lr and weight decay: float32 takes them, and times any factor of a schedule
COLUMNS = ["epoch", "update", "split", "loss", "accuracy", "lr", "distance"]  # of a history


class DivergenceError(ArithmeticError):
    """The loss became infinite or NaN during training."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: by :func:`train`, ``train_many``, workers and studies alike.

    Numbers of NumPy become Python's. Raises ValueError, naming the value and the remedy, for
    settings that cannot be trained.
    """

    batch_size: int  #: n, samples; with k workers that of all of them, kn
    lr: float  #: η, per update
    epochs: int  #: passes over the training set
    optimizer: str = "sgd"  #: or "adam" (Keskar et al.; lr 1e-3 in their released code)
    momentum: float = 0.0  #: of "sgd", 0 ≤ m < 1
    nesterov: bool = False  #: look ahead along the momentum
    weight_decay: float = 0.0  #: λ: the gradient is that of the loss plus λ w
    sampling: str = "epoch"  #: see :func:`sample_batches`
    schedule: Schedule | None = None  #: factor on ``lr`` as a function of the epoch
    #: Evaluations without a smaller training loss after which to stop: "until the loss function
    #: ceased to improve" (Keskar et al., §2.1); None: run all epochs.
    patience: int | None = None
    evaluate_every: int = 1  #: epochs between evaluations on the whole training and test sets
    #: Samples in memory at a time: a mini-batch is taken in ceil(batch_size / micro_batch) nearly
    #: equal parts whose gradients are accumulated (Goyal et al., §5.1). Batch norm normalises each
    #: by itself, and moves its running statistics by their mean, as k workers of n samples do.
    micro_batch: int | None = None
    seed: int = 0  #: of the mini-batches and of dropout; the initial weights are the model's
    #: Train in bfloat16 where the processor has it, which ``Run.precision`` says; never evaluate.
    bf16: bool = False

    def __post_init__(self) -> None:
        found: dict[str, Any] = {
            "lr": checks.real("lr", self.lr, above=0, most=LARGEST),
            "optimizer": checks.one_of("optimizer", self.optimizer, ("sgd", "adam")),
            "momentum": checks.real("momentum", self.momentum, least=0, below=1),
            "nesterov": checks.flag("nesterov", self.nesterov),
            "weight_decay": checks.real("weight_decay", self.weight_decay, least=0, most=LARGEST),
            "sampling": checks.one_of("sampling", self.sampling, SAMPLING),
            "seed": checks.seed(self.seed),
            "bf16": checks.flag("bf16", self.bf16),
        }
        for name in ("batch_size", "epochs", "patience", "evaluate_every", "micro_batch"):
            value, optional = getattr(self, name), name in ("patience", "micro_batch")
            if value is not None or not optional:
                found[name] = checks.whole(name, value, least=1)
        for name, value in found.items():
            object.__setattr__(self, name, value)
        if self.optimizer == "adam" and (self.momentum or self.nesterov):
            raise ValueError(
                f"momentum {self.momentum} and nesterov {self.nesterov} are for optimizer='sgd'; "
                "Adam has its own moments"
            )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=True looks ahead along the momentum: give one above 0")

    def updates_per_epoch(self, n_train: int) -> int:
        """The updates of an epoch."""
        return math.ceil(n_train / self.batch_size)

    def batches(self, n_train: int, generator: torch.Generator) -> Iterator[Tensor]:
        """The mini-batches of an epoch, as indices: see :func:`sample_batches`."""
        return sample_batches(n_train, self.batch_size, sampling=self.sampling, generator=generator)

    def n_parts(self, workers: int) -> int:
        """The parts in which each worker takes its share of a mini-batch."""
        own = self.batch_size // workers
        return math.ceil(own / (self.micro_batch or own))

    def optimizer_for(self, parameters: Iterable[Tensor] | Iterable[dict]) -> torch.optim.Optimizer:
        """What turns gradients into a step; ``parameters`` as torch.optim takes them."""
        shared: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay}
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, fused=True, **shared)
        shared |= {"momentum": self.momentum, "nesterov": self.nesterov}
        return torch.optim.SGD(parameters, **shared)

    def check_trainable(self, model: nn.Module, x: Tensor, workers: int = 1) -> None:
        """Raise ValueError unless every mini-batch of samples ``x`` (n, …) can be trained on."""
        parameters, n_train = list(checks.parameters(model).values()), len(x)
        if not any(p.requires_grad for p in parameters):
            raise ValueError("every parameter is frozen: call requires_grad_() of one at least")
        if self.batch_size > n_train:
            raise ValueError(
                f"batch_size must lie between 1 and the {n_train} training samples, got "
                f"{self.batch_size}"
            )
        last = (n_train % self.batch_size if self.sampling == "epoch" else 0) or self.batch_size
        if self.batch_size % workers:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be divided among {workers} workers; choose a "
                f"multiple of {workers}, such as {workers * math.ceil(self.batch_size / workers)}"
            )
        if last < workers:
            raise ValueError(
                f"batch_size {self.batch_size} leaves a last batch of {last} of the {n_train} "
                f"samples for {workers} workers; choose another batch_size, or fewer workers"
            )
        if last // workers // self.n_parts(workers) > 1:
            return
        try:  # batch norm takes one image of several pixels, and no vector
            with torch.no_grad(), torch.random.fork_rng():
                z = copy.deepcopy(model).train()(checks.cast(x[:1], parameters[0]))
                F.cross_entropy(z, torch.zeros(1, dtype=torch.int64, device=z.device))
        except Exception as error:  # whatever the user's forward raises
            raise ValueError(
                f"batch_size {self.batch_size} gives a batch of 1 sample of the {n_train}, which "
                f"the network cannot be trained on ({error}); choose another batch size, or "
                "another micro_batch"
            ) from error


@dataclass(frozen=True)
class Run:
    """A finished training run."""

    model: nn.Module  #: trained copy, in eval mode
    w0: Tensor  #: (n_params,) before the first update
    w: Tensor  #: (n_params,) after the last
    #: A row an evaluated epoch (0 is the initial network) and split ("train" or "test"), with loss
    #: (mean cross-entropy), accuracy (fraction), lr, and distance (‖w − w₀‖, Euclidean).
    history: pd.DataFrame
    n_updates: int  #: made until the last evaluation
    precision: str  #: "float32", "bfloat16", …: what the forward and backward passes used
    stopped: str  #: why training ended
    seconds: float = math.nan  #: of wall-clock time in updates, evaluations excluded

    @classmethod
    def of(cls, model: nn.Module, w0: Tensor, rows: list[tuple], bf16: bool, *more: Any) -> Run:
        """The run of a network that is trained, from the rows of its history."""
        precision = str(torch.bfloat16 if bf16 else w0.dtype).removeprefix("torch.")
        history, n_updates = pd.DataFrame(rows, columns=COLUMNS), rows[-1][1] if rows else 0
        return cls(model.eval(), w0, flat_parameters(model), history, n_updates, precision, *more)

    def final(self, split: str, column: str = "accuracy") -> float:
        """The last value of a column of the history, e.g. ``run.final("test")``.

        Raises ValueError for a split that was not evaluated, and for an unknown column.
        """
        rows = self.history[self.history.split == split]
        if rows.empty or column not in rows:
            columns, splits = list(self.history.columns), self.history.split.unique().tolist()
            raise ValueError(
                f"the history has no {column!r} of {split!r}: its columns are {columns}, its "
                f"splits {splits} ({self.stopped})"
            )
        return float(rows[column].iloc[-1])


def sample_batches(
    n_train: int, batch_size: int, *, sampling: str = "epoch", generator: torch.Generator
) -> Iterator[Tensor]:
    """Index tensors of the mini-batches of one epoch, ceil(n_train / batch_size) of them.

    ``sampling``: "epoch" shuffles once and visits every sample once, so that the last batch is
    smaller when batch_size does not divide n_train (what Keskar, Goyal and PyTorch do);
    "without_replacement" draws every batch anew, each a random subset (equation (1) as written);
    "with_replacement" draws every sample anew (the theory of §5.1). Raises ValueError for others.
    """
    if checks.one_of("sampling", sampling, SAMPLING) == "epoch":
        yield from torch.randperm(n_train, generator=generator).split(batch_size)
        return
    for _ in range(math.ceil(n_train / batch_size)):
        if sampling == "with_replacement":
            yield torch.randint(n_train, (batch_size,), generator=generator)
        else:
            yield torch.randperm(n_train, generator=generator)[:batch_size]


def train(
    model: nn.Module,
    data: Dataset,
    *,
    device: str | torch.device | None = None,
    checkpoint: str | os.PathLike | None = None,
    group: Team | None = None,
    **settings: Any,
) -> Run:
    """Train a copy of ``model`` on ``data`` by mini-batch SGD, equation (1), or Adam.

    Arguments:
        settings: ``batch_size``, ``lr``, ``epochs`` and the other fields of a :class:`Recipe`
        device: default: the GPU when there is one; with a ``group``, each worker has its own
        checkpoint: file to continue from and to save to after each evaluation, atomically
        group: the k workers of which this process is one, all called with the same arguments
            (:mod:`lecture6.parallel`). All draw the same batches of kn, and each takes its n
            samples (Goyal et al., §3, remark 4). Dropout is seeded by seed + rank. Worker 0 writes
            the checkpoint, which all must be able to read

    The same arguments give bit-identical results on the same machine, also when resumed. Raises
    ValueError for impossible settings and data, :class:`DivergenceError` when the loss stops being
    finite (it names the update and the rate), OSError when the checkpoint cannot be written.
    """
    recipe = Recipe(**settings)
    team = group or Team(choose(device))
    with for_training(), kept_memory(), local_seed((recipe.seed + team.rank) % checks.SEEDS):
        training = _Training(model, data, recipe, team, checkpoint)
        for epoch in training.epochs():
            for parts in training.batches(epoch):  # one part, unless micro_batch says otherwise
                training.optimizer.zero_grad()
                loss = gradient(training.net, parts, len(parts), team, bf16=training.bf16)
                training.check_finite(loss)
                training.optimizer.step()  # w ← w − η ∇
        return training.result()


def gradient(
    net: nn.Module,
    parts: Iterable[tuple[Tensor, Tensor, float]],
    n_parts: int,
    team: Team,
    *,
    bf16: bool = False,
    observe: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Leave (1/n) Σ_{x∈B} ∇ℓ(x; w) in the parameters of ``net``; returns the mean loss, ().

    ``parts``: ``n_parts`` triples (x, y, fraction of B's samples), which may be read only while
    they are needed; together they are B, or what a worker takes of it. ``observe`` is called with
    the logits and the labels of each. A worker's loss is k times its summand of the mean.
    """
    losses = []
    for j, (x, y, fraction) in enumerate(_each_from_the_same_buffers(net, parts, n_parts)):
        with team.exchange(net, last=j + 1 == n_parts):
            with torch.autocast(team.device.type, torch.bfloat16, enabled=bf16):
                z = net(x)
                loss = team.size * fraction * F.cross_entropy(z, y)
            loss.backward()  # added to what is there; the mean of the workers is (1/n) Σ ∇ℓ
        losses.append(loss.detach())
        if observe is not None:
            observe(z.detach(), y)
    return losses[0] if n_parts == 1 else torch.stack(losses).sum()


def _each_from_the_same_buffers(
    model: nn.Module, parts: Iterable[tuple[Tensor, Tensor, float]], n_parts: int
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Yield ``parts``, each with the model's buffers as before the first; they end as the mean.

    The running statistics of batch norm become what workers, each with one part, would average.
    """
    buffers = list(model.buffers())
    if n_parts == 1 or not buffers:
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


class _Training:
    """What changes while a network is trained: weights, random numbers, history, position."""

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        recipe: Recipe,
        team: Team,
        checkpoint: str | os.PathLike | None,
    ) -> None:
        self.recipe, self.team = recipe, team
        checks.parameters(model)
        self.model = copy.deepcopy(model).to(team.device)
        self.x, self.y, self.sets = prepared(self.model, data)
        recipe.check_trainable(self.model, self.x, team.size)
        self.updates_per_epoch = recipe.updates_per_epoch(len(self.x))
        self.n_parts = recipe.n_parts(team.size)
        self.factors = factors(recipe.schedule, recipe.epochs, self.updates_per_epoch)
        if self.x.dim() == 4:
            self.x = self.x.contiguous(memory_format=torch.channels_last)
        self.w0 = checks.finite("the model", flat_parameters(self.model), "build it anew")
        self.bf16 = recipe.bf16 and has_bf16(team.device)
        self.net = team.wrap(self.model, self.x[[0, -1]])  # the same, or what averages gradients
        self.optimizer = recipe.optimizer_for(self.model.parameters())
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.rows: list[tuple] = []
        self.epoch, self.update, self.factor = 0, 0, float(self.factors[0, 0])
        self.best, self.since_best, self.seconds = math.inf, 0, 0.0
        self.checkpoint = Checkpoint(checkpoint, self._identity(data) if checkpoint else {})
        if team.rank == 0:
            self.checkpoint.check_writable()
        self._restore()

    def _identity(self, data: Dataset) -> dict[str, Any]:
        """All that the result depends on, but for how many epochs are run."""
        without = {"epochs", "patience", "schedule", "micro_batch"}
        known = {name: v for name, v in vars(self.recipe).items() if name not in without}
        frozen = [name for name, p in self.model.named_parameters() if not p.requires_grad]
        return known | {
            "bf16": self.bf16,
            "parts of a batch": self.n_parts,
            "data": str(data.name),
            "training set": digest(data.x_train, data.y_train),
            "test set": digest(data.x_test, data.y_test),
            "model": [repr(self.model), f"frozen: {frozen}"],
            "initial weights": digest(self.w0, *self.model.buffers()),
            "schedule": [digest(torch.tensor(epoch)) for epoch in self.factors],
            "workers": self.team.size,
        }

    def epochs(self) -> Iterator[int]:
        """The epochs that are left, and what is done after each: evaluation, saving, stopping."""
        recipe, total = self.recipe, self.recipe.epochs
        if not self.rows:
            self.best = self._record()
        while self.epoch < total and self.since_best < (recipe.patience or math.inf):
            self.model.train()
            started = perf_counter()
            yield self.epoch
            if self.team.device.type == "cuda":
                torch.cuda.synchronize(self.team.device)
            self.seconds += perf_counter() - started
            self.epoch += 1
            if self.epoch % recipe.evaluate_every == 0 or self.epoch == total:
                loss = self._record()
                self.since_best = 0 if loss < self.best else self.since_best + 1
                self.best = min(loss, self.best)
                self._save()

    def batches(self, epoch: int) -> Iterator[list[tuple[Tensor, Tensor, float]]]:
        """What this process takes of each mini-batch, see :func:`gradient`; sets its rate η."""
        recipe, team = self.recipe, self.team
        for i, batch in enumerate(recipe.batches(len(self.y), self.generator)):
            self.update = epoch * self.updates_per_epoch + i
            self.factor = float(self.factors[epoch, i])
            for param_group in self.optimizer.param_groups:
                param_group["lr"] = recipe.lr * self.factor
            own = batch.tensor_split(team.size)[team.rank].to(team.device)
            parts = [part for part in own.tensor_split(self.n_parts) if len(part)]
            yield [(self.x[part], self.y[part], len(part) / len(batch)) for part in parts]

    def check_finite(self, loss: float | Tensor) -> None:
        """Raise DivergenceError for a loss that is not finite."""
        loss = float(loss)
        if not math.isfinite(loss):
            raise DivergenceError(
                f"the loss became {loss} at update {self.update} with lr "
                f"{self.recipe.lr * self.factor:g} and batch size {self.recipe.batch_size}: use a "
                "smaller learning rate or a warm-up"
                if self.update
                else f"the loss of the initial network is {loss}: scale the inputs, or the weights"
            )

    def _record(self) -> float:
        """Evaluate, in eval mode and with mean buffers; returns the training loss."""
        distance = (flat_parameters(self.model) - self.w0).norm().item()
        self.team.mean_buffers(self.model)
        self.model.eval()
        self.update = self.epoch * self.updates_per_epoch
        for split, batches in self.sets.items():
            loss, accuracy = evaluate(self.model, batches, self.team)
            self.check_finite(loss)
            lr = self.recipe.lr * self.factor
            self.rows.append((self.epoch, self.update, split, loss, accuracy, lr, distance))
        return self.rows[-2][3]

    def _save(self) -> None:
        device, rows = self.team.device, self.team.rows
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "rng": rows(torch.get_rng_state()),
            "cuda_rng": rows(torch.cuda.get_rng_state(device)) if device.type == "cuda" else None,
            "rows": self.rows,
            "progress": [self.epoch, self.best, self.since_best, self.seconds],
        }
        if self.team.rank == 0:
            self.checkpoint.save(state)

    def _restore(self) -> None:
        state = self.checkpoint.load()
        if state is None:
            return
        device, rank = self.team.device, self.team.rank
        try:
            self.epoch, self.best, self.since_best, self.seconds = state["progress"]
            self.rows = state["rows"]
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.generator.set_state(state["generator"])
            # of a view, set_rng_state would read past the end: it takes no offset
            torch.set_rng_state(state["rng"][rank].clone())
            if device.type == "cuda" and state["cuda_rng"] is not None:  # None: begun on a CPU
                torch.cuda.set_rng_state(state["cuda_rng"][rank].clone(), device)
        except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise self.checkpoint.unreadable(error) from error
        checks.finite(f"{self.checkpoint.path}", flat_parameters(self.model), "delete it")
        if self.epoch > self.recipe.epochs:
            raise ValueError(
                f"{self.checkpoint.path} already holds {self.epoch} epochs, more than the "
                f"{self.recipe.epochs} asked for; ask for at least as many, or use another "
                "checkpoint file"
            )

    def result(self) -> Run:
        """What is known of the run when it has ended."""
        stopped = "all epochs done"
        if self.epoch < self.recipe.epochs:
            stopped = f"training loss ceased to improve for {self.recipe.patience} evaluations"
        return Run.of(self.model, self.w0, self.rows, self.bf16, stopped, self.seconds)
