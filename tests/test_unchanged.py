"""Temporary: weights, histories and measures of a dozen configurations, bit for bit as before.

``python tests/test_unchanged.py FOLDER`` records those of the lecture6 that is imported. It goes
when the package has been rearranged.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lecture6 import data, models
from lecture6.objective import NetworkObjective
from lecture6.parallel import train_parallel
from lecture6.train import train
from lecture6.train_many import train_many

try:
    from lecture6.schedules import step_decay, warmup
except ImportError:
    from lecture6.train import step_decay, warmup

FOLDER = Path(os.environ.get("UNCHANGED", "/work/golden"))
BASE = dict(batch_size=50, lr=0.1, epochs=3, device="cpu")


def digits():
    return data.load("digits").subset(430, 200)


def conv():
    return models.c1(stride=2, seed=3)


def images():
    return digits().padded(32, 3)


CASES = {
    "plain": lambda: train(models.mlp(64, 32), digits(), **BASE),
    "momentum": lambda: train(
        models.mlp(64, 32), digits(), momentum=0.9, weight_decay=1e-3, **BASE
    ),
    "nesterov": lambda: train(
        models.mlp(64, 32), digits(), momentum=0.9, nesterov=True, schedule=warmup(1.0), **BASE
    ),
    "adam bf16": lambda: train(
        models.mlp(64, 32), digits(), optimizer="adam", bf16=True, **BASE | {"lr": 1e-3}
    ),
    "micro": lambda: train(models.f1(64), digits(), micro_batch=16, **BASE | {"batch_size": 60}),
    "replacement": lambda: train(
        models.mlp(64, 32), digits(), sampling="with_replacement", seed=5, **BASE
    ),
    "without": lambda: train(
        models.mlp(64, 32), digits(), sampling="without_replacement", evaluate_every=2, **BASE
    ),
    "running": lambda: train(models.f1(64, batch_norm="running"), digits(), **BASE),
    "running micro": lambda: train(
        models.f1(64, batch_norm="running"), digits(), micro_batch=16, **BASE
    ),
    "dropout": lambda: train(conv(), images(), **BASE | {"epochs": 1}),
    "patience": lambda: train(
        models.mlp(64, 8),
        digits(),
        patience=1,
        schedule=step_decay((2,)),
        **BASE | {"lr": 2.0, "epochs": 12},
    ),
    "double": lambda: train(models.mlp(64, 32), digits(), **BASE),
    "workers": lambda: train_parallel(
        models.f1(64, batch_norm="running"), digits(), workers=2, batch_size=50, lr=0.1, epochs=2
    ),
    "many": lambda: train_many(
        [models.mlp(64, 32, seed=i) for i in range(3)],
        digits(),
        lr=[0.1, 0.2, 0.3],
        **{k: v for k, v in BASE.items() if k != "lr"},
    ),
    "many momentum": lambda: train_many(
        [models.mlp(64, [32, 16], seed=i) for i in range(3)],
        digits(),
        momentum=0.9,
        bf16=True,
        **BASE,
    ),
}


def resumed(folder):
    options = dict(
        momentum=0.9, checkpoint=folder / "c", **{k: v for k, v in BASE.items() if k != "epochs"}
    )
    train(conv(), images(), epochs=1, **options)
    return train(conv(), images(), epochs=2, **options)


def measures():
    x, y = digits().x_train[:120], digits().y_train[:120]
    out = {}
    for name, net in {
        "mlp": models.mlp(64, 16),
        "conv": conv(),
        "running": models.f1(64, batch_norm="running"),
    }.items():
        xs = images().x_train[:120] if name == "conv" else x
        o = NetworkObjective(net, xs, y, batch_size=50)
        v = torch.from_numpy(np.random.default_rng(0).standard_normal(o.n_params)).float()
        out[f"{name} value"] = o.value(o.w)
        out[f"{name} grad"] = o.grad(o.w).numpy()
        out[f"{name} hvp"] = o.hvp(o.w, v).numpy()
        out[f"{name} gn"] = o.product(o.w, of="gauss_newton")(v).numpy()
        out[f"{name} evaluate"] = o.evaluate(o.w)
        if name != "conv":
            out[f"{name} cov"] = o.product(o.w, of="covariance")(v).numpy()
            out[f"{name} norms"] = torch.cat(
                [g.squared_norms() for g in o.sample_gradients(o.w)]
            ).numpy()
    return out


def found(name, folder):
    if name == "measures":
        return measures()
    runs = resumed(folder) if name == "resumed" else CASES[name]()
    out = {}
    for i, run in enumerate(runs if isinstance(runs, list) else [runs]):
        out |= {f"{i} w": run.w.numpy(), f"{i} n": run.n_updates, f"{i} stopped": run.stopped}
        out[f"{i} history"] = run.history.drop(columns="split").to_numpy(dtype=float)
        out |= {f"{i} buffer {k}": b.numpy() for k, b in run.model.named_buffers()}
    return out


@pytest.mark.parametrize("name", [*CASES, "resumed", "measures"])
def test_unchanged(name, tmp_path):
    torch.set_num_threads(1)
    if not (FOLDER / f"{name}.npz").exists():
        pytest.skip(f"nothing recorded in {FOLDER}")
    before = np.load(FOLDER / f"{name}.npz")
    now = found(name, tmp_path)
    assert set(before) == set(now)
    for key, value in before.items():
        np.testing.assert_array_equal(value, np.asarray(now[key]), err_msg=key)


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    for name in [*CASES, "resumed", "measures"]:
        with tempfile.TemporaryDirectory() as scratch:
            np.savez(Path(sys.argv[1]) / f"{name}.npz", **found(name, Path(scratch)))
        print(name)
