"""The real daemon whose owner needs the machine: it says so everywhere, and over a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from piecework.chain.dev.embedded import EmbeddedChain
from piecework.commands._worker import estimate as estimates
from piecework_node.card_settings import CardSettings
from piecework_node.console.estimate import Estimate
from piecework_node.console.model import Snapshot
from piecework_node.daemon.admin import ask_daemon
from tests.support.chain.chains import deployed
from tests.support.system.worker_process import POLL_STATUS_S, WorkerProcess
from tests.support.waiting import until

pytestmark = pytest.mark.process


async def ask(worker: WorkerProcess, path: str, method: str = "GET") -> dict[str, Any]:
    return await ask_daemon(worker.home.root, method, path)


async def is_in(worker: WorkerProcess, state: str, slots: int) -> bool:
    """Whether the worker says that it is in a state, and its offer shows so many free slots."""
    shown = await ask(worker, "/status")
    return bool(shown["state"] == state and (shown["offer"] or {}).get("slots_free") == slots)


async def test_a_pause_is_seen_everywhere_outlives_a_restart_and_is_lifted(tmp_path: Path) -> None:
    async with EmbeddedChain() as chain, deployed(chain) as market:
        worker = await WorkerProcess.register(
            tmp_path / "worker", market.deployment, pace_s=0.01, rpc_url=chain.url
        )
        try:
            assert (await worker.start())["ready"] is True
            await hold_to_a_pause(worker)
            assert await worker.drain() == 0
            with worker.home.config.open("a") as file:
                file.write('[[cards]]\nname = "desk"\ndevice = "cpu"\n')
                file.write('[[cards]]\nname = "big"\ndevice = "cpu"\n')
            assert (await worker.start())["ready"] is False
            await until(lambda: is_in(worker, "paused", 0), within_s=30, poll_s=POLL_STATUS_S)
            assert await ask(worker, "/resume", "POST") == {"paused": False, "causes": []}
            await until(lambda: is_in(worker, "ready", 4), within_s=30, poll_s=POLL_STATUS_S)
        finally:
            assert await worker.drain() == 0


async def hold_to_a_pause(worker: WorkerProcess) -> None:
    await ask(worker, "/pause", "POST")
    await until(lambda: is_in(worker, "paused", 0), within_s=30, poll_s=POLL_STATUS_S)
    shown = await ask(worker, "/status")
    assert shown["pause"]["causes"] == ["piecework worker pause"]
    assert shown["pause"]["ends_at"] is None

    async def alerted() -> bool:
        console = Snapshot.from_json(await ask(worker, "/console/data"))
        return console.state == "paused" and [a.code for a in console.alerts] == ["paused"]

    await until(alerted, within_s=30, poll_s=POLL_STATUS_S)
    console = Snapshot.from_json(await ask(worker, "/console/data"))
    assert console.why == ("piecework worker pause",) and console.model == "fake"
    assert console.balance.settlements_left is not None and console.money.usd_per_token is None


async def test_one_of_two_cards_is_paused_and_the_worker_goes_on_with_the_other(
    tmp_path: Path,
) -> None:
    cards = (
        CardSettings(name="desk", device="cpu", slots=2),
        CardSettings(name="big", device="cpu", slots=1),
    )
    async with EmbeddedChain() as chain, deployed(chain) as market:
        worker = await WorkerProcess.register(
            tmp_path / "worker", market.deployment, pace_s=0.01, rpc_url=chain.url, cards=cards
        )
        try:
            assert set((await worker.start())["cards"]) == {"desk", "big"}
            await until(lambda: is_in(worker, "ready", 3), within_s=30, poll_s=POLL_STATUS_S)
            await ask_daemon(worker.home.root, "POST", "/pause", b'{"card": "desk"}')
            await until(lambda: is_in(worker, "ready", 1), within_s=30, poll_s=POLL_STATUS_S)
            desk, big = (await ask(worker, "/status"))["cards"]
            assert desk["pause"]["causes"] == ["piecework worker pause"] and not desk["serves"]
            assert big["pause"] is None and big["serves"]
            console = Snapshot.from_json(await ask(worker, "/console/data"))
            assert [(card.name, card.state) for card in console.cards] == [
                ("desk", "paused"),
                ("big", "ready"),
            ]
            await ask_daemon(worker.home.root, "POST", "/resume", b'{"card": "desk"}')
            await until(lambda: is_in(worker, "ready", 3), within_s=30, poll_s=POLL_STATUS_S)
        finally:
            assert await worker.drain() == 0


async def test_an_estimate_of_a_home_asks_its_chain_and_names_every_source(tmp_path: Path) -> None:
    async with EmbeddedChain() as chain, deployed(chain) as market:
        worker = await WorkerProcess.register(
            tmp_path / "worker", market.deployment, pace_s=0.01, rpc_url=chain.url
        )
        try:
            await worker.start()
            made = await asyncio.to_thread(estimated, worker.home.root)
        finally:
            assert await worker.drain() == 0
    assert made.speed.source == "measured by the running worker at its start"
    assert made.speed.tokens == 100 and made.speed.steps == 200
    assert "your own prices" in made.prices.source
    assert made.gas.value is not None and "24 settlements" in made.gas.source
    assert made.power.value is not None and made.net is not None


def estimated(root: Path) -> Estimate:
    """The estimate of this home's machine, as the command makes it."""
    wishes = estimates.EstimateWishes(
        usd_per_token=1.0, usd_per_kwh=0.3, utilization=0.5, watts=300.0
    )
    ((name, made),) = estimates.here(estimates.Estimator(root, wishes))
    assert name == "this machine" and isinstance(made, Estimate)
    return made
