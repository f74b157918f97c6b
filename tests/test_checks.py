"""The door: what is accepted, in which form it goes on, and the one clear error for the rest."""

import copy
import math
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
import torch
from torch import nn

from lecture6 import (
    checks,
    curvature,
    data,
    equilibrium,
    landscape,
    models,
    noise,
    noise_scale,
    parallel,
    sharpness,
    toys,
)
from lecture6.models import local_seed
from lecture6.objective import NetworkObjective
from lecture6.train import train
from lecture6.train_many import train_many

pytestmark = pytest.mark.usefixtures("one_thread")
SET = data.load("digits").subset(60, 30)
SETTINGS = {"batch_size": 20, "lr": 0.1, "epochs": 1, "device": "cpu"}


def net(seed=0):
    return models.mlp(64, 8, seed=seed)


# ---- numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [3, 3.0, np.int32(3), np.uint8(3), np.float64(3), np.array(3), torch.tensor(3)]
)
def test_a_whole_number_in_any_form(value):
    found = checks.whole("n", value, least=1, most=3)
    assert type(found) is int
    assert found == 3


@pytest.mark.parametrize("value", [2.5, math.nan, math.inf, True, "3", None, [3], np.array([3])])
def test_no_whole_number(value):
    with pytest.raises(ValueError, match="epochs must be a whole number, got"):
        checks.whole("epochs", value)


def test_a_real_number_in_any_form_and_its_bounds():
    assert checks.real("lr", np.float32(0.5), above=0) == 0.5
    assert checks.real("lr", torch.tensor(2), least=2, most=2) == 2.0
    for bounds in ({"above": 1}, {"least": 1.1}, {"below": 1}, {"most": 0.9}):
        with pytest.raises(ValueError, match=r"lr must be a finite number and .*, got 1$"):
            checks.real("lr", 1.0, **bounds)
    for value in (math.nan, -math.inf):
        with pytest.raises(ValueError, match="lr must be a finite number, got"):
            checks.real("lr", value)
    for value in (True, "0.1", None, 1j, Decimal(1)):
        with pytest.raises(ValueError, match="lr must be a number, got"):
            checks.real("lr", value)


def test_seeds_that_would_be_those_of_another_run_are_refused():
    assert checks.seed(np.arange(3)[2]) == 2
    for value in (-1, 2**63, 1.5, None):
        with pytest.raises(ValueError, match="seed must be"):
            checks.seed(value)


# ---- one check for all trainers -------------------------------------------------------------


def by_train(model, images, **settings):
    return train(model, images, **SETTINGS | settings)


def by_train_many(model, images, **settings):
    return train_many([model], images, seeds=[0], **SETTINGS | settings)[0]


def by_workers(model, images, **settings):
    settings = SETTINGS | settings
    return parallel.train_parallel(model, images, workers=2, **settings)


