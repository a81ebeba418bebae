"""Whether an evidence file proves what it says (clauses 10.3 to 10.8). Pure.

Every byte of a file is held by a signature, a digest or a proof of it, so nothing in it can be
changed unnoticed. What only the chain can say (the stake, the code of the escrow, who may sign
offers for an operator) is not said here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from piecework_protocol import merkle
from piecework_protocol.charges import charge_fault
from piecework_protocol.content import content_digest, output_digest
from piecework_protocol.eip712 import TypedData
from piecework_protocol.errors import EvidenceRefused, MalformedInput
from piecework_protocol.evidence.file import CanvasEvidence, Contradiction, EvidenceFile
from piecework_protocol.kinds import KINDS, Content, Output
from piecework_protocol.merkle import EMPTY_ROOT
from piecework_protocol.objects import Acceptance, Finish, Kind, ModelOffer, Receipt, Voucher
from piecework_protocol.openings import OpenedCanvas, held_to
from piecework_protocol.outlines import Outline
from piecework_protocol.pricing import Usage, usage_of
from piecework_protocol.rules import Case, Finding, check
from piecework_protocol.service import leaves_fault, parameters_fault
from piecework_protocol.signing import recover, signed_by
from piecework_protocol.trace import StepRecord
from piecework_protocol.types import Address, Amount, Bytes32, Digest, JobId, Timestamp

NOTHING: Final = Usage(0, 0, 0)


@dataclass(frozen=True, slots=True)
class ProvenJob:
    """What an evidence file proves.

    Attributes:
        job: The job's id.
        model: The entry of the offer that it ran under.
        used: Tokens and steps that the receipts charge.
        amount: What they charge, in base units.
        finish: That of the last receipt. `MORE` if the job did not end in this file.
        accepted_at: When the operator took it, or None without an acceptance.
        paid: Canvases that a voucher in the file pays for.
        traced: Canvases whose leaves are in the file and lead to the signed trace root.
        content: What was asked, or None where it was left out.
        outputs: What was answered, canvas by canvas, or None where text was left out.
        contradictions: How many different pairs of contradictory statements the file has.
    """

    job: JobId
    model: ModelOffer
    used: Usage
    amount: Amount
    finish: Finish
    accepted_at: Timestamp | None
    paid: int
    traced: int
    content: Content | None
    outputs: tuple[Output, ...] | None
    contradictions: int


def check_evidence(evidence: EvidenceFile) -> ProvenJob:
    """Check a whole file.

    Raises:
        EvidenceRefused: Something in it does not hold. The error names the member.
    """
    return _Check(evidence).whole()


class _Check:
    """One file on its way through the checks."""

    def __init__(self, evidence: EvidenceFile) -> None:
        self._file, self._domain = evidence, evidence.domain
        self._job, self._channel = evidence.job.job, evidence.channel
        self._id = self._job.id(self._domain)
        self._operator = self._channel.operator

    def whole(self) -> ProvenJob:
        """Check everything, in the order in which one thing rests on the other."""
        file, job = self._file, self._job
        if job.kind not in KINDS:
            raise EvidenceRefused("job.kind", "this version does not know the kind")
        if self._channel.id(self._domain) != job.channel:
            raise EvidenceRefused("channel", "the job names another channel, chain or escrow")
        self._signed("job", job, file.job.signature, self._channel.authorizer, "authorizer")
        model = self._model()
        content = self._content(model)
        self._accepted()
        outputs = self._canvases(model, content)
        paid = self._paid()
        for i, one in enumerate(file.contradictions):
            self._contradiction(one, f"contradictions[{i}]")
        last = file.canvases[-1].receipt if file.canvases else None
        accepted = file.acceptance
        return ProvenJob(
            job=self._id,
            model=model,
            used=usage_of(last) if last is not None else NOTHING,
            amount=last.total_amount if last is not None else Amount(0),
            finish=last.finish if last is not None else Finish.MORE,
            accepted_at=accepted.acceptance.accepted_at if accepted is not None else None,
            paid=len(paid),
            traced=sum(canvas.leaves is not None for canvas in file.canvases),
            content=content,
            outputs=outputs,
            contradictions=len({self._pair(one) for one in file.contradictions}),
        )

    def _pair(self, one: Contradiction) -> frozenset[bytes]:
        """Name a contradiction, so that nobody makes two of it by writing it twice."""
        return frozenset(self._domain.digest(statement) for statement in (one.first, one.second))

    def _signed(
        self, where: str, value: TypedData, signature: bytes, signer: Address, role: str
    ) -> None:
        if not signed_by(self._domain, value, signature, signer):
            raise EvidenceRefused(f"{where}.signature", f"it is not the {role}'s")

    def _model(self) -> ModelOffer:
        """Check the offer and what the job says of it. Return the job's entry in it."""
        shown, job = self._file.offer, self._job
        offer = shown.offer
        if Digest(self._domain.digest(offer)) != job.offer:
            raise EvidenceRefused("offer", "the job names another offer")
        try:
            signer = recover(self._domain.digest(offer), shown.signature)
        except MalformedInput as error:
            raise EvidenceRefused("offer.signature", str(error)) from None
        if signer != shown.signer:
            raise EvidenceRefused("offer.signature", "it is not the signer's")
        if offer.operator != self._operator or offer.receiver != self._channel.receiver:
            raise EvidenceRefused("offer", "its operator and receiver are not the channel's")
        model = offer.entry(job)
        if model is None:
            raise EvidenceRefused("job.entry", "the offer has another model there")
        fault = parameters_fault(job.parameters)
        if job.parameters.service is not model.service:
            fault = "the offer's model runs in another class of service"
        if fault is not None:
            raise EvidenceRefused("job.parameters", fault)
        return model

    def _content(self, model: ModelOffer) -> Content | None:
        data, job = self._file.content, self._job
        if data is None:
            return None
        if content_digest(job.salt, data) != job.content:
            raise EvidenceRefused("content", "it is not the one that the job commits to")
        try:
            content = KINDS[job.kind].decode_content(data)
        except MalformedInput as error:
            raise EvidenceRefused("content", str(error)) from None
        fault = content.parameters_fault(job.parameters, model.canvas_size)
        if fault is not None:
            raise EvidenceRefused("job.parameters", fault)
        return content

    def _accepted(self) -> None:
        shown = self._file.acceptance
        if shown is None:
            return
        if shown.acceptance.job != self._id:
            raise EvidenceRefused("acceptance.job", "it is another job")
        self._signed("acceptance", shown.acceptance, shown.signature, self._operator, "operator")

    def _canvases(self, model: ModelOffer, content: Content | None) -> tuple[Output, ...] | None:
        """Check the receipts one after the other. Return the outputs if all are there."""
        last: Receipt | None = None
        outputs: list[Output] = []
        for i, canvas in enumerate(self._file.canvases):
            where = f"receipts[{i}]"
            self._receipt(where, canvas, last, model)
            self._leaves(where, canvas)
            output = self._output(where, canvas, model, content)
            if output is not None:
                outputs.append(output)
            last = canvas.receipt
        whole = len(outputs) == len(self._file.canvases)
        return tuple(outputs) if whole else None

    def _receipt(
        self, where: str, canvas: CanvasEvidence, last: Receipt | None, model: ModelOffer
    ) -> None:
        receipt = canvas.receipt
        previous = Digest(self._id if last is None else self._domain.digest(last))
        if receipt.job != self._id:
            raise EvidenceRefused(f"{where}.job", "it is another job")
        if receipt.canvas != (0 if last is None else last.canvas + 1):
            raise EvidenceRefused(f"{where}.canvas", "a canvas is missing or out of order")
        if last is not None and last.finish is not Finish.MORE:
            raise EvidenceRefused(where, "it comes after the job's last canvas")
        if receipt.previous != previous:
            raise EvidenceRefused(f"{where}.previous", "it is not the receipt before it")
        self._signed(where, receipt, canvas.signature, self._operator, "operator")
        accepted = self._file.acceptance
        prompt = receipt.total_prompt_tokens if last is None else last.total_prompt_tokens
        if accepted is not None:
            prompt = accepted.acceptance.prompt_tokens
        fault = charge_fault(self._job, model, last, receipt, prompt)
        if fault is not None:
            raise EvidenceRefused(where, f"clause {fault[0]} is broken: {fault[1]}")

    def _leaves(self, where: str, canvas: CanvasEvidence) -> None:
        fault = None if canvas.leaves is None else leaves_fault(canvas.receipt, canvas.leaves)
        if fault is not None:
            raise EvidenceRefused(f"{where}.leaves", f"clause {fault[0]} is broken: {fault[1]}")

    def _output(
        self, where: str, canvas: CanvasEvidence, model: ModelOffer, content: Content | None
    ) -> Output | None:
        data, receipt = canvas.output, canvas.receipt
        if data is None:
            return None
        where = f"{where}.output"
        if output_digest(self._id, receipt.canvas, data) != receipt.output_digest:
            raise EvidenceRefused(where, "it is not the one that the receipt commits to")
        try:
            output = KINDS[self._job.kind].decode_output(data)
        except MalformedInput as error:
            raise EvidenceRefused(where, str(error)) from None
        fault = None
        if content is not None and receipt.finish is not Finish.CANCELLED:
            size = model.canvas_size
            fault = output.fault(content.outline, receipt.canvas, size, receipt.finish)
        if output.units != receipt.units:
            fault = f"{receipt.units} tokens charged for {output.units} delivered"
        if fault is not None:
            raise EvidenceRefused(where, fault)
        return output

    def _paid(self) -> set[int]:
        """Check the vouchers. Return the canvases that they pay for."""
        paid: set[int] = set()
        digests = [Bytes32(self._domain.digest(c.receipt)) for c in self._file.canvases]
        for i, payment in enumerate(self._file.payments):
            where, voucher = f"vouchers[{i}]", payment.voucher
            if voucher.channel != self._job.channel:
                raise EvidenceRefused(f"{where}.channel", "it is another channel")
            authorizer = self._channel.authorizer
            self._signed(where, voucher, payment.signature, authorizer, "authorizer")
            for j, one in enumerate(payment.paid):
                inside = one.canvas < len(digests)
                if not inside or not merkle.verify(
                    one.proof, digests[one.canvas], voucher.receipts_root
                ):
                    at = f"{where}.paid[{j}]"
                    raise EvidenceRefused(at, "it does not lead to the voucher's root")
                paid.add(one.canvas)
        return paid

    def _contradiction(self, one: Contradiction, where: str) -> None:
        first, second = one.first, one.second
        voucher = isinstance(first, Voucher)
        signer = self._channel.authorizer if voucher else self._operator
        role = "authorizer" if voucher else "operator"
        self._signed(f"{where}.first", first, one.first_signature, signer, role)
        self._signed(f"{where}.second", second, one.second_signature, signer, role)
        if not contradict(first, second, self._id, self._job.channel):
            raise EvidenceRefused(where, "the two do not contradict each other about this job")


