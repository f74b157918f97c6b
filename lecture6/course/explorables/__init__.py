"""Explorables: widgets that compute in the page, for a notebook and for the rendered book alike.

Each is a JavaScript module beside this file, with what it imports in one text (:func:`bundle`).
Their traits are the start values, which the module states with the range of each; with a kernel
they follow the sliders, and the sliders them.

myst-nb would show a widget with the 1 MB widget manager, which loads anywidget's front end from
another host. So in the book (environment variable ``LECTURE6_STATIC``) a widget opens no comm, and
its output is the name of the module and the start values, for the book's own renderer.
"""

from __future__ import annotations

import base64
import functools
import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import pandas as pd
from traitlets import Bool, Enum, Float, Int, List, TraitType, Unicode

from lecture6 import checks

HERE = Path(__file__).parent
MIME_TYPE = "application/vnd.lecture6.explorable+json"

_IMPORT = re.compile(r'^import\s+([^"]+?)\s+from\s+"([^"]+)";$', re.MULTILINE)
_START = re.compile(r"^export const START = (\{.*?\});$", re.MULTILINE | re.DOTALL)
_EXPORT = re.compile(r"^export (?=(?:const|class|(?:async )?function)[ *]+(\w+))", re.MULTILINE)


@functools.cache
def bundle(name: str) -> str:
    """The module of this name and all that it imports, as one module that loads nothing.

    An import may name another module (``"./shared.js"``), which keeps a scope of its own; a module
    as a function that returns its exports, whose text a worker runs (``"./engine.js?function"``);
    the bytes of a file, in base64 (``"./kernel.wasm?base64"``); or a data set
    (``"dataset:digits"``). What is imported exports constants, functions and classes, each where
    it is declared, one name a declaration.

    Raises ValueError for an import of a file that is not there, of a name that is not exported, or
    in a circle.
    """
    scopes: dict[Path, tuple[str, set[str], str]] = {}
    text = _inlined((HERE / name).resolve(), scopes, ())
    return "".join([*(scope for _, _, scope in scopes.values()), text])


def _inlined(path: Path, scopes: dict, importers: tuple[Path, ...]) -> str:
    """A module with its imports made constants; the modules among them become ``scopes``."""

    def constant(found: re.Match) -> str:
        names, source = found.groups()
        address, _, form = source.partition("?")
        file = (path.parent / address).resolve()
        if address.startswith("dataset:"):
            from lecture6.course.explorables.lab import packed

            value = packed(address.removeprefix("dataset:"))
        elif not file.is_file():
            raise ValueError(f'{path.name} imports "{source}", but there is no file {file}')
        elif form == "function":
            body, _ = _body(bundle(os.path.relpath(file, HERE)))
            return f"const {names}=()=>{{\n{body}\n}};"
        elif form == "base64":
            value = base64.b64encode(file.read_bytes()).decode()
        else:
            variable, exported = _scope(file)
            wanted = {} if names[0] == "*" else re.findall(r"(\w+)(?: as \w+)?", names)
            if lacking := sorted({*wanted} - exported):
                raise ValueError(f"{path.name} imports {lacking}, not exported by {file.name}")
            names = names.removeprefix("* as ").replace(" as ", ": ")
            return f"const {names} = {variable};"
        return f"const {names} = {json.dumps(value)};"

    def _scope(file: Path) -> tuple[str, set[str]]:
        if file in (*importers, path):
            raise ValueError(f"{path.name} imports {file.name}, which imports it: a circle")
        if file not in scopes:
            body, exported = _body(_inlined(file, scopes, (*importers, path)))
            name = f"$module{len(scopes)}"
            scopes[file] = name, exported, f"const {name} = (() => {{\n{body}\n}})();\n"
        return scopes[file][:2]

    return _IMPORT.sub(constant, path.read_text("utf8"))


def _body(text: str) -> tuple[str, set[str]]:
    """A module as the body of a function that returns what it exports, and the names of that."""
    exported = set(_EXPORT.findall(text))
    text = re.sub(r"^export default\b.*\n", "", text, flags=re.MULTILINE)
    return f"{_EXPORT.sub('', text)}return {{ {', '.join(sorted(exported))} }};", exported


