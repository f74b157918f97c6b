"""Keskar et al. (1609.04836): small against large batches, in accuracy, sharpness and distance.

One trial trains a network with each of its batch sizes from the same initial weights, with the same
seed. Groups of trials: "pair", the small and the large batch of Table 2 and Figures 4 and 5;
"grid", more batch sizes for Figure 7, at the epochs of the pairs; "equal updates", the large batch
for as many updates as the small one makes (Hoffer et al., 1705.08741); "tuned rate", both at other
learning rates (Shallue et al., 1811.03600); "float32", pairs trained without bfloat16; "whole
set", a pair whose sharpness is taken on all training samples.

Rows: batch_size, quantity, of, at, value. Of a run: loss and accuracy (fraction) of "train" and
"test", distance ‖w − w₀‖, each at an epoch; updates; bfloat16 (1 if it was used). Of its end, on
``n_sharpness`` training samples: sharpness (sign ascent) and sharpness_lbfgsb (Keskar's solver) of
the "full space" and of "p = 100" at ε, in per cent, with the gap that is left, in per cent. Of a
pair: path_loss and path_accuracy at α, of "linear train" and so on, with batch_size 0.
"""

from __future__ import annotations

import math

import pandas as pd
import torch

from lecture6 import models
from lecture6.data import Dataset
from lecture6.landscape import interpolate
from lecture6.objective import NetworkObjective
from lecture6.results import Stored, listed, select
from lecture6.sharpness import KESKAR_ITERATIONS, RandomSubspace, worst_case
from lecture6.studies.engine import Study
from lecture6.train import train

EPSILONS = (1e-3, 5e-4)  #: Keskar et al., Tables 3 and 4
SMALL = 256
TRAIN_SIZES = {"mnist": 60_000, "timit": 36_420, "timit:183": 36_420, "cifar10": 50_000}
#: Keskar et al., Tables 2 (accuracy, per cent), 3 and 4 (sharpness, per cent, of a space and at ε):
#: mean and standard deviation of 5 runs, small batch and large batch.
PAPER = {
    "F1": {
        "train": ((99.66, 0.05), (99.92, 0.01)),
        "test": ((98.03, 0.07), (97.81, 0.07)),
        ("full space", 1e-3): ((1.23, 0.83), (205.14, 69.52)),
        ("full space", 5e-4): ((0.61, 0.27), (42.90, 17.14)),
        ("p = 100", 1e-3): ((0.11, 0.00), (9.22, 0.56)),
        ("p = 100", 5e-4): ((0.05, 0.00), (9.17, 0.14)),
    },
    "F2": {
        "train": ((99.99, 0.03), (98.35, 2.08)),
        "test": ((64.02, 0.2), (59.45, 1.05)),
        ("full space", 1e-3): ((1.39, 0.02), (310.64, 38.46)),
        ("full space", 5e-4): ((0.90, 0.05), (93.15, 6.81)),
        ("p = 100", 1e-3): ((0.29, 0.02), (23.63, 0.54)),
        ("p = 100", 5e-4): ((0.05, 0.00), (6.28, 0.19)),
    },
    "C1": {
        "train": ((99.89, 0.02), (99.66, 0.2)),
        "test": ((80.04, 0.12), (77.26, 0.42)),
        ("full space", 1e-3): ((28.58, 3.13), (707.23, 43.04)),
        ("full space", 5e-4): ((7.08, 0.88), (227.31, 23.23)),
        ("p = 100", 1e-3): ((2.18, 0.23), (137.25, 21.60)),
        ("p = 100", 5e-4): ((0.71, 0.15), (29.50, 7.48)),
    },
}


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
    n_sharpness: int = 0,
    n_columns: int = 100,
    lbfgsb: bool = False,
    bf16: bool = True,
) -> list[dict]:
    """Train ``net`` with each batch size from the same start; see the module for the rows.

    ``n_train``: a random part of the training set (None: all of it). ``evaluations``: how often a
    run is evaluated. ``n_sharpness`` 0 leaves sharpness and paths out. ``n_columns``: of the random
    subspace, Keskar's p. ``lbfgsb`` adds Keskar's solver, in float64. ``group`` only labels the
    trial.
    """
    if n_train is not None:
        data = data.subset(n_train)
    rows, runs = [], []

    def row(batch_size: int, quantity: str, of: str, at: float, value: float) -> None:
        rows.append(
            {"batch_size": batch_size, "quantity": quantity, "of": of, "at": at, "value": value}
        )

    for size in batch_sizes:
        run = train(
            build(net, data, seed),
            data,
            batch_size=size,
            lr=lr,
            epochs=epochs,
            optimizer="adam",
            seed=seed,
            evaluate_every=math.ceil(epochs / evaluations),
            bf16=bf16,
        )
        for h in run.history.itertuples():
            row(size, "loss", h.split, h.epoch, h.loss)
            row(size, "accuracy", h.split, h.epoch, h.accuracy)
            if h.split == "train":
                row(size, "distance", "", h.epoch, h.distance)
        row(size, "updates", "", epochs, run.n_updates)
        row(size, "bfloat16", "", epochs, float(run.precision == "bfloat16"))
        runs.append(run)
    if not n_sharpness:
        return rows

    part = data.subset(n_sharpness)  # the same samples in every trial
    w = runs[0].w
    columns = RandomSubspace(len(w), n_columns, seed=seed, device=w.device, memory_limit=2 << 30)
    for size, run in zip(batch_sizes, runs, strict=True):
        for solver, dtype in {"ascent": torch.float32, "lbfgsb": torch.float64}.items():
            if solver == "lbfgsb" and not lbfgsb:
                continue
            f = NetworkObjective(run.model, part.x_train, part.y_train, dtype=dtype)
            suffix = "" if solver == "ascent" else "_lbfgsb"
            for of, subspace in (("full space", None), (f"p = {n_columns}", columns)):
                for epsilon in EPSILONS:
                    found = worst_case(
                        f,
                        run.w,
                        epsilon=epsilon,
                        subspace=subspace,
                        method=solver,
                        n_iterations=KESKAR_ITERATIONS,
                        seed=seed,
                    )
                    row(size, f"sharpness{suffix}", of, epsilon, found.value)
                    row(size, f"sharpness_gap{suffix}", of, epsilon, found.gap)
    if len(runs) == 2:
        sets = {"train": (part.x_train, part.y_train), "test": (part.x_test, part.y_test)}
        objectives = {k: NetworkObjective(runs[0].model, x, y) for k, (x, y) in sets.items()}
        for path in ("linear", "sincos"):
            for p in interpolate(objectives, runs[0].w, runs[1].w, path=path).itertuples():
                row(0, "path_loss", f"{path} {p.split}", p.alpha, p.loss)
                row(0, "path_accuracy", f"{path} {p.split}", p.alpha, p.accuracy)
    return rows