def contradict(first: TypedData, second: TypedData, job: JobId, channel: bytes) -> bool:
    """Say whether two signed statements about a job or its channel contradict each other."""
    if isinstance(first, Acceptance) and isinstance(second, Acceptance):
        about = first.job == second.job == job
        return about and first.prompt_tokens != second.prompt_tokens
    if isinstance(first, Receipt) and isinstance(second, Receipt):
        about = first.job == second.job == job and first.canvas == second.canvas
        return about and first.struct_hash() != second.struct_hash()
    if isinstance(first, Voucher) and isinstance(second, Voucher):
        about = first.channel == second.channel == channel
        return about and _vouchers_contradict(first, second)
    return False


def _vouchers_contradict(first: Voucher, second: Voucher) -> bool:
    """Say whether amount and count do not grow together (clause 5.1)."""
    if first.count == second.count:
        return first != second
    earlier, later = sorted((first, second), key=lambda voucher: voucher.count)
    return earlier.cumulative > later.cumulative


def broken_rules(
    evidence: EvidenceFile,
    proven: ProvenJob,
    canvas: int,
    opened: OpenedCanvas | None,
    outline: Outline | None = None,
) -> Sequence[Finding]:
    """Apply the rules to a canvas. Without openings they see receipts, leaves and output only.

    A rule says nothing about what is not open. So nothing broken is a pass only if `unopened` names
    nothing.

    proven: from `check_evidence` of the same file. outline: that of the content, if it is known and
    the content is not in the file.

    Raises:
        MalformedInput: What is opened is not what was signed.
    """
    shown, accepted = evidence.canvases[canvas], evidence.acceptance
    record, steps = (None, {}) if opened is None else held_to(shown.leaves, opened)
    case = Case(
        evidence.domain,
        evidence.job.job,
        proven.model,
        tuple(one.receipt for one in evidence.canvases[: canvas + 1]),
        prompt_tokens=None if accepted is None else accepted.acceptance.prompt_tokens,
        outline=outline if proven.content is None else proven.content.outline,
        leaves=shown.leaves,
        record=record,
        steps=steps,
        output=None if proven.outputs is None else proven.outputs[canvas],
    )
    return check(case)


