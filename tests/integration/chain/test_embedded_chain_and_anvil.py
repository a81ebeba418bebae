"""The embedded chain beside anvil, a living EVM: the same transactions make the same blocks.

Each test fills an embedded chain and repeats its blocks on an anvil of the same chain id, genesis
time and base fee. The state root, the block hash and the random value differ: the genesis of anvil
holds more accounts, and each chain draws its own random values.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import rlp  # type: ignore[import-untyped]

from piecework.chain.contracts import calls
from piecework.chain.contracts.authorizations import Permit, sign_permit
from piecework.chain.contracts.packing import settle_packed
from piecework.chain.dev.anvil import Anvil
from piecework.chain.dev.embedded import EmbeddedChain
from piecework.chain.errors import TransactionReverted
from piecework.chain.limits import EMBEDDED_BLOCK_GAS, EMBEDDED_CHAIN_ID
from piecework.chain.nodes.rpc import HttpRpc
from piecework.chain.sending.fees import Fees
from piecework.chain.sending.rawtx import UnsignedTransaction
from piecework_protocol.objects import Registration
from piecework_protocol.types import Address, Amount, Timestamp, Uint64, Uint256, keccak256, to_hex
from tests.support.chain.chains import (
    ETHER,
    MIN_STAKE,
    UNBONDING_DELAY_S,
    USD,
    TestMarket,
    cancel_of,
    channel_of,
    claim_of,
    close_of,
    deployed,
    request_of,
    require_anvil,
    signer,
)

PAYER, WORKER, COLD, STRANGER = (signer(n) for n in ("payer", "worker", "cold", "stranger"))
GENESIS_S = 1_800_000_000
SAME_IN_A_BLOCK = (
    "number",
    "timestamp",
    "baseFeePerGas",
    "gasLimit",
    "gasUsed",
    "logsBloom",
    "transactions",
    "transactionsRoot",
    "receiptsRoot",
)
SAME_IN_A_RECEIPT = (
    "type",
    "status",
    "transactionHash",
    "transactionIndex",
    "blockNumber",
    "from",
    "to",
    "contractAddress",
    "gasUsed",
    "cumulativeGasUsed",
    "effectiveGasPrice",
    "logsBloom",
)
SAME_IN_A_LOG = (
    "address",
    "topics",
    "data",
    "blockNumber",
    "transactionHash",
    "logIndex",
    "removed",
)


class TickingClock:
    """A clock that moves one second each time it is read, so that no two blocks have one time."""

    def __init__(self) -> None:
        self.now = GENESIS_S - 1

    def __call__(self) -> int:
        self.now += 1
        return self.now


@asynccontextmanager
async def embedded() -> AsyncIterator[TestMarket]:
    """Our contracts on an embedded chain whose block times grow."""
    async with EmbeddedChain(TickingClock()) as chain, deployed(chain) as market:
        yield market


@asynccontextmanager
async def twin_of(market: TestMarket) -> AsyncIterator[HttpRpc]:
    """An anvil that has repeated every block of the embedded chain."""
    require_anvil()
    genesis = await market.rpc.call("eth_getBlockByNumber", "0x0", False)
    first = await market.rpc.call("eth_getBlockByNumber", "0x1", False)
    arguments = ("--accounts", "0", "--timestamp", str(int(genesis["timestamp"], 16)))
    fees = ("--block-base-fee-per-gas", str(int(first["baseFeePerGas"], 16)))
    gas = ("--gas-limit", str(EMBEDDED_BLOCK_GAS))
    async with (
        Anvil((*arguments, *fees, *gas), chain_id=EMBEDDED_CHAIN_ID) as chain,
        HttpRpc(chain.url) as twin,
    ):
        faucet = to_hex(market.chain.faucet.address)
        coins = await market.rpc.call("eth_getBalance", faucet, "0x0")
        await twin.call("anvil_setBalance", faucet, coins)
        for number in range(1, await market.reader.latest_block() + 1):
            block = await market.rpc.call("eth_getBlockByNumber", hex(number), True)
            await twin.call("evm_setNextBlockTimestamp", int(block["timestamp"], 16))
            for tx in block["transactions"]:
                # This answers once the transaction is mined: the next one gets another block.
                await twin.call("eth_sendRawTransactionSync", to_hex(raw_of(tx)))
            if not block["transactions"]:
                await twin.call("evm_mine")
        yield twin


def raw_of(tx: dict[str, Any]) -> bytes:
    """The signed bytes of a type-2 transaction out of its JSON."""
    fields = ("chainId", "nonce", "maxPriorityFeePerGas", "maxFeePerGas", "gas", "value")
    chain_id, nonce, tip, highest, gas, value = (int(tx[field], 16) for field in fields)
    to = Address(bytes.fromhex(tx["to"][2:])) if tx["to"] else None
    data = bytes.fromhex(tx["input"][2:])
    unsigned = UnsignedTransaction(chain_id, nonce, Fees(highest, tip), gas, to, value, data)
    numbers = (int(tx[field], 16) for field in ("yParity", "r", "s"))
    signature = [n.to_bytes((n.bit_length() + 7) // 8, "big") for n in numbers]
    raw: bytes = b"\x02" + rlp.encode([*unsigned.members(), *signature])
    assert to_hex(keccak256(raw)) == tx["hash"]
    return raw


def part(source: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Some members, in small letters: anvil does not write the checksum into an address."""
    members = {name: source.get(name) for name in names}
    return {name: m.lower() if isinstance(m, str) else m for name, m in members.items()}


