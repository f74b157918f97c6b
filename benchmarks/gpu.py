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
import signal
import subprocess
import sys
import time
import traceback
import venv
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from threading import Timer
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WHEELS, INSTALLED = ROOT / "wheels", ROOT / "_build" / "gpu"
#: What this needs beside torch: the module, and the name that pip knows it by.
NEEDED = {name: name for name in ("cloudpickle", "filelock", "joblib", "numpy", "pandas", "psutil")}
NEEDED |= {"scipy": "scipy", "tqdm": "tqdm", "pytest": "pytest", "PIL": "pillow"}
STUDIES = ("keskar", "smith", "goyal", "jastrzebski")  # runs R1 to R3, R4, R5, R6
TESTS_SECONDS, TRIAL_SECONDS = 120.0, 240.0  # at most
TABLE_SECONDS = 80.0  # kept for the table
STOPPED = "stopped, they took too long"
MARGIN = 6.0  # seconds before the end in which nothing is computed any more


class TimeLimitError(Exception):
    """What was computed took longer than it may."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """A context that raises TimeLimitError after so many seconds, wherever the main thread is."""

    def stop(*_: Any) -> None:
        raise TimeLimitError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 10)  # again, where it was swallowed
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Session:
    """The time that there is, and what has become of it."""

    seconds: float
    smoke: bool
    out: Path
    started: float = field(default_factory=time.monotonic)
    tests: str = "not run"
    trials: dict[str, str] = field(default_factory=dict)  #: by study
    table: str = "not begun"
    failed: bool = False
    process: subprocess.Popen | None = None  #: the tests, while they run

    def left(self, kept: float = 0.0) -> float:
        """Seconds until the end, less those ``kept`` for what comes later."""
        return self.seconds - MARGIN - kept - (time.monotonic() - self.started)

    def share(self, seconds: float, part: float) -> float:
        """``seconds``, or where the whole is short this part of it."""
        return min(seconds, part * self.seconds)

    def summary(self) -> str:
        """What is done and what is left, in one line."""
        trials = "; ".join(f"{name} {what}" for name, what in self.trials.items()) or "none begun"
        spent = time.monotonic() - self.started
        return (
            f"make gpu: tests: {self.tests}; trials: {trials}; table: {self.table}; "
            f"{spent:.0f} of {self.seconds:.0f} s; in {self.out}"
        )

    def end_tests(self) -> None:
        """Kill the tests with all that they started."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def watch(self) -> Timer:
        """Start what ends the process before the time is up, whatever it computes then."""
        timer = Timer(self.left() + MARGIN / 2, self.give_up)
        timer.daemon = True
        timer.start()
        return timer

    def give_up(self) -> None:
        """The end of the time, whatever is being computed."""
        self.end_tests()
        print(self.summary(), flush=True)
        os._exit(self.failed)


