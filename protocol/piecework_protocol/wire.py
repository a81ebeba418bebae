"""Frames and objects on the wire. The only module that touches the generated protobuf code.

Parsing is strict about what matters (sizes, presence, ranges) and lenient about what it does not
know: unknown fields are skipped, as forward compatibility asks. Everything unparsable is
`MalformedInput`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from piecework_protocol.errors import MalformedInput, Reason
from piecework_protocol.frames import (
    Accepted,
    Account,
    CancelJob,
    CanvasDelivered,
    ClientFrame,
    Draft,
    Funding,
    JobEnded,
    LeafRef,
    PayVoucher,
    SubmitJob,
    VoucherAccepted,
    WorkerFrame,
)
from piecework_protocol.limits import (
    MAX_DETAILS_BYTES,
    MAX_ENDPOINT_BYTES,
    MAX_FRAME_BYTES,
    MAX_LEAVES_PER_VOUCHER,
    MAX_NAME_BYTES,
    MAX_OFFER_BYTES,
    MAX_OFFER_MODELS,
    MAX_OFFER_TOKENS,
    MAX_OUTPUT_BYTES,
    MAX_PROMPT_BYTES,
    MAX_PROOF_SIBLINGS,
    MAX_REASON_BYTES,
    SEALING_OVERHEAD_BYTES,
)
from piecework_protocol.objects import (
    Channel,
    CloseChannel,
    Finish,
    FundChannel,
    Job,
    ModelOffer,
    Offer,
    Parameters,
    Receipt,
    Service,
    Voucher,
)
from piecework_protocol.types import (
    DIGEST_BYTES,
    SIGNATURE_BYTES,
    Address,
    Amount,
    Bytes32,
    ChannelId,
    Digest,
    JobId,
    Micros,
    PublicKey,
    Seconds,
    Signature,
    Timestamp,
    Uint32,
    Uint64,
)
from piecework_protocol.v1 import piecework_pb2 as pb

_M = TypeVar("_M", bound=Message)
_MAX_SEALED_PROMPT = MAX_PROMPT_BYTES + SEALING_OVERHEAD_BYTES
_MAX_SEALED_OUTPUT = MAX_OUTPUT_BYTES + SEALING_OVERHEAD_BYTES
_REASONS = {r.label: r for r in Reason}


class SignedOffer:
    """An offer with its signature; compared and stored by its wire bytes."""

    __slots__ = ("offer", "signature")

    def __init__(self, offer: Offer, signature: Signature) -> None:
        self.offer = offer
        self.signature = signature

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SignedOffer) and (self.offer, self.signature) == (
            other.offer,
            other.signature,
        )

    def __hash__(self) -> int:
        return hash((self.offer, self.signature))


# --- scalars


def _amount(data: bytes) -> Amount:
    if len(data) > 16 or data[:1] == b"\x00":
        raise MalformedInput("an amount is a big-endian uint128 without leading zeros")
    return Amount(int.from_bytes(data, "big"))


def _amount_bytes(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def _signature(data: bytes) -> Signature:
    if len(data) != SIGNATURE_BYTES:
        raise MalformedInput(f"a signature is {SIGNATURE_BYTES} bytes")
    return Signature(data)


def _bounded(data: bytes, limit: int, what: str) -> bytes:
    if len(data) > limit:
        raise MalformedInput(f"{what} is at most {limit} bytes")
    return data


def _text(value: str, limit: int, what: str) -> str:
    _bounded(value.encode(), limit, what)
    return value


def _require(message: Message, *names: str) -> None:
    for name in names:
        if not message.HasField(name):
            raise MalformedInput(f"{type(message).__name__} lacks its {name}")


def _parse(kind: type[_M], data: bytes, limit: int) -> _M:
    if len(data) > limit:
        raise MalformedInput(f"a {kind.__name__} is at most {limit} bytes")
    message = kind()
    try:
        message.ParseFromString(data)
    except (DecodeError, RecursionError):
        raise MalformedInput(f"not a {kind.__name__}") from None
    return message


_R = TypeVar("_R")


def _guarded(build: Callable[[Any], _R], message: Any) -> _R:
    """Build a value from a message; a member out of its bounds makes the message malformed."""
    try:
        return build(message)
    except ValueError as error:
        raise MalformedInput(str(error)) from None


# --- objects


def _channel(m: Any) -> Channel:
    return Channel(
        payer=Address(m.payer),
        authorizer=Address(m.authorizer),
        receiver=Address(m.receiver),
        operator=Address(m.operator),
        token=Address(m.token),
        withdrawal_delay=Seconds(m.withdrawal_delay),
        salt=Bytes32(m.salt),
    )


def _channel_message(c: Channel) -> Any:
    return pb.Channel(
        payer=c.payer,
        authorizer=c.authorizer,
        receiver=c.receiver,
        operator=c.operator,
        token=c.token,
        withdrawal_delay=c.withdrawal_delay,
        salt=c.salt,
    )


def _parameters(m: Any) -> Parameters:
    return Parameters(
        seed=Uint64(m.seed),
        max_tokens=Uint32(m.max_tokens),
        max_steps=Uint32(m.max_steps),
        temperature_start=Micros(m.temperature_start),
        temperature_end=Micros(m.temperature_end),
        entropy_bound=Micros(m.entropy_bound),
        confidence_threshold=Micros(m.confidence_threshold),
        stability_steps=Uint32(m.stability_steps),
        service=Service(m.service),
    )


def _job(m: Any) -> Job:
    _require(m, "parameters")
    return Job(
        channel=ChannelId(m.channel),
        salt=Bytes32(m.salt),
        offer=Digest(m.offer),
        model=Digest(m.model),
        prompt=Digest(m.prompt),
        parameters=_parameters(m.parameters),
        max_amount=_amount(m.max_amount),
        deadline=Timestamp(m.deadline),
        reply_key=PublicKey(m.reply_key),
    )


def _job_message(j: Job) -> Any:
    p = j.parameters
    return pb.Job(
        channel=j.channel,
        salt=j.salt,
        offer=j.offer,
        model=j.model,
        prompt=j.prompt,
        parameters=pb.Parameters(
            seed=p.seed,
            max_tokens=p.max_tokens,
            max_steps=p.max_steps,
            temperature_start=p.temperature_start,
            temperature_end=p.temperature_end,
            entropy_bound=p.entropy_bound,
            confidence_threshold=p.confidence_threshold,
            stability_steps=p.stability_steps,
            service=p.service,
        ),
        max_amount=_amount_bytes(j.max_amount),
        deadline=j.deadline,
        reply_key=j.reply_key,
    )


def _voucher(m: Any) -> Voucher:
    return Voucher(
        channel=ChannelId(m.channel),
        cumulative=_amount(m.cumulative),
        count=Uint64(m.count),
        receipts_root=Digest(m.receipts_root),
    )


def _voucher_message(v: Voucher | CloseChannel) -> Any:
    return pb.Voucher(
        channel=v.channel,
        cumulative=_amount_bytes(v.cumulative),
        count=v.count,
        receipts_root=v.receipts_root,
    )


def _receipt(m: Any) -> Receipt:
    return Receipt(
        job=JobId(m.job),
        canvas=Uint32(m.canvas),
        output_digest=Digest(m.output_digest),
        trace_root=Digest(m.trace_root),
        steps=Uint32(m.steps),
        units=Uint32(m.units),
        amount=_amount(m.amount),
        finish=Finish(m.finish),
        previous=Digest(m.previous),
    )


def _receipt_message(r: Receipt) -> Any:
    return pb.Receipt(
        job=r.job,
        canvas=r.canvas,
        output_digest=r.output_digest,
        trace_root=r.trace_root,
        steps=r.steps,
        units=r.units,
        amount=_amount_bytes(r.amount),
        finish=r.finish,
        previous=r.previous,
    )


# --- client frames


def encode_client_frame(frame: ClientFrame) -> bytes:
    """A frame as the client sends it."""
    message = pb.ClientFrame()
    if isinstance(frame, SubmitJob):
        message.submit.CopyFrom(_submit_message(frame))
    elif isinstance(frame, PayVoucher):
        message.pay.CopyFrom(_pay_message(frame))
    else:
        message.cancel.SetInParent()
    return bytes(message.SerializeToString())


def decode_client_frame(data: bytes) -> ClientFrame:
    """Parse a client's frame; `MalformedInput` names what is wrong and never repeats the
    content."""
    message = _parse(pb.ClientFrame, data, MAX_FRAME_BYTES)
    kind = message.WhichOneof("frame")
    if kind == "submit":
        return _guarded(_submit, message.submit)
    if kind == "pay":
        return _guarded(_pay, message.pay)
    if kind == "cancel":
        return CancelJob()
    raise MalformedInput("a client frame of no known kind")


def _submit(m: Any) -> SubmitJob:
    _require(m, "job", "channel")
    channel = _channel(m.channel)
    funding = None
    if m.HasField("funding"):
        f = m.funding
        authorization = FundChannel(channel, _amount(f.deposit), Timestamp(f.deadline))
        funding = Funding(authorization, _signature(f.signature))
    return SubmitJob(
        job=_job(m.job),
        signature=_signature(m.signature),
        channel=channel,
        sealed_prompt=_bounded(m.sealed_prompt, _MAX_SEALED_PROMPT, "a sealed prompt"),
        received=m.received,
        funding=funding,
        drafts=m.drafts,
    )


def _submit_message(s: SubmitJob) -> Any:
    funding = None
    if s.funding is not None:
        a = s.funding.authorization
        funding = pb.Funding(
            deposit=_amount_bytes(a.deposit), deadline=a.deadline, signature=s.funding.signature
        )
    return pb.SubmitJob(
        job=_job_message(s.job),
        signature=s.signature,
        channel=_channel_message(s.channel),
        sealed_prompt=s.sealed_prompt,
        received=s.received,
        funding=funding,
        drafts=s.drafts,
    )


def _pay(m: Any) -> PayVoucher:
    _require(m, "voucher")
    if len(m.leaves) > MAX_LEAVES_PER_VOUCHER:
        raise MalformedInput(f"a voucher adds at most {MAX_LEAVES_PER_VOUCHER} receipts")
    leaves = tuple(LeafRef(JobId(_digest(leaf.job)), leaf.canvas) for leaf in m.leaves)
    return PayVoucher(_voucher(m.voucher), _signature(m.signature), m.base_count, leaves)


def _pay_message(p: PayVoucher) -> Any:
    return pb.PayVoucher(
        voucher=_voucher_message(p.voucher),
        signature=p.signature,
        base_count=p.base_count,
        leaves=[pb.LeafRef(job=ref.job, canvas=ref.canvas) for ref in p.leaves],
    )


# --- worker frames


def encode_worker_frame(frame: WorkerFrame) -> bytes:
    """A frame as the worker sends it."""
    message = pb.WorkerFrame()
    if isinstance(frame, Accepted):
        message.accepted.CopyFrom(_accepted_message(frame))
    elif isinstance(frame, Draft):
        message.draft.CopyFrom(
            pb.Draft(
                job=frame.job,
                canvas=frame.canvas,
                step=frame.step,
                sealed_output=frame.sealed_output,
            )
        )
    elif isinstance(frame, CanvasDelivered):
        receipt = _receipt_message(frame.receipt)
        message.canvas.CopyFrom(
            pb.CanvasDelivered(
                receipt=receipt, signature=frame.signature, sealed_output=frame.sealed_output
            )
        )
    elif isinstance(frame, VoucherAccepted):
        message.voucher_accepted.CopyFrom(pb.VoucherAccepted(count=frame.count))
    else:
        reason = frame.reason.label if frame.reason else ""
        message.ended.CopyFrom(
            pb.JobEnded(
                job=frame.job, canvases=frame.canvases, reason=reason, message=frame.message
            )
        )
    return bytes(message.SerializeToString())


def decode_worker_frame(data: bytes) -> WorkerFrame:
    """Parse a worker's frame; `MalformedInput` for anything else."""
    message = _parse(pb.WorkerFrame, data, MAX_FRAME_BYTES)
    kind = message.WhichOneof("frame")
    parsers: dict[str, Callable[[Any], WorkerFrame]] = {
        "accepted": _accepted,
        "draft": _draft,
        "canvas": _delivered,
        "voucher_accepted": lambda m: VoucherAccepted(m.count),
        "ended": _ended,
    }
    if kind is None:
        raise MalformedInput("a worker frame of no known kind")
    return _guarded(parsers[kind], getattr(message, kind))


