"""Smith & Le (1710.06451): the batch size of the best test accuracy, Figures 10 and 11.

One trial trains the paper's net 784-800-10 without regularisation on a fixed part of MNIST, its
mean taken off, at a constant rate, with batches drawn anew without replacement, as equation (24)
has it. Trials at different η are compared at one time, not at one number of updates: the paper
takes 10,000/η updates, and these take ``time``·(1 − m)/η.

Groups of trials are described where they are listed, in ``grids.toml``.

Tables: history, with update, split ("train", "test"), loss and accuracy (a fraction); runs
(:class:`~lecture6.studies.trials.Rows`), with bfloat16 besides, whether it was used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lecture6 import models
from lecture6.data import Dataset
from lecture6.studies.results import Stored, distinct_values
from lecture6.studies.trials import Rows, described
from lecture6.train_many import train_many

N_EVALUATIONS = 2  # half way and at the end
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 3.0)  # η/(1 − m)
SIZES = (1000, 2000, 4000, 8000, 16000, 32000, 60000)
TRAINED = Fraction(999, 1000)  # the training accuracy that counts as "still trains"
GUESS = 0.1  # accuracy of a guess among ten classes


def trial(
    *,
    data: Dataset,
    group: str,
    n_train: int,
    lr: float,
    batch_size: int,
    momentum: float,
    updates: int,
    seed: int,
    hidden: int = 800,
    sampling: str = "without_replacement",
    bf16: bool = False,
    subset: int = 0,
    replicas: int = 1,
) -> Rows:
    """Train a net for each of the seeds from ``seed`` on, ``replicas`` of them, all at once.

    See the module for the tables, whose rows have their own ``seed``. ``n_train``: a random part of
    the training set, which ``subset`` decides; ``seed`` decides the initial weights and the
    batches. ``updates`` is rounded to whole passes of ⌈N/B⌉ updates. ``group`` only labels the
    trial.
    """
    data = data.subset(n_train, seed=subset).centred()
    seeds, rows = range(seed, seed + replicas), Rows()
    sizes = math.prod(data.input_shape), hidden, data.n_classes
    epochs = max(1, round(updates / math.ceil(n_train / batch_size)))
    settings = {"batch_size": batch_size, "lr": lr, "momentum": momentum, "sampling": sampling}
    settings |= {"epochs": epochs, "evaluate_every": math.ceil(epochs / N_EVALUATIONS)}
    nets = [models.mlp(*sizes, seed=s) for s in seeds]
    runs = train_many(nets, data, seeds=seeds, bf16=bf16, **settings)
    for s, run in zip(seeds, runs, strict=True):
        if run.stopped.startswith("diverged"):
            rows.add("runs", seed=s, diverged=True)
            continue
        used = run.precision == "bfloat16"
        rows.add("runs", seed=s, n_updates=run.n_updates, bfloat16=used, diverged=False)
        rows.add_all("history", run.history[["update", "split", "loss", "accuracy"]], seed=s)
    return rows


def final(tables: Mapping[str, pd.DataFrame], split: str = "test") -> pd.DataFrame:
    """The last accuracy (a fraction) of each run: columns lr, momentum, n_train, batch_size, seed.

    A run that diverged counts with the accuracy of a guess among ten classes. Raises ValueError
    when two runs agree in all of these columns.
    """
    by = ["lr", "momentum", "n_train", "batch_size", "seed"]
    history, runs = tables["history"], tables["runs"]
    found = history[history["split"] == split].sort_values("update")
    runs_of = [*by, *found.columns.intersection(["group", "sampling", "subset"])]
    found = found.groupby(runs_of, as_index=False, dropna=False).last()
    found = pd.concat([found, runs[runs["diverged"]].assign(accuracy=GUESS)])
    if found.duplicated(by).any():
        raise ValueError(
            "several runs have the same rate, batch size, N and seed: select a group, a subset"
        )
    return found[[*by, "accuracy"]].reset_index(drop=True)


def peak(batch_sizes: ArrayLike, accuracies: ArrayLike) -> float:
    """The batch size of the best accuracy, between the grid's points; NaN if it is not bracketed.

    ``accuracies``: counts of images, or fractions, which are compared as quotients of such counts:
    a point at half height is not above it. The vertex of a parabola in log B, by least squares
    through the points next to one another that lie above half the height of the peak over the
    largest batch (at least the best one and its neighbours), and within their range. What lies left
    of the edge, where training fails, does not count so. A best point at an end of the grid is no
    peak.
    """
    order = np.argsort(batch_sizes)
    x = np.log2(np.asarray(batch_sizes, dtype=float)[order])
    y = np.asarray(accuracies, dtype=float)[order]
    best, exact = int(y.argmax()), _quotients(y)
    if not 0 < best < len(y) - 1:
        return math.nan
    low, high, half = best - 1, best + 1, (exact[best] + exact[-1]) / 2
    while low > 0 and exact[low - 1] > half and exact[low] > half:
        low -= 1
    while high < len(y) - 1 and exact[high + 1] > half and exact[high] > half:
        high += 1
    a, b, _ = np.polyfit(x[low : high + 1] - x[best], y[low : high + 1], 2)
    vertex = x[best] - b / (2 * a) if a < 0 else x[best]
    return float(2 ** np.clip(vertex, x[low], x[high]))


def _quotients(accuracies: ArrayLike) -> list[Fraction]:
    """Each as the quotient of two counts that it was before it was rounded, of up to 10⁵ images."""
    return [Fraction(float(a)).limit_denominator(10**5) for a in np.asarray(accuracies)]


def edge(batch_sizes: ArrayLike, accuracies: ArrayLike) -> float:
    """The smallest batch size from which on every training accuracy is at least TRAINED.

    NaN when the largest batch is below it.
    """
    order = np.argsort(batch_sizes)
    fails = np.flatnonzero([a < TRAINED for a in _quotients(np.asarray(accuracies)[order])])
    first = fails[-1] + 1 if len(fails) else 0
    return float(np.asarray(batch_sizes)[order][first]) if first < len(order) else math.nan


def _step(batch_sizes: ArrayLike, at: float) -> float:
    """The factor between the grid's points around ``at``; between neighbours, where it is one."""
    x = np.sort(np.asarray(batch_sizes, dtype=float))
    around = (x[:-1] <= at) & (at <= x[1:])
    return float((x[1:] / x[:-1])[around].max()) if around.any() else math.nan


