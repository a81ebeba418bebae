"""What payers owe this worker, and whether more work may begin for them (clause 3.7)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
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


class HeldChannels(Protocol):
    """The channels that the worker holds in memory."""

    def __iter__(self) -> Iterator[LiveChannel]: ...

    def of_payer(self, payer: Address) -> Iterable[LiveChannel]:
        """Return those of one payer."""
        ...


class CreditDesk:
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
        mine: defaultdict[Address, list[LiveChannel]] = defaultdict(list)
        for live in self._channels:
            mine[live.stored.channel.payer].append(live)
        return {payer: self._account(channels) for payer, channels in mine.items()}

    def _account(self, mine: Collection[LiveChannel]) -> PayerCredit:
        marked = any(live.stored.channel.payer in self._written_off for live in mine)
        return payer_credit(self.terms, (live.credit for live in mine), written_off=marked)

    def everybody(self) -> list[PayerCredit]:
        """Return where every payer stands, without its name."""
        return list(self.accounts().values())

    @property
    def bound(self) -> Amount:
        """The most that the worker can lose, in base units."""
        return bound(self.terms, self.everybody())

    @property
    def owed(self) -> Amount:
        """What all payers owe, in base units."""
        return Amount(sum(payer.owed for payer in self.everybody()))

    @property
    def strangers(self) -> Amount:
        """What payers without a mined deposit owe, in base units."""
        return strangers_owe(self.everybody())

    @property
    def left(self) -> Amount:
        """What payers owe whose deposit is gone or never came, in base units."""
        fallen = (p for p in self.everybody() if p.standing is PayerStanding.FALLEN)
        return Amount(sum(p.owed for p in fallen))

    @property
    def at_limit(self) -> int:
        """How many payers wait for credit, or have little left. Fallen ones do not count."""
        waiting = {c.stored.channel.payer for c in self._channels if c.waits_for_credit}
        return sum(
            account.standing is not PayerStanding.FALLEN
            and (account.room * LITTLE < account.unpromised_limit or payer in waiting)
            for payer, account in self.accounts().items()
        )

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
