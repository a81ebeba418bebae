"""The audits on the page of a worker. Pure.

Only what the worker's own signatures show is called a failure. The rest is what a client says, and
stands beside what the chain had paid on that client's channel.
"""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from typing import Final

from piecework.market.audits import ShownAudit, WorkerAudits
from piecework.market.explorer.layout import Cell, Column, Money, counted, short, table
from piecework_protocol.evidence.reports import Bearing
from piecework_protocol.objects import AuditOutcome
from piecework_protocol.types import to_hex

COLUMNS: Final = (
    Column("When"),
    Column("Audit"),
    Column("Result"),
    Column("Borne out by"),
    Column("Paid by the client", number=True),
    Column("Evidence"),
)
CAPTION: Final = (
    "A failure is proven if the worker's own signatures show it: check its evidence with "
    "piecework verify-reply. What is only reported is the word of a client that has paid this "
    "worker so much on that channel."
)
_OUTCOMES: Final = {AuditOutcome.PASS: "passed", AuditOutcome.FAIL: "failed"}


def section(audits: WorkerAudits, money: Money) -> str:
    """Return the heading, a line of sums and the table."""
    found = audits.counts
    sums = (
        f"<p>{counted(found.failures, 'job')} with a proven failure, "
        f"{counted(found.checked, 'canvas check')} by rules without one. "
        f"{counted(found.reporters, 'client')} reported: {found.reported_passes:,} passed and "
        f"{found.reported_failures:,} failed by their word.</p>"
    )
    rows = [_row(one, money) for one in audits.audits]
    return "\n".join(("<h2>Audits</h2>", sums, table(CAPTION, COLUMNS, rows, "None was reported.")))


def _row(one: ShownAudit, money: Money) -> tuple[Cell, ...]:
    at = datetime.fromtimestamp(one.received_at, UTC)
    evidence = f"/v1/audits/{to_hex(one.id)}"
    return (
        Cell(f'<time datetime="{at.isoformat()}">{at:%Y-%m-%d %H:%M:%S}</time>'),
        Cell(f"{one.level.name.lower()}, canvas {one.canvas}", title=to_hex(one.job)),
        Cell(_result(one), title="; ".join(one.findings)),
        Cell(_bearing(one), title=to_hex(one.reporter)),
        Cell(money.price(one.settled)),
        Cell(f'<a href="{evidence}" download>evidence</a> <a href="{evidence}/report">report</a>'),
    )


def _result(one: ShownAudit) -> str:
    if one.bearing is Bearing.PROVEN:
        return f"<b>failed</b>: {escape(one.findings[0])}"
    return _OUTCOMES[one.outcome]


def _bearing(one: ShownAudit) -> str:
    if one.bearing is Bearing.PROVEN:
        return "the worker's signatures"
    if one.bearing is Bearing.CHECKED:
        return "rules, checked here"
    return f"reported by <code>{short(one.reporter)}</code>"
