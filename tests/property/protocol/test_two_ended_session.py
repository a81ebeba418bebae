"""Both ends of the protocol, joined by lists of bytes, under every schedule that Hypothesis can
think of."""

from __future__ import annotations

import itertools

from hypothesis import example, given, settings
from hypothesis import strategies as st

from piecework_protocol import merkle
from piecework_protocol.client_session import Phase
from piecework_protocol.errors import MalformedInput
from piecework_protocol.frames import LeafRef
from piecework_protocol.ledger import empty_voucher
from piecework_protocol.limits import MAX_CANVASES_AHEAD, MAX_STEPS_PAST_PROGRESS
from piecework_protocol.objects import Finish
from piecework_protocol.states import JobState
from piecework_protocol.wire import (
    decode_client_frame,
    decode_offer,
    decode_worker_frame,
    encode_client_frame,
)
from tests.support.protocol.pair import (
    DOMAIN,
    PairedMarket,
    PairedStream,
    WorkerKilled,
    denoise,
    job,
)

DEPOSIT = 10**9
ACTIONS = st.sampled_from(
    [
        "client",
        "worker",
        "engine",
        "steps",
        "steps",
        "drop",
        "return",
        "cancel",
        "abandon",
        "crash",
        "lose engine",
        "die at the next point",
        "die in two points",
        "die in three points",
    ]
)
DEATHS = {"die at the next point": 0, "die in two points": 1, "die in three points": 2}


def act(market: PairedMarket, line: PairedStream, action: str) -> None:
    """One thing happens to one line. A worker that dies is started again."""
    try:
        _act(market, line, action)
    except WorkerKilled:
        market.crash_worker()


def _act(market: PairedMarket, line: PairedStream, action: str) -> None:
    match action:
        case "client" if line.downward:
            market.client_reads(line)
        case "worker" if line.upward:
            market.worker_reads(line)
        case "engine":
            market.engine_step(line)
        case "steps":
            market.engine_steps(line, MAX_STEPS_PAST_PROGRESS)
        case "drop":
            market.drop(line)
        case "return":
            market.drop(line)
            market.submit(line.job)
        case "cancel" if line.session.phase is Phase.ACCEPTED:
            line.cancel()
        case "abandon":
            market.abandon(line)
        case "crash":
            market.crash_worker()
        case "lose engine":
            market.lose_engine()
        case _ if action in DEATHS:
            market.points_to_live = DEATHS[action]


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
    market.points_to_live = None
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
    """Every job is over, paid once, and every receipt proves into the last voucher's root."""
    paid = market.client.paid_log
    digests = [DOMAIN.digest(market.lines[ref.job].receipts[ref.canvas]) for ref in paid]
    voucher = market.client.book.voucher()
    latest = market.worker_book.accepted
    assert (latest.voucher if latest else empty_voucher(voucher.channel)) == voucher
    assert not market.worker_book.unpaid
    assert len(set(paid)) == len(paid) == voucher.count
    for index, digest in enumerate(digests):
        assert merkle.verify(merkle.prove(digests, index), digest, voucher.receipts_root)
    for key, line in market.lines.items():
        work = market.worker_jobs[key]
        assert work.state in (JobState.PAID, JobState.CANCELLED)
        assert line.receipts == [s.receipt for s in work.stored]
        whole = [r for r in line.receipts if r.finish is not Finish.CANCELLED]
        assert len(line.receipts) - len(whole) <= 1
        if work.state is JobState.PAID:
            assert line.receipts[-1].finish in (Finish.END_OF_TEXT, Finish.TOKEN_LIMIT)
        alone = [denoise(work.accepted, k).output_digest for k in range(len(whole))]
        assert [r.output_digest for r in whole] == alone
        for before, receipt in itertools.pairwise(line.receipts):
            assert receipt.amount == receipt.total_amount - before.total_amount >= 0


def check_that_nothing_was_read_for_nothing(market: PairedMarket) -> None:
    """What a client has read in drafts, a receipt charges. Nothing here takes the engine away."""
    charged = {LeafRef(key, r.canvas): r for key, w in market.lines.items() for r in w.receipts}
    for ref, tokens in market.read.items():
        assert charged[ref].units >= tokens, ref


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
    [(0, 1), (1, 1), (2, 1)],
    [(2, "worker"), (2, "client"), (2, "engine"), (2, "client"), (2, "client"), (2, "worker")],
)
def test_under_any_schedule_of_drops_cancels_and_crashes_every_job_ends_once_and_is_paid(
    work: list[tuple[int, int]], schedule: list[tuple[int, str]]
) -> None:
    market = PairedMarket(DEPOSIT)
    for seed, tokens in work:
        market.submit(job(seed, tokens))
    for which, action in schedule:
        act(market, list(market.lines.values())[which % len(market.lines)], action)
        check_books(market)
    finish(market)
    check_the_end(market)
    assert all(len(digests) == 1 for digests in market.signed.values()), "a canvas signed twice"


def finish(market: PairedMarket) -> None:
    """Every client comes back, and trades to the end of its job."""
    market.points_to_live = None
    for line in list(market.lines.values()):
        market.drop(line)
        market.submit(line.job)
    run_out(market)


@settings(max_examples=100, deadline=None)
@given(
    jobs,
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from(
                ["client", "worker", "engine", "steps", "drop", "return", "cancel", "abandon"]
            ),
        ),
        max_size=120,
    ),
)
def test_no_client_reads_tokens_that_no_receipt_charges(
    work: list[tuple[int, int]], schedule: list[tuple[int, str]]
) -> None:
    market = PairedMarket(DEPOSIT)
    for seed, tokens in work:
        market.submit(job(seed, tokens))
    for which, action in schedule:
        act(market, list(market.lines.values())[which % len(market.lines)], action)
    finish(market)
    check_the_end(market)
    check_that_nothing_was_read_for_nothing(market)


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


def test_a_job_pauses_two_canvases_ahead_until_a_voucher_arrives() -> None:
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
