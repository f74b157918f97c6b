"""Goyal's recipe on a folder of tiny images: alone, shared by processes, killed and resumed."""

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image
from torch import nn

from lecture6 import models
from lecture6.__main__ import main
from lecture6.checkpoints import Checkpoint
from lecture6.data import DataError
from lecture6.studies import STUDIES, Study, imagenet, runner
from lecture6.team import Team
from lecture6.train import DivergenceError, _each_from_the_same_buffers

pytestmark = pytest.mark.usefixtures("one_thread")
HERE = Path(__file__).parent
TRIAL = {"net": "resnet20", "image_size": 32, "loaders": 0, "seed": 0}
GRID = TRIAL | {"images": "imagenet", "k": 4, "n": 3, "lr": 2.0, "epochs": 3}


def write(folder, n_train=12, n_val=6):
    """Three classes that differ in colour: noise of 40×40 pixels."""
    rng = np.random.default_rng(0)
    for part, n in (("train", n_train), ("val", n_val)):
        for c in range(3):
            (folder / part / f"class{c}").mkdir(parents=True)
            for i in range(n):
                x = rng.integers(0, 160, (40, 40, 3))
                x[..., c] += 60
                Image.fromarray(x.astype(np.uint8)).save(folder / part / f"class{c}" / f"{i}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write(folder)
    return folder


@pytest.fixture(scope="module")
def name(folder):
    return f"imagefolder:{folder}"


@pytest.fixture(scope="module")
def alone(name, one_thread):
    return imagenet.trial(**GRID | {"images": name})


def values(rows):
    return [row[column] for row in rows["history"] for column in ("loss", "error")]


# --- the recipe ---------------------------------------------------------------------------------


def rate_and_factor(kn, **options):
    recipe = imagenet.recipe_for(kn // 32, 32, **options)
    return recipe.lr, recipe.schedule


@pytest.mark.parametrize("k", [8, 32, 256])
def test_the_rate_is_goyals_at_every_point_of_the_schedule(k):
    rate, factor = rate_and_factor(32 * k)
    assert rate == pytest.approx(0.1 * 32 * k / 256)
    peak = rate
    assert rate * factor(0) == pytest.approx(0.1)
    assert rate * factor(2.5) == pytest.approx((0.1 + peak) / 2)
    for epoch, expected in ((5, 1), (29.99, 1), (30, 0.1), (60, 0.01), (80, 0.001), (89.9, 0.001)):
        assert rate * factor(epoch) == pytest.approx(expected * peak)


def test_other_schedules():
    rate, factor = rate_and_factor(128)
    assert rate == pytest.approx(0.05)  # a warm-up only for kn > 256
    assert factor(0) == 1
    rate, factor = rate_and_factor(8192, warmup="constant")
    assert [rate * factor(e) for e in (0, 4.9, 5)] == pytest.approx([0.1, 0.1, 3.2])
    rate, factor = rate_and_factor(8192, warmup="none")
    assert rate * factor(0) == pytest.approx(3.2)
    rate, factor = rate_and_factor(8192, rule="sqrt")
    assert rate == pytest.approx(0.1 * math.sqrt(32))
    assert rate * factor(0) == pytest.approx(0.1)
    assert rate_and_factor(8192, rule="none")[1](0) == 1
    _, factor = rate_and_factor(8192, epochs=9)  # all in proportion
    assert [factor(e) for e in (0.5, 3, 6, 8)] == pytest.approx([1, 0.1, 0.01, 0.001])
    with pytest.raises(ValueError, match="kind must be"):
        rate_and_factor(8192, warmup="slow")


def test_batch_norm_has_no_weight_decay():
    model = imagenet.build("resnet50", 7, seed=0)
    decayed, free = imagenet.optimizer(model, imagenet.recipe_for(32, 32)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (1e-4, 0)
    n_free = sum(p.numel() for p in free["params"])
    assert n_free == sum(
        p.numel() for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()
    )
    assert n_free + sum(p.numel() for p in decayed["params"]) == models.count_parameters(model)
    assert any(p is model.fc.bias for p in decayed["params"])
    for group in (decayed, free):
        assert (group["lr"], group["momentum"], group["nesterov"]) == (0.4, 0.9, True)


def team(rank=0, size=1):
    return Team(torch.device("cpu"), rank, size)


def test_processes_divide_one_shuffle_an_epoch():
    shares = [imagenet.share(50, 4, 3, (0, 1), team(rank, 2)) for rank in (0, 1)]
    assert [s.shape for s in shares] == [(4, 2, 3)] * 2
    together = torch.cat(shares, dim=1)
    assert torch.equal(together, imagenet.share(50, 4, 3, (0, 1), team(0, 1)))
    assert len(together.unique()) == 48  # of 50: whole mini-batches only
    assert not torch.equal(together, imagenet.share(50, 4, 3, (0, 2), team(0, 1)))
    assert not torch.equal(together, imagenet.share(50, 4, 3, (1, 0), team(0, 1)))


def test_augmentation_depends_on_image_epoch_and_seed_alone(name):
    train, test = imagenet.open_images(name, 32, seed=0)
    assert (len(train), len(test)) == (36, 18)
    assert train.classes == ["class0", "class1", "class2"]
    state = torch.get_rng_state()
    x, y = train[1, 20]
    assert torch.equal(torch.get_rng_state(), state)
    assert x.shape == (3, 32, 32)
    assert y == 1
    other, _ = imagenet.open_images(name, 32, seed=1)
    assert torch.equal(train[1, 20][0], x)
    for changed in (train[2, 20], other[1, 20], train[1, 21]):
        assert not torch.equal(changed[0], x)
    assert torch.equal(test[0, 3][0], test[5, 3][0])
    raw = np.asarray(Image.open(Path(test.folder.samples[3][0])).resize((37, 37), Image.BILINEAR))
    centre = torch.from_numpy(raw[2:34, 2:34].copy()).permute(2, 0, 1) / 255  # a side of 256 : 224
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (imagenet.MEAN, imagenet.STD))
    torch.testing.assert_close(test[0, 3][0], (centre - mean) / std)


def test_an_update_is_that_of_goyals_workers(name):
    """By hand: the mean gradient over the parts, each with its own batch norm."""
    train, _ = imagenet.open_images(name, 32, seed=0)
    by_hand, model = (imagenet.build("resnet20", 3, seed=0).double() for _ in range(2))
    shares = imagenet.share(36, 4, 3, (0, 0), team(0, 1))
    parts = [
        [
            torch.stack(column) if torch.is_tensor(column[0]) else torch.tensor(column)
            for column in zip(*(train[0, i] for i in part.tolist()), strict=True)
        ]
        for part in shares.flatten(0, 1)
    ]
    parts = [(x.double(), y) for x, y in parts]
    opt, opt_by_hand = (
        imagenet.optimizer(m, imagenet.recipe_for(4, 3, lr=0.5, rule="none"))
        for m in (model, by_hand)
    )
    reading = iter(parts)
    for i in range(3):
        for m in (model, by_hand):
            m.train()
        found = imagenet.update(model, opt, reading, 4, team())
        opt_by_hand.zero_grad()
        loss = wrong = 0
        for x, y in _each_from_the_same_buffers(by_hand, parts[4 * i : 4 * i + 4], 4):
            z = by_hand(x)
            part = F.cross_entropy(z, y, reduction="sum") / 12
            part.backward()
            loss, wrong = loss + part.item(), wrong + (z.argmax(1) != y).sum().item()
        opt_by_hand.step()
        assert found.tolist() == pytest.approx([loss, wrong / 12], abs=1e-12)
    for a, b in zip(model.state_dict().values(), by_hand.state_dict().values(), strict=True):
        if a.is_floating_point():  # a counter counts parts
            torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_rows_are_those_of_the_study(alone):
    assert [(r["epoch"], r["split"]) for r in alone["history"]] == [
        (epoch, split) for epoch in (1, 2, 3) for split in ("train", "test")
    ]
    assert alone["runs"] == [{"n_updates": 9, "diverged": False}]
    losses = [r["loss"] for r in alone["history"] if r["split"] == "train"]
    assert losses[0] > losses[-1]


def test_the_validation_error_is_exact(name):
    _, test = imagenet.open_images(name, 32, seed=0)
    model = imagenet.build("resnet20", 3, seed=0).eval()
    with torch.no_grad():
        z = model(torch.stack([test[0, i][0] for i in range(18)]))
    y = torch.tensor([0] * 6 + [1] * 6 + [2] * 6)
    loss, error = imagenet.evaluate(model, test, team(), loaders=0)
    assert loss == pytest.approx(F.cross_entropy(z, y).item(), rel=1e-6)
    assert error == (z.argmax(1) != y).double().mean().item()


def test_the_number_of_loaders_changes_nothing(name, alone):
    assert imagenet.trial(**GRID | {"images": name, "loaders": 2}) == alone


def test_a_rate_that_is_too_large_diverges(name):
    rows = imagenet.trial(**GRID | {"images": name, "lr": 1e30})
    assert rows == {"runs": [{"diverged": True}]}
    model = imagenet.build("resnet20", 3, seed=0)
    with torch.no_grad():
        model[-1].bias.fill_(math.nan)
    _, test = imagenet.open_images(name, 32, seed=0)
    with pytest.raises(DivergenceError, match="the loss became nan"):
        imagenet.evaluate(model.eval(), test, team(), loaders=0)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 13, "n": 3}, "k = 13 parts of n = 3 images must be at most 36, got 39"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"net": "vgg"}, "net must be 'resnet50' or 'resnet20', got 'vgg'"),
        ({"rule": "cubic"}, "rule must be 'linear'"),
        ({"images": "imagefolder:/none"}, "/none/train.*put the images in class folders under"),
    ],
)
def test_impossible_settings_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        imagenet.trial(**GRID | {"images": name} | settings)


