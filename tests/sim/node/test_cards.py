"""A worker with several cards: jobs stay with their entry, a card leaves and comes back alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from piecework_node.daemon.offered import offered
from piecework_node.engine.link import EngineGone
from piecework_node.runtime.live import LiveJob
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.states import JobState
from tests.support.node.fake_engine import FACTS
from tests.support.node.harness import TERMS, Client, JobStream, WorkerHarness

FAST, EXACT = FACTS.profile, "fake-cpu/float32"


async def ready(*profiles: str) -> tuple[WorkerHarness, Client]:
    harness = WorkerHarness(terms=replace(TERMS, slots=1, queue=1), profiles=profiles)
    await harness.boot()
    client = Client(harness, deposit=10_000_000)
    client.open_on_chain()
    return harness, client


async def submitted(client: Client, seed: int, entry: int = 0, tokens: int = 64) -> JobStream:
    """A job for an entry of the current offer, accepted."""
    line = client.job(seed, tokens, entry=entry)
    await client.submit(line)
    await pay(client, line)
    return line


async def pay(client: Client, line: JobStream) -> None:
    """Read what there is, and pay for it."""
    while client.read(line) or await client.deliver(line):
        pass


def profiles(harness: WorkerHarness) -> list[str]:
    return [one.facts.profile for one in offered(harness.worker, takes_jobs=True)]


async def lose(harness: WorkerHarness, card: int) -> None:
    await harness.engine_event(harness.engines[card].lose(), card)


async def come_back(harness: WorkerHarness, card: int) -> None:
    await harness.engine_event(harness.engines[card].come_back(), card)


async def test_each_job_runs_on_a_card_of_its_entry_and_ends_there() -> None:
    harness, client = await ready(FAST, EXACT)
    assert [m.profile for m in harness.offer.offer.models] == [FAST, EXACT]
    first, second = await submitted(client, 1), await submitted(client, 2, entry=1)
    assert [len(engine.rows) for engine in harness.engines] == [1, 1]
    for line in (first, second):
        await client.finish(line)
    assert len(harness.engines[0].started) == len(harness.engines[1].started) == 1
    assert not harness.runtime.sequences


async def test_a_full_entry_refuses_while_another_one_has_places() -> None:
    _, client = await ready(FAST, EXACT)
    for seed in (1, 2):
        await submitted(client, seed)
    with pytest.raises(Refusal) as caught:
        await submitted(client, 3)
    assert caught.value.reason is Reason.BUSY
    await submitted(client, 4, entry=1)


async def test_cards_of_one_entry_share_its_jobs_and_its_line_of_the_offer() -> None:
    harness, client = await ready(FAST, FAST)
    assert len(harness.offer.offer.models) == 1
    assert (harness.offer.offer.slots, harness.offer.offer.queue_free) == (2, 2)
    for seed in (1, 2):
        await submitted(client, seed)
    assert [len(engine.rows) for engine in harness.engines] == [1, 1]


async def test_a_lost_card_takes_its_entry_away_and_the_others_go_on() -> None:
    harness, client = await ready(FAST, EXACT)
    held, other = await submitted(client, 1), await submitted(client, 2, entry=1)
    await lose(harness, 0)
    assert profiles(harness) == [EXACT]
    with pytest.raises(Refusal) as caught:
        await submitted(client, 3)
    assert caught.value.reason is Reason.ENGINE_UNAVAILABLE
    await client.finish(other)
    assert not harness.engines[1].rows
    await come_back(harness, 0)
    assert profiles(harness) == [FAST, EXACT]
    await client.finish(held)
    assert len(harness.engines[0].started) == 2, "before and after"


async def test_a_job_of_a_lost_card_goes_on_at_another_card_of_its_entry() -> None:
    harness, client = await ready(FAST, FAST, EXACT)
    line = await submitted(client, 1)
    await harness.engine_step(harness.runnable()[0])
    await pay(client, line)
    await lose(harness, 0)
    assert [len(engine.rows) for engine in harness.engines] == [0, 1, 0]
    assert len(harness.engines[1].started[-1].committed) == 1
    await come_back(harness, 0)
    assert [len(engine.rows) for engine in harness.engines] == [0, 1, 0], "it stays there"
    await client.finish(line)


async def test_a_job_waits_for_its_own_card_while_the_others_are_full() -> None:
    harness, client = await ready(FAST, FAST)
    lines = [await submitted(client, seed) for seed in range(4)]
    await lose(harness, 0)
    assert len(harness.engines[1].rows) == 2, "no card gets more than it has places"
    await come_back(harness, 0)
    assert [len(engine.rows) for engine in harness.engines] == [2, 2]
    for line in lines:
        await client.finish(line)


async def test_a_job_ends_unpaid_when_its_card_comes_back_as_another_profile() -> None:
    harness, client = await ready(FAST, EXACT)
    line = await submitted(client, 1)
    await lose(harness, 0)
    harness.engines[0].known = replace(FACTS, profile="fake-cpu/int4")
    await come_back(harness, 0)
    assert line.live is not None and line.live.session.state is JobState.FAILED
    assert harness.journal.jobs[line.id].reason is Reason.ENGINE_FAILED
    assert not any(engine.rows for engine in harness.engines)
    assert profiles(harness) == ["fake-cpu/int4", EXACT]


async def test_jobs_of_a_card_that_is_given_up_end_and_its_entry_is_not_known_any_more() -> None:
    harness, client = await ready(FAST, EXACT)
    line, other = await submitted(client, 1), await submitted(client, 2, entry=1)
    await lose(harness, 0)
    card = next(iter(harness.cards))
    card.failed = "it fell off the bus"
    await harness.engine_event(EngineGone(card.failed), 0)
    assert line.live is not None and line.live.session.state is JobState.FAILED
    with pytest.raises(Refusal) as caught:
        await submitted(client, 3)
    assert caught.value.reason is Reason.UNKNOWN_MODEL
    await client.finish(other)
    card.failed = ""
    await come_back(harness, 0)
    await client.finish(await submitted(client, 4))


async def test_a_job_does_not_return_to_a_worker_that_has_another_profile_now() -> None:
    harness, client = await ready(FAST)
    line = await submitted(client, 1)
    harness.profiles = (EXACT,)
    await harness.boot()
    with pytest.raises(Refusal) as caught:
        await client.submit(line)
    assert caught.value.reason is Reason.UNKNOWN_MODEL
    harness.profiles = (EXACT, FAST)
    await harness.boot()
    await client.submit(line)
    assert [len(engine.rows) for engine in harness.engines] == [0, 1]
    await client.finish(line)


async def test_a_returning_job_waits_for_a_card_that_has_not_told_what_it_runs() -> None:
    harness, client = await ready(FAST, EXACT)
    line = await submitted(client, 1, entry=1)
    await harness.boot()
    harness.engines[1].is_ready = False
    with pytest.raises(Refusal) as caught:
        await client.submit(line)
    assert caught.value.reason is Reason.ENGINE_UNAVAILABLE


async def test_a_paused_card_holds_its_own_jobs_and_takes_its_entry_away() -> None:
    harness, client = await ready(FAST, EXACT)
    held, other = await submitted(client, 1), await submitted(client, 2, entry=1)
    harness.worker.pausing["0"].pause(("the card has 90 °C",), None)
    assert profiles(harness) == [EXACT] and harness.cards.pause is None
    with pytest.raises(Refusal) as caught:
        await submitted(client, 3)
    assert caught.value.reason is Reason.PAUSED
    await client.finish(other)
    assert harness.engines[0].rows and not harness.engines[0].runnable()
    harness.worker.pausing["0"].resume()
    for engine, card in ((harness.engines[0], 0),) * 2:
        await harness.engine_event(engine.queue.get_nowait(), card)
    assert profiles(harness) == [FAST, EXACT]
    await client.finish(held)


async def test_new_jobs_of_a_shared_entry_go_to_the_card_that_is_not_paused() -> None:
    harness, client = await ready(FAST, FAST)
    harness.worker.pausing["0"].pause(("the owner said so",), None)
    lines = [await submitted(client, seed) for seed in range(2)]
    assert [len(engine.rows) for engine in harness.engines] == [0, 2]
    with pytest.raises(Refusal) as caught:
        await submitted(client, 3)
    assert caught.value.reason is Reason.BUSY, "the places of a paused card do not count"
    for line in lines:
        await client.finish(line)


async def test_an_entry_that_the_offer_does_not_have_is_refused() -> None:
    _, client = await ready(FAST)
    with pytest.raises(Refusal) as caught:
        await submitted(client, 1, entry=1)
    assert caught.value.reason is Reason.UNKNOWN_MODEL


async def test_jobs_of_a_card_that_is_given_up_do_not_crowd_an_equal_card() -> None:
    harness, client = await ready(FAST, FAST)
    lines = [await submitted(client, seed) for seed in range(4)]
    await lose(harness, 0)
    card = next(iter(harness.cards))
    card.failed = "it fell off the bus"
    await harness.engine_event(EngineGone(card.failed), 0)
    assert [len(engine.rows) for engine in harness.engines] == [0, 2]
    states = [line.live.session.state for line in lines if line.live is not None]
    assert states.count(JobState.FAILED) == 2
    for line in lines:
        if line.live is not None and line.live.session.state is not JobState.FAILED:
            await client.finish(line)


async def test_a_long_job_goes_to_no_card_with_a_shorter_context() -> None:
    harness, client = await ready(FAST, FAST)
    harness.engines[1].known = replace(harness.engines[1].known, max_context=32)
    lines = [await submitted(client, seed) for seed in (1, 2)]
    assert [len(engine.rows) for engine in harness.engines] == [2, 0]
    await lose(harness, 0)
    assert not harness.engines[1].rows, "they wait for their own card"
    await come_back(harness, 0)
    for line in lines:
        await client.finish(line)


async def test_a_job_that_returns_while_its_card_is_paused_waits_there_if_others_are_full() -> None:
    harness, client = await ready(FAST, FAST)
    held = await submitted(client, 1)
    harness.worker.pausing["0"].pause(("the owner said so",), None)
    lines = [await submitted(client, seed) for seed in (2, 3)]
    await client.submit(held)
    assert held.live is not None and held.live.card is next(iter(harness.cards))
    assert len(harness.engines[1].rows) == 2
    for line in lines:
        await client.finish(line)


async def restarted(harness: WorkerHarness, job: LiveJob) -> None:
    """A job whose sequence begins again. The caller holds its channel's lock."""
    harness.runtime.drop_sequence(job)
    await harness.runtime.perform(job, job.session.engine_restarted(job.channel.ledger))


