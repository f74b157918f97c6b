"""Goyal et al. (1706.02677): how far the learning rate can be scaled with the mini-batch.

Here at the size of a CPU; profile imagenet is the paper's own (:mod:`lecture6.studies.imagenet`).

One trial trains a network with mini-batches of kn samples, the rate scaled by a rule, after a
warm-up. The schedule is Goyal's of 90 epochs, shrunk to the epochs of the trial: a warm-up over the
first 5 in 90, and a tenth of the rate after 30, 60 and 80. Groups of trials are described where
they are listed, in ``grids.toml``.

Tables: history, with epoch, split ("train", "test"), loss and error (a fraction); curvature, with
epoch and lambda_max, the largest eigenvalue of the training loss's Hessian; runs
(:class:`~lecture6.studies.trials.Rows`).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch

from lecture6 import models
from lecture6.curvature import eigenvalues
from lecture6.data import Dataset
from lecture6.objective import NetworkObjective
from lecture6.schedules import scale_lr
from lecture6.studies import imagenet
from lecture6.studies.imagenet import goyal_schedule
from lecture6.studies.results import Stored, distinct_values
from lecture6.studies.trials import Rows, described, papers
from lecture6.train import DivergenceError, train

RULES, WARMUPS = ("linear", "sqrt", "none"), ("gradual", "none", "constant")
N_CURVATURE = 2000  # training samples that λ_max is taken on
GUESS = 0.9  # error of a guess among ten classes
#: Goyal et al., Figure 1: top-1 validation error on ImageNet, by batch size.
PAPER = pd.DataFrame(papers("goyal")["figure_1"])
#: The same by (rule, warm-up) for batch 8,192.
PAPER_8K = {(rule, kind): found for rule, kind, *found in papers("goyal")["batch_8k"]}


def trial(
    *,
    data: Dataset,
    net: str,
    group: str,
    k: int,
    rule: str,
    warmup: str,
    seed: int,
    lr: float,
    epochs: int,
    n: int = 32,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    n_train: int | None = None,
    curvature_at: list[int] | None = None,
) -> Rows:
    """Train ``net`` with mini-batches of ``k * n``; see the module for the tables.

    ``lr`` is the rate for mini-batches of ``n``. ``n_train``: a random part of the training set
    (None: all of it). ``curvature_at``: epochs at which λ_max is measured. ``group`` only labels
    the trial. The batch norm of a ResNet-20 is that of k workers: each n samples of a mini-batch
    are normalised by themselves ("ghost batch norm": micro_batch = n of a Recipe).
    """
    if n_train is not None:
        data = data.subset(n_train)
    settings = {"batch_size": k * n, "micro_batch": None if net == "MLP" else n, "seed": seed}
    settings |= {"optimizer": optimizer, "weight_decay": weight_decay}
    settings["lr"] = scale_lr(lr, k, rule=rule)
    settings["schedule"] = goyal_schedule(epochs, k, rule=rule, kind=warmup)
    if optimizer == "sgd":
        settings |= {"momentum": momentum, "nesterov": momentum > 0}
    model, at, rows = build(net, data, seed), curvature_at or [], Rows()
    try:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "run.pt" if at else None  # goes on from the last of them
            for epoch in sorted({*at, epochs}):
                if epoch > 0:
                    run = train(model, data, epochs=epoch, checkpoint=checkpoint, **settings)
                if epoch in at:
                    found = _lambda_max(run.model if epoch else model, data, seed)
                    rows.add("curvature", epoch=epoch, lambda_max=found)
    except DivergenceError:
        return Rows(runs=[{"diverged": True}])
    history = run.history.assign(error=1 - run.history["accuracy"])
    rows.add_all("history", history[["epoch", "split", "loss", "error"]])
    rows.add("runs", n_updates=run.n_updates, diverged=False)
    return rows


def _lambda_max(model: torch.nn.Module, data: Dataset, seed: int) -> float:
    part = data.subset(min(N_CURVATURE, data.n_train))
    f = NetworkObjective(model, part.x_train, part.y_train)
    return float(eigenvalues(f, models.flat_parameters(model), k=1, seed=seed).values[0])


def build(net: str, data: Dataset, seed: int) -> torch.nn.Module:
    """ "MLP" (one hidden layer of 256), "ResNet-20", or "ResNet-8, width 8", for ``data``."""
    if net == "MLP":
        return models.mlp(math.prod(data.input_shape), 256, data.n_classes, seed=seed)
    depth, _, width = net.removeprefix("ResNet-").partition(", width ")
    shape = {"in_channels": data.input_shape[0], "width": int(width or 16)}
    return models.resnet(int(depth), data.n_classes, **shape, seed=seed)


def curve(
    tables: Mapping[str, pd.DataFrame],
    *,
    group: str = "recipe",
    rule: str = "linear",
    warmup: str = "gradual",
) -> dict[str, pd.DataFrame]:
    """The trials of one curve of Figure 8; k = 1 belongs to all, since every rule agrees there.

    Rule "none" has no warm-up, as there is nothing to warm up to. Raises ValueError where there is
    no such trial.
    """
    found = {}
    for kind, rows in tables.items():
        own = (rows["rule"] == rule) & ((rows["warmup"] == warmup) | (rule == "none"))
        found[kind] = rows[(rows["group"] == group) & (own | (rows["k"] == 1))]
    if (found["runs"]["k"] == 1).all():
        raise ValueError(f"no trial has group {group!r}, rule {rule!r}, warm-up {warmup!r}")
    return found


def errors(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The test error (a fraction) at the end of each run: one line a seed, one column a k.

    A run that diverged counts with the error of a guess among ten classes: that of a net whose
    outputs are not numbers. Raises ValueError when several trials have the same seed and k.
    """
    history, runs = tables["history"], tables["runs"]
    last = history[(history["split"] == "test") & (history["epoch"] == history["epochs"])]
    found = pd.concat([last, runs[runs["diverged"]].assign(error=GUESS)])
    if found.duplicated(["seed", "k"]).any():
        raise ValueError("several trials have the same seed and k: choose one curve first")
    return found.pivot_table("error", "seed", "k")


def figure_8(tables: Mapping[str, pd.DataFrame], label: str) -> pd.DataFrame:
    """Test error in per cent against batch size, for :func:`lecture6.course.figures.curves`."""
    table = errors(tables).melt(ignore_index=False, value_name="error").reset_index().dropna()
    n = tables["runs"]["n"].iloc[0]
    return table.assign(error=100 * table["error"], batch_size=n * table["k"], label=label)


def figure_9(history: pd.DataFrame) -> pd.DataFrame:
    """Training error in per cent by epoch, for :func:`lecture6.course.figures.curves`."""
    rows = history[history["split"] == "train"]
    return rows.assign(error=100 * rows["error"], label=[f"k = {k}" for k in rows["k"]])


def caption(stored: Stored, rows: pd.DataFrame) -> str:
    """One line for a figure of ``rows``: network, data, epochs, seeds, device, date, commit."""
    names = ("net", "data", "n", "lr", "epochs")
    net, data, n, lr, epochs = (distinct_values(rows, name) for name in names)
    return stored.line(rows, f"{net} on {data}", f"n = {n}, η = {lr}", f"{epochs} epochs")


STUDY = described("goyal", trial, own_trials={"imagenet": imagenet.trial})
