"""Files that are whole or not there: what is saved, what is refused, and what a full disk says."""

import hashlib
import io
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from lecture6 import checkpoints, data, models
from lecture6.checkpoints import Checkpoint, digest, write_atomically
from lecture6.models import local_seed
from lecture6.schedules import step_decay, warmup
from lecture6.train import train

pytestmark = pytest.mark.usefixtures("one_thread")
SET = data.load("digits").subset(60, 30)


def run(images=SET, **options):
    settings = {"batch_size": 20, "lr": 0.1, "epochs": 1, "device": "cpu"}
    return train(models.mlp(64, 8), images, **settings | options)


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    file = tmp_path / "table"
    write_atomically(file, b"old")
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    with pytest.raises(TypeError):
        write_atomically(file, "text")
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: .*none/table"):
        write_atomically(tmp_path / "none" / "table", b"")


FULL = """
import resource, sys
from lecture6.checkpoints import write_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomically(sys.argv[1], bytes(5000))
except OSError as error:
    print(error)
"""


def test_a_write_that_ends_early_names_the_file_and_leaves_the_old_one(tmp_path):
    file = tmp_path / "table"
    file.write_bytes(b"old")
    command = [sys.executable, "-c", FULL, str(file)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == f"[Errno 27] File too large: '{file}'\n"
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_the_digest_is_of_the_content_whatever_the_type_and_layout():
    x = torch.arange(12.0).view(3, 4)
    assert digest(x) == digest(x.clone()) == digest(x[:1], x[1:])
    assert digest(x.T) == digest(x.T.contiguous()) != digest(x)
    assert digest(torch.tensor([1.0]).bfloat16()) != digest(torch.tensor([2.0]).bfloat16())
    assert digest(torch.tensor(1.0)) == digest(torch.ones(1))


# ---- the checkpoint of a run -------------------------------------------------------------------


def test_every_single_flipped_bit_is_found(tmp_path):
    """Finding B12: 7 of 8 were accepted."""
    file = tmp_path / "run.pt"
    run(checkpoint=file)
    whole = file.read_bytes()
    for place in range(0, len(whole), len(whole) // 40):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        file.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"run.pt is damaged, or .* delete it to start afresh"):
            run(checkpoint=file, epochs=2)
    file.write_bytes(whole)
    assert run(checkpoint=file, epochs=2).history.equals(run(epochs=2).history)


@pytest.mark.parametrize("missing", ["model", "optimizer", "rows", "progress", "rng", "generator"])
def test_a_checkpoint_that_lacks_a_part_is_refused(missing, tmp_path):
    file = tmp_path / "run.pt"
    run(checkpoint=file)
    state = Checkpoint(file, {}).load()
    del state[missing]
    save_with_a_checksum(file, state)
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        run(checkpoint=file, epochs=2)


OTHER_CONTENT = {
    "settings None": {"settings": None, "state": {}},
    "settings a list": {"settings": [1, 2], "state": {}},
    "no settings": {"state": {}},
    "no state": {"settings": {}},
    "a list": [1, 2],
    "None": None,
}


@pytest.mark.parametrize("name", OTHER_CONTENT)
def test_other_content_with_a_right_checksum_is_refused(name, tmp_path):
    buffer = io.BytesIO()
    torch.save(OTHER_CONTENT[name], buffer)
    content = buffer.getvalue()
    file = tmp_path / "run.pt"
    file.write_bytes(checkpoints._MARK + hashlib.sha256(content).hexdigest().encode() + b"\n")
    with open(file, "ab") as appended:
        appended.write(content)
    with pytest.raises(ValueError, match=r"run.pt is not a readable checkpoint .* delete it"):
        Checkpoint(file, {"lr": 1}).load()


@pytest.mark.parametrize("part", ["model", "optimizer", "progress", "rng", "generator"])
@pytest.mark.parametrize("value", [None, 5, [1], {}, "words"])
def test_a_part_of_another_shape_is_refused(part, value, tmp_path):
    """Finding B12: what torch raises then is AttributeError, IndexError, KeyError and more."""
    file = tmp_path / "run.pt"
    run(checkpoint=file)
    save_with_a_checksum(file, Checkpoint(file, {}).load() | {part: value})
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        run(checkpoint=file, epochs=2)


def save_with_a_checksum(file, state):
    """Put ``state`` in the place of what the file holds, so that only its content is wrong."""
    content = file.read_bytes().partition(b"\n")[2]
    settings = torch.load(io.BytesIO(content), weights_only=True)["settings"]
    Checkpoint(file, settings).save(state)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    file = tmp_path / "run.pt"
    run(checkpoint=file)
    state = Checkpoint(file, {}).load()
    state["model"]["1.weight"][0, 0] = math.nan
    save_with_a_checksum(file, state)
    with pytest.raises(ValueError, match=r"run.pt has 1 of 610 values that are not finite"):
        run(checkpoint=file, epochs=2)


OTHER = {
    "a shorter warm-up": ({"schedule": warmup(0.5)}, SET),
    "a later drop": ({"schedule": lambda e: warmup(1.0)(e) * step_decay((1.5,))(e)}, SET),
    "test images": ({}, replace(SET, x_test=SET.x_test.flip(0))),
    "test labels": ({}, replace(SET, y_test=SET.y_test.flip(0))),
    "momentum": ({"momentum": 0.5}, SET),
    "weight decay": ({"weight_decay": 0.1}, SET),
    "micro-batch": ({"micro_batch": 10}, SET),
}


def normed(momentum=0.1, mean=0.0, act=nn.ReLU, frozen=False):
    with local_seed(0):
        norm = nn.BatchNorm1d(8, momentum=momentum)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), norm, act(), nn.Linear(8, 10))
    norm.running_mean += mean
    net[1].requires_grad_(not frozen)
    return net


