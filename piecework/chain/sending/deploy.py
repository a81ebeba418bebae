"""Putting the contracts on a chain.

A chain has one escrow, and one registry for each choice of token and terms. What is there already
is used: nobody can put other code at these addresses.
"""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlsplit

from piecework.base.hosts import LOOPBACK
from piecework.chain.addresses import (
    FACTORY,
    FACTORY_CREATOR,
    FACTORY_GAS_WEI,
    FACTORY_TRANSACTION,
    DisputeTerms,
    disputes_init_code,
    escrow_init_code,
    registry_init_code,
    require_create2,
    verifier_init_code,
)
from piecework.chain.contracts.calls import create, create_by_factory, send_native
from piecework.chain.deployment import Deployment
from piecework.chain.errors import BadDeployment, RpcRefused, TransactionReverted
from piecework.chain.limits import (
    DEFAULT_POLL_S,
    DEVELOPMENT_CHAIN_IDS,
    MAX_UNBONDING_DELAY_S,
    MIN_UNBONDING_DELAY_S,
)
from piecework.chain.nodes.rpc import HttpRpc, JsonRpc, quantity, web3_over
from piecework.chain.reading.presence import Presence, code_at, presence_of, presence_of_factory
from piecework.chain.reading.token import read_token
from piecework.chain.sending.fees import FeePolicy
from piecework.chain.sending.transactions import TransactionSender
from piecework_protocol.signing import AsyncSigner
from piecework_protocol.types import Address, Amount, Bytes32, Seconds, keccak256, to_hex

DEFAULT_MIN_STAKE = "100"
"""Tokens. An identity costs something, and a small operator can still join."""
DEFAULT_UNBONDING_DELAY_S = Seconds(MIN_UNBONDING_DELAY_S)


async def deploy(
    rpc_url: str,
    deployer: AsyncSigner,
    *,
    min_stake: Amount | str = DEFAULT_MIN_STAKE,
    unbonding_delay_s: Seconds = DEFAULT_UNBONDING_DELAY_S,
    token: Address | None = None,
    disputes: DisputeTerms | None = None,
    fees: FeePolicy | None = None,
    poll_s: float = DEFAULT_POLL_S,
) -> Deployment:
    """Make sure that a chain has the factory, the escrow and the registry of these terms.

    Without `token` it creates a TestToken. `min_stake` is an amount in base units, or a text with a
    number of tokens such as "100". With `disputes` it also creates the verifier of evidence and the
    dispute contract, which creates the registry. The deployer gets no power over anything: the
    contracts have no owner. The file names the node only if both are on this machine: a
    development chain.

    Raises:
        AmountError: `min_stake` is not an amount of this token.
        WrongChain: the chain computes CREATE2 addresses in another way.
        BadDeployment: the terms are out of range, the token has no decimals, the factory cannot be
            created, or what is on the chain is not what belongs there.
        ChainError: as `TransactionSender.execute`.
    """
    _require_terms(unbonding_delay_s)
    async with HttpRpc(rpc_url) as rpc:
        chain_id = await web3_over(rpc).eth.chain_id
        require_create2(chain_id)
        sender = TransactionSender(rpc, deployer, chain_id, fees=fees)
        await _require_factory(sender, poll_s)
        if token is None:
            token = await _create_test_token(sender, poll_s)
        money = await read_token(rpc, token)
        stake = Amount(money.parse(min_stake)) if isinstance(min_stake, str) else min_stake
        local = chain_id in DEVELOPMENT_CHAIN_IDS and urlsplit(rpc_url).hostname in LOOPBACK
        made = Deployment(
            chain_id=chain_id,
            token=token,
            token_symbol=money.symbol,
            token_decimals=money.decimals,
            min_stake=stake,
            unbonding_delay_s=unbonding_delay_s,
            rpc_url=rpc_url if local else None,
            disputes=disputes,
        )
        Deployment.from_json(made.to_json())  # what nobody could read is not made
        for contract, address, code in _contracts(made):
            await _ensure(sender, contract, address, code, poll_s)
        return replace(made, from_block=await block_of_creation(rpc, made.escrow))


def _contracts(made: Deployment) -> list[tuple[str, Address, bytes]]:
    """The contracts that the factory creates, in their order."""
    contracts = [("Escrow", made.escrow, escrow_init_code())]
    if made.disputes is None or made.disputes_contract is None:
        code = registry_init_code(made.token, made.min_stake, made.unbonding_delay_s)
        return [*contracts, ("WorkerRegistry", made.registry, code)]
    code = disputes_init_code(made.stake_terms, made.disputes)
    return [
        *contracts,
        ("EvidenceVerifier", made.verifier, verifier_init_code()),
        ("Disputes", made.disputes_contract, code),
    ]


