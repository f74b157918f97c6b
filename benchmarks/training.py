"""A training epoch: lecture6.train against the plain loop of a tutorial, on the CPU.

Both sides train the same net from the same initial weights with the same optimizer (Adam, 1e-3) on
the same images, in batches of 256. Each run has a process of its own, and the sides take turns.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from time import perf_counter

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import t
from torch import Tensor, nn
from torchvision.transforms import ToTensor

from lecture6 import data, models
from lecture6.evaluation import EVALUATION_BATCH, evaluate, evaluation_batches
from lecture6.train import train

BATCH_SIZE, LR = 256, 1e-3  # Keskar et al.: small batches, Adam at its default rate
SIDES = {"float32": "lecture6, float32", "bfloat16": "lecture6, bfloat16", "tutorial": "tutorial"}


class Pictures(torch.utils.data.Dataset):
    """Images as torchvision hands them out: array, PIL image, ToTensor.

    Like its classes, grey images and labels are held as tensors (MNIST), coloured ones as an array
    and a list (CIFAR10).
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        x = (255 * x).round().byte().permute(0, 2, 3, 1)  # (n, H, W, C)
        grey = x.shape[-1] == 1
        self.images, self.labels = (x.squeeze(-1), y) if grey else (x.numpy(), y.tolist())
        self.transform = ToTensor()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = Image.fromarray(np.asarray(self.images[i]))
        return self.transform(image), int(self.labels[i])


def tutorial(model: nn.Module, images: data.Dataset, epochs: int, seed: int) -> float:
    """Train ``model`` in place; seconds an epoch of updates."""
    loader = torch.utils.data.DataLoader(
        Pictures(images.x_train, images.y_train),
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=2,
        generator=torch.Generator().manual_seed(seed),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    start = perf_counter()
    for _ in range(epochs):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
    return (perf_counter() - start) / epochs


def ours(
    model: nn.Module, images: data.Dataset, epochs: int, seed: int, bf16: bool
) -> tuple[nn.Module, float]:
    """The trained net; seconds an epoch of updates.

    ``train`` also evaluates, here before the first update and after the last. The clock is read as
    each forward pass begins: it runs from the first in training mode to the next in eval mode.
    """
    passes: list[tuple[bool, float]] = []
    hook = model.register_forward_pre_hook(lambda m, _: passes.append((m.training, perf_counter())))
    run = train(
        model,
        images,
        batch_size=BATCH_SIZE,
        lr=LR,
        optimizer="adam",
        epochs=epochs,
        evaluate_every=epochs,
        seed=seed,
        bf16=bf16,
        device="cpu",
    )
    hook.remove()
    if bf16 and run.precision != "bfloat16":
        raise SystemExit("this processor has no bfloat16: run with --sides float32 tutorial")
    start = next(seconds for training, seconds in passes if training)
    end = next(seconds for training, seconds in passes if not training and seconds > start)
    return run.model, (end - start) / epochs


def trial(side: str, net: str, name: str, batches: int | None, epochs: int, seed: int) -> dict:
    """One run of one side: seconds an epoch, and the accuracy on the test set."""
    images = data.load(name)
    if batches is not None:
        images = images.subset(min(batches * BATCH_SIZE, images.n_train))
    if net == "c1" and images.input_shape != (3, 32, 32):
        images = images.padded()
    if net == "f1":
        model = models.f1(int(np.prod(images.input_shape)), seed=seed)
    else:
        model = models.c1(seed=seed)
    if side == "tutorial":
        with models.local_seed(seed):
            seconds = tutorial(model, images, epochs, seed)
        model.eval()
    else:
        model, seconds = ours(model, images, epochs, seed, bf16=side == "bfloat16")
    test = evaluation_batches(images.x_test, images.y_test, EVALUATION_BATCH)
    return {"side": side, "seed": seed, "seconds": seconds, "accuracy": evaluate(model, test)[1]}


def spread(values: pd.Series) -> str:
    return f"{values.median():8.2f}  ({values.min():.2f} to {values.max():.2f})"


def report(table: pd.DataFrame) -> None:
    """Print medians with ranges, and the paired difference of the accuracies with its interval."""
    by_seed = table.pivot_table(index="seed", columns="side")
    n = len(by_seed)
    for side in by_seed["seconds"]:
        print(f"{SIDES[side]:20} s/epoch  {spread(by_seed['seconds'][side])}")
    for side in by_seed["seconds"].columns.drop("tutorial"):
        ratios = by_seed["seconds"]["tutorial"] / by_seed["seconds"][side]
        gain = 100 * (by_seed["accuracy"][side] - by_seed["accuracy"]["tutorial"])
        print(f"tutorial / {SIDES[side]:20}  {spread(ratios)}")
        half = f"±{t.ppf(0.975, n - 1) * gain.sem():.2f}" if n > 1 else "(one seed, no interval)"
        print(
            f"  test accuracy {100 * by_seed['accuracy'][side].mean():.2f} %, tutorial "
            f"{100 * by_seed['accuracy']['tutorial'].mean():.2f} %, "
            f"difference {gain.mean():+.2f} {half} points"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=("f1", "c1"), default="f1")
    parser.add_argument("--data", choices=("mnist5k", "mnist", "cifar10_jpeg"), default="mnist")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--batches", type=int, help="of 256 images an epoch (default: all)")
    parser.add_argument("--epochs", type=int, default=1, help="a run (default: 1)")
    parser.add_argument("--repeats", type=int, default=3, help="and seeds (default: 3)")
    args = parser.parse_args()
    if "tutorial" not in args.sides:
        parser.error("--sides must name tutorial, the side that the others are compared with")
    if args.epochs < 1 or args.repeats < 1 or (args.batches is not None and args.batches < 1):
        parser.error("--batches, --epochs and --repeats must be at least 1")

    rows = []
    for seed in range(args.repeats):
        for side in args.sides:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                settings = args.net, args.data, args.batches, args.epochs, seed
                rows.append(process.submit(trial, side, *settings).result())
            print("{side:9} seed {seed}: {seconds:7.2f} s/epoch".format(**rows[-1]), flush=True)
    print(
        f"\n{args.net} on {args.data}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    report(pd.DataFrame(rows))


if __name__ == "__main__":
    main()
