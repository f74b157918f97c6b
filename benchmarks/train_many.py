"""Many small networks at once against a plain PyTorch loop that trains them one after another.

Both sides train the same replicas of the net 784-800-10 of Smith & Le with the same batches, each
with its own initial weights and learning rate, from tensors in memory (no loader on either side),
and evaluate each on both sets before and after. The weights that result are compared.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from lecture6 import data, models
from lecture6.models import flat_parameters
from lecture6.train import EVALUATION_BATCH, evaluate, evaluation_batches, sample_batches
from lecture6.train_many import train_many


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=32, help="(default: 32)")
    parser.add_argument("--batch-size", type=int, default=32, help="(default: 32)")
    parser.add_argument("--epochs", type=int, default=8, help="of 4,000 images (default: 8)")
    parser.add_argument("--repeats", type=int, default=5, help="of each side (default: 5)")
    args = parser.parse_args()
    if min(args.replicas, args.batch_size, args.epochs, args.repeats) < 1:
        parser.error("--replicas, --batch-size, --epochs and --repeats must be at least 1")

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
