"""What is claimed of a job: what it asked for, and what its worker has signed of its canvases.

An audit needs no more than that. It comes from an evidence file, or from the content of an audit
job, which names nobody. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from piecework_model.errors import AuditError
from piecework_protocol.evidence.check import ProvenJob
from piecework_protocol.evidence.file import CanvasEvidence, EvidenceFile
from piecework_protocol.kinds.audit import Asked, AuditContent
from piecework_protocol.kinds.open import OpenContent
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.objects import Finish, Kind, Parameters
from piecework_protocol.types import Digest

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ClaimedCanvas:
    """What a receipt says of a canvas.

    leaves: under the trace root. output: the bytes of what was delivered. None is not known.
    """

    steps: int
    finish: Finish
    prompt_tokens: int
    trace_root: Digest
    leaves: tuple[Digest, ...] | None
    output: bytes | None


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job as it is claimed.

    profile: the engine profile that it was computed on. job_content: its content digest.
    canvases: those whose receipts are known. ids: of canvases, as far as outputs tell them.
    """

    model: Digest
    profile: str
    kind: Kind
    parameters: Parameters
    job_content: Digest
    content: Asked
    canvases: Mapping[int, ClaimedCanvas]
    ids: Mapping[int, Ids]

    @classmethod
    def of_evidence(cls, evidence: EvidenceFile, proven: ProvenJob) -> ClaimedJob:
        """Take what an evidence file proves.

        Raises:
            AuditError: It lacks the text, or the job has no canvases of its own.
        """
        content, job = proven.content, evidence.job.job
        if content is None:
            raise AuditError("the evidence has no text. Export it with its text")
        if isinstance(content, OpenContent):
            raise AuditError("an opening is held to its leaves by itself. Audit the job it opens")
        if isinstance(content, AuditContent):
            return cls.of_content(content, job.model)
        outputs = enumerate(proven.outputs or ())
        return cls(
            job.model,
            proven.model.profile,
            job.kind,
            job.parameters,
            job.content,
            content,
            {i: _canvas(shown) for i, shown in enumerate(evidence.canvases)},
            {i: output.token_ids for i, output in outputs if isinstance(output, TextOutput)},
        )

    @classmethod
    def of_content(cls, content: AuditContent, model: Digest) -> ClaimedJob:
        """Take what an audit job claims of a canvas of this model."""
        canvas = ClaimedCanvas(
            content.steps,
            content.finish,
            content.prompt_tokens,
            content.trace_root,
            None,
            content.output,
        )
        return cls(
            model,
            content.profile,
            content.job_kind,
            content.parameters,
            content.job_content,
            content.content,
            {content.canvas: canvas},
            dict(enumerate(content.committed)),
        )

    def canvas(self, index: int) -> ClaimedCanvas:
        """Return what is claimed of a canvas.

        Raises:
            AuditError: Nothing is.
        """
        shown = self.canvases.get(index)
        if shown is None:
            count = len(self.canvases)
            raise AuditError(f"the job has {count} canvases, and none of index {index}")
        return shown


def _canvas(shown: CanvasEvidence) -> ClaimedCanvas:
    receipt = shown.receipt
    return ClaimedCanvas(
        receipt.steps,
        receipt.finish,
        receipt.total_prompt_tokens,
        receipt.trace_root,
        shown.leaves,
        shown.output,
    )
