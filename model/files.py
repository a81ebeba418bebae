"""Reading the small files of a checkpoint folder: bounded, UTF-8, typed errors that name the file."""

import json
from pathlib import Path
from typing import Any

from model import limits
from model.errors import CheckpointError


def read_text(path: Path) -> str:
    """The text of a file of at most MAX_METADATA_FILE_BYTES."""
    try:
        size = path.stat().st_size
        if size > limits.MAX_METADATA_FILE_BYTES:
            raise CheckpointError(path, f"{size} bytes, at most {limits.MAX_METADATA_FILE_BYTES} are read")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CheckpointError(path, "is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(path, "is no JSON object")
    return value
