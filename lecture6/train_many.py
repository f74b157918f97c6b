"""Many replicas of one small network trained at once: equation (1), a batch of networks at a time.

A small network leaves a processor waiting for the next instruction, and a GPU idle. Here the
parameters of all replicas are stacked, ``(n_replicas, *shape)``, and a step is one batched product
a layer. Every replica has its own initial weights, seed, learning rate and, if wanted, data, and
ends with the weights that :func:`lecture6.train.train` would give it, up to rounding.

Networks of dense layers and ReLU go forward and backward by hand, and plain SGD adds η∇ to the
weights in the product that makes ∇, which is then never stored. On a CPU a few replicas at a time
go through an epoch, so that their weights stay in the cache. Other networks go through torch.func.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils import parameters_to_vector
from tqdm.auto import tqdm

from lecture6.data import Dataset
from lecture6.train import (
    EVALUATION_BATCH,
    Run,
    Schedule,
    check_settings,
    evaluate,
    evaluation_batches,
    has_bf16,
    sample_batches,
)

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # Adam's, as in torch.optim


def train_many(
    models: Sequence[nn.Module],
    data: Dataset | Sequence[Dataset],
    *,
    batch_size: int,
    lr: float | Sequence[float],
    epochs: int,
    seeds: Sequence[int] | None = None,
    optimizer: str = "sgd",
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    sampling: str = "epoch",
    schedule: Schedule | None = None,
    evaluate_every: int = 1,
    bf16: bool = False,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> list[Run]:
    """Train copies of ``models`` at once; one :class:`lecture6.train.Run` each, in their order.

    The arguments are those of :func:`lecture6.train.train`, but for these.

    Arguments:
        models: replicas of one architecture, each with its own initial weights
        data: one data set for all, or one for each replica, of equal sizes
        lr: one for all, or one for each replica; ``schedule`` multiplies them all
        seeds: of the mini-batches of each replica; default 0, 1, 2, …

    A replica whose weights or losses stop being finite ends there: its Run says so in ``stopped``,
    its history and ``n_updates`` end at the last evaluation before, its weights are what they
    became, and the others go on. Raises ValueError for impossible settings, for models of different
    architectures, and for networks that draw random numbers, keep running statistics (dropout,
    ``batch_norm="running"``) or have frozen parameters: train them one by one.
    """
    models, r = list(models), len(models)
    sets = [data] * r if isinstance(data, Dataset) else list(data)
    rates = [float(x) for x in lr] if np.ndim(lr) else [float(lr)] * r
    seeds = list(range(r)) if seeds is None else list(seeds)
    _check_replicas(models, sets, rates, seeds)
    for rate in rates:
        check_settings(
            models[0],
            sets[0],
            batch_size,
            rate,
            epochs,
            optimizer,
            momentum,
            nesterov,
            sampling,
            evaluate_every,
        )
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    models = [copy.deepcopy(model).to(device) for model in models]
    w0 = [parameters_to_vector(model.parameters()).detach() for model in models]
    parameters = [torch.stack(p) for p in zip(*(m.parameters() for m in models), strict=True)]
    parameters = [p.detach() for p in parameters]
    for i, model in enumerate(models):  # a replica's module looks at its part of the stack
        for own, stacked in zip(model.parameters(), parameters, strict=True):
            own.data = stacked[i]

    distinct = {id(s): s for s in sets}
    starts = dict(zip(distinct, range(0, r * sets[0].n_train, sets[0].n_train), strict=False))
    x = torch.cat([s.x_train for s in distinct.values()]).to(device)
    y = torch.cat([s.y_train for s in distinct.values()]).to(device)
    shift = torch.tensor([[starts[id(s)]] for s in sets])
    splits = {
        key: {
            split: evaluation_batches(part_x.to(device), part_y.to(device), EVALUATION_BATCH)
            for split, part_x, part_y in (
                ("train", s.x_train, s.y_train),
                ("test", s.x_test, s.y_test),
            )
        }
        for key, s in distinct.items()
    }

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    lrs = torch.tensor(rates, device=device, dtype=parameters[0].dtype)
    bf16 = bf16 and has_bf16(device)
    if bf16:
        x = x.bfloat16()
    step = _Step(models[0], optimizer, momentum, nesterov, weight_decay, bf16)
    state = [[torch.zeros_like(p) for p in parameters] for _ in range(step.n_buffers)]
    at_once = r if device.type == "cuda" else max(1, torch.get_num_threads())
    updates_per_epoch = math.ceil(sets[0].n_train / batch_size)
    rows: list[list[tuple]] = [[] for _ in models]
    alive, stopped = set(range(r)), ["all epochs done"] * r

    def record(epoch: int, factor: float) -> None:
        update = epoch * updates_per_epoch
        for i in sorted(alive):
            model = models[i].eval()
            w = parameters_to_vector(model.parameters()).detach()
            distance = (w - w0[i]).norm().item()
            found = {s: evaluate(model, batches) for s, batches in splits[id(sets[i])].items()}
            if not (w.isfinite().all() and all(math.isfinite(loss) for loss, _ in found.values())):
                alive.discard(i)
                stopped[i] = f"diverged by epoch {epoch} with lr {rates[i]:g}"
                continue
            for split, (loss, accuracy) in found.items():
                rows[i].append((epoch, update, split, loss, accuracy, rates[i] * factor, distance))

    record(0, schedule(0.0) if schedule else 1.0)
    models[0].train()
    for epoch in tqdm(range(epochs), unit="epoch", disable=not progress, leave=False):
        factors = [
            schedule(epoch + i / updates_per_epoch) if schedule else 1.0
            for i in range(updates_per_epoch)
        ]
        drawn = [
            torch.cat(
                list(sample_batches(sets[0].n_train, batch_size, sampling=sampling, generator=g))
            )
            for g in generators
        ]
        order = (torch.stack(drawn) + shift).to(device)
        for first in range(0, r, at_once):
            part = slice(first, first + at_once)
            if alive.isdisjoint(range(r)[part]):
                continue
            p = [stacked[part] for stacked in parameters]
            buffers = [[b[part] for b in kind] for kind in state]
            for i, batch in enumerate(order[part].split(batch_size, dim=1)):
                t = epoch * updates_per_epoch + i + 1
                step(p, buffers, x[batch], y[batch], lrs[part] * factors[i], t)
        if (epoch + 1) % evaluate_every == 0 or epoch + 1 == epochs:
            record(epoch + 1, factors[-1])
            models[0].train()

    columns = ["epoch", "update", "split", "loss", "accuracy", "lr", "distance"]
    runs = []
    for i, model in enumerate(models):
        history = pd.DataFrame(rows[i], columns=columns)
        for own in model.parameters():
            own.data = own.data.clone()
        runs.append(
            Run(
                model=model.eval(),
                w0=w0[i],
                w=parameters_to_vector(model.parameters()).detach(),
                history=history,
                n_updates=rows[i][-1][1] if rows[i] else 0,
                precision="bfloat16" if bf16 else "float32",
                stopped=stopped[i],
            )
        )
    return runs


class _Step:
    """One update of a stack of replicas, in place; with ``bf16`` the samples come in bfloat16."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: str,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
        bf16: bool,
    ) -> None:
        self.model, self.optimizer, self.momentum = model, optimizer, momentum
        self.nesterov, self.weight_decay, self.bf16 = nesterov, weight_decay, bf16
        self.by_hand = _is_dense(model)
        self.fused = self.by_hand and optimizer == "sgd" and not momentum
        self.n_buffers = 2 if optimizer == "adam" else 1 if momentum else 0

    def __call__(
        self, p: list[Tensor], buffers: list[list[Tensor]], x: Tensor, y: Tensor, lr: Tensor, t: int
    ) -> None:
        """Step t = 1, 2, …: p (r, *shape) each, x (r, batch, …), y (r, batch), lr (r,)."""
        with torch.no_grad():
            if self.fused:
                scale = -lr
                for i, gradient in self.backward(p, x, y, scale):
                    if self.weight_decay:
                        p[i].mul_(1 - self.weight_decay * _like(lr, p[i]))
                    gradient(p[i])
                return
            if self.by_hand and self.optimizer == "sgd" and not self.nesterov:  # heavy ball
                for i, gradient in self.backward(p, x, y, torch.ones_like(lr)):
                    [buffer] = (kind[i] for kind in buffers)
                    buffer.mul_(self.momentum)
                    if self.weight_decay:
                        buffer.add_(p[i], alpha=self.weight_decay)
                    gradient(buffer)
                    p[i].addcmul_(buffer, _like(lr, p[i]), value=-1)
                return
            if self.by_hand:
                gradients = [torch.zeros_like(q) for q in p]
                for i, gradient in self.backward(p, x, y, torch.ones_like(lr)):
                    gradient(gradients[i])
            else:
                gradients = self.autograd(p, x, y)
            for i, (q, g) in enumerate(zip(p, gradients, strict=True)):
                self.update(q, g, [kind[i] for kind in buffers], _like(lr, q), t)

    def backward(
        self, p: list[Tensor], x: Tensor, y: Tensor, scale: Tensor
    ) -> Iterator[tuple[int, Callable[[Tensor], None]]]:
        """Back-propagation through dense layers and ReLU, last layer first.

        Yields, for each parameter, its number and a function that adds ``scale`` times the
        gradient to a tensor. A layer's weights may be changed once they have been yielded.
        """
        layers, n, inputs, k = [m for m in self.model if isinstance(m, nn.Linear)], len(p), [], 0
        h, q = x.flatten(2), p
        if self.bf16:
            q = [one.bfloat16() for one in p]
        for layer in layers:
            inputs.append(h)
            bias = q[k + 1].unsqueeze(1) if layer.bias is not None else None
            w = q[k].mT
            h = torch.bmm(h, w) if bias is None else torch.baddbmm(bias, h, w)
            k += 1 if bias is None else 2
            if k < n:
                h.relu_()
        delta = h.to(p[0].dtype).softmax(-1)
        delta.scatter_add_(-1, y.unsqueeze(-1), torch.full_like(delta[..., :1], -1.0))
        delta *= _like(scale, delta) / y.shape[1]  # scale · ∂(mean loss)/∂logits
        delta = delta.to(h.dtype)
        for layer, h in zip(reversed(layers), reversed(inputs), strict=True):
            here = delta
            k -= 1 if layer.bias is None else 2
            if k > 0:
                # the derivative of ReLU, in one pass
                delta = torch.ops.aten.threshold_backward(torch.bmm(delta, q[k]), h, 0)
            yield k, lambda target, d=here, h=h: _add_product(target, d.mT, h)
            if layer.bias is not None:
                yield k + 1, lambda target, d=here: target.add_(d.sum(1, dtype=target.dtype))

    def autograd(self, p: list[Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        names = [name for name, _ in self.model.named_parameters()]

        def loss(one: tuple[Tensor, ...], x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(
                functional_call(self.model, dict(zip(names, one, strict=True)), (x,)), y
            )

        leaves = tuple(q.detach().requires_grad_() for q in p)
        half = torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16)
        with torch.enable_grad(), half:
            return torch.autograd.grad(vmap(loss)(leaves, x, y).sum(), leaves)

    def update(self, p: Tensor, g: Tensor, buffers: list[Tensor], lr: Tensor, t: int) -> None:
        """The rules of torch.optim.SGD and Adam, with a learning rate a replica."""
        if self.weight_decay:
            g = g + self.weight_decay * p
        if self.optimizer == "adam":
            first, second = buffers
            first.lerp_(g, 1 - _BETA1)
            second.mul_(_BETA2).addcmul_(g, g, value=1 - _BETA2)
            root = (second.sqrt() / math.sqrt(1 - _BETA2**t)).add_(_EPSILON)
            p.addcdiv_(first * lr, root, value=-1 / (1 - _BETA1**t))
            return
        if self.momentum:
            [buffer] = buffers
            buffer.mul_(self.momentum).add_(g)
            g = g + self.momentum * buffer if self.nesterov else buffer
        p.addcmul_(g, lr, value=-1)


def _add_product(target: Tensor, a: Tensor, b: Tensor) -> None:
    if target.dtype == a.dtype:
        target.baddbmm_(a, b)
    else:  # bfloat16 rounds the product, not the sum
        target.add_(torch.bmm(a, b))


def _like(values: Tensor, stacked: Tensor) -> Tensor:
    """(r,) to (r, 1, …, 1), to go with a stacked tensor."""
    return values.view(-1, *[1] * (stacked.dim() - 1))


def _is_dense(model: nn.Module) -> bool:
    """Whether ``model`` is Flatten, then Linear layers with a ReLU between any two of them."""
    if not isinstance(model, nn.Sequential):
        return False
    kinds = [type(m) for m in model]
    kinds = kinds[1:] if kinds[:1] == [nn.Flatten] else kinds
    wanted = [nn.Linear if i % 2 == 0 else nn.ReLU for i in range(len(kinds))]
    return len(kinds) % 2 == 1 and kinds == wanted


def _check_replicas(
    models: list[nn.Module], sets: list[Dataset], rates: list[float], seeds: list[int]
) -> None:
    if not models:
        raise ValueError("models is empty: give at least one network")
    for name, values in (("data", sets), ("lr", rates), ("seeds", seeds)):
        if len(values) != len(models):
            raise ValueError(
                f"{name} must be one for all or one for each of the {len(models)} models, "
                f"got {len(values)}"
            )
    if different := {str(m) for m in models} - {str(models[0])}:
        raise ValueError(f"the models must have one architecture; others found: {different}")
    for module in models[0].modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p:
            raise ValueError(
                "train_many cannot give each replica its own dropout; train such nets by train"
            )
    if not all(p.requires_grad for model in models for p in model.parameters()):
        raise ValueError("train_many moves every parameter; train nets with frozen ones by train")
    if next(models[0].buffers(), None) is not None:
        raise ValueError("train_many keeps no running statistics: use batch_norm='batch'")
    sizes = {(s.n_train, s.input_shape, s.n_classes) for s in sets}
    if len(sizes) > 1:
        raise ValueError(f"the data sets must have equal sizes, got {sorted(sizes)}")
