"""The shipped client against the shipped worker under seeded faults.

Whatever happens: every text is complete and what it would have been without a fault, every canvas
is paid once, both books agree, and no promise exceeds the deposit.
"""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path

import grpc
import pytest

from piecework.client.errors import JobFailed, JobInterrupted, WorkerUnreachable
from piecework.client.jobs.accounts import adopt_account
from piecework.client.jobs.events import CanvasText, JobEvent, JobFinished, JobResuming
from piecework.client.jobs.showing import show_lacking
from piecework.client.journal.records import JobRow, JobStatus
from piecework_model.requests import GenerationRequest
from piecework_node.runtime.faults import Code
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.limits import MAX_CANVASES_AHEAD
from piecework_protocol.states import JobState
from tests.support.client.client_side import ask
from tests.support.market.shipped import DEPOSIT, EventList, ShippedMarket
from tests.support.node.fake_engine import MAX_STEPS, canvas_event
from tests.support.node.harness import DOMAIN
from tests.support.node.memory_journal import MemoryJournal

CUSTOMERS = 3
FAULTS = 25
TOKENS = 40


class Watcher(EventList):
    """Checks both books at every event, so before and after every fault."""

    def __init__(self, market: ShippedMarket) -> None:
        super().__init__()
        self.market = market

    async def emit(self, event: JobEvent) -> None:
        check_books(self.market)
        await super().emit(event)


async def follow(market: ShippedMarket, job: JobRow, *, patience: int = 60) -> EventList:
    """Come back to a job until it ends, as a person with a broken connection would."""
    replay = False
    for _ in range(patience):
        caller = Watcher(market)
        try:
            await market.driver(job, caller, replay=replay).run()
        except (JobInterrupted, WorkerUnreachable, Refusal):
            await market.context().sleep(1.0)
        else:
            if not replay and not whole(caller):
                replay = True  # an earlier attempt showed the beginning: read it all once
                continue
            return caller
        job, replay = market.store.job(job.id), True
    raise AssertionError("the job does not come to its end")


def whole(caller: EventList) -> bool:
    canvases = [e.canvas for e in caller.events if isinstance(e, CanvasText)]
    return canvases == list(range(len(canvases))) and bool(canvases)


def text_of(caller: EventList) -> str:
    return "".join(e.text for e in caller.events if isinstance(e, CanvasText))


def text_alone(seed: int, canvases: int) -> str:
    """What the engine makes of the job when nothing goes wrong."""
    request = GenerationRequest(
        "alone", (1,), seed, TOKENS, MAX_STEPS, 0.8, 0.4, 0.1, 0.005, 1, canvases
    )
    return "".join(canvas_event(request, n).text for n in range(canvases))


def check_books(market: ShippedMarket) -> None:
    """What holds at every moment."""
    (row,) = market.store.channels()
    for delivered in market.store.receipts(channel=row.id):
        receipt = delivered.receipt
        on_record = market.harness.journal.jobs[receipt.job].canvases[receipt.canvas]
        assert on_record.receipt == receipt, "a delivered receipt is not on record"
    stored = market.harness.journal.books.get(row.id)
    assert row.book.cumulative <= row.deposit == DEPOSIT
    if stored is None:
        return
    assert stored.ledger.cumulative <= row.book.cumulative
    count = stored.ledger.accumulator.count
    assert count >= row.book.acknowledged, "an acknowledged voucher was lost"
    for key in market.harness.journal.jobs:
        assert stored.ledger.unpaid_canvases(key) <= MAX_CANVASES_AHEAD


def check_the_end(market: ShippedMarket, jobs: list[JobRow]) -> None:
    """Both journals tell one story."""
    (row,) = market.store.channels()
    ledger = market.harness.journal.books[row.id].ledger
    assert ledger.accepted is not None and ledger.accepted.voucher == row.book.voucher()
    assert not ledger.unpaid
    receipts = market.store.receipts(channel=row.id)
    assert len({(r.receipt.job, r.receipt.canvas) for r in receipts}) == len(receipts)
    assert sum(r.receipt.amount for r in receipts) == row.book.cumulative == ledger.cumulative
    for job in jobs:
        held = market.harness.journal.jobs[job.id]
        mine = sorted(
            (r.receipt for r in market.store.receipts(job=job.id)), key=lambda r: r.canvas
        )
        assert [stored.receipt for stored in held.canvases] == mine
        assert held.state is JobState.PAID
        assert market.store.job(job.id).status is JobStatus.COMPLETE


async def storm(market: ShippedMarket, over: asyncio.Event) -> None:
    """Faults at random moments, counted in turns of the event loop."""
    chance = market.random
    for _ in range(FAULTS):
        for _ in range(chance.randrange(1, 60)):
            await asyncio.sleep(0)
        if over.is_set():
            return
        check_books(market)
        live = [call for call in market.calls if not call.over]
        match chance.choice(["break", "break", "vanish", "kill", "kill", "late", "pass time"]):
            case "break" if live:
                chance.choice(live).break_both()
            case "vanish" if live:
                chance.choice(live).break_client()  # its vouchers may overtake a newer stream's
            case "kill" if not market.switch.at:
                market.switch.at = market.switch.passed + chance.randrange(1, 12)
            case "late":
                market.harness.clock.advance(31)
            case "pass time" if not market.switch.dead and not market.switch.at:
                await market.harness.worker.tick()


