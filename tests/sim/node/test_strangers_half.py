"""Payers without a mined deposit get half of the places, those that are being admitted included.

A channel that the chain has not vouched for gets none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from piecework.chain.reading.reader import ChannelOnChain
from piecework_model.requests import EncodedContent
from piecework_node.journal.records import JournalRecord
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.kinds import Content
from piecework_protocol.types import Amount, ChannelId
from tests.support.node.fake_engine import FakeEngine
from tests.support.node.fake_escrow import FakeEscrow
from tests.support.node.faults import KillSwitch
from tests.support.node.harness import DOMAIN, TERMS, Client, WorkerHarness
from tests.support.node.memory_journal import MemoryJournal

HALF = TERMS.capacity // 2
CROWD = 3 * TERMS.capacity


class PausedEngine(FakeEngine):
    """Encodes nothing until it is told to go on."""

    def __init__(self, switch: KillSwitch | None = None) -> None:
        super().__init__(switch)
        self.go_on = asyncio.Event()

    async def encode(self, content: Content, most: int | None = None) -> EncodedContent:
        await self.go_on.wait()
        return await super().encode(content, most)


class SlowNode(FakeEscrow):
    """Says nothing about channels that nobody opened until it is told to go on."""

    def __init__(self, channels: int) -> None:
        """channels: after how many of them `asked` is set."""
        super().__init__()
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()
        self._left = channels

    async def channel(self, channel_id: ChannelId) -> ChannelOnChain:
        if channel_id not in self.channels:
            self._left -= 1
            if not self._left:
                self.asked.set()
            await self.go_on.wait()
        return await super().channel(channel_id)


class YieldingJournal(MemoryJournal):
    """Lets others run before it writes, as a disk does."""

    async def append(self, records: Sequence[JournalRecord]) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        await super().append(records)


def stranger(harness: WorkerHarness, number: int) -> Client:
    """A payer that could open a channel and has not."""
    client = Client(harness, f"stranger {number}")
    harness.chain.pooled[client.channel.token, client.channel.payer] = client.deposit
    harness.chain.shallow[client.id] = Amount(0)
    return client


async def test_strangers_that_come_together_get_no_more_than_half_of_the_places() -> None:
    harness = WorkerHarness(make_engine=PausedEngine)
    harness.journal = YieldingJournal(DOMAIN)
    await harness.boot()
    clients = [stranger(harness, number) for number in range(HALF + 2)]
    coming = [
        asyncio.create_task(client.submit(client.job(1, 8), funding=client.funding()))
        for client in clients
    ]
    done, waiting = await asyncio.wait(coming, timeout=0.2)
    assert len(waiting) >= HALF, [task.exception() for task in done]
    assert isinstance(harness.engine, PausedEngine)
    harness.engine.go_on.set()
    answers = await asyncio.gather(*coming, return_exceptions=True)
    refused = [answer for answer in answers if answer is not None]
    assert len(harness.engine.rows) == HALF
    assert [type(answer) for answer in refused] == [Refusal] * 2
    assert all(
        isinstance(r, Refusal) and r.reason is Reason.CREDIT_EXHAUSTED and "half" in str(r)
        for r in refused
    )


async def test_a_payer_with_a_deposit_finds_a_place_beside_them() -> None:
    harness = WorkerHarness(make_engine=PausedEngine)
    await harness.boot()
    assert isinstance(harness.engine, PausedEngine)
    harness.engine.go_on.set()
    for number in range(HALF):
        client = stranger(harness, number)
        await client.submit(client.job(1, 8), funding=client.funding())
    known = Client(harness, "known")
    known.open_on_chain()
    line = known.job(1, 8)
    await known.submit(line)
    assert len(harness.engine.rows) == HALF + 1


async def crowd(node: SlowNode) -> tuple[WorkerHarness, list[asyncio.Task[None]]]:
    """A worker at which the jobs of `CROWD` channels that nobody has opened wait for the node."""
    harness = WorkerHarness()
    harness.chain = node
    await harness.boot()
    clients = [Client(harness, f"nobody {number}") for number in range(CROWD)]
    coming = [asyncio.create_task(client.submit(client.job(1, 8))) for client in clients]
    await node.asked.wait()
    return harness, coming


@pytest.mark.parametrize("served_before", [True, False])
async def test_channels_that_do_not_exist_take_no_places_while_the_node_is_asked(
    served_before: bool,
) -> None:
    node = SlowNode(CROWD)
    harness, coming = await crowd(node)
    payer = Client(harness, "payer")
    payer.open_on_chain()
    if served_before:
        await payer.submit(payer.job(1, 8))
    for number in range(TERMS.capacity - served_before):
        another = Client(harness, f"payer {number}")
        another.open_on_chain()
        await another.submit(another.job(1, 8))
    assert len(harness.engine.rows) == TERMS.capacity
    assert harness.worker.active == TERMS.capacity
    node.go_on.set()
    answers = await asyncio.gather(*coming, return_exceptions=True)
    assert {a.reason for a in answers if isinstance(a, Refusal)} <= {
        Reason.CHANNEL_UNKNOWN,
        Reason.BUSY,
    }
    assert len(answers) == len(coming)
    assert None not in answers


async def test_prompts_of_channels_that_nobody_knows_are_counted_while_they_wait() -> None:
    node = SlowNode(CROWD)
    harness, coming = await crowd(node)
    late, payer = Client(harness, "late"), Client(harness, "payer")
    payer.open_on_chain()
    await payer.submit(payer.job(1, 8))
    views = harness.worker.views
    size = len(late.job(1, 8).submission.sealed_content)
    assert views.worker(late.job(1, 8).submission).unvetted_bytes >= len(coming) * size // 2
    assert views.worker(payer.job(2, 8).submission).unvetted_bytes == 0
    node.go_on.set()
    await asyncio.gather(*coming, return_exceptions=True)
    assert views.worker(late.job(1, 8).submission).unvetted_bytes == 0