TRAINERS = {"one": by_train, "many": by_train_many, "workers": by_workers}
BAD_SETTINGS = [
    ({"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
    ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ({"epochs": True}, "epochs must be a whole number, got True"),
    ({"epochs": math.nan}, "epochs must be a whole number, got nan"),
    ({"lr": math.inf}, "lr must be a finite number and above 0 and .*, got inf"),
    ({"lr": 1e308}, "lr must be .* at most 1e.30, got 1e.308"),
    ({"momentum": 1}, "momentum must be .* at least 0 and below 1, got 1"),
    ({"momentum": 1.5}, "momentum must be .* below 1, got 1.5"),
    ({"momentum": -0.5}, "momentum must be .* at least 0 .*, got -0.5"),
    ({"evaluate_every": 1.5}, "evaluate_every must be a whole number, got 1.5"),
    ({"evaluate_every": math.nan}, "evaluate_every must be a whole number, got nan"),
    ({"sampling": "all"}, "sampling must be 'epoch', .* got 'all'"),
    ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
]
BAD_DATA = {
    "float labels": ({"y_train": torch.zeros(60)}, "y_train must hold .* integers of the shape"),
    "a column": ({"y_train": torch.zeros(60, 1)}, r"\(60,\), got torch.float32 .* \(60, 1\)"),
    "probabilities": ({"y_train": torch.full((60, 10), 0.1)}, r"got torch.float32 .* \(60, 10\)"),
    "label 10": ({"y_train": torch.full((60,), 10)}, "y_train must lie between 0 and 9.* 10 outp"),
    "label −100": ({"y_train": torch.full((60,), -100)}, "y_train must lie .* from -100 to -100"),
    "NaN": ({"x_train": torch.full((60, 1, 8, 8), math.nan)}, "x_train has 3,840 of 3,840 values"),
    "∞ in test": ({"x_test": torch.full((30, 1, 8, 8), math.inf)}, "x_test has .* not finite"),
    "width": ({"x_train": torch.zeros(60, 63)}, r"does not take x_train, .* \(n, 63\)"),
    "no test": ({"x_test": torch.zeros(0, 1, 8, 8), "y_test": torch.zeros(0).long()}, "one sample"),
    "bytes": ({"x_train": torch.zeros(60, 64, dtype=torch.uint8)}, "take x_train, torch.uint8"),
}


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
@pytest.mark.parametrize("trainer", ["one", "many"])
def test_settings_that_no_trainer_takes(trainer, settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        TRAINERS[trainer](net(), SET, **settings)


@pytest.mark.parametrize("name", BAD_DATA)
@pytest.mark.parametrize("trainer", ["one", "many"])
def test_data_that_no_trainer_takes(trainer, name):
    parts, message = BAD_DATA[name]
    with pytest.raises(ValueError, match=message):
        TRAINERS[trainer](net(), replace(SET, **parts))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "parts", "message"),
    [
        ({"momentum": 1.5}, {}, "momentum must be"),
        ({}, BAD_DATA["label 10"][0], "y_train must lie"),
    ],
)
def test_workers_refuse_the_same(settings, parts, message):
    with pytest.raises(ValueError, match=message):
        by_workers(net(), replace(SET, **parts), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_decay": 1e39}, "weight_decay must be .* at most 1e.30, got 1e.39"),
        (
            {"schedule": lambda epoch: 1e300},
            "the factor must be .* at most 100,000,000.0, got 1e.300",
        ),
        ({"checkpoint": 5}, "checkpoint must be the path of a file or folder, got 5"),
        ({"patience": math.nan}, "patience must be a whole number, got nan"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"micro_batch": 1.5}, "micro_batch must be a whole number, got 1.5"),
        ({"weight_decay": -1}, "weight_decay must be .* at least 0 and at most 1e.30, got -1"),
        ({"seed": 2**63}, "seed must be at least 0 and at most"),
        ({"epochs": 10**400}, "epochs must be a whole number"),
        ({"momentum": 0.5, "nesterov": "no"}, "nesterov must be True or False, got 'no'"),
        ({"bf16": 1}, "bf16 must be True or False, got 1"),
        ({"schedule": lambda epoch: 0.5 - epoch}, "the schedule fails at epoch 0.666667 of 1"),
        ({"schedule": lambda epoch: math.nan}, "the schedule fails at epoch 0 of 1"),
    ],
)
def test_settings_that_train_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        by_train(net(), SET, **settings)


