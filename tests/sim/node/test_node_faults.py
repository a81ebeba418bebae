"""How a chain node fails, kind by kind and method by method, and what the worker makes of it.

Each cell of the table names the codes. The code gives the rest: what stops (`CONDITIONS`), the
metric (`piecework_fault` with this code), and that one round after the node works again clears it.
"""

from __future__ import annotations

import pytest

from piecework_node.runtime.faults import CONDITIONS, Code, Stops
from tests.support.chain.node_proxy import Kind
from tests.support.node.watched import (
    IMPATIENT_RPC_S,
    OUTAGE_S,
    PATIENT_RPC_S,
    Watched,
    watched,
    watched_by_quorum,
)

pytestmark = pytest.mark.slow  # two hundred small cells

READS = (
    "eth_chainId",
    "eth_getCode",
    "eth_call",
    "eth_getBlockByNumber",
    "eth_getLogs",
    "eth_getBalance",
    "eth_maxPriorityFeePerGas",
    "eth_getTransactionCount",
    "eth_estimateGas",
    "eth_getTransactionReceipt",
    "eth_getTransactionByHash",
)
SEND = "eth_sendRawTransaction"
METHODS = (*READS, SEND)
FINE: frozenset[Code] = frozenset()
AWAY, LIMITED = frozenset({Code.NODE_AWAY}), frozenset({Code.NODE_LIMITED})
BROKEN, REFUSES = frozenset({Code.NODE_BROKEN}), frozenset({Code.NODE_REFUSES})
INCOMPLETE, LOGS = frozenset({Code.NODE_INCOMPLETE}), frozenset({Code.LOGS_REFUSED})
WRONG = frozenset({Code.WRONG_CHAIN})

# By kind: what it means for most methods, and the methods for which it means something else.
TABLE: dict[Kind, tuple[frozenset[Code], dict[str, frozenset[Code]]]] = {
    Kind.HANGS: (AWAY, {}),
    Kind.DROPS: (AWAY, {}),
    Kind.HTTP_500: (AWAY, {}),
    Kind.HTTP_429: (LIMITED, {}),
    Kind.LIMITED: (LIMITED, {}),
    Kind.MISSING: (
        INCOMPLETE,
        {
            "eth_getBlockByNumber": INCOMPLETE | {Code.NO_FINALITY},
            "eth_getLogs": LOGS,
            "eth_maxPriorityFeePerGas": FINE,  # eth_feeHistory says it
        },
    ),
    Kind.REFUSES: (
        REFUSES,
        {
            "eth_getBlockByNumber": REFUSES | {Code.NO_FINALITY},
            "eth_getLogs": LOGS,
            "eth_maxPriorityFeePerGas": FINE,
        },
    ),
    Kind.GARBAGE: (BROKEN, {}),
    Kind.NEITHER: (BROKEN, {}),
    Kind.NULL: (
        BROKEN,
        # There it means that the node has none, which is true of the hash that is asked for.
        {"eth_getTransactionReceipt": FINE, "eth_getTransactionByHash": FINE},
    ),
    Kind.WRONG_TYPE: (BROKEN, {}),
    Kind.STALE: (FINE, {"eth_getBlockByNumber": frozenset({Code.HEAD_OLD}), SEND: BROKEN}),
    Kind.LIES: (
        # One node that lies plausibly cannot be told from an honest one: see MONEY below.
        FINE,
        {
            "eth_chainId": WRONG,
            "eth_getCode": WRONG,
            "eth_call": WRONG,
            "eth_getBlockByNumber": frozenset({Code.CLOCK_BEHIND}),
            "eth_getBalance": frozenset({Code.GAS_LOW}),
            "eth_getTransactionReceipt": BROKEN,
            "eth_getTransactionByHash": BROKEN,
            "eth_getLogs": BROKEN,
            SEND: BROKEN,
        },
    ),
    Kind.HUGE: (BROKEN, {"eth_getLogs": LOGS}),
    Kind.WRONG_ID: (BROKEN, {SEND: FINE}),  # the transaction arrived, and the next round sees it
    Kind.TRICKLES: (FINE, {}),
}
CELLS = [(kind, method) for kind in TABLE for method in METHODS]


def expected(kind: Kind, method: str) -> set[str]:
    usual, others = TABLE[kind]
    return {code.value for code in others.get(method, usual)}


async def hold_to(made: Watched, codes: set[str]) -> None:
    """The board, the metric and what is stopped say the same."""
    assert made.codes == codes, made.board.faults
    assert made.shown() == codes
    stopped = any(CONDITIONS[Code(code)].stops is not Stops.NOTHING for code in codes)
    assert (made.board.stopping is not None) == stopped
    signing = all(CONDITIONS[Code(code)].stops is not Stops.SIGNING for code in codes)
    assert made.board.may_sign == signing


def test_the_table_has_every_kind_and_enough_methods() -> None:
    assert set(TABLE) == set(Kind) and len(TABLE) >= 12
    assert len(METHODS) >= 9
    assert all(method in METHODS for _, others in TABLE.values() for method in others)


@pytest.mark.parametrize(
    ("kind", "method"), CELLS, ids=[f"{k.name.lower()}-{m.removeprefix('eth_')}" for k, m in CELLS]
)
async def test_a_fault_of_the_node_has_its_code_and_ends_with_a_good_check(
    kind: Kind, method: str
) -> None:
    codes = expected(kind, method)
    patient = {code for code in codes if CONDITIONS[Code(code)].patient}
    async with watched(IMPATIENT_RPC_S if kind is Kind.HANGS else PATIENT_RPC_S) as made:
        if method == SEND:
            await made.agree_to_close()
        made.proxy.faults = {method: kind}
        await made.tick()
        await hold_to(made, codes - patient)
        await made.tick(OUTAGE_S)
        await hold_to(made, codes)
        made.proxy.faults = {}
        await made.tick()
        await hold_to(made, set())
        if method == SEND:
            assert await closes(made), "what was journaled reaches the chain in the end"


MONEY = (
    "eth_chainId",
    "eth_getCode",
    "eth_call",
    "eth_getBlockByNumber",
    "eth_getLogs",
    "eth_getBalance",
    "eth_getTransactionReceipt",
    "eth_estimateGas",
    "eth_sendRawTransaction",
)


@pytest.mark.parametrize("method", MONEY)
async def test_one_lying_node_of_three_is_named_and_jobs_go_on(method: str) -> None:
    async with watched_by_quorum(3, 2) as made:
        made.proxy.faults = {method: Kind.LIES}
        await made.tick()
        await hold_to(made, {"node-odd"})
        assert f"number 3 ({method})" in made.board.faults[0].line
        made.proxy.faults = {}
        await made.tick()
        await hold_to(made, set())


@pytest.mark.parametrize("method", [m for m in MONEY if m != SEND])  # one that takes it is enough
async def test_one_lying_node_of_two_stops_everything(method: str) -> None:
    async with watched_by_quorum(2, 2) as made:
        await made.agree_to_close()
        made.proxy.faults = {method: Kind.LIES}
        await made.tick()
        assert "nodes-disagree" in made.codes and not made.board.may_sign
        assert not made.settler.under_way, "nothing is signed"
        made.proxy.faults = {}
        await made.tick()
        await hold_to(made, set())
        assert made.settler.under_way


async def closes(made: Watched) -> bool:
    """Whether every transaction is final after a few rounds."""
    for _ in range(3):
        await made.tick()
    return not made.settler.under_way