# ---- a bare machine ----------------------------------------------------------------------------


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
    here = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    Path(where, "here.pth").write_text("\n".join(here) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    found = ["--disable-pip-version-check", "--no-index", "--find-links", str(wheels)]
    subprocess.run([*pip, *found, *packages], check=True)
    return python


def prepare(seconds: float, started: float) -> None:
    """Go on in an environment that has all packages, if this one lacks some."""
    if not (lacking := missing()):
        return
    names = " ".join(lacking)
    if not list(WHEELS.glob("*.whl")):
        sys.exit(
            f"make gpu: {sys.executable} lacks {names}: where there is a network, "
            f'make wheels WHEELS="{names}", and bring the folder wheels/ here'
        )
    print(f"missing here: {names}; installed from wheels/ into {INSTALLED}", flush=True)
    python = install(lacking)
    rest = ["--seconds", str(seconds - (time.monotonic() - started))]
    os.execv(python, [str(python), __file__, *sys.argv[1:], *rest])


# ---- the steps ---------------------------------------------------------------------------------


def start_tests(session: Session) -> None:
    """Start the tests that need a GPU; at smoke, those that have the word in their names."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    marked = [file for file in files if "pytest.mark.gpu" in file.read_text("utf8")]
    chosen = (
        ["-k", "gpu", ROOT / "tests/test_device.py"] if session.smoke else ["--gpu", "-m", "gpu"]
    )
    with open(session.out / "tests.log", "w") as log:
        session.process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, *marked],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end_tests(session: Session) -> None:
    """Wait for the tests, and say what came of them."""
    allowed = session.share(TESTS_SECONDS, 0.4) - (time.monotonic() - session.started)
    try:
        session.failed = session.process.wait(max(allowed, 0.1)) != 0
        lines = (session.out / "tests.log").read_text("utf8").strip().splitlines()
        session.tests = lines[-1].strip("= ") if lines else "nothing was printed"
    except subprocess.TimeoutExpired:
        lines, session.tests = [], "stopped, they took too long"
        session.end_tests()
    session.process = None
    print("\n".join(lines[-40:] if session.failed else lines[-1:]), flush=True)


def readable(names: set[str]) -> set[str]:
    """Those data sets that can be loaded here; says what is missing."""
    from lecture6 import data

    found = set()
    for name in sorted(names):
        try:
            data.load(name, download=False)
            found.add(name)
        except (data.DataError, ModuleNotFoundError) as error:
            print(f"data: {name} is missing, its trials are left out: {error}", flush=True)
    print(f"data: {', '.join(sorted(found)) or 'none'}", flush=True)
    return found


def run_study(session: Session, name: str, profile: str, there: set[str], kept: float) -> None:
    """Run the unfinished trials of a study that fit into the time, less ``kept`` seconds."""
    from lecture6.studies import STUDIES, plan

    study, swap = STUDIES[name], jpeg(STUDIES[name], profile)
    state = plan(study, profile, folder=session.out, replace=swap)
    todo = [trial for trial in state.trials if trial not in state.finished]
    reasons: dict[str, int] = {}  # why a trial is left, and how many
    slowness = 0.0  # of one that had to be stopped: seconds over what was expected
    for trial in todo[:1] if session.smoke else todo:
        state = plan(study, profile, folder=session.out, replace=swap)
        # state.seconds is corrected by what finished trials took
        factor = state.seconds / sum(t.cost for t in todo if t not in state.finished)
        expected = trial.cost * max(factor, slowness)
        allowed = min(session.left(kept), TRIAL_SECONDS)
        if trial.parameters.get("data", "none") not in there | {"none"}:
            reason = "lack data"
        elif expected >= allowed:
            reason = "too long for the time left"
        else:
            print(f"{name}, about {expected:.0f} s: {trial}", flush=True)
            reason = run_trial(session, alone(study, profile, trial), profile, allowed)
            slowness = max(slowness, allowed / trial.cost if reason == STOPPED else 0.0)
        if reason:
            reasons[reason] = reasons.get(reason, 0) + 1
        session.trials[name] = f"{len(state.finished) + (not reason)} of {len(state.trials)}"
    n = len(plan(study, profile, folder=session.out, replace=swap).finished)
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    session.trials[name] = f"{n} of {len(state.trials)}{why and f' ({why})'}"


def run_trial(session: Session, one: Any, profile: str, allowed: float) -> str:
    """Run a study of one trial; what has kept it from finishing, or ""."""
    from lecture6.studies import run

    try:
        with limit(allowed):
            failed = run(one, profile, folder=session.out, jobs=1).failed
    except TimeLimitError as error:  # outside of the trial itself
        failed = {f"TimeLimitError: {error}": []}
    for error in failed:
        print(f"  {error}", flush=True)
        if error.startswith("TimeLimitError"):
            return STOPPED
        session.failed = True
        return "failed"
    return ""


def alone(study: Any, profile: str, trial: Any) -> Any:
    """The study of one trial: the same function and parameters, so the same key."""
    return replace(study, grids={profile: [trial.parameters]}, cost=lambda _: trial.cost)


def run_table(session: Session) -> None:
    """Measure what the table lacks, as far as the time goes."""
    import gpu_table

    path, origin, done = session.out / "benchmarks.csv", gpu_table.origin(), 0
    same = origin.items() - {("date", origin["date"])}
    there = {line["benchmark"] for line in gpu_table.read(path) if same <= line.items()}
    sizes = gpu_table.SMOKE if session.smoke else gpu_table.Sizes()
    for name, benchmark in gpu_table.BENCHMARKS.items():
        if name not in there and session.left() > 0:
            print(f"benchmark {name}", flush=True)
            try:
                with limit(session.left()):
                    gpu_table.add(path, name, benchmark(sizes), origin)
            except TimeLimitError as error:
                print(f"  {error}", flush=True)
                continue
            except Exception:  # of one benchmark: the others go on
                traceback.print_exc()
                session.failed = True
                continue
            there.add(name)
        done += name in there
        session.table = f"{done} of {len(gpu_table.BENCHMARKS)} benchmarks"


def jpeg(study: Any, profile: str) -> dict[str, str]:
    """The JPEG copy of CIFAR-10 travels; it takes the place of the lossless images."""
    return {"cifar10": "cifar10_jpeg"} if "cifar10" in study.data_sets(profile) else {}


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

    import torch

    if not (torch.cuda.is_available() or args.smoke):
        sys.exit("make gpu: torch finds no CUDA GPU here; SMOKE=1 goes through it on the CPU")
    session = Session(args.seconds, args.smoke, args.out, started)
    session.out.mkdir(parents=True, exist_ok=True)
    watchdog = session.watch()
    try:
        go_through(session, args.studies)
    finally:
        session.end_tests()
    watchdog.cancel()
    print(session.summary(), flush=True)
    sys.exit(session.failed)


def go_through(session: Session, names: list[str]) -> None:
    """The tests, the trials, the table."""
    start_tests(session)  # which takes as long as the imports
    from lecture6.provenance import code_version, device_name
    from lecture6.studies import STUDIES as THERE

    profile = "smoke" if session.smoke else "gpu"
    print(f"{device_name()}, {code_version()}; {session.seconds:.0f} s, {session.out}", flush=True)
    chosen = [name for name in names if profile in THERE[name].grids]
    for name in set(names) - set(chosen):
        session.trials[name] = f"have no profile {profile}"
    sets = {
        swap.get(own, own)
        for name in chosen
        for swap in [jpeg(THERE[name], profile)]
        for own in THERE[name].data_sets(profile)
    }
    there = readable(sets)
    end_tests(session)
    for name in chosen:
        run_study(session, name, profile, there, session.share(TABLE_SECONDS, 0.3))
    run_table(session)
    for name in chosen:
        data = "".join(f" --data {old}={new}" for old, new in jpeg(THERE[name], profile).items())
        where = f"--profile {profile} --folder {session.out}{data}"
        print(f"to store: lecture6 collect {name} {where} --partial", flush=True)


if __name__ == "__main__":
    main()
