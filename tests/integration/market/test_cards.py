"""One daemon with two cards: jobs on both, one engine killed with -9, and exact receipts."""

from __future__ import annotations

import asyncio
import os
import signal as signals
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from piecework.chain.dev.embedded import EmbeddedChain
from piecework_node.card_settings import CardSettings
from piecework_node.daemon.admin import ask_daemon
from piecework_protocol.signing import LocalSigner
from tests.support.chain.chains import TestMarket, channel_of, deployed, signer
from tests.support.client.scripted_client import ScriptedJob
from tests.support.node.harness import parameters
from tests.support.node.wire_client import WireClient
from tests.support.system.worker_process import OPERATOR_SECRET, RECEIVER, WorkerProcess
from tests.support.waiting import until

pytestmark = pytest.mark.process

PAYER = signer("payer of two cards")
DEPOSIT = 50_000_000
CARDS = (
    CardSettings(name="exact", device="cpu", precision="float32", threads=1, slots=1, queue=1),
    CardSettings(name="quick", device="cpu", precision="bfloat16", threads=1, slots=2, queue=1),
)
START_S = 240.0
"""Two engines load and measure, on a machine that may have much else to do."""
OFFER_POLL_S = 0.5
"""A worker bounds the requests of an address in a minute."""
LONG, SHORT = 1500, 40


@asynccontextmanager
async def worker(folder: Path, market: TestMarket) -> AsyncIterator[WorkerProcess]:
    """The daemon as an operator starts it, with two engines of its own on the CPU."""
    made = await WorkerProcess.register(
        folder, market.deployment, pace_s=0, cards=CARDS, benchmark_s=0.1
    )
    try:
        ready = await made.start_as_shipped(START_S)
        assert set(ready["cards"]) == {"exact", "quick"}
        yield made
    finally:
        if made.process is not None and made.process.returncode is None:
            await made.kill()


async def cards_of(made: WorkerProcess) -> dict[str, dict[str, Any]]:
    """The cards as `worker status` shows them, by name."""
    status = await ask_daemon(made.home.root, "GET", "/status")
    return {card["name"]: card for card in status["cards"]}


async def offered(client: WireClient) -> list[str]:
    """The profiles of the current offer."""
    return [model.profile for model in (await client.offer()).offer.models]


async def job_for(client: WireClient, market: TestMarket, profile: str, **of: int) -> ScriptedJob:
    """A job that is bound to the entry of a profile."""
    signed = await client.offer()
    entry = [model.profile for model in signed.offer.models].index(profile)
    most = signed.offer.models[entry].max_output // 2
    asked = parameters(of["seed"], min(of["tokens"], most))
    deadline = await market.reader.timestamp() + 900
    return ScriptedJob.sealed(client, signed, "a fox", asked, deadline, entry=entry)


async def test_a_killed_engine_takes_its_entry_away_and_the_other_card_goes_on(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    async with deployed(embedded_chain) as market, worker(tmp_path / "w", market) as made:
        await market.pool(PAYER, embedded_chain.faucet, 2 * DEPOSIT)
        clients = [await opened(made, market, embedded_chain, salt) for salt in (1, 2)]
        try:
            jobs = await trade(clients[0], clients[1], market, made)
        finally:
            for client in clients:
                await client.close()
        assert await made.drain() == 0, made.log_tail()
        received = await market.reader.token_balance(market.token, RECEIVER)
        waiting = await market.reader.waiting_payout(market.token, RECEIVER)
        paid = sum(client.book.voucher().cumulative for client in clients)
        assert received + waiting == paid == sum(job.amount for job in jobs) > 0
        assert "Traceback" not in (made.home.root / "daemon.log").read_text()


async def opened(
    made: WorkerProcess, market: TestMarket, chain: EmbeddedChain, salt: int
) -> WireClient:
    """A client with an open channel of its own."""
    operator = LocalSigner(OPERATOR_SECRET)
    channel = channel_of(market, PAYER, operator, salt=salt, receiver=RECEIVER)
    await market.open_channel(PAYER, chain.faucet, channel, DEPOSIT)
    domain = market.deployment.domain
    return WireClient(made.endpoint, domain, PAYER, channel, deposit=DEPOSIT)


async def trade(
    client: WireClient, other: WireClient, market: TestMarket, made: WorkerProcess
) -> list[ScriptedJob]:
    """Run jobs on both cards, and lose one of them. Returns the jobs, all of them ended."""
    await until(lambda: serving(made, {"exact", "quick"}), within_s=START_S)
    profiles = {n: c["engine"]["profile"] for n, c in (await cards_of(made)).items()}
    exact, quick = profiles["exact"], profiles["quick"]
    assert "float32" in exact and "bfloat16" in quick
    await until(lambda: shows(client, {exact, quick}), within_s=30, poll_s=OFFER_POLL_S)
    short = [
        await job_for(client, market, exact, seed=3, tokens=SHORT),
        await job_for(client, market, quick, seed=4, tokens=SHORT),
    ]
    for job in short:
        await client.run(job)
    late = await job_for(client, market, exact, seed=9, tokens=SHORT)
    cut = await job_for(client, market, exact, seed=5, tokens=LONG)
    beside = await job_for(client, market, quick, seed=7, tokens=LONG)
    running = [asyncio.ensure_future(client.run(job)) for job in (cut, beside)]
    await until(lambda: bool(cut.text) or any(job.done() for job in running), within_s=120)
    assert cut.text and not cut.finished, "it is lost in the middle"
    os.kill((await cards_of(made))["exact"]["engine"]["pid"], signals.SIGKILL)
    await until(lambda: shows(client, {quick}), within_s=30, poll_s=OFFER_POLL_S)
    with pytest.raises(grpc.aio.AioRpcError, match="the engine is starting"):
        await client.run(late)
    assert (await cards_of(made))["quick"]["serves"]
    await until(lambda: shows(client, {exact, quick}), within_s=START_S, poll_s=OFFER_POLL_S)
    await asyncio.gather(*running)
    again = await job_for(other, market, exact, seed=5, tokens=LONG)
    await other.run(again)
    assert again.text == cut.text, "the kill changed nothing of the text"
    jobs = [*short, cut, beside, again]
    assert all(job.finished for job in jobs)
    shown = await cards_of(made)
    assert (shown["exact"]["engine"]["restarts"], shown["quick"]["engine"]["restarts"]) == (1, 0)
    return jobs


async def serving(made: WorkerProcess, names: set[str]) -> bool:
    return {name for name, card in (await cards_of(made)).items() if card["serves"]} == names


async def shows(client: WireClient, profiles: set[str]) -> bool:
    return set(await offered(client)) == profiles