def test_parts_that_processes_cannot_divide_are_refused():
    assert imagenet.check(36, 4, 3, 2) == 3
    with pytest.raises(ValueError, match="k 4 parts cannot be divided among 3 processes"):
        imagenet.check(36, 4, 3, 3)


@pytest.mark.parametrize("loaders", [0, 1])
def test_a_damaged_image_is_named(tmp_path, loaders):
    write(tmp_path, 4, 1)
    bad = tmp_path / "train" / "class1" / "2.png"
    bad.write_bytes(bad.read_bytes()[:900])
    with pytest.raises(DataError, match=rf"^{bad} is not a whole image \(.*\): replace it$"):
        imagenet.trial(**GRID | {"images": f"imagefolder:{tmp_path}", "loaders": loaders})


def test_classes_must_agree_and_unlabelled_test_images_are_left_alone(tmp_path):
    write(tmp_path, 1, 1)
    (tmp_path / "test").mkdir()
    imagenet.open_images(f"imagefolder:{tmp_path}", 32, 0)
    (tmp_path / "val" / "class2").rename(tmp_path / "val" / "class3")
    with pytest.raises(DataError, match="train and val must both have class2, class3"):
        imagenet.open_images(f"imagefolder:{tmp_path}", 32, 0)


# --- as a study ---------------------------------------------------------------------------------

