"""A training and a test set in memory, and the sets that are made of another one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from lecture6 import checks


@dataclass(frozen=True, repr=False, eq=False)
class Dataset:
    """A training and a test set in memory.

    ``x_train`` and ``x_test`` are float32, ``(n, *input_shape)``; images are (n, C, H, W) in
    [0, 1]. ``y_train`` and ``y_test`` are int64 indices into ``classes``, (n,). ``source`` says
    whose they are, under which licence, and what was done to them; ``checksum`` is the SHA-256 of
    what was read, before any split. Arrays become tensors, and labels of any integers int64.
    Raises ``ValueError`` for what is no array, and for samples without a label.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: tuple[str, ...]
    source: str
    checksum: str

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            for name in (f"x_{part}", f"y_{part}"):
                object.__setattr__(self, name, _tensor(name, getattr(self, name)))
            n, labels = (len(getattr(self, f"{xy}_{part}")) for xy in "xy")
            if n != labels:
                raise ValueError(f"x_{part} has {n:,} samples, y_{part} {labels:,}: give as many")

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
        source = f"{self.source}; less the mean input of the training set"
        return replace(self, x_train=self.x_train - mean, x_test=self.x_test - mean, source=source)

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
        source = f"{self.source}; {fraction:.0%} of the training labels drawn at random"
        return replace(self, y_train=y, source=source)

    def padded(self, size: int = 32, channels: int = 3) -> Dataset:
        """The images in a black frame of ``size`` × ``size``, repeated to ``channels`` channels.

        It makes 1×28×28 digits fit a net for 3×32×32 images (C1). Raises ``ValueError`` for inputs
        that are not images or are larger, and for ``channels`` that are no multiple of theirs.
        """
        if len(self.input_shape) != 3:
            raise ValueError(f"padded() needs images (C, H, W); {self.name} has {self.input_shape}")
        c, h, w = self.input_shape
        size = checks.whole("size", size, least=max(h, w))
        channels = checks.whole("channels", channels, least=1)
        if channels % c:
            raise ValueError(f"channels must be a multiple of the images' {c}, got {channels}")
        top, left = (size - h) // 2, (size - w) // 2
        frame = (left, size - w - left, top, size - h - top)
        x, x_test = (pad(x, frame).tile(channels // c, 1, 1) for x in (self.x_train, self.x_test))
        source = f"{self.source}; zero-padded to {channels}×{size}×{size}"
        return replace(self, x_train=x, x_test=x_test, source=source)


def _tensor(name: str, values: Any) -> Tensor:
    """Samples, or their labels, as a tensor."""
    try:
        if np.ma.is_masked(values):
            raise TypeError("some of them are masked")
        if not isinstance(values, Tensor):
            values = torch.as_tensor(np.require(values, None, "W"))
        len(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a tensor or an array of samples: {error}") from None
    whole = torch.can_cast(values.dtype, torch.int64) and values.dtype != torch.bool
    return values.to(torch.int64) if name.startswith("y") and whole else values
