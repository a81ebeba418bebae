"""The explorer's pages: what they show of a market, a worker, its money and its past."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from piecework.market.errors import Declined
from piecework.market.explorer.layout import Money
from piecework.market.explorer.offers import MAX_SHOWN_MODELS, MAX_SHOWN_OFFERS
from piecework.market.limits import SAMPLE_INTERVAL_S
from piecework.market.offer_store import OfferStore
from piecework.market.server import ExplorerSettings, IndexServer
from piecework.market.settlements import catch_up
from piecework_protocol.limits import MAX_OFFER_MODELS
from piecework_protocol.objects import Endpoint, Route
from piecework_protocol.types import (
    Amount,
    Digest,
    Timestamp,
    Uint32,
    Uint64,
    address_hex,
    keccak256,
    to_hex,
)
from piecework_protocol.wire import encode_offer
from tests.support.chain.fake_chain import DOMAIN, TOKEN_INFO, FakeChain
from tests.support.client.client_side import FakeClock
from tests.support.market.databases import an_offer_store
from tests.support.market.offers import model, offer, operator, receiver
from tests.unit.market.test_history import channel, opened, settled

Http = TestClient[Any, Any]
NAMES = ("worker", "other", "third")
WORKER = to_hex(operator("worker").address)


class Shown(HTMLParser):
    """The words of a page and its links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: dict[str, str] = {}
        self.words: list[str] = []
        self._link: str | None = None
        self.feed(text.split("<script>", maxsplit=1)[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._link = dict(attrs).get("href") if tag == "a" else self._link

    def handle_endtag(self, tag: str) -> None:
        self._link = None if tag == "a" else self._link

    def handle_data(self, data: str) -> None:
        self.words += data.split()
        if self._link is not None:
            self.links[data.strip()] = self._link

    @property
    def text(self) -> str:
        return " ".join(self.words)


class Explorer:
    """An index of three workers with a past."""

    def __init__(self, store: OfferStore, settings: ExplorerSettings) -> None:
        self.chain, self.clock, self.store = FakeChain(), FakeClock(), store
        for name in NAMES:
            self.chain.register(operator(name).address, receiver(name))
        self.server = IndexServer(self.store, self.chain, settings, clock=self.clock)

    async def fill(self) -> None:
        now = int(self.clock.wall())
        for name in NAMES:
            await self.server.accept(encode_offer(offer(name, now)))
        await self.store.record(Timestamp(now))
        terms = channel("worker", 1)
        self.chain.events = [opened(1, terms), settled(2, terms, 1_500_000)]
        self.chain.final_block = 2
        await catch_up(self.store.history, self.chain)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[OfferStore]:
    opened = await an_offer_store(tmp_path / "market.db", DOMAIN)
    yield opened
    await opened.close()


@pytest.fixture
async def explorer(store: OfferStore) -> Explorer:
    money = Money(TOKEN_INFO, Decimal(2))
    made = Explorer(store, ExplorerSettings(money, "https://i.example", "https://s/tx/{}"))
    await made.fill()
    return made


@pytest.fixture
async def http(explorer: Explorer) -> AsyncIterator[Http]:
    async with TestClient(TestServer(explorer.server.application())) as client:
        yield client


async def shown(http: Http, path: str) -> Shown:
    response = await http.get(path)
    assert response.status == 200
    return Shown(await response.text())


async def test_the_market_is_shown_in_tokens_and_in_dollars_that_the_operator_set(
    http: Http,
) -> None:
    page = await shown(http, "/")
    for expected in ("3 workers", "3 of 6 free slots", "1.50 $3.00 tUSDC settled", "1 payment on"):
        assert expected in page.text
    assert "--index https://i.example" in page.text
    assert "1 token is $2" in page.text


async def test_nobody_is_believed_about_dollars(store: OfferStore) -> None:
    plain = Explorer(store, ExplorerSettings(Money(TOKEN_INFO)))
    await plain.fill()
    async with TestClient(TestServer(plain.server.application())) as http:
        assert "$" not in (await shown(http, "/")).text


async def test_dollars_of_a_marked_descriptor_are_named_as_such(store: OfferStore) -> None:
    marked = Explorer(store, ExplorerSettings(Money(TOKEN_INFO, Decimal(1), marked=True)))
    await marked.fill()
    async with TestClient(TestServer(marked.server.application())) as http:
        text = (await shown(http, "/")).text
    assert "dollars as the market's descriptor says (1 token is $1)" in text


async def test_a_newcomer_finds_the_deployment_and_the_line_that_joins(store: OfferStore) -> None:
    files = {"/deployment.json": b"{}", "/market.json": b'{"a":1}', "/market.json.sig": b"0x"}
    key = operator("who signs a market").address
    money = Money(TOKEN_INFO)
    without = ExplorerSettings(money, "https://i.example", files={"/deployment.json": b"{}"})
    signed = replace(without, files=files, key=key, url="https://i.example/")
    for settings in (without, signed):
        server = Explorer(store, settings).server
        async with TestClient(TestServer(server.application())) as http:
            for path, content in settings.files.items():
                assert await (await http.get(path)).read() == content
            answer = await http.get("/")
            text = await answer.text()
            assert 'href="/deployment.json" download' in text
            joins = "piecework worker join https://i.example/market.json" in text
            assert joins == (address_hex(key) in text) == (settings is signed)
    assert (await _status(store, without, "/market.json")) == 404


async def _status(store: OfferStore, settings: ExplorerSettings, path: str) -> int:
    async with TestClient(TestServer(Explorer(store, settings).server.application())) as http:
        return (await http.get(path)).status


HOSTILE = "\u202egpj\x00\x1b[2J\u200b" + "x" * 40


async def test_a_hostile_offer_breaks_no_page(explorer: Explorer, http: Http) -> None:
    most = Amount(2**64 - 1)
    models = tuple(
        model(
            HOSTILE,
            digest=Digest(keccak256(bytes([number]))),
            profile=HOSTILE,
            price_per_million_prompt_tokens=most,
            price_per_million_output_tokens=most,
            price_per_thousand_steps=most,
            tokens_per_second=Uint32(2**31 - 1),
        )
        for number in range(MAX_OFFER_MODELS)
    )
    evil = offer(
        "worker",
        int(explorer.clock.wall()),
        sequence=Uint64(2**63 - 1),
        models=models,
        endpoints=(Endpoint(Route.DIRECT, HOSTILE),),
        details='{"usual": [[' * 5,
        slots=Uint32(2**20 - 1),
    )
    await explorer.server.accept(encode_offer(evil))
    now = Timestamp(int(explorer.clock.wall()))
    await explorer.store.record(Timestamp(now + 299))
    explorer.clock.advance(299)
    for path in ("/", f"/workers/{WORKER}", "/?sort=speed&limit=1000"):
        response = await http.get(path)
        text = await response.text()
        assert response.status == 200
        assert not {"\u202e", "\x00", "\x1b"} & set(text)
    for path in ("/v1/offers", "/v1/models", "/v1/workers", "/v1/history"):
        assert (await http.get(path)).status == 200
    with pytest.raises(Declined):
        await explorer.server.accept(
            encode_offer(offer("worker", int(explorer.clock.wall()), sequence=Uint64(2**64 - 1)))
        )


async def test_the_first_page_shows_the_models_of_most_workers_and_says_how_many_there_are(
    explorer: Explorer, http: Http
) -> None:
    for name in NAMES:
        many = tuple(
            model(f"{name}-{number}", digest=Digest(keccak256(f"{name} {number}".encode())))
            for number in range(MAX_OFFER_MODELS)
        )
        listed = offer(name, int(explorer.clock.wall()), sequence=Uint64(2), models=many)
        await explorer.server.accept(encode_offer(listed))
    text = await (await http.get("/?limit=1")).text()
    shown = MAX_SHOWN_MODELS
    assert f"{shown} of {3 * MAX_OFFER_MODELS}" in text
    assert text.count("/?model=0x") == shown


@pytest.mark.parametrize("asked", ["/", "/?limit=200"])
async def test_a_page_for_people_has_as_many_offers_as_they_read(
    explorer: Explorer, http: Http, asked: str
) -> None:
    many = tuple(
        model(f"m-{number}", digest=Digest(keccak256(f"{number}".encode())))
        for number in range(MAX_OFFER_MODELS)
    )
    for name in NAMES:
        listed = offer(name, int(explorer.clock.wall()), sequence=Uint64(2), models=many)
        await explorer.server.accept(encode_offer(listed))
    text = await (await http.get(asked)).text()
    assert 3 * MAX_OFFER_MODELS > MAX_SHOWN_OFFERS
    assert f"1 to {MAX_SHOWN_OFFERS} of {3 * MAX_OFFER_MODELS}" in text


@pytest.mark.parametrize("host", ["", "a b", "[", "x:y", "a" * 300, "é"])
async def test_a_strange_host_header_is_no_error_of_ours(explorer: Explorer, host: str) -> None:
    money = ExplorerSettings(Money(TOKEN_INFO))
    plain = IndexServer(explorer.store, explorer.chain, money, clock=explorer.clock)
    async with TestServer(plain.application()) as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.split()[1] in (b"200", b"400")
        writer.close()


async def test_every_model_is_reached_page_by_page(explorer: Explorer, http: Http) -> None:
    many = tuple(
        model(f"m-{number}", digest=Digest(keccak256(f"{number}".encode()))) for number in range(5)
    )
    now = int(explorer.clock.wall())
    await explorer.server.accept(
        encode_offer(offer("worker", now, sequence=Uint64(2), models=many))
    )
    rows, total = list[dict[str, Any]](), 1
    while len(rows) < total:
        page = await (await http.get(f"/v1/models?limit=4&offset={len(rows)}")).json()
        assert 0 < len(page["models"]) <= 4
        rows, total = [*rows, *page["models"]], page["total"]
    assert len({row["digest"] for row in rows}) == total == 6
    assert (await http.get("/v1/models?sort=price")).status == 400


async def test_every_offer_is_reached_page_by_page(http: Http) -> None:
    seen, at = list[str](), "/?limit=2"
    for _ in range(2):
        page = await shown(http, at)
        seen += [link for link in page.links.values() if link.startswith("/workers/")]
        at = page.links.get("Next page", "")
    assert at == ""
    assert sorted(seen) == sorted(f"/workers/{to_hex(operator(n).address)}" for n in NAMES)
    last = await shown(http, "/?limit=2&offset=2")
    assert last.links["Page before"] == "/?limit=2"


async def test_a_worker_has_a_page_with_stake_uptime_offer_and_payments(http: Http) -> None:
    page = await shown(http, f"/workers/{WORKER}")
    for expected in (WORKER, "1,000.00", "100.0 %", "1.50 $3.00 tUSDC settled", "tale-1"):
        assert expected in page.text
    transaction = settled(2, channel("worker", 1), 1).log.transaction
    assert f"https://s/tx/{to_hex(transaction)}" in page.links.values()
    assert to_hex(receiver("worker")) in page.text


async def test_a_worker_that_went_keeps_its_page_and_one_that_never_came_has_none(
    explorer: Explorer, http: Http
) -> None:
    explorer.clock.advance(3600)
    explorer.store.sweep(Timestamp(int(explorer.clock.wall())))
    page = await shown(http, f"/workers/{WORKER}")
    assert "No offer is live." in page.text
    assert "1.50" in page.text
    unknown = to_hex(operator("stranger").address)
    assert (await http.get(f"/workers/{unknown}")).status == 404
    assert (await http.get("/workers/nonsense")).status == 400


async def test_a_worker_is_shown_while_the_chain_is_away(explorer: Explorer, http: Http) -> None:
    explorer.clock.advance(60)
    explorer.chain.away = True
    assert "– stake" in (await shown(http, f"/workers/{WORKER}")).text


async def test_the_past_is_there_for_programs_too(http: Http) -> None:
    body = await (await http.get("/v1/history")).json()
    assert [one["workers"] for one in body["samples"]] == [3]
    assert [day["amount"] for day in body["settled"]] == [1_500_000]
    assert body["settled_in_all"]["payments"] == 1


async def test_the_charts_say_how_prices_and_speeds_are_spread_and_a_table_says_when(
    explorer: Explorer, http: Http
) -> None:
    later = int(explorer.clock.wall()) + SAMPLE_INTERVAL_S
    explorer.clock.advance(SAMPLE_INTERVAL_S)
    for at, name in enumerate(NAMES, 1):
        fast = model(name, tokens_per_second=Uint32(1_000 * at))
        signed = offer(name, later, sequence=Uint64(2), models=(fast,))
        await explorer.server.accept(encode_offer(signed))
    await explorer.store.record(Timestamp(later))
    page = await shown(http, "/")
    assert "now median 2,000, half 1,000 to 2,000, all 1,000 to 3,000; medians 500 to" in page.text
    assert "Lowest price Lower quartile price Median price Upper quartile price" in page.text
    assert "1,000 1,000 2,000 2,000 3,000 3 " in page.text
    newest, oldest = page.text.index("1,000 1,000 2,000"), page.text.index("500 500 500 500 500 3")
    assert newest < oldest
    body = await (await http.get("/v1/history")).json()
    assert body["samples"][-1]["upper_quartile_speed"] == 2_000


async def test_what_a_worker_pays_to_itself_is_shown_apart(explorer: Explorer, http: Http) -> None:
    mine = channel("worker", 2, payer=operator("worker").address)
    explorer.chain.events += [opened(3, mine), settled(4, mine, 9_000_000)]
    explorer.chain.final_block = 4
    await catch_up(explorer.store.history, explorer.chain)
    for path in ("/", f"/workers/{WORKER}"):
        page = await shown(http, path)
        assert "1.50 $3.00 tUSDC settled on chain" in page.text
        assert "9.00 $18.00 tUSDC that workers paid to themselves" in page.text
    assert "9.00 $18.00 to itself" in page.text
