"""The real daemon and an index: the ready line says whether clients see and reach the worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer

from piecework.base.clock import SystemClock
from piecework.base.http import host_of
from piecework.chain.dev.embedded import EmbeddedChain
from piecework.market.explorer.layout import Money
from piecework.market.offer_store import OfferStore
from piecework.market.server import ExplorerSettings, IndexServer
from piecework.market.storage.database import open_database
from piecework_node.daemon.admin import ask_daemon
from piecework_protocol.types import Timestamp
from tests.support.chain.chains import TestMarket, deployed
from tests.support.system.worker_process import WorkerProcess
from tests.support.waiting import until

pytestmark = pytest.mark.process


@asynccontextmanager
async def an_index(folder: Path, market: TestMarket) -> AsyncIterator[str]:
    deployment = market.deployment
    store = await OfferStore.open(
        await open_database(folder / "market.db"),
        deployment.domain,
        deployment.token,
        Timestamp(int(SystemClock().wall())),
    )
    settings = ExplorerSettings(Money(deployment.payment_token))
    server = IndexServer(store, market.reader, settings)
    async with TestServer(server.application()) as running:
        yield str(running.make_url("")).rstrip("/")
    await store.close()


async def started(worker: WorkerProcess) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ready line, and the status after it."""
    try:
        return await worker.start(), await ask_daemon(worker.home.root, "GET", "/status")
    finally:
        assert await worker.drain() == 0


async def test_a_worker_that_an_index_shows_and_reaches_can_earn(tmp_path: Path) -> None:
    async with (
        EmbeddedChain() as chain,
        deployed(chain) as market,
        an_index(tmp_path, market) as url,
    ):
        worker = await WorkerProcess.register(
            tmp_path / "worker", market.deployment, pace_s=0.01, indexes=(url,)
        )
        ready, status = await started(worker)
    assert ready["ready"] and ready["can_earn"] and ready["obstacles"] == []
    assert ready["shown_by"] == {host_of(url): True}
    assert ready["reached"] == {worker.endpoint: "reached"}
    assert (status["can_earn"], status["faults"]) == (True, [])


async def test_a_drained_worker_leaves_its_index_at_once(tmp_path: Path) -> None:
    async with (
        EmbeddedChain() as chain,
        deployed(chain) as market,
        an_index(tmp_path, market) as url,
        ClientSession() as http,
    ):
        worker = await WorkerProcess.register(
            tmp_path / "worker", market.deployment, pace_s=0.01, indexes=(url,)
        )

        async def gone() -> bool:
            async with http.get(url + "/v1/offers") as answer:
                return not (await answer.json())["offers"]

        await worker.start()
        assert not await gone()
        assert await worker.drain() == 0
        # An offer lives for minutes. The index bounds how often it is asked.
        await until(gone, within_s=30, poll_s=0.5)


async def test_a_worker_that_no_client_reaches_is_ready_and_cannot_earn(tmp_path: Path) -> None:
    async with (
        EmbeddedChain() as chain,
        deployed(chain) as market,
        an_index(tmp_path, market) as url,
    ):
        worker = await WorkerProcess.register(
            tmp_path / "worker",
            market.deployment,
            pace_s=0.01,
            indexes=(url,),
            endpoint="127.0.0.1:1",
        )
        ready, status = await started(worker)
    assert ready["ready"] and not ready["can_earn"]
    assert ready["obstacles"] == ["no index reaches the worker: 127.0.0.1:1 no-answer"]
    # The registry still has the address of before.
    codes = {fault["code"] for fault in status["faults"]}
    assert codes == {"address-unreached", "endpoint-differs"}
