"""A connection that all jobs at a worker share, over real gRPC: one job's trouble is its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from piecework.client.config import load_config
from piecework.client.errors import JobInterrupted, WorkerUnreachable
from piecework.client.gateway.server import Gateway, GatewayOptions
from piecework.client.jobs.driver import JobDriver
from piecework.client.jobs.events import JobResuming
from piecework.client.jobs.outstanding import pay_outstanding
from piecework.client.jobs.preparing import prepare
from piecework.client.network.links import Links
from piecework.client.network.transport import WorkerLink
from piecework_protocol.types import Address, Digest
from tests.support.chain.fake_chain import FakeChain
from tests.support.client.client_side import (
    MONEY,
    PAYER,
    FakeClock,
    ask,
    collect,
    open_client,
    text_of,
)
from tests.support.client.fake_worker import STORY, FakeWorker
from tests.support.market.shipped import EventList
from tests.support.waiting import pass_time, until

WHOLE = " ".join(STORY)


@pytest.fixture
def chain() -> FakeChain:
    chain = FakeChain()
    chain.deposit(PAYER.address, MONEY)
    return chain


@pytest.fixture
async def worker(chain: FakeChain) -> AsyncIterator[FakeWorker]:
    async with FakeWorker(chain, FakeClock()) as worker:
        yield worker


@pytest.fixture
async def link(worker: FakeWorker) -> AsyncIterator[WorkerLink]:
    link = await WorkerLink.connect(
        worker.endpoint, worker.operator.address, worker.certificate_digest
    )
    yield link
    await link.close()


async def test_a_connection_that_is_closed_is_an_unreachable_worker_and_no_cancellation(
    link: WorkerLink,
) -> None:
    stream = link.run(60)
    reading = asyncio.create_task(stream.receive())
    await asyncio.sleep(0)
    await link.close()
    with pytest.raises(WorkerUnreachable, match="was closed"):
        await reading
    assert not reading.cancelled()
    with pytest.raises(WorkerUnreachable):
        link.run(60)
    with pytest.raises(WorkerUnreachable):
        await link.get_offer()


async def test_a_task_that_was_cancelled_itself_stays_cancelled(link: WorkerLink) -> None:
    stream = link.run(60)
    reading = asyncio.create_task(stream.receive())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    stream.abort()


async def test_a_retired_connection_lives_until_its_last_stream_has_ended(
    link: WorkerLink,
) -> None:
    stream = link.run(60)
    reading = asyncio.create_task(stream.receive())
    link.retire()
    await asyncio.wait({reading}, timeout=0.05)
    assert not reading.done()
    stream.abort()
    with pytest.raises(WorkerUnreachable):
        await reading


async def test_a_proxy_of_the_environment_is_not_asked_for_a_worker(
    worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("grpc_proxy", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    link = await WorkerLink.connect(
        worker.endpoint, worker.operator.address, worker.certificate_digest
    )
    signed = await link.get_offer()
    assert signed.offer.operator == worker.operator.address
    await link.close()


async def test_callers_at_the_same_time_share_one_dial(worker: FakeWorker) -> None:
    dials = []

    async def connect(address: str, operator: Address, digest: Digest | None) -> WorkerLink:
        dials.append(address)
        return await WorkerLink.connect(address, operator, digest)

    links = Links(connect)
    offer = worker.offer().offer
    opened = await asyncio.gather(*(links.to(offer) for _ in range(8)))
    assert len(set(map(id, opened))) == len(dials) == 1
    links.retire(offer)
    assert await links.to(offer) is not opened[0]
    await links.close()


async def test_a_job_that_gets_no_frame_does_not_cut_its_neighbours(
    tmp_path: Path, chain: FakeChain, worker: FakeWorker
) -> None:
    """The first job is held at its second canvas while the others fall silent and give up."""
    release = asyncio.Event()
    served: list[int] = []

    async def gate(canvas: int) -> None:
        if canvas == 0 and served:
            await asyncio.Event().wait()
        served.append(canvas)
        if canvas == 1:
            await release.wait()

    worker.script.gate = gate
    impatient = load_config(tmp_path / "none", {"stall_timeout_s": 0.2, "resume_attempts": 1}, {})
    async with open_client(tmp_path, chain, FakeClock()) as client:
        first = asyncio.create_task(collect(client.run(ask("first"))))
        await until(lambda: 1 in served)
        context = replace(client.context, config=impatient)
        (choice,) = (await client.rank(ask())).choices
        for _ in range(3):
            job, row = await prepare(context, choice, ask())
            with pytest.raises((WorkerUnreachable, JobInterrupted)):
                await JobDriver(context, job, EventList()).run()
            context.store.leave(job.id)
            assert await pay_outstanding(client.context, row.id) == ()
        release.set()
        events = await first
        assert text_of(events) == WHOLE
        assert not any(isinstance(event, JobResuming) for event in events)


async def test_four_jobs_at_a_worker_with_one_slot_all_end(
    tmp_path: Path, chain: FakeChain, worker: FakeWorker
) -> None:
    """Three wait in the worker's queue for longer than a silent worker would be given."""

    async def slowly(canvas: int) -> None:
        await pass_time(0.1)

    worker.script.gate, worker.script.heartbeat_s = slowly, 0.05
    worker.script.slot = asyncio.Semaphore(1)
    patience: dict[str, Any] = {
        "stall_timeout_s": 0.4,
        "start_timeout_s": 0.4,
        "resume_attempts": 0,
    }
    async with (
        open_client(tmp_path, chain, FakeClock(), **patience) as client,
        TestServer(Gateway(client, GatewayOptions(None, 8, 5.0)).application()) as server,
        aiohttp.ClientSession() as http,
    ):

        async def ask_gateway(number: int) -> tuple[int, str]:
            messages = [{"role": "user", "content": f"{number}"}]
            body = {"model": "any", "messages": messages, "stream": number % 2 == 0}
            async with http.post(server.make_url("/v1/chat/completions"), json=body) as answer:
                return answer.status, await answer.text()

        for status, text in await asyncio.gather(*(ask_gateway(n) for n in range(4))):
            assert status == 200
            assert "slept well that night ." in text
            assert "error" not in text
        assert len(worker.submissions) == 4
    assert worker.violations == []
