"""Records to rows: one batch is one transaction and one row of the log.

Every statement returns the row that it wrote, so that the log holds a digest of it. What the
running totals need of the row before is read before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import apsw

from piecework_node.errors import JournalConflict
from piecework_node.journal.log import (
    FOLDED,
    GONE,
    LogEntry,
    RunningTotals,
    encode_entries,
    entry_of,
    marked,
)
from piecework_node.journal.records import (
    ChannelObserved,
    ChannelSeen,
    CloseAgreed,
    ContradictionSeen,
    FundingAuthorized,
    JournalRecord,
    MetaSet,
    OfferIssued,
    OneStepFunding,
    ReceiptsShown,
    SealingKeyAdded,
    SealingKeyDropped,
    StoredJob,
    StoredTx,
    TxMoved,
    VoucherApplied,
)
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.errors import InvariantBroken, Reason
from piecework_protocol.frames import ClientFrame, Funding
from piecework_protocol.objects import Receipt, Service
from piecework_protocol.ranges import check_all
from piecework_protocol.states import ENDED_STATES, ChannelState, JobState
from piecework_protocol.types import Amount, ChannelId, JobId
from piecework_protocol.wire import encode_client_frame, encode_offer, encode_value
from piecework_protocol.worker_session import StateRecord, StoredCanvas

MAX_INTEGER: Final = 2**63 - 1
"""The largest that SQLite holds."""


def amount_blob(value: int) -> bytes:
    """A uint128 as it is stored."""
    return value.to_bytes(16, "big")


def wei_blob(value: int) -> bytes:
    """A uint256 as it is stored."""
    return value.to_bytes(32, "big")


def amount_of(blob: bytes) -> Amount:
    """A stored uint128."""
    return Amount(int.from_bytes(blob, "big"))


def _value(value: TypedData | Funding) -> bytes:
    """Encode an object that must be readable again, so no number of it leaves its range."""
    check_all(value)
    return encode_value(value)


def _frame(frame: ClientFrame) -> bytes:
    """As `_value`, for a client's frame."""
    check_all(frame)
    return encode_client_frame(frame)


def closing_blob(signature: bytes, fee: int) -> bytes:
    """The signature over a closing as it is stored, and the fee behind it unless it is 0."""
    return signature + (amount_blob(fee) if fee else b"")


def merged(records: Iterable[JournalRecord]) -> list[JournalRecord]:
    """Records with the same effect, in which a job is written once however often it moved."""
    result: list[JournalRecord] = []
    places: dict[JobId, int] = {}
    for record in records:
        if isinstance(record, StateRecord) and record.job in places:
            place = places[record.job]
            known = result[place]
            if isinstance(known, StoredJob | StateRecord):
                reason = record.reason or known.reason
                result[place] = replace(known, state=record.state, reason=reason)
            continue
        if isinstance(record, StoredJob):
            places[record.id] = len(result)
        elif isinstance(record, StateRecord):
            places[record.job] = len(result)
        result.append(record)
    return result


