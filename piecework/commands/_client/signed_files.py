"""Files with something signed, which somebody else submits and pays the gas for."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Final

from piecework.base.errors import UsageError
from piecework.base.files import read, shown, write_private
from piecework.base.jsons import loads

MAX_SIGNED_BYTES: Final = 4096


async def write_signed(file: Path, members: dict[str, Any]) -> None:
    """Write what was signed to a new file.

    Raises:
        FileError: the file exists or cannot be written.
    """
    text = json.dumps(members, indent=2) + "\n"
    await asyncio.to_thread(write_private, file, text.encode())


async def read_signed(file: Path, what: str, refused: type[UsageError]) -> Any:
    """Read what `write_signed` makes. `what` names it, such as "a signed deposit".

    Raises:
        FileError: the file cannot be read.
        UsageError: `refused`, if it holds no JSON.
    """
    data = await asyncio.to_thread(read, file, MAX_SIGNED_BYTES)
    try:
        return loads(data)
    except ValueError:
        raise refused(f"{shown(file)} is not {what}") from None
