"""The client's journal: what it promises about money, across processes and restarts."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from piecework.client.errors import InsufficientFunds, JobFollowed, StoreError
from piecework.client.journal.contradictions import MAX_KEPT_PER_JOB, KeptFrame
from piecework.client.journal.database import Database
from piecework.client.journal.learning import learn
from piecework.client.journal.memory import Lesson
from piecework.client.journal.owners import NOBODY
from piecework.client.journal.records import (
    ChannelStatus,
    Experience,
    JobRow,
    JobStatus,
    ReservedFor,
    SeenChannel,
)
from piecework.client.journal.store import Store
from piecework.client.limits import BUSY_TIMEOUT_MS, FUNDING_GRACE_S
from piecework_protocol.client_session import CanvasVerified
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import ProtocolViolation
from piecework_protocol.frames import (
    Accepted,
    Account,
    CanvasDelivered,
    JobEnded,
    LeafRef,
    SubmitJob,
)
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.ledger import PayerLedger
from piecework_protocol.objects import Acceptance, Channel, Finish, Receipt
from piecework_protocol.signing import sign
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    Digest,
    JobId,
    Seconds,
    Signature,
    Timestamp,
    Uint32,
    keccak256,
)
from tests.support.chain.fake_chain import DOMAIN, TOKEN, TOKEN_INFO
from tests.support.client.client_side import PAYER
from tests.support.market.offers import offer, operator, receiver
from tests.support.protocol import pair
from tests.support.protocol.traces import made_up_leaves
from tests.support.system.dying_database import DyingVfs

NOW = Timestamp(1_800_000_000)
UNTIL = Timestamp(NOW + 3600)


def terms(salt: int = 0, delay: int = 3600) -> Channel:
    return Channel(
        payer=PAYER.address,
        authorizer=PAYER.address,
        receiver=receiver("worker"),
        operator=operator("worker").address,
        token=TOKEN,
        withdrawal_delay=Seconds(delay),
        salt=Bytes32(salt.to_bytes(32, "big")),
    )


def job_row(seed: int, ceiling: int, *, now: int = NOW, owner: str = NOBODY) -> JobRow:
    channel = terms()
    job = pair.job(seed, 32, ceiling=ceiling).replace(
        channel=channel.id(DOMAIN), deadline=Timestamp(now + 600)
    )
    submission = SubmitJob(job, sign(DOMAIN, job, PAYER), channel, b"sealed" * 20)
    return JobRow(
        id=job.id(DOMAIN),
        submission=submission,
        offer=offer(),
        reply_secret=bytes(32),
        outline=pair.OUTLINE,
        status=JobStatus.LIVE,
        prompt_tokens=None,
        detail="",
        created_at=Timestamp(now),
        owner=owner,
    )


def accepted(job: JobRow, account: Account | None = None, *, prompt_tokens: int = 7) -> Accepted:
    promise = Acceptance(job.id, Uint32(prompt_tokens), NOW)
    signature = sign(DOMAIN, promise, operator("worker"))
    return Accepted(job.id, prompt_tokens, NOW, signature, 0, account)


def canvas(job: JobRow, index: int, amount: int, *, trace: bytes = b"trace") -> CanvasVerified:
    receipt = Receipt(
        job=job.id,
        canvas=Uint32(index),
        output_digest=Digest(keccak256(b"output")),
        trace_root=Digest(keccak256(trace)),
        steps=Uint32(1),
        units=Uint32(1),
        amount=Amount(amount),
        finish=Finish.MORE,
        total_prompt_tokens=Uint32(5),
        total_units=Uint32(1),
        total_steps=Uint32(1),
        total_amount=Amount(amount),
        previous=Digest(job.id),
    )
    signature = sign(DOMAIN, receipt, operator("worker"))
    return CanvasVerified(
        receipt,
        Digest(DOMAIN.digest(receipt)),
        signature,
        TextOutput.plain((1,), "x"),
        made_up_leaves(trace, 1),
    )


def seen(funded: int) -> SeenChannel:
    return SeenChannel(Amount(funded), Amount(0), Amount(0))


def exactly(needed: Amount, deposit: Amount) -> Amount:
    return needed


def nothing(needed: Amount, deposit: Amount) -> Amount:
    raise AssertionError("the deposit should have been enough")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "client.db"


@pytest.fixture
def store(file: Path) -> Store:
    store = Store(file, DOMAIN, PAYER.address)
    store.open_channel(terms())
    return store


CHANNEL = terms().id(DOMAIN)
SHOWN = (PayerLedger(CHANNEL).voucher(), Signature(bytes(65)), ())
"""An account without receipts."""


def test_a_payment_survives_a_restart_with_the_same_voucher(store: Store, file: Path) -> None:
    job = job_row(1, 100)
    store.admit(job, None, exactly, UNTIL)
    book = store.pay(canvas(job, 0, 30), CHANNEL, None).book
    store.close()
    again = Store(file, DOMAIN, PAYER.address)
    assert again.channel(CHANNEL).book == book
    assert again.job(job.id) == job
    assert again.receipts(job=job.id)[0].receipt.amount == 30


def test_a_receipt_is_paid_once_however_often_it_comes(store: Store) -> None:
    job = job_row(1, 100)
    store.admit(job, None, exactly, UNTIL)
    first = store.pay(canvas(job, 0, 30), CHANNEL, None)
    second = store.pay(canvas(job, 0, 30), CHANNEL, None)
    assert not first.again
    assert second.again
    assert second.leaf_index == first.leaf_index == 0
    assert store.channel(CHANNEL).book.cumulative == 30


def test_two_receipts_for_one_canvas_are_the_workers_fault(store: Store) -> None:
    job = job_row(1, 100)
    store.admit(job, None, exactly, UNTIL)
    store.pay(canvas(job, 0, 30), CHANNEL, None)
    with pytest.raises(ProtocolViolation, match=r"clause 4\.1"):
        store.pay(canvas(job, 0, 30, trace=b"another"), CHANNEL, None)


def test_a_receipt_is_stored_with_its_leaves_and_a_job_with_its_acceptance(store: Store) -> None:
    job = job_row(1, 100)
    store.admit(job, None, exactly, UNTIL)
    assert store.job(job.id).acceptance is None
    store.accepted(job.id, accepted(job, Account(*SHOWN)))
    store.pay(canvas(job, 0, 30), CHANNEL, None)
    assert store.job(job.id).acceptance == accepted(job)
    assert store.receipts(job=job.id)[0].leaves == made_up_leaves(b"trace", 1)


@pytest.mark.parametrize("kept", [True, False])
def test_exact_texts_are_stored_while_texts_are_kept(store: Store, kept: bool) -> None:
    job = job_row(1, 100)
    store.admit(job, None, exactly, UNTIL, content=b"content" if kept else None)
    for index in range(2):
        output = f"output {index}".encode() if kept else None
        store.pay(canvas(job, index, 30), CHANNEL, None, output=output)
    texts = store.texts(job.id)
    assert texts.content == (b"content" if kept else None)
    assert texts.outputs == ({0: b"output 0", 1: b"output 1"} if kept else {})


def test_the_second_of_two_receipts_survives_the_refusal_to_pay_it(store: Store) -> None:
    job = job_row(1, 100)
    store.admit(job, None, exactly, UNTIL)
    store.pay(canvas(job, 0, 30), CHANNEL, None)
    second = canvas(job, 0, 30, trace=b"another")
    with pytest.raises(ProtocolViolation) as caught:
        store.pay(second, CHANNEL, None)
    frame = CanvasDelivered(second.receipt, second.signature, b"sealed", second.leaves)
    party = job.submission.channel.operator
    assert store.contradictions.keep(job.id, party, frame, caught.value, NOW)
    assert store.contradictions.keep(job.id, party, frame, caught.value, UNTIL)
    kept = KeptFrame(replace(frame, sealed_output=b""), "4.1", caught.value.message, NOW)
    assert store.contradictions.of(job.id) == (kept,)


def test_a_second_acceptance_with_another_prompt_length_is_refused_and_evidence(
    store: Store,
) -> None:
    job = job_row(1, 100)
    store.admit(job, None, exactly, UNTIL)
    store.accepted(job.id, accepted(job))
    longer = accepted(job, prompt_tokens=8)
    with pytest.raises(ProtocolViolation, match=r"clause 3\.5") as caught:
        store.accepted(job.id, longer)
    assert store.job(job.id).acceptance == accepted(job)
    party = job.submission.channel.operator
    assert store.contradictions.keep(job.id, party, longer, caught.value, NOW)
    assert [kept.frame for kept in store.contradictions.of(job.id)] == [longer]


def test_only_what_the_operator_signed_for_the_job_is_evidence(store: Store) -> None:
    job, other = job_row(1, 100), job_row(2, 100)
    for row in (job, other):
        store.admit(row, None, exactly, UNTIL)
    event, party = canvas(job, 0, 30), job.submission.channel.operator
    frame = CanvasDelivered(event.receipt, event.signature, b"")
    broken = ProtocolViolation("4.4", "too dear")
    keep = store.contradictions.keep
    assert not keep(job.id, PAYER.address, frame, broken, NOW)
    assert not keep(other.id, party, frame, broken, NOW)
    assert not keep(job.id, party, replace(frame, signature=Signature(bytes(65))), broken, NOW)
    assert not keep(job.id, party, JobEnded(job.id, 1), broken, NOW)
    assert not keep(job.id, party, None, broken, NOW)
    assert store.contradictions.of(job.id) == store.contradictions.of(other.id) == ()


def test_no_worker_fills_the_journal_with_contradictions(store: Store) -> None:
    job = job_row(1, 100)
    store.admit(job, None, exactly, UNTIL)
    for number in range(MAX_KEPT_PER_JOB + 3):
        event = canvas(job, 0, number)
        frame = CanvasDelivered(event.receipt, event.signature, b"")
        broken = ProtocolViolation("4.4", "too dear")
        party = job.submission.channel.operator
        store.contradictions.keep(job.id, party, frame, broken, Timestamp(NOW + number))
    kept = store.contradictions.of(job.id)
    assert [frame.at - NOW for frame in kept] == list(range(MAX_KEPT_PER_JOB))


def test_two_processes_extend_one_book_in_turn(store: Store, file: Path) -> None:
    other = Store(file, DOMAIN, PAYER.address)
    one, two = job_row(1, 100), job_row(2, 100)
    store.admit(one, None, exactly, UNTIL)
    other.admit(two, None, exactly, UNTIL)
    expected = PayerLedger(CHANNEL)
    for index in range(5):
        for place, job in ((store, one), (other, two)):
            event = canvas(job, index, 7)
            expected = expected.pay(LeafRef(job.id, index), event.digest, Amount(7), Amount(1000))
            assert place.pay(event, CHANNEL, None).book.voucher() == expected.voucher()


def test_live_jobs_keep_what_they_reserved(store: Store) -> None:
    first, second, third = job_row(1, 100), job_row(2, 50), job_row(3, 60)
    assert store.admit(first, None, exactly, UNTIL).deposit == 100
    store.accepted(first.id, accepted(first))
    book = store.pay(canvas(first, 0, 40), CHANNEL, None).book
    voucher, peaks = book.voucher(), book.accumulator.peaks
    assert store.admit(second, None, exactly, UNTIL).deposit == 150
    store.accepted(second.id, accepted(second, Account(voucher, Signature(bytes(65)), peaks)))
    store.finish(first.id, JobStatus.COMPLETE)
    assert store.admit(third, None, nothing, UNTIL).deposit == 150


def test_a_job_past_its_deadline_reserves_nothing(store: Store) -> None:
    early = job_row(1, 100)
    store.admit(early, None, exactly, UNTIL)
    store.accepted(early.id, accepted(early))
    late = job_row(2, 100, now=NOW + 601)
    assert store.admit(late, None, nothing, Timestamp(UNTIL + 601)).deposit == 100


def test_a_job_whose_funding_fails_leaves_no_trace(store: Store) -> None:
    def poor(needed: Amount, deposit: Amount) -> Amount:
        raise InsufficientFunds(TOKEN_INFO.amount(needed), TOKEN_INFO.amount(deposit))

    with pytest.raises(InsufficientFunds):
        store.admit(job_row(1, 100), None, poor, UNTIL)
    assert store.jobs() == ()
    assert store.channel(CHANNEL).deposit == 0


def test_paying_beyond_the_deposit_is_refused_and_changes_nothing(store: Store) -> None:
    job = job_row(1, 100)
    store.admit(job, None, exactly, UNTIL)
    with pytest.raises(ProtocolViolation, match=r"clause 5\.5"):
        store.pay(canvas(job, 0, 101), CHANNEL, None)
    assert store.channel(CHANNEL).book == PayerLedger(CHANNEL)


def test_a_channel_is_found_again_by_its_terms_whatever_its_salt(store: Store) -> None:
    assert store.open_channel(terms(salt=9)).id == CHANNEL
    assert store.open_channel(terms(salt=9, delay=7200)).id != CHANNEL
    store.set_status(CHANNEL, ChannelStatus.CLOSED)
    assert store.open_channel(terms(salt=8)).id != CHANNEL


def test_a_closed_channel_never_opens_again(store: Store) -> None:
    store.seen_on_chain(CHANNEL, seen(500), ChannelStatus.CLOSED)
    store.seen_on_chain(CHANNEL, seen(400), ChannelStatus.OPEN)
    store.set_status(CHANNEL, ChannelStatus.OPEN)
    assert store.channel(CHANNEL).status is ChannelStatus.CLOSED


def test_an_opening_that_a_reorganization_took_away_is_authorized_again(store: Store) -> None:
    store.admit(job_row(1, 100), None, exactly, UNTIL)
    store.seen_on_chain(CHANNEL, seen(100), ChannelStatus.OPEN)
    assert store.reservations(TOKEN, NOW) == ()
    store.seen_on_chain(CHANNEL, seen(0), ChannelStatus.OPEN)
    row = store.admit(job_row(2, 10, now=NOW + 700), None, exactly, Timestamp(UNTIL + 700))
    assert (row.funded, row.authorized, row.funding_deadline) == (0, 10, UNTIL + 700)


def test_what_the_chain_shows_again_is_not_written_again(tmp_path: Path) -> None:
    written: list[str] = []
    store = Store(tmp_path / "client.db", DOMAIN, PAYER.address, written.append)
    store.open_channel(terms())
    store.seen_on_chain(CHANNEL, seen(5), ChannelStatus.OPEN)
    before = len(written)
    store.seen_on_chain(CHANNEL, seen(5), ChannelStatus.OPEN)
    assert len(written) == before


def test_what_the_worker_lacks_is_named_again(store: Store) -> None:
    job = job_row(1, 100)
    store.admit(job, None, exactly, UNTIL)
    for index in range(4):
        store.pay(canvas(job, index, 5), CHANNEL, None, acknowledged=index)
    assert len(store.channel(CHANNEL).book.unacknowledged) == 1
    book = store.accepted(job.id, accepted(job))
    assert [ref.canvas for ref in book.unacknowledged] == [0, 1, 2, 3]
    assert store.channel(CHANNEL).book == book


def test_a_worker_that_confirms_more_than_was_paid_breaks_a_clause(store: Store) -> None:
    job = job_row(1, 100)
    store.admit(job, None, exactly, UNTIL)
    with pytest.raises(ProtocolViolation, match="never paid"):
        store.pay(canvas(job, 0, 5), CHANNEL, None, acknowledged=1)
    store.pay(canvas(job, 0, 5), CHANNEL, None)
    with pytest.raises(ProtocolViolation, match="never paid"):
        store.finish(job.id, JobStatus.COMPLETE, acknowledged=2)
    assert store.job(job.id).status is JobStatus.LIVE


def test_a_voucher_of_ours_that_contradicts_the_journal_stops_everything(store: Store) -> None:
    job = job_row(1, 100)
    store.admit(job, None, exactly, UNTIL)
    store.pay(canvas(job, 0, 5), CHANNEL, None)
    other = PayerLedger(CHANNEL).pay(LeafRef(job.id, 0), Digest(bytes(32)), Amount(6), Amount(100))
    account = Account(other.voucher(), Signature(bytes(65)), other.accumulator.peaks)
    with pytest.raises(StoreError, match="two copies"):
        store.adopt_account(CHANNEL, account)


def test_a_commit_that_fails_leaves_nothing_behind_and_nothing_open(
    store: Store, file: Path
) -> None:
    database = Database(file)
    with pytest.raises(StoreError), database.change("x") as db:
        db.execute("PRAGMA defer_foreign_keys = ON")
        db.execute(
            "INSERT INTO vouchers VALUES (x'00', 1, '1', x'00')"
        )  # of a channel that is not there
    with database.change("x") as db:
        assert db.execute("SELECT count(*) FROM vouchers").fetchall() == [(0,)]
    database.close()


def test_a_file_of_another_chain_or_payer_is_refused(store: Store, file: Path) -> None:
    store.close()
    with pytest.raises(StoreError, match="made for chain"):
        Store(file, Domain(1, DOMAIN.verifying_contract), PAYER.address)
    with pytest.raises(StoreError, match="made for payer"):
        Store(file, DOMAIN, operator("somebody").address)


def test_the_file_is_closed_to_others(store: Store, file: Path) -> None:
    store.admit(job_row(1, 100), None, exactly, UNTIL)
    for name in ("client.db", "client.db-wal"):
        assert file.with_name(name).stat().st_mode & 0o077 == 0


def test_memories_of_workers_are_kept(store: Store) -> None:
    address = operator("worker").address
    store.workers.remember(address, lambda memory: learn(memory, NOW, success=True))
    store.workers.remember(address, lambda memory: learn(memory, NOW, success=False))
    assert store.workers.experience() == {address: Experience(address, 1.0, 1.0, NOW)}


def test_free_jobs_still_open_a_channel(store: Store) -> None:
    assert store.admit(job_row(1, 0), None, exactly, UNTIL).deposit == 1


def test_a_job_that_is_being_offered_reserves_until_it_is_declined(store: Store) -> None:
    job = job_row(1, 100, owner=store.owner)
    store.admit(job, None, exactly, UNTIL)
    (held,) = store.reservations(TOKEN, NOW)
    assert (held.amount, held.why, held.until) == (100, ReservedFor.SUBMISSION, UNTIL)
    store.finish(job.id, JobStatus.REFUSED, "BUSY")
    assert store.reservations(TOKEN, NOW) == ()
    assert store.channel(CHANNEL).authorized == 0


def test_a_job_that_a_worker_took_reserves_until_the_chain_shows_it(store: Store) -> None:
    job = job_row(1, 100, owner=store.owner)
    store.admit(job, None, exactly, UNTIL)
    store.accepted(job.id, accepted(job))
    store.finish(job.id, JobStatus.CANCELLED)
    (held,) = store.reservations(TOKEN, NOW)
    assert (held.amount, held.why) == (100, ReservedFor.OPENING)
    store.seen_on_chain(CHANNEL, seen(60), ChannelStatus.OPEN)
    assert store.reservations(TOKEN, NOW)[0].amount == 40
    store.seen_on_chain(CHANNEL, seen(100), ChannelStatus.OPEN)
    assert store.reservations(TOKEN, NOW) == ()


def test_an_authorization_past_its_deadline_reserves_nothing(store: Store) -> None:
    job = job_row(1, 100, owner=store.owner)
    store.admit(job, None, exactly, UNTIL)
    store.accepted(job.id, accepted(job))
    assert store.reservations(TOKEN, UNTIL)
    late = Timestamp(UNTIL + FUNDING_GRACE_S + 1)
    assert store.reservations(TOKEN, late) == ()
    row = store.admit(job_row(2, 30, now=late), None, exactly, Timestamp(late + 3600))
    assert (row.authorized, row.taken) == (30, 0)


def test_a_killed_process_reserves_nothing_for_a_job_that_nobody_took(
    store: Store, file: Path
) -> None:
    killed = Store(file, DOMAIN, PAYER.address)
    killed.admit(job_row(1, 100, owner=killed.owner), None, exactly, UNTIL)
    assert store.reservations(TOKEN, NOW)[0].amount == 100
    killed.close()
    assert store.reservations(TOKEN, NOW) == ()


def test_a_declined_job_leaves_what_another_job_reserved(store: Store) -> None:
    taken, declined = job_row(1, 100, owner=store.owner), job_row(2, 50, owner=store.owner)
    store.admit(taken, None, exactly, UNTIL)
    store.accepted(taken.id, accepted(taken))
    store.admit(declined, None, exactly, UNTIL)
    assert store.reservations(TOKEN, NOW)[0].amount == 150
    store.finish(declined.id, JobStatus.REFUSED)
    assert store.reservations(TOKEN, NOW)[0].amount == 100


def test_the_workers_fee_is_signed_and_reserved_with_the_opening(store: Store) -> None:
    asks = offer(open_fee=Amount(7), top_up_fee=Amount(3))
    first = replace(job_row(1, 100, owner=store.owner), offer=asks)
    assert store.admit(first, None, exactly, UNTIL).fee == 7
    assert store.reservations(TOKEN, NOW)[0].amount == 107
    store.accepted(first.id, accepted(first))
    store.seen_on_chain(CHANNEL, seen(100), ChannelStatus.OPEN)
    assert store.reservations(TOKEN, NOW) == ()
    second = replace(job_row(2, 50, owner=store.owner), offer=asks)
    row = store.admit(second, None, exactly, UNTIL)
    assert (row.authorized, row.fee) == (150, 3)
    assert store.reservations(TOKEN, NOW)[0].amount == 53


def test_an_account_behind_what_was_settled_is_the_workers_fault(store: Store) -> None:
    job = job_row(1, 100)
    store.admit(job, None, exactly, UNTIL)
    store.pay(canvas(job, 0, 5), CHANNEL, None)
    settled = SeenChannel(Amount(100), Amount(0), Amount(5))
    store.seen_on_chain(CHANNEL, settled, ChannelStatus.OPEN)
    with pytest.raises(ProtocolViolation, match=r"clause 5\.7.*settled"):
        store.accepted(job.id, accepted(job))


def test_a_job_that_a_living_process_follows_cannot_be_taken_over(store: Store, file: Path) -> None:
    other = Store(file, DOMAIN, PAYER.address)
    job = job_row(1, 100, owner=other.owner)
    store.admit(job, None, exactly, UNTIL)
    with pytest.raises(JobFollowed, match="another process of this client follows"):
        store.take_over(job.id)
    other.close()
    assert store.take_over(job.id).owner == store.owner
    store.leave(job.id)
    assert store.job(job.id).owner == NOBODY


def test_an_id_may_be_shortened_while_it_is_unique(store: Store) -> None:
    one, two = job_row(1, 100), job_row(2, 100)
    store.admit(one, None, exactly, UNTIL)
    store.admit(two, None, exactly, UNTIL)
    assert store.job_named("0x" + one.id.hex()[:8]) == one.id
    assert store.job_named(two.id.hex().upper()) == two.id
    assert store.channel_named(CHANNEL.hex()[:7]) == CHANNEL
    for digits, why in (("0xffff0000", "no job"), ("", "hex digits"), ("0x%", "hex digits")):
        with pytest.raises(StoreError, match=why):
            store.job_named(digits)
    shared = next(n for n in range(64) if one.id.hex()[:n] != two.id.hex()[:n]) - 1
    if shared:
        with pytest.raises(StoreError, match="more than one job"):
            store.job_named(one.id.hex()[:shared])


@pytest.mark.parametrize("canvases", [1, 5])
def test_a_job_syncs_the_disk_when_it_is_admitted_and_at_each_payment_only(
    tmp_path: Path, canvases: int
) -> None:
    vfs = DyingVfs(None)
    try:
        store = Store(tmp_path / "client.db", DOMAIN, PAYER.address)
        store.open_channel(terms())
        job = job_row(1, 100, owner=store.owner)
        before = vfs.syncs
        store.admit(job, None, exactly, UNTIL)
        store.accepted(job.id, accepted(job))
        for index in range(canvases):
            store.pay(canvas(job, index, 5), CHANNEL, None, acknowledged=index)
        lesson = Lesson(lambda memory: learn(memory, NOW, success=True))
        store.finish(job.id, JobStatus.COMPLETE, lesson=lesson, acknowledged=canvases)
        assert not store.channel(CHANNEL).book.unacknowledged
        assert vfs.syncs - before == 1 + canvases
        assert store.workers.experience()[operator("worker").address].successes == 1
        store.close()
    finally:
        vfs.unregister()


def test_an_unknown_job_is_named(store: Store) -> None:
    with pytest.raises(StoreError, match="no job 0x0000"):
        store.job(JobId(bytes(32)))


def test_texts_are_kept_only_when_asked(store: Store, file: Path) -> None:
    job = job_row(1, 100)
    store.admit(job, None, exactly, UNTIL)
    store.pay(canvas(job, 0, 5), CHANNEL, None)
    kept = job_row(2, 100)
    store.admit(kept, json.dumps("a prompt"), exactly, UNTIL)
    store.pay(canvas(kept, 0, 5), CHANNEL, "an answer")
    assert [r.text for r in store.receipts(channel=CHANNEL)] == [None, "an answer"]
    assert replace(kept) == store.job(kept.id)
    assert Address(kept.offer.offer.operator) == operator("worker").address


async def test_every_change_leaves_the_patience_for_other_processes(tmp_path: Path) -> None:
    """A read waits while another process recovers the log of one that was killed."""
    database = Database(tmp_path / "client.db")

    def patience() -> int:
        with database.read() as db:
            return int(db.execute("PRAGMA busy_timeout").get)

    def change() -> None:
        with database.change("a change") as db:
            db.execute("INSERT INTO meta VALUES ('a', 'b')")

    assert patience() == BUSY_TIMEOUT_MS
    await database.run(change)
    assert await database.run(patience) == patience() == BUSY_TIMEOUT_MS
    database.close()


async def test_threads_and_an_event_loop_use_one_database_at_once(tmp_path: Path) -> None:
    database = Database(tmp_path / "client.db")

    def change(number: int) -> None:
        with database.read() as db:
            db.execute("SELECT count(*) FROM meta").fetchall()
        with database.change("a change") as db:
            db.execute("INSERT INTO meta VALUES (?, '')", (str(number),))

    in_loop = [database.run(change, number) for number in range(200)]
    in_threads = [asyncio.to_thread(change, number) for number in range(200, 400)]
    await asyncio.gather(*in_threads, *in_loop)
    with database.read() as db:
        assert db.execute("SELECT count(*) FROM meta").get == 400
    database.close()
