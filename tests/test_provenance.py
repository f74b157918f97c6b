"""What computed a result: the device, and the commit of the code."""

import json
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import lecture6
from lecture6 import provenance
from lecture6.provenance import code_version, device_name

ROOT = Path(provenance.__file__).parents[1]


def git(*arguments):
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def test_the_device_is_the_processor_or_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert re.fullmatch(rf"CPU {platform.machine()}, [A-Z0-9_]+", device_name())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    assert device_name() == "GPU NVIDIA H100"


def test_in_a_checkout_the_code_is_its_commit():
    if not git("ls-files", "lecture6/provenance.py"):
        pytest.skip("this is no checkout")
    code = code_version()
    assert code.startswith(f"commit {git('rev-parse', '--short', 'HEAD')}")
    assert code.endswith("+") == bool(git("status", "--porcelain", "--untracked-files=no"))


@pytest.mark.parametrize(
    ("record", "code"),
    [
        ({"url": "https://…", "vcs_info": {"commit_id": "0123456789abcdef"}}, "commit 0123456"),
        ({"url": "file:///wheel"}, f"version {lecture6.__version__}"),
        (None, f"version {lecture6.__version__}"),
    ],
    ids=["from git", "from a file", "no record"],
)
def test_elsewhere_the_code_is_what_pip_recorded(monkeypatch, record, code):
    def no_git(*arguments, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    read = {"direct_url.json": json.dumps(record) if record else None}.get
    monkeypatch.setattr(metadata, "distribution", lambda _: SimpleNamespace(read_text=read))
    assert code_version() == code


def test_a_copied_folder_has_its_version(monkeypatch):
    def unknown(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(provenance, "__file__", "/nowhere/provenance.py")
    monkeypatch.setattr(metadata, "distribution", unknown)
    assert code_version() == f"version {lecture6.__version__}"
