"""Templates and reads on servers that denoise given canvases, and on servers that do not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from piecework_model.requests import (
    HOLE,
    CanvasEvent,
    CanvasFinish,
    FailedEvent,
    GenerationRequest,
    ReadSlot,
)
from piecework_node.errors import EndpointLost, PromptRejected
from piecework_node.vllm.forms import FormWriter
from piecework_node.vllm.pool import Health
from piecework_node.vllm.wire import CanvasAnswer, parse_canvas
from piecework_protocol.conversation import Conversation, Message
from piecework_protocol.kinds.read import ONE, Label, Question, ReadContent
from piecework_protocol.kinds.text import Fixed, Hole, TextContent, final_text
from piecework_protocol.objects import Kind, Service
from tests.support.model.vllm_server import CANVAS, CHECKPOINT, EOS, servers, token_at
from tests.support.waiting import until
from tests.unit.node.test_vllm import PROMPT, request, running

ASKED = Conversation((Message("user", "a fox"),))
FORM = TextContent(ASKED, (Fixed("The fox is "), Hole(3), Fixed(".")))
READ = ReadContent(ASKED, (Question("Is it a fox?", (Label("yes"), Label("no"))),), draws=2)
WORD = token_at(0)
TEMPLATE = (WORD, HOLE, HOLE, WORD) + (EOS,) * (CANVAS - 4)
SLOT = ReadSlot(1, (8, 16, 24))


def form_request(limit: int = 99, **changes: Any) -> GenerationRequest:
    return replace(request("form", CANVAS, limit), **changes)


async def test_a_server_that_ignores_given_canvases_takes_no_templates_and_no_reads() -> None:
    async with servers() as made, running(made) as run:
        assert run.link.facts is not None and run.link.facts.kinds == (Kind.TEXT,)
        for content in (FORM, READ):
            with pytest.raises(PromptRejected, match="fill no templates"):
                await run.link.encode(content)
        assert (await run.link.encode(TextContent(ASKED))).prompt_ids


async def test_reads_are_offered_where_the_servers_answer_them() -> None:
    async with servers(takes_canvases=True) as made, running(made) as run:
        assert run.link.facts is not None
        assert run.link.facts.kinds == (Kind.TEXT, Kind.READ)
        assert run.link.facts.service is Service.BEST_EFFORT
        assert (await run.link.encode(FORM)).template
        assert (await run.link.encode(READ)).reads


async def test_a_template_is_filled_in_and_its_fixed_part_stays() -> None:
    async with servers(takes_canvases=True) as made, running(made) as run:
        made[0].canvas_bodies.clear()
        run.link.start(form_request(template=TEMPLATE))
        (event,) = await run.canvases("form")
        assert event.charged_ids == (WORD, token_at(1), token_at(2), WORD)
        assert event.finish is CanvasFinish.END_OF_TEXT and event.steps == 0
        (body,) = made[0].canvas_bodies
        extra = body["vllm_xargs"]
        assert [extra["diffusion_seed_canvas"][i] for i in extra["diffusion_pinned"]] == [
            entry for entry in TEMPLATE if entry != HOLE
        ]
        assert extra["diffusion_canvas_length"] == CANVAS == body["max_tokens"]


async def test_the_second_canvas_of_a_template_stands_behind_the_first_one() -> None:
    template = (HOLE,) * CANVAS + TEMPLATE
    async with servers(takes_canvases=True) as made, running(made) as run:
        made[0].canvas_bodies.clear()
        run.link.start(form_request(1, template=template))
        first = await run.next()
        assert isinstance(first, CanvasEvent) and first.finish is CanvasFinish.MORE
        assert len(made[0].canvas_bodies) == 1, "the credit window allows one canvas"
        run.link.allow("form", 2)
        (second,) = await run.canvases("form")
        assert made[0].canvas_bodies[1]["prompt"] == [*PROMPT, *first.token_ids]
        text = final_text(first.segments) + final_text(second.segments)
        assert text == CHECKPOINT.codec.decode(first.charged_ids + second.charged_ids)


async def test_what_remains_of_an_ended_hole_is_not_asked_for() -> None:
    template = (HOLE,) * (4 * CANVAS) + TEMPLATE
    async with servers(takes_canvases=True) as made, running(made) as run:
        made[0].canvas_bodies.clear()
        ended = (7, EOS) + (9,) * (CANVAS - 2)
        run.link.start(form_request(template=template, committed=(ended,)))
        events = await run.canvases("form")
        assert [event.canvas for event in events] == [1, 2, 3, 4]
        assert [event.charged_ids for event in events[:3]] == [()] * 3
        assert [event.finish for event in events[:3]] == [CanvasFinish.MORE] * 3
        assert len(made[0].canvas_bodies) == 1, "the last canvas has a hole of its own"


async def test_a_read_gives_the_softmax_of_what_the_server_says_at_its_slot() -> None:
    async with servers(takes_canvases=True) as made, running(made) as run:
        made[0].canvas_bodies.clear()
        asked = form_request(template=TEMPLATE, reads=((SLOT,),), max_steps=1)
        run.link.start(asked)
        (event,) = await run.canvases("form")
        weights = [math.exp(-token / 8) for token in SLOT.label_ids]
        assert event.answers[0] == pytest.approx([w / sum(weights) * ONE for w in weights], abs=1)
        assert sum(event.answers[0]) == ONE and event.charged_ids == ()
        (body,) = made[0].canvas_bodies
        assert body["logprob_token_ids"] == list(SLOT.label_ids)
        assert body["vllm_xargs"]["diffusion_read_only"] == 1
        assert body["vllm_xargs"]["diffusion_max_steps"] == 1
        assert body["prompt"] == list(PROMPT)


@pytest.mark.parametrize("missing", ["probabilities", "positions"])
async def test_an_answer_that_lacks_something_loses_the_endpoint(missing: str) -> None:
    async with servers(takes_canvases=True) as made, running(made) as run:
        made[0].leaves_out = missing
        run.link.start(form_request(template=TEMPLATE, reads=((SLOT,),), max_steps=1))
        event = await run.next()
        assert isinstance(event, FailedEvent) and event.kind == "internal"


async def test_a_server_that_declines_a_canvas_fails_the_job_alone() -> None:
    async with servers(takes_canvases=True) as made, running(made) as run:
        made[0].completion_status = 400
        run.link.start(form_request(template=TEMPLATE))
        event = await run.next()
        assert isinstance(event, FailedEvent) and event.kind == "invalid_request"
        assert run.link.ready


async def test_a_server_that_comes_back_without_canvases_gets_no_requests() -> None:
    async with servers(2, takes_canvases=True) as made, running(made) as run:
        await made[1].stop()
        await until(lambda: run.link.endpoints[1].health is Health.DOWN)
        made[1].takes_canvases = False
        await made[1].start()
        await until(lambda: "no given canvases" in run.link.endpoints[1].trouble)
        assert run.link.endpoints[1].health is Health.DOWN


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b'{"choices": [{"token_ids": [-1]}]}',
        b'{"choices": [{"token_ids": [1], "logprobs": {"top_logprobs": [5]}}]}',
        b'{"choices": [{"token_ids": [1], "logprobs": {"top_logprobs": [{"fox": -1}]}}]}',
        b'{"choices": [{"token_ids": [1], "logprobs": {"top_logprobs": [{"token_id:1": "x"}]}}]}',
        b'{"choices": [{"token_ids": [1], "logprobs": {"top_logprobs": [{"token_id:1": 1e999}]}}]}',
    ],
)
def test_other_answers_are_no_canvas(data: bytes) -> None:
    with pytest.raises(EndpointLost):
        parse_canvas(data, CHECKPOINT.vocab_size)


def test_noise_stands_where_the_template_is_free_and_nowhere_else() -> None:
    asked = form_request(template=TEMPLATE)
    writer = FormWriter(asked, CHECKPOINT.codec, CANVAS, CHECKPOINT.vocab_size)
    drawn = [writer.next().canvas for _ in range(40)]
    for position, entry in enumerate(TEMPLATE):
        seen = {canvas[position] for canvas in drawn}
        assert seen == {entry} if entry != HOLE else len(seen) > 4
    with pytest.raises(EndpointLost):
        writer.take(CanvasAnswer((1,) * (CANVAS - 1)))


def test_a_template_that_was_half_filled_goes_on_behind_it() -> None:
    asked = form_request(template=(HOLE,) * CANVAS + TEMPLATE, committed=((7,) * CANVAS,))
    writer = FormWriter(asked, CHECKPOINT.codec, CANVAS, CHECKPOINT.vocab_size)
    assert (writer.canvas, writer.first_canvas) == (1, 1)
    assert writer.next().prompt_ids == (*PROMPT, *((7,) * CANVAS))
