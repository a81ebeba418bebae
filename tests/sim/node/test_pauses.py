"""A worker whose owner needs the machine: jobs wait, are left free of charge or handed back."""

from __future__ import annotations

import pytest

from piecework_node.engine.link import EngineEvent
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.frames import Progress
from piecework_protocol.limits import RESUME_S
from piecework_protocol.objects import Receipt
from piecework_protocol.states import JobState
from piecework_protocol.types import Timestamp
from piecework_protocol.wire import decode_worker_frame
from tests.support.node.harness import TIMEOUTS, Client, JobStream, WorkerHarness

CAUSES = ("the owner said so",)


async def started() -> tuple[WorkerHarness, Client, JobStream]:
    """A job whose client has seen the first step of its first canvas."""
    harness = WorkerHarness()
    await harness.boot()
    client = Client(harness)
    client.open_on_chain()
    line = client.job(3, 64)
    await client.submit(line, drafts=True)
    await harness.engine_step(harness.engine.runnable()[0])
    while client.read(line):
        pass
    return harness, client, line


async def engine_says(harness: WorkerHarness) -> EngineEvent:
    """Hand the engine's own next event to the worker."""
    event = await harness.engine.queue.get()
    await harness.engine_event(event)
    return event


async def pause(harness: WorkerHarness, ends_at: int | None = None) -> None:
    """Begin a pause, up to the engine's word that it stands still."""
    known = None if ends_at is None else Timestamp(ends_at)
    harness.worker.pausing["0"].pause(CAUSES, known)
    await engine_says(harness)


async def resume(harness: WorkerHarness) -> None:
    """End it, up to the engine's word that it goes on."""
    harness.worker.pausing["0"].resume()
    await engine_says(harness)


def last_progress(line: JobStream) -> Progress:
    assert line.sink is not None
    frame = decode_worker_frame(line.sink.frames.pop())
    assert isinstance(frame, Progress)
    return frame


async def receipts_of(*, paused: bool) -> list[Receipt]:
    harness, client, line = await started()
    if paused:
        await pause(harness)
        await client.finish(line)
        assert not line.receipts
        await resume(harness)
    await client.finish(line)
    assert line.finished
    return line.receipts


async def test_a_paused_job_ends_in_the_receipts_of_an_unpaused_one() -> None:
    assert await receipts_of(paused=True) == await receipts_of(paused=False)


async def test_a_pause_tells_every_client_at_once_until_when_and_so_does_its_end() -> None:
    harness, _, line = await started()
    gives_up = harness.clock.now() + TIMEOUTS.pause_s
    await pause(harness)
    assert last_progress(line).paused_until == gives_up
    harness.worker.pausing["0"].pause(CAUSES, Timestamp(harness.clock.now() + 7))
    assert last_progress(line).paused_until == harness.clock.now() + 7
    await resume(harness)
    assert last_progress(line).paused_until == 0


async def test_a_client_that_leaves_in_a_pause_pays_nothing_for_its_canvas() -> None:
    harness, client, line = await started()
    await pause(harness)
    line.cancel()
    await client.deliver(line)
    await client.finish(line)
    assert line.ended is not None and not line.receipts
    assert harness.journal.jobs[line.id].state is JobState.CANCELLED
    await resume(harness)
    await harness.run_engine()
    assert not harness.engine.rows
    assert harness.journal.books[client.id].ledger.cumulative == 0


async def test_a_client_that_leaves_after_a_pause_pays_for_what_was_done() -> None:
    harness, client, line = await started()
    await pause(harness)
    await resume(harness)
    line.cancel()
    await client.deliver(line)
    await client.finish(line)
    (receipt,) = line.receipts
    assert receipt.steps == 1 and receipt.amount > 0


async def test_a_client_that_left_before_a_pause_pays_for_what_was_done() -> None:
    harness, client, line = await started()
    line.cancel()
    await client.deliver(line)
    await pause(harness)
    harness.worker.heartbeat()
    await client.finish(line)
    (receipt,) = line.receipts
    assert receipt.steps == 1 and receipt.amount > 0


async def test_a_client_hears_that_its_job_goes_on_before_it_is_charged_again() -> None:
    harness, client, line = await started()
    assert line.live is not None and harness.runtime.credit is not None
    while not line.live.session.canvases:
        await harness.engine_step(harness.engine.runnable()[0])
    line.live.granted, line.live.short_of_credit = 1, True
    harness.worker.heartbeat()
    assert last_progress(line).paused_until > 0
    while client.read(line):
        pass
    await client.deliver(line)
    assert line.live.granted > 1
    assert last_progress(line).paused_until == 0


async def test_a_client_that_stays_away_in_a_pause_owes_nothing_for_its_canvas() -> None:
    harness, client, line = await started()
    await pause(harness)
    await client.drop(line)
    harness.clock.advance(RESUME_S + 1)
    await harness.worker.tick()
    stored = harness.journal.jobs[line.id]
    assert (stored.state, stored.reason) == (JobState.CANCELLED, Reason.JOB_ENDED)
    assert not stored.canvases


async def test_a_client_can_come_back_in_a_pause_and_waits_on() -> None:
    harness, client, line = await started()
    await pause(harness)
    await client.drop(line)
    await client.submit(line)
    assert last_progress(line).paused_until > 0
    await resume(harness)
    await client.finish(line)
    assert line.finished


async def test_a_pause_that_lasts_hands_its_jobs_back_unpaid() -> None:
    harness, client, line = await started()
    await pause(harness)
    harness.clock.advance(TIMEOUTS.pause_s - 1)
    await harness.worker.tick()
    assert harness.journal.jobs[line.id].state is JobState.RUNNING
    harness.clock.advance(1)
    await harness.worker.tick()
    await client.finish(line)
    assert line.ended is not None and line.ended.reason is Reason.PAUSED
    stored = harness.journal.jobs[line.id]
    assert stored.state is JobState.FAILED and not stored.canvases
    assert harness.metrics.registry.get_sample_value("piecework_jobs_handed_back_total") == 1


async def test_new_jobs_are_refused_by_name_and_told_when_to_ask_again() -> None:
    harness, client, _ = await started()
    await pause(harness, ends_at=harness.clock.now() + 40)
    with pytest.raises(Refusal) as caught:
        await client.submit(client.job(4, 20))
    refusal = caught.value
    assert (refusal.reason, refusal.retry_after_s) == (Reason.PAUSED, 40)
    assert refusal.reason.retryable


async def test_a_pause_lasts_until_the_engine_has_its_memory_back() -> None:
    harness, _, line = await started()
    await pause(harness)
    harness.worker.pausing["0"].resume()
    harness.worker.heartbeat()
    assert last_progress(line).paused_until > 0
    await engine_says(harness)
    assert harness.worker.pausing["0"].now is None


async def test_a_canvas_that_waits_for_credit_does_not_pause_the_one_in_progress() -> None:
    harness, _, line = await started()
    assert line.live is not None
    line.live.short_of_credit = line.live.granted > 0
    harness.worker.heartbeat()
    assert last_progress(line).paused_until == 0
