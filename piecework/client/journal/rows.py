"""Rows of the client's database as values, and back. Every function works inside a transaction."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import apsw

from piecework.client.errors import StoreError
from piecework.client.journal.records import (
    ChannelRow,
    ChannelStatus,
    JobRow,
    JobStatus,
    JobTexts,
    ReceiptRow,
)
from piecework_protocol import wire
from piecework_protocol.errors import InvariantBroken, ProtocolViolation, invariant
from piecework_protocol.frames import Accepted, CanvasDelivered, LeafRef, SubmitJob
from piecework_protocol.ledger import PayerLedger
from piecework_protocol.merkle import Accumulator
from piecework_protocol.objects import Channel, Voucher
from piecework_protocol.outlines import Outline
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

KEPT_TERMS: Final = 256
"""Channels whose terms are kept as an object. A client has one for each worker that it uses."""
_CHANNEL: Final = (
    "SELECT id, payer, authorizer, receiver, operator, token, withdrawal_delay, salt,"
    " authorized, fee, funding_deadline, taken, funded, withdrawn,"
    " settled, cumulative, count, peaks, acknowledged, status, one_step FROM channels"
)
_JOB: Final = (
    "SELECT id, submission, offer, reply_secret, outline, status, prompt_tokens, detail,"
    " created_at, owner, acceptance FROM jobs"
)
_SAME_TERMS: Final = (
    " WHERE operator = ? AND receiver = ? AND token = ? AND payer = ? AND authorizer = ?"
    " AND withdrawal_delay >= ? AND status = 'open' ORDER BY rowid LIMIT 1"
)


def rows(db: apsw.Connection, sql: str, bindings: tuple[Any, ...] = ()) -> list[Any]:
    """Return all rows of a query. STRICT tables hold the types that they declare."""
    return db.execute(sql, bindings).fetchall()


# --- channels


def channel(db: apsw.Connection, key: bytes) -> ChannelRow:
    """Read one channel.

    Raises:
        StoreError: the journal does not know it.
    """
    found = rows(db, _CHANNEL + " WHERE id = ?", (key,))
    if not found:
        raise StoreError(f"no channel 0x{key.hex()} in this client's journal")
    return _channel(db, found[0])


def channels(db: apsw.Connection) -> tuple[ChannelRow, ...]:
    """Read every channel, oldest first."""
    return tuple(_channel(db, row) for row in rows(db, _CHANNEL + " ORDER BY rowid"))


def channel_like(db: apsw.Connection, terms: Channel) -> ChannelRow | None:
    """Read the open channel with these terms, whatever its salt, with at least this delay."""
    same = (terms.operator, terms.receiver, terms.token, terms.payer, terms.authorizer)
    found = rows(db, _CHANNEL + _SAME_TERMS, (*same, terms.withdrawal_delay))
    return _channel(db, found[0]) if found else None


def add_channel(db: apsw.Connection, key: bytes, terms: Channel, status: ChannelStatus) -> None:
    """Record a channel that is not known yet."""
    parties = (terms.payer, terms.authorizer, terms.receiver, terms.operator, terms.token)
    db.execute(
        "INSERT OR IGNORE INTO channels (id, payer, authorizer, receiver, operator, token,"
        " withdrawal_delay, salt, authorized, fee, funding_deadline, taken, funded, withdrawn,"
        " settled, cumulative, count, peaks, acknowledged, status)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, '0', '0', 0, '0', '0', '0', '0', '0', 0, x'', 0, ?)",
        (key, *parties, terms.withdrawal_delay, terms.salt, status.value),
    )


def _channel(db: apsw.Connection, row: Any) -> ChannelRow:
    key, *terms = row[:8]
    authorized, fee, deadline, taken, funded, withdrawn, settled = row[8:15]
    cumulative, count, packed, acknowledged, status, one_step = row[15:]
    peaks = tuple(Bytes32(packed[i : i + 32]) for i in range(0, len(packed), 32))
    book = PayerLedger(
        ChannelId(key),
        Amount(int(cumulative)),
        Accumulator(count, peaks),
        acknowledged,
        leaves(db, key, acknowledged),
    )
    return ChannelRow(
        id=ChannelId(key),
        channel=_terms(*terms),
        authorized=Amount(int(authorized)),
        fee=Amount(int(fee)),
        funding_deadline=Timestamp(deadline),
        taken=Amount(int(taken)),
        funded=Amount(int(funded)),
        withdrawn=Amount(int(withdrawn)),
        settled=Amount(int(settled)),
        book=book,
        status=ChannelStatus(status),
        one_step=bool(one_step),
    )


@lru_cache(maxsize=KEPT_TERMS)
def _terms(  # noqa: PLR0917  the columns in their order
    payer: bytes,
    authorizer: bytes,
    receiver: bytes,
    operator: bytes,
    token: bytes,
    withdrawal_delay: int,
    salt: bytes,
) -> Channel:
    """Make the terms of a channel. They never change, and every job reads those of its channel."""
    return Channel(
        payer=Address(payer),
        authorizer=Address(authorizer),
        receiver=Address(receiver),
        operator=Address(operator),
        token=Address(token),
        withdrawal_delay=Seconds(withdrawal_delay),
        salt=Bytes32(salt),
    )


# --- the book


def leaves(db: apsw.Connection, key: bytes, since: int) -> tuple[LeafRef, ...]:
    """Name the channel's paid receipts from a leaf on."""
    found = rows(
        db,
        "SELECT job, canvas FROM receipts WHERE channel = ? AND leaf_index >= ?"
        " ORDER BY leaf_index",
        (key, since),
    )
    return tuple(LeafRef(JobId(job), canvas) for job, canvas in found)


