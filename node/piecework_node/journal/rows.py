"""Rows back to values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, cast

import apsw

from piecework.chain.sending.rawtx import SignedTransaction
from piecework_node.journal.records import (
    FINAL_TX_STATES,
    OPEN_TX_STATES,
    EndedJob,
    PaidJob,
    ReplayableJobs,
    SpentTx,
    StoredChannel,
    StoredJob,
    StoredTx,
    TxKind,
    TxState,
    TxSubject,
    Worth,
    one_step,
)
from piecework_node.journal.writes import amount_of
from piecework_protocol.errors import InvariantBroken, Reason
from piecework_protocol.frames import FundingAuthorization, LeafRef, PayVoucher, SubmitJob
from piecework_protocol.ledger import Unpaid, WorkerLedger
from piecework_protocol.merkle import Accumulator
from piecework_protocol.objects import Channel, Receipt
from piecework_protocol.states import ChannelState, JobState
from piecework_protocol.types import (
    DIGEST_BYTES,
    SIGNATURE_BYTES,
    Amount,
    Bytes32,
    ChannelId,
    Digest,
    JobId,
    Signature,
    Timestamp,
)
from piecework_protocol.wire import (
    decode_client_frame,
    decode_funding,
    decode_value,
    stored_entry,
    stored_units,
)
from piecework_protocol.worker_session import StoredCanvas

BY_ID: Final = "jobs.id = ?"
OPEN_JOBS: Final = (
    "pruned = 0 AND (state IN ('new', 'accepted', 'running', 'suspended', 'stopping') "
    "OR EXISTS (SELECT 1 FROM canvases WHERE job = number AND leaf_index IS NULL))"
)
OPEN_CHANNELS: Final = (
    "state <> 'closed' OR settled < cumulative "
    "OR EXISTS (SELECT 1 FROM canvases WHERE channel = number AND leaf_index IS NULL)"
)
_OPEN_TX_STATES, _FINAL_TX_STATES = (
    ", ".join(repr(s.value) for s in TxState if s in states)
    for states in (OPEN_TX_STATES, FINAL_TX_STATES)
)
_JOBS = (
    "SELECT number, id, frame, prompt_tokens, accepted_at, state, reason "
    "FROM jobs JOIN submissions ON submissions.job = number WHERE {} ORDER BY accepted_at, id"
)
_CANVASES = (
    "SELECT receipt, sealed_output, resume_secret, leaves FROM canvases "
    "JOIN outputs USING (job, canvas) LEFT JOIN traces USING (job, canvas) "
    "WHERE job = ? ORDER BY canvas"
)
_CANVAS_OF = (
    "SELECT jobs.id, canvas FROM canvases JOIN channels ON channels.number = canvases.channel "
    "JOIN jobs ON jobs.number = job WHERE channels.id = ? AND digest = ?"
)
_REPLAYABLE = (
    "SELECT offer, entry, count(*), max(deadline) FROM contents JOIN submissions USING (job) "
    "JOIN jobs ON jobs.number = job WHERE deadline >= ? GROUP BY offer, entry"
)
_TRACED = (
    "SELECT id, canvas FROM traces JOIN contents USING (job) JOIN submissions USING (job) "
    "JOIN jobs ON jobs.number = job "
    "WHERE offer = ? AND entry = ? AND deadline >= ? ORDER BY job, canvas"
)
_NAMED = "SELECT id FROM jobs WHERE id >= ? AND id <= ? ORDER BY id LIMIT 2"
_PAID_DIGESTS = (
    "SELECT digest FROM canvases JOIN channels ON channels.number = canvases.channel "
    "WHERE channels.id = ? AND leaf_index IS NOT NULL ORDER BY leaf_index"
)
_CHANNELS = (
    "SELECT number, id, terms, accepted, count, peaks, funding, state, deposit, settled, "
    "withdrawn, requested, requested_at, requests, observed_at, close_signature "
    "FROM channels WHERE {} ORDER BY number"
)
_OWED = (
    "SELECT jobs.id, canvas, digest, amount FROM canvases JOIN jobs ON job = number "
    "WHERE canvases.channel = ? AND leaf_index IS NULL ORDER BY jobs.id, canvas"
)
_TXS = (
    "SELECT kind, raw, subjects, value, value_wei, at, state, moved_at, gas_used, fee_wei "
    "FROM transactions WHERE {} ORDER BY nonce, at"
)
_GIVEN_UP = (
    f"state = {TxState.REPLACED.value!r} AND nonce > coalesce((SELECT max(nonce) "  # noqa: S608  ours
    f"FROM transactions WHERE state IN ({_FINAL_TX_STATES})), -1)"
)
_PAID_JOB = (
    "SELECT jobs.id, channels.id, accepted_at, amount, receipt, offer, frame FROM canvases "
    "JOIN jobs ON canvases.job = jobs.number JOIN channels ON jobs.channel = channels.number "
    "LEFT JOIN outputs ON outputs.job = jobs.number AND outputs.canvas = canvases.canvas "
    "LEFT JOIN submissions ON submissions.job = jobs.number WHERE leaf_index IS NOT NULL AND "
)
_PAID = (
    f"{_PAID_JOB} accepted_at >= ? AND accepted_at < ? ORDER BY accepted_at, jobs.number, "
    "canvases.canvas"
)
_PAID_PAGE = (
    f"{_PAID_JOB} jobs.number > ? AND jobs.number <= ? ORDER BY jobs.number, canvases.canvas"
)
_NEWEST_JOB = "SELECT coalesce(max(number), 0) FROM jobs"
_NEWEST_OLDER = "SELECT max(number) FROM jobs WHERE number > ? AND number <= ? AND accepted_at < ?"
# The newest numbers first, and no more of them than asked for: constant time in a long journal.
_RECENT = (
    "SELECT frame, (SELECT receipt FROM outputs WHERE outputs.job = number "
    "ORDER BY canvas DESC LIMIT 1) FROM (SELECT number FROM jobs ORDER BY number DESC LIMIT ?) "
    "JOIN submissions ON submissions.job = number ORDER BY number"
)
_FAILED = TxState.FAILED.value
_PAID_BY_FEE = (TxKind.FUND.value, TxKind.CLOSE.value)
"""What these bring is the fee that the client signed."""
_SPENT = (
    "SELECT hash, kind, moved_at, fee_wei, value, state FROM transactions "
    "WHERE state IN ('mined', 'final', 'failed') AND moved_at >= ? AND moved_at < ? "
    "ORDER BY moved_at, nonce"
)
_PEAK_BYTES = 32
_SUBJECT_BYTES = 48


def jobs(db: apsw.Connection, where: str, values: tuple[Any, ...]) -> tuple[StoredJob, ...]:
    """Return jobs that are not pruned, oldest first."""
    return tuple(_job(db, row) for row in db.execute(_JOBS.format(where), values).fetchall())


def _job(db: apsw.Connection, row: Sequence[Any]) -> StoredJob:
    number, id_, submission, prompt_tokens, at, state, reason = row
    frame = decode_client_frame(submission)
    if not isinstance(frame, SubmitJob):
        raise InvariantBroken("a job is stored with its submission")
    canvases: list[Any] = db.execute(_CANVASES, (number,)).fetchall()
    return StoredJob(
        id=JobId(id_),
        submission=frame,
        prompt_tokens=prompt_tokens,
        at=Timestamp(at),
        state=JobState(state),
        reason=Reason[reason] if reason else None,
        canvases=tuple(map(_canvas, canvases)),
    )


def _canvas(row: Sequence[Any]) -> StoredCanvas:
    receipt, sealed_output, resume_secret, leaves = row
    split = range(0, len(leaves or b""), DIGEST_BYTES)
    return StoredCanvas(
        decode_value(Receipt, receipt),
        sealed_output,
        resume_secret,
        tuple(Digest(leaves[start : start + DIGEST_BYTES]) for start in split),
    )


def canvas_of(db: apsw.Connection, channel: ChannelId, receipt: Digest) -> tuple[JobId, int] | None:
    """Return the job and the canvas of a receipt."""
    found: Any = db.execute(_CANVAS_OF, (channel, receipt)).fetchone()
    return None if found is None else (JobId(found[0]), found[1])


def replayable(db: apsw.Connection, deadline: Timestamp) -> tuple[ReplayableJobs, ...]:
    """Return the jobs whose content is kept and whose deadline is no earlier, by entry."""
    found: list[Any] = db.execute(_REPLAYABLE, (deadline,)).fetchall()
    return tuple(
        ReplayableJobs(Digest(offer), entry, jobs, Timestamp(latest))
        for offer, entry, jobs, latest in found
    )


def jobs_named(db: apsw.Connection, digits: str) -> tuple[JobId, ...]:
    """Return at most two of the jobs whose id begins with these hex digits."""
    least, most = (bytes.fromhex(digits.ljust(2 * DIGEST_BYTES, filler)) for filler in ("0", "f"))
    found: list[Any] = db.execute(_NAMED, (least, most)).fetchall()
    return tuple(JobId(row[0]) for row in found)


def paid(db: apsw.Connection, channel: ChannelId) -> tuple[Digest, ...]:
    """Return the digests of a channel's paid receipts, in the accumulator's order."""
    found: list[Any] = db.execute(_PAID_DIGESTS, (channel,)).fetchall()
    return tuple(Digest(row[0]) for row in found)


def traced(
    db: apsw.Connection, offer: Digest, entry: int, deadline: Timestamp
) -> tuple[tuple[JobId, int], ...]:
    """Return the canvases with leaves of an entry's jobs whose deadline is no earlier."""
    found: list[Any] = db.execute(_TRACED, (offer, entry, deadline)).fetchall()
    return tuple((JobId(job), canvas) for job, canvas in found)


