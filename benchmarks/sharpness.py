"""What a sharpness costs beside the passes over the data that it needs.

Times ``worst_case`` with A = identity on F1 (1,462,794 parameters), and one value-and-gradient pass
over the same data just before and after; prints seconds / (evaluations × seconds a pass).
"""

from __future__ import annotations

import argparse
import statistics
from time import perf_counter

import torch

from lecture6 import data, models
from lecture6.objective import NetworkObjective
from lecture6.sharpness import worst_case
from lecture6.train import train


def seconds(function, *args, **kwargs) -> tuple[float, object]:
    start = perf_counter()
    result = function(*args, **kwargs)
    return perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("mnist5k", "mnist"), default="mnist5k")
    parser.add_argument("--dtypes", nargs="+", choices=("float64", "float32"), default=["float64"])
    parser.add_argument("--methods", nargs="+", choices=("lbfgsb", "ascent"), default=["lbfgsb"])
    parser.add_argument("--epochs", type=int, default=3, help="of training first (default: 3)")
    parser.add_argument("--repeats", type=int, default=3, help="of each (default: 3)")
    args = parser.parse_args()
    if args.epochs < 1 or args.repeats < 1:
        parser.error("--epochs and --repeats must be at least 1")

    images = data.load(args.data)
    settings = {"batch_size": 256, "lr": 1e-3, "optimizer": "adam", "device": "cpu"}
    net = train(models.f1(), images, epochs=args.epochs, evaluate_every=args.epochs, **settings)
    print(f"F1 on {images.n_train:,} images of {args.data}, {torch.get_num_threads()} threads")
    for dtype in args.dtypes:
        objective = NetworkObjective(
            net.model, images.x_train, images.y_train, dtype=getattr(torch, dtype)
        )
        for method in args.methods:
            ratios = []
            objective.value_and_grad(objective.w)
            for _ in range(args.repeats):
                passes = [seconds(objective.value_and_grad, objective.w)[0] for _ in range(3)]
                total, result = seconds(worst_case, objective, objective.w, method=method)
                passes += [seconds(objective.value_and_grad, objective.w)[0] for _ in range(3)]
                a_pass = statistics.median(passes)
                ratios.append(total / (result.n_evaluations * a_pass))
                print(
                    f"{method} {dtype}: {total:.2f} s, {result.n_evaluations} evaluations, pass "
                    f"{a_pass:.3f} s ({min(passes):.3f} to {max(passes):.3f}), ratio "
                    f"{ratios[-1]:.2f}, φ = {result.value:.1f} %",
                    flush=True,
                )
            print(
                f"{method} {dtype}: ratio {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
