"""The lab: networks that are trained and measured in the page. ``lab.js`` says what it can do."""

from __future__ import annotations

import base64
import json
import zlib

import numpy as np

from lecture6 import checks, data

PACKED = ("digits", "mnist14")


def packed(name: str) -> str:
    """A data set as text for a page: ``digits``, or ``mnist14``, a part of MNIST at 14 × 14 pixels.

    Base64 of a zlib stream: a line of JSON, the labels, and the pixels in row order, whole numbers
    from 0 to ``white``, a byte each; the training set comes first. ``digits`` is all of lecture6's,
    exactly; ``mnist14`` has 2,000 images to train and 500 to test on, each pixel the mean of four
    of ``mnist5k``, in 16 levels. Raises ValueError for other names.
    """
    checks.one_of("the data set of a page", name, PACKED)
    images, white = data.load("digits"), 16
    if name == "mnist14":
        images, white = data.load("mnist5k").subset(2000, 500), 15
    x = np.concatenate([images.x_train, images.x_test])[:, 0]
    if name == "mnist14":
        x = x.reshape(-1, 14, 2, 14, 2).mean((2, 4))
    y = np.concatenate([images.y_train, images.y_test])
    head = {"name": name, "inputs": x[0].size, "classes": images.n_classes, "white": white}
    head |= {"train": images.n_train, "test": images.n_test}
    pixels = np.rint(white * x).astype(np.uint8)
    parts = f"{json.dumps(head)}\n".encode() + y.astype(np.uint8).tobytes() + pixels.tobytes()
    return base64.b64encode(zlib.compress(parts, 9)).decode()
