"""A worker that listens on no address, behind relays: what it sells, and what it bounds."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import grpc
import pytest

from piecework.base.connections import Refused
from piecework_node.job_port.front import Front, FrontConnection
from piecework_node.job_port.peers import RELAY_RATE, PeerLimits, Peers
from piecework_node.job_port.relays import (
    INCOMING_BURST,
    LINES_BURST,
    RelayAway,
    RelayDeclines,
    RelayLink,
)
from piecework_node.runtime.faults import Code
from piecework_protocol.errors import Refusal
from piecework_protocol.objects import Endpoint, Route
from piecework_protocol.relaying import (
    Admitted,
    ClientDeclined,
    Incoming,
    Join,
    RelayChallenge,
    decode_line,
    decode_opening,
    encode_line,
)
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import Address, Bytes32, Uint32, keccak256
from tests.support.chain.fake_chain import FakeChain
from tests.support.clock import FakeClock
from tests.support.network.relays import FRONT, BehindRelays, RunningRelay, running_relay
from tests.support.node.harness import DOMAIN, OPERATOR
from tests.support.node.served import PEERS, Served, serve_worker
from tests.support.node.wire_client import SERVICE, WireClient
from tests.support.waiting import pass_time, until


@pytest.fixture
def chain() -> FakeChain:
    chain = FakeChain()
    chain.register(OPERATOR.address, Address(bytes(20)))
    return chain


@dataclass
class Behind:
    """A worker, the relay that it joined, and its side of the link."""

    relay: RunningRelay
    served: Served
    links: BehindRelays


@asynccontextmanager
async def behind(
    chain: FakeChain, host: str = "127.0.0.1", peers: PeerLimits = PEERS
) -> AsyncIterator[Behind]:
    """Serve a worker directly and through a relay, which it knows under a host name."""
    async with running_relay(chain) as relay, serve_worker(peers) as served:
        links = BehindRelays(OPERATOR, (f"{host}:{relay.port}",), front=served.front)
        await links.join()
        try:
            yield Behind(relay, served, links)
        finally:
            await links.leave()


def client_of(served: Served, relay: RunningRelay) -> WireClient:
    """The payer, who comes through the relay."""
    payer = served.payer
    return WireClient(
        relay.name,
        DOMAIN,
        payer.signer,
        payer.channel,
        deposit=payer.deposit,
        certificate=served.certificate,
    )


async def test_a_job_through_a_relay_runs_and_is_paid(chain: FakeChain) -> None:
    async with behind(chain) as made:
        served, relay = made.served, made.relay
        assert made.links.relays.endpoints == (Endpoint(Route.RELAYED, relay.name),)
        client = client_of(served, relay)
        result = await served.job(client)
        await client.run(result, drafts=True)
        assert result.acknowledged == len(result.receipts) >= 2
        book = served.harness.journal.books[served.payer.id]
        assert result.amount == book.ledger.cumulative
        await client.close()
        await until(lambda: relay.relay.clients == 0)


async def test_strangers_behind_a_relay_do_not_shut_out_each_other_or_direct_ones(
    chain: FakeChain,
) -> None:
    """All come from one machine here, so the relay names one address. It counts by itself."""
    narrow = PeerLimits(64, 1, 60_000, 60_000)
    async with behind(chain, peers=narrow) as made:
        relayed, direct = client_of(made.served, made.relay), made.served.client()
        held = relayed.grpc.stream_stream(SERVICE + "Run")()
        await until(lambda: made.served.peers.strangers == 1)
        with pytest.raises(grpc.aio.AioRpcError, match="of this address"):
            await relayed.offer()
        assert (await direct.offer()).offer.operator == OPERATOR.address
        held.cancel()
        await relayed.close()
        await direct.close()


async def test_relays_that_go_away_are_told_and_joined_again(chain: FakeChain) -> None:
    async with running_relay(chain) as other:
        async with running_relay(chain) as relay:
            made = BehindRelays(OPERATOR, (relay.name, other.name))
            await made.join()
            assert len(made.relays.endpoints) == 2
        await until(lambda: len(made.relays.endpoints) == 1)
        assert [fault.code for fault in made.board.faults] == [Code.RELAY_AWAY]
        await other.relay.close()
        await until(lambda: Code.UNREACHABLE in [fault.code for fault in made.board.faults])
        assert made.board.stopping is not None
        # An offer needs an address, and these may come back.
        assert len(made.relays.endpoints) == 2
        async with running_relay(chain, port=relay.port):
            await until(lambda: made.board.stopping is None)
            assert made.relays.states[relay.name] == "joined"
        await made.leave()


async def test_a_worker_that_is_not_registered_is_told_so(chain: FakeChain) -> None:
    chain.registered.clear()
    async with behind(chain) as made:
        assert isinstance(made.links.relays.dialers[0].trouble, RelayDeclines)
        assert "no active stake" in made.links.relays.states[made.relay.name]
        assert Code.RELAY_DECLINES in [fault.code for fault in made.links.board.faults]


async def test_a_relay_under_another_name_is_not_given_a_signature(chain: FakeChain) -> None:
    """Else it could pass the signature on, to the relay whose name it is."""
    async with behind(chain, "localhost") as made:
        (said,) = made.links.relays.states.values()
        assert f"calls itself {made.relay.name}" in said
        assert made.relay.relay.workers == 0


@pytest.mark.parametrize(
    "said", [b"", b"\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"{}\n", b"x" * 5000 + b"\n"]
)
async def test_what_is_no_relay_is_left_alone(said: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await reader.readuntil(b"\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        name = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        made = BehindRelays(OPERATOR, (name,))
        await made.join()
        assert isinstance(made.relays.dialers[0].trouble, RelayAway | RelayDeclines)
        await made.leave()


async def test_a_relay_whose_host_is_no_name_ends_nothing() -> None:
    made = BehindRelays(OPERATOR, ("relay..example:7443",))
    await made.join()
    assert "not a name" in made.relays.states["relay..example:7443"]
    await made.leave()


async def test_a_relay_that_floods_its_worker_is_read_slowly() -> None:
    """The worker's clock stands still, so it has no more lines than one burst to read."""
    declined = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal declined
        if decode_opening((await reader.readuntil(b"\n")).rstrip(b"\n")) != Join(OPERATOR.address):
            writer.transport.abort()
            return
        writer.write(encode_line(RelayChallenge(name, Bytes32(bytes(32)))))
        await reader.readuntil(b"\n")
        writer.write(encode_line(Admitted(Uint32(256))))
        for number in range(5 * int(LINES_BURST)):
            token = number.to_bytes(16, "big")
            writer.write(encode_line(Incoming(token, f"10.0.{number % 250}.1")))
        while isinstance(decode_line(await reader.readuntil(b"\n")), ClientDeclined):
            declined += 1

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        name = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        made = BehindRelays(OPERATOR, (name,), clock=FakeClock())
        await made.join()
        await until(lambda: declined >= LINES_BURST - INCOMING_BURST - 1)
        await pass_time(0.5)
        assert declined < LINES_BURST + 10
        await made.leave()


