"""Stored results: whole, small, and the same table whatever the format."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lecture6.checkpoints import write_atomically
from lecture6.studies import STUDIES, StudyError, results

TABLES = {
    "runs": pd.DataFrame(
        {
            "net": ["F1", "C1, stride 2", "F1"],
            "seed": [0, 1, 2],
            "lbfgsb": [True, None, True],
            "n_updates": [7, 9, 11],
        }
    ),
    "history": pd.DataFrame(
        {
            "net": ["F1", "C1, stride 2", "F1"],
            "split": ["train", "", "nan of a kind"],
            "loss": [0.1 + 0.2, 1e-300, math.nan],
        }
    ),
}
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


def test_what_is_saved_is_what_is_loaded(tmp_path):
    path = results.save("toy", TABLES, RECORD, folder=tmp_path)
    assert path == tmp_path / "toy.json"
    stored = results.load("toy", folder=tmp_path)
    assert list(stored.tables) == ["runs", "history"]
    for kind, table in TABLES.items():
        pd.testing.assert_frame_equal(stored.tables[kind], table, check_exact=True)
    assert {k: stored.record[k] for k in RECORD} == RECORD
    assert stored.caption == (
        "stored study toy, profile full, 2 of 3 trials · digits · seeds 0, 1 · CPU · "
        "2026-11-23 to 2026-11-24 · commit 1234567"
    )
    files = {entry["file"] for entry in stored.record["tables"].values()}
    assert {p.name for p in tmp_path.iterdir()} == {*files, "toy.json"}


def test_new_results_take_the_place_of_the_old(tmp_path):
    results.save("toy", TABLES, RECORD, folder=tmp_path)
    results.save("other", TABLES, RECORD, folder=tmp_path)
    results.save("toy", {"runs": TABLES["runs"].head(1)}, RECORD, folder=tmp_path)
    assert len(list(tmp_path.glob("toy.*.parquet"))) == 1
    assert list(results.load("toy", folder=tmp_path).tables) == ["runs"]
    assert list(results.load("other", folder=tmp_path).tables) == ["runs", "history"]


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [damage, Path.unlink])
def test_a_table_that_is_not_that_of_its_record_is_refused(tmp_path, spoil):
    results.save("toy", TABLES, RECORD, folder=tmp_path)
    [path] = tmp_path.glob("toy.history.*.parquet")
    spoil(path)
    with pytest.raises(StudyError, match=r"toy\.json .*does not fit.* \(.*toy\.history\."):
        results.load("toy", folder=tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"table": "toy.csv"}'])
def test_a_record_that_cannot_be_read_is_refused(tmp_path, text):
    (tmp_path / "toy.json").write_text(text)
    with pytest.raises(
        StudyError, match=r"toy\.json is damaged.*lecture6 collect toy .* --to .* again"
    ):
        results.load("toy", folder=tmp_path)
    results.save("toy", TABLES, RECORD, folder=tmp_path)
    results.load("toy", folder=tmp_path)


def test_rows_are_selected_by_value_in_every_table():
    found = results.select(TABLES, net="F1", seed=[1, 2])
    assert found["runs"]["seed"].to_list() == [2]
    assert found["history"].empty  # it has no seeds
    both = results.concat(
        results.select(TABLES, net="C1, stride 2"), results.select(TABLES, seed=0)
    )
    assert both["runs"]["n_updates"].to_list() == [9, 7]
    with pytest.raises(ValueError, match="no run has net = 'F2'; of net there is F1, C1, stride 2"):
        results.select(TABLES, net="F2")
    with pytest.raises(ValueError, match="no run has lr = 1; the parameters are net, seed"):
        results.select(TABLES, lr=1)


def test_results_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results of 'toy' .* lecture6 run toy .* --to"):
        results.load("toy", folder=tmp_path)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch, n):
    results.save("toy", TABLES, RECORD, folder=tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    written = []

    def full(path, content):
        written.append(path)
        if len(written) == n:
            raise OSError(28, "No space left on device")
        write_atomically(path, content)

    monkeypatch.setattr(results, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        results.save("toy", {k: t.head(1) for k, t in TABLES.items()}, RECORD, folder=tmp_path)
    for name, content in before.items():
        assert (tmp_path / name).read_bytes() == content
    assert len(results.load("toy", folder=tmp_path).tables["runs"]) == 3


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
        numbers = ("loss", "accuracy", "error", "value", "gap", "lambda_max", "distance")
        for table in stored.tables.values():
            assert np.isfinite(table[[c for c in numbers if c in table]]).all(axis=None)
        json.dumps(stored.record, allow_nan=False)
