"""What a unit of gas costs now, from any node that has a way to say it."""

from __future__ import annotations

from typing import Any, Final

from piecework.chain.errors import BadAnswer, RpcRefused
from piecework.chain.limits import TIP_FLOOR_WEI
from piecework.chain.nodes.rpc import JsonRpc, member, quantity
from piecework.chain.sending.fees import FeeMarket

_HISTORY_BLOCKS: Final = "0x5"
_PERCENTILE: Final = 50


async def fee_market(rpc: JsonRpc) -> FeeMarket:
    """Return base fee and tip for the next block, in wei per gas.

    The tip is that of `eth_maxPriorityFeePerGas`, else the median of `eth_feeHistory`, else what
    `eth_gasPrice` has above the base fee, else `TIP_FLOOR_WEI`.

    Raises:
        ChainError: the node does not answer, or its latest block has no base fee.
    """
    block = await rpc.call("eth_getBlockByNumber", "latest", False)
    base_fee = quantity(member(block, "baseFeePerGas", "the latest block"), "the base fee")
    return FeeMarket(base_fee, await _tip(rpc, base_fee))


async def _tip(rpc: JsonRpc, base_fee: int) -> int:
    try:
        return quantity(await rpc.call("eth_maxPriorityFeePerGas"), "the priority fee")
    except RpcRefused:
        pass
    try:
        return _median_reward(
            await rpc.call("eth_feeHistory", _HISTORY_BLOCKS, "latest", [_PERCENTILE])
        )
    except (RpcRefused, BadAnswer):
        pass
    try:
        price = quantity(await rpc.call("eth_gasPrice"), "the gas price")
    except (RpcRefused, BadAnswer):
        return TIP_FLOOR_WEI
    return max(price - base_fee, TIP_FLOOR_WEI)


def _median_reward(history: Any) -> int:
    """The median of what the last blocks paid. Blocks without a transaction say nothing."""
    rows = member(history, "reward", "the fee history")
    if not isinstance(rows, list):
        raise BadAnswer("the node returned no list of rewards")
    paid = sorted(
        reward
        for row in rows
        if isinstance(row, list) and row
        if (reward := quantity(row[0], "a reward"))
    )
    if not paid:
        raise BadAnswer("the node's fee history holds no rewards")
    return max(paid[len(paid) // 2], TIP_FLOOR_WEI)
