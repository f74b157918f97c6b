"""The runs that are owed on a GPU, within a time limit: `make gpu SECONDS=540`.

Made for a bare machine that is lent for minutes: PyTorch, no network, no .venv. In this order:

  tests    those marked gpu, two minutes at most
  trials   of the studies that have a profile "gpu", in the order of --studies and of their grids;
           one is started if it is expected to end in time, and is stopped after four minutes
  table    how fast train_many, training, curvature and normals are here (gpu_table.py)

It ends by itself before --seconds. Whatever has finished is a whole file in --out, also after a
kill at any moment, and the same command goes on from there. `lecture6 collect --folder` reads the
trials; the commands are printed. --smoke goes through all of it at tiny size, on a CPU too.

float32 is float32: TF32, which PyTorch lets convolutions use and which keeps 10 bits of 23, is off.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import venv
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS, INSTALLED = ROOT / "wheels", ROOT / "_build" / "gpu"
#: What this needs beside torch: the module, and the name that pip knows it by.
NEEDED = {name: name for name in ("cloudpickle", "filelock", "joblib", "numpy", "pandas", "psutil")}
NEEDED |= {"scipy": "scipy", "tqdm": "tqdm", "pytest": "pytest", "PIL": "pillow"}
STUDIES = ("keskar", "smith", "goyal", "jastrzebski")  # runs R1 to R3, R4, R5, R6


def missing() -> list[str]:
    """The packages that are needed and not here, as pip knows them."""
    return [package for module, package in NEEDED.items() if find_spec(module) is None]


def install(packages: list[str], wheels: Path = WHEELS, folder: Path = INSTALLED) -> Path:
    """A virtual environment with ``packages`` from ``wheels`` and all that is here; its Python."""
    venv.create(folder, clear=True, symlinks=True)
    python = folder / "bin" / "python"
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    # Not system_site_packages: this Python may itself be of an environment, which has torch.
    Path(where, "here.pth").write_text("\n".join(sys.path[1:]) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    found = ["--disable-pip-version-check", "--no-index", "--find-links", str(wheels)]
    subprocess.run([*pip, *found, *packages], check=True)
    return python


def prepare(seconds: float, started: float) -> None:
    """Go on in an environment that has all packages, if this one lacks some."""
    if find_spec("torch") is None:
        sys.exit(f"make gpu: {sys.executable} has no PyTorch: name one that has by PYTHON=")
    if not (lacking := missing()):
        return
    names = " ".join(lacking)
    if not list(WHEELS.glob("*.whl")):
        sys.exit(
            f"make gpu: {sys.executable} lacks {names}: where there is a network, "
            f'make wheels WHEELS="{names}", and bring the folder wheels/ here'
        )
    print(f"missing here: {names}; they are taken from wheels/, into {INSTALLED}", flush=True)
    try:
        python = install(lacking)
    except subprocess.CalledProcessError:  # pip has said more
        sys.exit(
            f'make gpu: wheels/ does not have all: make wheels WHEELS="{names}", for this Python'
        )
    rest = ["--seconds", str(seconds - (time.monotonic() - started))]
    os.execv(python, [str(python), __file__, *sys.argv[1:], *rest])


def main() -> None:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=540.0, help="(default: 540)")
    parser.add_argument("--smoke", action="store_true", help="all steps at tiny size")
    parser.add_argument("--out", type=Path, default=ROOT / "gpu-results", help="what is finished")
    parser.add_argument("--studies", nargs="*", default=STUDIES, choices=STUDIES, metavar="STUDY")
    parser.add_argument("--needs", action="store_true", help="print what is needed beside torch")
    args = parser.parse_args()
    if args.needs:
        print(*NEEDED.values())
        return
    if not args.seconds >= 20:
        parser.error(f"--seconds must be at least 20, got {args.seconds:g}")
    prepare(args.seconds, started)
    os.environ |= {"NVIDIA_TF32_OVERRIDE": "0", "TQDM_DISABLE": "1"}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    sys.path.insert(0, str(ROOT))

    import torch  # only now: where packages were missing, this is another Python

    if not (torch.cuda.is_available() or args.smoke):
        sys.exit("make gpu: torch finds no CUDA GPU here; SMOKE=1 goes through it on the CPU")
    from gpu_steps import Session

    Session(args.seconds, args.smoke, args.out, started).run(args.studies)


if __name__ == "__main__":
    main()
