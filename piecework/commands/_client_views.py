"""What the command line shows, as JSON-ready values. Amounts are base units, ids 0x hex."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from piecework.client.errors import ConfigError
from piecework.client.funds import Closing, Funds
from piecework.client.journal.proofs import ProvenReceipt
from piecework.client.journal.records import ChannelStatus
from piecework.client.sdk import PieceworkClient, Quote
from piecework.commands._terminal import JobProgress
from piecework_protocol.service import service_name
from piecework_protocol.types import Amount, ChannelId, parse_address, to_hex
from piecework_protocol.wire import SignedOffer


def offer_view(signed: SignedOffer) -> dict[str, Any]:
    """One offer in short."""
    o = signed.offer
    return {
        "operator": to_hex(o.operator),
        "receiver": to_hex(o.receiver),
        "endpoint": o.endpoint,
        "expires_at": o.expires_at,
        "slots": o.slots,
        "slots_free": o.slots_free,
        "models": [
            {
                "name": m.name,
                "digest": to_hex(m.digest),
                "profile": m.profile,
                "price_per_million_prompt_tokens": m.price_per_million_prompt_tokens,
                "price_per_million_output_tokens": m.price_per_million_output_tokens,
                "price_per_thousand_steps": m.price_per_thousand_steps,
                "max_context": m.max_context,
                "max_output": m.max_output,
                "tokens_per_second": m.tokens_per_second,
                "service": service_name(m.service),
            }
            for m in o.models
        ],
    }


def quote_view(quote: Quote) -> dict[str, Any]:
    """A quote, and who was left out why."""
    return {
        "worker": to_hex(quote.choice.operator),
        "model": quote.choice.model.name,
        "service": service_name(quote.choice.model.service),
        "expected": quote.expected,
        "ceiling": quote.ceiling,
        "seconds": round(quote.choice.seconds, 3),
        "reliability": round(quote.choice.reliability, 4),
        "why": quote.why,
        "alternatives": len(quote.alternatives),
        "unfit": list(quote.unfit),
    }


def result_view(progress: JobProgress) -> dict[str, Any]:
    """A finished job."""
    ended, accepted = progress.ended, progress.accepted
    view: dict[str, Any] = {"text": "".join(c.text for c in progress.canvases)}
    if ended is not None and accepted is not None:
        view |= {
            "job": to_hex(ended.job),
            "channel": to_hex(ended.channel),
            "worker": to_hex(ended.operator),
            "model": accepted.model,
            "service": service_name(accepted.service),
            "finish": ended.finish.value,
            "prompt_tokens": ended.prompt_tokens,
            "output_tokens": ended.output_tokens,
            "denoising_steps": ended.denoising_steps,
            "canvases": ended.canvases,
            "cost": ended.cost,
            "ceiling": accepted.ceiling,
            "acknowledged": ended.acknowledged,
            "receipts": [to_hex(c.receipt) for c in progress.canvases],
        }
    return view


async def receipts_view(client: PieceworkClient, job: bytes | None) -> dict[str, Any]:
    """Every receipt with its proof; `failed` counts those with trouble."""
    rows = []
    for channel in await asyncio.to_thread(client.store.channels):
        row, proven = await client.receipts(channel.id)
        rows += [
            _receipt_view(p, row.book.voucher().receipts_root)
            for p in proven
            if job is None or p.row.receipt.job == job
        ]
    return {"receipts": rows, "failed": sum(bool(row["trouble"]) for row in rows)}


def _receipt_view(proven: ProvenReceipt, root: bytes) -> dict[str, Any]:
    receipt = proven.row.receipt
    return {
        "job": to_hex(receipt.job),
        "canvas": receipt.canvas,
        "channel": to_hex(proven.row.channel),
        "digest": to_hex(proven.row.digest),
        "output_digest": to_hex(receipt.output_digest),
        "trace_root": to_hex(receipt.trace_root),
        "steps": receipt.steps,
        "units": receipt.units,
        "amount": receipt.amount,
        "signature": to_hex(proven.row.signature),
        "leaf_index": proven.row.leaf_index,
        "count": None if proven.proof is None else proven.proof.count,
        "proof": None if proven.proof is None else [to_hex(s) for s in proven.proof.siblings],
        "receipts_root": to_hex(root),
        "trouble": proven.trouble,
    }


async def balance_view(client: PieceworkClient) -> dict[str, Any]:
    """Where the money is."""
    balance = await client.balance()
    return {
        "payer": to_hex(balance.payer),
        "token": to_hex(balance.token),
        "own": await client.reader.token_balance(balance.token, balance.payer),
        "native_wei": await client.reader.native_balance(balance.payer),
        "pooled": balance.pooled,
        "free": balance.free,
        "in_channels": balance.in_channels,
        "paid": balance.paid,
    }


async def channels_view(client: PieceworkClient) -> list[dict[str, Any]]:
    """Every channel as it is now: what this client promised, and what the chain says."""
    rows = []
    for known in await asyncio.to_thread(client.store.channels):
        row = await client.channels.refresh(known.id)
        seen = await client.chain.channel(row.id)
        rows.append(
            {
                "channel": to_hex(row.id),
                "operator": to_hex(row.channel.operator),
                "receiver": to_hex(row.channel.receiver),
                "status": row.status.value,
                "on_chain": seen.state.value,
                "deposit": row.deposit,
                "funded": row.funded,
                "settled": seen.settled,
                "cumulative": row.book.cumulative,
                "count": row.book.accumulator.count,
                "unacknowledged": len(row.book.unacknowledged),
                "withdrawal_delay": row.channel.withdrawal_delay,
            }
        )
    return rows


async def close_view(client: PieceworkClient, chosen: Sequence[bytes]) -> list[dict[str, Any]]:
    """Close these channels, or all that are open."""
    rows = await asyncio.to_thread(client.store.channels)
    ids = [ChannelId(c) for c in chosen] or [r.id for r in rows if r.status is ChannelStatus.OPEN]
    money = Funds(client)
    return [_closing_view(await money.close(channel)) for channel in ids]


async def withdraw_view(
    client: PieceworkClient, amount: int | None, to: str | None
) -> dict[str, Any]:
    """Finish due withdrawals, then send `amount` (all that is free if None) to `to` (the payer if
    None)."""
    money = Funds(client)
    try:
        receiver = client.wallet.payer.address if to is None else parse_address(to)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    closings = [_closing_view(closing) for closing in await money.withdraw_due()]
    units = await client.channels.free_balance() if amount is None else Amount(amount)
    if units:
        await money.withdraw_balance(units, receiver)
    return {"channels": closings, "amount": units, "to": to_hex(receiver)}


def _closing_view(closing: Closing) -> dict[str, Any]:
    return {
        "channel": to_hex(closing.channel),
        "closed": closing.closed,
        "withdrawable_at": closing.withdrawable_at,
        "note": closing.note,
    }
