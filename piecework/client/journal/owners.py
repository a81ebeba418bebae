"""Who follows a job: a lock on a file in the home, which the kernel releases at a process's death.

Every open journal has a lock file of its own. Its name is the owner's name, and stands with each
job that this owner follows. A process id would not do: ids are used again, and a process in another
container is not seen.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from piecework.base.files import PRIVATE_FILE, PRIVATE_FOLDER

_NAME: Final = re.compile(r"[0-9a-f]{16}")
NOBODY: Final = ""
"""The owner of a job that nobody follows."""


class Owner:
    """One living owner. Its lock is held from here until `close`, or until the process ends."""

    def __init__(self, folder: Path) -> None:
        """Take a name and its lock.

        Raises:
            OSError: the folder or the file cannot be made.
        """
        self._folder = folder
        folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        while True:
            self.name = secrets.token_hex(8)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(self._file(self.name), flags, PRIVATE_FILE)
            if _lock(self._descriptor, fcntl.LOCK_EX) and os.fstat(self._descriptor).st_nlink:
                return
            # Somebody looked between the two steps and took the file for a dead owner's.
            os.close(self._descriptor)

    def close(self) -> None:
        """Give the name up. Jobs under it have no owner from now on."""
        with suppress(FileNotFoundError):
            self._file(self.name).unlink()
        os.close(self._descriptor)

    def follows(self, name: str) -> bool:
        """Return whether the owner of this name lives. A dead one's file is removed."""
        if name == self.name:
            return True
        if not _NAME.fullmatch(name):
            return False
        file = self._file(name)
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            if not _lock(descriptor, fcntl.LOCK_SH):
                return True
            with suppress(FileNotFoundError):
                file.unlink()
            return False
        finally:
            os.close(descriptor)

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.lock"


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
