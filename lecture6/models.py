"""The networks of the lecture: of Keskar et al. (arXiv:1609.04836), Smith & Le, and He et al.

Batch norm follows the authors' released code (Keras 1, ``mode=2``): every batch is normalised by
its own mean and variance, when training *and* when evaluating. A landscape drawn with running
statistics would show the loss of a network whose normalisation belongs to other weights.
``batch_norm="running"`` gives PyTorch's usual behaviour instead, in F1 and C1; the residual
networks, which are Goyal et al.'s (1706.02677), have no other.

Initial weights are PyTorch's default, those of the residual networks Goyal et al.'s (§5.1), drawn
from ``seed`` alone. Every network raises ValueError, naming the argument, for sizes that are no
whole numbers above 0 and for other options that it does not have.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lecture6 import checks

N_HIDDEN = 512  # units of every hidden layer of F1 and F2: Keskar et al., Appendix B


@contextmanager
def local_seed(seed: int) -> Iterator[None]:
    """Seed torch's default generators, which initialisation and dropout draw from, in a block.

    The caller's state is restored after it.
    """
    seed = checks.seed(seed)
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(seed)
        yield


def flat_parameters(model: nn.Module) -> Tensor:
    """w: a detached copy of the model's parameters as one vector (n_params,), in their order.

    All real floating ones, those that are frozen (``requires_grad=False``) among them. Raises
    ValueError as :func:`lecture6.checks.parameters` does.
    """
    return torch.cat([p.detach().reshape(-1) for p in checks.parameters(model).values()])


def unflatten(w: Tensor, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """The parts of a vector w (n_params,), as views of these shapes, in their order."""
    parts = w.split([shape.numel() for shape in shapes.values()])
    return {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}


def count_parameters(model: nn.Module) -> int:
    """The length of :func:`flat_parameters`: frozen parameters count too, tied ones once."""
    return sum(p.numel() for p in checks.parameters(model).values())


def _size(name: str, value: int) -> int:
    return checks.whole(name, value, least=1)


def _normalised(layer: nn.Linear | nn.Conv2d, batch_norm: str) -> list[nn.Module]:
    """The layer, its batch norm and its ReLU units."""
    running = checks.one_of("batch_norm", batch_norm, ("batch", "running")) == "running"
    norm = nn.BatchNorm1d if isinstance(layer, nn.Linear) else nn.BatchNorm2d
    return [layer, norm(len(layer.weight), track_running_stats=running), nn.ReLU()]


def _f(n_layers: int, n_inputs: int, n_classes: int, batch_norm: str, seed: int) -> nn.Sequential:
    """F1 and F2, which differ in the number of hidden layers."""
    n_inputs, n_classes = _size("n_inputs", n_inputs), _size("n_classes", n_classes)
    with local_seed(seed):
        layers: list[nn.Module] = [nn.Flatten()]
        for n_in in [n_inputs] + [N_HIDDEN] * (n_layers - 1):
            layers += _normalised(nn.Linear(n_in, N_HIDDEN), batch_norm)
        return nn.Sequential(*layers, nn.Linear(N_HIDDEN, n_classes))


def f1(
    n_inputs: int = 784, n_classes: int = 10, *, batch_norm: str = "batch", seed: int = 0
) -> nn.Sequential:
    """F1: five hidden layers of 512 (batch norm, ReLU); 1,462,794 parameters for MNIST.

    Input (batch, ...) with ``n_inputs`` values a sample, output logits (batch, n_classes).
    Source: Keskar et al., Table 1 and Appendix B.
    """
    return _f(5, n_inputs, n_classes, batch_norm, seed)


def f2(n_inputs: int = 360, n_classes: int = 1973, *, seed: int = 0) -> nn.Sequential:
    """F2: seven hidden layers of 512 (batch norm, ReLU); 2,780,085 parameters for TIMIT.

    Input (batch, 360), output logits (batch, 1973). Source: Keskar et al., Appendix B; Figure 2.
    """
    return _f(7, n_inputs, n_classes, "batch", seed)


def c1(
    n_classes: int = 10, *, stride: int = 1, batch_norm: str = "batch", seed: int = 0
) -> nn.Sequential:
    """C1: two 5×5 convolutions of 64, dense 384 and 192 with dropout 0.5; AlexNet-like.

    Input (batch, 3, 32, 32), output logits (batch, n_classes). ``stride=1`` is the authors' code:
    'same' convolutions, each followed by a 3×3 max-pool of stride 2; 1,757,834 parameters.
    ``stride=2`` is the text of Appendix B and of the lecture's Remark 1, "64 5×5 filters with
    stride 2 followed by max pooling": the map shrinks to 2×2, and 283,274 parameters remain.
    """
    n_classes = _size("n_classes", n_classes)
    stride = checks.whole("stride", stride, least=1, most=2)
    side = 32 // (2 * stride) ** 2
    with local_seed(seed):
        return nn.Sequential(
            *_normalised(nn.Conv2d(3, 64, 5, stride, padding=2), batch_norm),
            nn.MaxPool2d(3, 2, padding=1),
            *_normalised(nn.Conv2d(64, 64, 5, stride, padding=2), batch_norm),
            nn.MaxPool2d(3, 2, padding=1),
            nn.Flatten(),
            *_normalised(nn.Linear(64 * side**2, 384), batch_norm),
            nn.Dropout(0.5),
            *_normalised(nn.Linear(384, 192), batch_norm),
            nn.Dropout(0.5),
            nn.Linear(192, n_classes),
        )


def vgg11(n_classes: int = 10, *, seed: int = 0) -> nn.Sequential:
    """VGG-11 for small images, with batch norm: eight 3×3 convolutions; 9,231,114 parameters.

    Input (batch, 3, 32, 32), output logits (batch, n_classes). Layers: Simonyan & Zisserman
    (1409.1556), Table 1, column A, with one dense layer, since 1×1 pixel is left, not three.
    """
    n_classes = _size("n_classes", n_classes)
    with local_seed(seed):
        layers: list[nn.Module] = []
        n_in = 3
        for width, depth in ((64, 1), (128, 1), (256, 2), (512, 2), (512, 2)):
            for _ in range(depth):
                layers += _normalised(nn.Conv2d(n_in, width, 3, padding=1), "batch")
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
    n_classes, widths = _size("n_classes", n_classes), [_size("n_inputs", n_inputs)]
    widths += [_size("n_hidden", width) for width in np.ravel(n_hidden).tolist()]
    checks.flag("bias", bias)
    with local_seed(seed):
        layers: list[nn.Module] = [nn.Flatten()]
        for n_in, n_out in pairwise(widths):
            layers += [nn.Linear(n_in, n_out, bias=bias), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], n_classes, bias=bias))


class ResidualBlock(nn.Module):
    """relu(x + F(x)) with F of two 3×3 convolutions; the first has the block's ``stride``.

    The shortcut has no parameters (He et al.'s option A): it leaves out every other pixel and pads
    the channels with zeros. The last gain is 0 at first (Goyal et al., §5.1).
    """

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        first, last = _conv3(n_in, n_out, stride), _conv3(n_out, n_out, 1)
        nn.init.zeros_(last[1].weight)
        self.residual = nn.Sequential(*first, nn.ReLU(), *last)
        self.stride, self.n_new = stride, n_out - n_in

    def forward(self, x: Tensor) -> Tensor:
        """The output, (n, n_out, H/stride, W/stride), of (n, n_in, H, W)."""
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return F.relu(F.pad(shortcut, (0, 0, 0, 0, 0, self.n_new)) + self.residual(x))


def _conv3(n_in: int, n_out: int, stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A 3×3 convolution with He et al.'s initial weights, without bias, and its batch norm."""
    conv = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(n_out)


def _small_head(layer: nn.Linear) -> nn.Linear:
    """Weights from N(0, 0.01²), no bias at first: Goyal et al., §5.1."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def resnet(
    depth: int = 20, n_classes: int = 10, *, in_channels: int = 3, width: int = 16, seed: int = 0
) -> nn.Sequential:
    """He et al.'s ResNet for 32×32 images; 269,722 parameters at depth 20 and 10 classes.

    Input (batch, in_channels, H, W), output logits (batch, n_classes). A 3×3 convolution, three
    stages of m = (depth − 2) / 6 blocks with 1, 2 and 4 times ``width`` channels, the mean over the
    pixels and a linear layer (1512.03385, §4.2). Where each n samples are to be normalised by
    themselves, as by Goyal's workers (§2.3; "ghost batch norm", Hoffer et al., 1705.08741),
    :func:`lecture6.train.train` takes ``micro_batch=n``.

    Raises ValueError for a depth that is not 6m + 2.
    """
    n_classes, n_in = _size("n_classes", n_classes), _size("in_channels", in_channels)
    width = _size("width", width)
    m, rest = divmod(checks.whole("depth", depth) - 2, 6)
    if rest or m < 1:
        raise ValueError(f"depth must be 6m + 2 (8, 14, 20, 32, 44, 56, 110), got {depth}")
    with local_seed(seed):
        layers: list[nn.Module] = [*_conv3(n_in, width, 1), nn.ReLU()]
        n_in = width
        for n_out in (width, 2 * width, 4 * width):
            for _ in range(m):  # where the channels double, the image is halved
                layers.append(ResidualBlock(n_in, n_out, stride=n_out // n_in))
                n_in = n_out
        head = _small_head(nn.Linear(n_in, n_classes))
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def resnet50(n_classes: int = 1000, *, seed: int = 0) -> nn.Module:
    """torchvision's ResNet-50 with Goyal et al.'s initial weights (§5.1); 25,557,032 parameters.

    Input (batch, 3, 224, 224), output logits (batch, n_classes). As in Goyal et al. (§5.1), a block
    that halves the image does so in its 3×3 convolution, and starts with the gain 0.
    """
    import torchvision  # takes a second

    n_classes = _size("n_classes", n_classes)
    with local_seed(seed):
        model = torchvision.models.resnet50(num_classes=n_classes, zero_init_residual=True)
        _small_head(model.fc)
        return model
