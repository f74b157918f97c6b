"""The study of η/B: its trial, its square waves, and what is read from its table."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic import gaussian_classes

from lecture6 import models
from lecture6.objective import NetworkObjective
from lecture6.studies import STUDIES, jastrzebski, tabulate
from lecture6.studies.results import Stored, concat, select
from lecture6.train import train

STUDY = STUDIES["jastrzebski"]
POINT = {"net": "12-8", "group": "ratio", "n_train": 60, "n_test": 40, "lr": 0.2, "batch_size": 10}
POINT |= {"epochs": 4, "seed": 1, "evaluate_every": 2}


@pytest.fixture(scope="module", autouse=True)
def _alone(one_thread):
    """Tiny nets."""


@pytest.fixture(scope="module")
def small(digits):
    return digits.subset(60, 40).centred()


def row(rows, kind, **where):
    [found] = [r for r in rows[kind] if all(r[k] == v for k, v in where.items())]
    return found


def test_a_trial_reports_what_plain_training_gives(digits, small):
    rows = jastrzebski.trial(data=digits, **POINT)
    model = models.mlp(64, (12, 8), seed=1)
    settings = {"batch_size": 10, "lr": 0.2, "epochs": 2}
    middle = train(model, small, seed=1000, **settings)
    alone = train(middle.model, small, seed=1001, **settings)  # it goes on from there
    for split in ("train", "test"):
        for epoch, run in ((2, middle), (4, alone)):
            found = row(rows, "history", split=split, epoch=epoch)
            assert found["accuracy"] == pytest.approx(run.final(split))
            assert found["loss"] == pytest.approx(run.final(split, "loss"), rel=1e-4)
    assert rows["runs"] == [{"n_updates": 24, "bfloat16": False, "diverged": False}]
    assert [r["epoch"] for r in rows["history"] if r["split"] == "test"] == [0, 2, 4]
    assert set(rows) == {"history", "runs"}


def test_its_curvature_is_that_of_the_dense_hessian(digits, small):
    rows = jastrzebski.trial(data=digits, **POINT | {"net": "4", "n_curvature": 30})
    model, part = models.mlp(64, 4, seed=1), small.subset(30)
    for number, epoch in enumerate((2, 4)):
        settings = {"batch_size": 10, "lr": 0.2, "epochs": 2, "seed": 1000 + number}
        model = train(model, small, **settings).model
        f = NetworkObjective(model, part.x_train, part.y_train, dtype=torch.float64)
        hessian = f.product(f.w)(torch.eye(f.n_params)).numpy()
        top = np.linalg.eigvalsh(hessian)[-1]
        found = row(rows, "curvature", epoch=epoch)
        assert found["lambda_max"] == pytest.approx(top, rel=0.02)
        assert found["lambda_max_error"] <= 0.01 * top
        assert abs(found["trace"] - hessian.trace()) < 4 * found["trace_stderr"]


def test_the_square_waves():
    assert list(jastrzebski.pieces(0.1, 16, 30, 30)) == [(0.1, 16, 30)]
    assert [n for *_, n in jastrzebski.pieces(0.1, 16, 25, 10)] == [10, 10, 5]
    batch = list(jastrzebski.pieces(0.1, 16, 12, 10, "batch"))
    assert batch == [(0.1, 16, 5), (0.1, 80, 5), (0.1, 16, 2)]
    rate = list(jastrzebski.pieces(0.1, 16, 12, 10, "rate"))
    assert rate == [(0.1, 16, 5), (0.1 / 5, 16, 5), (0.1, 16, 2)]
    for a, b in zip(batch, rate, strict=True):
        assert a[0] / a[1] == pytest.approx(b[0] / b[1])
    with pytest.raises(ValueError, match="cycle must be '', 'batch' or 'rate', got 'momentum'"):
        list(jastrzebski.pieces(0.1, 16, 10, 10, "momentum"))


def test_a_cycle_goes_on_from_where_the_phase_before_ended(digits, small):
    rows = jastrzebski.trial(
        data=digits, **POINT | {"cycle": "batch", "epochs": 20, "evaluate_every": 10}
    )
    model = models.mlp(64, (12, 8), seed=1)
    for number, size in enumerate((10, 50, 10, 50)):
        settings = {"batch_size": size, "lr": 0.2, "epochs": 5, "seed": 1000 + number}
        model = train(model, small, **settings).model
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(small.x_train), small.y_train).item()
    last = row(rows, "history", split="train", epoch=20)
    assert last["loss"] == pytest.approx(loss, rel=1e-4)
    assert rows["runs"][0]["n_updates"] == 2 * 5 * (6 + 2)
    assert [r["epoch"] for r in rows["history"] if r["split"] == "test"] == [0, 10, 20]


def test_wrong_labels_are_counted_apart(digits):
    point = POINT | {"random_labels": 0.5, "net": "64", "lr": 0.5, "n_train": 30}
    rows = jastrzebski.trial(data=digits, **point | {"epochs": 400, "evaluate_every": 200})
    assert row(rows, "labels", epoch=400) == {"epoch": 400, "right": 1.0, "wrong": 1.0}
    # of the labels as they were given
    assert row(rows, "history", split="train", epoch=400)["accuracy"] == 1.0
    rows = jastrzebski.trial(data=digits, **point | {"evaluate_every": 4})
    part = digits.subset(30, 40)
    wrong = (part.with_random_labels(0.5).y_train != part.y_train).double().mean().item()
    assert 0.3 < wrong < 0.5  # some were redrawn and are right
    learnt = row(rows, "labels", epoch=4)
    parts = wrong * learnt["wrong"] + (1 - wrong) * learnt["right"]
    found = row(rows, "history", split="train", epoch=4)
    assert found["accuracy"] == pytest.approx(parts)


def test_a_trial_that_diverges_says_so(digits):
    points = [POINT, POINT | {"lr": 1e30}]
    trials = [(p, jastrzebski.trial(data=digits, **p)) for p in points]
    assert trials[1][1] == {"runs": [{"diverged": True}]}
    table = jastrzebski.final(tabulate(trials))
    assert table["diverged"].tolist() == [0.0, 1.0]
    assert table["loss"].isna().tolist() == [False, True]


def test_a_subset_is_another_part_of_the_training_set(digits):
    rows = jastrzebski.trial(data=digits, **POINT | {"subset": 2, "epochs": 2})
    part = digits.subset(60, 40, seed=2).centred()
    settings = {"batch_size": 10, "lr": 0.2, "epochs": 2, "seed": 1000}
    alone = train(models.mlp(64, (12, 8), seed=1), part, **settings)
    found = row(rows, "history", split="train", epoch=2)["loss"]
    assert found == pytest.approx(alone.final("train", "loss"), rel=1e-4)
    assert (
        found
        != row(jastrzebski.trial(data=digits, **POINT), "history", split="train", epoch=2)["loss"]
    )


def test_curvature_is_measured_on_either_side_of_each_level(digits):
    point = POINT | {"n_curvature": 30, "evaluate_every": 1, "epochs": 12}
    every = jastrzebski.trial(data=digits, **point)
    loss = [r["loss"] for r in every["history"] if r["split"] == "train"]
    levels = [(loss[3] + loss[4]) / 2, loss[8]]  # the second is met exactly
    first = [next(e for e, value in enumerate(loss) if value <= level) for level in levels]
    some = jastrzebski.trial(data=digits, **point | {"levels": levels})
    assert some["history"] == every["history"]
    wanted = sorted({e - before for e in first for before in (0, 1)} | {12})
    assert [r["epoch"] for r in some["curvature"]] == wanted
    assert some["curvature"] == [r for r in every["curvature"] if r["epoch"] in wanted]
    for level in levels:
        known = [
            jastrzebski.crossing(
                jastrzebski.evaluations(tabulate([(point | {"data": "digits"}, rows)])),
                "loss",
                level,
                "lambda_max",
            )["lambda_max"].item()
            for rows in (some, every)
        ]
        assert known[0] == known[1] > 0
    above = jastrzebski.trial(data=digits, **point | {"levels": [100.0]})  # before the first epoch
    assert [r["epoch"] for r in above["curvature"]] == [0, 1, 12]


def test_a_vgg_is_trained_with_its_batch_norm():
    images = gaussian_classes(24, 12, shape=(3, 32, 32), n_classes=2)
    point = {"net": "VGG-11", "group": "ratio", "lr": 0.05, "batch_size": 8, "seed": 0}
    rows = jastrzebski.trial(data=images, **point, epochs=1, evaluate_every=1)
    settings = {"lr": 0.05, "batch_size": 8, "epochs": 1, "seed": 0}
    alone = train(models.vgg11(2, seed=0), images.subset(24).centred(), **settings)
    assert row(rows, "history", split="test", epoch=1)["loss"] == alone.final("test", "loss")
    lost = jastrzebski.trial(data=images, **point | {"lr": 1e30}, epochs=1)
    assert lost == {"runs": [{"diverged": True}]}


def test_where_a_run_crosses_a_level():
    run = {"lr": 0.1, "batch_size": 4, "cycle": "", "seed": 0, "ratio": 0.025}
    lines = [
        run | {"epoch": epoch, "loss": loss, "right": right, "lambda_max": h}
        for epoch, loss, right, h in (
            (0, 2.0, 0.1, math.nan),
            (1, 1.0, 0.5, 8.0),
            (2, 0.5, 0.9, 4.0),
            (3, 0.7, 0.8, 2.0),
            (4, 0.2, 1.0, 1.0),
        )
    ]
    table = pd.DataFrame(lines).sample(frac=1, random_state=0)
    for column, level, expected in (("loss", 0.75, 6.0), ("loss", 0.6, 4.8), ("right", 0.95, 1.25)):
        [found] = jastrzebski.crossing(table, column, level, "lambda_max")["lambda_max"]
        assert found == pytest.approx(expected)
    for column, level in (("loss", 1.5), ("loss", 0.1), ("loss", 3.0)):
        [found] = jastrzebski.crossing(table, column, level, "lambda_max")["lambda_max"]
        assert math.isnan(found)


def law(a=0.4, b=0.4, noise=0.0):
    rng = np.random.default_rng(0)
    lines = [
        {"lr": r * size, "batch_size": size, "ratio": r, "seed": seed}
        for seed in range(5)
        for r in (0.001, 0.002, 0.004, 0.008)
        for size in (4, 16, 64)
    ]
    table = pd.DataFrame(lines)
    logs = math.log(3) - a * np.log(table["lr"]) + b * np.log(table["batch_size"])
    return table.assign(lambda_max=np.exp(logs + noise * rng.normal(size=len(table))))


def test_the_slopes_of_a_power_law():
    found = jastrzebski.slopes(law(0.4, 0.3, noise=0.05), "lambda_max")
    assert len(found) == 5
    assert found["a"].mean() == pytest.approx(-0.4, abs=0.02)
    assert found["b"].mean() == pytest.approx(-0.3, abs=0.02)
    lost = law().assign(lambda_max=lambda t: t["lambda_max"].where(t["lr"] < 0.4))
    exact = jastrzebski.slopes(lost, "lambda_max")  # without those that diverged
    assert np.allclose(exact, -0.4)


def test_the_spreads_of_a_power_law():
    only_ratio = jastrzebski.spreads(law(), "lambda_max")
    assert np.allclose(only_ratio["within"], 0, atol=1e-12)
    assert np.allclose(only_ratio["across"], 0.4 * np.std(np.log([1, 2, 4, 8]), ddof=1))
    only_rate = jastrzebski.spreads(law(0.4, 0.0), "lambda_max")
    steps = 0.4 * np.log([1, 4, 16])
    assert np.allclose(only_rate["within"], steps.std() * math.sqrt(3 / 2))


def test_the_readers_of_the_tables(digits):
    grid = STUDY.grids["smoke"]
    tables = tabulate((p, jastrzebski.trial(**p | {"data": digits})) for p in grid)
    found = jastrzebski.final(tables)
    assert len(found) == len(STUDY.grids["smoke"]) == 8
    assert found["ratio"].nunique() == 2
    assert found[["lambda_max", "trace", "loss", "test_accuracy"]].notna().all().all()
    every = jastrzebski.evaluations(tables)
    assert sorted(set(every["epoch"])) == [0, 2, 4]
    last = every[every["epoch"] == 4].reset_index(drop=True)
    pd.testing.assert_frame_equal(last, found)
    for table in select(tables, group="ratio", seed=1).values():
        assert table["seed"].unique().tolist() == [1]
    other = {kind: table.assign(group="other") for kind, table in tables.items()}
    with pytest.raises(ValueError, match="several runs"):
        jastrzebski.final(concat(tables, other))
    record = {"profile": "smoke", "device": ["CPU"], "date": ["2026-11-25"], "code": ["commit a"]}
    assert jastrzebski.caption(Stored(tables, record), tables["runs"]) == (
        "stored, profile smoke · 16-16 on 100 images of digits (50 of them for curvature) · "
        "4 epochs · seeds 0, 1 · CPU · 2026-11-25 · commit a"
    )


def test_the_grid_of_the_full_study():
    grid = pd.DataFrame(STUDY.grids["full"])
    assert (grid.groupby("group")["seed"].nunique() >= 4).all()
    ratio = grid["lr"] / grid["batch_size"]
    main = grid[grid["group"] == "ratio"]
    assert main.groupby(ratio.round(9))["batch_size"].nunique().tolist() == [3] * 4
    assert set(main["epochs"]) == {60}
    noise = grid[grid["group"] == "noise"]
    assert set(noise["lr"]) == {0.1}
    updates = noise["epochs"] * np.ceil(noise["n_train"] / noise["batch_size"])
    assert updates.max() / updates.min() < 1.02
    cycles = grid[grid["group"] == "cycle"]
    assert set(cycles["cycle"].fillna("")) == {"", "batch", "rate"}
    assert grid.loc[grid["group"] == "memory", "random_labels"].eq(0.25).all()
