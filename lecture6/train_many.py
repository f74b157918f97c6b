"""Many replicas of one small network trained at once: equation (1), a batch of networks at a time.

A small network leaves a GPU idle. Here the parameters of all replicas are stacked, ``(n_replicas,
*shape)``, and a step is one batched product a layer. Every replica ends with the weights that
:func:`lecture6.train.train` would give it, up to rounding.

Plain SGD adds −η∇ to the weights by the matrix product that makes ∇, so that ∇ is never stored. On
a CPU a few replicas at a time go through an epoch, so that their weights stay in the cache.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lecture6 import checks
from lecture6.data import Dataset
from lecture6.device import choose, for_training, has_bf16
from lecture6.evaluation import evaluate, prepared
from lecture6.models import flat_parameters
from lecture6.train import Recipe, Run

SETTINGS = {"batch_size", "epochs", "momentum", "sampling", "evaluate_every", "bf16"}


def train_many(
    models: Sequence[nn.Module],
    data: Dataset,
    *,
    lr: float | Sequence[float],
    seeds: Sequence[int] | None = None,
    device: str | torch.device | None = None,
    **settings: Any,
) -> list[Run]:
    """Train copies of ``models`` at once; one :class:`lecture6.train.Run` each, in their order.

    Arguments:
        models: of one architecture, dense layers and ReLU (:func:`lecture6.models.mlp`)
        lr: one for all, or one for each replica
        seeds: of the mini-batches of each replica; default 0, 1, 2, …
        settings: ``batch_size``, ``epochs``, ``momentum``, ``sampling``, ``evaluate_every`` and
            ``bf16`` of a :class:`lecture6.train.Recipe`

    A replica whose weights or losses stop being finite ends there, and the others go on: its Run
    says so in ``stopped``, its history and ``n_updates`` end at the last evaluation before, its
    weights are what they became. Raises ValueError for impossible settings and data, for models of
    different architectures, and for other networks and settings: train them one by one.
    """
    checks.instance((list, tuple), models, "a list of models")
    rates = np.broadcast_to(np.asarray(lr), np.shape(lr) or len(models)).tolist()
    seeds = list(range(len(models))) if seeds is None else np.ravel(seeds).tolist()
    _check_replicas(models, rates, seeds)
    if others := settings.keys() & {f.name for f in fields(Recipe)} - SETTINGS:
        raise ValueError(f"train_many has no {', '.join(sorted(others))}: train one by one")
    pairs = zip(rates, seeds, strict=True)
    recipes = [Recipe(lr=rate, seed=seed, **settings) for rate, seed in pairs]
    with for_training():
        return _Replicas(list(models), data, recipes, choose(device)).trained()


class _Replicas:
    """The stacked replicas while they are trained."""

    def __init__(
        self, models: list[nn.Module], data: Dataset, recipes: list[Recipe], device: torch.device
    ) -> None:
        self.recipe, self.recipes, self.device = recipes[0], recipes, device
        self.models = [copy.deepcopy(model).to(device) for model in models]
        self.w0 = [
            checks.finite(f"model {i}", flat_parameters(model), "build it anew")
            for i, model in enumerate(self.models)
        ]
        self.x, self.y, self.sets = prepared(self.models[0], data)
        self.recipe.check_trainable(self.models[0], self.x)
        self.bf16 = self.recipe.bf16 and has_bf16(device)
        self.x = self.x.bfloat16() if self.bf16 else self.x
        own = zip(*(model.parameters() for model in self.models), strict=True)
        self.parameters = [torch.stack(p).detach() for p in own]
        for i, model in enumerate(self.models):  # a replica's module looks at its part of the stack
            for p, stacked in zip(model.parameters(), self.parameters, strict=True):
                p.data = stacked[i]
        rates = [recipe.lr for recipe in recipes]
        self.lrs = torch.tensor(rates, device=device, dtype=self.parameters[0].dtype)
        momentum = self.recipe.momentum
        self.velocities = [torch.zeros_like(p) for p in self.parameters] if momentum else []
        self.rows: list[list[tuple]] = [[] for _ in models]
        self.diverged: dict[int, str] = {}  # replica: what its Run says

    def trained(self) -> list[Run]:
        """Train, and hand out the replicas."""
        recipe, r = self.recipe, len(self.models)
        at_once = r if self.device.type == "cuda" else max(1, torch.get_num_threads())
        generators = [torch.Generator().manual_seed(one.seed) for one in self.recipes]
        self._record(0)
        for epoch in range(recipe.epochs):
            drawn = [recipe.batches(len(self.y), generator) for generator in generators]
            order = torch.stack([torch.cat(list(batches)) for batches in drawn]).to(self.device)
            for first in range(0, r, at_once):
                part = slice(first, first + at_once)
                if self.diverged.keys() >= set(range(r)[part]):
                    continue
                p, velocity = [q[part] for q in self.parameters], [v[part] for v in self.velocities]
                for batch in order[part].split(recipe.batch_size, dim=1):
                    self._step(p, velocity, self.x[batch], self.y[batch], self.lrs[part])
            if (epoch + 1) % recipe.evaluate_every == 0 or epoch + 1 == recipe.epochs:
                self._record(epoch + 1)
        return [self._run(i) for i in range(r)]

    @torch.no_grad()
    def _step(
        self, p: list[Tensor], velocity: list[Tensor], x: Tensor, y: Tensor, lr: Tensor
    ) -> None:
        """One update, in place: p (r, *shape) each, x (r, batch, …), y (r, batch), lr (r,)."""
        if not velocity:
            self._add_gradient(p, p, x, y, -lr)
            return
        for v in velocity:  # heavy ball
            v.mul_(self.recipe.momentum)
        self._add_gradient(velocity, p, x, y, torch.ones_like(lr))
        for w, v in zip(p, velocity, strict=True):
            w.addcmul_(v, _like(lr, w), value=-1)

    def _add_gradient(
        self, total: list[Tensor], p: list[Tensor], x: Tensor, y: Tensor, scale: Tensor
    ) -> None:
        """Add ``scale`` times the gradient at p to ``total``, which may be p itself.

        Back-propagation through dense layers and ReLU, last layer first; a layer's weights are read
        before its gradient is added.
        """
        layers, n = [m for m in self.models[0].modules() if isinstance(m, nn.Linear)], len(p)
        h, k = x.flatten(2), 0
        inputs: list[Tensor] = []
        q = [one.bfloat16() for one in p] if self.bf16 else p
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
            if h.dtype == total[k].dtype:
                total[k].baddbmm_(here.mT, h)
            else:  # bfloat16 rounds the product, not the sum
                total[k].add_(torch.bmm(here.mT, h))
            if layer.bias is not None:
                total[k + 1].add_(here.sum(1, dtype=total[k + 1].dtype))

    def _record(self, epoch: int) -> None:
        update = epoch * self.recipe.updates_per_epoch(len(self.y))
        for i, model in enumerate(self.models):
            if i in self.diverged:
                continue
            lr = self.recipes[i].lr
            w = flat_parameters(model)
            distance = (w - self.w0[i]).norm().item()
            found = {split: evaluate(model, batches) for split, batches in self.sets.items()}
            if not (w.isfinite().all() and all(math.isfinite(loss) for loss, _ in found.values())):
                self.diverged[i] = f"diverged by epoch {epoch} with lr {lr:g}"
                continue
            for split, (loss, accuracy) in found.items():
                self.rows[i].append((epoch, update, split, loss, accuracy, lr, distance))

    def _run(self, i: int) -> Run:
        model, stopped = self.models[i], self.diverged.get(i, "all epochs done")
        for own in model.parameters():
            own.data = own.data.clone()  # out of the stack
        return Run.of(model, self.w0[i], self.rows[i], self.bf16, stopped)


def _like(values: Tensor, stacked: Tensor) -> Tensor:
    """(r,) to (r, 1, …, 1), to go with a stacked tensor."""
    return values.view(-1, *[1] * (stacked.dim() - 1))


def is_dense(model: nn.Module) -> bool:
    """Whether ``model`` is Flatten, then Linear layers with a ReLU between any two of them.

    Each with weights of its own, and without hooks, which the steps by hand would not call.
    """
    layers = list(model) if isinstance(model, nn.Sequential) else []
    layers = layers[1:] if layers and type(layers[0]) is nn.Flatten else layers
    if [type(m) for m in layers] != [nn.Linear, nn.ReLU] * (len(layers) // 2) + [nn.Linear]:
        return False
    n_own = sum(1 if layer.bias is None else 2 for layer in layers[::2])
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return n_own == len(list(model.parameters())) and not hooked


def _check_replicas(models: Sequence[nn.Module], rates: list[float], seeds: list[int]) -> None:
    if not models:
        raise ValueError("models is empty: give at least one network")
    for name, values in (("lr", rates), ("seeds", seeds)):
        if len(values) != len(models):
            n = len(models)
            raise ValueError(f"{name} must have a value for each of {n} models, got {len(values)}")
    if different := {str(m) for m in models} - {str(models[0])}:
        raise ValueError(f"the models must have one architecture; others found: {different}")
    if not is_dense(models[0]) or not all(p.requires_grad for m in models for p in m.parameters()):
        raise ValueError(
            "train_many moves every parameter of a net of dense layers and ReLU, such as "
            "lecture6.models.mlp makes; train other nets, and frozen parameters, by train()"
        )
    if len({p.dtype for m in models for p in m.parameters()}) > 1:
        raise ValueError("the models must have one precision: call float() or double() of each")
