"""What a trial's numbers depend on: a digest of the code that a function can reach."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import util


class StudyError(RuntimeError):
    """A study cannot be run, written or collected; the message says why and what to do."""


def code_digest(function: Callable) -> str:
    """SHA-256 of the code that ``function`` can reach in its own package and in lecture6.

    Comments, docstrings and layout do not count, nor does code that is never named.
    """
    code = [(*name, definition) for name, definition in reachable(function).items()]
    return hashlib.sha256(json.dumps(sorted(code)).encode()).hexdigest()


def reachable(function: Callable) -> dict[tuple[str, str], str]:
    """The definitions behind ``function``: (module, name) to its code without comments.

    Every name in its body is followed to its definition at the top level of a module: functions,
    classes, constants; and so on from there, within its own package and lecture6, through imports
    of every form. Names that are made while the code runs (``getattr``) are not followed. Raises
    StudyError for a function that is not at the top level of a module with a source file.
    """
    if function.__module__ == "__main__":
        raise StudyError(f"{function.__qualname__} must be in a module that workers can import")
    packages = {"lecture6", function.__module__.partition(".")[0]}
    found: dict[tuple[str, str], str] = {}
    todo = [(function.__module__, function.__qualname__)]
    seen = set()
    while todo:
        module, name = todo.pop()
        if (module, name) in seen or module.partition(".")[0] not in packages:
            continue
        seen.add((module, name))
        definitions, imports = _definitions(module)
        if name in imports:  # a name that this module only passes on
            todo.append(_place(imports[name]))
        for node in definitions.get(name, ()):
            found[module, name] = found.get((module, name), "") + ast.unparse(node)
            for part in ast.walk(node):
                root, *rest = _dotted(part) or [""]
                if root in imports:
                    todo.append(_place(".".join([imports[root], *rest])))
                elif root in definitions:
                    todo.append((module, root))
    if not found:
        raise StudyError(f"{function.__qualname__} must be a top-level function of its module")
    return found


def _dotted(node: ast.AST) -> list[str] | None:
    """["a", "b", "c"] for the expression a.b.c, None for others."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value)):
        return [*before, node.attr]
    return None


def _place(path: str) -> tuple[str, str]:
    """The imported module that a dotted path goes through last, and the name in it."""
    parts = path.split(".")
    n = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in sys.modules), 0)
    return ".".join(parts[:n]), "".join(parts[n : n + 1])


@lru_cache
def _definitions(module: str) -> tuple[dict[str, list[ast.AST]], dict[str, str]]:
    """What defines each top-level name of a module, and the dotted path of each imported one."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError) as error:
        raise StudyError(
            f"the source of module {module!r} cannot be read ({error}); define the trial in a file"
        ) from None
    package = sys.modules[module].__package__
    definitions: dict[str, list[ast.AST]] = {}
    imports: dict[str, str] = {}
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [n for n in body if not _is_text(n)] or [ast.Pass()]
        if isinstance(node, ast.ImportFrom):
            source = util.resolve_name("." * node.level + (node.module or ""), package)
            imports |= {a.asname or a.name: f"{source}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            for a in node.names:
                imports[a.asname or a.name.partition(".")[0]] = (
                    a.name if a.asname else a.name.partition(".")[0]
                )
    for node in _top_level(tree.body):
        names = [node.name] if hasattr(node, "name") else []
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            names = [
                part.id
                for part in ast.walk(node)
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            ]
        for name in names:
            definitions.setdefault(name, []).append(node)
    return definitions, imports


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those under if, try and with among them."""
    for node in body:
        if isinstance(node, ast.If | ast.Try | ast.With):
            for part in ("body", "orelse", "handlers", "finalbody"):
                for inner in getattr(node, part, []):
                    yield from _top_level(getattr(inner, "body", None) or [inner])
        else:
            yield node


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
