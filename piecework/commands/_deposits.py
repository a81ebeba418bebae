"""Deposits as the command line does them: now, signed into a file, or relayed from one."""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path
from typing import Any

from piecework.base.jsons import loads
from piecework.chain.authorizations import SignedAuthorization
from piecework.client.errors import ConfigError
from piecework.client.funds import Funds
from piecework.client.sdk import PieceworkClient
from piecework_protocol.types import Amount, Bytes32

MAX_AUTHORIZATION_BYTES = 4096


async def deposit_now(client: PieceworkClient, amount: int) -> dict[str, Any]:
    """Deposit from the payer's own tokens and gas."""
    mined = await Funds(client).deposit(Amount(amount))
    return {"amount": amount, "block": mined.block}


async def sign_to(
    client: PieceworkClient, amount: int, file: Path, valid_for_s: int
) -> dict[str, Any]:
    """Write a signed deposit to a new file, for whoever pays the gas."""
    nonce = Bytes32(secrets.token_bytes(32))
    signed = await Funds(client).authorize_deposit(Amount(amount), valid_for_s, nonce)
    text = json.dumps(signed.to_json(), indent=2) + "\n"

    def write() -> None:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)

    try:
        await asyncio.to_thread(write)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from None
    return {"amount": amount, "file": str(file), "valid_before": signed.authorization.valid_before}


async def relay_from(client: PieceworkClient, file: Path) -> dict[str, Any]:
    """Submit a signed deposit and pay its gas."""

    def read() -> Any:
        with file.open("rb") as stream:
            return loads(stream.read(MAX_AUTHORIZATION_BYTES))

    try:
        raw = await asyncio.to_thread(read)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{file} is not a signed deposit") from None
    signed = SignedAuthorization.from_json(raw)
    mined = await Funds(client).relay(signed)
    return {"amount": signed.authorization.value, "block": mined.block}
