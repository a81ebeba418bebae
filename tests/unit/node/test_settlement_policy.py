"""When claims go to the chain, and which share a transaction."""

from __future__ import annotations

from collections.abc import Sequence

from piecework.chain.contracts.calls import Claim
from piecework.chain.contracts.packing import (
    FIXED_BYTES,
    PACKED_GAS,
    PLAIN_GAS,
    PLAIN_ROW_BYTES,
    ROW_BYTES,
)
from piecework.chain.limits import MAX_CLAIMS_PER_SETTLE
from piecework.chain.sending.l1_fees import L1Charge, L1Price
from piecework.chain.sending.transactions import GasPrice
from piecework_node.journal.records import Worth
from piecework_node.settlement.policy import (
    SettlementCandidate,
    SettlePolicy,
    Urgency,
    batch_cost,
    choose,
    row_cost,
    settle_wei,
    worth_of,
)
from piecework_protocol.objects import Channel, Voucher
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    ChannelId,
    Digest,
    Seconds,
    Signature,
    Uint64,
)

POLICY = SettlePolicy(gas_multiple=20, interval_s=3600, native_coin_price=3_000_000_000)
GWEI = GasPrice(10**9)
ROLLUP = GasPrice(10**6, L1Price(L1Charge.BESIDE_GAS, 10**10))
CANONICAL = Signature(bytes(64) + bytes([27]))
SOMEBODY = Address(b"\x44" * 20)


def claim(number: int, delay_s: int = 900) -> Claim:
    """A voucher of another payer's channel, as every worker gets them."""
    salt = Bytes32(number.to_bytes(32, "big"))
    channel = Channel(SOMEBODY, SOMEBODY, SOMEBODY, SOMEBODY, SOMEBODY, Seconds(delay_s), salt)
    voucher = Voucher(ChannelId(salt), Amount(1), Uint64(1), Digest(bytes(32)))
    return Claim(channel, voucher, CANONICAL)


def candidate(
    value: int,
    *,
    number: int = 1,
    waited_s: float = 0.0,
    urgency: Urgency = Urgency.NONE,
    delay_s: int = 900,
) -> SettlementCandidate:
    return SettlementCandidate(claim(number, delay_s), value, waited_s, urgency)


def chosen(
    candidates: Sequence[SettlementCandidate],
    policy: SettlePolicy = POLICY,
    price: GasPrice = GWEI,
) -> tuple[SettlementCandidate, ...]:
    """The claims of the only transaction that goes, or nothing."""
    batches = choose(candidates, policy, price)
    assert len(batches) <= 1
    return batches[0] if batches else ()


def cost_of(claims: int, price: GasPrice = GWEI) -> int:
    return batch_cost(POLICY, price, [claim(n) for n in range(claims)])


def test_gas_is_weighed_in_token_units_and_rounded_up() -> None:
    # A gas at 1 gwei is 1e-9 of a coin, which costs 3e9 base units.
    assert cost_of(1) == PACKED_GAS.of(1) * 3
    assert cost_of(1, GasPrice(1)) == 1


