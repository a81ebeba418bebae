"""web3 over a `JsonRpc`: methods and formatters are web3's; wire, bounds, retries and errors stay
ours.

web3 takes most of a second to import. Only `chain.rpc.web3_over` imports this module, when it is
first asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from web3 import AsyncWeb3
from web3.providers.async_base import AsyncJSONBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from piecework.chain.nodes.rpc import JsonRpc, data_bytes, hash_of, quantity

# web3's formatters let through what is not of the method's type (null, "-1", true, an object):
# these do not.
_SHAPES: Mapping[str, tuple[Callable[[Any, str], object], str]] = {
    "eth_blockNumber": (quantity, "the block number"),
    "eth_call": (data_bytes, "a call"),
    "eth_chainId": (quantity, "the chain id"),
    "eth_getBalance": (quantity, "a balance"),
    "eth_getCode": (data_bytes, "code"),
    "eth_getTransactionCount": (quantity, "a transaction count"),
    "eth_maxPriorityFeePerGas": (quantity, "the priority fee"),
    "eth_sendRawTransaction": (hash_of, "a transaction hash"),
}


class RpcProvider(AsyncJSONBaseProvider):
    """Answers web3 out of a `JsonRpc`.

    Failures leave as the `JsonRpc`'s own exceptions, which web3 passes on as they are: it never
    sees an error answer, so that it can neither reword one nor act on one.
    """

    # EIP-3668: a contract's revert could send us to any address on the network.
    global_ccip_read_enabled = False

    def __init__(self, rpc: JsonRpc) -> None:
        super().__init__()
        self._rpc = rpc

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """Raises what `JsonRpc.call` does, and `BadAnswer` for a result that is not of the method's
        type."""
        result = await self._rpc.call(method, *params)
        if method in _SHAPES:
            check, what = _SHAPES[method]
            check(result, what)
        return RPCResponse(jsonrpc="2.0", id=next(self.request_counter), result=result)

    async def disconnect(self) -> None:
        await self._rpc.close()


def over(rpc: JsonRpc) -> AsyncWeb3[RpcProvider]:
    """web3 without its middleware: nothing resolves names, pads gas or picks fees behind our
    back."""
    return AsyncWeb3(RpcProvider(rpc), middleware=[])
