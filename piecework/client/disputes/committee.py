"""A member of a committee: it computes an escalated step again and signs what it finds.

A member needs the evidence file with its text, which the challenger gives it, the engine on the
worker's profile, and a key. It asks the chain which step is before the committee. Several verdicts
that agree go to the contract in one transaction, by anybody.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from piecework.base.files import FileExists, read, shown, write_public
from piecework.base.jsons import loads
from piecework.chain.contracts.calls import Call
from piecework.chain.deployment import Deployment
from piecework.chain.reading import disputes
from piecework.chain.reading.disputes import ChallengeOpened, ChallengeState
from piecework.client.audits.auditor import Auditor, CanvasReport
from piecework.client.disputes.walk import DisputedStep
from piecework.client.errors import DisputeError
from piecework_protocol.disputes import VERDICT_SECONDS, ChallengeStatus
from piecework_protocol.errors import MalformedInput
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import EvidenceFile, write_evidence
from piecework_protocol.objects import AuditLevel, AuditOutcome, Verdict, disputes_domain
from piecework_protocol.signing import AsyncSigner, recover
from piecework_protocol.types import (
    Address,
    Bytes32,
    Digest,
    Signature,
    Timestamp,
    parse_address,
    parse_hex,
    to_hex,
)

MAX_VERDICT_BYTES: Final = 4096
_FORMAT: Final = "piecework-verdict/1"
_ELSEWHERE: Final = "Move it away, or choose another file with --out"
_NO_STEP: Final = Digest(bytes(32))
"""The leaf of a step that the model does not make."""


class ChallengeReader(Protocol):
    """What a member asks of the chain (`DisputeReader`). Every method raises `ChainError`."""

    async def latest_block(self) -> int: ...

    async def state(self, challenge_id: Bytes32) -> ChallengeState: ...

    async def challenges_to(
        self, operator: Address, from_block: int, to_block: int
    ) -> tuple[ChallengeOpened, ...]: ...


@dataclass(frozen=True, slots=True)
class MemberVerdict:
    """What one member signed. operator: of the worker that was judged."""

    operator: Address
    verdict: Verdict
    signature: Signature

    def write(self) -> bytes:
        """Give the verdict's file."""
        body = {
            "format": _FORMAT,
            "operator": to_hex(self.operator),
            "challenge": to_hex(self.verdict.challenge),
            "guilty": self.verdict.guilty,
            "leaf_root": to_hex(self.verdict.leaf_root),
            "deadline": int(self.verdict.deadline),
            "signature": to_hex(self.signature),
        }
        return json.dumps(body, indent=1).encode() + b"\n"

    @classmethod
    def read(cls, data: bytes) -> MemberVerdict:
        """Read a verdict's file.

        Raises:
            DisputeError: It is none.
        """
        try:
            body: dict[str, Any] = loads(data)
            guilty, deadline = body["guilty"], body["deadline"]
            if body["format"] != _FORMAT or not isinstance(guilty, bool):
                raise ValueError("a member has another form")
            if type(deadline) is not int or not 0 <= deadline < 2**64:
                raise ValueError("deadline is not a time")
            verdict = Verdict(
                challenge=Bytes32(parse_hex(body["challenge"], 32, "challenge")),
                guilty=guilty,
                leaf_root=Digest(parse_hex(body["leaf_root"], 32, "leaf_root")),
                deadline=Timestamp(deadline),
            )
            signature = Signature(parse_hex(body["signature"], 65, "signature"))
            return cls(parse_address(body["operator"]), verdict, signature)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DisputeError(f"this is not a verdict of a committee's member: {error}") from None


