"""Findings A1, A2, A7 and B1 to B14: each of their examples, with its right value or its error.

The kinds are tested where they belong (the door in test_checks.py); here are the examples as they
were found. A4 to A6, A8, A9 and B4 are about measures, and are tested with them.
"""

import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic import gaussian_classes
from torch import nn
from toy_study import study as toy

from lecture6 import models, parallel
from lecture6.course import figures, report, verdicts, widgets
from lecture6.course.exercises import check
from lecture6.device import choose
from lecture6.models import local_seed
from lecture6.objective import NetworkObjective
from lecture6.schedules import warmup
from lecture6.studies import StudyError, collect, plan, run
from lecture6.studies.trials import TrialFiles
from lecture6.train import train
from lecture6.train_many import train_many

pytestmark = pytest.mark.usefixtures("one_thread")
SET = gaussian_classes(50, 20, shape=(6,), n_classes=3)
SETTINGS = {"batch_size": 10, "lr": 0.1, "epochs": 2, "device": "cpu"}


def net(n_outputs=3):
    return models.mlp(6, 4, n_outputs)


def trained(images=SET, model=None, **settings):
    return train(net() if model is None else model, images, **SETTINGS | settings)


def same(a, b):
    return torch.equal(a.w, b.w) and a.history.equals(b.history)


# ---- A: numbers that were wrong in silence -----------------------------------------------------


@pytest.mark.parametrize(
    ("y", "n_outputs", "message"),
    [
        (torch.ones(50, 1), 1, r"integers of the shape \(50,\), got torch.float32 .* \(50, 1\)"),
        (torch.full((50, 3), 1 / 3), 3, r"got torch.float32 of the shape \(50, 3\)"),
        (torch.zeros(50, 5).long(), 3, r"got torch.int64 of the shape \(50, 5\)"),
        (torch.full((50,), 3), 3, "must lie between 0 and 2, the network has 3 outputs: got .* 3"),
        (np.full(50, -1), 3, "must lie between 0 and 2, .* from -1 to -1"),
    ],
    ids=["a column", "probabilities", "a sequence", "label 3", "label −1"],
)
def test_a1_labels_are_checked_by_all_that_take_data(y, n_outputs, message):
    for function in (
        lambda: trained(replace(SET, y_train=y), net(n_outputs)),
        lambda: train_many([net(n_outputs)], replace(SET, y_train=y), **SETTINGS),
        lambda: NetworkObjective(net(n_outputs), SET.x_train, y),
    ):
        with pytest.raises(ValueError, match=message):
            function()


@pytest.mark.parametrize("kind", [np.int32, np.uint8, np.int64, np.uint16])
def test_a1_integers_of_any_kind_are_labels(kind, tmp_path):
    y, y_test = (part.numpy().astype(kind) for part in (SET.y_train, SET.y_test))
    other = replace(SET, y_train=y, y_test=y_test)
    assert same(trained(other), trained())
    a, b = (NetworkObjective(net(), SET.x_train, labels) for labels in (SET.y_train, y))
    assert a.value(a.w) == b.value(b.w)


def test_a1_a_mean_over_samples_does_not_depend_on_how_they_are_cut():
    model, y = net().double(), SET.y_train
    whole, *cut = (
        NetworkObjective(model, SET.x_train.double(), y, batch_size=n) for n in (50, 7, 1, 49)
    )
    v = torch.ones(whole.n_params, dtype=torch.float64)
    for f in cut:
        assert f.value(f.w) == pytest.approx(whole.value(f.w), rel=1e-14)
        assert f.evaluate(f.w) == pytest.approx(whole.evaluate(f.w), rel=1e-14)
        torch.testing.assert_close(f.grad(f.w), whole.grad(f.w), rtol=1e-12, atol=1e-15)
        for of in ("hessian", "gauss_newton"):
            products = [o.product(f.w, of=of)(v) for o in (f, whole)]
            torch.testing.assert_close(*products, rtol=1e-12, atol=1e-14)


class Odd(nn.Module):
    """Words, and one more tensor that is none of the weights."""

    def __init__(self, parameter=None, buffer=None, **options):
        super().__init__()
        with local_seed(0):
            self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)
        self.more = None if parameter is None else nn.Parameter(parameter, requires_grad=False)
        self.register_buffer("kept", buffer, **options)

    def forward(self, x):
        return self.head(self.embedding(x).mean(1))


