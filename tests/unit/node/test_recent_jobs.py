"""The window over a worker's newest jobs, and what its offers say from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from piecework_node.daemon.offered import with_claims
from piecework_node.home import Home
from piecework_node.jobs.offers import OfferBoard
from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import ChannelSeen, EndedJob, StoredJob
from piecework_node.journal.sqlite import SqliteJournal
from piecework_node.runtime.recent import RECENT_JOBS, RecentJobs
from piecework_protocol.limits import MAX_DETAILS_BYTES
from piecework_protocol.objects import Finish
from piecework_protocol.types import Bytes32, Digest, Timestamp, Uint32
from piecework_protocol.usual import ENOUGH_JOBS, Source, usual_jobs
from piecework_protocol.worker_session import StoredCanvas
from tests.support.clock import FakeClock
from tests.support.node.fake_engine import FACTS
from tests.support.node.harness import (
    DOMAIN,
    OPERATOR,
    TERMS,
    Client,
    WorkerHarness,
    address_with,
    entry,
)
from tests.support.node.memory_journal import MemoryJournal
from tests.support.node.records import CHANNEL_ID, KEY, RECEIPT, SUBMISSION
from tests.unit.node.test_admission import CHANNEL


def ended(steps: int, units: int, **changes: object) -> EndedJob:
    """A job that took so much, as its last receipt says."""
    last = RECEIPT.replace(
        finish=Finish.END_OF_TEXT, total_steps=Uint32(steps), total_units=Uint32(units)
    )
    return EndedJob(FACTS.digest, last.replace(**changes))


def window(*jobs: EndedJob) -> RecentJobs:
    recent = RecentJobs()
    recent.load(jobs)
    return recent


def test_before_enough_receipts_the_benchmark_speaks() -> None:
    recent = window(*[ended(60, 100)] * (ENOUGH_JOBS - 1))
    found = recent.usual(FACTS)
    assert found is not None
    assert (found.source, found.jobs) == (Source.BENCHMARK, 0)
    assert found.steps_p50 == FACTS.steps_per_second * 1_000_000 // FACTS.tokens_per_second
    assert found.output_tokens == FACTS.answer_tokens == 120
    recent.ended(ended(60, 100))
    found = recent.usual(FACTS)
    assert found is not None
    assert (found.source, found.jobs, found.steps_p50) == (Source.RECEIPTS, ENOUGH_JOBS, 600_000)


def test_only_the_newest_jobs_count() -> None:
    recent = window(*[ended(10, 100)] * 1_000, *[ended(90, 100)] * RECENT_JOBS)
    found = recent.usual(FACTS)
    assert found is not None
    assert (found.jobs, found.steps_p50, found.steps_p90) == (RECENT_JOBS, 900_000, 900_000)


def test_reads_cancelled_jobs_and_other_models_do_not_count() -> None:
    other = EndedJob(Digest(bytes(32)), ended(90, 100).last)
    cancelled = ended(90, 100, finish=Finish.CANCELLED)
    unfinished = ended(90, 100, finish=Finish.MORE)
    noise = [other, cancelled, unfinished, ended(1, 0)]
    recent = window(*noise * 40, *[ended(60, 100)] * ENOUGH_JOBS)
    found = recent.usual(FACTS)
    assert found is not None
    assert (found.jobs, found.steps_p90) == (ENOUGH_JOBS, 600_000)


async def filled(journal: Journal, jobs: int) -> list[EndedJob]:
    """Journal so many jobs of one canvas, and one more that has none."""
    await journal.append([ChannelSeen(CHANNEL_ID, CHANNEL)])
    made = []
    for number in range(jobs + 1):
        job = SUBMISSION.job.replace(salt=Bytes32(number.to_bytes(32, "big")))
        key = job.id(DOMAIN)
        await journal.append([StoredJob(key, replace(SUBMISSION, job=job), 10, Timestamp(7))])
        if number < jobs:
            last = RECEIPT.replace(job=key, previous=Digest(key), total_steps=Uint32(number))
            await journal.append([StoredCanvas(last, b"sealed", b"")])
            made.append(EndedJob(job.model, last))
    return made


@pytest.mark.parametrize("on_disk", [False, True])
async def test_the_journal_gives_the_newest_jobs_oldest_first(
    tmp_path: Path, on_disk: bool
) -> None:
    disk = await SqliteJournal.open(tmp_path / "journal.db", DOMAIN, OPERATOR.address)
    journal: Journal = disk if on_disk else MemoryJournal(DOMAIN)
    made = await filled(journal, 12)
    assert await journal.recent_jobs(100) == tuple(made)
    # Of the newest five one has no receipt yet.
    assert await journal.recent_jobs(5) == tuple(made[-4:])
    await disk.close()


async def test_an_offer_says_what_the_worker_measured(tmp_path: Path) -> None:
    home = Home(tmp_path)
    recent = window(*[ended(60, 100)] * ENOUGH_JOBS)
    board = OfferBoard(
        MemoryJournal(DOMAIN),
        TERMS,
        domain=DOMAIN,
        signer=OPERATOR,
        clock=FakeClock(),
    )
    lines = with_claims((entry(),), home, recent)
    offer = (await board.issue(lines, address_with(KEY))).offer
    assert usual_jobs(offer, offer.models[0]) == recent.usual(FACTS)
    assert json.loads(offer.details)["hardware"] == "none"
    large = replace(FACTS, details={"hardware": "x" * MAX_DETAILS_BYTES})
    lines = with_claims((replace(entry(), facts=large),), home, recent)
    offer = (await board.issue(lines, address_with(KEY))).offer
    assert usual_jobs(offer, offer.models[0]) == recent.usual(FACTS)
    assert len(offer.details) <= MAX_DETAILS_BYTES


async def test_a_worker_counts_its_jobs_and_remembers_them_over_a_restart() -> None:
    harness = WorkerHarness()
    await harness.boot()
    client = Client(harness, deposit=10_000_000)
    client.open_on_chain()
    for seed in range(ENOUGH_JOBS + 5):
        line = client.job(seed, 16)
        await client.submit(line)
        await client.finish(line)
    before = harness.runtime.recent.usual(FACTS)
    assert before is not None
    last = [j.canvases[-1].receipt for j in harness.journal.jobs.values()]
    charged = [r for r in last if r.total_units]
    assert (before.source, before.jobs) == (Source.RECEIPTS, len(charged))
    ratios = sorted(r.total_steps * 1_000_000 // r.total_units for r in charged)
    assert before.steps_p50 == ratios[(len(ratios) - 1) // 2]
    await harness.boot()
    assert harness.runtime.recent.usual(FACTS) == before
