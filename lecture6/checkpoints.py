"""Files that are whole or not there: written beside their target, to the disk, then renamed."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Write ``content`` to ``path``, in place of what is there: all of it, or nothing.

    A process that is killed leaves the old file. Raises OSError, naming the file, when it cannot be
    written; the old one then stays.
    """
    partial = Path(f"{path}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
