"""Many walkers at once on a stochastic differential equation, and SGD as one of them.

::

    dw = f(w) dt + G(w) dW        (Itô)

SGD on a mean loss ℓ, w ← w − η (∇ℓ(w) + noise/√B), where the noise of one sample's gradient has
covariance C, is the Euler–Maruyama method with dt = η, f = −∇ℓ and G = √(η/B) C^½: equation (17)
of the lecture for mean losses. Where C = σ² I the temperature is T = η σ²/(2B), and the walkers
come to rest at exp(−ℓ(w)/T), equation (25), as η → 0 while η/B stays.

A field (a drift, a gradient, a diffusion) is a function of the walkers of a block, (n, d) → (n, d),
in the dtype of the run. It is called from several threads and must not keep w.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from threading import Event

import joblib
import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import expm

BLOCK = 65536  # numbers, walkers × d, at most that a thread moves at once: they stay in its cache
GROUPS = 8  # of the walkers of a block, whose visits are counted apart for a standard error
DRAW = 1 << 19  # normals drawn at once; with less, threads wait for Python's lock, call by call

Field = Callable[[np.ndarray], np.ndarray]  #: of walkers: (n, d) to (n, d)
Noise = float | ArrayLike | Field  #: a number, (d,) or (d, d), or a field: the diagonal at w


@dataclass(frozen=True)
class Paths:
    """What is kept of n walkers in d dimensions."""

    times: np.ndarray  #: (k,) of the snapshots, steps · dt
    snapshots: np.ndarray  #: (k, n, d)
    final: np.ndarray  #: (n, d)
    edges: np.ndarray | None = None  #: (n_bins + 1,)
    counts: np.ndarray | None = None  #: (n_bins,) visits
    counts_stderr: np.ndarray | None = None  #: (n_bins,) by the spread over groups of walkers
    n_visits: int = 0  #: also those outside the edges
    first_passage: np.ndarray | None = None  #: (n,) times, NaN where it did not happen

    @property
    def density(self) -> np.ndarray:
        """(n_bins,) the share of all visits, also those outside the edges, over the bin's width."""
        return self.counts / (self.n_visits * np.diff(self.edges))

    @property
    def density_stderr(self) -> np.ndarray:
        """(n_bins,) its standard error."""
        return self.counts_stderr / (self.n_visits * np.diff(self.edges))


# One step


