"""Who calls what of lecture6: finds functions, classes, fields and options that nothing uses.

Callers are the package itself, the notebooks, the benchmarks, the book's code and the entry points;
the tests are not. A name is followed through imports to the definition that it means. Of what is
an attribute of some other value only the name is known, and stands for every member of that name:
one without a caller may be missed, but none that has a caller is reported.
"""

import ast
import json
import pydoc
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

PACKAGE = "lecture6"


@dataclass
class Source:
    """A file of code; ``module`` is its dotted name in the package, "" outside of it."""

    path: Path
    code: str
    module: str = ""

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(ast.parse(self.code)))

    @cached_property
    def imports(self) -> dict[str, str]:
        """The dotted path behind each name that is imported."""
        found = {}
        for node in self.nodes:
            if isinstance(node, ast.ImportFrom):
                start = self._package(node.level) + [node.module] * bool(node.module)
                found |= {a.asname or a.name: ".".join([*start, a.name]) for a in node.names}
            elif isinstance(node, ast.Import):
                found |= {a.asname or a.name: a.name for a in node.names}
                found |= {root: root for a in node.names if (root := a.name.split(".")[0])}
        return found

    def _package(self, level: int) -> list[str]:
        """The start of a relative import of this level."""
        parts = [*self.module.split("."), *["__init__"] * (self.path.name == "__init__.py")]
        return parts[:-level] if level else []

    @cached_property
    def strings(self) -> set[str]:
        constants = {node.value for node in self.nodes if isinstance(node, ast.Constant)}
        return {value for value in constants if isinstance(value, str)}

    @cached_property
    def words(self) -> set[str]:
        """The keys that a mapping made here may have."""
        return self.strings | {n.arg for n in self.nodes if isinstance(n, ast.keyword) and n.arg}


def sources(root: Path) -> list[Source]:
    """The package that lies in ``root``, and its callers beside it."""
    found = []
    for path in sorted(root.glob(f"{PACKAGE}/**/*.py")):
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        found.append(Source(path, path.read_text("utf8"), module))
    for path in [*root.glob("benchmarks/*.py"), *root.glob("book/**/*.py")]:
        found.append(Source(path, path.read_text("utf8")))
    for path in root.glob("book/**/*.md"):
        found.append(Source(path, _fenced(path.read_text("utf8"))))
    for path in root.glob("notebooks/*.ipynb"):
        cells = [
            (c["cell_type"], "".join(c["source"]))
            for c in json.loads(path.read_text("utf8"))["cells"]
        ]
        code = "\n".join(text if kind == "code" else _fenced(text) for kind, text in cells)
        found.append(Source(path, re.sub(r"^(\s*)[%!].*", r"\1pass", code, flags=re.M)))
    project = tomllib.loads((root / "pyproject.toml").read_text("utf8")).get("project", {})
    tables = [project.get("scripts", {}), *project.get("entry-points", {}).values()]
    entries = [entry.split(":") for table in tables for entry in table.values()]
    code = "\n".join(f"from {module} import {name}\n{name}" for module, name in entries)
    return [*found, Source(root / "pyproject.toml", code)]


