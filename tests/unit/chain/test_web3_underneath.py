"""What web3 gets to see of a node, and what it must not change: bounds, errors, silence, start-up
time."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from eth_abi.abi import encode
from eth_abi.exceptions import EncodingError
from web3 import AsyncWeb3

from piecework.chain.contracts.abi import interface
from piecework.chain.errors import BadAnswer, RpcRefused, RpcUnavailable, TransactionReverted
from piecework.chain.nodes.rpc import HttpRpc, web3_over
from piecework_protocol.types import Address, Bytes32, keccak256

ROOT = Path(__file__).resolve().parents[3]
WHO = AsyncWeb3.to_checksum_address(bytes([1]) * 20)


class OneAnswer:
    """A `JsonRpc` that answers everything alike."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[str] = []

    async def call(self, method: str, *params: Any) -> Any:
        self.asked.append(method)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("answer", [None, 7, True, "7", "-1", "0x", "zz", [], {}, "0x" + "f" * 65])
async def test_a_number_that_web3_would_let_through_is_a_bad_answer(answer: Any) -> None:
    eth = web3_over(OneAnswer(answer)).eth
    for ask in (
        eth.get_balance(WHO),
        eth.get_transaction_count(WHO, "pending"),
        eth.chain_id,
        eth.block_number,
        eth.max_priority_fee,
    ):
        with pytest.raises(BadAnswer):
            await ask


@pytest.mark.parametrize("answer", [None, 7, True, "00", "0x0", "zz", [], {}])
async def test_bytes_that_web3_would_let_through_are_a_bad_answer(answer: Any) -> None:
    eth = web3_over(OneAnswer(answer)).eth
    for ask in (eth.get_code(WHO), eth.call({"to": WHO}), eth.send_raw_transaction(b"\2")):
        with pytest.raises(BadAnswer):
            await ask


@pytest.mark.parametrize(
    "error",
    [
        RpcUnavailable("gone"),
        RpcRefused("eth_call", -32601, "method not found"),
        RpcRefused("eth_call", -32000, "transaction not found"),
        TransactionReverted("ZeroAmount", {}),
    ],
    ids=str,
)
async def test_an_error_comes_through_web3_as_the_very_object(error: Exception) -> None:
    rpc = OneAnswer(error)
    for ask in (web3_over(rpc).eth.call({"to": WHO}), web3_over(rpc).eth.max_priority_fee):
        with pytest.raises(type(error)) as seen:
            await ask
        assert seen.value is error
    assert rpc.asked == ["eth_call", "eth_maxPriorityFeePerGas"]


async def served(body: bytes, path: str, ask: str) -> tuple[BaseException, int]:
    """Let web3 ask a node over HTTP that answers `body`: the error, and the count of requests."""
    seen: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        async with HttpRpc(f"http://user:secret@{host}:{port}{path}", timeout_s=5) as rpc:
            eth = web3_over(rpc).eth
            with pytest.raises(Exception) as failed:
                await (eth.call({"to": WHO}) if ask == "call" else eth.chain_id)
            return failed.value, len(seen)
    finally:
        await runner.cleanup()


async def test_a_contract_cannot_send_us_to_another_address() -> None:
    """EIP-3668: web3 by itself would fetch the URL that the revert names."""
    selector = keccak256(b"OffchainLookup(address,string[],bytes,bytes4,bytes)")[:4]
    types = ["address", "string[]", "bytes", "bytes4", "bytes"]
    data = selector + encode(types, [bytes([1]) * 20, ["http://127.0.0.1:9/x"], b"", b"1234", b""])
    body = (
        b'{"jsonrpc":"2.0","id":1,"error":{"code":3,"message":"execution reverted","data":"0x%b"}}'
    )
    error, requests = await served(body % data.hex().encode(), "/", "call")
    assert isinstance(error, TransactionReverted)
    assert (error.data, requests) == (data, 1)


async def test_an_answer_nested_without_end_is_a_bad_answer() -> None:
    """Importing web3 lifts the recursion limit so far that json.loads would end the process."""
    error, _ = await served(b"[" * 200_000, "/", "chain")
    assert isinstance(error, BadAnswer)


async def test_the_key_in_a_nodes_address_is_in_no_log_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG):
        error, _ = await served(b"{}", "/v2/apikey", "chain")
    assert caplog.records
    for text in (caplog.text, str(error)):
        assert "apikey" not in text
        assert "secret" not in text


def test_bytes_of_another_length_are_not_padded() -> None:
    """eth-abi by itself fills short values up with zeros."""
    with pytest.raises(EncodingError):
        interface("Escrow").encode("getChannel", [bytes(31)])


def test_addresses_are_twenty_bytes_wherever_they_stand() -> None:
    who = [Address(bytes([n]) * 20) for n in range(1, 6)]
    row = (*who, 3600, bytes(32))
    types = "(address,address,address,address,address,uint64,bytes32)"
    log = interface("Escrow").events["ChannelOpened"]
    values = interface("Escrow").decode_event(
        "ChannelOpened",
        [
            log.topic,
            *(bytes(12) + who[0] if kind == "address" else bytes(32) for _, kind in log.indexed),
        ],
        encode(
            [kind for _, kind in log.data], [row if kind == types else 0 for _, kind in log.data]
        ),
    )
    assert values["channel"] == (*who, 3600, Bytes32(bytes(32)))


@pytest.mark.process
def test_web3_is_imported_when_a_node_is_asked_and_not_before() -> None:
    program = (
        "import sys; from piecework.chain.nodes import rpc; "
        "from piecework.chain.reading import reader; "
        "from piecework.chain.sending import deploy, transactions; "
        "from piecework.chain.dev import faucet; "
        "print([m for m in ('web3', 'eth_abi', 'eth_account') if m in sys.modules]); "
        "rpc.web3_over(rpc.HttpRpc('http://127.0.0.1:9')); print('web3' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split("\n")[:2] == ["[]", "True"]