class CommitteeMember:
    """One member of a market's committee.

    Raises:
        DisputeError: The key is not that of a member.
    """

    def __init__(
        self, deployment: Deployment, reader: ChallengeReader, auditor: Auditor, signer: AsyncSigner
    ) -> None:
        self._deployment, self._reader = deployment, reader
        self._auditor, self._signer = auditor, signer
        terms = deployment.disputes
        if terms is None or signer.address not in terms.committee:
            raise DisputeError(f"{to_hex(signer.address)} is not in the committee of this market")

    async def challenge(self, evidence: EvidenceFile, about: DisputedStep) -> ChallengeOpened:
        """Find the challenge that has the step before the committee. Nothing is computed.

        Raises:
            DisputeError: The step is not before the committee, or nothing can be said of it here.
            EvidenceRefused: The evidence does not hold.
        """
        if evidence.domain != self._deployment.domain:
            raise DisputeError("the evidence is of another market than the deployment file")
        check_evidence(evidence)
        _leaf(evidence, about)
        if any(shown.output is None for shown in evidence.canvases[: about.canvas]):
            # The step follows from what was delivered before it. What this machine would have made
            # there instead is another question, and members would answer different ones.
            raise DisputeError("the evidence lacks the text of canvases before this one")
        return await self._escalated(evidence, about)

    async def judge(
        self, opened: ChallengeOpened, evidence: EvidenceFile, about: DisputedStep
    ) -> MemberVerdict:
        """Compute the step again and sign what was found.

        opened: what `challenge` has found of the same evidence and step.

        Raises:
            DisputeError: Nothing can be said of the step here.
        """
        found = await self._replayed(evidence, about)
        leaf = Digest(found.leaves[about.step]) if about.step < len(found.leaves) else _NO_STEP
        verdict = Verdict(
            challenge=opened.id,
            guilty=leaf != _leaf(evidence, about),
            leaf_root=leaf,
            deadline=Timestamp(opened.answer_by + VERDICT_SECONDS),
        )
        domain = disputes_domain(self._deployment.chain_id, disputes.contract_of(self._deployment))
        signature = await self._signer.typed(domain, verdict)
        return MemberVerdict(evidence.channel.operator, verdict, signature)

    async def _replayed(self, evidence: EvidenceFile, about: DisputedStep) -> CanvasReport:
        """Replay the canvas. What differs is replayed once more by a fresh process."""
        data = write_evidence(evidence)
        first = await self._replay(data, about)
        if first.outcome is AuditOutcome.PASS:
            return first
        again = await self._replay(data, about)
        if again.leaves != first.leaves:
            raise DisputeError("two replays differ, so this machine is unsure. Do not judge here")
        return again

    async def _replay(self, data: bytes, about: DisputedStep) -> CanvasReport:
        found = await self._auditor.audit(data, about.canvas, AuditLevel.REPLAY)
        if found.outcome is AuditOutcome.NO_VERDICT or not found.leaves:
            raise DisputeError(f"the step cannot be judged here: {found.reason}")
        return found

    async def _escalated(self, evidence: EvidenceFile, about: DisputedStep) -> ChallengeOpened:
        receipt = evidence.canvases[about.canvas].receipt
        digest = Digest(evidence.domain.digest(receipt))
        for opened in await _challenges(self._reader, self._deployment, evidence.channel.operator):
            asked = opened.challenge
            if (asked.receipt, asked.leaf) == (digest, about.step + 1):
                state = await self._reader.state(opened.id)
                if state.status is ChallengeStatus.ESCALATED:
                    return opened
        raise DisputeError(
            f"step {about.step} of canvas {about.canvas} is not before the committee. "
            "Its challenger brings it there: piecework client dispute --escalate"
        )


def check_place(file: Path, challenge: Bytes32) -> None:
    """Refuse a file that a verdict about a challenge cannot go to, before the step is computed.

    Raises:
        FileExists: The file is there, and has no verdict about this challenge.
        FileError: It cannot be read.
    """
    if not os.path.lexists(file):
        return
    try:
        about = MemberVerdict.read(read(file, MAX_VERDICT_BYTES)).verdict.challenge
    except DisputeError:
        raise FileExists(
            f"{shown(file)} exists already and is not a verdict. {_ELSEWHERE}"
        ) from None
    if about != challenge:
        why = "exists already and is about another challenge"
        raise FileExists(f"{shown(file)} {why}. {_ELSEWHERE}")


def keep_verdict(file: Path, given: MemberVerdict) -> None:
    """Write a verdict's file. A file that has the same verdict already stays as it is.

    Raises:
        FileExists: The file has something else. It is left as it is.
        FileError: The file cannot be written or read.
    """
    try:
        write_public(file, given.write())
    except FileExists:
        if read(file, MAX_VERDICT_BYTES) != given.write():
            why = "has another verdict and is not overwritten"
            raise FileExists(f"{shown(file)} {why}. {_ELSEWHERE}") from None


async def agreed(
    deployment: Deployment, reader: ChallengeReader, given: Sequence[MemberVerdict]
) -> Call:
    """Put verdicts that agree into the call that carries them out.

    Raises:
        DisputeError: They differ, one is of nobody in the committee, or they are too few.
    """
    terms = deployment.disputes
    if terms is None or not terms.committee:
        raise DisputeError("this market has no committee")
    first = given[0]
    if any((one.operator, one.verdict) != (first.operator, first.verdict) for one in given):
        raise DisputeError("the verdicts differ. Give those that agree")
    domain = disputes_domain(deployment.chain_id, disputes.contract_of(deployment))
    votes: dict[Address, Signature] = {}
    for one in given:
        try:
            member = recover(domain.digest(one.verdict), one.signature)
        except MalformedInput as error:
            raise DisputeError(f"a verdict is not signed: {error}") from None
        if member not in terms.committee:
            raise DisputeError(f"{to_hex(member)} is not in the committee of this market")
        votes[member] = one.signature
    if len(votes) < terms.threshold:
        raise DisputeError(f"{len(votes)} members agree, and {terms.threshold} are needed")
    chosen = {member: votes[member] for member in sorted(votes)[: terms.threshold]}
    for opened in await _challenges(reader, deployment, first.operator):
        if opened.id == first.verdict.challenge:
            return disputes.judge(
                deployment,
                opened.challenge,
                guilty=first.verdict.guilty,
                leaf_root=first.verdict.leaf_root,
                deadline=first.verdict.deadline,
                votes=chosen,
            )
    raise DisputeError("the chain knows no such challenge")


def _leaf(evidence: EvidenceFile, about: DisputedStep) -> Digest:
    shown = evidence.canvases[about.canvas] if about.canvas < len(evidence.canvases) else None
    if shown is None or shown.leaves is None or about.step + 1 >= len(shown.leaves):
        raise DisputeError(f"the evidence has no step {about.step} of canvas {about.canvas}")
    return shown.leaves[about.step + 1]


async def _challenges(
    reader: ChallengeReader, deployment: Deployment, operator: Address
) -> tuple[ChallengeOpened, ...]:
    return await reader.challenges_to(
        operator, deployment.from_block or 0, await reader.latest_block()
    )
