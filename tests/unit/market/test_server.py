"""The index over HTTP: what it takes, what it declines and why, what it shows."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession, TCPConnector, web
from aiohttp.test_utils import TestClient, TestServer

from piecework.base.connections import ConnectionLimits, parse_networks
from piecework.base.http_server import HttpServer, serving
from piecework.market.errors import OfferStoreError
from piecework.market.limits import ADDRESS_READ_BURST, OPERATOR_POST_BURST
from piecework.market.offer_store import OfferStore
from piecework.market.server import IndexServer
from piecework.market.storage.database import open_database
from piecework_node.keys.tls import create_tls
from piecework_protocol import wire
from piecework_protocol.eip712 import Domain
from piecework_protocol.objects import Endpoint, Route, Service
from piecework_protocol.types import (
    Address,
    Amount,
    Digest,
    Timestamp,
    Uint32,
    Uint64,
    keccak256,
    to_hex,
)
from piecework_protocol.usual import MEMBER, Source, UsualJobs
from tests.support.chain.fake_chain import EXPLORER, TOKEN, FakeChain
from tests.support.client.client_side import FakeClock
from tests.support.market.databases import an_offer_store
from tests.support.market.offers import model, offer, operator, receiver

Http = TestClient[Any, Any]


class Index:
    """A running index with a clock and a chain of its own."""

    def __init__(self, place: Path | str) -> None:
        self.chain, self.clock = FakeChain(), FakeClock()
        for name in ("worker", "other", "third"):
            self.chain.register(operator(name).address, receiver(name))
        self.place = place
        self.stores: list[OfferStore] = []

    async def market(self, *trusted: str) -> IndexServer:
        store = await an_offer_store(self.place, self.chain.domain, now=self.clock.now())
        self.stores.append(store)
        return IndexServer(
            store,
            self.chain,
            EXPLORER,
            clock=self.clock,
            trusted_proxies=parse_networks(trusted),
        )


@pytest.fixture
async def index(place: Path | str) -> AsyncIterator[Index]:
    running = Index(place)
    yield running
    for store in running.stores:
        await store.close()


@pytest.fixture
async def http(index: Index) -> AsyncIterator[Http]:
    async with TestClient(TestServer((await index.market()).application())) as client:
        yield client


async def post(http: Http, signed: wire.SignedOffer | bytes) -> ClientResponse:
    data = signed if isinstance(signed, bytes) else wire.encode_offer(signed)
    return await http.post(
        "/v1/offers", data=data, headers={"Content-Type": "application/x-protobuf"}
    )


async def code(response: ClientResponse) -> str:
    return str((await response.json())["error"]["code"])


# --- publishing


async def test_an_offer_is_listed_with_the_bytes_that_were_signed(http: Http) -> None:
    signed = offer()
    response = await post(http, signed)
    assert response.status == 201
    page = await (await http.get("/v1/offers")).json()
    (row,) = page["offers"]
    assert wire.decode_offer(base64.b64decode(row["signed_offer"])) == signed
    assert row["operator"] == to_hex(operator("worker").address)
    assert row["models"][0]["tokens_per_second"] == 500


async def test_the_same_offer_again_is_fine_and_an_older_one_is_not(http: Http) -> None:
    assert (await post(http, offer(sequence=Uint64(5)))).status == 201
    assert (await post(http, offer(sequence=Uint64(5)))).status == 200
    stale = await post(http, offer(sequence=Uint64(4)))
    other = await post(http, offer(sequence=Uint64(5), slots_free=Uint32(0)))
    assert (stale.status, await code(stale)) == (409, "stale_sequence")
    assert (other.status, await code(other)) == (409, "stale_sequence")
    assert (await post(http, offer(sequence=Uint64(6)))).status == 201


async def test_an_old_offer_cannot_come_back_after_a_restart_or_an_expiry(index: Index) -> None:
    async with TestClient(TestServer((await index.market()).application())) as first:
        await post(first, offer(sequence=Uint64(9)))
    async with TestClient(TestServer((await index.market()).application())) as second:
        assert len((await (await second.get("/v1/offers")).json())["offers"]) == 1
        index.clock.advance(301)
        assert (await (await second.get("/v1/offers")).json())["offers"] == []
        stale = await post(second, offer(now=index.clock.now(), sequence=Uint64(9)))
        assert await code(stale) == "stale_sequence"


@pytest.mark.parametrize(
    ("signed", "status", "expected"),
    [
        (b"\xff\xff", 400, "malformed"),
        (b"", 400, "malformed"),
        (b"\x00" * (65 * 1024), 413, "body_too_large"),
        (offer(now=1_799_999_000), 400, "expired"),
        (offer(now=1_800_000_100), 400, "not_yet_valid"),
        (offer(expires_at=1_800_000_000 + 7200), 400, "bad_terms"),
        (offer(models=()), 400, "bad_terms"),
        (offer(models=(model(), model())), 400, "bad_terms"),
        (offer(models=(model(canvas_size=Uint32(0)),)), 400, "bad_terms"),
        (offer(sequence=Uint64(2**63)), 400, "malformed"),
        (offer(signer=operator("other")), 403, "bad_signature"),
        (offer(domain=Domain(1, Address(bytes(20)))), 403, "bad_signature"),
        (offer("stranger"), 403, "not_registered"),
        (offer(receiver=receiver("other")), 403, "wrong_receiver"),
    ],
)
async def test_what_is_declined_says_why(
    http: Http, signed: Any, status: int, expected: str
) -> None:
    response = await post(http, signed)
    assert (response.status, await code(response)) == (status, expected)
    assert (await (await http.get("/v1/offers")).json())["offers"] == []


async def test_a_worker_without_active_stake_is_declined(index: Index, http: Http) -> None:
    index.chain.register(operator("worker").address, receiver("worker"), active=False)
    response = await post(http, offer())
    assert (response.status, await code(response)) == (403, "not_bonded")


async def test_a_registered_session_key_may_sign(index: Index, http: Http) -> None:
    index.chain.session_keys.add((operator("worker").address, operator("hot").address))
    assert (await post(http, offer(signer=operator("hot")))).status == 201


async def test_a_chain_that_is_away_is_said_and_nothing_is_listed(index: Index, http: Http) -> None:
    index.chain.away = True
    response = await post(http, offer())
    assert (response.status, await code(response)) == (503, "chain_unavailable")
    assert response.headers["Retry-After"]


async def test_an_operator_that_posts_too_often_waits_and_a_forger_cannot_use_up_its_rate(
    http: Http,
) -> None:
    for _ in range(OPERATOR_POST_BURST + 5):
        assert (await post(http, offer(signer=operator("forger")))).status == 403
    for sequence in range(1, OPERATOR_POST_BURST + 1):
        assert (await post(http, offer(sequence=Uint64(sequence)))).status == 201
    response = await post(http, offer(sequence=Uint64(99)))
    assert (response.status, await code(response)) == (429, "rate_limited")


async def test_an_address_that_reads_too_often_waits(http: Http) -> None:
    for _ in range(ADDRESS_READ_BURST):
        assert (await http.get("/v1/workers")).status == 200
    assert (await http.get("/v1/workers")).status == 429
    assert (await http.get("/health")).status == 200


@asynccontextmanager
async def tls_proxy(port: int) -> AsyncIterator[str]:
    """A proxy that ends TLS in front of a port, as nginx does; its own address."""
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = create_tls(Address(bytes(20)), Timestamp(int(time.time())))
        pem = Path(folder) / "both.pem"
        pem.write_bytes(certificate + key)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(pem)
    async with ClientSession() as upstream:

        async def forward(request: web.Request) -> web.Response:
            seen = {"X-Forwarded-For": request.remote or ""}
            async with upstream.get(f"http://127.0.0.1:{port}{request.path}", headers=seen) as got:
                return web.Response(status=got.status, body=await got.read())

        app = web.Application()
        app.router.add_get("/{path:.*}", forward)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        try:
            yield f"https://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


async def read_from(source: str, url: str) -> int:
    """The status of one read by a client at an address of this machine."""
    connector = TCPConnector(local_addr=(source, 0), ssl=False)
    async with ClientSession(connector=connector) as session, session.get(url) as answer:
        return answer.status


@pytest.mark.parametrize(("trusted", "status"), [((), 429), (("127.0.0.1",), 200)])
async def test_clients_behind_a_tls_proxy_that_is_trusted_count_by_their_own_address(
    index: Index, trusted: tuple[str, ...], status: int
) -> None:
    market = await index.market(*trusted)
    server = HttpServer(
        market.application(),
        ConnectionLimits(64, 64, trusted=parse_networks(trusted)),
        on_refused=market.metrics.connection_refused,
    )
    async with serving(server, "127.0.0.1", 0) as bound, tls_proxy(bound.port) as url:
        busy = "127.0.0.2" if trusted else "127.0.0.3"
        for _ in range(ADDRESS_READ_BURST):
            assert await read_from(busy, url + "/v1/workers") == 200
        assert await read_from("127.0.0.4", url + "/v1/workers") == status
        assert await read_from(busy, url + "/v1/workers") == 429


class SetBackClock(FakeClock):
    """A clock whose wall time somebody sets back by an hour, while time passes."""

    def set_back(self) -> None:
        self._now -= 3600
        self._start -= 3600 + 60


async def test_a_clock_that_is_set_back_locks_no_reader_out(index: Index) -> None:
    clock = index.clock = SetBackClock()
    async with TestClient(TestServer((await index.market()).application())) as http:
        for _ in range(ADDRESS_READ_BURST):
            assert (await http.get("/v1/models")).status == 200
        assert (await http.get("/v1/models")).status == 429
        clock.set_back()
        assert (await http.get("/v1/models")).status == 200


async def test_a_database_of_another_chain_is_refused(place: Path | str) -> None:
    await (await an_offer_store(place, Domain(1, Address(bytes(20))))).close()
    database = await open_database(place)
    with pytest.raises(OfferStoreError, match="made for chain 1, not 2"):
        await OfferStore.open(database, Domain(2, Address(bytes(20))), TOKEN, Timestamp(0))
    await database.close()


# --- reading


@pytest.fixture
async def full(http: Http) -> Http:
    cheap = model(
        "cheap", price_per_million_output_tokens=Amount(1_000_000), tokens_per_second=Uint32(100)
    )
    fast = model(
        "fast", price_per_million_output_tokens=Amount(9_000_000), tokens_per_second=Uint32(2000)
    )
    await post(http, offer("worker"))
    await post(http, offer("other", models=(cheap,)))
    await post(http, offer("third", models=(fast, model())))
    return http


async def listed(http: Http, query: str) -> list[str]:
    page = await (await http.get(f"/v1/offers{query}")).json()
    names = {to_hex(operator(n).address): n for n in ("worker", "other", "third")}
    return [names[row["operator"]] for row in page["offers"]]


async def test_lists_are_sorted_filtered_and_cut(full: Http) -> None:
    by_address = sorted(("worker", "third"), key=lambda n: operator(n).address)
    assert await listed(full, "") == ["other", *by_address]
    assert (await listed(full, "?sort=speed"))[0] == "third"
    assert await listed(full, "?model=cheap") == ["other"]
    assert await listed(full, "?model=" + to_hex(Digest(keccak256(b"fast")))) == ["third"]
    assert await listed(full, "?min_speed=1500") == ["third"]
    assert await listed(full, "?max_price=1500000") == ["other"]
    assert await listed(full, "?limit=1") == ["other"]
    assert await listed(full, "?limit=2&offset=1") == by_address
    assert await listed(full, "?offset=3") == []
    assert await listed(full, "?model=none") == []


@pytest.mark.parametrize(
    "query",
    ["?sort=name", "?limit=-1", "?limit=99999", "?offset=-1", "?min_speed=x", "?colour=red"],
)
async def test_a_bad_query_is_named(http: Http, query: str) -> None:
    response = await http.get("/v1/offers" + query)
    assert response.status == 400
    assert (await code(response)).endswith("parameter")


async def test_models_are_grouped_by_digest(full: Http) -> None:
    models = (await (await full.get("/v1/models")).json())["models"]
    assert (models[0]["names"], models[0]["workers"]) == (["tale-1"], 2)
    assert {m["names"][0] for m in models} == {"tale-1", "cheap", "fast"}


async def test_lists_and_page_show_the_class_of_service_and_filter_by_it(http: Http) -> None:
    loose = model(
        "loose",
        service=Service.BEST_EFFORT,
        max_steps=Uint32(0),
        price_per_thousand_steps=Amount(0),
    )
    await post(http, offer("worker", models=(loose,)))
    await post(http, offer("other"))
    page = await (await http.get("/v1/offers?service=best_effort")).json()
    assert [m["service"] for row in page["offers"] for m in row["models"]] == ["best_effort"]
    models = (await (await http.get("/v1/models")).json())["models"]
    assert sorted(m["services"] for m in models) == [["best_effort"], ["replayable"]]
    shown = await (await http.get("/")).text()
    assert ">best effort</span>" in shown and ">replayable</span>" in shown
    only = await (await http.get("/?service=replayable")).text()
    assert ">best effort</span>" not in only
    assert (await http.get("/v1/offers?service=perfect")).status == 400


async def test_workers_say_how_long_their_offer_lives(index: Index, full: Http) -> None:
    index.clock.advance(100)
    workers = (await (await full.get("/v1/workers")).json())["workers"]
    assert [w["expires_in_s"] for w in workers] == [200, 200, 200]


async def test_metrics_count_offers_and_refusals(full: Http) -> None:
    await post(full, b"\xff")
    text = await (await full.get("/metrics")).text()
    assert "piecework_market_offers 3.0" in text
    assert "piecework_market_offers_accepted_total 3.0" in text
    assert 'piecework_market_declined_total{code="malformed"} 1.0' in text


# --- the page


class Outline(HTMLParser):
    """The elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "action")]


