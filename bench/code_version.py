"""A digest of the code that a figure comes from: what is imported, without comments and form.

Figures of a long measurement are kept in files. They stay valid while the code that made them does.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

Roots = Mapping[str, Path]
"""The folder of each package of ours, by its name."""


def code_digest(modules: Iterable[str], roots: Roots) -> str:
    """Compute the digest, in hex, of modules and of all of ours that they import.

    Docstrings, comments and layout do not count.
    """
    found = imported(modules, roots)
    lines = [
        f"{name} {hashlib.sha256(_meaning(found[name])).hexdigest()}" for name in sorted(found)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def imported(modules: Iterable[str], roots: Roots) -> dict[str, Path]:
    """Find the files of modules and of all of ours that they import, wherever in their text."""
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        file = None if name in found else _file(name, roots)
        if file is None:
            continue
        found[name] = file
        waiting += _named(ast.parse(file.read_text(encoding="utf-8")))
        # A module of a package runs the package first.
        parent = name.rpartition(".")[0]
        if parent:
            waiting.append(parent)
    return found


def _file(name: str, roots: Roots) -> Path | None:
    package, *rest = name.split(".")
    if package not in roots:
        return None
    place = roots[package].joinpath(*rest)
    options = (place / "__init__.py", place.with_name(f"{place.name}.py"))
    return next((file for file in options if file.is_file()), None)


def _named(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _meaning(file: Path) -> bytes:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not _is_text(one)]  # type: ignore[attr-defined]
    return ast.dump(tree).encode()


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
