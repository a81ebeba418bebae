"""What a token contract says of itself: decimals and symbol.

ERC-20 makes both optional. A market needs decimals, or no amount could be shown or typed. Some old
tokens give their symbol as 32 bytes instead of a string.
"""

from __future__ import annotations

from piecework.base.amounts import MAX_DECIMALS, Token
from piecework.chain.contracts.abi import decode_values, interface
from piecework.chain.errors import BadAnswer, BadDeployment, RpcRefused, TransactionReverted
from piecework.chain.nodes.rpc import JsonRpc, web3_over
from piecework_protocol.types import Address, to_hex

_ABSENT = (BadAnswer, RpcRefused, TransactionReverted)
"""What a node answers when a contract lacks a function."""


async def read_token(rpc: JsonRpc, address: Address) -> Token:
    """Read a token's decimals and symbol.

    Raises:
        BadDeployment: there is no contract, or it does not say how many decimals it has.
        RpcUnavailable: the node does not answer.
    """
    if not await web3_over(rpc).eth.get_code(web3_over(rpc).to_checksum_address(address)):
        raise BadDeployment(f"there is no token contract at {to_hex(address)} on this chain")
    try:
        data = await _call(rpc, address, "decimals")
        (decimals,) = decode_values(("uint256",), data, "decimals")
    except _ABSENT:
        raise BadDeployment(
            f"the contract at {to_hex(address)} does not say how many decimals it has, "
            "so it cannot be a market's token"
        ) from None
    if decimals > MAX_DECIMALS:
        raise BadDeployment(f"the token {to_hex(address)} has {decimals} decimals")
    return Token(bytes(address), await _symbol(rpc, address), decimals)


async def _symbol(rpc: JsonRpc, address: Address) -> str:
    try:
        data = await _call(rpc, address, "symbol")
    except _ABSENT:
        return ""
    if len(data) == 32:
        return data.rstrip(b"\0").decode(errors="replace")
    try:
        return str(interface("TestToken").decode("symbol", data)[0])
    except BadAnswer:
        return ""


async def _call(rpc: JsonRpc, address: Address, name: str) -> bytes:
    w3 = web3_over(rpc)
    data = interface("TestToken").encode(name, ())
    return bytes(await w3.eth.call({"to": w3.to_checksum_address(address), "data": data}))
