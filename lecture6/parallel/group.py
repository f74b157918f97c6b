"""The workers that train together, as one of them sees it."""

import copy
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lecture6.team import Team

ONE_PROCESS = "LECTURE6_ONE_PROCESS"  #: environment variable: start no workers


class Group(Team):
    """A team of k processes, of which this worker is one; see there for what the methods do."""

    def wrap(self, model: nn.Module, x: Tensor) -> DistributedDataParallel:
        """``model`` with rank 0's weights, whose backward() averages gradients over the workers.

        Buffers stay each worker's own, as does what batch norm normalises by.
        """
        trial = copy.deepcopy(model)
        with torch.enable_grad(), torch.random.fork_rng():
            trial(x).sum().backward()
        unused = any(p.requires_grad and p.grad is None for p in trial.parameters())
        known = signature(DistributedDataParallel).parameters  # torch 2.15 renames one
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {sync: False, "find_unused_parameters": unused}
        return DistributedDataParallel(model, gradient_as_bucket_view=True, **options)

    def exchange(self, net: nn.Module, last: bool) -> AbstractContextManager:
        return nullcontext() if last else cast(DistributedDataParallel, net).no_sync()

    def sum(self, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    def mean_buffers(self, model: nn.Module) -> None:
        # linear: the mean of running averages is the running average of the mean statistics
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(self.sum(buffer) / self.size)


def join(rank: int, size: int, local_rank: int, local_size: int, **rendezvous: Any) -> Group:
    """Meet the other workers; ``rendezvous`` says where, as ``init_process_group`` takes it."""
    gpus = torch.cuda.device_count() >= local_size
    if gpus:
        torch.cuda.set_device(local_rank)
    # gloo beside nccl: what is summed on the CPU stays there
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=size, **rendezvous)
    return Group(torch.device("cuda", local_rank) if gpus else torch.device("cpu"), rank, size)


@contextmanager
def from_torchrun() -> Iterator[Group]:
    """The group of a script that torchrun started; RuntimeError when it did not."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if missing := [name for name in names if name not in os.environ]:
        raise RuntimeError(
            f"torchrun sets {', '.join(missing)}, and here nothing did: start the script with "
            "'torchrun --standalone --nproc-per-node 2 script.py', or call train_parallel"
        )
    group = join(*(int(os.environ[name]) for name in names))
    try:
        yield group
    finally:
        dist.destroy_process_group()


def unavailable() -> str | None:
    """Why several processes cannot train together here; None if they can."""
    if os.environ.get(ONE_PROCESS):
        return f"the environment variable {ONE_PROCESS} is set"
    if sys.platform in ("win32", "emscripten"):
        return f"workers cannot be started on {sys.platform}"
    if not (dist.is_available() and dist.is_gloo_available()):
        return "this build of torch has no torch.distributed with gloo"
    return None
