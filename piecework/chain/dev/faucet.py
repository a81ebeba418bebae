"""Money for nothing, on development chains only."""

from __future__ import annotations

from piecework.chain.calls import mint, send_native
from piecework.chain.errors import WrongChain
from piecework.chain.limits import ANVIL_CHAIN_ID, DEFAULT_POLL_S, DEVELOPMENT_CHAIN_IDS
from piecework.chain.rpc import JsonRpc, web3_over
from piecework.chain.transactions import Mined, TransactionSender
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


async def faucet_signer(rpc: JsonRpc) -> LocalSigner:
    """The funded test key of this development chain; `WrongChain` on every other chain."""
    chain_id = await _development_chain(rpc)
    return LocalSigner(ANVIL_FAUCET_KEY if chain_id == ANVIL_CHAIN_ID else EMBEDDED_FAUCET_KEY)


async def fund_native(
    rpc: JsonRpc, faucet: AsyncSigner, to: Address, wei: int, *, poll_s: float = DEFAULT_POLL_S
) -> Mined:
    """Give `to` some of the chain's coin, for gas."""
    return await (await _sender(rpc, faucet)).execute(send_native(to, wei), poll_s=poll_s)


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
    return await (await _sender(rpc, faucet)).execute(mint(token, to, amount), poll_s=poll_s)


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


async def _sender(rpc: JsonRpc, faucet: AsyncSigner) -> TransactionSender:
    chain_id = await _development_chain(rpc)
    return TransactionSender(rpc, faucet, chain_id)


async def _development_chain(rpc: JsonRpc) -> int:
    chain_id = await web3_over(rpc).eth.chain_id
    if chain_id not in DEVELOPMENT_CHAIN_IDS:
        raise WrongChain(f"chain {chain_id} is no development chain: it has no faucet")
    return chain_id