def test_the_data_of_a_settlement_is_weighed_on_a_rollup() -> None:
    gas, data = PACKED_GAS.of(2), FIXED_BYTES + 2 * ROW_BYTES
    assert cost_of(2, ROLLUP) == -(-(gas * 10**6 + data * 10**10) * 3 // 10**9)
    assert choose([candidate(cost_of(1, ROLLUP), waited_s=3600)], POLICY, ROLLUP) == ()
    assert settle_wei(ROLLUP) * 3 // 10**9 >= cost_of(1, ROLLUP)


def test_claims_with_the_same_terms_share_a_packed_transaction() -> None:
    short = [candidate(10**12, number=n) for n in range(30)]
    long = [candidate(10**13, number=100 + n, delay_s=7200) for n in range(30)]
    first, second = choose([*short, *long], POLICY, GWEI)
    assert {c.claim.channel.withdrawal_delay for c in first} == {7200}, "the dearer batch first"
    assert {c.claim.channel.withdrawal_delay for c in second} == {900}


def test_the_few_with_terms_of_their_own_share_a_plain_transaction() -> None:
    each = [candidate(10**12, number=n, delay_s=900 + n) for n in range(4)]
    (batch,) = choose(each, POLICY, GWEI)
    assert len(batch) == 4
    claims = [c.claim for c in batch]
    assert batch_cost(POLICY, GWEI, claims) == PLAIN_GAS.of(4) * 3
    assert row_cost(POLICY, GWEI, claims) == PLAIN_GAS.row * 3


def test_one_batch_goes_while_another_waits() -> None:
    dear = [candidate(10**12, number=n) for n in range(30)]
    poor = [candidate(60_000, number=100 + n, delay_s=7200) for n in range(30)]
    (batch,) = choose([*dear, *poor], POLICY, GWEI)
    assert {c.value for c in batch} == {10**12}


def test_a_claim_waits_until_it_is_worth_many_times_its_gas() -> None:
    cost = cost_of(1)
    assert chosen([candidate(20 * cost - 1)], POLICY, GWEI) == ()
    assert chosen([candidate(20 * cost)], POLICY, GWEI)


def test_many_small_claims_go_together() -> None:
    cost = cost_of(30)
    every = [candidate(20 * cost // 30 + 1, number=n) for n in range(30)]
    assert len(chosen(every, POLICY, GWEI)) == 30


def test_a_claim_that_waited_long_enough_goes_when_it_is_worth_its_gas() -> None:
    cost = cost_of(1)
    assert chosen([candidate(cost, waited_s=3600)], POLICY, GWEI) == ()
    assert chosen([candidate(cost + 1, waited_s=3600)], POLICY, GWEI)


def test_a_claim_on_a_channel_that_is_withdrawn_goes_at_once_and_takes_others_along() -> None:
    cost = cost_of(2)
    urgent = candidate(2 * cost, urgency=Urgency.WITHDRAWING)
    other = candidate(cost, number=2)
    assert chosen([other, urgent], POLICY, GWEI) == (urgent, other)


def test_nothing_is_claimed_for_less_than_its_gas_unless_the_operator_asks() -> None:
    assert chosen([candidate(10, urgency=Urgency.WITHDRAWING)], POLICY, GWEI) == ()
    assert chosen([candidate(10, waited_s=1e9)], POLICY, GWEI) == ()
    assert chosen([candidate(10, urgency=Urgency.ASKED)], POLICY, GWEI)
    assert chosen([candidate(0, urgency=Urgency.ASKED)], POLICY, GWEI) == ()


def test_where_gas_is_free_the_interval_decides() -> None:
    free = SettlePolicy(gas_multiple=20, interval_s=3600, native_coin_price=0)
    assert chosen([candidate(10)], free, GWEI) == ()
    assert chosen([candidate(10, waited_s=3600)], free, GWEI)
    assert worth_of(free, 10).wei is None
    assert worth_of(POLICY, 3_000_000_000).wei == 10**18


def test_one_transaction_carries_the_most_valuable_claims_that_fit() -> None:
    every = [candidate(10**12 + n, number=n) for n in range(MAX_CLAIMS_PER_SETTLE + 5)]
    first, rest = choose(every, POLICY, GWEI)
    assert len(first) == MAX_CLAIMS_PER_SETTLE
    assert min(c.value for c in first) == 10**12 + 5
    assert len(rest) == 5


def test_a_claim_that_is_worth_its_own_gas_only_just_is_left_out() -> None:
    """The first claim carries the base; each further one has to pay for itself."""
    marginal = row_cost(POLICY, GWEI, [claim(1)])
    assert marginal == PACKED_GAS.row * 3
    large = candidate(10**9)
    assert chosen([large, candidate(marginal, number=2)], POLICY, GWEI) == (large,)
    assert len(chosen([large, candidate(marginal + 1, number=2)], POLICY, GWEI)) == 2


def test_the_smallest_claim_that_the_operator_asks_for_goes() -> None:
    asked = candidate(1, urgency=Urgency.ASKED)
    assert chosen([asked], POLICY, GWEI) == (asked,)


def test_claims_that_are_together_not_worth_their_gas_stay_though_one_is_withdrawn() -> None:
    cost = cost_of(1)
    urgent = Urgency.WITHDRAWING
    assert chosen([candidate(cost, urgency=urgent)], POLICY, GWEI) == ()
    assert chosen([candidate(cost + 1, urgency=urgent)], POLICY, GWEI)
    marginal = row_cost(POLICY, GWEI, [claim(1)])
    assert chosen([candidate(marginal + 1, urgency=urgent)], POLICY, GWEI) == ()
    waited = candidate(marginal + 1, waited_s=POLICY.interval_s)
    assert chosen([waited], POLICY, GWEI) == ()


def test_a_value_in_wei_is_a_whole_number_rounded_down() -> None:
    third = SettlePolicy(gas_multiple=1, interval_s=1, native_coin_price=3)
    assert worth_of(third, 1).wei == 10**18 // 3
    assert isinstance(worth_of(third, 1).wei, int)


def test_one_claim_is_taken_for_as_dear_as_the_dearer_of_both_ways() -> None:
    gas, data = max(PACKED_GAS.of(1), PLAIN_GAS.of(1)), FIXED_BYTES + PLAIN_ROW_BYTES
    assert settle_wei(GWEI) == gas * 10**9
    assert settle_wei(ROLLUP) == gas * 10**6 + data * 10**10


def test_one_more_claim_adds_its_gas_and_its_own_data() -> None:
    wei = PACKED_GAS.row * 10**6 + ROW_BYTES * 10**10
    assert row_cost(POLICY, ROLLUP, [claim(1), claim(2)]) == -(-wei * 3 // 10**9)


def test_a_transaction_is_worth_what_it_brings() -> None:
    assert worth_of(POLICY, 3_000_000_000) == Worth(Amount(3_000_000_000), 10**18)
