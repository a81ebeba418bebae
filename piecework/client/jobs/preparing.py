"""From a chosen worker to a job that is signed, sealed and recorded. Nothing is sent yet."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from piecework.client.errors import StoreError
from piecework.client.jobs.driver import JobContext
from piecework.client.jobs.requests import JobRequest, job_parameters
from piecework.client.jobs.selection import Choice
from piecework.client.journal.records import ChannelRow, JobRow, JobStatus, Part
from piecework.client.journal.store import NO_PART
from piecework_protocol.content import content_digest
from piecework_protocol.conversation import Conversation
from piecework_protocol.frames import SubmitJob
from piecework_protocol.kinds.open import OpenContent
from piecework_protocol.kinds.read import ReadContent
from piecework_protocol.kinds.text import TextContent
from piecework_protocol.objects import Job
from piecework_protocol.sealing import content_context, public_key, seal
from piecework_protocol.signing import sign
from piecework_protocol.types import Bytes32, Digest, Timestamp, Uint32

NOT_SENT: Final = "not sent"
"""The end of a job of which no worker has heard."""


async def prepare(
    context: JobContext, choice: Choice, request: JobRequest, part: Part = NO_PART
) -> tuple[JobRow, ChannelRow]:
    """Sign and seal the request for one worker, record it, and reserve its ceiling. Nothing is
    sent. `part` is what the budgets hold for it.

    Returns:
        The job as it was recorded, and its channel with the job's ceiling reserved.

    Raises:
        WorkerUnreachable: the worker does not answer. Nothing was reserved.
        InsufficientFunds: the free balance is too small.
        StoreError: what the budgets held has ended.
    """
    offer, now = choice.signed.offer, context.now()
    await context.links.to(offer)  # money is reserved for a worker that is there
    row = await context.channels.for_offer(offer)
    prompt = request.prompt
    reply_secret, salt = context.entropy(32), Bytes32(context.entropy(32))
    seed = choice.generation.seed
    if seed is None:
        seed = int.from_bytes(context.entropy(8), "big")
    job = Job(
        channel=row.id,
        salt=salt,
        offer=Digest(context.domain.digest(offer)),
        entry=Uint32(offer.models.index(choice.model)),
        model=choice.model.digest,
        kind=request.kind,
        content=content_digest(salt, prompt),
        parameters=job_parameters(choice.model, choice.generation, seed),
        max_amount=choice.ceiling,
        deadline=Timestamp(now + context.config.job_lifetime_s),
        reply_key=public_key(reply_secret),
    )
    key = job.id(context.domain)
    sealed = seal(prompt, offer.sealing_key, content_context(context.domain, key))
    signature = sign(context.domain, job, context.wallet.authorizer)
    submission = SubmitJob(job, signature, row.channel, sealed, drafts=request.drafts)
    record = JobRow(
        id=key,
        submission=submission,
        offer=choice.signed,
        reply_secret=reply_secret,
        outline=request.content.outline,
        status=JobStatus.LIVE,
        prompt_tokens=None,
        detail="",
        created_at=now,
        owner=context.store.owner,
    )
    return record, await _record(context, record, request, row, part)


async def _record(
    context: JobContext, job: JobRow, request: JobRequest, row: ChannelRow, part: Part
) -> ChannelRow:
    """Record a job and reserve its ceiling, both or none. A cancelled one is over at once."""
    asked = request.content
    # An opening has no text, and its outputs are large. An audit has the text of another job.
    keeps = context.config.keep_text and not isinstance(asked, OpenContent)
    spoken = asked.conversation if isinstance(asked, TextContent | ReadContent) else None
    text = readable(spoken) if keeps and spoken is not None else None
    content = request.prompt if keeps else None
    admitting = asyncio.ensure_future(context.channels.admit(job, text, row, part, content))
    try:
        return await asyncio.shield(admitting)
    except asyncio.CancelledError:
        admitting.add_done_callback(lambda done: _forget(context, job, done))
        raise


def _forget(context: JobContext, job: JobRow, recorded: asyncio.Future[ChannelRow]) -> None:
    """End a job whose caller was cancelled while it was recorded. Its ceiling is free again."""
    # At the end of a loop all tasks are cancelled. What is on its way to the disk arrives all the
    # same, or was never recorded.
    if recorded.cancelled() or recorded.exception() is None:
        with suppress(StoreError):
            context.store.finish(job.id, JobStatus.REFUSED, NOT_SENT)


def readable(conversation: Conversation) -> str:
    """Return what was said as a text for people: a line with the role, then the message."""
    return "\n\n".join(f"{message.role}:\n{message.text}" for message in conversation.messages)