async def assert_same_blocks(market: TestMarket, twin: HttpRpc) -> None:
    """Blocks, receipts and logs of both chains are the same."""
    for number in range(1, await market.reader.latest_block() + 1):
        ours, theirs = [
            await rpc.call("eth_getBlockByNumber", hex(number), False) for rpc in (market.rpc, twin)
        ]
        for tx_hash in ours["transactions"]:
            question = ("eth_getTransactionReceipt", tx_hash)
            receipts = [await rpc.call(*question) for rpc in (market.rpc, twin)]
            mine, other = (part(r, SAME_IN_A_RECEIPT) for r in receipts)
            assert mine == other
            logs, other_logs = ([part(log, SAME_IN_A_LOG) for log in r["logs"]] for r in receipts)
            assert logs == other_logs
        assert part(ours, SAME_IN_A_BLOCK) == part(theirs, SAME_IN_A_BLOCK)


async def send_as_it_is(market: TestMarket, call: calls.Call, gas: int) -> dict[str, Any]:
    """Mine a call of the faucet without an estimate, which would stop one that fails.

    Returns its receipt.
    """
    key = market.chain.faucet
    nonce = int(await market.rpc.call("eth_getTransactionCount", to_hex(key.address)), 16)
    fees = Fees(10**11, 10**9)
    tx = UnsignedTransaction(
        EMBEDDED_CHAIN_ID, nonce, fees, gas, call.to, call.value, call.data
    ).sign(key)
    await market.rpc.call("eth_sendRawTransaction", to_hex(tx.raw))
    receipt: dict[str, Any] = await market.rpc.call("eth_getTransactionReceipt", to_hex(tx.hash))
    return receipt


async def pay_through_channels(market: TestMarket) -> None:
    """A payer's life: deposits, channels, settlements, closing, withdrawing."""
    d, reader, domain = market.deployment, market.reader, market.reader.domain
    await market.give(WORKER.address, wei=ETHER)
    await market.give(PAYER.address, wei=ETHER, tokens=9 * USD)
    await market.pool(PAYER, WORKER, 20 * USD)
    deadline = Timestamp(await reader.timestamp() + 10_000)
    nonce = await reader.permit_nonce(market.token, PAYER.address)
    allowance = Permit(PAYER.address, d.escrow, Uint256(2 * USD), nonce, Uint256(deadline))
    permit = sign_permit(await reader.token_domain(market.token), allowance, PAYER)
    await market.run(WORKER, calls.deposit_with_permit(d, permit))
    for call in calls.approve_and_deposit(d, market.token, Amount(3 * USD), PAYER.address):
        await market.run(PAYER, call)
    channels = [channel_of(market, PAYER, WORKER, salt=salt) for salt in range(12)]
    for channel in channels:
        await market.open_channel(PAYER, WORKER, channel, USD)
    await market.open_channel(PAYER, WORKER, channels[0], 2 * USD)
    for share in (100_000, 300_000):
        claims = [claim_of(domain, c, PAYER, share + i) for i, c in enumerate(channels)]
        claims[3] = claim_of(domain, channels[3], STRANGER, share)
        await market.run(WORKER, calls.settle(d, claims))
    last = claim_of(domain, channels[0], PAYER, 500_000)
    await market.run(WORKER, close_of(market, last, WORKER, PAYER, fee=20_000))
    packed = [claim_of(domain, c, PAYER, 400_000) for c in channels[1:]]
    await market.run(WORKER, settle_packed(d, packed))
    await market.run(WORKER, request_of(market, channels[1], PAYER, Amount(100_000)))
    await market.run(WORKER, cancel_of(market, channels[1], PAYER))
    await market.run(WORKER, request_of(market, channels[1], PAYER, nonce=1))
    await market.pass_time(channels[1].withdrawal_delay)
    await market.run(WORKER, calls.withdraw(d, channels[1]))
    await market.run(PAYER, calls.withdraw_balance(d, market.token, Amount(USD), COLD.address))