@pytest.mark.parametrize("seed", range(40))
async def test_the_shipped_pair_keeps_every_promise_under_faults(seed: int, tmp_path: Path) -> None:
    async with ShippedMarket(tmp_path, seed) as market:
        await market.open_channel()
        seeds = [seed * 10 + n for n in range(CUSTOMERS)]
        jobs = [await market.prepare(ask(f"job {s}", seed=s, max_tokens=TOKENS)) for s in seeds]
        over = asyncio.Event()
        weather = asyncio.create_task(storm(market, over))
        callers = await asyncio.gather(*(follow(market, job) for job in jobs))
        over.set()
        await weather
        for s, caller in zip(seeds, callers, strict=True):
            assert isinstance(caller.events[-1], JobFinished)
            assert text_of(caller) == text_alone(s, caller.events[-1].canvases)
        market.switch.at = 0
        check_books(market)
        check_the_end(market, jobs)


async def test_a_job_without_faults_is_confirmed_and_costs_what_its_receipts_say(
    tmp_path: Path,
) -> None:
    async with ShippedMarket(tmp_path) as market:
        await market.open_channel()
        job = await market.prepare(ask(seed=3, max_tokens=TOKENS, drafts=True))
        caller = EventList()
        ended = await market.driver(job, caller).run()
        assert ended.acknowledged and ended.canvases > MAX_CANVASES_AHEAD
        assert ended.cost == sum(r.receipt.amount for r in market.store.receipts(job=job.id))
        assert len(caller.drafts) == ended.canvases
        assert whole(caller)
        check_the_end(market, [job])
        (call,) = market.calls
        await call.server
        assert await call.code() is grpc.StatusCode.OK
        assert market.harness.worker.active == 0


async def test_the_journal_never_holds_the_text_of_a_job(tmp_path: Path) -> None:
    canary = "canary-7c1f-prompt"
    async with ShippedMarket(tmp_path) as market:
        await market.open_channel()
        job = await market.prepare(ask(canary, seed=3, max_tokens=TOKENS, drafts=True))
        caller = EventList()
        await market.driver(job, caller).run()
        journal = market.harness.journal
        everything = repr((journal.jobs, journal.books, journal.keys, journal.notes))
        assert canary not in everything
        texts = [e.text for e in caller.events if isinstance(e, CanvasText) and len(e.text) > 3]
        assert texts and all(text not in everything for text in texts)


async def points(folder: Path) -> int:
    """How many places there are in one job at which the worker could die."""
    async with ShippedMarket(folder) as market:
        await market.open_channel()
        job = await market.prepare(ask(seed=3, max_tokens=TOKENS))
        before = market.switch.passed
        await market.driver(job, EventList()).run()
        return market.switch.passed - before


async def test_a_kill_at_every_point_of_a_job_costs_nobody_anything(tmp_path: Path) -> None:
    (tmp_path / "count").mkdir()
    total = await points(tmp_path / "count")
    assert total > 20
    for at in range(1, total + 1):
        folder = tmp_path / str(at)
        folder.mkdir()
        async with ShippedMarket(folder) as market:
            await market.open_channel()
            job = await market.prepare(ask(seed=3, max_tokens=TOKENS))
            market.switch.at = market.switch.passed + at
            caller = await follow(market, job)
            ended = caller.events[-1]
            assert isinstance(ended, JobFinished)
            assert market.deaths == 1, f"point {at} was not reached"
            assert text_of(caller) == text_alone(3, ended.canvases)
            check_the_end(market, [job])


async def test_a_client_that_was_restarted_reads_its_job_again_and_pays_nothing_twice(
    tmp_path: Path,
) -> None:
    async with ShippedMarket(tmp_path) as market:
        await market.open_channel()
        job = await market.prepare(ask(seed=3, max_tokens=TOKENS))
        first = EventList()
        await market.driver(job, first).run()
        (before,) = market.store.channels()
        runs = len(market.harness.engine.started)
        market.restart_client()
        again = EventList()
        await market.driver(market.store.job(job.id), again, replay=True).run()
        assert text_of(again) == text_of(first)
        assert all(e.again for e in again.events if isinstance(e, CanvasText))
        assert market.store.channels() == (before,)
        ledger = market.harness.journal.books[before.id].ledger
        assert ledger.cumulative == before.book.cumulative
        assert len(market.harness.engine.started) == runs