async def test_the_loss_of_a_card_does_not_touch_a_job_that_has_left_it_meanwhile() -> None:
    harness, client = await ready(FAST, FAST)
    line = await submitted(client, 1)
    job = line.live
    assert job is not None
    async with job.channel.lock:
        lost = asyncio.create_task(lose(harness, 0))
        await asyncio.sleep(0)
        await restarted(harness, job)
        sequence = job.sequence
    await lost
    assert (job.sequence, job.engine_losses) == (sequence, 0)
    assert [len(engine.rows) for engine in harness.engines] == [0, 1]
    await client.finish(line)


async def test_a_job_that_begins_when_no_card_of_its_entry_is_left_ends() -> None:
    harness, client = await ready(FAST, EXACT)
    line = await submitted(client, 1)
    job = line.live
    assert job is not None
    harness.engines[0].lose()
    next(iter(harness.cards)).failed = "it fell off the bus"
    async with job.channel.lock:
        await restarted(harness, job)
    assert job.sequence is not None and job.card is None
    await harness.worker.tick()
    assert job.session.state is JobState.FAILED and not harness.runtime.sequences
    assert harness.journal.jobs[line.id].reason is Reason.ENGINE_FAILED


async def test_every_card_has_its_counters_before_anything_happens() -> None:
    harness, _ = await ready(FAST, EXACT)
    shown = harness.metrics.render().decode()
    assert 'piecework_engine_restarts_total{card="0"} 0.0' in shown
    assert 'piecework_pauses_total{card="1"} 0.0' in shown
