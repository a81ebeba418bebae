"""Spending limits: what a part of a request may cost, asked for and held before it is signed.

The limits of the client as a whole come from its settings, those of an API key from the journal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from piecework.base.amounts import Token
from piecework.base.clock import Clock
from piecework.client.errors import BudgetExceeded
from piecework.client.journal.budgets import WHOLE, Budgets, Shortage
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
        limits = await asyncio.to_thread(self._budgets.limits, part.budget)
        left = await asyncio.to_thread(self._budgets.left, part, self._whole, self._now())
        return Allowance(limits.max_price, left)

    async def reserve(self, parts: Sequence[Part], ceilings: Sequence[Amount]) -> tuple[Part, ...]:
        """Hold the ceilings of all parts in one transaction. The parts have one budget.

        Raises:
            BudgetExceeded: a budget is too small for all of them. Nothing is held.
            StoreError: the API key does not exist.
        """
        held = await asyncio.to_thread(
            self._budgets.reserve,
            parts[0].budget,
            ceilings,
            self._whole,
            self._now(),
            self._until(),
        )
        if isinstance(held, Shortage):
            raise self._exceeded(held)
        return tuple(replace(part, hold=hold) for part, hold in zip(parts, held, strict=True))

    async def cover(self, part: Part, ceiling: Amount) -> Part:
        """See that at least a ceiling is held for a part. Return the part with its hold.

        Raises:
            BudgetExceeded: a budget is too small. What was held stays.
            StoreError: the API key does not exist.
        """
        held = await asyncio.to_thread(
            self._budgets.cover, part, ceiling, self._whole, self._now(), self._until()
        )
        if isinstance(held, Shortage):
            raise self._exceeded(held)
        return replace(part, hold=held)

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

    def _exceeded(self, short: Shortage) -> BudgetExceeded:
        whose = f"spend_per_{short.period}"
        if short.budget != WHOLE:
            whose = f"the {short.period}'s budget of API key {short.budget!r}"
        limit, left = self._token.amount(short.limit), self._token.amount(short.left)
        return BudgetExceeded(f"{whose} ({limit})", self._token.amount(short.needed), left)