def recent_jobs(db: apsw.Connection, most: int) -> tuple[EndedJob, ...]:
    """Return the newest jobs that have a receipt, oldest first. Pruned ones are left out."""
    found = []
    rows: list[Any] = db.execute(_RECENT, (most,)).fetchall()
    for frame, receipt in rows:
        submission = decode_client_frame(frame)
        if isinstance(submission, SubmitJob) and receipt is not None:
            found.append(EndedJob(submission.job.model, decode_value(Receipt, receipt)))
    return tuple(found)


def channels(db: apsw.Connection, where: str, values: tuple[Any, ...]) -> tuple[StoredChannel, ...]:
    """Return channels with their ledgers, in the order in which they were first seen."""
    found = db.execute(_CHANNELS.format(where), values).fetchall()
    return tuple(_channel(row, db.execute(_OWED, (row[0],)).fetchall()) for row in found)


def _channel(row: Sequence[Any], owed: Sequence[Sequence[Any]]) -> StoredChannel:
    _, id_, terms, accepted, count, peaks, funding, state, *rest = row
    deposit, settled, withdrawn, requested, requested_at, requests, observed_at, closing = rest
    payment = decode_client_frame(accepted) if accepted is not None else None
    if not (payment is None or isinstance(payment, PayVoucher)):
        raise InvariantBroken("a channel is stored with its latest voucher")
    channel_id, members = ChannelId(id_), decode_value(Channel, terms)
    parts = [peaks[i : i + _PEAK_BYTES] for i in range(0, len(peaks), _PEAK_BYTES)]
    ledger = WorkerLedger(
        channel=channel_id,
        accepted=payment,
        accumulator=Accumulator(count, tuple(Bytes32(p) for p in parts)),
        unpaid={
            LeafRef(JobId(job), canvas): Unpaid(Digest(digest), amount_of(amount))
            for job, canvas, digest, amount in owed
        },
    )
    return StoredChannel(
        id=channel_id,
        channel=members,
        ledger=ledger,
        funding=_authorization(funding, members),
        state=ChannelState(state),
        deposit=amount_of(deposit),
        settled=amount_of(settled),
        observed_at=Timestamp(observed_at),
        withdrawn=amount_of(withdrawn),
        requested=amount_of(requested),
        requested_at=requested_at,
        requests=requests,
        close_signature=Signature(closing[:SIGNATURE_BYTES]) if closing is not None else None,
        close_fee=amount_of(closing[SIGNATURE_BYTES:]) if closing else Amount(0),
    )


