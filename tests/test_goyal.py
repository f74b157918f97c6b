"""The study of the linear scaling rule, and the exact statements of the chapter about it."""

import dataclasses
import inspect
import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from synthetic import gaussian_classes

from lecture6 import data, models, toys
from lecture6.course import figures
from lecture6.curvature import eigenvalues
from lecture6.objective import NetworkObjective
from lecture6.schedules import scale_lr
from lecture6.studies import STUDIES, goyal, imagenet, results, tabulate
from lecture6.studies.imagenet import goyal_schedule
from lecture6.studies.results import Stored
from lecture6.train import sample_batches, train

STUDY = STUDIES["goyal"]
POINT = {"net": "MLP", "group": "recipe", "k": 4, "rule": "linear", "warmup": "gradual"}
POINT |= {"seed": 0, "lr": 0.0125, "epochs": 3, "n": 8}


@pytest.fixture(scope="module")
def images():
    return data.load("digits").subset(200, 100)


@pytest.fixture(scope="module")
def rows(images):
    return goyal.trial(data=images, curvature_at=[0, 2, 3], **POINT)


@pytest.fixture(scope="module")
def tables(images):
    points = [p | {"n": 8} for p in STUDY.grids["smoke"]]
    points = [{k: v for k, v in p.items() if k not in ("data", "n_train")} for p in points]
    return tabulate((p, goyal.trial(data=images, **p)) for p in points)


def row(rows, kind, **where):
    [found] = [r for r in rows[kind] if all(r[k] == v for k, v in where.items())]
    return found


def test_a_trial_reports_what_training_and_curvature_give(images, rows):
    model = goyal.build("MLP", images, 0)
    schedule = goyal_schedule(3, 4)
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4, "schedule": schedule}
    run = train(model, images, batch_size=32, lr=4 * 0.0125, epochs=3, seed=0, **options)
    for split in ("train", "test"):
        last = row(rows, "history", split=split, epoch=3)
        assert last["error"] == 1 - run.final(split)
        assert last["loss"] == run.final(split, "loss")
    assert rows["runs"] == [{"n_updates": 3 * 7, "diverged": False}]
    for w, epoch in ((run.w0, 0), (run.w, 3)):
        f = NetworkObjective(run.model, images.x_train, images.y_train)
        top = eigenvalues(f, w, k=1).values[0]
        assert row(rows, "curvature", epoch=epoch)["lambda_max"] == pytest.approx(top, rel=1e-5)


def test_looking_at_the_curvature_does_not_change_the_run(images, rows):
    plain = goyal.trial(data=images, **POINT)
    assert plain == {kind: rows[kind] for kind in ("history", "runs")}


def test_a_run_that_diverges_is_a_result(images):
    found = goyal.trial(data=images, **POINT | {"lr": 1e6, "rule": "none", "warmup": "none"})
    assert found == {"runs": [{"diverged": True}]}


def test_adam_is_trained_without_momentum(images):
    point = POINT | {"optimizer": "adam", "lr": 1e-3, "rule": "sqrt"}
    rows = goyal.trial(data=images, **point)
    first, last = (row(rows, "history", split="train", epoch=epoch)["loss"] for epoch in (0, 3))
    assert last < first


def test_a_resnet_normalises_each_n_samples_by_themselves(images):
    """As k workers with n samples each do: micro_batch = n."""
    part = images.subset(48, 20)
    rows = goyal.trial(data=part, **POINT | {"net": "ResNet-20", "k": 3})
    model = models.resnet(20, part.n_classes, in_channels=1, seed=0)
    settings = {"batch_size": 24, "lr": 3 * 0.0125, "epochs": 3, "momentum": 0.9, "nesterov": True}
    settings |= {"weight_decay": 1e-4, "schedule": goyal_schedule(3, 3)}
    apart, joined = (train(model, part, micro_batch=n, **settings) for n in (8, None))
    for split in ("train", "test"):
        found = row(rows, "history", split=split, epoch=3)["loss"]
        assert found == apart.final(split, "loss") != joined.final(split, "loss")


