"""A best-effort job through the real daemon over vLLM servers: from settings to settlement, on a
chain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from piecework.chain.deployment import Deployment
from piecework.chain.dev.embedded import EmbeddedChain
from piecework.client.config import load_config
from piecework.client.errors import NoWorkerFits
from piecework.client.jobs.events import CanvasText, JobFinished, JobStarted
from piecework.client.journal.store import Store
from piecework.client.sdk import PieceworkClient
from piecework.client.wallet import Wallet
from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_node import config as settings
from piecework_node.daemon.admin import ask_daemon
from piecework_protocol.errors import Reason
from piecework_protocol.kinds.read import Label, Question
from piecework_protocol.objects import Kind, Service
from piecework_protocol.pricing import Usage, price
from piecework_protocol.service import NO_TRACE, best_effort_parameters
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import Uint32, to_hex
from tests.support.chain.chains import TestMarket, channel_of, deployed, signer
from tests.support.client.client_side import ask, collect, text_of
from tests.support.client.scripted_client import ScriptedJob
from tests.support.model.vllm_server import CANVAS, CHECKPOINT, VllmServer, servers, token_at
from tests.support.node.harness import parameters
from tests.support.node.wire_client import WireClient
from tests.support.system.commands import piecework
from tests.support.system.worker_process import (
    OPERATOR_SECRET,
    PASSWORD,
    RECEIVER,
    WorkerProcess,
)

pytestmark = pytest.mark.process

PAYER = signer("payer of best effort")
POOL = 3_000_000
TOKENS = 3 * CANVAS - 2
PRICES: dict[str, Any] = {
    "price_per_million_prompt_tokens": "9.0",
    "price_per_million_output_tokens": "70.0",
}


@asynccontextmanager
async def worker(
    folder: Path, market: TestMarket, chain: EmbeddedChain, made: list[VllmServer]
) -> AsyncIterator[tuple[WorkerProcess, dict[str, Any]]]:
    """The daemon as an operator starts it, over vLLM servers; ended by SIGTERM, which settles."""
    worker_process = await WorkerProcess.register(
        folder,
        market.deployment,
        pace_s=0,
        backend="vllm",
        vllm_endpoints=tuple(server.url for server in made),
        model=str(bundled_checkpoint_path()),
        benchmark_s=0.1,
        price_per_thousand_steps=0,
        **PRICES,
    )
    await market.pool(PAYER, chain.faucet, POOL)
    try:
        yield worker_process, await worker_process.start_as_shipped()
    finally:
        if worker_process.process is not None and worker_process.process.returncode is None:
            await worker_process.kill()


@pytest.fixture
async def market(embedded_chain: EmbeddedChain) -> AsyncIterator[TestMarket]:
    async with deployed(embedded_chain) as market:
        yield market


async def test_a_best_effort_job_is_delivered_paid_and_settled_and_a_replayable_one_is_refused(
    tmp_path: Path, embedded_chain: EmbeddedChain, market: TestMarket
) -> None:
    async with (
        servers(2) as made,
        worker(tmp_path / "w", market, embedded_chain, made) as (worker_process, ready),
    ):
        assert ready["engine_pid"] is None and ready["model"] == CHECKPOINT.name
        store = Store(tmp_path / "client.db", market.deployment.domain, PAYER.address)
        wallet = Wallet(PAYER, PAYER)
        config = load_config(tmp_path / "no-file", {"deposit": "1.0"})
        token = market.deployment.payment_token
        async with PieceworkClient(store, market.reader, wallet, token, config) as client:
            (signed,) = (await client.offers()).offers
            (model,) = signed.offer.models
            assert (model.service, model.max_steps, model.price_per_thousand_steps) == (
                Service.BEST_EFFORT,
                0,
                0,
            )
            for request in (
                ask(max_tokens=TOKENS),
                ask(max_tokens=TOKENS, seed=7, best_effort=True),
            ):
                with pytest.raises(NoWorkerFits, match="best effort"):
                    await collect(client.run(request))
            events = await collect(client.run(ask(max_tokens=TOKENS, best_effort=True)))
            receipts = store.receipts()
        accepted = next(e for e in events if isinstance(e, JobStarted))
        canvases = [e for e in events if isinstance(e, CanvasText)]
        ended = events[-1]
        assert accepted.service is Service.BEST_EFFORT
        assert isinstance(ended, JobFinished) and ended.acknowledged
        ids = tuple(token_at(accepted.prompt_tokens + i) for i in range(TOKENS))
        assert text_of(events) == CHECKPOINT.codec.decode(ids)
        assert [c.tokens for c in canvases] == [CANVAS, CANVAS, CANVAS - 2]
        assert all(r.receipt.steps == 0 and r.receipt.trace_root == NO_TRACE for r in receipts)
        owed = price(model, Usage(accepted.prompt_tokens, TOKENS, 0))
        assert ended.cost == sum(r.receipt.amount for r in receipts) == owed > 0
        await _is_refused_a_replayable_job(worker_process, market)
        status = await ask_daemon(worker_process.home.root, "GET", "/status")
        assert status["engine"]["service"] == "best_effort"
        assert [e["health"] for e in status["engine"]["endpoints"]] == ["healthy", "healthy"]
        assert await worker_process.drain() == 0, worker_process.log_tail()
        received = await market.reader.token_balance(market.token, RECEIVER)
        waiting = await market.reader.waiting_payout(market.token, RECEIVER)
        assert signed.offer.credit_first > 2_000, "it follows the prices"
        assert received + waiting == owed + signed.offer.credit_first, (
            "the opening's fee is no less"
        )
        assert "Traceback" not in (worker_process.home.root / "daemon.log").read_text()
        bodies = [b for server in made for b in server.bodies if not b.get("ignore_eos")]
        assert bodies and all("seed" not in b for b in bodies)


async def test_a_read_on_a_server_that_takes_canvases_is_paid_by_its_prompt(
    tmp_path: Path, embedded_chain: EmbeddedChain, market: TestMarket
) -> None:
    asked = Question("Is it a fox?", (Label("yes"), Label("no")))
    async with (
        servers(takes_canvases=True) as made,
        worker(tmp_path / "w", market, embedded_chain, made) as (worker_process, _),
    ):
        store = Store(tmp_path / "client.db", market.deployment.domain, PAYER.address)
        wallet = Wallet(PAYER, PAYER)
        config = load_config(tmp_path / "no-file", {"deposit": "1.0"})
        token = market.deployment.payment_token
        async with PieceworkClient(store, market.reader, wallet, token, config) as client:
            ((model,),) = [s.offer.models for s in (await client.offers()).offers]
            assert model.kinds == Kind.TEXT.bit | Kind.READ.bit
            with pytest.raises(NoWorkerFits, match="best effort"):
                await client.read("a fox", [asked])
            with pytest.raises(NoWorkerFits, match="one canvas"):
                await client.read("a fox", [asked], draws=2, best_effort=True)
            result = await client.read("a fox", [asked], best_effort=True)
            (row,) = store.receipts()
        (decision,) = result.decisions
        assert decision.probability("yes") + decision.probability("no") == pytest.approx(1)
        receipt = row.receipt
        assert (receipt.units, receipt.steps, receipt.trace_root) == (0, 0, NO_TRACE)
        owed = price(model, Usage(receipt.total_prompt_tokens, 0, 0))
        assert result.cost.units == receipt.amount == owed > 0
        assert await worker_process.drain() == 0, worker_process.log_tail()


async def test_worker_init_takes_vllm_servers_and_a_start_needs_nothing_more_in_the_settings(
    tmp_path: Path, market: TestMarket
) -> None:
    market.deployment.save(tmp_path / "deployment.json")
    home = tmp_path / "home"
    arguments = (
        *(
            "worker",
            "init",
            "--deployment",
            str(tmp_path / "deployment.json"),
            "--payout",
            to_hex(RECEIVER),
        ),
        *(
            "--vllm",
            "http://127.0.0.1:8000",
            "--vllm",
            "http://127.0.0.1:8001",
            "--vllm-model",
            "served",
        ),
        *(
            "--model",
            str(bundled_checkpoint_path()),
            "--no-register",
            "--home",
            str(home),
            "--json",
        ),
    )
    assert (await piecework(*arguments, environment={"PIECEWORK_PASSWORD": PASSWORD})).json()
    written = settings.load(home, {}, {})
    assert (written.backend, len(written.vllm_endpoints), written.vllm_model) == (
        "vllm",
        2,
        "served",
    )
    token = Deployment.load(home / "deployment.json").payment_token
    assert written.price_per_thousand_steps == token.write(0)
    assert written.amounts(token).price_per_thousand_steps == 0


async def _is_refused_a_replayable_job(worker_process: WorkerProcess, market: TestMarket) -> None:
    """A client that does not look at the class is told, with a reason, before anything is
    reserved."""
    payer = signer("somebody else")
    channel = channel_of(market, payer, LocalSigner(OPERATOR_SECRET), receiver=RECEIVER)
    domain = market.deployment.domain
    client = WireClient(worker_process.endpoint, domain, payer, channel, deposit=1_000_000)
    try:
        offer = await client.offer()
        now = await market.reader.timestamp()
        for asked, reason in (
            (parameters(3, TOKENS), Reason.WRONG_SERVICE),
            (best_effort_parameters(Uint32(TOKENS)).replace(seed=3), Reason.BAD_PARAMETERS),
        ):
            job = ScriptedJob.sealed(client, offer, "a fox", asked, now + 600)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.run(job)
            assert _reason(caught.value) == reason.name
    finally:
        await client.close()


def _reason(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return str(info.reason)
