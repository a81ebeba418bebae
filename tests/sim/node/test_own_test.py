"""The owner's own test job: the engine writes, and no client, receipt or voucher is near."""

from __future__ import annotations

import pytest

from piecework_model.requests import EncodedContent, FailedEvent, StoppedEvent
from piecework_node.errors import OwnTestRefused, PromptRejected
from piecework_node.jobs.own_test import MAX_CANVASES, OwnTest, OwnTests
from piecework_protocol.kinds import Content
from tests.support.node.fake_engine import CANVAS, FACTS, FakeEngine
from tests.support.node.harness import Client, WorkerHarness

SEED = 2
"""Both canvases that it gives are full."""


class LostMeanwhile(FakeEngine):
    """Is lost while it encodes, and answers still: as an encoder beside servers does."""

    async def encode(self, content: Content, most: int | None = None) -> EncodedContent:
        made = await super().encode(content, most)
        if self.losing:
            self.losing = False
            self.lose()
        return made

    losing = True


async def booted() -> WorkerHarness:
    """A worker whose test jobs fill their canvases: the seed decides that."""
    harness = WorkerHarness()
    await harness.boot()
    cards, clock = harness.worker.cards, harness.clock
    harness.worker.own_tests = OwnTests(cards, clock, draw=lambda _: SEED)
    return harness


async def step(harness: WorkerHarness, test: OwnTest) -> None:
    """Finish the next canvas of a test job, drafts first."""
    seen = test.tokens, test.state
    while (test.tokens, test.state) == seen:
        await harness.engine_event(harness.engine.step(test.name))


async def test_a_test_job_shows_its_text_as_it_grows_and_leaves_nothing_behind() -> None:
    harness = await booted()
    test = await harness.worker.own_tests.start("a fox")
    assert harness.worker.own_tests.last is test
    await harness.engine_event(harness.engine.step(test.name))
    assert (test.draft, test.text, test.step) == ("draft", "", 1)
    await step(harness, test)
    first = test.text
    assert (test.tokens, test.state) == (CANVAS, "running")
    assert first
    assert test.first_canvas_s is not None
    await step(harness, test)
    assert test.state == "done"
    assert test.text.startswith(first)
    assert test.draft == ""
    assert harness.worker.active == 0
    assert await harness.journal.open_jobs() == ()
    assert await harness.journal.channels() == ()


async def test_paid_jobs_go_on_beside_it() -> None:
    harness = await booted()
    client = Client(harness)
    client.open_on_chain()
    line = client.job(1, 8)
    await client.submit(line)
    test = await harness.worker.own_tests.start("a fox")
    await client.finish(line)
    assert line.ended is not None
    assert (test.state, test.tokens) == ("done", 2 * CANVAS)


async def test_one_runs_at_a_time_and_the_next_has_a_number_of_its_own() -> None:
    harness = await booted()
    tests = harness.worker.own_tests
    first = await tests.start("a fox", CANVAS)
    with pytest.raises(OwnTestRefused, match="runs already"):
        await tests.start("an owl")
    await step(harness, first)
    second = await tests.start("an owl", CANVAS)
    assert (first.state, second.number) == ("done", 2)
    tests.stop()
    await harness.engine_event(StoppedEvent(first.name, 0, 0, 0, ()))  # late, of the first
    assert second.state == "running"
    await harness.engine_event(StoppedEvent(second.name, 0, 1, 2, ()))
    assert second.state == "stopped"


async def test_an_engine_that_is_lost_or_fails_ends_it_with_the_reason() -> None:
    harness = await booted()
    tests = harness.worker.own_tests
    lost = await tests.start("a fox")
    await harness.engine_event(harness.engine.lose())
    assert (lost.state, lost.why) == ("failed", "the engine was lost")
    await harness.engine_event(harness.engine.come_back())
    failed = await tests.start("a fox")
    await harness.engine_event(FailedEvent(failed.name, "internal", "a fault"))
    assert (failed.state, failed.why) == ("failed", "a fault")


@pytest.mark.parametrize("tokens", [FACTS.max_context + 1, (MAX_CANVASES + 1) * CANVAS])
async def test_one_that_does_not_fit_is_refused(tokens: int) -> None:
    harness = await booted()
    with pytest.raises(OwnTestRefused, match="canvases"):
        await harness.worker.own_tests.start("a fox", tokens)
    assert harness.worker.own_tests.last is None
    assert harness.engine.rows == {}


async def test_a_prompt_that_the_template_refuses_leaves_the_place_free() -> None:
    harness = await booted()
    with pytest.raises(PromptRejected):
        await harness.worker.own_tests.start("reject me")
    assert (await harness.worker.own_tests.start("a fox")).number == 1


async def test_without_a_card_that_takes_steps_it_is_refused() -> None:
    harness = await booted()
    harness.engine.lose()
    with pytest.raises(OwnTestRefused, match="no engine is ready"):
        await harness.worker.own_tests.start("a fox")


async def test_an_engine_that_is_lost_while_it_reads_the_prompt_leaves_the_place_free() -> None:
    harness = WorkerHarness(make_engine=LostMeanwhile)
    await harness.boot()
    with pytest.raises(OwnTestRefused, match="lost or paused"):
        await harness.worker.own_tests.start("a fox")
    assert harness.engine.started == []
    await harness.engine_event(harness.engine.come_back())
    assert (await harness.worker.own_tests.start("a fox")).state == "running"
