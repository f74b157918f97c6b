"""Files that are whole or not there, and what a training run continues from."""

import hashlib
import io
import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lecture6 import checks

_MARK = b"lecture6 checkpoint, SHA-256 "


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Write ``content`` to ``path``, in place of what is there: all of it, or nothing.

    It goes beside the target first, to the disk, and is then renamed: a process that is killed
    leaves the old file. So does one that cannot write, which raises OSError, naming the file.
    """
    partial = _partial(path)
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        if os.name == "posix":  # the name, too, outlasts a power failure
            folder = os.open(partial.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    except OSError as error:  # of a full disk, Python does not say which file
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    finally:
        with suppress(OSError):
            partial.unlink()


def _partial(path: str | os.PathLike) -> Path:
    """Beside the target, so that renaming is one step; another one for each process."""
    return Path(f"{path}.{os.getpid()}.partial")


class Checkpoint:
    """The file that a run continues from, or None, and the ``settings`` that it belongs to.

    ``settings`` maps a name to a plain value, of all that the run's results depend on; a list is
    compared as far as both go, since a run may be made longer. The file holds them, the state, and
    a SHA-256 of both.
    """

    def __init__(self, path: str | os.PathLike | None, settings: dict[str, Any]) -> None:
        self.path = None if path is None else checks.path("checkpoint", path)
        self.settings = settings

    def check_writable(self) -> None:
        """Raise OSError at once, not after hours of training, where no file could be written."""
        if self.path is not None:
            partial = _partial(self.path)
            try:
                partial.touch()
                partial.unlink()
            except OSError as error:
                folder = self.path.parent
                why = f"{error.strerror}" + f"; {folder} is no folder" * (not folder.is_dir())
                raise OSError(error.errno, why, os.fspath(self.path)) from None

    def save(self, state: dict[str, Any]) -> None:
        """Save ``state``, of tensors and plain values; a killed run leaves the last whole file."""
        if self.path is None:
            return
        buffer = io.BytesIO()
        torch.save({"settings": self.settings, "state": state}, buffer)
        content = buffer.getvalue()
        digest = hashlib.sha256(content).hexdigest().encode()
        write_atomically(self.path, _MARK + digest + b"\n" + content)

    def unreadable(self, error: Exception) -> ValueError:
        """What to raise for a file whose content is not what it should be."""
        return ValueError(
            f"{self.path} is not a readable checkpoint ({type(error).__name__}: {error}); "
            "delete it to start afresh"
        )

    def load(self) -> dict[str, Any] | None:
        """The saved state; None where there is no file.

        Raises ValueError for a file that is damaged or of something else, and for other settings,
        which it names.
        """
        if self.path is None or not self.path.exists():
            return None
        if not self.path.is_file():
            raise ValueError(f"{self.path} is not a file: choose another one for the checkpoint")
        head, _, content = self.path.read_bytes().partition(b"\n")
        if head != _MARK + hashlib.sha256(content).hexdigest().encode():
            raise ValueError(
                f"{self.path} is damaged, or not a readable checkpoint of this version of "
                "lecture6; choose another one, or delete it to start afresh"
            )
        try:
            saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            settings, state = dict(saved["settings"]), saved["state"]
        except (RuntimeError, LookupError, TypeError, ValueError, pickle.PickleError) as error:
            raise self.unreadable(error) from error
        for name, value in self.settings.items():
            old: Any = settings.get(name)
            lists = isinstance(old, list) and isinstance(value, list)
            pairs = zip(old, value, strict=False) if lists else [(old, value)]
            if differ := [pair for pair in pairs if pair[0] != pair[1]]:
                there, here = differ[0]
                what = f"{name}: {there!s:.99} there, {here!s:.99} here"
                raise ValueError(
                    f"{self.path} belongs to another run ({what}); use another checkpoint file, or "
                    "delete it to start afresh"
                )
        return state


def digest(*tensors: torch.Tensor) -> str:
    """SHA-256 of what tensors hold."""
    found = hashlib.sha256()
    for tensor in tensors:
        # contiguous() keeps the stride 0 of an expanded tensor with one element
        flat = tensor.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)
        found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()
