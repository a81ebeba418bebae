"""A job that its client leaves ends with one receipt for the work done, and nothing more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from piecework_protocol import merkle
from piecework_protocol.client_session import CanvasVerified, DraftSeen
from piecework_protocol.content import output_digest
from piecework_protocol.errors import ProtocolViolation, Reason
from piecework_protocol.frames import CanvasDelivered, Draft, JobEnded, Progress
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.limits import MAX_STEPS_PAST_PROGRESS
from piecework_protocol.objects import Finish, Receipt
from piecework_protocol.pricing import Usage, price
from piecework_protocol.service import NO_TRACE
from piecework_protocol.signing import sign
from piecework_protocol.states import JobState
from piecework_protocol.trace import trace_root
from piecework_protocol.types import Amount, Digest, Timestamp, Uint32, keccak256
from piecework_protocol.wire import decode_worker_frame
from tests.support.protocol.pair import (
    DOMAIN,
    MODEL,
    OPERATOR,
    PROMPT_TOKENS,
    PairedMarket,
    PairedStream,
    job,
    steps_of,
)
from tests.support.protocol.traces import made_up_leaves

SEED = next(
    seed for seed in range(100) if keccak256(seed.to_bytes(8, "big") + bytes(4))[8] % 48 > 30
)
"""Its first canvas takes more than thirty steps."""


def after_steps(count: int) -> tuple[PairedMarket, PairedStream]:
    """A job whose client has seen `count` steps of the first canvas, eight at a time."""
    market = PairedMarket(10**9)
    line = market.submit(job(SEED, 40))
    market.worker_reads(line)
    for _ in range(count // 8):
        market.engine_steps(line, 8)
    while line.downward:
        market.client_reads(line)
    return market, line


def leave(market: PairedMarket, line: PairedStream) -> CanvasDelivered:
    """Cancel, and take the receipt off the line unread."""
    line.cancel()
    market.worker_reads(line)
    market.engine_steps(line, 8)
    frame = decode_worker_frame(line.downward.popleft())
    assert isinstance(frame, CanvasDelivered)
    return frame


def signed(receipt: Receipt, data: bytes) -> CanvasDelivered:
    leaves = made_up_leaves(b"signed", receipt.steps)
    return CanvasDelivered(receipt, sign(DOMAIN, receipt, OPERATOR), data, leaves)


def priced(receipt: Receipt, **changes: Any) -> Receipt:
    """The first receipt of a job with some members changed, and the price that they make."""
    other = receipt.replace(**changes)
    usage = Usage(other.total_prompt_tokens, other.units, other.steps)
    amount = price(MODEL, usage)
    return other.replace(
        amount=amount,
        total_amount=amount,
        total_units=other.units,
        total_steps=other.steps,
        trace_root=trace_root(made_up_leaves(b"signed", other.steps)),
    )


def test_a_client_that_leaves_owes_the_prompt_the_steps_and_the_draft_that_it_saw() -> None:
    market, line = after_steps(16)
    frame = leave(market, line)
    event = line.session.receive(frame)
    assert isinstance(event, CanvasVerified)
    receipt = event.receipt
    assert receipt.finish is Finish.CANCELLED
    assert (receipt.steps, receipt.total_prompt_tokens) == (16, PROMPT_TOKENS)
    assert receipt.units == max(market.read.values()) > 0
    usage = Usage(PROMPT_TOKENS, receipt.units, 16)
    assert receipt.amount == receipt.total_amount == price(MODEL, usage)
    ended = line.session.receive(decode_worker_frame(line.downward.popleft()))
    assert ended == JobEnded(line.id, 1)
    assert market.worker_jobs[line.id].state is JobState.CANCELLED


def test_a_client_that_leaves_before_anything_was_begun_owes_nothing() -> None:
    market, line = after_steps(0)
    line.cancel()
    market.worker_reads(line)
    market.engine_steps(line, 8)
    assert decode_worker_frame(line.downward.popleft()) == JobEnded(line.id, 0)
    assert not market.worker_book.unpaid


def test_a_cancelled_job_that_is_submitted_again_only_replays() -> None:
    market, line = after_steps(16)
    leave(market, line)
    market.drop(line)
    again = market.submit(line.job)
    market.worker_reads(again)
    assert market.worker_jobs[line.id].row is None
    while again.downward:
        market.client_reads(again)
    assert again.session.cancelled and again.ended == JobEnded(line.id, 1)


def test_a_canvas_that_had_begun_goes_on_to_its_end_when_the_stream_breaks() -> None:
    market, line = after_steps(8)
    market.drop(line)
    work = market.worker_jobs[line.id]
    while market.engine_steps(line, 8):
        pass
    assert [s.receipt.finish for s in work.stored] == [Finish.MORE]
    assert (work.row, work.state) == (None, JobState.SUSPENDED)
    market.submit(line.job)
    market.worker_reads(line)
    while line.downward:
        market.client_reads(line)
    assert (line.session.received, work.state) == (1, JobState.RUNNING)


def test_a_stream_that_is_never_resumed_ends_its_job_with_what_was_begun() -> None:
    market, line = after_steps(16)
    market.drop(line)
    market.abandon(line)
    market.engine_steps(line, 8)
    work = market.worker_jobs[line.id]
    assert work.state is JobState.CANCELLED
    assert [s.receipt.finish for s in work.stored] == [Finish.CANCELLED]
    market.submit(line.job)
    market.worker_reads(line)
    while line.downward:
        market.client_reads(line)
    assert line.ended is not None and line.ended.reason is Reason.JOB_ENDED
    assert line.session.cancelled


def test_work_that_a_crash_or_a_lost_engine_took_is_never_charged() -> None:
    for lose in (PairedMarket.crash_worker, PairedMarket.lose_engine):
        market, line = after_steps(16)
        line.cancel()
        market.worker_reads(line)
        lose(market)
        line = market.submit(line.job)
        market.worker_reads(line)
        assert market.worker_jobs[line.id].state is JobState.CANCELLED
        assert not market.worker_jobs[line.id].stored


LIES: dict[str, Callable[[CanvasDelivered], CanvasDelivered]] = {
    "more steps than the last progress and eight": lambda f: signed(
        priced(f.receipt, steps=Uint32(16 + MAX_STEPS_PAST_PROGRESS + 1)), f.sealed_output
    ),
    "a draft that was never shown": lambda f: signed(
        priced(
            f.receipt,
            units=Uint32(1),
            output_digest=output_digest(f.receipt.job, 0, TextOutput.plain((9,), "x").encode()),
        ),
        TextOutput.plain((9,), "x").encode(),
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_client_does_not_pay_for(lie: str) -> None:
    market, line = after_steps(16)
    frame = LIES[lie](leave(market, line))
    with pytest.raises(ProtocolViolation, match=r"3\.8"):
        line.session.receive(frame)


def test_eight_steps_beyond_the_last_progress_are_paid() -> None:
    market, line = after_steps(16)
    frame = leave(market, line)
    more = priced(frame.receipt, steps=Uint32(16 + MAX_STEPS_PAST_PROGRESS))
    assert isinstance(line.session.receive(signed(more, frame.sealed_output)), CanvasVerified)


def test_a_worker_that_gives_a_canvas_up_by_itself_is_not_paid_for_it() -> None:
    market, line = after_steps(16)
    work = market.worker_jobs[line.id]
    assert work.session is not None
    market._carry_out(line, work, work.session.cancel(Reason.EXPIRED))
    market.engine_steps(line, 8)
    frame = decode_worker_frame(line.downward.popleft())
    with pytest.raises(ProtocolViolation, match="gave up"):
        line.session.receive(frame)


def test_a_canvas_that_is_left_in_a_pause_is_not_paid() -> None:
    market, line = after_steps(16)
    line.session.receive(Progress(line.id, 0, 16, PROMPT_TOKENS, paused_until=Timestamp(9)))
    frame = leave(market, line)
    with pytest.raises(ProtocolViolation, match=r"3\.12"):
        line.session.receive(frame)


def test_a_worker_that_went_on_before_the_client_left_is_paid() -> None:
    market, line = after_steps(16)
    line.session.receive(Progress(line.id, 0, 16, PROMPT_TOKENS, paused_until=Timestamp(9)))
    frame = leave(market, line)
    line.session.receive(Progress(line.id, 0, 16, PROMPT_TOKENS))
    assert isinstance(line.session.receive(frame), CanvasVerified)


def test_from_the_deadline_on_the_worker_may_end_the_job() -> None:
    market, line = after_steps(16)
    work = market.worker_jobs[line.id]
    assert work.session is not None
    market._carry_out(line, work, work.session.cancel(Reason.EXPIRED))
    market.engine_steps(line, 8)
    frame = decode_worker_frame(line.downward.popleft())
    assert isinstance(line.session.receive(frame, line.job.deadline), CanvasVerified)
    ended = line.session.receive(decode_worker_frame(line.downward.popleft()))
    assert isinstance(ended, JobEnded) and ended.reason is Reason.EXPIRED


def test_a_cancelled_receipt_for_nothing_is_a_broken_clause() -> None:
    _, line = after_steps(0)
    line.session.leave()
    data = TextOutput.plain((), "").encode()
    nothing = Receipt(
        job=line.id,
        canvas=Uint32(0),
        output_digest=output_digest(line.id, 0, data),
        trace_root=NO_TRACE,
        steps=Uint32(0),
        units=Uint32(0),
        amount=Amount(0),
        finish=Finish.CANCELLED,
        total_prompt_tokens=Uint32(0),
        total_units=Uint32(0),
        total_steps=Uint32(0),
        total_amount=Amount(0),
        previous=Digest(line.id),
    )
    with pytest.raises(ProtocolViolation, match="for nothing"):
        line.session.receive(signed(nothing, data))


@pytest.mark.parametrize(
    ("prompt", "steps", "paid"),
    [(3, 0, True), (PROMPT_TOKENS, 0, True), (PROMPT_TOKENS + 1, 0, False), (3, 1, False)],
)
def test_a_prompt_that_was_read_in_part_is_charged_in_part(
    prompt: int, steps: int, paid: bool
) -> None:
    _, line = after_steps(0)
    line.session.leave()
    data = TextOutput.plain((), "").encode()
    root = merkle.root([keccak256(b"step")]) if steps else NO_TRACE
    amount = price(MODEL, Usage(prompt, 0, steps))
    receipt = Receipt(
        job=line.id,
        canvas=Uint32(0),
        output_digest=output_digest(line.id, 0, data),
        trace_root=root,
        steps=Uint32(steps),
        units=Uint32(0),
        amount=amount,
        finish=Finish.CANCELLED,
        total_prompt_tokens=Uint32(prompt),
        total_units=Uint32(0),
        total_steps=Uint32(steps),
        total_amount=amount,
        previous=Digest(line.id),
    )
    if paid:
        assert isinstance(line.session.receive(signed(receipt, data)), CanvasVerified)
        return
    with pytest.raises(ProtocolViolation, match=r"4\.4"):
        line.session.receive(signed(receipt, data))


def test_progress_of_another_job_is_refused() -> None:
    _, line = after_steps(8)
    with pytest.raises(ProtocolViolation, match=r"2\.4"):
        line.session.receive(Progress(type(line.id)(bytes(32)), 0, 1, 0))


def test_a_resumed_client_is_charged_for_one_canvas_that_it_did_not_see() -> None:
    market, line = after_steps(16)
    market.drop(line)
    market.submit(line.job)
    market.worker_reads(line)
    accepted = decode_worker_frame(line.downward.popleft())
    line.session.receive(accepted)
    line.downward.clear()
    frame = leave(market, line)
    assert isinstance(line.session.receive(frame), CanvasVerified)
    assert steps_of(market.worker_jobs[line.id].accepted, 0) > frame.receipt.steps == 16


def test_a_draft_is_remembered_only_for_its_own_canvas() -> None:
    market, line = after_steps(0)
    data = TextOutput.plain((5,), "y").encode()
    assert isinstance(line.session.receive(Draft(line.id, 3, 1, data)), DraftSeen)
    line.session.receive(Progress(line.id, 0, 1, PROMPT_TOKENS), Timestamp(1))
    for _ in range(2):
        market.engine_steps(line, 8)
    line.downward.clear()
    frame = leave(market, line)
    forged = priced(
        frame.receipt,
        units=Uint32(1),
        steps=Uint32(1),
        output_digest=output_digest(line.id, 0, data),
    )
    with pytest.raises(ProtocolViolation, match="never shown"):
        line.session.receive(signed(forged, data))
