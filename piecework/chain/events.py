"""The escrow's events as typed values. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from piecework.chain.abi import interface
from piecework.chain.errors import BadAnswer
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
    """The payer wants the rest of a channel back, from `withdrawable_at` on."""

    log: Log
    channel: ChannelId
    withdrawable_at: Timestamp


@dataclass(frozen=True, slots=True)
class ChannelOpened:
    """A channel exists; carries its terms, for whoever lost its records."""

    log: Log
    channel: ChannelId
    terms: Channel


@dataclass(frozen=True, slots=True)
class ChannelFunded:
    """The channel's deposit is now `deposit` in total."""

    log: Log
    channel: ChannelId
    deposit: Amount
    added: Amount


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """Final. `refund` went back to the payer's pooled balance."""

    log: Log
    channel: ChannelId
    payer: Address
    settled: Amount
    refund: Amount


@dataclass(frozen=True, slots=True)
class PayoutCredited:
    """The token refused the receiver, so that the amount waits in its pooled balance."""

    log: Log
    token: Address
    receiver: Address
    amount: Amount


EscrowEvent: TypeAlias = (
    Settled
    | ClaimSkipped
    | WithdrawalRequested
    | ChannelOpened
    | ChannelFunded
    | ChannelClosed
    | PayoutCredited
)


def topic(name: str) -> Bytes32:
    """The first topic of one of the escrow's events."""
    return interface("Escrow").events[name].topic


def decode_events(escrow: Address, logs: Iterable[Log]) -> tuple[EscrowEvent, ...]:
    """The escrow's events among `logs`, in order; its deposits and the events of others are left
    out."""
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


_EVENTS: Mapping[str, Callable[[Log, dict[str, Any]], EscrowEvent]] = {
    "Settled": _settled,
    "ClaimSkipped": lambda log, v: ClaimSkipped(log, _id(v), skip_reason(v["reason"])),
    "WithdrawalRequested": lambda log, v: WithdrawalRequested(
        log, _id(v), Timestamp(v["withdrawableAt"])
    ),
    "ChannelOpened": lambda log, v: ChannelOpened(log, _id(v), _terms(v["channel"])),
    "ChannelFunded": lambda log, v: ChannelFunded(
        log, _id(v), Amount(v["deposit"]), Amount(v["added"])
    ),
    "ChannelClosed": lambda log, v: ChannelClosed(
        log, _id(v), v["payer"], Amount(v["settled"]), Amount(v["refund"])
    ),
    "PayoutCredited": lambda log, v: PayoutCredited(
        log, v["token"], v["receiver"], Amount(v["amount"])
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
