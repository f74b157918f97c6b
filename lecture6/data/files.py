"""The files of data sets: checked against digests, and downloaded once."""

import gzip
import hashlib
import os
import tempfile
import zlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from zipfile import BadZipFile

REMEDY = "point LECTURE6_DATA (or root=) at a folder with a good copy"


class DataError(ValueError):
    """A data set is unknown, absent, damaged, or cannot be downloaded."""


def digest(*contents: bytes, algorithm: str = "sha256") -> str:
    """Of all contents, one after the other, in hexadecimal digits."""
    found = hashlib.new(algorithm, usedforsecurity=False)
    for content in contents:
        found.update(content)
    return found.hexdigest()


def verified(
    folder: Path, files: list[str], expected: str, algorithm: str = "sha256"
) -> list[bytes]:
    """The bytes of each file, or of the archive NAME.gz that is there without it.

    Raises ``DataError`` unless the digest of them all is ``expected``.
    """
    raw = []
    for file in files:
        path = folder / file
        path = path if path.exists() or not Path(f"{path}.gz").exists() else Path(f"{path}.gz")
        try:
            content = path.read_bytes()
            raw.append(gzip.decompress(content) if path.suffix == ".gz" else content)
        except (OSError, EOFError, zlib.error) as error:
            cause = getattr(error, "strerror", None) or error
            raise DataError(f"cannot read {path}: {cause}") from None
    found = digest(*raw, algorithm=algorithm)
    if found != expected:
        raise DataError(
            f"{path if len(files) == 1 else folder} is cut short or altered: expected "
            f"{algorithm} {expected[:16]}…, found {found[:16]}… ({sum(map(len, raw)):,} bytes in "
            f"{len(raw)} files)"
        )
    return raw


def obtain(
    name: str, target: Path, read: Callable[[Path], list[bytes]], fetch: Callable | None = None
) -> list[bytes]:
    """``read(target)``, downloaded first if it is absent: whole and verified, or not at all.

    ``fetch(folder)`` downloads into an empty folder what is then called as ``target`` there; None:
    nothing is downloaded. Raises ``DataError``, with the file, the cause and the remedy.
    """
    if not target.exists():
        if fetch is None:
            raise DataError(f"{name} is not at {target}, and no download is possible: {REMEDY}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as scratch:
                fetch(Path(scratch))
                read(fetched := Path(scratch) / target.name)
                if not target.exists():  # another process may have been faster
                    os.replace(fetched, target)
        except (OSError, RuntimeError, ValueError, HTTPException, BadZipFile) as error:
            raise DataError(
                f"cannot download {name} to {target}: {error}; check the network and the folder "
                f"and load again, or {REMEDY}"
            ) from None
    try:
        return read(target)
    except DataError as error:
        again = f"move {target} away and load again to download it, or " if fetch else ""
        raise DataError(f"{name}: {error}; {again}{REMEDY}") from None