ODD = {
    "bool": torch.ones(2, dtype=torch.bool),
    "bytes": torch.ones(2, dtype=torch.uint8),
    "int16": torch.ones(2, dtype=torch.int16),
    "complex": torch.ones(2, dtype=torch.complex64),
    "half": torch.ones(2, dtype=torch.float16),
    "number": torch.tensor(3.0),
    "nothing": torch.empty(0),
    "None": None,
}


@pytest.mark.parametrize("name", ODD)
def test_a2_conversion_touches_real_floating_tensors_only(name, tmp_path):
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(9, (50, 5), generator=rng)
    words = replace(SET, x_train=x, y_train=x[:, 0] % 3, x_test=x[:9], y_test=x[:9, 0] % 3)
    plain = trained(words, Odd())
    for options in ({}, {"persistent": False}):
        model = Odd(buffer=ODD[name], **options)
        file = tmp_path / f"{len(options)}.pt"
        trained(words, model, epochs=1, checkpoint=file)
        run = trained(words, model, checkpoint=file)
        assert same(run, plain)
        assert name == "None" or run.model.kept.dtype == ODD[name].dtype
        f = NetworkObjective(model, x, words.y_train)
        assert f.value(run.w) == pytest.approx(run.final("train", "loss"), rel=1e-6)
        double = NetworkObjective(model, x, words.y_train, dtype=torch.float64)
        assert double.value(run.w.double()) == pytest.approx(f.value(run.w), rel=1e-6)
    if name in ("bool", "bytes", "int16"):
        assert same(trained(words, Odd(parameter=ODD[name])), plain)


def test_a2_train_and_the_objective_refuse_bytes_and_take_models_in_double():
    byte = replace(SET, x_train=(SET.x_train * 9).to(torch.uint8))
    for function in (
        lambda: trained(byte),
        lambda: NetworkObjective(net(), byte.x_train, SET.y_train),
    ):
        with pytest.raises(ValueError, match=r"does not take x.*, torch.uint8 of the shape"):
            function()
    run = trained(model=net().double())
    torch.testing.assert_close(run.w.float(), trained().w, rtol=1e-4, atol=1e-6)
    torch.set_default_dtype(torch.float64)
    try:
        run, f = trained(), NetworkObjective(net(), SET.x_train, SET.y_train)
    finally:
        torch.set_default_dtype(torch.float32)
    assert run.w.dtype == f.dtype == torch.float64
    assert f.value(run.w) == pytest.approx(run.final("train", "loss"), rel=1e-12)


@pytest.mark.parametrize(
    "schedule",
    [
        warmup(0.5),
        warmup(1.0, 0.2),
        lambda epoch: min(1.0, 0.1 + 0.9 * epoch + (epoch > 0.75)),
        None,
    ],
    ids=["half", "other start", "one update", "none"],
)
def test_a7_a_run_goes_on_with_its_own_schedule_only(schedule, tmp_path):
    file = tmp_path / "run.pt"
    trained(schedule=warmup(1.0), epochs=1, checkpoint=file)
    with pytest.raises(ValueError, match=r"run.pt belongs to another run \(schedule"):
        trained(schedule=schedule, checkpoint=file)
    assert same(trained(schedule=warmup(1.0), checkpoint=file), trained(schedule=warmup(1.0)))


# ---- B: lost work, and errors that misled -----------------------------------------------------