def _traits(name: str) -> dict[str, TraitType]:
    """The values that the module of this name states: ``shared.js`` says how."""
    found = _START.search((HERE / f"{name}.js").read_text("utf8"))
    return {key: _trait(*values) for key, values in json.loads(found[1] if found else "{}").items()}


def _trait(first: Any, *allowed: Any) -> TraitType:
    match first:
        case bool():
            trait = Bool(first)
        case int() | float():
            kind = Int if isinstance(first, int) else Float
            trait = kind(first, min=allowed[0], max=allowed[-1])
        case str():
            trait = Enum(allowed, default_value=first) if allowed else Unicode(first)
        case _:
            trait = List(first)
    return trait.tag(sync=True, start=True, allowed=allowed)


class Explorable(anywidget.AnyWidget):
    """What all have in common: traits, which its module states, and what stands for it in the book.

    ``Walkers(lr=0.02)`` raises ValueError for a start value that no control can show.
    """

    _css = HERE / "explorables.css"

    def __init__(self, **start) -> None:
        self.add_traits(**_traits(self.module))
        checked = {name: self._checked(name, value) for name, value in start.items()}
        super().__init__(_esm=bundle(f"{self.module}.js"), **checked)

    @property
    def module(self) -> str:
        """The name of the module: that of the class."""
        return type(self).__name__.lower()

    @property
    def about(self) -> str:
        """What it shows: the first line of its class's docstring."""
        shown = (inspect.getdoc(type(self)) or "").partition("\n")[0]
        return f"An explorable: {shown} It needs JavaScript."

    def _checked(self, name: str, value: Any) -> Any:
        """A start value as its trait takes it, which knows no NumPy scalar and lets NaN pass."""
        traits = self.traits(start=True)
        trait = traits[checks.one_of(f"what {type(self).__name__} starts with", name, traits)]
        if isinstance(trait, Int | Float):
            number = checks.whole if isinstance(trait, Int) else checks.real
            return number(name, value, least=trait.min, most=trait.max)
        return checks.one_of(name, value, trait.values) if isinstance(trait, Enum) else value

    def open(self) -> None:
        """Connect to the page, unless this is a build of the book."""
        if not os.environ.get("LECTURE6_STATIC"):
            super().open()

    def _repr_mimebundle_(self, **kwargs):
        if not os.environ.get("LECTURE6_STATIC"):
            return super()._repr_mimebundle_(**kwargs)
        start = self.trait_values(start=True)
        content = {"module": self.module, "about": self.about, "start": start}
        return {MIME_TYPE: content, "text/plain": self.about}


class Walkers(Explorable):
    """SGD walkers in a double well, which settle on the Gibbs law: equations (25) and (26).

    Traits:
        lr, batch_size, locked: η and B (T = η σ²/(2B) with σ = 16); whether moving one keeps η/B
        anisotropy: a: the noise of a sample's gradient has the covariance σ² diag(1 + a, 1 − a)
        depth, curvature: of the right well; those of the left one are 0 and 1
        x, y, n_walkers, seed: where all walkers start, how many, and the seed of their noise
        compact: without the charts of the loss and of time, and the sliders of η and B only
    """


class Valley(Explorable):
    """Noise with a shape, in the valley ½(w₁w₂ − 1)²: label noise beside isotropic noise.

    Traits:
        noise, lr, seed: which walkers are shown, "both", "label" or "isotropic"; η; and the seed
    """


class Box(Explorable):
    """The sharpness of Definition 2 and its box, equation (3), on the functions of Figure 6.

    Traits:
        function, epsilon, x, y: a name of :data:`lecture6.toys.FIGURE_6`, ε, and the position
        subspace: A: "identity", or "column", one column a of this ``angle``, in degrees, and
            ``length``; of a function of one parameter, a is the number ``length``
    """


class Steps(Explorable):
    """k small steps of SGD against one large step on ½ h w²: equations (4) and (5).

    Traits: η of the small steps, k, the small steps in which the large steps' rate rises from η to
    kη, and pairs of a number of small steps, ascending, and the curvature h there.
    """

    def _checked(self, name: str, value: Any) -> Any:
        if name != "curvature":
            return super()._checked(name, value)
        low, high = self.trait_metadata(name, "allowed")
        pairs = checks.array(name, value)
        good = pairs.shape[1:] == (2,) and len(pairs) > 1 and (np.diff(pairs[:, 0]) > 0).all()
        if not good or pairs[:, 1].min() < low or pairs[:, 1].max() > high:
            wanted = f"two or more pairs of a number of steps, ascending, and {low} ≤ h ≤ {high}"
            raise ValueError(f"curvature must be {wanted}, got {value!r}")
        return pairs.tolist()


