"""The money of a client that came from a home, on a real chain."""

from __future__ import annotations

import asyncio
from pathlib import Path

from piecework.chain.dev.embedded import EmbeddedChain
from piecework.client.config import ClientHome
from piecework.client.sdk import PieceworkClient
from piecework.client.setup import set_up
from tests.support.chain.chains import ETHER, USD, deployed

PASSWORD = "correct horse"


async def test_withdrawals_at_the_same_time_are_each_sent(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    async with deployed(embedded_chain) as market:
        file, home = tmp_path / "deployment.json", ClientHome(tmp_path / "client")
        market.deployment.save(file)
        made = await set_up(home.path, file, (), second_key=False, password=lambda: PASSWORD)
        await market.give(made.payer, wei=ETHER, tokens=5 * USD)
        async with await PieceworkClient.open(home, password=PASSWORD) as client:
            await client.funds.deposit("5")
            await asyncio.gather(client.funds.withdraw("1"), client.funds.withdraw("1"))
            assert (await client.balance()).pooled == client.amount("3")
