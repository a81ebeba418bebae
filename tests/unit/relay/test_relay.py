"""A relay between real sockets: whom it admits, what it passes on, and what it bounds."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Self

import pytest
from aiohttp.test_utils import TestClient, TestServer

from piecework.base.clock import SystemClock
from piecework.base.connections import ConnectionLimits
from piecework.relay.connection import UNRECOGNIZED_NAME
from piecework.relay.limits import JOINS_BURST, WORKER_CLIENTS_BURST
from piecework.relay.metrics import metrics_application
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.relaying import (
    Admitted,
    ChallengeAnswer,
    ClientDeclined,
    Dial,
    Incoming,
    Join,
    NotAdmitted,
    Ping,
    RelayAdmission,
    RelayChallenge,
    RelayLine,
    Take,
    decode_line,
    decode_opening,
    encode_line,
    encode_opening,
    server_name,
)
from piecework_protocol.signing import LocalSigner, sign
from piecework_protocol.types import Address, Bytes32, Signature, Timestamp, Uint32, keccak256
from tests.property.relay.test_hello import context, hello_of
from tests.support.chain.fake_chain import FakeChain
from tests.support.network.relays import LIMITS, MARKET, OPEN, RunningRelay, running_relay
from tests.support.waiting import until

OPERATOR = LocalSigner(keccak256(b"an operator behind a relay"))
OTHER = LocalSigner(keccak256(b"another operator"))
HELLO = hello_of(context(), server_name(OPERATOR.address))


@pytest.fixture
def chain() -> FakeChain:
    chain = FakeChain()
    for key in (OPERATOR, OTHER):
        chain.register(key.address, Address(bytes(20)))
    return chain


@pytest.fixture
async def relay(chain: FakeChain) -> AsyncIterator[RunningRelay]:
    async with running_relay(chain) as relay:
        yield relay


class Wire:
    """A connection to the relay, as worker or client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def dial(
        cls, relay: RunningRelay, first: bytes = b"", *, source: str = "127.0.0.1"
    ) -> Self:
        wire = cls(*await asyncio.open_connection("127.0.0.1", relay.port, local_addr=(source, 0)))
        relay.opened.append(wire.writer)
        wire.writer.write(first)
        return wire

    async def hear(self) -> RelayLine:
        return decode_line(await asyncio.wait_for(self.reader.readuntil(b"\n"), 10))

    def say(self, line: RelayLine) -> None:
        self.writer.write(encode_line(line))

    async def rest(self) -> bytes:
        """Everything until the other side hangs up."""
        try:
            return await asyncio.wait_for(self.reader.read(), 10)
        except ConnectionError:
            return b""

    def close(self) -> None:
        self.writer.transport.abort()


async def answered(
    relay: RunningRelay,
    key: LocalSigner,
    *,
    claims: LocalSigner | None = None,
    name: str = "",
    domain: Domain = MARKET,
    late_s: int = 0,
    nonce: bytes = b"",
) -> tuple[Wire, RelayLine]:
    """Join, and return what the relay says."""
    wire = await Wire.dial(relay, encode_opening(Join((claims or key).address)))
    challenge = await wire.hear()
    assert isinstance(challenge, RelayChallenge) and challenge.relay == relay.name
    at = Timestamp(int(SystemClock().wall()) - late_s)
    admission = RelayAdmission(name or relay.name, Bytes32(nonce or challenge.nonce), at)
    wire.say(ChallengeAnswer(at, sign(domain, admission, key)))
    return wire, await wire.hear()


async def joined(relay: RunningRelay, key: LocalSigner = OPERATOR) -> Wire:
    wire, verdict = await answered(relay, key)
    assert isinstance(verdict, Admitted)
    return wire


