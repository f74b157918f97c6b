"""Synchronous data-parallel SGD: k workers, n samples each, one update of equation (5).

Each worker has a copy of the network and takes its n samples of every mini-batch of kn. PyTorch's
DistributedDataParallel averages the gradients, so that all copies make the same step of
:func:`lecture6.train.train`. A worker is a process, with a GPU of its own where there are enough
(nccl), else on the CPU (gloo), started here or by torchrun.
"""

from lecture6.parallel.group import ONE_PROCESS, Group, from_torchrun, unavailable
from lecture6.parallel.launch import WorkerError, end_with, launch, train_parallel
