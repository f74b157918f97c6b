"""What a study is made of: trials, the keys that they are known by, and the files they leave.

A trial is a pure function of its parameters that returns rows of tables, and every finished one is
a file under its key: a digest of its parameters and of all code that it can use. A change in any of
the modules makes the trial anew; comments, docstrings and layout do not count.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import util
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from lecture6 import checks
from lecture6.checkpoints import write_atomically
from lecture6.data import NAMES

DATA_SETS = {"data", "images"}  # parameters that name a data set
# what plans, runs and keeps trials, and makes no number of them
_MACHINERY = ("lecture6.studies", __name__, "lecture6.studies.runner", "lecture6.studies.results")


class StudyError(RuntimeError):
    """A study cannot be run, written or collected; the message says why and what to do."""


class Rows(dict[str, list[dict[str, Any]]]):
    """What a trial returns: the rows of its tables, by their kind.

    Kind "runs" has one row for each run, with ``n_updates``, and ``diverged`` where that may happen
    (the loss stopped being finite: it has no other rows). Kind "history" has one for each
    evaluation and split.
    """

    def add(self, kind: str, **columns: Any) -> None:
        self.setdefault(kind, []).append(columns)

    def add_all(self, kind: str, table: pd.DataFrame, **columns: Any) -> None:
        """Add a row for each line of ``table``, a Run's history say, with ``columns`` before it."""
        for line in table.to_dict("records"):
            self.add(kind, **columns | line)


Function = Callable[..., Mapping[str, list[dict[str, Any]]]]  # of a trial


@dataclass(frozen=True)
class Study:
    """A grid of trials.

    ``trial(**parameters)`` returns :class:`Rows`. It must be a top-level function of a module, and
    pure: the same parameters give the same rows. Of a parameter called ``data``, the name of a data
    set, the trial is given the Dataset itself (:func:`lecture6.data.load`). One called ``images``
    names a data set "imagefolder:PATH" that the trial reads itself.

    A trial may take two more arguments, which the runner gives. ``checkpoint``: the path of a file
    of its own, to continue from after an interruption; None on a Dask cluster. ``workers``: the
    :class:`lecture6.parallel.group.Group` of torchrun's processes that share the trial, else None.

    ``grids`` maps a profile to its list of parameters (numbers, strings, and lists of them), most
    wanted trial first, and ``costs`` to their expected seconds (default: 1 each). ``own_trials``
    maps a profile to a trial in the place of ``trial``. ``notes`` says what is less than the
    paper's; it goes into the record of the results.
    """

    name: str
    about: str
    trial: Function
    grids: Mapping[str, Sequence[dict]]
    notes: str = ""
    costs: Mapping[str, Sequence[float]] = field(default_factory=dict)
    own_trials: Mapping[str, Function] = field(default_factory=dict)

    def trial_of(self, profile: str) -> Function:
        return self.own_trials.get(profile, self.trial)

    def data_sets(self, profile: str) -> list[str]:
        """The data sets that a profile uses; StudyError where the study has no such profile."""
        if profile not in self.grids:
            raise StudyError(f"{self.name} has profiles {', '.join(self.grids)}, not {profile!r}")
        return sorted({str(p[kind]) for p in self.grids[profile] for kind in p.keys() & DATA_SETS})

    def trials(self, profile: str, replace: Mapping[str, str] | None = None) -> list[Trial]:
        """The trials of a profile; ``replace`` puts data sets in the place of others.

        Raises StudyError for an unknown profile, for a replaced data set that none of its trials
        uses, for an unknown one in its place, and for parameters that cannot be written down.
        """
        replace, used = dict(replace or {}), self.data_sets(profile)
        if unused := set(replace) - set(used):
            raise StudyError(
                f"no trial of {self.name} at profile {profile} uses {', '.join(unused)}; "
                f"they use {', '.join(used) or 'no data set'}"
            )
        loaded = {p["data"] for p in self.grids[profile] if "data" in p}
        if unknown := {new for old, new in replace.items() if old in loaded} - set(NAMES):
            names = ", ".join(NAMES)
            raise StudyError(f"unknown data set {unknown.pop()!r}; the known names are {names}")
        code = code_digest(self.trial_of(profile))
        costs = self.costs.get(profile) or [1.0] * len(self.grids[profile])
        trials = {}  # two equal trials are one
        for given, cost in zip(self.grids[profile], costs, strict=True):
            parameters = {k: replace.get(v, v) if k in DATA_SETS else v for k, v in given.items()}
            try:
                text = json.dumps([self.name, parameters, code], sort_keys=True, allow_nan=False)
            except (TypeError, ValueError) as error:
                what = "parameters must be finite numbers, strings and lists of them"
                raise StudyError(f"{what}: {error} in {parameters}") from None
            key = hashlib.sha256(text.encode()).hexdigest()[:20]
            trials[key] = Trial(key, parameters, cost)
        return list(trials.values())


