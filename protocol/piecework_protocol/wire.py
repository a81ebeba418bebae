"""Frames and objects on the wire. The only module that touches the generated protobuf code.

One codec moves every value. A class and its message have the same member names, and the annotations
of the class say how each member travels, as they say how it is signed (`eip712`). What a message
may hold at most stands in `_LIMITS`, what a number may be in `ranges`.

Parsing is strict about what matters (sizes, presence, ranges). It skips unknown fields, as forward
compatibility asks. Everything else is `MalformedInput`, which names the member and the defect and
never repeats the content.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError, Message

from piecework_protocol.eip712 import TypedData
from piecework_protocol.errors import MalformedInput, Reason
from piecework_protocol.frames import (
    Accepted,
    Account,
    CancelJob,
    CanvasDelivered,
    ClientFrame,
    CloseChannelRequest,
    CloseChannelResponse,
    Draft,
    Funding,
    FundingAuthorization,
    GetAccountRequest,
    JobEnded,
    OpeningAuthorization,
    PayVoucher,
    Progress,
    ShownVoucher,
    ShowReceiptsRequest,
    SubmitJob,
    VoucherAccepted,
    WorkerFrame,
)
from piecework_protocol.limits import (
    MAX_CONTENT_BYTES,
    MAX_DETAILS_BYTES,
    MAX_ENDPOINT_BYTES,
    MAX_FRAME_BYTES,
    MAX_FRAMES_TOGETHER,
    MAX_LEAVES_PER_VOUCHER,
    MAX_NAME_BYTES,
    MAX_OFFER_BYTES,
    MAX_OFFER_ENDPOINTS,
    MAX_OFFER_MODELS,
    MAX_OFFER_TOKENS,
    MAX_OPENING_BYTES,
    MAX_OUTPUT_BYTES,
    MAX_PROOF_SIBLINGS,
    MAX_REASON_BYTES,
    MAX_SHOWN_RECEIPTS,
    MAX_TRACE_LEAVES,
    SEALING_OVERHEAD_BYTES,
)
from piecework_protocol.objects import Channel, Endpoint, FundChannel, ModelOffer, Offer
from piecework_protocol.ranges import RANGES, Range
from piecework_protocol.types import (
    ADDRESS_BYTES,
    AMOUNT_BYTES,
    DIGEST_BYTES,
    MAX_PAYER_SIGNATURE_BYTES,
    SIGNATURE_BYTES,
    Address,
    Amount,
    Bytes32,
    ChannelId,
    Digest,
    JobId,
    PayerSignature,
    PublicKey,
    Signature,
    Timestamp,
)
from piecework_protocol.v2 import piecework_pb2 as pb

_M = TypeVar("_M", bound=Message)
_V = TypeVar("_V")
_MAX_SEALED_CONTENT: Final = MAX_CONTENT_BYTES + SEALING_OVERHEAD_BYTES
_MAX_SEALED_OUTPUT: Final = MAX_OUTPUT_BYTES + SEALING_OVERHEAD_BYTES
_MAX_SEALED_CANVAS: Final = MAX_OPENING_BYTES + SEALING_OVERHEAD_BYTES
"""What stands on a canvas is an output or an opened step. The kind's own limit is checked once it
is open."""


@dataclass(frozen=True, slots=True)
class SignedOffer:
    """An offer with its operator's signature. Two are equal when offer and signature are."""

    offer: Offer
    signature: Signature


