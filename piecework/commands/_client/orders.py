"""Signed withdrawals as the command line does them: written to a file, or relayed from one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piecework.base.amounts import TokenAmount
from piecework.base.errors import UsageError
from piecework.chain.contracts.authorizations import SignedWithdrawal
from piecework.client.orders import Closing
from piecework.client.sdk import PieceworkClient
from piecework.commands._client.signed_files import read_signed, write_signed
from piecework.commands._client.views import closings_view, withdrawal_view
from piecework_protocol.types import Address
from piecework_protocol.views import members


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
    await write_signed(file, signed.to_json())
    order = signed.order
    return {"amount": order.amount, "fee": order.fee, "file": str(file), "until": order.deadline}


async def relay_from(client: PieceworkClient, file: Path) -> dict[str, Any]:
    """Submit a signed withdrawal, pay its gas and get its fee.

    Raises:
        FileError: the file cannot be read.
        NotAWithdrawal: it does not hold a signed withdrawal.
    """
    signed = SignedWithdrawal.from_json(
        await read_signed(file, "a signed withdrawal", NotAWithdrawal)
    )
    mined = await client.funds.orders.relay(signed)
    return {**members(signed.order, "amount", "fee", "to"), "block": mined.block}
