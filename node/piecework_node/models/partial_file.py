"""A file on its way: it grows, is hashed as it grows, and moves to its place when it is whole.

Nothing about it is remembered elsewhere. After kill -9 its length says where to go on, and its
bytes are hashed again. Damage by a power cut shows when the whole file is compared with the listed
digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, Self

from piecework_node.errors import ModelStoreError
from piecework_node.models.name import HubFile

HASH_CHUNK_BYTES: Final = 4 * 2**20
"""About 3 ms of hashing. Other downloads are served between two chunks."""


class ContentHash:
    """The digests of a content of known size: SHA-256, and the Git blob id if only that is listed.

    A Git blob id is a SHA-1. It detects damage, but not an attacker who can make collisions. The
    manifest has SHA-256.
    """

    def __init__(self, file: HubFile) -> None:
        self._listed = file.digest
        self._sha256 = hashlib.sha256()
        self._git = None
        if file.sha256 is None:
            self._git = hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)

    def update(self, data: bytes) -> None:
        """The next bytes."""
        self._sha256.update(data)
        if self._git is not None:
            self._git.update(data)

    @property
    def sha256(self) -> str:
        """Of all bytes so far, 64 hexadecimal digits."""
        return self._sha256.hexdigest()

    @property
    def is_listed(self) -> bool:
        """Whether the bytes so far are the file that the hub lists."""
        return (self._git or self._sha256).hexdigest() == self._listed


async def hash_file(path: Path, file: HubFile, at: Callable[[int], None]) -> ContentHash:
    """Return the digests of the file at `path`. `at` is told how many bytes were read.

    Raises:
        ModelStoreError: the file cannot be read.
    """
    found = ContentHash(file)
    try:
        with _open(path, "rb") as stream:
            await _hash_rest(stream, found, at)
    except OSError as error:
        raise _cannot("read", path, error) from None
    return found


class PartialFile:
    """One file being downloaded. Open it, fill it, finish or discard it, and always close it."""

    def __init__(self, path: Path, file: HubFile, stream: BinaryIO) -> None:
        self._path, self._file, self._stream = path, file, stream
        self._hash = ContentHash(file)
        self.position = 0
        """Bytes in the file."""
        self.pieces = 0
        """How many transfers its bytes came in. Those of an earlier process count as one."""

    @classmethod
    async def open(cls, path: Path, file: HubFile) -> Self:
        """Open the partial file at `path`, or make it, and hash what is in it."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what was counted as received has left the process.
            partial = cls(path, file, _open(path, "ab+", buffering=0))
        except OSError as error:
            raise _cannot("open", path, error) from None
        try:
            await partial._take_over()
        except BaseException:
            partial.close()
            raise
        return partial

    async def _take_over(self) -> None:
        try:
            size = os.fstat(self._stream.fileno()).st_size
            if size > self._file.size_bytes:
                self.restart()
                return
            self._stream.seek(0)
            await _hash_rest(self._stream, self._hash, lambda _: None)
            self.position, self.pieces = size, int(size > 0)
        except OSError as error:
            raise _cannot("read", self._path, error) from None

    def begin(self, offset: int) -> None:
        """Start a transfer at `offset`: the end of what is there, or 0 to start again."""
        if offset != self.position:
            self.restart()
        self.pieces += 1

    def write(self, data: bytes) -> None:
        """Append.

        Raises:
            ModelStoreError: the disk does not take it.
        """
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._stream.write(rest) :]
        except OSError as error:
            raise _cannot("write", self._path, error) from None
        self._hash.update(data)
        self.position += len(data)

    def restart(self) -> None:
        """Empty the file."""
        try:
            self._stream.truncate(0)
        except OSError as error:
            raise _cannot("write", self._path, error) from None
        self._hash = ContentHash(self._file)
        self.position = self.pieces = 0

    @property
    def is_listed(self) -> bool:
        """Whether it is now the file that the hub lists."""
        return self.position == self._file.size_bytes and self._hash.is_listed

    async def finish(self, target: Path) -> str:
        """Make it durable and move it to `target`. Return its SHA-256 in hex."""
        try:
            # 5 GB take a slow disk a minute, in which other downloads go on.
            await asyncio.to_thread(_sync, self._path)
            self._path.replace(target)
            _sync(target.parent)
        except OSError as error:
            raise _cannot("write", target, error) from None
        return self._hash.sha256

    def discard(self) -> None:
        """Remove it."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file. What is in it stays."""
        self._stream.close()


def _sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    # It has its own descriptor, so it does not matter who closes the file meanwhile.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _hash_rest(stream: BinaryIO, into: ContentHash, at: Callable[[int], None]) -> None:
    done = 0
    while chunk := stream.read(HASH_CHUNK_BYTES):
        into.update(chunk)
        done += len(chunk)
        at(done)
        await asyncio.sleep(0)


def _open(path: Path, mode: str, buffering: int = -1) -> BinaryIO:
    return path.open(mode, buffering)  # type: ignore[return-value]  # every mode here is a binary one


def _cannot(do: str, path: Path, error: OSError) -> ModelStoreError:
    return ModelStoreError(f"cannot {do} {path}: {error.strerror or error}")
