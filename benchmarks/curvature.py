"""Leading eigenvalues and trace of a Hessian: lecture6 against three other libraries, on the CPU.

The net is 784-512-512-10, trained on the 4,000 MNIST images of mnist5k; the matrix is the Hessian
of its mean loss on them. Every library gets the cheapest setting of a grid that reaches the target,
an error of 1e-3 of each eigenvalue against a float64 reference, or the trace's standard error that
PyHessian has after 100 samples, and is then timed with it, the libraries taking turns. Last, the
memory for growing numbers of images, each in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import curvlinops
import numpy as np
import torch
import torch.nn.functional as F
from hessian_eigenthings import algorithms
from hessian_eigenthings.operators import HessianOperator
from pyhessian import hessian as PyHessian
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from lecture6 import curvature, data, models
from lecture6.objective import NetworkObjective
from lecture6.train import train

K, ACCURACY = 5, 1e-3
TRACE_BATCH = 250  # images a micro-batch, each with random vectors of its own


def net() -> nn.Sequential:
    with models.local_seed(0):
        return nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(784, 512), nn.ReLU()),
            *(nn.Linear(512, 512), nn.ReLU()),
            nn.Linear(512, 10),
        )


def reference(model: nn.Module, x: Tensor, y: Tensor) -> np.ndarray:
    """The leading eigenvalues in float64, by ARPACK to machine precision."""
    f = NetworkObjective(model, x, y, dtype=torch.float64)
    product = f.product(f.w)
    operator = LinearOperator(
        (f.n_params, f.n_params),
        matvec=lambda v: product(torch.from_numpy(v).view(-1)).numpy(),
        dtype=float,
    )
    return np.sort(eigsh(operator, K, which="LA", tol=1e-10)[0])[::-1]


class Others:
    """The other libraries on one net and one batch of all images."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.model, self.x, self.y = model, x, y

    def pyhessian(self) -> PyHessian:
        loss = nn.CrossEntropyLoss()
        return PyHessian(copy.deepcopy(self.model), loss, data=(self.x, self.y), cuda=False)

    def eigenthings(self) -> HessianOperator:
        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return F.cross_entropy(model(batch[0]), batch[1])

        return HessianOperator(self.model, [(self.x, self.y)], loss)

    def curvlinops(self) -> curvlinops.HessianLinearOperator:
        return curvlinops.HessianLinearOperator(
            self.model,
            nn.CrossEntropyLoss(),
            list(self.model.parameters()),
            [(self.x, self.y)],
            check_deterministic=False,
        )


def eigenvalue_sides(
    model: nn.Module, x: Tensor, y: Tensor
) -> dict[str, tuple[list, Callable[..., np.ndarray]]]:
    """Name -> (settings from cheap to dear, setting -> the K leading eigenvalues)."""
    others = Others(model, x, y)

    def ours(tolerance: float) -> np.ndarray:
        f = NetworkObjective(model, x, y)
        return curvature.eigenvalues(f, f.w, K, tolerance=tolerance).values

    def arpack(tolerance: float) -> np.ndarray:
        operator = others.curvlinops().to_scipy()
        return eigsh(operator, K, which="LA", tol=tolerance, return_eigenvectors=False)

    def lanczos(steps: int) -> np.ndarray:
        result = algorithms.lanczos(others.eigenthings(), k=K, max_iter=steps, which="LA", seed=0)
        return result.eigenvalues.numpy()

    def power(setting: tuple[int, float]) -> np.ndarray:
        with models.local_seed(0):
            steps, tolerance = setting
            return np.array(others.pyhessian().eigenvalues(steps, tolerance, top_n=K)[0])

    return {
        "lecture6": ([1e-1, 1e-2, 1e-3, 1e-4], ours),
        "curvlinops with eigsh": ([3e-1, 1e-1, 1e-2, 1e-3, 1e-4, 0.0], arpack),
        "hessian-eigenthings": ([5, 10, 12, 14, 16, 20, 25, 30, 40, 50], lanczos),
        "PyHessian": ([(100, 1e-3), (200, 1e-4), (400, 1e-5), (1000, 1e-6)], power),
    }