async def test_a_cancelled_job_is_paid_for_what_was_delivered(tmp_path: Path) -> None:
    async with ShippedMarket(tmp_path) as market:
        await market.open_channel()
        job = await market.prepare(ask(seed=3, max_tokens=200))

        class Impatient(EventList):
            async def emit(self, event: object) -> None:
                await super().emit(event)  # type: ignore[arg-type]
                if isinstance(event, CanvasText):
                    self.cancelled.set()

        ended = await market.driver(job, Impatient()).run()
        (row,) = market.store.channels()
        assert ended.cost == row.book.cumulative > 0
        assert not market.harness.journal.books[row.id].ledger.unpaid
        assert market.harness.journal.jobs[job.id].state in (JobState.CANCELLED, JobState.PAID)


async def test_an_engine_that_fails_ends_the_job_with_its_reason_and_costs_nothing(
    tmp_path: Path,
) -> None:
    async with ShippedMarket(tmp_path) as market:
        await market.open_channel()
        job = await market.prepare(ask(seed=3, max_tokens=TOKENS))
        engine = market.harness.engine
        engine.breaks.add(3)
        with pytest.raises(JobFailed) as caught:
            await market.driver(job, EventList()).run()
        assert caught.value.reason is Reason.ENGINE_FAILED
        (row,) = market.store.channels()
        assert row.book.cumulative == 0
        assert market.store.job(job.id).status is JobStatus.FAILED


async def test_a_broken_connection_is_told_and_the_job_goes_on(tmp_path: Path) -> None:
    async with ShippedMarket(tmp_path) as market:
        await market.open_channel()
        job = await market.prepare(ask(seed=3, max_tokens=TOKENS))

        class Breaking(EventList):
            async def emit(self, event: object) -> None:
                await super().emit(event)  # type: ignore[arg-type]
                if isinstance(event, CanvasText) and event.canvas == 1:
                    market.calls[-1].break_both()

        caller = Breaking()
        ended = await market.driver(job, caller).run()
        assert any(isinstance(e, JobResuming) for e in caller.events)
        assert text_of(caller) == text_alone(3, ended.canvases)
        check_the_end(market, [job])


def backup_of(journal: MemoryJournal) -> MemoryJournal:
    """What the journal holds now, for another process."""
    kept = {k: copy.deepcopy(v) for k, v in vars(journal).items() if k != "switch"}
    backup = MemoryJournal(DOMAIN)
    vars(backup).update(kept)
    return backup


async def set_back(market: ShippedMarket, *, kept: int) -> list[JobRow]:
    """Three jobs, of which the worker's journal knows the first `kept` when it starts again."""
    await market.open_channel()
    jobs: list[JobRow] = []
    backup = backup_of(market.harness.journal)
    for seed in (3, 4, 5):
        if len(jobs) == kept:
            backup = backup_of(market.harness.journal)
        jobs.append(await market.prepare(ask(seed=seed, max_tokens=TOKENS)))
        await market.driver(jobs[-1], EventList()).run()
    assert not market.shown
    market.harness.journal = backup
    await market.boot()
    return jobs[kept:]


def check_healed(market: ShippedMarket, lost: list[JobRow]) -> None:
    """The worker was shown what its journal lacked, and no more. Both books agree."""
    (row,) = market.store.channels()
    receipts = [r.receipt for job in lost for r in market.store.receipts(job=job.id)]
    assert [s.receipt for request in market.shown for s in request.receipts] == receipts
    ledger = market.harness.journal.books[row.id].ledger
    assert ledger.accumulator == row.book.accumulator and not ledger.unpaid
    assert ledger.cumulative == row.book.cumulative
    assert [f.code for f in market.harness.faults.faults] == [Code.JOURNAL_OLD]


@pytest.mark.parametrize("kept", [0, 1])
async def test_a_worker_that_was_set_back_is_shown_what_it_lacks_by_the_next_job(
    kept: int, tmp_path: Path
) -> None:
    async with ShippedMarket(tmp_path) as market:
        lost = await set_back(market, kept=kept)
        job = await market.prepare(ask(seed=6, max_tokens=TOKENS))
        ended = await market.driver(job, EventList()).run()
        assert ended.acknowledged and ended.canvases
        assert len(market.shown) == 1
        check_healed(market, lost)


@pytest.mark.parametrize("kept", [0, 1])
async def test_a_look_at_the_account_shows_a_worker_that_was_set_back_what_it_lacks(
    kept: int, tmp_path: Path
) -> None:
    async with ShippedMarket(tmp_path) as market:
        lost = await set_back(market, kept=kept)
        (row,) = market.store.channels()
        after = await adopt_account(market.context(), market, row)
        assert after.book == row.book
        check_healed(market, lost)
        assert await adopt_account(market.context(), market, after) == after
        assert len(market.shown) == 1


async def test_what_a_worker_lacks_is_shown_in_as_many_calls_as_it_takes(tmp_path: Path) -> None:
    async with ShippedMarket(tmp_path) as market:
        lost = await set_back(market, kept=0)
        (row,) = market.store.channels()
        account = await show_lacking(market.context(), market, row, None, most=4)
        assert account is not None and account.voucher == row.book.voucher()
        assert len(market.shown) == -(-row.book.accumulator.count // 4) > 2
        check_healed(market, lost)
