"""What a page says about its numbers: profile, provenance, intervals, claims."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from IPython.display import HTML
from scipy import stats

PROFILES = ("smoke", "book", "full")


def settings(profile: str, **by_profile: dict) -> SimpleNamespace:
    """The settings of one profile: ``settings("book", smoke={...}, book={...}, full={...}).lr``.

    Raises ValueError for a profile other than smoke, book and full.
    """
    if profile not in PROFILES:
        raise ValueError(
            f"profile must be one of {', '.join(PROFILES)}, got {profile!r}; it is set by the "
            "notebook's parameter 'profile' or the environment variable LECTURE6_PROFILE"
        )
    return SimpleNamespace(**by_profile[profile])


def provenance(profile: str, data: str, seeds: Sequence[int]) -> str:
    """One line that says which run a figure shows: profile, data, seeds, device, date, code."""
    first, last = seeds[0], seeds[-1]
    gapless = len(seeds) > 1 and list(seeds) == list(range(first, last + 1))
    numbers = f"{first}–{last}" if gapless else ", ".join(map(str, seeds))
    return (
        f"profile {profile} · {data} · seed{'s' * (len(seeds) > 1)} {numbers} · "
        f"{device_name()} · {date.today().isoformat()} · {code_version()}"
    )


def device_name() -> str:
    """What computes here: "GPU NVIDIA H200", or "CPU x86_64" when there is no GPU."""
    if torch.cuda.is_available():
        return f"GPU {torch.cuda.get_device_name()}"
    return f"CPU {platform.machine()}"


def code_version() -> str:
    """The commit that the package came from, "+" when changed since; else its version."""
    folder = Path(__file__).parent
    git = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"]
    tracked = ["git", "-C", str(folder), "ls-files", "--error-unmatch", __file__]
    try:
        subprocess.run(tracked, capture_output=True, check=True)
        found = subprocess.run(git, capture_output=True, text=True, check=True)
        return f"commit {found.stdout.strip()}"
    except (OSError, subprocess.CalledProcessError):
        pass  # not a checkout: installed by pip, which records the commit it fetched
    record = metadata.distribution("lecture6").read_text("direct_url.json")
    commit = json.loads(record or "{}").get("vcs_info", {}).get("commit_id")
    return f"commit {commit[:7]}" if commit else f"version {metadata.version('lecture6')}"


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its Student-t confidence interval; prints as mean [low, high]."""

    mean: float
    low: float
    high: float
    n_seeds: int

    @property
    def positive(self) -> bool | None:
        """True if the whole interval lies above 0, False if it lies below, else None."""
        return True if self.low > 0 else False if self.high < 0 else None

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """Mean of one value a seed and its two-sided t-interval; needs at least 2 values."""
    values = np.asarray(list(values), dtype=float)
    if len(values) < 2:
        raise ValueError(f"an interval needs at least 2 seeds, got {len(values)}")
    half = stats.sem(values) * stats.t.ppf(0.5 + level / 2, len(values) - 1)
    mean = float(values.mean())
    return Interval(mean, float(mean - half), float(mean + half), len(values))


def geometric_interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """The same for positive values that differ by factors: of their logarithms, exponentiated."""
    values = np.asarray(list(values), dtype=float)
    if not (values > 0).all():
        raise ValueError(f"a geometric mean needs positive values, got {values.tolist()}")
    log = interval(np.log(values), level)
    low, high = float(np.exp(log.low)), float(np.exp(log.high))
    return Interval(float(np.exp(log.mean)), low, high, log.n_seeds)


@dataclass(frozen=True)
class Claim:
    """One row of a claims table: what is claimed, by whom, and what was found here."""

    claim: str
    source: str
    paper: str
    ours: str
    seeds: int | str  #: "exact" for arithmetic
    holds: bool | None  #: None: these runs cannot tell
    run: str = "this page"  #: or the stored study that it rests on


def claims_table(claims: Iterable[Claim]) -> HTML:
    """The claims of a chapter as an HTML table of class ``claims`` (the scorecard collects it)."""
    words = {True: "holds", False: "does not hold", None: "cannot tell"}
    table = pd.DataFrame(
        {
            "Claim": c.claim,
            "Source": c.source,
            "There": c.paper,
            "Here": c.ours,
            "Seeds": c.seeds,
            "Computed": c.run,
            "Verdict": words[c.holds if c.holds is None else bool(c.holds)],
        }
        for c in claims
    )
    return HTML(table.to_html(classes="claims", index=False, border=0))
