"""A tool call in the model's grammar as JSON: `call:name{key:value,…}`.

Strings stand between two quote tokens and are literal. A key stands bare or as a string. Other
values are those of JSON: numbers, true, false, null, lists and objects. A string in JSON's own
quotes is taken too, because models write it at times.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final

from piecework_protocol.conversation import ToolCall
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import MAX_TOOL_JSON_DEPTH

_START: Final = re.compile(r"\s*call:([A-Za-z0-9_.:-]+)\s*(?=\{)")
_LEXEME: Final = re.compile(
    r"\s*(?:([{}\[\],:])|(\"(?:[^\"\\\x00-\x1f]|\\.)*\")|([^\s{}\[\],:\"]+))",
)
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_LITERALS: Final = {"true": "true", "false": "false", "null": "null", "None": "null"}


def parse_call(parts: Sequence[str]) -> str | None:
    """Return a call as a JSON object with `name` and `arguments`, or None if it is not in the
    grammar.

    parts: what stands outside and inside of quote tokens, by turns. The first is outside.
    """
    start = _START.match(parts[0]) if len(parts) % 2 else None
    if start is None:
        return None
    try:
        tokens = _Tokens([parts[0][start.end() :], *parts[1:]])
        arguments = tokens.value(0)
        tokens.end()
        ToolCall("", start[1], arguments)  # what no client could read is no call
    except (_Ungrammatical, MalformedInput):
        return None
    return f'{{"name": {json.dumps(start[1])}, "arguments": {arguments}}}'


class _Ungrammatical(Exception):
    """The call is not in the grammar."""


class _Tokens:
    """The lexemes of a call, taken from the front. Each is (kind, JSON text).

    A kind is a mark itself, or "string", or "word".
    """

    def __init__(self, parts: Sequence[str]) -> None:
        self._found: list[tuple[str, str]] = []
        self._at = 0
        for index, part in enumerate(parts):
            if index % 2:
                self._found.append(("string", json.dumps(part, ensure_ascii=False)))
            else:
                self._read(part)

    def _read(self, text: str) -> None:
        at, end = 0, len(text.rstrip())
        while at < end:
            match = _LEXEME.match(text, at)
            if match is None:
                raise _Ungrammatical
            mark, string, word = match.groups()
            kind = mark or ("string" if string else "word")
            self._found.append((kind, mark or string or word))
            at = match.end()

    def end(self) -> None:
        """Check that nothing is left."""
        if self._at != len(self._found):
            raise _Ungrammatical

    def value(self, depth: int) -> str:
        """Take a value and return it as JSON."""
        if depth > MAX_TOOL_JSON_DEPTH:
            raise _Ungrammatical
        kind, text = self._take()
        if kind == "string":
            return text
        if kind == "{":
            return "{" + ", ".join(self._members("}", depth, keyed=True)) + "}"
        if kind == "[":
            return "[" + ", ".join(self._members("]", depth, keyed=False)) + "]"
        if kind == "word" and text in _LITERALS:
            return _LITERALS[text]
        if kind == "word" and _NUMBER.fullmatch(text):
            return text
        raise _Ungrammatical

    def _members(self, close: str, depth: int, *, keyed: bool) -> list[str]:
        members: list[str] = []
        if self._peek() == close:
            self._take()
            return members
        while True:
            key = self._key() if keyed else ""
            members.append(key + self.value(depth + 1))
            kind, _ = self._take()
            if kind == close:
                return members
            if kind != ",":
                raise _Ungrammatical

    def _key(self) -> str:
        kind, text = self._take()
        if kind not in ("string", "word") or self._take()[0] != ":":
            raise _Ungrammatical
        return f"{text if kind == 'string' else json.dumps(text, ensure_ascii=False)}: "

    def _peek(self) -> str | None:
        return self._found[self._at][0] if self._at < len(self._found) else None

    def _take(self) -> tuple[str, str]:
        if self._at == len(self._found):
            raise _Ungrammatical
        self._at += 1
        return self._found[self._at - 1]
