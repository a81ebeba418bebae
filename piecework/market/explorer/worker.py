"""The page of one worker: stake, uptime, offer, and what the chain has paid it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Final

from piecework.market.audits import WorkerAudits
from piecework.market.explorer import audits, charts
from piecework.market.explorer.layout import (
    Cell,
    Column,
    Money,
    counted,
    facts,
    page,
    settled_facts,
    short,
    table,
    written,
)
from piecework.market.explorer.offers import OFFER_COLUMNS, offer_cells
from piecework.market.history import SettledDay, SettledSum, Settlement, Uptime
from piecework.market.listing import Entry, Listed
from piecework_protocol.types import Address, Amount, Timestamp, to_hex

PAYMENT_COLUMNS: Final = (
    Column("When"),
    Column("Amount", number=True),
    Column("Block", number=True),
    Column("Transaction"),
)


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What the page shows.

    Attributes:
        operator: The worker's key.
        listed: Its offer, None if none is live.
        stake: What it has bonded, None if it is not registered or the chain does not answer.
        uptime: None if no sample of this index has seen it.
        settlements: Its last payments, newest first.
        settled: What it was paid on each of the last days, oldest first.
        in_all: What it was ever paid.
        explorer: A block explorer's address of a transaction, with `{}` for its hash, or None.
        audits: What clients reported, and what their evidence shows.
    """

    operator: Address
    listed: Listed | None
    stake: Amount | None
    uptime: Uptime | None
    settlements: Sequence[Settlement]
    settled: Sequence[SettledDay]
    in_all: SettledSum
    explorer: str | None
    audits: WorkerAudits


def render(worker: WorkerFacts, now: Timestamp, money: Money) -> str:
    """Return the page."""
    days = worker.settled
    figures = facts(
        ("–" if worker.stake is None else money.price(worker.stake), "stake"),
        (_share(worker.uptime), _uptime_label(worker.uptime)),
        *settled_facts(worker.in_all, money),
        (f"{worker.in_all.payments:,}", "payments"),
        (f"{worker.audits.counts.failures:,}", "proven failures"),
    )
    chart = charts.bars(
        f"{money.token.symbol} settled a day",
        [day.settled.amount for day in days],
        money.token.number,
        f"payments on {counted(len(days), 'day')}",
    )
    offers = table(
        "What the worker offers now. It signed each figure.",
        OFFER_COLUMNS,
        _rows(worker.listed, now, money),
        "No offer is live.",
    )
    payments = table(
        "The last payments to this worker's channels, from final blocks. Those to itself are in no "
        "sum of its earnings.",
        PAYMENT_COLUMNS,
        (_payment(one, worker.explorer, money) for one in worker.settlements),
        "The chain has paid this worker nothing yet.",
    )
    parts = {
        "figures": figures,
        "history": f'<section class="charts" aria-label="History">{chart}</section>',
        "offers": f"<h2>Offers</h2>\n{offers}",
        "connection": _connection(worker.listed),
        "audits": audits.section(worker.audits, money),
        "payments": f"<h2>Payments</h2>\n{payments}",
    }
    intro = f'<p><code>{to_hex(worker.operator)}</code></p><nav><a href="/">All offers</a></nav>'
    return page(f"Worker {short(worker.operator)}", intro, parts, now, money)


def _rows(listed: Listed | None, now: Timestamp, money: Money) -> Sequence[tuple[Cell, ...]]:
    if listed is None:
        return ()
    models = listed.signed.offer.models
    return [offer_cells(Entry(listed, model), now, money) for model in models]


def _connection(listed: Listed | None) -> str:
    if listed is None:
        return ""
    offer = listed.signed.offer
    rows = (
        ("Endpoints", ", ".join(written(endpoint.address) for endpoint in offer.endpoints)),
        ("TLS certificate", to_hex(offer.tls_certificate)),
        ("Paid to", to_hex(offer.receiver)),
        ("Profile", ", ".join(dict.fromkeys(written(model.profile) for model in offer.models))),
    )
    lines = "\n".join(f"{name:<16} {value}" for name, value in rows)
    return f"""<details><summary>Connect to this worker</summary>
<p>A client of this market finds it by itself, and pins these keys when it dials:</p>
<pre>{escape(lines)}</pre></details>"""


def _payment(one: Settlement, explorer: str | None, money: Money) -> tuple[Cell, ...]:
    at, hash_ = datetime.fromtimestamp(one.at, UTC), to_hex(one.transaction)
    shown = f"<code>{hash_[:18]}…</code>"
    if explorer is not None:
        shown = f'<a href="{escape(explorer.replace("{}", hash_))}" rel="noreferrer">{shown}</a>'
    return (
        Cell(f'<time datetime="{at.isoformat()}">{at:%Y-%m-%d %H:%M:%S}</time>'),
        Cell(money.price(one.amount) + (" <small>to itself</small>" if one.own else "")),
        Cell(f"{one.block:,}"),
        Cell(shown, title=hash_),
    )


def _share(uptime: Uptime | None) -> str:
    return "–" if uptime is None else f"{100 * uptime.share:.1f} %"


def _uptime_label(uptime: Uptime | None) -> str:
    if uptime is None:
        return "uptime, not seen yet by this index"
    since = datetime.fromtimestamp(uptime.since, UTC)
    return f"uptime seen by this index since {since:%Y-%m-%d}"
