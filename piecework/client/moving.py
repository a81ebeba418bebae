"""Taking the next deployment of a market: another registry, the same escrow and token.

Channels and pooled balances are the escrow's, so they stay. The earlier file stays too: what
concerns workers that are registered there needs it.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

from piecework.base.files import write_private
from piecework.chain.deployment import Deployment
from piecework.client.config import ClientConfig, ClientHome
from piecework.client.errors import HomeError
from piecework.client.network.nodes import connect
from piecework_protocol.types import address_hex

NAME_DIGITS = 8
"""Of the registry's address, in the name of an earlier file."""


@dataclass(frozen=True, slots=True)
class Moved:
    """Where the client is now. `earlier`: the file that it had. `new`: whether that has changed."""

    registry: str
    earlier: Path | None
    new: bool


async def move(home: ClientHome, file: Path, config: ClientConfig | None = None) -> Moved:
    """Write the next deployment file into a home, and keep the one that is there.

    config: The settings, which name the chain's nodes. None: no setting names any.

    It is safe to repeat: a kill at any moment leaves whole files.

    Raises:
        HomeError: There is no client, or the file is of another chain, escrow or token.
        BadDeployment: A file is malformed.
        ChainError: The contracts of the next deployment are not on the chain.
        FileError: A file cannot be written.
    """
    home.check()
    found = await asyncio.to_thread(Deployment.load, home.deployment)
    wanted = await asyncio.to_thread(Deployment.load, file)
    registry = address_hex(wanted.registry)
    if found.same_market(wanted):
        return Moved(registry, None, new=False)
    if found.domain != wanted.domain:
        raise HomeError(f"{file} is of another chain or escrow. Use another --home for it")
    if found.token != wanted.token:
        raise HomeError(f"{file} has another token. Use another --home for it")
    async with await connect(config or ClientConfig(), wanted):
        pass  # the contracts are there
    name = f"deployment-{found.registry.hex()[:NAME_DIGITS]}.json"
    kept = home.path / name
    for target, deployment in ((kept, found), (home.deployment, wanted)):
        text = json.dumps(deployment.to_json(), indent=2) + "\n"
        await asyncio.to_thread(write_private, target, text.encode(), replace=True)
    return Moved(registry, kept, new=True)
