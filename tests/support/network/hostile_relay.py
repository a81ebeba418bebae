"""A relay that does its worst with the bytes that pass it.

It stands in front of an honest relay, so that what it passes on arrives somewhere. Bytes are all
that a relay has. What a worker says to its relay passes unharmed, else no client came this far.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

from tests.support.waiting import pass_time

CHUNK_BYTES = 64 * 1024
QUIET_CHUNKS = 2
"""Of each direction, which pass. So some sessions get beyond their handshake."""
SLOW_BYTE_S = 1 / 50_000
"""Seconds a byte of a slow chunk takes."""
PIECE_BYTES = 16
WORKERS_OPENING = b"PIECEWORK-RELAY/"


class Mischief(enum.Enum):
    """What it does to the bytes of one direction."""

    DROP = "drop"
    REPLAY = "replay"
    REORDER = "reorder"
    CHANGE = "change"
    CUT = "cut"
    STALL = "stall"
    SLOW = "slow"
    """Every byte comes, but one after the other."""
    SPLICE = "splice"
    """Bytes of another live session come in front of those of this one."""
    SWAP = "swap"
    """Two live sessions exchange their streams for good."""


class Direction(enum.Enum):
    """Where bytes go."""

    UP = "to the worker"
    DOWN = "to the client"


BOTH = frozenset(Direction)
MIXES = frozenset({Mischief.SPLICE, Mischief.SWAP})
"""Mischief that takes two sessions."""


@dataclass(eq=False)
class HostileSession:
    """A client's connection: where each direction leads, and what has passed in it."""

    sinks: dict[Direction, asyncio.StreamWriter]
    passed: dict[Direction, int] = field(default_factory=lambda: dict.fromkeys(Direction, 0))
    latest: dict[Direction, bytes] = field(default_factory=lambda: dict.fromkeys(Direction, b""))


class HostileRelay:
    """One of these, with a kind of mischief. `done` counts how often it did it.

    mischief, directions, quiet: what it does, to which bytes, and after how many chunks of a
    direction. A test may change them.
    """

    def __init__(
        self,
        port: int,
        mischief: Mischief,
        *,
        chance: Random,
        quiet: int,
        directions: frozenset[Direction],
        byte_s: float,
    ) -> None:
        self.name, self.done = "", 0
        self.recorded: list[bytes] = []
        """What each client said, from its first byte on."""
        self.mischief, self.directions, self.quiet = mischief, directions, quiet
        self.byte_s = byte_s
        self._port, self._chance = port, chance
        self._sessions: list[HostileSession] = []
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass somebody on, with mischief in both directions if it is a client."""
        try:
            behind, ahead = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, ahead}
        session = HostileSession({Direction.UP: ahead, Direction.DOWN: writer})
        tasks = [
            asyncio.ensure_future(self._up(session, reader)),
            asyncio.ensure_future(self._pass(session, Direction.DOWN, behind)),
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if session in self._sessions:
            self._sessions.remove(session)
        for one in (writer, ahead):
            one.transport.abort()
            self._writers.discard(one)

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _up(self, session: HostileSession, reader: asyncio.StreamReader) -> None:
        first = await reader.read(CHUNK_BYTES)
        if not first.startswith(WORKERS_OPENING):
            self._sessions.append(session)
            self.recorded.append(b"")
        await self._pass(session, Direction.UP, reader, first)

    async def _pass(
        self,
        session: HostileSession,
        way: Direction,
        reader: asyncio.StreamReader,
        data: bytes = b"",
    ) -> None:
        """Pass on one direction of a session. data: what was read of it before."""
        number, held = len(self.recorded) - 1, b""
        while data := data or await reader.read(CHUNK_BYTES):
            if way is Direction.UP and session in self._sessions:
                self.recorded[number] += data
            session.passed[way] += 1
            session.latest[way] = data
            if held:
                data, held = data + held, b""
            elif self._strikes(session, way):
                self.done += 1
                if self.mischief is Mischief.CUT:
                    return
                if self.mischief is Mischief.STALL:
                    await pass_time(3600)
                if self.mischief is Mischief.SLOW:
                    data = await self._trickle(session, way, data)
                if self.mischief is Mischief.SWAP:
                    self._swap(session, self._other(session, way))
                if self.mischief is Mischief.REORDER:
                    held, data = data, b""
                data = self._spoil(session, way, data)
            writer = session.sinks[way]
            writer.write(data)
            await writer.drain()
            data = b""

    def _strikes(self, session: HostileSession, way: Direction) -> bool:
        """Whether something happens to the chunk that has just come."""
        if session not in self._sessions or way not in self.directions:
            return False
        if session.passed[way] <= self.quiet:
            return False
        if self.mischief in MIXES and self._other(session, way) is None:
            return False
        return self._chance.random() < 0.5

    def _other(self, session: HostileSession, way: Direction) -> HostileSession | None:
        """Another live session of which enough has passed in this direction."""
        others = (one for one in self._sessions if one is not session)
        return next((one for one in others if one.passed[way] > self.quiet), None)

    def _swap(self, one: HostileSession, other: HostileSession | None) -> None:
        assert other is not None
        for way in self.directions:
            one.sinks[way], other.sinks[way] = other.sinks[way], one.sinks[way]

    async def _trickle(self, session: HostileSession, way: Direction, data: bytes) -> bytes:
        """Pass on all but the last piece, slowly. Returns that piece."""
        while len(data) > PIECE_BYTES:
            piece, data = data[:PIECE_BYTES], data[PIECE_BYTES:]
            session.sinks[way].write(piece)
            await session.sinks[way].drain()
            await pass_time(self.byte_s * PIECE_BYTES)
        return data

    def _spoil(self, session: HostileSession, way: Direction, data: bytes) -> bytes:
        match self.mischief:
            case Mischief.DROP:
                return b""
            case Mischief.REPLAY:
                return data + data
            case Mischief.CHANGE:
                at = self._chance.randrange(len(data))
                return (
                    data[:at] + bytes([data[at] ^ 1 << self._chance.randrange(8)]) + data[at + 1 :]
                )
            case Mischief.SPLICE:
                other = self._other(session, way)
                assert other is not None
                return other.latest[way] + data
            case _:
                return data


@asynccontextmanager
async def hostile_relay(
    port: int,
    mischief: Mischief,
    *,
    quiet: int = QUIET_CHUNKS,
    directions: frozenset[Direction] = BOTH,
    byte_s: float = SLOW_BYTE_S,
) -> AsyncIterator[HostileRelay]:
    """Run one in front of an honest relay's port. It lets so many chunks a direction pass.

    directions: the bytes that it spoils. byte_s: seconds that a byte takes which it slows.
    """
    relay = HostileRelay(
        port,
        mischief,
        chance=Random(mischief.value),
        quiet=quiet,
        directions=directions,
        byte_s=byte_s,
    )
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    relay.name = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield relay
    finally:
        server.close()
        relay.close()
        await server.wait_closed()
