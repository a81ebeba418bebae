"""A market on the embedded chain, a scripted worker on it, and a payer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from piecework.chain.dev.embedded import EmbeddedChain
from tests.support.chain.chains import USD, TestMarket, deployed
from tests.support.chain.purse import Purse, purse, scripted_worker
from tests.support.client.fake_worker import FakeWorker


@pytest.fixture
async def market(embedded_chain: EmbeddedChain) -> AsyncIterator[TestMarket]:
    async with deployed(embedded_chain) as market:
        yield market


@pytest.fixture
async def worker(market: TestMarket) -> AsyncIterator[FakeWorker]:
    async with scripted_worker(market, "worker") as worker:
        yield worker


@pytest.fixture
async def mine(market: TestMarket, tmp_path: Path) -> Purse:
    """A payer with five tokens in the pool and no gas."""
    made = purse(market, tmp_path / "client", "client")
    await market.pool(made.payer, market.chain.faucet, 5 * USD)
    return made
