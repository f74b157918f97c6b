"""How good a simulation is: the order of a method, and whether two samples have one law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.spatial.distance import cdist

from lecture6.sde import Field, Noise, simulate

MOST = 4000  # points of `distance` in more than one dimension, whose squared number is in memory


@dataclass(frozen=True)
class Order:
    """The slope of log(error) against log(dt), and what it was fitted to."""

    slope: float
    stderr: float  #: by Monte Carlo; whether the line is straight, the errors show
    dts: np.ndarray  #: (k,)
    errors: np.ndarray  #: (k,)
    errors_stderr: np.ndarray  #: (k,)
    n_walkers: int


def convergence_order(
    drift: Field,
    diffusion: Noise,
    w0: ArrayLike,
    *,
    time: float,
    n_steps: Sequence[int],
    method: str,
    seed: int,
    test: Field | None = None,
    n_walkers: int | None = None,
    n_threads: int | None = None,
) -> Order:
    """The order of ``method`` at ``time``, from runs of so many steps as ``n_steps`` says.

    The strong error is ``E‖w − w*‖``; with ``test``, w → (n,), it is the weak one,
    ``|E test(w) − E test(w*)|``.
    w* follows the same Brownian path by "heun" or "milstein", in steps of a sixteenth of the
    shortest. The standard error knows that all errors come from the same walkers.

    Raises ValueError where 16 max(n_steps) is no multiple of all, and for errors that are lost in
    Monte-Carlo noise; the rest is as in :func:`lecture6.sde.simulate`.
    """
    counts, finest = np.array(n_steps), 16 * max(n_steps)
    if len(counts) < 2 or (counts < 1).any() or (finest % counts).any():
        raise ValueError(
            f"n_steps must be two or more numbers that divide 16 times the largest, got {n_steps}"
        )

    def run(method: str, n: int) -> np.ndarray:
        options = {"seed": seed, "n_walkers": n_walkers, "n_threads": n_threads}
        options |= {"dt": time / n, "n_steps": n, "method": method, "refine": finest // n}
        return simulate(drift, diffusion, w0, **options).final

    exact = run("milstein" if callable(diffusion) else "heun", finest)

    def error(w: np.ndarray) -> np.ndarray:
        return np.linalg.norm(w - exact, axis=1) if test is None else test(w) - test(exact)

    each = np.array([error(run(method, int(n))) for n in counts])  # (k, n_walkers)
    means, root = each.mean(axis=1), math.sqrt(each.shape[1])
    stderrs = each.std(axis=1) / root
    if not (np.abs(means) > 3 * stderrs).all():
        raise ValueError(
            f"the errors {means} ± {stderrs} are lost in Monte-Carlo noise: take more than "
            f"{each.shape[1]} walkers, or longer steps"
        )
    x = np.log(time / counts)
    fit = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    return Order(
        slope=float(fit @ np.log(np.abs(means))),
        stderr=float((fit @ (each / means[:, None])).std() / root),
        dts=time / counts,
        errors=np.abs(means),
        errors_stderr=stderrs,
        n_walkers=each.shape[1],
    )


@dataclass(frozen=True)
class Distance:
    """How far two samples are from one another, and the p-value of their having one law."""

    value: float
    p_value: float
    statistic: str  #: "Kolmogorov–Smirnov", or "energy"


def distance(a: ArrayLike, b: ArrayLike, *, n_permutations: int = 999, seed: int = 0) -> Distance:
    """Compare two samples of independent points, (n, d) and (m, d), or (n,) and (m,).

    In one dimension by the statistic of Kolmogorov and Smirnov. In more by the energy distance,
    2 E‖A − B‖ − E‖A − A'‖ − E‖B − B'‖, which is 0 for equal laws only (Székely & Rizzo 2013), with
    the p-value of ``n_permutations`` of the points; the units of the coordinates matter.

    Raises ValueError for other shapes, points that are not finite, and more than 4,000 points in
    more than one dimension.
    """
    a, b = (np.asarray(x, dtype=float) for x in (a, b))
    a, b = (x[:, None] if x.ndim == 1 else x for x in (a, b))
    n, m = len(a), len(b)
    if a.ndim != 2 or a.shape[1:] != b.shape[1:] or min(n, m) < 2:
        raise ValueError(f"needs (n, d) and (m, d) with n, m ≥ 2, got {a.shape} and {b.shape}")
    both = np.concatenate([a, b])
    if not np.isfinite(both).all():
        raise ValueError("the points of both samples must be finite")
    if both.shape[1] == 1:
        found = stats.ks_2samp(a[:, 0], b[:, 0])
        return Distance(float(found.statistic), float(found.pvalue), "Kolmogorov–Smirnov")
    if n + m > MOST:
        raise ValueError(
            f"{n} + {m} points have too many distances to keep: take {MOST} points at most, for "
            "example every tenth of them"
        )
    weights = np.tile(np.repeat([1 / n, -1 / m], [n, m]), (n_permutations + 1, 1))
    np.random.default_rng(seed).permuted(weights[1:], axis=1, out=weights[1:])
    energies = -np.einsum("pi,pi->p", weights @ cdist(both, both), weights)
    # The first, which is not permuted, counts too
    p_value = (energies >= energies[0] - 1e-12 * abs(energies[0])).mean()
    return Distance(float(energies[0]), float(p_value), "energy")
