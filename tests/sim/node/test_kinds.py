"""Reads and templates through a whole worker: admitted, run, verified, paid and resumed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from piecework.client.jobs.requests import Generation, job_parameters
from piecework_model import limits
from piecework_model.requests import CanvasEvent
from piecework_node.engine.link import EngineEvent, EngineFacts
from piecework_protocol.conversation import Conversation, Image, Message, Text
from piecework_protocol.errors import ProtocolViolation, Reason, Refusal
from piecework_protocol.kinds import Content
from piecework_protocol.kinds.read import ONE, Label, Question, ReadContent, ReadOutput
from piecework_protocol.kinds.text import Fixed, Hole, TextContent
from piecework_protocol.limits import MIN_TEMPERATURE_MICROS
from piecework_protocol.objects import Finish, Kind
from piecework_protocol.pricing import Usage, price
from piecework_protocol.types import Micros
from tests.support.node.fake_engine import CANVAS, FACTS, FakeEngine
from tests.support.node.harness import Client, JobStream, WorkerHarness

ASKED = Conversation((Message("user", "a fox"),))
QUESTION = Question("Is it a fox?", (Label("yes"), Label("no"), Label("maybe")))
READ = ReadContent(ASKED, (QUESTION,) * 2, draws=3)
"""A canvas of the fake engine has room for one question, so these are six canvases."""
COLD = Generation(
    max_tokens=20, max_steps=8, temperature_start=Micros(0), temperature_end=Micros(0)
)
FORM = TextContent(ASKED, (Fixed("The hero is "), Hole(3), Fixed(", I say.")))


async def ready(make_engine: type[FakeEngine] = FakeEngine) -> tuple[WorkerHarness, Client]:
    harness = WorkerHarness(make_engine=make_engine)
    await harness.boot()
    client = Client(harness)
    client.open_on_chain()
    return harness, client


def read_job(client: Client, content: ReadContent = READ, seed: int = 3) -> JobStream:
    positions = content.canvases(CANVAS) * CANVAS
    return client.job(seed, positions, prompt=content, max_steps=1, stability_steps=0)


async def test_a_read_is_paid_by_its_prompt_and_steps_alone() -> None:
    harness, client = await ready()
    line = read_job(client)
    await client.submit(line)
    await client.finish(line)
    assert [r.finish for r in line.receipts] == [Finish.MORE] * 5 + [Finish.END_OF_TEXT]
    assert all((r.steps, r.units) == (1, 0) for r in line.receipts)
    answers = [o.answers for o in line.outputs if isinstance(o, ReadOutput)]
    assert len(answers) == 6 and all(sum(shares) == ONE for (shares,) in answers)
    total = price(line.model, Usage(len(b"a fox"), 0, 6))
    assert line.amount == total == harness.journal.books[client.id].ledger.cumulative


async def test_a_read_goes_on_after_its_stream_broke() -> None:
    harness, client = await ready()
    line = read_job(client)
    await client.submit(line)
    await harness.engine_step(harness.engine.runnable()[0])
    await client.drop(line)
    await harness.run_engine()
    await client.submit(line)
    await client.finish(line)
    assert line.finished and len(line.receipts) == 6


async def test_a_template_is_charged_as_it_is_filled_in() -> None:
    _, client = await ready()
    line = client.job(3, 23, prompt=FORM)
    await client.submit(line)
    await client.finish(line)
    assert "".join(line.text) == "The hero is xxx, I say."
    assert [r.units for r in line.receipts] == [8, 8, 7]
    assert line.receipts[-1].finish is Finish.END_OF_TEXT


@pytest.mark.parametrize(
    ("content", "max_tokens", "changes", "reason"),
    [
        (FORM, 22, {}, Reason.BAD_PARAMETERS),
        (READ, 5 * CANVAS, {"max_steps": 1}, Reason.BAD_PARAMETERS),
        (READ, 6 * CANVAS, {"max_steps": 2}, Reason.BAD_PARAMETERS),
        (
            TextContent(Conversation((Message("user", (Image("image/png", b"png"),)),))),
            20,
            {},
            Reason.NO_IMAGES,
        ),
    ],
)
async def test_a_content_that_cannot_run_is_refused_by_name(
    content: Content, max_tokens: int, changes: dict[str, int], reason: Reason
) -> None:
    _, client = await ready()
    with pytest.raises(Refusal) as caught:
        await client.submit(client.job(3, max_tokens, prompt=content, **changes))
    assert caught.value.reason is reason


async def test_the_least_temperature_of_the_protocol_is_the_engines_and_gets_a_worker() -> None:
    assert round(limits.MIN_TEMPERATURE * 1_000_000) == MIN_TEMPERATURE_MICROS
    harness, client = await ready()
    least = job_parameters(harness.offer.offer.models[0], COLD, seed=3)
    changes: dict[str, Any] = {"temperature_start": least.temperature_start, "temperature_end": 0}
    await client.submit(client.job(3, **(changes | {"temperature_end": least.temperature_end})))
    with pytest.raises(Refusal, match="temperature_end is 0"):
        await client.submit(client.job(4, **changes))


class SeeingEngine(FakeEngine):
    """An engine that takes images."""

    @property
    def facts(self) -> EngineFacts | None:
        return replace(FACTS, images=True) if self.is_ready else None


async def test_the_tokens_of_images_are_a_part_of_the_prompt_that_is_charged() -> None:
    harness, client = await ready(SeeingEngine)
    shown = (Text("what is it?"), Image("image/png", b"a picture"))
    line = client.job(3, 8, prompt=TextContent(Conversation((Message("user", shown),))))
    await client.submit(line)
    (request,) = harness.engine.rows.values()
    assert [(image.start, image.patches) for image in request.images] == [(11, b"a picture")]
    await client.finish(line)
    assert line.session.prompt_tokens == len("what is it?") + 4


class TextEngine(FakeEngine):
    """An engine that runs no reads."""

    @property
    def facts(self) -> EngineFacts | None:
        return replace(FACTS, kinds=(Kind.TEXT,)) if self.is_ready else None


async def test_a_kind_that_is_not_offered_is_refused_by_name() -> None:
    _, client = await ready(TextEngine)
    with pytest.raises(Refusal) as caught:
        await client.submit(read_job(client))
    assert caught.value.reason is Reason.WRONG_KIND


class Forger(FakeEngine):
    """An engine that leaves an answer out."""

    def step(self, row: str) -> EngineEvent:
        event = super().step(row)
        return replace(event, answers=()) if isinstance(event, CanvasEvent) else event


async def test_a_client_does_not_pay_for_answers_that_are_missing() -> None:
    harness, client = await ready(Forger)
    line = read_job(client)
    await client.submit(line)
    await harness.run_engine()
    with pytest.raises(ProtocolViolation, match="not those of the canvas"):
        while client.read(line):
            pass
    assert not client.paid_log
