"""Prompts that cannot fit are refused before they are tokenized, and no channel owns the queue."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from piecework_node.jobs.prompts import (
    BYTES_PER_TOKEN,
    FRAME_BYTES,
    LONG_BYTES,
    PromptQueue,
    check_content,
    check_prompt,
    check_sealed_length,
    open_content,
)
from piecework_protocol.conversation import (
    IMAGE_TOKENS,
    Conversation,
    Image,
    Message,
    Text,
    Tool,
    ToolCall,
)
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.kinds import Content
from piecework_protocol.kinds.read import Label, Question, ReadContent
from piecework_protocol.kinds.text import Fixed, Hole, TextContent
from piecework_protocol.limits import MAX_LABELS, MAX_QUESTIONS
from piecework_protocol.types import ChannelId, Uint32
from tests.support.node.fake_engine import FACTS
from tests.support.node.harness import Client, WorkerHarness
from tests.support.waiting import until
from tests.unit.node.test_admission import good

CONTEXT = 64
FITTING = "x" * (CONTEXT * BYTES_PER_TOKEN)


def reason(caught: pytest.ExceptionInfo[Refusal]) -> Reason:
    return caught.value.reason


def check(content: Content, max_tokens: int = 8, max_steps: int = 1) -> None:
    """Check a content for a job of so many tokens at an engine with a small context."""
    job = good().job
    asked = job.parameters.replace(max_tokens=Uint32(max_tokens), max_steps=Uint32(max_steps))
    check_content(
        content,
        job.replace(kind=content.kind, parameters=asked),
        replace(FACTS, max_context=CONTEXT, canvas_size=8),
    )


def text(*messages: Message, tools: tuple[Tool, ...] = ()) -> TextContent:
    return TextContent(Conversation(messages, tools))


def question(instructions: str, *labels: Label) -> ReadContent:
    asked = Question(instructions, (Label("yes"), Label("no"), *labels))
    return ReadContent(Conversation((Message("user", ""),)), (asked,))


def test_a_text_of_as_many_bytes_as_a_context_can_hold_passes() -> None:
    check(text(Message("user", f"  {FITTING}\n")))


@pytest.mark.parametrize(
    "content",
    [
        text(Message("user", FITTING + "x")),
        text(Message("user", "é" * (CONTEXT * BYTES_PER_TOKEN // 2 + 1))),
        text(Message("user", FITTING), Message("user", "x")),
        text(Message("assistant", "", thought=FITTING), Message("user", "x")),
        text(Message("user", FITTING), tools=(Tool("t", "", "{}"),)),
        text(Message("user"), tools=(Tool("t", FITTING, "{}"),)),
        text(Message("user"), tools=(Tool("t", "", json.dumps({"d": FITTING})),)),
        text(
            Message("assistant", tool_calls=(ToolCall("1", "t", json.dumps({"d": FITTING})),)),
        ),
        text(Message("tool", FITTING, tool_call_id="1", name="t")),
        TextContent(Conversation((Message("user", "x"),)), (Fixed(FITTING), Hole(1))),
        question(FITTING),
        question("?", Label(FITTING)),
        question("?", Label("maybe", FITTING)),
    ],
)
def test_all_texts_of_a_content_count(content: Content) -> None:
    with pytest.raises(Refusal) as caught:
        check(content)
    assert reason(caught) is Reason.PROMPT_TOO_LONG


def test_images_are_refused_by_name_where_the_engine_takes_none() -> None:
    with pytest.raises(Refusal) as caught:
        check(text(Message("user", (Image("image/png", b"png"),))))
    assert reason(caught) is Reason.NO_IMAGES


def four_questions(labels: int) -> ReadContent:
    asked = Question("", tuple(Label(chr(0x61 + n)) for n in range(labels)))
    return ReadContent(text(Message("user", "x")).conversation, (asked,) * 4)


def form(*parts: Fixed | Hole) -> TextContent:
    return TextContent(text(Message("user", "x")).conversation, parts)


@pytest.mark.parametrize(
    ("fitting", "longer", "max_tokens"),
    [
        (four_questions(15), four_questions(16), 32),
        (form(Hole(62), Fixed("a"), Hole(1)), form(Hole(62), Fixed("a"), Hole(2)), 65),
    ],
    ids=["a line for each question and label", "a position for each hole and fixed part"],
)
def test_a_content_of_more_parts_than_the_context_has_tokens_is_refused(
    fitting: Content, longer: Content, max_tokens: int
) -> None:
    check(fitting, max_tokens)
    with pytest.raises(Refusal, match=f"take {longer.least_tokens} tokens or more") as caught:
        check(longer, max_tokens)
    assert reason(caught) is Reason.PROMPT_TOO_LONG


def test_each_image_may_be_charged_as_the_largest_that_the_processor_makes() -> None:
    picture = Image("image/png", b"png")
    one, two = (text(Message("user", (*[picture] * count, Text("?")))) for count in (1, 2))
    most, more = one.outline.prompt_tokens, two.outline.prompt_tokens
    assert more - most == IMAGE_TOKENS >= 1120 + 2
    large = replace(FACTS, max_context=1 << 18)
    check_prompt(most, one, large)
    with pytest.raises(Refusal, match=f"{most} can be charged"):
        check_prompt(most + 1, one, large)


@pytest.mark.parametrize(
    ("content", "max_tokens", "max_steps", "why"),
    [
        (question("?"), 16, 1, "this read takes 8 positions"),
        (question("?"), 8, 2, "a read takes one step a canvas"),
        (TextContent(text(Message("user", "x")).conversation, (Hole(9),)), 8, 2, "holes have 9"),
    ],
)
def test_parameters_that_contradict_the_content_are_refused(
    content: Content, max_tokens: int, max_steps: int, why: str
) -> None:
    with pytest.raises(Refusal, match=why) as caught:
        check(content, max_tokens, max_steps)
    assert reason(caught) is Reason.BAD_PARAMETERS


def test_a_prompt_that_no_client_would_pay_for_is_refused() -> None:
    content = text(Message("user", "x"))
    most, large = content.outline.prompt_tokens, replace(FACTS, max_context=1 << 18)
    check_prompt(most, content, large)
    check_prompt(most + 1, content, replace(FACTS, max_context=most))
    with pytest.raises(Refusal) as caught:
        check_prompt(most + 1, content, large)
    assert reason(caught) is Reason.PROMPT_REFUSED


def test_no_content_that_fits_is_refused_by_its_sealed_length() -> None:
    labels = tuple(Label(chr(0x100 + n)) for n in range(MAX_LABELS))
    questions = (Question("", labels),) * MAX_QUESTIONS
    many = ReadContent(Conversation((Message("user", ""),)), questions)
    large = 1 << 18
    check_sealed_length(len(many.encode()) + 48, many.text_bytes // BYTES_PER_TOKEN + 1)
    check_sealed_length(len(text(Message("user", "\x01" * len(FITTING))).encode()) + 48, CONTEXT)
    with pytest.raises(Refusal) as caught:
        check_sealed_length(FRAME_BYTES + large * BYTES_PER_TOKEN + 1, large)
    assert reason(caught) is Reason.PROMPT_TOO_LONG


@pytest.mark.parametrize(("length", "at_once"), [(100, True), (LONG_BYTES, False)])
async def test_a_long_content_is_decoded_beside_the_event_loop(length: int, at_once: bool) -> None:
    content, turn = text(Message("user", "x" * length)), asyncio.Event()
    facts = replace(FACTS, max_context=1 << 18)
    opening = asyncio.ensure_future(open_content(content.encode(), good().job, facts))
    asyncio.get_running_loop().call_soon(turn.set)
    await turn.wait()
    assert opening.done() == at_once
    assert await opening == content


async def test_a_channel_with_many_prompts_is_told_to_wait_and_others_are_not() -> None:
    queue, done = PromptQueue(most=4), asyncio.Event()
    mine, other = ChannelId(bytes(32)), ChannelId(b"\x01" * 32)
    tokenizing = 0

    async def tokenize(channel: ChannelId) -> None:
        nonlocal tokenizing
        async with queue.turn(channel):
            tokenizing += 1
            await done.wait()

    tasks = [asyncio.ensure_future(tokenize(mine)) for _ in range(4)]
    await until(lambda: tokenizing == 2)
    with pytest.raises(Refusal) as caught:
        async with queue.turn(mine):
            pass
    assert reason(caught) is Reason.BUSY
    async with queue.turn(other):
        done.set()
    await asyncio.gather(*tasks)
    async with queue.turn(mine):
        assert tokenizing == 4


async def test_a_long_prompt_never_reaches_the_tokenizer() -> None:
    harness = WorkerHarness()
    await harness.boot()
    client = Client(harness)
    client.open_on_chain()
    job = client.job(3, prompt="word " * 100_000)
    with pytest.raises(Refusal) as caught:
        await client.submit(job)
    assert reason(caught) is Reason.PROMPT_TOO_LONG
    assert "bytes of text" in caught.value.message
