"""Payers without a mined deposit get half of the places, those that are being admitted included."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from piecework_model.requests import EncodedContent
from piecework_node.journal.records import JournalRecord
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.kinds import Content
from piecework_protocol.types import Amount
from tests.support.node.fake_engine import FakeEngine
from tests.support.node.faults import KillSwitch
from tests.support.node.harness import DOMAIN, TERMS, Client, WorkerHarness
from tests.support.node.memory_journal import MemoryJournal

HALF = TERMS.capacity // 2


class PausedEngine(FakeEngine):
    """Encodes nothing until it is told to go on."""

    def __init__(self, switch: KillSwitch | None = None) -> None:
        super().__init__(switch)
        self.go_on = asyncio.Event()

    async def encode(self, content: Content, most: int | None = None) -> EncodedContent:
        await self.go_on.wait()
        return await super().encode(content, most)


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
