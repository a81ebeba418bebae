"""Deposit, buy, and take the rest of the money back. This sends transactions and needs gas."""

from __future__ import annotations

import asyncio
import os

from piecework.client import ClientHome, PieceworkClient


async def main() -> None:
    secret = os.environ["PIECEWORK_PASSWORD"]
    async with await PieceworkClient.open(ClientHome.default(), password=secret) as client:
        await client.funds.deposit("1")
        balance = await client.balance()
        print(f"free {balance.free}, in channels {balance.in_channels}")
        answer = await client.ask("Tell me a story.", max_tokens=256)
        print("paid", answer.cost)
        for closing in await client.funds.close_all():
            print("channel", closing.channel.hex()[:12], closing.note)
        withdrawal = await client.funds.withdraw()
        print("withdrawn", withdrawal.amount)


asyncio.run(main())
