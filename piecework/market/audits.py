"""The audits that clients report about workers, with the evidence of each.

A worker's rival must not be able to smear it. So only what the worker's own signatures show counts
as a failure: a contradiction, or a rule that is broken by what its leaves commit to. What a client
says of a replay or a forced pass is shown as said by that client, with what the chain says it has
paid on that channel. A report needs the signature of the payer or authorizer of a job that the
worker signed receipts for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from piecework.base.jsons import loads
from piecework.market.errors import Declined
from piecework.market.limits import (
    AUDITS_KEPT,
    AUDITS_KEPT_PER_REPORTER,
    MAX_AUDIT_FINDINGS,
    MAX_AUDIT_STORE_BYTES,
    MAX_WORKER_AUDIT_BYTES,
)
from piecework.market.storage.database import MarketDatabase, Row, Statements
from piecework.market.storage.schema import AUDIT_BYTES
from piecework_protocol.errors import EvidenceRefused
from piecework_protocol.evidence.file import write_evidence
from piecework_protocol.evidence.reports import (
    Bearing,
    CheckedReport,
    ReportFile,
    check_report,
    read_report,
)
from piecework_protocol.objects import AuditLevel, AuditOutcome
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    ChannelId,
    Digest,
    JobId,
    Timestamp,
    keccak256,
    to_hex,
)
from piecework_protocol.views import as_json, members

_PUT: Final = """
INSERT INTO audits VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
"""
_COUNTS: Final = (
    "SELECT count(DISTINCT CASE WHEN bearing = 'proven' THEN job END), "
    "count(CASE WHEN bearing = 'checked' THEN 1 END), "
    "count(CASE WHEN bearing = 'reported' AND outcome = 0 THEN 1 END), "
    "count(CASE WHEN bearing = 'reported' AND outcome = 1 THEN 1 END), "
    "count(DISTINCT reporter) FROM audits WHERE operator = $1"
)
# What is proven stays longest, then what is new.
_ORDER: Final = "ORDER BY bearing = 'proven' DESC, received_at DESC, id"
_OF: Final = (
    "SELECT id, operator, job, canvas, level, outcome, bearing, reporter, charged, settled, "  # noqa: S608
    f"findings, received_at FROM audits WHERE operator = $1 {_ORDER} LIMIT $2"
)
_EARLIER: Final = "job = $1 AND canvas = $2 AND level = $3 AND reporter = $4"
_OVER_ITS_SHARE: Final = (
    "operator = $1 AND reporter = $2 AND id NOT IN "  # noqa: S608
    f"(SELECT id FROM audits WHERE operator = $1 AND reporter = $2 {_ORDER} LIMIT $3)"
)
_OVER_ALL: Final = (
    "operator = $1 AND id NOT IN "  # noqa: S608
    f"(SELECT id FROM audits WHERE operator = $1 {_ORDER} LIMIT $2)"
)


_OVER_ITS_BYTES: Final = (
    "operator = $1 AND id IN (SELECT id FROM (SELECT id, sum(length(evidence) + length(report)) "  # noqa: S608
    f"OVER ({_ORDER} ROWS UNBOUNDED PRECEDING) AS held FROM audits WHERE operator = $1) AS sums "
    "WHERE held > $2)"
)


@dataclass(frozen=True, slots=True)
class ShownAudit:
    """One audit of a worker.

    Attributes:
        id: Names its evidence.
        bearing: What bears it out.
        reporter: The client that signed the report.
        charged: What the job's receipts charge, as the worker signed them.
        settled: What the chain had paid on the job's channel when the report came.
        findings: What the worker's signatures show. Empty unless it is proven.
    """

    id: Bytes32
    operator: Address
    job: JobId
    canvas: int
    level: AuditLevel
    outcome: AuditOutcome
    bearing: Bearing
    reporter: Address
    charged: Amount
    settled: Amount
    findings: tuple[str, ...]
    received_at: Timestamp

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            **members(self, "id", "operator", "job", "canvas", "bearing"),
            "level": self.level.name.lower(),
            "outcome": self.outcome.name.lower(),
            "reported_by": to_hex(self.reporter),
            **members(self, "charged", "settled", "findings", "received_at"),
        }


@dataclass(frozen=True, slots=True)
class AuditCounts:
    """How many audits of a worker this index holds.

    Attributes:
        failures: Jobs in which the worker's own signatures show a fault.
        checked: Canvases whose open parts break no rule.
        reported_passes: What clients say passed.
        reported_failures: What clients say failed. Nobody else can check it here.
        reporters: How many clients reported.
    """

    failures: int
    checked: int
    reported_passes: int
    reported_failures: int
    reporters: int


@dataclass(frozen=True, slots=True)
class WorkerAudits:
    """What the page of a worker shows of its audits, newest first."""

    counts: AuditCounts
    audits: tuple[ShownAudit, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**as_json(self.counts), "audits": [one.to_json() for one in self.audits]}


def read(data: bytes) -> ReportFile:
    """Read a report file. Only its form is checked.

    Raises:
        Declined: It is malformed, or holds text.
    """
    try:
        found = read_report(data)
    except EvidenceRefused as error:
        raise Declined(400, "evidence_refused", str(error)) from None
    texts = [found.evidence.content, *(canvas.output for canvas in found.evidence.canvases)]
    if any(text is not None for text in texts):
        raise Declined(400, "with_text", "the evidence holds text. Leave it out")
    return found


def judge(file: ReportFile) -> CheckedReport:
    """Check a report as far as it goes without a model.

    Raises:
        Declined: Something in it does not hold.
    """
    try:
        return check_report(file)
    except EvidenceRefused as error:
        raise Declined(400, "evidence_refused", str(error)) from None


def channel_of(checked: CheckedReport) -> ChannelId:
    """Name the channel that paid for the job."""
    return ChannelId(checked.file.evidence.job.job.channel)


class AuditStore:
    """The audits in a database, which several instances may share.

    Every method may raise `OfferStoreError`.
    """

    def __init__(
        self,
        database: MarketDatabase,
        max_bytes: int = MAX_AUDIT_STORE_BYTES,
        worker_bytes: int = MAX_WORKER_AUDIT_BYTES,
    ) -> None:
        """`max_bytes`: of all evidence and reports in the database. `worker_bytes`: of a worker."""
        self._db, self._max_bytes, self._worker_bytes = database, max_bytes, worker_bytes

    async def put(
        self,
        checked: CheckedReport,
        data: bytes,
        reporter: Address,
        settled: Amount,
        now: Timestamp,
    ) -> tuple[bool, ShownAudit]:
        """Take in a report that was checked. Returns whether it was here already.

        A client's later report about the same canvas and level takes the place of its earlier one.
        What is proven stays.

        Raises:
            Declined: There is no room, or the earlier report is proven.
            OfferStoreError: The database cannot be written.
        """
        shown = _shown(checked, data, reporter, settled, now)
        evidence = write_evidence(checked.file.evidence)
        # All of it under the lock of writers, so that two instances keep the bounds together.
        async with self._db.change() as db:
            if await db.rows("SELECT 1 FROM audits WHERE id = $1", shown.id):
                return True, shown
            about = (shown.job, shown.canvas, int(shown.level), reporter)
            await _require_unproven(db, about, shown)
            gone = await _drop(db, _EARLIER, *about)
            await db.rows(_PUT, *_values(shown), evidence, data)
            gone += await _drop(
                db, _OVER_ITS_SHARE, shown.operator, reporter, AUDITS_KEPT_PER_REPORTER
            )
            gone += await _drop(db, _OVER_ALL, shown.operator, AUDITS_KEPT)
            gone += await _drop(db, _OVER_ITS_BYTES, shown.operator, self._worker_bytes)
            if not await db.rows("SELECT 1 FROM audits WHERE id = $1", shown.id):
                text = "this index holds as much of that worker as it can, and all counts more"
                raise Declined(503, "audits_full", text)
            await self._account(db, len(evidence) + len(data) - gone)
        return False, shown

    async def of(self, operator: Address, most: int = AUDITS_KEPT) -> WorkerAudits:
        """Return what is known of a worker."""
        ((failures, checked, passes, fails, reporters),) = await self._db.rows(_COUNTS, operator)
        rows = await self._db.rows(_OF, operator, most)
        counts = AuditCounts(failures, checked, passes, fails, reporters)
        return WorkerAudits(counts, tuple(map(_read, rows)))

    async def evidence(self, audit: Bytes32) -> bytes | None:
        """Return the evidence file of an audit, as `piecework verify-reply` reads it."""
        rows = await self._db.rows("SELECT evidence FROM audits WHERE id = $1", audit)
        return bytes(rows[0][0]) if rows else None

    async def report(self, audit: Bytes32) -> bytes | None:
        """Return the signed report file of an audit, as it came."""
        rows = await self._db.rows("SELECT report FROM audits WHERE id = $1", audit)
        return bytes(rows[0][0]) if rows else None

    async def _account(self, db: Statements, more: int) -> None:
        """Keep the sum of all bytes. `Declined`, which takes the change back, if it is too much."""
        ((before,),) = await db.rows("SELECT value FROM meta WHERE key = $1", AUDIT_BYTES)
        held = int(before) + more
        if more > 0 and held > self._max_bytes:
            raise Declined(503, "audits_full", "this index holds as much evidence as it can")
        await db.rows("UPDATE meta SET value = $2 WHERE key = $1", AUDIT_BYTES, str(held))


async def _require_unproven(db: Statements, about: tuple[Any, ...], shown: ShownAudit) -> None:
    earlier = await db.rows(f"SELECT bearing FROM audits WHERE {_EARLIER}", *about)  # noqa: S608
    proven = earlier and Bearing(earlier[0][0]) is Bearing.PROVEN
    if proven and shown.bearing is not Bearing.PROVEN:
        raise Declined(409, "proven", "a proven failure of this canvas is here already")


async def _drop(db: Statements, where: str, *values: Any) -> int:
    """Delete audits. Return how many bytes their evidence and reports had."""
    rows = await db.rows(
        f"DELETE FROM audits WHERE {where} RETURNING length(evidence) + length(report)",  # noqa: S608
        *values,
    )
    return sum(row[0] for row in rows)


def _values(shown: ShownAudit) -> tuple[Any, ...]:
    """The columns of an audit, without its files."""
    return (
        shown.id,
        shown.operator,
        shown.job,
        shown.canvas,
        int(shown.level),
        int(shown.outcome),
        shown.bearing.value,
        shown.reporter,
        str(shown.charged),
        str(shown.settled),
        json.dumps(shown.findings),
        shown.received_at,
    )


def _shown(
    checked: CheckedReport, data: bytes, reporter: Address, settled: Amount, now: Timestamp
) -> ShownAudit:
    file = checked.file
    return ShownAudit(
        Bytes32(keccak256(data)),
        file.evidence.channel.operator,
        checked.proven.job,
        file.canvas,
        file.report.level,
        file.report.outcome,
        checked.bearing,
        reporter,
        checked.proven.amount,
        settled,
        checked.findings[:MAX_AUDIT_FINDINGS],
        now,
    )


def _read(row: Row) -> ShownAudit:
    (audit, operator, job, canvas, level, outcome, bearing, reporter, *rest) = row
    charged, settled, findings, received_at = rest
    return ShownAudit(
        Bytes32(audit),
        Address(operator),
        JobId(Digest(job)),
        canvas,
        AuditLevel(level),
        AuditOutcome(outcome),
        Bearing(bearing),
        Address(reporter),
        Amount(int(charged)),
        Amount(int(settled)),
        tuple(loads(findings)),
        Timestamp(received_at),
    )
