"""Deposits as the command line does them: now, signed into a file, or relayed from one."""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path
from typing import Any

from piecework.base.amounts import TokenAmount
from piecework.base.errors import UsageError
from piecework.base.files import read, shown, write_private
from piecework.base.jsons import loads
from piecework.chain.authorizations import SignedDeposit
from piecework.client.sdk import PieceworkClient
from piecework_protocol.types import Bytes32

MAX_AUTHORIZATION_BYTES = 4096


class NotADeposit(UsageError):
    """A file does not hold a signed deposit."""


async def deposit_now(client: PieceworkClient, amount: TokenAmount) -> dict[str, Any]:
    """Deposit from the payer's own tokens and gas."""
    mined = await client.funds.deposit(amount)
    return {"amount": amount.units, "block": mined.block}


async def sign_to(
    client: PieceworkClient, amount: TokenAmount, file: Path, valid_for_s: int
) -> dict[str, Any]:
    """Write a signed deposit to a new file. Anybody may submit it and pay the gas.

    Raises:
        FileError: the file exists or cannot be written.
    """
    salt = Bytes32(secrets.token_bytes(32))
    signed = await client.funds.authorize_deposit(amount, valid_for_s, salt)
    text = json.dumps(signed.to_json(), indent=2) + "\n"
    await asyncio.to_thread(write_private, file, text.encode())
    until = signed.valid_before
    return {"amount": amount.units, "file": str(file), "valid_before": until}


async def relay_from(client: PieceworkClient, file: Path) -> dict[str, Any]:
    """Submit a signed deposit and pay its gas.

    Raises:
        FileError: the file cannot be read.
        NotADeposit: it does not hold a signed deposit.
    """
    data = await asyncio.to_thread(read, file, MAX_AUTHORIZATION_BYTES)
    try:
        raw = loads(data)
    except ValueError:
        raise NotADeposit(f"{shown(file)} is not a signed deposit") from None
    signed = SignedDeposit.from_json(raw)
    mined = await client.funds.relay(signed)
    return {"amount": signed.amount, "block": mined.block}
