"""Data-parallel training: images/s of 1 and 2 workers, and our loop beside a bare DDP loop.

Workers have one thread each and take ``--batch-size`` samples each of every mini-batch; the worker
of one process trains without an exchange. The bare loop is DistributedDataParallel, a shuffle
divided among the workers, a backward pass and a step, and nothing else; both loops train the same
net on the same batches in the same two processes, in turns. The weights that result are compared.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lecture6 import data, models, parallel
from lecture6.device import kept_memory
from lecture6.models import flat_parameters
from lecture6.train import sample_batches, train

LR, MOMENTUM = 0.01, 0.9


def bare(
    group: parallel.Group, net: nn.Module, images: data.Dataset, batch_size: int, epochs: int
) -> tuple[float, Tensor]:
    """Seconds of the updates, and the weights."""
    net = DistributedDataParallel(copy.deepcopy(net), gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM)
    generator = torch.Generator().manual_seed(0)
    with kept_memory():  # as ours has it: the loops are compared, not the allocator
        start = perf_counter()
        for _ in range(epochs):
            for batch in sample_batches(images.n_train, batch_size, generator=generator):
                part = batch.tensor_split(group.size)[group.rank]
                loss = F.cross_entropy(net(images.x_train[part]), images.y_train[part])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        seconds = perf_counter() - start
    return seconds, flat_parameters(net.module)


def ours(
    group: parallel.Group | None, net: nn.Module, images: data.Dataset, batch_size: int, epochs: int
) -> tuple[float, Tensor]:
    """Seconds of the updates, and the weights."""
    options = {"batch_size": batch_size, "epochs": epochs, "evaluate_every": epochs}
    run = train(net, images, lr=LR, momentum=MOMENTUM, group=group, device="cpu", **options)
    return run.seconds, run.w


def compare(
    group: parallel.Group, net: nn.Module, images: data.Dataset, size: int, epochs: int, n: int
) -> list[tuple[float, float, float, float]]:
    """(one process, ours, bare) in seconds and the largest difference of weights, a repeat."""
    rows = []
    for _ in range(n + 1):
        alone = 0.0
        if group.rank == 0:  # the other worker waits, and its core is idle
            alone, _ = ours(None, net, images, size, epochs)
        group.sum(torch.zeros(1))
        sides = [ours, bare] if len(rows) % 2 else [bare, ours]
        found = {side: side(group, net, images, size * group.size, epochs) for side in sides}
        apart = (found[ours][1] - found[bare][1]).abs().max().item()
        rows.append((alone, found[ours][0], found[bare][0], apart))
    return rows[1:]  # the first is a warm-up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=["f1", "mlp"], default="f1", help="(default: f1)")
    parser.add_argument("--batch-size", type=int, default=256, help="a worker (default: 256)")
    parser.add_argument("--epochs", type=int, default=4, help="of 4,000 images (default: 4)")
    parser.add_argument("--repeats", type=int, default=7, help="(default: 7)")
    args = parser.parse_args()
    if min(args.batch_size, args.epochs, args.repeats) < 1:
        parser.error("--batch-size, --epochs and --repeats must be at least 1")
    if reason := parallel.unavailable():
        parser.error(reason)

    images = data.load("mnist5k")
    net = getattr(models, args.net)(seed=0)
    rows = parallel.launch(
        compare,
        net,
        images,
        args.batch_size,
        args.epochs,
        args.repeats,
        workers=2,
        threads=1,
        timeout=600,
    )[0]
    n = args.epochs * images.n_train

    def shown(name: str, values: list[float], spec: str) -> None:
        median, low, high = statistics.median(values), min(values), max(values)
        print(f"{name}: {median:{spec}} ({low:{spec}} to {high:{spec}})")

    print(
        f"{args.net}, {models.count_parameters(net):,} parameters, {args.batch_size} a worker, one "
        f"thread each, {args.epochs} epochs of {images.n_train:,} images, torch {torch.__version__}"
    )
    shown("images/s, 1 worker", [n / alone for alone, *_ in rows], ",.0f")
    shown("images/s, 2 workers", [n / two for _, two, *_ in rows], ",.0f")
    shown("efficiency", [alone / two / 2 for alone, two, *_ in rows], ".1%")
    shown("overhead over bare DDP", [two / plain - 1 for _, two, plain, _ in rows], ".1%")
    print(f"weights apart by at most {max(row[3] for row in rows):.1e}")


if __name__ == "__main__":
    main()