def unopened(evidence: EvidenceFile, canvas: int, opened: OpenedCanvas | None) -> str:
    """Say what the rules lack for a verdict on a canvas (clause 7.5), or nothing.

    They need the canvas leaf and every step, and no pinned position: which ones of a form or a read
    are pinned only the model's tokenizer tells.

    opened: what `broken_rules` has held to the leaves, or None.
    """
    job, receipt = evidence.job.job, evidence.canvases[canvas].receipt
    if job.kind not in (Kind.TEXT, Kind.READ):
        return f"the rules about steps are not for jobs of kind {job.kind.name.lower()}"
    if not receipt.steps:
        return "the canvas has no denoising steps"
    if opened is None or opened.canvas is None:
        return f"none of the canvas's {receipt.steps} steps is opened"
    shown = {StepRecord.parse(step.fields).step for step in opened.steps}
    if len(shown) < receipt.steps:
        return f"{receipt.steps - len(shown)} of the canvas's {receipt.steps} steps are not opened"
    if opened.canvas.pinned != EMPTY_ROOT:
        return "the canvas has pinned positions, and the rules are not told which"
    return ""


def digests_of(evidence: EvidenceFile) -> tuple[Digest, ...]:
    """Give the digests of the receipts, in order."""
    return tuple(Digest(evidence.domain.digest(c.receipt)) for c in evidence.canvases)
