"""A client over real gRPC: TLS pinned to a certificate, frames as bytes, everything verified and
paid for.

Small on purpose: the tests of the worker must not depend on the client package, nor the other way
round.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from piecework_node.keys.tls import TLS_NAME
from piecework_protocol.client_session import (
    CanvasVerified,
    ClientSession,
    DraftSeen,
    Openers,
)
from piecework_protocol.content import Message, encode_prompt, prompt_digest
from piecework_protocol.eip712 import Domain
from piecework_protocol.frames import (
    Accepted,
    CancelJob,
    ClientFrame,
    Funding,
    JobEnded,
    LeafRef,
    SubmitJob,
    VoucherAccepted,
)
from piecework_protocol.ledger import PayerLedger
from piecework_protocol.objects import Channel, CloseChannel, Job, Parameters
from piecework_protocol.sealing import (
    canvas_context,
    draft_context,
    prompt_context,
    public_key,
    seal,
    unseal,
)
from piecework_protocol.signing import LocalSigner, sign
from piecework_protocol.types import Amount, Bytes32, Digest, Timestamp, keccak256
from piecework_protocol.wire import (
    SignedOffer,
    decode_close_response,
    decode_offer,
    decode_worker_frame,
    encode_client_frame,
    encode_close_request,
)

SERVICE = "/piecework.v1.Worker/"


@dataclass
class WireResult:
    """What a job came to at the client."""

    text: str = ""
    canvases: int = 0
    drafts: int = 0
    amount: int = 0
    accepted: Accepted | None = None
    ended: JobEnded | None = None
    acknowledged: int = 0
    log: list[str] = field(default_factory=list)


class WireClient:
    """One payer with one channel at one worker."""

    def __init__(self, host: str, port: int, domain: Domain, signer: LocalSigner) -> None:
        pem = ssl.get_server_certificate((host, port)).encode()
        credentials = grpc.ssl_channel_credentials(pem)
        options = (("grpc.ssl_target_name_override", TLS_NAME),)
        self.grpc: Any = grpc.aio.secure_channel(f"{host}:{port}", credentials, options)
        self.domain, self.signer = domain, signer
        self.channel: Channel | None = None
        self.deposit = Amount(0)
        self.book: PayerLedger | None = None
        self.paid: list[LeafRef] = []

    async def close(self) -> None:
        """Hang up."""
        await self.grpc.close(None)

    async def offer(self) -> SignedOffer:
        """The worker's current offer."""
        return decode_offer(await self.grpc.unary_unary(SERVICE + "GetOffer")(b""))

    def use(self, channel: Channel, deposit: int) -> None:
        """Pay out of this channel."""
        self.channel, self.deposit = channel, Amount(deposit)
        self.book = PayerLedger(channel.id(self.domain))

    def job(
        self,
        offer: SignedOffer,
        prompt: str,
        parameters: Parameters,
        now: int,
        *,
        lifetime_s: int = 600,
    ) -> tuple[SubmitJob, bytes]:
        """A signed job with its sealed prompt, and the secret that opens the answers."""
        assert self.channel is not None
        salt = keccak256(prompt.encode() + parameters.seed.to_bytes(8, "big"))
        data, secret = encode_prompt((Message("user", prompt),)), bytes(keccak256(b"reply" + salt))
        job = Job(
            channel=self.channel.id(self.domain),
            salt=Bytes32(salt),
            offer=Digest(self.domain.digest(offer.offer)),
            model=offer.offer.models[0].digest,
            prompt=prompt_digest(Bytes32(salt), data),
            parameters=parameters,
            max_amount=Amount(10**12),
            deadline=Timestamp(now + lifetime_s),
            reply_key=public_key(secret),
        )
        sealed = seal(
            data, offer.offer.sealing_key, prompt_context(self.domain, job.id(self.domain))
        )
        return SubmitJob(job, sign(self.domain, job, self.signer), self.channel, sealed), secret

    async def run(
        self,
        offer: SignedOffer,
        submission: SubmitJob,
        secret: bytes,
        *,
        funding: Funding | None = None,
        drafts: bool = False,
        pay: bool = True,
        cancel_after: int | None = None,
    ) -> WireResult:
        """Run a job to the end of its stream. gRPC errors pass through."""
        assert self.channel is not None
        assert self.book is not None
        session = self._session(offer, submission, secret)
        call = self.grpc.stream_stream(SERVICE + "Run")()
        first = SubmitJob(
            submission.job,
            submission.signature,
            submission.channel,
            submission.sealed_prompt,
            funding=funding,
            drafts=drafts,
        )
        await call.write(encode_client_frame(first))
        result = WireResult()
        async for data in _frames(call):
            event = session.receive(decode_worker_frame(data))
            for frame in self._react(event, result, pay=pay):
                await call.write(encode_client_frame(frame))
            if cancel_after is not None and result.canvases >= cancel_after:
                cancel_after = None
                await call.write(encode_client_frame(CancelJob()))
        return result

    def _session(self, offer: SignedOffer, submission: SubmitJob, secret: bytes) -> ClientSession:
        job_id = submission.job.id(self.domain)
        openers = Openers(
            canvas=lambda sealed, canvas: unseal(
                sealed, secret, canvas_context(self.domain, job_id, canvas)
            ),
            draft=lambda sealed, canvas, step: unseal(
                sealed, secret, draft_context(self.domain, job_id, canvas, step)
            ),
        )
        model = offer.offer.models[0]
        return ClientSession(
            submission.job, submission.channel, model, self.domain, openers, prompt_bytes=4096
        )

    def _react(self, event: Any, result: WireResult, *, pay: bool) -> list[ClientFrame]:
        if isinstance(event, Accepted):
            result.accepted = event
        elif isinstance(event, CanvasVerified):
            result.text += event.output.text
            result.canvases += 1
            result.amount += event.receipt.amount
            if pay:
                return [self._pay(event)]
        elif isinstance(event, VoucherAccepted):
            assert self.book is not None
            result.acknowledged = event.count
            self.book = self.book.acknowledge(event.count)
        elif isinstance(event, JobEnded):
            result.ended = event
        elif isinstance(event, DraftSeen):
            result.drafts += 1
        return []

    def _pay(self, event: CanvasVerified) -> ClientFrame:
        assert self.book is not None
        ref = LeafRef(event.receipt.job, event.receipt.canvas)
        self.book = self.book.pay(ref, event.digest, event.receipt.amount, self.deposit)
        self.paid.append(ref)
        voucher = self.book.voucher()
        return self.book.payment(voucher, sign(self.domain, voucher, self.signer))

    async def close_channel(self) -> bytes:
        """Ask the worker to close the channel together; returns the transaction's hash."""
        assert self.channel is not None
        assert self.book is not None
        v = self.book.voucher()
        final = CloseChannel(v.channel, v.cumulative, v.count, v.receipts_root)
        request = encode_close_request(self.channel, final, sign(self.domain, final, self.signer))
        _, transaction = decode_close_response(
            await self.grpc.unary_unary(SERVICE + "CloseChannel")(request)
        )
        return transaction


async def _frames(call: Any) -> AsyncIterator[bytes]:
    while True:
        data = await call.read()
        if not isinstance(data, bytes):  # the end of the stream
            if await call.code() is not grpc.StatusCode.OK:
                await call  # raises the status as an error
                raise AssertionError("a failed stream has an error")
            return
        yield data
