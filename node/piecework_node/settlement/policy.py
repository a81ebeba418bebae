"""Decide which vouchers to bring to the chain, and when. Pure.

Gas is weighed in base units of the token. Claims with the same terms share a packed transaction,
the few that are left a plain one. Ordinary claims wait until their batch is worth many times its
gas, or until its oldest has waited long enough. A claim on a channel whose payer withdraws takes
its batch along at once, unless that is worth less than its gas. Claims that the operator asks for
always go.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from piecework.chain.contracts.calls import Claim
from piecework.chain.contracts.packing import (
    FIXED_BYTES,
    PACKED_GAS,
    PLAIN_GAS,
    PLAIN_ROW_BYTES,
    estimated_bytes,
    estimated_gas,
    row_gas,
    settlement_batches,
)
from piecework.chain.sending.transactions import GasPrice
from piecework_node.journal.records import Worth
from piecework_protocol.types import Amount, ChannelId

WEI_PER_COIN: Final = 10**18


class Urgency(enum.IntEnum):
    """Why a claim may not wait. Only the operator's own wish goes whatever it costs."""

    NONE = 0
    STOPPING = 1
    """The worker stops. Nobody knows when it starts again."""
    WITHDRAWING = 2
    ASKED = 3


@dataclass(frozen=True, slots=True)
class SettlementCandidate:
    """A voucher that is not claimed yet. `value` is what it adds, in base units."""

    claim: Claim
    value: int
    waited_s: float
    urgency: Urgency

    @property
    def channel(self) -> ChannelId:
        """The channel that it draws on."""
        return self.claim.voucher.channel


Batch = tuple[SettlementCandidate, ...]
"""Claims of one transaction."""


@dataclass(frozen=True, slots=True)
class SettlePolicy:
    """What the operator set."""

    gas_multiple: float
    interval_s: float
    native_coin_price: int
    """Base units of the token for one native coin. 0 makes gas free (development chains)."""


def settle_wei(price: GasPrice) -> int:
    """Return what settling one claim costs, in wei, its data included."""
    gas = max(PACKED_GAS.of(1), PLAIN_GAS.of(1))
    return gas * price.wei_per_gas + (FIXED_BYTES + PLAIN_ROW_BYTES) * price.data.wei_per_byte


def batch_cost(policy: SettlePolicy, price: GasPrice, claims: Sequence[Claim]) -> int:
    """Return what one transaction with these claims costs, in base units, rounded up."""
    data = estimated_bytes(claims) * price.data.wei_per_byte
    return in_units(policy, estimated_gas(claims) * price.wei_per_gas + data)


def row_cost(policy: SettlePolicy, price: GasPrice, claims: Sequence[Claim]) -> int:
    """Return what one more claim adds to a batch, in base units, rounded up."""
    data = estimated_bytes([*claims, claims[0]]) - estimated_bytes(claims)
    return in_units(policy, row_gas(claims) * price.wei_per_gas + data * price.data.wei_per_byte)


def in_units(policy: SettlePolicy, wei: int) -> int:
    """Return what wei are worth in base units of the token, rounded up."""
    return -(-wei * policy.native_coin_price // WEI_PER_COIN)


def worth_of(policy: SettlePolicy, value: int) -> Worth:
    """Return what a transaction that brings `value` base units is worth."""
    free = policy.native_coin_price == 0
    wei = None if free else value * WEI_PER_COIN // policy.native_coin_price
    return Worth(Amount(value), wei)


def choose(
    candidates: Sequence[SettlementCandidate], policy: SettlePolicy, price: GasPrice
) -> tuple[Batch, ...]:
    """Return the claims of the next transactions, most urgent and valuable first.

    What should wait is in none of them.
    """
    known = {c.channel: c for c in candidates if c.value > 0}
    ordered = sorted(known.values(), key=_first)
    batches = [
        _worthwhile(tuple(known[claim.voucher.channel] for claim in claims), policy, price)
        for claims in settlement_batches(c.claim for c in ordered)
    ]
    going = [batch for batch in batches if batch and _goes(batch, policy, price)]
    return tuple(sorted(going, key=lambda batch: _first(batch[0])))


def _first(candidate: SettlementCandidate) -> tuple[int, int, bytes]:
    return -candidate.urgency, -candidate.value, candidate.channel


def _worthwhile(batch: Batch, policy: SettlePolicy, price: GasPrice) -> Batch:
    """The claims of a batch that pay for their own row, or that the operator asks for."""
    marginal = row_cost(policy, price, _claims(batch))
    return tuple(c for c in batch if c.urgency is Urgency.ASKED or c.value > marginal)


def _goes(batch: Batch, policy: SettlePolicy, price: GasPrice) -> bool:
    urgency = max(c.urgency for c in batch)
    if urgency is Urgency.ASKED:
        return True
    cost, value = batch_cost(policy, price, _claims(batch)), sum(c.value for c in batch)
    waited = max(c.waited_s for c in batch) >= policy.interval_s
    if urgency is not Urgency.NONE or waited:
        return value > cost
    # Where gas is free there is nothing to weigh, and the interval alone decides.
    return bool(cost) and value >= cost * policy.gas_multiple


def _claims(batch: Batch) -> list[Claim]:
    return [c.claim for c in batch]
