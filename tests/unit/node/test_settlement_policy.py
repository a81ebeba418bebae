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


def test_a_claim_that_is_worth_its_own_gas_only_just_is_left_out() -> None:
    """The first claim carries the base; each further one has to pay for itself."""
    marginal = gas_cost(POLICY, GWEI, 1) - gas_cost(POLICY, GWEI, 0)
    assert marginal == 60_000
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
    assert value_in_wei(third, 1) == 10**18 // 3
    assert isinstance(value_in_wei(third, 1), int)
