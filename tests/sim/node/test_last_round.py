"""A worker that stops settles in rounds of its own, and never waits longer than it says."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from piecework.chain.sending.transactions import SignedTransaction
from piecework_node.journal.records import TxKind
from tests.support.node.fake_port import FakePort
from tests.support.node.harness import Client
from tests.support.node.settlement import FREE, Bank, bank, make_settler

PATIENT = replace(FREE, interval_s=1e9)


class GatedPort(FakePort):
    """A chain that mines at once what it is sent, and takes its time to say so."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.reached = asyncio.Event()

    async def broadcast(self, tx: SignedTransaction) -> None:
        await super().broadcast(tx)
        self.mine()
        self.reached.set()
        await self.gate.wait()


async def patient_bank(port: GatedPort) -> tuple[Bank, Client]:
    """A worker whose ordinary claims wait for ever, and what it is owed on a channel that only an
    authorization backs."""
    made, _ = await bank(port)
    made.settler = await make_settler(made.harness, port, PATIENT)
    client = Client(made.harness, "new")
    port.pooled[client.channel.token, client.channel.payer] = client.deposit
    line = client.job(3, 40)
    await client.submit(line, funding=client.funding())
    await client.finish(line)
    assert line.finished
    return made, client


async def test_a_round_that_was_under_way_does_not_answer_for_the_last_one() -> None:
    """It has opened the channel after the stop was asked for, and claims nothing on it."""
    port = GatedPort()
    made, client = await patient_bank(port)
    port.gate.clear()
    under_way = asyncio.create_task(made.settler.tick())
    await port.reached.wait()
    last = asyncio.create_task(made.settler.finish(within_s=60, every_s=0))
    await asyncio.sleep(0)
    port.gate.set()
    await asyncio.gather(under_way, last)
    assert port.paid.get(client.id) == client.book.cumulative > 0


async def test_a_stop_does_not_wait_for_a_silent_node_within_a_round() -> None:
    port = GatedPort()
    made, client = await patient_bank(port)
    port.gate.clear()
    under_way = asyncio.create_task(made.settler.tick())
    await port.reached.wait()
    await made.settler.finish(within_s=0.01, every_s=0)
    assert client.id not in port.paid
    (opening,) = made.harness.journal.txs.values()
    assert opening.kind is TxKind.FUND, "what was signed is journaled"
    port.gate.set()
    await under_way
