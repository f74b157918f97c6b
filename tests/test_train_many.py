"""Many replicas at once against the same replicas one by one, and against impossible settings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic import gaussian_classes
from torch import nn

from lecture6 import data, models, train_many
from lecture6.device import has_bf16
from lecture6.models import flat_parameters, local_seed
from lecture6.train import DivergenceError, train
from lecture6.train_many import train_many as together

pytestmark = pytest.mark.usefixtures("one_thread")
RATES = [0.05, 0.1, 0.4]
SEEDS = [7, 0, 3]


def in_double(images):
    return replace(images, x_train=images.x_train.double(), x_test=images.x_test.double())


DATA = in_double(gaussian_classes(50, 20, shape=(2, 3), n_classes=4))  # 50 = 3 · 16 + 2


def mlp(seed, bias=True):
    return models.mlp(6, 8, 4, bias=bias, seed=seed).double()


def deep(seed):
    with local_seed(seed):
        layers = [nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(8, 4)).double()


def linear(seed):
    with local_seed(seed):
        return nn.Sequential(nn.Flatten(), nn.Linear(6, 4)).double()


def assert_as_one_by_one(runs, nets, images=DATA, rates=RATES, tolerance=1e-10, **options):
    """Each replica ends, and on the way was, where `train` brings it."""
    for run, net, lr, seed in zip(runs, nets, rates, SEEDS, strict=True):
        alone = train(net, images, lr=lr, seed=seed, **options)
        torch.testing.assert_close(run.w, alone.w, rtol=tolerance, atol=tolerance)
        assert run.history.columns.equals(alone.history.columns)
        for column in run.history:
            if column == "split":
                assert run.history.split.equals(alone.history.split)
            else:
                assert run.history[column].to_numpy() == pytest.approx(
                    alone.history[column].to_numpy(), rel=tolerance, abs=tolerance
                )
        assert torch.equal(run.w0, alone.w0)
        assert torch.equal(flat_parameters(run.model), run.w)
        assert not run.model.training
        assert (run.n_updates, run.stopped) == (alone.n_updates, alone.stopped)
        assert run.precision == alone.precision


OPTIONS = [
    {},
    {"momentum": 0.9},
    {"sampling": "with_replacement"},
    {"sampling": "without_replacement", "evaluate_every": 2},
]


@pytest.mark.parametrize("build", [mlp, deep, linear])
@pytest.mark.parametrize("options", OPTIONS)
def test_many_are_as_one_by_one(build, options):
    options = {"batch_size": 16, "epochs": 3, "device": "cpu"} | options
    nets = [build(seed) for seed in range(3)]
    runs = together(nets, DATA, lr=RATES, seeds=SEEDS, **options)
    assert_as_one_by_one(runs, nets, **options)


def test_in_float32_on_real_images():
    digits = data.load("digits").subset(200, 100)
    nets = [models.mlp(64, seed=seed) for seed in range(3)]
    options = {"batch_size": 32, "epochs": 3, "device": "cpu"}
    runs = together(nets, digits, lr=RATES, seeds=SEEDS, **options)
    assert_as_one_by_one(runs, nets, digits, tolerance=1e-4, **options)


@pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="no bfloat16 arithmetic here")
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}])
def test_in_bfloat16_updates_are_rounded_and_nothing_else(options):
    digits = data.load("digits").subset(200, 100)
    net = models.mlp(64, 32)
    options = {"batch_size": 32, "epochs": 2, "device": "cpu", "lr": 0.01} | options
    [single] = together([net], digits, **options)
    [half] = together([net], digits, bf16=True, **options)
    alone = train(net, digits, bf16=True, **options)
    assert (single.precision, half.precision) == ("float32", "bfloat16")
    assert half.w.dtype == torch.float32
    assert half.history[:2].equals(single.history[:2])  # epoch 0: float32 on both sides
    for other, least in ((single, 1e-4), (alone, 0.0)):
        distance = (half.w - other.w).norm() / (other.w - other.w0).norm()
        assert least <= distance < 0.05  # bfloat16 rounds at 4e-3
    [again] = together([net], digits, bf16=True, **options)
    assert torch.equal(again.w, half.w)


def test_one_rate_and_the_seeds_0_1_2_are_the_defaults():
    nets = [mlp(0)] * 3
    assert together(nets, DATA, lr=np.array(RATES), batch_size=16, epochs=1)[2].w.shape == (92,)
    options = {"batch_size": 16, "epochs": 1, "device": "cpu"}
    runs = together(nets, DATA, lr=0.1, **options)
    for seed, run in enumerate(runs):
        alone = train(nets[0], DATA, lr=0.1, seed=seed, **options)
        torch.testing.assert_close(run.w, alone.w, rtol=1e-10, atol=1e-10)
    assert not torch.equal(runs[0].w, runs[1].w)


def test_the_number_of_replicas_at_a_time_changes_nothing(monkeypatch):
    nets = [mlp(seed) for seed in range(3)]
    options = {"batch_size": 16, "epochs": 2, "device": "cpu"}
    few = together(nets, DATA, lr=RATES, **options)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # 2 replicas, then 1
    for a, b in zip(few, together(nets, DATA, lr=RATES, **options), strict=True):
        torch.testing.assert_close(a.w, b.w, rtol=1e-12, atol=1e-12)


def test_nothing_given_is_touched():
    nets = [mlp(0), mlp(1)]
    before = [flat_parameters(net) for net in nets]
    state = torch.get_rng_state()
    runs = together(nets, DATA, batch_size=16, lr=0.1, epochs=1, device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(flat_parameters(n), w) for n, w in zip(nets, before, strict=True))
    runs[0].model[1].weight.data.zero_()  # replicas do not share memory afterwards
    assert torch.equal(flat_parameters(runs[1].model), runs[1].w)


def test_a_replica_that_diverges_stops_alone():
    nets = [mlp(seed) for seed in range(3)]
    options = {"batch_size": 16, "epochs": 3, "device": "cpu"}
    rates = [0.1, 1e30, 0.4]
    runs = together(nets, DATA, lr=rates, seeds=SEEDS, **options)
    with pytest.raises(DivergenceError):
        train(nets[1], DATA, lr=1e30, seed=0, **options)
    assert runs[1].stopped == "diverged by epoch 2 with lr 1e+30"
    assert runs[1].history.epoch.max() == 1
    assert runs[1].n_updates == 4
    for i in (0, 2):
        alone = train(nets[i], DATA, lr=rates[i], seed=SEEDS[i], **options)
        torch.testing.assert_close(runs[i].w, alone.w, rtol=1e-10, atol=1e-10)
        assert runs[i].stopped == "all epochs done"


def frozen(seed):
    net = mlp(seed)
    net[1].requires_grad_(False)
    return net


def not_a_number(seed):
    net = mlp(seed)
    net[1].weight.data[0, 2] = float("nan")
    return net


def normalised():
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 8), norm, nn.ReLU(), nn.Linear(8, 4)).double()


@pytest.mark.parametrize(
    ("nets", "options", "message"),
    [
        ([], {}, "models is empty"),
        ([mlp(0), mlp(1, bias=False)], {}, "one architecture"),
        ([frozen(0)], {}, "every parameter"),
        ([normalised()], {}, "dense layers and ReLU, .* train other nets"),
        ([not_a_number(0)], {}, r"model 0 has 1 of 92 values .* the first is nan at \[2\]"),
        ([mlp(0)], {"optimizer": "adam"}, "no optimizer: train one by one"),
        ([mlp(0), mlp(1)], {"lr": [0.1]}, "lr must have a value for each of 2 models, got 1"),
        ([mlp(0)], {"seeds": [1, 2]}, "seeds must have a value for each of 1 models, got 2"),
        ([mlp(0)], {"seeds": [-1]}, "seed must be at least 0"),
        ([mlp(0), mlp(1)], {"seeds": 3}, "seeds must have a value for each of 2 models, got 1"),
        ([mlp(0), mlp(1).float()], {}, "the models must have one precision: call float"),
        (
            [mlp(0), mlp(1)],
            {"lr": [0.1, -1.0]},
            "lr must be .* above 0 and .*, got -1",
        ),
        ([mlp(0)], {"momentum": 1.5}, "momentum must be .* below 1, got 1.5"),
        ([mlp(0)], {"batch_size": 51}, "between 1 and the 50 training samples"),
        ([mlp(0)], {"epochs": 0}, "epochs must be at least 1, got 0"),
        ([mlp(0)], {"sampling": "all"}, "got 'all'"),
    ],
)
def test_impossible_settings_are_refused(nets, options, message):
    settings = {"data": DATA, "batch_size": 16, "lr": 0.1, "epochs": 1, "device": "cpu"} | options
    with pytest.raises(ValueError, match=message):
        together(nets, settings.pop("data"), **settings)


def hooked():
    net = mlp(0)
    net[1].register_forward_hook(lambda layer, inputs, output: 2 * output)
    return net


def tied():
    layers = [nn.Flatten(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)]
    layers[3].weight = layers[1].weight
    return nn.Sequential(*layers)


def used_twice():
    layer = nn.Linear(6, 6)
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer)


def test_what_a_dense_net_is():
    assert not any(train_many.is_dense(net) for net in (hooked(), tied(), used_twice()))
    smooth = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 4))
    assert all(train_many.is_dense(net) for net in (mlp(0), deep(0), linear(0)))
    assert not any(train_many.is_dense(net) for net in (smooth, normalised(), models.c1()))


@pytest.mark.gpu
def test_on_a_gpu_many_are_as_one_by_one():
    nets = [mlp(seed) for seed in range(3)]
    options = {"batch_size": 16, "epochs": 3, "device": "cuda"}
    runs = together(nets, DATA, lr=RATES, seeds=SEEDS, **options)
    assert_as_one_by_one(runs, nets, tolerance=1e-9, **options)
