"""A whole worker under seeded faults: drops, duplicates, other orders across streams, kill -9
anywhere.

What must hold, whatever happens: no acknowledged voucher is lost, no canvas is charged or paid
twice, unpaid work stays inside the bound, the text is what it would have been without any fault,
and in the end everything delivered is paid for.
"""

from __future__ import annotations

import random

import pytest

from piecework_node.errors import EngineUnavailable
from piecework_protocol.client_session import Phase
from piecework_protocol.errors import Refusal
from piecework_protocol.limits import MAX_CANVASES_AHEAD
from piecework_protocol.objects import Finish
from piecework_protocol.states import ENDED_STATES
from tests.support.node.fake_engine import canvas_event
from tests.support.node.faults import Killed, KillSwitch
from tests.support.node.harness import Client, JobStream, WorkerHarness

JOBS = 3
STEPS = 160


class Simulation:
    """A stage with a client whose every step may go wrong, driven by one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.harness = WorkerHarness()
        self.client = Client(self.harness)
        self.lines: list[JobStream] = []
        self.kills = 0

    async def start(self) -> None:
        await self.harness.boot()
        self.client.open_on_chain()
        for number in range(JOBS):
            self.lines.append(self.client.job(number + 1, self.random.choice((5, 24, 40))))

    async def step(self) -> None:
        """One random thing happens; a kill anywhere inside it starts the worker anew."""
        action = self.random.choice(
            [self.submit] * 3
            + [self.read] * 6
            + [self.deliver] * 6
            + [self.engine] * 6
            + [self.drop, self.duplicate, self.arm, self.lose_engine, self.pass_time, self.vanish]
            + [self.leave]
        )
        try:
            await action()
        except Killed:
            await self.reboot()
        except (Refusal, EngineUnavailable):
            pass
        self.check()

    async def reboot(self) -> None:
        """kill -9: every stream and row is gone, the journal is not."""
        self.kills += 1
        for line in self.lines:
            while self.random.random() < 0.9 and self.client.read(line):
                pass  # what was on the wire arrives although its sender is dead
            self.client.forget(line)
        await self.harness.boot(KillSwitch())

    def pick(self) -> JobStream:
        return self.random.choice(self.lines)

    async def submit(self) -> None:
        line = self.pick()
        if line.sink is None and not (line.finished and self.all_paid(line)):
            try:
                await self.client.submit(line, drafts=self.random.random() < 0.3)
            except BaseException:
                self.client.forget(line)
                raise

    def all_paid(self, line: JobStream) -> bool:
        return self.client.acknowledged >= len(self.client.paid_log)

    async def read(self) -> None:
        self.client.read(self.pick())
        for line in self.lines:
            if line.sink is not None and line.sink.closed and not line.sink.frames:
                self.client.forget(line)

    async def deliver(self) -> None:
        await self.client.deliver(self.pick())

    async def engine(self) -> None:
        rows = self.harness.engine.runnable()
        if rows:
            await self.harness.engine_step(self.random.choice(rows))

    async def leave(self) -> None:
        """The client cancels a job that it has not taken to its end."""
        line = self.pick()
        if line.session.phase is Phase.ACCEPTED and self.random.random() < 0.3:
            line.cancel()

    async def drop(self) -> None:
        await self.client.drop(self.pick())

    async def vanish(self) -> None:
        """The connection dies and the worker has not noticed yet."""
        self.client.forget(self.pick())

    async def duplicate(self) -> None:
        """A frame arrives a second time, and vouchers overtake one another."""
        line = self.pick()
        if line.upward:
            line.upward.append(line.upward[0])
            line.upward.rotate(self.random.randrange(3))

    async def arm(self) -> None:
        """Die at one of the next points between two effects."""
        if not self.harness.switch.at:
            self.harness.switch.at = self.harness.switch.passed + self.random.randrange(1, 12)

    async def lose_engine(self) -> None:
        if self.random.random() < 0.3:
            await self.harness.engine_event(self.harness.engine.lose())
            await self.harness.engine_event(self.harness.engine.come_back())

    async def pass_time(self) -> None:
        self.harness.clock.advance(self.random.choice((0.5, 5.0, 31.0)))
        await self.harness.worker.tick()

    # --- what always holds

    def check(self) -> None:
        journal, client = self.harness.journal, self.client
        stored = journal.books.get(client.id)
        if stored is None:
            return
        ledger = stored.ledger
        assert ledger.accumulator.count >= client.acknowledged, "an acknowledged voucher was lost"
        assert ledger.cumulative <= client.book.cumulative <= client.deposit
        for line in self.lines:
            job = journal.jobs.get(line.id)
            if job is None:
                assert not line.receipts, "a receipt was delivered before its job was recorded"
                continue
            receipts = [s.receipt for s in job.canvases]
            assert receipts[: len(line.receipts)] == line.receipts, (
                "a delivered receipt is not on record"
            )
            assert ledger.unpaid_canvases(line.id) <= MAX_CANVASES_AHEAD, (
                "the exposure bound is broken"
            )
        charged = sum(s.receipt.amount for job in journal.jobs.values() for s in job.canvases)
        unpaid = sum(u.amount for u in ledger.unpaid.values())
        assert charged == ledger.cumulative + unpaid, "a canvas was paid twice or never charged"

    async def settle_down(self) -> None:
        """No more faults: every job is brought to its end and paid for."""
        await self.reboot()
        for _ in range(40):
            for line in self.lines:
                self.client.forget(line)
                try:
                    await self.client.submit(line)
                except Refusal:
                    self.client.forget(line)
                    continue
                await self.client.finish(line)
            if all(self.over(line) for line in self.lines):
                break
        self.check()
        assert not self.harness.journal.books[self.client.id].ledger.unpaid

    def over(self, line: JobStream) -> bool:
        job = self.harness.journal.jobs.get(line.id)
        return job is not None and job.state in ENDED_STATES and not self.client_owes(line)

    def client_owes(self, line: JobStream) -> bool:
        return self.harness.journal.books[self.client.id].ledger.unpaid_canvases(line.id) > 0


@pytest.mark.parametrize("seed", range(60))
async def test_promises_hold_under_any_faults(seed: int) -> None:
    world = Simulation(seed)
    await world.start()
    for _ in range(STEPS):
        await world.step()
    await world.settle_down()
    client, journal = world.client, world.harness.journal
    assert journal.books[client.id].ledger.cumulative == client.book.cumulative
    for line in world.lines:
        job = journal.jobs[line.id]
        assert job.state in ENDED_STATES
        assert [s.receipt for s in job.canvases] == line.receipts
        whole = [r.canvas for r in line.receipts if r.finish is not Finish.CANCELLED]
        texts = [text_of(line, canvas) for canvas in whole]
        assert line.text[: len(whole)] == texts, "the text depends on the faults"
        assert set(line.text[len(whole) :]) <= {"", "draft"}, "a draft that nobody was shown"


def text_of(line: JobStream, canvas: int) -> str:
    """What the engine always makes of a canvas of this job."""
    from piecework_model.jobs import generation_request
    from piecework_model.requests import EncodedContent

    request = generation_request(
        "any",
        EncodedContent((1,)),
        line.submission.job.parameters,
        canvas_limit=0,
        committed=(),
        drafts=False,
    )
    return canvas_event(request, canvas).text


async def trade(harness: WorkerHarness, client: Client, line: JobStream) -> None:
    await client.submit(line)
    await client.finish(line)


async def points() -> int:
    """How many points there are between two effects in one whole job."""
    harness = WorkerHarness()
    await harness.boot()
    client = Client(harness)
    client.open_on_chain()
    await trade(harness, client, client.job(3, 40))
    return harness.switch.passed


async def test_a_kill_at_every_point_between_two_effects_keeps_every_promise() -> None:
    total = await points()
    assert total > 20
    for at in range(1, total + 1):
        harness = WorkerHarness()
        await harness.boot(KillSwitch())
        client = Client(harness)
        client.open_on_chain()
        line = client.job(3, 40)
        harness.switch.at = harness.switch.passed + at
        with pytest.raises(Killed):
            await trade(harness, client, line)
            raise Killed  # the last points lie in the start
        while client.read(line):
            pass  # what was on the wire arrives although its sender is dead
        acknowledged = client.acknowledged
        client.forget(line)
        held = harness.journal.jobs.get(line.id)
        on_record = [s.receipt for s in held.canvases] if held else []
        assert on_record[: len(line.receipts)] == line.receipts
        await harness.boot(KillSwitch())
        stored = harness.journal.books.get(client.id)
        assert (stored.ledger.accumulator.count if stored else 0) >= acknowledged
        await trade(harness, client, line)
        assert line.finished, f"killed at point {at}"
        assert [s.receipt for s in harness.journal.jobs[line.id].canvases] == line.receipts
        ledger = harness.journal.books[client.id].ledger
        assert ledger.cumulative == client.book.cumulative == sum(r.amount for r in line.receipts)
        assert not ledger.unpaid
