"""What a page says about its runs: the settings of a profile, and the line under a figure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from types import SimpleNamespace
from typing import Any

import numpy as np

from lecture6 import checks
from lecture6.provenance import code_version, device_name

PROFILES = ("smoke", "book", "full")


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
