"""A market counts in the token that it was deployed with: decimals and symbol of the chain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from piecework.base.amounts import AmountError
from piecework.chain.contracts.calls import Call
from piecework.chain.errors import BadDeployment, WrongChain
from piecework.chain.nodes.rpc import HttpRpc
from piecework.chain.reading.reader import ChainReader
from piecework.chain.reading.token import read_token
from piecework.chain.sending.deploy import deploy
from piecework.chain.sending.transactions import TransactionSender
from piecework_node.config import check
from piecework_protocol.types import Address
from tests.support.chain.chains import POLL_S, Chain, deployed

DECIMALS = bytes.fromhex("313ce567")


def contract(decimals: int | None, symbol: bytes) -> bytes:
    """Creation code of a contract that answers decimals(), and everything else with 32 bytes, as
    the symbol() of some old tokens. With no decimals it answers nothing to that call."""
    answer = (
        bytes.fromhex("5b60006000fd")
        if decimals is None
        else bytes.fromhex(f"5b60{decimals:02x}60005260206000f3")
    )
    choose = bytes.fromhex("60003560e01c63") + DECIMALS + bytes.fromhex("14603857")
    say = b"\x7f" + symbol.ljust(32, b"\0") + bytes.fromhex("60005260206000f3")
    runtime = choose + say + answer
    return bytes.fromhex(f"60{len(runtime):02x}80600b6000396000f3") + runtime


async def created(chain: Chain, decimals: int | None, symbol: bytes) -> Address:
    async with HttpRpc(chain.url) as rpc:
        sender = TransactionSender(rpc, chain.faucet, chain.chain_id)
        call = Call("create a token", None, contract(decimals, symbol), 200_000)
        tx = await sender.prepare(call, value_at_stake=None)
        await sender.broadcast(tx)
        assert (await sender.wait_mined(tx.hash, poll_s=POLL_S)).success
        return tx.created


async def test_a_market_takes_decimals_and_symbol_from_its_token(any_chain: Chain) -> None:
    token = await created(any_chain, 18, b"OLD")
    made = await deploy(
        any_chain.url, any_chain.faucet, min_stake="2.5", token=token, poll_s=POLL_S
    )
    assert (made.token_symbol, made.token_decimals) == ("OLD", 18)
    assert made.payment_token.parse("5") == 5 * 10**18
    assert made.payment_token.format(5 * 10**18) == "5.00 OLD"
    async with await ChainReader.connect(made) as reader:
        assert (await reader.stake_requirements()).min_stake == 25 * 10**17


async def test_an_amount_below_the_smallest_unit_of_the_token_is_refused(any_chain: Chain) -> None:
    token = await created(any_chain, 2, b"GUSD")
    with pytest.raises(AmountError, match="2 decimals"):
        await deploy(any_chain.url, any_chain.faucet, min_stake="0.001", token=token, poll_s=POLL_S)


async def test_a_file_with_other_decimals_is_refused(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        wrong = replace(market.deployment, token_decimals=18)
        with pytest.raises(WrongChain, match=r"has 18 decimals\. The chain says 6"):
            await ChainReader.connect(wrong)


async def test_a_renamed_token_is_a_warning_and_stops_nobody(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        assert market.reader.warnings == ()
        before = replace(market.deployment, token_symbol="OLD\n")
        async with await ChainReader.connect(before) as reader:
            (warning,) = reader.warnings
            assert "calls itself tUSDC, the deployment file says OLD" in warning
            assert warning.isprintable()
            await reader.verify()


async def test_a_contract_without_decimals_cannot_be_a_markets_token(any_chain: Chain) -> None:
    token = await created(any_chain, None, b"NONE")
    async with HttpRpc(any_chain.url) as rpc:
        with pytest.raises(BadDeployment, match="how many decimals"):
            await read_token(rpc, token)


async def test_the_defaults_of_a_worker_are_so_many_tokens_whatever_its_decimals(
    any_chain: Chain,
) -> None:
    async with HttpRpc(any_chain.url) as rpc:
        dai = await read_token(rpc, await created(any_chain, 18, b"DAI"))
        coarse = await read_token(rpc, await created(any_chain, 0, b"ONE"))
    config = check({"payout": "0x" + "22" * 20})
    amounts = config.amounts(dai)
    assert amounts.min_deposit == dai.parse("0.1")
    assert amounts.price_per_million_output_tokens == dai.parse("0.2")
    assert config.amounts(coarse).price_per_thousand_steps == 1
