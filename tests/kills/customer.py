"""One customer with the SDK: `python -m tests.kills.customer HOME LOG FIRST_SEED`.

It works on a home that it shares with the gateway. It appends a line to LOG for each text that is
complete, and a line to LOG.err for each that is not.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from random import Random

from piecework.base.errors import PieceworkError
from piecework.client.config import ClientHome, load_config
from piecework.client.jobs.events import JobFinished
from piecework.client.jobs.requests import Generation, TextRequest
from piecework.client.sdk import PieceworkClient
from piecework_protocol.conversation import Conversation, Message
from tests.support.waiting import random_moment

MAX_TOKENS = 64
PAUSE_S = 0.2


async def trade(home: Path, log: Path, seed: int) -> None:
    """Ask for one text after the other, come what may."""
    files = ClientHome(home)
    while True:
        try:
            config = load_config(files.config)
            password = os.environ["PIECEWORK_PASSWORD"]
            async with await PieceworkClient.open(files, config, password=password) as client:
                while True:
                    seed += 1
                    await one_text(client, log, seed)
        except PieceworkError as error:
            note(log, error)
            await random_moment(Random(seed), PAUSE_S)


async def one_text(client: PieceworkClient, log: Path, seed: int) -> None:
    """Ask for one text, and log what it cost."""
    asked = TextRequest(
        Conversation((Message("user", f"sdk {seed}"),)),
        generation=Generation(seed=seed, max_tokens=MAX_TOKENS),
    )
    try:
        async with client.run(asked) as run:
            async for event in run:
                if isinstance(event, JobFinished):
                    line = {
                        "job": event.job.hex(),
                        "cost": event.cost,
                        "canvases": event.canvases,
                    }
                    with log.open("a") as file:
                        file.write(json.dumps(line) + "\n")
    except PieceworkError as error:
        note(log, error)
        await random_moment(Random(seed), PAUSE_S)


def note(log: Path, error: PieceworkError) -> None:
    """Append an error to the log of errors."""
    with log.with_name(log.name + ".err").open("a") as file:
        file.write(f"{type(error).__name__}: {str(error)[:200]}\n")


if __name__ == "__main__":
    asyncio.run(trade(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
