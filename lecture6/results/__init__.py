"""The stored results of full studies: one table and one record of provenance each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

FOLDER = Path(__file__).parent
LARGE = 200_000  # bytes of CSV above which a table is stored as Parquet


@dataclass(frozen=True)
class Stored:
    """A study's tidy table, and how it was computed (:func:`lecture6.studies.collect`)."""

    table: pd.DataFrame
    record: dict

    @property
    def caption(self) -> str:
        """One line for a figure: profile, trials, data, seeds, device, dates, commit."""
        r = self.record
        done, all_trials = r["trials"]
        trials = f"{done} trials" if done == all_trials else f"{done} of {all_trials} trials"
        return " · ".join(
            [
                f"stored study {r['study']}, profile {r['profile']}, {trials}",
                ", ".join(r["data"]),
                ", ".join(r["device"]),
                " to ".join(dict.fromkeys(r["date"])),
                ", ".join(r["code"]),
            ]
        )


def has(name: str) -> bool:
    """Whether results of the study ``name`` are stored."""
    return (FOLDER / f"{name}.json").exists()


def load(name: str) -> Stored:
    """The stored results of a study, e.g. ``results.load("keskar").table``.

    Raises FileNotFoundError, with the command that makes them, when there are none.
    """
    if not has(name):
        raise FileNotFoundError(
            f"no results of {name!r} are stored: lecture6 run {name} --profile full, then "
            f"lecture6 collect {name} --profile full"
        )
    record = json.loads((FOLDER / f"{name}.json").read_text())
    path = FOLDER / record["table"]
    return Stored(pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path), record)
