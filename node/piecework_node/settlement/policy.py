"""Decide which vouchers to bring to the chain, and when. Pure.

Gas is weighed in base units of the token. Ordinary claims wait until together they are worth many
times their gas, or until the oldest has waited long enough. Claims on a channel whose payer
withdraws go at once, unless they are worth less than their gas. Claims that the operator asks for
always go.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from piecework.chain.limits import MAX_CLAIMS_PER_SETTLE
from piecework.chain.transactions import GasPrice
from piecework_node.journal.records import Worth
from piecework_protocol.types import Amount, ChannelId

SETTLE_GAS_BASE: Final = 40_500
SETTLE_GAS_PER_CLAIM: Final = 20_300
SETTLE_DATA_BASE_BYTES: Final = 200
SETTLE_DATA_PER_CLAIM_BYTES: Final = 512
"""Measured with distinct payers and random salts, and rounded up. A test holds them to the
contracts. Where they are wrong, a settlement is sent too early or too late."""
WEI_PER_COIN: Final = 10**18


class Urgency(enum.IntEnum):
    """Why a claim may not wait."""

    NONE = 0
    WITHDRAWING = 1
    ASKED = 2


@dataclass(frozen=True, slots=True)
class SettlementCandidate:
    """A voucher that is not claimed yet. `value` is what it adds, in base units."""

    channel: ChannelId
    value: int
    waited_s: float
    urgency: Urgency


@dataclass(frozen=True, slots=True)
class SettlePolicy:
    """What the operator set."""

    gas_multiple: float
    interval_s: float
    native_coin_price: int
    """Base units of the token for one native coin. 0 makes gas free (development chains)."""


def settle_wei(price: GasPrice, claims: int) -> int:
    """Return what a transaction with so many claims costs, in wei, its data included."""
    gas = SETTLE_GAS_BASE + SETTLE_GAS_PER_CLAIM * claims
    data = SETTLE_DATA_BASE_BYTES + SETTLE_DATA_PER_CLAIM_BYTES * claims
    return gas * price.wei_per_gas + data * price.data.wei_per_byte


def gas_cost(policy: SettlePolicy, price: GasPrice, claims: int) -> int:
    """Return what a transaction with so many claims costs, in base units, rounded up."""
    return -(-settle_wei(price, claims) * policy.native_coin_price // WEI_PER_COIN)


def worth_of(policy: SettlePolicy, value: int) -> Worth:
    """Return what a transaction that brings `value` base units is worth."""
    free = policy.native_coin_price == 0
    wei = None if free else value * WEI_PER_COIN // policy.native_coin_price
    return Worth(Amount(value), wei)


def choose(
    candidates: Sequence[SettlementCandidate], policy: SettlePolicy, price: GasPrice
) -> tuple[SettlementCandidate, ...]:
    """Return the claims of the next transaction, most urgent and valuable first.

    The result is empty if the transaction should wait.
    """
    marginal = gas_cost(policy, price, 1) - gas_cost(policy, price, 0)
    worthwhile = [
        c for c in candidates if c.value > 0 and (c.urgency is Urgency.ASKED or c.value > marginal)
    ]
    worthwhile.sort(key=lambda c: (-c.urgency, -c.value, c.channel))
    chosen = tuple(worthwhile[:MAX_CLAIMS_PER_SETTLE])
    if not chosen:
        return ()
    cost, value = gas_cost(policy, price, len(chosen)), sum(c.value for c in chosen)
    if chosen[0].urgency is Urgency.ASKED:
        return chosen
    if chosen[0].urgency is Urgency.WITHDRAWING:
        return chosen if value > cost else ()
    if max(c.waited_s for c in chosen) >= policy.interval_s:
        return chosen if value > cost else ()
    # Where gas is free there is nothing to weigh, and the interval alone decides.
    return chosen if cost and value >= cost * policy.gas_multiple else ()
