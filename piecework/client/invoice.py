"""A bill from the chain's events, held against the journal's receipts. Pure.

Every line is one event. Its check says whether this client's own records agree with it to the base
unit. The totals are held against what the escrow says itself.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from piecework.client.history import HistoryEvent, Place, terms_of
from piecework.client.journal.records import ReceiptRow
from piecework_protocol.types import Address, ChannelId, Timestamp

OK: Final = "ok"


class LineKind(enum.Enum):
    """What an event did with the payer's money."""

    DEPOSIT = "deposit"
    WITHDRAWAL = "withdrawal"
    FUNDING = "funding"
    OPENING = "opening"
    """Funding out of the payer's own account."""
    PAYMENT = "payment"
    TAKEN_BACK = "taken back"
    CLOSING = "closing"


_KINDS: Final = {
    "Deposited": LineKind.DEPOSIT,
    "BalanceWithdrawn": LineKind.WITHDRAWAL,
    "ChannelFunded": LineKind.FUNDING,
    "Settled": LineKind.PAYMENT,
    "Withdrawn": LineKind.TAKEN_BACK,
    "ChannelClosed": LineKind.CLOSING,
}


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """One event. All amounts are base units.

    Attributes:
        event: What the escrow logged.
        kind: What it did.
        worker: The operator of the channel, if it is about one.
        amount: What moved. A deposit and what was taken back come into the pool.
        fee: What a worker or a relay got beside it.
        pool: The pooled balance after it.
        in_channels: What channels hold after it.
        receipts: For a payment, how many receipts the voucher covers in all.
        check: "ok", or how this client's records differ.
    """

    event: HistoryEvent
    kind: LineKind
    worker: Address | None
    amount: int
    fee: int
    pool: int
    in_channels: int
    receipts: int | None
    check: str


@dataclass(frozen=True, slots=True)
class InvoiceTotals:
    """Sums over the lines of an invoice, in base units."""

    deposited: int = 0
    withdrawn: int = 0
    paid: int = 0
    fees: int = 0


@dataclass(frozen=True, slots=True)
class Invoice:
    """The lines of a time, and what was there before and after it.

    Attributes:
        lines: In the order of the chain.
        before: Pooled balance and what channels held before the first line.
        after: The same after the last line.
        totals: Sums over the lines.
        troubles: Whatever does not agree. Empty if the bill reconciles to the base unit.
    """

    lines: tuple[InvoiceLine, ...]
    before: tuple[int, int]
    after: tuple[int, int]
    totals: InvoiceTotals
    troubles: tuple[str, ...]


@dataclass(slots=True)
class BilledChannel:
    """One channel as the events so far tell it."""

    worker: Address
    held: int = 0
    settled: int = 0


