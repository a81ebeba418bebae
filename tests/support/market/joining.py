"""A market whose descriptor is published, for workers that join it by its URL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from piecework.chain.dev.embedded import EmbeddedChain
from tests.support.chain.chains import TestMarket, deployed
from tests.support.system.commands import piecework

ENVIRONMENT = {"PIECEWORK_PASSWORD": "a test password"}


@dataclass(frozen=True, slots=True)
class PublishedMarket:
    """A market and what a newcomer is told of it.

    Attributes:
        folder: With the deployment file, the descriptor and its key.
        url: Of the descriptor.
        key: The fingerprint of the key that signed it.
    """

    market: TestMarket
    folder: Path
    url: str
    key: str


@asynccontextmanager
async def published_market(
    root: Path, chain: EmbeddedChain, *more: str
) -> AsyncIterator[PublishedMarket]:
    """Deploy a market, and serve its descriptor. more: what `market describe` is told."""
    folder = root / "public"
    folder.mkdir()
    async with deployed(chain) as market, published(folder) as url:
        market.deployment.save(folder / "deployment.json")
        yield PublishedMarket(market, folder, url, await describe(folder, *more))


@asynccontextmanager
async def published(folder: Path) -> AsyncIterator[str]:
    """Serve a folder's files, as any web server does. Gives the URL of the descriptor."""
    application = web.Application()
    application.router.add_static("/", folder)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/market.json"
    finally:
        await runner.cleanup()


async def describe(folder: Path, *more: str, key: str = "key.json") -> str:
    """Write and sign the descriptor; the fingerprint of its key."""
    said = await piecework(
        *("market", "describe", "--json", "--deployment", str(folder / "deployment.json")),
        *("--out", str(folder / "market.json"), "--key", str(folder / key), *more),
        environment=ENVIRONMENT,
    )
    return str(said.json()["signer"])
