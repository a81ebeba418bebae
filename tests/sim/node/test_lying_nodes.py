"""One node of three lies or hangs, in each place and about each method of the money path.

The channel is closed in the end and jobs go on. With one node alone there is nobody to outvote it:
then what it says is a fault with a code, and the state heals once it is honest again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from piecework_node.runtime.faults import Code
from piecework_protocol.states import ChannelState
from tests.sim.node.test_node_faults import MONEY
from tests.support.chain.node_proxy import LIES, REVERTED, Kind
from tests.support.node.watched import OUTAGE_S, Watched, watched, watched_by_quorum

pytestmark = pytest.mark.slow  # a chain and three servers each

THOUSAND = "0x3e8"
Lie = tuple[str, Callable[[Any], Any], str]
"""The method, what is made of the truth, and the parameter that a question must have."""
LIARS: dict[str, Lie] = {
    **{method: (method, LIES[method], "") for method in MONEY},
    "block number": ("eth_blockNumber", LIES["eth_blockNumber"], ""),
    "pending nonce": ("eth_getTransactionCount", lambda _: THOUSAND, "pending"),
    "pending nonce of 0": ("eth_getTransactionCount", lambda _: "0x0", "pending"),
    "mined nonce": ("eth_getTransactionCount", lambda _: THOUSAND, ""),
    "estimate reverts": ("eth_estimateGas", lambda _: REVERTED, ""),
    "large estimate": ("eth_estimateGas", lambda _: "0xffffffffff", ""),
    "large tip": ("eth_maxPriorityFeePerGas", lambda _: hex(10**18), ""),
    "no tip": ("eth_maxPriorityFeePerGas", lambda _: "0x0", ""),
    "knows each transaction": ("eth_getTransactionByHash", lambda _: {"blockNumber": None}, ""),
    "knows none": ("eth_getTransactionByHash", lambda _: None, ""),
    "has no receipt": ("eth_getTransactionReceipt", lambda _: None, ""),
    "call reverts": ("eth_call", lambda _: REVERTED, ""),
}


def lie(made: Watched, told: Lie) -> None:
    method, made_up, about = told
    made.proxy.lies[method] = made_up
    made.proxy.lies_about = about
    made.proxy.faults = {method: Kind.LIES}


async def settled(made: Watched, rounds: int = 3, after_s: float = 61.0) -> bool:
    """Whether every channel is closed and every transaction final after some rounds."""
    for _ in range(rounds):
        await made.tick(after_s)
    closed = all(live.stored.state is ChannelState.CLOSED for live in made.channels)
    return closed and not made.settler.under_way


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("name", LIARS)
async def test_a_liar_of_three_in_any_place_holds_no_money_up(name: str, place: int) -> None:
    async with watched_by_quorum(3, 2, place=place) as made:
        await made.agree_to_close()
        lie(made, LIARS[name])
        assert await settled(made)
        assert made.board.stopping is None, "jobs go on"


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_a_node_of_three_that_says_nothing_holds_no_money_up(place: int) -> None:
    async with watched_by_quorum(3, 2, place=place) as made:
        await made.agree_to_close()
        made.proxy.faults = {"*": Kind.HANGS}
        assert await settled(made)
        assert made.codes == set(), "jobs go on"
        assert made.proxy.asked


# --- one node alone


async def test_a_nonce_that_nobody_of_ours_explains_is_a_fault_and_is_not_used() -> None:
    async with watched() as made:
        await made.agree_to_close()
        lie(made, LIARS["pending nonce"])
        await made.tick()
        assert not made.settler.under_way, "nothing is signed on top of it"
        assert made.codes == set(), "another program's transaction may be mined in a moment"
        await made.tick(OUTAGE_S)
        assert made.codes == made.shown() == {Code.KEY_SHARED.value}
        assert "1000 transactions of this key" in made.board.faults[0].line
        assert await settled(made), "claims do not wait for ever"
        made.proxy.faults = {}
        await made.tick()
        assert made.codes == set()


async def test_a_gap_that_one_node_made_heals_once_it_is_honest() -> None:
    async with watched() as made:
        await made.agree_to_close()
        lie(made, LIARS["mined nonce"])
        await made.tick()
        assert [stored.tx.nonce for stored in made.settler.under_way] == [1000]
        made.proxy.faults = {}
        assert await settled(made, rounds=5)


async def test_estimates_that_revert_are_a_fault_of_the_node() -> None:
    async with watched() as made:
        await made.agree_to_close()
        lie(made, LIARS["estimate reverts"])
        await made.tick()
        await made.tick(OUTAGE_S)
        assert made.codes == {Code.NODE_BROKEN.value, Code.TRANSACTIONS_REVERT.value}
        assert made.board.stopping is not None
        lines = [fault.line for fault in made.board.faults]
        assert any("close: the contract refused" in line for line in lines)
        made.proxy.faults = {}
        assert await settled(made)
        assert made.codes == set()
