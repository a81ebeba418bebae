"""What goes wrong in one job's unit of work ends that job. Its neighbours and the daemon go on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest

from piecework_node.errors import JournalConflict, JournalError
from piecework_node.journal.records import JournalRecord, StoredJob, VoucherApplied
from piecework_node.journal.sqlite import SqliteJournal
from piecework_protocol.errors import InvariantBroken, MalformedInput, Reason, Refusal
from piecework_protocol.frames import Accepted, CancelJob, FundingAuthorization
from piecework_protocol.objects import FundChannel
from piecework_protocol.signing import sign
from piecework_protocol.states import ENDED_STATES
from piecework_protocol.types import Amount, JobId, PayerSignature, Timestamp
from piecework_protocol.wire import decode_worker_frame
from piecework_protocol.worker_session import StateRecord, StoredCanvas
from tests.support.node.harness import (
    DOMAIN,
    OPERATOR,
    Client,
    JobStream,
    WorkerHarness,
    parameters,
)
from tests.support.node.memory_journal import MemoryJournal
from tests.support.node.twin_journal import TwinJournal
from tests.support.protocol import extremes


class FailingJournal(MemoryJournal):
    """Raises an error at a chosen append of one job, once, and writes nothing then."""

    def __init__(self) -> None:
        super().__init__(DOMAIN)
        self.appends, self.at = 0, 0
        self.error: Exception = JournalConflict("injected")
        self.concerned: JobId | None = None

    def fail(self, job: JobId, at: int, error: Exception) -> None:
        """Fail at the `at`-th append from now that concerns a job. 0: never."""
        self.concerned, self.appends, self.at, self.error = job, 0, at, error

    async def append(self, records: Sequence[JournalRecord]) -> None:
        if any(_concerns(record, self.concerned) for record in records):
            self.appends += 1
            if self.appends == self.at:
                raise self.error
        await super().append(records)


def _concerns(record: JournalRecord, job: JobId | None) -> bool:
    match record:
        case StoredJob():
            return record.id == job
        case StateRecord():
            return record.job == job
        case StoredCanvas():
            return record.receipt.job == job
        case VoucherApplied():
            return any(ref.job == job for ref in record.paid)
    return False


class Stage:
    """A worker, a client whose job is struck, and its neighbour on another channel."""

    def __init__(self, journal: MemoryJournal) -> None:
        self.harness = WorkerHarness()
        self.harness.journal = journal

    async def start(self) -> None:
        await self.harness.boot()
        self.struck = Client(self.harness, "struck")
        self.neighbour = Client(self.harness, "neighbour")
        for client in (self.struck, self.neighbour):
            client.open_on_chain()
        self.failure = asyncio.ensure_future(self.harness.runtime.failure())

    @property
    def ended(self) -> bool:
        """Whether the daemon would end."""
        return self.failure.done()

    async def stop(self) -> None:
        self.failure.cancel()
        await asyncio.gather(self.failure, return_exceptions=True)


async def trade(client: Client, line: JobStream) -> None:
    """Trade as far as the worker lets us."""
    try:
        await client.submit(line)
        await client.finish(line)
    except Exception:  # noqa: BLE001  whatever a peer would see as INTERNAL
        client.forget(line)


async def appends_of_a_job() -> int:
    journal = FailingJournal()
    stage = Stage(journal)
    await stage.start()
    line = stage.struck.job(3, 40)
    journal.fail(line.id, 0, JournalConflict("never"))
    await trade(stage.struck, line)
    await stage.stop()
    return journal.appends


@pytest.mark.parametrize(
    "error",
    [JournalConflict("injected"), OverflowError("int too big"), InvariantBroken("ours")],
    ids=["conflict", "overflow", "invariant"],
)
async def test_an_error_at_any_write_of_a_job_ends_that_job_alone(error: Exception) -> None:
    total = await appends_of_a_job()
    assert total > 4
    for at in range(1, total + 1):
        journal = FailingJournal()
        stage = Stage(journal)
        await stage.start()
        line, other = stage.struck.job(3, 40), stage.neighbour.job(4, 40)
        await stage.neighbour.submit(other)
        journal.fail(line.id, at, error)
        await trade(stage.struck, line)
        await stage.harness.runtime.wait_idle()
        journal.fail(line.id, 0, error)
        stage.struck.forget(line)
        await stage.neighbour.finish(other)
        assert other.finished, f"the neighbour suffers from an error at append {at}"
        assert not stage.ended
        stored = journal.jobs.get(line.id)
        assert stored is None or stored.state in ENDED_STATES
        assert all(job.id != line.id for job in stage.harness.runtime.sequences.values())
        await owed_is_paid(stage, line)
        await stage.stop()


async def owed_is_paid(stage: Stage, line: JobStream) -> None:
    """The client that comes back learns what it has, pays for it, and gets the next text."""
    client = stage.struck
    if line.id in stage.harness.journal.jobs:
        await client.submit(line)
        await client.finish(line)
        client.forget(line)
    book = stage.harness.journal.books.get(client.id)
    assert book is None or not book.ledger.unpaid
    again = client.job(99, 20)
    await client.submit(again)
    await client.finish(again)
    assert again.finished


async def test_a_disk_that_fails_ends_the_daemon() -> None:
    journal = FailingJournal()
    stage = Stage(journal)
    await stage.start()
    line = stage.struck.job(3, 40)
    journal.fail(line.id, 2, JournalError("no space left"))
    await trade(stage.struck, line)
    with pytest.raises(JournalError, match="no space left"):
        await asyncio.wait_for(stage.failure, 5)


async def test_two_jobs_with_one_salt_are_one_job_and_a_conflict(tmp_path: Path) -> None:
    """The first is admitted, cancelled and forgotten before the second is journaled."""
    harness, disk = await on_disk(tmp_path)
    client = Client(harness)
    client.open_on_chain()
    first, second = client.job(1, 20), client.job(1, 40)
    assert first.job.salt == second.job.salt and first.id != second.id
    await client.submit(first)
    assert first.live is not None and first.sink is not None
    await harness.worker.receive(first.live, first.sink, CancelJob())
    with pytest.raises(Refusal) as caught:
        await client.submit(second)
    assert caught.value.reason is Reason.JOB_CONFLICT
    assert await disk.verify()
    after = client.job(7, 20)
    await client.submit(after)
    await client.finish(after)
    assert after.finished
    await disk.close()


async def test_many_jobs_with_one_salt_at_once_are_one_job(tmp_path: Path) -> None:
    harness, disk = await on_disk(tmp_path)
    client = Client(harness)
    client.open_on_chain()
    await trade(client, client.job(50, 8))
    rivals = [client.job(1, tokens) for tokens in (20, 24, 40)]
    results = await asyncio.gather(*map(client.submit, rivals), return_exceptions=True)
    refused = [r.reason for r in results if isinstance(r, Refusal)]
    assert refused == [Reason.JOB_CONFLICT] * 2, results
    await disk.close()


NUMBERS = [
    pytest.param(path, value, id=f"{extremes.name(path)}={value}")
    for path in (
        ("channel", "withdrawal_delay"),
        *(("funding", f.name) for f in fields(FundChannel) if f.name != "channel"),
        ("job", "deadline"),
        *(("parameters", *path) for path in extremes.integers(parameters(1, 20))),
    )
    for value in extremes.EXTREMES
]


@pytest.mark.parametrize(("path", "value"), NUMBERS)
async def test_a_signed_submission_with_an_extreme_number_ends_nothing(
    path: tuple[str, ...], value: int, tmp_path: Path
) -> None:
    harness, disk = await on_disk(tmp_path)
    failure = asyncio.ensure_future(harness.runtime.failure())
    client = Client(harness, "strange")
    try:
        line, funding = strange(harness, client, path, value)
        await client.submit(line, funding=funding)
    except (Refusal, MalformedInput, ValueError):
        client = Client(harness, "strange")
    await harness.runtime.wait_idle()
    other = Client(harness, "neighbour")
    other.open_on_chain()
    await trade(other, job := other.job(4, 20))
    assert job.finished
    assert not failure.done()
    assert await disk.verify()
    failure.cancel()
    await asyncio.gather(failure, return_exceptions=True)
    await disk.close()


def strange(
    harness: WorkerHarness, client: Client, path: tuple[str, ...], value: int
) -> tuple[JobStream, FundingAuthorization]:
    """A signed job and funding of which one number is extreme.

    Raises:
        ValueError: a class does not take the number.
    """
    part, *rest = path
    where, now = tuple(rest), harness.clock.now()
    if part == "channel":
        client.channel = extremes.changed(client.channel, where, value)
        client.id = client.channel.id(DOMAIN)
    harness.chain.pooled[client.channel.token, client.channel.payer] = 2**128 - 1
    authorization = FundChannel(
        client.channel, client.deposit, Amount(0), Timestamp(int(now) + 3600)
    )
    if part == "funding":
        authorization = extremes.changed(authorization, where, value)
    funding = FundingAuthorization(
        authorization, PayerSignature(sign(DOMAIN, authorization, client.signer))
    )
    asked = parameters(3, 20)
    if part == "parameters":
        asked = extremes.changed(asked, where, value)
    deadline = value if path == ("job", "deadline") else int(now) + 3600
    return JobStream.sealed(client, harness.offer, "a fox", asked, deadline), funding


async def on_disk(folder: Path) -> tuple[WorkerHarness, SqliteJournal]:
    """A worker over the real journal."""
    harness = WorkerHarness()
    disk = await SqliteJournal.open(
        folder / "journal.db", DOMAIN, OPERATOR.address, clock=harness.clock
    )
    harness.journal = TwinJournal(DOMAIN, disk)
    await harness.boot()
    return harness, disk


class BeatingJournal(MemoryJournal):
    """A heartbeat falls into every write."""

    def __init__(self) -> None:
        super().__init__(DOMAIN)
        self.harness: WorkerHarness | None = None

    async def append(self, records: Sequence[JournalRecord]) -> None:
        if self.harness is not None:
            self.harness.worker.heartbeat()
        await super().append(records)


async def test_a_heartbeat_during_an_admission_waits_for_the_acceptance() -> None:
    journal = BeatingJournal()
    stage = Stage(journal)
    await stage.start()
    journal.harness = stage.harness
    line = stage.struck.job(3, 40)
    await stage.struck.submit(line)
    assert line.sink is not None
    first = decode_worker_frame(line.sink.frames[0])
    assert isinstance(first, Accepted)
    await stage.struck.drop(line)
    await stage.struck.submit(line)
    assert isinstance(decode_worker_frame(line.sink.frames[0]), Accepted)
    await stage.stop()