@dataclass(frozen=True)
class Trial:
    """One point of a grid: its key, its parameters, its expected seconds."""

    key: str
    parameters: dict
    cost: float

    def __str__(self) -> str:
        return ", ".join(f"{k} {v}" for k, v in self.parameters.items())


def described(name: str, trial: Function, **more: Mapping[str, Function]) -> Study:
    """The study of which ``grids.toml`` has the words and the grids; ``more`` is a Study's."""
    written = dict(_written("grids.toml")[name])
    about, notes = written.pop("about"), written.pop("notes")
    grids = {
        profile: [parameters for block in blocks for parameters in _expanded(block, {})]
        for profile, blocks in written.items()
    }
    costs = {profile: [p.pop("cost") for p in grid] for profile, grid in grids.items()}
    return Study(name, about, trial, grids, notes, costs, **more)


def papers(study: str) -> dict[str, Any]:
    """What the paper of a study found, in ``papers.toml``, which says what its numbers are."""
    return _written("papers.toml")[study]


@lru_cache
def _written(name: str) -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name(name).read_text("utf8"))


def _expanded(block: dict, base: dict) -> Iterator[dict]:
    own = base | {k: v for k, v in block.items() if k not in ("axes", "cases")}
    axes = block.get("axes", {})
    for values in product(*axes.values()):
        parameters = own | dict(zip(axes, values, strict=True))
        if "cases" not in block:
            yield parameters
        for case in block.get("cases", []):
            yield from _expanded(case, parameters)


def tabulate(trials: Iterable[tuple[dict, Mapping[str, list[dict]]]]) -> dict[str, pd.DataFrame]:
    """One table for each kind of row, from the parameters and the rows of each trial.

    A line has its trial's parameters (lists as "256, 6000"), then its own columns.
    """
    lines: dict[str, list[dict]] = {}
    for parameters, rows in trials:
        lists = {k: ", ".join(map(str, v)) for k, v in parameters.items() if isinstance(v, list)}
        for kind, own in rows.items():
            lines.setdefault(kind, []).extend(parameters | lists | row for row in own)
    return {kind: pd.DataFrame(own) for kind, own in lines.items()}


# ---- what a trial's numbers depend on ----------------------------------------------------------


def code_digest(function: Function) -> str:
    """SHA-256 of the code that a trial can use, and of the loading of its data.

    That is all of each module that its own imports by a statement, wherever it stands, and that
    these import in turn, within lecture6 and the trial's own package. Raises StudyError for a
    function that is not at the top level of a module with a source file.
    """
    module, name = function.__module__, function.__qualname__
    if module == "__main__" or getattr(sys.modules[module], name, None) is not function:
        raise StudyError(f"{name} must be in a module that workers can import, at its top level")
    used = sorted(_used_modules(module).items())
    return hashlib.sha256(json.dumps([module, name, used]).encode()).hexdigest()


def _used_modules(module: str) -> dict[str, str]:
    """The modules whose code a trial of ``module`` can use, and the digest of each."""
    packages = {"lecture6", module.partition(".")[0]}
    digests: dict[str, str] = {}
    todo = ["lecture6.data", module]
    while todo:
        name = todo.pop()
        own = name.partition(".")[0] in packages and name not in {*digests, *_MACHINERY}
        if own and (name == module or _is_module(name)):
            digests[name], imported = _read_module(name)
            todo += imported
    return digests


def _is_module(name: str) -> bool:
    try:
        return util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):  # its parent is none, or it was made by hand
        return False