def trace_sides(
    model: nn.Module, x: Tensor, y: Tensor, spread: float
) -> dict[str, tuple[list[int], Callable[[int], tuple[float, float]]]]:
    """Name -> (numbers of products, number -> the trace and its standard error).

    ``spread``: the standard deviation of one Hutchinson sample, for curvlinops, which reports none.
    """
    others = Others(model, x, y)

    def ours(n: int) -> tuple[float, float]:
        f = NetworkObjective(model, x, y, batch_size=TRACE_BATCH)
        result = curvature.trace(f, f.w, n_products=n)
        return result.value, result.stderr

    def hutchinson(n: int) -> tuple[float, float]:
        with models.local_seed(0):
            samples = others.pyhessian().trace(maxIter=n, tol=0.0)
        return float(np.mean(samples)), float(np.std(samples, ddof=1) / math.sqrt(n))

    def hutch_plus_plus(n: int) -> tuple[float, float]:
        result = algorithms.trace(others.eigenthings(), num_matvecs=n, seed=0)
        return float(result.estimate), float(result.stderr)

    def curvlinops_hutchinson(n: int) -> tuple[float, float]:
        with models.local_seed(0):
            estimate = curvlinops.hutchinson_trace(others.curvlinops(), num_matvecs=n)
        return float(estimate), spread / math.sqrt(n)

    budgets = [4, 6, 8, 10, 12, 15, 20, 30, 45, 60, 80, 100, 150, 200]
    return {
        "lecture6": (budgets, ours),
        "PyHessian": ([100], hutchinson),
        "hessian-eigenthings": ([n for n in budgets if n >= 9], hutch_plus_plus),
        "curvlinops": ([100], curvlinops_hutchinson),
    }


def cheapest(name: str, settings: list, side: Callable, good: Callable[..., bool]) -> object:
    for setting in settings:
        if good(side(setting)):
            return setting
    raise SystemExit(f"{name}: no setting of {settings} reaches the target")


def race(sides: dict[str, tuple[object, Callable]], repeats: int) -> None:
    """Time every side with its setting, in turns; print medians, ranges and ratios to ours."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, (setting, side) in sides.items():
            start = perf_counter()
            side(setting)
            seconds[name].append(perf_counter() - start)
    ours = seconds["lecture6"]
    for name, (setting, _) in sides.items():
        ratios = [a / b for a, b in zip(seconds[name], ours, strict=True)]
        print(
            f"{name:24} {statistics.median(seconds[name]):7.2f} s  ratio "
            f"{statistics.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f})  "
            f"setting {setting}",
            flush=True,
        )


def resident(what: str) -> float:
    """MB of this process: "VmRSS" now, or "VmHWM" at the peak (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(what))) / 1024


def peak_memory(n: int, limit: int | None) -> tuple[float, float]:
    """MB at the peak above what was used before, and seconds a product, on n images of MNIST."""
    images = data.load("mnist").subset(n)
    f = NetworkObjective(net(), images.x_train, images.y_train)
    v = torch.ones(f.n_params)
    options = {} if limit is None else {"memory_limit": limit}
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew from here
    before = resident("VmRSS")
    product = f.product(f.w, **options)
    start = perf_counter()
    for _ in range(10):
        product(v)
    seconds = (perf_counter() - start) / 10
    return resident("VmHWM") - before, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="of each side (default: 3)")
    parser.add_argument("--epochs", type=int, default=20, help="of training (default: 20)")
    parser.add_argument("--memory", action="store_true", help="memory only (needs MNIST, Linux)")
    args = parser.parse_args()
    if args.repeats < 1 or args.epochs < 1:
        parser.error("--repeats and --epochs must be at least 1")

    if args.memory:
        print("images     graphs up to 256 MiB kept          none kept")
        for n in (1000, 4000, 15_000, 60_000):
            cells = []
            for limit in (None, 0):
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                    used, seconds = process.submit(peak_memory, n, limit).result()
                cells.append(f"{used:6.0f} MB, {seconds:6.3f} s a product")
            print(f"{n:6,}   " + "   ".join(cells), flush=True)
        return

    images = data.load("mnist5k")
    options = {"batch_size": 64, "lr": 0.1, "device": "cpu", "evaluate_every": args.epochs}
    run = train(net(), images, epochs=args.epochs, **options)
    x, y = images.x_train, images.y_train
    print(
        f"784-512-512-10 on {len(x):,} images, training accuracy {run.final('train'):.1%}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )

    exact = reference(run.model, x, y)
    print(f"\neigenvalues, float64: {np.round(exact, 4)}")

    def accurate(values: np.ndarray) -> bool:
        return bool((np.abs(np.sort(values)[::-1] / exact - 1) <= ACCURACY).all())

    race(
        {
            name: (cheapest(name, settings, side, accurate), side)
            for name, (settings, side) in eigenvalue_sides(run.model, x, y).items()
        },
        args.repeats,
    )

    value, target = trace_sides(run.model, x, y, 0.0)["PyHessian"][1](100)
    print(f"\ntrace, PyHessian, 100 samples: {value:.2f} ± {target:.2f}")
    race(
        {
            name: (cheapest(name, budgets, side, lambda r: r[1] <= target * (1 + 1e-9)), side)
            for name, (budgets, side) in trace_sides(run.model, x, y, 10 * target).items()
        },
        args.repeats,
    )


if __name__ == "__main__":
    main()