def build(net: str, data: Dataset, seed: int) -> torch.nn.Module:
    """F1, F2, C1 (the released code) or "C1, stride 2" (the paper's text), for ``data``."""
    n_inputs = math.prod(data.input_shape)
    if net == "F1":
        return models.f1(n_inputs, data.n_classes, seed=seed)
    if net == "F2":
        return models.f2(n_inputs, data.n_classes, seed=seed)
    return models.c1(data.n_classes, stride=2 if net == "C1, stride 2" else 1, seed=seed)


def ends(rows: pd.DataFrame, quantity: str, of: str = "", at: float | None = None) -> pd.DataFrame:
    """The last value of a quantity in each run: one line a seed, one column a batch size.

    Accuracy is a fraction, sharpness in per cent; sharpness needs ``at``, its ε. Raises ValueError
    where there is none, and where several trials have a value for the same seed and batch size.
    """
    rows = select(rows, quantity=quantity, of=of, **({} if at is None else {"at": at}))
    if rows.duplicated(["seed", "batch_size", "at"]).any():
        raise ValueError(
            f"several trials have this {quantity}: select one group, and one lr, first"
        )
    return rows.sort_values("at").pivot_table("value", "seed", "batch_size", aggfunc="last")


def history(rows: pd.DataFrame) -> pd.DataFrame:
    """Loss and accuracy by epoch, as :func:`lecture6.figures.accuracy` wants them."""
    rows = rows[rows["quantity"].isin(["loss", "accuracy"])]
    wide = rows.pivot_table("value", ["batch_size", "seed", "of", "at"], "quantity")
    wide = wide.reset_index().rename(columns={"of": "split", "at": "epoch"})
    return wide.assign(label=[f"batch {size:,}" for size in wide["batch_size"]])


