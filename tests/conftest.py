"""Options, markers and fixtures that every test may use."""

import os
import re
from pathlib import Path

import pytest
import torch

from lecture6 import data

GPU_MARKERS = {
    "gpu": "needs a CUDA GPU; runs only with --gpu",
    "full": "a study at the papers' size; runs only with --gpu",
}
# The files that take longest come first, by the processor's time: of two processes, none is to run
# one alone at the end.
LONG = (
    *("test_studies.py", "test_parallel.py", "test_gpu.py", "test_imagenet.py"),
    *("test_error_bars.py", "test_noise.py", "test_curvature.py", "test_data.py", "test_fuzz.py"),
    *("test_book.py", "test_notebooks.py", "test_explorables_page.py", "test_execution.py"),
)


def pytest_addoption(parser):
    parser.addoption("--gpu", action="store_true", help="also run the tests marked gpu or full")


def pytest_configure(config):
    for name, meaning in GPU_MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    config.addinivalue_line("markers", "slow: starts processes, or takes long; not in test-fast")
    if config.getoption("gpu") and not torch.cuda.is_available():
        raise pytest.UsageError("--gpu: torch finds no CUDA GPU here; run without --gpu")


def pytest_collection_modifyitems(config, items):
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))
    if config.getoption("gpu"):
        return
    for item in items:
        if any(
            item.get_closest_marker(name) for name in GPU_MARKERS
        ):  # not its name, or a folder's
            item.add_marker(pytest.mark.skip(reason="needs pytest --gpu"))


def pytest_make_parametrize_id(val):
    """Name options by what they are, without addresses: all processes must name a test alike."""
    return re.sub(r" at 0x\w+", "", str(val)) if isinstance(val, dict) else None


@pytest.fixture(scope="session")
def data_root():
    """The folder of real data sets, for tests only to read."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("LECTURE6_DATA") or beside)
    if not root.is_dir():
        pytest.skip(f"no data at {root}: set LECTURE6_DATA to the folder that holds MNIST, TIMIT …")
    return root


@pytest.fixture(scope="session")
def digits():
    """The smallest real data set, for tests only to read."""
    return data.load("digits")


@pytest.fixture(scope="module")
def one_thread():
    """For tiny nets: two threads would only wait for each other, long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
