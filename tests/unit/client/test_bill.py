"""What an answer says of its own cost and making."""

from __future__ import annotations

from itertools import permutations

from piecework.client.gateway.bill import Bill
from tests.support.chain.fake_chain import TOKEN_INFO


def test_choices_side_by_side_name_what_was_decided_in_one_order() -> None:
    shown = []
    for choices in permutations([["/b", "/a"], ["/c"], ["/a"]]):
        bill = Bill(TOKEN_INFO, None, ())
        for places in choices:
            bill.decided.extend(places)
        shown.append(bill.ours()["decided"])
    assert shown == [["/a", "/b", "/c"]] * 6
