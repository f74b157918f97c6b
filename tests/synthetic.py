"""A made data set for the tests: classes that are Gaussian clouds."""

import math

import torch

from lecture6.data import Dataset


def gaussian_classes(
    n_train=1000, n_test=500, *, shape=(20,), n_classes=10, separation=3.0, seed=0
):
    """Unit Gaussian noise around class means ``separation`` from the origin; inputs (n, *shape)."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(n_classes, math.prod(shape), generator=generator)
    means *= separation / means.norm(dim=1, keepdim=True)
    parts = []
    for n in (n_train, n_test):
        y = torch.randperm(n, generator=generator) % n_classes
        noise = torch.randn(n, math.prod(shape), generator=generator)
        parts += [(means[y] + noise).reshape(n, *shape), y]
    classes = tuple(map(str, range(n_classes)))
    return Dataset("gaussian_classes", *parts, classes, "0" * 64)
