"""Keskar et al. (1609.04836): small against large batches, in accuracy, sharpness and distance.

One trial trains a network with each of its batch sizes from the same initial weights, with the same
seed. Groups of trials are described where they are listed, in ``grids.toml``.

Tables: history, with batch_size, epoch, split ("train", "test"), loss, accuracy (a fraction),
distance ‖w − w₀‖ and last, whether the run ended there; runs
(:class:`~lecture6.studies.trials.Rows`), with batch_size and bfloat16 besides, whether it was used;
sharpness, on ``n_sharpness`` training samples, with batch_size, at ("end", "epoch 50", or "loss
0.5": the first evaluation at or below it), weights ("as trained", or "equal norms":
:func:`lecture6.curvature.equal_layer_norms`), solver ("ascent", sign ascent, "lbfgsb", Keskar's, or
"adaptive": :func:`lecture6.sharpness.adaptive`), space ("full space", "p = 100"), epsilon, loss on
these samples, value, and in per cent, too, the gap that is left and stderr, and converged; path
between a pair, with path ("linear", "sincos"), alpha, split, loss and accuracy.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lecture6 import models
from lecture6.curvature import equal_layer_norms
from lecture6.data import Dataset
from lecture6.device import choose
from lecture6.landscape import interpolate
from lecture6.objective import NetworkObjective
from lecture6.sharpness import RandomSubspace, SharpnessResult, adaptive, worst_case
from lecture6.studies.results import Stored, distinct_values, select
from lecture6.studies.trials import Rows, described, papers
from lecture6.train import Run, train

EPSILONS = (1e-3, 5e-4)  #: Keskar et al., Tables 3 and 4
#: Of adaptive sharpness: the last moves a weight of 1/30, as these nets start with, by 1e-3.
ADAPTIVE_EPSILONS = (3e-3, 1e-2, 3e-2)
SHOWN = ("epsilon", "loss", "value", "gap", "stderr", "converged")  # of a SharpnessResult
TRAIN_SIZES = {"mnist": 60_000, "timit": 36_420, "timit:183": 36_420, "cifar10": 50_000}
#: Keskar et al., Tables 2 to 4, by net, then "train", "test", or "full space, 0.001".
PAPER = papers("keskar")


def trial(
    *,
    data: Dataset,
    net: str,
    group: str,
    seed: int,
    batch_sizes: list[int],
    lr: float,
    epochs: int,
    n_train: int | None = None,
    evaluations: int = 10,
    measure_at: list[int] | None = None,
    losses: list[float] | None = None,
    enough: float | None = None,
    patience: int | None = None,
    n_sharpness: int = 0,
    n_columns: int = 100,
    lbfgsb: bool = False,
    invariant: bool = False,
    bf16: bool = True,
) -> Rows:
    """Train ``net`` with each batch size from the same start; see the module for the tables.

    ``n_train``: a random part of the training set (None: all of it). ``evaluations``: how often a
    run is evaluated. A run ends after all ``epochs``, at a training accuracy of ``enough``, or when
    the training loss has not improved for ``patience`` evaluations. ``n_sharpness`` 0 leaves
    sharpness and paths out. ``measure_at`` (epochs) and ``losses`` (falling): when sharpness is
    measured besides the end. ``n_columns``: of the random subspace, Keskar's p; 0: none. ``lbfgsb``
    adds Keskar's solver, in float64; ``invariant`` what no length of a layer's weights changes:
    sharpness at equal norms, and adaptive. ``group`` only labels the trial.
    """
    if n_train is not None:
        data = data.subset(n_train)
    part = data.subset(n_sharpness) if n_sharpness else data  # the same samples in every trial
    spaces: dict[str, RandomSubspace | None] = {"full space": None}
    if n_sharpness and n_columns:
        w = models.flat_parameters(build(net, data, seed)).to(choose())
        space = RandomSubspace(len(w), n_columns, seed=seed, device=w.device)
        spaces[f"p = {n_columns}"] = space
    rows, runs = Rows(), []
    settings = {"lr": lr, "optimizer": "adam", "seed": seed, "bf16": bf16, "patience": patience}
    settings["evaluate_every"] = math.ceil(epochs / evaluations)
    for size in batch_sizes:
        model, own = build(net, data, seed), settings | {"batch_size": size}
        for at, run in _moments(model, data, epochs, measure_at or [], losses or [], enough, own):
            if n_sharpness:
                for where, found in _sharpness(run, part, spaces, seed, lbfgsb, invariant):
                    shown = {name: getattr(found, name) for name in SHOWN}
                    rows.add("sharpness", batch_size=size, at=at, **where, **shown)
        history = run.history[["epoch", "split", "loss", "accuracy", "distance"]]
        history = history.assign(last=history["epoch"] == history["epoch"].max())
        rows.add_all("history", history, batch_size=size)
        used = run.precision == "bfloat16"
        rows.add("runs", batch_size=size, n_updates=run.n_updates, bfloat16=used)
        runs.append(run)
    if n_sharpness and len(runs) == 2:
        sets = {"train": (part.x_train, part.y_train), "test": (part.x_test, part.y_test)}
        objectives = {k: NetworkObjective(runs[0].model, x, y) for k, (x, y) in sets.items()}
        for path in ("linear", "sincos"):
            rows.add_all("path", interpolate(objectives, runs[0].w, runs[1].w, path=path))
    return rows


def _moments(
    model: torch.nn.Module,
    data: Dataset,
    epochs: int,
    measure_at: list[int],
    losses: list[float],
    enough: float | None,
    settings: dict[str, Any],
) -> Iterator[tuple[str, Run]]:
    """A run when it is to be measured, by name, its "end" last; see :func:`trial`."""
    watched = range(0, epochs, settings["evaluate_every"]) if losses or enough else ()
    stops, ahead = sorted({*watched, *measure_at, epochs} - {0}), list(losses)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "run.pt" if len(stops) > 1 else None  # to go on from
        for epoch in stops:
            run = train(model, data, epochs=epoch, checkpoint=checkpoint, **settings)
            ended = epoch == epochs or run.history["epoch"].max() < epoch  # out of patience
            if epoch in measure_at:
                yield f"epoch {epoch}", run
            while ahead and run.final("train", "loss") <= ahead[0]:
                yield f"loss {ahead.pop(0):g}", run
            if ended or (enough is not None and run.final("train") >= enough):
                break
    yield "end", run


def _sharpness(
    run: Run,
    part: Dataset,
    spaces: Mapping[str, RandomSubspace | None],
    seed: int,
    lbfgsb: bool,
    invariant: bool,
) -> Iterator[tuple[dict[str, str], SharpnessResult]]:
    """Definition 2 at the weights of a run, in each space and at each ε; see :func:`trial`."""
    nets = {"as trained": run.model}
    if invariant:
        nets["equal norms"] = equal_layer_norms(run.model)
    for weights, net in nets.items():
        for solver in ("ascent", "lbfgsb") if lbfgsb else ("ascent",):
            dtype = torch.float64 if solver == "lbfgsb" else torch.float32
            f = NetworkObjective(net, part.x_train, part.y_train, dtype=dtype)
            for space, subspace in spaces.items():
                where = {"weights": weights, "solver": solver, "space": space}
                for epsilon in EPSILONS:
                    box = {"epsilon": epsilon, "subspace": subspace, "seed": seed}
                    yield where, worst_case(f, f.w, method=solver, **box)
    if invariant:
        f = NetworkObjective(run.model, part.x_train, part.y_train)
        where = {"weights": "as trained", "solver": "adaptive", "space": "full space"}
        for epsilon in ADAPTIVE_EPSILONS:
            yield where, adaptive(f, f.w, epsilon=epsilon, seed=seed)


def build(net: str, data: Dataset, seed: int) -> torch.nn.Module:
    """F1, F2, C1 (the released code) or "C1, stride 2" (the paper's text), for ``data``."""
    dense = {"F1": models.f1, "F2": models.f2}
    if net in dense:
        return dense[net](math.prod(data.input_shape), data.n_classes, seed=seed)
    return models.c1(data.n_classes, stride=2 if net == "C1, stride 2" else 1, seed=seed)


def by_run(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column of which each run has one value: one line a seed, one column a batch size.

    Raises ValueError where several trials have a value for the same seed and batch size.
    """
    if rows.duplicated(["seed", "batch_size"]).any():
        raise ValueError(f"several runs have this {column}: select one group, and one lr, first")
    return rows.pivot_table(column, "seed", "batch_size")


def final(
    tables: Mapping[str, pd.DataFrame], column: str = "accuracy", split: str = "test"
) -> pd.DataFrame:
    """The last value of a column of the history in each run, as :func:`by_run` gives it."""
    rows = tables["history"]
    ended = rows["last"] if "last" in rows else rows["epoch"] == rows["epochs"]
    return by_run(rows[(rows["split"] == split) & ended], column)


def sharpness(
    tables: Mapping[str, pd.DataFrame],
    space: str,
    epsilon: float,
    *,
    solver: str = "ascent",
    column: str = "value",
) -> pd.DataFrame:
    """The sharpness in per cent at the end of each run as trained, as :func:`by_run` gives it.

    Or another ``column`` of the table, the "gap" say.
    """
    wanted = {"space": space, "epsilon": epsilon, "solver": solver}
    wanted |= {"at": "end", "weights": "as trained"}
    rows = tables["sharpness"]
    for name in wanted.keys() & set(rows):  # older tables have the end alone, and no column for it
        rows = rows[rows[name] == wanted[name]]
    return by_run(rows, column)


def figure_4(history: pd.DataFrame) -> pd.DataFrame:
    """Loss and accuracy by epoch, as :func:`lecture6.course.figures.accuracy` wants them."""
    rows = history.sort_values(["batch_size", "seed", "split", "epoch"])
    return rows.assign(label=[f"batch {size:,}" for size in rows["batch_size"]])


def figure_7(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Test accuracy and sharpness, for :func:`lecture6.course.figures.accuracy_and_sharpness`."""
    accuracy = final(tables).melt()["value"].to_numpy()
    parts = []
    for epsilon in EPSILONS:
        phi = sharpness(tables, "full space", epsilon)
        part = phi.melt(ignore_index=False, value_name="sharpness")
        parts.append(part.assign(accuracy=accuracy, epsilon=epsilon).reset_index())
    return pd.concat(parts, ignore_index=True)


def sweep(tables: Mapping[str, pd.DataFrame], net: str, data: str) -> dict[str, pd.DataFrame]:
    """The pairs and the grid of a network, for the seeds that have every batch size."""
    found = select(tables, net=net, data=data, group=["pair", "grid"])
    return select(found, seed=final(found).dropna().index.to_list())


def caption(stored: Stored, rows: pd.DataFrame) -> str:
    """One line for a figure of ``rows``: network, data, epochs, seeds, device, date, commit."""
    size = TRAIN_SIZES.get(rows["data"].iloc[0].removesuffix("_jpeg"))
    samples = f", {size:,} training samples" if size else ""
    if "n_sharpness" in rows and rows["n_sharpness"].notna().any():
        samples += f" ({rows['n_sharpness'].max():,.0f} of them for sharpness and paths)"
    net, data, epochs = (distinct_values(rows, c) for c in ("net", "data", "epochs"))
    return stored.line(rows, f"{net} on {data}{samples}", f"{epochs} epochs")


STUDY = described("keskar", trial)
