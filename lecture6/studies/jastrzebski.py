"""Jastrzębski et al. (1711.04623): do η and B shape the minimum through their ratio alone?

One trial trains one net by plain SGD with shuffled epochs, without momentum or weight decay, on
images less their mean, and measures the curvature of the training loss on the way. Groups of
trials are described where they are listed, in ``grids.toml``.

Tables: history, with epoch, split ("train", "test"), loss and accuracy (a fraction); curvature, of
the training loss on ``n_curvature`` samples at each epoch of these but 0, or where the loss passes
some of ``levels``, with lambda_max and trace
of the Hessian, lambda_max_error and trace_stderr; labels, where some are wrong, with the fraction
of the training samples with a right and with a wrong label to which the net gives it; runs
(:class:`~lecture6.studies.trials.Rows`), with bfloat16 besides, whether it was used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from torch import nn

from lecture6 import checks, models
from lecture6.curvature import eigenvalues, trace
from lecture6.data import Dataset
from lecture6.objective import NetworkObjective
from lecture6.studies.results import Stored, distinct_values
from lecture6.studies.trials import Rows, described
from lecture6.train import DivergenceError, Run, train
from lecture6.train_many import is_dense, train_many

CYCLE = 5  # the paper's square waves: a factor of 5 (B = 128 and 640), 5 epochs each
TRACE_PRODUCTS = 8
RUN = ("lr", "batch_size", "cycle", "seed")  # what tells the runs of a group apart
CURVATURE = ("lambda_max", "lambda_max_error", "trace", "trace_stderr")


def trial(
    *,
    data: Dataset,
    net: str,
    group: str,
    lr: float,
    batch_size: int,
    epochs: int,
    seed: int,
    n_train: int | None = None,
    n_test: int | None = None,
    cycle: str = "",
    random_labels: float = 0.0,
    evaluate_every: int = 10,
    n_curvature: int = 0,
    bf16: bool = False,
    subset: int = 0,
    levels: list[float] | None = None,
) -> Rows:
    """Train once; see the module for the tables.

    ``n_train``: a random part of the training set, which ``subset`` decides; ``seed`` decides the
    initial weights and the batches. ``cycle``: "batch" alternates, every 5 epochs, between B and
    5 B, and "rate" between η and η/5, beginning with the larger ratio. ``n_curvature`` 0 leaves the
    curvature out. ``levels``, falling, of the training loss: curvature is then measured at the end
    and at the two evaluations between which the loss first passes each of them, which is what
    :func:`crossing` needs. ``group`` only labels the trial.
    """
    data = data.subset(n_train or data.n_train, n_test, seed=subset).centred()
    true, data = data.y_train, data.with_random_labels(random_labels)
    wrong, part = data.y_train != true, data.subset(n_curvature) if n_curvature else None
    model, epoch, n_updates, rows = build(net, data, seed), 0, 0, Rows()
    ahead, before, measured = list(levels or []), {0: model}, set()
    parts = pieces(lr, batch_size, epochs, evaluate_every, cycle)
    for number, (rate, size, length) in enumerate(parts):
        settings = {"lr": rate, "batch_size": size, "epochs": length, "evaluate_every": length}
        run = _train(model, data, seed=1000 * seed + number, bf16=bf16, **settings)
        if run is None:
            return Rows(runs=[{"diverged": True}])
        history = run.history[["epoch", "split", "loss", "accuracy"]]
        history = history.assign(epoch=epoch + history["epoch"])
        model, epoch, n_updates = run.model, epoch + length, n_updates + run.n_updates
        evaluated = epoch % evaluate_every == 0 or epoch == epochs
        wanted = [0, epoch] if evaluated else [0]  # a piece begins where the one before has ended
        rows.add_all("history", history[history["epoch"].isin(wanted)])
        if evaluated and wrong.any():
            rows.add("labels", epoch=epoch, **_learnt(run, data, wrong))
        if evaluated and part is not None:
            wanted, now = {}, {epoch: model}
            if ahead and run.final("train", "loss") <= ahead[0]:
                ahead = [level for level in ahead if level < run.final("train", "loss")]
                wanted = before | now
            elif not levels or epoch == epochs:
                wanted = now
            for at in sorted(wanted.keys() - measured):
                rows.add("curvature", epoch=at, **_curvature(wanted[at], part, seed))
            before, measured = now, measured | wanted.keys()
    used = run.precision == "bfloat16"
    rows.add("runs", n_updates=n_updates, bfloat16=used, diverged=False)
    return rows


def _learnt(run: Run, data: Dataset, wrong: torch.Tensor) -> dict[str, float]:
    with torch.no_grad():
        guessed = run.model(data.x_train.to(run.w.device)).argmax(1)
    learnt = (guessed.cpu() == data.y_train).double()
    return {"right": learnt[~wrong].mean().item(), "wrong": learnt[wrong].mean().item()}


def _curvature(model: nn.Module, part: Dataset, seed: int) -> dict[str, float]:
    f = NetworkObjective(model, part.x_train, part.y_train)
    top = eigenvalues(f, f.w, k=1, tolerance=1e-2, seed=seed)
    total = trace(f, f.w, n_products=TRACE_PRODUCTS, seed=seed)
    values = float(top.values[0]), float(top.errors[0]), total.value, total.stderr
    return dict(zip(CURVATURE, values, strict=True))


def build(net: str, data: Dataset, seed: int) -> nn.Module:
    """ "VGG-11", or a net of dense ReLU layers by its hidden widths, "256-256", for ``data``."""
    if net == "VGG-11":
        return models.vgg11(data.n_classes, seed=seed)
    widths = [int(width) for width in net.split("-")]
    return models.mlp(math.prod(data.input_shape), widths, data.n_classes, seed=seed)


def pieces(
    lr: float, batch_size: int, epochs: int, evaluate_every: int, cycle: str = ""
) -> Iterator[tuple[float, int, int]]:
    """(η, B, epochs) of what is trained in one go; see :func:`trial`.

    Raises ValueError for another cycle.
    """
    loud = (lr, batch_size)
    quiet = {"": loud, "batch": (lr, CYCLE * batch_size), "rate": (lr / CYCLE, batch_size)}
    cycle = checks.one_of("cycle", cycle, quiet)
    borders = {*range(0, epochs, evaluate_every), epochs}
    borders |= set(range(0, epochs, CYCLE)) if cycle else set()
    for start, end in pairwise(sorted(borders)):
        yield *(quiet[cycle] if start // CYCLE % 2 else loud), end - start


def _train(model: nn.Module, data: Dataset, *, seed: int, **settings) -> Run | None:
    """A run, or None when it diverged: small dense nets the fast way."""
    if is_dense(model):
        [run] = train_many([model], data, seeds=[seed], **settings)
        return None if run.stopped.startswith("diverged") else run
    try:
        return train(model, data, seed=seed, **settings)
    except DivergenceError:
        return None


def evaluations(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One line a run and evaluation: lr, batch_size, cycle, seed, epoch, ratio η/B, and the rest.

    Columns loss and accuracy (a fraction) of the training set, test_loss and test_accuracy, those
    of the other tables as far as there are any, and at the end of a run diverged (0 or 1); NaN
    where there is none. Raises ValueError when two runs agree in rate, batch size, cycle and seed.
    """
    history, runs = tables["history"], tables["runs"]
    ended = runs.assign(epoch=runs["epochs"], diverged=runs["diverged"].astype(float))
    test_names = {"loss": "test_loss", "accuracy": "test_accuracy"}
    parts = [
        (history[history["split"] == "train"], ["loss", "accuracy"]),
        (history[history["split"] == "test"].rename(columns=test_names), test_names.values()),
        (tables.get("curvature", runs[:0]), CURVATURE),
        (tables.get("labels", runs[:0]), ["right", "wrong"]),
        (ended, ["diverged"]),
    ]
    columns = []
    for part, names in parts:
        if len(part):
            cycle = part["cycle"].fillna("") if "cycle" in part else ""
            columns.append(part.assign(cycle=cycle).set_index([*RUN, "epochs", "epoch"])[[*names]])
            if columns[-1].index.has_duplicates:
                raise ValueError("several runs have the same rate, batch size and seed: select one")
    table = pd.concat(columns, axis=1).sort_index().reset_index()
    table.insert(2, "ratio", (table["lr"] / table["batch_size"]).round(12))
    return table


