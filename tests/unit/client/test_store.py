"""The client's journal: what it promises about money, across processes and restarts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from piecework.client.errors import InsufficientFunds, StoreError
from piecework.client.journal.database import Database
from piecework.client.journal.learning import learn
from piecework.client.journal.records import ChannelStatus, Experience, JobRow, JobStatus
from piecework.client.journal.store import Store
from piecework_protocol.client_session import CanvasVerified
from piecework_protocol.content import CanvasOutput
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import ProtocolViolation
from piecework_protocol.frames import Account, LeafRef, SubmitJob
from piecework_protocol.ledger import PayerLedger
from piecework_protocol.objects import Channel, Finish, Receipt
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
from tests.support import pair
from tests.support.client_side import PAYER
from tests.support.fake_chain import DOMAIN, TOKEN, TOKEN_INFO
from tests.support.offers import offer, operator, receiver

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


def job_row(seed: int, ceiling: int, *, now: int = NOW) -> JobRow:
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
        prompt_bytes=10,
        status=JobStatus.LIVE,
        prompt_tokens=None,
        detail="",
        created_at=Timestamp(now),
        owner=1,
    )


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
        previous=Digest(job.id),
    )
    signature = sign(DOMAIN, receipt, operator("worker"))
    return CanvasVerified(
        receipt, Digest(DOMAIN.digest(receipt)), signature, CanvasOutput((1,), "x")
    )


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
    store.pay(canvas(first, 0, 40), CHANNEL, None)
    assert store.admit(second, None, exactly, UNTIL).deposit == 150
    store.finish(first.id, JobStatus.COMPLETE)
    assert store.admit(third, None, nothing, UNTIL).deposit == 150


def test_a_job_past_its_deadline_reserves_nothing(store: Store) -> None:
    store.admit(job_row(1, 100), None, exactly, UNTIL)
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


def test_a_closed_channel_never_opens_again_and_totals_never_go_back(store: Store) -> None:
    store.seen_on_chain(CHANNEL, Amount(500), ChannelStatus.CLOSED)
    store.seen_on_chain(CHANNEL, Amount(400), ChannelStatus.OPEN)
    row = store.channel(CHANNEL)
    assert (row.status, row.funded, row.deposit) == (ChannelStatus.CLOSED, 500, 500)


def test_what_the_worker_lacks_is_named_again(store: Store) -> None:
    job = job_row(1, 100)
    store.admit(job, None, exactly, UNTIL)
    for index in range(4):
        store.pay(canvas(job, index, 5), CHANNEL, None)
    store.acknowledge(CHANNEL, 3)
    assert len(store.channel(CHANNEL).book.unacknowledged) == 1
    book = store.reconcile(CHANNEL, None)
    assert [ref.canvas for ref in book.unacknowledged] == [0, 1, 2, 3]
    assert store.channel(CHANNEL).book == book


def test_a_voucher_of_ours_that_contradicts_the_journal_stops_everything(store: Store) -> None:
    job = job_row(1, 100)
    store.admit(job, None, exactly, UNTIL)
    store.pay(canvas(job, 0, 5), CHANNEL, None)
    other = PayerLedger(CHANNEL).pay(LeafRef(job.id, 0), Digest(bytes(32)), Amount(6), Amount(100))
    account = Account(other.voucher(), Signature(bytes(65)), other.accumulator.peaks)
    with pytest.raises(StoreError, match="two copies"):
        store.reconcile(CHANNEL, account)


def test_a_commit_that_fails_leaves_nothing_behind_and_nothing_open(
    store: Store, file: Path
) -> None:
    database = Database(file)
    with pytest.raises(StoreError), database.change() as db:
        db.execute("PRAGMA defer_foreign_keys = ON")
        db.execute(
            "INSERT INTO vouchers VALUES (x'00', 1, '1', x'00')"
        )  # of a channel that is not there
    with database.change() as db:
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


def test_pending_deposits_are_what_the_chain_does_not_show_yet(store: Store) -> None:
    store.admit(job_row(1, 100), None, exactly, UNTIL)
    assert store.pending_deposits(TOKEN) == 100
    store.seen_on_chain(CHANNEL, Amount(60), ChannelStatus.OPEN)
    assert store.pending_deposits(TOKEN) == 40


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
