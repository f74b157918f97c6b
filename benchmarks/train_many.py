"""Many small networks at once against a plain PyTorch loop that trains them one after another.

Both sides train the same replicas of the net 784-800-10 of Smith & Le with the same batches, each
with its own initial weights and learning rate, from tensors in memory (no loader on either side),
and evaluate each on both sets before and after. The weights that result are compared.

--figure-10 times the whole of Figure 10 of Smith & Le (1710.06451) on a CPU instead: the same net
on 1,000 images of MNIST less their mean, 3 rates × 7 batch sizes × 4 seeds, --time/rate updates
each, rounded to whole passes over the images as the study does, with batches drawn anew without
replacement. The plain loop trains one net after another in float32 with 2 threads; every side
evaluates before and after. Ours are

  float32    train_many, the 4 seeds of a rate and a batch size at once, 2 threads
  bfloat16   the same with bf16=True for batches of 32 and more: what the study does
  2 workers  bfloat16, one net at a time in each of two processes with one thread: what
             `lecture6 run smith --jobs 2` does; they are started, and warm, before the clock
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from lecture6 import data, models
from lecture6.device import has_bf16
from lecture6.evaluation import EVALUATION_BATCH, evaluate, evaluation_batches
from lecture6.models import flat_parameters
from lecture6.train import sample_batches
from lecture6.train_many import train_many

RATES, RATIOS, SEEDS = (0.5, 1.0, 2.0), (16, 22.6, 32, 64, 128, 256, 500), range(4)
N_TRAIN = 1000
Curve = tuple[float, int, int]  # learning rate, batch size, epochs


def plain(
    nets: list, images: data.Dataset, batch_size: int, rates: list[float], epochs: int, device: str
) -> list[Tensor]:
    """The weights of each net, trained with torch.optim.SGD."""
    x, y = images.x_train.to(device), images.y_train.to(device)
    sets = [(x, y), (images.x_test.to(device), images.y_test.to(device))]
    weights = []
    for seed, (net, lr) in enumerate(zip(nets, rates, strict=True)):
        net = copy.deepcopy(net).to(device)
        optimizer = torch.optim.SGD(net.parameters(), lr=lr)
        generator = torch.Generator().manual_seed(seed)
        for epoch in range(epochs + 1):
            if epoch in (0, epochs):
                for part in sets:
                    evaluate(net, evaluation_batches(*part, EVALUATION_BATCH))
            if epoch < epochs:
                for batch in sample_batches(len(x), batch_size, generator=generator):
                    batch = batch.to(device)
                    loss = F.cross_entropy(net(x[batch]), y[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        weights.append(flat_parameters(net))
    return weights


def figure_10(time: float) -> list[Curve]:
    """The 21 settings, each for all seeds, the dearest first."""
    sizes = [(lr, round(lr * ratio)) for lr in RATES for ratio in RATIOS]
    found = [(lr, b, max(1, round(time / lr / math.ceil(N_TRAIN / b)))) for lr, b in sizes]
    return sorted(found, key=lambda curve: -curve[2])


def plain_figure(images: data.Dataset, curves: list[Curve]) -> list[float]:
    """Test accuracies (fractions) of all curves and seeds, one net after another."""
    x, y = images.x_train, images.y_train
    sets = [(x, y), (images.x_test, images.y_test)]
    batches = [evaluation_batches(*part, EVALUATION_BATCH) for part in sets]
    accuracies = []
    for lr, batch_size, epochs in curves:
        for seed in SEEDS:
            net = models.mlp(seed=seed)
            optimizer = torch.optim.SGD(net.parameters(), lr=lr)
            options = {"sampling": "without_replacement"}
            generator = torch.Generator().manual_seed(seed)
            for part in batches:
                evaluate(net, part)
            for _ in range(epochs):
                for batch in sample_batches(len(x), batch_size, generator=generator, **options):
                    loss = F.cross_entropy(net(x[batch]), y[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            (loss, _), (_, accuracy) = (evaluate(net, part) for part in batches)
            accuracies.append(accuracy if math.isfinite(loss) else 1 / images.n_classes)
    return accuracies


def together(images: data.Dataset, curve: Curve, seeds: list[int], half: bool) -> list[float]:
    """Test accuracies of the nets of these seeds by train_many; a lost one has that of a guess."""
    lr, batch_size, epochs = curve
    runs = train_many(
        [models.mlp(seed=seed) for seed in seeds],
        images,
        batch_size=batch_size,
        lr=lr,
        epochs=epochs,
        seeds=seeds,
        sampling="without_replacement",
        evaluate_every=epochs,
        bf16=half and batch_size >= 32,
        device="cpu",
    )
    lost = [run.stopped.startswith("diverged") for run in runs]
    return [
        1 / images.n_classes if bad else run.final("test")
        for bad, run in zip(lost, runs, strict=True)
    ]


_worker: dict = {}  # of a worker process: its images


def _start(images: data.Dataset, all_here) -> None:
    torch.set_num_threads(1)
    _worker["images"] = images
    for size in (16, 64):  # warm, in both precisions
        together(images, (0.1, size, 1), [0], True)
    all_here.wait(timeout=600)


def _in_worker(curve: Curve, seed: int) -> float:
    return together(_worker["images"], curve, [seed], True)[0]


def workers(executor: Executor, curves: list[Curve]) -> list[float]:
    jobs = [executor.submit(_in_worker, curve, seed) for curve in curves for seed in SEEDS]
    return [job.result() for job in jobs]


def compare_figure_10(time: float, repeats: int, threads: int) -> None:
    torch.set_num_threads(threads)
    images = data.load("mnist").subset(N_TRAIN).centred()
    curves, seeds = figure_10(time), list(SEEDS)
    updates = sum(epochs * math.ceil(N_TRAIN / size) for _, size, epochs in curves) * len(seeds)
    print(
        f"Figure 10: {len(curves) * len(seeds)} nets 784-800-10, {updates:,} updates, "
        f"{images.n_train:,} images of mnist, {images.n_test:,} to test; {threads} threads, "
        f"torch {torch.__version__}"
    )
    if not has_bf16(torch.device("cpu")):
        print("this processor has no bfloat16: the rows of that name are float32 too")
    context = get_context("spawn")
    settings = {"mp_context": context, "initializer": _start}

    def all_seeds(half: bool) -> list[float]:
        return [each for curve in curves for each in together(images, curve, seeds, half)]

    with ProcessPoolExecutor(2, initargs=(images, context.Barrier(2)), **settings) as executor:
        for job in [executor.submit(int) for _ in range(2)]:  # each starts a worker
            job.result()
        sides: dict[str, Callable[[], list[float]]] = {
            "plain": lambda: plain_figure(images, curves),
            "float32": lambda: all_seeds(False),
            "bfloat16": lambda: all_seeds(True),
            "2 workers": lambda: workers(executor, curves),
        }
        for size in (16, 64):  # to warm up
            plain_figure(images, [(0.1, size, 1)])
            together(images, (0.1, size, 1), seeds, True)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        accuracies = {}
        for _ in range(repeats):
            for name, side in sides.items():
                start = perf_counter()
                accuracies[name] = side()
                seconds[name].append(perf_counter() - start)
            print(", ".join(f"{name} {s[-1]:.2f} s" for name, s in seconds.items()), flush=True)
    for name, own in seconds.items():
        shares = [b / a for a, b in zip(seconds["plain"], own, strict=True)]
        mean = 100 * statistics.mean(accuracies[name])
        line = f"{name:10} {statistics.median(own):8.2f} s, mean test accuracy {mean:.2f} %"
        if name != "plain":
            pairs = zip(accuracies["plain"], accuracies[name], strict=True)
            apart = [100 * (b - a) for a, b in pairs]
            stderr = statistics.stdev(apart) / math.sqrt(len(apart))
            line += (
                f" ({statistics.mean(apart):+.3f} ± {stderr:.3f} points), of plain's time "
                f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"
            )
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=32, help="(default: 32)")
    parser.add_argument("--batch-size", type=int, default=32, help="(default: 32)")
    parser.add_argument("--epochs", type=int, default=8, help="of 4,000 images (default: 8)")
    parser.add_argument("--repeats", type=int, default=5, help="of each side (default: 5)")
    parser.add_argument("--figure-10", action="store_true", help="the whole of Figure 10 instead")
    parser.add_argument(
        "--time", type=float, help="with --figure-10: updates × rate (default: 150)"
    )
    parser.add_argument("--threads", type=int, help="with --figure-10: of a process (default: 2)")
    args = parser.parse_args()
    if min(args.replicas, args.batch_size, args.epochs, args.repeats) < 1:
        parser.error("--replicas, --batch-size, --epochs and --repeats must be at least 1")
    if args.time is not None and not (args.figure_10 and 0 < args.time < math.inf):
        parser.error("--time must be positive, and belongs to --figure-10")
    if args.threads is not None and not (args.figure_10 and args.threads > 0):
        parser.error("--threads must be positive, and belongs to --figure-10")
    if args.figure_10:
        own = ("replicas", "batch_size", "epochs")
        if any(getattr(args, name) != parser.get_default(name) for name in own):
            parser.error("--figure-10 sets replicas, batch sizes and epochs itself")
        try:
            compare_figure_10(args.time or 150.0, args.repeats, args.threads or 2)
        except data.DataError as error:
            parser.error(str(error))
        return

    images = data.load("mnist5k")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    nets = [models.mlp(seed=seed) for seed in range(args.replicas)]
    rates = [0.05 * 4 ** (i / args.replicas) for i in range(args.replicas)]  # 0.05 to 0.2
    print(
        f"{args.replicas} nets 784-800-10, batch {args.batch_size}, {args.epochs} epochs of "
        f"{images.n_train:,} images; {device}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
    ratios = []
    for repeat in range(args.repeats + 1):
        start = perf_counter()
        one_by_one = plain(nets, images, args.batch_size, rates, args.epochs, device)
        middle = perf_counter()
        runs = train_many(
            nets,
            images,
            batch_size=args.batch_size,
            lr=rates,
            epochs=args.epochs,
            evaluate_every=args.epochs,
            device=device,
        )
        end = perf_counter()
        if repeat == 0:  # to warm up
            apart = max(
                (a - run.w).abs().max().item() for a, run in zip(one_by_one, runs, strict=True)
            )
            print(f"weights differ by at most {apart:.1g}")
            continue
        ratios.append((middle - start) / (end - middle))
        print(
            f"plain {middle - start:.2f} s, train_many {end - middle:.2f} s, "
            f"ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
