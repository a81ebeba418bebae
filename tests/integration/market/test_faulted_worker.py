"""The real daemon behind a node that lies: it says so at start, while running, and when it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from piecework.chain.dev.embedded import EmbeddedChain
from piecework_node.daemon.admin import ask_daemon
from tests.support.chain.chains import deployed
from tests.support.chain.node_proxy import Kind, NodeProxy, over_http
from tests.support.system.worker_process import WorkerProcess
from tests.support.waiting import until

pytestmark = pytest.mark.process


async def test_a_worker_is_ready_only_while_it_can_earn(tmp_path: Path) -> None:
    async with (
        EmbeddedChain() as chain,
        deployed(chain) as market,
        over_http(chain.url) as node,
        NodeProxy(node).serving() as proxy,
    ):
        worker = await WorkerProcess.register(
            tmp_path / "worker", market.deployment, pace_s=0.01, rpc_url=proxy.url
        )
        proxy.faults = {"eth_getBalance": Kind.LIES}
        try:
            await hold_to_its_life(worker, proxy)
        finally:
            assert await worker.drain() == 0


async def hold_to_its_life(worker: WorkerProcess, proxy: NodeProxy) -> None:
    async def status() -> dict[str, Any]:
        return await ask_daemon(worker.home.root, "GET", "/status")

    async def is_in(state: str) -> bool:
        return bool((await status())["state"] == state)

    started = await worker.start()
    assert started["ready"] is False and started["fault"].startswith("gas-low: the operator holds")
    assert started["seen_by"] == {}
    first = await status()
    assert (first["state"], first["offer"]["slots_free"]) == ("faulted", 0)
    assert [fault["code"] for fault in first["faults"]] == ["gas-low"]
    proxy.faults = {}
    await until(lambda: is_in("ready"), within_s=30)
    assert (await status())["faults"] == []
    await until(lambda: _offers(worker, slots=2), within_s=30)


async def _offers(worker: WorkerProcess, slots: int) -> bool:
    shown = await ask_daemon(worker.home.root, "GET", "/status")
    return bool(shown["offer"]["slots_free"] == slots)
