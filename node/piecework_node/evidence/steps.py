"""The steps of canvases, kept on disk under a budget of bytes.

A leaf opens with the fields that it commits to. Without the fields the engine has to replay the
canvas, which takes as long as making it and works on the same engine profile alone. So they are
kept: all but the soft embeddings, compressed, and sealed to the worker's own sealing key. A file
has one canvas. The oldest go first when the budget is used up, and all go when nobody can ask any
more.

This is a cache and no record. A file that is lost or damaged costs a replay, so nothing waits for
the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from piecework.base.clock import Clock
from piecework.base.errors import PieceworkError
from piecework.base.files import private_folder, read
from piecework_node.times import now
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import SEALING_OVERHEAD_BYTES
from piecework_protocol.openings import MAX_KEPT_BYTES, KeptCanvas, pack_canvas, unpack_canvas
from piecework_protocol.sealing import kept_context, seal
from piecework_protocol.types import DIGEST_BYTES, JobId, PublicKey, Timestamp

MAX_WAITING: Final = 64
"""Canvases that wait to be written. More are not kept: a slow disk must not use up the memory."""
GATHER_S: Final = 0.05
"""What comes meanwhile is written in one turn of a thread. A turn takes longer than a file does."""
TURN_SHARE: Final = 16
"""A turn ends once it has written this part of the budget: what it exceeds is removed behind it."""
_SUFFIX: Final = ".steps"
_PART: Final = ".part"
_MAX_FILE_BYTES: Final = MAX_KEPT_BYTES + SEALING_OVERHEAD_BYTES + 1024
Key = tuple[JobId, int]
"""A canvas: the job and the index."""


class SealingKeySource(Protocol):
    """The keys that files are sealed to: `SealingKeys` or `SealingKeyring`."""

    @property
    def current(self) -> PublicKey | None: ...

    def open(self, sealed: bytes, context: bytes) -> bytes: ...


class StepKeeper(Protocol):
    """Where finished canvases are kept. Nothing waits for it."""

    def keep(self, job: JobId, deadline: Timestamp, kept: KeptCanvas) -> None:
        """Keep a canvas of a job with this deadline. It may be dropped."""
        ...


class StepSource(Protocol):
    """Where kept canvases are found again."""

    async def find(self, job: JobId, canvas: int) -> KeptCanvas | None:
        """Return a canvas, or None: it is not kept, or does not open any more."""
        ...

    def has(self, job: JobId, canvas: int) -> bool:
        """Say whether a canvas should be there."""
        ...


@dataclass(frozen=True, slots=True)
class _Kept:
    """A file. number: its age, the least is the oldest."""

    number: int
    deadline: int
    size: int
    path: Path


@dataclass(frozen=True, slots=True)
class _Unwritten:
    """A canvas with the file that it is to be in, whose size is not known yet."""

    job: JobId
    kept: KeptCanvas
    file: _Kept


@dataclass(frozen=True, slots=True)
class KeptUsage:
    """What is kept now."""

    canvases: int
    used_bytes: int
    budget_bytes: int


class StepStore:
    """Implements `StepKeeper` and `StepSource` in a folder. Call `load` once, and `close` last.

    budget_bytes: 0 keeps nothing, and `load` removes what is there.
    window_s: seconds after a job's deadline in which its leaves may be asked for.
    """

    def __init__(
        self,
        folder: Path,
        keyring: SealingKeySource,
        domain: Domain,
        *,
        budget_bytes: int,
        window_s: int,
        clock: Clock,
        log: Any,
    ) -> None:
        self._folder, self._keyring, self._domain = folder, keyring, domain
        self._budget, self._window_s = budget_bytes, window_s
        self._clock, self._log = clock, log
        self._files: dict[Key, _Kept] = {}
        self._used = self._last = 0
        self._waiting: deque[tuple[JobId, Timestamp, KeptCanvas]] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._failed = False

    @property
    def usage(self) -> KeptUsage:
        """Count what is kept."""
        return KeptUsage(len(self._files), self._used, self._budget)

    async def load(self) -> None:
        """Find what an earlier process has kept. What it had not finished is removed.

        Raises:
            FileError: the folder cannot be made, or belongs to somebody else.
        """
        await asyncio.to_thread(self._load)
        self._evict()

    def _load(self) -> None:
        private_folder(self._folder)
        for path in sorted(self._folder.iterdir()):
            found = _parse_name(path)
            if found is None:
                if path.suffix in (_SUFFIX, _PART):
                    _remove(path)
                continue
            key, number, deadline = found
            self._enter(key, _Kept(number, deadline, path.stat().st_size, path))
            self._last = max(self._last, number)

    def keep(self, job: JobId, deadline: Timestamp, kept: KeptCanvas) -> None:
        if not self._budget or not kept.steps or len(self._waiting) >= MAX_WAITING:
            return
        self._waiting.append((job, deadline, kept))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all(), name="kept steps")

    def has(self, job: JobId, canvas: int) -> bool:
        return (job, canvas) in self._files or self._unwritten(job, canvas) is not None

    async def find(self, job: JobId, canvas: int) -> KeptCanvas | None:
        fresh, known = self._unwritten(job, canvas), self._files.get((job, canvas))
        try:
            if fresh is not None:
                return KeptCanvas(fresh.canvas, tuple(fresh.steps))
            if known is None:
                return None
            return await asyncio.to_thread(self._open, job, canvas, known.path)
        except (PieceworkError, OSError) as error:
            self._log.warning("a kept canvas does not open", job=job, reason=str(error))
            self._forget((job, canvas))
            return None

    def _unwritten(self, job: JobId, canvas: int) -> KeptCanvas | None:
        waiting = (kept for j, _, kept in self._waiting if (j, kept.canvas.canvas) == (job, canvas))
        return next(waiting, None)

    def prune(self) -> None:
        """Remove what nobody can ask for any more."""
        oldest = now(self._clock) - self._window_s
        for key in [key for key, kept in self._files.items() if kept.deadline < oldest]:
            self._forget(key)

    async def close(self) -> None:
        """Finish what is being written."""
        while self._writer is not None:
            await asyncio.gather(self._writer, return_exceptions=True)

    async def _write_all(self) -> None:
        """Write what waits, all of it in one turn of a thread. A disk that fails is told once."""
        try:
            while self._waiting:
                await asyncio.sleep(GATHER_S)
                turn = [self._named(*waiting) for waiting in self._waiting]
                for done in await asyncio.to_thread(self._write_each, turn):
                    self._waiting.popleft()
                    if isinstance(done, Exception):
                        if not self._failed:
                            self._log.warning("steps are not kept", reason=str(done))
                        self._failed = True
                    else:
                        self._failed = False
                        self._enter(*done)
                self._evict()
        finally:
            self._writer = None

    def _named(self, job: JobId, deadline: Timestamp, kept: KeptCanvas) -> _Unwritten:
        """Give a canvas the next place in the order, and the path that says so."""
        self._last = number = max(self._last + 1, int(self._clock.wall() * 1e6))
        path = self._folder / _name(job, kept.canvas.canvas, number, deadline)
        return _Unwritten(job, kept, _Kept(number, deadline, 0, path))

    def _write_each(self, turn: list[_Unwritten]) -> list[tuple[Key, _Kept] | Exception]:
        """Write files until the turn ends. What one of them fails with stands in its place."""
        written: list[tuple[Key, _Kept] | Exception] = []
        left = self._budget // TURN_SHARE
        for one in turn:
            if left < 0:
                break
            try:
                size = self._write(one.job, one.kept, one.file.path)
            except (OSError, MalformedInput) as error:
                written.append(error)
            else:
                left -= size
                key = one.job, one.kept.canvas.canvas
                written.append((key, replace(one.file, size=size)))
        return written

    def _write(self, job: JobId, kept: KeptCanvas, path: Path) -> int:
        """Write one file. Nothing is synced: what a crash damages does not open, and is removed."""
        current = self._keyring.current
        if current is None:
            raise MalformedInput("there is no sealing key")
        context = kept_context(self._domain, job, kept.canvas.canvas)
        sealed = seal(pack_canvas(kept), current, context)
        if len(sealed) > self._budget:
            raise MalformedInput(f"one canvas has {len(sealed)} bytes, more than evidence_bytes")
        part = path.with_suffix(_PART)
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            # A buffer writes again what a disk that is nearly full did not take, and so learns why.
            with os.fdopen(descriptor, "wb") as file:
                file.write(sealed)
            part.replace(path)
        except OSError:
            _remove(part)  # what is there of it takes the room that is missing
            raise
        return len(sealed)

    def _open(self, job: JobId, canvas: int, path: Path) -> KeptCanvas:
        sealed = read(path, _MAX_FILE_BYTES)
        kept = unpack_canvas(self._keyring.open(sealed, kept_context(self._domain, job, canvas)))
        if kept.canvas.canvas != canvas:
            raise MalformedInput("a kept canvas is another one than its name says")
        return kept

    def _enter(self, key: Key, kept: _Kept) -> None:
        self._forget(key)  # the newer one counts
        self._files[key] = kept
        self._used += kept.size

    def _evict(self) -> None:
        """Remove the oldest until the rest is within the budget."""
        if self._used <= self._budget:
            return
        for key in sorted(self._files, key=lambda one: self._files[one].number):
            if self._used <= self._budget:
                return
            self._forget(key)

    def _forget(self, key: Key) -> None:
        kept = self._files.pop(key, None)
        if kept is not None:
            self._used -= kept.size
            _remove(kept.path)


def _name(job: JobId, canvas: int, number: int, deadline: int) -> str:
    return f"{number:016x}-{deadline:x}-{job.hex()}-{canvas:x}{_SUFFIX}"


def _parse_name(path: Path) -> tuple[Key, int, int] | None:
    """Return the canvas, the number and the deadline that a file's name says."""
    parts = path.stem.split("-")
    if path.suffix != _SUFFIX or len(parts) != 4:
        return None
    try:
        number, deadline, canvas = (int(parts[i], 16) for i in (0, 1, 3))
        job = bytes.fromhex(parts[2])
    except ValueError:
        return None
    return ((JobId(job), canvas), number, deadline) if len(job) == DIGEST_BYTES else None


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