def _accepted(m: Any) -> Accepted:
    account = None
    if m.HasField("account"):
        _require(m.account, "voucher")
        if len(m.account.peaks) > MAX_PROOF_SIBLINGS:
            raise MalformedInput(f"an account has at most {MAX_PROOF_SIBLINGS} peaks")
        peaks = tuple(Bytes32(_digest(p)) for p in m.account.peaks)
        account = Account(_voucher(m.account.voucher), _signature(m.account.signature), peaks)
    return Accepted(
        JobId(_digest(m.job)), m.prompt_tokens, _signature(m.signature), m.available, account
    )


def _accepted_message(a: Accepted) -> Any:
    account = None
    if a.account is not None:
        account = pb.Account(
            voucher=_voucher_message(a.account.voucher),
            signature=a.account.signature,
            peaks=list(a.account.peaks),
        )
    return pb.Accepted(
        job=a.job,
        prompt_tokens=a.prompt_tokens,
        signature=a.signature,
        available=a.available,
        account=account,
    )


def _draft(m: Any) -> Draft:
    sealed = _bounded(m.sealed_output, _MAX_SEALED_OUTPUT, "a sealed draft")
    return Draft(JobId(_digest(m.job)), m.canvas, m.step, sealed)


def _delivered(m: Any) -> CanvasDelivered:
    _require(m, "receipt")
    sealed = _bounded(m.sealed_output, _MAX_SEALED_OUTPUT, "a sealed output")
    return CanvasDelivered(_receipt(m.receipt), _signature(m.signature), sealed)


