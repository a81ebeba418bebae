"""Signed withdrawals as the command line does them: written to a file, or relayed from one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from piecework.base.amounts import TokenAmount
from piecework.base.errors import UsageError
from piecework.base.files import read, shown, write_private
from piecework.base.jsons import loads
from piecework.chain.authorizations import SignedWithdrawal
from piecework.client.sdk import PieceworkClient
from piecework_protocol.types import Address, to_hex

MAX_ORDER_BYTES = 4096


class NotAWithdrawal(UsageError):
    """A file does not hold a signed withdrawal."""


async def sign_to(  # noqa: PLR0917
    client: PieceworkClient,
    amount: TokenAmount,
    to: Address | None,
    fee: TokenAmount,
    file: Path,
    valid_for_s: int,
) -> dict[str, Any]:
    """Write a signed withdrawal to a new file. Anybody may submit it and gets its fee.

    Raises:
        FileError: the file exists or cannot be written.
    """
    signed = await client.funds.orders.sign(amount, to, fee, valid_for_s)
    text = json.dumps(signed.to_json(), indent=2) + "\n"
    await asyncio.to_thread(write_private, file, text.encode())
    order = signed.order
    return {"amount": order.amount, "fee": order.fee, "file": str(file), "until": order.deadline}


async def relay_from(client: PieceworkClient, file: Path) -> dict[str, Any]:
    """Submit a signed withdrawal, pay its gas and get its fee.

    Raises:
        FileError: the file cannot be read.
        NotAWithdrawal: it does not hold a signed withdrawal.
    """
    data = await asyncio.to_thread(read, file, MAX_ORDER_BYTES)
    try:
        raw = loads(data)
    except ValueError:
        raise NotAWithdrawal(f"{shown(file)} is not a signed withdrawal") from None
    signed = SignedWithdrawal.from_json(raw)
    mined = await client.funds.orders.relay(signed)
    order = signed.order
    sent = {"amount": order.amount, "fee": order.fee, "to": to_hex(order.to)}
    return {**sent, "block": mined.block}
