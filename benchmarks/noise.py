"""Products with the covariance of per-sample gradients: lecture6 against three other ways.

Every side computes F v = (1/N) Σ_i g_i (g_i·v) − ḡ (ḡ·v), exactly and in float32, from a network,
N images in memory and vectors v. What is timed, in turns on the same threads:

  first     from the bare network to the first F v, whatever the side prepares included: wrapping
            the network for BackPACK and opacus; for lecture6 the objective, its checks, the mean
            gradient, and the one pass whose factors are kept
  product   another F v afterwards with the same object; Lanczos uses tens of these
  block     another F V afterwards, for 8 vectors at once

  lecture6  noise.GradientCovariance, with its default limit of 256 MiB
  BackPACK  BatchGrad gives the gradients of a chunk, (n_chunk, n_params); two matrix products with
            them add to F v. All chunks together, N × n_params numbers, do not fit in memory, so
            every product makes them anew. The chunk is the fastest of 16, 64 and 256 MiB in a trial
            before the clock. ḡ is what backward adds up anyway
  opacus    the same with GradSampleModule; it takes no layers with buffers, so not f1 and c1
  loop      autograd for one sample after another. If all samples would take longer than --loop
            seconds, on the first of them, with the time in proportion; the output says so

f1 and c1 have batch norm by running statistics, taken from a pass over the images, and no dropout.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lecture6 import data, models, noise
from lecture6.evaluation import EVALUATION_BATCH
from lecture6.models import flat_parameters
from lecture6.objective import NetworkObjective

COLUMNS = ("first", "product", "block")
CHUNKS = (16 << 20, 64 << 20, 256 << 20)  # bytes of gradients
TOLERANCE, TARGET, BLOCK = 1e-4, 3.0, 8

Product = Callable[[Tensor], Tensor]  # v (n_params,) or (k, n_params) -> F v


def ours(net: nn.Module, x: Tensor, y: Tensor) -> Product:
    objective = NetworkObjective(net, x, y)
    covariance = noise.GradientCovariance(objective, objective.w)
    return lambda v: covariance @ v


def chunked(
    parameters: list[nn.Parameter],
    gradients: Callable[[Tensor, Tensor], list[Tensor]],
    x: Tensor,
    y: Tensor,
    chunk: int,
) -> Product:
    """F v from ``gradients``, which returns those of a chunk and adds their sum to ``p.grad``."""
    sizes = [p.numel() for p in parameters]
    size = max(1, chunk // (4 * sum(sizes)))

    def product(v: Tensor) -> Tensor:
        parts = (v if v.dim() == 1 else v.T).split(sizes)  # (numel,) or (numel, k)
        out = [torch.zeros_like(part) for part in parts]
        for p in parameters:
            p.grad = None
        for piece in zip(x.split(size), y.split(size), strict=True):
            g = [each.flatten(1) for each in gradients(*piece)]  # (n_chunk, numel)
            c = sum(each @ part for each, part in zip(g, parts, strict=True))
            for part, each in zip(out, g, strict=True):
                part += each.T @ c
        mean = torch.cat([p.grad.flatten() for p in parameters]) / len(y)
        total = torch.cat(out)
        return (total if v.dim() == 1 else total.T) / len(y) - (v @ mean)[..., None] * mean

    return product


def backpack_side(net: nn.Module, x: Tensor, y: Tensor, chunk: int) -> Product:
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    net = extend(copy.deepcopy(net))
    loss = extend(nn.CrossEntropyLoss(reduction="sum"))
    parameters = list(net.parameters())

    def gradients(x: Tensor, y: Tensor) -> list[Tensor]:
        with backpack(BatchGrad()):
            loss(net(x), y).backward()
        found = [p.grad_batch for p in parameters]
        for p in parameters:
            del p.grad_batch
        return found

    return chunked(parameters, gradients, x, y, chunk)


def opacus_side(net: nn.Module, x: Tensor, y: Tensor, chunk: int) -> Product:
    from opacus import GradSampleModule

    # It looks at nothing in eval mode. Nets without dropout and batch norm are the same in both.
    net = GradSampleModule(copy.deepcopy(net).train(), loss_reduction="sum")
    parameters = list(net.parameters())

    def gradients(x: Tensor, y: Tensor) -> list[Tensor]:
        F.cross_entropy(net(x), y, reduction="sum").backward()
        found = [p.grad_sample for p in parameters]
        for p in parameters:
            p.grad_sample = None
        return found

    return chunked(parameters, gradients, x, y, chunk)


def loop(net: nn.Module, x: Tensor, y: Tensor) -> Product:
    parameters = list(net.parameters())

    def product(v: Tensor) -> Tensor:
        out, mean = torch.zeros_like(v), torch.zeros(v.shape[-1])
        for i in range(len(y)):
            loss = F.cross_entropy(net(x[i : i + 1]), y[i : i + 1])
            g = torch.cat([p.flatten() for p in torch.autograd.grad(loss, parameters)])
            if v.dim() == 1:
                out.add_(g, alpha=(g @ v).item())
            else:
                out.addr_(v @ g, g)
            mean += g
        mean /= len(y)
        return out / len(y) - (v @ mean)[..., None] * mean

    return product


def timed(call: Callable) -> tuple[float, object]:
    start = perf_counter()
    result = call()
    return perf_counter() - start, result


def clock(make: Callable[[], Product], v: Tensor) -> tuple[dict[str, float], list[Tensor]]:
    """Seconds of each column, and F v and F V."""
    start = perf_counter()
    product = make()
    one = product(v[0])
    first = perf_counter() - start
    again, _ = timed(lambda: product(v[0]))
    block, many = timed(lambda: product(v))
    return dict(zip(COLUMNS, (first, again, block), strict=True)), [one, many]


def fastest_chunk(side: Callable, net: nn.Module, x: Tensor, y: Tensor, v: Tensor) -> int:
    n = min(len(x), 2 * max(1, CHUNKS[-1] // v[0].nbytes))
    seconds = {}
    for chunk in CHUNKS:
        product = side(net, x[:n], y[:n], chunk)
        product(v[0])
        seconds[chunk] = timed(lambda product=product: product(v[0]))[0]
    return min(seconds, key=seconds.get)


def build(name: str, images: data.Dataset) -> nn.Module:
    if name == "c1":
        net = models.c1(images.n_classes, batch_norm="running")
    else:
        n_inputs = images.x_train[0].numel()
        options = {"batch_norm": "running"} if name == "f1" else {}
        net = getattr(models, name)(n_inputs, n_classes=images.n_classes, **options)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the mean over all batches
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        for part in images.x_train.split(EVALUATION_BATCH):
            net.train()(part)
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=("mlp", "f1", "c1"), default="mlp", help="(default: mlp)")
    parser.add_argument("--data", help="(default: mnist5k; cifar10_jpeg for c1)")
    parser.add_argument("--samples", type=int, default=4000, help="N (default: 4000)")
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument("--repeats", type=int, default=5, help="of each side (default: 5)")
    parser.add_argument("--loop", type=float, default=20.0, help="seconds at most (default: 20)")
    args = parser.parse_args()
    if min(args.samples, args.threads, args.repeats) < 1 or not args.loop > 0:
        parser.error("--samples, --threads, --repeats and --loop must be positive")
    try:
        images = data.load(args.data or ("cifar10_jpeg" if args.net == "c1" else "mnist5k"))
        images = images.subset(args.samples)
    except (ValueError, data.DataError) as error:
        parser.error(str(error))
    if args.net == "c1" and images.input_shape != (3, 32, 32):
        parser.error(f"c1 takes images of shape (3, 32, 32), {images.name} has others")

    warnings.filterwarnings("ignore", message="Full backward hook is firing")  # both libraries'
    torch.set_num_threads(args.threads)
    x, y, net = images.x_train, images.y_train, build(args.net, images)
    n_params = len(flat_parameters(net))
    v = torch.randn(BLOCK, n_params, generator=torch.Generator().manual_seed(0))
    print(
        f"{args.net}, {n_params:,} parameters, {len(y):,} images of {images.name}, "
        f"{args.threads} threads, torch {torch.__version__}"
    )
    # the first is not counted: it warms up, and what torch loads once is not part of a product
    seconds, _ = timed(lambda: loop(net, x[:5], y[:5])(v))
    seconds, _ = timed(lambda: loop(net, x[:20], y[:20])(v))
    n_loop = min(len(y), max(1, int(args.loop / seconds * min(20, len(y)))))
    sides = {"lecture6": lambda: ours(net, x, y)}
    for name, side in (("backpack-for-pytorch", backpack_side), ("opacus", opacus_side)):
        try:
            chunk = fastest_chunk(side, net, x, y, v)
        except (ImportError, PackageNotFoundError):
            print(f"{name}: not installed")
        except NotImplementedError as error:
            print(f"{name}: not for {args.net}: {str(error)[:120]} …")
        else:
            label = f"{name} {version(name)}, {chunk >> 20} MiB"
            sides[label] = lambda side=side, chunk=chunk: side(net, x, y, chunk)
    label = "loop" if n_loop == len(y) else f"loop, {n_loop:,} images, scaled"
    sides[label] = lambda: loop(net, x[:n_loop], y[:n_loop])

    seconds = {name: {column: [] for column in COLUMNS} for name in sides}
    apart = dict.fromkeys(sides, 0.0)
    clock(lambda: ours(net, x, y), v)  # to warm up
    for _ in range(args.repeats):
        expected = []
        for name, make in sides.items():
            found, results = clock(make, v)
            expected = expected or results
            scale = len(y) / n_loop if name.startswith("loop") else 1.0
            for column in COLUMNS:
                seconds[name][column].append(found[column] * scale)
            if scale == 1.0:
                against = expected
            else:
                part = ours(net, x[:n_loop], y[:n_loop])
                against = [part(v[0]), part(v)]
            for a, b in zip(results, against, strict=True):
                apart[name] = max(apart[name], ((a - b).norm() / a.norm()).item())
    report(seconds, apart)


def report(seconds: dict[str, dict[str, list[float]]], apart: dict[str, float]) -> None:
    """Medians in seconds, and the ratios to ours of the same repeat with their ranges."""
    best = dict.fromkeys(COLUMNS, float("inf"))
    print(f"\n{'':34}" + "".join(f"{column:>32}" for column in COLUMNS) + "   relative difference")
    for name, columns in seconds.items():
        cells = []
        for column, values in columns.items():
            median = statistics.median(values)
            if name == "lecture6":
                cells.append(f"{median:9.3f} s {'':21}")
                continue
            base = seconds["lecture6"][column]
            ratios = [a / b for a, b in zip(values, base, strict=True)]
            ratio = statistics.median(ratios)
            best[column] = min(best[column], ratio)
            cells.append(f"{median:9.3f} s {ratio:6.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
        shown = "" if name == "lecture6" else f"{apart[name]:.1e}"
        print(f"{name:34}" + "".join(f"{cell:>32}" for cell in cells) + f"   {shown}")
    print(f"\nthe fastest of the others over lecture6 (target: {TARGET:g})")
    for column, ratio in best.items():
        print(f"  {column:8} {ratio:.1f}")
    if not max(apart.values()) < TOLERANCE:
        raise SystemExit(f"the results differ by more than {TOLERANCE:g}: no comparison")


if __name__ == "__main__":
    main()