def paths(rows: pd.DataFrame, path: str) -> pd.DataFrame:
    """The pairs' "linear" or "sincos" path, as :func:`lecture6.figures.interpolation` wants it."""
    rows = rows[rows["of"].isin([f"{path} train", f"{path} test"])]
    wide = rows.pivot_table("value", ["of", "seed", "at"], "quantity").reset_index()
    wide = wide.rename(columns={"at": "alpha", "path_loss": "loss", "path_accuracy": "accuracy"})
    return wide.assign(split=wide["of"].str.removeprefix(f"{path} "), path=path).drop(columns="of")


def sweep(table: pd.DataFrame, net: str, data: str) -> pd.DataFrame:
    """The pairs and the grid of a network, for the seeds that have every batch size."""
    rows = select(table, net=net, data=data)
    rows = rows[rows["group"].isin(["pair", "grid"])]
    return rows[rows["seed"].isin(ends(rows, "accuracy", "test").dropna().index)]


def by_batch_size(rows: pd.DataFrame, of: str = "full space") -> pd.DataFrame:
    """Test accuracy and sharpness, for :func:`lecture6.figures.accuracy_and_sharpness`."""
    accuracy = ends(rows, "accuracy", "test")
    tables = []
    for epsilon in EPSILONS:
        table = ends(rows, "sharpness", of, epsilon)
        table = table.melt(ignore_index=False, value_name="sharpness").assign(
            accuracy=accuracy.melt()["value"].to_numpy(), epsilon=epsilon
        )
        tables.append(table.reset_index())
    return pd.concat(tables, ignore_index=True)


def caption(stored: Stored, rows: pd.DataFrame) -> str:
    """One line for a figure of ``rows``: network, data, epochs, seeds, device, date, commit."""
    size = TRAIN_SIZES.get(rows["data"].iloc[0].removesuffix("_jpeg"))
    samples = f", {size:,} training samples" if size else ""
    if "n_sharpness" in rows and rows["n_sharpness"].notna().any():
        samples += f" ({rows['n_sharpness'].max():,.0f} of them for sharpness and paths)"
    net, data, epochs = (listed(rows, c) for c in ("net", "data", "epochs"))
    return stored.line(rows, f"{net} on {data}{samples}", f"{epochs} epochs")


def _grid_full() -> list[dict]:
    """Most wanted first: the pairs of each network, then Figure 7, then the controls."""
    f1 = {"net": "F1", "data": "mnist", "epochs": 20, "lr": 1e-3}
    f2 = {"net": "F2", "data": "timit", "epochs": 50, "lr": 1e-3}
    f2_183 = f2 | {"data": "timit:183"}
    c1 = {"net": "C1, stride 2", "data": "cifar10", "epochs": 40, "lr": 1e-3}
    c1_code = c1 | {"net": "C1", "epochs": 20}
    n_sharpness = {"F1": 10_000, "F2": 5_000, "C1, stride 2": 2_500, "C1": 1_000}

    def trials(base: dict, group: str, seeds, *sizes: list[int], **more) -> list[dict]:
        measured = {} if group == "tuned rate" else {"n_sharpness": n_sharpness[base["net"]]}
        return [
            base | {"group": group, "seed": seed, "batch_sizes": size} | measured | more
            for seed in seeds
            for size in sizes
        ]

    def large(base: dict) -> int:  # LB: 10 % of the training data
        return TRAIN_SIZES[base["data"]] // 10

    def pairs(base: dict, seeds, group: str = "pair", **more) -> list[dict]:
        return trials(base, group, seeds, [SMALL, large(base)], **more)

    def grid(base: dict, seeds, *sizes: int) -> list[dict]:
        return trials(base, "grid", seeds, *([size] for size in sizes), evaluations=1)

    def equal_updates(base: dict, seeds) -> list[dict]:
        n = TRAIN_SIZES[base["data"]]
        ratio = math.ceil(n / SMALL) / math.ceil(n / large(base))
        epochs = round(base["epochs"] * ratio)
        return trials(base, "equal updates", seeds, [large(base)], epochs=epochs)

    def tuned(base: dict, seeds, small: list[float], large_batch: list[float]) -> list[dict]:
        return [  # beside the pairs' 1e-3
            t
            for size, tried in ((large(base), large_batch), (SMALL, small))
            for lr in tried
            for t in trials(base, "tuned rate", seeds, [size], lr=lr, evaluations=1)
        ]

    f2_sizes = [128, 512, 1024, 2048, 7284, 18_210]  # to a half of the training data
    c1_sizes = [128, 512, 1024, 2048, 10_000]  # to a fifth: half of it takes 10 GB
    return [
        *pairs(f1, [0], lbfgsb=True),
        *pairs(f2, [0], lbfgsb=True),
        *pairs(f1, [1, 2, 3, 4]),
        *pairs(f2, [1, 2, 3, 4]),
        *pairs(c1, [0, 1, 2]),
        *grid(f2, [0], *f2_sizes),
        *grid(c1, [0], *c1_sizes),
        *pairs(f2_183, [0, 1, 2, 3, 4]),
        *tuned(f1, [0, 1, 2], [2.5e-4, 5e-4, 2e-3], [2e-3, 4e-3, 8e-3]),
        *equal_updates(f1, [0, 1, 2]),
        *tuned(c1, [0, 1, 2], [5e-4, 2e-3], [2e-3, 4e-3]),
        *tuned(f2, [0, 1, 2], [2.5e-4, 5e-4, 2e-3], [2e-3, 4e-3, 8e-3]),
        *grid(f2, [1], *f2_sizes),
        *equal_updates(f2, [0, 1, 2]),
        *grid(c1, [1], *c1_sizes),
        *pairs(c1, [3, 4]),
        *grid(f2, [2], *f2_sizes),
        *grid(c1, [2], *c1_sizes),
        *pairs(f1, [0, 1], "float32", bf16=False),
        *pairs(f1, [0], "whole set", n_sharpness=60_000),
        *pairs(c1_code, [0, 1, 2]),
    ]


