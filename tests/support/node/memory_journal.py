"""The journal in memory: implements `node.journal.Journal` and outlives the worker that writes
it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from piecework_node.errors import JournalConflict, SaltUsed
from piecework_node.journal.records import (
    FINAL_TX_STATES,
    OPEN_TX_STATES,
    SEQUENCE_FLOOR,
    ChannelObserved,
    ChannelSeen,
    CloseAgreed,
    ContradictionSeen,
    Earnings,
    EndedJob,
    FundingAuthorized,
    JournalRecord,
    MetaSet,
    OfferIssued,
    ReceiptsShown,
    ReplayableJobs,
    SealingKeyAdded,
    SealingKeyDropped,
    StoredChannel,
    StoredJob,
    StoredSealingKey,
    StoredTx,
    TxMoved,
    TxState,
    VoucherApplied,
)
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import Reason
from piecework_protocol.frames import LeafRef
from piecework_protocol.ledger import Unpaid, WorkerLedger
from piecework_protocol.objects import Receipt, Service
from piecework_protocol.states import ENDED_STATES, ChannelState, JobState
from piecework_protocol.types import Amount, ChannelId, Digest, JobId, Timestamp
from piecework_protocol.wire import SignedOffer
from piecework_protocol.worker_session import StateRecord, StoredCanvas
from tests.support.node.faults import KillSwitch


class MemoryJournal:
    """Dicts in place of tables. A kill switch can end the process before or after every commit."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self.switch = KillSwitch()
        self.jobs: dict[JobId, StoredJob] = {}
        self.contents: dict[JobId, bytes] = {}
        self.books: dict[ChannelId, StoredChannel] = {}
        self.paid_leaves: dict[ChannelId, dict[int, LeafRef]] = {}
        self.offers: dict[Digest, SignedOffer] = {}
        self.keys: list[StoredSealingKey] = []
        self.txs: dict[bytes, StoredTx] = {}
        self.notes: dict[str, str] = {}
        self.seen: dict[tuple[ChannelId, str], ContradictionSeen] = {}
        self.healed: dict[LeafRef, Receipt] = {}
        self.healed_jobs: dict[JobId, ChannelId] = {}
        self.commits = 0

    async def append(self, records: Sequence[JournalRecord]) -> None:
        if not records:
            return
        self.switch.point()
        before = self._state()
        try:
            for record in records:
                self._apply(record)
        except (JournalConflict, KeyError) as error:
            (
                self.jobs, self.books, self.paid_leaves, self.offers, self.keys, self.txs,
                self.notes, self.healed, self.healed_jobs, self.contents,
            ) = before  # fmt: skip
            if isinstance(error, KeyError):
                raise JournalConflict("there is no such row") from error
            raise
        self.commits += 1
        self.switch.point()

    def _state(self) -> tuple[Any, ...]:
        paid = {channel: dict(leaves) for channel, leaves in self.paid_leaves.items()}
        return (
            dict(self.jobs), dict(self.books), paid, dict(self.offers), list(self.keys),
            dict(self.txs), dict(self.notes), dict(self.healed), dict(self.healed_jobs),
            dict(self.contents),
        )  # fmt: skip

    def _apply(self, record: JournalRecord) -> None:  # noqa: PLR0912  one branch a record
        match record:
            case StoredJob():
                bare = replace(record.submission, sealed_content=b"", funding=None)
                mine = (bare.job.channel, bare.job.salt)
                if mine in (
                    (j.submission.job.channel, j.submission.job.salt) for j in self.jobs.values()
                ):
                    raise SaltUsed("a salt is used once on a channel")
                self.jobs[record.id] = replace(record, submission=bare)
                if bare.job.parameters.service is Service.REPLAYABLE:
                    self.contents[record.id] = record.submission.sealed_content
            case StateRecord():
                job = self.jobs[record.job]
                reason = record.reason or job.reason
                self.jobs[record.job] = replace(job, state=record.state, reason=reason)
            case StoredCanvas():
                self._canvas(record)
            case ChannelSeen():
                fresh = StoredChannel(record.id, record.channel, WorkerLedger(record.id))
                self.books.setdefault(record.id, fresh)
            case FundingAuthorized():
                self._book(record.channel, funding=record.funding)
            case VoucherApplied():
                self._voucher(record)
            case ChannelObserved():
                self._book(
                    record.channel,
                    state=record.state,
                    deposit=record.deposit,
                    settled=record.settled,
                    observed_at=record.at,
                    withdrawn=record.withdrawn,
                    requested=record.requested,
                    requested_at=record.requested_at,
                    requests=record.requests,
                )
            case CloseAgreed():
                self._book(record.channel, close_signature=record.signature, close_fee=record.fee)
            case OfferIssued():
                self.offers[record.digest] = record.signed
            case SealingKeyAdded():
                self.keys.insert(
                    0, StoredSealingKey(record.public, record.wrapped, record.created_at)
                )
            case SealingKeyDropped():
                self.keys = [key for key in self.keys if key.public != record.public]
            case StoredTx():
                self.txs[record.tx.hash] = record
            case TxMoved():
                tx = self.txs[record.hash]
                self.txs[record.hash] = replace(
                    tx,
                    state=record.state,
                    moved_at=record.at,
                    gas_used=max(tx.gas_used, record.gas_used),
                    fee_wei=max(tx.fee_wei, record.fee_wei),
                )
            case ContradictionSeen():
                self.seen.setdefault((record.channel, record.kind), record)
            case ReceiptsShown():
                self._shown(record)
            case MetaSet():
                self.notes[record.key] = record.value

    def _book(self, channel: ChannelId, **changes: object) -> None:
        self.books[channel] = replace(self.books[channel], **changes)  # type: ignore[arg-type]

    def _canvas(self, record: StoredCanvas) -> None:
        receipt = record.receipt
        job = self.jobs[receipt.job]
        if receipt.canvas != len(job.canvases):
            raise JournalConflict("canvases are recorded in order")
        self.jobs[job.id] = replace(job, canvases=(*job.canvases, record))
        channel = ChannelId(job.submission.job.channel)
        book = self.books[channel].ledger
        digest = Digest(self._domain.digest(receipt))
        unpaid = {
            **book.unpaid,
            LeafRef(job.id, receipt.canvas): Unpaid(digest, receipt.amount),
        }
        self._book(channel, ledger=replace(book, unpaid=unpaid))

    def _voucher(self, record: VoucherApplied) -> None:
        channel = record.ledger.channel
        book = self.books[channel].ledger
        if book.accumulator.count != record.base:
            raise JournalConflict("a voucher builds on the one before it")
        unpaid = {ref: owed for ref, owed in book.unpaid.items() if ref not in record.paid}
        self._book(channel, ledger=replace(record.ledger, unpaid=unpaid))
        leaves = self.paid_leaves.setdefault(channel, {})
        for offset, ref in enumerate(record.paid):
            if record.base + offset in leaves or ref in leaves.values():
                raise JournalConflict("a receipt is paid once")
            leaves[record.base + offset] = ref

    def _shown(self, record: ReceiptsShown) -> None:
        channel = record.ledger.channel
        self._apply(ChannelSeen(channel, record.channel))
        owed, refs = self.books[channel].ledger.unpaid, []
        for receipt in record.receipts:
            ref = LeafRef(JobId(receipt.job), receipt.canvas)
            refs.append(ref)
            job = self.jobs.get(ref.job)
            mine = job.submission.job.channel if job else self.healed_jobs.get(ref.job, channel)
            if mine != channel:
                raise JournalConflict("the job of a shown receipt is of another channel")
            if ref not in owed:
                self.healed[ref] = receipt
            if job is None:
                self.healed_jobs[ref.job] = channel
            elif job.state not in ENDED_STATES:
                self._apply(StateRecord(ref.job, JobState.FAILED, Reason.INTERNAL))
        self._apply(VoucherApplied(record.ledger, tuple(refs), record.base))

    # --- reading

    async def job(self, job: JobId) -> StoredJob | None:
        return self.jobs.get(job)

    async def sealed_content(self, job: JobId) -> bytes | None:
        return self.contents.get(job)

    async def canvas_of(self, channel: ChannelId, receipt: Digest) -> tuple[JobId, int] | None:
        for job in self.jobs.values():
            for canvas in job.canvases:
                mine = Digest(self._domain.digest(canvas.receipt)) == receipt
                if mine and job.submission.job.channel == channel:
                    return job.id, canvas.receipt.canvas
        return None

    async def replayable(self, deadline: Timestamp) -> tuple[ReplayableJobs, ...]:
        found: dict[tuple[Digest, int], ReplayableJobs] = {}
        for job in self.jobs.values():
            signed = job.submission.job
            if job.id in self.contents and signed.deadline >= deadline:
                key = signed.offer, int(signed.entry)
                known = found.get(key, ReplayableJobs(*key, 0, Timestamp(0)))
                latest = max(known.deadline, signed.deadline)
                found[key] = ReplayableJobs(*key, known.jobs + 1, latest)
        return tuple(found.values())

    async def jobs_named(self, digits: str) -> tuple[JobId, ...]:
        return tuple(sorted(job for job in self.jobs if job.hex().startswith(digits))[:2])

    async def paid(self, channel: ChannelId) -> tuple[Digest, ...]:
        found = []
        for _, ref in sorted(self.paid_leaves.get(channel, {}).items()):
            job = self.jobs.get(ref.job)
            receipt = job.canvases[ref.canvas].receipt if job else self.healed[ref]
            found.append(Digest(self._domain.digest(receipt)))
        return tuple(found)

    async def contradictions(self, channel: ChannelId) -> tuple[ContradictionSeen, ...]:
        return tuple(seen for (of, _), seen in sorted(self.seen.items()) if of == channel)

    async def traced(
        self, offer: Digest, entry: int, deadline: Timestamp
    ) -> tuple[tuple[JobId, int], ...]:
        found = []
        for job in self.jobs.values():
            signed = job.submission.job
            of_entry = (signed.offer, signed.entry) == (offer, entry)
            if of_entry and job.id in self.contents and signed.deadline >= deadline:
                found += [(job.id, c.receipt.canvas) for c in job.canvases if c.leaves]
        return tuple(found)

    async def open_jobs(self) -> tuple[StoredJob, ...]:
        owing = {ref.job for book in self.books.values() for ref in book.ledger.unpaid}
        found = [j for j in self.jobs.values() if j.state not in ENDED_STATES or j.id in owing]
        return tuple(sorted(found, key=lambda j: (j.at, j.id)))

    async def channels(self) -> tuple[StoredChannel, ...]:
        return tuple(
            b
            for b in self.books.values()
            if b.state is not ChannelState.CLOSED
            or b.settled < b.ledger.cumulative
            or b.ledger.unpaid
        )

    async def channel(self, channel: ChannelId) -> StoredChannel | None:
        return self.books.get(channel)

    async def offer(self, digest: Digest) -> SignedOffer | None:
        return self.offers.get(digest)

    async def last_sequence(self) -> int:
        issued = max((o.offer.sequence for o in self.offers.values()), default=0)
        return max(issued, int(self.notes.get(SEQUENCE_FLOOR, 0)))

    async def sealing_keys(self) -> tuple[StoredSealingKey, ...]:
        return tuple(self.keys)

    async def transactions(self) -> tuple[StoredTx, ...]:
        found = [tx for tx in self.txs.values() if tx.state in OPEN_TX_STATES]
        return tuple(sorted(found, key=lambda tx: (tx.tx.nonce, tx.at)))

    async def given_up(self) -> tuple[StoredTx, ...]:
        ended = [tx.tx.nonce for tx in self.txs.values() if tx.state in FINAL_TX_STATES]
        last = max(ended, default=-1)
        found = [tx for tx in self.txs.values() if tx.state is TxState.REPLACED]
        found = [tx for tx in found if tx.tx.nonce > last]
        return tuple(sorted(found, key=lambda tx: (tx.tx.nonce, tx.at)))

    async def meta(self, key: str) -> str | None:
        return self.notes.get(key)

    async def metas(self, prefix: str) -> dict[str, str]:
        return {key: value for key, value in self.notes.items() if key.startswith(prefix)}

    async def recent_jobs(self, most: int) -> tuple[EndedJob, ...]:
        newest = list(self.jobs.values())[-most:]
        return tuple(
            EndedJob(j.submission.job.model, j.canvases[-1].receipt) for j in newest if j.canvases
        )

    async def earnings(self) -> Earnings:
        receipts = [s.receipt for j in self.jobs.values() for s in j.canvases]
        receipts += self.healed.values()
        states = Counter(j.state.value for j in self.jobs.values())
        states.update(JobState.FAILED.value for _ in self.healed_jobs)
        ledgers = [b.ledger for b in self.books.values()]
        return Earnings(
            charged=Amount(sum(r.amount for r in receipts)),
            accepted=Amount(sum(ledger.cumulative for ledger in ledgers)),
            settled=Amount(sum(b.settled for b in self.books.values())),
            unpaid=Amount(sum(u.amount for ledger in ledgers for u in ledger.unpaid.values())),
            canvases=len(receipts),
            jobs=dict(sorted(states.items())),
        )
