"""SQLite on a disk that fails, or that loses power, at a chosen operation.

`FailingVfs` raises what a full or broken disk makes SQLite say. `PowerVfs` keeps apart what was
synced and what was only written, so that a test can make every state that a power cut may leave:
nothing of the unsynced writes, or any number of them with the last one torn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw


class _FailingFile(apsw.VFSFile):
    def __init__(self, vfs: FailingVfs, name: Any, flags: Any) -> None:
        super().__init__(vfs.base, name, flags)
        self._vfs = vfs

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802  SQLite's name
        self._vfs.operation()
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._vfs.operation()
        super().xSync(flags)

    def xTruncate(self, size: int) -> None:  # noqa: N802
        self._vfs.operation()
        super().xTruncate(size)


class FailingVfs(apsw.VFS):
    """The machine's files. From one operation on, every write, sync and truncation fails.

    It is SQLite's default from its creation until `end`.
    """

    def __init__(self, error: type[apsw.Error]) -> None:
        self.base, self.error = "unix", error
        self.operations = 0
        self.fail_at: int | None = None
        super().__init__("failing", self.base, makedefault=True)

    def operation(self) -> None:
        """Count an operation, or fail."""
        self.operations += 1
        if self.fail_at is not None and self.operations >= self.fail_at:
            raise self.error("injected")

    def xOpen(self, name: Any, flags: Any) -> _FailingFile:  # noqa: N802
        return _FailingFile(self, name, flags)


class _PowerFile(apsw.VFSFile):
    def __init__(self, vfs: PowerVfs, name: Any, flags: Any) -> None:
        super().__init__(vfs.base, name, flags)
        self._vfs = vfs
        self._path = Path(name.filename() if isinstance(name, apsw.URIFilename) else str(name))

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        self._vfs.wrote(self._path, bytes(data), offset)
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        super().xSync(flags)
        self._vfs.synced(self._path)

    def xTruncate(self, size: int) -> None:  # noqa: N802
        super().xTruncate(size)
        self._vfs.synced(self._path)


class PowerVfs(apsw.VFS):
    """Remembers, for each file, its last synced bytes and the writes since then."""

    def __init__(self, on_sync: Callable[[], None]) -> None:
        """on_sync: called before each sync, when the most is at stake."""
        self.base, self._on_sync = "unix", on_sync
        self._durable: dict[Path, bytes] = {}
        self._pending: dict[Path, list[tuple[bytes, int]]] = {}
        super().__init__("power", self.base, makedefault=True)

    def wrote(self, path: Path, data: bytes, offset: int) -> None:
        """Note a write that no sync has made durable."""
        self._pending.setdefault(path, []).append((data, offset))

    def synced(self, path: Path) -> None:
        """Note that a file is durable as it is, after a look at what could have been lost."""
        self._on_sync()
        self._durable[path] = path.read_bytes()
        self._pending[path] = []

    def images(self) -> Iterator[dict[str, bytes]]:
        """Give every state that a power cut may leave now: file names and their bytes."""
        base = {path.name: data for path, data in self._durable.items()}
        yield base
        for path, writes in self._pending.items():
            content = bytearray(self._durable.get(path, b""))
            for data, offset in writes:
                torn = bytearray(content)
                _put(torn, data[: len(data) // 2], offset)
                yield {**base, path.name: bytes(torn)}
                _put(content, data, offset)
            yield {**base, path.name: bytes(content)}

    def xDelete(self, name: str, sync: bool) -> None:  # noqa: N802
        super().xDelete(name, sync)
        for known in (self._durable, self._pending):
            known.pop(Path(name), None)

    def xOpen(self, name: Any, flags: Any) -> _PowerFile:  # noqa: N802
        return _PowerFile(self, name, flags)


def _put(content: bytearray, data: bytes, offset: int) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data
