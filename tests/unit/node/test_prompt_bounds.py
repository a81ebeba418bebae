"""Prompts that cannot fit are refused before they are tokenized, and no channel owns the queue."""

from __future__ import annotations

import asyncio

import pytest

from piecework_node.jobs.prompts import (
    BYTES_PER_TOKEN,
    JSON_BYTES_PER_BYTE,
    MESSAGE_BYTES,
    PromptQueue,
    check_sealed_length,
    check_text_length,
)
from piecework_protocol.conversation import Message
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.kinds.text import encode_messages
from piecework_protocol.limits import MAX_MESSAGES_PER_PROMPT
from piecework_protocol.types import ChannelId
from tests.support.node.harness import Client, WorkerHarness
from tests.support.waiting import until

CONTEXT = 64
FITTING = "x" * (CONTEXT * BYTES_PER_TOKEN)


def reason(caught: pytest.ExceptionInfo[Refusal]) -> Reason:
    return caught.value.reason


def test_a_text_of_as_many_bytes_as_a_context_can_hold_passes() -> None:
    check_text_length((Message("user", f"  {FITTING}\n"),), CONTEXT)


@pytest.mark.parametrize("text", [FITTING + "x", "é" * (CONTEXT * BYTES_PER_TOKEN // 2 + 1)])
def test_a_text_with_more_bytes_is_too_long(text: str) -> None:
    with pytest.raises(Refusal) as caught:
        check_text_length((Message("user", text),), CONTEXT)
    assert reason(caught) is Reason.PROMPT_TOO_LONG


def test_the_texts_of_all_messages_count_together() -> None:
    with pytest.raises(Refusal):
        check_text_length((Message("user", FITTING), Message("user", "x")), CONTEXT)


def test_no_prompt_that_fits_is_refused_by_its_sealed_length() -> None:
    worst = "\x01" * (CONTEXT * BYTES_PER_TOKEN // MAX_MESSAGES_PER_PROMPT)
    many = tuple(Message("assistant", worst) for _ in range(MAX_MESSAGES_PER_PROMPT))
    check_sealed_length(len(encode_messages(many)) + 48, CONTEXT)
    one = (Message("user", "\x01" * len(FITTING)),)
    check_sealed_length(len(encode_messages(one)) + 48, CONTEXT)
    with pytest.raises(Refusal) as caught:
        check_sealed_length(
            MESSAGE_BYTES + CONTEXT * BYTES_PER_TOKEN * JSON_BYTES_PER_BYTE + 1, CONTEXT
        )
    assert reason(caught) is Reason.PROMPT_TOO_LONG


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
