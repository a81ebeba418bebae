"""A stand-in worker that sells audits: honestly, or in one of the ways that a client must catch."""

from __future__ import annotations

import enum
from typing import Any

from piecework_protocol.content import output_digest
from piecework_protocol.kinds.audit import AuditContent, AuditOutput
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.objects import AuditOutcome, Finish, Kind, ModelOffer
from piecework_protocol.sealing import canvas_context, seal
from piecework_protocol.trace import trace_root
from piecework_protocol.types import Amount, Digest, PublicKey, Uint32
from piecework_protocol.worker_session import CanvasResult
from tests.support.client.fake_worker import CANVAS, STEPS, STORY, FakeWorker, Job, model_offer
from tests.support.protocol.traces import made_up_leaves


class AuditingStyle(enum.Enum):
    """How a worker audits."""

    HONEST = "computes the canvas and compares everything"
    BLIND = "computes the canvas and does not look at what was delivered"
    ACCUSER = "computes nothing and says that it fails"
    FORGER = "computes nothing and says that it passes"
    FRIEND = "knows everybody's leaves, computes nothing and says that it passes"
    LATE = "ends the job at its deadline, with the steps that it has"


def auditing_model(profile: str = "fake", *, price: int = 4_000_000) -> ModelOffer:
    """The model of the stand-in worker, with audits. Its other jobs cost more than elsewhere."""
    model = model_offer(price=price)
    kinds = Uint32(model.kinds | Kind.AUDIT.bit)
    return model.replace(kinds=kinds, profile=profile, price_per_thousand_steps=Amount(2000))


class AuditingWorker(FakeWorker):
    """A worker with kind `audit`. What it takes for the model's text is `STORY`."""

    def __init__(
        self,
        *arguments: Any,
        style: AuditingStyle = AuditingStyle.HONEST,
        profile: str = "fake",
        **options: Any,
    ) -> None:
        super().__init__(*arguments, models=(auditing_model(profile),), **options)
        self.style = style
        self.audited: list[AuditContent] = []

    def denoise(self, job: Job, canvas: int) -> CanvasResult:
        claim = job.content
        if not isinstance(claim, AuditContent):
            return super().denoise(job, canvas)
        self.audited.append(claim)
        true = told(claim)
        honest = self.style in (AuditingStyle.HONEST, AuditingStyle.BLIND)
        what = true.encode() if honest else b"made up by " + self.operator.address
        if self.style is AuditingStyle.FRIEND:
            honest, what = True, claim.output
        if self.style is AuditingStyle.LATE:
            return self._cancelled(job, canvas, made_up_leaves(true.encode(), STEPS)[:3])
        leaves = made_up_leaves(what, STEPS if honest else claim.steps)[: claim.steps + 1]
        output = self._report(claim, true, trace_root(leaves) == claim.trace_root)
        report = AuditOutput(
            claim.level,
            claim.profile,
            claim.trace_root,
            output,
            leaves[0],
            len(leaves) - 1,
            claim.prompt_tokens,
            ("the canvas is another",) if output is AuditOutcome.FAIL else (),
        )
        return self._result(job, canvas, leaves, report, Finish.END_OF_TEXT)

    def _cancelled(self, job: Job, canvas: int, leaves: tuple[Digest, ...]) -> CanvasResult:
        return self._result(job, canvas, leaves, AuditOutput(), Finish.CANCELLED)

    def _result(
        self,
        job: Job,
        canvas: int,
        leaves: tuple[Digest, ...],
        report: AuditOutput,
        finish: Finish,
    ) -> CanvasResult:
        accepted, data = job.session.accepted, report.encode()
        key = PublicKey(accepted.job.reply_key)
        return CanvasResult(
            canvas=canvas,
            output_digest=output_digest(accepted.id, canvas, data),
            leaves=leaves,
            steps=len(leaves) - 1,
            units=0,
            finish=finish,
            sealed_output=seal(data, key, canvas_context(self.domain, accepted.id, canvas)),
            resume_secret=b"",
        )

    def _report(self, claim: AuditContent, true: TextOutput, same_trace: bool) -> AuditOutcome:
        if self.style in (AuditingStyle.FORGER, AuditingStyle.FRIEND):
            return AuditOutcome.PASS
        if self.style is AuditingStyle.ACCUSER or not same_trace:
            return AuditOutcome.FAIL
        fits = self.style is AuditingStyle.BLIND or claim.told == true
        return AuditOutcome.PASS if fits else AuditOutcome.FAIL


def told(claim: AuditContent) -> TextOutput:
    """What an honest stand-in worker delivers of a canvas."""
    left = claim.parameters.max_tokens - claim.canvas * CANVAS
    words = STORY[claim.canvas * CANVAS : (claim.canvas + 1) * CANVAS][: max(0, left)]
    text = "".join(" " * (claim.canvas + i > 0) + word for i, word in enumerate(words))
    return TextOutput.plain(tuple(range(len(words))), text)
