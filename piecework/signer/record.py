"""The log of what a signer signed: JSON lines in files of bounded size.

A line is with the operating system before its signature leaves. So a killed signer has lost none. A
machine that loses power may have lost the last ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from piecework.base.files import PRIVATE_FILE
from piecework.signer.limits import LOG_BYTES, LOG_FILES

_APPEND: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


class SignatureLog:
    """Appends to `path`, and keeps the files before it as `path`.1 and so on.

    `OSError` of any method: nothing may be signed.
    """

    def __init__(self, path: Path, *, max_bytes: int = LOG_BYTES) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._open()

    def _open(self) -> None:
        self._file = os.open(self._path, _APPEND, PRIVATE_FILE)
        self._size = os.fstat(self._file).st_size

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write one line."""
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        if self._size and self._size + len(line) > self._max_bytes:
            self._turn()
        left = memoryview(line)
        while left:
            left = left[os.write(self._file, left) :]
        self._size += len(line)

    def _turn(self) -> None:
        os.close(self._file)
        for number in range(LOG_FILES, 0, -1):
            older = self._path if number == 1 else self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))
        self._open()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)
