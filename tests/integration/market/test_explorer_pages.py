"""The explorer where people see it: in a browser of every width, in both schemes."""

from __future__ import annotations

import json
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
ROW_HEIGHTS = """[...document.querySelector("#offers table").tBodies[0].rows].map(
  (row) => row.getBoundingClientRect().height)"""
PRICES = ["With steps, 1M", "Output, 1M", "Prompt, 1M", "1,000 steps"]
SEEN = """((labels) => {
  const seen = (text) => {
    const node = text.parentElement, cell = node.closest("td"), range = document.createRange();
    const how = { opacityProperty: true, visibilityProperty: true, contentVisibilityAuto: true };
    range.selectNodeContents(text);
    cell.scrollIntoView({ block: "center" });
    return node.checkVisibility(how) && getComputedStyle(node).color !== "rgba(0, 0, 0, 0)"
      && [...range.getClientRects()].every((box) => {
        const hit = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
        return box.width > 1 && box.height > 8 && box.left >= 0 && box.right <= innerWidth
          && cell.contains(hit);
      });
  };
  const texts = (cell) => {
    const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), found = [];
    while (walker.nextNode()) if (walker.currentNode.data.trim()) found.push(walker.currentNode);
    return found;
  };
  return [...document.querySelectorAll("#offers tbody tr")].map((row) =>
    Object.fromEntries([...row.cells].filter((cell) => labels.includes(cell.dataset.label))
      .map((cell) => [cell.dataset.label,
        texts(cell).filter(seen).map((text) => text.data.trim()).join(" ")])));
})(LABELS)""".replace("LABELS", json.dumps(PRICES))
"""The prices of each offer that a person sees: not hidden, not see-through, not behind anything."""
CARDS = """[...document.querySelectorAll("#offers tbody tr")].every((row) =>
  getComputedStyle(row).display === "block" && [...row.cells].every((cell) =>
    getComputedStyle(cell, "::before").content === JSON.stringify(cell.dataset.label)))"""
LONG = "diffusion_gemma-26b-a4b-instruct-" + "x" * 60


@pytest.fixture
async def texts(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """The pages of an index: with offers of every kind, page by page, empty, and of a worker.

    The table of figures is opened on the first one.
    """
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
    shown["market"] = shown["market"].replace("<details>", "<details open>")
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
    prices = {
        "With steps, 1M": "2.105468 $2.11 estimate",
        "Output, 1M": "2.00 $2.00",
        "Prompt, 1M": "0.10 $0.1000",
        "1,000 steps": "0.001 $0.0010",
    }
    async with browser(tmp_path / "profile") as page:
        await page.resize(1440, 900, "light")
        await page.show(text)
        heights = await page.value(ROW_HEIGHTS)
        assert len(heights) == 3 and max(heights) < 2 * ONE_LINE, heights
        assert await page.value(SEEN) == [prices] * 3
        await page.resize(390, 900, "light")
        assert await page.value(CARDS)
        assert await page.value(SEEN) == [prices] * 3


@pytest.mark.parametrize(
    "hidden",
    [
        "display: none",
        "visibility: hidden",
        "opacity: 0",
        "color: transparent",
        "font-size: 0",
        "position: absolute; left: -999px",
        "clip-path: inset(50%)",
        "overflow: hidden; max-height: 0; padding: 0",
    ],
)
async def test_a_price_that_is_hidden_on_a_card_is_noticed(
    tmp_path: Path, texts: dict[str, str], hidden: str
) -> None:
    cell = 'td[data-label="Output, 1M"]'
    rule = f"<style>{cell}, {cell} * {{ {hidden} !important }}</style>"
    async with browser(tmp_path / "profile") as page:
        await page.resize(390, 900, "light")
        await page.show(texts["market"])
        assert all(len(row) == 4 and all(row.values()) for row in await page.value(SEEN))
        await page.show(texts["market"].replace("</head>", f"{rule}</head>"))
        rows = await page.value(SEEN)
        assert len(rows) == 4 and not any(row["Output, 1M"] for row in rows)
        assert all(row["Prompt, 1M"] for row in rows)


async def test_every_page_fits_and_is_readable_at_every_width_in_both_schemes(
    tmp_path: Path, texts: dict[str, str]
) -> None:
    async with browser(tmp_path / "profile") as page:
        for name, text in texts.items():
            for width in WIDTHS:
                for scheme in SCHEMES:
                    await page.resize(width, 900, scheme)
                    await page.show(text)
                    await page.keep(f"explorer {name}", width, scheme)
                    found = await page.value(OVERFLOW) + await page.value(CONTRAST)
                    found += await page.axe()
                    assert not found, (name, width, scheme, found)