def _ended(m: Any) -> JobEnded:
    reason = _REASONS.get(m.reason, Reason.INTERNAL) if m.reason else None
    message = _text(m.message, MAX_REASON_BYTES, "a reason's text")
    return JobEnded(JobId(_digest(m.job)), m.canvases, reason, message)


def _digest(data: bytes) -> Bytes32:
    if len(data) != DIGEST_BYTES:
        raise MalformedInput(f"a digest is {DIGEST_BYTES} bytes")
    return Bytes32(data)


# --- offers


def encode_offer(signed: SignedOffer) -> bytes:
    """A signed offer as workers serve it and indexes pass it on."""
    o = signed.offer
    offer = pb.Offer(
        operator=o.operator,
        receiver=o.receiver,
        sequence=o.sequence,
        issued_at=o.issued_at,
        expires_at=o.expires_at,
        endpoint=o.endpoint,
        tls_certificate=o.tls_certificate,
        sealing_key=o.sealing_key,
        tokens=list(o.tokens),
        models=[_model_message(m) for m in o.models],
        slots=o.slots,
        slots_free=o.slots_free,
        queue_free=o.queue_free,
        credit_window=o.credit_window,
        min_withdrawal_delay=o.min_withdrawal_delay,
        min_deposit=_amount_bytes(o.min_deposit),
        details=o.details,
    )
    return bytes(pb.SignedOffer(offer=offer, signature=signed.signature).SerializeToString())