def open_transactions(db: apsw.Connection) -> tuple[StoredTx, ...]:
    """Return transactions whose outcome is not final, by nonce."""
    return _transactions(db, f"state IN ({_OPEN_TX_STATES})")


def given_up(db: apsw.Connection) -> tuple[StoredTx, ...]:
    """Return transactions in state REPLACED with a nonce above each final one, by nonce."""
    return _transactions(db, _GIVEN_UP)


def _transactions(db: apsw.Connection, which: str) -> tuple[StoredTx, ...]:
    return tuple(_transaction(row) for row in db.execute(_TXS.format(which)).fetchall())


def _transaction(row: Sequence[Any]) -> StoredTx:
    kind, raw, subjects, value, value_wei, at, state, moved_at, gas_used, fee_wei = row
    parts = [subjects[i : i + _SUBJECT_BYTES] for i in range(0, len(subjects), _SUBJECT_BYTES)]
    return StoredTx(
        kind=TxKind(kind),
        tx=SignedTransaction.from_raw(raw),
        subjects=tuple(TxSubject(ChannelId(p[:32]), amount_of(p[32:])) for p in parts),
        worth=Worth(
            amount_of(value), None if value_wei is None else int.from_bytes(value_wei, "big")
        ),
        at=Timestamp(at),
        state=TxState(state),
        moved_at=Timestamp(moved_at),
        gas_used=gas_used,
        fee_wei=int.from_bytes(fee_wei, "big"),
    )


