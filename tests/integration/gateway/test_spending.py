"""Spending limits over real sockets: what they let through, and what is free again afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from piecework.client.errors import BudgetExceeded, InsufficientFunds, RequestRefused
from piecework.client.jobs.requests import TextRequest
from piecework.client.journal.records import JobStatus, Limits, Part
from piecework.client.sdk import PieceworkClient
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.types import Amount, Timestamp
from tests.support.chain.fake_chain import TOKEN_INFO, FakeChain
from tests.support.client.client_side import (
    MONEY,
    PAYER,
    FakeClock,
    ask,
    collect,
    last,
    open_client,
)
from tests.support.client.fake_worker import FakeWorker

SHORT = 64


@asynccontextmanager
async def market(
    folder: Path, *, money: int = MONEY, **flags: Any
) -> AsyncIterator[tuple[PieceworkClient, FakeWorker, FakeClock]]:
    chain, clock = FakeChain(), FakeClock()
    chain.deposit(PAYER.address, money)
    async with (
        FakeWorker(chain, clock) as worker,
        open_client(folder, chain, clock, **flags) as client,
    ):
        yield client, worker, clock


async def ceiling_of(client: PieceworkClient, request: TextRequest) -> int:
    return (await client.rank(request)).choices[0].ceiling


def tokens(units: int) -> str:
    return str(TOKEN_INFO.amount(units)).split()[0]


def now(clock: FakeClock) -> Timestamp:
    return Timestamp(int(clock.wall()))


async def test_of_64_calls_at_a_budget_for_ten_exactly_ten_start(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    async with market(tmp_path / "first") as (client, _, _):
        ceiling = await ceiling_of(client, ask(max_tokens=SHORT))
    limit: Any = {"spend_per_day": tokens(10 * ceiling + ceiling - 1), "deposit": "5.0"}
    held = asyncio.Event()
    async with market(tmp_path, **limit) as (client, worker, clock):

        async def gate(canvas: int) -> None:
            await held.wait()

        worker.script.gate = gate

        async def one() -> Any:
            return await collect(client.run(ask(max_tokens=SHORT)))

        calls = [asyncio.create_task(one()) for _ in range(64)]
        while sum(call.done() for call in calls) < 54:
            await asyncio.wait([c for c in calls if not c.done()], return_when="FIRST_COMPLETED")
        refused = [call.exception() for call in calls if call.done()]
        assert all(isinstance(error, BudgetExceeded) for error in refused)
        assert {getattr(error, "code", "") for error in refused} == {"insufficient_quota"}
        assert client.store.budgets.used("", now(clock)).held == 10 * ceiling
        held.set()
        done = await asyncio.gather(*calls, return_exceptions=True)
        bought = [events for events in done if isinstance(events, list)]
        assert len(bought) == 10
        assert len(worker.submissions) == 10
        used = client.store.budgets.used("", now(clock))
        assert (used.day, used.held) == (sum(last(events).cost for events in bought), 0)
        assert used.day == worker.paid()


async def test_the_day_ends_and_the_budget_begins_again(tmp_path: Path) -> None:
    async with market(tmp_path, spend_per_day="0.005", spend_per_month="0.5") as (client, _, clock):
        with pytest.raises(BudgetExceeded, match="spend_per_day"):
            for _ in range(100):
                await collect(client.run(ask(max_tokens=SHORT)))
        spent = client.store.budgets.used("", now(clock)).day
        assert 0 < spent <= 5_000
        clock.advance(86_400)
        await collect(client.run(ask(max_tokens=SHORT)))
        used = client.store.budgets.used("", now(clock))
        assert 0 < used.day < used.month
        balance = await client.balance()
        assert balance.spent_today.units == used.day
        assert balance.spent_this_month.units == used.month


async def test_without_max_tokens_a_request_takes_what_the_budget_has_left(tmp_path: Path) -> None:
    async with market(tmp_path, spend_per_day="0.01") as (client, worker, _):
        await collect(client.run(ask()))
        job = worker.submissions[0].job
        assert job.parameters.max_tokens < 2048
        assert job.max_amount <= 10_000
        with pytest.raises(BudgetExceeded):
            await collect(client.run(ask(max_tokens=2048)))


async def test_without_max_tokens_a_request_takes_what_the_free_deposit_can_pay(
    tmp_path: Path,
) -> None:
    async with market(tmp_path, money=12_000) as (client, worker, _):
        with pytest.raises(InsufficientFunds):
            await collect(client.run(ask(max_tokens=2048)))
        await collect(client.run(ask()))
        job = worker.submissions[0].job
        assert SHORT <= job.parameters.max_tokens < 2048
        assert job.max_amount <= 12_000


async def test_parts_are_reserved_together_or_not_at_all(tmp_path: Path) -> None:
    request = ask(max_tokens=SHORT)
    async with market(tmp_path, spend_per_day="0.02") as (client, worker, clock):
        ceiling = await ceiling_of(client, request)
        fits = 20_000 // ceiling
        with pytest.raises(BudgetExceeded):
            async with client.reserve_many([request] * (fits + 1)):
                raise AssertionError("nothing may start")
        assert client.store.budgets.used("", now(clock)).held == 0
        async with client.reserve_many([request] * fits) as parts:
            assert [part.number for part in parts] == list(range(fits))
            assert client.store.budgets.used("", now(clock)).held == fits * ceiling
            with pytest.raises(BudgetExceeded):
                await collect(client.run(request))
            events = await collect(client.run(request, parts[0]))
        used = client.store.budgets.used("", now(clock))
        assert (used.day, used.held) == (last(events).cost, 0)
        assert len(worker.submissions) == 1


async def test_a_declined_job_gives_its_part_of_the_budget_back(tmp_path: Path) -> None:
    async with market(tmp_path, spend_per_day="1.0") as (client, worker, clock):
        worker.script.refusals = [Refusal(Reason.PROMPT_REFUSED, "no")]
        with pytest.raises(Refusal):
            await collect(client.run(ask()))
        assert client.store.budgets.used("", now(clock)).day == 0


async def test_a_key_has_a_budget_and_a_price_ceiling_of_its_own(tmp_path: Path) -> None:
    async with market(tmp_path) as (client, worker, clock):
        ceiling = await ceiling_of(client, ask(max_tokens=SHORT))
        limits = Limits(per_day=Amount(2 * ceiling), max_price=Amount(ceiling))
        client.store.api_keys.add(
            "alice", "pw-alice", limits, now=now(clock), expires_at=Timestamp(0)
        )
        alice = Part("alice")
        with pytest.raises(RequestRefused) as caught:
            await collect(client.run(ask(max_tokens=2048), alice))
        assert caught.value.code == "over_price_limit"
        await collect(client.run(ask(max_tokens=SHORT), alice))
        await collect(client.run(ask(max_tokens=2048)))
        first, second = client.store.jobs()
        used = client.store.budgets.used("alice", now(clock))
        paid = sum(r.receipt.amount for r in client.store.receipts(job=first.id))
        assert (used.day, used.held) == (paid, 0)
        assert client.store.budgets.used("", now(clock)).day == worker.paid() > paid
        assert second.status is JobStatus.COMPLETE


async def test_a_job_that_was_interrupted_keeps_its_part_until_it_is_over(tmp_path: Path) -> None:
    async with market(tmp_path, resume_attempts=0) as (client, worker, clock):
        worker.script.drop_after = [2]
        with pytest.raises(Exception, match="Resume it"):
            await collect(client.run(ask(max_tokens=SHORT)))
        (job,) = client.store.jobs()
        used = client.store.budgets.used("", now(clock))
        assert used.day == job.submission.job.max_amount
        assert used.held < used.day
        await collect(client.resume(job.id))
        used = client.store.budgets.used("", now(clock))
        assert (used.day, used.held) == (worker.paid(), 0)


async def test_a_fee_and_a_ceiling_together_stay_within_a_budget(tmp_path: Path) -> None:
    fee = 40_000
    async with market(tmp_path, max_fee="1.0") as (client, worker, clock):
        worker.terms = {"open_fee": Amount(fee)}
        for name, room in (("short", fee), ("enough", fee + 20_000)):
            client.store.api_keys.add(
                name,
                f"pw-{name}",
                Limits(per_day=Amount(room)),
                now=now(clock),
                expires_at=Timestamp(0),
            )
        with pytest.raises(BudgetExceeded, match="short"):
            await collect(client.run(ask(max_tokens=SHORT), Part("short")))
        assert not worker.submissions
        assert client.store.budgets.used("short", now(clock)).day == 0
        await collect(client.run(ask(), Part("enough")))  # as many tokens as the rest can pay
        used = client.store.budgets.used("enough", now(clock))
        assert (used.day, used.held) == (fee + worker.paid(), 0)
        assert worker.submissions[0].job.max_amount <= 20_000


async def test_several_choices_share_one_opening_and_its_fee(tmp_path: Path) -> None:
    fee, request = 40_000, ask(max_tokens=SHORT)
    async with market(tmp_path, max_fee="1.0") as (client, worker, clock):
        worker.terms = {"open_fee": Amount(fee)}
        ceilings = 2 * await ceiling_of(client, request)
        for name, room in (("short", ceilings + fee - 1), ("enough", ceilings + fee)):
            client.store.api_keys.add(
                name,
                f"pw-{name}",
                Limits(per_day=Amount(room)),
                now=now(clock),
                expires_at=Timestamp(0),
            )

        async def both(name: str) -> None:
            whose = [Part(name, number=number) for number in range(2)]
            async with client.reserve_many([request] * 2, whose) as parts:
                await asyncio.gather(*(collect(client.run(request, part)) for part in parts))

        with pytest.raises(BudgetExceeded, match="short"):
            await both("short")
        assert not worker.submissions  # not one of the two began
        assert client.store.budgets.used("short", now(clock)).held == 0
        await both("enough")
        assert len({submission.job.channel for submission in worker.submissions}) == 1
        used = client.store.budgets.used("enough", now(clock))
        assert (used.day, used.held) == (fee + worker.paid(), 0)
