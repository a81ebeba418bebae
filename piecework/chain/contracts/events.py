"""The escrow's events as typed values. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from piecework.chain.contracts.abi import interface
from piecework.chain.errors import BadAnswer
from piecework_protocol.errors import invariant
from piecework_protocol.objects import Channel
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    ChannelId,
    Digest,
    Seconds,
    Timestamp,
    Uint64,
    to_hex,
)


class SkipReason(enum.IntEnum):
    """Why a claim pays nothing; the numbers are those of the Solidity enum."""

    NONE = 0
    UNKNOWN_CHANNEL = 1
    CLOSED = 2
    NOTHING_NEW = 3
    DEPOSIT_EXHAUSTED = 4
    BAD_SIGNATURE = 5


@dataclass(frozen=True, slots=True)
class Log:
    """One log entry as the node returns it."""

    address: Address
    topics: tuple[Bytes32, ...]
    data: bytes
    block: int
    index: int
    transaction: Bytes32


@dataclass(frozen=True, slots=True)
class Settled:
    """A claim was paid. `cumulative` is what the voucher says, which may be above the deposit."""

    log: Log
    channel: ChannelId
    receiver: Address
    amount: Amount
    cumulative: Amount
    count: Uint64
    receipts_root: Digest


@dataclass(frozen=True, slots=True)
class ClaimSkipped:
    """A claim of a batch paid nothing."""

    log: Log
    channel: ChannelId
    reason: SkipReason


@dataclass(frozen=True, slots=True)
class WithdrawalRequested:
    """The payer wants `amount` of a channel back, from `withdrawable_at` on. It may be
    `EVERYTHING`."""

    log: Log
    channel: ChannelId
    amount: Amount
    nonce: Uint64
    withdrawable_at: Timestamp


@dataclass(frozen=True, slots=True)
class WithdrawalCancelled:
    """The payer called request number `nonce` off."""

    log: Log
    channel: ChannelId
    nonce: Uint64


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A partial withdrawal went to the payer's pooled balance."""

    log: Log
    channel: ChannelId
    amount: Amount


@dataclass(frozen=True, slots=True)
class ChannelOpened:
    """A channel exists; carries its terms, for whoever lost its records."""

    log: Log
    channel: ChannelId
    terms: Channel


@dataclass(frozen=True, slots=True)
class ChannelFunded:
    """`funded` was now put into the channel in total; the receiver got `fee` beside `added`."""

    log: Log
    channel: ChannelId
    funded: Amount
    added: Amount
    fee: Amount


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """Final. `refund` went back to the payer's pooled balance. The receiver got `settled` by
    vouchers in all, and `fee` for the closing."""

    log: Log
    channel: ChannelId
    payer: Address
    settled: Amount
    refund: Amount
    fee: Amount


@dataclass(frozen=True, slots=True)
class PayoutCredited:
    """Money waits for its receiver: a fee, or a transfer that the token refused. The channel is
    None when it comes from a batch."""

    log: Log
    token: Address
    receiver: Address
    amount: Amount
    channel: ChannelId | None


@dataclass(frozen=True, slots=True)
class PayoutPushed:
    """Waiting money was sent to its receiver."""

    log: Log
    token: Address
    receiver: Address
    amount: Amount


@dataclass(frozen=True, slots=True)
class Deposited:
    """Tokens of `source` came into a pooled balance."""

    log: Log
    token: Address
    beneficiary: Address
    source: Address
    amount: Amount


@dataclass(frozen=True, slots=True)
class BalanceWithdrawn:
    """Pooled money went out: `amount` to `to`, and `fee` to who submitted the owner's order."""

    log: Log
    token: Address
    owner: Address
    to: Address
    amount: Amount
    fee: Amount


EscrowEvent: TypeAlias = (
    Settled
    | ClaimSkipped
    | WithdrawalRequested
    | WithdrawalCancelled
    | Withdrawn
    | ChannelOpened
    | ChannelFunded
    | ChannelClosed
    | PayoutCredited
    | PayoutPushed
    | Deposited
    | BalanceWithdrawn
)


def topic(name: str) -> Bytes32:
    """The first topic of one of the escrow's events."""
    return interface("Escrow").events[name].topic


