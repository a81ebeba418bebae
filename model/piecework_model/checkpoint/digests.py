"""The SHA-256 of checkpoint files, each read once as long as it does not change.

The released model has 50 GB, which take half a minute and more to hash. A digest is remembered with
the file's identity: path, device, inode, size, and the times of its last change. The kernel sets
the time of the last change of an inode (ctime), and no program can set it back. A file that
changed less than RECENT_NS before it was hashed may change again without another time, so its
digest is not written down.

This module imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, Final, NamedTuple

from piecework.base.files import write_private
from piecework_model import files
from piecework_model.errors import CheckpointError

BLOCK_BYTES: Final = 4 * 2**20
RECENT_NS: Final = 2_000_000_000
"""Two seconds: the coarsest time of a file system in use (FAT)."""
HEX_DIGITS: Final = 64
MAX_REMEMBERED: Final = 4096
"""Files in one store."""


class FileIdentity(NamedTuple):
    """What changes when a file does. Times in nanoseconds."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, stream: FileIO) -> FileIdentity:
        """Ask for that of an open file."""
        found = os.fstat(stream.fileno())
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class DigestStore:
    """Digests that were computed in this process, or written down by an earlier one.

    Threads may share it.
    """

    def __init__(self, path: Path | None = None, now_ns: Callable[[], int] = time.time_ns) -> None:
        """Read the store at `path`, if there is one. What is damaged is forgotten.

        path: None remembers nothing beyond this process.
        """
        self._path, self._now_ns = path, now_ns
        self._lock = threading.Lock()
        self._known: dict[str, tuple[FileIdentity, str]] = dict(_stored(path))
        self._recent: set[str] = set()  # changed too shortly before they were hashed

    def known(self, file: Path) -> str | None:
        """Return a file's digest if it was remembered and the file has not changed."""
        with _opened(file) as stream:
            return self._find(file, FileIdentity.of(stream))

    def of(self, file: Path) -> str:
        """Return a file's digest. Reads the file if it is not known. Raises CheckpointError."""
        found = self.known(file)
        if found is not None:
            return found
        with self.reading(file) as reader:
            reader.advance(None)
        return reader.digest

    @contextmanager
    def reading(self, file: Path) -> Iterator[HashedReading]:
        """Hash a file in steps, so that others may read what was just read. Remembers the digest.

        Raises CheckpointError if it cannot be read, or changes on the way.
        """
        with _opened(file) as stream:
            before = FileIdentity.of(stream)
            reader = HashedReading(file, stream)
            yield reader
            reader.advance(None)
            if FileIdentity.of(stream) != before:
                raise CheckpointError(file, "changed while it was read")
        with self._lock:
            key = str(file.resolve())
            self._known[key] = before, reader.digest
            last = max(before.modified_ns, before.changed_ns)
            (self._recent.add if self._now_ns() - last < RECENT_NS else self._recent.discard)(key)

    def save(self) -> None:
        """Write the digests down for the next start. Those of files that are gone are dropped.

        Raises FileError.
        """
        if self._path is None:
            return
        with self._lock:
            kept = {
                key: {**identity._asdict(), "sha256": digest}
                for key, (identity, digest) in self._known.items()
                if key not in self._recent and Path(key).is_file()
            }
        newest = dict(list(kept.items())[-MAX_REMEMBERED:])
        write_private(self._path, json.dumps({"files": newest}, indent=1).encode(), replace=True)

    def _find(self, file: Path, identity: FileIdentity) -> str | None:
        with self._lock:
            kept = self._known.get(str(file.resolve()))
        return kept[1] if kept is not None and kept[0] == identity else None


class HashedReading:
    """A file that is being hashed from its start on."""

    def __init__(self, file: Path, stream: FileIO) -> None:
        self._file, self._stream = file, stream
        self._hash = hashlib.sha256()
        self._position = 0

    @property
    def digest(self) -> str:
        """The digest of what was read so far."""
        return self._hash.hexdigest()

    def advance(self, end: int | None) -> None:
        """Hash on up to the byte `end`, or to the file's end."""
        buffer = memoryview(bytearray(BLOCK_BYTES))
        try:
            while end is None or self._position < end:
                wanted = BLOCK_BYTES if end is None else min(BLOCK_BYTES, end - self._position)
                count = self._stream.readinto(buffer[:wanted])
                if not count:
                    break
                self._hash.update(buffer[:count])
                self._position += count
        except OSError as error:
            raise CheckpointError(self._file, f"cannot be read: {error.strerror}") from error


@contextmanager
def _opened(file: Path) -> Iterator[FileIO]:
    try:
        stream = file.open("rb", buffering=0)
    except OSError as error:
        raise CheckpointError(file, f"cannot be read: {error.strerror}") from error
    with stream:
        yield stream


def _stored(path: Path | None) -> Iterator[tuple[str, tuple[FileIdentity, str]]]:
    """Read a store. It only saves work, so one that cannot be read counts as empty."""
    if path is None or not path.is_file():
        return
    try:
        entries = files.read_json(path).get("files")
    except CheckpointError:
        return
    for key, entry in entries.items() if isinstance(entries, dict) else ():
        if (found := _entry(entry)) is not None:
            yield key, found


def _entry(entry: Any) -> tuple[FileIdentity, str] | None:
    if not isinstance(entry, dict):
        return None
    numbers = [n for n in map(entry.get, FileIdentity._fields) if type(n) is int]
    digest = entry.get("sha256")
    if not isinstance(digest, str) or len(digest) != HEX_DIGITS:
        return None
    return (FileIdentity(*numbers), digest) if len(numbers) == len(FileIdentity._fields) else None