RUN = by_train(net(), SET)
LOSS = NetworkObjective(net(), SET.x_train, SET.y_train)
MISTAKEN = {
    "a name": (lambda: by_train("digits", SET), "expected a model, such as .*, got str"),
    "the other order": (lambda: by_train(SET, net()), "expected a model, .* got Dataset"),
    "a function": (lambda: by_train(models.f1, SET), "expected a model, .* got function"),
    "a class": (lambda: by_train(torch.nn.Flatten, SET), "got the class Flatten"),
    "a name of data": (lambda: by_train(net(), "digits"), "expected a Dataset, .* got str"),
    "many": (lambda: by_train_many(net(), "digits"), "expected a Dataset, .* got str"),
    "a run": (lambda: NetworkObjective(RUN, SET.x_train, SET.y_train), "a model.* got Run"),
    "a net": (lambda: sharpness.worst_case(net(), RUN.w), "expected an objective.* got Seq"),
    "net: average": (lambda: sharpness.average(net(), RUN.w), "expected an objective.* got Seq"),
    "net: adaptive": (lambda: sharpness.adaptive(net(), RUN.w), "expected an objective"),
    "net: sam": (lambda: sharpness.sam(net(), RUN.w), "expected an objective"),
    "net: λ": (lambda: curvature.eigenvalues(net(), RUN.w), "expected an objective"),
    "net: tr": (lambda: curvature.trace(net(), RUN.w), "expected an objective"),
    "net: density": (lambda: curvature.spectral_density(net(), RUN.w), "expected an objective"),
    "net: matrix": (lambda: curvature.matrix(net(), RUN.w), "expected an objective"),
    "net: part": (lambda: curvature.Restriction(net(), RUN.w, slice(3)), "expected an objective"),
    "net: noise": (lambda: noise.GradientCovariance(net(), RUN.w), "expected an objective"),
    "net: path": (lambda: landscape.interpolate({"a": net()}, RUN.w, RUN.w), "a split or more"),
    "net: plane": (lambda: landscape.plane({"a": net()}, RUN.w), "must name a split or more"),
    "for w a net": (lambda: sharpness.worst_case(LOSS, net()), "a vector of weights.* got Seq"),
    "for w a run": (lambda: curvature.trace(LOSS, RUN), "a vector of weights.* got Run"),
    "for w None": (lambda: LOSS.grad(None), "a vector of weights.* got None"),
    "for w a word": (lambda: LOSS.value("w"), "a vector of weights.* got 'w'"),
    "λ of a net's w": (lambda: noise.critical_batch_size(LOSS), "expected Grad.* got Network"),
    "ψ of a net": (lambda: noise.fluctuation_trace(LOSS, 32), "expected Gradient.* got Network"),
    "one loss": (lambda: landscape.interpolate(LOSS, RUN.w, RUN.w), "must name a split or more"),
    "no loss": (lambda: landscape.plane({}, RUN.w), "must name a split or more"),
    "a toy": (lambda: landscape.plane({"a": toys.Quadratic([1.0])}, [0.0]), "a split or more"),
    "a matrix": (lambda: toys.Quadratic([[1, 2], [3, 4]]), r"list of them, got the shape \(2, 2\)"),
    "one number": (lambda: toys.Quadratic(3), r"list of them, got the shape \(\)"),
    "a word for no": (lambda: models.mlp(bias="no"), "bias must be True or False, got 'no'"),
    "no for g": (
        lambda: noise_scale.noise_scale(0.1, 10, 100, replacement="no"),
        "replacement must be True or False",
    ),
    "no for B": (
        lambda: noise_scale.batch_size_for(1.0, 0.1, 100, replacement="no"),
        "replacement must be True or False",
    ),
    "no for steps": (
        lambda: equilibrium.ou_covariance(1, 1, 0.1, 1, discrete="no"),
        "discrete must be True or False",
    ),
    "no for draws": (
        lambda: equilibrium.linear_regression_covariance(
            np.eye(3), np.ones(3), 0.1, 1, replacement="no"
        ),
        "replacement must be True or False",
    ),
    "negative noise": (lambda: equilibrium.ou_covariance(1, -1, 0.1, 1), "semidefinite.* is -1"),
    "ten classes": (lambda: replace(SET, classes=10), "classes to be a tuple of names, got int"),
    "one of many": (
        lambda: train_many(net(), SET, lr=0.1, batch_size=5, epochs=1),
        "expected a list of models, got Sequential",
    ),
    "no one of many": (
        lambda: train_many(None, SET, lr=0.1, batch_size=5, epochs=1),
        "expected a list of models, got NoneType",
    ),
    "nowhere": (lambda: landscape.interpolate({"a": LOSS}, RUN.w, RUN.w, alphas=[]), "is empty"),
    "rows for w": (lambda: LOSS.value([[1.0], [1.0, 2.0]]), "a vector of weights.* got \\[\\[1"),
    "complex w": (lambda: LOSS.value(1j * np.ones(3)), "got complex ones"),
    "a dictionary for w": (lambda: LOSS.value({"w": 1.0}), "a vector of weights.* got {"),
    "a word": (lambda: sharpness.worst_case(LOSS, RUN.w, subspace="random"), "got 'random'"),
}


