"""Making the evidence file of a job out of the client's journal.

The journal has everything that was signed. It has text only if texts are kept. Without that the
worker is asked for the outputs again, as long as it keeps them, and the content is left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from piecework.base.errors import PieceworkError
from piecework.client.jobs.driver import JobContext
from piecework.client.jobs.events import CanvasText, ReadAnswers, StepOpened
from piecework.client.jobs.run import JobRun
from piecework.client.journal.contradictions import KeptFrame
from piecework.client.journal.proofs import prove_receipts
from piecework.client.journal.records import ChannelRow, JobRow, JobStatus, ReceiptRow
from piecework.client.journal.store import Store
from piecework_protocol.eip712 import Domain
from piecework_protocol.evidence.check import contradict
from piecework_protocol.evidence.file import (
    CanvasEvidence,
    Contradiction,
    EvidenceFile,
    PaidCanvas,
    ShownAcceptance,
    ShownJob,
    ShownPayment,
)
from piecework_protocol.evidence.making import make_file
from piecework_protocol.frames import Accepted, CanvasDelivered
from piecework_protocol.kinds.open import OpenOutput
from piecework_protocol.kinds.read import ReadOutput
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.objects import Acceptance, Receipt
from piecework_protocol.signing import sign
from piecework_protocol.types import JobId, Signature, Uint32


@dataclass(frozen=True, slots=True)
class Texts:
    """What is known of a job's text. `outputs`: by canvas."""

    content: bytes | None
    outputs: Mapping[int, bytes]


NO_TEXTS = Texts(None, {})
_Statement: TypeAlias = tuple[Acceptance | Receipt, Signature]


async def known_texts(
    store: Store, job: JobId, follow: Callable[[JobId], JobRun]
) -> tuple[Texts, str]:
    """Return what is known of a job's text, and what is missing, in words.

    Outputs that were not kept are fetched from the worker, if the job is over. They are not paid
    again. `follow` is `PieceworkClient.resume`.

    Raises:
        StoreError: The journal does not know the job.
    """
    row, receipts = await asyncio.to_thread(lambda: (store.job(job), store.receipts(job=job)))
    kept = await asyncio.to_thread(store.texts, job)
    outputs, missing = dict(kept.outputs), []
    if kept.content is None:
        missing.append("the prompt, because this client keeps no text (keep_text)")
    if len(outputs) < len(receipts):
        why = "because the job is not over"
        if row.status in (JobStatus.COMPLETE, JobStatus.CANCELLED):
            why = await _fetched(outputs, follow(job))
        if why:
            missing.append(f"the answer, {why}")
    return Texts(kept.content, outputs), " and ".join(missing)


async def _fetched(outputs: dict[int, bytes], run: JobRun) -> str:
    """Fetch the outputs of a job again. Return why that failed, or ""."""
    try:
        async with run:
            async for event in run:
                if isinstance(event, CanvasText | ReadAnswers | StepOpened):
                    outputs[event.canvas] = output_of(event)
    except PieceworkError as error:
        return f"because its worker does not give it again: {error}"
    return ""


def output_of(event: CanvasText | ReadAnswers | StepOpened) -> bytes:
    """Give the bytes of an output, as the receipt's digest covers them."""
    if isinstance(event, StepOpened):
        return OpenOutput(event.canvas_fields, event.fields, event.soft).encode()
    if isinstance(event, CanvasText):
        return TextOutput(event.token_ids, event.segments).encode()
    return ReadOutput(event.answers).encode()


async def make_evidence(context: JobContext, job: JobId, texts: Texts) -> EvidenceFile:
    """Make the evidence file of a job, and check it.

    Raises:
        StoreError: The journal does not know the job.
        EvidenceRefused: What the journal has of it does not hold together.
    """
    return await asyncio.to_thread(_make, context, job, texts)


def _make(context: JobContext, job: JobId, texts: Texts) -> EvidenceFile:
    store, domain = context.store, context.domain
    row = store.job(job)
    channel = store.channel(row.channel_id)
    paid = store.receipts(channel=row.channel_id)
    mine = sorted((r for r in paid if r.receipt.job == job), key=lambda r: r.receipt.canvas)
    payment = _payment(context, channel, paid, job)
    return make_file(
        domain,
        channel.channel,
        row.offer,
        ShownJob(row.submission.job, row.submission.signature),
        acceptance=_acceptance(row.acceptance),
        canvases=[_canvas(r, texts) for r in mine],
        payment=payment,
        contradictions=_contradictions(domain, row, mine, store.contradictions.of(job)),
        content=texts.content,
    )


def _acceptance(frame: Accepted | None) -> ShownAcceptance | None:
    if frame is None:
        return None
    promise = Acceptance(frame.job, Uint32(frame.prompt_tokens), frame.accepted_at)
    return ShownAcceptance(promise, frame.signature)


def _canvas(row: ReceiptRow, texts: Texts) -> CanvasEvidence:
    receipt = row.receipt
    # Receipts from before leaves travelled have none.
    kept = row.leaves if row.leaves or not receipt.steps else None
    return CanvasEvidence(receipt, row.signature, kept, texts.outputs.get(receipt.canvas))


def _payment(
    context: JobContext, channel: ChannelRow, paid: Sequence[ReceiptRow], job: JobId
) -> ShownPayment | None:
    """The channel's latest voucher, and its proofs for the job's canvases."""
    voucher = channel.book.voucher()
    proven = prove_receipts(context.domain, channel.channel, voucher, paid, job=job)
    shown = tuple(
        PaidCanvas(p.row.receipt.canvas, p.proof)
        for p in proven
        if p.proof is not None and not p.trouble
    )
    if not shown:
        return None
    return ShownPayment(voucher, sign(context.domain, voucher, context.wallet.authorizer), shown)


def _contradictions(
    domain: Domain, row: JobRow, receipts: Sequence[ReceiptRow], kept: Sequence[KeptFrame]
) -> tuple[Contradiction, ...]:
    """Each frame that was kept, beside the statement of the journal that it contradicts."""
    known: dict[Uint32 | None, _Statement] = {
        r.receipt.canvas: (r.receipt, r.signature) for r in receipts
    }
    accepted = _acceptance(row.acceptance)
    if accepted is not None:
        known[None] = (accepted.acceptance, accepted.signature)
    found = []
    for one in kept:
        place, second = _statement(one.frame)
        first = known.get(place)
        if first is not None and contradict(first[0], second[0], row.id, row.channel_id):
            found.append(Contradiction(*first, *second))
    return tuple(found)


def _statement(frame: Accepted | CanvasDelivered) -> tuple[Uint32 | None, _Statement]:
    """What a kept frame says: of which canvas, None for the acceptance, and the statement."""
    if isinstance(frame, Accepted):
        promise = Acceptance(frame.job, Uint32(frame.prompt_tokens), frame.accepted_at)
        return None, (promise, frame.signature)
    return frame.receipt.canvas, (frame.receipt, frame.signature)