_CLIENT_FRAMES: Mapping[str, type[ClientFrame]] = {
    "submit": SubmitJob,
    "pay": PayVoucher,
    "cancel": CancelJob,
}
_WORKER_FRAMES: Mapping[str, type[WorkerFrame]] = {
    "accepted": Accepted,
    "draft": Draft,
    "canvas": CanvasDelivered,
    "voucher_accepted": VoucherAccepted,
    "ended": JobEnded,
    "progress": Progress,
}
_LIMITS: Mapping[tuple[type, str], int] = {
    (SubmitJob, "sealed_content"): _MAX_SEALED_CONTENT,
    (PayVoucher, "leaves"): MAX_LEAVES_PER_VOUCHER,
    (Account, "peaks"): MAX_PROOF_SIBLINGS,
    (ShownVoucher, "peaks"): MAX_PROOF_SIBLINGS,
    (ShowReceiptsRequest, "receipts"): MAX_SHOWN_RECEIPTS,
    (Draft, "sealed_output"): _MAX_SEALED_OUTPUT,
    (CanvasDelivered, "sealed_output"): _MAX_SEALED_CANVAS,
    (CanvasDelivered, "leaves"): MAX_TRACE_LEAVES,
    (JobEnded, "message"): MAX_REASON_BYTES,
    (Endpoint, "address"): MAX_ENDPOINT_BYTES,
    (Offer, "endpoints"): MAX_OFFER_ENDPOINTS,
    (Offer, "tokens"): MAX_OFFER_TOKENS,
    (Offer, "models"): MAX_OFFER_MODELS,
    (Offer, "details"): MAX_DETAILS_BYTES,
    (ModelOffer, "name"): MAX_NAME_BYTES,
    (ModelOffer, "profile"): MAX_NAME_BYTES,
}
"""The most bytes of a text or byte string, the most entries of a list."""

CallMessage = (
    CloseChannelRequest | CloseChannelResponse | GetAccountRequest | ShowReceiptsRequest | Account
)
_C = TypeVar("_C", bound=CallMessage)
MAX_CALL_BYTES: Final = 16 * 1024
_MAX_RECEIPT_BYTES: Final = 512
_CALL_LIMITS: Mapping[type, int] = {
    CloseChannelRequest: MAX_CALL_BYTES,
    CloseChannelResponse: MAX_CALL_BYTES,
    GetAccountRequest: MAX_CALL_BYTES,
    ShowReceiptsRequest: MAX_CALL_BYTES + MAX_SHOWN_RECEIPTS * _MAX_RECEIPT_BYTES,
    Account: MAX_CALL_BYTES,
}
"""The most bytes of a message that is not a frame of a stream."""


# --- frames


def encode_client_frame(frame: ClientFrame) -> bytes:
    """Encode a frame as the client sends it."""
    return bytes(_framed(pb.ClientFrame(), _CLIENT_FRAMES, frame).SerializeToString())


def decode_client_frame(data: bytes) -> ClientFrame:
    """Parse a client's frame.

    Raises:
        MalformedInput: The bytes are not a client frame, or a member breaks its bounds.
    """
    return _unframed(_CLIENT_FRAMES, _parse(pb.ClientFrame, data, MAX_FRAME_BYTES))


def encode_worker_frame(frame: WorkerFrame) -> bytes:
    """Encode a frame as the worker sends it alone, and as journals keep it."""
    return encode_worker_frames((frame,))


def encode_worker_frames(frames: Sequence[WorkerFrame]) -> bytes:
    """Encode frames that travel in one message (clause 2.9)."""
    message, *behind = (_framed(pb.WorkerFrame(), _WORKER_FRAMES, frame) for frame in frames)
    message.behind.extend(behind)
    return bytes(message.SerializeToString())


def decode_worker_frame(data: bytes) -> WorkerFrame:
    """Parse a worker's frame that came alone.

    Raises:
        MalformedInput: As `decode_worker_frames`, or there are several.
    """
    first, *behind = decode_worker_frames(data)
    if behind:
        raise MalformedInput("more than one WorkerFrame")
    return first


def decode_worker_frames(data: bytes) -> tuple[WorkerFrame, ...]:
    """Parse the frames of one message of a worker, one or more, in their order.

    A reason that this version does not know becomes `INTERNAL`.

    Raises:
        MalformedInput: The bytes are not worker frames, or a member breaks its bounds.
    """
    message = _parse(pb.WorkerFrame, data, MAX_FRAME_BYTES)
    if len(message.behind) >= MAX_FRAMES_TOGETHER:
        raise MalformedInput(f"a message has at most {MAX_FRAMES_TOGETHER} frames")
    if any(frame.behind for frame in message.behind):
        raise MalformedInput("a WorkerFrame behind another one carries a third")
    return tuple(_unframed(_WORKER_FRAMES, frame) for frame in (message, *message.behind))