@asynccontextmanager
async def passed_on(relay: RunningRelay, worker: Wire) -> AsyncIterator[tuple[Wire, Wire]]:
    """A client and the worker's connection to it."""
    client = await Wire.dial(relay, HELLO)
    incoming = await worker.hear()
    assert isinstance(incoming, Incoming) and incoming.peer == "127.0.0.1"
    way = await Wire.dial(relay, encode_opening(Take(incoming.token)))
    assert await asyncio.wait_for(way.reader.readexactly(len(HELLO)), 10) == HELLO
    try:
        yield client, way
    finally:
        client.close()
        way.close()


# --- who is admitted


async def test_a_registered_operator_is_admitted_and_found_by_its_server_name(
    relay: RunningRelay,
) -> None:
    worker = await joined(relay)
    async with passed_on(relay, worker) as (client, way):
        for sender, receiver in ((client, way), (way, client)):
            sender.writer.write(b"opaque bytes" * 10_000)
            got = await asyncio.wait_for(receiver.reader.readexactly(120_000), 10)
            assert got == b"opaque bytes" * 10_000
        way.close()
        assert await client.rest() == b""
    await until(lambda: relay.relay.clients == 0)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"key": OTHER, "claims": OPERATOR}, "did not sign"),
        ({"name": "relay.example:7443"}, "did not sign"),
        ({"nonce": bytes(32)}, "did not sign"),
        ({"domain": Domain(1, MARKET.verifying_contract, MARKET.name)}, "did not sign"),
        ({"late_s": 3600}, "clock"),
        ({"key": LocalSigner(keccak256(b"a stranger"))}, "no active stake"),
    ],
)
async def test_who_does_not_prove_a_registered_operator_is_told_why(
    relay: RunningRelay, more: dict[str, LocalSigner], why: str
) -> None:
    wire, verdict = await answered(relay, **{"key": OPERATOR, **more})  # type: ignore[arg-type]
    assert isinstance(verdict, NotAdmitted) and why in verdict.why
    assert await wire.rest() == b""
    assert relay.relay.workers == 0


async def test_a_bad_signature_costs_no_call_to_the_chain(
    relay: RunningRelay, chain: FakeChain
) -> None:
    await answered(relay, OTHER, claims=OPERATOR)
    assert chain.reads == 0


async def test_what_the_chain_said_is_remembered_while_it_is_away(
    relay: RunningRelay, chain: FakeChain
) -> None:
    await joined(relay)
    chain.away = True
    await joined(relay)
    assert chain.reads == 1
    _, verdict = await answered(relay, OTHER)
    assert isinstance(verdict, NotAdmitted) and "does not answer" in verdict.why


async def test_a_newer_link_of_an_operator_replaces_the_older_one(relay: RunningRelay) -> None:
    older = await joined(relay)
    newer = await joined(relay)
    assert await older.rest() == b""
    async with passed_on(relay, newer):
        assert relay.relay.workers == 1


async def test_an_address_that_joins_too_often_is_cut_off(relay: RunningRelay) -> None:
    made = [await Wire.dial(relay, encode_opening(Join(OTHER.address))) for _ in range(25)]
    await until(lambda: relay.relay.counts["join_rate"] == 25 - JOINS_BURST)
    for wire in made:
        wire.close()


async def test_a_relay_takes_only_so_many_workers(chain: FakeChain) -> None:
    async with running_relay(chain, replace(LIMITS, workers=1)) as relay:
        await joined(relay)
        wire, verdict = await answered(relay, OTHER)
        assert isinstance(verdict, Admitted) is False
        assert isinstance(verdict, NotAdmitted) and "as many workers" in verdict.why
        assert await wire.rest() == b""


async def test_an_operator_whose_stake_is_gone_loses_its_link(chain: FakeChain) -> None:
    from tests.support.clock import FakeClock

    clock = FakeClock(SystemClock().wall())
    async with running_relay(chain, clock=clock) as relay:
        worker = await joined(relay)
        worker.say(Ping())
        assert await worker.hear() == Ping()
        chain.register(OPERATOR.address, Address(bytes(20)), active=False)
        clock.advance(3600)
        worker.say(Ping())
        assert await worker.rest() == b""


