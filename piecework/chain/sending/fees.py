"""Fees and gas limits as pure decisions. Source: EIP-1559."""

from __future__ import annotations

from dataclasses import dataclass

from piecework.chain.errors import FeeTooHigh, InsufficientGas
from piecework.chain.limits import (
    BASE_FEE_HEADROOM,
    DEFAULT_MAX_FEE_WEI,
    GAS_MARGIN_PERCENT,
    REPLACEMENT_BUMP_PERMILLE,
    TIP_FLOOR_WEI,
)

GWEI = 10**9


@dataclass(frozen=True, slots=True)
class FeePolicy:
    """What the operator is ready to pay. All in wei per gas."""

    max_fee_wei: int = DEFAULT_MAX_FEE_WEI
    """Never sign above this, whatever the node says."""
    max_priority_fee_wei: int = 50 * GWEI
    """A node that suggests a larger tip is not believed."""


@dataclass(frozen=True, slots=True)
class FeeMarket:
    """What the node says about the next block, in wei per gas."""

    base_fee: int
    priority_fee: int


@dataclass(frozen=True, slots=True)
class Fees:
    """The two fee members of a type-2 transaction, wei per gas."""

    max_fee: int
    priority_fee: int


@dataclass(frozen=True, slots=True)
class GasNeed:
    """What a transaction takes. A cap by value weighs `expected`, never the inflated `limit`."""

    expected: int
    """Gas that it is estimated to use."""
    limit: int
    """Gas that it may use."""
    data_wei: int = 0
    """Wei that the chain takes for its data beside the gas (`l1_fees`)."""


def choose_fees(
    market: FeeMarket, gas: GasNeed, policy: FeePolicy, value_at_stake: int | None
) -> Fees:
    """Fees that stay valid for several full blocks, held under the operator's cap.

    `value_at_stake` in wei: the transaction is not expected to cost more. None: only the operator's
    cap holds. `FeeTooHigh` when the cap is below the current base fee and tip, so that the
    transaction would only get stuck.
    """
    priority = min(market.priority_fee, policy.max_priority_fee_wei)
    ceiling = _ceiling(gas, policy, value_at_stake)
    needed = market.base_fee + priority
    if needed > ceiling:
        raise FeeTooHigh(
            f"the chain asks {needed} wei per gas and at most {ceiling} may be paid for this "
            "transaction. "
            "Wait for lower fees, or raise the cap."
        )
    return Fees(min(market.base_fee * BASE_FEE_HEADROOM + priority, ceiling), priority)


def bump_fees(
    old: Fees,
    market: FeeMarket,
    gas: GasNeed,
    policy: FeePolicy,
    value_at_stake: int | None,
) -> Fees:
    """Fees for a replacement with the same nonce: both at least 12.5 % higher, and enough for the
    market now.

    `value_at_stake` bounds it as in `choose_fees`. `FeeTooHigh` when the bump does not fit under
    the cap: the old transaction then stays the only one.
    """
    # From a tip of nothing 12.5 % lead nowhere, while the fee grows up to its cap.
    bumped = Fees(_bump(old.max_fee), max(_bump(old.priority_fee), TIP_FLOOR_WEI))
    ceiling = _ceiling(gas, policy, value_at_stake)
    wanted_priority = max(
        bumped.priority_fee, min(market.priority_fee, policy.max_priority_fee_wei)
    )
    needed = max(bumped.max_fee, market.base_fee + wanted_priority)
    if needed > ceiling:
        raise FeeTooHigh(
            f"a replacement needs {needed} wei per gas and at most {ceiling} may be paid for "
            "this transaction"
        )
    wanted = max(bumped.max_fee, market.base_fee * BASE_FEE_HEADROOM + wanted_priority)
    return Fees(min(wanted, ceiling), wanted_priority)


def _ceiling(gas: GasNeed, policy: FeePolicy, value_at_stake: int | None) -> int:
    """Wei per gas that may be signed."""
    if value_at_stake is None:
        return policy.max_fee_wei
    return min(policy.max_fee_wei, max(0, value_at_stake - gas.data_wei) // gas.expected)


def gas_limit(estimate: int, hint: int) -> int:
    """The estimate with a margin, never below the call's own upper estimate (unused gas costs
    nothing)."""
    return max(estimate + estimate * GAS_MARGIN_PERCENT // 100, hint)


def require_balance(balance: int, gas: GasNeed, fees: Fees, value: int, who: str) -> None:
    """`InsufficientGas` unless the balance covers the worst case of the transaction."""
    worst = gas.limit * fees.max_fee + gas.data_wei + value
    if balance < worst:
        raise InsufficientGas(
            f"{who} holds {balance} wei and the transaction may cost {worst}. "
            "Send it some of the chain's native coin for gas."
        )


def _bump(fee: int) -> int:
    """At least one wei more: 12.5 % of a fee of a few wei would round to nothing."""
    return fee + max(1, -(-fee * REPLACEMENT_BUMP_PERMILLE // 1000))
