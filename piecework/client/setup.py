"""Making a client's home. It is safe to repeat: a kill at any moment leaves whole files only.

A second run makes what is missing. If it asks for something else than what is there, it says so
and changes nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from piecework.base.files import SYSTEM_DISK, Disk, write_private
from piecework.base.settings import to_toml
from piecework.chain.deployment import Deployment
from piecework.client.config import ClientConfig, ClientHome, load_config
from piecework.client.errors import HomeError
from piecework.client.wallet import create_key, open_wallet
from piecework_protocol.types import Address, to_hex


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
    rpc_url: str | None = None,
    disk: Disk = SYSTEM_DISK,
) -> SetUp:
    """Make the missing parts of a home.

    Args:
        folder: The home.
        deployment: The market's deployment file, which is copied into the home.
        indexes: URLs for the settings. Empty if the caller did not choose.
        second_key: Whether jobs and vouchers get a key of their own.
        password: Asked once, when it is known that the home can be used.
        rpc_url: The chain's node for the settings. None if the caller did not choose.
        disk: The steps of each write.

    Raises:
        HomeError: the home belongs to another market, has other indexes than these, or is in use
            with one key. The text begins with the option that does not fit.
        BadDeployment: the deployment file cannot be used.
        FileError: a file or the folder cannot be made.
        SettingsError: the settings in the home cannot be used.
        WalletError: a key in the home does not open with this password.
    """
    home = ClientHome(folder)
    wanted = await asyncio.to_thread(Deployment.load, deployment)
    await asyncio.to_thread(_check_asked, home, wanted, indexes, second_key, rpc_url)
    home.create(disk)
    texts = {
        home.deployment: json.dumps(wanted.to_json(), indent=2) + "\n",
        home.config: to_toml(ClientConfig, {"indexes": indexes, "rpc_url": rpc_url}, rest=True),
    }
    wallets = (home.wallet, home.authorizer) if second_key else (home.wallet,)
    secret = password()
    created = await asyncio.to_thread(_make, texts, wallets, secret, disk)
    keys = await asyncio.to_thread(open_wallet, home.wallet, home.authorizer, secret)
    return SetUp(keys.payer.address, keys.authorizer.address, created)


def _check_asked(
    home: ClientHome,
    wanted: Deployment,
    indexes: tuple[str, ...],
    second_key: bool,
    rpc_url: str | None,
) -> None:
    """Refuse to drop in silence what was asked for."""
    if second_key and home.store.exists() and not home.authorizer.exists():
        raise HomeError(
            f"--second-key: {home.path} is in use with one key, which its channels name. "
            "Use another --home for a client with two keys"
        )
    if home.deployment.exists():
        found = Deployment.load(home.deployment)
        if not found.same_market(wanted):
            raise HomeError(
                f"--deployment: {home.path} belongs to another market: "
                f"registry {to_hex(found.registry)} on chain "
                f"{found.chain_id}. Use another --home"
            )
        other = [f.name for f in fields(found) if getattr(found, f.name) != getattr(wanted, f.name)]
        if other:
            raise HomeError(
                f"--deployment: {home.deployment} differs from the given file in "
                f"{', '.join(other)}. If the given file is right, copy it there"
            )
    if home.config.exists():
        there = load_config(home.config, environment={})
        if rpc_url is not None and rpc_url != there.rpc_url:
            raise HomeError(
                f"--rpc-url: {home.config} has another rpc_url. "
                f"Edit it: rpc_url = {json.dumps(rpc_url)}"
            )
        if indexes and indexes != there.indexes:
            listed = ", ".join(there.indexes) or "none"
            raise HomeError(
                f"--index: {home.config} has other indexes: {listed}. "
                f"Edit it: indexes = {json.dumps(list(indexes))}"
            )


def _make(
    texts: Mapping[Path, str], wallets: Sequence[Path], password: str, disk: Disk
) -> tuple[str, ...]:
    """Write the files that are not there, and return their names."""
    created = []
    for file, text in texts.items():
        if not file.exists():
            write_private(file, text.encode(), disk=disk)
            created.append(file.name)
    for file in wallets:
        if not file.exists():
            create_key(file, password, disk=disk)
            created.append(file.name)
    return tuple(created)