NUMBERS = {
    "lr": (np.logspace(-2, -1, 3)[1], math.sqrt(1e-3)),
    "seed": (np.arange(5)[3], 3),
    "batch_size": (np.array([10, 20])[1], 20),
    "momentum": (np.float64(0.5), 0.5),
    "weight_decay": (np.float32(0.5), 0.5),
    "evaluate_every": (np.int8(2), 2),
    "patience": (np.uint16(7), 7),
    "micro_batch": (np.array(5), 5),
    "epochs": (np.float64(2), 2),
    "optimizer": (np.str_("adam"), "adam"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_b1_a_checkpoint_of_numpys_numbers_is_read_again(name, tmp_path):
    value, plain = NUMBERS[name]
    images, file = replace(SET, name=np.str_("of numpy")), tmp_path / "run.pt"
    first = trained(images, **{name: value}, checkpoint=file)
    assert same(trained(images, **{name: value}, checkpoint=file), first)
    assert same(trained(**{name: plain}), first)


RATES = [1.0, 0.5, 0.2, 0.1, 0.05]


@pytest.mark.parametrize(
    "schedule",
    [
        lambda epoch: RATES[int(epoch)],
        lambda epoch: math.sqrt(1 - epoch / 5),
        lambda epoch: math.log(6 - epoch),
        warmup(0),
        warmup(0, kind="constant"),
    ],
    ids=["list", "root", "logarithm", "warmup(0)", "constant"],
)
def test_b2_a_schedule_is_called_in_the_run_only(schedule, tmp_path):
    run = trained(epochs=5, schedule=schedule, checkpoint=tmp_path / "run.pt")
    assert run.history["epoch"].max() == 5
    rates = run.history.query("split == 'train'")["lr"].tolist()
    last = [0, *(epoch + 0.8 for epoch in range(5))]  # the last of 5 updates
    assert rates == pytest.approx([0.1 * schedule(epoch) for epoch in last])


@pytest.mark.parametrize("where", ["none/run.pt", "file/run.pt", ".", "a" * 300])
def test_b3_a_place_that_cannot_be_written_is_found_before_training(where, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("lecture6.train.gradient", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(
        (OSError, ValueError), match=r"No such file|Not a dir|is not a file|too long"
    ):
        trained(checkpoint=tmp_path / where)


@pytest.mark.parametrize("momentum", [-0.5, 1, 1.5, math.nan])
def test_b5_three_trainers_refuse_the_same_momentum(momentum):
    for function in (
        lambda: trained(momentum=momentum),
        lambda: train_many([net()], SET, **SETTINGS, momentum=momentum),
        lambda: parallel.train_parallel(net(), SET, workers=2, **SETTINGS, momentum=momentum),
    ):
        with pytest.raises(ValueError, match=r"momentum must be .* at least 0 and below 1, got"):
            function()


def test_b5_all_trainers_work_under_no_grad():
    expected = trained()
    with torch.no_grad():
        found, [many] = trained(), train_many([net()], SET, **SETTINGS)
    assert same(found, expected)
    torch.testing.assert_close(many.w, expected.w, rtol=1e-5, atol=1e-6)


CP1252 = """
import sys
from toy_study import study
from lecture6.__main__ import main
from lecture6.studies import STUDIES
assert sys.stdout.encoding == "cp1252", sys.stdout.encoding
for words in (["list"], *(["show", name] for name in sys.argv[2:]), ["run", "-h"]):
    main(words, standalone_mode=False)
for bad in (["show", "smith", "--from", sys.argv[1]], ["show", "η"]):
    try:
        main(bad)
    except SystemExit as end:
        assert end.code
STUDIES["keskar"] = study(f"{sys.argv[1]}.log", n=2, fail_until=1)
command = ["run", "keskar", "--profile", "smoke", "--folder", sys.argv[1]]
main([*command, "--dry-run"], standalone_mode=False)
main(command)
"""


@pytest.mark.slow
def test_b6_the_command_writes_where_the_encoding_lacks_letters(tmp_path):
    """stdout is cp1252 where it is redirected on Windows: it has no η, ε, φ or λ."""
    paths = [os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]
    old = {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0", "PYTHONPATH": os.pathsep.join(paths)}
    studies = ["keskar", "goyal", "smith", "jastrzebski"]
    command = [sys.executable, "-c", CP1252, str(tmp_path / "φ η"), *studies]
    done = subprocess.run(command, capture_output=True, env=os.environ | old, timeout=300)
    errors = done.stderr.decode("cp1252")
    assert done.returncode == 1, errors  # of the trials that fail
    assert "Error: no results of 'smith' in " in errors
    assert "100%|" in errors
    assert "failed (2 trials): ArithmeticError" in errors
    said = done.stdout.decode("cp1252")
    assert "stored results: stored study smith, profile full" in said
    assert said.count("\nlibraries ") == 4
    assert "? ?" in said  # the folder, whose letters cp1252 does not have
    assert said.rstrip().endswith("0 trials finished, 2 failed")


# B7 and B8 are tested in test_data.py, with real files and a user without a home


@pytest.mark.parametrize(
    ("number", "value", "words"),
    [
        ("1.1", None, "Exercise 1.1: asks for a number; got None"),
        ("1.1", "0.3", "Exercise 1.1: asks for a number; got '0.3'"),
        ("4.4", [1, 0], "Exercise 4.4: asks for a list of the shape (2,), each entry yes or no, "),
        (1.1, 0.3, "Exercise 1.1: right (1 % is allowed)"),
        (1.9, 0.3, "Exercise 1.9: there is none; the numbers go from 1.1 to 1.4"),
        ("1.1", np.ma.masked, "Exercise 1.1: asks for a number; got None"),
        ("1.1", np.datetime64("NaT"), "Exercise 1.1: asks for a number; got None"),
        ("1.1", {0.3}, "Exercise 1.1: asks for a number; got {0.3}"),
        ("1.1", pd.Series([0.3]), "Exercise 1.1: right"),
    ],
)
def test_b9_an_exercise_says_in_one_line_what_it_asks_for(number, value, words):
    assert repr(check(number, value)).startswith(words)


@pytest.mark.parametrize("static", ["", "1"], ids=["live", "static"])
def test_b10_numbers_that_six_digits_do_not_tell_apart(static, monkeypatch):
    monkeypatch.setenv("LECTURE6_STATIC", static)
    shown = []
    values = [10**6, 10**6 + 1]
    found = widgets.explore(
        lambda n: shown.append(n) or figures.go.Figure(figures.go.Scatter(y=[n])), {"n": values}
    )
    assert found.controls[0]["names"] == ["1000000", "1000001"]
    assert shown == (values if static else values[:1])


@pytest.mark.parametrize("content", ["[1]", "{}", "null"])
def test_b11_a_trial_file_of_another_shape_is_named_by_all(content, tmp_path):
    study = toy(tmp_path / "log", n=2)
    run(study, "smoke", folder=tmp_path)
    path = TrialFiles(study, tmp_path).path(study.trials("smoke")[0])
    path.write_text(content)
    for function in (plan, run, collect):
        with pytest.raises(StudyError, match=rf"{path.name} is damaged or .* delete it and run"):
            function(study, "smoke", folder=tmp_path)


# B12 is tested in test_checkpoints.py, bit by bit


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1}, "momentum must be a finite number and at least 0 and below 1, got 1"),
        ({"momentum": 1.5}, "momentum must be .* below 1, got 1.5"),
        ({"evaluate_every": 1.5}, "evaluate_every must be a whole number, got 1.5"),
        ({"evaluate_every": math.nan}, "evaluate_every must be a whole number, got nan"),
        ({"patience": math.nan}, "patience must be a whole number, got nan"),
        ({"micro_batch": 1.5}, "micro_batch must be a whole number, got 1.5"),
        ({"schedule": lambda epoch: 1 - epoch}, "fails at epoch 1.2 of 2, .* got -0.2"),
        ({"seed": 2**63}, "seed must be at least 0 and at most 9,223,372,036,854,775,807, got"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
        ({"device": "cuda:77"}, "device 'cuda:77' cannot be used here .* take 'cpu'"),
        ({"device": "meta"}, "device 'meta' cannot be used here .* take 'cpu'"),
    ],
)
def test_b13_values_that_give_nonsense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        trained(**settings)


def test_b13_whole_numbers_may_be_floats():
    assert same(trained(epochs=2.0, batch_size=10.0), trained())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"x_test": SET.x_test[:0], "y_test": SET.y_test[:0]}, "x_test must hold at least one"),
        ({"x_train": SET.x_train[:, :5]}, r"does not take x_train, torch.float32 .* \(n, 5\)"),
        ({"x_train": SET.x_train * math.nan}, "x_train has 300 of 300 values .* not finite"),
    ],
)
def test_b13_data_that_cannot_be_trained_on_are_refused(parts, message):
    for function in (trained, lambda images: train_many([net()], images, **SETTINGS)):
        with pytest.raises(ValueError, match=message):
            function(replace(SET, **parts))


