"""Spending limits: what a part of a request may cost, asked for and held before it is signed.

The limits of the client as a whole come from its settings, those of an API key from the journal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from piecework.base.amounts import Token
from piecework.base.clock import Clock
from piecework.client.errors import BudgetExceeded
from piecework.client.journal.budgets import NO_FEE, WHOLE, Budgets, Shortage, Used
from piecework.client.journal.records import Limits, Part
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

    async def allowance(self, part: Part) -> Allowance:
        """Return what a part may cost now.

        Raises:
            StoreError: its API key does not exist.
        """
        if self._is_unlimited(part):
            return Allowance()
        now = self._now()

        def read() -> Allowance:
            left = self._budgets.left(part, self._whole, now)
            return Allowance(self._budgets.limits(part.budget).max_price, left)

        return await self._budgets.run(read)

    async def reserve(
        self, parts: Sequence[Part], ceilings: Sequence[Amount], fee: Amount = NO_FEE
    ) -> tuple[Part, ...]:
        """Hold the ceilings of all parts in one transaction. The parts have one budget.

        There must be room for `fee` too, which the first of their jobs signs with an opening.

        Raises:
            BudgetExceeded: a budget is too small for all of them. Nothing is held.
            StoreError: the API key does not exist.
        """
        now, until = self._now(), self._until()
        held = await self._hold(
            lambda: self._budgets.reserve(
                parts[0].budget, ceilings, self._whole, now, until, fee=fee
            )
        )
        return tuple(replace(part, hold=hold) for part, hold in zip(parts, held, strict=True))

    async def cover(self, part: Part, ceiling: Amount) -> Part:
        """See that at least a ceiling is held for a part. Return the part with its hold.

        Where nothing is limited, the job itself holds its ceiling when it is recorded.

        Raises:
            BudgetExceeded: a budget is too small. What was held stays.
            StoreError: the API key does not exist.
        """
        if self._is_unlimited(part):
            return part
        now, until = self._now(), self._until()

        def cover() -> tuple[int, ...] | Shortage:
            held = self._budgets.cover(part, ceiling, self._whole, now, until)
            return held if isinstance(held, Shortage) else (held,)

        (hold,) = await self._hold(cover)
        return replace(part, hold=hold)

    def _is_unlimited(self, part: Part) -> bool:
        return part.budget == WHOLE and self._whole == Limits() and part.hold is None

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
        if part.hold is not None:
            self._budgets.release(part.hold)

    def _now(self) -> Timestamp:
        return Timestamp(int(self._clock.wall()))

    def _until(self) -> Timestamp:
        return Timestamp(self._now() + self._lifetime_s)


def exceeded(short: Shortage, token: Token) -> BudgetExceeded:
    """Say which limit is too small, by how much."""
    whose = f"spend_per_{short.period}"
    if short.budget != WHOLE:
        whose = f"the {short.period}'s budget of API key {short.budget!r}"
    limit, left = token.amount(short.limit), token.amount(short.left)
    return BudgetExceeded(f"{whose} ({limit})", token.amount(short.needed), left)
