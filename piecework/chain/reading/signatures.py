"""Whether a payer signed: a plain key, or a smart account that is asked (ERC-1271).

As the escrow does it: the signature of a plain key first, then the account's own word if there is
code. Source: https://eips.ethereum.org/EIPS/eip-1271.
"""

from __future__ import annotations

from typing import Final

from piecework.chain.errors import BadAnswer, RpcRefused, TransactionReverted
from piecework.chain.nodes.rpc import JsonRpc, call_object, data_bytes
from piecework.chain.reading.presence import code_at
from piecework_protocol.errors import MalformedInput
from piecework_protocol.signing import recover
from piecework_protocol.types import MAX_PAYER_SIGNATURE_BYTES, Address, Bytes32

_SELECTOR: Final = bytes.fromhex("1626ba7e")
"""isValidSignature(bytes32,bytes), and what it returns for a good one."""
_GAS: Final = 1_000_000
"""A multiple of what a Safe with many owners uses. A stranger's code must not keep a node busy."""


async def signed_by_account(
    rpc: JsonRpc, account: Address, digest: Bytes32, signature: bytes, *, asker: Address
) -> bool:
    """Say whether `account` signed `digest`. `asker` is the contract that will ask it later.

    An account may answer otherwise later. So this is a reason to go on, and no promise: simulate
    the transaction before relying on it.

    Raises:
        RpcUnavailable: the node does not answer.
        RpcRefused: the node refuses the question for a reason of its own.
    """
    if len(signature) > MAX_PAYER_SIGNATURE_BYTES:
        return False
    if _by_key(account, digest, signature):
        return True
    if not await code_at(rpc, account):
        return False
    return await _accepts(rpc, account, digest, signature, asker)


def _by_key(account: Address, digest: Bytes32, signature: bytes) -> bool:
    try:
        return recover(digest, signature) == account
    except MalformedInput:
        return False


async def _accepts(
    rpc: JsonRpc, account: Address, digest: Bytes32, signature: bytes, asker: Address
) -> bool:
    from piecework.chain.contracts.codec import encode  # imports web3

    question = _SELECTOR + encode(("bytes32", "bytes"), (digest, signature))
    request = {**call_object(account, question, sender=asker), "gas": hex(_GAS)}
    try:
        answer = data_bytes(await rpc.call("eth_call", request, "latest"), "isValidSignature")
    except (TransactionReverted, BadAnswer):
        return False
    except RpcRefused as error:
        # How nodes say that the code ended abnormally. All other refusals are about the node.
        if any(word in error.message.lower() for word in ("gas", "opcode", "stack", "jump")):
            return False
        raise
    # As OpenZeppelin's SignatureChecker: a whole word, equal to the selector and zeros.
    return answer[:32] == _SELECTOR + bytes(28) and len(answer) >= 32
