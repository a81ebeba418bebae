"""The audits that clients report about workers, with the evidence of each.

A worker's rival must not be able to smear it. So only what the worker's own signatures show counts
as a failure: a contradiction, or a rule that is broken by what its leaves commit to. What a client
says of a replay or a forced pass is shown as said by that client, with what the chain says it has
paid on that channel. A report needs the signature of the payer or authorizer of a job that the
worker signed receipts for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import apsw

from piecework.base.jsons import loads
from piecework.market.errors import Declined, OfferStoreError
from piecework.market.limits import (
    AUDITS_KEPT,
    AUDITS_KEPT_PER_REPORTER,
    MAX_AUDIT_FINDINGS,
    MAX_AUDIT_STORE_BYTES,
)
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

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS audits (
    id BLOB PRIMARY KEY, operator BLOB NOT NULL, job BLOB NOT NULL, canvas INTEGER NOT NULL,
    level INTEGER NOT NULL, outcome INTEGER NOT NULL, bearing TEXT NOT NULL,
    reporter BLOB NOT NULL, charged TEXT NOT NULL, settled TEXT NOT NULL, findings TEXT NOT NULL,
    received_at INTEGER NOT NULL, evidence BLOB NOT NULL, report BLOB NOT NULL,
    UNIQUE (job, canvas, level, reporter)
) STRICT;
CREATE INDEX IF NOT EXISTS audits_of_workers ON audits (operator, received_at);
"""
# What is proven stays longest, then what is new.
_PUT: Final = "INSERT OR REPLACE INTO audits VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_SIZE: Final = "SELECT coalesce(sum(length(evidence) + length(report)), 0) FROM audits"
_COUNTS: Final = (
    "SELECT count(DISTINCT CASE WHEN bearing = 'proven' THEN job END), "
    "count(CASE WHEN bearing = 'checked' THEN 1 END), "
    "count(CASE WHEN bearing = 'reported' AND outcome = 0 THEN 1 END), "
    "count(CASE WHEN bearing = 'reported' AND outcome = 1 THEN 1 END), "
    "count(DISTINCT reporter) FROM audits WHERE operator = ?"
)
_EARLIER: Final = (
    "SELECT 1 FROM audits WHERE job = ? AND canvas = ? AND level = ? AND reporter = ? "
    "AND bearing = 'proven'"
)
_OF: Final = (
    "SELECT id, operator, job, canvas, level, outcome, bearing, reporter, charged, settled, "
    "findings, received_at FROM audits WHERE operator = ? "
    "ORDER BY bearing = 'proven' DESC, received_at DESC, id LIMIT ?"
)
_DROP_OF_REPORTER: Final = (
    "DELETE FROM audits WHERE id IN (SELECT id FROM audits WHERE operator = ? AND reporter = ? "
    "ORDER BY bearing = 'proven' DESC, received_at DESC, id LIMIT -1 OFFSET ?)"
)
_DROP: Final = (
    "DELETE FROM audits WHERE id IN (SELECT id FROM audits WHERE operator = ? "
    "ORDER BY bearing = 'proven' DESC, received_at DESC, id LIMIT -1 OFFSET ?)"
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
            "id": to_hex(self.id),
            "operator": to_hex(self.operator),
            "job": to_hex(self.job),
            "canvas": self.canvas,
            "level": self.level.name.lower(),
            "outcome": self.outcome.name.lower(),
            "bearing": self.bearing.value,
            "reported_by": to_hex(self.reporter),
            "charged": self.charged,
            "settled": self.settled,
            "findings": list(self.findings),
            "received_at": self.received_at,
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
        counts = {name: getattr(self.counts, name) for name in AuditCounts.__slots__}
        return {**counts, "audits": [one.to_json() for one in self.audits]}


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
    """The audits of one index. Used from one thread. Reading may raise `apsw.Error`."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        db.execute(SCHEMA)
        self._held_bytes = self._size()

    def put(
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
        if self.report(shown.id) is not None:
            return True, shown
        earlier = self._rows(_EARLIER, (shown.job, shown.canvas, int(shown.level), reporter))
        if earlier and shown.bearing is not Bearing.PROVEN:
            raise Declined(409, "proven", "a proven failure of this canvas is here already")
        evidence = write_evidence(checked.file.evidence)
        if self._held_bytes + len(evidence) + len(data) > MAX_AUDIT_STORE_BYTES:
            raise Declined(503, "audits_full", "this index holds as much evidence as it can")
        values = (
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
            now,
            evidence,
            data,
        )
        with self._change():
            self._db.execute(_PUT, values)
            mine = (shown.operator, shown.reporter, AUDITS_KEPT_PER_REPORTER)
            self._db.execute(_DROP_OF_REPORTER, mine)
            self._db.execute(_DROP, (shown.operator, AUDITS_KEPT))
            self._held_bytes = self._size()
        return False, shown

    def of(self, operator: Address, most: int = AUDITS_KEPT) -> WorkerAudits:
        """Return what is known of a worker."""
        ((failures, checked, passes, fails, reporters),) = self._rows(_COUNTS, (operator,))
        rows = self._rows(_OF, (operator, most))
        counts = AuditCounts(failures, checked, passes, fails, reporters)
        return WorkerAudits(counts, tuple(map(_read, rows)))

    def evidence(self, audit: Bytes32) -> bytes | None:
        """Return the evidence file of an audit, as `piecework verify-reply` reads it."""
        rows = self._rows("SELECT evidence FROM audits WHERE id = ?", (audit,))
        return rows[0][0] if rows else None

    def report(self, audit: Bytes32) -> bytes | None:
        """Return the signed report file of an audit, as it came."""
        rows = self._rows("SELECT report FROM audits WHERE id = ?", (audit,))
        return rows[0][0] if rows else None

    def _size(self) -> int:
        ((held,),) = self._rows(_SIZE)
        return int(held)

    def _rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[Any]:
        return self._db.execute(sql, values).fetchall()

    @contextmanager
    def _change(self) -> Iterator[None]:
        try:
            with self._db:
                yield
        except apsw.Error as error:
            raise OfferStoreError(f"the index's database failed: {error}") from error


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


def _read(row: tuple[Any, ...]) -> ShownAudit:
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