# --- clients


async def test_a_client_of_an_unknown_worker_gets_a_tls_alert(relay: RunningRelay) -> None:
    client = await Wire.dial(relay, HELLO)
    assert await client.rest() == UNRECOGNIZED_NAME
    trusting = ssl.create_default_context()
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        await asyncio.open_connection(
            "127.0.0.1", relay.port, ssl=trusting, server_hostname=server_name(OTHER.address)
        )


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x02" + bytes(100),
        b"PIECEWORK-RELAY/1 take " + b"0" * 32 + b"\n",
        b"PIECEWORK-RELAY/1 join " + b"0" * 39 + b"\n",
        encode_opening(Join(OPERATOR.address)) + b"early",
        b"P" * 4096,
        hello_of(context(), "www.example.org"),
    ],
)
async def test_what_is_neither_a_worker_nor_a_client_is_hung_up_on(
    relay: RunningRelay, first: bytes
) -> None:
    wire = await Wire.dial(relay, first)
    assert await wire.rest() in (b"", UNRECOGNIZED_NAME)


async def test_a_silent_connection_and_an_unfinished_hello_are_cut_off(chain: FakeChain) -> None:
    async with running_relay(chain, replace(LIMITS, opening_s=0.05)) as relay:
        for first in (b"", HELLO[:-1], b"PIECEWORK-RELAY/1 ", encode_opening(Join(OTHER.address))):
            wire = await Wire.dial(relay, first)
            await wire.rest()


async def test_a_client_that_its_worker_never_takes_is_cut_off(chain: FakeChain) -> None:
    async with running_relay(chain, replace(LIMITS, take_s=0.05)) as relay:
        worker = await joined(relay)
        client = await Wire.dial(relay, HELLO)
        incoming = await worker.hear()
        assert await client.rest() == b""
        assert isinstance(incoming, Incoming)
        late = await Wire.dial(relay, encode_opening(Take(incoming.token)))
        assert await late.rest() == b""
        assert relay.relay.counts["no_such_token"] == 1


async def test_a_client_that_its_worker_declines_is_cut_off(relay: RunningRelay) -> None:
    worker = await joined(relay)
    client = await Wire.dial(relay, HELLO)
    incoming = await worker.hear()
    assert isinstance(incoming, Incoming)
    worker.say(ClientDeclined(incoming.token))
    assert await client.rest() == b""


async def test_a_token_is_good_for_one_connection(relay: RunningRelay) -> None:
    worker = await joined(relay)
    client = await Wire.dial(relay, HELLO)
    incoming = await worker.hear()
    assert isinstance(incoming, Incoming)
    opening = encode_opening(Take(incoming.token))
    first = await Wire.dial(relay, opening)
    await first.reader.readexactly(len(HELLO))
    assert await (await Wire.dial(relay, opening)).rest() == b""
    client.close()


async def test_one_client_address_gets_a_quarter_of_a_workers_clients(chain: FakeChain) -> None:
    async with running_relay(chain, replace(LIMITS, clients_per_worker=8)) as relay:
        worker = await joined(relay)
        clients = [await Wire.dial(relay, HELLO) for _ in range(3)]
        assert [type(await worker.hear()) for _ in range(2)] == [Incoming, Incoming]
        assert await clients[2].rest() == UNRECOGNIZED_NAME
        assert relay.relay.counts["worker_address"] == 1


async def test_a_few_addresses_do_not_keep_others_from_a_worker(chain: FakeChain) -> None:
    async with running_relay(chain, replace(LIMITS, clients_per_worker=8)) as relay:
        worker = await joined(relay)
        held = [await Wire.dial(relay, HELLO, source=f"127.0.0.{n // 2 + 2}") for n in range(8)]
        for _ in held:
            await worker.hear()
        await Wire.dial(relay, HELLO, source="127.0.0.9")
        incoming = await worker.hear()
        assert isinstance(incoming, Incoming) and incoming.peer == "127.0.0.9"
        await until(lambda: relay.relay.clients == 8)
        # One of two each is all that an address may lose to others with one.
        for number in range(10, 16):
            await Wire.dial(relay, HELLO, source=f"127.0.0.{number}")
        await until(lambda: relay.relay.counts["worker_total"] == 3)


