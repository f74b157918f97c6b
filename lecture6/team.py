"""Who makes a step: one process, or k workers that share each mini-batch."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Team:
    """One process, which has nobody to exchange anything with.

    :class:`lecture6.parallel.group.Group` is the team of k workers: it has the same methods, so
    that a loop is written once.
    """

    device: torch.device  #: of this worker
    rank: int = 0  #: of this worker, 0 to size − 1
    size: int = 1  #: k, the number of workers

    def wrap(self, model: nn.Module, x: Tensor) -> nn.Module:
        """``model`` as it is trained: its backward() leaves the mean gradient of all workers.

        It is tried on some inputs ``x``, to find parameters that it does not use.
        """
        return model

    def exchange(self, net: nn.Module, last: bool) -> AbstractContextManager:
        """A context in which backward() exchanges gradients, if this is the ``last`` part."""
        return nullcontext()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the workers, which each of them gets."""
        return tensor

    def rows(self, values: Tensor) -> Tensor:
        """(size, n): row r is the ``values`` (n,) of worker r; for all of them."""
        rows = torch.zeros(self.size, len(values), dtype=values.dtype)
        rows[self.rank] = values
        return self.sum(rows)

    def mean_buffers(self, model: nn.Module) -> None:
        """Average the floating-point buffers of ``model`` over the workers, in place."""
