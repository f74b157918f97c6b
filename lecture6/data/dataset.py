"""A training and a test set in memory, and the sets that are made of another one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lecture6 import checks


@dataclass(frozen=True, repr=False, eq=False)
class Dataset:
    """A training and a test set in memory.

    ``x_train`` and ``x_test`` are float32, ``(n, *input_shape)``; images are (n, C, H, W) in
    [0, 1]. ``y_train`` and ``y_test`` are int64 indices into ``classes``, (n,). ``checksum`` is the
    SHA-256 of what was read, before any split. Raises ``ValueError`` for what is no set of labelled
    samples: :func:`lecture6.checks.samples`, by which arrays become tensors.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: tuple[str, ...]
    checksum: str

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            names = f"x_{part}", f"y_{part}"
            found = checks.samples(*(getattr(self, name) for name in names), name=part)
            for name, values in zip(names, found, strict=True):
                object.__setattr__(self, name, values)
        checks.instance((tuple, list), self.classes, "classes to be a tuple of names")

    @property
    def n_train(self) -> int:
        """Training samples."""
        return len(self.x_train)

    @property
    def n_test(self) -> int:
        """Test samples."""
        return len(self.x_test)

    @property
    def n_classes(self) -> int:
        """Classes, also those that have no sample."""
        return len(self.classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input, without the batch dimension."""
        return tuple(self.x_train.shape[1:])

    def __repr__(self) -> str:
        sizes = f"{self.n_train:,} train + {self.n_test:,} test, {self.n_classes:,} classes"
        return f"<Dataset {self.name}: {sizes}, input {'×'.join(map(str, self.input_shape))}>"

    def subset(self, n_train: int, n_test: int | None = None, *, seed: int = 0) -> Dataset:
        """A random part, the same for the same ``seed``; ``n_test=None`` keeps the whole test set.

        Raises ``ValueError`` when more samples are asked for than there are, or fewer than one.
        """
        n_train = checks.whole(f"n_train of {self.name}", n_train, least=1, most=self.n_train)
        n_test = self.n_test if n_test is None else n_test
        n_test = checks.whole(f"n_test of {self.name}", n_test, least=1, most=self.n_test)
        generator = torch.Generator().manual_seed(checks.seed(seed))
        parts: dict[str, Any] = {}
        for part, n in (("train", n_train), ("test", n_test)):
            x, y = (getattr(self, f"{xy}_{part}") for xy in "xy")
            kept = torch.randperm(len(x), generator=generator)[:n]
            parts |= {f"x_{part}": x[kept], f"y_{part}": y[kept]}
        return replace(self, **parts)

    def centred(self) -> Dataset:
        """A copy less the mean input of the training set."""
        mean = self.x_train.mean(0)
        return replace(self, x_train=self.x_train - mean, x_test=self.x_test - mean)

    def with_random_labels(self, fraction: float = 1.0, *, seed: int = 0) -> Dataset:
        """A copy in which ``fraction`` of the training labels are drawn anew, uniformly.

        As in Zhang et al. (1611.03530): a redrawn label may be the true one again. The images, and
        the test set, stay as they are. Raises ``ValueError`` for a fraction outside [0, 1].
        """
        fraction = checks.real("fraction", fraction, least=0, most=1)
        n, generator = self.n_train, torch.Generator().manual_seed(checks.seed(seed))
        redrawn = torch.randperm(n, generator=generator)[: round(fraction * n)]
        y = self.y_train.clone()
        y[redrawn] = torch.randint(self.n_classes, (len(redrawn),), generator=generator)
        return replace(self, y_train=y)

    def padded(self) -> Dataset:
        """The images, 1×28×28 say, in a black frame of 32 × 32, three times over: inputs of C1.

        Raises ``ValueError`` for inputs that are not images of one channel, and for larger ones.
        """
        if len(self.input_shape) != 3 or self.input_shape[0] != 1 or max(self.input_shape) > 32:
            raise ValueError(
                "padded() needs images of the shape (1, H, W), with at most 32×32 pixels; "
                f"{self.name} has {self.input_shape}"
            )
        _, h, w = self.input_shape
        top, left = (32 - h) // 2, (32 - w) // 2
        frame = (left, 32 - w - left, top, 32 - h - top)
        x, x_test = (pad(x, frame).tile(3, 1, 1) for x in (self.x_train, self.x_test))
        return replace(self, x_train=x, x_test=x_test)