_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@lru_cache
def _read_module(name: str) -> tuple[str, list[str]]:
    """The digest of a module's syntax tree without docstrings, and the names that it imports."""
    try:
        spec = util.find_spec(name)
        tree = ast.parse(Path(str(spec and spec.origin)).read_bytes())
    except (OSError, ValueError, SyntaxError) as error:
        what = f"the source of module {name!r} cannot be read ({error})"
        raise StudyError(f"{what}; define the trial in a file") from None
    imported: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):  # "from a import b": b may be a module, too
            source = util.resolve_name("." * node.level + (node.module or ""), spec and spec.parent)
            imported += [source, *(f"{source}.{alias.name}" for alias in node.names)]
        elif isinstance(node, _DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(repr(_plain(tree)).encode()).hexdigest(), imported


def _plain(node: Any) -> Any:
    """A syntax tree as every version of Python has it, so that one can collect another's trials.

    Without its empty fields, and without the empty strings that some versions put into f-strings.
    """
    if isinstance(node, list):
        return [_plain(part) for part in node]
    if not isinstance(node, ast.AST):
        return ascii(node)
    if isinstance(node, ast.JoinedStr):
        node = ast.JoinedStr([p for p in node.values if getattr(p, "value", None) != ""])
    fields = [(name, _plain(value)) for name, value in ast.iter_fields(node)]
    return type(node).__name__, [field for field in fields if field[1] not in ("None", [])]


# ---- the files ---------------------------------------------------------------------------------


class TrialFiles:
    """The finished trials of a study, a file each.

    ``folder`` holds a folder a study; default: ``LECTURE6_STUDIES``, else a cache folder.
    """

    LIBRARIES = ("torch", "numpy", "scipy", "pandas")  # what decides a trial's numbers

    def __init__(self, study: Study, folder: Path | None = None) -> None:
        default = os.environ.get("LECTURE6_STUDIES") or "~/.cache/lecture6/studies"
        self.folder = Path(folder or default, study.name)
        with self._writing("Nothing was run"):  # where there is no home, it cannot be expanded
            self.folder = self.folder.expanduser()

    def path(self, trial: Trial, suffix: str = ".json") -> Path:
        """The file of a finished trial; others that stand beside it by their suffix."""
        return self.folder / f"{trial.key}{suffix}"

    def read(self, trial: Trial) -> dict | None:
        """A finished trial, or None. Files appear whole or not at all: a bad one was altered."""
        path = self.path(trial)
        try:
            saved = json.loads(path.read_bytes())
            record, rows = saved["record"], [row for kind in saved["rows"].values() for row in kind]
            checks.real("seconds", record["seconds"], least=0)
            checks.whole("threads", record["threads"], least=1)
            words = [record["date"], record["device"], record["code"], *record["data"].values()]
            words += [record["libraries"][name] for name in self.LIBRARIES]
            if {*map(type, words)} != {str} or {*map(type, rows)} - {dict}:
                raise TypeError("its words, or its rows, are of other types")
            parameters = json.loads(json.dumps(trial.parameters))
            if (saved["key"], saved["parameters"]) != (trial.key, parameters):
                raise ValueError("it is of another trial")
            return saved
        except FileNotFoundError:
            return None
        except Exception as error:  # of JSON of another shape, any
            raise StudyError(
                f"{path} is damaged or cannot be read ({type(error).__name__}: {error}): delete it "
                "and run the study again"
            ) from None

    def write(self, trial: Trial, content: str) -> None:
        """Keep a trial that has finished; its checkpoint goes."""
        with self._writing():
            write_atomically(self.path(trial), content.encode())
        self.path(trial, ".checkpoint").unlink(missing_ok=True)

    def claim(self, trial: Trial) -> FileLock | None:
        """A lock on a trial that nobody has finished or has in flight, else None."""
        lock = FileLock(self.path(trial, ".lock"), blocking=False)
        with self._writing(), suppress(Timeout):
            lock.acquire()
        if self.path(trial).exists():  # another runner was faster
            lock.release()
        return lock if lock.is_locked else None

    def check_writable(self) -> None:
        """Raise StudyError when nothing can be written here."""
        with self._writing("Nothing was run"):
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()

    @contextmanager
    def _writing(self, so_far: str = "Finished trials are safe") -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            cause = getattr(error, "strerror", str(error).rstrip("."))
            raise StudyError(
                f"cannot write in {self.folder}: {cause}. {so_far}: make room, or choose "
                "another folder with --folder or LECTURE6_STUDIES, and run the same command again"
            ) from None
