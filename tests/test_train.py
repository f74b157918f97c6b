import copy
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from synthetic import gaussian_classes
from torch import nn

from lecture6 import models
from lecture6.checkpoints import Checkpoint
from lecture6.models import flat_parameters, local_seed
from lecture6.objective import NetworkObjective
from lecture6.schedules import step_decay, warmup
from lecture6.train import (
    DivergenceError,
    sample_batches,
    train,
)

DATA = gaussian_classes(50, 20, shape=(5,), n_classes=3)
IMAGES = gaussian_classes(12, 4, shape=(3, 32, 32), n_classes=10)
HAS_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()


def softmax_net(seed=0):
    with local_seed(seed):
        return nn.Linear(5, 3)


def dropout_net(seed=0):
    with local_seed(seed):
        return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))


def run(model=None, data=DATA, **options):
    defaults = {"batch_size": 16, "lr": 0.1, "epochs": 2, "device": "cpu"}
    return train(softmax_net() if model is None else model, data, **defaults | options)


def same(a, b):
    return torch.equal(a.w, b.w) and a.history.equals(b.history)


# ---- equation (1) and the update rules, against numpy in float64 ----------------------------


def softmax_gradient(w, x, y):
    """(1/n) Σ ∇ℓ of softmax regression by hand: (p − 1_y) xᵀ, averaged. w: 15 weights, 3 biases."""
    logits = x @ w[:15].reshape(3, 5).T + w[15:]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return np.concatenate([(p.T @ x).ravel(), p.sum(0)]) / len(y)


def plain(lr):
    return lambda w, g: w - lr * g


def weight_decay(lr, decay):
    return lambda w, g: w - lr * (g + decay * w)


def momentum(lr, mu):
    v = np.zeros(18)

    def step(w, g):
        v[:] = mu * v + g
        return w - lr * v

    return step


def nesterov(lr, mu):
    v = np.zeros(18)

    def step(w, g):
        v[:] = mu * v + g
        return w - lr * (g + mu * v)

    return step


def adam(lr, decay=0.0):  # Kingma & Ba (1412.6980), Algorithm 1, with the L2 term in the gradient
    m, v, t = np.zeros(18), np.zeros(18), 0

    def step(w, g):
        nonlocal t
        t += 1
        g = g + decay * w
        m[:] = 0.9 * m + 0.1 * g
        v[:] = 0.999 * v + 0.001 * g**2
        return w - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)

    return step


RULES = {  # a fresh rule, with its own state, and the options of train that ask for it
    "sgd": (lambda: plain(0.1), {}),
    "weight decay": (lambda: weight_decay(0.1, 0.2), {"weight_decay": 0.2}),
    "momentum": (lambda: momentum(0.1, 0.9), {"momentum": 0.9}),
    "nesterov": (lambda: nesterov(0.1, 0.9), {"momentum": 0.9, "nesterov": True}),
    "adam": (lambda: adam(0.1), {"optimizer": "adam"}),
    "adam, weight decay": (lambda: adam(0.1, 0.2), {"optimizer": "adam", "weight_decay": 0.2}),
}


@pytest.mark.parametrize("sampling", ["epoch", "without_replacement", "with_replacement"])
@pytest.mark.parametrize("rule", RULES)
def test_the_loop_is_equation_1(rule, sampling):
    make, options = RULES[rule]
    step = make()
    x, y = DATA.x_train.double().numpy(), DATA.y_train.numpy()
    w = flat_parameters(softmax_net()).double().numpy()
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        for batch in sample_batches(50, 16, sampling=sampling, generator=generator):
            w = step(w, softmax_gradient(w, x[batch], y[batch]))
    ours = run(epochs=3, seed=5, sampling=sampling, **options)
    assert ours.n_updates == 12
    np.testing.assert_allclose(ours.w, w, rtol=2e-4, atol=2e-5)
    assert np.abs(w - ours.w0.numpy()).max() > 0.1


# ---- sampling -------------------------------------------------------------------------------