def _fenced(text: str) -> str:
    """The code of a page: an answer of an exercise, say."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))


class Definition(NamedTuple):
    source: Source
    node: ast.FunctionDef | ast.ClassDef | ast.AnnAssign
    path: str  #: dotted
    cls: str  #: dotted path of the class of a method or field, else ""

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


class Use(NamedTuple):
    source: Source
    inside: str  #: dotted path of the definition around it
    call: ast.Call | None  #: None for a value that is not called here


class Callers:
    """All definitions of the package in ``root``, and where each is used."""

    def __init__(self, root: Path):
        self.sources = sources(root)
        self.modules = {source.module: source for source in self.sources if source.module}
        self.definitions: dict[str, Definition] = {}
        for source in self.modules.values():
            self._define(source, ast.parse(source.code), source.module, "")
        self.uses: dict[str, list[Use]] = defaultdict(list)  # by path; of members by ".name"
        for source in self.sources:
            self._read(source, ast.parse(source.code), source.module, None)

    def unused(self) -> Iterator[str]:
        """What has no caller, one line each."""
        for d in self.definitions.values():
            at = f"{d.source.path.name}:{d.node.lineno}:"
            if isinstance(d.node, ast.AnnAssign):
                if not self._used(d) and not any(d.name in s.strings for s in self.sources):
                    yield f"{at} field {d.path}"
            elif not self._used(d):
                yield f"{at} {d.path}"
            elif isinstance(d.node, ast.FunctionDef):
                yield from (f"{at} option {d.path}({name}=)" for name in self._unused_options(d))

    def _define(self, source: Source, node: ast.Module | ast.ClassDef, path: str, cls: str) -> None:
        for child in node.body:
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                name = child.name
            elif isinstance(child, ast.AnnAssign) and cls:
                name = ast.unparse(child.target)
            else:
                continue
            self.definitions[f"{path}.{name}"] = Definition(source, child, f"{path}.{name}", cls)
            if isinstance(child, ast.ClassDef):
                self._define(source, child, f"{path}.{name}", f"{path}.{name}")

    def _read(self, source: Source, node: ast.AST, inside: str, called: ast.AST | None) -> None:
        """Note every use of a name below ``node``; ``called`` is noted already."""
        for child in ast.iter_child_nodes(node):
            function = None
            if isinstance(child, ast.Call):
                function = child.func
                for path in self._meanings(source, function, inside):
                    self.uses[path].append(Use(source, inside, child))
                if ast.unparse(function) == "getattr":  # of a module: all that it may name
                    [module] = self._meanings(source, child.args[0], inside)
                    for path in {self._resolve(f"{module}.{word}") for word in source.strings}:
                        self.uses[path].append(Use(source, inside, None))
            elif child is not called and isinstance(getattr(child, "ctx", None), ast.Load):
                for path in self._meanings(source, child, inside):
                    self.uses[path].append(Use(source, inside, None))
            deeper = isinstance(child, ast.FunctionDef | ast.ClassDef)
            self._read(source, child, f"{inside}.{child.name}" if deeper else inside, function)

    def _meanings(self, source: Source, node: ast.AST, inside: str) -> list[str]:
        """What an expression may mean: paths of definitions or of a module, or ".name"."""
        text = ast.unparse(node)
        if text in ("cls", "type(self)", "super().__init__"):
            members = [self.definitions[p] for p in around(inside) if p in self.definitions]
            cls = next((d.cls for d in members if d.cls), "")
            return self._bases(cls) if cls and text == "super().__init__" else [cls]
        if re.fullmatch(r"[\w.]+", text):
            root, *rest = text.split(".")
            path = source.imports.get(root, f"{source.module}.{root}")
            if found := self._resolve(".".join([path, *rest])):
                return [found]
        return [f".{node.attr}" if isinstance(node, ast.Attribute) else ""]

    def _resolve(self, path: str) -> str:
        """The module or definition of a dotted path, through names that are only passed on."""
        if path in self.definitions:
            return "" if self.definitions[path].cls else path
        head, _, name = path.rpartition(".")
        passed_on = self.modules[head].imports.get(name) if head in self.modules else None
        if passed_on and passed_on != path:
            return self._resolve(passed_on)
        return path if path in self.modules else ""

    def _bases(self, cls: str) -> list[str]:
        """The bases of a class: paths of definitions, or of what lies outside of the package."""
        source, node = self.definitions[cls][:2]
        paths = []
        for text in map(ast.unparse, node.bases):
            root, *rest = text.partition("[")[0].split(".")
            local = f"{source.module}.{root}"
            path = source.imports.get(root, local if local in self.definitions else root)
            path = ".".join([path, *rest])
            paths.append(self._resolve(path) or path)
        return paths

    def _foreign(self, cls: str, name: str) -> bool:
        """Whether a base of ``cls`` outside of the package has a member ``name``."""
        return any(
            self._foreign(base, name)
            if base in self.definitions
            else hasattr(pydoc.locate(base), name)
            for base in self._bases(cls)
        )

    def _used(self, d: Definition) -> bool:
        if d.cls and (re.fullmatch("__.*__", d.name) or self._foreign(d.cls, d.name)):
            return True
        if any(
            re.search(r"\.(command|group)\b", ast.unparse(x))
            for x in getattr(d.node, "decorator_list", ())
        ):
            return True  # click calls it
        uses = self.uses[f".{d.name}" if d.cls else d.path]
        return any(d.path not in around(use.inside) for use in uses)

    def _calls(self, cls: str) -> list[Use]:
        """The calls of a class: of those, too, that inherit its __init__."""
        heirs = [
            path
            for path, d in self.definitions.items()
            if isinstance(d.node, ast.ClassDef)
            and cls in self._bases(path)
            and f"{path}.__init__" not in self.definitions
        ]
        return self.uses[cls] + [use for heir in heirs for use in self._calls(heir)]

    def _unused_options(self, d: Definition) -> Iterator[str]:
        """The names of the options that no caller gives."""
        if d.name == "__init__":
            uses = [use for use in self._calls(d.cls) if use.call]
        elif d.cls and (d.name.startswith("__") or self._foreign(d.cls, d.name)):
            return
        else:
            uses = self.uses[f".{d.name}" if d.cls else d.path]
        if not all(use.call for use in uses):
            return  # a value: who calls it, and how, cannot be seen
        static = any(ast.unparse(x) == "staticmethod" for x in d.node.decorator_list)
        a = d.node.args
        positional = [x.arg for x in a.posonlyargs + a.args][bool(d.cls) and not static :]
        required = len(positional) - len(a.defaults)
        options = {name: i for i, name in enumerate(positional) if i >= required}
        options |= {x.arg: None for x, v in zip(a.kwonlyargs, a.kw_defaults, strict=True) if v}
        for name, place in options.items():
            if name != "seed" and not any(self._gives(use, name, place) for use in uses):
                yield name

    def _gives(self, use: Use, name: str, place: int | None) -> bool:
        args, keywords = use.call.args, {k.arg for k in use.call.keywords}
        if place is not None and (
            len(args) > place or any(isinstance(x, ast.Starred) for x in args)
        ):
            return True
        return name in keywords or (None in keywords and name in self._words(use))

    def _words(self, use: Use) -> set[str]:
        """The keys that ``**mapping`` of a call may have: words of its file and of its callers'."""
        found = set(use.source.words)
        for path in around(use.inside):
            d = self.definitions.get(path)
            if d and isinstance(d.node, ast.FunctionDef) and d.node.args.kwarg:
                for outer in self.uses[f".{d.name}" if d.cls else d.path]:
                    found |= outer.source.words
        return found


def around(path: str) -> list[str]:
    """The path and those of all that contain it, from the inside out."""
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