def decode_offer(data: bytes) -> SignedOffer:
    """Parse a signed offer; the signature is not checked here."""
    message = _parse(pb.SignedOffer, data, MAX_OFFER_BYTES)
    _require(message, "offer")
    return SignedOffer(_guarded(_offer, message.offer), _signature(message.signature))


def _offer(m: Any) -> Offer:
    if len(m.models) > MAX_OFFER_MODELS or len(m.tokens) > MAX_OFFER_TOKENS:
        raise MalformedInput("an offer lists too many models or tokens")
    return Offer(
        operator=Address(m.operator),
        receiver=Address(m.receiver),
        sequence=Uint64(m.sequence),
        issued_at=Timestamp(m.issued_at),
        expires_at=Timestamp(m.expires_at),
        endpoint=_text(m.endpoint, MAX_ENDPOINT_BYTES, "an endpoint"),
        tls_certificate=Digest(m.tls_certificate),
        sealing_key=PublicKey(m.sealing_key),
        tokens=tuple(Address(t) for t in m.tokens),
        models=tuple(_model(x) for x in m.models),
        slots=Uint32(m.slots),
        slots_free=Uint32(m.slots_free),
        queue_free=Uint32(m.queue_free),
        credit_window=Uint32(m.credit_window),
        min_withdrawal_delay=Seconds(m.min_withdrawal_delay),
        min_deposit=_amount(m.min_deposit),
        details=_text(m.details, MAX_DETAILS_BYTES, "an offer's details"),
    )