def _authorization(data: bytes | None, channel: Channel) -> FundingAuthorization | None:
    if data is None:
        return None
    funding = decode_funding(data, channel)
    return funding if isinstance(funding, FundingAuthorization) else one_step(channel, funding)


def paid_jobs(db: apsw.Connection, since: int, until: int) -> tuple[PaidJob, ...]:
    """Return jobs that were accepted from `since` on and before `until`, with what was paid."""
    return _paid(db, _PAID, (since, until))


def newest_job(db: apsw.Connection) -> int:
    """Return the number of the newest job. 0: there is none."""
    return int(db.execute(_NEWEST_JOB).get)


def newest_older(db: apsw.Connection, above: int, number: int, since: int) -> int | None:
    """Return the newest job's number above one and up to another that is older than `since`."""
    found: int | None = db.execute(_NEWEST_OLDER, (above, number, since)).get
    return found


def paid_page(db: apsw.Connection, above: int, number: int) -> tuple[PaidJob, ...]:
    """Return what was paid of the jobs with a number above one and up to another."""
    return _paid(db, _PAID_PAGE, (above, number))


def _paid(db: apsw.Connection, sql: str, bounds: tuple[int, ...]) -> tuple[PaidJob, ...]:
    # Job by job, whose rows follow one another: each row holds a frame and a receipt.
    rows = cast(Iterator[tuple[Any, ...]], db.execute(sql, bounds))
    return tuple(_paid_job(list(canvases)) for _, canvases in groupby(rows, key=itemgetter(0)))


def _paid_job(rows: Sequence[tuple[Any, ...]]) -> PaidJob:
    job, channel, at, _, _, offer, frame = rows[0]
    receipts = [row[4] for row in rows]
    return PaidJob(
        JobId(job),
        ChannelId(channel),
        Timestamp(at),
        len(rows),
        Amount(sum(amount_of(row[3]) for row in rows)),
        Digest(offer) if offer is not None else None,
        stored_entry(frame) if frame is not None else None,
        None if None in receipts else sum(map(stored_units, receipts)),
    )


def spent(db: apsw.Connection, since: int, until: int) -> tuple[SpentTx, ...]:
    """Return transactions that were mined from `since` on and before `until`, with their cost."""
    rows: list[Any] = db.execute(_SPENT, (since, until)).fetchall()
    return tuple(
        SpentTx(
            hash_,
            TxKind(kind),
            Timestamp(at),
            int.from_bytes(fee, "big"),
            amount_of(value)
            if kind in _PAID_BY_FEE and state != TxState.FAILED.value
            else Amount(0),
        )
        for hash_, kind, at, fee, value, state in rows
    )
