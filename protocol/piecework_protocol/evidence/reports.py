"""A client's signed report of an audit, with the evidence that it is about. Pure.

A report file is canonical JSON, as an evidence file is:

    {"format": "piecework-audit/1", "report": {…}, "signature": "0x…", "canvas": 0,
     "evidence": {…}, "openings": {…} or null}

The report is an `AuditReport` by the channel's payer or authorizer. So only who bought a job from
a worker can report it. What a report says is somebody's word. What its evidence shows is not: a
contradiction, or a broken rule, is signed by the worker itself, and everybody can check it again.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from piecework_protocol.errors import EvidenceRefused, MalformedInput
from piecework_protocol.evidence.check import (
    ProvenJob,
    broken_rules,
    check_evidence,
    digests_of,
    unopened,
)
from piecework_protocol.evidence.file import (
    EvidenceFile,
    canonical,
    evidence_json,
    evidence_of,
    read_json,
    require_one_form,
    write_evidence,
)
from piecework_protocol.evidence.members import (
    data,
    hexed,
    number,
    of_names,
    taken,
    written,
)
from piecework_protocol.objects import (
    Acceptance,
    AuditLevel,
    AuditOutcome,
    AuditReport,
    Receipt,
)
from piecework_protocol.openings import OpenedCanvas, openings_of
from piecework_protocol.rules import Finding
from piecework_protocol.signing import Signer, sign, signed_by
from piecework_protocol.types import (
    SIGNATURE_BYTES,
    Digest,
    Signature,
    Uint16,
    Uint32,
    Uint64,
    keccak256,
)

FORMAT: Final = "piecework-audit/1"
MEMBERS: Final = ("format", "report", "signature", "canvas", "evidence", "openings")
MAX_REPORT_FILE_BYTES: Final = 4 * 2**20
"""48 opened steps of a released canvas in hex take half a MiB, the leaves of a thousand canvases
three."""


class Bearing(enum.Enum):
    """What bears a report out."""

    PROVEN = "proven"
    """The worker's own signatures show that it broke a clause. Everybody can check it."""
    CHECKED = "checked"
    """Every step of the canvas is open, and no rule is broken."""
    REPORTED = "reported"
    """The word of the client that signed it."""


@dataclass(frozen=True, slots=True)
class AuditFound:
    """What an audit found about one canvas of a job."""

    canvas: int
    level: AuditLevel
    outcome: AuditOutcome


@dataclass(frozen=True, slots=True)
class ReportFile:
    """A signed report. `openings`: the JSON object of an openings file, or None."""

    report: AuditReport
    signature: Signature
    canvas: int
    evidence: EvidenceFile
    openings: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class CheckedReport:
    """A report whose evidence holds. `findings`: what the worker's signatures show, in words."""

    file: ReportFile
    proven: ProvenJob
    bearing: Bearing
    findings: tuple[str, ...]


# --- the file


def write_report(file: ReportFile) -> bytes:
    """Give the bytes of a report file.

    Raises:
        MalformedInput: It would be too long.
    """
    found = canonical(
        {
            "format": FORMAT,
            "report": written(file.report),
            "signature": hexed(file.signature),
            "canvas": file.canvas,
            "evidence": evidence_json(file.evidence),
            "openings": file.openings,
        }
    )
    if len(found) > MAX_REPORT_FILE_BYTES:
        raise MalformedInput(f"a report file is at most {MAX_REPORT_FILE_BYTES} bytes")
    return found


def read_report(found: bytes) -> ReportFile:
    """Read a report file. Only its form is checked here.

    Raises:
        EvidenceRefused: It is not such a file, or not in its one form.
    """
    raw = read_json(found, MAX_REPORT_FILE_BYTES)
    given = of_names(raw, "file", *MEMBERS)
    if given["format"] != FORMAT:
        raise EvidenceRefused("format", f"it is not {FORMAT}")
    require_one_form(raw, found)
    signature = data(given["signature"], "signature", SIGNATURE_BYTES, least=SIGNATURE_BYTES)
    openings = given["openings"]
    return ReportFile(
        taken(AuditReport, given["report"], "report"),
        Signature(signature),
        number(given["canvas"], "canvas"),
        evidence_of(given["evidence"]),
        None if openings is None else of_names(openings, "openings", "format", "canvas", "steps"),
    )