async def test_a_relay_that_reads_nothing_is_left() -> None:
    held: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(
        lambda _, writer: held.append(writer), "127.0.0.1", 0, limit=1
    ) as server:
        port = server.sockets[0].getsockname()[1]
        link = RelayLink(*await asyncio.open_connection("127.0.0.1", port))
        with pytest.raises(RelayAway, match="reads nothing"):
            for _ in range(2_000_000):
                link.say(ClientDeclined(bytes(16)))
        link.close()
        await until(lambda: bool(held))
        held[0].transport.abort()


async def test_a_relay_brings_only_so_many_connections() -> None:
    refused: list[Refused] = []
    front = Front(
        replace(FRONT, of_one_relay=2),
        has_paid=lambda _: False,
        on_refused=refused.append,
        clock=FakeClock(),
    )
    made = [front.admit("relay0", f"10.0.0.{n}") for n in range(3)]
    assert made[0] is not None and made[1] is not None and made[2] is None
    assert refused == [Refused.RELAY]
    assert front.admit("relay1", "10.0.0.1") is not None
    assert front.table.refusal("relay0/10.0.0.2", 0.0) is None
    front.gone(made[0])
    front.gone(made[0])
    assert front.admit("relay0", "10.0.0.9") is not None
    assert front.admit("relay0", "10.0.0.10") is None
    await front.close()