def test_a_small_resnet_is_trained_as_the_large_one_is(images):
    part = images.subset(48, 20)
    rows = goyal.trial(data=part, **POINT | {"net": "ResNet-8, width 8", "k": 2, "epochs": 1})
    model = models.resnet(8, part.n_classes, in_channels=1, width=8, seed=0)
    assert str(goyal.build("ResNet-8, width 8", part, 0)) == str(model)
    widths = [len(p) for p in model.parameters() if p.dim() == 4]
    assert widths == [8, *[8] * 2, *[16] * 2, *[32] * 2]  # 3×3 convolutions: one, and two a block
    settings = {"batch_size": 16, "micro_batch": 8, "lr": 2 * 0.0125, "epochs": 1, "momentum": 0.9}
    settings |= {"nesterov": True, "weight_decay": 1e-4, "schedule": goyal_schedule(1, 2)}
    found = row(rows, "history", split="test", epoch=1)["loss"]
    assert found == train(model, part, **settings).final("test", "loss")


@pytest.mark.parametrize(("rule", "factor"), [("linear", 16.0), ("sqrt", 4.0)])
def test_the_schedule_begins_at_the_base_rate_and_reaches_k_times_it(rule, factor):
    gradual = goyal_schedule(90, 16, rule=rule)
    assert gradual(0) * factor == pytest.approx(1.0)  # η, and not kη
    assert gradual(2.5) * factor == pytest.approx((1 + factor) / 2)
    assert gradual(5) * factor == pytest.approx(factor)  # kη, and not kn
    constant = goyal_schedule(90, 16, rule=rule, kind="constant")
    assert [constant(e) * factor for e in (0, 4.9, 5)] == pytest.approx([1.0, 1.0, factor])
    for schedule in (gradual, constant, goyal_schedule(90, 16, rule=rule, kind="none")):
        decays = [schedule(e) for e in (29.9, 30, 59.9, 60, 79.9, 80)]
        assert decays == pytest.approx([1, 0.1, 0.1, 0.01, 0.01, 0.001])


def test_without_scaling_there_is_nothing_to_warm_up_to():
    kinds = [goyal_schedule(27, 8, rule="none", kind=kind) for kind in goyal.WARMUPS]
    assert len({tuple(schedule(e / 10) for e in range(270)) for schedule in kinds}) == 1


def test_the_schedule_is_shrunk_to_the_epochs():
    long, short = goyal_schedule(90, 8), goyal_schedule(27, 8)
    for epoch in np.linspace(0, 90, 181):
        assert short(epoch * 0.3 + 1e-9) == pytest.approx(long(epoch + 1e-9), abs=1e-6)


def test_every_curve_has_the_base_and_a_missing_one_is_named(tables):
    for rule, kind in (("linear", "none"), ("sqrt", "gradual"), ("none", "constant")):
        curve = goyal.curve(tables, rule=rule, warmup=kind)["history"]
        assert sorted(curve["k"].unique()) == [1, 4]
        assert set(curve.loc[curve["k"] > 1, "rule"]) == {rule}
    with pytest.raises(ValueError, match="group 'adam', rule 'sqrt', warm-up 'gradual'"):
        goyal.curve(tables, group="adam", rule="sqrt")


def test_a_diverged_run_counts_as_a_guess(tables):
    curve = goyal.curve(tables)
    errors = goyal.errors(curve)
    assert errors.shape == (2, 2)
    assert errors.notna().all(axis=None)
    history, runs = curve["history"], curve["runs"]
    history = history[(history["k"] != 4) | (history["seed"] != 1)]
    runs = runs.assign(diverged=(runs["k"] == 4) & (runs["seed"] == 1))
    with_lost = goyal.errors({"history": history, "runs": runs})
    assert with_lost.loc[1, 4] == pytest.approx(0.9)
    assert with_lost.loc[0, 4] == errors.loc[0, 4]