def final(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The last line of :func:`evaluations` of each run."""
    table = evaluations(tables)
    return table[table["epoch"] == table["epochs"]].reset_index(drop=True)


def crossing(table: pd.DataFrame, column: str, level: float, quantity: str) -> pd.DataFrame:
    """``quantity`` when ``column`` first gets to ``level``, on a straight line between evaluations.

    ``table``: of :func:`evaluations`. One line a run: lr, batch_size, cycle, seed, ratio, quantity;
    NaN for a run that does not get there, or gets there before ``quantity`` was first measured.
    """
    lines = []
    for key, run in table.sort_values("epoch").groupby([*RUN, "ratio"]):
        x, y = run[column].to_numpy(), run[quantity].to_numpy()
        beyond = x <= level if x[0] > level else x >= level
        i, found = int(beyond.argmax()), math.nan
        if beyond.any() and i > 0:
            found = y[i - 1] + (y[i] - y[i - 1]) * (level - x[i - 1]) / (x[i] - x[i - 1])
        lines.append(dict(zip([*RUN, "ratio"], key, strict=True)) | {quantity: found})
    return pd.DataFrame(lines)


def slopes(table: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Of each seed, a and b of ``quantity`` ∝ ηᵃ B⁻ᵇ, by least squares of the logarithms.

    If η and B act through η/B alone, a = b. ``table``: of :func:`final`; runs without a positive
    value are left out. Columns a, b, index seed.
    """
    known = table[table[quantity] > 0]
    found = {}
    for seed, own in known.groupby("seed"):
        design = np.column_stack([np.ones(len(own)), np.log(own[["lr", "batch_size"]])])
        _, a, minus_b = np.linalg.lstsq(design, np.log(own[quantity].to_numpy()), rcond=None)[0]
        found[seed] = {"a": a, "b": -minus_b}
    return pd.DataFrame(found).T.rename_axis("seed")


def spreads(table: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Of each seed, how far log ``quantity`` spreads at equal ratio, and across the ratios.

    ``within``: the root mean square distance from the mean of the runs of the same ratio;
    ``across``: the standard deviation of these means. ``table``: of :func:`final`.
    """
    known = table[table[quantity] > 0]
    known = known.assign(log=np.log(known[quantity]))
    found = {}
    for seed, own in known.groupby("seed"):
        means = own.groupby("ratio")["log"].mean()
        apart = own["log"] - own["ratio"].map(means)
        free = len(own) - len(means)
        found[seed] = {"within": math.sqrt((apart**2).sum() / free), "across": means.std()}
    return pd.DataFrame(found).T.rename_axis("seed")


def caption(stored: Stored, rows: pd.DataFrame) -> str:
    """One line for a figure of ``rows``: net, data, epochs, seeds, device, date, commit."""
    net, data, epochs = (distinct_values(rows, c) for c in ("net", "data", "epochs"))
    size = f"{rows['n_train'].iloc[0]:,.0f} images of {data}"
    if (measured := rows["n_curvature"].max()) > 0:
        size += f" ({measured:,.0f} of them for curvature)"
    return stored.line(rows, f"{net} on {size}", f"{epochs} epochs")


STUDY = described("jastrzebski", trial)
