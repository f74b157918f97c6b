"""Loss and accuracy on a whole set, in batches that each are a fair sample of it."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lecture6 import checks
from lecture6.data import Dataset
from lecture6.team import Team

# Samples evaluated at a time. It matters for a net with batch norm: these are the samples that are
# normalised together. Keskar's released code takes 5,000; 1,000 keeps C1's gradients below 4 GB.
EVALUATION_BATCH = 1000

Batches = list[tuple[Tensor, Tensor]]  #: inputs and labels, a pair a batch


def evaluation_batches(x: Tensor, y: Tensor, batch_size: int = EVALUATION_BATCH) -> Batches:
    """Cut the samples into n nearly equal batches of at most ``batch_size``: every n-th sample.

    Batch norm normalises the samples of a batch together, so a batch must be a fair sample of the
    set. A run of consecutive ones is not, where a set has an order (an utterance of TIMIT, a class
    of an image folder).
    """
    n = math.ceil(len(x) / batch_size)
    # convolutions run up to twice as fast on channels_last
    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    return [(x[i::n].contiguous(memory_format=layout), y[i::n]) for i in range(n)]


def prepared(model: nn.Module, data: Dataset) -> tuple[Tensor, Tensor, dict[str, Batches]]:
    """The training samples as ``model`` takes them, and both sets in batches, by their names.

    Raises ValueError for what is no Dataset, and as :func:`lecture6.checks.fits`.
    """
    checks.instance(Dataset, data, 'a Dataset, such as data.load("digits")')
    first = next(iter(checks.parameters(model).values()))
    found = {"train": (data.x_train, data.y_train), "test": (data.x_test, data.y_test)}
    for name, pair in found.items():
        x, y = checks.samples(*pair, name=name)
        checks.fits(model, x, y, name=name)
        found[name] = checks.cast(x, first), y.to(first.device)
    return *found["train"], {name: evaluation_batches(*pair) for name, pair in found.items()}


def evaluate(
    logits: Callable[[Tensor], Tensor], batches: Batches, team: Team | None = None
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (fraction), each batch weighted by its exact share.

    The workers of a ``team`` divide the batches among them, and each has the result.
    """
    n_samples = sum(len(y) for _, y in batches)
    team = team or Team(torch.device("cpu"))
    loss, correct = 0.0, 0.0
    with torch.no_grad():
        for x, y in batches[team.rank :: team.size]:
            z = logits(x)
            loss += len(y) / n_samples * F.cross_entropy(z, y).item()
            correct += (z.argmax(1) == y).sum().item()
    loss, correct = team.sum(torch.tensor([loss, correct], dtype=torch.float64)).tolist()
    return loss, correct / n_samples
