"""The stored results of full studies: one table and one record of provenance each."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

FOLDER = Path(__file__).parent
LARGE = 200_000  # bytes of CSV above which a table is stored as Parquet


class ResultsError(ValueError):
    """A stored table and its record do not belong together."""


@dataclass(frozen=True)
class Stored:
    """A study's tidy table, and how it was computed (:func:`lecture6.studies.engine.collect`)."""

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
                f"seeds {', '.join(map(str, r['seeds']))}" if r["seeds"] else "no seeds",
                ", ".join(r["device"]),
                " to ".join(dict.fromkeys(r["date"])),
                ", ".join(r["code"]),
            ]
        )

    def line(self, rows: pd.DataFrame, *what: str) -> str:
        """One line for a figure of ``rows``: profile, ``what``, seeds, device, date, commit."""
        r = self.record
        seeds = [str(seed) for seed in sorted(rows["seed"].unique())]
        return " · ".join(
            [
                f"stored, profile {r['profile']}",
                *what,
                f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}",
                ", ".join(r["device"]),
                r["date"][-1],
                ", ".join(r["code"]),
            ]
        )


def select(rows: pd.DataFrame, **wanted) -> pd.DataFrame:
    """The rows of a study's table that have the values ``wanted``: ``net="F2", group="pair"``.

    Raises ValueError where there is none, naming what there is.
    """
    for i, (name, value) in enumerate(wanted.items(), 1):
        found = rows[rows[name] == value]
        if found.empty:
            asked = ", ".join(f"{k} = {v!r}" for k, v in list(wanted.items())[:i])
            raise ValueError(f"no row has {asked}; of {name} there is {listed(rows, name)}")
        rows = found
    return rows


def listed(rows: pd.DataFrame, name: str) -> str:
    """The different values of a column, for :meth:`Stored.line`: "0.0, 0.9"."""
    return ", ".join(map(str, rows[name].drop_duplicates()))


def save(name: str, table: pd.DataFrame, record: dict, *, folder: Path | None = None) -> Path:
    """Store a collected study in ``folder`` (default: the package), in place of what was there.

    The table becomes CSV, or Parquet when the CSV would exceed 200 kB; either gives the same table
    back, up to the last digit. Both files are written beside their targets and renamed, the record,
    which names the table by its SHA-256, last. Returns the table's path. Raises OSError when the
    folder cannot be written; what was there then stays.
    """
    folder = Path(folder or FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    text = table.to_csv(index=False, na_rep="nan")
    path = folder / f"{name}.{'parquet' if len(text) > LARGE else 'csv'}"
    new, new_record = path.with_suffix(".partial"), folder / f"{name}.json.partial"
    try:
        if path.suffix == ".parquet":
            table.to_parquet(new, index=False, compression="zstd")
        else:
            new.write_text(text)
        record = {"table": path.name, "sha256": _sha256(new), **record}
        new_record.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(new, path)
        os.replace(new_record, folder / f"{name}.json")
    finally:
        new.unlink(missing_ok=True)
        new_record.unlink(missing_ok=True)
    for other in {".csv", ".parquet"} - {path.suffix}:
        path.with_suffix(other).unlink(missing_ok=True)
    return path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def has(name: str) -> bool:
    """Whether results of the study ``name`` came with the package."""
    return (FOLDER / f"{name}.json").exists()


def load(name: str, *, folder: Path | None = None) -> Stored:
    """The stored results of a study, e.g. ``results.load("keskar").table``.

    ``folder``: where ``lecture6 collect`` put them; default: those that came with the package.
    Raises FileNotFoundError, with the command that makes them, when there are none, and
    :class:`ResultsError` when the table is not the one that the record was written for.
    """
    folder = Path(folder or FOLDER)
    if not (folder / f"{name}.json").exists():
        raise FileNotFoundError(
            f"no results of {name!r} in {folder}: lecture6 run {name} --profile full, then "
            f"lecture6 collect {name} --profile full"
        )
    record = json.loads((folder / f"{name}.json").read_text())
    path = folder / record["table"]
    if _sha256(path) != record["sha256"]:
        raise ResultsError(
            f"{path} is not the table that {name}.json describes: lecture6 collect {name} again"
        )
    if path.suffix == ".parquet":
        return Stored(pd.read_parquet(path), record)
    return Stored(pd.read_csv(path, keep_default_na=False, na_values=["nan"]), record)
