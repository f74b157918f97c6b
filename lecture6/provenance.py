"""What computed a result: the device, and the commit of the code."""

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from lecture6 import __version__


def device_name() -> str:
    """What computes here: "GPU NVIDIA H200", or a CPU with its instructions, "CPU x86_64, AVX2"."""
    if torch.cuda.is_available():
        return f"GPU {torch.cuda.get_device_name()}"
    return f"CPU {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def code_version() -> str:
    """The commit that the package came from, "+" when changed since; else its version."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=True
        )
        describe = [*git, "describe", "--always", "--dirty=+", "--exclude=*"]
        found = subprocess.run(describe, capture_output=True, text=True, check=True)
        return f"commit {found.stdout.strip()}"
    except (OSError, subprocess.CalledProcessError):
        pass  # not a checkout: installed by pip, which records the commit that it fetched
    try:
        record = metadata.distribution("lecture6").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        record = None  # a copied folder
    commit = json.loads(record or "{}").get("vcs_info", {}).get("commit_id")
    return f"commit {commit[:7]}" if commit else f"version {__version__}"
