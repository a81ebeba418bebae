"""Ask for a text and print it with its price."""

from __future__ import annotations

import asyncio
import os

from piecework.client import ClientHome, PieceworkClient


async def main() -> None:
    secret = os.environ["PIECEWORK_PASSWORD"]
    async with await PieceworkClient.open(ClientHome.default(), password=secret) as client:
        answer = await client.ask("Tell me a story.", max_tokens=256)
        print(answer.text)
        print("paid", answer.cost)


asyncio.run(main())