async def test_a_flood_of_one_workers_clients_is_slowed_down_and_no_other_workers(
    chain: FakeChain,
) -> None:
    """From many addresses, so that no bound of one address holds it."""
    from tests.support.clock import FakeClock

    limits = replace(LIMITS, clients_per_worker=1024, waiting_per_worker=1024)
    clock = FakeClock(SystemClock().wall())
    async with running_relay(chain, limits, clock=clock) as relay:
        flooded, other = await joined(relay), await joined(relay, OTHER)
        burst = int(WORKER_CLIENTS_BURST)
        for number in range(burst + 40):
            await Wire.dial(relay, HELLO, source=f"127.0.{number % 40 + 1}.2")
        await until(lambda: relay.relay.counts["worker_rate_total"] == 40)
        assert relay.relay.clients == burst
        client = await Wire.dial(relay, hello_of(context(), server_name(OTHER.address)))
        assert isinstance(await other.hear(), Incoming), "the other worker has its own rate"
        client.close()
        # A link of its own is no new rate.
        again = await joined(relay)
        late = await Wire.dial(relay, HELLO, source="127.0.99.2")
        assert await late.rest() == UNRECOGNIZED_NAME
        flooded.close()
        again.close()


async def test_one_workers_clients_fill_no_relay_so_that_others_find_no_place(
    chain: FakeChain,
) -> None:
    narrow = replace(LIMITS, connections=ConnectionLimits(32, 32, opened_burst=10_000))
    async with running_relay(chain, narrow) as relay:
        full, other = await joined(relay), await joined(relay, OTHER)
        most = relay.relay.most_clients
        assert most == (32 - 4 - 2) // 2
        held = [await Wire.dial(relay, HELLO, source=f"127.0.{number}.2") for number in range(most)]
        await until(lambda: relay.relay.clients == most)
        refused = await Wire.dial(relay, HELLO, source="127.0.90.2")
        assert await refused.rest() == UNRECOGNIZED_NAME
        assert relay.relay.counts["clients_total"] == 1
        await Wire.dial(relay, hello_of(context(), server_name(OTHER.address)))
        assert isinstance(await other.hear(), Incoming)
        assert await held[0].rest() == b"", "the longest quiet one of the worker that has most"
        assert relay.relay.counts["made_room"] == 1 and relay.relay.clients == most
        full.close()


# --- figures


async def test_the_relay_tells_prometheus_what_it_holds_and_passes_on(relay: RunningRelay) -> None:
    worker = await joined(relay)
    async with (
        TestClient(TestServer(metrics_application(relay.relay))) as http,
        passed_on(relay, worker) as (client, way),
    ):
        client.writer.write(b"x" * 1000)
        await way.reader.readexactly(1000)
        await (await Wire.dial(relay, hello_of(context(), "www.example.org"))).rest()
        for _ in range(2):  # asked twice, nothing counts twice
            text = await (await http.get("/metrics")).text()
            assert "piecework_relay_workers 1.0" in text
            assert "piecework_relay_clients 1.0" in text
            assert "piecework_relay_joins_total 1.0" in text
            assert "piecework_relay_bytes_total 1000.0" in text
            assert 'piecework_relay_refused_total{reason="no_such_worker"} 1.0' in text
            assert OPERATOR.address.hex() not in text and "127.0.0.1" not in text
        assert (await (await http.get("/health")).json()) == {"status": "ok", "workers": 1}


