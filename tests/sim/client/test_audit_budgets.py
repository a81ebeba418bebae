"""Audits that are bought are reserved with the job that they are about, and its API key pays."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from piecework.client.errors import BudgetExceeded
from piecework.client.journal.budgets import Used
from piecework.client.journal.records import Limits, Part
from piecework.client.limits import MAX_OPINIONS
from piecework.client.sdk import PieceworkClient
from piecework_protocol.objects import AuditOutcome, Kind
from piecework_protocol.types import Amount, Timestamp
from tests.sim.client.test_bought_audits import CHEAT, Scene
from tests.support.client.client_side import ask, collect, last
from tests.support.client.fake_worker import Script
from tests.support.virtual_time import simulate

ALICE = Part("alice")
PLENTY = 10**9
NEVER = 1e-12
AUDITED = 12
"""Jobs after which some auditor has met a canvas of another: with four jobs it fails once in 27."""


class Budgeted:
    """A market with three auditors, and a client with an API key."""

    def __init__(self, folder: Path, script: Script | None = None, **flags: Any) -> None:
        self.scene = Scene(folder, script, **flags)
        self.auditors = [self.scene.auditor(f"auditor {n}") for n in range(3)]

    def client(self) -> PieceworkClient:
        client = self.scene.client()
        self.add_key(client, "alice", PLENTY)
        return client

    def add_key(self, client: PieceworkClient, name: str, per_day: int) -> None:
        limits, now = Limits(Amount(per_day)), Timestamp(int(self.scene.clock.wall()))
        client.store.api_keys.add(name, f"pw-{name}", limits, now=now, expires_at=Timestamp(0))

    def used(self, client: PieceworkClient, budget: str = "alice") -> Used:
        return client.store.budgets.used(budget, Timestamp(int(self.scene.clock.wall())))

    def stop_at_canvas_one(self) -> tuple[asyncio.Event, asyncio.Event]:
        """Have the worker say that it has begun, and wait."""
        begun, go = asyncio.Event(), asyncio.Event()

        async def gate(canvas: int) -> None:
            if canvas == 1:
                begun.set()
                await go.wait()

        self.scene.worker.script.gate = gate
        return begun, go

    @property
    def audits_cost(self) -> int:
        return sum(auditor.paid() for auditor in self.auditors)


def ceilings(client: PieceworkClient) -> dict[Kind, list[int]]:
    """What was signed for, by kind."""
    found: dict[Kind, list[int]] = {}
    for row in client.store.jobs():
        found.setdefault(row.submission.job.kind, []).append(row.submission.job.max_amount)
    return found


@pytest.mark.parametrize("rate", [NEVER, 1.0])
def test_an_audit_is_held_while_the_job_runs_and_settled_to_its_bill(
    tmp_path: Path, rate: float
) -> None:
    market = Budgeted(tmp_path, audit_rate=rate)

    async def work() -> None:
        begun, go = market.stop_at_canvas_one()
        async with market.client() as client:
            job = asyncio.create_task(collect(client.run(ask("one"), ALICE)))
            await begun.wait()
            (ceiling,) = ceilings(client)[Kind.TEXT]
            held = market.used(client).day - ceiling
            go.set()
            cost = last(await job).cost
            await client.audits.done()
            used, bought = market.used(client), ceilings(client).get(Kind.AUDIT, [])
            assert len(bought) == int(rate)
            assert held > 0 and held % MAX_OPINIONS == 0
            assert all(one <= held // MAX_OPINIONS for one in bought), "it was known before"
            assert (used.day, used.held) == (cost + market.audits_cost, 0)
            assert (market.audits_cost > 0) == bool(bought)

    simulate(work())


def test_a_budget_that_has_just_room_for_all_buys_the_audit_and_its_opening(tmp_path: Path) -> None:
    market = Budgeted(tmp_path)
    for auditor in market.auditors:
        auditor.terms = {"open_fee": Amount(5_000)}

    async def work() -> None:
        async with market.client() as client:
            request = ask("one", max_tokens=64)
            async with client.reserve_many([request], [ALICE]):
                all_of_it = market.used(client).held
            market.add_key(client, "bob", all_of_it)
            cost = last(await collect(client.run(request, Part("bob")))).cost
            await client.audits.done()
            (report, _), used = market.scene.told[-1], market.used(client, "bob")
            assert report.outcome is AuditOutcome.PASS and report.cost > 0
            assert (used.day, used.held) == (cost + report.cost + 5_000, 0)

    simulate(work())


def test_second_and_third_opinions_are_paid_by_the_same_key(tmp_path: Path) -> None:
    market = Budgeted(tmp_path, CHEAT)

    async def work() -> None:
        async with market.client() as client:
            cost = last(await collect(client.run(ask("one"), ALICE))).cost
            await client.audits.done()
            (report, _), used = market.scene.told[-1], market.used(client)
            assert report.outcome is AuditOutcome.FAIL and len(report.by) == 2
            assert used.day == cost + market.audits_cost and used.held == 0
            assert report.cost == market.audits_cost

    simulate(work())


def test_a_budget_without_room_for_the_audit_starts_nothing(tmp_path: Path) -> None:
    market = Budgeted(tmp_path, audit_rate=NEVER)

    async def work() -> None:
        async with market.client() as client:
            fixed = ask("one", max_tokens=64)
            ceiling = (await client.rank(fixed)).choices[0].ceiling
            market.add_key(client, "bob", ceiling + 1)
            with pytest.raises(BudgetExceeded):
                await collect(client.run(fixed, Part("bob")))
            assert not client.store.jobs()
            assert market.used(client, "bob").held == 0

    simulate(work())


def test_an_answer_of_any_length_leaves_room_for_its_audit(tmp_path: Path) -> None:
    market = Budgeted(tmp_path, audit_rate=NEVER)

    async def work() -> None:
        async with market.client() as client:
            most = (await client.rank(ask("one"))).choices[0].ceiling
            for name in ("one", "two"):
                market.add_key(client, name, most)
            await collect(client.run(ask("one"), Part("one")))
            async with client.reserve_many([ask("one")], [Part("two")]) as (part,):
                assert len(part.audits) == MAX_OPINIONS
                await collect(client.run(ask("one"), part))
            assert all(0 < one < most for one in ceilings(client)[Kind.TEXT])
            assert len(ceilings(client)[Kind.TEXT]) == 2

    simulate(work())


def test_parts_of_one_request_are_reserved_with_their_audits_at_once(tmp_path: Path) -> None:
    market = Budgeted(tmp_path)

    async def work() -> None:
        async with market.client() as client:
            request = ask("one", max_tokens=64)
            ceiling = (await client.rank(request)).choices[0].ceiling
            parts = [Part("alice", number=n) for n in range(2)]
            cost = 0
            async with client.reserve_many([request] * 2, parts) as held:
                assert len({h for p in held for h in (p.hold, *p.audits)}) == 2 * (1 + MAX_OPINIONS)
                before = market.used(client).held
                assert before > 2 * ceiling and (before - 2 * ceiling) % MAX_OPINIONS == 0
                cost += last(await collect(client.run(request, held[0]))).cost
            await client.audits.done()
            used = market.used(client)
            assert (used.day, used.held) == (cost + market.audits_cost, 0)
            assert market.audits_cost > 0

    simulate(work())


def test_what_is_held_for_an_audit_outlasts_its_request_and_not_the_client(tmp_path: Path) -> None:
    market = Budgeted(tmp_path)

    async def work() -> None:
        async with market.client() as client:
            auditing = asyncio.Event()

            async def never(canvas: int) -> None:
                auditing.set()
                await asyncio.Event().wait()

            for auditor in market.auditors:
                auditor.script.gate = never
            cost = last(await collect(client.run(ask("one"), ALICE))).cost
            await auditing.wait()
            (ceiling,) = ceilings(client)[Kind.AUDIT]
            assert market.used(client).held >= MAX_OPINIONS * ceiling
            await client.audits.close()
            assert market.used(client).day == cost + market.audits_cost + market.used(client).held
            assert market.used(client).held <= ceiling, "only the audit that had begun"

    simulate(work())


def test_checks_of_auditors_are_paid_by_the_client_itself(tmp_path: Path) -> None:
    market = Budgeted(tmp_path, audit_check_rate=1.0)

    async def work() -> None:
        async with market.client() as client:
            cost = 0
            for number in range(AUDITED):
                cost += last(await collect(client.run(ask(f"{number}"), ALICE))).cost
                await client.audits.done()
            whole, alice = market.used(client, ""), market.used(client)
            assert whole.day == market.scene.worker.paid() + market.audits_cost
            rows = [r for r in client.store.jobs() if r.submission.job.kind is Kind.AUDIT]
            assert len(rows) > AUDITED, "the canvases, and checks"
            assert cost < alice.day < whole.day and alice.held == 0

    simulate(work())
