"""Both ends of the protocol, joined by lists of bytes, under every schedule that Hypothesis can
think of."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from piecework_protocol import merkle
from piecework_protocol.errors import MalformedInput
from piecework_protocol.frames import LeafRef
from piecework_protocol.limits import MAX_CANVASES_AHEAD
from piecework_protocol.objects import Finish
from piecework_protocol.states import JobState
from piecework_protocol.wire import (
    decode_client_frame,
    decode_offer,
    decode_worker_frame,
    encode_client_frame,
)
from tests.support.pair import DOMAIN, PairedMarket, PairedStream, denoise, job

DEPOSIT = 10**9
ACTIONS = st.sampled_from(["client", "worker", "engine", "engine", "drop", "crash"])


def act(market: PairedMarket, line: PairedStream, action: str) -> PairedStream:
    """One thing happens to one line; a broken line is taken up again at once."""
    if action == "client" and line.downward:
        market.client_reads(line)
    elif action == "worker" and line.upward:
        market.worker_reads(line)
    elif action == "engine":
        market.engine_step(line)
    elif action == "drop":
        market.drop(line)
        return market.submit(line.job)
    elif action == "crash":
        market.crash_worker()
        for other in list(market.lines.values()):
            market.submit(other.job)
    return market.lines[line.id]


def check_books(market: PairedMarket) -> None:
    """What holds at every moment, whatever happened (clauses 5.1, 9.2, 9.3)."""
    worker, payer = market.worker_book, market.client.book
    assert worker.cumulative <= payer.cumulative <= market.client.deposit
    assert worker.accumulator.count <= payer.accumulator.count
    for key, work in market.worker_jobs.items():
        assert worker.unpaid_canvases(key) <= MAX_CANVASES_AHEAD
        assert len(work.stored) <= worker.unpaid_canvases(key) + sum(
            r.job == key for r in market.client.paid_log
        )
    issued = sum(s.receipt.amount for w in market.worker_jobs.values() for s in w.stored)
    assert worker.cumulative + sum(u.amount for u in worker.unpaid.values()) == issued


def run_out(market: PairedMarket) -> None:
    """Let everything that is under way arrive, until nothing moves."""
    moved = True
    while moved:
        moved = False
        for line in list(market.lines.values()):
            while line.upward or line.downward:
                act(market, line, "worker" if line.upward else "client")
                moved = True
            moved |= market.engine_step(line)
        check_books(market)


def check_the_end(market: PairedMarket) -> None:
    """Every job is complete, paid once, and every receipt proves into the last voucher's root."""
    paid = market.client.paid_log
    digests = [DOMAIN.digest(market.lines[ref.job].receipts[ref.canvas]) for ref in paid]
    voucher = market.client.book.voucher()
    assert (
        market.worker_book.accepted is not None and market.worker_book.accepted.voucher == voucher
    )
    assert not market.worker_book.unpaid
    assert len(set(paid)) == len(paid) == voucher.count
    for index, digest in enumerate(digests):
        assert merkle.verify(merkle.prove(digests, index), digest, voucher.receipts_root)
    for key, line in market.lines.items():
        work = market.worker_jobs[key]
        assert work.state is JobState.PAID
        assert line.receipts == [s.receipt for s in work.stored]
        assert line.receipts[-1].finish is not Finish.MORE
        alone = [denoise(work.accepted, k).output_digest for k in range(len(line.receipts))]
        assert [r.output_digest for r in line.receipts] == alone


jobs = st.lists(
    st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 40)),
    min_size=1,
    max_size=4,
    unique_by=lambda t: t[0],
)
schedules = st.lists(st.tuples(st.integers(0, 3), ACTIONS), max_size=120)


@settings(max_examples=150, deadline=None)
@given(jobs, schedules)
@example(  # a voucher on one stream pays for a job whose own stream is broken
    [(0, 1), (1, 1), (2, 1)], [(2, "worker"), (2, "client"), (2, "engine"), (2, "client")]
)
def test_under_any_schedule_of_drops_and_crashes_every_job_is_delivered_and_paid_once(
    work: list[tuple[int, int]], schedule: list[tuple[int, str]]
) -> None:
    market = PairedMarket(DEPOSIT)
    for seed, tokens in work:
        market.submit(job(seed, tokens))
    for which, action in schedule:
        act(market, list(market.lines.values())[which % len(market.lines)], action)
        check_books(market)
    for line in list(market.lines.values()):
        market.drop(line)
        market.submit(line.job)
    run_out(market)
    check_the_end(market)


@given(st.binary(max_size=300))
def test_garbage_from_a_client_is_malformed_or_a_frame_and_nothing_else(data: bytes) -> None:
    for decode in (decode_client_frame, decode_worker_frame, decode_offer):
        try:
            decode(data)
        except MalformedInput as error:
            assert str(error)
    try:
        frame = decode_client_frame(data)
    except MalformedInput:
        return
    assert decode_client_frame(encode_client_frame(frame)) == frame


def test_a_job_pauses_at_the_credit_window_until_a_voucher_arrives() -> None:
    market = PairedMarket(DEPOSIT)
    line = market.submit(job(3, 40))
    market.worker_reads(line)
    made = sum(market.engine_step(line) for _ in range(10))
    assert made == MAX_CANVASES_AHEAD
    while not line.upward:
        market.client_reads(line)
    market.worker_reads(line)
    assert market.engine_step(line) and not market.engine_step(line)


def test_a_finished_job_submitted_again_is_replayed_and_charged_once() -> None:
    market = PairedMarket(DEPOSIT)
    line = market.submit(job(5, 30))
    run_out(market)
    paid = market.client.book.cumulative
    line.receipts.clear()
    fresh = market.submit(line.job)
    market.worker_reads(fresh)
    while fresh.downward:
        fresh.session.receive(decode_worker_frame(fresh.downward.popleft()))
    assert fresh.session.complete
    assert market.client.book.cumulative == paid == market.worker_book.cumulative
    assert {LeafRef(line.id, k) for k in range(fresh.session.received)} == set(
        market.client.paid_log
    )
