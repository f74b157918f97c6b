"""The machine that computes: which device, what arithmetic it has, how it behaves in training."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def choose(device: str | torch.device | None = None) -> torch.device:
    """``device``; by default the GPU when there is one. ValueError for one that is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()  # which "meta" has not
    except (RuntimeError, AssertionError, TypeError) as error:  # a build without CUDA asserts
        raise ValueError(
            f"device {device!r} cannot be used here ({str(error).splitlines()[0]}); leave it out, "
            "or take 'cpu'"
        ) from None
    return chosen


def has_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 arithmetic of its own."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextmanager
def for_training() -> Iterator[None]:
    """A context in which gradients are recorded, and cuDNN repeats itself bit for bit.

    Convolutions in float32 have all of its 24 bits: torch's default on a GPU is TF32, which has 11.
    """
    cudnn = torch.backends.cudnn.flags(deterministic=True, benchmark=False, allow_tf32=False)
    with torch.inference_mode(False), torch.enable_grad(), cudnn:
        yield


@contextmanager
def kept_memory() -> Iterator[None]:
    """A context in which freed blocks stay in the process (glibc; elsewhere it does nothing).

    glibc hands large blocks back to the kernel when they are freed, and every step of a
    convolutional net gets them again page by page: a third of C1's time at batch size 256.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        yield
        return
    trim_threshold, mmap_max = -1, -4  # from malloc.h
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(mmap_max, 65536)  # the defaults
        libc.mallopt(trim_threshold, 128 * 1024)
        libc.malloc_trim(0)
