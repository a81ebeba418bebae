"""SQLite on a disk on which the process dies at a chosen operation, as `kill -9` would.

    python -P -m tests.support.system.dying_database MODULE:FUNCTION SOURCE FOLDER

For each operation a child is forked. It copies SOURCE to FOLDER/NUMBER.db, calls FUNCTION with the
copy, and kills itself before that operation. The last child comes to its end. The output is the
number of children that died.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import apsw

from tests.support.system.dying_writer import die

ROOT = Path(__file__).parents[3]
VFS = "dying"


class _File(apsw.VFSFile):
    def __init__(self, vfs: DyingVfs, name: Any, flags: Any) -> None:
        super().__init__(vfs.base_vfs, name, flags)
        self._vfs = vfs

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802  SQLite's name
        self._vfs.operation()
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._vfs.operation()
        self._vfs.syncs += 1
        super().xSync(flags)

    def xTruncate(self, size: int) -> None:  # noqa: N802
        self._vfs.operation()
        super().xTruncate(size)


class DyingVfs(apsw.VFS):
    """The machine's files. Operations that change one are counted. `die_before` ends the process.

    It is SQLite's default from its creation on, so the code under test is as it ships.
    """

    def __init__(self, die_before: int | None) -> None:
        self.base_vfs = "unix"
        self.operations = 0
        self.syncs = 0
        self._die_before = die_before
        super().__init__(VFS, self.base_vfs, makedefault=True)

    def operation(self) -> None:
        if self.operations == self._die_before:
            die()
        self.operations += 1

    def xOpen(self, name: Any, flags: Any) -> _File:  # noqa: N802
        return _File(self, name, flags)

    def xDelete(self, name: str, sync: bool) -> None:  # noqa: N802
        self.operation()
        super().xDelete(name, sync)


def deaths(work: str, source: Path, folder: Path) -> int:
    """Let `work`, a MODULE:FUNCTION, die before each of its operations. Return how many there are.

    `folder` is made. It holds one copy more than that: the last one came to its end.
    """
    folder.mkdir()
    done = subprocess.run(
        (sys.executable, "-P", "-m", __name__, work, str(source), str(folder)),
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        timeout=120,
    )
    return int(done.stdout)


def copy_database(source: Path, target: Path) -> None:
    """Copy a database with its write-ahead log."""
    for end in ("", "-wal"):
        if (part := source.with_name(source.name + end)).exists():
            shutil.copy(part, target.with_name(target.name + end))


def kill_at_every_operation(work: Callable[[Path], None], source: Path, folder: Path) -> int:
    """Run `work` on copies, and kill it before one operation after the other."""
    for number in count():
        target = folder / f"{number}.db"
        copy_database(source, target)
        child = os.fork()
        if child == 0:
            vfs = DyingVfs(number)
            work(target)
            del vfs
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            return number
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            raise SystemExit(f"child {number} failed")
    raise AssertionError("count() ends")


if __name__ == "__main__":
    name, given, place = sys.argv[1:]
    module, _, function = name.partition(":")
    print(
        kill_at_every_operation(getattr(import_module(module), function), Path(given), Path(place))
    )
