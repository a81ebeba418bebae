"""The ledger of budgets against a model: nothing is lost, nothing is kept for good, no limit is
passed.

Two processes of one client reserve, sign, pay and end jobs, and are killed at any moment.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from piecework.client.journal.budgets import DAY_S, LATE_S, Shortage, day_of, month_of
from piecework.client.journal.records import JobRow, JobStatus, Limits, Part
from piecework.client.journal.store import Store
from piecework_protocol.types import Amount, Timestamp
from tests.support.chain.fake_chain import DOMAIN
from tests.support.client.client_side import PAYER
from tests.unit.client.test_store import NOW, UNTIL, accepted, canvas, exactly, job_row, terms

LASTS_S = 900
WHOLE = Limits(Amount(260), Amount(700))
KEYS = {"": Limits(), "alice": Limits(Amount(120), Amount(300)), "bob": Limits(Amount(200))}
ENDS = (JobStatus.COMPLETE, JobStatus.CANCELLED, JobStatus.FAILED, JobStatus.BROKEN)
LAST_SECONDS = 2**40


@dataclass
class Held:
    """A part as the model has it. `process` is the name of the one that made it."""

    part: Part
    day: int
    amount: int
    until: int
    process: str
    job: JobRow | None = None
    canvases: int = 0


@dataclass
class Model:
    """What the ledger should say."""

    held: list[Held] = field(default_factory=list)
    paid: dict[tuple[str, int], int] = field(default_factory=dict)

    def used(self, name: str, days: range) -> int:
        paid = sum(v for (who, day), v in self.paid.items() if day in days and name in ("", who))
        return paid + sum(
            h.amount for h in self.held if h.day in days and name in ("", h.part.budget)
        )

    def room(self, budget: str, day: int) -> int:
        limits = [("", WHOLE)] + ([(budget, KEYS[budget])] if budget else [])
        rooms = [LAST_SECONDS]
        for name, limit in limits:
            if limit.per_day is not None:
                rooms.append(limit.per_day - self.used(name, range(day, day + 1)))
            if limit.per_month is not None:
                rooms.append(limit.per_month - self.used(name, month_of(day)))
        return max(0, min(rooms))

    def pass_time(self, now: int) -> None:
        self.held = [h for h in self.held if h.until >= now]

    def kill(self, process: str) -> None:
        self.held = [h for h in self.held if h.job is not None or h.process != process]


class Ledger(RuleBasedStateMachine):
    """The journal beside the model."""

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.file = Path(self.folder.name) / "client.db"
        self.now, self.jobs, self.model = NOW, 0, Model()
        self.stores = [self.process(), self.process()]
        self.stores[0].open_channel(terms())
        for name, limits in KEYS.items():
            if name:
                self.stores[0].api_keys.add(name, name, limits, now=NOW, expires_at=Timestamp(0))

    def process(self) -> Store:
        return Store(self.file, DOMAIN, PAYER.address)

    def teardown(self) -> None:
        if not hasattr(self, "stores"):
            return
        for store in self.stores:
            store.close()
        store = self.process()
        try:
            later = Timestamp(self.now + 10 * DAY_S)
            held = store.budgets.reserve("", [Amount(1)], Limits(), later, later)
            assert not isinstance(held, Shortage)
            assert store.budgets.used("", later).held == 1
            receipts = sum(row.receipt.amount for row in store.receipts())
            assert receipts == sum(self.model.paid.values())
        finally:
            store.close()
            self.folder.cleanup()

    @property
    def until(self) -> Timestamp:
        return Timestamp(self.now + LASTS_S)

    @rule(
        which=st.integers(0, 1),
        budget=st.sampled_from(sorted(KEYS)),
        ceilings=st.lists(st.integers(0, 90), min_size=1, max_size=4),
    )
    def reserve(self, which: int, budget: str, ceilings: list[int]) -> None:
        day = day_of(self.now)
        fits = sum(ceilings) <= self.model.room(budget, day)
        amounts = [Amount(c) for c in ceilings]
        got = self.stores[which].budgets.reserve(budget, amounts, WHOLE, self.now, self.until)
        assert isinstance(got, Shortage) is not fits
        if not isinstance(got, Shortage):
            for hold, ceiling in zip(got, ceilings, strict=True):
                part = Part(budget, hold)
                owner = self.stores[which].owner
                self.model.held.append(Held(part, day, ceiling, self.until, owner))

    @precondition(lambda self: self.free())
    @rule(data=st.data(), ceiling=st.integers(0, 120))
    def raise_it(self, data: Any, ceiling: int) -> None:
        held = data.draw(st.sampled_from(self.free()))
        more = max(0, ceiling - held.amount)
        fits = more == 0 or more <= self.model.room(held.part.budget, held.day)
        store = self.store(held.process)
        got = store.budgets.cover(held.part, [Amount(ceiling)], WHOLE, self.now, self.until)
        assert isinstance(got, Shortage) is not fits
        if fits:
            assert got == (held.part.hold,)
            held.amount, held.until = held.amount + more, self.until

    @precondition(lambda self: self.free())
    @rule(data=st.data())
    def sign(self, data: Any) -> None:
        held = data.draw(st.sampled_from(self.free()))
        self.jobs += 1
        job = job_row(self.jobs, held.amount, now=self.now)
        until = Timestamp(self.now + UNTIL - NOW)
        store = self.store(held.process)
        store.admit(job, None, exactly, until, part=held.part)
        store.accepted(job.id, accepted(job))  # so the deposit stays, whoever is killed
        held.job, held.until = job, job.submission.job.deadline + LATE_S

    @precondition(lambda self: self.running())
    @rule(data=st.data(), which=st.integers(0, 1), share=st.integers(0, 100))
    def pay(self, data: Any, which: int, share: int) -> None:
        held = data.draw(st.sampled_from(self.running()))
        assert held.job is not None
        amount = held.amount * share // 100
        event = canvas(held.job, held.canvases, amount)
        store = self.stores[which]
        store.pay(event, held.job.channel_id, None)
        assert store.pay(event, held.job.channel_id, None).again
        held.canvases, held.amount = held.canvases + 1, held.amount - amount
        key = held.part.budget, held.day
        self.model.paid[key] = self.model.paid.get(key, 0) + amount

    @precondition(lambda self: self.running())
    @rule(data=st.data(), which=st.integers(0, 1), status=st.sampled_from(ENDS))
    def end(self, data: Any, which: int, status: JobStatus) -> None:
        held = data.draw(st.sampled_from(self.running()))
        assert held.job is not None
        self.stores[which].finish(held.job.id, status)
        self.model.held.remove(held)

    @precondition(lambda self: any(not h.canvases for h in self.running()))
    @rule(data=st.data())
    def decline(self, data: Any) -> None:
        held = data.draw(st.sampled_from([h for h in self.running() if not h.canvases]))
        assert held.job is not None
        self.stores[0].finish(held.job.id, JobStatus.REFUSED)
        held.job = None
        if held.process not in self.owners:
            self.model.held.remove(held)

    @precondition(lambda self: self.free())
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        held = data.draw(st.sampled_from(self.free()))
        self.store(held.process).budgets.release(held.part.hold or 0)
        self.model.held.remove(held)

    @rule(which=st.integers(0, 1))
    def kill(self, which: int) -> None:
        self.model.kill(self.stores[which].owner)
        self.stores[which].close()
        self.stores[which] = self.process()

    @rule(seconds=st.sampled_from([1, 300, LASTS_S + 1, DAY_S // 2, DAY_S, 20 * DAY_S]))
    def wait(self, seconds: int) -> None:
        self.now = Timestamp(self.now + seconds)
        self.model.pass_time(self.now)

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        if not hasattr(self, "stores"):
            return
        day = day_of(self.now)
        for name in KEYS:
            used = self.stores[0].budgets.used(name, self.now)
            assert used.day == self.model.used(name, range(day, day + 1))
            assert used.month == self.model.used(name, month_of(day))
        for budget in KEYS:
            left = self.stores[1].budgets.left(Part(budget), WHOLE, self.now)
            assert left == self.model.room(budget, day)

    @property
    def owners(self) -> list[str]:
        return [store.owner for store in self.stores]

    def store(self, owner: str) -> Store:
        return self.stores[self.owners.index(owner)]

    def free(self) -> list[Held]:
        return [h for h in self.model.held if h.job is None and h.process in self.owners]

    def running(self) -> list[Held]:
        return [h for h in self.model.held if h.job is not None]


TestLedger = Ledger.TestCase
TestLedger.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
