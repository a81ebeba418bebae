"""The policy's figures are those of the contracts, with distinct payers and random salts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from piecework.chain.contracts import calls
from piecework.chain.contracts.calls import Call, Claim
from piecework.chain.contracts.packing import (
    FIXED_BYTES,
    PACKED_GAS,
    PLAIN_GAS,
    PLAIN_ROW_BYTES,
    ROW_BYTES,
    Gas,
    settle_packed,
)
from piecework.chain.deployment import Deployment
from piecework.chain.dev.embedded import EmbeddedChain
from piecework.chain.sending.l1_fees import TRANSACTION_OVERHEAD_BYTES
from piecework_protocol.types import keccak256
from tests.support.chain.chains import (
    ETHER,
    POLL_S,
    USD,
    TestMarket,
    channel_of,
    claim_of,
    deployed,
    signer,
)

WORKER, RELAYER = signer("worker"), signer("relayer")
MANY = 12


async def claims(market: TestMarket, first: int, count: int) -> list[Claim]:
    """Vouchers of channels that were never settled, each of another payer."""
    made = []
    for number in range(first, first + count):
        payer = signer(f"payer {number}")
        await market.pool(payer, RELAYER, USD)
        salt = int.from_bytes(keccak256(number.to_bytes(4, "big")), "big")
        channel = channel_of(market, payer, WORKER, salt=salt)
        await market.open_channel(payer, RELAYER, channel, USD)
        made.append(claim_of(market.reader.domain, channel, payer, USD - number - 1))
    return made


async def measured(
    market: TestMarket, settle: Callable[[Deployment, list[Claim]], Call], first: int
) -> tuple[dict[int, int], dict[int, int]]:
    """Gas and bytes of a settlement with one claim and with many, of new channels each."""
    used, size = {}, {}
    # The first settlement of all makes the receiver's balance, which no later one pays for.
    for offset, count in ((0, 1), (1, 1), (2, MANY)):
        call = settle(market.deployment, await claims(market, first + offset, count))
        mined = await market.sender(WORKER).execute(call, poll_s=POLL_S)
        used[count] = mined.gas_used
        size[count] = len(call.data) + TRANSACTION_OVERHEAD_BYTES
    return used, size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settle", "gas", "row_bytes"),
    [(calls.settle, PLAIN_GAS, PLAIN_ROW_BYTES), (settle_packed, PACKED_GAS, ROW_BYTES)],
)
async def test_a_settlement_costs_what_the_policy_weighs(
    embedded_chain: EmbeddedChain, settle: Any, gas: Gas, row_bytes: int
) -> None:
    async with deployed(embedded_chain) as market:
        await market.give(WORKER.address, wei=ETHER)
        await market.give(RELAYER.address, wei=ETHER)
        used, size = await measured(market, settle, 0)
    for count in (1, MANY):
        assert used[count] <= gas.of(count) * 1.02, (used, count)
        assert gas.of(count) <= used[count] * 1.1, (used, count)
        data = FIXED_BYTES + row_bytes * count
        assert size[count] <= data <= size[count] + 256, (size, count)