def test_several_curves_at_once_are_refused(tables):
    with pytest.raises(ValueError, match="choose one curve first"):
        goyal.errors(tables)


def test_the_tables_give_the_figures_what_they_want(tables):
    labels = {"title": "t", "xlabel": "x", "ylabel": "y"}
    curve = goyal.figure_8(goyal.curve(tables), "kη")
    assert sorted(curve["batch_size"].unique()) == [8, 32]
    assert curve["error"].between(0, 100).all()
    assert len(figures.curves(curve, "batch_size", "error", **labels).data) == 2
    history = goyal.figure_9(goyal.curve(tables)["history"])
    assert sorted(history["label"].unique()) == ["k = 1", "k = 4"]
    assert sorted(history["epoch"].unique()) == [0, 1, 2]
    assert len(figures.curves(history, "epoch", "error", **labels).data) == 4


def test_the_caption_says_what_was_run(tables):
    record = {"profile": "smoke", "device": ["CPU"], "date": ["a", "b"], "code": ["commit 1"]}
    shown = goyal.caption(Stored(tables, record), tables["runs"].assign(data="digits"))
    for part in ("profile smoke", "MLP on digits", "n = 8", "seeds 0, 1", "CPU", "b", "commit 1"):
        assert part in shown


def test_the_full_grid_is_what_the_chapter_asks_for():
    grid = pd.DataFrame(STUDY.grids["full"])
    recipe = grid[grid["group"] == "recipe"]
    seeds = recipe.groupby(["k", "rule", "warmup"])["seed"].nunique()
    assert (seeds == 5).all()
    assert sorted(recipe["k"].unique()) == [2**i for i in range(8)]
    assert set(seeds.loc[128].index) == {
        *((rule, kind) for rule in ("linear", "sqrt") for kind in goyal.WARMUPS),
        ("none", "none"),
    }
    assert list(seeds.loc[1].index) == [("linear", "gradual")]
    assert not grid.duplicated(["group", "k", "rule", "warmup", "seed", "lr"]).any()
    assert (grid.loc[grid["group"] == "plain", "momentum"] == 0).all()
    assert set(pd.DataFrame(STUDY.grids["cifar10"])["net"]) == {"ResNet-20"}


def test_the_papers_own_study_is_its_figure_1():
    grid = STUDY.grids["imagenet"]
    assert STUDY.trial_of("imagenet") is imagenet.trial
    for point in grid:
        inspect.signature(imagenet.trial).bind(**point)
    assert {p["k"] * p["n"] for p in grid} == set(goyal.PAPER["batch_size"])
    assert {p["seed"] for p in grid} == set(range(5))


def test_the_papers_rates_follow_its_rule():
    for row in goyal.PAPER.itertuples():
        assert scale_lr(0.1, row.batch_size / 256) == pytest.approx(row.lr)


def test_the_stored_study_has_every_curve_with_three_seeds():
    tables = results.load("goyal").tables
    for rule, kind in goyal.PAPER_8K:
        errors = goyal.errors(goyal.curve(tables, rule=rule, warmup=kind))
        assert list(errors.columns) == [2**i for i in range(8)]
        assert errors.notna().sum().min() >= 3


# The statements of the chapter, exactly


@pytest.mark.parametrize("k", [2, 8, 32])
def test_small_steps_and_a_large_one_differ_in_second_order(k):
    quadratic = toys.Quadratic([1.0, 0.3, -0.2], seed=1)
    w, h = torch.ones(3, dtype=torch.float64), torch.from_numpy(quadratic.h)

    def left_over(eta):
        small = w
        for _ in range(k):
            small = small - eta * quadratic.grad(small)
        large = w - scale_lr(eta, k) * quadratic.grad(w)
        return (small - large - eta**2 * k * (k - 1) / 2 * h @ h @ w).norm().item()

    if k == 2:  # there is no third order
        assert left_over(0.1) < 1e-15
    else:
        assert left_over(1e-3) / left_over(1e-4) == pytest.approx(1000, rel=0.05)


