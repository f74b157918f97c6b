"""The steps of `make gpu` (gpu.py), and the time that they have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Timer
from typing import Any, NoReturn

import gpu_table

from lecture6 import data
from lecture6.provenance import code_version, device_name
from lecture6.studies import STUDIES, Study, StudyError, plan, run
from lecture6.studies.trials import Trial

TESTS = Path(__file__).resolve().parents[1] / "tests"
TESTS_SECONDS, TRIAL_SECONDS = 120.0, 240.0  # at most
TABLE_SECONDS = 80.0  # kept for the table
MARGIN = 6.0  # seconds before the end in which nothing is computed any more
STOPPED = "stopped, they took too long"


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

    def run(self, names: Sequence[str]) -> NoReturn:
        """The tests, the trials, the table."""
        watchdog = self.watch()
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            go_through(self, names)
        except (OSError, StudyError) as error:
            print(f"make gpu: {error}", file=sys.stderr)
            self.failed = True
        watchdog.cancel()
        self.end()

    def watch(self) -> Timer:
        """Start what ends the process before the time is up, whatever it computes then."""
        timer = Timer(self.left() + MARGIN / 2, self.end)
        timer.daemon = True
        timer.start()
        return timer

    def end(self) -> NoReturn:
        """Say what is done, and end the process at once, whatever it computes."""
        self.end_tests()
        print(self.summary(), flush=True)
        os._exit(self.failed)


# ---- the steps ---------------------------------------------------------------------------------


def go_through(session: Session, names: Sequence[str]) -> None:
    """The tests, the trials, the table."""
    start_tests(session)
    profile = "smoke" if session.smoke else "gpu"
    print(f"{device_name()}, {code_version()}; {session.seconds:.0f} s, {session.out}", flush=True)
    chosen = {name: STUDIES[name] for name in names if profile in STUDIES[name].grids}
    sets = set()
    for name in names:
        session.trials[name] = f"no profile {profile}"
        if name in chosen:
            swap = jpeg(chosen[name], profile)
            state = plan(chosen[name], profile, folder=session.out, replace=swap)
            session.trials[name] = f"{len(state.finished)} of {len(state.trials)}"
            sets |= {swap.get(used, used) for used in chosen[name].data_sets(profile)}
    there = readable(sets)
    end_tests(session)
    for name in chosen:
        run_study(session, name, profile, there, session.share(TABLE_SECONDS, 0.3))
    run_table(session)
    for name, study in chosen.items():
        swap = "".join(f" --data {old}={new}" for old, new in jpeg(study, profile).items())
        where = f"--profile {profile} --folder {session.out}{swap}"
        print(f"to store: lecture6 collect {name} {where} --partial", flush=True)


def start_tests(session: Session) -> None:
    """Start the tests that need a GPU; at smoke, those of lecture6.device."""
    chosen = [TESTS / "test_device.py"]
    if not session.smoke:
        files = sorted(TESTS.glob("test_*.py"))
        marked = [f for f in files if "\n@pytest.mark.gpu\n" in f.read_text("utf8")]
        chosen = ["--gpu", "-m", "gpu", *marked]
    with open(session.out / "tests.log", "w") as log:
        session.process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen],
            cwd=TESTS.parent,
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


def run_trial(session: Session, one: Study, profile: str, allowed: float) -> str:
    """Run a study of one trial; what has kept it from finishing, or ""."""
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


def alone(study: Study, profile: str, trial: Trial) -> Study:
    """The study of one trial: the same function and parameters, so the same key."""
    grids, costs = {profile: [trial.parameters]}, {profile: [trial.cost]}
    return replace(study, grids=grids, costs=costs)


def run_table(session: Session) -> None:
    """Measure what the table lacks, as far as the time goes."""
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


def jpeg(study: Study, profile: str) -> dict[str, str]:
    """The JPEG copy of CIFAR-10 travels; it takes the place of the lossless images."""
    return {"cifar10": "cifar10_jpeg"} if "cifar10" in study.data_sets(profile) else {}
