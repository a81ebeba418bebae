"""Fees, nonces and gas limits are pure decisions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.chain.errors import FeeTooHigh, InsufficientGas
from piecework.chain.limits import TIP_FLOOR_WEI
from piecework.chain.sending.fees import (
    FeeMarket,
    FeePolicy,
    Fees,
    GasNeed,
    bump_fees,
    choose_fees,
    gas_limit,
    require_balance,
)

GWEI = 10**9
POLICY = FeePolicy(max_fee_wei=100 * GWEI, max_priority_fee_wei=5 * GWEI)
wei = st.integers(0, 200 * GWEI)
gas_amounts = st.integers(21_000, 10_000_000)
TRANSFER = GasNeed(21_000, 21_000)


def test_the_fee_leaves_room_for_a_rising_base_fee() -> None:
    assert choose_fees(FeeMarket(10 * GWEI, GWEI), TRANSFER, POLICY, None) == Fees(21 * GWEI, GWEI)


def test_a_node_that_suggests_a_huge_tip_is_not_believed() -> None:
    assert choose_fees(FeeMarket(GWEI, 90 * GWEI), TRANSFER, POLICY, None).priority_fee == 5 * GWEI


def test_fees_that_would_only_get_stuck_are_not_signed() -> None:
    with pytest.raises(FeeTooHigh, match="Wait"):
        choose_fees(FeeMarket(100 * GWEI, GWEI), TRANSFER, POLICY, None)


@given(wei, wei, gas_amounts, st.integers(0, 10**16), st.none() | st.integers(0, 10**18))
def test_a_transaction_is_never_expected_to_cost_more_than_the_cap_or_the_stake(
    base: int, tip: int, gas: int, data_wei: int, stake: int | None
) -> None:
    need = GasNeed(gas, 2 * gas, data_wei)
    try:
        fees = choose_fees(FeeMarket(base, tip), need, POLICY, stake)
    except FeeTooHigh:
        return
    assert fees.priority_fee <= fees.max_fee <= POLICY.max_fee_wei
    assert fees.max_fee >= base + fees.priority_fee
    assert stake is None or fees.max_fee * gas + data_wei <= stake or not fees.max_fee


@given(gas_amounts, st.floats(1.0, 1.9))
def test_a_claim_worth_a_little_more_than_its_gas_is_settled(gas: int, times: float) -> None:
    market, need = FeeMarket(10 * GWEI, GWEI), GasNeed(gas, max(gas * 5 // 4, 115_000))
    worth = int(gas * 11 * GWEI * times) + gas
    assert choose_fees(market, need, POLICY, worth).max_fee >= 11 * GWEI


@given(wei, wei, wei, wei, gas_amounts)
def test_a_replacement_raises_both_fees_by_an_eighth_and_stays_under_the_cap(
    old_max: int, old_tip: int, base: int, tip: int, gas: int
) -> None:
    old = Fees(max(old_max, old_tip), min(old_max, old_tip))
    try:
        fees = bump_fees(old, FeeMarket(base, tip), GasNeed(gas, gas), POLICY, None)
    except FeeTooHigh:
        return
    for new, before in ((fees.max_fee, old.max_fee), (fees.priority_fee, old.priority_fee)):
        assert new > before
        assert new * 8 >= before * 9
    assert fees.priority_fee <= fees.max_fee <= POLICY.max_fee_wei
    assert fees.max_fee >= base + min(tip, POLICY.max_priority_fee_wei)


@given(wei, wei, gas_amounts, st.integers(0, 10**18))
def test_a_replacement_is_never_expected_to_cost_more_than_the_stake(
    old_max: int, base: int, gas: int, stake: int
) -> None:
    try:
        need = GasNeed(gas, 2 * gas)
        fees = bump_fees(Fees(old_max, 0), FeeMarket(base, GWEI), need, POLICY, stake)
    except FeeTooHigh:
        return
    assert fees.max_fee * gas <= stake


def test_the_gas_limit_has_a_margin_and_never_falls_below_the_hint() -> None:
    assert gas_limit(100_000, 0) == 125_000
    assert gas_limit(30_000, 140_000) == 140_000


def test_the_balance_must_cover_the_worst_case() -> None:
    need = GasNeed(10_000, 21_000, 3)
    require_balance(21_000 * 5 + 4, need, Fees(5, 1), 1, "somebody")
    with pytest.raises(InsufficientGas, match="somebody holds 105003 wei"):
        require_balance(21_000 * 5 + 3, need, Fees(5, 1), 1, "somebody")


def test_a_replacement_of_a_transaction_without_a_tip_has_one() -> None:
    """A node may have said that no tip is needed. 12.5 % of nothing would be nothing for ever."""
    market = FeeMarket(base_fee=10**9, priority_fee=0)
    fees = bump_fees(Fees(2 * 10**9, 0), market, TRANSFER, POLICY, None)
    assert fees.priority_fee == TIP_FLOOR_WEI
