"""The client's journal: channels, jobs, receipts and vouchers, each recorded before it has an
effect.

Every method is one transaction (see `journal.database`). The database is the only copy of the
payer's book: nothing is cached in memory, so any number of jobs and processes may pay over one
channel.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw

from piecework.client.errors import StoreError
from piecework.client.journal.database import Database
from piecework.client.journal.memory import WorkerMemory
from piecework.client.journal.records import (
    ChannelRow,
    ChannelStatus,
    JobRow,
    JobStatus,
    Payment,
    ReceiptRow,
)
from piecework_protocol import wire
from piecework_protocol.client_session import CanvasVerified
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import InvariantBroken, ProtocolViolation, invariant
from piecework_protocol.frames import Account, CanvasDelivered, LeafRef, SubmitJob
from piecework_protocol.ledger import PayerLedger
from piecework_protocol.limits import MAX_LEAVES_PER_VOUCHER
from piecework_protocol.merkle import Accumulator
from piecework_protocol.objects import Channel, Voucher
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    ChannelId,
    Digest,
    JobId,
    Seconds,
    Timestamp,
)

_CHANNEL = (
    "id, payer, authorizer, receiver, operator, token, withdrawal_delay, salt, deposit, "
    "funding_deadline,"
    " funded, cumulative, count, peaks, acknowledged, status"
)
_JOB = (
    "id, submission, offer, reply_secret, prompt_bytes, status, prompt_tokens, detail, created_at, "
    "owner"
)


class Store:
    """The journal of one client on one chain. `workers`: what is remembered of workers."""

    def __init__(self, file: Path, domain: Domain, payer: Address) -> None:
        self._database = Database(file)
        self._domain = domain
        self._database.bind(domain, payer)
        self.workers = WorkerMemory(self._database)

    def close(self) -> None:
        """Give the file back."""
        self._database.close()

    # --- channels

    def channel(self, channel: ChannelId) -> ChannelRow:
        """One channel; `StoreError` when there is none."""
        with self._database.read() as db:
            return _channel(db, channel)

    def channels(self) -> tuple[ChannelRow, ...]:
        """Every channel, oldest first."""
        with self._database.read() as db:
            return tuple(
                _channel(db, row[0]) for row in _rows(db, "SELECT id FROM channels ORDER BY rowid")
            )

    def open_channel(self, terms: Channel) -> ChannelRow:
        """The open channel with these terms, whatever its salt and with at least this delay, or a
        new one."""
        with self._database.change() as db:
            found = _rows(
                db,
                "SELECT id FROM channels WHERE operator = ? AND receiver = ? AND token = ? AND "
                "payer = ?"
                " AND authorizer = ? AND withdrawal_delay >= ? AND status = 'open' ORDER BY "
                "rowid LIMIT 1",
                (
                    terms.operator,
                    terms.receiver,
                    terms.token,
                    terms.payer,
                    terms.authorizer,
                    terms.withdrawal_delay,
                ),
            )
            if found:
                return _channel(db, found[0][0])
            key = terms.id(self._domain)
            db.execute(
                f"INSERT INTO channels ({_CHANNEL})"  # noqa: S608 - a constant list of columns
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, '0', 0, '0', '0', 0, x'', 0, 'open')",
                (
                    key,
                    terms.payer,
                    terms.authorizer,
                    terms.receiver,
                    terms.operator,
                    terms.token,
                    terms.withdrawal_delay,
                    terms.salt,
                ),
            )
            return _channel(db, key)

    def seen_on_chain(self, channel: ChannelId, funded: Amount, status: ChannelStatus) -> None:
        """Record what the chain says. Totals never go back; a closed channel never opens again."""
        with self._database.change() as db:
            row = _channel(db, channel)
            kept = ChannelStatus.CLOSED if row.status is ChannelStatus.CLOSED else status
            db.execute(
                "UPDATE channels SET funded = ?, deposit = ?, status = ? WHERE id = ?",
                (str(max(row.funded, funded)), str(max(row.deposit, funded)), kept.value, channel),
            )

    def set_status(self, channel: ChannelId, status: ChannelStatus) -> None:
        """Stop or end the use of a channel."""
        with self._database.change() as db:
            db.execute("UPDATE channels SET status = ? WHERE id = ?", (status.value, channel))

    def reconcile(self, channel: ChannelId, account: Account | None) -> PayerLedger:
        """Bring the book in line with the worker's record of it, whose signature was checked
        (clause 5.7).

        A record behind ours makes the next voucher name again what it lacks; one ahead of ours
        means that this file is an older copy, and is adopted.
        """
        with self._database.change() as db:
            book = _channel(db, channel).book
            count = account.voucher.count if account else 0
            if account and count > book.accumulator.count:
                book = book.adopt(account)
                _write_book(db, book)
                return book
            if account:
                _check_known(db, account)
            since = _leaves(db, channel, count)
            if count + len(since) != book.accumulator.count:
                raise ProtocolViolation(
                    "5.7", "the worker's record lies before one that it has confirmed"
                )
            book = book.rewind(count, since)
            _write_book(db, book)
            return book

    def acknowledge(self, channel: ChannelId, count: int) -> PayerLedger:
        """The worker confirmed its record of `count` paid receipts."""
        with self._database.change() as db:
            book = _channel(db, channel).book.acknowledge(count)
            _write_book(db, book)
            return book

    # --- jobs

    def admit(
        self,
        job: JobRow,
        prompt: str | None,
        grow: Callable[[Amount, Amount], Amount],
        funding_deadline: Timestamp,
    ) -> ChannelRow:
        """Record a signed job and reserve its ceiling in its channel, raising the deposit when it
        is short.

        `grow(needed, deposit)` gives the channel's new total, at least `needed`, or raises
        `InsufficientFunds`. Other live jobs keep what they have reserved.
        """
        channel = job.channel_id
        with self._database.change() as db:
            row = _channel(db, channel)
            reserved = _reserved(db, channel, job.created_at)
            # A channel exists once it holds something, so even a free job needs one base unit in
            # it.
            needed = Amount(max(1, row.book.cumulative + reserved + job.submission.job.max_amount))
            deposit = row.deposit
            if needed > deposit:
                deposit = grow(needed, deposit)
                invariant(deposit >= needed, "a raised deposit covers what is needed")
            # An authorization is signed anew before it has lost half of its life to a slow worker.
            stale = 2 * (row.funding_deadline - job.created_at) < funding_deadline - job.created_at
            if deposit > row.funded and (deposit > row.deposit or stale):
                db.execute(
                    "UPDATE channels SET deposit = ?, funding_deadline = ? WHERE id = ?",
                    (str(deposit), funding_deadline, channel),
                )
            db.execute(
                "INSERT INTO jobs (id, channel, submission, offer, reply_secret, prompt_bytes, "
                "max_amount,"
                " deadline, prompt_tokens, status, detail, created_at, owner, prompt)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, 'live', '', ?, ?, ?)",
                (
                    job.id,
                    channel,
                    wire.encode_client_frame(job.submission),
                    wire.encode_offer(job.offer),
                    job.reply_secret,
                    job.prompt_bytes,
                    str(job.submission.job.max_amount),
                    job.submission.job.deadline,
                    job.created_at,
                    job.owner,
                    prompt,
                ),
            )
            return _channel(db, channel)

    def pending_deposits(self, token: Address) -> Amount:
        """Base units that payer authorizations will still take from the pooled balance."""
        with self._database.read() as db:
            rows = _rows(
                db,
                "SELECT deposit, funded FROM channels WHERE token = ? AND status = 'open'",
                (token,),
            )
            return Amount(sum(max(0, int(deposit) - int(funded)) for deposit, funded in rows))

    def job(self, job: JobId) -> JobRow:
        """One job; `StoreError` when there is none."""
        with self._database.read() as db:
            rows = _rows(db, f"SELECT {_JOB} FROM jobs WHERE id = ?", (job,))  # noqa: S608
        if not rows:
            raise StoreError(f"no job 0x{job.hex()} in this client's journal")
        return _job(rows[0])

    def jobs(
        self, channel: ChannelId | None = None, status: JobStatus | None = None
    ) -> tuple[JobRow, ...]:
        """Jobs, oldest first; of one channel and with one status if given."""
        with self._database.read() as db:
            rows = _rows(
                db,
                f"SELECT {_JOB} FROM jobs WHERE (?1 IS NULL OR channel = ?1)"  # noqa: S608
                " AND (?2 IS NULL OR status = ?2) ORDER BY rowid",
                (channel, status.value if status else None),
            )
        return tuple(_job(row) for row in rows)

    def accepted(self, job: JobId, prompt_tokens: int) -> None:
        """The worker promised to run the job for this prompt length."""
        with self._database.change() as db:
            db.execute("UPDATE jobs SET prompt_tokens = ? WHERE id = ?", (prompt_tokens, job))

    def take_over(self, job: JobId, owner: int) -> None:
        """The process `owner` follows the job from now on."""
        with self._database.change() as db:
            db.execute("UPDATE jobs SET owner = ?, status = 'live' WHERE id = ?", (owner, job))

    def finish(self, job: JobId, status: JobStatus, detail: str = "") -> None:
        """The job is over; what it had reserved is free again."""
        with self._database.change() as db:
            db.execute(
                "UPDATE jobs SET status = ?, detail = ? WHERE id = ?", (status.value, detail, job)
            )

    # --- receipts

    def pay(self, event: CanvasVerified, channel: ChannelId, text: str | None) -> Payment:
        """Record a verified receipt and the voucher that pays for it, in one transaction.

        A receipt that was paid before changes nothing, so a job can be replayed from its first
        canvas; two different receipts for one canvas are the worker's fault and proof of it.
        """
        receipt = event.receipt
        with self._database.change() as db:
            row = _channel(db, channel)
            known = _rows(
                db,
                "SELECT digest, leaf_index FROM receipts WHERE job = ? AND canvas = ?",
                (receipt.job, receipt.canvas),
            )
            if known:
                if known[0][0] != event.digest:
                    raise ProtocolViolation("4.1", "two different receipts for one canvas")
                return Payment(row.book, known[0][1], voucher=None)
            if len(row.book.unacknowledged) >= MAX_LEAVES_PER_VOUCHER:
                raise ProtocolViolation("5.6", "the worker does not confirm what it is paid")
            ref = LeafRef(receipt.job, receipt.canvas)
            book = row.book.pay(ref, event.digest, receipt.amount, row.deposit)
            index = book.accumulator.count - 1
            frame = wire.encode_worker_frame(CanvasDelivered(receipt, event.signature, b""))
            db.execute(
                "INSERT INTO receipts (job, canvas, channel, frame, digest, amount, leaf_index, "
                "text)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    receipt.job,
                    receipt.canvas,
                    channel,
                    frame,
                    event.digest,
                    str(receipt.amount),
                    index,
                    text,
                ),
            )
            return Payment(book, index, _write_book(db, book))

    def receipts(
        self, *, channel: ChannelId | None = None, job: JobId | None = None
    ) -> tuple[ReceiptRow, ...]:
        """Paid receipts in the order in which they were paid."""
        with self._database.read() as db:
            rows = _rows(
                db,
                "SELECT channel, frame, digest, leaf_index, text FROM receipts"
                " WHERE (?1 IS NULL OR channel = ?1) AND (?2 IS NULL OR job = ?2)"
                " ORDER BY channel, leaf_index",
                (channel, job),
            )
        return tuple(_receipt(row) for row in rows)


def _rows(db: apsw.Connection, sql: str, bindings: tuple[Any, ...] = ()) -> list[Any]:
    """All rows of a query. STRICT tables hold the types that they declare."""
    return db.execute(sql, bindings).fetchall()


def _channel(db: apsw.Connection, channel: bytes) -> ChannelRow:
    rows = _rows(db, f"SELECT {_CHANNEL} FROM channels WHERE id = ?", (channel,))  # noqa: S608
    if not rows:
        raise StoreError(f"no channel 0x{channel.hex()} in this client's journal")
    row: Any = rows[0]
    terms = Channel(
        payer=Address(row[1]),
        authorizer=Address(row[2]),
        receiver=Address(row[3]),
        operator=Address(row[4]),
        token=Address(row[5]),
        withdrawal_delay=Seconds(row[6]),
        salt=Bytes32(row[7]),
    )
    peaks = tuple(Bytes32(row[13][i : i + 32]) for i in range(0, len(row[13]), 32))
    acknowledged = row[14]
    book = PayerLedger(
        ChannelId(row[0]),
        Amount(int(row[11])),
        Accumulator(row[12], peaks),
        acknowledged,
        _leaves(db, channel, acknowledged),
    )
    return ChannelRow(
        id=ChannelId(row[0]),
        channel=terms,
        deposit=Amount(int(row[8])),
        funding_deadline=Timestamp(row[9]),
        funded=Amount(int(row[10])),
        book=book,
        status=ChannelStatus(row[15]),
    )


def _leaves(db: apsw.Connection, channel: bytes, since: int) -> tuple[LeafRef, ...]:
    rows = _rows(
        db,
        "SELECT job, canvas FROM receipts WHERE channel = ? AND leaf_index >= ? ORDER BY "
        "leaf_index",
        (channel, since),
    )
    return tuple(LeafRef(JobId(job), canvas) for job, canvas in rows)


def _write_book(db: apsw.Connection, book: PayerLedger) -> Voucher:
    """Record the book and the voucher that states it."""
    voucher = book.voucher()
    db.execute(
        "UPDATE channels SET cumulative = ?, count = ?, peaks = ?, acknowledged = ? WHERE id = ?",
        (
            str(book.cumulative),
            book.accumulator.count,
            b"".join(book.accumulator.peaks),
            book.acknowledged,
            book.channel,
        ),
    )
    db.execute(
        "INSERT OR IGNORE INTO vouchers VALUES (?, ?, ?, ?)",
        (book.channel, voucher.count, str(voucher.cumulative), voucher.receipts_root),
    )
    return voucher


def _check_known(db: apsw.Connection, account: Account) -> None:
    """The worker shows a voucher of ours at or before our latest: it must be one that we
    recorded."""
    voucher = account.voucher
    rows = _rows(
        db,
        "SELECT cumulative, root FROM vouchers WHERE channel = ? AND count = ?",
        (voucher.channel, voucher.count),
    )
    if rows and (int(rows[0][0]), rows[0][1]) != (voucher.cumulative, voucher.receipts_root):
        raise StoreError(
            "the worker holds a voucher of ours that contradicts this journal: two copies of "
            "this client's "
            "home have been in use. Close the channel and stop using one of them"
        )


def _reserved(db: apsw.Connection, channel: bytes, now: Timestamp) -> int:
    """What live jobs may still cost: their ceilings less what they have been paid."""
    jobs = _rows(
        db,
        "SELECT id, max_amount FROM jobs WHERE channel = ? AND status = 'live' AND deadline > ?",
        (channel, now),
    )
    paid = _rows(
        db,
        "SELECT r.amount FROM receipts r JOIN jobs j ON j.id = r.job"
        " WHERE j.channel = ? AND j.status = 'live' AND j.deadline > ?",
        (channel, now),
    )
    reserved = sum(int(row[1]) for row in jobs) - sum(int(row[0]) for row in paid)
    invariant(reserved >= 0, "no job is paid more than its ceiling")
    return reserved


def _job(row: Any) -> JobRow:
    submission = wire.decode_client_frame(row[1])
    if not isinstance(submission, SubmitJob):
        raise InvariantBroken("the journal holds submissions")
    return JobRow(
        id=JobId(row[0]),
        submission=submission,
        offer=wire.decode_offer(row[2]),
        reply_secret=row[3],
        prompt_bytes=row[4],
        status=JobStatus(row[5]),
        prompt_tokens=row[6],
        detail=row[7],
        created_at=Timestamp(row[8]),
        owner=row[9],
    )


def _receipt(row: Any) -> ReceiptRow:
    frame = wire.decode_worker_frame(row[1])
    if not isinstance(frame, CanvasDelivered):
        raise InvariantBroken("the journal holds delivered canvases")
    return ReceiptRow(
        ChannelId(row[0]), frame.receipt, frame.signature, Digest(row[2]), row[3], row[4]
    )
