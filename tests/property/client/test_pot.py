"""The price of a request against any order of jobs: open limits and payments never pass it."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from piecework.client.gateway.pot import Pot


@given(price=st.integers(0, 10_000), answers=st.integers(1, 5), data=st.data())
def test_open_limits_and_payments_never_pass_the_price(price: int, answers: int, data: Any) -> None:
    pot, paid = Pot(price, answers), 0
    running, open_limits = set(range(answers)), dict[int, int]()
    assert all(pot.share(answer) == price // answers for answer in running)
    for _ in range(data.draw(st.integers(0, 30))):
        if not running:
            break
        answer = data.draw(st.sampled_from(sorted(running)))
        if answer not in open_limits:
            if data.draw(st.booleans()):
                open_limits[answer] = pot.share(answer)
                pot.take(answer, open_limits[answer])
            else:
                pot.leave(answer)
                running.remove(answer)
        else:
            amount = data.draw(st.integers(0, open_limits[answer]))
            pot.pay(answer, amount)
            pot.put_back(answer)
            paid += amount
            del open_limits[answer]
        assert 0 <= paid + sum(open_limits.values()) <= price
    for answer in list(open_limits):
        pot.put_back(answer)
    for answer in range(1, answers):
        pot.leave(answer)
    assert pot.share(0) == price - paid
