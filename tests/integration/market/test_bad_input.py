"""Bad jobs over real gRPC at the real daemon on a real chain: a typed reason each, and nothing else
happens.

And what a text leaves behind in the files, logs, metrics and indexes of a market: nothing.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from aiohttp.test_utils import TestServer
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from piecework.chain.dev.embedded import EmbeddedChain
from piecework.client.config import load_config
from piecework.client.jobs.events import CanvasText, JobFinished
from piecework.client.journal.store import Store
from piecework.client.sdk import PieceworkClient
from piecework.client.wallet import Wallet
from piecework.market.explorer.layout import Money
from piecework.market.server import ExplorerSettings, IndexServer
from piecework_node.daemon.admin import ask_daemon
from piecework_protocol.errors import Reason
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import Amount
from piecework_protocol.wire import SignedOffer, encode_client_frame
from tests.support.chain.chains import TestMarket, channel_of, deployed, signer
from tests.support.client.client_side import ask, collect
from tests.support.client.scripted_client import ScriptedJob
from tests.support.market.databases import an_offer_store
from tests.support.node.bad_jobs import BAD_JOBS, Scene
from tests.support.node.harness import parameters
from tests.support.node.wire_client import SERVICE, WireClient
from tests.support.system.worker_process import OPERATOR_SECRET, RECEIVER, WorkerProcess
from tests.support.waiting import until

pytestmark = pytest.mark.process

FEE = 2_000
POOL = 3_000_000
DEPOSIT = 1_000_000
PAYER = signer("payer of bad jobs")
# What the issue of the main job demands to be refused, word by word.
DEMANDED = {
    "malformed",
    "oversized",
    "expired",
    "replayed",
    "underfunded",
    "wrongly priced",
    "wrongly signed",
    "wrong chain",
    "unknown model",
}


@asynccontextmanager
async def opened(worker_process: WorkerProcess, market: TestMarket) -> AsyncIterator[WireClient]:
    """A payer with a channel at a started worker."""
    channel = channel_of(market, PAYER, LocalSigner(OPERATOR_SECRET), receiver=RECEIVER)
    domain = market.deployment.domain
    client = WireClient(worker_process.endpoint, domain, PAYER, channel, deposit=DEPOSIT)
    try:
        yield client
    finally:
        await client.close()


@pytest.fixture
async def worker_processes() -> AsyncIterator[list[WorkerProcess]]:
    """Workers that end with the test, however it ends."""
    started: list[WorkerProcess] = []
    yield started
    for worker_process in started:
        if worker_process.process is not None and worker_process.process.returncode is None:
            await worker_process.kill()


def test_every_word_of_the_demand_has_its_bad_jobs() -> None:
    assert {name.split(":")[0] for name in BAD_JOBS} >= DEMANDED


async def test_bad_jobs_get_a_typed_reason_and_move_no_money(
    tmp_path: Path, embedded_chain: EmbeddedChain, worker_processes: list[WorkerProcess]
) -> None:
    async with deployed(embedded_chain) as market:
        worker_process = await WorkerProcess.register(
            tmp_path / "worker", market.deployment, pace_s=0.005, requests_per_minute=6000
        )
        worker_processes.append(worker_process)
        ready = await worker_process.start()
        await market.pool(PAYER, embedded_chain.faucet, POOL)
        async with opened(worker_process, market) as client:
            scene, first = await _one_paid_job(client, market)
            before = await _money(worker_process, market, scene)
            wrong = []
            for name, bad in BAD_JOBS.items():
                got = await _answer(client, bad.data(scene))
                expected = (bad.reason.name, bad.reason.status.name, "piecework")
                if got[:3] != expected or "Traceback" in got[3]:
                    wrong.append(f"{name}: {got}, not {expected}")
            assert not wrong, "\n".join(wrong)
            assert await _money(worker_process, market, scene) == before
            # The worker is unharmed, and the first job's very bytes give its stored result, for
            # nothing.
            again = first.without_text()
            await client.run(again)
            assert (again.text, again.receipts) == (first.text, first.receipts)
            assert await _money(worker_process, market, scene) == before
            second = _job(client, scene.offer, "an owl", 5, scene.now)
            await client.run(second)
            assert second.receipts
            assert second.acknowledged == len(first.receipts) + len(second.receipts)
        status = await ask_daemon(worker_process.home.root, "GET", "/status")
        assert (status["engine"]["pid"], status["engine"]["restarts"]) == (ready["engine_pid"], 0)
        assert set(status["refusals"]) >= {bad.reason.name for bad in BAD_JOBS.values()}
        assert await worker_process.drain() == 0, worker_process.log_tail()
        assert "Traceback" not in (worker_process.home.root / "daemon.log").read_text()
        on_chain = await market.reader.channel(scene.paid.job.channel)
        assert on_chain.settled == first.amount + second.amount
        assert (
            await market.reader.token_balance(market.token, RECEIVER)
            == first.amount + second.amount + FEE
        )


def _job(client: WireClient, offer: SignedOffer, prompt: str, seed: int, now: int) -> ScriptedJob:
    return ScriptedJob.sealed(client, offer, prompt, parameters(seed, 40), now + 600)


async def _one_paid_job(client: WireClient, market: TestMarket) -> tuple[Scene, ScriptedJob]:
    offer = await client.offer()
    now = await market.reader.timestamp()
    job = _job(client, offer, "a fox", 3, now)
    scene = Scene(client.domain, PAYER, client.channel, offer, job.submission, Amount(POOL), now)
    funding = scene.funding(client.channel, DEPOSIT, PAYER, now + 3600, fee=FEE)
    await client.run(job, funding=funding)
    assert job.acknowledged == len(job.receipts) > 0

    async def funded() -> bool:
        return (await market.reader.channel(client.id)).funded >= DEPOSIT

    await until(funded)
    return scene, job


async def _money(
    worker_process: WorkerProcess, market: TestMarket, scene: Scene
) -> tuple[Any, ...]:
    """Everything that a job could move."""
    status = await ask_daemon(worker_process.home.root, "GET", "/status")
    channel = await market.reader.channel(scene.paid.job.channel)
    return (
        status["exposure"],
        status["unsettled"] + channel.settled,
        status["channels"],
        status["active"],
        channel.funded,
        await market.reader.pooled_balance(market.token, PAYER.address),
        await market.reader.token_balance(market.token, PAYER.address),
    )


async def _answer(client: WireClient, data: bytes) -> tuple[str, str, str, str]:
    """Reason, status, domain and message that a first frame of these bytes gets."""
    call = client.grpc.stream_stream(SERVICE + "Run")()
    try:
        async with asyncio.timeout(15):
            await call.write(data)
            async for _ in call:
                return ("", "answered", "", "")
    except grpc.aio.AioRpcError as error:
        status, info = rpc_status.from_call(error), error_details_pb2.ErrorInfo()  # type: ignore[arg-type]
        if status is not None:
            for detail in status.details:
                detail.Unpack(info)
        return (info.reason, error.code().name, info.domain, error.details() or "")
    return ("", "ended", "", "")


# --- canaries

CANARY = "canary-7f3a-what-nobody-else-may-read"


def disguises(text: str) -> list[bytes]:
    """The text as it is, and as hexadecimal, UTF-16 and base64 at each of its three alignments."""
    data = text.encode()
    aligned = [base64.b64encode(bytes(shift) + data)[4 * bool(shift) : -4] for shift in range(3)]
    return [data, data.hex().encode(), text.encode("utf-16-le"), *aligned]


def test_a_text_is_found_under_its_disguises() -> None:
    for shift in range(3):
        carried = base64.b64encode(b"x" * shift + CANARY.encode() + b"tail")
        assert any(needle in carried for needle in disguises(CANARY))


async def test_a_text_leaves_no_trace_in_files_logs_metrics_status_or_index(
    tmp_path: Path,
    embedded_chain: EmbeddedChain,
    worker_processes: list[WorkerProcess],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with deployed(embedded_chain) as market:
        deployment = market.deployment
        file = tmp_path / "market.db"
        store = await an_offer_store(file, deployment.domain, deployment.token)
        settings = ExplorerSettings(Money(deployment.payment_token))
        async with TestServer(IndexServer(store, market.reader, settings).application()) as index:
            url = str(index.make_url("")).rstrip("/")
            worker_process = await WorkerProcess.register(
                tmp_path / "worker",
                market.deployment,
                pace_s=0.005,
                indexes=[url],
                log_level="debug",
            )
            worker_processes.append(worker_process)
            ready = await worker_process.start()
            await market.pool(PAYER, embedded_chain.faucet, POOL)
            texts = await _trade(tmp_path, market, url)
            await _blunder(worker_process, market)
            pages = await _pages([ready["admin_url"], url])
            assert await worker_process.drain() == 0, worker_process.log_tail()
    printed = "".join(capfd.readouterr()) + caplog.text
    found = [
        f"{place} holds {needle!r}"
        for place, content in {**pages, **_files(tmp_path), "output": printed.encode()}.items()
        for text in (CANARY, *texts)
        for needle in disguises(text)[: 1 if text is not CANARY else None]
        if needle in content
    ]
    assert not found, "\n".join(found)


async def _trade(folder: Path, market: TestMarket, index: str) -> list[str]:
    """A job about the canary, whole, by the real client; the canvases that came back."""
    store = Store(folder / "client.db", market.deployment.domain, PAYER.address)
    config = load_config(folder / "no-file", {"deposit": "1.0", "indexes": [index]})
    wallet, token = Wallet(PAYER, PAYER), market.deployment.payment_token
    async with PieceworkClient(store, market.reader, wallet, token, config) as client:
        events = await collect(client.run(ask(CANARY, seed=3, max_tokens=40, drafts=True)))
    assert isinstance(events[-1], JobFinished)
    texts = [
        event.text for event in events if isinstance(event, CanvasText) and len(event.text) >= 8
    ]
    assert texts
    return texts


async def _blunder(worker_process: WorkerProcess, market: TestMarket) -> None:
    """The canary where it does not belong: each of these is refused, and could be echoed."""
    async with opened(worker_process, market) as client:
        offer = await client.offer()
        good = _job(client, offer, CANARY, 9, await market.reader.timestamp()).submission
        misplaced = dataclasses.replace(good, sealed_content=CANARY.encode())
        for data in (
            CANARY.encode() * 9,
            encode_client_frame(good),
            encode_client_frame(misplaced),
        ):
            assert (await _answer(client, data))[0] in set(Reason.__members__)


async def _pages(urls: list[str]) -> dict[str, bytes]:
    pages: dict[str, bytes] = {}
    async with aiohttp.ClientSession() as session:
        for url in urls:
            for path in ("/metrics", "/status", "/v1/offers", "/v1/models", "/v1/workers", "/"):
                async with session.get(url + path) as response:
                    pages[url + path] = await response.read()
    assert any(b"piecework" in page for page in pages.values())
    return pages


def _files(root: Path) -> dict[str, bytes]:
    files = {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    names = {Path(name).name for name in files}
    assert names >= {"daemon.log", "client.db", "market.db"}
    assert any("journal" in name for name in names), names
    return files
