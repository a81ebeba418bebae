"""When a block is final."""

from __future__ import annotations

from dataclasses import dataclass

from piecework.chain.errors import NoFinality, RpcRefused
from piecework.chain.nodes.rpc import JsonRpc, member, quantity


@dataclass(frozen=True, slots=True)
class Finality:
    """By the node's "finalized" tag (`depth` None), or by `depth` blocks on top."""

    depth: int | None = None


FINALIZED = Finality()
"""The node's own word. The only right choice on a chain that has the tag."""


def at_depth(blocks: int) -> Finality:
    """For chains whose nodes do not know the tag: a block with `blocks` blocks above it counts as
    final."""
    return Finality(blocks)


async def finalized_height(rpc: JsonRpc, finality: Finality) -> int:
    """The height up to which blocks are final; 0 on a young chain. `NoFinality` without the tag."""
    if finality.depth is not None:
        head = quantity(await rpc.call("eth_blockNumber"), "the block number")
        return max(0, head - finality.depth)
    try:
        raw = await rpc.call("eth_getBlockByNumber", "finalized", False)
    except RpcRefused as error:
        raise NoFinality(
            f'the node does not answer for the "finalized" block ({error.message}). '
            "Set finality to a number of blocks for this chain."
        ) from error
    return (
        0 if raw is None else quantity(member(raw, "number", "the finalized block"), "its number")
    )
