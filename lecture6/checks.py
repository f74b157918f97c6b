"""What is accepted, checked once: numbers, seeds, samples, labels and weights.

Every function that takes one of these asks here. It gets the value in the one form that the code
behind it works with, or raises a ValueError that names the value and the remedy.
"""

import copy
import operator
import os
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: Of the outputs (n, ...) for n samples and their y: a tensor of one number, the mean over them.
Loss = Callable[[Tensor, Tensor], Tensor]

SEEDS = 2**63  # a seed is below: torch's generators take a larger one for another
_LARGEST = sys.float_info.max
_BOUNDS: dict[str, tuple[str, Callable]] = {
    "above": ("above", operator.gt),
    "least": ("at least", operator.ge),
    "below": ("below", operator.lt),
    "most": ("at most", operator.le),
}


def whole(name: str, value: Any, **bounds: int) -> int:
    """``value`` as an int: an integer, or a float without a fraction, of Python, NumPy or torch.

    ``bounds``: above, least, below, most. Raises ValueError for anything else, bool among it, and
    out of bounds.
    """
    value = _plain(value)
    if not _is_finite(value) or value != int(value):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return int(_within(name, int(value), [], bounds))


def real(name: str, value: Any, **bounds: float) -> float:
    """``value`` as a float: any finite real number; else as :func:`whole`."""
    value = _plain(value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return float(_within(name, value, ["a finite number"], bounds))


def _plain(value: Any) -> Any:
    """What NumPy and torch wrap, as Python's own."""
    wrapped = isinstance(value, np.ndarray | np.generic | Tensor) and value.ndim == 0
    return value.item() if wrapped else value


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _within(name: str, value: float, wanted: list[str], bounds: dict[str, Any]) -> float:
    wanted = wanted + [f"{_BOUNDS[kind][0]} {bound:,}" for kind, bound in bounds.items()]
    met = all(_BOUNDS[kind][1](value, bound) for kind, bound in bounds.items())
    if not (met and _is_finite(value)):
        shown = f"{value:,}" if isinstance(value, int) else f"{value:g}"
        raise ValueError(f"{name} must be {' and '.join(wanted)}, got {shown}")
    return value


def array(name: str, values: Any) -> np.ndarray:
    """``values``, a number, list, array or tensor, as a float64 array of finite real numbers.

    Raises ValueError for anything else, bool and complex among it.
    """
    try:
        found = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    except ValueError:  # rows of different lengths
        found = np.empty(0, dtype=object)
    if found.dtype.kind not in "iuf":
        raise ValueError(f"{name} must be real numbers, got {values!r}")
    found = found.astype(np.float64, copy=False)
    if not np.isfinite(found).all():
        raise ValueError(f"{name} must be finite, got {values!r}")
    return found


def one_of(name: str, value: Any, known: Iterable[str]) -> str:
    """``value``, which must be one of the words ``known``: else ValueError."""
    known = list(known)
    if not isinstance(value, str) or value not in known:
        words = ", ".join(map(repr, known[:-1]))
        raise ValueError(f"{name} must be {words} or {known[-1]!r}, got {value!r}")
    return str(value)


def flag(name: str, value: Any) -> bool:
    """``value``, True or False, of Python or NumPy: ValueError for anything else."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def instance(kind: type | tuple[type, ...], value: Any, expected: str) -> None:
    """Raise ValueError unless ``value`` is a ``kind``; ``expected`` says in words what would be."""
    if not isinstance(value, kind):
        got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise ValueError(f"expected {expected}, got {got}")


def seed(value: Any, name: str = "seed") -> int:
    """A seed: a whole number from 0 to 2⁶³ − 1, in any of the forms of :func:`whole`."""
    return whole(name, value, least=0, most=SEEDS - 1)


def path(name: str, value: Any) -> Path:
    """``value`` as a path: ValueError for what is none."""
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"{name} must be the path of a file or folder, got {value!r}")
    return Path(value)


def finite(name: str, values: Tensor, remedy: str) -> Tensor:
    """``values``; raises ValueError if one of them is not finite, saying which is the first."""
    # one pass without a copy: NaN and ∞ get into the sum, which may overflow without them, too
    total = values.sum().item()
    if total - total != 0:  # for NaN and ∞ alone
        bad = ~values.isfinite()
        if bad.any():
            where = tuple(bad.nonzero()[0].tolist())
            raise ValueError(
                f"{name} has {int(bad.sum()):,} of {values.numel():,} values that are not finite, "
                f"the first is {values[where].item()} at {list(where)}: {remedy}"
            )
    return values


def weights(w: Any, n_params: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``w`` as a detached vector (n_params,) of finite numbers of this dtype and device.

    Raises ValueError for what is no vector, another shape, and weights that are not finite.
    """
    w = _tensor(w, "a vector of weights, such as run.w")
    if w.is_complex():
        raise ValueError("expected a vector of real numbers, got complex ones: take its real part")
    w = w.to(device, dtype)
    if w.shape != (n_params,):
        raise ValueError(f"expected a vector of shape ({n_params},), got {tuple(w.shape)}")
    return finite("w", w, "training diverged, or the vector is of something else")


def samples(x: Any, y: Any, *, name: str = "", classes: bool = True) -> tuple[Tensor, Tensor]:
    """Inputs (n, ...) and labels (n,) of one set, as tensors; labels become int64.

    Inputs are tensors or NumPy arrays of real floating numbers, finite, or of integers (tokens).
    Labels are integers of any dtype: the numbers of classes, from 0; if not ``classes``, any finite
    numbers (n, ...), which stay as they are. Raises ValueError for anything else, for an empty set
    and for different lengths; ``name`` is said of the set ("test").
    """
    x_name, y_name = (f"{part}_{name}" if name else part for part in "xy")
    what = "as a tensor or array, unmasked"
    x, y = _tensor(x, f"{x_name} {what}"), _tensor(y, f"{y_name} {what}")
    if x.dim() == 0 or len(x) == 0:
        raise ValueError(f"{x_name} must hold at least one sample, got the shape {tuple(x.shape)}")
    if torch.sparse_coo in (x.layout, y.layout):
        raise ValueError(f"{x_name} and {y_name} must not be sparse: call to_dense()")
    if x.is_complex() or x.dtype == torch.bool:
        raise ValueError(f"{x_name} must be real floating numbers, or integers, got {x.dtype}")
    x = finite(x_name, x, "clean the data first")
    if not classes:
        if y.shape[:1] != x.shape[:1]:
            raise ValueError(f"{y_name} must have {len(x)} rows as {x_name}: got {tuple(y.shape)}")
        return x, finite(y_name, y, "clean the data first")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.shape != (len(x),):
        raise ValueError(
            f"{y_name} must hold the number of its class for each sample, integers of the shape "
            f"({len(x)},), got {y.dtype} of the shape {tuple(y.shape)}"
        )
    return x, y.to(torch.int64)


def _tensor(values: Any, expected: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    with suppress(TypeError, ValueError, RuntimeError):
        if not np.ma.is_masked(values):
            return torch.as_tensor(np.require(values, None, "W"))  # a copy, if it is read-only
    raise ValueError(f"expected {expected}, got {reprlib.repr(values)}")


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that w is made of, by name: the real floating ones, in the model's order.

    Others (indices, say) cannot be moved and stay as they are. Raises ValueError for what is no
    model, for a model without any, for complex parameters, and for lazy ones that no input has
    given a shape yet.
    """
    instance(nn.Module, model, "a model, such as models.f1() or run.model")
    found = dict(model.named_parameters())
    for name, p in found.items():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ValueError(f"{name} has no shape yet: pass a batch through the model first")
        if p.is_complex():
            raise ValueError(
                f"{name} is complex, and w is real: split it into its real and imaginary part"
            )
    found = {name: p for name, p in found.items() if p.is_floating_point()}
    if not found:
        raise ValueError("the model has no real floating parameters: there is nothing to train")
    return found


@contextmanager
def one_function(model: nn.Module) -> Iterator[None]:
    """A context in which ``model`` is one function, with its derivatives and without.

    Transformer layers have a shortcut without them, which leaves out padded tokens; the recurrent
    layers of cuDNN and what ``torch.compile`` makes have no second derivatives.
    """
    mha = torch.backends.mha
    with ExitStack() as stack:
        stack.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
        mha.set_fastpath_enabled(False)
        if any(isinstance(m, nn.RNNBase) for m in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def as_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """``model`` with its real floating parameters and buffers in ``dtype``, in place; no others."""
    return model._apply(lambda t: t.to(dtype) if t.is_floating_point() else t)


def cast(x: Tensor, like: Tensor) -> Tensor:
    """Inputs for weights such as ``like``: on their device, real floating ones in their dtype."""
    return x.to(like.device, like.dtype if x.is_floating_point() else x.dtype)


def fits(model: nn.Module, x: Tensor, y: Tensor, *, name: str = "", classes: bool = True) -> None:
    """Raise ValueError unless ``model`` makes logits (n, classes) of ``x``, and has the classes y.

    If not ``classes``, unless it makes one real floating tensor (n, ...). Two samples are tried, in
    a copy in eval mode, and without touching torch's generators.
    """
    x_name, y_name = (f"{part}_{name}" if name else part for part in "xy")
    first = next(iter(parameters(model).values()))
    with torch.no_grad(), torch.random.fork_rng(), one_function(model):
        try:
            z = copy.deepcopy(model).eval()(cast(x[[0, -1]], first))
        except Exception as error:  # whatever the user's forward raises
            raise ValueError(
                f"the network does not take {x_name}, {x.dtype} of the shape (n, "
                f"{', '.join(map(str, x.shape[1:]))}): {error}"
            ) from error
    one = isinstance(z, Tensor) and z.shape[:1] == (2,) and z.is_floating_point()
    if not one or (classes and (z.dim() != 2 or z.shape[1] < 2)):
        got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        wanted = "logits of the shape (n, classes), with 2 classes or more"
        raise ValueError(
            f"the network must give {wanted if classes else 'one floating tensor (n, ...)'}, got "
            f"{got} for n = 2"
        )
    if not classes:
        return
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= z.shape[1]:
        raise ValueError(
            f"{y_name} must lie between 0 and {z.shape[1] - 1}, the network has {z.shape[1]} "
            f"outputs: got labels from {low} to {high}"
        )


def mean_over_samples(loss: Loss, z: Tensor, y: Tensor) -> None:
    """Raise ValueError unless ``loss(z, y)`` is the mean of the losses of single samples."""
    try:
        whole = loss(z, y).item()
        each = [loss(z[i : i + 1], y[i : i + 1]).item() for i in range(len(y))]
    except Exception as error:  # whatever the user's loss raises
        raise ValueError(
            f"the loss must make one number of outputs of the shape {tuple(z.shape)} and y of the "
            f"shape {tuple(y.shape)}, {y.dtype}: {error}"
        ) from error
    mean, size = np.mean(each), np.abs(each).mean()
    if not abs(whole - mean) <= max(1e-9, 1e3 * torch.finfo(z.dtype).eps) * size:
        raise ValueError(
            f"the loss must be a mean over samples: of {len(y)} of them it is {whole:.6g}, and the "
            f'mean of their losses {mean:.6g}. Usual causes: reduction="sum", class weights or '
            "ignore_index, which change the divisor, outputs (n, 1) beside y (n,), NaN"
        )
