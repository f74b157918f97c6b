"""The networks of the lecture: of Keskar et al. (arXiv:1609.04836), Smith & Le, and He et al.

Batch norm follows the authors' released code (Keras 1, ``mode=2``): every batch is normalised by
its own mean and variance, when training *and* when evaluating, and no running statistics are kept.
A landscape drawn with running statistics would show the loss of a network whose normalisation
belongs to other weights. ``batch_norm="running"`` gives PyTorch's usual behaviour instead; it is
the default of the residual networks, which are Goyal et al.'s (1706.02677).

Weights start from PyTorch's default (uniform) initialisation, those of the residual networks as
Goyal et al. say (§5.1), drawn from ``seed`` alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lecture6.checks import parameters

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
    return torch.cat([p.detach().reshape(-1) for p in parameters(model).values()])


def unflatten(w: Tensor, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """The parts of a vector w (n_params,), as views of these shapes, in their order."""
    parts = w.split([shape.numel() for shape in shapes.values()])
    return {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}


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


def vgg11(n_classes: int = 10, *, batch_norm: str = "batch", seed: int = 0) -> nn.Sequential:
    """VGG-11 for small images, with batch norm: eight 3×3 convolutions; 9,231,114 parameters.

    Input (batch, 3, 32, 32), output logits (batch, n_classes). Layers: Simonyan & Zisserman
    (1409.1556), Table 1, column A, with one dense layer in the place of three, since 1×1 pixel is
    left of 32×32.
    """
    with local_seed(seed):
        layers: list[nn.Module] = []
        n_in = 3
        for width, depth in ((64, 1), (128, 1), (256, 2), (512, 2), (512, 2)):
            for _ in range(depth):
                layers += _conv(n_in, width, 3, batch_norm)
                n_in = width
            layers.append(nn.MaxPool2d(2))
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, n_classes))


def mlp(
    n_inputs: int = 784,
    n_hidden: int | Sequence[int] = 800,
    n_classes: int = 10,
    *,
    bias: bool = True,
    seed: int = 0,
) -> nn.Sequential:
    """Hidden layers of ReLU units, no batch norm; one of 800 is the net of Smith & Le (1710.06451).

    ``n_hidden``: the width of the hidden layer, or of each of several. With one and without biases
    its function is unchanged by :func:`lecture6.curvature.rescale`.
    """
    widths = [n_inputs, *([n_hidden] if isinstance(n_hidden, int) else n_hidden)]
    with local_seed(seed):
        layers: list[nn.Module] = [nn.Flatten()]
        for n_in, n_out in pairwise(widths):
            layers += [nn.Linear(n_in, n_out, bias=bias), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], n_classes, bias=bias))


class _GhostBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm by groups of ``group`` successive samples, as that many workers would normalise.

    Goyal et al., §2.3: however large the mini-batch is, each worker normalises its own n = 32
    samples. Hoffer et al. (1705.08741) call it ghost batch norm. N samples make ceil(N / group)
    nearly equal groups, cut as ``torch.tensor_split`` cuts. The running statistics move once a
    batch, to the mean over the groups of what each would have made of them; ``momentum`` 0.1 is
    Goyal's 0.9. In eval mode they are used; a module without them (``track_running_stats=False``)
    goes on normalising by groups. Raises ValueError for a ``group`` below 1.
    """

    def __init__(
        self,
        num_features: int,
        group: int = 32,
        *,
        momentum: float = 0.1,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(num_features, momentum=momentum, track_running_stats=track_running_stats)
        if group < 1:
            raise ValueError(f"group must be at least 1 sample, got {group}")
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        if self.track_running_stats and not self.training:
            return super().forward(x)
        # A CPU takes the groups one by one in a third of the time, without copies; on a GPU each of
        # them would cost a kernel.
        y, statistics = self._by_groups(x, math.ceil(len(x) / self.group), stacked=x.is_cuda)
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.copy_(torch.cat([mean for mean, _ in statistics]).mean(0))
                self.running_var.copy_(torch.cat([var for _, var in statistics]).mean(0))
        return y

    def _by_groups(
        self, x: Tensor, n_groups: int, *, stacked: bool
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """``x`` normalised, and what each group makes of the running statistics, (groups, C).

        ``stacked``: groups of the same size are normalised together, as channels of their own.
        """
        size, n_larger = divmod(len(x), n_groups)
        if stacked:
            counts = [n_larger, n_groups - n_larger]
            blocks = x.split([n_larger * (size + 1), (n_groups - n_larger) * size])
        else:
            counts, blocks = [1] * n_groups, x.tensor_split(n_groups)
        outputs, statistics = [], []
        for block, g in zip(blocks, counts, strict=True):
            if g == 0:
                continue
            running = None, None
            if self.track_running_stats:
                running = self.running_mean.repeat(g), self.running_var.repeat(g)
                statistics.append(tuple(r.view(g, -1) for r in running))
            z = block.unflatten(0, (g, -1)).transpose(0, 1).flatten(1, 2)  # (size, g·C, …)
            scale, shift = self.weight.repeat(g), self.bias.repeat(g)
            z = F.batch_norm(z, *running, scale, shift, True, self.momentum, self.eps)
            outputs.append(z.unflatten(1, (g, -1)).transpose(0, 1).flatten(0, 1))
        return torch.cat(outputs), statistics


class GhostBatchNorm1d(_GhostBatchNorm, nn.BatchNorm1d):
    __doc__ = _GhostBatchNorm.__doc__


class GhostBatchNorm2d(_GhostBatchNorm, nn.BatchNorm2d):
    __doc__ = _GhostBatchNorm.__doc__


class ResidualBlock(nn.Module):
    """relu(x + F(x)) with F of two 3×3 convolutions; the first has the block's ``stride``.

    The shortcut has no parameters (He et al.'s option A): it leaves out every other pixel and pads
    the channels with zeros.
    """

    def __init__(self, n_in: int, n_out: int, stride: int, group: int | None, batch_norm: str):
        super().__init__()
        self.residual = nn.Sequential(
            *_conv3(n_in, n_out, stride, group, batch_norm),
            nn.ReLU(),
            *_conv3(n_out, n_out, 1, group, batch_norm),
        )
        self.stride, self.n_new = stride, n_out - n_in

    def forward(self, x: Tensor) -> Tensor:
        """The output, (n, n_out, H/stride, W/stride), of (n, n_in, H, W)."""
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return F.relu(F.pad(shortcut, (0, 0, 0, 0, 0, self.n_new)) + self.residual(x))


def _conv3(
    n_in: int, n_out: int, stride: int, group: int | None, batch_norm: str
) -> list[nn.Module]:
    """A 3×3 convolution with He et al.'s initial weights, without bias, and its batch norm."""
    conv = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    norm = _norm(nn.BatchNorm2d, n_out, batch_norm)
    if group is not None:
        norm = GhostBatchNorm2d(n_out, group, track_running_stats=norm.track_running_stats)
    return [conv, norm]


def _small_head(layer: nn.Linear) -> nn.Linear:
    """Weights from N(0, 0.01²), no bias at first: Goyal et al., §5.1."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def resnet(
    depth: int = 20,
    n_classes: int = 10,
    *,
    in_channels: int = 3,
    width: int = 16,
    group: int | None = 32,
    zero_init: bool = True,
    batch_norm: str = "running",
    seed: int = 0,
) -> nn.Sequential:
    """He et al.'s ResNet for 32×32 images; 269,722 parameters at depth 20 and 10 classes.

    Input (batch, in_channels, H, W), output logits (batch, n_classes). A 3×3 convolution, three
    stages of m = (depth − 2) / 6 blocks with ``width``, 2 and 4 times as many channels, the mean
    over the pixels, and a linear layer. Shortcuts are those without parameters (option A), as in
    He et al.'s nets for CIFAR-10 (1512.03385, §4.2).

    ``group``: samples that batch norm normalises together, the n of a worker; None: the whole
    batch. ``zero_init``: the last batch norm of each block starts with the gain 0, so that the
    block is at first its shortcut (Goyal et al., §5.1). Initial weights: §5.1, too.

    Raises ValueError for a depth that is not 6m + 2, and for an unknown ``batch_norm``.
    """
    m, rest = divmod(depth - 2, 6)
    if rest or m < 1:
        raise ValueError(f"depth must be 6m + 2 (8, 14, 20, 32, 44, 56, 110), got {depth}")
    with local_seed(seed):
        layers = [*_conv3(in_channels, width, 1, group, batch_norm), nn.ReLU()]
        n_in = width
        for stage in range(3):
            for i in range(m):
                n_out, stride = width * 2**stage, 2 if stage and not i else 1
                block = ResidualBlock(n_in, n_out, stride, group, batch_norm)
                if zero_init:
                    nn.init.zeros_(block.residual[-1].weight)
                layers.append(block)
                n_in = n_out
        head = _small_head(nn.Linear(n_in, n_classes))
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def resnet50(n_classes: int = 1000, *, seed: int = 0) -> nn.Module:
    """torchvision's ResNet-50 with Goyal et al.'s initial weights (§5.1); 25,557,032 parameters.

    Input (batch, 3, 224, 224), output logits (batch, n_classes). As in Goyal et al. (§5.1), a block
    that halves the image does so in its 3×3 convolution, and starts with the gain 0.
    """
    import torchvision  # takes a second

    with local_seed(seed):
        model = torchvision.models.resnet50(num_classes=n_classes, zero_init_residual=True)
        _small_head(model.fc)
        return model


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
