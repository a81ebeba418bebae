"""Two processes of an index on one PostgreSQL: one is killed, and the other one goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from piecework.chain.dev.embedded import EmbeddedChain
from piecework.processes import ProcessGroup, Role
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import to_hex
from tests.support.chain.chains import deployed
from tests.support.market.databases import cluster
from tests.support.system.worker_process import OPERATOR_SECRET, WorkerProcess
from tests.support.waiting import until

pytestmark = pytest.mark.process

WORKER = to_hex(LocalSigner(OPERATOR_SECRET).address)
POLL_S = 0.2


class Indexes:
    """Processes of an index, each with a home of its own, on one database."""

    def __init__(self, group: ProcessGroup, folder: Path, database: str) -> None:
        self._group, self._folder, self._database = group, folder, database

    async def start(self, name: str) -> Role:
        """Start one. It is told of the database as a service would be."""
        home, deployment = self._folder / name, self._folder / "deployment.json"
        places = ("--home", str(home), "--port", "0", "--deployment", str(deployment))
        environment = {"PIECEWORK_MARKET_DATABASE": self._database}
        return await self._group.start(name, ["market", "start", *places], environment=environment)


async def get(index: Role, path: str) -> Any:
    """What an index answers."""
    async with aiohttp.ClientSession(index.ready["url"]) as http, http.get(path) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def lists(index: Role) -> bool:
    """Whether an index shows the worker's live offer."""
    return [one["operator"] for one in (await get(index, "/v1/offers"))["offers"]] == [WORKER]


async def test_an_index_that_is_killed_leaves_its_offers_to_the_other_one(tmp_path: Path) -> None:
    with cluster() as postgres:
        async with (
            EmbeddedChain() as chain,
            deployed(chain) as market,
            ProcessGroup(tmp_path / "logs") as group,
        ):
            market.deployment.save(tmp_path / "deployment.json")
            indexes = Indexes(group, tmp_path, postgres.database())
            here, there = await indexes.start("here"), await indexes.start("there")
            worker = await WorkerProcess.register(
                tmp_path / "worker",
                market.deployment,
                pace_s=0.01,
                indexes=(here.ready["url"],),
            )
            ready = await worker.start()
            assert ready["can_earn"], ready["obstacles"]
            await until(lambda: lists(there), poll_s=POLL_S)
            await here.kill()
            assert await lists(there)
            third = await indexes.start("third")
            assert await lists(third), "at its first answer"
            for index in (there, third):
                assert (await get(index, f"/v1/offers/{WORKER}"))["listed"] is True
                assert (await get(index, f"/v1/workers/{WORKER}/audits"))["failures"] == 0
            assert await worker.drain() == 0
            for index in (there, third):
                assert await index.stop() == 0, index.log_tail()
