"""The evidence file of a job out of the worker's journal: the format that clients write too.

The worker has all that was signed. It can sign its own statements again, because a signature is a
function of key and statement. It has the content, sealed to itself. It does not have the outputs:
they are sealed to the client.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from piecework.base.errors import PieceworkError
from piecework_node.evidence.steps import SealingKeySource, StepSource
from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import ContradictionSeen, StoredJob
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.evidence.check import contradict
from piecework_protocol.evidence.file import (
    CanvasEvidence,
    Contradiction,
    EvidenceFile,
    ShownAcceptance,
    ShownJob,
    ShownPayment,
)
from piecework_protocol.evidence.making import make_file, payment_of
from piecework_protocol.objects import Acceptance, Service, Voucher
from piecework_protocol.openings import StepOpening, write_openings
from piecework_protocol.sealing import content_context
from piecework_protocol.signing import AsyncSigner
from piecework_protocol.types import SIGNATURE_BYTES, Digest, JobId, Signature, Uint32
from piecework_protocol.wire import decode_value

MAX_ID_DIGITS = 64


class NoEvidence(PieceworkError):
    """The worker has nothing to export of what was asked for."""


@dataclass(frozen=True, slots=True)
class ExportedJob:
    """The file of a job. lacking: one line for each part that this worker does not have."""

    id: JobId
    file: EvidenceFile
    lacking: tuple[str, ...]


class Exporter:
    """Exports jobs of one worker. `steps` has what is kept of canvases."""

    def __init__(
        self,
        journal: Journal,
        keys: SealingKeySource,
        domain: Domain,
        signer: AsyncSigner,
        steps: StepSource,
    ) -> None:
        self._journal, self._keys = journal, keys
        self._domain, self._signer, self._steps = domain, signer, steps

    async def export(self, digits: str, *, with_text: bool) -> ExportedJob:
        """Make the file of the job whose id begins with these hex digits.

        Raises:
            NoEvidence: no job does, several do, or the journal has let go of it.
            EvidenceRefused: what the journal has of it does not hold together.
        """
        stored = await self._named(digits)
        job, channel = stored.submission.job, stored.submission.channel
        offer = await self._journal.offer(job.offer)
        if offer is None:
            raise NoEvidence("the journal does not have the offer of this job any more")
        lacking: list[str] = []
        content = await self._content(stored, lacking) if with_text else None
        promise = Acceptance(stored.id, Uint32(stored.prompt_tokens), stored.at)
        seen = await self._journal.contradictions(job.channel)
        file = await asyncio.to_thread(
            make_file,
            self._domain,
            channel,
            offer,
            ShownJob(job, stored.submission.signature),
            acceptance=ShownAcceptance(promise, await self._signer.typed(self._domain, promise)),
            canvases=[await self._canvas(stored, index) for index in range(len(stored.canvases))],
            payment=await self._payment(stored),
            contradictions=[shown for one in seen if (shown := self._pair(one, stored))],
            content=content,
        )
        if stored.canvases and with_text:
            lacking.append("the outputs, which are sealed to the client")
        lacking += self._without_steps(stored)
        if not file.payments and stored.canvases:
            lacking.append("a voucher: no canvas of this job is paid")
        return ExportedJob(stored.id, file, tuple(lacking))

    async def openings(self, digits: str, canvas: int) -> bytes:
        """Make the openings file of a canvas whose steps are kept. It has no soft embeddings.

        Raises:
            NoEvidence: there is no such canvas, or its steps are not kept.
        """
        stored = await self._named(digits)
        kept = await self._steps.find(stored.id, canvas)
        if kept is None:
            raise NoEvidence(f"the steps of canvas {canvas} are not kept")
        return write_openings(kept.canvas, [StepOpening(step.fields()) for step in kept.steps])

    async def _named(self, digits: str) -> StoredJob:
        beginning = digits.lower().removeprefix("0x")
        bad = set(beginning) - set("0123456789abcdef")
        if not 0 < len(beginning) <= MAX_ID_DIGITS or bad:
            raise NoEvidence("the id of a job is 0x and hex digits")
        found = await self._journal.jobs_named(beginning)
        if len(found) > 1:
            raise NoEvidence(f"several jobs begin with {beginning}. Give more digits")
        stored = await self._journal.job(found[0]) if found else None
        if stored is None:
            raise NoEvidence("the journal does not have such a job, or has let go of it")
        return stored

    async def _content(self, stored: StoredJob, lacking: list[str]) -> bytes | None:
        if stored.submission.job.parameters.service is not Service.REPLAYABLE:
            lacking.append("the prompt, which is not kept of a best-effort job")
            return None
        sealed = await self._journal.sealed_content(stored.id)
        if sealed is None:
            lacking.append("the prompt, which is not kept any more")
            return None
        try:
            return self._keys.open(sealed, content_context(self._domain, stored.id))
        except MalformedInput:
            lacking.append("the prompt: the key that opens it is gone")
            return None

    async def _canvas(self, stored: StoredJob, index: int) -> CanvasEvidence:
        canvas = stored.canvases[index]
        receipt = canvas.receipt
        kept = canvas.leaves if canvas.leaves or not receipt.steps else None
        signature = await self._signer.typed(self._domain, receipt)
        return CanvasEvidence(receipt, signature, kept, None)

    async def _payment(self, stored: StoredJob) -> ShownPayment | None:
        channel = await self._journal.channel(stored.submission.job.channel)
        accepted = None if channel is None else channel.ledger.accepted
        if accepted is None:
            return None
        paid = await self._journal.paid(stored.submission.job.channel)
        mine = {
            Digest(self._domain.digest(canvas.receipt)): canvas.receipt.canvas
            for canvas in stored.canvases
        }
        return await asyncio.to_thread(payment_of, accepted.voucher, accepted.signature, paid, mine)

    def _pair(self, seen: ContradictionSeen, stored: StoredJob) -> Contradiction | None:
        """Return two vouchers that contradict each other. None: they are of another kind."""
        try:
            (first, by_first), (second, by_second) = map(_voucher, (seen.first, seen.second))
        except MalformedInput:
            return None
        if not contradict(first, second, stored.id, stored.submission.job.channel):
            return None
        return Contradiction(first, by_first, second, by_second)

    def _without_steps(self, stored: StoredJob) -> list[str]:
        """Say of which canvases the steps are not kept."""
        gone = [
            str(canvas.receipt.canvas)
            for canvas in stored.canvases
            if canvas.leaves and not self._steps.has(stored.id, canvas.receipt.canvas)
        ]
        if not gone:
            return []
        return [f"the steps of canvas {', '.join(gone)}: the engine has to replay what is asked"]


def _voucher(data: bytes) -> tuple[Voucher, Signature]:
    return decode_value(Voucher, data[:-SIGNATURE_BYTES]), Signature(data[-SIGNATURE_BYTES:])
