"""Putting the contracts on a chain."""

from __future__ import annotations

from piecework.chain.artifacts import load_artifact
from piecework.chain.calls import Call, create
from piecework.chain.deployment import Deployment
from piecework.chain.errors import BadDeployment
from piecework.chain.fees import FeePolicy
from piecework.chain.limits import DEFAULT_POLL_S
from piecework.chain.rpc import HttpRpc, JsonRpc, web3_over
from piecework.chain.token import read_token
from piecework.chain.transactions import Mined, TransactionSender
from piecework_protocol.signing import Signer
from piecework_protocol.types import Address, Amount, Bytes32, Seconds, keccak256, to_hex

DEFAULT_MIN_STAKE = "100"
"""Tokens. An identity costs something, and a small operator can still join."""
DEFAULT_UNBONDING_DELAY_S = Seconds(7 * 24 * 3600)


async def deploy(
    rpc_url: str,
    deployer: Signer,
    *,
    min_stake: Amount | str = DEFAULT_MIN_STAKE,
    unbonding_delay_s: Seconds = DEFAULT_UNBONDING_DELAY_S,
    token: Address | None = None,
    fees: FeePolicy | None = None,
    poll_s: float = DEFAULT_POLL_S,
) -> Deployment:
    """Deploy TestToken (unless `token` is given), WorkerRegistry and Escrow; one transaction each.

    `min_stake` is an amount in base units, or a text with a number of tokens such as "100". The
    deployer gets no power over anything: the contracts have no owner.

    Raises:
        AmountError: `min_stake` is not an amount of this token.
        BadDeployment: the token has no decimals, or what arrived on the chain is not what was sent.
        ChainError: as `TransactionSender.execute`.
    """
    async with HttpRpc(rpc_url) as rpc:
        chain_id = await web3_over(rpc).eth.chain_id
        sender = TransactionSender(rpc, deployer, chain_id, fees=fees)
        if token is None:
            token, _ = await _create(sender, create("TestToken"), poll_s)
        money = await read_token(rpc, token)
        stake = Amount(money.parse(min_stake)) if isinstance(min_stake, str) else min_stake
        registry_call = create("WorkerRegistry", token, stake, unbonding_delay_s)
        registry, first = await _create(sender, registry_call, poll_s)
        escrow, _ = await _create(sender, create("Escrow"), poll_s)
        return Deployment(
            chain_id=chain_id,
            rpc_url=rpc_url,
            escrow=escrow,
            registry=registry,
            token=token,
            token_symbol=money.symbol,
            token_decimals=money.decimals,
            escrow_code_hash=await _code_hash(rpc, "Escrow", escrow),
            registry_code_hash=await _code_hash(rpc, "WorkerRegistry", registry),
            block=first.block,
        )


async def _create(sender: TransactionSender, call: Call, poll_s: float) -> tuple[Address, Mined]:
    tx = await sender.prepare(call, value_at_stake=None)
    await sender.broadcast(tx)
    mined = await sender.wait_mined(tx.hash, poll_s=poll_s)
    if not mined.success:
        raise await sender.explain(tx, mined)
    return tx.created, mined


async def _code_hash(rpc: JsonRpc, contract: str, address: Address) -> Bytes32:
    w3 = web3_over(rpc)
    code = bytes(await w3.eth.get_code(w3.to_checksum_address(address)))
    if not load_artifact(contract).matches(code):
        raise BadDeployment(
            f"the code at {to_hex(address)} is not the {contract} that was sent there"
        )
    return keccak256(code)
