"""Sizing a channel's deposit."""

from __future__ import annotations

import pytest

from piecework.client.errors import InsufficientFunds
from piecework.client.jobs.channels import deposit_total
from piecework_protocol.types import Amount
from tests.support.chain.fake_chain import TOKEN_INFO


@pytest.mark.parametrize(
    ("needed", "deposit", "free", "expected"),
    [
        (10, 0, 1000, 100),
        (110, 100, 1000, 200),
        (250, 100, 1000, 300),
        (10, 0, 60, 60),
        (10, 0, 10, 10),
    ],
)
def test_deposits_grow_in_whole_steps_as_far_as_the_balance_goes(
    needed: int, deposit: int, free: int, expected: int
) -> None:
    total = deposit_total(Amount(needed), Amount(deposit), Amount(free), Amount(100), TOKEN_INFO)
    assert total == expected


def test_a_shortage_beyond_the_balance_is_said_in_tokens() -> None:
    with pytest.raises(InsufficientFunds) as caught:
        deposit_total(Amount(11), Amount(0), Amount(10), Amount(100), TOKEN_INFO)
    assert caught.value.needed == TOKEN_INFO.amount(11)
    assert str(caught.value).startswith("0.000011 tUSDC are needed, and 0.00001 tUSDC are free")