@pytest.mark.parametrize(
    "change", [{"momentum": 0.5}, {"mean": 1.0}, {"act": nn.Tanh}, {"frozen": True}]
)
def test_a_run_goes_on_with_the_same_network(change, tmp_path):
    """Which is more than its weights: what they do, which of them move, and its buffers."""
    file = tmp_path / "run.pt"
    options = {"batch_size": 20, "lr": 0.1, "device": "cpu", "checkpoint": file}
    train(normed(), SET, epochs=1, **options)
    with pytest.raises(ValueError, match=r"run.pt belongs to another run \((model|initial)"):
        train(normed(**change), SET, epochs=2, **options)
    assert train(normed(), SET, epochs=2, **options).n_updates == 6


@pytest.mark.parametrize("other", OTHER)
def test_a_run_goes_on_with_all_that_it_depends_on(other, tmp_path):
    """Findings A7 and B12: another schedule, another test set."""
    file = tmp_path / "run.pt"
    run(checkpoint=file, schedule=warmup(1.0), epochs=2)
    saved = file.read_bytes()
    options, images = OTHER[other]
    options = {"schedule": warmup(1.0), "epochs": 3, "checkpoint": file} | options
    with pytest.raises(ValueError, match=r"run.pt belongs to another run"):
        run(images, **options)
    assert file.read_bytes() == saved


def test_the_same_schedule_written_anew_goes_on(tmp_path):
    file = tmp_path / "run.pt"
    run(checkpoint=file, schedule=warmup(2.0))
    resumed = run(checkpoint=file, epochs=3, schedule=lambda e: min(1.0, 0.1 + 0.9 * e / 2))
    assert resumed.history.equals(run(epochs=3, schedule=warmup(2.0)).history)


@pytest.mark.skipif(os.name != "posix", reason="needs a folder without write permission")
@pytest.mark.parametrize("where", ["none/run.pt", "."])
def test_a_place_that_cannot_be_written_is_found_before_training(where, tmp_path, monkeypatch):
    monkeypatch.setattr("lecture6.train.gradient", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises((OSError, ValueError), match=r"none is no folder|is not a file"):
        run(checkpoint=tmp_path / where)
    assert list(tmp_path.iterdir()) == []
