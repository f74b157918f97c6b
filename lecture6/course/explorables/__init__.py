"""Explorables: widgets that compute in the page, for a notebook and for the rendered book alike.

Each is a JavaScript module beside this file, with what it imports in one text (:func:`bundle`).
Their traits are the start values; with a kernel they follow the sliders, and the sliders them.

myst-nb would show a widget with the 1 MB widget manager, which loads anywidget's front end from
another host. So in the book (environment variable ``LECTURE6_STATIC``) a widget opens no comm, and
its output is the name of the module and the start values, for the book's own renderer.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import re
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import pandas as pd
from traitlets import Bool, Enum, Float, Int, List, TraitType, Unicode

from lecture6 import checks, toys

HERE = Path(__file__).parent
MIME_TYPE = "application/vnd.lecture6.explorable+json"

_IMPORT = re.compile(r'^import\s+([^"]+?)\s+from\s+"([^"]+)";$', re.MULTILINE)
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


def _start(trait: TraitType) -> TraitType:
    return trait.tag(sync=True, start=True)


class Explorable(anywidget.AnyWidget):
    """What all have in common: ``module`` names the file, ``about`` says what it shows.

    They are the name of the class and its docstring's first line, unless it has others.
    ``Walkers(lr=0.02)`` raises ValueError for a start value that no control can show.
    """

    _css = HERE / "explorables.css"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__doc__:  # anywidget makes a class without, of the same name, for each widget
            cls.module = vars(cls).get("module", cls.__name__.lower())
            cls.about = f"An explorable: {cls.__doc__.splitlines()[0]} It needs JavaScript."

    def __init__(self, **start) -> None:
        checked = {name: self._checked(name, value) for name, value in start.items()}
        super().__init__(_esm=bundle(f"{self.module}.js"), **checked)

    @classmethod
    def _checked(cls, name: str, value: Any) -> Any:
        """A start value as its trait takes it, which knows no NumPy scalar and lets NaN pass."""
        traits = cls.class_traits(start=True)
        trait = traits[checks.one_of(f"what {cls.__name__} starts with", name, traits)]
        if isinstance(trait, Int | Float):
            number = checks.whole if isinstance(trait, Int) else checks.real
            return number(name, value, least=trait.min, most=trait.max)
        return checks.one_of(name, value, trait.values or ()) if isinstance(trait, Enum) else value

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

    lr = _start(Float(0.016, min=0.005, max=0.1))
    batch_size = _start(Int(8, min=4, max=128))
    locked = _start(Bool(False))
    anisotropy = _start(Float(0.0, min=-0.9, max=0.9))
    depth = _start(Float(0.1, min=-0.3, max=0.3))
    curvature = _start(Float(4.0, min=1.0, max=9.0))
    x = _start(Float(1.0, min=-3.4, max=3.4))
    y = _start(Float(0.0, min=-1.2, max=1.2))
    n_walkers = _start(Int(2000, min=100, max=20_000))
    seed = _start(Int(0, min=0, max=2**32 - 1))
    compact = _start(Bool(False))


class Valley(Explorable):
    """Noise with a shape, in the valley ½(w₁w₂ − 1)²: label noise beside isotropic noise.

    Traits:
        noise, lr, seed: which walkers are shown, "both", "label" or "isotropic"; η; and the seed
    """

    noise = _start(Enum(["both", "label", "isotropic"], default_value="both"))
    lr = _start(Float(0.01, min=0.005, max=0.02))
    seed = _start(Int(0, min=0, max=2**32 - 1))


class Box(Explorable):
    """The sharpness of Definition 2 and its box, equation (3), on the functions of Figure 6.

    Traits:
        function, epsilon, x, y: a name of :data:`lecture6.toys.FIGURE_6`, ε, and the position
        subspace: A: "identity", or "column", one column a of this ``angle``, in degrees, and
            ``length``; of a function of one parameter, a is the number ``length``
    """

    function = _start(Enum(list(toys.FIGURE_6), default_value="100x² + y⁸"))
    epsilon = _start(Float(1e-3, min=1e-4, max=3.2))
    x = _start(Float(0.0, min=-1.0, max=1.0))
    y = _start(Float(0.0, min=-1.0, max=1.0))
    subspace = _start(Enum(["identity", "column"], default_value="identity"))
    angle = _start(Float(30.0, min=0.0, max=180.0))
    length = _start(Float(1.0, min=1e-9))


class Steps(Explorable):
    """k small steps of SGD against one large step on ½ h w²: equations (4) and (5).

    Traits: η of the small steps, k, the small steps in which the large steps' rate rises from η to
    kη, and pairs of a number of small steps, ascending, and the curvature h there, from 0.1 to 30.
    """

    lr = _start(Float(0.05, min=0.001, max=1.0))
    k = _start(Int(8, min=1, max=64))
    warmup = _start(Int(0, min=0, max=1000))
    curvature = _start(List([[t, 1.0] for t in (0, 100, 200, 400, 700, 1000)]))

    @classmethod
    def _checked(cls, name: str, value: Any) -> Any:
        if name != "curvature":
            return super()._checked(name, value)
        pairs = checks.array(name, value)
        good = pairs.shape[1:] == (2,) and len(pairs) > 1 and (np.diff(pairs[:, 0]) > 0).all()
        if not good or pairs[:, 1].min() < 0.1 or pairs[:, 1].max() > 30:
            wanted = "two or more pairs of a number of steps, ascending, and h from 0.1 to 30"
            raise ValueError(f"curvature must be {wanted}, got {value!r}")
        return pairs.tolist()


class Scrubber(Explorable):
    """Figure 5, one position at a time: loss and accuracy along a path between two solutions.

    ``table`` is that of :func:`lecture6.landscape.interpolate`, with a column path; ``path`` and
    ``alpha`` are shown first.
    """

    title = _start(Unicode())
    provenance = _start(Unicode())
    paths = _start(List())
    path = _start(Unicode())
    alpha = _start(Float(0.0, min=-1.0, max=2.0))
    logarithmic = _start(Bool(False))

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

    title = _start(Unicode())
    provenance = _start(Unicode())
    nets = _start(List())
    epsilons = _start(List())
    net = _start(Unicode())
    epsilon = _start(Float(1e-3, min=0.0, max=1.0))
    batch_size = _start(Int(256, min=1, max=10**6))


class Keskar(Explorable):
    """Keskar's experiment: two nets, of a small and a large batch, trained and measured in a page.

    Traits:
        small, large, lr: B of the two nets, and η; the large batch has ``factor`` times η
        rule: both stop at equal "epochs", "updates" or "loss", or the large batch is "longer" there
        epsilon, alpha: of the box of φ, and of the position on the line between the nets
    """

    small = _start(Int(8, min=4, max=1437))
    large = _start(Int(512, min=4, max=1437))
    lr = _start(Float(0.2, min=0.001, max=1.0))
    factor = _start(Int(1, min=1, max=64))
    optimizer = _start(Enum(["sgd", "adam"], default_value="sgd"))
    rule = _start(Enum(["epochs", "longer", "updates", "loss"], default_value="epochs"))
    epochs = _start(Int(30, min=5, max=100))
    loss = _start(Float(0.02, min=0.01, max=0.5))
    epsilon = _start(Float(1e-3, min=1e-4, max=5e-3))
    seed = _start(Int(0, min=0, max=20))
    alpha = _start(Float(0.5, min=-1.0, max=2.0))


class OneStep(Explorable):
    """One step of SGD, equation (1), on the loss of a logistic regression with two weights.

    Traits:
        samples, test: rows x₁, x₂, and the class, −1 or 1; to train on, and to test on
        lr, batch_size, momentum, seed: η, B, m, and the seed of the mini-batches
        w1, w2: the weights w at the start
    """

    samples = _start(List())
    test = _start(List())
    provenance = _start(Unicode())
    lr = _start(Float(2.0, min=0.1, max=32.0))
    batch_size = _start(Int(8, min=1))
    momentum = _start(Float(0.0, min=0.0, max=0.98))
    w1 = _start(Float(-2.0, min=-3.0, max=7.0))
    w2 = _start(Float(1.0, min=-3.0, max=7.0))
    seed = _start(Int(0, min=0, max=2**32 - 1))


class Spectrum(Explorable):
    """The Hessian of a net that trains on the digits in the page, or the trained net rescaled.

    Traits:
        view: "training", the eigenvalues as they move; or "rescaled", sharpness under Dinh's α
        lr, epochs, width, seed: of the training; ``width`` counts the hidden units
    """

    view = _start(Enum(["training", "rescaled"], default_value="training"))
    lr = _start(Float(0.1, min=0.01, max=1.0))
    epochs = _start(Int(30, min=3, max=100))
    width = _start(Int(64, min=8, max=128))
    seed = _start(Int(0, min=0, max=10**9 - 1))
    alpha = _start(Float(1.0, min=0.1, max=10.0))


class Scaling(Explorable):
    """The linear scaling rule on a net that trains on the digits in the page, in batches of 8.

    Traits:
        k, rule: the ratio of the batch sizes, and the large batch's rate: kη ("linear"), √k η, η
        lr, warmup, epochs, seed: η, and the epochs in which the large batch's rate rises from η
    """

    k = _start(Int(8, min=2, max=128))
    lr = _start(Float(0.05, min=0.01, max=1.0))
    rule = _start(Enum(["linear", "sqrt", "none"], default_value="linear"))
    warmup = _start(Int(0, min=0, max=10))
    epochs = _start(Int(20, min=5, max=50))
    seed = _start(Int(0, min=0, max=10))


class Collapse(Explorable):
    """Figures 10 and 11 against B η^a (1 − m)^b N^c, whose exponents a reader moves.

    ``curves`` are dictionaries with lr, momentum, n_train; points: rows of B, the gain in points,
    its lowest and highest; and peaks: B_opt of each seed, or None. N of the first is Figure 10's.
    ``lr``, ``momentum`` and ``size`` are the exponents a, b and c.
    """

    curves = _start(List())
    provenance = _start(Unicode())
    lr = _start(Float(0.0, min=-2.0, max=2.0))
    momentum = _start(Float(0.0, min=-2.0, max=2.0))
    size = _start(Float(0.0, min=-2.0, max=2.0))
    which = _start(Enum(["all", "rates", "sizes"], default_value="rates"))


class NoiseScale(Explorable):
    """The noise scale g of equation (24) at any settings, and the best batch size it predicts.

    ``g_star`` is the g of that batch size; of Collapse's ``curves`` it shows what was measured.
    """

    curves = _start(List())
    provenance = _start(Unicode())
    g_star = _start(Float(1.0, min=1e-6))
    lr = _start(Float(1.0, min=0.01, max=3.0))
    batch_size = _start(Int(32, min=1, max=512))
    n_train = _start(Int(1000, min=1000, max=60_000))
    momentum = _start(Float(0.0, min=0.0, max=0.9))


class BestBatch(Explorable):
    """Test accuracy against the batch size, of nets that train on the digits in the page.

    Traits:
        lr, momentum, samples, updates: η, m, N, and how many updates each net makes
    """

    lr = _start(Float(0.4, min=0.01, max=4.0))
    momentum = _start(Float(0.0, min=0.0, max=0.9))
    samples = _start(Int(200, min=100, max=1437))
    updates = _start(Int(500, min=50, max=2000))


class Edge(Explorable):
    """The edge of stability: λ_max of a net that trains in the page, against 2/η.

    Traits:
        lr, batch_size, updates, seed: of the training, on 500 images
        net: hidden layers of 32 and 32 "tanh" or "relu" units, or a "wide" one of 64 tanh units
        axis: λ_max as an "eigenvalue", or "relative" to the edge, λ_max η/2
    """

    lr = _start(Float(0.4, min=0.2, max=1.0))
    batch_size = _start(Int(500, min=4, max=500))
    updates = _start(Int(600, min=200, max=2000))
    net = _start(Enum(["tanh", "relu", "wide"], default_value="tanh"))
    axis = _start(Enum(["eigenvalue", "relative"], default_value="eigenvalue"))
    seed = _start(Int(0, min=0, max=10**9 - 1))
