"""What a relay can do to a job: it costs time, or one address. It never costs money or truth."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from piecework.client.errors import WorkerUnreachable
from piecework.client.network.transport import WorkerLink
from piecework_protocol.objects import Endpoint, Route
from piecework_protocol.relaying import server_name
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import keccak256
from tests.support.chain.fake_chain import FakeChain
from tests.support.client.client_side import (
    MONEY,
    PAYER,
    CanvasText,
    FakeClock,
    JobResuming,
    ask,
    collect,
    last,
    open_client,
    text_of,
)
from tests.support.client.fake_worker import STORY, FakeWorker
from tests.support.network.hostile_relay import (
    BOTH,
    MIXES,
    Direction,
    HostileRelay,
    Mischief,
    hostile_relay,
)
from tests.support.network.relays import RunningRelay, running_relay
from tests.support.network.wire import Wire, running_wire
from tests.support.waiting import until

WHOLE = " ".join(STORY)
SECOND_PAYER = LocalSigner(bytes(keccak256(b"another client behind the same relay")))
OTHERS = MIXES | {Mischief.STALL, Mischief.SLOW}
"""What has tests of its own."""
NOTHING_YET = 10**9
"""So many chunks pass unharmed. The test says when the mischief begins."""


@pytest.fixture
def chain() -> FakeChain:
    chain = FakeChain()
    chain.deposit(PAYER.address, MONEY)
    return chain


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@dataclass
class TwoWays:
    """A worker that is behind an honest relay and behind a hostile one, which clients try first."""

    worker: FakeWorker
    hostile: HostileRelay
    honest: RunningRelay
    to_honest: Wire
    """What leads clients to the honest one."""


@asynccontextmanager
async def two_ways(
    chain: FakeChain, clock: FakeClock, mischief: Mischief, **more: Any
) -> AsyncIterator[TwoWays]:
    """Run the three. The registry names a third relay, which the offer does not."""
    async with (
        running_relay(chain) as behind,
        running_relay(chain) as honest,
        running_relay(chain) as registered,
        FakeWorker(chain, clock, relays=(behind.name, honest.name, registered.name)) as worker,
        hostile_relay(behind.port, mischief, **more) as hostile,
        running_wire(honest.port) as wire,
    ):
        names = (hostile.name, wire.address)
        worker.ways = tuple(Endpoint(Route.RELAYED, name) for name in names)
        chain.register(worker.operator.address, worker.receiver, registered.name)
        yield TwoWays(worker, hostile, honest, wire)


@pytest.mark.parametrize("mischief", [m for m in Mischief if m not in OTHERS])
async def test_a_relay_that_spoils_bytes_costs_no_job_and_no_money(
    tmp_path: Path, chain: FakeChain, clock: FakeClock, mischief: Mischief
) -> None:
    async with (
        two_ways(chain, clock, mischief) as ways,
        open_client(tmp_path, chain, clock) as client,
    ):
        runs = [await collect(client.run(ask(f"story {n}"))) for n in range(3)]
        assert ways.hostile.done > 0
        assert [text_of(events) for events in runs] == [WHOLE] * 3
        canvases = [e for events in runs for e in events if isinstance(e, CanvasText)]
        assert ways.worker.paid() == sum(last(events).cost for events in runs)
        assert ways.worker.paid() == sum(canvas.amount for canvas in canvases)
        assert ways.worker.violations == []


async def test_a_relay_that_says_nothing_more_costs_a_moment(
    tmp_path: Path, chain: FakeChain, clock: FakeClock
) -> None:
    async with (
        two_ways(chain, clock, Mischief.STALL, quiet=0) as ways,
        open_client(tmp_path, chain, clock) as client,
    ):
        assert text_of(await collect(client.run(ask()))) == WHOLE
        assert ways.worker.violations == []


async def test_a_relay_that_is_slow_makes_jobs_late_and_nothing_else(
    tmp_path: Path, chain: FakeChain, clock: FakeClock
) -> None:
    async with (
        two_ways(chain, clock, Mischief.SLOW) as ways,
        open_client(tmp_path, chain, clock) as client,
    ):
        await ways.to_honest.down()
        runs = [await collect(client.run(ask(f"story {n}"))) for n in range(2)]
        assert ways.hostile.done > 0
        assert [text_of(events) for events in runs] == [WHOLE] * 2
        assert not any(isinstance(event, JobResuming) for events in runs for event in events)
        assert [s.received for s in ways.worker.submissions] == [0, 0]
        assert ways.worker.paid() == sum(last(events).cost for events in runs)
        assert ways.worker.violations == []


async def test_a_relay_that_turns_too_slow_in_a_job_is_left_and_nothing_is_paid_twice(
    tmp_path: Path, chain: FakeChain, clock: FakeClock
) -> None:
    """Bytes go on coming, so only frames tell that the worker is no longer heard."""
    async with (
        two_ways(chain, clock, Mischief.SLOW, quiet=NOTHING_YET, byte_s=1.0) as ways,
        open_client(tmp_path, chain, clock, stall_timeout_s=1.0) as client,
    ):

        async def turns_slow(canvas: int) -> None:
            if canvas == 1:
                ways.hostile.quiet = 0

        ways.worker.script.gate = turns_slow
        events = await collect(client.run(ask()))
        assert ways.hostile.done > 0
        assert text_of(events) == WHOLE
        assert any(isinstance(event, JobResuming) for event in events)
        canvases = [event for event in events if isinstance(event, CanvasText)]
        assert ways.worker.paid() == last(events).cost == sum(c.amount for c in canvases)
        assert ways.worker.violations == []


@pytest.mark.parametrize("mischief", [m for m in Mischief if m in MIXES])
@pytest.mark.parametrize(
    "directions",
    [frozenset({Direction.UP}), frozenset({Direction.DOWN}), BOTH],
    ids=["up", "down", "both"],
)
async def test_a_relay_that_mixes_the_streams_of_two_clients_costs_neither_anything(
    tmp_path: Path,
    chain: FakeChain,
    clock: FakeClock,
    mischief: Mischief,
    directions: frozenset[Direction],
) -> None:
    """It begins when both clients have a job that runs, each over a session of its own."""
    chain.deposit(SECOND_PAYER.address, MONEY)
    # A client waits for the rest of half a record, and for what went to the other one.
    patience: dict[str, Any] = {"stall_timeout_s": 3.0, "acknowledgement_timeout_s": 3.0}
    folders = (tmp_path / "first", tmp_path / "second")
    for folder in folders:
        folder.mkdir()
    async with (
        two_ways(chain, clock, mischief, quiet=NOTHING_YET, directions=directions) as ways,
        open_client(folders[0], chain, clock, **patience) as first,
        open_client(folders[1], chain, clock, payer=SECOND_PAYER, **patience) as second,
    ):
        worker = ways.worker

        async def both_run(canvas: int) -> None:
            if canvas == 1 and ways.hostile.quiet:
                await until(lambda: len(worker.submissions) >= 2)
                await ways.to_honest.up()
                ways.hostile.quiet = 0

        worker.script.gate = both_run
        await ways.to_honest.down()
        runs = await asyncio.gather(*(collect(c.run(ask())) for c in (first, second)))
        assert ways.hostile.done > 0
        assert [text_of(events) for events in runs] == [WHOLE] * 2
        assert any(isinstance(event, JobResuming) for events in runs for event in events)
        for client, events in zip((first, second), runs, strict=True):
            (row,) = client.store.channels()
            assert worker.books[row.id].cumulative == row.book.cumulative == last(events).cost
        assert len(worker.books) == 2 and worker.violations == []


async def test_a_relay_that_swaps_workers_is_noticed_before_anything_is_said(
    chain: FakeChain, clock: FakeClock
) -> None:
    """The hostile relay leads to another worker, which has a good certificate of its own."""
    async with (
        running_relay(chain) as relay,
        FakeWorker(chain, clock, name="other", relays=(relay.name,)) as other,
        FakeWorker(chain, clock) as worker,
    ):
        operator, pinned = worker.operator.address, worker.certificate_digest
        with pytest.raises(WorkerUnreachable, match="certificate is not the one"):
            await WorkerLink.connect(other.endpoint, other.operator.address, pinned)
        with pytest.raises(WorkerUnreachable):
            await WorkerLink.connect(relay.name, operator, pinned)
        assert other.submissions == worker.submissions == []


async def test_a_session_that_is_played_again_says_nothing_to_the_worker(
    tmp_path: Path, chain: FakeChain, clock: FakeClock
) -> None:
    async with two_ways(chain, clock, Mischief.CUT, quiet=10**9) as ways:
        async with open_client(tmp_path, chain, clock) as client:
            await collect(client.run(ask()))
        paid, asked = ways.worker.paid(), len(ways.worker.submissions)
        assert ways.hostile.recorded
        for said in ways.hostile.recorded:
            reader, writer = await asyncio.open_connection("127.0.0.1", ways.honest.port)
            writer.write(said)
            await asyncio.wait_for(reader.read(), 20)  # to the end: the worker hangs up
            writer.transport.abort()
        assert (ways.worker.paid(), len(ways.worker.submissions)) == (paid, asked)


async def test_a_record_of_one_session_ends_another_one(chain: FakeChain, clock: FakeClock) -> None:
    """What one client says under its keys means nothing in the session of another one."""
    async with (
        running_relay(chain) as relay,
        FakeWorker(chain, clock, relays=(relay.name,)) as worker,
    ):
        donor = await TlsSession.open(relay, worker)
        victim = await TlsSession.open(relay, worker)
        victim.writer.write(donor.said(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
        await asyncio.wait_for(victim.reader.read(), 10)  # to the end: the worker hangs up
        operator, pinned = worker.operator.address, worker.certificate_digest
        link = await WorkerLink.connect(relay.name, operator, pinned)
        assert (await link.get_offer()).offer.operator == operator
        await link.close()
        assert worker.submissions == []


class TlsSession:
    """A TLS session whose records the test holds in its hands."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        self._context.set_alpn_protocols(["h2"])

    @classmethod
    async def open(cls, relay: RunningRelay, worker: FakeWorker) -> TlsSession:
        """Shake hands with the worker through the relay."""
        session = cls(*await asyncio.open_connection("127.0.0.1", relay.port))
        relay.opened.append(session.writer)
        await session._shake_hands(server_name(worker.operator.address))
        shown = session._tls.getpeercert(True)
        assert shown is not None
        assert hashlib.sha256(shown).digest() == worker.certificate_digest
        return session

    async def _shake_hands(self, name: str) -> None:
        incoming, outgoing = self._incoming, self._outgoing
        self._tls = self._context.wrap_bio(incoming, outgoing, server_hostname=name)
        done = False
        while not done:
            try:
                self._tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            self.writer.write(outgoing.read())
            if not done:
                incoming.write(await asyncio.wait_for(self.reader.read(2**16), 10))

    def said(self, data: bytes) -> bytes:
        """What these bytes are on the wire."""
        self._tls.write(data)
        return self._outgoing.read()
