"""Canvases to check auditors with, out of the client's journal. It has some if texts are kept."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from piecework.base.errors import PieceworkError
from piecework.client.auditors.checks import KnownCanvas, KnownCanvases
from piecework.client.evidence import Texts, make_evidence
from piecework.client.jobs.driver import JobContext
from piecework.client.journal.records import JobRow
from piecework.client.journal.store import Store
from piecework.client.network.discovery import ChainView
from piecework_protocol.errors import MalformedInput
from piecework_protocol.evidence.audits import audit_content
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.kinds.audit import AuditContent
from piecework_protocol.objects import Kind
from piecework_protocol.types import Address, Digest

RECENT_JOBS: Final = 64
"""Of the journal, so many are looked through."""
MOST: Final = 8
"""Canvases, one of a job. To make the evidence of one takes some milliseconds."""


class Keeper(Protocol):
    """The client whose journal it is: `PieceworkClient`."""

    @property
    def context(self) -> JobContext: ...

    @property
    def chain(self) -> ChainView: ...


async def known_canvases(client: Keeper, *, but: Digest) -> KnownCanvases:
    """Take canvases of recent jobs whose text is kept.

    Nobody has proven that they pass, so they are changed before they are sent. Those who have
    audited a job before, by the journal, count as knowing it.

    but: the content digest of a job that is left out.
    """
    store, found = client.context.store, KnownCanvases()
    rows = (await asyncio.to_thread(store.jobs))[-RECENT_JOBS:]
    knowing = await _audited_before(client, [r for r in rows if _kind(r) is Kind.AUDIT])
    for row in reversed(rows):
        if _kind(row) not in (Kind.TEXT, Kind.READ) or row.submission.job.content == but:
            continue
        canvas = await _canvas_of(client, row)
        if canvas is not None:
            canvas.known_to |= knowing.get(row.submission.job.content, set())
            found.add(canvas)
        if len(found.canvases) >= MOST:
            break
    return found


def _kind(row: JobRow) -> Kind:
    return row.submission.job.kind


async def _audited_before(client: Keeper, rows: list[JobRow]) -> dict[Digest, set[Address]]:
    """Find who has audited which job, by its content digest."""
    knowing: dict[Digest, set[Address]] = {}
    for row in rows:
        kept = await asyncio.to_thread(client.context.store.texts, row.id)
        if kept.content is None:
            continue
        digest = AuditContent.decode(kept.content).job_content
        knowing.setdefault(digest, set()).update(await _parties(client, row))
    return knowing


async def _canvas_of(client: Keeper, row: JobRow) -> KnownCanvas | None:
    """Return the first canvas of a job, if all of it is known."""
    store: Store = client.context.store
    kept = await asyncio.to_thread(store.texts, row.id)
    if kept.content is None or not kept.outputs:
        return None
    try:
        evidence = await make_evidence(client.context, row.id, Texts(kept.content, kept.outputs))
        content = audit_content(evidence, check_evidence(evidence), 0)
    except (PieceworkError, MalformedInput):
        return None
    leaves = evidence.canvases[0].leaves or ()
    job, who = row.submission.job, await _parties(client, row)
    return KnownCanvas(job.model, content, leaves, job.max_amount, who)


async def _parties(client: Keeper, row: JobRow) -> set[Address]:
    """Return everybody who stands behind the worker of a job."""
    channel = row.submission.channel
    registered = await client.chain.worker(channel.operator)
    owners = () if registered is None else (registered.owner, registered.payout)
    return {channel.operator, channel.receiver, *owners}
