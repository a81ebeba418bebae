"""`piecework worker set` and `payout` with real commands, a real daemon and a real chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from piecework.chain.dev.embedded import EmbeddedChain
from piecework_node import config
from piecework_node.daemon.admin import ask_daemon
from piecework_protocol.types import address_hex
from tests.support.chain.chains import ETHER, TestMarket, deployed, signer
from tests.support.system.commands import Said, piecework
from tests.support.system.worker_process import PASSWORD, WorkerProcess, write_key
from tests.support.waiting import until

pytestmark = pytest.mark.process

OWNER = signer("the owner of a stake")
OWNER_PASSWORD = "a password of the owner"
NEW_PAYOUT = signer("another cold address").address
ENVIRONMENT = {"PIECEWORK_PASSWORD": PASSWORD}


async def worker_command(worker: WorkerProcess, *words: str) -> Said:
    return await piecework(
        "worker", *words, "--home", str(worker.home.root), environment=ENVIRONMENT
    )


async def registered(folder: Path, market: TestMarket, url: str) -> WorkerProcess:
    """A worker whose stake belongs to a key that is at hand."""
    worker = await WorkerProcess.register(
        folder / "worker", market.deployment, pace_s=0.01, rpc_url=url, owner=OWNER.address
    )
    write_key(folder / "owner.json", bytes(OWNER.secret), OWNER_PASSWORD)
    (folder / "owner.password").write_text(OWNER_PASSWORD + "\n")
    await market.give(OWNER.address, wei=ETHER)
    return worker


def owner_options(folder: Path) -> tuple[str, ...]:
    return (
        *("--owner-key", str(folder / "owner.json")),
        *("--owner-password-file", str(folder / "owner.password")),
    )


async def test_settings_change_under_a_running_worker_and_the_payout_after_it(
    tmp_path: Path,
) -> None:
    async with EmbeddedChain() as chain, deployed(chain) as market:
        worker = await registered(tmp_path, market, chain.url)
        unread = await worker_command(worker, "set", "queue", "5")
        assert "No worker runs" in unread.out, unread.err
        await worker.start()
        try:
            await new_prices_are_offered(worker)
            await what_is_refused_changes_nothing(worker)
        finally:
            assert await worker.drain() == 0
        await the_payout_moves(tmp_path, worker, market)


async def offered(worker: WorkerProcess) -> dict[str, Any]:
    status = await ask_daemon(worker.home.root, "GET", "/status")
    return dict(status["offer"])


async def new_prices_are_offered(worker: WorkerProcess) -> None:
    before = await offered(worker)
    said = await worker_command(
        worker, "set", "price_per_thousand_steps", "0.002", "slots", "3", "queue", "5"
    )
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert lines[0] == "in force now: price_per_thousand_steps"
    assert lines[1].startswith("offers with the old terms hold until ")
    assert lines[2:] == ["in force after a restart: slots"]

    async def renewed() -> bool:
        return bool((await offered(worker))["sequence"] > before["sequence"])

    await until(renewed, within_s=30)
    now = await offered(worker)
    assert now["price_per_thousand_steps"] == 2 * before["price_per_thousand_steps"] == 2000
    assert now["slots_free"] == 2
    again = await worker_command(worker, "set", "slots", "3")
    assert again.out == "in force after a restart: slots\n"
    same = await worker_command(worker, "set", "queue", "5")
    assert same.out == "nothing changed: the settings are so already\n"


async def what_is_refused_changes_nothing(worker: WorkerProcess) -> None:
    before = worker.home.config.read_bytes()
    small = await worker_command(worker, "set", "credit_first", "0.000001")
    assert "credit_first must be" in small.line()
    assert "Did you mean slots" in (await worker_command(worker, "set", "slotts", "3")).line()
    assert "worker payout" in (await worker_command(worker, "set", "payout", "0x1")).line()
    assert (await worker_command(worker, "set", "slots")).code == 2
    assert worker.home.config.read_bytes() == before


async def the_payout_moves(folder: Path, worker: WorkerProcess, market: TestMarket) -> None:
    """Without the owner's key it is said what to send. With it, registry and home agree."""
    wanted = address_hex(NEW_PAYOUT)
    unasked = await worker_command(worker, "payout", wanted)
    assert unasked.code == 2 and "Say --yes" in unasked.err
    assert "never sent a transaction" in unasked.err
    lost = await worker_command(worker, "payout", address_hex(market.deployment.escrow), "--yes")
    assert "is the escrow" in lost.line()

    told = await worker_command(worker, "payout", wanted, "--yes", "--json")
    call = told.json()["waiting_for"]
    assert call["from"] == address_hex(OWNER.address) and call["what"] == "setPayout"
    assert config.load(worker.home.root, environment={}).payout != wanted

    moved = await worker_command(worker, "payout", wanted, "--yes", *owner_options(folder))
    assert moved.code == 0, moved.err
    (known,) = [found async for found in market.reader.every_worker()]
    assert known.payout == NEW_PAYOUT and known.owner == OWNER.address
    assert config.load(worker.home.root, environment={}).payout == wanted
    again = await worker_command(worker, "payout", wanted)
    assert again.out == f"earnings go to {wanted} already\n"