@pytest.mark.parametrize("name", MISTAKEN)
def test_one_thing_taken_for_another(name):
    call, message = MISTAKEN[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_numbers_of_numpy_make_the_same_run(tmp_path):
    expected = by_train(net(), SET, epochs=2, momentum=0.5, seed=1)
    numbers = {
        "batch_size": np.int16(20),
        "lr": np.logspace(-2, -1, 3)[2],
        "epochs": 2.0,
        "momentum": np.float64(0.5),
        "seed": np.arange(2)[1],
        "optimizer": np.str_("sgd"),
        "sampling": np.str_("epoch"),
        "nesterov": np.False_,
    }
    file = tmp_path / "run.pt"
    by_train(net(), SET, **numbers | {"epochs": np.float32(1)}, checkpoint=file)
    resumed = by_train(net(), SET, **numbers, checkpoint=file)
    assert torch.equal(resumed.w, expected.w)
    assert resumed.history.equals(expected.history)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_labels_of_any_integer_type_are_the_same(dtype):
    expected = by_train(net(), SET)
    other = replace(SET, y_train=SET.y_train.to(dtype), y_test=SET.y_test.to(dtype).numpy())
    assert torch.equal(by_train(net(), other).w, expected.w)
    assert torch.equal(by_train_many(net(), other).w, by_train_many(net(), SET).w)
    a, b = (NetworkObjective(net(), SET.x_train, s.y_train) for s in (SET, other))
    assert a.value(a.w) == b.value(b.w)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("trainer", ["one", "many"])
def test_training_needs_no_gradients_of_the_caller(trainer, mode):
    expected = TRAINERS[trainer](net(), SET)
    model = net()
    with mode():
        found = TRAINERS[trainer](model, SET)
    assert torch.equal(found.w, expected.w)


class Spare(nn.Module):
    """A net with a parameter that it does not use."""

    def __init__(self):
        super().__init__()
        with local_seed(0):
            self.net, self.spare = models.mlp(64, 8), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.net(x)


@pytest.mark.slow
def test_an_unused_parameter_stays_where_it_is_for_all():
    alone, workers = by_train(Spare(), SET), by_workers(Spare(), SET)
    torch.testing.assert_close(workers.w, alone.w, rtol=1e-5, atol=1e-6)
    assert torch.equal(alone.model.spare, torch.ones(3))
    assert torch.equal(workers.model.spare, torch.ones(3))
    assert torch.equal(alone.w[:-3] if alone.w[-1] == 1 else alone.w[3:], by_train(net(), SET).w)


def test_frozen_nets_have_nothing_to_train():
    model = net().requires_grad_(False)
    for trainer in (by_train, by_train_many):
        with pytest.raises(ValueError, match="frozen"):
            trainer(model, SET)


# ---- what is converted, and what is not ------------------------------------------------------


class Tokens(nn.Module):
    """An embedding of 16 words, with a table of integers and a complex one among its buffers."""

    def __init__(self):
        super().__init__()
        with local_seed(0):
            self.embedding = nn.Embedding(16, 4)
            self.head = nn.Linear(4, 3)
        self.register_buffer("permutation", torch.randperm(16))
        self.register_buffer("mask", torch.ones(5, dtype=torch.bool))
        self.register_buffer("phases", torch.exp(1j * torch.arange(4.0)))
        self.register_buffer("scale", torch.tensor(2.0))
        self.order = nn.Parameter(torch.arange(3), requires_grad=False)

    def forward(self, x):
        h = self.embedding(self.permutation[x])[:, self.mask].mean(1) * self.scale
        h = h * self.phases.abs().to(h.dtype)
        return self.head(h)[:, self.order]


def tokens():
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(16, (60, 5), generator=rng)
    y = x[:, 0] % 3
    return replace(SET, x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])


def test_tokens_and_other_buffers_are_left_alone():
    model, words = Tokens(), tokens()
    kinds = {name: t.dtype for name, t in model.state_dict().items()}
    run = by_train(model, words, lr=0.5, epochs=5)
    assert run.final("train", "loss") < run.history["loss"].iloc[0]
    assert {name: t.dtype for name, t in run.model.state_dict().items()} == kinds
    assert len(run.w) == 16 * 4 + 4 * 3 + 3 == models.count_parameters(model)
    f = NetworkObjective(run.model, words.x_train, words.y_train)
    assert f.value(run.w) == pytest.approx(run.final("train", "loss"), rel=1e-6)
    double = NetworkObjective(run.model, words.x_train, words.y_train, dtype=torch.float64)
    assert double.model.scale.dtype == torch.float64
    assert double.model.phases.dtype == torch.complex64
    assert double.model.permutation.dtype == double.model.order.dtype == torch.int64
    assert double.value(double.w) == pytest.approx(f.value(f.w), rel=1e-6)
    v = torch.randn(len(run.w), generator=torch.Generator().manual_seed(1))
    gauss_newton = [o.product(o.w, of="gauss_newton")(v).float() for o in (f, double)]
    torch.testing.assert_close(*gauss_newton, rtol=1e-4, atol=1e-6)


def test_a_model_in_double_trains_on_data_in_single():
    run = by_train(net().double(), SET)
    assert (run.w.dtype, run.precision) == (torch.float64, "float64")
    torch.testing.assert_close(run.w.float(), by_train(net(), SET).w, rtol=1e-4, atol=1e-6)
    [many] = train_many([net().double()], SET, **SETTINGS)
    torch.testing.assert_close(many.w, run.w, rtol=1e-10, atol=1e-12)


def test_another_default_dtype_changes_what_models_are_built_in_only():
    torch.set_default_dtype(torch.float64)
    try:
        run = by_train(net(), SET)
        f = NetworkObjective(net(), SET.x_train, SET.y_train)
    finally:
        torch.set_default_dtype(torch.float32)
    assert run.w.dtype == f.dtype == torch.float64
    assert run.history["loss"].iloc[0] == pytest.approx(f.value(f.w))


