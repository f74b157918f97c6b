"""How fast the package is on a GPU, and how near to what the GPU can do (run R7).

  product      a bare product of two matrices: what "% of a bare product" below means
  replicas     32 nets 784-800-10, batches of 32: a plain loop, one net after another, over
               train_many; and train_many's updates alone
  training     images/s of train's updates, ResNet-20 and C1
  curvature    products of Hessian and Gauss–Newton matrix of the net 784-512-512-10, of its
               gradients' covariance, and of ResNet-20's Hessian, with a vector
  normals      numbers/s of torch.randn on the device; steps of walkers/s of sde.simulate, which is
               a CPU's

Arithmetic is counted by PyTorch's FlopCounterMode on a few samples on the CPU, and in proportion
for more. Inputs and labels are random numbers: how long a step takes does not depend on them. A row
has the median, the least and the most of several repeats after one to warm up.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from train_many import plain

from lecture6 import models, sde
from lecture6.checkpoints import write_atomically
from lecture6.data import Dataset
from lecture6.device import choose
from lecture6.noise import GradientCovariance
from lecture6.objective import NetworkObjective
from lecture6.provenance import code_version, device_name
from lecture6.train import train
from lecture6.train_many import train_many

COLUMNS = ("benchmark", "setting", "median", "least", "most", "unit", "target")
COUNTED = 4  # samples that arithmetic is counted on


class Sizes(NamedTuple):
    """How much is computed: on a GPU, and to see that it works."""

    repeats: int = 5
    matrix: int = 8192
    replicas: int = 32
    n_dense: int = 4000  #: samples of the dense nets
    n_images: int = 5120  #: of an epoch of the convolutional nets
    n_curved: int = 2000  #: of ResNet-20's Hessian
    batch_size: int = 256
    walkers: int = 1_000_000
    normals: int = 1 << 28


SMOKE = Sizes(1, 128, 2, 64, 32, 8, 16, 1000, 1 << 16)


class Row(NamedTuple):
    """A line of the table, from the values of the repeats."""

    setting: str
    values: list[float]
    unit: str
    target: str = ""


def repeated(work: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each call, after one to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        wait()
        start = perf_counter()
        work()
        wait()
        seconds.append(perf_counter() - start)
    return seconds[1:]


def wait() -> None:
    """Until the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def made(n: int, shape: tuple[int, ...]) -> Dataset:
    """Random inputs and labels; the test set has a tenth of the samples."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for size in (n, max(10, n // 10)):
        x = torch.rand(size, *shape, generator=generator)
        parts += [x, torch.randint(10, (size,), generator=generator)]
    return Dataset("random", *parts, tuple("0123456789"), "0" * 64)


def flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of the products and convolutions in ``work``."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


# ---- the benchmarks ----------------------------------------------------------------------------


@lru_cache
def bare(sizes: Sizes, dtype: torch.dtype) -> list[float]:
    """FLOP/s of a product of two square matrices."""
    n, device = sizes.matrix, choose()
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return [2 * n**3 / s for s in repeated(lambda: a @ b, sizes.repeats)]


def product(sizes: Sizes) -> Iterator[Row]:
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        yield Row(name, [f / 1e12 for f in bare(sizes, dtype)], "TFLOP/s")


def of_bare(
    setting: str,
    counted: float,
    seconds: list[float],
    sizes: Sizes,
    dtype: torch.dtype = torch.float32,
) -> Row:
    """The arithmetic per second in per cent of that of a bare product."""
    peak = statistics.median(bare(sizes, dtype))
    return Row(setting, [100 * counted / s / peak for s in seconds], "% of a bare product")


def replicas(sizes: Sizes) -> Iterator[Row]:
    r, device, batch, epochs = sizes.replicas, choose(), 32, 4
    images = made(sizes.n_dense, (1, 28, 28))
    nets = [models.mlp(seed=seed) for seed in range(r)]

    def ours(n: int) -> None:
        options = {"batch_size": batch, "epochs": n, "evaluate_every": n}
        train_many(nets, images, lr=0.1, device=device, **options)

    together = repeated(lambda: ours(epochs), sizes.repeats)
    plain(nets[:1], images, batch, [0.1], 1, str(device))  # to warm up
    wait()
    start = perf_counter()
    plain(nets, images, batch, [0.1] * r, epochs, str(device))
    wait()
    alone = perf_counter() - start
    yield Row("plain loop / train_many", [alone / s for s in together], "ratio", "20 on a GPU")
    # what ten times the epochs take longer is updates, and nothing else
    longer = repeated(lambda: ours(11 * epochs), min(3, sizes.repeats))
    updates = 10 * epochs * -(-images.n_train // batch)
    seconds = [(s - statistics.median(together)) / updates for s in longer]
    yield Row("an update of all replicas", [1e6 * s for s in seconds], "µs")
    x, y = images.x_train[:COUNTED], images.y_train[:COUNTED]
    counted = flops(lambda: F.cross_entropy(nets[0](x), y).backward()) * r * batch / COUNTED
    yield of_bare("train_many's updates", counted, seconds, sizes)


def training(sizes: Sizes) -> Iterator[Row]:
    images = made(sizes.n_images, (3, 32, 32))
    x, y = images.x_train[:COUNTED], images.y_train[:COUNTED]
    for name, net in (("ResNet-20", models.resnet(20)), ("C1", models.c1())):
        counted = flops(lambda net=net: F.cross_entropy(net(x), y).backward()) / COUNTED
        for bf16 in (False, True):
            options = {"batch_size": sizes.batch_size, "lr": 0.01, "epochs": 2, "bf16": bf16}
            options["evaluate_every"] = 2
            runs = [train(net, images, **options) for _ in range(sizes.repeats + 1)][1:]
            seconds = [run.seconds / (2 * images.n_train) for run in runs]
            setting = f"{name}, batch {sizes.batch_size}, {runs[0].precision}"
            yield Row(setting, [1 / s for s in seconds], "images/s")
            yield of_bare(setting, counted, seconds, sizes, getattr(torch, runs[0].precision))


def curvature(sizes: Sizes) -> Iterator[Row]:
    dense, image = made(sizes.n_dense, (1, 28, 28)), made(sizes.n_curved, (3, 32, 32))
    deep = models.mlp(784, [512, 512])
    for name, net, data, of in (
        ("784-512-512-10, Hessian", deep, dense, "hessian"),
        ("784-512-512-10, Gauss–Newton", deep, dense, "gauss_newton"),
        ("ResNet-20, Hessian", models.resnet(20), image, "hessian"),
    ):
        setting = f"{name}, {data.n_train:,} samples"
        few = _product(net, data.x_train[:COUNTED], data.y_train[:COUNTED], of, "cpu")
        counted = flops(few) * data.n_train / COUNTED
        seconds = repeated(_product(net, data.x_train, data.y_train, of), sizes.repeats)
        yield Row(setting, [1e3 * s for s in seconds], "ms")
        yield of_bare(setting, counted, seconds, sizes)
    f = NetworkObjective(deep.to(choose()), dense.x_train, dense.y_train)
    covariance, v = GradientCovariance(f, f.w), torch.ones_like(f.w)
    seconds = repeated(lambda: covariance @ v, sizes.repeats)
    setting = f"784-512-512-10, covariance, {dense.n_train:,} samples"
    yield Row(setting, [1e3 * s for s in seconds], "ms")


def _product(
    net: nn.Module, x: Tensor, y: Tensor, of: str, device: str | None = None
) -> Callable[[], Tensor]:
    """A product with a curvature matrix; what does not depend on the vector is done before."""
    f = NetworkObjective(net.to(choose(device)), x, y)
    multiply, v = f.product(f.w, of=of, memory_limit=8 << 30), torch.ones_like(f.w)
    return lambda: multiply(v)


def normals(sizes: Sizes) -> Iterator[Row]:
    out = torch.empty(sizes.normals, device=choose())
    seconds = repeated(out.normal_, sizes.repeats)
    yield Row("torch.randn on the device", [len(out) / s / 1e9 for s in seconds], "10⁹/s")

    def walk() -> None:
        options = {"dt": 0.01, "n_steps": 20, "n_walkers": sizes.walkers, "dtype": "float32"}
        sde.simulate(lambda w: -4 * w * (w * w - 1), 0.77, 1.0, seed=0, **options)

    seconds = repeated(walk, sizes.repeats)
    rates = [20 * sizes.walkers / s / 1e9 for s in seconds]
    yield Row("sde.simulate's steps of walkers, CPU", rates, "10⁹/s")


BENCHMARKS: dict[str, Callable[[Sizes], Iterable[Row]]] = {
    "product": product,
    "replicas": replicas,
    "training": training,
    "curvature": curvature,
    "normals": normals,
}


def read(path: Path) -> list[dict[str, str]]:
    """The lines of a table, or none."""
    return list(csv.DictReader(path.open(encoding="utf8"))) if path.exists() else []


def add(path: Path, name: str, rows: Iterable[Row], origin: dict[str, str]) -> None:
    """Add a finished benchmark to the table."""
    lines = read(path)
    for row in rows:
        found = statistics.median(row.values), min(row.values), max(row.values)
        values = [name, row.setting, *(f"{value:.4g}" for value in found), row.unit, row.target]
        lines.append(dict(zip(COLUMNS, values, strict=True)) | origin)
        print("  {setting}: {median} ({least} to {most}) {unit}".format(**lines[-1]), flush=True)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*COLUMNS, *origin], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_atomically(path, text.getvalue().encode())


def origin() -> dict[str, str]:
    """Where the numbers of this process come from."""
    found = {"device": device_name(), "torch": torch.__version__, "code": code_version()}
    return found | {"date": date.today().isoformat()}
