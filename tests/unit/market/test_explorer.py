"""The explorer's pages: what they show of a market, a worker, its money and its past."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from piecework.market.explorer.layout import Money
from piecework.market.offer_store import OfferStore
from piecework.market.server import ExplorerSettings, IndexServer
from piecework.market.settlements import catch_up
from piecework_protocol.types import Timestamp, to_hex
from piecework_protocol.wire import encode_offer
from tests.support.client_side import FakeClock
from tests.support.fake_chain import TOKEN, TOKEN_INFO, FakeChain
from tests.support.offers import offer, operator, receiver
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

    def __init__(self, folder: Path, settings: ExplorerSettings) -> None:
        self.chain, self.clock = FakeChain(), FakeClock()
        for name in NAMES:
            self.chain.register(operator(name).address, receiver(name))
        self.store = OfferStore(folder / "market.db", self.chain.domain, TOKEN)
        self.server = IndexServer(self.store, self.chain, settings, clock=self.clock)

    async def fill(self) -> None:
        now = int(self.clock.wall())
        for name in NAMES:
            await self.server.accept(encode_offer(offer(name, now)))
        self.store.record(Timestamp(now))
        terms = channel("worker", 1)
        self.chain.events = [opened(1, terms), settled(2, terms, 1_500_000)]
        self.chain.final_block = 2
        await catch_up(self.store.history, self.chain)


@pytest.fixture
async def explorer(tmp_path: Path) -> Explorer:
    money = Money(TOKEN_INFO, Decimal(2))
    made = Explorer(tmp_path, ExplorerSettings(money, "https://i.example", "https://s/tx/{}"))
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


async def test_nobody_is_believed_about_dollars(tmp_path: Path) -> None:
    plain = Explorer(tmp_path, ExplorerSettings(Money(TOKEN_INFO)))
    await plain.fill()
    async with TestClient(TestServer(plain.server.application())) as http:
        assert "$" not in (await shown(http, "/")).text


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
