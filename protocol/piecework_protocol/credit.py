"""How much work a worker begins before money is certain (clause 3.7). Pure.

A promise is not money. Only a voucher inside a deposit that is final covers a debt. Everything else
that a payer has caused, begun or delivered, is owed by the payer, over all of its channels, and
debts never expire. New payers cost nothing, so all those whose opening is only simulated have one
bound together. Amounts are base units.

A payer has two limits. What no voucher inside a mined deposit promises is what a payer can take
without paying, whatever the chain does. It grows with nothing but payments, so that a thief's
opening costs at least what it brings. A voucher inside a deposit that is not final is lost only if
the chain goes back behind it, which no payer decides. For that alone a deposit gives more.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from piecework_protocol.objects import Job, ModelOffer
from piecework_protocol.pricing import Usage, most_units, price
from piecework_protocol.types import Amount

DEPOSIT_SHARE = 4
"""Before its payments are final, a payer may owe this part of its deposit at most."""
PAID_SHARE = 8
"""A payer that has paid X for certain may owe X / PAID_SHARE more."""
FIRST_PROMPT_TOKENS = 4096
"""A stranger's credit is enough for a prompt of this length and a canvas, or nobody new can come.
"""


class PayerStanding(enum.IntEnum):
    """How far a deposit got."""

    FALLEN = -1
    """There was a deposit, and it is gone: the channel is closed, or the chain went back. Or none
    ever came, and what the payer owes was written off."""
    SIMULATED = 0
    """The opening would go through now. It costs nothing to take that back."""
    MINED = 1
    """Some blocks lie on the opening."""
    FINAL = 2


@dataclass(frozen=True, slots=True)
class CreditTerms:
    """What a worker lends.

    first: to a payer whose opening is only simulated. mined: to one whose deposit is mined. most:
    to anybody. strangers: to all payers without a mined deposit together.

    Raises:
        ValueError: They do not grow with the standing.
    """

    first: Amount
    mined: Amount
    most: Amount
    strangers: Amount

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.mined <= self.most:
            raise ValueError("credit grows: first, mined, most")
        if self.strangers < self.first:
            raise ValueError("all strangers together get at least what one of them gets")


@dataclass(frozen=True, slots=True)
class ChannelCredit:
    """What one channel adds to its payer's account.

    charged: by every receipt of the channel. reserved: ceilings of work that has begun and has no
    receipt. accepted: the cumulative amount of the latest voucher. deposit: what is mined, less
    what was withdrawn. backed: what vouchers can draw unless the chain goes back: the mined deposit
    less what was withdrawn or is asked back, and never less than what was settled. secured: what
    they can draw for certain: the same of the final deposit.
    """

    standing: PayerStanding
    charged: Amount
    reserved: Amount
    accepted: Amount
    deposit: Amount
    backed: Amount
    secured: Amount

    @property
    def covered(self) -> Amount:
        """Give what is paid for certain."""
        return Amount(min(self.accepted, self.secured))

    @property
    def owed(self) -> Amount:
        """Give what the payer owes on this channel."""
        return Amount(max(0, self.charged + self.reserved - self.covered))

    @property
    def unpromised(self) -> Amount:
        """Give the part of `owed` that no voucher inside a mined deposit promises."""
        return Amount(max(0, self.charged + self.reserved - min(self.accepted, self.backed)))


@dataclass(frozen=True, slots=True)
class PayerCredit:
    """Where a payer stands over all of its channels.

    unpromised: the part of `owed` that no voucher inside a mined deposit promises. It has a limit
    of its own. on_openings: the part of `owed` on channels that can still be mined for the first
    time.
    """

    standing: PayerStanding
    owed: Amount
    limit: Amount
    unpromised: Amount
    unpromised_limit: Amount
    on_openings: Amount

    @property
    def room(self) -> int:
        """Give the most that new work may cost. Below 0: the payer owes more than it may."""
        return min(self.limit - self.owed, self.unpromised_limit - self.unpromised)

    @property
    def is_stranger(self) -> bool:
        """Say whether the payer counts among those that have one bound together."""
        return self.standing is PayerStanding.SIMULATED


class CreditFault(enum.Enum):
    """Why no work is begun for a payer now."""

    PAYER = "the payer owes as much as its credit allows"
    STRANGERS = "payers without a mined deposit owe as much as all of them may"


def payer_credit(
    terms: CreditTerms, channels: Iterable[ChannelCredit], *, written_off: bool = False
) -> PayerCredit:
    """Add up a payer's channels.

    A stranger never gets to owe more than `terms.first`. A payer without a mined deposit that owes
    more has lost one, so it has fallen.

    written_off: the payer once left the strangers in debt. It has no credit before a deposit of it
    is mined, and its debt counts there as any other.
    """
    mine = tuple(channels)
    standing = max((c.standing for c in mine), default=PayerStanding.SIMULATED)
    owed = Amount(sum(c.owed for c in mine))
    if standing is PayerStanding.SIMULATED and (written_off or owed > terms.first):
        standing = PayerStanding.FALLEN
    openings = Amount(sum(c.owed for c in mine if c.standing is PayerStanding.SIMULATED))
    unpromised = Amount(sum(c.unpromised for c in mine))
    limit, unpromised_limit = _limits(terms, standing, mine)
    return PayerCredit(standing, owed, limit, unpromised, unpromised_limit, openings)


def _limits(
    terms: CreditTerms, standing: PayerStanding, mine: Sequence[ChannelCredit]
) -> tuple[Amount, Amount]:
    """Give the limits of all that a payer owes, and of what it has not promised to pay."""
    if standing is PayerStanding.FALLEN:
        return Amount(0), Amount(0)
    if standing is PayerStanding.SIMULATED:
        return terms.first, terms.first
    deposit = sum(c.deposit for c in mine if c.standing >= PayerStanding.MINED)
    owed, unpromised = min(int(terms.mined), deposit // DEPOSIT_SHARE), int(terms.first)
    if standing is PayerStanding.FINAL:
        paid = sum(c.covered for c in mine) // PAID_SHARE
        owed = min(int(terms.most), owed + paid)
        unpromised = min(int(terms.most), unpromised + paid)
    return Amount(max(int(terms.first), owed)), Amount(unpromised)


def start_fault(
    terms: CreditTerms, payer: PayerCredit, strangers_owe: int, ceiling: int
) -> CreditFault | None:
    """Say why work that can cost `ceiling` may not begin for a payer now, or None.

    `strangers_owe` is what all strangers owe together on their openings, this one included.
    """
    if ceiling > payer.room:
        return CreditFault.PAYER
    if payer.is_stranger and strangers_owe + ceiling > terms.strangers:
        return CreditFault.STRANGERS
    return None


def most_written_off(terms: CreditTerms, every_s: int, within_s: int) -> Amount:
    """Give the most that is written off within `within_s` seconds, one round each `every_s`.

    A round writes off what strangers owe then, which is never more than all of them may.
    """
    return Amount(terms.strangers * -(-within_s // every_s))


def strangers_owe(payers: Iterable[PayerCredit]) -> Amount:
    """Add up what strangers owe on openings that can still be mined.

    What a payer left behind when its mined deposit went away counts in `bound` alone. Otherwise a
    little debt that an honest payer leaves would keep every new payer out.
    """
    return Amount(sum(p.on_openings for p in payers if p.is_stranger))


def bound(terms: CreditTerms, payers: Iterable[PayerCredit]) -> Amount:
    """Give the most that the worker can lose to these payers and to all that may still come.

    "Still" is until debts are written off the next time. Each such time lets strangers owe as much
    once more, beside what was written off, which stays in the bound.

    A reorganization or a withdrawal can take away what carried a debt. So a payer counts with what
    it owes, where that is more than its limit. A reorganization can also make strangers of payers
    that owe more together than strangers may.
    """
    everybody = tuple(payers)
    known = sum(max(p.limit, p.owed) for p in everybody if not p.is_stranger)
    left = sum(p.owed - p.on_openings for p in everybody if p.is_stranger)
    return Amount(max(terms.strangers, strangers_owe(everybody)) + known + left)


def ceiling(
    model: ModelOffer, job: Job, prompt_tokens: int, done: Usage | None, canvases: int
) -> Amount:
    """Give the most that a job can cost after so many more canvases than `done`, beyond `done`.

    `done` is None before the prompt was charged: then its prefill counts too.
    """
    parameters = job.parameters
    before = done or Usage(0, 0, 0)
    after = Usage(
        max(before.prompt_tokens, prompt_tokens),
        min(most_units(job.kind, parameters), before.output_tokens + canvases * model.canvas_size),
        before.denoising_steps + canvases * parameters.max_steps,
    )
    return Amount(price(model, after) - price(model, before))


def least_first(
    prompt_price: int, output_price: int, step_price: int, *, canvas_size: int, max_steps: int
) -> Amount:
    """Give the least first credit that lets a stranger begin, rounded up.

    Prices are those of an offer: base units per million tokens, and per thousand denoising steps.
    """
    tokens = FIRST_PROMPT_TOKENS * prompt_price + canvas_size * output_price
    return Amount(-(-(tokens + 1000 * max_steps * step_price) // 1_000_000))
