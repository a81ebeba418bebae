"""What the client's commands print, as JSON-ready values. Amounts are base units, ids 0x hex.

Views only show. What moves money is in `piecework.client.funds`.
"""

from __future__ import annotations

import asyncio
import csv
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TextIO

from piecework.base.amounts import Token
from piecework.client.funds import Withdrawal
from piecework.client.invoice import InvoiceLine
from piecework.client.jobs.output_rates import OutputRate, RateOf
from piecework.client.journal.proofs import ProvenReceipt
from piecework.client.journal.records import ChannelRow
from piecework.client.limits import OWN_JOBS_THAT_COUNT_FULLY
from piecework.client.network.searches import Found
from piecework.client.orders import Closing
from piecework.client.sdk import PieceworkClient, Quote
from piecework.commands._terminal import JobProgress
from piecework_protocol.signing import sign
from piecework_protocol.types import Address, Timestamp, to_hex
from piecework_protocol.usual import MEAN_STEPS, Source
from piecework_protocol.views import PRICES, as_json, members


def offers_view(found: Found, rates: RateOf) -> dict[str, Any]:
    """Every offer, with the price of output and its steps beside the prices of each model."""
    return {
        "offers": [
            {
                **as_json(signed.offer),
                "models": [
                    {
                        **as_json(model),
                        "kinds": model.kind_names,
                        "with_steps": rate_view(rates(signed.offer, model)),
                    }
                    for model in signed.offer.models
                ],
            }
            for signed in found.offers
        ],
        "troubles": list(found.troubles),
    }


def rate_view(rate: OutputRate) -> dict[str, Any]:
    """What a million output tokens cost with their denoising steps, and who says so."""
    return {
        **members(rate, "expected", "claimed_p50", "claimed_p90"),
        "own_jobs": round(rate.own_jobs, 1),
        "claimed_jobs": rate.claim.jobs,
        "source": rate.claim.source.value,
    }


_SAID_BY = {
    Source.RECEIPTS.value: "by the worker's own word",
    Source.BENCHMARK.value: "estimated from the worker's benchmark",
    Source.ASSUMED.value: f"estimated at {MEAN_STEPS} steps a canvas",
}


def rate_line(rate: dict[str, Any], token: Token) -> str:
    """One line of a rate for a person: the figure, its spread and its source."""
    line = f"{token.format(rate['expected'])} for 1M output tokens with their steps"
    if rate["own_jobs"] >= OWN_JOBS_THAT_COUNT_FULLY:
        return f"{line}, by your own jobs"
    said = _SAID_BY[rate["source"]]
    if rate["source"] == Source.RECEIPTS.value:
        said += f" ({rate['claimed_jobs']} jobs, nine of ten under "
        said += f"{token.format(rate['claimed_p90'])})"
    mine = f" and {rate['own_jobs']:g} jobs of yours" if rate["own_jobs"] else ""
    return f"{line}, {said}{mine}"


def quote_view(quote: Quote) -> dict[str, Any]:
    """A quote with its parts, and who was left out why."""
    choice = quote.choice
    return {
        "usage": members(choice.usage, "prompt_tokens", "output_tokens", "denoising_steps"),
        "prices": members(choice.model, *PRICES),
        "with_steps": rate_view(choice.rate),
        **members(choice, "expected", "ceiling", "fee"),
        **members(quote, "why", "unfit"),
        "worker": to_hex(choice.operator),
        "model": choice.model.name,
        **members(choice.model, "service"),
        "seconds": round(choice.seconds, 3),
        "reliability": round(choice.reliability, 4),
        "alternatives": len(quote.alternatives),
    }


def result_view(progress: JobProgress) -> dict[str, Any]:
    """A finished job."""
    ended, accepted = progress.ended, progress.accepted
    view: dict[str, Any] = {"text": "".join(c.text for c in progress.canvases)}
    if ended is None or accepted is None:
        return view
    facts = as_json(ended)
    worker = facts.pop("operator")
    receipts = [to_hex(c.receipt) for c in progress.canvases]
    terms = members(accepted, "model", "service", "ceiling")
    return {**view, **facts, **terms, "worker": worker, "receipts": receipts}


async def receipts_view(client: PieceworkClient, job: str | None) -> dict[str, Any]:
    """Every receipt with its proof, and the signed vouchers that the proofs lead to.

    Somebody else can check all of it: digests, signatures and inclusion. `failed` counts receipts
    with trouble.
    """
    named = None if job is None else await asyncio.to_thread(client.store.job_named, job)
    proofs = await client.proofs(named)
    ids = {proven.row.channel for proven in proofs}
    channels = {i: await asyncio.to_thread(client.store.channel, i) for i in ids}
    return {
        "receipts": [_receipt_view(p, channels[p.row.channel].channel.operator) for p in proofs],
        "vouchers": [_voucher_view(client, channels[i]) for i in sorted(ids)],
        "domain": as_json(client.context.domain),
        "failed": sum(bool(proven.trouble) for proven in proofs),
    }


