"""Spending limits: what a part of a request may cost, asked for and held before it is signed.

The limits of the client as a whole come from its settings, those of an API key from the journal.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from piecework.base.amounts import Token
from piecework.base.clock import Clock
from piecework.client.errors import BudgetExceeded
from piecework.client.journal.budgets import NO_FEE, WHOLE, Budgets, Shortage, Used
from piecework.client.journal.records import Limits, Part
from piecework.client.limits import AUDIT_TIMEOUT_S
from piecework_protocol.types import Amount, Timestamp


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the budgets allow one job now, in base units. None: any price.

    Attributes:
        max_price: What no job of this API key may cost more than.
        left: What the budgets have left for it.
    """

    max_price: Amount | None = None
    left: Amount | None = None


class Spending:
    """Holds parts of the budgets for one client's jobs."""

    def __init__(
        self, budgets: Budgets, whole: Limits, token: Token, clock: Clock, *, lifetime_s: int
    ) -> None:
        """`whole` holds for all jobs together. A hold without a job ends after `lifetime_s`."""
        self._budgets, self._whole, self._token = budgets, whole, token
        self._clock, self._lifetime_s = clock, lifetime_s
        self._kept: set[int] = set()
        """Holds for audits that wait or run. Their request may be over."""

    async def allowance(self, part: Part) -> Allowance:
        """Return what a part may cost now.

        Raises:
            StoreError: its API key does not exist.
        """
        if self.is_unlimited(part):
            return Allowance()
        now = self._now()

        def read() -> Allowance:
            left = self._budgets.left(part, self._whole, now)
            return Allowance(self._budgets.limits(part.budget).max_price, left)

        return await self._budgets.run(read)

    async def reserve(
        self,
        parts: Sequence[Part],
        ceilings: Sequence[Amount],
        fee: Amount = NO_FEE,
        audits: Sequence[Sequence[Amount]] = (),
    ) -> tuple[Part, ...]:
        """Hold the ceilings of all parts in one transaction. The parts have one budget.

        There must be room for `fee` too, which the first of their jobs signs with an opening.
        `audits` has for each part the ceilings of the reports that may be bought about it.

        Raises:
            BudgetExceeded: a budget is too small for all of them. Nothing is held.
            StoreError: the API key does not exist.
        """
        reports = audits or [()] * len(parts)
        every = [*ceilings, *(ceiling for some in reports for ceiling in some)]
        now, until = self._now(), self._until(audited=len(every) > len(ceilings))
        held = await self._hold(
            lambda: self._budgets.reserve(parts[0].budget, every, self._whole, now, until, fee=fee)
        )
        jobs, rest = held[: len(parts)], iter(held[len(parts) :])
        return tuple(
            replace(part, hold=hold, audits=tuple(itertools.islice(rest, len(some))))
            for part, hold, some in zip(parts, jobs, reports, strict=True)
        )

    async def cover(self, part: Part, ceiling: Amount, audits: Sequence[Amount] = ()) -> Part:
        """See that at least a ceiling is held for a part, and for each report that may be bought
        about it. Return the part with its holds.

        Where nothing is limited, the job itself holds its ceiling when it is recorded.

        Raises:
            BudgetExceeded: a budget is too small. What was held stays.
            StoreError: the API key does not exist.
        """
        if self.is_unlimited(part):
            return part
        now, until, every = self._now(), self._until(audited=bool(audits)), (ceiling, *audits)
        hold, *reports = await self._hold(
            lambda: self._budgets.cover(part, every, self._whole, now, until)
        )
        # The worker before may have had auditors where this one has none. Theirs end with the part.
        return replace(part, hold=hold, audits=(*reports, *part.audits[len(reports) :]))

    def is_unlimited(self, part: Part) -> bool:
        return part.budget == WHOLE and self._whole == Limits() and part.hold is None

    def purse(self, part: Part) -> AuditPurse:
        """Keep what a part holds for audits until the purse is closed, though its job is over."""
        self._kept.update(part.audits)
        return AuditPurse(self, part)

    def end_purse(self, part: Part) -> None:
        """Give up what a part holds for audits and no report was bought with."""
        self._kept.difference_update(part.audits)
        for hold in part.audits:
            self._budgets.release(hold)

    async def _hold(self, write: Callable[[], tuple[int, ...] | Shortage]) -> tuple[int, ...]:
        """Hold. If the caller is cancelled meanwhile, nothing stays held for it."""
        writing = asyncio.ensure_future(self._budgets.run(write))
        try:
            held = await asyncio.shield(writing)
        except asyncio.CancelledError:
            writing.add_done_callback(self._give_back)
            raise
        if isinstance(held, Shortage):
            raise exceeded(held, self._token)
        return held

    def _give_back(self, written: asyncio.Future[tuple[int, ...] | Shortage]) -> None:
        if written.cancelled() or written.exception() is not None:
            return
        held = written.result()
        for hold in () if isinstance(held, Shortage) else held:
            self._budgets.release(hold)

    async def used(self) -> Used:
        """Return what the client as a whole has used of this day and month."""
        return await self._budgets.run(self._budgets.used, WHOLE, self._now())

    def release(self, part: Part) -> None:
        """Give up what no job has taken over.

        In the calling thread: a cancelled task may not wait, and nothing is synced.
        """
        for hold in (part.hold, *part.audits):
            if hold is not None and hold not in self._kept:
                self._budgets.release(hold)

    def _now(self) -> Timestamp:
        return Timestamp(int(self._clock.wall()))

    def _until(self, *, audited: bool = False) -> Timestamp:
        audit_s = int(AUDIT_TIMEOUT_S) if audited else 0
        return Timestamp(self._now() + self._lifetime_s + audit_s)


class AuditPurse:
    """What a request holds for audits of its job. Close it when the audit is over."""

    def __init__(self, spending: Spending, part: Part) -> None:
        self._spending, self._part, self._left = spending, part, list(part.audits)

    def next_part(self) -> Part:
        """Return the place of the next report that is bought.

        Without a hold left it is reserved when it is bought, out of the same budget.
        """
        return Part(self._part.budget, self._left.pop(0) if self._left else None)

    def close(self) -> None:
        """Give up what no report was bought with."""
        self._left.clear()
        self._spending.end_purse(self._part)


def exceeded(short: Shortage, token: Token) -> BudgetExceeded:
    """Say which limit is too small, by how much."""
    whose = f"spend_per_{short.period}"
    if short.budget != WHOLE:
        whose = f"the {short.period}'s budget of API key {short.budget!r}"
    limit, left = token.amount(short.limit), token.amount(short.left)
    return BudgetExceeded(f"{whose} ({limit})", token.amount(short.needed), left)
