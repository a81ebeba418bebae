"""Schemas of older drafts of JSON Schema, written as the draft of 2020-12 has them. Pure.

Frameworks still write draft 7. What differs in what they write is the tuple: a list of schemas in
`items`, and `additionalItems` for what follows them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_INTO_TUPLE = re.compile(r"/items/(?=\d+(?:/|$))")


def modernize(nodes: Iterable[dict[str, Any]]) -> None:
    """Change the nodes of a schema, each before those in it are read.

    `$schema` goes too. The library would judge such a part by that dialect's own rules: no time
    limit of a pattern, and other meanings of keywords.
    """
    references: list[dict[str, Any]] = []
    has_tuples = False
    for node in nodes:
        node.pop("$schema", None)
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
