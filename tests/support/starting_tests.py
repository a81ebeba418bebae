"""Which tests start a program of ours: by themselves, by a fixture, or by what they import."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.interpreter_starts import starts

Name = tuple[str, str]
"""A module, and a name at its top."""
SHIPPED: frozenset[Name] = frozenset(
    {
        ("piecework.processes", "ProcessGroup"),
        ("piecework.processes", "Role"),
        ("piecework_node.operations.updating", "make_environment"),
        ("piecework_node.engine.supervisor", "engine_arguments"),
    }
)
"""What starts programs outside the tests, as soon as it is used."""
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign


@dataclass(frozen=True, slots=True)
class Module:
    """A file: what is defined and imported at its top."""

    path: Path
    name: str
    starts: frozenset[int]
    """The lines where an interpreter is started."""
    definitions: Mapping[str, _Definition]
    imported: Mapping[str, Name]

    @classmethod
    def read(cls, path: Path, root: Path) -> Module:
        """Parse a file below the root."""
        text = path.read_text()
        tree = ast.parse(text, str(path))
        lines = frozenset(start.line for start in starts(text) if start.is_seen)
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        return cls(path, name, lines, dict(_defined(tree)), dict(_imported(tree)))

    @property
    def is_marked(self) -> bool:
        """Whether `pytestmark` has `process`."""
        mark = self.definitions.get("pytestmark")
        return mark is not None and "mark.process" in ast.unparse(mark)


def unmarked(paths: Iterable[Path], root: Path) -> list[str]:
    """Name the tests that start a program and do not have the mark `process`."""
    modules = [Module.read(path, root) for path in paths]
    starting = _starting(modules)
    return sorted(
        f"{module.path.relative_to(root).as_posix()}: {name}"
        for module in modules
        if module.path.name.startswith("test_") and not module.is_marked
        for name, found in module.definitions.items()
        if name.startswith("test_") and (module.name, name) in starting
        if not any("mark.process" in ast.unparse(d) for d in getattr(found, "decorator_list", []))
    )


def _defined(tree: ast.Module) -> Iterator[tuple[str, _Definition]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Assign):
            yield from ((t.id, node) for t in node.targets if isinstance(t, ast.Name))


def _imported(tree: ast.Module) -> Iterator[tuple[str, Name]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield alias.asname or alias.name, (node.module, alias.name)


def _starting(modules: list[Module]) -> set[Name]:
    """Every name that starts a program, whatever is between the two."""
    fixtures = {m.path.parent: m for m in modules if m.path.name == "conftest.py"}
    found: set[Name] = set(SHIPPED)
    uses: dict[Name, set[Name]] = {}
    for module in modules:
        for name, node in module.definitions.items():
            if module.starts & set(range(node.lineno, (node.end_lineno or 0) + 1)):
                found.add((module.name, name))
            uses[module.name, name] = set(_used(module, node, fixtures))
    while more := {name for name, used in uses.items() if name not in found and used & found}:
        found |= more
    return found


def _used(module: Module, node: ast.AST, fixtures: Mapping[Path, Module]) -> Iterator[Name]:
    """What a definition names: of its own module, imported, or fixtures by its arguments."""
    places = [module, *(fixtures[p] for p in module.path.parents if p in fixtures)]
    for one in ast.walk(node):
        if isinstance(one, ast.Name):
            yield from _known(module, one.id)
        elif isinstance(one, ast.arg):
            for place in places:
                yield from _known(place, one.arg)
        elif isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name):
            # A module that was imported, and a name of it.
            for package, name in _known(module, one.value.id):
                yield f"{package}.{name}", one.attr


def _known(module: Module, name: str) -> Iterator[Name]:
    if name in module.definitions:
        yield module.name, name
    if name in module.imported:
        yield module.imported[name]