async def test_the_page_lists_everything_and_loads_nothing_from_elsewhere(full: Http) -> None:
    response = await full.get("/")
    text = await response.text()
    outline = Outline(text)
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in response.headers["Content-Security-Policy"]
    assert outline.tags.count("script") == 1
    assert all(source.startswith("/") for source in outline.sources)
    for expected in ("tale-1", "cheap", "fast", "9.00", "2,000", "1 of 2 free", "5 min"):
        assert expected in text
    assert (
        outline.tags.count("caption") == outline.tags.count("table") == 3
    )  # workers, offers, and the figures of the charts
    assert 'lang="en"' in text
    assert "prefers-color-scheme: dark" in text


async def test_the_price_with_steps_is_shown_with_its_source_and_moves_no_order(
    http: Http,
) -> None:
    said = UsualJobs(4_000, 8_000, 120, 90, Source.RECEIPTS)
    boast = offer("other", details=json.dumps({MEMBER: [said.members()]}))
    await post(http, boast)
    await post(http, offer("worker"))
    text = await (await http.get("/")).text()
    assert "2.004 <small>120 receipts</small>" in text
    assert "nine of ten jobs under 2.008, by 120 of its receipts; at 27 steps 2.105468" in text
    assert "2.105468 <small>estimate</small>" in text
    assert "estimate, at 27 steps a canvas" in text
    assert 'title="tale-1, fake gpu"' in text
    rows = (await (await http.get("/v1/offers")).json())["offers"]
    first = min(("worker", "other"), key=lambda n: operator(n).address)
    assert rows[0]["operator"] == to_hex(operator(first).address)
    measured = {row["operator"]: row["models"][0]["measured"] for row in rows}
    assert measured[to_hex(operator("other").address)] == {
        "price_per_million_output_tokens": {"p50": 2_004_000, "p90": 2_008_000},
        "jobs": 120,
        "source": "receipts",
    }
    assert measured[to_hex(operator("worker").address)]["source"] == "assumed"
    assert rows[0]["models"][0]["kinds"] == ["text"]


async def test_what_a_worker_writes_is_shown_as_text(http: Http) -> None:
    hostile = "<script>alert(1)</script>\"'&"
    details = '{"a": NaN}'
    evil = offer(
        models=(model(hostile, profile=hostile),),
        endpoints=(Endpoint(Route.DIRECT, hostile),),
        details=details,
    )
    assert (await post(http, evil)).status == 201
    text = await (await http.get("/")).text()
    assert text.count("<script") == 1  # ours, which the policy names by its hash
    assert "alert(1)</script>" not in text
    assert "&lt;script&gt;" in text
    assert (await (await http.get("/v1/offers")).json())["offers"][0]["details"] == {}