def _receipt_view(proven: ProvenReceipt, operator: Address) -> dict[str, Any]:
    proof = proven.proof
    return {
        **as_json(proven.row.receipt),
        "operator": to_hex(operator),
        **members(proven.row, "channel", "digest", "signature", "leaf_index"),
        **members(proven, "receipts_root", "trouble"),
        "count": None if proof is None else proof.count,
        "proof": None if proof is None else as_json(proof.siblings),
    }


def _voucher_view(client: PieceworkClient, row: ChannelRow) -> dict[str, Any]:
    """The latest voucher as the worker has it: signatures are deterministic. A channel of an
    authorizer whose key is not in this home shows none."""
    voucher, signer = row.book.voucher(), client.wallet.authorizer
    mine = signer.address == row.channel.authorizer
    signature = to_hex(sign(client.context.domain, voucher, signer)) if mine else None
    return {
        **as_json(voucher),
        "signature": signature,
        "authorizer": to_hex(row.channel.authorizer),
    }


async def balance_view(client: PieceworkClient) -> dict[str, Any]:
    """Where the money is."""
    balance, reader = await client.balance(), client.reader
    held = ("pooled", "free", "in_channels", "paid", "spent_today", "spent_this_month")
    return {
        "payer": to_hex(balance.payer),
        "own": await reader.token_balance(client.token, balance.payer),
        "native_wei": await reader.native_balance(balance.payer),
        **{name: getattr(balance, name).units for name in held},
        "reserved": [
            {**members(r, "channel", "operator", "amount", "until"), "why": r.why.value}
            for r in balance.reservations
        ],
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
                **members(row.channel, "operator", "receiver", "withdrawal_delay"),
                **members(row, "status", "deposit", "funded"),
                "on_chain": seen.state.value,
                "settled": seen.settled,
                "cumulative": row.book.cumulative,
                "count": row.book.accumulator.count,
                "unacknowledged": len(row.book.unacknowledged),
            }
        )
    return rows


def closings_view(closings: tuple[Closing, ...]) -> list[dict[str, Any]]:
    """What became of channels that were closed."""
    return [
        {**members(c, "channel", "closed", "state", "withdrawable_at", "note")} for c in closings
    ]


def withdrawal_view(withdrawal: Withdrawal) -> dict[str, Any]:
    """What was taken out of channels, and what was sent to whom."""
    return {
        "channels": closings_view(withdrawal.channels),
        "amount": withdrawal.amount.units,
        "to": to_hex(withdrawal.to),
    }


async def recovery_view(client: PieceworkClient) -> list[dict[str, Any]]:
    """Every channel that the chain knows."""
    return [
        {
            "channel": to_hex(each.row.id),
            "operator": to_hex(each.row.channel.operator),
            **members(each.row, "status", "funded"),
            "cumulative": each.row.book.cumulative,
            **members(each, "found", "note"),
        }
        for each in await client.funds.recover()
    ]


async def invoice_view(client: PieceworkClient, since: int, until: int) -> dict[str, Any]:
    """A bill. Balances before and after it are those of the pool and of all channels."""
    bill = await client.funds.invoice(Timestamp(since), Timestamp(until))
    names = ("pool", "in_channels")
    return {
        "lines": [_line_view(line) for line in bill.lines],
        "before": dict(zip(names, bill.before, strict=True)),
        "after": dict(zip(names, bill.after, strict=True)),
        "totals": as_json(bill.totals),
        "troubles": list(bill.troubles),
    }


def _line_view(line: InvoiceLine) -> dict[str, Any]:
    log, channel = line.event.log, line.event.channel
    return {
        "time": line.event.time,
        "block": log.block,
        "log_index": log.index,
        "transaction": to_hex(log.transaction),
        **members(line, "kind"),
        "channel": None if channel is None else to_hex(channel),
        "worker": None if line.worker is None else to_hex(line.worker),
        **members(line, "amount", "fee", "pool", "in_channels", "receipts", "check"),
    }


def write_csv(view: dict[str, Any], token: Token, out: TextIO) -> None:
    """A bill for a spreadsheet. Amounts are numbers of tokens, exact to the base unit."""
    money = ("amount", "fee", "pool", "in_channels")
    names = ("time", "block", "log_index", "transaction", "kind", "channel", "worker")
    table = csv.writer(out)
    table.writerow((*names, *money, "token", "receipts", "check"))
    for row in view["lines"]:
        time = datetime.fromtimestamp(row["time"], UTC).isoformat()
        amounts = (f"{Decimal(row[name]).scaleb(-token.decimals):f}" for name in money)
        shown = (row[name] for name in names[1:])
        table.writerow((time, *shown, *amounts, token.symbol, row["receipts"], row["check"]))