def _small(
    n_train: int, small: int, sizes: list[int], seeds: range, epochs: int, n_columns: int
) -> list[dict]:
    base = {"net": "F1", "data": "mnist5k", "n_train": n_train, "epochs": epochs, "lr": 1e-3}
    base |= {"n_sharpness": n_train // 2, "n_columns": n_columns}
    pairs = [
        base | {"group": "pair", "seed": seed, "batch_sizes": [small, n_train // 10]}
        for seed in seeds
    ]
    grid = [
        base | {"group": "grid", "seed": seed, "batch_sizes": [size]}
        for size in sizes
        for seed in seeds
    ]
    return pairs + grid


def _cost(p: dict) -> float:
    """Seconds on one core of a 2026 server with bfloat16, fitted to the first trials."""
    per_sample, per_update = {  # microseconds of training, milliseconds of Adam
        "F1": (21, 1.5),
        "F2": (42, 2.5),
        "C1, stride 2": (80, 1.0),
        "C1": (500, 3.0),
    }[p["net"]]
    n = p.get("n_train") or TRAIN_SIZES[p["data"].removesuffix("_jpeg")]
    runs, n_sharpness = len(p["batch_sizes"]), p.get("n_sharpness", 0)
    updates = p["epochs"] * sum(math.ceil(n / size) for size in p["batch_sizes"])
    samples = runs * n * (p["epochs"] + 1.6 * p.get("evaluations", 10))
    samples += runs * n_sharpness * (170 + 400 * p.get("lbfgsb", False))
    if runs == 2 and n_sharpness:
        samples += 65 * (n_sharpness + 10_000)  # two paths, on training and test samples
    return samples * per_sample / 1e6 + updates * per_update / 1e3


STUDY = Study(
    name="keskar",
    about="Small and large batches: accuracy, sharpness, distance (Keskar et al., 1609.04836)",
    notes="Less than the paper's: a fixed number of epochs (20 for F1, 50 for F2, 40 for C1), not "
    "until the loss ceases to improve; F2 on the TIMIT sample, 5 % of the corpus, with stand-ins "
    "for the HMM states; C1 with stride 2, as in the paper's text, a sixth of the released code's "
    "parameters; sharpness on 10,000 (F1), 5,000 (F2) and 2,500 (C1) training samples, by sign "
    "ascent, and by the paper's L-BFGS-B for seed 0 of F1 and F2; training in bfloat16 where the "
    "processor has it.",
    trial=trial,
    grids={
        "smoke": _small(60, 5, [20, 30], range(4), 1, 2),
        "book": _small(800, 16, [200, 400], range(3), 7, 100),
        "full": _grid_full(),
    },
    cost=_cost,
)
