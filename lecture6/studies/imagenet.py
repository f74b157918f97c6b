"""Goyal et al. (1706.02677), their recipe and their size: a ResNet-50 on a folder of images.

The images stay on disk. One process does it all, or those that torchrun started share each
mini-batch: k parts of n images, each normalised by itself, as Goyal's k workers do. A process that
has several parts accumulates their gradients (§5.3), so that the number of processes changes
nothing but the rounding. Augmentation is drawn for each image and epoch from the trial's seed.

Tables are those of the study ``goyal``: history, with epoch, split, loss and error (a fraction): of
"train" over the mini-batches of that epoch, augmented and with the weights that each of them met,
as Goyal plots it; of "test" over all validation images; and runs
(:class:`~lecture6.studies.trials.Rows`).

Of the images left over when kn does not divide their number, others in each epoch, that epoch makes
no use, so that every part has n images; the paper does not say what it does with them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lecture6 import checks, models
from lecture6.checkpoints import Checkpoint
from lecture6.data import DataError
from lecture6.device import choose, for_training
from lecture6.schedules import Schedule, compose, factors, scale_lr, step_decay, warmup
from lecture6.studies.trials import Rows
from lecture6.team import Team
from lecture6.train import DivergenceError, Recipe, gradient

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours in [0, 1]


def trial(
    *,
    images: str,
    k: int,
    seed: int,
    rule: str = "linear",
    warmup: str = "gradual",
    group: str = "recipe",
    net: str = "resnet50",
    n: int = 32,
    lr: float = 0.1,
    epochs: int = 90,
    image_size: int = 224,
    loaders: int | None = None,
    workers: Team | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Rows:
    """Train ``net`` with mini-batches of ``k * n`` images; see the module for the tables.

    ``images``: "imagefolder:PATH", with class folders in PATH/train and PATH/val, at the same PATH
    for all processes. ``net``: see :func:`build`; ``lr``, ``rule`` and ``warmup``:
    :func:`recipe_for`. ``image_size``: pixels a side. ``loaders``: processes that read images, for
    each process that trains; default: its share of the cores. ``checkpoint``: of process 0, saved
    to after each epoch; the others need not see it. ``group`` only labels the trial.

    Raises :class:`lecture6.data.files.DataError`, with the remedy, for images that are not there
    or damaged; ValueError for settings that cannot be trained.
    """
    settings = {"images": images, "net": net, "kn": [k, n], "epochs": epochs, "seed": seed}
    settings |= {"lr": [lr, rule, warmup], "image_size": image_size}
    team = workers or Team(choose())
    if loaders is None:
        loaders = max(1, joblib.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    recipe = recipe_for(k, n, lr=lr, rule=rule, warmup=warmup, epochs=epochs, seed=seed)
    train, test = open_images(images, image_size, seed)
    updates = check(len(train), k, n, team.size)

    model = build(net, len(train.classes), seed).to(team.device)
    if team.device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)
    shared = team.wrap(model, train[0, 0][0].expand(2, -1, -1, -1).to(team.device))
    rates = recipe.lr * factors(recipe.schedule, epochs, updates)
    opt = optimizer(model, recipe)
    rows, start = Rows(), 0
    saved = Checkpoint(checkpoint, settings)
    states = [saved.load() if team.rank == 0 else None]
    if team.size > 1:
        dist.broadcast_object_list(states)
    if state := states[0]:
        model.load_state_dict(state["model"])
        opt.load_state_dict(state["optimizer"])
        rows, start = Rows(state["rows"]), state["epoch"]

    try:
        for epoch in range(start, epochs):
            with for_training():
                shares = share(len(train), k, n, (seed, epoch), team)
                batches = _read(train, epoch, shares.flatten(0, 1), team.device, loaders)
                shared.train()
                total = torch.zeros(2, dtype=torch.float64, device=team.device)
                for i in range(updates):
                    for parameters in opt.param_groups:
                        parameters["lr"] = float(rates[epoch, i])  # for the checkpoint
                    total += update(shared, opt, batches, shares.shape[1], team)
                team.mean_buffers(model)
                model.eval()
                found = {"train": (total / updates).tolist()}
                found["test"] = evaluate(model, test, team, loaders)
            for split, (loss, error) in found.items():
                rows.add("history", epoch=epoch + 1, split=split, loss=loss, error=error)
            if checkpoint is not None and team.rank == 0:
                state = {"model": model.state_dict(), "optimizer": opt.state_dict()}
                saved.save(state | {"rows": dict(rows), "epoch": epoch + 1})
    except DivergenceError:  # all processes meet it at the same update
        return Rows(runs=[{"diverged": True}])
    rows.add("runs", n_updates=epochs * updates, diverged=False)
    return rows


def update(
    model: nn.Module,
    opt: torch.optim.Optimizer,
    batches: Iterator[tuple[Tensor, Tensor]],
    n_parts: int,
    team: Team,
) -> Tensor:
    """One update from the next ``n_parts`` of ``batches``, a process's share of the mini-batch.

    Returns the mini-batch's mean loss and error, (2,) float64. Raises DivergenceError, in all
    processes, when that loss is not finite.
    """
    errors = torch.zeros((), dtype=torch.float64, device=team.device)

    def count(z: Tensor, y: Tensor) -> None:
        errors.add_((z.argmax(1) != y).double().mean() / n_parts)

    opt.zero_grad()
    share = 1 / (n_parts * team.size)  # of the mini-batch, of each part
    parts = ((x, y, share) for x, y in islice(batches, n_parts))
    loss = gradient(model, parts, n_parts, team, observe=count)
    found = _mean(torch.stack([loss.double(), errors]), team.size, team)
    opt.step()
    return found


def _mean(total: Tensor, n: int, team: Team) -> Tensor:
    """A loss and an error, summed over the processes, by ``n``; DivergenceError: not finite."""
    found = team.sum(total) / n
    if not math.isfinite(loss := found[0].item()):
        raise DivergenceError(f"the loss became {loss}: use a smaller rate or a warm-up")
    return found


def evaluate(model: nn.Module, test: Images, team: Team, loaders: int) -> list[float]:
    """Mean loss and error of ``model`` on all of ``test``, which the processes divide.

    Raises DivergenceError as :func:`update` does.
    """
    mine = torch.arange(team.rank, len(test), team.size).split(256)
    total = torch.zeros(2, dtype=torch.float64, device=team.device)
    with torch.no_grad():
        for x, y in _read(test, 0, mine, team.device, loaders):
            z = model(x)
            total += torch.stack([F.cross_entropy(z, y, reduction="sum"), (z.argmax(1) != y).sum()])
    return _mean(total, len(test), team).tolist()


def goyal_schedule(
    epochs: float, k: float, *, rule: str = "linear", kind: str = "gradual"
) -> Schedule:
    """Goyal et al.'s schedule (§5.1) for a mini-batch k times the base, in ``epochs``, not 90.

    The factor on the scaled rate: over the first 5 of 90 epochs up from the base rate's ("gradual"
    or "constant", see :func:`lecture6.schedules.warmup`; "none" starts at 1), then 1, and a tenth
    of it after 30, 60 and 80. Raises ValueError for another ``rule`` or ``kind``.
    """
    epochs = checks.real("epochs", epochs, above=0)
    decay = step_decay([epochs * e / 90 for e in (30, 60, 80)], factor=0.1)
    start = 1 / scale_lr(1.0, k, rule=rule)
    checks.one_of("kind", kind, ("gradual", "constant", "none"))
    if kind == "none" or start == 1.0:
        return decay
    return compose(warmup(epochs * 5 / 90, start, kind=kind), decay)


def recipe_for(
    k: int, n: int, *, lr: float = 0.1, rule: str = "linear", warmup: str = "gradual", **more: Any
) -> Recipe:
    """Goyal et al., §5.1, for mini-batches of k parts of n images; ``more`` is a Recipe's.

    ``lr`` is the rate for 256, scaled by ``rule`` (:func:`lecture6.schedules.scale_lr`), on
    :func:`goyal_schedule`; ``warmup`` is its kind, where kn is larger than 256. Raises ValueError
    for settings that cannot be trained.
    """
    k, n = checks.whole("k", k, least=1), checks.whole("n", n, least=1)
    more = {"epochs": 90, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4} | more
    ratio = k * n / 256
    kind = warmup if ratio > 1 else "none"
    schedule = goyal_schedule(more["epochs"], ratio, rule=rule, kind=kind)
    rate = scale_lr(lr, ratio, rule=rule)
    return Recipe(batch_size=k * n, micro_batch=n, lr=rate, schedule=schedule, **more)


def optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Nesterov momentum, and weight decay on all but batch norm's gains and shifts: §5.1."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    free = [p for m in norms for p in m.parameters()]
    decayed = [p for p in model.parameters() if not any(p is other for other in free)]
    return recipe.optimizer_for([{"params": decayed}, {"params": free, "weight_decay": 0.0}])


def build(net: str, n_classes: int, seed: int) -> nn.Module:
    """ "resnet50" (torchvision's), or "resnet20" for images of 32×32; ValueError for another."""
    if checks.one_of("net", net, ("resnet50", "resnet20")) == "resnet50":
        return models.resnet50(n_classes, seed=seed)
    return models.resnet(20, n_classes, seed=seed)


def check(n_train: int, k: int, n: int, processes: int) -> int:
    """The updates of an epoch; ValueError for settings that cannot be trained."""
    checks.whole(f"a mini-batch of k = {k} parts of n = {n} images", k * n, most=n_train)
    if k % processes:
        raise ValueError(
            f"k {k} parts cannot be divided among {processes} processes: start torchrun with a "
            f"number of processes that divides {k}"
        )
    return n_train // (k * n)


def share(n_train: int, k: int, n: int, seed: tuple[int, ...], team: Team) -> Tensor:
    """A process's indices of an epoch's mini-batches, (updates, parts, n).

    All processes shuffle alike, once an epoch, and divide the result: Goyal et al., §3, remark 4.
    """
    order = torch.randperm(n_train, generator=torch.Generator().manual_seed(_mixed(*seed)))
    order = order[: n_train // (k * n) * (k * n)].view(-1, k, n)
    return order.tensor_split(team.size, dim=1)[team.rank]


def _mixed(*numbers: int) -> int:
    """A seed that no other numbers share."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class Images(torch.utils.data.Dataset):
    """A folder of class folders of images; an item is asked for by (epoch, index).

    ``transform`` is drawn from ``seed``, the epoch and the index, whichever process reads the image
    and whatever it has read before. Raises DataError for a folder without classes, and for a file
    that is not a whole image.
    """

    def __init__(self, folder: Path, transform, seed: int) -> None:
        from torchvision.datasets import ImageFolder

        try:
            self.folder = ImageFolder(folder)
        except OSError as error:
            layout = f"{folder.parent}/train and {folder.parent}/val"
            raise DataError(f"{error}; put the images in class folders under {layout}") from None
        self.transform, self.seed, self.classes = transform, seed, self.folder.classes

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        file, label = self.folder.samples[index]
        try:
            image = self.folder.loader(file)
        except (OSError, SyntaxError, ValueError) as error:  # what PIL raises for a bad file
            raise DataError(f"{file} is not a whole image ({error}): replace it") from None
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the default generator
            torch.random.default_generator.manual_seed(_mixed(self.seed, epoch, index))
            return self.transform(image), label


def open_images(images: str, image_size: int, seed: int) -> tuple[Images, Images]:
    """The training images, augmented in scale, aspect and by flips, and the validation images.

    Goyal et al., §5.1; the validation images are cropped from a side of 256 for 224. Raises
    DataError for a folder that is no use.
    """
    from torchvision import transforms as t

    folder = Path(images.removeprefix("imagefolder:")).expanduser()
    normalised = [t.ToTensor(), t.Normalize(MEAN, STD)]
    augmented = [t.RandomResizedCrop(image_size), t.RandomHorizontalFlip(), *normalised]
    centre = [t.Resize(round(image_size * 256 / 224)), t.CenterCrop(image_size), *normalised]
    train = Images(folder / "train", t.Compose(augmented), seed)
    test = Images(folder / "val", t.Compose(centre), seed)
    if train.classes != test.classes:
        differ = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(f"{images}: train and val must both have {', '.join(differ[:9])}")
    return train, test


def _read(
    images: Images, epoch: int, parts: Iterable[Tensor], device: torch.device, loaders: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The images and labels of each part on ``device``, read ahead by ``loaders`` processes."""
    cuda = device.type == "cuda"
    loader = DataLoader(
        images,
        batch_sampler=[[(epoch, index) for index in part.tolist()] for part in parts],
        num_workers=loaders,
        pin_memory=cuda,
        generator=torch.Generator(),  # or it would draw from the caller's
    )
    layout = torch.channels_last if cuda else torch.contiguous_format
    try:
        for x, y in loader:
            x = x.to(device, non_blocking=True, memory_format=layout)
            yield x, y.to(device, non_blocking=True)
    except DataError as error:  # a loader's traceback stands before its message
        raise DataError(str(error).rpartition("DataError: ")[2].strip()) from None
