"""A scripted client over real gRPC: TLS pinned to a certificate, frames as bytes."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from typing import Any

import grpc

from piecework_protocol.eip712 import Domain
from piecework_protocol.frames import CloseChannelRequest, CloseChannelResponse, Funding
from piecework_protocol.ledger import closing_of
from piecework_protocol.objects import Channel
from piecework_protocol.relaying import server_name
from piecework_protocol.signing import LocalSigner, sign
from piecework_protocol.wire import (
    SignedOffer,
    decode_call,
    decode_offer,
    decode_worker_frames,
    encode_call,
    encode_worker_frame,
)
from tests.support.client.scripted_client import ScriptedClient, ScriptedJob

SERVICE = "/piecework.v2.Worker/"


class WireClient(ScriptedClient):
    """One payer with one channel at one worker.

    `certificate` is the worker's in PEM. None: fetch it, which blocks, so that the worker must be
    another process.
    """

    def __init__(
        self,
        endpoint: str,
        domain: Domain,
        signer: LocalSigner,
        channel: Channel,
        *,
        deposit: int,
        certificate: bytes | None = None,
    ) -> None:
        super().__init__(domain, signer, channel, deposit)
        credentials = grpc.ssl_channel_credentials(certificate or _shown_by(endpoint))
        options = (("grpc.ssl_target_name_override", server_name(channel.operator)),)
        self.grpc: Any = grpc.aio.secure_channel(endpoint, credentials, options)

    async def close(self) -> None:
        """Hang up."""
        await self.grpc.close(None)

    async def offer(self) -> SignedOffer:
        """The worker's current offer."""
        return decode_offer(await self.grpc.unary_unary(SERVICE + "GetOffer")(b""))

    async def run(
        self, job: ScriptedJob, *, funding: Funding | None = None, drafts: bool = False
    ) -> None:
        """Run a job to the end of its stream. gRPC errors pass through."""
        job.open(funding=funding, drafts=drafts)
        call = self.grpc.stream_stream(SERVICE + "Run")()
        await _send(call, job)
        async for data in _frames(call):
            self.take(job, data)
            await _send(call, job)

    async def close_channel(self) -> bytes:
        """Ask the worker to close the channel together; returns the transaction's hash."""
        v = self.book.voucher()
        final = closing_of(v)
        asked = CloseChannelRequest(self.channel, final, sign(self.domain, final, self.signer))
        answer = await self.grpc.unary_unary(SERVICE + "CloseChannel")(encode_call(asked))
        return decode_call(CloseChannelResponse, answer).transaction or b""


def _shown_by(endpoint: str) -> bytes:
    host, port = endpoint.split(":")
    return ssl.get_server_certificate((host, int(port))).encode()


async def _send(call: Any, job: ScriptedJob) -> None:
    while job.upward:
        await call.write(job.upward.popleft())


async def _frames(call: Any) -> AsyncIterator[bytes]:
    while True:
        data = await call.read()
        if not isinstance(data, bytes):  # the end of the stream
            if await call.code() is not grpc.StatusCode.OK:
                await call  # raises the status as an error
                raise AssertionError("a failed stream has an error")
            return
        for frame in decode_worker_frames(data):
            yield encode_worker_frame(frame)
