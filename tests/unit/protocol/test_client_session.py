"""A worker that lies: the client stops with the clause that was broken, and nothing is paid for the
lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from piecework_protocol.client_session import (
    CanvasVerified,
    Phase,
)
from piecework_protocol.content import output_digest
from piecework_protocol.errors import ProtocolViolation
from piecework_protocol.frames import (
    Accepted,
    CanvasDelivered,
    Draft,
    JobEnded,
    WorkerFrame,
)
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.objects import Acceptance, Finish, Receipt
from piecework_protocol.signing import LocalSigner, sign
from piecework_protocol.types import Amount, Digest, JobId, Signature, Uint32, keccak256
from piecework_protocol.wire import decode_worker_frame
from tests.support.protocol.pair import (
    CANVAS,
    DOMAIN,
    OPERATOR,
    PAYER,
    PairedMarket,
    PairedStream,
    job,
)

STRANGER = LocalSigner(bytes(keccak256(b"stranger")))
SEED = 3  # a job of several full canvases with the fake engine


def started(tokens: int = 40) -> tuple[PairedMarket, PairedStream]:
    """A job whose acceptance and first two canvases lie ready to be read."""
    market = PairedMarket(10**9)
    line = market.submit(job(SEED, tokens))
    market.worker_reads(line)
    while market.engine_step(line):
        continue
    return market, line


def next_frame(line: PairedStream) -> WorkerFrame:
    return decode_worker_frame(line.downward.popleft())


def first_canvas(line: PairedStream) -> CanvasDelivered:
    """Accept the job, then return the first delivery unread."""
    assert isinstance(line.session.receive(next_frame(line)), Accepted)
    frame = next_frame(line)
    assert isinstance(frame, CanvasDelivered)
    return frame


def signed(receipt: Receipt, output: bytes, by: LocalSigner = OPERATOR) -> CanvasDelivered:
    return CanvasDelivered(receipt, sign(DOMAIN, receipt, by), output)


def with_output(frame: CanvasDelivered, output: TextOutput, **changes: object) -> CanvasDelivered:
    data = output.encode()
    digest = output_digest(frame.receipt.job, frame.receipt.canvas, data)
    return signed(frame.receipt.replace(output_digest=digest, **changes), data)


LIES: dict[str, tuple[str, Callable[[CanvasDelivered], CanvasDelivered]]] = {
    "a signature by a stranger": ("4.3", lambda f: signed(f.receipt, f.sealed_output, STRANGER)),
    "a signature of 65 zeros": ("4.3", lambda f: replace(f, signature=Signature(bytes(65)))),
    "a skipped canvas": (
        "4.1",
        lambda f: signed(f.receipt.replace(canvas=Uint32(1)), f.sealed_output),
    ),
    "another job's receipt": (
        "4.1",
        lambda f: signed(f.receipt.replace(job=JobId(bytes(32))), f.sealed_output),
    ),
    "a broken chain": (
        "4.1",
        lambda f: signed(f.receipt.replace(previous=Digest(bytes(32))), f.sealed_output),
    ),
    "other text than committed": (
        "4.2",
        lambda f: replace(f, sealed_output=TextOutput.plain((7,), "other").encode()),
    ),
    "one base unit too much": (
        "4.4",
        lambda f: signed(f.receipt.replace(amount=Amount(f.receipt.amount + 1)), f.sealed_output),
    ),
    "one base unit too little": (
        "4.4",
        lambda f: signed(f.receipt.replace(amount=Amount(f.receipt.amount - 1)), f.sealed_output),
    ),
    "more steps than allowed": (
        "4.4",
        lambda f: signed(f.receipt.replace(steps=Uint32(49)), f.sealed_output),
    ),
    "no steps at all": (
        "4.4",
        lambda f: signed(f.receipt.replace(steps=Uint32(0)), f.sealed_output),
    ),
    "more tokens charged than delivered": (
        "4.4",
        lambda f: signed(f.receipt.replace(units=Uint32(CANVAS + 1)), f.sealed_output),
    ),
    "a canvas larger than the model's": (
        "4.4",
        lambda f: with_output(
            f, TextOutput.plain((1,) * (CANVAS + 1), "x"), units=Uint32(CANVAS + 1)
        ),
    ),
    "a canvas cut short that is not the last": (
        "4.5",
        lambda f: with_output(f, TextOutput.plain((1,), "x"), units=Uint32(1)),
    ),
    "a leaf too few": ("7.2", lambda f: replace(f, leaves=f.leaves[:-1])),
    "a leaf too many": ("7.2", lambda f: replace(f, leaves=(*f.leaves, f.leaves[0]))),
    "no leaves": ("7.2", lambda f: replace(f, leaves=())),
    "leaves of another canvas": ("7.2", lambda f: replace(f, leaves=f.leaves[::-1])),
    "bytes that are no output": (
        "8.2",
        lambda f: signed(f.receipt, b"\xff\xff\xff\xff"),
    ),
}


@pytest.mark.parametrize("lie", LIES, ids=list(LIES))
def test_a_lie_in_a_delivery_is_named_by_its_clause(lie: str) -> None:
    _, line = started()
    clause, tell = LIES[lie]
    with pytest.raises(ProtocolViolation) as caught:
        line.session.receive(tell(first_canvas(line)))
    assert caught.value.clause == clause
    assert line.session.phase is Phase.BROKEN and line.session.received == 0


def test_the_honest_delivery_that_the_lies_are_made_from_is_verified() -> None:
    _, line = started()
    assert isinstance(line.session.receive(first_canvas(line)), CanvasVerified)


def test_a_canvas_delivered_twice_is_refused() -> None:
    _, line = started()
    frame = first_canvas(line)
    line.session.receive(frame)
    with pytest.raises(ProtocolViolation, match="expected canvas 1"):
        line.session.receive(frame)


def test_after_a_broken_clause_nothing_more_is_taken() -> None:
    _, line = started()
    frame = first_canvas(line)
    with pytest.raises(ProtocolViolation):
        line.session.receive(replace(frame, sealed_output=b""))
    with pytest.raises(ProtocolViolation, match="after the end"):
        line.session.receive(frame)


def test_a_frame_before_the_acceptance_is_refused() -> None:
    _, line = started()
    line.downward.popleft()
    with pytest.raises(ProtocolViolation, match="before the job was accepted"):
        line.session.receive(next_frame(line))


def test_an_acceptance_that_the_operator_did_not_sign_is_refused() -> None:
    _, line = started()
    frame = next_frame(line)
    assert isinstance(frame, Accepted)
    forged = sign(
        DOMAIN, Acceptance(frame.job, Uint32(frame.prompt_tokens), frame.accepted_at), STRANGER
    )
    with pytest.raises(ProtocolViolation, match=r"3\.5"):
        line.session.receive(replace(frame, signature=forged))


def test_a_prompt_length_that_the_prompt_cannot_have_is_refused() -> None:
    _, line = started()
    frame = next_frame(line)
    assert isinstance(frame, Accepted)
    padded = sign(DOMAIN, Acceptance(frame.job, Uint32(5000), frame.accepted_at), OPERATOR)
    with pytest.raises(ProtocolViolation, match=r"3\.4"):
        line.session.receive(replace(frame, prompt_tokens=5000, signature=padded))


def test_a_job_that_would_pass_its_ceiling_is_stopped() -> None:
    market = PairedMarket(10**9)
    line = market.submit(job(SEED, 40, ceiling=8))
    market.worker_reads(line)
    market.engine_step(line)
    frame = first_canvas(line)
    with pytest.raises(ProtocolViolation, match="ceiling"):
        line.session.receive(frame)


def test_a_receipt_that_says_more_at_the_token_limit_is_refused() -> None:
    _, line = started(CANVAS)
    frame = first_canvas(line)
    assert frame.receipt.finish is Finish.TOKEN_LIMIT
    with pytest.raises(ProtocolViolation, match=r"4\.5"):
        line.session.receive(signed(frame.receipt.replace(finish=Finish.MORE), frame.sealed_output))


def test_an_end_that_counts_other_canvases_than_came_is_refused() -> None:
    _, line = started()
    line.session.receive(first_canvas(line))
    with pytest.raises(ProtocolViolation, match=r"4\.1"):
        line.session.receive(JobEnded(line.session.id, 2))


def test_a_draft_that_does_not_parse_is_refused() -> None:
    _, line = started()
    first_canvas(line)
    with pytest.raises(ProtocolViolation, match=r"8\.2"):
        line.session.receive(Draft(line.session.id, 0, 1, b"?"))


def test_a_worker_that_shows_a_voucher_we_never_signed_is_refused() -> None:
    market, line = started()
    while line.downward:
        market.client_reads(line)
    while line.upward:
        market.worker_reads(line)
    market.drop(line)
    again = market.submit(line.job)
    market.worker_reads(again)
    frame = next_frame(again)
    assert isinstance(frame, Accepted) and frame.account is not None
    voucher = frame.account.voucher.replace(cumulative=Amount(1))
    forged = replace(frame.account, voucher=voucher, signature=sign(DOMAIN, voucher, STRANGER))
    with pytest.raises(ProtocolViolation, match=r"5\.7"):
        again.session.receive(replace(frame, account=forged))
    assert PAYER.address != STRANGER.address
