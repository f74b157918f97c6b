"""TIMIT: frames of speech and their phones.

NLTK's sample has 160 utterances of 16 speakers, 48,695 frames; Keskar et al. had 721,329 + 310,621.
A sample is 9 successive frames of ``log_mel``, 360 inputs, the first and last frame of an utterance
repeated at its ends, each input standardised with the training speakers' mean and standard
deviation. ``TIMIT_TEST_SPEAKERS``, a quarter, make the test set; every phone has training frames,
and only the two ``sa`` sentences are read by speakers of both sets. A label is the phone at the
frame's central sample, one of 61, and the third of its segment: 183 classes, ``aa.1`` to ``zh.3``.
The 1,973 classes are stand-ins for the paper's HMM states: those 183, and the 1,790 most frequent
ones that name a neighbour too, the phone before for the first two thirds (``b-aa.1``), the phone
after for the last (``aa.3+b``). Frequency is counted in the training speakers' frames, ties go by
phone, third and neighbour, and a frame in any other context keeps its class of the 183. Silence
adjoins both ends of an utterance and lasts to the end of the recording.
"""

import io
from pathlib import Path

import numpy as np
import torch
from scipy.fft import rfft
from scipy.io import wavfile

from lecture6.data.dataset import Dataset
from lecture6.data.files import obtain, verified

TIMIT_TEST_SPEAKERS = ("faem0", "maeb0", "mbma1", "fbcg1")  #: 2 women, 2 men; dialects 2, 4, 6, 8
_SHA256 = "1520a6943fad409191f9dec4b750d3039b95f0898bfc07610dfdf68b26606d0e"
# the address in the index of NLTK's corpus downloader
_URL = "https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/corpora/timit.zip"


def load_timit(name: str, root: Path, download: bool) -> Dataset:
    """``timit`` or ``timit:183``, in NLTK's layout; see the module."""

    def fetch(folder: Path) -> None:
        from torchvision.datasets.utils import download_and_extract_archive

        download_and_extract_archive(_URL, folder)

    folder = root / "nltk_data" / "corpora" / "timit"
    raw = obtain(name, folder, _read, fetch if download else None)
    segments = [[line.split() for line in phn.decode().splitlines()] for phn in raw[::2]]
    signals = [wavfile.read(io.BytesIO(wav))[1] for wav in raw[1::2]]
    phones = sorted({phone for rows in segments for _, _, phone in rows})
    frames = [_frames(*pair, phones) for pair in zip(signals, segments, strict=True)]
    x, phone, third, neighbour = (np.concatenate(part) for part in zip(*frames, strict=True))
    tests = [wav[4:9] in TIMIT_TEST_SPEAKERS for wav in _recordings(folder)]
    test = np.repeat(tests, [len(bands) for bands, *_ in frames])
    x = ((x - x[~test].mean(0)) / x[~test].std(0)).astype(np.float32)
    y, classes = 3 * phone + third, tuple(f"{p}.{k}" for p in phones for k in (1, 2, 3))
    if name == "timit":
        y, classes = _tied(y, classes, neighbour, phones, ~test)
    inputs, labels = torch.from_numpy(x), torch.tensor(y, dtype=torch.int64)
    parts = inputs[~test], labels[~test], inputs[test], labels[test]
    return Dataset(name, *parts, classes, _SHA256)


def _recordings(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob("dr*/*.wav"))


def _read(folder: Path) -> list[bytes]:
    """The segments and the signal of each recording, one after the other."""
    files = [file for wav in _recordings(folder) for file in (wav.replace(".wav", ".phn"), wav)]
    return verified(folder, files, _SHA256)


def _frames(
    signal: np.ndarray, segments: list[list[str]], phones: list[str]
) -> tuple[np.ndarray, ...]:
    """Of each frame the input, and the indices of the phone, its third and its neighbour."""
    bands = log_mel(signal)
    n = len(bands)
    window = np.arange(n)[:, None] + np.arange(-4, 5)
    x = bands[window.clip(0, n - 1)].reshape(n, 360)
    begin, end = np.array([row[:2] for row in segments], dtype=int).T
    end[-1] = max(end[-1], len(signal))
    phone = np.array([phones.index(p) for p in ("h#", *(row[2] for row in segments), "h#")])
    centre = 160 * np.arange(n) + 200
    i = np.searchsorted(begin, centre, side="right") - 1
    third = 3 * (centre - begin[i]) // (end[i] - begin[i])
    neighbour = np.where(third < 2, phone[i], phone[i + 2])
    return x, phone[i + 1], third, neighbour


def _tied(
    alone: np.ndarray, names: tuple, neighbour: np.ndarray, phones: list[str], train: np.ndarray
) -> tuple[np.ndarray, tuple[str, ...]]:
    """1,973 classes from the 183: ``alone`` and ``neighbour`` are of each frame, (n_frames,)."""
    context = 61 * alone + neighbour  # ordered by phone, third, neighbour
    seen, counts = np.unique(context[train], return_counts=True)
    kept = np.sort(seen[np.argsort(-counts, kind="stable")[: 1973 - 183]])
    for own, other in zip(*np.divmod(kept, 61), strict=True):
        name = f"{phones[other]}-{names[own]}" if own % 3 < 2 else f"{names[own]}+{phones[other]}"
        names += (name,)
    place = np.searchsorted(kept, context).clip(max=len(kept) - 1)
    return np.where(kept[place] == context, 183 + place, alone), names


def log_mel(signal: np.ndarray) -> np.ndarray:
    """Log energies of 40 mel bands, (n_frames, 40) float64, of a 16 kHz int16 signal (n_samples,).

    Frames of 25 ms (400 samples, Hamming window) start every 10 ms (160 samples) and lie wholly
    inside the signal, so there are 1 + (n_samples - 400) // 160. The power spectrum of 512 points
    is weighted with triangles that are equally wide from 0 to 8 kHz on the mel scale
    2595 log10(1 + f / 700). Energies below 1, silence to the last bit, count as 1. Source: the
    usual front end of speech recognition (S. Young et al., The HTK Book, chapter 5).
    """
    frames = np.lib.stride_tricks.sliding_window_view(signal, 400)[::160]
    power = np.abs(rfft(frames * np.hamming(400), 512)) ** 2
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 42) / 2595) - 1)
    low, middle, high = (edges[i : i + 40, None] for i in range(3))
    f = np.arange(257) * 16000 / 512
    triangles = np.minimum((f - low) / (middle - low), (high - f) / (high - middle)).clip(min=0)
    return np.log(np.maximum(power @ triangles.T, 1))
