"""What the rules of the house ask of a Python file. Each file is parsed once in a process."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

_PLACEHOLDER = re.compile(r"\{\w*\}")
HOLE = "\0"
"""Stands in a string where the program puts a value."""


@dataclass(frozen=True, slots=True)
class FoundCall:
    """A call. name: with its dots, such as "json.loads". What is called on a value begins with "."

    argument: the first one in Python, or "".
    """

    line: int
    name: str
    argument: str


@dataclass(frozen=True, slots=True)
class FoundClass:
    """A class and the names of its bases."""

    line: int
    name: str
    bases: frozenset[str]


@dataclass(slots=True)
class Facts:
    """What is in one file, in no order.

    functions: line, name, lines. imports: line, module. started: line, and the constant words of a
    list, a tuple or a call that has "-m" among them. strings: with a hole for each placeholder.
    loaded: line, and each module, or name in one, that is loaded with the file. What functions
    import and what only types need are left out.
    """

    functions: list[tuple[int, str, int]] = field(default_factory=list)
    classes: list[FoundClass] = field(default_factory=list)
    calls: list[FoundCall] = field(default_factory=list)
    imports: list[tuple[int, str]] = field(default_factory=list)
    started: list[tuple[int, list[str]]] = field(default_factory=list)
    strings: list[str] = field(default_factory=list)
    loaded: list[tuple[int, str]] = field(default_factory=list)

    def take(self, node: ast.AST) -> None:
        """Add what a node says."""
        match node:
            case ast.Constant(value=str(text)):
                self.strings.append(_PLACEHOLDER.sub(HOLE, text))
            case ast.JoinedStr(values=parts):
                self.strings.append(
                    "".join(str(p.value) if isinstance(p, ast.Constant) else HOLE for p in parts)
                )
            case ast.Call(func=called, args=given):
                first = given[0] if given else None
                argument = ast.unparse(first) if isinstance(first, ast.Constant) else ""
                argument = argument or ("…" if first is not None else "")
                self.calls.append(FoundCall(node.lineno, dotted(called), argument))
                self._take_words(node.lineno, given)
            case ast.Tuple(elts=items) | ast.List(elts=items):
                self._take_words(node.lineno, items)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                lines = (node.end_lineno or 0) - node.lineno + 1
                self.functions.append((node.lineno, name, lines))
            case ast.ClassDef(name=name, bases=bases):
                self.classes.append(FoundClass(node.lineno, name, frozenset(map(dotted, bases))))
            case ast.Import(names=names):
                self.imports += [(node.lineno, alias.name) for alias in names]
            case ast.ImportFrom(module=str(module)):
                self.imports.append((node.lineno, module))

    def _take_words(self, line: int, items: list[ast.expr]) -> None:
        words = [str(i.value) if isinstance(i, ast.Constant) else "" for i in items]
        if "-m" in words:
            self.started.append((line, words))


def dotted(node: ast.expr) -> str:
    """Give a name with its dots, ".method" for a method of a value, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


@cache
def facts_of(path: Path) -> Facts:
    """Parse a file."""
    found = Facts()
    tree = ast.parse(path.read_text(), str(path))
    for node in ast.walk(tree):
        found.take(node)
    found.loaded = list(_loaded(tree.body))
    return found


def _loaded(body: Iterable[ast.stmt]) -> Iterator[tuple[int, str]]:
    for node in body:
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield node.lineno, module
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.If(test=test, body=inner, orelse=other):
                only_types = dotted(test).rpartition(".")[2] == "TYPE_CHECKING"
                yield from _loaded([*([] if only_types else inner), *other])
            case ast.Try(body=inner, handlers=handlers, orelse=other, finalbody=last):
                yield from _loaded([*inner, *other, *last])
                for handler in handlers:
                    yield from _loaded(handler.body)
            case ast.With(body=inner) | ast.ClassDef(body=inner):
                yield from _loaded(inner)
