"""The stored results of full studies: tables by kind, and one record of how they were computed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lecture6.checkpoints import write_atomically
from lecture6.studies.trials import StudyError

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Stored:
    """A study's tables by kind, and their record (:func:`lecture6.studies.runner.collect`)."""

    tables: dict[str, pd.DataFrame]
    record: dict[str, Any]

    @property
    def caption(self) -> str:
        """One line for a figure: profile, trials, data, seeds, device, dates, commit."""
        r = self.record
        trials = " of ".join(map(str, dict.fromkeys(r["trials"])))
        what = f"stored study {r['study']}, profile {r['profile']}, {trials} trials"
        seeds = f"seeds {', '.join(map(str, r['seeds']))}" if r["seeds"] else "no seeds"
        dates = " to ".join(dict.fromkeys(r["date"]))
        return self._computed(what, ", ".join(r["data"]), seeds, date=dates)

    def line(self, rows: pd.DataFrame, *what: str) -> str:
        """One line for a figure of ``rows``: profile, ``what``, seeds, device, date, commit."""
        seeds = sorted(rows["seed"].unique())
        numbers = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        profile = f"stored, profile {self.record['profile']}"
        return self._computed(profile, *what, numbers, date=self.record["date"][-1])

    def _computed(self, *what: str, date: str) -> str:
        r = self.record
        return " · ".join([*what, ", ".join(r["device"]), date, ", ".join(r["code"])])


def select(tables: Mapping[str, pd.DataFrame], **wanted: Any) -> dict[str, pd.DataFrame]:
    """The rows of a study's tables that have the values ``wanted``: ``net="F2", group="pair"``.

    A list of values stands for any of them. Raises ValueError where there is no such run, naming
    what there is.
    """
    asked = []
    for name, value in wanted.items():
        asked.append(f"{name} = {value!r}")
        if name not in tables["runs"]:
            there = ", ".join(tables["runs"].columns)
            raise ValueError(f"no run has {asked[-1]}; the parameters are {there}")
        values = value if isinstance(value, list) else [value]
        there = distinct_values(tables["runs"], name)
        tables = {
            kind: rows[rows[name].isin(values)] if name in rows else rows.iloc[:0]
            for kind, rows in tables.items()
        }
        if tables["runs"].empty:
            raise ValueError(f"no run has {', '.join(asked)}; of {name} there is {there}")
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
    entries = {}
    for kind, table in tables.items():
        content = io.BytesIO()
        # a quarter smaller than pandas' own settings for tables of a few thousand rows
        small = {"compression": "zstd", "compression_level": 19}
        table.to_parquet(content, index=False, write_statistics=False, store_schema=False, **small)
        digest = hashlib.sha256(content.getvalue()).hexdigest()
        file = f"{name}.{kind}.{digest[:8]}.parquet"
        entries[kind] = {"file": file, "rows": len(table), "sha256": digest}
        write_atomically(folder / file, content.getvalue())
    path = folder / f"{name}.json"
    text = json.dumps({"tables": entries, **record}, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())
    kept = [entry["file"] for entry in entries.values()]
    for old in folder.glob(f"{name}.*.parquet"):
        if old.name not in kept:
            old.unlink(missing_ok=True)
    return path


def load(name: str, *, folder: Path | None = None) -> Stored:
    """The stored results of a study, e.g. ``results.load("keskar").tables["sharpness"]``.

    See the study's module for its kinds of tables and their columns. ``folder``: where ``lecture6
    collect`` put them; default: those that came with the package. Raises FileNotFoundError when
    there are none, and :class:`lecture6.studies.trials.StudyError` when a table is not the one that
    the record was written for.
    """
    path = Path(folder or FOLDER) / f"{name}.json"
    collect = f"lecture6 collect {name} --profile full" + (f" --to {folder}" if folder else "")
    if not path.exists():
        raise FileNotFoundError(
            f"no results of {name!r} in {path.parent}: lecture6 run {name} --profile full, then "
            f"{collect}"
        )
    tables = {}
    try:
        record = json.loads(path.read_text("utf8"))
        for kind, entry in record["tables"].items():
            content = (path.parent / entry["file"]).read_bytes()
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                raise ValueError(f"{entry['file']} is another table")
            tables[kind] = pd.read_parquet(io.BytesIO(content))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(
            f"{path} is damaged, does not fit its tables, or is of an older lecture6 ({error}): "
            f"{collect} again"
        ) from None
    return Stored(tables, record)
