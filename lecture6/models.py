"""The networks of the lecture: those of Keskar et al. (arXiv:1609.04836) and of Smith & Le.

Batch norm follows the authors' released code (Keras 1, ``mode=2``): every batch is normalised by
its own mean and variance, when training *and* when evaluating, and no running statistics are kept.
A landscape drawn with running statistics would show the loss of a network whose normalisation
belongs to other weights. ``batch_norm="running"`` gives PyTorch's usual behaviour instead.

Weights start from PyTorch's default (uniform) initialisation, drawn from ``seed`` alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pandas as pd
import torch
from torch import Tensor, nn

N_HIDDEN = 512  # units of every hidden layer of F1 and F2: Keskar et al., Appendix B


@contextmanager
def local_seed(seed: int) -> Iterator[None]:
    """Seed torch's default generators inside the block and restore the caller's state after it.

    Initialisation and dropout draw from the default generator; this keeps them reproducible
    without touching global state.
    """
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(seed)
        yield


def flat_parameters(model: nn.Module) -> Tensor:
    """A detached copy of all parameters as one vector w of shape (n_params,)."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters (batch norm's scale and shift included)."""
    return sum(p.numel() for p in model.parameters())


def _norm(kind: type[nn.Module], width: int, batch_norm: str) -> nn.Module:
    if batch_norm not in ("batch", "running"):
        raise ValueError(f"batch_norm must be 'batch' or 'running', got {batch_norm!r}")
    return kind(width, track_running_stats=batch_norm == "running")


def _dense(n_in: int, n_out: int, batch_norm: str, dropout: float = 0.0) -> list[nn.Module]:
    layers = [nn.Linear(n_in, n_out), _norm(nn.BatchNorm1d, n_out, batch_norm), nn.ReLU()]
    return [*layers, nn.Dropout(dropout)] if dropout else layers


def _conv(n_in: int, n_out: int, size: int, batch_norm: str, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(n_in, n_out, size, stride=stride, padding=size // 2),
        _norm(nn.BatchNorm2d, n_out, batch_norm),
        nn.ReLU(),
    ]


def _fully_connected(
    n_inputs: int, n_layers: int, n_classes: int, batch_norm: str, seed: int
) -> nn.Sequential:
    with local_seed(seed):
        layers: list[nn.Module] = [nn.Flatten()]
        for n_in in [n_inputs] + [N_HIDDEN] * (n_layers - 1):
            layers += _dense(n_in, N_HIDDEN, batch_norm)
        return nn.Sequential(*layers, nn.Linear(N_HIDDEN, n_classes))


def f1(
    n_inputs: int = 784, n_classes: int = 10, *, batch_norm: str = "batch", seed: int = 0
) -> nn.Sequential:
    """F1: five hidden layers of 512 (batch norm, ReLU); 1,462,794 parameters for MNIST.

    Input (batch, ...) with ``n_inputs`` values a sample, output logits (batch, n_classes).
    Source: Keskar et al., Table 1 and Appendix B.
    """
    return _fully_connected(n_inputs, 5, n_classes, batch_norm, seed)


def f2(
    n_inputs: int = 360, n_classes: int = 1973, *, batch_norm: str = "batch", seed: int = 0
) -> nn.Sequential:
    """F2: seven hidden layers of 512 (batch norm, ReLU); 2,780,085 parameters for TIMIT.

    Input (batch, 360), output logits (batch, 1973). Source: Keskar et al., Appendix B; Figure 2.
    """
    return _fully_connected(n_inputs, 7, n_classes, batch_norm, seed)


def c1(
    n_classes: int = 10, *, stride: int = 1, batch_norm: str = "batch", seed: int = 0
) -> nn.Sequential:
    """C1: two 5×5 convolutions of 64, dense 384 and 192 with dropout 0.5; AlexNet-like.

    Input (batch, 3, 32, 32), output logits (batch, n_classes).

    ``stride=1`` is the authors' released code: 'same' convolutions, each followed by a 3×3
    max-pool of stride 2; 1,757,834 parameters. ``stride=2`` is the
    text of Appendix B and of the lecture's Remark 1 read literally, "64 5×5 filters with stride 2
    followed by max pooling": the feature map shrinks to 2×2 and 283,274 parameters remain.

    Raises ValueError for another stride.
    """
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 (released code) or 2 (paper's text), got {stride!r}")
    side = 32 // (2 * stride) ** 2
    with local_seed(seed):
        return nn.Sequential(
            *_conv(3, 64, 5, batch_norm, stride),
            nn.MaxPool2d(3, 2, padding=1),
            *_conv(64, 64, 5, batch_norm, stride),
            nn.MaxPool2d(3, 2, padding=1),
            nn.Flatten(),
            *_dense(64 * side**2, 384, batch_norm, dropout=0.5),
            *_dense(384, 192, batch_norm, dropout=0.5),
            nn.Linear(192, n_classes),
        )


def c2(n_classes: int = 10, *, batch_norm: str = "batch", seed: int = 0) -> nn.Sequential:
    """C2: VGG-like, thirteen 3×3 convolutions and a dense layer of 512; 14,991,946 parameters.

    Input (batch, 3, 32, 32), output logits (batch, n_classes). Dropout 0.3 between the first two
    convolutions, 0.4 between later ones of a block, 0.5 around the dense layer: the released code.
    """
    with local_seed(seed):
        layers: list[nn.Module] = []
        n_in = 3
        for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for i in range(depth):
                layers += _conv(n_in, width, 3, batch_norm)
                n_in = width
                if i < depth - 1:
                    layers.append(nn.Dropout(0.3 if width == 64 else 0.4))
            layers.append(nn.MaxPool2d(2))
        layers += [nn.Flatten(), nn.Dropout(0.5), *_dense(512, 512, batch_norm, dropout=0.5)]
        return nn.Sequential(*layers, nn.Linear(512, n_classes))


def mlp(
    n_inputs: int = 784,
    n_hidden: int = 800,
    n_classes: int = 10,
    *,
    bias: bool = True,
    seed: int = 0,
) -> nn.Sequential:
    """One hidden layer of 800 ReLU units, no batch norm: the net of Smith & Le (1710.06451).

    Without biases its function is unchanged by :func:`lecture6.curvature.rescale`.
    """
    with local_seed(seed):
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(n_inputs, n_hidden, bias=bias),
            nn.ReLU(),
            nn.Linear(n_hidden, n_classes, bias=bias),
        )


def layer_table(model: nn.Sequential, input_shape: tuple[int, ...]) -> pd.DataFrame:
    """What each layer does to one sample: columns layer, output (shape), parameters.

    ``input_shape`` is the shape of a sample without the batch dimension. The table is read off a
    forward pass through the module itself, so a schematic drawn from it cannot disagree with it.
    """
    model = copy.deepcopy(model).eval()  # neither running statistics nor generators move
    x = torch.zeros(2, *input_shape)
    rows = [("Input", input_shape, 0)]
    with torch.no_grad():
        for layer in model:
            x = layer(x)
            rows.append((type(layer).__name__, tuple(x.shape[1:]), count_parameters(layer)))
    return pd.DataFrame(rows, columns=["layer", "output", "parameters"])
