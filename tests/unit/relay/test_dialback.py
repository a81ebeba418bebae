"""A relay dials for operators with a stake, by their signature, once a minute (clause 2.8)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from piecework.base.clock import SystemClock
from piecework.base.connections import ConnectionLimits
from piecework.base.dialling import Dialler
from piecework.relay.limits import JOINS_BURST
from piecework.relay.metrics import metrics_application
from piecework_node.job_port.relays import RelayAway, ask_to_dial
from piecework_protocol.dialling import MAX_DIAL_BYTES, DialRequest, dial_domain, encode_dial
from piecework_protocol.eip712 import Domain
from piecework_protocol.objects import Endpoint, Route
from piecework_protocol.relaying import Dial, Join, encode_opening
from piecework_protocol.signing import LocalSigner, sign
from piecework_protocol.types import Address, Digest, Timestamp
from tests.support.chain.fake_chain import DOMAIN, FakeChain
from tests.support.clock import FakeClock
from tests.support.market.offers import operator, receiver
from tests.support.network.relays import LIMITS, OPEN, RunningRelay, running_relay
from tests.support.network.tls_listener import tls_listener
from tests.support.waiting import until
from tests.unit.relay.test_relay import Wire

WORKER, STRANGER = operator("worker"), operator("stranger")


async def loopback(host: str, port: int) -> Sequence[str]:
    return ["127.0.0.1"]


LOCAL = Dialler(public_only=False, resolve=loopback)


@pytest.fixture
def chain() -> FakeChain:
    chain = FakeChain()
    chain.register(WORKER.address, receiver("worker"))
    return chain


def request(
    *addresses: str,
    key: LocalSigner = WORKER,
    claims: Address | None = None,
    pin: Digest | None = None,
    domain: Domain = DOMAIN,
    late_s: int = 0,
) -> bytes:
    asked = DialRequest(
        claims or key.address,
        tuple(Endpoint(Route.DIRECT, address) for address in addresses),
        pin or Digest(bytes(32)),
        Timestamp(int(SystemClock().wall()) - late_s),
    )
    return encode_dial(asked, sign(dial_domain(domain), asked, key))


async def answer(relay: RunningRelay, data: bytes) -> Any:
    return json.loads(await ask_to_dial(relay.name, data))


async def code(relay: RunningRelay, data: bytes) -> str:
    return str((await answer(relay, data))["error"]["code"])


async def test_a_worker_sees_which_of_its_addresses_clients_reach(chain: FakeChain) -> None:
    async with (
        running_relay(chain, dialler=LOCAL) as relay,
        tls_listener(WORKER.address) as (port, pin, _),
        TestClient(TestServer(metrics_application(relay.relay))) as http,
    ):
        good, closed = f"worker.example:{port}", "worker.example:1"
        found = await answer(relay, request(good, closed, pin=pin))
        assert found["dialled"] == [
            {"address": good, "outcome": "reached"},
            {"address": closed, "outcome": "no-answer"},
        ]
        text = await (await http.get("/metrics")).text()
        assert 'piecework_relay_dials_total{outcome="reached"} 1.0' in text
        await until(lambda: relay.relay.connections == 0)


async def test_an_operator_is_dialled_for_once_a_minute(chain: FakeChain) -> None:
    clock = FakeClock(SystemClock().wall())
    async with running_relay(chain, dialler=LOCAL, clock=clock) as relay:
        assert "dialled" in await answer(relay, request("worker.example:1"))
        assert await code(relay, request("worker.example:1", late_s=-1)) == "rate_limited"
        clock.advance(60)
        assert "dialled" in await answer(relay, request("worker.example:1", late_s=-60))


async def test_who_plays_a_request_again_elsewhere_takes_no_dial_from_its_worker(
    chain: FakeChain,
) -> None:
    """A worker sends one request to all indexes, and any of them may hand it to the others."""
    clock = FakeClock(SystemClock().wall())
    async with (
        running_relay(chain, dialler=LOCAL, clock=clock) as relay,
        tls_listener(WORKER.address) as (port, pin, names),
    ):
        asked = request(f"worker.example:{port}", pin=pin)
        played, own = await asyncio.gather(answer(relay, asked), answer(relay, asked))
        assert own == played and own["dialled"][0]["outcome"] == "reached"
        assert await answer(relay, asked) == own
        assert len(names) == 1, "it is dialled for once"

        clock.advance(60)
        later = request(f"worker.example:{port}", pin=pin, late_s=-60)
        assert await code(relay, asked) == "clock_differs"
        assert (await answer(relay, later))["dialled"][0]["outcome"] == "reached"
        assert len(names) == 2


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"key": STRANGER}, "not_registered"),
        ({"key": STRANGER, "claims": WORKER.address}, "bad_signature"),
        ({"domain": Domain(1, DOMAIN.verifying_contract)}, "bad_signature"),
        ({"late_s": 3600}, "clock_differs"),
        ({"late_s": -3600}, "clock_differs"),
    ],
)
async def test_nobody_else_has_anything_dialled(
    chain: FakeChain, more: dict[str, Any], expected: str
) -> None:
    async with (
        running_relay(chain, dialler=LOCAL) as relay,
        tls_listener(WORKER.address) as (port, pin, names),
    ):
        assert await code(relay, request(f"worker.example:{port}", pin=pin, **more)) == expected
        assert names == [] and relay.relay.counts[f"dial_{expected}"] == 1
        found = await answer(relay, request(f"worker.example:{port}", pin=pin))
        assert found["dialled"][0]["outcome"] == "reached", "the rate is not used up"


async def test_a_relay_of_a_public_market_dials_no_private_network(chain: FakeChain) -> None:
    async with (
        running_relay(chain, dialler=Dialler(public_only=True, resolve=loopback)) as relay,
        tls_listener(WORKER.address) as (port, pin, names),
    ):
        found = await answer(relay, request(f"worker.example:{port}", pin=pin))
        assert found["dialled"][0]["outcome"] == "not-public" and names == []


async def test_while_the_chain_is_away_nothing_is_dialled(chain: FakeChain) -> None:
    chain.away = True
    async with running_relay(chain, dialler=LOCAL) as relay:
        assert await code(relay, request("worker.example:1")) == "chain_unavailable"


async def test_what_is_no_request_is_answered_or_hung_up_on(chain: FakeChain) -> None:
    async with running_relay(chain, replace(LIMITS, opening_s=0.2), dialler=LOCAL) as relay:
        assert await code(relay, b"[]") == "malformed"
        opening = encode_opening(Dial())
        for rest in (b"", b"half a line", b" " * (2 * MAX_DIAL_BYTES)):
            assert await (await Wire.dial(relay, opening + rest)).rest() == b""
        await until(lambda: relay.relay.counts["bad_dial"] == 3)
        early = await Wire.dial(relay, encode_opening(Join(WORKER.address)) + b"early")
        assert await early.rest() == b"", "only a request to dial may follow its first line"


async def test_a_request_may_come_in_pieces(chain: FakeChain) -> None:
    async with running_relay(chain, dialler=LOCAL) as relay:
        data = encode_opening(Dial()) + request("worker.example:1") + b"\n"
        wire = await Wire.dial(relay)
        for place in range(0, len(data), 97):
            wire.writer.write(data[place : place + 97])
            await wire.writer.drain()
            await asyncio.sleep(0)
        assert b"no-answer" in await wire.rest()


async def test_an_address_that_asks_too_often_is_cut_off(chain: FakeChain) -> None:
    limits = replace(LIMITS, connections=replace(OPEN, per_address=256))
    async with running_relay(chain, limits, dialler=LOCAL) as relay:
        for _ in range(int(JOINS_BURST)):
            assert await code(relay, b"{}") == "malformed"
        with pytest.raises(RelayAway):
            await ask_to_dial(relay.name, b"{}")
        assert relay.relay.counts["dial_rate"] == 1


async def test_a_relay_that_is_away_or_answers_without_end_is_said_to_be(chain: FakeChain) -> None:
    narrow = replace(LIMITS, connections=ConnectionLimits(64, 1))
    async with running_relay(chain, narrow) as relay:
        held = await Wire.dial(relay)
        with pytest.raises(RelayAway):
            await ask_to_dial(relay.name, b"{}")
        held.close()
    with pytest.raises(RelayAway):
        await ask_to_dial(relay.name, b"{}")

    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 2**20)

    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    async with server:
        with pytest.raises(RelayAway, match="hung up"):
            await ask_to_dial(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", b"{}")
