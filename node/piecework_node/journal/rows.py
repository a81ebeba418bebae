"""Records to SQL and rows back to values. Pure apart from `earnings`, which sums over tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import apsw

from piecework.chain.rawtx import SignedTransaction
from piecework_node.journal.records import (
    OPEN_TX_STATES,
    ChannelObserved,
    ChannelSeen,
    CloseAgreed,
    Earnings,
    FundingAuthorized,
    JournalRecord,
    MetaSet,
    OfferIssued,
    SealingKeyAdded,
    SealingKeyDropped,
    StoredChannel,
    StoredJob,
    StoredTx,
    TxKind,
    TxMoved,
    TxState,
    TxSubject,
    VoucherApplied,
    Worth,
)
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import InvariantBroken, Reason
from piecework_protocol.frames import Funding, LeafRef, PayVoucher, SubmitJob
from piecework_protocol.ledger import Unpaid, WorkerLedger
from piecework_protocol.merkle import Accumulator
from piecework_protocol.objects import Channel, Finish, FundChannel, Receipt
from piecework_protocol.states import ChannelState, JobState
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    ChannelId,
    Digest,
    JobId,
    Seconds,
    Signature,
    Timestamp,
    Uint32,
)
from piecework_protocol.wire import decode_client_frame, encode_client_frame, encode_offer
from piecework_protocol.worker_session import StateRecord, StoredCanvas

JOB_COLUMNS = "id, submission, prompt_tokens, credit_window, at, state, reason"
CANVAS_COLUMNS = (
    "job, canvas, output_digest, trace_root, steps, units, amount, finish, previous, "
    "sealed_output, "
    "resume_secret"
)
CHANNEL_COLUMNS = (
    "id, payer, authorizer, receiver, operator, token, withdrawal_delay, salt, accepted, count, "
    "peaks, "
    "funding_deposit, funding_deadline, funding_signature, state, deposit, settled, observed_at, "
    "close_signature"
)
TX_COLUMNS = "kind, raw, subjects, value, value_wei, at, state, moved_at, gas_used"
_LIVE = "state IN ('new', 'accepted', 'running', 'suspended')"
_UNPAID = "id IN (SELECT job FROM canvases WHERE leaf_index IS NULL)"
OPEN_JOBS = f"WHERE {_LIVE} OR {_UNPAID} ORDER BY at, id"
OPEN_TXS = (
    f"WHERE state IN ({', '.join(repr(s.value) for s in TxState if s in OPEN_TX_STATES)}) "
    "ORDER BY nonce, at"
)
_PEAK_BYTES = 32
_SUBJECT_BYTES = 48


@dataclass(frozen=True, slots=True)
class Write:
    """One statement, and the rows (table, key) that it changes, for the log."""

    sql: str
    values: tuple[Any, ...]
    touched: tuple[tuple[str, tuple[Any, ...]], ...]
    expect_change: bool = True


def amount_blob(value: int) -> bytes:
    """A uint128 as it is stored."""
    return value.to_bytes(16, "big")


def amount_of(blob: bytes) -> Amount:
    """A stored uint128."""
    return Amount(int.from_bytes(blob, "big"))


# --- records to statements


def writes(record: JournalRecord, domain: Domain) -> list[Write]:
    """The statements that make one record durable."""
    if isinstance(record, StoredCanvas):
        return [_canvas(record, domain)]
    return _WRITERS[type(record)](record)


def _job(r: StoredJob) -> list[Write]:
    job = r.submission.job
    bare = replace(r.submission, sealed_prompt=b"", funding=None)
    values = (
        r.id,
        job.channel,
        job.salt,
        encode_client_frame(bare),
        r.prompt_tokens,
        r.credit_window,
        r.at,
        r.state.value,
    )
    sql = (
        "INSERT INTO jobs (id, channel, salt, submission, prompt_tokens, credit_window, at, state) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
    )
    return [Write(sql, values, (("jobs", (r.id,)),))]


def _state(r: StateRecord) -> list[Write]:
    sql = "UPDATE jobs SET state = ?, reason = coalesce(?, reason) WHERE id = ?"
    reason = r.reason.name if r.reason else None
    return [Write(sql, (r.state.value, reason, r.job), (("jobs", (r.job,)),))]


def _canvas(r: StoredCanvas, domain: Domain) -> Write:
    receipt = r.receipt
    values = (
        receipt.job,
        receipt.canvas,
        receipt.job,
        domain.digest(receipt),
        receipt.output_digest,
        receipt.trace_root,
        receipt.steps,
        receipt.units,
        amount_blob(receipt.amount),
        int(receipt.finish),
        receipt.previous,
        r.sealed_output,
        r.resume_secret,
    )
    sql = (
        "INSERT INTO canvases (job, canvas, channel, digest, output_digest, trace_root, steps, "
        "units, "
        "amount, finish, previous, sealed_output, resume_secret) "
        "VALUES (?, ?, (SELECT channel FROM jobs WHERE id = ?), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    )
    return Write(sql, values, (("canvases", (receipt.job, receipt.canvas)),))


def _channel_seen(r: ChannelSeen) -> list[Write]:
    c = r.channel
    zero = amount_blob(0)
    values = (
        r.id,
        c.payer,
        c.authorizer,
        c.receiver,
        c.operator,
        c.token,
        c.withdrawal_delay,
        c.salt,
    )
    sql = (
        "INSERT INTO channels (id, payer, authorizer, receiver, operator, token, "
        "withdrawal_delay, salt, "
        "cumulative, count, peaks, state, deposit, settled, observed_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, x'', ?, ?, ?, 0) ON CONFLICT (id) DO NOTHING"
    )
    extra = (zero, ChannelState.NONE.value, zero, zero)
    return [Write(sql, values + extra, (("channels", (r.id,)),), expect_change=False)]


def _funding(r: FundingAuthorized) -> list[Write]:
    sql = (
        "UPDATE channels SET funding_deposit = ?, funding_deadline = ?, funding_signature = ? "
        "WHERE id = ? "
        "AND (funding_deposit IS NULL OR funding_deposit <= ?)"
    )
    authorization = r.funding.authorization
    deposit = amount_blob(authorization.deposit)
    values = (deposit, authorization.deadline, r.funding.signature, r.channel, deposit)
    return [Write(sql, values, (("channels", (r.channel,)),), expect_change=False)]


def _voucher(r: VoucherApplied) -> list[Write]:
    ledger = r.ledger
    payment = ledger.accepted
    if payment is None:
        raise InvariantBroken("a voucher is journaled with its book")
    sql = (
        "UPDATE channels SET accepted = ?, cumulative = ?, count = ?, peaks = ? "
        "WHERE id = ? AND count = ?"
    )
    values = (
        encode_client_frame(payment),
        amount_blob(ledger.cumulative),
        ledger.accumulator.count,
        b"".join(ledger.accumulator.peaks),
        ledger.channel,
        r.base,
    )
    result = [Write(sql, values, (("channels", (ledger.channel,)),))]
    mark = "UPDATE canvases SET leaf_index = ? WHERE job = ? AND canvas = ? AND leaf_index IS NULL"
    for offset, ref in enumerate(r.paid):
        key = (ref.job, ref.canvas)
        result.append(Write(mark, (r.base + offset, *key), (("canvases", key),)))
    return result


def _observed(r: ChannelObserved) -> list[Write]:
    sql = "UPDATE channels SET state = ?, deposit = ?, settled = ?, observed_at = ? WHERE id = ?"
    values = (r.state.value, amount_blob(r.deposit), amount_blob(r.settled), r.at, r.channel)
    return [Write(sql, values, (("channels", (r.channel,)),))]


def _close(r: CloseAgreed) -> list[Write]:
    sql = "UPDATE channels SET close_signature = ? WHERE id = ?"
    return [Write(sql, (r.signature, r.channel), (("channels", (r.channel,)),))]


def _offer(r: OfferIssued) -> list[Write]:
    offer = r.signed.offer
    values = (r.digest, offer.sequence, offer.expires_at, encode_offer(r.signed))
    return [Write("INSERT INTO offers VALUES (?, ?, ?, ?)", values, (("offers", (r.digest,)),))]


def _key_added(r: SealingKeyAdded) -> list[Write]:
    sql = (
        "INSERT INTO sealing_keys SELECT ?, ?, ?, coalesce(max(position), 0) + 1 FROM sealing_keys"
    )
    values = (r.public, r.wrapped, r.created_at)
    return [Write(sql, values, (("sealing_keys", (r.public,)),))]


def _key_dropped(r: SealingKeyDropped) -> list[Write]:
    return [
        Write(
            "DELETE FROM sealing_keys WHERE public = ?",
            (r.public,),
            (("sealing_keys", (r.public,)),),
        )
    ]


def _tx(r: StoredTx) -> list[Write]:
    tx = r.tx
    subjects = b"".join(s.channel + amount_blob(s.amount) for s in r.subjects)
    values = (
        tx.hash,
        r.kind.value,
        tx.raw,
        tx.nonce,
        str(tx.max_fee),
        str(tx.priority_fee),
        tx.gas_limit,
        amount_blob(r.worth.units),
        None if r.worth.wei is None else str(r.worth.wei),
        subjects,
        r.at,
        r.state.value,
        r.moved_at,
        r.gas_used,
    )
    sql = "INSERT INTO transactions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    return [Write(sql, values, (("transactions", (tx.hash,)),))]


def _tx_moved(r: TxMoved) -> list[Write]:
    sql = (
        "UPDATE transactions SET state = ?, moved_at = ?, gas_used = max(gas_used, ?) "
        "WHERE hash = ?"
    )
    return [Write(sql, (r.state.value, r.at, r.gas_used, r.hash), (("transactions", (r.hash,)),))]


def _meta(r: MetaSet) -> list[Write]:
    sql = "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
    return [Write(sql, (r.key, r.value), (("meta", (r.key,)),))]


_WRITERS: dict[type, Callable[[Any], list[Write]]] = {
    StoredJob: _job,
    StateRecord: _state,
    ChannelSeen: _channel_seen,
    FundingAuthorized: _funding,
    VoucherApplied: _voucher,
    ChannelObserved: _observed,
    CloseAgreed: _close,
    OfferIssued: _offer,
    SealingKeyAdded: _key_added,
    SealingKeyDropped: _key_dropped,
    StoredTx: _tx,
    TxMoved: _tx_moved,
    MetaSet: _meta,
}


# --- rows to values


def job(row: Sequence[Any], canvases: Sequence[Sequence[Any]]) -> StoredJob:
    """A job from its row and the rows of its canvases."""
    id_, submission, prompt_tokens, credit_window, at, state, reason = row
    frame = decode_client_frame(submission)
    if not isinstance(frame, SubmitJob):
        raise InvariantBroken("a job is stored with its submission")
    return StoredJob(
        id=JobId(id_),
        submission=frame,
        prompt_tokens=prompt_tokens,
        credit_window=credit_window,
        at=Timestamp(at),
        state=JobState(state),
        reason=Reason[reason] if reason else None,
        canvases=tuple(_stored_canvas(c) for c in canvases),
    )


def _stored_canvas(row: Sequence[Any]) -> StoredCanvas:
    job_, canvas, output_digest, trace_root, steps, units, amount, finish, previous, *sealed = row
    receipt = Receipt(
        job=JobId(job_),
        canvas=Uint32(canvas),
        output_digest=Digest(output_digest),
        trace_root=Digest(trace_root),
        steps=Uint32(steps),
        units=Uint32(units),
        amount=amount_of(amount),
        finish=Finish(finish),
        previous=Digest(previous),
    )
    return StoredCanvas(receipt, *sealed)


def channel(row: Sequence[Any], unpaid: Sequence[Sequence[Any]]) -> StoredChannel:
    """A channel from its row and the rows of its canvases that are not paid for."""
    members = Channel(
        payer=Address(row[1]),
        authorizer=Address(row[2]),
        receiver=Address(row[3]),
        operator=Address(row[4]),
        token=Address(row[5]),
        withdrawal_delay=Seconds(row[6]),
        salt=Bytes32(row[7]),
    )
    accepted, count, peaks = row[8:11]
    payment = decode_client_frame(accepted) if accepted is not None else None
    if payment is not None and not isinstance(payment, PayVoucher):
        raise InvariantBroken("a channel is stored with its voucher")
    roots = tuple(Bytes32(peaks[i : i + _PEAK_BYTES]) for i in range(0, len(peaks), _PEAK_BYTES))
    owed = {LeafRef(JobId(u[0]), u[1]): Unpaid(Digest(u[2]), amount_of(u[3])) for u in unpaid}
    ledger = WorkerLedger(ChannelId(row[0]), payment, Accumulator(count, roots), owed)
    funding = None
    if row[11] is not None:
        authorization = FundChannel(members, amount_of(row[11]), Timestamp(row[12]))
        funding = Funding(authorization, Signature(row[13]))
    return StoredChannel(
        id=ChannelId(row[0]),
        channel=members,
        ledger=ledger,
        funding=funding,
        state=ChannelState(row[14]),
        deposit=amount_of(row[15]),
        settled=amount_of(row[16]),
        observed_at=Timestamp(row[17]),
        close_signature=Signature(row[18]) if row[18] is not None else None,
    )


def transaction(row: Sequence[Any]) -> StoredTx:
    """A transaction from its row. The row's other columns repeat what `raw` says."""
    kind, raw, subjects, value, value_wei, at, state, moved_at, gas_used = row
    parts = [subjects[i : i + _SUBJECT_BYTES] for i in range(0, len(subjects), _SUBJECT_BYTES)]
    return StoredTx(
        kind=TxKind(kind),
        tx=SignedTransaction.from_raw(raw),
        subjects=tuple(TxSubject(ChannelId(p[:32]), amount_of(p[32:])) for p in parts),
        worth=Worth(amount_of(value), None if value_wei is None else int(value_wei)),
        at=Timestamp(at),
        state=TxState(state),
        moved_at=Timestamp(moved_at),
        gas_used=gas_used,
    )


def earnings(db: apsw.Connection) -> Earnings:
    """Sums over the tables. In Python, because SQLite has no 128-bit integers."""
    charged = unpaid = accepted = settled = canvases = 0
    for amount, leaf in db.execute("SELECT amount, leaf_index FROM canvases"):
        charged, canvases = charged + amount_of(amount), canvases + 1
        unpaid += amount_of(amount) if leaf is None else 0
    for cumulative, paid in db.execute("SELECT cumulative, settled FROM channels"):
        accepted, settled = accepted + amount_of(cumulative), settled + amount_of(paid)
    by_state = db.execute(
        "SELECT state, count(*) FROM jobs GROUP BY state ORDER BY state"
    ).fetchall()
    jobs: dict[str, int] = {row[0]: row[1] for row in cast("list[tuple[str, int]]", by_state)}
    return Earnings(
        Amount(charged), Amount(accepted), Amount(settled), Amount(unpaid), canvases, jobs
    )