def write_book(db: apsw.Connection, book: PayerLedger) -> None:
    """Record a book. One that promises more than before also needs `write_voucher`."""
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


def acknowledge(db: apsw.Connection, key: ChannelId, count: int) -> None:
    """Record that a worker confirms `count` paid receipts, as `PayerLedger.acknowledge` does.

    Nothing else of the book is read or written.

    Raises:
        ProtocolViolation: the worker confirms more than was paid.
        StoreError: the journal does not know the channel.
    """
    found = rows(db, "SELECT count, acknowledged FROM channels WHERE id = ?", (key,))
    if not found:
        raise StoreError(f"no channel 0x{key.hex()} in this client's journal")
    paid, known = found[0]
    if count > paid:
        raise ProtocolViolation("5.6", "the worker acknowledges receipts that were never paid")
    if count > known:
        db.execute("UPDATE channels SET acknowledged = ? WHERE id = ?", (count, key))


def write_voucher(db: apsw.Connection, book: PayerLedger) -> Voucher:
    """Record the voucher that states a book, and return it."""
    voucher = book.voucher()
    db.execute(
        "INSERT OR IGNORE INTO vouchers VALUES (?, ?, ?, ?)",
        (book.channel, voucher.count, str(voucher.cumulative), voucher.receipts_root),
    )
    return voucher


def check_known(db: apsw.Connection, voucher: Voucher) -> None:
    """Compare a voucher of ours that the worker shows with the one recorded for its count.

    Raises:
        StoreError: they contradict each other.
    """
    found = rows(
        db,
        "SELECT cumulative, root FROM vouchers WHERE channel = ? AND count = ?",
        (voucher.channel, voucher.count),
    )
    if found and (int(found[0][0]), found[0][1]) != (voucher.cumulative, voucher.receipts_root):
        raise StoreError(
            "the worker holds a voucher of ours that contradicts this journal: two copies of this "
            "client's home have been in use. Close the channel and stop using one of them"
        )


# --- jobs


def job(db: apsw.Connection, key: bytes) -> JobRow:
    """Read one job.

    Raises:
        StoreError: the journal does not know it.
    """
    found = rows(db, _JOB + " WHERE id = ?", (key,))
    if not found:
        raise StoreError(f"no job 0x{key.hex()} in this client's journal")
    return _job(found[0])


def party(db: apsw.Connection, key: JobId) -> tuple[ChannelId, Address, Timestamp]:
    """Give a job's channel, its worker and when it was made, without parsing the job.

    Raises:
        StoreError: the journal does not know it.
    """
    found = rows(
        db,
        "SELECT j.channel, c.operator, j.created_at FROM jobs j JOIN channels c ON c.id = j.channel"
        " WHERE j.id = ?",
        (key,),
    )
    if not found:
        raise StoreError(f"no job 0x{key.hex()} in this client's journal")
    channel, operator, created_at = found[0]
    return ChannelId(channel), Address(operator), Timestamp(created_at)


def acceptance_of(db: apsw.Connection, key: JobId) -> tuple[ChannelId, int | None]:
    """Give a job's channel and its prompt tokens, without parsing the job.

    None: no worker has accepted it.

    Raises:
        StoreError: the journal does not know it.
    """
    found = rows(db, "SELECT channel, prompt_tokens FROM jobs WHERE id = ?", (key,))
    if not found:
        raise StoreError(f"no job 0x{key.hex()} in this client's journal")
    channel, tokens = found[0]
    return ChannelId(channel), tokens


