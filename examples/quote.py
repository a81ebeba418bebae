"""Look at the price first, and refuse a job that could cost more than a limit."""

from __future__ import annotations

import asyncio
import os

from piecework.client import ClientHome, NoWorkerFits, PieceworkClient, TextRequest


async def main() -> None:
    secret = os.environ["PIECEWORK_PASSWORD"]
    async with await PieceworkClient.open(ClientHome.default(), password=secret) as client:
        quote = await client.quote(TextRequest.of("Tell me a story.", max_tokens=256))
        print(f"expected {quote.expected}, at most {quote.ceiling}: {quote.why}")
        try:
            await client.ask("Tell me a story.", max_tokens=256, max_price="0.000001")
        except NoWorkerFits as error:
            print("refused:", error.code, *error.why)


asyncio.run(main())
