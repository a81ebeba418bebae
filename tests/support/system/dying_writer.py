"""A program that writes a file and kills itself at a chosen step, as `kill -9` would.

    python -m tests.support.system.dying_writer FILE STEP MODE

MODE is "exclusive" or "replace". STEP counts the steps of the write from 0. The exit code is 0 if
the write had fewer steps.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from piecework.base.files import SystemDisk, write_private

CONTENT = b"new content " * 1000


class DyingDisk(SystemDisk):
    """The machine's disk, on which the process dies before a step, or in the middle of a write."""

    def __init__(self, step: int) -> None:
        self._left = step

    def _step(self) -> None:
        if self._left == 0:
            die()
        self._left -= 1

    def create(self, path: Path, mode: int) -> int:
        self._step()
        return super().create(path, mode)

    def write(self, descriptor: int, data: bytes) -> int:
        self._step()
        if len(data) > 5000:  # the first of three short writes
            return super().write(descriptor, data[:5000])
        return super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._step()
        super().sync(descriptor)

    def link(self, old: Path, new: Path) -> None:
        self._step()
        super().link(old, new)

    def rename(self, old: Path, new: Path) -> None:
        self._step()
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)

    def sync_folder(self, path: Path) -> None:
        self._step()
        super().sync_folder(path)


def die() -> NoReturn:
    """What cannot be caught."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


if __name__ == "__main__":
    file, step, mode = sys.argv[1:]
    write_private(Path(file), CONTENT, replace=mode == "replace", disk=DyingDisk(int(step)))
