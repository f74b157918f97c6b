"""Many walkers at once on a stochastic differential equation, and SGD as one of them.

::

    dw = f(w) dt + G(w) dW        (Itô)

SGD on a mean loss ℓ, w ← w − η (∇ℓ(w) + noise/√B), where the noise of one sample's gradient has
covariance C, is the Euler–Maruyama method with dt = η, f = −∇ℓ and G = √(η/B) C^½: equation (17)
of the lecture for mean losses. Where C = σ² I the temperature is T = η σ²/(2B), and the walkers
come to rest at exp(−ℓ(w)/T), equation (25), as η → 0 while η/B stays.

A field (a drift, a gradient, a diffusion) is a function of the walkers of a block, (n, d) → (n, d).
It is called from several threads and must not keep w.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from threading import Event
from typing import Any

import joblib
import numpy as np
import torch
from numpy.typing import ArrayLike

from lecture6 import checks
from lecture6.curvature import Estimate

BLOCK = 65536  # numbers, walkers × d, at most that a thread moves at once: they stay in its cache
DRAW = 1 << 19  # normals drawn at once; with less, threads wait for Python's lock, call by call
BOUND = 1e8  # a walker beyond it counts as lost

Field = Callable[[np.ndarray], np.ndarray]  #: of walkers: (n, d) to (n, d)
Noise = float | ArrayLike | Field  #: a number, (d,) or (d, d), or a field: the diagonal at w


@dataclass(frozen=True)
class _Rule:
    """w ← w + rate · drift + diffusion · Σ_j weights_j z_j, z_j normal, and what this is called."""

    drift: Field
    diffusion: Noise
    rate: float  #: dt, or −η where ``drift`` is a gradient
    weights: Sequence[float]
    momentum: float = 0.0
    names: tuple[str, str, str] = ("gradient", "noise", "lr")

    @property
    def fields(self) -> dict[str, Field]:
        pairs = zip(self.names, (self.drift, self.diffusion), strict=False)
        return {name: field for name, field in pairs if callable(field)}


class _Euler:
    """Moves the walkers w in place: w ← w + f dt + G dW, or v ← m v + f dt + G dW, w ← w + v."""

    def __init__(self, w: np.ndarray, rule: _Rule) -> None:
        self.drift, self.momentum = rule.drift, rule.momentum
        self.rate = np.array(rule.rate, w.dtype)
        self.diffusion = rule.diffusion if callable(rule.diffusion) else None
        self.w, self.seen, self.velocity = w, w.view(), np.zeros_like(w)
        self.seen.flags.writeable = False  # a field must not move the walkers
        self.move, self.other = np.empty_like(w), np.empty_like(w)

    def step(self, noise: np.ndarray) -> None:
        """``noise`` is G dW, or dW where G varies."""
        w, move, velocity = self.w, self.move, self.velocity
        np.multiply(self.drift(self.seen), self.rate, out=move)
        if self.diffusion is not None:
            noise = np.multiply(self.diffusion(self.seen), noise, out=self.other)
        if self.momentum:
            velocity *= self.momentum
            velocity += move
            velocity += noise
            w += velocity
        else:  # a drift below the last place of w is lost on its own, and with the noise kept
            move += noise
            w += move


def _expect(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if np.shape(values) != shape:
        raise ValueError(f"{name} must return the shape {shape} here, got {np.shape(values)}")
    return values


class _Increments:
    """G dW of the steps of one block (dW where G varies), from a random stream of its own."""

    def __init__(self, rule: _Rule, w: np.ndarray, seed: int, block: int) -> None:
        state = np.random.SeedSequence(seed, spawn_key=(block,)).generate_state(1)
        self.random = torch.Generator().manual_seed(int(state[0]))
        # torch makes normals by sixteens: with whole ones to a step, how many steps are drawn at
        # once does not matter. They are of float32 and reach 5.8, twice as fast as NumPy's
        padded = -(-w.size // 16) * 16
        self.most = max(1, DRAW // padded)  # steps at once
        self.normals = np.empty((self.most, padded), np.float32)
        self.noise = np.empty((self.most, *w.shape), w.dtype)
        g = np.ones(()) if callable(rule.diffusion) else rule.diffusion
        g, d = checks.array(f"the {rule.names[1]}", g), w.shape[1]
        if g.shape not in ((), (d,), (d, d)):
            must = f"must be a number, ({d},), ({d}, {d}), or a function of w"
            raise ValueError(f"the {rule.names[1]} {must}: got the shape {g.shape}")
        self.weights = [float(weight * g) if g.ndim == 0 else weight for weight in rule.weights]
        self.matrix = g.astype(w.dtype)  # or its diagonal

    def draw(self, n_steps: int) -> np.ndarray:
        """(n_steps, n, d) for up to ``most`` steps; valid until the next call."""
        noise = self.noise[:n_steps]
        rows = noise.reshape(n_steps, -1)
        if len(self.weights) == 1:
            np.multiply(self._normals(rows), self.weights[0], out=rows, dtype=rows.dtype)
        else:
            rows[:] = 0
            for i in range(n_steps):
                for weight in self.weights:
                    rows[i] += np.multiply(self._normals(rows[:1])[0], weight, dtype=rows.dtype)
        if self.matrix.ndim == 0:
            return noise
        return noise * self.matrix if self.matrix.ndim == 1 else noise @ self.matrix.T

    def _normals(self, rows: np.ndarray) -> np.ndarray:
        z = self.normals[: len(rows)]
        torch.from_numpy(z).normal_(generator=self.random)
        return z[:, : rows.shape[1]]


def _explain(rule: _Rule, solver: _Euler, noise: np.ndarray, start: int) -> None:
    """Make the steps after ``start`` once more, and raise where the first of them fails."""
    w = solver.w
    for step, each in enumerate(noise, start):
        for name, field in rule.fields.items():
            values = field(w.copy())
            if (bad := ~np.isfinite(values).all(axis=1)).any():
                raise FloatingPointError(
                    f"the {name} is {values[bad][0]} at w = {w[bad][0]}, step {step}: it must be "
                    "finite wherever the walkers get"
                )
        solver.step(each)
        if (lost := ~(np.abs(w) <= BOUND).all(axis=1)).any():
            raise FloatingPointError(
                f"a walker got to w = {w[lost][0]} at step {step + 1}, beyond {BOUND:g}: lower it, "
                f"{rule.names[2]} = {abs(rule.rate):g} is too large for this {rule.names[0]}"
            )


@dataclass(frozen=True)
class Paths:
    """What is kept of n walkers in d dimensions."""

    times: np.ndarray  #: (k,) of the snapshots, steps · dt
    snapshots: np.ndarray  #: (k, n, d)
    final: np.ndarray  #: (n, d)
    edges: np.ndarray  #: (n_bins + 1,), or none
    density: np.ndarray  #: (n_bins,) the share of all visits, also of those outside, over the width
    first_passage: np.ndarray  #: (n,) times, NaN where it did not happen, with ``until``


@dataclass
class Recording:
    """Records on the way what is asked for; the final positions are always kept."""

    snapshots: Sequence[int] = ()  #: increasing step numbers, 0 the start
    histogram: ArrayLike = ()  #: edges of bins, whose visits by the first coordinate are counted
    burn_in: int = 0  #: after so many steps,
    every: int = 1  #: and from there at every so manyth
    #: w → (n,) of bool, looked at before the first and after each step: when it first held. The
    #: walker goes on; a block of walkers ends when all have passed and nothing else is recorded
    until: Field | None = None

    def make_room(self, w: np.ndarray, blocks: list[slice], n_steps: int) -> None:
        """Check what is asked for; each block has its own part of the arrays."""
        kept = [checks.whole("a snapshot", s, least=0, most=n_steps) for s in self.snapshots]
        if kept != sorted(set(kept)):
            raise ValueError(f"snapshots must be increasing numbers of steps, got {kept}")
        self.edges = edges = checks.array("histogram", self.histogram)
        if edges.ndim != 1 or len(edges) == 1 or (np.diff(edges) <= 0).any():
            raise ValueError(f"histogram must be two or more increasing edges, got {edges}")
        self.burn_in = burn_in = checks.whole("burn_in", self.burn_in, least=0)
        self.every = every = checks.whole("every", self.every, least=1)
        if len(edges) and burn_in + every > n_steps:
            raise ValueError(f"{burn_in = } and {every = } leave none of {n_steps} steps to count")
        self.blocks, self.places = blocks, {step: i for i, step in enumerate(kept)}
        self.shots = np.empty((len(kept), *w.shape), w.dtype)
        self.visits = np.zeros((len(blocks), len(edges) + 1), np.int64)  # with those outside
        self.passage = np.full(len(w) if self.until else 0, np.nan)  # steps

    def __call__(self, block: int, step: int, w: np.ndarray) -> bool:
        """Record a block after so many steps; whether it still had something to wait for."""
        if step in self.places:
            self.shots[self.places[step], self.blocks[block]] = w
        if len(self.edges) and step > self.burn_in and (step - self.burn_in) % self.every == 0:
            bins = np.searchsorted(self.edges, w[:, 0], side="right")
            self.visits[block] += np.bincount(bins, minlength=self.visits.shape[1])
        if self.until is None:
            return True
        passage = self.passage[self.blocks[block]]
        waiting = np.isnan(passage)
        passage[_expect("until", self.until(w), passage.shape) & waiting] = step
        return bool(self.places or len(self.edges) or waiting.any())


def _start(w0: ArrayLike, n_walkers: int | None, dtype: str = "float64") -> np.ndarray:
    n = None if n_walkers is None else checks.whole("n_walkers", n_walkers, least=1)
    start = checks.array("w0", w0).astype(checks.one_of("dtype", dtype, ["float32", "float64"]))
    if start.ndim < 2 and n is not None:
        start = np.tile(np.atleast_1d(start), (n, 1))
    if start.ndim != 2 or start.size == 0 or n not in (None, len(start)):
        must = "w0 must be (n, d), or (d,) or a number with n_walkers = n"
        raise ValueError(f"{must}: got the shape {np.shape(w0)} and {n_walkers = }")
    return start


def _run(
    rule: _Rule, start: np.ndarray, n_steps: int, seed: int, threads: int | None, record: Recording
) -> Paths:
    """``start`` becomes the final positions."""
    n_steps, seed = checks.whole("n_steps", n_steps, least=1), checks.seed(seed)
    threads = joblib.cpu_count() if threads is None else checks.whole("n_threads", threads, least=1)
    # As many equal blocks as some power of 2, for any number of cores to share
    n, n_blocks = len(start), 1 << (math.ceil(start.size / BLOCK) - 1).bit_length()
    ends = np.linspace(0, n, min(n, n_blocks) + 1).round().astype(int).tolist()
    blocks = [slice(*pair) for pair in pairwise(ends)]
    record.make_room(start, blocks, n_steps)
    stop = Event()

    def walk(block: int) -> None:
        w = start[blocks[block]]
        for name, field in rule.fields.items():
            _expect(f"the {name}", field(w.copy()), w.shape)
        solver = _Euler(w, rule)
        increments = _Increments(rule, w, seed, block)
        step, more = 0, record(block, 0, w)
        while step < n_steps and more and not stop.is_set():
            noise = increments.draw(min(increments.most, n_steps - step))
            before = w.copy(), solver.velocity.copy()
            for each in noise:
                solver.step(each)
                step += 1
                more = record(block, step, w)
            if not (w.max() <= BOUND and w.min() >= -BOUND):
                w[:], solver.velocity[:] = before
                _explain(rule, solver, noise, step - len(noise))

    # In the threads nothing warns: what overflows is found, and explained, after some steps
    with ThreadPoolExecutor(threads, initializer=np.seterr, initargs=("ignore",)) as pool:
        try:
            for future in [pool.submit(walk, block) for block in range(len(blocks))]:
                future.result()
        finally:  # after an error, or Ctrl-C
            stop.set()
            pool.shutdown(cancel_futures=True)
    dt, visits = abs(rule.rate), record.visits.sum(axis=0)
    kept = np.array(list(record.places)) * dt, record.shots, start
    density = visits[1:-1] / (visits.sum() * np.diff(record.edges))
    return Paths(*kept, record.edges, density, record.passage * dt)


def simulate(
    drift: Field,
    diffusion: Noise,
    w0: ArrayLike,
    *,
    dt: float,
    n_steps: int,
    seed: int,
    refine: int = 1,
    n_walkers: int | None = None,
    dtype: str = "float64",
    n_threads: int | None = None,
    **recording: Any,
) -> Paths:
    """Walkers of dw = f(w) dt + G(w) dW (Itô): ``n_steps`` Euler–Maruyama steps of length ``dt``.

    Arguments:
        drift: f
        diffusion: G: a number; (d,), its diagonal; (d, d); or a field, its diagonal at w
        w0: (n, d); or (d,), or a number for d = 1, for ``n_walkers`` that start together
        refine: k: the noise of a step is the sum of that of k steps of dt/k. So dt with refine=k
            and dt/k with refine=1 see the same Brownian paths
        dtype: "float64" or "float32", of w: each step is rounded to w's last place, so that n steps
            without noise are known to n of these
        n_threads: all cores by default; the results are the same to the last bit on any number
        recording: as in :class:`Recording`

    Raises ValueError for impossible settings, and FloatingPointError, which names the step and the
    position, for a drift that is not finite and for a walker beyond 1e8. The method: Kloeden &
    Platen (1992), §10.2.
    """
    dt, refine = checks.real("dt", dt, above=0), checks.whole("refine", refine, least=1)
    weights, names = [math.sqrt(dt / refine)] * refine, ("drift", "diffusion", "dt")
    rule = _Rule(drift, diffusion, dt, weights, names=names)
    start, record = _start(w0, n_walkers, dtype), Recording(**recording)
    return _run(rule, start, n_steps, seed, n_threads, record)


def sgd(
    gradient: Field,
    noise: Noise,
    w0: ArrayLike,
    *,
    lr: float,
    batch_size: float,
    n_steps: int,
    seed: int,
    momentum: float = 0.0,
    svag: int = 1,
    n_walkers: int | None = None,
    **recording: Any,
) -> Paths:
    """SGD: v ← m v + ∇ℓ(w) + noise/√B and w ← w − η v from v = 0, as in PyTorch.

    Arguments:
        gradient: ∇ℓ of the mean loss
        noise: C^½ of one sample: σ, (d,), (d, d), or a field, its diagonal as a function of w
        batch_size: B > 0, which says how strong the noise is and need not be whole
        svag: l: steps of SVAG (Li, Malladi & Arora, 2102.12470), whose limit l → ∞ is the SDE. The
            rate is η/l, and two batches with the weights (1 ± √(2l − 1))/2 make a gradient with the
            same mean and l times the variance

    The rest is as in :func:`simulate`, with dt = η (or η/l). Without momentum it is ``simulate``
    with the drift −∇ℓ and the diffusion √(η/B) C^½, from the same random numbers.
    """
    lr, b = checks.real("lr", lr, above=0), checks.real("batch_size", batch_size, above=0)
    momentum = checks.real("momentum", momentum, least=0, below=1)
    l = checks.whole("svag", svag, least=1)
    c, scale = math.sqrt(2 * l - 1), lr / l / math.sqrt(b)
    weights = [scale * part for part in ((1 + c) / 2, (1 - c) / 2) if part]
    rule = _Rule(gradient, noise, -lr / l, weights, momentum=momentum)
    return _run(rule, _start(w0, n_walkers), n_steps, seed, None, Recording(**recording))


def convergence_order(
    drift: Field,
    diffusion: Noise,
    w0: ArrayLike,
    *,
    time: float,
    n_steps: Sequence[int],
    seed: int,
    n_walkers: int | None = None,
) -> Estimate:
    """The strong order of :func:`simulate`, from runs to ``time`` of each of ``n_steps``.

    The slope of log(error) against log(dt − dt*). The error is ``E‖w − w*‖``, where w* follows the
    same Brownian path in steps dt* of a 64th of the shortest. ``stderr`` knows that all errors come
    from the same walkers. Raises ValueError where 64 times max(n_steps) is no multiple of all, and
    for errors that are Monte-Carlo noise.
    """
    time = checks.real("time", time, above=0)
    counts = [checks.whole("each of n_steps", n, least=1) for n in n_steps]
    finest = 64 * max(counts, default=0)
    if len(set(counts)) < 2 or any(finest % n for n in counts):
        raise ValueError(f"n_steps must be two or more that divide {finest}, got {counts}")

    def run(n: int) -> np.ndarray:
        same = partial(simulate, drift, diffusion, w0, seed=seed, n_walkers=n_walkers)
        return same(dt=time / n, n_steps=n, refine=finest // n).final

    exact = run(finest)
    each = np.array([np.linalg.norm(run(n) - exact, axis=1) for n in counts])  # (k, n)
    means, root = each.mean(axis=1), math.sqrt(each.shape[1])
    rounding = 10 * np.finfo(float).eps * math.sqrt(finest) * np.abs(exact).max()
    if len(exact) < 2 or not (means > 3 * each.std(axis=1) / root + rounding).all():
        raise ValueError(f"{len(exact)} walkers too few, or steps too short: {means} is all noise")
    logs = np.column_stack([np.log(means), each / means[:, None]])  # their errors are of each/mean
    slope, *slopes = np.polyfit(np.log(1 / np.array(counts) - 1 / finest), logs, 1)[0]
    return Estimate(float(slope), float(np.std(slopes) / root), len(exact))
