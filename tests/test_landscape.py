import numpy as np
import pandas as pd
import pytest
import torch
from synthetic import gaussian_classes
from torch import nn

from lecture6 import models
from lecture6.curvature import rescale
from lecture6.landscape import (
    KESKAR_ALPHAS,
    filter_normalised,
    interpolate,
    plane,
    weights_on_path,
)
from lecture6.models import flat_parameters, local_seed
from lecture6.objective import NetworkObjective
from lecture6.train import train

DATA = gaussian_classes(60, 30, shape=(6,), n_classes=3, separation=1.5)


def normalised(**options):
    norm = nn.BatchNorm1d(20, **options)
    return nn.Sequential(nn.Linear(6, 20), norm, nn.ReLU(), nn.Linear(20, 3))


NETS = {
    "batch norm": lambda: normalised(track_running_stats=False),
    "running statistics": normalised,
    "no batch norm": lambda: models.mlp(6, 20, 3),
}


@pytest.fixture(scope="module", params=NETS)
def pair(request):
    """Two runs from the same start, and the objectives of the first's net."""
    with local_seed(0):
        model = NETS[request.param]()
    options = {"lr": 0.1, "epochs": 3, "evaluate_every": 3, "device": "cpu"}
    small, large = (train(model, DATA, batch_size=n, **options) for n in (10, 60))
    objectives = {
        "train": NetworkObjective(small.model, DATA.x_train, DATA.y_train),
        "test": NetworkObjective(small.model, DATA.x_test, DATA.y_test),
    }
    return small, large, objectives, request.param


@pytest.mark.parametrize("path", ["linear", "sincos"])
def test_the_endpoints_are_exactly_the_two_nets(pair, path):
    small, large, objectives, kind = pair
    table = interpolate(objectives, small.w, large.w, path=path)
    assert not torch.equal(small.w, large.w)
    for alpha, run in ((0.0, small), (1.0, large)):
        for split, objective in objectives.items():
            row = table[(table["alpha"] == alpha) & (table["split"] == split)]
            assert (row["loss"].item(), row["accuracy"].item()) == objective.evaluate(run.w)
            if kind != "running statistics":  # whose buffers belong to one of the nets
                assert row["loss"].item() == run.final(split, "loss")
                assert row["accuracy"].item() == run.final(split)


def test_swapping_the_nets_mirrors_the_linear_path(pair):
    small, large, objectives, _ = pair
    alphas = np.linspace(-0.5, 1.5, 9)  # sums of powers of 2: 1 − α is exact
    there = interpolate(objectives, small.w, large.w, alphas=alphas)
    back = interpolate(objectives, large.w, small.w, alphas=1 - alphas)
    columns = ["split", "loss", "accuracy"]
    assert there["loss"].nunique() > 10
    assert there[columns].equals(back[columns])


@pytest.mark.parametrize("path", ["linear", "sincos"])
def test_the_table_is_tidy(pair, path):
    small, large, objectives, _ = pair
    table = interpolate(objectives, small.w, large.w, alphas=[0.5, 2], path=path)
    assert list(table.columns) == ["path", "alpha", "split", "loss", "accuracy"]
    assert table["path"].tolist() == [path] * 4
    assert table["alpha"].tolist() == [0.5, 2.0] * 2
    assert table["split"].tolist() == ["train", "train", "test", "test"]
    assert table["accuracy"].between(0, 1).all()


def test_the_points_on_the_paths():
    assert weights_on_path(0.0, "linear") == weights_on_path(0.0, "sincos") == (1.0, 0.0)
    assert weights_on_path(1.0, "linear") == weights_on_path(1.0, "sincos") == (0.0, 1.0)
    assert weights_on_path(-1.0, "linear") == (2.0, -1.0)
    assert weights_on_path(2.0, "sincos") == (-1.0, 0.0)
    for alpha in KESKAR_ALPHAS:
        assert sum(weights_on_path(alpha, "linear")) == pytest.approx(1)
        angle = alpha * np.pi / 2
        expected = pytest.approx((np.cos(angle), np.sin(angle)), abs=1e-15)
        assert weights_on_path(alpha, "sincos") == expected


def test_keskars_positions():
    assert len(KESKAR_ALPHAS) == 25
    assert (KESKAR_ALPHAS[0], KESKAR_ALPHAS[-1]) == (-1.0, 2.0)
    assert 0.0 in KESKAR_ALPHAS
    assert 1.0 in KESKAR_ALPHAS


def test_a_linear_net_is_convex_on_the_line_and_its_loss_is_that_of_the_mixed_weights():
    with local_seed(0):
        first, second = nn.Linear(6, 3), nn.Linear(6, 3)
    objective = NetworkObjective(first, DATA.x_train, DATA.y_train, dtype=torch.float64)
    w = [flat_parameters(layer) for layer in (first, second)]
    alphas = np.linspace(-1, 2, 13)
    losses = interpolate({"train": objective}, *w, alphas=alphas)["loss"].to_numpy()
    assert (np.diff(losses, 2) > 0).all()
    middle = nn.Linear(6, 3)
    nn.utils.vector_to_parameters((w[0] + w[1]) / 2, middle.parameters())
    exact = nn.functional.cross_entropy(middle(DATA.x_train), DATA.y_train).item()
    assert losses[6] == pytest.approx(exact, rel=1e-6)


