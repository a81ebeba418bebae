"""What the wire refuses: members that are missing, too long, out of range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from piecework_protocol import limits
from piecework_protocol.errors import MalformedInput, Reason
from piecework_protocol.frames import (
    Account,
    CanvasDelivered,
    CloseChannelRequest,
    CloseChannelResponse,
    Draft,
    JobEnded,
    LeafRef,
    PayVoucher,
    Progress,
    SubmitJob,
    VoucherAccepted,
)
from piecework_protocol.objects import Endpoint, Finish, ModelOffer, Offer, Route
from piecework_protocol.types import Bytes32, Digest, JobId, Signature
from piecework_protocol.wire import (
    SignedOffer,
    decode_call,
    decode_client_frame,
    decode_offer,
    decode_value,
    decode_worker_frame,
    decode_worker_frames,
    encode_call,
    encode_client_frame,
    encode_offer,
    encode_value,
    encode_worker_frame,
    encode_worker_frames,
    stored_entry,
    stored_units,
)
from tests.vectors import generate

SEALING = limits.SEALING_OVERHEAD_BYTES
CLIENT, WORKER = generate.client_frames(), generate.worker_frames()
SUBMIT: Any = CLIENT["a job"]
PAY: Any = CLIENT["a payment"]
ACCEPTED: Any = WORKER["an acceptance with an account"]
CANVAS: Any = WORKER["canvas 0"]
SHOWN: Any = generate.calls()["receipts"]
OFFER: Offer = generate.offers()["2 models"].offer
MODEL: ModelOffer = OFFER.models[0]


def through_client(frame: Any) -> Any:
    return decode_client_frame(encode_client_frame(frame))


def through_worker(frame: Any) -> Any:
    return decode_worker_frame(encode_worker_frame(frame))


def through_offer(offer: Offer) -> Any:
    return decode_offer(encode_offer(SignedOffer(offer, Signature(bytes(65)))))


def through_call(value: Any) -> Any:
    return decode_call(type(value), encode_call(value))


def account(peaks: int) -> Any:
    held: Account = ACCEPTED.account
    return replace(ACCEPTED, account=replace(held, peaks=(Bytes32(bytes(32)),) * peaks))


BOUNDS: dict[str, tuple[int, Callable[[int], Any]]] = {
    "SubmitJob.sealed_content": (
        limits.MAX_CONTENT_BYTES + SEALING,
        lambda n: through_client(replace(SUBMIT, sealed_content=bytes(n))),
    ),
    "PayVoucher.leaves": (
        limits.MAX_LEAVES_PER_VOUCHER,
        lambda n: through_client(replace(PAY, leaves=(LeafRef(JobId(bytes(32)), 0),) * n)),
    ),
    "Account.peaks": (limits.MAX_PROOF_SIBLINGS, lambda n: through_worker(account(n))),
    "Draft.sealed_output": (
        limits.MAX_OUTPUT_BYTES + SEALING,
        lambda n: through_worker(Draft(JobId(bytes(32)), 0, 0, bytes(n))),
    ),
    "CanvasDelivered.sealed_output": (
        limits.MAX_OPENING_BYTES + SEALING,
        lambda n: through_worker(replace(CANVAS, sealed_output=bytes(n))),
    ),
    "JobEnded.message": (
        limits.MAX_REASON_BYTES,
        lambda n: through_worker(JobEnded(JobId(bytes(32)), 0, None, "x" * n)),
    ),
    "Endpoint.address": (
        limits.MAX_ENDPOINT_BYTES,
        lambda n: through_offer(OFFER.replace(endpoints=(Endpoint(Route.DIRECT, "x" * n),))),
    ),
    "Offer.endpoints": (
        limits.MAX_OFFER_ENDPOINTS,
        lambda n: through_offer(OFFER.replace(endpoints=OFFER.endpoints[:1] * n)),
    ),
    "ShowReceiptsRequest.receipts": (
        limits.MAX_SHOWN_RECEIPTS,
        lambda n: through_call(replace(SHOWN, receipts=SHOWN.receipts[:1] * n)),
    ),
    "ShownVoucher.peaks": (
        limits.MAX_PROOF_SIBLINGS,
        lambda n: through_call(
            replace(SHOWN, voucher=replace(SHOWN.voucher, peaks=(Bytes32(bytes(32)),) * n))
        ),
    ),
    "Offer.tokens": (
        limits.MAX_OFFER_TOKENS,
        lambda n: through_offer(OFFER.replace(tokens=OFFER.tokens[:1] * n)),
    ),
    "Offer.models": (
        limits.MAX_OFFER_MODELS,
        lambda n: through_offer(OFFER.replace(models=(MODEL,) * n)),
    ),
    "Offer.details": (
        limits.MAX_DETAILS_BYTES,
        lambda n: through_offer(OFFER.replace(details="x" * n)),
    ),
    "ModelOffer.name": (
        limits.MAX_NAME_BYTES,
        lambda n: through_offer(OFFER.replace(models=(MODEL.replace(name="x" * n),))),
    ),
    "ModelOffer.profile": (
        limits.MAX_NAME_BYTES,
        lambda n: through_offer(OFFER.replace(models=(MODEL.replace(profile="x" * n),))),
    ),
}


@pytest.mark.parametrize("member", BOUNDS)
def test_a_member_at_its_bound_passes_and_one_more_is_refused_by_name(member: str) -> None:
    bound, send = BOUNDS[member]
    send(bound)
    with pytest.raises(MalformedInput, match=f"^{member}: at most {bound} "):
        send(bound + 1)


def test_a_bound_on_text_counts_bytes_and_not_letters() -> None:
    half = limits.MAX_REASON_BYTES // 2
    through_worker(JobEnded(JobId(bytes(32)), 0, None, "ö" * half))
    with pytest.raises(MalformedInput, match="JobEnded"):
        through_worker(JobEnded(JobId(bytes(32)), 0, None, "ö" * half + "x"))


@pytest.mark.parametrize(
    ("decode", "data", "lacking"),
    [
        (decode_client_frame, "0a00", "SubmitJob lacks its job"),
        (decode_client_frame, "1200", "PayVoucher lacks its voucher"),
        (decode_worker_frame, "1a00", "CanvasDelivered lacks its receipt"),
        (decode_offer, "", "SignedOffer lacks its offer"),
        (
            partial(decode_call, CloseChannelRequest),
            "",
            "CloseChannelRequest lacks its channel",
        ),
        (decode_client_frame, "", "a ClientFrame of no known kind"),
        (decode_worker_frame, "", "a WorkerFrame of no known kind"),
    ],
)
def test_what_is_missing_is_named(
    decode: Callable[[bytes], object], data: str, lacking: str
) -> None:
    # Hand-made protobuf: field 1 or 2 or 3 with an empty message in it.
    with pytest.raises(MalformedInput, match=lacking):
        decode(bytes.fromhex(data))


@pytest.mark.parametrize(
    ("frame", "member"),
    [
        (replace(SUBMIT, signature=Signature(bytes(64))), "SubmitJob.signature"),
        (replace(PAY, leaves=(LeafRef(JobId(bytes(31)), 0),)), "LeafRef.job"),
    ],
)
def test_a_member_of_another_size_is_refused_by_name(frame: Any, member: str) -> None:
    with pytest.raises(MalformedInput, match=f"^{member}: expected"):
        through_client(frame)


def test_an_amount_has_at_most_sixteen_bytes_and_no_leading_zero() -> None:
    price = 50_000  # in the vector it takes two bytes: c3 50
    data, stored = encode_offer(generate.offers()["2 models"]), price.to_bytes(2, "big")
    assert decode_offer(data) == generate.offers()["2 models"]
    with pytest.raises(MalformedInput, match=r"ModelOffer\.price_per_million_prompt_tokens"):
        decode_offer(data.replace(stored, b"\x00\x50"))


def test_a_number_that_names_no_member_of_an_enumeration_is_refused() -> None:
    last = generate.worker_frames()["canvas 1"]
    assert isinstance(last, CanvasDelivered) and last.receipt.finish is Finish.END_OF_TEXT
    data = encode_worker_frame(last)
    known, unknown = b"\x40\x01\x48", b"\x40\x09\x48"  # field 8, then field 9
    assert data.count(known) == 1
    with pytest.raises(MalformedInput, match=r"Receipt\.finish: 9 is outside of 0 to 3"):
        decode_worker_frame(data.replace(known, unknown))


def test_a_reason_of_a_later_version_is_an_internal_failure() -> None:
    frame = JobEnded(JobId(bytes(32)), 1, Reason.BUSY, "try later")
    data = encode_worker_frame(frame)
    later = decode_worker_frame(data.replace(b"BUSY", b"GONE"))
    assert later == replace(frame, reason=Reason.INTERNAL)


@pytest.mark.parametrize("name", CLIENT)
def test_a_field_that_this_version_does_not_know_is_skipped(name: str) -> None:
    unknown = bytes.fromhex("f80701")  # field 127 as a varint
    assert decode_client_frame(encode_client_frame(CLIENT[name]) + unknown) == CLIENT[name]


@pytest.mark.parametrize("length", [1, 31, 33])
def test_a_transaction_hash_of_another_length_is_refused(length: int) -> None:
    broken = CloseChannelResponse(Signature(bytes(65)), Digest(bytes(length)))
    with pytest.raises(MalformedInput, match="32 bytes"):
        through_call(broken)


def test_what_is_read_alone_of_a_stored_value_is_what_all_of_it_says() -> None:
    for entry in (0, 1, 2**32 - 1):
        frame = replace(SUBMIT, job=SUBMIT.job.replace(entry=entry))
        assert stored_entry(encode_client_frame(frame)) == entry
    receipt = CANVAS.receipt
    assert receipt.units and stored_units(encode_value(receipt)) == receipt.units
    for read in (stored_entry, stored_units):
        with pytest.raises(MalformedInput):
            read(b"\xff")


def test_a_frame_longer_than_the_largest_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(MalformedInput, match="ClientFrame is at most"):
        decode_client_frame(bytes(limits.MAX_FRAME_BYTES + 1))


def test_a_signed_offer_equals_its_copy_and_differs_by_its_signature() -> None:
    signed = generate.offers()["2 models"]
    assert decode_offer(encode_offer(signed)) == signed
    assert hash(decode_offer(encode_offer(signed))) == hash(signed)
    assert SignedOffer(signed.offer, Signature(bytes(65))) != signed


def test_frames_without_what_is_optional_say_so() -> None:
    job: SubmitJob = through_client(SUBMIT)
    assert job.funding is None
    assert through_worker(replace(ACCEPTED, account=None)).account is None
    ended: JobEnded = through_worker(JobEnded(JobId(bytes(32)), 0))
    assert ended.reason is None
    payment: PayVoucher = through_client(replace(PAY, leaves=()))
    assert payment.leaves == ()
    assert isinstance(through_worker(CANVAS), CanvasDelivered)


def test_frames_that_travel_together_come_in_their_order() -> None:
    job = JobId(bytes(32))
    frames = (VoucherAccepted(7), Progress(job, 0, 3, 9), JobEnded(job, 1), VoucherAccepted(8))
    assert decode_worker_frames(encode_worker_frames(frames)) == frames
    assert decode_worker_frames(encode_worker_frame(frames[0])) == frames[:1]
    with pytest.raises(MalformedInput, match="more than one WorkerFrame"):
        decode_worker_frame(encode_worker_frames(frames[:2]))


def test_more_frames_than_four_and_frames_behind_those_behind_are_refused() -> None:
    frame = VoucherAccepted(7)
    with pytest.raises(MalformedInput, match="at most 4 frames"):
        decode_worker_frames(encode_worker_frames([frame] * 5))
    alone, two = encode_worker_frame(frame), encode_worker_frames((frame, frame))
    behind = b"\x3a"  # member 7, which has a length
    assert two == alone + behind + bytes([len(alone)]) + alone
    with pytest.raises(MalformedInput, match="carries a third"):
        decode_worker_frames(alone + behind + bytes([len(two)]) + two)
    with pytest.raises(MalformedInput, match="of no known kind"):
        decode_worker_frames(alone + behind + b"\x00")


def test_what_has_travelled_travels_the_same_again_and_its_changed_copy_as_itself() -> None:
    fresh = MODEL.replace(name="one")
    first = encode_value(fresh)
    for again in (fresh, MODEL.replace(name="one"), decode_value(ModelOffer, first)):
        assert encode_value(again) == first
    other = encode_value(fresh.replace(name="two"))
    assert decode_value(ModelOffer, other).name == "two" and encode_value(fresh) == first