async def register_and_leave(market: TestMarket) -> None:
    """A worker's life in the registry."""
    d, me = market.deployment, WORKER.address
    await market.give(me, wei=ETHER, tokens=2 * MIN_STAKE)
    deadline = Timestamp(await market.reader.timestamp() + 10_000)
    terms = Registration(me, me, COLD.address, MIN_STAKE, "https://a:1", Uint64(0), deadline)
    for call in (
        calls.approve(market.token, d.registry, Amount(2 * MIN_STAKE)),
        calls.register(d, terms),
        calls.add_stake(d, me, Amount(USD)),
        calls.set_endpoint(d, me, "https://" + "b" * 200 + ":2"),
        calls.authorize_session_key(d, STRANGER.address, deadline),
        calls.revoke_session_key(d, me, STRANGER.address),
        calls.offer_owner(d, me, STRANGER.address),
        calls.set_payout(d, me, STRANGER.address),
        calls.request_unbond(d, me),
        calls.cancel_unbond(d, me),
        calls.request_unbond(d, me),
    ):
        await market.run(WORKER, call)
    await market.pass_time(UNBONDING_DELAY_S + 1)
    await market.run(WORKER, calls.withdraw_stake(d, me))
    await market.run(WORKER, calls.transfer(market.token, COLD.address, Amount(USD)))


async def fail_in_every_way(market: TestMarket) -> None:
    """Transactions that are mined and fail, and calldata that costs more than its execution."""
    too_much = calls.transfer(market.token, COLD.address, Amount(2**200))
    mint = calls.mint(market.token, COLD.address, Amount(1))
    invalid = calls.Call("invalid code", None, b"\xfe", gas_hint=0)
    for call, gas in ((too_much, 100_000), (mint, 30_000), (invalid, 100_000)):
        assert (await send_as_it_is(market, call, gas))["status"] == "0x0", call.what
    data = bytes(range(256)) * 40
    long = calls.Call("long calldata", COLD.address, data, gas_hint=0, value=1)
    receipt = await send_as_it_is(market, long, 1_000_000)
    floor = 21_000 + 10 * sum(4 if byte else 1 for byte in data)  # EIP-7623
    assert int(receipt["gasUsed"], 16) == floor


@pytest.mark.parametrize("life", [pay_through_channels, register_and_leave, fail_in_every_way])
async def test_anvil_makes_the_same_blocks_of_the_same_transactions(
    life: Callable[[TestMarket], Awaitable[None]],
) -> None:
    async with embedded() as market:
        await life(market)
        async with twin_of(market) as twin:
            await assert_same_blocks(market, twin)


async def test_anvil_gives_the_same_answers_from_the_same_state() -> None:
    async with embedded() as market:
        await pay_through_channels(market)
        d = market.deployment
        async with twin_of(market) as twin:
            for address in (d.token, d.escrow, d.registry, PAYER.address, WORKER.address):
                for method in ("eth_getCode", "eth_getBalance", "eth_getTransactionCount"):
                    question = (method, to_hex(address), "latest")
                    assert await market.rpc.call(*question) == await twin.call(*question), question
            for call in (
                calls.transfer(market.token, COLD.address, Amount(2**200)),
                calls.withdraw(d, channel_of(market, PAYER, WORKER, salt=2)),
                calls.withdraw_stake(d, COLD.address),
                calls.Call("no such function", d.escrow, b"\x01\x02\x03\x04", 0),
            ):
                refusals = []
                for rpc in (market.rpc, twin):
                    with pytest.raises(TransactionReverted) as refused:
                        await rpc.call("eth_call", call_json(call), "latest")
                    refusals.append((refused.value.name, str(refused.value)))
                assert refusals[0] == refusals[1], call.what


def call_json(call: calls.Call) -> dict[str, str]:
    assert call.to is not None
    return {"from": to_hex(WORKER.address), "to": to_hex(call.to), "data": to_hex(call.data)}
