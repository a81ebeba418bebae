"""Print each canvas as soon as it is checked and paid, and count the drafts before it."""

from __future__ import annotations

import asyncio
import os

from piecework.client import (
    CanvasText,
    ClientHome,
    DraftText,
    JobFinished,
    JobStarted,
    PieceworkClient,
    TextRequest,
)


async def main() -> None:
    secret = os.environ["PIECEWORK_PASSWORD"]
    request = TextRequest.of("Tell me a story.", max_tokens=256, drafts=True)
    drafts = 0
    async with await PieceworkClient.open(ClientHome.default(), password=secret) as client:
        money = client.payment_token
        async with client.run(request) as run:
            async for event in run:
                if isinstance(event, JobStarted):
                    print(f"{event.model}, at most {money.format(event.ceiling)}")
                elif isinstance(event, DraftText):
                    drafts += 1
                elif isinstance(event, CanvasText):
                    print(event.text, end="", flush=True)
                elif isinstance(event, JobFinished):
                    print(f"\n{drafts} drafts, paid {money.format(event.cost)}")


asyncio.run(main())
