"""When claims go to the chain, and which."""

from __future__ import annotations

import pytest

from piecework.chain.l1_fees import L1Charge, L1Price
from piecework.chain.limits import MAX_CLAIMS_PER_SETTLE
from piecework.chain.transactions import GasPrice
from piecework_node.settlement.policy import (
    SETTLE_DATA_BASE_BYTES,
    SETTLE_DATA_PER_CLAIM_BYTES,
    SETTLE_GAS_BASE,
    SETTLE_GAS_PER_CLAIM,
    SettlementCandidate,
    SettlePolicy,
    Urgency,
    choose,
    gas_cost,
    settle_wei,
    worth_of,
)
from piecework_protocol.types import ChannelId

POLICY = SettlePolicy(gas_multiple=20, interval_s=3600, native_coin_price=3_000_000_000)
GWEI = GasPrice(10**9)


def candidate(
    value: int, *, number: int = 1, waited_s: float = 0.0, urgency: Urgency = Urgency.NONE
) -> SettlementCandidate:
    return SettlementCandidate(ChannelId(number.to_bytes(32, "big")), value, waited_s, urgency)


def test_gas_is_weighed_in_token_units_and_rounded_up() -> None:
    # A gas at 1 gwei is 1e-9 of a coin, which costs 3e9 base units.
    gas = SETTLE_GAS_BASE + SETTLE_GAS_PER_CLAIM
    assert gas_cost(POLICY, GWEI, 1) == gas * 3
    assert gas_cost(POLICY, GasPrice(1), 1) == 1


@pytest.mark.parametrize("charge", [L1Charge.BESIDE_GAS, L1Charge.IN_GAS])
def test_the_data_of_a_settlement_is_weighed_on_a_rollup(charge: L1Charge) -> None:
    data = SETTLE_DATA_BASE_BYTES + 2 * SETTLE_DATA_PER_CLAIM_BYTES
    rollup = GasPrice(10**6, L1Price(charge, 10**10))
    gas = SETTLE_GAS_BASE + 2 * SETTLE_GAS_PER_CLAIM
    assert settle_wei(rollup, 2) == gas * 10**6 + data * 10**10
    assert choose([candidate(gas_cost(POLICY, rollup, 1), waited_s=3600)], POLICY, rollup) == ()


def test_a_claim_waits_until_it_is_worth_many_times_its_gas() -> None:
    cost = gas_cost(POLICY, GWEI, 1)
    assert choose([candidate(20 * cost - 1)], POLICY, GWEI) == ()
    assert choose([candidate(20 * cost)], POLICY, GWEI)


def test_many_small_claims_go_together() -> None:
    cost = gas_cost(POLICY, GWEI, 30)
    every = [candidate(20 * cost // 30 + 1, number=n) for n in range(30)]
    assert len(choose(every, POLICY, GWEI)) == 30


def test_a_claim_that_waited_long_enough_goes_when_it_is_worth_its_gas() -> None:
    cost = gas_cost(POLICY, GWEI, 1)
    assert choose([candidate(cost, waited_s=3600)], POLICY, GWEI) == ()
    assert choose([candidate(cost + 1, waited_s=3600)], POLICY, GWEI)


def test_a_claim_on_a_channel_that_is_withdrawn_goes_at_once_and_takes_others_along() -> None:
    cost = gas_cost(POLICY, GWEI, 2)
    urgent = candidate(2 * cost, urgency=Urgency.WITHDRAWING)
    other = candidate(cost, number=2)
    assert choose([other, urgent], POLICY, GWEI) == (urgent, other)


def test_nothing_is_claimed_for_less_than_its_gas_unless_the_operator_asks() -> None:
    assert choose([candidate(10, urgency=Urgency.WITHDRAWING)], POLICY, GWEI) == ()
    assert choose([candidate(10, waited_s=1e9)], POLICY, GWEI) == ()
    assert choose([candidate(10, urgency=Urgency.ASKED)], POLICY, GWEI)
    assert choose([candidate(0, urgency=Urgency.ASKED)], POLICY, GWEI) == ()


def test_where_gas_is_free_the_interval_decides() -> None:
    free = SettlePolicy(gas_multiple=20, interval_s=3600, native_coin_price=0)
    assert choose([candidate(10)], free, GWEI) == ()
    assert choose([candidate(10, waited_s=3600)], free, GWEI)
    assert worth_of(free, 10).wei is None
    assert worth_of(POLICY, 3_000_000_000).wei == 10**18


def test_one_transaction_carries_the_most_valuable_claims_that_fit() -> None:
    every = [candidate(10**12 + n, number=n) for n in range(MAX_CLAIMS_PER_SETTLE + 5)]
    chosen = choose(every, POLICY, GWEI)
    assert len(chosen) == MAX_CLAIMS_PER_SETTLE
    assert min(c.value for c in chosen) == 10**12 + 5


def test_a_claim_that_is_worth_its_own_gas_only_just_is_left_out() -> None:
    """The first claim carries the base; each further one has to pay for itself."""
    marginal = gas_cost(POLICY, GWEI, 1) - gas_cost(POLICY, GWEI, 0)
    assert marginal == SETTLE_GAS_PER_CLAIM * 3
    large = candidate(10**9)
    assert choose([large, candidate(marginal, number=2)], POLICY, GWEI) == (large,)
    assert len(choose([large, candidate(marginal + 1, number=2)], POLICY, GWEI)) == 2


def test_the_smallest_claim_that_the_operator_asks_for_goes() -> None:
    asked = candidate(1, urgency=Urgency.ASKED)
    assert choose([asked], POLICY, GWEI) == (asked,)


def test_claims_that_are_together_not_worth_their_gas_stay_though_one_is_withdrawn() -> None:
    cost = gas_cost(POLICY, GWEI, 1)
    urgent = Urgency.WITHDRAWING
    assert choose([candidate(cost, urgency=urgent)], POLICY, GWEI) == ()
    assert choose([candidate(cost + 1, urgency=urgent)], POLICY, GWEI)
    marginal = gas_cost(POLICY, GWEI, 1) - gas_cost(POLICY, GWEI, 0)
    assert choose([candidate(marginal + 1, urgency=urgent)], POLICY, GWEI) == ()
    waited = candidate(marginal + 1, waited_s=POLICY.interval_s)
    assert choose([waited], POLICY, GWEI) == ()


def test_a_value_in_wei_is_a_whole_number_rounded_down() -> None:
    third = SettlePolicy(gas_multiple=1, interval_s=1, native_coin_price=3)
    assert worth_of(third, 1).wei == 10**18 // 3
    assert isinstance(worth_of(third, 1).wei, int)
