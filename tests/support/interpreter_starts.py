"""Where a Python file starts an interpreter that would import from the current folder."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from tests.support.source_facts import dotted

SAFE = frozenset({"-P", "-I"})
"""Either keeps the current folder off the import path."""
_NAMED = re.compile(r"(.*/)?python[\d.]*")
_PERHAPS = re.compile(r'executable|"-m"|python[\d.]*"|\bPYTHON\b|\bpython\b,')
"""In the text of every file that starts an interpreter. Most files have none of it."""
_SAME_FILE = frozenset({"str", "Path", "os.fspath", "getattr", "os.environ.get"})
"""Calls that give back the interpreter that they are given, or another one."""


@dataclass(frozen=True, slots=True, order=True)
class Start:
    """Where an interpreter is started.

    is_safe: with `-P` or `-I` right behind it. is_seen: the interpreter stands there, and not `-m`
    alone.
    """

    line: int
    words: str
    is_safe: bool
    is_seen: bool = True


def unsafe_starts(text: str) -> list[tuple[int, str]]:
    """Give line and words of each start that would import from the current folder."""
    return sorted({(s.line, s.words) for s in starts(text) if not s.is_safe})


def starts(text: str) -> Iterator[Start]:
    """Give each start in a file.

    A start is a list, a tuple, arguments of a call, or a formatted string. An interpreter behind
    other words, with none behind it, is an argument of another program.
    """
    if _PERHAPS.search(text) is None:
        return
    tree = ast.parse(text)
    finder = _Finder(_names_of_interpreters(tree))
    for node in ast.walk(tree):
        yield from finder.starts(node)


def _names_of_interpreters(tree: ast.AST) -> frozenset[str]:
    """The names that the file gives an interpreter. As a parameter it is `python`."""
    finder = _Finder(frozenset({"python"}))
    named = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and finder.is_interpreter(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return frozenset({"python", *named})


class _Finder:
    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def is_interpreter(self, node: ast.expr) -> bool:
        """Whether an expression is the path of an interpreter."""
        match node:
            case ast.Name(id=name):
                return name in self._names
            case ast.Constant(value=str(text)):
                return _NAMED.fullmatch(text) is not None
            case ast.Attribute():
                return dotted(node) in {"sys.executable", "sys._base_executable"}
            case ast.BinOp(op=ast.Div(), right=right):
                return self.is_interpreter(right)
            case ast.Call(func=called, args=given) if dotted(called) in _SAME_FILE:
                known = any(_word(one) == "_base_executable" for one in given)
                return known or any(self.is_interpreter(one) for one in given)
        return False

    def starts(self, node: ast.AST) -> Iterator[Start]:
        """Give what one node starts."""
        match node:
            case ast.List(elts=items, ctx=ast.Load()) | ast.Tuple(elts=items, ctx=ast.Load()):
                yield from self._listed(node.lineno, items)
            case ast.Call(func=called, args=items) if dotted(called) not in _SAME_FILE:
                # The only argument is passed on. What becomes of it is looked at there.
                yield from self._listed(node.lineno, items if len(items) > 1 else [])
            case ast.JoinedStr(values=pieces):
                yield from self._written(node.lineno, pieces)

    def _listed(self, line: int, items: list[ast.expr]) -> Iterator[Start]:
        words = [_word(item) for item in items]
        for before, item, after in zip(["", *words], items, [*words[1:], ""], strict=False):
            is_argument = item is items[-1] and len(items) > 1
            text = " ".join(ast.unparse(one) for one in items)
            if _word(item) == "-m" and before not in SAFE:
                yield Start(line, text, is_safe=False, is_seen=False)
            elif self.is_interpreter(item) and not is_argument:
                yield Start(line, text, is_safe=after in SAFE)

    def _written(self, line: int, pieces: list[ast.expr]) -> Iterator[Start]:
        for piece, after in pairwise(pieces):
            if not isinstance(piece, ast.FormattedValue) or not self.is_interpreter(piece.value):
                continue
            if _word(after)[:1].isspace():
                text = "".join(ast.unparse(one) for one in (piece, after))
                yield Start(line, text, is_safe=bool(SAFE & set(_word(after).split()[:1])))


def _word(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