# --- offers and calls


def encode_offer(signed: SignedOffer) -> bytes:
    """Encode a signed offer as workers serve it and indexes pass it on."""
    return bytes(_to_message(signed).SerializeToString())


def decode_offer(data: bytes) -> SignedOffer:
    """Parse a signed offer. The signature is not checked here.

    Raises:
        MalformedInput: The bytes are not a signed offer, or a member breaks its bounds.
    """
    return _to_value(SignedOffer, _parse(pb.SignedOffer, data, MAX_OFFER_BYTES))


def encode_call(value: CallMessage) -> bytes:
    """Encode a request or an answer of a call that is not a stream."""
    return bytes(_to_message(value).SerializeToString())


def decode_call(kind: type[_C], data: bytes) -> _C:
    """Parse what `encode_call` makes of a value of this class.

    Raises:
        MalformedInput: The bytes are not such a message, or a member breaks its bounds.
    """
    return _to_value(kind, _parse(_message_class(kind), data, _CALL_LIMITS[kind]))


# --- values by themselves, as journals keep them


def encode_value(value: TypedData | Funding) -> bytes:
    """Encode one object as the message that it travels in."""
    return bytes(_to_message(value).SerializeToString())


def decode_value(kind: type[_V], data: bytes) -> _V:
    """Parse what `encode_value` makes of an object of a class.

    Raises:
        MalformedInput: The bytes are not one, or a member breaks its bounds.
    """
    return _to_value(kind, _parse(_message_class(kind), data, MAX_FRAME_BYTES))


def stored_entry(submission: bytes) -> int:
    """Read of a stored `SubmitJob` frame only which entry of its offer the job names.

    It takes a thirtieth of the time of `decode_client_frame`. The frame was checked when it came.

    Raises:
        MalformedInput: The bytes are not a client frame.
    """
    return int(_parse(pb.ClientFrame, submission, MAX_FRAME_BYTES).submit.job.entry)


def stored_units(receipt: bytes) -> int:
    """Read of a stored receipt only how many units it charges. It was checked when it was made.

    Raises:
        MalformedInput: The bytes are not a receipt.
    """
    return int(_parse(pb.Receipt, receipt, MAX_FRAME_BYTES).units)


def decode_funding(data: bytes, channel: Channel) -> Funding:
    """Parse what `encode_value` makes of a funding, whose channel does not travel with it.

    Raises:
        MalformedInput: The bytes are not one, or a member breaks its bounds.
    """
    try:
        return _funding(_parse(pb.Funding, data, MAX_FRAME_BYTES), channel)
    except ValueError as error:
        raise MalformedInput(f"Funding: {error}") from None


# --- the messages around values


def _framed(message: Any, kinds: Mapping[str, type], frame: Any) -> Any:
    """Put a frame into the message that says which kind it is."""
    name = next(name for name, kind in kinds.items() if type(frame) is kind)
    member = getattr(message, name)
    member.CopyFrom(_to_message(frame))
    member.SetInParent()  # a frame of defaults only is still a frame
    return message


def _unframed(kinds: Mapping[str, type[_V]], message: Any) -> _V:
    """Give the frame in such a message."""
    name = message.WhichOneof("frame")
    if name is None:
        raise MalformedInput(f"a {type(message).__name__} of no known kind")
    return _to_value(kinds[name], getattr(message, name))


def _parse(kind: type[_M], data: bytes, limit: int) -> _M:
    if len(data) > limit:
        raise MalformedInput(f"a {kind.__name__} is at most {limit} bytes")
    message = kind()
    try:
        message.ParseFromString(data)
    except (DecodeError, RecursionError):
        raise MalformedInput(f"not a {kind.__name__}") from None
    return message


def _lacking(message: Message, name: str) -> MalformedInput:
    return MalformedInput(f"{type(message).__name__} lacks its {name}")


# --- the codec

_Convert = Callable[[Any], Any]
_Read = Callable[[Any, Mapping[str, Any]], Any]
_FUNDINGS: Final = (FundingAuthorization, OpeningAuthorization)


