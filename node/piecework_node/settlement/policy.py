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
from piecework_protocol.types import ChannelId

SETTLE_GAS_BASE: Final = 45_000
SETTLE_GAS_PER_CLAIM: Final = 20_000
"""Measured: 59,600 for one claim, 19,700 for each of a hundred."""
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


def gas_cost(policy: SettlePolicy, wei_per_gas: int, claims: int) -> int:
    """Return what a transaction with so many claims costs, in base units, rounded up."""
    gas = SETTLE_GAS_BASE + SETTLE_GAS_PER_CLAIM * claims
    return -(-gas * wei_per_gas * policy.native_coin_price // WEI_PER_COIN)


def value_in_wei(policy: SettlePolicy, value: int) -> int | None:
    """Return base units as wei, the most that a transaction may cost. None: gas is free."""
    return value * WEI_PER_COIN // policy.native_coin_price if policy.native_coin_price else None


def choose(
    candidates: Sequence[SettlementCandidate], policy: SettlePolicy, wei_per_gas: int
) -> tuple[SettlementCandidate, ...]:
    """Return the claims of the next transaction, most urgent and valuable first.

    The result is empty if the transaction should wait.
    """
    marginal = gas_cost(policy, wei_per_gas, 1) - gas_cost(policy, wei_per_gas, 0)
    worthwhile = [
        c for c in candidates if c.value > 0 and (c.urgency is Urgency.ASKED or c.value > marginal)
    ]
    worthwhile.sort(key=lambda c: (-c.urgency, -c.value, c.channel))
    chosen = tuple(worthwhile[:MAX_CLAIMS_PER_SETTLE])
    if not chosen:
        return ()
    cost, value = gas_cost(policy, wei_per_gas, len(chosen)), sum(c.value for c in chosen)
    if chosen[0].urgency is Urgency.ASKED:
        return chosen
    if chosen[0].urgency is Urgency.WITHDRAWING:
        return chosen if value > cost else ()
    if max(c.waited_s for c in chosen) >= policy.interval_s:
        return chosen if value > cost else ()
    # Where gas is free there is nothing to weigh, and the interval alone decides.
    return chosen if cost and value >= cost * policy.gas_multiple else ()