def batches(sampling, n, batch_size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return list(sample_batches(n, batch_size, sampling=sampling, generator=generator))


def test_an_epoch_visits_every_sample_once():
    found = batches("epoch", 50, 16)
    assert [len(b) for b in found] == [16, 16, 16, 2]
    assert sorted(torch.cat(found).tolist()) == list(range(50))
    assert torch.cat(found).tolist() != list(range(50))


def test_without_replacement_draws_each_batch_anew():
    found = batches("without_replacement", 50, 16)
    assert [len(b) for b in found] == [16] * 4
    assert all(len(set(b.tolist())) == 16 for b in found)
    assert len(set(torch.cat(found).tolist())) < 50


def test_with_replacement_draws_each_sample_anew():
    found = batches("with_replacement", 50, 16)
    assert [len(b) for b in found] == [16] * 4
    assert any(len(set(b.tolist())) < 16 for b in found)
    assert torch.cat(found).max() < 50


@pytest.mark.parametrize("sampling", ["epoch", "without_replacement", "with_replacement"])
def test_every_sample_is_equally_likely_in_a_batch(sampling):
    counts = Counter()
    for seed in range(2000):
        counts.update(batches(sampling, 10, 3, seed)[0].tolist())
    assert stats.chisquare([counts[i] for i in range(10)]).pvalue > 1e-3


# ---- schedules, history, stopping -----------------------------------------------------------


def test_the_rate_of_the_schedule_is_what_moves_the_weights_and_what_is_recorded():
    # one update an epoch, of the whole set: the rates are 0.1, then 0.01
    stepped = run(epochs=2, batch_size=50, schedule=step_decay((1,)))
    first = run(epochs=1, batch_size=50)
    x, y = DATA.x_train.double().numpy(), DATA.y_train.numpy()
    w = first.w.double().numpy()
    np.testing.assert_allclose(stepped.w, w - 0.01 * softmax_gradient(w, x, y), atol=1e-6)
    train_rows = stepped.history.query("split == 'train'")
    assert train_rows["lr"].tolist() == pytest.approx([0.1, 0.1, 0.01])
    # the last of 4 updates of an epoch comes three quarters into it
    ramp = run(epochs=1, schedule=warmup(1, start=0.0)).history
    assert ramp.query("split == 'train'")["lr"].tolist() == pytest.approx([0, 0.075])


def test_history_is_tidy_and_starts_with_the_initial_network():
    model = dropout_net()  # off when evaluated
    ours = run(model, epochs=5, evaluate_every=2)
    history = ours.history
    columns = ["epoch", "update", "split", "loss", "accuracy", "lr", "distance"]
    assert list(history.columns) == columns
    assert history["epoch"].tolist() == [0, 0, 2, 2, 4, 4, 5, 5]  # the last epoch always
    assert history["update"].tolist() == [0, 0, 8, 8, 16, 16, 20, 20]
    assert history["split"].tolist() == ["train", "test"] * 4
    assert history["distance"].iloc[0] == 0
    assert history["distance"].iloc[-1] == pytest.approx((ours.w - ours.w0).norm().item())
    assert torch.equal(ours.w0, flat_parameters(model))
    assert torch.equal(ours.w, flat_parameters(ours.model))
    assert not ours.model.training
    assert (ours.n_updates, ours.stopped, ours.precision) == (20, "all epochs done", "float32")
    for split, x, y in (("train", *sets("train")), ("test", *sets("test"))):
        objective = NetworkObjective(model, x, y)
        rows = history[history["split"] == split]
        for w, row in ((ours.w0, rows.iloc[0]), (ours.w, rows.iloc[-1])):
            assert objective.evaluate(w) == (row["loss"], row["accuracy"])
        assert ours.final(split) == rows["accuracy"].iloc[-1]
        assert ours.final(split, "loss") == rows["loss"].iloc[-1]


def sets(split):
    return getattr(DATA, f"x_{split}"), getattr(DATA, f"y_{split}")


def test_patience_stops_when_the_loss_ceases_to_improve():
    # the rate drops to 1e-12 of itself after epoch 2: from then on nothing improves
    options = {"epochs": 50, "schedule": step_decay((2,), factor=1e-12), "patience": 3}
    ours = run(**options)
    losses = ours.history.query("split == 'train'")["loss"].tolist()
    assert ours.stopped == "training loss ceased to improve for 3 evaluations"
    assert len(losses) < 20
    assert min(losses[-3:]) >= min(losses[:-3])
    assert len(losses) == losses.index(min(losses)) + 4
    assert run(epochs=5, patience=3).stopped == "all epochs done"  # it improves all the time


# ---- reproducibility ------------------------------------------------------------------------


CASES = {
    "sgd with dropout": (dropout_net, DATA, {"momentum": 0.9}),
    "adam with dropout": (dropout_net, DATA, {"optimizer": "adam", "lr": 0.01}),
    "c1": (models.c1, IMAGES, {"batch_size": 6, "lr": 0.01, "momentum": 0.9}),
    "c1, bfloat16": (models.c1, IMAGES, {"batch_size": 6, "lr": 0.01, "bf16": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_arguments_give_the_same_bits(case):
    make, data, options = CASES[case]
    first = run(make(), data, **options)
    torch.rand(7)  # the caller's generator is elsewhere the second time
    assert same(run(make(), data, **options), first)
    assert not torch.equal(run(make(), data, **options, seed=1).w, first.w)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_model_given_and_the_callers_generator_are_not_touched(optimizer):
    model = dropout_net().train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    run(model, optimizer=optimizer)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.skipif(not HAS_BF16, reason="this processor has no bfloat16 arithmetic")
def test_bfloat16_is_used_for_updates_and_not_for_evaluations():
    single, half = run(models.mlp(5, 32, 3)), run(models.mlp(5, 32, 3), bf16=True)
    assert (single.precision, half.precision) == ("float32", "bfloat16")
    assert half.w.dtype == torch.float32
    assert half.history.loc[:1].equals(single.history.loc[:1])  # epoch 0: float32 on both sides
    distance = (half.w - single.w).norm() / (single.w - single.w0).norm()
    assert 1e-4 < distance < 0.05  # bfloat16 rounds at 4e-3


# ---- checkpoints ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_resumed_equals_uninterrupted(case, tmp_path):
    make, data, options = CASES[case]
    file = tmp_path / "run.pt"
    options = options | {"schedule": step_decay((1,)), "evaluate_every": 1, "checkpoint": file}
    run(make(), data, **options | {"epochs": 1})
    resumed = run(make(), data, **options | {"epochs": 3})
    assert same(resumed, run(make(), data, **options | {"epochs": 3, "checkpoint": None}))
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


def test_patience_counts_on_after_a_resume(tmp_path):
    options = {"schedule": step_decay((2,), factor=1e-12), "patience": 4}
    straight = run(**options, epochs=50)
    run(**options, epochs=5, checkpoint=tmp_path / "run.pt")
    resumed = run(**options, epochs=50, checkpoint=tmp_path / "run.pt")
    assert same(resumed, straight)
    assert resumed.stopped == straight.stopped
    finished = run(**options, epochs=50, checkpoint=tmp_path / "run.pt")
    assert same(finished, straight)


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from test_train import dropout_net, run
run(dropout_net(), epochs=100_000, momentum=0.9, lr=0.01, checkpoint={file!r})
"""


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    file = tmp_path / "run.pt"
    script = KILLED.format(tests=os.path.dirname(__file__), file=str(file))
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 60
        while not file.exists():
            assert process.poll() is None, "the run ended before it had saved a checkpoint"
            assert time.monotonic() < deadline, "no checkpoint within a minute"
            time.sleep(0.01)
        time.sleep(0.2)  # into the middle of a later epoch
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    epochs = Checkpoint(file, {}).load()["progress"][0] + 3
    options = {"epochs": epochs, "momentum": 0.9, "lr": 0.01}
    resumed = run(dropout_net(), **options, checkpoint=file)
    assert same(resumed, run(dropout_net(), **options))


OTHERS = {
    "lr": {"lr": 0.2},
    "batch_size": {"batch_size": 10},
    "optimizer": {"optimizer": "adam"},
    "sampling": {"sampling": "with_replacement"},
    "schedule": {"schedule": step_decay((1,))},
    "seed": {"seed": 1},
    "initial weights": {"model": softmax_net(1)},
    "training set": {"data": gaussian_classes(50, 20, shape=(5,), n_classes=3, seed=1)},
}


@pytest.mark.parametrize("differs", OTHERS)
def test_the_checkpoint_of_another_run_is_refused(differs, tmp_path):
    file = tmp_path / "run.pt"
    run(checkpoint=file)
    saved = file.read_bytes()
    with pytest.raises(ValueError, match=rf"run.pt belongs to another run \({differs}: .* delete"):
        run(**OTHERS[differs], checkpoint=file)
    assert file.read_bytes() == saved


def damaged(kind, whole):
    return {
        "half": whole[: len(whole) // 2],
        "no end": whole[:-1],
        "empty": b"",
        "text": b"not a checkpoint",
    }[kind]


@pytest.mark.parametrize("kind", ["half", "no end", "empty", "text", "a list"])
def test_a_damaged_checkpoint_is_refused(kind, tmp_path):
    file = tmp_path / "run.pt"
    run(checkpoint=file)
    if kind == "a list":
        torch.save([1], file)
    else:
        file.write_bytes(damaged(kind, file.read_bytes()))
    with pytest.raises(ValueError, match=r"run.pt is damaged, or .* delete it"):
        run(checkpoint=file)


# ---- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 51}, "between 1 and the 50 training samples, got 51"),
        ({"batch_size": 0}, "batch_size .* got 0"),
        ({"lr": 0.0}, "lr must be a finite number and above 0 and at most 1e.30, got 0"),
        ({"lr": -1e-3}, "lr must be a finite number and above 0 and at most 1e.30, got -0.001"),
        ({"lr": math.nan}, "lr must be a finite number and above 0 and at most 1e.30, got nan"),
        ({"lr": math.inf}, "lr must be a finite number and above 0 and at most 1e.30, got inf"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1, got 0"),
        ({"optimizer": "sgdm"}, "optimizer must be 'sgd' or 'adam', got 'sgdm'"),
        ({"sampling": "random"}, "sampling must be .* got 'random'"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum.* 0.9 .*for optimizer='sgd'"),
        ({"optimizer": "adam", "nesterov": True}, "nesterov"),
        ({"nesterov": True}, "[Nn]esterov"),
        ({"momentum": -0.1}, "momentum must be .* at least 0 and below 1, got -0.1"),
        ({"weight_decay": -0.1}, "weight_decay.* -0.1"),
    ],
)
def test_impossible_settings_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(**options, checkpoint=tmp_path / "run.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batch_size", [7, 1])  # 50 = 7·7 + 1
def test_a_batch_of_one_sample_is_refused_where_batch_norm_would_fail(batch_size):
    message = f"batch_size {batch_size} gives a batch of 1 sample of the 50"
    with pytest.raises(ValueError, match=message):
        run(models.f1(5, 3), batch_size=batch_size)
    assert run(batch_size=batch_size, epochs=1).n_updates == math.ceil(50 / batch_size)


# what each can normalise of one sample, by torch's own test: more than one value a channel
ONE_SAMPLE = {
    "pixels": (lambda: nn.BatchNorm2d(2), (2, 2, 3)),
    "a column": (lambda: nn.BatchNorm2d(2), (2, 2, 1)),
    "batch statistics": (lambda: nn.BatchNorm2d(2, track_running_stats=False), (2, 1, 2)),
    "sequence": (lambda: nn.BatchNorm1d(2), (2, 5)),
    "volume": (lambda: nn.BatchNorm3d(2), (2, 1, 2, 1)),
    "groups": (lambda: nn.GroupNorm(1, 2), (2, 1, 1)),
}


def of_shape(shape, norm):
    images = gaussian_classes(50, 20, shape=shape, n_classes=3)
    with local_seed(0):
        net = nn.Sequential(norm, nn.Flatten(), nn.Linear(math.prod(shape), 3))
    return images, net


@pytest.mark.parametrize("name", ONE_SAMPLE)
@pytest.mark.parametrize("batch_size", [7, 1])  # 50 = 7·7 + 1
def test_a_batch_of_one_sample_with_several_values_a_channel_is_normalised(name, batch_size):
    """As a plain loop in torch does it."""
    make, shape = ONE_SAMPLE[name]
    images, net = of_shape(shape, make())
    found = run(net, images, batch_size=batch_size, epochs=1, seed=3)
    plain = copy.deepcopy(net).train()
    for batch in batches("epoch", 50, batch_size, 3):
        z = plain(images.x_train[batch])
        loss = nn.functional.cross_entropy(z, images.y_train[batch])
        gradients = torch.autograd.grad(loss, list(plain.parameters()))
        with torch.no_grad():
            for p, g in zip(plain.parameters(), gradients, strict=True):
                p -= 0.1 * g
    torch.testing.assert_close(found.w, flat_parameters(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (lambda: nn.BatchNorm2d(2), (2, 1, 1)),
        (lambda: nn.BatchNorm1d(2), (2, 1)),
        (lambda: nn.BatchNorm3d(2), (2, 1, 1, 1)),
        (lambda: nn.Sequential(nn.AvgPool2d(2), nn.BatchNorm2d(2), nn.Upsample(2)), (2, 2, 2)),
        (lambda: Squeezed(), (2, 1, 1)),
    ],
    ids=["2d", "1d", "3d", "pooled", "squeezed"],
)
def test_a_batch_of_one_sample_that_a_net_cannot_take_is_refused(norm, shape):
    images, net = of_shape(shape, nn.Identity())
    net[0] = norm()
    with pytest.raises(ValueError, match=r"batch_size 7 gives a batch of 1 sample of the 50.* \("):
        run(net, images, batch_size=7)
    assert run(net, images, batch_size=10, epochs=1).n_updates == 5


class Squeezed(nn.Module):
    """Loses the dimension of a batch of one, which many a net does."""

    def forward(self, x):
        return x.squeeze()


@pytest.mark.parametrize("micro_batch", [1, 5, 16, 40])
def test_an_accumulated_gradient_is_the_whole_ones(micro_batch):
    """50 samples in batches of 16: parts of 4 with micro_batch 5, and a last batch of 2."""
    images = replace(DATA, x_train=DATA.x_train.double(), x_test=DATA.x_test.double())
    for options in ({"optimizer": "adam"}, {"momentum": 0.9, "weight_decay": 0.1}):
        whole = run(softmax_net().double(), images, **options)
        parts = run(softmax_net().double(), images, micro_batch=micro_batch, **options)
        torch.testing.assert_close(parts.w, whole.w, rtol=1e-12, atol=1e-12)


def test_a_micro_batch_has_its_own_batch_norm():
    """Ghost batch norm: one step by hand, the mean of the losses of the two halves."""
    with local_seed(0):
        norm = nn.BatchNorm1d(4, track_running_stats=False)
        net = nn.Sequential(nn.Linear(5, 4), norm, nn.Linear(4, 3))
    found = run(net, DATA, batch_size=50, micro_batch=25, epochs=1, seed=1)
    [batch] = sample_batches(50, 50, generator=torch.Generator().manual_seed(1))
    losses = [
        nn.functional.cross_entropy(net(DATA.x_train[part]), DATA.y_train[part])
        for part in batch.split(25)
    ]
    gradients = torch.autograd.grad(sum(losses) / 2, list(net.parameters()))
    expected = flat_parameters(net) - 0.1 * torch.cat([g.flatten() for g in gradients])
    torch.testing.assert_close(found.w, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found.w, run(net, DATA, batch_size=50, epochs=1, seed=1).w)


def test_running_statistics_move_by_the_mean_over_the_parts():
    """What k workers, each with a part of its own, would average."""
    norm = nn.BatchNorm1d(5)
    found = run(nn.Sequential(norm, nn.Linear(5, 3)), batch_size=50, micro_batch=17, epochs=1)
    [batch] = sample_batches(50, 50, generator=torch.Generator().manual_seed(0))
    parts = [DATA.x_train[part] for part in batch.tensor_split(3)]
    mean = torch.stack([0.1 * part.mean(0) for part in parts]).mean(0)
    variance = torch.stack([0.9 + 0.1 * part.var(0) for part in parts]).mean(0)
    torch.testing.assert_close(found.model[0].running_mean, mean)
    torch.testing.assert_close(found.model[0].running_var, variance)
    assert found.model[0].num_batches_tracked == 1


def test_a_micro_batch_of_one_sample_is_refused_where_batch_norm_would_fail():
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(ValueError, match=r"a batch of 1 sample of the 50.*another micro_batch"):
        run(net, batch_size=20, micro_batch=3)  # 7 parts, also of the last batch of 10
    with pytest.raises(ValueError, match="micro_batch must be at least 1"):
        run(micro_batch=0)


def test_divergence_names_the_update_and_the_rate():
    # update 0 throws both layers' weights to about 1e30: their product overflows at update 1
    with pytest.raises(DivergenceError, match=r"update 1 with lr 1e\+30 .* smaller learning rate"):
        run(models.mlp(5, 8, 3), lr=1e30)


def test_divergence_at_the_last_update_of_an_epoch_is_not_silent(tmp_path):
    # one update an epoch: only the evaluation at its end sees what it did
    with pytest.raises(DivergenceError, match=r"lr 1e\+30"):
        run(models.mlp(5, 8, 3), lr=1e30, batch_size=50, epochs=1, checkpoint=tmp_path / "run.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batch_size", [16, 50])
def test_divergence_leaves_the_last_checkpoint_whole(batch_size, tmp_path):
    file = tmp_path / "run.pt"
    model = models.mlp(5, 8, 3)
    options = {"batch_size": batch_size, "checkpoint": file, "lr": 1e22}

    def explodes(epoch):
        return 1e-23 if epoch < 2 else 1e8  # lr: 0.1, then 1e30

    run(model, **options, epochs=2, schedule=explodes)
    saved = file.read_bytes()
    with pytest.raises(DivergenceError):
        run(model, **options, epochs=5, schedule=explodes)
    assert file.read_bytes() == saved
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


@pytest.mark.gpu
def test_on_a_gpu_the_run_is_reproducible_and_close_to_the_processors():
    options = {"optimizer": "adam", "lr": 1e-3, "batch_size": 6}
    first = run(models.c1(), IMAGES, **options, device="cuda")
    assert same(run(models.c1(), IMAGES, **options, device="cuda"), first)
    start = run(models.c1(), IMAGES, **options).history.loc[:1, "loss"]
    np.testing.assert_allclose(first.history.loc[:1, "loss"], start, rtol=1e-4)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"labels": torch.int64}, {"labels": torch.int32}),
        ({"labels": torch.uint8}, {"labels": torch.int64}),
        ({"arrays": True}, {}),
        ({}, {"arrays": True, "labels": torch.int16}),
        ({}, {"micro_batch": 16}),
        ({"micro_batch": 4}, {"micro_batch": 5}),  # 4 parts, either way
    ],
)
def test_the_same_run_written_otherwise_goes_on(before, after, tmp_path):
    def written(labels=torch.int64, arrays=False, **options):
        images = replace(DATA, y_train=DATA.y_train.to(labels), y_test=DATA.y_test.to(labels))
        parts = ("x_train", "y_train", "x_test", "y_test") if arrays else ()
        return replace(images, **{p: getattr(images, p).numpy() for p in parts}), options

    file = tmp_path / "run.pt"
    images, options = written(**before)
    run(data=images, epochs=1, checkpoint=file, **options)
    images, options = written(**after)
    assert same(run(data=images, checkpoint=file, **options), run(**options))


def test_a_checkpoint_with_more_epochs_than_asked_for_is_refused(tmp_path):
    file = tmp_path / "run.pt"
    run(epochs=3, checkpoint=file)
    with pytest.raises(ValueError, match="already holds 3 epochs, more than the 2 asked for"):
        run(epochs=2, checkpoint=file)


def test_the_checkpoint_of_another_subset_is_refused(tmp_path):
    file = tmp_path / "run.pt"
    whole = gaussian_classes(50, 20, shape=(5,), n_classes=3)
    run(data=whole.subset(40, seed=0), checkpoint=file)
    with pytest.raises(ValueError, match="belongs to another run"):
        run(data=whole.subset(40, seed=1), checkpoint=file)


def test_patience_of_no_evaluation_is_refused():
    with pytest.raises(ValueError, match="patience must be at least 1"):
        run(patience=0)
