"""Many replicas at once against the same replicas one by one, and against impossible settings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic import gaussian_classes
from torch import nn

from lecture6 import data, models, train_many
from lecture6.models import flat_parameters, local_seed
from lecture6.train import DivergenceError, has_bf16, step_decay, train, warmup
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


def smooth(seed):
    with local_seed(seed):
        layers = [nn.Flatten(), nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 4)]
        return nn.Sequential(*layers).double()


def normalised(seed):
    with local_seed(seed):
        norm = nn.BatchNorm1d(8, track_running_stats=False)
        layers = [nn.Flatten(), nn.Linear(6, 8), norm, nn.ReLU(), nn.Linear(8, 4)]
        return nn.Sequential(*layers).double()


def assert_as_one_by_one(runs, nets, sets, rates=RATES, tolerance=1e-10, **options):
    """Each replica ends, and on the way was, where `train` brings it."""
    for run, net, images, lr, seed in zip(runs, nets, sets, rates, SEEDS, strict=True):
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
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
    {"weight_decay": 0.05},
    {"optimizer": "adam"},
    {"optimizer": "adam", "weight_decay": 0.05},
    {"sampling": "with_replacement"},
    {"sampling": "without_replacement", "evaluate_every": 2},
    {"schedule": warmup(2)},
    {"schedule": step_decay((1, 2)), "momentum": 0.5},
]


@pytest.mark.parametrize("build", [mlp, deep, linear, smooth, normalised])
@pytest.mark.parametrize("options", OPTIONS)
def test_together_is_as_one_by_one(build, options):
    options = {"batch_size": 16, "epochs": 3, "device": "cpu"} | options
    rates = [lr / 20 for lr in RATES] if "optimizer" in options else RATES
    nets = [build(seed) for seed in range(3)]
    runs = together(nets, DATA, lr=rates, seeds=SEEDS, **options)
    # batch norm over the 2 samples of the last batch amplifies rounding
    tolerance = 1e-8 if build is normalised else 1e-10
    assert_as_one_by_one(runs, nets, [DATA] * 3, rates, tolerance, **options)


def test_each_replica_may_have_its_own_data():
    sets = [in_double(gaussian_classes(50, 20, shape=(6,), n_classes=4, seed=s)) for s in (0, 1)]
    sets.append(sets[0])
    nets = [mlp(seed, bias=False) for seed in range(3)]
    options = {"batch_size": 10, "epochs": 2, "device": "cpu"}
    runs = together(nets, sets, lr=RATES, seeds=SEEDS, **options)
    assert_as_one_by_one(runs, nets, sets, **options)
    assert not torch.equal(runs[0].w, runs[1].w)


def test_in_float32_on_real_images():
    digits = data.load("digits").subset(200, 100)
    nets = [models.mlp(64, seed=seed) for seed in range(3)]
    options = {"batch_size": 32, "epochs": 3, "device": "cpu"}
    runs = together(nets, digits, lr=RATES, seeds=SEEDS, **options)
    assert_as_one_by_one(runs, nets, [digits] * 3, tolerance=1e-4, **options)


@pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="no bfloat16 arithmetic here")
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"optimizer": "adam"}])
@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU])  # by hand, and by autograd
def test_in_bfloat16_updates_are_rounded_and_nothing_else(act, options):
    digits = data.load("digits").subset(200, 100)
    with local_seed(0):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), act(), nn.Linear(32, 10))
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


@pytest.mark.parametrize("build", [mlp, smooth])
def test_nothing_given_is_touched(build):
    nets = [build(0), build(1)]
    before = [flat_parameters(net) for net in nets]
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    runs = together(nets, DATA, batch_size=16, lr=0.1, epochs=1, device="cpu")
    assert torch.rand(1) == expected
    assert all(torch.equal(flat_parameters(n), w) for n, w in zip(nets, before, strict=True))
    runs[0].model[1].weight.data.zero_()  # replicas do not share memory afterwards
    assert torch.equal(flat_parameters(runs[1].model), runs[1].w)


@pytest.mark.parametrize("build", [mlp, smooth])
def test_a_replica_that_diverges_stops_alone(build):
    nets = [build(seed) for seed in range(3)]
    wild = replace(DATA, x_train=1e200 * DATA.x_train)
    options = {"batch_size": 16, "epochs": 3, "device": "cpu"}
    sets, rates = [DATA, wild, DATA], [0.1, 1e200, 0.4]
    runs = together(nets, sets, lr=rates, seeds=SEEDS, **options)
    with pytest.raises(DivergenceError):
        train(nets[1], wild, lr=1e200, seed=0, **options)
    assert runs[1].stopped == "diverged by epoch 1 with lr 1e+200"
    assert runs[1].history.epoch.max() == 0
    assert runs[1].n_updates == 0
    for i in (0, 2):
        alone = train(nets[i], DATA, lr=rates[i], seed=SEEDS[i], **options)
        torch.testing.assert_close(runs[i].w, alone.w, rtol=1e-10, atol=1e-10)
        assert runs[i].stopped == "all epochs done"


def test_a_net_whose_loss_is_not_finite_at_the_start():
    nets = [mlp(0), mlp(1)]
    nets[0][1].weight.data.fill_(float("nan"))
    runs = together(nets, DATA, batch_size=16, lr=0.1, epochs=1, device="cpu")
    assert runs[0].stopped.startswith("diverged by epoch 0")
    assert (len(runs[0].history), runs[0].n_updates) == (0, 0)
    assert runs[1].stopped == "all epochs done"


def frozen(seed):
    net = mlp(seed)
    net[1].requires_grad_(False)
    return net


def dropout(seed):
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Dropout(0.5)).double()


@pytest.mark.parametrize(
    ("nets", "options", "message"),
    [
        ([], {}, "models is empty"),
        ([mlp(0), mlp(1, bias=False)], {}, "one architecture"),
        ([dropout(0)], {}, "its own dropout"),
        ([frozen(0)], {}, "every parameter"),
        ([mlp(0)], {"nesterov": True}, "give a momentum above 0"),
        ([models.f1(6, 4, batch_norm="running").double()], {}, "batch_norm='batch'"),
        ([mlp(0), mlp(1)], {"lr": [0.1]}, "lr must be one for all .* 2 models, got 1"),
        ([mlp(0)], {"seeds": [1, 2]}, "seeds must be one for all .* 1 models, got 2"),
        ([mlp(0)], {"data": [DATA, DATA]}, "data must be one for all .* 1 models, got 2"),
        ([mlp(0), mlp(1)], {"data": [DATA, DATA.subset(20)]}, "equal sizes"),
        ([mlp(0), mlp(1)], {"lr": [0.1, -1.0]}, "lr must be a positive finite number, got -1.0"),
        ([mlp(0)], {"batch_size": 51}, "between 1 and the 50 training samples"),
        ([mlp(0)], {"epochs": 0}, "epochs and evaluate_every must be at least 1, got 0"),
        ([mlp(0)], {"optimizer": "rmsprop"}, "'sgd' or 'adam', got 'rmsprop'"),
        ([mlp(0)], {"sampling": "all"}, "got 'all'"),
        ([normalised(0)], {"batch_size": 7}, "a batch of 1 sample of the 50"),
    ],
)
def test_impossible_settings_are_refused(nets, options, message):
    settings = {"data": DATA, "batch_size": 16, "lr": 0.1, "epochs": 1, "device": "cpu"} | options
    with pytest.raises(ValueError, match=message):
        together(nets, settings.pop("data"), **settings)


def test_dense_nets_go_by_hand_and_others_do_not():
    assert train_many._is_dense(mlp(0))
    assert train_many._is_dense(deep(0))
    assert not any(train_many._is_dense(net) for net in (smooth(0), normalised(0), dropout(0)))


@pytest.mark.gpu
@pytest.mark.parametrize("build", [mlp, smooth, normalised])
def test_on_a_gpu_together_is_as_one_by_one(build):
    nets = [build(seed) for seed in range(3)]
    options = {"batch_size": 16, "epochs": 3, "device": "cuda"}
    runs = together(nets, DATA, lr=RATES, seeds=SEEDS, **options)
    tolerance = 1e-7 if build is normalised else 1e-9
    assert_as_one_by_one(runs, nets, [DATA] * 3, tolerance=tolerance, **options)