def test_any_other_rate_differs_in_first_order():
    quadratic = toys.Quadratic([1.0, 0.3, 0.2])
    w, k, n = torch.ones(3, dtype=torch.float64), 4, 32
    for eta in (1e-3, 1e-4):
        small = w
        for _ in range(k):
            small = small - eta * quadratic.grad(small)
        misprinted = w - k * n * eta * quadratic.grad(w)
        ratio = (misprinted - w).norm() / (small - w).norm()
        assert ratio.item() == pytest.approx(n, rel=5 * eta)


@pytest.fixture(scope="module")
def double():
    made = gaussian_classes(64, 16, shape=(6,), n_classes=3)
    x = {name: getattr(made, name).double() for name in ("x_train", "x_test")}
    return dataclasses.replace(made, **x)


def by_hand(model, made, update, rates, weight_decay=0.0, loss_factor=1.0):
    """Mini-batches of 16 for two epochs; ``update(w, gradient, lr, t)`` returns the new w."""
    w = models.flat_parameters(model)
    generator, t = torch.Generator().manual_seed(0), 0
    for _ in range(2):
        for batch in sample_batches(64, 16, generator=generator):
            torch.nn.utils.vector_to_parameters(w, model.parameters())
            loss = loss_factor * F.cross_entropy(model(made.x_train[batch]), made.y_train[batch])
            g = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, model.parameters())])
            w = update(w, g + weight_decay * w, rates(t), t).detach()
            t += 1
    return w


def test_remark_1_scaling_the_loss_is_not_scaling_the_rate(double):
    def sgd(w, g, lr, t):
        return w - lr * g

    def net():
        return models.mlp(6, 5, 3, seed=0).double()

    settings = {"batch_size": 16, "epochs": 2, "seed": 0, "device": "cpu"}
    for decay, equal in ((0.1, False), (0.0, True)):
        scaled = train(net(), double, lr=scale_lr(0.05, 4), weight_decay=decay, **settings).w
        loss_scaled = by_hand(net(), double, sgd, lambda t: 0.05, decay, loss_factor=4)
        assert ((scaled - loss_scaled).abs().max() < 1e-12) == equal
        # multiplying the decay, too, makes them equal again
        both = by_hand(net(), double, sgd, lambda t: 0.05, 4 * decay, loss_factor=4)
        assert (scaled - both).abs().max() < 1e-12


@pytest.mark.parametrize("corrected", [True, False])
def test_remark_2_momentum_is_corrected_in_form_10_and_needs_none_in_ours(double, corrected):
    def net():
        return models.mlp(6, 5, 3, seed=0).double()

    def factor(epoch):
        return 0.25 if epoch < 0.75 else 1.0  # a constant warm-up

    def rates(t):
        return 0.1 * factor(t / 4)

    v = torch.zeros(models.count_parameters(net()), dtype=torch.float64)

    def form_10(w, g, lr, t):
        nonlocal v
        correction = lr / rates(t - 1) if corrected and t else 1.0
        v = 0.9 * correction * v + lr * g
        return w - v

    settings = {"batch_size": 16, "epochs": 2, "seed": 0, "device": "cpu"}
    ours = train(net(), double, lr=0.1, momentum=0.9, schedule=factor, **settings).w
    assert ((ours - by_hand(net(), double, form_10, rates)).abs().max() < 1e-12) == corrected


def test_remark_4_separate_shuffles_miss_a_sample_as_often_as_the_chapter_says():
    n_train, repeats, rng = 1200, 200, np.random.default_rng(0)
    for k in (2, 4, 8):
        missed = [
            1
            - len(set(np.concatenate([rng.permutation(n_train)[: n_train // k] for _ in range(k)])))
            / n_train
            for _ in range(repeats)
        ]
        stderr = np.std(missed) / math.sqrt(repeats)
        assert abs(np.mean(missed) - (1 - 1 / k) ** k) < 4 * stderr