def test_b13_many_replicas_have_no_schedule():
    with pytest.raises(ValueError, match="train_many has no schedule: train one by one"):
        train_many([net()], SET, **SETTINGS, schedule=lambda epoch: math.nan)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_b13_a_gpu_that_is_not_there_is_named():
    for name in ("cuda", 0, torch.device("cuda")):
        with pytest.raises(ValueError, match=r"cannot be used here .* leave it out, or take 'cpu'"):
            choose(name)


def test_b14_what_a_page_says_needs_something_to_say_it_of():
    for function, message in (
        (lambda: report.provenance("smoke", "digits", []), "a run has at least one seed, got none"),
        (lambda: report.settings("smoke", book={}), "no settings of the profile 'smoke' are given"),
        (lambda: verdicts.interval([]), "an interval needs at least 2 seeds, got 0"),
        (lambda: verdicts.claims_table([]), "a table of claims needs at least one, got none"),
    ):
        with pytest.raises(ValueError, match=message):
            function()
    labels = dict.fromkeys(("title", "xlabel", "ylabel", "zlabel"), "")
    for table in (pd.DataFrame(columns=["x", "y", "z"]), pd.DataFrame()):
        with pytest.raises(ValueError, match=r"no (rows|column)|column|empty"):
            figures.contour(table, "x", "y", "z", **labels)