class JournalBatch:
    """One transaction's writes. The caller opens the transaction, and logs the batch in it."""

    def __init__(self, db: apsw.Connection, domain: Domain, totals: RunningTotals) -> None:
        self._db, self._domain = db, domain
        self.totals = totals.copy()
        self._entries: dict[tuple[str, bytes], LogEntry] = {}

    def apply(self, records: Iterable[JournalRecord]) -> None:
        """Write records.

        Raises:
            JournalConflict: one of them contradicts what is there.
        """
        for record in merged(records):
            _WRITERS[type(record)](self, record)

    def take(self, other: JournalBatch) -> None:
        """Add what another batch wrote after this one, in the same transaction."""
        self._entries |= other._entries
        self.totals = other.totals

    def entries(self) -> bytes:
        """Give what the log has to say of this batch: the last state of every row."""
        return encode_entries(list(self._entries.values()))

    # --- statements

    def put(self, table: str, sql: str, values: tuple[Any, ...]) -> Sequence[Any]:
        """Insert or change exactly one row, and return it.

        Raises:
            JournalConflict: there is no such row.
        """
        rows = self._db.execute(f"{sql} RETURNING *", values).fetchall()
        if len(rows) != 1:
            raise JournalConflict(f"the row of {table} that should change is not there")
        self.enter(entry_of(table, rows[0]))
        row: Sequence[Any] = rows[0]
        return row

    def drop(self, table: str, where: str, values: tuple[Any, ...]) -> int:
        """Delete rows. Return how many there were."""
        sql = f"DELETE FROM {table} WHERE {where} RETURNING *"  # noqa: S608  our own names
        rows = self._db.execute(sql, values).fetchall()
        for row in rows:
            self.enter(marked(table, row, GONE))
        return len(rows)

    def enter(self, entry: LogEntry) -> None:
        """Note what a row is after this batch."""
        self._entries[entry.table, entry.key] = entry

    def fold(self, table: str, sql: str, values: tuple[Any, ...]) -> Sequence[Any]:
        """Write rows for the last time, and return them. The totals vouch for them from now on."""
        rows: Sequence[Any] = self._db.execute(f"{sql} RETURNING *", values).fetchall()
        for row in rows:
            self.totals.fold(table, row)
            self.enter(marked(table, row, FOLDED))
        return rows

    def knows(self, entry: LogEntry) -> bool:
        """Whether this batch has an entry for the same row."""
        return (entry.table, entry.key) in self._entries

    # --- jobs

    def job(self, r: StoredJob) -> None:
        job = r.submission.job
        channel = self._channel(ChannelId(job.channel))[0]
        sql = (
            "INSERT INTO jobs (id, channel, salt, prompt_tokens, accepted_at, "
            "deadline, state, reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        )
        deadline, reason = min(job.deadline, MAX_INTEGER), r.reason.name if r.reason else None
        terms = (r.prompt_tokens, r.at, deadline)
        row = self.put("jobs", sql, (r.id, channel, job.salt, *terms, r.state.value, reason))
        frame = _frame(replace(r.submission, sealed_content=b"", funding=None))
        sql = "INSERT INTO submissions (job, offer, frame) VALUES (?, ?, ?)"
        self.put("submissions", sql, (row[0], job.offer, frame))
        sealed = r.submission.sealed_content
        if sealed and job.parameters.service is Service.REPLAYABLE:
            sql = "INSERT INTO contents (job, sealed, entry) VALUES (?, ?, ?)"
            self.put("contents", sql, (row[0], sealed, job.entry))
        self.totals.moved(None, r.state)

    def state(self, r: StateRecord) -> None:
        number, _, before = self._job(r.job)
        sql = "UPDATE jobs SET state = ?, reason = coalesce(?, reason) WHERE number = ?"
        self.put("jobs", sql, (r.state.value, r.reason.name if r.reason else None, number))
        self.totals.moved(before, r.state)

    def canvas(self, r: StoredCanvas) -> None:
        receipt = r.receipt
        number, channel, _ = self._job(JobId(receipt.job))
        key = (number, receipt.canvas)
        sql = (
            "INSERT INTO canvases (job, canvas, channel, digest, amount) "
            "SELECT ?1, ?2, ?3, ?4, ?5 "
            "WHERE ?2 = (SELECT count(*) FROM canvases WHERE job = ?1)"
        )
        digest = self._domain.digest(receipt)
        amount = amount_blob(receipt.amount)
        self.put("canvases", sql, (*key, channel, digest, amount))
        sql = "INSERT INTO outputs VALUES (?, ?, ?, ?, ?)"
        self.put("outputs", sql, (*key, _value(receipt), r.sealed_output, r.resume_secret))
        if r.leaves:
            self.put("traces", "INSERT INTO traces VALUES (?, ?, ?)", (*key, b"".join(r.leaves)))
        totals = self.totals
        totals.canvases += 1
        totals.charged += receipt.amount
        totals.unpaid += receipt.amount

    # --- channels

    def channel_seen(self, r: ChannelSeen) -> None:
        if self._db.execute("SELECT 1 FROM channels WHERE id = ?", (r.id,)).get is not None:
            return
        zero = amount_blob(0)
        sql = (
            "INSERT INTO channels (id, terms, cumulative, count, peaks, state, deposit, settled, "
            "withdrawn, requested, requested_at, requests, observed_at) "
            "VALUES (?, ?, ?, 0, x'', ?, ?, ?, ?, ?, 0, 0, 0)"
        )
        amounts = (zero, zero, zero, zero)
        terms = _value(r.channel)
        self.put("channels", sql, (r.id, terms, zero, ChannelState.NONE.value, *amounts))

    def funding(self, r: FundingAuthorized) -> None:
        sql = "UPDATE channels SET funding = ? WHERE id = ?"
        given = r.funding
        value = _value(given.opening if isinstance(given, OneStepFunding) else given)
        self.put("channels", sql, (value, r.channel))

    def voucher(self, r: VoucherApplied) -> None:
        ledger = r.ledger
        payment = ledger.accepted
        if payment is None:
            raise InvariantBroken("a voucher is journaled with its book")
        number, cumulative, _ = self._channel(ledger.channel)
        self.totals.accepted += ledger.cumulative - cumulative
        sql = (
            "UPDATE channels SET accepted = ?, cumulative = ?, count = ?, peaks = ? "
            "WHERE number = ? AND count = ?"
        )
        values = (
            _frame(payment),
            amount_blob(ledger.cumulative),
            ledger.accumulator.count,
            b"".join(ledger.accumulator.peaks),
            number,
            r.base,
        )
        self.put("channels", sql, values)
        for offset, ref in enumerate(r.paid):
            self._pay(self._job(ref.job)[0], ref.canvas, r.base + offset)

    def _pay(self, job: int, canvas: int, leaf: int) -> None:
        sql = (
            "UPDATE canvases SET leaf_index = ? WHERE job = ? AND canvas = ? AND leaf_index IS NULL"
        )
        row = self.put("canvases", sql, (leaf, job, canvas))
        self.totals.unpaid -= amount_of(row[4])

    def shown(self, r: ReceiptsShown) -> None:
        self.channel_seen(ChannelSeen(r.ledger.channel, r.channel))
        self.voucher(VoucherApplied(r.ledger, (), r.base))
        channel = self._channel(r.ledger.channel)[0]
        for offset, receipt in enumerate(r.receipts):
            job = self._ended_job(JobId(receipt.job), channel, r.at)
            self._shown_receipt(receipt, job, channel, r.base + offset)

    def _ended_job(self, job: JobId, channel: int, at: int) -> int:
        """Return a job's number. It has ended, or ends here. An unknown one joins the channel."""
        query = "SELECT number, state, channel FROM jobs WHERE id = ?"
        found = self._db.execute(query, (job,)).fetchone()
        if found is not None:
            if found[2] != channel:
                raise JournalConflict("the job of a shown receipt is of another channel")
            if JobState(found[1]) not in ENDED_STATES:
                self.state(StateRecord(job, JobState.FAILED, Reason.INTERNAL))
            return int(found[0])
        sql = (
            "INSERT INTO jobs (id, channel, salt, prompt_tokens, accepted_at, deadline, state, "
            "reason, pruned) VALUES (?, ?, NULL, 0, ?, 0, ?, ?, 1)"
        )
        failed = JobState.FAILED
        row = self.fold("jobs", sql, (job, channel, at, failed.value, Reason.INTERNAL.name))
        self.totals.moved(None, failed)
        return int(row[0][0])

    def _shown_receipt(self, receipt: Receipt, job: int, channel: int, leaf: int) -> None:
        digest, key = self._domain.digest(receipt), (job, receipt.canvas)
        query = "SELECT digest, leaf_index FROM canvases WHERE job = ? AND canvas = ?"
        known = self._db.execute(query, key).fetchone()
        if known is not None:
            if known[0] != digest:
                raise JournalConflict("the journal holds another receipt of that canvas")
            if known[1] is not None:
                raise JournalConflict("a shown receipt is paid already")
            self._pay(*key, leaf)
            return
        sql = (
            "INSERT INTO canvases (job, canvas, channel, digest, amount, leaf_index, pruned) "
            "VALUES (?, ?, ?, ?, ?, ?, 1)"
        )
        values = (*key, channel, digest, amount_blob(receipt.amount), leaf)
        self.fold("canvases", sql, values)
        self.totals.canvases += 1
        self.totals.charged += receipt.amount

    def observed(self, r: ChannelObserved) -> None:
        number, _, settled = self._channel(r.channel)
        sql = (
            "UPDATE channels SET state = ?, deposit = ?, settled = ?, withdrawn = ?, "
            "requested = ?, requested_at = ?, requests = ?, observed_at = ? WHERE number = ?"
        )
        amounts = [amount_blob(v) for v in (r.deposit, r.settled, r.withdrawn, r.requested)]
        times = (r.requested_at, r.requests, r.at)
        self.put("channels", sql, (r.state.value, *amounts, *times, number))
        self.totals.settled += r.settled - settled

    def close(self, r: CloseAgreed) -> None:
        sql = "UPDATE channels SET close_signature = ? WHERE id = ?"
        self.put("channels", sql, (closing_blob(r.signature, r.fee), r.channel))

    # --- the worker's own

    def offer(self, r: OfferIssued) -> None:
        offer = r.signed.offer
        check_all(offer)
        values = (r.digest, offer.sequence, offer.expires_at, encode_offer(r.signed))
        self.put("offers", "INSERT INTO offers VALUES (?, ?, ?, ?)", values)

    def key_added(self, r: SealingKeyAdded) -> None:
        sql = (
            "INSERT INTO sealing_keys "
            "SELECT ?, ?, ?, coalesce(max(position), 0) + 1 FROM sealing_keys"
        )
        self.put("sealing_keys", sql, (r.public, r.wrapped, r.created_at))

    def key_dropped(self, r: SealingKeyDropped) -> None:
        if not self.drop("sealing_keys", "public = ?", (r.public,)):
            raise JournalConflict("the sealing key that should go is not there")

    def tx(self, r: StoredTx) -> None:
        tx = r.tx
        values = (
            tx.hash,
            r.kind.value,
            tx.raw,
            tx.nonce,
            b"".join(s.channel + amount_blob(s.amount) for s in r.subjects),
            amount_blob(r.worth.units),
            None if r.worth.wei is None else wei_blob(r.worth.wei),
            r.at,
            r.state.value,
            r.moved_at,
            r.gas_used,
            wei_blob(r.fee_wei),
        )
        sql = "INSERT INTO transactions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        self.put("transactions", sql, values)

    def tx_moved(self, r: TxMoved) -> None:
        sql = (
            "UPDATE transactions SET state = ?, moved_at = ?, gas_used = max(gas_used, ?), "
            "fee_wei = max(fee_wei, ?) WHERE hash = ?"
        )
        values = (r.state.value, r.at, r.gas_used, wei_blob(r.fee_wei), r.hash)
        self.put("transactions", sql, values)

    def contradiction(self, r: ContradictionSeen) -> None:
        query = "SELECT 1 FROM contradictions WHERE channel = ? AND kind = ?"
        if self._db.execute(query, (r.channel, r.kind)).get is None:
            sql = "INSERT INTO contradictions VALUES (?, ?, ?, ?, ?)"
            self.put("contradictions", sql, (r.channel, r.kind, r.first, r.second, r.at))

    def meta(self, r: MetaSet) -> None:
        sql = (
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        )
        self.put("meta", sql, (r.key, r.value))

    # --- what is there

    def _job(self, job: JobId) -> tuple[int, int, JobState]:
        query = "SELECT number, channel, state FROM jobs WHERE id = ?"
        row = self._db.execute(query, (job,)).fetchone()
        if row is None:
            raise JournalConflict("the job that should change is not there")
        return row[0], row[1], JobState(row[2])

    def _channel(self, channel: ChannelId) -> tuple[int, Amount, Amount]:
        """Return a channel's number, and what was accepted and settled so far."""
        query = "SELECT number, cumulative, settled FROM channels WHERE id = ?"
        row = self._db.execute(query, (channel,)).fetchone()
        if row is None:
            raise JournalConflict("the channel that should change is not there")
        return row[0], amount_of(row[1]), amount_of(row[2])


_WRITERS: Final[dict[type, Callable[[JournalBatch, Any], None]]] = {
    StoredJob: JournalBatch.job,
    StateRecord: JournalBatch.state,
    StoredCanvas: JournalBatch.canvas,
    ChannelSeen: JournalBatch.channel_seen,
    FundingAuthorized: JournalBatch.funding,
    VoucherApplied: JournalBatch.voucher,
    ChannelObserved: JournalBatch.observed,
    CloseAgreed: JournalBatch.close,
    OfferIssued: JournalBatch.offer,
    SealingKeyAdded: JournalBatch.key_added,
    SealingKeyDropped: JournalBatch.key_dropped,
    StoredTx: JournalBatch.tx,
    TxMoved: JournalBatch.tx_moved,
    ContradictionSeen: JournalBatch.contradiction,
    ReceiptsShown: JournalBatch.shown,
    MetaSet: JournalBatch.meta,
}
