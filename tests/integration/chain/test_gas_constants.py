"""The policy's figures are those of the contracts, with distinct payers and random salts."""

from __future__ import annotations

import pytest

from piecework.chain import calls
from piecework.chain.calls import Claim
from piecework.chain.dev.embedded import EmbeddedChain
from piecework_node.settlement.policy import (
    SETTLE_DATA_BASE_BYTES,
    SETTLE_DATA_PER_CLAIM_BYTES,
    SETTLE_GAS_BASE,
    SETTLE_GAS_PER_CLAIM,
)
from piecework_protocol.types import keccak256
from tests.support.chains import (
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


@pytest.mark.slow
async def test_a_settlement_costs_what_the_policy_weighs(embedded_chain: EmbeddedChain) -> None:
    async with deployed(embedded_chain) as market:
        await market.give(WORKER.address, wei=ETHER)
        await market.give(RELAYER.address, wei=ETHER)
        used, size = {}, {}
        # The first settlement of all makes the receiver's balance, which no later one pays for.
        for first, count in ((0, 1), (1, 1), (2, MANY)):
            call = calls.settle(market.deployment, await claims(market, first, count))
            mined = await market.sender(WORKER).execute(call, poll_s=POLL_S)
            used[count], size[count] = mined.gas_used, len(call.data)
    for count in (1, MANY):
        weighed = SETTLE_GAS_BASE + SETTLE_GAS_PER_CLAIM * count
        assert used[count] <= weighed <= used[count] * 1.1, (used, count)
        data = SETTLE_DATA_BASE_BYTES + SETTLE_DATA_PER_CLAIM_BYTES * count
        assert size[count] <= data <= size[count] * 1.3, (size, count)
