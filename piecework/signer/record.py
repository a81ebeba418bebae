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
        self._file, self._size = _opened(self._path)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write one line."""
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        if self._size and self._size + len(line) > self._max_bytes:
            self._turn()
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError:
            os.ftruncate(self._file, self._size)  # half a line would spoil the next one
            raise
        self._size += len(line)

    def _turn(self) -> None:
        """Begin the next file. Until that is open the one before stays the one that is used."""
        before = self._file
        if _is_at(before, self._path):  # else a turn failed after it had moved the files
            for number in range(LOG_FILES, 0, -1):
                older = self._path if number == 1 else self._numbered(number - 1)
                if older.exists():
                    older.replace(self._numbered(number))
        self._open()
        os.close(before)

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def _opened(path: Path) -> tuple[int, int]:
    """Open a file of the log. Returns its number and its size in bytes."""
    file = os.open(path, _APPEND, PRIVATE_FILE)
    return file, os.fstat(file).st_size


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
