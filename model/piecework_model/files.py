"""Reading the small files of a checkpoint folder: bounded, in UTF-8, with errors that name the
file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from piecework_model import limits
from piecework_model.errors import CheckpointError

# Strings are skipped whole, and an unterminated one to the end: no input is read twice.
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)


def read_text(path: Path) -> str:
    """Read the text of a file of at most MAX_METADATA_FILE_BYTES."""
    try:
        size = path.stat().st_size
        if size > limits.MAX_METADATA_FILE_BYTES:
            raise CheckpointError(
                path, f"{size} bytes, at most {limits.MAX_METADATA_FILE_BYTES} are read"
            )
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CheckpointError(path, "is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file."""
    return parse_json(read_text(path), path)


def parse_json(text: str, path: Path) -> dict[str, Any]:
    """Parse a JSON object. `path` is the file that errors name.

    Nesting is bounded, because json.loads recurses in C up to the interpreter's recursion limit.
    The dependencies of web3 raise that limit so far that a file of brackets would crash the
    process.
    """
    try:
        if (
            text.count("[") + text.count("{") > limits.MAX_JSON_DEPTH
            and _depth(text) > limits.MAX_JSON_DEPTH
        ):
            raise ValueError(f"nested deeper than {limits.MAX_JSON_DEPTH}")
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(path, "is not a JSON object")
    return value


def _depth(text: str) -> int:
    """Count how deep brackets and braces are nested, outside of strings."""
    depth = deepest = 0
    for token in _TOKEN.finditer(text):
        character = text[token.start()]
        if character != '"':
            depth += 1 if character in "[{" else -1
            deepest = max(deepest, depth)
    return deepest