@dataclass(frozen=True, slots=True)
class _Member:
    """How one member of a class travels.

    `read` takes the message, and the members before this one. `encode` is None where the message
    holds the value as it is.
    """

    name: str
    encode: _Convert | None
    read: _Read


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a class travels: its message, and its members in their order."""

    message: Any
    members: tuple[_Member, ...]


def _to_message(value: Any) -> Any:
    """Give the message of a frame or object. It is copied or encoded, and never changed.

    A signed object is frozen, and often travels more than once: to a journal and to the peer, or in
    every job, as an offer and a channel do. So its message is made once.
    """
    if type(value) in _FUNDINGS:
        return _funding_message(value)
    if not isinstance(value, TypedData):
        return _own_message(value)
    try:
        return value._message
    except AttributeError:
        made = _own_message(value)
        object.__setattr__(value, "_message", made)
        return made


def _own_message(value: Any) -> Any:
    plan = _plan(type(value))
    given: dict[str, Any] = {}
    for member in plan.members:
        part = getattr(value, member.name)
        if part is not None:
            given[member.name] = part if member.encode is None else member.encode(part)
    return plan.message(**given)


def _to_value(cls: type[_V], message: Any) -> _V:
    """Give the value that a message carries, or raise `MalformedInput`."""
    values: dict[str, Any] = {}
    for member in _plan(cls).members:
        try:
            values[member.name] = member.read(message, values)
        except ValueError as error:
            raise MalformedInput(f"{cls.__name__}.{member.name}: {error}") from None
    try:
        return cls(**values)
    except ValueError as error:  # a typed-data object checks its members and names the bad one
        raise MalformedInput(str(error)) from None


_PLANS: dict[type, _Plan] = {}


def _plan(cls: Any) -> _Plan:
    plan = _PLANS.get(cls)
    if plan is None:
        hints = typing.get_type_hints(cls)
        members = tuple(_member(cls, f.name, hints[f.name]) for f in fields(cls))
        plan = _PLANS[cls] = _Plan(_message_class(cls), members)
    return plan


def _member(cls: type, name: str, hint: Any) -> _Member:
    optional = typing.get_origin(hint) in (types.UnionType, typing.Union)
    kind = next(k for k in typing.get_args(hint) if k is not types.NoneType) if optional else hint
    encode, decode = _codec(kind)
    limit = _LIMITS.get((cls, name))
    span = RANGES[cls, name] if is_integer(kind) else None
    if kind is FundingAuthorization:
        read = _funding_reader(name)
    elif optional or _is_message(kind) or limit is not None:
        read = _presence_reader(name, _value_reader(decode, span), kind, limit, optional=optional)
    else:
        value = _value_reader(decode, span)
        read = lambda message, _: value(getattr(message, name))  # noqa: E731
    return _Member(name, None if encode is _same else encode, read)


def _value_reader(decode: _Convert, span: Range | None) -> _Convert:
    """Give the function that makes a value of what the message holds, and checks its range."""
    if span is None:
        return decode
    least, greatest, check = span.least, span.greatest, span.check

    def read(raw: Any) -> Any:
        value = raw if isinstance(raw, int) else decode(raw)
        if not least <= value <= greatest:
            check(value)
        return value

    if decode is _same or decode is _amount:
        return read
    return lambda raw: decode(read(raw))  # an enumeration is made of a number in its range


def _presence_reader(
    name: str, value: _Convert, kind: Any, limit: int | None, *, optional: bool
) -> _Read:
    """Give the function that reads a member which may be absent, or whose size has a limit."""
    is_message = _is_message(kind)

    def read(message: Any, _: Mapping[str, Any]) -> Any:
        raw = getattr(message, name)
        absent = not message.HasField(name) if is_message else not raw
        if absent and optional:
            return None
        if absent and is_message:
            raise _lacking(message, name)
        if limit is not None:
            _check_limit(raw, limit)
        return value(raw)

    return read


def _funding_reader(name: str) -> _Read:
    """Give the function that reads a funding, which may be absent."""

    def read(message: Any, before: Mapping[str, Any]) -> Any:
        if not message.HasField(name):
            return None
        return _funding(getattr(message, name), before["channel"])

    return read


def is_integer(kind: Any) -> bool:
    """Say whether an annotated type is a number of ours, which needs a range."""
    plain = kind.__supertype__ if isinstance(kind, typing.NewType) else kind
    return isinstance(plain, type) and issubclass(plain, int) and plain is not bool


def _codec(kind: Any) -> tuple[_Convert, _Convert]:
    """Give the functions that encode and decode one value of an annotated type."""
    if kind in _SCALARS:
        return _SCALARS[kind]
    if typing.get_origin(kind) is tuple:
        encode, decode = _codec(typing.get_args(kind)[0])
        return lambda vs: [encode(v) for v in vs], lambda vs: tuple(decode(v) for v in vs)
    if _is_message(kind):
        return _to_message, partial(_to_value, kind)
    if isinstance(kind, type) and issubclass(kind, enum.IntEnum):
        return _same, kind
    return _same, _same


def _is_message(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind)


def _message_class(cls: Any) -> Any:
    return getattr(pb, cls.__name__)


def _same(value: Any) -> Any:
    return value


def _sized(size: int) -> Callable[[bytes], bytes]:
    def check(value: bytes) -> bytes:
        if len(value) != size:
            raise ValueError(f"expected {size} bytes, got {len(value)}")
        return value

    return check


def _check_limit(raw: Any, limit: int) -> None:
    text = isinstance(raw, str)
    size = len(raw.encode()) if text else len(raw)
    if size > limit:
        unit = "bytes" if text or isinstance(raw, bytes) else "entries"
        raise ValueError(f"at most {limit} {unit}, got {size}")


def _amount(data: bytes) -> Amount:
    if len(data) > AMOUNT_BYTES or data[:1] == b"\x00":
        raise ValueError("an amount is a big-endian number of 16 bytes without leading zeros")
    return Amount(int.from_bytes(data, "big"))


def _amount_bytes(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def _reason_name(reason: Reason) -> str:
    return reason.name


def _funding(message: Any, channel: Channel) -> Funding:
    """Give a funding. Its channel is that of the submission, so the message does not repeat it."""
    name = message.WhichOneof("funding")
    if name is None:
        raise ValueError("a funding of no known kind")
    if name == "opening":
        return _to_value(OpeningAuthorization, message.opening)
    given = message.authorization
    terms: dict[str, int] = {
        "funded": _amount(given.funded),
        "fee": _amount(given.fee),
        "deadline": given.deadline,
    }
    for member, value in terms.items():
        RANGES[FundChannel, member].check(value)
    fund = FundChannel(
        channel, Amount(terms["funded"]), Amount(terms["fee"]), Timestamp(terms["deadline"])
    )
    return FundingAuthorization(fund, _payer_signature(given.signature))


def _funding_message(funding: Funding) -> Any:
    if isinstance(funding, OpeningAuthorization):
        return pb.Funding(opening=_own_message(funding))
    terms = funding.authorization
    given = pb.FundingAuthorization(
        funded=_amount_bytes(terms.funded),
        fee=_amount_bytes(terms.fee),
        deadline=terms.deadline,
        signature=funding.signature,
    )
    return pb.Funding(authorization=given)


def _payer_signature(data: bytes) -> PayerSignature:
    if not SIGNATURE_BYTES <= len(data) <= MAX_PAYER_SIGNATURE_BYTES:
        raise ValueError(
            f"a payer's signature is {SIGNATURE_BYTES} to {MAX_PAYER_SIGNATURE_BYTES} bytes"
        )
    return PayerSignature(data)


_SCALARS: Mapping[Any, tuple[_Convert, _Convert]] = {
    Amount: (_amount_bytes, _amount),
    Reason: (_reason_name, Reason.named),
    Address: (_same, _sized(ADDRESS_BYTES)),
    Signature: (_same, _sized(SIGNATURE_BYTES)),
    PayerSignature: (_same, _payer_signature),
    **dict.fromkeys((Bytes32, ChannelId, Digest, JobId, PublicKey), (_same, _sized(DIGEST_BYTES))),
}
"""The types whose form on the wire differs from their form here, or whose size is fixed."""
