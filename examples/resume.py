"""Go on with a job after its connection broke. No canvas is paid twice."""

from __future__ import annotations

import asyncio
import os

from piecework.client import ClientHome, JobInterrupted, PieceworkClient


async def main() -> None:
    secret = os.environ["PIECEWORK_PASSWORD"]
    async with await PieceworkClient.open(ClientHome.default(), password=secret) as client:
        try:
            answer = await client.ask("Tell me a story.", max_tokens=256)
        except JobInterrupted as error:
            print("interrupted:", error.job.hex())
            answer = await client.collect(client.resume(error.job))
        print(answer.text)
        print("paid", answer.cost)


asyncio.run(main())
