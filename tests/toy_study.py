"""A study of no content whose trials say when they run: for the tests of the runner.

Run by other processes too, which is why it is a module of its own.
"""

import os
import signal
import time
from pathlib import Path

import torch

from lecture6.models import local_seed
from lecture6.studies import Study

FACTOR = 10


def scaled(x):
    return FACTOR * x


def trial(*, i, log, seconds=0.0, fail_until=0, kill_until=0, interrupt_until=0):
    """Append a line to ``log``, then fail, kill the process, or return two rows."""
    with open(log, "a") as file:
        file.write(f"{i} {os.getpid()}\n")
    runs = sum(line.split()[0] == str(i) for line in Path(log).read_text().splitlines())
    if runs <= kill_until:
        os.kill(os.getpid(), signal.SIGKILL)
    if runs <= interrupt_until:
        raise KeyboardInterrupt
    if runs <= fail_until:
        raise ArithmeticError("this trial fails at first")
    time.sleep(seconds)
    return {"runs": [{"name": f"row {k}", "value": scaled(i + k / 3)} for k in (0, 1)]}


def study(log, n=6, **more):
    grid = [{"i": i, "sizes": [i, 2], "seed": i % 2, "log": str(log), **more} for i in range(n)]
    return Study("toy", "nothing", _without_sizes, {"smoke": grid})


def _without_sizes(*, sizes, seed, **parameters):
    return trial(**parameters)


def drawing(*, i):
    """Draw from torch's generator, which all threads of a process share."""
    with local_seed(i):
        time.sleep(0.05)
        return {"runs": [{"value": torch.rand(1).item()}]}


def answering(*, value):
    """Return what JSON has no number for."""
    values = {"nan": float("nan"), "tensor": torch.ones(1), "number": 1.0}
    return {"runs": [{"result": values[value]}]}


def shared(*, i, log, fail_on=None, workers=None, checkpoint=None):
    """Add up the ranks of the processes that share the trial; one of them may fail."""
    if workers is None:
        return {"runs": [{"ranks": 0, "size": 1}]}
    with open(f"{log}-{workers.rank}", "a") as file:
        file.write(f"{i}\n")
    if workers.rank == fail_on:
        raise ArithmeticError("this process fails")
    ranks = workers.sum(torch.tensor(workers.rank)).item()
    return {"runs": [{"ranks": ranks, "size": workers.size}]}


def resumed(*, i, checkpoint=None):
    """Fail at first, and then go on from what was kept."""
    if checkpoint is None or not checkpoint.exists():
        if checkpoint:
            checkpoint.write_text("kept")
        raise ArithmeticError(f"no checkpoint at {checkpoint and checkpoint.suffix}")
    return {"runs": [{"found": checkpoint.read_text()}]}