def optima(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One line a curve and seed: lr, momentum, n_train, seed, B_opt (:func:`peak`), edge.

    And B_opt_step and edge_step, how finely the grid resolves the two: the factor between the batch
    sizes around each. An interval read off the grid is no narrower than that.
    """
    curve = ["lr", "momentum", "n_train", "seed"]
    both = final(tables).merge(final(tables, "train"), on=[*curve, "batch_size"])
    lines = []
    for key, runs in both.groupby(curve):
        b, test, train = (runs[c] for c in ("batch_size", "accuracy_x", "accuracy_y"))
        found = peak(b, test), edge(b, train)
        lines.append([*key, *found, *(_step(b, at) for at in found)])
    return pd.DataFrame(lines, columns=[*curve, "B_opt", "edge", "B_opt_step", "edge_step"])


def exponents(found: pd.DataFrame, by: str, column: str = "B_opt") -> pd.Series:
    """Of each seed, the slope of log ``column`` against log ``by``: c in B_opt ∝ byᶜ.

    By least squares over the bracketed peaks of ``found`` (:func:`optima`); a seed with fewer than
    two is left out.
    """
    known = found.dropna(subset=[column])
    known = known[known.groupby("seed")[by].transform("nunique") > 1]
    return known.groupby("seed")[[by, column]].apply(
        lambda rows: float(np.polyfit(np.log(rows[by]), np.log(rows[column]), 1)[0])
    )


def figures_10_and_11(tables: Mapping[str, pd.DataFrame], by: str) -> pd.DataFrame:
    """Test accuracy in per cent for figures.curves, one for each ``by``: "lr", or "n_train"."""
    table, name = final(tables), {"lr": "η", "n_train": "N"}[by]
    labels = [f"{name} = {value:{'g' if by == 'lr' else ','}}" for value in table[by]]
    return table.assign(accuracy=100 * table["accuracy"], label=labels)


def caption(stored: Stored, rows: pd.DataFrame) -> str:
    """One line for a figure of ``rows``: net, data, momentum, seeds, device, date, commit."""
    n = " to ".join(f"{n:,}" for n in sorted({rows["n_train"].min(), rows["n_train"].max()}))
    hidden, data, momentum = (distinct_values(rows, c) for c in ("hidden", "data", "momentum"))
    return stored.line(rows, f"784-{hidden}-10 on {n} images of {data}", f"momentum {momentum}")


STUDY = described("smith", trial)
