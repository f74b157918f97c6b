"""Euler–Maruyama in a double well: lecture6 against a NumPy loop, torchsde, and the bare normals.

Every side moves the same number of walkers, all from w = 1, over ℓ(w) = (w² − 1)² in float32. What
is timed, in turns on the same threads, is one whole call:

  lecture6     sde.simulate
  NumPy        the obvious loop: all walkers in one array, ``standard_normal`` of the default
               generator, float32
  NumPy, 64    the same as it is mostly written, without a dtype
  torchsde     sdeint with its Brownian motion as it comes, float32
  torchsde, z  the same with ``torch.randn`` in the place of its Brownian motion: no noise that
               torchsde can be given is cheaper
  normals      as many standard normals and nothing else, into a buffer that stays in cache: NumPy's
               and torch's generators, in one thread and in all

``--memory``: the peak above that before the run, and the time, of growing numbers of walkers and of
steps, each in a process of its own (Linux).
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from time import perf_counter

import numpy as np
import torch

from lecture6 import sde

TEMPERATURE, DT = 0.3, 0.01
NOISE = math.sqrt(2 * TEMPERATURE)
BUFFER = 1 << 16  # normals at once
TARGETS = {"NumPy": 8.0, "torchsde": 3.0, "normals": 0.5}  # time over ours, at least


def drift(w: np.ndarray) -> np.ndarray:
    return -4 * w * (w * w - 1)


def ours(n: int, n_steps: int, threads: int, seed: int) -> np.ndarray:
    return sde.simulate(
        drift, NOISE, 1.0, dt=DT, n_steps=n_steps, seed=seed, n_walkers=n, dtype="float32",
        n_threads=threads,
    ).final  # fmt: skip


def numpy_loop(n: int, n_steps: int, threads: int, seed: int, dtype: str) -> np.ndarray:
    rng = np.random.default_rng(seed)
    w = np.ones(n, dtype)
    for _ in range(n_steps):
        w = w + drift(w) * DT + NOISE * math.sqrt(DT) * rng.standard_normal(n, dtype)
    return w


def torchsde_side(n: int, n_steps: int, threads: int, seed: int, bare: bool) -> np.ndarray:
    import torchsde

    class Well(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return drift(w)

        def g(self, t: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return torch.full_like(w, NOISE)

    class Bare(torchsde.BaseBrownian):
        shape, dtype, device = (n, 1), torch.float32, torch.device("cpu")
        levy_area_approximation = "none"

        def __call__(self, ta, tb=None, return_U=False, return_A=False):
            return torch.randn(n, 1, generator=generator).mul_(float(tb - ta) ** 0.5)

        def __repr__(self) -> str:
            return "Bare()"

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        ends = torch.tensor([0.0, n_steps * DT])
        # what sdeint makes of its own accord, with a seed
        own = torchsde.BrownianInterval(ends[0], ends[1], size=(n, 1), entropy=seed)
        options = {"bm": Bare() if bare else own, "dt": DT, "method": "euler"}
        return torchsde.sdeint(Well(), torch.ones(n, 1), ends, **options)[-1].numpy()


def numpy_normals(kind: type, count: int, threads: int) -> None:
    def fill(seed: int) -> None:
        rng, buffer = np.random.Generator(kind(seed)), np.empty(BUFFER, np.float32)
        for _ in range(math.ceil(count / threads / BUFFER)):
            rng.standard_normal(dtype=np.float32, out=buffer)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, range(threads)))


def torch_normals(count: int, threads: int) -> None:
    def fill(seed: int) -> None:
        generator, buffer = torch.Generator().manual_seed(seed), torch.empty(BUFFER)
        for _ in range(math.ceil(count / threads / BUFFER)):
            buffer.normal_(generator=generator)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, range(threads)))


def status(key: str) -> float:
    """MB of this process: "VmRSS" now, or "VmHWM" at the peak (Linux)."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def peak_memory(n: int, n_steps: int, threads: int) -> tuple[float, float]:
    """MB at the peak above those before, and seconds."""
    ours(10_000, 2, threads, 0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before, start = status("VmRSS"), perf_counter()
    ours(n, n_steps, threads, 0)
    seconds = perf_counter() - start
    return status("VmHWM") - before, seconds


def memory(threads: int) -> None:
    print(f"{'walkers':>10} {'steps':>7} {'MB':>7} {'s':>8} {'ns a step of a walker':>22}")
    for n, n_steps in [(10_000, 100), (100_000, 100), (1_000_000, 100), (1_000_000, 1000)]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            used, seconds = process.submit(peak_memory, n, n_steps, threads).result()
        print(
            f"{n:10,} {n_steps:7,} {used:7.0f} {seconds:8.3f} {1e9 * seconds / n / n_steps:22.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--walkers", type=int, default=100_000, help="(default: 100000)")
    parser.add_argument("--steps", type=int, default=1000, help="(default: 1000)")
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument("--repeats", type=int, default=5, help="of each side (default: 5)")
    parser.add_argument("--memory", action="store_true", help="memory only (Linux)")
    args = parser.parse_args()
    if min(args.walkers, args.steps, args.threads, args.repeats) < 1:
        parser.error("--walkers, --steps, --threads and --repeats must be positive")
    if args.memory:
        memory(args.threads)
        return

    torch.set_num_threads(args.threads)
    size = args.walkers, args.steps, args.threads
    sides: dict[str, Callable[[int], np.ndarray | None]] = {
        "lecture6": lambda seed: ours(*size, seed),
        "NumPy": lambda seed: numpy_loop(*size, seed, "float32"),
        "NumPy, 64": lambda seed: numpy_loop(*size, seed, "float64"),
    }
    try:
        label = f"torchsde {version('torchsde')}"
        sides[label] = lambda seed: torchsde_side(*size, seed, False)
        sides[f"{label}, z"] = lambda seed: torchsde_side(*size, seed, True)
    except PackageNotFoundError:
        print("torchsde: not installed")
    count = args.walkers * args.steps
    for threads in sorted({1, args.threads}):
        for kind in (np.random.PCG64, np.random.SFC64):
            sides[f"normals: {kind.__name__} × {threads}"] = (
                lambda seed, kind=kind, threads=threads: numpy_normals(kind, count, threads)
            )
        sides[f"normals: torch × {threads}"] = lambda seed, threads=threads: torch_normals(
            count, threads
        )
    print(
        f"{args.walkers:,} walkers, {args.steps:,} steps, {args.threads} threads, NumPy "
        f"{np.__version__}, torch {torch.__version__}"
    )

    ours(*size, 0)  # to warm up
    seconds = {name: [] for name in sides}
    squares = {name: [] for name in sides}
    for seed in range(args.repeats):
        for name, side in sides.items():
            start = perf_counter()
            w = side(seed)
            seconds[name].append(perf_counter() - start)
            if w is not None:
                squares[name].append(np.square(w, dtype=float))
    report(seconds, squares)


def report(seconds: dict[str, list[float]], squares: dict[str, list[np.ndarray]]) -> None:
    """Medians, ratios to ours of the same repeat with their ranges, and E w² of each side."""
    print(f"\n{'':26}{'median, s':>10}   {'over lecture6 (range)':24}E w² at the end")
    ratios, means = {}, {}
    for name, values in seconds.items():
        each = [a / b for a, b in zip(values, seconds["lecture6"], strict=True)]
        ratios[name] = statistics.median(each)
        shown = f"{ratios[name]:.2f} ({min(each):.2f} to {max(each):.2f})"
        line = f"{name:26}{statistics.median(values):10.3f}   {shown:24}"
        if squares[name]:
            all_of_them = np.concatenate(squares[name])
            stderr = all_of_them.std() / math.sqrt(len(all_of_them))
            means[name] = all_of_them.mean()
            line += f"{means[name]:.4f} ± {stderr:.4f}"
        print(line)
    print("\nthe fastest of a kind over lecture6")
    for kind, target in TARGETS.items():
        of_kind = [r for name, r in ratios.items() if name.startswith(kind) and "," not in name]
        if of_kind:
            print(f"  {kind:10} {min(of_kind):.2f} (target: at least {target:g})")
    if max(means.values()) - min(means.values()) > 8 * stderr:
        raise SystemExit("the means differ by more than chance allows: no comparison")


if __name__ == "__main__":
    main()
