"""Signed withdrawals as the command line does them: written to a file, or relayed from one."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piecework.base.amounts import TokenAmount
from piecework.base.errors import UsageError
from piecework.base.files import read, shown, write_private
from piecework.base.jsons import loads
from piecework.chain.authorizations import SignedWithdrawal
from piecework.client.orders import Closing
from piecework.client.sdk import PieceworkClient
from piecework.commands._client_views import closings_view, withdrawal_view
from piecework_protocol.types import Address, to_hex

MAX_ORDER_BYTES = 4096


class NotAWithdrawal(UsageError):
    """A file does not hold a signed withdrawal."""


@dataclass(frozen=True, slots=True)
class WayOut:
    """One way to take money out: what the options of `client withdraw` say."""

    amount: TokenAmount | None
    to: Address | None
    from_channel: str | None
    cancel: str | None
    gasless: Path | None
    fee: TokenAmount
    valid_for_s: int
    relay: Path | None


async def carry_out(client: PieceworkClient, way: WayOut) -> dict[str, Any]:
    """Ask a channel for a part, call that off, sign, relay, or withdraw what is free."""
    orders, store = client.funds.orders, client.store
    if way.cancel is not None:
        return _one(await orders.call_off(store.channel_named(way.cancel)))
    if way.from_channel is not None and way.amount is not None:
        return _one(await orders.request(store.channel_named(way.from_channel), way.amount))
    if way.relay is not None:
        return await relay_from(client, way.relay)
    if way.gasless is not None:
        return await _sign_to(client, way, way.gasless)
    return withdrawal_view(await client.funds.withdraw(way.amount, way.to))


def _one(closing: Closing) -> dict[str, Any]:
    return {"channels": closings_view((closing,))}


async def _sign_to(client: PieceworkClient, way: WayOut, file: Path) -> dict[str, Any]:
    """Write a signed withdrawal to a new file. Anybody may submit it and gets its fee."""
    if way.amount is None:
        raise NotAWithdrawal("a signed withdrawal needs an amount")
    signed = await client.funds.orders.sign(way.amount, way.to, way.fee, way.valid_for_s)
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