@dataclass(slots=True)
class Books:
    """The running balances of all events so far."""

    receipts: Mapping[ChannelId, Sequence[ReceiptRow]]
    token: Address
    pool: int = 0
    channels: dict[ChannelId, BilledChannel] = field(default_factory=dict)
    one_step: frozenset[Place] = frozenset()
    """The fundings that took the payer's own tokens, and not the pool."""

    @property
    def in_channels(self) -> int:
        return sum(channel.held for channel in self.channels.values())

    def take(self, event: HistoryEvent) -> InvoiceLine | None:
        """Book one event. None if it moves none of this token."""
        if event.name == "ChannelOpened":
            terms = terms_of(event)
            if terms.token == self.token and event.channel is not None:
                self.channels[event.channel] = BilledChannel(terms.operator)
            return None
        key, values = event.channel, event.values
        known = self.channels.get(key) if key is not None else None
        if (known is None) if key is not None else (values["token"] != self.token):
            return None
        fee = int(values.get("fee", 0))
        amount, check = self._move(event, known, fee)
        return InvoiceLine(
            event=event,
            kind=LineKind.OPENING if event.place in self.one_step else _KINDS[event.name],
            worker=known.worker if known else None,
            amount=amount,
            fee=fee,
            pool=self.pool,
            in_channels=self.in_channels,
            receipts=int(values["count"]) if event.name == "Settled" else None,
            check=check,
        )

    def _move(
        self, event: HistoryEvent, channel: BilledChannel | None, fee: int
    ) -> tuple[int, str]:
        values, check = event.values, OK
        if channel is None:
            amount = int(values["amount"])
            self.pool += amount if event.name == "Deposited" else -amount - fee
        elif event.name == "ChannelFunded":
            amount = int(values["added"])
            if event.place not in self.one_step:
                self.pool -= amount + fee
            channel.held += amount
        elif event.name == "Settled":
            amount = int(values["amount"])
            channel.held -= amount
            channel.settled += amount
            check = self._check_payment(event, channel)
        elif event.name == "Withdrawn":
            amount = int(values["amount"])
            channel.held -= amount
            self.pool += amount
        else:
            amount = int(values["refund"])
            channel.held -= amount + fee
            self.pool += amount
            if channel.settled != int(values["settled"]):
                check = f"the events before it sum to {channel.settled}"
            elif channel.held:
                check = f"{channel.held} units of the channel went nowhere"
        if self.pool < 0 or (channel is not None and channel.held < 0):
            check = "more went out than came in: a part of the money came another way"
        return amount, check

    def _check_payment(self, event: HistoryEvent, channel: BilledChannel) -> str:
        """Hold a settled voucher against the receipts that it pays for."""
        cumulative, count = int(event.values["cumulative"]), int(event.values["count"])
        key = event.channel
        known = self.receipts.get(key, ()) if key is not None else ()
        rows = [row for row in known if row.leaf_index < count]
        if channel.settled > cumulative:
            return f"the voucher says {cumulative}, the escrow has paid {channel.settled}"
        if [row.leaf_index for row in rows] != list(range(count)):
            return f"this journal lacks {count - len(rows)} of {count} receipts"
        owed = sum(row.receipt.amount for row in rows)
        if owed != cumulative:
            return f"the receipts sum to {owed}, the voucher to {cumulative}"
        return OK


def make_invoice(
    events: Iterable[HistoryEvent],
    receipts: Mapping[ChannelId, Sequence[ReceiptRow]],
    token: Address,
    since: Timestamp,
    until: Timestamp,
    *,
    one_step: frozenset[Place] = frozenset(),
) -> tuple[Invoice, Books]:
    """Make the bill of a time.

    Args:
        events: All of the payer's events from the first on, in the order of the chain.
        receipts: The journal's receipts by channel, in leaf order.
        token: What the client pays with.
        since: The first second of the time.
        until: The first second after it.
        one_step: The fundings among them that took the payer's own tokens.

    Returns:
        The bill, and the books after all events, to be held against the escrow.
    """
    books = Books(receipts, token, one_step=one_step)
    lines, before, after = [], (0, 0), (0, 0)
    for event in events:
        line = books.take(event)
        now = (books.pool, books.in_channels)
        if event.time < since:
            before = after = now
        elif event.time < until:
            after = now
            if line is not None:
                lines.append(line)
    troubles = [f"block {x.event.log.block}: {x.check}" for x in lines if x.check != OK]
    return Invoice(tuple(lines), before, after, _sum(lines), tuple(troubles)), books


def _sum(lines: Sequence[InvoiceLine]) -> InvoiceTotals:
    sums = dict.fromkeys(LineKind, 0)
    for line in lines:
        sums[line.kind] += line.amount
    # What an opening brought came from outside of the escrow, with its fee.
    opened = sums[LineKind.OPENING] + sum(x.fee for x in lines if x.kind is LineKind.OPENING)
    return InvoiceTotals(
        deposited=sums[LineKind.DEPOSIT] + opened,
        withdrawn=sums[LineKind.WITHDRAWAL],
        paid=sums[LineKind.PAYMENT],
        fees=sum(line.fee for line in lines),
    )
