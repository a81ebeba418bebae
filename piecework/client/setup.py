"""Making a client's home. Safe to run again: what is there stays as it is."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from piecework.chain.deployment import Deployment
from piecework.client.config import ClientHome, load_config
from piecework.client.errors import ConfigError
from piecework.client.wallet import create_key, open_wallet
from piecework_protocol.types import Address


@dataclass(frozen=True, slots=True)
class SetUp:
    """Whose home it is, and what was made just now."""

    payer: Address
    authorizer: Address
    created: tuple[str, ...]


async def set_up(
    folder: Path,
    deployment: Path,
    indexes: tuple[str, ...],
    *,
    second_key: bool,
    password: Callable[[], str],
) -> SetUp:
    """Make the missing parts of a home. `ConfigError` if it belongs to another deployment."""
    return await asyncio.to_thread(_set_up, folder, deployment, indexes, second_key, password())


def _set_up(
    folder: Path, file: Path, indexes: tuple[str, ...], second_key: bool, password: str
) -> SetUp:
    home, created = ClientHome(folder), []
    wanted = Deployment.load(file)
    home.create()
    if home.deployment.exists():
        found = Deployment.load(home.deployment)
        if (found.chain_id, found.escrow) != (wanted.chain_id, wanted.escrow):
            raise ConfigError(f"{folder} belongs to another deployment. Use another --home")
    else:
        wanted.save(home.deployment)
        home.deployment.chmod(0o600)
        created.append(home.deployment.name)
    if not home.config.exists():
        _write_private(home.config, f"indexes = {json.dumps(list(indexes))}\n")
        created.append(home.config.name)
    load_config(home.config)
    for wallet, needed in ((home.wallet, True), (home.authorizer, second_key)):
        if needed and not wallet.exists():
            create_key(wallet, password)
            created.append(wallet.name)
    keys = open_wallet(home.wallet, home.authorizer, password)
    return SetUp(keys.payer.address, keys.authorizer.address, tuple(created))


def _write_private(file: Path, text: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