async def test_a_worker_that_is_slow_to_take_clients_gets_no_more(chain: FakeChain) -> None:
    async with running_relay(chain, replace(LIMITS, waiting_per_worker=1)) as relay:
        worker = await joined(relay)
        await Wire.dial(relay, HELLO)
        await worker.hear()
        second = await Wire.dial(relay, HELLO)
        assert await second.rest() == UNRECOGNIZED_NAME
        assert relay.relay.counts["worker_slow"] == 1


async def test_one_address_has_a_bound_on_its_connections(chain: FakeChain) -> None:
    narrow = replace(LIMITS, connections=ConnectionLimits(64, 2))
    async with running_relay(chain, narrow) as relay:
        kept = [await Wire.dial(relay) for _ in range(2)]
        assert await (await Wire.dial(relay)).rest() == b""
        assert relay.relay.counts["connection_address"] == 1
        for wire in kept:
            wire.close()


async def test_a_workers_own_address_does_not_fill_up_with_its_clients(chain: FakeChain) -> None:
    """A taken client counts for its worker, so the address has room for the next dial."""
    narrow = replace(LIMITS, connections=replace(OPEN, per_address=5))
    async with running_relay(chain, narrow) as relay:
        worker = await joined(relay)
        async with passed_on(relay, worker), passed_on(relay, worker), passed_on(relay, worker):
            assert relay.relay.clients == 3


async def test_a_connection_without_a_byte_is_closed(chain: FakeChain) -> None:
    from tests.support.clock import FakeClock

    clock = FakeClock(SystemClock().wall())
    async with running_relay(chain, replace(LIMITS, idle_s=30.0), clock=clock) as relay:
        worker = await joined(relay)
        async with passed_on(relay, worker) as (client, _):
            clock.advance(31)
            assert await client.rest() == b""
            assert relay.relay.counts["idle"] == 1


async def test_a_reader_that_is_slow_holds_its_writer_back(relay: RunningRelay) -> None:
    worker = await joined(relay)
    async with passed_on(relay, worker) as (client, way):
        client.writer.transport.set_write_buffer_limits(high=0)
        most = 64 * 2**20
        client.writer.write(bytes(most))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.writer.drain(), 0.5)
        got = await asyncio.wait_for(way.reader.readexactly(most), 60)
        assert len(got) == most


# --- what is said


@pytest.mark.parametrize(
    "line",
    [
        RelayChallenge("relay.example:7443", Bytes32(bytes(range(32)))),
        ChallengeAnswer(Timestamp(1_800_000_000), Signature(bytes(65))),
        Admitted(Uint32(256)),
        NotAdmitted("not today", Uint32(30)),
        Incoming(bytes(16), "2001:db8::1"),
        ClientDeclined(bytes(16)),
        Ping(),
    ],
)
def test_every_line_is_read_as_it_was_written(line: RelayLine) -> None:
    assert decode_line(encode_line(line)) == line
    grown = {**json.loads(encode_line(line)), "later": 1}
    assert decode_line(json.dumps(grown).encode()) == line


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"is": []}',
        b'{"is": "toll"}',
        b'{"is": "admitted", "clients": -1}',
        b'{"is": "admitted", "clients": true}',
        b'{"is": "incoming", "token": "00", "peer": "10.0.0.1"}',
        b'{"is": "incoming", "token": "' + b"0" * 32 + b'", "peer": "a host"}',
        b'{"is": "not admitted", "why": "' + b"x" * 201 + b'", "retry_s": 1}',
        b'{"is": "answer", "at": 1, "signature": 5}',
        b'{"is": "ping", "more": "' + b"x" * 1024 + b'"}',
        b"\xff",
    ],
)
def test_a_line_that_is_none_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedInput):
        decode_line(data)


def test_first_lines_are_read_as_they_were_written() -> None:
    for opening in (Join(OPERATOR.address), Take(bytes(range(16))), Dial()):
        assert decode_opening(encode_opening(opening).rstrip(b"\n")) == opening
    with pytest.raises(MalformedInput):
        decode_opening(b"join " + OPERATOR.address.hex().encode())