def test_bad_input_is_refused(pair):
    small, large, objectives, _ = pair
    with pytest.raises(ValueError, match="path must be 'linear' or 'sincos', got 'geodesic'"):
        interpolate(objectives, small.w, large.w, path="geodesic")
    with pytest.raises(ValueError, match="alphas must be finite"):
        interpolate(objectives, small.w, large.w, alphas=[0.5, np.nan])
    with pytest.raises(ValueError, match="expected a vector of shape"):
        interpolate(objectives, small.w, large.w[:-1])


# ---- planes ---------------------------------------------------------------------------------


def convolutional():
    conv = nn.Conv2d(1, 4, 2)
    return nn.Sequential(nn.Unflatten(1, (1, 2, 3)), conv, nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


def objective(make=convolutional):
    with local_seed(0):
        model = make()
    return NetworkObjective(model, DATA.x_train, DATA.y_train, dtype=torch.float64)


@pytest.mark.parametrize("make", [convolutional, lambda: normalised(track_running_stats=False)])
def test_directions_are_as_long_as_the_filters(make):
    f = objective(make)
    direction = filter_normalised(f, f.w, seed=1)
    for name, p in f.model.named_parameters():
        part = direction[f.slices[name]].view(p.shape)
        if p.dim() == 1:
            assert (part == 0).all()
        else:  # one filter a unit or output channel
            torch.testing.assert_close(part.flatten(1).norm(dim=1), p.flatten(1).norm(dim=1))
            assert (part.flatten(1) @ p.flatten(1).T).diagonal().abs().max() < p.norm() ** 2
    assert torch.equal(direction, filter_normalised(f, f.w, seed=1))
    assert not torch.equal(direction, filter_normalised(f, f.w, seed=2))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-22, 1e22, 1e30])
def test_directions_of_tiny_and_huge_filters(scale):
    """In float32 the squares of 1e-23 are 0, and those of 1e20 infinite."""
    f = NetworkObjective(models.mlp(6, 20, 3), DATA.x_train, DATA.y_train)
    w = scale * f.w
    direction = filter_normalised(f, w, seed=1)
    plain = filter_normalised(f, f.w, seed=1)
    torch.testing.assert_close(direction.double(), scale * plain.double(), rtol=1e-5, atol=0)


def test_a_plane_is_the_loss_on_its_grid():
    f = objective()
    test = NetworkObjective(f.model, DATA.x_test, DATA.y_test, dtype=torch.float64)
    table = plane({"train": f, "test": test}, f.w, span=0.5, n=5, seed=3)
    assert len(table) == 5 * 5 * 2
    d1, d2 = (filter_normalised(f, f.w, seed=s) for s in (6, 7))
    for row in table.itertuples():
        on = {"train": f, "test": test}[row.split]
        assert (row.loss, row.accuracy) == on.evaluate(f.w + row.x * d1 + row.y * d2)
    centre = table[(table.x == 0) & (table.y == 0) & (table.split == "train")]
    assert centre.loss.item() == pytest.approx(f.value(f.w), abs=1e-15)
    assert sorted(table.x.unique()) == pytest.approx([-0.5, -0.25, 0, 0.25, 0.5])


def test_a_plane_does_not_see_rescaling():
    """Directions scale with the filters, so that α-scaled copies give the same picture."""
    net = models.mlp(6, 20, 3, bias=False)
    tables = []
    for alpha in (1.0, 8.0):
        model = rescale(net, alpha)
        f = NetworkObjective(model, DATA.x_train, DATA.y_train, dtype=torch.float64)
        tables.append(plane({"train": f}, f.w, n=5))
    pd.testing.assert_frame_equal(*tables, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"span": 0.0}, "span must be a finite number and above 0, got 0"),
        ({"span": float("nan")}, "span must be .* got nan"),
        ({"n": 1}, "n must be at least 2, got 1"),
        ({"n": 2.5}, "n must be a whole number, got 2.5"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_impossible_planes_are_refused(options, message):
    f = objective()
    with pytest.raises(ValueError, match=message):
        plane({"train": f}, f.w, **options)
    with pytest.raises(ValueError, match="must name a split or more"):
        plane({}, f.w)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_w_that_has_diverged_is_named_first(bad):
    f = objective()
    w = f.w.clone()
    w[3] = bad
    message = rf"w has 1 of 47 values that are not finite, the first is {bad} at \[3\]"
    for call in (
        lambda: plane({"train": f}, w),
        lambda: filter_normalised(f, w),
        lambda: interpolate({"train": f}, f.w, w),
    ):
        with pytest.raises(ValueError, match=message):
            call()