def test_half_precision_and_numpy_arrays_come_in():
    plain = NetworkObjective(net(), SET.x_train, SET.y_train)
    arrays = NetworkObjective(net(), SET.x_train.numpy(), SET.y_train.numpy())
    assert arrays.value(plain.w) == plain.value(plain.w)
    half = NetworkObjective(net(), SET.x_train.half(), SET.y_train)
    assert half.value(plain.w) == pytest.approx(plain.value(plain.w), rel=1e-3)


def test_what_w_cannot_be_made_of_is_refused():
    imaginary, lazy = nn.Module(), nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
    imaginary.z = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    for model, message in (
        (imaginary, "z is complex, and w is real"),
        (lazy, "1.weight has no shape yet: pass a batch"),
        (nn.Flatten(), "no real floating parameters"),
    ):
        for function in (
            models.flat_parameters,
            lambda m: by_train(m, SET),
            lambda m: NetworkObjective(m, SET.x_train, SET.y_train),
        ):
            with pytest.raises(ValueError, match=message):
                function(model)


# ---- the objective and its measures -----------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name in BAD_DATA if "test" not in name and name != "label −100"]
)
def test_an_objective_refuses_the_same_data(name):
    parts, message = BAD_DATA[name]
    parts = {"x_train": SET.x_train, "y_train": SET.y_train} | parts
    with pytest.raises(ValueError, match=message.replace("_train", "")):
        NetworkObjective(net(), parts["x_train"], parts["y_train"])


def test_one_output_and_logits_of_another_shape_are_refused():
    x, y = SET.x_train, torch.zeros(60, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"2 classes or more, got \(2, 1\) for n = 2"):
        NetworkObjective(models.mlp(64, 8, 1), x, y)
    pixels = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(2))  # logits (n, C, T)
    with pytest.raises(ValueError, match=r"got \(2, 3, 64\) for n = 2"):
        NetworkObjective(pixels, x, y)
    with pytest.raises(ValueError, match="got tuple for n = 2"):
        NetworkObjective(nn.LSTM(8, 10), x[:, 0], y)


@pytest.mark.parametrize("of", ["hessian", "gauss_newton", "covariance"])
def test_weights_that_diverged_are_named(of):
    f = NetworkObjective(net(), SET.x_train, SET.y_train)
    w = f.w.clone()
    w[7] = math.nan
    for function in (f.value, f.grad, f.evaluate, lambda w: f.product(w, of=of)):
        with pytest.raises(ValueError, match=r"w has 1 of 610 values .* first is nan at \[7\]"):
            function(w)
    spoilt = copy.deepcopy(net())
    spoilt[1].bias.data[0] = math.inf
    for function in (
        lambda: NetworkObjective(spoilt, SET.x_train, SET.y_train),
        lambda: by_train(spoilt, SET),
    ):
        with pytest.raises(ValueError, match="the model has 1 of 610 values that are not finite"):
            function()


def test_an_objective_refuses_what_is_no_batch_no_dtype_and_no_logits():
    f = NetworkObjective(net(), SET.x_train, SET.y_train)
    with pytest.raises(ValueError, match="one sample at least"):
        f.on(torch.tensor([], dtype=torch.int64))
    for most in (0, -1, 1.5):
        with pytest.raises(ValueError, match="most must be"):
            f.sample_gradients(f.w, most=most)
    for dtype in ("float64", torch.int64, torch.bfloat16, torch.float16):
        with pytest.raises(ValueError, match=r"dtype must be torch.float32 or torch.float64, got"):
            NetworkObjective(net(), SET.x_train, SET.y_train, dtype=dtype)
    with pytest.raises(ValueError, match=r"dtype must be .* got torch.bfloat16"):
        NetworkObjective(net().bfloat16(), SET.x_train, SET.y_train)
    with pytest.raises(ValueError, match=r"the gradient at w has .* not finite.* w is too large"):
        f.sample_gradients(f.w * 1e30)


def test_w_may_be_a_list_and_loses_no_digit():
    kind = {"dtype": torch.float64, "device": torch.device("cpu")}
    assert checks.weights([0.1, 1 / 3], 2, **kind).tolist() == [0.1, 1 / 3]
    for w in ([1j, 0], np.array([1j, 0]), torch.tensor([1j, 0])):
        with pytest.raises(ValueError, match="expected a vector of real numbers, got complex"):
            checks.weights(w, 2, **kind)


def test_large_numbers_are_finite():
    big = torch.full((4, 3), torch.finfo(torch.float32).max)
    assert checks.finite("x", big, "") is big