def is_live(db: apsw.Connection, key: JobId) -> bool:
    """Say whether a job is known and not over."""
    return bool(rows(db, "SELECT 1 FROM jobs WHERE id = ? AND status = 'live'", (key,)))


def jobs(
    db: apsw.Connection, key: ChannelId | None, status: JobStatus | None
) -> tuple[JobRow, ...]:
    """Read jobs, oldest first. Of one channel and with one status if given."""
    found = rows(
        db,
        _JOB + " WHERE (?1 IS NULL OR channel = ?1) AND (?2 IS NULL OR status = ?2) ORDER BY rowid",
        (key, status.value if status else None),
    )
    return tuple(_job(row) for row in found)


def reserved_by_jobs(db: apsw.Connection, key: ChannelId, now: Timestamp) -> int:
    """Add up what live jobs may still cost: their ceilings less what they have been paid."""
    ceilings = rows(
        db,
        "SELECT max_amount FROM jobs WHERE channel = ? AND status = 'live' AND deadline > ?",
        (key, now),
    )
    paid = rows(
        db,
        "SELECT r.amount FROM receipts r JOIN jobs j ON j.id = r.job"
        " WHERE j.channel = ? AND j.status = 'live' AND j.deadline > ?",
        (key, now),
    )
    reserved = sum(int(row[0]) for row in ceilings) - sum(int(row[0]) for row in paid)
    invariant(reserved >= 0, "no job is paid more than its ceiling")
    return reserved


def add_job(
    db: apsw.Connection,
    row: JobRow,
    prompt: str | None,
    content: bytes | None,
    *,
    day: int,
    budget: str,
) -> None:
    """Record a signed job, and the day and the budget that it counts in."""
    terms = row.submission.job
    db.execute(
        "INSERT INTO jobs (id, channel, submission, offer, reply_secret, outline, max_amount,"
        " deadline, prompt_tokens, status, detail, created_at, owner, prompt, day, budget, content)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, 'live', '', ?, ?, ?, ?, ?, ?)",
        (
            row.id,
            row.channel_id,
            wire.encode_client_frame(row.submission),
            wire.encode_offer(row.offer),
            row.reply_secret,
            row.outline.encode(),
            str(terms.max_amount),
            terms.deadline,
            row.created_at,
            row.owner,
            prompt,
            day,
            budget,
            content,
        ),
    )


def _job(row: Any) -> JobRow:
    submission = wire.decode_client_frame(row[1])
    if not isinstance(submission, SubmitJob):
        raise InvariantBroken("the journal holds submissions")
    return JobRow(
        id=JobId(row[0]),
        submission=submission,
        offer=wire.decode_offer(row[2]),
        reply_secret=row[3],
        outline=Outline.decode(row[4]),
        status=JobStatus(row[5]),
        prompt_tokens=row[6],
        detail=row[7],
        created_at=Timestamp(row[8]),
        owner=row[9],
        acceptance=_acceptance(row[10]),
    )


def _acceptance(data: bytes | None) -> Accepted | None:
    frame = None if data is None else wire.decode_worker_frame(data)
    if not (frame is None or isinstance(frame, Accepted)):
        raise InvariantBroken("a job is stored with its acceptance")
    return frame


# --- receipts


def receipts(
    db: apsw.Connection, key: ChannelId | None, of_job: JobId | None
) -> tuple[ReceiptRow, ...]:
    """Read paid receipts in the order in which they were paid."""
    found = rows(
        db,
        "SELECT channel, frame, digest, leaf_index, text FROM receipts"
        " WHERE (?1 IS NULL OR channel = ?1) AND (?2 IS NULL OR job = ?2)"
        " ORDER BY channel, leaf_index",
        (key, of_job),
    )
    return tuple(_receipt(row) for row in found)


def _receipt(row: Any) -> ReceiptRow:
    frame = wire.decode_worker_frame(row[1])
    if not isinstance(frame, CanvasDelivered):
        raise InvariantBroken("the journal holds delivered canvases")
    return ReceiptRow(
        channel=ChannelId(row[0]),
        receipt=frame.receipt,
        signature=frame.signature,
        digest=Digest(row[2]),
        leaf_index=row[3],
        text=row[4],
        leaves=frame.leaves,
    )


def texts(db: apsw.Connection, key: JobId) -> JobTexts:
    """Read the exact texts of a job, as far as they are kept."""
    content = rows(db, "SELECT content FROM jobs WHERE id = ?", (key,))
    outputs = rows(
        db,
        "SELECT canvas, output FROM receipts WHERE job = ? AND output IS NOT NULL ORDER BY canvas",
        (key,),
    )
    return JobTexts(content[0][0] if content else None, dict(outputs))