def _expect(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if np.shape(values) != shape:
        raise ValueError(f"{name} must return the shape {shape} here, got {np.shape(values)}")
    return values


@dataclass(frozen=True)
class _Rule:
    """How a step is made, and what its parts are called where one of them fails."""

    drift: Field
    diffusion: float | np.ndarray | Field
    dt: float
    method: str = "euler"
    weights: Sequence[float] = (1.0,)  #: dW = √dt Σ_j weights_j z_j with normal z_j
    momentum: float = 0.0
    sign: float = 1.0  #: −1: ``drift`` is a gradient
    names: tuple[str, str, str] = ("drift", "diffusion", "dt")

    @property
    def fields(self) -> dict[str, Field]:
        pairs = zip(self.names, (self.drift, self.diffusion), strict=False)
        return {name: field for name, field in pairs if callable(field)}

    def stepper(self, w: np.ndarray, velocity: np.ndarray) -> Callable[[np.ndarray], None]:
        """A function that moves w by one step, in place, given G dW, or dW where G depends on w."""
        drift, diffusion, dt, m = self.drift, self.diffusion, self.dt, self.momentum
        rate, varies = np.array(self.sign * dt, w.dtype), callable(diffusion)
        seen = w.view()
        seen.flags.writeable = False
        move, other = np.empty_like(w), np.empty_like(w)

        def euler(noise: np.ndarray) -> None:
            np.multiply(drift(seen), rate, out=move)
            if varies:
                noise = np.multiply(diffusion(seen), noise, out=other)
            if m:
                np.multiply(velocity, m, out=velocity)
                np.add(velocity, move, out=velocity)
                np.add(velocity, noise, out=velocity)
                np.add(w, velocity, out=w)
            else:
                np.add(w, move, out=w)
                np.add(w, noise, out=w)

        def heun(noise: np.ndarray) -> None:
            np.multiply(drift(seen), dt / 2, out=move)
            np.add(w, noise, out=w)
            np.add(w, move, out=w)
            np.add(w, move, out=other)  # the trial point; w has half of the drift so far
            np.multiply(drift(other), dt / 2, out=move)
            np.add(w, move, out=w)

        def milstein(noise: np.ndarray) -> None:
            np.multiply(drift(seen), dt, out=move)
            np.add(w, move, out=move)
            g = diffusion(seen)
            np.multiply(g, math.sqrt(dt), out=other)
            np.add(move, other, out=other)
            slope = diffusion(other) - g  # √dt g_i ∂g_i/∂w_i
            np.multiply(g, noise, out=other)
            np.add(move, other, out=move)
            np.multiply(noise, noise, out=other)
            np.subtract(other, dt, out=other)
            np.multiply(other, slope, out=other)
            np.multiply(other, 0.5 / math.sqrt(dt), out=other)
            np.add(move, other, out=w)

        return {"euler": euler, "heun": heun, "milstein": milstein}[self.method]

    def explain(
        self, w: np.ndarray, velocity: np.ndarray, noise: np.ndarray, start: int, bound: float
    ) -> None:
        """Make the steps after ``start`` once more, and raise where the first of them fails."""
        advance = self.stepper(w, velocity)
        for step, each in enumerate(noise, start):
            for name, field in self.fields.items():
                values = field(w.copy())
                bad = ~np.isfinite(values).all(axis=1)
                if bad.any():
                    i = int(bad.argmax())
                    raise FloatingPointError(
                        f"the {name} is {values[i]} at w = {w[i]}, step {step}: it must be finite "
                        "wherever the walkers get"
                    )
            advance(each)
            bad = ~(np.abs(w) <= bound).all(axis=1)
            if bad.any():
                break
        raise FloatingPointError(
            f"a walker got to w = {w[int(bad.argmax())]} at step {step + 1}, beyond bound = "
            f"{bound:g}: {self.names[2]} = {self.dt:g} is too large for this {self.names[0]}, "
            "lower it"
        )


class _Increments:
    """G dW of the steps of one block (dW where G depends on w), from a random stream of its own."""

    def __init__(self, rule: _Rule, w: np.ndarray, seed: int, block: int) -> None:
        sequence = np.random.SeedSequence(seed, spawn_key=(block,))
        self.random = np.random.Generator(np.random.SFC64(sequence))
        self.most = max(1, DRAW // w.size)  # steps at once
        self.noise = np.empty((self.most, *w.shape), w.dtype)
        self.one = np.empty((1, *w.shape), w.dtype)
        half = (w.size + 1) // 2
        self.parts = np.empty((3, self.most, half), np.float32)
        scale, self.matrix = math.sqrt(rule.dt), None
        if isinstance(rule.diffusion, float):
            scale *= rule.diffusion
        elif not callable(rule.diffusion):
            self.matrix = rule.diffusion.astype(w.dtype)  # or its diagonal
        self.weights = [scale * weight for weight in rule.weights]

    def draw(self, n_steps: int) -> np.ndarray:
        """(n_steps, n, d) for up to ``most`` steps; valid until the next call."""
        noise = self.noise[:n_steps]
        if len(self.weights) == 1:
            np.multiply(self._normals(noise), self.weights[0], out=noise)
        else:
            noise[:] = 0
            for each in noise:
                for weight in self.weights:
                    np.multiply(self._normals(self.one), weight, out=self.one)
                    np.add(each, self.one[0], out=each)
        if self.matrix is None:
            return noise
        return noise * self.matrix if self.matrix.ndim == 1 else noise @ self.matrix.T

    def _normals(self, out: np.ndarray) -> np.ndarray:
        """Fill ``out`` with independent standard normals, by Box and Muller's method.

        From 32-bit numbers and in float32, 4 times as fast as NumPy's; they reach 6.6. Each step
        has pairs of its own, so that they do not depend on how many steps are drawn at once.
        """
        flat = out.reshape(len(out), -1)
        radius, angle, wave = (part[: len(out)] for part in self.parts)
        half, rest = radius.shape[1], flat.shape[1] // 2
        bits = self.random.integers(0, 2**64 - 1, radius.shape, dtype=np.uint64, endpoint=True)
        first, second = np.split(bits.view(np.uint32), 2, axis=1)
        np.bitwise_or(first, 1, out=first)  # never 0
        radius[:] = first
        np.multiply(radius, 2.0**-32, out=radius)
        np.log(radius, out=radius)
        np.multiply(radius, -2, out=radius)
        np.sqrt(radius, out=radius)
        angle[:] = second.view(np.int32)
        np.multiply(angle, math.pi / 2**31, out=angle)
        np.cos(angle, out=wave)
        np.multiply(radius, wave, out=flat[:, :half])
        np.sin(angle, out=wave)
        np.multiply(radius[:, :rest], wave[:, :rest], out=flat[:, half:])
        return out


# Many steps of many walkers


def _start(w0: ArrayLike, n_walkers: int | None, dtype: str) -> np.ndarray:
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    start = np.array(w0, dtype=dtype)
    if start.ndim < 2 and n_walkers is not None:
        start = np.tile(np.atleast_1d(start), (n_walkers, 1))
    if start.ndim != 2 or start.size == 0 or n_walkers not in (None, len(start)):
        raise ValueError(
            "w0 must be (n, d), or (d,) or a number with n_walkers = n: got the shape "
            f"{np.shape(w0)} and n_walkers = {n_walkers}"
        )
    if not np.isfinite(start).all():
        raise ValueError("w0 must be finite")
    return start


def _noise(noise: Noise, d: int, factor: float = 1.0) -> float | np.ndarray | Field:
    """``factor`` times the diffusion, checked."""
    if callable(noise):
        return noise if factor == 1 else lambda w: factor * noise(w)
    matrix = factor * np.asarray(noise, dtype=float)
    if matrix.shape not in ((), (d,), (d, d)) or not np.isfinite(matrix).all():
        raise ValueError(
            f"the noise must be a finite number, ({d},), ({d}, {d}), or a function of w: got "
            f"{np.asarray(noise).tolist()}"
        )
    return float(matrix) if matrix.ndim == 0 else matrix


def _run(
    rule: _Rule,
    start: np.ndarray,
    *,
    n_steps: int,
    seed: int,
    snapshots: Sequence[int] = (),
    histogram: ArrayLike | None = None,
    along: int | ArrayLike | Field = 0,
    burn_in: int = 0,
    every: int = 1,
    until: Field | None = None,
    bound: float = 1e8,
    n_threads: int | None = None,
) -> Paths:
    """``start`` becomes the final positions."""
    kept = [int(step) for step in snapshots]
    edges = None if histogram is None else np.asarray(histogram, dtype=float)
    threads = joblib.cpu_count() if n_threads is None else n_threads
    if not (0 < rule.dt < math.inf and n_steps >= 1 and bound > 0 and threads >= 1):
        raise ValueError(
            f"needs {rule.names[2]} > 0, n_steps ≥ 1, bound > 0, n_threads ≥ 1: got {rule.dt}, "
            f"{n_steps}, {bound}, {n_threads}"
        )
    if kept != sorted({step for step in kept if 0 <= step <= n_steps}):
        raise ValueError(f"snapshots must be increasing steps from 0 to {n_steps}, got {kept}")
    if edges is not None and (edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all()):
        raise ValueError(f"histogram must be two or more increasing edges, got {edges.tolist()}")
    if edges is not None and not (burn_in >= 0 and 1 <= every <= n_steps - burn_in):
        raise ValueError(
            f"burn_in = {burn_in} and every = {every} leave none of {n_steps} steps to count"
        )
    n, d = start.shape
    # As many equal blocks as some power of 2, for any number of cores to share
    n_blocks = 1 << (math.ceil(n * d / BLOCK) - 1).bit_length()
    ends = np.linspace(0, n, min(n, n_blocks) + 1).round().astype(int).tolist()
    blocks = [slice(*pair) for pair in pairwise(ends)]
    shots = np.empty((len(kept), n, d), start.dtype)
    passage = None if until is None else np.full(n, np.nan)
    n_bins = 0 if edges is None else len(edges) + 1  # with those below and above
    visits = np.zeros((len(blocks), GROUPS, n_bins), dtype=np.int64)
    stop = Event()

    def project(w: np.ndarray) -> np.ndarray:
        if callable(along):
            return _expect("along", along(w), w.shape[:1])
        return w[:, along] if np.ndim(along) == 0 else w @ np.asarray(along)

    def block(number: int) -> None:
        part = blocks[number]
        w, velocity = start[part], np.zeros_like(start[part])
        for name, field in rule.fields.items():
            _expect(f"the {name}", field(w.copy()), w.shape)
        advance, increments = rule.stepper(w, velocity), _Increments(rule, w, seed, number)
        places = {step: shots[i, part] for i, step in enumerate(kept)}
        waiting = np.full(len(w), until is not None)
        group = np.arange(len(w)) * GROUPS // len(w) * n_bins

        def record(step: int) -> None:
            if step in places:
                places[step][:] = w
            if edges is not None and step > burn_in and (step - burn_in) % every == 0:
                bins = np.searchsorted(edges, project(w), side="right") + group
                count = np.bincount(bins, minlength=GROUPS * n_bins)
                visits[number] += count.reshape(GROUPS, n_bins)
            if until is not None and waiting.any():
                now = _expect("until", until(w), waiting.shape) & waiting
                passage[part][now] = step * rule.dt
                waiting[now] = False

        record(0)
        step = 0
        while step < n_steps and not stop.is_set():
            noise = increments.draw(min(increments.most, n_steps - step))
            before = w.copy(), velocity.copy()
            for each in noise:
                advance(each)
                step += 1
                record(step)
            if not (w.max() <= bound and w.min() >= -bound):
                rule.explain(*before, noise, step - len(noise), bound)
            if not (until is None or waiting.any() or kept or edges is not None):
                break

    def quiet(number: int) -> None:
        with np.errstate(all="ignore"):  # what overflows is found, and explained, after some steps
            block(number)

    with ThreadPoolExecutor(threads) as pool:
        try:
            for future in [pool.submit(quiet, number) for number in range(len(blocks))]:
                future.result()
        finally:  # after an error, or Ctrl-C
            stop.set()
            pool.shutdown(cancel_futures=True)
    paths = Paths(np.array(kept) * rule.dt, shots, start, edges, first_passage=passage)
    if edges is None:
        return paths
    by_group = visits.reshape(-1, n_bins)
    total, share = by_group.sum(axis=0), by_group.sum(axis=1, keepdims=True) / visits.sum()
    k = np.count_nonzero(share)
    spread = ((by_group - share * total) ** 2).sum(axis=0)
    stderr = np.sqrt(spread * k / (k - 1)) if k > 1 else np.full(n_bins, np.nan)
    return replace(
        paths, counts=total[1:-1], counts_stderr=stderr[1:-1], n_visits=int(visits.sum())
    )


# Simulators


def simulate(
    drift: Field,
    diffusion: Noise,
    w0: ArrayLike,
    *,
    dt: float,
    n_steps: int,
    seed: int,
    method: str = "euler",
    refine: int = 1,
    n_walkers: int | None = None,
    dtype: str = "float64",
    **recording,
) -> Paths:
    """Walkers of dw = f(w) dt + G(w) dW (Itô): ``n_steps`` steps of length ``dt``.

    Arguments:
        drift: f
        diffusion: G: a number; (d,), its diagonal; (d, d); or a field, its diagonal at w
        w0: (n, d); or (d,), or a number for d = 1, for ``n_walkers`` that start together
        method: "euler" (Euler–Maruyama): strong order ½, or 1 for a constant G; weak order 1.
            "milstein", without derivatives: strong order 1 where G is a function and each
            G_i depends on w_i alone. "heun": strong order 1, weak 2, for a constant G only
            (with others it would solve Stratonovich's equation)
        refine: k: the noise of a step is the sum of that of k steps of dt/k. So dt with refine=k
            and dt/k with refine=1 see the same Brownian paths, as do all methods
        dtype: "float64" or "float32"

    What is recorded is the same for all simulators; final positions always are.

    Recording:
        snapshots: increasing step numbers, 0 the start
        histogram: edges of bins; visits are counted at every ``every``-th step after ``burn_in``
        along: what they count: a coordinate (a number), a direction (d,), or w → (n,)
        until: w → (n,) of bool, looked at before the first and after each step: when it first
            held. The walker goes on; a block of walkers ends when all have passed and nothing
            else is recorded
        bound: an error is raised where ``|w_i|`` exceeds it, looked at every few steps
        n_threads: default: all cores. Every block has a random stream of its own, so that results
            are the same to the last bit on any number

    Raises ValueError for impossible settings, and FloatingPointError, which names the step and the
    position, for a drift that is not finite and for a walker beyond ``bound``. Source: Kloeden &
    Platen (1992), §10.2, §11.1, §14.1 and §15.1.
    """
    if method not in ("euler", "milstein", "heun"):
        raise ValueError(f"method must be 'euler', 'milstein' or 'heun', got {method!r}")
    if method == "milstein" and not callable(diffusion):
        raise ValueError("with a constant diffusion 'milstein' is 'euler': take that, or 'heun'")
    if method == "heun" and callable(diffusion):
        raise ValueError(
            "with a diffusion that depends on w 'heun' would converge to Stratonovich's equation "
            "instead of Itô's: take 'milstein'"
        )
    if refine < 1:
        raise ValueError(f"refine must be 1 or more, got {refine}")
    start = _start(w0, n_walkers, dtype)
    weights = [1 / math.sqrt(refine)] * refine
    rule = _Rule(drift, _noise(diffusion, start.shape[1]), dt, method, weights)
    return _run(rule, start, n_steps=n_steps, seed=seed, **recording)


def ornstein_uhlenbeck(
    h: float | ArrayLike,
    diffusion: float | ArrayLike,
    w0: ArrayLike,
    *,
    dt: float,
    n_steps: int,
    seed: int,
    n_walkers: int | None = None,
    dtype: str = "float64",
    **recording,
) -> Paths:
    """Walkers of dw = −H w dt + G dW, exact after each step however long it is.

    ``h`` and ``diffusion`` are numbers, (d,) or (d, d); H may have eigenvalues of any sign. The
    rest is as in :func:`simulate`. w(t + dt) = exp(−H dt) w(t) + noise, whose covariance is
    ∫ exp(−Hs) G Gᵀ exp(−Hᵀs) ds over 0 ≤ s ≤ dt: both are parts of one matrix exponential (Van
    Loan 1978).
    """
    if callable(h) or callable(diffusion):
        raise ValueError("ornstein_uhlenbeck needs a constant H and diffusion: take simulate")
    start = _start(w0, n_walkers, dtype)
    d = start.shape[1]
    h, g = (_noise(x, d) for x in (h, diffusion))
    h, g = (x if np.ndim(x) == 2 else np.diag(np.full(d, x)) for x in (h, g))
    # exp(+H dt) is a part of it too: begin with a step for which that is small, and double it
    n_doublings = max(0, math.ceil(math.log2(max(np.linalg.norm(h) * dt, 1e-300))))
    block = np.block([[-h, g @ g.T], [np.zeros((d, d)), h.T]])
    both = expm(dt / 2**n_doublings * block)
    e, covariance = both[:d, :d], both[:d, d:] @ both[:d, :d].T
    for _ in range(n_doublings):
        e, covariance = e @ e, covariance + e @ covariance @ e.T
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0) / dt)
    a = ((e - np.eye(d)) / dt).astype(dtype)  # the step is Euler's for this linear equation
    drift = (lambda w: w @ a.T) if d > 1 else (lambda w: w * a[0, 0])
    rule = _Rule(drift, root if d > 1 else root.item(), dt)
    return _run(rule, start, n_steps=n_steps, seed=seed, **recording)


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
    n_walkers: int | None = None,
    dtype: str = "float64",
    **recording,
) -> Paths:
    """SGD: v ← m v + ∇ℓ(w) + noise/√B and w ← w − η v from v = 0, as in PyTorch.

    Arguments:
        gradient: ∇ℓ of the mean loss
        noise: C^½ of one sample: σ, (d,), (d, d), or a field, its diagonal as a function of w

    The rest is as in :func:`simulate`; ``times`` are steps · η. Without momentum it is ``simulate``
    with the drift −∇ℓ, the diffusion √(η/B) C^½ and dt = η, from the same random numbers.
    """
    start = _start(w0, n_walkers, dtype)
    rule = _descent(gradient, noise, start, lr, batch_size, momentum=momentum)
    return _run(rule, start, n_steps=n_steps, seed=seed, **recording)


