"""The embedded chain as a node: what web3 and the specification expect, and what it declines."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import aiohttp
import pytest
from web3 import AsyncHTTPProvider, AsyncWeb3
from web3.exceptions import ContractCustomError

from piecework.chain.artifacts import load_artifact
from piecework.chain.contracts import calls
from piecework.chain.dev.embedded import EmbeddedChain
from piecework.chain.errors import ChainError, RpcRefused, TransactionReverted
from piecework.chain.limits import EMBEDDED_CHAIN_ID, MAX_RPC_BATCH, MAX_RPC_REQUEST_BYTES
from piecework.chain.nodes.rpc import HttpRpc
from piecework.chain.sending.transactions import Finalized, Pending, TransactionSender, Unknown
from piecework_protocol.types import Amount, to_hex
from tests.support.chain.chains import ETHER, POLL_S, USD, channel_of, claim_of, deployed, signer

WORKER, OTHER = signer("worker"), signer("other")


class SteppedClock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1_800_000_000

    def __call__(self) -> int:
        return self.now


async def post(chain: EmbeddedChain, body: bytes | str) -> tuple[int, Any]:
    data = io.BytesIO(body.encode() if isinstance(body, str) else body)
    async with aiohttp.ClientSession() as session, session.post(chain.url, data=data) as response:
        return response.status, await response.json() if response.status == 200 else None


async def test_web3_reads_and_writes_through_it(embedded_chain: EmbeddedChain) -> None:
    async with deployed(embedded_chain) as market:
        provider = AsyncHTTPProvider(embedded_chain.url)
        w3: Any = AsyncWeb3(provider)  # its own types insist on wrapped addresses
        account = w3.eth.account.from_key(embedded_chain.faucet.secret)
        token: Any = w3.eth.contract(
            address=to_hex(market.token), abi=list(load_artifact("TestToken").abi)
        )
        built = await token.functions.mint(to_hex(OTHER.address), USD).build_transaction(
            {"from": account.address, "nonce": await w3.eth.get_transaction_count(account.address)}
        )
        sent = await w3.eth.send_raw_transaction(account.sign_transaction(built).raw_transaction)
        receipt = await w3.eth.wait_for_transaction_receipt(sent)
        assert receipt["status"] == 1
        assert await token.functions.balanceOf(to_hex(OTHER.address)).call() == USD
        (transfer,) = await token.events.Transfer().get_logs(from_block=0)
        assert transfer["args"]["value"] == USD
        block = await w3.eth.get_block("finalized", full_transactions=True)
        assert block["number"] == await w3.eth.block_number == receipt["blockNumber"]
        assert block["transactions"][0]["hash"] == sent
        assert (await w3.eth.get_block(block["hash"]))["number"] == block["number"]
        history = await w3.eth.fee_history(2, "latest", [50.0])
        assert len(history["baseFeePerGas"]) == 3
        escrow: Any = w3.eth.contract(
            address=to_hex(market.deployment.escrow), abi=list(load_artifact("Escrow").abi)
        )
        with pytest.raises(ContractCustomError):
            await escrow.functions.withdrawBalance(
                to_hex(market.token), 1, to_hex(OTHER.address)
            ).call()
        await provider.disconnect()


async def test_what_is_mined_is_final_at_once(embedded_chain: EmbeddedChain) -> None:
    async with deployed(embedded_chain) as market:
        sender = market.sender(embedded_chain.faucet)
        tx = await sender.prepare(
            calls.mint(market.token, OTHER.address, Amount(USD)), value_at_stake=None
        )
        assert await sender.outcome(tx.hash, nonce=tx.nonce) == Unknown()
        for _ in range(3):
            await sender.broadcast(tx)
        outcome = await sender.outcome(tx.hash)
        assert isinstance(outcome, Finalized)
        assert outcome.mined.success
        assert await market.reader.token_balance(market.token, OTHER.address) == USD
        assert await market.reader.finalized_block() == outcome.mined.block


async def test_a_transaction_ahead_of_its_turn_waits_for_the_one_before(
    embedded_chain: EmbeddedChain,
) -> None:
    async with deployed(embedded_chain) as market:
        sender = market.sender(embedded_chain.faucet)
        call = calls.mint(market.token, OTHER.address, Amount(USD))
        first, second, third = [await sender.prepare(call, value_at_stake=None) for _ in range(3)]
        await sender.broadcast(third)
        await sender.broadcast(second)
        assert await sender.outcome(second.hash) == Pending()
        assert await market.reader.token_balance(market.token, OTHER.address) == 0
        await sender.broadcast(first)
        assert await market.reader.token_balance(market.token, OTHER.address) == 3 * USD
        assert isinstance(await sender.outcome(third.hash), Finalized)


async def test_time_stands_with_the_clock_and_moves_on_request() -> None:
    clock = SteppedClock()
    async with EmbeddedChain(clock) as chain, deployed(chain) as market:
        for _ in range(5):
            await market.give(OTHER.address, wei=1)
        assert await market.reader.timestamp() == clock.now
        await market.pass_time(3600)
        assert await market.reader.timestamp() == clock.now + 3600
        clock.now += 60
        await market.give(OTHER.address, wei=1)
        assert await market.reader.timestamp() == clock.now + 3600
        clock.now -= 10_000
        await market.give(OTHER.address, wei=1)
        assert await market.reader.timestamp() == clock.now + 10_000 + 3600


async def test_a_large_settlement_is_mined_within_its_gas_hint(
    embedded_chain: EmbeddedChain,
) -> None:
    async with deployed(embedded_chain) as market:
        payer = signer("payer")
        await market.give(WORKER.address, wei=ETHER)
        await market.pool(payer, WORKER, 20 * USD)
        channels = [channel_of(market, payer, WORKER, salt=salt) for salt in range(20)]
        for channel in channels:
            await market.open_channel(payer, WORKER, channel, USD)
        claims = [claim_of(market.reader.domain, channel, payer, USD) for channel in channels]
        mined = await market.sender(WORKER).execute(
            calls.settle(market.deployment, claims), poll_s=POLL_S
        )
        assert await market.reader.token_balance(market.token, WORKER.address) == 20 * USD
        assert mined.gas_used < calls.settle(market.deployment, claims).gas_hint


async def test_an_estimate_suffices_and_names_the_revert(embedded_chain: EmbeddedChain) -> None:
    async with deployed(embedded_chain) as market:
        sender = TransactionSender.of(market.reader, embedded_chain.faucet)
        bare = calls.mint(market.token, OTHER.address, Amount(USD))
        tight = calls.Call(bare.what, bare.to, bare.data, gas_hint=0)
        assert (await sender.execute(tight, poll_s=POLL_S)).success
        with pytest.raises(TransactionReverted) as refused:
            await sender.prepare(
                calls.transfer(market.token, OTHER.address, Amount(10**30)), value_at_stake=None
            )
        assert refused.value.name == "ERC20InsufficientBalance"


async def test_batches_are_answered_in_order_and_bounded(embedded_chain: EmbeddedChain) -> None:
    request = '{"jsonrpc":"2.0","id":%d,"method":"eth_chainId","params":[]}'
    status, answers = await post(embedded_chain, f"[{','.join(request % n for n in range(3))}]")
    assert status == 200
    assert [a["id"] for a in answers] == [0, 1, 2]
    assert {a["result"] for a in answers} == {hex(EMBEDDED_CHAIN_ID)}
    for count in (0, MAX_RPC_BATCH + 1):
        _, refused = await post(embedded_chain, f"[{','.join(request % n for n in range(count))}]")
        assert refused["error"]["code"] == -32600
    status, _ = await post(embedded_chain, b" " * (MAX_RPC_REQUEST_BYTES + 1))
    assert status == 413


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("{", -32700),
        ("7", -32600),
        ('{"id":1}', -32600),
        ('{"id":1,"method":"eth_sign","params":[]}', -32601),
        ('{"id":1,"method":"eth_getBalance","params":["0x12"]}', -32602),
        ('{"id":1,"method":"eth_getBalance","params":{}}', -32602),
        ('{"id":1,"method":"eth_chainId","params":[1]}', -32602),
        ('{"id":1,"method":"eth_call","params":[{"data":"zz"}]}', -32602),
        ('{"id":1,"method":"eth_call","params":[{}, "latest", {"0x":{}}]}', -32602),
        ('{"id":1,"method":"eth_getBlockByNumber","params":["0x-1"]}', -32602),
        ('{"id":1,"method":"eth_getLogs","params":[{"bloom":1}]}', -32602),
        ('{"id":1,"method":"eth_sendRawTransaction","params":["0x"]}', -32000),
        ('{"id":1,"method":"eth_sendRawTransaction","params":["0x02c0"]}', -32000),
        ('{"id":1,"method":"eth_sendRawTransaction","params":["0xff00"]}', -32000),
        ('{"id":1,"method":"eth_getBalance","params":["0x%s", "0xffff"]}' % ("00" * 20), -32000),
    ],
)
async def test_a_malformed_request_gets_an_error_object(
    embedded_chain: EmbeddedChain, body: str, code: int
) -> None:
    status, answer = await post(embedded_chain, body)
    assert status == 200
    assert answer["error"]["code"] == code


async def test_a_transaction_without_money_for_gas_is_declined(
    embedded_chain: EmbeddedChain,
) -> None:
    from piecework.chain.sending.fees import Fees
    from piecework.chain.sending.rawtx import UnsignedTransaction

    tx = UnsignedTransaction(
        EMBEDDED_CHAIN_ID, 0, Fees(3 * 10**9, 1), 21_000, OTHER.address, 1, b""
    ).sign(WORKER)
    async with HttpRpc(embedded_chain.url) as rpc:
        with pytest.raises(RpcRefused, match="insufficient funds"):
            await rpc.call("eth_sendRawTransaction", "0x" + tx.raw.hex())
        low = UnsignedTransaction(EMBEDDED_CHAIN_ID, 0, Fees(1, 1), 21_000, OTHER.address, 1, b"")
        with pytest.raises(RpcRefused, match="less than block base fee"):
            await rpc.call(
                "eth_sendRawTransaction", "0x" + low.sign(embedded_chain.faucet).raw.hex()
            )
        alien = UnsignedTransaction(1, 0, Fees(3 * 10**9, 1), 21_000, OTHER.address, 1, b"")
        with pytest.raises(RpcRefused, match="chain id"):
            await rpc.call(
                "eth_sendRawTransaction", "0x" + alien.sign(embedded_chain.faucet).raw.hex()
            )


async def test_concurrent_readers_and_a_writer_do_not_disturb_each_other(
    embedded_chain: EmbeddedChain,
) -> None:
    async with deployed(embedded_chain) as market:
        sender = market.sender(embedded_chain.faucet)
        call = calls.mint(market.token, OTHER.address, Amount(1))

        async def read() -> None:
            for _ in range(20):
                assert await market.reader.token_balance(market.token, OTHER.address) <= 5
                await market.reader.verify()

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(read())
            for _ in range(5):
                group.create_task(sender.execute(call, poll_s=POLL_S))
        assert await market.reader.token_balance(market.token, OTHER.address) == 5


async def test_a_taken_port_is_one_clear_line(embedded_chain: EmbeddedChain) -> None:
    port = int(embedded_chain.url.rsplit(":", 1)[1])
    with pytest.raises(ChainError, match="cannot listen"):
        await EmbeddedChain().start(port=port)
