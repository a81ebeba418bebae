"""What payers owe this worker, and whether more work may begin for them (clause 3.7)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from piecework_node.runtime.live import LiveChannel, LiveJob
from piecework_protocol.credit import (
    CreditFault,
    CreditTerms,
    PayerCredit,
    PayerStanding,
    bound,
    payer_credit,
    start_fault,
    strangers_owe,
)
from piecework_protocol.types import Address, Amount

BLOCK_S: Final = 12.0
"""After which a payer's standing may have changed."""
LITTLE: Final = 8
"""A payer that has less than this part of its limit left is at it."""


@dataclass(frozen=True, slots=True)
class CreditTotals:
    """What all payers of a worker owe, in base units.

    owed: all of it. strangers: what payers without a mined deposit owe. left: what payers owe whose
    deposit is gone or never came. at_limit: how many payers wait for credit, or have little left;
    fallen ones do not count. bound: the most that the worker can lose.
    """

    owed: Amount
    strangers: Amount
    left: Amount
    at_limit: int
    bound: Amount


class HeldChannels(Protocol):
    """The channels that the worker holds in memory."""

    def __iter__(self) -> Iterator[LiveChannel]: ...

    def of_payer(self, payer: Address) -> Iterable[LiveChannel]:
        """Return those of one payer."""
        ...


class CreditAccounts:
    """The accounts of all payers. It looks at the channels, and keeps only who was written off."""

    def __init__(self, channels: HeldChannels, terms: CreditTerms) -> None:
        self._channels, self.terms = channels, terms
        self._written_off: set[Address] = set()

    def write_off(self, payers: Iterable[Address]) -> None:
        """Give these payers no credit before a deposit of theirs is mined."""
        self._written_off.update(payers)

    def forgive(self, payers: Iterable[Address]) -> None:
        """Undo `write_off`. From now on these payers are like those that nobody knows."""
        self._written_off.difference_update(payers)

    @property
    def redeemed(self) -> list[Address]:
        """The payers that were written off, have a final deposit, and owe nothing on openings.

        What they still owe counts as that of any payer with a deposit.
        """
        found = []
        for payer in self._written_off:
            account = self.payer(payer)
            if account.standing is PayerStanding.FINAL and not account.on_openings:
                found.append(payer)
        return found

    def payer(self, payer: Address, opening: LiveChannel | None = None) -> PayerCredit:
        """Return where a payer stands over all of its channels.

        opening: a channel of the payer that may not be held yet.
        """
        mine = list(self._channels.of_payer(payer))
        if opening is not None and all(live.id != opening.id for live in mine):
            mine.append(opening)
        return self._account(mine)

    def accounts(self) -> dict[Address, PayerCredit]:
        """Return where every payer stands that has a channel here. One pass over the channels."""
        return {payer: self._account(mine) for payer, mine in self._by_payer().items()}

    def _by_payer(self) -> dict[Address, list[LiveChannel]]:
        mine: defaultdict[Address, list[LiveChannel]] = defaultdict(list)
        for live in self._channels:
            mine[live.stored.channel.payer].append(live)
        return mine

    def _account(self, mine: Collection[LiveChannel]) -> PayerCredit:
        marked = any(live.stored.channel.payer in self._written_off for live in mine)
        return payer_credit(self.terms, (live.credit for live in mine), written_off=marked)

    def totals(self) -> CreditTotals:
        """Add up what all payers owe. One pass over the channels, so ask once and keep it."""
        everybody: list[PayerCredit] = []
        left = at_limit = 0
        for mine in self._by_payer().values():
            account = self._account(mine)
            everybody.append(account)
            if account.standing is PayerStanding.FALLEN:
                left += account.owed
            elif account.room * LITTLE < account.unpromised_limit:
                at_limit += 1
            else:
                at_limit += any(live.waits_for_credit for live in mine)
        return CreditTotals(
            owed=Amount(sum(account.owed for account in everybody)),
            strangers=strangers_owe(everybody),
            left=Amount(left),
            at_limit=at_limit,
            bound=bound(self.terms, everybody),
        )

    @property
    def strangers(self) -> Amount:
        """What payers without a mined deposit owe, in base units.

        Each admission of one asks, so it looks at the accounts of those alone that open a channel.
        """
        opening = {c.stored.channel.payer for c in self._channels if c.is_opening}
        return strangers_owe(map(self.payer, opening))

    def pool_of(self, account: PayerCredit) -> Amount:
        """Return what the strangers owe if the payer is one of them. Others do not share it."""
        return self.strangers if account.is_stranger else Amount(0)

    def is_stranger(self, payer: Address) -> bool:
        """Whether a payer has no mined deposit here."""
        return self.payer(payer).is_stranger

    def fault(self, payer: Address, ceiling: int) -> CreditFault | None:
        """Say why work that can cost `ceiling` may not begin for a payer now, or None."""
        account = self.payer(payer)
        return start_fault(self.terms, account, self.pool_of(account), ceiling)

    def grant(self, job: LiveJob, limit: int) -> int:
        """Reserve canvases of a job up to `limit`, and return the first that may not start."""
        payer = job.channel.stored.channel.payer
        while job.granted < limit and not self.fault(payer, job.next_ceiling):
            job.granted += 1
        job.short_of_credit = job.granted < limit
        return min(limit, job.granted)