async def block_of_creation(rpc: JsonRpc, address: Address) -> int | None:
    """The block in which the code at an address appeared; None if the node keeps no old states.

    It asks for the code at about log2(height) blocks.
    """
    low, high = 0, quantity(await rpc.call("eth_blockNumber"), "the block number")
    try:
        while low < high:
            middle = (low + high) // 2
            if await code_at(rpc, address, hex(middle)):
                high = middle
            else:
                low = middle + 1
    except RpcRefused:
        return None
    return high


def _require_terms(unbonding_delay_s: int) -> None:
    if not MIN_UNBONDING_DELAY_S <= unbonding_delay_s <= MAX_UNBONDING_DELAY_S:
        day = 24 * 3600
        raise BadDeployment(
            f"the unbonding delay is {MIN_UNBONDING_DELAY_S // day} to "
            f"{MAX_UNBONDING_DELAY_S // day} days: a dispute has to end before a stake is free"
        )


async def _require_factory(sender: TransactionSender, poll_s: float) -> None:
    if await presence_of_factory(sender.rpc) is Presence.NOTHING:
        await _create_factory(sender, poll_s)
    if await presence_of_factory(sender.rpc) is not Presence.OURS:
        raise BadDeployment(
            f"the code at {to_hex(FACTORY)} is not the CREATE2 factory's. "
            "Piecework cannot be deployed on this chain"
        )


async def _create_factory(sender: TransactionSender, poll_s: float) -> None:
    """Pay the factory's creator for its one transaction, and send that."""
    rpc = sender.rpc
    creator = to_hex(FACTORY_CREATOR)
    if quantity(await rpc.call("eth_getTransactionCount", creator, "latest"), "a nonce"):
        raise BadDeployment(
            f"this chain has no CREATE2 factory at {to_hex(FACTORY)}, and the transaction that "
            "creates it was used up there without effect. Ask the people who run the chain to add "
            "the factory"
        )
    held = quantity(await rpc.call("eth_getBalance", creator, "latest"), "a balance")
    if held < FACTORY_GAS_WEI:
        await sender.execute(send_native(FACTORY_CREATOR, FACTORY_GAS_WEI - held), poll_s=poll_s)
    try:
        await rpc.call("eth_sendRawTransaction", "0x" + FACTORY_TRANSACTION.hex())
    except RpcRefused as error:
        raise BadDeployment(
            f"this chain has no CREATE2 factory at {to_hex(FACTORY)}, and its node refuses the "
            f"transaction that creates it: {error.message}. The transaction names no "
            "chain id. Send it through a node that takes such a transaction, or ask the people who "
            f"run the chain to add the factory. {creator} holds the coins for its gas. The bytes: "
            f"0x{FACTORY_TRANSACTION.hex()}"
        ) from error
    mined = await sender.wait_mined(Bytes32(keccak256(FACTORY_TRANSACTION)), poll_s=poll_s)
    if not mined.success:
        raise BadDeployment(
            f"the transaction that creates the CREATE2 factory at {to_hex(FACTORY)} failed. This "
            "chain prices gas in its own way. Ask the people who run it to add the factory"
        )


async def _create_test_token(sender: TransactionSender, poll_s: float) -> Address:
    tx = await sender.prepare(create("TestToken"), value_at_stake=None)
    await sender.broadcast(tx)
    mined = await sender.wait_mined(tx.hash, poll_s=poll_s)
    if not mined.success:
        raise await sender.explain(tx, mined)
    return tx.created


async def _ensure(
    sender: TransactionSender, contract: str, address: Address, init_code: bytes, poll_s: float
) -> None:
    """Create a contract unless it is there, and look at what is there."""
    if await presence_of(sender.rpc, contract, address) is Presence.NOTHING:
        try:
            await sender.execute(create_by_factory(contract, init_code), poll_s=poll_s)
        except TransactionReverted:
            if await presence_of(sender.rpc, contract, address) is Presence.NOTHING:
                raise  # else somebody else was faster
    if await presence_of(sender.rpc, contract, address) is not Presence.OURS:
        raise BadDeployment(
            f"the code at {to_hex(address)} is not the {contract} that belongs there. "
            "This chain does not run Ethereum's CREATE2, or its node lies"
        )
