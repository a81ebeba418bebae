"""A rollup's data fee counts: contracts that answer as its predeploys do, on anvil."""

from __future__ import annotations

import pytest

from piecework.chain.contracts.calls import send_native
from piecework.chain.dev.anvil import Anvil
from piecework.chain.errors import FeeTooHigh
from piecework.chain.sending.l1_fees import ARB_GAS_INFO, GAS_PRICE_ORACLE, L1Charge
from piecework.chain.sending.transactions import TransactionSender
from piecework_protocol.types import Address, to_hex
from tests.support.chain.chains import ETHER, TestMarket, deployed, signer

WORKER = signer("worker")
WEI_PER_BYTE = 10**9


def answering(words: int, value: int) -> str:
    """Code that answers every call with `words` times the same word."""
    code = bytearray()
    for place in range(words):
        # PUSH32 value PUSH2 offset MSTORE
        code += b"\x7f" + value.to_bytes(32, "big") + b"\x61" + (32 * place).to_bytes(2, "big")
        code += b"\x52"
    # PUSH2 size PUSH0 RETURN
    code += b"\x61" + (32 * words).to_bytes(2, "big") + b"\x5f\xf3"
    return "0x" + code.hex()


async def sender_on(market: TestMarket, predeploy: Address, code: str) -> TransactionSender:
    await market.give(WORKER.address, wei=ETHER)
    await market.rpc.call("anvil_setCode", to_hex(predeploy), code)
    return market.sender(WORKER)


async def test_an_op_stack_chain_is_known_by_its_oracle_and_its_fee_counts(anvil: Anvil) -> None:
    async with deployed(anvil) as market:
        fee = 8192 * WEI_PER_BYTE
        sender = await sender_on(market, GAS_PRICE_ORACLE, answering(1, fee))
        price = await sender.gas_price()
        assert price.data.charge is L1Charge.BESIDE_GAS
        assert price.data.wei_per_byte == WEI_PER_BYTE
        nothing = send_native(WORKER.address, 0)
        gas = 21_000 * price.wei_per_gas
        data = price.data.beside_gas(nothing.data)
        assert data > 0
        with pytest.raises(FeeTooHigh):
            await sender.prepare(nothing, value_at_stake=gas + data - 1)
        await sender.prepare(nothing, value_at_stake=gas + data)


async def test_arbitrum_is_known_by_its_gas_info(anvil: Anvil) -> None:
    async with deployed(anvil) as market:
        sender = await sender_on(market, ARB_GAS_INFO, answering(6, WEI_PER_BYTE))
        price = (await sender.gas_price()).data
        assert (price.charge, price.wei_per_byte) == (L1Charge.IN_GAS, WEI_PER_BYTE)
        assert price.beside_gas(bytes(1000)) == 0, "an estimate holds it already"


async def test_another_chain_has_no_data_fee(anvil: Anvil) -> None:
    async with deployed(anvil) as market:
        price = (await market.sender(WORKER).gas_price()).data
        assert (price.charge, price.wei_per_byte) == (L1Charge.NONE, 0)
