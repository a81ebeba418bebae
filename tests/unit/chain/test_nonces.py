"""Which nonce comes next, whatever a node counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.chain.errors import NonceUnexplained
from piecework.chain.sending.fees import Fees
from piecework.chain.sending.nonces import MAX_FOREIGN, NonceCounts, Nonces

small = st.integers(0, 40)


def holding(*held: int) -> Nonces:
    nonces = Nonces()
    for nonce in held:
        nonces.hold(nonce)
    return nonces


def test_the_next_nonce_follows_what_is_mined_and_what_is_ours() -> None:
    assert holding().explained(NonceCounts(7, 7)) == 7
    assert holding(7, 8).explained(NonceCounts(7, 9)) == 9
    assert holding(7, 8).explained(NonceCounts(7, 7)) == 9, "dropped ones are sent again"


def test_a_gap_is_filled_before_anything_goes_on_top() -> None:
    assert holding(1000).explained(NonceCounts(0, 0)) == 0
    assert holding(0, 1, 3).explained(NonceCounts(0, 2)) == 2


def test_a_nonce_that_nobody_of_ours_explains_is_not_used() -> None:
    for held in ((), (0,), (0, 1)):
        with pytest.raises(NonceUnexplained, match=f"nonce {len(held)} belongs to none"):
            holding(*held).explained(NonceCounts(0, 1000))
    assert holding().next(0) == 0, "unless somebody insists"


OLD, NEWER = Fees(100, 10), Fees(120, 5)


def test_a_nonce_that_was_given_up_is_free_and_what_lies_in_a_pool_with_it_is_ours() -> None:
    nonces = holding(0, 1)
    nonces.give_up(1, OLD)
    assert nonces.explained(NonceCounts(0, 2)) == 1
    assert nonces.given_up(1) == OLD
    assert nonces.given_up(0) is None
    nonces.give_up(1, NEWER)
    assert nonces.given_up(1) == Fees(120, 10), "both lie there, perhaps"
    with pytest.raises(NonceUnexplained, match="nonce 2 belongs to none"):
        nonces.explained(NonceCounts(0, 3))
    nonces.hold(1)
    assert nonces.explained(NonceCounts(0, 2)) == 2
    nonces.finish(1)
    assert nonces.given_up(1) is None


def test_a_tool_lets_a_few_of_another_process_pass_and_not_a_thousand() -> None:
    assert holding().beside_others(NonceCounts(4, 6)) == 6
    assert holding(6).beside_others(NonceCounts(4, 6)) == 7
    assert holding().beside_others(NonceCounts(4, 4 + MAX_FOREIGN)) == 4 + MAX_FOREIGN
    with pytest.raises(NonceUnexplained, match="Another program uses the key"):
        holding().beside_others(NonceCounts(4, 5 + MAX_FOREIGN))


def test_a_nonce_below_a_final_one_is_never_free_again() -> None:
    nonces = holding(4, 5)
    nonces.finish(4)
    assert nonces.next(3) == 6, "the node lags"
    nonces.free(5)
    assert nonces.next(3) == 5
    nonces.finish(9)
    assert nonces.next(0) == 10


@given(small, small, st.sets(small), st.sets(small))
def test_no_nonce_is_handed_out_twice_and_none_is_left_out(
    mined: int, pending: int, held: set[int], final: set[int]
) -> None:
    nonces = holding(*held)
    for nonce in final:
        nonces.finish(nonce)
    given_out = nonces.next(mined)
    ground = max([mined, *(nonce + 1 for nonce in final)])
    assert given_out >= ground and given_out not in {h for h in held if h >= ground}
    assert all(nonce in held for nonce in range(ground, given_out))
    if pending <= given_out:
        assert nonces.explained(NonceCounts(mined, pending)) == given_out
    else:
        with pytest.raises(NonceUnexplained):
            nonces.explained(NonceCounts(mined, pending))
