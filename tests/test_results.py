"""Stored results: whole, small, and the same table whatever the format."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from lecture6 import results
from lecture6.studies import STUDIES

TABLE = pd.DataFrame(
    {
        "net": ["F1", "C1, stride 2", "F1"],
        "of": ["train", "", "nan of a kind"],
        "seed": [0, 1, 2],
        "lbfgsb": [True, False, True],
        "value": [0.1 + 0.2, 1e-300, math.nan],
    }
)
RECORD = {
    "study": "toy",
    "profile": "full",
    "trials": [2, 3],
    "data": {"digits": "abc"},
    "seeds": [0, 1],
    "device": ["CPU"],
    "code": ["commit 1234567"],
    "date": ["2026-11-23", "2026-11-24"],
}


@pytest.mark.parametrize("large", [200_000, 10])
def test_what_is_saved_is_what_is_loaded(tmp_path, monkeypatch, large):
    monkeypatch.setattr(results, "LARGE", large)
    path = results.save("toy", TABLE, RECORD, folder=tmp_path)
    assert path.name == ("toy.parquet" if large == 10 else "toy.csv")
    stored = results.load("toy", folder=tmp_path)
    pd.testing.assert_frame_equal(stored.table, TABLE, rtol=1e-15, atol=0, check_dtype=False)
    assert stored.table["of"].to_list() == TABLE["of"].to_list()
    assert {k: stored.record[k] for k in RECORD} == RECORD
    assert stored.caption == (
        "stored study toy, profile full, 2 of 3 trials · digits · seeds 0, 1 · CPU · "
        "2026-11-23 to 2026-11-24 · commit 1234567"
    )
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "toy.json"}


def test_another_format_takes_the_place_of_the_first(tmp_path, monkeypatch):
    results.save("toy", TABLE, RECORD, folder=tmp_path)
    monkeypatch.setattr(results, "LARGE", 10)
    results.save("toy", TABLE.head(1), RECORD, folder=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"toy.parquet", "toy.json"}
    assert len(results.load("toy", folder=tmp_path).table) == 1


def test_a_table_without_its_record_is_refused(tmp_path):
    path = results.save("toy", TABLE, RECORD, folder=tmp_path)
    path.write_text(path.read_text().replace("C1", "C2"))
    with pytest.raises(results.ResultsError, match=r"toy\.csv is not the table that toy\.json"):
        results.load("toy", folder=tmp_path)


def test_results_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results of 'toy' .* lecture6 run toy"):
        results.load("toy", folder=tmp_path)
    assert not results.has("toy")


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    results.save("toy", TABLE, RECORD, folder=tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        results.save("toy", TABLE.head(1), RECORD, folder=tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_all_stored_results_are_small_and_can_be_loaded():
    names = [path.stem for path in results.FOLDER.glob("*.json")]
    assert set(names) <= set(STUDIES)
    size = sum(p.stat().st_size for p in results.FOLDER.iterdir() if p.suffix != ".py")
    assert size < 2_000_000, "2 MB at most for all studies together"
    for name in names:
        stored = results.load(name)
        assert stored.record["study"] == name
        assert stored.record["profile"] == "full"
        assert all("+" not in code for code in stored.record["code"]), "computed by changed code"
        assert np.isfinite(stored.table["value"]).all()
        json.dumps(stored.record, allow_nan=False)
