"""What a worker asks for a client's transactions, and which fees pay for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from piecework.chain.sending.l1_fees import L1Charge, L1Price
from piecework.chain.sending.transactions import GasPrice
from piecework_node.settlement.fees import (
    COVER_PERCENT,
    NEEDS,
    Errand,
    FeeSchedule,
    FeeSettings,
    errand_wei,
    worth_of_fee,
)
from piecework_node.settlement.payouts import PUSH_GAS
from piecework_node.settlement.policy import WEI_PER_COIN, SettlePolicy
from piecework_protocol.types import Amount

POLICY = SettlePolicy(gas_multiple=20, interval_s=3600, native_coin_price=3_000_000_000)
FREE = SettlePolicy(gas_multiple=20, interval_s=3600, native_coin_price=0)
GWEI = GasPrice(10**9)
ROLLUP = GasPrice(10**6, L1Price(L1Charge.BESIDE_GAS, 10**9))
MEASURED = Path(__file__).parents[3] / "contracts/snapshots/transactions.json"


def schedule(
    price: GasPrice = GWEI, policy: SettlePolicy = POLICY, settings: FeeSettings | None = None
) -> FeeSchedule:
    return FeeSchedule(settings or FeeSettings(), policy, lambda: price)


def units(wei: int) -> int:
    return -(-wei * POLICY.native_coin_price // WEI_PER_COIN)


@pytest.mark.parametrize("price", [GWEI, ROLLUP])
@pytest.mark.parametrize("errand", Errand)
def test_a_fee_must_cover_the_gas_and_a_fifth(price: GasPrice, errand: Errand) -> None:
    least = units(errand_wei(price, errand) * COVER_PERCENT // 100)
    assert schedule(price).covers(errand, least + 1)
    assert not schedule(price).covers(errand, least - 1)


@pytest.mark.parametrize("price", [GWEI, ROLLUP])
def test_what_is_asked_still_covers_the_gas_after_its_price_has_doubled(price: GasPrice) -> None:
    asked = schedule(price).asked()
    data = L1Price(price.data.charge, price.data.wei_per_byte * 2)
    doubled = schedule(GasPrice(price.wei_per_gas * 2, data))
    assert doubled.covers(Errand.OPEN, asked.open)
    assert doubled.covers(Errand.TOP_UP, asked.top_up)
    assert doubled.covers(Errand.CLOSE, asked.close)


def test_a_small_move_of_the_gas_price_changes_no_fee() -> None:
    assert schedule(GasPrice(1_020_000_000)).asked() == schedule(GasPrice(1_021_000_000)).asked()


def test_fees_that_the_operator_set_are_asked_as_they_are() -> None:
    settings = FeeSettings(Amount(5), Amount(0), Amount(7), min_top_up=Amount(9))
    asked = schedule(settings=settings).asked()
    assert (asked.open, asked.top_up, asked.close, asked.min_top_up) == (5, 0, 7, 9)


def test_an_opening_costs_at_least_what_its_payer_may_owe_before_it_is_mined() -> None:
    settings = FeeSettings(credit_first=Amount(2_000))
    asked = schedule(GasPrice(10**10), FREE, settings).asked()
    assert (asked.open, asked.top_up, asked.close) == (2_000, 0, 0)
    counter = schedule(GasPrice(1), POLICY, settings)
    assert [counter.covers(Errand.OPEN, fee) for fee in (1_999, 2_000)] == [False, True]
    assert counter.covers(Errand.TOP_UP, 1_999) and counter.covers(Errand.CLOSE, 1_999)


def test_where_gas_is_free_no_fee_is_too_small() -> None:
    assert all(schedule(GasPrice(10**12), FREE).covers(errand, 0) for errand in Errand)
    assert worth_of_fee(FREE, 0).wei is None


def test_the_gas_of_an_errand_is_that_of_its_dearest_form() -> None:
    measured = {name: int(gas) for name, gas in json.loads(MEASURED.read_text()).items()}
    forms = {
        Errand.OPEN: ("fund: open", "openWithAuthorization"),
        Errand.TOP_UP: ("fund: top up",),
        Errand.CLOSE: ("close:",),
    }
    for errand, names in forms.items():
        dearest = max(gas for name, gas in measured.items() if name.startswith(names))
        assert dearest <= NEEDS[errand].gas, (errand, dearest)
    assert measured["pushPayout"] <= PUSH_GAS
    # A top-up in one step and the first fee of all: what an opening costs beyond a plain one.
    beyond = (
        measured["openWithAuthorization: fee into an empty payout"]
        - measured["fund: open a channel, relayed"]
    )
    assert measured["fund: top up, relayed"] + beyond <= NEEDS[Errand.TOP_UP].gas