def _model(m: Any) -> ModelOffer:
    return ModelOffer(
        name=_text(m.name, MAX_NAME_BYTES, "a model's name"),
        digest=Digest(m.digest),
        profile=_text(m.profile, MAX_NAME_BYTES, "an engine profile"),
        price_per_million_prompt_tokens=_amount(m.price_per_million_prompt_tokens),
        price_per_million_output_tokens=_amount(m.price_per_million_output_tokens),
        price_per_thousand_steps=_amount(m.price_per_thousand_steps),
        max_context=Uint32(m.max_context),
        max_output=Uint32(m.max_output),
        canvas_size=Uint32(m.canvas_size),
        max_steps=Uint32(m.max_steps),
        tokens_per_second=Uint32(m.tokens_per_second),
        first_canvas_ms=Uint32(m.first_canvas_ms),
        service=Service(m.service),
    )


def _model_message(m: ModelOffer) -> Any:
    return pb.ModelOffer(
        name=m.name,
        digest=m.digest,
        profile=m.profile,
        price_per_million_prompt_tokens=_amount_bytes(m.price_per_million_prompt_tokens),
        price_per_million_output_tokens=_amount_bytes(m.price_per_million_output_tokens),
        price_per_thousand_steps=_amount_bytes(m.price_per_thousand_steps),
        max_context=m.max_context,
        max_output=m.max_output,
        canvas_size=m.canvas_size,
        max_steps=m.max_steps,
        tokens_per_second=m.tokens_per_second,
        first_canvas_ms=m.first_canvas_ms,
        service=m.service,
    )


# --- closing


def encode_close_request(channel: Channel, final: CloseChannel, signature: Signature) -> bytes:
    """A client's request to close a channel together."""
    message = pb.CloseChannelRequest(
        channel=_channel_message(channel), final=_voucher_message(final), signature=signature
    )
    return bytes(message.SerializeToString())


def decode_close_request(data: bytes) -> tuple[Channel, CloseChannel, Signature]:
    """Parse what `encode_close_request` makes."""
    message = _parse(pb.CloseChannelRequest, data, MAX_OFFER_BYTES)
    _require(message, "channel", "final")
    v = _guarded(_voucher, message.final)
    final = CloseChannel(v.channel, v.cumulative, v.count, v.receipts_root)
    return _guarded(_channel, message.channel), final, _signature(message.signature)


def encode_close_response(operator_signature: Signature, transaction: bytes) -> bytes:
    """The worker's agreement; `transaction` is its 32-byte hash or empty."""
    message = pb.CloseChannelResponse(
        operator_signature=operator_signature, transaction=transaction
    )
    return bytes(message.SerializeToString())


def decode_close_response(data: bytes) -> tuple[Signature, bytes]:
    """Parse what `encode_close_response` makes."""
    message = _parse(pb.CloseChannelResponse, data, MAX_OFFER_BYTES)
    if len(message.transaction) not in (0, DIGEST_BYTES):
        raise MalformedInput("a transaction hash is 32 bytes")
    return _signature(message.operator_signature), message.transaction
