"""The explorer where people see it: in a browser of every width, in both schemes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest
from aiohttp.test_utils import TestClient, TestServer

from piecework.market.explorer.layout import Money
from piecework.market.server import ExplorerSettings
from piecework_protocol.objects import Service
from piecework_protocol.types import Amount, Digest, Uint32, Uint64, keccak256
from piecework_protocol.wire import encode_offer
from tests.support.chain.fake_chain import DOMAIN, TOKEN_INFO
from tests.support.market.databases import an_offer_store
from tests.support.market.offers import model, offer
from tests.support.system.browser import CONTRAST, OVERFLOW, browser
from tests.unit.market.test_explorer import WORKER, Explorer

pytestmark = pytest.mark.process

WIDTHS = (390, 768, 1440, 2560)
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
ONE_LINE = 24
"""Pixels that a line of text takes at most."""
ROW_HEIGHTS = """[...document.querySelector("table").tBodies[0].rows].map(
  (row) => row.getBoundingClientRect().height)"""
LONG = "diffusion_gemma-26b-a4b-instruct-" + "x" * 60


@pytest.fixture
async def texts(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """The pages of an index: with offers of every kind, page by page, empty, and of a worker."""
    store = await an_offer_store(tmp_path / "market.db", DOMAIN)
    settings = ExplorerSettings(Money(TOKEN_INFO, Decimal(2)), None, "https://s/tx/{}")
    explorer = Explorer(store, settings)
    async with TestClient(TestServer(explorer.server.application())) as http:
        shown = {"empty": await _page(http, "/")}
        await explorer.fill()
        await explorer.server.accept(encode_offer(_busy(explorer)))
        for name, path in (
            ("market", "/"),
            ("first page", "/?limit=1"),
            ("nothing fits", "/?model=unknown&min_speed=5&sort=speed"),
            ("worker", f"/workers/{WORKER}"),
        ):
            shown[name] = await _page(http, path)
    await store.close()
    yield shown


async def _page(http: TestClient[Any, Any], path: str) -> str:
    async with http.get(path) as response:
        assert response.status == 200
        return await response.text()


def _busy(explorer: Explorer) -> Any:
    """An offer with long names, high prices, and no free slot."""
    dear = model(
        LONG,
        digest=Digest(keccak256(b"dear")),
        profile=LONG,
        service=Service.BEST_EFFORT,
        price_per_million_output_tokens=Amount(10**15),
        price_per_thousand_steps=Amount(0),
        max_steps=Uint32(0),
    )
    now = int(explorer.clock.wall())
    nothing = Uint32(0)
    return offer("worker", now, sequence=Uint64(2), models=(model(), dear), slots_free=nothing)


async def test_an_offer_is_one_line_of_a_usual_window_with_its_prices_in_dollars(
    tmp_path: Path,
) -> None:
    store = await an_offer_store(tmp_path / "market.db", DOMAIN)
    explorer = Explorer(store, ExplorerSettings(Money(TOKEN_INFO, Decimal(1))))
    async with TestClient(TestServer(explorer.server.application())) as http:
        await explorer.fill()
        known = model(
            "google/diffusiongemma-26B-A4B-it",
            kinds=Uint32(0b1111),
            tokens_per_second=Uint32(1812),
        )
        now = int(explorer.clock.wall())
        busy = offer("worker", now, sequence=Uint64(2), models=(known,), slots_free=Uint32(0))
        await explorer.server.accept(encode_offer(busy))
        text = await _page(http, "/")
    await store.close()
    async with browser(tmp_path / "profile") as page:
        await page.resize(1440, 900, "light")
        await page.show(text)
        heights = await page.value(ROW_HEIGHTS)
        assert len(heights) == 3 and max(heights) < 2 * ONE_LINE, heights


async def test_every_page_fits_and_is_readable_at_every_width_in_both_schemes(
    tmp_path: Path, texts: dict[str, str]
) -> None:
    async with browser(tmp_path / "profile") as page:
        for name, text in texts.items():
            for width in WIDTHS:
                for scheme in SCHEMES:
                    await page.resize(width, 900, scheme)
                    await page.show(text)
                    found = await page.value(OVERFLOW) + await page.value(CONTRAST)
                    found += await page.axe()
                    assert not found, (name, width, scheme, found)
