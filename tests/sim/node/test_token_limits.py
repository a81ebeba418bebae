"""Long prompts are tokenized only as far as their jobs could pay for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from piecework_model.requests import EncodedContent
from piecework_node.engine.link import EngineFacts
from piecework_node.jobs.prompts import (
    BYTES_PER_TOKEN,
    SHORT_BYTES,
    SMALL_BYTES,
    SMALL_CONTEXT,
)
from piecework_protocol.conversation import Conversation, Image, Message, Text
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.kinds import Content
from piecework_protocol.kinds.text import TextContent
from piecework_protocol.types import Amount
from tests.support.node.fake_engine import FACTS, FakeEngine
from tests.support.node.faults import KillSwitch
from tests.support.node.harness import TERMS, Client, WorkerHarness

CREDIT = int(TERMS.credit.first)
PRICE = int(TERMS.price_per_million_prompt_tokens)
WIDE = 2 * SHORT_BYTES
LONG = "x" * (SHORT_BYTES + 4)
"""A byte is a token of the engine of these tests."""
TOO_DEAR = "x" * (BYTES_PER_TOKEN * CREDIT * 1_000_000 // PRICE)


class OtherEngine(FakeEngine):
    """An engine with facts of its own."""

    its = FACTS

    @property
    def facts(self) -> EngineFacts | None:
        return self.its if self.is_ready else None


class WideEngine(OtherEngine):
    """An engine whose context holds a long prompt, and that takes images."""

    its = replace(FACTS, max_context=WIDE, images=True)


class SeeingEngine(OtherEngine):
    """An engine with a small context that takes images."""

    its = replace(FACTS, images=True)


class LargerEngine(OtherEngine):
    """An engine whose context is just not small."""

    its = replace(FACTS, max_context=SMALL_CONTEXT + 1)


class DelayedEngine(WideEngine):
    """Lets something happen while it encodes."""

    def __init__(self, switch: KillSwitch | None = None) -> None:
        super().__init__(switch)
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def encode(self, content: Content, most: int | None = None) -> EncodedContent:
        if self.meanwhile is not None:
            await self.meanwhile()
        return await super().encode(content, most)


async def stranger(harness: WorkerHarness) -> Client:
    """A payer that could open a channel and has not."""
    await harness.boot()
    client = Client(harness)
    harness.chain.pooled[client.channel.token, client.channel.payer] = client.deposit
    return client


async def refused(client: Client, prompt: str | TextContent) -> Reason:
    with pytest.raises(Refusal) as caught:
        await client.submit(client.job(1, 8, prompt=prompt), funding=client.funding())
    return caught.value.reason


async def test_a_prompt_too_long_for_a_small_context_is_refused_for_that_whoever_pays() -> None:
    """Nobody would pay for it, so a payer must not be told to."""
    for prompt in (LONG, "x" * SMALL_BYTES):
        harness = WorkerHarness()
        client = await stranger(harness)
        assert await refused(client, prompt) is Reason.PROMPT_TOO_LONG
        assert harness.engine.asked_for == [FACTS.max_context]


async def test_no_more_than_that_is_counted_for_nothing() -> None:
    picture = Message("user", (Image("image/png", b"a picture"), Text(LONG)))
    shown = TextContent(Conversation((picture,)))
    longer = "x" * (SMALL_BYTES + 1)
    for prompt, engine in ((longer, FakeEngine), (shown, SeeingEngine), (LONG, LargerEngine)):
        harness = WorkerHarness(make_engine=engine)
        client = await stranger(harness)
        assert await refused(client, prompt) is Reason.CREDIT_EXHAUSTED
        counted = [FACTS.max_context if most is None else most for most in harness.engine.asked_for]
        assert all(most * PRICE // 1_000_000 < CREDIT for most in counted), prompt


async def test_a_long_prompt_is_tokenized_no_further_than_the_credit_reaches() -> None:
    harness = WorkerHarness(make_engine=WideEngine)
    client = await stranger(harness)
    assert await refused(client, LONG) is Reason.CREDIT_EXHAUSTED
    (most,) = harness.engine.asked_for
    assert most is not None
    assert CREDIT // 2 < most * PRICE // 1_000_000 < CREDIT


async def test_a_prompt_that_is_too_dear_whatever_it_says_is_not_tokenized() -> None:
    harness = WorkerHarness(make_engine=WideEngine)
    client = await stranger(harness)
    assert await refused(client, TOO_DEAR) is Reason.CREDIT_EXHAUSTED
    assert harness.engine.asked_for == []


async def test_a_prompt_that_was_cut_off_is_refused_whatever_happened_meanwhile() -> None:
    harness = WorkerHarness(make_engine=DelayedEngine)
    client, engine = await stranger(harness), harness.engine
    assert isinstance(engine, DelayedEngine)
    client.open_on_chain()
    first = client.job(1, 8)
    await client.submit(first)

    async def first_job_is_paid() -> None:
        engine.meanwhile = None
        await client.finish(first)

    engine.meanwhile = first_job_is_paid
    assert await refused(client, LONG) is Reason.CREDIT_EXHAUSTED
    most = engine.asked_for[-1]
    assert most is not None
    await client.submit(client.job(2, 8, prompt="x" * (most + 1)))  # there is credit by now


async def test_a_long_prompt_that_leaves_no_room_for_the_output_is_counted() -> None:
    cheap = replace(
        TERMS,
        price_per_million_prompt_tokens=Amount(1),
        price_per_million_output_tokens=Amount(1),
        price_per_thousand_steps=Amount(1),
    )
    harness = WorkerHarness(make_engine=WideEngine, terms=cheap)
    client = await stranger(harness)
    client.open_on_chain()
    # A client asks once more then, for as many tokens as there is room for.
    with pytest.raises(Refusal) as caught:
        await client.submit(client.job(1, WIDE - len(LONG) + 8, prompt=LONG))
    assert caught.value.reason is Reason.PROMPT_TOO_LONG
    assert caught.value.metadata["prompt_tokens"] == str(len(LONG))


async def test_images_are_decoded_only_if_the_job_could_pay_for_them() -> None:
    harness = WorkerHarness(make_engine=WideEngine)
    client = await stranger(harness)
    shown = TextContent(Conversation((Message("user", (Image("image/png", b"a picture"),)),)))
    await client.submit(client.job(1, 8, prompt=shown), funding=client.funding())
    (most,) = harness.engine.asked_for
    assert most is not None
    assert CREDIT // 2 < most * PRICE // 1_000_000 < CREDIT


async def test_a_short_prompt_is_tokenized_whole() -> None:
    harness = WorkerHarness()
    client = await stranger(harness)
    await client.submit(client.job(1, 8), funding=client.funding())
    assert harness.engine.asked_for == [FACTS.max_context]


async def test_a_returning_job_is_tokenized_as_far_as_it_was_accepted() -> None:
    harness = WorkerHarness()
    client = await stranger(harness)
    client.open_on_chain()
    line = client.job(1, 8, prompt="a fox")
    await client.submit(line)
    await client.drop(line)
    await client.submit(line)
    assert harness.engine.asked_for == [FACTS.max_context, len("a fox")]
    await client.finish(line)
    assert line.ended
