"""How a Python file puts text before a person."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.support.source_facts import dotted

_STREAMS = frozenset({"sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__"})
_HARMLESS = frozenset({"isatty", "flush", "fileno", "encoding", "reconfigure"})
"""What may be done with a stream without writing."""


def ways_to_print(text: str) -> set[str]:
    """Name the ways: "print", "echo" of typer or click, "stream", "rich", "textual".

    "stream": a standard stream is written to, or handed to something that may write to it.
    """
    tree = ast.parse(text)
    return {*_streams(tree), *(way for node in ast.walk(tree) for way in _ways(node))}


def _ways(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Call(func=called):
            name = dotted(called)
            if name in {"print", "builtins.print", "pprint", "pprint.pprint"}:
                yield "print"
            if name.rpartition(".")[2] in {"echo", "secho", "echo_via_pager"}:
                yield "echo"
            if name == "os.write" and node.args and ast.unparse(node.args[0]) in {"1", "2"}:
                yield "stream"
        case ast.Import(names=names):
            yield from _library([alias.name for alias in names])
        case ast.ImportFrom(module=str(module), names=names):
            yield from _library([module])
            if module == "sys" and {alias.name for alias in names} & {"stdout", "stderr"}:
                yield "stream"


def _library(modules: list[str]) -> Iterator[str]:
    yield from {module.partition(".")[0] for module in modules} & {"rich", "textual"}


def _streams(tree: ast.AST) -> Iterator[str]:
    """Uses of a standard stream, but for a harmless attribute."""
    harmless = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in _HARMLESS
    }
    for node in ast.walk(tree):
        stream = isinstance(node, ast.Attribute) and dotted(node) in _STREAMS
        if stream and id(node) not in harmless:
            yield "stream"
