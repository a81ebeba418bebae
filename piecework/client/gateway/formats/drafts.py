"""Schemas of older drafts and of OpenAPI 3.0, written as JSON Schema 2020-12 has them. Pure.

Frameworks still write draft 7. What differs in what they write is the tuple: a list of schemas in
`items`, and `additionalItems` for what follows them. Tools that come from an OpenAPI file have
`nullable` and `example`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_INTO_TUPLE = re.compile(r"/items/(?=\d+(?:/|$))")


def modernize(nodes: Iterable[dict[str, Any]]) -> None:
    """Change the nodes of a schema, each before those in it are read.

    `$schema` goes too. The library would judge such a part by that dialect's own rules: no time
    limit of a pattern, and other meanings of keywords. The whole schema's own `$id` names nothing
    that its references, which are local, need.
    """
    references: list[dict[str, Any]] = []
    has_tuples = False
    for at, node in enumerate(nodes):
        for name in ("$schema", "example", *(() if at else ("$id",))):
            node.pop(name, None)
        if node.pop("nullable", False) is True:
            _allow_null(node)
        if isinstance(node.get("$ref"), str):
            references.append(node)
        others = node.pop("additionalItems", None)
        first = node.get("items")
        if not isinstance(first, list) or "prefixItems" in node:
            continue  # older drafts have no rule for others then
        has_tuples = True
        del node["items"]
        if first:
            node["prefixItems"] = first
        if others is not None:
            node["items"] = others
    for node in references if has_tuples else ():
        node["$ref"] = _INTO_TUPLE.sub("/prefixItems/", node["$ref"])


def _allow_null(node: dict[str, Any]) -> None:
    """Let a node hold null too, as `nullable` of OpenAPI 3.0 means it."""
    kinds, values = node.get("type"), node.get("enum")
    if isinstance(kinds, str) and not node.keys() & {"$ref", "const", "allOf", "anyOf", "oneOf"}:
        node["type"] = kinds if kinds == "null" else [kinds, "null"]
        if isinstance(values, list) and None not in values:
            node["enum"] = [*values, None]
        return
    rest = dict(node)
    node.clear()
    node["anyOf"] = [rest, {"type": "null"}]
