"""The SDK against a fake worker over real gRPC and TLS: paying, failing over, resuming, catching
lies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from piecework.chain.errors import RpcUnavailable
from piecework.client.config import load_config
from piecework.client.errors import InsufficientFunds, JobFailed, JobInterrupted, NoWorkerFits
from piecework.client.jobs.events import FinishReason, ReadAnswers
from piecework.client.jobs.outstanding import pay_outstanding
from piecework.client.jobs.preparing import prepare
from piecework.client.jobs.requests import ReadRequest, conversation_of
from piecework.client.journal.records import ChannelStatus, JobStatus
from piecework.client.journal.store import Store
from piecework.client.sdk import PieceworkClient
from piecework.client.wallet import Wallet
from piecework.market.server import IndexServer
from piecework_protocol import wire
from piecework_protocol.errors import ProtocolViolation, Reason, Refusal
from piecework_protocol.frames import FundingAuthorization
from piecework_protocol.kinds.read import Label, Question
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Uint32
from tests.support.chain.fake_chain import EXPLORER, TOKEN_INFO, FakeChain
from tests.support.client.client_side import (
    MONEY,
    PAYER,
    CanvasText,
    DraftText,
    FakeClock,
    JobResuming,
    JobStarted,
    ask,
    collect,
    last,
    open_client,
    text_of,
)
from tests.support.client.fake_worker import STORY, FakeWorker, Lie, Script, model_offer
from tests.support.market.databases import an_offer_store
from tests.support.market.offers import offer, operator, receiver
from tests.support.network.relays import running_relay
from tests.support.waiting import until

WHOLE = " ".join(STORY)


@pytest.fixture
def chain() -> FakeChain:
    chain = FakeChain()
    chain.deposit(PAYER.address, MONEY)
    return chain


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def client(
    tmp_path: Path, chain: FakeChain, clock: FakeClock
) -> AsyncIterator[PieceworkClient]:
    async with open_client(tmp_path, chain, clock) as client:
        yield client


@pytest.fixture
async def worker(
    chain: FakeChain, clock: FakeClock, request: pytest.FixtureRequest
) -> AsyncIterator[FakeWorker]:
    """A worker that is dialled directly, or (`both_ways`) one behind a relay."""
    if getattr(request, "param", "direct") == "direct":
        async with FakeWorker(chain, clock) as worker:
            yield worker
        return
    async with (
        running_relay(chain) as relay,
        FakeWorker(chain, clock, relays=(relay.name,)) as worker,
    ):
        yield worker


both_ways = pytest.mark.parametrize("worker", ["direct", "relayed"], indirect=True)


# --- paying


@both_ways
async def test_every_canvas_is_paid_and_confirmed(
    client: PieceworkClient, worker: FakeWorker
) -> None:
    events = await collect(client.run(ask(drafts=True)))
    ended = last(events)
    assert text_of(events) == WHOLE
    assert isinstance(events[0], JobStarted)
    assert any(isinstance(e, DraftText) for e in events)
    assert ended.finish is FinishReason.END_OF_TEXT
    assert ended.acknowledged
    assert ended.cost == worker.paid() == sum(e.amount for e in events if isinstance(e, CanvasText))
    assert worker.violations == []


async def test_the_channel_is_opened_by_the_first_job_and_used_by_the_next(
    client: PieceworkClient, worker: FakeWorker, chain: FakeChain
) -> None:
    await collect(client.run(ask()))
    await collect(client.run(ask()))
    first, second = worker.submissions
    assert first.funding is not None
    assert second.funding is None
    assert first.job.channel == second.job.channel
    assert chain.channels[first.job.channel].funded == 1_000_000


async def test_a_pending_opening_is_sent_again_until_the_chain_shows_it(
    tmp_path: Path, chain: FakeChain, clock: FakeClock
) -> None:
    async with (
        FakeWorker(chain, clock, mines=False) as worker,
        open_client(tmp_path, chain, clock) as client,
    ):
        await collect(client.run(ask()))
        await collect(client.run(ask()))
        assert [s.funding is not None for s in worker.submissions] == [True, True]
        assert worker.submissions[0].funding == worker.submissions[1].funding


@both_ways
async def test_ten_jobs_at_once_share_one_channel(
    client: PieceworkClient, worker: FakeWorker
) -> None:
    runs = await asyncio.gather(*(collect(client.run(ask(f"story {i}"))) for i in range(10)))
    assert [text_of(events) for events in runs] == [WHOLE] * 10
    assert worker.paid() == sum(last(events).cost for events in runs)
    assert len(worker.books) == 1
    assert worker.violations == []


async def test_two_clients_on_one_journal_never_sign_contradicting_vouchers(
    tmp_path: Path, chain: FakeChain, clock: FakeClock, worker: FakeWorker
) -> None:
    async with (
        open_client(tmp_path, chain, clock) as one,
        open_client(tmp_path, chain, clock) as two,
    ):
        runs = await asyncio.gather(*(collect(c.run(ask())) for c in (one, two, one, two)))
    assert worker.paid() == sum(last(events).cost for events in runs)
    counts = [v.voucher.count for v in worker.vouchers]
    assert counts == sorted(set(counts))


async def test_the_token_limit_ends_the_text(client: PieceworkClient, worker: FakeWorker) -> None:
    events = await collect(client.run(ask(max_tokens=10)))
    assert last(events).finish is FinishReason.TOKEN_LIMIT
    assert last(events).output_tokens == 10


async def test_a_balance_too_small_for_the_ceiling_is_refused_before_anything_is_sent(
    tmp_path: Path, clock: FakeClock
) -> None:
    chain = FakeChain()
    chain.deposit(PAYER.address, 100)
    async with FakeWorker(chain, clock) as worker, open_client(tmp_path, chain, clock) as client:
        with pytest.raises(InsufficientFunds) as caught:
            await collect(client.run(ask()))
        assert caught.value.available == TOKEN_INFO.amount(100)
        assert worker.submissions == []


async def test_a_deposit_that_runs_low_is_topped_up(
    tmp_path: Path, chain: FakeChain, clock: FakeClock
) -> None:
    async with (
        FakeWorker(chain, clock) as worker,
        open_client(tmp_path, chain, clock, deposit="0.01701") as client,
    ):
        for _ in range(3):
            await collect(client.run(ask(max_tokens=1024)))
        totals = [
            s.funding.authorization.funded if isinstance(s.funding, FundingAuthorization) else None
            for s in worker.submissions
        ]
        assert totals == [17_010, 34_020, None]


async def test_a_second_key_signs_jobs_and_vouchers_and_the_payers_only_funds(
    tmp_path: Path, chain: FakeChain, clock: FakeClock, worker: FakeWorker
) -> None:
    hot = operator("hot key of the client")
    store = Store(tmp_path / "client.db", chain.domain, PAYER.address)
    config = load_config(tmp_path / "config.toml")
    async with PieceworkClient(
        store, chain, Wallet(PAYER, hot), TOKEN_INFO, config, clock=clock
    ) as client:
        await collect(client.run(ask()))
    channel = worker.submissions[0].channel
    assert (channel.payer, channel.authorizer) == (PAYER.address, hot.address)
    assert worker.violations == []


def contents(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in folder.rglob("*") if file.is_file()]


async def test_no_text_is_left_on_disk(
    tmp_path: Path, chain: FakeChain, clock: FakeClock, worker: FakeWorker
) -> None:
    canary = "canary-7c1f"
    worker.script.story = (canary,) * 20
    async with open_client(tmp_path, chain, clock) as client:
        events = await collect(client.run(ask(f"Say {canary}.", drafts=True)))
        assert canary in text_of(events)
        # The journal's own files, before and after they are folded together.
        before = contents(tmp_path)
    after = contents(tmp_path)
    assert not any(canary.encode() in data for data in before + after)
    async with open_client(tmp_path, chain, clock, keep_text=True) as client:
        await collect(client.run(ask(f"Say {canary}.")))
        assert canary in (client.store.receipts()[-1].text or "")


# --- choosing


@both_ways
async def test_offers_come_through_an_index_that_is_not_believed(
    tmp_path: Path, chain: FakeChain, clock: FakeClock, worker: FakeWorker
) -> None:
    store = await an_offer_store(tmp_path / "market.db", chain.domain)
    market = IndexServer(store, chain, EXPLORER, clock=clock)
    chain.register(operator("retired").address, receiver("retired"))
    await market.accept(wire.encode_offer(offer("retired", now=clock.now())))
    await market.accept(wire.encode_offer(worker.offer()))
    chain.register(operator("retired").address, receiver("retired"), active=False)
    async with TestServer(market.application()) as server:
        index = str(server.make_url(""))
        async with open_client(tmp_path, chain, clock, indexes=(index,)) as client:
            found = await client.offers()
            assert [s.offer.operator for s in found.offers] == [worker.operator.address]
            assert any("stake is not active" in trouble for trouble in found.troubles)
            assert text_of(await collect(client.run(ask()))) == WHOLE


async def test_an_index_that_is_down_is_replaced_by_the_registry(
    tmp_path: Path, chain: FakeChain, clock: FakeClock, worker: FakeWorker
) -> None:
    async with open_client(tmp_path, chain, clock, indexes=("http://127.0.0.1:1",)) as client:
        found = await client.offers()
    assert [s.offer.operator for s in found.offers] == [worker.operator.address]
    assert "cannot reach 127.0.0.1:1" in found.troubles[0]


async def test_a_chain_that_is_away_stops_the_search_and_not_a_paid_up_channel(
    client: PieceworkClient, worker: FakeWorker, chain: FakeChain, clock: FakeClock
) -> None:
    await collect(client.run(ask()))
    await collect(client.run(ask()))
    chain.away = True
    assert text_of(await collect(client.run(ask()))) == WHOLE
    clock.advance(120)
    with pytest.raises(RpcUnavailable):
        await client.offers()


async def test_a_busy_worker_is_passed_over_without_losing_its_name(
    tmp_path: Path, chain: FakeChain, clock: FakeClock
) -> None:
    busy = Script(refusals=[Refusal(Reason.BUSY, "all slots taken", retry_after_s=3)] * 5)
    cheap = (model_offer(price=1_000_000),)
    async with (
        FakeWorker(chain, clock, name="busy", script=busy, models=cheap) as first,
        FakeWorker(chain, clock, name="free") as second,
        open_client(tmp_path, chain, clock) as client,
    ):
        events = await collect(client.run(ask()))
        assert last(events).operator == second.operator.address
        assert len(first.submissions) == 1
        assert client.store.workers.experience()[first.operator.address].failures == 0


async def test_when_everybody_is_busy_the_caller_learns_how_long(
    client: PieceworkClient, worker: FakeWorker
) -> None:
    worker.script.refusals = [Refusal(Reason.BUSY, "all slots taken", retry_after_s=7)]
    with pytest.raises(NoWorkerFits, match="busy") as caught:
        await collect(client.run(ask()))
    assert caught.value.retry_after_s == 7


@both_ways
async def test_a_worker_that_is_gone_is_replaced_and_remembered(
    tmp_path: Path, chain: FakeChain, clock: FakeClock, worker: FakeWorker
) -> None:
    async with open_client(tmp_path, chain, clock) as client:
        async with FakeWorker(
            chain, clock, name="gone", models=(model_offer(price=1_000_000),)
        ) as gone:
            await client.offers()
        events = await collect(client.run(ask()))
        assert last(events).operator == worker.operator.address
        assert client.store.workers.experience()[gone.operator.address].failures == 1


async def test_a_worker_that_takes_jobs_and_says_nothing_is_left_and_remembered(
    tmp_path: Path, chain: FakeChain, clock: FakeClock, worker: FakeWorker
) -> None:
    async def never(canvas: int) -> None:
        await asyncio.Event().wait()

    quiet = Script(gate=never)
    cheap = (model_offer(price=1_000_000),)
    patience: dict[str, Any] = {"start_timeout_s": 0.2, "stall_timeout_s": 0.5}
    async with FakeWorker(chain, clock, name="quiet", script=quiet, models=cheap) as silent:
        quiet_one = silent.operator.address
        silent.models = (cheap[0].replace(first_canvas_ms=Uint32(1)),)
        for _ in range(2):  # the second client is another process with the same home
            async with open_client(tmp_path, chain, clock, **patience) as client:
                for _ in range(2):
                    events = await collect(client.run(ask()))
                    assert last(events).operator == worker.operator.address
                    assert text_of(events) == WHOLE
                assert client.store.workers.experience()[quiet_one].silences == 1
        assert len(silent.submissions) == 1
        await until(lambda: silent.cancels == 1)
        assert silent.paid() == 0


async def test_a_job_that_nobody_gets_on_with_blames_nobody(
    tmp_path: Path, chain: FakeChain, clock: FakeClock, worker: FakeWorker
) -> None:
    """The only worker says nothing: it may be our own network."""

    async def never(canvas: int) -> None:
        await asyncio.Event().wait()

    worker.script.gate = never
    worker.models = (worker.models[0].replace(first_canvas_ms=Uint32(1)),)
    async with open_client(tmp_path, chain, clock, start_timeout_s=0.1) as client:
        with pytest.raises(NoWorkerFits, match="makes no progress"):
            await collect(client.run(ask()))
        assert client.store.workers.experience()[worker.operator.address].failures == 0


async def test_a_dead_offer_reserves_nothing(
    tmp_path: Path, chain: FakeChain, clock: FakeClock, worker: FakeWorker
) -> None:
    cheap = (model_offer(price=1_000_000),)
    async with open_client(tmp_path, chain, clock, deposit="10.0") as client:
        async with FakeWorker(chain, clock, name="gone", models=cheap):
            await client.offers()
            await client.links.close()
        events = await collect(client.run(ask()))
        assert last(events).operator == worker.operator.address
        assert len(client.store.channels()) == 1


async def test_a_prompt_that_every_answering_worker_refuses_is_the_callers_fault(
    tmp_path: Path, chain: FakeChain, clock: FakeClock, worker: FakeWorker
) -> None:
    refused = Refusal(Reason.PROMPT_REFUSED, "roles must alternate")
    worker.script.refusals = [refused]
    async with open_client(tmp_path, chain, clock) as client:
        async with FakeWorker(chain, clock, name="gone", models=(model_offer(price=1_000_000),)):
            await client.offers()
        with pytest.raises(Refusal) as caught:
            await collect(client.run(ask()))
        assert caught.value.reason is Reason.PROMPT_REFUSED
        assert client.store.workers.experience()[worker.operator.address].failures == 0


async def test_without_a_limit_the_answer_takes_the_room_that_the_prompt_leaves(
    client: PieceworkClient, worker: FakeWorker
) -> None:
    worker.script.refusals = [
        Refusal(Reason.PROMPT_TOO_LONG, "too long", metadata={"prompt_tokens": "4000"})
    ]
    await collect(client.run(ask()))
    assert [s.job.parameters.max_tokens for s in worker.submissions] == [2048, 96]
    worker.script.refusals = [
        Refusal(Reason.PROMPT_TOO_LONG, "too long", metadata={"prompt_tokens": "9" * 30})
    ]
    with pytest.raises(Refusal, match="too long"):
        await collect(client.run(ask()))


async def test_an_unknown_model_is_named(client: PieceworkClient, worker: FakeWorker) -> None:
    with pytest.raises(NoWorkerFits, match="nobody serves the model 'epic-9'") as caught:
        await client.quote(ask(model="epic-9"))
    assert caught.value.unknown_model


async def test_a_quote_states_expectation_and_ceiling(
    client: PieceworkClient, worker: FakeWorker
) -> None:
    quote = await client.quote(ask(max_tokens=64))
    assert 0 < quote.expected.units <= quote.ceiling.units
    assert quote.choice.operator == worker.operator.address


QUESTIONS = (
    Question("Is it a fox?", (Label("yes"), Label("no"))),
    Question("Which?", (Label("a"), Label("b"), Label("c"))),
)


@both_ways
async def test_a_read_gives_means_and_errors_and_is_paid(
    client: PieceworkClient, worker: FakeWorker
) -> None:
    result = await client.read("a story", QUESTIONS, draws=2)
    first, second = result.decisions
    assert (first.label, second.label) == ("yes", "a")
    assert sum(first.probabilities) == pytest.approx(1) == sum(second.probabilities)
    assert first.errors is not None and first.errors[0] > 0 == second.errors[2]  # type: ignore[index]
    assert result.finished.output_tokens == 0
    assert result.cost.units == worker.paid() > 0
    assert worker.violations == []


async def test_a_read_that_was_interrupted_is_held_to_its_questions_after_a_restart(
    client: PieceworkClient, worker: FakeWorker
) -> None:
    worker.script.drop_after = [1] * 20
    request = ReadRequest(conversation_of("a story"), QUESTIONS * 9, draws=2)
    with pytest.raises(JobInterrupted) as caught:
        await collect(client.run(request))
    worker.script.drop_after = []
    events = await collect(client.resume(caught.value.job))
    answers = [e for e in events if isinstance(e, ReadAnswers)]
    assert sorted(q for e in answers for q in e.questions) == sorted([*range(18)] * 2)


async def test_an_offer_that_changed_is_fetched_again(
    client: PieceworkClient, worker: FakeWorker
) -> None:
    await client.offers()
    worker.sequence += 1
    worker.script.refusals = [Refusal(Reason.UNKNOWN_OFFER, "prices changed")]
    await collect(client.run(ask()))
    old, new = worker.submissions
    assert old.job.offer != new.job.offer


async def test_an_engine_that_fails_before_the_first_canvas_costs_nothing(
    tmp_path: Path, chain: FakeChain, clock: FakeClock, worker: FakeWorker
) -> None:
    cheap = (model_offer(price=1_000_000),)
    broken = Script(fail_at=0)
    async with (
        FakeWorker(chain, clock, name="broken", script=broken, models=cheap) as first,
        open_client(tmp_path, chain, clock) as client,
    ):
        events = await collect(client.run(ask()))
        assert last(events).operator == worker.operator.address
        assert first.paid() == 0


async def test_an_engine_that_fails_later_ends_the_job_and_only_what_came_is_paid(
    client: PieceworkClient, worker: FakeWorker
) -> None:
    worker.script.fail_at = 2
    with pytest.raises(JobFailed) as caught:
        await collect(client.run(ask()))
    assert caught.value.reason is Reason.ENGINE_FAILED
    assert worker.books[worker.submissions[0].job.channel].accumulator.count == 2


# --- resuming


@both_ways
async def test_a_dropped_stream_is_resumed_and_nothing_is_paid_twice(
    client: PieceworkClient, worker: FakeWorker
) -> None:
    worker.script.drop_after = [1, 3]
    events = await collect(client.run(ask()))
    assert text_of(events) == WHOLE
    assert sum(isinstance(e, JobResuming) for e in events) == 2
    assert [s.received for s in worker.submissions] == [0, 1, 3]
    assert worker.paid() == last(events).cost
    assert worker.violations == []


@both_ways
async def test_a_worker_that_does_not_come_back_leaves_a_job_that_a_restarted_client_finishes(
    tmp_path: Path, chain: FakeChain, clock: FakeClock, worker: FakeWorker
) -> None:
    worker.script.drop_after = [2, 2]
    async with open_client(tmp_path, chain, clock, resume_attempts=1) as client:
        with pytest.raises(JobInterrupted) as caught:
            await collect(client.run(ask()))
    async with open_client(tmp_path, chain, clock) as client:
        assert client.store.job(caught.value.job).status is JobStatus.LIVE
        events = await collect(client.resume(caught.value.job))
        assert text_of(events) == WHOLE
        assert [e.again for e in events if isinstance(e, CanvasText)] == [True, True, False, False]
        assert worker.paid() == last(events).cost
    assert worker.violations == []


@both_ways
async def test_a_lost_voucher_is_covered_by_the_next_submission(
    tmp_path: Path, chain: FakeChain, clock: FakeClock, worker: FakeWorker
) -> None:
    worker.script.story = STORY[:8]
    worker.script.acknowledges = False
    async with open_client(tmp_path, chain, clock, acknowledgement_timeout_s=0.2) as client:
        run = client.run(ask())
        async with run:
            async for event in run:
                if isinstance(event, CanvasText):
                    break
        worker.script.acknowledges = True
        channel = client.store.channels()[0]
        await pay_outstanding(client.context, channel.id)
        assert client.store.channel(channel.id).book.acknowledged == 1


async def test_a_worker_that_has_no_time_now_is_still_asked_later_what_is_owed(
    client: PieceworkClient, worker: FakeWorker
) -> None:
    job, _ = await prepare(client.context, (await client.rank(ask())).choices[0], ask())
    client.store.leave(job.id)
    worker.script.refusals = [Refusal(Reason.RATE_LIMITED, "too many requests", retry_after_s=1)]
    assert len(await pay_outstanding(client.context, job.channel_id)) == 1
    assert client.store.job(job.id).status is JobStatus.LIVE
    worker.script.refusals = [Refusal(Reason.JOB_ENDED, "no record of that job")]
    assert await pay_outstanding(client.context, job.channel_id) == ()
    assert client.store.job(job.id).status is JobStatus.REFUSED


async def test_a_journal_restored_from_an_old_copy_adopts_the_workers_record(
    tmp_path: Path, chain: FakeChain, clock: FakeClock, worker: FakeWorker
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    async with open_client(old, chain, clock) as client:
        await collect(client.run(ask()))
        row = client.store.channels()[0]
    async with open_client(new, chain, clock) as client:
        client.store.open_channel(row.channel)
        await client.channels.refresh(row.id)
        await collect(client.run(ask()))
        assert client.store.channel(row.id).book.accumulator.count == 8
    assert worker.violations == []


@both_ways
async def test_a_channel_with_unpaid_canvases_is_settled_before_the_next_job(
    tmp_path: Path, chain: FakeChain, clock: FakeClock, worker: FakeWorker
) -> None:
    worker.script.drop_after = [1]
    async with open_client(tmp_path, chain, clock, resume_attempts=0) as client:
        with pytest.raises(JobInterrupted):
            await collect(client.run(ask()))
        assert worker.books[client.store.channels()[0].id].unpaid
        events = await collect(client.run(ask()))
        assert text_of(events) == WHOLE
        assert not worker.books[client.store.channels()[0].id].unpaid


async def test_a_channel_that_was_closed_on_chain_is_replaced(
    client: PieceworkClient, worker: FakeWorker, chain: FakeChain
) -> None:
    await collect(client.run(ask()))
    first = client.store.channels()[0]
    chain.set_channel(first.id, ChannelState.CLOSED, first.deposit)
    worker.script.refusals = [Refusal(Reason.CHANNEL_CLOSED, "closed")]
    await collect(client.run(ask()))
    assert [row.status for row in client.store.channels()] == [
        ChannelStatus.CLOSED,
        ChannelStatus.OPEN,
    ]


# --- cancelling


@both_ways
async def test_cancelling_pays_for_what_came_and_stops_the_worker(
    client: PieceworkClient, worker: FakeWorker
) -> None:
    hold = asyncio.Event()

    async def gate(canvas: int) -> None:
        if canvas == 2:
            await hold.wait()

    worker.script.gate = gate
    run = client.run(ask())
    seen = []
    async with run:
        async for event in run:
            seen.append(event)
            if isinstance(event, CanvasText) and event.canvas == 1:
                run.cancel()
    assert last(seen).finish is FinishReason.CANCELLED
    assert worker.cancels == 1
    assert worker.books[worker.submissions[0].job.channel].accumulator.count == 2
    assert last(seen).acknowledged


async def test_leaving_the_block_early_cancels_and_pays(
    client: PieceworkClient, worker: FakeWorker
) -> None:
    hold = asyncio.Event()

    async def gate(canvas: int) -> None:
        if canvas == 1:
            await hold.wait()

    worker.script.gate = gate
    async with client.run(ask()) as run:
        async for event in run:
            if isinstance(event, CanvasText):
                break
    assert worker.cancels == 1
    assert not worker.books[worker.submissions[0].job.channel].unpaid
    assert client.store.jobs()[0].status is JobStatus.CANCELLED


# --- lies


MOST_PAID = {
    Lie.UNSIGNED_ACCEPTANCE: 0,
    Lie.TOO_MANY_PROMPT_TOKENS: 0,
    Lie.VOUCHER_NEVER_SIGNED: 0,
    Lie.CANVAS_CHARGED_TWICE: 2,
    Lie.PAYMENTS_NEVER_MADE: 3,
    Lie.FALSE_COUNT_AT_THE_END: 4,
}
"""Canvases that may have been paid when the lie is found; the lies about canvas 1 leave one."""


UNSIGNED = {
    Lie.UNSIGNED_ACCEPTANCE,
    Lie.RECEIPT_BY_ANOTHER_KEY,
    Lie.FALSE_COUNT_AT_THE_END,
    Lie.PAYMENTS_NEVER_MADE,
    Lie.VOUCHER_NEVER_SIGNED,
    Lie.GARBAGE,
}
"""Lies that the operator put no signature under. All others are kept as evidence."""


@pytest.mark.parametrize("lie", list(Lie), ids=lambda lie: lie.name.lower())
async def test_a_lying_worker_is_caught_with_the_clause_and_paid_no_more(
    client: PieceworkClient, worker: FakeWorker, lie: Lie
) -> None:
    worker.script.lie = lie
    with pytest.raises(ProtocolViolation) as caught:
        await collect(client.run(ask()))
    assert caught.value.clause == lie.clause
    job = client.store.jobs()[0]
    assert job.status is JobStatus.BROKEN
    assert f"clause {lie.clause}" in job.detail
    paid_leaves = client.store.channels()[0].book.accumulator.count
    assert paid_leaves <= MOST_PAID.get(lie, 1)
    kept = client.store.contradictions.of(job.id)
    assert [frame.clause for frame in kept] == ([] if lie in UNSIGNED else [lie.clause])
    with pytest.raises(NoWorkerFits, match=f"broke clause {lie.clause} before"):
        await collect(client.run(ask()))


async def test_a_worker_behind_another_certificate_is_not_talked_to(
    tmp_path: Path, chain: FakeChain, clock: FakeClock
) -> None:
    async with FakeWorker(chain, clock) as worker, FakeWorker(chain, clock, name="other") as other:
        worker.endpoint = other.endpoint
        chain.register(worker.operator.address, worker.receiver, other.endpoint)
        async with open_client(tmp_path, chain, clock) as client:
            found = await client.offers()
            assert [s.offer.operator for s in found.offers] == [other.operator.address]
            # Its certificate names another operator, so TLS itself ends the dial.
            (trouble,) = found.troubles
            assert "no TLS connection" in trouble
