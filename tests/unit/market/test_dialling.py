"""An index dials for operators with a stake, by their signature, once a minute."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from piecework.base.clock import Clock
from piecework.base.dialling import Dialler, LookupsBusy
from piecework.dialback import BUSY_S, MAX_DIALS, DialBackServer
from piecework.market.server import IndexServer
from piecework_protocol.dialling import (
    MAX_DIAL_BYTES,
    DialRequest,
    decode_dial,
    dial_domain,
    encode_dial,
)
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.objects import Endpoint, Route
from piecework_protocol.signing import LocalSigner, sign
from piecework_protocol.types import Address, Digest, Signature, Timestamp
from tests.support.chain.fake_chain import DOMAIN, EXPLORER, FakeChain
from tests.support.client.client_side import FakeClock
from tests.support.market.databases import an_offer_store
from tests.support.market.offers import offer, operator, receiver
from tests.support.network.tls_listener import tls_listener
from tests.unit.market.test_server import Http, code, post

WORKER, STRANGER = operator("worker"), operator("stranger")
PUBLIC = Domain(8453, DOMAIN.verifying_contract)


async def loopback(host: str, port: int) -> Sequence[str]:
    return ["127.0.0.1"]


async def bonded(operator: Address) -> bool:
    return True


class DiallingIndex:
    """An index whose names all lead to this machine."""

    server: IndexServer
    """While it is served."""

    def __init__(self, folder: Path, domain: Domain = DOMAIN) -> None:
        self.chain, self.clock = FakeChain(domain), FakeClock()
        self.chain.register(WORKER.address, receiver("worker"))
        self._folder, self._domain = folder, domain
        self._serves_by: Clock = self.clock

    def use(self, domain: Domain, clock: Clock) -> None:
        """Serve another market, by another clock."""
        self.chain.domain = self._domain = domain
        self._serves_by = clock

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[web.Application]:
        """Its application, with a database of its own."""
        domain, clock = self._domain, self._serves_by
        dialler = None if domain is PUBLIC else Dialler(public_only=False, resolve=loopback)
        place = self._folder / f"market-{domain.chain_id}.db"
        store = await an_offer_store(place, domain, now=int(clock.wall()))
        self.server = IndexServer(store, self.chain, EXPLORER, clock=clock, dialler=dialler)
        try:
            yield self.server.application()
        finally:
            await store.close()

    def request(
        self,
        *addresses: str,
        key: LocalSigner = WORKER,
        claims: Address | None = None,
        pin: Digest | None = None,
        domain: Domain | None = None,
        late_s: int = 0,
    ) -> bytes:
        request = DialRequest(
            claims or key.address,
            tuple(Endpoint(Route.DIRECT, address) for address in addresses),
            pin or Digest(bytes(32)),
            Timestamp(int(self.clock.wall()) - late_s),
        )
        signed = sign(dial_domain(domain or self.chain.domain), request, key)
        return encode_dial(request, signed)


@asynccontextmanager
async def served(index: DiallingIndex) -> AsyncIterator[Http]:
    async with index.opened() as application, TestClient(TestServer(application)) as http:
        yield http


async def dial(http: Http, data: bytes) -> Any:
    return await http.post("/v1/dial", data=data)


async def test_a_worker_sees_which_of_its_addresses_clients_reach(tmp_path: Path) -> None:
    index = DiallingIndex(tmp_path)
    async with served(index) as http, tls_listener(WORKER.address) as (port, pin, _):
        good, closed = f"worker.example:{port}", "worker.example:1"
        response = await dial(http, index.request(good, closed, pin=pin))
        assert (await response.json())["dialled"] == [
            {"address": good, "outcome": "reached"},
            {"address": closed, "outcome": "no-answer"},
        ]
        text = await (await http.get("/metrics")).text()
        assert 'piecework_market_dials_total{outcome="reached"} 1.0' in text


async def test_an_operator_is_dialled_for_once_a_minute(tmp_path: Path) -> None:
    index = DiallingIndex(tmp_path)
    async with served(index) as http:
        assert (await dial(http, index.request("worker.example:1"))).status == 200
        soon = await dial(http, index.request("worker.example:1", late_s=-1))
        assert (soon.status, await code(soon)) == (429, "rate_limited")
        index.clock.advance(60)
        assert (await dial(http, index.request("worker.example:1"))).status == 200


@pytest.mark.parametrize(
    ("more", "status", "expected"),
    [
        ({"key": STRANGER}, 403, "not_registered"),
        ({"key": STRANGER, "claims": WORKER.address}, 403, "bad_signature"),
        ({"domain": Domain(1, DOMAIN.verifying_contract)}, 403, "bad_signature"),
        ({"late_s": 3600}, 400, "clock_differs"),
        ({"late_s": -3600}, 400, "clock_differs"),
    ],
)
async def test_nobody_else_has_anything_dialled(
    tmp_path: Path, more: dict[str, Any], status: int, expected: str
) -> None:
    index = DiallingIndex(tmp_path)
    async with served(index) as http, tls_listener(WORKER.address) as (port, pin, names):
        declined = await dial(http, index.request(f"worker.example:{port}", pin=pin, **more))
        assert (declined.status, await code(declined)) == (status, expected)
        assert names == []
        allowed = await dial(http, index.request(f"worker.example:{port}", pin=pin))
        assert allowed.status == 200, "the stranger has not used up the operator's rate"


async def test_an_operator_whose_stake_is_gone_is_a_stranger(tmp_path: Path) -> None:
    index = DiallingIndex(tmp_path)
    index.chain.register(WORKER.address, receiver("worker"), active=False)
    async with served(index) as http:
        declined = await dial(http, index.request("worker.example:1"))
        assert (declined.status, await code(declined)) == (403, "not_registered")


async def test_an_index_of_a_public_market_dials_no_private_network(tmp_path: Path) -> None:
    index = DiallingIndex(tmp_path, PUBLIC)
    async with served(index) as http, tls_listener(WORKER.address) as (port, pin, names):
        found = await (await dial(http, index.request(f"127.0.0.1:{port}", pin=pin))).json()
        assert [one["outcome"] for one in found["dialled"]] == ["not-public"]
        assert names == []


async def test_while_the_chain_is_away_nothing_is_dialled(tmp_path: Path) -> None:
    index = DiallingIndex(tmp_path)
    index.chain.away = True
    async with served(index) as http:
        declined = await dial(http, index.request("worker.example:1"))
        assert (declined.status, await code(declined)) == (503, "chain_unavailable")


async def test_too_many_dials_at_once_are_put_off_and_cost_no_rate(tmp_path: Path) -> None:
    index = DiallingIndex(tmp_path)
    async with served(index) as http:
        index.server.dials.under_way = MAX_DIALS
        declined = await dial(http, index.request("worker.example:1"))
        assert (declined.status, await code(declined)) == (503, "dials_busy")
        index.server.dials.under_way = 0
        assert (await dial(http, index.request("worker.example:1"))).status == 200


class BusyFor:
    """Has no place for the first lookups."""

    def __init__(self, lookups: int) -> None:
        self.left = lookups

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.left -= 1
        if self.left >= 0:
            raise LookupsBusy("too many names are being looked up")
        return ["127.0.0.1"]


@asynccontextmanager
async def served_busy(index: DiallingIndex, lookups: int) -> AsyncIterator[Http]:
    async with served(index) as http:
        dialler = Dialler(public_only=False, resolve=BusyFor(lookups))
        index.server.dials = DialBackServer(dialler, DOMAIN, bonded, index.clock)
        yield http


async def test_names_that_were_not_looked_up_are_held_against_nobody(tmp_path: Path) -> None:
    """Names of others may hang. Then nothing is known, and the worker asks again."""
    index = DiallingIndex(tmp_path)
    async with served_busy(index, 1) as http, tls_listener(WORKER.address) as (port, pin, names):
        asked = index.request("worker.example:1", f"127.0.0.1:{port}", pin=pin)
        declined = await dial(http, asked)
        assert (declined.status, await code(declined)) == (503, "dials_busy")
        assert index.server.dials.under_way == 0
        assert names == [], "what is to be free dials nobody"
        index.clock.advance(BUSY_S)
        again = await dial(http, asked)
        assert again.status == 200, "the same request was no answer"
        found = [one["outcome"] for one in (await again.json())["dialled"]]
        assert found == ["no-answer", "reached"]


async def test_a_lookup_without_a_place_costs_no_minute_and_is_not_free_at_once(
    tmp_path: Path,
) -> None:
    index = DiallingIndex(tmp_path)
    async with served_busy(index, 1) as http:
        assert (await dial(http, index.request("worker.example:1"))).status == 503
        index.clock.advance(BUSY_S / 2)
        early = await dial(http, index.request("worker.example:1"))
        assert (early.status, await code(early)) == (429, "rate_limited")
        index.clock.advance(BUSY_S / 2)
        assert (await dial(http, index.request("worker.example:1"))).status == 200
        index.clock.advance(BUSY_S)
        soon = await dial(http, index.request("worker.example:1"))
        assert (soon.status, await code(soon)) == (429, "rate_limited")


GOOD = json.loads(
    encode_dial(
        DialRequest(
            WORKER.address,
            (Endpoint(Route.DIRECT, "a:1"),),
            Digest(bytes(32)),
            Timestamp(1),
        ),
        Signature(bytes(65)),
    )
)


@pytest.mark.parametrize(
    "changes",
    [
        {"endpoints": []},
        {"endpoints": [[0, f"host:{port}"] for port in range(1, 10)]},
        {"endpoints": [[0, "host"]]},
        {"endpoints": [[0, "host:0"]]},
        {"endpoints": [[0, "host:65536"]]},
        {"endpoints": [[0, "host:²"]]},
        {"endpoints": [[9, "host:1"]]},
        {"endpoints": [[0, "h" * 300 + ":1"]]},
        {"endpoints": ["host:1"]},
        {"endpoints": {"0": "host:1"}},
        {"operator": "0x00"},
        {"operator": 7},
        {"tls_certificate": "0x00"},
        {"at": -1},
        {"at": True},
        {"at": "now"},
        {"at": 2**40},
        {"signature": None},
    ],
)
async def test_a_request_that_is_none_is_malformed(tmp_path: Path, changes: dict[str, Any]) -> None:
    data = json.dumps({**GOOD, **changes}).encode()
    with pytest.raises(MalformedInput):
        decode_dial(data)
    async with served(DiallingIndex(tmp_path)) as http:
        declined = await dial(http, data)
        assert (declined.status, await code(declined)) == (400, "malformed")


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{" * 9000, b" " * (MAX_DIAL_BYTES + 1)])
def test_other_bytes_are_no_request_either(data: bytes) -> None:
    with pytest.raises(MalformedInput):
        decode_dial(data)


async def test_an_index_says_whether_readers_see_the_offer(tmp_path: Path) -> None:
    index = DiallingIndex(tmp_path)
    place = f"/v1/offers/0x{WORKER.address.hex()}"
    async with served(index) as http:
        await post(http, offer())
        assert (await (await http.get(place)).json())["listed"] is True
        index.clock.advance(301)
        assert (await (await http.get(place)).json())["listed"] is False
