"""Processes that share one home: nobody touches a job that another living one follows."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from piecework.client.errors import JobFollowed
from piecework.client.jobs.outstanding import pay_outstanding
from piecework.client.journal.records import JobStatus
from piecework.client.journal.store import Store
from piecework_protocol.types import JobId
from tests.support.chain.fake_chain import DOMAIN, TOKEN, FakeChain
from tests.support.client.client_side import (
    MONEY,
    PAYER,
    CanvasText,
    FakeClock,
    ask,
    collect,
    last,
    open_client,
    text_of,
)
from tests.support.client.fake_worker import STORY, FakeWorker
from tests.unit.client.test_store import NOW

ROOT = Path(__file__).resolve().parents[3]
Following = tuple["subprocess.Popen[bytes]", JobId]


@pytest.fixture
def following(tmp_path: Path) -> Iterator[Following]:
    """Another process that follows a job in the home `tmp_path`."""
    process = subprocess.Popen(
        (
            sys.executable,
            "-P",
            "-m",
            "tests.support.client.following_process",
            str(tmp_path / "client.db"),
        ),
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdin is not None
    yield process, JobId(bytes.fromhex(process.stdout.readline().decode().strip()))
    process.kill()
    process.wait()
    process.stdout.close()
    process.stdin.close()


@pytest.mark.process
def test_a_job_is_free_as_soon_as_its_process_is_killed(
    tmp_path: Path, following: Following
) -> None:
    process, job = following
    store = Store(tmp_path / "client.db", DOMAIN, PAYER.address)
    assert store.is_followed(store.job(job))
    assert store.reservations(TOKEN, NOW)
    with pytest.raises(JobFollowed):
        store.take_over(job)
    process.kill()
    process.wait()
    assert not store.is_followed(store.job(job))
    assert store.reservations(TOKEN, NOW) == ()
    assert store.take_over(job).owner == store.owner
    store.close()
    assert [file.name for file in (tmp_path / "owners").iterdir()] == []


async def test_settling_a_channel_cancels_no_job_that_another_process_follows(
    tmp_path: Path,
) -> None:
    """The second process is told to settle while the worker has unpaid canvases of the first."""
    chain, clock, hold = FakeChain(), FakeClock(), asyncio.Event()
    chain.deposit(PAYER.address, MONEY)

    async def gate(canvas: int) -> None:
        if canvas == 2:
            await hold.wait()

    async with (
        FakeWorker(chain, clock) as worker,
        open_client(tmp_path, chain, clock) as one,
        open_client(tmp_path, chain, clock) as two,
    ):
        worker.script.gate = gate
        run = one.run(ask())
        events = []
        async with run:
            async for event in run:
                events.append(event)
                if isinstance(event, CanvasText) and event.canvas == 1:
                    channel = two.store.channels()[0].id
                    await pay_outstanding(two.context, channel)
                    with pytest.raises(JobFollowed):
                        await collect(two.resume(one.store.jobs()[0].id))
                    hold.set()
        assert text_of(events) == " ".join(STORY)
        assert last(events).acknowledged
        assert worker.cancels == 0 and len(worker.submissions) == 1


async def test_an_acknowledgement_is_fetched_without_cancelling_anything(tmp_path: Path) -> None:
    """The worker lost the confirmation of a finished job's voucher."""
    chain, clock = FakeChain(), FakeClock()
    chain.deposit(PAYER.address, MONEY)
    async with (
        FakeWorker(chain, clock) as worker,
        open_client(tmp_path, chain, clock, acknowledgement_timeout_s=0.05) as client,
    ):
        worker.script.story = STORY[:8]
        worker.script.acknowledges = False
        assert not last(await collect(client.run(ask()))).acknowledged
        worker.script.acknowledges = True
        row = client.store.channels()[0]
        assert await pay_outstanding(client.context, row.id) == ()
        assert client.store.channel(row.id).book.acknowledged == 1
        assert worker.cancels == 0
        assert client.store.jobs()[0].status is JobStatus.COMPLETE
