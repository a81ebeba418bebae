"""When claims go to the chain, and which."""

from __future__ import annotations

from piecework.chain.limits import MAX_CLAIMS_PER_SETTLE
from piecework_node.settlement.policy import (
    SettlementCandidate,
    SettlePolicy,
    Urgency,
    choose,
    gas_cost,
    value_in_wei,
)
from piecework_protocol.types import ChannelId

POLICY = SettlePolicy(gas_multiple=20, interval_s=3600, native_coin_price=3_000_000_000)
GWEI = 10**9


def candidate(
    value: int, *, number: int = 1, waited_s: float = 0.0, urgency: Urgency = Urgency.NONE
) -> SettlementCandidate:
    return SettlementCandidate(ChannelId(number.to_bytes(32, "big")), value, waited_s, urgency)


def test_gas_is_weighed_in_token_units_and_rounded_up() -> None:
    # 65,000 gas at 1 gwei are 6.5e13 wei, which at 3,000 dollars a coin are 0.195 dollars.
    assert gas_cost(POLICY, GWEI, 1) == 195_000
    assert gas_cost(POLICY, 1, 1) == 1


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
    assert value_in_wei(free, 10) is None
    assert value_in_wei(POLICY, 3_000_000_000) == 10**18


def test_one_transaction_carries_the_most_valuable_claims_that_fit() -> None:
    every = [candidate(10**12 + n, number=n) for n in range(MAX_CLAIMS_PER_SETTLE + 5)]
    chosen = choose(every, POLICY, GWEI)
    assert len(chosen) == MAX_CLAIMS_PER_SETTLE
    assert min(c.value for c in chosen) == 10**12 + 5