# The command, with a study of one trial in Goyal's place; killed at its first checkpoint if asked
COMMAND = """
import os, signal, sys
from lecture6.__main__ import main
from lecture6.studies import STUDIES, imagenet
from test_imagenet import study
STUDIES["goyal"] = study()
save = imagenet.Checkpoint.save
def save_and_die(*arguments):
    save(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
if "KILLED" in os.environ:
    imagenet.Checkpoint.save = save_and_die
main(prog_name="lecture6")
"""


def study():
    own = {"imagenet": imagenet.trial}
    return Study("goyal", "", print, {"imagenet": [GRID]}, own_trials=own)


def command(folder, images, *, processes=None, **environment):
    """Exit code, output and errors of the command as a process, or as several under torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    torchrun += ["--no-python", sys.executable]
    words = [*(torchrun if processes else ()), "-c", COMMAND, "run", "goyal"]
    words += ["--profile", "imagenet", "--data", images, "--folder", str(folder)]
    paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


def kept(folder):
    [file] = (folder / "goyal").glob("*.json")
    return json.loads(file.read_text())


@pytest.mark.slow
def test_the_command_runs_it_alone(tmp_path, folder, name, alone, monkeypatch):
    monkeypatch.setitem(STUDIES, "goyal", study())
    words = ["goyal", "--profile", "imagenet", "--folder", str(tmp_path), "--data", name]
    done = CliRunner().invoke(main, ["run", *words])
    assert done.exit_code == 0, done.output
    assert "1 trials finished, 0 failed" in done.output
    trial = kept(tmp_path)
    assert trial["rows"] == alone
    assert trial["parameters"]["images"] == name
    assert trial["record"]["data"] == {name: runner._files_digest(name)}
    assert not list(tmp_path.glob("goyal/*.checkpoint"))
    collected = CliRunner().invoke(main, ["collect", *words, "--to", str(tmp_path)])
    assert "goyal.json: history (6 rows), runs (1 rows)" in collected.output


def test_a_worker_with_other_images_is_refused(name):
    trial = study().trials("imagenet", {"imagenet": name})[0]
    digest = runner.code_digest(imagenet.trial)
    job = (imagenet.__name__, "trial", digest, "", {name: "another digest"})
    answer, error = runner._work(trial, job)
    assert answer is None
    assert error == f"StudyError: {name} has other files here: copy the runner's to here"


def test_the_digest_is_of_names_and_sizes(tmp_path):
    write(tmp_path, 1, 1)

    def found():
        runner._files_digest.cache_clear()
        return runner._files_digest(f"imagefolder:{tmp_path}")

    before = found()
    image = tmp_path / "train" / "class0" / "0.png"
    content = image.read_bytes()
    image.write_bytes(content + b"0")
    assert found() != before
    image.write_bytes(content)
    assert found() == before
    image.rename(image.with_name("1.png"))
    assert found() != before


@pytest.mark.parametrize("images", ["imagefolder:/none", "nothing", None])
def test_a_folder_that_is_not_there_is_one_clear_error(tmp_path, monkeypatch, images):
    monkeypatch.setitem(STUDIES, "goyal", study())
    data = ["--data", images] if images else []
    words = ["run", "goyal", "--profile", "imagenet", "--folder", str(tmp_path), *data]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1
    assert f"{images or 'imagenet'!r} is none that is there" in done.output
    assert "--data imagefolder:PATH" in done.output
    assert "Traceback" not in done.output
    assert CliRunner().invoke(main, [*words, "--dry-run"]).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [None, 2])
def test_a_killed_trial_goes_on_from_its_last_epoch(tmp_path, name, alone, processes):
    """With the numbers of one process, whether one computes it or two that torchrun starts."""
    code, _, _ = command(tmp_path, name, processes=processes, KILLED="yes")
    assert code != 0
    [checkpoint] = tmp_path.glob("goyal/*.checkpoint")
    content = checkpoint.read_bytes().partition(b"\n")[2]
    saved = torch.load(io.BytesIO(content), weights_only=True)
    assert saved["state"]["epoch"] == 1
    saved["state"]["rows"]["history"][0]["loss"] = 7.0  # to see that it was not computed again
    Checkpoint(checkpoint, saved["settings"]).save(saved["state"])
    code, output, errors = command(tmp_path, name, processes=processes)
    assert code == 0, errors
    assert output.count("1 trials finished, 0 failed") == 1
    assert output.count("kept in") == 1
    assert not list(tmp_path.glob("goyal/*.checkpoint"))
    trial = kept(tmp_path)
    found = values(trial["rows"])
    assert found[0] == 7
    if processes:
        assert trial["record"]["device"].startswith("2 × ")
        assert found[1:] == pytest.approx(values(alone)[1:], abs=1e-5)
    else:
        assert found[1:] == values(alone)[1:]


@pytest.mark.slow
def test_an_error_under_torchrun_ends_the_job(tmp_path):
    write(tmp_path / "images", 4, 1)
    bad = tmp_path / "images" / "train" / "class1" / "2.png"
    bad.write_bytes(bad.read_bytes()[:900])
    images = f"imagefolder:{tmp_path / 'images'}"
    code, output, errors = command(tmp_path, images, processes=2)
    assert code != 0
    assert f"{bad} is not a whole image" in errors
    assert "finished," in output
    assert "trials finished" not in output
