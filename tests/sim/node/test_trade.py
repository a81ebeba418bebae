"""One worker and one client without faults: what a job looks like from both ends."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from piecework_protocol.credit import CreditTerms
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.frames import Accepted, Progress
from piecework_protocol.limits import MAX_CANVASES_AHEAD, RESUME_S
from piecework_protocol.objects import Finish
from piecework_protocol.states import ChannelState, JobState
from piecework_protocol.types import Amount, PayerSignature
from piecework_protocol.wire import decode_worker_frame
from tests.support.node.faults import KillSwitch
from tests.support.node.harness import CANVAS, TERMS, Client, WorkerHarness

NARROW = replace(
    TERMS, credit=CreditTerms(Amount(150), Amount(20_000), Amount(100_000), Amount(600))
)
"""A stranger gets two canvases."""


async def ready(deposit: int = 1_000_000) -> tuple[WorkerHarness, Client]:
    harness = WorkerHarness()
    await harness.boot()
    client = Client(harness, deposit=deposit)
    client.open_on_chain()
    return harness, client


async def test_the_engine_stops_two_canvases_ahead_and_goes_on_after_a_voucher() -> None:
    harness, client = await ready()
    line = client.job(3, 64)
    await client.submit(line)
    await harness.run_engine()
    assert len(harness.journal.jobs[line.id].canvases) == MAX_CANVASES_AHEAD
    while client.read(line):
        pass
    await client.deliver(line)
    await harness.run_engine()
    assert len(harness.journal.jobs[line.id].canvases) == MAX_CANVASES_AHEAD + 1


async def test_of_the_vouchers_that_wait_the_newest_is_journaled_for_all_of_them() -> None:
    harness, client = await ready()
    lines = [client.job(seed, CANVAS) for seed in range(3)]
    for line in lines:
        await client.submit(line)
        assert client.read(line)
    await harness.run_engine()
    for line in lines:
        while client.read(line):
            pass
    channel = harness.channels.get(client.id)
    assert channel is not None
    commits = harness.journal.commits
    async with channel.lock:
        paying = [asyncio.create_task(client.deliver(line)) for line in lines]
        await asyncio.wait(paying, timeout=0.01)
    await asyncio.gather(*paying)
    assert harness.journal.commits == commits + 1
    assert harness.journal.books[client.id].ledger.accumulator.count == len(lines)
    assert all(harness.journal.jobs[line.id].state is JobState.PAID for line in lines)
    assert not channel.arriving and not channel.jobs


async def test_a_cancelled_job_owes_what_was_delivered_and_nothing_else() -> None:
    harness, client = await ready()
    line = client.job(3, 64)
    await client.submit(line)
    await harness.engine_step(harness.engine.runnable()[0])
    line.cancel()
    await client.deliver(line)
    await client.finish(line)
    assert not harness.engine.rows
    assert line.ended is not None and line.ended.reason is None
    assert len(line.receipts) == 1
    assert harness.journal.books[client.id].ledger.cumulative == line.receipts[0].amount


async def test_a_client_that_leaves_a_canvas_in_progress_pays_for_the_draft_that_it_saw() -> None:
    harness, client = await ready()
    line = client.job(3, 64)
    await client.submit(line, drafts=True)
    await harness.engine_step(harness.engine.runnable()[0])
    while client.read(line):
        pass
    line.cancel()
    await client.deliver(line)
    await client.finish(line)
    (receipt,) = line.receipts
    assert (receipt.finish, receipt.steps, receipt.units) == (Finish.CANCELLED, 1, 3)
    assert line.text == ["draft"]
    assert harness.journal.jobs[line.id].state is JobState.CANCELLED
    assert harness.journal.books[client.id].ledger.cumulative == receipt.amount > 0


async def test_a_cancel_while_the_engine_is_away_ends_the_job_at_once() -> None:
    harness, client = await ready()
    line = client.job(3, 64)
    await client.submit(line)
    await harness.engine_event(harness.engine.lose())
    line.cancel()
    await client.deliver(line)
    assert harness.journal.jobs[line.id].state is JobState.CANCELLED
    while client.read(line):
        pass
    assert line.ended is not None and not line.receipts


async def test_a_canvas_that_had_begun_is_finished_and_owed_after_a_drop() -> None:
    harness, client = await ready()
    line = client.job(3, 64)
    await client.submit(line, drafts=True)
    await harness.engine_step(harness.engine.runnable()[0])
    await client.drop(line)
    await harness.run_engine()
    stored = harness.journal.jobs[line.id]
    assert (stored.state, len(stored.canvases)) == (JobState.SUSPENDED, 1)
    assert harness.worker.active == 0
    await client.submit(line)
    await client.finish(line)
    assert line.finished and not harness.journal.books[client.id].ledger.unpaid


async def test_a_stream_that_is_not_resumed_in_time_ends_its_job_for_ever() -> None:
    harness, client = await ready()
    line = client.job(3, 64)
    await client.submit(line)
    await client.drop(line)
    await harness.run_engine()
    harness.clock.advance(RESUME_S)
    await harness.worker.tick()
    assert harness.journal.jobs[line.id].state is JobState.CANCELLED
    await client.submit(line)
    while client.read(line):
        pass
    assert line.ended is not None and line.ended.reason is Reason.JOB_ENDED
    assert not harness.engine.rows


async def test_silence_means_death_so_a_waiting_job_is_told_its_place() -> None:
    harness, client = await ready()
    first, second = client.job(3, 64), client.job(4, 64)
    await client.submit(first)
    await client.submit(second)
    while client.read(first) or client.read(second):
        pass
    harness.worker.heartbeat()
    assert second.sink is not None
    frame = decode_worker_frame(second.sink.frames[-1])
    assert frame == Progress(second.id, 0, 0, 0, queue_position=2)


class Heartbeats(KillSwitch):
    """A heartbeat at every point at which the process could have been killed."""

    def __init__(self, harness: WorkerHarness) -> None:
        super().__init__()
        self._harness, self._beating = harness, False

    def point(self) -> None:
        super().point()
        if self._beating or not hasattr(self._harness, "worker"):
            return
        self._beating = True
        self._harness.worker.heartbeat()
        self._beating = False


async def test_no_frame_comes_before_the_acceptance_not_even_a_heartbeat() -> None:
    """A job whose acceptance is not durable yet has a stream and no word on it."""
    harness = WorkerHarness()
    await harness.boot(Heartbeats(harness))
    client = Client(harness)
    client.open_on_chain()
    line = client.job(3, 64)
    for _ in range(2):  # the second time the job returns
        await client.submit(line)
        harness.worker.heartbeat()
        assert line.sink is not None
        frames = [decode_worker_frame(frame) for frame in line.sink.frames]
        assert isinstance(frames[0], Accepted) and isinstance(frames[-1], Progress)


class OwedAtEveryPoint(KillSwitch):
    """What the payers owe at every point between two effects, as others would see it there."""

    def __init__(self, harness: WorkerHarness) -> None:
        super().__init__()
        self._harness = harness
        self.owed: list[int] = []
        self.committed: list[int] = []

    def point(self) -> None:
        super().point()
        credit = self._harness.runtime.credit if hasattr(self._harness, "worker") else None
        if credit is not None:
            self.owed.append(credit.totals().owed)
            self.committed.append(sum(live.committed for live in self._harness.channels))


async def test_a_canvas_is_owed_while_its_receipt_is_being_made_durable() -> None:
    """Between its reservation and its receipt nobody else may begin work with the same credit."""
    harness = WorkerHarness()
    seen = OwedAtEveryPoint(harness)
    await harness.boot(seen)
    client = Client(harness)
    client.open_on_chain()
    line = client.job(3, 64)
    await client.submit(line)
    seen.owed.clear()
    seen.committed.clear()
    await harness.run_engine()
    charged = [c.receipt.amount for c in harness.journal.jobs[line.id].canvases]
    assert len(charged) == MAX_CANVASES_AHEAD
    assert seen.owed and min(seen.owed) >= charged[0]
    credit = harness.runtime.credit
    assert credit is not None and min(seen.owed) >= credit.totals().owed == sum(charged)
    assert min(seen.committed) == seen.committed[-1]


async def test_a_newer_stream_takes_the_job_over() -> None:
    harness, client = await ready()
    line = client.job(3, 64)
    await client.submit(line)
    old = line.sink
    await client.submit(line)
    assert old is not None and old.refusal is not None and old.refusal.reason is Reason.JOB_BUSY
    assert len(harness.engine.rows) == 1
    await client.finish(line)
    assert line.finished


async def test_a_job_resumes_where_it_was_after_a_drop() -> None:
    harness, client = await ready()
    line = client.job(3, 64)
    await client.submit(line)
    await harness.run_engine()
    client.read(line)
    client.read(line)
    await client.drop(line)
    assert harness.journal.jobs[line.id].state is JobState.SUSPENDED
    await client.submit(line)
    assert len(harness.engine.started) == 1, "it was still there, and goes on"
    await client.finish(line)
    assert line.finished
    assert not harness.journal.books[client.id].ledger.unpaid


async def test_unpaid_canvases_of_a_job_that_left_block_the_channel_until_they_are_paid() -> None:
    harness, client = await ready()
    first, second = client.job(3, 64), client.job(4, 64)
    await client.submit(first)
    await harness.run_engine()
    await client.drop(first)
    with pytest.raises(Refusal) as caught:
        await client.submit(second)
    assert caught.value.reason is Reason.UNPAID_RECEIPTS
    await client.submit(first)
    await client.finish(first)
    await client.submit(second)
    await client.finish(second)
    assert second.finished


async def test_a_job_that_is_not_paid_for_is_suspended_after_the_payment_timeout() -> None:
    harness, client = await ready()
    line = client.job(3, 64)
    await client.submit(line)
    await harness.run_engine()
    harness.clock.advance(harness.timeouts.payment_s + 1)
    await harness.worker.tick()
    assert harness.journal.jobs[line.id].state is JobState.SUSPENDED
    assert line.sink is not None and line.sink.refusal is not None
    assert line.sink.refusal.reason is Reason.UNPAID_RECEIPTS
    await harness.run_engine()
    assert harness.worker.active == 0


async def test_a_job_that_waits_for_its_client_takes_no_steps() -> None:
    """Energy counts while steps are taken. A client that pays late must not make tokens dear."""
    harness, client = await ready()
    line = client.job(3, 64)
    await client.submit(line)
    assert harness.worker.views.taking_steps == 1
    await harness.run_engine()
    assert (harness.worker.active, harness.worker.views.taking_steps) == (1, 0)
    while client.read(line):
        pass
    await client.deliver(line)
    assert harness.worker.views.taking_steps == 1
    await client.finish(line)
    assert harness.worker.views.taking_steps == 0


async def test_a_deadline_ends_a_suspended_job() -> None:
    harness, client = await ready()
    line = client.job(3, 64)
    await client.submit(line)
    await client.drop(line)
    harness.clock.advance(4000)
    await harness.worker.tick()
    await harness.run_engine()
    stored = harness.journal.jobs[line.id]
    assert stored.state is JobState.CANCELLED
    assert stored.reason is Reason.EXPIRED


async def test_a_stranger_is_served_within_its_credit_and_goes_on_when_its_deposit_is_final() -> (
    None
):
    harness = WorkerHarness(terms=NARROW)
    await harness.boot()
    client = Client(harness)
    harness.chain.pooled[client.channel.token, client.channel.payer] = client.deposit
    harness.chain.shallow[client.id] = Amount(0)
    line = client.job(3, 64)
    await client.submit(line, funding=client.funding())
    assert [live.id for live in harness.channels if live.wants_funding] == [client.id]
    await client.finish(line)
    credit = harness.runtime.credit
    assert credit is not None
    account = credit.payer(client.channel.payer)
    assert not line.finished and account.owed <= account.limit == NARROW.credit.first
    harness.worker.heartbeat()
    assert line.sink is not None
    paused = decode_worker_frame(line.sink.frames.pop())
    assert isinstance(paused, Progress) and paused.paused_until > harness.clock.now()
    del harness.chain.shallow[client.id]
    client.open_on_chain()
    await harness.channels.observe(client.id)
    await harness.worker.tick()
    await client.finish(line)
    assert line.finished and credit.totals().owed == 0


async def test_a_voucher_lets_another_job_of_its_channel_go_on_at_once() -> None:
    credit = replace(NARROW.credit, first=Amount(200))
    harness = WorkerHarness(terms=replace(NARROW, credit=credit))
    await harness.boot()
    client = Client(harness)
    client.open_on_chain()
    one, other = client.job(3, 64), client.job(4, 64)
    await client.submit(one)
    await client.submit(other)
    await harness.run_engine()
    assert other.live is not None and other.live.waits_for_credit
    granted = other.live.granted
    while client.read(one) or await client.deliver(one):
        pass
    assert other.live.granted > granted, "no tick is needed"


async def test_a_new_job_of_a_payer_without_credit_is_refused_before_it_is_accepted() -> None:
    harness = WorkerHarness(terms=NARROW)
    await harness.boot()
    client = Client(harness)
    harness.chain.pooled[client.channel.token, client.channel.payer] = client.deposit
    harness.chain.shallow[client.id] = Amount(0)
    line, other = client.job(3, 64), client.job(4, 64)
    await client.submit(line, funding=client.funding())
    await client.finish(line)
    with pytest.raises(Refusal) as caught:
        await client.submit(other, funding=client.funding())
    assert caught.value.reason is Reason.CREDIT_EXHAUSTED
    assert caught.value.retry_after_s is not None
    assert other.id not in harness.journal.jobs


async def test_what_one_payer_leaves_unpaid_when_its_channel_closes_keeps_no_new_payer_out() -> (
    None
):
    terms = replace(NARROW, credit=replace(NARROW.credit, strangers=NARROW.credit.first))
    harness = WorkerHarness(terms=terms)
    await harness.boot()
    leaver = Client(harness, "leaver")
    leaver.open_on_chain()
    line = leaver.job(3, 64)
    await leaver.submit(line)
    await harness.run_engine()
    await leaver.drop(line)
    await harness.run_engine()
    harness.chain.channels[leaver.id].state = ChannelState.CLOSED
    await harness.channels.observe(leaver.id)
    credit = harness.runtime.credit
    assert credit is not None and credit.totals().owed > 0
    assert (
        credit.strangers == 0
        and credit.totals().bound == terms.credit.strangers + credit.totals().owed
    )
    client = Client(harness, "newcomer")
    harness.chain.pooled[client.channel.token, client.channel.payer] = client.deposit
    harness.chain.shallow[client.id] = Amount(0)
    await client.submit(client.job(4, 64), funding=client.funding())


async def test_a_payer_whose_channel_was_closed_comes_back_as_a_stranger() -> None:
    harness, client = await ready()
    line = client.job(3, 64)
    await client.submit(line)
    await client.finish(line)
    harness.chain.channels[client.id].state = ChannelState.CLOSED
    await harness.channels.observe(client.id)
    again = Client(harness, salt=1)
    harness.chain.pooled[again.channel.token, again.channel.payer] = again.deposit
    harness.chain.shallow[again.id] = Amount(0)
    await again.submit(again.job(4, 64), funding=again.funding())
    credit = harness.runtime.credit
    assert credit is not None and credit.is_stranger(client.channel.payer)


async def test_an_authorization_is_not_believed_beyond_what_the_payer_has_pooled() -> None:
    harness = WorkerHarness()
    await harness.boot()
    first, second = Client(harness), Client(harness, salt=1)
    harness.chain.pooled[first.channel.token, first.channel.payer] = first.deposit
    await first.submit(first.job(3, 64), funding=first.funding())
    with pytest.raises(Refusal) as caught:
        await second.submit(second.job(4, 64), funding=second.funding())
    assert caught.value.reason is Reason.UNDERFUNDED


async def test_a_smart_account_that_says_it_signed_can_open_a_channel() -> None:
    harness = WorkerHarness()
    await harness.boot()
    client = Client(harness)
    payer = client.channel.payer
    harness.chain.pooled[client.channel.token, payer] = client.deposit
    funding = replace(client.funding(), signature=PayerSignature(bytes(range(200))))
    with pytest.raises(Refusal) as caught:
        await client.submit(client.job(3, 64), funding=funding)
    assert caught.value.reason is Reason.BAD_SIGNATURE
    harness.chain.signed.add((payer, funding.authorization, funding.signature))
    line = client.job(4, 64)
    await client.submit(line, funding=funding)
    assert [live.id for live in harness.channels if live.wants_funding] == [client.id]


async def test_what_the_payer_took_back_pays_for_no_more_text() -> None:
    harness, client = await ready()
    harness.chain.channels[client.id].withdrawn = Amount(client.deposit - 1)
    await harness.channels.observe(client.id)
    with pytest.raises(Refusal) as caught:
        await client.submit(client.job(3, 64))
    assert caught.value.reason is Reason.UNDERFUNDED


async def test_a_voucher_on_one_stream_lets_the_jobs_of_the_others_go_on() -> None:
    harness, client = await ready()
    first, second = client.job(3, 64), client.job(9, 64)
    await client.submit(first)
    await client.submit(second)
    await harness.run_engine()
    for line in (first, second):
        while client.read(line):
            pass
    # Only the newest voucher is delivered, on the second stream: it names the first job's receipts
    # too.
    first.upward.clear()
    newest = second.upward.pop()
    second.upward.clear()
    second.upward.append(newest)
    await client.deliver(second)
    assert {row.split("-")[0] for row in harness.engine.runnable()} == {
        first.id.hex(),
        second.id.hex(),
    }


async def test_a_job_whose_engine_is_lost_once_goes_on_and_is_failed_when_it_is_lost_twice() -> (
    None
):
    harness, client = await ready()
    line = client.job(3, 64)
    await client.submit(line)
    await harness.engine_step(harness.engine.runnable()[0])
    await harness.engine_event(harness.engine.lose())
    assert harness.journal.jobs[line.id].state is JobState.RUNNING
    with pytest.raises(Refusal) as caught:
        await client.submit(client.job(5))
    assert caught.value.reason is Reason.ENGINE_UNAVAILABLE
    await harness.engine_event(harness.engine.come_back())
    assert len(harness.engine.started[-1].committed) == 1
    await harness.engine_event(harness.engine.lose())
    stored = harness.journal.jobs[line.id]
    assert (stored.state, stored.reason) == (JobState.FAILED, Reason.ENGINE_FAILED)
    await client.finish(line)
    assert line.ended is not None and line.ended.reason is Reason.ENGINE_FAILED


async def test_a_canvas_with_broken_numbers_is_never_signed_or_charged() -> None:
    harness, client = await ready()
    line = client.job(3, 64)
    await client.submit(line)
    await harness.engine_event(harness.engine.fail(harness.engine.runnable()[0]))
    stored = harness.journal.jobs[line.id]
    assert (stored.state, stored.canvases) == (JobState.FAILED, ())
    await client.finish(line)
    assert line.receipts == []


async def test_a_forged_voucher_ends_the_stream_with_the_clause_that_it_breaks() -> None:
    harness, client = await ready()
    line = client.job(3, 64)
    await client.submit(line)
    await harness.run_engine()
    client.read(line)
    client.read(line)
    stranger = Client(harness, "stranger").signer
    client.signer = stranger
    client.send_voucher(line)
    line.upward.popleft()
    await client.deliver(line)
    assert line.sink is not None and line.sink.refusal is not None
    assert line.sink.refusal.reason is Reason.BROKEN_CLAUSE
    assert line.sink.refusal.metadata["clause"] == "5.2"
    assert harness.journal.books[client.id].ledger.cumulative == 0


async def test_a_job_paid_by_a_voucher_of_another_stream_is_told_so_on_its_own() -> None:
    harness, client = await ready()
    first, second = client.job(1, 4), client.job(2, 4)
    for line in (first, second):
        await client.submit(line)
    await harness.run_engine()
    for line in (first, second):
        while client.read(line):
            continue
    first.upward.clear()  # its own voucher is late; the second's names the receipts of both
    while await client.deliver(second):
        continue
    assert first.sink is not None and first.sink.closed
    while client.read(first):
        continue
    place = [ref.job for ref in client.paid_log].index(first.id)
    assert client.acknowledged > place
