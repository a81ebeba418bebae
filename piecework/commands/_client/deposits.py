"""Deposits as the command line does them: now, signed into a file, or relayed from one."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from piecework.base.amounts import TokenAmount
from piecework.base.errors import UsageError
from piecework.chain.contracts.authorizations import SignedDeposit
from piecework.client.sdk import PieceworkClient
from piecework.commands._client.signed_files import read_signed, write_signed
from piecework_protocol.types import Bytes32


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
    await write_signed(file, signed.to_json())
    until = signed.valid_before
    return {"amount": amount.units, "file": str(file), "valid_before": until}


async def relay_from(client: PieceworkClient, file: Path) -> dict[str, Any]:
    """Submit a signed deposit and pay its gas.

    Raises:
        FileError: the file cannot be read.
        NotADeposit: it does not hold a signed deposit.
    """
    signed = SignedDeposit.from_json(await read_signed(file, "a signed deposit", NotADeposit))
    mined = await client.funds.relay(signed)
    return {"amount": signed.amount, "block": mined.block}