def event_topics(names: Sequence[str], indexed: Mapping[str, bytes]) -> list[Any]:
    """The topics of a query for the escrow's events of these names, whatever the number.

    `indexed` gives the value of indexed arguments, which must stand in the same place in each.

    Raises:
        InvariantBroken: an argument is not indexed, or stands elsewhere in another event.
    """
    events = [interface("Escrow").events[name] for name in names]
    topics: list[Any] = [[to_hex(event.topic) for event in events], None, None, None]
    for argument, value in indexed.items():
        places = {
            next((i for i, (name, _) in enumerate(e.indexed, 1) if name == argument), 0)
            for e in events
        }
        invariant(len(places) == 1 and 0 not in places, f"{argument} is not one topic of {names}")
        topics[places.pop()] = to_hex(Bytes32(value.rjust(32, b"\0")))
    while topics[-1] is None:
        topics.pop()
    return topics


def decode_events(escrow: Address, logs: Iterable[Log]) -> tuple[EscrowEvent, ...]:
    """The escrow's events among `logs`, in order; those of others are left out."""
    known = {topic(name): name for name in _EVENTS}
    return tuple(
        _decode(known[log.topics[0]], log)
        for log in logs
        if log.address == escrow and log.topics and log.topics[0] in known
    )


def _settled(log: Log, v: dict[str, Any]) -> Settled:
    amount, cumulative = Amount(v["amount"]), Amount(v["cumulative"])
    root = Digest(v["receiptsRoot"])
    return Settled(log, _id(v), v["receiver"], amount, cumulative, Uint64(v["count"]), root)


def _id(values: dict[str, Any]) -> ChannelId:
    return ChannelId(values["channelId"])


def _money(values: dict[str, Any], *names: str) -> tuple[Amount, ...]:
    return tuple(Amount(values[name]) for name in names)


def _credited(log: Log, v: dict[str, Any]) -> PayoutCredited:
    channel = ChannelId(v["channelId"]) if any(v["channelId"]) else None
    return PayoutCredited(log, v["token"], v["receiver"], Amount(v["amount"]), channel)


_FUNDED = ("funded", "added", "fee")
_CLOSED = ("settled", "refund", "fee")
_EVENTS: Mapping[str, Callable[[Log, dict[str, Any]], EscrowEvent]] = {
    "Settled": _settled,
    "ClaimSkipped": lambda log, v: ClaimSkipped(log, _id(v), skip_reason(v["reason"])),
    "WithdrawalRequested": lambda log, v: WithdrawalRequested(
        log, _id(v), Amount(v["amount"]), Uint64(v["nonce"]), Timestamp(v["withdrawableAt"])
    ),
    "WithdrawalCancelled": lambda log, v: WithdrawalCancelled(log, _id(v), Uint64(v["nonce"])),
    "Withdrawn": lambda log, v: Withdrawn(log, _id(v), Amount(v["amount"])),
    "ChannelOpened": lambda log, v: ChannelOpened(log, _id(v), _terms(v["channel"])),
    "ChannelFunded": lambda log, v: ChannelFunded(log, _id(v), *_money(v, *_FUNDED)),
    "ChannelClosed": lambda log, v: ChannelClosed(log, _id(v), v["payer"], *_money(v, *_CLOSED)),
    "PayoutCredited": _credited,
    "PayoutPushed": lambda log, v: PayoutPushed(
        log, v["token"], v["receiver"], Amount(v["amount"])
    ),
    "Deposited": lambda log, v: Deposited(
        log, v["token"], v["beneficiary"], v["from"], Amount(v["amount"])
    ),
    "BalanceWithdrawn": lambda log, v: BalanceWithdrawn(
        log, v["token"], v["owner"], v["to"], *_money(v, "amount", "fee")
    ),
}


def _decode(name: str, log: Log) -> EscrowEvent:
    return _EVENTS[name](log, interface("Escrow").decode_event(name, log.topics, log.data))


def skip_reason(number: int) -> SkipReason:
    """`BadAnswer` for a number that the contract does not have."""
    try:
        return SkipReason(number)
    except ValueError:
        raise BadAnswer(f"the escrow has no skip reason {number}") from None


def _terms(values: tuple[Any, ...]) -> Channel:
    payer, authorizer, receiver, operator, token, delay, salt = values
    return Channel(payer, authorizer, receiver, operator, token, Seconds(delay), Bytes32(salt))