# --- making one


def make_report(
    evidence: EvidenceFile,
    found: AuditFound,
    signer: Signer,
    openings: Mapping[str, Any] | None = None,
) -> ReportFile:
    """Sign a report about one canvas of a job.

    evidence: with or without text. signer: the channel's payer or authorizer.

    Raises:
        EvidenceRefused: The evidence or the openings do not hold.
    """
    proven = check_evidence(evidence)
    first = next(iter(_broken_rules(evidence, proven, found.canvas, openings)), None)
    report = AuditReport(
        receipt=digests_of(evidence)[found.canvas],
        level=found.level,
        outcome=found.outcome,
        rule=Uint16(0 if first is None else first.rule),
        step=Uint32(0 if first is None else first.step or 0),
        score=Uint64(0),
        threshold=Uint64(0),
        evidence=Digest(keccak256(write_evidence(evidence))),
        profile=Digest(keccak256(proven.model.profile.encode())),
    )
    signature = sign(evidence.domain, report, signer)
    return ReportFile(report, signature, found.canvas, evidence, openings)


# --- checking one


def check_report(file: ReportFile) -> CheckedReport:
    """Check all of a report that needs no model.

    Raises:
        EvidenceRefused: Something in it does not hold, or it says other than its evidence shows.
    """
    evidence, report = file.evidence, file.report
    proven = check_evidence(evidence)
    if file.canvas >= len(evidence.canvases):
        raise EvidenceRefused("canvas", "the evidence has no such canvas")
    if report.receipt != digests_of(evidence)[file.canvas]:
        raise EvidenceRefused("report.receipt", "it is not that of the canvas")
    if report.evidence != Digest(keccak256(write_evidence(evidence))):
        raise EvidenceRefused("report.evidence", "it is not the digest of the evidence")
    if report.profile != Digest(keccak256(proven.model.profile.encode())):
        raise EvidenceRefused("report.profile", "it is not that of the offer")
    if report.outcome is AuditOutcome.NO_VERDICT:
        raise EvidenceRefused("report.outcome", "an audit without a verdict says nothing")
    channel = evidence.channel
    if not any(
        signed_by(evidence.domain, report, file.signature, key)
        for key in (channel.authorizer, channel.payer)
    ):
        raise EvidenceRefused("signature", "it is neither the payer's nor the authorizer's")
    rules = _broken_rules(evidence, proven, file.canvas, file.openings)
    if report.level is AuditLevel.RULES and (report.outcome is AuditOutcome.FAIL) != bool(rules):
        raise EvidenceRefused("report.outcome", "the rules say otherwise")
    if report.level is AuditLevel.RULES and not rules:
        lacking = unopened(evidence, file.canvas, _opened(file.openings))
        if lacking:
            raise EvidenceRefused("report.outcome", f"the rules have no verdict: {lacking}")
    findings = (*_contradictions(evidence), *map(str, rules))
    bearing = Bearing.REPORTED
    if findings:
        bearing = Bearing.PROVEN
    elif report.level is AuditLevel.RULES:
        bearing = Bearing.CHECKED
    return CheckedReport(file, proven, bearing, findings)


def _contradictions(evidence: EvidenceFile) -> list[str]:
    """Those of the operator. Two vouchers that do not fit are the client's own."""
    found = []
    for one in evidence.contradictions:
        if isinstance(one.first, Receipt):
            found.append(f"two receipts for canvas {one.first.canvas}")
        elif isinstance(one.first, Acceptance):
            found.append("two acceptances with other prompt tokens")
    return list(dict.fromkeys(found))


def _broken_rules(
    evidence: EvidenceFile,
    proven: ProvenJob,
    canvas: int,
    openings: Mapping[str, Any] | None,
) -> Sequence[Finding]:
    try:
        return broken_rules(evidence, proven, canvas, _opened(openings))
    except MalformedInput as error:
        raise EvidenceRefused("openings", str(error)) from None


def _opened(openings: Mapping[str, Any] | None) -> OpenedCanvas | None:
    return None if openings is None else openings_of(openings)
