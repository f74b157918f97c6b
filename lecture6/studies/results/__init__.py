"""The stored results of full studies: tables by kind, and one record of how they were computed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lecture6.checkpoints import write_atomically

FOLDER = Path(__file__).parent
# a quarter smaller than pandas' own settings for tables of a few thousand rows
_PARQUET: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 19,
    "write_statistics": False,
    "store_schema": False,
}


class ResultsError(ValueError):
    """A stored table and its record do not belong together."""


@dataclass(frozen=True)
class Stored:
    """A study's tables by kind, and how they were computed (:func:`lecture6.studies.collect`)."""

    tables: dict[str, pd.DataFrame]
    record: dict[str, Any]

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


def select(tables: Mapping[str, pd.DataFrame], **wanted: Any) -> dict[str, pd.DataFrame]:
    """The rows of a study's tables that have the values ``wanted``: ``net="F2", group="pair"``.

    A list of values stands for any of them. Raises ValueError where there is no such run, naming
    what there is.
    """
    for i, (name, value) in enumerate(wanted.items(), 1):
        if name not in tables["runs"]:
            there = ", ".join(tables["runs"].columns)
            raise ValueError(f"no run has {name} = {value!r}; the parameters are {there}")
        values = value if isinstance(value, list) else [value]
        found = {
            kind: rows[rows[name].isin(values)] if name in rows else rows.iloc[:0]
            for kind, rows in tables.items()
        }
        if found["runs"].empty:
            asked = ", ".join(f"{k} = {v!r}" for k, v in list(wanted.items())[:i])
            there = distinct_values(tables["runs"], name)
            raise ValueError(f"no run has {asked}; of {name} there is {there}")
        tables = found
    return dict(tables)


def concat(*parts: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The rows of several selections of a study's tables, one after another."""
    return {kind: pd.concat([part[kind] for part in parts]) for kind in parts[0]}


def distinct_values(rows: pd.DataFrame, name: str) -> str:
    """The different values of a column, for :meth:`Stored.line`: "0.0, 0.9"."""
    return ", ".join(map(str, rows[name].drop_duplicates()))


def save(
    name: str, tables: Mapping[str, pd.DataFrame], record: dict, *, folder: Path | None = None
) -> Path:
    """Store a collected study in ``folder`` (default: the package), in place of what was there.

    Each table becomes a Parquet file that has a part of its SHA-256 in its name, so that what was
    there stays whole until the record, written last, names the new ones. Returns the record's path.
    Raises OSError when the folder cannot be written; what was there then stays.
    """
    folder = Path(folder or FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    before: dict = {}
    with suppress(FileNotFoundError, ResultsError):
        before = _record(path)["tables"]
    entries = {}
    for kind, table in tables.items():
        content = io.BytesIO()
        table.to_parquet(content, index=False, **_PARQUET)
        digest = hashlib.sha256(content.getvalue()).hexdigest()
        file = f"{name}.{kind}.{digest[:8]}.parquet"
        entries[kind] = {"file": file, "rows": len(table), "sha256": digest}
        write_atomically(folder / file, content.getvalue())
    text = json.dumps({"tables": entries, **record}, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())
    for file in {e["file"] for e in before.values()} - {e["file"] for e in entries.values()}:
        (folder / file).unlink(missing_ok=True)
    return path


def has(name: str) -> bool:
    """Whether results of the study ``name`` came with the package."""
    return (FOLDER / f"{name}.json").exists()


def load(name: str, *, folder: Path | None = None) -> Stored:
    """The stored results of a study, e.g. ``results.load("keskar").tables["sharpness"]``.

    Every study has the tables "runs" and "history"; see its module for their columns and the other
    kinds. ``folder``: where ``lecture6 collect`` put them; default: those that came with the
    package. Raises FileNotFoundError, with the command that makes them, when there are none, and
    :class:`ResultsError` when a table is not the one that the record was written for.
    """
    folder = Path(folder or FOLDER)
    if not (folder / f"{name}.json").exists():
        raise FileNotFoundError(
            f"no results of {name!r} in {folder}: lecture6 run {name} --profile full, then "
            f"lecture6 collect {name} --profile full"
        )
    record = _record(folder / f"{name}.json")
    tables = {}
    for kind, entry in record["tables"].items():
        path = folder / entry["file"]
        content = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise ResultsError(
                f"{path} is not the table that {name}.json describes: lecture6 collect {name} again"
            )
        tables[kind] = pd.read_parquet(io.BytesIO(content))
    return Stored(tables, record)


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text("utf8"))
        if isinstance(record["tables"], dict):
            return record
    except (ValueError, KeyError, TypeError):
        pass
    raise ResultsError(
        f"{path} is damaged, or of an older lecture6: lecture6 collect {path.stem} again"
    )
