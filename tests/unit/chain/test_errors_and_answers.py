"""What nodes answer, right and wrong, and what becomes of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from eth_abi.abi import encode
from hypothesis import given
from hypothesis import strategies as st

from piecework.chain.contracts.abi import decode_revert, interface
from piecework.chain.contracts.events import (
    Log,
    SkipReason,
    WithdrawalRequested,
    decode_events,
    skip_reason,
    topic,
)
from piecework.chain.errors import (
    BadAnswer,
    RpcRefused,
    RpcUnavailable,
    TransactionReverted,
)
from piecework.chain.limits import MAX_RPC_RESPONSE_BYTES
from piecework.chain.nodes.refusals import Answer, classify
from piecework.chain.nodes.rpc import HttpRpc, data_bytes, host_of, quantity
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    ChannelId,
    Timestamp,
    Uint64,
    keccak256,
)

HASH = Bytes32(bytes([5]) * 32)
ESCROW = Address(bytes([1]) * 20)


# --- reverts


def test_a_custom_error_is_decoded_by_name_and_values() -> None:
    selector = keccak256(b"ChannelIsClosed(bytes32)")[:4]
    error = decode_revert(selector + HASH)
    assert error.name == "ChannelIsClosed"
    assert error.arguments == {"channelId": "0x" + "05" * 32}
    assert str(error) == f"the contract refused: ChannelIsClosed(channelId=0x{'05' * 32})"


def test_a_text_reason_and_a_panic_are_decoded() -> None:
    text = decode_revert(keccak256(b"Error(string)")[:4] + encode(["string"], ["no"]))
    assert (text.name, text.arguments) == ("Error", {"message": "no"})
    panic = decode_revert(keccak256(b"Panic(uint256)")[:4] + encode(["uint256"], [17]))
    assert (panic.name, panic.arguments) == ("Panic", {"code": 17})


@given(st.binary(max_size=200))
def test_any_revert_data_gives_an_error_that_can_be_shown(data: bytes) -> None:
    assert str(decode_revert(data)).startswith("the contract refused: ")


@given(st.binary(max_size=100))
def test_a_known_selector_with_garbage_behind_it_keeps_its_name(garbage: bytes) -> None:
    assert (
        decode_revert(keccak256(b"StillBonded(address,uint64,uint256)")[:4] + garbage).name
        == "StillBonded"
    )


def test_text_from_outside_cannot_forge_lines_or_flood_a_log() -> None:
    hostile = "no\nerror: all is lost\x1b[2J" + "x" * 3000
    for error in (
        decode_revert(keccak256(b"Error(string)")[:4] + encode(["string"], [hostile])),
        RpcRefused("eth_call", 1, hostile),
    ):
        assert str(error).isprintable()
        assert len(str(error)) < 500


def test_an_endpoint_that_is_not_text_leaves_the_other_workers_readable() -> None:
    """The ABI encodes bytes and text alike, so that this is what a hostile registration looks
    like."""
    row = "(address,address,address,address,uint128,uint64,uint64,uint64,uint64,uint64,bool,bytes)"
    who = (*[ESCROW] * 4, 5, 1, 0, 1, 0, 0, True)
    data = encode([row + "[]"], [[(*who, b"\xff\xfe"), (*who, b"https://good:1")]])
    (rows,) = interface("WorkerRegistry").decode("workers", data)
    assert [worker[11] for worker in rows] == ["\ufffd\ufffd", "https://good:1"]


# --- refusals of raw transactions


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        ("already known", Answer.KNOWN),
        ("AlreadyKnown", Answer.KNOWN),
        ("transaction already imported", Answer.KNOWN),
        ("Known transaction", Answer.KNOWN),
        ("nonce too low: next nonce 5, tx nonce 3", Answer.NONCE_USED),
        ("OldNonce, Current nonce: 5, nonce of rejected tx: 3", Answer.OTHER),
        ("replacement transaction underpriced", Answer.FEE_TOO_LOW),
        ("transaction underpriced: gas tip cap 0, minimum needed 1", Answer.FEE_TOO_LOW),
        ("max fee per gas less than block base fee: address 0x…", Answer.FEE_TOO_LOW),
        ("insufficient funds for gas * price + value", Answer.NO_FUNDS),
        ("Upfront cost exceeds account balance", Answer.NO_FUNDS),
        ("the moon is full", Answer.OTHER),
    ],
)
def test_a_nodes_refusal_is_sorted_by_its_words(message: str, answer: Answer) -> None:
    assert classify(message) is answer


# --- events


def log(name: str, topics: list[bytes], data: bytes, address: Address | None = None) -> Log:
    every = (topic(name), *(Bytes32(t) for t in topics))
    return Log(address or ESCROW, every, data, 7, 0, HASH)


def test_events_of_other_contracts_and_of_no_interest_are_left_out() -> None:
    data = encode(["uint128", "uint64", "uint64"], [5, 0, 99])
    mine = log("WithdrawalRequested", [HASH], data)
    other = log("WithdrawalRequested", [HASH], data, Address(bytes(20)))
    unknown = Log(ESCROW, (Bytes32(bytes(32)),), b"", 7, 0, HASH)
    bare = Log(ESCROW, (), b"", 7, 0, HASH)
    (event,) = decode_events(ESCROW, [other, mine, unknown, bare])
    assert isinstance(event, WithdrawalRequested)
    assert event == WithdrawalRequested(mine, ChannelId(HASH), Amount(5), Uint64(0), Timestamp(99))


def test_an_event_with_missing_parts_is_a_bad_answer() -> None:
    for broken in (
        log("WithdrawalRequested", [], encode(["uint64"], [1])),
        log("Settled", [HASH, HASH], b""),
    ):
        with pytest.raises(BadAnswer):
            decode_events(ESCROW, [broken])


def test_skip_reasons_are_those_of_the_contract() -> None:
    assert [skip_reason(n) for n in range(6)] == list(SkipReason)
    with pytest.raises(BadAnswer):
        skip_reason(6)


@given(st.binary(max_size=400))
def test_garbage_results_are_bad_answers_or_values(data: bytes) -> None:
    for contract, name in (
        ("Escrow", "getChannel"),
        ("Escrow", "previewSettle"),
        ("WorkerRegistry", "getWorker"),
    ):
        with contextlib.suppress(BadAnswer):
            interface(contract).decode(name, data)


# ---------------------------------------------------------------------- JSON-RPC over HTTP


@asynccontextmanager
async def node(answer: Callable[[int], web.Response]) -> AsyncIterator[tuple[HttpRpc, list[int]]]:
    """A node that answers its n-th request with `answer(n)`, and the count of requests."""
    seen: list[int] = []

    async def serve(_: web.Request) -> web.Response:
        seen.append(len(seen) + 1)
        return answer(len(seen))

    app = web.Application()
    app.router.add_post("/", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = runner.addresses[0]
    try:
        async with HttpRpc(f"http://{address[0]}:{address[1]}", timeout_s=5) as rpc:
            yield rpc, seen
    finally:
        await runner.cleanup()


def result(value: Any) -> web.Response:
    return web.json_response({"jsonrpc": "2.0", "id": 1, "result": value})


def failure(code: int, message: str, data: Any = None, status: int = 200) -> web.Response:
    error = {"code": code, "message": message, "data": data}
    return web.json_response({"jsonrpc": "2.0", "id": 1, "error": error}, status=status)


async def test_a_read_is_repeated_over_an_overloaded_node() -> None:
    async with node(lambda n: web.Response(status=429) if n < 3 else result("0x1")) as (rpc, seen):
        assert await rpc.call("eth_chainId") == "0x1"
        assert len(seen) == 3


async def test_a_node_that_stays_overloaded_is_given_up() -> None:
    async with node(lambda _: web.Response(status=503, text="busy")) as (rpc, seen):
        with pytest.raises(RpcUnavailable, match="HTTP 503"):
            await rpc.call("eth_chainId")
        assert len(seen) == 3


async def test_a_raw_transaction_is_sent_once_and_never_by_itself_again() -> None:
    async with node(lambda _: web.Response(status=503)) as (rpc, seen):
        with pytest.raises(RpcUnavailable):
            await rpc.call("eth_sendRawTransaction", "0x00")
        assert len(seen) == 1


async def test_an_error_body_behind_an_http_error_is_read() -> None:
    async with node(lambda _: failure(-32000, "nonce too low", status=500)) as (rpc, _):
        with pytest.raises(RpcRefused, match="nonce too low"):
            await rpc.call("eth_sendRawTransaction", "0x00")


@pytest.mark.parametrize("nested", [False, True])
async def test_revert_data_is_decoded_wherever_the_node_puts_it(nested: bool) -> None:
    data: Any = "0x" + (keccak256(b"ZeroAmount()")[:4]).hex()
    async with node(
        lambda _: failure(3, "execution reverted", {"data": data} if nested else data)
    ) as (
        rpc,
        _,
    ):
        with pytest.raises(TransactionReverted) as refused:
            await rpc.call("eth_call", {}, "latest")
    assert refused.value.name == "ZeroAmount"


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"7", b'{"jsonrpc":"2.0","id":1}', b"x" * (MAX_RPC_RESPONSE_BYTES + 1)],
)
async def test_an_answer_that_is_none_is_a_bad_answer(body: bytes) -> None:
    async with node(lambda _: web.Response(body=body)) as (rpc, _):
        with pytest.raises(BadAnswer):
            await rpc.call("eth_chainId")


async def test_a_redirect_is_not_followed() -> None:
    async with node(
        lambda _: web.Response(status=307, headers={"Location": "http://127.0.0.1:1/"})
    ) as (
        rpc,
        _,
    ):
        with pytest.raises(RpcUnavailable, match="HTTP 307"):
            await rpc.call("eth_chainId")


@pytest.mark.parametrize("value", [None, 7, "7", "0x", "0xzz", "0x" + "f" * 65, [], {}])
def test_a_number_of_another_form_is_a_bad_answer(value: Any) -> None:
    with pytest.raises(BadAnswer, match="the height"):
        quantity(value, "the height")


@pytest.mark.parametrize("value", [None, 7, "00", "0x0", "0xzz", "0x0000"])
def test_bytes_of_another_form_are_a_bad_answer(value: Any) -> None:
    with pytest.raises(BadAnswer, match="a flag"):
        data_bytes(value, "a flag", 1)


def test_an_api_key_is_never_shown() -> None:
    assert (
        host_of("https://user:key@node.example:8443/v3/secret?x=y") == "https://node.example:8443"
    )
    assert host_of("http://node.example/v3/secret") == "http://node.example"
    assert host_of("secret-of-a-shell-variable") == "an address without a host"
