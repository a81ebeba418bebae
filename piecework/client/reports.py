"""What a client tells others of an audit: a signed report, its evidence, and ERC-8004 feedback.

The report file is `piecework_protocol.evidence.reports`. The feedback file has the members that
ERC-8004 asks of the file behind `feedbackURI`. Its value is 100 for a canvas that passed, and 0 for
one that failed.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from piecework.base.errors import UsageError
from piecework.base.files import write_private
from piecework.base.http import HttpError, HttpLimits, HttpReader, HttpStatus
from piecework.base.jsons import loads
from piecework.client.limits import CONNECT_TIMEOUT_S
from piecework.client.wallet import Wallet
from piecework_protocol.evidence.file import EvidenceFile, write_evidence
from piecework_protocol.evidence.reports import (
    AuditFound,
    ReportFile,
    check_report,
    make_report,
    write_report,
)
from piecework_protocol.objects import AuditOutcome
from piecework_protocol.signing import Signer
from piecework_protocol.types import Address, Bytes32, Timestamp, keccak256, parse_address, to_hex

TAG: Final = "piecework-audit"
"""`tag1` of the feedback. `tag2` is the level."""
VALUES: Final = {AuditOutcome.PASS: 100, AuditOutcome.FAIL: 0}
EVIDENCE_NAME, REPORT_NAME, FEEDBACK_NAME = "evidence.json", "report.json", "feedback.json"
PUBLISH_LIMITS: Final = HttpLimits(total_s=60.0, connect_s=CONNECT_TIMEOUT_S, max_bytes=64 * 1024)
_AGENT: Final = re.compile(r"eip155:([1-9][0-9]{0,18}):(0x[0-9a-fA-F]{40})/([0-9]{1,78})")


class ReportError(UsageError):
    """An audit cannot be reported. The text says why."""


@dataclass(frozen=True, slots=True)
class Agent:
    """A worker in an identity registry of ERC-8004."""

    chain_id: int
    registry: Address
    number: int

    @classmethod
    def parse(cls, text: str) -> Agent:
        """Read eip155:CHAIN:REGISTRY/ID.

        Raises:
            ReportError: It has another form.
        """
        found = _AGENT.fullmatch(text)
        if found is None:
            raise ReportError("--agent is eip155:CHAIN:REGISTRY/ID, such as eip155:1:0x8004…/22")
        try:
            registry = parse_address(found[2])
        except ValueError as error:
            raise ReportError(f"--agent: {error}") from None
        return cls(int(found[1]), registry, int(found[3]))


def without_text(evidence: EvidenceFile) -> EvidenceFile:
    """Leave the prompt and the answer out."""
    canvases = tuple(replace(canvas, output=None) for canvas in evidence.canvases)
    return replace(evidence, content=None, canvases=canvases)


def sign_report(
    evidence: EvidenceFile,
    found: AuditFound,
    wallet: Wallet,
    openings: Mapping[str, Any] | None = None,
) -> ReportFile:
    """Sign a report with the key that the channel knows. Its evidence has no text.

    Raises:
        ReportError: The audit has no verdict, or the channel is somebody else's.
        EvidenceRefused: The evidence does not hold, or does not show what was found without text.
    """
    if found.outcome is AuditOutcome.NO_VERDICT:
        raise ReportError("an audit without a verdict says nothing about the worker")
    made = make_report(without_text(evidence), found, _signer(evidence, wallet), openings)
    check_report(made)
    return made


def _signer(evidence: EvidenceFile, wallet: Wallet) -> Signer:
    channel = evidence.channel
    for signer in (wallet.authorizer, wallet.payer):
        if signer.address in (channel.authorizer, channel.payer):
            return signer
    raise ReportError("the job is of another client. Only its payer or authorizer can report it")


def feedback(
    report: ReportFile, agent: Agent, at: Timestamp, settlement: Bytes32 | None
) -> dict[str, Any]:
    """Give the object of a feedback file. settlement: a transaction that paid the worker."""
    channel, domain = report.evidence.channel, report.evidence.domain
    payer, level = to_hex(channel.payer), report.report.level.name.lower()
    created = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    found: dict[str, Any] = {
        "agentRegistry": f"eip155:{agent.chain_id}:{to_hex(agent.registry)}",
        "agentId": agent.number,
        "clientAddress": f"eip155:{agent.chain_id}:{payer}",
        "createdAt": created,
        "value": VALUES[report.report.outcome],
        "valueDecimals": 0,
        "tag1": TAG,
        "tag2": level,
        "piecework": {
            "chain": domain.chain_id,
            "escrow": to_hex(domain.verifying_contract),
            "operator": to_hex(channel.operator),
            "job": to_hex(report.evidence.job.job.id(domain)),
            "canvas": report.canvas,
            "level": level,
            "outcome": report.report.outcome.name.lower(),
            "evidence": {"file": EVIDENCE_NAME, "keccak256": to_hex(report.report.evidence)},
            "report": {"file": REPORT_NAME, "keccak256": to_hex(keccak256(write_report(report)))},
        },
    }
    if settlement is not None:
        found["proofOfPayment"] = {
            "fromAddress": payer,
            "toAddress": to_hex(channel.receiver),
            "chainId": str(domain.chain_id),
            "txHash": to_hex(settlement),
        }
    return found


@dataclass(frozen=True, slots=True)
class Exported:
    """The files of a report. `feedback_hash`: `feedbackHash` of `giveFeedback`, if there is one."""

    files: tuple[Path, ...]
    feedback_hash: Bytes32 | None


async def export(folder: Path, report: ReportFile, about: dict[str, Any] | None) -> Exported:
    """Write the files of a report into a folder. about: the feedback, if there is an agent.

    Raises:
        FileError: The folder or a file cannot be written.
    """
    texts = {
        EVIDENCE_NAME: write_evidence(report.evidence),
        REPORT_NAME: write_report(report),
    }
    digest = None
    if about is not None:
        texts[FEEDBACK_NAME] = json.dumps(about, indent=2).encode() + b"\n"
        digest = Bytes32(keccak256(texts[FEEDBACK_NAME]))
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    for name, text in texts.items():
        await asyncio.to_thread(write_private, folder / name, text, replace=True)
    return Exported(tuple(folder / name for name in texts), digest)


async def publish(report: ReportFile, indexes: tuple[str, ...]) -> dict[str, str]:
    """Give a report to indexes. Returns what each of them said, in a line.

    Raises:
        ReportError: There is no index in the settings.
    """
    if not indexes:
        raise ReportError("the settings name no index to publish to")
    data, said = write_report(report), {}
    async with HttpReader(PUBLISH_LIMITS) as http:
        for index in indexes:
            try:
                body = await http.post(f"{index.rstrip('/')}/v1/audits", data)
                said[index] = f"taken: {loads(body)['bearing']}"
            except HttpStatus as error:
                said[index] = f"declined: {_reason(error)}"
            except (HttpError, ValueError, KeyError, TypeError) as error:
                said[index] = f"not taken: {error}"
    return said


def _reason(error: HttpStatus) -> str:
    try:
        return str(loads(error.body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return str(error)