async def test_one_client_behind_a_relay_does_not_keep_the_others_out() -> None:
    front = Front(
        replace(FRONT, of_one_relay=4),
        has_paid=lambda _: False,
        on_refused=lambda _: None,
        clock=FakeClock(),
    )
    held = [front.admit("relay0", "10.0.0.1") for _ in range(4)]
    assert front.admit("relay0", "10.0.0.1") is None
    assert front.admit("relay0", "10.0.0.2") is not None
    first = held[0]
    assert first is not None
    # Its socket is still to come. It is closed as soon as it does.
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: first, sock=ours)
    assert transport.is_closing()
    assert await asyncio.get_running_loop().sock_recv(theirs, 1) == b""
    theirs.close()
    await front.close()


class _Stranger:
    """Makes connections that came through a relay, or directly."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.front = Front(
            FRONT, has_paid=lambda _: False, on_refused=lambda _: None, clock=self.clock
        )

    def connection(self, via: str, address: str) -> FrontConnection:
        return FrontConnection(address, self.front, via)


async def test_a_relay_that_makes_addresses_up_gets_a_quarter_of_the_streams() -> None:
    strangers, peers = _Stranger(), Peers(PeerLimits(16, 16, 60_000, 60_000))
    opened = []
    with pytest.raises(Refusal, match="this relay"):
        for number in range(16):
            connection = strangers.connection("relay0", f"relay0/10.0.0.{number}")
            stream = peers.stream(connection, 0.0)
            stream.__enter__()
            opened.append(stream)
    assert len(opened) == 4
    with peers.stream(strangers.connection("", "192.0.2.1"), 0.0) as direct:
        assert direct.wait_s == 0
    for stream in opened:
        stream.__exit__(None, None, None)
    assert peers.strangers == 0
    await strangers.front.close()


async def test_a_relay_that_makes_addresses_up_has_a_rate_of_its_own() -> None:
    """Who has paid goes on through it, at the rate of its channel."""
    strangers, peers = _Stranger(), Peers(PeerLimits(64, 16, 60, 60_000))
    peers.paid("relay0/192.0.2.7", 0.0)
    waits = []
    for number in range(RELAY_RATE * 12):
        with peers.stream(strangers.connection("relay0", f"relay0/10.0.0.{number}"), 0.0) as s:
            waits.append(s.wait_s)
    assert waits[0] == 0 and waits[-1] > 0
    with peers.stream(strangers.connection("relay0", "relay0/192.0.2.7"), 0.0) as paid:
        assert paid.wait_s == 0
    with peers.stream(strangers.connection("relay1", "relay1/10.0.0.1"), 0.0) as elsewhere:
        assert elsewhere.wait_s == 0
    await strangers.front.close()


async def test_who_asks_too_often_takes_nothing_from_the_others_of_its_relay() -> None:
    strangers, peers = _Stranger(), Peers(PeerLimits(64, 16, 60, 60_000))
    greedy = [strangers.connection("relay0", f"relay0/10.0.0.{n}") for n in range(3)]
    for step in range(200):
        for connection in greedy:
            with peers.stream(connection, 0.1 * step):
                pass
    with peers.stream(strangers.connection("relay0", "relay0/10.0.0.9"), 0.1 * step) as other:
        assert other.wait_s == 0
    await strangers.front.close()


async def test_a_full_relay_makes_room_at_the_cost_of_who_holds_most() -> None:
    strangers, peers = _Stranger(), Peers(PeerLimits(16, 16, 60_000, 60_000))
    greedy = strangers.connection("relay0", "relay0/10.0.0.1")
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: greedy, sock=ours)
    with contextlib.ExitStack() as opened:
        for _ in range(4):
            opened.enter_context(peers.stream(greedy, 0.0))
        other = strangers.connection("relay0", "relay0/10.0.0.2")
        with pytest.raises(Refusal, match="this relay"):
            opened.enter_context(peers.stream(other, 0.0))
        assert transport.is_closing()
    theirs.close()
    await strangers.front.close()


async def test_a_client_of_another_operator_does_not_reach_this_worker(chain: FakeChain) -> None:
    other = LocalSigner(keccak256(b"another operator"))
    async with behind(chain) as made:
        payer = made.served.payer
        client = WireClient(
            made.relay.name,
            DOMAIN,
            payer.signer,
            payer.channel.replace(operator=other.address),
            deposit=payer.deposit,
            certificate=made.served.certificate,
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.offer()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await client.close()
        assert made.relay.relay.counts["no_such_worker"] >= 1
