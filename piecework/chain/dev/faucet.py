"""Money for nothing, on development chains only."""

from __future__ import annotations

import contextlib

from piecework.chain.contracts.calls import Call, mint, send_native
from piecework.chain.errors import FeeTooLow, NonceTaken, WrongChain
from piecework.chain.limits import ANVIL_CHAIN_ID, DEFAULT_POLL_S, DEVELOPMENT_CHAIN_IDS
from piecework.chain.nodes.rpc import JsonRpc, web3_over
from piecework.chain.sending.transactions import Mined, TransactionSender
from piecework_protocol.signing import AsyncSigner, LocalSigner
from piecework_protocol.types import Address, Amount, keccak256

EMBEDDED_FAUCET_KEY = keccak256(
    b"piecework embedded chain faucet: a test key, never for real money"
)
"""Published in the source on purpose. Whatever it holds on a real chain belongs to everybody."""
ANVIL_FAUCET_KEY = bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")
"""The first account of the mnemonic that every development tool ships ("test test ... junk")."""

GIFT_WEI = 10**18
"""One coin: gas for thousands of transactions."""
_GIFT_ATTEMPTS = 32
"""As many programs may ask at the same moment: of those that take one nonce, one succeeds."""


async def faucet_signer(rpc: JsonRpc) -> LocalSigner:
    """The funded test key of this development chain; `WrongChain` on every other chain."""
    chain_id = await _development_chain(rpc)
    return LocalSigner(ANVIL_FAUCET_KEY if chain_id == ANVIL_CHAIN_ID else EMBEDDED_FAUCET_KEY)


async def fund_native(
    rpc: JsonRpc, faucet: AsyncSigner, to: Address, wei: int, *, poll_s: float = DEFAULT_POLL_S
) -> Mined:
    """Give `to` some of the chain's coin, for gas."""
    return await _give(rpc, faucet, send_native(to, wei), poll_s)


async def mint_tokens(
    rpc: JsonRpc,
    faucet: AsyncSigner,
    token: Address,
    to: Address,
    amount: Amount,
    *,
    poll_s: float = DEFAULT_POLL_S,
) -> Mined:
    """Make test tokens for `to`; the token must be the TestToken."""
    return await _give(rpc, faucet, mint(token, to, amount), poll_s)


async def take_from_faucet(
    rpc: JsonRpc, token: Address, to: Address, amount: Amount, *, poll_s: float = DEFAULT_POLL_S
) -> None:
    """Give `to` one coin for gas, and `amount` base units of the test token if that is not 0.

    Raises:
        WrongChain: this is not a development chain.
    """
    faucet = await faucet_signer(rpc)
    await fund_native(rpc, faucet, to, GIFT_WEI, poll_s=poll_s)
    if amount:
        await mint_tokens(rpc, faucet, token, to, amount, poll_s=poll_s)


async def _give(rpc: JsonRpc, faucet: AsyncSigner, call: Call, poll_s: float) -> Mined:
    """Carry a call out. Everybody uses this key, so another program may take the nonce first."""
    sender = TransactionSender(rpc, faucet, await _development_chain(rpc))
    for _ in range(_GIFT_ATTEMPTS - 1):
        # A node refuses the second transaction of a nonce: one that is mined is used, one that
        # waits is only replaced for more money. Neither refused one can be carried out later.
        with contextlib.suppress(NonceTaken, FeeTooLow):
            return await sender.execute(call, poll_s=poll_s)
    return await sender.execute(call, poll_s=poll_s)


async def _development_chain(rpc: JsonRpc) -> int:
    chain_id = await web3_over(rpc).eth.chain_id
    if chain_id not in DEVELOPMENT_CHAIN_IDS:
        raise WrongChain(f"chain {chain_id} is not a development chain: it has no faucet")
    return chain_id
