"""A job and a channel as the running worker holds them. Plain state; `node.worker` moves it."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass, field
from typing import Protocol

from piecework_model.requests import GenerationRequest
from piecework_node.jobs.admission import ChannelView
from piecework_node.journal.records import StoredChannel
from piecework_protocol.errors import MalformedInput, Refusal
from piecework_protocol.frames import Funding, WorkerFrame
from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.objects import Channel, Parameters
from piecework_protocol.states import ENDED_STATES, ChannelState
from piecework_protocol.types import Amount, ChannelId, JobId, Signature
from piecework_protocol.worker_session import WorkerSession

_MICRO = 1_000_000


class FrameSink(Protocol):
    """Where a job's frames go: a gRPC stream, or a list in a test. Neither method blocks."""

    def send(self, frame: WorkerFrame) -> None:
        """Queue a frame. Drafts may be dropped, nothing else ever is."""
        ...

    def close(self, refusal: Refusal | None) -> None:
        """No more frames follow; `refusal` says why when it is not the ordinary end."""
        ...


@dataclass(slots=True)
class LiveJob:
    """A job that is not over and paid, or whose stream is open."""

    session: WorkerSession
    book: LiveChannel
    reserve: Amount
    """The most that the job can cost."""
    prompt_ids: tuple[int, ...] = ()
    """Only while a stream is open: never written anywhere."""
    committed: list[tuple[int, ...]] = field(default_factory=list)
    """Token ids of the finished canvases, only while a stream is open."""
    sink: FrameSink | None = None
    drafts: bool = False
    run: str | None = None
    """The engine row's name while there is one."""
    engine_losses: int = 0
    pending: bool = False
    """Leans on a deposit that is not on chain yet: held inside the credit window."""
    waiting_since: float | None = None
    """Monotonic time since which nothing can happen before the client acts."""

    @property
    def id(self) -> JobId:
        return self.session.accepted.id

    @property
    def ended(self) -> bool:
        """Whether no further canvas is made."""
        return self.session.state in ENDED_STATES

    @property
    def unpaid(self) -> int:
        """Delivered canvases that await payment."""
        return self.book.ledger.unpaid_canvases(self.id)

    @property
    def still_reserved(self) -> int:
        """What the job may still come to cost beyond the receipts that it has."""
        if self.ended:
            return 0
        return max(0, self.reserve - self.session.charged)


@dataclass(slots=True)
class LiveChannel:
    """A channel: its ledger, the chain's last word, and the jobs that matter now."""

    id: ChannelId
    channel: Channel
    ledger: WorkerLedger
    funding: Funding | None = None
    state: ChannelState = ChannelState.NONE
    deposit: Amount = Amount(0)
    settled: Amount = Amount(0)
    pooled: Amount = Amount(0)
    observed_at: float | None = None
    """Monotonic time of the chain's last word; None when it was never heard in this process."""
    close_signature: Signature | None = None
    journaled: bool = False
    jobs: dict[JobId, LiveJob] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    def of(cls, stored: StoredChannel) -> LiveChannel:
        """The channel as the journal holds it."""
        return cls(
            id=stored.id,
            channel=stored.channel,
            ledger=stored.ledger,
            funding=stored.funding,
            state=stored.state,
            deposit=stored.deposit,
            settled=stored.settled,
            close_signature=stored.close_signature,
            journaled=True,
        )

    @property
    def backing(self) -> Amount:
        """The deposit on chain, or the larger one that is authorized."""
        return Amount(max(self.deposit, self.funding.authorization.deposit if self.funding else 0))

    @property
    def committed(self) -> int:
        """Base units that are promised, owed, or may still come to be owed."""
        owed = sum(u.amount for u in self.ledger.unpaid.values())
        return self.ledger.cumulative + owed + sum(job.still_reserved for job in self.jobs.values())

    def pending_funding(self, now: int) -> int:
        """Base units that an authorization would still take out of the payer's pooled balance."""
        funding = usable_funding(self.funding, now)
        return max(0, funding.authorization.deposit - self.deposit) if funding else 0

    def view(self, *, fresh: bool, offered: Funding | None, now: int, pooled: int) -> ChannelView:
        """What admission looks at; `offered` is the authorization that came with the submission."""
        jobs = self.jobs.values()
        detached = {job.id for job in jobs if job.sink is None}
        gone = any(ref.job in detached or ref.job not in self.jobs for ref in self.ledger.unpaid)
        return ChannelView(
            ledger=self.ledger,
            state=self.state,
            deposit=self.deposit,
            fresh=fresh,
            funding=better_funding(usable_funding(self.funding, now), offered),
            pooled=Amount(pooled),
            reserved=Amount(sum(job.still_reserved for job in jobs)),
            attached=sum(job.sink is not None for job in jobs),
            pending_jobs=sum(job.pending and not job.ended for job in jobs)
            * (self.committed > self.deposit),
            stray_unpaid=gone,
            closing=self.close_signature is not None,
        )


def usable_funding(funding: Funding | None, now: int) -> Funding | None:
    """An authorization that can still be submitted."""
    return funding if funding is not None and funding.authorization.deadline > now else None


def better_funding(known: Funding | None, offered: Funding | None) -> Funding | None:
    """Of two authorizations the one with the larger deposit; of equal ones the later to expire."""
    if known is None or offered is None:
        return offered or known
    return max(known, offered, key=lambda f: (f.authorization.deposit, f.authorization.deadline))


def generation_request(
    row: str,
    prompt_ids: tuple[int, ...],
    parameters: Parameters,
    *,
    canvas_limit: int,
    committed: tuple[tuple[int, ...], ...],
    drafts: bool,
    tenant: str = "",
) -> GenerationRequest:
    """A job as the engine takes it: fixed point becomes floating point here and nowhere else.

    tenant: whose prompts may share their beginnings with this one's.
    """
    return GenerationRequest(
        request_id=row,
        prompt_ids=prompt_ids,
        seed=parameters.seed,
        max_tokens=parameters.max_tokens,
        max_steps=parameters.max_steps,
        temperature_start=parameters.temperature_start / _MICRO,
        temperature_end=parameters.temperature_end / _MICRO,
        entropy_bound=parameters.entropy_bound / _MICRO,
        confidence_threshold=parameters.confidence_threshold / _MICRO,
        stability_steps=parameters.stability_steps,
        canvas_limit=canvas_limit,
        committed=committed,
        draft_every=1 if drafts else 0,
        tenant=tenant,
    )


def pack_ids(ids: tuple[int, ...]) -> bytes:
    """Token ids as big-endian uint32, to be sealed to ourselves."""
    return struct.pack(f">{len(ids)}I", *ids)


def unpack_ids(data: bytes) -> tuple[int, ...]:
    """What `pack_ids` made."""
    if len(data) % 4:
        raise MalformedInput("packed token ids are a multiple of four bytes")
    return struct.unpack(f">{len(data) // 4}I", data)