def svag(
    gradient: Field,
    noise: Noise,
    w0: ArrayLike,
    *,
    lr: float,
    batch_size: float,
    n_steps: int,
    l: int,
    seed: int,
    n_walkers: int | None = None,
    dtype: str = "float64",
    snapshots: Sequence[int] = (),
    burn_in: int = 0,
    every: int = 1,
    **recording,
) -> Paths:
    """SVAG (Li, Malladi & Arora, 2102.12470): SGD, ``l`` times nearer to its SDE.

    The gradients of two batches, weighted with (1 ± c)/2 where c = √(2l − 1), make one with the
    same mean and l times the variance; the rate is ``lr``/l. With l = 1 it is :func:`sgd`.
    ``n_steps``, ``snapshots``, ``burn_in`` and ``every`` count steps of SGD, of l steps each. The
    rest is as in :func:`sgd`.
    """
    if not (isinstance(l, int) and l >= 1):
        raise ValueError(f"l must be a whole number from 1, got {l}")
    start, c = _start(w0, n_walkers, dtype), math.sqrt(2 * l - 1)
    weights = [weight for weight in ((1 + c) / 2, (1 - c) / 2) if weight]
    return _run(
        _descent(gradient, noise, start, lr / l, batch_size, weights=weights),
        start,
        n_steps=l * n_steps,
        seed=seed,
        snapshots=[l * step for step in snapshots],
        burn_in=l * burn_in,
        every=l * every,
        **recording,
    )


def _descent(
    gradient: Field, noise: Noise, start: np.ndarray, lr: float, batch_size: float, **options
) -> _Rule:
    momentum = options.get("momentum", 0.0)
    if not (lr > 0 and batch_size > 0 and 0 <= momentum < 1):
        raise ValueError(
            f"needs lr > 0, batch_size > 0, 0 ≤ momentum < 1: got {lr = }, {batch_size = }, "
            f"{momentum = }"
        )
    g = _noise(noise, start.shape[1], math.sqrt(lr / batch_size))
    return _Rule(gradient, g, lr, sign=-1.0, names=("gradient", "noise", "lr"), **options)
