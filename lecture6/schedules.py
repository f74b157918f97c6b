"""Learning rates: how they scale with the batch size, and how they change while training runs.

A schedule is a function of the epoch, a fraction, that gives the factor on the learning rate.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np

from lecture6.checks import one_of, real

Schedule = Callable[[float], float]  #: epoch (a fraction) -> factor on the learning rate


def step_decay(milestones: Iterable[float], factor: float = 0.1) -> Schedule:
    """Multiply the learning rate by ``factor`` at each of ``milestones``, in epochs."""
    milestones = [real("each of the milestones", milestone) for milestone in milestones]
    return lambda epoch: factor ** sum(epoch >= milestone for milestone in milestones)


def warmup(epochs: float, start: float = 0.1, *, kind: str = "gradual") -> Schedule:
    """Begin with the factor ``start`` and reach 1 after ``epochs`` (Goyal et al., §2.2).

    ``kind``: "gradual" rises linearly, "constant" stays at ``start`` and jumps. For a mini-batch k
    times as large with the rate scaled by k, ``start`` is 1/k. After 0 epochs it is 1 at once.
    Raises ValueError for another kind, and for negative numbers.
    """
    real("epochs", epochs, least=0)
    real("start", start, least=0)
    if one_of("kind", kind, ("gradual", "constant")) == "constant":
        return lambda epoch: start if epoch < epochs else 1.0
    return lambda epoch: start + (1.0 - start) * epoch / epochs if epoch < epochs else 1.0


def compose(*schedules: Schedule) -> Schedule:
    """The product of schedules: ``compose(warmup(5), step_decay((30, 60, 80)))``."""
    return lambda epoch: math.prod(schedule(epoch) for schedule in schedules)


def scale_lr(lr: float, k: float, *, rule: str = "linear") -> float:
    """The learning rate for mini-batches k times as large as those that ``lr`` is for.

    ``rule``: "linear", k·lr (Goyal et al., §2.1; the lecture prints kn, which is n/lr times as
    much); "sqrt", √k·lr (Hoffer et al.; Malladi et al., 2205.10287, for Adam); "none", lr. Raises
    ValueError for another rule, and for a k that is not positive.
    """
    lr, k = real("lr", lr, above=0), real("k", k, above=0)
    factors = {"linear": k, "sqrt": math.sqrt(k), "none": 1.0}
    return lr * factors[one_of("rule", rule, factors)]


def factors(schedule: Schedule | None, epochs: int, updates: int) -> np.ndarray:
    """The factor at each update of a run, (epochs, updates of one): 1 without a schedule.

    The schedule is called for these alone, before the run starts, since what it raises then costs
    nothing. Raises ValueError when it raises, or gives what is no factor: NaN, or less than 0.
    """
    if schedule is None:
        return np.broadcast_to(1.0, (epochs, updates))
    found = np.ones((epochs, updates))
    for place in np.ndindex(found.shape):
        epoch = place[0] + place[1] / updates
        try:
            found[place] = real("the factor", schedule(epoch), least=0, most=1e8)
        except Exception as error:
            raise ValueError(
                f"the schedule fails at epoch {epoch:g} of {epochs}, where it is asked for a "
                f"factor from 0 to 1e8: {type(error).__name__}: {error}"
            ) from error
    return found
