"""What a page says about its numbers: profile, provenance, intervals, claims."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML
from scipy import stats

from lecture6 import checks
from lecture6.provenance import code_version, device_name

PROFILES = ("smoke", "book", "full")
VERDICTS = {True: "holds", False: "does not hold", None: "cannot tell"}


def settings(profile: str, **by_profile: dict[str, Any]) -> SimpleNamespace:
    """The settings of one profile: ``settings("book", smoke={...}, book={...}, full={...}).lr``.

    Raises ValueError for a profile other than these, and for one without settings.
    """
    for name in (profile, *by_profile):
        if name not in PROFILES:
            raise ValueError(
                f"profile must be one of {', '.join(PROFILES)}, got {name!r}; it is set by the "
                "notebook's parameter 'profile' or the environment variable LECTURE6_PROFILE"
            )
    if not isinstance(by_profile.get(profile), dict):
        raise ValueError(f"no settings of the profile {profile!r} are given: add {profile}=dict(…)")
    return SimpleNamespace(**by_profile[profile])


def provenance(profile: str, data: str, seeds: Sequence[int]) -> str:
    """One line that says which run a figure shows: profile, data, seeds, device, date, code.

    Raises ValueError for a run without seeds, and for what is no seed.
    """
    seeds = [checks.seed(seed, "one of the seeds") for seed in np.ravel(np.asarray(seeds))]
    if not seeds:
        raise ValueError("a run has at least one seed, got none")
    gapless = len(seeds) > 1 and seeds == list(range(seeds[0], seeds[-1] + 1))
    numbers = f"{seeds[0]}–{seeds[-1]}" if gapless else ", ".join(map(str, seeds))
    return (
        f"profile {profile} · {data} · seed{'s' * (len(seeds) > 1)} {numbers} · "
        f"{device_name()} · {date.today().isoformat()} · {code_version()}"
    )


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % confidence interval; prints as mean [low, high]."""

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


def interval(values: Iterable[float]) -> Interval:
    """Mean of one value a seed and its two-sided Student-t interval.

    Raises ValueError for fewer than 2 values, and values that are not finite.
    """
    values = _one_a_seed(values)
    mean, half = values.mean(), stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return Interval(float(mean), float(mean - half), float(mean + half), len(values))


def geometric_interval(values: Iterable[float]) -> Interval:
    """The same for positive values that differ by factors: of their logarithms, exponentiated."""
    log = interval(np.log(_one_a_seed(values, above=0)))
    mean, low, high = np.exp([log.mean, log.low, log.high]).tolist()
    return Interval(mean, low, high, log.n_seeds)


def _one_a_seed(values: Iterable[float], **bounds: float) -> np.ndarray:
    values = values if isinstance(values, Iterable) else [values]
    checked = [checks.real("the value of each seed", value, **bounds) for value in values]
    if len(checked) < 2:
        raise ValueError(f"an interval needs at least 2 seeds, got {len(checked)}")
    return np.asarray(checked)


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

    def __post_init__(self) -> None:
        if not isinstance(self.holds, bool | np.bool_ | None):
            raise ValueError(f"{self.claim!r} holds: True, False or None, not {self.holds!r}")


def claims_table(claims: Iterable[Claim]) -> HTML:
    """The claims of a chapter as an HTML table of class ``claims`` (the scorecard collects it)."""
    rows = [(c.claim, c.source, c.paper, c.ours, c.seeds, c.run, VERDICTS[c.holds]) for c in claims]
    if not rows:
        raise ValueError("a table of claims needs at least one, got none")
    columns = ["Claim", "Source", "There", "Here", "Seeds", "Computed", "Verdict"]
    table = pd.DataFrame(rows, columns=columns)
    return HTML(table.to_html(classes="claims", index=False, border=0))