class Scrubber(Explorable):
    """Figure 5, one position at a time: loss and accuracy along a path between two solutions.

    ``table`` is that of :func:`lecture6.landscape.interpolate`, with a column path; ``path`` and
    ``alpha`` are shown first.
    """

    def __init__(self, table: pd.DataFrame, *, title: str, provenance: str, **start) -> None:
        found, paths = ["mean", "min", "max"], []
        for name, rows in table.groupby("path", sort=False):
            columns = [
                rows[rows["split"] == split].groupby("alpha")[y].agg(found)
                for y in ("loss", "accuracy")
                for split in ("train", "test")
            ]
            at = [[alpha, *(list(c.loc[alpha]) for c in columns)] for alpha in columns[0].index]
            paths.append([name, at])
        first = {"path": paths[0][0], "title": title, "provenance": provenance}
        super().__init__(paths=paths, **first | start)


class Linked(Explorable):
    """Figure 7, linked: a batch size is chosen and seen in accuracy, sharpness and loss at once.

    ``nets`` are pairs of a name and its rows, one a batch size: B, test accuracy in per cent,
    training loss, and φ in per cent at each of ``epsilons``. The last three traits are shown first.
    """


class Keskar(Explorable):
    """Keskar's experiment: two nets, of a small and a large batch, trained and measured in a page.

    Traits:
        small, large, lr: B of the two nets, and η; the large batch has ``factor`` times η
        rule: both stop at equal "epochs", "updates" or "loss", or the large batch is "longer" there
        epsilon, alpha: of the box of φ, and of the position on the line between the nets
    """


class OneStep(Explorable):
    """One step of SGD, equation (1), on the loss of a logistic regression with two weights.

    Traits:
        samples, test: rows x₁, x₂, and the class, −1 or 1; to train on, and to test on
        lr, batch_size, momentum, seed: η, B, m, and the seed of the mini-batches
        w1, w2: the weights w at the start
    """


class Spectrum(Explorable):
    """The Hessian of a net that trains on the digits in the page, or the trained net rescaled.

    Traits:
        view: "training", the eigenvalues as they move; or "rescaled", sharpness under Dinh's α
        lr, epochs, width, seed: of the training; ``width`` counts the hidden units
    """


class Scaling(Explorable):
    """The linear scaling rule on a net that trains on the digits in the page, in batches of 8.

    Traits:
        k, rule: the ratio of the batch sizes, and the large batch's rate: kη ("linear"), √k η, η
        lr, warmup, epochs, seed: η, and the epochs in which the large batch's rate rises from η
    """


class Collapse(Explorable):
    """Figures 10 and 11 against B η^a (1 − m)^b N^c, whose exponents a reader moves.

    ``curves`` are dictionaries with lr, momentum, n_train; points: rows of B, the gain in points,
    its lowest and highest; and peaks: B_opt of each seed, or None. N of the first is Figure 10's.
    ``lr``, ``momentum`` and ``size`` are the exponents a, b and c.
    """


class NoiseScale(Explorable):
    """The noise scale g of equation (24) at any settings, and the best batch size it predicts.

    ``g_star`` is the g of that batch size; of Collapse's ``curves`` it shows what was measured.
    """


class BestBatch(Explorable):
    """Test accuracy against the batch size, of nets that train on the digits in the page.

    Traits:
        lr, momentum, samples, updates: η, m, N, and how many updates each net makes
    """


class Edge(Explorable):
    """The edge of stability: λ_max of a net that trains in the page, against 2/η.

    Traits:
        lr, batch_size, updates, seed: of the training, on 500 images
        net: hidden layers of 32 and 32 "tanh" or "relu" units, or a "wide" one of 64 tanh units
        axis: λ_max as an "eigenvalue", or "relative" to the edge, λ_max η/2
    """
